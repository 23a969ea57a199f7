//! Optimistic OMD — learns online with regret that shrinks with the noise and the drift of the losses.
//!
//! Paper:    Chen, Zhang, Tu, Zhao, Zhang, Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial
//!           Online Convex Optimization, ICML 2023, JMLR 25(178), 2024, arXiv 2302.04552. Reference code: none.
//! Problem:  in round t play x_t ∈ X ⊂ ℝ^d, then see g_t = ∇f_t(x_t); f_t is drawn from an unknown distribution with
//!           mean F_t. Regret Σ f_t(x_t) − min_{u ∈ X} Σ f_t(u), or against a moving u_t.
//! Method:   with the hint M_t = g_{t−1}: x_t = argmin_X ⟨M_t, x⟩ + B_t(x, x̂_t);
//!           x̂_{t+1} = argmin_X ⟨g_t, x⟩ + B_t(x, x̂_t). Convex: η_t = D/√(δ + 4G² + V̄_{t−1}),
//!           V̄ = Σ‖g_s − M_s‖², of past rounds only. Strongly convex: η_t = 2/(λt). Exp-concave: the norm
//!           of H_t = (1 + βG²/2)I + (β/2)Σ_{s<t} g_s g_sᵀ, β = ½ min{α, 1/(4GD)}. Ensemble: see [`Ensemble`].
//! Cost:     a round O(d) and one projection; exp-concave O(d²), O(d³) when the step leaves X; ensemble N = O(log T)
//!           times as much. One gradient per round. Memory O(d), O(d²), O(Nd).
//! Variants: [`Variant`], [`Domain`], [`Hint`]; `l1` adds μ‖x‖₁ to each loss as a proximal step (OptCMD, NeurIPS 2024),
//!           with iterates that are sparse.
//! Differs:  from the paper: the exp-concave, strongly convex and ensemble constants are reconstructions; G may be left
//!           open (the largest gradient so far); entropy steps measure V̄ in the largest entry and take D² = 2 ln d.
//!           Implicit updates for losses without smoothness are not here.
//! Choose:   convex for any stream; strongly convex only for a stationary one, it cannot follow a change; exp-concave wins
//!           for very long streams only; the ensemble for drifting ones. [`crate::glm`] when all data are at hand.
//! Fails on: wrong sizes → `Dimension`; gradients that are not finite → `NonFinite`; iterates that overflow →
//!           `Breakdown`. Expected regret O(√σ² + √Σ²) for convex losses is proved in the paper; that of the ensemble is
//!           known up to its exact form. Evidence: `optimistic-omd.json`, repro `optimistic-omd`.

mod domain;
mod ensemble;
mod exp_concave;
mod mirror;

pub use domain::Domain;
pub use ensemble::Ensemble;
pub use exp_concave::{ExpConcaveOmd, project_in_norm};
pub use mirror::{Omd, OptimisticFtrl};

use std::fmt;
use std::ops::ControlFlow;

use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};

use crate::error::{check_dimension, check_finite, check_setting};
use crate::{Monitor, Residual, Solution, SolveError, Status, Trace};

/// The registry row.
pub const INFO: MethodInfo = MethodInfo {
    slug: "optimistic-omd",
    name: "Optimistic OMD",
    family: "solver",
    paper: "Chen et al., JMLR 25(178), 2024, arXiv 2302.04552",
    command: "solve online --method optimistic-omd",
    maturity: Maturity::Preview,
    summary: "online learning whose regret shrinks with the noise and the drift of the losses",
};

/// Learns from one gradient per round.
pub trait OnlineLearner: fmt::Debug + Send {
    /// The point of the coming round.
    fn predict(&self) -> &[f64];

    /// Takes the gradient at [`OnlineLearner::predict`] and moves on.
    ///
    /// # Errors
    /// [`SolveError::Dimension`], [`SolveError::NonFinite`]; [`SolveError::Breakdown`] when the next point overflows.
    /// After an error the learner is as before.
    fn update(&mut self, gradient: &[f64]) -> Result<(), SolveError>;
}

/// What the learner expects of the losses, and with it the step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Convex: η_t = D/√(δ + 4G² + V̄_{t−1}).
    Convex,
    /// Strongly convex in the mean: η_t = 2/(λt).
    StronglyConvex {
        /// λ, above 0.
        lambda: f64,
    },
    /// Exp-concave; needs G, and a ball, a box or the whole space.
    ExpConcave {
        /// α, above 0.
        alpha: f64,
    },
    /// Drifting smooth losses: learners with many steps under a meta-learner; needs G, Euclidean steps.
    Ensemble {
        /// L of the mean losses, above 0.
        smoothness: f64,
        /// T. None: restarts with doubled T.
        rounds: Option<usize>,
    },
    /// Optimistic follow-the-regularised-leader with the step of [`Variant::Convex`].
    Ftrl,
    /// Step D/(G√t); needs G. With [`Hint::Zero`]: online gradient descent.
    OnlineGradient,
    /// Step D/(G√T); needs G. With [`Hint::Zero`]: the textbook's gradient descent.
    FixedHorizon {
        /// T, at least 1.
        rounds: usize,
    },
    /// The same step in every round.
    FixedStep {
        /// η, above 0.
        step: f64,
    },
}

/// M_t.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hint {
    /// The gradient of the last round.
    LastGradient,
    /// Nothing: plain mirror descent.
    Zero,
}

/// Settings of [`learner`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OmdSettings {
    /// X.
    pub domain: Domain,
    /// Step. House default: convex.
    pub variant: Variant,
    /// Hint. Paper: the last gradient.
    pub hint: Hint,
    /// G with ‖g_t‖ ≤ G, above 0. None: the largest norm so far, where the variant allows it.
    pub gradient_bound: Option<f64>,
    /// δ, above 0. Paper: 1.
    pub delta: f64,
    /// Whether 4G² stands in the root; without it steps are longer, and regret without noise is no longer
    /// bounded in theory. Paper: true.
    pub keeps_bound: bool,
    /// μ ≥ 0 of an added μ‖x‖₁. 0 in the paper.
    pub l1: f64,
}

impl Default for OmdSettings {
    fn default() -> Self {
        Self {
            domain: Domain::Ball { radius: 1.0 },
            variant: Variant::Convex,
            hint: Hint::LastGradient,
            gradient_bound: None,
            delta: 1.0,
            keeps_bound: true,
            l1: 0.0,
        }
    }
}

impl OmdSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        let above = |v: f64| v > 0.0 && v.is_finite();
        self.domain.validate()?;
        let bound = self.gradient_bound;
        check_setting(bound.is_none_or(above), "gradient_bound", bound.unwrap_or(0.0), "above 0 and finite")?;
        check_setting(above(self.delta), "delta", self.delta, "above 0 and finite")?;
        check_setting(self.l1 >= 0.0 && self.l1.is_finite(), "l1", self.l1, "at least 0 and finite")?;
        let entropy = self.domain == Domain::EntropySimplex;
        let simplex = entropy || self.domain == Domain::Simplex;
        check_setting(self.l1 == 0.0 || !simplex, "l1", self.l1, "0 on a simplex, where it is constant")?;
        let needs_bound = match self.variant {
            Variant::Convex | Variant::Ftrl => false,
            Variant::StronglyConvex { lambda } => {
                check_setting(above(lambda), "lambda", lambda, "above 0 and finite")?;
                false
            }
            Variant::FixedStep { step } => {
                check_setting(above(step), "step", step, "above 0 and finite")?;
                false
            }
            Variant::ExpConcave { alpha } => {
                check_setting(above(alpha), "alpha", alpha, "above 0 and finite")?;
                check_setting(!simplex, "domain", "simplex", "a ball, a box or the whole space here")?;
                check_setting(self.l1 == 0.0, "l1", self.l1, "0 for exp-concave losses")?;
                true
            }
            Variant::Ensemble { smoothness, rounds } => {
                check_setting(above(smoothness), "smoothness", smoothness, "above 0 and finite")?;
                check_setting(rounds != Some(0), "rounds", 0, "at least 1")?;
                check_setting(self.l1 == 0.0, "l1", self.l1, "0 for the ensemble")?;
                check_setting(!entropy, "domain", "entropy-simplex", "one with Euclidean steps here")?;
                true
            }
            Variant::OnlineGradient => true,
            Variant::FixedHorizon { rounds } => {
                check_setting(rounds >= 1, "rounds", rounds, "at least 1")?;
                true
            }
        };
        check_setting(
            !(self.variant == Variant::Ftrl && entropy),
            "domain",
            "entropy-simplex",
            "one with Euclidean steps here",
        )?;
        check_setting(!needs_bound || bound.is_some(), "gradient_bound", "none", "given for this variant")
    }
}

/// A learner in ℝ^d.
///
/// ```
/// use rarefy_solve::methods::optimistic_omd::{OmdSettings, learner};
/// let mut learner = learner(2, &OmdSettings::default())?;
/// for _ in 0..50 {
///     learner.update(&[0.6, -0.8])?;
/// }
/// let x = learner.predict();
/// assert!((x[0] + 0.6).abs() < 1e-9 && (x[1] - 0.8).abs() < 1e-9);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
///
/// # Errors
/// [`SolveError::Setting`]; [`SolveError::Empty`] for `d = 0`.
pub fn learner(d: usize, settings: &OmdSettings) -> Result<Box<dyn OnlineLearner>, SolveError> {
    Ok(match settings.variant {
        Variant::ExpConcave { .. } => Box::new(ExpConcaveOmd::new(d, settings)?),
        Variant::Ensemble { .. } => Box::new(Ensemble::new(d, settings)?),
        Variant::Ftrl => Box::new(OptimisticFtrl::new(d, settings)?),
        _ => Box::new(Omd::new(d, settings)?),
    })
}

/// What a run of rounds leaves.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Played {
    /// The point of the next round.
    pub last: Vec<f64>,
    /// Mean of the points played: the answer of online-to-batch conversion.
    pub average: Vec<f64>,
}

/// The losses of a run: `loss(t, x, gradient) → value`.
pub type Loss<'a> = &'a mut dyn FnMut(usize, &[f64], &mut [f64]) -> f64;

/// Plays `rounds` rounds against `loss(t, x, gradient) → value`, t from 0. Objective: the sum of the losses.
/// [`Status::Converged`] when all rounds were played.
///
/// # Errors
/// Those of [`OnlineLearner::update`]; [`SolveError::NonFinite`] for a loss that is not finite.
pub fn play(
    learner: &mut dyn OnlineLearner,
    rounds: usize,
    loss: Loss<'_>,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Played>, SolveError> {
    let begin = monitor.seconds();
    let d = learner.predict().len();
    let (mut total, mut sum, mut gradient) = (0.0, vec![0.0; d], vec![0.0; d]);
    let (mut status, mut trace, mut played) = (Status::Converged, Trace::new(), 0);
    for t in 0..rounds {
        let x = learner.predict();
        let value = loss(t, x, &mut gradient);
        check_finite("loss", &[value])?;
        total += value;
        sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
        learner.update(&gradient)?;
        played = t + 1;
        let mean = total / played as f64;
        // Rounds 1, 2, 4, … and the last are recorded, the others are only watched.
        let seen = if played.is_power_of_two() || played == rounds {
            monitor.record(&mut trace, played, total, mean)
        } else {
            monitor.observe(played, total, mean)
        };
        if let ControlFlow::Break(why) = seen {
            status = why;
            break;
        }
    }
    let average = if played == 0 {
        learner.predict().to_vec()
    } else {
        sum.iter().map(|s| s / played as f64).collect()
    };
    Ok(Solution {
        x: Played { last: learner.predict().to_vec(), average },
        status,
        objective: total,
        residuals: vec![Residual { name: "mean loss", value: total / played.max(1) as f64 }],
        iterations: played,
        trace,
        seconds: monitor.seconds() - begin,
    })
}

fn check_gradient(d: usize, gradient: &[f64]) -> Result<(), SolveError> {
    check_dimension("gradient", d, "dimension of the learner", gradient.len())?;
    check_finite("gradient", gradient)
}

fn check_point(x: &[f64]) -> Result<(), SolveError> {
    if x.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    Err(SolveError::breakdown("optimistic OMD", "the next point overflowed", "scale the losses down"))
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}
