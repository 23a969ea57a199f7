//! Regularisation paths and the choice of α by cross-validation.

use rand::seq::SliceRandom;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde::{Deserialize, Serialize};

use super::{Coefficients, GlmSettings, Loss, Problem, Step, check_alpha, engine};
use crate::error::{check_not_empty, check_setting};
use crate::{LinOp, Monitor, Solution, SolveError, Status};

/// The values of α along a path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlphaGrid {
    /// The values themselves, each > 0; solved from the largest to the smallest. Default: computed.
    pub values: Option<Vec<f64>>,
    /// Number of values in geometric progression from `alpha_max`, at least 1. scikit-learn: 100.
    pub count: usize,
    /// Smallest value relative to `alpha_max`, in (0, 1]. scikit-learn: 1e-3.
    pub ratio: f64,
}

impl Default for AlphaGrid {
    fn default() -> Self {
        Self { values: None, count: 100, ratio: 1e-3 }
    }
}

impl AlphaGrid {
    fn resolve(&self, alpha_max: f64) -> Result<Vec<f64>, SolveError> {
        if let Some(values) = &self.values {
            check_not_empty("alphas", "value", values.len())?;
            values.iter().try_for_each(|a| check_alpha(*a))?;
            let mut values = values.clone();
            values.sort_unstable_by(|a, b| b.total_cmp(a));
            return Ok(values);
        }
        check_setting(self.count > 0, "count", self.count, "at least 1")?;
        check_setting(self.ratio > 0.0 && self.ratio <= 1.0, "ratio", self.ratio, "in (0, 1]")?;
        // Targets without any correlation: every α gives the constant model.
        let top = if alpha_max > 0.0 { alpha_max } else { 1.0 };
        let last = self.count.saturating_sub(1).max(1) as f64;
        Ok((0..self.count).map(|k| top * self.ratio.powf(k as f64 / last)).collect())
    }
}

/// The solutions along a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Path {
    /// The values of α, falling.
    pub alphas: Vec<f64>,
    /// The solution for each; fewer than `alphas` when the monitor stopped the run.
    pub solutions: Vec<Solution<Coefficients>>,
    /// The worst status along the path.
    pub status: Status,
    /// Wall-clock seconds in all.
    pub seconds: f64,
}

/// Solves for a falling sequence of α, each from the solution before it.
///
/// # Errors
/// As [`super::solve`].
pub fn path(
    problem: &Problem<'_>,
    grid: &AlphaGrid,
    settings: &GlmSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Path, SolveError> {
    let begin = monitor.seconds();
    let hint = grid.values.as_ref().map_or(grid.count, Vec::len);
    let mut engine = engine(problem, settings, hint)?;
    let alpha_max = engine.alpha_max();
    let alphas = grid.resolve(alpha_max)?;
    let mut solutions = Vec::with_capacity(alphas.len());
    let (mut status, mut previous) = (Status::Converged, alpha_max);
    for &alpha in &alphas {
        let s = engine.solve(Step { alpha, previous: previous.max(alpha) }, monitor)?;
        previous = alpha;
        let ended = s.status;
        solutions.push(s);
        if !ended.is_converged() {
            status = ended;
        }
        if matches!(ended, Status::Stopped | Status::TimeLimit) {
            break;
        }
    }
    Ok(Path { alphas, solutions, status, seconds: monitor.seconds() - begin })
}

/// Settings of [`cross_validate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrossValidationSettings {
    /// Number of folds, from 2 to the number of samples. scikit-learn: 5.
    pub folds: usize,
    /// Seed of the shuffle that makes the folds. Default 0.
    pub seed: u64,
    /// The values of α.
    pub grid: AlphaGrid,
    /// The model.
    pub model: GlmSettings,
}

impl Default for CrossValidationSettings {
    fn default() -> Self {
        Self { folds: 5, seed: 0, grid: AlphaGrid::default(), model: GlmSettings::default() }
    }
}

/// The outcome of [`cross_validate`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CrossValidation {
    /// The values of α, falling.
    pub alphas: Vec<f64>,
    /// Mean loss on the samples left out, for each α.
    pub mean_loss: Vec<f64>,
    /// Standard error of that mean over the folds.
    pub standard_error: Vec<f64>,
    /// Position of the α with the smallest mean loss.
    pub best: usize,
    /// Position of the largest α within one standard error of the best.
    pub one_standard_error: usize,
    /// The solution on all samples for the best α.
    pub solution: Solution<Coefficients>,
}

/// Chooses α by k-fold cross-validation on shuffled folds, then solves on all samples. The loss is
/// that of the model, weighted by `sample_weight`. Stratified by class for the logistic loss.
///
/// # Errors
/// As [`super::solve`]; [`SolveError::Setting`] for the number of folds;
/// [`SolveError::Invalid`] when a fold leaves one class only.
pub fn cross_validate(
    problem: &Problem<'_>,
    settings: &CrossValidationSettings,
    monitor: &mut Monitor<'_>,
) -> Result<CrossValidation, SolveError> {
    let n = problem.x.n_rows();
    let hint = settings.grid.values.as_ref().map_or(settings.grid.count, Vec::len);
    let alphas = settings.grid.resolve(engine(problem, &settings.model, hint)?.alpha_max())?;
    let folds = settings.folds;
    check_setting(folds >= 2 && folds <= n, "folds", folds, "from 2 to the number of samples")?;
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.seed));
    if settings.model.loss == Loss::Logistic {
        order.sort_by(|a, b| problem.y[*a].total_cmp(&problem.y[*b]));
    }
    let grid = AlphaGrid { values: Some(alphas.clone()), ..settings.grid.clone() };
    let mut losses = vec![vec![0.0; folds]; alphas.len()];
    let mut weights = vec![0.0; folds];
    for fold in 0..folds {
        let pick = |inside: bool| -> Vec<usize> {
            (0..n).filter(|k| (k % folds == fold) == inside).map(|k| order[k]).collect()
        };
        let (out, mut kept) = (pick(true), pick(false));
        kept.sort_unstable();
        let take = |v: &[f64], rows: &[usize]| -> Vec<f64> { rows.iter().map(|i| v[*i]).collect() };
        let (x, y) = (problem.x.select_rows(&kept), take(problem.y, &kept));
        let s = problem.sample_weight.map(|s| take(s, &kept));
        let inner = Problem { x: &x, y: &y, sample_weight: s.as_deref() };
        let found = path(&inner, &grid, &settings.model, monitor)?;
        let x = problem.x.select_rows(&out);
        let weight = |i: usize| problem.sample_weight.map_or(1.0, |s| s[i]);
        weights[fold] = out.iter().map(|i| weight(*i)).sum();
        for (k, s) in found.solutions.iter().enumerate() {
            let z = s.x.predict(&x)?;
            let sum: f64 = out
                .iter()
                .zip(z)
                .map(|(i, z)| weight(*i) * settings.model.loss.value(problem.y[*i], z))
                .sum();
            losses[k][fold] = if weights[fold] > 0.0 { sum / weights[fold] } else { 0.0 };
        }
        for row in losses.iter_mut().skip(found.solutions.len()) {
            row[fold] = f64::INFINITY;
        }
    }
    let total: f64 = weights.iter().sum();
    let mean_loss: Vec<f64> =
        losses.iter().map(|l| l.iter().zip(&weights).map(|(l, w)| l * w).sum::<f64>() / total).collect();
    let standard_error: Vec<f64> = losses
        .iter()
        .zip(&mean_loss)
        .map(|(l, m)| {
            let spread: f64 = l.iter().map(|l| (l - m).powi(2)).sum();
            (spread / (folds * (folds - 1)) as f64).sqrt()
        })
        .collect();
    let best = (0..alphas.len()).min_by(|a, b| mean_loss[*a].total_cmp(&mean_loss[*b])).unwrap_or(0);
    let bound = mean_loss[best] + standard_error[best];
    let one_standard_error = mean_loss.iter().position(|l| *l <= bound).unwrap_or(best);
    let solution = super::solve(problem, alphas[best], &settings.model, None, monitor)?;
    Ok(CrossValidation { alphas, mean_loss, standard_error, best, one_standard_error, solution })
}
