//! The asymmetric min-max grid of SparseGPT's joint quantisation.

use crate::QuantGrid;

/// One grid per row (or per `group` columns of a row): the range is [min, max] widened to
/// include 0, `scale = (max − min) / (2^bits − 1)`, `zero = round(−min / scale)`. A range of a
/// single point 0 is taken as [−1, 1].
pub(super) fn min_max_grid(
    w: &[f32],
    rows: usize,
    cols: usize,
    bits: u32,
    group: Option<usize>,
) -> QuantGrid {
    let group = group.unwrap_or(cols).max(1);
    let groups_per_row = cols.div_ceil(group);
    let steps = f64::from((1_u32 << bits) - 1);
    let mut scale = Vec::with_capacity(rows * groups_per_row);
    let mut zero = Vec::with_capacity(rows * groups_per_row);
    for part in w.chunks_exact(cols.max(1)).flat_map(|row| row.chunks(group)) {
        let (mut min, mut max) =
            part.iter().fold((0.0_f64, 0.0_f64), |(lo, hi), &w| (lo.min(w.into()), hi.max(w.into())));
        if min == 0.0 && max == 0.0 {
            (min, max) = (-1.0, 1.0);
        }
        let step = (max - min) / steps;
        zero.push((-min / step).round_ties_even().clamp(0.0, steps) as i32);
        scale.push((step as f32).max(f32::MIN_POSITIVE));
    }
    QuantGrid { bits, group, groups_per_row, scale, zero }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // [-1, 2] on 2 bits: scale 1, zero 1, values -1 0 1 2.
        let grid = min_max_grid(&[-1.0, 2.0, 0.4, 0.6], 1, 4, 2, None);
        assert_eq!((grid.scale[0], grid.zero[0]), (1.0, 1));
        let q = |x| grid.quantize(0, 0, x);
        assert_eq!([q(-1.0), q(0.4), q(0.6), q(5.0), q(-5.0)], [-1.0, 0.0, 1.0, 2.0, -1.0]);
        // Halves to even, on the code before the zero point: 0.5 → 0, 1.5 → 2.
        assert_eq!([q(0.5), q(1.5)], [0.0, 2.0]);
    }

    #[test]
    fn range_includes_zero_and_zero_is_exact() {
        for w in [[3.0, 4.0], [-5.0, -4.0], [0.0, 0.0], [1e-44, 0.0]] {
            let grid = min_max_grid(&w, 1, 2, 4, None);
            assert_eq!(grid.quantize(0, 1, 0.0).to_bits(), 0.0_f64.to_bits());
            assert!(grid.scale[0] > 0.0);
        }
        let grid = min_max_grid(&[3.0, 4.5], 1, 2, 4, None);
        assert_eq!(grid.zero[0], 0);
        assert!((grid.quantize(0, 0, 4.5) - 4.5).abs() < 1e-6);
    }

    #[test]
    fn groups_have_their_own_scale() {
        let grid = min_max_grid(&[0.0, 3.0, 0.0, 30.0, 0.0, 300.0, 0.0, 3.0], 2, 4, 2, Some(2));
        assert_eq!(grid.scale, [1.0, 10.0, 100.0, 1.0]);
        assert_eq!(grid.at(1, 1).0, 100.0);
        assert_eq!(grid.at(1, 3).0, 1.0);
    }
}
