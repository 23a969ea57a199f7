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

/// A convolution in f64: `x[channels][height][width]`, `w[d_out][channels / groups][kernel][kernel]`, outputs at `stride` steps from
/// `pad` pixels before the image, `out` rows and columns. Taps outside the image contribute nothing.
///
/// Returns `(y, scale)` as [`linear_f64`], both `[d_out][out.0][out.1]`. Panics when the slices do not fit.
#[allow(clippy::too_many_arguments, reason = "the sizes of a convolution")]
pub fn conv_f64(
    x: &[f32],
    (channels, height, width): (usize, usize, usize),
    w: &[f32],
    d_out: usize,
    groups: usize,
    kernel: usize,
    stride: usize,
    pad: (usize, usize),
    out: (usize, usize),
) -> (Vec<f64>, Vec<f64>) {
    let (ins, outs) = (channels / groups.max(1), d_out / groups.max(1));
    assert_eq!(x.len(), channels * height * width, "x must be [channels, height, width]");
    assert_eq!(
        w.len(),
        d_out * ins * kernel * kernel,
        "w must be [d_out, channels / groups, kernel, kernel]"
    );
    let (mut y, mut scale) = (Vec::new(), Vec::new());
    for o in 0..d_out {
        for (oy, ox) in (0..out.0).flat_map(|oy| (0..out.1).map(move |ox| (oy, ox))) {
            let (mut sum, mut size) = (0.0, 0.0);
            for (i, ky, kx) in
                (0..ins).flat_map(|i| (0..kernel * kernel).map(move |t| (i, t / kernel, t % kernel)))
            {
                let (iy, ix) =
                    ((oy * stride + ky).wrapping_sub(pad.0), (ox * stride + kx).wrapping_sub(pad.1));
                if iy < height && ix < width {
                    let c = o / outs * ins + i;
                    let p = f64::from(w[((o * ins + i) * kernel + ky) * kernel + kx])
                        * f64::from(x[(c * height + iy) * width + ix]);
                    sum += p;
                    size += p.abs();
                }
            }
            y.push(sum);
            scale.push(size);
        }
    }
    (y, scale)
}

#[cfg(test)]
mod tests {
    #[test]
    fn convolution_by_hand() {
        // Image [1 2; 3 4], window all ones, padded by one: every output sees all four pixels.
        let (y, scale) =
            super::conv_f64(&[1.0, 2.0, 3.0, 4.0], (1, 2, 2), &[1.0; 9], 1, 1, 3, 1, (1, 1), (2, 2));
        assert_eq!((y, scale), (vec![10.0; 4], vec![10.0; 4]));
        // Two groups, stride 2, no padding: the top left pixel of each channel times its weight.
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let (y, _) = super::conv_f64(&x, (2, 2, 2), &[3.0, -2.0], 2, 2, 1, 2, (0, 0), (1, 1));
        assert_eq!(y, [3.0, -10.0]);
    }

    #[test]
    fn by_hand() {
        // [1 2; 3 -4] applied to (5, 6): 5 + 12 = 17 and 15 - 24 = -9; absolute products 17 and 39.
        let (y, scale) = super::linear_f64(&[1.0, 2.0, 3.0, -4.0], 2, 2, &[5.0, 6.0], 1);
        assert_eq!((y, scale), (vec![17.0, -9.0], vec![17.0, 39.0]));
    }
}
