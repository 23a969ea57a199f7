//! Sixteen lanes of numbers, so that a kernel over quantised weights is written once and compiled for each instruction set.
//!
//! A kernel is a generic function marked `#[inline(always)]`, called from one function per instruction set that carries the
//! `#[target_feature]`; the intrinsics are inlined into that function. The integer operations are exact, so they agree on every path. `fma` is one
//! rounding on AVX2 and AVX-512 and two on the portable path; `mul` and `add` agree everywhere.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

/// Sixteen lanes of f32 (`F`) and of i32 (`I`).
///
/// # Safety
/// Every function may be called only on a CPU with the instruction set of the implementation. Pointers must be readable (or writable) for the
/// stated number of bytes, with any alignment.
pub(crate) trait Lanes {
    type F: Copy;
    type I: Copy;

    unsafe fn zero() -> Self::F;
    unsafe fn splat(v: f32) -> Self::F;
    /// 64 bytes.
    unsafe fn load(p: *const f32) -> Self::F;
    /// 64 bytes.
    unsafe fn store(p: *mut f32, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The sum of the lanes: 8 apart, then 4, 2 and 1 apart.
    unsafe fn sum(v: Self::F) -> f32;

    unsafe fn splat_i(v: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    /// 64 bytes.
    unsafe fn load_i(p: *const u8) -> Self::I;
    unsafe fn to_f(v: Self::I) -> Self::F;
    /// The low nibble of each byte.
    unsafe fn low(v: Self::I) -> Self::I;
    /// The high nibble of each byte.
    unsafe fn high(v: Self::I) -> Self::I;
    /// Adds four products to each lane: bytes of `w` in 0..16 times the signed bytes of `x`.
    unsafe fn dot_nibbles(acc: Self::I, w: Self::I, x: i32) -> Self::I;
    /// The same for any unsigned bytes.
    unsafe fn dot_bytes(acc: Self::I, w: Self::I, x: i32) -> Self::I;
    /// `z * x`, both fitting 16 bits.
    unsafe fn mul16(z: Self::I, x: i32) -> Self::I;
    /// Nibble `k` (of eight) of each lane as a number.
    unsafe fn nibble<const K: u32>(v: Self::I) -> Self::F;
    /// Byte `k` (of four) of each lane as a number.
    unsafe fn byte<const K: u32>(v: Self::I) -> Self::F;

    /// Sixteen f16, 32 bytes: finite positive numbers.
    unsafe fn scales_f16(p: *const u8) -> Self::F;
    /// Sixteen bytes as numbers.
    unsafe fn bytes16(p: *const u8) -> Self::I;
    /// Eight bytes: lanes 0–7 from the low, 8–15 from the high nibbles.
    unsafe fn nibbles16(p: *const u8) -> Self::I;
    /// Eight bytes as two words: lane `2 i` is nibble `i` of the first, lane `2 i + 1` of the second.
    unsafe fn codes4(p: *const u8) -> Self::F;
    /// Four bytes: lane `i` of the first eight is nibble `i`; the other lanes are finite.
    unsafe fn codes4_low8(p: *const u8) -> Self::F;
    /// Sixteen bytes: lane `i` is byte `i`.
    unsafe fn codes8(p: *const u8) -> Self::F;
    /// 32 bytes to the first eight lanes; the others are 0.
    unsafe fn load_low8(p: *const f32) -> Self::F;
    /// Eight bytes: lane `i` is nibble `i`, low nibbles first.
    unsafe fn nibbles_in_order(p: *const u8) -> Self::I;
    /// `a * b + c` in the lanes whose bit of `lanes` is set, `c` in the others.
    unsafe fn fma_where(lanes: u16, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The signed bytes of eight groups of 16, four in each result, from 64 bytes of codes: the low nibbles are those of the first four groups, the
    /// high ones those of the others. From every code its group's zero point is taken away, a nibble of the four bytes at `zeros` placed the same way.
    unsafe fn nibble_weights(codes: *const u8, zeros: *const u8) -> [Self::I; 2];
    /// Four groups of 16: lane `4 i + j` is the sum of four products of group `i`, bytes `4 j` to `4 j + 3`: signed ones of `w`, from −15 to 15, and
    /// unsigned ones at `x[i]`.
    unsafe fn dot_groups(w: Self::I, x: [*const u8; 4]) -> Self::I;
    /// Lane `4 i + j` is the sum of the lanes `4 i` to `4 i + 3` of `parts[j]`, whose lanes are at most 15 300 in size.
    unsafe fn group_sums(parts: [Self::I; 4]) -> Self::I;
    /// Appends `base + STEP i` for each set bit `i`, ascending; `STEP` is 1 or 2. Up to 64 bytes are written at `out`.
    unsafe fn positions<const STEP: u16>(bits: u32, base: u16, out: *mut u16);
    /// The next of the bytes at `p` for each set bit, ascending, and 128 for each clear one. 64 bytes at `p` are readable.
    unsafe fn expand(mask: u64, p: *const u8) -> Self::I;
    /// Asks for the line `ahead` bytes from `p` on; never faults.
    unsafe fn prefetch(p: *const u8, ahead: usize);
}
