//! Sixteen f32 lanes in three instruction sets, and the one place where a path is chosen.
//!
//! The row-wise kernels (row skipping, attention) are written once over [`Lanes`] and compiled three times. A value of a `Lanes` type
//! proves that its instructions exist: only [`dispatch`] makes one, after asking the CPU, inside a function
//! compiled for them. Vectors are loaded from arrays of sixteen, so the kernels themselves hold no `unsafe`; the portable
//! lanes are their safe twin.
//!
//! Lanes are added in one order ([`Lanes::sum4`]), so AVX2 and AVX-512 agree bit for bit; the portable lanes round
//! the product of a multiply-add too, and differ in the last bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::bf16;

use crate::Isa;
use crate::micro::Value;

/// Lanes of one vector.
pub(crate) const LANES: usize = 16;

/// Sixteen f32 lanes.
#[allow(unreachable_pub, reason = "named by the sealed trait of row values, not exported")]
pub trait Lanes: Copy {
    /// One vector.
    type V: Copy;
    /// `v` in every lane.
    fn splat(self, v: f32) -> Self::V;
    /// The sixteen values.
    fn load(self, s: &[f32; LANES]) -> Self::V;
    /// Writes the sixteen values.
    fn store(self, v: Self::V, s: &mut [f32; LANES]);
    /// Sixteen bf16, widened exactly.
    fn load_bf16(self, s: &[bf16; LANES]) -> Self::V;
    /// Sixteen bytes as numbers 0 to 255.
    fn load_u8(self, s: &[u8; LANES]) -> Self::V;
    /// Sixteen numbers 0 to 15: low halves of the bytes first, then the high halves.
    fn load_u4(self, s: &[u8; LANES / 2]) -> Self::V;
    /// `a * b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; which one when either is NaN is not promised.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `e^v`, within 2 units in the last place; 0 below -104, infinity above 89, NaN for NaN.
    fn exp(self, v: Self::V) -> Self::V;
    /// Sum of the lanes of each: with `a[i] = v[i] + v[i+8]`, `b[i] = a[i] + a[i+4]` it is `(b0 + b2) + (b1 + b3)`.
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4];
    /// Bit `i` is set when `keys[i] > cut`.
    fn above(self, keys: &[u32; LANES], cut: u32) -> u16;

    /// One sum, in the order of [`Lanes::sum4`].
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        self.sum4([v; 4])[0]
    }
    /// Fewer than sixteen values, then zeros.
    #[inline(always)]
    fn load_part(self, s: &[f32]) -> Self::V {
        let mut all = [0.0; LANES];
        all[..s.len()].copy_from_slice(s);
        self.load(&all)
    }
    /// Writes the first values of `v`.
    #[inline(always)]
    fn store_part(self, v: Self::V, s: &mut [f32]) {
        let mut all = [0.0; LANES];
        self.store(v, &mut all);
        s.copy_from_slice(&all[..s.len()]);
    }
    /// The lanes as an array.
    #[inline(always)]
    fn array(self, v: Self::V) -> [f32; LANES] {
        let mut all = [0.0; LANES];
        self.store(v, &mut all);
        all
    }
}

/// A stored value that lanes can load: `f32` or [`bf16`]. Sealed.
pub trait RowValue: Value + sealed::Load {}
impl RowValue for f32 {}
impl RowValue for bf16 {}

mod sealed {
    #![allow(unreachable_pub, reason = "a sealed supertrait has to be public in its private module")]
    use super::{LANES, Lanes, bf16};

    pub trait Load: Sized + Copy + Default {
        /// Short name of the type.
        const TYPE: &'static str;
        fn lanes<L: Lanes>(l: L, s: &[Self; LANES]) -> L::V;
        fn from_f32(v: f32) -> Self;
        /// Fewer than sixteen values, then zeros.
        #[inline(always)]
        fn lanes_part<L: Lanes>(l: L, s: &[Self]) -> L::V {
            let mut all = [Self::default(); LANES];
            all[..s.len()].copy_from_slice(s);
            Self::lanes(l, &all)
        }
    }
    impl Load for f32 {
        const TYPE: &'static str = "f32";
        #[inline(always)]
        fn lanes<L: Lanes>(l: L, s: &[f32; LANES]) -> L::V {
            l.load(s)
        }
        fn from_f32(v: f32) -> f32 {
            v
        }
    }
    impl Load for bf16 {
        const TYPE: &'static str = "bf16";
        #[inline(always)]
        fn lanes<L: Lanes>(l: L, s: &[bf16; LANES]) -> L::V {
            l.load_bf16(s)
        }
        fn from_f32(v: f32) -> bf16 {
            bf16::from_f32(v)
        }
    }
}

/// Work written once over the lanes. `run` and all it calls should be `#[inline(always)]`, so that it is compiled
/// with the instructions of the path.
pub(crate) trait Job {
    type Out;
    fn run<L: Lanes>(self, l: L) -> Self::Out;
}

/// Runs `job` on the lanes of `isa`, which the caller checked with `Isa::require`.
pub(crate) fn dispatch<J: Job>(isa: Isa, job: J) -> J::Out {
    assert!(isa.is_available(), "the path was checked at the door");
    match isa {
        // SAFETY (both): the features of the path are there, as just asserted.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::run(job) },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::run(job) },
        _ => job.run(portable::Portable),
    }
}

/// Asks for the cache line of `p`. Never faults, so `p` may lie outside any buffer.
#[inline(always)]
pub(crate) fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch of any address is a hint without effect on memory.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct All;
    impl Job for All {
        type Out = Vec<Vec<u32>>;
        #[inline(always)]
        fn run<L: Lanes>(self, l: L) -> Self::Out {
            let a: [f32; LANES] = std::array::from_fn(|i| (i as f32 - 7.3) * 1.7);
            let b: [f32; LANES] = std::array::from_fn(|i| 1.0 / (i as f32 + 3.0));
            let (va, vb) = (l.load(&a), l.load(&b));
            let bytes: [u8; LANES] = std::array::from_fn(|i| (i * 16 + 5) as u8);
            let half: [u8; 8] = std::array::from_fn(|i| (i * 33) as u8);
            let narrow: [bf16; LANES] = std::array::from_fn(|i| bf16::from_f32(a[i]));
            let keys: [u32; LANES] = std::array::from_fn(|i| (i as u32).wrapping_mul(0x3333_3333));
            let mut out: Vec<Vec<u32>> = [
                l.splat(2.5),
                va,
                l.add(va, vb),
                l.sub(va, vb),
                l.mul(va, vb),
                l.max(va, vb),
                l.load_bf16(&narrow),
                l.load_u8(&bytes),
                l.load_u4(&half),
                l.load_part(&a[..5]),
                bf16::lanes_part(l, &narrow[..3]),
            ]
            .into_iter()
            .map(|v| l.array(v).map(f32::to_bits).to_vec())
            .collect();
            out.push(l.sum4([va, vb, l.splat(1.0), l.mul(va, vb)]).map(f32::to_bits).to_vec());
            out.push(vec![l.sum(vb).to_bits(), u32::from(l.above(&keys, 0x8000_0000))]);
            out
        }
    }

    use sealed::Load as _;

    #[test]
    fn every_path_agrees_with_the_portable_lanes() {
        let want = dispatch(Isa::Portable, All);
        assert_eq!(want[8].iter().map(|b| f32::from_bits(*b)).collect::<Vec<_>>()[..2], [0.0, 1.0]);
        assert_eq!(f32::from_bits(want[8][8 + 1]), 2.0); // byte 33 = 0x21: low 1, high 2
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, All), want, "{isa}");
        }
    }

    struct Exp(Vec<f32>);
    impl Job for Exp {
        type Out = Vec<f32>;
        #[inline(always)]
        fn run<L: Lanes>(self, l: L) -> Vec<f32> {
            self.0.as_chunks().0.iter().flat_map(|c| l.array(l.exp(l.load(c)))).collect()
        }
    }

    #[test]
    fn exp_is_within_two_ulps_and_right_at_the_ends() {
        let x: Vec<f32> = (0..40_000).map(|i| -88.0 + i as f32 * 0.0044).collect();
        for isa in Isa::available() {
            for (x, y) in x.iter().zip(dispatch(isa, Exp(x.clone()))) {
                let want = f64::from(*x).exp();
                let ulp = want * f64::from(f32::EPSILON);
                assert!((f64::from(y) - want).abs() <= 2.0 * ulp.max(1e-45), "{isa} exp({x}) = {y}");
            }
            let mut ends = [0.0; 16];
            ends[..6].copy_from_slice(&[f32::NEG_INFINITY, -1e30, f32::INFINITY, 200.0, f32::NAN, -95.0]);
            let y = dispatch(isa, Exp(ends.to_vec()));
            assert_eq!(
                (y[0], y[1], y[2], y[3], y[6]),
                (0.0, 0.0, f32::INFINITY, f32::INFINITY, 1.0),
                "{isa}"
            );
            assert!(y[4].is_nan() && (f64::from(y[5]) - (-95f64).exp()).abs() < 2e-45, "{isa} {y:?}");
        }
    }
}
