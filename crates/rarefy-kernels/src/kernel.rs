//! The one trait through which models run a linear layer.

use crate::KernelError;

/// A weight `W[rows, cols]` that owns its data and computes `y[n, rows] = x[n, cols] · Wᵀ`.
pub trait LinearKernel: Send + Sync + std::fmt::Debug {
    /// Rows of the weight, `d_out`.
    fn rows(&self) -> usize;
    /// Columns of the weight, `d_in`.
    fn cols(&self) -> usize;
    /// Stored values that are weights of the matrix (all of them for a dense kernel).
    fn nnz(&self) -> usize;
    /// Resident bytes of the weight, padding included.
    fn bytes(&self) -> usize;
    /// Short name, for reports: `"panel-f32"`.
    fn name(&self) -> &'static str;
    /// Elements of scratch that [`LinearKernel::forward`] needs for `n` rows of `x`; its content does not matter.
    fn scratch_len(&self, n: usize) -> usize;
    /// `y[n, rows] = x[n, cols] · Wᵀ` on the current rayon pool; the result does not depend on the number of threads.
    ///
    /// # Errors
    /// [`KernelError::Length`] unless `x` has `n * cols`, `y` has `n * rows` and `scratch` at least `scratch_len(n)` elements.
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError>;
}
