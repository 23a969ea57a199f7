//! The lanes as arrays: the safe arithmetic against which the others are tested. Only the reads are through pointers.

use half::f16;

use super::Lanes;

pub(crate) struct Portable;

fn each<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; 16] {
    let mut out = [T::default(); 16];
    for (i, o) in out.iter_mut().enumerate() {
        *o = f(i);
    }
    out
}

/// `N` bytes at `p`.
///
/// # Safety
/// They must be readable.
unsafe fn read<const N: usize>(p: *const u8) -> [u8; N] {
    // SAFETY: the caller's promise; an array of bytes has no alignment.
    unsafe { p.cast::<[u8; N]>().read_unaligned() }
}

// SAFETY (every function): plain Rust but for the reads and writes, whose extent the trait states.
impl Lanes for Portable {
    type F = [f32; 16];
    type I = [u32; 16];

    #[inline(always)]
    unsafe fn zero() -> [f32; 16] {
        [0.0; 16]
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> [f32; 16] {
        [v; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 16] {
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 16]) {
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v) };
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 16]) -> f32 {
        let a: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        let b: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
        (b[0] + b[2]) + (b[1] + b[3])
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> [u32; 16] {
        [v as u32; 16]
    }
    #[inline(always)]
    unsafe fn add_i(a: [u32; 16], b: [u32; 16]) -> [u32; 16] {
        each(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> [u32; 16] {
        let bytes = unsafe { read::<64>(p) };
        each(|i| u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
    }
    #[inline(always)]
    unsafe fn to_f(v: [u32; 16]) -> [f32; 16] {
        each(|i| v[i] as i32 as f32)
    }
    #[inline(always)]
    unsafe fn low(v: [u32; 16]) -> [u32; 16] {
        each(|i| v[i] & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn high(v: [u32; 16]) -> [u32; 16] {
        each(|i| v[i] >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn dot_nibbles(acc: [u32; 16], w: [u32; 16], x: i32) -> [u32; 16] {
        unsafe { Self::dot_bytes(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: [u32; 16], w: [u32; 16], x: i32) -> [u32; 16] {
        let x = x.to_le_bytes().map(|b| i32::from(b as i8));
        each(|i| {
            let w = w[i].to_le_bytes().map(i32::from);
            (acc[i] as i32 + w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3]) as u32
        })
    }
    #[inline(always)]
    unsafe fn mul16(z: [u32; 16], x: i32) -> [u32; 16] {
        each(|i| z[i].wrapping_mul(x as u32))
    }
    #[inline(always)]
    unsafe fn nibble<const K: u32>(v: [u32; 16]) -> [f32; 16] {
        each(|i| (v[i] >> (4 * K) & 0xf) as f32)
    }
    #[inline(always)]
    unsafe fn byte<const K: u32>(v: [u32; 16]) -> [f32; 16] {
        each(|i| (v[i] >> (8 * K) & 0xff) as f32)
    }
    #[inline(always)]
    unsafe fn scales_f16(p: *const u8) -> [f32; 16] {
        let bytes = unsafe { read::<32>(p) };
        each(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    unsafe fn bytes16(p: *const u8) -> [u32; 16] {
        unsafe { read::<16>(p) }.map(u32::from)
    }
    #[inline(always)]
    unsafe fn nibbles16(p: *const u8) -> [u32; 16] {
        let bytes = unsafe { read::<8>(p) };
        each(|i| u32::from(bytes[i % 8] >> (i / 8 * 4) & 0xf))
    }
    #[inline(always)]
    unsafe fn codes4(p: *const u8) -> [f32; 16] {
        let bits = u64::from_le_bytes(unsafe { read::<8>(p) });
        each(|i| (bits >> (i / 2 * 4 + i % 2 * 32) & 0xf) as f32)
    }
    #[inline(always)]
    unsafe fn codes4_low8(p: *const u8) -> [f32; 16] {
        let bits = u32::from_le_bytes(unsafe { read::<4>(p) });
        each(|i| (bits >> (i % 8 * 4) & 0xf) as f32)
    }
    #[inline(always)]
    unsafe fn load_low8(p: *const f32) -> [f32; 16] {
        let v = unsafe { p.cast::<[f32; 8]>().read_unaligned() };
        each(|i| v.get(i).copied().unwrap_or(0.0))
    }
    #[inline(always)]
    unsafe fn codes8(p: *const u8) -> [f32; 16] {
        let bytes = unsafe { read::<16>(p) };
        each(|i| f32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn nibbles_in_order(p: *const u8) -> [u32; 16] {
        let bytes = unsafe { read::<8>(p) };
        each(|i| u32::from(bytes[i / 2] >> (i % 2 * 4) & 0xf))
    }
    #[inline(always)]
    unsafe fn fma_where(lanes: u16, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        each(|i| if lanes >> i & 1 == 1 { a[i] * b[i] + c[i] } else { c[i] })
    }
    #[inline(always)]
    unsafe fn nibble_weights(codes: *const u8, zeros: *const u8) -> [[u32; 16]; 2] {
        let (codes, zeros) = unsafe { (read::<64>(codes), read::<4>(zeros)) };
        [0, 4].map(|shift| {
            each(|lane| {
                let zero = zeros[lane / 4] >> shift & 0xf;
                let weight = |b: usize| (codes[4 * lane + b] >> shift & 0xf).wrapping_sub(zero);
                u32::from_le_bytes([weight(0), weight(1), weight(2), weight(3)])
            })
        })
    }
    #[inline(always)]
    unsafe fn dot_groups(w: [u32; 16], x: [*const u8; 4]) -> [u32; 16] {
        let x = x.map(|x| unsafe { read::<16>(x) });
        each(|lane| {
            let product = |(b, w): (usize, u8)| i32::from(w as i8) * i32::from(x[lane / 4][lane % 4 * 4 + b]);
            w[lane].to_le_bytes().into_iter().enumerate().map(product).sum::<i32>() as u32
        })
    }
    #[inline(always)]
    unsafe fn group_sums(parts: [[u32; 16]; 4]) -> [u32; 16] {
        each(|lane| parts[lane % 4][lane / 4 * 4..][..4].iter().fold(0, |sum: u32, v| sum.wrapping_add(*v)))
    }
    #[inline(always)]
    unsafe fn positions<const STEP: u16>(mut bits: u32, base: u16, out: *mut u16) {
        let mut at = 0;
        while bits != 0 {
            unsafe { out.add(at).write(base + STEP * bits.trailing_zeros() as u16) };
            bits &= bits - 1;
            at += 1;
        }
    }
    #[inline(always)]
    unsafe fn expand(mask: u64, p: *const u8) -> [u32; 16] {
        let (from, mut next) = (unsafe { read::<64>(p) }, 0);
        let mut bytes = [128u8; 64];
        for (bit, byte) in bytes.iter_mut().enumerate() {
            if mask >> bit & 1 == 1 {
                *byte = from[next];
                next += 1;
            }
        }
        each(|i| u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8, _: usize) {}
}
