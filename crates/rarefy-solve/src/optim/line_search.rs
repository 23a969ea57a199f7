//! Line searches. A trial whose value or slope is not finite counts as too long a step, so a search
//! never accepts one.

use serde::{Deserialize, Serialize};

use crate::SolveError;
use crate::error::check_setting;

/// An accepted step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LineSearchOutcome {
    /// Length of the step.
    pub step: f64,
    /// Value there.
    pub value: f64,
    /// Number of trial points.
    pub evaluations: usize,
}

/// Armijo backtracking: accepts the first step with `φ(t) ≤ φ(0) + c₁ t φ'(0)`. The next trial is
/// the minimiser of the quadratic, then of the cubic interpolant, kept within a tenth and a half
/// of the last one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backtracking {
    /// Required share of the predicted decrease, in (0, 1). Nocedal and Wright §3.1: 1e-4.
    pub armijo: f64,
    /// Largest number of trials, at least 1. House default: 60, which reaches 1e-18.
    pub max_trials: usize,
}

impl Default for Backtracking {
    fn default() -> Self {
        Self { armijo: 1e-4, max_trials: 60 }
    }
}

impl Backtracking {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting(self.armijo > 0.0 && self.armijo < 1.0, "armijo", self.armijo, "in (0, 1)")?;
        check_setting(self.max_trials > 0, "max_trials", self.max_trials, "at least 1")
    }

    /// Searches from `first` downwards. `value` is `φ(0)`, `slope` is `φ'(0) < 0`. `None` when no
    /// trial is acceptable: then no decrease is left in floating point, or the slope is wrong.
    pub fn search(
        &self,
        value: f64,
        slope: f64,
        first: f64,
        mut phi: impl FnMut(f64) -> f64,
    ) -> Option<LineSearchOutcome> {
        if !(value.is_finite() && slope < 0.0 && slope.is_finite() && first > 0.0) {
            return None;
        }
        let (mut step, mut last) = (first, None);
        for trial in 1..=self.max_trials {
            let found = phi(step);
            if found.is_finite() && found <= value + self.armijo * step * slope {
                return Some(LineSearchOutcome { step, value: found, evaluations: trial });
            }
            let next = if !found.is_finite() {
                last = None;
                0.5 * step
            } else if let Some((t0, f0)) = last {
                let guess = cubic(value, slope, (t0, f0), (step, found));
                last = Some((step, found));
                guess
            } else {
                last = Some((step, found));
                -slope * step * step / (2.0 * (found - value - slope * step))
            };
            let (low, high) = (0.1 * step, 0.5 * step);
            step = if next.is_finite() { next.clamp(low, high) } else { high };
        }
        None
    }
}

/// Minimiser of the cubic through `φ(0)`, `φ'(0)` and two points.
fn cubic(value: f64, slope: f64, (t0, f0): (f64, f64), (t1, f1): (f64, f64)) -> f64 {
    let (r0, r1) = (f0 - value - slope * t0, f1 - value - slope * t1);
    let scale = 1.0 / (t0 * t0 * t1 * t1 * (t1 - t0));
    let a = scale * (t0 * t0 * r1 - t1 * t1 * r0);
    let b = scale * (t1 * t1 * t1 * r0 - t0 * t0 * t0 * r1);
    (-b + (b * b - 3.0 * a * slope).sqrt()) / (3.0 * a)
}

/// Bracketing search for the strong Wolfe conditions `φ(t) ≤ φ(0) + c₁ t φ'(0)` and
/// `|φ'(t)| ≤ c₂|φ'(0)|` (Nocedal and Wright, algorithms 3.5 and 3.6).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StrongWolfe {
    /// `c₁`, in (0, curvature). Nocedal and Wright §3.1: 1e-4.
    pub armijo: f64,
    /// `c₂`, in (armijo, 1). Nocedal and Wright §3.1 for quasi-Newton: 0.9.
    pub curvature: f64,
    /// Largest number of trials, at least 1. House default: 40.
    pub max_trials: usize,
}

impl Default for StrongWolfe {
    fn default() -> Self {
        Self { armijo: 1e-4, curvature: 0.9, max_trials: 40 }
    }
}

#[derive(Clone, Copy)]
struct Point {
    t: f64,
    f: f64,
    d: f64,
}

impl StrongWolfe {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        let c = self.curvature;
        check_setting(self.armijo > 0.0 && self.armijo < c, "armijo", self.armijo, "in (0, curvature)")?;
        check_setting(c < 1.0, "curvature", c, "in (armijo, 1)")?;
        check_setting(self.max_trials > 0, "max_trials", self.max_trials, "at least 1")
    }

    /// Searches for a step, trying `first` first. `phi` returns value and slope; it is called last
    /// at the accepted step. When the trials run out, the best point with enough decrease is
    /// taken; `None` when there is none.
    pub fn search(
        &self,
        value: f64,
        slope: f64,
        first: f64,
        mut phi: impl FnMut(f64) -> (f64, f64),
    ) -> Option<LineSearchOutcome> {
        if !(value.is_finite() && slope < 0.0 && slope.is_finite() && first > 0.0) {
            return None;
        }
        let mut used = 0;
        let mut at = |t: f64, used: &mut usize| {
            *used += 1;
            let (f, d) = phi(t);
            if f.is_finite() && d.is_finite() {
                Point { t, f, d }
            } else {
                Point { t, f: f64::INFINITY, d: 0.0 }
            }
        };
        let enough = |p: &Point| p.f <= value + self.armijo * p.t * slope;
        let flat = |p: &Point| p.d.abs() <= -self.curvature * slope;
        let zero = Point { t: 0.0, f: value, d: slope };
        let (mut low, mut t) = (zero, first);
        // Double the step until it brackets an acceptable one; `low` has enough decrease.
        let (mut high, mut known) = loop {
            let p = at(t, &mut used);
            if !enough(&p) || (used > 1 && p.f >= low.f) {
                break (p, p);
            }
            if flat(&p) {
                return Some(LineSearchOutcome { step: p.t, value: p.f, evaluations: used });
            }
            if p.d >= 0.0 {
                let old = low;
                low = p;
                break (old, p);
            }
            low = p;
            if used >= self.max_trials {
                return Some(LineSearchOutcome { step: p.t, value: p.f, evaluations: used });
            }
            t *= 2.0;
        };
        while used < self.max_trials && (high.t - low.t).abs() > 1e-15 * low.t.max(high.t) {
            let p = at(between(&low, &high), &mut used);
            known = p;
            if !enough(&p) || p.f >= low.f {
                high = p;
                continue;
            }
            if flat(&p) {
                return Some(LineSearchOutcome { step: p.t, value: p.f, evaluations: used });
            }
            if p.d * (high.t - low.t) >= 0.0 {
                high = low;
            }
            low = p;
        }
        if low.t <= 0.0 {
            return None;
        }
        if known.t.total_cmp(&low.t).is_ne() {
            low = at(low.t, &mut used);
        }
        low.f.is_finite().then_some(LineSearchOutcome { step: low.t, value: low.f, evaluations: used })
    }
}

/// A point well inside the bracket: the cubic minimiser where it is safe, else the middle.
fn between(low: &Point, high: &Point) -> f64 {
    let middle = f64::midpoint(low.t, high.t);
    if !high.f.is_finite() {
        return middle;
    }
    // Quadratic through the value and slope at `low` and the value at `high`.
    let width = high.t - low.t;
    let guess = low.t - low.d * width * width / (2.0 * (high.f - low.f - low.d * width));
    let (a, b) = (low.t + 0.1 * width, low.t + 0.9 * width);
    let (a, b) = (a.min(b), a.max(b));
    if guess.is_finite() { guess.clamp(a, b) } else { middle }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_quadratic_is_met_by_its_interpolant() {
        // φ(t) = (t − 1)²: from 10 the quadratic through φ(0), φ'(0), φ(10) gives 1.
        let found = Backtracking::default().search(1.0, -2.0, 10.0, |t| (t - 1.0).powi(2)).unwrap();
        assert!((found.step - 1.0).abs() < 1e-12 && found.evaluations == 2);
    }

    #[test]
    fn trials_that_are_not_finite_are_too_long() {
        // −log(1 − t) − 3t: infinite from 1 on, minimum at 2/3.
        let f = |t: f64| if t < 1.0 { -(1.0 - t).ln() - 3.0 * t } else { f64::NAN };
        let d = |t: f64| if t < 1.0 { 1.0 / (1.0 - t) - 3.0 } else { f64::NAN };
        let found = Backtracking::default().search(0.0, -2.0, 16.0, f).unwrap();
        assert!(found.step < 1.0 && found.value < 0.0);
        let found = StrongWolfe::default().search(0.0, -2.0, 16.0, |t| (f(t), d(t))).unwrap();
        assert!(found.value <= -2e-4 * found.step && d(found.step).abs() <= 1.8);
        assert_eq!(Backtracking::default().search(0.0, -2.0, 1.0, |_| f64::NAN), None);
        assert_eq!(StrongWolfe::default().search(0.0, -2.0, 1.0, |_| (f64::NAN, 0.0)), None);
        assert_eq!(Backtracking::default().search(0.0, 1.0, 1.0, |t| t), None);
    }

    #[test]
    fn strong_wolfe_on_hard_functions() {
        let c = StrongWolfe { curvature: 0.1, ..StrongWolfe::default() };
        type Scalar = fn(f64) -> f64;
        let cases: [(Scalar, Scalar); 3] = [
            (|t| -t / (t * t + 2.0), |t| (t * t - 2.0) / (t * t + 2.0).powi(2)),
            (
                |t| (t + 0.004).powi(5) - 2.0 * (t + 0.004).powi(4),
                |t| 5.0 * (t + 0.004).powi(4) - 8.0 * (t + 0.004).powi(3),
            ),
            (|t| (t - 5.0).powi(2), |t| 2.0 * (t - 5.0)),
        ];
        for (f, d) in cases {
            for first in [1e-3, 0.1, 1.0, 100.0] {
                let mut last = 0.0;
                let found = c
                    .search(f(0.0), d(0.0), first, |t| {
                        last = t;
                        (f(t), d(t))
                    })
                    .unwrap();
                assert!(found.value <= f(0.0) + 1e-4 * found.step * d(0.0));
                assert!(d(found.step).abs() <= 0.1 * d(0.0).abs(), "{first}");
                assert_eq!(last, found.step);
            }
        }
    }

    #[test]
    fn settings_are_checked() {
        assert!(Backtracking { armijo: 0.0, ..Default::default() }.validate().is_err());
        assert!(StrongWolfe { curvature: 1.0, ..Default::default() }.validate().is_err());
        assert!(StrongWolfe { armijo: f64::NAN, ..Default::default() }.validate().is_err());
        assert!(Backtracking::default().validate().is_ok() && StrongWolfe::default().validate().is_ok());
    }
}
