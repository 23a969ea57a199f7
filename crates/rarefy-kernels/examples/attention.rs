//! Prints decode attention, dense and double-sparse: `attention [N,N,... [PASSES [KV_HEADS D GROUP]]]`.
//!
//! One token at 1/16 of tokens and 1/16 of channels. Every call has a new query; before every call more than the last-level
//! cache is read from elsewhere, and caches rotate. Verified before timing.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::time::Instant;

use half::bf16;
use rarefy_kernels::attention::{
    DoubleSparse, Grouping, KvCache, LabelCache, LabelKind, Query, attend, attend_double_sparse,
    attend_scratch_len, oracle,
};
use rarefy_kernels::bandwidth::ReadProbe;
use rarefy_kernels::bandwidth::median;
use rarefy_kernels::{RowValue, cpu_features};

type Failure = Box<dyn std::error::Error>;

struct Noise(u64);
impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

struct Shape {
    kv: usize,
    d: usize,
    group: usize,
    passes: usize,
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let lengths = args.first().map_or("8192,32768,131072", |s| s);
    let lengths: Vec<usize> = lengths.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse());
    let shape = Shape { passes: number(1, 9)?, kv: number(2, 8)?, d: number(3, 128)?, group: number(4, 1)? };
    println!("{}", cpu_features());
    println!("{} kv heads, d = {}, {} query heads per kv head", shape.kv, shape.d, shape.group);
    let probe = ReadProbe::new(5 << 28);
    for n in lengths {
        table(n, &shape, &probe, "f32", |v| v)?;
        table(n, &shape, &probe, "bf16", bf16::from_f32)?;
    }
    Ok(())
}

fn table<T: RowValue>(
    n: usize,
    shape: &Shape,
    probe: &ReadProbe,
    name: &str,
    make: impl Fn(f32) -> T,
) -> Result<(), Failure> {
    let Shape { kv, d, group, passes } = *shape;
    let rank = (d / 16).max(1);
    let mut noise = Noise(0x9876_5432_1234_5678);
    let bytes = 2 * n * kv * d * size_of::<T>();
    let copies = (1usize << 30).div_ceil(bytes).clamp(2, 16);
    let kinds = [LabelKind::F32, LabelKind::Bf16, LabelKind::Int8, LabelKind::Int4];
    let channels: Vec<u32> = (0..kv * rank).map(|i| (i % rank * 16 + i / rank) as u32 % d as u32).collect();
    let pool: Vec<T> = (0..1 << 22).map(|_| make(noise.next())).collect();
    let mut caches = Vec::new();
    let mut at = 0;
    for _ in 0..copies {
        let mut cache = KvCache::new(kv, d, n)?;
        let mut labels: Vec<LabelCache> = Vec::new();
        for kind in kinds {
            labels.push(LabelCache::new(kind, kv, d, &channels, n)?);
        }
        for _ in 0..n {
            at = (at + 4093) % (pool.len() - 2 * kv * d);
            let (k, v) = pool[at..at + 2 * kv * d].split_at(kv * d);
            cache.append(k, v)?;
            for l in &mut labels {
                l.append(k)?;
            }
        }
        caches.push((cache, labels));
    }
    let heads = kv * group;
    let scale = 1.0 / (d as f32).sqrt();
    let plan = DoubleSparse { kept: n.div_ceil(16), grouping: Grouping::Summed };
    let scratch_len = attend_scratch_len(&caches[0].0, heads)
        .max(plan.scratch_len(&caches[0].0, &caches[0].1[0], heads))
        .max(DoubleSparse { kept: n, ..plan }.scratch_len(&caches[0].0, &caches[0].1[0], heads));
    let (mut out, mut scratch) = (vec![0.0; heads * d], vec![0.0; scratch_len]);
    verify(&caches[0].0, &caches[0].1[0], heads, scale, &mut noise, &mut scratch)?;

    for threads in [1, 2] {
        let workers = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let labels_of = ["dense", "labels f32", "labels bf16", "labels int8", "labels int4", "per head f32"];
        let mut times = vec![Vec::new(); labels_of.len()];
        let mut reads = Vec::new();
        let mut turn = 0;
        for pass in 0..=passes {
            for k in 0..labels_of.len() {
                let q: Vec<f32> = (0..heads * d).map(|_| noise.next() * 3.0).collect();
                let query = Query { q: &q, heads, scale };
                let (cache, labels) = &caches[turn % copies];
                turn += 1;
                let rate = workers.install(|| probe.read(turn % 4, 4));
                let ms = workers.install(|| {
                    let start = Instant::now();
                    let done = match k {
                        0 => attend(cache, query, &mut out, &mut scratch),
                        5 => {
                            let plan = DoubleSparse { grouping: Grouping::PerHead, ..plan };
                            attend_double_sparse(cache, &labels[0], plan, query, &mut out, &mut scratch)
                        }
                        _ => attend_double_sparse(cache, &labels[k - 1], plan, query, &mut out, &mut scratch),
                    };
                    done.map(|()| start.elapsed().as_secs_f64() * 1e3)
                })?;
                if pass > 0 {
                    times[k].push(ms);
                    reads.push(rate);
                }
            }
        }
        let roof = median(&mut reads);
        println!(
            "\n{name}, n = {n}, kept {}, {rank} channels, {threads} thread(s), {copies} caches of {:.0} MB, read roof {roof:.1} GB/s",
            plan.kept,
            bytes as f64 / 1e6
        );
        println!("{:14} {:>9} {:>8} {:>7} {:>6} {:>8}", "", "ms", "MB", "GB/s", "roof", "speedup");
        let dense = median(&mut times[0].clone());
        for (k, label) in labels_of.iter().enumerate() {
            let read = match k {
                0 => bytes,
                5 => group * (caches[0].1[0].bytes_read() + bytes / 16),
                _ => caches[0].1[k - 1].bytes_read() + bytes / 16,
            };
            let ms = median(&mut times[k]);
            let rate = read as f64 / ms / 1e6;
            println!(
                "{label:14} {ms:>9.3} {:>8.1} {rate:>7.1} {:>5.0}% {:>7.2}x",
                read as f64 / 1e6,
                100.0 * rate / roof,
                dense / ms
            );
        }
    }
    Ok(())
}

/// Dense attention against f64, and all tokens kept against dense.
fn verify<T: RowValue>(
    cache: &KvCache<T>,
    labels: &LabelCache,
    heads: usize,
    scale: f32,
    noise: &mut Noise,
    scratch: &mut [f32],
) -> Result<(), Failure> {
    let (d, n) = (cache.d(), cache.len());
    let q: Vec<f32> = (0..heads * d).map(|_| noise.next()).collect();
    let query = Query { q: &q, heads, scale };
    let (mut dense, mut all) = (vec![0.0; heads * d], vec![0.0; heads * d]);
    attend(cache, query, &mut dense, scratch)?;
    let plan = DoubleSparse { kept: n, grouping: Grouping::Summed };
    attend_double_sparse(cache, labels, plan, query, &mut all, scratch)?;
    if dense != all {
        return Err("keeping every token differs from dense attention".into());
    }
    let floats =
        |v: &[T]| -> Vec<f32> { v.iter().map(|v| rarefy_sparsity::formats::Element::to_f32(*v)).collect() };
    let tokens: Vec<u32> = (0..n as u32).collect();
    let (keys, values) = (floats(cache.keys(0)), floats(cache.values(0)));
    let (want, _) = oracle::attention_f64(&keys, &values, &q[..d], f64::from(scale), &tokens);
    for (found, want) in dense.iter().zip(&want) {
        if (f64::from(*found) - want).abs() > 1e-5 {
            return Err(format!("attention is wrong: {found} for {want}").into());
        }
    }
    Ok(())
}
