//! `pack-quantized`: signed codes of `b` bits in 32-bit words.
//!
//! A code `q` in `[−2^(b−1), 2^(b−1)−1]` is stored as `q + 2^(b−1)`; code `i` of a row occupies bits `i·b …` counted from
//! the least significant bit of the row's first word. Two layouts: *dense* (codes may straddle words) and *padded*
//! (`⌊32/b⌋` codes per word); they are the same where `b` divides 32.

/// How the codes of a row fill its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `ceil(cols·b/32)` words per row; releases from 0.18 on.
    Dense,
    /// `ceil(cols/⌊32/b⌋)` words per row; releases up to 0.17.1.
    Padded,
}

impl Layout {
    /// Words per row of `cols` codes.
    pub fn words(self, cols: usize, bits: u32) -> Option<usize> {
        match self {
            Self::Dense => Some(cols.checked_mul(bits as usize)?.div_ceil(32)),
            Self::Padded => Some(cols.div_ceil(32 / bits as usize)),
        }
    }

    /// First bit of code `i` in its row.
    fn bit(self, i: usize, bits: u32) -> usize {
        match self {
            Self::Dense => i * bits as usize,
            Self::Padded => {
                let per_word = 32 / bits as usize;
                i / per_word * 32 + i % per_word * bits as usize
            }
        }
    }
}

/// Packs `codes[rows, cols]`, each in the range of `bits`, row by row. `bits` from 1 to 8.
pub fn pack(codes: &[i8], rows: usize, cols: usize, bits: u32, layout: Layout) -> Vec<i32> {
    assert!((1..=8).contains(&bits), "the caller checked the number of bits");
    assert_eq!(codes.len(), rows * cols, "one code per weight");
    let words = layout.words(cols, bits).expect("a row of codes in memory is shorter than the address space");
    let half = 1i32 << (bits - 1);
    let mut out = vec![0u32; rows * words];
    for r in 0..rows {
        let row = &mut out[r * words..(r + 1) * words];
        for c in 0..cols {
            let code = ((i32::from(codes[r * cols + c]) + half) as u32) & ((1 << bits) - 1);
            let bit = layout.bit(c, bits);
            row[bit / 32] |= code << (bit % 32);
            if bit % 32 + bits as usize > 32 {
                row[bit / 32 + 1] |= code >> (32 - bit % 32);
            }
        }
    }
    out.into_iter().map(|w| w as i32).collect()
}

/// Unpacks `rows` rows of `cols` codes.
///
/// # Errors
/// A number of words that does not fit the shape, as text.
pub fn unpack(words: &[i32], rows: usize, cols: usize, bits: u32, layout: Layout) -> Result<Vec<i8>, String> {
    if !(1..=8).contains(&bits) {
        return Err(format!("codes of {bits} bits are not supported, 1 to 8 are"));
    }
    let width = layout.words(cols, bits);
    if width.and_then(|w| rows.checked_mul(w)) != Some(words.len()) {
        return Err(format!("{} words do not hold [{rows}, {cols}] codes of {bits} bits", words.len()));
    }
    let width = width.unwrap_or(0);
    let half = 1i32 << (bits - 1);
    let total = rows.checked_mul(cols).ok_or_else(|| format!("shape [{rows}, {cols}] overflows"))?;
    let mut out = Vec::with_capacity(total);
    for r in 0..rows {
        let row = &words[r * width..(r + 1) * width];
        for c in 0..cols {
            let bit = layout.bit(c, bits);
            let low = (row[bit / 32] as u32) >> (bit % 32);
            let high =
                if bit % 32 + bits as usize > 32 { (row[bit / 32 + 1] as u32) << (32 - bit % 32) } else { 0 };
            let code = (low | high) & ((1 << bits) - 1);
            out.push((code as i32 - half) as i8);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// The worked examples of the format description.
    #[test]
    fn golden_words() {
        let q4 = [-8, -7, -1, 0, 1, 2, 6, 7, 3];
        assert_eq!(pack(&q4, 1, 9, 4, Layout::Dense), [-22_444_272, 11]);
        assert_eq!(pack(&q4, 1, 9, 4, Layout::Padded), [-22_444_272, 11]);
        let q3 = [-4, -3, -2, -1, 0, 1, 2, 3, -4, 3, 1, 2];
        assert_eq!(pack(&q3, 1, 12, 3, Layout::Dense), [0x78FA_C688, 0x0D]);
        assert_eq!(pack(&q3, 1, 12, 3, Layout::Padded), [0x38FA_C688, 0x35]);
    }

    #[test]
    fn wrong_number_of_words_is_an_error() {
        assert!(unpack(&[0, 0], 1, 8, 4, Layout::Dense).unwrap_err().contains("2 words"));
        assert!(unpack(&[0], usize::MAX, 8, 4, Layout::Dense).is_err());
        assert!(unpack(&[0], 1, usize::MAX, 4, Layout::Dense).is_err());
        assert!(unpack(&[0], 1, 4, 9, Layout::Dense).unwrap_err().contains("9 bits"));
        assert_eq!(unpack(&[], 0, 4, 4, Layout::Dense).unwrap(), Vec::<i8>::new());
    }

    proptest! {
        #[test]
        fn codes_survive(bits in 1u32..=8, rows in 1usize..5, cols in 1usize..70, padded in any::<bool>(), seed in any::<u64>()) {
            let layout = if padded { Layout::Padded } else { Layout::Dense };
            let mut state = seed | 1;
            let codes: Vec<i8> = (0..rows * cols).map(|_| {
                state ^= state << 13; state ^= state >> 7; state ^= state << 17;
                ((state >> 11) as i64 % (1 << bits) - (1 << (bits - 1))) as i8
            }).collect();
            let words = pack(&codes, rows, cols, bits, layout);
            prop_assert_eq!(unpack(&words, rows, cols, bits, layout).unwrap(), codes);
        }
    }
}
