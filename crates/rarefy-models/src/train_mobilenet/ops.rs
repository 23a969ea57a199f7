//! The operations of [`super::kernels`] inside Burn's graph of gradients.

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};

use super::kernels::{self, Planes, Statistics};

/// Where a forward pass leaves the statistics of its batch.
pub(crate) type Sink = Arc<Mutex<Statistics>>;

/// The arithmetic on a plain backend.
pub(crate) trait ConvKernels: Backend {
    /// `x [channels, input]`, `w [channels, 9]` to `[channels, output]`.
    fn depthwise_forward(x: &FloatTensor<Self>, w: &FloatTensor<Self>, planes: Planes) -> FloatTensor<Self>;
    /// Gradients of both.
    fn depthwise_gradients(
        g: &FloatTensor<Self>,
        x: &FloatTensor<Self>,
        w: &FloatTensor<Self>,
        planes: Planes,
    ) -> [FloatTensor<Self>; 2];
    /// `x [channels, n]`, `gamma` and `beta` `[channels]` to `[channels, n]`.
    fn norm_forward(
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        beta: &FloatTensor<Self>,
    ) -> (FloatTensor<Self>, Statistics);
    /// Gradients of all three.
    fn norm_gradients(
        g: &FloatTensor<Self>,
        x: &FloatTensor<Self>,
        gamma: &FloatTensor<Self>,
        beta: &FloatTensor<Self>,
        statistics: &Statistics,
    ) -> [FloatTensor<Self>; 3];
}

/// The numbers of a tensor; a view is copied first.
fn with<R>(t: &FlexTensor, f: impl FnOnce(&[f32]) -> R) -> R {
    match t.as_slice::<f32>() {
        Some(values) => f(values),
        None => f(t.to_contiguous().as_slice::<f32>().expect("tensors of this crate hold 32-bit floats")),
    }
}

fn tensor(values: Vec<f32>, shape: impl Into<Vec<usize>>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

fn len(t: &FlexTensor) -> usize {
    t.layout().num_elements()
}

impl ConvKernels for Flex {
    fn depthwise_forward(x: &FlexTensor, w: &FlexTensor, planes: Planes) -> FlexTensor {
        let channels = len(w) / kernels::TAPS;
        let mut y = vec![0.0; channels * planes.output()];
        with(x, |x| with(w, |w| kernels::depthwise(x, w, planes, &mut y)));
        tensor(y, [channels, planes.output()])
    }

    fn depthwise_gradients(
        g: &FlexTensor,
        x: &FlexTensor,
        w: &FlexTensor,
        planes: Planes,
    ) -> [FlexTensor; 2] {
        let channels = len(w) / kernels::TAPS;
        let (mut dx, mut dw) = (vec![0.0; channels * planes.input()], vec![0.0; channels * kernels::TAPS]);
        with(g, |g| {
            with(x, |x| with(w, |w| kernels::depthwise_backward(g, x, w, planes, (&mut dx, &mut dw))));
        });
        [tensor(dx, [channels, planes.input()]), tensor(dw, [channels, kernels::TAPS])]
    }

    fn norm_forward(x: &FlexTensor, gamma: &FlexTensor, beta: &FlexTensor) -> (FlexTensor, Statistics) {
        let (all, channels) = (len(x), len(gamma));
        let mut y = vec![0.0; all];
        let statistics =
            with(x, |x| with(gamma, |gamma| with(beta, |beta| kernels::norm_clamp(x, gamma, beta, &mut y))));
        (tensor(y, [channels, all / channels]), statistics)
    }

    fn norm_gradients(
        g: &FlexTensor,
        x: &FlexTensor,
        gamma: &FlexTensor,
        beta: &FlexTensor,
        statistics: &Statistics,
    ) -> [FlexTensor; 3] {
        let (all, channels) = (len(x), len(gamma));
        let mut dx = vec![0.0; all];
        let (dgamma, dbeta) = with(g, |g| {
            with(x, |x| {
                with(gamma, |gamma| {
                    with(beta, |beta| kernels::norm_clamp_backward(g, x, (gamma, beta), statistics, &mut dx))
                })
            })
        });
        [tensor(dx, [channels, all / channels]), tensor(dgamma, [channels]), tensor(dbeta, [channels])]
    }
}

/// The operations by whatever backend a tensor is on.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait ConvOps: Backend {
    /// A depthwise convolution.
    fn depthwise(x: FloatTensor<Self>, w: FloatTensor<Self>, planes: Planes) -> FloatTensor<Self>;
    /// Batch normalisation and ReLU6; the statistics go into `sink`.
    fn norm_clamp(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        sink: Sink,
    ) -> FloatTensor<Self>;
}

impl ConvOps for Flex {
    fn depthwise(x: FlexTensor, w: FlexTensor, planes: Planes) -> FlexTensor {
        Flex::depthwise_forward(&x, &w, planes)
    }

    fn norm_clamp(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, sink: Sink) -> FlexTensor {
        let (y, statistics) = Flex::norm_forward(&x, &gamma, &beta);
        *sink.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
        y
    }
}

#[derive(Debug)]
struct DepthwiseBackward;

impl<B: ConvKernels> Backward<B, 2> for DepthwiseBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, Planes);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let parents = ops.parents;
        let g = gradients.consume::<B>(&ops.node);
        let (x, w, planes) = ops.state;
        let found = B::depthwise_gradients(&g, &x, &w, planes);
        for (parent, found) in parents.into_iter().zip(found) {
            if let Some(node) = parent {
                gradients.register::<B>(node.id, found);
            }
        }
    }
}

#[derive(Debug)]
struct NormBackward;

impl<B: ConvKernels> Backward<B, 3> for NormBackward {
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Statistics);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let parents = ops.parents;
        let g = gradients.consume::<B>(&ops.node);
        let (x, gamma, beta, statistics) = ops.state;
        let found = B::norm_gradients(&g, &x, &gamma, &beta, &statistics);
        for (parent, found) in parents.into_iter().zip(found) {
            if let Some(node) = parent {
                gradients.register::<B>(node.id, found);
            }
        }
    }
}

impl<B: ConvKernels + ConvOps, C: CheckpointStrategy> ConvOps for Autodiff<B, C> {
    fn depthwise(x: FloatTensor<Self>, w: FloatTensor<Self>, planes: Planes) -> FloatTensor<Self> {
        match DepthwiseBackward.prepare::<C>([x.node(), w.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (x, w) = (x.into_primitive(), w.into_primitive());
                let y = B::depthwise_forward(&x, &w, planes);
                prep.finish((x, w, planes), y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::depthwise_forward(&x.into_primitive(), &w.into_primitive(), planes))
            }
        }
    }

    fn norm_clamp(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        sink: Sink,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let prepared = NormBackward.prepare::<C>(nodes).compute_bound().stateful();
        let (x, gamma, beta) = (x.into_primitive(), gamma.into_primitive(), beta.into_primitive());
        let (y, statistics) = B::norm_forward(&x, &gamma, &beta);
        *sink.lock().unwrap_or_else(PoisonError::into_inner) = statistics.clone();
        match prepared {
            OpsKind::Tracked(prep) => prep.finish((x, gamma, beta, statistics), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

/// `x [channels, height · width · batch]`, `w [channels, 9]` to `[channels, out height · out width · batch]`.
pub(crate) fn depthwise(x: Tensor<2>, w: Tensor<2>, planes: Planes) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as ConvOps>::depthwise(x.into_dispatch(), w.into_dispatch(), planes))
}

/// `x [channels, n]` normalised by row, scaled, shifted and clamped to [0, 6], and the statistics of the rows.
pub(crate) fn norm_clamp(x: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>) -> (Tensor<2>, Statistics) {
    let sink = Sink::default();
    let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
    let y = Tensor::from_dispatch(<Dispatch as ConvOps>::norm_clamp(x, gamma, beta, Arc::clone(&sink)));
    let statistics = std::mem::take(&mut *sink.lock().unwrap_or_else(PoisonError::into_inner));
    (y, statistics)
}
