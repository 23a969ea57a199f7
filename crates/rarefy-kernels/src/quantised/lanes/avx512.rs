//! The lanes in one AVX-512 register.

use std::arch::x86_64::*;

use super::Lanes;

/// The numbers of the sixteen codes.
static CODES: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// AVX-512 F, BW, VL, VBMI2 and VNNI.
pub(crate) struct Avx512;

// SAFETY (every function): the trait allows calls only where the instructions exist and the pointers are readable as far as stated.
impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe {
            let high = _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b1110>(v, v));
            super::avx2::sum8(_mm256_add_ps(_mm512_castps512_ps256(v), high))
        }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    unsafe fn add_i(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn to_f(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn low(v: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn high(v: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi32::<4>(v), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn dot_nibbles(acc: __m512i, w: __m512i, x: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: __m512i, w: __m512i, x: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn mul16(z: __m512i, x: i32) -> __m512i {
        // The upper halves of `z` are 0, so the sign bits in the upper half of `x` add nothing.
        unsafe { _mm512_madd_epi16(z, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn nibble<const K: u32>(v: __m512i) -> __m512 {
        // The permutation looks at the low four bits of an index only: a table of sixteen numbers without masking.
        unsafe {
            let index = match K {
                0 => v,
                1 => _mm512_srli_epi32::<4>(v),
                2 => _mm512_srli_epi32::<8>(v),
                3 => _mm512_srli_epi32::<12>(v),
                4 => _mm512_srli_epi32::<16>(v),
                5 => _mm512_srli_epi32::<20>(v),
                6 => _mm512_srli_epi32::<24>(v),
                _ => _mm512_srli_epi32::<28>(v),
            };
            _mm512_permutexvar_ps(index, _mm512_loadu_ps(CODES.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn byte<const K: u32>(v: __m512i) -> __m512 {
        unsafe {
            let shifted = match K {
                0 => v,
                1 => _mm512_srli_epi32::<8>(v),
                2 => _mm512_srli_epi32::<16>(v),
                _ => _mm512_srli_epi32::<24>(v),
            };
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
        }
    }
    #[inline(always)]
    unsafe fn scales_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn bytes16(p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn nibbles16(p: *const u8) -> __m512i {
        unsafe {
            let v = _mm_loadl_epi64(p.cast());
            let both = _mm_unpacklo_epi64(v, _mm_srli_epi16::<4>(v));
            _mm512_cvtepu8_epi32(_mm_and_si128(both, _mm_set1_epi8(15)))
        }
    }
    #[inline(always)]
    unsafe fn codes4(p: *const u8) -> __m512 {
        unsafe {
            // One broadcasting load of both words, which costs no vector port.
            let shifts = _mm512_set_epi32(28, 28, 24, 24, 20, 20, 16, 16, 12, 12, 8, 8, 4, 4, 0, 0);
            let index = _mm512_srlv_epi32(_mm512_set1_epi64(p.cast::<i64>().read_unaligned()), shifts);
            _mm512_permutexvar_ps(index, _mm512_loadu_ps(CODES.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn codes4_low8(p: *const u8) -> __m512 {
        unsafe {
            let shifts = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
            let index = _mm512_srlv_epi32(_mm512_set1_epi32(p.cast::<i32>().read_unaligned()), shifts);
            _mm512_permutexvar_ps(index, _mm512_loadu_ps(CODES.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn load_low8(p: *const f32) -> __m512 {
        unsafe { _mm512_zextps256_ps512(_mm256_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn codes8(p: *const u8) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            _mm512_cvtepi32_ps(wide)
        }
    }
    #[inline(always)]
    unsafe fn nibbles_in_order(p: *const u8) -> __m512i {
        unsafe {
            let v = _mm_loadl_epi64(p.cast());
            let both = _mm_unpacklo_epi8(v, _mm_srli_epi16::<4>(v));
            _mm512_cvtepu8_epi32(_mm_and_si128(both, _mm_set1_epi8(15)))
        }
    }
    #[inline(always)]
    unsafe fn fma_where(lanes: u16, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_mask3_fmadd_ps(a, b, c, lanes) }
    }
    #[inline(always)]
    unsafe fn nibble_weights(codes: *const u8, zeros: *const u8) -> [__m512i; 2] {
        unsafe {
            let pick = _mm512_set_epi64(
                0x0303_0303_0303_0303,
                0x0303_0303_0303_0303,
                0x0202_0202_0202_0202,
                0x0202_0202_0202_0202,
                0x0101_0101_0101_0101,
                0x0101_0101_0101_0101,
                0,
                0,
            );
            let zero = _mm512_shuffle_epi8(_mm512_set1_epi32(zeros.cast::<i32>().read_unaligned()), pick);
            let code = Self::load_i(codes);
            [
                _mm512_sub_epi8(Self::low(code), Self::low(zero)),
                _mm512_sub_epi8(Self::high(code), Self::high(zero)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot_groups(w: __m512i, x: [*const u8; 4]) -> __m512i {
        unsafe {
            // Written out: a `map` over the four is compiled as a call without the instruction set.
            let (a, b) = (_mm_loadu_si128(x[0].cast()), _mm_loadu_si128(x[1].cast()));
            let (c, d) = (_mm_loadu_si128(x[2].cast()), _mm_loadu_si128(x[3].cast()));
            let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
            let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
            let x = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            _mm512_dpbusd_epi32(_mm512_setzero_si512(), x, w)
        }
    }
    #[inline(always)]
    unsafe fn group_sums(parts: [__m512i; 4]) -> __m512i {
        unsafe {
            // Sums of two are at most 30 600: 16 bits hold them.
            let one = _mm512_set1_epi16(1);
            let a = _mm512_madd_epi16(_mm512_packs_epi32(parts[0], parts[1]), one);
            let b = _mm512_madd_epi16(_mm512_packs_epi32(parts[2], parts[3]), one);
            _mm512_madd_epi16(_mm512_packs_epi32(a, b), one)
        }
    }
    #[inline(always)]
    unsafe fn positions<const STEP: u16>(bits: u32, base: u16, out: *mut u16) {
        unsafe {
            let count = _mm512_set_epi16(
                31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8,
                7, 6, 5, 4, 3, 2, 1, 0,
            );
            let count = if STEP == 2 { _mm512_slli_epi16::<1>(count) } else { count };
            let all = _mm512_add_epi16(count, _mm512_set1_epi16(base as i16));
            // Compressed in a register and stored whole: a compressing store is slow on some CPUs.
            _mm512_storeu_si512(out.cast(), _mm512_maskz_compress_epi16(bits, all));
        }
    }
    #[inline(always)]
    unsafe fn expand(mask: u64, p: *const u8) -> __m512i {
        unsafe { _mm512_mask_expand_epi8(_mm512_set1_epi8(-128), mask, _mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8, ahead: usize) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast::<i8>().wrapping_add(ahead)) }
    }
}
