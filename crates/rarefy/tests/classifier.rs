//! Image classifiers through the command: inspect, prune, eval, bench, and what is refused.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};

use common::{builtin, json, run, stderr};
use rarefy::checkpoint::NewModel;
use rarefy::models::classifier::{Classifier, synthetic};
use serde_json::Value;

/// A small network and three images.
fn fixture(dir: &Path) -> (String, String) {
    let (model, images) = (dir.join("net"), dir.join("images"));
    synthetic::mobilenet_v1(1, 32, 1).write(NewModel::open(&model, "test").unwrap(), &Value::Null).unwrap();
    std::fs::create_dir(&images).unwrap();
    let mut labels = String::new();
    for i in 0..3_u8 {
        let picture = image::RgbImage::from_fn(40, 32, |x, y| image::Rgb([x as u8 * 6, y as u8 * 7, 80 * i]));
        picture.save(images.join(format!("{i}.jpg"))).unwrap();
        labels += &format!("{i}.jpg\t{}\tname\n", 10 * i);
    }
    std::fs::write(images.join("labels.tsv"), labels).unwrap();
    (text(&model), text(&images))
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn refused(arguments: &[&str], says: &str) {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
}

#[test]
fn pruned_measured_and_timed() {
    let dir = tempfile::tempdir().unwrap();
    let (model, images) = fixture(dir.path());
    let out = text(&dir.path().join("pruned"));
    let before = json(&["inspect", &model]);
    assert_eq!((&before["kind"], &before["zeros"]), (&"image classifier".into(), &0.into()));
    assert_eq!(before["layers"].as_array().unwrap().len(), 30);

    let command =
        ["prune", &model, "-o", &out, "--method", "magnitude", "--sparsity", "0.8", "--pattern", "block:4x1"];
    let pruned = json(&command);
    assert!((pruned["sparsity"].as_f64().unwrap() - 0.8).abs() < 0.01, "{pruned:#}");
    assert!(pruned["bytes_as_run"].as_u64() < pruned["dense_bytes_as_run"].as_u64());
    assert_eq!(json(&command)["already_complete"], true);
    let after = json(&["inspect", &out]);
    assert_eq!(after["zeros"], pruned["zeros"]);
    let layer = &after["layers"][6];
    assert_eq!((&layer["pattern"], &layer["prunable"]), (&"block:4x1".into(), &true.into()));

    let found = json(&["eval", &out, "--images", &images]);
    assert_eq!(found["images"], 3);
    assert!(found["top1"].as_f64() <= found["top5"].as_f64());
    assert_eq!(json(&["eval", &out, "--images", &images, "--max-images", "2"])["images"], 2);

    let bench = json(&["bench", &out, "--passes", "3"]);
    assert!(bench["runs"][0]["speedup"].is_number() && bench["runs"][0]["threads"] == 1);
    let kernels: Vec<&str> =
        bench["layers"].as_array().unwrap().iter().map(|l| l["kernel"].as_str().unwrap()).collect();
    assert!(kernels.iter().any(|k| k.contains("sparse")) && kernels.contains(&"depthwise"), "{kernels:?}");
    let dense = json(&["bench", &model, "--passes", "3"]);
    assert!(dense["runs"][0]["speedup"].is_null() && dense["sparse"] == false);

    let out = text(&dir.path().join("ordered"));
    let found = json(&["prune", &model, "-o", &out, "--method", "sparsebytenn", "--sparsity", "0.5"]);
    assert_eq!(found["settings"]["pattern"], "block:16x1");
    assert!(!found["rearrangements"].as_array().unwrap().is_empty());
    Classifier::open(Path::new(&out)).unwrap();
}

#[test]
fn what_makes_no_sense_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let (model, images) = fixture(dir.path());
    let out = text(&dir.path().join("out"));
    refused(&["eval", &model], "--images DIR");
    refused(&["eval", &model, "--images", &images, "--window", "8"], "--window");
    refused(&["eval", &model, "--images", &model], "labels.tsv");
    refused(&["eval", &text(&builtin()), "--images", &images], "MODEL is none");
    refused(&["inspect", &model, "--headers-only"], "--headers-only");
    refused(
        &["prune", &model, "-o", &out, "--method", "wanda", "--sparsity", "0.5"],
        "known: `magnitude`, `sparsebytenn`",
    );
    refused(&["prune", &model, "-o", &out, "--method", "cats"], "known: `magnitude`, `sparsebytenn`");
    refused(&["prune", &model, "-o", &out, "--method", "magnitude", "--where", "all"], "--where");
    refused(&["eval", &model, "--images", &images, "--dense"], "--dense");
    refused(&["bench", &model, "--dense"], "--dense");
    refused(&["prune", &model, "-o", &model, "--method", "magnitude", "--sparsity", "0.5"], "model itself");
    refused(
        &["prune", &model, "-o", &out, "--method", "magnitude", "--sparsity", "0.5", "--samples", "3"],
        "--samples",
    );
    refused(
        &["prune", &text(&builtin()), "-o", &out, "--method", "sparsebytenn", "--sparsity", "0.5"],
        "does not prune language models",
    );
    let labels = Path::new(&images).join("labels.tsv");
    std::fs::write(&labels, "0.jpg\t5000\n").unwrap();
    refused(&["eval", &model, "--images", &images], "class 5000");
    std::fs::write(&labels, "../net/config.json\t1\n").unwrap();
    refused(&["eval", &model, "--images", &images], "line 1");
    let config = Path::new(&model).join("config.json");
    let changed = std::fs::read_to_string(&config).unwrap().replace("relu6", "swish");
    std::fs::write(&config, changed).unwrap();
    for verb in ["inspect", "bench"] {
        refused(&[verb, &model], "layer 0: `act` = \"swish\"");
    }
}

/// The accuracy stated in the folder was measured by another program; decoder and filter may cost an image in fifty.
#[test]
fn accuracy_of_the_real_network() {
    let Some(data) = std::env::var_os("RAREFY_DATA").map(PathBuf::from) else {
        eprintln!("SKIPPED: RAREFY_DATA is not set, no real classifier was measured");
        return;
    };
    let model = data.join("../models/mobilenet-v1-0.25-128");
    let found = json(&["eval", &text(&model), "--images", &text(&data.join("imagenet-mini"))]);
    let stated: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    for key in ["top1", "top5"] {
        let (found, stated) = (found[key].as_f64().unwrap(), stated["measured"][key].as_f64().unwrap());
        assert!((found - stated).abs() <= 0.02, "{key}: {found}, stated {stated}");
    }
}
