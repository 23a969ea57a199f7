//! The naive formulas in f64.

use super::PredictorSettings;

/// `A~ = C · basis` for all tokens, `[n][n]`, with the coefficients of each row cut to the largest (equal ones by index).
#[allow(clippy::too_many_arguments, reason = "the parameters of the paper")]
pub fn connectivity_f64(
    (q, k): (&[f32], &[f32]),
    (p_q, b_q): (&[f32], &[f32]),
    (p_k, b_k): (&[f32], &[f32]),
    w_down: &[f32],
    w_up: &[f32],
    threshold: f32,
    d: usize,
    settings: PredictorSettings,
) -> Vec<f64> {
    let (n, low) = (q.len() / d, b_q.len());
    let basis = w_down.len() / n;
    let project = |x: &[f32], p: &[f32], b: &[f32]| -> Vec<f64> {
        (0..n * low)
            .map(|i| {
                let (t, o) = (i / low, i % low);
                (0..d).map(|c| f64::from(x[t * d + c]) * f64::from(p[o * d + c])).sum::<f64>()
                    + f64::from(b[o])
            })
            .collect()
    };
    let (small_q, small_k) = (project(q, p_q, b_q), project(k, p_k, b_k));
    let kd: Vec<f64> = (0..low * basis)
        .map(|i| {
            (0..n).map(|t| small_k[t * low + i / basis] * f64::from(w_down[t * basis + i % basis])).sum()
        })
        .collect();
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        let z: Vec<f64> = (0..basis)
            .map(|b| {
                f64::from(settings.scale)
                    * (0..low).map(|o| small_q[i * low + o] * kd[o * basis + b]).sum::<f64>()
            })
            .collect();
        let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = z.iter().map(|z| (z - most).exp()).sum();
        let mut order: Vec<usize> = (0..basis).collect();
        order.sort_by(|a, b| z[*b].total_cmp(&z[*a]));
        for b in order.into_iter().take(settings.coefficients) {
            for t in 0..n {
                let up = f64::from(w_up[t * basis + b].abs());
                if up > f64::from(threshold) {
                    out[i * n + t] += (z[b] - most).exp() / total * up;
                }
            }
        }
    }
    out
}

/// `softmax(scale · q kᵀ) v` where `allowed(i, j)`; zeros for a query that may see nothing.
pub fn masked_f64(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d: usize,
    scale: f64,
    allowed: &dyn Fn(usize, usize) -> bool,
) -> Vec<f64> {
    let n = q.len() / d;
    let mut out = vec![0.0; n * d];
    for i in 0..n {
        let dot =
            |j: usize| (0..d).map(|c| f64::from(q[i * d + c]) * f64::from(k[j * d + c])).sum::<f64>() * scale;
        let scores: Vec<(usize, f64)> = (0..n).filter(|j| allowed(i, *j)).map(|j| (j, dot(j))).collect();
        let most = scores.iter().map(|(_, s)| *s).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|(_, s)| (s - most).exp()).sum();
        for (j, s) in scores {
            let w = (s - most).exp() / total;
            (0..d).for_each(|c| out[i * d + c] += w * f64::from(v[j * d + c]));
        }
    }
    out
}
