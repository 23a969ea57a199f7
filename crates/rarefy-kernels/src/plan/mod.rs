//! Which kernel for this weight on this machine, and what a call will take, before anything is packed.
//!
//! A call reads its weights once and works on each of them. With `B` bytes of weights, `u` units of work (weight positions
//! for dense and bitmask kernels, kept positions for the others) and `n` rows of `x`:
//!
//! ```text
//! compute = u α(n)                      α: time of a unit, measured with weights in the cache
//! memory  = B / r(s)                     r: rate at which this kernel streams weights of sparsity s from memory
//! time    = c + (compute^p + memory^p)^(1/p)
//! ```
//!
//! `p` says how well a kernel overlaps the two: infinite for perfect overlap, 1 for none. [`Calibration::measure`] fits
//! `c, α, r, p` for every kernel from a few short measurements of one shape; everything else is prediction. A product too
//! small to wake a second thread is predicted from single-thread figures, as the kernels decide themselves. [`crossover`] tabulates what is
//! chosen, beside what was fastest.

mod calibrate;
mod cost;
mod crossover;

pub use calibrate::CalibrationSettings;
pub use cost::{Break, Calibration, KernelCost, Prediction, Residence, Work};
pub use crossover::{Crossover, CrossoverSettings, crossover};
