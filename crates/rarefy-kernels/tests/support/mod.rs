//! What the tests of several kernels share.
#![allow(dead_code, reason = "each test crate uses its part")]

/// Deterministic values in (-1, 1), none zero.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            let v = ((s >> 40) as f32 + 0.5) / (1 << 23) as f32 - 1.0;
            if v == 0.0 { 0.5 } else { v }
        })
        .collect()
}

/// Weights with about `density` non-zeros.
pub(crate) fn sparse(seed: u64, len: usize, density: f64) -> Vec<f32> {
    let keep = noise(seed ^ 0x55, len);
    let cut = (2.0 * density - 1.0) as f32;
    noise(seed, len).into_iter().zip(keep).map(|(w, k)| if k < cut { w } else { 0.0 }).collect()
}

/// The bits of `y`, with one zero: the sign of an underflowed zero is not promised.
pub(crate) fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|v| (v + 0.0).to_bits()).collect()
}

/// A pool of `threads` threads.
pub(crate) fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}
