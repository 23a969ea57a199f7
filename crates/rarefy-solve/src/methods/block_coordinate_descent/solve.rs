//! The loop, and the state it moves.

use std::ops::ControlFlow;

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use super::problem::Tracked;
use super::select::{self, Selector};
use super::update::{self, Inverse};
use super::{BcdProblem, BcdSettings, Blocks, Prox, Selection, Update};
use crate::error::{check_dimension, check_finite, check_setting};
use crate::{Monitor, Residual, Solution, SolveError, Status};

/// Fixed blocks whose factors are kept, in numbers.
const FACTOR_LIMIT: usize = 1 << 25;

/// A run that can be watched step by step; [`solve`] drives it.
pub struct BcdState<'a> {
    tracked: Tracked<'a>,
    settings: BcdSettings,
    selector: Selector,
    inverses: Vec<Option<Inverse>>,
    adaptive: Vec<f64>,
    rng: ChaCha8Rng,
    support: Vec<usize>,
    stable: usize,
}

impl std::fmt::Debug for BcdState<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BcdState").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<'a> BcdState<'a> {
    /// Ready for the first step, at `start` or at 0.
    ///
    /// # Errors
    /// A [`SolveError`] naming the argument.
    pub fn new(
        problem: BcdProblem<'a>,
        start: Option<&[f64]>,
        settings: &BcdSettings,
    ) -> Result<Self, SolveError> {
        settings.validate()?;
        problem.check()?;
        let p = problem.dim();
        let mut x = vec![0.0; p];
        if let Some(start) = start {
            check_dimension("start", p, "coordinates", start.len())?;
            check_finite("start", start)?;
            x.copy_from_slice(start);
            if matches!(settings.prox, Prox::NonNegative { .. }) {
                x.iter_mut().for_each(|v| *v = v.max(0.0));
            }
        }
        let graph = matches!(problem, BcdProblem::Graph { .. });
        let of_graph = matches!(
            settings.blocks,
            Blocks::Forest(_) | Blocks::RedBlack | Blocks::TreePartition | Blocks::Comb { .. }
        );
        check_setting(
            graph || !of_graph,
            "blocks",
            format!("{:?}", settings.blocks),
            "a rule without a graph",
        )?;
        let forest = of_graph || settings.block_size == 1;
        check_setting(
            settings.update != Update::Tree || (graph && forest),
            "update",
            "Tree",
            "tree only for graph problems with forest, red-black, tree-partition or comb blocks",
        )?;
        let tracked = Tracked::new(problem, &x);
        let blocks =
            if p == 0 { vec![] } else { select::partition(&tracked, settings.blocks, settings.block_size) };
        let selector = Selector::new(&tracked, blocks, settings.selection, settings.prox);
        let count = selector.blocks.len();
        Ok(Self {
            tracked,
            settings: settings.clone(),
            inverses: (0..count).map(|_| None).collect(),
            adaptive: vec![1.0; count.max(1)],
            selector,
            rng: ChaCha8Rng::seed_from_u64(settings.seed),
            support: vec![],
            stable: 0,
        })
    }

    /// The point.
    #[must_use]
    pub fn x(&self) -> &[f64] {
        &self.tracked.x
    }

    /// Gradient of the smooth part, as kept up to date.
    #[must_use]
    pub fn gradient(&self) -> &[f64] {
        &self.tracked.g
    }

    /// Computes the gradient from its definition, against the drift of many updates.
    pub fn recompute_gradient(&mut self) {
        self.tracked.recompute_gradient();
    }

    /// The objective, with the bound or l1 term.
    #[must_use]
    pub fn objective(&self) -> f64 {
        let penalty = match self.settings.prox {
            Prox::None => 0.0,
            Prox::NonNegative { lambda } | Prox::L1 { lambda } => {
                lambda * self.tracked.x.iter().map(|v| v.abs()).sum::<f64>()
            }
        };
        self.tracked.value() + penalty
    }

    /// The fixed blocks; empty for variable ones.
    #[must_use]
    pub fn blocks(&self) -> &[Vec<usize>] {
        &self.selector.blocks
    }

    /// `H_b`, the bound on the Hessian of a block.
    #[must_use]
    pub fn bound(&self, block: &[usize]) -> faer::Mat<f64> {
        self.tracked.bound(block)
    }

    /// Largest entry of the projected gradient: of `x − prox(x − g)` for unit steps.
    #[must_use]
    pub fn residual(&self) -> f64 {
        let one = |x: f64, g: f64| match self.settings.prox {
            Prox::None => g,
            Prox::NonNegative { lambda } => {
                if x > 0.0 {
                    g + lambda
                } else {
                    (g + lambda).min(0.0)
                }
            }
            Prox::L1 { lambda } if x == 0.0 => crate::prox::soft(g, lambda),
            Prox::L1 { lambda } => g + lambda * x.signum(),
        };
        self.tracked.x.iter().zip(&self.tracked.g).fold(0.0, |m, (x, g)| {
            let v = one(*x, *g).abs();
            if v.is_nan() { f64::NAN } else { m.max(v) }
        })
    }

    /// Chooses a block: its place among the fixed ones, if it is one, and its coordinates.
    pub fn select(&mut self) -> (Option<usize>, Vec<usize>) {
        let s = &self.settings;
        match s.blocks {
            Blocks::Variable => {
                let block = self.selector.variable(
                    &mut self.tracked,
                    s.selection,
                    s.prox,
                    s.block_size,
                    &mut self.rng,
                );
                (None, block)
            }
            Blocks::General => {
                let size = (self.tracked.x.len() as f64).cbrt().round().max(1.0) as usize;
                let block =
                    self.selector.variable(&mut self.tracked, s.selection, s.prox, size, &mut self.rng);
                (None, block)
            }
            Blocks::Forest(order) => (None, select::forest(&mut self.tracked, order, &mut self.rng)),
            _ => {
                let b = self.selector.fixed(&self.tracked, s.selection, s.prox, &mut self.rng);
                (Some(b), self.selector.blocks[b].clone())
            }
        }
    }

    /// The change that the update rule makes to a block, without making it.
    ///
    /// # Errors
    /// [`SolveError::Breakdown`] when a forest block is singular.
    pub fn propose(&mut self, place: Option<usize>, block: &[usize]) -> Result<Vec<f64>, SolveError> {
        let s = &self.settings;
        if let (Some(b), Update::Matrix) = (place, s.update)
            && self.inverses[b].is_none()
            && self.selector.inverses.is_empty()
            && block.len() * self.tracked.x.len() <= FACTOR_LIMIT
        {
            self.inverses[b] = Some(Inverse::new(self.tracked.bound(block)));
        }
        let inverse = place.and_then(|b| self.selector.inverses.get(b).or_else(|| self.inverses[b].as_ref()));
        let adaptive = &mut self.adaptive[place.unwrap_or(0)];
        update::update(&self.tracked, block, s.update, s.prox, inverse, adaptive)
    }

    /// Moves a block.
    pub fn apply(&mut self, block: &[usize], change: &[f64]) {
        self.tracked.shift(block, change);
        if matches!(self.settings.prox, Prox::NonNegative { .. }) {
            for i in block {
                if self.tracked.x[*i] < 0.0 {
                    // Rounding of x + (max(x + d, 0) − x).
                    self.tracked.x[*i] = 0.0;
                }
            }
        }
    }

    /// Selects, updates and moves one block; returns it.
    ///
    /// # Errors
    /// As [`BcdState::propose`].
    pub fn step(&mut self) -> Result<Vec<usize>, SolveError> {
        if self.settings.active_set
            && self.stable >= 10
            && self.stable.is_multiple_of(2)
            && (1..=self.settings.active_set_limit).contains(&self.support.len())
        {
            let block = self.support.clone();
            let change = update::update(
                &self.tracked,
                &block,
                Update::ProjectedNewton,
                self.settings.prox,
                None,
                &mut 1.0,
            )?;
            self.apply(&block, &change);
            self.watch();
            return Ok(block);
        }
        let (place, block) = self.select();
        let change = self.propose(place, &block)?;
        self.apply(&block, &change);
        if self.settings.active_set {
            self.watch();
        }
        Ok(block)
    }

    fn watch(&mut self) {
        let support: Vec<usize> = (0..self.tracked.x.len()).filter(|i| self.tracked.x[*i] != 0.0).collect();
        self.stable = if support == self.support { self.stable + 1 } else { 0 };
        self.support = support;
    }
}

/// Minimises; see the module for problem, rules and cost. The residual is the largest entry of the
/// projected gradient, and the trace holds one point for each iteration.
///
/// # Errors
/// A [`SolveError`] naming the argument; [`SolveError::Breakdown`] when the objective overflows.
///
/// ```
/// use rarefy_solve::{Design, Monitor, linop::dense_from_rows};
/// use rarefy_solve::methods::block_coordinate_descent::{BcdProblem, BcdSettings, solve};
/// let a = Design::from(dense_from_rows(&[[1.0, 0.0], [1.0, 2.0]])?);
/// // One matrix update over all coordinates solves least squares: x = (1, 1).
/// let s = solve(BcdProblem::LeastSquares { a: &a, y: &[1.0, 3.0] }, None, &BcdSettings::default(), &mut Monitor::silent())?;
/// assert!(s.iterations == 1 && (s.x[0] - 1.0).abs() < 1e-12 && (s.x[1] - 1.0).abs() < 1e-12);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
pub fn solve(
    problem: BcdProblem<'_>,
    start: Option<&[f64]>,
    settings: &BcdSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Vec<f64>>, SolveError> {
    let begin = monitor.seconds();
    let mut state = BcdState::new(problem, start, settings)?;
    let first = state.residual();
    let (mut trace, mut iterations, mut idle) = (vec![], 0, 0);
    let mut objective = state.objective();
    let status = loop {
        let residual = state.residual();
        if !(objective.is_finite() && residual.is_finite()) {
            return Err(SolveError::breakdown(
                "block coordinate descent",
                "the objective overflowed",
                "scale the columns",
            ));
        }
        let observed = monitor.record(&mut trace, iterations, objective, residual);
        if residual <= settings.tolerance * first {
            break Status::Converged;
        }
        if let ControlFlow::Break(status) = observed {
            break status;
        }
        if iterations >= settings.max_iterations {
            break Status::MaxIterations;
        }
        let before = objective;
        state.step()?;
        iterations += 1;
        objective = state.objective();
        // Greedy rules are deterministic: no progress once means none for ever.
        let greedy =
            !matches!(settings.selection, Selection::Random | Selection::Cyclic | Selection::Lipschitz);
        idle = if objective < before { 0 } else { idle + 1 };
        let patience = if greedy { 20 } else { 100 * (1 + state.x().len() / settings.block_size) };
        if idle >= patience {
            break Status::Stalled;
        }
    };
    let residuals = vec![Residual { name: "projected gradient, largest entry", value: state.residual() }];
    let seconds = monitor.seconds() - begin;
    Ok(Solution { x: state.tracked.x, status, objective, residuals, iterations, trace, seconds })
}
