//! The group quantiser: a run of weights to codes of 4 or 8 bits, one scale and one zero point.
//!
//! # Definition
//! With `L = 2^b − 1` and `round` = to nearest, halves to even:
//! - **asymmetric**: `lo = min(0, min w)`, `hi = max(0, max w)`, `s = (hi − lo) / L`, `z = clip(round(−lo / s), 0, L)`,
//!   `q = clip(round(w / s) + z, 0, L)`;
//! - **symmetric**: `s = max |w| / (2^(b−1) − 1)`, `z = 2^(b−1)`, `q = clip(round(w / s), −(2^(b−1) − 1), 2^(b−1) − 1) + z`;
//! - decoded: `ŵ = (q − z) · s`, one product in f32, so a weight of zero decodes as exactly `+0.0`.
//!
//! `s` is rounded to its stored type *before* the codes are chosen, and is at least the smallest normal number of that type: the
//! f16 scale of a group of tiny weights would otherwise lose its precision or vanish.
//!
//! # Error
//! `|w − ŵ| ≤ s (1/2 + L ε)`, with `ε = 2^-11` for f16 scales and `2^-23` for f32: half a step by rounding, and what the rounded
//! scale and the division leave over. Clipping adds nothing: it only undoes a rounding of `w/s` and `z` in the same direction,
//! which leaves at most half a step again.

use half::f16;

use crate::SparsityError;

/// Where the codes of a group lie relative to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// The middle code stands for zero; nothing but the scale is stored.
    Symmetric,
    /// A zero point per group: better for groups whose weights have one sign.
    Asymmetric,
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// Two bytes; steps from 2^-14 to 65504.
    F16,
    /// Four bytes; any step.
    F32,
}

/// What a quantised matrix is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantSettings {
    /// Bits of a code, 4 or 8.
    pub bits: u32,
    /// Weights of a row that share a scale, a multiple of 8 from 8 to 256.
    pub group: usize,
    /// Symmetric or with zero points.
    pub scheme: Scheme,
    /// Type of the stored scales.
    pub scales: ScaleType,
}

impl QuantSettings {
    /// Four bits, asymmetric, f16 scales.
    pub fn int4(group: usize) -> Self {
        Self { bits: 4, group, scheme: Scheme::Asymmetric, scales: ScaleType::F16 }
    }

    /// Eight bits, symmetric, f16 scales.
    pub fn int8(group: usize) -> Self {
        Self { bits: 8, group, scheme: Scheme::Symmetric, scales: ScaleType::F16 }
    }

    /// Largest code, `2^bits − 1`.
    pub fn top(&self) -> u8 {
        ((1u32 << self.bits) - 1) as u8
    }

    /// The zero point of every group, when it is not stored.
    pub fn fixed_zero(&self) -> Option<u8> {
        (self.scheme == Scheme::Symmetric).then(|| 1 << (self.bits - 1))
    }

    /// Bytes of `n` codes.
    pub fn code_bytes(&self, n: usize) -> usize {
        if self.bits == 4 { n.div_ceil(2) } else { n }
    }

    /// Bound of `|w − ŵ|` for a finite weight of a group with stored scale `s`.
    pub fn error_bound(&self, s: f32) -> f32 {
        let epsilon = if self.scales == ScaleType::F16 { 1.0 / 2048.0 } else { f32::EPSILON };
        s * (0.5 + f32::from(self.top()) * epsilon)
    }

    /// # Errors
    /// [`SparsityError::Setting`] naming the field outside its range.
    pub fn validate(&self) -> Result<(), SparsityError> {
        let bad = |field, value: String, allowed| Err(SparsityError::Setting { field, value, allowed });
        if self.bits != 4 && self.bits != 8 {
            return bad("bits", self.bits.to_string(), "4 or 8");
        }
        if !self.group.is_multiple_of(8) || !(8..=256).contains(&self.group) {
            return bad("group", self.group.to_string(), "a multiple of 8 from 8 to 256");
        }
        Ok(())
    }

    /// Scale and zero point of the weights of one group. They must be finite (see [`check_finite`]).
    ///
    /// # Errors
    /// [`SparsityError::Setting`] when the step exceeds what an f16 scale can hold.
    pub fn fit(&self, w: &[f32]) -> Result<(f32, u8), SparsityError> {
        let lo = w.iter().fold(0.0f32, |m, v| m.min(*v));
        let hi = w.iter().fold(0.0f32, |m, v| m.max(*v));
        let step = match self.scheme {
            Scheme::Symmetric => hi.max(-lo) / ((1u32 << (self.bits - 1)) - 1) as f32,
            // Halved first, so that the largest finite range does not overflow.
            Scheme::Asymmetric => (hi / 2.0 - lo / 2.0) / f32::from(self.top()) * 2.0,
        };
        let scale = match self.scales {
            ScaleType::F16 => f16::from_f32(step).max(f16::MIN_POSITIVE).to_f32(),
            ScaleType::F32 => step.max(f32::MIN_POSITIVE),
        };
        if !scale.is_finite() {
            return Err(SparsityError::Setting {
                field: "scales",
                value: format!("F16 for a step of {step}"),
                allowed: "F32 for steps above 65504",
            });
        }
        let zero = self
            .fixed_zero()
            .unwrap_or_else(|| (-lo / scale).round_ties_even().clamp(0.0, f32::from(self.top())) as u8);
        Ok((scale, zero))
    }

    /// The code of one weight.
    pub fn code(&self, w: f32, scale: f32, zero: u8) -> u8 {
        let least = if self.scheme == Scheme::Symmetric { 1.0 } else { 0.0 };
        ((w / scale).round_ties_even() + f32::from(zero)).clamp(least, f32::from(self.top())) as u8
    }
}

/// The weight of a code: `(q − z) · s`.
pub fn decode_code(code: u8, zero: u8, scale: f32) -> f32 {
    (f32::from(code) - f32::from(zero)) * scale
}

/// # Errors
/// [`SparsityError::NonFinite`] when a weight is NaN or infinite: no scale could hold it.
pub fn check_finite(what: &'static str, w: &[f32]) -> Result<(), SparsityError> {
    match w.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(first) => {
            let count = w.iter().filter(|v| !v.is_finite()).count();
            Err(SparsityError::NonFinite { what, count, first })
        }
    }
}

/// Stored scales.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Scales {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Scales {
    pub(crate) fn with_capacity(kind: ScaleType, n: usize) -> Self {
        match kind {
            ScaleType::F16 => Scales::F16(Vec::with_capacity(n)),
            ScaleType::F32 => Scales::F32(Vec::with_capacity(n)),
        }
    }

    /// `s` must be exactly representable, as [`QuantSettings::fit`] makes it.
    pub(crate) fn push(&mut self, s: f32) {
        match self {
            Scales::F16(v) => v.push(f16::from_f32(s)),
            Scales::F32(v) => v.push(s),
        }
    }

    /// Scale `i`. Panics when there is none.
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Scales::F16(v) => v[i].to_f32(),
            Scales::F32(v) => v[i],
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Scales::F16(v) => v.len(),
            Scales::F32(v) => v.len(),
        }
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their type.
    pub fn kind(&self) -> ScaleType {
        match self {
            Scales::F16(_) => ScaleType::F16,
            Scales::F32(_) => ScaleType::F32,
        }
    }

    /// Bytes in memory and in a file.
    pub fn bytes(&self) -> usize {
        self.len() * if self.kind() == ScaleType::F16 { 2 } else { 4 }
    }
}

/// Appends `code` number `i` to a stream of nibbles (low first) or bytes.
pub(crate) fn push_code(out: &mut Vec<u8>, bits: u32, i: usize, code: u8) {
    if bits == 8 {
        out.push(code);
    } else if i.is_multiple_of(2) {
        out.push(code & 0xf);
    } else if let Some(last) = out.last_mut() {
        *last |= code << 4;
    }
}

/// Code `i` of a stream.
pub(crate) fn get_code(stream: &[u8], bits: u32, i: usize) -> u8 {
    if bits == 8 { stream[i] } else { stream[i / 2] >> (i % 2 * 4) & 0xf }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn by_hand() {
        // lo = -1, hi = 2: s = 3/15 = 0.2, z = 5; codes of -1, 0, 0.5 (2.5 rounds to 2) and 2 are 0, 5, 7 and 15.
        let q = QuantSettings { scales: ScaleType::F32, ..QuantSettings::int4(32) };
        let w = [-1.0, 0.0, 0.5, 2.0];
        let (s, z) = q.fit(&w).unwrap();
        assert_eq!((s, z), (0.2, 5));
        assert_eq!(w.map(|w| q.code(w, s, z)), [0, 5, 7, 15]);
        // Symmetric: s = 2/127; -2 is code 1, 0 is 128, 2 is 255; code 0 is never used.
        let q = QuantSettings { scales: ScaleType::F32, ..QuantSettings::int8(32) };
        let (s, z) = q.fit(&[1.0, -2.0]).unwrap();
        assert_eq!((s, z), (2.0 / 127.0, 128));
        assert_eq!([-2.0, -3.0, 0.0, 2.0].map(|w| q.code(w, s, z)), [1, 1, 128, 255]);
    }

    #[test]
    fn one_sign_all_zero_and_extreme_groups() {
        for scales in [ScaleType::F16, ScaleType::F32] {
            for scheme in [Scheme::Symmetric, Scheme::Asymmetric] {
                let q = QuantSettings { bits: 4, group: 8, scheme, scales };
                let (s, z) = q.fit(&[0.0, -0.0]).unwrap();
                assert!(s > 0.0 && decode_code(q.code(0.0, s, z), z, s).to_bits() == 0);
                let (s, z) = q.fit(&[3.0, 4.0]).unwrap();
                assert!((decode_code(q.code(4.0, s, z), z, s) - 4.0).abs() <= q.error_bound(s));
            }
        }
        let tiny = [1e-30, -3e-39];
        let q = QuantSettings { scales: ScaleType::F32, ..QuantSettings::int4(8) };
        let (s, z) = q.fit(&tiny).unwrap();
        assert!((decode_code(q.code(tiny[0], s, z), z, s) - 1e-30).abs() <= q.error_bound(s));
        let (s, z) = QuantSettings::int4(8).fit(&tiny).unwrap();
        assert_eq!((s, z), (2.0f32.powi(-14), 0), "the floor of f16 scales");
        let (s, _) = q.fit(&[f32::MAX, f32::MIN]).unwrap();
        assert!(s.is_finite());
        assert!(QuantSettings::int4(8).fit(&[1e6]).is_err());
    }

    #[test]
    fn settings_are_checked() {
        assert!(QuantSettings { bits: 3, ..QuantSettings::int4(32) }.validate().is_err());
        for group in [0, 4, 12, 264, usize::MAX] {
            assert!(QuantSettings::int4(group).validate().is_err(), "{group}");
        }
        assert!(QuantSettings::int4(8).validate().is_ok() && QuantSettings::int8(256).validate().is_ok());
    }

    proptest! {
        #[test]
        fn error_is_bounded_and_zero_is_exact(w in proptest::collection::vec(-3.0f32..3.0, 1..40), shift in -3.0f32..3.0,
            eight: bool, symmetric: bool, wide: bool) {
            let w: Vec<f32> = w.iter().map(|v| v + shift).collect();
            let q = QuantSettings { bits: if eight { 8 } else { 4 }, group: 32,
                scheme: if symmetric { Scheme::Symmetric } else { Scheme::Asymmetric },
                scales: if wide { ScaleType::F32 } else { ScaleType::F16 } };
            let (s, z) = q.fit(&w).unwrap();
            for v in &w {
                let found = decode_code(q.code(*v, s, z), z, s);
                prop_assert!((found - v).abs() <= q.error_bound(s) * 1.00001, "{v} became {found}, scale {s}");
            }
            prop_assert_eq!(decode_code(q.code(0.0, s, z), z, s).to_bits(), 0);
        }
    }
}
