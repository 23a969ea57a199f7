//! Many step sizes under an optimistic Hedge, for drifting losses.

use super::{OmdSettings, OnlineLearner, Variant, check_gradient, check_point, squared_distance};
use crate::SolveError;
use crate::error::check_not_empty;
use crate::linop::dense::{axpy, dot};

/// A pool of optimistic learners with steps η_i = min{1/(8L), 2^{i−1}·√(D²/(8G²T))}, all fed the gradient at the
/// combined point, and weights p ∝ exp(−ε(Σ losses + hint)) with the loss ⟨g_t, x_{t,i}⟩ + 2L‖x_{t,i} − x_{t−1,i}‖².
#[derive(Debug, Clone)]
pub struct Ensemble {
    settings: OmdSettings,
    smoothness: f64,
    bound: f64,
    diameter: f64,
    /// Rounds left before T is doubled; None when T was given.
    left: Option<usize>,
    horizon: usize,
    steps: Vec<f64>,
    base: Vec<Vec<f64>>,
    points: Vec<Vec<f64>>,
    losses: Vec<f64>,
    /// 2L‖x_{t,i} − x_{t−1,i}‖² of the coming round.
    moves: Vec<f64>,
    weights: Vec<f64>,
    variation: f64,
    hint: Vec<f64>,
    x: Vec<f64>,
}

impl Ensemble {
    /// A learner in ℝ^d.
    ///
    /// # Errors
    /// [`SolveError::Setting`]; [`SolveError::Empty`] for `d = 0`.
    pub fn new(d: usize, settings: &OmdSettings) -> Result<Self, SolveError> {
        settings.validate()?;
        check_not_empty("d", "dimension", d)?;
        let (Variant::Ensemble { smoothness, rounds }, Some(bound)) =
            (settings.variant, settings.gradient_bound)
        else {
            return Err(SolveError::setting("variant", "another learner's", "ensemble"));
        };
        let first = rounds.unwrap_or(16);
        let x = settings.domain.start(d);
        let mut out = Self {
            settings: settings.clone(),
            smoothness,
            bound,
            diameter: settings.domain.diameter(d),
            left: rounds.is_none().then_some(first),
            horizon: first,
            steps: vec![],
            base: vec![],
            points: vec![],
            losses: vec![],
            moves: vec![],
            weights: vec![],
            variation: 0.0,
            hint: vec![0.0; d],
            x,
        };
        out.restart();
        Ok(out)
    }

    /// The pool of the horizon, at the present point.
    fn restart(&mut self) {
        let (d, g, l, t) = (self.diameter, self.bound, self.smoothness, self.horizon as f64);
        let size = (0.5 * (g * g * t / (8.0 * d * d * l * l)).log2()).ceil() + 1.0;
        let size = if size.is_finite() { size.clamp(1.0, 64.0) as usize } else { 1 };
        let least = (d * d / (8.0 * g * g * t)).sqrt();
        self.steps = (0..size).map(|i| (1.0 / (8.0 * l)).min((i as f64).exp2() * least)).collect();
        self.base = vec![self.x.clone(); size];
        self.points = self.base.clone();
        self.losses = vec![0.0; size];
        self.moves = vec![0.0; size];
        self.weights = vec![1.0 / size as f64; size];
        self.variation = 0.0;
    }

    /// The step sizes of the pool.
    #[must_use]
    pub fn steps(&self) -> &[f64] {
        &self.steps
    }

    /// The weights of the pool; they sum to one.
    #[must_use]
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    fn moved(&self, from: &[f64], g: &[f64], step: f64) -> Vec<f64> {
        let mut to = from.to_vec();
        axpy(-step, g, &mut to);
        self.settings.domain.project(&mut to);
        to
    }

    fn reweigh(&mut self, g: &[f64]) {
        let size = self.steps.len();
        let d_sq = self.diameter * self.diameter;
        let rate =
            (1.0 / (8.0 * d_sq * self.smoothness)).min(((size as f64).ln() / (d_sq * self.variation)).sqrt());
        // N = 1 without variation: 0/0.
        let rate = if rate.is_nan() { 0.0 } else { rate };
        let scores: Vec<f64> =
            (0..size).map(|i| -rate * (self.losses[i] + dot(g, &self.points[i]) + self.moves[i])).collect();
        let most = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
        self.weights = scores.iter().map(|s| (s - most).exp()).collect();
        let sum: f64 = self.weights.iter().sum();
        self.weights.iter_mut().for_each(|w| *w /= sum);
    }
}

impl OnlineLearner for Ensemble {
    fn predict(&self) -> &[f64] {
        &self.x
    }

    fn update(&mut self, gradient: &[f64]) -> Result<(), SolveError> {
        check_gradient(self.x.len(), gradient)?;
        let mut next = self.clone();
        next.variation += squared_distance(gradient, &self.hint);
        for (i, step) in self.steps.iter().enumerate() {
            next.losses[i] += dot(gradient, &self.points[i]) + self.moves[i];
            next.base[i] = self.moved(&self.base[i], gradient, *step);
            next.points[i] = self.moved(&next.base[i], gradient, *step);
            next.moves[i] = 2.0 * self.smoothness * squared_distance(&next.points[i], &self.points[i]);
        }
        next.hint.copy_from_slice(gradient);
        next.reweigh(gradient);
        next.x.fill(0.0);
        next.weights.iter().zip(&next.points).for_each(|(w, x)| axpy(*w, x, &mut next.x));
        check_point(&next.x)?;
        check_point(&next.losses)?;
        if let Some(left) = &mut next.left {
            *left -= 1;
            if *left == 0 {
                next.horizon = next.horizon.saturating_mul(2);
                *left = next.horizon;
                next.restart();
            }
        }
        *self = next;
        Ok(())
    }
}
