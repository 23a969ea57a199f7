//! Very short kernels without a transform.
//!
//! 2 · `kernel_len` flops per output on vectors of outputs: the tap is broadcast, the inputs are read at every offset, most of them across a
//! cache line. One load per multiply-add, so half the multiply-add rate at best. Measured at 16384
//! elements against windows of 2048: 1.3 times faster at 32 taps, 1.3 times slower at 64.

use super::lanes::{Job, Lanes, dispatch};
use super::share::{Gates, Shared, check, share};
use crate::error::{length, product};
use crate::{Isa, KernelError};

const NAME: &str = "direct convolution";
/// Outputs of a tile: with its history it stays in L1.
const TILE: usize = 2048;
/// Vectors of outputs that walk together.
const VECTORS: usize = 8;

/// Causal convolution with short kernels, straight from the definition; every output is one chain of multiply-adds over ascending
/// taps.
#[derive(Debug)]
pub struct DirectConv {
    heads: usize,
    kernel_len: usize,
    kernel: Vec<f32>,
}

impl DirectConv {
    /// Copies `kernel[heads, kernel_len]`.
    ///
    /// # Errors
    /// [`KernelError::Length`], [`KernelError::TooLarge`].
    pub fn new(kernel: &[f32], heads: usize, kernel_len: usize) -> Result<Self, KernelError> {
        length(NAME, "kernel", product(NAME, heads, kernel_len)?, kernel.len())?;
        Ok(Self { heads, kernel_len, kernel: kernel.to_vec() })
    }

    /// Floats of scratch on `threads` threads; with less, fewer threads work.
    pub fn scratch_len(&self, threads: usize) -> usize {
        threads.max(1).saturating_mul(2 * TILE + self.kernel_len)
    }

    /// `y = (u · input gate) * kernel · output gate`; `u`, `y` and gates are `[batch, heads, len]`.
    ///
    /// # Errors
    /// [`KernelError::Length`] when a slice does not have its shape or `scratch` is shorter than `scratch_len(1)`.
    pub fn forward(
        &self,
        u: &[f32],
        batch: usize,
        len: usize,
        gates: Gates<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), u, batch, len, gates, y, scratch)
    }

    /// [`DirectConv::forward`] on a chosen path.
    ///
    /// # Errors
    /// As there, and [`KernelError::Isa`].
    #[allow(clippy::too_many_arguments, reason = "those of forward and the path")]
    pub fn forward_with(
        &self,
        isa: Isa,
        u: &[f32],
        batch: usize,
        len: usize,
        gates: Gates<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let per = self.scratch_len(1);
        let arrays = [("u", u.len()), ("y", y.len())];
        check(NAME, isa, [batch, self.heads, len], &arrays, gates, (per, scratch.len()))?;
        let y = Shared::new(y);
        share(batch * self.heads, len, per, scratch, |units, scratch| {
            for unit in units {
                let (head, b) = (unit / batch, unit % batch);
                let start = (b * self.heads + head) * len;
                let kernel = &self.kernel[head * self.kernel_len..][..self.kernel_len];
                let (u, gate) = (&u[start..][..len], gates.input(start, len));
                // SAFETY: each unit is another row, and each is visited by one task.
                let y = unsafe { y.part(start, len) };
                dispatch(isa, Row { kernel, u, gate, y, gate_out: gates.output(start, len), scratch });
            }
        });
        Ok(())
    }
}

struct Row<'a> {
    kernel: &'a [f32],
    u: &'a [f32],
    gate: &'a [f32],
    y: &'a mut [f32],
    gate_out: &'a [f32],
    scratch: &'a mut [f32],
}

impl Job for Row<'_> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let Self { kernel, u, gate, y, gate_out, scratch } = self;
        let history = kernel.len().saturating_sub(1);
        let (tile, out) = scratch.split_at_mut(history + TILE);
        for from in (0..u.len()).step_by(TILE) {
            let len = TILE.min(u.len() - from);
            // The history of the first tile is zeros.
            let known = history.min(from);
            tile[..history - known].fill(0.0);
            tile[history - known..history + len].copy_from_slice(&u[from - known..from + len]);
            if !gate.is_empty() {
                let gates = &gate[from - known..from + len];
                tile[history - known..].iter_mut().zip(gates).for_each(|(v, g)| *v *= g);
            }
            tile[history + len..].fill(0.0);
            for at in (0..len).step_by(VECTORS * W) {
                let mut sums = [l.splat(0.0); VECTORS];
                for (j, tap) in kernel.iter().enumerate() {
                    let tap = l.splat(*tap);
                    let inputs = &tile[at + history - j..][..VECTORS * W];
                    for (sum, v) in sums.iter_mut().zip(inputs.as_chunks::<W>().0) {
                        *sum = l.fma(tap, l.load(v), *sum);
                    }
                }
                for (sum, out) in sums.iter().zip(out[at..][..VECTORS * W].as_chunks_mut::<W>().0) {
                    l.store(*sum, out);
                }
            }
            let y = &mut y[from..from + len];
            y.copy_from_slice(&out[..len]);
            if !gate_out.is_empty() {
                y.iter_mut().zip(&gate_out[from..from + len]).for_each(|(v, g)| *v *= g);
            }
        }
    }
}
