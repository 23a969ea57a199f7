//! What will pay, before anything is pruned: predicted milliseconds and bytes of every layer, dense and sparse.
//!
//! The predictions come from the cost model of [`rarefy_kernels::plan`], calibrated once on this machine. A gain is the time of
//! the dense weights of the *same* type over that of the sparse ones; beside it stands the gain over dense
//! int4, the rival that wins most often.

pub mod images;
pub mod machine;

use std::collections::BTreeMap;

use rarefy_checkpoint::{ModelConfig, layout};
use rarefy_kernels::bench::Kind;
use rarefy_kernels::plan::{Break, Calibration, Residence, Work};
use serde::Serialize;

/// Layers of one shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layers {
    /// What they are called, without the block: `mlp.up_proj, mlp.gate_proj`.
    pub names: String,
    /// Rows of the weight, `d_out`.
    pub rows: usize,
    /// Columns of the weight, `d_in`.
    pub cols: usize,
    /// How many there are in the model.
    pub count: usize,
    /// Whether they are pruned; the others count as dense weights of the same type.
    pub is_pruned: bool,
}

/// The linear layers of the blocks of a model, by shape, in the order in which they come, and the output layer, which stays dense.
#[must_use]
pub fn layers_of(config: &ModelConfig) -> Vec<Layers> {
    let mut order: Vec<(usize, usize)> = Vec::new();
    let mut found: BTreeMap<(usize, usize), (Vec<String>, usize)> = BTreeMap::new();
    for block in 0..config.n_layers {
        for linear in layout::prunable(config, block) {
            let shape = (linear.rows, linear.cols);
            if !order.contains(&shape) {
                order.push(shape);
            }
            let entry = found.entry(shape).or_default();
            if !entry.0.contains(&linear.name) {
                entry.0.push(linear.name);
            }
            entry.1 += 1;
        }
    }
    let layers = |(rows, cols)| {
        let (names, count) = found.remove(&(rows, cols)).unwrap_or_default();
        Layers { names: names.join(", "), rows, cols, count, is_pruned: true }
    };
    let mut all: Vec<Layers> = order.into_iter().map(layers).collect();
    let (rows, cols) = (config.vocab_size, config.hidden_size);
    all.push(Layers { names: "lm_head".into(), rows, cols, count: 1, is_pruned: false });
    all
}

/// One way to store and run the layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The kernel.
    pub kind: Kind,
    /// Fraction of zeros (or of groups pruned) of unstructured kernels.
    pub sparsity: f64,
}

/// What one choice costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// The kernel, as it is shown.
    pub kernel: String,
    /// Fraction of zeros of its weights.
    pub sparsity: f64,
    /// Whether the weights fit the last-level cache in this form, all layers together.
    pub in_cache: bool,
    /// Milliseconds of one pass.
    pub ms: f64,
    /// Bytes of the weights.
    pub bytes: f64,
    /// Time of the dense kernel of the same type over this one.
    pub gain: f64,
    /// Time of dense int4 over this one.
    pub gain_over_int4: f64,
    /// From which sparsity on the kernel beats its dense one; `None` for dense and N:M.
    pub break_even: Option<Break>,
}

/// The prediction for a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Rows of input.
    pub batch: usize,
    /// Threads.
    pub threads: usize,
    /// Last-level cache taken into account, bytes.
    pub cache_bytes: u64,
    /// Every shape with its costs, one entry per choice.
    pub layers: Vec<(Layers, Vec<Cost>)>,
    /// All layers together, one entry per choice.
    pub total: Vec<Cost>,
}

/// The dense kernels, and the sparse ones at each of `sparsities`.
#[must_use]
pub fn choices(sparsities: &[f64]) -> Vec<Choice> {
    let dense = [Kind::DenseF32, Kind::DenseBf16, machine::INT8, machine::INT4];
    let mut all: Vec<Choice> = dense.map(|kind| Choice { kind, sparsity: 0.0 }).into();
    for kind in [Kind::NmF32 { n: 2, m: 4 }, Kind::NmBf16 { n: 2, m: 4 }] {
        all.push(Choice { kind, sparsity: 0.5 });
    }
    for kind in [Kind::PanelF32, Kind::PanelBf16, machine::GROUPS] {
        all.extend(sparsities.iter().map(|&sparsity| Choice { kind, sparsity }));
    }
    all
}

/// Predicts every choice for every shape.
#[must_use]
pub fn estimate(
    machine: &Calibration,
    layers: &[Layers],
    batch: usize,
    cache_bytes: u64,
    choices: &[Choice],
) -> Estimate {
    let dense = |c: &Choice| Choice { kind: rival(c.kind), sparsity: 0.0 };
    // A kernel that cannot hold one of the shapes runs there dense, of the same type, as what is not pruned does.
    let held = |l: &Layers, c: &Choice| if l.is_pruned && c.kind.holds(l.cols) { *c } else { dense(c) };
    let layer_bytes = |l: &Layers, c: &Choice| {
        let c = held(l, c);
        l.count as f64 * c.kind.bytes(l.rows, l.cols, c.sparsity)
    };
    let in_cache = |c: &Choice| layers.iter().map(|l| layer_bytes(l, c)).sum::<f64>() <= cache_bytes as f64;
    let residence = |c: &Choice| if in_cache(c) { Residence::Cache } else { Residence::Memory };
    let work = |l: &Layers, c: &Choice| Work {
        rows: l.rows,
        cols: l.cols,
        n: batch,
        sparsity: c.sparsity,
        residence: residence(c),
    };
    let ms = |l: &Layers, c: &Choice| {
        let predicted =
            machine.predict(held(l, c).kind, &Work { sparsity: held(l, c).sparsity, ..work(l, c) });
        predicted.map_or(f64::NAN, |p| l.count as f64 * p.ms)
    };
    let int4 = Choice { kind: machine::INT4, sparsity: 0.0 };
    let cost = |some: &[&Layers], c: &Choice| {
        let sum = |c: &Choice| -> f64 { some.iter().map(|l| ms(l, c)).sum() };
        let total = sum(c);
        let break_even = match (c.kind, some) {
            (Kind::PanelF32 | Kind::PanelBf16 | Kind::GroupSparse { .. }, [l]) if l.is_pruned => {
                let at = |kind, sparsity| residence(&Choice { kind, sparsity });
                machine.break_even(c.kind, rival(c.kind), &work(l, c), &at)
            }
            _ => None,
        };
        Cost {
            kernel: c.kind.to_string(),
            sparsity: c.kind.sparsity(c.sparsity),
            in_cache: in_cache(c),
            ms: total,
            bytes: some.iter().map(|l| layer_bytes(l, c)).sum(),
            gain: sum(&dense(c)) / total,
            gain_over_int4: sum(&int4) / total,
            break_even,
        }
    };
    let each = layers.iter().map(|l| (l.clone(), choices.iter().map(|c| cost(&[l], c)).collect()));
    let all: Vec<&Layers> = layers.iter().collect();
    Estimate {
        batch,
        threads: machine.threads,
        cache_bytes,
        layers: each.collect(),
        total: choices.iter().map(|c| cost(&all, c)).collect(),
    }
}

/// The dense kernel that a sparse one is measured against: that of its own type.
pub(crate) fn rival(kind: Kind) -> Kind {
    match kind {
        Kind::GroupSparse { bits: 8, .. } => machine::INT8,
        Kind::GroupSparse { .. } => machine::INT4,
        Kind::Quantised { .. } => kind,
        other => other.dense(),
    }
}

/// The verdict in words. Between the two there is no promise: predictions are off by some percent.
#[must_use]
pub fn verdict(cost: &Cost) -> String {
    if cost.sparsity <= 0.0 { "dense".into() } else { gain_in_words(cost.gain) }
}

/// As [`verdict`] for a gain over dense.
#[must_use]
pub fn gain_in_words(gain: f64) -> String {
    match gain {
        g if g >= 1.1 => format!("pays: {g:.1}x"),
        g if g > 0.95 => format!("no gain to speak of: {g:.2}x"),
        g => format!("will not pay here: {g:.1}x"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rarefy_checkpoint::{DType, ShapeName};
    use rarefy_kernels::plan::KernelCost;

    /// Reads 10 GB/s and computes a unit in `ns`.
    fn machine(ns: f64) -> Calibration {
        let kernels: Vec<KernelCost> = machine::kinds()
            .iter()
            .map(|k| KernelCost {
                kernel: k.to_string(),
                call_ns: 0.0,
                unit_ns: vec![(1, ns)],
                rates: vec![(0.5, 10.0)],
                overlap: 8.0,
            })
            .collect();
        Calibration {
            version: Calibration::VERSION,
            cpu: "test".into(),
            threads: 1,
            read_gb_per_s: 10.0,
            single: kernels.clone(),
            kernels,
        }
    }

    fn tinyllama() -> Vec<Layers> {
        let json = ShapeName::TinyLlama11B.config_json(DType::BF16);
        layers_of(&ModelConfig::from_value("c".as_ref(), json).unwrap())
    }

    #[test]
    fn layers_are_gathered_by_shape() {
        let found: Vec<(usize, usize, usize)> =
            tinyllama().iter().map(|l| (l.rows, l.cols, l.count)).collect();
        let expected =
            [(2048, 2048, 44), (256, 2048, 44), (5632, 2048, 44), (2048, 5632, 22), (32000, 2048, 1)];
        assert_eq!(found, expected);
        assert_eq!(tinyllama()[1].names, "self_attn.k_proj, self_attn.v_proj");
    }

    #[test]
    fn where_memory_decides_gains_are_those_of_the_bytes() {
        let blocks: Vec<Layers> = tinyllama().into_iter().filter(|l| l.is_pruned).collect();
        let e = estimate(&machine(1e-9), &blocks, 1, 1 << 20, &choices(&[0.5, 0.7]));
        let find = |kernel: &str, s: f64| {
            e.total.iter().find(|c| c.kernel == kernel && (c.sparsity - s).abs() < 1e-9).unwrap()
        };
        let panel = find("panel f32", 0.7);
        assert!((panel.gain - 4.0 / (4.0 * 0.3 + 0.125)).abs() < 0.01, "{panel:?}");
        assert!(verdict(panel).starts_with("pays: 3.0x"), "{}", verdict(panel));
        assert!((find("dense f32", 0.0).gain - 1.0).abs() < 1e-12);
        // 1.325 bytes a weight against about 0.58: int4 is far ahead, and that is said.
        assert!(panel.gain_over_int4 < 0.5);
        // The total is the sum of the layers.
        let sum: f64 = e.layers.iter().map(|(_, costs)| costs[0].ms).sum();
        assert!((sum / e.total[0].ms - 1.0).abs() < 1e-9);
        let per_shape = &e.layers[0].1.iter().find(|c| c.kernel == "panel f32").unwrap();
        assert!(matches!(per_shape.break_even, Some(Break::At(s)) if s < 0.05), "{per_shape:?}");
    }

    #[test]
    fn the_output_layer_stays_dense_and_counts() {
        let e = estimate(&machine(1e-9), &tinyllama(), 1, 1 << 20, &choices(&[0.7]));
        let (head, costs) = e.layers.last().unwrap();
        assert_eq!((head.names.as_str(), head.is_pruned), ("lm_head", false));
        assert!(costs.iter().all(|c| (c.gain - 1.0).abs() < 1e-9 && c.break_even.is_none()));
        // So the whole model gains less than its blocks.
        let at = |costs: &[Cost]| costs.iter().find(|c| c.kernel == "panel f32").unwrap().gain;
        assert!(at(&e.total) < at(&e.layers[0].1) && at(&e.total) > 1.0);
    }

    #[test]
    fn a_shape_that_a_kernel_cannot_hold_counts_as_dense() {
        let odd = [Layers { names: "up".into(), rows: 64, cols: 62, count: 3, is_pruned: true }];
        let e = estimate(&machine(1e-9), &odd, 1, 0, &choices(&[0.5]));
        let find = |kernel: &str| e.total.iter().find(|c| c.kernel == kernel).unwrap();
        for (sparse, dense) in
            [("2:4 f32", "dense f32"), (&*machine::GROUPS.to_string(), &*machine::INT4.to_string())]
        {
            let (sparse, dense) = (find(sparse), find(dense));
            assert!(
                (sparse.bytes - dense.bytes).abs() < 1e-9 && (sparse.gain - 1.0).abs() < 1e-9,
                "{sparse:?}"
            );
        }
    }

    #[test]
    fn where_computing_decides_zeros_do_not_pay_and_that_is_said() {
        let small = [Layers { names: "up".into(), rows: 512, cols: 192, count: 4, is_pruned: true }];
        let mut machine = machine(0.1);
        for k in machine.kernels.iter_mut().filter(|k| k.kernel == "2:4 f32") {
            k.unit_ns = vec![(1, 0.22)];
        }
        let e = estimate(&machine, &small, 1, 1 << 30, &choices(&[0.5]));
        let nm = e.total.iter().find(|c| c.kernel == "2:4 f32").unwrap();
        assert!(nm.in_cache && verdict(nm).starts_with("will not pay here: 0.9x"), "{nm:?}");
        let panel = e.total.iter().find(|c| c.kernel == "panel f32").unwrap();
        assert!(verdict(panel).starts_with("no gain"), "{panel:?}");
    }
}
