//! Discrete Fourier transforms of 2 to 32 points on registers, straight-line.
//!
//! Each element is a vector of real and one of imaginary parts, so the same instructions transform `W` columns at once and no
//! shuffle is needed. The inverse (without 1/R) is the same code with the parts exchanged. Sixteen points take 128 additions,
//! 16 multiplications and 16 multiply-adds or so, on vectors: 10 instructions per complex vector.

use super::lanes::Lanes;

/// Complex vectors.
#[derive(Clone, Copy)]
pub(super) struct C<V> {
    pub(super) re: V,
    pub(super) im: V,
}

impl<V> C<V> {
    /// `i` times the conjugate: the forward transform between two exchanges is the inverse one.
    #[inline(always)]
    pub(super) fn exchanged(self) -> Self {
        Self { re: self.im, im: self.re }
    }
}

#[inline(always)]
pub(super) fn add<const W: usize, L: Lanes<W>>(l: L, a: C<L::V>, b: C<L::V>) -> C<L::V> {
    C { re: l.add(a.re, b.re), im: l.add(a.im, b.im) }
}

#[inline(always)]
fn sub<const W: usize, L: Lanes<W>>(l: L, a: C<L::V>, b: C<L::V>) -> C<L::V> {
    C { re: l.sub(a.re, b.re), im: l.sub(a.im, b.im) }
}

/// `a * b`.
#[inline(always)]
pub(super) fn mul<const W: usize, L: Lanes<W>>(l: L, a: C<L::V>, b: C<L::V>) -> C<L::V> {
    C { re: l.fnma(a.im, b.im, l.mul(a.re, b.re)), im: l.fma(a.im, b.re, l.mul(a.re, b.im)) }
}

/// `a * conj(b)`.
#[inline(always)]
pub(super) fn mul_conj<const W: usize, L: Lanes<W>>(l: L, a: C<L::V>, b: C<L::V>) -> C<L::V> {
    C { re: l.fma(a.im, b.im, l.mul(a.re, b.re)), im: l.fnma(a.re, b.im, l.mul(a.im, b.re)) }
}

/// `a * (cos - i sin)`.
#[inline(always)]
fn turn<const W: usize, L: Lanes<W>>(l: L, a: C<L::V>, (cos, sin): (f32, f32)) -> C<L::V> {
    let (c, s) = (l.splat(cos), l.splat(sin));
    C { re: l.fma(a.im, s, l.mul(a.re, c)), im: l.fnma(a.re, s, l.mul(a.im, c)) }
}

/// `a * (1 - i) / √2`.
#[inline(always)]
fn eighth<const W: usize, L: Lanes<W>>(l: L, a: C<L::V>) -> C<L::V> {
    let h = l.splat(std::f32::consts::FRAC_1_SQRT_2);
    C { re: l.mul(l.add(a.re, a.im), h), im: l.mul(l.sub(a.im, a.re), h) }
}

/// `a * (-1 - i) / √2`.
#[inline(always)]
fn three_eighths<const W: usize, L: Lanes<W>>(l: L, a: C<L::V>) -> C<L::V> {
    let (h, minus) = (l.splat(std::f32::consts::FRAC_1_SQRT_2), l.splat(-std::f32::consts::FRAC_1_SQRT_2));
    C { re: l.mul(l.sub(a.im, a.re), h), im: l.mul(l.add(a.re, a.im), minus) }
}

/// `a * -i`.
#[inline(always)]
fn quarter<const W: usize, L: Lanes<W>>(l: L, a: C<L::V>) -> C<L::V> {
    C { re: a.im, im: l.sub(l.splat(0.0), a.re) }
}

#[inline(always)]
fn dft4<const W: usize, L: Lanes<W>>(l: L, a: C<L::V>, b: C<L::V>, c: C<L::V>, d: C<L::V>) -> [C<L::V>; 4] {
    let (s, t) = (add(l, a, c), sub(l, a, c));
    let (p, q) = (add(l, b, d), sub(l, b, d));
    [
        add(l, s, p),
        C { re: l.add(t.re, q.im), im: l.sub(t.im, q.re) },
        sub(l, s, p),
        C { re: l.sub(t.re, q.im), im: l.add(t.im, q.re) },
    ]
}

/// Cosine and sine of π/8: the sixteenth of a turn.
const SIXTEENTH: (f32, f32) = (0.923_879_5, 0.382_683_43);

#[inline(always)]
fn dft8<const W: usize, L: Lanes<W>>(l: L, x: [C<L::V>; 8]) -> [C<L::V>; 8] {
    let e = dft4(l, x[0], x[2], x[4], x[6]);
    let o = dft4(l, x[1], x[3], x[5], x[7]);
    let (o1, o3) = (eighth(l, o[1]), three_eighths(l, o[3]));
    [
        add(l, e[0], o[0]),
        add(l, e[1], o1),
        C { re: l.add(e[2].re, o[2].im), im: l.sub(e[2].im, o[2].re) },
        add(l, e[3], o3),
        sub(l, e[0], o[0]),
        sub(l, e[1], o1),
        C { re: l.sub(e[2].re, o[2].im), im: l.add(e[2].im, o[2].re) },
        sub(l, e[3], o3),
    ]
}

/// First four transforms of four elements a quarter apart, then four across them.
#[inline(always)]
fn dft16<const W: usize, L: Lanes<W>>(l: L, x: [C<L::V>; 16]) -> [C<L::V>; 16] {
    let (c, s) = SIXTEENTH;
    let a = dft4(l, x[0], x[4], x[8], x[12]);
    let b = dft4(l, x[1], x[5], x[9], x[13]);
    let d = dft4(l, x[2], x[6], x[10], x[14]);
    let e = dft4(l, x[3], x[7], x[11], x[15]);
    let p = dft4(l, a[0], b[0], d[0], e[0]);
    let q = dft4(l, a[1], turn(l, b[1], (c, s)), eighth(l, d[1]), turn(l, e[1], (s, c)));
    let r = dft4(l, a[2], eighth(l, b[2]), quarter(l, d[2]), three_eighths(l, e[2]));
    let t = dft4(l, a[3], turn(l, b[3], (s, c)), three_eighths(l, d[3]), turn(l, e[3], (-c, -s)));
    [p[0], q[0], r[0], t[0], p[1], q[1], r[1], t[1], p[2], q[2], r[2], t[2], p[3], q[3], r[3], t[3]]
}

/// Cosine and sine of `turns` 32nds of a turn.
#[rustfmt::skip]
const THIRTY_SECONDS: [(f32, f32); 16] = [
    (1.0, 0.0), (0.980_785_3, 0.195_090_32), (0.923_879_5, 0.382_683_43), (0.831_469_6, 0.555_570_24),
    (0.707_106_77, 0.707_106_77), (0.555_570_24, 0.831_469_6), (0.382_683_43, 0.923_879_5), (0.195_090_32, 0.980_785_3),
    (0.0, 1.0), (-0.195_090_32, 0.980_785_3), (-0.382_683_43, 0.923_879_5), (-0.555_570_24, 0.831_469_6),
    (-0.707_106_77, 0.707_106_77), (-0.831_469_6, 0.555_570_24), (-0.923_879_5, 0.382_683_43), (-0.980_785_3, 0.195_090_32),
];

#[inline(always)]
fn dft32<const W: usize, L: Lanes<W>>(l: L, x: &mut [C<L::V>; 32]) {
    let even = dft16(l, std::array::from_fn(|i| x[2 * i]));
    let odd = dft16(l, std::array::from_fn(|i| x[2 * i + 1]));
    for k in 0..16 {
        let o = turn(l, odd[k], THIRTY_SECONDS[k]);
        x[k] = add(l, even[k], o);
        x[k + 16] = sub(l, even[k], o);
    }
}

/// The transform of `R` points, in place, outputs in natural order. `R` is 1, 2, 4, 8, 16 or 32.
#[inline(always)]
pub(super) fn dft<const R: usize, const W: usize, L: Lanes<W>>(l: L, x: &mut [C<L::V>; R]) {
    // The conversions are between equal types, known when compiled.
    let x = x.as_mut_slice();
    match R {
        1 => {}
        2 => (x[0], x[1]) = (add(l, x[0], x[1]), sub(l, x[0], x[1])),
        4 => x.copy_from_slice(&dft4(l, x[0], x[1], x[2], x[3])),
        8 => {
            if let Some(x) = x.first_chunk_mut::<8>() {
                *x = dft8(l, *x);
            }
        }
        16 => {
            if let Some(x) = x.first_chunk_mut::<16>() {
                *x = dft16(l, *x);
            }
        }
        32 => {
            if let Some(x) = x.first_chunk_mut::<32>() {
                dft32(l, x);
            }
        }
        _ => unreachable!("no codelet of {R} points"),
    }
}

/// The transform of `2 R` points of which the last `R` are zero: even outputs, then odd outputs, each ascending.
#[inline(always)]
pub(super) fn dft_half_in<const R: usize, const W: usize, L: Lanes<W>>(
    l: L,
    x: &[C<L::V>; R],
) -> [[C<L::V>; R]; 2] {
    let mut even = *x;
    let mut odd = *x;
    for n in 1..R {
        odd[n] = turn(l, odd[n], THIRTY_SECONDS[n * (16 / R)]);
    }
    dft::<R, W, L>(l, &mut even);
    dft::<R, W, L>(l, &mut odd);
    [even, odd]
}

/// The first `R` of the `2 R` outputs of the transform of even and odd inputs.
#[inline(always)]
pub(super) fn dft_half_out<const R: usize, const W: usize, L: Lanes<W>>(
    l: L,
    [mut even, mut odd]: [[C<L::V>; R]; 2],
) -> [C<L::V>; R] {
    dft::<R, W, L>(l, &mut even);
    dft::<R, W, L>(l, &mut odd);
    for n in 0..R {
        even[n] =
            add(l, even[n], if n == 0 { odd[0] } else { turn(l, odd[n], THIRTY_SECONDS[n * (16 / R)]) });
    }
    even
}
