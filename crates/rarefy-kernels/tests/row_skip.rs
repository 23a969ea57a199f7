//! Row skipping on every code path against naive f64, and bit for bit against the dense evaluation.
#![allow(clippy::unwrap_used)]

mod support;

use half::bf16;
use proptest::prelude::*;
use rarefy_kernels::row_skip::oracle::{gated_f64, relu_mlp_f64};
use rarefy_kernels::row_skip::{Activation, Activity, GatedMlp, ReluMlp, SkipLinear};
use rarefy_kernels::{Isa, KernelError, RowValue};
use support::noise;

fn narrow(w: &[f32]) -> (Vec<bf16>, Vec<f32>) {
    let b: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
    let back = b.iter().map(|v| v.to_f32()).collect();
    (b, back)
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|v| (v + 0.0).to_bits()).collect()
}

fn pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

struct Case {
    d: (usize, usize, usize),
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
    x: Vec<f32>,
    n: usize,
}

impl Case {
    fn new(seed: u64, d: (usize, usize, usize), n: usize) -> Self {
        let (d_in, d_ff, d_out) = d;
        let scale = 3.0 / (d_in.max(1) as f32).sqrt();
        let gate = noise(seed, d_ff * d_in).into_iter().map(|v| v * scale).collect();
        Self {
            d,
            gate,
            up: noise(seed + 1, d_ff * d_in),
            down: noise(seed + 2, d_out * d_ff),
            x: noise(seed + 3, n * d_in),
            n,
        }
    }

    fn run<T: RowValue>(
        &self,
        mlp: &GatedMlp<T>,
        isa: Isa,
        act: Activation,
        rule: Activity<'_>,
        threads: usize,
    ) -> (Vec<f32>, usize) {
        let mut y = vec![f32::NAN; self.n * self.d.2];
        let mut scratch = vec![f32::NAN; mlp.scratch_len(self.n)];
        let rows = pool(threads, || mlp.forward_with(isa, act, rule, &self.x, self.n, &mut y, &mut scratch));
        (y, rows.unwrap())
    }

    /// Against the oracle and over all paths and thread counts.
    fn check(&self, act: Activation, rule: Activity<'_>) {
        let (d_in, d_ff, d_out) = self.d;
        let f = GatedMlp::new(&self.gate, &self.up, &self.down, d_in, d_ff, d_out).unwrap();
        self.check_typed(&f, [&self.gate, &self.up, &self.down], act, rule);
        let [g, u, w] = [narrow(&self.gate), narrow(&self.up), narrow(&self.down)];
        let b = GatedMlp::new(&g.0, &u.0, &w.0, d_in, d_ff, d_out).unwrap();
        self.check_typed(&b, [&g.1, &u.1, &w.1], act, rule);
    }

    fn check_typed<T: RowValue>(
        &self,
        mlp: &GatedMlp<T>,
        exact: [&[f32]; 3],
        act: Activation,
        rule: Activity<'_>,
    ) {
        let mut near = f64::INFINITY;
        let (want, scale) = gated_f64(exact, self.d, act, rule, &self.x, &mut near);
        let mut fused: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let (y, rows) = self.run(mlp, isa, act, rule, 1);
            assert!(rows <= self.d.1 * self.n.div_ceil(4));
            // A decision within rounding of its threshold may fall either way; the sum is then not comparable.
            if near > 1e-5 {
                for (i, v) in y.iter().enumerate() {
                    let bound = (2 * self.d.0 + self.d.1 + 20) as f64 * 6e-8 * scale[i] + 1e-30;
                    let error = (f64::from(*v) - want[i]).abs();
                    assert!(error <= bound, "{isa} {:?} n={} {rule:?} [{i}] {v} {}", self.d, self.n, want[i]);
                }
            }
            let two = self.run(mlp, isa, act, rule, 2);
            assert_eq!((bits(&y), rows), (bits(&two.0), two.1), "{isa}: 1 and 2 threads");
            if isa != Isa::Portable {
                let y = bits(&y);
                assert_eq!(&y, fused.get_or_insert_with(|| y.clone()), "AVX2 and AVX-512: same bits");
            }
        }
    }
}

#[test]
fn by_hand() {
    // Gate rows give z = 1, -2, 3 for x = (1, 1); up rows 2, 1, 10; down columns (1, 0), (5, 5), (0, 1).
    let gate = [0.5, 0.5, -1.0, -1.0, 1.5, 1.5];
    let up = [1.0, 1.0, 0.5, 0.5, 5.0, 5.0];
    let down = [1.0, 5.0, 0.0, 0.0, 5.0, 1.0];
    let mlp = GatedMlp::new(&gate, &up, &down, 2, 3, 2).unwrap();
    let mut scratch = vec![0.0; mlp.scratch_len(1)];
    let mut y = [0.0; 2];
    // ReLU: 1·2·(1,0) + 3·10·(0,1) = (2, 30), two rows read. Above 1: only the third neuron.
    let rows = mlp.forward(Activation::Relu, Activity::GateAbove(0.0), &[1.0; 2], 1, &mut y, &mut scratch);
    assert_eq!((rows.unwrap(), y), (2, [2.0, 30.0]));
    let rows = mlp.forward(Activation::Relu, Activity::GateAbove(1.0), &[1.0; 2], 1, &mut y, &mut scratch);
    assert_eq!((rows.unwrap(), y), (1, [0.0, 30.0]));
    let rows = mlp.forward(Activation::Relu, Activity::GateAtLeast(1.0), &[1.0; 2], 1, &mut y, &mut scratch);
    assert_eq!((rows.unwrap(), y), (2, [2.0, 30.0]));
    let rule = Activity::NeuronAtLeast(&[2.0, 0.0, 31.0]);
    assert_eq!(mlp.forward(Activation::Relu, rule, &[1.0; 2], 1, &mut y, &mut scratch).unwrap(), 1);
    assert_eq!(y, [2.0, 0.0]);
    // Nothing active: y = 0.
    let none = Activity::GateAbove(f32::INFINITY);
    assert_eq!(mlp.forward(Activation::Silu, none, &[1.0; 2], 1, &mut y, &mut scratch).unwrap(), 0);
    assert_eq!(y, [0.0, 0.0]);
}

#[test]
fn against_the_oracle_over_odd_shapes_batches_and_rules() {
    for (k, d) in [(1, 1, 1), (5, 3, 7), (16, 64, 16), (17, 65, 33), (40, 130, 31), (33, 300, 48)]
        .into_iter()
        .enumerate()
    {
        let theta: Vec<f32> = noise(k as u64 + 50, d.1).iter().map(|v| v.abs() * 0.5).collect();
        for n in [1, 2, 3, 4, 5, 9] {
            let case = Case::new((k * 100 + n) as u64, d, n);
            case.check(Activation::Silu, Activity::All);
            case.check(Activation::Silu, Activity::GateAbove(0.2));
            case.check(Activation::Relu, Activity::GateAbove(0.0));
            case.check(Activation::Relu, Activity::GateAtLeast(0.4));
            case.check(Activation::Silu, Activity::NeuronAtLeast(&theta));
            case.check(Activation::Relu, Activity::NeuronAtLeast(&theta));
        }
    }
}

#[test]
fn large_enough_for_two_threads() {
    let case = Case::new(7, (128, 1000, 130), 3);
    for rule in [Activity::All, Activity::GateAbove(0.3), Activity::GateAbove(2.0)] {
        case.check(Activation::Silu, rule);
    }
}

#[test]
fn skipping_gives_the_bits_of_the_dense_evaluation_with_the_masked_activations() {
    let (d, t) = ((48, 500, 70), 0.25f32);
    let case = Case::new(21, d, 1);
    let mlp = GatedMlp::new(&case.gate, &case.up, &case.down, d.0, d.1, d.2).unwrap();
    for isa in Isa::available() {
        let (sparse, rows) = case.run(&mlp, isa, Activation::Silu, Activity::GateAbove(t), 1);
        // Zero gate rows make exactly the idle activations zero, then everything is read.
        let mut gate = case.gate.clone();
        let mut kept = 0;
        for row in gate.chunks_mut(d.0) {
            let z: f64 = row.iter().zip(&case.x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            if (z / (1.0 + (-z).exp())).abs() <= f64::from(t) { row.fill(0.0) } else { kept += 1 }
        }
        assert!(kept == rows && rows > 50 && rows < 400, "{kept} {rows}");
        let masked = GatedMlp::new(&gate, &case.up, &case.down, d.0, d.1, d.2).unwrap();
        let (dense, all) = case.run(&masked, isa, Activation::Silu, Activity::All, 2);
        assert_eq!((bits(&sparse), all), (bits(&dense), d.1), "{isa}");
    }
}

#[test]
fn threshold_zero_is_the_dense_model_and_a_token_does_not_depend_on_its_batch() {
    let d = (60, 333, 44);
    let case = Case::new(31, d, 7);
    let mlp = GatedMlp::new(&case.gate, &case.up, &case.down, d.0, d.1, d.2).unwrap();
    for isa in Isa::available() {
        let dense = case.run(&mlp, isa, Activation::Silu, Activity::All, 1).0;
        assert_eq!(bits(&dense), bits(&case.run(&mlp, isa, Activation::Silu, Activity::GateAbove(0.0), 1).0));
        // Union rule: rows active for any token are read once, and masked for the others.
        let (all, _) = case.run(&mlp, isa, Activation::Silu, Activity::GateAbove(0.4), 1);
        for t in 0..case.n {
            let one = Case { x: case.x[t * d.0..(t + 1) * d.0].to_vec(), n: 1, ..Case::new(31, d, 1) };
            let (y, rows) = one.run(&mlp, isa, Activation::Silu, Activity::GateAbove(0.4), 1);
            assert_eq!(bits(&y), bits(&all[t * d.2..(t + 1) * d.2]), "{isa} token {t}");
            assert!(rows < d.1);
        }
    }
    // The union of four tokens is at least the largest and at most the sum.
    let count = |x: &[f32], n: usize| {
        let mut y = vec![0.0; n * d.2];
        let mut s = vec![0.0; mlp.scratch_len(n)];
        mlp.forward(Activation::Silu, Activity::GateAbove(0.4), x, n, &mut y, &mut s).unwrap()
    };
    let single: Vec<usize> = case.x.chunks(d.0).take(4).map(|x| count(x, 1)).collect();
    let union = count(&case.x[..4 * d.0], 4);
    assert!(union > *single.iter().max().unwrap() && union < single.iter().sum::<usize>());
}

#[test]
fn nan_inf_and_denormal_inputs() {
    let d = (20, 70, 18);
    let mut case = Case::new(41, d, 2);
    let mlp = GatedMlp::new(&case.gate, &case.up, &case.down, d.0, d.1, d.2).unwrap();
    case.x.iter_mut().for_each(|v| *v *= 1e-40);
    case.check(Activation::Silu, Activity::All);
    case.x[3] = f32::NAN; // token 0 only: a NaN is never skipped, so it shows
    for isa in Isa::available() {
        let (y, rows) = case.run(&mlp, isa, Activation::Silu, Activity::GateAbove(0.5), 1);
        assert_eq!(rows, d.1);
        assert!(y[..d.2].iter().all(|v| v.is_nan()) && y[d.2..].iter().all(|v| *v == 0.0), "{isa}");
    }
    case.x[3] = f32::INFINITY;
    for isa in Isa::available() {
        let (y, _) = case.run(&mlp, isa, Activation::Relu, Activity::GateAbove(0.0), 1);
        assert!(y[..d.2].iter().any(|v| !v.is_finite()) && y[d.2..].iter().all(|v| v.is_finite()), "{isa}");
    }
    // The rows of idle neurons do not matter, even when they are not finite.
    let mut down = case.down.clone();
    let z: Vec<f32> = case.gate.chunks(d.0).map(|w| w.iter().sum()).collect();
    let idle = z.iter().position(|z| *z < -0.5).unwrap();
    down.chunks_mut(d.1).for_each(|row| row[idle] = f32::NAN);
    let broken = GatedMlp::new(&case.gate, &case.up, &down, d.0, d.1, d.2).unwrap();
    let ones = Case { x: vec![1.0; d.0], n: 1, ..Case::new(41, d, 1) };
    let (y, _) = ones.run(&broken, Isa::detect(), Activation::Relu, Activity::GateAbove(0.0), 1);
    assert!(y.iter().all(|v| v.is_finite()));
}

#[test]
fn the_second_layer_skips_exactly() {
    // 1e-6 relative of the dense product; bits equal to reading every column.
    for (d_ff, d_out, active) in
        [(1, 1, 1), (64, 5, 3), (300, 33, 15), (700, 160, 35), (700, 160, 700), (90, 16, 0)]
    {
        let w = noise(d_ff as u64, d_out * d_ff);
        let bias = noise(3, d_out);
        for n in [1, 2, 4, 6] {
            let mut a = vec![0.0; n * d_ff];
            for (k, v) in noise(5, n * active).iter().enumerate() {
                a[k / active * d_ff + (k * 37 + k / active) % d_ff] = v.abs();
            }
            let layer = SkipLinear::new(&w, Some(&bias), d_ff, d_out).unwrap();
            let (narrow, exact) = narrow(&w);
            let half = SkipLinear::new(&narrow, Some(&bias), d_ff, d_out).unwrap();
            second(&layer, &w, &bias, &a, n);
            second(&half, &exact, &bias, &a, n);
        }
    }
}

fn second<T: RowValue>(layer: &SkipLinear<T>, w: &[f32], bias: &[f32], a: &[f32], n: usize) {
    let (d_ff, d_out) = (layer.d_in(), layer.d_out());
    for isa in Isa::available() {
        let run = |skips, threads| {
            let mut y = vec![f32::NAN; n * d_out];
            let mut s = vec![f32::NAN; layer.scratch_len(n)];
            let rows = pool(threads, || layer.forward_with(isa, skips, a, n, &mut y, &mut s)).unwrap();
            (y, rows)
        };
        let (y, rows) = run(true, 1);
        let union: usize = a
            .chunks(4 * d_ff)
            .map(|a| (0..d_ff).filter(|i| a.chunks(d_ff).any(|a| a[*i] != 0.0)).count())
            .sum();
        assert_eq!(rows, union);
        for other in [run(true, 2).0, run(false, 1).0, run(false, 2).0] {
            assert_eq!(bits(&y), bits(&other), "{isa}");
        }
        for t in 0..n {
            for o in 0..d_out {
                let terms = (0..d_ff).map(|i| f64::from(w[o * d_ff + i]) * f64::from(a[t * d_ff + i]));
                let (want, scale) = terms.fold((f64::from(bias[o]), 1.0), |(s, z), p| (s + p, z + p.abs()));
                assert!((f64::from(y[t * d_out + o]) - want).abs() <= 1e-6 * scale, "{isa} {t} {o}");
            }
        }
    }
}

#[test]
fn the_relu_mlp_skips_its_second_layer() {
    for (d_in, d_ff, d_out) in [(3, 5, 2), (40, 200, 33), (100, 900, 100)] {
        let (w1, w2) = (noise(1, d_ff * d_in), noise(2, d_out * d_ff));
        let (b1, b2): (Vec<f32>, _) = (noise(3, d_ff).iter().map(|b| b - 1.0).collect(), noise(4, d_out));
        let mlp = ReluMlp::new((&w1, Some(&b1)), (&w2, Some(&b2)), d_in, d_ff, d_out).unwrap();
        for n in [1, 3, 5] {
            let x = noise(9, n * d_in);
            let (want, scale) = relu_mlp_f64((&w1, &b1), (&w2, &b2), &x, n);
            for isa in Isa::available() {
                let run = |skips, threads| {
                    let mut y = vec![f32::NAN; n * d_out];
                    let mut s = vec![f32::NAN; mlp.scratch_len(n)];
                    let rows = pool(threads, || mlp.forward_with(isa, skips, &x, n, &mut y, &mut s)).unwrap();
                    (y, rows)
                };
                let (y, rows) = run(true, 1);
                assert!(rows < d_ff * n.div_ceil(4) || d_ff < 10);
                assert_eq!(bits(&y), bits(&run(false, 2).0));
                assert_eq!(bits(&y), bits(&run(true, 2).0));
                for i in 0..y.len() {
                    assert!((f64::from(y[i]) - want[i]).abs() <= 1e-5 * scale[i], "{isa} {i}");
                }
            }
        }
    }
}

#[test]
fn unaligned_slices_and_empty_shapes() {
    let d = (19, 67, 21);
    let case = Case::new(61, d, 2);
    let off = |v: &[f32]| [&[0.0], v].concat();
    let (g, u, w, x) = (off(&case.gate), off(&case.up), off(&case.down), off(&case.x));
    let mlp = GatedMlp::new(&g[1..], &u[1..], &w[1..], d.0, d.1, d.2).unwrap();
    let (mut y, mut s) = (vec![0.0; 2 * d.2 + 1], vec![f32::NAN; mlp.scratch_len(2) + 1]);
    mlp.forward(Activation::Silu, Activity::GateAbove(0.1), &x[1..], 2, &mut y[1..], &mut s[1..]).unwrap();
    let (want, _) = case.run(&mlp, Isa::detect(), Activation::Silu, Activity::GateAbove(0.1), 1);
    assert_eq!(bits(&y[1..]), bits(&want));
    for (d_in, d_ff, d_out, n) in [(0, 4, 3, 1), (4, 0, 3, 2), (4, 4, 0, 1), (4, 4, 4, 0), (0, 0, 0, 1)] {
        let (gate, down) = (vec![1.0; d_ff * d_in], vec![1.0; d_out * d_ff]);
        let mlp = GatedMlp::new(&gate, &gate, &down, d_in, d_ff, d_out).unwrap();
        let (mut y, mut s) = (vec![f32::NAN; n * d_out], vec![0.0; mlp.scratch_len(n)]);
        let x = vec![0.0; n * d_in];
        for isa in Isa::available() {
            mlp.forward_with(isa, Activation::Silu, Activity::GateAbove(0.0), &x, n, &mut y, &mut s).unwrap();
            mlp.forward_with(isa, Activation::Silu, Activity::All, &x, n, &mut y, &mut s).unwrap();
            assert!(y.iter().all(|v| *v == 0.0));
        }
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let found = |r: Result<usize, KernelError>| match r {
        Err(KernelError::Length { array, .. }) => array,
        other => panic!("{other:?}"),
    };
    let mlp = GatedMlp::new(&[1.0f32; 12], &[1.0; 12], &[1.0; 6], 4, 3, 2).unwrap();
    let (mut y, mut s) = ([0.0; 2], vec![0.0; mlp.scratch_len(1)]);
    let call = |x: &[f32], y: &mut [f32], rule: Activity<'_>, s: &mut [f32]| {
        found(mlp.forward(Activation::Silu, rule, x, 1, y, s))
    };
    assert_eq!(call(&[0.0; 3], &mut y, Activity::All, &mut s), "x");
    assert_eq!(call(&[0.0; 4], &mut y[..1], Activity::All, &mut s), "y");
    assert_eq!(call(&[0.0; 4], &mut y, Activity::NeuronAtLeast(&[0.0; 2]), &mut s), "theta");
    let short = s.len() - 1;
    assert_eq!(call(&[0.0; 4], &mut y, Activity::All, &mut s[..short]), "scratch");
    assert!(GatedMlp::new(&[1.0f32; 12], &[1.0; 12], &[1.0; 5], 4, 3, 2).is_err());
    assert!(matches!(SkipLinear::<f32>::new(&[], None, usize::MAX, 2), Err(KernelError::TooLarge { .. })));
    assert!(SkipLinear::new(&[1.0f32; 6], Some(&[0.0; 3]), 3, 2).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape(seed in 0u64..1 << 40, d_in in 1usize..70, d_ff in 1usize..200, d_out in 1usize..70, n in 1usize..6, t in 0.0f32..1.5) {
        let case = Case::new(seed, (d_in, d_ff, d_out), n);
        case.check(Activation::Silu, Activity::GateAbove(t));
        case.check(Activation::Relu, Activity::GateAtLeast(t));
    }
}
