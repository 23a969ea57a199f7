//! Sparse sketches: time proportional to the entries of the matrix.

use faer::MatRef;
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use super::{Sketch, check_sizes, for_columns};
use crate::SolveError;
use crate::error::check_setting;

const SIGN: u32 = 1 << 31;
/// Columns that one thread takes of a row-major matrix: two cache lines of each row.
const STRIP: usize = 16;

/// A row and a sign in one word.
fn draw(rng: &mut impl Rng, rows: std::ops::Range<usize>) -> u32 {
    let sign = if rng.random::<bool>() { SIGN } else { 0 };
    rng.random_range(rows.start as u32..rows.end as u32) | sign
}

#[inline(always)]
fn signed(word: u32, v: f64) -> f64 {
    f64::from_bits(v.to_bits() ^ (u64::from(word & SIGN) << 32))
}

/// One random sign per column of `S` (Clarkson–Woodruff): each row of the matrix is added to one
/// row of the sketch, with a sign.
///
/// Embeds a d-dimensional space from `m = O(d²/ε²)`. Fails where two heavy rows collide: rarely, but
/// then badly, so look at high quantiles, not at the median; [`Osnap`] and
/// [`Srht`](super::Srht) do not.
#[derive(Debug, Clone)]
pub struct CountSketch {
    n_out: usize,
    target: Vec<u32>,
}

impl CountSketch {
    /// Draws. Stores four bytes per row of the input.
    ///
    /// # Errors
    /// [`SolveError::Setting`] for a size of 0 or above 2³¹ rows of the sketch.
    pub fn new(n_in: usize, n_out: usize, seed: u64) -> Result<Self, SolveError> {
        check_sizes(n_in, n_out)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Ok(Self { n_out, target: (0..n_in).map(|_| draw(&mut rng, 0..n_out)).collect() })
    }
}

impl Sketch for CountSketch {
    fn n_in(&self) -> usize {
        self.target.len()
    }

    fn n_out(&self) -> usize {
        self.n_out
    }

    fn add_block(&self, first: usize, block: MatRef<'_, f64>, out: &mut [f64]) {
        scatter(&self.target[first..first + block.nrows()], 1, 1.0, self.n_out, block, out);
    }
}

/// `s` entries of `±1/√s` per column of `S`, one in each of `s` bands of `m/s` rows.
///
/// Embeds a d-dimensional space from `m = O(d·log d/ε²)` with `s = O(log d/ε)`; `s = 4` is a good
/// choice in practice. Costs `s` times a [`CountSketch`].
#[derive(Debug, Clone)]
pub struct Osnap {
    n_out: usize,
    nonzeros: usize,
    target: Vec<u32>,
}

impl Osnap {
    /// Draws. Stores `4·nonzeros` bytes per row of the input.
    ///
    /// # Errors
    /// [`SolveError::Setting`] for a size of 0, or when `nonzeros` is not in `1..=n_out`.
    pub fn new(n_in: usize, n_out: usize, nonzeros: usize, seed: u64) -> Result<Self, SolveError> {
        check_sizes(n_in, n_out)?;
        check_setting((1..=n_out).contains(&nonzeros), "nonzeros", nonzeros, "in 1..=n_out")?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let band = |k: usize| k * n_out / nonzeros..(k + 1) * n_out / nonzeros;
        let target = (0..n_in * nonzeros).map(|i| draw(&mut rng, band(i % nonzeros))).collect();
        Ok(Self { n_out, nonzeros, target })
    }
}

impl Sketch for Osnap {
    fn n_in(&self) -> usize {
        self.target.len() / self.nonzeros
    }

    fn n_out(&self) -> usize {
        self.n_out
    }

    fn add_block(&self, first: usize, block: MatRef<'_, f64>, out: &mut [f64]) {
        let s = self.nonzeros;
        let target = &self.target[first * s..(first + block.nrows()) * s];
        scatter(target, s, 1.0 / (s as f64).sqrt(), self.n_out, block, out);
    }
}

/// Adds each row of the block, times `scale`, to the `s` rows of `out` that `target` names for it.
fn scatter(target: &[u32], s: usize, scale: f64, m: usize, block: MatRef<'_, f64>, out: &mut [f64]) {
    if block.col_stride() == 1 && block.ncols() > 1 {
        return scatter_rows(target, s, scale, m, block, out);
    }
    for_columns(block, m, out, |column, out| {
        if s == 1 {
            for (word, v) in target.iter().zip(column) {
                out[(word & !SIGN) as usize] += signed(*word, *v);
            }
        } else {
            for (words, v) in target.chunks_exact(s).zip(column) {
                let v = scale * v;
                words.iter().for_each(|word| out[(word & !SIGN) as usize] += signed(*word, v));
            }
        }
    });
}

/// The same for row-major blocks: rows are added as vectors, in strips of columns.
fn scatter_rows(target: &[u32], s: usize, scale: f64, m: usize, block: MatRef<'_, f64>, out: &mut [f64]) {
    out.par_chunks_mut(m * STRIP).enumerate().for_each(|(k, out)| {
        let (from, width) = (k * STRIP, out.len() / m);
        let strip = block.subcols(from, width);
        let mut sums = vec![0.0; m * width];
        for (i, words) in target.chunks_exact(s).enumerate() {
            let Some(row) = strip.row(i).try_as_row_major() else { continue };
            for word in words {
                let at = (word & !SIGN) as usize * width;
                let (sums, sign) = (&mut sums[at..at + width], signed(*word, scale));
                match (<&mut [f64; STRIP]>::try_from(&mut *sums), row.as_slice().as_array::<STRIP>()) {
                    (Ok(sums), Some(row)) => (0..STRIP).for_each(|l| sums[l] += sign * row[l]),
                    _ => sums.iter_mut().zip(row.as_slice()).for_each(|(s, v)| *s += sign * v),
                }
            }
        }
        for (j, out) in out.chunks_exact_mut(m).enumerate() {
            out.iter_mut().enumerate().for_each(|(i, v)| *v += sums[i * width + j]);
        }
    });
}
