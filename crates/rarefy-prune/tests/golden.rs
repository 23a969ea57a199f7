//! Every case of `tests/golden/pruning`, computed by a NumPy reference, must be reproduced:
//! equal masks, weights and loss within 1e-4 relative.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};

use npyz::npz::NpzArchive;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_prune::{LayerStats, LinearLayer, Needs, methods};
use serde_json::{Value, json};

const TOLERANCE: f64 = 1e-4;

struct Case {
    name: String,
    settings: Value,
    rows: usize,
    cols: usize,
    w: Vec<f32>,
    x: Vec<f32>,
    n_sequences: usize,
    mask: Vec<u8>,
    weights: Vec<f32>,
    rel_error: f64,
    loss: Option<f64>,
    norms: Option<Vec<f64>>,
}

fn array<T: npyz::Deserialize>(
    file: &mut NpzArchive<std::io::BufReader<std::fs::File>>,
    name: &str,
) -> Option<(Vec<T>, Vec<u64>)> {
    let array = file.by_name(name).unwrap()?;
    let shape = array.shape().to_vec();
    Some((array.into_vec().unwrap(), shape))
}

fn load(path: &Path) -> Case {
    let mut file = NpzArchive::open(path).unwrap();
    let (w, shape) = array::<f32>(&mut file, "w").unwrap();
    let (text, _) = array::<u8>(&mut file, "settings").unwrap();
    Case {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        settings: serde_json::from_slice(&text).unwrap(),
        rows: shape[0] as usize,
        cols: shape[1] as usize,
        w,
        x: array(&mut file, "x").unwrap().0,
        n_sequences: array::<i64>(&mut file, "n_sequences").unwrap().0[0] as usize,
        mask: array(&mut file, "mask").unwrap().0,
        weights: array(&mut file, "weights").unwrap().0,
        rel_error: array::<f64>(&mut file, "rel_error").unwrap().0[0],
        loss: array::<f64>(&mut file, "loss").map(|a| a.0[0]),
        norms: array::<f64>(&mut file, "norms").map(|a| a.0),
    }
}

/// Method name and settings of ours for a case.
fn translate(case: &Value) -> (String, Value) {
    let method = case["method"].as_str().unwrap().to_owned();
    let mut settings = json!({
        "pattern": case["pattern"], "sparsity": case["sparsity"], "compat": case["compat"],
    });
    match method.as_str() {
        "wanda" => {
            settings["granularity"] = case["granularity"].clone();
            settings["variant"] = case["variant"].clone();
        }
        "sparsegpt" => {
            settings["block_size"] = case["blocksize"].clone();
            settings["percdamp"] = case["percdamp"].clone();
            settings["quantize_bits"] = case["bits"].clone();
            settings["mask"] = match case["ablate"].as_str() {
                None => "obs",
                Some("mag_seq") => "magnitude-seq",
                Some("mag_iter") => "magnitude-iter",
                Some("wanda_seq") => "wanda-seq",
                Some("wanda_iter") => "wanda-iter",
                Some(other) => panic!("unknown ablation {other}"),
            }
            .into();
        }
        _ => {}
    }
    (method, settings)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= TOLERANCE * b.abs().max(f64::MIN_POSITIVE)
}

fn check(case: &Case) -> Result<(), String> {
    let (method, settings) = translate(&case.settings);
    let pruner = (methods::find(&method).unwrap().build)(&settings).map_err(|e| e.to_string())?;
    let needs = pruner.needs();
    let stats = if needs.any() {
        LayerStats::from_inputs(&case.x, case.cols, case.n_sequences, needs).unwrap()
    } else {
        LayerStats::none()
    };
    if let (Some(ours), Some(theirs)) = (&stats.input_sq, &case.norms) {
        for (c, (a, b)) in ours.iter().zip(theirs).enumerate() {
            if !close(*a, *b) {
                return Err(format!("norm {c}: {a} against {b}"));
            }
        }
    }
    let mut layer = LinearLayer::new(case.name.as_str(), case.rows, case.cols, case.w.clone()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let report = pruner.prune(&mut layer, &stats, &mut rng).map_err(|e| e.to_string())?;

    let quantised = layer.grid.is_some();
    for (i, (&kept, &w)) in case.mask.iter().zip(&layer.weight).enumerate() {
        if kept == 0 && w.to_bits() != 0 {
            return Err(format!("weight {i} must be pruned, is {w}"));
        }
        if kept == 1 && w == 0.0 && case.w[i] != 0.0 && !(quantised && case.weights[i] == 0.0) {
            return Err(format!("weight {i} must be kept"));
        }
    }
    // Relative to the size of the row: corrections can make a single weight arbitrarily small.
    for (r, (ours, theirs)) in
        layer.weight.chunks_exact(case.cols).zip(case.weights.chunks_exact(case.cols)).enumerate()
    {
        let size = theirs.iter().fold(0.0_f64, |m, w| m.max(f64::from(w.abs())));
        for (c, (a, b)) in ours.iter().zip(theirs).enumerate() {
            if (f64::from(*a) - f64::from(*b)).abs() > TOLERANCE * size {
                return Err(format!("weight {r},{c}: {a} against {b}"));
            }
        }
    }
    let close = |what: &str, a: f64, b: f64| {
        if close(a, b) { Ok(()) } else { Err(format!("{what}: {a} against {b}")) }
    };
    if let (Some(theirs), Some(ours)) = (case.loss, report.loss) {
        close("loss", ours, theirs)?;
    }
    if needs.contains(Needs::HESSIAN) {
        // The report's error comes from ‖E‖² and the damping, theirs from the outputs.
        close("relative error", report.relative_error.unwrap(), case.rel_error)?;
    }
    let zeros = case.weights.iter().filter(|w| **w == 0.0).count();
    if report.pruned != zeros {
        return Err(format!("{} zeros reported, {zeros} expected", report.pruned));
    }
    Ok(())
}

#[test]
fn golden_cases() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pruning");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "npz"))
        .collect();
    files.sort();
    assert!(files.len() >= 40, "only {} golden cases found", files.len());
    let mut failures = Vec::new();
    for path in &files {
        let case = load(path);
        if let Err(message) = check(&case) {
            failures.push(format!("{}: {message}", case.name));
        }
    }
    println!("{} cases", files.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), files.len(), failures.join("\n"));
}
