//! Keys and values of the tokens seen so far, one pair of buffers for each block.

use crate::sparse::heads::HeadCache;

/// Keys and values of every block for one sequence. Grows as tokens come in.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// One block's keys (already rotated) and values, `[n_tokens, n_kv_heads * head_dim]` each.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerCache {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    pub(crate) len: usize,
    /// Instead of the two above when the block decodes on kernels.
    pub(crate) heads: Option<HeadCache>,
}

impl KvCache {
    /// An empty cache for `n_layers` blocks.
    #[must_use]
    pub fn new(n_layers: usize) -> Self {
        Self { layers: vec![LayerCache::default(); n_layers] }
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |l| l.len)
    }

    /// Whether no token was seen yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Blocks it serves.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Forgets every token but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.truncate(len);
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .map(|l| {
                (l.keys.capacity() + l.values.capacity()) * 4 + l.heads.as_ref().map_or(0, HeadCache::bytes)
            })
            .sum()
    }

    pub(crate) fn layer_mut(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }
}

impl LayerCache {
    /// Appends `n` tokens.
    pub(crate) fn push(&mut self, keys: &[f32], values: &[f32], n: usize) {
        self.len += n;
        if let Some(heads) = &mut self.heads {
            heads.push(keys, values, n);
            return;
        }
        self.keys.extend_from_slice(keys);
        self.values.extend_from_slice(values);
    }

    fn truncate(&mut self, len: usize) {
        if len < self.len {
            let width = self.keys.len() / self.len;
            self.keys.truncate(len * width);
            self.values.truncate(len * width);
            if let Some(heads) = &mut self.heads {
                heads.truncate(len);
            }
            self.len = len;
        }
    }
}
