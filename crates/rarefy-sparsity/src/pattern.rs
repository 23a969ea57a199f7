//! Where zeros may lie.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::SparsityError;

/// The shape a set of zeros has to have in a weight `[rows = d_out, cols = d_in]`.
///
/// As text (`FromStr`, `Display`, serde): `unstructured`, `2:4`, `block:4x1`, `group:16`,
/// `channel`. Numbers are plain decimals without sign or leading zeros, so that each pattern has
/// one spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// Zeros anywhere.
    Unstructured,
    /// At most `n` non-zeros in each aligned group of `m` consecutive inputs of a row.
    NM {
        /// Non-zeros allowed per group, `1..=m`.
        n: usize,
        /// Length of a group; divides `cols`.
        m: usize,
    },
    /// Aligned blocks of `rows` outputs by `cols` inputs are kept or zeroed as a whole.
    Block {
        /// Outputs per block; divides the rows of the weight.
        rows: usize,
        /// Inputs per block; divides the columns of the weight.
        cols: usize,
    },
    /// Aligned groups of `len` consecutive inputs of one row (1×G) are kept or zeroed as a whole.
    RowGroup {
        /// Length of a group; divides `cols`.
        len: usize,
    },
    /// Whole output rows are kept or zeroed.
    Channel,
}

impl Pattern {
    /// Checks the numbers of the pattern by themselves.
    ///
    /// # Errors
    ///
    /// [`SparsityError::PatternParameters`] for a zero size or `n > m`.
    pub fn check(&self) -> Result<(), SparsityError> {
        let reason = match *self {
            Pattern::NM { m: 0, .. } => "M must be at least 1",
            Pattern::NM { n: 0, .. } => "N must be at least 1 (N counts the non-zeros)",
            Pattern::NM { n, m } if n > m => "N, the non-zeros per group, cannot exceed M",
            Pattern::Block { rows: 0, .. } | Pattern::Block { cols: 0, .. } => {
                "both block sizes must be at least 1"
            }
            Pattern::RowGroup { len: 0 } => "the group length must be at least 1",
            _ => return Ok(()),
        };
        Err(SparsityError::PatternParameters { pattern: self.to_string(), reason })
    }

    /// Checks that the pattern tiles a weight of `rows` outputs and `cols` inputs.
    ///
    /// # Errors
    ///
    /// Those of [`Pattern::check`]; [`SparsityError::DoesNotDivide`] when a unit does not divide
    /// its dimension.
    pub fn check_shape(&self, rows: usize, cols: usize) -> Result<(), SparsityError> {
        self.check()?;
        let (unit_rows, unit_cols) = match *self {
            Pattern::Unstructured | Pattern::Channel => (1, 1),
            Pattern::NM { m, .. } => (1, m),
            Pattern::Block { rows, cols } => (rows, cols),
            Pattern::RowGroup { len } => (1, len),
        };
        let checks = [("rows (d_out)", unit_rows, rows), ("cols (d_in)", unit_cols, cols)];
        for (dimension, unit, found) in checks {
            if !found.is_multiple_of(unit) {
                return Err(SparsityError::DoesNotDivide {
                    pattern: self.to_string(),
                    dimension,
                    unit,
                    found,
                });
            }
        }
        Ok(())
    }

    /// The sparsity the pattern itself fixes: `1 − N/M` for N:M, `None` for the others.
    #[must_use]
    pub fn implied_sparsity(&self) -> Option<f64> {
        match *self {
            Pattern::NM { n, m } if m > 0 => Some((m.saturating_sub(n)) as f64 / m as f64),
            _ => None,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured => f.pad("unstructured"),
            Pattern::Channel => f.pad("channel"),
            Pattern::NM { n, m } => f.pad(&format!("{n}:{m}")),
            Pattern::Block { rows, cols } => f.pad(&format!("block:{rows}x{cols}")),
            Pattern::RowGroup { len } => f.pad(&format!("group:{len}")),
        }
    }
}

impl FromStr for Pattern {
    type Err = SparsityError;

    fn from_str(text: &str) -> Result<Self, SparsityError> {
        let unknown = || SparsityError::UnknownPattern { text: text.chars().take(40).collect() };
        let pattern = if text == "unstructured" {
            Pattern::Unstructured
        } else if text == "channel" {
            Pattern::Channel
        } else if let Some(size) = text.strip_prefix("block:") {
            let (rows, cols) = size.split_once('x').ok_or_else(unknown)?;
            Pattern::Block {
                rows: plain_number(rows).ok_or_else(unknown)?,
                cols: plain_number(cols).ok_or_else(unknown)?,
            }
        } else if let Some(len) = text.strip_prefix("group:") {
            Pattern::RowGroup { len: plain_number(len).ok_or_else(unknown)? }
        } else {
            let (n, m) = text.split_once(':').ok_or_else(unknown)?;
            Pattern::NM { n: plain_number(n).ok_or_else(unknown)?, m: plain_number(m).ok_or_else(unknown)? }
        };
        pattern.check()?;
        Ok(pattern)
    }
}

impl TryFrom<String> for Pattern {
    type Error = SparsityError;

    fn try_from(text: String) -> Result<Self, SparsityError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

/// Decimal digits only, no sign, no leading zero (a lone `0` is read, and refused later).
fn plain_number(text: &str) -> Option<usize> {
    let is_plain = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_digit())
        && (text.len() == 1 || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn any_valid() -> impl Strategy<Value = Pattern> {
        prop_oneof![
            Just(Pattern::Unstructured),
            Just(Pattern::Channel),
            (1usize..=64).prop_flat_map(|m| (1..=m).prop_map(move |n| Pattern::NM { n, m })),
            (1usize..=usize::MAX, 1usize..=usize::MAX).prop_map(|(rows, cols)| Pattern::Block { rows, cols }),
            (1usize..=usize::MAX).prop_map(|len| Pattern::RowGroup { len }),
        ]
    }

    #[test]
    fn spellings() {
        for (text, pattern) in [
            ("unstructured", Pattern::Unstructured),
            ("2:4", Pattern::NM { n: 2, m: 4 }),
            ("block:4x1", Pattern::Block { rows: 4, cols: 1 }),
            ("group:16", Pattern::RowGroup { len: 16 }),
            ("channel", Pattern::Channel),
        ] {
            assert_eq!(text.parse(), Ok(pattern));
            assert_eq!(pattern.to_string(), text);
            assert_eq!(serde_json::to_string(&pattern).unwrap(), format!("\"{text}\""));
        }
    }

    #[test]
    fn hostile_text_is_refused() {
        for text in [
            "",
            ":",
            "2:",
            ":4",
            "2:4:8",
            "+2:4",
            "2: 4",
            " 2:4",
            "02:4",
            "-2:4",
            "5:4",
            "0:4",
            "0:0",
            "4:0",
            "block:",
            "block:4",
            "block:0x4",
            "block:4x0",
            "block:4X4",
            "block:4x4x4",
            "group:",
            "group:0",
            "group:-1",
            "Channel",
            "99999999999999999999:4",
            "２:4",
            "channel ",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
            let json = serde_json::to_string(text).unwrap();
            assert!(serde_json::from_str::<Pattern>(&json).is_err(), "{text:?}");
        }
        let long = "x".repeat(1 << 16).parse::<Pattern>().unwrap_err().to_string();
        assert!(long.len() < 300, "the message quotes all of the input");
        assert!(serde_json::from_str::<Pattern>("7").is_err());
    }

    #[test]
    fn shapes_are_checked() {
        let two_four = Pattern::NM { n: 2, m: 4 };
        assert!(two_four.check_shape(3, 8).is_ok());
        assert_eq!(
            two_four.check_shape(3, 10),
            Err(SparsityError::DoesNotDivide {
                pattern: "2:4".into(),
                dimension: "cols (d_in)",
                unit: 4,
                found: 10
            })
        );
        assert!(Pattern::Block { rows: 4, cols: 1 }.check_shape(6, 8).is_err());
        assert!(Pattern::Block { rows: 0, cols: 1 }.check_shape(6, 8).is_err());
        assert!(Pattern::RowGroup { len: 16 }.check_shape(1, 8).is_err());
        assert!(Pattern::Channel.check_shape(7, 9).is_ok());
        assert_eq!(two_four.implied_sparsity(), Some(0.5));
        assert_eq!(Pattern::NM { n: 1, m: 4 }.implied_sparsity(), Some(0.75));
        assert_eq!(Pattern::NM { n: 1, m: 0 }.implied_sparsity(), None);
    }

    proptest! {
        #[test]
        fn text_round_trip(pattern in any_valid()) {
            let text = pattern.to_string();
            prop_assert_eq!(text.parse(), Ok(pattern));
            let json = serde_json::to_string(&pattern).unwrap();
            prop_assert_eq!(serde_json::from_str::<Pattern>(&json).unwrap(), pattern);
        }

        #[test]
        fn any_text_parses_to_itself_or_is_refused(text in "[0-9:x +a-z-]{0,12}") {
            if let Ok(pattern) = text.parse::<Pattern>() {
                prop_assert_eq!(pattern.to_string(), text);
                prop_assert!(pattern.check().is_ok());
            }
        }
    }
}
