//! The naive formulas in f64.

/// `softmax(scale · q Kᵀ) V` over `tokens` for one query head, `keys` and `values` `[n][d]`; and the softmax weights.
pub fn attention_f64(
    keys: &[f32],
    values: &[f32],
    q: &[f32],
    scale: f64,
    tokens: &[u32],
) -> (Vec<f64>, Vec<f64>) {
    let d = q.len();
    let row = |all: &[f32], j: u32| -> Vec<f64> {
        all[j as usize * d..(j as usize + 1) * d].iter().map(|v| f64::from(*v)).collect()
    };
    let scores: Vec<f64> = tokens
        .iter()
        .map(|j| scale * row(keys, *j).iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum::<f64>())
        .collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let total: f64 = weights.iter().sum();
    let weights: Vec<f64> = weights.into_iter().map(|w| w / total).collect();
    let mut out = vec![0.0; d];
    for (w, j) in weights.iter().zip(tokens) {
        out.iter_mut().zip(row(values, *j)).for_each(|(o, v)| *o += w * v);
    }
    (out, weights)
}

/// The label scores of one query head: `Σ_c q[c] K[j][c]` over the chosen channels.
pub fn label_scores_f64(keys: &[f32], q: &[f32], channels: &[u32]) -> Vec<f64> {
    let one =
        |k: &[f32]| channels.iter().map(|c| f64::from(q[*c as usize]) * f64::from(k[*c as usize])).sum();
    keys.chunks_exact(q.len()).map(one).collect()
}
