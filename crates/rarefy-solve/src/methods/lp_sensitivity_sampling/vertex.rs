//! Vertices of ℓ1 regression: answers that pass through as many rows as there are columns.

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef};
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::LinOp;
use crate::linalg::pivoted;

/// The rows a vertex passes through.
pub(super) struct Vertex {
    basis: Vec<usize>,
}

/// A vertex, looked at.
pub(super) struct State {
    /// It passes through the rows of the basis.
    pub(super) z: Vec<f64>,
    /// `Qz − c` of the moved `c`, 0 at the rows of the basis.
    r: Vec<f64>,
    /// `Qᵀy = 0`: signs of the residual, and what balances them at the rows of the basis.
    pub(super) y: Vec<f64>,
    /// `Q_B⁻¹`.
    inverse: Mat<f64>,
}

/// `c`, each entry moved at random by up to 1e-10 of its typical size: where more rows meet in a point than there are
/// columns, exchanges could run in a circle. Multipliers of the moved problem are those of a point of the same rows.
pub(super) fn moved(c: &[f64]) -> Vec<f64> {
    let mut sizes: Vec<f64> = c.iter().map(|c| c.abs()).filter(|c| *c > 0.0).collect();
    if sizes.is_empty() {
        return c.to_vec();
    }
    let middle = sizes.len() / 2;
    let typical = *sizes.select_nth_unstable_by(middle, f64::total_cmp).1;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    c.iter().map(|c| c + 1e-10 * typical * rng.random_range(-1.0..1.0)).collect()
}

impl Vertex {
    /// Through independent rows of small residual.
    pub(super) fn near(q: MatRef<'_, f64>, r: &[f64]) -> Option<Self> {
        let (n, k) = (q.nrows(), q.ncols());
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_unstable_by(|i, j| r[*i].abs().total_cmp(&r[*j].abs()));
        let mut count = n.min((4 * k).max(32));
        loop {
            let rows = &order[..count];
            let largest = r[rows[count - 1]].abs();
            let weight = |i: usize| if largest > 0.0 { 1.0 / (r[i].abs() / largest).max(1e-6) } else { 1.0 };
            let candidates = Mat::from_fn(k, count, |j, i| weight(rows[i]) * q[(rows[i], j)]);
            let (upper, columns) = pivoted(candidates.as_ref());
            let full =
                k > 0 && upper.nrows() >= k && upper[(k - 1, k - 1)].abs() > 1e-10 * upper[(0, 0)].abs();
            if full || (count == n && k > 0 && upper.nrows() >= k && upper[(k - 1, k - 1)] != 0.0) {
                return Some(Self { basis: columns[..k].iter().map(|i| rows[*i]).collect() });
            }
            if count == n {
                return None;
            }
            count = n.min(4 * count);
        }
    }

    /// The vertex and its multipliers, those for `moved`; `None` when the rows have become dependent.
    pub(super) fn visit(&self, q: MatRef<'_, f64>, c: &[f64], moved: &[f64]) -> Option<State> {
        let (n, k) = (q.nrows(), q.ncols());
        let square = Mat::from_fn(k, k, |i, j| q[(self.basis[i], j)]);
        let inverse = square.partial_piv_lu().solve(&Mat::<f64>::identity(k, k));
        let through = |c: &[f64]| -> Vec<f64> {
            (0..k).map(|j| (0..k).map(|i| inverse[(j, i)] * c[self.basis[i]]).sum()).collect()
        };
        let z = through(c);
        if z.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let mut r = vec![0.0; n];
        q.apply(&through(moved), &mut r);
        r.iter_mut().zip(moved).for_each(|(r, c)| *r -= c);
        self.basis.iter().for_each(|i| r[*i] = 0.0);
        let mut y: Vec<f64> = r.iter().map(|r| if r.abs() > 0.0 { r.signum() } else { 0.0 }).collect();
        let mut g = vec![0.0; k];
        q.apply_t(&y, &mut g);
        for (i, row) in self.basis.iter().enumerate() {
            y[*row] = -(0..k).map(|j| inverse[(j, i)] * g[j]).sum::<f64>();
        }
        Some(State { z, r, y, inverse })
    }
}

/// Frees the row whose multiplier is furthest above 1 and goes down to the lowest point of that line. False
/// when no row wants to leave, or none stops the move.
pub(super) fn leave(q: MatRef<'_, f64>, vertex: &mut Vertex, state: &State) -> bool {
    let k = q.ncols();
    let (mut out, mut worst) = (0, 0.0);
    for (i, row) in vertex.basis.iter().enumerate() {
        if state.y[*row].abs() > worst {
            (out, worst) = (i, state.y[*row].abs());
        }
    }
    if worst <= 1.0 + 1e-12 {
        return false;
    }
    let sign = state.y[vertex.basis[out]].signum();
    let direction: Vec<f64> = (0..k).map(|j| sign * state.inverse[(j, out)]).collect();
    let mut speed = vec![0.0; q.nrows()];
    q.apply(&direction, &mut speed);
    vertex.basis.iter().for_each(|i| speed[*i] = 0.0);
    // Where residuals change their sign, in order.
    let mut stops: Vec<(f64, f64, usize)> = vec![];
    for (i, (v, r)) in speed.iter().zip(&state.r).enumerate() {
        if v.abs() < 1e-13 {
            continue;
        }
        if r.abs() <= 0.0 {
            stops.push((0.0, v.abs(), i));
        } else if r * v < 0.0 {
            stops.push((-r / v, 2.0 * v.abs(), i));
        }
    }
    stops.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut slope = 1.0 - worst;
    for (_, rise, row) in stops {
        slope += rise;
        if slope >= 0.0 {
            vertex.basis[out] = row;
            return true;
        }
    }
    false
}
