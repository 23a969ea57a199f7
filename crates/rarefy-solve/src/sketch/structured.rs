//! Sketches from the Walsh–Hadamard transform: dense, yet fast.

use faer::MatRef;
use rand::seq::{SliceRandom, index};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use super::{Sketch, check_sizes, for_columns, transform};
use crate::SolveError;
use crate::error::check_setting;

fn signs(rng: &mut impl Rng, n: usize) -> Vec<f64> {
    (0..n).map(|_| if rng.random::<bool>() { 1.0 } else { -1.0 }).collect()
}

/// `work(start, HD-transformed values)` for aligned powers of two that cover `column`, the rows from
/// `first` on. Row `r` of the whole transform of that part is `±values[r mod len]`, the sign that
/// of `⟨r, start⟩`.
fn aligned_parts(
    signs: &[f64],
    first: usize,
    column: &[f64],
    buffer: &mut Vec<f64>,
    mut work: impl FnMut(usize, &[f64]),
) {
    let (mut at, end) = (first, first + column.len());
    while at < end {
        // The whole matrix is one part, padded.
        let whole = at == 0 && end == signs.len();
        let left = end - at;
        let largest = if whole { end.next_power_of_two() } else { 1 << left.ilog2() };
        let len = if at == 0 { largest } else { largest.min(1 << at.trailing_zeros()) };
        let until = end.min(at + len);
        buffer.clear();
        buffer.extend(column[at - first..until - first].iter().zip(&signs[at..until]).map(|(x, d)| x * d));
        buffer.resize(len, 0.0);
        transform(buffer);
        work(at, buffer);
        at = until;
    }
}

#[inline(always)]
fn entry(values: &[f64], start: usize, row: usize) -> f64 {
    let v = values[row & (values.len() - 1)];
    if (row & start).count_ones().is_multiple_of(2) { v } else { -v }
}

/// Subsampled randomised Hadamard transform: `S = R H D/√m` with random signs `D`, the Hadamard
/// matrix `H` of size `N`, the next power of two, and `m` of its rows without replacement.
///
/// Subspace embedding from `m = O((d + log n)·log d/ε²)`. Per-coordinate bounds of the regression
/// solution are open at that size (see the l∞ regression method); [`BalancedPooling`] has a proof.
#[derive(Debug, Clone)]
pub struct Srht {
    signs: Vec<f64>,
    rows: Vec<usize>,
}

impl Srht {
    /// Draws. Stores eight bytes per row of the input and of the output.
    ///
    /// # Errors
    /// [`SolveError::Setting`] for a size of 0 or `n_out` above the next power of two of `n_in`.
    pub fn new(n_in: usize, n_out: usize, seed: u64) -> Result<Self, SolveError> {
        check_sizes(n_in, n_out)?;
        let n = n_in.next_power_of_two();
        check_setting(n_out <= n, "n_out", n_out, "at most the next power of two of n_in")?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let signs = signs(&mut rng, n_in);
        let mut rows = index::sample(&mut rng, n, n_out).into_vec();
        rows.sort_unstable();
        Ok(Self { signs, rows })
    }
}

impl Sketch for Srht {
    fn n_in(&self) -> usize {
        self.signs.len()
    }

    fn n_out(&self) -> usize {
        self.rows.len()
    }

    fn add_block(&self, first: usize, block: MatRef<'_, f64>, out: &mut [f64]) {
        let scale = 1.0 / (self.rows.len() as f64).sqrt();
        for_columns(block, self.rows.len(), out, |column, out| {
            let mut buffer = vec![];
            aligned_parts(&self.signs, first, column, &mut buffer, |start, values| {
                out.iter_mut()
                    .zip(&self.rows)
                    .for_each(|(out, row)| *out += scale * entry(values, start, *row));
            });
        });
    }
}

/// Balanced Gaussian pooling: random signs, the normalised Hadamard transform of size `N`, a
/// uniform permutation, a normal weight per entry, and sums over `m` consecutive pools of `N/m`.
///
/// Embeds from `m = O(d·log(d/δ)/ε²)` with a bound on every single coordinate of the regression
/// solution; the proof wants pools of more than `d²` up to logarithms.
#[derive(Debug, Clone)]
pub struct BalancedPooling {
    signs: Vec<f64>,
    /// Row of the transform and weight, pool after pool.
    pool: Vec<(u32, f64)>,
    n_out: usize,
}

impl BalancedPooling {
    /// Draws. Stores eight bytes per row of the input and sixteen per row of the transform.
    ///
    /// # Errors
    /// [`SolveError::Setting`] for a size of 0, `n_out` not a power of two or above the next power
    /// of two of `n_in`, or `n_in` above 2³¹.
    pub fn new(n_in: usize, n_out: usize, seed: u64) -> Result<Self, SolveError> {
        check_sizes(n_in, n_out)?;
        check_setting(n_in <= 1 << 31, "n_in", n_in, "at most 2^31 for balanced pooling")?;
        let n = n_in.next_power_of_two();
        let allowed = "a power of two, at most the next power of two of n_in";
        check_setting(n_out.is_power_of_two() && n_out <= n, "n_out", n_out, allowed)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let signs = signs(&mut rng, n_in);
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.shuffle(&mut rng);
        let scale = 1.0 / (n as f64).sqrt();
        let weight = |row| {
            let z: f64 = StandardNormal.sample(&mut rng);
            (row, scale * z)
        };
        Ok(Self { signs, pool: order.into_iter().map(weight).collect(), n_out })
    }
}

impl Sketch for BalancedPooling {
    fn n_in(&self) -> usize {
        self.signs.len()
    }

    fn n_out(&self) -> usize {
        self.n_out
    }

    fn add_block(&self, first: usize, block: MatRef<'_, f64>, out: &mut [f64]) {
        let size = self.pool.len() / self.n_out;
        for_columns(block, self.n_out, out, |column, out| {
            let mut buffer = vec![];
            aligned_parts(&self.signs, first, column, &mut buffer, |start, values| {
                for (out, pool) in out.iter_mut().zip(self.pool.chunks_exact(size)) {
                    *out += pool.iter().map(|(row, w)| w * entry(values, start, *row as usize)).sum::<f64>();
                }
            });
        });
    }
}
