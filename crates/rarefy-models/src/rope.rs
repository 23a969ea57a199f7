//! Rotary position embedding in the half-split layout of the Hugging Face files (Su et al. 2021).
//!
//! Component `i` of a head is rotated together with component `i + head_dim / 2` by the angle `position · f_i`,
//! `f_i = theta^(-2i / head_dim)`. Scaling: `Linear` divides every `f_i`; `Llama3` divides the low ones and blends in between.

use std::f64::consts::PI;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};
use rarefy_checkpoint::{Rope as RopeConfig, RopeScaling};

/// The rotation of one model; cheap to clone, the tables are shared.
#[derive(Debug, Clone)]
pub struct Rope {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `f_i`, `[head_dim / 2]`.
    frequencies: Vec<f32>,
    /// The longest table asked for so far.
    tables: Mutex<Arc<Tables>>,
}

/// Cosines and sines, `[n_positions, head_dim / 2]`.
#[derive(Debug, Default)]
struct Tables {
    cos: Vec<f32>,
    sin: Vec<f32>,
    len: usize,
}

impl Rope {
    /// From the configuration.
    #[must_use]
    pub fn new(config: &RopeConfig, head_dim: usize) -> Self {
        let frequencies = (0..head_dim / 2)
            .map(|i| {
                // In 32 bits where the reference implementation works in 32 bits.
                let f = 1.0 / (config.theta.powf(2.0 * i as f64 / head_dim as f64) as f32);
                scaled(f64::from(f), &config.scaling) as f32
            })
            .collect();
        Self { inner: Arc::new(Inner { frequencies, tables: Mutex::default() }) }
    }

    /// Tables for at least `len` positions.
    fn tables(&self, len: usize) -> Arc<Tables> {
        let mut held = self.inner.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len < len {
            // Doubling, so that token after token does not compute them again each time.
            let len = len.next_power_of_two().max(64);
            let half = self.inner.frequencies.len();
            let mut tables =
                Tables { cos: Vec::with_capacity(len * half), sin: Vec::with_capacity(len * half), len };
            for position in 0..len {
                for f in &self.inner.frequencies {
                    let (sin, cos) = f64::from(position as f32 * f).sin_cos();
                    tables.cos.push(cos as f32);
                    tables.sin.push(sin as f32);
                }
            }
            *held = Arc::new(tables);
        }
        held.clone()
    }

    /// Rotates `x[n_tokens, n_heads, head_dim]` in place; row `t` stands at position `start + t % length`.
    pub(crate) fn rotate_slice(&self, x: &mut [f32], n_heads: usize, length: usize, start: usize) {
        let half = self.inner.frequencies.len();
        let tables = self.tables(start + length);
        for (t, token) in x.chunks_exact_mut(n_heads * half * 2).enumerate() {
            let at = (start + t % length) * half;
            let (cos, sin) = (&tables.cos[at..at + half], &tables.sin[at..at + half]);
            for head in token.chunks_exact_mut(half * 2) {
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    let (x, y) = (a[i], b[i]);
                    a[i] = x * cos[i] - y * sin[i];
                    b[i] = y * cos[i] + x * sin[i];
                }
            }
        }
    }

    /// The same on a tensor `[batch, length, n_heads, head_dim]` with positions from 0, differentiable.
    pub(crate) fn rotate_tensor(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, length, _, head_dim] = x.dims();
        let half = head_dim / 2;
        let device: Device = x.device();
        let tables = self.tables(length);
        let table = |values: &[f32]| {
            let data = TensorData::new(values[..length * half].to_vec(), [1, length, 1, half]);
            Tensor::<4>::from_data(data, &device)
        };
        let (cos, sin) = (table(&tables.cos), table(&tables.sin));
        let a = x.clone().narrow(3, 0, half);
        let b = x.narrow(3, half, half);
        Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 3)
    }
}

/// One frequency after scaling.
fn scaled(f: f64, scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => f,
        RopeScaling::Linear { factor } => f / factor,
        RopeScaling::Llama3 { factor, low, high, original } => {
            // Wavelengths below original/high stay, above original/low are stretched by `factor`, in between blend.
            let original = *original as f64;
            let wavelength = 2.0 * PI / f;
            if wavelength < original / high {
                f
            } else if wavelength > original / low {
                f / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * f / factor + smooth * f
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rope(theta: f64, scaling: RopeScaling, head_dim: usize) -> Rope {
        Rope::new(&RopeConfig { theta, scaling }, head_dim)
    }

    /// head_dim 4, theta 100: f = [1, 0.1]. Position 2 turns (1, ., 0, .) by 2 rad and (., 1, ., 0) by 0.2 rad.
    #[test]
    fn by_hand() {
        let rope = rope(100.0, RopeScaling::None, 4);
        let mut x = vec![0.0; 12];
        x[8..].copy_from_slice(&[1.0, 1.0, 0.0, 0.0]);
        rope.rotate_slice(&mut x, 1, 3, 0);
        let expected = [2f32.cos(), 0.2f32.cos(), 2f32.sin(), 0.2f32.sin()];
        for (a, b) in x[8..].iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn slice_and_tensor_agree() {
        let rope = rope(10_000.0, RopeScaling::None, 8);
        let values: Vec<f32> = (0..2 * 5 * 3 * 8).map(|i| ((i * 37 % 101) as f32) / 50.0 - 1.0).collect();
        let x = Tensor::<4>::from_data(TensorData::new(values.clone(), [2, 5, 3, 8]), &Device::flex());
        let tensor = rope.rotate_tensor(x).into_data().try_into_vec::<f32>().unwrap();
        let mut slice = values;
        rope.rotate_slice(&mut slice, 3, 5, 0);
        for (a, b) in slice.iter().zip(&tensor) {
            assert!((a - b).abs() < 1e-6);
        }
    }

    #[test]
    fn starting_later_equals_the_tail_of_starting_at_zero() {
        let rope = rope(10_000.0, RopeScaling::Linear { factor: 2.0 }, 8);
        let values: Vec<f32> = (0..100 * 8).map(|i| (i % 13) as f32).collect();
        let mut all = values.clone();
        rope.rotate_slice(&mut all, 1, 100, 0);
        let mut tail = values[70 * 8..].to_vec();
        rope.rotate_slice(&mut tail, 1, 30, 70);
        assert_eq!(&all[70 * 8..], &tail[..]);
    }

    /// Factor 4, original 64, low 1, high 4: wavelength 2π (f = 1) is below 16 and stays; wavelength 2π·1000 is divided.
    #[test]
    fn llama3_keeps_the_high_and_divides_the_low() {
        let scaling = RopeScaling::Llama3 { factor: 4.0, low: 1.0, high: 4.0, original: 64 };
        assert_eq!(scaled(1.0, &scaling), 1.0);
        assert_eq!(scaled(0.001, &scaling), 0.00025);
        // Wavelength 32: smooth = (64 / 32 - 1) / 3 = 1/3.
        let f = 2.0 * PI / 32.0;
        assert!((scaled(f, &scaling) - (2.0 / 3.0 * f / 4.0 + f / 3.0)).abs() < 1e-12);
    }
}
