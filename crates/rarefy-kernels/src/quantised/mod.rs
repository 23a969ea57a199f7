//! Dense weights of 4 or 8 bits with a scale per group: the rival of every sparse kernel.
//!
//! # Layout
//! Panels of 16 rows, one stream: for each group of columns a block of 16 scales (f16: 32 bytes, f32: 64), 16 zero points where they are not fixed
//! (4 bits: 8 bytes, low nibbles are rows 0–7), and the codes. A vector of 64 codes-bytes holds one 32-bit word per row: four columns of 8 bits,
//! or eight of 4 bits, column `b` in the low and `4 + b` in the high nibble of byte `b`. So one multiply-add of bytes (`vpdpbusd`) handles
//! four columns of 16 rows against one broadcast word of activations.
//!
//! # Roofline
//! Per weight `bits / 8 + (2 + [bits / 8]) / group` bytes and one product per token. Four bits in groups of 32, one token, per 16 rows × 32 columns: 288–296
//! bytes, 8 dot products, 12 operations to unpack, about 8 for the group: 14 cycles of two vector ports, 21 bytes per cycle, where a core reads about 6 from
//! memory. Exact activations take 64 shifts and table look-ups and 32 multiply-adds: 50 cycles, 6 bytes per cycle, near both limits at once.
//!
//! # Accuracy
//! With `ŵ` the decoded weights: exact activations give `Σ ŵ x` up to rounding in f32, relative to `Σ s (q + z) |x|`. Eight-bit activations add
//! at most `Σ_g max_g |x| / 253.9 · Σ |ŵ|` per output (see `activations`), about 0.4 % of the output's spread for noise.

mod activations;
mod bitmask;
pub(crate) mod lanes;
mod panel;

pub use bitmask::PanelInt8;
pub(crate) use bitmask::ROW_GROUP;
use std::ops::Range;

use half::f16;
use rarefy_sparsity::formats::{GroupQuantised, ScaleType};

use crate::error::product;
use crate::rows::{self, Out};
use crate::{AlignedBuf, Isa, KernelError, LinearKernel};
use panel::HEIGHT;

/// What multiplies the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activations {
    /// f32 as given.
    Exact,
    /// Eight bits per group, rounded at each call.
    Int8,
}

/// Sizes that the inner loops need.
#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    bits: u32,
    group: usize,
    fixed_zero: Option<u8>,
    wide_scales: bool,
    exact: bool,
}

impl Shape {
    fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }
    fn head_bytes(&self) -> usize {
        let zeros = if self.fixed_zero.is_some() { 0 } else { HEIGHT * self.bits as usize / 8 };
        zeros + if self.wide_scales { 64 } else { 32 }
    }
    fn block_bytes(&self) -> usize {
        self.head_bytes() + HEIGHT * self.group * self.bits as usize / 8
    }
    /// Where column `i` of a group stands among the nibbles or bytes, lowest first.
    fn place(&self, i: usize) -> usize {
        if self.bits == 8 { i } else { i / 8 * 8 + i % 4 * 2 + i % 8 / 4 }
    }
}

/// A [`GroupQuantised`] matrix ready to run; see the module's head for layout, roofline and accuracy.
///
/// Measured on shared Sapphire Rapids cores at 11008 x 4096, one token, in percent of the read bandwidth of the same run, one and two threads: int8 85–101
/// and 90, int4 in groups of 32 88–94 and 85, exact activations with int8 81–87 and 83, with int4 64–75 and 70 (`examples/quantised.rs`).
#[derive(Debug, Clone)]
pub struct Quantised {
    shape: Shape,
    blocks: AlignedBuf<u8>,
}

impl Quantised {
    /// Rearranges `matrix` into panels.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] when the padded arrays overflow.
    pub fn new(matrix: &GroupQuantised, activations: Activations) -> Result<Self, KernelError> {
        let q = matrix.settings();
        let shape = Shape {
            rows: matrix.rows(),
            cols: matrix.cols(),
            bits: q.bits,
            group: q.group,
            fixed_zero: q.fixed_zero(),
            wide_scales: q.scales == ScaleType::F32,
            exact: activations == Activations::Exact,
        };
        let stride = product(name(&shape), shape.groups(), shape.block_bytes())?;
        let mut blocks = AlignedBuf::zeroed(product(name(&shape), shape.rows.div_ceil(HEIGHT), stride)?);
        if stride > 0 {
            for (p, panel) in blocks.as_mut_slice().chunks_exact_mut(stride).enumerate() {
                for (g, block) in panel.chunks_exact_mut(shape.block_bytes()).enumerate() {
                    fill(&shape, matrix, p, g, block);
                }
            }
        }
        Ok(Self { shape, blocks })
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
        let s = &self.shape;
        let (panels, stride) = (s.rows.div_ceil(HEIGHT), s.groups() * s.block_bytes());
        let blocks = self.blocks.as_slice();
        let call = Call { isa, x, n, y, scratch, needed: self.scratch_len(n) };
        call.run(
            self.name(),
            s,
            |task, tasks| rows::share(panels, task, tasks),
            |isa, p, x, n, tile| panel::run(s, isa, &blocks[p * stride..(p + 1) * stride], x, n, tile),
        )
    }
}

/// A product with panels of [`HEIGHT`] rows, whatever they are made of.
struct Call<'a> {
    isa: Isa,
    x: &'a [f32],
    n: usize,
    y: &'a mut [f32],
    scratch: &'a mut [f32],
    /// Elements of `scratch` that are used.
    needed: usize,
}

impl Call<'_> {
    /// Packs the activations, then `fill(isa, panel, packed, tokens, tile)` for every pass of every panel that `share(task, tasks)` names.
    fn run(
        self,
        name: &'static str,
        s: &Shape,
        share: impl Fn(usize, usize) -> Range<usize> + Sync,
        fill: impl Fn(Isa, usize, &[f32], usize, &mut panel::Tile) + Sync,
    ) -> Result<(), KernelError> {
        let Call { isa, x, n, y, scratch, needed } = self;
        if !rows::check(name, isa, [s.rows, s.cols, n], [x.len(), y.len()], [scratch.len(), needed])? {
            return Ok(());
        }
        let isa = panel::path(isa);
        let scratch = &mut scratch[..needed];
        let per_token = scratch.len() / n;
        let passes = rows::passes(n, panel::most_tokens(isa));
        for tokens in passes.clone() {
            let x = &x[tokens.start * s.cols..tokens.end * s.cols];
            let out = &mut scratch[tokens.start * per_token..tokens.end * per_token];
            activations::pack(s, x, tokens.len(), out);
        }
        let (packed, panels) = (&*scratch, s.rows.div_ceil(HEIGHT));
        let out = Out::new(y, s.rows);
        let tasks = rows::tasks(s.rows.saturating_mul(s.cols).saturating_mul(n), panels);
        rows::for_tasks(tasks, |task| {
            let mut tile = [0.0; HEIGHT * panel::MAX_TOKENS];
            for p in share(task, tasks) {
                let height = HEIGHT.min(s.rows - p * HEIGHT);
                for tokens in passes.clone() {
                    let x = &packed[tokens.start * per_token..tokens.end * per_token];
                    fill(isa, p, x, tokens.len(), &mut tile);
                    for (i, t) in tokens.enumerate() {
                        // SAFETY: each panel belongs to one task, and only its rows are written.
                        unsafe { out.write(t, p * HEIGHT, &tile[i * HEIGHT..][..height]) };
                    }
                }
            }
        });
        Ok(())
    }
}

/// Writes the block of group `g` of panel `p`. Absent rows keep scale 0, and absent columns the code of their zero point.
fn fill(shape: &Shape, matrix: &GroupQuantised, p: usize, g: usize, block: &mut [u8]) {
    let (head, codes) = block.split_at_mut(shape.head_bytes());
    let (scales, zeros) = head.split_at_mut(if shape.wide_scales { 64 } else { 32 });
    for i in 0..HEIGHT.min(shape.rows - p * HEIGHT) {
        let row = p * HEIGHT + i;
        let (scale, zero) = (matrix.scale(row, g), matrix.zero(row, g));
        if shape.wide_scales {
            scales[4 * i..4 * i + 4].copy_from_slice(&scale.to_le_bytes());
        } else {
            scales[2 * i..2 * i + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
        if shape.fixed_zero.is_none() {
            if shape.bits == 4 {
                zeros[i % 8] |= zero << (i / 8 * 4);
            } else {
                zeros[i] = zero;
            }
        }
        for j in 0..shape.group {
            let c = g * shape.group + j;
            let code = if c < shape.cols { matrix.code(row, c) } else { zero };
            let place = shape.place(j);
            if shape.bits == 4 {
                codes[place / 8 * 64 + 4 * i + place % 8 / 2] |= code << (place % 2 * 4);
            } else {
                codes[place / 4 * 64 + 4 * i + place % 4] = code;
            }
        }
    }
}

fn name(shape: &Shape) -> &'static str {
    match (shape.bits, shape.exact) {
        (4, false) => "int4",
        (4, true) => "int4-exact",
        (_, false) => "int8",
        (_, true) => "int8-exact",
    }
}

impl LinearKernel for Quantised {
    fn rows(&self) -> usize {
        self.shape.rows
    }
    fn cols(&self) -> usize {
        self.shape.cols
    }
    fn nnz(&self) -> usize {
        self.shape.rows * self.shape.cols
    }
    fn bytes(&self) -> usize {
        self.blocks.bytes()
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
