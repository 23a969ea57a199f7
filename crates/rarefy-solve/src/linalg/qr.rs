//! QR on one thread per block of rows: the same bits on any number of threads.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as apply_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as apply,
};
use faer::linalg::qr::{col_pivoting, no_pivoting};
use faer::{Conj, Mat, MatRef, Par};
use rayon::prelude::*;

/// Rows of a block, at least.
const BLOCK: usize = 4096;

/// The factorisation in place, and the coefficients of its reflectors.
fn factor(a: &mut Mat<f64>) -> Mat<f64> {
    let (m, n) = a.shape();
    let block = no_pivoting::factor::recommended_block_size::<f64>(m, n);
    let mut coefficients = Mat::zeros(block, m.min(n));
    let scratch = no_pivoting::factor::qr_in_place_scratch::<f64>(m, n, block, Par::Seq, Default::default());
    no_pivoting::factor::qr_in_place(
        a.as_mut(),
        coefficients.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    coefficients
}

fn upper(a: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows().min(a.ncols()), a.ncols(), |i, j| if i <= j { a[(i, j)] } else { 0.0 })
}

/// `R` of `A = QR`, by QR of blocks of rows and of their stacked factors.
pub(crate) fn r_factor(a: MatRef<'_, f64>) -> Mat<f64> {
    let (n, d) = (a.nrows(), a.ncols());
    let block = BLOCK.max(4 * d);
    if n <= block {
        let mut a = a.to_owned();
        factor(&mut a);
        return upper(&a);
    }
    let parts: Vec<Mat<f64>> = (0..n.div_ceil(block))
        .into_par_iter()
        .map(|k| r_factor(a.subrows(k * block, block.min(n - k * block))))
        .collect();
    let rows: usize = parts.iter().map(Mat::nrows).sum();
    let mut stacked = Mat::zeros(rows, d);
    let mut at = 0;
    for part in &parts {
        stacked.as_mut().subrows_mut(at, part.nrows()).copy_from(part);
        at += part.nrows();
    }
    r_factor(stacked.as_ref())
}

/// The first columns of `Q`, as many as `A` has (or rows, when fewer).
pub(crate) fn thin_q(mut a: Mat<f64>) -> Mat<f64> {
    let (m, size) = (a.nrows(), a.nrows().min(a.ncols()));
    let coefficients = factor(&mut a);
    let mut q = Mat::identity(m, size);
    let scratch = apply_scratch::<f64>(m, coefficients.nrows(), size);
    apply(
        a.subcols(0, size),
        coefficients.as_ref(),
        Conj::No,
        q.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    q
}

/// `R` and the order of the columns of a pivoted QR.
pub(crate) fn pivoted(a: MatRef<'_, f64>) -> (Mat<f64>, Vec<usize>) {
    let mut a = a.to_owned();
    let (m, n) = a.shape();
    let block = no_pivoting::factor::recommended_block_size::<f64>(m, n);
    let mut coefficients = Mat::zeros(block, m.min(n));
    let (mut forward, mut backward) = (vec![0_usize; n], vec![0_usize; n]);
    let scratch =
        col_pivoting::factor::qr_in_place_scratch::<usize, f64>(m, n, block, Par::Seq, Default::default());
    col_pivoting::factor::qr_in_place(
        a.as_mut(),
        coefficients.as_mut(),
        &mut forward,
        &mut backward,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    (upper(&a), forward)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_reproduce_the_matrix() {
        for (n, d) in [(5, 3), (3, 5), (9001, 4), (4, 4)] {
            let a = crate::linop::tests::random(n, d, 2);
            let gram = a.transpose() * &a;
            let r = r_factor(a.as_ref());
            assert!((r.transpose() * &r - &gram).norm_max() < 1e-12 * n as f64);
            let (r, order) = pivoted(a.as_ref());
            let again = r.transpose() * &r;
            let back = Mat::from_fn(d, d, |i, j| gram[(order[i], order[j])]);
            assert!((again - back).norm_max() < 1e-12 * n as f64);
            let q = thin_q(a.clone());
            let projected = &q * (q.transpose() * &a);
            assert!((projected - &a).norm_max() < 1e-12);
        }
    }
}
