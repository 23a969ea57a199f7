//! Convolutional image classifiers from a model folder, without any framework.
//!
//! `config.json` lists the graph, layer by layer in the order in which they run:
//!
//! ```text
//! "input_resolution": 224                    rows and columns of the image, RGB
//! "input": "RGB CHW float, x/127.5-1"        how bytes become numbers; also "x/255"
//! "classes": "… output index = ImageNet index + 1 …"    what the outputs count from
//! "layers": [{"op": "conv", "input": -1, "stride": 2, "padding": "SAME", "act": "relu6", "groups": 1}, …]
//! ```
//! `op` is `conv` (tensors `layers.N.weight` `[out, in / groups, side, side]`, and `layers.N.bias`), `add` (of `input` and
//! `other`), `global_avg_pool`, `flatten` or `softmax`; `input` is the number of an earlier layer, -1 the image; `padding` is `SAME`
//! as in TensorFlow, `VALID`, or a number of pixels; `act` is `none`, `relu` or `relu6`. Batch-norm must be folded. What is not in this list is refused: a
//! layer that is left out changes the answer without a sign.
//!
//! [`Classifier`] holds the weights as plain numbers, for pruning; [`Classifier::network`] makes the network that runs.

mod assemble;
mod channels;
mod read;
pub mod synthetic;
mod write;

use std::path::{Path, PathBuf};

use rarefy_checkpoint::{CheckpointError, DType, read_config};
use rarefy_kernels::Clamp;
use rarefy_kernels::chw::Layout;
use rarefy_kernels::cnn::{Image, Network, NetworkSettings, Node, Op, Padding};
use serde_json::Value;

use crate::error::{ModelError, Result};

pub use channels::{ChannelClass, ChannelClasses};

/// A classifier as it is in its folder.
#[derive(Debug, Clone)]
pub struct Classifier {
    dir: PathBuf,
    config: Value,
    side: usize,
    scaling: Scaling,
    class_offset: usize,
    layers: Vec<ClassifierLayer>,
}

/// How the bytes of an image become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scaling {
    /// `x / 127.5 - 1`.
    Symmetric,
    /// `x / 255`.
    Unit,
}

/// One layer of the graph.
#[derive(Debug, Clone)]
pub struct ClassifierLayer {
    /// The layer it reads; none: the image.
    pub input: Option<usize>,
    /// What it computes.
    pub op: LayerOp,
    /// The activation behind it.
    pub clamp: Clamp,
    /// Channels, rows and columns of its output.
    pub output: [usize; 3],
}

/// What a layer computes.
#[derive(Debug, Clone)]
pub enum LayerOp {
    /// A convolution.
    Conv(ConvLayer),
    /// The sum with another layer's output.
    Add {
        /// That layer.
        other: usize,
    },
    /// The mean of every channel.
    GlobalAverage,
    /// `[C, 1, 1]` taken as a vector: nothing to compute.
    Flatten,
    /// Probabilities of the logits. The order of the classes stays, so that it is not computed.
    Softmax,
}

/// A convolution with its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvLayer {
    /// Output channels.
    pub d_out: usize,
    /// Input channels that one output reads.
    pub d_in: usize,
    /// 1, or the number of channels (depthwise).
    pub groups: usize,
    /// Side of the window.
    pub kernel: usize,
    /// Its step.
    pub stride: usize,
    /// Zeros around the image.
    pub padding: Padding,
    /// `[d_out, d_in, kernel, kernel]`.
    pub weight: Vec<f32>,
    /// `[d_out]`.
    pub bias: Vec<f32>,
    /// The type in which the weight is stored.
    pub dtype: DType,
    /// The type in which the bias is stored.
    pub bias_dtype: DType,
}

impl ConvLayer {
    /// A product of a matrix and the pixels.
    #[must_use]
    pub fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.groups == 1
    }

    /// One filter per channel.
    #[must_use]
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1
    }
}

/// Whether a folder holds a classifier: its `config.json` lists `layers`.
///
/// # Errors
/// `config.json` cannot be read.
pub fn is_classifier(dir: &Path) -> Result<bool> {
    Ok(read_config(dir)?.get("layers").is_some_and(Value::is_array))
}

impl Classifier {
    /// Reads a folder.
    ///
    /// # Errors
    /// [`ModelError::Layer`] and [`ModelError::Unsupported`] for a graph that is not understood, [`ModelError::Shape`] and [`ModelError::Checkpoint`] for
    /// tensors that do not belong to it.
    pub fn open(dir: &Path) -> Result<Self> {
        read::open(dir)
    }

    /// The folder it came from.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name in `config.json`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.config.get("architecture").and_then(Value::as_str).unwrap_or("unnamed classifier")
    }

    /// `config.json`.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Rows and columns of the image.
    #[must_use]
    pub fn side(&self) -> usize {
        self.side
    }

    /// The output that stands for class 0 of the labels.
    #[must_use]
    pub fn class_offset(&self) -> usize {
        self.class_offset
    }

    /// Number of outputs.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.layers.last().map_or(0, |l| l.output[0])
    }

    /// All layers in order.
    #[must_use]
    pub fn layers(&self) -> &[ClassifierLayer] {
        &self.layers
    }

    /// The convolution of a layer.
    #[must_use]
    pub fn conv(&self, layer: usize) -> Option<&ConvLayer> {
        match self.layers.get(layer).map(|l| &l.op) {
            Some(LayerOp::Conv(conv)) => Some(conv),
            _ => None,
        }
    }

    /// The convolution of a layer, to change its numbers. Its sizes must stay: lengths are checked again when it runs or is written.
    #[must_use]
    pub fn conv_mut(&mut self, layer: usize) -> Option<&mut ConvLayer> {
        match self.layers.get_mut(layer).map(|l| &mut l.op) {
            Some(LayerOp::Conv(conv)) => Some(conv),
            _ => None,
        }
    }

    /// The tensor of a layer's weight.
    #[must_use]
    pub fn weight_name(layer: usize) -> String {
        format!("layers.{layer}.weight")
    }

    /// The convolution that gives the logits.
    #[must_use]
    pub fn head(&self) -> Option<usize> {
        (0..self.layers.len()).rev().find(|i| self.conv(*i).is_some())
    }

    /// The layers that pruning may touch: 1×1 convolutions but the one that gives the logits. The entry, the
    /// depthwise layers and the logits are a few per cent of the work and the first to cost accuracy.
    #[must_use]
    pub fn prunable(&self) -> Vec<usize> {
        let head = self.head();
        let is_prunable = |i: &usize| Some(*i) != head && self.conv(*i).is_some_and(ConvLayer::is_pointwise);
        (0..self.layers.len()).filter(is_prunable).collect()
    }

    /// The network that runs, with the logits as its output.
    ///
    /// # Errors
    /// [`ModelError::Network`] for what the kernels refuse.
    pub fn network(&self, settings: &NetworkSettings) -> Result<ClassifierNetwork> {
        let mut nodes: Vec<Node<'_>> = Vec::new();
        let mut node_of: Vec<Option<usize>> = Vec::with_capacity(self.layers.len());
        let mut layer_of = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let node = |l: usize| node_of.get(l).copied().flatten();
            let input = layer.input.and_then(node);
            let op = match &layer.op {
                LayerOp::Conv(c) => Op::Conv {
                    weight: &c.weight,
                    bias: Some(&c.bias),
                    d_out: c.d_out,
                    groups: c.groups,
                    kernel: c.kernel,
                    stride: c.stride,
                    padding: c.padding,
                },
                // Reading checked that the operand is a layer.
                LayerOp::Add { other } => Op::Add { other: node(*other).unwrap_or(usize::MAX) },
                LayerOp::GlobalAverage => Op::GlobalAverage,
                LayerOp::Flatten | LayerOp::Softmax => {
                    node_of.push(input);
                    continue;
                }
            };
            node_of.push(Some(nodes.len()));
            layer_of.push(i);
            nodes.push(Node { input, op, clamp: layer.clamp });
        }
        let image = Image { channels: 3, height: self.side, width: self.side, layout: Layout::Hwc };
        let network = Network::new(image, &nodes, settings)
            .map_err(|source| ModelError::Network { name: self.name().to_owned(), source })?;
        Ok(ClassifierNetwork { network, layer_of })
    }

    /// The numbers of an image of `side() × side()` RGB bytes, pixel by pixel.
    ///
    /// # Errors
    /// [`ModelError::Shape`] for another number of bytes.
    pub fn numbers(&self, rgb: &[u8], out: &mut Vec<f32>) -> Result<()> {
        if rgb.len() != 3 * self.side * self.side {
            return Err(ModelError::Shape {
                tensor: "image".to_owned(),
                expected: vec![self.side, self.side, 3],
                found: vec![rgb.len()],
            });
        }
        out.clear();
        match self.scaling {
            Scaling::Symmetric => out.extend(rgb.iter().map(|x| f32::from(*x) / 127.5 - 1.0)),
            Scaling::Unit => out.extend(rgb.iter().map(|x| f32::from(*x) / 255.0)),
        }
        Ok(())
    }

    fn missing(&self, tensor: String, shape: Vec<usize>) -> ModelError {
        CheckpointError::MissingTensor { dir: self.dir.clone(), tensor, shape }.into()
    }
}

/// A network made from a classifier.
#[derive(Debug)]
pub struct ClassifierNetwork {
    /// What runs.
    pub network: Network,
    /// The layer of each node; `flatten` and `softmax` have none.
    pub layer_of: Vec<usize>,
}

/// The place of `class` in the order of the logits, 0 for the highest; equal logits count as higher. NaN anywhere counts as last.
#[must_use]
pub fn rank(logits: &[f32], class: usize) -> usize {
    let Some(own) = logits.get(class).filter(|l| !l.is_nan()) else {
        return logits.len();
    };
    logits
        .iter()
        .enumerate()
        .filter(|(i, l)| *i != class && (*l).partial_cmp(own) != Some(std::cmp::Ordering::Less))
        .count()
}
