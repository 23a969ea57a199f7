//! Errors of this crate.

use std::path::PathBuf;

use rarefy_sparsity::{Pattern, SparsityError};

/// A settings value outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting `{field}` = {value} is not allowed: must be {allowed}")]
pub struct SettingError {
    /// Name of the field, as in the recipe.
    pub field: &'static str,
    /// The value found.
    pub value: String,
    /// The allowed range, in words.
    pub allowed: String,
}

impl SettingError {
    /// Builds the error from its three parts.
    pub fn new(field: &'static str, value: impl std::fmt::Display, allowed: impl Into<String>) -> Self {
        Self { field, value: value.to_string(), allowed: allowed.into() }
    }
}

/// Everything that can go wrong while pruning.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// A settings value outside its range.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Settings that do not parse: unknown key, wrong type.
    #[error("settings of method `{method}`: {message}")]
    SettingsFormat {
        /// Name of the method.
        method: &'static str,
        /// The parser's message, which names the key.
        message: String,
    },
    /// The method name is not in the registry.
    #[error("unknown method `{name}`; known methods: {known}")]
    UnknownMethod {
        /// The name asked for.
        name: String,
        /// The names that exist, comma separated.
        known: String,
    },
    /// An N:M pattern whose group length does not divide the inputs of a layer.
    #[error(
        "layer `{layer}`: pattern {n}:{m} needs d_in divisible by {m}, got {d_in}; choose another pattern or leave the layer out with `prune_only`"
    )]
    PatternMismatch {
        /// Name of the layer.
        layer: String,
        /// Non-zeros kept in each group.
        n: usize,
        /// Length of a group.
        m: usize,
        /// Inputs of the layer.
        d_in: usize,
    },
    /// A quantisation group that does not divide the inputs of a layer.
    #[error(
        "layer `{layer}`: `quantize_group` {group} must divide d_in = {d_in}; choose a divisor or leave the layer out with `prune_only`"
    )]
    GroupMismatch {
        /// Name of the layer.
        layer: String,
        /// Columns that share a scale.
        group: usize,
        /// Inputs of the layer.
        d_in: usize,
    },
    /// The method cannot produce this pattern.
    #[error("method `{method}` cannot produce the pattern {pattern}; it supports {supported}")]
    UnsupportedPattern {
        /// Name of the method.
        method: &'static str,
        /// The pattern asked for.
        pattern: Pattern,
        /// What it supports, in words.
        supported: &'static str,
    },
    /// NaN or infinity in a weight matrix.
    #[error(
        "layer `{layer}`: {count} non-finite weights, first at row {row}, column {col}; repair the model before pruning"
    )]
    NonFiniteWeight {
        /// Name of the layer.
        layer: String,
        /// How many.
        count: usize,
        /// Row of the first one.
        row: usize,
        /// Column of the first one.
        col: usize,
    },
    /// NaN or infinity in the inputs seen during calibration.
    #[error(
        "calibration input of `{layer}`: {count} non-finite values in sequence {sequence}, first at token {token}"
    )]
    NonFiniteInput {
        /// Name of the layer.
        layer: String,
        /// How many in that sequence.
        count: usize,
        /// Index of the calibration sequence.
        sequence: usize,
        /// Token of the first one.
        token: usize,
    },
    /// NaN, infinity or a negative sum of squares in supplied statistics.
    #[error(
        "statistics of `{layer}`: `{statistic}` holds a value that is not finite or is negative, first at {index}"
    )]
    InvalidStatistic {
        /// Name of the layer.
        layer: String,
        /// Name of the statistic.
        statistic: &'static str,
        /// Flat index of the first bad value.
        index: usize,
    },
    /// The result of an update is not finite.
    #[error("layer `{layer}`: the updated weights are not finite (percdamp {percdamp}); raise `percdamp`")]
    Diverged {
        /// Name of the layer.
        layer: String,
        /// Relative damping used.
        percdamp: f64,
    },
    /// A model that the method cannot treat.
    #[error("method `{method}` does not fit this model: {what}")]
    UnsupportedModel {
        /// Name of the method.
        method: &'static str,
        /// What does not fit, and what would.
        what: String,
    },
    /// A calibrator refused its data.
    #[error("calibration of block {block}")]
    Calibration {
        /// Index of the block.
        block: usize,
        /// The calibrator's own account.
        #[source]
        source: rarefy_kernels::KernelError,
    },
    /// A weight that the storage type cannot hold.
    #[error(
        "layer `{layer}`: an updated weight does not fit the storage type {dtype}; convert the model to bf16 or f32 first"
    )]
    OutOfRange {
        /// Name of the layer.
        layer: String,
        /// Type of the stored weights.
        dtype: rarefy_checkpoint::DType,
    },
    /// The hidden states of a block could not be read back.
    #[error("hidden states of a block cannot be read: {0}")]
    Activations(String),
    /// A statistic the method needs was not collected.
    #[error("layer `{layer}`: the statistic `{statistic}` is missing; the method needs calibration data")]
    MissingStatistic {
        /// Name of the layer.
        layer: String,
        /// Name of the statistic.
        statistic: &'static str,
    },
    /// Lengths that do not fit each other.
    #[error("layer `{layer}`: {what} must hold {expected} values, found {found}")]
    ShapeMismatch {
        /// Name of the layer.
        layer: String,
        /// What was measured.
        what: &'static str,
        /// Length required.
        expected: usize,
        /// Length found.
        found: usize,
    },
    /// No calibration data although the method needs it.
    #[error("method `{method}` needs calibration data, but {what}; give a longer text")]
    EmptyCalibration {
        /// Name of the method.
        method: &'static str,
        /// What is empty.
        what: String,
    },
    /// A token that the vocabulary does not hold.
    #[error(
        "calibration sequence {sequence}: token {token} at position {position} is outside the vocabulary of {vocab_size}; use the tokenizer of this model"
    )]
    TokenOutOfRange {
        /// Index of the sequence.
        sequence: usize,
        /// Position in it.
        position: usize,
        /// The token.
        token: u32,
        /// Vocabulary size of the model.
        vocab_size: usize,
    },
    /// A calibration sequence longer than the model's positions.
    #[error(
        "calibration sequence {sequence} has {len} tokens, the model takes at most {max}; use shorter windows"
    )]
    SequenceTooLong {
        /// Index of the sequence.
        sequence: usize,
        /// Its length.
        len: usize,
        /// What the model takes.
        max: usize,
    },
    /// Nothing is left to prune after filtering.
    #[error(
        "the filter (min_layer {min_layer}, max_layer {max_layer}, prune_only `{prune_only}`, invert {invert}) selects no layer of this model"
    )]
    NothingSelected {
        /// First block.
        min_layer: usize,
        /// End of the blocks (exclusive), or "none".
        max_layer: String,
        /// Substring of the layer name.
        prune_only: String,
        /// Whether the selection is inverted.
        invert: bool,
    },
    /// Stored progress that does not fit this model.
    #[error(
        "stored progress of part `{part}` is damaged: {message}; delete the partial folder and run again"
    )]
    Journal {
        /// Name of the part.
        part: String,
        /// What does not fit.
        message: String,
    },
    /// The run was cancelled; finished parts are safe.
    #[error("cancelled after {blocks_done} of {blocks} blocks; run the same command again to continue {}", output.display())]
    Cancelled {
        /// Blocks written durably.
        blocks_done: usize,
        /// Blocks of the model.
        blocks: usize,
        /// The output folder that will appear when the run is resumed.
        output: PathBuf,
    },
    /// A selection primitive refused its input.
    #[error("layer `{layer}`: {source}")]
    Selection {
        /// Name of the layer.
        layer: String,
        /// What it refused.
        source: SparsityError,
    },
    /// Reading or writing a model folder failed.
    #[error(transparent)]
    Checkpoint(#[from] rarefy_checkpoint::CheckpointError),
    /// Loading or running a block failed.
    #[error(transparent)]
    Model(#[from] rarefy_models::ModelError),
}
