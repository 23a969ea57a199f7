//! The lanes as one AVX-512 register.

use std::arch::x86_64::*;

use half::bf16;

use super::portable::{HIGHEST, LN2_HIGH, LN2_LOW, LOG2_E, LOWEST, POLY};
use super::{Job, LANES, Lanes};

/// Proof of AVX-512 F, BW, VL, with AVX2 and FMA: made by [`run`] only.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// # Safety
/// The CPU must have the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,avx2,fma,popcnt")]
pub(super) unsafe fn run<J: Job>(job: J) -> J::Out {
    job.run(Avx512(()))
}

// SAFETY of all blocks below: `self` exists only inside `run`, whose caller promised the features; loads and stores touch
// exactly the sixteen (or eight) elements of the array behind the reference.
impl Lanes for Avx512 {
    type V = __m512;
    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    fn load(self, s: &[f32; LANES]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(s.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, s: &mut [f32; LANES]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(s.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_bf16(self, s: &[bf16; LANES]) -> __m512 {
        // SAFETY: see above; bf16 has the layout of u16.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(s.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn load_u8(self, s: &[u8; LANES]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(s.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn load_u4(self, s: &[u8; LANES / 2]) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadl_epi64(s.as_ptr().cast());
            let low = _mm_and_si128(bytes, _mm_set1_epi8(15));
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), _mm_set1_epi8(15));
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi64(low, high)))
        }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn exp(self, v: __m512) -> __m512 {
        // SAFETY: see above. The second operand of max and min is the result when either is NaN.
        unsafe {
            let x = _mm512_max_ps(_mm512_set1_ps(LOWEST), v);
            let x = _mm512_min_ps(_mm512_set1_ps(HIGHEST), x);
            let n = _mm512_roundscale_ps::<0x08>(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)));
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
            let mut p = _mm512_set1_ps(POLY[0]);
            for c in &POLY[1..] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
            }
            let p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0));
            _mm512_scalef_ps(p, n)
        }
    }
    #[inline(always)]
    fn sum4(self, v: [__m512; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: see above; `out` has four elements.
        unsafe {
            let fold = |v: __m512| {
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
                let a = _mm256_add_ps(_mm512_castps512_ps256(v), high);
                _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a))
            };
            let [a, b, c, d] = [fold(v[0]), fold(v[1]), fold(v[2]), fold(v[3])];
            let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
            let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
        }
        out
    }
    #[inline(always)]
    fn above(self, keys: &[u32; LANES], cut: u32) -> u16 {
        // SAFETY: see above.
        unsafe {
            let k = _mm512_loadu_si512(keys.as_ptr().cast());
            _mm512_cmpgt_epu32_mask(k, _mm512_set1_epi32(cut as i32))
        }
    }
}
