//! FlashFFTConv: error and time of long convolutions, short kernels over long rows, and spectra with blocks of zeros.

use std::time::Instant;

use rarefy_kernels::fft_conv::{ChunkedConv, FrequencyMask, FrequencySparseConv, Gates, LongConv};
use rarefy_prune::synthetic::normal_vec;
use serde_json::json;

use super::{Check, Experiment, Outcome, ReproOptions};
use crate::cli::CliError;

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
    outcome.notes.push(
        "times are the best of calls in turn on one thread; \"published\" are ms on an H100 with 192 times the rows, half precision, \
         gates included, PyTorch first"
            .into(),
    );
    Ok(outcome)
}

/// Best milliseconds of each of `runs`, in turn for about `seconds`, at least five times.
fn time(seconds: f64, runs: &mut [&mut (dyn FnMut() + Send)]) -> Vec<f64> {
    let mut best = vec![f64::INFINITY; runs.len()];
    let (start, mut passes) = (Instant::now(), 0);
    while passes < 5 || start.elapsed().as_secs_f64() < seconds {
        for (run, best) in runs.iter_mut().zip(&mut best) {
            let start = Instant::now();
            run();
            *best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
        passes += 1;
    }
    best
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
    errors.fold(0.0, |a, e| if e.is_nan() { e } else { a.max(e) })
}

fn data(options: &ReproOptions<'_>, rows: usize, len: usize, salt: u64) -> Vec<f32> {
    normal_vec(options.seed.wrapping_mul(8).wrapping_add(salt), rows * len)
}

/// Error and time; the comparison with rustfft and realfft is the example `fft_conv` of the kernels, so that the product carries neither.
fn long(
    options: &mut ReproOptions<'_>,
    pool: &rayon::ThreadPool,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    let heads = if options.quick { 16 } else { 64 };
    let seconds = if options.quick { 1.0 } else { 6.0 };
    for (len, pytorch, theirs) in PUBLISHED {
        (options.say)(&format!("long convolution, {len} elements"));
        let (u, k) = (data(options, BATCH * heads, len, 1), data(options, heads, len, 2));
        let conv = LongConv::new(&k, heads, len, len)?;
        let mut scratch = vec![0.0; conv.scratch_len(1)];
        let mut y = vec![0.0; u.len()];
        conv.forward(&u, BATCH, Gates::default(), &mut y, &mut scratch)?;
        let own = error(&u, &k, len, &y);
        outcome.checks.push(at_most(format!("L = {len}: largest relative error"), own, 1e-4));
        let mut failed = None;
        let ms = pool.install(|| {
            time(
                seconds,
                &mut [&mut || failed = conv.forward(&u, BATCH, Gates::default(), &mut y, &mut scratch).err()],
            )
        });
        if let Some(e) = failed {
            return Err(e.into());
        }
        let published = [pytorch, theirs].map(|v| v.is_finite().then_some(v));
        outcome.table.push(json!({
            "experiment": "long convolution", "length": len, "batch": BATCH, "heads": heads,
            "ms": ms[0], "relative error": own,
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
    let (heads, taps, short) = (8, 1024, 1 << 14);
    let mut seen = Vec::new();
    let k = data(options, heads, taps, 3);
    for len in [short, 16 * short] {
        (options.say)(&format!("partial convolution, {len} elements"));
        let u = data(options, heads, len, 4);
        let conv = ChunkedConv::new(&k, heads, taps)?;
        let mut scratch = vec![0.0; conv.scratch_len(1)];
        let mut y = vec![0.0; u.len()];
        let mut failed = None;
        let ms = pool.install(|| {
            time(
                1.0,
                &mut [&mut || {
                    failed = conv.forward(&u, 1, len, Gates::default(), &mut y, &mut scratch).err()
                }],
            )
        });
        if let Some(e) = failed {
            return Err(e.into());
        }
        let bytes = conv.bytes() + 4 * scratch.len();
        let whole = LongConv::new(&k, heads, taps, len)?;
        let mut z = vec![0.0; u.len()];
        whole.forward(&u, 1, Gates::default(), &mut z, &mut vec![0.0; whole.scratch_len(1)])?;
        let rms = (z.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / z.len() as f64).sqrt();
        let worst = y.iter().zip(&z).map(|(a, b)| f64::from(a - b).abs()).fold(0.0, f64::max) / rms;
        outcome.checks.push(at_most(
            format!("{taps} taps, L = {len}: chunks against the whole row"),
            worst,
            1e-4,
        ));
        outcome.table.push(json!({
            "experiment": "partial convolution", "length": len, "taps": taps, "ms": ms[0], "bytes": bytes,
            "bytes of the whole row": whole.bytes() + 4 * whole.scratch_len(1),
        }));
        seen.push((ms[0], bytes as f64));
    }
    outcome.checks.push(at_most("16 times the length: bytes".into(), seen[1].1 / seen[0].1, 1.0));
    // Both lengths exceed the windows; what differs is how much of the rows the caches hold.
    outcome.checks.push(at_most(
        "16 times the length: time per element".into(),
        seen[1].0 / seen[0].0 / 16.0,
        1.8,
    ));
    Ok(())
}

fn sparse(
    options: &mut ReproOptions<'_>,
    pool: &rayon::ThreadPool,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    let (heads, len) = (if options.quick { 16 } else { 64 }, 4096);
    (options.say)("frequency-sparse convolution");
    let (u, k) = (data(options, BATCH * heads, len, 5), data(options, heads, len, 6));
    let radix = FrequencySparseConv::radix(len)?;
    let dense = LongConv::new(&k, heads, len, len)?;
    // A quarter of the residues: the lowest on both sides, zero, and the one opposite to zero.
    let low = FrequencyMask::residues_within(radix / 8 - 1, radix).residues;
    let residues = low | 1 << (radix / 2);
    let masks = [
        ("residues", FrequencyMask { residues, ..FrequencyMask::ALL }),
        ("low quarter", FrequencyMask::low_pass(2)),
    ];
    for (name, mask) in masks {
        let conv = FrequencySparseConv::new(&k, heads, len, len, mask)?;
        let mut a = vec![0.0; conv.scratch_len(1)];
        let mut b = vec![0.0; dense.scratch_len(1)];
        let [mut y, mut z] = [(); 2].map(|()| vec![0.0; u.len()]);
        let mut failed = [None, None];
        let [first, second] = &mut failed;
        let ms = pool.install(|| {
            time(
                2.0,
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
        if name == "residues" {
            let label = format!("{:.0} % of frequencies zero: dense time over sparse", 100.0 * zeros);
            outcome.checks.push(Check::at_least(label, ms[1] / ms[0], 1.25));
        }
        outcome.table.push(json!({
            "experiment": "frequency-sparse convolution", "mask": name, "zeros": zeros, "length": len,
            "ms": ms[0], "ms dense": ms[1], "published": "1.3 to 1.4 times at 75 to 79 % zeros",
        }));
    }
    outcome.notes.push(
        "a low-pass gains no time here: what it skips is a part of the innermost codelet; see the method's page".into(),
    );
    Ok(())
}
