//! The published methods whose home are the kernels: what each is, and where it is found.

pub mod fast_sparse_convnets;
pub mod flash_llm;
pub mod flashfftconv;
pub mod sparsebytenn;

use rarefy_sparsity::MethodInfo;

/// All methods of this crate.
pub static METHODS: &[&MethodInfo] =
    &[&fast_sparse_convnets::INFO, &sparsebytenn::INFO, &flash_llm::INFO, &flashfftconv::INFO];
