//! The passes of a transform: first stage from the user's row, inner stages in place, the innermost 256 points, and back.
//!
//! One row is processed depth first: after the first stage each of its `R₁` sub-rows (at most 4096 points, 32 KiB) goes through all
//! inner stages, the product with the kernel's spectrum and the inverse inner stages while it stays in L1.

use super::codelet::{C, dft, dft_half_in, dft_half_out, mul, mul_conj};
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

/// One real row of `2 n` elements in two halves, or two real rows; with gates multiplied in. Missing ends are zeros, an empty
/// gate is all ones.
#[derive(Clone, Copy, Default)]
pub(super) struct Input<'a> {
    pub(super) lo: &'a [f32],
    pub(super) hi: &'a [f32],
    pub(super) gate_lo: &'a [f32],
    pub(super) gate_hi: &'a [f32],
}

/// Where results go; what does not fit is dropped.
#[derive(Default)]
pub(super) struct Output<'a> {
    pub(super) lo: &'a mut [f32],
    pub(super) hi: &'a mut [f32],
    pub(super) gate_lo: &'a [f32],
    pub(super) gate_hi: &'a [f32],
}

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
    fn part(&mut self, start: usize, len: usize) -> Parts<'_> {
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
    fn part(self, start: usize, len: usize) -> Self {
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

/// What a frequency-sparse product leaves out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// Bit `k`: outputs `k` of the first stage, frequencies `k mod R₁`.
    pub(super) rows: u32,
    /// The lowest and highest `columns` sixteenths of the spectrum: 1, 2, 4 or 8 (all).
    pub(super) columns: usize,
}

impl Kept {
    pub(super) const ALL: Self = Self { rows: u32::MAX, columns: 8 };
}

/// Runs the whole of it: into `work`, through the middle, out.
pub(super) fn transform(
    isa: Isa,
    plan: &Plan,
    input: Input<'_>,
    middle: Middle<'_>,
    kept: Kept,
    output: Output<'_>,
    work: &mut Parts<'_>,
) {
    if !matches!(middle, Middle::Back) {
        first_stage(isa, plan, input, kept, work.again());
    }
    for k in (0..plan.first.radix).filter(|k| kept.rows >> k & 1 == 1) {
        let middle = match middle {
            Middle::Multiply(s) => Middle::Multiply(s.part(k * plan.first.m, plan.first.m)),
            other => other,
        };
        inner(isa, &plan.inner, &plan.leaf, work.part(k * plan.pitch, plan.first.m), middle, kept.columns);
    }
    if !matches!(middle, Middle::Keep) {
        last_stage(isa, plan, output, kept, work.again());
    }
}

/// The stages after the first, on one row.
fn inner(isa: Isa, stages: &[Stage], leaf: &Stage, mut row: Parts<'_>, middle: Middle<'_>, columns: usize) {
    let Some((stage, rest)) = stages.split_first() else {
        return leaves(isa, leaf, row, middle, columns);
    };
    if !matches!(middle, Middle::Back) {
        across(isa, stage, row.again(), false);
    }
    if rest.is_empty() {
        leaves(isa, leaf, row.again(), middle, columns);
    } else {
        for k in 0..stage.radix {
            let middle = match middle {
                Middle::Multiply(s) => Middle::Multiply(s.part(k * stage.m, stage.m)),
                other => other,
            };
            inner(isa, rest, leaf, row.part(k * stage.m, stage.m), middle, columns);
        }
    }
    if !matches!(middle, Middle::Keep) {
        across(isa, stage, row, true);
    }
}

fn first_stage(isa: Isa, plan: &Plan, input: Input<'_>, kept: Kept, work: Parts<'_>) {
    macro_rules! go {
        ($($r:literal)*) => { match plan.first.radix {
            $($r if !plan.folded => dispatch(isa, FirstPair::<{ $r / 2 }> { plan, input, kept, work }),
            $r if input.hi.is_empty() => dispatch(isa, First::<$r, false> { plan, input, work }),
            $r => dispatch(isa, First::<$r, true> { plan, input, work }),)*
            _ => dispatch(isa, First::<1, true> { plan, input, work }),
        } };
    }
    go!(2 4 8 16 32);
}

fn last_stage(isa: Isa, plan: &Plan, output: Output<'_>, kept: Kept, work: Parts<'_>) {
    macro_rules! go {
        ($($r:literal)*) => { match plan.first.radix {
            $($r if !plan.folded => dispatch(isa, LastPair::<{ $r / 2 }> { plan, output, kept, work }),
            $r if output.hi.is_empty() => dispatch(isa, Last::<$r, false> { plan, output, work }),
            $r => dispatch(isa, Last::<$r, true> { plan, output, work }),)*
            _ => dispatch(isa, Last::<1, true> { plan, output, work }),
        } };
    }
    go!(2 4 8 16 32);
}

fn across(isa: Isa, stage: &Stage, row: Parts<'_>, back: bool) {
    match (stage.radix, back) {
        (8, false) => dispatch(isa, Across::<8> { stage, row }),
        (8, true) => dispatch(isa, AcrossBack::<8> { stage, row }),
        (_, false) => dispatch(isa, Across::<16> { stage, row }),
        (_, true) => dispatch(isa, AcrossBack::<16> { stage, row }),
    }
}

fn leaves(isa: Isa, leaf: &Stage, row: Parts<'_>, middle: Middle<'_>, columns: usize) {
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
fn twiddle<const W: usize, L: Lanes<W>>(
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
fn load<const W: usize, L: Lanes<W>>(l: L, re: &[[f32; W]], im: &[[f32; W]], at: usize) -> C<L::V> {
    C { re: l.load(&re[at]), im: l.load(&im[at]) }
}

#[inline(always)]
fn store<const W: usize, L: Lanes<W>>(l: L, v: C<L::V>, re: &mut [[f32; W]], im: &mut [[f32; W]], at: usize) {
    l.store(v.re, &mut re[at]);
    l.store(v.im, &mut im[at]);
}

/// `s[at..]` times its gate.
#[inline(always)]
fn gated<const W: usize, L: Lanes<W>>(l: L, s: &[f32], gate: &[f32], at: usize) -> L::V {
    let v = l.load_at(s, at);
    if gate.is_empty() { v } else { l.mul(v, l.load_at(gate, at)) }
}

/// `s[at..] = v` times its gate.
#[inline(always)]
fn put<const W: usize, L: Lanes<W>>(l: L, v: L::V, s: &mut [f32], gate: &[f32], at: usize) {
    let v = if gate.is_empty() { v } else { l.mul(v, l.load_at(gate, at)) };
    l.store_at(v, s, at);
}

#[inline(always)]
fn zero<const W: usize, L: Lanes<W>>(l: L) -> C<L::V> {
    C { re: l.splat(0.0), im: l.splat(0.0) }
}

/// Elements `n m + j W` of a row for `n < R`, gated, zeros beyond its end. Through memory: branches between
/// the loads would keep the codelet's registers there as well.
#[inline(always)]
fn gather<const R: usize, const W: usize, L: Lanes<W>>(
    l: L,
    (s, gate): (&[f32], &[f32]),
    m: usize,
    at: usize,
    buffer: &mut [[f32; W]; R],
) {
    for (n, out) in buffer.iter_mut().enumerate() {
        l.store(gated(l, s, gate, n * m + at), out);
    }
}

/// The reverse of [`gather`].
#[inline(always)]
fn scatter<const R: usize, const W: usize, L: Lanes<W>>(
    l: L,
    buffer: &[[f32; W]; R],
    s: &mut [f32],
    gate: &[f32],
    m: usize,
    at: usize,
) {
    for (n, v) in buffer.iter().enumerate() {
        put(l, l.load(v), s, gate, n * m + at);
    }
}

/// The first stage of one row. `HI`: the second half is not all zeros.
struct First<'a, const R: usize, const HI: bool> {
    plan: &'a Plan,
    input: Input<'a>,
    work: Parts<'a>,
}

impl<const R: usize, const HI: bool> Job for First<'_, R, HI> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let Self { plan, input, work } = self;
        let (re, im) = (work.re.as_chunks_mut::<W>().0, work.im.as_chunks_mut::<W>().0);
        let table = plan.first.twiddles.as_slice().as_chunks::<W>().0;
        let (m, pitch) = (plan.first.m, plan.pitch / W);
        let plain = !HI && input.lo.len() >= plan.n && input.gate_lo.is_empty();
        let whole = input.lo.as_chunks::<W>().0;
        let (mut lo, mut hi) = ([[0.0; W]; R], [[0.0; W]; R]);
        for j in 0..m / W {
            let mut x = [zero(l); R];
            if plain {
                unroll!(n, R, {
                    let v = l.load(&whole[n * (m / W) + j]);
                    let t = C { re: l.splat(plan.twist[n][0]), im: l.splat(plan.twist[n][1]) };
                    x[n] = C { re: l.mul(v, t.re), im: l.mul(v, t.im) };
                });
            } else {
                gather(l, (input.lo, input.gate_lo), m, j * W, &mut lo);
                if HI {
                    gather(l, (input.hi, input.gate_hi), m, j * W, &mut hi);
                }
                unroll!(n, R, {
                    let t = C { re: l.splat(plan.twist[n][0]), im: l.splat(plan.twist[n][1]) };
                    x[n] = mul(l, C { re: l.load(&lo[n]), im: l.load(&hi[n]) }, t);
                });
            }
            dft::<R, W, L>(l, &mut x);
            unroll!(k, R, {
                store(l, mul(l, x[k], twiddle(l, table, R, j, k)), re, im, k * pitch + j);
            });
        }
    }
}

/// Inverse of the first stage of one row.
struct Last<'a, const R: usize, const HI: bool> {
    plan: &'a Plan,
    output: Output<'a>,
    work: Parts<'a>,
}

impl<const R: usize, const HI: bool> Job for Last<'_, R, HI> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let Self { plan, output, work } = self;
        let (re, im) = (work.re.as_chunks::<W>().0, work.im.as_chunks::<W>().0);
        let table = plan.first.twiddles.as_slice().as_chunks::<W>().0;
        let (m, pitch) = (plan.first.m, plan.pitch / W);
        let plain = !HI && output.lo.len() >= plan.n && output.gate_lo.is_empty();
        let (mut lo, mut hi) = ([[0.0; W]; R], [[0.0; W]; R]);
        for j in 0..m / W {
            let mut x = [zero(l); R];
            unroll!(k, R, {
                let v = load(l, re, im, k * pitch + j);
                x[k] = mul_conj(l, v, twiddle(l, table, R, j, k)).exchanged();
            });
            dft::<R, W, L>(l, &mut x);
            if plain {
                let whole = output.lo.as_chunks_mut::<W>().0;
                unroll!(n, R, {
                    let t = C { re: l.splat(plan.twist[n][0]), im: l.splat(plan.twist[n][1]) };
                    let v = mul_conj(l, x[n].exchanged(), t);
                    l.store(v.re, &mut whole[n * (m / W) + j]);
                });
            } else {
                unroll!(n, R, {
                    let t = C { re: l.splat(plan.twist[n][0]), im: l.splat(plan.twist[n][1]) };
                    let v = mul_conj(l, x[n].exchanged(), t);
                    l.store(v.re, &mut lo[n]);
                    l.store(v.im, &mut hi[n]);
                });
                scatter(l, &lo, output.lo, output.gate_lo, m, j * W);
                if HI {
                    scatter(l, &hi, output.hi, output.gate_hi, m, j * W);
                }
            }
        }
    }
}

/// First stage of two rows, of which the second half is zero and not read; `2 H` outputs.
struct FirstPair<'a, const H: usize> {
    plan: &'a Plan,
    input: Input<'a>,
    kept: Kept,
    work: Parts<'a>,
}

impl<const H: usize> Job for FirstPair<'_, H> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let Self { plan, input, kept, work } = self;
        let (re, im) = (work.re.as_chunks_mut::<W>().0, work.im.as_chunks_mut::<W>().0);
        let table = plan.first.twiddles.as_slice().as_chunks::<W>().0;
        let (m, pitch) = (plan.first.m, plan.pitch / W);
        let (mut lo, mut hi) = ([[0.0; W]; H], [[0.0; W]; H]);
        let plain = input.lo.len().min(input.hi.len()) >= H * m
            && input.gate_lo.is_empty()
            && input.gate_hi.is_empty();
        let whole = (input.lo.as_chunks::<W>().0, input.hi.as_chunks::<W>().0);
        for j in 0..m / W {
            let mut x = [zero(l); H];
            if plain {
                unroll!(n, H, {
                    let at = n * (m / W) + j;
                    x[n] = C { re: l.load(&whole.0[at]), im: l.load(&whole.1[at]) };
                });
            } else {
                gather(l, (input.lo, input.gate_lo), m, j * W, &mut lo);
                gather(l, (input.hi, input.gate_hi), m, j * W, &mut hi);
                unroll!(n, H, {
                    x[n] = C { re: l.load(&lo[n]), im: l.load(&hi[n]) };
                });
            }
            let halves = dft_half_in::<H, W, L>(l, &x);
            unroll!(k, 2 * H, {
                if kept.rows >> k & 1 == 1 {
                    let v = halves[k % 2][k / 2];
                    store(l, mul(l, v, twiddle(l, table, 2 * H, j, k)), re, im, k * pitch + j);
                }
            });
        }
    }
}

/// Inverse of the first stage of two rows, first half of the outputs only.
struct LastPair<'a, const H: usize> {
    plan: &'a Plan,
    output: Output<'a>,
    kept: Kept,
    work: Parts<'a>,
}

impl<const H: usize> Job for LastPair<'_, H> {
    type Out = ();
    #[inline(always)]
    fn run<const W: usize, L: Lanes<W>>(self, l: L) {
        let Self { plan, output, kept, work } = self;
        let (re, im) = (work.re.as_chunks::<W>().0, work.im.as_chunks::<W>().0);
        let table = plan.first.twiddles.as_slice().as_chunks::<W>().0;
        let (m, pitch) = (plan.first.m, plan.pitch / W);
        let (mut lo, mut hi) = ([[0.0; W]; H], [[0.0; W]; H]);
        let plain = output.lo.len().min(output.hi.len()) >= H * m
            && output.gate_lo.is_empty()
            && output.gate_hi.is_empty();
        for j in 0..m / W {
            let mut halves = [[zero(l); H]; 2];
            unroll!(k, 2 * H, {
                if kept.rows >> k & 1 == 1 {
                    let v = load(l, re, im, k * pitch + j);
                    halves[k % 2][k / 2] = mul_conj(l, v, twiddle(l, table, 2 * H, j, k)).exchanged();
                }
            });
            let x = dft_half_out::<H, W, L>(l, halves);
            if plain {
                let (lo, hi) = (output.lo.as_chunks_mut::<W>().0, output.hi.as_chunks_mut::<W>().0);
                unroll!(n, H, {
                    let at = n * (m / W) + j;
                    l.store(x[n].im, &mut lo[at]);
                    l.store(x[n].re, &mut hi[at]);
                });
                continue;
            }
            unroll!(n, H, {
                l.store(x[n].im, &mut lo[n]);
                l.store(x[n].re, &mut hi[n]);
            });
            scatter(l, &lo, output.lo, output.gate_lo, m, j * W);
            scatter(l, &hi, output.hi, output.gate_hi, m, j * W);
        }
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
        let m = self.stage.m / W;
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
        let m = self.stage.m / W;
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
                for j in 0..parts {
                    let mut x = [zero(l); 16];
                    unroll!(n, 16, {
                        x[n] = load(l, re, im, n * parts + j);
                    });
                    dft::<16, W, L>(l, &mut x);
                    store(l, x[0], re, im, j);
                    unroll!(k, 16, {
                        if k > 0 {
                            store(l, mul(l, x[k], twiddle(l, table, 16, j, k)), re, im, k * parts + j);
                        }
                    });
                }
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
                for j in 0..parts {
                    let mut x = [zero(l); 16];
                    x[0] = load(l, re, im, j).exchanged();
                    unroll!(k, 16, {
                        if k > 0 {
                            let v = load(l, re, im, k * parts + j);
                            x[k] = mul_conj(l, v, twiddle(l, table, 16, j, k)).exchanged();
                        }
                    });
                    dft::<16, W, L>(l, &mut x);
                    unroll!(n, 16, {
                        store(l, x[n].exchanged(), re, im, n * parts + j);
                    });
                }
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
