//! Sparse generalised linear models: data fits × penalties, solved by coordinate descent.
//!
//! ```text
//! minimise over w ∈ ℝᵖ, b ∈ ℝ:
//!     (1/Σs) Σᵢ sᵢ f(yᵢ, xᵢᵀw + b) + α Σⱼ ωⱼ (ρ|wⱼ| + ½(1 − ρ) wⱼ²)
//! ```
//! with x: [n, p], y: ℝ^n, sample weights s: ℝ^n > 0 somewhere (default 1), feature weights ω: ℝ^p > 0
//! (default 1), `ρ = l1_ratio` in (0, 1], optionally `w ≥ 0`, and f the squared loss `½(y − z)²`, the
//! logistic loss `ln(1 + exp(−yz))` with y ∈ {−1, 1}, or Huber's loss.
//!
//! - [`solve`] one α, from zero or from a warm start; [`path`] a falling sequence of them;
//!   [`cross_validate`] chooses α on seeded folds.
//! - Every answer carries a duality gap: `objective − optimum ≤ gap`. It stops when the gap is at
//!   most `tolerance` times the loss of the best constant model.
//!
//! - [`solve_group`], [`group_path`], [`group_cross_validate`]: group lasso, multinomial regression, the minimax
//!   concave penalty;
//!   [`proximal_gradient`] (ISTA, FISTA) for operators that only multiply; [`orthogonal_matching_pursuit`].
//!
//! How: working sets (features that violate the optimality conditions or pass the sequential
//! strong rule), gap-safe screening (Ndiaye, Fercoq, Gramfort, Salmon, JMLR 2017), and inside the
//! working set coordinate descent on the Gram matrix with exact Newton steps on the support, or on
//! the residual with Anderson extrapolation (Bertrand, Massias, AISTATS 2021) where columns are so
//! sparse that this is cheaper. Dense problems with n ≫ p are solved in the Gram matrix alone.
//! Logistic and Huber losses: a sequence of such quadratic problems with a line search.
//!
//! Cost: O(nnz) for each certificate, O(m² + m·nnz(column)) for each feature that enters a Gram
//! matrix of m features. Memory: the Gram matrix, at most 4096² numbers. Sparse designs are
//! centred implicitly; dense ones are copied when an intercept or sample weights are asked for.

mod anderson;
mod baselines;
mod group;
mod group_descent;
mod loss;
mod newton;
mod path;
mod prepare;
pub(crate) mod quadratic;
mod squared;
mod working_set;

pub use baselines::{OmpSettings, ProximalGradientSettings, orthogonal_matching_pursuit, proximal_gradient};
pub use group::{
    GroupLoss, GroupModel, GroupPenalty, GroupSettings, group_alpha_max, group_cross_validate, group_path,
    solve_group,
};
pub use path::{AlphaGrid, CrossValidation, CrossValidationSettings, Path, cross_validate, path};

use serde::{Deserialize, Serialize};

use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::{Design, LinOp, Monitor, Solution, SolveError};

/// The data of a regression or classification problem.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Design: [n, p].
    pub x: &'a Design,
    /// Targets: ℝ^n; −1 and 1 for the logistic loss.
    pub y: &'a [f64],
    /// Weights of the samples: ℝ^n, at least 0, not all 0. `None`: all 1.
    pub sample_weight: Option<&'a [f64]>,
}

impl<'a> Problem<'a> {
    /// A problem whose samples all count the same.
    #[must_use]
    pub fn new(x: &'a Design, y: &'a [f64]) -> Self {
        Self { x, y, sample_weight: None }
    }

    pub(crate) fn check(&self, loss: Loss) -> Result<(), SolveError> {
        check_not_empty("x", "row", self.x.n_rows())?;
        check_dimension("y", self.x.n_rows(), "rows of x", self.y.len())?;
        check_finite("y", self.y)?;
        self.x.check_finite()?;
        if let Some(s) = self.sample_weight {
            check_dimension("sample_weight", self.x.n_rows(), "rows of x", s.len())?;
            check_finite("sample_weight", s)?;
            if let Some(i) = s.iter().position(|v| *v < 0.0) {
                return Err(SolveError::invalid(
                    "sample_weight",
                    "values of at least 0",
                    format!("{} at index {i}", s[i]),
                    "use 0 to leave a sample out",
                ));
            }
            if s.iter().all(|v| *v == 0.0) {
                return Err(SolveError::invalid(
                    "sample_weight",
                    "a positive value",
                    "zeros only",
                    "give at least one sample a weight",
                ));
            }
        }
        if loss == Loss::Logistic {
            if let Some(i) = self.y.iter().position(|v| v.abs().total_cmp(&1.0).is_ne()) {
                return Err(SolveError::invalid(
                    "y",
                    "-1 or 1 for the logistic loss",
                    format!("{} at index {i}", self.y[i]),
                    "recode the two classes",
                ));
            }
            let counts = |i: usize| self.sample_weight.is_none_or(|s| s[i] > 0.0);
            let has = |sign: f64| (0..self.y.len()).any(|i| self.y[i] * sign > 0.0 && counts(i));
            if !(has(1.0) && has(-1.0)) {
                return Err(SolveError::invalid(
                    "y",
                    "both classes",
                    "one class only",
                    "add samples of the other class",
                ));
            }
        }
        Ok(())
    }
}

/// The data fit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Loss {
    /// `½(y − z)²`.
    Squared,
    /// `ln(1 + exp(−y z))`, y ∈ {−1, 1}.
    Logistic,
    /// Huber: `½(y − z)²` up to `|y − z| = delta`, linear beyond.
    Huber {
        /// Where it becomes linear, > 0, in the units of y.
        delta: f64,
    },
}

/// Whether the whole Gram matrix `XᵀX` is formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GramChoice {
    /// When it is likely to be faster: many more samples than features.
    Auto,
    /// Always (squared loss only).
    Always,
    /// Never: Gram matrices of working sets only.
    Never,
}

/// Settings of [`solve`], [`path`] and [`cross_validate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GlmSettings {
    /// The data fit. Default: squared.
    pub loss: Loss,
    /// Share ρ of the l1 penalty, in (0, 1]; 1 is the lasso. scikit-learn's `l1_ratio`; default 1.
    pub l1_ratio: f64,
    /// Weight ω of each feature in the penalty, > 0 and finite. Default: all 1.
    pub penalty_weights: Option<Vec<f64>>,
    /// Only coefficients of at least 0. Default: no.
    pub positive: bool,
    /// A constant that is not penalised. Default: yes.
    pub fit_intercept: bool,
    /// Duality gap at which to stop, relative to the loss of the best constant model, at least 0.
    /// Default 1e-6; 1e-8 to 1e-12 is reachable on scaled data.
    pub tolerance: f64,
    /// Limit of working sets per α. House default: 200.
    pub max_iterations: usize,
    /// Whether the whole Gram matrix is formed. Default: auto.
    pub gram: GramChoice,
}

impl Default for GlmSettings {
    fn default() -> Self {
        Self {
            loss: Loss::Squared,
            l1_ratio: 1.0,
            penalty_weights: None,
            positive: false,
            fit_intercept: true,
            tolerance: 1e-6,
            max_iterations: 200,
            gram: GramChoice::Auto,
        }
    }
}

impl GlmSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        if let Loss::Huber { delta } = self.loss {
            check_setting(delta > 0.0 && delta.is_finite(), "loss.delta", delta, "> 0")?;
        }
        let rho = self.l1_ratio;
        check_setting(rho > 0.0 && rho <= 1.0, "l1_ratio", rho, "in (0, 1]; use ridge regression for 0")?;
        let tol = self.tolerance;
        check_setting(tol >= 0.0 && tol.is_finite(), "tolerance", tol, "at least 0")?;
        check_setting(self.max_iterations > 0, "max_iterations", self.max_iterations, "at least 1")?;
        let bad = self.penalty_weights.iter().flatten().find(|w| !(**w > 0.0 && w.is_finite()));
        bad.map_or(Ok(()), |w| Err(SolveError::setting("penalty_weights", w, "> 0 and finite")))
    }

    fn check(&self, problem: &Problem<'_>) -> Result<(), SolveError> {
        self.validate()?;
        problem.check(self.loss)?;
        let p = problem.x.n_cols();
        let weights = self.penalty_weights.as_ref();
        weights.map_or(Ok(()), |w| check_dimension("penalty_weights", p, "columns of x", w.len()))
    }
}

/// A linear model: its non-zero coefficients and the intercept.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Coefficients {
    /// Number of features.
    pub n_features: usize,
    /// Features with a non-zero coefficient, rising.
    pub indices: Vec<usize>,
    /// Their coefficients.
    pub values: Vec<f64>,
    /// The constant; 0 when none is fitted.
    pub intercept: f64,
}

impl Coefficients {
    pub(crate) fn from_dense(w: &[f64], intercept: f64) -> Self {
        let indices: Vec<usize> = (0..w.len()).filter(|j| w[*j] != 0.0).collect();
        let values = indices.iter().map(|j| w[*j]).collect();
        Self { n_features: w.len(), indices, values, intercept }
    }

    /// All coefficients: ℝ^p.
    #[must_use]
    pub fn to_dense(&self) -> Vec<f64> {
        let mut w = vec![0.0; self.n_features];
        self.indices.iter().zip(&self.values).for_each(|(j, v)| w[*j] = *v);
        w
    }

    /// Number of non-zero coefficients.
    #[must_use]
    pub fn nnz(&self) -> usize {
        self.indices.len()
    }

    /// `X w + b`: ℝ^n.
    ///
    /// # Errors
    /// [`SolveError::Dimension`] when the design has another number of columns.
    pub fn predict(&self, x: &Design) -> Result<Vec<f64>, SolveError> {
        check_dimension("x", self.n_features, "features of the model", x.n_cols())?;
        let mut z = vec![self.intercept; x.n_rows()];
        for (j, v) in self.indices.iter().zip(&self.values) {
            x.column(*j).add_to(*v, &mut z);
        }
        Ok(z)
    }

    fn check(&self, p: usize) -> Result<(), SolveError> {
        check_dimension("warm", p, "columns of x", self.n_features)?;
        check_dimension("warm", self.indices.len(), "one value for each index", self.values.len())?;
        check_finite("warm", self.values.iter().chain([&self.intercept]))?;
        match self.indices.iter().find(|j| **j >= p) {
            Some(j) => Err(SolveError::invalid(
                "warm",
                "features of x",
                format!("feature {j} of {p}"),
                "use the solution of the same design",
            )),
            None => Ok(()),
        }
    }
}

/// One α and the one before it on a path.
#[derive(Debug, Clone, Copy)]
struct Step {
    alpha: f64,
    /// Largest gradient that the point at hand was solved for, as an α.
    previous: f64,
}

/// A problem made ready: what [`path`] needs.
trait Engine {
    type Model;
    /// The smallest α with all coefficients 0.
    fn alpha_max(&self) -> f64;
    /// Goes to this point.
    fn start_at(&mut self, point: &Self::Model);
    /// Solves for one α from where it is.
    fn solve(&mut self, step: Step, monitor: &mut Monitor<'_>) -> Result<Solution<Self::Model>, SolveError>;
}

fn engine<'a>(
    problem: &Problem<'a>,
    settings: &'a GlmSettings,
    n_alphas: usize,
) -> Result<Box<dyn Engine<Model = Coefficients> + 'a>, SolveError> {
    settings.check(problem)?;
    Ok(match settings.loss {
        Loss::Squared => Box::new(squared::Squared::new(problem, settings, n_alphas)),
        Loss::Logistic | Loss::Huber { .. } => Box::new(newton::Newton::new(problem, settings)),
    })
}

fn check_alpha(alpha: f64) -> Result<(), SolveError> {
    check_setting(alpha > 0.0 && alpha.is_finite(), "alpha", alpha, "> 0 and finite")
}

/// Solves for one α, from zero or from a warm start. The first residual is the duality gap, in
/// units of the objective.
///
/// # Errors
/// A [`SolveError`] naming the argument; running out of iterations is a status.
///
/// ```
/// use rarefy_solve::{Design, Monitor, glm::{GlmSettings, Problem, solve}, linop::dense_from_rows};
/// // Orthogonal columns: coefficients are soft thresholds of ⟨x, y⟩/n.
/// let x = Design::from(dense_from_rows(&[[1.0, 1.0], [1.0, -1.0]])?);
/// let settings = GlmSettings { fit_intercept: false, tolerance: 1e-12, ..Default::default() };
/// let s = solve(&Problem::new(&x, &[3.0, 1.0]), 0.5, &settings, None, &mut Monitor::silent())?;
/// assert_eq!(s.x.to_dense(), [1.5, 0.5]);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
pub fn solve(
    problem: &Problem<'_>,
    alpha: f64,
    settings: &GlmSettings,
    warm: Option<&Coefficients>,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Coefficients>, SolveError> {
    check_alpha(alpha)?;
    let mut engine = engine(problem, settings, 1)?;
    let mut previous = engine.alpha_max();
    if let Some(point) = warm {
        point.check(problem.x.n_cols())?;
        engine.start_at(point);
        previous = alpha;
    }
    engine.solve(Step { alpha, previous }, monitor)
}

/// The smallest α for which all coefficients are 0.
///
/// # Errors
/// As [`solve`].
pub fn alpha_max(problem: &Problem<'_>, settings: &GlmSettings) -> Result<f64, SolveError> {
    Ok(engine(problem, settings, 1)?.alpha_max())
}
