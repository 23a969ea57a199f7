//! Weights and costs, checked once.

use std::borrow::Cow;

use faer::MatRef;
use rayon::prelude::*;

use crate::SolveError;
use crate::error::{check_dimension, check_finite, check_not_empty};

/// Sums of the weights may differ by this share; `b` is then scaled to the sum of `a`.
const SUM_TOLERANCE: f64 = 1e-8;

/// A transport problem: `a: ℝ^m`, `b: ℝ^n`, `cost: [m, n]` row-major.
#[derive(Debug, Clone)]
pub struct Transport<'a> {
    a: Vec<f64>,
    b: Vec<f64>,
    cost: Cow<'a, [f64]>,
    rows: Vec<usize>,
    cols: Vec<usize>,
    shape: (usize, usize),
}

impl<'a> Transport<'a> {
    /// The problem of moving `a` to `b`. The cost is borrowed unless points without mass have to drop out.
    ///
    /// # Errors
    /// [`SolveError::Empty`], [`SolveError::Dimension`] unless `cost` has `m·n` entries,
    /// [`SolveError::NonFinite`], [`SolveError::Invalid`] for negative weights, for weights without mass
    /// and for sums that differ by more than 1e-8 of their size (no plan exists then).
    pub fn new(a: &[f64], b: &[f64], cost: &'a [f64]) -> Result<Self, SolveError> {
        Self::build(a, b, Cow::Borrowed(cost))
    }

    /// As [`Transport::new`] for a matrix, which is copied to rows.
    ///
    /// # Errors
    /// As [`Transport::new`].
    pub fn from_mat(a: &[f64], b: &[f64], cost: MatRef<'_, f64>) -> Result<Self, SolveError> {
        check_dimension("cost", a.len(), "weights in `a`: rows of the cost", cost.nrows())?;
        check_dimension("cost", b.len(), "weights in `b`: columns of the cost", cost.ncols())?;
        let rows = (0..a.len()).flat_map(|i| (0..b.len()).map(move |j| cost[(i, j)])).collect();
        Self::build(a, b, Cow::Owned(rows))
    }

    /// As [`Transport::new`] for single precision, which is converted.
    ///
    /// # Errors
    /// As [`Transport::new`].
    pub fn from_f32(a: &[f32], b: &[f32], cost: &[f32]) -> Result<Self, SolveError> {
        let wide = |v: &[f32]| -> Vec<f64> { v.iter().map(|v| f64::from(*v)).collect() };
        let (a, mut b) = (wide(a), wide(b));
        // Sums of single-precision weights differ by their rounding.
        let (sa, sb): (f64, f64) = (a.iter().sum(), b.iter().sum());
        if (sa - sb).abs() <= 1e-5 * sa.abs() {
            b.iter_mut().for_each(|v| *v *= sa / sb);
        }
        Self::build(&a, &b, Cow::Owned(wide(cost)))
    }

    fn build(a: &[f64], b: &[f64], cost: Cow<'a, [f64]>) -> Result<Self, SolveError> {
        check_not_empty("a", "weight", a.len())?;
        check_not_empty("b", "weight", b.len())?;
        check_dimension(
            "cost",
            a.len().saturating_mul(b.len()),
            "weights in `a` times weights in `b`",
            cost.len(),
        )?;
        check_finite("a", a)?;
        check_finite("b", b)?;
        if !cost.par_chunks(1 << 14).all(|c| c.iter().fold(true, |f, v| f & v.is_finite())) {
            check_finite("cost", cost.iter())?;
        }
        for (name, w) in [("a", a), ("b", b)] {
            if let Some(i) = w.iter().position(|v| *v < 0.0) {
                return Err(SolveError::invalid(
                    name,
                    "weights of at least 0",
                    format!("{} at index {i}", w[i]),
                    "remove or shift negative weights",
                ));
            }
        }
        let (sa, sb): (f64, f64) = (a.iter().sum(), b.iter().sum());
        if !(sa > 0.0 && sb > 0.0 && sa.is_finite() && sb.is_finite()) {
            return Err(SolveError::invalid(
                if sa > 0.0 && sa.is_finite() { "b" } else { "a" },
                "a positive, finite total mass",
                format!("sums {sa} and {sb}"),
                "give at least one point mass",
            ));
        }
        if (sa - sb).abs() > SUM_TOLERANCE * sa.max(sb) {
            return Err(SolveError::invalid(
                "b",
                "the same total mass as `a`, or no plan exists",
                format!("sums {sa} and {sb}"),
                "divide each by its sum, or add a point that takes the difference",
            ));
        }
        let shape = (a.len(), b.len());
        let kept = |w: &[f64]| -> Vec<usize> { (0..w.len()).filter(|i| w[*i] > 0.0).collect() };
        let (rows, cols) = (kept(a), kept(b));
        let cost = if (rows.len(), cols.len()) == shape {
            cost
        } else {
            Cow::Owned(
                rows.iter()
                    .flat_map(|i| {
                        let cost = &cost;
                        cols.iter().map(move |j| cost[i * shape.1 + j])
                    })
                    .collect(),
            )
        };
        let a = rows.iter().map(|i| a[*i]).collect();
        let b = cols.iter().map(|j| b[*j] * (sa / sb)).collect();
        Ok(Self { a, b, cost, rows, cols, shape })
    }

    /// Number of points on both sides, those without mass included.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Weights of the rows with mass.
    #[must_use]
    pub fn a(&self) -> &[f64] {
        &self.a
    }

    /// Weights of the columns with mass, scaled to the sum of `a`.
    #[must_use]
    pub fn b(&self) -> &[f64] {
        &self.b
    }

    /// Costs between points with mass: `a().len()` rows of `b().len()`.
    #[must_use]
    pub fn cost(&self) -> &[f64] {
        &self.cost
    }

    /// Rows with mass.
    #[must_use]
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// Columns with mass.
    #[must_use]
    pub fn cols(&self) -> &[usize] {
        &self.cols
    }

    /// Largest minus smallest cost between points with mass.
    #[must_use]
    pub fn cost_range(&self) -> f64 {
        let range = |row: &[f64]| {
            row.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
                (if *v < l { *v } else { l }, if *v > h { *v } else { h })
            })
        };
        let (low, high) = self
            .cost
            .par_chunks(1 << 14)
            .map(range)
            .reduce(|| (f64::INFINITY, f64::NEG_INFINITY), |x, y| (x.0.min(y.0), x.1.max(y.1)));
        high - low
    }

    /// A plan between the points with mass as one between all points.
    pub(crate) fn expand(&self, plan: Vec<f64>) -> Vec<f64> {
        if (self.rows.len(), self.cols.len()) == self.shape {
            return plan;
        }
        let mut out = vec![0.0; self.shape.0 * self.shape.1];
        for (i, row) in self.rows.iter().zip(plan.chunks_exact(self.cols.len())) {
            self.cols.iter().zip(row).for_each(|(j, v)| out[i * self.shape.1 + j] = *v);
        }
        out
    }

    /// Values of the rows (of the columns) with mass, and `fill` at the others.
    pub(crate) fn expand_side(&self, values: &[f64], of_rows: bool, fill: f64) -> Vec<f64> {
        let (kept, n) = if of_rows { (&self.rows, self.shape.0) } else { (&self.cols, self.shape.1) };
        let mut out = vec![fill; n];
        kept.iter().zip(values).for_each(|(i, v)| out[*i] = *v);
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn points_without_mass_drop_out_and_come_back() {
        let c = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let t = Transport::new(&[0.0, 2.0], &[1.0, 0.0, 1.0], &c).unwrap();
        assert_eq!((t.a(), t.b(), t.cost()), (&[2.0][..], &[1.0, 1.0][..], &[4.0, 6.0][..]));
        assert_eq!(t.expand(vec![7.0, 8.0]), [0.0, 0.0, 0.0, 7.0, 0.0, 8.0]);
        assert_eq!(t.expand_side(&[1.0], true, -1.0), [-1.0, 1.0]);
        assert_eq!(t.cost_range(), 2.0);
    }

    #[test]
    fn hostile_input() {
        let (a, b, c) = ([0.5, 0.5], [1.0], [1.0, 2.0]);
        assert!(matches!(
            Transport::new(&a, &b, &c[..1]),
            Err(SolveError::Dimension { argument: "cost", .. })
        ));
        assert!(matches!(Transport::new(&[], &b, &[]), Err(SolveError::Empty { argument: "a", .. })));
        assert!(matches!(Transport::new(&a, &[], &[]), Err(SolveError::Empty { argument: "b", .. })));
        let nan = [f64::NAN; 2];
        assert!(matches!(
            Transport::new(&a, &b, &nan),
            Err(SolveError::NonFinite { argument: "cost", count: 2, .. })
        ));
        let inf = [f64::INFINITY; 2];
        assert!(matches!(Transport::new(&a, &b, &inf), Err(SolveError::NonFinite { argument: "cost", .. })));
        assert!(matches!(Transport::new(&nan, &b, &c), Err(SolveError::NonFinite { argument: "a", .. })));
        assert!(matches!(
            Transport::new(&a, &inf[..1], &c),
            Err(SolveError::NonFinite { argument: "b", .. })
        ));
        for bad in [[1.5, -0.5], [0.0, 0.0], [0.5, 0.6], [1e308, 1e308]] {
            let e = Transport::new(&bad, &b, &c).unwrap_err();
            assert!(matches!(e, SolveError::Invalid { .. }), "{e}");
        }
        let m = faer::Mat::<f64>::zeros(2, 2);
        assert!(matches!(Transport::from_mat(&a, &b, m.as_ref()), Err(SolveError::Dimension { .. })));
        assert!(matches!(Transport::from_mat(&b, &a, m.as_ref()), Err(SolveError::Dimension { .. })));
        let third = [1.0_f32 / 3.0; 3];
        assert!(Transport::from_f32(&third, &[1.0], &third).is_ok());
    }
}
