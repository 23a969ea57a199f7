//! Properties of SparseGPT that can be checked exactly.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_prune::{
    LayerPruner, LayerReport, LayerStats, LinearLayer, Needs, PruneError, Warning,
    linalg::InverseFactor,
    methods::{Magnitude, MagnitudeSettings, MaskRule, SparseGpt, SparseGptSettings, Wanda, WandaSettings},
    synthetic::normal_vec,
};
use rarefy_sparsity::{Mask, Pattern};

fn run(
    pruner: &dyn LayerPruner,
    w: &[f32],
    rows: usize,
    stats: &LayerStats,
) -> Result<(LinearLayer, LayerReport), PruneError> {
    let mut layer = LinearLayer::new("l", rows, w.len() / rows, w.to_vec())?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let report = pruner.prune(&mut layer, stats, &mut rng)?;
    Ok((layer, report))
}

fn sparsegpt(
    settings: &SparseGptSettings,
    w: &[f32],
    rows: usize,
    stats: &LayerStats,
) -> Result<(LinearLayer, LayerReport), PruneError> {
    run(&SparseGpt::new(settings.clone())?, w, rows, stats)
}

/// Correlated inputs: a random mixing of normal values.
fn stats(cols: usize, tokens: usize, seed: u64, dead: &[usize]) -> LayerStats {
    let z = normal_vec(seed, tokens * cols);
    let mix = normal_vec(seed + 1, cols * cols);
    let mut x = vec![0.0_f32; tokens * cols];
    for t in 0..tokens {
        for c in 0..cols {
            let mixed: f32 = (0..cols).map(|k| z[t * cols + k] * mix[k * cols + c]).sum();
            x[t * cols + c] = if dead.contains(&c) { 0.0 } else { z[t * cols + c] + 0.4 * mixed };
        }
    }
    LayerStats::from_inputs(&x, cols, 2, Needs::HESSIAN).unwrap()
}

fn trace(change: &[f64], cols: usize, h: &[f64]) -> f64 {
    let mut total = 0.0;
    for row in change.chunks_exact(cols) {
        for (i, a) in row.iter().enumerate() {
            for (j, b) in row.iter().enumerate() {
                total += a * h[i * cols + j] * b;
            }
        }
    }
    total
}

fn damped(stats: &LayerStats, cols: usize, percdamp: f64) -> (Vec<f64>, InverseFactor) {
    let mut h = stats.hessian.clone().unwrap();
    let factor = InverseFactor::new(&h, cols, percdamp);
    for &c in &factor.dead {
        h[c * cols + c] = 1.0;
    }
    for c in 0..cols {
        h[c * cols + c] += factor.damp;
    }
    (h, factor)
}

/// Solves a symmetric positive definite system by Gauss elimination with pivoting.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for p in 0..n {
        let pivot = (p..n).max_by(|&i, &j| a[i * n + p].abs().total_cmp(&a[j * n + p].abs())).unwrap();
        for j in 0..n {
            a.swap(p * n + j, pivot * n + j);
        }
        b.swap(p, pivot);
        for i in p + 1..n {
            let f = a[i * n + p] / a[p * n + p];
            for j in p..n {
                a[i * n + j] -= f * a[p * n + j];
            }
            b[i] -= f * b[p];
        }
    }
    for p in (0..n).rev() {
        let rest: f64 = (p + 1..n).map(|j| a[p * n + j] * b[j]).sum();
        b[p] = (b[p] - rest) / a[p * n + p];
    }
    b
}

#[test]
fn by_hand_one_row_two_inputs() {
    // H = [[2, 1], [1, 2]], no damping: H⁻¹ = 1/3 [[2, -1], [-1, 2]]; U11 = √(2/3), U00 = 1/√2,
    // U01 = -1/√6. w = (1, 3): |w|/U = 1.41, 3.67 → prune 0.
    // e = √2; w1 = 3 + √2/√6 = 3 + 1/√3·... the exact least squares: w1 = 3 + H01/H11·1 = 3.5.
    let stats = LayerStats::new(1, 5, Some(vec![1.0, 1.0]), Some(vec![2.0, 1.0, 1.0, 2.0]));
    let settings = SparseGptSettings { percdamp: 0.0, ..Default::default() };
    let (layer, report) = sparsegpt(&settings, &[1.0, 3.0], 1, &stats).unwrap();
    assert_eq!(layer.weight[0].to_bits(), 0);
    assert!((layer.weight[1] - 3.5).abs() < 1e-6);
    // ΔW = (-1, 0.5): ½·(2 − 1 + 0.5) = 0.75; dense energy 2 + 6 + 18 = 26.
    assert!((report.loss.unwrap() - 0.75).abs() < 1e-12);
    assert!((report.relative_error.unwrap() - 1.5 / 26.0).abs() < 1e-12);
}

#[test]
fn loss_is_the_damped_quadratic_form_of_the_change() {
    let (rows, cols) = (9, 48);
    let w = normal_vec(5, rows * cols);
    for dead in [&[][..], &[3, 20][..]] {
        let stats = stats(cols, 120, 8, dead);
        let (h, _) = damped(&stats, cols, 0.01);
        for pattern in [Pattern::Unstructured, Pattern::NM { n: 2, m: 4 }, Pattern::NM { n: 4, m: 8 }] {
            for block_size in [8, 16, 32, 48, 128] {
                for quantize_bits in [None, Some(4)] {
                    let settings =
                        SparseGptSettings { pattern, block_size, quantize_bits, ..Default::default() };
                    let (layer, report) = sparsegpt(&settings, &w, rows, &stats).unwrap();
                    let change: Vec<f64> = layer
                        .weight
                        .iter()
                        .zip(&w)
                        .enumerate()
                        .map(|(i, (a, b))| {
                            let before = if dead.contains(&(i % cols)) { 0.0 } else { f64::from(*b) };
                            f64::from(*a) - before
                        })
                        .collect();
                    let exact = 0.5 * trace(&change, cols, &h);
                    let loss = report.loss.unwrap();
                    // The layer is f32: 6e-8 relative per weight.
                    assert!((loss / exact - 1.0).abs() < 1e-5, "{pattern} {block_size}: {loss} {exact}");
                    let undamped = trace(&change, cols, stats.hessian.as_ref().unwrap());
                    let dense: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
                    let energy = trace(&dense, cols, stats.hessian.as_ref().unwrap());
                    let relative = report.relative_error.unwrap();
                    assert!((relative / (undamped / energy) - 1.0).abs() < 1e-4);
                    if quantize_bits.is_none() {
                        assert!(Mask::from_nonzeros(&layer.weight, rows, cols).satisfies(&pattern));
                    }
                }
            }
        }
    }
}

#[test]
fn block_size_does_not_change_the_arithmetic_for_a_given_mask() {
    let (rows, cols) = (70, 150); // more than one panel of rows
    let stats = stats(cols, 300, 3, &[]);
    let mut w = normal_vec(6, rows * cols);
    for (i, drop) in normal_vec(7, rows * cols).iter().enumerate() {
        if *drop > 0.2 {
            w[i] = 0.0;
        }
    }
    let at = |block_size| {
        let settings = SparseGptSettings { mask: MaskRule::Existing, block_size, ..Default::default() };
        // A grid gives every kept weight an error to pass on.
        let settings = SparseGptSettings { quantize_bits: Some(8), ..settings };
        sparsegpt(&settings, &w, rows, &stats).unwrap()
    };
    let (reference, _) = at(cols);
    for block_size in [1, 7, 64, 128] {
        let (layer, _) = at(block_size);
        for (a, b) in layer.weight.iter().zip(&reference.weight) {
            assert!((a - b).abs() <= 1e-6, "{block_size}: {a} {b}");
        }
    }
}

#[test]
fn hessian_proportional_to_identity_is_magnitude_per_block() {
    let (rows, cols, block_size) = (6, 24, 8);
    let w = normal_vec(2, rows * cols);
    let mut h = vec![0.0; cols * cols];
    for c in 0..cols {
        h[c * cols + c] = 3.0;
    }
    let stats = LayerStats::new(1, 100, Some(vec![1.5; cols]), Some(h));
    let settings = SparseGptSettings { block_size, ..Default::default() };
    let (layer, _) = sparsegpt(&settings, &w, rows, &stats).unwrap();
    for i1 in (0..cols).step_by(block_size) {
        let part: Vec<f32> =
            (0..rows).flat_map(|r| w[r * cols + i1..r * cols + i1 + block_size].to_vec()).collect();
        let magnitude = Magnitude::new(MagnitudeSettings::default()).unwrap();
        let (expected, _) = run(&magnitude, &part, rows, &LayerStats::none()).unwrap();
        for r in 0..rows {
            let got = &layer.weight[r * cols + i1..r * cols + i1 + block_size];
            assert_eq!(got, &expected.weight[r * block_size..(r + 1) * block_size]);
        }
    }
}

#[test]
fn diagonal_hessian_orders_like_wanda_and_updates_nothing() {
    let (rows, cols) = (1, 40); // one row, one block: the same comparison group
    let w = normal_vec(2, cols);
    let a: Vec<f64> = normal_vec(3, cols).iter().map(|v| f64::from(v * v) + 0.1).collect();
    let mut h = vec![0.0; cols * cols];
    for c in 0..cols {
        h[c * cols + c] = 2.0 * a[c];
    }
    let stats = LayerStats::new(1, 100, Some(a), Some(h));
    let settings = SparseGptSettings { percdamp: 0.0, ..Default::default() };
    let (ours, _) = sparsegpt(&settings, &w, rows, &stats).unwrap();
    let wanda = Wanda::new(WandaSettings::default()).unwrap();
    let (theirs, _) = run(&wanda, &w, rows, &stats).unwrap();
    assert_eq!(ours.weight, theirs.weight);
}

#[test]
fn sparsity_zero_is_the_identity_except_dead_inputs() {
    let (rows, cols) = (4, 20);
    let w = normal_vec(2, rows * cols);
    let settings = SparseGptSettings { sparsity: 0.0, block_size: 6, ..Default::default() };
    let (layer, report) = sparsegpt(&settings, &w, rows, &stats(cols, 60, 1, &[])).unwrap();
    assert_eq!(layer.weight, w);
    assert_eq!((report.loss, report.pruned), (Some(0.0), 0));
    let (layer, report) = sparsegpt(&settings, &w, rows, &stats(cols, 60, 1, &[4])).unwrap();
    for (i, (a, b)) in layer.weight.iter().zip(&w).enumerate() {
        assert_eq!(*a, if i % cols == 4 { 0.0 } else { *b });
    }
    assert_eq!(report.warnings, [Warning::DeadInputs { count: 1 }]);
}

#[test]
fn never_better_than_least_squares_on_the_same_mask() {
    let (rows, cols) = (5, 24);
    let w = normal_vec(12, rows * cols);
    let stats = stats(cols, 100, 4, &[]);
    let (h, _) = damped(&stats, cols, 0.01);
    let (layer, report) = sparsegpt(&SparseGptSettings::default(), &w, rows, &stats).unwrap();
    let mut best = 0.0;
    for r in 0..rows {
        let dense: Vec<f64> = w[r * cols..(r + 1) * cols].iter().map(|w| f64::from(*w)).collect();
        let kept: Vec<usize> = (0..cols).filter(|c| layer.weight[r * cols + c] != 0.0).collect();
        // W*_K = W H[:,K] H[K,K]⁻¹
        let a: Vec<f64> =
            kept.iter().flat_map(|&i| kept.iter().map(|&j| h[i * cols + j]).collect::<Vec<_>>()).collect();
        let b: Vec<f64> = kept.iter().map(|&k| (0..cols).map(|c| dense[c] * h[c * cols + k]).sum()).collect();
        let optimal = solve(a, b);
        let mut change: Vec<f64> = dense.iter().map(|w| -w).collect();
        for (k, w) in kept.iter().zip(&optimal) {
            change[*k] += w;
        }
        best += 0.5 * trace(&change, cols, &h);
    }
    let loss = report.loss.unwrap();
    assert!(loss >= best * (1.0 - 1e-9), "{loss} {best}");
    // With one pruned weight per row, and it the first column, both are equal.
    let mut first = w.clone();
    for r in 0..rows {
        first[r * cols] = 0.0;
    }
    let existing = SparseGptSettings { mask: MaskRule::Existing, ..Default::default() };
    let (_, report) = sparsegpt(&existing, &first, rows, &stats).unwrap();
    assert_eq!(report.loss, Some(0.0), "nothing is left to correct");
}

#[test]
fn quantised_weights_lie_on_the_grid_and_zeros_stay_zero() {
    let (rows, cols) = (6, 64);
    let w = normal_vec(21, rows * cols);
    let stats = stats(cols, 200, 4, &[]);
    for group in [None, Some(16)] {
        let settings = SparseGptSettings {
            quantize_bits: Some(4),
            quantize_group: group,
            pattern: Pattern::NM { n: 2, m: 4 },
            ..Default::default()
        };
        let (layer, _) = sparsegpt(&settings, &w, rows, &stats).unwrap();
        let grid = layer.grid.as_ref().unwrap();
        assert_eq!(grid.groups_per_row, group.map_or(1, |g| cols / g));
        for r in 0..rows {
            for c in 0..cols {
                let value = layer.weight[r * cols + c];
                assert_eq!(value, grid.quantize(r, c, f64::from(value)) as f32);
                assert!((0..=15).contains(&grid.code(r, c, f64::from(value))));
            }
        }
        assert!(Mask::from_nonzeros(&layer.weight, rows, cols).satisfies(&Pattern::NM { n: 2, m: 4 }));
    }
    let bad = SparseGptSettings { quantize_bits: Some(4), quantize_group: Some(48), ..Default::default() };
    let error = sparsegpt(&bad, &w, rows, &stats).unwrap_err();
    assert!(matches!(error, PruneError::GroupMismatch { group: 48, d_in: 64, .. }));
}

#[test]
fn threads_do_not_change_a_bit() {
    let (rows, cols) = (200, 260);
    let w = normal_vec(1, rows * cols);
    let stats = || stats(cols, 300, 2, &[]);
    for pattern in [Pattern::Unstructured, Pattern::NM { n: 2, m: 4 }] {
        let at = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let settings = SparseGptSettings { pattern, ..Default::default() };
            pool.install(|| sparsegpt(&settings, &w, rows, &stats()).unwrap())
        };
        let ((one, r1), (two, r2)) = (at(1), at(2));
        assert_eq!(one.weight, two.weight);
        assert_eq!((r1.loss, r1.relative_error), (r2.loss, r2.relative_error));
    }
}

#[test]
fn hostile_input() {
    let stats8 = stats(8, 30, 1, &[]);
    let w = normal_vec(1, 16);
    let settings = SparseGptSettings::default();
    // NaN weight.
    let mut bad = w.clone();
    bad[9] = f32::NAN;
    let error = sparsegpt(&settings, &bad, 2, &stats8).unwrap_err();
    assert!(matches!(error, PruneError::NonFiniteWeight { row: 1, col: 1, .. }));
    // No statistics, zero tokens, statistics of another layer, NaN in H.
    let missing = sparsegpt(&settings, &w, 2, &LayerStats::none()).unwrap_err();
    assert!(matches!(missing, PruneError::MissingStatistic { .. }));
    let empty = LayerStats::from_inputs(&[], 8, 0, Needs::HESSIAN).unwrap();
    assert!(matches!(sparsegpt(&settings, &w, 2, &empty), Err(PruneError::EmptyCalibration { .. })));
    assert!(matches!(sparsegpt(&settings, &w, 4, &stats8), Err(PruneError::ShapeMismatch { .. })));
    let mut h = vec![0.0; 64];
    h[5] = f64::NAN;
    let nan = LayerStats::new(1, 8, Some(vec![0.0; 8]), Some(h));
    assert!(matches!(sparsegpt(&settings, &w, 2, &nan), Err(PruneError::InvalidStatistic { index: 5, .. })));
    // M does not divide, block is no multiple of M, settings out of range.
    let nm = SparseGptSettings { pattern: Pattern::NM { n: 2, m: 6 }, block_size: 12, ..Default::default() };
    assert!(matches!(sparsegpt(&nm, &w, 2, &stats8), Err(PruneError::PatternMismatch { m: 6, d_in: 8, .. })));
    let field = |s: SparseGptSettings| s.validate().unwrap_err().field;
    let d = SparseGptSettings::default;
    assert_eq!(
        field(SparseGptSettings { block_size: 6, pattern: Pattern::NM { n: 2, m: 4 }, ..d() }),
        "block_size"
    );
    assert_eq!(field(SparseGptSettings { block_size: 0, ..d() }), "block_size");
    assert_eq!(field(SparseGptSettings { percdamp: f64::NAN, ..d() }), "percdamp");
    assert_eq!(field(SparseGptSettings { sparsity: 1.0, ..d() }), "sparsity");
    assert_eq!(field(SparseGptSettings { sparsity: f64::NAN, ..d() }), "sparsity");
    assert_eq!(field(SparseGptSettings { pattern: Pattern::Channel, ..d() }), "pattern");
    assert_eq!(field(SparseGptSettings { quantize_bits: Some(1), ..d() }), "quantize_bits");
    assert_eq!(field(SparseGptSettings { quantize_group: Some(8), ..d() }), "quantize_group");
    assert_eq!(
        field(SparseGptSettings { pattern: Pattern::NM { n: 4, m: 4 }, compat: true, ..d() }),
        "pattern"
    );
}

#[test]
fn singular_hessians_are_pruned_with_a_warning() {
    let (rows, cols) = (3, 16);
    let w = normal_vec(1, rows * cols);
    // Five tokens for sixteen inputs.
    let few = stats(cols, 5, 9, &[]);
    let (layer, report) = sparsegpt(&SparseGptSettings::default(), &w, rows, &few).unwrap();
    assert!(layer.weight.iter().all(|w| w.is_finite()));
    assert_eq!(report.pruned, rows * cols / 2);
    assert!(report.warnings.contains(&Warning::FewTokens { tokens: 5, cols }));
    // Without damping the factorisation fails at first.
    let none = SparseGptSettings { percdamp: 0.0, ..Default::default() };
    let rank_one = LayerStats::new(1, 20, Some(vec![0.5; cols]), Some(vec![1.0; cols * cols]));
    let (layer, report) = sparsegpt(&none, &w, rows, &rank_one).unwrap();
    assert!(layer.weight.iter().all(|w| w.is_finite()));
    let raised = |w: &Warning| matches!(w, Warning::DampingRaised { .. } | Warning::DiagonalHessian { .. });
    assert!(report.warnings.iter().any(raised), "{:?}", report.warnings);
    // Not positive semi-definite at all: the diagonal only, still the right count.
    let mut h = vec![100.0; cols * cols];
    for c in 0..cols {
        h[c * cols + c] = 1.0;
    }
    let wrong = LayerStats::new(1, 20, Some(vec![0.5; cols]), Some(h));
    let (_, report) = sparsegpt(&SparseGptSettings::default(), &w, rows, &wrong).unwrap();
    assert_eq!(report.pruned, rows * cols / 2);
    assert!(matches!(report.warnings[0], Warning::DiagonalHessian { .. }));
}

#[test]
fn all_inputs_dead_leaves_zeros() {
    let dead = LayerStats::from_inputs(&[0.0; 40], 4, 1, Needs::HESSIAN).unwrap();
    let (layer, report) = sparsegpt(&SparseGptSettings::default(), &normal_vec(1, 8), 2, &dead).unwrap();
    assert!(layer.weight.iter().all(|w| w.to_bits() == 0));
    assert_eq!(report.warnings, [Warning::DeadInputs { count: 4 }]);
    assert_eq!(report.relative_error, None);
}

#[test]
fn compat_prunes_one_more_per_block_and_counts_n_as_pruned() {
    let (rows, cols) = (4, 32);
    let w = normal_vec(1, rows * cols);
    let stats = stats(cols, 90, 2, &[]);
    let compat = SparseGptSettings { compat: true, block_size: 16, ..Default::default() };
    let (_, report) = sparsegpt(&compat, &w, rows, &stats).unwrap();
    assert_eq!(report.pruned, rows * cols / 2 + 2);
    let one_of_four = SparseGptSettings { pattern: Pattern::NM { n: 1, m: 4 }, ..compat.clone() };
    let (_, report) = sparsegpt(&one_of_four, &w, rows, &stats).unwrap();
    assert_eq!(report.pruned, rows * cols / 4);
    let ours = SparseGptSettings { compat: false, ..one_of_four };
    let (_, report) = sparsegpt(&ours, &w, rows, &stats).unwrap();
    assert_eq!(report.pruned, rows * cols * 3 / 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn counts_are_exact_and_pruned_weights_are_plus_zero(
        rows in 1usize..6, cols in 1usize..40, sparsity in 0.0f64..0.95,
        block_size in 1usize..50, seed in 0u64..500,
    ) {
        let w = normal_vec(seed, rows * cols);
        let stats = stats(cols, 3 * cols + 4, seed + 3, &[]);
        let settings = SparseGptSettings { sparsity, block_size, ..Default::default() };
        let (layer, report) = sparsegpt(&settings, &w, rows, &stats).unwrap();
        let expected: usize = (0..cols)
            .step_by(block_size)
            .map(|i| ((rows * block_size.min(cols - i)) as f64 * sparsity) as usize)
            .sum();
        prop_assert_eq!(report.pruned, expected);
        for w in &layer.weight {
            prop_assert!(*w != 0.0 || w.to_bits() == 0);
        }
        prop_assert!(report.relative_error.unwrap() <= 1.0 + 1e-9);
    }

    #[test]
    fn every_group_has_exactly_n_kept(
        rows in 1usize..5, groups in 1usize..8, n in 1usize..4, rule in 0usize..3, seed in 0u64..500,
    ) {
        let cols = 4 * groups;
        let w = normal_vec(seed, rows * cols);
        let stats = stats(cols, 3 * cols, seed + 3, &[]);
        let mask = [MaskRule::Obs, MaskRule::MagnitudeIter, MaskRule::WandaSeq][rule];
        let settings = SparseGptSettings {
            pattern: Pattern::NM { n, m: 4 }, block_size: 8, mask, ..Default::default()
        };
        let (layer, _) = sparsegpt(&settings, &w, rows, &stats).unwrap();
        for group in layer.weight.chunks_exact(4) {
            prop_assert_eq!(group.iter().filter(|w| **w != 0.0).count(), n);
        }
    }
}
