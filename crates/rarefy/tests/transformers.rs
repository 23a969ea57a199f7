//! Pruned folders in Python `transformers`: they load unchanged, with the zeros in place, and give our logits.
//!
//! Runs when `RAREFY_PYTHON` names a Python that has `torch` and `transformers`; says so loudly when it does not.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{builtin, json, text};
use npyz::WriterBuilder;
use rarefy::checkpoint::{Checkpoint, Tokenizer};
use rarefy::models::{CausalLm, LoadOptions};
use serde_json::Value;

/// As the promise has it.
const TOLERANCE: &str = "1e-3";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn write_npy<T: npyz::AutoSerialize>(file: &Path, shape: &[u64], values: impl IntoIterator<Item = T>) {
    let file = std::io::BufWriter::new(std::fs::File::create(file).unwrap());
    let mut npy = npyz::WriteOptions::new().default_dtype().shape(shape).writer(file).begin_nd().unwrap();
    npy.extend(values).unwrap();
    npy.finish().unwrap();
}

/// What transformers finds in `model`, given our logits for `tokens`.
fn in_transformers(python: &str, model: &Path, tokens: &[u32], pattern: Option<&str>, work: &Path) -> Value {
    let checkpoint = Checkpoint::open(model).unwrap();
    let lm = CausalLm::load(&checkpoint, LoadOptions::default()).unwrap();
    let logits = lm.forward(&[tokens.to_vec()]).unwrap();
    let shape = logits.dims();
    let ours: Vec<f32> = logits.into_data().try_into_vec().unwrap();
    let (tokens_file, logits_file) = (work.join("tokens.npy"), work.join("logits.npy"));
    write_npy(&tokens_file, &[tokens.len() as u64], tokens.iter().map(|&t| i64::from(t)));
    write_npy(&logits_file, &[shape[1] as u64, shape[2] as u64], ours);
    let mut command = Command::new(python);
    command.arg(golden("load_in_transformers.py")).arg(model).arg("--tokens").arg(&tokens_file);
    command.arg("--compare").arg(&logits_file).args(["--tolerance", TOLERANCE]);
    if let Some(pattern) = pattern {
        command.args(["--pattern", pattern]);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).unwrap()
}

#[test]
fn pruned_folders_load_in_transformers_and_give_the_same_logits() {
    let Ok(python) = std::env::var("RAREFY_PYTHON") else {
        println!(
            "SKIPPED: RAREFY_PYTHON names no Python with torch and transformers; no folder was loaded there"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let words = folder.path().join("words.txt");
    std::fs::write(&words, "the small model reads a few words and then some more of them\n".repeat(60))
        .unwrap();
    let mut models: Vec<PathBuf> =
        ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-opt"].map(|m| golden("models").join(m)).into();
    models.push(builtin());
    if let Some(data) = std::env::var_os("RAREFY_DATA") {
        models.push(PathBuf::from(data).join("../models/llama-5m"));
    }
    for model in models {
        let source = Checkpoint::open(&model).unwrap();
        // The golden models come without a tokenizer that spells: only the method without calibration can prune them.
        let spells = Tokenizer::open(&model).is_ok();
        let tokens: Vec<u32> =
            (0..48u32).map(|i| (i * 37 + 11) % u32::try_from(source.config().vocab_size).unwrap()).collect();
        for (method, pattern) in [("magnitude", "4:8"), ("wanda", "2:4"), ("sparsegpt", "unstructured")] {
            if method != "magnitude" && !spells {
                continue;
            }
            let out = folder.path().join(format!("{}-{method}", model.file_name().unwrap().display()));
            let mut arguments =
                vec!["prune", text(&model), "-o", text(&out), "--method", method, "--pattern", pattern];
            if pattern == "unstructured" {
                arguments.extend(["--sparsity", "0.5"]);
            }
            if method != "magnitude" {
                arguments.extend(["--calibrate", text(&words), "--samples", "4", "--length", "32"]);
            }
            json(&arguments);
            let nm = (pattern != "unstructured").then_some(pattern);
            let found = in_transformers(&python, &out, &tokens, nm, folder.path());
            let zeros = found["zero_fraction"].as_f64().unwrap();
            assert!((zeros - 0.5).abs() < 0.01, "{found}");
            println!("{}: largest difference {}", out.display(), found["largest_difference"]);
        }
    }
}
