//! Dense linear algebra on tall matrices: sketched factors, leverage and Lewis weights, iterative and sketched least
//! squares, non-negative least squares, randomised singular values.
//!
//! | task | here | time on n × d |
//! |---|---|---|
//! | `min ‖Ax − b‖²`, one pass, `(1+ε)` of the optimum | [`least_squares()`] with `refine: false` | sketch + m·d² |
//! | the same to rounding | [`least_squares()`], [`lsqr()`] with a [`Whitening`] | the same + a few products |
//! | the same from one pass over blocks of rows, d² memory | [`StreamedQr`], [`solve_sketched`] | n·d² |
//! | `Hx = g`, `H` positive definite | [`cg()`] | products |
//! | `min ‖Ax − b‖²`, `x ≥ 0` | [`nnls()`] | n·d² + steps·d³ |
//! | influence of rows | [`leverage`], [`leverage_sketched`], [`lewis`] | n·d², n·d·log n, iterations·n·d² |
//! | leading singular triples | [`randomised_svd()`] | iterations·rank products |
//!
//! Sums over rows are made in blocks that depend on the sizes alone, so results have the same bits on any number of
//! threads.

mod basis;
mod cg;
mod least_squares;
mod lsqr;
mod nnls;
mod qr;
mod scores;
mod stream;
mod svd;

pub use basis::{Basis, Whitening, sketch_design};
pub use cg::{CgSettings, cg};
pub use least_squares::{LeastSquaresSettings, least_squares, solve_sketched};
pub use lsqr::{LsqrSettings, lsqr};
pub use nnls::{NnlsSettings, nnls};
pub(crate) use scores::lewis_of_basis;
pub use scores::{LewisWeights, leverage, leverage_sketched, lewis};
pub use stream::StreamedQr;
pub use svd::{RandomisedSvd, SvdSettings, randomised_svd};

pub(crate) use basis::{gram, quadratic_forms};
pub(crate) use qr::{pivoted, r_factor};
