//! The one error type of this crate.

/// What can be wrong with a problem or with settings.
///
/// Messages name the argument, what was expected, what was found, and where it helps what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError {
    /// A setting out of its range.
    #[error("setting `{field}` = {value}: allowed is {allowed}")]
    Setting {
        /// Name of the field.
        field: &'static str,
        /// The value given.
        value: String,
        /// The allowed range.
        allowed: &'static str,
    },
    /// A length or shape that does not fit the other arguments.
    #[error("`{argument}`: expected {expected} ({meaning}), found {found}")]
    Dimension {
        /// Which argument.
        argument: &'static str,
        /// The size that fits.
        expected: usize,
        /// Where that size comes from: `"rows of the design"`.
        meaning: &'static str,
        /// The size found.
        found: usize,
    },
    /// NaN or infinity where a number is needed.
    #[error(
        "`{argument}`: {count} values are not finite, the first at index {first}; remove or impute them first"
    )]
    NonFinite {
        /// Which argument.
        argument: &'static str,
        /// How many.
        count: usize,
        /// Index of the first.
        first: usize,
    },
    /// An argument without elements.
    #[error("`{argument}` is empty; at least one {what} is needed")]
    Empty {
        /// Which argument.
        argument: &'static str,
        /// What it should hold.
        what: &'static str,
    },
    /// An argument whose values the problem does not allow.
    #[error("`{argument}`: expected {expected}, found {found}; {remedy}")]
    Invalid {
        /// Which argument.
        argument: &'static str,
        /// What the problem allows.
        expected: &'static str,
        /// What was found.
        found: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The computation itself broke down: overflow, or a factorisation that does not exist.
    #[error("{place}: {reason}; {remedy}")]
    Breakdown {
        /// Where.
        place: &'static str,
        /// What happened.
        reason: String,
        /// What to change.
        remedy: &'static str,
    },
}

impl SolveError {
    /// A setting out of its range.
    pub fn setting(field: &'static str, value: impl ToString, allowed: &'static str) -> Self {
        Self::Setting { field, value: value.to_string(), allowed }
    }

    /// An argument whose values are not allowed.
    pub fn invalid(
        argument: &'static str,
        expected: &'static str,
        found: impl ToString,
        remedy: &'static str,
    ) -> Self {
        Self::Invalid { argument, expected, found: found.to_string(), remedy }
    }

    /// A computation that broke down.
    pub fn breakdown(place: &'static str, reason: impl ToString, remedy: &'static str) -> Self {
        Self::Breakdown { place, reason: reason.to_string(), remedy }
    }
}

/// `Ok` when `found` is the size that fits.
///
/// # Errors
/// [`SolveError::Dimension`].
pub(crate) fn check_dimension(
    argument: &'static str,
    expected: usize,
    meaning: &'static str,
    found: usize,
) -> Result<(), SolveError> {
    if expected == found {
        return Ok(());
    }
    Err(SolveError::Dimension { argument, expected, meaning, found })
}

/// `Ok` when every value is finite.
///
/// # Errors
/// [`SolveError::NonFinite`] with the number and the first position.
pub(crate) fn check_finite<'a>(
    argument: &'static str,
    values: impl IntoIterator<Item = &'a f64>,
) -> Result<(), SolveError> {
    let (mut count, mut first) = (0, 0);
    for (i, v) in values.into_iter().enumerate() {
        if !v.is_finite() {
            if count == 0 {
                first = i;
            }
            count += 1;
        }
    }
    if count == 0 {
        return Ok(());
    }
    Err(SolveError::NonFinite { argument, count, first })
}

/// `Ok` when the slice is not empty.
///
/// # Errors
/// [`SolveError::Empty`].
pub(crate) fn check_not_empty(
    argument: &'static str,
    what: &'static str,
    len: usize,
) -> Result<(), SolveError> {
    if len > 0 {
        return Ok(());
    }
    Err(SolveError::Empty { argument, what })
}

/// `Ok` when `holds`: a setting inside its range. Write the condition so that NaN fails it.
///
/// # Errors
/// [`SolveError::Setting`].
pub(crate) fn check_setting(
    holds: bool,
    field: &'static str,
    value: impl ToString,
    allowed: &'static str,
) -> Result<(), SolveError> {
    if holds {
        return Ok(());
    }
    Err(SolveError::setting(field, value, allowed))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_say_what_was_expected_and_found() {
        let e = check_dimension("y", 3, "rows of the design", 2).unwrap_err().to_string();
        assert_eq!(e, "`y`: expected 3 (rows of the design), found 2");
        let e = check_finite("x", &[1.0, f64::NAN, f64::INFINITY]).unwrap_err();
        assert_eq!(e, SolveError::NonFinite { argument: "x", count: 2, first: 1 });
        assert!(check_finite("x", &[1.0, f64::MAX]).is_ok());
        let e = check_not_empty("y", "value", 0).unwrap_err().to_string();
        assert!(e.contains("`y` is empty"));
        assert!(check_not_empty("y", "value", 1).is_ok());
        let e = check_setting(false, "tol", f64::NAN, "> 0").unwrap_err().to_string();
        assert_eq!(e, "setting `tol` = NaN: allowed is > 0");
    }
}
