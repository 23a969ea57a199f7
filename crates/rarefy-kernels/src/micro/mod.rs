//! The inner loops, one panel of 32 rows at a time, in three instruction sets.
//!
//! All of them walk the columns (or slots) in ascending order and give each output one chain of multiply-adds; see
//! the crate documentation for what follows from it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use bytemuck::Pod;
use half::bf16;
use rarefy_sparsity::formats::Element;

use crate::Isa;
use crate::buffer::Padded;
use crate::drive::{MAX_TOKENS, PANEL};

/// Groups of four inputs whose selectors share one `u32`: 8 groups, 2 slots, 2 bits.
pub(crate) const GROUPS_PER_WORD: usize = 8;
/// 32 outputs of up to [`MAX_TOKENS`] tokens, `[token][32]`.
pub(crate) type Tile = [f32; PANEL * MAX_TOKENS];

/// A weight type with kernels: `f32` or [`bf16`]. Sealed.
pub trait Value: Element + Pod + sealed::Kernels {}
impl Value for f32 {}
impl Value for bf16 {}

pub(crate) mod sealed {
    #![allow(unreachable_pub, reason = "a sealed supertrait has to be public in its private module")]
    use super::*;

    pub trait Kernels: Sized {
        /// Names of the kernels of this type.
        const DENSE: &'static str;
        const PANEL: &'static str;
        const NM: &'static str;
        /// Where row `i` of 32 stands in a stored vector of 32 values.
        fn slot(i: usize) -> usize;
        /// `w[cols][32]`, `x[cols][n]`.
        fn dense_panel(isa: Isa, w: &[Self], x: &[f32], n: usize, tile: &mut Tile);
        /// `masks[cols]`, `x[cols][n]`.
        ///
        /// # Safety
        /// The bits set in `masks` must be as many as there are `values`.
        unsafe fn bitmask_panel(
            isa: Isa,
            masks: &[u32],
            values: Padded<'_, Self>,
            x: &[f32],
            n: usize,
            tile: &mut Tile,
        );
        /// `selectors[ceil(groups / 8)][32]`, `values[groups][2][32]`, `x[groups][n][4]`.
        fn two_four_panel(isa: Isa, selectors: &[u32], values: &[Self], x: &[f32], n: usize, tile: &mut Tile);
    }
}
pub(crate) use sealed::Kernels;
/// Checks what the unsafe loops rely on: `x` holds `n` activations for each of `cols` columns.
fn check_x(x: &[f32], cols: usize, n: usize) {
    assert!((1..=MAX_TOKENS).contains(&n), "a pass has 1 to {MAX_TOKENS} tokens");
    assert_eq!(x.len(), cols * n, "packed activations must be [cols][n]");
}

fn check_two_four<T>(selectors: &[u32], values: &[T], x: &[f32], n: usize) {
    let groups = values.len() / (2 * PANEL);
    assert_eq!(values.len(), groups * 2 * PANEL, "values must be [groups][2][32]");
    assert_eq!(selectors.len(), groups.div_ceil(GROUPS_PER_WORD) * PANEL, "selectors must be [words][32]");
    check_x(x, groups * 4, n);
}

impl Kernels for f32 {
    const DENSE: &'static str = "dense-f32";
    const PANEL: &'static str = "panel-f32";
    const NM: &'static str = "nm-f32";

    fn slot(i: usize) -> usize {
        i
    }

    fn dense_panel(isa: Isa, w: &[f32], x: &[f32], n: usize, tile: &mut Tile) {
        assert_eq!(w.len() % PANEL, 0);
        check_x(x, w.len() / PANEL, n);
        match isa {
            // SAFETY (all three): `isa` is available, as `drive::forward` checked; the sizes were checked above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::dense_f32(w, x, n, tile) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::dense_f32(w, x, n, tile) },
            _ => portable::dense(w, x, n, tile),
        }
    }

    unsafe fn bitmask_panel(
        isa: Isa,
        masks: &[u32],
        values: Padded<'_, f32>,
        x: &[f32],
        n: usize,
        tile: &mut Tile,
    ) {
        check_x(x, masks.len(), n);
        match isa {
            // SAFETY (both): `isa` is available; the sizes were checked above and the counts are the caller's promise.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::bitmask_f32(masks, values, x, n, tile) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::bitmask_f32(masks, values, x, n, tile) },
            _ => portable::bitmask(masks, values.slice(), x, n, tile),
        }
    }

    fn two_four_panel(isa: Isa, selectors: &[u32], values: &[f32], x: &[f32], n: usize, tile: &mut Tile) {
        check_two_four(selectors, values, x, n);
        match isa {
            // SAFETY (both): `isa` is available; the sizes were checked above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::two_four_f32(selectors, values, x, n, tile) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::two_four_f32(selectors, values, x, n, tile) },
            _ => portable::two_four(selectors, values, x, n, tile),
        }
    }
}

impl Kernels for bf16 {
    const DENSE: &'static str = "dense-bf16";
    const PANEL: &'static str = "panel-bf16";
    const NM: &'static str = "nm-bf16";

    /// Rows `i` and `16 + i` share a 32-bit lane, so that the low and the high halves are 16 consecutive rows each.
    fn slot(i: usize) -> usize {
        i % 16 * 2 + i / 16
    }

    fn dense_panel(isa: Isa, w: &[bf16], x: &[f32], n: usize, tile: &mut Tile) {
        assert_eq!(w.len() % PANEL, 0);
        check_x(x, w.len() / PANEL, n);
        match isa {
            // SAFETY (both): `isa` is available; the sizes were checked above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::dense_bf16(w, x, n, tile) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::dense_bf16(w, x, n, tile) },
            _ => portable::dense(w, x, n, tile),
        }
    }

    unsafe fn bitmask_panel(
        isa: Isa,
        masks: &[u32],
        values: Padded<'_, bf16>,
        x: &[f32],
        n: usize,
        tile: &mut Tile,
    ) {
        check_x(x, masks.len(), n);
        match isa {
            // SAFETY (both): `isa` is available; the sizes were checked above and the counts are the caller's promise.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::bitmask_bf16(masks, values, x, n, tile) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::bitmask_bf16(masks, values, x, n, tile) },
            _ => portable::bitmask(masks, values.slice(), x, n, tile),
        }
    }

    fn two_four_panel(isa: Isa, selectors: &[u32], values: &[bf16], x: &[f32], n: usize, tile: &mut Tile) {
        check_two_four(selectors, values, x, n);
        match isa {
            // SAFETY (both): `isa` is available; the sizes were checked above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::two_four_bf16(selectors, values, x, n, tile) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::two_four_bf16(selectors, values, x, n, tile) },
            _ => portable::two_four(selectors, values, x, n, tile),
        }
    }
}
