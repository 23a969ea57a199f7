//! What will pay in an image network: a cost model of its kernels, calibrated once on networks of other sizes.
//!
//! The time of a node is `a · kept products + b · moved + c · spilled + d`: moved are the elements of its input and output,
//! spilled those of them beyond the second-level cache. Each kernel (`1x1`, `1x1 sparse 4`, `depthwise`, …) has its own
//! coefficients, fitted to measured nodes with relative weights and coefficients of at least 0. The network to
//! be predicted is pruned and packed, so that kernels and bytes are exactly those that would run, but it is not run.

use rarefy_kernels::cnn::{NetworkSettings, NodeReport};
use rarefy_models::classifier::{Classifier, synthetic};
use rarefy_prune::classifier::{ClassifierSettings, prune};
use rarefy_sparsity::Pattern;
use serde::{Deserialize, Serialize};

use super::machine::{identity, second_level_cache};
use crate::classify::{Times, test_image, times};
use crate::cli::CliError;

/// Patterns that are estimated.
pub const PATTERNS: [&str; 3] = ["unstructured", "block:4x1", "block:16x1"];
/// Sparsities of the calibration. They are not those that are predicted by default.
const SPARSITIES: [f64; 3] = [0.6, 0.85, 0.95];
/// Timed passes of each network of the calibration.
const PASSES: usize = 15;

/// Time of one kernel, in nanoseconds for each of the four terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeCost {
    /// Name, as in [`NodeReport::kernel`].
    pub kernel: String,
    /// Nanoseconds of a multiply-add that is not skipped.
    pub product_ns: f64,
    /// Nanoseconds of an element of input or output.
    pub moved_ns: f64,
    /// More nanoseconds of such an element beyond the second-level cache.
    pub spilled_ns: f64,
    /// Nanoseconds of a call.
    pub call_ns: f64,
}

/// The cost model of image networks on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageCalibration {
    /// Format of the file.
    pub version: u32,
    /// CPU and code path.
    pub cpu: String,
    /// Threads.
    pub threads: usize,
    /// The kernels.
    pub kernels: Vec<NodeCost>,
    /// Least time of a whole pass over the sum of the medians of its nodes timed one by one: of dense networks, and of sparse ones.
    pub whole: [f64; 2],
}

/// Terms of the law.
const TERMS: usize = 4;

/// What is measured of a node.
struct Sample {
    kernel: String,
    kept: f64,
    moved: f64,
    spilled: f64,
    ns: f64,
}

impl Sample {
    fn terms(&self) -> [f64; TERMS] {
        [self.kept, self.moved, self.spilled, 1.0]
    }
}

impl ImageCalibration {
    /// Format of the file.
    pub const VERSION: u32 = 1;

    /// Measures networks with random weights: MobileNet v1 and v2 at widths and sides of their own.
    ///
    /// # Errors
    /// What pruning, packing and timing give.
    pub fn measure(threads: usize, say: &mut dyn FnMut(&str)) -> Result<Self, CliError> {
        let mut samples = Vec::new();
        let (mut whole, mut parts) = ([0.0; 2], [0.0; 2]);
        for model in [
            synthetic::mobilenet_v1(3, 160, 1),
            synthetic::mobilenet_v2(4, 128, 1),
            synthetic::mobilenet_v1(4, 96, 1),
        ] {
            say(&format!("measuring {}", model.name()));
            for pattern in PATTERNS {
                for sparsity in SPARSITIES {
                    let (sparse, times) = measured(&model, pattern, sparsity, PASSES, threads)?;
                    for (i, nodes) in times.nodes.iter().enumerate() {
                        let settings =
                            NetworkSettings { may_be_sparse: i == 1, ..NetworkSettings::default() };
                        let network = sparse.network(&settings)?.network;
                        let reports: Vec<&NodeReport> = network.report().collect();
                        samples.extend(
                            described(&reports, model.side())
                                .into_iter()
                                .zip(nodes)
                                .map(|(s, ms)| Sample { ns: ms * 1e6, ..s }),
                        );
                        whole[i] += times.least[i];
                        parts[i] += nodes.iter().sum::<f64>();
                    }
                }
            }
        }
        let mut names: Vec<String> = samples.iter().map(|s| s.kernel.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let kernels = names.into_iter().map(|kernel| {
            let own: Vec<&Sample> = samples.iter().filter(|s| s.kernel == kernel).collect();
            fit(kernel, &own)
        });
        let kernels = kernels.collect();
        Ok(Self {
            version: Self::VERSION,
            cpu: identity(),
            threads,
            kernels,
            whole: [whole[0] / parts[0], whole[1] / parts[1]],
        })
    }

    /// Whether it is of this machine and complete.
    #[must_use]
    pub fn is_usable(&self, threads: usize) -> bool {
        let good = |v: f64| v.is_finite() && v >= 0.0;
        self.version == Self::VERSION
            && self.cpu == identity()
            && self.threads == threads
            && self.whole.iter().all(|w| *w > 0.0 && w.is_finite())
            && !self.kernels.is_empty()
            && self
                .kernels
                .iter()
                .all(|k| [k.product_ns, k.moved_ns, k.spilled_ns, k.call_ns].into_iter().all(good))
    }

    /// The costs of a kernel; of the one with the most similar name when it was not measured.
    fn cost(&self, kernel: &str) -> Option<&NodeCost> {
        let common = |name: &str| name.bytes().zip(kernel.bytes()).take_while(|(a, b)| a == b).count();
        let exact = self.kernels.iter().find(|k| k.kernel == kernel);
        exact.or_else(|| self.kernels.iter().max_by_key(|k| common(&k.kernel)))
    }

    /// Predicted milliseconds of each node of a network that reads images of `side × side`.
    #[must_use]
    pub fn predict(&self, nodes: &[&NodeReport], side: usize) -> Vec<f64> {
        let samples = described(nodes, side);
        let whole = self.whole[usize::from(samples.iter().any(|s| skips(&s.kernel)))];
        let ms = |s: &Sample| self.cost(&s.kernel).map_or(f64::NAN, |c| c.ns(s) * whole * 1e-6);
        samples.iter().map(ms).collect()
    }

    /// For each node the sparsity from which the 1×1 kernel for blocks of `block` beats the dense one; `None` when it does not
    /// below 99 %, and for all but 1×1 convolutions.
    #[must_use]
    pub fn break_even(&self, dense: &[&NodeReport], side: usize, block: usize) -> Vec<Option<f64>> {
        let name = format!("1x1 sparse {block}");
        let sparse = self.kernels.iter().find(|k| k.kernel == name);
        let from = |s: Sample| {
            let (own, dense) = (sparse?, self.cost(&s.kernel)?.ns(&s));
            let fixed = own.ns(&Sample { kept: 0.0, ..s });
            let density = (dense - fixed) / (own.product_ns * s.kept);
            (density > 0.01).then(|| (1.0 - density).max(0.0))
        };
        let nodes = described(dense, side).into_iter();
        nodes.map(|s| if s.kernel == "1x1" { from(s) } else { None }).collect()
    }
}

impl NodeCost {
    fn ns(&self, s: &Sample) -> f64 {
        let cost = [self.product_ns, self.moved_ns, self.spilled_ns, self.call_ns];
        s.terms().iter().zip(cost).map(|(term, ns)| term * ns).sum()
    }
}

/// Whether a kernel skips zeros; a dense one computes with them too.
fn skips(kernel: &str) -> bool {
    ["sparse", "channels", "bitmask"].iter().any(|word| kernel.contains(word))
}

/// The terms of each node. A node reads what the one before it wrote, and an addition as much again.
fn described(nodes: &[&NodeReport], side: usize) -> Vec<Sample> {
    let cache = second_level_cache() as f64 / 4.0;
    let mut input = 3.0 * (side * side) as f64;
    let describe = |node: &&NodeReport| {
        let output: f64 = node.output.iter().map(|n| *n as f64).product();
        let moved = input + output + if node.kernel == "add" { output } else { 0.0 };
        input = output;
        Sample {
            kernel: node.kernel.clone(),
            kept: node.products as f64 * if skips(&node.kernel) { node.density } else { 1.0 },
            moved,
            spilled: (moved - cache).max(0.0),
            ns: 0.0,
        }
    };
    nodes.iter().map(describe).collect()
}

/// Prunes a copy and times it dense and sparse, in turn.
///
/// # Errors
/// What pruning, packing and timing give.
pub fn measured(
    model: &Classifier,
    pattern: &str,
    sparsity: f64,
    passes: usize,
    threads: usize,
) -> Result<(Classifier, Times), CliError> {
    let sparse = pruned(model, pattern, sparsity)?;
    let dense = sparse.network(&NetworkSettings { may_be_sparse: false, ..NetworkSettings::default() })?;
    let own = sparse.network(&NetworkSettings::default())?;
    let found = times(&[&dense.network, &own.network], &test_image(model.side()), passes, threads)?;
    Ok((sparse, found))
}

/// A copy with the smallest weights of its 1×1 layers set to 0.
///
/// # Errors
/// A pattern that does not exist, or a sparsity out of range.
pub fn pruned(model: &Classifier, pattern: &str, sparsity: f64) -> Result<Classifier, CliError> {
    let mut copy = model.clone();
    let pattern: Pattern = pattern.parse()?;
    prune(&mut copy, &ClassifierSettings { sparsity, pattern, rearranges: false }, &mut |_| ())?;
    Ok(copy)
}

/// Least squares with coefficients of at least 0: the best of all subsets of the terms. An error weighs by the square root of the
/// time, between relative errors, which would give the small nodes all the say, and absolute ones.
fn fit(kernel: String, samples: &[&Sample]) -> NodeCost {
    let rows: Vec<[f64; TERMS]> =
        samples.iter().map(|s| s.terms().map(|v| v / s.ns.max(1.0).sqrt())).collect();
    let roots: Vec<f64> = samples.iter().map(|s| s.ns.max(1.0).sqrt()).collect();
    let mut best = ([0.0; TERMS], f64::INFINITY);
    for subset in 1_u8..1 << TERMS {
        let terms: Vec<usize> = (0..TERMS).filter(|t| subset & (1 << t) != 0).collect();
        let Some(x) = least_squares(&rows, &roots, &terms) else { continue };
        if x.iter().any(|v| !(*v >= 0.0 && v.is_finite())) {
            continue;
        }
        let value = |r: &[f64; TERMS]| r.iter().zip(&x).map(|(r, x)| r * x).sum::<f64>();
        let error: f64 = rows.iter().zip(&roots).map(|(r, want)| (value(r) - want).powi(2)).sum();
        if error < best.1 {
            best = (x, error);
        }
    }
    let [product_ns, moved_ns, spilled_ns, call_ns] = best.0;
    NodeCost { kernel, product_ns, moved_ns, spilled_ns, call_ns }
}

/// Solution of `rows[.., terms] x = want` in the least-squares sense, 0 for the other terms; `None` when the terms cannot be told apart.
fn least_squares(rows: &[[f64; TERMS]], want: &[f64], terms: &[usize]) -> Option<[f64; TERMS]> {
    use faer::linalg::solvers::SolveLstsq as _;
    if rows.len() < terms.len() {
        return None;
    }
    // Columns of one size, so that the conditioning says something.
    let norm = |t: usize| rows.iter().map(|r| r[t] * r[t]).sum::<f64>().sqrt();
    let norms: Vec<f64> = terms.iter().map(|t| norm(*t)).collect();
    if norms.iter().any(|n| *n <= 0.0) {
        return None;
    }
    let a = faer::Mat::from_fn(rows.len(), terms.len(), |i, k| rows[i][terms[k]] / norms[k]);
    let gram = a.transpose() * &a;
    if gram.determinant() < 1e-12 {
        return None;
    }
    let x = a.qr().solve_lstsq(faer::Mat::from_fn(rows.len(), 1, |i, _| want[i]));
    let mut out = [0.0; TERMS];
    terms.iter().enumerate().for_each(|(k, t)| out[*t] = x[(k, 0)] / norms[k]);
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(kernel: &str, products: usize, density: f64, output: [usize; 3]) -> NodeReport {
        let (kernel, reason) = (kernel.to_owned(), String::new());
        NodeReport { kernel, reason, density, products, output, bytes: 0 }
    }

    /// Nodes whose times follow the law exactly.
    fn law(cost: &NodeCost) -> Vec<Sample> {
        let nodes = [
            (1e3, 8e2, 0.0),
            (4e3, 3e3, 0.0),
            (2e6, 4e4, 0.0),
            (7e4, 9e5, 4e5),
            (8e2, 5e5, 1e4),
            (9e6, 3e6, 2.5e6),
        ];
        let sample = |(kept, moved, spilled): &(f64, f64, f64)| {
            let s = Sample {
                kernel: cost.kernel.clone(),
                kept: *kept,
                moved: *moved,
                spilled: *spilled,
                ns: 0.0,
            };
            Sample { ns: cost.ns(&s), ..s }
        };
        nodes.iter().map(sample).collect()
    }

    fn cost(kernel: &str, [product_ns, moved_ns, spilled_ns, call_ns]: [f64; TERMS]) -> NodeCost {
        NodeCost { kernel: kernel.into(), product_ns, moved_ns, spilled_ns, call_ns }
    }

    #[test]
    fn the_law_is_found_again() {
        for coefficients in [[0.02, 0.5, 0.3, 900.0], [0.1, 0.0, 0.0, 50.0], [0.0, 2.0, 0.0, 0.0]] {
            let want = cost("1x1", coefficients);
            let samples = law(&want);
            let found = fit("1x1".into(), &samples.iter().collect::<Vec<_>>());
            for s in &samples {
                assert!((found.ns(s) / s.ns - 1.0).abs() < 1e-6, "{want:?} {found:?}");
            }
        }
    }

    #[test]
    fn coefficients_are_never_negative() {
        let mut samples = law(&cost("1x1", [0.02, 0.5, 0.3, 900.0]));
        samples.iter_mut().enumerate().for_each(|(i, s)| s.ns = 1e5 / (1.0 + i as f64));
        let found = fit("1x1".into(), &samples.iter().collect::<Vec<_>>());
        for v in [found.product_ns, found.moved_ns, found.spilled_ns, found.call_ns] {
            assert!(v >= 0.0);
        }
    }

    fn calibration() -> ImageCalibration {
        ImageCalibration {
            version: ImageCalibration::VERSION,
            cpu: identity(),
            threads: 1,
            kernels: vec![
                cost("1x1", [0.01, 1.0, 0.0, 0.0]),
                cost("1x1 sparse 1", [0.02, 1.0, 0.0, 0.0]),
                cost("depthwise", [0.1, 0.0, 0.0, 7.0]),
            ],
            whole: [1.0; 2],
        }
    }

    #[test]
    fn by_hand_prediction_and_break_even() {
        let machine = calibration();
        let nodes = [
            node("1x1", 1_000_000, 1.0, [10, 10, 10]),
            node("1x1 sparse 1", 1_000_000, 0.25, [10, 10, 10]),
            node("depthwise 5", 1000, 0.1, [1, 1, 1]),
        ];
        let nodes: Vec<&NodeReport> = nodes.iter().collect();
        // 10000 ns of products, 300 read and 1000 written; a quarter of the products at twice the price; a kernel that was not
        // measured costs what the most similar one does, zeros or not.
        let want = [11_300.0, 7000.0, 107.0].map(|ns| ns * 1e-6);
        for (found, want) in machine.predict(&nodes, 10).iter().zip(want) {
            assert!((found - want).abs() < 1e-12, "{found} {want}");
        }
        // Equal at half the weights.
        let from = machine.break_even(&nodes, 10, 1);
        assert!((from[0].unwrap() - 0.5).abs() < 1e-12 && from[2].is_none());
        assert_eq!(machine.break_even(&nodes, 10, 16)[0], None);
    }

    #[test]
    fn only_a_calibration_of_this_machine_is_used() {
        let ours = calibration();
        assert!(ours.is_usable(1) && !ours.is_usable(2));
        assert!(!ImageCalibration { version: 0, ..ours.clone() }.is_usable(1));
        assert!(!ImageCalibration { cpu: "x".into(), ..ours.clone() }.is_usable(1));
        assert!(!ImageCalibration { kernels: vec![], ..ours.clone() }.is_usable(1));
        assert!(!ImageCalibration { whole: [1.0, f64::NAN], ..ours }.is_usable(1));
    }
}
