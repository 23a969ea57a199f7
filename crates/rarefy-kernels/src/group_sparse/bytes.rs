//! Activations as bytes: four bits, groups of 16, f16 scales.
//!
//! The flat list of kept groups is worked off in blocks of [`BLOCK`], whatever the rows: a block's sixteen dot products end up in the
//! sixteen lanes of one register, so that conversion, scale and addition are paid once for sixteen groups. Where a row ends inside a block, the
//! lanes of both rows are added apart. The order of additions depends on the matrix alone.
//!
//! The places of a segment are listed while the segment before it is worked off: places read back right after the vectors that hold
//! them were stored have to wait for the stores, which took as long as 40 % of the products.

use std::ops::Range;

use rarefy_sparsity::formats::quantised::{GroupSparse, Scales};

use super::{PAD, Places, SEGMENT, Sink, SparseGroups};
use crate::quantised::lanes::Lanes;
use crate::quantised::lanes::portable::Portable;
use crate::{AlignedBuf, Isa};

/// Groups of a block.
const BLOCK: usize = 16;
/// Bytes of codes between a load and its prefetch; the other arrays are as far ahead in groups.
const AHEAD: usize = 2048;
/// Entries before the first and behind the last place of a list: a vector of places may begin before and end behind the segment.
const MARGIN: usize = 32;

/// The lane of group `g` of a block: the sums come out transposed, 4 x 4.
const fn lane(g: usize) -> usize {
    g % 4 * 4 + g / 4
}

/// `BELOW[k]`: the lanes of the first `k` groups of a block.
static BELOW: [u16; BLOCK + 1] = {
    let mut out = [0; BLOCK + 1];
    let mut k = 0;
    while k < BLOCK {
        out[k + 1] = out[k] | 1 << lane(k);
        k += 1;
    }
    out
};

/// The arrays of a matrix in the order in which they are worked off, whole blocks; missing groups have scale 0. They share one buffer, so
/// that only one tail of it is left on small pages.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    data: AlignedBuf<u8>,
    /// Where the scales begin: 16 f16 per block, by lane. The zero points are before them: 8 bytes per block, nibbles as in the codes; none when
    /// all are 8.
    scales: usize,
    /// Where the codes begin: 128 bytes per block. Byte `64 h + 16 j + k` holds code `k` of group `8 h + j` below and of group `8 h + 4 + j` above.
    codes: usize,
}

impl Packed {
    /// `None` for other than four bits, groups of 16 and f16 scales, and for more than 2^19 columns.
    pub(super) fn new(matrix: &GroupSparse) -> Option<Self> {
        let (q, parts) = (matrix.settings(), matrix.parts());
        let Scales::F16(given) = parts.scales.as_ref() else { return None };
        // Doubled places have 16 bits.
        if (q.bits, q.group) != (4, 16) || matrix.cols() / BLOCK > 1 << 15 {
            return None;
        }
        let blocks = matrix.kept().div_ceil(BLOCK);
        let scales = if q.fixed_zero().is_some() { 0 } else { (8 * blocks).next_multiple_of(64) };
        let codes = scales + (32 * blocks).next_multiple_of(64);
        let mut data = AlignedBuf::zeroed(codes + 128 * blocks + PAD);
        let (rest, to_codes) = data.as_mut_slice().split_at_mut(codes);
        let (to_zeros, to_scales) = rest.split_at_mut(scales);
        for (group, scale) in given.iter().enumerate().take(matrix.kept()) {
            let (block, g) = (group / BLOCK, group % BLOCK);
            let (h, j, shift) = (g / 8, g % 4, g % 8 / 4 * 4);
            let to = &mut to_codes[128 * block + 64 * h + 16 * j..][..16];
            for (k, to) in to.iter_mut().enumerate() {
                *to |= (parts.values[8 * group + k / 2] >> (k % 2 * 4) & 0xf) << shift;
            }
            to_scales[32 * block + 2 * lane(g)..][..2].copy_from_slice(&scale.to_le_bytes());
            if !to_zeros.is_empty() {
                let zero = parts.zeros[group / 2] >> (group % 2 * 4) & 0xf;
                to_zeros[8 * block + 4 * h + j] |= zero << shift;
            }
        }
        Some(Self { data, scales, codes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// The zero points of all blocks, or `None` when all are 8.
    fn zeros(&self) -> Option<*const u8> {
        (self.scales > 0).then(|| self.data.as_slice().as_ptr())
    }
    fn scales(&self) -> *const u8 {
        self.data.as_slice()[self.scales..].as_ptr()
    }
    fn codes(&self) -> *const u8 {
        self.data.as_slice()[self.codes..].as_ptr()
    }
}

/// What stays the same for all segments.
pub(super) struct Call<'a> {
    pub(super) m: &'a SparseGroups,
    pub(super) packed: &'a Packed,
    pub(super) isa: Isa,
    /// `n` tokens of `cols` bytes, `128 + round(x / step)`.
    pub(super) x: &'a [u8],
    pub(super) n: usize,
}

/// Sums of the rows in `rows` over each of `segments`, a call of `sink` for each row with a group there and each token.
pub(super) fn run(call: &Call<'_>, segments: Range<usize>, rows: Range<usize>, sink: &mut Sink<'_>) {
    assert_eq!(call.x.len(), call.n * call.m.cols, "x is [n, cols]");
    // SAFETY: the path is available, as the caller checked.
    unsafe {
        match call.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::avx512(call, segments, rows, sink),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(call, segments, rows, sink),
            _ => any::<Portable>(call, segments, rows, sink),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::quantised::lanes::avx2::Avx2;
    use crate::quantised::lanes::avx512::Avx512;

    /// # Safety
    /// AVX-512 as in [`Isa::Avx512`] and VNNI; see [`any`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,avx512vnni,popcnt")]
    pub(super) unsafe fn avx512(
        call: &Call<'_>,
        segments: Range<usize>,
        rows: Range<usize>,
        sink: &mut Sink<'_>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { any::<Avx512>(call, segments, rows, sink) }
    }

    /// # Safety
    /// AVX2 and FMA; see [`any`].
    #[target_feature(enable = "avx2,fma,popcnt")]
    pub(super) unsafe fn avx2(
        call: &Call<'_>,
        segments: Range<usize>,
        rows: Range<usize>,
        sink: &mut Sink<'_>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { any::<Avx2>(call, segments, rows, sink) }
    }
}

/// The places of a segment's groups, doubled: an address may scale an index by 8, not by 16.
#[repr(align(64))]
struct List {
    places: [u16; MARGIN + SEGMENT + 2 * MARGIN],
    /// The row of the first of them.
    row: usize,
}

impl List {
    const EMPTY: Self = Self { places: [0; MARGIN + SEGMENT + 2 * MARGIN], row: 0 };

    /// Lists segment `s`, whose first group lies in row `from` or later; behind the last group of the matrix come zeros.
    ///
    /// # Safety
    /// The instructions of `L`.
    #[inline(always)]
    unsafe fn fill<L: Lanes>(&mut self, m: &SparseGroups, s: usize, from: usize) {
        let groups = s * SEGMENT..m.kept.min((s + 1) * SEGMENT);
        self.row = m.row_from(from, groups.start);
        match &m.places {
            Places::Index(index) => {
                let places = &index.as_slice()[groups.clone()];
                self.places[MARGIN..].iter_mut().zip(places).for_each(|(to, place)| *to = 2 * place);
            }
            Places::Bitmap(bits) => {
                let words = (m.cols / m.group).div_ceil(32);
                let mut row = self.row;
                let mut at = m.row_index[row] as usize;
                'segment: loop {
                    let line = &bits.as_slice()[row * words..(row + 1) * words];
                    // SAFETY: a prefetch never faults.
                    unsafe { L::prefetch(line.as_ptr().cast(), AHEAD / 16) };
                    for (i, word) in line.iter().enumerate() {
                        let count = word.count_ones() as usize;
                        if at + count > groups.start {
                            // The first word may begin up to 31 groups before the segment.
                            let to = MARGIN + at - groups.start;
                            let room = &mut self.places[to..][..MARGIN];
                            // SAFETY: the room is as long as the widest store.
                            unsafe { L::positions::<2>(*word, 64 * i as u16, room.as_mut_ptr()) };
                        }
                        at += count;
                        if at >= groups.end {
                            break 'segment;
                        }
                    }
                    row += 1;
                }
            }
        }
        self.places[MARGIN + groups.len()..][..BLOCK].fill(0);
    }
}

/// # Safety
/// The instructions of `L`; `x` holds `n` tokens.
#[inline(always)]
unsafe fn any<L: Lanes>(call: &Call<'_>, segments: Range<usize>, rows: Range<usize>, sink: &mut Sink<'_>) {
    if segments.is_empty() {
        return;
    }
    let mut lists = [const { List::EMPTY }; 2];
    let [this, next] = &mut lists;
    let (mut this, mut next) = (this, next);
    // SAFETY: the caller's promise.
    unsafe {
        this.fill::<L>(call.m, segments.start, call.m.row_of(segments.start * SEGMENT));
        for s in segments.clone() {
            if s + 1 < segments.end {
                next.fill::<L>(call.m, s + 1, this.row);
            }
            let mut t = 0;
            while t < call.n {
                t += match call.n - t {
                    1 => segment::<L, 1>(call, s, rows.clone(), t, this, sink),
                    2 | 3 => segment::<L, 2>(call, s, rows.clone(), t, this, sink),
                    _ => segment::<L, 4>(call, s, rows.clone(), t, this, sink),
                };
            }
            std::mem::swap(&mut this, &mut next);
        }
    }
}

/// `N` tokens from `token` on over one segment; returns `N`.
///
/// # Safety
/// The instructions of `L`; the segment is the one listed; `x` holds `token + N` tokens.
#[inline(always)]
unsafe fn segment<L: Lanes, const N: usize>(
    call: &Call<'_>,
    s: usize,
    rows: Range<usize>,
    token: usize,
    list: &List,
    sink: &mut Sink<'_>,
) -> usize {
    let Call { m, packed, x, .. } = *call;
    let (begin, end) = (s * SEGMENT, m.kept.min((s + 1) * SEGMENT).min(m.row_index[rows.end] as usize));
    let mut row = list.row.max(rows.start);
    let mut at = begin.max(m.row_index[row] as usize);
    // SAFETY: the instructions of `L`.
    let zero = unsafe { L::zero() };
    let mut acc = [zero; N];
    // The block that the row before ended in.
    let (mut dots, mut scales) = ([zero; N], zero);
    // SAFETY: whole blocks are stored, their places are listed and below `cols / 16`, so sixteen bytes of each token are readable there.
    unsafe {
        let x = x.as_ptr().add(token * m.cols);
        let places = list.places.as_ptr().add(MARGIN);
        let load = |block: usize| packed.scales().add(32 * block);
        if !at.is_multiple_of(BLOCK) && at < end {
            dots = packed.dots::<L, N>(at / BLOCK, x, m.cols, places.add(at / BLOCK * BLOCK - begin));
            scales = L::scales_f16(load(at / BLOCK));
        }
        while at < end {
            let stop = end.min(m.row_index[row + 1] as usize);
            let started = at % BLOCK;
            if started > 0 && at < stop {
                let until = stop.min(at - started + BLOCK);
                let lanes = BELOW[until - (at - started)] & !BELOW[started];
                for t in 0..N {
                    acc[t] = L::fma_where(lanes, dots[t], scales, acc[t]);
                }
                at = until;
            }
            while at + BLOCK <= stop {
                let dots = packed.dots::<L, N>(at / BLOCK, x, m.cols, places.add(at - begin));
                let scales = L::scales_f16(load(at / BLOCK));
                for t in 0..N {
                    acc[t] = L::fma(dots[t], scales, acc[t]);
                }
                at += BLOCK;
            }
            if at < stop {
                dots = packed.dots::<L, N>(at / BLOCK, x, m.cols, places.add(at - begin));
                scales = L::scales_f16(load(at / BLOCK));
                for t in 0..N {
                    acc[t] = L::fma_where(BELOW[stop - at], dots[t], scales, acc[t]);
                }
                at = stop;
            }
            if m.row_index[row] < m.row_index[row + 1] {
                for (t, acc) in acc.iter_mut().enumerate() {
                    sink(s, row, m.row_index[row] as usize >= begin, token + t, L::sum(*acc));
                    *acc = zero;
                }
            }
            row += 1;
        }
    }
    N
}

impl Packed {
    /// The dot products of a block's groups with `N` tokens of `cols` bytes, by [`lane`].
    ///
    /// # Safety
    /// The instructions of `L`; the block exists, 16 doubled places are readable, and at each of them 16 bytes of every token.
    #[inline(always)]
    unsafe fn dots<L: Lanes, const N: usize>(
        &self,
        block: usize,
        x: *const u8,
        cols: usize,
        places: *const u16,
    ) -> [L::F; N] {
        /// Four zero points of 8, twice.
        static EIGHT: [u8; 4] = [0x88; 4];
        // SAFETY: the caller's promise.
        unsafe {
            let codes = self.codes().add(128 * block);
            L::prefetch(codes, AHEAD);
            L::prefetch(codes, AHEAD + 64);
            L::prefetch(self.scales().add(32 * block), AHEAD / 4);
            let zeros = self.zeros().map(|zeros| zeros.add(8 * block));
            if let Some(zeros) = zeros.filter(|_| block.is_multiple_of(4)) {
                L::prefetch(zeros, AHEAD / 16 + 64);
            }
            let mut parts = [[L::splat_i(0); 4]; N];
            for h in 0..2 {
                let zeros = zeros.map_or(EIGHT.as_ptr(), |zeros| zeros.add(4 * h));
                let weights = L::nibble_weights(codes.add(64 * h), zeros);
                for (half, w) in weights.into_iter().enumerate() {
                    for (t, parts) in parts.iter_mut().enumerate() {
                        let (x, p) = (x.add(t * cols), places.add(8 * h + 4 * half));
                        // Volatile reads: otherwise the compiler gathers the places in a vector and spends three times as
                        // long to take them out again.
                        let a = x.add(8 * usize::from(p.read_volatile()));
                        let b = x.add(8 * usize::from(p.add(1).read_volatile()));
                        let c = x.add(8 * usize::from(p.add(2).read_volatile()));
                        let d = x.add(8 * usize::from(p.add(3).read_volatile()));
                        parts[2 * h + half] = L::dot_groups(w, [a, b, c, d]);
                    }
                }
            }
            let mut dots = [L::zero(); N];
            for t in 0..N {
                dots[t] = L::to_f(L::group_sums(parts[t]));
            }
            dots
        }
    }
}
