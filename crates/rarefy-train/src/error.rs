//! What can go wrong in training.

use std::path::PathBuf;

/// An error of recipes and training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file could not be read or written.
    #[error("cannot {action} `{file}`: {source}")]
    Io {
        /// File concerned.
        file: PathBuf,
        /// "read", "write", ...
        action: &'static str,
        /// Cause given by the operating system.
        source: std::io::Error,
    },
    /// The recipe is not TOML or a value has the wrong type.
    #[error("recipe `{file}`: {message}")]
    RecipeSyntax {
        /// Recipe file, or "recipe" when it did not come from a file.
        file: String,
        /// Parser message with line and column.
        message: String,
    },
    /// The recipe has a key that nothing reads.
    #[error("recipe `{file}`: unknown key `{key}`; the nearest valid key is `{nearest}`")]
    UnknownKey {
        /// Recipe file.
        file: String,
        /// Key with its section, as `section.key`.
        key: String,
        /// Nearest valid key.
        nearest: String,
    },
    /// A setting is outside its range.
    #[error("recipe: `{field}` is {value}; {allowed}")]
    Setting {
        /// Key with its section.
        field: &'static str,
        /// Value found.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// The tokenizer could not be trained, read or applied.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A number stopped being finite; the last checkpoint is intact.
    #[error(
        "step {step}: `{tensor}` has {count} non-finite values, first at index {first}; lower `optimizer.lr`, raise `schedule.warmup` or set `clip.norm`{}",
        checkpoint.as_ref().map_or(String::new(), |c| format!(" (the last good state is in `{}`)", c.display()))
    )]
    NonFinite {
        /// Step, counted from 0, in which it was found.
        step: u64,
        /// "loss", the name of a parameter, or that name with ".grad".
        tensor: String,
        /// How many values are not finite.
        count: usize,
        /// Index of the first one, row-major.
        first: usize,
        /// The last checkpoint, when one was written.
        checkpoint: Option<PathBuf>,
    },
    /// A training state does not belong to this recipe.
    #[error(
        "training state `{file}` belongs to another recipe (differs in {difference}); remove it to start anew, or use the recipe it was made with"
    )]
    OtherRecipe {
        /// State file.
        file: PathBuf,
        /// What differs.
        difference: String,
    },
    /// A training state file is damaged.
    #[error("training state `{file}` is damaged: {reason}; remove it to start anew")]
    BadState {
        /// State file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing was left to measure.
    #[error(
        "none of the {skipped} validation documents fits the context of {context} tokens; raise `model.max_positions`"
    )]
    NothingToMeasure {
        /// Documents left out.
        skipped: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A name in `sparsity.excluded` matches no layer.
    #[error(
        "recipe: `sparsity.excluded` entry `{entry}` matches no linear layer; layers are named like `{example}`"
    )]
    NoSuchLayer {
        /// Entry of the recipe.
        entry: String,
        /// Some existing layer.
        example: String,
    },
    /// From the data crate.
    #[error(transparent)]
    Data(#[from] rarefy_data::DataError),
    /// From the models crate.
    #[error(transparent)]
    Model(#[from] rarefy_models::ModelError),
    /// From the checkpoint crate.
    #[error(transparent)]
    Checkpoint(#[from] rarefy_checkpoint::CheckpointError),
    /// From the sparsity crate.
    #[error(transparent)]
    Sparsity(#[from] rarefy_sparsity::SparsityError),
}

impl TrainError {
    pub(crate) fn io(file: &std::path::Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_path_buf();
        move |source| Self::Io { file, action, source }
    }
}
