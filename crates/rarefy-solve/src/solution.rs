//! What a solver hands back.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a solver ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Status {
    /// The stopping criterion was met.
    Converged,
    /// The limit of iterations was reached first.
    MaxIterations,
    /// The time limit was reached first.
    TimeLimit,
    /// The progress callback asked to stop.
    Stopped,
    /// No further progress in floating point; the criterion was not met.
    Stalled,
    /// The constraints contradict each other.
    Infeasible,
    /// The objective has no lower bound, or its minimum lies at infinity.
    Unbounded,
}

impl Status {
    /// Whether the stopping criterion was met.
    #[must_use]
    pub fn is_converged(self) -> bool {
        self == Self::Converged
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Converged => "converged",
            Self::MaxIterations => {
                "the limit of iterations was reached first; raise it, loosen the tolerance or regularise more"
            }
            Self::TimeLimit => "the time limit was reached first; raise it or loosen the tolerance",
            Self::Stopped => "stopped by the caller",
            Self::Stalled => {
                "no further progress in floating point; loosen the tolerance or rescale the data"
            }
            Self::Infeasible => "the constraints contradict each other; relax one of them",
            Self::Unbounded => {
                "the objective has no finite minimiser; add regularisation or remove separating features"
            }
        })
    }
}

/// One line of progress.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TracePoint {
    /// Number of iterations done.
    pub iteration: usize,
    /// Objective at that point.
    pub objective: f64,
    /// The quantity the stopping criterion looks at.
    pub residual: f64,
    /// Seconds since the start.
    pub seconds: f64,
}

/// The progress of a run, oldest first.
pub type Trace = Vec<TracePoint>;

/// A named measure of how far the answer is from satisfying the conditions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Residual {
    /// What is measured: `"duality gap"`.
    pub name: &'static str,
    /// Its value at the answer.
    pub value: f64,
}

/// An answer and how it came about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Solution<X> {
    /// The answer.
    pub x: X,
    /// How the solver ended.
    pub status: Status,
    /// Objective at the answer.
    pub objective: f64,
    /// How far the answer is from satisfying the conditions; the first is the one that stops.
    pub residuals: Vec<Residual>,
    /// Number of iterations done.
    pub iterations: usize,
    /// Progress, oldest first.
    pub trace: Trace,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl<X> Solution<X> {
    /// The residual of that name.
    #[must_use]
    pub fn residual(&self, name: &str) -> Option<f64> {
        self.residuals.iter().find(|r| r.name == name).map(|r| r.value)
    }

    /// The same outcome with another answer.
    pub fn map<Y>(self, f: impl FnOnce(X) -> Y) -> Solution<Y> {
        Solution {
            x: f(self.x),
            status: self.status,
            objective: self.objective,
            residuals: self.residuals,
            iterations: self.iterations,
            trace: self.trace,
            seconds: self.seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn status_in_words_and_in_json() {
        assert_eq!(serde_json::to_string(&Status::MaxIterations).unwrap(), "\"max-iterations\"");
        assert!(Status::MaxIterations.to_string().contains("raise it"));
        assert!(Status::Converged.is_converged() && !Status::Stalled.is_converged());
    }

    #[test]
    fn residuals_are_found_by_name() {
        let s = Solution {
            x: 1,
            status: Status::Converged,
            objective: 2.0,
            residuals: vec![Residual { name: "gap", value: 3.0 }],
            iterations: 4,
            trace: vec![],
            seconds: 0.0,
        };
        assert_eq!(s.residual("gap"), Some(3.0));
        assert_eq!(s.residual("other"), None);
        assert_eq!(s.map(|x| x + 1).x, 2);
    }
}
