//! From the network under training to a classifier, and the changes of its weights that keep what it computes.

use burn::tensor::Device;
use rarefy_checkpoint::DType;
use rarefy_kernels::Clamp;
use rarefy_kernels::cnn::Padding;

use super::kernels::{EPS, SIDE, TAPS};
use super::{ConvShape, Kind, MobileNet, MobileNetSettings, weight_name};
use crate::classifier::{Classifier, ClassifierLayer, ConvLayer, LayerOp};
use crate::error::{ModelError, Result};
use crate::tensors::to_host;

impl MobileNet {
    /// The classifier of these weights and running statistics: normalisation `a x + b` goes into the convolution before it as `a w` and `b`. A
    /// grey image is three equal planes to it, each with a third of the entry's weights. Zeros stay zeros.
    #[must_use]
    pub fn classifier(&self, name: &str) -> Classifier {
        let mut layers: Vec<ClassifierLayer> = Vec::with_capacity(self.convs.len() + 3);
        for (i, (layer, shape)) in self.convs.iter().zip(&*self.shapes).enumerate() {
            let (a, bias) = self.lines(i, &to_host(&layer.gamma.val()), &to_host(&layer.beta.val()));
            let rows = to_host(&layer.weight.val());
            let rows = rows.chunks_exact(shape.row()).zip(&a);
            let copies = if shape.kind == Kind::Entry && shape.d_in == 1 { 3 } else { 1 };
            let mut weight = Vec::with_capacity(shape.d_out * shape.row() * copies);
            for (row, a) in rows {
                for _ in 0..copies {
                    weight.extend(row.iter().map(|w| scaled(*w, a / copies as f32)));
                }
            }
            let out = shape.side.div_ceil(shape.stride);
            layers.push(ClassifierLayer {
                input: i.checked_sub(1),
                op: LayerOp::Conv(conv(shape, copies, weight, bias)),
                clamp: Clamp::RELU6,
                output: [shape.d_out, out, out],
            });
        }
        let [classes, channels] = self.head.dims();
        let pooled = layers.len();
        layers.push(ClassifierLayer {
            input: pooled.checked_sub(1),
            op: LayerOp::GlobalAverage,
            clamp: Clamp::NONE,
            output: [channels, 1, 1],
        });
        let head = ConvShape { kind: Kind::Pointwise, d_in: channels, d_out: classes, side: 1, stride: 1 };
        let (weight, bias) = (to_host(&self.head.val()), to_host(&self.head_bias.val()));
        layers.push(ClassifierLayer {
            input: Some(pooled),
            op: LayerOp::Conv(conv(&head, 1, weight, bias)),
            clamp: Clamp::NONE,
            output: [classes, 1, 1],
        });
        layers.push(ClassifierLayer {
            input: Some(pooled + 1),
            op: LayerOp::Flatten,
            clamp: Clamp::NONE,
            output: [classes, 1, 1],
        });
        let described = format!("{classes} classes of the training data");
        Classifier::assemble(name, self.settings.side, (&described, 0), layers)
    }

    /// The classifier of random weights of this shape: as fast as a trained one.
    ///
    /// # Errors
    /// Those of [`MobileNet::init`].
    pub fn untrained(settings: &MobileNetSettings, seed: u64) -> Result<Classifier> {
        Ok(Self::init(settings, seed, &Device::flex())?.classifier("untrained"))
    }

    /// Moves the scale of every normalisation into the convolution before it: the weights become those of the classifier, so that magnitudes
    /// rank alike in both, and the function stays.
    ///
    /// # Errors
    /// None that a network made by this crate can give.
    pub fn absorb_scales(&mut self) -> Result<()> {
        for i in 0..self.convs.len() {
            let row = self.shapes[i].row();
            let [weight, gamma, beta] = ["weight", "gamma", "beta"].map(|part| format!("layers.{i}.{part}"));
            let (mut w, g) = (self.get(&weight)?, self.get(&gamma)?);
            let (a, _) = self.lines(i, &g, &self.get(&beta)?);
            for (row, a) in w.chunks_exact_mut(row).zip(&a) {
                row.iter_mut().for_each(|w| *w = scaled(*w, *a));
            }
            let running = &mut self.running[i];
            let mut gamma_of_new = Vec::with_capacity(a.len());
            for ((mean, variance), a) in running.mean.iter_mut().zip(&mut running.variance).zip(&a) {
                *mean *= a;
                *variance *= a * a;
                gamma_of_new.push((*variance + EPS).sqrt());
            }
            self.set(&weight, w)?;
            self.set(&gamma, gamma_of_new)?;
        }
        Ok(())
    }

    /// Reorders the outputs of the 1×1 convolution of `layer`: channel `c` from now on is what `order[c]` was, in that convolution,
    /// in the depthwise one behind it and in what reads that. The function stays, but for the order of sums.
    ///
    /// # Errors
    /// [`ModelError::Permutation`] when `order` is no permutation of its channels, or `layer` no 1×1 convolution inside the blocks.
    pub fn permute(&mut self, layer: usize, order: &[usize]) -> Result<()> {
        let shape = self.shapes.get(layer).filter(|s| s.kind == Kind::Pointwise).copied();
        let channels = shape.map_or(0, |s| s.d_out);
        let mut seen = vec![false; channels];
        let is_new = |c: &usize| seen.get_mut(*c).is_some_and(|s| !std::mem::replace(s, true));
        if channels == 0 || order.len() != channels || !order.iter().all(is_new) {
            return Err(ModelError::Permutation { channels, found: order.len() });
        }
        let rows = |values: &[f32], row: usize| -> Vec<f32> {
            order.iter().flat_map(|c| &values[c * row..(c + 1) * row]).copied().collect()
        };
        for i in (layer..self.convs.len()).take(2) {
            let row = self.shapes[i].row();
            for (part, row) in [("weight", row), ("gamma", 1), ("beta", 1)] {
                let name = format!("layers.{i}.{part}");
                let moved = rows(&self.get(&name)?, row);
                self.set(&name, moved)?;
            }
            let running = &mut self.running[i];
            running.mean = rows(&running.mean, 1);
            running.variance = rows(&running.variance, 1);
        }
        let reader = if layer + 2 < self.convs.len() { layer + 2 } else { self.head_layer() };
        let name = weight_name(reader);
        let columns = self.get(&name)?;
        let moved = columns.chunks_exact(channels).flat_map(|row| order.iter().map(|c| row[*c])).collect();
        self.set(&name, moved)
    }
}

/// `w · a`, where a pruned weight stays +0.
fn scaled(w: f32, a: f32) -> f32 {
    if w == 0.0 { 0.0 } else { w * a }
}

fn conv(shape: &ConvShape, copies: usize, weight: Vec<f32>, bias: Vec<f32>) -> ConvLayer {
    let (d_in, groups, kernel) = match shape.kind {
        Kind::Entry => (shape.d_in * copies, 1, SIDE),
        Kind::Depthwise => (1, shape.d_in, SIDE),
        Kind::Pointwise => (shape.d_in, 1, 1),
    };
    debug_assert_eq!(weight.len(), shape.d_out * d_in * if kernel == 1 { 1 } else { TAPS });
    ConvLayer {
        d_out: shape.d_out,
        d_in,
        groups,
        kernel,
        stride: shape.stride,
        padding: Padding::Same,
        weight,
        bias,
        dtype: DType::F32,
        bias_dtype: DType::F32,
    }
}
