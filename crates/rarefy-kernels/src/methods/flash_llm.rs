//! Flash-LLM — decodes with weights that are stored sparse and multiplied as if they were dense.
//!
//! Paper:    Xia et al., Flash-LLM: Enabling Cost-Effective and Highly-Efficient Large Generative Model Inference with Unstructured Sparsity,
//!           VLDB 2024, arXiv 2309.10285. Reference code: AlibabaResearch/flash-llm.
//! Problem:  y[n, d_out] = x[n, d_in] · Wᵀ for n = 1 … 32 tokens and W with unstructured zeros (any pruner, 30 – 99 %), f32, bf16 or 8-bit codes.
//!           Reading W is the bound, so only its non-zeros should be read.
//! Method:   1. W in panels: a bit per weight and the packed non-zeros (`formats::bitmask_panel`, `formats::quantised::bitmask`). 2. Per column of 32 rows
//!           (four columns of 16 for bytes) one expansion rebuilds the registers; 3. each is multiplied for all tokens, zeros included, in the
//!           order of the dense kernel: the same bits. 4. Above some 85 % zeros computing is the bound: gather (`Gather`). 5. Which kernel for which
//!           tokens and sparsity: `plan::Calibration::choose`, `plan::crossover`.
//! Cost:     bytes per weight 4 (1 − s) + 1/8 in f32, 2 (1 − s) + 1/8 in bf16, (1 − s) + 1/8 in 8 bits, 6 (1 − s) gathered. No allocation in a call.
//! Variants: the published layout and loop, with split-K (`formats::tiled_csl`, `Tiled`): entries in plain or bank order.
//! Differs:  from the paper: the sparse form is expanded in registers, not scattered through a tile in fast memory, which costs a
//!           processor 3 ns per non-zero. From the reference code: any shape, any number of tokens, f32 sums; tiles denser than half are held, and refused
//!           only by `check_gpu_limits`. There is no GPU kernel here.
//! Choose:   for layers beyond the cache; in it a dense kernel wins below about 80 % zeros (`rarefy estimate` says where). Dense int4 reads as few bytes as
//!           8 bits at 60 % zeros. N:M is faster where the pattern is free to choose.
//! Fails on: wrong lengths → `KernelError::Length`; damaged files → `SparsityError::Malformed`. Evidence: tests/unstructured.rs, tests/against_oracle.rs,
//!           examples/unstructured.rs, examples/crossover.rs, `rarefy repro flash-llm`.

use rarefy_sparsity::{Maturity, MethodInfo};

/// The row of the table of methods.
pub static INFO: MethodInfo = MethodInfo {
    slug: "flash-llm",
    name: "Flash-LLM",
    family: "sparse inference",
    paper: "Xia et al., VLDB 2024, arXiv 2309.10285",
    command: "convert MODEL -o OUT --format packed",
    maturity: Maturity::Preview,
    summary: "decodes with unstructured zeros that are read sparse and multiplied dense",
};
