//! The machine's rate of f32 multiply-adds: the roof of the kernels that are not bound by memory.

use std::time::Instant;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use crate::bandwidth::median;
use crate::{Isa, KernelError, drive};

/// Steps of one pass; with twelve chains some 2 ms.
const STEPS: usize = 1 << 19;
const CHAINS: usize = 12;
const PASSES: usize = 15;

/// GF/s (10^9, a multiply-add counts as two) of f32 multiply-adds in registers on `threads` threads: median of fifteen passes.
///
/// # Errors
/// [`KernelError::Threads`] when the threads cannot be started.
pub fn measure_fma(threads: usize) -> Result<f64, KernelError> {
    let pool = drive::pool(threads)?;
    Ok(pool.install(|| {
        let mut rates: Vec<f64> = (0..PASSES).map(|_| fma_pass()).collect();
        median(&mut rates)
    }))
}

/// One pass on every thread of the current rayon pool; GF/s. Short enough to be run between two calls of a kernel.
pub fn fma_pass() -> f64 {
    let start = Instant::now();
    let threads = rayon::current_num_threads().max(1);
    let products: usize = (0..threads).into_par_iter().with_max_len(1).map(|_| chains()).sum();
    2.0 * products as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Runs the chains; multiply-adds done.
fn chains() -> usize {
    match Isa::detect() {
        // SAFETY (both): the instruction set was detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512() },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2() },
        _ => {
            let mut acc = [1.0f32; 64];
            for _ in 0..STEPS {
                acc.iter_mut().for_each(|a| *a = *a * 0.5 + 0.5);
            }
            std::hint::black_box(acc);
            64 * STEPS
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512() -> usize {
    // SAFETY: the caller promises AVX-512.
    unsafe { simd::<std::arch::x86_64::__m512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2() -> usize {
    // SAFETY: the caller promises AVX2 and FMA.
    unsafe { simd::<std::arch::x86_64::__m256>() }
}

/// # Safety
/// The instruction set of `L`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn simd<L: crate::registers::Register>() -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        // The fixed point of the chain: no denormals, no overflow.
        let (one, half) = (std::hint::black_box(1.0f32), std::hint::black_box(0.5f32));
        let (mut acc, half) = ([L::splat(&one); CHAINS], L::splat(&half));
        for _ in 0..STEPS {
            for a in &mut acc {
                *a = a.fma(half, half);
            }
        }
        std::hint::black_box(acc);
    }
    CHAINS * L::N * STEPS
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_rate_is_finite_and_not_absurd() {
        let rate = measure_fma(1).unwrap();
        assert!(rate > 0.1 && rate < 1e5, "{rate}");
        assert!(fma_pass() > 0.1);
    }
}
