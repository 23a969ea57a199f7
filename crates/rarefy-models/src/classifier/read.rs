//! From a folder to a checked graph. Nothing in the folder is trusted.

use std::path::Path;

use rarefy_checkpoint::{TensorStore, read_config};
use rarefy_kernels::Clamp;
use rarefy_kernels::chw::Geometry;
use rarefy_kernels::cnn::Padding;
use serde_json::Value;

use super::{Classifier, ClassifierLayer, ConvLayer, LayerOp, Scaling};
use crate::error::{ModelError, Result};

/// Most layers of a graph.
const MAX_LAYERS: usize = 4096;
/// Largest side of the image.
const MAX_SIDE: u64 = 4096;
/// Most elements of one activation: 1 GiB of numbers.
const MAX_ACTIVATION: usize = 1 << 28;

pub(super) fn open(dir: &Path) -> Result<Classifier> {
    let config = read_config(dir)?;
    let store = TensorStore::open(dir, &config)?;
    let unsupported = |field, value: String, remedy| Err(ModelError::Unsupported { field, value, remedy });
    let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default();
    let Some(layers) = config.get("layers").and_then(Value::as_array) else {
        return unsupported("layers", "absent".into(), "a classifier lists its layers");
    };
    if !(1..=MAX_LAYERS).contains(&layers.len()) {
        return unsupported("layers", format!("{} entries", layers.len()), "1 to 4096 are allowed");
    }
    let side = match config.get("input_resolution").and_then(Value::as_u64) {
        Some(side) if (1..=MAX_SIDE).contains(&side) => side as usize,
        _ => {
            let found = config.get("input_resolution").map_or("absent".into(), Value::to_string);
            return unsupported("input_resolution", found, "a number from 1 to 4096 is needed");
        }
    };
    let scaling = match text("input").rsplit(", ").next().unwrap_or_default() {
        "x/127.5-1" => Scaling::Symmetric,
        "x/255" => Scaling::Unit,
        _ => {
            return unsupported(
                "input",
                text("input").chars().take(80).collect(),
                "it must end in `, x/127.5-1` or `, x/255`",
            );
        }
    };
    let mut classifier = Classifier {
        dir: dir.to_path_buf(),
        side,
        scaling,
        class_offset: class_offset(text("classes")),
        config: Value::Null,
        layers: Vec::with_capacity(layers.len()),
    };
    for (i, fields) in layers.iter().enumerate() {
        let reader = Reader { index: i, fields, store: &store, done: &classifier };
        let layer = reader.layer()?;
        classifier.layers.push(layer);
    }
    check_end(&classifier)?;
    classifier.config = config;
    Ok(classifier)
}

/// "… index + 1 …" is 1; nothing of that kind is 0.
fn class_offset(classes: &str) -> usize {
    let digits = classes.split_once("index + ").map_or("", |(_, rest)| rest);
    let digits: String = digits.chars().take_while(char::is_ascii_digit).take(6).collect();
    digits.parse().unwrap_or(0)
}

/// The last layer must give one vector, and nothing may stand behind a softmax.
fn check_end(classifier: &Classifier) -> Result<()> {
    let layers = &classifier.layers;
    let refuse = |layer: usize, value: String, expected| {
        Err(ModelError::Layer { layer, field: "op", value, expected })
    };
    if let Some(soft) = layers.iter().position(|l| matches!(l.op, LayerOp::Softmax))
        && soft + 1 != layers.len()
    {
        return refuse(soft, "softmax".into(), "a softmax only as the last layer");
    }
    // What runs last must be what the classes are read from.
    let last = layers.len() - 1;
    let mut at = last;
    while matches!(layers[at].op, LayerOp::Flatten | LayerOp::Softmax) {
        match layers[at].input {
            Some(input) if input + 1 == at => at = input,
            _ => {
                return refuse(at, "not fed by the layer before it".into(), "the layers at the end in a row");
            }
        }
    }
    let [channels, height, width] = layers[last].output;
    if height * width != 1 || channels < 2 || classifier.head().is_none() {
        let found = format!("output of {channels} x {height} x {width}");
        return refuse(last, found, "one number for each of at least two classes");
    }
    if classifier.class_offset >= channels {
        return Err(ModelError::Unsupported {
            field: "classes",
            value: format!("index + {}", classifier.class_offset),
            remedy: "the offset must be less than the number of outputs",
        });
    }
    Ok(())
}

struct Reader<'a> {
    index: usize,
    fields: &'a Value,
    store: &'a TensorStore,
    done: &'a Classifier,
}

impl Reader<'_> {
    fn refuse<T>(&self, field: &'static str, expected: &'static str) -> Result<T> {
        let value = self.fields.get(field).map_or("absent".into(), Value::to_string);
        let value = value.chars().take(80).collect();
        Err(ModelError::Layer { layer: self.index, field, value, expected })
    }

    fn number(&self, field: &'static str, largest: u64) -> Result<usize> {
        match self.fields.get(field).and_then(Value::as_u64) {
            Some(n) if (1..=largest).contains(&n) => Ok(n as usize),
            _ => self.refuse(field, "a whole number of at least 1, not beyond reason"),
        }
    }

    /// An earlier layer: this is what rules out cycles.
    fn earlier(&self, field: &'static str) -> Result<usize> {
        match self.fields.get(field).and_then(Value::as_u64) {
            Some(n) if n < self.index as u64 => Ok(n as usize),
            _ => self.refuse(field, "the number of an earlier layer"),
        }
    }

    fn layer(&self) -> Result<ClassifierLayer> {
        let input = match self.fields.get("input").and_then(Value::as_i64) {
            Some(-1) => None,
            _ => Some(self.earlier("input")?),
        };
        let side = self.done.side;
        let shape = input.map_or([3, side, side], |i| self.done.layers[i].output);
        let clamp = match self.fields.get("act").map(|a| a.as_str().unwrap_or("?")) {
            None | Some("none" | "linear") => Clamp::NONE,
            Some("relu") => Clamp::RELU,
            Some("relu6") => Clamp::RELU6,
            Some(_) => return self.refuse("act", "`none`, `relu` or `relu6`"),
        };
        let op = self.fields.get("op").and_then(Value::as_str).unwrap_or_default();
        if op != "conv" && input.is_none() {
            return self.refuse("input", "only a convolution can read the image");
        }
        let (op, output) = match op {
            "conv" => self.conv(shape)?,
            "add" => {
                let other = self.earlier("other")?;
                if self.done.layers[other].output != shape {
                    return self.refuse("other", "a layer whose output has the shape of `input`'s");
                }
                (LayerOp::Add { other }, shape)
            }
            "global_avg_pool" => (LayerOp::GlobalAverage, [shape[0], 1, 1]),
            "flatten" | "softmax" => {
                if shape[1] * shape[2] != 1 || clamp != Clamp::NONE {
                    return self.refuse("op", "an input of one pixel and no activation");
                }
                (if op == "flatten" { LayerOp::Flatten } else { LayerOp::Softmax }, shape)
            }
            _ => {
                return self.refuse("op", "`conv`, `add`, `global_avg_pool`, `flatten` or `softmax`");
            }
        };
        Ok(ClassifierLayer { input, op, clamp, output })
    }

    fn conv(&self, [channels, height, width]: [usize; 3]) -> Result<(LayerOp, [usize; 3])> {
        let groups = self.number("groups", 1 << 20)?;
        let stride = self.number("stride", 64)?;
        let padding = match self.fields.get("padding") {
            Some(Value::String(p)) if p == "SAME" => Padding::Same,
            Some(Value::String(p)) if p == "VALID" => Padding::Pixels(0),
            Some(Value::Number(n)) if n.as_u64().is_some_and(|n| n < 64) => {
                Padding::Pixels(n.as_u64().unwrap_or(0) as usize)
            }
            _ => return self.refuse("padding", "`SAME`, `VALID` or a number of pixels"),
        };
        if groups != 1 && groups != channels {
            return self.refuse("groups", "1, or the number of channels");
        }
        let name = Classifier::weight_name(self.index);
        let stated: Option<Vec<usize>> = match self.fields.get("weight_shape") {
            None => None,
            Some(Value::Array(sizes)) if sizes.len() == 4 => {
                let sizes: Option<Vec<usize>> = sizes
                    .iter()
                    .map(|s| s.as_u64().filter(|s| (1..=1 << 24).contains(s)).map(|s| s as usize))
                    .collect();
                match sizes {
                    Some(sizes) => Some(sizes),
                    None => return self.refuse("weight_shape", "four sizes of at least 1"),
                }
            }
            Some(_) => return self.refuse("weight_shape", "four sizes of at least 1"),
        };
        let Some(tensor) = self.store.tensors().get(&name) else {
            return Err(self.done.missing(name, stated.unwrap_or_else(|| vec![0, channels / groups, 0, 0])));
        };
        let expected = |expected: Vec<usize>| ModelError::Shape {
            tensor: name.clone(),
            expected,
            found: tensor.shape.clone(),
        };
        let (d_out, kernel) = match (&*tensor.shape, &stated) {
            (found, Some(stated)) if found != &**stated => return Err(expected(stated.clone())),
            (&[d_out, d_in, k, k2], _) if d_out > 0 && d_in == channels / groups && k == k2 && k > 0 => {
                (d_out, k)
            }
            (&[d_out, _, k, _], _) => return Err(expected(vec![d_out, channels / groups, k, k])),
            _ => return Err(expected(vec![0, channels / groups, 0, 0])),
        };
        if groups != 1 && d_out != channels {
            return Err(expected(vec![channels, 1, kernel, kernel]));
        }
        let refused = |source| ModelError::Kernel { tensor: name.clone(), source };
        let geometry = match padding {
            Padding::Same => Geometry::same(height, width, kernel, stride),
            Padding::Pixels(pad) => Geometry::padded(height, width, kernel, stride, pad),
        }
        .map_err(refused)?;
        let output = [d_out, geometry.out_height(), geometry.out_width()];
        if d_out.checked_mul(geometry.out_pixels()).is_none_or(|n| n > MAX_ACTIVATION) {
            return self.refuse("op", "an output of at most 268 million numbers");
        }
        let dtype = tensor.dtype;
        let bias_name = format!("layers.{}.bias", self.index);
        let others = [&name, &bias_name].map(|n| (n, self.store.tensors().get(n)));
        if let Some((name, dtype)) =
            others.iter().find_map(|(n, t)| t.filter(|t| !t.dtype.is_float()).map(|t| (n, t.dtype)))
        {
            return Err(ModelError::Unsupported {
                field: "dtype",
                value: format!("{dtype} of `{name}`"),
                remedy: "weights must be floating-point numbers",
            });
        }
        let (bias, bias_dtype) = match self.store.tensors().get(&bias_name) {
            None => return Err(self.done.missing(bias_name, vec![d_out])),
            Some(bias) if bias.shape != [d_out] => {
                let found = bias.shape.clone();
                return Err(ModelError::Shape { tensor: bias_name, expected: vec![d_out], found });
            }
            Some(bias) => (self.store.read_f32(&bias_name)?, bias.dtype),
        };
        let weight = self.store.read_f32(&name)?;
        let d_in = channels / groups;
        let conv =
            ConvLayer { d_out, d_in, groups, kernel, stride, padding, weight, bias, dtype, bias_dtype };
        Ok((LayerOp::Conv(conv), output))
    }
}
