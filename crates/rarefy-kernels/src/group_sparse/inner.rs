//! The inner loop over a run of kept groups, written once for all instruction sets.
//!
//! The order of additions depends on the matrix alone: inside a segment each row has two chains of multiply-adds over 16 lanes, which the
//! kept groups (for groups of 32 and more their halves) feed in turn, and are added lane by lane at the end.

use std::ops::Range;

use super::{Places, SparseGroups};
use crate::Isa;
use crate::quantised::lanes::Lanes;
use crate::quantised::lanes::portable::Portable;

/// Group positions whose columns are listed at a time.
const PIECE: usize = 1024;
/// Bytes between a load and its prefetch.
const AHEAD: usize = 4096;

/// Sums of the rows in `rows` over the kept groups in `groups`, which lie in one segment: `sink(row, begins, token, sum)` for each row
/// with a group there; `begins` when the row's first group is among them.
pub(super) fn segment(
    call: &Call<'_>,
    groups: Range<usize>,
    rows: Range<usize>,
    list: &mut List,
    mut sink: impl FnMut(usize, bool, usize, f32),
) {
    let Call { m, isa, x, n } = *call;
    assert!(groups.start < groups.end && groups.end <= m.kept, "the groups exist");
    match x {
        Input::Numbers(x) => assert_eq!(x.len(), n * m.cols, "x is [n, cols]"),
        Input::Bytes(x) => assert_eq!(x.len(), n * m.cols, "x is [n, cols]"),
    }
    let mut row = if rows.len() == 1 { rows.start } else { m.row_of(groups.start) };
    while row < rows.end && (m.row_index[row] as usize) < groups.end {
        let all = m.row_index[row] as usize..m.row_index[row + 1] as usize;
        let part = groups.start.max(all.start)..groups.end.min(all.end);
        if !part.is_empty() {
            let mut t = 0;
            while t < n {
                let mut sums = [0.0; 8];
                let this = Row { m, row, part: part.clone() };
                // SAFETY: the path is available, as `forward_balanced` checked. `part` lies in the row, `x` holds as many tokens as the
                // instance takes.
                let took = unsafe {
                    match (x, isa) {
                        #[cfg(target_arch = "x86_64")]
                        (Input::Numbers(x), Isa::Avx512) => {
                            x86::avx512(&this, &x[t * m.cols..], n - t, list, &mut sums)
                        }
                        #[cfg(target_arch = "x86_64")]
                        (Input::Numbers(x), Isa::Avx2) => {
                            x86::avx2(&this, &x[t * m.cols..], n - t, list, &mut sums)
                        }
                        (Input::Numbers(x), _) => {
                            any::<Portable, 1>(&this, &x[t * m.cols..], list, &mut sums)
                        }
                        #[cfg(target_arch = "x86_64")]
                        (Input::Bytes(x), Isa::Avx512) => {
                            x86::bytes_avx512(&this, &x[t * m.cols..], list, &mut sums)
                        }
                        #[cfg(target_arch = "x86_64")]
                        (Input::Bytes(x), Isa::Avx2) => {
                            x86::bytes_avx2(&this, &x[t * m.cols..], list, &mut sums)
                        }
                        (Input::Bytes(x), _) => bytes::<Portable>(&this, &x[t * m.cols..], list, &mut sums),
                    }
                };
                sums[..took]
                    .iter()
                    .enumerate()
                    .for_each(|(i, sum)| sink(row, part.start == all.start, t + i, *sum));
                t += took;
            }
        }
        row += 1;
    }
}

/// Places, scales and beside each scale `−z s` (with f32 scales `z`) of the kept groups of a piece. They are written well before they are
/// read: a number read back right after the vector that holds it was stored has to wait for the store.
#[repr(align(64))]
pub(super) struct List {
    scales: [f32; PIECE + 32],
    offsets: [f32; PIECE + 32],
    places: [u16; PIECE + 32],
    zeros: [u8; PIECE + 32],
}

impl List {
    /// An empty one. Clearing it takes as long as 500 groups: once per task, not per segment.
    pub(super) fn new() -> Self {
        Self {
            scales: [0.0; PIECE + 32],
            offsets: [0.0; PIECE + 32],
            places: [0; PIECE + 32],
            zeros: [0; PIECE + 32],
        }
    }
}

/// What stays the same for all segments.
pub(super) struct Call<'a> {
    pub(super) m: &'a SparseGroups,
    pub(super) isa: Isa,
    pub(super) x: Input<'a>,
    pub(super) n: usize,
}

/// Activations as given, or as bytes (see `pack_bytes`).
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    Numbers(&'a [f32]),
    Bytes(&'a [u8]),
}

/// A part of a row's kept groups.
struct Row<'a> {
    m: &'a SparseGroups,
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

    /// # Safety
    /// AVX-512 as in [`Isa::Avx512`] and VNNI; see [`bytes`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,avx512vnni,popcnt")]
    pub(super) unsafe fn bytes_avx512(
        row: &Row<'_>,
        x: &[u8],
        list: &mut List,
        sums: &mut [f32; 8],
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe { bytes::<Avx512>(row, x, list, sums) }
    }

    /// # Safety
    /// AVX2 and FMA; see [`bytes`].
    #[target_feature(enable = "avx2,fma,popcnt")]
    pub(super) unsafe fn bytes_avx2(row: &Row<'_>, x: &[u8], list: &mut List, sums: &mut [f32; 8]) -> usize {
        // SAFETY: the caller's promise.
        unsafe { bytes::<Avx2>(row, x, list, sums) }
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
        match (row.m.bits, row.m.group, row.m.wide_scales) {
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
        let at = match self.m.places {
            Places::Bitmap(_) => self.m.row_index[self.row] as usize,
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
        match &self.m.places {
            Places::Index(index) => {
                let run = walk.at..self.part.end.min(walk.at + PIECE);
                walk.at = run.end;
                let places = &index.as_slice()[run.clone()];
                list.places[..places.len()].copy_from_slice(places);
                Some(run).filter(|r| !r.is_empty())
            }
            Places::Bitmap(bits) => {
                let words = (self.m.cols / self.m.group).div_ceil(32);
                let line = &bits.as_slice()[self.row * words..(self.row + 1) * words];
                // SAFETY: a prefetch never faults.
                unsafe { L::prefetch(line.as_ptr().cast(), AHEAD / 16) };
                while let Some(piece) = line.get(walk.piece * (PIECE / 32)..).filter(|p| !p.is_empty()) {
                    let piece = &piece[..piece.len().min(PIECE / 32)];
                    let mut count = 0;
                    for (i, word) in piece.iter().enumerate() {
                        let base = (walk.piece * PIECE + i * 32) as u16;
                        // SAFETY: at most `32 i` places are listed, and the list has room for 32 more than a piece.
                        unsafe { L::positions(*word, base, list.places.as_mut_ptr().add(count)) };
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
            scales::<L, BITS, WIDE>(row.m, these.clone(), list);
            run::<L, N, BITS, GROUP, WIDE>(row.m, these, list, x.as_ptr(), &mut acc);
        }
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = L::sum(L::add(acc[0], acc[1]));
        }
    }
}

/// One token's sum over a part of a row, with activations as bytes: four bits, groups of 16, f16 scales. Four groups a step: per step
/// 12 vector operations and 11 loads, where exact activations need 18 and 20.
///
/// # Safety
/// The instructions of `L`; the part lies in the row; `x` holds a token.
#[inline(always)]
unsafe fn bytes<L: Lanes>(row: &Row<'_>, x: &[u8], list: &mut List, sums: &mut [f32; 8]) -> usize {
    let m = row.m;
    let mut walk = row.start();
    // SAFETY: as in `row_part`. Up to three groups behind the run are read: they have scale 0, place 0 and codes within the padding.
    unsafe {
        let mut acc = [L::zero(); 2];
        while let Some(these) = row.next::<L>(&mut walk, list) {
            scales_and_zeros::<L>(m, these.clone(), list);
            let n = these.len();
            let skip = these.start % 16;
            for i in n..n.next_multiple_of(4) {
                (list.scales[skip + i], list.places[i]) = (0.0, 0);
            }
            let codes = m.codes.as_slice().as_ptr().add(these.start * 8);
            let (scales, zeros) = (list.scales.as_ptr().add(skip), list.zeros.as_ptr().add(skip));
            let places = list.places.as_ptr();
            let mut i = 0;
            while i < n {
                L::prefetch(codes.add(8 * i), AHEAD);
                acc[0] = four::<L>(codes, zeros, scales, places, x, i, acc[0]);
                if i + 4 < n {
                    acc[1] = four::<L>(codes, zeros, scales, places, x, i + 4, acc[1]);
                }
                i += 8;
            }
        }
        sums[0] = L::sum(L::add(acc[0], acc[1]));
    }
    1
}

/// Adds groups `i` to `i + 3` to `acc`.
///
/// # Safety
/// The instructions of `L`; four groups are listed there, and 64 bytes of codes readable.
#[inline(always)]
unsafe fn four<L: Lanes>(
    codes: *const u8,
    zeros: *const u8,
    scales: *const f32,
    places: *const u16,
    x: &[u8],
    i: usize,
    acc: L::F,
) -> L::F {
    // SAFETY: the caller's promise; places are below `cols / 16`. Volatile for the reason given in `one`.
    unsafe {
        let x = [0, 1, 2, 3]
            .map(|j| x.as_ptr().wrapping_add(usize::from(places.add(i + j).read_volatile()) * 16));
        let dots = L::four_groups(codes.add(8 * i), zeros.add(i), x);
        L::fma(L::to_f(dots), L::spread4(scales.add(i)), acc)
    }
}

/// Fills scales and zero points of the groups `range` (at most a piece), from entry `range.start % 16` on.
///
/// # Safety
/// The instructions of `L`; `range` exists; four bits and f16 scales.
#[inline(always)]
unsafe fn scales_and_zeros<L: Lanes>(m: &SparseGroups, range: Range<usize>, list: &mut List) {
    let (stored, zeros) = (m.scales.as_slice().as_ptr(), m.zeros.as_slice());
    let begin = range.start & !15;
    assert!(range.end - begin <= PIECE + 16, "the groups fit the list");
    for first in (begin..range.end).step_by(16) {
        // SAFETY: as in `scales`.
        unsafe {
            L::prefetch(stored.add(2 * first), AHEAD / 4);
            L::prefetch(zeros.as_ptr().wrapping_add(first / 2), AHEAD / 16);
            L::store(list.scales.as_mut_ptr().add(first - begin), L::scales_f16(stored.add(2 * first)));
        }
        let to = &mut list.zeros[first - begin..][..16];
        match m.fixed_zero {
            Some(z) => to.fill(z),
            // SAFETY: eight bytes from there on are readable thanks to the padding, and `to` has sixteen. One vector, not
            // bytes: four are read back at once, which would have to wait for four stores.
            None => unsafe { L::unpack(zeros.as_ptr().add(first / 2), to.as_mut_ptr()) },
        }
    }
}

/// Fills the scales and offsets of the groups `range` (at most a piece) from entry `range.start % 16` on.
///
/// # Safety
/// The instructions of `L`; `range` exists.
#[inline(always)]
unsafe fn scales<L: Lanes, const BITS: u32, const WIDE: bool>(
    m: &SparseGroups,
    range: Range<usize>,
    list: &mut List,
) {
    let (stored, zeros) = (m.scales.as_slice().as_ptr(), m.zeros.as_slice().as_ptr());
    let begin = range.start & !15;
    assert!(range.end - begin <= PIECE + 16, "the groups fit the list");
    for first in (begin..range.end).step_by(16) {
        // SAFETY: sixteen scales and zero points from `first` on are readable thanks to the padding of the arrays, and the list has
        // room for sixteen more than a piece on either side.
        unsafe {
            let z = match m.fixed_zero {
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
unsafe fn run<L: Lanes, const N: usize, const BITS: u32, const GROUP: usize, const WIDE: bool>(
    m: &SparseGroups,
    range: Range<usize>,
    list: &List,
    x: *const f32,
    sums: &mut [[L::F; 2]; N],
) {
    let size = if GROUP == 0 { m.group } else { GROUP };
    let bytes = size * BITS as usize / 8;
    let skip = range.start % 16;
    let mut acc = *sums;
    // SAFETY: the caller's promise; `i` stays below the number of groups.
    unsafe {
        let of = Run {
            cols: m.cols,
            size,
            bytes,
            codes: m.codes.as_slice().as_ptr().add(range.start * bytes),
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
