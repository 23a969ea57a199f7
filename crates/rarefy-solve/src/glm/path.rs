//! Regularisation paths and the choice of α by cross-validation.

use rand::seq::SliceRandom;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde::{Deserialize, Serialize};

use super::{Coefficients, Engine, GlmSettings, Loss, Problem, Step, check_alpha};
use crate::error::{check_not_empty, check_setting};
use crate::{Design, LinOp, Monitor, Solution, SolveError, Status};

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
    fn len(&self) -> usize {
        self.values.as_ref().map_or(self.count, Vec::len)
    }

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

/// A family of models indexed by α: what paths and cross-validation need of its settings.
pub(super) trait Family {
    type Model;
    /// The problem made ready, for about so many α.
    fn engine<'a>(
        &'a self,
        problem: &Problem<'a>,
        n_alphas: usize,
    ) -> Result<Box<dyn Engine<Model = Self::Model> + 'a>, SolveError>;
    /// Whether y holds classes.
    fn is_classification(&self) -> bool;
    /// Whether the answer depends on α alone, not on where one comes from.
    fn is_convex(&self) -> bool;
    /// Loss of each sample.
    fn losses(&self, model: &Self::Model, x: &Design, y: &[f64]) -> Result<Vec<f64>, SolveError>;
}

impl Family for GlmSettings {
    type Model = Coefficients;

    fn engine<'a>(
        &'a self,
        problem: &Problem<'a>,
        n_alphas: usize,
    ) -> Result<Box<dyn Engine<Model = Coefficients> + 'a>, SolveError> {
        super::engine(problem, self, n_alphas)
    }

    fn is_classification(&self) -> bool {
        self.loss == Loss::Logistic
    }

    fn is_convex(&self) -> bool {
        true
    }

    fn losses(&self, model: &Coefficients, x: &Design, y: &[f64]) -> Result<Vec<f64>, SolveError> {
        Ok(y.iter().zip(model.predict(x)?).map(|(y, z)| self.loss.value(*y, z)).collect())
    }
}

/// The solutions along a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Path<M = Coefficients> {
    /// The values of α, falling.
    pub alphas: Vec<f64>,
    /// The solution for each; fewer than `alphas` when the monitor stopped the run.
    pub solutions: Vec<Solution<M>>,
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
    follow(problem, grid, settings, monitor)
}

/// The path of any family.
pub(super) fn follow<F: Family>(
    problem: &Problem<'_>,
    grid: &AlphaGrid,
    family: &F,
    monitor: &mut Monitor<'_>,
) -> Result<Path<F::Model>, SolveError> {
    let begin = monitor.seconds();
    let mut engine = family.engine(problem, grid.len())?;
    let alpha_max = engine.alpha_max();
    let alphas = grid.resolve(alpha_max)?;
    let mut solutions = Vec::with_capacity(alphas.len());
    let (mut status, mut previous) = (Status::Converged, alpha_max);
    if !family.is_convex() {
        // Without convexity the way counts: from the top, whatever the grid.
        let mut alpha = 0.8 * alpha_max;
        while alpha > alphas[0] {
            let s = engine.solve(Step { alpha, previous }, monitor)?;
            if matches!(s.status, Status::Stopped | Status::TimeLimit) {
                let seconds = monitor.seconds() - begin;
                return Ok(Path { alphas, solutions, status: s.status, seconds });
            }
            previous = alpha;
            alpha *= 0.8;
        }
    }
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

/// Settings of [`cross_validate`] and, with [`super::GroupSettings`], of [`super::group_cross_validate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, bound(deserialize = "S: Default + Deserialize<'de>"))]
pub struct CrossValidationSettings<S = GlmSettings> {
    /// Number of folds, from 2 to the number of samples. scikit-learn: 5.
    pub folds: usize,
    /// Seed of the shuffle that makes the folds. Default 0.
    pub seed: u64,
    /// The values of α.
    pub grid: AlphaGrid,
    /// The model.
    pub model: S,
}

impl<S: Default> Default for CrossValidationSettings<S> {
    fn default() -> Self {
        Self { folds: 5, seed: 0, grid: AlphaGrid::default(), model: S::default() }
    }
}

/// The outcome of [`cross_validate`] and [`super::group_cross_validate`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CrossValidation<M = Coefficients> {
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
    pub solution: Solution<M>,
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
    choose(problem, settings, monitor)
}

/// Cross-validation of any family.
pub(super) fn choose<F: Family>(
    problem: &Problem<'_>,
    settings: &CrossValidationSettings<F>,
    monitor: &mut Monitor<'_>,
) -> Result<CrossValidation<F::Model>, SolveError> {
    let (n, family) = (problem.x.n_rows(), &settings.model);
    let alphas = settings.grid.resolve(family.engine(problem, settings.grid.len())?.alpha_max())?;
    let folds = settings.folds;
    check_setting(folds >= 2 && folds <= n, "folds", folds, "from 2 to the number of samples")?;
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.seed));
    if family.is_classification() {
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
        let found = follow(&inner, &grid, family, monitor)?;
        let (x, y) = (problem.x.select_rows(&out), take(problem.y, &out));
        let weight = |i: usize| problem.sample_weight.map_or(1.0, |s| s[i]);
        weights[fold] = out.iter().map(|i| weight(*i)).sum();
        for (k, s) in found.solutions.iter().enumerate() {
            let values = family.losses(&s.x, &x, &y)?;
            let sum: f64 = out.iter().zip(values).map(|(i, v)| weight(*i) * v).sum();
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
    // One α, or the way down to it where the way counts.
    let from = if family.is_convex() { best } else { 0 };
    let last = AlphaGrid { values: Some(alphas[from..=best].to_vec()), ..settings.grid.clone() };
    let solution = match follow(problem, &last, family, monitor)?.solutions.pop() {
        Some(s) => s,
        // The monitor stopped it on the way to the first α.
        None => {
            family.engine(problem, 1)?.solve(Step { alpha: alphas[best], previous: alphas[best] }, monitor)?
        }
    };
    Ok(CrossValidation { alphas, mean_loss, standard_error, best, one_standard_error, solution })
}
