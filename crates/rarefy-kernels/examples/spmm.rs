//! Sparse 1×1 convolution against the dense one: `spmm [PASSES [THREADS [WIDTH [SHAPE]]]]`.
//!
//! For each shape (Cout x Cin x pixels), sparsity and block height: the time, the rate counting kept multiply-adds only, its share of
//! the rate of multiply-adds in registers measured between the calls, and the gain over our own dense kernel. Every call
//! meets another of [`MASKS`] random masks; results are compared with the dense kernel, and that with f64, before timing.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use rarefy_kernels::spmm::{DenseConv1x1, Spmm, SpmmChannels};
use rarefy_kernels::{AlignedBuf, Clamp, DenseF32, LinearKernel, cpu_features, oracle, peak};
use rarefy_sparsity::formats::DeltaBlock;

const SHAPES: [(usize, usize, usize); 3] = [(256, 256, 832), (512, 512, 256), (1024, 1024, 64)];
const SPARSITIES: [f64; 4] = [0.5, 0.8, 0.9, 0.95];
const BLOCKS: [usize; 5] = [1, 2, 4, 8, 16];
const MASKS: usize = 4;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let args: Vec<usize> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let passes = args.first().copied().unwrap_or(40);
    let threads = args.get(1).map_or(vec![1, 2], |t| vec![*t]);
    println!("{}", cpu_features());
    for (i, shape) in SHAPES.into_iter().enumerate() {
        if args.get(3).is_some_and(|s| *s != i) {
            continue;
        }
        for threads in &threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(*threads).build()?;
            pool.install(|| table(shape, *threads, passes, args.get(2).copied().filter(|w| *w > 0)))?;
        }
    }
    for threads in &threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(*threads).build()?;
        pool.install(|| few_pixels(*threads, passes))?;
    }
    Ok(())
}

/// One kernel under test with its times in seconds.
struct Row {
    sparsity: f64,
    block: usize,
    weights: Vec<Spmm>,
    seconds: Vec<f64>,
}

fn table(
    (rows, cols, pixels): (usize, usize, usize),
    threads: usize,
    passes: usize,
    width: Option<usize>,
) -> Result<(), Error> {
    let mut seed = 1;
    let full: Vec<f32> = (0..rows * cols).map(|_| uniform(&mut seed) - 0.5).collect();
    let bias: Vec<f32> = (0..rows).map(|_| uniform(&mut seed) - 0.5).collect();
    // One large buffer for all activations, as a network has: it lies on huge pages.
    let mut arena = AlignedBuf::<f32>::zeroed(1 << 21);
    let (x, rest) = arena.as_mut_slice().split_at_mut(cols * pixels);
    let (y, scratch) = rest.split_at_mut(rows * pixels);
    x.iter_mut().for_each(|v| *v = uniform(&mut seed) - 0.5);
    let x = &*x;
    let dense = DenseConv1x1::new(&full, rows, cols, Some(&bias))?.reading_in_place();
    let mut expected = vec![0.0; rows * pixels];
    dense.forward(x, pixels, Clamp::RELU6, y, scratch)?;
    check(&full, &bias, rows, cols, x, pixels, y)?;

    let mut table = Vec::new();
    for sparsity in SPARSITIES {
        for block in BLOCKS {
            let mut weights = Vec::new();
            for _ in 0..MASKS {
                let mut w = full.clone();
                for rows_of_block in w.chunks_mut(block * cols) {
                    for c in 0..cols {
                        if f64::from(uniform(&mut seed)) < sparsity {
                            rows_of_block.iter_mut().skip(c).step_by(cols).for_each(|v| *v = 0.0);
                        }
                    }
                }
                let packed = DeltaBlock::encode(&w, rows, cols, Some(&bias), block)?;
                let sparse = width.map_or_else(|| Spmm::new(&packed), |p| Spmm::with_width(&packed, p))?;
                let masked = DenseConv1x1::new(&w, rows, cols, Some(&bias))?;
                masked.forward(x, pixels, Clamp::RELU6, &mut expected, scratch)?;
                let sparse = sparse.reading_in_place();
                sparse.forward(x, pixels, Clamp::RELU6, y, scratch)?;
                if *y != *expected {
                    return Err(format!("{sparsity} {block}: not the dense result").into());
                }
                weights.push(sparse);
            }
            table.push(Row { sparsity, block, weights, seconds: Vec::new() });
        }
    }

    let (mut dense_seconds, mut roofs) = (Vec::new(), Vec::new());
    for pass in 0..passes {
        roofs.push(peak::fma_pass());
        let start = Instant::now();
        dense.forward(x, pixels, Clamp::RELU6, y, scratch)?;
        dense_seconds.push(start.elapsed().as_secs_f64());
        for row in &mut table {
            let weight = &row.weights[pass % MASKS];
            let start = Instant::now();
            weight.forward(x, pixels, Clamp::RELU6, y, scratch)?;
            row.seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let rate = |weights: usize, seconds: f64| 2.0 * weights as f64 * pixels as f64 / seconds / 1e9;
    println!(
        "\n{rows} x {cols} x {pixels}, {threads} thread(s), multiply-adds in registers: {:.0} GF/s, best {:.0}",
        median(roofs.clone()),
        roofs.iter().copied().fold(0.0, f64::max)
    );
    let (best_base, best_roof) = (least(&dense_seconds), roofs.iter().copied().fold(0.0, f64::max));
    let (roof, base) = (median(roofs), median(dense_seconds));
    println!("                            median                        best");
    println!("sparsity block width       us      GF/s   peak   gain       us   peak   gain");
    let all = rows * cols;
    let own = rate(all, base);
    println!(
        "   dense     -     - {:>8.1} {own:>9.1} {:>5.0}%  1.00x {:>8.1} {:>5.0}%  1.00x",
        base * 1e6,
        100.0 * own / roof,
        best_base * 1e6,
        100.0 * rate(all, best_base) / best_roof
    );
    for row in table {
        let kept = row.weights.iter().map(Spmm::nnz).sum::<usize>() / MASKS;
        let best = least(&row.seconds);
        let seconds = median(row.seconds);
        let own = rate(kept, seconds);
        println!(
            "{:>8} {:>5} {:>5} {:>8.1} {own:>9.1} {:>5.0}% {:>5.2}x {:>8.1} {:>5.0}% {:>5.2}x",
            row.sparsity,
            row.block,
            row.weights[0].width(),
            seconds * 1e6,
            100.0 * own / roof,
            base / seconds,
            best * 1e6,
            100.0 * rate(kept, best) / best_roof,
            best_base / best
        );
    }
    Ok(())
}

/// Channels in the registers against pixels in the registers, 90 % zeros in blocks of 16; with one pixel also against the dense GEMV.
fn few_pixels(threads: usize, passes: usize) -> Result<(), Error> {
    println!("\n{threads} thread(s), 90 % zeros, blocks of 16, medians in us");
    println!("     shape  pixels  channels  strips  dense GEMV");
    for (rows, cols) in [(1024, 1024), (4096, 4096)] {
        let mut seed = 3;
        let mut w: Vec<f32> = (0..rows * cols).map(|_| uniform(&mut seed) - 0.5).collect();
        for block in w.chunks_mut(16 * cols) {
            for c in 0..cols {
                if uniform(&mut seed) < 0.9 {
                    block.iter_mut().skip(c).step_by(cols).for_each(|v| *v = 0.0);
                }
            }
        }
        let packed = DeltaBlock::encode(&w, rows, cols, None, 16)?;
        let (strips, dense) = (Spmm::new(&packed)?, DenseF32::new(&w, rows, cols)?);
        for pixels in [1, 2, 4, 8, 12, 16, 32, 49] {
            let channels = SpmmChannels::new(&packed, pixels)?;
            let x: Vec<f32> = (0..cols * pixels).map(|_| uniform(&mut seed) - 0.5).collect();
            let (mut a, mut b) = (vec![0.0; rows * pixels], vec![0.0; rows * pixels]);
            let needed = channels.scratch_len(threads).max(strips.scratch_len(threads));
            let mut scratch = vec![0.0; needed];
            let (mut by_channels, mut by_strips, mut by_gemv) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..passes {
                let start = Instant::now();
                channels.forward(&x, Clamp::NONE, &mut a, &mut scratch)?;
                by_channels.push(start.elapsed().as_secs_f64() * 1e6);
                let start = Instant::now();
                strips.forward(&x, pixels, Clamp::NONE, &mut b, &mut scratch)?;
                by_strips.push(start.elapsed().as_secs_f64() * 1e6);
                if a != b {
                    return Err("channels and strips differ".into());
                }
                if pixels == 1 {
                    let start = Instant::now();
                    dense.forward(&x, 1, &mut b, &mut [])?;
                    by_gemv.push(start.elapsed().as_secs_f64() * 1e6);
                }
            }
            let gemv = if pixels == 1 { format!("{:>11.1}", median(by_gemv)) } else { String::new() };
            let (c, s) = (median(by_channels), median(by_strips));
            println!("{:>10} {pixels:>7} {c:>9.1} {s:>7.1} {gemv}", format!("{rows}x{cols}"));
        }
    }
    Ok(())
}

/// The dense result against the f64 product.
fn check(
    w: &[f32],
    bias: &[f32],
    rows: usize,
    cols: usize,
    x: &[f32],
    pixels: usize,
    y: &[f32],
) -> Result<(), Error> {
    let columns: Vec<f32> = (0..pixels).flat_map(|p| (0..cols).map(move |c| x[c * pixels + p])).collect();
    let (exact, scale) = oracle::linear_f64(w, rows, cols, &columns, pixels);
    for p in 0..pixels {
        for r in 0..rows {
            let wanted = (exact[p * rows + r] + f64::from(bias[r])).clamp(0.0, 6.0);
            let error = (f64::from(y[r * pixels + p]) - wanted).abs();
            if error > 1e-5 * (scale[p * rows + r] + 1.0) {
                return Err(format!("dense: output {r} {p} is wrong by {error}").into());
            }
        }
    }
    Ok(())
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn uniform(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 40) as f32 / (1u64 << 24) as f32
}
