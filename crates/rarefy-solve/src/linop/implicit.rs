//! Operators given by functions, and transposes.

use std::fmt;

use super::LinOp;

type Apply<'a> = Box<dyn Fn(&[f64], &mut [f64]) + Send + Sync + 'a>;

/// An operator given by two functions: `A x` and `Aᵀ y`, each overwriting its second argument.
pub struct Implicit<'a> {
    n_rows: usize,
    n_cols: usize,
    forward: Apply<'a>,
    adjoint: Apply<'a>,
}

impl fmt::Debug for Implicit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Implicit")
            .field("n_rows", &self.n_rows)
            .field("n_cols", &self.n_cols)
            .finish_non_exhaustive()
    }
}

impl<'a> Implicit<'a> {
    /// An operator from its action and that of its transpose. That the two belong together is
    /// the caller's promise: `⟨A x, y⟩ = ⟨x, Aᵀ y⟩`.
    pub fn new(
        n_rows: usize,
        n_cols: usize,
        forward: impl Fn(&[f64], &mut [f64]) + Send + Sync + 'a,
        adjoint: impl Fn(&[f64], &mut [f64]) + Send + Sync + 'a,
    ) -> Self {
        Self { n_rows, n_cols, forward: Box::new(forward), adjoint: Box::new(adjoint) }
    }
}

impl LinOp for Implicit<'_> {
    fn n_rows(&self) -> usize {
        self.n_rows
    }
    fn n_cols(&self) -> usize {
        self.n_cols
    }
    fn apply(&self, x: &[f64], y: &mut [f64]) {
        (self.forward)(x, y);
    }
    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        (self.adjoint)(y, x);
    }
}

/// The transpose of an operator.
#[derive(Debug, Clone, Copy)]
pub struct Transposed<A>(pub A);

impl<A: LinOp> LinOp for Transposed<A> {
    fn n_rows(&self) -> usize {
        self.0.n_cols()
    }
    fn n_cols(&self) -> usize {
        self.0.n_rows()
    }
    fn apply(&self, x: &[f64], y: &mut [f64]) {
        self.0.apply_t(x, y);
    }
    fn apply_t(&self, y: &[f64], x: &mut [f64]) {
        self.0.apply(y, x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linop::tests::{check_against, random};

    #[test]
    fn functions_and_transposes() {
        let a = random(4, 3, 2);
        check_against(&Implicit::new(4, 3, |x, y| a.apply(x, y), |y, x| a.apply_t(y, x)), &a);
        check_against(&Transposed(&a), &a.transpose().to_owned());
    }
}
