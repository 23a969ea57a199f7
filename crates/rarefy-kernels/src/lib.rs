//! How sparsity *runs*: products of a weight `W[d_out, d_in]` with a few rows of activations, dense and sparse.
//!
//! `y[n, d_out] = x[n, d_in] · Wᵀ` for small `n` (decoding one or a few tokens) is bound by reading `W`. A sparse
//! kernel is faster when it reads fewer bytes at the same rate; that is all it can gain, and it is measured here
//! against our own dense kernel at the machine's read bandwidth ([`bandwidth`], [`mod@bench`]).
//!
//! | kernel | weights | bytes per weight (s = fraction of zeros) |
//! |---|---|---|
//! | [`DenseF32`], [`DenseBf16`] | any | 4, 2 |
//! | [`PanelF32`], [`PanelBf16`] | unstructured zeros | `4 (1 − s) + 1/8`, `2 (1 − s) + 1/8` |
//! | [`Gather`] | unstructured zeros, 85 % and more | `6 (1 − s)` |
//! | [`Tiled`] | unstructured zeros in f16, as the GPU kernel of the paper does it | `4 (1 − s)` |
//! | [`PanelInt8`] | unstructured zeros over codes of 8 bits | `(1 − s) + 1/8` |
//! | [`NmF32`], [`NmBf16`] | N of M | `4 N/M + 1/8`, `2 N/M + 1/8` |
//! | [`spmm::Spmm`], [`spmm::SpmmChannels`] | blocks of B rows by one column | `4 (1 − s)(1 + 1/B)` |
//! | [`Quantised`] | any, as codes of `b` bits in groups of G | `b/8 + (2 + b/8)/G` |
//! | [`SparseGroups`] | whole groups of G zeros, codes of `b` bits | `(1 − s)(b/8 + (2 + b/8)/G) + 1/(8 G)` |
//!
//! With many pixels or rows of activations multiply-adds are the bound ([`peak`]), and a sparse kernel gains by doing fewer at nearly
//! the same rate: [`mod@spmm`] for 1×1 convolutions in channel-major layout, [`chw`] for the layers around them, [`cnn`] to run
//! whole networks of these. Convolutions along long rows go through transforms ([`fft_conv`]).
//!
//! # Same bits
//! (Of the kernels over f32 and bf16; the quantised ones promise the same for tokens, threads and AVX paths, see their pages.)
//! Every output is one chain of multiply-adds over ascending columns, starting at zero, whatever the kernel, the number of tokens
//! in the call and the number of threads. So a token's result does not depend on its batch, one and two
//! threads agree bit for bit, and a sparse kernel agrees bit for bit with the dense kernel on the same weights (for
//! finite activations). AVX-512 and AVX2 agree bit for bit as well; the portable code rounds the product too, and differs
//! in the last bits.
//!
//! # NaN and infinity
//! Bitmask kernels rebuild the zeros in registers and multiply them, so an infinite or NaN activation spreads
//! exactly as in the dense kernel (`0 · ∞ = NaN`). The 2:4 kernel and [`Gather`] never touch pruned positions: there an infinite
//! activation at a pruned position has no effect, while an explicit zero that fills up a group behaves as in the dense kernel.
//!
//! # Threads
//! Panels of 32 rows are split once, by bytes, over the threads of the current rayon pool; a product too small to
//! repay waking a thread stays on the calling one.

#![allow(unsafe_code)] // The one crate that may: each block carries its safety argument.

pub mod attention;
pub mod bandwidth;
pub mod bench;
mod buffer;
pub mod calibrate;
pub mod chw;
mod clamp;
pub mod cnn;
mod dense;
mod drive;
mod error;
pub mod fft_conv;
mod gather;
mod group_sparse;
mod isa;
mod kernel;
mod lanes;
pub mod masked_attention;
pub mod methods;
mod micro;
mod nm;
pub mod oracle;
mod panel;
pub mod peak;
pub mod plan;
mod quantised;
#[cfg(target_arch = "x86_64")]
mod registers;
pub mod row_skip;
mod rows;
mod rowwise;
pub mod select;
pub mod spmm;
mod tiled;

pub use buffer::AlignedBuf;
pub use clamp::Clamp;
pub use dense::{Dense, DenseBf16, DenseF32};
pub use error::KernelError;
pub use gather::Gather;
pub use group_sparse::{Balance, SparseGroups};
pub use isa::{CpuFeatures, Isa, cpu_features};
pub use kernel::LinearKernel;
pub use lanes::RowValue;
pub use micro::Value;
pub use nm::{Nm, NmBf16, NmF32};
pub use panel::{Panel, PanelBf16, PanelF32};
pub use quantised::{Activations, PanelInt8, Quantised};
pub use tiled::Tiled;
