//! The order of channels that keeps most magnitude when blocks of consecutive output channels are pruned.
//!
//! A block `(b, c)` is `G` rows at one column; its value is the sum of magnitudes `V[b, c]`. Of a layer the `K` most valuable blocks are
//! kept. With a threshold τ between the kept and the lost ones the value of the kept is `K τ + Σ max(V − τ, 0)`: so one
//! compares two orders, column by column, without sorting. τ is exact at the start of each pass, the result is judged by
//! exact selection, and the order that was there stays when nothing better is found.
//!
//! Cost: a pass compares all pairs of rows of different blocks: `rows² · cols / 2` of them, on all threads. Layers that an
//! addition ties together are one matrix, side by side.

use rarefy_models::classifier::Classifier;
use rayon::prelude::*;
use serde::Serialize;

use crate::PruneError;

/// Most passes over all pairs; the gain of a pass falls below the limit long before.
const MAX_PASSES: usize = 20;
/// A pass that gains a smaller share than this is the last (reconstruction of the paper: 0.01 %).
const LEAST_GAIN: f64 = 1e-4;
/// Columns compared at once.
const LANES: usize = 8;
/// Rows that one task compares at least.
const TASK_ROWS: usize = 32;

/// A class of channels that was reordered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rearrangement {
    /// The layers whose rows they are.
    pub producers: Vec<usize>,
    /// Number of channels.
    pub channels: usize,
    /// Magnitude that pruning would have kept, as a share of all in the pruned producers.
    pub retained_l1_before: f64,
    /// The same in the new order; never less.
    pub retained_l1_after: f64,
    /// New channel `c` is what `order[c]` was.
    #[serde(skip)]
    pub order: Vec<usize>,
}

/// Reorders the channels of the whole network for blocks of `height` rows at this sparsity. What it computes stays.
///
/// # Errors
/// [`PruneError::NonFiniteWeight`].
pub fn rearrange(
    model: &mut Classifier,
    height: usize,
    sparsity: f64,
) -> Result<Vec<Rearrangement>, PruneError> {
    let prunable = model.prunable();
    let mut found = Vec::new();
    for class in model.channel_classes().0 {
        let producers: Vec<usize> =
            class.producers.iter().copied().filter(|p| prunable.contains(p)).collect();
        let mut members = Vec::new();
        for &p in &producers {
            let Some(conv) = model.conv(p) else { continue };
            if let Some(index) = conv.weight.iter().position(|w| !w.is_finite()) {
                let (row, col) = (index / conv.d_in, index % conv.d_in);
                let count = conv.weight.iter().filter(|w| !w.is_finite()).count();
                let layer = Classifier::weight_name(p);
                return Err(PruneError::NonFiniteWeight { layer, count, row, col });
            }
            members.push((&*conv.weight, conv.d_in));
        }
        if members.is_empty() || class.channels <= height || height < 2 {
            continue;
        }
        let problem = Problem::new(&members, class.channels, height, sparsity);
        let order = problem.solve();
        let total = problem.total.max(f64::MIN_POSITIVE);
        let identity: Vec<usize> = (0..class.channels).collect();
        let [before, after] = [&identity, &order].map(|o| problem.retained(o) / total);
        model.permute(&class, &order)?;
        found.push(Rearrangement {
            producers,
            channels: class.channels,
            retained_l1_before: before,
            retained_l1_after: after,
            order,
        });
    }
    Ok(found)
}

/// Magnitudes of the rows, all members side by side.
struct Problem {
    rows: usize,
    cols: usize,
    height: usize,
    w: Vec<f32>,
    /// Columns of each member, and the blocks of it that are kept.
    members: Vec<(std::ops::Range<usize>, usize)>,
    total: f64,
}

/// An order with the values of its blocks.
struct State {
    order: Vec<usize>,
    /// `[blocks, cols]`.
    values: Vec<f32>,
    /// `[cols]`: the threshold of the member.
    tau: Vec<f32>,
    /// `Σ max(V − τ, 0)` of each block.
    worth: Vec<f64>,
}

impl Problem {
    fn new(members: &[(&[f32], usize)], rows: usize, height: usize, sparsity: f64) -> Self {
        let cols = members.iter().map(|m| m.1).sum();
        let mut w = Vec::with_capacity(rows * cols);
        for r in 0..rows {
            for (weight, d_in) in members {
                w.extend(weight[r * d_in..(r + 1) * d_in].iter().map(|w| w.abs()));
            }
        }
        let (mut at, blocks) = (0, rows.div_ceil(height));
        let members = members
            .iter()
            .map(|(_, d_in)| {
                at += d_in;
                let pruned = ((blocks * d_in) as f64 * sparsity).floor() as usize;
                (at - d_in..at, blocks * d_in - pruned)
            })
            .collect();
        let total = w.iter().map(|w| f64::from(*w)).sum();
        Self { rows, cols, height, w, members, total }
    }

    fn row(&self, r: usize) -> &[f32] {
        &self.w[r * self.cols..(r + 1) * self.cols]
    }

    fn blocks(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// Rows of a block over the height: less than 1 only for the last. It competes by its mean.
    fn share(&self, block: usize) -> f32 {
        (self.rows - block * self.height).min(self.height) as f32 / self.height as f32
    }

    fn values(&self, order: &[usize]) -> Vec<f32> {
        let mut values = vec![0.0; self.blocks() * self.cols];
        for (rows, values) in order.chunks(self.height).zip(values.chunks_mut(self.cols.max(1))) {
            for &r in rows {
                values.iter_mut().zip(self.row(r)).for_each(|(v, w)| *v += w);
            }
        }
        values
    }

    /// Of a member, the mean values of its blocks from the highest down, with what each is worth.
    fn ranked(&self, values: &[f32], columns: &std::ops::Range<usize>) -> Vec<(f32, f32)> {
        let mut all = Vec::with_capacity(self.blocks() * columns.len());
        for (b, row) in values.chunks(self.cols.max(1)).enumerate() {
            let share = self.share(b);
            all.extend(row[columns.clone()].iter().map(|v| (v / share, *v)));
        }
        all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        all
    }

    /// The magnitude that exact selection keeps.
    fn retained(&self, order: &[usize]) -> f64 {
        let values = self.values(order);
        let kept = |(columns, keep): &(std::ops::Range<usize>, usize)| {
            self.ranked(&values, columns).iter().take(*keep).map(|(_, v)| f64::from(*v)).sum::<f64>()
        };
        self.members.iter().map(kept).sum()
    }

    fn state(&self, order: Vec<usize>) -> State {
        let values = self.values(&order);
        let mut tau = vec![0.0; self.cols];
        for (columns, keep) in &self.members {
            let ranked = self.ranked(&values, columns);
            // The highest that is lost: the kept ones gain by rising, the lost ones only above it.
            let at = ranked.get(*keep).map_or(0.0, |v| v.0);
            tau[columns.clone()].fill(at);
        }
        let worth = (0..self.blocks())
            .map(|b| {
                let share = self.share(b);
                let row = &values[b * self.cols..(b + 1) * self.cols];
                row.iter().zip(&tau).map(|(v, t)| f64::from((v - t * share).max(0.0))).sum()
            })
            .collect();
        State { order, values, tau, worth }
    }

    fn solve(&self) -> Vec<usize> {
        let identity: Vec<usize> = (0..self.rows).collect();
        let mut best = (self.retained(&identity), identity.clone());
        for start in [identity, self.clustered()] {
            let mut state = self.state(start);
            let mut last = self.retained(&state.order);
            if last > best.0 {
                best = (last, state.order.clone());
            }
            for _ in 0..MAX_PASSES {
                self.pass(&mut state);
                let now = self.retained(&state.order);
                if now > best.0 {
                    best = (now, state.order.clone());
                }
                if now - last < LEAST_GAIN * self.total {
                    break;
                }
                last = now;
                state = self.state(state.order);
            }
        }
        best.1
    }

    /// Balanced clusters: from the heaviest row left, the rows that put most into the columns that the cluster would keep.
    fn clustered(&self) -> Vec<usize> {
        let weight = |r: usize| self.row(r).iter().map(|w| f64::from(*w)).sum::<f64>();
        let mut left: Vec<usize> = (0..self.rows).collect();
        left.sort_by(|a, b| weight(*b).total_cmp(&weight(*a)).then(a.cmp(b)));
        let mut order = Vec::with_capacity(self.rows);
        let mut wanted = vec![0.0_f32; self.cols];
        while !left.is_empty() {
            let seed = left.remove(0);
            order.push(seed);
            let mut sum = self.row(seed).to_vec();
            for _ in 1..self.height.min(left.len() + 1) {
                for (columns, keep) in &self.members {
                    let part = &sum[columns.clone()];
                    let mut sorted = part.to_vec();
                    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
                    let mean = keep.div_ceil(self.blocks());
                    let least = sorted.get(mean.saturating_sub(1)).copied().unwrap_or(0.0);
                    for (wanted, v) in wanted[columns.clone()].iter_mut().zip(part) {
                        *wanted = if *v >= least { 1.0 } else { 0.0 };
                    }
                }
                let overlap = |r: usize| dot(self.row(r), &wanted);
                let next = left
                    .par_iter()
                    .with_min_len(TASK_ROWS)
                    .enumerate()
                    .map(|(i, r)| (overlap(*r), i))
                    .reduce(|| (f32::NEG_INFINITY, usize::MAX), better);
                let Some(row) = left.get(next.1).copied() else { break };
                left.remove(next.1);
                order.push(row);
                sum.iter_mut().zip(self.row(row)).for_each(|(s, w)| *s += w);
            }
        }
        order
    }

    /// For every row in turn the best row of another block to change places with, if that gains.
    fn pass(&self, state: &mut State) {
        for i in 0..self.rows {
            let a = i / self.height;
            let gain = |j: usize| self.gain(state, (i, a), (j, j / self.height));
            // Earlier rows have been compared with this one already.
            let best = ((a + 1) * self.height..self.rows)
                .into_par_iter()
                .with_min_len(TASK_ROWS)
                .map(|j| (gain(j), j))
                .reduce(|| (f32::NEG_INFINITY, usize::MAX), better);
            // Above rounding.
            if best.1 < self.rows && f64::from(best.0) > 1e-6 * self.total / self.rows as f64 {
                self.swap(state, i, best.1);
            }
        }
    }

    /// What the two blocks are worth more when places `i` and `j` change their rows.
    fn gain(&self, state: &State, (i, a): (usize, usize), (j, b): (usize, usize)) -> f32 {
        let (x, y) = (self.row(state.order[i]), self.row(state.order[j]));
        let (va, vb) = (&state.values[a * self.cols..], &state.values[b * self.cols..]);
        let (sa, sb) = (self.share(a), self.share(b));
        let (x, y, va, vb) = (&x[..self.cols], &y[..self.cols], &va[..self.cols], &vb[..self.cols]);
        let mut sums = [0.0_f32; LANES];
        // Not `max`, which takes care of NaN: weights were checked.
        let above = |v: f32| if v > 0.0 { v } else { 0.0 };
        let term = |x: f32, y: f32, va: f32, vb: f32, t: f32| {
            let d = y - x;
            above(va + d - t * sa) + above(vb - d - t * sb)
        };
        let (x8, x1) = x.as_chunks::<LANES>();
        let (y8, y1) = y.as_chunks::<LANES>();
        let (a8, a1) = va.as_chunks::<LANES>();
        let (b8, b1) = vb.as_chunks::<LANES>();
        let (t8, t1) = state.tau.as_chunks::<LANES>();
        for ((((x, y), va), vb), t) in x8.iter().zip(y8).zip(a8).zip(b8).zip(t8) {
            for k in 0..LANES {
                sums[k] += term(x[k], y[k], va[k], vb[k], t[k]);
            }
        }
        let tail: f32 = (0..x1.len()).map(|k| term(x1[k], y1[k], a1[k], b1[k], t1[k])).sum();
        let now = f64::from(sums.iter().sum::<f32>() + tail);
        (now - state.worth[a] - state.worth[b]) as f32
    }

    fn swap(&self, state: &mut State, i: usize, j: usize) {
        state.order.swap(i, j);
        for block in [i / self.height, j / self.height] {
            // Summed anew: differences would gather rounding errors.
            let values = &mut state.values[block * self.cols..(block + 1) * self.cols];
            values.fill(0.0);
            let rows = state.order[block * self.height..].iter().take(self.height);
            for &r in rows {
                values.iter_mut().zip(self.row(r)).for_each(|(v, w)| *v += w);
            }
            let share = self.share(block);
            state.worth[block] =
                values.iter().zip(&state.tau).map(|(v, t)| f64::from((v - t * share).max(0.0))).sum();
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a8, a1), (b8, b1)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a8.iter().zip(b8) {
        for k in 0..LANES {
            sums[k] += a[k] * b[k];
        }
    }
    sums.iter().sum::<f32>() + a1.iter().zip(b1).map(|(a, b)| a * b).sum::<f32>()
}

/// The higher value, of equal ones the lower index: the same on any number of threads.
fn better(a: (f32, usize), b: (f32, usize)) -> (f32, usize) {
    if b.0 > a.0 || (b.0 >= a.0 && b.1 < a.1) { b } else { a }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::classifier::{ClassifierSettings, prune};
    use crate::synthetic::normal_vec;
    use rarefy_models::classifier::synthetic;

    /// Rows of `groups` prototypes with disjoint supports, shuffled.
    fn planted(groups: usize, height: usize, width: usize) -> Vec<f32> {
        let (rows, cols) = (groups * height, groups * width);
        let noise = normal_vec(9, rows * cols);
        let mut w = vec![0.0; rows * cols];
        for r in 0..rows {
            // 7 has no common factor with the rows: every prototype is spread out.
            let group = (r * 7 % rows) / height;
            for c in group * width..(group + 1) * width {
                w[r * cols + c] = 0.1 + noise[r * cols + c].abs();
            }
        }
        w
    }

    #[test]
    fn planted_groups_are_found() {
        for (groups, height, width) in [(4, 4, 5), (8, 16, 3), (6, 2, 7)] {
            let w = planted(groups, height, width);
            let (rows, cols) = (groups * height, groups * width);
            let sparsity = 1.0 - 1.0 / groups as f64;
            let problem = Problem::new(&[(&w, cols)], rows, height, sparsity);
            let order = problem.solve();
            let identity: Vec<usize> = (0..rows).collect();
            assert!(problem.retained(&identity) < 0.9 * problem.total);
            let lost = 1.0 - problem.retained(&order) / problem.total;
            assert!(lost.abs() < 1e-6, "{groups} groups of {height}: {lost} lost");
        }
    }

    #[test]
    fn retained_is_what_selection_keeps_and_the_gain_is_the_difference() {
        let (rows, cols, height) = (22, 9, 4);
        let w = normal_vec(3, rows * cols);
        let problem = Problem::new(&[(&w, cols)], rows, height, 0.5);
        let identity: Vec<usize> = (0..rows).collect();
        let mut layer = crate::LinearLayer::new("l", rows, cols, w).unwrap();
        let pattern = "block:4x1".parse().unwrap();
        let settings = ClassifierSettings { sparsity: 0.5, pattern, rearranges: false };
        let (_, share) = crate::classifier::prune_layer(&mut layer, &settings).unwrap();
        assert!((share - problem.retained(&identity) / problem.total).abs() < 1e-6);
        let mut state = problem.state(identity);
        let worth = |s: &State| s.worth.iter().sum::<f64>();
        for (i, j) in [(0, 21), (3, 4), (20, 9)] {
            let gain = problem.gain(&state, (i, i / height), (j, j / height));
            let before = worth(&state);
            problem.swap(&mut state, i, j);
            assert!((f64::from(gain) - (worth(&state) - before)).abs() < 1e-4, "{i} {j}");
        }
    }

    #[test]
    fn the_network_computes_the_same_and_keeps_at_least_as_much() {
        use rarefy_kernels::cnn::NetworkSettings;
        for model in [synthetic::mobilenet_v1(1, 32, 5), synthetic::mobilenet_v2(1, 32, 5)] {
            let image: Vec<f32> = normal_vec(1, 3 * 32 * 32);
            let logits = |model: &Classifier| {
                let net = model.network(&NetworkSettings::default()).unwrap().network;
                let mut out = vec![0.0; net.out_len()];
                net.forward(&image, &mut out, &mut vec![0.0; net.scratch_len(2)]).unwrap();
                out
            };
            let mut moved = model.clone();
            let found = rearrange(&mut moved, 16, 0.5).unwrap();
            assert!(!found.is_empty());
            assert!(found.iter().all(|r| r.retained_l1_after >= r.retained_l1_before), "{found:?}");
            assert!(found.iter().any(|r| r.retained_l1_after > r.retained_l1_before + 1e-3), "{found:?}");
            let (a, b) = (logits(&model), logits(&moved));
            let scale = a.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-5 * scale, "{worst} of {scale}");
            // The report agrees with what pruning then keeps.
            let settings = |rearranges| ClassifierSettings {
                sparsity: 0.5,
                pattern: "block:16x1".parse().unwrap(),
                rearranges,
            };
            let mut other = model.clone();
            let with = prune(&mut other, &settings(true), &mut |_| ()).unwrap();
            let without = prune(&mut model.clone(), &settings(false), &mut |_| ()).unwrap();
            assert_eq!(with.rearrangements, found);
            for r in with.rearrangements.iter().filter(|r| r.producers.len() == 1) {
                let share = |report: &crate::classifier::ClassifierReport| {
                    report.layers.iter().find(|l| l.index == r.producers[0]).unwrap().retained_l1
                };
                assert!((share(&with) - r.retained_l1_after).abs() < 1e-5);
                assert!((share(&without) - r.retained_l1_before).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn the_same_on_one_and_two_threads() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut model = synthetic::mobilenet_v1(1, 32, 5);
            pool.install(|| rearrange(&mut model, 8, 0.5)).unwrap()
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn blocks_of_one_row_leave_the_order() {
        let mut model = synthetic::mobilenet_v1(1, 32, 5);
        assert!(rearrange(&mut model, 1, 0.5).unwrap().is_empty());
    }
}
