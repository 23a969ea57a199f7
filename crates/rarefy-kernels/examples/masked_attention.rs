//! Prints dense against predicted sparse attention of one head: `masked_attention [N D KEPT_PERCENT PASSES]`.
//!
//! Queries and keys are new in every call, so masks are too; the predictor is timed with the attention. Verified before timing.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use rarefy_kernels::bandwidth::median;
use rarefy_kernels::cpu_features;
use rarefy_kernels::masked_attention::{
    Basis, Predictor, PredictorSettings, RowLists, attend_all, attend_all_scratch_len, attend_rows, oracle,
};

struct Noise(u64);
impl Noise {
    fn vec(&mut self, len: usize, scale: f32) -> Vec<f32> {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next() * scale).collect()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<usize> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let arg = |i: usize, default| args.get(i).copied().unwrap_or(default);
    let (n, d, percent, passes) = (arg(0, 1024), arg(1, 64), arg(2, 10), arg(3, 60));
    let (low, basis, kept) = ((d / 2).max(1), (n / 6).max(1), (n * percent).div_ceil(100).max(1));
    let mut noise = Noise(0x1357_9bdf_2468_ace1);
    // About 5 % of the basis lies above the threshold, as in the released models.
    let w_up: Vec<f32> =
        noise.vec(n * basis, 1.0).iter().map(|v| if v.abs() > 0.95 { *v } else { 0.0 }).collect();
    let settings = PredictorSettings { kept, coefficients: 8.min(basis), scale: 1.0 / (d as f32).sqrt() };
    let (p_q, p_k) = (noise.vec(low * d, 0.2), noise.vec(low * d, 0.2));
    let (bias, w_down) = (noise.vec(low, 0.1), noise.vec(n * basis, 0.1));
    let basis_matrix = Basis::new(&w_up, n, basis, 0.02)?;
    println!("{}", cpu_features());
    println!(
        "one head, n = {n}, d = {d}, kept {kept}, d' = {low}, n' = {basis}, basis {:.1} % dense",
        100.0 * basis_matrix.density()
    );
    let predictor = Predictor::new((&p_q, &bias), (&p_k, &bias), d, &w_down, basis_matrix, settings)?;
    let scale = 1.0 / (d as f32).sqrt();
    let (mut dense, mut sparse) = (vec![0.0; n * d], vec![0.0; n * d]);
    let (mut starts, mut keys) = (vec![0; n + 1], vec![0; predictor.list_len()]);
    let mut scratch = vec![0.0; predictor.scratch_len().max(attend_all_scratch_len(n, d)).max(n)];
    let mut times = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for pass in 0..=passes {
        let (q, k, v) = (noise.vec(n * d, 1.0), noise.vec(n * d, 1.0), noise.vec(n * d, 1.0));
        let start = Instant::now();
        attend_all(&q, &k, &v, d, scale, &mut dense, &mut scratch)?;
        let all = start.elapsed();
        let start = Instant::now();
        predictor.predict(&q, &k, &mut starts, &mut keys, &mut scratch)?;
        let predicted = start.elapsed();
        let lists = RowLists { starts: &starts, keys: &keys };
        attend_rows(&q, &k, &v, d, scale, lists, &mut sparse, &mut scratch)?;
        let both = start.elapsed();
        if pass == 0 {
            let mut mask = vec![false; n * n];
            for i in 0..n {
                let list = &keys[starts[i] as usize..starts[i + 1] as usize];
                list.iter().for_each(|j| mask[i * n + *j as usize] = true);
            }
            for (found, allowed) in [(&dense, None), (&sparse, Some(&mask))] {
                let want = oracle::masked_f64(&q, &k, &v, d, f64::from(scale), &|i, j| {
                    allowed.is_none_or(|m| m[i * n + j])
                });
                if found.iter().zip(&want).any(|(a, b)| (f64::from(*a) - b).abs() > 1e-5) {
                    return Err("attention is wrong".into());
                }
            }
            continue;
        }
        let ms = |t: std::time::Duration| t.as_secs_f64() * 1e3;
        times[0].push(ms(all));
        times[1].push(ms(predicted));
        times[2].push(ms(both - predicted));
        times[3].push(ms(both));
    }
    let flops = 4.0 * (n * n * d) as f64;
    let base = median(&mut times[0].clone());
    for (label, times) in ["dense", "predictor", "kept rows", "both"].iter().zip(&mut times) {
        let ms = median(times);
        println!("{label:10} {ms:>8.3} ms {:>7.2}x", base / ms);
    }
    println!("dense: {:.0} GF/s", flops / base / 1e6);
    Ok(())
}
