//! The gated MLP of Llama-like models, `y = W_down (act(W_gate x) · (W_up x))`.

use super::{Activation, Activity, Parts, Plan, Rows, add_listed, compact, following};
use crate::error::{at_least, length, product};
use crate::lanes::{Job, Lanes, RowValue, dispatch};
use crate::rowwise::{Ahead, axpys, dots, split};
use crate::{Isa, KernelError};

const NAME: &str = "gated-mlp";

/// Gate, up and down projection with one contiguous row per neuron; f32 or bf16 weights, f32 sums.
///
/// # Roofline
/// Per token and neuron the gate row (`d_in` weights) is always read, the up and down rows (`d_in + d_out`) only if the
/// neuron is active: `d_ff · d (1 + 2a)` weights at active share `a` against `3 d_ff d`, so 1.5x at 50 % and 1.875x at
/// 70 % idle is all there is to gain. Two flops per weight of 4 or 2 bytes: a core that reads 14 GB/s needs 7 or 14
/// GF/s of its 150, so the loops are bound by memory for up to four tokens. One pass does it: the dot product with the up row is
/// followed at once by the multiply-add of the down row, while the next rows are on their way. Measured on two cores of a Xeon
/// (`examples/row_skip.rs`, 2048 x 5632, one token): dense at 94–96 % of the read bandwidth in f32 and 92 % in bf16, with half of the neurons idle
/// 91–95 % and 87–90 %; four tokens of bf16 reach 74 %.
#[derive(Debug)]
pub struct GatedMlp<T: RowValue> {
    gate: Rows<T>,
    up: Rows<T>,
    down: Rows<T>,
    plan: Plan,
}

impl<T: RowValue> GatedMlp<T> {
    /// Takes `gate[d_ff, d_in]`, `up[d_ff, d_in]` and `down[d_out, d_ff]`, as models store them.
    ///
    /// # Errors
    /// [`KernelError::Length`] and [`KernelError::TooLarge`] for sizes that do not fit.
    pub fn new(
        gate: &[T],
        up: &[T],
        down: &[T],
        d_in: usize,
        d_ff: usize,
        d_out: usize,
    ) -> Result<Self, KernelError> {
        Self::build(
            Rows::new(NAME, "gate", gate, d_ff, d_in)?,
            Rows::new(NAME, "up", up, d_ff, d_in)?,
            Rows::transposed(NAME, "down", down, d_ff, d_out)?,
            d_ff,
        )
    }

    /// [`GatedMlp::new`] with the down projection already transposed, `down_t[d_ff, d_out]`.
    ///
    /// # Errors
    /// As `new`.
    pub fn from_rows(
        gate: &[T],
        up: &[T],
        down_t: &[T],
        d_in: usize,
        d_ff: usize,
        d_out: usize,
    ) -> Result<Self, KernelError> {
        Self::build(
            Rows::new(NAME, "gate", gate, d_ff, d_in)?,
            Rows::new(NAME, "up", up, d_ff, d_in)?,
            Rows::new(NAME, "down", down_t, d_ff, d_out)?,
            d_ff,
        )
    }

    fn build(gate: Rows<T>, up: Rows<T>, down: Rows<T>, d_ff: usize) -> Result<Self, KernelError> {
        if u32::try_from(d_ff).is_err() {
            return Err(KernelError::TooLarge { kernel: NAME, a: d_ff, b: 1 });
        }
        let products = d_ff.saturating_mul(gate.width.saturating_mul(2).saturating_add(down.width));
        let plan = Plan::new(d_ff, down.width, products);
        Ok(Self { gate, up, down, plan })
    }

    /// Inputs.
    pub fn d_in(&self) -> usize {
        self.gate.width
    }
    /// Neurons.
    pub fn d_ff(&self) -> usize {
        self.plan.neurons
    }
    /// Outputs.
    pub fn d_out(&self) -> usize {
        self.plan.d_out
    }
    /// Resident bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.gate.data.bytes() + self.up.data.bytes() + self.down.data.bytes()
    }
    /// The gate projection, `[d_ff, d_in]`.
    pub fn gate_rows(&self) -> &[T] {
        self.gate.data.as_slice()
    }
    /// The up projection, `[d_ff, d_in]`.
    pub fn up_rows(&self) -> &[T] {
        self.up.data.as_slice()
    }
    /// The down projection transposed, `[d_ff, d_out]`.
    pub fn down_rows(&self) -> &[T] {
        self.down.data.as_slice()
    }
    /// Elements of scratch for `n` tokens; the content does not matter.
    pub fn scratch_len(&self, n: usize) -> usize {
        self.plan.scratch_len(n)
    }

    /// `y[n, d_out]` of `x[n, d_in]`, skipping what `activity` calls idle; up to four tokens share one reading of the rows active
    /// for any of them. Returns the number of down rows read.
    ///
    /// # Errors
    /// [`KernelError::Length`] unless `x`, `y`, the thresholds and `scratch` have the right lengths.
    pub fn forward(
        &self,
        activation: Activation,
        activity: Activity<'_>,
        x: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<usize, KernelError> {
        self.forward_with(Isa::detect(), activation, activity, x, n, y, scratch)
    }

    /// [`GatedMlp::forward`] on a chosen code path.
    ///
    /// # Errors
    /// Those of `forward`, and [`KernelError::Isa`] when this CPU lacks the path.
    #[allow(clippy::too_many_arguments, reason = "the arguments of forward and the path")]
    pub fn forward_with(
        &self,
        isa: Isa,
        activation: Activation,
        activity: Activity<'_>,
        x: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<usize, KernelError> {
        isa.require()?;
        let d_in = self.gate.width;
        length(NAME, "x", product(NAME, n, d_in)?, x.len())?;
        length(NAME, "y", product(NAME, n, self.plan.d_out)?, y.len())?;
        if let Activity::NeuronAtLeast(theta) = activity {
            length(NAME, "theta", self.plan.neurons, theta.len())?;
        }
        at_least(NAME, "scratch", self.plan.scratch_len(n), scratch.len())?;
        Ok(self.plan.drive(n, None, y, scratch, &|begin, count, first, m, parts| {
            let x = &x[first * d_in..(first + m) * d_in];
            dispatch(isa, Run { mlp: self, activation, activity, x, begin, count, m, parts })
        }))
    }
}

/// One run of neurons for `m` tokens.
struct Run<'a, T: RowValue> {
    mlp: &'a GatedMlp<T>,
    activation: Activation,
    activity: Activity<'a>,
    x: &'a [f32],
    begin: usize,
    count: usize,
    m: usize,
    parts: Parts<'a>,
}

impl<T: RowValue> Job for Run<'_, T> {
    type Out = usize;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> usize {
        match self.m {
            1 => self.tokens::<L, 1>(l),
            2 => self.tokens::<L, 2>(l),
            3 => self.tokens::<L, 3>(l),
            _ => self.tokens::<L, 4>(l),
        }
    }
}

/// `h[t][i] = w[begin + i] · x[t]` for all `count` rows.
#[inline(always)]
pub(super) fn all_dots<L: Lanes, T: RowValue, const N: usize>(
    l: L,
    w: &Rows<T>,
    x: &[f32],
    begin: usize,
    count: usize,
    h: &mut [f32],
) {
    let mut i = 0;
    while i + 4 <= count {
        let rows: [&[T]; 4] = std::array::from_fn(|r| w.row(begin + i + r));
        // Rows follow one another, so the next four begin where these end.
        let next = rows.map(|r| r.as_ptr().wrapping_add(4 * w.width));
        let sums = dots::<L, T, 4, N>(l, rows, x, Ahead::new(rows, next));
        for (t, sums) in sums.iter().enumerate() {
            h[t * count + i..][..4].copy_from_slice(sums);
        }
        i += 4;
    }
    for i in i..count {
        let row = [w.row(begin + i)];
        let sums = dots::<L, T, 1, N>(l, row, x, Ahead::new(row, [row[0].as_ptr()]));
        for (t, sums) in sums.iter().enumerate() {
            h[t * count + i] = sums[0];
        }
    }
}

impl<T: RowValue> Run<'_, T> {
    #[inline(always)]
    fn tokens<L: Lanes, const N: usize>(self, l: L) -> usize {
        let Run { mlp, activation, activity, x, begin, count, parts: Parts { h, list, y }, .. } = self;
        all_dots::<L, T, N>(l, &mlp.gate, x, begin, count, h);
        h.iter_mut().for_each(|v| *v = activity.gate(activation.apply(*v)));
        let active = if activity == Activity::All {
            (0..count).for_each(|i| list[i] = (begin + i) as u32);
            count
        } else {
            compact::<N>(h, count, begin, list)
        };
        let Activity::NeuronAtLeast(theta) = activity else {
            self::fused::<L, T, N>(l, mlp, &list[..active], begin, count, x, h, y);
            return active;
        };
        // The products with the up rows replace the gates, then the thresholds decide about the down rows.
        for i in &list[..active] {
            let (row, at) = ([mlp.up.row(*i as usize)], *i as usize - begin);
            let next = [row[0].as_ptr().wrapping_add(mlp.up.width)];
            let sums = dots::<L, T, 1, N>(l, row, x, Ahead::new(row, next));
            for (t, sum) in sums.iter().enumerate() {
                let v = h[t * count + at] * sum[0];
                h[t * count + at] = if v.abs() < theta[*i as usize] { 0.0 } else { v };
            }
        }
        let active = compact::<N>(h, count, begin, list);
        add_listed::<L, T, N>(l, &mlp.down, &list[..active], begin, count, h, y);
        active
    }
}

/// `y[t] += Σ h[t][i] (up[i] · x[t]) down[i]` over the listed neurons, four at a time.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the parts of one run, inlined")]
fn fused<L: Lanes, T: RowValue, const N: usize>(
    l: L,
    mlp: &GatedMlp<T>,
    list: &[u32],
    begin: usize,
    count: usize,
    x: &[f32],
    h: &[f32],
    y: &mut [f32],
) {
    let mut y = split::<N>(y, mlp.down.width);
    let (groups, rest) = list.as_chunks::<4>();
    for (g, four) in groups.iter().enumerate() {
        let (up, down) = (mlp.up.four(four), mlp.down.four(four));
        let mut c = dots::<L, T, 4, N>(l, up, x, Ahead::new(up, down.map(<[T]>::as_ptr)));
        for (t, c) in c.iter_mut().enumerate() {
            for (c, i) in c.iter_mut().zip(four) {
                *c *= h[t * count + *i as usize - begin];
            }
        }
        axpys(l, down, &c, &mut y, Ahead::new(down, following(&mlp.up, groups, g)));
    }
    for i in rest {
        let (up, down) = ([mlp.up.row(*i as usize)], [mlp.down.row(*i as usize)]);
        let mut c = dots::<L, T, 1, N>(l, up, x, Ahead::new(up, [down[0].as_ptr()]));
        for (t, c) in c.iter_mut().enumerate() {
            c[0] *= h[t * count + *i as usize - begin];
        }
        axpys(l, down, &c, &mut y, Ahead::new(down, [down[0].as_ptr()]));
    }
}
