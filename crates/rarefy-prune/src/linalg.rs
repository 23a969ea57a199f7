//! Dense linear algebra shared by second-order methods.
//!
//! SparseGPT needs the upper factor `U` with `H⁻¹ = UᵀU`. The reference code computes a Cholesky
//! factor, an inverse and a second Cholesky factor. Here: with `J` the reversal of rows and
//! columns, `J H J = L Lᵀ`, so `H = R Rᵀ` with the upper triangular `R = J L J`, and
//! `U = R⁻¹ = J L⁻¹ J`: one Cholesky factorisation and one triangular inverse, `2C³/3`
//! operations, all in f64, which never squares the condition number.

use faer::Spec;
use faer::{
    Accum, MatMut, MatRef, Par,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        cholesky::llt::factor::{LltParams, LltRegularization, cholesky_in_place, cholesky_in_place_scratch},
        matmul::matmul,
        triangular_inverse::invert_lower_triangular,
    },
};
use rayon::prelude::*;

/// Times the damping is raised tenfold before only the diagonal is used.
pub const DAMPING_RETRIES: usize = 3;
/// First relative damping tried after zero damping failed.
const DAMPING_FLOOR: f64 = 1e-4;
/// Below this size threads cost more than they bring.
const PARALLEL_FROM: usize = 256;

/// `U`, upper triangular, with `(H + damping)⁻¹ = UᵀU`, and how it was obtained.
#[derive(Debug, Clone)]
pub struct InverseFactor {
    n: usize,
    /// Column-major; entries below the diagonal are zero.
    u: Vec<f64>,
    /// Inputs with a zero diagonal in `H`; their diagonal was set to 1.
    pub dead: Vec<usize>,
    /// What was added to the diagonal.
    pub damp: f64,
    /// Relative damping that worked.
    pub percdamp: f64,
    /// Whether only the diagonal of `H` was used.
    pub diagonal_only: bool,
}

impl InverseFactor {
    /// Factors `h`, full symmetric `[n, n]`, finite with a non-negative diagonal, after
    /// `h[dead,dead] = 1` and `h += percdamp · mean(diag h) · I`.
    ///
    /// When that is not positive definite the damping is raised tenfold, [`DAMPING_RETRIES`]
    /// times; after that the diagonal alone is used. Both are visible in the fields.
    #[must_use]
    pub fn new(h: &[f64], n: usize, percdamp: f64) -> Self {
        assert_eq!(h.len(), n * n, "the Hessian is checked by its owner");
        let mut diagonal: Vec<f64> = (0..n).map(|c| h[c * n + c]).collect();
        let dead: Vec<usize> = (0..n).filter(|&c| diagonal[c] == 0.0).collect();
        for &c in &dead {
            diagonal[c] = 1.0;
        }
        let mean = diagonal.iter().sum::<f64>() / n.max(1) as f64;
        let mut tried = percdamp;
        for attempt in 0..=DAMPING_RETRIES {
            if attempt > 0 {
                tried = if tried > 0.0 { 10.0 * tried } else { DAMPING_FLOOR };
            }
            let damp = tried * mean;
            if let Some(u) = inverse_upper(h, &diagonal, n, damp) {
                return Self { n, u, dead, damp, percdamp: tried, diagonal_only: false };
            }
        }
        let damp = tried * mean;
        let mut u = vec![0.0; n * n];
        for (c, d) in diagonal.iter().enumerate() {
            u[c * n + c] = 1.0 / (d + damp).sqrt();
        }
        Self { n, u, dead, damp, percdamp: tried, diagonal_only: true }
    }

    /// Number of inputs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are no inputs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// `U[i, j]`.
    #[must_use]
    pub fn get(&self, i: usize, j: usize) -> f64 {
        self.u[j * self.n + i]
    }

    /// `U` as a matrix.
    #[must_use]
    pub fn matrix(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.u, self.n, self.n)
    }

    /// `U[i1..i2, i1..i2]`, row-major and contiguous.
    #[must_use]
    pub fn square_block(&self, i1: usize, i2: usize) -> Vec<f64> {
        let mut block = Vec::with_capacity((i2 - i1) * (i2 - i1));
        for i in i1..i2 {
            block.extend((i1..i2).map(|j| self.get(i, j)));
        }
        block
    }
}

fn par(n: usize) -> Par {
    if n < PARALLEL_FROM { Par::Seq } else { Par::rayon(0) }
}

/// `U` column-major, or nothing when the damped matrix is not positive definite.
fn inverse_upper(h: &[f64], diagonal: &[f64], n: usize, damp: f64) -> Option<Vec<f64>> {
    // J H J of a symmetric matrix is its reversed buffer.
    let mut l: Vec<f64> = h.iter().rev().copied().collect();
    for (c, d) in diagonal.iter().enumerate() {
        let r = n - 1 - c;
        l[r * n + r] = d + damp;
    }
    let params = Spec::<LltParams, f64>::default();
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, par(n), params));
    cholesky_in_place(
        MatMut::from_column_major_slice_mut(&mut l, n, n),
        LltRegularization::default(),
        par(n),
        MemStack::new(&mut memory),
        params,
    )
    .ok()?;
    let mut inverse = vec![0.0; n * n];
    invert_lower_triangular(
        MatMut::from_column_major_slice_mut(&mut inverse, n, n),
        MatRef::from_column_major_slice(&l, n, n),
        par(n),
    );
    drop(l);
    inverse.reverse();
    let sound = (0..n).all(|c| {
        let column = &inverse[c * n..c * n + c + 1];
        column[c] > 0.0 && column.iter().all(|v| v.is_finite())
    });
    sound.then_some(inverse)
}

/// `tr(W H Wᵀ)` for row-major `w [rows, cols]` and symmetric `h [cols, cols]`.
///
/// Half of the products are saved by symmetry: `R C²` operations. Rows are summed in a fixed order.
#[must_use]
pub fn quadratic_trace(w: &[f64], rows: usize, cols: usize, h: &[f64]) -> f64 {
    const ROWS: usize = 64;
    const PANEL: usize = 128;
    assert_eq!((w.len(), h.len()), (rows * cols, cols * cols), "shapes are checked by the caller");
    if rows == 0 || cols == 0 {
        return 0.0;
    }
    let h = MatRef::from_column_major_slice(h, cols, cols);
    let parts: Vec<f64> = w
        .par_chunks(ROWS * cols)
        .with_max_len(1)
        .map_init(Vec::new, |buffer: &mut Vec<f64>, panel| {
            let height = panel.len() / cols;
            let w = MatRef::from_row_major_slice(panel, height, cols);
            let mut total = 0.0;
            for j in (0..cols).step_by(PANEL) {
                let width = PANEL.min(cols - j);
                buffer.resize(height * width, 0.0);
                // Σ_{J'<J} 2·W_J' H_J'J + W_J H_JJ, against W_J.
                for (from, len, weight) in [(0, j, 2.0), (j, width, 1.0)] {
                    if len == 0 {
                        continue;
                    }
                    let product = &mut buffer[..height * width];
                    matmul(
                        MatMut::from_row_major_slice_mut(product, height, width),
                        Accum::Replace,
                        w.subcols(from, len),
                        h.submatrix(from, j, len, width),
                        1.0,
                        Par::Seq,
                    );
                    let dot: f64 = product
                        .chunks_exact(width)
                        .zip(panel.chunks_exact(cols))
                        .map(|(p, row)| p.iter().zip(&row[j..]).map(|(a, b)| a * b).sum::<f64>())
                        .sum();
                    total += weight * dot;
                }
            }
            total
        })
        .collect();
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{LayerStats, Needs, synthetic::normal_vec};

    fn hessian(n: usize, tokens: usize, seed: u64) -> Vec<f64> {
        let x = normal_vec(seed, n * tokens);
        LayerStats::from_inputs(&x, n, 1, Needs::HESSIAN).unwrap().hessian.unwrap()
    }

    /// Inverse by Gauss-Jordan elimination, the slow oracle.
    fn naive_inverse(a: &[f64], n: usize) -> Vec<f64> {
        let mut a = a.to_vec();
        let mut inv = vec![0.0; n * n];
        for i in 0..n {
            inv[i * n + i] = 1.0;
        }
        for p in 0..n {
            let d = a[p * n + p];
            for j in 0..n {
                a[p * n + j] /= d;
                inv[p * n + j] /= d;
            }
            for i in (0..n).filter(|&i| i != p) {
                let f = a[i * n + p];
                for j in 0..n {
                    a[i * n + j] -= f * a[p * n + j];
                    inv[i * n + j] -= f * inv[p * n + j];
                }
            }
        }
        inv
    }

    #[test]
    fn by_hand_two_by_two() {
        // H = [[4, 2], [2, 5]]: H⁻¹ = 1/16 [[5, -2], [-2, 4]]; U[1,1] = 1/√5, U[0,0] = √5/4.
        let f = InverseFactor::new(&[4.0, 2.0, 2.0, 5.0], 2, 0.0);
        let root = 5.0_f64.sqrt();
        assert!((f.get(0, 0) - root / 4.0).abs() < 1e-15);
        assert!((f.get(0, 1) + 1.0 / (2.0 * root)).abs() < 1e-15);
        assert!((f.get(1, 1) - 1.0 / root).abs() < 1e-15);
        assert_eq!(f.get(1, 0), 0.0);
    }

    #[test]
    fn factor_reproduces_the_inverse_and_the_obs_denominators() {
        for n in [1, 2, 3, 17, 40] {
            let mut h = hessian(n, 3 * n + 5, 11);
            let f = InverseFactor::new(&h, n, 0.01);
            for c in 0..n {
                h[c * n + c] += f.damp;
            }
            let inverse = naive_inverse(&h, n);
            let scale = inverse.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            for i in 0..n {
                for j in 0..n {
                    let utu: f64 = (0..n).map(|k| f.get(k, i) * f.get(k, j)).sum();
                    assert!((utu - inverse[i * n + j]).abs() < 1e-12 * scale, "{n} {i} {j}");
                    // U H Uᵀ = I
                    let mut uhu = 0.0;
                    for a in 0..n {
                        for b in 0..n {
                            uhu += f.get(i, a) * h[a * n + b] * f.get(j, b);
                        }
                    }
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((uhu - expected).abs() < 1e-10, "{n} {i} {j} {uhu}");
                }
                // U[i,i]² = inv(H[i:, i:])[0,0]
                let m = n - i;
                let tail: Vec<f64> = (0..m * m).map(|k| h[(i + k / m) * n + i + k % m]).collect();
                let denominator = naive_inverse(&tail, m)[0];
                assert!((f.get(i, i).powi(2) / denominator - 1.0).abs() < 1e-10);
            }
        }
    }

    #[test]
    fn large_factor_is_the_same_on_one_and_two_threads() {
        let n = 300;
        let h = hessian(n, 200, 5);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| InverseFactor::new(&h, n, 0.01))
        };
        let (one, two) = (run(1), run(2));
        assert_eq!(one.u, two.u);
        assert!((0..n).all(|j| (j + 1..n).all(|i| one.get(i, j) == 0.0)));
    }

    #[test]
    fn singular_matrix_without_damping_raises_the_damping() {
        // Rank one: xxᵀ with x = (1, 2, 3).
        let h = [1.0, 2.0, 3.0, 2.0, 4.0, 6.0, 3.0, 6.0, 9.0];
        let f = InverseFactor::new(&h, 3, 0.0);
        assert!(!f.diagonal_only && f.percdamp > 0.0);
    }

    #[test]
    fn indefinite_matrix_falls_back_to_the_diagonal() {
        // Off-diagonal larger than any damping tried (percdamp up to 10).
        let h = [1.0, 100.0, 100.0, 1.0];
        let f = InverseFactor::new(&h, 2, 0.01);
        assert!(f.diagonal_only);
        assert_eq!(f.percdamp, 10.0);
        assert_eq!(f.get(0, 1), 0.0);
        assert!((f.get(0, 0) - 1.0 / 11.0_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn dead_inputs_get_a_unit_diagonal() {
        let h = [2.0, 0.0, 0.0, 0.0];
        let f = InverseFactor::new(&h, 2, 0.1);
        assert_eq!(f.dead, [1]);
        assert!((f.damp - 0.15).abs() < 1e-15);
        assert!((f.get(1, 1) - 1.0 / 1.15_f64.sqrt()).abs() < 1e-14);
    }

    #[test]
    fn quadratic_trace_equals_the_naive_sum() {
        for (rows, cols) in [(1, 1), (3, 5), (70, 131), (65, 300)] {
            let w: Vec<f64> = normal_vec(1, rows * cols).iter().map(|v| f64::from(*v)).collect();
            let h = hessian(cols, cols + 3, 2);
            let mut exact = 0.0;
            for r in 0..rows {
                for i in 0..cols {
                    for j in 0..cols {
                        exact += w[r * cols + i] * h[i * cols + j] * w[r * cols + j];
                    }
                }
            }
            let got = quadratic_trace(&w, rows, cols, &h);
            assert!((got / exact - 1.0).abs() < 1e-10, "{rows} {cols}");
        }
        assert_eq!(quadratic_trace(&[], 0, 3, &[0.0; 9]), 0.0);
    }
}
