//! The activations the configurations name.

use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, gelu_approximate, relu, silu};
use rarefy_checkpoint::Activation;
use rayon::prelude::*;

use crate::exp;
use crate::tensors::{host_vec, tensor3};

/// Values of one task.
const CHUNK: usize = 1 << 14;

/// Applies one, element by element.
pub(crate) fn activate(kind: Activation, x: Tensor<3>) -> Tensor<3> {
    match kind {
        Activation::Silu if x.is_autodiff() => silu(x),
        Activation::Silu => {
            let (shape, device) = (x.dims(), x.device());
            let mut values = host_vec(x);
            if values.len() > CHUNK {
                values.par_chunks_mut(CHUNK).for_each(exp::silu);
            } else {
                exp::silu(&mut values);
            }
            tensor3(values, shape, &device)
        }
        Activation::Relu => relu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_approximate(x),
    }
}
