#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// The specification of selection: a stable sort by score.
fn lowest_by_sorting(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].partial_cmp(&scores[b]).unwrap());
    let mut lowest = order[..k].to_vec();
    lowest.sort_unstable();
    lowest
}

fn pruned_places(mask: &Mask) -> Vec<usize> {
    (0..mask.rows() * mask.cols()).filter(|i| !mask.get(i / mask.cols(), i % mask.cols())).collect()
}

/// Scores with many ties, zeros of both signs and negative values.
fn score() -> impl Strategy<Value = f32> {
    prop_oneof![
        3 => (0u8..4).prop_map(f32::from),
        1 => Just(-0.0f32),
        2 => -5.0f32..5.0,
        1 => prop_oneof![Just(f32::MAX), Just(f32::MIN), Just(1e-45f32)],
    ]
}

fn matrix() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    (1usize..10, 1usize..80).prop_flat_map(|(rows, cols)| {
        (Just(rows), Just(cols), proptest::collection::vec(score(), rows * cols))
    })
}

#[test]
fn by_hand() {
    assert_eq!(lowest_k(&[3.0, 1.0, 2.0, 1.0], 2), Ok(vec![1, 3]));
    assert_eq!(lowest_k(&[0.0, -0.0, 0.0], 2), Ok(vec![0, 1]));
    assert_eq!(lowest_k(&[], 0), Ok(vec![]));
    assert_eq!(kth_lowest(&[3.0, 1.0, 2.0, 1.0], 2), Ok(2.0));
    // Rows [1 2 3 4] and [8 7 6 5], 2 columns per strip, half: strip 0 has 1 2 8 7, strip 1 3 4 6 5.
    let scores = [1.0, 2.0, 3.0, 4.0, 8.0, 7.0, 6.0, 5.0];
    let strips = unstructured(&scores, 2, 4, Group::RowBlock { cols: 2 }, 0.5).unwrap();
    assert_eq!(pruned_places(&strips), [0, 1, 2, 3]);
    let rows = unstructured(&scores, 2, 4, Group::Row, 0.5).unwrap();
    assert_eq!(pruned_places(&rows), [0, 1, 6, 7]);
    // 1:4 keeps the highest.
    assert_eq!(pruned_places(&n_of_m(&scores, 2, 4, 1, 4).unwrap()), [0, 1, 2, 5, 6, 7]);
    // Blocks 2x2: sums 18 and 18: the first goes.
    let blocks = block(&scores, (2, 4), (2, 2), Group::Tensor, 0.5).unwrap();
    assert_eq!(pruned_places(&blocks), [0, 1, 4, 5]);
    // Row groups of 2: sums 3 7 15 11.
    let groups = row_group(&scores, 2, 4, 2, Group::Tensor, 0.5).unwrap();
    assert_eq!(pruned_places(&groups), [0, 1, 2, 3]);
    let groups = row_group(&scores, 2, 4, 2, Group::Row, 0.5).unwrap();
    assert_eq!(pruned_places(&groups), [0, 1, 6, 7]);
    assert_eq!(pruned_places(&channel(&scores, 2, 4, 0.5).unwrap()), [0, 1, 2, 3]);
}

#[test]
fn counts_are_floors_in_f64() {
    assert_eq!(pruned_count(100, 0.29), 28); // 100 · 0.29 = 28.999999999999996
    assert_eq!(pruned_count(10, 0.7), 7);
    assert_eq!(pruned_count(0, 0.5), 0);
    assert_eq!(pruned_count(usize::MAX, 1.0 - f64::EPSILON / 2.0), usize::MAX - 2047);
}

#[test]
fn already_sparse_input_loses_its_zeros_first_and_no_more_than_asked() {
    // 6 zeros of 10, asked for 5: only zeros go, the first five.
    let scores = [0.0, 3.0, 0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 4.0];
    let mask = unstructured(&scores, 1, 10, Group::Row, 0.5).unwrap();
    assert_eq!(pruned_places(&mask), [0, 2, 3, 5, 7]);
    // 2:4 with three zeros in a group: exactly two pruned.
    let mask = n_of_m(&[0.0, 0.0, 0.0, 5.0], 1, 4, 2, 4).unwrap();
    assert_eq!(pruned_places(&mask), [0, 1]);
}

#[test]
fn hostile_input_is_refused() {
    let good = [1.0f32; 8];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut scores = good;
        scores[5] = bad;
        scores[7] = bad;
        let expected = SparsityError::NonFinite { what: "scores", count: 2, first: 5 };
        assert_eq!(lowest_k(&scores, 3), Err(expected.clone()));
        assert_eq!(unstructured(&scores, 2, 4, Group::Row, 0.5), Err(expected.clone()));
        assert_eq!(n_of_m(&scores, 2, 4, 2, 4), Err(expected.clone()));
        assert_eq!(channel(&scores, 2, 4, 0.5), Err(expected));
        assert!(global(&[&good, &scores], 0.5).is_err());
    }
    for bad in [1.0, -0.1, f64::NAN, f64::INFINITY] {
        let is_refused = |r: Result<Mask, SparsityError>| matches!(r, Err(SparsityError::Sparsity { .. }));
        assert!(is_refused(unstructured(&good, 2, 4, Group::Tensor, bad)));
        assert!(is_refused(block(&good, (2, 4), (1, 2), Group::Tensor, bad)));
        assert!(is_refused(row_group(&good, 2, 4, 2, Group::Tensor, bad)));
        assert!(is_refused(channel(&good, 2, 4, bad)));
        assert!(global(&[&good], bad).is_err());
    }
    assert!(matches!(n_of_m(&good, 2, 4, 5, 4), Err(SparsityError::PatternParameters { .. })));
    assert!(matches!(n_of_m(&good, 2, 4, 0, 4), Err(SparsityError::PatternParameters { .. })));
    assert!(matches!(n_of_m(&good, 2, 4, 0, 0), Err(SparsityError::PatternParameters { .. })));
    assert!(matches!(n_of_m(&good, 2, 4, 1, 3), Err(SparsityError::DoesNotDivide { .. })));
    assert!(matches!(
        block(&good, (2, 4), (3, 1), Group::Row, 0.5),
        Err(SparsityError::DoesNotDivide { dimension: "rows (d_out)", .. })
    ));
    assert!(block(&good, (2, 4), (0, 1), Group::Row, 0.5).is_err());
    let cut = Group::RowBlock { cols: 3 };
    assert!(matches!(
        block(&good, (2, 4), (1, 2), cut, 0.5),
        Err(SparsityError::DoesNotDivide { dimension: "group.cols", .. })
    ));
    let strip = Group::RowBlock { cols: 0 };
    assert!(matches!(unstructured(&good, 2, 4, strip, 0.5), Err(SparsityError::Setting { .. })));
    assert!(matches!(
        unstructured(&good, 3, 4, Group::Row, 0.5),
        Err(SparsityError::Length { expected: 12, found: 8, .. })
    ));
    assert!(matches!(unstructured(&[], 0, 4, Group::Row, 0.5), Err(SparsityError::Empty { .. })));
    assert!(matches!(channel(&[], 4, 0, 0.5), Err(SparsityError::Empty { .. })));
    assert!(matches!(n_of_m(&[], 0, 0, 2, 4), Err(SparsityError::Empty { .. })));
    assert!(matches!(
        unstructured(&good, usize::MAX, 4, Group::Row, 0.5),
        Err(SparsityError::TooLarge { .. })
    ));
    assert!(lowest_k(&good, 9).is_err());
    assert!(kth_lowest(&good, 8).is_err());
    assert!(global(&[], 0.5).is_err());
    assert!(global(&[&[], &[]], 0.5).is_err());
    let sum_overflow = [f32::MAX; 4];
    assert!(row_group(&sum_overflow, 1, 4, 2, Group::Row, 0.5).is_err());
}

#[test]
fn wide_strip_is_the_whole_tensor() {
    let scores: Vec<f32> = (0..24).map(|i| (i * 7 % 11) as f32).collect();
    let whole = unstructured(&scores, 4, 6, Group::Tensor, 0.4).unwrap();
    let strip = Group::RowBlock { cols: usize::MAX };
    assert_eq!(unstructured(&scores, 4, 6, strip, 0.4).unwrap(), whole);
}

#[test]
fn reserved_weights_survive() {
    // Layer b is tiny: a global ranking of 12 weights at 0.5 empties it; one reserved weight stays.
    let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [0.1, 0.3, 0.2, 0.3]);
    assert_eq!(global_kept(&[&a, &b], 0.5, 0), Ok(vec![6, 0]));
    assert_eq!(global_kept(&[&a, &b], 0.5, 1), Ok(vec![5, 1]));
    let kept = global_at_least(&[&a, &b], 0.5, 1).unwrap();
    assert_eq!(kept[1], [false, false, false, true]); // of two equal, the higher index is kept
    assert_eq!(
        global_at_least(&[&a, &b], 0.5, 3),
        Ok(vec![vec![false, false, false, false, false, true, true, true], vec![false, true, true, true]])
    );
    assert_eq!(global_kept(&[&a, &b], 0.5, 4), Err(SparsityError::Infeasible { needed: 8, total: 6 }));
}

proptest! {
    #[test]
    fn lowest_k_is_a_stable_sort(
        scores in prop_oneof![
            proptest::collection::vec(score(), 0..300),
            proptest::collection::vec(score(), 2000..2500),
        ],
        at in 0.0f64..=1.0,
    ) {
        let k = (scores.len() as f64 * at) as usize;
        let picked = lowest_k(&scores, k).unwrap();
        prop_assert_eq!(&picked, &lowest_by_sorting(&scores, k));
        if k < scores.len() {
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
            prop_assert_eq!(kth_lowest(&scores, k).unwrap(), sorted[k]);
        }
    }

    #[test]
    fn every_group_has_its_exact_count((rows, cols, scores) in matrix(), s in 0.0f64..1.0, width in 1usize..90) {
        let strip = Group::RowBlock { cols: width };
        let tensor = unstructured(&scores, rows, cols, Group::Tensor, s).unwrap();
        prop_assert_eq!(
            pruned_places(&tensor),
            lowest_by_sorting(&scores, pruned_count(rows * cols, s))
        );
        let by_row = unstructured(&scores, rows, cols, Group::Row, s).unwrap();
        for r in 0..rows {
            let row = &scores[r * cols..(r + 1) * cols];
            let pruned: Vec<usize> = (0..cols).filter(|&c| !by_row.get(r, c)).collect();
            prop_assert_eq!(pruned, lowest_by_sorting(row, pruned_count(cols, s)));
        }
        let strips = unstructured(&scores, rows, cols, strip, s).unwrap();
        for start in (0..cols).step_by(width) {
            let end = cols.min(start + width);
            let w = end - start;
            let part: Vec<f32> = (0..rows).flat_map(|r| scores[r * cols + start..r * cols + end].to_vec()).collect();
            let pruned: Vec<usize> = (0..rows * w).filter(|i| !strips.get(i / w, start + i % w)).collect();
            prop_assert_eq!(pruned, lowest_by_sorting(&part, pruned_count(rows * w, s)));
        }
    }

    #[test]
    fn masks_are_nested_in_sparsity((rows, cols, scores) in matrix(), a in 0.0f64..1.0, b in 0.0f64..1.0) {
        let (low, high) = (a.min(b), a.max(b));
        for group in [Group::Tensor, Group::Row, Group::RowBlock { cols: 5 }] {
            let few = unstructured(&scores, rows, cols, group, low).unwrap();
            let many = unstructured(&scores, rows, cols, group, high).unwrap();
            prop_assert_eq!(few.and(&many).unwrap(), many);
            prop_assert_eq!(unstructured(&scores, rows, cols, group, 0.0).unwrap().pruned(), 0);
        }
    }

    #[test]
    fn n_of_m_is_exact(
        (rows, groups, m, n, scores) in (1usize..6, 1usize..9, 1usize..18).prop_flat_map(|(r, g, m)| {
            (Just(r), Just(g), Just(m), 1..=m, proptest::collection::vec(score(), r * g * m))
        }),
    ) {
        let cols = groups * m;
        let mask = n_of_m(&scores, rows, cols, n, m).unwrap();
        let is_satisfied = mask.satisfies(&Pattern::NM { n, m });
        prop_assert!(is_satisfied);
        for r in 0..rows {
            for g in 0..groups {
                let start = r * cols + g * m;
                let pruned: Vec<usize> = (0..m).filter(|&i| !mask.get(r, g * m + i)).collect();
                prop_assert_eq!(pruned, lowest_by_sorting(&scores[start..start + m], m - n));
            }
        }
    }

    #[test]
    fn whole_units_with_exact_counts(
        (ur, uc, h, w, scores) in (1usize..5, 1usize..6, 1usize..4, 1usize..5).prop_flat_map(|(ur, uc, h, w)| {
            (Just(ur), Just(uc), Just(h), Just(w), proptest::collection::vec(0u8..4, ur * uc * h * w))
        }),
        s in 0.0f64..1.0,
    ) {
        let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
        let (rows, cols) = (ur * h, uc * w);
        let sums: Vec<f32> = (0..ur * uc)
            .map(|u| (0..h * w).map(|i| scores[(u / uc * h + i / w) * cols + u % uc * w + i % w]).sum())
            .collect();
        let mask = block(&scores, (rows, cols), (h, w), Group::Tensor, s).unwrap();
        let is_satisfied = mask.satisfies(&Pattern::Block { rows: h, cols: w });
        prop_assert!(is_satisfied);
        let pruned: Vec<usize> = (0..ur * uc).filter(|u| !mask.get(u / uc * h, u % uc * w)).collect();
        prop_assert_eq!(pruned, lowest_by_sorting(&sums, pruned_count(ur * uc, s)));
        let by_row = block(&scores, (rows, cols), (h, w), Group::Row, s).unwrap();
        for r in 0..rows {
            prop_assert_eq!(cols - by_row.kept_in_row(r), pruned_count(uc, s) * w);
        }
        let groups = row_group(&scores, rows, cols, w, Group::Row, s).unwrap();
        let is_satisfied = groups.satisfies(&Pattern::RowGroup { len: w });
        prop_assert!(is_satisfied);
        prop_assert_eq!(groups.pruned(), rows * pruned_count(uc, s) * w);
        let rows_only = channel(&scores, rows, cols, s).unwrap();
        prop_assert!(rows_only.satisfies(&Pattern::Channel));
        prop_assert_eq!(rows_only.pruned(), pruned_count(rows, s) * cols);
    }

    #[test]
    fn by_pattern_obeys_the_pattern(scores in proptest::collection::vec(score(), 8 * 24), s in 0.0f64..1.0) {
        let scores: Vec<f32> = scores.into_iter().map(|v| v.clamp(-9.0, 9.0)).collect();
        for text in ["unstructured", "2:4", "4:8", "1:3", "block:4x1", "block:2x8", "group:6", "channel"] {
            let pattern: Pattern = text.parse().unwrap();
            for group in [Group::Tensor, Group::Row, Group::RowBlock { cols: 24 }] {
                let mask = by_pattern(&scores, 8, 24, &pattern, group, s).unwrap();
                prop_assert!(mask.satisfies(&pattern), "{}", text);
                match pattern.implied_sparsity() {
                    Some(fixed) => prop_assert_eq!(mask.sparsity(), fixed),
                    None => prop_assert!(mask.sparsity() <= s),
                }
            }
        }
    }

    #[test]
    fn global_is_one_stable_ranking(
        layers in proptest::collection::vec(proptest::collection::vec(score(), 0..60), 1..6),
        s in 0.0f64..1.0,
        min_kept in 0usize..12,
    ) {
        let views: Vec<&[f32]> = layers.iter().map(Vec::as_slice).collect();
        let all: Vec<f32> = layers.concat();
        prop_assume!(!all.is_empty());
        let count = pruned_count(all.len(), s);
        let kept = global(&views, s).unwrap();
        let flat: Vec<bool> = kept.concat();
        let pruned: Vec<usize> = (0..all.len()).filter(|&i| !flat[i]).collect();
        prop_assert_eq!(pruned, lowest_by_sorting(&all, count));
        let reserved: usize = layers.iter().map(|l| l.len().min(min_kept)).sum();
        match global_at_least(&views, s, min_kept) {
            Ok(kept) => {
                prop_assert_eq!(kept.concat().iter().filter(|&&k| !k).count(), count);
                let counts: Vec<usize> = kept.iter().map(|l| l.iter().filter(|&&k| k).count()).collect();
                prop_assert_eq!(&counts, &global_kept(&views, s, min_kept).unwrap());
                for (layer, (mask, n)) in layers.iter().zip(kept.iter().zip(counts)) {
                    prop_assert!(n >= layer.len().min(min_kept));
                    // What a layer prunes is always its lowest.
                    let pruned: Vec<usize> = (0..layer.len()).filter(|&i| !mask[i]).collect();
                    prop_assert_eq!(&pruned, &lowest_by_sorting(layer, layer.len() - n));
                }
            }
            Err(e) => {
                prop_assert_eq!(e, SparsityError::Infeasible { needed: reserved, total: all.len() - count });
                prop_assert!(reserved > all.len() - count);
            }
        }
    }
}
