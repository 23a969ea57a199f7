//! Our side of `bench/`: one job in, one line of times per pass out. `serve JOB`, JOB a JSON object that `bench/run` writes.
//!
//! Prepares the kernels of the job from raw files in its folder, writes their results there for NumPy to verify, answers with
//! one line, and then runs one pass for each line on standard input, so that the peers' passes can lie between ours. Each
//! kernel is called twice in a pass, on different copies, and the second call is timed: threads are awake by then, as they
//! are within a model.
#![allow(clippy::print_stdout)]

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use half::bf16;
use rarefy_kernels::attention::{
    DoubleSparse, Grouping, KvCache, LabelCache, LabelKind, Query, attend, attend_double_sparse,
    attend_scratch_len,
};
use rarefy_kernels::bandwidth::ReadProbe;
use rarefy_kernels::chw::Layout;
use rarefy_kernels::cnn::{Image, MOBILENET_V1, Network, NetworkSettings, Node, Op, Padding};
use rarefy_kernels::spmm::{DenseConv1x1, Spmm};
use rarefy_kernels::{
    Activations, AlignedBuf, Clamp, Dense, LinearKernel, Panel, Quantised, SparseGroups, cpu_features, peak,
};
use rarefy_sparsity::formats::{BitmaskPanel, DeltaBlock, GroupQuantised, GroupSparse, QuantSettings};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// One call on copy `i`.
type Call = Box<dyn FnMut(usize) -> Result<(), Error> + Send>;

#[derive(Deserialize)]
struct Job {
    op: String,
    dir: String,
    threads: usize,
    /// Timed calls of each kernel in one pass.
    calls: usize,
    /// All copies of all weights together have at least so many bytes.
    min_bytes: usize,
    /// `d_out`, `d_in`, tokens or pixels; for attention heads, channels, tokens; for a network the side of the image.
    shape: Vec<usize>,
    entries: Vec<Wanted>,
}

#[derive(Deserialize, Clone)]
struct Wanted {
    name: String,
    kind: String,
    /// Name of the file with the weights.
    w: String,
    #[serde(default)]
    block: usize,
}

/// A kernel under test.
struct Entry {
    name: String,
    w: String,
    bytes: usize,
    call: Call,
}

fn main() -> Result<(), Error> {
    let job: Job = serde_json::from_str(&std::env::args().nth(1).ok_or("serve JOB")?)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(job.threads).build()?;
    let mut entries = pool.install(|| prepare(&job))?;
    let probe = ReadProbe::new(5 << 28);
    let described: Vec<_> =
        entries.iter().map(|e| json!({"name": e.name, "w": e.w, "bytes": e.bytes})).collect();
    answer(
        &json!({"entries": described, "version": env!("CARGO_PKG_VERSION"), "cpu": cpu_features().to_string()}),
    )?;
    let mut copy = 0;
    for (pass, line) in std::io::stdin().lock().lines().enumerate() {
        line?;
        let mut times = serde_json::Map::new();
        pool.install(|| {
            // As for the kernels, the second read counts.
            probe.read(pass % 4, 4);
            times.insert("read GB/s".into(), json!([probe.read((pass + 1) % 4, 4)]));
            times.insert("registers GF/s".into(), json!([peak::fma_pass()]));
            for entry in &mut entries {
                let mut ms = Vec::new();
                for _ in 0..job.calls {
                    (entry.call)(copy)?;
                    let start = Instant::now();
                    (entry.call)(copy + 1)?;
                    ms.push(start.elapsed().as_secs_f64() * 1e3);
                    copy += 2;
                }
                times.insert(entry.name.clone(), json!(ms));
            }
            Ok::<(), Error>(())
        })?;
        answer(&json!(times))?;
    }
    Ok(())
}

fn answer(value: &serde_json::Value) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

fn read(job: &Job, name: &str) -> Result<Vec<f32>, Error> {
    let bytes = std::fs::read(Path::new(&job.dir).join(format!("{name}.f32")))?;
    Ok(bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
}

fn write(job: &Job, entry: usize, y: &[f32]) -> Result<(), Error> {
    let bytes: Vec<u8> = y.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(std::fs::write(Path::new(&job.dir).join(format!("ours.{entry}.f32")), bytes)?)
}

fn prepare(job: &Job) -> Result<Vec<Entry>, Error> {
    match job.op.as_str() {
        "gemv" => gemv(job),
        "spmm" => spmm(job),
        "attention" => attention(job),
        "mobilenet" => mobilenet(job),
        other => Err(format!("no operation {other}").into()),
    }
}

/// Copy `i` of a weight: its rows turned, so that each copy has its own mask of the same density.
fn turned(w: &[f32], cols: usize, i: usize, block: usize) -> Vec<f32> {
    let rows = w.len() / cols;
    let mut w = w.to_vec();
    w.rotate_left(i * 37 * block % rows * cols);
    w
}

fn linear(wanted: &Wanted, w: &[f32], rows: usize, cols: usize) -> Result<Box<dyn LinearKernel>, Error> {
    let settings = |bits: u32, group| QuantSettings {
        bits,
        ..if bits == 4 { QuantSettings::int4(group) } else { QuantSettings::int8(group) }
    };
    let narrow = || -> Vec<bf16> { w.iter().map(|v| bf16::from_f32(*v)).collect() };
    Ok(match wanted.kind.as_str() {
        "dense f32" => Box::new(Dense::new(w, rows, cols)?),
        "dense bf16" => Box::new(Dense::new(&narrow(), rows, cols)?),
        "panel f32" => Box::new(Panel::new(BitmaskPanel::encode(w, rows, cols)?)),
        "panel bf16" => Box::new(Panel::new(BitmaskPanel::encode(&narrow(), rows, cols)?)),
        "int8" | "int4" => {
            let bits = if wanted.kind == "int8" { 8 } else { 4 };
            let m = GroupQuantised::encode(w, rows, cols, settings(bits, wanted.block))?;
            Box::new(Quantised::new(&m, Activations::Int8)?)
        }
        "groups int4" => {
            let keep: Vec<bool> = w.chunks(wanted.block).map(|g| g.iter().any(|v| *v != 0.0)).collect();
            let m = GroupSparse::encode(w, rows, cols, &keep, settings(4, wanted.block))?;
            Box::new(SparseGroups::new(&m, Activations::Int8)?)
        }
        other => return Err(format!("no kernel {other}").into()),
    })
}

fn gemv(job: &Job) -> Result<Vec<Entry>, Error> {
    let [rows, cols, n] = job.shape[..] else { return Err("shape".into()) };
    let x = read(job, "x")?;
    let mut lists = Vec::new();
    for (i, wanted) in job.entries.iter().enumerate() {
        let kernel = linear(wanted, &read(job, &wanted.w)?, rows, cols)?;
        let mut y = vec![f32::NAN; n * rows];
        kernel.forward(&x, n, &mut y, &mut vec![f32::NAN; kernel.scratch_len(n)])?;
        write(job, i, &y)?;
        lists.push(vec![kernel]);
    }
    let set: usize = lists.iter().map(|l| l[0].bytes()).sum();
    let copies = job.min_bytes.div_ceil(set).max(3);
    let mut entries = Vec::new();
    for (wanted, mut kernels) in job.entries.iter().zip(lists) {
        let w = read(job, &wanted.w)?;
        let more = (1..copies).into_par_iter().map(|i| linear(wanted, &turned(&w, cols, i, 1), rows, cols));
        kernels.extend(more.collect::<Result<Vec<_>, _>>()?);
        let (x, mut y) = (x.clone(), vec![0.0; n * rows]);
        let mut scratch = vec![0.0; kernels[0].scratch_len(n)];
        entries.push(Entry {
            name: wanted.name.clone(),
            w: wanted.w.clone(),
            bytes: kernels[0].bytes(),
            call: Box::new(move |i| Ok(kernels[i % copies].forward(&x, n, &mut y, &mut scratch)?)),
        });
    }
    Ok(entries)
}

fn spmm(job: &Job) -> Result<Vec<Entry>, Error> {
    let [rows, cols, pixels] = job.shape[..] else { return Err("shape".into()) };
    let all = read(job, "x")?;
    let mut entries = Vec::new();
    for (e, wanted) in job.entries.iter().enumerate() {
        let w = read(job, &wanted.w)?;
        // One large buffer for all activations, as a network has: it lies on huge pages.
        let mut arena = AlignedBuf::<f32>::zeroed((cols + rows) * pixels + (1 << 20));
        arena.as_mut_slice()[..cols * pixels].copy_from_slice(&all);
        let (mut sparse, mut dense) = (Vec::new(), Vec::new());
        for copy in 0..8 {
            let w = turned(&w, cols, copy, wanted.block.max(1));
            if wanted.kind == "dense" {
                dense.push(DenseConv1x1::new(&w, rows, cols, None)?.reading_in_place());
            } else {
                let packed = DeltaBlock::encode(&w, rows, cols, None, wanted.block)?;
                sparse.push(Spmm::new(&packed)?.reading_in_place());
            }
        }
        // What a product reads of its weights: values, and four bytes of offset for each block.
        let bytes = match sparse.first() {
            Some(s) => 4 * s.nnz() + 4 * s.nnz() / wanted.block,
            None => 4 * rows * cols,
        };
        let mut call = move |i: usize, out: Option<&mut Vec<f32>>| -> Result<(), Error> {
            let (x, rest) = arena.as_mut_slice().split_at_mut(cols * pixels);
            let (y, scratch) = rest.split_at_mut(rows * pixels);
            match sparse.get(i % 8) {
                Some(s) => s.forward(x, pixels, Clamp::NONE, y, scratch)?,
                None => dense[i % 8].forward(x, pixels, Clamp::NONE, y, scratch)?,
            }
            if let Some(out) = out {
                out.extend_from_slice(y);
            }
            Ok(())
        };
        let mut y = Vec::new();
        call(0, Some(&mut y))?;
        write(job, e, &y)?;
        let (name, w) = (wanted.name.clone(), wanted.w.clone());
        entries.push(Entry { name, w, bytes, call: Box::new(move |i| call(i, None)) });
    }
    Ok(entries)
}

fn attention(job: &Job) -> Result<Vec<Entry>, Error> {
    let [kv, d, n] = job.shape[..] else { return Err("shape".into()) };
    let (keys, values, q) = (read(job, "k")?, read(job, "v")?, read(job, "q")?);
    let channels: Vec<u32> = read(job, "channels")?.iter().map(|c| *c as u32).collect();
    let bytes = 2 * n * kv * d * size_of::<f32>();
    let copies = job.min_bytes.div_ceil(bytes).max(2);
    let labels_of = |kind: &str| match kind {
        "labels f32" => Some(LabelKind::F32),
        "labels bf16" => Some(LabelKind::Bf16),
        "labels int8" => Some(LabelKind::Int8),
        "labels int4" => Some(LabelKind::Int4),
        _ => None,
    };
    let kinds: Vec<_> = job.entries.iter().map(|e| labels_of(&e.kind)).collect();
    let mut caches = Vec::new();
    for copy in 0..copies {
        let mut cache = KvCache::<f32>::new(kv, d, n)?;
        let mut labels = Vec::new();
        for kind in &kinds {
            labels.push(match kind {
                Some(kind) => Some(LabelCache::new(*kind, kv, d, &channels, n)?),
                None => None,
            });
        }
        for t in 0..n {
            let at = (t + copy * 37) % n * kv * d;
            let (k, v) = (&keys[at..][..kv * d], &values[at..][..kv * d]);
            cache.append(k, v)?;
            for l in labels.iter_mut().flatten() {
                l.append(k)?;
            }
        }
        caches.push((cache, labels));
    }
    drop((keys, values));
    let caches = std::sync::Arc::new(caches);
    let scale = 1.0 / (d as f32).sqrt();
    let plan = DoubleSparse { kept: n.div_ceil(16), grouping: Grouping::Summed };
    let mut entries = Vec::new();
    for (e, wanted) in job.entries.iter().enumerate() {
        let caches = std::sync::Arc::clone(&caches);
        let labels = caches[0].1[e].as_ref();
        let needed = attend_scratch_len(&caches[0].0, kv)
            .max(labels.map_or(0, |l| plan.scratch_len(&caches[0].0, l, kv)));
        let read = labels.map_or(bytes, |l| l.bytes_read() + bytes / 16);
        let (mut out, mut scratch, mut q) = (vec![0.0; kv * d], vec![0.0; needed], q.clone());
        let mut call = move |i: usize, result: Option<&mut Vec<f32>>| -> Result<(), Error> {
            let (cache, labels) = &caches[i % caches.len()];
            let query = Query { q: &q, heads: kv, scale };
            match &labels[e] {
                Some(l) => attend_double_sparse(cache, l, plan, query, &mut out, &mut scratch)?,
                None => attend(cache, query, &mut out, &mut scratch)?,
            }
            if let Some(result) = result {
                result.extend_from_slice(&out);
            }
            // Another query, and so another selection, at the next call.
            q.rotate_right(1);
            Ok(())
        };
        let mut y = Vec::new();
        call(0, Some(&mut y))?;
        write(job, e, &y)?;
        let (name, w) = (wanted.name.clone(), wanted.w.clone());
        entries.push(Entry { name, w, bytes: read, call: Box::new(move |i| call(i, None)) });
    }
    Ok(entries)
}

fn mobilenet(job: &Job) -> Result<Vec<Entry>, Error> {
    let [side] = job.shape[..] else { return Err("shape".into()) };
    let x = read(job, "x")?;
    let mut entries = Vec::new();
    for (e, wanted) in job.entries.iter().enumerate() {
        let all = read(job, &wanted.w)?;
        let mut rest = &all[..];
        let mut nodes: Vec<Node<'_>> = Vec::new();
        let mut add = |d_in: usize, d_out: usize, groups: usize, kernel: usize, stride: usize, clamp| {
            let (weight, after) = rest.split_at(d_out * d_in / groups * kernel * kernel);
            rest = after;
            let op = Op::Conv { weight, bias: None, d_out, groups, kernel, stride, padding: Padding::Same };
            nodes.push(Node { input: nodes.len().checked_sub(1), op, clamp });
            if d_out == 1024 && kernel == 1 && nodes.len() == 27 {
                nodes.push(Node { input: Some(26), op: Op::GlobalAverage, clamp: Clamp::NONE });
            }
        };
        add(3, 32, 1, 3, 2, Clamp::RELU6);
        let mut channels = 32;
        for (d_out, stride) in MOBILENET_V1 {
            add(channels, channels, channels, 3, stride, Clamp::RELU6);
            add(channels, d_out, 1, 1, 1, Clamp::RELU6);
            channels = d_out;
        }
        add(channels, 1001, 1, 1, 1, Clamp::NONE);
        let image = Image { channels: 3, height: side, width: side, layout: Layout::Hwc };
        let settings =
            NetworkSettings { may_be_sparse: wanted.kind == "sparse", ..NetworkSettings::default() };
        let net = Network::new(image, &nodes, &settings)?;
        let mut memory = AlignedBuf::<f32>::zeroed(net.scratch_len(job.threads).max(1 << 19));
        let mut y = vec![0.0; net.out_len()];
        net.forward(&x, &mut y, memory.as_mut_slice())?;
        write(job, e, &y)?;
        let (name, w, x) = (wanted.name.clone(), wanted.w.clone(), x.clone());
        let bytes = 4 * all.iter().filter(|v| **v != 0.0).count();
        let call: Call = Box::new(move |_| Ok(net.forward(&x, &mut y, memory.as_mut_slice())?));
        entries.push(Entry { name, w, bytes, call });
    }
    Ok(entries)
}
