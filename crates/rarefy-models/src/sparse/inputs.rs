//! A linear layer that takes small inputs as zero and does not read their columns.

use std::sync::Arc;

use rarefy_kernels::row_skip::SkipLinear;
use rarefy_kernels::{KernelError, LinearKernel, RowValue};

use super::Counts;
use super::mlp::MOST_TOKENS;
use crate::rows::{Stored, by_columns, check};

/// The matrix by columns, and the threshold on its inputs.
#[derive(Debug)]
pub(crate) struct InputLinear<T: RowValue> {
    skip: SkipLinear<T>,
    threshold: f32,
    nnz: usize,
    counts: Arc<Counts>,
}

impl<T: RowValue + Stored> InputLinear<T> {
    /// From `w[d_out, d_in]` as models store it.
    pub(crate) fn new(
        w: &[T],
        (d_out, d_in): (usize, usize),
        threshold: f32,
        counts: Arc<Counts>,
    ) -> Result<Self, KernelError> {
        let nnz = w.iter().filter(|v| v.wide() != 0.0).count();
        Ok(Self { skip: SkipLinear::new(w, None, d_in, d_out)?, threshold, nnz, counts })
    }
}

impl<T: RowValue + Stored> LinearKernel for InputLinear<T> {
    fn rows(&self) -> usize {
        self.skip.d_out()
    }
    fn cols(&self) -> usize {
        self.skip.d_in()
    }
    fn nnz(&self) -> usize {
        self.nnz
    }
    fn bytes(&self) -> usize {
        self.skip.bytes()
    }
    fn name(&self) -> &'static str {
        T::INPUTS
    }
    fn scratch_len(&self, n: usize) -> usize {
        let inputs = n.saturating_mul(self.cols());
        if n <= MOST_TOKENS { inputs.saturating_add(self.skip.scratch_len(n)) } else { inputs }
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        let (rows, cols) = (self.rows(), self.cols());
        let product =
            |a: usize, b: usize| a.checked_mul(b).ok_or(KernelError::TooLarge { kernel: T::INPUTS, a, b });
        check(T::INPUTS, "x", product(n, cols)?, x.len())?;
        check(T::INPUTS, "y", product(n, rows)?, y.len())?;
        check(T::INPUTS, "scratch", self.scratch_len(n), scratch.len())?;
        if n == 0 || rows == 0 {
            return Ok(());
        }
        let (kept, scratch) = scratch.split_at_mut(n * cols);
        let mut idle = 0;
        for (kept, x) in kept.iter_mut().zip(x) {
            let is_idle = x.abs() <= self.threshold;
            *kept = if is_idle { 0.0 } else { *x };
            idle += usize::from(is_idle);
        }
        if n <= MOST_TOKENS {
            let read = self.skip.forward(kept, n, y, scratch)?;
            self.counts.add((cols - read) * rows, cols * rows);
        } else {
            by_columns(self.skip.columns(), kept, n, rows, y);
            self.counts.add(idle * rows, n * cols * rows);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use half::bf16;

    fn agree<T: RowValue + Stored>(narrow: impl Fn(f32) -> T) {
        let (d_out, d_in, t) = (21, 130, 0.4);
        let w: Vec<T> = (0..d_out * d_in).map(|i| narrow(((i * 7919 % 997) as f32) / 500.0 - 1.0)).collect();
        let counts = Arc::new(Counts::default());
        let kernel = InputLinear::new(&w, (d_out, d_in), t, counts.clone()).unwrap();
        for n in [0, 1, 3, 4, 5, 30] {
            let x: Vec<f32> = (0..n * d_in).map(|i| ((i * 31 % 89) as f32) / 44.0 - 1.0).collect();
            let mut y = vec![f32::NAN; n * d_out];
            let mut scratch = vec![f32::NAN; kernel.scratch_len(n)];
            kernel.forward(&x, n, &mut y, &mut scratch).unwrap();
            for (i, y) in y.iter().enumerate() {
                let (token, r) = (i / d_out, i % d_out);
                let kept = |c: usize| Some(x[token * d_in + c]).filter(|v| v.abs() > t).unwrap_or(0.0);
                let want: f64 =
                    (0..d_in).map(|c| f64::from(kept(c)) * f64::from(w[r * d_in + c].wide())).sum();
                assert!((f64::from(*y) - want).abs() < 1e-4, "{y} {want}");
            }
            let share = counts.take();
            let is_idle = |token: usize, c: usize| x[token * d_in + c].abs() <= t;
            // Of few tokens the columns that any of them needs are read.
            let (idle, all) = match n {
                ..=4 => ((0..d_in).filter(|c| (0..n).all(|token| is_idle(token, *c))).count(), d_in),
                _ => (x.iter().filter(|v| v.abs() <= t).count(), n * d_in),
            };
            match share {
                None => assert_eq!(n, 0),
                Some(share) => assert!((share - idle as f64 / all as f64).abs() < 1e-12, "{n}: {share}"),
            }
        }
        assert!(kernel.forward(&[0.0; 3], 1, &mut [0.0; 21], &mut [0.0; 9999]).is_err());
    }

    #[test]
    fn small_inputs_count_as_zero() {
        agree(|v| v);
        agree(bf16::from_f32);
    }
}
