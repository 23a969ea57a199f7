//! The naive MLPs in f64.

use super::{Activation, Activity};

/// A result in f64 and beside it the sum of absolute terms, the scale of rounding errors.
pub type Scaled = (Vec<f64>, Vec<f64>);

/// `W_down (act(W_gate x) · (W_up x))` for `gate, up [d_ff, d_in]` and `down[d_out, d_ff]`, with `activity` applied to the f64 values.
///
/// `near` gets the distance of each decision from its threshold: a test must not place an activation closer than the rounding of f32.
pub fn gated_f64(
    [gate, up, down]: [&[f32]; 3],
    (d_in, d_ff, d_out): (usize, usize, usize),
    activation: Activation,
    activity: Activity<'_>,
    x: &[f32],
    near: &mut f64,
) -> Scaled {
    let n = x.len().checked_div(d_in).unwrap_or(1);
    let (mut y, mut scale) = (vec![0.0; n * d_out], vec![0.0; n * d_out]);
    for t in 0..n {
        let x = &x[t * d_in..(t + 1) * d_in];
        for i in 0..d_ff {
            let row = |w: &[f32]| -> (f64, f64) {
                let terms =
                    w[i * d_in..(i + 1) * d_in].iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                terms.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()))
            };
            let ((z, z_scale), (u, u_scale)) = (row(gate), row(up));
            let v = match activation {
                Activation::Silu => z / (1.0 + (-z).exp()),
                Activation::Relu => z.max(0.0),
            };
            let idle = match activity {
                Activity::All => false,
                Activity::GateAbove(t) => {
                    // At zero nothing jumps: an activation of zero adds nothing, kept or not.
                    if t > 0.0 {
                        *near = near.min((v.abs() - f64::from(t)).abs());
                    }
                    v.abs() <= f64::from(t)
                }
                Activity::GateAtLeast(t) => {
                    *near = near.min((v.abs() - f64::from(t)).abs());
                    v.abs() < f64::from(t)
                }
                Activity::NeuronAtLeast(theta) => {
                    *near = near.min(((v * u).abs() - f64::from(theta[i])).abs());
                    (v * u).abs() < f64::from(theta[i])
                }
            };
            if idle {
                continue;
            }
            for o in 0..d_out {
                let w = f64::from(down[o * d_ff + i]);
                y[t * d_out + o] += v * u * w;
                scale[t * d_out + o] += (v.abs() + 1.1 * z_scale) * u_scale.max(u.abs()) * w.abs();
            }
        }
    }
    (y, scale)
}

/// `W2 relu(W1 x + b1) + b2`.
pub fn relu_mlp_f64(
    (first, first_bias): (&[f32], &[f32]),
    (second, second_bias): (&[f32], &[f32]),
    x: &[f32],
    n: usize,
) -> Scaled {
    let (d_ff, d_out) = (first_bias.len(), second_bias.len());
    let d_in = x.len() / n.max(1);
    let (mut y, mut scale) = (Vec::new(), Vec::new());
    for t in 0..n {
        let hidden: Vec<(f64, f64)> = (0..d_ff)
            .map(|i| {
                let start = (f64::from(first_bias[i]), f64::from(first_bias[i]).abs());
                let terms = (0..d_in).map(|c| f64::from(first[i * d_in + c]) * f64::from(x[t * d_in + c]));
                let (z, s) = terms.fold(start, |(z, s), p| (z + p, s + p.abs()));
                (z.max(0.0), s)
            })
            .collect();
        for o in 0..d_out {
            let start = (f64::from(second_bias[o]), f64::from(second_bias[o]).abs());
            let (v, s) = hidden.iter().enumerate().fold(start, |(v, s), (i, (h, hs))| {
                let w = f64::from(second[o * d_ff + i]);
                (v + h * w, s + hs * w.abs())
            });
            y.push(v);
            scale.push(s);
        }
    }
    (y, scale)
}
