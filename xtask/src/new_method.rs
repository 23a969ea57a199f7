//! Scaffolding of a method: the file with the documentation template and a test skeleton.

use std::fs;
use std::path::Path;

/// Writes `crates/CRATE/src/methods/<slug>.rs` and prints what is left to do by hand.
pub(crate) fn write(root: &Path, krate: &str, slug: &str) -> Result<(), String> {
    let well_formed = !slug.is_empty()
        && slug.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && slug.starts_with(|c: char| c.is_ascii_lowercase());
    if !well_formed {
        return Err(format!("`{slug}` is no slug: lower-case letters, digits and `-`, a letter first"));
    }
    let folder = root.join("crates").join(krate).join("src/methods");
    if !folder.is_dir() {
        return Err(format!("crate `{krate}` has no folder src/methods"));
    }
    let file = slug.replace('-', "_");
    let path = folder.join(format!("{file}.rs"));
    if path.exists() {
        return Err(format!("`{}` exists", path.display()));
    }
    let name: String = slug.split('-').map(capitalised).collect();
    let text = TEMPLATE.replace("{Name}", &name).replace("{slug}", slug);
    fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    println!("wrote {}", path.strip_prefix(root).unwrap_or(&path).display());
    println!("now add by hand:");
    println!("  crates/{krate}/src/methods/mod.rs: `pub mod {file};` and the entry in METHODS");
    println!("  crates/rarefy/src/repro/{file}.rs: the published experiment, and its line in repro/mod.rs");
    println!("  then `cargo xtask docs`");
    Ok(())
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

const TEMPLATE: &str = r#"//! {Name} — <one line: what it does to what>.
//!
//! Paper:    <authors, title, venue year, arXiv id>. Reference code: <owner/name, or "none">.
//! Problem:  <objective in formulae; inputs with shapes, dtypes, units>
//! Method:   <numbered steps with equation numbers; what is precomputed in `new`>
//! Cost:     <time, extra memory, passes over the data; parallel or not>
//! Variants: <enum arms and the paper section of each>
//! Differs:  <from the paper: …   from the reference code: …   (or "nothing known")>
//! Choose:   <when to prefer a sibling, and when this is slow or poor>
//! Fails on: <conditions → error variants>

use rarefy_sparsity::{Maturity, MethodInfo};

/// The registry row of {Name}.
pub const INFO: MethodInfo = MethodInfo {
    slug: "{slug}",
    name: "{Name}",
    family: "",
    paper: "",
    command: "",
    maturity: Maturity::Preview,
    summary: "",
};

#[cfg(test)]
mod tests {
    // 1. by hand   2. limits   3. invariants   4. oracle   5. golden   6. published ordering   7. hostile input
}
"#;
