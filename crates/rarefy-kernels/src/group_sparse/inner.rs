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
const AHEAD: usize = 2048;

/// Sums of the rows in `rows` over the kept groups in `groups`, which lie in one segment: `sink(row, begins, token, sum)` for each row
/// with a group there; `begins` when the row's first group is among them.
pub(super) fn segment(
    m: &SparseGroups,
    isa: Isa,
    groups: Range<usize>,
    rows: Range<usize>,
    x: &[f32],
    n: usize,
    mut sink: impl FnMut(usize, bool, usize, f32),
) {
    assert!(groups.start < groups.end && groups.end <= m.kept, "the groups exist");
    assert_eq!(x.len(), n * m.cols, "x is [n, cols]");
    let mut row = if rows.len() == 1 { rows.start } else { m.row_of(groups.start) };
    let mut list = [0u16; PIECE + 32];
    while row < rows.end && (m.row_index[row] as usize) < groups.end {
        let all = m.row_index[row] as usize..m.row_index[row + 1] as usize;
        let part = groups.start.max(all.start)..groups.end.min(all.end);
        if !part.is_empty() {
            let mut t = 0;
            while t < n {
                let left = n - t;
                let x = &x[t * m.cols..];
                let mut sums = [0.0; 8];
                // SAFETY: the path is available, as `forward_balanced` checked. `part` lies in the row, `x` holds as many tokens as the
                // instance takes.
                let took = unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => x86::avx512(m, row, part.clone(), x, left, &mut list, &mut sums),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => x86::avx2(m, row, part.clone(), x, left, &mut list, &mut sums),
                        _ if left >= 2 => {
                            row_part_any::<Portable, 2>(m, row, part.clone(), x, &mut list, &mut sums)
                        }
                        _ => row_part_any::<Portable, 1>(m, row, part.clone(), x, &mut list, &mut sums),
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

type List = [u16; PIECE + 32];

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::quantised::lanes::avx2::Avx2;
    use crate::quantised::lanes::avx512::Avx512;

    /// # Safety
    /// AVX-512 as in [`Isa::Avx512`]; see [`row_part`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
    pub(super) unsafe fn avx512(
        m: &SparseGroups,
        row: usize,
        part: Range<usize>,
        x: &[f32],
        left: usize,
        list: &mut List,
        sums: &mut [f32; 8],
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            match left {
                1 => row_part_any::<Avx512, 1>(m, row, part, x, list, sums),
                2 | 3 => row_part_any::<Avx512, 2>(m, row, part, x, list, sums),
                4..8 => row_part_any::<Avx512, 4>(m, row, part, x, list, sums),
                _ => row_part_any::<Avx512, 8>(m, row, part, x, list, sums),
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; see [`row_part`].
    #[target_feature(enable = "avx2,fma,popcnt")]
    pub(super) unsafe fn avx2(
        m: &SparseGroups,
        row: usize,
        part: Range<usize>,
        x: &[f32],
        left: usize,
        list: &mut List,
        sums: &mut [f32; 8],
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            match left {
                1 => row_part_any::<Avx2, 1>(m, row, part, x, list, sums),
                _ => row_part_any::<Avx2, 2>(m, row, part, x, list, sums),
            }
        }
    }
}

/// Chooses the instance.
///
/// # Safety
/// As [`row_part`].
#[inline(always)]
unsafe fn row_part_any<L: Lanes, const N: usize>(
    m: &SparseGroups,
    row: usize,
    part: Range<usize>,
    x: &[f32],
    list: &mut List,
    sums: &mut [f32; 8],
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match (m.bits, m.group) {
            (4, 16) => row_part::<L, N, 4, 16>(m, row, part, x, list, sums),
            (4, 32) => row_part::<L, N, 4, 32>(m, row, part, x, list, sums),
            (4, _) => row_part::<L, N, 4, 0>(m, row, part, x, list, sums),
            (_, 16) => row_part::<L, N, 8, 16>(m, row, part, x, list, sums),
            _ => row_part::<L, N, 8, 0>(m, row, part, x, list, sums),
        }
    }
    N
}

/// Sums of `N` tokens over the kept groups `part` of row `row`. `GROUP` is the size of a group, or 0 to read it from `m`.
///
/// # Safety
/// The instructions of `L`; `part` lies in the row; `x` holds `N` tokens.
#[inline(always)]
unsafe fn row_part<L: Lanes, const N: usize, const BITS: u32, const GROUP: usize>(
    m: &SparseGroups,
    row: usize,
    part: Range<usize>,
    x: &[f32],
    list: &mut List,
    sums: &mut [f32; 8],
) {
    // SAFETY: the arrays come from a `GroupSparse`, whose constructors guarantee that a row has as many places as groups, all below
    // `cols / group`; lists are read as far as they were written.
    unsafe {
        let mut acc = [[L::zero(); 2]; N];
        match &m.places {
            Places::Index(index) => {
                run::<L, N, BITS, GROUP>(
                    m,
                    part.clone(),
                    index.as_slice()[part].as_ptr(),
                    x.as_ptr(),
                    &mut acc,
                );
            }
            Places::Bitmap(bits) => {
                let words = (m.cols / m.group).div_ceil(32);
                let line = &bits.as_slice()[row * words..(row + 1) * words];
                let mut begin = m.row_index[row] as usize;
                for (piece, words) in line.chunks(PIECE / 32).enumerate() {
                    let mut count = 0;
                    for (i, word) in words.iter().enumerate() {
                        L::positions(*word, (piece * PIECE + i * 32) as u16, list.as_mut_ptr().add(count));
                        count += word.count_ones() as usize;
                    }
                    let these = part.start.max(begin)..part.end.min(begin + count);
                    if !these.is_empty() {
                        let places = list[these.start - begin..these.end - begin].as_ptr();
                        run::<L, N, BITS, GROUP>(m, these, places, x.as_ptr(), &mut acc);
                    }
                    begin += count;
                }
            }
        }
        for (sum, acc) in sums.iter_mut().zip(acc) {
            *sum = L::sum(L::add(acc[0], acc[1]));
        }
    }
}

/// What one group needs to know; a plain struct, because a closure would not take over the instruction set of its caller.
struct Run<'a> {
    m: &'a SparseGroups,
    size: usize,
    bytes: usize,
    /// Codes, scales and zero points of the 16 groups from `first` on.
    codes: *const u8,
    scales: [f32; 16],
    nibbles: u64,
    zeros: *const u8,
    /// Places of these groups; entries before the run's begin are not read.
    places: *const u16,
    x: *const f32,
}

impl Run<'_> {
    /// Adds group `i` of the 16 to chain `parity` (for larger groups: to both).
    ///
    /// # Safety
    /// The instructions of `L`; the group exists, its place is below `cols / group`, and `x` points to `N` tokens.
    #[inline(always)]
    unsafe fn one<L: Lanes, const N: usize, const BITS: u32>(
        &self,
        i: usize,
        parity: usize,
        acc: &mut [[L::F; 2]; N],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let z = match self.m.fixed_zero {
                Some(z) => z,
                None if BITS == 4 => (self.nibbles >> (4 * i) & 15) as u8,
                None => self.zeros.add(i).read(),
            };
            let scale = L::splat(self.scales[i]);
            let p = self.codes.add(i * self.bytes);
            let x = self.x.add(usize::from(self.places.wrapping_add(i).read()) * self.size);
            for h in 0..self.size / 16 {
                let w = if BITS == 4 { L::codes4(p.add(8 * h), z) } else { L::codes8(p.add(16 * h), z) };
                let w = L::mul(w, scale);
                let chain = if self.size == 16 { parity } else { h & 1 };
                for (t, acc) in acc.iter_mut().enumerate() {
                    acc[chain] = L::fma(w, L::load(x.add(t * self.m.cols + 16 * h)), acc[chain]);
                }
            }
            if self.size % 16 != 0 {
                let at = self.size - 8;
                let w = if BITS == 4 { L::codes4_low8(p.add(at / 2), z) } else { L::codes8(p.add(at), z) };
                let w = L::mul(w, scale);
                for (t, acc) in acc.iter_mut().enumerate() {
                    acc[parity] = L::fma(w, L::load_low8(x.add(t * self.m.cols + at)), acc[parity]);
                }
            }
        }
    }
}

/// Adds the groups `range`, standing at `places`, to the sums.
///
/// # Safety
/// The instructions of `L`; `range` exists, `places` has as many entries below `cols / group`, `x` points to `N` tokens.
#[inline(always)]
unsafe fn run<L: Lanes, const N: usize, const BITS: u32, const GROUP: usize>(
    m: &SparseGroups,
    range: Range<usize>,
    places: *const u16,
    x: *const f32,
    sums: &mut [[L::F; 2]; N],
) {
    let size = if GROUP == 0 { m.group } else { GROUP };
    let bytes = size * BITS as usize / 8;
    let (codes, scales, zeros) =
        (m.codes.as_slice().as_ptr(), m.scales.as_slice().as_ptr(), m.zeros.as_slice().as_ptr());
    let mut acc = *sums;
    let mut begin = range.start;
    while begin < range.end {
        // Sixteen groups from a multiple of 16 on share one load of scales and one of zero points.
        let first = begin & !15;
        let end = range.end.min(first + 16);
        // SAFETY: groups below `range.end` exist; sixteen scales and zero points from `first` on are readable thanks to the
        // padding of the arrays.
        unsafe {
            let mut of = Run {
                m,
                size,
                bytes,
                codes: codes.add(first * bytes),
                scales: [0.0; 16],
                nibbles: 0,
                zeros: zeros.wrapping_add(first),
                places: places.wrapping_add(first).wrapping_sub(range.start),
                x,
            };
            for l in 0..(bytes / 4).max(1) {
                L::prefetch(of.codes, AHEAD + 64 * l);
            }
            if m.wide_scales {
                L::prefetch(scales.add(4 * first), AHEAD / 4);
                L::store(of.scales.as_mut_ptr(), L::load(scales.add(4 * first).cast()));
            } else {
                L::prefetch(scales.add(2 * first), AHEAD / 4);
                L::store(of.scales.as_mut_ptr(), L::scales_f16(scales.add(2 * first)));
            }
            if BITS == 4 && m.fixed_zero.is_none() {
                of.nibbles = u64::from_le(zeros.add(first / 2).cast::<u64>().read_unaligned());
            }
            if end - begin == 16 {
                for pair in 0..8 {
                    of.one::<L, N, BITS>(2 * pair, 0, &mut acc);
                    of.one::<L, N, BITS>(2 * pair + 1, 1, &mut acc);
                }
            } else {
                for i in begin - first..end - first {
                    if i & 1 == 0 {
                        of.one::<L, N, BITS>(i, 0, &mut acc);
                    } else {
                        of.one::<L, N, BITS>(i, 1, &mut acc);
                    }
                }
            }
        }
        begin = end;
    }
    *sums = acc;
}
