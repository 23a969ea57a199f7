//! Exact budgets and their rounding.

use crate::error::{SparsityError, check_sparsity};
use crate::select::pruned_count;

/// How many weights of each layer are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    sizes: Vec<usize>,
    kept: Vec<usize>,
}

impl Budget {
    /// A budget from explicit counts.
    ///
    /// # Errors
    ///
    /// [`SparsityError::Length`] for lists of different lengths, [`SparsityError::Count`] when a
    /// layer would keep more than it has, [`SparsityError::TooLarge`] when the sizes overflow.
    pub fn from_kept(sizes: Vec<usize>, kept: Vec<usize>) -> Result<Budget, SparsityError> {
        if sizes.len() != kept.len() {
            return Err(SparsityError::Length {
                what: "kept weights per layer",
                expected: sizes.len(),
                found: kept.len(),
            });
        }
        checked_sum(&sizes)?;
        for (&available, &asked) in sizes.iter().zip(&kept) {
            if asked > available {
                return Err(SparsityError::Count { what: "kept weights of a layer", asked, available });
            }
        }
        Ok(Budget { sizes, kept })
    }

    /// Rounds fractional densities to exact counts with the total `N − ⌊N · sparsity⌋`.
    ///
    /// Each layer gets the floor of `size · density`; what is missing goes one by one to the layers
    /// with the largest remainders (ties: the earlier layer). Densities that do not add up to the
    /// total are first scaled by the same factor, none above 1.
    ///
    /// # Errors
    ///
    /// [`SparsityError::Sparsity`]; [`SparsityError::Length`] for lists of different lengths;
    /// [`SparsityError::Setting`] for a density that is NaN or outside `[0, 1]`;
    /// [`SparsityError::Empty`] for no weights; [`SparsityError::TooLarge`].
    pub fn from_densities(
        sizes: Vec<usize>,
        densities: &[f64],
        sparsity: f64,
    ) -> Result<Budget, SparsityError> {
        check_sparsity(sparsity)?;
        if sizes.len() != densities.len() {
            return Err(SparsityError::Length {
                what: "densities per layer",
                expected: sizes.len(),
                found: densities.len(),
            });
        }
        let all = checked_sum(&sizes)?;
        if all == 0 {
            return Err(SparsityError::Empty { what: "the list of layers" });
        }
        if let Some(bad) = densities.iter().find(|d| !(0.0..=1.0).contains(*d)) {
            return Err(SparsityError::Setting {
                field: "density",
                value: bad.to_string(),
                allowed: "[0, 1]",
            });
        }
        let target = all - pruned_count(all, sparsity);
        let shares = scaled_shares(&sizes, densities, target);
        let kept = apportion(&sizes, &shares, target);
        Ok(Budget { sizes, kept })
    }

    /// Weights of each layer.
    #[must_use]
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Kept weights of each layer.
    #[must_use]
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.sizes.len()
    }

    /// Pruned weights of layer `l`.
    ///
    /// # Panics
    ///
    /// When there is no layer `l`.
    #[must_use]
    pub fn pruned(&self, l: usize) -> usize {
        self.sizes[l] - self.kept[l]
    }

    /// Fraction of zeros of layer `l`; 0 for a layer without weights.
    ///
    /// # Panics
    ///
    /// When there is no layer `l`.
    #[must_use]
    pub fn sparsity(&self, l: usize) -> f64 {
        match self.sizes[l] {
            0 => 0.0,
            size => self.pruned(l) as f64 / size as f64,
        }
    }

    /// Kept weights of all layers.
    #[must_use]
    pub fn total_kept(&self) -> usize {
        self.kept.iter().sum()
    }

    /// Weights of all layers.
    #[must_use]
    pub fn total(&self) -> usize {
        self.sizes.iter().sum()
    }

    /// Raises every layer to at least `min(min_kept, size)` kept weights and takes as many from the
    /// others, in proportion to what each has above its minimum, so that the total stays the same.
    ///
    /// # Errors
    ///
    /// [`SparsityError::Infeasible`] when the minima add up to more than the total.
    pub fn at_least(&self, min_kept: usize) -> Result<Budget, SparsityError> {
        let minima: Vec<usize> = self.sizes.iter().map(|&s| s.min(min_kept)).collect();
        let needed: usize = minima.iter().sum();
        let total = self.total_kept();
        if needed > total {
            return Err(SparsityError::Infeasible { needed, total });
        }
        let raised: Vec<usize> = self.kept.iter().zip(&minima).map(|(&k, &m)| k.max(m)).collect();
        let spare: Vec<usize> = raised.iter().zip(&minima).map(|(r, m)| r - m).collect();
        let all_spare: usize = spare.iter().sum();
        let left = total - needed;
        // Every layer keeps the same fraction `left / all_spare` of what it has above its minimum.
        let shares: Vec<f64> = spare
            .iter()
            .map(|&s| if all_spare == 0 { 0.0 } else { s as f64 * (left as f64 / all_spare as f64) })
            .collect();
        let extra = apportion(&spare, &shares, left);
        Ok(Budget {
            sizes: self.sizes.clone(),
            kept: minima.iter().zip(&extra).map(|(m, e)| m + e).collect(),
        })
    }
}

pub(super) fn checked_sum(sizes: &[usize]) -> Result<usize, SparsityError> {
    sizes.iter().try_fold(0usize, |sum, &s| sum.checked_add(s)).ok_or_else(|| SparsityError::TooLarge {
        what: "the sum of all layers",
        detail: format!("more than {} weights", usize::MAX),
    })
}

/// `size · density` per layer, scaled so that the sum is `target` with no layer above its size.
fn scaled_shares(sizes: &[usize], densities: &[f64], target: usize) -> Vec<f64> {
    let mut shares: Vec<f64> = sizes.iter().zip(densities).map(|(&s, &d)| s as f64 * d).collect();
    let mut is_full = vec![false; sizes.len()];
    for _ in 0..=sizes.len() {
        let full: f64 = sum_where(sizes, &is_full, true, |l| sizes[l] as f64);
        let open: f64 = sum_where(sizes, &is_full, false, |l| shares[l]);
        if open <= 0.0 {
            break;
        }
        let factor = (target as f64 - full).max(0.0) / open;
        let mut has_changed = false;
        for l in 0..sizes.len() {
            if !is_full[l] && shares[l] * factor > sizes[l] as f64 {
                is_full[l] = true;
                shares[l] = sizes[l] as f64;
                has_changed = true;
            }
        }
        if !has_changed {
            // Within rounding of 1 the shares already add up: leave them untouched.
            if (factor - 1.0).abs() > 1e-12 {
                for l in 0..sizes.len() {
                    if !is_full[l] {
                        shares[l] *= factor;
                    }
                }
            }
            break;
        }
    }
    shares
}

fn sum_where(sizes: &[usize], flags: &[bool], wanted: bool, value: impl Fn(usize) -> f64) -> f64 {
    (0..sizes.len()).filter(|&l| flags[l] == wanted).map(value).sum()
}

/// Integers with the exact sum `target`, `0 <= out[l] <= caps[l]`, close to `shares`: floors, then
/// the largest remainders. `target <= Σ caps`.
fn apportion(caps: &[usize], shares: &[f64], target: usize) -> Vec<usize> {
    let mut out: Vec<usize> =
        caps.iter().zip(shares).map(|(&cap, &share)| (share as usize).min(cap)).collect();
    let mut order: Vec<usize> = (0..caps.len()).collect();
    let remainder = |l: usize| shares[l] - shares[l].floor();
    order.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)).then(a.cmp(&b)));
    let mut sum: usize = out.iter().sum();
    // Rounding leaves less than one weight per layer to hand out or take back; shares that do not
    // add up (all densities 0) are filled or emptied layer by layer.
    while sum < target {
        let before = sum;
        for &l in &order {
            if sum < target && out[l] < caps[l] {
                let step = if sum + caps.len() < target {
                    (caps[l] - out[l]).min((target - sum).div_ceil(caps.len()))
                } else {
                    1
                };
                out[l] += step;
                sum += step;
            }
        }
        assert!(sum > before, "the target {target} exceeds the layers");
    }
    while sum > target {
        for &l in order.iter().rev() {
            if sum > target && out[l] > 0 {
                out[l] -= 1;
                sum -= 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn largest_remainders_by_hand() {
        // 10, 10, 10 at densities 0.33, 0.36, 0.31 → 3.3, 3.6, 3.1; total 30 − ⌊30 · 2/3⌋ = 10: the
        // one missing weight goes to the remainder 0.6.
        let budget = Budget::from_densities(vec![10, 10, 10], &[0.33, 0.36, 0.31], 2.0 / 3.0).unwrap();
        assert_eq!(budget.kept(), [3, 4, 3]);
    }

    #[test]
    fn minimum_is_taken_from_those_above_it() {
        // Minima 2, 2, 2; raised 2, 2, 8; spare 0, 0, 6; total 9 leaves 3 for the third.
        let budget = Budget::from_kept(vec![10, 10, 10], vec![0, 1, 8]).unwrap();
        assert_eq!(budget.at_least(2).unwrap().kept(), [2, 2, 5]);
        assert_eq!(budget.at_least(0).unwrap(), budget);
        assert_eq!(budget.at_least(3).unwrap().kept(), [3, 3, 3]);
        assert_eq!(budget.at_least(4), Err(SparsityError::Infeasible { needed: 12, total: 9 }));
    }

    #[test]
    fn hostile_budgets_are_refused() {
        assert!(Budget::from_kept(vec![3], vec![4]).is_err());
        assert!(Budget::from_kept(vec![3], vec![]).is_err());
        assert!(Budget::from_kept(vec![usize::MAX, 1], vec![0, 0]).is_err());
        for bad in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
            assert!(Budget::from_densities(vec![3], &[bad], 0.5).is_err());
        }
        assert!(Budget::from_densities(vec![], &[], 0.5).is_err());
        assert!(Budget::from_densities(vec![0, 0], &[0.5, 0.5], 0.5).is_err());
        assert!(Budget::from_densities(vec![4], &[0.5], f64::NAN).is_err());
    }

    proptest! {
        #[test]
        fn any_densities_give_the_exact_total(
            layers in proptest::collection::vec((0usize..5000, 0.0f64..=1.0), 1..12),
            sparsity in 0.0f64..1.0,
        ) {
            let (sizes, densities): (Vec<usize>, Vec<f64>) = layers.into_iter().unzip();
            let all: usize = sizes.iter().sum();
            prop_assume!(all > 0);
            let budget = Budget::from_densities(sizes.clone(), &densities, sparsity).unwrap();
            prop_assert_eq!(budget.total_kept(), all - pruned_count(all, sparsity));
            for (k, s) in budget.kept().iter().zip(&sizes) {
                prop_assert!(k <= s);
            }
        }

        #[test]
        fn minima_hold_and_the_total_stays(
            layers in proptest::collection::vec((0usize..500, 0.0f64..=1.0), 1..12),
            min_kept in 0usize..40,
        ) {
            let sizes: Vec<usize> = layers.iter().map(|l| l.0).collect();
            let kept: Vec<usize> = layers.iter().map(|l| (l.0 as f64 * l.1) as usize).collect();
            let budget = Budget::from_kept(sizes.clone(), kept).unwrap();
            let needed: usize = sizes.iter().map(|&s| s.min(min_kept)).sum();
            match budget.at_least(min_kept) {
                Ok(raised) => {
                    prop_assert_eq!(raised.total_kept(), budget.total_kept());
                    for (k, s) in raised.kept().iter().zip(&sizes) {
                        prop_assert!(*k <= *s && *k >= (*s).min(min_kept));
                    }
                }
                Err(_) => prop_assert!(needed > budget.total_kept()),
            }
        }
    }
}
