//! The two-layer ReLU MLP, `y = W2 relu(W1 x + b1) + b2`, and its second layer alone.

use super::gated::all_dots;
use super::{Activation, Parts, Plan, Rows, add_listed, compact};
use crate::error::{at_least, length, product};
use crate::lanes::{Job, Lanes, RowValue, dispatch};
use crate::{Isa, KernelError};

/// `y = W a + b` for activations `a` that are mostly zero: columns of zero activations are not read.
///
/// # Roofline
/// `nnz(a) · d_out` weights instead of `d_in · d_out`, two flops each: bound by memory, so the gain is the inverse of the active
/// share, less what the first lines of each row lose. The list of active inputs costs about a nanosecond per input.
#[derive(Debug)]
pub struct SkipLinear<T: RowValue> {
    columns: Rows<T>,
    bias: Option<Vec<f32>>,
    plan: Plan,
}

impl<T: RowValue> SkipLinear<T> {
    const NAME: &'static str = "skip-linear";

    /// Takes `w[d_out, d_in]` as models store it, and stores its transpose.
    ///
    /// # Errors
    /// [`KernelError::Length`] and [`KernelError::TooLarge`] for sizes that do not fit.
    pub fn new(w: &[T], bias: Option<&[f32]>, d_in: usize, d_out: usize) -> Result<Self, KernelError> {
        Self::build(Rows::transposed(Self::NAME, "w", w, d_in, d_out)?, bias, d_in)
    }

    /// [`SkipLinear::new`] from the transposed weight, `w_t[d_in, d_out]`.
    ///
    /// # Errors
    /// As `new`.
    pub fn from_rows(
        w_t: &[T],
        bias: Option<&[f32]>,
        d_in: usize,
        d_out: usize,
    ) -> Result<Self, KernelError> {
        Self::build(Rows::new(Self::NAME, "w", w_t, d_in, d_out)?, bias, d_in)
    }

    fn build(columns: Rows<T>, bias: Option<&[f32]>, d_in: usize) -> Result<Self, KernelError> {
        if u32::try_from(d_in).is_err() {
            return Err(KernelError::TooLarge { kernel: Self::NAME, a: d_in, b: 1 });
        }
        if let Some(bias) = bias {
            length(Self::NAME, "bias", columns.width, bias.len())?;
        }
        let plan = Plan::new(d_in, columns.width, d_in.saturating_mul(columns.width));
        Ok(Self { columns, bias: bias.map(<[f32]>::to_vec), plan })
    }

    /// Inputs.
    pub fn d_in(&self) -> usize {
        self.plan.neurons
    }
    /// Outputs.
    pub fn d_out(&self) -> usize {
        self.plan.d_out
    }
    /// Resident bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.columns.data.bytes()
    }
    /// The transposed weight, `[d_in, d_out]`.
    pub fn columns(&self) -> &[T] {
        self.columns.data.as_slice()
    }
    /// Elements of scratch for `n` tokens; the content does not matter.
    pub fn scratch_len(&self, n: usize) -> usize {
        self.plan.scratch_len(n)
    }

    /// `y[n, d_out] = W a[n, d_in] + b`; returns the number of columns of `W` read (those active for any of up to four tokens).
    ///
    /// # Errors
    /// [`KernelError::Length`] unless `a`, `y` and `scratch` have the right lengths.
    pub fn forward(
        &self,
        a: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<usize, KernelError> {
        self.forward_with(Isa::detect(), true, a, n, y, scratch)
    }

    /// [`SkipLinear::forward`] on a chosen code path; without `skips` every column is read: the dense layer.
    ///
    /// # Errors
    /// Those of `forward`, and [`KernelError::Isa`] when this CPU lacks the path.
    pub fn forward_with(
        &self,
        isa: Isa,
        skips: bool,
        a: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<usize, KernelError> {
        isa.require()?;
        let d_in = self.plan.neurons;
        length(Self::NAME, "a", product(Self::NAME, n, d_in)?, a.len())?;
        length(Self::NAME, "y", product(Self::NAME, n, self.plan.d_out)?, y.len())?;
        at_least(Self::NAME, "scratch", self.plan.scratch_len(n), scratch.len())?;
        let bias = self.bias.as_deref();
        Ok(self.plan.drive(n, bias, y, scratch, &|begin, count, first, m, parts| {
            for (t, h) in parts.h.chunks_exact_mut(count).enumerate() {
                h.copy_from_slice(&a[(first + t) * d_in + begin..][..count]);
            }
            dispatch(isa, Second { w: &self.columns, skips, begin, count, m, parts })
        }))
    }
}

/// One run of neurons of the second layer; `parts.h` holds the activations.
struct Second<'a, T: RowValue> {
    w: &'a Rows<T>,
    skips: bool,
    begin: usize,
    count: usize,
    m: usize,
    parts: Parts<'a>,
}

impl<T: RowValue> Job for Second<'_, T> {
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

impl<T: RowValue> Second<'_, T> {
    #[inline(always)]
    fn tokens<L: Lanes, const N: usize>(self, l: L) -> usize {
        let Second { w, skips, begin, count, parts: Parts { h, list, y }, .. } = self;
        let active = if skips {
            compact::<N>(h, count, begin, list)
        } else {
            (0..count).for_each(|i| list[i] = (begin + i) as u32);
            count
        };
        add_listed::<L, T, N>(l, w, &list[..active], begin, count, h, y);
        active
    }
}

/// Both layers in one pass over the neurons.
///
/// # Roofline
/// `d_ff (d_in + a d_out)` weights at active share `a`: at most 2x over the dense MLP, as the first layer is always read.
#[derive(Debug)]
pub struct ReluMlp<T: RowValue> {
    first: Rows<T>,
    first_bias: Option<Vec<f32>>,
    second: SkipLinear<T>,
    plan: Plan,
}

impl<T: RowValue> ReluMlp<T> {
    const NAME: &'static str = "relu-mlp";

    /// Takes `first[d_ff, d_in]` and `second[d_out, d_ff]`, as models store them.
    ///
    /// # Errors
    /// [`KernelError::Length`] and [`KernelError::TooLarge`] for sizes that do not fit.
    pub fn new(
        (first, first_bias): (&[T], Option<&[f32]>),
        (second, second_bias): (&[T], Option<&[f32]>),
        d_in: usize,
        d_ff: usize,
        d_out: usize,
    ) -> Result<Self, KernelError> {
        let first = Rows::new(Self::NAME, "first", first, d_ff, d_in)?;
        if let Some(bias) = first_bias {
            length(Self::NAME, "first bias", d_ff, bias.len())?;
        }
        let second = SkipLinear::new(second, second_bias, d_ff, d_out)?;
        let plan = Plan::new(d_ff, d_out, d_ff.saturating_mul(d_in.saturating_add(d_out)));
        Ok(Self { first, first_bias: first_bias.map(<[f32]>::to_vec), second, plan })
    }

    /// The second layer.
    pub fn second(&self) -> &SkipLinear<T> {
        &self.second
    }
    /// Resident bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.first.data.bytes() + self.second.bytes()
    }
    /// Elements of scratch for `n` tokens; the content does not matter.
    pub fn scratch_len(&self, n: usize) -> usize {
        self.plan.scratch_len(n)
    }

    /// `y[n, d_out]` of `x[n, d_in]`; returns the number of neurons whose second-layer row was read.
    ///
    /// # Errors
    /// [`KernelError::Length`] unless `x`, `y` and `scratch` have the right lengths.
    pub fn forward(
        &self,
        x: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<usize, KernelError> {
        self.forward_with(Isa::detect(), true, x, n, y, scratch)
    }

    /// [`ReluMlp::forward`] on a chosen code path; without `skips` every row is read: the dense MLP.
    ///
    /// # Errors
    /// Those of `forward`, and [`KernelError::Isa`] when this CPU lacks the path.
    pub fn forward_with(
        &self,
        isa: Isa,
        skips: bool,
        x: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<usize, KernelError> {
        isa.require()?;
        let d_in = self.first.width;
        length(Self::NAME, "x", product(Self::NAME, n, d_in)?, x.len())?;
        length(Self::NAME, "y", product(Self::NAME, n, self.plan.d_out)?, y.len())?;
        at_least(Self::NAME, "scratch", self.plan.scratch_len(n), scratch.len())?;
        let bias = self.second.bias.as_deref();
        Ok(self.plan.drive(n, bias, y, scratch, &|begin, count, first, m, parts| {
            let x = &x[first * d_in..(first + m) * d_in];
            dispatch(isa, First { w: &self.first, x, begin, count, m, h: parts.h });
            for h in parts.h.chunks_exact_mut(count) {
                for (i, v) in h.iter_mut().enumerate() {
                    let bias = self.first_bias.as_ref().map_or(0.0, |b| b[begin + i]);
                    *v = Activation::Relu.apply(*v + bias);
                }
            }
            dispatch(isa, Second { w: &self.second.columns, skips, begin, count, m, parts })
        }))
    }
}

/// One run of neurons of the first layer.
struct First<'a, T: RowValue> {
    w: &'a Rows<T>,
    x: &'a [f32],
    begin: usize,
    count: usize,
    m: usize,
    h: &'a mut [f32],
}

impl<T: RowValue> Job for First<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let First { w, x, begin, count, m, h } = self;
        match m {
            1 => all_dots::<L, T, 1>(l, w, x, begin, count, h),
            2 => all_dots::<L, T, 2>(l, w, x, begin, count, h),
            3 => all_dots::<L, T, 3>(l, w, x, begin, count, h),
            _ => all_dots::<L, T, 4>(l, w, x, begin, count, h),
        }
    }
}
