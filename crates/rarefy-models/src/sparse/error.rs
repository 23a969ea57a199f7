//! What can be wrong with rules of sparse running.

use std::path::PathBuf;

/// A file of rules that cannot be used, or a model that cannot follow them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// The file could not be read.
    #[error("`{path}` cannot be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's account.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any such file has to be.
    #[error("`{path}` has more than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes accepted.
        limit: u64,
    },
    /// The file is not what it should be.
    #[error("`{path}` is damaged: {reason}; calibrate again, or run with `--dense`")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's account, with the place.
        reason: String,
    },
    /// The file has a version of another program.
    #[error("rules of version {found}; this program reads version {known}")]
    Version {
        /// Version found.
        found: u32,
        /// Version known.
        known: u32,
    },
    /// A list or size that does not fit the model.
    #[error(
        "`{field}` of the rules is {found}, the model needs {expected}; were they made for another model?"
    )]
    Size {
        /// Name of the field.
        field: &'static str,
        /// By the model.
        expected: usize,
        /// In the rules.
        found: usize,
    },
    /// A threshold that is not a finite number of at least zero.
    #[error("threshold of layer {layer} is {value}: allowed is a finite number of at least 0")]
    Threshold {
        /// The layer.
        layer: usize,
        /// The value found.
        value: f32,
    },
    /// A channel that a head does not have.
    #[error("layer {layer}, key-value head {head}: channel {channel}, but a head has {head_dim}")]
    Channel {
        /// The layer.
        layer: usize,
        /// The key-value head.
        head: usize,
        /// The channel found.
        channel: u32,
        /// Channels of a head.
        head_dim: usize,
    },
    /// A channel listed twice for one head.
    #[error("layer {layer}, key-value head {head}: channel {channel} is listed twice")]
    Twice {
        /// The layer.
        layer: usize,
        /// The key-value head.
        head: usize,
        /// The channel.
        channel: u32,
    },
    /// A setting outside its range.
    #[error("`{field}` of the rules is {value}: allowed is {allowed}")]
    Range {
        /// Name of the field.
        field: &'static str,
        /// The value found.
        value: String,
        /// The allowed range.
        allowed: &'static str,
    },
    /// A model whose blocks cannot follow the rules.
    #[error("these rules cannot run here: {reason}; {remedy}")]
    Model {
        /// What stands in the way.
        reason: String,
        /// What to do instead.
        remedy: &'static str,
    },
}
