//! Repository chores: `cargo xtask check | sanitize | docs [--check] | new-method CRATE SLUG`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool of the repository itself")]

mod docs;
mod new_method;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask check | sanitize | docs [--check] | new-method CRATE SLUG";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["check"] => check(),
        ["sanitize"] => sanitize(),
        ["docs"] => docs::write(&root()),
        ["docs", "--check"] => docs::check(&root()),
        ["new-method", krate, slug] => new_method::write(&root(), krate, slug),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

/// The repository root: the parent of this crate's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The checks of CI, cheapest first.
fn check() -> Result<(), String> {
    docs::check(&root())?;
    let steps: [(&str, &[&str]); 4] = [
        ("format", &["fmt", "--all", "--", "--check"]),
        ("tests", &["test", "--release", "--workspace"]),
        ("clippy", &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        ("rustdoc", &["doc", "--release", "--workspace", "--no-deps"]),
    ];
    for (name, arguments) in steps {
        println!("== {name}");
        let status = Command::new("cargo")
            .args(arguments)
            .env("RUSTDOCFLAGS", "-D warnings")
            .current_dir(root())
            .status()
            .map_err(|e| format!("cargo could not be started: {e}"))?;
        if !status.success() {
            return Err(format!("`cargo {}` failed", arguments.join(" ")));
        }
    }
    Ok(())
}

/// The tests of the formats and kernels under AddressSanitizer, vector paths and portable ones. Linux on x86-64.
fn sanitize() -> Result<(), String> {
    let folder = root().join("target/sanitize");
    let status = Command::new("cargo")
        .args(["test", "--release", "--target", "x86_64-unknown-linux-gnu"])
        .args(["-p", "rarefy-sparsity", "-p", "rarefy-kernels", "--lib", "--tests"])
        .env("CARGO_TARGET_DIR", &folder)
        // The sanitizer's flag is unstable; the stable compiler takes it with this.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .current_dir(root())
        .status()
        .map_err(|e| format!("cargo could not be started: {e}"))?;
    if status.success() { Ok(()) } else { Err("the tests under AddressSanitizer failed".into()) }
}
