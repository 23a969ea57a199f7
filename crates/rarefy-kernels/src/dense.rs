//! The dense kernel: what every sparse kernel is measured against.

use crate::drive::{self, MAX_TOKENS, PANEL, PanelKernel};
use crate::error::{length, product};
use crate::micro::Value;
use crate::{AlignedBuf, Isa, KernelError, LinearKernel};

/// Dense f32 weights.
pub type DenseF32 = Dense<f32>;
/// Dense bf16 weights, f32 activations and sums.
pub type DenseBf16 = Dense<half::bf16>;

/// A dense weight in panels of 32 rows: `[ceil(rows / 32)][cols][32]`, absent rows zero.
///
/// Roofline, per output and token: `cols` products; per weight 4 (f32) or 2 (bf16) bytes are read once for up to 12 tokens. One
/// core that reads 14 GB/s is fed 3.5 G (7 G) weights/s and could multiply 83 G at 2.6 GHz: one token is bound by memory by an order of
/// magnitude, eight tokens of bf16 by a factor below two. Measured there: 97–102 % (f32) and 87–93 % (bf16) of the read
/// bandwidth for one token, 84 % and 77 % for eight.
#[derive(Debug, Clone)]
pub struct Dense<T: Value> {
    rows: usize,
    cols: usize,
    panels: AlignedBuf<T>,
}

impl<T: Value> Dense<T> {
    /// Repacks the row-major `w[rows, cols]`.
    ///
    /// # Errors
    /// [`KernelError::Length`] when `w` has not `rows * cols` elements.
    pub fn new(w: &[T], rows: usize, cols: usize) -> Result<Self, KernelError> {
        let expected = product(T::DENSE, rows, cols)?;
        length(T::DENSE, "weight", expected, w.len())?;
        let stride = product(T::DENSE, cols, PANEL)?;
        let mut panels = AlignedBuf::zeroed(product(T::DENSE, rows.div_ceil(PANEL), stride)?);
        if cols > 0 {
            for (p, out) in panels.as_mut_slice().chunks_exact_mut(stride).enumerate() {
                let height = PANEL.min(rows - p * PANEL);
                // Blocks of 16 columns: one cache line of each row of the source.
                for begin in (0..cols).step_by(16) {
                    let end = cols.min(begin + 16);
                    for i in 0..height {
                        let row = (p * PANEL + i) * cols;
                        for c in begin..end {
                            out[c * PANEL + T::slot(i)] = w[row + c];
                        }
                    }
                }
            }
        }
        Ok(Self { rows, cols, panels })
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
        drive::forward(self, isa, x, n, y, scratch)
    }
}

impl<T: Value> PanelKernel for Dense<T> {
    const NAME: &'static str = T::DENSE;
    const GROUP: usize = 1;
    fn d_out(&self) -> usize {
        self.rows
    }
    fn d_in(&self) -> usize {
        self.cols
    }
    fn bytes_before(&self, p: usize) -> usize {
        p * self.cols * PANEL * T::BYTES
    }
    fn run(&self, isa: Isa, p: usize, x: &[f32], n: usize, tile: &mut [f32; PANEL * MAX_TOKENS]) {
        let stride = self.cols * PANEL;
        T::dense_panel(isa, &self.panels.as_slice()[p * stride..(p + 1) * stride], x, n, tile);
    }
}

impl<T: Value> LinearKernel for Dense<T> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn nnz(&self) -> usize {
        self.rows * self.cols
    }
    fn bytes(&self) -> usize {
        self.panels.bytes()
    }
    fn name(&self) -> &'static str {
        T::DENSE
    }
    fn scratch_len(&self, n: usize) -> usize {
        drive::scratch_len(self.cols, n)
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, n, y, scratch)
    }
}
