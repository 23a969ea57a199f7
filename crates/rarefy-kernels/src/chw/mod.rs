//! The layers around the sparse 1×1 convolutions of a mobile network, all in channel-major (CHW) layout, so that no transpose happens
//! inside the network: [`Conv`] (K×K through patches; also the first layer, which reads an HWC image), [`Depthwise`],
//! [`global_average`], [`residual_add`].
//!
//! Bias and clamp are fused; NaN passes the clamp ([`crate::Clamp`]). Padding is zeros: a tap on the padding contributes `w · 0`, so an
//! infinite weight shows there as NaN. Results do not depend on the number of threads, and AVX2 equals AVX-512 bit for bit.

mod conv;
mod depthwise;
mod geometry;
mod simple;

pub use conv::{Conv, Layout, PatchProduct, patch_order};
pub use depthwise::Depthwise;
pub use geometry::Geometry;
pub use simple::{global_average, residual_add};
