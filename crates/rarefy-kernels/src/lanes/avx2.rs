//! The lanes as two AVX registers of eight.

use std::arch::x86_64::*;

use half::bf16;

use super::portable::{HIGHEST, LN2_HIGH, LN2_LOW, LOG2_E, LOWEST, POLY};
use super::{Job, LANES, Lanes};

/// Proof of AVX2, FMA and POPCNT: made by [`run`] only.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// # Safety
/// The CPU must have the features.
#[target_feature(enable = "avx2,fma,popcnt")]
pub(super) unsafe fn run<J: Job>(job: J) -> J::Out {
    job.run(Avx2(()))
}

type V = [__m256; 2];

// SAFETY of all blocks below: `self` exists only inside `run`, whose caller promised the features; loads and stores touch
// exactly the sixteen (or eight) elements of the array behind the reference.
impl Lanes for Avx2 {
    type V = V;
    #[inline(always)]
    fn splat(self, v: f32) -> V {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    fn load(self, s: &[f32; LANES]) -> V {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(s.as_ptr()), _mm256_loadu_ps(s.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, v: V, s: &mut [f32; LANES]) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(s.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(s.as_mut_ptr().add(8), v[1]);
        }
    }
    #[inline(always)]
    fn load_bf16(self, s: &[bf16; LANES]) -> V {
        // SAFETY: see above; bf16 has the layout of u16.
        unsafe {
            let widen = |p: *const bf16| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            [widen(s.as_ptr()), widen(s.as_ptr().add(8))]
        }
    }
    #[inline(always)]
    fn load_u8(self, s: &[u8; LANES]) -> V {
        // SAFETY: see above.
        unsafe { widen_u8(_mm_loadu_si128(s.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_u4(self, s: &[u8; LANES / 2]) -> V {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadl_epi64(s.as_ptr().cast());
            let low = _mm_and_si128(bytes, _mm_set1_epi8(15));
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), _mm_set1_epi8(15));
            widen_u8(_mm_unpacklo_epi64(low, high))
        }
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        // SAFETY: see above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn exp(self, v: V) -> V {
        // SAFETY: see above.
        unsafe { [exp(v[0]), exp(v[1])] }
    }
    #[inline(always)]
    fn sum4(self, v: [V; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: see above; `out` has four elements.
        unsafe {
            let fold = |v: V| {
                let a = _mm256_add_ps(v[0], v[1]);
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
        // SAFETY: see above. Signed comparison after moving both by 2^31.
        unsafe {
            let flip = _mm256_set1_epi32(i32::MIN);
            let cut = _mm256_xor_si256(_mm256_set1_epi32(cut as i32), flip);
            let mask = |p: *const u32| {
                let k = _mm256_xor_si256(_mm256_loadu_si256(p.cast()), flip);
                _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(k, cut))) as u16
            };
            mask(keys.as_ptr()) | mask(keys.as_ptr().add(8)) << 8
        }
    }
}

/// # Safety
/// AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen_u8(bytes: __m128i) -> V {
    let low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    [low, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)))]
}

/// # Safety
/// AVX2 and FMA.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn exp(v: __m256) -> __m256 {
    // The second operand of max and min is the result when either is NaN.
    let x = _mm256_max_ps(_mm256_set1_ps(LOWEST), v);
    let x = _mm256_min_ps(_mm256_set1_ps(HIGHEST), x);
    let n = _mm256_round_ps::<0x08>(_mm256_mul_ps(x, _mm256_set1_ps(LOG2_E)));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_HIGH), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_LOW), r);
    let mut p = _mm256_set1_ps(POLY[0]);
    for c in &POLY[1..] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
    }
    let p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0));
    // Two steps, as 2^n alone may be too small for a normal number.
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    let pow2 = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
    _mm256_mul_ps(_mm256_mul_ps(p, pow2(half)), pow2(_mm256_sub_epi32(n, half)))
}
