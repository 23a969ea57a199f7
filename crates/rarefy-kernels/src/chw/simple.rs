//! The layers that only move memory: pooling and addition. Plain loops, which the compiler turns into vectors; their order of
//! summation is fixed by the text, so every machine gives the same bits.

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::error::{length, product};
use crate::{Clamp, KernelError};

/// Elements below which a second thread is not worth waking.
const CHUNK: usize = 1 << 16;

/// The mean of each channel of `x[channels, pixels]`; 0 channels or pixels: nothing, NaN.
///
/// # Errors
/// [`KernelError::Length`] for a slice of the wrong length.
pub fn global_average(x: &[f32], channels: usize, pixels: usize, y: &mut [f32]) -> Result<(), KernelError> {
    let expected = product("global-average", channels, pixels)?;
    length("global-average", "x", expected, x.len())?;
    length("global-average", "y", channels, y.len())?;
    if pixels == 0 {
        y.fill(f32::NAN);
        return Ok(());
    }
    for (plane, y) in x.chunks_exact(pixels).zip(y) {
        // Sixteen sums side by side, then one.
        let mut sums = [0.0f32; 16];
        for run in plane.chunks(16) {
            sums.iter_mut().zip(run).for_each(|(s, x)| *s += x);
        }
        *y = sums.iter().sum::<f32>() / pixels as f32;
    }
    Ok(())
}

/// `y = clamp(x + y)`, element by element.
///
/// # Errors
/// [`KernelError::Length`] when the lengths differ.
pub fn residual_add(x: &[f32], y: &mut [f32], clamp: Clamp) -> Result<(), KernelError> {
    length("residual-add", "x", y.len(), x.len())?;
    let add = |(x, y): (&[f32], &mut [f32])| x.iter().zip(y).for_each(|(x, y)| *y = clamp.apply(x + *y));
    if y.len() < 2 * CHUNK {
        add((x, y));
    } else {
        x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(add);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn means_by_hand_and_of_many_pixels() {
        let mut y = [0.0; 2];
        global_average(&[1.0, 2.0, 3.0, 10.0, 20.0, 60.0], 2, 3, &mut y).unwrap();
        assert_eq!(y, [2.0, 30.0]);
        let x: Vec<f32> = (0..35).map(|i| i as f32).collect();
        global_average(&x, 1, 35, &mut y[..1]).unwrap();
        assert_eq!(y[0], 17.0);
        global_average(&[f32::INFINITY, 1.0], 2, 1, &mut y).unwrap();
        assert_eq!(y, [f32::INFINITY, 1.0]);
        global_average(&[], 2, 0, &mut y).unwrap();
        assert!(y.iter().all(|v| v.is_nan()));
        assert!(global_average(&x, 2, 17, &mut y).is_err());
        assert!(global_average(&x, 5, 7, &mut y).is_err());
    }

    #[test]
    fn sums_are_clamped_and_nan_stays() {
        let mut y = [1.0, -5.0, f32::NAN, 4.0];
        residual_add(&[1.0, 2.0, 3.0, 4.0], &mut y, Clamp::RELU6).unwrap();
        assert_eq!((y[0], y[1], y[3]), (2.0, 0.0, 6.0));
        assert!(y[2].is_nan());
        assert!(residual_add(&[1.0], &mut y, Clamp::NONE).is_err());
        // Long enough for two threads, with an odd rest.
        let x: Vec<f32> = (0..3 * CHUNK + 5).map(|i| i as f32).collect();
        let mut y = x.clone();
        residual_add(&x, &mut y, Clamp::NONE).unwrap();
        assert!(y.iter().zip(&x).all(|(y, x)| *y == 2.0 * x));
    }
}
