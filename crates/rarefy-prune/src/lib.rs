//! Post-training pruning: calibration statistics, layer-wise methods and the
//! driver that streams a model folder block by block.
//!
//! A method sees one linear layer and the statistics of its inputs
//! ([`LayerPruner`]); the driver ([`PruneRun`]) loads one block at a time,
//! collects exactly the statistics the method asks for, prunes, writes the
//! block durably and feeds the activations of the *pruned* block to the next
//! one. Methods are listed in [`METHODS`]. Methods that leave the weights alone and write rules for running them
//! ([`RuleMethod`]) are listed in [`RULE_METHODS`].
//!
//! ```
//! use rarefy_prune::{LayerPruner, LayerStats, LinearLayer, methods::Magnitude, methods::MagnitudeSettings};
//! # use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
//! let pruner = Magnitude::new(MagnitudeSettings { sparsity: 0.5, ..Default::default() })?;
//! let mut layer = LinearLayer::new("example", 1, 4, vec![0.1, -3.0, 2.0, -0.2])?;
//! let mut rng = ChaCha8Rng::seed_from_u64(0);
//! let report = pruner.prune(&mut layer, &LayerStats::none(), &mut rng)?;
//! assert_eq!(layer.weight, [0.0, -3.0, 2.0, 0.0]);
//! assert_eq!(report.pruned, 2);
//! # Ok::<(), rarefy_prune::PruneError>(())
//! ```

pub mod classifier;
mod driver;
mod error;
mod layer;
pub mod linalg;
pub mod methods;
mod rules;
mod selection;
pub mod statistics;
pub mod synthetic;

pub use driver::{
    Calibration, Event, LayerFilter, MemoryItem, MemoryPhase, MemoryPlan, Progress, PruneReport, PruneRun,
    RunSettings, SkippedLayer, Totals,
};
pub use error::{PruneError, SettingError};
pub use layer::{ErrorKind, LayerPruner, LayerReport, LinearLayer, Needs, QuantGrid, Warning};
pub use methods::{METHODS, MethodEntry, RULE_METHODS, RuleEntry};
pub use rules::{RuleMethod, RuleReport, calibrate_rules, write_rules};
pub use statistics::LayerStats;
