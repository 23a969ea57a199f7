//! Quantised storage: the group quantiser, a dense and a bitmask matrix of codes, and the group-sparse one of GQSA.

pub mod bitmask;
pub mod dense;
pub mod group_sparse;
pub mod quantiser;

pub use bitmask::{BitmaskInt8, BitmaskInt8Parts, BitmaskSettings, ScaleSpan};
pub use dense::{GroupQuantised, GroupQuantisedParts};
pub use group_sparse::{Columns, GroupSparse, GroupSparseParts};
pub use quantiser::{QuantSettings, ScaleType, Scales, Scheme};

use super::checksum::Checksum;
use super::{check_len, malformed};
use crate::SparsityError;

fn sum_scales(sum: Checksum, scales: &Scales) -> Checksum {
    match scales {
        Scales::F16(v) => sum.array(v),
        Scales::F32(v) => sum.array(v),
    }
}

/// `n` scales of the stated type, all positive, normal and finite.
fn check_scales(
    format: &'static str,
    q: QuantSettings,
    n: usize,
    scales: &Scales,
) -> Result<(), SparsityError> {
    if scales.kind() != q.scales {
        return Err(malformed(
            format,
            "scales",
            format_args!("{:?}", q.scales),
            format_args!("{:?}", scales.kind()),
        ));
    }
    check_len(format, "scales", n, scales.len())?;
    let bad = |s: f32| !(s.is_finite() && s >= f32::MIN_POSITIVE);
    match (0..n).find(|i| bad(scales.get(*i))) {
        None => Ok(()),
        Some(i) => Err(malformed(
            format,
            "scales",
            "positive finite numbers",
            format_args!("{} at {i}", scales.get(i)),
        )),
    }
}

/// `n` zero points, or none for the symmetric scheme.
fn check_zeros(format: &'static str, q: QuantSettings, n: usize, zeros: &[u8]) -> Result<(), SparsityError> {
    let n = if q.fixed_zero().is_some() { 0 } else { n };
    check_len(format, "zeros", q.code_bytes(n), zeros.len())?;
    if q.bits == 4 && n % 2 == 1 && zeros[n / 2] > 0xf {
        return Err(malformed(format, "zeros", "0 in the unused nibble", zeros[n / 2] >> 4));
    }
    Ok(())
}

fn check_sum(format: &'static str, expected: u64, found: u64) -> Result<(), SparsityError> {
    if expected == found {
        return Ok(());
    }
    Err(malformed(format, "checksum", format_args!("{expected:016x}"), format_args!("{found:016x}")))
}
