//! How sparse to be at which training step.
//!
//! A schedule is asked two things: [`Schedule::updates_at`], whether the mask is made anew after
//! this step, and [`Schedule::sparsity_at`], the sparsity in force at this step. Between updates the
//! sparsity is that of the last update.

use serde::{Deserialize, Serialize};

use crate::error::{SparsityError, check_sparsity};

/// The window and end points of a rising schedule.
///
/// Updates happen at `begin`, `begin + every`, … and always at `end`, so that the target is
/// reached also when `every` does not divide the window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// Sparsity at `begin`, in `[0, target]`.
    #[serde(default)]
    pub initial: f64,
    /// Sparsity from `end` on, in `[0, 1)`.
    pub target: f64,
    /// Step of the first update; before it nothing is masked.
    pub begin: u64,
    /// Step of the last update, at least `begin`.
    pub end: u64,
    /// Steps between updates, at least 1.
    pub every: u64,
}

/// Sparsity as a function of the training step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// One mask at step 0, never changed.
    Constant {
        /// In `[0, 1)`.
        sparsity: f64,
    },
    /// Nothing before `at`, then one mask.
    OneShot {
        /// In `[0, 1)`.
        target: f64,
        /// Step of the mask.
        at: u64,
    },
    /// Constant sparsity whose mask is chosen anew periodically, as dynamic sparse training does:
    /// a first mask at step 0, then updates at `begin`, `begin + every`, … up to `end`.
    Periodic {
        /// In `[0, 1)`.
        sparsity: f64,
        /// Step of the first change.
        begin: u64,
        /// No change after this step.
        end: u64,
        /// Steps between changes, at least 1.
        every: u64,
    },
    /// Equal steps of sparsity.
    Linear(Ramp),
    /// `s(t) = target + (initial − target) · (1 − (t − begin) / (end − begin))³`
    /// (Zhu & Gupta 2017, arXiv 1710.01878, eq. 1).
    Cubic(Ramp),
    /// Each update removes the same fraction of the surviving weights: density falls by a constant
    /// factor from `1 − initial` to `1 − target`.
    Geometric(Ramp),
}

impl Schedule {
    /// Iterative pruning in rounds: round `i = 1..=rounds` leaves `(1 − rate)^i` of the weights; the
    /// first at step `begin`, then every `every` steps.
    ///
    /// # Errors
    ///
    /// [`SparsityError::Setting`] for a rate outside `(0, 1)` or no rounds or a window that
    /// overflows, [`SparsityError::Sparsity`] when so many rounds leave nothing.
    pub fn geometric_rounds(
        rate: f64,
        rounds: u32,
        begin: u64,
        every: u64,
    ) -> Result<Schedule, SparsityError> {
        if !(rate > 0.0 && rate < 1.0) {
            return Err(setting("rate", rate, "above 0 and below 1"));
        }
        let Some(last) = rounds.checked_sub(1) else {
            return Err(setting("rounds", rounds, "at least 1"));
        };
        let end = every
            .checked_mul(u64::from(last))
            .and_then(|window| begin.checked_add(window))
            .ok_or_else(|| setting("every", every, "a window within 64-bit steps"))?;
        let schedule = Schedule::Geometric(Ramp {
            initial: rate,
            target: 1.0 - (1.0 - rate).powf(f64::from(rounds)),
            begin,
            end,
            every,
        });
        schedule.validate()?;
        Ok(schedule)
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    ///
    /// [`SparsityError::Sparsity`] or [`SparsityError::Setting`] naming the field.
    pub fn validate(&self) -> Result<(), SparsityError> {
        let window = |begin: u64, end: u64, every: u64| {
            if end < begin {
                return Err(setting("end", end, "at least `begin`"));
            }
            if every == 0 {
                return Err(setting("every", every, "at least 1"));
            }
            Ok(())
        };
        match *self {
            Schedule::Constant { sparsity } => check_sparsity(sparsity),
            Schedule::OneShot { target, .. } => check_sparsity(target),
            Schedule::Periodic { sparsity, begin, end, every } => {
                check_sparsity(sparsity).and_then(|()| window(begin, end, every))
            }
            Schedule::Linear(ramp) | Schedule::Cubic(ramp) | Schedule::Geometric(ramp) => {
                check_sparsity(ramp.target)?;
                if !(0.0..=ramp.target).contains(&ramp.initial) {
                    return Err(setting("initial", ramp.initial, "[0, target]"));
                }
                window(ramp.begin, ramp.end, ramp.every)
            }
        }
    }

    /// The sparsity in force after the update (if any) of step `step`; 0 before the first update.
    #[must_use]
    pub fn sparsity_at(&self, step: u64) -> f64 {
        match *self {
            Schedule::Constant { sparsity } | Schedule::Periodic { sparsity, .. } => sparsity,
            Schedule::OneShot { target, at } => {
                if step < at {
                    0.0
                } else {
                    target
                }
            }
            Schedule::Linear(ramp) => ramp.at(step, |left| ramp.target + (ramp.initial - ramp.target) * left),
            Schedule::Cubic(ramp) => {
                ramp.at(step, |left| ramp.target + (ramp.initial - ramp.target) * left * left * left)
            }
            Schedule::Geometric(ramp) => ramp.at(step, |left| {
                let (first, last) = (1.0 - ramp.initial, 1.0 - ramp.target);
                1.0 - first * (last / first).powf(1.0 - left)
            }),
        }
    }

    /// Whether the mask is made anew at step `step`.
    #[must_use]
    pub fn updates_at(&self, step: u64) -> bool {
        match *self {
            Schedule::Constant { .. } => step == 0,
            Schedule::OneShot { at, .. } => step == at,
            Schedule::Periodic { begin, end, every, .. } => {
                step == 0 || (begin..=end).contains(&step) && (step - begin).is_multiple_of(every.max(1))
            }
            Schedule::Linear(ramp) | Schedule::Cubic(ramp) | Schedule::Geometric(ramp) => {
                ramp.updates_at(step)
            }
        }
    }

    /// The sparsity at the end.
    #[must_use]
    pub fn target(&self) -> f64 {
        match *self {
            Schedule::Constant { sparsity } | Schedule::Periodic { sparsity, .. } => sparsity,
            Schedule::OneShot { target, .. } => target,
            Schedule::Linear(ramp) | Schedule::Cubic(ramp) | Schedule::Geometric(ramp) => ramp.target,
        }
    }

    /// The step of the last update.
    #[must_use]
    pub fn last_update(&self) -> u64 {
        match *self {
            Schedule::Constant { .. } => 0,
            Schedule::OneShot { at, .. } => at,
            Schedule::Periodic { begin, end, every, .. } => match end.checked_sub(begin) {
                Some(window) => end - window % every.max(1),
                None => 0,
            },
            Schedule::Linear(ramp) | Schedule::Cubic(ramp) | Schedule::Geometric(ramp) => ramp.end,
        }
    }

    /// The same schedule for a layer with a target of its own; a higher initial value is lowered to
    /// that target.
    #[must_use]
    pub fn with_target(mut self, value: f64) -> Schedule {
        match &mut self {
            Schedule::Constant { sparsity } | Schedule::Periodic { sparsity, .. } => {
                *sparsity = value;
            }
            Schedule::OneShot { target, .. } => *target = value,
            Schedule::Linear(ramp) | Schedule::Cubic(ramp) | Schedule::Geometric(ramp) => {
                ramp.target = value;
                ramp.initial = ramp.initial.min(value);
            }
        }
        self
    }

    /// Cuts the window of a rising schedule into `parts` consecutive windows, one per layer, so that
    /// only one layer at a time goes through its ramp. Schedules without a window are repeated.
    #[must_use]
    pub fn split(&self, parts: u32) -> Vec<Schedule> {
        let cut = |ramp: Ramp, i: u32| {
            let window = u128::from(ramp.end.saturating_sub(ramp.begin));
            let edge = |i: u32| ramp.begin + (window * u128::from(i) / u128::from(parts)) as u64;
            Ramp { begin: edge(i), end: edge(i + 1), ..ramp }
        };
        (0..parts)
            .map(|i| match *self {
                Schedule::Linear(ramp) => Schedule::Linear(cut(ramp, i)),
                Schedule::Cubic(ramp) => Schedule::Cubic(cut(ramp, i)),
                Schedule::Geometric(ramp) => Schedule::Geometric(cut(ramp, i)),
                other => other,
            })
            .collect()
    }
}

impl Ramp {
    fn updates_at(&self, step: u64) -> bool {
        (self.begin..=self.end).contains(&step)
            && (step == self.end || (step - self.begin).is_multiple_of(self.every.max(1)))
    }

    /// Evaluates `curve` at the last update at or before `step`; its argument is the fraction of the
    /// window still ahead. The end points are exact, and rounding never leaves `[initial, target]`.
    fn at(&self, step: u64, curve: impl Fn(f64) -> f64) -> f64 {
        if step < self.begin {
            return 0.0;
        }
        if step >= self.end {
            return self.target;
        }
        let passed = step - self.begin;
        let passed = passed - passed % self.every.max(1);
        if passed == 0 {
            return self.initial;
        }
        let value = curve(1.0 - passed as f64 / (self.end - self.begin) as f64);
        value.max(self.initial).min(self.target)
    }
}

fn setting(field: &'static str, value: impl ToString, allowed: &'static str) -> SparsityError {
    SparsityError::Setting { field, value: value.to_string(), allowed }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Ramp = Ramp { initial: 0.0, target: 0.5, begin: 0, end: 20, every: 5 };

    #[test]
    fn cubic_by_hand() {
        let cubic = Schedule::Cubic(WINDOW);
        // Half-way: 0.875 of the target. jaxpruner's PolynomialSchedule(update_freq 5, 0, 20), target
        // 0.5, counts one step ahead: its step 9 is our step 10.
        assert_eq!(cubic.sparsity_at(10), 0.4375);
        assert_eq!(cubic.sparsity_at(9), cubic.sparsity_at(5));
        assert_eq!(cubic.sparsity_at(5), 0.5 - 0.5 * 0.75f64.powi(3));
        assert_eq!(cubic.sparsity_at(0), 0.0);
        assert_eq!((cubic.sparsity_at(19), cubic.sparsity_at(20)), (0.5 - 0.5 * 0.25f64.powi(3), 0.5));
        let updates: Vec<u64> = (0..100).filter(|&t| cubic.updates_at(t)).collect();
        assert_eq!(updates, [0, 5, 10, 15, 20]);
        let linear = Schedule::Linear(WINDOW);
        assert_eq!((linear.sparsity_at(5), linear.sparsity_at(10)), (0.125, 0.25));
    }

    #[test]
    fn the_last_update_happens_when_the_interval_does_not_divide() {
        let ramp = Ramp { end: 12, ..WINDOW };
        let updates: Vec<u64> = (0..30).filter(|&t| Schedule::Cubic(ramp).updates_at(t)).collect();
        assert_eq!(updates, [0, 5, 10, 12]);
        assert_eq!(Schedule::Cubic(ramp).sparsity_at(12), 0.5);
    }

    #[test]
    fn empty_window_is_one_shot() {
        for make in [Schedule::Linear, Schedule::Cubic, Schedule::Geometric] {
            let schedule = make(Ramp { begin: 7, end: 7, ..WINDOW });
            assert!(schedule.validate().is_ok());
            let one_shot = Schedule::OneShot { target: 0.5, at: 7 };
            for step in 0..20 {
                assert_eq!(schedule.sparsity_at(step), one_shot.sparsity_at(step));
                assert_eq!(schedule.updates_at(step), one_shot.updates_at(step));
            }
        }
    }

    #[test]
    fn geometric_rounds_remove_a_fraction_each() {
        let schedule = Schedule::geometric_rounds(0.2, 4, 10, 100).unwrap();
        for round in 0..4u64 {
            let step = 10 + 100 * round;
            assert!(schedule.updates_at(step));
            let expected = 1.0 - 0.8f64.powi(round as i32 + 1);
            assert!((schedule.sparsity_at(step) - expected).abs() < 1e-12);
        }
        assert_eq!(schedule.last_update(), 310);
        assert_eq!(Schedule::geometric_rounds(0.5, 1, 3, 0).map(|s| s.target()).ok(), None);
        assert_eq!(Schedule::geometric_rounds(0.5, 1, 3, 1).unwrap().sparsity_at(3), 0.5);
        for (rate, rounds, every) in
            [(0.0, 3, 1), (1.0, 3, 1), (f64::NAN, 3, 1), (0.5, 0, 1), (0.5, 3, u64::MAX), (0.5, 5000, 1)]
        {
            assert!(Schedule::geometric_rounds(rate, rounds, 5, every).is_err());
        }
    }

    #[test]
    fn periodic_and_constant() {
        let periodic = Schedule::Periodic { sparsity: 0.9, begin: 10, end: 35, every: 10 };
        let updates: Vec<u64> = (0..100).filter(|&t| periodic.updates_at(t)).collect();
        assert_eq!(updates, [0, 10, 20, 30]);
        assert_eq!((periodic.sparsity_at(0), periodic.sparsity_at(99)), (0.9, 0.9));
        assert_eq!(periodic.last_update(), 30);
        let constant = Schedule::Constant { sparsity: 0.3 };
        assert_eq!((0..10).filter(|&t| constant.updates_at(t)).count(), 1);
    }

    #[test]
    fn split_gives_each_layer_its_own_window() {
        let parts = Schedule::Cubic(Ramp { begin: 10, end: 20, ..WINDOW }).split(3);
        let windows: Vec<(u64, u64)> = parts
            .iter()
            .map(|s| match s {
                Schedule::Cubic(r) => (r.begin, r.end),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(windows, [(10, 13), (13, 16), (16, 20)]);
        assert_eq!(Schedule::OneShot { target: 0.5, at: 3 }.split(2).len(), 2);
        assert!(Schedule::Cubic(WINDOW).split(0).is_empty());
    }

    #[test]
    fn recipes_refuse_unknown_and_missing_fields() {
        let text = r#"{"kind":"cubic","target":0.9,"begin":100,"end":750,"every":10}"#;
        let schedule: Schedule = serde_json::from_str(text).unwrap();
        assert_eq!(
            schedule,
            Schedule::Cubic(Ramp { initial: 0.0, target: 0.9, begin: 100, end: 750, every: 10 })
        );
        let again = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&again).unwrap(), schedule);
        for bad in [
            r#"{"kind":"cubic","target":0.9,"begin":100,"end":750,"every":10,"power":3}"#,
            r#"{"kind":"cubic","target":0.9,"begin":100,"end":750}"#,
            r#"{"kind":"cubique","target":0.9}"#,
            r#"{"kind":"one-shot","target":0.9,"at":-1}"#,
            r#"{"kind":"one-shot","target":0.9,"at":1,"every":2}"#,
            r#"{"kind":"constant","sparsity":0.9,"steps":2}"#,
        ] {
            assert!(serde_json::from_str::<Schedule>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hostile_settings_are_refused_and_never_panic() {
        let bad = [
            Schedule::Constant { sparsity: 1.0 },
            Schedule::OneShot { target: f64::NAN, at: 0 },
            Schedule::Cubic(Ramp { target: 1.0, ..WINDOW }),
            Schedule::Cubic(Ramp { target: f64::INFINITY, ..WINDOW }),
            Schedule::Cubic(Ramp { initial: 0.6, ..WINDOW }),
            Schedule::Cubic(Ramp { initial: f64::NAN, ..WINDOW }),
            Schedule::Cubic(Ramp { initial: -0.1, ..WINDOW }),
            Schedule::Linear(Ramp { every: 0, ..WINDOW }),
            Schedule::Geometric(Ramp { begin: 21, ..WINDOW }),
            Schedule::Periodic { sparsity: 0.5, begin: 5, end: 4, every: 1 },
            Schedule::Periodic { sparsity: 0.5, begin: 0, end: 4, every: 0 },
        ];
        for schedule in bad {
            assert!(schedule.validate().is_err(), "{schedule:?}");
            for step in [0, 1, 5, 20, 21, u64::MAX] {
                let _ = (schedule.sparsity_at(step), schedule.updates_at(step));
            }
            let _ = (schedule.last_update(), schedule.split(3));
        }
    }

    fn ramp() -> impl Strategy<Value = Ramp> {
        (0.0f64..1.0, 0.0f64..=1.0, 0u64..50, 0u64..200, 1u64..40).prop_map(
            |(target, share, begin, window, every)| Ramp {
                initial: target * share,
                target,
                begin,
                end: begin + window,
                every,
            },
        )
    }

    proptest! {
        #[test]
        fn rising_schedules_are_monotone_and_exact_at_the_ends(ramp in ramp()) {
            for schedule in [Schedule::Linear(ramp), Schedule::Cubic(ramp), Schedule::Geometric(ramp)] {
                prop_assert!(schedule.validate().is_ok());
                let mut before = 0.0;
                for step in 0..ramp.end + 50 {
                    let now = schedule.sparsity_at(step);
                    prop_assert!(now >= before, "{} then {} at {}", before, now, step);
                    prop_assert!((0.0..1.0).contains(&now));
                    // The sparsity changes only where the mask does.
                    if now != before {
                        prop_assert!(schedule.updates_at(step));
                    }
                    before = now;
                }
                if ramp.begin > 0 {
                    prop_assert_eq!(schedule.sparsity_at(ramp.begin - 1), 0.0);
                }
                if ramp.end > ramp.begin {
                    prop_assert_eq!(schedule.sparsity_at(ramp.begin), ramp.initial);
                }
                prop_assert_eq!(schedule.sparsity_at(ramp.end), ramp.target);
                prop_assert_eq!(schedule.sparsity_at(u64::MAX), ramp.target);
                prop_assert!(schedule.updates_at(ramp.begin) && schedule.updates_at(ramp.end));
                prop_assert_eq!(schedule.last_update(), ramp.end);
                prop_assert!(!schedule.updates_at(ramp.end + 1));
                let lower = schedule.with_target(ramp.target / 2.0);
                prop_assert!(lower.validate().is_ok());
                prop_assert_eq!(lower.sparsity_at(ramp.end), ramp.target / 2.0);
            }
        }

        #[test]
        fn cubic_and_geometric_rise_faster_than_linear(ramp in ramp()) {
            for step in ramp.begin..ramp.end {
                let cubic = Schedule::Cubic(ramp).sparsity_at(step);
                let linear = Schedule::Linear(ramp).sparsity_at(step);
                let geometric = Schedule::Geometric(ramp).sparsity_at(step);
                prop_assert!(cubic >= linear - 1e-12);
                prop_assert!(geometric >= linear - 1e-12); // 1 − e^x is concave
            }
        }
    }
}
