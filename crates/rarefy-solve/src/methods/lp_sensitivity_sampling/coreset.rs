//! A sample kept up to date while rows pass by once.

use faer::{Mat, MatRef};

use super::{LpSettings, Scheme, check_p, select_of};
use crate::error::{check_dimension, check_finite, check_not_empty, check_setting};
use crate::{Design, SolveError};

/// Rows that stand for all rows read.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedRows {
    /// The rows themselves, not multiplied: `[rows, columns]`.
    pub rows: Mat<f64>,
    /// The position of each in the stream.
    pub indices: Vec<usize>,
    /// The factor of `|·|^p` of each.
    pub weights: Vec<f64>,
}

impl WeightedRows {
    fn empty(d: usize) -> Self {
        Self { rows: Mat::zeros(0, d), indices: vec![], weights: vec![] }
    }

    fn join(&self, other: &Self) -> Self {
        let n = self.rows.nrows();
        let rows = Mat::from_fn(n + other.rows.nrows(), self.rows.ncols(), |i, j| {
            if i < n { self.rows[(i, j)] } else { other.rows[(i - n, j)] }
        });
        Self {
            rows,
            indices: [self.indices.as_slice(), &other.indices].concat(),
            weights: [self.weights.as_slice(), &other.weights].concat(),
        }
    }

    /// `A` and `b` when the last column is `b`.
    #[must_use]
    pub fn split(&self) -> (Design, Vec<f64>) {
        let d = self.rows.ncols().saturating_sub(1);
        let b = if self.rows.ncols() == 0 { vec![] } else { self.rows.col_as_slice(d).to_vec() };
        (Design::Dense(self.rows.subcols(0, d).to_owned()), b)
    }
}

/// One pass over `[A b]` in blocks of rows, by any scheme: merge and reduce.
///
/// Rows fill a bucket of `2m`, which is cut to `m` by the scores within it; two buckets of the same level are joined and
/// cut again. So a row passes through at most `log₂(n/m) + 1` cuts, each unbiased for every `‖Ax‖_p^p`, and the
/// distortions add up: for ε in the end, the cuts need ε/log(n/m) in the worst case. `O(m·log(n/m))` rows are held.
/// Scores relative to a bucket are at least those relative to the whole stream, which is what keeps heavy rows.
/// The result depends on the order of the rows, not on how they are cut into blocks.
///
/// ```
/// use rarefy_solve::methods::lp_sensitivity_sampling::{Coreset, LpSettings, RegressSettings, regress};
/// use rarefy_solve::Monitor;
/// let mut coreset = Coreset::new(3, &LpSettings { rows: Some(100), ..Default::default() })?;
/// for block in 0..100 {
///     let x = |i: usize| (f64::from(block) + i as f64 * 0.37).sin();
///     coreset.push(faer::Mat::from_fn(50, 3, |i, j| [1.0, x(i), 3.0 + 2.0 * x(i)][j]).as_ref())?;
/// }
/// let rows = coreset.finish()?;
/// let (a, b) = rows.split();
/// let s = regress(&a, &b, 1.0, Some(&rows.weights), &RegressSettings::default(), &mut Monitor::silent())?;
/// assert!((s.x[0] - 3.0).abs() < 1e-9 && (s.x[1] - 2.0).abs() < 1e-9);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Coreset {
    settings: LpSettings,
    m: usize,
    read: usize,
    cuts: u64,
    /// Rows not yet cut, row-major.
    pending: Vec<f64>,
    n_cols: usize,
    levels: Vec<Option<WeightedRows>>,
}

impl Coreset {
    /// Nothing read yet, of a matrix with that number of columns, `b` included.
    ///
    /// # Errors
    /// [`SolveError::Setting`] also without `rows`, since 𝔖 is not known beforehand; [`SolveError::Empty`] without
    /// columns.
    pub fn new(n_cols: usize, settings: &LpSettings) -> Result<Self, SolveError> {
        settings.validate()?;
        check_p(settings.p)?;
        check_not_empty("block", "column", n_cols)?;
        let m = settings.rows.unwrap_or(0);
        check_setting(m > 0, "rows", "null", "a number for a stream")?;
        let settings = settings.clone();
        Ok(Self { settings, m, read: 0, cuts: 0, pending: vec![], n_cols, levels: vec![] })
    }

    /// Number of rows read.
    #[must_use]
    pub fn rows_read(&self) -> usize {
        self.read
    }

    /// The next rows.
    ///
    /// # Errors
    /// [`SolveError::Dimension`] and [`SolveError::NonFinite`]: the block is then not counted in.
    /// [`SolveError::Breakdown`] when scores overflow: the stream is then of no further use.
    pub fn push(&mut self, block: MatRef<'_, f64>) -> Result<(), SolveError> {
        check_dimension("block", self.n_cols, "columns of the matrix", block.ncols())?;
        let rows: Vec<f64> =
            (0..block.nrows()).flat_map(|i| (0..block.ncols()).map(move |j| block[(i, j)])).collect();
        check_finite("block", &rows)?;
        for row in rows.chunks_exact(self.n_cols) {
            self.pending.extend_from_slice(row);
            self.read += 1;
            if self.pending.len() == 2 * self.m * self.n_cols {
                let mut carry = self.take_pending();
                carry = self.cut(&carry)?;
                let mut level = 0;
                while let Some(other) = self.levels.get_mut(level).and_then(Option::take) {
                    carry = self.cut(&other.join(&carry))?;
                    level += 1;
                }
                if level == self.levels.len() {
                    self.levels.push(None);
                }
                self.levels[level] = Some(carry);
            }
        }
        Ok(())
    }

    fn take_pending(&mut self) -> WeightedRows {
        let n = self.pending.len() / self.n_cols;
        let rows = Mat::from_fn(n, self.n_cols, |i, j| self.pending[i * self.n_cols + j]);
        self.pending.clear();
        WeightedRows { rows, indices: (self.read - n..self.read).collect(), weights: vec![1.0; n] }
    }

    fn cut(&mut self, bucket: &WeightedRows) -> Result<WeightedRows, SolveError> {
        if bucket.indices.len() <= self.m {
            return Ok(bucket.clone());
        }
        self.cuts += 1;
        let p = self.settings.p;
        let factor: Vec<f64> = bucket.weights.iter().map(|w| w.powf(1.0 / p)).collect();
        let scaled = Design::Dense(bucket.rows.clone()).scale_rows(&factor);
        let mut settings = self.settings.clone();
        settings.seed = settings.seed.wrapping_add(self.cuts.wrapping_mul(0xd134_2543_de82_ef95));
        let s = match settings.scheme {
            // Rows stand for different numbers of rows by now.
            Scheme::Uniform => super::sample(&bucket.weights, self.m, settings.seed)?,
            _ => select_of(&scaled, &settings)?,
        };
        let rows = Mat::from_fn(s.rows.len(), self.n_cols, |i, j| bucket.rows[(s.rows[i], j)]);
        let indices = s.rows.iter().map(|i| bucket.indices[*i]).collect();
        let weights = s.rows.iter().zip(&s.weights).map(|(i, w)| bucket.weights[*i] * w).collect();
        Ok(WeightedRows { rows, indices, weights })
    }

    /// About `m` rows for all rows read, in the order of the stream.
    ///
    /// # Errors
    /// [`SolveError::Empty`] when no row was read, [`SolveError::Breakdown`] when scores overflow.
    pub fn finish(mut self) -> Result<WeightedRows, SolveError> {
        check_not_empty("stream", "row", self.read)?;
        let mut all = WeightedRows::empty(self.n_cols);
        for level in std::mem::take(&mut self.levels).into_iter().rev().flatten() {
            all = all.join(&level);
        }
        let last = self.take_pending();
        all = all.join(&last);
        self.cut(&all)
    }
}
