//! Linear layers whose weight is dense (to train, to prune) or held by a kernel (to run).
//!
//! `y[n, d_out] = x[n, d_in] · Wᵀ + b` with `W[d_out, d_in]` row-major, the layout of the Hugging Face files. The dense
//! product runs through the transposed view of `W`, which Burn's matrix product takes without a copy.

use std::cell::RefCell;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rarefy_kernels::LinearKernel;

use crate::tensors::{host_vec, tensor1, tensor2, to_host};

/// A linear layer.
#[derive(Module, Debug)]
pub enum Linear {
    /// A trainable weight, 32-bit floats.
    Dense(DenseLinear),
    /// A weight held by a kernel: fixed, no gradient reaches it nor its input.
    Packed(PackedLinear),
}

/// A dense weight as parameters of Burn.
#[derive(Module, Debug)]
pub struct DenseLinear {
    /// `[d_out, d_in]`.
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

/// A weight held by a kernel, in whatever form that kernel reads.
#[derive(Module, Debug)]
pub struct PackedLinear {
    #[module(skip)]
    kernel: Arc<dyn LinearKernel>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

/// The kernel on slices, with scratch space kept for each thread.
fn run(kernel: &dyn LinearKernel, x: &[f32], n: usize, y: &mut [f32]) {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    // Taken out for the time of the call: a kernel that waits on the pool may let this thread start another one.
    let mut scratch = SCRATCH.take();
    let needed = kernel.scratch_len(n);
    if scratch.len() < needed {
        scratch.resize(needed, 0.0);
    }
    kernel.forward(x, n, y, &mut scratch[..needed]).expect("the lengths come from the kernel's own shape");
    SCRATCH.set(scratch);
}

/// Replaces the values of a parameter; identity, shape, device and gradient flag stay.
///
/// # Panics
/// When the length does not fit the shape.
pub(crate) fn set_param<const D: usize>(param: &mut Param<Tensor<D>>, values: Vec<f32>) {
    *param = param.clone().map(|old| {
        let grad = old.is_require_grad();
        let new = Tensor::from_data(TensorData::new(values, old.dims()), &old.device());
        if grad { new.require_grad() } else { new }
    });
}

impl Linear {
    /// A trainable layer from a weight `[d_out, d_in]` and an optional bias `[d_out]`.
    ///
    /// # Panics
    /// When the lengths do not fit the shape.
    #[must_use]
    pub fn dense(
        weight: Vec<f32>,
        rows: usize,
        cols: usize,
        bias: Option<Vec<f32>>,
        device: &Device,
    ) -> Self {
        Self::Dense(DenseLinear {
            weight: Param::from_tensor(tensor2(weight, [rows, cols], device)),
            bias: bias.map(|b| Param::from_tensor(tensor1(b, device))),
        })
    }

    /// A fixed layer run by `kernel`.
    #[must_use]
    pub fn packed(kernel: Arc<dyn LinearKernel>, bias: Option<Vec<f32>>, device: &Device) -> Self {
        Self::Packed(PackedLinear { kernel, bias: bias.map(|b| Param::from_tensor(tensor1(b, device))) })
    }

    /// `x[.., d_in]` to `y[.., d_out]`.
    #[must_use]
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, length, width] = x.dims();
        let x = x.reshape([batch * length, width]);
        let (y, bias) = match self {
            Self::Dense(l) => (x.matmul(l.weight.val().transpose()), &l.bias),
            Self::Packed(l) => {
                let device = x.device();
                let x = host_vec(x);
                let mut y = vec![0.0; batch * length * l.kernel.rows()];
                run(&*l.kernel, &x, batch * length, &mut y);
                (tensor2(y, [batch * length, l.kernel.rows()], &device), &l.bias)
            }
        };
        let y = match bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        };
        y.reshape([batch, length, self.rows()])
    }

    /// Number of outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(l) => l.weight.dims()[0],
            Self::Packed(l) => l.kernel.rows(),
        }
    }

    /// Number of inputs.
    #[must_use]
    pub fn cols(&self) -> usize {
        match self {
            Self::Dense(l) => l.weight.dims()[1],
            Self::Packed(l) => l.kernel.cols(),
        }
    }

    /// The dense weight, row-major `[d_out, d_in]`; `None` when a kernel holds it.
    #[must_use]
    pub fn weight(&self) -> Option<Vec<f32>> {
        match self {
            Self::Dense(l) => Some(to_host(&l.weight.val())),
            Self::Packed(_) => None,
        }
    }

    /// Replaces a dense weight, row-major `[d_out, d_in]`, keeping its identity as a parameter. `false`: nothing was done,
    /// since the length does not fit or a kernel holds the weight.
    #[must_use]
    pub fn set_weight(&mut self, weight: Vec<f32>) -> bool {
        let (rows, cols) = (self.rows(), self.cols());
        match self {
            Self::Dense(l) if weight.len() == rows * cols => {
                set_param(&mut l.weight, weight);
                true
            }
            _ => false,
        }
    }

    /// Whether a kernel holds the weight.
    #[must_use]
    pub fn weight_is_packed(&self) -> bool {
        matches!(self, Self::Packed(_))
    }

    /// The kernel, when one holds the weight.
    #[must_use]
    pub fn kernel(&self) -> Option<&Arc<dyn LinearKernel>> {
        match self {
            Self::Dense(_) => None,
            Self::Packed(l) => Some(&l.kernel),
        }
    }

    /// Bytes of memory that weight and bias occupy.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let (weight, bias) = match self {
            Self::Dense(l) => (l.weight.dims().iter().product::<usize>() * 4, &l.bias),
            Self::Packed(l) => (l.kernel.bytes(), &l.bias),
        };
        weight + bias.as_ref().map_or(0, |b| b.dims()[0] * 4)
    }

    /// Non-zero weights; of a dense parameter they are counted anew at each call.
    #[must_use]
    pub fn nnz(&self) -> usize {
        match self {
            Self::Dense(l) => to_host(&l.weight.val()).iter().filter(|v| **v != 0.0).count(),
            Self::Packed(l) => l.kernel.nnz(),
        }
    }
}
