//! The table of which kernel is chosen for which rows of `x` and which sparsity, each cell measured too.

use super::{Calibration, Residence, Work};
use crate::KernelError;
use crate::bandwidth::median;
use crate::bench::{self, BenchSpec, Kind};

/// What is tabulated.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossoverSettings {
    /// Kernels that may replace each other, list by list.
    pub families: Vec<Vec<Kind>>,
    /// Rows of the weight, `d_out`.
    pub rows: usize,
    /// Columns of the weight, `d_in`.
    pub cols: usize,
    /// Rows of `x`.
    pub tokens: Vec<usize>,
    /// Fractions of zeros, in [0, 1).
    pub sparsities: Vec<f64>,
    /// Timed calls of each kernel in each cell.
    pub passes: usize,
    /// Bytes of weights between which the kernels alternate: several times the last-level cache.
    pub memory_bytes: usize,
    /// Largest allocation allowed.
    pub max_bytes: usize,
    /// Seed of weights and activations.
    pub seed: u64,
}

/// One cell for one family.
#[derive(Debug, Clone, PartialEq)]
pub struct Crossover {
    /// Rows of `x`.
    pub n: usize,
    /// Fraction of zeros.
    pub sparsity: f64,
    /// The kernel that the cost model chooses.
    pub chosen: Kind,
    /// The kernel that was fastest.
    pub best: Kind,
    /// Time of the chosen kernel over that of the best, calls side by side, median; 1 where it is the best.
    pub regret: f64,
    /// Kernels with measured and predicted milliseconds.
    pub times: Vec<(Kind, f64, f64)>,
}

/// Chooses and measures every cell on weights in memory; `on_step` gets a line before each.
///
/// # Errors
/// Those of [`bench::run`]; [`KernelError::Unsupported`] for a kernel that `machine` was not calibrated for or that cannot hold the shape.
pub fn crossover(
    machine: &Calibration,
    settings: &CrossoverSettings,
    on_step: &mut dyn FnMut(&str),
) -> Result<Vec<Crossover>, KernelError> {
    let mut cells = Vec::new();
    for &n in &settings.tokens {
        for &sparsity in &settings.sparsities {
            on_step(&format!("{n} rows, {:.0} % zeros", 100.0 * sparsity));
            let spec = BenchSpec {
                rows: settings.rows,
                cols: settings.cols,
                sparsity,
                n,
                threads: machine.threads,
                passes: settings.passes,
                min_bytes: settings.memory_bytes,
                max_bytes: settings.max_bytes,
                kinds: settings.families.concat(),
                seed: settings.seed,
            };
            let report = bench::run(&spec, &mut |_| ())?;
            let work = Work { rows: spec.rows, cols: spec.cols, n, sparsity, residence: Residence::Memory };
            for family in &settings.families {
                let cell = cell(machine, &report.rows, family, &work).ok_or(KernelError::Unsupported {
                    kernel: "crossover",
                    what: "a kernel has no prediction for this shape; calibrate it, or leave it out",
                })?;
                cells.push(cell);
            }
        }
    }
    Ok(cells)
}

fn cell(machine: &Calibration, rows: &[bench::BenchRow], family: &[Kind], work: &Work) -> Option<Crossover> {
    let (chosen, _) = machine.choose(family, work)?;
    let row = |kind: Kind| rows.iter().find(|r| r.kind == kind);
    let of = &row(chosen)?.times;
    let mut best = (chosen, 1.0);
    let mut times = Vec::new();
    for &kind in family {
        let other = row(kind)?;
        times.push((kind, other.ms, machine.predict(kind, work)?.ms));
        let ratio = median(&mut of.iter().zip(&other.times).map(|(a, b)| a / b).collect::<Vec<_>>());
        if kind != chosen && ratio > best.1 {
            best = (kind, ratio);
        }
    }
    Some(Crossover { n: work.n, sparsity: work.sparsity, chosen, best: best.0, regret: best.1, times })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::plan::KernelCost;

    fn machine(dense_ns: f64, panel_ns: f64) -> Calibration {
        let cost = |kind: Kind, unit_ns| KernelCost {
            kernel: kind.to_string(),
            call_ns: 0.0,
            unit_ns: vec![(1, unit_ns)],
            rates: vec![(0.5, 1e6)],
            overlap: 8.0,
        };
        let kernels = vec![cost(Kind::DenseF32, dense_ns), cost(Kind::PanelF32, panel_ns)];
        Calibration {
            version: Calibration::VERSION,
            cpu: "test".into(),
            threads: 1,
            read_gb_per_s: 1e6,
            single: kernels.clone(),
            kernels,
        }
    }

    #[test]
    fn a_wrong_choice_is_found_out() {
        let row = |kind, times: &[f64]| bench::BenchRow {
            kind,
            bytes: 1,
            bytes_ratio: 1.0,
            ms: times[0],
            ms_min: times[0],
            ms_max: times[0],
            gb_per_s: 1.0,
            speedup: 1.0,
            times: times.to_vec(),
        };
        let rows = [row(Kind::DenseF32, &[4.0, 4.0, 8.0]), row(Kind::PanelF32, &[2.0, 2.0, 2.0])];
        let work = Work { rows: 32, cols: 32, n: 1, sparsity: 0.7, residence: Residence::Memory };
        let family = [Kind::DenseF32, Kind::PanelF32];
        let right = cell(&machine(2.0, 1.0), &rows, &family, &work).unwrap();
        assert_eq!((right.chosen, right.best, right.regret), (Kind::PanelF32, Kind::PanelF32, 1.0));
        let wrong = cell(&machine(1.0, 2.0), &rows, &family, &work).unwrap();
        assert_eq!((wrong.chosen, wrong.best, wrong.regret), (Kind::DenseF32, Kind::PanelF32, 2.0));
        assert!(cell(&machine(1.0, 2.0), &rows, &[Kind::Gather], &work).is_none());
    }

    #[test]
    fn every_cell_of_every_family_is_there() {
        let settings = CrossoverSettings {
            families: vec![vec![Kind::DenseF32, Kind::PanelF32], vec![Kind::PanelF32]],
            rows: 64,
            cols: 64,
            tokens: vec![1, 3],
            sparsities: vec![0.5, 0.9],
            passes: 2,
            memory_bytes: 1 << 20,
            max_bytes: 1 << 30,
            seed: 0,
        };
        let cells = crossover(&machine(1.0, 2.0), &settings, &mut |_| ()).unwrap();
        assert_eq!(cells.len(), 8);
        assert!(cells.iter().all(|c| c.regret >= 1.0 && (c.regret > 1.0) == (c.chosen != c.best)));
        let unknown = CrossoverSettings { families: vec![vec![Kind::Gather]], ..settings };
        let refused = crossover(&machine(1.0, 2.0), &unknown, &mut |_| ());
        assert!(matches!(refused, Err(KernelError::Unsupported { .. })));
    }
}
