//! The inner loops in plain safe Rust: the fallback, and the safe twin of the vector code in tests.

use super::{GROUPS_PER_WORD, Kernels, Tile};
use crate::drive::PANEL;
use rarefy_sparsity::formats::Element;

/// Adds `w[i] * x[t]` to all outputs.
fn step(w: &[f32; PANEL], x: &[f32], tile: &mut Tile) {
    for (t, xt) in x.iter().enumerate() {
        for (out, wi) in tile[t * PANEL..(t + 1) * PANEL].iter_mut().zip(w) {
            *out += wi * xt;
        }
    }
}

/// `w[cols][32]`, `x[cols][n]`.
pub(super) fn dense<T: Element + Kernels>(w: &[T], x: &[f32], n: usize, tile: &mut Tile) {
    tile[..n * PANEL].fill(0.0);
    for (w, x) in w.chunks_exact(PANEL).zip(x.chunks_exact(n)) {
        step(&std::array::from_fn(|i| w[T::slot(i)].to_f32()), x, tile);
    }
}

/// `masks[cols]`, `x[cols][n]`; values in ascending rows.
pub(super) fn bitmask<T: Element>(masks: &[u32], mut values: &[T], x: &[f32], n: usize, tile: &mut Tile) {
    tile[..n * PANEL].fill(0.0);
    for (mask, x) in masks.iter().zip(x.chunks_exact(n)) {
        let mut w = [0.0; PANEL];
        let (now, later) = values.split_at(mask.count_ones() as usize);
        let mut rest = *mask;
        for v in now {
            w[rest.trailing_zeros() as usize] = v.to_f32();
            rest &= rest - 1;
        }
        values = later;
        step(&w, x, tile);
    }
}

/// `selectors[ceil(groups / 8)][32]`, `values[groups][2][32]`, `x[groups][n][4]`.
pub(super) fn two_four<T: Element + Kernels>(
    selectors: &[u32],
    values: &[T],
    x: &[f32],
    n: usize,
    tile: &mut Tile,
) {
    tile[..n * PANEL].fill(0.0);
    for (g, (pair, x)) in values.chunks_exact(2 * PANEL).zip(x.chunks_exact(4 * n)).enumerate() {
        let selectors = &selectors[g / GROUPS_PER_WORD * PANEL..][..PANEL];
        for (s, slot) in pair.chunks_exact(PANEL).enumerate() {
            let shift = g % GROUPS_PER_WORD * 4 + s * 2;
            for (t, x) in x.chunks_exact(4).enumerate() {
                for i in 0..PANEL {
                    tile[t * PANEL + i] +=
                        slot[T::slot(i)].to_f32() * x[(selectors[i] >> shift & 3) as usize];
                }
            }
        }
    }
}
