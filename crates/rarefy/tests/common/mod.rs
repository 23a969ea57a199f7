//! What the tests of the built command share.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The built command. The built-in model is written below `CARGO_TARGET_TMPDIR`, once for all tests.
pub fn rarefy() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rarefy"));
    command
        .env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
        .env("NO_COLOR", "1")
        .env("RUST_BACKTRACE", "0");
    command
}

/// The folder of the built-in model, written out by the library.
pub fn builtin() -> PathBuf {
    rarefy::builtin::folder_in(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache/rarefy"))
        .expect("the built-in model is part of the crate")
}

/// A copy of a folder that a test may damage.
pub fn copy_of(source: &Path, target: &Path) -> PathBuf {
    std::fs::create_dir_all(target).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
    }
    target.to_owned()
}

pub fn run(arguments: &[&str]) -> Output {
    rarefy().args(arguments).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs with success and gives back standard output.
#[track_caller]
pub fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}\n{}\n{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Runs with `--json` and success and parses standard output.
#[track_caller]
pub fn json(arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    serde_json::from_str(&succeed(&all)).unwrap()
}

/// Runs with exit code 2 and an error that contains every needle; gives back standard error.
#[track_caller]
pub fn refuse(arguments: &[&str], needles: &[&str]) -> String {
    let output = run(arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}\n{text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(text.contains("error: "), "{text}");
    for needle in needles {
        assert!(text.contains(needle), "`{needle}` is not in the message of {arguments:?}:\n{text}");
    }
    text
}

/// Every file below a folder with its bytes.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert!(path.is_file(), "{} in an output folder", path.display());
        found.insert(path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap());
    }
    found
}

/// Two folders hold the same files with the same bytes.
#[track_caller]
pub fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    let names = |f: &BTreeMap<String, Vec<u8>>| f.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(a), names(b));
    for (name, bytes) in a {
        assert!(*bytes == b[name], "`{name}` differs: {} and {} bytes", bytes.len(), b[name].len());
    }
}

/// A safetensors file taken apart.
pub struct Parts {
    pub header: Value,
    pub data: Vec<u8>,
}

pub fn take_apart(file: &Path) -> Parts {
    let bytes = std::fs::read(file).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    Parts { header: serde_json::from_slice(&bytes[8..8 + n]).unwrap(), data: bytes[8 + n..].to_vec() }
}

pub fn put_together(file: &Path, parts: &Parts) {
    let header = serde_json::to_vec(&parts.header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(&parts.data);
    std::fs::write(file, bytes).unwrap();
}

/// Says on both streams that a test was not run, and why.
pub fn skipped(why: &str) {
    println!("SKIPPED: {why}");
    eprintln!("SKIPPED: {why}");
}

/// The path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
