//! Causal convolution of long rows: `y[b, h, n] = Σ_j kernel[h, j] · u[b, h, n - j]`, by fused transforms of one row at a time.
//!
//! | what | kernel | memory beyond `u`, `y` and spectra |
//! |---|---|---|
//! | [`LongConv`] | as long as the row | `8 n` bytes per thread, `n ≥ (len + kernel_len - 1) / 2` |
//! | [`ChunkedConv`] | shorter than the row | 8 to 24 bytes per tap and thread, whatever the row |
//! | [`DirectConv`] | up to about 48 taps | a tile |
//! | [`FrequencySparseConv`] | as long as the row, spectrum masked in blocks | `8 N` bytes per thread, `N ≥ 2 len` |
//!
//! # How
//! A real row `a` of `2 n` elements (zero padding included) is folded to the complex row `a[i] + i · a[i + n]`: that is reduction modulo
//! `x^n - i`, which keeps products, and real polynomials modulo `x^{2n} + 1` correspond to it one to one. So a product without
//! wrapping takes transforms of `n` points, half of what padding asks for, for a single row, with no unpacking and no partner: for a
//! causal row of `n` elements the padding is the imaginary part, never stored and never read. The transform modulo `x^n - i` is the usual one at
//! frequencies `k + 3/4`: other numbers in the first table, nothing else.
//!
//! Stages are codelets of 2 to 32 points across rows of a matrix (`plan`), on vectors of real and of imaginary parts, so no shuffles are needed
//! until the last 16 columns, which are transposed in registers, 16 × 16. The spectrum stays in the order in which it falls
//! out, and the kernel's is kept in that order. Each sub-row of the first stage (at most 32 KiB up to 64 k points) goes through all later stages, the
//! product and back while in L1.
//!
//! # Roofline
//! Per output: 4 bytes of `u`, 4 of `y` (8 with the line fetched for writing) and `8 / batch` of the spectrum: 14 bytes at batch 4, 0.6 ns at
//! 25 GB/s. A stage of 16 points takes 10 vector instructions of arithmetic per complex vector and 4 for the twiddle, each way; the
//! transposes 16. Together 92 instructions per 16 outputs at `n = 1024`, 132 at 65536: with two per cycle at 2.6 GHz 1.1 and 1.6 ns per
//! output on one core, so computation is the bound at every length. Measured (AVX-512, batch 4, 64 heads): 1.9 ns at 1024, 2.5
//! at 16384, 3.3 at 65536, that is 60 to 45 % of the bound; the rest are registers spilled around codelets of 16 (32 of 32 registers hold
//! data) and, from 4096 on, tables and work that come from L2. Against `rustfft` with two rows per transform and its spectrum
//! cached: 1.6 to 3.0 times; `examples/fft_conv.rs` measures both in turn.
//!
//! # Same bits
//! A row's result does not depend on the batch, the number of threads or the alignment. AVX-512 and AVX2 agree bit for bit; the portable path
//! rounds products too. A row with NaN or infinity has NaN everywhere, other rows are untouched ([`DirectConv`] and [`ChunkedConv`]: only the
//! outputs or chunks that see it). [`FrequencySparseConv`] is the exception: it transforms the rows of a head two by two, so a row's last bits
//! depend on its partner, and a partner with NaN or infinity makes it NaN.

mod backward;
mod block;
mod chunked;
mod codelet;
mod direct;
mod lanes;
mod long;
pub mod monarch;
mod pass;
mod plan;
mod share;
mod sparse;

pub use backward::Gradients;
pub use chunked::ChunkedConv;
pub use direct::DirectConv;
pub use long::LongConv;
pub use share::Gates;
pub use sparse::{FrequencyMask, FrequencySparseConv};
