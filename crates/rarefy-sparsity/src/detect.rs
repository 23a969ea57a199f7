//! Which pattern the zeros of a weight follow.
//!
//! Looked for: whole output rows; aligned blocks of `{1, 2, 4, 8, 16, 32} x {1, 2, … 64}` (one row
//! high: row groups); for M in {4, 8, 16, 32} the strictest N:M, and in any case 2:4 and 4:8. Only
//! patterns that tile the weight are reported.
//!
//! Any weight with zeros satisfies some N:M: half of the weights zeroed at random leave hardly a group
//! of 32 with more than 30 non-zeros. An N:M is named only when it is there on purpose: every
//! group has exactly N non-zeros, or zeros placed at random at the same density would break it in at least 8 groups.
//!
//! Cost: one pass to find the zeros, then a few operations per 64 weights and block height.
//! Memory: one bit per weight; a caller that reads a file row by row fills a [`Mask`] with
//! [`Mask::fill_row`] and uses [`detect_mask`].

use crate::error::{SparsityError, checked_area};
use crate::mask::Mask;
use crate::pattern::Pattern;

/// How far one pattern accounts for the zeros of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// The pattern.
    pub pattern: Pattern,
    /// Groups or units that tile the weight.
    pub units: usize,
    /// N:M: groups with fewer than `n` non-zeros. Otherwise: units that are wholly zero.
    pub zero_units: usize,
    /// Units that break the pattern. N:M: more than `n` non-zeros. Otherwise: neither wholly zero
    /// nor free of zeros.
    pub violations: usize,
    /// Zeros the pattern accounts for. N:M: at most `m − n` in each group. Otherwise: those in wholly
    /// zero units.
    pub explained: usize,
}

impl Finding {
    /// Whether the weight has the pattern: no violation.
    #[must_use]
    pub fn is_satisfied(&self) -> bool {
        self.violations == 0
    }
}

/// What was found in one weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detection {
    /// Rows, `d_out`.
    pub rows: usize,
    /// Columns, `d_in`.
    pub cols: usize,
    /// Zeros; `-0.0` counts, NaN does not.
    pub zeros: usize,
    /// Output rows that are wholly zero.
    pub zero_rows: usize,
    /// Input columns that are wholly zero.
    pub zero_cols: usize,
    /// Every pattern that accounts for at least one zero, and those looked for in any case.
    pub findings: Vec<Finding>,
    /// The strictest satisfied pattern: channel, else the largest block, else the longest row group,
    /// else the N:M of lowest density and then smallest M (not by chance, see the module), else
    /// unstructured; `None` without zeros.
    pub best: Option<Pattern>,
}

impl Detection {
    /// Fraction of zeros; 0 for a weight without elements.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        match self.rows * self.cols {
            0 => 0.0,
            all => self.zeros as f64 / all as f64,
        }
    }

    /// What was found about one pattern.
    #[must_use]
    pub fn finding(&self, pattern: &Pattern) -> Option<&Finding> {
        self.findings.iter().find(|f| f.pattern == *pattern)
    }
}

/// Looks at a weight `w`, row-major `[rows, cols]`.
///
/// # Errors
///
/// [`SparsityError::Length`] for a wrong length, [`SparsityError::TooLarge`] for an impossible shape.
pub fn detect(w: &[f32], rows: usize, cols: usize) -> Result<Detection, SparsityError> {
    let expected = checked_area("weight", rows, cols)?;
    if w.len() != expected {
        return Err(SparsityError::Length { what: "weight", expected, found: w.len() });
    }
    Ok(detect_mask(&Mask::from_nonzeros(w, rows, cols)))
}

/// Looks at the places of the non-zeros of a weight.
#[must_use]
pub fn detect_mask(mask: &Mask) -> Detection {
    let (rows, cols) = (mask.rows(), mask.cols());
    let zeros = mask.pruned();
    let zero_rows = (0..rows).filter(|&r| cols > 0 && mask.kept_in_row(r) == 0).count();
    let mut detection =
        Detection { rows, cols, zeros, zero_rows, zero_cols: 0, findings: Vec::new(), best: None };
    if zeros == 0 {
        return detection;
    }
    detection.zero_cols = zero_columns(mask);
    let full_rows = (0..rows).filter(|&r| mask.kept_in_row(r) == cols).count();
    detection.findings.push(Finding {
        pattern: Pattern::Channel,
        units: rows,
        zero_units: zero_rows,
        violations: rows - zero_rows - full_rows,
        explained: zero_rows * cols,
    });
    block_findings(mask, &mut detection.findings);
    let nm = nm_findings(mask, &mut detection.findings);
    detection.findings.push(Finding {
        pattern: Pattern::Unstructured,
        units: rows * cols,
        zero_units: zeros,
        violations: 0,
        explained: zeros,
    });
    detection.best = detection
        .findings
        .iter()
        .filter(|f| f.is_satisfied() && !matches!(f.pattern, Pattern::NM { .. }))
        .map(|f| f.pattern)
        .chain(nm)
        .min_by_key(strictness);
    detection
}

/// Sort key: the strictest pattern first.
fn strictness(pattern: &Pattern) -> (u8, usize, usize) {
    match *pattern {
        Pattern::Channel => (0, 0, 0),
        Pattern::Block { rows, cols } => (1, usize::MAX - rows * cols, usize::MAX - rows),
        Pattern::RowGroup { len } => (2, usize::MAX - len, 0),
        Pattern::NM { n, m } => (3, n * 1000 / m, m),
        Pattern::Unstructured => (4, 0, 0),
    }
}

fn zero_columns(mask: &Mask) -> usize {
    let mut any = vec![0u64; mask.cols().div_ceil(64)];
    for r in 0..mask.rows() {
        for (a, w) in any.iter_mut().zip(mask.row_words(r)) {
            *a |= w;
        }
    }
    mask.cols() - any.iter().map(|w| w.count_ones() as usize).sum::<usize>()
}

const HEIGHTS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Widths 1, 2, 4 … 64.
const WIDTHS: usize = 7;

/// Counts wholly zero and wholly kept blocks of every candidate size.
fn block_findings(mask: &Mask, findings: &mut Vec<Finding>) {
    let (rows, cols) = (mask.rows(), mask.cols());
    let words = cols.div_ceil(64);
    let valid = Mask::all_kept(1, cols);
    let mut kept_somewhere = vec![0u64; words];
    let mut zero_somewhere = vec![0u64; words];
    for height in HEIGHTS.into_iter().filter(|&h| rows.is_multiple_of(h)) {
        let (mut with_kept, mut with_zero) = ([0usize; WIDTHS], [0usize; WIDTHS]);
        for first in (0..rows).step_by(height) {
            kept_somewhere.fill(0);
            zero_somewhere.fill(0);
            for r in first..first + height {
                let row = mask.row_words(r).iter().zip(valid.row_words(0));
                for (i, (&word, &all)) in row.enumerate() {
                    kept_somewhere[i] |= word;
                    zero_somewhere[i] |= !word & all;
                }
            }
            count_groups(&kept_somewhere, &mut with_kept);
            count_groups(&zero_somewhere, &mut with_zero);
        }
        for step in 0..WIDTHS {
            let width = 1usize << step;
            if height * width == 1 || !cols.is_multiple_of(width) {
                continue;
            }
            let units = rows / height * (cols / width);
            let zero_units = units - with_kept[step];
            if zero_units == 0 {
                continue;
            }
            findings.push(Finding {
                pattern: match height {
                    1 => Pattern::RowGroup { len: width },
                    rows => Pattern::Block { rows, cols: width },
                },
                units,
                zero_units,
                violations: with_kept[step] + with_zero[step] - units,
                explained: zero_units * height * width,
            });
        }
    }
}

/// Adds, for each width `2^i`, the number of aligned groups of that many bits that have a 1.
fn count_groups(words: &[u64], counts: &mut [usize; WIDTHS]) {
    const FIRST_BITS: [u64; WIDTHS] = [
        u64::MAX,
        0x5555_5555_5555_5555,
        0x1111_1111_1111_1111,
        0x0101_0101_0101_0101,
        0x0001_0001_0001_0001,
        0x0000_0001_0000_0001,
        1,
    ];
    for &word in words {
        let mut folded = word;
        counts[0] += folded.count_ones() as usize;
        for step in 1..WIDTHS {
            folded = (folded | folded >> (1 << (step - 1))) & FIRST_BITS[step];
            counts[step] += folded.count_ones() as usize;
        }
    }
}

/// The strictest N:M for each M unless it may be there by chance, and 2:4 and 4:8 in any case; returns
/// the satisfied ones that are not there by chance.
fn nm_findings(mask: &Mask, findings: &mut Vec<Finding>) -> Vec<Pattern> {
    let mut on_purpose = Vec::new();
    for m in [4usize, 8, 16, 32].into_iter().filter(|&m| mask.cols().is_multiple_of(m)) {
        // groups_with[k]: groups with k non-zeros. M divides 64, so no group crosses a word.
        let mut groups_with = vec![0usize; m + 1];
        let low = crate::mask::low_bits(m);
        for r in 0..mask.rows() {
            let mut left = mask.cols() / m;
            for &word in mask.row_words(r) {
                for g in 0..left.min(64 / m) {
                    groups_with[(word >> (g * m) & low).count_ones() as usize] += 1;
                }
                left = left.saturating_sub(64 / m);
            }
        }
        let highest = (1..=m).rev().find(|&k| groups_with[k] > 0).unwrap_or(1);
        let units: usize = groups_with.iter().sum();
        let customary = if m <= 8 { m / 2 } else { highest };
        let mut wanted = vec![highest, customary];
        wanted.dedup();
        for n in wanted.into_iter().filter(|&n| n < m) {
            let finding = Finding {
                pattern: Pattern::NM { n, m },
                units,
                zero_units: groups_with[..n].iter().sum(),
                violations: groups_with[n + 1..].iter().sum(),
                explained: (0..=m).map(|k| groups_with[k] * (m - k).min(m - n)).sum(),
            };
            let is_on_purpose = finding.is_satisfied()
                && (groups_with[n] == units
                    || units as f64 * binomial_tail(m, n, 1.0 - mask.sparsity()) >= 8.0);
            if is_on_purpose {
                on_purpose.push(finding.pattern);
            }
            if is_on_purpose || n == customary && m <= 8 {
                findings.push(finding);
            }
        }
    }
    on_purpose
}

/// Probability of more than `n` successes in `m <= 32` independent trials.
fn binomial_tail(m: usize, n: usize, success: f64) -> f64 {
    let mut ways = 1.0;
    let mut tail = 0.0;
    for k in 0..=m {
        if k > n {
            tail += ways * success.powi(k as i32) * (1.0 - success).powi((m - k) as i32);
        }
        ways *= (m - k) as f64 / (k + 1) as f64;
    }
    tail
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Group, select};
    use proptest::prelude::*;

    fn detect_text(rows: &[&str]) -> Detection {
        let cols = rows[0].len();
        let w: Vec<f32> =
            rows.iter().flat_map(|r| r.bytes().map(|b| f32::from(u8::from(b == b'1')))).collect();
        detect(&w, rows.len(), cols).unwrap()
    }

    #[test]
    fn by_hand() {
        assert_eq!(detect_text(&["1111", "1111"]).best, None);
        assert_eq!(detect_text(&["1010", "0110"]).best, Some(Pattern::NM { n: 2, m: 4 }));
        assert_eq!(detect_text(&["1110", "1111"]).best, Some(Pattern::Unstructured));
        let rows = detect_text(&["0000", "1111", "1111"]);
        assert_eq!((rows.best, rows.zero_rows), (Some(Pattern::Channel), 1));
        let groups = detect_text(&["00111100", "11110000"]);
        assert_eq!(groups.best, Some(Pattern::RowGroup { len: 2 }));
        assert_eq!(groups.sparsity(), 0.5);
        let blocks = detect_text(&["0011", "0011", "1100", "1100"]);
        assert_eq!(blocks.best, Some(Pattern::Block { rows: 2, cols: 2 }));
        let four_eight = detect_text(&["11110000", "10101011", "00011101"]);
        assert_eq!(four_eight.best, Some(Pattern::Unstructured)); // the second row has 5 of 8
        let four_eight = detect_text(&["01111000", "10101010", "00011101"]);
        assert_eq!(four_eight.best, Some(Pattern::NM { n: 4, m: 8 }));
        let two_four = four_eight.finding(&Pattern::NM { n: 2, m: 4 }).unwrap();
        // Groups: 0111 (violates) 1000, 1010 1010, 0001 1101 (violates); explained 1+2+2+2+2+1.
        assert_eq!((two_four.violations, two_four.zero_units, two_four.explained), (2, 2, 10));
        let column = detect_text(&["1011", "1011"]);
        assert_eq!(column.zero_cols, 1);
        assert_eq!(column.best, Some(Pattern::Block { rows: 2, cols: 1 }));
    }

    #[test]
    fn chance_is_not_a_pattern() {
        assert!((binomial_tail(4, 2, 0.5) - 5.0 / 16.0).abs() < 1e-12);
        assert_eq!(binomial_tail(4, 4, 0.5), 0.0);
        // Linear congruential noise, 256 x 256.
        let mut state = 1u64;
        let noise: Vec<f32> = (0..65536)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32
            })
            .collect();
        for sparsity in [0.1, 0.5, 0.9, 0.99] {
            let mut mask = select::unstructured(&noise, 256, 256, Group::Tensor, sparsity).unwrap();
            assert_eq!(detect_mask(&mask).best, Some(Pattern::Unstructured), "{sparsity}");
            // Already sparse, then made 2:4: fewer than two non-zeros in many groups, still 2:4.
            let two_four = select::n_of_m(&noise, 256, 256, 2, 4).unwrap();
            mask = mask.and(&two_four).unwrap();
            if sparsity <= 0.9 {
                assert_eq!(detect_mask(&mask).best, Some(Pattern::NM { n: 2, m: 4 }), "{sparsity}");
            }
        }
    }

    #[test]
    fn empty_and_hostile() {
        assert_eq!(detect(&[], 0, 0).unwrap().best, None);
        assert_eq!(detect(&[], 5, 0).unwrap().sparsity(), 0.0);
        assert!(detect(&[1.0], 1, 2).is_err());
        assert!(detect(&[], usize::MAX, 2).is_err());
        let odd = detect(&[f32::NAN, -0.0, f32::INFINITY], 1, 3).unwrap();
        assert_eq!((odd.zeros, odd.best), (1, Some(Pattern::Unstructured)));
    }

    proptest! {
        /// Every finding agrees with the mask's own test and a naive recount.
        #[test]
        fn findings_agree_with_a_naive_recount(
            (rows, cols, bits) in (1usize..9, 1usize..140).prop_flat_map(|(r, c)| {
                (Just(r), Just(c), proptest::collection::vec(proptest::bool::weighted(0.2), r * c))
            }),
            coarse in 1usize..5,
        ) {
            // Repeating bits over small tiles makes zero units likely.
            let mask = Mask::from_fn(rows, cols, |r, c| bits[(r / coarse) * cols + c / coarse]);
            let found = detect_mask(&mask);
            prop_assert_eq!(found.zeros, mask.pruned());
            for f in &found.findings {
                prop_assert_eq!(f.is_satisfied(), mask.satisfies(&f.pattern), "{:?}", f);
                prop_assert!(f.explained <= found.zeros);
                if f.is_satisfied() && !matches!(f.pattern, Pattern::NM { .. }) {
                    prop_assert_eq!(f.explained, found.zeros);
                }
                let (height, width) = match f.pattern {
                    Pattern::Block { rows, cols } => (rows, cols),
                    Pattern::RowGroup { len } => (1, len),
                    _ => continue,
                };
                let kept: Vec<usize> = (0..rows / height).flat_map(|br| (0..cols / width).map(move |bc| (br, bc)))
                    .map(|(br, bc)| (0..height * width).filter(|i| mask.get(br * height + i / width, bc * width + i % width)).count())
                    .collect();
                prop_assert_eq!(f.units, kept.len());
                prop_assert_eq!(f.zero_units, kept.iter().filter(|&&k| k == 0).count());
                prop_assert_eq!(f.violations, kept.iter().filter(|&&k| k > 0 && k < height * width).count());
            }
            prop_assert_eq!(found.best.is_none(), found.zeros == 0);
        }

        /// What selection made, detection finds (or something stricter).
        #[test]
        fn selection_is_recognised(
            scores in proptest::collection::vec(0.01f32..1.0, 8 * 64),
            sparsity in 0.2f64..0.9,
        ) {
            for pattern in [
                Pattern::NM { n: 2, m: 4 }, Pattern::NM { n: 4, m: 8 }, Pattern::NM { n: 1, m: 16 },
                Pattern::Block { rows: 4, cols: 1 }, Pattern::Block { rows: 8, cols: 16 },
                Pattern::RowGroup { len: 16 }, Pattern::Channel, Pattern::Unstructured,
            ] {
                let mask = select::by_pattern(&scores, 8, 64, &pattern, Group::Tensor, sparsity).unwrap();
                let found = detect_mask(&mask);
                if mask.pruned() > 0 {
                    let f = found.finding(&pattern);
                    prop_assert!(f.is_some_and(Finding::is_satisfied), "{} {:?}", pattern, found);
                    prop_assert!(strictness(&found.best.unwrap()) <= strictness(&pattern));
                }
            }
        }
    }
}
