//! Thresholds and channels found offline from activations; plain slices, no framework.

pub mod cats;
pub mod double_sparsity;
