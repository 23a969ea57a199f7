//! Projections and proximal maps, each in place on a slice.
//!
//! `prox_f(v) = argmin_x f(x) + ½‖x − v‖²`; a projection is the proximal map of an indicator.
//! Inputs are taken to be finite; sizes (radii, thresholds, steps) to be at least 0.

mod balls;
mod simplex;
mod threshold;

pub use balls::{clamp_box, l1_ball, l2_ball, linf_ball};
pub use simplex::{k_sparse_simplex, largest_k, simplex, simplex_threshold};
pub use threshold::{
    group_soft, hard, hard_keep_k, mcp, positive_soft, soft, soft_elastic_net, soft_slice, soft_weighted,
};

#[cfg(test)]
pub(crate) mod tests {
    use rand::RngExt;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    pub(crate) fn vectors(n: usize, count: usize) -> Vec<Vec<f64>> {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        (0..count).map(|_| (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()).collect()
    }

    /// `projected` is feasible and the nearest feasible point of `v`: `⟨v − p, q − p⟩ ≤ 0` for the
    /// feasible points `others`.
    pub(crate) fn check_projection(v: &[f64], p: &[f64], others: &[Vec<f64>]) {
        for q in others {
            let inner: f64 = (0..v.len()).map(|i| (v[i] - p[i]) * (q[i] - p[i])).sum();
            assert!(inner <= 1e-12, "{inner} for {v:?} -> {p:?} against {q:?}");
        }
    }
}
