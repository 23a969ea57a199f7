//! Optimal transport between two discrete measures.
//!
//! A [`Transport`] holds weights `a: ℝ^m`, `b: ℝ^n` (at least 0, equal sums) and a cost matrix
//! `C: [m, n]`, row-major; `U(a, b) = {P ≥ 0 : P1 = a, Pᵀ1 = b}`. Points without mass drop out and come
//! back as empty rows or columns of the answer.
//!
//! - [`sinkhorn`]: `min ⟨C, P⟩ + ε Σ P(ln P − 1)`, in kernel space or in the log domain;
//! - [`exact`]: `min ⟨C, P⟩`, a vertex with at most `m + n − 1` entries and a certificate;
//! - [`smooth`]: `min ⟨C, P⟩ + Ω(P)` for strongly convex or cardinality-constrained `Ω`, through the
//!   dual or the semi-dual and L-BFGS.
//!
//! Choose [`exact`] up to some thousand points, [`sinkhorn`] for a large ε or rough answers,
//! [`crate::methods::sinkhorn_newton_sparse`] for a small ε and full precision, [`smooth`] for a sparse plan.

mod exact;
pub(crate) mod exp;
pub(crate) mod kernel;
mod problem;
mod sinkhorn;
pub mod smooth;

pub use exact::{ExactPlan, ExactSettings, exact};
pub use problem::Transport;
pub use sinkhorn::{Domain, EntropicPlan, SinkhornSettings, sinkhorn, sinkhorn_from};
