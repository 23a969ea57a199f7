//! A sketch of Kronecker products that are never formed.

use faer::{Mat, MatRef};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::{check_matrix, check_sizes, walsh_hadamard};
use crate::SolveError;
use crate::error::{check_dimension, check_finite, check_setting};

/// `S: [m, n₁n₂]` whose row `i` is `(1/√m)·(H₁D₁)[r₁(i)] ⊗ (H₂D₂)[r₂(i)]`: Hadamard matrices behind independent random
/// signs, rows drawn independently.
///
/// `S(u ⊗ v)` costs two transforms, `O(n₁ log n₁ + n₂ log n₂ + m)`; `S(A₁ ⊗ A₂)` as many as the factors have
/// columns. A vector of the full length takes one two-dimensional transform. `E[SᵀS] = I`.
#[derive(Debug, Clone)]
pub struct TensorSrht {
    signs: [Vec<f64>; 2],
    rows: Vec<[usize; 2]>,
}

impl TensorSrht {
    /// Draws.
    ///
    /// # Errors
    /// [`SolveError::Setting`] for a size of 0 or an overflow of `n₁n₂`.
    pub fn new(n_1: usize, n_2: usize, n_out: usize, seed: u64) -> Result<Self, SolveError> {
        check_sizes(n_1, n_out)?;
        check_sizes(n_2, n_out)?;
        check_setting(n_1.checked_mul(n_2).is_some_and(|n| n < 1 << 40), "n_2", n_2, "n_1·n_2 in 1..2^40")?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut signs = |n: usize| -> Vec<f64> {
            (0..n).map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 }).collect()
        };
        let signs = [signs(n_1), signs(n_2)];
        let sizes = [n_1.next_power_of_two(), n_2.next_power_of_two()];
        let rows = (0..n_out).map(|_| sizes.map(|n| rng.random_range(0..n))).collect();
        Ok(Self { signs, rows })
    }

    /// Number of rows of `S`.
    #[must_use]
    pub fn n_out(&self) -> usize {
        self.rows.len()
    }

    fn transformed(&self, side: usize, x: impl Iterator<Item = f64>) -> Result<Vec<f64>, SolveError> {
        let signs = &self.signs[side];
        let mut y: Vec<f64> = x.zip(signs).map(|(x, d)| x * d).collect();
        y.resize(signs.len().next_power_of_two(), 0.0);
        walsh_hadamard(&mut y)?;
        Ok(y)
    }

    /// `S(A₁ ⊗ A₂)`, column `j₁·d₂ + j₂` that of the columns `j₁` and `j₂`.
    ///
    /// # Errors
    /// [`SolveError::Dimension`], [`SolveError::NonFinite`].
    pub fn apply_product(&self, a_1: MatRef<'_, f64>, a_2: MatRef<'_, f64>) -> Result<Mat<f64>, SolveError> {
        check_dimension("a_1", self.signs[0].len(), "rows of the first factor", a_1.nrows())?;
        check_dimension("a_2", self.signs[1].len(), "rows of the second factor", a_2.nrows())?;
        check_matrix("a_1", a_1)?;
        check_matrix("a_2", a_2)?;
        let side = |k: usize, a: MatRef<'_, f64>| -> Result<Vec<Vec<f64>>, SolveError> {
            (0..a.ncols()).map(|j| self.transformed(k, (0..a.nrows()).map(|i| a[(i, j)]))).collect()
        };
        let (u, v) = (side(0, a_1)?, side(1, a_2)?);
        let scale = 1.0 / (self.n_out() as f64).sqrt();
        let d_2 = v.len();
        Ok(Mat::from_fn(self.n_out(), u.len() * d_2, |i, j| {
            let [r_1, r_2] = self.rows[i];
            scale * u[j / d_2][r_1] * v[j % d_2][r_2]
        }))
    }

    /// `S·x` for any vector of length `n₁n₂`, the second index running fastest.
    ///
    /// # Errors
    /// [`SolveError::Dimension`], [`SolveError::NonFinite`].
    pub fn apply_vector(&self, x: &[f64]) -> Result<Vec<f64>, SolveError> {
        let [n_1, n_2] = [self.signs[0].len(), self.signs[1].len()];
        check_dimension("x", n_1 * n_2, "product of the rows of the factors", x.len())?;
        check_finite("x", x)?;
        let rows: Vec<Vec<f64>> = x
            .chunks_exact(n_2)
            .map(|row| self.transformed(1, row.iter().copied()))
            .collect::<Result<_, _>>()?;
        let scale = 1.0 / (self.n_out() as f64).sqrt();
        let mut out = vec![0.0; self.n_out()];
        for column in 0..n_2.next_power_of_two() {
            let wanted = || (0..self.rows.len()).filter(|i| self.rows[*i][1] == column);
            if wanted().next().is_some() {
                let y = self.transformed(0, rows.iter().map(|row| row[column]))?;
                wanted().for_each(|i| out[i] = scale * y[self.rows[i][0]]);
            }
        }
        Ok(out)
    }
}
