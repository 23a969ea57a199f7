//! Fast Sparse ConvNets — runs the 1×1 convolutions of mobile networks as products of a sparse matrix and the pixels.
//!
//! Paper:    Elsen, Dukhan, Gale, Simonyan, Fast Sparse ConvNets, CVPR 2020, arXiv 1911.09723. Reference code: google/XNNPACK.
//! Problem:  Y[Cout, HW] = clamp(W[Cout, Cin] · X[Cin, HW] + b), W with 70 – 95 % zeros, all f32, activations channel by channel.
//! Method:   1. prune each 1×1 layer to one sparsity by magnitude, single weights or blocks of 4 consecutive output
//!           channels of one input channel by their L1 norm; entry, depthwise layers and logits stay dense. 2. Per layer the
//!           tallest block of which 90 % of the stored weights are not zero (`formats::delta_block::choose_block`). 3. Each
//!           non-zero is a number times a strip of pixels, accumulated in registers over the input channels (`spmm`). 4. All other
//!           layers in the same layout (`chw`), so that nothing is transposed inside the network (`cnn`).
//! Cost:     2 nnz HW operations; per non-zero and register of pixels one load, one broadcast (of B) and B multiply-adds. No allocation in a pass.
//! Variants: blocks of 1, 2, 4, 8 and 16 rows (paper: 1, 2, 4); pixels in the registers, or channels where the image has few pixels.
//! Differs:  from the paper: pruning is one-shot, gradual pruning while training is not part of it yet. From the reference code: strips are packed when
//!           the image is large; 512-bit and 256-bit registers; a layer is sparse where it pays by itself (60 % zeros for single weights, 25 % for
//!           blocks of four), not by the sparsity of the whole network.
//! Choose:   for networks whose work is in 1×1 convolutions, on a processor. Below 60 % zeros take blocks. One-shot pruning beyond 50 % costs
//!           accuracy that only training brings back.
//! Fails on: graphs with layers that have no kernel → `KernelError::Setting`; lengths that do not fit → `KernelError::Length`.
//!           Evidence: `rarefy repro fast-sparse-convnets`, examples/spmm.rs, bench/.

use rarefy_sparsity::{Maturity, MethodInfo};

/// The row of the table of methods.
pub static INFO: MethodInfo = MethodInfo {
    slug: "fast-sparse-convnets",
    name: "Fast Sparse ConvNets",
    family: "sparse inference",
    paper: "Elsen et al., CVPR 2020, arXiv 1911.09723",
    command: "prune --method magnitude --pattern block:4x1",
    maturity: Maturity::Preview,
    summary: "runs the 1x1 convolutions of image classifiers sparse",
};
