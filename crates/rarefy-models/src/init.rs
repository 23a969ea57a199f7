//! Random initial weights from our own generator: the same seed gives the same bytes whatever runs beside.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::sampling::uniform;

/// Draws tensors one after another; each has its own stream of the seed, so its values depend on its place, not on the
/// sizes before it.
#[derive(Debug)]
pub(crate) struct Initializer {
    seed: u64,
    drawn: u64,
}

impl Initializer {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// `n` values from N(0, deviation²), by the method of Box and Muller.
    pub(crate) fn normal(&mut self, n: usize, deviation: f64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.drawn);
        self.drawn += 1;
        let mut out = Vec::with_capacity(n + 1);
        while out.len() < n {
            // 1 - u lies in (0, 1], so the logarithm is finite.
            let radius = (-2.0 * (1.0 - uniform(&mut rng)).ln()).sqrt() * deviation;
            let (sin, cos) = (std::f64::consts::TAU * uniform(&mut rng)).sin_cos();
            out.push((radius * cos) as f32);
            out.push((radius * sin) as f32);
        }
        out.truncate(n);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_repetition() {
        let mut a = Initializer::new(7);
        let x = a.normal(100_001, 0.02);
        let y = a.normal(100_001, 0.02);
        assert_eq!(x.len(), 100_001);
        assert_ne!(x, y);
        assert_eq!(x, Initializer::new(7).normal(100_001, 0.02));
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
        let second = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 3e-4, "{mean}");
        assert!((second.sqrt() / 0.02 - 1.0).abs() < 0.01, "{second}");
    }
}
