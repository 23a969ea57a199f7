//! Decode attention: one query token against a cache of keys and values.
//!
//! [`attend`] reads the whole cache and is the yardstick; [`attend_double_sparse`] scores all tokens with a few channels of
//! their keys ([`LabelCache`]), takes the best ones exactly, and attends to those only. Heads of one group share a key-value
//! head and one reading of its rows.
//!
//! # Same bits
//! The tokens of a head are cut into segments of 2048 (of the cache, or of the list of selected tokens), each with its own
//! running softmax, merged in order. So results do not depend on threads, and selecting every token gives the bits of the dense
//! attention.
//!
//! # NaN and infinity
//! As in the naive formula: a NaN score makes the whole head NaN when its token is read. A NaN label score is never selected
//! while other tokens remain.

mod cache;
mod dense;
mod labels;
pub mod oracle;
mod softmax;
mod sparse;

pub use cache::KvCache;
pub use dense::{attend, attend_scratch_len, attend_with};
pub use labels::{LabelCache, LabelKind};
pub use sparse::{DoubleSparse, Grouping, attend_double_sparse, attend_double_sparse_with, top_tokens};

use crate::KernelError;
use crate::error::length;
use crate::lanes::RowValue;

/// The query of one token.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// `[heads][d]`; heads `g·G .. (g+1)·G` share key-value head `g`.
    pub q: &'a [f32],
    /// Query heads, a multiple of the key-value heads.
    pub heads: usize,
    /// Factor of the scores, `1/√d` as a rule.
    pub scale: f32,
}

/// Checks a query against its cache; returns the query heads per key-value head.
fn check<T: RowValue>(
    kernel: &'static str,
    cache: &KvCache<T>,
    query: &Query<'_>,
    out: &[f32],
) -> Result<usize, KernelError> {
    let (kv, d) = (cache.kv_heads(), cache.d());
    if query.heads == 0 || !query.heads.is_multiple_of(kv) {
        return Err(KernelError::Argument {
            kernel,
            argument: "heads",
            value: query.heads.to_string(),
            allowed: "a multiple of the key-value heads, at least one",
        });
    }
    let expected = crate::error::product(kernel, query.heads, d)?;
    for (array, found) in [("q", query.q.len()), ("out", out.len())] {
        length(kernel, array, expected, found)?;
    }
    Ok(query.heads / kv)
}
