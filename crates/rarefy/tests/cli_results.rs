//! What the verbs give: shapes of `--json`, folders that agree with each other, the same bytes twice.

#![allow(clippy::unwrap_used, clippy::float_cmp)]

mod common;

use std::path::Path;

use common::{assert_same, files, json, refuse, run, stderr, succeed, text};
use serde_json::Value;

/// `prune builtin` with a small calibration.
fn prune<'a>(out: &'a Path, flags: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["prune", "builtin", "-o", text(out), "--samples", "8", "--length", "64"];
    all.extend(flags);
    all
}

#[track_caller]
fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no `{key}` in {value}");
    }
}

#[test]
fn methods_lists_every_method() {
    let list = json(&["methods"]);
    let slugs: Vec<&str> = list.as_array().unwrap().iter().map(|m| m["slug"].as_str().unwrap()).collect();
    let registered: Vec<&str> = rarefy::registry::all().iter().map(|m| m.slug).collect();
    assert_eq!(slugs, registered);
    assert_eq!(slugs[..5], ["magnitude", "wanda", "sparsegpt", "cats", "double-sparsity"]);
    has_keys(&list[0], &["name", "family", "paper", "command", "maturity", "summary", "repro", "settings"]);
    let table = succeed(&["methods"]);
    assert!(slugs.iter().all(|s| table.contains(s)));
    assert!(!table.contains('\u{1b}'), "colour in a pipe");
}

#[test]
fn inspect_sees_what_prune_made() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let dense = json(&["inspect", "builtin"]);
    has_keys(
        &dense,
        &[
            "architecture",
            "blocks",
            "parameters",
            "stored_bytes",
            "dense_bytes",
            "tensors",
            "flops_per_token",
        ],
    );
    assert!(dense["sparsity"].as_f64().unwrap() < 0.01);
    let made = json(&prune(&out, &["--method", "wanda", "--pattern", "2:4"]));
    has_keys(
        &made,
        &[
            "output",
            "method",
            "sparsity",
            "bytes",
            "dense_bytes",
            "layers",
            "peak_resident_bytes",
            "predicted_peak_bytes",
            "seconds",
        ],
    );
    let found = json(&["inspect", text(&out)]);
    assert_eq!(found["sparsity"], 0.5);
    let pruned: Vec<&Value> =
        found["tensors"].as_array().unwrap().iter().filter(|t| t["prunable"] == true).collect();
    assert_eq!(pruned.len() as u64, 7 * found["blocks"].as_u64().unwrap());
    assert!(pruned.iter().all(|t| t["pattern"] == "2:4"), "{pruned:?}");
    assert_eq!(
        found["flops_per_token_without_zeros"].as_u64().unwrap() * 2,
        found["flops_per_token"].as_u64().unwrap()
    );
    assert!(out.join("rarefy.json").is_file(), "the run record");
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("rarefy.json")).unwrap()).unwrap();
    assert!(record.to_string().contains("wanda"));
}

#[test]
fn every_format_holds_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let dense = at("dense");
    succeed(&prune(&dense, &["--method", "magnitude", "--pattern", "2:4"]));
    let size = |p: &Path| std::fs::metadata(p.join("model.safetensors")).unwrap().len();
    for format in ["packed", "sparse-bitmask", "sparse-24-bitmask"] {
        let other = at(format);
        let made = json(&["convert", text(&dense), "-o", text(&other), "--format", format]);
        has_keys(&made, &["output", "format", "bytes", "dense_bytes", "ratio"]);
        assert!(size(&other) < size(&dense), "{format} is not smaller");
        let checked = json(&["verify", text(&other), "--against", text(&dense)]);
        assert_eq!(checked["ok"], true, "{checked}");
        assert_eq!(checked["problems"], serde_json::json!([]));
        // And back: the file of weights is the same, byte for byte.
        let back = at(&format!("{format}-back"));
        succeed(&["convert", text(&other), "-o", text(&back), "--format", "dense"]);
        assert_eq!(
            std::fs::read(back.join("model.safetensors")).unwrap(),
            std::fs::read(dense.join("model.safetensors")).unwrap(),
            "{format} and back"
        );
    }
    let packed = json(&["verify", text(&at("packed"))]);
    let hash = packed["content_hash"].as_str().unwrap();
    succeed(&["verify", text(&at("packed")), "--expect", hash]);
    assert_eq!(run(&["verify", text(&dense), "--expect", hash]).status.code(), Some(1));
    assert!(packed["packed"].as_u64().unwrap() > 0);
    assert_eq!(packed["packed"], packed["with_pattern"]);
    // Packed and dense run alike.
    let ppl = |model: &Path| {
        json(&["eval", text(model), "--builtin-text", "--window", "64", "--max-windows", "8"])["ppl"]
            .as_f64()
            .unwrap()
    };
    let (a, b) = (ppl(&dense), ppl(&at("packed")));
    assert!((a / b - 1.0).abs() < 1e-4, "{a} and {b}");
    // `prune --format packed` is `prune` then `convert`.
    let direct = at("direct");
    succeed(&prune(&direct, &["--method", "magnitude", "--pattern", "2:4", "--format", "packed"]));
    let checked = json(&["verify", text(&direct), "--against", text(&dense)]);
    assert_eq!(checked["ok"], true, "{checked}");
    assert_eq!(size(&direct), size(&at("packed")));
}

#[test]
fn verify_finds_a_difference() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    succeed(&prune(&out, &["--method", "magnitude", "--sparsity", "0.3"]));
    let output = run(&["verify", text(&out), "--against", "builtin"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("target not met"));
}

#[test]
fn verify_finds_a_weight_that_came_back() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    succeed(&prune(&out, &["--method", "magnitude", "--pattern", "2:4"]));
    let found = json(&["verify", text(&out)]);
    assert!(found["layers_of_the_run_record"].as_u64().unwrap() > 0, "{found}");
    // One bit of the first zero of a pruned layer.
    let file = out.join("model.safetensors");
    let mut parts = common::take_apart(&file);
    let header = parts.header.as_object().unwrap();
    let name = header.keys().find(|n| n.contains("up_proj")).unwrap();
    let begin = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let size = if header[name]["dtype"] == "F32" { 4 } else { 2 };
    let zero = parts.data[begin..].chunks_exact(size).position(|v| v.iter().all(|b| *b == 0)).unwrap();
    let name = name.clone();
    parts.data[begin + zero * size + size - 1] = 0x3c;
    common::put_together(&file, &parts);
    let output = run(&["verify", text(&out)]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(common::stdout(&output).contains(&name), "{}", common::stdout(&output));
}

#[test]
fn same_seed_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for method in ["magnitude", "wanda", "sparsegpt"] {
        let mut flags = vec!["--method", method, "--sparsity", "0.5", "--threads", "2", "--overwrite"];
        succeed(&prune(&out, &flags));
        let first = files(&out);
        flags.extend(["--seed", "0"]);
        std::fs::remove_dir_all(&out).unwrap();
        succeed(&prune(&out, &flags));
        assert_same(&first, &files(&out));
    }
    // Another seed draws another calibration.
    succeed(&prune(&out, &["--method", "wanda", "--sparsity", "0.5", "--overwrite"]));
    let first = files(&out);
    succeed(&prune(&out, &["--method", "wanda", "--sparsity", "0.5", "--overwrite", "--seed", "1"]));
    assert_ne!(first["model.safetensors"], files(&out)["model.safetensors"]);
}

#[test]
fn a_finished_run_given_again_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let flags = ["--method", "magnitude", "--sparsity", "0.5"];
    succeed(&prune(&out, &flags));
    let first = files(&out);
    succeed(&prune(&out, &flags));
    assert_same(&first, &files(&out));
    // Another run does not replace it without being told to.
    refuse(&prune(&out, &["--method", "magnitude", "--sparsity", "0.4"]), &["exists"]);
    assert_same(&first, &files(&out));
}

#[test]
fn recipe_and_flags_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let recipe = folder.path().join("recipe.toml");
    std::fs::write(
        &recipe,
        "method = 'sparsegpt'\npattern = '2:4'\nsamples = 8\nlength = 64\nblocksize = 64\npercdamp = 0.02\nmax-layer = 2\n",
    )
    .unwrap();
    succeed(&["prune", "builtin", "-o", text(&a), "--recipe", text(&recipe)]);
    succeed(&prune(
        &b,
        &[
            "--method",
            "sparsegpt",
            "--pattern",
            "2:4",
            "--blocksize",
            "64",
            "--percdamp",
            "0.02",
            "--max-layer",
            "2",
        ],
    ));
    let weights = |p: &Path| std::fs::read(p.join("model.safetensors")).unwrap();
    assert_eq!(weights(&a), weights(&b));
    // Only the first two blocks were pruned.
    let found = json(&["inspect", text(&a)]);
    for tensor in found["tensors"].as_array().unwrap().iter().filter(|t| t["prunable"] == true) {
        let name = tensor["name"].as_str().unwrap();
        let is_first = name.contains("layers.0.") || name.contains("layers.1.");
        assert_eq!(tensor["sparsity"].as_f64().unwrap() > 0.4, is_first, "{name}");
    }
}

#[test]
fn eval_and_generate_on_the_built_in_model() {
    let found = json(&["eval", "builtin", "--max-windows", "8"]);
    has_keys(
        &found,
        &["ppl", "floor_ppl", "window", "windows", "predicted_tokens", "convention", "nll_mean"],
    );
    let (ppl, floor) = (found["ppl"].as_f64().unwrap(), found["floor_ppl"].as_f64().unwrap());
    assert!(floor > 1.0 && ppl > floor, "perplexity {ppl}, floor {floor}");
    assert_eq!(found["windows"], 8);
    let output = run(&["eval", "builtin", "--max-windows", "2"]);
    assert!(stderr(&output).contains("2 windows of"), "the convention is printed");
    let prompt = ["generate", "builtin", "--prompt", "The dog", "--max-new", "12"];
    let made = json(&prompt);
    has_keys(&made, &["text", "tokens", "prompt_tokens", "ms_per_token"]);
    assert!(made["tokens"].as_array().unwrap().len() <= 12);
    let plain = succeed(&prompt);
    assert!(plain.starts_with("The dog"), "{plain}");
    let streamed = plain.trim_end_matches('\n').strip_prefix("The dog").unwrap();
    assert_eq!(streamed.trim(), made["text"].as_str().unwrap().trim());
    let sampled = [
        "generate",
        "builtin",
        "--prompt",
        "The dog",
        "--max-new",
        "12",
        "--temperature",
        "1",
        "--seed",
        "3",
    ];
    assert_eq!(succeed(&sampled), succeed(&sampled));
}

#[test]
fn bench_times_a_model_and_a_shape() {
    let found = json(&["bench", "--shape", "96x64", "--sparsity", "0.5", "--passes", "3"]);
    has_keys(&found, &["rows", "cols", "read_gb_per_s", "kernels", "cpu", "isa"]);
    assert!(found["kernels"].as_array().unwrap().len() >= 4);
    has_keys(&found["kernels"][0], &["kernel", "sparsity", "ms", "bytes", "gb_per_s", "speedup"]);
    let found = json(&["bench", "builtin", "--tokens", "4"]);
    has_keys(&found, &["dense", "stored", "speedup", "packed", "read_gb_per_s"]);
    assert_eq!(found["packed"], false);
}

#[test]
fn quiet_says_nothing() {
    let output = run(&["methods", "--quiet"]);
    assert!(output.stderr.is_empty());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let output = run(&prune(&out, &["--method", "magnitude", "--sparsity", "0.5", "--quiet"]));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "");
}

#[test]
fn synth_writes_a_model_that_the_other_verbs_read() {
    let folder = tempfile::tempdir().unwrap();
    for shape in ["tiny-llama", "tiny-opt"] {
        for dtype in ["f32", "f16", "bf16"] {
            let model = folder.path().join(format!("{shape}-{dtype}"));
            succeed(&["synth", "--shape", shape, "--dtype", dtype, "-o", text(&model)]);
            let found = json(&["inspect", text(&model)]);
            assert_eq!(found["tensors"][0]["dtype"].as_str().unwrap().to_lowercase(), dtype);
            let out = folder.path().join(format!("{shape}-{dtype}-out"));
            succeed(&[
                "prune",
                text(&model),
                "-o",
                text(&out),
                "--method",
                "magnitude",
                "--pattern",
                "4:8",
                "--format",
                "packed",
            ]);
            assert_eq!(json(&["verify", text(&out)])["ok"], true);
        }
    }
}
