//! The lanes in plain safe Rust.

use half::bf16;

use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Portable;

type V = [f32; LANES];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Portable {
    type V = V;
    #[inline(always)]
    fn splat(self, v: f32) -> V {
        [v; LANES]
    }
    #[inline(always)]
    fn load(self, s: &[f32; LANES]) -> V {
        *s
    }
    #[inline(always)]
    fn store(self, v: V, s: &mut [f32; LANES]) {
        *s = v;
    }
    #[inline(always)]
    fn load_bf16(self, s: &[bf16; LANES]) -> V {
        std::array::from_fn(|i| f32::from_bits(u32::from(s[i].to_bits()) << 16))
    }
    #[inline(always)]
    fn load_u8(self, s: &[u8; LANES]) -> V {
        s.map(f32::from)
    }
    #[inline(always)]
    fn load_u4(self, s: &[u8; LANES / 2]) -> V {
        std::array::from_fn(|i| f32::from(if i < 8 { s[i] & 15 } else { s[i - 8] >> 4 }))
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn exp(self, v: V) -> V {
        v.map(exp)
    }
    #[inline(always)]
    fn sum4(self, v: [V; 4]) -> [f32; 4] {
        v.map(|v| {
            let a: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
            let b: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
            (b[0] + b[2]) + (b[1] + b[3])
        })
    }
    #[inline(always)]
    fn above(self, keys: &[u32; LANES], cut: u32) -> u16 {
        keys.iter().enumerate().fold(0, |m, (i, k)| m | u16::from(*k > cut) << i)
    }
}

/// The constants of `e^x = 2^n · p(r)`, `r = x - n ln 2` in two parts; the polynomial is the one of the Cephes library (public domain).
pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;
pub(super) const LN2_HIGH: f32 = 0.693_359_4;
pub(super) const LN2_LOW: f32 = -2.121_944_4e-4;
pub(super) const POLY: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// Below, the result is zero; above, infinite.
pub(super) const LOWEST: f32 = -104.0;
pub(super) const HIGHEST: f32 = 100.0;

#[inline(always)]
fn exp(x: f32) -> f32 {
    // Comparisons that are false for NaN keep it.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    let n = (x * LOG2_E + MAGIC) - MAGIC;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = POLY.iter().skip(1).fold(POLY[0], |p, c| p * r + c);
    let p = p * (r * r) + r + 1.0;
    // Two steps, as 2^n alone may be too small for a normal number.
    let half = n as i32 >> 1;
    p * pow2(half) * pow2(n as i32 - half)
}

#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}
