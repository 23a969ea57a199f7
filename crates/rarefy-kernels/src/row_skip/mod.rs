//! MLPs that skip the rows of idle neurons.
//!
//! A weight is stored with one contiguous row per neuron: gate and up projections as models store them, the down
//! projection transposed. A neuron that an activity rule calls idle is not read at all. [`GatedMlp`] serves CATS, ReLU gates
//! and the thresholds of the sparsing law, [`ReluMlp`] and [`SkipLinear`] the lazy neurons of a two-layer MLP.
//!
//! # Same bits
//! Neurons are cut into at most 16 runs that depend on the layer only, each run sums its neurons in ascending order into its own
//! copy of `y`, and the copies are added in order. So the result of a token depends neither on threads nor on the
//! other tokens of the call, and skipping gives the bits of the dense evaluation with the same activations set to
//! zero (finite weights and products; the rows of idle neurons have no effect even when they are not finite, unless another
//! token of the call needs them).

mod gated;
pub mod oracle;
mod relu;
mod rule;

pub use gated::GatedMlp;
pub use relu::{ReluMlp, SkipLinear};
pub use rule::{Activation, Activity, silu};

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::error::{length, product};
use crate::lanes::{Lanes, RowValue};
use crate::rowwise::{Ahead, axpys, split};
use crate::{AlignedBuf, KernelError};

/// Tokens that share one reading of a row, at most: sixteen accumulators of the 32 registers, with four rows.
pub(crate) const MAX_TOKENS: usize = 4;
/// Runs of neurons, at most: enough to keep a few threads evenly busy, few enough copies of `y`.
const MAX_RUNS: usize = 16;
const MIN_RUN: usize = 64;
/// Products below which a second thread is not worth waking (about 10 µs of work).
const MIN_PRODUCTS: usize = 1 << 18;

/// One contiguous row per neuron.
#[derive(Debug)]
pub(crate) struct Rows<T: RowValue> {
    pub(crate) data: AlignedBuf<T>,
    pub(crate) width: usize,
}

impl<T: RowValue> Rows<T> {
    /// `w[rows, width]` as it is.
    fn new(
        kernel: &'static str,
        array: &'static str,
        w: &[T],
        rows: usize,
        width: usize,
    ) -> Result<Self, KernelError> {
        length(kernel, array, product(kernel, rows, width)?, w.len())?;
        Ok(Self { data: AlignedBuf::from_slice(w), width })
    }

    /// The transpose of `w[width, rows]`.
    fn transposed(
        kernel: &'static str,
        array: &'static str,
        w: &[T],
        rows: usize,
        width: usize,
    ) -> Result<Self, KernelError> {
        length(kernel, array, product(kernel, rows, width)?, w.len())?;
        let mut data = AlignedBuf::zeroed(w.len());
        let out = data.as_mut_slice();
        // Squares of 16: whole cache lines on both sides.
        for r0 in (0..rows).step_by(16) {
            for c0 in (0..width).step_by(16) {
                for c in c0..width.min(c0 + 16) {
                    for r in r0..rows.min(r0 + 16) {
                        out[r * width + c] = w[c * rows + r];
                    }
                }
            }
        }
        Ok(Self { data, width })
    }

    #[inline(always)]
    fn row(&self, i: usize) -> &[T] {
        &self.data.as_slice()[i * self.width..(i + 1) * self.width]
    }

    #[inline(always)]
    fn four(&self, list: &[u32; 4]) -> [&[T]; 4] {
        list.map(|i| self.row(i as usize))
    }
}

/// The rows after group `g` of `groups`, for prefetching; the last group names itself.
#[inline(always)]
fn following<T: RowValue>(rows: &Rows<T>, groups: &[[u32; 4]], g: usize) -> [*const T; 4] {
    groups[(g + 1).min(groups.len() - 1)].map(|i| rows.row(i as usize).as_ptr())
}

/// How the neurons of a layer are cut into runs, and what each run needs.
#[derive(Debug, Clone, Copy)]
struct Plan {
    neurons: usize,
    run: usize,
    d_out: usize,
    /// Products of one token when nothing is skipped.
    products: usize,
}

impl Plan {
    fn new(neurons: usize, d_out: usize, products: usize) -> Self {
        let runs = (neurons / MIN_RUN).clamp(1, MAX_RUNS);
        Self { neurons, run: neurons.div_ceil(runs), d_out, products }
    }

    fn runs(&self) -> usize {
        self.neurons.div_ceil(self.run.max(1))
    }

    /// Scratch of one run for `m` tokens: activations `[m][run]`, the list of active neurons, the private `y[m][d_out]`.
    fn stride(&self, m: usize) -> usize {
        self.run.saturating_mul(m + 1).saturating_add(self.d_out.saturating_mul(m))
    }

    fn scratch_len(&self, n: usize) -> usize {
        self.stride(n.min(MAX_TOKENS)).saturating_mul(self.runs())
    }

    /// Runs `work(first neuron, neurons, tokens' offset, m, parts of scratch)` for all runs and groups of tokens, and sums into `y`
    /// on top of `bias`. `work` returns the number of rows it read; the sum is returned.
    fn drive(
        &self,
        n: usize,
        bias: Option<&[f32]>,
        y: &mut [f32],
        scratch: &mut [f32],
        work: &(impl Fn(usize, usize, usize, usize, Parts<'_>) -> usize + Sync),
    ) -> usize {
        let mut active = 0;
        for first in (0..n).step_by(MAX_TOKENS) {
            let m = MAX_TOKENS.min(n - first);
            let y = &mut y[first * self.d_out..(first + m) * self.d_out];
            for y in y.chunks_exact_mut(self.d_out.max(1)) {
                match bias {
                    Some(bias) => y.copy_from_slice(bias),
                    None => y.fill(0.0),
                }
            }
            if self.neurons == 0 || self.d_out == 0 {
                continue;
            }
            let stride = self.stride(m);
            let scratch = &mut scratch[..stride * self.runs()];
            let one = |k: usize, scratch: &mut [f32]| {
                let begin = k * self.run;
                let count = self.run.min(self.neurons - begin);
                let (h, rest) = scratch.split_at_mut(m * self.run);
                let (list, own) = rest.split_at_mut(self.run);
                own.fill(0.0);
                let parts = Parts { h: &mut h[..m * count], list: bytemuck::cast_slice_mut(list), y: own };
                work(begin, count, first, m, parts)
            };
            active += if rayon::current_num_threads() > 1 && self.products.saturating_mul(m) >= MIN_PRODUCTS {
                scratch
                    .par_chunks_exact_mut(stride)
                    .enumerate()
                    .with_max_len(1)
                    .map(|(k, s)| one(k, s))
                    .sum::<usize>()
            } else {
                scratch.chunks_exact_mut(stride).enumerate().map(|(k, s)| one(k, s)).sum()
            };
            for own in scratch.chunks_exact(stride) {
                for (y, v) in y.iter_mut().zip(&own[(m + 1) * self.run..]) {
                    *y += v;
                }
            }
        }
        active
    }
}

/// The scratch of one run.
struct Parts<'a> {
    /// `[m][count]`: activations, zero where idle.
    h: &'a mut [f32],
    /// Room for the active neurons.
    list: &'a mut [u32],
    /// `[m][d_out]`, zero.
    y: &'a mut [f32],
}

/// Writes the neurons `0..count` with any non-zero (or NaN) activation to `list`, ascending, numbered from `begin`; returns how many.
///
/// A branch on random activity is mispredicted half the time; this loop has none.
#[inline(always)]
fn compact<const N: usize>(h: &[f32], count: usize, begin: usize, list: &mut [u32]) -> usize {
    let rows: [&[f32]; N] = std::array::from_fn(|t| &h[t * count..(t + 1) * count]);
    let list = &mut list[..count];
    let mut found = 0;
    for i in 0..count {
        list[found.min(count - 1)] = (begin + i) as u32;
        found += usize::from(rows.iter().any(|r| r[i] != 0.0));
    }
    found
}

/// `y[t] += Σ h[t][i] · w[i]` over the listed neurons.
#[inline(always)]
fn add_listed<L: Lanes, T: RowValue, const N: usize>(
    l: L,
    w: &Rows<T>,
    list: &[u32],
    begin: usize,
    count: usize,
    h: &[f32],
    y: &mut [f32],
) {
    let mut y = split::<N>(y, w.width);
    let (groups, rest) = list.as_chunks::<4>();
    for (g, four) in groups.iter().enumerate() {
        let rows = w.four(four);
        let c: [[f32; 4]; N] = std::array::from_fn(|t| four.map(|i| h[t * count + i as usize - begin]));
        axpys(l, rows, &c, &mut y, Ahead::new(rows, following(w, groups, g)));
    }
    for i in rest {
        let row = [w.row(*i as usize)];
        let c: [[f32; 1]; N] = std::array::from_fn(|t| [h[t * count + *i as usize - begin]]);
        axpys(l, row, &c, &mut y, Ahead::new(row, [row[0].as_ptr()]));
    }
}
