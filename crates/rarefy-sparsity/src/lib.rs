//! What sparsity *is*: patterns, masks, exact-count selection, budgets over layers, schedules,
//! storage formats and accounting. No machine-learning framework is used here.
//!
//! Conventions of the whole workspace:
//!
//! - a weight of a linear layer is row-major `W[d_out, d_in]`; `rows = d_out`, `cols = d_in`;
//! - *sparsity* is the fraction of zeros, in `[0, 1)`;
//! - `N:M` means at most `N` non-zeros in each aligned group of `M` consecutive inputs of a row;
//! - a mask bit of 1 means *kept*;
//! - the lowest score is pruned first; among equal scores the lower index is pruned first.
//!
//! # Example
//!
//! ```
//! use rarefy_sparsity::{Group, select};
//!
//! # fn main() -> Result<(), rarefy_sparsity::SparsityError> {
//! let mut weight = [0.1, -0.9, 0.4, -0.2, 0.8, 0.3, -0.7, 0.05];
//! let scores = weight.map(f32::abs);
//! let mask = select::n_of_m(&scores, 2, 4, 2, 4)?; // 2:4
//! mask.apply(&mut weight);
//! assert_eq!(weight, [0.0, -0.9, 0.4, 0.0, 0.8, 0.0, -0.7, 0.0]);
//! let half = select::unstructured(&scores, 2, 4, Group::Tensor, 0.5)?;
//! assert_eq!(half.pruned(), 4);
//! # Ok(())
//! # }
//! ```

pub mod accounting;
pub mod detect;
pub mod distribution;
mod error;
pub mod formats;
mod mask;
mod method;
mod pattern;
pub mod schedule;
pub mod select;

pub use error::{SparsityError, check_sparsity};
pub use mask::Mask;
pub use method::{Maturity, MethodInfo};
pub use pattern::Pattern;
pub use schedule::{Ramp, Schedule};
pub use select::Group;
