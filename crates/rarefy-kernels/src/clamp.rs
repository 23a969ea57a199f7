//! The activation that kernels fuse: a clamp of the finished sum.

/// Bounds applied to every output, `low <= y <= high`.
///
/// NaN stays NaN, as with [`f32::clamp`]: a fused ReLU must not turn a broken network into a plausible one. `-0.0` passes ReLU unchanged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamp {
    low: f32,
    high: f32,
}

impl Clamp {
    /// Changes nothing, infinities included.
    pub const NONE: Clamp = Clamp { low: f32::NEG_INFINITY, high: f32::INFINITY };
    /// `max(y, 0)`.
    pub const RELU: Clamp = Clamp { low: 0.0, high: f32::INFINITY };
    /// `min(max(y, 0), 6)`.
    pub const RELU6: Clamp = Clamp { low: 0.0, high: 6.0 };

    /// Bounds of one's own; `None` when they are NaN or the wrong way round.
    pub fn new(low: f32, high: f32) -> Option<Self> {
        (low <= high).then_some(Self { low, high })
    }

    /// The lower bound.
    pub fn low(self) -> f32 {
        self.low
    }

    /// The upper bound.
    pub fn high(self) -> f32 {
        self.high
    }

    /// `y` within the bounds.
    #[inline]
    pub fn apply(self, y: f32) -> f32 {
        // Comparisons with NaN are false, so it falls through both.
        let y = if y < self.low { self.low } else { y };
        if y > self.high { self.high } else { y }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn by_hand() {
        let six: Vec<f32> = [-1.0, 0.0, 5.5, 7.0].map(|v| Clamp::RELU6.apply(v)).to_vec();
        assert_eq!(six, [0.0, 0.0, 5.5, 6.0]);
        assert_eq!(Clamp::RELU.apply(f32::INFINITY), f32::INFINITY);
        assert_eq!(Clamp::NONE.apply(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(Clamp::RELU6.apply(f32::NAN).is_nan());
        assert_eq!(Clamp::RELU.apply(-0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(Clamp::new(-1.0, 1.0).unwrap().apply(-3.0), -1.0);
        assert!(Clamp::new(1.0, -1.0).is_none() && Clamp::new(f32::NAN, 1.0).is_none());
    }
}
