//! A dense matrix that is both read row by row (embeddings) and multiplied (the tied vocabulary product), held once.
//!
//! The kernels of `rarefy-kernels` rearrange their weights, so a row cannot be read back from them. Here the rows stay as
//! they are in the file. One row of activations is bound by reading the matrix either way.

use burn::tensor::Device;
use half::bf16;
use rarefy_kernels::{KernelError, LinearKernel};
use rayon::prelude::*;

use crate::tensors::{host_vec, tensor2};

/// Up to this many rows of activations the product is computed by inner products; above, slab by slab through Burn.
const FEW: usize = 8;

/// Rows of the matrix in one task.
const BLOCK: usize = 64;

/// Values of the matrix that are widened at a time for Burn.
const SLAB: usize = 1 << 20;

/// Products below which one thread does all.
const PARALLEL_FROM: usize = 1 << 17;

/// A number type of weights.
pub(crate) trait Stored: Copy + Send + Sync + std::fmt::Debug + 'static {
    const NAME: &'static str;
    /// Name of the kernel that keeps neurons as rows.
    const NEURONS: &'static str;
    /// Name of the kernel that keeps inputs as rows.
    const INPUTS: &'static str;
    fn wide(self) -> f32;
}

impl Stored for f32 {
    const NAME: &'static str = "rows-f32";
    const NEURONS: &'static str = "row-skip-f32";
    const INPUTS: &'static str = "column-skip-f32";
    #[inline]
    fn wide(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    const NAME: &'static str = "rows-bf16";
    const NEURONS: &'static str = "row-skip-bf16";
    const INPUTS: &'static str = "column-skip-bf16";
    #[inline]
    fn wide(self) -> f32 {
        // The same as `to_f32` for every finite value, in a form that compilers turn into vector code.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Row-major `[rows, cols]`.
pub(crate) struct Rows<T> {
    values: Vec<T>,
    rows: usize,
    cols: usize,
}

impl<T> std::fmt::Debug for Rows<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rows[{}, {}]", self.rows, self.cols)
    }
}

impl<T: Stored> Rows<T> {
    pub(crate) fn new(values: Vec<T>, rows: usize, cols: usize) -> Result<Self, KernelError> {
        let expected =
            rows.checked_mul(cols).ok_or(KernelError::TooLarge { kernel: T::NAME, a: rows, b: cols })?;
        check(T::NAME, "weight", expected, values.len())?;
        Ok(Self { values, rows, cols })
    }

    /// One row, widened.
    pub(crate) fn row(&self, index: usize) -> impl Iterator<Item = f32> + '_ {
        self.values[index * self.cols..(index + 1) * self.cols].iter().map(|v| v.wide())
    }

    fn view(&self) -> View<'_, T> {
        View { values: &self.values, rows: self.rows, cols: self.cols }
    }
}

/// Row-major `[rows, cols]`, held by someone else.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl<T: Stored> View<'_, T> {
    /// `y[n, rows] = x[n, cols] · Wᵀ`; the lengths fit and nothing is empty.
    pub(crate) fn forward(&self, x: &[f32], n: usize, y: &mut [f32]) {
        if n <= FEW {
            self.few(x, n, y);
        } else {
            self.many(x, n, y);
        }
    }

    /// `out[r, t]` of consecutive rows of the matrix from `first` on.
    fn block(&self, first: usize, x: &[f32], n: usize, out: &mut [f32]) {
        let mut wide = vec![0.0; if n > 1 { self.cols } else { 0 }];
        for (r, out) in out.chunks_exact_mut(n).enumerate() {
            let row = &self.values[(first + r) * self.cols..][..self.cols];
            if n == 1 {
                out[0] = dot(row, x);
            } else {
                for (w, v) in wide.iter_mut().zip(row) {
                    *w = v.wide();
                }
                for (out, x) in out.iter_mut().zip(x.chunks_exact(self.cols)) {
                    *out = dot(&wide, x);
                }
            }
        }
    }

    /// Few rows of activations.
    fn few(&self, x: &[f32], n: usize, y: &mut [f32]) {
        let mut swapped = vec![0.0; if n > 1 { self.rows * n } else { 0 }];
        let out = if n > 1 { &mut swapped[..] } else { &mut *y };
        if self.rows * self.cols * n < PARALLEL_FROM {
            self.block(0, x, n, out);
        } else {
            out.par_chunks_mut(BLOCK * n).enumerate().for_each(|(b, out)| self.block(b * BLOCK, x, n, out));
        }
        for (r, of_row) in swapped.chunks_exact(n).enumerate() {
            for (t, v) in of_row.iter().enumerate() {
                y[t * self.rows + r] = *v;
            }
        }
    }

    /// Many rows of activations: slabs of the matrix are widened one after another, so the extra memory is bounded.
    fn many(&self, x: &[f32], n: usize, y: &mut [f32]) {
        let device = Device::flex();
        let x = tensor2(x.to_vec(), [n, self.cols], &device);
        let slab = (SLAB / self.cols).max(1);
        for (s, values) in self.values.chunks(slab * self.cols).enumerate() {
            let height = values.len() / self.cols;
            let wide = tensor2(values.iter().map(|v| v.wide()).collect(), [height, self.cols], &device);
            let part = host_vec(x.clone().matmul(wide.transpose()));
            for (y, part) in y.chunks_exact_mut(self.rows).zip(part.chunks_exact(height)) {
                y[s * slab..][..height].copy_from_slice(part);
            }
        }
    }
}

/// `y[n, d_out] = x[n, d_in] · w` with the transposed weight `w[d_in, d_out]`, slab by slab of inputs.
pub(crate) fn by_columns<T: Stored>(w: &[T], x: &[f32], n: usize, d_out: usize, y: &mut [f32]) {
    let (device, d_in) = (Device::flex(), w.len() / d_out);
    y.fill(0.0);
    let x = tensor2(x.to_vec(), [n, d_in], &device);
    let slab = (SLAB / d_out).max(1);
    for (s, w) in w.chunks(slab * d_out).enumerate() {
        let rows = w.len() / d_out;
        let wide = tensor2(w.iter().map(|v| v.wide()).collect(), [rows, d_out], &device);
        let part = host_vec(x.clone().narrow(1, s * slab, rows).matmul(wide));
        y.iter_mut().zip(part).for_each(|(y, v)| *y += v);
    }
}

pub(crate) fn check(
    kernel: &'static str,
    array: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), KernelError> {
    if expected == found { Ok(()) } else { Err(KernelError::Length { kernel, array, expected, found }) }
}

/// Inner product with sixteen partial sums, in a fixed order.
fn dot<T: Stored>(a: &[T], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(x, y)| x.wide() * y).sum();
    for (x, y) in a16.zip(b16) {
        for i in 0..16 {
            sums[i] += x[i].wide() * y[i];
        }
    }
    sums.iter().sum::<f32>() + tail
}

impl<T: Stored> LinearKernel for Rows<T> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn nnz(&self) -> usize {
        self.values.len()
    }
    fn bytes(&self) -> usize {
        std::mem::size_of_val(&self.values[..])
    }
    fn name(&self) -> &'static str {
        T::NAME
    }
    fn scratch_len(&self, _n: usize) -> usize {
        0
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], _scratch: &mut [f32]) -> Result<(), KernelError> {
        let product =
            |a: usize, b: usize| a.checked_mul(b).ok_or(KernelError::TooLarge { kernel: T::NAME, a, b });
        check(T::NAME, "x", product(n, self.cols)?, x.len())?;
        check(T::NAME, "y", product(n, self.rows)?, y.len())?;
        match n {
            _ if self.values.is_empty() => y.fill(0.0),
            0 => {}
            _ => self.view().forward(x, n, y),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn agree<T: Stored>(narrow: impl Fn(f32) -> T) {
        for (rows, cols) in [(1, 1), (70, 33), (130, 48), (300, 700)] {
            let w: Vec<T> =
                (0..rows * cols).map(|i| narrow(((i * 7919 % 997) as f32) / 500.0 - 1.0)).collect();
            let kernel = Rows::new(w.clone(), rows, cols).unwrap();
            assert_eq!(
                kernel.row(rows - 1).collect::<Vec<_>>(),
                w[(rows - 1) * cols..].iter().map(|v| v.wide()).collect::<Vec<_>>()
            );
            for n in [0, 1, 3, 8, 9, 40] {
                let x: Vec<f32> = (0..n * cols).map(|i| ((i * 31 % 89) as f32) / 44.0 - 1.0).collect();
                let mut y = vec![f32::NAN; n * rows];
                kernel.forward(&x, n, &mut y, &mut []).unwrap();
                for t in 0..n {
                    for r in 0..rows {
                        let want: f64 = (0..cols)
                            .map(|c| f64::from(x[t * cols + c]) * f64::from(w[r * cols + c].wide()))
                            .sum();
                        let got = f64::from(y[t * rows + r]);
                        assert!(
                            (got - want).abs() < 1e-5 * (cols as f64),
                            "{rows}x{cols} n={n}: {got} {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn equals_the_definition() {
        agree(|v| v);
        agree(bf16::from_f32);
    }

    #[test]
    fn widening_is_exact() {
        for bits in 0..=u16::MAX {
            let v = bf16::from_bits(bits);
            if v.is_finite() {
                assert_eq!(v.wide().to_bits(), v.to_f32().to_bits());
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(Rows::new(vec![0.0f32; 5], 2, 3).is_err());
        let kernel = Rows::new(vec![0.0f32; 6], 2, 3).unwrap();
        assert!(kernel.forward(&[0.0; 3], 1, &mut [0.0; 3], &mut []).is_err());
        assert!(kernel.forward(&[0.0; 4], 1, &mut [0.0; 2], &mut []).is_err());
    }
}
