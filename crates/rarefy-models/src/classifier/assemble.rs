//! From layers to a classifier that can be run and written, without a folder.

use std::path::PathBuf;

use rarefy_kernels::Clamp;
use rarefy_kernels::cnn::Padding;
use serde_json::{Value, json};

use super::{Classifier, ClassifierLayer, LayerOp, Scaling};

impl Classifier {
    /// A classifier of these layers, for images of `side × side` whose bytes become `x / 127.5 - 1`. `classes` says in words what the
    /// outputs are; `class_offset` is the output of class 0, which `classes` must state as "index + N" when it is not 0.
    pub(crate) fn assemble(
        name: &str,
        side: usize,
        (classes, class_offset): (&str, usize),
        layers: Vec<ClassifierLayer>,
    ) -> Self {
        let described: Vec<Value> = layers.iter().map(describe).collect();
        let config = json!({
            "architecture": name,
            "input_resolution": side,
            "input": "RGB CHW float, x/127.5-1",
            "classes": classes,
            "layers": described,
        });
        Self { dir: PathBuf::new(), config, side, scaling: Scaling::Symmetric, class_offset, layers }
    }
}

/// A layer as `config.json` lists it.
fn describe(layer: &ClassifierLayer) -> Value {
    let input = layer.input.map_or(-1, |i| i as i64);
    match &layer.op {
        LayerOp::Conv(conv) => json!({
            "op": "conv",
            "input": input,
            "stride": conv.stride,
            "padding": match conv.padding {
                Padding::Same => json!("SAME"),
                Padding::Pixels(n) => json!(n),
            },
            "act": if layer.clamp == Clamp::RELU6 {
                "relu6"
            } else if layer.clamp == Clamp::RELU {
                "relu"
            } else {
                "none"
            },
            "groups": conv.groups,
            "weight_shape": [conv.d_out, conv.d_in, conv.kernel, conv.kernel],
        }),
        LayerOp::Add { other } => json!({"op": "add", "input": input, "other": other}),
        LayerOp::GlobalAverage => json!({"op": "global_avg_pool", "input": input}),
        LayerOp::Flatten => json!({"op": "flatten", "input": input}),
        LayerOp::Softmax => json!({"op": "softmax", "input": input}),
    }
}
