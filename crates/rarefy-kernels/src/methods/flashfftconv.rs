//! FlashFFTConv — convolves long rows with kernels as long, through transforms that stay on the chip.
//!
//! Paper:    Fu, Kumbong, Nguyen, Ré, FlashFFTConv: Efficient Convolutions for Long Sequences with Tensor Cores, ICLR 2024,
//!           arXiv 2311.05908. Reference code: HazyResearch/flash-fft-conv.
//! Problem:  y[b, h, n] = g₂[b, h, n] · Σ_j k[h, j] (g₁ u)[b, h, n − j]; u, y, gates [B, H, L], k [H, Lk], all f32; and the gradients of u, k and
//!           both gates.
//! Method:   1. the transform of N points as codelets across N₁ rows, a twiddle, and N₁ transforms of N / N₁ points, again and again; the
//!           result stays in that order, as does the kernel's, computed once. 2. Gate, transform, product, inverse and
//!           gate of one row at a time: u read once, y written once. 3. A real row is folded to half as many complex
//!           points (modulo xⁿ − i), so padding is neither stored nor transformed. 4. Gradients by two transforms forth and
//!           one or two back per row; the transform of u is computed again, not kept.
//! Cost:     O(B H L log L) operations, 8 n bytes per thread and 8 n per head for spectra, n ≥ (L + Lk − 1) / 2 a power of two. Rows
//!           in parallel.
//! Variants: whole row (`LongConv`); partial: Lk < L in overlapping windows, memory O(Lk) (`ChunkedConv`, paper §3.3); frequency-sparse:
//!           spectrum masked by residues or low-pass (`FrequencySparseConv`, paper §3.3); no transform below 48 taps (`DirectConv`);
//!           dense matrices of any order, f64, as a reference (`monarch`).
//! Differs:  from the paper: codelets of 16 points are butterflies on vectors, as a plain CPU has no matrix unit that makes
//!           8 N Σ Nᵢ operations cheaper than 5 N log₂ N; f32 throughout; any length. From the reference code: masks are by digits of the
//!           frequency and always symmetric; its patterns for tensor cores have no counterpart.
//! Choose:   for kernels of more than 48 taps. Masks of residues skip whole sub-transforms and pay (1.3 to 2.8 times for 72 to
//!           88 % zeros); a low-pass skips only the innermost codelet and costs as much as the dense convolution or more: choose
//!           it for quality or fewer parameters, not for speed.
//! Fails on: lengths that do not fit → `KernelError::Length`; masks that are not symmetric → `KernelError::Setting`. NaN or infinity
//!           spreads over its row. Evidence: tests/fft_conv.rs, examples/fft_conv.rs, `rarefy repro flashfftconv`.

use rarefy_sparsity::{Maturity, MethodInfo};

/// The row of the table of methods.
pub static INFO: MethodInfo = MethodInfo {
    slug: "flashfftconv",
    name: "FlashFFTConv",
    family: "sparse inference",
    paper: "Fu et al., ICLR 2024, arXiv 2311.05908",
    command: "repro flashfftconv",
    maturity: Maturity::Preview,
    summary: "convolves long sequences by fused transforms, with short or frequency-sparse kernels",
};
