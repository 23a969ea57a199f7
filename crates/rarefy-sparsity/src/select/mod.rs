//! Choosing which weights to prune, with exact counts.
//!
//! Every function prunes the lowest scores; among equal scores the lower index (row-major) goes
//! first, so that zeros of an already sparse weight, whose score is 0, are pruned before anything
//! else and the count is never exceeded. `-0.0` and `0.0` are equal scores. Where a fraction `s` of
//! `len` scores is asked for, exactly [`pruned_count`]`(len, s) = ⌊len · s⌋` are pruned.
//!
//! Cost: linear time. No index array is built: the boundary score is found by counting digits of
//! the scores' ordered bit patterns (three passes), and one more pass writes the mask.

mod cut;
mod structured;
mod whole_model;

#[cfg(test)]
mod tests;

pub use structured::{block, channel, n_of_m, row_group};
pub use whole_model::{global, global_at_least, global_kept};

pub(crate) use cut::{Cut, Scratch, key};

use crate::error::{SparsityError, check_sparsity, checked_area};
use crate::mask::Mask;
use crate::pattern::Pattern;

/// Which weights compete with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// All weights of the matrix.
    Tensor,
    /// The weights of one output row.
    Row,
    /// All rows of `cols` consecutive columns; the last strip may be narrower.
    RowBlock {
        /// Width of a strip, at least 1.
        cols: usize,
    },
}

/// How many of `len` elements a sparsity prunes: `⌊len · sparsity⌋`, in f64 as the reference
/// implementations compute it (so 0.29 of 100 is 28: the product is 28.999…96).
#[must_use]
pub fn pruned_count(len: usize, sparsity: f64) -> usize {
    ((len as f64 * sparsity) as usize).min(len)
}

/// The indices of the `k` lowest scores, ascending.
///
/// # Errors
///
/// [`SparsityError::NonFinite`] for NaN or infinite scores, [`SparsityError::Count`] for
/// `k > scores.len()`.
pub fn lowest_k(scores: &[f32], k: usize) -> Result<Vec<usize>, SparsityError> {
    let cut = cut_of_slice(scores, k)?;
    let mut test = cut.tester();
    let mut picked = Vec::with_capacity(k);
    picked.extend(
        scores.iter().enumerate().filter(|&(_, &score)| test.prunes(key(score))).map(|(index, _)| index),
    );
    Ok(picked)
}

/// The value of the `k`-th lowest score, counted from 0 (`sort(scores)[k]`): the threshold that
/// rules of the form "prune every score ≤ t" use.
///
/// # Errors
///
/// [`SparsityError::NonFinite`] for NaN or infinite scores, [`SparsityError::Count`] for
/// `k >= scores.len()`.
pub fn kth_lowest(scores: &[f32], k: usize) -> Result<f32, SparsityError> {
    if k >= scores.len() {
        return Err(SparsityError::Count {
            what: "rank of the threshold score",
            asked: k,
            available: scores.len(),
        });
    }
    Ok(cut_of_slice(scores, k + 1)?.boundary())
}

/// Unstructured selection: in each group of `group`, exactly `⌊len · sparsity⌋` weights pruned.
///
/// `scores`: row-major `[rows, cols]`.
///
/// # Errors
///
/// [`SparsityError::Sparsity`] outside `[0, 1)`; [`SparsityError::Length`],
/// [`SparsityError::Empty`] and [`SparsityError::NonFinite`] for bad scores;
/// [`SparsityError::Setting`] for strips of width 0.
pub fn unstructured(
    scores: &[f32],
    rows: usize,
    cols: usize,
    group: Group,
    sparsity: f64,
) -> Result<Mask, SparsityError> {
    check_sparsity(sparsity)?;
    check_group(group)?;
    check_scores("scores", scores, rows, cols)?;
    let mut mask = Mask::all_kept(rows, cols);
    let mut scratch = Scratch::default();
    match group {
        Group::Tensor => {
            let keys = || scores.iter().map(|&s| key(s));
            let cut = scratch.cut(keys, scores.len(), pruned_count(scores.len(), sparsity));
            let mut test = cut.tester();
            for (r, row) in scores.chunks_exact(cols).enumerate() {
                mask.fill_row(r, |c| !test.prunes(key(row[c])));
            }
        }
        Group::Row => {
            let count = pruned_count(cols, sparsity);
            for (r, row) in scores.chunks_exact(cols).enumerate() {
                let cut = scratch.cut(|| row.iter().map(|&s| key(s)), cols, count);
                // Unless scores tie at the boundary, it alone decides.
                if count == 0 || mask.fill_row_above(r, row, cut.boundary()) != cols - count {
                    let mut test = cut.tester();
                    mask.fill_row(r, |c| !test.prunes(key(row[c])));
                }
            }
        }
        Group::RowBlock { cols: width } => {
            for start in (0..cols).step_by(width) {
                let strip = start..cols.min(start.saturating_add(width));
                let len = rows * strip.len();
                let keys =
                    || scores.chunks_exact(cols).flat_map(|row| row[strip.clone()].iter().map(|&s| key(s)));
                let cut = scratch.cut(keys, len, pruned_count(len, sparsity));
                let mut test = cut.tester();
                for (r, row) in scores.chunks_exact(cols).enumerate() {
                    for c in strip.clone() {
                        if test.prunes(key(row[c])) {
                            mask.set(r, c, false);
                        }
                    }
                }
            }
        }
    }
    Ok(mask)
}

/// Selection for any pattern.
///
/// `group` and `sparsity` apply to unstructured, block and row-group patterns. N:M fixes both by
/// itself; channels compete over the whole matrix, so that only `sparsity` applies to them.
///
/// # Errors
///
/// Those of [`unstructured`], [`n_of_m`], [`block`], [`row_group`] and [`channel`].
pub fn by_pattern(
    scores: &[f32],
    rows: usize,
    cols: usize,
    pattern: &Pattern,
    group: Group,
    sparsity: f64,
) -> Result<Mask, SparsityError> {
    match *pattern {
        Pattern::Unstructured => unstructured(scores, rows, cols, group, sparsity),
        Pattern::NM { n, m } => n_of_m(scores, rows, cols, n, m),
        Pattern::Block { rows: height, cols: width } => {
            block(scores, (rows, cols), (height, width), group, sparsity)
        }
        Pattern::RowGroup { len } => row_group(scores, rows, cols, len, group, sparsity),
        Pattern::Channel => channel(scores, rows, cols, sparsity),
    }
}

/// Checked length, emptiness and finiteness of a score matrix.
pub(crate) fn check_scores(
    what: &'static str,
    scores: &[f32],
    rows: usize,
    cols: usize,
) -> Result<(), SparsityError> {
    let expected = checked_area(what, rows, cols)?;
    if scores.len() != expected {
        return Err(SparsityError::Length { what, expected, found: scores.len() });
    }
    if expected == 0 {
        return Err(SparsityError::Empty { what });
    }
    check_finite(what, scores)
}

pub(crate) fn check_finite(what: &'static str, values: &[f32]) -> Result<(), SparsityError> {
    // Counting has no branch to wait for; where the first one is matters only when there is one.
    let count = values.iter().filter(|v| !v.is_finite()).count();
    if count == 0 {
        return Ok(());
    }
    let first = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Err(SparsityError::NonFinite { what, count, first })
}

fn check_group(group: Group) -> Result<(), SparsityError> {
    match group {
        Group::RowBlock { cols: 0 } => {
            Err(SparsityError::Setting { field: "group.cols", value: "0".into(), allowed: "at least 1" })
        }
        _ => Ok(()),
    }
}

fn cut_of_slice(scores: &[f32], k: usize) -> Result<Cut, SparsityError> {
    check_finite("scores", scores)?;
    if k > scores.len() {
        return Err(SparsityError::Count { what: "lowest scores", asked: k, available: scores.len() });
    }
    Ok(Scratch::default().cut(|| scores.iter().map(|&s| key(s)), scores.len(), k))
}
