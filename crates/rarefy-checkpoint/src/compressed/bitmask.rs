//! `sparse-bitmask` and `sparse-24-bitmask`: one bit per weight and the kept values in row-major order.
//!
//! Bit `c mod 8` (least significant first) of byte `⌊c/8⌋` of a row says whether `W[r, c]` is kept. Each row begins at a
//! byte boundary; pad bits are 0. Values are handled as bytes, so every dtype, NaN payloads included, survives bitwise;
//! −0.0 counts as zero and becomes +0.0.

use crate::dtype::DType;

/// The parts of a weight in `sparse-bitmask` form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmask {
    /// Kept values, little endian, row-major.
    pub compressed: Vec<u8>,
    /// `[rows, ceil(cols/8)]`.
    pub bitmask: Vec<u8>,
    /// Kept values before each row, `[rows]`.
    pub row_offsets: Vec<i64>,
}

/// Encodes a dense weight given by its little-endian bytes (`rows * cols` elements of `dtype`).
pub fn encode(dense: &[u8], dtype: DType, rows: usize, cols: usize) -> Bitmask {
    let size = dtype.size();
    assert_eq!(dense.len(), rows * cols * size, "the caller checked the length against the shape");
    let width = cols.div_ceil(8);
    let mut out = Bitmask {
        compressed: Vec::new(),
        bitmask: vec![0; rows * width],
        row_offsets: Vec::with_capacity(rows),
    };
    for r in 0..rows {
        out.row_offsets.push((out.compressed.len() / size) as i64);
        for c in 0..cols {
            let at = (r * cols + c) * size;
            let element = &dense[at..at + size];
            if dtype.is_nonzero(element) {
                out.bitmask[r * width + c / 8] |= 1 << (c % 8);
                out.compressed.extend_from_slice(element);
            }
        }
    }
    out
}

/// Encodes a dense weight in which each aligned group of four columns has at most two non-zeros.
/// Returns (values `[rows, cols/2]`, bitmask `[rows, ceil(cols/8)]`).
///
/// Groups with fewer than two non-zeros are filled with zeros at their lowest free columns.
///
/// # Errors
/// The row and first column of the first group with more than two non-zeros, as text; a `cols` not divisible by 4.
pub fn encode_24(dense: &[u8], dtype: DType, rows: usize, cols: usize) -> Result<(Vec<u8>, Vec<u8>), String> {
    let size = dtype.size();
    assert_eq!(dense.len(), rows * cols * size, "the caller checked the length against the shape");
    if !cols.is_multiple_of(4) {
        return Err(format!("sparse-24-bitmask needs a number of columns divisible by 4, found {cols}"));
    }
    let width = cols.div_ceil(8);
    let mut values = Vec::with_capacity(dense.len() / 2);
    let mut mask = vec![0u8; rows * width];
    for r in 0..rows {
        for group in (0..cols).step_by(4) {
            let element = |i: usize| {
                let at = (r * cols + group + i) * size;
                &dense[at..at + size]
            };
            let mut bits = (0..4).filter(|&i| dtype.is_nonzero(element(i))).fold(0u8, |b, i| b | 1 << i);
            if bits.count_ones() > 2 {
                return Err(format!(
                    "row {r}, columns {group}..{}: {} non-zeros, 2:4 allows two; prune to 2:4 first",
                    group + 4,
                    bits.count_ones()
                ));
            }
            while bits.count_ones() < 2 {
                bits |= 1 << (!bits).trailing_zeros();
            }
            mask[r * width + group / 8] |= bits << (group % 8);
            for i in (0..4).filter(|i| bits >> i & 1 == 1) {
                if dtype.is_nonzero(element(i)) {
                    values.extend_from_slice(element(i));
                } else {
                    values.extend(std::iter::repeat_n(0, size));
                }
            }
        }
    }
    Ok((values, mask))
}

/// Decodes to dense little-endian bytes. `size`: bytes of one element. With `two_of_four` every aligned group of four
/// columns must have exactly two bits set.
///
/// # Errors
/// What contradicts what, as text: lengths, pad bits, number of bits against number of values.
pub fn decode(
    compressed: &[u8],
    bitmask: &[u8],
    rows: usize,
    cols: usize,
    size: usize,
    two_of_four: bool,
) -> Result<Vec<u8>, String> {
    let width = cols.div_ceil(8);
    if rows.checked_mul(width) != Some(bitmask.len()) {
        return Err(format!(
            "the bitmask has {} bytes, shape [{rows}, {cols}] needs {rows} rows of {width}",
            bitmask.len()
        ));
    }
    if size == 0 || !compressed.len().is_multiple_of(size) {
        return Err(format!("{} bytes of values are not whole elements of {size} bytes", compressed.len()));
    }
    if two_of_four && !cols.is_multiple_of(4) {
        return Err(format!("sparse-24-bitmask needs a number of columns divisible by 4, found {cols}"));
    }
    let kept: u64 = bitmask.iter().map(|b| u64::from(b.count_ones())).sum();
    let values = (compressed.len() / size) as u64;
    if kept != values {
        return Err(format!("the bitmask marks {kept} values, {values} are stored"));
    }
    let pad = if cols.is_multiple_of(8) { 0 } else { 0xffu8 << (cols % 8) };
    let total = rows.checked_mul(cols).and_then(|n| n.checked_mul(size));
    let total = total.ok_or_else(|| format!("shape [{rows}, {cols}] overflows"))?;
    let mut out = vec![0; total];
    let mut next = compressed.chunks_exact(size);
    for r in 0..rows {
        let row = &bitmask[r * width..(r + 1) * width];
        if row.last().is_some_and(|&b| b & pad != 0) {
            return Err(format!("row {r} marks columns behind the last one ({cols})"));
        }
        for (byte, &bits) in row.iter().enumerate() {
            if two_of_four {
                let groups = if cols - byte * 8 >= 8 { 2 } else { 1 };
                for g in 0..groups {
                    if (bits >> (4 * g) & 0xf).count_ones() != 2 {
                        let c = byte * 8 + 4 * g;
                        return Err(format!(
                            "row {r}, columns {c}..{}: {} values marked, 2:4 needs two",
                            c + 4,
                            (bits >> (4 * g) & 0xf).count_ones()
                        ));
                    }
                }
            }
            let mut left = bits;
            while left != 0 {
                let c = byte * 8 + left.trailing_zeros() as usize;
                let at = (r * cols + c) * size;
                // The number of marked values equals the number stored, so `next` cannot run dry.
                if let Some(value) = next.next() {
                    out[at..at + size].copy_from_slice(value);
                }
                left &= left - 1;
            }
        }
    }
    Ok(out)
}

/// Number of zeros among elements of `dtype`, −0.0 counted as zero.
pub(crate) fn zeros(dense: &[u8], dtype: DType) -> u64 {
    // The usual types without a loop over the bytes of each element.
    let count = match dtype {
        DType::F32 => dense.as_chunks::<4>().0.iter().filter(|&&e| u32::from_le_bytes(e) << 1 == 0).count(),
        DType::F16 | DType::BF16 => {
            dense.as_chunks::<2>().0.iter().filter(|&&e| u16::from_le_bytes(e) << 1 == 0).count()
        }
        _ => dense.chunks_exact(dtype.size()).filter(|e| !dtype.is_nonzero(e)).count(),
    };
    count as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::dtype::{extend_f32, to_dtype};
    use proptest::prelude::*;

    fn values_f32(bytes: &[u8], dtype: DType) -> Vec<f32> {
        let mut out = Vec::new();
        extend_f32(bytes, dtype, &mut out);
        out
    }

    #[test]
    fn zeros_are_counted_by_value() {
        for dtype in DType::ALL {
            let mut dense = to_dtype(&[0.0, 1.0, 0.0, 2.0, 0.0], dtype);
            if dtype.is_float() {
                // Turns the last zero into −0.0.
                *dense.last_mut().unwrap() = 0x80;
            }
            assert_eq!(zeros(&dense, dtype), 3, "{dtype}");
        }
    }

    /// The worked example of the format description.
    #[test]
    fn golden_bytes() {
        let mut w = vec![0f32; 30];
        for (at, v) in [(1, 1.0), (4, 2.0), (8, 3.0), (20, 4.0), (23, 5.0), (27, 6.0), (29, 7.0)] {
            w[at] = v;
        }
        let dense = to_dtype(&w, DType::F32);
        let e = encode(&dense, DType::F32, 3, 10);
        assert_eq!(e.bitmask, [18, 1, 0, 0, 137, 2]);
        assert_eq!(values_f32(&e.compressed, DType::F32), [1., 2., 3., 4., 5., 6., 7.]);
        assert_eq!(e.row_offsets, [0, 3, 3]);
        assert_eq!(decode(&e.compressed, &e.bitmask, 3, 10, 4, false).unwrap(), dense);
    }

    #[test]
    fn two_of_four_by_hand() {
        // Columns 1 and 3 kept, then a group with one non-zero (filled up at column 4), then an empty one (8, 9).
        let w = [0., 5., 0., 6., 0., 7., 0., 0., 0., 0., 0., 0.];
        let dense = to_dtype(&w, DType::BF16);
        let (values, mask) = encode_24(&dense, DType::BF16, 1, 12).unwrap();
        assert_eq!(values_f32(&values, DType::BF16), [5., 6., 0., 7., 0., 0.]);
        assert_eq!(mask, [0b0011_1010, 0b0000_0011]);
        assert_eq!(decode(&values, &mask, 1, 12, 2, true).unwrap(), dense);
        let full = to_dtype(&[1., 2., 3., 0.], DType::F32);
        assert!(encode_24(&full, DType::F32, 1, 4).unwrap_err().contains("3 non-zeros"));
        assert!(encode_24(&full, DType::F32, 2, 2).unwrap_err().contains("divisible"));
    }

    #[test]
    fn corrupt_parts_are_errors() {
        let dense = to_dtype(&[1., 0., 2., 0., 0., 3.], DType::F32);
        let e = encode(&dense, DType::F32, 2, 3);
        let bad = |c: &[u8], b: &[u8], rows, cols| decode(c, b, rows, cols, 4, false).unwrap_err();
        assert!(bad(&e.compressed[4..], &e.bitmask, 2, 3).contains("marks 3 values, 2 are stored"));
        assert!(bad(&e.compressed[1..], &e.bitmask, 2, 3).contains("whole elements"));
        assert!(bad(&e.compressed, &e.bitmask, 3, 3).contains("bitmask has 2 bytes"));
        assert!(bad(&e.compressed, &e.bitmask, 2, 9).contains("bitmask has 2 bytes"));
        assert!(bad(&e.compressed, &e.bitmask, usize::MAX, 9).contains("bitmask has 2 bytes"));
        // One bit moved behind the last column: the count still agrees.
        assert!(bad(&e.compressed, &[0b1001, e.bitmask[1]], 2, 3).contains("behind the last"));
        assert!(decode(&[0; 8], &[0b0000_0111], 1, 4, 4, true).is_err());
        assert!(decode(&[0; 12], &[0b0000_0111], 1, 4, 4, true).unwrap_err().contains("3 values marked"));
    }

    #[test]
    fn all_zero_and_all_dense_rows_and_odd_shapes_survive_bitwise() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::I8] {
            for (rows, cols) in [(511, 350), (128, 280), (1, 1), (3, 7), (2, 8)] {
                let w: Vec<f32> = (0..rows * cols)
                    .map(|i| match i / cols % 3 {
                        0 => 0.0,
                        1 => 1.0 + (i % 5) as f32,
                        _ => ((i * 7919) % 11) as f32 - 5.0,
                    })
                    .collect();
                let dense = to_dtype(&w, dtype);
                let e = encode(&dense, dtype, rows, cols);
                assert_eq!(
                    decode(&e.compressed, &e.bitmask, rows, cols, dtype.size(), false).unwrap(),
                    dense,
                    "{dtype} {rows}x{cols}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_bits_survive_except_negative_zero(rows in 1usize..9, cols in 1usize..40, seed in any::<u64>()) {
            let mut state = seed | 1;
            let mut dense: Vec<u8> = Vec::new();
            for _ in 0..rows * cols {
                state ^= state << 13; state ^= state >> 7; state ^= state << 17;
                let v = if state % 3 == 0 { 0u32 } else { (state >> 20) as u32 };
                dense.extend((if v == 0x8000_0000 { 0 } else { v }).to_le_bytes());
            }
            let e = encode(&dense, DType::F32, rows, cols);
            prop_assert_eq!(decode(&e.compressed, &e.bitmask, rows, cols, 4, false).unwrap(), dense);
        }

        #[test]
        fn hostile_parts_never_panic(c in proptest::collection::vec(any::<u8>(), 0..64), b in proptest::collection::vec(any::<u8>(), 0..16), rows in 0usize..6, cols in 0usize..20, size in 0usize..9, t in any::<bool>()) {
            let _ = decode(&c, &b, rows, cols, size, t);
        }
    }
}
