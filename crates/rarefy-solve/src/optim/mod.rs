//! Smooth minimisation: L-BFGS and the line searches it needs.

mod lbfgs;
mod line_search;

pub use lbfgs::{LbfgsSettings, lbfgs};
pub use line_search::{Backtracking, LineSearchOutcome, StrongWolfe};
