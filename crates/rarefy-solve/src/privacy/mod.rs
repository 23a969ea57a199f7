//! Randomisers for differential privacy.
//!
//! A mechanism takes a value that must not leave its owner and returns one that may. The guarantee holds for
//! exact real arithmetic: floating-point noise leaks through its low bits (Mironov, CCS 2012), and nothing here
//! is hardened against that, nor against timing. Randomness comes from ChaCha20, see [`PrivacyRng`].

mod duchi;
mod gaussian;

pub use duchi::{DuchiBall, DuchiCube};
pub use gaussian::{analytic_gaussian_sigma, classical_gaussian_sigma, gaussian_delta};

use std::convert::Infallible;

use rand::{Rng, TryRng};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::SolveError;

/// ChaCha20 keyed by the operating system.
///
/// Not `Clone` and not printed: two releases with the same stream would reveal their difference.
pub struct PrivacyRng(ChaCha20Rng);

impl std::fmt::Debug for PrivacyRng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivacyRng")
    }
}

impl PrivacyRng {
    /// A generator keyed with 256 bits of the operating system.
    ///
    /// # Errors
    /// [`SolveError::Breakdown`] when the system has no randomness to give.
    pub fn from_system() -> Result<Self, SolveError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| {
            SolveError::breakdown("privacy", e, "without the system's randomness nothing may be released")
        })?;
        Ok(Self(ChaCha20Rng::from_seed(key)))
    }

    /// A generator that anybody can repeat: for experiments and tests, without any privacy.
    /// Users have streams of their own.
    #[must_use]
    pub fn repeatable_without_privacy(seed: u64, user: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        rng.set_stream(user);
        Self(rng)
    }
}

impl TryRng for PrivacyRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill_bytes(to);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn streams_differ_and_repeat_only_when_asked() {
        let first = |seed, user| PrivacyRng::repeatable_without_privacy(seed, user).next_u64();
        assert_eq!(first(1, 2), first(1, 2));
        assert!(first(1, 2) != first(1, 3) && first(1, 2) != first(2, 2));
        let system = || PrivacyRng::from_system().unwrap().next_u64();
        assert_ne!(system(), system());
        assert_eq!(format!("{:?}", PrivacyRng::repeatable_without_privacy(7, 0)), "PrivacyRng");
    }
}
