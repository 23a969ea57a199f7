//! Lists the files of the built-in model, so that the library can embed them.
//!
//! A checkout without them still builds; the word `builtin` then gives an error.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let missing = |name: &str| io::Error::other(format!("{name} is not set"));
    let root = env::var("CARGO_MANIFEST_DIR").map_err(|_| missing("CARGO_MANIFEST_DIR"))?;
    let out = env::var("OUT_DIR").map_err(|_| missing("OUT_DIR"))?;
    let assets = Path::new(&root).join("assets/builtin");
    let mut files = Vec::new();
    if assets.is_dir() {
        for entry in fs::read_dir(&assets)? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            if let Some(name) = name.filter(|n| path.is_file() && !n.starts_with('.')) {
                files.push((name, path.clone()));
            }
        }
    }
    files.sort();
    let mut code = String::from("/// Name and content of each embedded file, sorted by name.\n");
    let _ = writeln!(code, "pub(crate) static FILES: &[(&str, &[u8])] = &[");
    for (name, path) in &files {
        let _ = writeln!(code, "    ({name:?}, include_bytes!({:?})),", path.display().to_string());
    }
    code.push_str("];\n");
    fs::write(Path::new(&out).join("builtin_files.rs"), code)?;
    println!("cargo::rerun-if-changed=assets/builtin");
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}
