//! Kronecker products that are never formed.

use faer::{Mat, MatRef};

use super::LinOp;
use crate::SolveError;

/// `A₁ ⊗ A₂ ⊗ … ⊗ A_d` of dense factors `A_k: [n_k, p_k]`. Vectors are laid out as a tensor whose
/// last index runs fastest.
///
/// A product costs `Σ_k (n₁…n_k)(p_k…p_d)` multiplications and two buffers of the largest
/// intermediate size, where the full matrix would need `Π n_k p_k`.
#[derive(Debug, Clone)]
pub struct Kronecker {
    factors: Vec<Mat<f64>>,
}

impl Kronecker {
    /// The product of the factors, first factor outermost.
    ///
    /// # Errors
    /// [`SolveError::Empty`] without factors, [`SolveError::Invalid`] when a dimension overflows.
    pub fn new(factors: Vec<Mat<f64>>) -> Result<Self, SolveError> {
        crate::error::check_not_empty("factors", "factor", factors.len())?;
        let size =
            |of: fn(&Mat<f64>) -> usize| factors.iter().try_fold(1_usize, |n, f| n.checked_mul(of(f).max(1)));
        if size(|f| f.nrows().max(f.ncols())).is_none() {
            return Err(SolveError::invalid(
                "factors",
                "a product that fits the address space",
                "an overflow",
                "use smaller or fewer factors",
            ));
        }
        Ok(Self { factors })
    }

    /// The factors.
    #[must_use]
    pub fn factors(&self) -> &[Mat<f64>] {
        &self.factors
    }

    fn run(&self, x: &[f64], y: &mut [f64], transposed: bool) {
        let mut current = x.to_vec();
        let mut left = 1;
        let side = |f: &Mat<f64>| if transposed { f.nrows() } else { f.ncols() };
        for (k, factor) in self.factors.iter().enumerate() {
            let a = if transposed { factor.transpose() } else { factor.as_ref() };
            let right = self.factors[k + 1..].iter().map(side).product();
            current = mode_product(a, &current, left, right);
            left *= a.nrows();
        }
        y.copy_from_slice(&current);
    }
}

/// `out[l, i, r] = Σ_j a[i, j]·x[l, j, r]`.
fn mode_product(a: MatRef<'_, f64>, x: &[f64], left: usize, right: usize) -> Vec<f64> {
    let mut out = vec![0.0; left * a.nrows() * right];
    if out.is_empty() || x.is_empty() {
        return out;
    }
    let blocks = out.chunks_exact_mut(a.nrows() * right).zip(x.chunks_exact(a.ncols() * right));
    for (out, x) in blocks {
        for (i, out) in out.chunks_exact_mut(right).enumerate() {
            for (j, x) in x.chunks_exact(right).enumerate() {
                super::dense::axpy(a[(i, j)], x, out);
            }
        }
    }
    out
}

impl LinOp for Kronecker {
    fn n_rows(&self) -> usize {
        self.factors.iter().map(Mat::nrows).product()
    }
    fn n_cols(&self) -> usize {
        self.factors.iter().map(Mat::ncols).product()
    }
    fn apply(&self, x: &[f64], y: &mut [f64]) {
        self.run(x, y, false);
    }
    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        self.run(y, x, true);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::linop::tests::{check_against, random};

    #[test]
    fn products_equal_the_full_matrix() {
        let shapes: [&[(usize, usize)]; 4] =
            [&[(2, 3)], &[(2, 3), (4, 2)], &[(3, 1), (2, 2), (1, 4)], &[(20, 5), (3, 18)]];
        for shapes in shapes {
            let factors: Vec<_> =
                shapes.iter().enumerate().map(|(k, &(n, p))| random(n, p, k as u64)).collect();
            let mut full = Mat::from_fn(1, 1, |_, _| 1.0);
            for f in &factors {
                full = Mat::from_fn(full.nrows() * f.nrows(), full.ncols() * f.ncols(), |i, j| {
                    full[(i / f.nrows(), j / f.ncols())] * f[(i % f.nrows(), j % f.ncols())]
                });
            }
            check_against(&Kronecker::new(factors).unwrap(), &full);
        }
        assert!(Kronecker::new(vec![]).is_err());
        let none = Kronecker::new(vec![random(2, 3, 0), Mat::zeros(4, 0)]).unwrap();
        check_against(&none, &Mat::zeros(8, 0));
        let huge = vec![Mat::zeros(1 << 16, 0); 5];
        assert!(Kronecker::new(huge).is_err());
    }
}
