//! The MODEL argument: a folder, or the word `builtin`.

use std::path::{Path, PathBuf};

use super::error::{CliError, CliResult};
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
