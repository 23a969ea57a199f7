//! The `quantization_config` (older: `compression_config`) entry of config.json.

use crate::error::{CheckpointError, Result};
use regex::Regex;
use serde_json::Value;
use std::path::Path;

/// The entry in typed form; only what decoding needs.
#[derive(Debug)]
pub(crate) struct QuantConfig {
    pub(crate) version: Option<(u64, u64)>,
    pub(crate) groups: Vec<QuantGroup>,
    pub(crate) sparsity: Option<SparseFormat>,
}

/// Format of the sparse weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SparseFormat {
    Dense,
    Bitmask,
    Bitmask24,
}

/// One entry of `config_groups`.
#[derive(Debug)]
pub(crate) struct QuantGroup {
    targets: Vec<Target>,
    pub(crate) weights: Option<QuantArgs>,
}

/// How the weights of a group are quantised.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QuantArgs {
    pub(crate) bits: u32,
    pub(crate) group_size: Option<usize>,
    pub(crate) block: Option<[usize; 2]>,
}

#[derive(Debug)]
enum Target {
    Name(String),
    Pattern(Regex),
}

impl Target {
    /// 2: names this module, 1: names its class (every class is taken to be a linear layer), 0: something else.
    fn rank(&self, module: &str) -> u8 {
        match self {
            Self::Name(n) if n == module => 2,
            Self::Name(n) if n == "Linear" => 1,
            Self::Name(_) => 0,
            Self::Pattern(r) => 2 * u8::from(r.is_match(module)),
        }
    }
}

fn field(file: &Path, field: &str, expected: &str, found: impl ToString) -> CheckpointError {
    let (field, found) = (format!("quantization_config.{field}"), found.to_string());
    CheckpointError::ConfigField { file: file.into(), field, expected: expected.into(), found }
}

fn unsupported(file: &Path, format: &str, remedy: &str) -> CheckpointError {
    CheckpointError::UnsupportedFormat { file: file.into(), format: format.into(), remedy: remedy.into() }
}

/// The error for a format of the compressed-tensors family that is not read here, naming a release that reads it.
pub(crate) fn unreadable(file: &Path, format: &str) -> CheckpointError {
    let remedy = match format {
        "marlin-24" => {
            "its tensors are permuted for one GPU kernel and no release decodes them; vLLM releases before the removal of 2:4 kernels could run it (files are written by compressed-tensors 0.14 and older); use the model before this conversion"
        }
        f if f.contains("fp4") || f.contains("mxfp8") => {
            "4-bit floating-point formats can be read by the Python package compressed-tensors 0.14 or newer; decompress the model with it first"
        }
        _ => {
            "known are dense, sparse-bitmask, sparse-24-bitmask, pack-quantized, int-quantized, float-quantized, naive-quantized and mixed-precision; decompress the model with the Python package compressed-tensors of the release named in the entry `version` first"
        }
    };
    unsupported(file, format, remedy)
}

fn check_format(file: &Path, format: &Value) -> Result<()> {
    match format.as_str() {
        None if format.is_null() => Ok(()),
        Some(
            "dense" | "pack-quantized" | "int-quantized" | "float-quantized" | "naive-quantized"
            | "mixed-precision" | "sparse-bitmask" | "sparse-24-bitmask",
        ) => Ok(()),
        Some(other) => Err(unreadable(file, other)),
        None => Err(field(file, "format", "a string", format)),
    }
}

impl QuantConfig {
    /// Reads the entry of a parsed config.json; `None` when the model has no such entry.
    pub(crate) fn parse(file: &Path, config: &Value) -> Result<Option<Self>> {
        let present = |key: &str| config.get(key).and_then(Value::as_object).filter(|o| !o.is_empty());
        let Some(entry) = present("quantization_config").or_else(|| present("compression_config")) else {
            return Ok(None);
        };
        match entry.get("quant_method").and_then(Value::as_str) {
            None | Some("compressed-tensors" | "sparseml") => {}
            Some(other) => {
                let remedy = "only the quantisation method compressed-tensors is read; use the model before quantisation";
                return Err(unsupported(file, other, remedy));
            }
        }
        let null = Value::Null;
        check_format(file, entry.get("format").unwrap_or(&null))?;
        let version = entry.get("version").and_then(Value::as_str).and_then(|v| {
            let mut numbers = v.split('.').map(|n| n.parse::<u64>().ok());
            Some((numbers.next()??, numbers.next()??))
        });
        let mut groups = Vec::new();
        match entry.get("config_groups") {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => {
                for (name, group) in map {
                    groups.push(QuantGroup::parse(file, name, group)?);
                }
            }
            Some(other) => return Err(field(file, "config_groups", "an object", other)),
        }
        let sparsity = match entry.get("sparsity_config") {
            None | Some(Value::Null) => None,
            Some(Value::Object(o)) if o.is_empty() => None,
            Some(Value::Object(o)) => match o.get("format").and_then(Value::as_str) {
                Some("dense") => Some(SparseFormat::Dense),
                Some("sparse-bitmask") => Some(SparseFormat::Bitmask),
                Some("sparse-24-bitmask") => Some(SparseFormat::Bitmask24),
                Some(other) => return Err(unreadable(file, other)),
                None => {
                    return Err(field(
                        file,
                        "sparsity_config.format",
                        "a format name",
                        o.get("format").unwrap_or(&null),
                    ));
                }
            },
            Some(other) => return Err(field(file, "sparsity_config", "an object", other)),
        };
        Ok(Some(Self { version, groups, sparsity }))
    }

    /// Quantisation of the weight of a module: the group that names it, else the one that names its class.
    pub(crate) fn args_for(&self, module: &str) -> Option<&QuantArgs> {
        let best = |rank| self.groups.iter().find(|g| g.targets.iter().any(|t| t.rank(module) == rank));
        best(2).or_else(|| best(1)).and_then(|g| g.weights.as_ref())
    }
}

impl QuantGroup {
    fn parse(file: &Path, name: &str, group: &Value) -> Result<Self> {
        let key = |k: &str| format!("config_groups.{name}.{k}");
        let Some(object) = group.as_object() else {
            let e = "an object (presets by name are not read; write out the settings)";
            return Err(field(file, &format!("config_groups.{name}"), e, group));
        };
        check_format(file, object.get("format").unwrap_or(&Value::Null))?;
        let mut targets = Vec::new();
        for target in object.get("targets").and_then(Value::as_array).into_iter().flatten() {
            let Some(text) = target.as_str() else {
                return Err(field(file, &key("targets"), "strings", target));
            };
            targets.push(match text.strip_prefix("re:") {
                None => Target::Name(text.into()),
                Some(expression) => {
                    Target::Pattern(Regex::new(&format!("^(?:{expression})")).map_err(|e| {
                        field(file, &key("targets"), "a regular expression without look-around", e)
                    })?)
                }
            });
        }
        let weights = match object.get("weights") {
            None | Some(Value::Null) => None,
            Some(Value::Object(w)) => Some(QuantArgs::parse(file, &key("weights"), w)?),
            Some(other) => return Err(field(file, &key("weights"), "an object", other)),
        };
        Ok(Self { targets, weights })
    }
}

impl QuantArgs {
    fn parse(file: &Path, key: &str, w: &serde_json::Map<String, Value>) -> Result<Self> {
        let null = Value::Null;
        let get = |k: &str| w.get(k).unwrap_or(&null);
        let bits = get("num_bits").as_u64().filter(|b| (1..=16).contains(b));
        let bits = bits.ok_or_else(|| {
            field(file, &format!("{key}.num_bits"), "a whole number from 1 to 16", get("num_bits"))
        })?;
        let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n >= 1);
        let group_size = match get("group_size") {
            Value::Null => None,
            // −1 means one group per row.
            v if v.as_i64() == Some(-1) => None,
            v => Some(
                size(v)
                    .ok_or_else(|| field(file, &format!("{key}.group_size"), "a positive whole number", v))?,
            ),
        };
        let block = match get("block_structure") {
            Value::Null => None,
            v => {
                let pair =
                    v.as_array().filter(|a| a.len() == 2).and_then(|a| Some([size(&a[0])?, size(&a[1])?]));
                Some(pair.ok_or_else(|| {
                    field(file, &format!("{key}.block_structure"), "two positive whole numbers", v)
                })?)
            }
        };
        Ok(Self { bits: bits as u32, group_size, block })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn parse(v: Value) -> Result<Option<QuantConfig>> {
        QuantConfig::parse(Path::new("config.json"), &json!({ "quantization_config": v }))
    }

    #[test]
    fn empty_or_absent_means_not_compressed() {
        assert!(parse(json!({})).unwrap().is_none());
        assert!(QuantConfig::parse(Path::new("c"), &json!({})).unwrap().is_none());
    }

    #[test]
    fn the_group_that_names_a_module_wins_over_the_one_that_names_its_class() {
        let w = |bits| json!({"num_bits": bits, "group_size": 16});
        let q = parse(json!({"quant_method": "compressed-tensors", "version": "0.9.1", "config_groups": {
            "a": {"targets": ["Linear"], "weights": w(4)},
            "b": {"targets": ["re:.*down_proj", "m.up"], "weights": w(8)},
        }}))
        .unwrap()
        .unwrap();
        assert_eq!(q.version, Some((0, 9)));
        assert_eq!(q.args_for("m.up").unwrap().bits, 8);
        assert_eq!(q.args_for("x.down_proj").unwrap().bits, 8);
        assert_eq!(q.args_for("x.q_proj").unwrap().bits, 4);
    }

    #[test]
    fn marlin_and_fp4_and_other_methods_name_format_and_release() {
        for (config, needle) in [
            (json!({"format": "marlin-24"}), "0.14"),
            (json!({"format": "nvfp4-pack-quantized"}), "0.14"),
            (json!({"sparsity_config": {"format": "marlin-24"}}), "marlin-24"),
            (json!({"quant_method": "gptq"}), "gptq"),
            (json!({"config_groups": {"g": {"format": "mxfp4-pack-quantized", "targets": []}}}), "mxfp4"),
        ] {
            let e = parse(config).unwrap_err();
            assert!(matches!(e, CheckpointError::UnsupportedFormat { .. }), "{e}");
            assert!(e.to_string().contains(needle), "{e}");
        }
    }

    #[test]
    fn hostile_values_are_errors() {
        for bad in [
            json!({"config_groups": 3}),
            json!({"config_groups": {"W4A16": ["Linear"]}}),
            json!({"config_groups": {"g": {"targets": ["re:("], "weights": null}}}),
            json!({"config_groups": {"g": {"targets": [1]}}}),
            json!({"config_groups": {"g": {"targets": [], "weights": {"num_bits": 0}}}}),
            json!({"config_groups": {"g": {"targets": [], "weights": {"num_bits": 4, "group_size": 0}}}}),
            json!({"sparsity_config": {"format": 7}}),
        ] {
            assert!(matches!(parse(bad.clone()), Err(CheckpointError::ConfigField { .. })), "{bad}");
        }
    }
}
