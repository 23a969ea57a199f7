//! Gradients of the long convolution.
//!
//! With `U`, `D` the transforms of the gated inputs and of the gated gradient, `du` is the inverse of `D · conj(K)`, and `dk` that of
//! `Σ_b D · conj(U)`: correlations, whose negative lags wrap to the far end of the row, where nothing is read. `U` is computed again
//! instead of being kept from the forward pass: a transform costs less than the memory of `8 len` bytes per row.

use super::block::{Middle, Parts, accumulate, multiply};
use super::long::{LongConv, NAME, input, output};
use super::pass::{Input, Kept, Output, transform};
use super::share::{Gates, SLACK, Shared, aligned, check, share};
use crate::error::{length, product};
use crate::{Isa, KernelError};

/// Where [`LongConv::backward`] writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Of `u`: `[batch, heads, len]`.
    pub u: &'a mut [f32],
    /// Of the kernel: `[heads, kernel_len]`, summed over the batch in order.
    pub kernel: &'a mut [f32],
    /// Of the input gate, when wanted.
    pub input_gate: Option<&'a mut [f32]>,
    /// Of the output gate, when wanted.
    pub output_gate: Option<&'a mut [f32]>,
}

impl LongConv {
    /// Floats of scratch for [`LongConv::backward`] on `threads` threads; with less, fewer threads work.
    pub fn backward_scratch_len(&self, threads: usize) -> usize {
        threads.max(1).saturating_mul(6 * self.plan.work() + SLACK)
    }

    /// Gradients from `dy`, the gradient of the result of [`LongConv::forward`] on the same `u` and `gates`.
    ///
    /// # Errors
    /// [`KernelError::Length`] when a slice does not have its shape or `scratch` is shorter than `backward_scratch_len(1)`.
    pub fn backward(
        &self,
        dy: &[f32],
        u: &[f32],
        batch: usize,
        gates: Gates<'_>,
        gradients: Gradients<'_>,
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        self.backward_with(Isa::detect(), dy, u, batch, gates, gradients, scratch)
    }

    /// [`LongConv::backward`] on a chosen path.
    ///
    /// # Errors
    /// As there, and [`KernelError::Isa`].
    #[allow(clippy::too_many_arguments, reason = "those of backward and the path")]
    pub fn backward_with(
        &self,
        isa: Isa,
        dy: &[f32],
        u: &[f32],
        batch: usize,
        gates: Gates<'_>,
        gradients: Gradients<'_>,
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let Gradients { u: du, kernel: dk, input_gate, output_gate } = gradients;
        let per = self.backward_scratch_len(1);
        let gate = |g: &Option<&mut [f32]>| ("gate gradient", g.as_ref().map_or(dy.len(), |g| g.len()));
        let arrays =
            [("dy", dy.len()), ("u", u.len()), ("du", du.len()), gate(&input_gate), gate(&output_gate)];
        check(NAME, isa, [batch, self.heads, self.len], &arrays, gates, (per, scratch.len()))?;
        length(NAME, "dk", product(NAME, self.heads, self.kernel_len)?, dk.len())?;

        let (du, dk) = (Shared::new(du), Shared::new(dk));
        let d_in = input_gate.map(Shared::new);
        let d_out = output_gate.map(Shared::new);
        let work = self.plan.work();
        // Also without elements each head has a gradient: zero.
        share(self.heads, batch.saturating_mul(2 * self.len).max(1), per, scratch, |heads, scratch| {
            let scratch = &mut aligned(scratch)[..6 * work];
            let (sum, rest) = scratch.split_at_mut(2 * work);
            let (a, b) = rest.split_at_mut(2 * work);
            let (mut a, mut b) = (Parts::of(a), Parts::of(b));
            for head in heads {
                sum.fill(0.0);
                let mut sum = Parts::of(sum);
                for row in 0..batch {
                    let start = (row * self.heads + head) * self.len;
                    // SAFETY (all three): each row belongs to one head, and each head to one task.
                    let du = unsafe { du.part(start, self.len) };
                    let d_in = d_in.as_ref().map(|s| unsafe { s.part(start, self.len) });
                    let d_out = d_out.as_ref().map(|s| unsafe { s.part(start, self.len) });
                    let (u, dy) = (&u[start..][..self.len], &dy[start..][..self.len]);
                    let (g_in, g_out) = (gates.input(start, self.len), gates.output(start, self.len));
                    self.spectrum_of(isa, u, g_in, &mut a);
                    self.spectrum_of(isa, dy, g_out, &mut b);
                    accumulate(isa, sum.again(), &b, &a);
                    if let Some(d_out) = d_out {
                        multiply(isa, &self.plan, &mut a, self.spectrum(head), false);
                        self.back(isa, d_out, &mut a);
                        d_out.iter_mut().zip(dy).for_each(|(d, dy)| *d *= dy);
                    }
                    multiply(isa, &self.plan, &mut b, self.spectrum(head), true);
                    self.back(isa, du, &mut b);
                    if let Some(d_in) = d_in {
                        d_in.iter_mut().zip(du.iter().zip(u)).for_each(|(d, (du, u))| *d = du * u);
                    }
                    du.iter_mut().zip(g_in).for_each(|(du, g)| *du *= g);
                }
                // SAFETY: each head belongs to one task.
                let dk = unsafe { dk.part(head * self.kernel_len, self.kernel_len) };
                let (taps, beyond) = dk.split_at_mut(self.kernel_len.min(self.len));
                beyond.fill(0.0);
                self.back(isa, taps, &mut sum);
                let scale = 1.0 / self.plan.n as f32;
                taps.iter_mut().for_each(|t| *t *= scale);
            }
        });
        Ok(())
    }

    fn spectrum_of(&self, isa: Isa, row: &[f32], gate: &[f32], work: &mut Parts<'_>) {
        let input = input(row, gate, self.plan.n);
        transform(isa, &self.plan, input, Middle::Keep, Kept::ALL, Output::default(), work);
    }

    fn back(&self, isa: Isa, row: &mut [f32], work: &mut Parts<'_>) {
        let output = output(row, &[], self.plan.n);
        transform(isa, &self.plan, Input::default(), Middle::Back, Kept::ALL, output, work);
    }
}
