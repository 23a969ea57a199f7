//! The published methods of this crate, one module each.

pub mod block_coordinate_descent;
pub mod linf_regression;
pub mod sinkhorn_newton_sparse;
pub mod sparsity_constrained_ot;

use rarefy_sparsity::MethodInfo;

/// All methods of this crate, by slug.
pub const METHODS: &[MethodInfo] = &[
    block_coordinate_descent::INFO,
    linf_regression::INFO,
    sinkhorn_newton_sparse::INFO,
    sparsity_constrained_ot::INFO,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_in_slug_order() {
        assert!(METHODS.windows(2).all(|w| w[0].slug < w[1].slug));
    }
}
