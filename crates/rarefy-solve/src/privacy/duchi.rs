//! The randomisers of Duchi, Jordan and Wainwright (JASA 2018): pure ε, unbiased, of constant length.

use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};

use crate::SolveError;
use crate::error::{check_dimension, check_finite, check_setting};
use crate::linop::dense::{dot, norm};

fn check(d: usize, radius: f64, epsilon: f64) -> Result<(), SolveError> {
    check_setting((1..=1 << 24).contains(&d), "d", d, "in 1..=2^24")?;
    check_setting(radius > 0.0 && radius.is_finite(), "radius", radius, "above 0 and finite")?;
    check_setting(epsilon > 0.0 && epsilon.is_finite(), "epsilon", epsilon, "above 0 and finite")
}

/// (e^ε + 1)/(e^ε − 1).
fn inflation(epsilon: f64) -> f64 {
    1.0 / (0.5 * epsilon).tanh()
}

/// Whether the output agrees with the chosen direction: e^ε/(1 + e^ε).
fn agrees(epsilon: f64, rng: &mut impl Rng) -> bool {
    rng.random::<f64>() < 1.0 / (1.0 + (-epsilon).exp())
}

/// ε-private release of a vector of the l2 ball.
///
/// w = ±u/‖u‖ with mean u/R, then a uniform direction of the half-sphere around w with probability
/// e^ε/(1 + e^ε), of the other one otherwise, times [`DuchiBall::length`]. Expectation u.
#[derive(Debug, Clone, PartialEq)]
pub struct DuchiBall {
    d: usize,
    radius: f64,
    epsilon: f64,
    length: f64,
}

impl DuchiBall {
    /// For vectors of ℝ^d with `‖u‖₂ ≤ radius`.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn new(d: usize, radius: f64, epsilon: f64) -> Result<Self, SolveError> {
        check(d, radius, epsilon)?;
        let n = d as f64;
        // √π·(d/2)·Γ((d+1)/2)/Γ(d/2+1): one over the mean of ⟨z, w⟩ on the half-sphere.
        let gammas = (libm::lgamma(0.5 * (n + 1.0)) - libm::lgamma(0.5 * n + 1.0)).exp();
        let length = radius * inflation(epsilon) * 0.5 * n * std::f64::consts::PI.sqrt() * gammas;
        Ok(Self { d, radius, epsilon, length })
    }

    /// The length of every output.
    #[must_use]
    pub fn length(&self) -> f64 {
        self.length
    }

    /// Randomises `u`. Longer vectors are shortened to the radius, as the guarantee demands.
    ///
    /// # Errors
    /// [`SolveError::Dimension`], [`SolveError::NonFinite`].
    pub fn release(&self, u: &[f64], rng: &mut impl Rng) -> Result<Vec<f64>, SolveError> {
        check_dimension("u", self.d, "dimension of the mechanism", u.len())?;
        check_finite("u", u)?;
        let size = norm(u);
        let direction = |rng: &mut _| loop {
            let z: Vec<f64> = (0..self.d).map(|_| StandardNormal.sample(rng)).collect();
            let n = norm(&z);
            if n > 1e-100 {
                break z.iter().map(|v| v / n).collect::<Vec<f64>>();
            }
        };
        let share = (size / self.radius).min(1.0);
        let w = if share > 0.0 { u.iter().map(|v| v / size).collect() } else { direction(rng) };
        let sign = if rng.random::<f64>() < 0.5 + 0.5 * share { 1.0 } else { -1.0 };
        let with = if agrees(self.epsilon, rng) { sign } else { -sign };
        let mut z = direction(rng);
        let side = if dot(&z, &w) * with >= 0.0 { 1.0 } else { -1.0 };
        z.iter_mut().for_each(|v| *v *= side * self.length);
        Ok(z)
    }
}

/// ε-private release of a vector of the cube, as a corner of a larger cube. At d = 1 the classical one-bit release.
///
/// V_j = ±R with mean u_j, then a uniform corner z of {±B}^d among those with ⟨z, V⟩ ≥ 0 with probability
/// `p = c/(c + (1−c)e^−ε)`, where c is their share of all corners, among the others otherwise. Expectation u.
/// For odd d this is Duchi's mechanism. For even d theirs puts corners with ⟨z, V⟩ = 0 on both sides, which costs
/// ln(1 + e^ε) > ε; here they count as agreeing, and p makes the ratio of the two densities e^ε exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct DuchiCube {
    d: usize,
    radius: f64,
    /// p.
    agrees: f64,
    size: f64,
}

impl DuchiCube {
    /// For vectors of ℝ^d with `‖u‖∞ ≤ radius`.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn new(d: usize, radius: f64, epsilon: f64) -> Result<Self, SolveError> {
        check(d, radius, epsilon)?;
        let choose =
            |n: f64, k: f64| libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0);
        let n = d as f64;
        let half = (n / 2.0).floor();
        let all = n * std::f64::consts::LN_2;
        let share = if d.is_multiple_of(2) { 0.5 + 0.5 * (choose(n, half) - all).exp() } else { 0.5 };
        // The sum of z_j V_j over the agreeing corners telescopes to C(d−1, ⌊d/2⌋).
        let sum = (all - choose(n - 1.0, half)).exp();
        let size = radius * (share + 1.0 / epsilon.exp_m1()) * sum;
        let agrees = share / (share + (1.0 - share) * (-epsilon).exp());
        Ok(Self { d, radius, agrees, size })
    }

    /// The absolute value of every entry of the output.
    #[must_use]
    pub fn size(&self) -> f64 {
        self.size
    }

    /// Randomises `u`. Entries beyond the radius are cut to it, as the guarantee demands.
    ///
    /// # Errors
    /// [`SolveError::Dimension`], [`SolveError::NonFinite`].
    pub fn release(&self, u: &[f64], rng: &mut impl Rng) -> Result<Vec<f64>, SolveError> {
        check_dimension("u", self.d, "dimension of the mechanism", u.len())?;
        check_finite("u", u)?;
        let rounded: Vec<bool> =
            u.iter().map(|v| rng.random::<f64>() < 0.5 + 0.5 * (v / self.radius).clamp(-1.0, 1.0)).collect();
        let with = rng.random::<f64>() < self.agrees;
        // A quarter of all corners or more fit, so this ends soon.
        let z: Vec<bool> = loop {
            let z: Vec<bool> = (0..self.d).map(|_| rng.random()).collect();
            let agreements = z.iter().zip(&rounded).filter(|(a, b)| a == b).count();
            if (2 * agreements >= self.d) == with {
                break z;
            }
        };
        Ok(z.into_iter().map(|up| if up { self.size } else { -self.size }).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::privacy::PrivacyRng;

    #[test]
    fn the_length_of_the_specification() {
        assert!((DuchiBall::new(5, 1.0, 1.0).unwrap().length() - 5.7705).abs() < 1e-4);
        // One bit: (e + 1)/(e − 1) in both.
        let bit = (1f64.exp() + 1.0) / (1f64.exp() - 1.0);
        assert!((DuchiBall::new(1, 1.0, 1.0).unwrap().length() - bit).abs() < 1e-12);
        assert!((DuchiCube::new(1, 1.0, 1.0).unwrap().size() - bit).abs() < 1e-12);
    }

    /// The probability of every corner, from every rounding of `u`.
    fn corner_probabilities(m: &DuchiCube, u: &[f64]) -> Vec<f64> {
        let d = u.len();
        let agree = |z: usize, v: usize| 2 * (d - (z ^ v).count_ones() as usize) >= d;
        let fits = (0..1usize << d).filter(|z| agree(*z, 0)).count() as f64;
        let others = (1u32 << d) as f64 - fits;
        (0..1 << d)
            .map(|z| {
                (0..1 << d)
                    .map(|v| {
                        let p: f64 = (0..d)
                            .map(|j| 0.5 + 0.5 * u[j] / m.radius * if v >> j & 1 == 1 { 1.0 } else { -1.0 })
                            .product();
                        p * if agree(z, v) { m.agrees / fits } else { (1.0 - m.agrees) / others }
                    })
                    .sum()
            })
            .collect()
    }

    #[test]
    fn the_cube_is_private_and_unbiased_exactly() {
        for d in 1..=6 {
            for epsilon in [0.3, 1.0, 3.0] {
                let m = DuchiCube::new(d, 2.0, epsilon).unwrap();
                let inputs: Vec<Vec<f64>> = vec![
                    vec![2.0; d],
                    vec![-2.0; d],
                    (0..d).map(|j| if j % 2 == 0 { 2.0 } else { -2.0 }).collect(),
                    (0..d).map(|j| 1.3 - 0.5 * j as f64).collect(),
                ];
                let all: Vec<Vec<f64>> = inputs.iter().map(|u| corner_probabilities(&m, u)).collect();
                let mut worst = 0.0_f64;
                for (p, u) in all.iter().zip(&inputs) {
                    assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                    for (j, u) in u.iter().enumerate() {
                        let up = |z: usize| if z >> j & 1 == 1 { m.size } else { -m.size };
                        let mean: f64 = p.iter().enumerate().map(|(z, p)| p * up(z)).sum();
                        assert!((mean - u).abs() < 1e-9, "d {d}, epsilon {epsilon}: {mean} {u}");
                    }
                    for q in &all {
                        worst = p.iter().zip(q).fold(worst, |w, (p, q)| w.max((p / q).ln()));
                    }
                }
                assert!(worst <= epsilon + 1e-12 && worst > 0.999 * epsilon, "d {d}: {worst}");
            }
        }
    }

    #[test]
    fn means_and_lengths_of_many_draws() {
        let mut rng = PrivacyRng::repeatable_without_privacy(1, 0);
        let u = [0.5, -0.3, 0.1, 0.0, 0.6];
        let (ball, cube) = (DuchiBall::new(5, 1.0, 1.0).unwrap(), DuchiCube::new(5, 1.0, 1.0).unwrap());
        let draws = 400_000;
        let (mut a, mut b) = ([0.0; 5], [0.0; 5]);
        for _ in 0..draws {
            let z = ball.release(&u, &mut rng).unwrap();
            assert!((norm(&z) - ball.length()).abs() < 1e-9);
            a.iter_mut().zip(&z).for_each(|(a, z)| *a += z / draws as f64);
            let z = cube.release(&u, &mut rng).unwrap();
            assert!(z.iter().all(|z| z.abs() == cube.size()));
            b.iter_mut().zip(&z).for_each(|(b, z)| *b += z / draws as f64);
        }
        // 4·B/√(d·draws) = 0.016 and 4·B/√draws: about five standard deviations.
        let (near, wide) = (4.0 * ball.length() / 5f64.sqrt(), 4.0 * cube.size());
        for (u, (a, b)) in u.iter().zip(a.iter().zip(&b)) {
            assert!((a - u).abs() < near / (draws as f64).sqrt(), "{a} {u}");
            assert!((b - u).abs() < wide / (draws as f64).sqrt(), "{b} {u}");
        }
    }

    #[test]
    fn the_ball_is_as_private_as_it_says_and_no_more() {
        // Worst inputs: opposite points of the sphere; worst event: a half-sphere, with ratio e^ε exactly.
        for epsilon in [0.5, 1.0, 2.0] {
            let ball = DuchiBall::new(4, 1.0, epsilon).unwrap();
            let draws = 200_000;
            let share = |first: f64, seed| {
                let mut rng = PrivacyRng::repeatable_without_privacy(seed, 0);
                let u = [first, 0.0, 0.0, 0.0];
                let hits = (0..draws).filter(|_| ball.release(&u, &mut rng).unwrap()[0] > 0.0).count();
                hits as f64 / draws as f64
            };
            let (p, q) = (share(1.0, 2), share(-1.0, 3));
            let loss = (p / q).ln();
            let spread = ((1.0 - p) / p / draws as f64 + (1.0 - q) / q / draws as f64).sqrt();
            assert!((loss - epsilon).abs() < 4.5 * spread, "{loss} at {epsilon}, spread {spread}");
            // An input inside is harder to tell apart.
            assert!((share(0.5, 4) / q).ln() < epsilon);
        }
    }

    #[test]
    fn hostile_input() {
        let mut rng = PrivacyRng::repeatable_without_privacy(1, 0);
        for (d, radius, epsilon) in
            [(0, 1.0, 1.0), (2, 0.0, 1.0), (2, f64::NAN, 1.0), (2, 1.0, 0.0), (2, 1.0, -1.0)]
        {
            assert!(
                DuchiBall::new(d, radius, epsilon).is_err() && DuchiCube::new(d, radius, epsilon).is_err()
            );
        }
        let (ball, cube) = (DuchiBall::new(2, 1.0, 1.0).unwrap(), DuchiCube::new(2, 1.0, 1.0).unwrap());
        for u in [vec![1.0], vec![f64::NAN, 0.0], vec![f64::INFINITY, 0.0]] {
            assert!(ball.release(&u, &mut rng).is_err() && cube.release(&u, &mut rng).is_err());
        }
        // Outside of the ball, zero, and tiny: finite, of the usual length.
        for u in [[1e300, 1e300], [0.0, 0.0], [1e-310, 0.0]] {
            assert!((norm(&ball.release(&u, &mut rng).unwrap()) - ball.length()).abs() < 1e-9);
            assert!(cube.release(&u, &mut rng).unwrap().iter().all(|z| z.abs() == cube.size()));
        }
    }
}
