//! `min ½wᵀGw − qᵀw + Σ λⱼ|wⱼ| + ½ Σ λ₂ⱼwⱼ²` over a cached Gram matrix: coordinate descent, and exact
//! Newton steps on the support with an updated Cholesky factor.

use crate::linop::dense::{axpy, dot, norm_sq};
use crate::prox::{positive_soft, soft};

/// The Gram matrix of the features seen so far, and the state over them. Everything is indexed by
/// slot: the order in which features entered.
#[derive(Default)]
pub(crate) struct Quadratic {
    pub(crate) features: Vec<usize>,
    /// `G[a, b]` at `a·stride + b`.
    gram: Vec<f64>,
    stride: usize,
    pub(crate) w: Vec<f64>,
    /// `q − G w`.
    pub(crate) c: Vec<f64>,
    pub(crate) l1: Vec<f64>,
    pub(crate) l2: Vec<f64>,
    pub(crate) positive: bool,
    factor: Factor,
}

impl Quadratic {
    pub(crate) fn len(&self) -> usize {
        self.features.len()
    }

    /// From a whole matrix, features 0..m in order, all coefficients 0.
    pub(crate) fn whole(gram: Vec<f64>, q: Vec<f64>) -> Self {
        let m = q.len();
        Self {
            features: (0..m).collect(),
            gram,
            stride: m,
            w: vec![0.0; m],
            c: q,
            l1: vec![0.0; m],
            l2: vec![0.0; m],
            ..Self::default()
        }
    }

    /// Adds a feature with coefficient `w`, its products with the features before it and with
    /// itself, and its correlation with the residual at the current point.
    pub(crate) fn push(&mut self, feature: usize, products: &[f64], c: f64, w: f64) {
        let m = self.len();
        if m == self.stride {
            let stride = (2 * m).max(32);
            let mut wider = vec![0.0; stride * stride];
            for a in 0..m {
                wider[a * stride..a * stride + m].copy_from_slice(&self.gram[a * m..(a + 1) * m]);
            }
            (self.gram, self.stride) = (wider, stride);
        }
        let stride = self.stride;
        self.gram[m * stride..=m * stride + m].copy_from_slice(products);
        for (a, v) in products[..m].iter().enumerate() {
            self.gram[a * stride + m] = *v;
        }
        self.features.push(feature);
        self.w.push(w);
        self.c.push(c);
        self.l1.push(0.0);
        self.l2.push(0.0);
    }

    fn row(&self, a: usize) -> &[f64] {
        &self.gram[a * self.stride..a * self.stride + self.w.len()]
    }

    pub(crate) fn diagonal(&self, a: usize) -> f64 {
        self.gram[a * self.stride + a]
    }

    /// Moves `w[a]` by `delta`.
    pub(crate) fn shift(&mut self, a: usize, delta: f64) {
        let m = self.w.len();
        self.w[a] += delta;
        axpy(-delta, &self.gram[a * self.stride..a * self.stride + m], &mut self.c);
    }

    /// The factor depends on `l2`: forget it when that changes.
    pub(crate) fn forget_factor(&mut self) {
        self.factor = Factor::default();
    }

    /// One sweep over `slots`; returns twice the decrease predicted by the diagonal and whether
    /// the support changed.
    fn sweep(&mut self, slots: &[usize]) -> (f64, bool) {
        let (mut progress, mut changed) = (0.0, false);
        for &a in slots {
            let g = self.diagonal(a);
            if g <= 0.0 {
                continue;
            }
            let old = self.w[a];
            let u = g * old + self.c[a];
            let curvature = g + self.l2[a];
            let new =
                if self.positive { positive_soft(u, self.l1[a]) } else { soft(u, self.l1[a]) } / curvature;
            let delta = new - old;
            if delta != 0.0 {
                changed |= (old == 0.0) != (new == 0.0) || old * new < 0.0;
                self.shift(a, delta);
                self.w[a] = new;
                progress += curvature * delta * delta;
            }
        }
        (progress, changed)
    }

    /// Descends over `slots` until a sweep gains at most `target`, alternating sweeps and Newton
    /// steps. Returns the number of sweeps.
    pub(crate) fn descend(&mut self, slots: &[usize], target: f64, max_sweeps: usize) -> usize {
        let mut last_newton = 0;
        for sweep in 1..=max_sweeps {
            let (progress, changed) = self.sweep(slots);
            if progress <= target {
                return sweep;
            }
            if !changed || sweep - last_newton >= 4 {
                last_newton = sweep;
                self.newton(slots);
            }
        }
        max_sweeps
    }

    /// Goes to the minimum over the support with the signs at hand, or as far as the first
    /// coefficient that would change its sign. Columns that depend on others stay put.
    fn newton(&mut self, slots: &[usize]) {
        let support: Vec<usize> = slots.iter().copied().filter(|a| self.w[*a] != 0.0).collect();
        let mut factor = std::mem::take(&mut self.factor);
        factor.update(&support, self);
        let rhs = |a: usize| self.c[a] - self.l1[a] * self.w[a].signum() - self.l2[a] * self.w[a];
        let d = factor.solve(factor.order.iter().map(|a| rhs(*a)).collect());
        let mut t = 1.0;
        let mut blocked = None;
        for (&a, &d) in factor.order.iter().zip(&d) {
            if self.w[a] * d < 0.0 && -self.w[a] / d <= t {
                t = -self.w[a] / d;
                blocked = Some(a);
            }
        }
        for (&a, &d) in factor.order.iter().zip(&d) {
            if blocked == Some(a) {
                let all = -self.w[a];
                self.shift(a, all);
                self.w[a] = 0.0;
            } else if d != 0.0 {
                self.shift(a, t * d);
            }
        }
        self.factor = factor;
    }
}

/// Cholesky factor of `G + diag(λ₂)` on some slots, grown one row at a time: the slots at its
/// front that stay in the support are kept from call to call.
#[derive(Default)]
struct Factor {
    order: Vec<usize>,
    rows: Vec<Vec<f64>>,
}

impl Factor {
    fn update(&mut self, support: &[usize], of: &Quadratic) {
        let mut wanted = vec![false; of.len()];
        support.iter().for_each(|a| wanted[*a] = true);
        let keep = self.order.iter().take_while(|a| wanted[**a]).count();
        self.order[..keep].iter().for_each(|a| wanted[*a] = false);
        let mut rest: Vec<usize> = self.order[keep..].iter().copied().filter(|a| wanted[*a]).collect();
        rest.iter().for_each(|a| wanted[*a] = false);
        rest.extend(support.iter().filter(|a| wanted[**a]));
        self.order.truncate(keep);
        self.rows.truncate(keep);
        for a in rest {
            self.append(a, of);
        }
    }

    fn append(&mut self, a: usize, of: &Quadratic) {
        let k = self.order.len();
        let gram = of.row(a);
        let mut row = Vec::with_capacity(k + 1);
        for (i, below) in self.rows.iter().enumerate() {
            let v = (gram[self.order[i]] - dot(&below[..i], &row)) / below[i];
            row.push(v);
        }
        let own = of.diagonal(a) + of.l2[a];
        let rest = own - norm_sq(&row);
        if rest > own * 1e-11 {
            row.push(rest.sqrt());
            self.order.push(a);
            self.rows.push(row);
        }
    }

    fn solve(&self, mut b: Vec<f64>) -> Vec<f64> {
        for (i, row) in self.rows.iter().enumerate() {
            b[i] = (b[i] - dot(&row[..i], &b[..i])) / row[i];
        }
        for (i, row) in self.rows.iter().enumerate().rev() {
            let v = b[i] / row[i];
            b[i] = v;
            axpy(-v, &row[..i], &mut b[..i]);
        }
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Quadratic {
        // X = [1 0; 1 1; 0 2], y = (1, 2, 3): G = [2 1; 1 5], q = (3, 8).
        let mut q = Quadratic::whole(vec![2.0, 1.0, 1.0, 5.0], vec![3.0, 8.0]);
        q.l1 = vec![1.0, 1.0];
        q
    }

    #[test]
    fn by_hand() {
        // 2w₀ + w₁ = 2, w₀ + 5w₁ = 7: w = (1/3, 4/3).
        let mut q = small();
        q.descend(&[0, 1], 0.0, 100);
        assert!((q.w[0] - 1.0 / 3.0).abs() < 1e-15 && (q.w[1] - 4.0 / 3.0).abs() < 1e-15);
        assert!(q.c.iter().all(|c| (c - 1.0).abs() < 1e-14), "correlations of the support equal λ");
    }

    #[test]
    fn grown_one_by_one_and_duplicates() {
        let mut q = Quadratic::default();
        let columns = [[1.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]];
        let y = [1.0, 2.0, 3.0];
        for (j, a) in columns.iter().enumerate() {
            let products: Vec<f64> = columns[..=j].iter().map(|b| dot(a, b)).collect();
            q.push(j, &products, dot(a, &y), 0.0);
        }
        q.l1 = vec![1.0; 3];
        let sweeps = q.descend(&[0, 1, 2], 1e-30, 1000);
        assert!(sweeps < 1000);
        assert!((q.w[0] - 1.0 / 3.0).abs() < 1e-12 && (q.w[1] + q.w[2] - 4.0 / 3.0).abs() < 1e-12);
        assert_eq!(q.features, [0, 1, 2]);
    }

    #[test]
    fn positivity() {
        let mut q = Quadratic::whole(vec![1.0, 0.9, 0.9, 1.0], vec![1.0, -1.0]);
        q.positive = true;
        q.descend(&[0, 1], 0.0, 100);
        assert_eq!(q.w, [1.0, 0.0]);
    }
}
