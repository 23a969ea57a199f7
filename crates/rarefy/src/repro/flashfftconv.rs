//! FlashFFTConv: error and time of long convolutions, short kernels over long rows, and spectra with blocks of zeros.

use std::sync::Arc;
use std::time::Instant;

use rarefy_kernels::fft_conv::{ChunkedConv, FrequencyMask, FrequencySparseConv, Gates, LongConv};
use rarefy_prune::synthetic::normal_vec;
use rustfft::num_complex::Complex;
use rustfft::{Fft, FftPlanner};
use serde_json::json;

use super::{Check, Experiment, Outcome, ReproOptions};
use crate::cli::{CliError, memory};
use crate::measure::median;

pub(super) const EXPERIMENT: Experiment = Experiment {
    slug: "flashfftconv",
    summary: "long convolutions: error, time, memory of short kernels, gain of sparse spectra",
    run,
};

const BATCH: usize = 4;

/// Milliseconds on an H100 at batch 64, 768 heads, gated, half precision (README of the reference code): length, PyTorch, theirs.
const PUBLISHED: [(usize, f64, f64); 4] =
    [(1 << 10, 2.30, 0.29), (1 << 12, 9.49, 1.43), (1 << 14, 29.9, 12.2), (1 << 16, f64::NAN, f64::NAN)];

fn run(options: &mut ReproOptions<'_>) -> Result<Outcome, CliError> {
    let mut outcome = Outcome::default();
    // Ratios on one thread are the steadiest.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.map_err(|e| CliError::failed("cannot start a thread", e))?;
    long(options, &pool, &mut outcome)?;
    partial(options, &pool, &mut outcome)?;
    sparse(options, &pool, &mut outcome)?;
    outcome.notes.extend(
        [
            "times are medians, ratios medians over calls side by side, on one thread; \"published\" are ms on an H100 at batch 64 with 768 \
             heads, half precision, gates included, PyTorch first",
            "NOT RUN: the margins over SciPy and PyTorch; bench/ measures them in their own processes",
            "NOT RUN: the classifier of pixel sequences that loses less than a point without its upper half of frequencies, and more \
             with random blocks; convolutional networks cannot be trained here yet",
            "a low-pass gains little or nothing with butterflies: log N becomes log K, and only the innermost codelet is skipped; the \
             published gain is that of dense matrix products, whose work falls in proportion",
        ]
        .map(String::from),
    );
    Ok(outcome)
}

/// Milliseconds of each of `runs` call by call, in turn for about `seconds`, at least five times: entry `i` of all was measured side by
/// side.
fn time(seconds: f64, runs: &mut [&mut (dyn FnMut() + Send)]) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::new(); runs.len()];
    let start = Instant::now();
    while times[0].len() < 5 || start.elapsed().as_secs_f64() < seconds {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run();
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times
}

/// Median of the ratios of calls side by side.
fn ratio(over: &[f64], under: &[f64]) -> f64 {
    median(&mut over.iter().zip(under).map(|(a, b)| a / b).collect::<Vec<_>>())
}

fn at_most(name: String, value: f64, most: f64) -> Check {
    Check { name, required: format!("<= {most}"), measured: format!("{value:.3e}"), passed: value <= most }
}

/// Largest error at some outputs of the last row against the definition in f64, relative to their root mean square.
fn error(u: &[f32], k: &[f32], len: usize, y: &[f32]) -> f64 {
    let (u, k, y) = (&u[u.len() - len..], &k[k.len() - len..], &y[y.len() - len..]);
    let at: Vec<usize> = (0..len).step_by(len / 64 + 1).chain([len - 1]).collect();
    let want: Vec<f64> =
        at.iter().map(|n| (0..=*n).map(|j| f64::from(k[j]) * f64::from(u[n - j])).sum()).collect();
    let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
    let errors = at.iter().zip(&want).map(|(n, w)| (f64::from(y[*n]) - w).abs() / rms);
    errors.fold(0.0, |a, e| if a.is_nan() || e.is_nan() { f64::NAN } else { a.max(e) })
}

fn data(options: &ReproOptions<'_>, rows: usize, len: usize, salt: u64) -> Vec<f32> {
    normal_vec(options.seed.wrapping_mul(8).wrapping_add(salt), rows * len)
}

/// Error, and time beside rustfft.
fn long(
    options: &mut ReproOptions<'_>,
    pool: &rayon::ThreadPool,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    let heads = if options.quick { 16 } else { 64 };
    let seconds = if options.quick { 2.0 } else { 8.0 };
    for (len, pytorch, theirs) in PUBLISHED {
        (options.say)(&format!("long convolution, {len} elements"));
        let (u, k) = (data(options, BATCH * heads, len, 1), data(options, heads, len, 2));
        let conv = LongConv::new(&k, heads, len, len)?;
        let mut peer = Peer::new(&k, heads, len, 2 * len, |_| true);
        let mut scratch = vec![0.0; conv.scratch_len(1)];
        let [mut y, mut z] = [(); 2].map(|()| vec![0.0; u.len()]);
        conv.forward(&u, BATCH, Gates::default(), &mut y, &mut scratch)?;
        let own = error(&u, &k, len, &y);
        outcome.checks.push(at_most(format!("L = {len}: largest relative error"), own, 1e-4));
        let mut failed = None;
        let times = pool.install(|| {
            time(
                seconds,
                &mut [
                    &mut || failed = conv.forward(&u, BATCH, Gates::default(), &mut y, &mut scratch).err(),
                    &mut || peer.run(&u, &mut z),
                ],
            )
        });
        if let Some(e) = failed {
            return Err(e.into());
        }
        let gain = ratio(&times[1], &times[0]);
        outcome.checks.push(Check::at_least(
            format!("speed, L = {len}: time of rustfft over ours"),
            gain,
            1.5,
        ));
        let published = [pytorch, theirs].map(|v| v.is_finite().then_some(v));
        let [mut ours, mut theirs] = [times[0].clone(), times[1].clone()];
        outcome.table.push(json!({
            "experiment": "long convolution", "length": len, "batch": BATCH, "heads": heads,
            "ms": median(&mut ours), "ms rustfft": median(&mut theirs), "relative error": own,
            "published": published,
        }));
    }
    Ok(())
}

fn partial(
    options: &mut ReproOptions<'_>,
    pool: &rayon::ThreadPool,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    let taps = 1024;
    // As many elements in all, so that the caches hold as much of them: only the length differs.
    let (mut times, mut grown) = (Vec::new(), Vec::new());
    for (heads, len) in [(64, 1 << 14), (4, 1 << 18)] {
        (options.say)(&format!("partial convolution, {len} elements"));
        let (k, u) = (data(options, heads, taps, 3), data(options, heads, len, 4));
        let conv = ChunkedConv::new(&k, heads, taps)?;
        let mut y = vec![0.0; u.len()];
        // What a call makes resident beside its input and output, which are touched already.
        y.fill(1.0);
        memory::reset_peak();
        let before = memory::peak_resident();
        let mut scratch = vec![0.0; conv.scratch_len(1)];
        pool.install(|| conv.forward(&u, 1, len, Gates::default(), &mut y, &mut scratch))?;
        grown.extend(before.zip(memory::peak_resident()).map(|(a, b)| b.saturating_sub(a)));
        let mut failed = None;
        let ms = pool.install(|| {
            let mut run = || failed = conv.forward(&u, 1, len, Gates::default(), &mut y, &mut scratch).err();
            time(1.0, &mut [&mut run])
        });
        if let Some(e) = failed {
            return Err(e.into());
        }
        let worst = error(&u, &padded(&k, heads, taps, len), len, &y);
        outcome.checks.push(at_most(format!("{taps} taps, L = {len}: largest relative error"), worst, 1e-4));
        let whole = LongConv::new(&k, heads, taps, len)?;
        let ms = median(&mut ms[0].clone());
        outcome.table.push(json!({
            "experiment": "partial convolution", "length": len, "heads": heads, "taps": taps, "ms": ms,
            "bytes of state": conv.bytes() / heads + 4 * scratch.len(),
            "bytes of the whole row": whole.bytes() / heads + 4 * whole.scratch_len(1),
            "resident bytes beside input and output": grown.last(),
        }));
        times.push(ms);
    }
    match grown[..] {
        // A megabyte is the grain of the allocator; the row itself grew from 64 KiB to 1 MiB, its transform to 4 MiB.
        [short, long] => outcome.checks.push(at_most(
            "16 times the length: bytes more resident".into(),
            long.saturating_sub(short) as f64,
            f64::from(1 << 20),
        )),
        _ => outcome.notes.push("NOT RUN: resident memory, which this system does not tell".into()),
    }
    outcome.checks.push(at_most(
        "speed, 16 times the length: time per element".into(),
        times[1] / times[0],
        1.2,
    ));
    Ok(())
}

/// The kernels with zeros up to `len`.
fn padded(k: &[f32], heads: usize, taps: usize, len: usize) -> Vec<f32> {
    let mut all = vec![0.0; heads * len];
    all.chunks_exact_mut(len).zip(k.chunks_exact(taps)).for_each(|(a, k)| a[..taps].copy_from_slice(k));
    all
}

fn sparse(
    options: &mut ReproOptions<'_>,
    pool: &rayon::ThreadPool,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    let heads = if options.quick { 16 } else { 64 };
    let seconds = if options.quick { 1.0 } else { 4.0 };
    for (len, ..) in PUBLISHED {
        (options.say)(&format!("frequency-sparse convolution, {len} elements"));
        let (u, k) = (data(options, BATCH * heads, len, 5), data(options, heads, len, 6));
        let radix = FrequencySparseConv::radix(len)?;
        let dense = LongConv::new(&k, heads, len, len)?;
        // A quarter of the residues: the lowest on both sides, zero, and the one opposite to zero.
        let low = FrequencyMask::residues_within(radix / 8 - 1, radix).residues;
        let masks = [
            ("residues", FrequencyMask { residues: low | 1 << (radix / 2), ..FrequencyMask::ALL }),
            ("low-pass", FrequencyMask::low_pass(2)),
        ];
        for (name, mask) in masks {
            let conv = FrequencySparseConv::new(&k, heads, len, len, mask)?;
            let points = conv.points();
            let mut a = vec![0.0; conv.scratch_len(1)];
            let mut b = vec![0.0; dense.scratch_len(1)];
            let [mut y, mut z] = [(); 2].map(|()| vec![0.0; u.len()]);
            conv.forward(&u, BATCH, Gates::default(), &mut y, &mut a)?;
            Peer::new(&k, heads, len, points, |f| mask.keeps(f, points, radix)).run(&u, &mut z);
            let label = format!("L = {len}, {name}: difference from the masked full transform");
            outcome.checks.push(at_most(label, difference(&y, &z), 1e-4));
            let mut failed = [None, None];
            let [first, second] = &mut failed;
            let times = pool.install(|| {
                time(
                    seconds,
                    &mut [
                        &mut || *first = conv.forward(&u, BATCH, Gates::default(), &mut y, &mut a).err(),
                        &mut || *second = dense.forward(&u, BATCH, Gates::default(), &mut z, &mut b).err(),
                    ],
                )
            });
            if let Some(e) = failed.into_iter().flatten().next() {
                return Err(e.into());
            }
            let zeros = conv.sparsity();
            let label =
                format!("speed, L = {len}, {name}, {:.0} % zeros: dense time over sparse", 100.0 * zeros);
            outcome.checks.push(Check::at_least(label, ratio(&times[1], &times[0]), 1.25));
            let [mut ours, mut full] = [times[0].clone(), times[1].clone()];
            outcome.table.push(json!({
                "experiment": "frequency-sparse convolution", "mask": name, "zeros": zeros, "length": len,
                "ms": median(&mut ours), "ms dense": median(&mut full),
                "published": "1.3 to 1.4 times at 75 to 79 % zeros",
            }));
        }
    }
    Ok(())
}

/// Largest difference relative to the root mean square of `want`; NaN when one is.
fn difference(found: &[f32], want: &[f32]) -> f64 {
    let rms = (want.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    let errors = found.iter().zip(want).map(|(a, b)| f64::from(a - b).abs() / rms);
    errors.fold(0.0, |a, e| if a.is_nan() || e.is_nan() { f64::NAN } else { a.max(e) })
}

/// What one would write on `rustfft`: two rows of the batch per complex transform, spectra and buffers kept.
struct Peer {
    forward: Arc<dyn Fft<f32>>,
    inverse: Arc<dyn Fft<f32>>,
    spectra: Vec<Complex<f32>>,
    row: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
    heads: usize,
    len: usize,
}

impl Peer {
    /// With the frequencies of `keeps` only, of `points`; these must be symmetric.
    fn new(k: &[f32], heads: usize, len: usize, points: usize, keeps: impl Fn(usize) -> bool) -> Self {
        let mut planner = FftPlanner::new();
        let (forward, inverse) = (planner.plan_fft_forward(points), planner.plan_fft_inverse(points));
        let mut spectra = vec![Complex::default(); heads * points];
        for (k, s) in k.chunks_exact(len).zip(spectra.chunks_exact_mut(points)) {
            s.iter_mut().zip(k).for_each(|(s, k)| *s = Complex::new(k / points as f32, 0.0));
            forward.process(s);
            s.iter_mut().enumerate().filter(|(f, _)| !keeps(*f)).for_each(|(_, s)| *s = Complex::default());
        }
        let scratch = forward.get_inplace_scratch_len().max(inverse.get_inplace_scratch_len());
        let (row, scratch) = (vec![Complex::default(); points], vec![Complex::default(); scratch]);
        Self { forward, inverse, spectra, row, scratch, heads, len }
    }

    /// `u` and `y`: `[BATCH, heads, len]`, `BATCH` even.
    fn run(&mut self, u: &[f32], y: &mut [f32]) {
        let (half, points) = (u.len() / 2, self.row.len());
        let (upper, lower) = y.split_at_mut(half);
        let rows = upper.chunks_exact_mut(self.len).zip(lower.chunks_exact_mut(self.len));
        let sources = u[..half].chunks_exact(self.len).zip(u[half..].chunks_exact(self.len));
        for (r, ((a, b), (ua, ub))) in rows.zip(sources).enumerate() {
            self.row[self.len..].fill(Complex::default());
            self.row.iter_mut().zip(ua.iter().zip(ub)).for_each(|(z, (a, b))| *z = Complex::new(*a, *b));
            self.forward.process_with_scratch(&mut self.row, &mut self.scratch);
            let spectrum = &self.spectra[r % self.heads * points..][..points];
            self.row.iter_mut().zip(spectrum).for_each(|(z, k)| *z *= k);
            self.inverse.process_with_scratch(&mut self.row, &mut self.scratch);
            self.row.iter().zip(a.iter_mut().zip(b)).for_each(|(z, (a, b))| (*a, *b) = (z.re, z.im));
        }
    }
}
