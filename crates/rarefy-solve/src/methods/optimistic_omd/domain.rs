//! The sets that are played on.

use serde::{Deserialize, Serialize};

use crate::SolveError;
use crate::error::check_setting;
use crate::prox;

/// X.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Domain {
    /// `‖x‖₂ ≤ radius`.
    Ball {
        /// Above 0.
        radius: f64,
    },
    /// `low ≤ x_i ≤ high`.
    Box {
        /// Below `high`.
        low: f64,
        /// Above `low`.
        high: f64,
    },
    /// `x ≥ 0, Σx = 1`, Euclidean steps.
    Simplex,
    /// `x ≥ 0, Σx = 1`, multiplicative weights.
    EntropySimplex,
    /// ℝ^d; `diameter` bounds how far the points to compare with are apart.
    Whole {
        /// D, above 0.
        diameter: f64,
    },
}

impl Domain {
    pub(super) fn validate(self) -> Result<(), SolveError> {
        let above = |v: f64| v > 0.0 && v.is_finite();
        match self {
            Self::Ball { radius } => check_setting(above(radius), "radius", radius, "above 0 and finite"),
            Self::Box { low, high } => {
                let fits = low.is_finite() && high.is_finite() && above(high - low);
                check_setting(fits, "low", low, "finite and below high")
            }
            Self::Whole { diameter } => {
                check_setting(above(diameter), "diameter", diameter, "above 0 and finite")
            }
            Self::Simplex | Self::EntropySimplex => Ok(()),
        }
    }

    /// D in ℝ^d.
    #[must_use]
    pub fn diameter(self, d: usize) -> f64 {
        match self {
            Self::Ball { radius } => 2.0 * radius,
            Self::Box { low, high } => (d as f64).sqrt() * (high - low),
            Self::Simplex => 2.0_f64.sqrt(),
            Self::EntropySimplex => (2.0 * (d.max(2) as f64).ln()).sqrt(),
            Self::Whole { diameter } => diameter,
        }
    }

    /// The nearest point, in place.
    pub fn project(self, x: &mut [f64]) {
        match self {
            Self::Ball { radius } => prox::l2_ball(x, radius),
            Self::Box { low, high } => prox::clamp_box(x, low, high),
            Self::Simplex | Self::EntropySimplex => prox::simplex(x, 1.0),
            Self::Whole { .. } => {}
        }
    }

    /// x̂₁: the point nearest to zero.
    pub(super) fn start(self, d: usize) -> Vec<f64> {
        match self {
            Self::Simplex | Self::EntropySimplex => vec![1.0 / d as f64; d],
            _ => {
                let mut x = vec![0.0; d];
                self.project(&mut x);
                x
            }
        }
    }
}
