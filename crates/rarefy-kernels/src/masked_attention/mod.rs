//! Attention of short sequences under a predicted mask: each query looks at a few keys only (Sparsifiner).
//!
//! [`Predictor`] finds the keys from a low-rank attention with a sparse basis, [`attend_rows`] attends to those, and
//! [`attend_all`] is the dense yardstick. All three work on one head, `[n][d]` f32; heads are independent, so callers
//! spread them over threads, and results cannot depend on that.
//!
//! # Measured: does not pay yet
//! n = 1024, d = 64, 10 % kept, one thread of a Xeon (`examples/masked_attention.rs`): dense 3.7–4.8 ms (55–73 GF/s), kept rows 1.5–2.5 ms
//! (2.0–2.5x), but the predictor 5.6–7.1 ms, so 0.5x in all. The operations counted in [`Predictor::predict`] should take about a fifth of
//! that; where the rest goes has not been found.

mod dense;
mod gemm;
pub mod oracle;
mod predictor;
mod rows;

pub use dense::{attend_all, attend_all_scratch_len, attend_all_with};
pub use predictor::{Basis, Predictor, PredictorSettings};
pub use rows::{RowLists, attend_rows, attend_rows_scratch_len, attend_rows_with};
