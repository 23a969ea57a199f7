//! `rarefy train`: recipes, interruption, the same bytes.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use common::{assert_same, files, json, rarefy, refuse};

const RECIPE: &str = "seed = 3\n[model]\nhidden_size = 16\nintermediate_size = 24\nlayers = 2\nheads = 2\nkv_heads = 1\nmax_positions = 512\n\
    [tokenizer]\nvocab_size = 400\nsample_bytes = 60000\n[data]\ncontext = 32\nbatch = 4\n[schedule]\nsteps = 400\nwarmup = 4\n\
    [optimizer]\nlr = 0.01\n[checkpoint]\nevery = 20\n[evaluation]\nevery = 0\nquick = 2\nfull = 4\n\
    [sparsity]\ntarget = 0.5\nbegin = 20\nend = 300\nevery = 20\n";

#[test]
fn interrupted_then_run_again_gives_the_folder_of_an_uninterrupted_run() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("r.toml");
    std::fs::write(&recipe, RECIPE).unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (recipe, whole, broken) = (path("r.toml"), path("whole"), path("broken"));
    let result = json(&["train", &recipe, "-o", &whole]);
    assert!(result["evaluation"]["perplexity"].as_f64().unwrap() > 1.0);

    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let mut child = rarefy()
            .args(["train", &recipe, "-o", &broken])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        while !seen.contains("step 50/") && !seen.contains("going on after") {
            assert_ne!(lines.read_line(&mut seen).unwrap(), 0, "ended early: {seen}");
        }
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        lines.read_to_string(&mut seen).unwrap();
        let status = child.wait().unwrap();
        assert!(!std::path::Path::new(&broken).exists(), "a half-written folder: {seen}");
        if signal == rustix::process::Signal::INT {
            assert_eq!(status.code(), Some(130), "{seen}");
            assert!(seen.contains("resume with: "), "{seen}");
        }
    }
    json(&["train", &recipe, "-o", &broken]);
    assert_same(&files(whole.as_ref()), &files(broken.as_ref()));
}

#[test]
fn unknown_keys_and_values_out_of_range_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("r.toml");
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    for (from, to, needles) in [
        ("hidden_size", "hiden_size", &["hiden_size", "hidden_size"][..]),
        ("lr = 0.01", "lr = -1.0", &["lr"]),
        ("target = 0.5", "target = 1.0", &["target"]),
        ("heads = 2", "heads = 3", &["heads"]),
        ("[model]", "[model", &["r.toml"]),
    ] {
        std::fs::write(&recipe, RECIPE.replacen(from, to, 1)).unwrap();
        refuse(&["train", recipe.to_str().unwrap(), "-o", out], needles);
    }
    refuse(&["train", folder.path().join("none.toml").to_str().unwrap(), "-o", out], &["none.toml"]);
}
