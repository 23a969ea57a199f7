//! Root-mean-square and layer normalisation over the last dimension.

use burn::module::{Module, Param};
use burn::tensor::module::layer_norm;
use burn::tensor::{Device, Tensor};

use crate::tensors::tensor1;

/// `y = x / sqrt(mean(x²) + eps) · gamma` (Zhang and Sennrich 2019).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[width]`.
    pub gamma: Param<Tensor<1>>,
    eps: f64,
}

impl RmsNorm {
    /// From its scale and the constant under the root.
    #[must_use]
    pub fn new(gamma: Vec<f32>, eps: f64, device: &Device) -> Self {
        Self { gamma: Param::from_tensor(tensor1(gamma, device)), eps }
    }

    /// `[.., width]` to the same shape.
    #[must_use]
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let scale = x.clone().square().mean_dim(2).add_scalar(self.eps).sqrt().recip();
        x * scale * self.gamma.val().unsqueeze()
    }
}

/// `y = (x - mean) / sqrt(var + eps) · gamma + beta`, with the biased variance.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[width]`.
    pub gamma: Param<Tensor<1>>,
    /// `[width]`.
    pub beta: Param<Tensor<1>>,
    eps: f64,
}

impl LayerNorm {
    /// From scale, shift and the constant under the root.
    #[must_use]
    pub fn new(gamma: Vec<f32>, beta: Vec<f32>, eps: f64, device: &Device) -> Self {
        Self {
            gamma: Param::from_tensor(tensor1(gamma, device)),
            beta: Param::from_tensor(tensor1(beta, device)),
            eps,
        }
    }

    /// `[.., width]` to the same shape.
    #[must_use]
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        layer_norm(x, self.gamma.val(), Some(self.beta.val()), self.eps)
    }
}
