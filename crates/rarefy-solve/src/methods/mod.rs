//! The published methods of this crate, one module each.

pub mod block_coordinate_descent;
pub mod kronecker_sbl;
pub mod ldp_sparse_regression;
pub mod linf_regression;
pub mod lp_sensitivity_sampling;
pub mod matrix_completion;
pub mod optimistic_omd;
pub mod sinkhorn_newton_sparse;
pub mod sparsity_constrained_ot;
pub mod spright;

use rarefy_sparsity::MethodInfo;

/// All methods of this crate, by slug.
pub const METHODS: &[MethodInfo] = &[
    block_coordinate_descent::INFO,
    kronecker_sbl::INFO,
    ldp_sparse_regression::INFO,
    linf_regression::INFO,
    lp_sensitivity_sampling::INFO,
    matrix_completion::INFO,
    optimistic_omd::INFO,
    sinkhorn_newton_sparse::INFO,
    sparsity_constrained_ot::INFO,
    spright::INFO,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_in_slug_order() {
        assert!(METHODS.windows(2).all(|w| w[0].slug < w[1].slug));
    }
}
