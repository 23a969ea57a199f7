//! The activations the configurations name.

use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, gelu_approximate, relu, silu};
use rarefy_checkpoint::Activation;

/// Applies one, element by element.
pub(crate) fn activate(kind: Activation, x: Tensor<3>) -> Tensor<3> {
    match kind {
        Activation::Silu => silu(x),
        Activation::Relu => relu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_approximate(x),
    }
}
