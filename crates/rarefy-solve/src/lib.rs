//! Solvers for sparse problems, in double precision, without a deep-learning framework.
//!
//! Every solver borrows its inputs, takes a settings struct that says what it did by default and
//! why, and returns a [`Solution`] whose [`Status`] tells how it ended: running out of iterations
//! is a status, bad input is a [`SolveError`]. A [`Monitor`] carries progress, cancellation and a
//! time limit. The same seed gives the same bits on any number of threads.
//!
//! - [`glm`]: sparse regression and classification: paths, cross-validation, certificates;
//! - [`linalg`]: sketched and iterative least squares, leverage and Lewis weights, NNLS, randomised SVD;
//! - [`linop`]: design matrices and linear operators (dense, sparse, Kronecker, masked, implicit);
//! - [`prox`]: projections and proximal maps;
//! - [`sketch`]: the Walsh–Hadamard transform and random sketches, streamed by row blocks;
//! - [`optim`]: L-BFGS and line searches;
//! - [`privacy`]: randomisers for differential privacy;
//! - [`transport`]: optimal transport: Sinkhorn, exact, smoothed;
//! - [`experiments`]: the published experiments, measured;
//! - [`methods`]: one module per published method, listed in [`METHODS`].

mod error;
pub mod experiments;
pub mod glm;
pub mod linalg;
pub mod linop;
pub mod methods;
mod monitor;
pub mod optim;
pub mod privacy;
pub mod prox;
pub mod sketch;
mod solution;
pub mod transport;

pub use error::SolveError;
pub use linop::{Column, Csc, Csr, Design, LinOp};
pub use methods::METHODS;
pub use monitor::Monitor;
pub use solution::{Residual, Solution, Status, Trace, TracePoint};
