//! Selection of N:M groups and of whole units: blocks, row groups, channels.

use super::{Group, Scratch, check_group, check_scores, key};
use crate::error::{SparsityError, check_sparsity};
use crate::mask::Mask;
use crate::pattern::Pattern;

/// N:M selection: in each aligned group of `m` consecutive columns exactly the `n` highest scores
/// are kept, `m − n` pruned.
///
/// `scores`: row-major `[rows, cols]`.
///
/// # Errors
///
/// [`SparsityError::PatternParameters`] unless `1 <= n <= m`, [`SparsityError::DoesNotDivide`]
/// unless `m` divides `cols`, and those of bad scores as in [`super::unstructured`].
pub fn n_of_m(scores: &[f32], rows: usize, cols: usize, n: usize, m: usize) -> Result<Mask, SparsityError> {
    Pattern::NM { n, m }.check_shape(rows, cols)?;
    check_scores("scores", scores, rows, cols)?;
    let mut scratch = Scratch::default();
    let mut mask = Mask::all_kept(rows, cols);
    let mut keys = vec![0u32; m];
    for (r, row) in scores.chunks_exact(cols).enumerate() {
        if m <= RANKED {
            let mut pruned = 0u32;
            mask.fill_row(r, |c| {
                let at = c % m;
                if at == 0 {
                    for (key_out, &score) in keys.iter_mut().zip(&row[c..c + m]) {
                        *key_out = key(score);
                    }
                    pruned = lowest_bits(&keys, m - n);
                }
                pruned >> at & 1 == 0
            });
            continue;
        }
        for (g, group) in row.chunks_exact(m).enumerate() {
            let cut = scratch.cut(|| group.iter().map(|&s| key(s)), m, m - n);
            let mut test = cut.tester();
            for (i, &score) in group.iter().enumerate() {
                if test.prunes(key(score)) {
                    mask.set(r, g * m + i, false);
                }
            }
        }
    }
    Ok(mask)
}

/// Up to this group length ranking each key against all others beats a partial sort.
const RANKED: usize = 16;

/// Bits of the `k` lowest of at most 16 keys, the earlier of equal ones first.
fn lowest_bits(keys: &[u32], k: usize) -> u32 {
    let mut bits = 0;
    for (i, &key) in keys.iter().enumerate() {
        let earlier = keys[..i].iter().filter(|&&other| other <= key).count();
        let later = keys[i + 1..].iter().filter(|&&other| other < key).count();
        bits |= u32::from(earlier + later < k) << i;
    }
    bits
}

/// Block selection: whole blocks of `block = (rows, cols)` compete by the sum of their scores.
///
/// `scores`: row-major `shape = [rows, cols]`. Groups are made of blocks: [`Group::Tensor`] all of
/// them, [`Group::Row`] those of one row of blocks, [`Group::RowBlock`] those of a strip of
/// columns, whose width the block width must divide. In each group `⌊blocks · sparsity⌋` blocks are
/// pruned; among equal sums the lower block (row-major) goes first.
///
/// # Errors
///
/// [`SparsityError::PatternParameters`], [`SparsityError::DoesNotDivide`] (also for a strip that
/// cuts blocks), [`SparsityError::Sparsity`], and those of bad scores; a sum of finite scores that
/// overflows f32 counts as not finite.
pub fn block(
    scores: &[f32],
    shape: (usize, usize),
    block: (usize, usize),
    group: Group,
    sparsity: f64,
) -> Result<Mask, SparsityError> {
    let ((rows, cols), (height, width)) = (shape, block);
    let pattern = Pattern::Block { rows: height, cols: width };
    units(scores, shape, block, &pattern, group, sparsity)
        .map(|kept| Mask::from_fn(rows, cols, |r, c| kept.get(r / height, c / width)))
}

/// Row-group (1×G) selection: groups of `len` consecutive columns of a row compete by the sum of
/// their scores; [`Group::Row`] means the groups of one output row.
///
/// # Errors
///
/// As [`block`].
pub fn row_group(
    scores: &[f32],
    rows: usize,
    cols: usize,
    len: usize,
    group: Group,
    sparsity: f64,
) -> Result<Mask, SparsityError> {
    let pattern = Pattern::RowGroup { len };
    units(scores, (rows, cols), (1, len), &pattern, group, sparsity)
        .map(|kept| Mask::from_fn(rows, cols, |r, c| kept.get(r, c / len)))
}

/// Channel selection: whole output rows compete by the sum of their scores;
/// `⌊rows · sparsity⌋` rows are pruned.
///
/// # Errors
///
/// As [`block`].
pub fn channel(scores: &[f32], rows: usize, cols: usize, sparsity: f64) -> Result<Mask, SparsityError> {
    let unit = (1, cols.max(1));
    units(scores, (rows, cols), unit, &Pattern::Channel, Group::Tensor, sparsity)
        .map(|kept| Mask::from_fn(rows, cols, |r, _| kept.get(r, 0)))
}

/// Which units are kept, as a mask `[rows / height, cols / width]`.
fn units(
    scores: &[f32],
    (rows, cols): (usize, usize),
    (height, width): (usize, usize),
    pattern: &Pattern,
    group: Group,
    sparsity: f64,
) -> Result<Mask, SparsityError> {
    check_sparsity(sparsity)?;
    check_group(group)?;
    pattern.check_shape(rows, cols)?;
    check_scores("scores", scores, rows, cols)?;
    let group = match group {
        Group::RowBlock { cols: strip } if !strip.is_multiple_of(width) => {
            return Err(SparsityError::DoesNotDivide {
                pattern: pattern.to_string(),
                dimension: "group.cols",
                unit: width,
                found: strip,
            });
        }
        Group::RowBlock { cols: strip } => Group::RowBlock { cols: strip / width },
        other => other,
    };
    let (unit_rows, unit_cols) = (rows / height, cols / width);
    let mut sums = Vec::with_capacity(unit_rows * unit_cols);
    let mut row_sums = vec![0.0f64; unit_cols];
    for strip in scores.chunks_exact(cols * height) {
        row_sums.fill(0.0);
        for row in strip.chunks_exact(cols) {
            for (sum, part) in row_sums.iter_mut().zip(row.chunks_exact(width)) {
                *sum += part.iter().map(|&s| f64::from(s)).sum::<f64>();
            }
        }
        sums.extend(row_sums.iter().map(|&s| s as f32));
    }
    super::check_finite("sums of scores over the units of the pattern", &sums)?;
    super::unstructured(&sums, unit_rows, unit_cols, group, sparsity)
}
