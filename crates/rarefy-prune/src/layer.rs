//! One linear layer, what a method does to it, and what is reported.

use std::fmt;

use rand_chacha::ChaCha8Rng;
use rarefy_sparsity::{MethodInfo, Pattern};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{LayerStats, PruneError};

/// Statistics a method needs, as a set. Nothing else is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs(u8);

impl Needs {
    /// No calibration at all.
    pub const NONE: Self = Self(0);
    /// Mean over sequences of the sum of squares of each input, `[d_in]`.
    pub const INPUT_NORMS: Self = Self(1);
    /// `(2 / n_sequences) XᵀX`, `[d_in, d_in]`. Includes the input norms.
    pub const HESSIAN: Self = Self(2 | 1);

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether everything in `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any calibration data is needed.
    #[must_use]
    pub const fn any(self) -> bool {
        self.0 != 0
    }
}

/// A uniform integer grid per row, or per group of columns in a row:
/// `value = scale * (code - zero)` with `0 <= code < 2^bits`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantGrid {
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// Columns that share one scale; the number of columns when there are no groups.
    pub group: usize,
    /// Groups in a row.
    pub groups_per_row: usize,
    /// `[rows, groups_per_row]`, positive.
    pub scale: Vec<f32>,
    /// `[rows, groups_per_row]`, in `0..2^bits`.
    pub zero: Vec<i32>,
}

impl QuantGrid {
    /// Largest code, `2^bits - 1`.
    #[must_use]
    pub fn max_code(&self) -> i32 {
        (1_i32 << self.bits) - 1
    }

    /// Scale and zero point of one element.
    #[must_use]
    pub fn at(&self, row: usize, col: usize) -> (f32, i32) {
        let index = row * self.groups_per_row + col / self.group;
        (self.scale[index], self.zero[index])
    }

    /// The code of `x` at this place: `clamp(round(x / scale) + zero)`, halves to even.
    #[must_use]
    pub fn code(&self, row: usize, col: usize, x: f64) -> i32 {
        let (scale, zero) = self.at(row, col);
        let max = f64::from(self.max_code());
        ((x / f64::from(scale)).round_ties_even() + f64::from(zero)).clamp(0.0, max) as i32
    }

    /// The grid value nearest to `x` at this place. Zero stays exactly zero.
    #[must_use]
    pub fn quantize(&self, row: usize, col: usize, x: f64) -> f64 {
        let (scale, zero) = self.at(row, col);
        f64::from(scale) * f64::from(self.code(row, col, x) - zero)
    }
}

/// A linear layer to prune: `y = W x`, bias untouched.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearLayer {
    /// Name in messages and reports.
    pub name: String,
    /// Outputs, `d_out`.
    pub rows: usize,
    /// Inputs, `d_in`.
    pub cols: usize,
    /// Row-major `[rows, cols]`.
    pub weight: Vec<f32>,
    /// Set by methods that quantise as well: the grid all weights lie on.
    pub grid: Option<QuantGrid>,
}

impl LinearLayer {
    /// A layer from its row-major weights.
    ///
    /// # Errors
    /// [`PruneError::ShapeMismatch`] when `weight` does not hold `rows * cols` values.
    pub fn new(
        name: impl Into<String>,
        rows: usize,
        cols: usize,
        weight: Vec<f32>,
    ) -> Result<Self, PruneError> {
        let name = name.into();
        let expected = rows.saturating_mul(cols);
        if weight.len() != expected {
            return Err(PruneError::ShapeMismatch {
                layer: name,
                what: "weight",
                expected,
                found: weight.len(),
            });
        }
        Ok(Self { name, rows, cols, weight, grid: None })
    }

    /// Refuses NaN and infinity, and weights whose length does not fit the shape.
    ///
    /// # Errors
    /// [`PruneError::NonFiniteWeight`] with count and first place;
    /// [`PruneError::ShapeMismatch`].
    pub fn check(&self) -> Result<(), PruneError> {
        let expected = self.rows.saturating_mul(self.cols);
        if self.weight.len() != expected {
            return Err(PruneError::ShapeMismatch {
                layer: self.name.clone(),
                what: "weight",
                expected,
                found: self.weight.len(),
            });
        }
        // The sum of w·0 is NaN exactly when a weight is NaN or infinite: a loop without a branch, in lanes that do
        // not wait for each other.
        let bad = |part: &[f32]| {
            let (eights, rest) = part.as_chunks::<8>();
            let mut lanes = [0.0_f32; 8];
            for eight in eights {
                for k in 0..8 {
                    lanes[k] += eight[k] * 0.0;
                }
            }
            rest.iter().chain(&lanes).fold(0.0, |sum, w| sum + w * 0.0).is_nan()
        };
        if !self.weight.par_chunks(1 << 16).any(bad) {
            return Ok(());
        }
        let first = self.weight.iter().position(|w| !w.is_finite()).unwrap_or(0);
        Err(PruneError::NonFiniteWeight {
            layer: self.name.clone(),
            count: self.weight[first..].iter().filter(|w| !w.is_finite()).count(),
            row: first / self.cols,
            col: first % self.cols,
        })
    }

    /// Number of weights that are exactly zero.
    #[must_use]
    pub fn zeros(&self) -> usize {
        self.weight.iter().filter(|w| **w == 0.0).count()
    }
}

/// How [`LayerReport::relative_error`] was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// `tr(ΔW H ΔWᵀ) / tr(W H Wᵀ)`: the relative squared output error on the calibration data.
    Output,
    /// The same with the diagonal of `H` only: inputs taken as uncorrelated.
    DiagonalOutput,
    /// `‖ΔW‖² / ‖W‖²`: no statistics at hand.
    Weight,
}

/// Something the user should know about a layer that was nevertheless pruned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Warning {
    /// The damped Hessian was not positive definite; the damping was raised.
    DampingRaised {
        /// Relative damping asked for.
        from: f64,
        /// Relative damping that worked.
        to: f64,
    },
    /// No damping tried made the Hessian positive definite: only its diagonal
    /// was used, so kept weights were not corrected.
    DiagonalHessian {
        /// Largest relative damping tried.
        tried: f64,
    },
    /// Inputs that are zero on all calibration tokens; their weights were set to zero.
    DeadInputs {
        /// How many.
        count: usize,
    },
    /// Fewer calibration tokens than inputs: the Hessian is singular before damping.
    FewTokens {
        /// Calibration tokens.
        tokens: usize,
        /// Inputs of the layer.
        cols: usize,
    },
    /// Rounding to the storage type changed the number of zeros.
    RoundedToZero {
        /// Additional zeros.
        count: usize,
    },
    /// The bisection of the Wanda variant stopped away from the target.
    SparsityMissed {
        /// Fraction asked for.
        asked: f64,
        /// Fraction reached.
        reached: f64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DampingRaised { from, to } => {
                write!(f, "Hessian not positive definite at percdamp {from}; used {to}")
            }
            Self::DiagonalHessian { tried } => write!(
                f,
                "Hessian not positive definite up to percdamp {tried}; used its diagonal, kept weights not corrected"
            ),
            Self::DeadInputs { count } => {
                write!(f, "{count} inputs are zero on all calibration tokens; their weights were set to zero")
            }
            Self::FewTokens { tokens, cols } => {
                write!(f, "only {tokens} calibration tokens for {cols} inputs")
            }
            Self::RoundedToZero { count } => {
                write!(f, "{count} more weights became zero in the storage type")
            }
            Self::SparsityMissed { asked, reached } => {
                write!(f, "asked for sparsity {asked}, reached {reached:.4}")
            }
        }
    }
}

/// What happened to one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Name of the layer.
    pub layer: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Weights that are not zero afterwards.
    pub kept: usize,
    /// Weights that are zero afterwards.
    pub pruned: usize,
    /// Relative error, see `error_kind`; absent when the dense layer maps everything to zero.
    pub relative_error: Option<f64>,
    /// What `relative_error` measures.
    pub error_kind: ErrorKind,
    /// `½‖E‖²` of SparseGPT, with `H = (2 / n_sequences) XᵀX`.
    pub loss: Option<f64>,
    /// Wall time in seconds; not stored, so that files are reproducible.
    #[serde(skip)]
    pub seconds: f64,
    /// What the user should know.
    pub warnings: Vec<Warning>,
}

impl LayerReport {
    /// Fraction of zeros.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        let total = self.kept + self.pruned;
        if total == 0 { 0.0 } else { self.pruned as f64 / total as f64 }
    }
}

/// A method that prunes one layer at a time.
pub trait LayerPruner: Send + Sync {
    /// Paper, family, maturity.
    fn info(&self) -> &'static MethodInfo;
    /// What calibration must collect.
    fn needs(&self) -> Needs;
    /// The pattern that the result obeys.
    fn pattern(&self) -> Pattern;
    /// Fully resolved settings, for the record beside the result.
    fn settings(&self) -> serde_json::Value;
    /// Refuses a layer by its shape, before any work is done.
    ///
    /// # Errors
    /// [`PruneError::PatternMismatch`] when the pattern does not divide the layer.
    fn check_shape(&self, layer: &str, rows: usize, cols: usize) -> Result<(), PruneError>;
    /// Upper bound in bytes of what [`LayerPruner::prune`] allocates beside the layer and its statistics.
    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64;
    /// Prunes the layer in place.
    ///
    /// # Errors
    /// Missing or invalid statistics, non-finite weights, shapes that do not fit.
    fn prune(
        &self,
        layer: &mut LinearLayer,
        stats: &LayerStats,
        rng: &mut ChaCha8Rng,
    ) -> Result<LayerReport, PruneError>;
}
