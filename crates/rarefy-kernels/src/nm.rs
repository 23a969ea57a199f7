//! The N:M kernel: 2:4 by in-register selection of activations, every other N:M through the bitmask panel.

use rarefy_sparsity::formats::{BitmaskPanel, NmPacked};

use crate::buffer::Streams;
use crate::drive::{self, MAX_TOKENS, PANEL, PanelKernel};
use crate::error::product;
use crate::micro::{GROUPS_PER_WORD, Value};
use crate::{Isa, KernelError, LinearKernel, Panel};

/// N:M f32 weights.
pub type NmF32 = Nm<f32>;
/// N:M bf16 weights, f32 activations and sums.
pub type NmBf16 = Nm<half::bf16>;

/// An [`NmPacked`] matrix ready to run.
///
/// 2:4 is stored by slots: for each panel of 32 rows and each group of 4 inputs, the first and then the second kept
/// value of the 32 rows, and 2 bits per value that select its activation (`vpermilps` on the four activations of the group). That is
/// as many bytes as a bitmask and half of the products: the zeros are not multiplied.
/// Other patterns would need 3 or more bits per value (4:8: 0.56 instead of 0.53 of dense f32), which costs more time beyond the cache
/// than the saved products give back, so they run as a bitmask panel.
///
/// Roofline of 2:4, per weight: 2.125 (f32) or 1.125 (bf16) bytes and half a product per token; per 16 values one
/// shift, and per token one shuffle and one multiply-add.
#[derive(Debug, Clone)]
pub struct Nm<T: Value> {
    n: usize,
    m: usize,
    body: Body<T>,
}

#[derive(Debug, Clone)]
enum Body<T: Value> {
    TwoFour(TwoFour<T>),
    Bitmask(Panel<T>),
}

/// 2:4 by slots.
#[derive(Debug, Clone)]
struct TwoFour<T: Value> {
    rows: usize,
    cols: usize,
    /// Selectors `[panels][ceil(groups / 8)][32 rows]`: bits `4 g + 2 s ..` of a word select the activation of slot `s`
    /// in group `g` of eight. Values `[panels][groups][2 slots][32 rows]`.
    data: Streams<T>,
}

impl<T: Value> Nm<T> {
    /// Takes over a packed matrix and rearranges it.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] when the rearranged arrays overflow.
    pub fn new(matrix: NmPacked<T>) -> Result<Self, KernelError> {
        let (n, m, rows, cols) = (matrix.n(), matrix.m(), matrix.rows(), matrix.cols());
        let body = if (n, m) == (2, 4) {
            Body::TwoFour(TwoFour::new(&matrix)?)
        } else {
            let packed = BitmaskPanel::encode_rows(rows, cols, |row, out| matrix.decode_row(row, out))?;
            Body::Bitmask(Panel::new(packed))
        };
        Ok(Self { n, m, body })
    }

    /// N and M.
    pub fn pattern(&self) -> (usize, usize) {
        (self.n, self.m)
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
        match &self.body {
            Body::TwoFour(k) => drive::forward(k, isa, x, n, y, scratch),
            Body::Bitmask(k) => k.forward_with(isa, x, n, y, scratch),
        }
    }
}

impl<T: Value> TwoFour<T> {
    fn new(matrix: &NmPacked<T>) -> Result<Self, KernelError> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let groups = cols / 4;
        let words = groups.div_ceil(GROUPS_PER_WORD);
        let panels = rows.div_ceil(PANEL);
        let slots = product(T::NM, product(T::NM, groups, 2)?, PANEL)?;
        let (n_selectors, n_values) =
            (product(T::NM, panels, product(T::NM, words, PANEL)?)?, product(T::NM, panels, slots)?);
        let too_large = KernelError::TooLarge { kernel: T::NM, a: rows, b: cols };
        let mut data = Streams::zeroed(n_selectors, n_values).ok_or(too_large)?;
        let (all_selectors, all_values) = data.parts_mut();
        for row in 0..rows {
            let (panel, i) = (row / PANEL, row % PANEL);
            let selectors = &mut all_selectors[panel * words * PANEL..];
            let values = &mut all_values[panel * slots..];
            let masks = matrix.row_masks(row);
            for (g, pair) in matrix.row_values(row).chunks_exact(2).enumerate() {
                let bits = masks[g / 8] >> (g % 8 * 4) & 0xf;
                let (first, second) = (bits.trailing_zeros(), 31 - bits.leading_zeros());
                let (word, shift) = (g / GROUPS_PER_WORD, g % GROUPS_PER_WORD * 4);
                selectors[word * PANEL + i] |= (first | second << 2) << shift;
                values[(2 * g) * PANEL + T::slot(i)] = pair[0];
                values[(2 * g + 1) * PANEL + T::slot(i)] = pair[1];
            }
        }
        Ok(Self { rows, cols, data })
    }
}

impl<T: Value> PanelKernel for TwoFour<T> {
    const NAME: &'static str = T::NM;
    const GROUP: usize = 4;
    fn d_out(&self) -> usize {
        self.rows
    }
    fn d_in(&self) -> usize {
        self.cols
    }
    fn bytes_before(&self, p: usize) -> usize {
        p * self.cols
    }
    fn run(&self, isa: Isa, p: usize, x: &[f32], n: usize, tile: &mut [f32; PANEL * MAX_TOKENS]) {
        let slots = self.cols / 2 * PANEL;
        let words = (self.cols / 4).div_ceil(GROUPS_PER_WORD) * PANEL;
        let selectors = &self.data.heads()[p * words..(p + 1) * words];
        let values = &self.data.values()[p * slots..(p + 1) * slots];
        T::two_four_panel(isa, selectors, values, x, n, tile);
    }
}

impl<T: Value> LinearKernel for Nm<T> {
    fn rows(&self) -> usize {
        match &self.body {
            Body::TwoFour(k) => k.rows,
            Body::Bitmask(k) => k.rows(),
        }
    }
    fn cols(&self) -> usize {
        match &self.body {
            Body::TwoFour(k) => k.cols,
            Body::Bitmask(k) => k.cols(),
        }
    }
    fn nnz(&self) -> usize {
        match &self.body {
            Body::TwoFour(k) => k.rows * (k.cols / 2),
            Body::Bitmask(k) => k.nnz(),
        }
    }
    fn bytes(&self) -> usize {
        match &self.body {
            Body::TwoFour(k) => k.data.bytes(),
            Body::Bitmask(k) => k.bytes(),
        }
    }
    fn name(&self) -> &'static str {
        T::NM
    }
    fn scratch_len(&self, n: usize) -> usize {
        drive::scratch_len(self.cols(), n)
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, n, y, scratch)
    }
}
