//! MobileNets with random weights, for tests and for measuring speed without real ones.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use rarefy_checkpoint::DType;
use rarefy_kernels::Clamp;
use rarefy_kernels::cnn::{MOBILENET_V1, Padding};

use super::{Classifier, ClassifierLayer, ConvLayer, LayerOp};

/// Factor, channels, count and stride of the groups of inverted residuals of MobileNet v2.
const V2: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

/// MobileNet v1 with `channels · width / 4` channels per layer (`width` 4 is 1.0), images of `side × side`, 1001 outputs.
#[must_use]
pub fn mobilenet_v1(width: usize, side: usize, seed: u64) -> Classifier {
    let mut net = Builder::new(format!("mobilenet-v1-random-{side}"), side, seed);
    let scaled = |c: usize| (c * width / 4).max(8);
    let mut at = net.conv(None, scaled(32), 3, 2, false, Clamp::RELU6);
    for (channels, stride) in MOBILENET_V1 {
        at = net.depthwise(at, stride);
        at = net.conv(Some(at), scaled(channels), 1, 1, false, Clamp::RELU6);
    }
    net.finish(at)
}

/// MobileNet v2 with `channels · width / 4` channels per layer, images of `side × side`, 1001 outputs.
#[must_use]
pub fn mobilenet_v2(width: usize, side: usize, seed: u64) -> Classifier {
    let mut net = Builder::new(format!("mobilenet-v2-random-{side}"), side, seed);
    let scaled = |c: usize| (c * width / 4).max(8).next_multiple_of(8);
    let mut at = net.conv(None, scaled(32), 3, 2, false, Clamp::RELU6);
    for (factor, channels, count, first_stride) in V2 {
        for i in 0..count {
            let input = at;
            let (d_in, d_out) = (net.layers[at].output[0], scaled(channels));
            if factor > 1 {
                at = net.conv(Some(at), d_in * factor, 1, 1, false, Clamp::RELU6);
            }
            let stride = if i == 0 { first_stride } else { 1 };
            at = net.depthwise(at, stride);
            at = net.conv(Some(at), d_out, 1, 1, false, Clamp::NONE);
            if stride == 1 && d_in == d_out {
                let output = net.layers[at].output;
                at = net.push(Some(at), LayerOp::Add { other: input }, Clamp::NONE, output);
            }
        }
    }
    at = net.conv(Some(at), scaled(1280), 1, 1, false, Clamp::RELU6);
    net.finish(at)
}

struct Builder {
    name: String,
    side: usize,
    layers: Vec<ClassifierLayer>,
    rng: ChaCha8Rng,
}

impl Builder {
    fn new(name: String, side: usize, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { name, side, layers: Vec::new(), rng }
    }

    fn push(&mut self, input: Option<usize>, op: LayerOp, clamp: Clamp, output: [usize; 3]) -> usize {
        self.layers.push(ClassifierLayer { input, op, clamp, output });
        self.layers.len() - 1
    }

    fn depthwise(&mut self, input: usize, stride: usize) -> usize {
        self.conv(Some(input), self.layers[input].output[0], 3, stride, true, Clamp::RELU6)
    }

    /// Weights that keep the size of the numbers from layer to layer.
    fn conv(
        &mut self,
        input: Option<usize>,
        d_out: usize,
        kernel: usize,
        stride: usize,
        is_depthwise: bool,
        clamp: Clamp,
    ) -> usize {
        let [channels, height, width] = input.map_or([3, self.side, self.side], |i| self.layers[i].output);
        let (groups, d_in) = if is_depthwise { (channels, 1) } else { (1, channels) };
        let row = d_in * kernel * kernel;
        let bound = (6.0 / row as f32).sqrt();
        let weight = (0..d_out * row).map(|_| self.rng.random_range(-bound..bound)).collect();
        let bias = (0..d_out).map(|_| self.rng.random_range(-0.1..0.1)).collect();
        let conv = ConvLayer {
            d_out,
            d_in,
            groups,
            kernel,
            stride,
            padding: Padding::Same,
            weight,
            bias,
            dtype: DType::F32,
            bias_dtype: DType::F32,
        };
        let output = [d_out, height.div_ceil(stride), width.div_ceil(stride)];
        self.push(input, LayerOp::Conv(conv), clamp, output)
    }

    fn finish(mut self, last: usize) -> Classifier {
        let channels = self.layers[last].output[0];
        let pooled = self.push(Some(last), LayerOp::GlobalAverage, Clamp::NONE, [channels, 1, 1]);
        let logits = self.conv(Some(pooled), 1001, 1, 1, false, Clamp::NONE);
        self.push(Some(logits), LayerOp::Flatten, Clamp::NONE, [1001, 1, 1]);
        let classes = ("1001 random classes; output index = index + 1", 1);
        Classifier::assemble(&self.name, self.side, classes, self.layers)
    }
}
