//! Which layers are pruned.

use serde::{Deserialize, Serialize};

/// Selects layers by block index and name. The others stay dense, with a line in the report.
/// The same four switches as the reference code of SparseGPT (partial N:M).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayerFilter {
    /// First block pruned. Default 0.
    pub min_layer: usize,
    /// End of the pruned blocks, exclusive; absent: all.
    pub max_layer: Option<usize>,
    /// Only layers whose name inside the block contains this text. Default: empty, all.
    pub prune_only: String,
    /// Prune exactly the layers that the other three leave out.
    pub invert: bool,
}

impl LayerFilter {
    /// Whether layer `name` of block `block` is pruned.
    #[must_use]
    pub fn selects(&self, block: usize, name: &str) -> bool {
        let inside = block >= self.min_layer
            && self.max_layer.is_none_or(|end| block < end)
            && name.contains(&self.prune_only);
        inside != self.invert
    }

    /// The words for a layer that is left out.
    pub(super) fn reason(&self) -> String {
        let end = self.max_layer.map_or_else(|| "none".into(), |m| m.to_string());
        format!(
            "left out by the filter (min_layer {}, max_layer {end}, prune_only `{}`, invert {})",
            self.min_layer, self.prune_only, self.invert
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let all = LayerFilter::default();
        assert!(all.selects(0, "mlp.up_proj") && all.selects(99, "self_attn.q_proj"));
        let some = LayerFilter { min_layer: 1, max_layer: Some(3), prune_only: "attn".into(), invert: false };
        let picks = |f: &LayerFilter| {
            (0..4)
                .flat_map(|b| ["self_attn.q_proj", "mlp.up_proj"].map(|n| f.selects(b, n)))
                .collect::<Vec<_>>()
        };
        assert_eq!(picks(&some), [false, false, true, false, true, false, false, false]);
        let others = LayerFilter { invert: true, ..some };
        assert_eq!(picks(&others), [true, true, false, true, false, true, true, true]);
    }
}
