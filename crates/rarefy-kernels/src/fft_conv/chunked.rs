//! A short kernel over rows of any length, in chunks.
//!
//! Overlap-save on the folded transform: a window of `2 n` real elements holds `chunk` new ones and the `kernel_len - 1` before them. Since
//! the product is taken modulo `x^{2n} + 1`, the history sits, negated, at the end of the window, where negative indices are;
//! then the first `chunk` results are the outputs, written straight to their place. Memory is that of one window whatever the row.

use super::block::{Middle, Parts, Spectrum};
use super::long::{output, prepare};
use super::pass::{Input, Kept, transform};
use super::plan::Plan;
use super::share::{Gates, SLACK, Shared, aligned, check, halves, share};
use crate::error::{length, product};
use crate::{AlignedBuf, Isa, KernelError};

const NAME: &str = "chunked convolution";

/// Causal convolution with kernels of `kernel_len` taps over rows of any length ("partial convolution").
#[derive(Debug)]
pub struct ChunkedConv {
    heads: usize,
    kernel_len: usize,
    plan: Plan,
    spectra: AlignedBuf<f32>,
}

impl ChunkedConv {
    /// Prepares `kernel[heads, kernel_len]`, with windows of four to eight kernels.
    ///
    /// # Errors
    /// [`KernelError::Length`], [`KernelError::TooLarge`].
    pub fn new(kernel: &[f32], heads: usize, kernel_len: usize) -> Result<Self, KernelError> {
        Self::with_window(kernel, heads, kernel_len, kernel_len.saturating_mul(4).max(2048))
    }

    /// With windows of at least `window` elements (rounded up to a power of two, at least 512 and two kernels).
    ///
    /// # Errors
    /// As [`ChunkedConv::new`].
    pub fn with_window(
        kernel: &[f32],
        heads: usize,
        kernel_len: usize,
        window: usize,
    ) -> Result<Self, KernelError> {
        length(NAME, "kernel", product(NAME, heads, kernel_len)?, kernel.len())?;
        let plan = Plan::folded(window.max(product(NAME, kernel_len, 2)?))?;
        let mut spectra = AlignedBuf::zeroed(product(NAME, heads, 2 * plan.n)?);
        prepare(&plan, kernel, kernel_len, kernel_len, &mut spectra);
        Ok(Self { heads, kernel_len, plan, spectra })
    }

    /// New elements per window.
    pub fn chunk(&self) -> usize {
        self.plan.span() - self.kernel_len.saturating_sub(1)
    }

    /// Bytes of the spectra and tables.
    pub fn bytes(&self) -> usize {
        self.spectra.bytes() + self.plan.bytes()
    }

    /// Floats of scratch on `threads` threads; with less, fewer threads work.
    pub fn scratch_len(&self, threads: usize) -> usize {
        threads.max(1).saturating_mul(2 * self.plan.work() + self.plan.n + SLACK)
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

    /// [`ChunkedConv::forward`] on a chosen path.
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
        let (n, chunk) = (self.plan.n, self.chunk());
        let chunks = len.div_ceil(chunk);
        let y = Shared::new(y);
        share(batch * self.heads * chunks, chunk, per, scratch, |units, scratch| {
            let (work, high) =
                aligned(scratch)[..2 * self.plan.work() + n].split_at_mut(2 * self.plan.work());
            let mut work = Parts::of(work);
            for unit in units {
                // Heads outermost, so that a spectrum stays in the cache.
                let (head, b, c) = (unit / chunks / batch, unit / chunks % batch, unit % chunks);
                let row = (b * self.heads + head) * len;
                let (from, to) = (c * chunk, (c * chunk + chunk).min(len));
                let (new, gate) = (&u[row + from..row + to], gates.input(row + from, to - from));
                let ((lo, hi), (gate_lo, gate_hi)) = (halves(new, n), halves(gate, n));
                let high = self
                    .high(high, hi, gate_hi, from, |i| u[row + i] * gates.input.map_or(1.0, |g| g[row + i]));
                let input = Input { lo, hi: high, gate_lo, gate_hi: &[] };
                // SAFETY: the chunks of all rows are disjoint, and each is one unit of one task.
                let out = unsafe { y.part(row + from, to - from) };
                let output = output(out, gates.output(row + from, to - from), n);
                let spectrum = Spectrum::of(&self.spectra.as_slice()[head * 2 * n..][..2 * n]);
                transform(isa, &self.plan, input, Middle::Multiply(spectrum), Kept::ALL, output, &mut work);
            }
        });
        Ok(())
    }

    /// The second half of a window: the rest of the new elements, zeros, and the negated history. Empty when all zero.
    fn high<'a>(
        &self,
        buffer: &'a mut [f32],
        new: &[f32],
        gate: &[f32],
        from: usize,
        old: impl Fn(usize) -> f32,
    ) -> &'a [f32] {
        if from == 0 && new.is_empty() {
            return &[];
        }
        let history = self.kernel_len.saturating_sub(1).min(from);
        let (start, end) = buffer.split_at_mut(self.plan.n - history);
        let (copied, zeros) = start.split_at_mut(new.len());
        copied.copy_from_slice(new);
        copied.iter_mut().zip(gate).for_each(|(v, g)| *v *= g);
        zeros.fill(0.0);
        end.iter_mut().enumerate().for_each(|(i, v)| *v = -old(from - history + i));
        buffer
    }
}
