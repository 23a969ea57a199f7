//! Model folders on disk, in the layout of Hugging Face: safetensors with a memory map, config.json, tokenizer.json, the
//! packed formats of this project, the compressed-tensors formats, and a writer whose output appears complete or not at
//! all.
//!
//! Everything read is treated as untrusted: sizes are checked by checked arithmetic before anything is allocated, and
//! every fault is a [`CheckpointError`] that names file, tensor and remedy.
//!
//! ```no_run
//! use rarefy_checkpoint::Checkpoint;
//! # fn main() -> Result<(), rarefy_checkpoint::CheckpointError> {
//! let model = Checkpoint::open("models/llama".as_ref())?;
//! model.check_layout()?;
//! let embedding = model.read_f32("model.embed_tokens.weight")?;
//! # let _ = embedding;
//! # Ok(())
//! # }
//! ```

mod checkpoint;
pub mod compressed;
mod config;
mod dtype;
mod error;
mod fsutil;
mod hash;
mod json;
pub mod layout;
mod mmap;
mod packed;
pub mod safetensors;
mod store;
pub mod synth;
mod tokenizer;
mod writer;

pub use checkpoint::Checkpoint;
pub use config::{Activation, Architecture, ModelConfig, OptExtra, Rope, RopeScaling, read_config};
pub use dtype::{DType, round_trip, to_dtype};
pub use error::{CheckpointError, Result};
pub use fsutil::replace_file;
pub use store::{Logical, Storage, StoredWeight, TensorInfo, TensorStore};
pub use synth::{ShapeName, synth};
pub use tokenizer::Tokenizer;
pub use writer::new_model::{NewModel, NewModelFiles, NewTensor};
pub use writer::record::check_recorded_files;
pub use writer::{CheckpointWriter, OutTensor, OutputFormat, QuantGrid, WriteSummary, WrittenTensor};
