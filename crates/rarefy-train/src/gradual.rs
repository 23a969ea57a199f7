//! Gradual magnitude pruning: a mask of the smallest weights grows along a cubic schedule while training goes on.
//!
//! Zhu and Gupta, "To prune, or not to prune", 2017, arXiv 1710.01878. The masks cover linear layers inside the blocks only.

use crate::recipe::Distribution;
use crate::{Parameters, SparseMethod, SparsitySettings, TrainError};
use rarefy_sparsity::{Group, Mask, Pattern, Schedule, distribution, select};

/// The hook.
#[derive(Debug, Clone)]
pub struct GradualPruning {
    settings: SparsitySettings,
    schedule: Schedule,
}

impl GradualPruning {
    /// From the settings of a checked recipe.
    #[must_use]
    pub fn new(settings: SparsitySettings) -> Self {
        let schedule = settings.schedule();
        Self { settings, schedule }
    }

    /// Indices of the layers that are pruned.
    fn layers(&self, parameters: &Parameters) -> Vec<usize> {
        let excluded = |name: &str| self.settings.excluded.iter().any(|e| name.contains(e.as_str()));
        let included = |(_, p): &(usize, &crate::Parameter)| p.is_linear && !excluded(&p.name);
        parameters.all.iter().enumerate().filter(included).map(|(i, _)| i).collect()
    }

    /// Prunes the layers to `sparsity`: smallest magnitudes first, so that weights already masked stay masked.
    fn prune(&self, parameters: &mut Parameters, sparsity: f64) -> Result<(), TrainError> {
        let layers = self.layers(parameters);
        let shapes: Vec<Vec<usize>> = layers.iter().map(|&i| parameters.all[i].shape.clone()).collect();
        let budget = match self.settings.distribution {
            Distribution::Erk if sparsity > 0.0 => Some(distribution::erk(&shapes, sparsity)?),
            _ => None,
        };
        for (l, &i) in layers.iter().enumerate() {
            let p = &mut parameters.all[i];
            let (rows, cols) = (p.shape[0], p.shape[1]);
            let scores: Vec<f32> = p.values.iter().map(|w| w.abs()).collect();
            let mask = match &budget {
                None => {
                    select::by_pattern(&scores, rows, cols, &self.settings.pattern, Group::Tensor, sparsity)?
                }
                Some(budget) => {
                    let mut mask = Mask::all_kept(rows, cols);
                    for k in select::lowest_k(&scores, budget.pruned(l))? {
                        mask.set(k / cols, k % cols, false);
                    }
                    mask
                }
            };
            p.set_mask(mask);
        }
        Ok(())
    }
}

impl SparseMethod for GradualPruning {
    fn slug(&self) -> &'static str {
        "gradual-pruning"
    }

    fn begin(&mut self, parameters: &mut Parameters) -> Result<(), TrainError> {
        for entry in &self.settings.excluded {
            if !parameters.all.iter().any(|p| p.is_linear && p.name.contains(entry.as_str())) {
                let example =
                    parameters.all.iter().find(|p| p.is_linear).map(|p| p.name.clone()).unwrap_or_default();
                return Err(TrainError::NoSuchLayer { entry: entry.clone(), example });
            }
        }
        if let Pattern::NM { .. } | Pattern::Block { .. } | Pattern::RowGroup { .. } = self.settings.pattern {
            // A pattern that does not divide a layer is found before the first step.
            for i in self.layers(parameters) {
                let p = &parameters.all[i];
                let zeros = vec![0.0; p.values.len()];
                let sparsity = self.schedule.target();
                select::by_pattern(
                    &zeros,
                    p.shape[0],
                    p.shape[1],
                    &self.settings.pattern,
                    Group::Tensor,
                    sparsity,
                )?;
            }
        }
        Ok(())
    }

    fn after_step(&mut self, step: u64, parameters: &mut Parameters) -> Result<bool, TrainError> {
        let updates = self.schedule.updates_at(step);
        if updates {
            self.prune(parameters, self.schedule.sparsity_at(step))?;
        }
        Ok(updates)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Parameter;

    fn parameters() -> Parameters {
        let values = |n: usize, s: usize| {
            (0..n).map(|i| ((i * 37 + s * 11) % 101) as f32 / 50.0 - 1.001).collect::<Vec<f32>>()
        };
        let linear = |name: &str, r: usize, c: usize| {
            Parameter::new(name.into(), vec![r, c], values(r * c, r), true, true)
        };
        Parameters {
            all: vec![
                Parameter::new("model.embed_tokens.weight".into(), vec![10, 4], values(40, 1), false, true),
                linear("model.layers.0.self_attn.q_proj.weight", 8, 8),
                linear("model.layers.0.mlp.up_proj.weight", 16, 8),
                Parameter::new("model.norm.weight".into(), vec![8], values(8, 2), false, true),
            ],
        }
    }

    fn run(settings: SparsitySettings) -> (Parameters, Vec<f64>) {
        let mut p = parameters();
        let mut g = GradualPruning::new(settings);
        g.begin(&mut p).unwrap();
        let mut seen = Vec::new();
        for step in 0..12 {
            g.after_step(step, &mut p).unwrap();
            seen.push(p.sparsity());
        }
        (p, seen)
    }

    #[test]
    fn the_cubic_schedule_is_hit() {
        // begin 2, end 10, every 4: updates at 2, 6, 10 with s = 0, 0.75 (1 - (1/2)³) = 0.65625, 0.75 of 64 + 128 weights.
        let s = SparsitySettings { target: 0.75, begin: 2, end: 10, every: 4, ..SparsitySettings::default() };
        let (p, seen) = run(s);
        let exact = |s: f64| ((64.0 * s).floor() + (128.0 * s).floor()) / 192.0;
        let expected =
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.65625, 0.65625, 0.65625, 0.65625, 0.75, 0.75].map(exact);
        for (a, b) in seen.iter().zip(expected) {
            assert!((a - b).abs() < 1e-12, "{seen:?}");
        }
        assert!(p.all[0].mask().is_none() && p.all[3].mask().is_none());
        assert!(p.all[0].values.iter().all(|w| *w != 0.0));
    }

    #[test]
    fn masked_weights_stay_masked_along_the_schedule() {
        let mut p = parameters();
        let s = SparsitySettings { target: 0.8, begin: 0, end: 9, every: 1, ..SparsitySettings::default() };
        let mut g = GradualPruning::new(s);
        let mut before: Option<Mask> = None;
        for step in 0..10 {
            g.after_step(step, &mut p).unwrap();
            let now = p.all[1].mask().unwrap().clone();
            if let Some(before) = before {
                assert_eq!(now.and(&before).unwrap(), now);
            }
            before = Some(now);
        }
    }

    #[test]
    fn patterns_and_exclusions() {
        let s = SparsitySettings {
            begin: 1,
            end: 9,
            pattern: "2:4".parse().unwrap(),
            ..SparsitySettings::default()
        };
        let (p, seen) = run(s);
        assert_eq!(seen[0], 0.0);
        assert!((seen[1] - 0.5).abs() < 1e-12);
        assert!(p.all[1].mask().unwrap().satisfies(&Pattern::NM { n: 2, m: 4 }));
        let s = SparsitySettings {
            end: 9,
            every: 3,
            excluded: vec!["q_proj".into()],
            ..SparsitySettings::default()
        };
        let (p, _) = run(s);
        assert!(p.all[1].mask().is_none());
        assert_eq!(p.all[2].mask().unwrap().pruned(), 64);
    }

    #[test]
    fn erk_keeps_small_layers_denser() {
        let s = SparsitySettings { end: 9, distribution: Distribution::Erk, ..SparsitySettings::default() };
        let (p, _) = run(s);
        let (q, up) = (p.all[1].mask().unwrap(), p.all[2].mask().unwrap());
        assert_eq!(q.pruned() + up.pruned(), 96);
        assert!(q.sparsity() < up.sparsity());
    }

    #[test]
    fn impossible_settings_are_refused_before_the_first_step() {
        let mut p = parameters();
        let s = SparsitySettings { excluded: vec!["k_prjo".into()], ..SparsitySettings::default() };
        let e = GradualPruning::new(s).begin(&mut p).unwrap_err();
        assert!(matches!(&e, TrainError::NoSuchLayer { entry, .. } if entry == "k_prjo"), "{e}");
        let s = SparsitySettings { pattern: "2:3".parse().unwrap(), ..SparsitySettings::default() };
        assert!(matches!(GradualPruning::new(s).begin(&mut p), Err(TrainError::Sparsity(_))));
    }
}
