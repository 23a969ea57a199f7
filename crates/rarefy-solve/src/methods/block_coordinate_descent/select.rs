//! Selection rules.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::forest::grow_forest;
use super::problem::Tracked;
use super::update::Inverse;
use super::{BcdProblem, Blocks, ForestOrder, Prox, Selection};
use crate::prox::{largest_k, soft};

/// What a rule remembers between steps.
pub(super) struct Selector {
    pub(super) blocks: Vec<Vec<usize>>,
    /// `L_b` and `H_b⁻¹` of the fixed blocks, when the rule needs them.
    pub(super) constants: Vec<f64>,
    pub(super) inverses: Vec<Inverse>,
    /// Cyclic order of variable blocks still to come.
    queue: Vec<usize>,
    turn: usize,
}

impl Selector {
    pub(super) fn new(
        state: &Tracked<'_>,
        blocks: Vec<Vec<usize>>,
        selection: Selection,
        prox: Prox,
    ) -> Self {
        let needs_constant = matches!(selection, Selection::Gsl | Selection::Lipschitz);
        let constants = if needs_constant {
            blocks.iter().map(|b| super::update::largest_eigenvalue(&state.bound(b))).collect()
        } else {
            vec![]
        };
        let inverses = if selection == Selection::Gsq && prox == Prox::None {
            blocks.iter().map(|b| Inverse::new(state.bound(b))).collect()
        } else {
            vec![]
        };
        Self { blocks, constants, inverses, queue: vec![], turn: 0 }
    }

    pub(super) fn fixed(
        &mut self,
        state: &Tracked<'_>,
        rule: Selection,
        prox: Prox,
        rng: &mut ChaCha8Rng,
    ) -> usize {
        let n = self.blocks.len();
        match rule {
            Selection::Random => rng.random_range(0..n),
            Selection::Cyclic => {
                self.turn += 1;
                (self.turn - 1) % n
            }
            Selection::Lipschitz => weighted(&self.constants, rng),
            _ => {
                let scores = (0..n).map(|b| self.score(state, b, rule, prox));
                argmax(scores)
            }
        }
    }

    /// The score of fixed block `b`.
    pub(super) fn score(&self, state: &Tracked<'_>, b: usize, rule: Selection, prox: Prox) -> f64 {
        let block = &self.blocks[b];
        if prox != Prox::None {
            return block.iter().map(|i| separable(state, *i, rule, prox)).sum();
        }
        let square = |i: &usize| state.g[*i].powi(2);
        match rule {
            Selection::Gsl => {
                let l = self.constants[b];
                if l > 0.0 { block.iter().map(square).sum::<f64>() / l } else { 0.0 }
            }
            Selection::Gsd => block.iter().map(|i| quotient(square(i), state.lipschitz[*i])).sum(),
            Selection::Gsq => {
                let g: Vec<f64> = block.iter().map(|i| state.g[*i]).collect();
                let d = self.inverses[b].apply(&g);
                g.iter().zip(d).map(|(g, d)| g * d).sum()
            }
            _ => block.iter().map(square).sum(),
        }
    }

    pub(super) fn variable(
        &mut self,
        state: &mut Tracked<'_>,
        rule: Selection,
        prox: Prox,
        size: usize,
        rng: &mut ChaCha8Rng,
    ) -> Vec<usize> {
        let p = state.x.len();
        let size = size.min(p);
        match rule {
            Selection::Random => rand::seq::index::sample(rng, p, size).into_vec(),
            Selection::Lipschitz => {
                // Weighted sampling without replacement: the largest keys u^(1/L) (Efraimidis, Spirakis).
                let keys: Vec<f64> = state
                    .lipschitz
                    .iter()
                    .map(|l| rng.random_range(f64::MIN_POSITIVE..1.0).ln() / l.max(f64::MIN_POSITIVE))
                    .collect();
                largest_k(&keys, size)
            }
            Selection::Cyclic => {
                if self.queue.is_empty() {
                    self.queue = (0..p).collect();
                    self.queue.shuffle(rng);
                }
                let at = self.queue.len().saturating_sub(size);
                self.queue.split_off(at)
            }
            _ if prox != Prox::None => {
                let scores: Vec<f64> = (0..p).map(|i| separable(state, i, rule, prox)).collect();
                largest_k(&scores, size)
            }
            Selection::Gsl => {
                state.row_sums();
                let d = state.row_sums().to_vec();
                let scores: Vec<f64> = state.g.iter().zip(&d).map(|(g, d)| quotient(g * g, *d)).collect();
                largest_k(&scores, size)
            }
            Selection::Gsd => {
                let scores: Vec<f64> =
                    state.g.iter().zip(&state.lipschitz).map(|(g, l)| quotient(g * g, *l)).collect();
                largest_k(&scores, size)
            }
            Selection::Gsq => iht(state, size),
            _ => {
                let scores: Vec<f64> = state.g.iter().map(|g| g.abs()).collect();
                largest_k(&scores, size)
            }
        }
    }
}

/// Score of one coordinate under a bound or an l1 term.
fn separable(state: &Tracked<'_>, i: usize, rule: Selection, prox: Prox) -> f64 {
    let (g, l, x) = (state.g[i], state.lipschitz[i], state.x[i]);
    if l <= 0.0 {
        return 0.0;
    }
    // Step and decrease of the separable model.
    let (d, change) = match prox {
        Prox::NonNegative { lambda } => {
            let g = g + lambda;
            let d = (-g / l).max(-x);
            (d, g * d + 0.5 * l * d * d)
        }
        Prox::L1 { lambda } => {
            let d = soft(x - g / l, lambda / l) - x;
            (d, g * d + 0.5 * l * d * d + lambda * ((x + d).abs() - x.abs()))
        }
        Prox::None => (-g / l, -0.5 * g * g / l),
    };
    match rule {
        Selection::Gs => (l * d).powi(2),
        Selection::Gsl | Selection::Gsd => l * d * d,
        _ => -change,
    }
}

fn quotient(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn argmax(scores: impl Iterator<Item = f64>) -> usize {
    let mut best = (f64::NEG_INFINITY, 0);
    for (b, s) in scores.enumerate() {
        if s > best.0 {
            best = (s, b);
        }
    }
    best.1
}

fn weighted(weights: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let total: f64 = weights.iter().sum();
    if !(total > 0.0 && total.is_finite()) {
        return rng.random_range(0..weights.len());
    }
    let mut left = rng.random_range(0.0..total);
    for (b, w) in weights.iter().enumerate() {
        if left < *w {
            return b;
        }
        left -= w;
    }
    weights.len() - 1
}

/// Ten steps of iterative hard thresholding on `gᵀd + ½dᵀHd` over vectors with `size` non-zeros,
/// from the best `size` entries of `−g/D`.
fn iht(state: &mut Tracked<'_>, size: usize) -> Vec<usize> {
    let d_bound = state.row_sums().to_vec();
    let mu = 1.0 / state.largest_eigenvalue().max(f64::MIN_POSITIVE);
    let mut d: Vec<f64> = state.g.iter().zip(&d_bound).map(|(g, d)| quotient(-g, *d)).collect();
    crate::prox::hard_keep_k(&mut d, size);
    for _ in 0..10 {
        let h = state.bound_times(&d);
        d.iter_mut().zip(h.iter().zip(&state.g)).for_each(|(d, (h, g))| *d -= mu * (g + h));
        crate::prox::hard_keep_k(&mut d, size);
    }
    let sizes: Vec<f64> = d.iter().map(|v| v.abs()).collect();
    largest_k(&sizes, size)
}

/// A forest grown in the order of the scores.
pub(super) fn forest(state: &mut Tracked<'_>, order: ForestOrder, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let BcdProblem::Graph { q, .. } = state.problem else { return vec![] };
    let p = state.x.len();
    let mut nodes: Vec<usize> = (0..p).collect();
    nodes.shuffle(rng);
    let scores: Vec<f64> = match order {
        ForestOrder::Random => return grow_forest(q, nodes),
        ForestOrder::Gs => state.g.iter().map(|g| g * g).collect(),
        ForestOrder::Gsl => state.g.iter().zip(&state.lipschitz).map(|(g, l)| quotient(g * g, *l)).collect(),
        ForestOrder::Gsd => {
            let d = state.row_sums().to_vec();
            state.g.iter().zip(&d).map(|(g, d)| quotient(g * g, *d)).collect()
        }
    };
    grow_forest(q, largest_k(&scores, p))
}

/// The blocks of a partition; empty for variable blocks.
pub(super) fn partition(state: &Tracked<'_>, blocks: Blocks, size: usize) -> Vec<Vec<usize>> {
    match (blocks, state.problem) {
        (Blocks::Fixed(kind), _) => super::partition::fixed(kind, &state.lipschitz, size),
        (Blocks::RedBlack, BcdProblem::Graph { q, .. }) => super::partition_by_colour(q),
        (Blocks::TreePartition, BcdProblem::Graph { q, .. }) => super::partition_into_forests(q),
        (Blocks::Comb { width }, BcdProblem::Graph { b, .. }) => super::partition_comb(b.len(), width),
        _ => vec![],
    }
}
