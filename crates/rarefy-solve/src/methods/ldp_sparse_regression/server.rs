//! What runs at the server: no function here takes a covariate or a response of a user.

use faer::{Mat, Side};

use super::LdpSettings;
use super::client::{IhtMessage, NldpMessage};
use crate::SolveError;
use crate::error::{check_dimension, check_finite};
use crate::linop::dense::axpy;
use crate::prox;

/// Running sums of NLDP messages, with or without second moments: O(d²) memory for any number of users.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    d: usize,
    users: usize,
    /// Upper triangle by rows.
    gram: Vec<f64>,
    cross: Vec<f64>,
}

impl Moments {
    /// No message yet.
    #[must_use]
    pub fn new(d: usize) -> Self {
        Self { d, users: 0, gram: vec![0.0; d * (d + 1) / 2], cross: vec![0.0; d] }
    }

    /// Number of messages.
    #[must_use]
    pub fn users(&self) -> usize {
        self.users
    }

    /// Takes a message.
    ///
    /// # Errors
    /// [`SolveError::Dimension`], [`SolveError::NonFinite`]; then nothing is taken.
    pub fn add(&mut self, message: &NldpMessage) -> Result<(), SolveError> {
        check_dimension("cross", self.d, "dimension of the model", message.cross.len())?;
        check_finite("cross", &message.cross)?;
        if !message.gram_upper.is_empty() {
            check_dimension("gram_upper", self.gram.len(), "d(d+1)/2", message.gram_upper.len())?;
            check_finite("gram_upper", &message.gram_upper)?;
            axpy(1.0, &message.gram_upper, &mut self.gram);
        }
        axpy(1.0, &message.cross, &mut self.cross);
        self.users += 1;
        Ok(())
    }

    /// Takes all messages of another.
    ///
    /// # Errors
    /// [`SolveError::Dimension`].
    pub fn merge(&mut self, other: &Self) -> Result<(), SolveError> {
        check_dimension("moments", self.d, "dimension of the model", other.d)?;
        axpy(1.0, &other.gram, &mut self.gram);
        axpy(1.0, &other.cross, &mut self.cross);
        self.users += other.users;
        Ok(())
    }

    /// `Σ̂⁻¹ĝ` with the eigenvalues of the messages' Σ̂ raised to `floor`. Not yet thresholded.
    ///
    /// # Errors
    /// [`SolveError::Empty`] without messages, [`SolveError::Breakdown`] for a singular Σ̂ at `floor = 0`.
    pub fn estimate(&self, floor: f64) -> Result<Vec<f64>, SolveError> {
        let n = self.users.max(1) as f64;
        let mean: Vec<f64> = self.gram.iter().map(|v| v / n).collect();
        self.estimate_with(&mean, floor)
    }

    /// The same with a given Σ̂: its upper triangle by rows.
    ///
    /// # Errors
    /// As [`Moments::estimate`]; [`SolveError::Dimension`].
    pub fn estimate_with(&self, gram: &[f64], floor: f64) -> Result<Vec<f64>, SolveError> {
        crate::error::check_not_empty("messages", "message", self.users)?;
        check_dimension("gram", self.gram.len(), "d(d+1)/2", gram.len())?;
        check_finite("gram", gram)?;
        let d = self.d;
        let at = |i: usize, j: usize| {
            let (i, j) = (i.min(j), i.max(j));
            gram[i * d - i * (i + 1) / 2 + j]
        };
        let sigma = Mat::from_fn(d, d, at);
        let eigen = sigma
            .self_adjoint_eigen(Side::Lower)
            .map_err(|e| SolveError::breakdown("second moments", format!("{e:?}"), "scale the covariates"))?;
        let (u, s) = (eigen.U(), eigen.S().column_vector());
        let mut theta = vec![0.0; d];
        for k in 0..d {
            let value = s[k].max(floor);
            if value <= 0.0 {
                return Err(SolveError::breakdown(
                    "second moments",
                    "an eigenvalue is not above 0",
                    "set eigen_floor above 0",
                ));
            }
            let part: f64 = (0..d).map(|i| u[(i, k)] * self.cross[i]).sum::<f64>() / self.users as f64;
            (0..d).for_each(|i| theta[i] += u[(i, k)] * part / value);
        }
        check_finite("estimate", &theta)?;
        Ok(theta)
    }
}

/// Mean second moments of public covariates `[rows, d]` row-major: upper triangle by rows.
///
/// # Errors
/// [`SolveError::Dimension`], [`SolveError::NonFinite`], [`SolveError::Empty`].
pub fn public_gram(d: usize, x: &[f64]) -> Result<Vec<f64>, SolveError> {
    crate::error::check_not_empty("public", "row", x.len())?;
    check_dimension("public", x.len() / d * d, "rows times d", x.len())?;
    check_finite("public", x)?;
    let mut gram = vec![0.0; d * (d + 1) / 2];
    for row in x.chunks_exact(d) {
        let mut at = 0;
        for (i, a) in row.iter().enumerate() {
            axpy(*a, &row[i..], &mut gram[at..at + d - i]);
            at += d - i;
        }
    }
    let n = (x.len() / d) as f64;
    gram.iter_mut().for_each(|v| *v /= n);
    Ok(gram)
}

/// The λ among `candidates` whose soft-thresholded estimate predicts public `(x, y)` best, the largest at a tie.
///
/// # Errors
/// [`SolveError::Dimension`], [`SolveError::NonFinite`], [`SolveError::Empty`].
pub fn threshold_by_public_data(
    dense: &[f64],
    x: &[f64],
    y: &[f64],
    candidates: &[f64],
) -> Result<f64, SolveError> {
    crate::error::check_not_empty("candidates", "threshold", candidates.len())?;
    crate::error::check_not_empty("y", "response", y.len())?;
    check_dimension("x", y.len() * dense.len(), "responses times d", x.len())?;
    check_finite("x", x)?;
    check_finite("y", y)?;
    check_finite("candidates", candidates)?;
    let mut best = (f64::INFINITY, candidates[0]);
    for candidate in candidates {
        let mut theta = dense.to_vec();
        prox::soft_slice(&mut theta, candidate.max(0.0));
        let error: f64 = x
            .chunks_exact(dense.len())
            .zip(y)
            .map(|(x, y)| (crate::linop::dense::dot(x, &theta) - y).powi(2))
            .sum();
        if error < best.0 || (error <= best.0 && *candidate > best.1) {
            best = (error, *candidate);
        }
    }
    Ok(best.1)
}

/// The server of IHT.
#[derive(Debug, Clone, PartialEq)]
pub struct IhtServer {
    theta: Vec<f64>,
    sum: (Vec<f64>, usize),
    step: f64,
    keep: usize,
    radius: f64,
}

impl IhtServer {
    /// θ₀ = 0.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn new(d: usize, settings: &LdpSettings) -> Result<Self, SolveError> {
        settings.validate()?;
        LdpSettings::check_d(d)?;
        let keep = settings.keep.unwrap_or(settings.sparsity.saturating_mul(2));
        Ok(Self {
            theta: vec![0.0; d],
            sum: (vec![0.0; d], 0),
            step: settings.step,
            keep: keep.min(d),
            radius: settings.radius,
        })
    }

    /// θ of the present round.
    #[must_use]
    pub fn broadcast(&self) -> &[f64] {
        &self.theta
    }

    /// Takes a message of the present round.
    ///
    /// # Errors
    /// [`SolveError::Dimension`], [`SolveError::NonFinite`].
    pub fn add(&mut self, message: &IhtMessage) -> Result<(), SolveError> {
        Self::sum(&mut self.sum, message)
    }

    pub(super) fn empty(&self) -> (Vec<f64>, usize) {
        (vec![0.0; self.theta.len()], 0)
    }

    pub(super) fn sum(sum: &mut (Vec<f64>, usize), message: &IhtMessage) -> Result<(), SolveError> {
        check_dimension("gradient", sum.0.len(), "dimension of the model", message.gradient.len())?;
        check_finite("gradient", &message.gradient)?;
        axpy(1.0, &message.gradient, &mut sum.0);
        sum.1 += 1;
        Ok(())
    }

    pub(super) fn merge(&mut self, sum: &(Vec<f64>, usize)) {
        axpy(1.0, &sum.0, &mut self.sum.0);
        self.sum.1 += sum.1;
    }

    /// A gradient step with the mean message, the largest entries, the ball.
    ///
    /// # Errors
    /// [`SolveError::Empty`] when nobody spoke in this round.
    pub fn end_round(&mut self) -> Result<(), SolveError> {
        crate::error::check_not_empty("messages of the round", "message", self.sum.1)?;
        axpy(-self.step / self.sum.1 as f64, &self.sum.0, &mut self.theta);
        prox::hard_keep_k(&mut self.theta, self.keep);
        prox::l2_ball(&mut self.theta, self.radius);
        self.sum = self.empty();
        Ok(())
    }
}
