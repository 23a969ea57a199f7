//! All methods of the product, from the registries of its crates.

use rarefy_sparsity::MethodInfo;

/// The rows of all methods, family by family, in the order of their registries.
#[must_use]
pub fn all() -> Vec<&'static MethodInfo> {
    let pruning = rarefy_prune::METHODS.iter().map(|m| m.info);
    let rules = rarefy_prune::RULE_METHODS.iter().map(|m| m.info);
    let kernels = rarefy_kernels::methods::METHODS.iter().copied();
    pruning.chain(rules).chain(kernels).chain(rarefy_solve::METHODS).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn slugs_are_unique() {
        let all = super::all();
        assert!(!all.is_empty());
        assert_eq!(all.iter().map(|m| m.slug).collect::<BTreeSet<_>>().len(), all.len());
    }
}
