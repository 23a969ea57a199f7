//! Which features are worked on: gap-safe screening and the growth of a working set.

/// One feature at the point at hand.
pub(super) struct Feature {
    /// Its share of the penalty.
    pub(super) weight: f64,
    /// Size of its gradient, with the sign where only positive coefficients are allowed.
    pub(super) size: f64,
    /// Norm of its column, the ridge included.
    pub(super) norm: f64,
    /// Whether its coefficient is 0.
    pub(super) is_zero: bool,
}

/// The certificate of a point, as far as screening needs it.
pub(super) struct Bounds {
    /// Penalty λ.
    pub(super) l1: f64,
    /// Factor that makes the dual point feasible.
    pub(super) scale: f64,
    /// Radius of the ball around it in which the dual optimum lies (Fercoq, Gramfort, Salmon 2015).
    pub(super) radius: f64,
    /// Features whose gradient is above this join: λ, or the strong rule's bound at the start (Tibshirani et al. 2012).
    pub(super) strong: f64,
}

/// The features that may still be in the answer.
pub(super) struct WorkingSet {
    pub(super) alive: Vec<usize>,
    seen: Vec<bool>,
}

impl WorkingSet {
    /// All of `p` features that `may` be in the answer.
    pub(super) fn new(p: usize, may: impl Fn(&usize) -> bool) -> Self {
        Self { alive: (0..p).filter(may).collect(), seen: vec![false; p] }
    }

    /// Drops the features that the gap excludes, and returns `support` with the most violated others, at most twice as many as there are or `least`,
    /// and whether one of them violates the conditions. `g` holds the gradients of `alive`.
    pub(super) fn grow(
        &mut self,
        g: &[f64],
        support: &[usize],
        least: usize,
        bounds: &Bounds,
        feature: impl Fn(usize, f64) -> Feature,
    ) -> (Vec<usize>, bool) {
        let mut set = support.to_vec();
        support.iter().for_each(|j| self.seen[*j] = true);
        let mut wanted: Vec<(f64, usize)> = vec![];
        let mut kept = Vec::with_capacity(self.alive.len());
        for (&j, &g) in self.alive.iter().zip(g) {
            let Feature { weight, size, norm, is_zero } = feature(j, g);
            let penalty = bounds.l1 * weight;
            if bounds.scale * size + norm * bounds.radius < penalty && is_zero {
                continue;
            }
            kept.push(j);
            if !self.seen[j] && size > bounds.strong * weight {
                wanted.push(((penalty - size) / norm, j));
            }
        }
        support.iter().for_each(|j| self.seen[*j] = false);
        self.alive = kept;
        let most = (2 * set.len()).max(least);
        if wanted.len() > most {
            wanted.select_nth_unstable_by(most, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            wanted.truncate(most);
        }
        let found = wanted.iter().any(|w| w.0 < 0.0);
        set.extend(wanted.iter().map(|w| w.1));
        (set, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excluded_features_go_and_the_most_violated_join() {
        let mut set = WorkingSet::new(5, |j| *j != 4);
        let bounds = Bounds { l1: 1.0, scale: 1.0, radius: 0.1, strong: 1.0 };
        let feature = |j: usize, g: f64| Feature { weight: 1.0, size: g, norm: 1.0, is_zero: j != 0 };
        // 0 is in the support, 1 is excluded, 2 violates a little, 3 more.
        let (found, violated) = set.grow(&[0.2, 0.8, 1.1, 1.4], &[0], 1, &bounds, feature);
        assert_eq!((found, violated), (vec![0, 2, 3], true));
        assert_eq!(set.alive, [0, 2, 3]);
        // Room for one only: the one violated most.
        let mut set = WorkingSet::new(4, |_| true);
        assert_eq!(set.grow(&[0.2, 0.8, 1.1, 1.4], &[], 1, &bounds, feature).0, [3]);
    }
}
