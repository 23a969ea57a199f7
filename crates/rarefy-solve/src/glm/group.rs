//! Group penalties and several outputs: group lasso, multinomial regression, minimax concave penalty.
//!
//! ```text
//! minimise over W: [p, k], b: ℝ^k:   (1/Σs) Σᵢ sᵢ f(yᵢ, Wᵀxᵢ + b) + α Σ_g ω_g φ(‖W_g‖_F)
//! ```
//! W_g: the rows of the features of group g; φ(t) = t, or the minimax concave penalty of Zhang (2010),
//! `φ(t) = t − t²/(2γαω_g)` up to `t = γαω_g`, constant beyond. k = 1 but for the multinomial loss.
//!
//! Block coordinate descent with one proximal step of length 1/L_g per group and visit, on working sets; with
//! φ(t) = t a duality gap stops it, with the concave penalty (no convexity, a stationary point only) the
//! length of the proximal step. Cost per visit: O(nnz of the group · k). Convergence is linear and slows
//! down with correlated groups; for single features and convex losses [`super::solve`] is much faster.
//!
//! The concave penalty is bounded: with the logistic or multinomial loss and separable data there is no minimiser,
//! coefficients grow, and the status is not `Converged`.

use serde::{Deserialize, Serialize};

use super::group_descent::Descent;
use super::path::{self, AlphaGrid, CrossValidation, CrossValidationSettings, Family, Path};
use super::{Engine, Loss, Problem, Step, check_alpha};
use crate::error::{check_dimension, check_finite, check_setting};
use crate::{Design, LinOp, Monitor, Solution, SolveError};

/// The data fit of a group model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupLoss {
    /// One output, as in [`super::solve`].
    Single(Loss),
    /// Softmax regression: y holds classes 0, 1, …, `classes − 1`.
    Multinomial {
        /// Number of classes, at least 2.
        classes: usize,
    },
}

/// The penalty on the norm of a group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupPenalty {
    /// The norm itself.
    Norm,
    /// Minimax concave.
    Mcp {
        /// γ > 0, in units of 1/curvature: columns scaled to `‖x‖² = n` want γ > 1. Zhang: 3.
        gamma: f64,
    },
}

/// Settings of [`solve_group`], [`group_path`] and [`group_cross_validate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupSettings {
    /// The data fit. Default: squared.
    pub loss: GroupLoss,
    /// The penalty. Default: the norm.
    pub penalty: GroupPenalty,
    /// Features of each group, every feature in exactly one. Default: each feature by itself.
    pub groups: Option<Vec<Vec<usize>>>,
    /// ω of each group, > 0. Default: the square root of its size (Yuan and Lin 2006).
    pub group_weights: Option<Vec<f64>>,
    /// Constants that are not penalised. Default: yes.
    pub fit_intercept: bool,
    /// Duality gap at which to stop, relative to the loss at W = 0; for the concave penalty the largest
    /// proximal step relative to α. At least 0. Default 1e-6.
    pub tolerance: f64,
    /// Limit of working sets. House default: 200.
    pub max_iterations: usize,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            loss: GroupLoss::Single(Loss::Squared),
            penalty: GroupPenalty::Norm,
            groups: None,
            group_weights: None,
            fit_intercept: true,
            tolerance: 1e-6,
            max_iterations: 200,
        }
    }
}

/// A linear model with one or several outputs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GroupModel {
    /// Number of outputs k.
    pub outputs: usize,
    /// W: [p, k], row-major.
    pub coefficients: Vec<f64>,
    /// b: ℝ^k.
    pub intercepts: Vec<f64>,
}

impl GroupSettings {
    /// Checks the fields that do not depend on the data.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        match self.loss {
            GroupLoss::Multinomial { classes } => {
                check_setting(classes >= 2, "loss.classes", classes, "at least 2")?;
            }
            GroupLoss::Single(Loss::Huber { delta }) => {
                check_setting(delta > 0.0 && delta.is_finite(), "loss.delta", delta, "> 0")?;
            }
            GroupLoss::Single(_) => {}
        }
        if let GroupPenalty::Mcp { gamma } = self.penalty {
            check_setting(gamma > 0.0 && gamma.is_finite(), "penalty.gamma", gamma, "> 0 and finite")?;
        }
        let tol = self.tolerance;
        check_setting(tol >= 0.0 && tol.is_finite(), "tolerance", tol, "at least 0")?;
        check_setting(self.max_iterations > 0, "max_iterations", self.max_iterations, "at least 1")?;
        let bad = self.group_weights.iter().flatten().find(|w| !(**w > 0.0 && w.is_finite()));
        bad.map_or(Ok(()), |w| Err(SolveError::setting("group_weights", w, "> 0 and finite")))
    }

    fn resolve(&self, p: usize) -> Result<(Vec<Vec<usize>>, Vec<f64>), SolveError> {
        let groups = self.groups.clone().unwrap_or_else(|| (0..p).map(|j| vec![j]).collect());
        let mut count = vec![0_usize; p];
        for j in groups.iter().flatten() {
            match count.get_mut(*j) {
                Some(c) => *c += 1,
                None => {
                    let found = format!("feature {j} of {p}");
                    return Err(SolveError::invalid("groups", "features of x", found, "count from 0"));
                }
            }
        }
        if let Some(j) = count.iter().position(|c| *c != 1) {
            return Err(SolveError::invalid(
                "groups",
                "every feature in exactly one group",
                format!("feature {j} in {} groups", count[j]),
                "split or complete the groups",
            ));
        }
        let weights = self
            .group_weights
            .clone()
            .unwrap_or_else(|| groups.iter().map(|g| (g.len() as f64).sqrt()).collect());
        check_dimension("group_weights", groups.len(), "groups", weights.len())?;
        Ok((groups, weights))
    }
}

impl GroupModel {
    /// `X W + b`: [n, k], row-major.
    ///
    /// # Errors
    /// [`SolveError::Dimension`] when the design has another number of columns.
    pub fn predict(&self, x: &Design) -> Result<Vec<f64>, SolveError> {
        let k = self.outputs;
        check_dimension("x", self.coefficients.len(), "coefficients of the model", x.n_cols() * k)?;
        check_dimension("intercepts", k, "outputs", self.intercepts.len())?;
        let (mut z, mut one) = (vec![0.0; x.n_rows() * k], vec![0.0; x.n_rows()]);
        for c in 0..k {
            one.fill(self.intercepts[c]);
            for (j, w) in self.coefficients.iter().skip(c).step_by(k).enumerate().filter(|(_, w)| **w != 0.0)
            {
                x.column(j).add_to(*w, &mut one);
            }
            z.iter_mut().skip(c).step_by(k).zip(&one).for_each(|(z, v)| *z = *v);
        }
        Ok(z)
    }

    fn check(&self, p: usize, k: usize) -> Result<(), SolveError> {
        check_dimension("warm", p * k, "features times outputs", self.coefficients.len())?;
        check_dimension("warm", k, "outputs", self.intercepts.len())?;
        check_finite("warm", self.coefficients.iter().chain(&self.intercepts))
    }
}

impl GroupSettings {
    /// Number of outputs, once the problem fits the loss.
    fn outputs(&self, problem: &Problem<'_>) -> Result<usize, SolveError> {
        let classes = match self.loss {
            GroupLoss::Single(loss) => return problem.check(loss).map(|()| 1),
            GroupLoss::Multinomial { classes } => classes,
        };
        problem.check(Loss::Squared)?;
        let fits = |y: &&f64| **y >= 0.0 && y.fract() == 0.0 && **y < classes as f64;
        if let Some(y) = problem.y.iter().find(|y| !fits(y)) {
            let remedy = "number the classes from 0";
            return Err(SolveError::invalid("y", "classes 0, 1, …, classes - 1", y, remedy));
        }
        let mut seen = vec![false; classes];
        let counts = |i: usize| problem.sample_weight.is_none_or(|s| s[i] > 0.0);
        problem.y.iter().enumerate().filter(|(i, _)| counts(*i)).for_each(|(_, y)| seen[*y as usize] = true);
        match seen.iter().position(|s| !s) {
            // The constant of a class without samples would go to minus infinity.
            Some(c) if self.fit_intercept => Err(SolveError::invalid(
                "y",
                "a sample of every class",
                format!("none of class {c}"),
                "leave the class out, use fewer folds, or fit no intercept",
            )),
            _ => Ok(classes),
        }
    }
}

impl Family for GroupSettings {
    type Model = GroupModel;

    fn engine<'a>(
        &'a self,
        problem: &Problem<'a>,
        _n_alphas: usize,
    ) -> Result<Box<dyn Engine<Model = GroupModel> + 'a>, SolveError> {
        self.validate()?;
        let k = self.outputs(problem)?;
        Ok(Box::new(Descent::new(problem, self, k, self.resolve(problem.x.n_cols())?)))
    }

    fn is_classification(&self) -> bool {
        !matches!(self.loss, GroupLoss::Single(Loss::Squared | Loss::Huber { .. }))
    }

    fn is_convex(&self) -> bool {
        self.penalty == GroupPenalty::Norm
    }

    fn losses(&self, model: &GroupModel, x: &Design, y: &[f64]) -> Result<Vec<f64>, SolveError> {
        let z = model.predict(x)?;
        Ok(y.iter().zip(z.chunks_exact(model.outputs)).map(|(y, z)| self.loss.value(*y, z)).collect())
    }
}

impl GroupLoss {
    /// `f(y, z)`, z: ℝ^k.
    pub(super) fn value(self, y: f64, z: &[f64]) -> f64 {
        match self {
            GroupLoss::Single(loss) => loss.value(y, z[0]),
            GroupLoss::Multinomial { .. } => {
                let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                top + z.iter().map(|v| (v - top).exp()).sum::<f64>().ln() - z[y as usize]
            }
        }
    }
}

/// Solves for one α, from zero or from a warm start. The first residual is the duality gap in units of
/// the objective, or for the concave penalty the largest proximal step relative to α.
///
/// # Errors
/// A [`SolveError`] naming the argument.
pub fn solve_group(
    problem: &Problem<'_>,
    alpha: f64,
    settings: &GroupSettings,
    warm: Option<&GroupModel>,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<GroupModel>, SolveError> {
    check_alpha(alpha)?;
    let mut engine = settings.engine(problem, 1)?;
    if let Some(warm) = warm {
        warm.check(problem.x.n_cols(), settings.outputs(problem)?)?;
        engine.start_at(warm);
    }
    engine.solve(Step { alpha, previous: alpha }, monitor)
}

/// The smallest α for which W = 0 is the answer; for the concave penalty, for which no proximal step leaves it.
///
/// # Errors
/// As [`solve_group`].
pub fn group_alpha_max(problem: &Problem<'_>, settings: &GroupSettings) -> Result<f64, SolveError> {
    Ok(settings.engine(problem, 1)?.alpha_max())
}

/// Solves for a falling sequence of α, each from the solution before it.
///
/// With the concave penalty the objective has many stationary points, and where one ends depends on where one
/// starts. The path starts at `alpha_max`, where the answer is W = 0 and the objective is convex along every
/// small set of groups (its curvature there exceeds the penalty's −1/γ), and follows that stationary point down: a grid
/// that begins lower is reached over steps of 0.8 that are not reported. So the answer at α is the continuation of the
/// sparse, locally convex answers above it (Breheny and Huang, 2011); it is stationary, not certified as the
/// global minimum, may jump where the continuation ends, and may differ from [`solve_group`] from zero at
/// the same α and, near a jump, from that of a finer grid.
///
/// # Errors
/// As [`solve_group`].
pub fn group_path(
    problem: &Problem<'_>,
    grid: &AlphaGrid,
    settings: &GroupSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Path<GroupModel>, SolveError> {
    path::follow(problem, grid, settings, monitor)
}

/// Chooses α by k-fold cross-validation over [`group_path`], then solves on all samples; with the concave penalty
/// that last solution is the end of the path down to the chosen α. As [`super::cross_validate`] otherwise;
/// stratified by class for the multinomial and the logistic loss.
///
/// # Errors
/// As [`solve_group`]; [`SolveError::Setting`] for the number of folds; [`SolveError::Invalid`] when a fold
/// leaves no sample of a class.
pub fn group_cross_validate(
    problem: &Problem<'_>,
    settings: &CrossValidationSettings<GroupSettings>,
    monitor: &mut Monitor<'_>,
) -> Result<CrossValidation<GroupModel>, SolveError> {
    path::choose(problem, settings, monitor)
}
