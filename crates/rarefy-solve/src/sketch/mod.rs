//! Random linear maps `S: ℝⁿ → ℝᵐ` with `E[SᵀS] = I`, for `m` much smaller than `n`.
//!
//! | kind | rows for a subspace embedding of dimension d | cost on n × d | streams in row blocks |
//! |---|---|---|---|
//! | [`Gaussian`] | d/ε² | n·d·m | yes |
//! | [`Srht`] | d·log d/ε² | n·d·log n | yes, best in blocks of at least m rows |
//! | [`BalancedPooling`] | d·log(d/δ)/ε², also per coordinate | n·d·log n | as above, of at least N rows |
//! | [`Osnap`] | d·log d/ε² with log(d)/ε entries per column | nnz·s | yes |
//! | [`CountSketch`] | d²/ε² | nnz | yes |
//!
//! A block of rows is sketched by [`Sketch::add_block`] and [`Stream`]. The order of the blocks does not
//! matter beyond rounding; the Hadamard kinds cut a block into aligned powers of two, each of which is a
//! corner of the large transform up to a sign per row. Draws depend on the seed alone, results not on
//! the number of threads.

mod dense;
mod hadamard;
mod sparse;
mod structured;
mod tensor;

use std::fmt;

pub use dense::Gaussian;
pub use hadamard::walsh_hadamard;
pub use sparse::{CountSketch, Osnap};
pub use structured::{BalancedPooling, Srht};
pub use tensor::TensorSrht;

pub(crate) use hadamard::transform;

use faer::{Mat, MatRef};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::SolveError;
use crate::error::{check_dimension, check_setting};

/// A drawn sketching matrix.
pub trait Sketch: fmt::Debug + Send + Sync {
    /// Number of columns of `S`: the rows of what it is applied to.
    fn n_in(&self) -> usize;

    /// Number of rows of `S`.
    fn n_out(&self) -> usize;

    /// `out += S[:, first .. first + rows] · block`, `out` column-major with [`Sketch::n_out`] rows.
    /// Sizes are the caller's duty, an implementation may panic otherwise; [`Stream`] checks.
    fn add_block(&self, first: usize, block: MatRef<'_, f64>, out: &mut [f64]);

    /// `S · A`.
    ///
    /// # Errors
    /// [`SolveError::Dimension`] for the wrong number of rows, [`SolveError::NonFinite`] for NaN or
    /// infinity, [`SolveError::Breakdown`] when finite input overflows.
    fn apply(&self, a: MatRef<'_, f64>) -> Result<Mat<f64>, SolveError> {
        check_dimension("a", self.n_in(), "columns of the sketch", a.nrows())?;
        let mut out = vec![0.0; self.n_out() * a.ncols()];
        self.add_block(0, a, &mut out);
        check_result(a, &out)?;
        Ok(to_matrix(&out, self.n_out(), a.ncols()))
    }

    /// `S · x`.
    ///
    /// # Errors
    /// As [`Sketch::apply`].
    fn apply_vector(&self, x: &[f64]) -> Result<Vec<f64>, SolveError> {
        check_dimension("x", self.n_in(), "columns of the sketch", x.len())?;
        let mut out = vec![0.0; self.n_out()];
        let x = MatRef::from_column_major_slice(x, x.len(), 1);
        self.add_block(0, x, &mut out);
        check_result(x, &out)?;
        Ok(out)
    }
}

/// Every entry of the input has a part in the output with a coefficient that is not 0, or a finite
/// one anyway, so it is enough to look at the much smaller output.
fn check_result(a: MatRef<'_, f64>, out: &[f64]) -> Result<(), SolveError> {
    if out.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    check_matrix("a", a)?;
    Err(SolveError::breakdown("sketch", "finite values overflow", "scale the matrix down first"))
}

/// The index counts down the columns.
fn check_matrix(argument: &'static str, a: MatRef<'_, f64>) -> Result<(), SolveError> {
    let n = a.nrows();
    let mut bad = (0..a.ncols()).flat_map(|j| (0..n).map(move |i| (i, j))).filter(|at| !a[*at].is_finite());
    match bad.next() {
        None => Ok(()),
        Some((i, j)) => Err(SolveError::NonFinite { argument, count: 1 + bad.count(), first: j * n + i }),
    }
}

fn to_matrix(out: &[f64], m: usize, p: usize) -> Mat<f64> {
    MatRef::from_column_major_slice(out, m, p).to_owned()
}

/// Which sketching matrix to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SketchKind {
    /// Independent normal entries.
    Gaussian,
    /// Rows of a Hadamard matrix behind random signs.
    Srht,
    /// A Hadamard matrix behind random signs, shuffled and pooled with normal weights.
    BalancedPooling,
    /// `nonzeros` random signs per column, one in each of as many bands of rows.
    Osnap {
        /// Entries per column, at least 1, at most the number of rows.
        nonzeros: usize,
    },
    /// One random sign per column.
    CountSketch,
}

impl SketchKind {
    /// Draws an `n_out × n_in` sketching matrix.
    ///
    /// # Errors
    /// [`SolveError::Setting`] for sizes that the kind does not allow.
    pub fn draw(self, n_in: usize, n_out: usize, seed: u64) -> Result<Box<dyn Sketch>, SolveError> {
        Ok(match self {
            Self::Gaussian => Box::new(Gaussian::new(n_in, n_out, seed)?),
            Self::Srht => Box::new(Srht::new(n_in, n_out, seed)?),
            Self::BalancedPooling => Box::new(BalancedPooling::new(n_in, n_out, seed)?),
            Self::Osnap { nonzeros } => Box::new(Osnap::new(n_in, n_out, nonzeros, seed)?),
            Self::CountSketch => Box::new(CountSketch::new(n_in, n_out, seed)?),
        })
    }
}

fn check_sizes(n_in: usize, n_out: usize) -> Result<(), SolveError> {
    check_setting((1..1 << 40).contains(&n_in), "n_in", n_in, "in 1..2^40")?;
    check_setting((1..1 << 31).contains(&n_out), "n_out", n_out, "in 1..2^31")
}

/// `S · A` from blocks of rows, read once from the first row to the last.
///
/// ```
/// use rarefy_solve::sketch::{Sketch, SketchKind, Stream};
/// let a = faer::Mat::from_fn(100, 3, |i, j| (i * 3 + j) as f64);
/// let s = SketchKind::CountSketch.draw(100, 8, 7)?;
/// let mut stream = Stream::new(s.as_ref(), 3);
/// stream.push(a.as_ref().subrows(0, 60))?;
/// stream.push(a.as_ref().subrows(60, 40))?;
/// assert_eq!(stream.finish()?, s.apply(a.as_ref())?);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
#[derive(Debug)]
pub struct Stream<'a> {
    sketch: &'a dyn Sketch,
    n_cols: usize,
    next: usize,
    out: Vec<f64>,
}

impl<'a> Stream<'a> {
    /// Nothing read yet, of a matrix with that number of columns.
    #[must_use]
    pub fn new(sketch: &'a dyn Sketch, n_cols: usize) -> Self {
        Self { sketch, n_cols, next: 0, out: vec![0.0; sketch.n_out() * n_cols] }
    }

    /// Number of rows read.
    #[must_use]
    pub fn rows_read(&self) -> usize {
        self.next
    }

    /// The next rows.
    ///
    /// # Errors
    /// [`SolveError::Dimension`] for the wrong number of columns or for rows beyond the last,
    /// [`SolveError::NonFinite`] for NaN or infinity; the block is then not counted in.
    pub fn push(&mut self, block: MatRef<'_, f64>) -> Result<(), SolveError> {
        check_dimension("block", self.n_cols, "columns of the matrix", block.ncols())?;
        let left = self.sketch.n_in() - self.next;
        if block.nrows() > left {
            let (expected, found) = (left, block.nrows());
            return Err(SolveError::Dimension {
                argument: "block",
                expected,
                meaning: "rows left at most",
                found,
            });
        }
        let n = block.nrows();
        check_matrix("block", block)?;
        self.sketch.add_block(self.next, block, &mut self.out);
        self.next += n;
        Ok(())
    }

    /// The sketch of the whole matrix.
    ///
    /// # Errors
    /// [`SolveError::Dimension`] when rows are missing, [`SolveError::Breakdown`] when finite input
    /// overflowed.
    pub fn finish(self) -> Result<Mat<f64>, SolveError> {
        check_dimension("rows read", self.sketch.n_in(), "columns of the sketch", self.next)?;
        check_result(Mat::<f64>::zeros(0, self.n_cols).as_ref(), &self.out)?;
        Ok(to_matrix(&self.out, self.sketch.n_out(), self.n_cols))
    }
}

/// Columns of a block that are not slices are copied that many at a time: a cache line of each row.
const COPIED: usize = 8;

/// Calls `work(column, out)` for each column of the block, in parallel.
fn for_columns(
    block: MatRef<'_, f64>,
    m: usize,
    out: &mut [f64],
    work: impl Fn(&[f64], &mut [f64]) + Sync + Send,
) {
    assert_eq!(out.len(), m * block.ncols(), "sizes are checked by the caller");
    let n = block.nrows();
    out.par_chunks_mut(m * COPIED).enumerate().for_each(|(k, out)| {
        let strip = block.subcols(k * COPIED, out.len() / m);
        if strip.row_stride() == 1 || n <= 1 {
            for (j, out) in out.chunks_exact_mut(m).enumerate() {
                match strip.col(j).try_as_col_major() {
                    Some(column) => work(column.as_slice(), out),
                    None => work(&(0..n).map(|i| strip[(i, j)]).collect::<Vec<f64>>(), out),
                }
            }
            return;
        }
        // A whole line of a row is read before the next row is.
        let width = strip.ncols();
        let mut columns = vec![0.0; n * width];
        for i in 0..n {
            for j in 0..width {
                columns[j * n + i] = strip[(i, j)];
            }
        }
        for (column, out) in columns.chunks_exact(n).zip(out.chunks_exact_mut(m)) {
            work(column, out);
        }
    });
}
