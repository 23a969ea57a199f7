//! Make models sparse and make the sparsity pay.
//!
//! A model folder goes in (Hugging Face layout), a sparse one comes out, measured beside the dense one. This crate is the
//! command line and the door to the library; the work is done in the crates it re-exports: [`sparsity`] (what sparsity
//! is), [`kernels`] (how it runs), [`checkpoint`] (model folders), [`data`] (texts), [`models`] (networks), [`prune`]
//! (post-training methods) and [`train`].
//!
//! # All of it in a page
//! Prunes the built-in language model to 2:4 with Wanda, packs it, and measures perplexity, size and speed beside dense:
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//!
//! use rarefy::checkpoint::{Checkpoint, OutputFormat, Tokenizer};
//! use rarefy::models::{CausalLm, LoadOptions, Sampling, generate, perplexity};
//! use rarefy::prune::{PruneRun, RunSettings};
//! use rarefy::{builtin, data, measure};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Any folder with config.json, model.safetensors and tokenizer.json will do.
//! let source = Checkpoint::open(&builtin::folder()?)?;
//! let tokenizer = Tokenizer::open(source.dir())?;
//!
//! // Calibration: eight windows of 64 tokens. Real models want 128 of 2048.
//! let calibration = data::random_windows(&builtin::calibration(&tokenizer, 4096)?, 8, 64, 0)?;
//!
//! // Prune and pack, one block in memory at a time. The folder appears complete or not at all.
//! let target = tempfile::tempdir()?;
//! let out = target.path().join("wanda-2-4");
//! let settings = RunSettings { format: OutputFormat::Packed, ..RunSettings::default() };
//! let run = PruneRun::by_name("wanda", &serde_json::json!({ "pattern": "2:4" }), settings)?;
//! println!("memory: {}", run.predict_memory(&source, 8, 64));
//! let report = run.run(&source, &calibration, &out, &mut (), &AtomicBool::new(false))?;
//! assert_eq!(report.totals.sparsity, 0.5);
//!
//! // Quality, on text that the model has not seen, beside the entropy of the text itself.
//! let sparse = Checkpoint::open(&out)?;
//! let (dense, packed) =
//!     (CausalLm::load(&source, LoadOptions::default())?, CausalLm::load(&sparse, LoadOptions::default())?);
//! let test = builtin::held_out(&tokenizer, 8 * 128)?;
//! let ppl = |model| perplexity(model, &test.tokens, 128, &mut |_, _| (), Some(8));
//! let (before, after) = (ppl(&dense)?.ppl, ppl(&packed)?.ppl);
//! assert!(test.floor_ppl < before && before < after);
//!
//! // Size and speed.
//! assert!(packed.weight_bytes() < dense.weight_bytes());
//! let ms = measure::decode_ms(&[&dense, &packed], &test.tokens[..8], 8, 1)?;
//! println!("perplexity {before:.2} and {after:.2}, ms per token {:.2} and {:.2}", ms[0], ms[1]);
//!
//! // And it runs.
//! let prompt = tokenizer.encode("The dog")?;
//! let new = generate(&packed, &prompt, Sampling::Greedy, 8, 0, &mut |_| std::ops::ControlFlow::Continue(()))?;
//! println!("The dog{}", tokenizer.decode(&new)?);
//! # Ok(())
//! # }
//! ```

pub use rarefy_checkpoint as checkpoint;
pub use rarefy_data as data;
pub use rarefy_kernels as kernels;
pub use rarefy_models as models;
pub use rarefy_prune as prune;
pub use rarefy_sparsity as sparsity;
pub use rarefy_train as train;

pub mod builtin;
pub mod classify;
pub mod cli;
pub mod estimate;
pub mod measure;
pub mod pipeline;
pub mod quickstart;
pub mod registry;
pub mod report;
pub mod repro;
