//! SparseByteNN — prunes groups of 16 output channels after putting channels with like inputs next to each other.
//!
//! Paper:    Xu et al. (ByteDance), SparseByteNN, 2023, arXiv 2310.19509. Reference code: none (lswzjuer/SparseByteNN holds a README only).
//! Problem:  maximise Σ |w| over the kept groups of G outputs × 1 input of every 1×1 convolution W: [Cout, Cin] f32, over masks of
//!           one sparsity per layer and over orders of the channels of the whole network.
//! Method:   1. channels that an addition ties together form one class; image and logits keep their order. 2. Per class: balanced
//!           clusters, greedily from the heaviest row the rows with most magnitude in the columns the cluster keeps. 3. Passes over
//!           all rows: change places with the row of another group that gains most, until a pass gains less than 0.01 %; from the clusters and from
//!           the order that was there. 4. Move rows, biases, depthwise filters and the columns of all readers: the network
//!           computes the same. 5. Keep the best groups of each layer by L1. 6. Run with the kernels of blocks (`spmm`, `SpmmChannels`).
//! Cost:     rows² · cols operations per pass and class, seconds for a MobileNet; nothing when it runs.
//! Variants: `--pattern block:16x1` (default), any block of one column.
//! Differs:  from the paper: no details of it are public; groups, score and search are reconstructed. Gains of a swap are counted
//!           against a threshold that is renewed each pass, the result by exact selection. No fine-tuning yet; K×K and depthwise layers stay dense.
//! Choose:   from 30 % zeros on, when single weights do not pay yet. In layers with fewer than some 32 channels a group is a large part of
//!           the layer: take block:4x1 there.
//! Fails on: a pattern that is no block of several rows and one column → `SettingError`. Evidence: `rarefy repro sparsebytenn`.

use rarefy_sparsity::{Maturity, MethodInfo};

/// The row of the table of methods.
pub static INFO: MethodInfo = MethodInfo {
    slug: "sparsebytenn",
    name: "SparseByteNN",
    family: "sparse inference",
    paper: "Xu et al., 2023, arXiv 2310.19509",
    command: "prune --method sparsebytenn",
    maturity: Maturity::Preview,
    summary: "prunes groups of 16 outputs of image classifiers in the best order of channels",
};
