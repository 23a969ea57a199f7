//! Long causal convolution against one built on rustfft/realfft: `fft_conv [SECONDS [THREADS [PART]]]`.
//!
//! B = 4, H = 64, f32. Ours and a convolution on `realfft` and one on `rustfft` (two rows per transform) are verified against each other and
//! timed in turn, kernel spectra cached in all; PART is `long`, `partial`, `sparse`, `short`, `backward` or absent for all.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use rarefy_kernels::fft_conv::{
    ChunkedConv, DirectConv, FrequencyMask, FrequencySparseConv, Gates, Gradients, LongConv,
};
use rarefy_kernels::{AlignedBuf, cpu_features, peak};
use rayon::prelude::*;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::{Fft, FftPlanner, num_complex::Complex};
use std::sync::Arc;

const BATCH: usize = 4;
const HEADS: usize = 64;
const LENGTHS: [usize; 4] = [1 << 10, 1 << 12, 1 << 14, 1 << 16];

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let seconds: f64 = args.first().map_or(Ok(0.5), |s| s.parse())?;
    let threads: Vec<usize> = args.get(1).map_or(Ok(vec![1, 2]), |t| t.parse().map(|t| vec![t]))?;
    let wanted = |part: &str| args.get(2).is_none_or(|p| p == part);
    println!("{}", cpu_features());
    for threads in threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        pool.install(|| {
            println!("\n{threads} thread(s), multiply-adds in registers {:.0} GF/s", peak::fma_pass());
            if wanted("long") {
                long(threads, seconds)?;
            }
            if wanted("partial") {
                partial(threads, seconds)?;
            }
            if wanted("sparse") {
                sparse(threads, seconds)?;
            }
            if wanted("short") {
                short(threads, seconds)?;
            }
            if wanted("backward") {
                backward(threads, seconds)?;
            }
            Ok::<(), Error>(())
        })?;
    }
    Ok(())
}

/// Median and least milliseconds of each of `runs`, called in turn for about `seconds` in all, at least three times.
fn time(seconds: f64, runs: &mut [&mut dyn FnMut()]) -> Vec<(f64, f64)> {
    let mut times = vec![Vec::new(); runs.len()];
    let start = Instant::now();
    while times[0].len() < 3 || start.elapsed().as_secs_f64() < seconds {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            let start = Instant::now();
            run();
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times
        .into_iter()
        .map(|mut t| {
            t.sort_by(f64::total_cmp);
            (t[t.len() / 2], t[0])
        })
        .collect()
}

/// What one would write on `realfft`: one row at a time, all buffers reused.
struct RealPeer {
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
    spectra: Vec<Complex<f32>>,
    len: usize,
}

impl RealPeer {
    fn new(k: &[f32], len: usize) -> Result<Self, Error> {
        let mut planner = RealFftPlanner::new();
        let (forward, inverse) = (planner.plan_fft_forward(2 * len), planner.plan_fft_inverse(2 * len));
        let mut spectra = vec![Complex::default(); HEADS * (len + 1)];
        for (k, s) in k.chunks(len).zip(spectra.chunks_mut(len + 1)) {
            let mut padded = k.to_vec();
            padded.resize(2 * len, 0.0);
            forward.process(&mut padded, s)?;
            s.iter_mut().for_each(|v| *v /= 2.0 * len as f32);
        }
        Ok(Self { forward, inverse, spectra, len })
    }

    fn run(&self, u: &[f32], y: &mut [f32]) {
        let len = self.len;
        let scratch = self.forward.get_scratch_len().max(self.inverse.get_scratch_len());
        let new =
            || (vec![0.0; 2 * len], vec![Complex::default(); len + 1], vec![Complex::default(); scratch]);
        let rows = y.par_chunks_mut(len).zip(u.par_chunks(len)).enumerate();
        rows.with_min_len(BATCH * HEADS / rayon::current_num_threads()).for_each_init(
            new,
            |(time, freq, scratch), (r, (y, u))| {
                time[..len].copy_from_slice(u);
                time[len..].fill(0.0);
                self.forward.process_with_scratch(time, freq, scratch).expect("lengths fit");
                let k = &self.spectra[r % HEADS * (len + 1)..][..len + 1];
                freq.iter_mut().zip(k).for_each(|(f, k)| *f *= k);
                freq[0].im = 0.0;
                freq[len].im = 0.0;
                self.inverse.process_with_scratch(freq, time, scratch).expect("lengths fit");
                y.copy_from_slice(&time[..len]);
            },
        );
    }
}

/// What one would write on `rustfft`: two rows of the batch per complex transform.
struct PairPeer {
    forward: Arc<dyn Fft<f32>>,
    inverse: Arc<dyn Fft<f32>>,
    spectra: Vec<Complex<f32>>,
    len: usize,
}

impl PairPeer {
    fn new(k: &[f32], len: usize) -> Self {
        let mut planner = FftPlanner::new();
        let (forward, inverse) = (planner.plan_fft_forward(2 * len), planner.plan_fft_inverse(2 * len));
        let mut spectra = vec![Complex::default(); HEADS * 2 * len];
        for (k, s) in k.chunks(len).zip(spectra.chunks_mut(2 * len)) {
            s.iter_mut().zip(k).for_each(|(s, k)| *s = Complex::new(k / (2 * len) as f32, 0.0));
            forward.process(s);
        }
        Self { forward, inverse, spectra, len }
    }

    fn run(&self, u: &[f32], y: &mut [f32]) {
        let len = self.len;
        let scratch = self.forward.get_inplace_scratch_len().max(self.inverse.get_inplace_scratch_len());
        let new = || (vec![Complex::default(); 2 * len], vec![Complex::default(); scratch]);
        let (upper, lower) = y.split_at_mut(2 * HEADS * len);
        let rows = upper.par_chunks_mut(len).zip(lower.par_chunks_mut(len)).enumerate();
        rows.with_min_len(BATCH / 2 * HEADS / rayon::current_num_threads()).for_each_init(
            new,
            |(z, scratch), (r, (a, b))| {
                let other = &u[(r + 2 * HEADS) * len..][..len];
                for (z, (a, b)) in z.iter_mut().zip(u[r * len..][..len].iter().zip(other)) {
                    *z = Complex::new(*a, *b);
                }
                z[len..].fill(Complex::default());
                self.forward.process_with_scratch(z, scratch);
                z.iter_mut().zip(&self.spectra[r % HEADS * 2 * len..][..2 * len]).for_each(|(z, k)| *z *= k);
                self.inverse.process_with_scratch(z, scratch);
                for (z, (a, b)) in z.iter().zip(a.iter_mut().zip(b)) {
                    (*a, *b) = (z.re, z.im);
                }
            },
        );
    }
}

fn long(threads: usize, seconds: f64) -> Result<(), Error> {
    println!(
        "\nlong, ms (median, best); GF/s by the count 2 · 5/2 · N log2 N of two real transforms, N = 2 L"
    );
    println!(
        "     L            ours         realfft  rustfft, pairs  best peer / ours   GF/s   ns per output"
    );
    for len in LENGTHS {
        let (u, k) = (noise(1, BATCH * HEADS * len), noise(2, HEADS * len));
        let conv = LongConv::new(&k, HEADS, len, len)?;
        let (real, pair) = (RealPeer::new(&k, len)?, PairPeer::new(&k, len));
        let mut scratch = AlignedBuf::zeroed(conv.scratch_len(threads));
        let [mut y, mut a, mut b] = [(); 3].map(|()| AlignedBuf::<f32>::zeroed(u.len()));
        conv.forward(&u, BATCH, Gates::default(), y.as_mut_slice(), scratch.as_mut_slice())?;
        real.run(&u, a.as_mut_slice());
        pair.run(&u, b.as_mut_slice());
        same(y.as_slice(), a.as_slice(), 1e-4)?;
        same(b.as_slice(), a.as_slice(), 1e-4)?;
        exact(&u, &k, len, y.as_slice())?;
        let t = time(
            3.0 * seconds,
            &mut [
                &mut || {
                    let r =
                        conv.forward(&u, BATCH, Gates::default(), y.as_mut_slice(), scratch.as_mut_slice());
                    r.expect("ran before");
                },
                &mut || real.run(&u, a.as_mut_slice()),
                &mut || pair.run(&u, b.as_mut_slice()),
            ],
        );
        let points = 2.0 * len as f64;
        let flops = (BATCH * HEADS) as f64 * 5.0 * points * points.log2();
        println!(
            "{len:>6} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>8.2} {:>8.2} {:>7.1} {:>8.2}",
            t[0].0,
            t[0].1,
            t[1].0,
            t[1].1,
            t[2].0,
            t[2].1,
            t[1].0.min(t[2].0) / t[0].0,
            t[1].1.min(t[2].1) / t[0].1,
            flops / t[0].0 / 1e6,
            t[0].0 * 1e6 / u.len() as f64
        );
    }
    Ok(())
}

fn partial(threads: usize, seconds: f64) -> Result<(), Error> {
    let taps = 1024;
    println!("\npartial, {taps} taps, ms (median, best), bytes of state (spectra, tables, scratch)");
    println!("     L        chunked     ns/out       bytes     whole row       bytes");
    for len in [1 << 12, 1 << 14, 1 << 16, 1 << 18] {
        let heads = 16;
        let (u, k) = (noise(1, heads * len), noise(2, heads * taps));
        let (conv, whole) = (ChunkedConv::new(&k, heads, taps)?, LongConv::new(&k, heads, taps, len)?);
        let mut scratch = vec![0.0; conv.scratch_len(threads).max(whole.scratch_len(threads))];
        let [mut y, mut z] = [(); 2].map(|()| vec![0.0; u.len()]);
        conv.forward(&u, 1, len, Gates::default(), &mut y, &mut scratch)?;
        whole.forward(&u, 1, Gates::default(), &mut z, &mut scratch)?;
        same(&y, &z, 1e-4)?;
        let mut other = scratch.clone();
        let t = time(
            seconds,
            &mut [
                &mut || conv.forward(&u, 1, len, Gates::default(), &mut y, &mut scratch).expect("ran before"),
                &mut || whole.forward(&u, 1, Gates::default(), &mut z, &mut other).expect("ran before"),
            ],
        );
        println!(
            "{len:>6} {:>7.3} {:>7.3} {:>7.2} {:>12} {:>7.3} {:>7.3} {:>11}",
            t[0].0,
            t[0].1,
            t[0].0 * 1e6 / u.len() as f64,
            conv.bytes() + 4 * conv.scratch_len(threads),
            t[1].0,
            t[1].1,
            whole.bytes() + 4 * whole.scratch_len(threads),
        );
    }
    Ok(())
}

fn sparse(threads: usize, seconds: f64) -> Result<(), Error> {
    println!(
        "\nfrequency-sparse, ms (median, best), gain over the dense LongConv and over all frequencies in the same form"
    );
    println!("     L  mask                zeros          ms         dense        gain (best)   own form");
    for len in LENGTHS {
        let (u, k) = (noise(1, BATCH * HEADS * len), noise(2, HEADS * len));
        let radix = FrequencySparseConv::radix(len)?;
        let dense = LongConv::new(&k, HEADS, len, len)?;
        let all = FrequencySparseConv::new(&k, HEADS, len, len, FrequencyMask::ALL)?;
        // A quarter of the residues: the lowest on both sides, zero, and the one opposite to zero.
        let low = FrequencyMask::residues_within(radix / 8 - 1, radix).residues;
        let quarter = low | 1 << (radix / 2);
        let masks = [
            ("low 1/2", FrequencyMask::low_pass(4)),
            ("low 1/4", FrequencyMask::low_pass(2)),
            ("low 1/8", FrequencyMask::low_pass(1)),
            ("residues, quarter", FrequencyMask { residues: quarter, ..FrequencyMask::ALL }),
            ("residues, less", FrequencyMask { residues: low, ..FrequencyMask::ALL }),
        ];
        for (name, mask) in masks {
            let conv = FrequencySparseConv::new(&k, HEADS, len, len, mask)?;
            let mut scratch = vec![0.0; conv.scratch_len(threads).max(dense.scratch_len(threads))];
            let [mut y, mut z] = [(); 2].map(|()| vec![0.0; u.len()]);
            masked(
                &u,
                &k,
                len,
                &mask,
                conv.points(),
                radix,
                |y| conv.forward(&u, BATCH, Gates::default(), y, &mut scratch),
                &mut y,
            )?;
            let [mut other, mut third] = [scratch.clone(), scratch.clone()];
            let mut w = z.clone();
            let t = time(
                seconds,
                &mut [
                    &mut || {
                        conv.forward(&u, BATCH, Gates::default(), &mut y, &mut scratch).expect("ran before")
                    },
                    &mut || dense.forward(&u, BATCH, Gates::default(), &mut z, &mut other).expect("fits"),
                    &mut || all.forward(&u, BATCH, Gates::default(), &mut w, &mut third).expect("fits"),
                ],
            );
            println!(
                "{len:>6}  {name:<17} {:>6.1}% {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>6.2} {:>6.2} {:>6.2}",
                100.0 * conv.sparsity(),
                t[0].0,
                t[0].1,
                t[1].0,
                t[1].1,
                t[1].0 / t[0].0,
                t[1].1 / t[0].1,
                t[2].1 / t[0].1
            );
        }
    }
    Ok(())
}

fn short(threads: usize, seconds: f64) -> Result<(), Error> {
    let len = 1 << 14;
    println!("\nshort kernels, L = {len}, ms (best)\n  taps   direct  chunked");
    for taps in [4, 16, 32, 64, 128, 256] {
        let (u, k) = (noise(1, BATCH * HEADS * len), noise(2, HEADS * taps));
        let (direct, chunked) = (DirectConv::new(&k, HEADS, taps)?, ChunkedConv::new(&k, HEADS, taps)?);
        let (mut s, mut t) =
            (vec![0.0; direct.scratch_len(threads)], vec![0.0; chunked.scratch_len(threads)]);
        let [mut y, mut z] = [(); 2].map(|()| vec![0.0; u.len()]);
        direct.forward(&u, BATCH, len, Gates::default(), &mut y, &mut s)?;
        chunked.forward(&u, BATCH, len, Gates::default(), &mut z, &mut t)?;
        same(&y, &z, 1e-4)?;
        let t = time(
            seconds,
            &mut [
                &mut || direct.forward(&u, BATCH, len, Gates::default(), &mut y, &mut s).expect("ran before"),
                &mut || {
                    chunked.forward(&u, BATCH, len, Gates::default(), &mut z, &mut t).expect("ran before")
                },
            ],
        );
        println!("{taps:>6} {:>8.2} {:>8.2}", t[0].1, t[1].1);
    }
    Ok(())
}

fn backward(threads: usize, seconds: f64) -> Result<(), Error> {
    println!("\nforward and backward (du, dk), ms (best)\n     L  forward  backward");
    for len in LENGTHS {
        let (u, k) = (noise(1, BATCH * HEADS * len), noise(2, HEADS * len));
        let dy = noise(3, u.len());
        let conv = LongConv::new(&k, HEADS, len, len)?;
        let [mut s, mut t] =
            [conv.scratch_len(threads), conv.backward_scratch_len(threads)].map(|n| vec![0.0; n]);
        let [mut y, mut du] = [(); 2].map(|()| vec![0.0; u.len()]);
        let mut dk = vec![0.0; k.len()];
        let t = time(
            seconds,
            &mut [
                &mut || conv.forward(&u, BATCH, Gates::default(), &mut y, &mut s).expect("fits"),
                &mut || {
                    let g = Gradients { u: &mut du, kernel: &mut dk, input_gate: None, output_gate: None };
                    conv.backward(&dy, &u, BATCH, Gates::default(), g, &mut t).expect("fits");
                },
            ],
        );
        println!("{len:>6} {:>8.2} {:>9.2}", t[0].1, t[1].1);
    }
    Ok(())
}

/// Verifies a masked convolution of two rows of the first head against rustfft in f64.
#[allow(clippy::too_many_arguments, reason = "one call")]
fn masked(
    u: &[f32],
    k: &[f32],
    len: usize,
    mask: &FrequencyMask,
    points: usize,
    radix: usize,
    mut run: impl FnMut(&mut [f32]) -> Result<(), rarefy_kernels::KernelError>,
    y: &mut [f32],
) -> Result<(), Error> {
    run(y)?;
    let mut planner = FftPlanner::<f64>::new();
    let wide = |x: &[f32]| {
        let mut z: Vec<Complex<f64>> = x.iter().map(|v| Complex::new(f64::from(*v), 0.0)).collect();
        z.resize(points, Complex::default());
        z
    };
    for row in [0, HEADS] {
        let (mut a, mut b) = (wide(&u[row * len..][..len]), wide(&k[..len]));
        planner.plan_fft_forward(points).process(&mut a);
        planner.plan_fft_forward(points).process(&mut b);
        for (f, (a, b)) in a.iter_mut().zip(&b).enumerate() {
            *a = if mask.keeps(f, points, radix) { *a * b / points as f64 } else { Complex::default() };
        }
        planner.plan_fft_inverse(points).process(&mut a);
        let want: Vec<f32> = a[..len].iter().map(|v| v.re as f32).collect();
        same(&y[row * len..][..len], &want, 1e-4)?;
    }
    Ok(())
}

/// Verifies some outputs of the last row against the definition in f64.
fn exact(u: &[f32], k: &[f32], len: usize, y: &[f32]) -> Result<(), Error> {
    let row = BATCH * HEADS - 1;
    let (u, k) = (&u[row * len..], &k[(HEADS - 1) * len..]);
    let n: Vec<usize> = (0..len).step_by(len / 16 + 1).chain([len - 1]).collect();
    let want: Vec<f32> = n
        .iter()
        .map(|n| (0..=*n).map(|j| f64::from(k[j]) * f64::from(u[n - j])).sum::<f64>() as f32)
        .collect();
    let found: Vec<f32> = n.iter().map(|n| y[row * len + n]).collect();
    same(&found, &want, 1e-4)
}

/// An error unless the largest difference is within `tolerance` of the root mean square.
fn same(y: &[f32], want: &[f32], tolerance: f64) -> Result<(), Error> {
    let rms = (want.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    for (i, (y, w)) in y.iter().zip(want).enumerate() {
        let e = (f64::from(*y) - f64::from(*w)).abs() / rms;
        if e.is_nan() || e > tolerance {
            return Err(format!("output {i}: {y} instead of {w}; nothing was timed").into());
        }
    }
    Ok(())
}

/// Deterministic values in (-1, 1).
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            ((s >> 40) as f32 + 0.5) / (1 << 23) as f32 - 1.0
        })
        .collect()
}
