//! The whole row in one transform.

use super::block::{Middle, Parts, Spectrum};
use super::pass::{Input, Kept, Output, transform};
use super::plan::Plan;
use super::share::{Gates, SLACK, Shared, aligned, check, halves, halves_mut, share};
use crate::error::{length, product};
use crate::{AlignedBuf, Isa, KernelError};

pub(super) const NAME: &str = "long convolution";

/// Causal convolution of rows of one length with a kernel per head, `y[b, h, n] = Σ_j kernel[h, j] · u[b, h, n - j]`.
///
/// The kernel's spectrum is computed once; a call reads `u` and writes `y` once.
#[derive(Debug)]
pub struct LongConv {
    pub(super) heads: usize,
    pub(super) kernel_len: usize,
    pub(super) len: usize,
    pub(super) plan: Plan,
    /// `[heads][re, im][n]`, divided by `n`.
    spectra: AlignedBuf<f32>,
}

impl LongConv {
    /// Prepares `kernel[heads, kernel_len]` for rows of `len` elements. Taps beyond `len` have no effect.
    ///
    /// # Errors
    /// [`KernelError::Length`] when `kernel` does not have this shape, [`KernelError::TooLarge`].
    pub fn new(kernel: &[f32], heads: usize, kernel_len: usize, len: usize) -> Result<Self, KernelError> {
        let taps = kernel_len.min(len);
        let span = len.checked_add(taps).ok_or(KernelError::TooLarge { kernel: NAME, a: len, b: 2 })?;
        let plan = Plan::folded(span.saturating_sub(1))?;
        let size = product(NAME, heads, 2 * plan.n)?;
        let mut conv = Self { heads, kernel_len, len, spectra: AlignedBuf::zeroed(size), plan };
        conv.set_kernel(kernel)?;
        Ok(conv)
    }

    /// Replaces the kernel by another of the same shape (while training).
    ///
    /// # Errors
    /// [`KernelError::Length`].
    pub fn set_kernel(&mut self, kernel: &[f32]) -> Result<(), KernelError> {
        length(NAME, "kernel", product(NAME, self.heads, self.kernel_len)?, kernel.len())?;
        let taps = self.kernel_len.min(self.len);
        prepare(&self.plan, kernel, self.kernel_len, taps, &mut self.spectra);
        Ok(())
    }

    /// Heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Taps of a kernel.
    pub fn kernel_len(&self) -> usize {
        self.kernel_len
    }

    /// Elements of a row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when rows have no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Complex points of the transform.
    pub fn points(&self) -> usize {
        self.plan.n
    }

    /// Bytes of the spectra and tables.
    pub fn bytes(&self) -> usize {
        self.spectra.bytes() + self.plan.bytes()
    }

    /// Floats of scratch for [`LongConv::forward`] on `threads` threads; with less, fewer threads work.
    pub fn scratch_len(&self, threads: usize) -> usize {
        threads.max(1).saturating_mul(2 * self.plan.work() + SLACK)
    }

    pub(super) fn spectrum(&self, head: usize) -> Spectrum<'_> {
        Spectrum::of(&self.spectra.as_slice()[head * 2 * self.plan.n..][..2 * self.plan.n])
    }

    /// `y = (u · input gate) * kernel · output gate`; `u`, `y` and gates are `[batch, heads, len]`.
    ///
    /// # Errors
    /// [`KernelError::Length`] when a slice does not have its shape or `scratch` is shorter than `scratch_len(1)`.
    pub fn forward(
        &self,
        u: &[f32],
        batch: usize,
        gates: Gates<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), u, batch, gates, y, scratch)
    }

    /// [`LongConv::forward`] on a chosen path.
    ///
    /// # Errors
    /// As there, and [`KernelError::Isa`].
    pub fn forward_with(
        &self,
        isa: Isa,
        u: &[f32],
        batch: usize,
        gates: Gates<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let per = self.scratch_len(1);
        let arrays = [("u", u.len()), ("y", y.len())];
        check(NAME, isa, [batch, self.heads, self.len], &arrays, gates, (per, scratch.len()))?;
        let (n, len) = (self.plan.n, self.len);
        let y = Shared::new(y);
        // Heads outermost: a spectrum is read once from memory and serves the whole batch from the cache.
        share(batch * self.heads, len, per, scratch, |units, scratch| {
            let mut work = Parts::of(&mut aligned(scratch)[..2 * self.plan.work()]);
            for unit in units {
                let (head, b) = (unit / batch, unit % batch);
                let start = (b * self.heads + head) * len;
                let input = input(&u[start..start + len], gates.input(start, len), n);
                // SAFETY: each unit is another row, and each is visited by one task.
                let row = unsafe { y.part(start, len) };
                let output = output(row, gates.output(start, len), n);
                let middle = Middle::Multiply(self.spectrum(head));
                transform(isa, &self.plan, input, middle, Kept::ALL, output, &mut work);
            }
        });
        Ok(())
    }
}

/// A row as two halves of `n`.
pub(super) fn input<'a>(row: &'a [f32], gate: &'a [f32], n: usize) -> Input<'a> {
    let ((lo, hi), (gate_lo, gate_hi)) = (halves(row, n), halves(gate, n));
    Input { lo, hi, gate_lo, gate_hi }
}

/// A row as two halves of `n`.
pub(super) fn output<'a>(row: &'a mut [f32], gate: &'a [f32], n: usize) -> Output<'a> {
    let ((lo, hi), (gate_lo, gate_hi)) = (halves_mut(row, n), halves(gate, n));
    Output { lo, hi, gate_lo, gate_hi }
}

/// The spectra of the first `taps` of each kernel, divided by `n`, in the order of the transform.
pub(super) fn prepare(
    plan: &Plan,
    kernel: &[f32],
    kernel_len: usize,
    taps: usize,
    spectra: &mut AlignedBuf<f32>,
) {
    let mut work = vec![0.0; 2 * plan.work()];
    let mut work = Parts::of(&mut work);
    let scale = 1.0 / plan.n as f32;
    for (head, out) in spectra.as_mut_slice().chunks_exact_mut(2 * plan.n).enumerate() {
        let kernel = &kernel[head * kernel_len..][..taps];
        let input = if plan.folded { input(kernel, &[], plan.n) } else { input(kernel, &[], usize::MAX) };
        transform(Isa::detect(), plan, input, Middle::Keep, Kept::ALL, Output::default(), &mut work);
        let (re, im) = out.split_at_mut(plan.n);
        for (out, part) in [(re, &work.re), (im, &work.im)] {
            let rows = part.chunks_exact(plan.pitch);
            for (out, row) in out.chunks_exact_mut(plan.first.m).zip(rows) {
                out.iter_mut().zip(row).for_each(|(o, v)| *o = v * scale);
            }
        }
    }
}
