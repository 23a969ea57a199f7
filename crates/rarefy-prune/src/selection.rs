//! Choosing and zeroing weights by `|w| · factor[c]`: what magnitude, Wanda and the
//! mask ablations have in common.

use rarefy_sparsity::{Group, Mask, Pattern, SparsityError, check_sparsity, select};
use rayon::prelude::*;

use crate::{ErrorKind, LayerReport, LayerStats, LinearLayer, PruneError, SettingError, Warning, linalg};

/// Elements one task handles at least: their scores stay in the second-level cache.
const TASK_ELEMENTS: usize = 1 << 14;

/// A selection over one matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection<'a> {
    pub(crate) pattern: Pattern,
    pub(crate) group: Group,
    pub(crate) sparsity: f64,
    /// Prune every score `<=` the threshold, as the reference code does for whole matrices.
    pub(crate) threshold_rule: bool,
    /// Weight of each input in the score, `[cols]`; none is all ones.
    pub(crate) factor: Option<&'a [f32]>,
}

/// Scores of some rows. For patterns that choose single elements a weight that is already zero
/// scores below every other one, so that it is pruned before an input that merely never fires.
fn scores(w: &[f32], cols: usize, selection: &Selection<'_>) -> Vec<f32> {
    let zero = match selection.pattern {
        Pattern::Unstructured | Pattern::NM { .. } => -1.0,
        _ => 0.0,
    };
    let score = |w: f32, f: f32| if w == 0.0 { zero } else { w.abs() * f };
    let mut scores = Vec::with_capacity(w.len());
    match selection.factor {
        None => scores.extend(w.iter().map(|&w| score(w, 1.0))),
        Some(factor) => {
            for row in w.chunks_exact(cols) {
                scores.extend(row.iter().zip(factor).map(|(&w, &f)| score(w, f)));
            }
        }
    }
    scores
}

/// Rows of a task.
fn task_rows(cols: usize) -> usize {
    TASK_ELEMENTS.div_ceil(cols.max(1))
}

/// The mask of a selection.
pub(crate) fn choose(
    layer: &str,
    w: &[f32],
    rows: usize,
    cols: usize,
    selection: &Selection<'_>,
) -> Result<Mask, PruneError> {
    let wrap = |source| PruneError::Selection { layer: layer.into(), source };
    check_sparsity(selection.sparsity).map_err(wrap)?;
    let whole = selection.threshold_rule && selection.pattern == Pattern::Unstructured;
    if whole && selection.group == Group::Tensor {
        let scores = scores(w, cols, selection);
        let rank = select::pruned_count(scores.len(), selection.sparsity);
        let threshold = select::kth_lowest(&scores, rank).map_err(wrap)?;
        return Ok(Mask::from_fn(rows, cols, |r, c| scores[r * cols + c] > threshold));
    }
    let by_pattern = |w: &[f32], rows| {
        select::by_pattern(
            &scores(w, cols, selection),
            rows,
            cols,
            &selection.pattern,
            selection.group,
            selection.sparsity,
        )
    };
    let row_local = match selection.pattern {
        Pattern::NM { .. } => true,
        Pattern::Unstructured => selection.group == Group::Row,
        _ => false,
    };
    if !row_local || rows == 0 || cols == 0 {
        return by_pattern(w, rows).map_err(wrap);
    }
    let panels: Vec<Result<Mask, SparsityError>> = w
        .par_chunks(task_rows(cols) * cols)
        .with_max_len(1)
        .map(|panel| by_pattern(panel, panel.len() / cols))
        .collect();
    let mut words = Vec::with_capacity(rows * cols.div_ceil(64));
    for panel in panels {
        let panel = panel.map_err(wrap)?;
        for r in 0..panel.rows() {
            words.extend_from_slice(panel.row_words(r));
        }
    }
    Mask::from_words(rows, cols, words).map_err(wrap)
}

/// Zeroes what the mask prunes and reports: the relative error is exact when the Hessian was
/// collected, diagonal when the input norms were, and of the weights otherwise.
pub(crate) fn apply(
    layer: &mut LinearLayer,
    mask: &Mask,
    stats: &LayerStats,
    warnings: Vec<Warning>,
) -> LayerReport {
    let (rows, cols) = (layer.rows, layer.cols);
    let hessian = stats.hessian.as_deref().filter(|h| h.len() == cols * cols);
    let dense = hessian.map(|_| layer.weight.clone());
    let input_sq = stats.input_sq.as_deref().filter(|a| a.len() == cols);
    let ones;
    let energy_weight = match input_sq {
        Some(a) => a,
        None => {
            ones = vec![1.0; cols];
            &ones
        }
    };
    let height = task_rows(cols);
    let sums: Vec<(f64, f64, usize)> = layer
        .weight
        .par_chunks_mut((height * cols).max(1))
        .with_max_len(1)
        .enumerate()
        .map(|(p, panel)| {
            let (mut removed, mut total, mut zeros) = (0.0, 0.0, 0);
            for (r, row) in panel.chunks_exact_mut(cols).enumerate() {
                let (t, x, z) = apply_row(row, mask.row_words(p * height + r), energy_weight);
                total += t;
                removed += x;
                zeros += z;
            }
            (removed, total, zeros)
        })
        .collect();
    let (mut removed, mut total, mut zeros) = (0.0, 0.0, 0);
    for (r, t, z) in sums {
        removed += r;
        total += t;
        zeros += z;
    }
    let mut kind = if input_sq.is_some() { ErrorKind::DiagonalOutput } else { ErrorKind::Weight };
    if let (Some(h), Some(dense)) = (hessian, dense) {
        let before: Vec<f64> = dense.iter().map(|&w| f64::from(w)).collect();
        let change: Vec<f64> =
            dense.iter().zip(&layer.weight).map(|(&a, &b)| f64::from(b) - f64::from(a)).collect();
        total = linalg::quadratic_trace(&before, rows, cols, h);
        removed = linalg::quadratic_trace(&change, rows, cols, h);
        kind = ErrorKind::Output;
    }
    LayerReport {
        layer: layer.name.clone(),
        rows,
        cols,
        kept: rows * cols - zeros,
        pruned: zeros,
        relative_error: (total > 0.0).then(|| removed / total),
        error_kind: kind,
        loss: None,
        seconds: 0.0,
        warnings,
    }
}

/// Four mask bits as four words of ones or zeros.
const NIBBLES: [[u32; 4]; 16] = {
    let mut all = [[0; 4]; 16];
    let mut i = 0;
    while i < 64 {
        if (i / 4) >> (i % 4) & 1 == 1 {
            all[i / 4][i % 4] = u32::MAX;
        }
        i += 1;
    }
    all
};

/// Zeroes what `words` prune; returns the energy before, the energy removed, and the zeros after.
fn apply_row(row: &mut [f32], words: &[u64], input_sq: &[f64]) -> (f64, f64, usize) {
    let before = energy(row, input_sq);
    // All ones or all zeros: no branch to mispredict, and pruned means exactly +0.0.
    for (part, word) in row.chunks_mut(64).zip(words) {
        let (fours, rest) = part.as_chunks_mut::<4>();
        let at = 4 * fours.len();
        for (j, four) in fours.iter_mut().enumerate() {
            let bits = &NIBBLES[(word >> (4 * j) & 15) as usize];
            for k in 0..4 {
                four[k] = f32::from_bits(four[k].to_bits() & bits[k]);
            }
        }
        for (k, w) in rest.iter_mut().enumerate() {
            *w = f32::from_bits(w.to_bits() & ((word >> (at + k) & 1) as u32).wrapping_neg());
        }
    }
    let zeros: u32 = row.iter().map(|w| u32::from(*w == 0.0)).sum();
    // Same order of summation: exactly zero when nothing was pruned.
    (before, before - energy(row, input_sq), zeros as usize)
}

/// `Σ w² a`, in eight partial sums so that the loop can use vector instructions.
fn energy(row: &[f32], input_sq: &[f64]) -> f64 {
    const LANES: usize = 8;
    let square = |w: f32, a: f64| f64::from(w) * f64::from(w) * a;
    let ((groups, tail), (inputs, last)) = (row.as_chunks::<LANES>(), input_sq.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (w, a) in groups.iter().zip(inputs) {
        for k in 0..LANES {
            sums[k] += square(w[k], a[k]);
        }
    }
    sums.iter().sum::<f64>() + tail.iter().zip(last).map(|(&w, &a)| square(w, a)).sum::<f64>()
}

/// `√(a / max a)`: the input factors of Wanda, scaled so that no score can overflow.
pub(crate) fn norm_factors(input_sq: &[f64]) -> Vec<f32> {
    let max = input_sq.iter().fold(0.0_f64, |m, &a| m.max(a));
    let scale = if max > 0.0 { max } else { 1.0 };
    input_sq.iter().map(|a| (a / scale).sqrt() as f32).collect()
}

/// The pattern in our reading (N kept of M) of a setting that under `compat` counts pruned ones.
pub(crate) fn kept_pattern(pattern: Pattern, compat: bool) -> Pattern {
    match pattern {
        Pattern::NM { n, m } if compat => Pattern::NM { n: m.saturating_sub(n), m },
        other => other,
    }
}

/// Checks `sparsity`.
pub(crate) fn validate_sparsity(sparsity: f64) -> Result<(), SettingError> {
    check_sparsity(sparsity)
        .map_err(|_| SettingError::new("sparsity", sparsity, "in [0, 1), the fraction of zeros"))
}

/// Checks the numbers of `pattern`, in the reading that `compat` selects.
pub(crate) fn validate_pattern(pattern: Pattern, compat: bool) -> Result<(), SettingError> {
    pattern
        .check()
        .and_then(|()| kept_pattern(pattern, compat).check())
        .map_err(|e| SettingError::new("pattern", pattern, format!("valid: {e}")))
}

/// Refuses a shape that the pattern does not divide.
pub(crate) fn check_shape(
    layer: &str,
    rows: usize,
    cols: usize,
    pattern: &Pattern,
) -> Result<(), PruneError> {
    match *pattern {
        Pattern::NM { n, m } if m == 0 || !cols.is_multiple_of(m) => {
            Err(PruneError::PatternMismatch { layer: layer.into(), n, m, d_in: cols })
        }
        ref other => other
            .check_shape(rows, cols)
            .map_err(|source| PruneError::Selection { layer: layer.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::synthetic::normal_vec;

    fn row_selection(factor: Option<&[f32]>, sparsity: f64) -> Selection<'_> {
        Selection {
            pattern: Pattern::Unstructured,
            group: Group::Row,
            sparsity,
            threshold_rule: false,
            factor,
        }
    }

    #[test]
    fn panels_equal_one_piece() {
        let (rows, cols) = (700, 130); // more than one task
        assert!(task_rows(cols) < rows);
        let w = normal_vec(4, rows * cols);
        let mask = choose("l", &w, rows, cols, &row_selection(None, 0.37)).unwrap();
        let scores: Vec<f32> = w.iter().map(|w| w.abs()).collect();
        let whole = select::unstructured(&scores, rows, cols, Group::Row, 0.37).unwrap();
        assert!(mask == whole);
    }

    #[test]
    fn existing_zeros_go_before_dead_inputs() {
        // Input 0 never fires (score 0), weight 3 is already zero: prune the zero.
        let w = [5.0, 1.0, 2.0, 0.0];
        let mask = choose("l", &w, 1, 4, &row_selection(Some(&[0.0, 1.0, 1.0, 1.0]), 0.25)).unwrap();
        assert!(mask.get(0, 0) && !mask.get(0, 3));
    }

    #[test]
    fn reports_all_three_kinds_of_error() {
        // Prune weight 0 of (1, 2) with H = [[2, 1], [1, 4]], a = (1, 2):
        // output: 2·1 / (2 + 2·2 + 16) = 2/22; diagonal: 1/(1+8); weight: 1/5.
        let mask = Mask::from_fn(1, 2, |_, c| c == 1);
        let report = |stats: &LayerStats| {
            let mut layer = LinearLayer::new("l", 1, 2, vec![1.0, 2.0]).unwrap();
            let report = apply(&mut layer, &mask, stats, vec![]);
            assert_eq!(layer.weight, [0.0, 2.0]);
            (report.relative_error.unwrap(), report.error_kind)
        };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-14, "{a} {b}");
        let full = LayerStats::new(1, 2, Some(vec![1.0, 2.0]), Some(vec![2.0, 1.0, 1.0, 4.0]));
        let (e, k) = report(&full);
        close(e, 2.0 / 22.0);
        assert_eq!(k, ErrorKind::Output);
        let norms = LayerStats::new(1, 2, Some(vec![1.0, 2.0]), None);
        let (e, k) = report(&norms);
        close(e, 1.0 / 9.0);
        assert_eq!(k, ErrorKind::DiagonalOutput);
        let (e, k) = report(&LayerStats::none());
        close(e, 0.2);
        assert_eq!(k, ErrorKind::Weight);
    }

    #[test]
    fn factors_do_not_overflow() {
        let f = norm_factors(&[1e60, 1e58, 0.0]);
        assert_eq!(f[0], 1.0);
        assert!((f[1] - 0.1).abs() < 1e-7);
        assert_eq!(f[2], 0.0);
        assert_eq!(norm_factors(&[0.0]), [0.0]);
    }
}
