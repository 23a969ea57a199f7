//! Unstructured zeros over 8-bit codes: the dense int8 kernel, its registers rebuilt from bit masks.
//!
//! # Layout
//! Panels of 16 rows, one stream each: 16 f32 scales where they are per row; then for each group of columns its 16 f16 (or f32) scales where they are per
//! group, the masks of its steps of four columns (8 bytes), and the codes of their set bits as unsigned bytes around 128.
//!
//! # Roofline
//! Per weight at density `d`: `d + 1/8` bytes (and 2 / group), one product per token, zeros included. A step, 64 weights: the mask to its register
//! and `vpexpandb` take three operations of the shuffle port, the products one vector operation per token, `popcnt` and two additions move the pointers. That
//! is 3–4 cycles for one token: 45 G weights/s at 2.6 GHz, which is 19 GB/s at 70 % zeros and 10 GB/s at 90 %. A core reads about 14 GB/s: at
//! 70 % memory is the limit, at 90 % computing. A dense kernel gets 14 G weights/s from that memory: the bound of the gain is
//! 1 / (d + 1/8) = 2.4 at 70 % and, by memory alone, 4.5 at 90 %. AVX2 has no such instruction: eight table look-ups per step, some 25 cycles. Exact
//! activations cost 16 operations more per step and gain little over a dense kernel that is near memory with them.
//!
//! Measured on one shared Sapphire Rapids core, 11008 x 4096, scales per row, against the dense int8 kernel in the same run: 2.0 times as fast at 70 %
//! zeros (84 % of the read bandwidth) and 3.7 at 90 % (75 %) for one token, 1.8 and 2.0 for eight; with exact activations 1.2 and 0.95.
//!
//! Two sums per token alternate while there are at most four tokens, because one chain of byte products (5 cycles a link) would be longer than the step.
//! They are integers, so that this changes no bit.

use rarefy_sparsity::formats::quantised::{BitmaskInt8, ScaleSpan};
use rarefy_sparsity::formats::{BitmaskSettings, ScaleType};

use super::panel::{self, HEIGHT, Tile};
use super::{Activations, Call, Shape, activations};
use crate::error::product;
use crate::quantised::lanes::Lanes;
use crate::quantised::lanes::portable::Portable;
use crate::rows;
use crate::{AlignedBuf, Isa, KernelError, LinearKernel};

/// Columns of activations that share a scale, where scales of weights are per row.
pub(crate) const ROW_GROUP: usize = 128;
/// Bytes that an expansion may read behind the last code.
const READ_BEHIND: usize = 64;
/// Bytes between a load and its prefetch.
const AHEAD: usize = 4096;

/// A [`BitmaskInt8`] ready to run; see the module's head for layout and roofline. With scales per group it gives the same bits as
/// [`Quantised`](crate::Quantised) on the same weights, symmetric and of the same group.
#[derive(Debug, Clone)]
pub struct PanelInt8 {
    shape: Shape,
    by_row: bool,
    nnz: usize,
    /// Starts of the panels in `stream`.
    offsets: Vec<usize>,
    stream: AlignedBuf<u8>,
}

impl PanelInt8 {
    /// Rearranges `matrix` into streams.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] when the streams overflow.
    pub fn new(matrix: &BitmaskInt8, activations: Activations) -> Result<Self, KernelError> {
        let BitmaskSettings { span, scales } = matrix.settings();
        let (group, by_row) = match span {
            ScaleSpan::Row => (ROW_GROUP, true),
            ScaleSpan::Group(g) => (g, false),
        };
        let shape = Shape {
            rows: matrix.rows(),
            cols: matrix.cols(),
            bits: 8,
            group,
            fixed_zero: Some(128),
            wide_scales: scales == ScaleType::F32,
            exact: activations == Activations::Exact,
        };
        // Masks of whole groups, one byte per code, and at most 64 bytes of scales beside them.
        let masks = product(name(&shape), shape.groups(), group / 4 * 8 + 64)?;
        let all = product(name(&shape), matrix.n_panels(), masks.saturating_add(64))?;
        let all = all.checked_add(matrix.nnz() + READ_BEHIND).filter(|n| *n < isize::MAX as usize / 2);
        all.ok_or(KernelError::TooLarge { kernel: name(&shape), a: shape.rows, b: shape.cols })?;
        let mut bytes = Vec::new();
        let mut offsets = vec![0];
        for p in 0..matrix.n_panels() {
            fill(&shape, by_row, matrix, p, &mut bytes);
            offsets.push(bytes.len());
        }
        bytes.extend([0; READ_BEHIND]);
        Ok(Self { shape, by_row, nnz: matrix.nnz(), offsets, stream: AlignedBuf::from_slice(&bytes) })
    }

    /// How activations are treated.
    pub fn activations(&self) -> Activations {
        if self.shape.exact { Activations::Exact } else { Activations::Int8 }
    }

    /// [`LinearKernel::forward`] on a chosen code path.
    ///
    /// # Errors
    /// Those of `forward`, and [`KernelError::Isa`] when this CPU lacks the path.
    pub fn forward_with(
        &self,
        isa: Isa,
        x: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let call = Call { isa, x, n, y, scratch, needed: self.scratch_len(n) };
        call.run(
            self.name(),
            &self.shape,
            |task, tasks| rows::share_by(&self.offsets, task, tasks),
            |isa, p, x, n, tile| self.run(isa, p, x, n, tile),
        )
    }

    /// Fills `tile` from panel `p` and the packed activations of `n` tokens.
    fn run(&self, isa: Isa, p: usize, x: &[f32], n: usize, tile: &mut Tile) {
        let (shape, by_row) = (&self.shape, self.by_row);
        assert_eq!(x.len(), n * shape.groups() * activations::words_per_group(shape), "packed activations");
        assert!((1..=panel::most_tokens(isa)).contains(&n), "the tokens of a pass");
        let stream = self.stream.as_slice()[self.offsets[p]..].as_ptr();
        // SAFETY: `stream` points at a panel as `fill` wrote it, the bits of each mask counted by codes, with `READ_BEHIND` bytes after the last one;
        // the activations were checked above, and the path is available, as `forward_with` and `path` checked.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => x86::avx512(shape, by_row, stream, x, n, tile),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => x86::avx2(shape, by_row, stream, x, n, tile),
                _ => match n {
                    1 => panel::<Portable, 1>(shape, by_row, stream, x, tile),
                    2 => panel::<Portable, 2>(shape, by_row, stream, x, tile),
                    3 => panel::<Portable, 3>(shape, by_row, stream, x, tile),
                    4 => panel::<Portable, 4>(shape, by_row, stream, x, tile),
                    n => unreachable!("a portable pass has 1 to 4 tokens, got {n}"),
                },
            }
        }
    }
}

/// Appends the stream of panel `p`. Absent rows get scale 0.
fn fill(shape: &Shape, by_row: bool, matrix: &BitmaskInt8, p: usize, out: &mut Vec<u8>) {
    let height = HEIGHT.min(shape.rows - p * HEIGHT);
    let scale = |i: usize, g: usize| if i < height { matrix.scale(p * HEIGHT + i, g) } else { 0.0 };
    let (masks, codes) = matrix.panel(p);
    if by_row {
        out.extend((0..HEIGHT).flat_map(|i| if shape.cols > 0 { scale(i, 0) } else { 0.0 }.to_le_bytes()));
    }
    let (steps, mut next) = (shape.group / 4, 0);
    for g in 0..shape.groups() {
        if !by_row && shape.wide_scales {
            out.extend((0..HEIGHT).flat_map(|i| scale(i, g).to_le_bytes()));
        } else if !by_row {
            out.extend((0..HEIGHT).flat_map(|i| half::f16::from_f32(scale(i, g)).to_le_bytes()));
        }
        // The last group is filled up with steps that hold nothing.
        let mask = |step: usize| masks.get(g * steps + step).copied().unwrap_or(0);
        out.extend((0..steps).flat_map(|s| mask(s).to_ne_bytes()));
        let count: u32 = (0..steps).map(|s| mask(s).count_ones()).sum();
        let end = next + count as usize;
        out.extend(codes[next..end].iter().map(|c| (*c as u8) ^ 0x80));
        next = end;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::quantised::lanes::avx2::Avx2;
    use crate::quantised::lanes::avx512::Avx512;

    /// # Safety
    /// The instructions named; stream and activations as [`PanelInt8::run`] gives them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,avx512vnni,popcnt")]
    pub(super) unsafe fn avx512(
        shape: &Shape,
        by_row: bool,
        stream: *const u8,
        x: &[f32],
        n: usize,
        tile: &mut Tile,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match n {
                1 => panel::<Avx512, 1>(shape, by_row, stream, x, tile),
                2 => panel::<Avx512, 2>(shape, by_row, stream, x, tile),
                3 => panel::<Avx512, 3>(shape, by_row, stream, x, tile),
                4 => panel::<Avx512, 4>(shape, by_row, stream, x, tile),
                5 => panel::<Avx512, 5>(shape, by_row, stream, x, tile),
                6 => panel::<Avx512, 6>(shape, by_row, stream, x, tile),
                7 => panel::<Avx512, 7>(shape, by_row, stream, x, tile),
                8 => panel::<Avx512, 8>(shape, by_row, stream, x, tile),
                n => unreachable!("a pass has 1 to 8 tokens, got {n}"),
            }
        }
    }

    /// # Safety
    /// The instructions named; stream and activations as [`PanelInt8::run`] gives them.
    #[target_feature(enable = "avx2,fma,popcnt")]
    pub(super) unsafe fn avx2(
        shape: &Shape,
        by_row: bool,
        stream: *const u8,
        x: &[f32],
        n: usize,
        tile: &mut Tile,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match n {
                1 => panel::<Avx2, 1>(shape, by_row, stream, x, tile),
                2 => panel::<Avx2, 2>(shape, by_row, stream, x, tile),
                3 => panel::<Avx2, 3>(shape, by_row, stream, x, tile),
                n => unreachable!("an AVX2 pass has 1 to 3 tokens, got {n}"),
            }
        }
    }
}

/// Chooses the loop.
///
/// # Safety
/// The instructions of `L`; stream and activations as [`PanelInt8::run`] gives them.
#[inline(always)]
unsafe fn panel<L: Lanes, const N: usize>(
    shape: &Shape,
    by_row: bool,
    stream: *const u8,
    x: &[f32],
    tile: &mut Tile,
) {
    // SAFETY: the caller's promise.
    let sums = unsafe {
        match (shape.exact, N <= 4) {
            (true, _) => numbers::<L, N>(shape, by_row, stream, x),
            (false, true) => integers::<L, N, 2>(shape, by_row, stream, x),
            (false, false) => integers::<L, N, 1>(shape, by_row, stream, x),
        }
    };
    for (sum, out) in sums.into_iter().zip(tile.chunks_exact_mut(HEIGHT)) {
        // SAFETY: `out` has 16 elements.
        unsafe { L::store(out.as_mut_ptr(), sum) };
    }
}

/// Where a panel's stream is read.
struct Cursor<L: Lanes> {
    masks: *const u8,
    codes: *const u8,
    scales: L::F,
}

impl<L: Lanes> Cursor<L> {
    /// # Safety
    /// The instructions of `L`; a panel at `stream`.
    #[inline(always)]
    unsafe fn new(by_row: bool, stream: *const u8) -> Self {
        // SAFETY: a panel begins with 16 f32 where scales are per row.
        unsafe {
            let scales = if by_row { L::load(stream.cast()) } else { L::zero() };
            let begin = if by_row { stream.add(64) } else { stream };
            Self { masks: begin, codes: begin, scales }
        }
    }

    /// Steps to the next group: its scales, its masks, then its codes.
    ///
    /// # Safety
    /// The instructions of `L`; the codes of the group before were all read.
    #[inline(always)]
    unsafe fn group(&mut self, shape: &Shape, by_row: bool) {
        // SAFETY: groups follow each other.
        unsafe {
            let mut p = self.codes;
            if !by_row {
                self.scales = if shape.wide_scales { L::load(p.cast()) } else { L::scales_f16(p) };
                p = p.add(if shape.wide_scales { 64 } else { 32 });
            }
            self.masks = p;
            self.codes = p.add(shape.group * 2);
            // The codes ask for what lies ahead of them; what lies ahead of the head is asked for here.
            for line in (0..shape.group * 2 + 64).step_by(64) {
                L::prefetch(p, AHEAD + line);
            }
        }
    }

    /// The codes of four columns of 16 rows, around 128.
    ///
    /// # Safety
    /// The instructions of `L`; a step of the group is left.
    #[inline(always)]
    unsafe fn step(&mut self) -> L::I {
        // SAFETY: the bits of the masks count the codes, so `codes` stays in the stream, behind which 64 bytes are readable.
        unsafe {
            L::prefetch(self.codes, AHEAD);
            let mask = self.masks.cast::<u64>().read_unaligned();
            self.masks = self.masks.add(8);
            let w = L::expand(mask, self.codes);
            self.codes = self.codes.add(mask.count_ones() as usize);
            w
        }
    }
}

/// Eight-bit activations, as in the dense kernel; `C` sums per token take turns.
///
/// # Safety
/// The instructions of `L`; stream and activations as [`PanelInt8::run`] gives them.
#[inline(always)]
unsafe fn integers<L: Lanes, const N: usize, const C: usize>(
    shape: &Shape,
    by_row: bool,
    stream: *const u8,
    x: &[f32],
) -> [L::F; N] {
    // SAFETY: per group `group / 4` steps, an even number, and `N (group / 4 + 2)` words of activations.
    unsafe {
        let mut y = [L::zero(); N];
        let mut x = x.as_ptr().cast::<i32>();
        let words = shape.group / 4;
        let mut cursor = Cursor::<L>::new(by_row, stream);
        for _ in 0..shape.groups() {
            cursor.group(shape, by_row);
            let tail = x.add(words * N);
            let mut acc = [[L::splat_i(0); N]; C];
            for (t, acc) in acc[0].iter_mut().enumerate() {
                *acc = L::splat_i(tail.add(N + t).read());
            }
            for _ in 0..words / C {
                for acc in &mut acc {
                    let w = cursor.step();
                    for (t, acc) in acc.iter_mut().enumerate() {
                        *acc = L::dot_bytes(*acc, w, x.add(t).read());
                    }
                    x = x.add(N);
                }
            }
            for t in 0..N {
                let sum = if C == 2 { L::add_i(acc[0][t], acc[C - 1][t]) } else { acc[0][t] };
                let scale = L::mul(cursor.scales, L::splat(tail.add(t).cast::<f32>().read()));
                y[t] = L::add(y[t], L::mul(L::to_f(sum), scale));
            }
            x = tail.add(2 * N);
        }
        y
    }
}

/// f32 activations, as in the dense kernel.
///
/// # Safety
/// The instructions of `L`; stream and activations as [`PanelInt8::run`] gives them.
#[inline(always)]
unsafe fn numbers<L: Lanes, const N: usize>(
    shape: &Shape,
    by_row: bool,
    stream: *const u8,
    x: &[f32],
) -> [L::F; N] {
    /// One column with every token.
    #[inline(always)]
    unsafe fn column<L: Lanes, const N: usize>(acc: &mut [L::F; N], w: L::F, x: &mut *const f32) {
        for acc in acc.iter_mut() {
            // SAFETY: the caller's promise; `x` runs over the group's numbers.
            unsafe {
                *acc = L::fma(w, L::splat(x.read()), *acc);
                *x = x.add(1);
            }
        }
    }
    // SAFETY: as in `integers`, with `N (group + 1)` words of activations per group.
    unsafe {
        let mut y = [L::zero(); N];
        let mut x = x.as_ptr();
        let mut cursor = Cursor::<L>::new(by_row, stream);
        for _ in 0..shape.groups() {
            cursor.group(shape, by_row);
            let tail = x.add(shape.group * N);
            let mut acc = [L::zero(); N];
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = L::splat(tail.add(t).read());
            }
            for _ in 0..shape.group / 4 {
                let w = cursor.step();
                column::<L, N>(&mut acc, L::byte::<0>(w), &mut x);
                column::<L, N>(&mut acc, L::byte::<1>(w), &mut x);
                column::<L, N>(&mut acc, L::byte::<2>(w), &mut x);
                column::<L, N>(&mut acc, L::byte::<3>(w), &mut x);
            }
            for (y, acc) in y.iter_mut().zip(acc) {
                *y = L::fma(acc, cursor.scales, *y);
            }
            x = tail.add(N);
        }
        y
    }
}

fn name(shape: &Shape) -> &'static str {
    if shape.exact { "panel-int8-exact" } else { "panel-int8" }
}

impl LinearKernel for PanelInt8 {
    fn rows(&self) -> usize {
        self.shape.rows
    }
    fn cols(&self) -> usize {
        self.shape.cols
    }
    fn nnz(&self) -> usize {
        self.nnz
    }
    fn bytes(&self) -> usize {
        self.stream.bytes() + 8 * self.offsets.len()
    }
    fn name(&self) -> &'static str {
        name(&self.shape)
    }
    fn scratch_len(&self, n: usize) -> usize {
        n.saturating_mul(self.shape.groups() * activations::words_per_group(&self.shape))
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, n, y, scratch)
    }
}
