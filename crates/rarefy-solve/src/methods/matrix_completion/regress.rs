//! One half-step: for every row of the wanted factor its own small least squares problem.

use rayon::prelude::*;

use super::Mode;
use super::basis::{one_sided_jacobi, orthonormalise};
use super::observed::Slices;
use crate::linop::dense::{axpy, dot};
use crate::sketch::{Osnap, Sketch};
use faer::MatRef;

/// The fixed factor and how to solve.
pub(super) struct HalfStep<'a> {
    /// Orthonormal columns, row-major.
    pub(super) design: &'a [f64],
    pub(super) rank: usize,
    /// Ridge on each component, per unit of weight in the row; infinite for a component without content.
    pub(super) penalty: &'a [f64],
    pub(super) mode: Mode,
    /// Relative accuracy of the approximate solves.
    pub(super) accuracy: f64,
    pub(super) seed: u64,
}

/// What a half-step found.
pub(super) struct Regressed {
    /// Row-major.
    pub(super) factor: Vec<f64>,
    /// Weighted sum of squared residuals.
    pub(super) squares: f64,
    /// `Σ` over rows of weight times `Σ_l penalty_l·z_l²`.
    pub(super) ridge: f64,
    /// Steps of conjugate gradients, over all rows.
    pub(super) steps: usize,
}

#[derive(Default)]
struct Scratch {
    /// Entries by components: `a[l·len + t]`.
    a: Vec<f64>,
    b: Vec<f64>,
    t: Vec<f64>,
    gram: Vec<f64>,
}

/// Preconditioner of a row.
enum Precondition<'a> {
    Diagonal(&'a [f64]),
    /// Upper triangular, column-major.
    Triangular(&'a [f64]),
}

impl HalfStep<'_> {
    /// Solves for all rows of `side`, in parallel.
    pub(super) fn run(&self, side: &Slices) -> Regressed {
        let k = self.rank;
        let mut factor = vec![0.0; side.len() * k];
        let mut parts = vec![(0.0, 0.0, 0_usize); side.len()];
        factor
            .par_chunks_mut(k)
            .zip(&mut parts)
            .enumerate()
            .with_min_len(8)
            .for_each_init(Scratch::default, |scratch, (i, (z, part))| *part = self.row(side, i, z, scratch));
        // In the order of the rows, whoever computed them.
        let add = |s: (f64, f64, usize), p: &(f64, f64, usize)| (s.0 + p.0, s.1 + p.1, s.2 + p.2);
        let (squares, ridge, steps) = parts.iter().fold((0.0, 0.0, 0), add);
        Regressed { factor, squares, ridge, steps }
    }

    fn row(&self, side: &Slices, i: usize, z: &mut [f64], s: &mut Scratch) -> (f64, f64, usize) {
        let (places, values, weights) = side.slice(i);
        let (k, len) = (self.rank, places.len());
        if len == 0 {
            return (0.0, 0.0, 0);
        }
        s.a.resize(k * len, 0.0);
        s.b.clear();
        s.b.extend_from_slice(values);
        s.t.resize(len, 0.0);
        let mut load = len as f64;
        for (t, j) in places.iter().enumerate() {
            let from = &self.design[*j as usize * k..(*j as usize + 1) * k];
            for (l, v) in from.iter().enumerate() {
                s.a[l * len + t] = *v;
            }
        }
        if let Some(w) = weights {
            load = w.iter().sum();
            s.b.iter_mut().zip(w).for_each(|(b, w)| *b *= w.sqrt());
            for a in s.a.chunks_exact_mut(len) {
                a.iter_mut().zip(w).for_each(|(a, w)| *a *= w.sqrt());
            }
        }
        let sketched = 4 * k + 8;
        let steps = match self.mode {
            Mode::Sketched if len > sketched => {
                let r = self.triangle(s, i, sketched, load);
                self.conjugate_gradients(s, z, load, &Precondition::Triangular(&r))
            }
            Mode::Shared if len >= 3 * k => {
                // E AᵀA = load/n·I, since the columns of the whole factor are orthonormal.
                let share = k as f64 / self.design.len() as f64;
                let d: Vec<f64> = self.penalty.iter().map(|p| load * (share + p)).collect();
                self.conjugate_gradients(s, z, load, &Precondition::Diagonal(&d))
            }
            _ => {
                self.direct(s, z, load);
                0
            }
        };
        // The residual, fresh.
        let mut ridge = 0.0;
        s.t.copy_from_slice(&s.b);
        for (l, z) in z.iter().enumerate() {
            if *z != 0.0 {
                axpy(-z, &s.a[l * len..(l + 1) * len], &mut s.t);
                ridge += self.penalty[l] * z * z;
            }
        }
        (dot(&s.t, &s.t), load * ridge, steps)
    }

    /// Normal equations; where they are close to singular the shortest solution, by one-sided Jacobi.
    fn direct(&self, s: &mut Scratch, z: &mut [f64], load: f64) {
        let (k, len) = (self.rank, s.b.len());
        s.gram.resize(k * k, 0.0);
        for (p, z) in z.iter_mut().enumerate() {
            let x = &s.a[p * len..(p + 1) * len];
            for q in 0..=p {
                s.gram[p * k + q] = dot(x, &s.a[q * len..(q + 1) * len]);
            }
            *z = dot(x, &s.b);
        }
        for (p, z) in z.iter_mut().enumerate() {
            if self.penalty[p].is_finite() {
                s.gram[p * k + p] += load * self.penalty[p];
            } else {
                // A component without content stays out.
                (0..p).for_each(|q| s.gram[p * k + q] = 0.0);
                (p + 1..k).for_each(|q| s.gram[q * k + p] = 0.0);
                s.gram[p * k + p] = 1.0;
                *z = 0.0;
            }
        }
        if cholesky(&mut s.gram, k) {
            back_and_forth(&s.gram, k, z);
            return;
        }
        let rows = len + k;
        let mut a = vec![0.0; rows * k];
        for (l, to) in a.chunks_exact_mut(rows).enumerate() {
            if self.penalty[l].is_finite() {
                to[..len].copy_from_slice(&s.a[l * len..(l + 1) * len]);
                to[len + l] = (load * self.penalty[l]).sqrt();
            }
        }
        let v = one_sided_jacobi(&mut a, rows, k);
        let squares: Vec<f64> = a.chunks_exact(rows).map(|w| dot(w, w)).collect();
        let top = squares.iter().fold(0.0_f64, |t, s| t.max(*s));
        z.fill(0.0);
        for (l, (w, square)) in a.chunks_exact(rows).zip(&squares).enumerate() {
            if *square > 1e-24 * top {
                axpy(dot(&w[..len], &s.b) / square, &v[l * k..(l + 1) * k], z);
            }
        }
    }

    /// `R` of the QR factorisation of the sketched rows with the ridge below them.
    fn triangle(&self, s: &Scratch, row: usize, size: usize, load: f64) -> Vec<f64> {
        let (k, len) = (self.rank, s.b.len());
        let mut sketch = vec![0.0; size * k];
        let seed = self.seed ^ (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        if let Ok(osnap) = Osnap::new(len, size, 2, seed) {
            osnap.add_block(0, MatRef::from_column_major_slice(&s.a[..k * len], len, k), &mut sketch);
        }
        let rows = size + k;
        let mut a = vec![0.0; rows * k];
        for (l, to) in a.chunks_exact_mut(rows).enumerate() {
            if self.penalty[l].is_finite() {
                to[..size].copy_from_slice(&sketch[l * size..(l + 1) * size]);
                to[size + l] = (load * self.penalty[l]).sqrt();
            }
        }
        let mut r = orthonormalise(&mut a, rows, k);
        let top = (0..k).fold(0.0_f64, |t, l| t.max(r[l * k + l]));
        let least = if top > 0.0 { 1e-8 * top } else { 1.0 };
        (0..k).for_each(|l| r[l * k + l] = r[l * k + l].max(least));
        r
    }

    /// From 0, until the preconditioned normal residual is `accuracy` times the first one.
    fn conjugate_gradients(&self, s: &mut Scratch, z: &mut [f64], load: f64, by: &Precondition<'_>) -> usize {
        let (k, len) = (self.rank, s.b.len());
        let live: Vec<f64> = self.penalty.iter().map(|p| if p.is_finite() { 1.0 } else { 0.0 }).collect();
        let ridge: Vec<f64> =
            self.penalty.iter().map(|p| if p.is_finite() { load * p } else { 0.0 }).collect();
        z.fill(0.0);
        let mut r: Vec<f64> = (0..k).map(|l| live[l] * dot(&s.a[l * len..(l + 1) * len], &s.b)).collect();
        let mut y = vec![0.0; k];
        by.apply(&r, &mut y);
        let mut p = y.clone();
        let mut q = vec![0.0; k];
        let mut ry = dot(&r, &y);
        let goal = self.accuracy * self.accuracy * ry;
        for step in 0..10 * k + 50 {
            if ry <= goal || ry <= 0.0 || !ry.is_finite() {
                return step;
            }
            s.t.fill(0.0);
            for (l, p) in p.iter().enumerate() {
                axpy(*p, &s.a[l * len..(l + 1) * len], &mut s.t);
            }
            for l in 0..k {
                q[l] = live[l] * (dot(&s.a[l * len..(l + 1) * len], &s.t) + ridge[l] * p[l]);
            }
            let pq = dot(&p, &q);
            if pq <= 0.0 || !pq.is_finite() {
                return step;
            }
            let alpha = ry / pq;
            axpy(alpha, &p, z);
            axpy(-alpha, &q, &mut r);
            by.apply(&r, &mut y);
            let next = dot(&r, &y);
            let beta = next / ry;
            ry = next;
            p.iter_mut().zip(&y).for_each(|(p, y)| *p = y + beta * *p);
        }
        10 * k + 50
    }
}

impl Precondition<'_> {
    fn apply(&self, r: &[f64], y: &mut [f64]) {
        match self {
            Self::Diagonal(d) => y.iter_mut().zip(r).zip(*d).for_each(|((y, r), d)| *y = r / d),
            Self::Triangular(t) => {
                let k = r.len();
                y.copy_from_slice(r);
                for l in 0..k {
                    let sum: f64 = (0..l).map(|i| t[l * k + i] * y[i]).sum();
                    y[l] = (y[l] - sum) / t[l * k + l];
                }
                for l in (0..k).rev() {
                    y[l] /= t[l * k + l];
                    let v = y[l];
                    (0..l).for_each(|i| y[i] -= v * t[l * k + i]);
                }
            }
        }
    }
}

/// Lower triangle by rows, in place; false when a pivot has lost ten digits.
fn cholesky(g: &mut [f64], k: usize) -> bool {
    let top = (0..k).fold(0.0_f64, |t, p| t.max(g[p * k + p]));
    for p in 0..k {
        let (above, row) = g.split_at_mut(p * k);
        for q in 0..p {
            let other = &above[q * k..(q + 1) * k];
            row[q] = (row[q] - dot(&row[..q], &other[..q])) / other[q];
        }
        let pivot = row[p] - dot(&row[..p], &row[..p]);
        if pivot.is_nan() || pivot <= 1e-10 * top {
            return false;
        }
        row[p] = pivot.sqrt();
    }
    true
}

fn back_and_forth(g: &[f64], k: usize, z: &mut [f64]) {
    for p in 0..k {
        z[p] = (z[p] - dot(&g[p * k..p * k + p], &z[..p])) / g[p * k + p];
    }
    for p in (0..k).rev() {
        z[p] /= g[p * k + p];
        let v = z[p];
        axpy(-v, &g[p * k..p * k + p], &mut z[..p]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
    use rand_distr::{Distribution, StandardNormal};

    #[test]
    fn the_sketch_preconditions_well_in_almost_all_rows() {
        for k in [5, 10, 20] {
            let (len, trials) = (30 * k, 100);
            let mut good = 0;
            for trial in 0..trials {
                let mut rng = ChaCha8Rng::seed_from_u64(trial);
                let a: Vec<f64> = (0..len * k).map(|_| StandardNormal.sample(&mut rng)).collect();
                let s = Scratch { a: a.clone(), b: vec![0.0; len], ..Default::default() };
                let penalty = vec![0.0; k];
                let step = HalfStep {
                    design: &[],
                    rank: k,
                    penalty: &penalty,
                    mode: Mode::Sketched,
                    accuracy: 0.1,
                    seed: trial,
                };
                let r = step.triangle(&s, 3, 4 * k + 8, len as f64);
                // A·R⁻¹ by columns: solve R from the left on transposed rows.
                let mut c = a;
                for l in 0..k {
                    let (done, rest) = c.split_at_mut(l * len);
                    for i in 0..l {
                        axpy(-r[l * k + i], &done[i * len..(i + 1) * len], &mut rest[..len]);
                    }
                    rest[..len].iter_mut().for_each(|v| *v /= r[l * k + l]);
                }
                let s = super::super::basis::left_singular(&mut c, len, k);
                if s[0] / s[k - 1] <= 3.0 {
                    good += 1;
                }
            }
            assert!(good * 100 >= 95 * trials, "rank {k}: {good} of {trials}");
        }
    }
}
