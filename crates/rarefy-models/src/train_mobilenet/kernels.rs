//! The arithmetic of the two operations that Burn has no fast gradient for, on plain slices: depthwise convolution, and batch
//! normalisation with its clamp.
//!
//! Activations are `[channels, height · width · batch]` with the images of a batch innermost. So a 1×1 convolution is one product of matrices over
//! the whole batch, statistics are those of a row, and every tap of a depthwise filter is a multiple of one run of `batch` numbers added to
//! another: no strides, no tails. One channel is handled by one thread in one fixed order, so the bits do not depend on the threads.
//!
//! Roofline: a depthwise tap reads and writes 12 bytes for 2 operations, out of the first-level cache as long as three rows of a channel fit in
//! it; normalisation reads a channel twice and writes it once and is bound by memory.

use pulp::Arch;
use rayon::prelude::*;

/// Side of a depthwise filter.
pub(crate) const SIDE: usize = 3;
/// Taps of a depthwise filter.
pub(crate) const TAPS: usize = SIDE * SIDE;
/// Upper end of the clamp (ReLU6).
const TOP: f32 = 6.0;
/// Added to the variance (TensorFlow's MobileNet).
pub(crate) const EPS: f32 = 1e-3;
/// Partial sums that are kept apart.
const LANES: usize = 16;

/// The sizes of a depthwise convolution with padding `SAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planes {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) stride: usize,
    /// Images.
    pub(crate) batch: usize,
}

impl Planes {
    pub(crate) fn out_height(&self) -> usize {
        self.height.div_ceil(self.stride)
    }

    pub(crate) fn out_width(&self) -> usize {
        self.width.div_ceil(self.stride)
    }

    pub(crate) fn input(&self) -> usize {
        self.height * self.width * self.batch
    }

    pub(crate) fn output(&self) -> usize {
        self.out_height() * self.out_width() * self.batch
    }

    /// Calls `each(tap, place of the input, place of the output)` for all that lie inside, in the order of the outputs.
    #[inline(always)]
    fn visit(&self, mut each: impl FnMut(usize, usize, usize)) {
        let before =
            |size: usize| ((size.div_ceil(self.stride) - 1) * self.stride + SIDE).saturating_sub(size) / 2;
        let (top, left) = (before(self.height), before(self.width));
        for oy in 0..self.out_height() {
            for ox in 0..self.out_width() {
                for tap in 0..TAPS {
                    let (y, x) = (oy * self.stride + tap / SIDE, ox * self.stride + tap % SIDE);
                    if y < top || x < left || y - top >= self.height || x - left >= self.width {
                        continue;
                    }
                    each(tap, (y - top) * self.width + x - left, oy * self.out_width() + ox);
                }
            }
        }
    }
}

#[inline(always)]
fn add_multiple(y: &mut [f32], w: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += w * x;
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_runs, a_rest) = a.as_chunks::<LANES>();
    let (b_runs, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_runs.iter().zip(b_runs) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// `y[c] = w[c] * x[c]`: `x [channels, input]`, `w [channels, 9]`, `y [channels, output]`.
pub(crate) fn depthwise(x: &[f32], w: &[f32], planes: Planes, y: &mut [f32]) {
    let (arch, n) = (Arch::new(), planes.batch);
    y.par_chunks_exact_mut(planes.output())
        .zip(x.par_chunks_exact(planes.input()))
        .zip(w.par_chunks_exact(TAPS))
        .for_each(|((y, x), w)| {
            arch.dispatch(
                #[inline(always)]
                || {
                    y.fill(0.0);
                    planes.visit(|tap, from, to| {
                        add_multiple(&mut y[to * n..][..n], w[tap], &x[from * n..][..n])
                    });
                },
            );
        });
}

/// Gradients of [`depthwise`] for the gradient `g` of its output: `dx` as `x`, `dw` as `w`.
pub(crate) fn depthwise_backward(
    g: &[f32],
    x: &[f32],
    w: &[f32],
    planes: Planes,
    (dx, dw): (&mut [f32], &mut [f32]),
) {
    let (arch, n) = (Arch::new(), planes.batch);
    dx.par_chunks_exact_mut(planes.input())
        .zip(dw.par_chunks_exact_mut(TAPS))
        .zip(x.par_chunks_exact(planes.input()))
        .zip(w.par_chunks_exact(TAPS))
        .zip(g.par_chunks_exact(planes.output()))
        .for_each(|((((dx, dw), x), w), g)| {
            arch.dispatch(
                #[inline(always)]
                || {
                    dx.fill(0.0);
                    let mut sums = [0.0f64; TAPS];
                    planes.visit(|tap, at, out| {
                        let (at, g) = (at * n, &g[out * n..][..n]);
                        add_multiple(&mut dx[at..][..n], w[tap], g);
                        sums[tap] += f64::from(dot(&x[at..][..n], g));
                    });
                    for (dw, sum) in dw.iter_mut().zip(sums) {
                        *dw = sum as f32;
                    }
                },
            );
        });
}

/// Mean and variance of each channel over a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f32>,
    /// Biased.
    pub(crate) variance: Vec<f32>,
}

/// Numbers summed in 32 bits before they are added in 64.
const RUN: usize = 1024;

#[inline(always)]
fn moments(x: &[f32]) -> (f64, f64) {
    let mean = x.chunks(RUN).map(|run| f64::from(lanes(run, |v| v))).sum::<f64>() / x.len() as f64;
    let centre = mean as f32;
    let square = x.chunks(RUN).map(|run| f64::from(lanes(run, |v| (v - centre) * (v - centre)))).sum::<f64>();
    (mean, square / x.len() as f64)
}

#[inline(always)]
fn lanes(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (runs, rest) = x.as_chunks::<LANES>();
    for run in runs {
        for (sum, v) in sums.iter_mut().zip(run) {
            *sum += f(*v);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| f(*v)).sum::<f32>()
}

/// `y = min(max(γ (x - mean) / √(variance + ε) + β, 0), 6)` by rows of `x [channels, n]`; returns the statistics.
pub(crate) fn norm_clamp(x: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32]) -> Statistics {
    let (arch, n) = (Arch::new(), x.len() / gamma.len());
    let mut found = vec![(0.0, 0.0); gamma.len()];
    y.par_chunks_exact_mut(n)
        .zip(x.par_chunks_exact(n))
        .zip(found.par_iter_mut())
        .zip(gamma.par_iter().zip(beta))
        .for_each(|(((y, x), found), (gamma, beta))| {
            arch.dispatch(
                #[inline(always)]
                || {
                    let (mean, variance) = moments(x);
                    *found = (mean as f32, variance as f32);
                    let (a, b) = line(*found, *gamma, *beta);
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = (a * x + b).clamp(0.0, TOP);
                    }
                },
            );
        });
    let (mean, variance) = found.into_iter().unzip();
    Statistics { mean, variance }
}

/// Normalisation as `a x + b`.
#[inline(always)]
fn line((mean, variance): (f32, f32), gamma: f32, beta: f32) -> (f32, f32) {
    let a = gamma / (variance + EPS).sqrt();
    (a, beta - a * mean)
}

/// Gradients of [`norm_clamp`] for the gradient `g` of its output: `dx` as `x`; `dgamma`, `dbeta` `[channels]`.
pub(crate) fn norm_clamp_backward(
    g: &[f32],
    x: &[f32],
    (gamma, beta): (&[f32], &[f32]),
    statistics: &Statistics,
    dx: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let (arch, n) = (Arch::new(), x.len() / gamma.len());
    let mut found = vec![(0.0f32, 0.0f32); gamma.len()];
    dx.par_chunks_exact_mut(n)
        .zip(x.par_chunks_exact(n))
        .zip(g.par_chunks_exact(n))
        .zip(found.par_iter_mut())
        .enumerate()
        .for_each(|(c, (((dx, x), g), found))| {
            arch.dispatch(
                #[inline(always)]
                || {
                    let (mean, variance) = (statistics.mean[c], statistics.variance[c]);
                    let (a, b) = line((mean, variance), gamma[c], beta[c]);
                    let inverse = 1.0 / (variance + EPS).sqrt();
                    let (mut sum, mut sum_hat) = (0.0f64, 0.0f64);
                    for ((dx, x), g) in dx.chunks_mut(RUN).zip(x.chunks(RUN)).zip(g.chunks(RUN)) {
                        for ((dx, x), g) in dx.iter_mut().zip(x).zip(g) {
                            let y = a * x + b;
                            // The clamp is flat at and beyond its ends.
                            *dx = if y > 0.0 && y < TOP { *g } else { 0.0 };
                        }
                        sum += f64::from(lanes(dx, |v| v));
                        sum_hat += f64::from(dot(dx, x));
                    }
                    // Σ g (x - mean) / σ from Σ g x.
                    let hat = (sum_hat - f64::from(mean) * sum) * f64::from(inverse);
                    *found = (hat as f32, sum as f32);
                    let (per, per_hat) = ((sum / n as f64) as f32, (hat / n as f64) as f32);
                    for (dx, x) in dx.iter_mut().zip(x) {
                        *dx = a * (*dx - per - (x - mean) * inverse * per_hat);
                    }
                },
            );
        });
    found.into_iter().unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 700.0 - 1.43).collect()
    }

    /// Output at one place, straight from the definition.
    fn naive(x: &[f32], w: &[f32], p: Planes, c: usize, oy: usize, ox: usize, b: usize) -> f64 {
        let pad = |size: usize, out: usize| (((out - 1) * p.stride + 3).saturating_sub(size) / 2) as isize;
        let (top, left) = (pad(p.height, p.out_height()), pad(p.width, p.out_width()));
        let mut sum = 0.0;
        for ky in 0..3isize {
            for kx in 0..3isize {
                let (y, x_) = ((oy * p.stride) as isize + ky - top, (ox * p.stride) as isize + kx - left);
                if (0..p.height as isize).contains(&y) && (0..p.width as isize).contains(&x_) {
                    let at = ((c * p.height + y as usize) * p.width + x_ as usize) * p.batch + b;
                    sum += f64::from(x[at]) * f64::from(w[c * 9 + (ky * 3 + kx) as usize]);
                }
            }
        }
        sum
    }

    #[test]
    fn depthwise_is_its_definition() {
        for (height, width, stride, batch) in
            [(1, 1, 1, 3), (1, 1, 2, 2), (4, 4, 2, 17), (5, 7, 1, 5), (7, 4, 2, 1)]
        {
            let p = Planes { height, width, stride, batch };
            let (x, w) = (numbers(2 * p.input(), 1), numbers(18, 2));
            let mut y = vec![f32::NAN; 2 * p.output()];
            depthwise(&x, &w, p, &mut y);
            for (i, y) in y.iter().enumerate() {
                let (b, rest) = (i % batch, i / batch);
                let (ox, rest) = (rest % p.out_width(), rest / p.out_width());
                let want = naive(&x, &w, p, rest / p.out_height(), rest % p.out_height(), ox, b);
                assert!((f64::from(*y) - want).abs() < 1e-5, "{p:?} {i}: {y} {want}");
            }
        }
    }

    /// Both gradients against differences of `Σ g f`, which is linear in `x` and in `w`: exact but for rounding.
    #[test]
    fn depthwise_gradients_are_differences() {
        for stride in [1, 2] {
            let p = Planes { height: 4, width: 5, stride, batch: 3 };
            let (x, w, g) = (numbers(2 * p.input(), 3), numbers(18, 4), numbers(2 * p.output(), 5));
            let loss = |x: &[f32], w: &[f32]| {
                let mut y = vec![0.0; g.len()];
                depthwise(x, w, p, &mut y);
                y.iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum::<f64>()
            };
            let (mut dx, mut dw) = (vec![f32::NAN; x.len()], vec![f32::NAN; w.len()]);
            depthwise_backward(&g, &x, &w, p, (&mut dx, &mut dw));
            let at = loss(&x, &w);
            for (i, d) in dx.iter().enumerate() {
                let mut moved = x.clone();
                moved[i] += 1.0;
                assert!((loss(&moved, &w) - at - f64::from(*d)).abs() < 1e-3, "x {i}");
            }
            for (i, d) in dw.iter().enumerate() {
                let mut moved = w.clone();
                moved[i] += 1.0;
                assert!((loss(&x, &moved) - at - f64::from(*d)).abs() < 1e-3, "w {i}");
            }
        }
    }

    #[test]
    fn normalisation_and_its_gradients() {
        let n = 2 * RUN + 37;
        let (x, g) = (numbers(2 * n, 6), numbers(2 * n, 7));
        let (gamma, beta) = ([1.3f32, -0.7], [0.4f32, 2.1]);
        let forward = |x: &[f32], gamma: &[f32], beta: &[f32]| {
            let mut y = vec![0.0; x.len()];
            let statistics = norm_clamp(x, gamma, beta, &mut y);
            (y, statistics)
        };
        let (y, s) = forward(&x, &gamma, &beta);
        for c in 0..2 {
            let row: Vec<f64> = x[c * n..][..n].iter().map(|v| f64::from(*v)).collect();
            let mean = row.iter().sum::<f64>() / n as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            assert!(
                (f64::from(s.mean[c]) - mean).abs() < 1e-6
                    && (f64::from(s.variance[c]) - variance).abs() < 1e-5
            );
            for (y, x) in y[c * n..][..n].iter().zip(&row) {
                let z = f64::from(gamma[c]) * (x - mean) / (variance + f64::from(EPS)).sqrt()
                    + f64::from(beta[c]);
                assert!((f64::from(*y) - z.clamp(0.0, 6.0)).abs() < 1e-5);
            }
        }
        let mut dx = vec![f32::NAN; x.len()];
        let (dgamma, dbeta) = norm_clamp_backward(&g, &x, (&gamma, &beta), &s, &mut dx);
        let loss = |x: &[f32], gamma: &[f32], beta: &[f32]| {
            forward(x, gamma, beta).0.iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum::<f64>()
        };
        let step = 1e-2f32;
        let slope = |f: &dyn Fn(f32) -> f64| (f(step) - f(-step)) / (2.0 * f64::from(step));
        for i in [0, 5, n - 1, n, 2 * n - 1] {
            let found = slope(&|h| {
                let mut moved = x.clone();
                moved[i] += h;
                loss(&moved, &gamma, &beta)
            });
            assert!((found - f64::from(dx[i])).abs() < 2e-2, "x {i}: {found} {}", dx[i]);
        }
        for c in 0..2 {
            let moved = |v: [f32; 2], h: f32| {
                let mut v = v;
                v[c] += h;
                v
            };
            let found = slope(&|h| loss(&x, &moved(gamma, h / 10.0), &beta)) * 10.0;
            assert!((found / f64::from(dgamma[c]) - 1.0).abs() < 2e-2, "gamma {c}: {found} {}", dgamma[c]);
            let found = slope(&|h| loss(&x, &gamma, &moved(beta, h / 10.0))) * 10.0;
            assert!((found / f64::from(dbeta[c]) - 1.0).abs() < 2e-2, "beta {c}: {found} {}", dbeta[c]);
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_threads() {
        let p = Planes { height: 8, width: 8, stride: 1, batch: 19 };
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| {
                let (x, w) = (numbers(5 * p.input(), 1), numbers(45, 2));
                let (mut y, mut z) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                depthwise(&x, &w, p, &mut y);
                let s = norm_clamp(&y, &[1.0; 5], &[0.5; 5], &mut z);
                let mut dx = vec![0.0; x.len()];
                let d = norm_clamp_backward(&x, &y, (&[1.0; 5], &[0.5; 5]), &s, &mut dx);
                (z, s, dx, d)
            })
        };
        assert_eq!(run(1), run(2));
    }
}
