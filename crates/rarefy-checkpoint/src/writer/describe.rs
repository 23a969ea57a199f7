//! What config.json says about the form of the weights.

use super::OutputFormat;
use super::encode::Record;
use crate::config::ModelConfig;
use crate::layout::{self, Role};
use crate::packed;
use crate::store::Storage;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The config.json of the output: that of the source, with what it said about compression replaced. `model` gives the
/// linear layers that the output leaves uncompressed.
pub(crate) fn config(
    source: &Value,
    model: Option<&ModelConfig>,
    format: OutputFormat,
    records: &[&Record],
) -> Value {
    let mut object = source.as_object().cloned().unwrap_or_default();
    for key in ["quantization_config", "compression_config", "rarefy_config"] {
        object.remove(key);
    }
    let written: Vec<&Record> = records.iter().copied().filter(|r| r.storage != Storage::Dense).collect();
    if !written.is_empty() {
        if format == OutputFormat::Packed {
            let tensors: Map<String, Value> = written
                .iter()
                .filter_map(|r| Some((r.name.clone(), serde_json::to_value(r.packed.as_ref()?).ok()?)))
                .collect();
            object.insert("rarefy_config".into(), json!({ "version": packed::VERSION, "tensors": tensors }));
        } else {
            let entry = compressed(format, &written, &ignored(model, &written));
            object.insert("quantization_config".into(), entry);
        }
    }
    Value::Object(object)
}

fn module(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// Linear modules that are not compressed.
fn ignored(model: Option<&ModelConfig>, written: &[&Record]) -> Vec<String> {
    let Some(model) = model else { return Vec::new() };
    let compressed: BTreeSet<&str> = written.iter().map(|r| module(&r.name)).collect();
    let mut out: Vec<String> = layout::expected(model)
        .into_iter()
        .filter(|s| matches!(s.role, Role::Linear | Role::Head | Role::Projection))
        .map(|s| module(&s.name).to_owned())
        .filter(|m| !compressed.contains(m.as_str()))
        .collect();
    if model.tie_embeddings {
        // A tied output layer is a linear module as well, without a tensor of its own.
        out.push("lm_head".into());
    }
    out
}

fn compressed(format: OutputFormat, written: &[&Record], ignore: &[String]) -> Value {
    match format {
        OutputFormat::PackQuantized { bits, group } => {
            let (with, without): (Vec<&Record>, Vec<&Record>) =
                written.iter().copied().partition(|r| r.has_zero_points);
            let one = |symmetric: bool, targets: Value| {
                json!({
                    "format": "pack-quantized",
                    "input_activations": null,
                    "output_activations": null,
                    "targets": targets,
                    "weights": {
                        "actorder": null,
                        "block_structure": null,
                        "dynamic": false,
                        "group_size": if group == 0 { Value::Null } else { group.into() },
                        "num_bits": bits,
                        "observer": "minmax",
                        "observer_kwargs": {},
                        "strategy": if group == 0 { "channel" } else { "group" },
                        "symmetric": symmetric,
                        "type": "int",
                    },
                })
            };
            let names =
                |list: &[&Record]| list.iter().map(|r| Value::from(module(&r.name))).collect::<Value>();
            let groups = match (with.is_empty(), without.is_empty()) {
                (true, _) => json!({ "group_0": one(true, json!(["Linear"])) }),
                (false, true) => json!({ "group_0": one(false, json!(["Linear"])) }),
                (false, false) => {
                    json!({ "group_0": one(true, names(&without)), "group_1": one(false, names(&with)) })
                }
            };
            json!({
                "config_groups": groups,
                "format": "pack-quantized",
                "global_compression_ratio": null,
                "ignore": ignore,
                "kv_cache_scheme": null,
                "quant_method": "compressed-tensors",
                "quantization_status": "compressed",
                "version": "0.18.0",
            })
        }
        _ => {
            let (zeros, elements) = written.iter().fold((0, 0), |(z, n), r| (z + r.zeros, n + r.elements));
            let (name, structure) = match format {
                OutputFormat::Sparse24Bitmask => ("sparse-24-bitmask", "2:4"),
                _ => ("sparse-bitmask", "unstructured"),
            };
            json!({
                "quant_method": "compressed-tensors",
                "sparsity_config": {
                    "format": name,
                    "global_sparsity": zeros as f64 / (elements as f64).max(1.0),
                    "ignore": ignore,
                    "sparsity_structure": structure,
                    "targets": ["Linear"],
                },
                "version": "0.14.0",
            })
        }
    }
}
