//! Rules of sparse running through the command line: written, followed, switched off, refused.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{copy_of, json, refuse, succeed, text};

fn make(out: &Path, flags: &[&str]) -> serde_json::Value {
    let mut all = vec!["prune", "builtin", "-o", text(out), "--samples", "16", "--length", "64"];
    all.extend(flags);
    json(&all)
}

fn eval(model: &str, flags: &[&str]) -> serde_json::Value {
    let mut all = vec!["eval", model, "--max-windows", "8"];
    if model != "builtin" {
        all.push("--builtin-text");
    }
    all.extend(flags);
    json(&all)
}

#[test]
fn cats_is_calibrated_followed_and_switched_off() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("cats");
    let made = make(&out, &["--method", "cats", "--sparsity", "0.5"]);
    assert_eq!((&made["method"], &made["settings"]["sparsity"]), (&"cats".into(), &0.5.into()));
    let dense = eval("builtin", &["--window", "64"]);
    assert!(dense["realised"].is_null());
    let by_rules = eval(text(&out), &["--window", "64"]);
    let off = eval(text(&out), &["--window", "64", "--dense"]);
    let ppl = |v: &serde_json::Value| v["ppl"].as_f64().unwrap();
    assert!((ppl(&off) - ppl(&dense)).abs() < 1e-9 && ppl(&by_rules) > ppl(&dense), "{by_rules} {dense}");
    for share in by_rules["realised"]["mlp"].as_array().unwrap() {
        assert!((share.as_f64().unwrap() - 0.5).abs() < 0.05, "{by_rules}");
    }
    let shown = succeed(&["eval", text(&out), "--builtin-text", "--max-windows", "2"]);
    assert!(shown.contains("idle neurons"), "{shown}");
    let generated = json(&["generate", text(&out), "--prompt", "The dog", "--max-new", "8"]);
    assert!(generated["realised"]["mlp"][0].as_f64().unwrap() > 0.2);
    assert!(
        json(&["generate", text(&out), "--prompt", "The dog", "--max-new", "8", "--dense"])["realised"]
            .is_null()
    );
    let bench = json(&["bench", text(&out), "--tokens", "4"]);
    assert!(
        bench["rules_speedup"].as_f64().unwrap() > 0.0 && bench["by_rules"]["kernels"]["row-skip-f32"] == 12
    );
    assert!(json(&["bench", text(&out), "--tokens", "4", "--dense"])["by_rules"].is_null());
    // The folder is the same model otherwise.
    succeed(&["verify", text(&out), "--against", "builtin"]);
    // The same command has nothing left to do; another one is refused.
    assert_eq!(make(&out, &["--method", "cats", "--sparsity", "0.5"])["already_complete"], true);
    refuse(
        &["prune", "builtin", "-o", text(&out), "--method", "cats", "--sparsity", "0.6", "--samples", "1"],
        &["exists"],
    );
}

#[test]
fn cutoffs_on_all_inputs_are_followed_too() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("all");
    let made = make(&out, &["--method", "cats", "--where", "all", "--sparsity", "0.4"]);
    assert_eq!(made["settings"]["where"], "all");
    assert_eq!(made["activations"]["inputs"].as_array().unwrap().len(), 4);
    let found = eval(text(&out), &["--window", "64"]);
    assert!(found["realised"]["mlp"][0].is_null());
    for share in found["realised"]["inputs"].as_array().unwrap() {
        assert!((share.as_f64().unwrap() - 0.4).abs() < 0.05, "{found}");
    }
    let ppl = |v: &serde_json::Value| v["ppl"].as_f64().unwrap();
    let dense = eval(text(&out), &["--window", "64", "--dense"]);
    // So few windows may even gain a little.
    assert!((ppl(&found) / ppl(&dense) - 1.0).abs() < 0.2, "{found} {dense}");
    assert!((ppl(&found) - ppl(&dense)).abs() > 1e-9, "the rule does something");
    let shown = succeed(&["eval", text(&out), "--builtin-text", "--max-windows", "2"]);
    assert!(shown.contains("weights not read"), "{shown}");
    let bench = json(&["bench", text(&out), "--tokens", "4"]);
    assert_eq!(bench["by_rules"]["kernels"]["column-skip-f32"], 28);
    assert_eq!(bench["same_kernels"]["kernels"]["column-skip-f32"], 28);
    assert!(bench["realised"]["inputs"][0].as_f64().unwrap() > 0.1);
}

#[test]
fn query_heads_with_channels_of_their_own_in_four_bits() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("own");
    let flags = ["--method", "double-sparsity", "--tokens", "8", "--channels", "6", "--labels", "int4"];
    let mut all = flags.to_vec();
    all.extend(["--grouping", "own-channels", "--importance", "softmax-weighted", "--dense-layers", "1"]);
    let made = make(&out, &all);
    let attention = &made["attention"];
    assert_eq!(
        (&attention["labels"], &attention["importance"]),
        (&"int4".into(), &"softmax-weighted".into())
    );
    // Four query heads on two key-value heads.
    assert_eq!(attention["channels"][0].as_array().unwrap().len(), 4);
    let found = eval(text(&out), &["--window", "64"]);
    assert!(found["realised"]["attention"][0].as_f64().unwrap() < 1e-9, "the first block is dense");
    assert!(found["realised"]["attention"][1].as_f64().unwrap() > 0.5, "{found}");
    let generated = json(&[
        "generate",
        text(&out),
        "--prompt",
        "Here Anna the baker lives in the mill.",
        "--max-new",
        "8",
    ]);
    assert!(generated["realised"]["attention"][2].as_f64().unwrap() > 0.0, "{generated}");
}

#[test]
fn double_sparsity_joins_cats() {
    let folder = tempfile::tempdir().unwrap();
    let (first, both) = (folder.path().join("cats"), folder.path().join("both"));
    make(&first, &["--method", "cats"]);
    let calibration = folder.path().join("text.txt");
    std::fs::write(&calibration, "The dog saw the cat. ".repeat(400)).unwrap();
    let flags = ["--samples", "8", "--length", "64", "--calibrate", text(&calibration)];
    let mut all = vec!["prune", text(&first), "-o", text(&both), "--method", "double-sparsity"];
    all.extend(["--tokens", "1/16", "--channels", "1/16", "--importance", "k", "--grouping", "per-head"]);
    all.extend(flags);
    let made = json(&all);
    // 128 positions and 48 channels.
    assert_eq!((&made["attention"]["kept"], &made["attention"]["importance"]), (&8.into(), &"k".into()));
    assert_eq!(made["attention"]["channels"][0][0].as_array().unwrap().len(), 3);
    let found = eval(text(&both), &[]);
    assert!(found["realised"]["mlp"][3].as_f64().unwrap() > 0.3);
    assert!(found["realised"]["attention"][0].as_f64().unwrap() < 1e-9, "the first blocks are dense");
    assert!(found["realised"]["attention"][2].as_f64().unwrap() > 0.5, "{found}");
}

#[test]
fn flags_and_files_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refuse_prune = |flags: &[&str], needles: &[&str]| {
        let mut all = vec!["prune", "builtin", "-o", text(&out), "--samples", "1", "--length", "8"];
        all.extend(flags);
        refuse(&all, needles);
        assert!(!out.exists() && !folder.path().join("out.rarefy-partial").exists());
    };
    refuse_prune(&["--method", "cats", "--pattern", "2:4"], &["cats", "pattern", "sparsity"]);
    refuse_prune(&["--method", "cats", "--tokens", "1/16"], &["cats", "tokens"]);
    refuse_prune(&["--method", "cats", "--sparsity", "1.5"], &["sparsity", "[0, 1]"]);
    refuse_prune(&["--method", "cats", "--format", "packed"], &["cats", "dense"]);
    refuse_prune(&["--method", "double-sparsity", "--sparsity", "0.5"], &["double-sparsity", "sparsity"]);
    refuse_prune(&["--method", "double-sparsity", "--tokens", "1.5"], &["tokens", "1.5"]);
    refuse_prune(&["--method", "double-sparsity", "--dense-layers", "4"], &["dense_layers", "4"]);
    refuse_prune(
        &["--method", "wanda", "--sparsity", "0.5", "--tokens", "2"],
        &["wanda", "tokens", "double-sparsity"],
    );
    refuse_prune(&["--method", "catz"], &["catz", "cats"]);
    refuse_prune(&["--method", "double-sparsity", "--where", "all"], &["double-sparsity", "where"]);
    refuse_prune(&["--method", "cats", "--labels", "int4"], &["cats", "labels"]);
    refuse_prune(&["--method", "cats", "--where", "up"], &["where", "gate"]);
    refuse_prune(&["--method", "wanda", "--sparsity", "0.5", "--where", "all"], &["wanda", "where"]);

    make(&out, &["--method", "cats"]);
    for (name, damage, needle) in [
        ("a", "{", "damaged"),
        ("b", r#"{"version": 7}"#, "version 7"),
        (
            "c",
            r#"{"version":1,"method":"cats","share":0.5,"d_ff":512,"thresholds":[0.1],"realised":[0.1],"tokens":1}"#,
            "thresholds",
        ),
    ] {
        let damaged = copy_of(&out, &folder.path().join(name));
        std::fs::write(damaged.join("sparse-activations.json"), damage).unwrap();
        refuse(&["eval", text(&damaged), "--builtin-text", "--max-windows", "1"], &[needle]);
        refuse(&["generate", text(&damaged), "--prompt", "x"], &[needle]);
        refuse(&["bench", text(&damaged)], &[needle]);
        succeed(&["eval", text(&damaged), "--builtin-text", "--max-windows", "1", "--dense"]);
    }
}
