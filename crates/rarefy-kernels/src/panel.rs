//! The bitmask-panel kernel: unstructured zeros, expanded in registers.

use rarefy_sparsity::formats::BitmaskPanel;

use crate::buffer::Streams;
use crate::drive::{self, MAX_TOKENS, PANEL, PanelKernel};
use crate::micro::Value;
use crate::{Isa, KernelError, LinearKernel};

/// Unstructured f32 weights.
pub type PanelF32 = Panel<f32>;
/// Unstructured bf16 weights, f32 activations and sums.
pub type PanelBf16 = Panel<half::bf16>;

/// A [`BitmaskPanel`] ready to run: the same arrays on aligned, padded memory.
///
/// Roofline, per weight at density `d`: `4 d + 1/8` (f32) or `2 d + 1/8` (bf16) bytes, one product per token (zeros are multiplied).
/// Rebuilding costs port time that no token count changes: f32 three shuffle-port operations per 16 weights (mask to
/// register, two for `vexpandps`), bf16 three per 32 weights and two to widen. A core at 2.6 GHz rebuilds 14 G (f32) weights/s,
/// which is 18 GB/s of stored bytes at 70 % zeros (measured, in cache), just above what it reads from memory (13–15 GB/s): one token
/// is near both limits at once. Eight tokens are bound by the 22 (f32) or 21 (bf16) vector operations per 32 weights, so bf16
/// gains little there over a dense bf16 kernel, which needs 18. In cache a dense kernel can win; the gain is for
/// weights beyond the cache.
///
/// Measured on one shared Sapphire Rapids core, 11008 x 4096, 70 % zeros, against [`crate::Dense`] of the same type in the same
/// run: f32 2.6 times as fast for one token, 2.2 for eight; bf16 2.4 and 1.3.
#[derive(Debug, Clone)]
pub struct Panel<T: Value> {
    rows: usize,
    cols: usize,
    offsets: Vec<u64>,
    /// Masks and values.
    data: Streams<T>,
}

impl<T: Value> Panel<T> {
    /// Takes over a packed matrix: its arrays are copied to one aligned buffer and freed.
    pub fn new(matrix: BitmaskPanel<T>) -> Self {
        let parts = matrix.parts();
        let mut data = Streams::zeroed(parts.masks.len(), parts.values.len())
            .expect("two arrays that are in memory fit the address space");
        let (masks, values) = data.parts_mut();
        masks.copy_from_slice(&parts.masks);
        values.copy_from_slice(&parts.values);
        Self { rows: matrix.rows(), cols: matrix.cols(), offsets: parts.offsets.to_vec(), data }
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

impl<T: Value> PanelKernel for Panel<T> {
    const NAME: &'static str = T::PANEL;
    const GROUP: usize = 1;
    fn d_out(&self) -> usize {
        self.rows
    }
    fn d_in(&self) -> usize {
        self.cols
    }
    fn bytes_before(&self, p: usize) -> usize {
        self.offsets[p] as usize * T::BYTES + p * self.cols * 4
    }
    fn run(&self, isa: Isa, p: usize, x: &[f32], n: usize, tile: &mut [f32; PANEL * MAX_TOKENS]) {
        let masks = &self.data.heads()[p * self.cols..(p + 1) * self.cols];
        let (begin, end) = (self.offsets[p] as usize, self.offsets[p + 1] as usize);
        // SAFETY: the arrays come unchanged from a `BitmaskPanel`, whose constructors guarantee that the bits of the
        // masks of panel `p` count exactly its values `begin..end`, which lie in `values`.
        unsafe { T::bitmask_panel(isa, masks, self.data.padded(begin..end), x, n, tile) };
    }
}

impl<T: Value> LinearKernel for Panel<T> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn nnz(&self) -> usize {
        self.data.values().len()
    }
    fn bytes(&self) -> usize {
        self.data.bytes() + self.offsets.len() * 8
    }
    fn name(&self) -> &'static str {
        T::PANEL
    }
    fn scratch_len(&self, n: usize) -> usize {
        drive::scratch_len(self.cols, n)
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, n, y, scratch)
    }
}
