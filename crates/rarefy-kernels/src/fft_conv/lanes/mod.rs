//! Vectors of `W` floats in three instruction sets, and the one place where a path is chosen.
//!
//! The transforms are written once over [`Lanes`] and compiled three times. A value of a `Lanes` type proves that its
//! instructions exist: only [`dispatch`] makes one, after asking the CPU, inside a function compiled for them. Vectors
//! are loaded from arrays of `W`, so the transforms hold no `unsafe`; the portable lanes are their safe twin.
//!
//! The width differs (16, 8, 4) because a codelet of sixteen complex vectors should come near to fitting the registers.
//! Lanes never meet except in [`Lanes::transpose`], so AVX2 and AVX-512 agree bit for bit; the portable lanes round the
//! product of a multiply-add too.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::Isa;

/// `W` f32 lanes; `W` divides 16.
pub(super) trait Lanes<const W: usize>: Copy {
    /// One vector.
    type V: Copy;
    /// `v` in every lane.
    fn splat(self, v: f32) -> Self::V;
    /// The values.
    fn load(self, s: &[f32; W]) -> Self::V;
    /// Writes the values.
    fn store(self, v: Self::V, s: &mut [f32; W]);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`.
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    fn transpose(self, m: &mut [Self::V; W]);

    /// `s[at..at + W]`, zeros where `s` ends.
    #[inline(always)]
    fn load_at(self, s: &[f32], at: usize) -> Self::V {
        if let Some(all) = s.get(at..).and_then(|s| s.first_chunk()) {
            return self.load(all);
        }
        let mut all = [0.0; W];
        if let Some(part) = s.get(at..) {
            all[..part.len()].copy_from_slice(part);
        }
        self.load(&all)
    }
    /// Writes `s[at..at + W]`, as far as `s` goes.
    #[inline(always)]
    fn store_at(self, v: Self::V, s: &mut [f32], at: usize) {
        let Some(s) = s.get_mut(at..) else { return };
        if let Some(all) = s.first_chunk_mut() {
            return self.store(v, all);
        }
        let mut all = [0.0; W];
        self.store(v, &mut all);
        s.copy_from_slice(&all[..s.len()]);
    }
}

/// Work written once over the lanes. `run` and all it calls should be `#[inline(always)]`, so that it is compiled
/// with the instructions of the path.
pub(super) trait Job {
    /// The result.
    type Out;
    /// Does the work.
    fn run<const W: usize, L: Lanes<W>>(self, l: L) -> Self::Out;
}

/// Runs `job` on the lanes of `isa`, which the caller checked with `Isa::require`.
pub(super) fn dispatch<J: Job>(isa: Isa, job: J) -> J::Out {
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

#[cfg(test)]
mod tests {
    use super::*;

    struct All;
    impl Job for All {
        type Out = Vec<f32>;
        #[inline(always)]
        fn run<const W: usize, L: Lanes<W>>(self, l: L) -> Vec<f32> {
            let data: Vec<f32> = (0..W * W).map(|i| i as f32).collect();
            let mut m: [L::V; W] = std::array::from_fn(|i| l.load_at(&data, i * W));
            l.transpose(&mut m);
            for (i, v) in m.iter().enumerate() {
                let mut row = [0.0; W];
                l.store(*v, &mut row);
                assert!(row.iter().enumerate().all(|(j, v)| *v == (j * W + i) as f32), "{W} {i} {row:?}");
            }
            let (a, b) = (l.load_at(&data, 1), l.load_at(&data, W * W - 1));
            let three = l.splat(3.0);
            let mut out = Vec::new();
            for v in [l.add(a, b), l.sub(a, b), l.mul(a, b), l.fma(a, three, b), l.fnma(a, three, b)] {
                let mut all = vec![0.0; W + 1];
                l.store_at(v, &mut all[..W], 0);
                l.store_at(v, &mut all, W);
                l.store_at(v, &mut all, W + 2);
                assert_eq!(all[W], all[0]);
                out.extend([all[0] - (W * W - 1) as f32, all[1]]);
            }
            out
        }
    }

    #[test]
    fn every_path_does_what_it_says() {
        for isa in Isa::available() {
            let out = dispatch(isa, All);
            // Lane 0 holds 1 and the last value (subtracted again), lane 1 holds 2 and the zero behind the end.
            let want = [1.0, 2.0, 2.0, 2.0, 0.0, 0.0, 3.0, 6.0, -3.0, -6.0];
            assert!(
                out.iter().zip(want).enumerate().all(|(i, (v, w))| v == &w || [2, 4, 8].contains(&i)),
                "{isa} {out:?}"
            );
        }
    }
}
