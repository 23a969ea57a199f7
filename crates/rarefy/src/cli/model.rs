//! The MODEL argument: a folder, or the word `builtin`.

use std::path::{Path, PathBuf};

use rarefy_checkpoint::Checkpoint;
use rarefy_models::{ModelError, Realised, Rules, SparseActivations, SparseAttention, SparseFiles};

use super::error::{CliError, CliResult};
use super::{Context, percent};
use crate::builtin;

/// MODEL as the user gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelArg {
    /// The word `builtin`.
    Builtin,
    /// A model folder.
    Folder(PathBuf),
}

impl std::str::FromStr for ModelArg {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "builtin" { Self::Builtin } else { Self::Folder(PathBuf::from(text)) })
    }
}

impl ModelArg {
    /// The folder to read, written out first when it is the built-in model.
    ///
    /// # Errors
    /// The built-in model is absent or cannot be written out.
    pub(crate) fn folder(&self) -> CliResult<PathBuf> {
        match self {
            Self::Folder(folder) => Ok(folder.clone()),
            Self::Builtin => {
                builtin::folder().map_err(|e| CliError::failed("cannot use the model `builtin`", e))
            }
        }
    }

    /// True for the word `builtin`.
    pub(crate) fn is_builtin(&self) -> bool {
        *self == Self::Builtin
    }

    /// The name to show.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Builtin => "builtin".into(),
            Self::Folder(folder) => folder.display().to_string(),
        }
    }
}

/// The rules that a folder brings, none with `--dense`; says which.
///
/// # Errors
/// A file of rules that is damaged or of another model.
pub(crate) fn rules(checkpoint: &Checkpoint, dense: bool, context: &Context) -> CliResult<Rules> {
    if dense {
        return Ok(Rules::default());
    }
    let files = SparseFiles::open(checkpoint.dir(), checkpoint.config()).map_err(ModelError::from)?;
    if let Some(a) = &files.activations {
        let what = if a.inputs.is_empty() { "neurons" } else { "inputs of all matrices" };
        context.out.message(&format!("{what} are skipped by {}, aimed at {}", a.method, percent(a.share)));
    }
    if let Some(a) = &files.attention {
        context.out.message(&format!(
            "at most {} tokens are attended to, by {} ({} channels), from block {} on",
            a.kept,
            a.method,
            a.rank(),
            a.dense_layers
        ));
    }
    Ok(files.rules())
}

/// Says that a new folder will not have the rules of its source.
pub(crate) fn say_rules_stay_behind(source: &Checkpoint, context: &Context) {
    let names = [SparseActivations::FILE, SparseAttention::FILE];
    if let Some(name) = names.into_iter().find(|n| source.dir().join(n).is_file()) {
        context.out.warn(&format!("`{name}` is not carried over: the new folder has to be calibrated again"));
    }
}

/// What the rules left out, a line for each kind; nothing without rules.
pub(crate) fn realised_lines(found: &Realised) -> String {
    let mut lines = String::new();
    if let Some(share) = found.mlp_mean() {
        lines += &format!("idle neurons {}\n", percent(share));
    }
    if let Some(share) = found.inputs_mean() {
        lines += &format!("weights not read, their inputs being small, {}\n", percent(share));
    }
    if let Some(share) = found.attention_mean() {
        lines += &format!("visible tokens not attended to {}, mean over the blocks\n", percent(share));
    }
    lines
}

/// Refuses an output folder that is the model itself.
///
/// # Errors
/// [`CliError::Usage`] when both paths name the same folder.
pub(crate) fn refuse_same(model: &Path, out: &Path) -> CliResult {
    let same = match (model.canonicalize(), out.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => model == out,
    };
    if same {
        return Err(CliError::usage(
            format!("the output folder `{}` is the model itself", out.display()),
            "give another folder with `-o`",
        ));
    }
    Ok(())
}
