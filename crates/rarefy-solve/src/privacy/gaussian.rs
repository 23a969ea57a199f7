//! The Gaussian mechanism, calibrated exactly.

use crate::SolveError;
use crate::error::check_setting;

/// Φ.
fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

fn check(sensitivity: f64, epsilon: f64) -> Result<(), SolveError> {
    let fits = sensitivity > 0.0 && sensitivity.is_finite();
    check_setting(fits, "sensitivity", sensitivity, "above 0 and finite")?;
    check_setting(epsilon > 0.0 && epsilon <= 500.0, "epsilon", epsilon, "in (0, 500]")
}

/// The least δ for which adding N(0, σ²) to a value of that l2 sensitivity Δ is (ε, δ)-private:
/// `Φ(Δ/2σ − εσ/Δ) − e^ε·Φ(−Δ/2σ − εσ/Δ)` (Balle and Wang, ICML 2018, theorem 8).
///
/// # Errors
/// [`SolveError::Setting`] for ε outside (0, 500], Δ or σ not above 0.
pub fn gaussian_delta(sigma: f64, sensitivity: f64, epsilon: f64) -> Result<f64, SolveError> {
    check(sensitivity, epsilon)?;
    check_setting(sigma > 0.0 && sigma.is_finite(), "sigma", sigma, "above 0 and finite")?;
    Ok(delta(sigma / sensitivity, epsilon))
}

/// At Δ = 1.
fn delta(sigma: f64, epsilon: f64) -> f64 {
    let (a, b) = (0.5 / sigma, epsilon * sigma);
    // e^ε·Φ as one exponential, which neither overflows nor loses the tail.
    let tail = normal_cdf(-a - b);
    let second = if tail > 0.0 { (epsilon + tail.ln()).exp() } else { 0.0 };
    (normal_cdf(a - b) - second).max(0.0)
}

/// The least σ for (ε, δ)-privacy of N(0, σ²) noise on a value of l2 sensitivity Δ, by bisection on
/// [`gaussian_delta`]; exact for every ε, where the classical formula holds for ε ≤ 1 only.
///
/// ```
/// let sigma = rarefy_solve::privacy::analytic_gaussian_sigma(1.0, 1.0, 1e-6)?;
/// assert!((sigma - 4.2247).abs() < 1e-3);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
///
/// # Errors
/// [`SolveError::Setting`] for ε outside (0, 500], δ outside [1e-100, 1), Δ not above 0.
pub fn analytic_gaussian_sigma(sensitivity: f64, epsilon: f64, delta_most: f64) -> Result<f64, SolveError> {
    check(sensitivity, epsilon)?;
    check_setting((1e-100..1.0).contains(&delta_most), "delta", delta_most, "in [1e-100, 1)")?;
    let (mut low, mut high) = (1e-10, 1.0);
    while delta(high, epsilon) > delta_most && high < 1e150 {
        (low, high) = (high, 2.0 * high);
    }
    // 200 halvings end at neighbouring numbers; `high` always keeps the promise.
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if delta(middle, epsilon) > delta_most {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(sensitivity * high)
}

/// `Δ√(2 ln(1.25/δ))/ε`, a guarantee for ε ≤ 1 only. For comparison; use [`analytic_gaussian_sigma`].
///
/// # Errors
/// [`SolveError::Setting`] for ε outside (0, 500], δ outside (0, 1), Δ not above 0.
pub fn classical_gaussian_sigma(sensitivity: f64, epsilon: f64, delta: f64) -> Result<f64, SolveError> {
    check(sensitivity, epsilon)?;
    check_setting(delta > 0.0 && delta < 1.0, "delta", delta, "in (0, 1)")?;
    Ok(sensitivity * (2.0 * (1.25 / delta).ln()).sqrt() / epsilon)
}
