//! Training recipes: whatever the text, a recipe or an error, never a panic.
//!
//! `cargo fuzz run --features recipe recipe`
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = rarefy_train::Recipe::from_toml_str(text);
});
