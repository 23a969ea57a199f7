//! Limited-memory BFGS.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::StrongWolfe;
use crate::error::{check_finite, check_setting};
use crate::linop::dense::{axpy, dot, norm_inf};
use crate::{Monitor, Residual, Solution, SolveError, Status};

/// Settings of [`lbfgs`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LbfgsSettings {
    /// Number of correction pairs kept, at least 1. Nocedal and Wright §7.2: 3 to 20; default 10.
    pub memory: usize,
    /// Ends when `‖∇f‖∞` is at most this, at least 0. House default: 1e-8.
    pub tolerance: f64,
    /// Limit of iterations. House default: 1000.
    pub max_iterations: usize,
    /// The line search.
    pub line_search: StrongWolfe,
}

impl Default for LbfgsSettings {
    fn default() -> Self {
        Self { memory: 10, tolerance: 1e-8, max_iterations: 1000, line_search: StrongWolfe::default() }
    }
}

impl LbfgsSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting(self.memory > 0, "memory", self.memory, "at least 1")?;
        check_setting(
            self.tolerance >= 0.0 && self.tolerance.is_finite(),
            "tolerance",
            self.tolerance,
            "at least 0",
        )?;
        self.line_search.validate()
    }
}

/// Minimises a smooth function from `start`. `f(x, g)` writes the gradient into `g` and returns the
/// value; a value or gradient that is not finite shortens the step.
///
/// Cost per iteration: one to a few evaluations and `4·memory·n` multiplications. Ends with
/// [`Status::Stalled`] when the line search finds no decrease along the steepest descent either.
///
/// # Errors
/// [`SolveError::NonFinite`] when `start` is not finite, [`SolveError::Breakdown`] when `f` is not
/// finite there, [`SolveError::Setting`].
pub fn lbfgs(
    mut f: impl FnMut(&[f64], &mut [f64]) -> f64,
    start: &[f64],
    settings: &LbfgsSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Vec<f64>>, SolveError> {
    settings.validate()?;
    check_finite("start", start)?;
    let begin = monitor.seconds();
    let mut x = start.to_vec();
    let mut g = vec![0.0; x.len()];
    let mut value = f(&x, &mut g);
    if !value.is_finite() || !norm_inf(&g).is_finite() {
        return Err(SolveError::breakdown(
            "L-BFGS",
            "value or gradient at the start is not finite",
            "start elsewhere",
        ));
    }
    let mut pairs: VecDeque<(Vec<f64>, Vec<f64>, f64)> = VecDeque::with_capacity(settings.memory);
    let (mut trace, mut iterations) = (Vec::new(), 0);
    let (mut x_new, mut g_new) = (x.clone(), g.clone());
    let status = loop {
        let residual = norm_inf(&g);
        if let ControlFlow::Break(status) = monitor.record(&mut trace, iterations, value, residual) {
            break status;
        }
        if residual <= settings.tolerance {
            break Status::Converged;
        }
        if iterations >= settings.max_iterations {
            break Status::MaxIterations;
        }
        let mut d = direction(&g, &pairs);
        let mut slope = dot(&d, &g);
        if slope.is_nan() || slope >= 0.0 {
            pairs.clear();
            d = g.iter().map(|v| -v).collect();
            slope = -dot(&g, &g);
        }
        // Without curvature information the first trial moves by one unit at most.
        let first = if pairs.is_empty() { (1.0 / residual).min(1.0) } else { 1.0 };
        let found = settings.line_search.search(value, slope, first, |t| {
            x_new.copy_from_slice(&x);
            axpy(t, &d, &mut x_new);
            let value = f(&x_new, &mut g_new);
            (value, dot(&g_new, &d))
        });
        let Some(found) = found else {
            if pairs.is_empty() {
                break Status::Stalled;
            }
            pairs.clear();
            continue;
        };
        iterations += 1;
        let s: Vec<f64> = x_new.iter().zip(&x).map(|(a, b)| a - b).collect();
        let y: Vec<f64> = g_new.iter().zip(&g).map(|(a, b)| a - b).collect();
        let sy = dot(&s, &y);
        if sy > f64::EPSILON * dot(&y, &y) {
            if pairs.len() == settings.memory {
                pairs.pop_front();
            }
            pairs.push_back((s, y, 1.0 / sy));
        }
        std::mem::swap(&mut x, &mut x_new);
        std::mem::swap(&mut g, &mut g_new);
        value = found.value;
    };
    let residuals = vec![Residual { name: "gradient, largest entry", value: norm_inf(&g) }];
    let seconds = monitor.seconds() - begin;
    Ok(Solution { x, status, objective: value, residuals, iterations, trace, seconds })
}

/// Two-loop recursion: minus the inverse Hessian estimate times the gradient.
fn direction(g: &[f64], pairs: &VecDeque<(Vec<f64>, Vec<f64>, f64)>) -> Vec<f64> {
    let mut q: Vec<f64> = g.iter().map(|v| -v).collect();
    let mut alphas = Vec::with_capacity(pairs.len());
    for (s, y, rho) in pairs.iter().rev() {
        let alpha = rho * dot(s, &q);
        axpy(-alpha, y, &mut q);
        alphas.push(alpha);
    }
    if let Some((_, y, rho)) = pairs.back() {
        let scale = 1.0 / (rho * dot(y, y));
        q.iter_mut().for_each(|v| *v *= scale);
    }
    for ((s, y, rho), alpha) in pairs.iter().zip(alphas.into_iter().rev()) {
        let beta = rho * dot(y, &q);
        axpy(alpha - beta, s, &mut q);
    }
    q
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rosenbrock(x: &[f64], g: &mut [f64]) -> f64 {
        g.fill(0.0);
        let mut f = 0.0;
        for i in 0..x.len() - 1 {
            let (a, b) = (1.0 - x[i], x[i + 1] - x[i] * x[i]);
            f += a * a + 100.0 * b * b;
            g[i] += -2.0 * a - 400.0 * x[i] * b;
            g[i + 1] += 200.0 * b;
        }
        f
    }

    #[test]
    fn rosenbrock_in_twenty_dimensions() {
        let start = vec![-1.2; 20];
        let s = lbfgs(rosenbrock, &start, &LbfgsSettings::default(), &mut Monitor::silent()).unwrap();
        assert_eq!(s.status, Status::Converged);
        assert!(s.x.iter().all(|v| (v - 1.0).abs() < 1e-6), "{:?}", s.x);
        assert!(s.trace.windows(2).all(|w| w[1].objective <= w[0].objective));
        assert!(s.iterations < 200, "{}", s.iterations);
    }

    #[test]
    fn limits_and_statuses() {
        let few = LbfgsSettings { max_iterations: 3, ..Default::default() };
        let s = lbfgs(rosenbrock, &[-1.2, 1.0], &few, &mut Monitor::silent()).unwrap();
        assert_eq!((s.status, s.iterations), (Status::MaxIterations, 3));
        // A start at the minimum does nothing.
        let s = lbfgs(rosenbrock, &[1.0, 1.0], &few, &mut Monitor::silent()).unwrap();
        assert_eq!((s.status, s.iterations), (Status::Converged, 0));
        // A kink cannot satisfy the tolerance, but the search must end.
        let kink = |x: &[f64], g: &mut [f64]| {
            g[0] = if x[0] >= 0.0 { 1.0 } else { -1.0 };
            x[0].abs()
        };
        let s = lbfgs(kink, &[0.3], &LbfgsSettings::default(), &mut Monitor::silent()).unwrap();
        assert!(matches!(s.status, Status::Stalled | Status::MaxIterations) && s.objective <= 0.3);
        // A barrier: steps into the infinite are shortened.
        let barrier = |x: &[f64], g: &mut [f64]| {
            g[0] = 1.0 - 1e-3 / x[0];
            x[0] - 1e-3 * x[0].ln()
        };
        let s = lbfgs(barrier, &[5.0], &LbfgsSettings::default(), &mut Monitor::silent()).unwrap();
        assert!(s.status.is_converged() && (s.x[0] - 1e-3).abs() < 1e-9);
    }

    #[test]
    fn hostile_input() {
        let settings = LbfgsSettings::default();
        let e = lbfgs(rosenbrock, &[f64::NAN, 1.0], &settings, &mut Monitor::silent()).unwrap_err();
        assert!(matches!(e, SolveError::NonFinite { argument: "start", .. }));
        let e = lbfgs(|_, _| f64::NAN, &[1.0], &settings, &mut Monitor::silent()).unwrap_err();
        assert!(matches!(e, SolveError::Breakdown { .. }));
        let bad = LbfgsSettings { tolerance: -1.0, ..Default::default() };
        let e = lbfgs(rosenbrock, &[1.0, 1.0], &bad, &mut Monitor::silent()).unwrap_err();
        assert!(matches!(e, SolveError::Setting { field: "tolerance", .. }));
        let mut stop = |_: &crate::TracePoint| ControlFlow::Break(());
        let mut monitor = Monitor::silent().with_progress(&mut stop);
        let s = lbfgs(rosenbrock, &[0.0, 0.0], &settings, &mut monitor).unwrap();
        assert_eq!(s.status, Status::Stopped);
    }
}
