//! The smooth functions and what block coordinate descent needs to know about them.

use faer::Mat;
use rayon::prelude::*;

use crate::error::{check_dimension, check_finite, check_not_empty};
use crate::linop::dense;
use crate::{Column, Csr, Design, LinOp, SolveError};

/// A smooth function to minimise.
#[derive(Debug, Clone, Copy)]
pub enum BcdProblem<'a> {
    /// `½‖Ax − y‖²`.
    LeastSquares {
        /// Shape n × p.
        a: &'a Design,
        /// Length n.
        y: &'a [f64],
    },
    /// `Σ ln(1 + exp(−yᵢ aᵢᵀx))`.
    Logistic {
        /// Shape n × p.
        a: &'a Design,
        /// Length n, −1 or 1.
        y: &'a [f64],
    },
    /// `Σ [ln Σ_c exp(aᵢᵀx_c) − aᵢᵀx_{label i}]`; coordinate `(feature f, class c)` is `f·classes + c`.
    Softmax {
        /// Shape n × p.
        a: &'a Design,
        /// Length n, below `classes`.
        labels: &'a [usize],
        /// Number of classes, at least 2.
        classes: usize,
    },
    /// `½xᵀQx − bᵀx`, Q symmetric and positive semidefinite.
    Graph {
        /// Shape p × p, symmetric.
        q: &'a Csr,
        /// Length p.
        b: &'a [f64],
    },
}

/// Least squares keep `AᵀA` up to this many features.
const GRAM_LIMIT: usize = 2048;

impl BcdProblem<'_> {
    /// Number of coordinates.
    #[must_use]
    pub fn dim(&self) -> usize {
        match self {
            Self::LeastSquares { a, .. } | Self::Logistic { a, .. } => a.n_cols(),
            Self::Softmax { a, classes, .. } => a.n_cols() * classes,
            Self::Graph { b, .. } => b.len(),
        }
    }

    pub(super) fn check(&self) -> Result<(), SolveError> {
        match self {
            Self::LeastSquares { a, y } | Self::Logistic { a, y } => {
                check_not_empty("a", "row", a.n_rows())?;
                check_dimension("y", a.n_rows(), "rows of a", y.len())?;
                check_finite("y", *y)?;
                a.check_finite()?;
                let is_label = |v: &f64| v.abs().total_cmp(&1.0).is_eq();
                if matches!(self, Self::Logistic { .. }) && !y.iter().all(is_label) {
                    return Err(SolveError::invalid("y", "-1 or 1", "another value", "recode the classes"));
                }
                Ok(())
            }
            Self::Softmax { a, labels, classes } => {
                check_not_empty("a", "row", a.n_rows())?;
                check_dimension("labels", a.n_rows(), "rows of a", labels.len())?;
                a.check_finite()?;
                if *classes < 2 || labels.iter().any(|c| c >= classes) {
                    return Err(SolveError::invalid(
                        "labels",
                        "classes from 0 to classes - 1, at least two classes",
                        format!("{classes} classes, largest label {:?}", labels.iter().max()),
                        "count classes from 0",
                    ));
                }
                Ok(())
            }
            Self::Graph { q, b } => {
                check_not_empty("b", "node", b.len())?;
                check_dimension("q", b.len(), "rows: length of b", q.n_rows())?;
                check_dimension("q", b.len(), "columns: length of b", q.n_cols())?;
                check_finite("b", *b)?;
                let symmetric = (0..b.len()).all(|i| {
                    let (j, v) = q.row(i);
                    j.iter().zip(v).all(|(j, v)| q.get(*j as usize, i).total_cmp(v).is_eq())
                });
                if symmetric {
                    return Ok(());
                }
                Err(SolveError::invalid("q", "a symmetric matrix", "q[i, j] ≠ q[j, i]", "use (q + qᵀ)/2"))
            }
        }
    }
}

/// A point with everything that is kept about it.
pub(super) struct Tracked<'a> {
    pub(super) problem: BcdProblem<'a>,
    pub(super) x: Vec<f64>,
    /// `Ax − y` (least squares), `Ax` (logistic), logits (softmax, row-major), unused (graph).
    z: Vec<f64>,
    pub(super) g: Vec<f64>,
    gram: Option<Mat<f64>>,
    /// Diagonal of the bound H.
    pub(super) lipschitz: Vec<f64>,
    row_sums: Option<Vec<f64>>,
    largest: Option<f64>,
}

impl<'a> Tracked<'a> {
    pub(super) fn new(problem: BcdProblem<'a>, start: &[f64]) -> Self {
        let mut z = match problem {
            BcdProblem::LeastSquares { y, .. } => y.iter().map(|v| -v).collect(),
            BcdProblem::Logistic { y, .. } => vec![0.0; y.len()],
            BcdProblem::Softmax { labels, classes, .. } => vec![0.0; labels.len() * classes],
            BcdProblem::Graph { .. } => vec![],
        };
        let all: Vec<usize> = (0..start.len()).filter(|i| start[*i] != 0.0).collect();
        let values: Vec<f64> = all.iter().map(|i| start[*i]).collect();
        add(&problem, &all, &values, 1.0, &mut z);
        let gram = match problem {
            BcdProblem::LeastSquares { a, .. } if a.n_cols() <= GRAM_LIMIT => {
                let all: Vec<usize> = (0..a.n_cols()).collect();
                Some(gram_block(a, &all))
            }
            _ => None,
        };
        let lipschitz = match problem {
            BcdProblem::LeastSquares { a, .. } => a.column_norms_sq(),
            BcdProblem::Logistic { a, .. } => a.column_norms_sq().iter().map(|v| 0.25 * v).collect(),
            BcdProblem::Softmax { a, classes, .. } => a
                .column_norms_sq()
                .iter()
                .flat_map(|v| std::iter::repeat_n(0.5 * (1.0 - 1.0 / classes as f64) * v, classes))
                .collect(),
            BcdProblem::Graph { q, .. } => (0..q.n_rows()).map(|i| q.get(i, i)).collect(),
        };
        let g = vec![0.0; start.len()];
        let mut this =
            Self { problem, x: start.to_vec(), z, g, gram, lipschitz, row_sums: None, largest: None };
        this.recompute_gradient();
        this
    }

    /// Gradient from its definition.
    pub(super) fn recompute_gradient(&mut self) {
        match self.problem {
            BcdProblem::LeastSquares { a, .. } => a.apply_t(&self.z, &mut self.g),
            BcdProblem::Logistic { a, y } => {
                let slope: Vec<f64> =
                    y.iter().zip(&self.z).map(|(y, z)| -y / (1.0 + (y * z).exp())).collect();
                a.apply_t(&slope, &mut self.g);
            }
            BcdProblem::Softmax { a, labels, classes } => {
                let mut slope = self.z.clone();
                for (row, label) in slope.chunks_exact_mut(classes).zip(labels) {
                    softmax(row);
                    row[*label] -= 1.0;
                }
                let n = labels.len();
                let mut out = vec![0.0; a.n_cols()];
                for c in 0..classes {
                    let one: Vec<f64> = (0..n).map(|i| slope[i * classes + c]).collect();
                    a.apply_t(&one, &mut out);
                    out.iter().enumerate().for_each(|(f, v)| self.g[f * classes + c] = *v);
                }
            }
            BcdProblem::Graph { q, b } => {
                q.apply(&self.x, &mut self.g);
                self.g.iter_mut().zip(b).for_each(|(g, b)| *g -= b);
            }
        }
    }

    /// The gradient after `x[block] += delta`.
    pub(super) fn shift(&mut self, block: &[usize], delta: &[f64]) {
        block.iter().zip(delta).for_each(|(i, d)| self.x[*i] += d);
        add(&self.problem, block, delta, 1.0, &mut self.z);
        match (&self.gram, self.problem) {
            (Some(gram), _) => {
                for (i, d) in block.iter().zip(delta) {
                    dense::axpy(*d, gram.col_as_slice(*i), &mut self.g);
                }
            }
            (None, BcdProblem::Graph { q, .. }) => {
                for (i, d) in block.iter().zip(delta) {
                    let (j, v) = q.row(*i);
                    j.iter().zip(v).for_each(|(j, v)| self.g[*j as usize] += d * v);
                }
            }
            _ => self.recompute_gradient(),
        }
    }

    fn value_of(&self, z: &[f64]) -> f64 {
        match self.problem {
            BcdProblem::LeastSquares { .. } => 0.5 * dense::norm_sq(z),
            BcdProblem::Logistic { y, .. } => {
                y.iter().zip(z).map(|(y, z)| (-(y * z).abs()).exp().ln_1p() + (-y * z).max(0.0)).sum()
            }
            BcdProblem::Softmax { labels, classes, .. } => z
                .chunks_exact(classes)
                .zip(labels)
                .map(|(row, label)| {
                    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    top + row.iter().map(|v| (v - top).exp()).sum::<f64>().ln() - row[*label]
                })
                .sum(),
            // xᵀQx = xᵀ(g + b).
            BcdProblem::Graph { b, .. } => 0.5 * (dense::dot(&self.x, &self.g) - dense::dot(&self.x, b)),
        }
    }

    pub(super) fn value(&self) -> f64 {
        self.value_of(&self.z)
    }

    /// Value after `x[block] += delta`.
    pub(super) fn value_after(&self, block: &[usize], delta: &[f64]) -> f64 {
        if let BcdProblem::Graph { .. } = self.problem {
            let h = self.bound(block);
            let mut change = 0.0;
            for (r, i) in block.iter().enumerate() {
                let row: f64 = delta.iter().enumerate().map(|(c, d)| h[(r, c)] * d).sum();
                change += delta[r] * (self.g[*i] + 0.5 * row);
            }
            return self.value() + change;
        }
        let mut z = self.z.clone();
        add(&self.problem, block, delta, 1.0, &mut z);
        self.value_of(&z)
    }

    /// `H_b`, a bound on the Hessian of the block that holds everywhere.
    pub(super) fn bound(&self, block: &[usize]) -> Mat<f64> {
        let t = block.len();
        match self.problem {
            BcdProblem::LeastSquares { a, .. } => match &self.gram {
                Some(g) => Mat::from_fn(t, t, |r, c| g[(block[r], block[c])]),
                None => gram_block(a, block),
            },
            BcdProblem::Logistic { a, .. } => {
                let g = gram_block(a, block);
                Mat::from_fn(t, t, |r, c| 0.25 * g[(r, c)])
            }
            BcdProblem::Softmax { a, classes, .. } => {
                let features: Vec<usize> = block.iter().map(|i| i / classes).collect();
                let g = gram_block(a, &features);
                Mat::from_fn(t, t, |r, c| {
                    let same = f64::from(u8::from(block[r] % classes == block[c] % classes));
                    0.5 * (same - 1.0 / classes as f64) * g[(r, c)]
                })
            }
            BcdProblem::Graph { q, .. } => Mat::from_fn(t, t, |r, c| q.get(block[r], block[c])),
        }
    }

    /// `∇²_bb f` at the point at hand.
    pub(super) fn hessian(&self, block: &[usize]) -> Mat<f64> {
        let t = block.len();
        match self.problem {
            BcdProblem::Logistic { a, .. } => {
                let v: Vec<f64> = self.z.iter().map(|z| 0.25 / (0.5 * z).cosh().powi(2)).collect();
                weighted_block(a, block, |_, _| &v)
            }
            BcdProblem::Softmax { a, classes, .. } => {
                let n = a.n_rows();
                let mut p = self.z.clone();
                p.chunks_exact_mut(classes).for_each(softmax);
                let features: Vec<usize> = block.iter().map(|i| i / classes).collect();
                Mat::from_fn(t, t, |r, c| {
                    let (cr, cc) = (block[r] % classes, block[c] % classes);
                    let weight: Vec<f64> = (0..n)
                        .map(|i| {
                            let (pr, pc) = (p[i * classes + cr], p[i * classes + cc]);
                            if cr == cc { pr * (1.0 - pr) } else { -pr * pc }
                        })
                        .collect();
                    let mut dense_column = vec![0.0; n];
                    a.column(features[c]).add_to(1.0, &mut dense_column);
                    a.column(features[r]).weighted_dot(&weight, &dense_column)
                })
            }
            _ => self.bound(block),
        }
    }

    /// `Dᵢ = Σⱼ |Hᵢⱼ|`, computed at the first call.
    pub(super) fn row_sums(&mut self) -> &[f64] {
        if self.row_sums.is_none() {
            self.row_sums = Some(match self.problem {
                BcdProblem::LeastSquares { a, .. } => absolute_row_sums(a),
                BcdProblem::Logistic { a, .. } => absolute_row_sums(a).iter().map(|v| 0.25 * v).collect(),
                BcdProblem::Softmax { a, classes, .. } => {
                    // Σ_c' |1[c = c'] − 1/k| = 2(1 − 1/k).
                    let factor = 1.0 - 1.0 / classes as f64;
                    let sums = absolute_row_sums(a);
                    sums.iter().flat_map(|v| std::iter::repeat_n(factor * v, classes)).collect()
                }
                BcdProblem::Graph { q, .. } => (0..q.n_rows()).map(|i| dense::norm_1(q.row(i).1)).collect(),
            });
        }
        self.row_sums.as_deref().unwrap_or_default()
    }

    /// `H d` for the bound over all coordinates.
    pub(super) fn bound_times(&self, d: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; d.len()];
        match self.problem {
            BcdProblem::LeastSquares { a, .. } | BcdProblem::Logistic { a, .. } => {
                let mut z = vec![0.0; a.n_rows()];
                a.apply(d, &mut z);
                a.apply_t(&z, &mut out);
                if matches!(self.problem, BcdProblem::Logistic { .. }) {
                    out.iter_mut().for_each(|v| *v *= 0.25);
                }
            }
            BcdProblem::Softmax { a, classes, .. } => {
                let p = a.n_cols();
                let (mut z, mut w) = (vec![0.0; a.n_rows()], vec![0.0; p]);
                let mut parts = vec![0.0; d.len()];
                for c in 0..classes {
                    let one: Vec<f64> = (0..p).map(|f| d[f * classes + c]).collect();
                    a.apply(&one, &mut z);
                    a.apply_t(&z, &mut w);
                    w.iter().enumerate().for_each(|(f, v)| parts[f * classes + c] = 0.5 * v);
                }
                for (out, parts) in out.chunks_exact_mut(classes).zip(parts.chunks_exact(classes)) {
                    let mean = parts.iter().sum::<f64>() / classes as f64;
                    out.iter_mut().zip(parts).for_each(|(o, v)| *o = v - mean);
                }
            }
            BcdProblem::Graph { q, .. } => q.apply(d, &mut out),
        }
        out
    }

    /// An upper estimate of the largest eigenvalue of H by power iteration, computed at the first call.
    pub(super) fn largest_eigenvalue(&mut self) -> f64 {
        if let Some(v) = self.largest {
            return v;
        }
        let mut d: Vec<f64> = (0..self.x.len()).map(|i| 1.0 + 0.5 * (i as f64).sin()).collect();
        let mut value = 0.0;
        for _ in 0..100 {
            let norm = dense::norm(&d);
            d.iter_mut().for_each(|v| *v /= norm);
            d = self.bound_times(&d);
            value = dense::norm(&d);
            if !(value.is_finite() && value > 0.0) {
                break;
            }
        }
        let value = value * 1.01;
        self.largest = Some(value);
        value
    }

    /// Third-derivative bound of the logistic loss along a block: `Σᵢ ‖a_{i,b}‖³/(6√3)`.
    pub(super) fn third_bound(&self, block: &[usize]) -> f64 {
        let BcdProblem::Logistic { a, y } = self.problem else { return 0.0 };
        let mut squares = vec![0.0; y.len()];
        for j in block {
            match a.column(*j) {
                Column::Dense(c) => squares.iter_mut().zip(c).for_each(|(s, v)| *s += v * v),
                Column::Sparse(i, c) => i.iter().zip(c).for_each(|(i, v)| squares[*i as usize] += v * v),
            }
        }
        squares.iter().map(|s| s.powf(1.5)).sum::<f64>() / (6.0 * 3.0_f64.sqrt())
    }
}

/// `z ← z + t·A x_block`.
fn add(problem: &BcdProblem<'_>, block: &[usize], delta: &[f64], t: f64, z: &mut [f64]) {
    match problem {
        BcdProblem::LeastSquares { a, .. } | BcdProblem::Logistic { a, .. } => {
            block.iter().zip(delta).for_each(|(j, d)| a.column(*j).add_to(t * d, z));
        }
        BcdProblem::Softmax { a, classes, .. } => {
            for (i, d) in block.iter().zip(delta) {
                let c = i % classes;
                match a.column(i / classes) {
                    Column::Dense(v) => {
                        z.iter_mut().skip(c).step_by(*classes).zip(v).for_each(|(z, v)| *z += t * d * v);
                    }
                    Column::Sparse(r, v) => {
                        r.iter().zip(v).for_each(|(r, v)| z[*r as usize * classes + c] += t * d * v);
                    }
                }
            }
        }
        BcdProblem::Graph { .. } => {}
    }
}

fn softmax(row: &mut [f64]) {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|v| *v = (*v - top).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|v| *v /= sum);
}

fn gram_block(a: &Design, block: &[usize]) -> Mat<f64> {
    let ones = vec![1.0; a.n_rows()];
    weighted_block(a, block, |_, _| &ones)
}

/// `A_bᵀ diag(w) A_b`.
fn weighted_block<'w>(
    a: &Design,
    block: &[usize],
    weight: impl Fn(usize, usize) -> &'w [f64] + Sync,
) -> Mat<f64> {
    let n = a.n_rows();
    let rows: Vec<Vec<f64>> = block
        .par_iter()
        .enumerate()
        .with_min_len(16)
        .map(|(r, &j)| {
            let mut column = vec![0.0; n];
            a.column(j).add_to(1.0, &mut column);
            column.iter_mut().zip(weight(r, r)).for_each(|(c, w)| *c *= w);
            block[..=r].iter().map(|k| a.column(*k).dot(&column)).collect()
        })
        .collect();
    Mat::from_fn(block.len(), block.len(), |r, c| rows[r.max(c)][r.min(c)])
}

fn absolute_row_sums(a: &Design) -> Vec<f64> {
    let (n, p) = (a.n_rows(), a.n_cols());
    (0..p)
        .into_par_iter()
        .map_init(
            || vec![0.0; n],
            |column, j| {
                column.fill(0.0);
                a.column(j).add_to(1.0, column);
                (0..p).map(|k| a.column(k).dot(column).abs()).sum()
            },
        )
        .collect()
}
