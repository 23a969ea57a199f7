//! Published experiments, scaled to this machine: one file per specification.

mod block_coordinate_descent;
mod cats;
mod convnets;
mod double_sparsity;
mod fast_sparse_convnets;
mod flash_llm;
mod flashfftconv;
mod kronecker_sbl;
mod language;
mod ldp_sparse_regression;
mod linf_regression;
mod lp_sensitivity_sampling;
mod matrix_completion;
mod optimistic_omd;
mod recall;
mod sinkhorn_newton_sparse;
mod sparsebytenn;
mod sparsegpt_wanda_baselines;
mod sparsity_constrained_ot;
mod spright;
mod trained;
mod trained_fast_sparse;
mod trained_sparsebytenn;

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::cli::CliError;

/// How an experiment is run.
pub struct ReproOptions<'a> {
    /// At most a minute on two cores, instead of a quarter of an hour.
    pub quick: bool,
    /// Folder with the real data sets, `text/wikitext2.test.txt.gz` and so on; models beside it in `../models`.
    pub data: Option<PathBuf>,
    /// Seed of every random choice.
    pub seed: u64,
    /// Told what is being done.
    pub say: &'a mut dyn FnMut(&str),
}

impl std::fmt::Debug for ReproOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReproOptions")
            .field("quick", &self.quick)
            .field("data", &self.data)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// One ordering or margin that the specification requires, measured in this run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What is compared.
    pub name: String,
    /// What is required.
    pub required: String,
    /// What was measured.
    pub measured: String,
    /// Whether the measurement meets the requirement.
    pub passed: bool,
}

impl Check {
    /// `value >= least`.
    #[must_use]
    pub fn at_least(name: impl Into<String>, value: f64, least: f64) -> Self {
        Self {
            name: name.into(),
            required: format!(">= {least}"),
            measured: format!("{value:.4}"),
            passed: value >= least,
        }
    }

    /// `value <= most`.
    #[must_use]
    pub fn at_most(name: impl Into<String>, value: f64, most: f64) -> Self {
        Self {
            name: name.into(),
            required: format!("<= {most}"),
            measured: format!("{value:.4}"),
            passed: value <= most,
        }
    }

    /// The named values rise from the first to the last. `may_equal[i]` allows value `i` and `i + 1` to be equal.
    #[must_use]
    pub fn ordered(name: impl Into<String>, values: &[(&str, f64)], may_equal: &[bool]) -> Self {
        let mut required = String::new();
        let mut passed = values.iter().all(|v| v.1.is_finite());
        for (i, (label, value)) in values.iter().enumerate() {
            if i > 0 {
                let loose = may_equal.get(i - 1).copied().unwrap_or(false);
                required += if loose { " <= " } else { " < " };
                let before = values[i - 1].1;
                passed &= before < *value || (loose && before <= *value);
            }
            required += label;
        }
        let measured: Vec<String> = values.iter().map(|(label, v)| format!("{label} {v:.4}")).collect();
        Self { name: name.into(), required, measured: measured.join(", "), passed }
    }
}

/// What an experiment found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// The requirements; the experiment has passed when each has.
    pub checks: Vec<Check>,
    /// Rows of numbers, published beside measured.
    pub table: Vec<Value>,
    /// What a reader has to know beside the numbers.
    pub notes: Vec<String>,
}

/// Runs one experiment.
pub type Run = fn(&mut ReproOptions<'_>) -> Result<Outcome, CliError>;

/// One experiment.
#[derive(Debug, Clone, Copy)]
pub struct Experiment {
    /// Name of the specification.
    pub slug: &'static str,
    /// What it shows.
    pub summary: &'static str,
    /// Runs it.
    pub run: Run,
}

/// What the experiments of the solvers measured, as checks and a table.
impl From<rarefy_solve::experiments::Measured> for Outcome {
    fn from(measured: rarefy_solve::experiments::Measured) -> Self {
        let checks = measured.margins.into_iter().map(|m| Check {
            required: format!(">= {}", m.least),
            measured: format!("{:.3e}", m.value),
            passed: m.holds(),
            name: m.name,
        });
        let table = measured.rows.into_iter().map(|row| {
            let labels = [("experiment", row.experiment), ("case", row.case)];
            let labels = labels.map(|(name, value)| (name.to_owned(), value.into()));
            let values = row.values.into_iter().map(|(name, value)| (name, value.into()));
            Value::Object(labels.into_iter().chain(values).collect())
        });
        Self { checks: checks.collect(), table: table.collect(), notes: measured.notes }
    }
}

/// All experiments.
pub const EXPERIMENTS: &[Experiment] = &[
    sparsegpt_wanda_baselines::EXPERIMENT,
    cats::EXPERIMENT,
    double_sparsity::EXPERIMENT,
    fast_sparse_convnets::EXPERIMENT,
    sparsebytenn::EXPERIMENT,
    flash_llm::EXPERIMENT,
    flashfftconv::EXPERIMENT,
    block_coordinate_descent::EXPERIMENT,
    kronecker_sbl::EXPERIMENT,
    ldp_sparse_regression::EXPERIMENT,
    linf_regression::EXPERIMENT,
    lp_sensitivity_sampling::EXPERIMENT,
    matrix_completion::EXPERIMENT,
    optimistic_omd::EXPERIMENT,
    sinkhorn_newton_sparse::EXPERIMENT,
    sparsity_constrained_ot::EXPERIMENT,
    spright::EXPERIMENT,
];

/// The experiment of a method or of a specification.
#[must_use]
pub fn find(name: &str) -> Option<&'static Experiment> {
    let slug = rarefy_prune::METHODS.iter().find(|m| m.info.slug == name).map_or(name, |m| m.repro);
    EXPERIMENTS.iter().find(|e| e.slug == slug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_with_and_without_ties() {
        let values = [("a", 1.0), ("b", 1.0), ("c", 2.0)];
        assert!(Check::ordered("x", &values, &[true, false]).passed);
        assert!(!Check::ordered("x", &values, &[false, false]).passed);
        assert_eq!(Check::ordered("x", &values, &[true]).required, "a <= b < c");
        assert!(!Check::ordered("x", &[("a", f64::NAN), ("b", 1.0)], &[]).passed);
        assert!(!Check::at_least("x", f64::NAN, 1.0).passed);
        assert!(!Check::at_most("x", f64::NAN, 1.0).passed && Check::at_most("x", 1.0, 1.0).passed);
        assert!(Check::at_least("x", 1.0, 1.0).passed);
    }

    #[test]
    fn every_method_has_an_experiment() {
        for info in crate::registry::all() {
            assert!(find(info.slug).is_some(), "{}", info.slug);
        }
        assert!(find("nothing").is_none());
    }
}
