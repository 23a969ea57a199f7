//! Bad input: each kind gives a message that names the place and the remedy, exit code 2, and no output folder.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{Parts, builtin, copy_of, put_together, refuse, take_apart, text};
use serde_json::{Value, json};

/// A copy of the built-in model, damaged by `damage`.
struct Damaged {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Damaged {
    fn new(damage: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = copy_of(&builtin(), &folder.path().join("model"));
        damage(&model);
        Self { folder, model }
    }

    fn weights(change: impl FnOnce(&mut Parts)) -> Self {
        Self::new(|model| {
            let file = model.join("model.safetensors");
            let mut parts = take_apart(&file);
            change(&mut parts);
            put_together(&file, &parts);
        })
    }

    fn config(change: impl FnOnce(&mut Value)) -> Self {
        Self::new(|model| {
            let file = model.join("config.json");
            let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            change(&mut config);
            std::fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
        })
    }

    /// `inspect` and `prune` both refuse it.
    #[track_caller]
    fn is_refused(&self, needles: &[&str]) {
        refuse(&["inspect", text(&self.model)], needles);
        self.prune_is_refused(&["--sparsity", "0.5"], needles);
    }

    #[track_caller]
    fn prune_is_refused(&self, flags: &[&str], needles: &[&str]) {
        let out = self.folder.path().join("out");
        let mut all = vec!["prune", text(&self.model), "-o", text(&out), "--method", "magnitude"];
        all.extend(flags);
        refuse(&all, needles);
        assert!(!out.exists(), "an output folder was left behind");
    }
}

/// Two tensors that lie next to each other in the file: names in order of their offsets.
fn in_order(header: &Value) -> Vec<String> {
    let mut all: Vec<(u64, String)> = header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, t)| (t["data_offsets"][0].as_u64().unwrap(), name.clone()))
        .collect();
    all.sort();
    all.into_iter().map(|(_, name)| name).collect()
}

fn linear(header: &Value) -> String {
    in_order(header).into_iter().find(|n| n.contains("up_proj")).unwrap()
}

#[test]
fn truncated_weights() {
    Damaged::new(|model| {
        let file = model.join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 1000]).unwrap();
    })
    .is_refused(&["model.safetensors", "truncated"]);
    Damaged::new(|model| std::fs::write(model.join("model.safetensors"), [1, 2, 3]).unwrap())
        .is_refused(&["model.safetensors"]);
    Damaged::new(|model| std::fs::write(model.join("model.safetensors"), []).unwrap())
        .is_refused(&["model.safetensors"]);
}

#[test]
fn header_longer_than_the_file() {
    Damaged::new(|model| {
        let file = model.join("model.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        let size = bytes.len() as u64;
        bytes[..8].copy_from_slice(&(size + 1).to_le_bytes());
        std::fs::write(&file, bytes).unwrap();
    })
    .is_refused(&["model.safetensors"]);
}

#[test]
fn header_of_100_megabytes() {
    Damaged::new(|model| {
        let file = model.join("model.safetensors");
        let mut bytes = 100_000_000_u64.to_le_bytes().to_vec();
        bytes.push(b'{');
        bytes.resize(100_000_008, b' ');
        bytes[100_000_007] = b'}';
        std::fs::write(&file, bytes).unwrap();
    })
    .is_refused(&["model.safetensors", "100000000"]);
}

#[test]
fn header_that_is_not_json() {
    Damaged::new(|model| {
        let mut bytes = 5_u64.to_le_bytes().to_vec();
        bytes.extend(b"{oops");
        std::fs::write(model.join("model.safetensors"), bytes).unwrap();
    })
    .is_refused(&["model.safetensors", "header"]);
}

#[test]
fn overlapping_offsets() {
    let mut name = String::new();
    Damaged::weights(|parts| {
        let order = in_order(&parts.header);
        // The third tensor begins (and ends) inside the second one.
        name.clone_from(&order[2]);
        let offsets = parts.header[&name]["data_offsets"].clone();
        let (a, b) = (offsets[0].as_u64().unwrap(), offsets[1].as_u64().unwrap());
        parts.header[&name]["data_offsets"] = json!([a - 4, b - 4]);
    })
    .is_refused(&["model.safetensors", &name, "overlap"]);
}

#[test]
fn gap_between_offsets() {
    let mut name = String::new();
    Damaged::weights(|parts| {
        name = in_order(&parts.header).last().unwrap().clone();
        let offsets = parts.header[&name]["data_offsets"].clone();
        let (a, b) = (offsets[0].as_u64().unwrap(), offsets[1].as_u64().unwrap());
        parts.header[&name]["data_offsets"] = json!([a + 8, b + 8]);
        parts.data.extend([0; 8]);
    })
    .is_refused(&["model.safetensors", &name, "gap"]);
}

#[test]
fn wrong_and_unknown_types() {
    let mut name = String::new();
    Damaged::weights(|parts| {
        name = linear(&parts.header);
        parts.header[&name]["dtype"] = json!("I64");
    })
    .is_refused(&["model.safetensors", &name]);
    Damaged::weights(|parts| {
        parts.header[&name]["dtype"] = json!("F128");
    })
    .is_refused(&["model.safetensors", &name, "F128"]);
}

#[test]
fn shape_that_overflows() {
    let mut name = String::new();
    Damaged::weights(|parts| {
        name = linear(&parts.header);
        parts.header[&name]["shape"] = json!([u64::MAX / 2, 1_000_000_007]);
    })
    .is_refused(&["model.safetensors", &name]);
}

#[test]
fn missing_shard_and_index_that_points_nowhere() {
    let to_shards = |model: &Path, shard: &str, extra: Option<&str>| {
        let parts = take_apart(&model.join("model.safetensors"));
        std::fs::rename(model.join("model.safetensors"), model.join("model-00001-of-00001.safetensors"))
            .unwrap();
        let mut map: serde_json::Map<String, Value> = in_order(&parts.header)
            .into_iter()
            .map(|n| (n, json!("model-00001-of-00001.safetensors")))
            .collect();
        let first = map.keys().next().unwrap().clone();
        map.insert(extra.unwrap_or(&first).to_owned(), json!(shard));
        std::fs::write(model.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string())
            .unwrap();
    };
    Damaged::new(|model| to_shards(model, "model-00002-of-00002.safetensors", None))
        .is_refused(&["model.safetensors.index.json", "model-00002-of-00002.safetensors"]);
    Damaged::new(|model| to_shards(model, "model-00001-of-00001.safetensors", Some("no.such.tensor")))
        .is_refused(&["model.safetensors.index.json", "no.such.tensor"]);
    Damaged::new(|model| to_shards(model, "../outside.safetensors", None))
        .is_refused(&["../outside.safetensors"]);
}

#[test]
fn no_folder_no_config_no_weights() {
    refuse(&["inspect", "/no/such/folder"], &["/no/such/folder"]);
    Damaged::new(|model| std::fs::remove_file(model.join("config.json")).unwrap())
        .is_refused(&["config.json"]);
    Damaged::new(|model| std::fs::remove_file(model.join("model.safetensors")).unwrap())
        .is_refused(&["model.safetensors"]);
}

#[test]
fn unknown_architecture() {
    Damaged::config(|c| c["architectures"] = json!(["MambaForCausalLM"])).is_refused(&[
        "config.json",
        "MambaForCausalLM",
        "LlamaForCausalLM",
    ]);
}

#[test]
fn rope_scaling_that_is_not_supported() {
    Damaged::config(|c| {
        c.as_object_mut().unwrap().remove("rope_parameters");
        c["rope_scaling"] = json!({ "rope_type": "yarn", "factor": 4.0 });
    })
    .is_refused(&["config.json", "yarn"]);
}

#[test]
fn shapes_that_contradict_the_configuration() {
    Damaged::config(|c| c["intermediate_size"] = json!(c["intermediate_size"].as_u64().unwrap() + 8))
        .is_refused(&["model.safetensors", "expected shape"]);
    let mut name = String::new();
    Damaged::weights(|parts| {
        name = linear(&parts.header);
        let shape = parts.header[&name]["shape"].clone();
        parts.header[&name]["shape"] = json!([shape[1], shape[0]]);
    })
    .is_refused(&["model.safetensors", &name]);
}

#[test]
fn missing_tensor() {
    let mut name = String::new();
    Damaged::weights(|parts| {
        name = linear(&parts.header);
        let tensor = parts.header[&name].clone();
        parts.header.as_object_mut().unwrap().remove(&name);
        parts.header["something.else"] = tensor;
    })
    .is_refused(&[&name, "missing"]);
}

#[test]
fn weights_that_are_not_finite() {
    for (bits16, bits32) in [(0x7fc0_u16, f32::NAN), (0x7f80, f32::INFINITY)] {
        let mut name = String::new();
        let damaged = Damaged::weights(|parts| {
            name = linear(&parts.header);
            let tensor = &parts.header[&name];
            let at = tensor["data_offsets"][0].as_u64().unwrap() as usize;
            match tensor["dtype"].as_str().unwrap() {
                "F32" => parts.data[at + 40..at + 44].copy_from_slice(&bits32.to_le_bytes()),
                "F16" => parts.data[at + 40..at + 42].copy_from_slice(&(bits16 & 0x7e00).to_le_bytes()),
                _ => parts.data[at + 40..at + 42].copy_from_slice(&bits16.to_le_bytes()),
            }
        });
        // Headers and shapes are sound, so only reading the values can find it.
        damaged.prune_is_refused(&["--sparsity", "0.5"], &[&name, "finite"]);
        refuse(&["verify", text(&damaged.model)], &[&name, "finite"]);
    }
}

#[test]
fn tokenizer_that_does_not_fit() {
    let damaged = Damaged::new(|model| {
        let file = model.join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.insert("far outside".into(), json!(9_999_999));
        std::fs::write(&file, tokenizer.to_string()).unwrap();
    });
    refuse(&["generate", text(&damaged.model), "--prompt", "The"], &["tokenizer.json", "9999999"]);
    let calibration = damaged.folder.path().join("text.txt");
    std::fs::write(&calibration, "The dog sees a bell. ".repeat(4000)).unwrap();
    let out = damaged.folder.path().join("out");
    refuse(
        &[
            "prune",
            text(&damaged.model),
            "-o",
            text(&out),
            "--method",
            "wanda",
            "--sparsity",
            "0.5",
            "--calibrate",
            text(&calibration),
        ],
        &["tokenizer.json", "9999999"],
    );
    assert!(!out.exists());
    Damaged::new(|model| std::fs::write(model.join("tokenizer.json"), "{").unwrap());
    let damaged = Damaged::new(|model| std::fs::remove_file(model.join("tokenizer.json")).unwrap());
    refuse(&["generate", text(&damaged.model), "--prompt", "The"], &["tokenizer.json"]);
}

#[test]
fn calibration_text_that_is_empty_short_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let model = builtin();
    let prune = |file: &Path, needles: &[&str]| {
        let flags = ["--method", "wanda", "--sparsity", "0.5", "--calibrate", text(file)];
        let mut all = vec!["prune", text(&model), "-o", text(&out)];
        all.extend(flags);
        refuse(&all, needles);
        assert!(!out.exists());
    };
    let file = folder.path().join("calibration.txt");
    std::fs::write(&file, "").unwrap();
    prune(&file, &["calibration.txt", "empty"]);
    std::fs::write(&file, " \n\t\n").unwrap();
    prune(&file, &["calibration.txt"]);
    std::fs::write(&file, "The dog.").unwrap();
    prune(&file, &["tokens"]);
    std::fs::write(&file, [0xff, 0xfe, 0x41]).unwrap();
    prune(&file, &["calibration.txt", "UTF-8"]);
    prune(&folder.path().join("absent.txt"), &["absent.txt"]);
    // Without a text, a method that needs one says so.
    refuse(
        &["prune", text(&model), "-o", text(&out), "--method", "wanda", "--sparsity", "0.5"],
        &["--calibrate", "hint: "],
    );
}

#[test]
fn sparsity_outside_its_range() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for bad in ["1", "1.0", "1.5", "-0.1", "NaN", "inf"] {
        let flag = format!("--sparsity={bad}");
        refuse(&["prune", "builtin", "-o", text(&out), "--method", "magnitude", &flag], &["sparsity"]);
        assert!(!out.exists());
    }
    refuse(&["prune", "builtin", "-o", text(&out), "--method", "magnitude", "--sparsity", "half"], &["half"]);
    refuse(&["bench", "--shape", "8x8", "--sparsity", "1"], &["sparsity"]);
}

#[test]
fn patterns_that_do_not_divide_or_make_no_sense() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let prune = |pattern: &str, needles: &[&str]| {
        refuse(
            &["prune", "builtin", "-o", text(&out), "--method", "magnitude", "--pattern", pattern],
            needles,
        );
        assert!(!out.exists());
    };
    // 7 × 13 divides no width that a model has.
    prune("3:91", &["3:91", "91"]);
    for bad in ["5:4", "0:4", "2:0", "two:four", "2", "", ":", "2:4:8"] {
        prune(bad, &["pattern"]);
    }
    refuse(&["prune", "builtin", "-o", text(&out), "--method", "magnitude"], &["--sparsity", "--pattern"]);
    refuse(
        &[
            "prune",
            "builtin",
            "-o",
            text(&out),
            "--method",
            "magnitude",
            "--pattern",
            "2:4",
            "--sparsity",
            "0.7",
        ],
        &["2:4", "sparsity"],
    );
}

#[test]
fn output_equal_to_input() {
    let damaged = Damaged::new(|_| ());
    let before = common::files(&damaged.model);
    for out in [damaged.model.clone(), damaged.model.join("."), damaged.model.join("inside")] {
        refuse(
            &[
                "prune",
                text(&damaged.model),
                "-o",
                text(&out),
                "--method",
                "magnitude",
                "--sparsity",
                "0.5",
                "--overwrite",
            ],
            &["output"],
        );
        refuse(
            &["convert", text(&damaged.model), "-o", text(&out), "--format", "packed", "--overwrite"],
            &["output"],
        );
    }
    // Through a link as well.
    let link = damaged.folder.path().join("link");
    std::os::unix::fs::symlink(&damaged.model, &link).unwrap();
    refuse(
        &[
            "prune",
            text(&damaged.model),
            "-o",
            text(&link),
            "--method",
            "magnitude",
            "--sparsity",
            "0.5",
            "--overwrite",
        ],
        &["output"],
    );
    common::assert_same(&before, &common::files(&damaged.model));
}

#[test]
fn output_that_exists() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("precious.txt"), "mine").unwrap();
    for flags in [&[][..], &["--overwrite"][..]] {
        let mut all =
            vec!["prune", "builtin", "-o", text(&out), "--method", "magnitude", "--sparsity", "0.5"];
        all.extend(flags);
        refuse(&all, &[text(&out)]);
        assert_eq!(std::fs::read_to_string(out.join("precious.txt")).unwrap(), "mine");
    }
}

#[test]
fn unknown_names_list_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let error = refuse(
        &["prune", "builtin", "-o", text(&out), "--method", "wnda", "--sparsity", "0.5"],
        &["unknown method `wnda`", "hint: ", "`wanda`"],
    );
    assert!(error.contains("nearest: `wanda`"), "{error}");
    refuse(&["repro", "sparsgpt"], &["`sparsegpt`"]);
    refuse(&["synth", "--shape", "tinylama-1.1b", "-o", text(&out)], &["tinyllama-1.1b"]);
    refuse(&["bench", "--shape", "llama-7b-upp"], &["llama-7b-up"]);
    let recipe = folder.path().join("recipe.toml");
    std::fs::write(&recipe, "method = 'wanda'\nsparcity = 0.5\n").unwrap();
    refuse(
        &["prune", "builtin", "-o", text(&out), "--recipe", text(&recipe)],
        &["recipe.toml", "sparcity", "sparsity"],
    );
    std::fs::write(&recipe, "method = 'wanda'\nsparsity = 'half'\n").unwrap();
    refuse(&["prune", "builtin", "-o", text(&out), "--recipe", text(&recipe)], &["recipe.toml", "sparsity"]);
    // A setting of another method.
    refuse(
        &[
            "prune",
            "builtin",
            "-o",
            text(&out),
            "--method",
            "magnitude",
            "--sparsity",
            "0.5",
            "--percdamp",
            "0.1",
        ],
        &["percdamp", "magnitude"],
    );
    assert!(!out.exists());
}

#[test]
fn usage_errors_have_exit_code_2() {
    for arguments in [
        &["prune"][..],
        &["nonsense"],
        &["bench"],
        &["--threads", "0", "methods"],
        &["eval", "builtin", "--window", "x"],
    ] {
        let output = common::run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(common::stderr(&output).contains("error: "), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["prune", "--help"]] {
        assert_eq!(common::run(arguments).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn settings_of_a_run_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.txt");
    std::fs::write(&file, "The dog.").unwrap();
    let model = builtin();
    refuse(&["eval", "builtin", "--window", "1"], &["window"]);
    refuse(&["eval", text(&model), "--text", text(&file)], &["window"]);
    refuse(&["eval", text(&model)], &["--text"]);
    refuse(&["generate", "builtin", "--prompt", ""], &["prompt"]);
    refuse(&["generate", "builtin", "--prompt", "a", "--temperature", "0"], &["temperature"]);
    refuse(&["generate", "builtin", "--prompt", "a", "--temperature", "1", "--top-p", "2"], &["top_p"]);
    refuse(&["bench", "--shape", "8x8", "--batch", "0"], &["n"]);
    refuse(
        &[
            "convert",
            "builtin",
            "-o",
            text(&folder.path().join("o")),
            "--format",
            "dense",
            "--quantize-bits",
            "4",
        ],
        &["pack-quantized"],
    );
    refuse(
        &["convert", "builtin", "-o", text(&folder.path().join("o")), "--format", "sparse-24-bitmask"],
        &["2:4"],
    );
}

#[test]
fn image_networks_are_estimated_one_image_at_a_time() {
    refuse(&["estimate", "--shape", "mobilenet-v1", "--batch", "2"], &["`--batch`", "one at a time"]);
    refuse(&["estimate", "--shape", "mobilenet-v3"], &["unknown shape", "mobilenet-v"]);
}
