//! Element types of safetensors files and their conversion from and to f32.

use half::{bf16, f16};
use std::fmt;
use std::sync::OnceLock;

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    U16,
    U32,
    U64,
    Bool,
    /// Four exponent and three mantissa bits, no infinities ("fn").
    F8E4M3,
    /// Five exponent and two mantissa bits.
    F8E5M2,
}

impl DType {
    /// All codes, for messages.
    pub const ALL_CODES: &str = "F64 F32 F16 BF16 I64 I32 I16 I8 U8 U16 U32 U64 BOOL F8_E4M3 F8_E5M2";
    /// All types, widest first.
    pub const ALL: [Self; 15] = [
        Self::F64,
        Self::I64,
        Self::U64,
        Self::F32,
        Self::I32,
        Self::U32,
        Self::F16,
        Self::BF16,
        Self::I16,
        Self::U16,
        Self::I8,
        Self::U8,
        Self::Bool,
        Self::F8E4M3,
        Self::F8E5M2,
    ];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool | Self::F8E4M3 | Self::F8E5M2 => 1,
        }
    }

    /// The code in a safetensors header.
    pub const fn code(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::U16 => "U16",
            Self::U32 => "U32",
            Self::U64 => "U64",
            Self::Bool => "BOOL",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
        }
    }

    /// The type of a safetensors code, if known.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.code() == code)
    }

    /// Whether values are floating point.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2)
    }

    /// Whether one element, given by its little-endian bytes, differs from zero. −0.0 counts as zero, NaN does not.
    pub(crate) fn is_nonzero(self, element: &[u8]) -> bool {
        let Some((&last, rest)) = element.split_last() else { return false };
        let last = if self.is_float() { last & 0x7f } else { last };
        last != 0 || rest.iter().any(|&b| b != 0)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Value of an E4M3 ("fn") byte: bias 7, 0x7f and 0xff are NaN, no infinities.
fn e4m3(bits: u8) -> f32 {
    let (exp, man) = (i32::from(bits >> 3 & 0xf), f32::from(bits & 7));
    let magnitude = match (exp, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => man / 8.0 * 2f32.powi(-6),
        _ => (1.0 + man / 8.0) * 2f32.powi(exp - 7),
    };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Value of an E5M2 byte: the upper byte of an f16.
fn e5m2(bits: u8) -> f32 {
    f16::from_bits(u16::from(bits) << 8).to_f32()
}

/// Decode tables of the two 8-bit types.
fn f8_table(dtype: DType) -> &'static [f32; 256] {
    static E4M3: OnceLock<[f32; 256]> = OnceLock::new();
    static E5M2: OnceLock<[f32; 256]> = OnceLock::new();
    match dtype {
        DType::F8E4M3 => E4M3.get_or_init(|| std::array::from_fn(|i| e4m3(i as u8))),
        _ => E5M2.get_or_init(|| std::array::from_fn(|i| e5m2(i as u8))),
    }
}

/// Nearest 8-bit float, ties to the even code; values beyond the largest finite one become NaN (E4M3) or infinity (E5M2).
fn f8_from_f32(x: f32, dtype: DType) -> u8 {
    let table = f8_table(dtype);
    let (largest, over): (u8, u8) = if dtype == DType::F8E4M3 { (0x7e, 0x7f) } else { (0x7b, 0x7c) };
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    if x.is_nan() {
        return sign | if dtype == DType::F8E4M3 { 0x7f } else { 0x7e };
    }
    let a = f64::from(x.abs());
    // Positive codes are in ascending order of their value.
    let upper = table[..=usize::from(largest)].partition_point(|&t| f64::from(t) < a);
    let value = |i: usize| f64::from(table[i]);
    let code = if upper > usize::from(largest) {
        // Half a step above the largest value still rounds down (its code is even for E4M3, odd for E5M2).
        let half = (value(usize::from(largest)) - value(usize::from(largest) - 1)) / 2.0;
        let excess = a - value(usize::from(largest));
        if excess < half || (excess <= half && largest % 2 == 0) { largest } else { over }
    } else if upper == 0 {
        0
    } else {
        let (below, above) = (a - value(upper - 1), value(upper) - a);
        let lower_wins = below < above || (below <= above && (upper - 1) % 2 == 0);
        if lower_wins { (upper - 1) as u8 } else { upper as u8 }
    };
    sign | code
}

/// Appends the elements of `bytes` (little endian, whole elements) to `out` as f32. Integers are converted by value.
pub(crate) fn extend_f32(bytes: &[u8], dtype: DType, out: &mut Vec<f32>) {
    macro_rules! each {
        ($t:ty, $n:literal, $f:expr) => {
            out.extend(bytes.as_chunks::<$n>().0.iter().map(|&c| $f(<$t>::from_le_bytes(c))))
        };
    }
    match dtype {
        DType::F64 => each!(f64, 8, |v: f64| v as f32),
        DType::F32 => each!(f32, 4, |v: f32| v),
        DType::F16 => each!(u16, 2, |v: u16| f16::from_bits(v).to_f32()),
        DType::BF16 => each!(u16, 2, |v: u16| bf16::from_bits(v).to_f32()),
        DType::I64 => each!(i64, 8, |v: i64| v as f32),
        DType::I32 => each!(i32, 4, |v: i32| v as f32),
        DType::I16 => each!(i16, 2, f32::from),
        DType::I8 => each!(i8, 1, f32::from),
        DType::U8 => each!(u8, 1, f32::from),
        DType::U16 => each!(u16, 2, f32::from),
        DType::U32 => each!(u32, 4, |v: u32| v as f32),
        DType::U64 => each!(u64, 8, |v: u64| v as f32),
        DType::Bool => each!(u8, 1, |v: u8| if v == 0 { 0.0 } else { 1.0 }),
        DType::F8E4M3 | DType::F8E5M2 => {
            let table = f8_table(dtype);
            out.extend(bytes.iter().map(|&b| table[usize::from(b)]));
        }
    }
}

/// Little-endian bytes of `values` in `dtype`: floats rounded to nearest even, integers rounded to nearest and clamped to
/// their range.
pub fn to_dtype(values: &[f32], dtype: DType) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * dtype.size());
    macro_rules! each {
        ($f:expr) => {
            for &v in values {
                out.extend_from_slice(&$f(v).to_le_bytes());
            }
        };
    }
    match dtype {
        DType::F64 => each!(f64::from),
        DType::F32 => each!(|v: f32| v),
        DType::F16 => each!(|v| f16::from_f32(v).to_bits()),
        DType::BF16 => each!(|v| bf16::from_f32(v).to_bits()),
        DType::I64 => each!(|v: f32| v.round_ties_even() as i64),
        DType::I32 => each!(|v: f32| v.round_ties_even() as i32),
        DType::I16 => each!(|v: f32| v.round_ties_even() as i16),
        DType::I8 => each!(|v: f32| v.round_ties_even() as i8),
        DType::U8 => each!(|v: f32| v.round_ties_even() as u8),
        DType::U16 => each!(|v: f32| v.round_ties_even() as u16),
        DType::U32 => each!(|v: f32| v.round_ties_even() as u32),
        DType::U64 => each!(|v: f32| v.round_ties_even() as u64),
        DType::Bool => each!(|v: f32| u8::from(v != 0.0)),
        DType::F8E4M3 | DType::F8E5M2 => out.extend(values.iter().map(|&v| f8_from_f32(v, dtype))),
    }
    out
}

/// Replaces each value by what remains of it after storing in `dtype` and reading back.
pub fn round_trip(values: &mut [f32], dtype: DType) {
    match dtype {
        DType::F32 | DType::F64 => {}
        DType::BF16 => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        DType::F16 => values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        _ => {
            let mut back = Vec::with_capacity(values.len());
            extend_f32(&to_dtype(values, dtype), dtype, &mut back);
            values.copy_from_slice(&back);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;

    #[test]
    fn codes_and_sizes_agree() {
        for d in DType::ALL {
            assert_eq!(DType::from_code(d.code()), Some(d));
            assert!(DType::ALL_CODES.split(' ').any(|c| c == d.code()));
            assert_eq!(to_dtype(&[1.0, 0.0], d).len(), 2 * d.size());
        }
        assert_eq!(DType::from_code("F4"), None);
    }

    #[test]
    fn f8_by_hand() {
        // E4M3: 0x38 = 1.0, 0x7e = 448 (largest), 0x01 = 2^-9. E5M2: 0x3c = 1.0, 0x7b = 57344.
        assert_eq!(e4m3(0x38), 1.0);
        assert_eq!(e4m3(0x7e), 448.0);
        assert_eq!(e4m3(0x81), -(2f32.powi(-9)));
        assert!(e4m3(0x7f).is_nan());
        assert_eq!(e5m2(0x3c), 1.0);
        assert_eq!(e5m2(0x7b), 57344.0);
        // 17 lies between 16 (0x58) and 18 (0x59): the tie goes to the even code.
        assert_eq!(to_dtype(&[17.0, 19.0, 1e9], DType::F8E4M3), vec![0x58, 0x5a, 0x7f]);
        assert_eq!(to_dtype(&[1e9, -1e9], DType::F8E5M2), vec![0x7c, 0xfc]);
    }

    #[test]
    fn every_f8_value_survives() {
        for d in [DType::F8E4M3, DType::F8E5M2] {
            for code in 0..=255u8 {
                let mut v = Vec::new();
                extend_f32(&[code], d, &mut v);
                if !v[0].is_nan() {
                    assert_eq!(to_dtype(&v, d), vec![code], "{d} {code:#x}");
                }
            }
        }
    }

    #[test]
    fn nonzero_follows_value_not_bits() {
        assert!(!DType::F32.is_nonzero(&(-0.0f32).to_le_bytes()));
        assert!(DType::F32.is_nonzero(&f32::NAN.to_le_bytes()));
        assert!(!DType::F8E4M3.is_nonzero(&[0x80]));
        assert!(DType::I8.is_nonzero(&[0x80]));
    }

    #[test]
    fn rounding_is_idempotent() {
        for d in [DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::F32] {
            let mut a: Vec<f32> = (0..200).map(|i| (i as f32 - 100.0) * 0.037).collect();
            round_trip(&mut a, d);
            let once = a.clone();
            round_trip(&mut a, d);
            assert_eq!(a, once, "{d}");
        }
    }
}
