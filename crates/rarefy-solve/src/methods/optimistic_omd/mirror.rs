//! Euclidean and entropy steps, and follow-the-regularised-leader.

use super::{Domain, Hint, OmdSettings, OnlineLearner, Variant, check_gradient, check_point};
use crate::SolveError;
use crate::error::check_not_empty;
use crate::linop::dense::axpy;
use crate::prox;

/// The step of the coming round, from past rounds.
#[derive(Debug, Clone)]
struct Steps {
    settings: OmdSettings,
    diameter: f64,
    /// t of the coming round, from 1.
    round: f64,
    /// V̄.
    variation: f64,
    /// Largest gradient so far.
    largest: f64,
}

impl Steps {
    fn new(d: usize, settings: &OmdSettings) -> Self {
        let diameter = settings.domain.diameter(d);
        Self { settings: settings.clone(), diameter, round: 1.0, variation: 0.0, largest: 0.0 }
    }

    /// η_t.
    fn step(&self) -> f64 {
        let s = &self.settings;
        let bound = s.gradient_bound.unwrap_or(self.largest);
        match s.variant {
            Variant::StronglyConvex { lambda } => 2.0 / (lambda * self.round),
            Variant::OnlineGradient => self.diameter / (bound * self.round.sqrt()),
            Variant::FixedHorizon { rounds } => self.diameter / (bound * (rounds as f64).sqrt()),
            Variant::FixedStep { step } => step,
            _ => {
                let kept = if s.keeps_bound { 4.0 * bound * bound } else { 0.0 };
                self.diameter / (s.delta + kept + self.variation).sqrt()
            }
        }
    }

    /// After a round with gradient `g` and hint `m`.
    fn advance(&mut self, g: &[f64], m: &[f64]) {
        // The norm dual to the one in which the mirror map is strongly convex.
        let size = |v: &mut dyn Iterator<Item = f64>| -> f64 {
            if self.settings.domain == Domain::EntropySimplex {
                v.fold(0.0_f64, |most, v| most.max(v.abs())).powi(2)
            } else {
                v.map(|v| v * v).sum()
            }
        };
        let variation = size(&mut g.iter().zip(m).map(|(g, m)| g - m));
        let largest = size(&mut g.iter().copied()).sqrt();
        self.variation += variation;
        self.largest = self.largest.max(largest);
        self.round += 1.0;
    }
}

/// Optimistic mirror descent with one step size for all coordinates.
#[derive(Debug, Clone)]
pub struct Omd {
    steps: Steps,
    /// x̂_t; for entropy steps its logarithm.
    base: Vec<f64>,
    hint: Vec<f64>,
    x: Vec<f64>,
}

impl Omd {
    /// A learner in ℝ^d; variants with a step of their own only.
    ///
    /// # Errors
    /// [`SolveError::Setting`]; [`SolveError::Empty`] for `d = 0`.
    pub fn new(d: usize, settings: &OmdSettings) -> Result<Self, SolveError> {
        settings.validate()?;
        check_not_empty("d", "dimension", d)?;
        if matches!(settings.variant, Variant::ExpConcave { .. } | Variant::Ensemble { .. } | Variant::Ftrl) {
            return Err(SolveError::setting(
                "variant",
                "another learner's",
                "one with a step size of its own",
            ));
        }
        let x = settings.domain.start(d);
        let base = if settings.domain == Domain::EntropySimplex {
            x.iter().map(|v| v.ln()).collect()
        } else {
            x.clone()
        };
        Ok(Self { steps: Steps::new(d, settings), base, hint: vec![0.0; d], x })
    }

    /// Replaces the hint M_t of the coming round.
    ///
    /// # Errors
    /// As [`OnlineLearner::update`].
    pub fn set_hint(&mut self, hint: &[f64]) -> Result<(), SolveError> {
        check_gradient(self.x.len(), hint)?;
        let x = self.point(&self.moved(&self.base, hint, self.steps.step()));
        check_point(&x)?;
        self.x = x;
        self.hint.copy_from_slice(hint);
        Ok(())
    }

    /// `argmin ⟨g, x⟩ + l1·‖x‖₁ + B(x, from)`, in the coordinates of `base`.
    fn moved(&self, from: &[f64], g: &[f64], step: f64) -> Vec<f64> {
        let settings = &self.steps.settings;
        let mut to = from.to_vec();
        axpy(-step, g, &mut to);
        if settings.domain == Domain::EntropySimplex {
            let most = to.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
            let log_sum = most + to.iter().map(|v| (v - most).exp()).sum::<f64>().ln();
            to.iter_mut().for_each(|v| *v -= log_sum);
            return to;
        }
        if settings.l1 > 0.0 {
            prox::soft_slice(&mut to, step * settings.l1);
        }
        settings.domain.project(&mut to);
        to
    }

    fn point(&self, base: &[f64]) -> Vec<f64> {
        if self.steps.settings.domain == Domain::EntropySimplex {
            base.iter().map(|v| v.exp()).collect()
        } else {
            base.to_vec()
        }
    }
}

impl OnlineLearner for Omd {
    fn predict(&self) -> &[f64] {
        &self.x
    }

    fn update(&mut self, gradient: &[f64]) -> Result<(), SolveError> {
        check_gradient(self.x.len(), gradient)?;
        let base = self.moved(&self.base, gradient, self.steps.step());
        let mut steps = self.steps.clone();
        steps.advance(gradient, &self.hint);
        let x = match steps.settings.hint {
            Hint::LastGradient => self.point(&self.moved(&base, gradient, steps.step())),
            Hint::Zero => self.point(&base),
        };
        check_point(&base)?;
        check_point(&x)?;
        self.steps.variation = steps.variation;
        self.steps.largest = steps.largest;
        self.steps.round = steps.round;
        (self.base, self.x) = (base, x);
        match self.steps.settings.hint {
            Hint::LastGradient => self.hint.copy_from_slice(gradient),
            Hint::Zero => self.hint.fill(0.0),
        }
        Ok(())
    }
}

/// `x_t = argmin_X ⟨Σ_{s<t} g_s + M_t, x⟩ + ‖x‖²/(2η_t)`.
#[derive(Debug, Clone)]
pub struct OptimisticFtrl {
    steps: Steps,
    sum: Vec<f64>,
    hint: Vec<f64>,
    x: Vec<f64>,
}

impl OptimisticFtrl {
    /// A learner in ℝ^d. With `l1` the penalty is counted once per round.
    ///
    /// # Errors
    /// [`SolveError::Setting`]; [`SolveError::Empty`] for `d = 0`.
    pub fn new(d: usize, settings: &OmdSettings) -> Result<Self, SolveError> {
        settings.validate()?;
        check_not_empty("d", "dimension", d)?;
        if settings.variant != Variant::Ftrl {
            return Err(SolveError::setting("variant", "another learner's", "ftrl"));
        }
        let x = settings.domain.start(d);
        Ok(Self { steps: Steps::new(d, settings), sum: vec![0.0; d], hint: vec![0.0; d], x })
    }
}

impl OnlineLearner for OptimisticFtrl {
    fn predict(&self) -> &[f64] {
        &self.x
    }

    fn update(&mut self, gradient: &[f64]) -> Result<(), SolveError> {
        check_gradient(self.x.len(), gradient)?;
        let mut next = self.clone();
        next.steps.advance(gradient, &self.hint);
        axpy(1.0, gradient, &mut next.sum);
        match self.steps.settings.hint {
            Hint::LastGradient => next.hint.copy_from_slice(gradient),
            Hint::Zero => next.hint.fill(0.0),
        }
        let step = next.steps.step();
        next.x = next.sum.iter().zip(&next.hint).map(|(s, m)| -step * (s + m)).collect();
        if self.steps.settings.l1 > 0.0 {
            prox::soft_slice(&mut next.x, step * next.steps.round * self.steps.settings.l1);
        }
        self.steps.settings.domain.project(&mut next.x);
        check_point(&next.x)?;
        *self = next;
        Ok(())
    }
}
