//! The column-by-column update of SparseGPT, for a mask that is given or chosen on the way.
//!
//! Rows are independent given `U`, except where the mask of a block of columns is chosen over all
//! rows. So each block is: choose (all rows), then for panels of rows in parallel the sequential
//! loop over the block's columns and one product that carries the errors to all later columns.
//! Everything is f64; panels have a fixed height, so the result does not depend on threads.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rarefy_sparsity::{Mask, SparsityError, select};
use rayon::prelude::*;

use crate::{QuantGrid, linalg::InverseFactor};

/// Rows of one task.
const PANEL_ROWS: usize = 64;

/// Where the mask comes from. Scores are `|w| · saliency[c]` on the updated weights.
pub(super) enum Choice<'a> {
    /// Given.
    Fixed(&'a Mask),
    /// In each block of columns the lowest `⌊rows · block · sparsity⌋`, over all rows.
    Block { saliency: &'a [f64], sparsity: f64, threshold_rule: bool },
    /// In each group of `m` columns of a row all but the `keep` highest.
    Groups { saliency: &'a [f64], keep: usize, m: usize },
}

/// What to do with a matrix.
pub(super) struct Update<'a> {
    pub(super) factor: &'a InverseFactor,
    /// Columns of a block.
    pub(super) block: usize,
    pub(super) choice: Choice<'a>,
    /// Kept weights are rounded to this grid as well.
    pub(super) grid: Option<&'a QuantGrid>,
}

/// Updates row-major `w [rows, cols]` in place; returns `½‖E‖²`.
pub(super) fn run(w: &mut [f64], rows: usize, u: &Update<'_>) -> Result<f64, SparsityError> {
    let cols = u.factor.len();
    if rows == 0 || cols == 0 {
        return Ok(0.0);
    }
    let mut loss = 0.0;
    for i1 in (0..cols).step_by(u.block) {
        let i2 = (i1 + u.block).min(cols);
        let pruned = match &u.choice {
            Choice::Block { saliency, sparsity, threshold_rule } => {
                Some(choose_block(w, cols, i1..i2, saliency, *sparsity, *threshold_rule)?)
            }
            _ => None,
        };
        let block = BlockTask {
            update: u,
            cols,
            i1,
            i2,
            pruned: pruned.as_deref(),
            u1: u.factor.square_block(i1, i2),
        };
        let losses: Vec<f64> = w
            .par_chunks_mut(PANEL_ROWS * cols)
            .with_max_len(1)
            .enumerate()
            .map_init(Scratch::default, |scratch, (p, panel)| block.panel(p * PANEL_ROWS, panel, scratch))
            .collect();
        loss += losses.iter().sum::<f64>();
    }
    Ok(loss / 2.0)
}

/// Marks what is pruned in columns `i1..i2`, row-major over the block.
fn choose_block(
    w: &[f64],
    cols: usize,
    columns: std::ops::Range<usize>,
    saliency: &[f64],
    sparsity: f64,
    threshold_rule: bool,
) -> Result<Vec<bool>, SparsityError> {
    let saliency = &saliency[columns.clone()];
    // Only the order counts: dividing by the largest factor keeps every score finite in f32.
    let largest = saliency.iter().fold(0.0_f64, |m, &s| m.max(s));
    let scale = if largest > 0.0 { 1.0 / largest } else { 1.0 };
    let scores: Vec<f32> = w
        .par_chunks_exact(cols)
        .with_min_len(PANEL_ROWS)
        .flat_map_iter(|row| row[columns.clone()].iter().zip(saliency).map(|(&w, &s)| score(w, s * scale)))
        .collect();
    let count = select::pruned_count(scores.len(), sparsity);
    if threshold_rule {
        let threshold = select::kth_lowest(&scores, count)?;
        return Ok(scores.iter().map(|s| *s <= threshold).collect());
    }
    let mut pruned = vec![false; scores.len()];
    for index in select::lowest_k(&scores, count)? {
        pruned[index] = true;
    }
    Ok(pruned)
}

/// A weight that is already zero goes before an input that merely does not count.
fn score(w: f64, saliency: f64) -> f32 {
    if w == 0.0 { -1.0 } else { (w.abs() * saliency) as f32 }
}

#[derive(Default)]
struct Scratch {
    /// `[panel rows, block]`, errors.
    errors: Vec<f64>,
    /// One row of the mask.
    pruned: Vec<bool>,
}

struct BlockTask<'a> {
    update: &'a Update<'a>,
    cols: usize,
    i1: usize,
    i2: usize,
    pruned: Option<&'a [bool]>,
    /// `U[i1..i2, i1..i2]`, row-major.
    u1: Vec<f64>,
}

impl BlockTask<'_> {
    /// Works on some rows; returns `‖E‖²` of them.
    fn panel(&self, first_row: usize, panel: &mut [f64], scratch: &mut Scratch) -> f64 {
        let (cols, i1, i2) = (self.cols, self.i1, self.i2);
        let width = i2 - i1;
        let height = panel.len() / cols;
        scratch.errors.resize(height * width, 0.0);
        scratch.pruned.resize(width, false);
        let errors = &mut scratch.errors[..height * width];
        let mut squared = 0.0;
        for (r, (row, e)) in panel.chunks_exact_mut(cols).zip(errors.chunks_exact_mut(width)).enumerate() {
            let pruned = &mut scratch.pruned[..width];
            match (&self.update.choice, self.pruned) {
                (_, Some(block)) => {
                    let start = (first_row + r) * width;
                    pruned.copy_from_slice(&block[start..start + width]);
                }
                (Choice::Fixed(mask), None) => {
                    for (j, p) in pruned.iter_mut().enumerate() {
                        *p = !mask.get(first_row + r, i1 + j);
                    }
                }
                _ => pruned.fill(false),
            }
            self.row(first_row + r, &mut row[i1..i2], pruned, e);
            squared += e.iter().map(|e| e * e).sum::<f64>();
        }
        if i2 < cols {
            matmul(
                MatMut::from_row_major_slice_mut(panel, height, cols).subcols_mut(i2, cols - i2),
                Accum::Add,
                MatRef::from_row_major_slice(errors, height, width),
                self.update.factor.matrix().submatrix(i1, i2, width, cols - i2),
                -1.0,
                Par::Seq,
            );
        }
        squared
    }

    /// The sequential loop over the columns of one row of the block.
    fn row(&self, row: usize, w: &mut [f64], pruned: &mut [bool], errors: &mut [f64]) {
        let width = w.len();
        for j in 0..width {
            if let Choice::Groups { saliency, keep, m } = self.update.choice
                && j % m == 0
            {
                let end = (j + m).min(width);
                prune_group(&w[j..end], &saliency[self.i1 + j..self.i1 + end], keep, &mut pruned[j..end]);
            }
            let mut q = if pruned[j] { 0.0 } else { w[j] };
            if let Some(grid) = self.update.grid {
                q = grid.quantize(row, self.i1 + j, q);
            }
            let u_row = &self.u1[j * width..(j + 1) * width];
            let e = (w[j] - q) / u_row[j];
            errors[j] = e;
            if e != 0.0 {
                for (w, u) in w[j + 1..].iter_mut().zip(&u_row[j + 1..]) {
                    *w -= e * u;
                }
            }
            w[j] = q;
        }
    }
}

/// Marks all but the `keep` highest scores of a group; ties prune the lower column.
fn prune_group(w: &[f64], saliency: &[f64], keep: usize, pruned: &mut [bool]) {
    pruned.fill(false);
    let value = |c: usize| if w[c] == 0.0 { -1.0 } else { w[c].abs() * saliency[c] };
    for _ in keep..w.len() {
        let lowest = (0..w.len())
            .filter(|&c| !pruned[c])
            .min_by(|&a, &b| value(a).total_cmp(&value(b)).then(a.cmp(&b)));
        if let Some(c) = lowest {
            pruned[c] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_selection_by_hand() {
        let mut pruned = [false; 4];
        prune_group(&[1.0, -1.0, 3.0, 0.5], &[1.0, 1.0, 1.0, 9.0], 2, &mut pruned);
        assert_eq!(pruned, [true, true, false, false]);
        // A tie prunes the lower column; an existing zero goes before a zero saliency.
        prune_group(&[2.0, 2.0, 2.0, 2.0], &[1.0; 4], 3, &mut pruned);
        assert_eq!(pruned, [true, false, false, false]);
        prune_group(&[2.0, 0.0], &[0.0, 1.0], 1, &mut pruned[..2]);
        assert_eq!(pruned[..2], [false, true]);
    }

    #[test]
    fn block_choice_counts_exactly_and_the_reference_rule_takes_ties() {
        let w = [1.0, 1.0, 1.0, 1.0, 2.0, 3.0];
        let exact = choose_block(&w, 3, 0..2, &[1.0; 3], 0.5, false);
        assert_eq!(exact, Ok(vec![true, true, false, false]));
        let rule = choose_block(&w, 3, 0..2, &[1.0; 3], 0.25, true);
        assert_eq!(rule, Ok(vec![true, true, true, false]));
    }
}
