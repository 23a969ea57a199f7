//! A small MobileNet v1 to train: depthwise separable blocks (Howard et al. 2017, arXiv 1704.04861, table 1), each
//! convolution followed by batch normalisation and ReLU6, for small images.
//!
//! It is written out as a [`Classifier`](crate::classifier::Classifier) with the normalisations folded into the
//! convolutions ([`MobileNet::classifier`]); layer numbers are those of the classifier. Activations are `[channels, height · width · batch]`
//! with the images of a batch innermost, so that a 1×1 convolution is one product of matrices.

mod export;
mod kernels;
mod ops;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use rarefy_kernels::cnn::MOBILENET_V1;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};
use crate::init::Initializer;
use crate::linear::set_param;
use crate::tensors::{tensor1, tensor2, to_host};
use kernels::{EPS, Planes, SIDE, Statistics, TAPS};

/// Shape of a [`MobileNet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MobileNetSettings {
    /// Rows and columns of the image, 4 to 224. Default 32 (CIFAR-10).
    pub side: usize,
    /// Planes of the image: 3, or 1 for grey images, which the classifier then reads as three equal ones. Default 3.
    pub planes: usize,
    /// Step of the entry convolution, 1 or 2. Paper: 2.
    pub entry_stride: usize,
    /// Channels as a multiple of the paper's, in (0, 2]. Paper, section 3.3: 1, 0.75, 0.5, 0.25. Default 0.5.
    pub width: f64,
    /// Channels are rounded to a multiple of this, at least once it. Default 8.
    pub multiple: usize,
    /// Separable blocks, the first of the paper's 13; 1 to 13. Default 8.
    pub depth: usize,
    /// Number of classes, 2 to 65536. Default 10.
    pub classes: usize,
}

impl Default for MobileNetSettings {
    fn default() -> Self {
        Self { side: 32, planes: 3, entry_stride: 2, width: 0.5, multiple: 8, depth: 8, classes: 10 }
    }
}

impl MobileNetSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] naming field, value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        let need = |ok: bool, field, value: String, remedy| match ok {
            true => Ok(()),
            false => Err(ModelError::Unsupported { field, value, remedy }),
        };
        need((4..=224).contains(&self.side), "side", self.side.to_string(), "4 to 224 are allowed")?;
        need(matches!(self.planes, 1 | 3), "planes", self.planes.to_string(), "1 or 3 are allowed")?;
        let stride = self.entry_stride;
        need(matches!(stride, 1 | 2), "entry_stride", stride.to_string(), "1 or 2 are allowed")?;
        let width = self.width;
        need(width > 0.0 && width <= 2.0, "width", width.to_string(), "above 0 and at most 2")?;
        let multiple = self.multiple;
        need((1..=64).contains(&multiple), "multiple", multiple.to_string(), "1 to 64 are allowed")?;
        need((1..=13).contains(&self.depth), "depth", self.depth.to_string(), "1 to 13 are allowed")?;
        let classes = self.classes;
        need((2..=65_536).contains(&classes), "classes", classes.to_string(), "2 to 65536 are allowed")
    }

    fn channels(&self, of_paper: usize) -> usize {
        let units = (of_paper as f64 * self.width / self.multiple as f64).round() as usize;
        units.max(1) * self.multiple
    }

    /// Every convolution but the last, in order.
    fn convs(&self) -> Vec<ConvShape> {
        let mut side = self.side.div_ceil(self.entry_stride);
        let mut d_in = self.channels(32);
        let entry = ConvShape {
            kind: Kind::Entry,
            d_in: self.planes,
            d_out: d_in,
            side: self.side,
            stride: self.entry_stride,
        };
        let mut all = vec![entry];
        for (channels, stride) in MOBILENET_V1.into_iter().take(self.depth) {
            all.push(ConvShape { kind: Kind::Depthwise, d_in, d_out: d_in, side, stride });
            side = side.div_ceil(stride);
            let d_out = self.channels(channels);
            all.push(ConvShape { kind: Kind::Pointwise, d_in, d_out, side, stride: 1 });
            d_in = d_out;
        }
        all
    }
}

/// What kind of convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Entry,
    Depthwise,
    Pointwise,
}

/// The sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ConvShape {
    kind: Kind,
    d_in: usize,
    d_out: usize,
    /// Rows and columns of its input.
    side: usize,
    stride: usize,
}

impl ConvShape {
    /// Weights of one output channel.
    fn row(&self) -> usize {
        match self.kind {
            Kind::Entry => self.d_in * TAPS,
            Kind::Depthwise => TAPS,
            Kind::Pointwise => self.d_in,
        }
    }

    fn planes(&self, batch: usize) -> Planes {
        Planes { height: self.side, width: self.side, stride: self.stride, batch }
    }
}

/// A convolution and its normalisation.
#[derive(Module, Debug)]
struct ConvNorm {
    /// `[d_out, row]`.
    weight: Param<Tensor<2>>,
    gamma: Param<Tensor<1>>,
    beta: Param<Tensor<1>>,
}

/// The network. On a device with autodiff its parameters collect gradients.
///
/// Parameters are named `layers.N.weight`, `layers.N.gamma`, `layers.N.beta` and, for the logits, `layers.N.weight` and `layers.N.bias`.
#[derive(Module, Debug)]
pub struct MobileNet {
    convs: Vec<ConvNorm>,
    head: Param<Tensor<2>>,
    head_bias: Param<Tensor<1>>,
    #[module(skip)]
    running: Vec<Statistics>,
    #[module(skip)]
    shapes: Arc<Vec<ConvShape>>,
    #[module(skip)]
    settings: Arc<MobileNetSettings>,
}

/// The statistics of the normalisations of one batch, for [`MobileNet::update_running`].
#[derive(Debug)]
pub struct BatchStatistics(Vec<Statistics>);

/// One parameter, of rank 1 or 2.
enum Any<'a> {
    Vector(&'a Param<Tensor<1>>),
    Matrix(&'a Param<Tensor<2>>),
}

impl MobileNet {
    /// Random weights, N(0, 2 / inputs) (He et al. 2015, arXiv 1502.01852), normalisations 1 and 0. The same seed gives the same bytes.
    ///
    /// # Errors
    /// Those of [`MobileNetSettings::validate`].
    pub fn init(settings: &MobileNetSettings, seed: u64, device: &Device) -> Result<Self> {
        settings.validate()?;
        let shapes = settings.convs();
        let mut draw = Initializer::new(seed);
        let mut convs = Vec::with_capacity(shapes.len());
        let mut running = Vec::with_capacity(shapes.len());
        for shape in &shapes {
            let weight = draw.normal(shape.d_out * shape.row(), (2.0 / shape.row() as f64).sqrt());
            convs.push(ConvNorm {
                weight: Param::from_tensor(tensor2(weight, [shape.d_out, shape.row()], device)),
                gamma: Param::from_tensor(tensor1(vec![1.0; shape.d_out], device)),
                beta: Param::from_tensor(tensor1(vec![0.0; shape.d_out], device)),
            });
            running.push(Statistics { mean: vec![0.0; shape.d_out], variance: vec![1.0; shape.d_out] });
        }
        let d_in = shapes.last().map_or(0, |s| s.d_out);
        let weight = draw.normal(settings.classes * d_in, (1.0 / d_in as f64).sqrt());
        Ok(Self {
            convs,
            head: Param::from_tensor(tensor2(weight, [settings.classes, d_in], device)),
            head_bias: Param::from_tensor(tensor1(vec![0.0; settings.classes], device)),
            running,
            shapes: Arc::new(shapes),
            settings: Arc::new(settings.clone()),
        })
    }

    /// The shape.
    #[must_use]
    pub fn settings(&self) -> &MobileNetSettings {
        &self.settings
    }

    /// Images as [`MobileNet::forward`] reads them: each is `planes · side · side` bytes, plane by plane, which become `x / 127.5 - 1`; the
    /// result is `[planes · 9, out · out · batch]`, the windows of the entry convolution with zeros outside the image.
    ///
    /// # Errors
    /// [`ModelError::Empty`] without an image, [`ModelError::Shape`] for another number of bytes.
    pub fn windows(&self, images: &[&[u8]]) -> Result<Tensor<2>> {
        let (side, planes, batch) = (self.settings.side, self.settings.planes, images.len());
        if batch == 0 {
            return Err(ModelError::Empty { what: "batch of images" });
        }
        if let Some(bad) = images.iter().find(|i| i.len() != planes * side * side) {
            return Err(ModelError::Shape {
                tensor: "image".to_owned(),
                expected: vec![planes, side, side],
                found: vec![bad.len()],
            });
        }
        let stride = self.settings.entry_stride;
        let out = side.div_ceil(stride);
        let before = ((out - 1) * stride + SIDE).saturating_sub(side) / 2;
        let mut windows = vec![0.0; planes * TAPS * out * out * batch];
        let places = (0..planes * TAPS).flat_map(|row| (0..out * out).map(move |at| (row, at)));
        for ((row, at), run) in places.zip(windows.chunks_exact_mut(batch)) {
            let (plane, tap) = (row / TAPS, row % TAPS);
            let (y, x) = (at / out * stride + tap / SIDE, at % out * stride + tap % SIDE);
            if y < before || x < before || y - before >= side || x - before >= side {
                continue;
            }
            let at = (plane * side + y - before) * side + x - before;
            for (value, image) in run.iter_mut().zip(images) {
                *value = f32::from(image[at]) / 127.5 - 1.0;
            }
        }
        let device = self.head.device();
        Ok(Tensor::from_data(TensorData::new(windows, [planes * TAPS, out * out * batch]), &device))
    }

    /// [`MobileNet::windows`] of `batch` images to logits `[batch, classes]`, normalised by the statistics of this batch, which are returned too.
    #[must_use]
    pub fn forward(&self, windows: Tensor<2>, batch: usize) -> (Tensor<2>, BatchStatistics) {
        let mut all = Vec::with_capacity(self.convs.len());
        let logits = self.run(windows, batch, &mut |_, layer, x| {
            let (y, statistics) = ops::norm_clamp(x, layer.gamma.val(), layer.beta.val());
            all.push(statistics);
            y
        });
        (logits, BatchStatistics(all))
    }

    /// The same, normalised by the running statistics: what the exported classifier computes.
    #[must_use]
    pub fn infer(&self, windows: Tensor<2>, batch: usize) -> Tensor<2> {
        self.run(windows, batch, &mut |i, layer, x| {
            let (a, b) = self.lines(i, &to_host(&layer.gamma.val()), &to_host(&layer.beta.val()));
            let (n, device) = (a.len(), x.device());
            let column = |v| tensor2(v, [n, 1], &device);
            (x * column(a) + column(b)).clamp(0.0, 6.0)
        })
    }

    fn run(
        &self,
        windows: Tensor<2>,
        batch: usize,
        norm: &mut dyn FnMut(usize, &ConvNorm, Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let mut x = windows;
        for (i, (layer, shape)) in self.convs.iter().zip(&*self.shapes).enumerate() {
            x = match shape.kind {
                Kind::Depthwise => ops::depthwise(x, layer.weight.val(), shape.planes(batch)),
                Kind::Entry | Kind::Pointwise => layer.weight.val().matmul(x),
            };
            x = norm(i, layer, x);
        }
        let [channels, n] = x.dims();
        let pooled = x.reshape([channels, n / batch, batch]).mean_dim(1).reshape([channels, batch]);
        let logits = self.head.val().matmul(pooled).transpose();
        logits + self.head_bias.val().reshape([1, self.settings.classes])
    }

    /// Moves the running statistics by a share of `1 - momentum` towards those of a batch.
    pub fn update_running(&mut self, batch: &BatchStatistics, momentum: f32) {
        for (running, batch) in self.running.iter_mut().zip(&batch.0) {
            let pairs = [(&mut running.mean, &batch.mean), (&mut running.variance, &batch.variance)];
            for (running, batch) in pairs {
                for (r, b) in running.iter_mut().zip(batch) {
                    *r = momentum * *r + (1.0 - momentum) * b;
                }
            }
        }
    }

    /// Normalisation `i` by the running statistics as `a x + b`.
    fn lines(&self, i: usize, gamma: &[f32], beta: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let Statistics { mean, variance } = &self.running[i];
        let a: Vec<f32> = gamma.iter().zip(variance).map(|(g, v)| g / (v + EPS).sqrt()).collect();
        let b = beta.iter().zip(&a).zip(mean).map(|((b, a), m)| b - a * m).collect();
        (a, b)
    }

    /// Every parameter: name, identity, shape.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, ParamId, Vec<usize>)> {
        let all = self.named().into_iter();
        all.map(|(name, p)| match p {
            Any::Vector(p) => (name, p.id, p.dims().to_vec()),
            Any::Matrix(p) => (name, p.id, p.dims().to_vec()),
        })
        .collect()
    }

    /// Weights of the 1×1 convolutions inside the blocks: what pruning may touch. Entry, depthwise layers and logits stay dense.
    #[must_use]
    pub fn prunable(&self) -> Vec<String> {
        let pointwise = self.shapes.iter().enumerate().filter(|(_, s)| s.kind == Kind::Pointwise);
        pointwise.map(|(i, _)| weight_name(i)).collect()
    }

    /// The values of one parameter, row-major.
    ///
    /// # Errors
    /// [`ModelError::UnknownParameter`].
    pub fn get(&self, name: &str) -> Result<Vec<f32>> {
        match self.named().into_iter().find(|(n, _)| n == name) {
            Some((_, Any::Vector(p))) => Ok(to_host(&p.val())),
            Some((_, Any::Matrix(p))) => Ok(to_host(&p.val())),
            None => Err(unknown(name)),
        }
    }

    /// Replaces the values of one parameter; its identity stays.
    ///
    /// # Errors
    /// [`ModelError::UnknownParameter`], [`ModelError::Shape`].
    pub fn set(&mut self, name: &str, values: Vec<f32>) -> Result<()> {
        let found = self.named().into_iter().find(|(n, _)| n == name);
        let expected = match found {
            Some((_, Any::Vector(p))) => p.dims().to_vec(),
            Some((_, Any::Matrix(p))) => p.dims().to_vec(),
            None => return Err(unknown(name)),
        };
        if expected.iter().product::<usize>() != values.len() {
            return Err(ModelError::Shape { tensor: name.to_owned(), expected, found: vec![values.len()] });
        }
        let (layer, part) = split(name).ok_or_else(|| unknown(name))?;
        match (self.convs.get_mut(layer), part) {
            (Some(conv), "weight") => set_param(&mut conv.weight, values),
            (Some(conv), "gamma") => set_param(&mut conv.gamma, values),
            (Some(conv), _) => set_param(&mut conv.beta, values),
            (None, "weight") => set_param(&mut self.head, values),
            (None, _) => set_param(&mut self.head_bias, values),
        }
        Ok(())
    }

    fn named(&self) -> Vec<(String, Any<'_>)> {
        let mut all = Vec::with_capacity(3 * self.convs.len() + 2);
        for (i, layer) in self.convs.iter().enumerate() {
            all.push((weight_name(i), Any::Matrix(&layer.weight)));
            all.push((format!("layers.{i}.gamma"), Any::Vector(&layer.gamma)));
            all.push((format!("layers.{i}.beta"), Any::Vector(&layer.beta)));
        }
        let head = self.head_layer();
        all.push((weight_name(head), Any::Matrix(&self.head)));
        all.push((format!("layers.{head}.bias"), Any::Vector(&self.head_bias)));
        all
    }

    /// The layer of the logits: behind the convolutions and the mean over the pixels.
    fn head_layer(&self) -> usize {
        self.convs.len() + 1
    }
}

fn weight_name(layer: usize) -> String {
    crate::classifier::Classifier::weight_name(layer)
}

/// `layers.N.part`.
fn split(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

fn unknown(name: &str) -> ModelError {
    ModelError::UnknownParameter { name: name.to_owned(), example: weight_name(0) }
}
