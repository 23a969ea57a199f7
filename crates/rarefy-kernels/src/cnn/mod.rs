//! Runs a whole convolutional network in CHW, dense or sparse layer by layer, without any framework.
//!
//! [`Network::new`] takes the nodes in order, chooses a kernel for each, and plans where every activation lies: buffers
//! whose nodes are done are used again, an addition writes over the operand that nobody reads later. A forward pass then
//! allocates nothing; all memory is one slice given by the caller, best an [`crate::AlignedBuf`], which lies on huge pages.
//!
//! Batch-norm must be folded before. The layers of MobileNet v1 and v2 are there; what is missing is an error, never a slow path.

mod awake;
mod layer;
mod plan;

use layer::Layer;
use plan::Span;

use crate::chw::{Layout, residual_add};
use crate::error::{at_least, length, product};
use crate::{Clamp, Isa, KernelError};

const NAME: &str = "network";

/// Output channels and stride of the thirteen pairs of a depthwise and a 1×1 convolution of MobileNet v1 1.0 (arXiv 1704.04861, table 1), behind
/// an entry convolution of 32 channels and stride 2.
#[rustfmt::skip]
pub const MOBILENET_V1: [(usize, usize); 13] = [
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
];

/// The padding of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// TensorFlow's `SAME`, see [`crate::chw::Geometry::same`].
    Same,
    /// That many pixels on all sides.
    Pixels(usize),
}

/// What a node computes.
#[derive(Debug, Clone, Copy)]
pub enum Op<'a> {
    /// A convolution with `weight[d_out][d_in / groups][kernel][kernel]`; `groups` is 1 or all channels (depthwise).
    Conv {
        /// The weights, zeros where pruned.
        weight: &'a [f32],
        /// One per output channel; none: zeros.
        bias: Option<&'a [f32]>,
        /// Output channels.
        d_out: usize,
        /// 1, or the number of channels.
        groups: usize,
        /// Side of the window.
        kernel: usize,
        /// Its step.
        stride: usize,
        /// Zeros around the image.
        padding: Padding,
    },
    /// The sum with the output of an earlier node.
    Add {
        /// Its index.
        other: usize,
    },
    /// The mean of every channel; the image is one pixel from there on.
    GlobalAverage,
}

/// A node of the network.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// The node whose output it reads; `None`: the image.
    pub input: Option<usize>,
    /// What it computes.
    pub op: Op<'a>,
    /// The activation.
    pub clamp: Clamp,
}

/// The image that the network reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Channels, 3 for colours.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// HWC only for a first convolution of full depth.
    pub layout: Layout,
}

/// Which kernels may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NetworkSettings {
    /// False: every layer dense, to compare.
    pub may_be_sparse: bool,
    /// Largest block of output channels looked for, 1 to 16. Ours: 16.
    pub largest_block: usize,
    /// The memory lies on huge pages: images may be read in place ([`crate::spmm::Spmm::reading_in_place`]). Ours: true.
    pub huge_pages: bool,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self { may_be_sparse: true, largest_block: 16, huge_pages: true }
    }
}

/// What was chosen for a node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeReport {
    /// Kernel, with its block height when sparse.
    pub kernel: String,
    /// Why not a sparse one, in words; empty when it is sparse or has no weights.
    pub reason: String,
    /// Fraction of non-zero weights; 1 without weights.
    pub density: f64,
    /// Multiply-adds of a dense pass.
    pub products: usize,
    /// Channels, rows and columns of the output.
    pub output: [usize; 3],
    /// Bytes of the weights as they are held.
    pub bytes: usize,
}

/// A network ready to run.
#[derive(Debug)]
pub struct Network {
    image: Image,
    nodes: Vec<Planned>,
    activations: usize,
}

#[derive(Debug)]
struct Planned {
    layer: Layer,
    input: Option<usize>,
    clamp: Clamp,
    span: Span,
    report: NodeReport,
}

impl Network {
    /// Chooses kernels and plans memory. The output is that of the last node.
    ///
    /// # Errors
    /// [`KernelError::Setting`] for no nodes, an index that is not of an earlier node, groups other than 1 or all channels, an
    /// addition of two shapes, and an HWC image read by anything but a full convolution; and what the kernels refuse.
    pub fn new(image: Image, nodes: &[Node<'_>], settings: &NetworkSettings) -> Result<Self, KernelError> {
        if nodes.is_empty() {
            return Err(setting("nodes", 0, "at least one"));
        }
        let mut planned: Vec<Planned> = Vec::with_capacity(nodes.len());
        for (i, node) in nodes.iter().enumerate() {
            let shape = |at: Option<usize>| match at {
                None => Ok(([image.channels, image.height, image.width], image.layout)),
                Some(n) if n < i => Ok((planned[n].report.output, Layout::Chw)),
                Some(n) => Err(setting("input", n, "the index of an earlier node")),
            };
            let (input, layout) = shape(node.input)?;
            if let Op::Add { other } = node.op
                && shape(Some(other))?.0 != input
            {
                return Err(setting("other", other, "a node with an output of the same shape"));
            }
            let (layer, mut report) = Layer::choose(&node.op, input, layout, settings)?;
            report.bytes = layer.bytes();
            planned.push(Planned {
                layer,
                input: node.input,
                clamp: node.clamp,
                span: Span::default(),
                report,
            });
        }
        let activations = plan::assign(&mut planned)?;
        Ok(Self { image, nodes: planned, activations })
    }

    /// What was chosen for each node.
    pub fn report(&self) -> impl Iterator<Item = &NodeReport> {
        self.nodes.iter().map(|n| &n.report)
    }

    /// Elements of the output.
    pub fn out_len(&self) -> usize {
        self.nodes.last().map_or(0, |n| n.span.len)
    }

    /// Elements of memory for a pass on up to `threads` threads: activations and the scratch of the neediest layer.
    pub fn scratch_len(&self, threads: usize) -> usize {
        let layers = self.nodes.iter().map(|n| n.layer.scratch_len(threads)).max();
        self.activations.saturating_add(layers.unwrap_or(0)).saturating_add(plan::LINE)
    }

    /// The output for one image, on the current rayon pool. No allocation.
    ///
    /// # Errors
    /// [`KernelError::Length`] for a slice of the wrong length (`scratch`: too short for one thread).
    pub fn forward(&self, image: &[f32], y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), image, y, scratch, &mut |_| {})
    }

    /// [`Network::forward`] on a chosen code path; `after` is called with the index of each node when it is done, to time it.
    ///
    /// # Errors
    /// Also [`KernelError::Isa`] when this CPU lacks the path.
    pub fn forward_with(
        &self,
        isa: Isa,
        image: &[f32],
        y: &mut [f32],
        scratch: &mut [f32],
        after: &mut (dyn FnMut(usize) + Send),
    ) -> Result<(), KernelError> {
        let expected =
            product(NAME, self.image.channels, product(NAME, self.image.height, self.image.width)?)?;
        length(NAME, "image", expected, image.len())?;
        length(NAME, "y", self.out_len(), y.len())?;
        at_least(NAME, "scratch", self.scratch_len(1), scratch.len())?;
        awake::run(|| self.walk(isa, image, y, scratch, after))
    }

    /// All layers, with lengths that were checked.
    fn walk(
        &self,
        isa: Isa,
        image: &[f32],
        y: &mut [f32],
        scratch: &mut [f32],
        after: &mut (dyn FnMut(usize) + Send),
    ) -> Result<(), KernelError> {
        let skip = scratch.as_ptr().align_offset(64).min(plan::LINE);
        let (memory, scratch) = scratch[skip..].split_at_mut(self.activations);
        for (i, node) in self.nodes.iter().enumerate() {
            let from = node.input.map(|n| self.nodes[n].span);
            if let Layer::Add { other } = node.layer {
                self.add(node, other, image, memory)?;
            } else {
                let (x, out) = match from {
                    None => (image, &mut memory[node.span.range()]),
                    Some(from) => plan::two(memory, from, node.span),
                };
                node.layer.run(isa, x, node.clamp, out, scratch)?;
            }
            after(i);
        }
        if let Some(last) = self.nodes.last() {
            y.copy_from_slice(&memory[last.span.range()]);
        }
        Ok(())
    }

    /// `out = clamp(input + other)`; the plan laid the output over the input, or apart from both.
    fn add(
        &self,
        node: &Planned,
        other: usize,
        image: &[f32],
        memory: &mut [f32],
    ) -> Result<(), KernelError> {
        let (other, from) = (self.nodes[other].span, node.input.map(|n| self.nodes[n].span));
        match from {
            None => memory[node.span.range()].copy_from_slice(image),
            Some(from) if from != node.span => memory.copy_within(from.range(), node.span.begin),
            Some(_) => {}
        }
        let (x, y) = plan::two(memory, other, node.span);
        residual_add(x, y, node.clamp)
    }
}

fn setting(field: &'static str, value: usize, allowed: &'static str) -> KernelError {
    KernelError::Setting { field, value: value.to_string(), allowed }
}
