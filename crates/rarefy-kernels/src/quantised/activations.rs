//! Activations prepared for a quantised weight: per group either eight-bit codes with a scale, or the numbers themselves, and their sum.
//!
//! # Quantiser of activations
//! Per token and group of weights: `s = max |x| / 127`, `q = round(x · (127 / max |x|))`, halves to even, so `|q| ≤ 127` and
//! `|x − q s| ≤ s/2 · (1 + 2^-15) ≤ max |x| / 253.9`. A group below 2^-100 counts as zero. A group with a NaN or an infinity gets a NaN scale: it
//! makes every output of its token NaN.
//!
//! # Layout
//! Words of 32 bits, for a pass of `n` tokens and each group: codes `[group / 4][n]` (four per word) and then scales `[n]` and `−Σ q` `[n]`; or
//! numbers `[group][n]` and `−Σ x` `[n]`. With a fixed zero point the negated sum is already multiplied by it.

use super::Shape;

/// Nothing below this is worth a code: its reciprocal would overflow.
const TINY: f32 = 7.888_609e-31; // 2^-100
/// Adding it rounds a number below 2^22 to an integer in the low bits, halves to even.
const ROUND: f32 = 12_582_912.0;
const INFINITE: u32 = 0x7f80_0000;

/// Words of one group of one token.
pub(super) fn words_per_group(shape: &Shape) -> usize {
    if shape.exact { shape.group + 1 } else { shape.group / 4 + 2 }
}

/// Packs `x[n, cols]` to `out`, `n * groups * words_per_group` words.
pub(super) fn pack(shape: &Shape, x: &[f32], n: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn fast(shape: &Shape, x: &[f32], n: usize, out: &mut [f32]) {
            pack_any(shape, x, n, out);
        }
        if crate::Isa::Avx2.is_available() {
            // SAFETY: AVX2 is available. No product here is fused with a sum, so the bits are those of the plain build.
            return unsafe { fast(shape, x, n, out) };
        }
    }
    pack_any(shape, x, n, out);
}

#[inline(always)]
fn pack_any(shape: &Shape, x: &[f32], n: usize, out: &mut [f32]) {
    let (size, words) = (shape.group, words_per_group(shape));
    let mut run = [0.0f32; 256];
    let mut codes = [0i8; 256];
    for t in 0..n {
        let line = &x[t * shape.cols..(t + 1) * shape.cols];
        for (g, part) in line.chunks(size).enumerate() {
            run[..size].fill(0.0);
            run[..part.len()].copy_from_slice(part);
            let out = &mut out[g * words * n..(g + 1) * words * n];
            if shape.exact {
                numbers(shape, &run[..size], t, n, out);
            } else {
                bytes(shape, &run[..size], &mut codes[..size], t, n, out);
            }
        }
    }
}

#[inline(always)]
fn numbers(shape: &Shape, run: &[f32], t: usize, n: usize, out: &mut [f32]) {
    // Eight partial sums: an order of its own, the same on every path.
    let mut part = [0.0f32; 8];
    for eight in run.chunks_exact(8) {
        part.iter_mut().zip(eight).for_each(|(p, v)| *p += v);
    }
    let sum: f32 = part.iter().sum();
    for (i, v) in run.iter().enumerate() {
        out[shape.place(i) * n + t] = *v;
    }
    out[run.len() * n + t] = -sum * shape.fixed_zero.map_or(1.0, f32::from);
}

#[inline(always)]
fn bytes(shape: &Shape, run: &[f32], codes: &mut [i8], t: usize, n: usize, out: &mut [f32]) {
    // As integers, absolute values order like numbers, with infinity and NaN on top.
    let top = run.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let most = f32::from_bits(top);
    let (scale, inverse) = match most {
        _ if top >= INFINITE => (f32::NAN, 0.0),
        m if m < TINY => (0.0, 0.0),
        m => (m / 127.0, 127.0 / m),
    };
    let mut sum = 0i32;
    for (c, v) in codes.iter_mut().zip(run) {
        let q = ((v * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        *c = q as i8;
        sum += i32::from(q as i8);
    }
    for (w, four) in codes.chunks_exact(4).enumerate() {
        let word = u32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8]);
        out[w * n + t] = f32::from_bits(word);
    }
    let at = run.len() / 4;
    out[at * n + t] = scale;
    let sum = -sum * shape.fixed_zero.map_or(1, i32::from);
    out[(at + 1) * n + t] = f32::from_bits(sum as u32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(exact: bool) -> Shape {
        Shape { rows: 1, cols: 8, bits: 4, group: 8, fixed_zero: None, wide_scales: false, exact }
    }

    #[test]
    fn codes_by_hand() {
        // max 2: x · 63.5 = 127, -31.75 → -32, 0.5 → 0 (even) …, sum 127 - 32 + 0 + 2 = 97.
        let x = [2.0, -0.5, 0.5 / 63.5, 1.5 / 63.5, 0.0, 0.0, 0.0, 0.0];
        let mut out = [0.0; 4];
        pack(&shape(false), &x, 1, &mut out);
        assert_eq!(out[0].to_bits().to_le_bytes().map(|b| b as i8), [127, -32, 0, 2]);
        assert_eq!((out[2], out[3].to_bits() as i32), (2.0 / 127.0, -97));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            pack(&shape(false), &[1.0, bad, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1, &mut out);
            assert!(out[2].is_nan());
        }
        pack(&shape(false), &[1e-39; 8], 1, &mut out);
        assert_eq!(out[2], 0.0);
    }

    #[test]
    fn numbers_stand_where_the_nibbles_do() {
        // Byte b of a word holds column b in its low and column 4 + b in its high nibble.
        let x: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let mut out = [0.0; 9];
        pack(&shape(true), &x, 1, &mut out);
        assert_eq!(out, [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0, -28.0]);
    }

    #[test]
    fn the_error_is_half_a_step() {
        let x: Vec<f32> = (0..8).map(|i| (i as f32 * 1.7).sin() * 3.0).collect();
        let mut out = [0.0; 4];
        pack(&shape(false), &x, 1, &mut out);
        let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (i, v) in x.iter().enumerate() {
            let q = out[i / 4].to_bits().to_le_bytes()[i % 4] as i8;
            assert!((v - f32::from(q) * out[2]).abs() <= most / 253.9, "{v}");
        }
    }
}
