//! LDP sparse regression — fits a sparse linear model to users who send privatised messages only.
//!
//! Paper:    Zhu, Ding, Aggarwal, Xu, Wang, Improved Analysis of Sparse Linear Regression in Local Differential Privacy
//!           Model, ICLR 2024, arXiv 2310.07367. Reference code: none.
//! Problem:  n users hold (x_i ∈ ℝ^d, y_i), y = ⟨x, θ*⟩ + noise, θ* with k non-zeros. The server sees one message of
//!           each user, (ε, δ)- or ε-private, and estimates θ*. Covariates are taken as standardised by public bounds.
//! Method:   NLDP: S_i = x̄x̄ᵀ + noise with x̄ cut to length r, g_i = x̃ỹ + noise with entries cut to ±τ₁, ±τ₂, each
//!           with half of (ε, δ); θ = soft(Σ̂⁻¹ĝ, λ), eigenvalues of Σ̂ = mean S_i not below `eigen_floor`.
//!           Public covariates: Σ̂ from them, all of (ε, δ) on g_i. IHT: T groups; in round t its users send Duchi's
//!           randomiser of the gradient x̃(⟨x̃, θ⟩ − ỹ) cut to length R; θ ← θ − η·mean, the 2k largest entries, ‖θ‖ ≤ 2.
//! Cost:     NLDP d² random numbers a user, IHT d; server O(d²) memory, no user is kept; blocks of users are
//!           read once; users of a block are simulated on all threads, with the same bits on any number of them.
//! Variants: [`Protocol`]; [`CovarianceNoise`]; `joint`: both releases of NLDP under one Gaussian mechanism.
//! Differs:  from the paper: Gaussian noise has the analytic calibration (the classical formula is no guarantee at
//!           ε > 1 and wastes below); the floor on eigenvalues is ours, without it the inverse explodes; the steps of the
//!           protocols are reconstructions.
//! Choose:   IHT whenever users can be asked in turn: √d to d times smaller errors. NLDP only when n·ε² ≫ d⁴; below,
//!           its answer is worse than zero. [`crate::glm`] when the data may be seen.
//! Fails on: wrong sizes → `Dimension`; wrong settings → `Setting`; fewer users than rounds → `Invalid`. Noise is not
//!           hardened against floating-point attacks, see [`crate::privacy`]. Evidence: `ldp.json`, repro
//!           `ldp-sparse-regression`.
//!
//! [`client`] runs at the users, [`server`] sees messages only.

pub mod client;
pub mod server;

use rand::RngExt;
use rarefy_sparsity::{Maturity, MethodInfo};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{check_dimension, check_setting};
use crate::privacy::PrivacyRng;
use crate::{Monitor, Residual, Solution, SolveError, Status, Trace};
use client::{IhtClient, NldpClient};
use server::{IhtServer, Moments};

/// The registry row.
pub const INFO: MethodInfo = MethodInfo {
    slug: "ldp-sparse-regression",
    name: "LDP sparse regression",
    family: "solver",
    paper: "Zhu et al., ICLR 2024, arXiv 2310.07367",
    command: "solve private-regression --method ldp-sparse-regression",
    maturity: Maturity::Preview,
    summary: "sparse linear regression from locally private messages, one per user",
};

/// What users send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Second moments and cross moments, one message, no interaction; (ε, δ).
    Nldp,
    /// Cross moments only: the server has public covariates; (ε, δ).
    PublicCovariates,
    /// A gradient at the server's point, in one of `rounds` rounds; ε.
    Iht,
}

/// Noise of S_i.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CovarianceNoise {
    /// A full matrix of independent noise, symmetrised: off the diagonal half the variance, same guarantee.
    Symmetrised,
    /// The upper triangle independent.
    UpperTriangle,
}

/// Settings of [`solve`], of the clients and the servers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LdpSettings {
    /// Messages. House default: IHT.
    pub protocol: Protocol,
    /// ε, in (0, 500]. House default: 1. Infinity: no noise and no privacy, for comparisons.
    pub epsilon: f64,
    /// δ of NLDP, in [1e-100, 1). Specification: 1e-6.
    pub delta: f64,
    /// k, at least 1. House default: 3.
    pub sparsity: usize,
    /// r, above 0. None: √d + 1, for standardised normal covariates.
    pub covariate_length: Option<f64>,
    /// τ₁, above 0. Specification: 2.5.
    pub covariate_bound: f64,
    /// τ₂, above 0. Specification: 2.5.
    pub response_bound: f64,
    /// Noise of S_i. Specification: symmetrised.
    pub covariance_noise: CovarianceNoise,
    /// One mechanism for both releases of NLDP.
    pub joint: bool,
    /// λ ≥ 0. None: (s₂/√n)·√(ln d).
    pub threshold: Option<f64>,
    /// κ, at least 0: eigenvalues of Σ̂ below it are raised to it. Specification: 0.5.
    pub eigen_floor: f64,
    /// T, at least 1. Specification: 6.
    pub rounds: usize,
    /// R, above 0. None: 1.5√d.
    pub gradient_length: Option<f64>,
    /// η, above 0. Specification: 0.7 for covariance I.
    pub step: f64,
    /// Entries kept in a round, at least 1. None: 2k.
    pub keep: Option<usize>,
    /// Largest ‖θ‖, above 0. Specification: 2.
    pub radius: f64,
    /// Seed of simulated users; without privacy against those who know it. None: keyed by the system.
    pub seed: Option<u64>,
}

impl Default for LdpSettings {
    fn default() -> Self {
        Self {
            protocol: Protocol::Iht,
            epsilon: 1.0,
            delta: 1e-6,
            sparsity: 3,
            covariate_length: None,
            covariate_bound: 2.5,
            response_bound: 2.5,
            covariance_noise: CovarianceNoise::Symmetrised,
            joint: false,
            threshold: None,
            eigen_floor: 0.5,
            rounds: 6,
            gradient_length: None,
            step: 0.7,
            keep: None,
            radius: 2.0,
            seed: None,
        }
    }
}

impl LdpSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        let above = |v: f64| v > 0.0 && v.is_finite();
        let given = |v: Option<f64>| v.is_none_or(above);
        let limit = "above 0 and finite";
        let epsilon = self.epsilon;
        check_setting(
            epsilon > 0.0 && (epsilon <= 500.0 || epsilon == f64::INFINITY),
            "epsilon",
            epsilon,
            "in (0, 500], or infinite",
        )?;
        check_setting((1e-100..1.0).contains(&self.delta), "delta", self.delta, "in [1e-100, 1)")?;
        check_setting(self.sparsity >= 1, "sparsity", self.sparsity, "at least 1")?;
        let length = self.covariate_length;
        check_setting(given(length), "covariate_length", length.unwrap_or(0.0), limit)?;
        check_setting(above(self.covariate_bound), "covariate_bound", self.covariate_bound, limit)?;
        check_setting(above(self.response_bound), "response_bound", self.response_bound, limit)?;
        let threshold = self.threshold.unwrap_or(0.0);
        check_setting(threshold >= 0.0 && threshold.is_finite(), "threshold", threshold, "at least 0")?;
        let floor = self.eigen_floor;
        check_setting(floor >= 0.0 && floor.is_finite(), "eigen_floor", floor, "at least 0 and finite")?;
        check_setting(self.rounds >= 1, "rounds", self.rounds, "at least 1")?;
        let length = self.gradient_length;
        check_setting(given(length), "gradient_length", length.unwrap_or(0.0), limit)?;
        check_setting(above(self.step), "step", self.step, limit)?;
        check_setting(self.keep != Some(0), "keep", 0, "at least 1")?;
        check_setting(above(self.radius), "radius", self.radius, limit)
    }

    pub(crate) fn check_d(d: usize) -> Result<(), SolveError> {
        check_setting((1..=1 << 14).contains(&d), "d", d, "in 1..=16384")
    }
}

/// Users of a block: `x: [rows, d]` row-major, `y: [rows]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Block {
    /// Covariates, a user's one after the other.
    pub x: Vec<f64>,
    /// Responses.
    pub y: Vec<f64>,
}

/// The estimate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LdpEstimate {
    /// θ, `[d]`.
    pub theta: Vec<f64>,
    /// Before soft-thresholding; equal to `theta` for IHT.
    pub dense: Vec<f64>,
    /// λ used; 0 for IHT.
    pub threshold: f64,
    /// Standard deviation of the noise of an entry of a user's cross moments, or the length of a user's message.
    pub noise: f64,
}

/// Users per piece of parallel work; the pieces are summed in order.
const PIECE: usize = 512;

/// Simulates all users of the blocks and the server. `n` users in all; IHT asks them in the order of the blocks,
/// which must not depend on the data. `public: [rows, d]` row-major, for [`Protocol::PublicCovariates`].
///
/// Objective and first residual: standard deviation that the noise alone gives to an entry of the mean message.
///
/// # Errors
/// [`SolveError::Dimension`] when a block or the number of users does not fit, [`SolveError::Setting`],
/// [`SolveError::Invalid`] for fewer users than rounds or without public covariates, [`SolveError::NonFinite`].
pub fn solve(
    d: usize,
    n: usize,
    blocks: &mut dyn Iterator<Item = Block>,
    public: Option<&[f64]>,
    settings: &LdpSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<LdpEstimate>, SolveError> {
    settings.validate()?;
    LdpSettings::check_d(d)?;
    let rounds = if settings.protocol == Protocol::Iht { settings.rounds } else { 1 };
    if n < rounds {
        return Err(SolveError::invalid(
            "n",
            "at least one user per round",
            n,
            "take fewer rounds or more users",
        ));
    }
    let begin = monitor.seconds();
    let seed = match settings.seed {
        Some(seed) => Some(seed),
        None => {
            // Fails early where the system has no randomness.
            let _: u64 = PrivacyRng::from_system()?.random();
            None
        }
    };
    let mut state = State::new(d, settings, public)?;
    let (mut status, mut trace, mut user) = (Status::Converged, Trace::new(), 0);
    'all: for block in blocks {
        let rows = block.y.len();
        check_dimension("x of a block", rows * d, "users times d", block.x.len())?;
        if user + rows > n {
            check_dimension("users", n, "as announced", user + rows)?;
        }
        let mut at = 0;
        while at < rows {
            // Users first·⌈n/T⌉ …: the rounds differ by one user at most.
            let round = state.round;
            let end = ((round + 1) * n).div_ceil(rounds);
            let take = (end - user).min(rows - at);
            let x = &block.x[at * d..(at + take) * d];
            state.hear(x, &block.y[at..at + take], user as u64, seed)?;
            (at, user) = (at + take, user + take);
            if user == end {
                state.end_round()?;
            }
            let left = (n - user) as f64;
            if let std::ops::ControlFlow::Break(why) =
                monitor.record(&mut trace, user, state.noise_of_mean(user), left)
            {
                status = why;
                break 'all;
            }
        }
    }
    if status == Status::Converged {
        check_dimension("users", n, "as announced", user)?;
    }
    let noise = state.noise_of_mean(user);
    let x = state.finish(settings, user)?;
    let residuals = vec![Residual { name: "noise of the mean message", value: noise }];
    let seconds = monitor.seconds() - begin;
    Ok(Solution { x, status, objective: noise, residuals, iterations: user, trace, seconds })
}

/// The server of a protocol with the clients it simulates.
struct State {
    d: usize,
    round: usize,
    kind: Kind,
}

enum Kind {
    Moments { client: NldpClient, server: Moments, gram: Option<Vec<f64>> },
    Iht { client: IhtClient, server: IhtServer },
}

impl State {
    fn new(d: usize, settings: &LdpSettings, public: Option<&[f64]>) -> Result<Self, SolveError> {
        let kind = match settings.protocol {
            Protocol::Nldp => {
                Kind::Moments { client: NldpClient::new(d, settings)?, server: Moments::new(d), gram: None }
            }
            Protocol::PublicCovariates => {
                let Some(public) = public else {
                    return Err(SolveError::invalid(
                        "public",
                        "covariates at the server",
                        "none",
                        "give some or use another protocol",
                    ));
                };
                Kind::Moments {
                    client: NldpClient::new(d, settings)?,
                    server: Moments::new(d),
                    gram: Some(server::public_gram(d, public)?),
                }
            }
            Protocol::Iht => {
                Kind::Iht { client: IhtClient::new(d, settings)?, server: IhtServer::new(d, settings)? }
            }
        };
        Ok(Self { d, round: 0, kind })
    }

    /// All users of a part of a block speak.
    fn hear(&mut self, x: &[f64], y: &[f64], first: u64, seed: Option<u64>) -> Result<(), SolveError> {
        let d = self.d;
        let rng = |user: u64| match seed {
            Some(seed) => Ok(PrivacyRng::repeatable_without_privacy(seed, user)),
            None => PrivacyRng::from_system(),
        };
        let pieces: Vec<(usize, &[f64], &[f64])> = x
            .chunks(PIECE * d)
            .zip(y.chunks(PIECE))
            .enumerate()
            .map(|(i, (x, y))| (i * PIECE, x, y))
            .collect();
        match &mut self.kind {
            Kind::Moments { client, server, .. } => {
                let sums: Vec<Moments> = pieces
                    .into_par_iter()
                    .map(|(at, x, y)| {
                        let mut sum = Moments::new(d);
                        for (i, (x, y)) in x.chunks_exact(d).zip(y).enumerate() {
                            sum.add(&client.report(x, *y, &mut rng(first + (at + i) as u64)?)?)?;
                        }
                        Ok(sum)
                    })
                    .collect::<Result<_, SolveError>>()?;
                sums.iter().try_for_each(|s| server.merge(s))
            }
            Kind::Iht { client, server } => {
                let theta = server.broadcast().to_vec();
                let sums: Vec<(Vec<f64>, usize)> = pieces
                    .into_par_iter()
                    .map(|(at, x, y)| {
                        let mut sum = server.empty();
                        for (i, (x, y)) in x.chunks_exact(d).zip(y).enumerate() {
                            let user = first + (at + i) as u64;
                            IhtServer::sum(&mut sum, &client.report(x, *y, &theta, &mut rng(user)?)?)?;
                        }
                        Ok(sum)
                    })
                    .collect::<Result<_, SolveError>>()?;
                sums.iter().for_each(|s| server.merge(s));
                Ok(())
            }
        }
    }

    fn end_round(&mut self) -> Result<(), SolveError> {
        self.round += 1;
        match &mut self.kind {
            Kind::Moments { .. } => Ok(()),
            Kind::Iht { server, .. } => server.end_round(),
        }
    }

    fn noise_of_mean(&self, users: usize) -> f64 {
        let n = users.max(1) as f64;
        match &self.kind {
            Kind::Moments { client, .. } => client.cross_noise() / n.sqrt(),
            // A message of length B is near uniform on its sphere.
            Kind::Iht { client, .. } => client.message_length() / (self.d as f64 * n).sqrt(),
        }
    }

    fn finish(self, settings: &LdpSettings, users: usize) -> Result<LdpEstimate, SolveError> {
        match self.kind {
            Kind::Moments { client, server, gram } => {
                let n = users.max(1) as f64;
                let theory = client.cross_noise() / n.sqrt() * (self.d as f64).ln().sqrt();
                let threshold = settings.threshold.unwrap_or(theory);
                let dense = match gram {
                    Some(gram) => server.estimate_with(&gram, settings.eigen_floor)?,
                    None => server.estimate(settings.eigen_floor)?,
                };
                let mut theta = dense.clone();
                crate::prox::soft_slice(&mut theta, threshold);
                Ok(LdpEstimate { theta, dense, threshold, noise: client.cross_noise() })
            }
            Kind::Iht { client, server } => {
                let theta = server.broadcast().to_vec();
                Ok(LdpEstimate {
                    dense: theta.clone(),
                    theta,
                    threshold: 0.0,
                    noise: client.message_length(),
                })
            }
        }
    }
}
