//! Sparse sketches: time proportional to the entries of the matrix.

use std::sync::LazyLock;

use faer::MatRef;
use pulp::{Arch, Simd, WithSimd};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use super::{Sketch, check_sizes, for_columns};
use crate::SolveError;
use crate::error::check_setting;
use crate::linop::dense::axpy;

const SIGN: u32 = 1 << 31;
/// Columns of a row-major matrix whose sums are kept at a time: eight cache lines of each row.
const ROW_STRIP: usize = 64;
/// Parts into which the rows of a row-major matrix are cut, each with its own sums.
const ROW_PARTS: usize = 4;
/// The same of a column-major one: a row of sums is one cache line.
const COLUMN_STRIP: usize = 8;

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

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
///
/// Columns are taken in strips, whose sums lie row by row: a row of a strip is added as one vector.
fn scatter(target: &[u32], s: usize, scale: f64, m: usize, block: MatRef<'_, f64>, out: &mut [f64]) {
    if block.col_stride() == 1 && block.ncols() > 1 {
        // Whole rows are read in order, so the threads take different rows; always as many parts.
        let n = block.nrows();
        let part = if n >= ROW_PARTS * m { n.div_ceil(ROW_PARTS) } else { n };
        return strips::<ROW_STRIP>(m, block.ncols(), out, |from, width, sums| {
            let strip = block.subcols(from, width);
            let parts: Vec<Vec<f64>> = (0..n.div_ceil(part.max(1)))
                .into_par_iter()
                .map(|k| {
                    let (first, rows) = (k * part, part.min(n - k * part));
                    let mut sums = vec![0.0; m * width];
                    let target = &target[first * s..(first + rows) * s];
                    scatter_rows(target, s, scale, strip.subrows(first, rows), width, &mut sums);
                    sums
                })
                .collect();
            parts.iter().for_each(|part| axpy(1.0, part, sums));
        });
    }
    let p = block.ncols() - block.ncols() % COLUMN_STRIP;
    let (whole, rest) = out.split_at_mut(p * m);
    strips::<COLUMN_STRIP>(m, p, whole, |from, _, sums| {
        let strip = block.subcols(from, COLUMN_STRIP);
        with_columns(strip, |columns| {
            ARCH.dispatch(Columns { columns, target, s, scale, sums });
        });
    });
    for_columns(block.subcols(p, block.ncols() - p), m, rest, |column, out| {
        for (words, v) in target.chunks_exact(s).zip(column) {
            let v = scale * v;
            words.iter().for_each(|word| out[(word & !SIGN) as usize] += signed(*word, v));
        }
    });
}

/// `work(first column, columns, sums)` for each strip of at most `W` of the `p` columns, in parallel; then adds the
/// sums, `m` rows of a strip, to the columns of `out`.
fn strips<const W: usize>(
    m: usize,
    p: usize,
    out: &mut [f64],
    work: impl Fn(usize, usize, &mut [f64]) + Sync + Send,
) {
    debug_assert_eq!(out.len(), m * p, "sizes are checked by the caller");
    out.par_chunks_mut(m * W).enumerate().for_each(|(k, out)| {
        let width = out.len() / m;
        let mut sums = vec![0.0; m * width];
        work(k * W, width, &mut sums);
        for (j, out) in out.chunks_exact_mut(m).enumerate() {
            out.iter_mut().zip(sums.chunks_exact(width)).for_each(|(v, sums)| *v += sums[j]);
        }
    });
}

/// Calls `work` with the columns of a strip as slices, copied only where they are not.
fn with_columns(strip: MatRef<'_, f64>, work: impl FnOnce([&[f64]; COLUMN_STRIP])) {
    let slices = |strip: MatRef<'_, f64>, work: &mut dyn FnMut([&[f64]; COLUMN_STRIP])| {
        let column = |j| strip.col(j).try_as_col_major().map(|c| c.as_slice()[..strip.nrows()].as_ref());
        let all: [Option<&[f64]>; COLUMN_STRIP] = std::array::from_fn(column);
        let ready = all.iter().all(Option::is_some);
        if ready {
            work(all.map(Option::unwrap_or_default));
        }
        ready
    };
    let mut work = Some(work);
    let mut once = |columns: [&[f64]; COLUMN_STRIP]| {
        if let Some(work) = work.take() {
            work(columns);
        }
    };
    if !slices(strip, &mut once) {
        let copy = strip.to_owned();
        slices(copy.as_ref(), &mut once);
    }
}

struct Columns<'a> {
    columns: [&'a [f64]; COLUMN_STRIP],
    target: &'a [u32],
    s: usize,
    scale: f64,
    sums: &'a mut [f64],
}

impl WithSimd for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let n = self.target.len() / self.s;
        let columns = self.columns.map(|c| &c[..n]);
        let (sums, _) = self.sums.as_chunks_mut::<COLUMN_STRIP>();
        if self.s == 1 {
            #[allow(clippy::needless_range_loop, reason = "one index into eight columns")]
            for i in 0..n {
                let word = self.target[i];
                let row: [f64; COLUMN_STRIP] = std::array::from_fn(|l| columns[l][i]);
                let (sum, sign) = (&mut sums[(word & !SIGN) as usize], signed(word, self.scale));
                (0..COLUMN_STRIP).for_each(|l| sum[l] += sign * row[l]);
            }
        } else {
            for (i, words) in self.target.chunks_exact(self.s).enumerate() {
                let row: [f64; COLUMN_STRIP] = std::array::from_fn(|l| columns[l][i]);
                for word in words {
                    let (sum, sign) = (&mut sums[(word & !SIGN) as usize], signed(*word, self.scale));
                    (0..COLUMN_STRIP).for_each(|l| sum[l] += sign * row[l]);
                }
            }
        }
    }
}

/// The same for row-major blocks.
fn scatter_rows(
    target: &[u32],
    s: usize,
    scale: f64,
    strip: MatRef<'_, f64>,
    width: usize,
    sums: &mut [f64],
) {
    ARCH.dispatch(
        #[inline(always)]
        || {
            for (i, words) in target.chunks_exact(s).enumerate() {
                let Some(row) = strip.row(i).try_as_row_major() else { continue };
                for word in words {
                    let at = (word & !SIGN) as usize * width;
                    let (sums, sign) = (&mut sums[at..at + width], signed(*word, scale));
                    match (
                        <&mut [f64; ROW_STRIP]>::try_from(&mut *sums),
                        row.as_slice().as_array::<ROW_STRIP>(),
                    ) {
                        (Ok(sums), Some(row)) => (0..ROW_STRIP).for_each(|l| sums[l] += sign * row[l]),
                        _ => sums.iter_mut().zip(row.as_slice()).for_each(|(s, v)| *s += sign * v),
                    }
                }
            }
        },
    );
}
