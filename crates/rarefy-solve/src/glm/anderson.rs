//! Anderson extrapolation of a sequence of points.

use crate::linop::dense::dot;

/// Points kept: the extrapolation combines their differences.
const DEPTH: usize = 5;

/// The last points of a fixed-point iteration.
#[derive(Default)]
pub(super) struct Anderson {
    points: Vec<Vec<f64>>,
}

impl Anderson {
    /// Adds a point; every sixth time returns the extrapolated one and starts again.
    pub(super) fn push(&mut self, point: Vec<f64>) -> Option<Vec<f64>> {
        self.points.push(point);
        if self.points.len() <= DEPTH {
            return None;
        }
        let points = std::mem::take(&mut self.points);
        let differences: Vec<Vec<f64>> =
            points.windows(2).map(|w| w[1].iter().zip(&w[0]).map(|(a, b)| a - b).collect()).collect();
        let mut m = [[0.0; DEPTH + 1]; DEPTH];
        for i in 0..DEPTH {
            for j in 0..=i {
                m[i][j] = dot(&differences[i], &differences[j]);
                m[j][i] = m[i][j];
            }
        }
        let scale: f64 = (0..DEPTH).map(|i| m[i][i]).sum();
        for (i, row) in m.iter_mut().enumerate() {
            row[i] += 1e-12 * scale;
            row[DEPTH] = 1.0;
        }
        let z = gauss(m)?;
        let sum: f64 = z.iter().sum();
        if !(sum.is_finite() && sum.abs() > 0.0) {
            return None;
        }
        let mut out = vec![0.0; points[0].len()];
        for (z, point) in z.iter().zip(&points[1..]) {
            out.iter_mut().zip(point).for_each(|(o, p)| *o += z / sum * p);
        }
        out.iter().all(|v| v.is_finite()).then_some(out)
    }

    pub(super) fn clear(&mut self) {
        self.points.clear();
    }
}

/// Solves a small system with partial pivoting; `None` when it is singular.
fn gauss(mut m: [[f64; DEPTH + 1]; DEPTH]) -> Option<[f64; DEPTH]> {
    for k in 0..DEPTH {
        let pivot = (k..DEPTH).max_by(|a, b| m[*a][k].abs().total_cmp(&m[*b][k].abs()))?;
        m.swap(k, pivot);
        if !(m[k][k].abs() > 0.0 && m[k][k].is_finite()) {
            return None;
        }
        let row = m[k];
        for below in &mut m[k + 1..] {
            let f = below[k] / row[k];
            below.iter_mut().zip(row).skip(k).for_each(|(b, r)| *b -= f * r);
        }
    }
    let mut z = [0.0; DEPTH];
    for k in (0..DEPTH).rev() {
        let known: f64 = (k + 1..DEPTH).map(|j| m[k][j] * z[j]).sum();
        z[k] = (m[k][DEPTH] - known) / m[k][k];
    }
    Some(z)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_iteration_in_four_dimensions_is_solved() {
        // x ← D x + b has the fixed point b/(1 − D).
        let (d, b) = ([0.9, 0.5, -0.7, 0.95], [1.0, 2.0, 3.0, -1.0]);
        let mut x = vec![0.0; 4];
        let mut anderson = Anderson::default();
        let mut found = None;
        for _ in 0..6 {
            found = anderson.push(x.clone());
            x = (0..4).map(|i| d[i] * x[i] + b[i]).collect();
        }
        let found = found.unwrap_or_default();
        for i in 0..4 {
            let want = b[i] / (1.0 - d[i]);
            assert!((found[i] - want).abs() < 1e-3 * want.abs(), "{found:?}");
        }
    }
}
