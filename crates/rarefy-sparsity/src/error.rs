//! The one error type of this crate.

/// What can be wrong with sizes, scores, patterns, budgets and stored data.
///
/// Messages name the place, what was expected and what was found. Layer and file names are added
/// by the crates that know them.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SparsityError {
    /// A sparsity that is not a fraction in `[0, 1)`.
    #[error("sparsity must be a fraction of zeros in [0, 1), got {value}; 0.5 means half of the weights")]
    Sparsity {
        /// The value given.
        value: f64,
    },
    /// Text that names no pattern.
    #[error(
        "`{text}` is no sparsity pattern; write unstructured, N:M (2:4), block:RxC (block:4x1), group:G (group:16) or channel"
    )]
    UnknownPattern {
        /// The text given, shortened.
        text: String,
    },
    /// A pattern whose numbers contradict each other.
    #[error("pattern {pattern}: {reason}")]
    PatternParameters {
        /// The pattern as text.
        pattern: String,
        /// What is wrong, and what is allowed.
        reason: &'static str,
    },
    /// A matrix that the pattern does not tile.
    #[error(
        "pattern {pattern} needs {dimension} divisible by {unit}, got {found}; choose a unit that divides it or another pattern"
    )]
    DoesNotDivide {
        /// The pattern as text.
        pattern: String,
        /// `rows (d_out)` or `cols (d_in)`.
        dimension: &'static str,
        /// The unit that has to divide the dimension.
        unit: usize,
        /// The size of the dimension.
        found: usize,
    },
    /// A slice whose length does not fit the stated shape.
    #[error("{what}: expected {expected} values, found {found}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// The length the shape asks for.
        expected: usize,
        /// The length found.
        found: usize,
    },
    /// A matrix, list or layer without elements.
    #[error("{what} is empty; nothing can be selected from it")]
    Empty {
        /// Which input.
        what: &'static str,
    },
    /// NaN or infinity among the scores or weights.
    #[error(
        "{what}: {count} values are not finite, the first at index {first}; check the weights and the calibration data"
    )]
    NonFinite {
        /// Which input.
        what: &'static str,
        /// How many.
        count: usize,
        /// Flat index of the first.
        first: usize,
    },
    /// More elements asked for than there are.
    #[error("{what}: {asked} asked for, {available} available")]
    Count {
        /// What is counted.
        what: &'static str,
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        available: usize,
    },
    /// A size that overflows the address space or a format's index type.
    #[error("{what} is too large: {detail}")]
    TooLarge {
        /// Which size.
        what: &'static str,
        /// The numbers.
        detail: String,
    },
    /// Minimum budgets that add up to more than the total.
    #[error(
        "the layers need at least {needed} kept weights together, but the sparsity leaves {total}; lower the sparsity or the minimum per layer"
    )]
    Infeasible {
        /// Sum of the minima.
        needed: usize,
        /// What the sparsity leaves.
        total: usize,
    },
    /// A setting outside its range.
    #[error("setting `{field}` = {value}: allowed is {allowed}")]
    Setting {
        /// Name of the field.
        field: &'static str,
        /// The value given.
        value: String,
        /// The allowed range.
        allowed: &'static str,
    },
    /// A tile with more weights than a kernel has room for.
    #[error(
        "the tile at row {row}, column {col} holds {entries} entries, the kernel has room for {limit}; it needs half of each tile to be zero"
    )]
    DenseTile {
        /// First row of the tile.
        row: usize,
        /// First column of the tile.
        col: usize,
        /// Entries of the tile.
        entries: usize,
        /// Entries that fit.
        limit: usize,
    },
    /// Stored sparse data that contradicts itself.
    #[error(
        "{format}: {field}: expected {expected}, found {found}; the file is damaged or was written by another version"
    )]
    Malformed {
        /// The storage format.
        format: &'static str,
        /// The part of it.
        field: &'static str,
        /// What a valid file holds there.
        expected: String,
        /// What was found.
        found: String,
    },
}

/// Checks that `sparsity` is a fraction of zeros in `[0, 1)`.
///
/// # Errors
///
/// [`SparsityError::Sparsity`] for anything else, NaN and infinities included.
pub fn check_sparsity(sparsity: f64) -> Result<(), SparsityError> {
    if (0.0..1.0).contains(&sparsity) { Ok(()) } else { Err(SparsityError::Sparsity { value: sparsity }) }
}

/// `rows · cols`, or an error naming both.
pub(crate) fn checked_area(what: &'static str, rows: usize, cols: usize) -> Result<usize, SparsityError> {
    rows.checked_mul(cols)
        .ok_or_else(|| SparsityError::TooLarge { what, detail: format!("{rows} x {cols} elements") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparsity_is_a_fraction_below_one() {
        for good in [0.0, -0.0, 0.5, 1.0 - f64::EPSILON] {
            assert!(check_sparsity(good).is_ok(), "{good}");
        }
        for bad in [1.0, 1.5, -1e-9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 50.0] {
            assert!(check_sparsity(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn area_overflow_is_an_error() {
        assert!(checked_area("matrix", usize::MAX, 2).is_err());
        assert_eq!(checked_area("matrix", 3, 4), Ok(12));
    }
}
