//! Gradients from Burn's graph to plain slices.

use crate::Parameters;
use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// The gradients of `loss` in the order of `parameters`, whose identities in `model` are `ids`. A parameter the loss does not depend on has a
/// gradient of zeros.
pub(crate) fn of<M: Module>(
    loss: &Tensor<1>,
    model: &M,
    parameters: &Parameters,
    ids: &[ParamId],
) -> Vec<Vec<f32>> {
    let mut found = GradientsParams::from_grads(loss.backward(), model);
    let pairs = parameters.all.iter().zip(ids);
    pairs
        .map(|(p, id)| {
            let values = match p.shape.len() {
                1 => found.remove::<1>(*id).map(values),
                _ => found.remove::<2>(*id).map(values),
            };
            values.unwrap_or_else(|| vec![0.0; p.values.len()])
        })
        .collect()
}

/// The values of a gradient, row-major.
fn values<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_into_vec::<f32>().expect("gradients have the element type of their parameter, f32")
}
