//! The passes of a transform: first stage from the user's row, the stages of the work array, and back to the user's row.
//!
//! One row is processed depth first: after the first stage each of its `R₁` sub-rows (at most 4096 points, 32 KiB) goes through all
//! inner stages, the product with the kernel's spectrum and the inverse inner stages while it stays in L1.

use super::block::{Middle, Parts, across, leaves, load, store, twiddle, unroll, zero};
use super::codelet::{C, dft, dft_half_in, dft_half_out, mul, mul_conj};
use super::lanes::{Job, Lanes, dispatch};
use super::plan::{Plan, Stage};
use crate::Isa;

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
