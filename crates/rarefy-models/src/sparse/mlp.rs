//! The gated MLP with rows per neuron: one copy of the weights for the row kernel and for many tokens.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::Tensor;
use rarefy_kernels::row_skip::{Activation as Act, Activity, GatedMlp, silu};
use rarefy_kernels::{KernelError, LinearKernel, RowValue};
use rayon::prelude::*;

use super::{Counts, MlpRule};
use crate::rows::{Stored, View, by_columns, check};
use crate::tensors::{host_vec, tensor3};

/// Tokens that the row kernel takes at once; more share too many active rows.
pub(crate) const MOST_TOKENS: usize = 4;
/// Values of one task of the mask.
const CHUNK: usize = 1 << 12;

/// The rule of one block and its weights by rows.
#[derive(Debug)]
pub(crate) struct MlpRun {
    pub(crate) rule: MlpRule,
    pub(crate) activation: Act,
    pub(crate) rows: Option<Arc<dyn RowMlp>>,
    pub(crate) counts: Counts,
}

/// A gated MLP whose number type is forgotten.
pub(crate) trait RowMlp: Debug + Send + Sync {
    /// `y` and the rows of the down projection that were read.
    fn run(&self, act: Act, activity: Activity<'_>, x: &[f32], n: usize, y: &mut [f32]) -> usize;
    fn d_ff(&self) -> usize;
    fn d_out(&self) -> usize;
}

impl<T: RowValue + Stored> RowMlp for GatedMlp<T> {
    fn run(&self, act: Act, activity: Activity<'_>, x: &[f32], n: usize, y: &mut [f32]) -> usize {
        thread_local! {
            static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        // Taken out for the time of the call: a kernel that waits on the pool may let this thread start another one.
        let mut scratch = SCRATCH.take();
        scratch.resize(scratch.len().max(self.scratch_len(n)), 0.0);
        let active = self
            .forward(act, activity, x, n, y, &mut scratch)
            .expect("the lengths come from the kernel's own shape");
        SCRATCH.set(scratch);
        active
    }
    fn d_ff(&self) -> usize {
        GatedMlp::d_ff(self)
    }
    fn d_out(&self) -> usize {
        GatedMlp::d_out(self)
    }
}

impl MlpRun {
    /// The whole MLP by the row kernel, when there is one and the tokens are few; counts what it skipped.
    pub(crate) fn few(&self, x: &Tensor<3>) -> Option<Tensor<3>> {
        let [batch, length, _] = x.dims();
        let (rows, n) = (self.rows.as_ref()?, batch * length);
        let (act, activity) = match self.rule {
            _ if n > MOST_TOKENS => return None,
            MlpRule::All => (self.activation, Activity::All),
            MlpRule::Threshold(t) => (self.activation, Activity::GateAbove(t)),
            MlpRule::Relu => (Act::Relu, Activity::GateAbove(0.0)),
            MlpRule::Random { .. } => return None,
        };
        let device = x.device();
        let mut y = vec![0.0; n * rows.d_out()];
        let active = rows.run(act, activity, &host_vec(x.clone()), n, &mut y);
        self.counts.add(rows.d_ff() - active, rows.d_ff());
        Some(tensor3(y, [batch, length, rows.d_out()], &device))
    }

    /// The pre-activations of the gate to activations with those of idle neurons at zero; counts them.
    pub(crate) fn gate(&self, z: Tensor<3>) -> Tensor<3> {
        let (shape, device) = (z.dims(), z.device());
        let mut values = host_vec(z);
        let d_ff = shape[2];
        let threshold = match self.rule {
            MlpRule::Threshold(t) => Some(t),
            MlpRule::Relu => Some(0.0),
            MlpRule::All | MlpRule::Random { .. } => None,
        };
        let act = if self.rule == MlpRule::Relu { Act::Relu } else { self.activation };
        let idle = |(chunk, values): (usize, &mut [f32])| {
            let mut idle = 0;
            for (i, v) in values.iter_mut().enumerate() {
                let z = *v;
                // The function of the kernels, so that a threshold means the same here and there.
                *v = if act == Act::Relu { act.apply(z) } else { silu(z) };
                let out = match (threshold, self.rule) {
                    (Some(t), _) => v.abs() <= t,
                    (None, MlpRule::Random { share, seed }) => {
                        draw(seed, ((chunk * CHUNK + i) % d_ff) as u64, z) < share
                    }
                    _ => false,
                };
                if out {
                    *v = 0.0;
                    idle += 1;
                }
            }
            idle
        };
        let idle: usize = values.par_chunks_mut(CHUNK).enumerate().map(idle).sum();
        self.counts.add(idle, values.len());
        tensor3(values, shape, &device)
    }
}

/// A number in [0, 1) from the seed, the neuron and its own pre-activation, which differs from token to token: no state is needed and
/// the order of evaluation does not matter.
fn draw(seed: u64, neuron: u64, z: f32) -> f64 {
    let mut h = seed ^ (u64::from(z.to_bits()) << 32) ^ neuron;
    for _ in 0..2 {
        // The finaliser of SplitMix64.
        h = h.wrapping_add(0x9e37_79b9_7f4a_7c15);
        h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^= h >> 31;
    }
    (h >> 11) as f64 / (1u64 << 53) as f64
}

/// Which matrix of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Gate,
    Up,
    Down,
}

/// One matrix of the MLP as a linear layer for many tokens, in the memory of the row kernel.
#[derive(Debug)]
struct MlpPart<T: RowValue> {
    mlp: Arc<GatedMlp<T>>,
    part: Part,
    nnz: usize,
}

/// Gate, up and down projection of one MLP as linear layers that share its memory.
pub(crate) fn parts<T: RowValue + Stored>(mlp: &Arc<GatedMlp<T>>) -> [Arc<dyn LinearKernel>; 3] {
    [Part::Gate, Part::Up, Part::Down].map(|part| {
        let mut own = MlpPart { mlp: mlp.clone(), part, nnz: 0 };
        own.nnz = own.weights().iter().filter(|v| v.wide() != 0.0).count();
        Arc::new(own) as Arc<dyn LinearKernel>
    })
}

impl<T: RowValue + Stored> MlpPart<T> {
    fn weights(&self) -> &[T] {
        match self.part {
            Part::Gate => self.mlp.gate_rows(),
            Part::Up => self.mlp.up_rows(),
            Part::Down => self.mlp.down_rows(),
        }
    }
}

impl<T: RowValue + Stored> LinearKernel for MlpPart<T> {
    fn rows(&self) -> usize {
        if self.part == Part::Down { self.mlp.d_out() } else { self.mlp.d_ff() }
    }
    fn cols(&self) -> usize {
        if self.part == Part::Down { self.mlp.d_ff() } else { self.mlp.d_in() }
    }
    fn nnz(&self) -> usize {
        self.nnz
    }
    fn bytes(&self) -> usize {
        std::mem::size_of_val(self.weights())
    }
    fn name(&self) -> &'static str {
        T::NEURONS
    }
    fn scratch_len(&self, _n: usize) -> usize {
        0
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], _scratch: &mut [f32]) -> Result<(), KernelError> {
        let (name, rows, cols) = (self.name(), self.rows(), self.cols());
        let product =
            |a: usize, b: usize| a.checked_mul(b).ok_or(KernelError::TooLarge { kernel: T::NEURONS, a, b });
        check(name, "x", product(n, cols)?, x.len())?;
        check(name, "y", product(n, rows)?, y.len())?;
        if n == 0 || y.is_empty() {
            return Ok(());
        }
        if cols == 0 {
            y.fill(0.0);
        } else if self.part == Part::Down {
            by_columns(self.weights(), x, n, self.mlp.d_out(), y);
        } else {
            View { values: self.weights(), rows, cols }.forward(x, n, y);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use half::bf16;

    fn agree<T: RowValue + Stored>(narrow: impl Fn(f32) -> T) {
        let (d_in, d_ff, d_out) = (37, 90, 21);
        let w = |seed: usize, len: usize| -> Vec<T> {
            (0..len).map(|i| narrow((((i + seed) * 7919 % 997) as f32) / 500.0 - 1.0)).collect()
        };
        let (gate, up, down) = (w(1, d_ff * d_in), w(2, d_ff * d_in), w(3, d_out * d_ff));
        let mlp = Arc::new(GatedMlp::new(&gate, &up, &down, d_in, d_ff, d_out).unwrap());
        for (kernel, w) in parts(&mlp).iter().zip([&gate, &up, &down]) {
            let (rows, cols) = (kernel.rows(), kernel.cols());
            assert_eq!(rows * cols, w.len());
            for n in [0, 1, 5, 9, 30] {
                let x: Vec<f32> = (0..n * cols).map(|i| ((i * 31 % 89) as f32) / 44.0 - 1.0).collect();
                let mut y = vec![f32::NAN; n * rows];
                kernel.forward(&x, n, &mut y, &mut []).unwrap();
                for (i, y) in y.iter().enumerate() {
                    let (t, r) = (i / rows, i % rows);
                    let want: f64 = (0..cols)
                        .map(|c| f64::from(x[t * cols + c]) * f64::from(w[r * cols + c].wide()))
                        .sum();
                    assert!((f64::from(*y) - want).abs() < 1e-4, "{} {y} {want}", kernel.name());
                }
            }
            assert!(kernel.forward(&[0.0; 3], 1, &mut [0.0; 3], &mut []).is_err());
        }
    }

    #[test]
    fn the_parts_are_the_matrices() {
        agree(|v| v);
        agree(bf16::from_f32);
    }

    #[test]
    fn draws_are_even_and_repeatable() {
        let mean = (0..10_000).map(|i| draw(3, i, 0.25)).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.015, "{mean}");
        assert!((draw(3, 4, 0.25) - draw(3, 4, 0.25)).abs() < f64::EPSILON);
        assert!((draw(3, 4, 0.25) - draw(4, 4, 0.25)).abs() > 0.0);
    }
}
