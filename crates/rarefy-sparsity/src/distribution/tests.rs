#![allow(clippy::unwrap_used)]

use super::*;
use crate::select::pruned_count;
use proptest::prelude::*;

#[test]
fn erk_by_hand_with_one_dense_layer() {
    // raw 1, 1/2, 1/4; n 4, 16, 64; N 84, kept 42.
    // Round 1: ε = 42 / (4 + 8 + 16) = 1.5, the first layer would have density 1.5: dense.
    // Round 2: ε = (42 − 4) / (8 + 16) = 19/12: densities 19/24 and 19/48.
    let shapes = [[2usize, 2], [4, 4], [8, 8]];
    let d = densities(Rule::Erk, &shapes, 0.5, &[]).unwrap();
    assert!((d.scale - 19.0 / 12.0).abs() < 1e-12);
    for (value, expected) in d.values.iter().zip([1.0, 19.0 / 24.0, 19.0 / 48.0]) {
        assert!((value - expected).abs() < 1e-12);
    }
    // 4, 12.67, 25.33: the missing weight goes to the larger remainder.
    let budget = erk(&shapes, 0.5).unwrap();
    assert_eq!(budget.kept(), [4, 13, 25]);
    assert_eq!(er(&shapes, 0.5).unwrap(), budget); // the same for matrices
}

#[test]
fn erk_by_hand_at_the_edge_of_dense() {
    // Σ raw · n = 128 + 320 + 266 = 714; N 23 040, kept 6 912. Round 1: ε = 9.68, the last layer would
    // have 266 / 2560 · 9.68 = 1.006: dense. Round 2: ε = (6 912 − 2 560) / 448 = 68/7: densities 17/56
    // and 85/448.
    let d = densities(Rule::Erk, &[[64usize, 64], [256, 64], [10, 256]], 0.7, &[]).unwrap();
    for (value, expected) in d.values.iter().zip([17.0 / 56.0, 85.0 / 448.0, 1.0]) {
        assert!((value - expected).abs() < 1e-12);
    }
    // 23 040 · 0.7 is 16 127.999…98 in f64, so 16 127 are pruned and 6 913 kept. The shares of the first
    // two, 1 243.43 + 3 108.57, are scaled by 4 353 / 4 352 to 1 243.71 + 3 109.29.
    assert_eq!(d.budget().unwrap().kept(), [1244, 3109, 2560]);
}

/// The 20 prunable tensors of the CIFAR-10 ResNet-20, N = 268 336.
fn resnet20() -> Vec<Vec<usize>> {
    let conv = |o, i| vec![o, i, 3, 3];
    let mut shapes = vec![conv(16, 3)];
    shapes.extend((0..6).map(|_| conv(16, 16)));
    shapes.push(conv(32, 16));
    shapes.extend((0..5).map(|_| conv(32, 32)));
    shapes.push(conv(64, 32));
    shapes.extend((0..5).map(|_| conv(64, 64)));
    shapes.push(vec![10, 64]);
    shapes
}

#[test]
fn resnet20_matches_published_densities() {
    // Values of an independent implementation of the iterated clipping of Evci et al. 2020.
    let shapes = resnet20();
    assert_eq!(uniform(&shapes, 0.0).unwrap().total(), 268_336);
    let check = |d: &Densities, l: usize, expected: f64| {
        assert!((d.values[l] - expected).abs() < 5e-5, "layer {l}: {} vs {expected}", d.values[l]);
    };
    let d = densities(Rule::Erk, &shapes, 0.9, &[]).unwrap();
    assert!((d.scale / 18.348717948717944 - 1.0).abs() < 1e-12, "{}", d.scale);
    for (l, expected) in
        [(0, 1.0), (1, 0.3026), (7, 0.2150), (8, 0.1394), (13, 0.1015), (14, 0.0667), (19, 1.0)]
    {
        check(&d, l, expected);
    }
    let d = densities(Rule::Erk, &shapes, 0.98, &[]).unwrap();
    assert!((d.scale / 3.5706719893546275 - 1.0).abs() < 1e-12, "{}", d.scale);
    for (l, expected) in [(0, 0.2066), (19, 0.4129), (1, 0.0589), (14, 0.0130)] {
        check(&d, l, expected);
    }
    let d = densities(Rule::Er, &shapes, 0.9, &[]).unwrap();
    assert!((d.scale / 2.2532202535897214 - 1.0).abs() < 1e-12, "{}", d.scale);
    for (l, expected) in [(0, 0.8919), (1, 0.2817), (14, 0.0704), (19, 0.2605)] {
        check(&d, l, expected);
    }
}

#[test]
fn fixed_layers_hold_their_density() {
    // "Uniform+": first dense, last 0.2, the rest shares (0.1 N − 432 − 128) / rest.
    let shapes = resnet20();
    let d = densities(Rule::Uniform, &shapes, 0.9, &[(0, 1.0), (19, 0.2)]).unwrap();
    assert_eq!((d.values[0], d.values[19]), (1.0, 0.2));
    let rest = (26_833.6 - 432.0 - 128.0) / f64::from(268_336 - 432 - 640);
    assert!((d.values[5] - rest).abs() < 1e-12);
    let budget = d.budget().unwrap();
    assert_eq!((budget.kept()[0], budget.kept()[19]), (432, 128));
    // "ERK+": dense classifier.
    let d = densities(Rule::Erk, &shapes, 0.98, &[(19, 1.0)]).unwrap();
    assert_eq!(d.budget().unwrap().kept()[19], 640);
}

#[test]
fn hostile_shapes_and_fixed_layers() {
    let none: [[usize; 2]; 0] = [];
    assert!(matches!(uniform(&none, 0.5), Err(SparsityError::Empty { .. })));
    assert!(matches!(erk(&[[0, 4]], 0.5), Err(SparsityError::Empty { .. })));
    assert!(matches!(erk(&[Vec::new()], 0.5), Err(SparsityError::Empty { .. })));
    assert!(matches!(erk(&[[usize::MAX, 2]], 0.5), Err(SparsityError::TooLarge { .. })));
    assert!(matches!(erk(&[[usize::MAX, 1], [1, 1]], 0.5), Err(SparsityError::TooLarge { .. })));
    for bad in [1.0, -0.5, f64::NAN, f64::INFINITY] {
        assert!(matches!(erk(&[[4, 4]], bad), Err(SparsityError::Sparsity { .. })));
        assert!(lamp(&[&[1.0]], bad).is_err());
    }
    let two = [[4usize, 4], [4, 4]];
    let fixed = |f: &[(usize, f64)], s| densities(Rule::Uniform, &two, s, f);
    assert!(fixed(&[(2, 0.5)], 0.5).is_err());
    assert!(fixed(&[(0, 0.5), (0, 0.5)], 0.5).is_err());
    assert!(fixed(&[(0, f64::NAN)], 0.5).is_err());
    assert!(fixed(&[(0, 1.0)], 0.75).is_err()); // more than everything
    assert!(fixed(&[(0, 0.0)], 0.25).is_err()); // more than the other can hold
    assert!(fixed(&[(0, 0.2), (1, 0.2)], 0.5).is_err());
    assert_eq!(fixed(&[(0, 0.0)], 0.5).unwrap().values, [0.0, 1.0]);
    assert_eq!(fixed(&[(0, 1.0)], 0.5).unwrap().values, [1.0, 0.0]);
    assert!(global(&[&[1.0, f32::NAN]], 0.5).is_err());
    assert!(lamp(&[&[f32::INFINITY]], 0.5).is_err());
    assert!(lamp(&[], 0.5).is_err());
}

#[test]
fn lamp_and_global_by_hand() {
    // Layer b is layer a divided by 100: a global ranking empties b, LAMP treats both alike.
    let a = [1.0f32, 2.0, 3.0, 4.0];
    let b = a.map(|w| w / 128.0);
    assert_eq!(global(&[&a, &b], 0.5).unwrap().kept(), [4, 0]);
    assert_eq!(lamp(&[&a, &b], 0.5).unwrap().kept(), [2, 2]);
    assert_eq!(global_at_least(&[&a, &b], 0.5, 1).unwrap().kept(), [3, 1]);
}

fn shapes() -> impl Strategy<Value = Vec<Vec<usize>>> {
    proptest::collection::vec(
        prop_oneof![
            (1usize..40, 1usize..40).prop_map(|(o, i)| vec![o, i]),
            (1usize..20, 1usize..20, 1usize..4, 1usize..4).prop_map(|(o, i, h, w)| vec![o, i, h, w]),
        ],
        1..10,
    )
}

proptest! {
    #[test]
    fn every_rule_meets_the_total(shapes in shapes(), s in 0.0f64..1.0) {
        let all: usize = shapes.iter().map(|s| s.iter().product::<usize>()).sum();
        for rule in [Rule::Uniform, Rule::Er, Rule::Erk] {
            let d = densities(rule, &shapes, s, &[]).unwrap();
            let kept: f64 = shapes.iter().zip(&d.values).map(|(s, d)| s.iter().product::<usize>() as f64 * d).sum();
            prop_assert!((kept - (1.0 - s) * all as f64).abs() <= 1e-9 * all as f64);
            prop_assert!(d.values.iter().all(|v| (0.0..=1.0).contains(v)));
            let budget = d.budget().unwrap();
            prop_assert_eq!(budget.total_kept(), all - pruned_count(all, s));
            for (l, density) in d.values.iter().enumerate() {
                let exact = budget.sizes()[l] as f64 * density;
                prop_assert!((budget.kept()[l] as f64 - exact).abs() < 2.0, "{} vs {}", budget.kept()[l], exact);
                prop_assert!(budget.kept()[l] <= budget.sizes()[l]);
            }
            // Sparsity 0 keeps everything; a single layer has the density of the whole.
            prop_assert_eq!(densities(rule, &shapes, 0.0, &[]).unwrap().budget().unwrap().total_kept(), all);
            let one = densities(rule, &shapes[..1], s, &[]).unwrap();
            prop_assert!((one.values[0] - (1.0 - s)).abs() < 1e-12);
        }
    }

    #[test]
    fn smaller_layers_are_denser_under_er(sizes in proptest::collection::vec(1usize..60, 2..8), s in 0.0f64..1.0) {
        let square: Vec<[usize; 2]> = sizes.iter().map(|&d| [d, d]).collect();
        let d = densities(Rule::Er, &square, s, &[]).unwrap();
        for (i, a) in sizes.iter().enumerate() {
            for (j, b) in sizes.iter().enumerate() {
                if a < b {
                    prop_assert!(d.values[i] >= d.values[j] - 1e-12);
                }
            }
        }
    }

    #[test]
    fn rankings_meet_the_total_and_lamp_ignores_layer_scales(
        layers in proptest::collection::vec(proptest::collection::vec(0.01f32..9.0, 1..60), 1..6),
        s in 0.0f64..1.0,
        scale in 0u32..8,
    ) {
        let views: Vec<&[f32]> = layers.iter().map(Vec::as_slice).collect();
        let all: usize = layers.iter().map(Vec::len).sum();
        let target = all - pruned_count(all, s);
        prop_assert_eq!(global(&views, s).unwrap().total_kept(), target);
        let budget = lamp(&views, s).unwrap();
        prop_assert_eq!(budget.total_kept(), target);
        let scaled: Vec<f32> = layers[0].iter().map(|w| w * (1u32 << scale) as f32).collect();
        let mut other = views.clone();
        other[0] = &scaled;
        prop_assert_eq!(&lamp(&other, s).unwrap(), &budget);
        // No layer is emptied while as many weights as layers are left.
        if target >= layers.len() {
            prop_assert!(budget.kept().iter().all(|&k| k > 0));
        }
    }
}
