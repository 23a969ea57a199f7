//! AdamW and SGD on plain slices, respecting masks.
//!
//! A masked weight has zero gradient, so its moments stay exactly zero and so does the weight. Arithmetic is f32 with
//! coefficients computed in f64; one tensor is handled in one fixed order, so the same gradients give the same bits.

use crate::recipe::{OptimizerKind, OptimizerSettings};
use crate::{Parameter, Parameters};

/// The update rule of a run.
#[derive(Debug, Clone)]
pub struct Optimizer {
    settings: OptimizerSettings,
}

impl Optimizer {
    /// From checked settings.
    #[must_use]
    pub fn new(settings: OptimizerSettings) -> Self {
        Self { settings }
    }

    /// Whether the rule keeps a second moment.
    #[must_use]
    pub fn has_second(&self) -> bool {
        self.settings.kind == OptimizerKind::Adamw
    }

    /// One update of all tensors with `gradients` (same order and lengths), in step `step` counted from 0, with learning
    /// rate `lr`. Gradients of masked weights are set to zero first.
    pub fn step(&self, parameters: &mut Parameters, gradients: &mut [Vec<f32>], step: u64, lr: f64) {
        for (p, g) in parameters.all.iter_mut().zip(gradients) {
            if let Some(mask) = p.mask() {
                mask.apply(g);
            }
            match self.settings.kind {
                OptimizerKind::Adamw => self.adamw(p, g, step, lr),
                OptimizerKind::Sgd => self.sgd(p, g, lr),
            }
        }
    }

    fn decay(&self, p: &Parameter) -> f64 {
        if p.is_linear { self.settings.weight_decay } else { 0.0 }
    }

    /// m ← β₁m + (1-β₁)g; v ← β₂v + (1-β₂)g²; w ← (1 - lr·λ)w - lr·m̂ / (√v̂ + ε).
    fn adamw(&self, p: &mut Parameter, g: &[f32], step: u64, lr: f64) {
        let s = &self.settings;
        let t = (step + 1) as f64;
        let (b1, b2) = (s.beta1 as f32, s.beta2 as f32);
        let (c1, c2) = ((1.0 - s.beta1) as f32, (1.0 - s.beta2) as f32);
        let rate = (lr / (1.0 - s.beta1.powf(t))) as f32;
        let root = (1.0 / (1.0 - s.beta2.powf(t))) as f32;
        let keep = (1.0 - lr * self.decay(p)) as f32;
        let eps = s.eps as f32;
        for (((w, m), v), g) in p.values.iter_mut().zip(&mut p.first).zip(&mut p.second).zip(g) {
            *m = b1 * *m + c1 * g;
            *v = b2 * *v + c2 * g * g;
            *w = *w * keep - rate * *m / ((*v * root).sqrt() + eps);
        }
    }

    /// g ← g + λw; u ← μu + g; w ← w - lr·u, or w - lr·(g + μu) with Nesterov's momentum (as PyTorch does it).
    fn sgd(&self, p: &mut Parameter, g: &[f32], lr: f64) {
        let s = &self.settings;
        let (mu, decay, rate) = (s.momentum as f32, self.decay(p) as f32, lr as f32);
        for ((w, u), g) in p.values.iter_mut().zip(&mut p.first).zip(g) {
            let g = g + decay * *w;
            *u = mu * *u + g;
            *w -= rate * if s.nesterov { g + mu * *u } else { *u };
        }
    }
}

/// The Euclidean norm of all gradients together, accumulated in f64.
#[must_use]
pub fn global_norm(gradients: &[Vec<f32>]) -> f64 {
    gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
}

/// Scales all gradients so that their global norm is at most `limit` (0: never) and returns the norm before.
pub(crate) fn clip(gradients: &mut [Vec<f32>], limit: f64) -> f64 {
    let norm = global_norm(gradients);
    if limit > 0.0 && norm > limit {
        let scale = (limit / norm) as f32;
        gradients.iter_mut().flatten().for_each(|g| *g *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use rarefy_sparsity::Mask;

    fn one(is_linear: bool) -> Parameters {
        let p = Parameter::new("w".into(), vec![2, 2], vec![1.0, -2.0, 0.5, 4.0], is_linear, true);
        Parameters { all: vec![p] }
    }

    #[test]
    fn adamw_by_hand() {
        // First step: m̂ = g, v̂ = g², so w moves by lr·sign(g) after decay by (1 - lr·λ).
        let o = Optimizer::new(OptimizerSettings { weight_decay: 0.1, ..OptimizerSettings::default() });
        let mut p = one(true);
        o.step(&mut p, &mut [vec![0.3, -0.7, 0.0, 2.0]], 0, 0.01);
        let expected = [1.0 * 0.999 - 0.01, -2.0 * 0.999 + 0.01, 0.5 * 0.999, 4.0 * 0.999 - 0.01];
        for (a, b) in p.all[0].values.iter().zip(expected) {
            assert!((f64::from(*a) - b).abs() < 1e-6, "{a} {b}");
        }
        // Second step against the recurrences in f64.
        let (g1, g2) = (0.3f64, -0.1f64);
        o.step(&mut p, &mut [vec![-0.1, 0.0, 0.0, 0.0]], 1, 0.01);
        let m = 0.9 * 0.1 * g1 + 0.1 * g2;
        let v = 0.98 * 0.02 * g1 * g1 + 0.02 * g2 * g2;
        let w =
            expected[0] * 0.999 - 0.01 * (m / (1.0 - 0.81)) / ((v / (1.0 - 0.98f64 * 0.98)).sqrt() + 1e-8);
        assert!((f64::from(p.all[0].values[0]) - w).abs() < 1e-6);
    }

    #[test]
    fn no_decay_outside_linear_layers() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
            let o =
                Optimizer::new(OptimizerSettings { kind, weight_decay: 0.5, ..OptimizerSettings::default() });
            let (mut norm, mut linear) = (one(false), one(true));
            o.step(&mut norm, &mut [vec![0.0; 4]], 0, 0.1);
            o.step(&mut linear, &mut [vec![0.0; 4]], 0, 0.1);
            assert_eq!(norm.all[0].values, one(false).all[0].values);
            assert!((linear.all[0].values[3] - 4.0 * 0.95).abs() < 1e-6);
        }
    }

    #[test]
    fn sgd_by_hand() {
        // λ = 0, μ = 0.5, g = 1 twice: u = 1, 1.5; w falls by lr·(1 + 1.5), with Nesterov by lr·(1.5 + 1.75).
        for (nesterov, fall) in [(false, 2.5), (true, 3.25)] {
            let o = Optimizer::new(OptimizerSettings {
                kind: OptimizerKind::Sgd,
                momentum: 0.5,
                weight_decay: 0.0,
                nesterov,
                ..OptimizerSettings::default()
            });
            let mut p = one(true);
            for step in 0..2 {
                o.step(&mut p, &mut [vec![1.0; 4]], step, 0.1);
            }
            assert!((p.all[0].values[0] - (1.0 - 0.1 * fall)).abs() < 1e-6);
        }
    }

    #[test]
    fn masked_weights_and_moments_stay_exactly_zero() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
            let o = Optimizer::new(OptimizerSettings { kind, ..OptimizerSettings::default() });
            let mut p = one(true);
            o.step(&mut p, &mut [vec![1.0, 2.0, 3.0, 4.0]], 0, 0.1);
            assert!(p.all[0].first.iter().all(|m| *m != 0.0));
            p.all[0].set_mask(Mask::from_fn(2, 2, |r, c| (r + c) % 2 == 0));
            for step in 1..5 {
                o.step(&mut p, &mut [vec![1.0, f32::MAX, -3.0, 4.0]], step, 0.1);
            }
            let q = &p.all[0];
            for i in [1, 2] {
                assert_eq!(q.values[i].to_bits(), 0, "{kind:?}");
                assert_eq!(q.first[i].to_bits(), 0, "{kind:?}");
                assert!(q.second.get(i).is_none_or(|v| v.to_bits() == 0));
            }
            assert!(q.values[0] != 0.0 && q.values[3] != 0.0);
            assert!((p.sparsity() - 0.5).abs() < 1e-12);
        }
    }

    #[test]
    fn clipping_by_hand() {
        let mut g = [vec![3.0], vec![4.0]];
        assert!((clip(&mut g, 0.0) - 5.0).abs() < 1e-9);
        assert_eq!(g, [vec![3.0], vec![4.0]]);
        assert!((clip(&mut g, 1.0) - 5.0).abs() < 1e-9);
        assert!((global_norm(&g) - 1.0).abs() < 1e-6);
        assert!((clip(&mut g, 2.0) - 1.0).abs() < 1e-6);
    }
}
