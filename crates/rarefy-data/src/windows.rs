//! Calibration windows of tokens, drawn as the SparseGPT and Wanda papers do.

use crate::DataError;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `count` windows of `length` consecutive tokens, each starting at a uniformly drawn position of one token stream.
///
/// This is the WikiText2 rule of the reference code of SparseGPT (`datautils.py`): the text is tokenised once and windows are
/// drawn with replacement, so that they may overlap.
///
/// # Errors
/// [`DataError::Zero`] for a count or length of zero, [`DataError::TooFewTokens`] when the stream is shorter than one window.
pub fn random_windows(
    tokens: &[u32],
    count: usize,
    length: usize,
    seed: u64,
) -> Result<Vec<Vec<u32>>, DataError> {
    check(count, length)?;
    if tokens.len() < length {
        return Err(DataError::TooFewTokens { length, found: tokens.len() });
    }
    let last = tokens.len() - length;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Ok((0..count)
        .map(|_| {
            let start = rng.random_range(0..=last);
            tokens[start..start + length].to_vec()
        })
        .collect())
}

/// `count` windows of `length` tokens, each cut at a uniform position from a uniformly drawn document with at least `length` tokens.
///
/// This is the C4 rule of the same code, where documents are drawn until one is long enough; shorter documents are never used.
///
/// # Errors
/// [`DataError::Zero`], or [`DataError::TooFewTokens`] (with the longest document) when no document is long enough.
pub fn random_documents(
    documents: &[Vec<u32>],
    count: usize,
    length: usize,
    seed: u64,
) -> Result<Vec<Vec<u32>>, DataError> {
    check(count, length)?;
    let long: Vec<&Vec<u32>> = documents.iter().filter(|d| d.len() >= length).collect();
    if long.is_empty() {
        return Err(DataError::TooFewTokens {
            length,
            found: documents.iter().map(Vec::len).max().unwrap_or(0),
        });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Ok((0..count)
        .map(|_| {
            let document = long[rng.random_range(0..long.len())];
            let start = rng.random_range(0..=document.len() - length);
            document[start..start + length].to_vec()
        })
        .collect())
}

fn check(count: usize, length: usize) -> Result<(), DataError> {
    match (count, length) {
        (0, _) => Err(DataError::Zero { field: "samples" }),
        (_, 0) => Err(DataError::Zero { field: "length" }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exact_fit_has_one_window() {
        let tokens: Vec<u32> = (0..7).collect();
        assert_eq!(random_windows(&tokens, 3, 7, 1).unwrap(), vec![tokens.clone(); 3]);
    }

    #[test]
    fn every_start_is_reached_and_seeds_differ() {
        let tokens: Vec<u32> = (0..12).collect();
        let windows = random_windows(&tokens, 400, 5, 3).unwrap();
        let mut seen = [0usize; 8];
        for w in &windows {
            seen[w[0] as usize] += 1;
        }
        assert!(seen.iter().all(|&n| n > 20), "{seen:?}");
        assert_eq!(windows, random_windows(&tokens, 400, 5, 3).unwrap());
        assert_ne!(windows, random_windows(&tokens, 400, 5, 4).unwrap());
    }

    #[test]
    fn short_documents_are_never_used() {
        let documents = vec![vec![1; 4], (10..30).collect(), vec![2; 5]];
        for w in random_documents(&documents, 100, 6, 9).unwrap() {
            assert!(w[0] >= 10 && w.windows(2).all(|p| p[1] == p[0] + 1));
        }
        assert!(matches!(
            random_documents(&documents, 1, 21, 9),
            Err(DataError::TooFewTokens { length: 21, found: 20 })
        ));
        assert!(matches!(random_documents(&[], 1, 1, 9), Err(DataError::TooFewTokens { found: 0, .. })));
    }

    #[test]
    fn zero_and_short_are_refused() {
        assert!(matches!(
            random_windows(&[1, 2], 1, 3, 0),
            Err(DataError::TooFewTokens { length: 3, found: 2 })
        ));
        assert!(matches!(random_windows(&[1, 2], 0, 1, 0), Err(DataError::Zero { field: "samples" })));
        assert!(matches!(random_windows(&[1, 2], 1, 0, 0), Err(DataError::Zero { field: "length" })));
    }

    proptest! {
        #[test]
        fn windows_are_contiguous_pieces(n in 1usize..200, length in 1usize..50, seed: u64) {
            prop_assume!(length <= n);
            let tokens: Vec<u32> = (0..n as u32).collect();
            for w in random_windows(&tokens, 5, length, seed).unwrap() {
                prop_assert_eq!(w.len(), length);
                prop_assert_eq!(&w[..], &tokens[w[0] as usize..][..length]);
            }
        }
    }
}
