//! The compressed-tensors formats: configuration, bit layouts, and how the parts of one weight fit together.
//!
//! Source: the formats as written by the Python package `compressed-tensors`; the sparse ones by releases up to 0.14,
//! `pack-quantized` in the padded layout (up to 0.17.1) and the dense one (0.18).

pub mod bitmask;
pub(crate) mod config;
pub(crate) mod dequant;
pub mod pack;
pub(crate) mod plan;
pub(crate) mod scales;
