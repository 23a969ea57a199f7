//! Prints row skipping against the dense MLP: `row_skip [D D_FF PASSES [THREADS]]`.
//!
//! Weights rotate over copies of more than 1.25 GiB; every call gets a new `x` and so new flags; results are verified before timing.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::time::Instant;

use half::bf16;
use rarefy_kernels::bandwidth::ReadProbe;
use rarefy_kernels::bandwidth::median;
use rarefy_kernels::row_skip::{Activation, Activity, GatedMlp, SkipLinear};
use rarefy_kernels::{RowValue, cpu_features};

type Failure = Box<dyn std::error::Error>;

const TOTAL: usize = 5 << 28;

struct Noise(u64);
impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    fn vec<T>(&mut self, len: usize, f: impl Fn(f32) -> T) -> Vec<T> {
        (0..len).map(|_| f(self.next())).collect()
    }
}

fn main() -> Result<(), Failure> {
    let args: Vec<usize> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let arg = |i: usize, default| args.get(i).copied().unwrap_or(default);
    let (d, d_ff, passes) = (arg(0, 2048), arg(1, 5632), arg(2, 21));
    let threads = args.get(3).map_or(vec![1, 2], |t| vec![*t]);
    println!("{}\nd = {d}, d_ff = {d_ff}, {passes} passes", cpu_features());
    let probe = ReadProbe::new(TOTAL);
    mlp::<f32>("f32", d, d_ff, passes, &threads, &probe, |v| v)?;
    mlp::<bf16>("bf16", d, d_ff, passes, &threads, &probe, bf16::from_f32)
}

fn mlp<T: RowValue>(
    name: &str,
    d: usize,
    d_ff: usize,
    passes: usize,
    threads: &[usize],
    probe: &ReadProbe,
    make: impl Fn(f32) -> T + Copy,
) -> Result<(), Failure> {
    let mut noise = Noise(0x1234_5678_9abc_def1);
    let weights = 3 * d * d_ff;
    let bytes = weights * size_of::<T>();
    let copies = TOTAL.div_ceil(bytes).max(2);
    eprintln!("making {copies} copies of {:.0} MB", bytes as f64 / 1e6);
    // The rows of a copy are a rotation of the same random numbers: cheap to make, as costly to read.
    let pool = noise.vec(d_ff * d * 3 + 4099 * copies, |v| make(v * (3.0 / d as f32).sqrt()));
    let part = |c: usize, k: usize| &pool[c * 4099 + k * d_ff * d..][..d_ff * d];
    let models: Vec<GatedMlp<T>> = (0..copies)
        .map(|c| GatedMlp::from_rows(part(c, 0), part(c, 1), part(c, 2), d, d_ff, d))
        .collect::<Result<_, _>>()?;
    let second: Vec<SkipLinear<T>> = (0..TOTAL.div_ceil(bytes / 3))
        .map(|c| SkipLinear::from_rows(part(c % copies, c % 3), None, d_ff, d))
        .collect::<Result<_, _>>()?;

    // Thresholds from the activations of 64 tokens.
    let xs: Vec<Vec<f32>> = (0..64).map(|_| noise.vec(d, |v| v)).collect();
    let mut gates: Vec<f32> = Vec::new();
    for x in xs.iter().take(8) {
        for row in pool[..d_ff * d].chunks(d) {
            let z: f32 =
                row.iter().zip(x).map(|(w, x)| rarefy_sparsity::formats::Element::to_f32(*w) * x).sum();
            gates.push(rarefy_kernels::row_skip::silu(z).abs());
        }
    }
    gates.sort_by(f32::total_cmp);
    let cut = |k: f64| gates[((gates.len() - 1) as f64 * k) as usize];

    // Verified before timing: skipping at t equals the dense model with the idle gate rows set to zero.
    verify(&pool, d, d_ff, cut(0.7), &xs[0])?;

    for &threads in threads {
        let workers = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let mut scratch = vec![0.0; models[0].scratch_len(4)];
        let mut y = vec![0.0; 4 * d];
        for n in [1, 4] {
            let rules = [
                ("dense", Activity::All),
                ("CATS 50 %", Activity::GateAbove(cut(0.5))),
                ("CATS 70 %", Activity::GateAbove(cut(0.7))),
                ("CATS 90 %", Activity::GateAbove(cut(0.9))),
            ];
            let mut times = vec![Vec::new(); rules.len()];
            let mut rows = vec![0usize; rules.len()];
            let mut reads = Vec::new();
            let mut turn = 0;
            for pass in 0..=passes {
                let read = workers.install(|| probe.read(pass % 4, 4));
                for (k, (_, rule)) in rules.iter().enumerate() {
                    let x: Vec<f32> = (0..n).flat_map(|_| noise.vec(d, |v| v)).collect();
                    let model = &models[turn % copies];
                    turn += 1;
                    let (ms, found) = workers.install(|| {
                        let start = Instant::now();
                        let found =
                            model.forward(Activation::Silu, *rule, &x, n, &mut y[..n * d], &mut scratch);
                        found.map(|f| (start.elapsed().as_secs_f64() * 1e3, f))
                    })?;
                    if pass > 0 {
                        times[k].push(ms);
                        rows[k] += found;
                    }
                }
                if pass > 0 {
                    reads.push(read);
                }
            }
            let roof = median(&mut reads);
            println!(
                "\n{name} gated MLP, n = {n}, {threads} thread(s), {copies} copies, read roof {roof:.1} GB/s"
            );
            println!(
                "{:10} {:>8} {:>9} {:>7} {:>6} {:>8}",
                "rule", "active", "ms", "GB/s", "roof", "speedup"
            );
            let dense = times[0].clone();
            for (k, (label, _)) in rules.iter().enumerate() {
                let share = rows[k] as f64 / (passes * d_ff) as f64;
                let mut ratios: Vec<f64> = dense.iter().zip(&times[k]).map(|(a, b)| a / b).collect();
                let ms = median(&mut times[k]);
                let rate = bytes as f64 * (1.0 + 2.0 * share) / 3.0 / ms / 1e6;
                println!(
                    "{label:10} {share:>8.3} {ms:>9.3} {rate:>7.1} {:>5.0}% {:>7.2}x",
                    100.0 * rate / roof,
                    median(&mut ratios)
                );
            }
        }

        // The lazy neurons' second layer.
        println!("\n{name} second layer of a ReLU MLP, n = 1, {threads} thread(s), {} copies", second.len());
        println!("{:10} {:>8} {:>9} {:>7} {:>8}", "active", "", "ms", "GB/s", "speedup");
        let mut dense = Vec::new();
        for (label, share) in [("all", 1.0f64), ("10 %", 0.1), ("5 %", 0.05), ("3 %", 0.03)] {
            let mut times = Vec::new();
            for pass in 0..=passes {
                let cut = (2.0 * share - 1.0) as f32;
                let a: Vec<f32> =
                    (0..d_ff).map(|_| if noise.next() < cut { noise.next().abs() } else { 0.0 }).collect();
                let layer = &second[(pass * 7 + (share * 100.0) as usize) % second.len()];
                let ms = workers.install(|| {
                    let start = Instant::now();
                    let done = layer.forward(&a, 1, &mut y[..d], &mut scratch);
                    done.map(|_| start.elapsed().as_secs_f64() * 1e3)
                })?;
                if pass > 0 {
                    times.push(ms);
                }
            }
            let ms = median(&mut times);
            if dense.is_empty() {
                dense.push(ms);
            }
            let rate = bytes as f64 / 3.0 * share / ms / 1e6;
            println!("{label:10} {share:>8.3} {ms:>9.4} {rate:>7.1} {:>7.2}x", dense[0] / ms);
        }
    }
    Ok(())
}

fn verify<T: RowValue>(pool: &[T], d: usize, d_ff: usize, t: f32, x: &[f32]) -> Result<(), Failure> {
    let part = |k: usize| &pool[k * d_ff * d..][..d_ff * d];
    let sparse = GatedMlp::from_rows(part(0), part(1), part(2), d, d_ff, d)?;
    let mut scratch = vec![0.0; sparse.scratch_len(1)];
    let (mut y, mut want) = (vec![0.0; d], vec![0.0; d]);
    let rows = sparse.forward(Activation::Silu, Activity::GateAbove(t), x, 1, &mut y, &mut scratch)?;
    let mut naive = vec![0.0f64; d];
    let number = |v: T| f64::from(rarefy_sparsity::formats::Element::to_f32(v));
    let dot = |w: &[T]| w.iter().zip(x).map(|(w, x)| number(*w) * f64::from(*x)).sum::<f64>();
    for i in 0..d_ff {
        let z = dot(&part(0)[i * d..(i + 1) * d]);
        let v = z / (1.0 + (-z).exp());
        if v.abs() > f64::from(t) {
            let h = v * dot(&part(1)[i * d..(i + 1) * d]);
            naive.iter_mut().zip(&part(2)[i * d..(i + 1) * d]).for_each(|(y, w)| *y += h * number(*w));
        }
    }
    let norm = naive.iter().map(|v| v * v).sum::<f64>().sqrt();
    let error = y.iter().zip(&naive).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt();
    if error > 1e-3 * norm {
        return Err(format!("skipping is wrong: relative error {} with {rows} rows", error / norm).into());
    }
    sparse.forward(Activation::Silu, Activity::GateAbove(0.0), x, 1, &mut y, &mut scratch)?;
    sparse.forward(Activation::Silu, Activity::All, x, 1, &mut want, &mut scratch)?;
    if y != want {
        return Err("threshold zero differs from the dense model".into());
    }
    Ok(())
}
