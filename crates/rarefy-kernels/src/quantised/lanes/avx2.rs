//! The lanes in two AVX2 registers.

use std::arch::x86_64::*;

use super::Lanes;

/// AVX2 and FMA.
pub(crate) struct Avx2;

/// The sum of eight lanes: 4, 2 and 1 apart.
///
/// # Safety
/// AVX.
#[inline(always)]
pub(crate) unsafe fn sum8(v: __m256) -> f32 {
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// For each mask of eight bytes: which packed byte each takes, or 128, which makes a byte shuffle give zero.
static SPREAD: [[u8; 8]; 256] = {
    let mut table = [[128; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut place, mut next) = (0, 0);
        while place < 8 {
            if mask >> place & 1 == 1 {
                table[mask][place] = next;
                next += 1;
            }
            place += 1;
        }
        mask += 1;
    }
    table
};

/// Eight packed bytes at the set bits of `mask`, 128 at the others.
///
/// # Safety
/// SSSE3.
#[inline(always)]
unsafe fn spread(mask: u8, packed: __m128i) -> __m128i {
    unsafe {
        let from = _mm_loadl_epi64(SPREAD[mask as usize].as_ptr().cast());
        _mm_or_si128(_mm_shuffle_epi8(packed, from), _mm_and_si128(from, _mm_set1_epi8(-128)))
    }
}

/// `f` of both halves.
macro_rules! both {
    (|$i:ident| $body:expr) => {
        [
            {
                let $i = 0;
                $body
            },
            {
                let $i = 1;
                $body
            },
        ]
    };
}

// SAFETY (every function): the trait allows calls only where the instructions exist and the pointers are readable as far as stated.
impl Lanes for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { both!(|i| _mm256_loadu_ps(p.add(8 * i))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(|i| _mm256_add_ps(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(|i| _mm256_sub_ps(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(|i| _mm256_mul_ps(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { both!(|i| _mm256_fmadd_ps(a[i], b[i], c[i])) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        unsafe { sum8(_mm256_add_ps(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(v); 2] }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        unsafe { both!(|i| _mm256_add_epi32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        unsafe { both!(|i| _mm256_loadu_si256(p.add(32 * i).cast())) }
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        unsafe { both!(|i| _mm256_cvtepi32_ps(v[i])) }
    }
    #[inline(always)]
    unsafe fn low(v: Self::I) -> Self::I {
        unsafe { both!(|i| _mm256_and_si256(v[i], _mm256_set1_epi8(15))) }
    }
    #[inline(always)]
    unsafe fn high(v: Self::I) -> Self::I {
        unsafe { both!(|i| _mm256_and_si256(_mm256_srli_epi32::<4>(v[i]), _mm256_set1_epi8(15))) }
    }
    #[inline(always)]
    unsafe fn dot_nibbles(acc: Self::I, w: Self::I, x: i32) -> Self::I {
        unsafe {
            let (x, one) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
            // Two products of at most 15 · 128 never saturate 16 bits.
            both!(|i| _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(w[i], x), one)))
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: Self::I, w: Self::I, x: i32) -> Self::I {
        unsafe {
            // `maddubs` would saturate, so even and odd bytes are widened to 16 bits and paired by `madd`.
            let x = _mm256_set1_epi32(x);
            let (x_even, x_odd) =
                (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)), _mm256_srai_epi16::<8>(x));
            both!(|i| {
                let even = _mm256_madd_epi16(_mm256_and_si256(w[i], _mm256_set1_epi16(255)), x_even);
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w[i]), x_odd);
                _mm256_add_epi32(acc[i], _mm256_add_epi32(even, odd))
            })
        }
    }
    #[inline(always)]
    unsafe fn mul16(z: Self::I, x: i32) -> Self::I {
        unsafe { both!(|i| _mm256_madd_epi16(z[i], _mm256_set1_epi32(x))) }
    }
    #[inline(always)]
    unsafe fn nibble<const K: u32>(v: Self::I) -> Self::F {
        unsafe {
            let count = _mm_cvtsi32_si128(4 * K as i32);
            let mask = _mm256_set1_epi32(15);
            both!(|i| _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(v[i], count), mask)))
        }
    }
    #[inline(always)]
    unsafe fn byte<const K: u32>(v: Self::I) -> Self::F {
        unsafe {
            let count = _mm_cvtsi32_si128(8 * K as i32);
            let mask = _mm256_set1_epi32(255);
            both!(|i| _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(v[i], count), mask)))
        }
    }
    #[inline(always)]
    unsafe fn scales_f16(p: *const u8) -> Self::F {
        unsafe {
            // Exponent and fraction moved into place, then the bias corrected by an exact product: needs no F16C.
            let bias = _mm256_castsi256_ps(_mm256_set1_epi32((127 + 112) << 23));
            both!(|i| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16 * i).cast()));
                _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32::<13>(wide)), bias)
            })
        }
    }
    #[inline(always)]
    unsafe fn bytes16(p: *const u8) -> Self::I {
        unsafe { both!(|i| _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()))) }
    }
    #[inline(always)]
    unsafe fn nibbles16(p: *const u8) -> Self::I {
        unsafe {
            let (v, mask) = (_mm_loadl_epi64(p.cast()), _mm_set1_epi8(15));
            let (low, high) = (_mm_and_si128(v, mask), _mm_and_si128(_mm_srli_epi16::<4>(v), mask));
            [_mm256_cvtepu8_epi32(low), _mm256_cvtepu8_epi32(high)]
        }
    }
    #[inline(always)]
    unsafe fn codes4(p: *const u8) -> Self::F {
        unsafe {
            let shifts = _mm256_set_epi32(12, 12, 8, 8, 4, 4, 0, 0);
            let mask = _mm256_set1_epi32(15);
            let words = _mm256_set1_epi64x(p.cast::<i64>().read_unaligned());
            let halves = [words, _mm256_srli_epi32::<16>(words)];
            both!(|i| {
                let code = _mm256_and_si256(_mm256_srlv_epi32(halves[i], shifts), mask);
                _mm256_cvtepi32_ps(code)
            })
        }
    }
    #[inline(always)]
    unsafe fn codes4_low8(p: *const u8) -> Self::F {
        unsafe {
            let (shifts, mask) = (_mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0), _mm256_set1_epi32(15));
            let word = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            let code = _mm256_and_si256(_mm256_srlv_epi32(word, shifts), mask);
            [_mm256_cvtepi32_ps(code); 2]
        }
    }
    #[inline(always)]
    unsafe fn load_low8(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_setzero_ps()] }
    }
    #[inline(always)]
    unsafe fn codes8(p: *const u8) -> Self::F {
        unsafe {
            both!(|i| {
                let code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()));
                _mm256_cvtepi32_ps(code)
            })
        }
    }
    #[inline(always)]
    unsafe fn nibbles_in_order(p: *const u8) -> Self::I {
        unsafe {
            let v = _mm_loadl_epi64(p.cast());
            let both = _mm_and_si128(_mm_unpacklo_epi8(v, _mm_srli_epi16::<4>(v)), _mm_set1_epi8(15));
            [_mm256_cvtepu8_epi32(both), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(both))]
        }
    }
    #[inline(always)]
    unsafe fn fma_where(lanes: u16, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe {
            let bits = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
            both!(|i| {
                let here = _mm256_and_si256(_mm256_set1_epi32(i32::from(lanes) >> (8 * i)), bits);
                let mask = _mm256_castsi256_ps(_mm256_cmpeq_epi32(here, bits));
                _mm256_blendv_ps(c[i], _mm256_fmadd_ps(a[i], b[i], c[i]), mask)
            })
        }
    }
    #[inline(always)]
    unsafe fn nibble_weights(codes: *const u8, zeros: *const u8) -> [Self::I; 2] {
        unsafe {
            let code = Self::load_i(codes);
            let zero = both!(|i| {
                let z = [zeros.add(2 * i).read() as i8, zeros.add(2 * i + 1).read() as i8];
                _mm256_set_m128i(_mm_set1_epi8(z[1]), _mm_set1_epi8(z[0]))
            });
            let (low, high, low_zero, high_zero) =
                (Self::low(code), Self::high(code), Self::low(zero), Self::high(zero));
            [
                both!(|i| _mm256_sub_epi8(low[i], low_zero[i])),
                both!(|i| _mm256_sub_epi8(high[i], high_zero[i])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot_groups(w: Self::I, x: [*const u8; 4]) -> Self::I {
        unsafe {
            both!(|i| {
                let x = _mm256_loadu2_m128i(x[2 * i + 1].cast(), x[2 * i].cast());
                // Two products of at most 255 · 15 do not saturate 16 bits.
                _mm256_madd_epi16(_mm256_maddubs_epi16(x, w[i]), _mm256_set1_epi16(1))
            })
        }
    }
    #[inline(always)]
    unsafe fn group_sums(parts: [Self::I; 4]) -> Self::I {
        unsafe {
            let one = _mm256_set1_epi16(1);
            both!(|i| {
                let a = _mm256_madd_epi16(_mm256_packs_epi32(parts[0][i], parts[1][i]), one);
                let b = _mm256_madd_epi16(_mm256_packs_epi32(parts[2][i], parts[3][i]), one);
                _mm256_madd_epi16(_mm256_packs_epi32(a, b), one)
            })
        }
    }
    #[inline(always)]
    unsafe fn positions<const STEP: u16>(bits: u32, base: u16, out: *mut u16) {
        unsafe { super::portable::Portable::positions::<STEP>(bits, base, out) }
    }
    #[inline(always)]
    unsafe fn expand(mask: u64, mut p: *const u8) -> Self::I {
        unsafe {
            let mut quarters = [_mm_setzero_si128(); 4];
            for (k, quarter) in quarters.iter_mut().enumerate() {
                let mut halves = [_mm_setzero_si128(); 2];
                for (h, half) in halves.iter_mut().enumerate() {
                    // At most 56 bytes on, so that these eight are within the 64.
                    let m = (mask >> (16 * k + 8 * h)) as u8;
                    *half = spread(m, _mm_loadl_epi64(p.cast()));
                    p = p.add(m.count_ones() as usize);
                }
                *quarter = _mm_unpacklo_epi64(halves[0], halves[1]);
            }
            [_mm256_set_m128i(quarters[1], quarters[0]), _mm256_set_m128i(quarters[3], quarters[2])]
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8, ahead: usize) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast::<i8>().wrapping_add(ahead)) }
    }
}
