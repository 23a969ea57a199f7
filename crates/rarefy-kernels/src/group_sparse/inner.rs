//! The inner loop over a run of kept groups, written once for all instruction sets.
//!
//! The order of additions depends on the matrix alone: inside a segment each row has two chains of multiply-adds over 16 lanes, which the
//! kept groups (for groups of 32 and more their halves) feed in turn, and are added lane by lane at the end.

use std::ops::Range;

use super::{Places, SEGMENT, Sink, SparseGroups};
use crate::quantised::lanes::Lanes;
use crate::quantised::lanes::portable::Portable;
use crate::{AlignedBuf, Isa};

/// Group positions whose columns are listed at a time.
const PIECE: usize = 1024;
/// Bytes between a load and its prefetch.
const AHEAD: usize = 4096;

/// Sums of the rows in `rows` over each of `segments`: a call of `sink` for each row with a group there and each token.
pub(super) fn run(call: &Call<'_>, segments: Range<usize>, rows: Range<usize>, sink: &mut Sink<'_>) {
    let mut list = List::new();
    let mut from = if segments.is_empty() { 0 } else { call.m.row_of(segments.start * SEGMENT) };
    for s in segments {
        from = call.m.row_from(from, s * SEGMENT);
        segment(call, s, from.max(rows.start)..rows.end, &mut list, sink);
    }
}

fn segment(call: &Call<'_>, s: usize, rows: Range<usize>, list: &mut List, sink: &mut Sink<'_>) {
    let Call { m, isa, x, n, .. } = *call;
    let groups = s * SEGMENT..m.kept.min((s + 1) * SEGMENT);
    assert!(groups.start < groups.end, "the groups exist");
    assert_eq!(x.len(), n * m.cols, "x is [n, cols]");
    let mut row = rows.start;
    while row < rows.end && (m.row_index[row] as usize) < groups.end {
        let all = m.row_index[row] as usize..m.row_index[row + 1] as usize;
        let part = groups.start.max(all.start)..groups.end.min(all.end);
        if !part.is_empty() {
            let mut t = 0;
            while t < n {
                let mut sums = [0.0; 8];
                let this = Row { call, row, part: part.clone() };
                let x = &x[t * m.cols..];
                // SAFETY: the path is available, as `forward_balanced` checked. `part` lies in the row, `x` holds as many tokens as the
                // instance takes.
                let took = unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => x86::avx512(&this, x, n - t, list, &mut sums),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => x86::avx2(&this, x, n - t, list, &mut sums),
                        _ => any::<Portable, 1>(&this, x, list, &mut sums),
                    }
                };
                for (i, sum) in sums[..took].iter().enumerate() {
                    sink(s, row, part.start == all.start, t + i, *sum);
                }
                t += took;
            }
        }
        row += 1;
    }
}

/// Places, scales and beside each scale `−z s` (with f32 scales `z`) of the kept groups of a piece. They are written well before they are
/// read: a number read back right after the vector that holds it was stored has to wait for the store.
#[repr(align(64))]
struct List {
    scales: [f32; PIECE + 32],
    offsets: [f32; PIECE + 32],
    places: [u16; PIECE + 32],
}

impl List {
    /// An empty one. Clearing it takes as long as 500 groups: once per task, not per segment.
    fn new() -> Self {
        Self { scales: [0.0; PIECE + 32], offsets: [0.0; PIECE + 32], places: [0; PIECE + 32] }
    }
}

/// What stays the same for all segments.
pub(super) struct Call<'a> {
    pub(super) m: &'a SparseGroups,
    pub(super) isa: Isa,
    pub(super) codes: &'a AlignedBuf<u8>,
    pub(super) scales: &'a AlignedBuf<u8>,
    pub(super) zeros: &'a AlignedBuf<u8>,
    pub(super) x: &'a [f32],
    pub(super) n: usize,
}

/// A part of a row's kept groups.
struct Row<'a> {
    call: &'a Call<'a>,
    row: usize,
    part: Range<usize>,
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::quantised::lanes::avx2::Avx2;
    use crate::quantised::lanes::avx512::Avx512;

    /// # Safety
    /// AVX-512 as in [`Isa::Avx512`]; see [`row_part`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
    pub(super) unsafe fn avx512(
        row: &Row<'_>,
        x: &[f32],
        left: usize,
        list: &mut List,
        sums: &mut [f32; 8],
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            match left {
                1 => any::<Avx512, 1>(row, x, list, sums),
                2 | 3 => any::<Avx512, 2>(row, x, list, sums),
                4..8 => any::<Avx512, 4>(row, x, list, sums),
                _ => any::<Avx512, 8>(row, x, list, sums),
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; see [`row_part`].
    #[target_feature(enable = "avx2,fma,popcnt")]
    pub(super) unsafe fn avx2(
        row: &Row<'_>,
        x: &[f32],
        left: usize,
        list: &mut List,
        sums: &mut [f32; 8],
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            if left == 1 { any::<Avx2, 1>(row, x, list, sums) } else { any::<Avx2, 2>(row, x, list, sums) }
        }
    }
}

/// Chooses the instance; the tokens it took.
///
/// # Safety
/// As [`row_part`].
#[inline(always)]
unsafe fn any<L: Lanes, const N: usize>(
    row: &Row<'_>,
    x: &[f32],
    list: &mut List,
    sums: &mut [f32; 8],
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match (row.call.m.bits, row.call.m.group, row.call.m.wide_scales) {
            (4, 16, false) => row_part::<L, N, 4, 16, false>(row, x, list, sums),
            (4, 32, false) => row_part::<L, N, 4, 32, false>(row, x, list, sums),
            (4, _, false) => row_part::<L, N, 4, 0, false>(row, x, list, sums),
            (4, _, true) => row_part::<L, N, 4, 0, true>(row, x, list, sums),
            (_, 16, false) => row_part::<L, N, 8, 16, false>(row, x, list, sums),
            (_, _, false) => row_part::<L, N, 8, 0, false>(row, x, list, sums),
            _ => row_part::<L, N, 8, 0, true>(row, x, list, sums),
        }
    }
    N
}

/// Where a walk over a row's pieces stands.
struct Walk {
    piece: usize,
    at: usize,
}

impl Row<'_> {
    fn start(&self) -> Walk {
        let at = match self.call.m.places {
            Places::Bitmap(_) => self.call.m.row_index[self.row] as usize,
            Places::Index(_) => self.part.start,
        };
        Walk { piece: 0, at }
    }

    /// The next run of the part's groups within a piece, their places listed from entry 0 of `list.places` on.
    ///
    /// # Safety
    /// The instructions of `L`.
    #[inline(always)]
    unsafe fn next<L: Lanes>(&self, walk: &mut Walk, list: &mut List) -> Option<Range<usize>> {
        match &self.call.m.places {
            Places::Index(index) => {
                let run = walk.at..self.part.end.min(walk.at + PIECE);
                walk.at = run.end;
                let places = &index.as_slice()[run.clone()];
                list.places[..places.len()].copy_from_slice(places);
                Some(run).filter(|r| !r.is_empty())
            }
            Places::Bitmap(bits) => {
                let words = (self.call.m.cols / self.call.m.group).div_ceil(32);
                let line = &bits.as_slice()[self.row * words..(self.row + 1) * words];
                // SAFETY: a prefetch never faults.
                unsafe { L::prefetch(line.as_ptr().cast(), AHEAD / 16) };
                while let Some(piece) = line.get(walk.piece * (PIECE / 32)..).filter(|p| !p.is_empty()) {
                    let piece = &piece[..piece.len().min(PIECE / 32)];
                    let mut count = 0;
                    for (i, word) in piece.iter().enumerate() {
                        let base = (walk.piece * PIECE + i * 32) as u16;
                        // SAFETY: at most `32 i` places are listed, and the list has room for 32 more than a piece.
                        unsafe { L::positions::<1>(*word, base, list.places.as_mut_ptr().add(count)) };
                        count += word.count_ones() as usize;
                    }
                    let all = walk.at..walk.at + count;
                    (walk.piece, walk.at) = (walk.piece + 1, all.end);
                    let run = self.part.start.max(all.start)..self.part.end.min(all.end);
                    if !run.is_empty() {
                        let skip = run.start - all.start;
                        if skip > 0 {
                            list.places.copy_within(skip..skip + run.len(), 0);
                        }
                        return Some(run);
                    }
                }
                None
            }
        }
    }
}

/// Sums of `N` tokens over a part of a row. `GROUP` is the size of a group, or 0 to read it from the matrix.
///
/// # Safety
/// The instructions of `L`; the part lies in the row; `x` holds `N` tokens.
#[inline(always)]
unsafe fn row_part<L: Lanes, const N: usize, const BITS: u32, const GROUP: usize, const WIDE: bool>(
    row: &Row<'_>,
    x: &[f32],
    list: &mut List,
    sums: &mut [f32; 8],
) {
    // SAFETY: the arrays come from a `GroupSparse`, whose constructors guarantee that a row has as many places as groups, all below
    // `cols / group`.
    unsafe {
        let mut acc = [[L::zero(); 2]; N];
        let mut walk = row.start();
        while let Some(these) = row.next::<L>(&mut walk, list) {
            scales::<L, BITS, WIDE>(row.call, these.clone(), list);
            row_run::<L, N, BITS, GROUP, WIDE>(row.call, these, list, x.as_ptr(), &mut acc);
        }
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = L::sum(L::add(acc[0], acc[1]));
        }
    }
}

/// Fills the scales and offsets of the groups `range` (at most a piece) from entry `range.start % 16` on.
///
/// # Safety
/// The instructions of `L`; `range` exists.
#[inline(always)]
unsafe fn scales<L: Lanes, const BITS: u32, const WIDE: bool>(
    call: &Call<'_>,
    range: Range<usize>,
    list: &mut List,
) {
    let (stored, zeros) = (call.scales.as_slice().as_ptr(), call.zeros.as_slice().as_ptr());
    let begin = range.start & !15;
    assert!(range.end - begin <= PIECE + 16, "the groups fit the list");
    for first in (begin..range.end).step_by(16) {
        // SAFETY: sixteen scales and zero points from `first` on are readable thanks to the padding of the arrays, and the list has
        // room for sixteen more than a piece on either side.
        unsafe {
            let z = match call.m.fixed_zero {
                Some(z) => L::splat(f32::from(z)),
                None if BITS == 4 => L::to_f(L::nibbles_in_order(zeros.add(first / 2))),
                None => L::to_f(L::bytes16(zeros.add(first))),
            };
            let (to_scale, to_offset) =
                (list.scales.as_mut_ptr().add(first - begin), list.offsets.as_mut_ptr().add(first - begin));
            let width = if WIDE { 4 } else { 2 };
            L::prefetch(stored.add(width * first), AHEAD / 4);
            if WIDE {
                L::store(to_scale, L::load(stored.add(4 * first).cast()));
                L::store(to_offset, z);
            } else {
                let s = L::scales_f16(stored.add(2 * first));
                L::store(to_scale, s);
                L::store(to_offset, L::sub(L::zero(), L::mul(z, s)));
            }
        }
    }
}

/// What one group needs to know; a plain struct, because a closure would not take over the instruction set of its caller.
struct Run {
    cols: usize,
    size: usize,
    bytes: usize,
    /// Of the first group; scales and offsets as in [`List`].
    codes: *const u8,
    scales: *const f32,
    offsets: *const f32,
    places: *const u16,
    x: *const f32,
}

impl Run {
    /// Adds group `i` to chain `parity` (for larger groups: to both).
    ///
    /// # Safety
    /// The instructions of `L`; the group exists, its place is below `cols / group`, and `x` points to `N` tokens.
    #[inline(always)]
    unsafe fn one<L: Lanes, const N: usize, const BITS: u32, const WIDE: bool>(
        &self,
        i: usize,
        parity: usize,
        acc: &mut [[L::F; 2]; N],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            // A volatile read: otherwise the compiler gathers the places of several groups in a vector and spends three
            // times as long to take them out again.
            let place = usize::from(self.places.add(i).read_volatile());
            let (scale, offset) = (L::splat(self.scales.add(i).read()), L::splat(self.offsets.add(i).read()));
            let p = self.codes.add(i * self.bytes);
            let x = self.x.add(place * self.size);
            for h in 0..self.size / 16 {
                let q = if BITS == 4 { L::codes4(p.add(8 * h)) } else { L::codes8(p.add(16 * h)) };
                let w = Self::weights::<L, WIDE>(q, scale, offset);
                let chain = if self.size == 16 { parity } else { h & 1 };
                for (t, acc) in acc.iter_mut().enumerate() {
                    acc[chain] = L::fma(w, L::load(x.add(t * self.cols + 16 * h)), acc[chain]);
                }
            }
            if !self.size.is_multiple_of(16) {
                let at = self.size - 8;
                let q = if BITS == 4 { L::codes4_low8(p.add(at / 2)) } else { L::codes8(p.add(at)) };
                let w = Self::weights::<L, WIDE>(q, scale, offset);
                for (t, acc) in acc.iter_mut().enumerate() {
                    acc[parity] = L::fma(w, L::load_low8(x.add(t * self.cols + at)), acc[parity]);
                }
            }
        }
    }

    /// The weights as they decode, exactly: with a scale of 11 bits both products and their difference fit 24.
    ///
    /// # Safety
    /// The instructions of `L`.
    #[inline(always)]
    unsafe fn weights<L: Lanes, const WIDE: bool>(q: L::F, scale: L::F, offset: L::F) -> L::F {
        // SAFETY: the caller's promise.
        unsafe { if WIDE { L::mul(L::sub(q, offset), scale) } else { L::fma(q, scale, offset) } }
    }
}

/// Adds the groups `range`, whose places and scales are listed, to the sums.
///
/// # Safety
/// The instructions of `L`; `range` exists, its places are below `cols / group`, `x` points to `N` tokens.
#[inline(always)]
unsafe fn row_run<L: Lanes, const N: usize, const BITS: u32, const GROUP: usize, const WIDE: bool>(
    call: &Call<'_>,
    range: Range<usize>,
    list: &List,
    x: *const f32,
    sums: &mut [[L::F; 2]; N],
) {
    let size = if GROUP == 0 { call.m.group } else { GROUP };
    let bytes = size * BITS as usize / 8;
    let skip = range.start % 16;
    let mut acc = *sums;
    // SAFETY: the caller's promise; `i` stays below the number of groups.
    unsafe {
        let of = Run {
            cols: call.m.cols,
            size,
            bytes,
            codes: call.codes.as_slice().as_ptr().add(range.start * bytes),
            scales: list.scales.as_ptr().add(skip),
            offsets: list.offsets.as_ptr().add(skip),
            places: list.places.as_ptr(),
            x,
        };
        let n = range.len();
        let mut i = 0;
        // The chain is told by the place in the flat list, so that it does not depend on where the run begins.
        if skip % 2 == 1 {
            of.one::<L, N, BITS, WIDE>(0, 1, &mut acc);
            i = 1;
        }
        while i + 4 <= n {
            for l in 0..(bytes / 16).max(1) {
                L::prefetch(of.codes.add(i * bytes), AHEAD + 64 * l);
            }
            of.one::<L, N, BITS, WIDE>(i, 0, &mut acc);
            of.one::<L, N, BITS, WIDE>(i + 1, 1, &mut acc);
            of.one::<L, N, BITS, WIDE>(i + 2, 0, &mut acc);
            of.one::<L, N, BITS, WIDE>(i + 3, 1, &mut acc);
            i += 4;
        }
        while i < n {
            if (i + skip).is_multiple_of(2) {
                of.one::<L, N, BITS, WIDE>(i, 0, &mut acc);
            } else {
                of.one::<L, N, BITS, WIDE>(i, 1, &mut acc);
            }
            i += 1;
        }
    }
    *sums = acc;
}
