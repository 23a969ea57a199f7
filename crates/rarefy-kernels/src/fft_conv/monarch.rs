//! The transform as a product of small dense matrices, in f64: the definition against which the fast path is tested.
//!
//! With `N = N₁ M`, `X[n₁][n₂] = x[n₁ M + n₂]` and `T[k₁][n₂] = ω_N^{k₁ n₂}`, `Z = ((F_{N₁} X) · T) F_M` holds the transform with
//! `fft(x)[k₁ + N₁ k₂] = Z[k₁][k₂]`; applied again to `F_M` this is order 3, 4, and so on. The result stays in the order of `Z`. As matrix products
//! this costs `8 N Σ Nᵢ` flops, which pays where matrix units do them; [`super::LongConv`] does the small transforms as butterflies.

/// A complex number.
pub type Complex = [f64; 2];

fn mul(a: Complex, b: Complex) -> Complex {
    [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]]
}

fn root(steps: usize, turn: usize, sign: f64) -> Complex {
    let angle = sign * std::f64::consts::TAU * (steps % turn) as f64 / turn as f64;
    [angle.cos(), angle.sin()]
}

/// The transform of `x` along `factors`, in Monarch order. Panics unless the factors multiply to the length.
pub fn forward(x: &[Complex], factors: &[usize]) -> Vec<Complex> {
    assert_eq!(factors.iter().product::<usize>(), x.len(), "the factors make up the length");
    let mut z = x.to_vec();
    stage(&mut z, factors);
    z
}

fn stage(x: &mut [Complex], factors: &[usize]) {
    let Some((r, rest)) = factors.split_first() else { return };
    let (n, m) = (x.len(), x.len() / r);
    let mut z = vec![[0.0; 2]; n];
    for (k, row) in z.chunks_exact_mut(m).enumerate() {
        for (j, z) in row.iter_mut().enumerate() {
            for i in 0..*r {
                let p = mul(x[i * m + j], root(i * k, *r, -1.0));
                *z = [z[0] + p[0], z[1] + p[1]];
            }
            *z = mul(*z, root(k * j, n, -1.0));
        }
        stage(row, rest);
    }
    x.copy_from_slice(&z);
}

/// The inverse of [`forward`], from Monarch order to natural order.
pub fn inverse(z: &[Complex], factors: &[usize]) -> Vec<Complex> {
    assert_eq!(factors.iter().product::<usize>(), z.len(), "the factors make up the length");
    let mut x = z.to_vec();
    unstage(&mut x, factors);
    x
}

fn unstage(z: &mut [Complex], factors: &[usize]) {
    let Some((r, rest)) = factors.split_first() else { return };
    let (n, m) = (z.len(), z.len() / r);
    z.chunks_exact_mut(m).for_each(|row| unstage(row, rest));
    let mut x = vec![[0.0; 2]; n];
    for i in 0..*r {
        for j in 0..m {
            let mut sum = [0.0; 2];
            for k in 0..*r {
                let p = mul(mul(z[k * m + j], root(k * j, n, 1.0)), root(i * k, *r, 1.0));
                sum = [sum[0] + p[0], sum[1] + p[1]];
            }
            x[i * m + j] = sum.map(|v| v / *r as f64);
        }
    }
    z.copy_from_slice(&x);
}

/// The frequency at position `p` of the result of [`forward`].
pub fn frequency(p: usize, factors: &[usize]) -> usize {
    let mut m: usize = factors.iter().product();
    let (mut rest, mut scale, mut f) = (p, 1, 0);
    for r in factors {
        m /= r;
        f += rest / m * scale;
        rest %= m;
        scale *= r;
    }
    f
}

/// Cyclic convolution of `x` with a spectrum in Monarch order; the real part is the result, the imaginary part zero when
/// `spectrum` is that of a real kernel under a symmetric mask.
pub fn convolve(x: &[f64], spectrum: &[Complex], factors: &[usize]) -> Vec<Complex> {
    let mut z = forward(&x.iter().map(|v| [*v, 0.0]).collect::<Vec<_>>(), factors);
    z.iter_mut().zip(spectrum).for_each(|(z, k)| *z = mul(*z, *k));
    inverse(&z, factors)
}
