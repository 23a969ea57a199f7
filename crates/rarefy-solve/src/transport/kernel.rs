//! The passes over the matrix: each reads it once.
//!
//! Rows are cut into a number of bands that depends on the shape only; column sums are added band by
//! band in order, so that the number of threads does not change a bit.

use rayon::prelude::*;

use super::exp::{ARCH, LANES, exp, fold, max, sum};

/// Entries below which threads cost more than they bring.
const PARALLEL_FROM: usize = 1 << 14;

/// Rows per band: at most 16 bands, rows in fours.
fn band(m: usize, n: usize) -> usize {
    if m * n < PARALLEL_FROM { m.max(1) } else { m.div_ceil(16).next_multiple_of(4) }
}

/// Runs `work(first row, rows, out, column sums) -> value` on each band; returns the sum of the values and
/// adds up the column sums in `columns`. Every other pass may go backwards, so that it meets in the cache what the last
/// one left there.
fn bands<T: Send>(
    matrix: &[f64],
    n: usize,
    out: &mut [T],
    columns: &mut [f64],
    backwards: bool,
    work: impl Fn(usize, &[f64], &mut [T], &mut [f64]) -> f64 + Sync,
) -> f64 {
    let rows = band(out.len(), n);
    columns.fill(0.0);
    if rows >= out.len() {
        return work(0, matrix, out, columns);
    }
    let one = |(b, (out, matrix)): (usize, (&mut [T], &[f64]))| {
        let mut columns = vec![0.0; n];
        let value = work(b * rows, matrix, out, &mut columns);
        (value, columns)
    };
    let each = out.par_chunks_mut(rows).zip(matrix.par_chunks(rows * n)).enumerate();
    let parts: Vec<(f64, Vec<f64>)> = if backwards {
        let mut parts: Vec<_> = each.rev().map(one).collect();
        parts.reverse();
        parts
    } else {
        each.map(one).collect()
    };
    let mut total = 0.0;
    for (value, part) in parts {
        total += value;
        columns.iter_mut().zip(part).for_each(|(c, p)| *c += p);
    }
    total
}

/// `K = exp((f ⊕ g − C)/ε)` for potentials already divided by ε: `K_ij = exp(f_i + g_j − C_ij·inverse)`.
/// Row sums go to `row_sums`, column sums to `columns`.
pub(crate) fn gibbs(
    cost: &[f64],
    inverse: f64,
    f: &[f64],
    g: &[f64],
    plan: &mut [f64],
    row_sums: &mut [f64],
    columns: &mut [f64],
) {
    let n = g.len();
    let rows = band(f.len(), n);
    columns.fill(0.0);
    let parts: Vec<Vec<f64>> = plan
        .par_chunks_mut(rows * n)
        .zip(cost.par_chunks(rows * n))
        .zip(row_sums.par_chunks_mut(rows))
        .zip(f.par_chunks(rows))
        .map(|(((plan, cost), sums), f)| {
            let mut columns = vec![0.0; n];
            ARCH.dispatch(
                #[inline(always)]
                || {
                    let each = plan.chunks_exact_mut(n).zip(cost.chunks_exact(n)).zip(sums).zip(f);
                    for (((plan, cost), s), f) in each {
                        for ((p, c), g) in plan.iter_mut().zip(cost).zip(g) {
                            *p = exp((f + g) - c * inverse);
                        }
                        *s = sum(plan);
                        columns.iter_mut().zip(plan).for_each(|(c, p)| *c += *p);
                    }
                },
            );
            columns
        })
        .collect();
    for part in parts {
        columns.iter_mut().zip(part).for_each(|(c, p)| *c += p);
    }
}

/// `u ← a/(Kv)` and `columns ← Kᵀu` in one pass; returns `Σ |u_old·Kv − a|`, the row error before.
pub(crate) fn scale_both(
    k: &[f64],
    a: &[f64],
    v: &[f64],
    u: &mut [f64],
    columns: &mut [f64],
    backwards: bool,
) -> f64 {
    let n = v.len();
    bands(k, n, u, columns, backwards, |first, k, u, columns| {
        let a = &a[first..first + u.len()];
        ARCH.dispatch(
            #[inline(always)]
            || {
                let mut error = 0.0;
                let mut rows = k.chunks_exact(4 * n);
                let (mut u4, mut a4) = (u.chunks_exact_mut(4), a.chunks_exact(4));
                for ((k, u), a) in (&mut rows).zip(&mut u4).zip(&mut a4) {
                    let (k0, k) = k.split_at(n);
                    let (k1, k) = k.split_at(n);
                    let (k2, k3) = k.split_at(n);
                    let s = dot4(k0, k1, k2, k3, v);
                    for r in 0..4 {
                        error += (u[r] * s[r] - a[r]).abs();
                        u[r] = a[r] / s[r];
                    }
                    let (u0, u1, u2, u3) = (u[0], u[1], u[2], u[3]);
                    for ((((c, k0), k1), k2), k3) in columns.iter_mut().zip(k0).zip(k1).zip(k2).zip(k3) {
                        *c += (u0 * k0 + u1 * k1) + (u2 * k2 + u3 * k3);
                    }
                }
                let rest = rows.remainder().chunks_exact(n);
                for ((k, u), a) in rest.zip(u4.into_remainder()).zip(a4.remainder()) {
                    let s = dot4(k, k, k, k, v)[0];
                    error += (*u * s - a).abs();
                    *u = a / s;
                    columns.iter_mut().zip(k).for_each(|(c, k)| *c += *u * k);
                }
                error
            },
        )
    })
}

#[inline(always)]
fn dot4(k0: &[f64], k1: &[f64], k2: &[f64], k3: &[f64], v: &[f64]) -> [f64; 4] {
    let n = v.len();
    let mut s = [[0.0; LANES]; 4];
    let body = n - n % LANES;
    let chunks = k0[..body]
        .chunks_exact(LANES)
        .zip(k1[..body].chunks_exact(LANES))
        .zip(k2[..body].chunks_exact(LANES))
        .zip(k3[..body].chunks_exact(LANES))
        .zip(v[..body].chunks_exact(LANES));
    for ((((k0, k1), k2), k3), v) in chunks {
        for l in 0..LANES {
            s[0][l] += k0[l] * v[l];
            s[1][l] += k1[l] * v[l];
            s[2][l] += k2[l] * v[l];
            s[3][l] += k3[l] * v[l];
        }
    }
    let mut out = [fold(s[0]), fold(s[1]), fold(s[2]), fold(s[3])];
    for j in body..n {
        out[0] += k0[j] * v[j];
        out[1] += k1[j] * v[j];
        out[2] += k2[j] * v[j];
        out[3] += k3[j] * v[j];
    }
    out
}

/// One iteration in the log domain, one exponential per entry: with `w_ij = g_j − C_ij·inverse`,
/// `f_i ← ln a_i − LSE_j w_ij`, and `columns ← Σ_i exp(f_i + w_ij)` with the new `f`. Returns the row error
/// of the old `f`. A row is shifted by its largest entry, so nothing overflows and no row vanishes;
/// a column sum may still underflow to 0.
pub(crate) fn log_both(
    cost: &[f64],
    inverse: f64,
    a: &[f64],
    g: &[f64],
    f: &mut [f64],
    columns: &mut [f64],
) -> f64 {
    let n = g.len();
    bands(cost, n, f, columns, false, |first, cost, f, columns| {
        let a = &a[first..first + f.len()];
        let mut w = vec![0.0; n];
        let w = &mut w[..];
        ARCH.dispatch(
            #[inline(always)]
            || {
                let mut error = 0.0;
                for ((cost, f), a) in cost.chunks_exact(n).zip(f).zip(a) {
                    for ((w, c), g) in w.iter_mut().zip(cost).zip(g) {
                        *w = g - c * inverse;
                    }
                    let top = max(w);
                    w.iter_mut().for_each(|w| *w = exp(*w - top));
                    let s = sum(w);
                    error += (exp((*f + top).min(700.0)) * s - a).abs();
                    *f = a.ln() - s.ln() - top;
                    let share = a / s;
                    columns.iter_mut().zip(&*w).for_each(|(c, w)| *c += share * w);
                }
                error
            },
        )
    })
}

/// `g_j ← ln b_j − LSE_i(f_i − C_ij·inverse)` without underflow: two passes.
pub(crate) fn log_columns(cost: &[f64], inverse: f64, b: &[f64], f: &[f64], g: &mut [f64]) {
    let n = b.len();
    let mut top = vec![f64::NEG_INFINITY; n];
    for (cost, f) in cost.chunks_exact(n).zip(f) {
        ARCH.dispatch(
            #[inline(always)]
            || {
                for (t, c) in top.iter_mut().zip(cost) {
                    let w = f - c * inverse;
                    *t = if w > *t { w } else { *t };
                }
            },
        );
    }
    let mut f = f.to_vec();
    let mut sums = vec![0.0; n];
    bands(cost, n, &mut f, &mut sums, false, |_, cost, f, columns| {
        ARCH.dispatch(
            #[inline(always)]
            || {
                for (cost, f) in cost.chunks_exact(n).zip(&*f) {
                    for (((s, t), c), _) in columns.iter_mut().zip(&top).zip(cost).zip(b) {
                        *s += exp(f - c * inverse - t);
                    }
                }
                0.0
            },
        )
    });
    for (((g, b), s), t) in g.iter_mut().zip(b).zip(sums).zip(top) {
        *g = b.ln() - s.ln() - t;
    }
}

/// Multiplies row `i` by `u_i` and column `j` by `v_j`; returns the row sums.
pub(crate) fn scale_plan(plan: &mut [f64], u: &[f64], v: &[f64]) -> Vec<f64> {
    let n = v.len();
    plan.par_chunks_mut(n)
        .with_min_len((PARALLEL_FROM / n).max(1))
        .zip(u)
        .map(|(plan, u)| {
            ARCH.dispatch(
                #[inline(always)]
                || {
                    plan.iter_mut().zip(v).for_each(|(p, v)| *p *= u * v);
                    sum(plan)
                },
            )
        })
        .collect()
}

/// `⟨C, P⟩`; the column sums of `P` go to `columns`.
pub(crate) fn totals(plan: &[f64], cost: &[f64], columns: &mut [f64]) -> f64 {
    let n = columns.len();
    let mut rows = vec![0.0; plan.len() / n];
    bands(plan, n, &mut rows, columns, false, |first, plan, _, columns| {
        let cost = &cost[first * n..first * n + plan.len()];
        plan.chunks_exact(n)
            .zip(cost.chunks_exact(n))
            .map(|(p, c)| {
                crate::linop::dense::axpy(1.0, p, columns);
                crate::linop::dense::dot(p, c)
            })
            .sum()
    })
}

/// Smallest entry of each row.
pub(crate) fn row_minima(cost: &[f64], n: usize) -> Vec<f64> {
    cost.par_chunks(n)
        .with_min_len((PARALLEL_FROM / n).max(1))
        .map(|row| {
            ARCH.dispatch(
                #[inline(always)]
                || {
                    let mut lanes = [f64::INFINITY; LANES];
                    let smaller = |a: f64, b: f64| if b < a { b } else { a };
                    let chunks = row.chunks_exact(LANES);
                    let tail = chunks.remainder().iter().copied().fold(f64::INFINITY, smaller);
                    for row in chunks {
                        for l in 0..LANES {
                            lanes[l] = smaller(lanes[l], row[l]);
                        }
                    }
                    lanes.into_iter().fold(tail, smaller)
                },
            )
        })
        .collect()
}
