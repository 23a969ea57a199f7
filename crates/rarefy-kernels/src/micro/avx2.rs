//! The inner loops with AVX2 and FMA: 8 rows per register, expansion by a permutation table.
//!
//! Sums are formed in the same order as with AVX-512, so the results are the same bits.

use std::arch::x86_64::*;

use half::bf16;

use super::{GROUPS_PER_WORD, Tile};
use crate::buffer::Padded;
use crate::drive::PANEL;

/// Calls `$f::<N>` with `N` equal to `$n` of 1..=3.
macro_rules! for_tokens {
    ($n:expr, $f:ident($($arg:expr),*)) => {
        match $n {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            3 => $f::<3>($($arg),*),
            n => unreachable!("an AVX2 pass has 1 to 3 tokens, got {n}"),
        }
    };
}

type Sums<const N: usize> = [[__m256; 4]; N];

/// For each mask of 8 rows: which packed value each row takes, with the top bit set where the row is absent.
static EXPAND: [[u32; 8]; 256] = {
    let mut table = [[0x8000_0000; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut row, mut next) = (0, 0);
        while row < 8 {
            if mask >> row & 1 == 1 {
                table[mask][row] = next;
                next += 1;
            }
            row += 1;
        }
        mask += 1;
    }
    table
};

/// Spreads 8 packed values over the rows of `mask`; absent rows become zero.
#[inline]
#[target_feature(enable = "avx2")]
fn expand(mask: u8, packed: __m256) -> __m256 {
    // SAFETY: a table row has 8 words.
    let from = unsafe { _mm256_loadu_si256(EXPAND[mask as usize].as_ptr().cast()) };
    let spread = _mm256_castps_si256(_mm256_permutevar8x32_ps(packed, from));
    _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_srai_epi32::<31>(from), spread))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step<const N: usize>(acc: &mut Sums<N>, w: [__m256; 4], x: *const f32) {
    for (t, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller gives `N` readable activations.
        let xt = unsafe { _mm256_set1_ps(*x.add(t)) };
        for (acc, w) in acc.iter_mut().zip(w) {
            *acc = _mm256_fmadd_ps(w, xt, *acc);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<const N: usize>(acc: &Sums<N>, tile: &mut Tile) {
    for (acc, out) in acc.iter().flatten().zip(tile.chunks_exact_mut(8)) {
        // SAFETY: `out` has 8 elements.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), *acc) };
    }
}

/// 32 stored bf16 (rows `i` and `16 + i` in one lane) as rows 0–7, 8–15, 16–23, 24–31.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_bf16(p: *const bf16) -> [__m256; 4] {
    // SAFETY: the caller gives 32 readable values.
    let (a, b) = unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast())) };
    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    [
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
        _mm256_castsi256_ps(_mm256_and_si256(a, high)),
        _mm256_castsi256_ps(_mm256_and_si256(b, high)),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_f32(p: *const f32) -> [__m256; 4] {
    // SAFETY: the caller gives 32 readable values.
    unsafe {
        [
            _mm256_loadu_ps(p),
            _mm256_loadu_ps(p.add(8)),
            _mm256_loadu_ps(p.add(16)),
            _mm256_loadu_ps(p.add(24)),
        ]
    }
}

/// Dense f32. Per column: 128 bytes of weights, `32 N` products.
///
/// # Safety
/// AVX2 and FMA; `w` is `[cols][32]`, `x` is `[cols][n]`, `n <= 3`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dense_f32(w: &[f32], x: &[f32], n: usize, tile: &mut Tile) {
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run<const N: usize>(w: &[f32], x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm256_setzero_ps(); 4]; N];
        for c in 0..w.len() / PANEL {
            // SAFETY: `c < cols`, so 32 weights and `N` activations of this column are in the slices.
            unsafe { step(&mut acc, load_f32(w.as_ptr().add(c * PANEL)), x.as_ptr().add(c * N)) };
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(w, x, tile)) }
}

/// Dense bf16. Per column: 64 bytes of weights, four operations to widen, `32 N` products.
///
/// # Safety
/// AVX2 and FMA; `w` is `[cols][32]`, `x` is `[cols][n]`, `n <= 3`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dense_bf16(w: &[bf16], x: &[f32], n: usize, tile: &mut Tile) {
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run<const N: usize>(w: &[bf16], x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm256_setzero_ps(); 4]; N];
        for c in 0..w.len() / PANEL {
            // SAFETY: `c < cols`, so 32 weights and `N` activations of this column are in the slices.
            unsafe { step(&mut acc, load_bf16(w.as_ptr().add(c * PANEL)), x.as_ptr().add(c * N)) };
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(w, x, tile)) }
}

/// Bitmask f32. Per column at density `d`: `4 + 128 d` bytes, four expansions of 8 rows (load, permute, shift, and-not), `32 N` products.
///
/// # Safety
/// AVX2, FMA and POPCNT; `x` is `[masks.len()][n]`, `n <= 3`; the bits of `masks` count `values`.
#[target_feature(enable = "avx2,fma,popcnt")]
pub(super) unsafe fn bitmask_f32(
    masks: &[u32],
    values: Padded<'_, f32>,
    x: &[f32],
    n: usize,
    tile: &mut Tile,
) {
    #[target_feature(enable = "avx2,fma,popcnt")]
    unsafe fn run<const N: usize>(masks: &[u32], values: Padded<'_, f32>, x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm256_setzero_ps(); 4]; N];
        let mut v = values.ptr();
        for (c, mask) in masks.iter().enumerate() {
            let mut column = [_mm256_setzero_ps(); 4];
            for (w, mask) in column.iter_mut().zip(mask.to_le_bytes()) {
                // SAFETY: `v` has moved by the bits of the earlier masks, so it points into `values` or to its end,
                // and the 32 bytes read from there are at most padding.
                unsafe {
                    *w = expand(mask, _mm256_loadu_ps(v));
                    v = v.add(mask.count_ones() as usize);
                }
            }
            // SAFETY: `x` has `N` activations for column `c`.
            unsafe { step(&mut acc, column, x.as_ptr().add(c * N)) };
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(masks, values, x, tile)) }
}

/// Bitmask bf16. Per column at density `d`: `4 + 64 d` bytes, four expansions of 8 widened rows, `32 N` products.
///
/// # Safety
/// AVX2, FMA and POPCNT; `x` is `[masks.len()][n]`, `n <= 3`; the bits of `masks` count `values`.
#[target_feature(enable = "avx2,fma,popcnt")]
pub(super) unsafe fn bitmask_bf16(
    masks: &[u32],
    values: Padded<'_, bf16>,
    x: &[f32],
    n: usize,
    tile: &mut Tile,
) {
    #[target_feature(enable = "avx2,fma,popcnt")]
    unsafe fn run<const N: usize>(masks: &[u32], values: Padded<'_, bf16>, x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm256_setzero_ps(); 4]; N];
        let mut v = values.ptr();
        for (c, mask) in masks.iter().enumerate() {
            let mut column = [_mm256_setzero_ps(); 4];
            for (w, mask) in column.iter_mut().zip(mask.to_le_bytes()) {
                // SAFETY: as in `bitmask_f32`, with 16 bytes read.
                unsafe {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(v.cast()));
                    *w = expand(mask, _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)));
                    v = v.add(mask.count_ones() as usize);
                }
            }
            // SAFETY: `x` has `N` activations for column `c`.
            unsafe { step(&mut acc, column, x.as_ptr().add(c * N)) };
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(masks, values, x, tile)) }
}

/// One slot of a group of four inputs: selects each row's activation and adds the products.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn select_step<const N: usize>(
    acc: &mut Sums<N>,
    w: [__m256; 4],
    selectors: [__m256i; 4],
    x: *const f32,
) {
    for (t, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller gives `4 N` readable activations.
        let four = unsafe { _mm_loadu_ps(x.add(4 * t)) };
        let four = _mm256_set_m128(four, four);
        for k in 0..4 {
            acc[k] = _mm256_fmadd_ps(w[k], _mm256_permutevar_ps(four, selectors[k]), acc[k]);
        }
    }
}

/// The groups of a panel, with their selectors shifted into place: `slot(group, slot, selectors)`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn for_slots(selectors: &[u32], groups: usize, mut slot: impl FnMut(usize, usize, [__m256i; 4])) {
    for (word, lanes) in selectors.chunks_exact(PANEL).enumerate() {
        let begin = word * GROUPS_PER_WORD;
        let mut s = [_mm256_setzero_si256(); 4];
        for (s, lanes) in s.iter_mut().zip(lanes.chunks_exact(8)) {
            // SAFETY: `lanes` has 8 words.
            *s = unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) };
        }
        for g in begin..groups.min(begin + GROUPS_PER_WORD) {
            for i in 0..2 {
                slot(g, i, s);
                for s in &mut s {
                    *s = _mm256_srli_epi32::<2>(*s);
                }
            }
        }
    }
}

/// 2:4 f32. Per group of four inputs: 256 bytes of values, 16 of selectors, `64 N` products for 128 weights.
///
/// # Safety
/// AVX2 and FMA; `selectors[ceil(groups / 8)][32]`, `values[groups][2][32]`, `x[groups][n][4]`, `n <= 3`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn two_four_f32(selectors: &[u32], values: &[f32], x: &[f32], n: usize, tile: &mut Tile) {
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run<const N: usize>(selectors: &[u32], values: &[f32], x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm256_setzero_ps(); 4]; N];
        let groups = values.len() / (2 * PANEL);
        // SAFETY: `g < groups`, so the values and activations of the slot are in the slices.
        unsafe {
            for_slots(selectors, groups, |g, i, s| {
                let w = load_f32(values.as_ptr().add((2 * g + i) * PANEL));
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
/// AVX2 and FMA; `selectors[ceil(groups / 8)][32]`, `values[groups][2][32]`, `x[groups][n][4]`, `n <= 3`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn two_four_bf16(selectors: &[u32], values: &[bf16], x: &[f32], n: usize, tile: &mut Tile) {
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run<const N: usize>(selectors: &[u32], values: &[bf16], x: &[f32], tile: &mut Tile) {
        let mut acc: Sums<N> = [[_mm256_setzero_ps(); 4]; N];
        let groups = values.len() / (2 * PANEL);
        // SAFETY: `g < groups`, so the values and activations of the slot are in the slices.
        unsafe {
            for_slots(selectors, groups, |g, i, s| {
                let w = load_bf16(values.as_ptr().add((2 * g + i) * PANEL));
                select_step(&mut acc, w, s, x.as_ptr().add(4 * N * g));
            });
        }
        store(&acc, tile);
    }
    // SAFETY: the caller's promise, with `N = n`.
    unsafe { for_tokens!(n, run(selectors, values, x, tile)) }
}
