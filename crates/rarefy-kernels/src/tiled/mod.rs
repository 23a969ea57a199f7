//! The product of a Tiled-CSL matrix as the paper computes it, on a CPU: load as sparse, compute as dense.
//!
//! Each tile of 128 rows by 64 columns is scattered to a dense f32 tile (32 KiB, in the first-level cache), cleared before, and multiplied as if it had
//! been dense. Sums are kept in f32 and continue from tile to tile, so that each output is one chain over ascending columns: the same bits as
//! [`crate::Dense`] on the same (f16) weights. Split-K cuts the columns into parts that are summed apart and added in order at the end, for weights with
//! fewer rows of tiles than threads.
//!
//! # Roofline
//! `4 d` bytes per weight at density `d`, about as many as a bitmask of f32 reads, and one product per token, zeros included. But where a bitmask
//! rebuilds sixteen weights with three operations in registers, here every non-zero is unpacked, widened and stored by itself: 3 ns
//! measured, 1.2 GB/s, a twelfth of what memory gives; a tile is cleared and read back besides. So it loses to the dense kernel
//! (0.26 times as fast at 70 % zeros for one token, 0.7 at 90 %, 11008 x 4096, one thread): it is the reference for what the GPU
//! kernel does, and [`crate::Panel`] the kernel to use.

use half::f16;
use rarefy_sparsity::formats::TiledCsl;
use rarefy_sparsity::formats::tiled_csl::{TILE_COLS, TILE_ROWS, unplace, value};

use crate::lanes::{self, Job, LANES, Lanes};
use crate::rows::{self, Out};
use crate::{Isa, KernelError, LinearKernel};

const NAME: &str = "tiled-f16";
/// Tokens for which a tile is scattered once.
const MAX_TOKENS: usize = 32;
/// A dense tile, `[column][row]`, and its sums, `[token][row]`.
type Weights = [f32; TILE_COLS * TILE_ROWS];
type Sums = [f32; MAX_TOKENS * TILE_ROWS];

/// A [`TiledCsl`] matrix ready to run; see the module's head.
#[derive(Debug, Clone)]
pub struct Tiled {
    matrix: TiledCsl,
    split: usize,
}

impl Tiled {
    /// Takes over a packed matrix.
    pub fn new(matrix: TiledCsl) -> Self {
        Self { matrix, split: 1 }
    }

    /// The same with the columns cut into `split` parts (at most one per tile), summed apart: results then depend on `split`, in the last bits.
    ///
    /// # Errors
    /// [`KernelError::Argument`] when `split` is 0.
    pub fn with_split_k(self, split: usize) -> Result<Self, KernelError> {
        if split == 0 {
            let (argument, value) = ("split", "0".to_owned());
            return Err(KernelError::Argument { kernel: NAME, argument, value, allowed: "at least 1" });
        }
        Ok(Self { split: split.min(self.matrix.tiles_across()).max(1), ..self })
    }

    /// Parts into which the columns are cut.
    pub fn split_k(&self) -> usize {
        self.split
    }

    /// [`LinearKernel::forward`] on a chosen code path.
    ///
    /// # Errors
    /// Those of `forward`, and [`KernelError::Isa`] when this CPU lacks the path.
    pub fn forward_with(
        &self,
        isa: Isa,
        x: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let needed = self.scratch_len(n);
        if !rows::check(NAME, isa, [rows, cols, n], [x.len(), y.len()], [scratch.len(), needed])? {
            return Ok(());
        }
        let split = self.split;
        let (down, across) = (rows.div_ceil(TILE_ROWS), self.matrix.tiles_across());
        let parts = down * split;
        let tasks = rows::tasks(rows.saturating_mul(cols).saturating_mul(n), parts);
        {
            let to = if split == 1 { &mut *y } else { &mut scratch[..needed] };
            let out = Out::new(to, rows);
            rows::for_tasks(tasks, |task| {
                let mut weights: Weights = [0.0; TILE_COLS * TILE_ROWS];
                let mut sums: Sums = [0.0; MAX_TOKENS * TILE_ROWS];
                for part in rows::share(parts, task, tasks) {
                    let (i, k) = (part / split, part % split);
                    let height = TILE_ROWS.min(rows - i * TILE_ROWS);
                    for tokens in rows::passes(n, MAX_TOKENS) {
                        sums.fill(0.0);
                        for j in rows::share(across, k, split) {
                            scatter(self.matrix.tile(i * across + j), &mut weights);
                            let first = j * TILE_COLS;
                            let width = TILE_COLS.min(cols - first);
                            let x = &x[tokens.start * cols..tokens.end * cols];
                            let job = Multiply { weights: &weights, x, cols, first, width, sums: &mut sums };
                            lanes::dispatch(isa, job);
                        }
                        for (t, line) in tokens.zip(sums.chunks_exact(TILE_ROWS)) {
                            // SAFETY: each part is its own rows of its own split, and belongs to one task.
                            unsafe { out.write(k * n + t, i * TILE_ROWS, &line[..height]) };
                        }
                    }
                }
            });
        }
        if split > 1 {
            let (first, later) = scratch[..needed].split_at(n * rows);
            y.copy_from_slice(first);
            for part in later.chunks_exact(n * rows) {
                y.iter_mut().zip(part).for_each(|(y, p)| *y += p);
            }
        }
        Ok(())
    }
}

/// Clears the tile and puts the entries in their places. Padding is written too: a zero where there is one.
fn scatter(entries: &[u32], weights: &mut Weights) {
    weights.fill(0.0);
    for entry in entries {
        let (row, col) = unplace((entry >> 16) as u16);
        weights[col * TILE_ROWS + row] = widen(value(*entry));
    }
}

/// f16 to f32, exactly, in a few operations that do not depend on the CPU.
fn widen(v: f16) -> f32 {
    let bits = u32::from(v.to_bits());
    // As a number 2^112 times too small, denormals included; infinity and NaN, which would become finite, apart.
    let small = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let size = if bits & 0x7c00 == 0x7c00 { small.to_bits() | 0x7f80_0000 } else { small.to_bits() };
    f32::from_bits(size | (bits & 0x8000) << 16)
}

/// Adds the products of a tile to its sums.
struct Multiply<'a> {
    weights: &'a Weights,
    x: &'a [f32],
    cols: usize,
    first: usize,
    width: usize,
    sums: &'a mut Sums,
}

impl Job for Multiply<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let n = self.x.len() / self.cols;
        let line = |t: usize| &self.x[t * self.cols + self.first..][..self.width];
        let mut t = 0;
        while t < n {
            let sums = &mut self.sums[t * TILE_ROWS..];
            t += match n - t {
                8.. => block::<L, 8>(l, self.weights, std::array::from_fn(|i| line(t + i)), sums),
                4.. => block::<L, 4>(l, self.weights, std::array::from_fn(|i| line(t + i)), sums),
                2.. => block::<L, 2>(l, self.weights, std::array::from_fn(|i| line(t + i)), sums),
                _ => block::<L, 1>(l, self.weights, [line(t)], sums),
            };
        }
    }
}

/// `N` tokens with all rows, 32 at a time; the tokens done.
#[inline(always)]
fn block<L: Lanes, const N: usize>(l: L, weights: &Weights, x: [&[f32]; N], sums: &mut [f32]) -> usize {
    let width = x[0].len();
    for r in (0..TILE_ROWS).step_by(2 * LANES) {
        let mut acc = [[l.splat(0.0); 2]; N];
        for (t, acc) in acc.iter_mut().enumerate() {
            let (halves, _) = sums[t * TILE_ROWS + r..].as_chunks();
            *acc = [l.load(&halves[0]), l.load(&halves[1])];
        }
        for (c, column) in weights.chunks_exact(TILE_ROWS).take(width).enumerate() {
            let (halves, _) = column[r..].as_chunks();
            let w = [l.load(&halves[0]), l.load(&halves[1])];
            for (acc, x) in acc.iter_mut().zip(x) {
                let v = l.splat(x[c]);
                *acc = [l.fma(w[0], v, acc[0]), l.fma(w[1], v, acc[1])];
            }
        }
        for (t, acc) in acc.into_iter().enumerate() {
            let (halves, _) = sums[t * TILE_ROWS + r..].as_chunks_mut();
            l.store(acc[0], &mut halves[0]);
            l.store(acc[1], &mut halves[1]);
        }
    }
    N
}

impl LinearKernel for Tiled {
    fn rows(&self) -> usize {
        self.matrix.rows()
    }
    fn cols(&self) -> usize {
        self.matrix.cols()
    }
    fn nnz(&self) -> usize {
        self.matrix.nnz()
    }
    fn bytes(&self) -> usize {
        self.matrix.bytes()
    }
    fn name(&self) -> &'static str {
        NAME
    }
    fn scratch_len(&self, n: usize) -> usize {
        if self.split == 1 { 0 } else { self.split.saturating_mul(n).saturating_mul(self.matrix.rows()) }
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, n, y, scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (v, wide) = (f16::from_bits(bits), widen(f16::from_bits(bits)));
            assert!(wide.to_bits() == v.to_f32().to_bits() || wide.is_nan() && v.is_nan(), "{bits:04x}");
        }
    }
}
