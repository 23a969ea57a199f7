//! LAMP scores.

use crate::error::SparsityError;
use crate::select::{check_finite, key};

/// LAMP score of every weight of a layer: `w_u² / Σ_{v ranked at or above u} w_v²`, the weights
/// ranked by magnitude, ties by index (Lee et al. 2021, eq. 1). Scores lie in `[0, 1]`, the largest
/// weight has 1 (unless all are 0), so that a ranking over layers never empties one of them before
/// the others are down to their largest weight. Scaling a layer does not change its scores.
///
/// Cost: one sort; memory: one u32 index and one f32 score per weight. The sums run in f64, from the
/// largest weight down.
///
/// # Errors
///
/// [`SparsityError::NonFinite`]; [`SparsityError::TooLarge`] beyond 2³² weights.
pub fn lamp_scores(weights: &[f32]) -> Result<Vec<f32>, SparsityError> {
    check_finite("weights of a layer", weights)?;
    let count = u32::try_from(weights.len()).map_err(|_| SparsityError::TooLarge {
        what: "a layer",
        detail: format!("{} weights", weights.len()),
    })?;
    let mut order: Vec<u32> = (0..count).collect();
    order.sort_unstable_by_key(|&i| (key(weights[i as usize].abs()), i));
    let mut scores = vec![0.0f32; weights.len()];
    let mut sum = 0.0f64;
    for &i in order.iter().rev() {
        let square = f64::from(weights[i as usize]).powi(2);
        sum += square;
        if sum > 0.0 {
            scores[i as usize] = (square / sum) as f32;
        }
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        // Squares 4, 1, 1, 0 ranked: 0 | 1 (index 1) | 1 (index 2) | 4 → sums 6, 6, 5, 4.
        let scores = lamp_scores(&[-2.0, 1.0, -1.0, 0.0]).unwrap();
        assert_eq!(scores, [1.0, 1.0 / 6.0, 1.0 / 5.0, 0.0]);
        assert_eq!(lamp_scores(&[0.0, -0.0]).unwrap(), [0.0, 0.0]);
        assert_eq!(lamp_scores(&[]).unwrap(), Vec::<f32>::new());
        assert!(lamp_scores(&[1.0, f32::NAN]).is_err());
    }

    proptest! {
        #[test]
        fn scores_rank_like_magnitudes_and_ignore_the_scale(
            weights in proptest::collection::vec(-10.0f32..10.0, 1..200),
        ) {
            let scores = lamp_scores(&weights).unwrap();
            for i in 0..weights.len() {
                for j in 0..weights.len() {
                    if weights[i].abs() < weights[j].abs() {
                        prop_assert!(scores[i] <= scores[j]);
                    }
                }
            }
            let doubled: Vec<f32> = weights.iter().map(|w| w * 2.0).collect();
            prop_assert_eq!(&scores, &lamp_scores(&doubled).unwrap());
            prop_assert_eq!(scores.iter().copied().fold(0.0, f32::max), if weights.iter().any(|&w| w != 0.0) { 1.0 } else { 0.0 });
        }
    }
}
