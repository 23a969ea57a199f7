//! Statistics of the inputs of linear layers, accumulated over calibration sequences.
//!
//! With `S` sequences and all their tokens stacked in `X [n_tokens, d_in]`:
//!
//! - input norms `a[c] = (1/S) Σ_tokens x_c²`, summed in f64;
//! - Hessian `H = (2/S) XᵀX`. Products of at most [`TOKEN_BLOCK`] tokens are formed in f32 and
//!   added in f64, so that an entry is off by at most about `TOKEN_BLOCK · 2⁻²⁴ · Σ|x_i x_j|`
//!   (typically `√TOKEN_BLOCK · 2⁻²⁴ ≈ 1.3e-6`) relative to that sum. The diagonal
//!   is the f64 sum of the norms, so `diag(H) = 2a` exactly.
//!
//! `S` counts sequences, not tokens, as the reference code does: a running mean over
//! batches of sequences equals the closed form above. Masks and updates do not depend on that
//! scale, only the reported loss does.
//!
//! Work is split over the current rayon pool by columns, never over tokens, so the result
//! does not depend on the number of threads.

use std::sync::{Arc, Mutex, PoisonError};

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use crate::{Needs, PruneError, linalg::InverseFactor};

/// Tokens whose products are summed in f32 before they are added in f64.
pub const TOKEN_BLOCK: usize = 512;
/// Columns of the Hessian that one task forms.
const PANEL: usize = 128;
/// Columns of the norms that one task sums.
const NORM_PANEL: usize = 256;

/// What calibration knows about the inputs of one linear layer.
#[derive(Debug, Default)]
pub struct LayerStats {
    /// Calibration sequences seen.
    pub n_sequences: usize,
    /// Tokens seen in all sequences.
    pub n_tokens: usize,
    /// `a[c] = (1/S) Σ x_c²`, `[d_in]`.
    pub input_sq: Option<Vec<f64>>,
    /// `(2/S) XᵀX`, `[d_in, d_in]`, full and symmetric.
    pub hessian: Option<Vec<f64>>,
    /// The last factor asked for, with its percdamp. Layers that share inputs share it.
    factor: Mutex<Option<(f64, Arc<InverseFactor>)>>,
}

impl LayerStats {
    /// No statistics at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Statistics computed elsewhere; they are checked when they are used.
    #[must_use]
    pub fn new(
        n_sequences: usize,
        n_tokens: usize,
        input_sq: Option<Vec<f64>>,
        hessian: Option<Vec<f64>>,
    ) -> Self {
        Self { n_sequences, n_tokens, input_sq, hessian, factor: Mutex::new(None) }
    }

    /// Statistics of `x`, row-major `[n_tokens, d_in]`, taken as `n_sequences` sequences.
    ///
    /// # Errors
    /// [`PruneError::ShapeMismatch`] when the length is not a multiple of `d_in`,
    /// [`PruneError::NonFiniteInput`].
    pub fn from_inputs(x: &[f32], d_in: usize, n_sequences: usize, needs: Needs) -> Result<Self, PruneError> {
        let mut sums = InputSums::new("inputs", d_in, needs);
        if d_in == 0 || !x.len().is_multiple_of(d_in) {
            return Err(PruneError::ShapeMismatch {
                layer: "inputs".into(),
                what: "activations",
                expected: d_in,
                found: x.len(),
            });
        }
        sums.add(x, x.len() / d_in, 0)?;
        Ok(sums.finish(n_sequences))
    }

    /// The input norms.
    ///
    /// # Errors
    /// Missing, of the wrong length, negative or not finite, or from zero tokens.
    pub fn input_norms(&self, layer: &str, cols: usize) -> Result<&[f64], PruneError> {
        let values = self.input_sq.as_deref().ok_or_else(|| missing(layer, "input norms"))?;
        self.check(layer, "input norms", values, cols, true)?;
        Ok(values)
    }

    /// The Hessian, `[cols, cols]`.
    ///
    /// # Errors
    /// Missing, of the wrong length, not finite, or from zero tokens.
    pub fn hessian(&self, layer: &str, cols: usize) -> Result<&[f64], PruneError> {
        let values = self.hessian.as_deref().ok_or_else(|| missing(layer, "Hessian"))?;
        self.check(layer, "Hessian", values, cols.saturating_mul(cols), false)?;
        if let Some(c) = (0..cols).find(|c| values[c * cols + c] < 0.0) {
            return Err(invalid(layer, "Hessian", c * cols + c));
        }
        Ok(values)
    }

    /// The upper factor `U` of the inverse of the damped Hessian, computed once per `percdamp`.
    ///
    /// # Errors
    /// As [`LayerStats::hessian`].
    pub fn inverse_factor(
        &self,
        layer: &str,
        cols: usize,
        percdamp: f64,
    ) -> Result<Arc<InverseFactor>, PruneError> {
        let h = self.hessian(layer, cols)?;
        let mut slot = self.factor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((p, factor)) = slot.as_ref()
            && p.to_bits() == percdamp.to_bits()
        {
            return Ok(factor.clone());
        }
        *slot = None;
        let factor = Arc::new(InverseFactor::new(h, cols, percdamp));
        *slot = Some((percdamp, factor.clone()));
        Ok(factor)
    }

    fn check(
        &self,
        layer: &str,
        statistic: &'static str,
        values: &[f64],
        expected: usize,
        non_negative: bool,
    ) -> Result<(), PruneError> {
        if values.len() != expected {
            return Err(PruneError::ShapeMismatch {
                layer: layer.into(),
                what: statistic,
                expected,
                found: values.len(),
            });
        }
        if self.n_tokens == 0 {
            return Err(PruneError::EmptyCalibration {
                method: "calibrated",
                what: format!("layer `{layer}` saw no token"),
            });
        }
        let bad = |v: &f64| !v.is_finite() || (non_negative && *v < 0.0);
        match values.iter().position(bad) {
            Some(index) => Err(invalid(layer, statistic, index)),
            None => Ok(()),
        }
    }
}

fn missing(layer: &str, statistic: &'static str) -> PruneError {
    PruneError::MissingStatistic { layer: layer.into(), statistic }
}

fn invalid(layer: &str, statistic: &'static str, index: usize) -> PruneError {
    PruneError::InvalidStatistic { layer: layer.into(), statistic, index }
}

/// Running sums over the inputs of one layer (or of several that share them).
#[derive(Debug)]
pub struct InputSums {
    name: String,
    d_in: usize,
    n_tokens: usize,
    squares: Option<Vec<f64>>,
    /// Column-major lower triangle of XᵀX, diagonal unused until `finish`.
    gram: Option<Vec<f64>>,
}

impl InputSums {
    /// Empty sums for inputs of width `d_in`; `name` appears in errors.
    #[must_use]
    pub fn new(name: impl Into<String>, d_in: usize, needs: Needs) -> Self {
        let gram = needs.contains(Needs::HESSIAN).then(|| vec![0.0; d_in * d_in]);
        let squares = needs.any().then(|| vec![0.0; d_in]);
        Self { name: name.into(), d_in, n_tokens: 0, squares, gram }
    }

    /// Tokens seen so far.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Adds `x`, row-major `[n_tokens, d_in]`, which belongs to calibration sequence `sequence`.
    ///
    /// # Errors
    /// [`PruneError::NonFiniteInput`] (the sums are then unusable), [`PruneError::ShapeMismatch`].
    pub fn add(&mut self, x: &[f32], n_tokens: usize, sequence: usize) -> Result<(), PruneError> {
        let d_in = self.d_in;
        let expected = n_tokens.saturating_mul(d_in);
        if x.len() != expected {
            return Err(PruneError::ShapeMismatch {
                layer: self.name.clone(),
                what: "calibration input",
                expected,
                found: x.len(),
            });
        }
        let Some(squares) = self.squares.as_mut().filter(|_| d_in > 0) else { return Ok(()) };
        squares.par_chunks_mut(NORM_PANEL).enumerate().with_max_len(1).for_each(|(p, sums)| {
            let start = p * NORM_PANEL;
            for row in x.chunks_exact(d_in) {
                for (sum, &value) in sums.iter_mut().zip(&row[start..]) {
                    let value = f64::from(value);
                    *sum += value * value;
                }
            }
        });
        if squares.iter().any(|s| !s.is_finite()) {
            let first = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Err(PruneError::NonFiniteInput {
                layer: self.name.clone(),
                count: x.iter().filter(|v| !v.is_finite()).count(),
                sequence,
                token: first / d_in,
            });
        }
        if let Some(gram) = self.gram.as_mut() {
            for block in x.chunks(TOKEN_BLOCK * d_in) {
                add_gram(gram, block, d_in);
            }
        }
        self.n_tokens += n_tokens;
        Ok(())
    }

    /// Divides by the number of sequences. `n_sequences` = 0 is taken as 1.
    #[must_use]
    pub fn finish(self, n_sequences: usize) -> LayerStats {
        let s = n_sequences.max(1) as f64;
        let squares = self.squares;
        let hessian = self.gram.zip(squares.as_ref()).map(|(mut gram, squares)| {
            mirror(&mut gram, self.d_in, 2.0 / s);
            for (c, sum) in squares.iter().enumerate() {
                gram[c * self.d_in + c] = 2.0 * (sum / s);
            }
            gram
        });
        let input_sq = squares.map(|mut sums| {
            sums.iter_mut().for_each(|v| *v /= s);
            sums
        });
        LayerStats::new(n_sequences, self.n_tokens, input_sq, hessian)
    }
}

/// Adds the strictly needed part (rows from the panel's first column on) of `xᵀx`.
fn add_gram(gram: &mut [f64], x: &[f32], d_in: usize) {
    let n_tokens = x.len() / d_in;
    let x = MatRef::from_row_major_slice(x, n_tokens, d_in);
    gram.par_chunks_mut(PANEL * d_in).enumerate().with_max_len(1).for_each_init(
        Vec::new,
        |product: &mut Vec<f32>, (p, columns)| {
            let start = p * PANEL;
            let (height, width) = (d_in - start, columns.len() / d_in);
            product.resize(height * width, 0.0);
            matmul(
                MatMut::from_column_major_slice_mut(&mut product[..height * width], height, width),
                Accum::Replace,
                x.subcols(start, height).transpose(),
                x.subcols(start, width),
                1.0_f32,
                Par::Seq,
            );
            for (column, part) in columns.chunks_exact_mut(d_in).zip(product.chunks_exact(height)) {
                for (sum, &value) in column[start..].iter_mut().zip(part) {
                    *sum += f64::from(value);
                }
            }
        },
    );
}

/// Scales the lower triangle (column-major) and copies it to the upper one.
fn mirror(gram: &mut [f64], d_in: usize, scale: f64) {
    const TILE: usize = 64;
    for i0 in (0..d_in).step_by(TILE) {
        for j0 in (0..=i0).step_by(TILE) {
            for j in j0..(j0 + TILE).min(d_in) {
                for i in i0.max(j)..(i0 + TILE).min(d_in) {
                    let value = gram[j * d_in + i] * scale;
                    gram[j * d_in + i] = value;
                    gram[i * d_in + j] = value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::synthetic::normal_vec;

    #[test]
    fn by_hand_two_tokens() {
        // X = [[1, 2], [3, -1]], two sequences: XᵀX = [[10, -1], [-1, 5]], H = XᵀX, a = (5, 2.5).
        let stats = LayerStats::from_inputs(&[1.0, 2.0, 3.0, -1.0], 2, 2, Needs::HESSIAN).unwrap();
        assert_eq!(stats.hessian.unwrap(), [10.0, -1.0, -1.0, 5.0]);
        assert_eq!(stats.input_sq.unwrap(), [5.0, 2.5]);
        assert_eq!((stats.n_sequences, stats.n_tokens), (2, 2));
    }

    #[test]
    fn agrees_with_a_naive_f64_sum_over_panel_edges() {
        let (tokens, d_in) = (700, 2 * PANEL + 37);
        let x = normal_vec(3, tokens * d_in);
        let mut sums = InputSums::new("l", d_in, Needs::HESSIAN);
        for (s, part) in x.chunks(300 * d_in).enumerate() {
            sums.add(part, part.len() / d_in, s).unwrap();
        }
        let stats = sums.finish(3);
        let (h, a) = (stats.hessian.unwrap(), stats.input_sq.unwrap());
        for i in 0..d_in {
            assert_eq!(h[i * d_in + i], 2.0 * a[i]);
            for j in 0..d_in {
                let exact: f64 =
                    x.chunks_exact(d_in).map(|row| f64::from(row[i]) * f64::from(row[j])).sum::<f64>() * 2.0
                        / 3.0;
                // 700 standard normal products: Σ|x_i x_j| ≈ 450.
                assert!((h[i * d_in + j] - exact).abs() < 1e-3, "{i} {j}");
                assert_eq!(h[i * d_in + j], h[j * d_in + i]);
            }
        }
    }

    #[test]
    fn one_and_two_threads_give_the_same_bits() {
        let d_in = 3 * PANEL + 5;
        let x = normal_vec(9, 600 * d_in);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| LayerStats::from_inputs(&x, d_in, 4, Needs::HESSIAN).unwrap())
        };
        let (one, two) = (run(1), run(2));
        assert_eq!(one.hessian, two.hessian);
        assert_eq!(one.input_sq, two.input_sq);
    }

    #[test]
    fn non_finite_input_names_the_token() {
        let mut sums = InputSums::new("q_proj", 2, Needs::INPUT_NORMS);
        let error = sums.add(&[0.0, 1.0, 2.0, f32::NAN, f32::INFINITY, 1.0], 3, 7).unwrap_err();
        let PruneError::NonFiniteInput { layer, count, sequence, token } = error else { panic!("{error}") };
        assert_eq!((layer.as_str(), count, sequence, token), ("q_proj", 2, 7, 1));
    }

    #[test]
    fn half_precision_extremes_do_not_overflow() {
        // The square of 1e30 overflows f32.
        let stats = LayerStats::from_inputs(&[1e30, 1.0], 2, 1, Needs::INPUT_NORMS).unwrap();
        let a = stats.input_norms("l", 2).unwrap();
        assert!((a[0] / 1e60 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn zero_tokens_missing_and_bad_values_are_errors() {
        let empty = LayerStats::from_inputs(&[], 3, 0, Needs::HESSIAN).unwrap();
        assert!(matches!(empty.input_norms("l", 3), Err(PruneError::EmptyCalibration { .. })));
        assert!(matches!(empty.hessian("l", 3), Err(PruneError::EmptyCalibration { .. })));
        assert!(matches!(LayerStats::none().hessian("l", 3), Err(PruneError::MissingStatistic { .. })));
        let bad = LayerStats::new(1, 1, Some(vec![1.0, -1.0]), None);
        assert!(matches!(bad.input_norms("l", 2), Err(PruneError::InvalidStatistic { index: 1, .. })));
        assert!(matches!(bad.input_norms("l", 3), Err(PruneError::ShapeMismatch { .. })));
    }
}
