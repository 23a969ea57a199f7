//! The inner loop over one panel of 16 rows, written once for all instruction sets.

use super::Shape;
use crate::Isa;
use crate::quantised::lanes::Lanes;
use crate::quantised::lanes::portable::Portable;

/// Rows of a panel: one lane each.
pub(super) const HEIGHT: usize = 16;
/// Tokens of a pass at most: one sum in integers and one in f32 per token, beside the weights. 16 of the 32 registers of AVX-512.
pub(super) const MAX_TOKENS: usize = 8;
/// Sums of up to [`MAX_TOKENS`] tokens, `[token][row]`.
pub(super) type Tile = [f32; HEIGHT * MAX_TOKENS];
/// Bytes between a load and its prefetch.
const AHEAD: usize = 4096;

/// The path to take for `isa`: the AVX-512 one multiplies bytes with VNNI, which is detected apart.
pub(super) fn path(isa: Isa) -> Isa {
    if isa == Isa::Avx512 && !crate::cpu_features().avx512vnni { Isa::Avx2 } else { isa }
}

/// Tokens of a pass on a path.
pub(super) fn most_tokens(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => MAX_TOKENS,
        Isa::Avx2 => 3,
        Isa::Portable => 4,
    }
}

/// Fills `tile` from the blocks of one panel and the packed activations of `n` tokens.
pub(super) fn run(shape: &Shape, isa: Isa, blocks: &[u8], x: &[f32], n: usize, tile: &mut Tile) {
    assert_eq!(blocks.len(), shape.groups() * shape.block_bytes(), "a panel has one block per group");
    assert_eq!(
        x.len(),
        n * shape.groups() * super::activations::words_per_group(shape),
        "packed activations"
    );
    assert!((1..=most_tokens(isa)).contains(&n), "the tokens of a pass");
    match isa {
        // SAFETY (both): the path is available, as `forward_with` and `path` checked; the sizes were checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::avx512(shape, blocks, x, n, tile) },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::avx2(shape, blocks, x, n, tile) },
        _ => portable(shape, blocks, x, n, tile),
    }
}

fn portable(shape: &Shape, blocks: &[u8], x: &[f32], n: usize, tile: &mut Tile) {
    // SAFETY: plain Rust; the sizes were checked by `run`.
    unsafe {
        match n {
            1 => panel::<Portable, 1>(shape, blocks, x, tile),
            2 => panel::<Portable, 2>(shape, blocks, x, tile),
            3 => panel::<Portable, 3>(shape, blocks, x, tile),
            4 => panel::<Portable, 4>(shape, blocks, x, tile),
            n => unreachable!("a portable pass has 1 to 4 tokens, got {n}"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::quantised::lanes::avx2::Avx2;
    use crate::quantised::lanes::avx512::Avx512;

    /// # Safety
    /// The instructions named; sizes as [`super::run`] checks them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,avx512vnni")]
    pub(super) unsafe fn avx512(shape: &Shape, blocks: &[u8], x: &[f32], n: usize, tile: &mut Tile) {
        // SAFETY: the caller's promise.
        unsafe {
            match n {
                1 => panel::<Avx512, 1>(shape, blocks, x, tile),
                2 => panel::<Avx512, 2>(shape, blocks, x, tile),
                3 => panel::<Avx512, 3>(shape, blocks, x, tile),
                4 => panel::<Avx512, 4>(shape, blocks, x, tile),
                5 => panel::<Avx512, 5>(shape, blocks, x, tile),
                6 => panel::<Avx512, 6>(shape, blocks, x, tile),
                7 => panel::<Avx512, 7>(shape, blocks, x, tile),
                8 => panel::<Avx512, 8>(shape, blocks, x, tile),
                n => unreachable!("a pass has 1 to 8 tokens, got {n}"),
            }
        }
    }

    /// # Safety
    /// The instructions named; sizes as [`super::run`] checks them.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(shape: &Shape, blocks: &[u8], x: &[f32], n: usize, tile: &mut Tile) {
        // SAFETY: the caller's promise.
        unsafe {
            match n {
                1 => panel::<Avx2, 1>(shape, blocks, x, tile),
                2 => panel::<Avx2, 2>(shape, blocks, x, tile),
                3 => panel::<Avx2, 3>(shape, blocks, x, tile),
                n => unreachable!("an AVX2 pass has 1 to 3 tokens, got {n}"),
            }
        }
    }
}

/// Chooses the loop.
///
/// # Safety
/// The instructions of `L`; sizes as [`run`] checks them.
#[inline(always)]
unsafe fn panel<L: Lanes, const N: usize>(shape: &Shape, blocks: &[u8], x: &[f32], tile: &mut Tile) {
    // SAFETY: the caller's promise.
    let sums = unsafe {
        match (shape.exact, shape.bits) {
            (false, 4) => integers::<L, N, 4>(shape, blocks.as_ptr(), x),
            (false, _) => integers::<L, N, 8>(shape, blocks.as_ptr(), x),
            (true, 4) => numbers::<L, N, 4>(shape, blocks.as_ptr(), x),
            (true, _) => numbers::<L, N, 8>(shape, blocks.as_ptr(), x),
        }
    };
    for (sum, out) in sums.into_iter().zip(tile.chunks_exact_mut(HEIGHT)) {
        // SAFETY: `out` has 16 elements.
        unsafe { L::store(out.as_mut_ptr(), sum) };
    }
}

/// The head of a block: scales, and zero points when they are stored. Advances `p` behind it.
///
/// # Safety
/// The instructions of `L`; a block at `p`.
#[inline(always)]
unsafe fn head<L: Lanes>(shape: &Shape, p: &mut *const u8) -> (L::F, Option<L::I>) {
    // SAFETY: a block begins with 16 scales, and 16 zero points (8 or 16 bytes) when none is fixed.
    unsafe {
        let scales = if shape.wide_scales { L::load(p.cast::<f32>()) } else { L::scales_f16(*p) };
        *p = p.add(if shape.wide_scales { 64 } else { 32 });
        if shape.fixed_zero.is_some() {
            return (scales, None);
        }
        let zeros = if shape.bits == 4 { L::nibbles16(*p) } else { L::bytes16(*p) };
        *p = p.add(if shape.bits == 4 { 8 } else { 16 });
        (scales, Some(zeros))
    }
}

/// Eight-bit activations. Per group and token: `Σ q_w q_x − z Σ q_x` in integers, exact below 2^24, so that its conversion is exact too;
/// then one product of scales, one product and one sum in f32. Hence the same bits on every path and in every batch.
///
/// # Safety
/// The instructions of `L`; sizes as [`run`] checks them.
#[inline(always)]
unsafe fn integers<L: Lanes, const N: usize, const BITS: u32>(
    shape: &Shape,
    mut p: *const u8,
    x: &[f32],
) -> [L::F; N] {
    // SAFETY: blocks and activations follow each other as `run` checked: per group a head and `group * BITS / 8` vectors' worth of
    // codes, and `N (group / 4 + 2)` words.
    unsafe {
        let mut y = [L::zero(); N];
        let mut x = x.as_ptr().cast::<i32>();
        let words = shape.group / 4;
        for _ in 0..shape.groups() {
            let (scales, zeros) = head::<L>(shape, &mut p);
            let tail = x.add(words * N);
            let mut acc = [L::splat_i(0); N];
            for (t, acc) in acc.iter_mut().enumerate() {
                let sum = tail.add(N + t).read();
                *acc = match zeros {
                    None => L::splat_i(sum),
                    Some(z) => L::mul16(z, sum),
                };
            }
            let steps = if BITS == 4 { words / 2 } else { words };
            for _ in 0..steps {
                L::prefetch(p, AHEAD);
                let w = L::load_i(p);
                p = p.add(64);
                if BITS == 4 {
                    let (low, high) = (L::low(w), L::high(w));
                    for (t, acc) in acc.iter_mut().enumerate() {
                        *acc = L::dot_nibbles(*acc, low, x.add(t).read());
                        *acc = L::dot_nibbles(*acc, high, x.add(N + t).read());
                    }
                    x = x.add(2 * N);
                } else {
                    for (t, acc) in acc.iter_mut().enumerate() {
                        *acc = L::dot_bytes(*acc, w, x.add(t).read());
                    }
                    x = x.add(N);
                }
            }
            for t in 0..N {
                let scale = L::mul(scales, L::splat(tail.add(t).cast::<f32>().read()));
                y[t] = L::add(y[t], L::mul(L::to_f(acc[t]), scale));
            }
            x = tail.add(2 * N);
        }
        y
    }
}

/// f32 activations. Per group and token one chain of multiply-adds over the columns, which starts at `−z Σ x`, and one by the scale.
///
/// # Safety
/// The instructions of `L`; sizes as [`run`] checks them.
#[inline(always)]
unsafe fn numbers<L: Lanes, const N: usize, const BITS: u32>(
    shape: &Shape,
    mut p: *const u8,
    x: &[f32],
) -> [L::F; N] {
    /// One vector of weights with every token.
    #[inline(always)]
    unsafe fn step<L: Lanes, const N: usize>(acc: &mut [L::F; N], w: L::F, x: &mut *const f32) {
        for acc in acc.iter_mut() {
            // SAFETY: the caller's promise; `x` runs over the group's numbers.
            unsafe {
                *acc = L::fma(w, L::splat(x.read()), *acc);
                *x = x.add(1);
            }
        }
    }
    // SAFETY: as in `integers`, with `N (group + 1)` words of activations per group.
    unsafe {
        let mut y = [L::zero(); N];
        let mut x = x.as_ptr();
        for _ in 0..shape.groups() {
            let (scales, zeros) = head::<L>(shape, &mut p);
            let tail = x.add(shape.group * N);
            let mut acc = [L::zero(); N];
            for (t, acc) in acc.iter_mut().enumerate() {
                let sum = L::splat(tail.add(t).read());
                *acc = zeros.map_or(sum, |z| L::mul(L::to_f(z), sum));
            }
            for _ in 0..shape.group * BITS as usize / 32 {
                L::prefetch(p, AHEAD);
                let w = L::load_i(p);
                p = p.add(64);
                if BITS == 4 {
                    step::<L, N>(&mut acc, L::nibble::<0>(w), &mut x);
                    step::<L, N>(&mut acc, L::nibble::<1>(w), &mut x);
                    step::<L, N>(&mut acc, L::nibble::<2>(w), &mut x);
                    step::<L, N>(&mut acc, L::nibble::<3>(w), &mut x);
                    step::<L, N>(&mut acc, L::nibble::<4>(w), &mut x);
                    step::<L, N>(&mut acc, L::nibble::<5>(w), &mut x);
                    step::<L, N>(&mut acc, L::nibble::<6>(w), &mut x);
                    step::<L, N>(&mut acc, L::nibble::<7>(w), &mut x);
                } else {
                    step::<L, N>(&mut acc, L::byte::<0>(w), &mut x);
                    step::<L, N>(&mut acc, L::byte::<1>(w), &mut x);
                    step::<L, N>(&mut acc, L::byte::<2>(w), &mut x);
                    step::<L, N>(&mut acc, L::byte::<3>(w), &mut x);
                }
            }
            for (y, acc) in y.iter_mut().zip(acc) {
                *y = L::fma(acc, scales, *y);
            }
            x = tail.add(N);
        }
        y
    }
}
