//! Which neurons count as idle.

/// The function behind the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `z / (1 + e^-z)`.
    Silu,
    /// `max(z, 0)`.
    Relu,
}

impl Activation {
    /// The activation of one pre-activation; NaN stays NaN.
    #[inline]
    pub fn apply(self, z: f32) -> f32 {
        match self {
            Activation::Silu => silu(z),
            // Not `max`, which would turn NaN into zero.
            Activation::Relu => {
                if z <= 0.0 {
                    0.0
                } else {
                    z
                }
            }
        }
    }
}

/// `z / (1 + e^-z)`: calibration and kernels share this one, so that a threshold means the same in both.
#[inline]
pub fn silu(z: f32) -> f32 {
    z / (1.0 + (-z).exp())
}

/// The rule by which a neuron is skipped for a token. A NaN is never skipped: it must not vanish silently.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activity<'a> {
    /// Nothing is skipped: the dense MLP.
    All,
    /// Idle when `|act(gate)| <= t`. CATS with SiLU; the exact zeros of ReLU with `t = 0`.
    GateAbove(f32),
    /// Idle when `|act(gate)| < eps` or zero: the FAT-eps baseline of the sparsing law.
    GateAtLeast(f32),
    /// Idle when `|act(gate) · up| < theta[i]`, one threshold per neuron: the tail truncation of the sparsing law. The up
    /// projection is needed to know, so only the down projection is skipped, except where the gate is exactly zero.
    NeuronAtLeast(&'a [f32]),
}

impl Activity<'_> {
    /// The activation with idle ones set to zero; the part of the rule that the gate decides.
    #[inline]
    pub fn gate(self, v: f32) -> f32 {
        let idle = match self {
            Activity::All | Activity::NeuronAtLeast(_) => false,
            Activity::GateAbove(t) => v.abs() <= t,
            Activity::GateAtLeast(eps) => v.abs() < eps,
        };
        if idle { 0.0 } else { v }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_by_hand_and_its_minimum() {
        assert_eq!(silu(0.0), 0.0);
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-6 && (silu(-1.278_464_5) + 0.278_464_54).abs() < 1e-6);
        assert!(silu(f32::NAN).is_nan() && silu(100.0) == 100.0 && silu(-200.0) == 0.0);
    }

    #[test]
    fn the_cats_rule_has_both_branches() {
        // SiLU >= -0.27847, so from that threshold on no negative entry survives.
        let zs: Vec<f32> = (-8000..8000).map(|i| i as f32 / 1000.0).collect();
        let survivors = |t: f32| -> Vec<f32> {
            zs.iter().copied().filter(|z| Activity::GateAbove(t).gate(silu(*z)) != 0.0).collect()
        };
        assert!(survivors(0.2785).iter().all(|z| *z > 0.0));
        // Below it, the survivors are a right half-line and an interval around the minimum at -1.27846.
        let negative: Vec<f32> = survivors(0.25).into_iter().filter(|z| *z < 0.0).collect();
        assert!(negative.first().is_some_and(|z| *z < -1.28) && negative.last().is_some_and(|z| *z > -1.277));
        assert!(negative.windows(2).all(|w| w[1] - w[0] < 0.0011), "one interval");
        assert!(silu(negative[0] - 0.001).abs() <= 0.25);
    }

    #[test]
    fn relu_keeps_nan_and_rules_never_skip_it() {
        assert!(Activation::Relu.apply(f32::NAN).is_nan());
        assert_eq!((Activation::Relu.apply(-1.0), Activation::Relu.apply(2.0)), (0.0, 2.0));
        for rule in [Activity::All, Activity::GateAbove(1.0), Activity::GateAtLeast(1.0)] {
            assert!(rule.gate(f32::NAN).is_nan());
        }
        // At the threshold: "above" is idle, "at least" is active.
        assert_eq!((Activity::GateAbove(0.5).gate(-0.5), Activity::GateAtLeast(0.5).gate(-0.5)), (0.0, -0.5));
    }
}
