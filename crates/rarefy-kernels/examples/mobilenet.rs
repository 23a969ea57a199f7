//! MobileNet v1 of random weights, dense and with pruned 1×1 layers: `mobilenet [SPARSITY [PASSES [RESOLUTION]]]`.
//!
//! Prints milliseconds per image (batch 1) on one and two threads, and where the time goes. Before timing, the sparse network's
//! outputs are compared with the dense network's on the same masked weights; the dense rival is timed on these too.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use rarefy_kernels::chw::Layout;
use rarefy_kernels::cnn::{Image, Network, NetworkSettings, Node, Op, Padding};
use rarefy_kernels::{AlignedBuf, Clamp, Isa, cpu_features};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Output channels and stride of the thirteen pairs of depthwise and 1×1 layers.
const PAIRS: [(usize, usize); 13] = [
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
];

/// One convolution: weights, outputs, groups, window, stride.
type Weights = (Vec<f32>, usize, usize, usize, usize);

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let sparsity: f32 = args.first().map_or(Ok(0.9), |a| a.parse())?;
    let passes: usize = args.get(1).map_or(Ok(30), |a| a.parse())?;
    let side: usize = args.get(2).map_or(Ok(224), |a| a.parse())?;
    println!(
        "{}\nMobileNet v1 1.0-{side}, {:.0} % zeros in the 1x1 layers",
        cpu_features(),
        100.0 * sparsity
    );
    for block in [1, 4, 16] {
        let weights = random(sparsity, block);
        let nodes = nodes(&weights);
        let image = Image { channels: 3, height: side, width: side, layout: Layout::Hwc };
        let dense = NetworkSettings { may_be_sparse: false, ..NetworkSettings::default() };
        let nets =
            [Network::new(image, &nodes, &dense)?, Network::new(image, &nodes, &NetworkSettings::default())?];
        let mut seed = 7;
        let x: Vec<f32> = (0..3 * side * side).map(|_| uniform(&mut seed)).collect();
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            pool.install(|| measure(&nets, &x, threads, passes, block))?;
        }
    }
    Ok(())
}

fn measure(nets: &[Network; 2], x: &[f32], threads: usize, passes: usize, block: usize) -> Result<(), Error> {
    let needed = nets.iter().map(|n| n.scratch_len(threads)).max().unwrap_or(0).max(1 << 19);
    let mut memory = AlignedBuf::<f32>::zeroed(needed);
    let mut outputs = [vec![0.0; nets[0].out_len()], vec![0.0; nets[1].out_len()]];
    let (mut totals, mut kinds) = ([Vec::new(), Vec::new()], [[0.0f64; 3]; 2]);
    for pass in 0..=passes {
        for (i, net) in nets.iter().enumerate() {
            let reports: Vec<_> = net.report().collect();
            let start = Instant::now();
            let mut last = start;
            net.forward_with(Isa::detect(), x, &mut outputs[i], memory.as_mut_slice(), &mut |n| {
                let now = Instant::now();
                let kind = match reports[n].kernel.as_str() {
                    "depthwise" => 1,
                    k if k.starts_with("1x1") || k.starts_with("linear") => 0,
                    _ => 2,
                };
                if pass > 0 {
                    kinds[i][kind] += (now - last).as_secs_f64();
                }
                last = now;
            })?;
            if pass > 0 {
                totals[i].push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        let worst = outputs[0].iter().zip(&outputs[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if worst.is_nan() || worst > 1e-4 {
            return Err(format!("sparse and dense differ by {worst}").into());
        }
    }
    let [dense, sparse] = totals.map(|mut t| {
        t.sort_by(f64::total_cmp);
        (t[t.len() / 2], t[0])
    });
    println!(
        "block {block:>2}, {threads} thread(s): dense {:.2} ms (best {:.2}), sparse {:.2} (best {:.2}), gain {:.2}x",
        dense.0,
        dense.1,
        sparse.0,
        sparse.1,
        dense.0 / sparse.0
    );
    for (name, kinds) in ["dense", "sparse"].iter().zip(kinds) {
        let mean = kinds.map(|k| k * 1e3 / passes as f64);
        println!("    {name:6}: 1x1 {:.2} ms, depthwise {:.2}, others {:.2}", mean[0], mean[1], mean[2]);
    }
    Ok(())
}

fn random(sparsity: f32, block: usize) -> Vec<Weights> {
    let mut seed = 1;
    let mut conv = |d_in: usize, d_out: usize, groups: usize, kernel: usize, stride: usize, sparsity: f32| {
        let row = d_in / groups * kernel * kernel;
        let scale = 3.4 / (row as f32 * (1.0 - sparsity)).sqrt();
        let mut w: Vec<f32> = (0..d_out * row).map(|_| (uniform(&mut seed) - 0.5) * scale).collect();
        for rows in w.chunks_mut(block * row) {
            for c in 0..row {
                if uniform(&mut seed) < sparsity {
                    rows.iter_mut().skip(c).step_by(row).for_each(|w| *w = 0.0);
                }
            }
        }
        (w, d_out, groups, kernel, stride)
    };
    let mut all = vec![conv(3, 32, 1, 3, 2, 0.0)];
    let mut channels = 32;
    for (d_out, stride) in PAIRS {
        all.push(conv(channels, channels, channels, 3, stride, 0.0));
        all.push(conv(channels, d_out, 1, 1, 1, sparsity));
        channels = d_out;
    }
    all.push(conv(channels, 1001, 1, 1, 1, 0.0));
    all
}

fn nodes(weights: &[Weights]) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    for (i, (weight, d_out, groups, kernel, stride)) in weights.iter().enumerate() {
        let last = i + 1 == weights.len();
        if last {
            nodes.push(Node { input: Some(nodes.len() - 1), op: Op::GlobalAverage, clamp: Clamp::NONE });
        }
        let (d_out, groups, kernel, stride) = (*d_out, *groups, *kernel, *stride);
        let op = Op::Conv { weight, bias: None, d_out, groups, kernel, stride, padding: Padding::Same };
        let clamp = if last { Clamp::NONE } else { Clamp::RELU6 };
        nodes.push(Node { input: nodes.len().checked_sub(1), op, clamp });
    }
    nodes
}

fn uniform(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 40) as f32 / (1u64 << 24) as f32
}
