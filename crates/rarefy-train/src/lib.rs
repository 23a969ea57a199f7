//! Training with sparse hooks: recipe, trainer, masked optimizers, exact resume.
//!
//! A [`Recipe`] is a TOML file that says everything about a run. A [`Trainer`] made from it trains a Llama-type model on a
//! text or on the built-in corpus, with a [`SparseMethod`] plugged into its steps, and writes a model folder. A run can be
//! stopped at any step and resumed: the result is bit-identical to that of an uninterrupted run.
//!
//! An [`ImageTrainer`] does the same with a small MobileNet on labelled images.
//!
//! ```no_run
//! use rarefy_train::{Recipe, train_to_folder};
//! use std::sync::atomic::AtomicBool;
//! # fn main() -> Result<(), rarefy_train::TrainError> {
//! let recipe = Recipe::from_file("recipes/builtin.toml".as_ref())?;
//! let cancel = AtomicBool::new(false);
//! let outcome = train_to_folder(&recipe, "model".as_ref(), &mut |event| drop(event.clone()), &cancel)?;
//! # let _ = outcome;
//! # Ok(())
//! # }
//! ```

mod batches;
mod error;
mod evaluate;
mod gradients;
mod gradual;
mod images;
#[cfg(test)]
mod images_tests;
mod method;
mod optimizer;
mod output;
mod parameters;
mod recipe;
mod recipe_keys;
#[cfg(test)]
mod recipe_tests;
mod state;
mod tokenizer;
mod trainer;
#[cfg(test)]
mod trainer_tests;

pub use batches::{Batch, Batches, Position};
pub use error::TrainError;
pub use evaluate::Evaluation;
pub use gradual::GradualPruning;
pub use images::{ImageOutcome, ImageSettings, ImageStep, ImageTrainer};
pub use method::{Dense, SparseMethod};
pub use optimizer::{Optimizer, global_norm};
pub use output::train_to_folder;
pub use parameters::{Parameter, Parameters};
pub use recipe::{
    CheckpointSettings, ClipSettings, DataSettings, Distribution, EvaluationSettings, ModelSettings,
    OptimizerKind, OptimizerSettings, Recipe, ScheduleSettings, SparsitySettings, TokenizerSettings,
};
pub use tokenizer::{ByteTokenizer, train_tokenizer};
pub use trainer::{Event, Outcome, Trainer};
