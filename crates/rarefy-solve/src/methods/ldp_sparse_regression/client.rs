//! What runs at a user: everything private is here, and leaves as a message only.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::{CovarianceNoise, LdpSettings, Protocol};
use crate::SolveError;
use crate::error::{check_dimension, check_finite};
use crate::linop::dense::{dot, norm};
use crate::privacy::{DuchiBall, analytic_gaussian_sigma};
use crate::prox;

/// The message of NLDP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NldpMessage {
    /// Upper triangle of `x̄x̄ᵀ` with noise, by rows, d(d+1)/2; empty with public covariates.
    pub gram_upper: Vec<f64>,
    /// `x̃ỹ` with noise, `[d]`.
    pub cross: Vec<f64>,
}

/// The message of IHT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IhtMessage {
    /// The randomised gradient, `[d]`.
    pub gradient: Vec<f64>,
}

fn check_user(d: usize, x: &[f64], y: f64) -> Result<(), SolveError> {
    check_dimension("x", d, "dimension of the model", x.len())?;
    check_finite("x", x)?;
    check_finite("y", &[y])
}

/// The randomiser of NLDP, with or without the second moments.
#[derive(Debug, Clone, PartialEq)]
pub struct NldpClient {
    d: usize,
    length: f64,
    covariate_bound: f64,
    response_bound: f64,
    symmetrised: bool,
    gram_noise: Option<f64>,
    cross_noise: f64,
}

impl NldpClient {
    /// Calibrates the noise: `‖x̄x̄ᵀ − z̄z̄ᵀ‖_F ≤ √2·r²`, `‖x̃ỹ − z̃w̃‖ ≤ 2√d·τ₁τ₂`.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn new(d: usize, settings: &LdpSettings) -> Result<Self, SolveError> {
        settings.validate()?;
        LdpSettings::check_d(d)?;
        let length = settings.covariate_length.unwrap_or((d as f64).sqrt() + 1.0);
        let (of_gram, of_cross) = (
            std::f64::consts::SQRT_2 * length * length,
            2.0 * (d as f64).sqrt() * settings.covariate_bound * settings.response_bound,
        );
        let sigma = |sensitivity: f64, share: f64| {
            if settings.epsilon == f64::INFINITY {
                return Ok(0.0);
            }
            analytic_gaussian_sigma(sensitivity, share * settings.epsilon, share * settings.delta)
        };
        let (gram_noise, cross_noise) = match settings.protocol {
            Protocol::Nldp if settings.joint => {
                // (c·S, g) with c = Δ_g/Δ_S has sensitivity √2·Δ_g; S gets the noise over c.
                let noise = sigma(std::f64::consts::SQRT_2 * of_cross, 1.0)?;
                (Some(noise * of_gram / of_cross), noise)
            }
            Protocol::Nldp => (Some(sigma(of_gram, 0.5)?), sigma(of_cross, 0.5)?),
            _ => (None, sigma(of_cross, 1.0)?),
        };
        Ok(Self {
            d,
            length,
            covariate_bound: settings.covariate_bound,
            response_bound: settings.response_bound,
            symmetrised: settings.covariance_noise == CovarianceNoise::Symmetrised,
            gram_noise,
            cross_noise,
        })
    }

    /// s₂: standard deviation of the noise of the cross moments.
    #[must_use]
    pub fn cross_noise(&self) -> f64 {
        self.cross_noise
    }

    /// s₁: standard deviation of the noise of the diagonal of the second moments, when they are sent.
    #[must_use]
    pub fn gram_noise(&self) -> Option<f64> {
        self.gram_noise
    }

    /// The message of a user.
    ///
    /// # Errors
    /// [`SolveError::Dimension`], [`SolveError::NonFinite`].
    pub fn report(&self, x: &[f64], y: f64, rng: &mut impl Rng) -> Result<NldpMessage, SolveError> {
        check_user(self.d, x, y)?;
        let mut normal = |scale: f64| -> f64 {
            let z: f64 = StandardNormal.sample(rng);
            scale * z
        };
        let mut gram_upper = vec![];
        if let Some(noise) = self.gram_noise {
            let mut cut = x.to_vec();
            prox::l2_ball(&mut cut, self.length);
            let off = if self.symmetrised { noise * std::f64::consts::FRAC_1_SQRT_2 } else { noise };
            gram_upper.reserve_exact(self.d * (self.d + 1) / 2);
            for (i, a) in cut.iter().enumerate() {
                gram_upper.push(a * a + normal(noise));
                gram_upper.extend(cut[i + 1..].iter().map(|b| a * b + normal(off)));
            }
        }
        let y = y.clamp(-self.response_bound, self.response_bound);
        let bound = self.covariate_bound;
        let cross = x.iter().map(|v| v.clamp(-bound, bound) * y + normal(self.cross_noise)).collect();
        Ok(NldpMessage { gram_upper, cross })
    }
}

/// The randomiser of IHT.
#[derive(Debug, Clone, PartialEq)]
pub struct IhtClient {
    covariate_bound: f64,
    response_bound: f64,
    d: usize,
    length: f64,
    /// None at infinite ε.
    mechanism: Option<DuchiBall>,
}

impl IhtClient {
    /// A client in ℝ^d.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn new(d: usize, settings: &LdpSettings) -> Result<Self, SolveError> {
        settings.validate()?;
        LdpSettings::check_d(d)?;
        let length = settings.gradient_length.unwrap_or(1.5 * (d as f64).sqrt());
        let is_private = settings.epsilon.is_finite();
        Ok(Self {
            covariate_bound: settings.covariate_bound,
            response_bound: settings.response_bound,
            d,
            length,
            mechanism: is_private.then(|| DuchiBall::new(d, length, settings.epsilon)).transpose()?,
        })
    }

    /// Length of a private message.
    #[must_use]
    pub fn message_length(&self) -> f64 {
        self.mechanism.as_ref().map_or(0.0, DuchiBall::length)
    }

    /// The one message of a user, at the broadcast θ. A second one would spend ε again.
    ///
    /// # Errors
    /// [`SolveError::Dimension`], [`SolveError::NonFinite`].
    pub fn report(
        &self,
        x: &[f64],
        y: f64,
        theta: &[f64],
        rng: &mut impl Rng,
    ) -> Result<IhtMessage, SolveError> {
        check_user(self.d, x, y)?;
        check_dimension("theta", self.d, "dimension of the model", theta.len())?;
        check_finite("theta", theta)?;
        let bound = self.covariate_bound;
        let mut u: Vec<f64> = x.iter().map(|v| v.clamp(-bound, bound)).collect();
        let off = dot(&u, theta) - y.clamp(-self.response_bound, self.response_bound);
        u.iter_mut().for_each(|v| *v *= off);
        if !norm(&u).is_finite() {
            u.fill(0.0);
        }
        prox::l2_ball(&mut u, self.length);
        match &self.mechanism {
            Some(mechanism) => Ok(IhtMessage { gradient: mechanism.release(&u, rng)? }),
            None => Ok(IhtMessage { gradient: u }),
        }
    }
}
