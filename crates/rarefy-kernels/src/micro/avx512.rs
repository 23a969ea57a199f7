//! The inner loops with AVX-512 F, BW, VL and VBMI2.
//!
//! A step handles one column (or slot) of 32 rows for `N` tokens with `2 N` accumulators of 16 rows. `N` is a constant
//! of the instance, so that the accumulators stay in registers; 12 of them use 24 of the 32.

use std::arch::x86_64::*;

use half::bf16;

use super::{GROUPS_PER_WORD, Tile};
use crate::buffer::Padded;
use crate::drive::PANEL;

/// Calls `$f::<N>` with `N` equal to `$n` of 1..=12.
macro_rules! for_tokens {
    ($n:expr, $f:ident($($arg:expr),*)) => {
        match $n {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            3 => $f::<3>($($arg),*),
            4 => $f::<4>($($arg),*),
            5 => $f::<5>($($arg),*),
            6 => $f::<6>($($arg),*),
            7 => $f::<7>($($arg),*),
            8 => $f::<8>($($arg),*),
            9 => $f::<9>($($arg),*),
            10 => $f::<10>($($arg),*),
            11 => $f::<11>($($arg),*),
            12 => $f::<12>($($arg),*),
            n => unreachable!("a pass has 1 to 12 tokens, got {n}"),
        }
    };
}

/// How far ahead of the weights the loops prefetch, in bytes. The hardware alone keeps a packed stream, which advances by a
/// fraction of a line per step, at 9 of 15 GB/s; with 1, 2, 4, 8 KiB it reaches 11.6, 13.0, 13.3, 13.3. The
/// dense bf16 kernel rises from 69 to 91 % of the read bandwidth, dense f32 with eight tokens from 56 to 82 %, 2:4 from
/// 86 to 99 %; dense f32 with one token was there already.
const AHEAD: usize = 4096;

/// Asks for the line [`AHEAD`] of `p`. Never faults, so the address may lie behind the buffer.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<T>(p: *const T) {
    _mm_prefetch::<_MM_HINT_T0>(p.cast::<i8>().wrapping_add(AHEAD));
}

type Sums<const N: usize> = [[__m512; 2]; N];

/// Adds `w * x[t]` to the sums of every token.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn step<const N: usize>(acc: &mut Sums<N>, w: [__m512; 2], x: *const f32) {
    for (t, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller gives `N` readable activations.
        let xt = unsafe { _mm512_set1_ps(*x.add(t)) };
        acc[0] = _mm512_fmadd_ps(w[0], xt, acc[0]);
        acc[1] = _mm512_fmadd_ps(w[1], xt, acc[1]);
    }
}

/// Writes the sums to the tile, rows in order.
#[inline]
#[target_feature(enable = "avx512f")]
fn store<const N: usize>(acc: &Sums<N>, tile: &mut Tile) {
    for (acc, out) in acc.iter().zip(tile.chunks_exact_mut(PANEL)) {
        // SAFETY: `out` has 32 elements.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), acc[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), acc[1]);
        }
    }
}

/// The low and the high halves of 16 pairs of bf16, widened exactly.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(pairs: __m512i) -> [__m512; 2] {
    let low = _mm512_slli_epi32::<16>(pairs);
    let high = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
    [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
}

/// Dense f32. Per column: 128 bytes of weights, `32 N` products.
///
/// # Safety
/// AVX-512; `w` is `[cols][32]`, `x` is `[cols][n]`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dense_f32(w: &[f32], x: &[f32], n: usize, tile: &mut Tile) {
    #[target_feature(enable = "avx512f")]
    unsafe fn run<const N: usize>(w: &[f32], x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm512_setzero_ps(); 2]; N];
        for c in 0..w.len() / PANEL {
            // SAFETY: `c < cols`, so 32 weights and `N` activations of this column are in the slices.
            unsafe {
                let p = w.as_ptr().add(c * PANEL);
                prefetch(p);
                prefetch(p.add(16));
                let column = [_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16))];
                step(&mut acc, column, x.as_ptr().add(c * N));
            }
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(w, x, tile)) }
}

/// Dense bf16. Per column: 64 bytes of weights, two operations to widen, `32 N` products.
///
/// # Safety
/// AVX-512; `w` is `[cols][32]`, `x` is `[cols][n]`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dense_bf16(w: &[bf16], x: &[f32], n: usize, tile: &mut Tile) {
    #[target_feature(enable = "avx512f")]
    unsafe fn run<const N: usize>(w: &[bf16], x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm512_setzero_ps(); 2]; N];
        for c in 0..w.len() / PANEL {
            // SAFETY: `c < cols`, so 32 weights and `N` activations of this column are in the slices.
            unsafe {
                let p = w.as_ptr().add(c * PANEL);
                prefetch(p);
                let pairs = _mm512_loadu_si512(p.cast());
                step(&mut acc, widen(pairs), x.as_ptr().add(c * N));
            }
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(w, x, tile)) }
}

/// Bitmask f32. Per column at density `d`: `4 + 128 d` bytes, two expansions of 16 rows, `32 N` products.
/// The value pointer moves by a count of bits that is ready early; its own chain is one addition per column.
///
/// # Safety
/// AVX-512; `x` is `[masks.len()][n]`; the bits of `masks` count `values`.
#[target_feature(enable = "avx512f,popcnt")]
pub(super) unsafe fn bitmask_f32(
    masks: &[u32],
    values: Padded<'_, f32>,
    x: &[f32],
    n: usize,
    tile: &mut Tile,
) {
    #[target_feature(enable = "avx512f,popcnt")]
    unsafe fn run<const N: usize>(masks: &[u32], values: Padded<'_, f32>, x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm512_setzero_ps(); 2]; N];
        let mut v = values.ptr();
        for (c, mask) in masks.iter().enumerate() {
            // SAFETY: `v` has moved by the bits of the earlier masks, so it points into `values` or to its end; a load
            // reads at most 128 bytes from there (16 values after at most 16), within the padding behind `values`.
            // `x` has `N` activations for column `c`.
            unsafe {
                prefetch(v);
                let low = _mm512_loadu_ps(v);
                let high = _mm512_loadu_ps(v.add((mask & 0xffff).count_ones() as usize));
                v = v.add(mask.count_ones() as usize);
                let column = [
                    _mm512_maskz_expand_ps(*mask as __mmask16, low),
                    _mm512_maskz_expand_ps((mask >> 16) as __mmask16, high),
                ];
                step(&mut acc, column, x.as_ptr().add(c * N));
            }
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(masks, values, x, tile)) }
}

/// Bitmask bf16. Per column at density `d`: `4 + 64 d` bytes, one expansion of 32 rows, two operations to widen, `32 N` products.
///
/// # Safety
/// AVX-512 with VBMI2; `x` is `[masks.len()][n]`; the bits of `masks` count `values`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
pub(super) unsafe fn bitmask_bf16(
    masks: &[u32],
    values: Padded<'_, bf16>,
    x: &[f32],
    n: usize,
    tile: &mut Tile,
) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
    unsafe fn run<const N: usize>(masks: &[u32], values: Padded<'_, bf16>, x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm512_setzero_ps(); 2]; N];
        let mut v = values.ptr();
        for (c, mask) in masks.iter().enumerate() {
            // SAFETY: as in `bitmask_f32`; a load reads 64 bytes.
            unsafe {
                prefetch(v);
                let packed = _mm512_loadu_si512(v.cast());
                v = v.add(mask.count_ones() as usize);
                let pairs = _mm512_maskz_expand_epi16(*mask, packed);
                step(&mut acc, widen(pairs), x.as_ptr().add(c * N));
            }
        }
        // The format keeps rows in order, so the sums are those of the even and of the odd rows.
        let even_low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        let even_high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
        for acc in &mut acc {
            *acc = [
                _mm512_permutex2var_ps(acc[0], even_low, acc[1]),
                _mm512_permutex2var_ps(acc[0], even_high, acc[1]),
            ];
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(masks, values, x, tile)) }
}

/// One slot of a group of four inputs: selects each row's activation and adds the products.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn select_step<const N: usize>(
    acc: &mut Sums<N>,
    w: [__m512; 2],
    selectors: [__m512i; 2],
    x: *const f32,
) {
    for (t, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller gives `4 N` readable activations.
        let four = _mm512_broadcast_f32x4(unsafe { _mm_loadu_ps(x.add(4 * t)) });
        acc[0] = _mm512_fmadd_ps(w[0], _mm512_permutevar_ps(four, selectors[0]), acc[0]);
        acc[1] = _mm512_fmadd_ps(w[1], _mm512_permutevar_ps(four, selectors[1]), acc[1]);
    }
}

/// The groups of a panel, with their selectors shifted into place: `slot(group, slot, selectors)`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn for_slots(selectors: &[u32], groups: usize, mut slot: impl FnMut(usize, usize, [__m512i; 2])) {
    for (word, lanes) in selectors.chunks_exact(PANEL).enumerate() {
        // SAFETY: `lanes` has 32 words.
        let mut s = unsafe {
            [_mm512_loadu_si512(lanes.as_ptr().cast()), _mm512_loadu_si512(lanes.as_ptr().add(16).cast())]
        };
        let begin = word * GROUPS_PER_WORD;
        for g in begin..groups.min(begin + GROUPS_PER_WORD) {
            for i in 0..2 {
                slot(g, i, s);
                s = [_mm512_srli_epi32::<2>(s[0]), _mm512_srli_epi32::<2>(s[1])];
            }
        }
    }
}

/// 2:4 f32. Per group of four inputs: 256 bytes of values, 16 of selectors, `64 N` products for 128 weights.
///
/// # Safety
/// AVX-512; `selectors[ceil(groups / 8)][32]`, `values[groups][2][32]`, `x[groups][n][4]`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn two_four_f32(selectors: &[u32], values: &[f32], x: &[f32], n: usize, tile: &mut Tile) {
    #[target_feature(enable = "avx512f")]
    unsafe fn run<const N: usize>(selectors: &[u32], values: &[f32], x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm512_setzero_ps(); 2]; N];
        let groups = values.len() / (2 * PANEL);
        // SAFETY: `g < groups`, so the values and activations of the slot are in the slices.
        unsafe {
            for_slots(selectors, groups, |g, i, s| {
                let p = values.as_ptr().add((2 * g + i) * PANEL);
                prefetch(p);
                prefetch(p.add(16));
                let w = [_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16))];
                select_step(&mut acc, w, s, x.as_ptr().add(4 * N * g));
            });
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(selectors, values, x, tile)) }
}

/// 2:4 bf16. Per group of four inputs: 128 bytes of values, 16 of selectors, `64 N` products for 128 weights.
///
/// # Safety
/// AVX-512; `selectors[ceil(groups / 8)][32]`, `values[groups][2][32]`, `x[groups][n][4]`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn two_four_bf16(selectors: &[u32], values: &[bf16], x: &[f32], n: usize, tile: &mut Tile) {
    #[target_feature(enable = "avx512f")]
    unsafe fn run<const N: usize>(selectors: &[u32], values: &[bf16], x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm512_setzero_ps(); 2]; N];
        let groups = values.len() / (2 * PANEL);
        // SAFETY: `g < groups`, so the values and activations of the slot are in the slices.
        unsafe {
            for_slots(selectors, groups, |g, i, s| {
                let p = values.as_ptr().add((2 * g + i) * PANEL);
                prefetch(p);
                let pairs = _mm512_loadu_si512(p.cast());
                select_step(&mut acc, widen(pairs), s, x.as_ptr().add(4 * N * g));
            });
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(selectors, values, x, tile)) }
}
