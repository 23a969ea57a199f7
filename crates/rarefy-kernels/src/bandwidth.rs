//! The machine's read bandwidth: the roof under which every kernel of this crate works.

use std::time::Instant;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::{AlignedBuf, KernelError, drive};

/// Passes of [`measure_read`].
const PASSES: usize = 9;

/// A buffer that is only read, to measure how fast memory delivers.
#[derive(Debug)]
pub struct ReadProbe {
    data: AlignedBuf<u64>,
}

impl ReadProbe {
    /// A probe over `bytes` bytes on huge pages where the system has them; take more than four times the last-level cache.
    pub fn new(bytes: usize) -> Self {
        let mut data = AlignedBuf::zeroed(bytes.div_ceil(8));
        // Distinct pages must be backed by distinct memory, not by one shared zero page.
        for (i, v) in data.as_mut_slice().iter_mut().enumerate().step_by(512) {
            *v = i as u64;
        }
        Self { data }
    }

    /// Bytes of the probe.
    pub fn bytes(&self) -> usize {
        self.data.as_slice().len() * 8
    }

    /// Reads part `part` of `parts` once with 64-byte loads, cut evenly over the current rayon pool; GB/s (10^9).
    pub fn read(&self, part: usize, parts: usize) -> f64 {
        let all = self.data.as_slice();
        let bound = |k: usize, of: usize, len: usize| len / 8 * k / of * 8;
        let data = &all[bound(part, parts, all.len())..bound(part + 1, parts, all.len())];
        let threads = rayon::current_num_threads().max(1);
        let start = Instant::now();
        let sum: u64 = (0..threads)
            .into_par_iter()
            .map(|t| sum(&data[bound(t, threads, data.len())..bound(t + 1, threads, data.len())]))
            .reduce(|| 0, u64::wrapping_add);
        std::hint::black_box(sum);
        data.len() as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
    }
}

/// Median over nine passes of reading `bytes` bytes on `threads` threads, in GB/s (10^9).
///
/// `bytes` should exceed four times the last-level cache; 1.25 GiB is a good choice.
///
/// # Errors
/// [`KernelError::Threads`] when the threads cannot be started.
pub fn measure_read(threads: usize, bytes: usize) -> Result<f64, KernelError> {
    let pool = drive::pool(threads)?;
    let probe = ReadProbe::new(bytes);
    Ok(pool.install(|| {
        let mut rates: Vec<f64> = (0..PASSES).map(|_| probe.read(0, 1)).collect();
        median(&mut rates)
    }))
}

/// The middle value; the mean of the two middle ones for an even count; NaN for none. Sorts `values`.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (n, half) if n % 2 == 1 => values[half],
        (_, half) => f64::midpoint(values[half - 1], values[half]),
    }
}

fn sum(data: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if crate::Isa::Avx512.is_available() {
        // SAFETY: AVX-512 F is available.
        return unsafe { sum_avx512(data) };
    }
    // Four chains of eight lanes, which the compiler turns into whatever vectors the target has.
    let mut acc = [0u64; 32];
    for block in data.chunks_exact(32) {
        for (a, v) in acc.iter_mut().zip(block) {
            *a = a.wrapping_add(*v);
        }
    }
    data.chunks_exact(32).remainder().iter().chain(&acc).fold(0, |a, v| a.wrapping_add(*v))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(data: &[u64]) -> u64 {
    use std::arch::x86_64::*;
    let mut acc = [_mm512_setzero_si512(); 4];
    let blocks = data.chunks_exact(32);
    let rest = blocks.remainder();
    for block in blocks {
        for (i, a) in acc.iter_mut().enumerate() {
            // SAFETY: `block` has 32 words, so the 8 words from `8 i` on are in it.
            let v = unsafe { _mm512_loadu_si512(block.as_ptr().add(8 * i).cast()) };
            *a = _mm512_add_epi64(*a, v);
        }
    }
    let lanes = acc.iter().fold(0u64, |s, a| s.wrapping_add(_mm512_reduce_add_epi64(*a) as u64));
    rest.iter().fold(lanes, |s, v| s.wrapping_add(*v))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_sum_reads_every_word() {
        for len in [0, 1, 31, 32, 33, 1000] {
            let data: Vec<u64> = (0..len as u64).map(|i| i * i + 1).collect();
            assert_eq!(sum(&data), data.iter().sum::<u64>(), "{len}");
        }
    }

    #[test]
    fn medians() {
        assert!(median(&mut []).is_nan());
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }

    #[test]
    fn a_small_probe_gives_a_finite_rate() {
        let rate = measure_read(2, 1 << 22).unwrap();
        assert!(rate > 0.1 && rate.is_finite(), "{rate}");
        assert!(ReadProbe::new(1 << 20).read(3, 4) > 0.0);
    }
}
