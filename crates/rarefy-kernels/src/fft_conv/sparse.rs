//! Convolution with a kernel whose spectrum is zero in blocks.
//!
//! Two rows of the batch are the real and imaginary parts of one cyclic transform of `N ≥ 2 len` points; as kernel and mask are
//! real, they do not mix. What is kept is chosen by digits of the frequency: the residue modulo the first radix `R₁` names one of the
//! `R₁` sub-transforms, so dropping residues skips everything between the first stage and the last for them; the highest
//! digit names one of 16 outputs of the innermost codelet, so a low-pass prunes that codelet, the product and the way back.
//!
//! Measured against the dense [`super::LongConv`] (one and two threads): residues with 72 to 88 % zeros 1.3 to 2.8 times faster, least at
//! 65536 elements, where this form outgrows L2 and the folded one does not; the low-pass 0.6 to 1.1 times. A low-pass cannot gain much: exact
//! transforms of `K` out of `N` outputs cost `N log K` instead of `N log N`.
//!
//! A filter that is short in frequency is long in time: the result wraps around at `N`, exactly as with the masked full transform.

use super::block::{Middle, Parts, Spectrum};
use super::long::prepare;
use super::pass::{Input, Kept, Output, transform};
use super::plan::Plan;
use super::share::{Gates, SLACK, Shared, aligned, check, share};
use crate::error::{length, product};
use crate::{AlignedBuf, Isa, KernelError};

const NAME: &str = "frequency-sparse convolution";

/// Which frequencies of the `N`-point spectrum are kept; always as many positive as negative ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrequencyMask {
    /// Frequencies `|f| < N / 16 · low_sixteenths`: 1, 2, 4 or 8 (all).
    pub low_sixteenths: usize,
    /// Bit `r`: frequencies `f ≡ r` modulo [`FrequencySparseConv::radix`].
    pub residues: u32,
}

impl FrequencyMask {
    /// Everything.
    pub const ALL: Self = Self { low_sixteenths: 8, residues: u32::MAX };

    /// The lowest frequencies only; 2 sixteenths on each side leave a quarter.
    pub fn low_pass(low_sixteenths: usize) -> Self {
        Self { low_sixteenths, ..Self::ALL }
    }

    /// The residues nearest to zero: `kept` positive, as many negative, and zero itself.
    pub fn residues_within(kept: usize, radix: usize) -> Self {
        let near = (0..radix.min(32)).filter(|r| *r <= kept || radix - r <= kept);
        Self { residues: near.fold(0, |bits, r| bits | 1 << r), ..Self::ALL }
    }

    /// True when frequency `f` of `points` is kept.
    pub fn keeps(&self, f: usize, points: usize, radix: usize) -> bool {
        let low = self.low_sixteenths >= 8 || f.min(points - f) < points / 16 * self.low_sixteenths;
        low && self.residues >> (f % radix) & 1 == 1
    }
}

/// Causal convolution with the masked spectrum of a kernel per head.
#[derive(Debug)]
pub struct FrequencySparseConv {
    heads: usize,
    len: usize,
    plan: Plan,
    kept: Kept,
    mask: FrequencyMask,
    spectra: AlignedBuf<f32>,
}

impl FrequencySparseConv {
    /// Prepares `kernel[heads, kernel_len]` for rows of `len`. Taps beyond `len` have no effect.
    ///
    /// # Errors
    /// [`KernelError::Setting`] for a mask that is not symmetric or no allowed low-pass; [`KernelError::Length`],
    /// [`KernelError::TooLarge`].
    pub fn new(
        kernel: &[f32],
        heads: usize,
        kernel_len: usize,
        len: usize,
        mask: FrequencyMask,
    ) -> Result<Self, KernelError> {
        length(NAME, "kernel", product(NAME, heads, kernel_len)?, kernel.len())?;
        let setting = |field, value: String, allowed| KernelError::Setting { field, value, allowed };
        if !matches!(mask.low_sixteenths, 1 | 2 | 4 | 8) {
            return Err(setting("low_sixteenths", mask.low_sixteenths.to_string(), "1, 2, 4 or 8"));
        }
        let plan = Plan::paired(len)?;
        let radix = plan.first.radix;
        let kept = |r: usize| mask.residues >> r & 1;
        if (0..radix).any(|r| kept(r) != kept((radix - r) % radix)) {
            let allowed = "residues r and radix - r both kept or both dropped";
            return Err(setting("residues", format!("{:#b}", mask.residues), allowed));
        }
        let mut spectra = AlignedBuf::zeroed(product(NAME, heads, 2 * plan.n)?);
        prepare(&plan, kernel, kernel_len, kernel_len.min(len), &mut spectra);
        for part in spectra.as_mut_slice().chunks_exact_mut(plan.n) {
            for (p, v) in part.iter_mut().enumerate() {
                if !mask.keeps(plan.frequency(p), plan.n, radix) {
                    *v = 0.0;
                }
            }
        }
        let kept = Kept { rows: mask.residues, columns: mask.low_sixteenths };
        Ok(Self { heads, len, plan, kept, mask, spectra })
    }

    /// `N`, the points of the transform.
    pub fn points(&self) -> usize {
        self.plan.n
    }

    /// `R₁`, the number of residues of a mask, for rows of `len`.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`].
    pub fn radix(len: usize) -> Result<usize, KernelError> {
        Ok(Plan::paired(len)?.first.radix)
    }

    /// Fraction of the spectrum that is zero.
    pub fn sparsity(&self) -> f64 {
        let kept = (0..self.plan.n).filter(|f| self.mask.keeps(*f, self.plan.n, self.plan.first.radix));
        1.0 - kept.count() as f64 / self.plan.n as f64
    }

    /// Floats of scratch on `threads` threads; with less, fewer threads work.
    pub fn scratch_len(&self, threads: usize) -> usize {
        threads.max(1).saturating_mul(2 * self.plan.work() + SLACK)
    }

    /// `y = (u · input gate) * masked kernel · output gate`; `u`, `y` and gates are `[batch, heads, len]`.
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

    /// [`FrequencySparseConv::forward`] on a chosen path.
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
        let (n, len, pairs) = (self.plan.n, self.len, batch.div_ceil(2));
        let y = Shared::new(y);
        share(self.heads * pairs, 2 * len, per, scratch, |units, scratch| {
            let mut work = Parts::of(&mut aligned(scratch)[..2 * self.plan.work()]);
            for unit in units {
                let (head, b) = (unit / pairs, unit % pairs * 2);
                let row = |b: usize| ((b * self.heads + head) * len, if b < batch { len } else { 0 });
                let ((a, a_len), (c, c_len)) = (row(b), row(b + 1));
                let c = c.min(u.len());
                let input = Input {
                    lo: &u[a..a + a_len],
                    hi: &u[c..c + c_len],
                    gate_lo: gates.input(a, a_len),
                    gate_hi: gates.input(c, c_len),
                };
                // SAFETY: the rows of different units differ, each unit belongs to one task, and the two rows are disjoint.
                let (lo, hi) = unsafe { (y.part(a, a_len), y.part(c, c_len)) };
                let (gate_lo, gate_hi) = (gates.output(a, a_len), gates.output(c, c_len));
                let output = Output { lo, hi, gate_lo, gate_hi };
                let spectrum = Spectrum::of(&self.spectra.as_slice()[head * 2 * n..][..2 * n]);
                transform(isa, &self.plan, input, Middle::Multiply(spectrum), self.kept, output, &mut work);
            }
        });
        Ok(())
    }
}
