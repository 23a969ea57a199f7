//! `rarefy inspect` on an image classifier.

use std::path::Path;

use rarefy_kernels::Clamp;
use rarefy_models::classifier::{Classifier, ClassifierLayer, LayerOp};
use rarefy_sparsity::detect::detect;
use serde_json::{Value, json};

use super::refuse;
use crate::cli::inspect::InspectArgs;
use crate::cli::{CliResult, Context, bytes, percent};

pub(in crate::cli) fn inspect(folder: &Path, args: &InspectArgs, context: &Context) -> CliResult {
    // One line per layer in any case, which is what `--tensors` asks for.
    refuse(&[("headers-only", args.headers_only)])?;
    let model = Classifier::open(folder)?;
    let prunable = model.prunable();
    let mut table = context.out.table(&[
        "layer",
        "what",
        "reads",
        "weight",
        "output",
        "activation",
        "zeros",
        "pattern",
        "multiply-adds",
        "bytes",
    ]);
    let (mut values, mut parameters, mut stored, mut products) = (Vec::new(), 0, 0, 0);
    let (mut zeros, mut elements) = (0, 0);
    for (i, layer) in model.layers().iter().enumerate() {
        let [c, h, w] = layer.output;
        let mut row = [
            i.to_string(),
            what(layer),
            reads(layer),
            "–".to_owned(),
            format!("{c} x {h} x {w}"),
            activation(layer.clamp).to_owned(),
            "–".to_owned(),
            "–".to_owned(),
            "–".to_owned(),
            "–".to_owned(),
        ];
        let mut value = json!({
            "layer": i,
            "op": what(layer),
            "input": layer.input,
            "output": layer.output,
            "activation": activation(layer.clamp),
            "prunable": prunable.contains(&i),
        });
        if let (Some(conv), Some(fields)) = (model.conv(i), value.as_object_mut()) {
            let shape = [conv.d_out, conv.d_in, conv.kernel, conv.kernel];
            let found = detect(&conv.weight, conv.d_out, conv.d_in * conv.kernel * conv.kernel)?;
            let work = conv.weight.len() * h * w;
            let size = conv.weight.len() * conv.dtype.size() + conv.bias.len() * conv.bias_dtype.size();
            let pattern = found.best.map_or_else(|| "–".to_owned(), |p| p.to_string());
            row[3] = format!("{} x {} x {} x {}", shape[0], shape[1], shape[2], shape[3]);
            row[6] = percent(found.sparsity());
            row[7].clone_from(&pattern);
            row[8] = format!("{:.2} M", work as f64 / 1e6);
            row[9] = bytes(size as u64);
            let more = [
                ("weight_shape", json!(shape)),
                ("groups", json!(conv.groups)),
                ("stride", json!(conv.stride)),
                ("dtype", json!(conv.dtype.to_string())),
                ("zeros", json!(found.zeros)),
                ("sparsity", json!(found.sparsity())),
                ("pattern", json!(found.best.map(|p| p.to_string()))),
                ("products", json!(work)),
                ("bytes", json!(size)),
            ];
            fields.extend(more.map(|(k, v)| (k.to_owned(), v)));
            parameters += conv.weight.len() + conv.bias.len();
            stored += size;
            products += work;
            if prunable.contains(&i) {
                zeros += found.zeros;
                elements += conv.weight.len();
            }
        }
        table.add_row(row);
        values.push(value);
    }
    let sparsity = zeros as f64 / elements.max(1) as f64;
    let value = json!({
        "model": args.model.label(),
        "architecture": model.name(),
        "kind": "image classifier",
        "resolution": model.side(),
        "outputs": model.outputs(),
        "class_offset": model.class_offset(),
        "parameters": parameters,
        "bytes": stored,
        "products": products,
        "prunable_weights": elements,
        "zeros": zeros,
        "sparsity": sparsity,
        "measured": model.config().get("measured").cloned().unwrap_or(Value::Null),
        "layers": values,
    });
    let text = format!(
        "{}: {}, an image classifier for {} x {} pixels, {} outputs, {} layers\n\
         {:.3} million parameters, {} on disk; {:.1} million multiply-adds per image\n\
         1x1 convolutions that pruning may touch: {elements} weights, {zeros} zero ({})\n{table}\n",
        args.model.label(),
        model.name(),
        model.side(),
        model.side(),
        model.outputs(),
        model.layers().len(),
        parameters as f64 / 1e6,
        bytes(stored as u64),
        products as f64 / 1e6,
        percent(sparsity)
    );
    context.out.result(&text, &value)
}

fn what(layer: &ClassifierLayer) -> String {
    match &layer.op {
        LayerOp::Conv(c) if c.is_depthwise() => format!("depthwise {0}x{0} / {1}", c.kernel, c.stride),
        LayerOp::Conv(c) => format!("conv {0}x{0} / {1}", c.kernel, c.stride),
        LayerOp::Add { .. } => "add".into(),
        LayerOp::GlobalAverage => "global average".into(),
        LayerOp::Flatten => "flatten".into(),
        LayerOp::Softmax => "softmax".into(),
    }
}

fn reads(layer: &ClassifierLayer) -> String {
    let input = layer.input.map_or("image".to_owned(), |i| i.to_string());
    match layer.op {
        LayerOp::Add { other } => format!("{input}, {other}"),
        _ => input,
    }
}

fn activation(clamp: Clamp) -> &'static str {
    match clamp {
        Clamp::RELU6 => "relu6",
        Clamp::RELU => "relu",
        _ => "none",
    }
}
