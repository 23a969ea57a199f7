//! The lanes as one AVX-512 register.

use std::arch::x86_64::*;

use super::{Job, Lanes};

/// Proof of AVX-512 F, with AVX2 and FMA: made by [`run`] only.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// # Safety
/// The CPU must have the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,avx2,fma,popcnt")]
pub(super) unsafe fn run<J: Job>(job: J) -> J::Out {
    job.run(Avx512(()))
}

// SAFETY of all blocks below: `self` exists only inside `run`, whose caller promised the features; loads and stores touch
// exactly the sixteen elements of the array behind the reference.
impl Lanes<16> for Avx512 {
    type V = __m512;
    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    fn load(self, s: &[f32; 16]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(s.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, s: &mut [f32; 16]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(s.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn transpose(self, m: &mut [__m512; 16]) {
        // SAFETY: see above. First the 4×4 blocks within quarters of the registers, then the quarters.
        unsafe {
            let four = |a, b, c, d| {
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let (ab2, cd2) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                [
                    _mm512_shuffle_ps::<0x44>(ab, cd),
                    _mm512_shuffle_ps::<0xee>(ab, cd),
                    _mm512_shuffle_ps::<0x44>(ab2, cd2),
                    _mm512_shuffle_ps::<0xee>(ab2, cd2),
                ]
            };
            // `quarters(..)[q]` collects quarter `q` of the four.
            let quarters = |a, b, c, d| {
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
                let (ab2, cd2) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
                [
                    _mm512_shuffle_f32x4::<0x88>(ab, cd),
                    _mm512_shuffle_f32x4::<0xdd>(ab, cd),
                    _mm512_shuffle_f32x4::<0x88>(ab2, cd2),
                    _mm512_shuffle_f32x4::<0xdd>(ab2, cd2),
                ]
            };
            let a = four(m[0], m[1], m[2], m[3]);
            let b = four(m[4], m[5], m[6], m[7]);
            let c = four(m[8], m[9], m[10], m[11]);
            let d = four(m[12], m[13], m[14], m[15]);
            let [p, q, r, s] = [
                quarters(a[0], b[0], c[0], d[0]),
                quarters(a[1], b[1], c[1], d[1]),
                quarters(a[2], b[2], c[2], d[2]),
                quarters(a[3], b[3], c[3], d[3]),
            ];
            *m = [
                p[0], q[0], r[0], s[0], p[1], q[1], r[1], s[1], p[2], q[2], r[2], s[2], p[3], q[3], r[3],
                s[3],
            ];
        }
    }
}
