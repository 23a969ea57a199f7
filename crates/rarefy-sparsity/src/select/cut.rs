//! The boundary between pruned and kept, found without sorting and without an index array.

/// Bit pattern of a finite score whose unsigned order is the order of the scores; `-0.0 = 0.0`.
pub(crate) fn key(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0.0 + 0.0 is +0.0
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The inverse of [`key`].
fn unkey(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// Prune every key below `key` and the first `ties` keys equal to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    key: u32,
    ties: usize,
}

impl Cut {
    /// The cut that prunes nothing.
    pub(crate) const NONE: Cut = Cut { key: 0, ties: 0 };

    /// A fresh walk over the same keys in the same order.
    pub(crate) fn tester(self) -> Tester {
        Tester { cut: self }
    }

    /// The highest pruned score.
    pub(crate) fn boundary(self) -> f32 {
        unkey(self.key)
    }
}

/// Says of each key in turn whether it is pruned.
#[derive(Debug, Clone)]
pub(crate) struct Tester {
    cut: Cut,
}

impl Tester {
    pub(crate) fn prunes(&mut self, key: u32) -> bool {
        if key == self.cut.key && self.cut.ties > 0 {
            self.cut.ties -= 1;
            return true;
        }
        key < self.cut.key
    }
}

/// Below this length a partial sort of the keys is cheaper than counting digits.
const SMALL: usize = 2048;

/// Reusable memory of the search: at most 2048 keys and 2048 counters.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    keys: Vec<u32>,
    counts: Vec<usize>,
}

impl Scratch {
    /// The cut that prunes exactly the `k` lowest of the `len` keys that `keys()` yields
    /// (the same sequence at every call); `k <= len`.
    pub(crate) fn cut<I: Iterator<Item = u32>>(&mut self, keys: impl Fn() -> I, len: usize, k: usize) -> Cut {
        debug_assert!(k <= len, "{k} of {len}");
        if k == 0 {
            return Cut::NONE;
        }
        if len <= SMALL {
            self.keys.clear();
            self.keys.extend(keys());
            let (below, &mut key, _) = self.keys.select_nth_unstable(k - 1);
            let equal_below = below.iter().filter(|&&b| b == key).count();
            return Cut { key, ties: equal_below + 1 };
        }
        // Digits of 11, 11 and 10 bits from the top; `rank` counts from 0 among the keys that share
        // the digits fixed so far.
        let (mut prefix, mut fixed, mut rank) = (0u32, 0u32, k - 1);
        for bits in [11u32, 11, 10] {
            let shift = 32 - fixed - bits;
            self.counts.clear();
            self.counts.resize(1 << bits, 0);
            let digit_mask = (1u32 << bits) - 1;
            for key in keys() {
                if u64::from(key) >> (32 - fixed) == u64::from(prefix) {
                    self.counts[(key >> shift & digit_mask) as usize] += 1;
                }
            }
            let mut digit = 0;
            while digit + 1 < self.counts.len() && rank >= self.counts[digit] {
                rank -= self.counts[digit];
                digit += 1;
            }
            prefix = prefix << bits | digit as u32;
            fixed += bits;
        }
        Cut { key: prefix, ties: rank + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_order_like_scores() {
        let ordered = [f32::MIN, -2.0, -1e-40, 0.0, 1e-45, 1.0, f32::MAX];
        for pair in ordered.windows(2) {
            assert!(key(pair[0]) < key(pair[1]), "{pair:?}");
        }
        assert_eq!(key(-0.0), key(0.0));
        for value in ordered {
            assert_eq!(unkey(key(value)), value);
        }
    }

    proptest! {
        #[test]
        fn counting_digits_equals_sorting(
            mut keys in proptest::collection::vec(prop_oneof![any::<u32>(), 0u32..4, Just(u32::MAX)], SMALL + 1..SMALL + 400),
            at in 0.0f64..=1.0,
        ) {
            let k = ((keys.len() as f64) * at) as usize;
            let cut = Scratch::default().cut(|| keys.iter().copied(), keys.len(), k);
            let mut test = cut.tester();
            let pruned = keys.iter().filter(|&&key| test.prunes(key)).count();
            prop_assert_eq!(pruned, k);
            keys.sort_unstable();
            if k > 0 {
                prop_assert_eq!(cut.key, keys[k - 1]);
            }
        }
    }
}
