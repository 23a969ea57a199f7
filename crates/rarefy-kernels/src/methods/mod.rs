//! The published methods whose home are the kernels: what each is, and where it is found.

pub mod flashfftconv;

use rarefy_sparsity::MethodInfo;

/// All methods of this crate.
pub static METHODS: &[&MethodInfo] = &[&flashfftconv::INFO];
