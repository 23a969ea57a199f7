//! The dense 1×1 convolution of the same family: what the sparse one is measured against.

use std::ops::Range;

use super::drive::{self, Out, Strip, StripKernel, StripSource};
use super::image;
use super::portable::store;
use crate::error::{length, product};
use crate::{AlignedBuf, Clamp, Isa, KernelError};

/// Rows of a panel.
const PANEL: usize = 8;
/// Pixels of a strip: three AVX-512 registers, so that 8 rows fill 24 accumulators.
const WIDTH: usize = 48;
const NAME: &str = "dense-1x1";

/// A dense 1×1 convolution, or any product `W · X` with `X` row-major: `[ceil(rows / 8)][cols][8]`, absent rows zero.
///
/// Roofline, AVX-512: a step of one channel loads 3 registers of pixels and 8 weights for 24 multiply-adds, so the
/// multiply-adds are the bound (12 cycles against 5.5 of loads). Bytes: the weight is streamed once per 48 pixels,
/// 4 bytes for 48 multiply-adds.
#[derive(Debug)]
pub struct DenseConv1x1 {
    rows: usize,
    cols: usize,
    in_place: bool,
    panels: AlignedBuf<f32>,
    bias: AlignedBuf<f32>,
}

impl DenseConv1x1 {
    /// Repacks the row-major `w[rows, cols]` with one bias per row (none: zeros).
    ///
    /// # Errors
    /// [`KernelError::Length`] when `w` or `bias` has the wrong length.
    pub fn new(w: &[f32], rows: usize, cols: usize, bias: Option<&[f32]>) -> Result<Self, KernelError> {
        let expected = product(NAME, rows, cols)?;
        length(NAME, "weight", expected, w.len())?;
        bias.map_or(Ok(()), |b| length(NAME, "bias", rows, b.len()))?;
        let n = rows.div_ceil(PANEL);
        let mut panels = AlignedBuf::zeroed(product(NAME, n, product(NAME, cols, PANEL)?)?);
        let mut padded = AlignedBuf::zeroed(n * PANEL);
        if let Some(b) = bias {
            padded.as_mut_slice()[..rows].copy_from_slice(b);
        }
        for (r, row) in w.chunks_exact(cols.max(1)).enumerate() {
            let panel = &mut panels.as_mut_slice()[r / PANEL * cols * PANEL..];
            for (c, v) in row.iter().enumerate() {
                panel[c * PANEL + r % PANEL] = *v;
            }
        }
        Ok(Self { rows, cols, in_place: false, panels, bias: padded })
    }

    /// Reads images without packing strips where their rows allow it. To be asked for when the images lie on huge
    /// pages, as in one [`crate::AlignedBuf`] of 2 MiB or more: there it saves up to a fifth of the time, on small pages it
    /// costs up to half more. Results are the same.
    pub fn reading_in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Bytes of the weight in memory.
    pub fn bytes(&self) -> usize {
        self.panels.bytes() + self.bias.bytes()
    }
    /// As for [`super::Spmm::scratch_len`].
    pub fn scratch_len(&self, threads: usize) -> usize {
        drive::scratch_len(self.cols, WIDTH, threads)
    }

    /// `y[rows, pixels] = clamp(W · x[cols, pixels] + bias)` on the current rayon pool. No allocation.
    ///
    /// # Errors
    /// [`KernelError::Length`] for a slice of the wrong length (`scratch`: too short for one thread).
    pub fn forward(
        &self,
        x: &[f32],
        pixels: usize,
        clamp: Clamp,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, pixels, clamp, y, scratch)
    }

    /// [`DenseConv1x1::forward`] on a chosen code path.
    ///
    /// # Errors
    /// Also [`KernelError::Isa`] when this CPU lacks the path.
    pub fn forward_with(
        &self,
        isa: Isa,
        x: &[f32],
        pixels: usize,
        clamp: Clamp,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let source = image(NAME, x, self.cols, pixels)?;
        drive::forward(self, isa, &source, pixels, clamp, y, scratch)
    }

    /// The same product over strips from elsewhere.
    pub(crate) fn forward_from<S: StripSource>(
        &self,
        isa: Isa,
        source: &S,
        pixels: usize,
        clamp: Clamp,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        drive::forward(self, isa, source, pixels, clamp, y, scratch)
    }

    /// The weights and biases of panel `p`.
    fn panel(&self, p: usize) -> (&[f32], &[f32]) {
        let len = self.cols * PANEL;
        (&self.panels.as_slice()[p * len..(p + 1) * len], &self.bias.as_slice()[p * PANEL..(p + 1) * PANEL])
    }
}

impl StripKernel for DenseConv1x1 {
    const NAME: &'static str = NAME;
    fn d_out(&self) -> usize {
        self.rows
    }
    fn depth(&self) -> usize {
        self.cols
    }
    fn width(&self) -> usize {
        WIDTH
    }
    fn reads_in_place(&self) -> bool {
        self.in_place
    }
    fn units(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }
    fn cost_before(&self, u: usize) -> usize {
        u * PANEL * (self.cols + 1)
    }
    unsafe fn run(&self, isa: Isa, strip: Strip<'_>, units: Range<usize>, clamp: Clamp, out: &Out) {
        strip.check(self.cols);
        match isa {
            // SAFETY (all three): the promises of this function; the strip was checked above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => unsafe { simd::run(self, isa, strip, units, clamp, out) },
            _ => unsafe { portable(self, strip, units, clamp, out) },
        }
    }
}

/// # Safety
/// Nobody else accesses these outputs meanwhile.
unsafe fn portable(conv: &DenseConv1x1, strip: Strip<'_>, units: Range<usize>, clamp: Clamp, out: &Out) {
    let mut sums = [0.0f32; WIDTH];
    let sums = &mut sums[..strip.pixels];
    for p in units {
        let (weights, bias) = conv.panel(p);
        for r in 0..PANEL.min(conv.rows - p * PANEL) {
            sums.fill(bias[r]);
            for (w, x) in weights.chunks_exact(PANEL).zip(strip.data.chunks(strip.stride)) {
                sums.iter_mut().zip(x).for_each(|(s, x)| *s += w[r] * x);
            }
            // SAFETY: the caller's promise.
            unsafe { store(out, p * PANEL + r, strip.first, sums, clamp) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "constant bounds unroll; iterators of registers need not")]
mod simd {
    use std::arch::x86_64::{__m256, __m512};

    use super::*;
    use crate::registers::Register;

    struct Job<'a> {
        conv: &'a DenseConv1x1,
        units: Range<usize>,
        strip: Strip<'a>,
        at: usize,
        last: usize,
        clamp: Clamp,
        out: &'a Out,
    }

    /// `R` rows by `V` registers of pixels at a time, over all channels.
    ///
    /// # Safety
    /// The instruction set of `L`; the strip is `[cols + 1][WIDTH]` and `at + V N <= WIDTH`.
    #[inline(always)]
    unsafe fn panels<L: Register, const R: usize, const V: usize>(job: &Job<'_>) {
        let pixels = (V - 1) * L::N + job.last;
        // SAFETY: the caller's promise; a panel has `cols * PANEL` weights; `Out::row` checks what is written.
        unsafe {
            let (low, high) = (L::splat(&job.clamp.low()), L::splat(&job.clamp.high()));
            for (k, p) in job.units.clone().enumerate() {
                job.strip.next.fetch(k, job.units.len());
                let (weights, bias) = job.conv.panel(p);
                let height = PANEL.min(job.conv.rows - p * PANEL);
                for pass in 0..PANEL / R {
                    let mut weight = weights.as_ptr().add(pass * R);
                    let mut x = job.strip.data.as_ptr().add(job.at);
                    let mut acc = [[L::zero(); V]; R];
                    for r in 0..R {
                        acc[r] = [L::splat(&bias[pass * R + r]); V];
                    }
                    for _ in 0..job.conv.cols {
                        let mut pixel = [L::zero(); V];
                        for v in 0..V {
                            pixel[v] = L::load(x.add(v * L::N));
                        }
                        for r in 0..R {
                            let w = L::splat(weight.add(r));
                            for v in 0..V {
                                acc[r][v] = w.fma(pixel[v], acc[r][v]);
                            }
                        }
                        weight = weight.add(PANEL);
                        x = x.wrapping_add(job.strip.stride);
                    }
                    for r in 0..R {
                        if pass * R + r >= height {
                            break;
                        }
                        let y = job.out.row(p * PANEL + pass * R + r, job.strip.first + job.at, pixels);
                        for v in 0..V {
                            let n = if v + 1 == V { job.last } else { L::N };
                            acc[r][v].clamp(low, high).store_first(y.add(v * L::N), n);
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// AVX-512; see [`panels`].
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const R: usize, const V: usize>(job: &Job<'_>) {
        // SAFETY: the caller's promise.
        unsafe { panels::<__m512, R, V>(job) }
    }

    /// # Safety
    /// AVX2 and FMA; see [`panels`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize, const V: usize>(job: &Job<'_>) {
        // SAFETY: the caller's promise.
        unsafe { panels::<__m256, R, V>(job) }
    }

    /// # Safety
    /// `isa` is AVX2 or AVX-512 and available; nobody else accesses these outputs meanwhile; the strip is `[cols + 1][WIDTH]`
    /// with 1 to `WIDTH` pixels.
    pub(super) unsafe fn run(
        conv: &DenseConv1x1,
        isa: Isa,
        strip: Strip<'_>,
        units: Range<usize>,
        clamp: Clamp,
        out: &Out,
    ) {
        type Instance = unsafe fn(&Job<'_>);
        let (lanes, instances): (usize, [Instance; 3]) = match isa {
            Isa::Avx512 => (16, [avx512::<8, 1>, avx512::<8, 2>, avx512::<8, 3>]),
            _ => (8, [avx2::<4, 1>, avx2::<4, 2>, avx2::<4, 3>]),
        };
        let registers = strip.pixels.div_ceil(lanes);
        let runs = registers.div_ceil(instances.len());
        for run in 0..runs {
            let (begin, end) = (registers * run / runs, registers * (run + 1) / runs);
            let (at, last) = (begin * lanes, lanes.min(strip.pixels - (end - 1) * lanes));
            let job = Job { conv, units: units.clone(), strip, at, last, clamp, out };
            // SAFETY: `isa` is available, and `at + V N` is at most `WIDTH`, a multiple of both widths.
            unsafe { instances[end - begin - 1](&job) };
        }
    }
}
