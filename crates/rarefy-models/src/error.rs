//! The one error type of this crate.

use rarefy_checkpoint::CheckpointError;
use rarefy_kernels::KernelError;

/// What can go wrong when a network is built or run. Every variant names the place, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The model folder could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Rules of sparse running that this model cannot follow.
    #[error(transparent)]
    Rule(#[from] crate::sparse::RuleError),
    /// A kernel refused a weight.
    #[error("weight `{tensor}`: the kernel refused it")]
    Kernel {
        /// Full tensor name.
        tensor: String,
        /// The kernel's own account.
        #[source]
        source: KernelError,
    },
    /// A weight could not be brought into the layout it is run in.
    #[error("weight `{tensor}`: cannot be repacked")]
    Format {
        /// Full tensor name.
        tensor: String,
        /// The format's own account.
        #[source]
        source: rarefy_sparsity::SparsityError,
    },
    /// The configuration asks for something this crate does not compute.
    #[error("config field `{field}` = {value}: not supported here; {remedy}")]
    Unsupported {
        /// Field of `config.json`.
        field: &'static str,
        /// The value found.
        value: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A layer that `config.json` lists is not understood.
    #[error("config.json, layer {layer}: `{field}` = {value}; expected {expected}")]
    Layer {
        /// Number of the layer.
        layer: usize,
        /// Its field.
        field: &'static str,
        /// The value found.
        value: String,
        /// What is understood.
        expected: &'static str,
    },
    /// The kernels refused a network.
    #[error("network `{name}`: cannot be run")]
    Network {
        /// Name of the network.
        name: String,
        /// The kernels' own account.
        #[source]
        source: KernelError,
    },
    /// Not an order of channels.
    #[error("order of {found} channels: expected each of {channels} once, in a class of this network")]
    Permutation {
        /// Channels of the class.
        channels: usize,
        /// Entries found.
        found: usize,
    },
    /// A tensor has another shape than the architecture needs.
    #[error("tensor `{tensor}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Full tensor name.
        tensor: String,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape (or length) found.
        found: Vec<usize>,
    },
    /// No linear layer of that name in this block.
    #[error("no linear layer `{name}` in this block; it has {known:?}")]
    UnknownLinear {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// No parameter of that name in this model.
    #[error(
        "no parameter `{name}` in this model; names are those of the Hugging Face layout, such as `{example}`"
    )]
    UnknownParameter {
        /// The name asked for.
        name: String,
        /// A name that exists.
        example: String,
    },
    /// The weight of this layer is packed and cannot be read or replaced here.
    #[error(
        "linear layer `{name}` holds its weight packed ({kind}); load the model with dense weights to change it"
    )]
    Packed {
        /// Name of the layer.
        name: String,
        /// The kernel's name.
        kind: &'static str,
    },
    /// No block of that index.
    #[error("block {index} does not exist; the model has {n_layers}")]
    NoSuchBlock {
        /// The index asked for.
        index: usize,
        /// Number of blocks.
        n_layers: usize,
    },
    /// There is nothing to compute on.
    #[error("empty input: {what}")]
    Empty {
        /// What was empty.
        what: &'static str,
    },
    /// The sequences of a batch differ in length.
    #[error(
        "sequence {index} of the batch has {found} tokens, the first one {expected}; a batch needs equal lengths"
    )]
    Ragged {
        /// Index of the sequence.
        index: usize,
        /// Length of the first sequence.
        expected: usize,
        /// Length of this one.
        found: usize,
    },
    /// A token is outside the vocabulary.
    #[error(
        "token {token} at position {position} of sequence {sequence} is outside the vocabulary of {vocab_size}; was the text encoded with another tokenizer?"
    )]
    Token {
        /// Index of the sequence.
        sequence: usize,
        /// Position in the sequence.
        position: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The sequence is longer than the table of learned positions.
    #[error(
        "{needed} positions needed, but this model has learned only {available}; use a shorter sequence or window"
    )]
    Positions {
        /// Positions needed.
        needed: usize,
        /// Rows of the table that may be used.
        available: usize,
    },
    /// A window of the perplexity measure is unusable.
    #[error(
        "window of {window} tokens over a text of {tokens}: a window needs at least 2 tokens and the text at least one window"
    )]
    Window {
        /// Window length.
        window: usize,
        /// Tokens of the text.
        tokens: usize,
    },
    /// The network returned something that is not a number.
    #[error(
        "{count} non-finite values in the {what}, first at {first}; the weights or the input are damaged"
    )]
    NonFinite {
        /// Which values.
        what: &'static str,
        /// How many.
        count: usize,
        /// Index of the first.
        first: usize,
    },
    /// A sampling setting is out of range.
    #[error("sampling setting `{setting}` = {value}: allowed is {allowed}")]
    Sampling {
        /// The setting.
        setting: &'static str,
        /// The value given.
        value: f64,
        /// The allowed range.
        allowed: &'static str,
    },
    /// The cache belongs to a model of another shape.
    #[error(
        "the cache was made for {found} blocks, the model has {expected}; make it with `new_cache` of the same model"
    )]
    Cache {
        /// Blocks of the model.
        expected: usize,
        /// Blocks of the cache.
        found: usize,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, ModelError>;
