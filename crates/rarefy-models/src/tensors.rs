//! Between Burn tensors and plain vectors, without copies where the tensor is not shared.

use burn::tensor::{Device, Tensor, TensorData};

/// The values of a tensor, row-major. Takes the buffer over when nobody else holds it.
pub(crate) fn host_vec<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_into_vec::<f32>().expect("tensors of this crate hold 32-bit floats")
}

/// A copy of the values of a tensor, row-major.
pub(crate) fn to_host<const D: usize>(t: &Tensor<D>) -> Vec<f32> {
    host_vec(t.clone())
}

/// A vector as a tensor; the buffer is taken over.
pub(crate) fn tensor1(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

/// A vector as a matrix; the buffer is taken over.
pub(crate) fn tensor2(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A vector as `[batch, length, width]`; the buffer is taken over.
pub(crate) fn tensor3(values: Vec<f32>, shape: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values, shape), device)
}
