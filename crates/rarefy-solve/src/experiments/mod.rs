//! Published experiments of the solvers, scaled to this machine: what `rarefy repro` reports. Each
//! returns measured numbers only; nothing is stored.

pub mod block_coordinate_descent;
pub mod kronecker_sbl;
pub mod ldp_sparse_regression;
pub mod linf_regression;
pub mod lp_sensitivity_sampling;
pub mod matrix_completion;
pub mod optimistic_omd;
pub mod sinkhorn_newton_sparse;
pub mod sparsity_constrained_ot;
pub mod spright;

use serde::Serialize;

/// A margin or ordering, measured: it holds when `value >= least`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Margin {
    /// What is compared with what.
    pub name: String,
    /// The measured value.
    pub value: f64,
    /// What the specification requires.
    pub least: f64,
}

impl Margin {
    /// A margin.
    pub fn new(name: impl Into<String>, value: f64, least: f64) -> Self {
        Self { name: name.into(), value, least }
    }

    /// Whether it holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.value >= self.least
    }
}

/// One row of the table: labels and numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Which part of the experiment.
    pub experiment: String,
    /// Which case.
    pub case: String,
    /// Named numbers.
    pub values: Vec<(String, f64)>,
}

/// What an experiment measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Requirements.
    pub margins: Vec<Margin>,
    /// The table.
    pub rows: Vec<Row>,
    /// What a reader has to know.
    pub notes: Vec<String>,
}

/// Median; NaN when a value is, or when there is none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Quantile by linear interpolation; NaN when a value is, or when there is none.
#[must_use]
pub fn quantile(values: &[f64], level: f64) -> f64 {
    if values.is_empty() || values.iter().any(|v| v.is_nan()) {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = level.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_margins() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(quantile(&[0.0, 10.0], 0.95), 9.5);
        assert!(median(&[]).is_nan() && median(&[1.0, f64::NAN]).is_nan());
        assert!(Margin::new("x", 2.0, 2.0).holds() && !Margin::new("x", f64::NAN, 2.0).holds());
    }
}
