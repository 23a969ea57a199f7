//! The naive product in f64, against which every kernel is tested.

/// `y[n, rows] = x[n, cols] · Wᵀ` in f64, with the sum of absolute products beside it (the scale of rounding errors).
///
/// Returns `(y, scale)`, both `[n, rows]`. Panics when the slices do not fit the shape.
pub fn linear_f64(w: &[f32], rows: usize, cols: usize, x: &[f32], n: usize) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(w.len(), rows * cols, "w must be [rows, cols]");
    assert_eq!(x.len(), n * cols, "x must be [n, cols]");
    let (mut y, mut scale) = (vec![0.0; n * rows], vec![0.0; n * rows]);
    for t in 0..n {
        for r in 0..rows {
            for c in 0..cols {
                let p = f64::from(w[r * cols + c]) * f64::from(x[t * cols + c]);
                y[t * rows + r] += p;
                scale[t * rows + r] += p.abs();
            }
        }
    }
    (y, scale)
}

#[cfg(test)]
mod tests {
    #[test]
    fn by_hand() {
        // [1 2; 3 -4] applied to (5, 6): 5 + 12 = 17 and 15 - 24 = -9; absolute products 17 and 39.
        let (y, scale) = super::linear_f64(&[1.0, 2.0, 3.0, -4.0], 2, 2, &[5.0, 6.0], 1);
        assert_eq!((y, scale), (vec![17.0, -9.0], vec![17.0, 39.0]));
    }
}
