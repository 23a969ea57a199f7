//! The dense sketch: the reference, and the most expensive.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::{Sketch, check_sizes};
use crate::SolveError;

/// Rows of the input whose part of `S` is made at once.
const ROWS: usize = 256;

/// Independent `N(0, 1/m)` entries. Not stored: column `i` of `S` is the stream `i` of the generator.
///
/// `‖SAx‖ = (1 ± ε)‖Ax‖` for all x in a d-dimensional space from `m = O(d/ε²)`, with small constants.
#[derive(Debug, Clone)]
pub struct Gaussian {
    n_in: usize,
    n_out: usize,
    seed: u64,
}

impl Gaussian {
    /// Draws.
    ///
    /// # Errors
    /// [`SolveError::Setting`] for a size of 0.
    pub fn new(n_in: usize, n_out: usize, seed: u64) -> Result<Self, SolveError> {
        check_sizes(n_in, n_out)?;
        Ok(Self { n_in, n_out, seed })
    }

    fn columns(&self, first: usize, count: usize) -> Mat<f64> {
        let scale = 1.0 / (self.n_out as f64).sqrt();
        let mut values = vec![0.0; self.n_out * count];
        values.par_chunks_mut(self.n_out).enumerate().for_each(|(j, column)| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream((first + j) as u64);
            column.iter_mut().for_each(|v| {
                let z: f64 = StandardNormal.sample(&mut rng);
                *v = scale * z;
            });
        });
        MatRef::from_column_major_slice(&values, self.n_out, count).to_owned()
    }
}

impl Sketch for Gaussian {
    fn n_in(&self) -> usize {
        self.n_in
    }

    fn n_out(&self) -> usize {
        self.n_out
    }

    fn add_block(&self, first: usize, block: MatRef<'_, f64>, out: &mut [f64]) {
        let mut out = MatMut::from_column_major_slice_mut(out, self.n_out, block.ncols());
        // Cut at multiples of ROWS of the whole matrix.
        let mut done = 0;
        while done < block.nrows() {
            let at = first + done;
            let count = (ROWS - at % ROWS).min(block.nrows() - done);
            let s = self.columns(at, count);
            let part = block.subrows(done, count);
            matmul(out.rb_mut(), Accum::Add, s.as_ref(), part, 1.0, Par::Seq);
            done += count;
        }
    }
}
