//! The verbs on folders of image classifiers.

mod bench;
mod eval;
mod inspect;
mod prune;

use std::path::Path;

use super::{CliError, CliResult};

pub(super) use bench::bench;
pub(super) use eval::eval;
pub(super) use inspect::inspect;
pub(super) use prune::prune;

/// Whether the folder is one of an image classifier. A folder without a readable `config.json` is not: the verb then says what is wrong with it.
pub(super) fn is_classifier(folder: &Path) -> bool {
    rarefy_models::classifier::is_classifier(folder).unwrap_or(false)
}

/// Refuses flags that mean nothing to an image classifier.
fn refuse(flags: &[(&str, bool)]) -> CliResult {
    match flags.iter().find(|f| f.1) {
        None => Ok(()),
        Some((flag, _)) => Err(CliError::usage(
            format!("`--{flag}` means nothing to an image classifier, which MODEL is"),
            "leave it out",
        )),
    }
}
