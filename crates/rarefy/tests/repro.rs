//! `rarefy repro`: the JSON that other tools read, and the exit code.

#![allow(clippy::unwrap_used)]

mod common;

use common::{run, stderr, stdout};

#[test]
fn quick_repro_prints_the_agreed_object_and_its_exit_code_says_whether_every_check_passed() {
    quick("sparsegpt-wanda-baselines");
}

/// One after the other: each holds a gigabyte of weights or keys.
#[test]
fn quick_repros_of_sparse_running() {
    quick("cats");
    quick("double-sparsity");
}

#[track_caller]
fn quick(slug: &str) {
    let output = run(&["repro", slug, "--quick", "--json"]);
    let value: serde_json::Value =
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|e| panic!("{e}\n{}", stderr(&output)));
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["checks", "method", "notes", "passed", "quick", "seconds", "table"]);
    assert_eq!((&value["method"], &value["quick"]), (&slug.into(), &true.into()));
    assert!(value["seconds"].as_f64().unwrap() > 0.0);
    let checks = value["checks"].as_array().unwrap();
    assert!(checks.len() >= 5, "{checks:?}");
    for check in checks {
        assert!(check["name"].is_string() && check["required"].is_string() && check["measured"].is_string());
    }
    let all = checks.iter().all(|c| c["passed"] == true);
    assert_eq!(value["passed"], all);
    assert_eq!(output.status.code(), Some(if all { 0 } else { 1 }));
    // Ratios of times belong to a quiet machine, not to a test that shares it with others.
    for check in checks.iter().filter(|c| !c["name"].as_str().unwrap().starts_with("speed")) {
        assert!(check["passed"] == true, "{check:#}");
    }
}

#[test]
fn what_needs_training_is_said_not_to_be_run() {
    for slug in ["fast-sparse-convnets", "sparsebytenn"] {
        let output = run(&["repro", slug, "--quick", "--json"]);
        let value: serde_json::Value =
            serde_json::from_str(&stdout(&output)).unwrap_or_else(|e| panic!("{e}\n{}", stderr(&output)));
        let notes = value["notes"].as_array().unwrap();
        let skipped = notes.iter().filter(|n| n.as_str().unwrap().starts_with("NOT RUN: ")).count();
        assert!(skipped >= 3, "{slug}: {notes:#?}");
        assert!(value["table"].as_array().unwrap().len() > 10);
        let checks = value["checks"].as_array().unwrap();
        let all = checks.iter().all(|c| c["passed"] == true);
        assert_eq!((&value["passed"], output.status.code()), (&all.into(), Some(if all { 0 } else { 1 })));
        for check in checks.iter().filter(|c| !c["name"].as_str().unwrap().starts_with("speed")) {
            assert!(check["passed"] == true, "{check:#}");
        }
    }
}
