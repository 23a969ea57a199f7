//! A single layer whose inputs look like those of a language model: correlated, with a power-law
//! spectrum, non-zero means, unequal channel scales and a few outlier channels.
//!
//! Inputs: `x = z · diag(i^-decay) · Q` with standard normal `z` and a random rotation `Q`, plus
//! channel means of `mean · σ` (σ: root mean variance over channels, random sign and size), each
//! channel scaled by `exp(scale_spread · N(0,1))`, `n_outliers` random channels by `outlier_scale`.
//! Weights: `N(0, 1/d_in)`.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde::{Deserialize, Serialize};

use crate::{LayerStats, LinearLayer, Needs, PruneError, SettingError};

/// Settings of [`SyntheticLayer::generate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyntheticSettings {
    /// Outputs, at least 1.
    pub d_out: usize,
    /// Inputs, at least 1.
    pub d_in: usize,
    /// Tokens, at least 1.
    pub n_tokens: usize,
    /// Exponent of the spectrum, finite.
    pub decay: f64,
    /// Size of the channel means in units of σ, finite.
    pub mean: f64,
    /// Standard deviation of the logarithm of the channel scales, finite.
    pub scale_spread: f64,
    /// Channels that are much larger, at most `d_in`.
    pub n_outliers: usize,
    /// How much larger.
    pub outlier_scale: f64,
    /// Seed of everything.
    pub seed: u64,
}

impl Default for SyntheticSettings {
    fn default() -> Self {
        Self {
            d_out: 256,
            d_in: 256,
            n_tokens: 4096,
            decay: 0.6,
            mean: 0.3,
            scale_spread: 0.7,
            n_outliers: 4,
            outlier_scale: 20.0,
            seed: 0,
        }
    }
}

impl SyntheticSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SettingError`] naming field, value and range.
    pub fn validate(&self) -> Result<(), SettingError> {
        const MAX: usize = 1 << 16;
        for (field, value) in [("d_out", self.d_out), ("d_in", self.d_in), ("n_tokens", self.n_tokens)] {
            if value == 0 || value > MAX {
                return Err(SettingError::new(field, value, format!("in 1..={MAX}")));
            }
        }
        for (field, value) in [
            ("decay", self.decay),
            ("mean", self.mean),
            ("scale_spread", self.scale_spread),
            ("outlier_scale", self.outlier_scale),
        ] {
            if !value.is_finite() {
                return Err(SettingError::new(field, value, "finite"));
            }
        }
        if self.n_outliers > self.d_in {
            return Err(SettingError::new("n_outliers", self.n_outliers, "at most d_in"));
        }
        Ok(())
    }
}

/// A layer and the inputs it is used on.
#[derive(Debug, Clone)]
pub struct SyntheticLayer {
    /// The dense layer.
    pub layer: LinearLayer,
    /// Row-major `[n_tokens, d_in]`.
    pub inputs: Vec<f32>,
}

impl SyntheticLayer {
    /// Draws a layer and its inputs.
    ///
    /// # Errors
    /// As [`SyntheticSettings::validate`].
    pub fn generate(settings: &SyntheticSettings) -> Result<Self, PruneError> {
        settings.validate()?;
        let mut normal = Normal::new(settings.seed);
        let (d_in, n_tokens) = (settings.d_in, settings.n_tokens);
        let rotation = random_rotation(&mut normal, d_in);
        let spectrum: Vec<f64> = (1..=d_in).map(|i| (i as f64).powf(-settings.decay)).collect();
        let mut z = vec![0.0_f64; n_tokens * d_in];
        for row in z.chunks_exact_mut(d_in) {
            for (z, s) in row.iter_mut().zip(&spectrum) {
                *z = normal.next() * s;
            }
        }
        let mut x = vec![0.0_f64; n_tokens * d_in];
        matmul(
            MatMut::from_row_major_slice_mut(&mut x, n_tokens, d_in),
            Accum::Replace,
            MatRef::from_row_major_slice(&z, n_tokens, d_in),
            MatRef::from_row_major_slice(&rotation, d_in, d_in),
            1.0,
            Par::Seq,
        );
        let sigma = (spectrum.iter().map(|s| s * s).sum::<f64>() / d_in as f64).sqrt();
        let means: Vec<f64> = (0..d_in).map(|_| settings.mean * sigma * normal.next()).collect();
        let mut scales: Vec<f64> = (0..d_in).map(|_| (settings.scale_spread * normal.next()).exp()).collect();
        let mut channels: Vec<usize> = (0..d_in).collect();
        for i in 0..settings.n_outliers {
            let j = i + (normal.rng.next_u64() % (d_in - i) as u64) as usize;
            channels.swap(i, j);
            scales[channels[i]] *= settings.outlier_scale;
        }
        let inputs = x
            .chunks_exact(d_in)
            .flat_map(|row| row.iter().zip(&means).zip(&scales).map(|((x, m), s)| ((x + m) * s) as f32))
            .collect();
        let size = 1.0 / (d_in as f64).sqrt();
        let weight = (0..settings.d_out * d_in).map(|_| (normal.next() * size) as f32).collect();
        let layer = LinearLayer::new("synthetic", settings.d_out, d_in, weight)?;
        Ok(Self { layer, inputs })
    }

    /// Statistics of the inputs, taken as one sequence.
    ///
    /// # Errors
    /// As [`LayerStats::from_inputs`].
    pub fn stats(&self, needs: Needs) -> Result<LayerStats, PruneError> {
        LayerStats::from_inputs(&self.inputs, self.layer.cols, 1, needs)
    }

    /// `‖X(W − Ŵ)ᵀ‖² / ‖X Wᵀ‖²`, from the inputs themselves.
    ///
    /// # Errors
    /// [`PruneError::ShapeMismatch`] when `pruned` has another length.
    pub fn relative_error(&self, pruned: &[f32]) -> Result<f64, PruneError> {
        let dense = &self.layer.weight;
        if pruned.len() != dense.len() {
            return Err(PruneError::ShapeMismatch {
                layer: self.layer.name.clone(),
                what: "pruned weight",
                expected: dense.len(),
                found: pruned.len(),
            });
        }
        let change: Vec<f32> = dense.iter().zip(pruned).map(|(a, b)| a - b).collect();
        Ok(self.output_energy(&change) / self.output_energy(dense))
    }

    fn output_energy(&self, w: &[f32]) -> f64 {
        let (rows, cols) = (self.layer.rows, self.layer.cols);
        let n_tokens = self.inputs.len() / cols;
        let mut y = vec![0.0_f32; n_tokens * rows];
        matmul(
            MatMut::from_row_major_slice_mut(&mut y, n_tokens, rows),
            Accum::Replace,
            MatRef::from_row_major_slice(&self.inputs, n_tokens, cols),
            MatRef::from_row_major_slice(w, rows, cols).transpose(),
            1.0,
            Par::Seq,
        );
        y.iter().map(|y| f64::from(*y) * f64::from(*y)).sum()
    }
}

/// `n` standard normal values.
#[must_use]
pub fn normal_vec(seed: u64, n: usize) -> Vec<f32> {
    let mut normal = Normal::new(seed);
    (0..n).map(|_| normal.next() as f32).collect()
}

/// Standard normal numbers by the Box-Muller transform.
struct Normal {
    rng: ChaCha8Rng,
    spare: Option<f64>,
}

impl Normal {
    fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), spare: None }
    }

    fn next(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        // Uniform in (0, 1] and [0, 1), 53 bits each.
        let unit = 1.0 / (1_u64 << 53) as f64;
        let u = ((self.rng.next_u64() >> 11) + 1) as f64 * unit;
        let v = (self.rng.next_u64() >> 11) as f64 * unit;
        let radius = (-2.0 * u.ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

/// An orthogonal matrix: Gram-Schmidt, twice, on normal rows.
fn random_rotation(normal: &mut Normal, n: usize) -> Vec<f64> {
    let mut q = vec![0.0; n * n];
    for i in 0..n {
        let (done, rest) = q.split_at_mut(i * n);
        let row = &mut rest[..n];
        row.iter_mut().for_each(|v| *v = normal.next());
        for _ in 0..2 {
            for other in done.chunks_exact(n) {
                let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
    }
    q
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rotation_is_orthogonal() {
        let n = 24;
        let q = random_rotation(&mut Normal::new(3), n);
        for i in 0..n {
            for j in 0..n {
                let dot: f64 = (0..n).map(|k| q[i * n + k] * q[j * n + k]).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((dot - expected).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn normal_numbers_have_the_right_moments() {
        let v = normal_vec(1, 40_000);
        let mean = v.iter().map(|v| f64::from(*v)).sum::<f64>() / 40_000.0;
        let var = v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 40_000.0;
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.03, "{mean} {var}");
        assert_eq!(v, normal_vec(1, 40_000));
        assert_ne!(v[..8], normal_vec(2, 8)[..]);
    }

    #[test]
    fn relative_error_limits() {
        let settings = SyntheticSettings { d_out: 5, d_in: 12, n_tokens: 30, ..Default::default() };
        let s = SyntheticLayer::generate(&settings).unwrap();
        assert_eq!(s.relative_error(&s.layer.weight).unwrap(), 0.0);
        assert_eq!(s.relative_error(&[0.0; 60]).unwrap(), 1.0);
        assert!(s.relative_error(&[0.0; 59]).is_err());
        let bad = SyntheticSettings { n_outliers: 13, ..settings };
        assert_eq!(bad.validate().unwrap_err().field, "n_outliers");
    }
}
