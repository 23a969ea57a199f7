//! The published methods of this crate, one module each.

use rarefy_sparsity::MethodInfo;

/// All methods of this crate, by slug.
pub const METHODS: &[MethodInfo] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_in_slug_order() {
        assert!(METHODS.windows(2).all(|w| w[0].slug < w[1].slug));
    }
}
