//! The work array of a transform: its inner stages in place, the innermost 256 points, and products of spectra.

use super::codelet::{C, dft, mul, mul_conj};
use super::lanes::{Job, Lanes, dispatch};
use super::plan::{LEAF, Plan, Stage};
use crate::Isa;

/// `body` for `n` from 0 to `count` (a constant, at most 32), written out: the compiler leaves loops of sixteen codelet loads as loops, and
/// then the registers they fill are memory.
macro_rules! unroll {
    ($n:ident, $count:expr, $body:block) => {
        unroll!(@ $n, $count, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    (@ $n:ident, $count:expr, $body:block, $($i:literal)*) => {
        $(if $i < $count { let $n: usize = $i; $body })*
    };
}
pub(super) use unroll;

/// Real and imaginary parts, same length.
pub(super) struct Parts<'a> {
    pub(super) re: &'a mut [f32],
    pub(super) im: &'a mut [f32],
}

impl<'a> Parts<'a> {
    /// Both halves of a work array.
    pub(super) fn of(work: &'a mut [f32]) -> Self {
        let half = work.len() / 2;
        let (re, im) = work.split_at_mut(half);
        Self { re, im }
    }
    pub(super) fn again(&mut self) -> Parts<'_> {
        Parts { re: self.re, im: self.im }
    }
    pub(super) fn part(&mut self, start: usize, len: usize) -> Parts<'_> {
        Parts { re: &mut self.re[start..][..len], im: &mut self.im[start..][..len] }
    }
}

/// A spectrum: `[re, im][n]`.
#[derive(Clone, Copy)]
pub(super) struct Spectrum<'a> {
    re: &'a [f32],
    im: &'a [f32],
}

impl<'a> Spectrum<'a> {
    pub(super) fn of(both: &'a [f32]) -> Self {
        let (re, im) = both.split_at(both.len() / 2);
        Self { re, im }
    }
    pub(super) fn part(self, start: usize, len: usize) -> Self {
        Self { re: &self.re[start..][..len], im: &self.im[start..][..len] }
    }
}

/// What happens to the spectrum of a row.
#[derive(Clone, Copy)]
pub(super) enum Middle<'a> {
    /// It is the result.
    Keep,
    /// It is multiplied with another one and transformed back.
    Multiply(Spectrum<'a>),
    /// The work array holds a spectrum, which is transformed back.
    Back,
}

pub(super) fn across(isa: Isa, stage: &Stage, row: Parts<'_>, back: bool) {
    match (stage.radix, back) {
        (8, false) => dispatch(isa, Across::<8> { stage, row }),
        (8, true) => dispatch(isa, AcrossBack::<8> { stage, row }),
        (_, false) => dispatch(isa, Across::<16> { stage, row }),
        (_, true) => dispatch(isa, AcrossBack::<16> { stage, row }),
    }
}

pub(super) fn leaves(isa: Isa, leaf: &Stage, row: Parts<'_>, middle: Middle<'_>, columns: usize) {
    match (middle, columns) {
        (Middle::Keep, _) => dispatch(isa, Leaves::<true, false, 8> { leaf, row, kernel: None }),
        (Middle::Back, _) => dispatch(isa, Leaves::<false, true, 8> { leaf, row, kernel: None }),
        (Middle::Multiply(s), 1) => dispatch(isa, Leaves::<true, true, 1> { leaf, row, kernel: Some(s) }),
        (Middle::Multiply(s), 2) => dispatch(isa, Leaves::<true, true, 2> { leaf, row, kernel: Some(s) }),
        (Middle::Multiply(s), 4) => dispatch(isa, Leaves::<true, true, 4> { leaf, row, kernel: Some(s) }),
        (Middle::Multiply(s), _) => dispatch(isa, Leaves::<true, true, 8> { leaf, row, kernel: Some(s) }),
    }
}

/// Vector `j` of output `k` in a table of `radix` rows.
#[inline(always)]
pub(super) fn twiddle<const W: usize, L: Lanes<W>>(
    l: L,
    table: &[[f32; W]],
    radix: usize,
    j: usize,
    k: usize,
) -> C<L::V> {
    let parts = 16 / W;
    let at = (j / parts * radix + k) * 2 * parts + j % parts;
    C { re: l.load(&table[at]), im: l.load(&table[at + parts]) }
}

#[inline(always)]
pub(super) fn load<const W: usize, L: Lanes<W>>(
    l: L,
    re: &[[f32; W]],
    im: &[[f32; W]],
    at: usize,
) -> C<L::V> {
    C { re: l.load(&re[at]), im: l.load(&im[at]) }
}

#[inline(always)]
pub(super) fn store<const W: usize, L: Lanes<W>>(
    l: L,
    v: C<L::V>,
    re: &mut [[f32; W]],
    im: &mut [[f32; W]],
    at: usize,
) {
    l.store(v.re, &mut re[at]);
    l.store(v.im, &mut im[at]);
}

#[inline(always)]
pub(super) fn zero<const W: usize, L: Lanes<W>>(l: L) -> C<L::V> {
    C { re: l.splat(0.0), im: l.splat(0.0) }
}

/// A codelet across rows of `m` vectors, and the twiddles.
#[inline(always)]
fn forth<const R: usize, const W: usize, L: Lanes<W>>(
    l: L,
    table: &[[f32; W]],
    m: usize,
    re: &mut [[f32; W]],
    im: &mut [[f32; W]],
) {
    for j in 0..m {
        let mut x = [zero(l); R];
        unroll!(n, R, {
            x[n] = load(l, re, im, n * m + j);
        });
        dft::<R, W, L>(l, &mut x);
        store(l, x[0], re, im, j);
        unroll!(k, R, {
            if k > 0 {
                store(l, mul(l, x[k], twiddle(l, table, R, j, k)), re, im, k * m + j);
            }
        });
    }
}

/// The inverse of [`forth`].
#[inline(always)]
fn back<const R: usize, const W: usize, L: Lanes<W>>(
    l: L,
    table: &[[f32; W]],
    m: usize,
    re: &mut [[f32; W]],
    im: &mut [[f32; W]],
) {
    for j in 0..m {
        let mut x = [zero(l); R];
        x[0] = load(l, re, im, j).exchanged();
        unroll!(k, R, {
            if k > 0 {
                x[k] = mul_conj(l, load(l, re, im, k * m + j), twiddle(l, table, R, j, k)).exchanged();
            }
        });
        dft::<R, W, L>(l, &mut x);
        unroll!(n, R, {
            store(l, x[n].exchanged(), re, im, n * m + j);
        });
    }
}

/// An inner stage, in place.
struct Across<'a, const R: usize> {
    stage: &'a Stage,
    row: Parts<'a>,
}

impl<const R: usize> Job for Across<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let (re, im) = (self.row.re.as_chunks_mut::<W>().0, self.row.im.as_chunks_mut::<W>().0);
        let table = self.stage.twiddles.as_slice().as_chunks::<W>().0;
        forth::<R, W, L>(l, table, self.stage.m / W, re, im);
    }
}

/// Inverse of an inner stage, in place.
struct AcrossBack<'a, const R: usize> {
    stage: &'a Stage,
    row: Parts<'a>,
}

impl<const R: usize> Job for AcrossBack<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let (re, im) = (self.row.re.as_chunks_mut::<W>().0, self.row.im.as_chunks_mut::<W>().0);
        let table = self.stage.twiddles.as_slice().as_chunks::<W>().0;
        back::<R, W, L>(l, table, self.stage.m / W, re, im);
    }
}

/// Blocks of 256 points: sixteen rows of sixteen. A codelet across the rows, the twiddle, a transpose, and a codelet across what
/// were the columns; there the product is taken, and the way back is the mirror. The transposes are the only shuffles of
/// a transform: 4 · 64 instructions per 256 points.
struct Leaves<'a, const FORTH: bool, const BACK: bool, const COLUMNS: usize> {
    leaf: &'a Stage,
    row: Parts<'a>,
    kernel: Option<Spectrum<'a>>,
}

impl<const FORTH: bool, const BACK: bool, const COLUMNS: usize> Job for Leaves<'_, FORTH, BACK, COLUMNS> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let table = self.leaf.twiddles.as_slice().as_chunks::<W>().0;
        let blocks =
            self.row.re.as_chunks_mut::<LEAF>().0.iter_mut().zip(self.row.im.as_chunks_mut::<LEAF>().0);
        for (b, (re, im)) in blocks.enumerate() {
            let (re, im) = (re.as_chunks_mut::<W>().0, im.as_chunks_mut::<W>().0);
            let parts = 16 / W;
            if FORTH {
                forth::<16, W, L>(l, table, parts, re, im);
            }
            if FORTH && BACK {
                for i in 0..parts {
                    let mut x = columns(l, re, im, i);
                    dft::<16, W, L>(l, &mut x);
                    if let Some(kernel) = self.kernel {
                        let (kre, kim) = (
                            kernel.re[b * LEAF..][..LEAF].as_chunks::<W>().0,
                            kernel.im[b * LEAF..][..LEAF].as_chunks::<W>().0,
                        );
                        unroll!(k, 16, {
                            x[k] = if k < COLUMNS || k >= 16 - COLUMNS {
                                mul(l, x[k], load(l, kre, kim, k * parts + i)).exchanged()
                            } else {
                                zero(l)
                            };
                        });
                    }
                    dft::<16, W, L>(l, &mut x);
                    unroll!(k, 16, {
                        x[k] = x[k].exchanged();
                    });
                    rows(l, x, re, im, i);
                }
            } else if FORTH {
                // The spectrum leaves transposed, so all of it has to be read before any is written.
                let (mut r, mut s) = ([0.0; LEAF], [0.0; LEAF]);
                let (r, s) = (r.as_chunks_mut::<W>().0, s.as_chunks_mut::<W>().0);
                for i in 0..parts {
                    let mut x = columns(l, re, im, i);
                    dft::<16, W, L>(l, &mut x);
                    unroll!(k, 16, {
                        store(l, x[k], r, s, k * parts + i);
                    });
                }
                re.copy_from_slice(r);
                im.copy_from_slice(s);
            } else {
                let (mut r, mut s) = ([0.0; LEAF], [0.0; LEAF]);
                let (r, s) = (r.as_chunks_mut::<W>().0, s.as_chunks_mut::<W>().0);
                r.copy_from_slice(re);
                s.copy_from_slice(im);
                for i in 0..parts {
                    let mut x = [zero(l); 16];
                    unroll!(k, 16, {
                        x[k] = load(l, r, s, k * parts + i).exchanged();
                    });
                    dft::<16, W, L>(l, &mut x);
                    unroll!(k, 16, {
                        x[k] = x[k].exchanged();
                    });
                    rows(l, x, re, im, i);
                }
            }
            if BACK {
                back::<16, W, L>(l, table, parts, re, im);
            }
        }
    }
}

/// The sixteen columns of rows `W i` to `W i + W` of a block.
#[inline(always)]
fn columns<const W: usize, L: Lanes<W>>(l: L, re: &[[f32; W]], im: &[[f32; W]], i: usize) -> [C<L::V>; 16] {
    let parts = 16 / W;
    let mut x = [zero(l); 16];
    for j in 0..parts {
        let (mut r, mut s) = ([l.splat(0.0); W], [l.splat(0.0); W]);
        unroll!(q, W, {
            let v = load(l, re, im, (i * W + q) * parts + j);
            (r[q], s[q]) = (v.re, v.im);
        });
        l.transpose(&mut r);
        l.transpose(&mut s);
        unroll!(q, W, {
            x[j * W + q] = C { re: r[q], im: s[q] };
        });
    }
    x
}

/// Writes what [`columns`] read.
#[inline(always)]
fn rows<const W: usize, L: Lanes<W>>(
    l: L,
    x: [C<L::V>; 16],
    re: &mut [[f32; W]],
    im: &mut [[f32; W]],
    i: usize,
) {
    let parts = 16 / W;
    for j in 0..parts {
        let (mut r, mut s) = ([l.splat(0.0); W], [l.splat(0.0); W]);
        unroll!(q, W, {
            (r[q], s[q]) = (x[j * W + q].re, x[j * W + q].im);
        });
        l.transpose(&mut r);
        l.transpose(&mut s);
        unroll!(q, W, {
            store(l, C { re: r[q], im: s[q] }, re, im, (i * W + q) * parts + j);
        });
    }
}

/// `a *= b`, or `a *= conj(b)`; `b` is a spectrum without gaps between rows.
pub(super) fn multiply(isa: Isa, plan: &Plan, work: &mut Parts<'_>, by: Spectrum<'_>, conj: bool) {
    for k in 0..plan.first.radix {
        let m = plan.first.m;
        let (row, by) = (work.part(k * plan.pitch, m), by.part(k * m, m));
        if conj {
            dispatch(isa, Product::<true> { row, by });
        } else {
            dispatch(isa, Product::<false> { row, by });
        }
    }
}

struct Product<'a, const CONJ: bool> {
    row: Parts<'a>,
    by: Spectrum<'a>,
}

impl<const CONJ: bool> Job for Product<'_, CONJ> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let (re, im) = (self.row.re.as_chunks_mut::<W>().0, self.row.im.as_chunks_mut::<W>().0);
        let (bre, bim) = (self.by.re.as_chunks::<W>().0, self.by.im.as_chunks::<W>().0);
        for at in 0..re.len() {
            let (a, b) = (load(l, re, im, at), load(l, bre, bim, at));
            store(l, if CONJ { mul_conj(l, a, b) } else { mul(l, a, b) }, re, im, at);
        }
    }
}

/// `sum += a · conj(b)`, all in the layout of the work array.
pub(super) fn accumulate(isa: Isa, sum: Parts<'_>, a: &Parts<'_>, b: &Parts<'_>) {
    dispatch(isa, Accumulate { sum, a, b });
}

struct Accumulate<'a, 'b> {
    sum: Parts<'a>,
    a: &'a Parts<'b>,
    b: &'a Parts<'b>,
}

impl Job for Accumulate<'_, '_> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let (re, im) = (self.sum.re.as_chunks_mut::<W>().0, self.sum.im.as_chunks_mut::<W>().0);
        let (are, aim) = (self.a.re.as_chunks::<W>().0, self.a.im.as_chunks::<W>().0);
        let (bre, bim) = (self.b.re.as_chunks::<W>().0, self.b.im.as_chunks::<W>().0);
        for at in 0..re.len() {
            let p = mul_conj(l, load(l, are, aim, at), load(l, bre, bim, at));
            store(l, super::codelet::add(l, load(l, re, im, at), p), re, im, at);
        }
    }
}
