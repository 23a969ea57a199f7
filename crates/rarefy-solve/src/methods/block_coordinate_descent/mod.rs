//! Greedy block coordinate descent — minimises smooth, bound-constrained and l1 problems a block at a time.
//!
//! Paper:    Nutini, Laradji, Schmidt, Let's Make Block Coordinate Descent Converge Faster: Faster
//!           Greedy Rules, Message-Passing, Active-Set Complexity, and Superlinear Convergence,
//!           JMLR 2022, arXiv 1712.08859. Reference code: IssamLaradji/BlockCoordinateDescent.
//! Problem:  minimise f(x), f(x) + λΣxᵢ over x ≥ 0, or f(x) + λ‖x‖₁, for f one of
//!           ½‖Ax − y‖² (A: [n, p], y: ℝ^n); Σ ln(1 + exp(−yᵢaᵢᵀx)) with yᵢ = ±1; softmax loss with
//!           labels in 0..k and x: [p·k], feature-major; ½xᵀQx − bᵀx (Q: [p, p] symmetric CSR).
//! Method:   1. start at x = 0 (or a warm start), keep the residual and the gradient. 2. pick a block by
//!           the selection rule, among the blocks of a partition or as the best variable block.
//!           3. update it. 4. refresh the gradient; for least squares with p ≤ 2048 from columns of
//!           AᵀA, otherwise from the residual. 5. with `active_set`, once the support has
//!           not changed for ten iterations, every other step takes the whole support as one block.
//!           Bounds: H_b = A_bᵀA_b, a quarter of it for the logistic loss, ½(1[c = c'] − 1/k)AᵀA for
//!           softmax; Q_bb. Lᵢ is its diagonal, Dᵢ its absolute row sum over all coordinates.
//! Cost:     selection O(p), GSQ O(p·τ) on cached factors; gradient O(nnz) or O(p·τ); matrix updates
//!           O(τ³); forest blocks O(edges). `Gsl` on variable blocks needs Dᵢ once: O(p·nnz).
//! Variants: `Blocks` (Order, Sort, Average; variable; forests by four orders, red-black, tree partition,
//!           comb, general), `Selection` (Random, Cyclic, Lipschitz, GS, GSL, GSD, GSQ),
//!           `Update` (Lb, Hb, Newton, cubic Newton, projected gradient, projected Newton, two-metric, tree).
//! Differs:  from the reference code: greedy rules on fixed blocks use squares, not |gᵢ|; the
//!           IHT of GSQ starts from −g/D; the two-metric projection scales each active coordinate by its
//!           own Lᵢ and scales its tolerance with x; message passing is linear in the block.
//!           From the paper: the active-set step is a reconstruction.
//! Choose:   for lasso and sparse logistic paths use `glm`, which is much faster on the clock;
//!           this toolkit is for graph-structured quadratics (tree updates), for bound constraints with
//!           active-set identification, and for comparing rules.
//! Fails on: wrong sizes → `Dimension`; NaN → `NonFinite`; a rule that does not fit the problem (a forest without
//!           a graph, a bound update without a bound) → `Setting`. The theory: linear rates need strong convexity;
//!           finite identification needs strict complementarity; GSQ on variable blocks is NP-hard, IHT is a heuristic.

pub mod forest;
mod partition;
mod problem;
mod select;
mod solve;
mod update;

pub use partition::{
    FixedPartition, ForestOrder, partition_by_colour, partition_comb, partition_into_forests,
};
pub use problem::BcdProblem;
pub use solve::{BcdState, solve};

use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};

use crate::SolveError;
use crate::error::check_setting;

/// The registry row.
pub const INFO: MethodInfo = MethodInfo {
    slug: "block-coordinate-descent",
    name: "Greedy BCD",
    family: "solver",
    paper: "Nutini et al., JMLR 2022, arXiv 1712.08859",
    command: "repro block-coordinate-descent",
    maturity: Maturity::Preview,
    summary: "minimises a block at a time, with greedy blocks, matrix updates and message passing on forests",
};

/// What is added to the smooth function.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prox {
    /// Nothing.
    None,
    /// `λ Σ xᵢ` on `x ≥ 0`.
    NonNegative {
        /// λ, at least 0.
        lambda: f64,
    },
    /// `λ ‖x‖₁`.
    L1 {
        /// λ, at least 0.
        lambda: f64,
    },
}

/// Where blocks come from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blocks {
    /// A partition made once, of blocks of `block_size`; the last may be smaller.
    Fixed(FixedPartition),
    /// Any `block_size` coordinates, chosen anew each time.
    Variable,
    /// Graph problems: a maximal forest, grown anew each time in that order.
    Forest(ForestOrder),
    /// Graph problems: colours of a greedy colouring; no two neighbours in a block.
    RedBlack,
    /// Graph problems: a partition into forests.
    TreePartition,
    /// Graph problems on a lattice of that width: two interleaved combs.
    Comb {
        /// Nodes per row of the lattice, at least 1.
        width: usize,
    },
    /// Any `p^(1/3)` coordinates: what an exact dense update can afford at the cost of a forest.
    General,
}

/// How a block is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Uniformly at random.
    Random,
    /// In turn; variable blocks: a fresh permutation for each sweep.
    Cyclic,
    /// At random, in proportion to the Lipschitz constants.
    Lipschitz,
    /// Gauss–Southwell: `‖g_b‖²`.
    Gs,
    /// `‖g_b‖²/L_b`; variable blocks: `gᵢ²/Dᵢ`.
    Gsl,
    /// `Σ gᵢ²/Lᵢ`.
    Gsd,
    /// `g_bᵀH_b⁻¹g_b`; variable blocks: ten steps of iterative hard thresholding. With a bound or an
    /// l1 term: the decrease of the separable model, `|gᵢdᵢ + ½Lᵢdᵢ²|`.
    Gsq,
}

/// How a block is updated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Update {
    /// `x_b − g_b/L_b`; with `adaptive`, L starts at 1 and doubles until the decrease is enough.
    Lipschitz {
        /// Whether L_b is found by doubling.
        adaptive: bool,
    },
    /// `x_b − H_b⁻¹g_b`, with the pseudo-inverse when H_b is singular.
    Matrix,
    /// Newton on the block with an Armijo search.
    Newton,
    /// Newton with the cubic term that bounds the third derivative (logistic loss).
    CubicNewton,
    /// Projected or proximal gradient with 1/L_b.
    ProjectedGradient,
    /// The quadratic model of the block minimised exactly under the bound or l1 term.
    ProjectedNewton,
    /// Two-metric projection (bound only).
    TwoMetric,
    /// Message passing: the exact minimum over a block that induces a forest.
    Tree,
}

/// Settings of [`solve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BcdSettings {
    /// Where blocks come from. Default: variable (the paper's recommendation).
    pub blocks: Blocks,
    /// How a block is chosen. Default: GSD, the best cheap rule in the paper's experiments.
    pub selection: Selection,
    /// How it is updated. Default: matrix.
    pub update: Update,
    /// Coordinates per block, at least 1. Paper: 5, 50, 100.
    pub block_size: usize,
    /// What is added to the smooth function. Default: nothing.
    pub prox: Prox,
    /// Limit of iterations. Paper: 500.
    pub max_iterations: usize,
    /// Ends when the projected gradient is at most this share of its first size, at least 0. 1e-8.
    pub tolerance: f64,
    /// Take the whole support as a block once it is stable. Default: no.
    pub active_set: bool,
    /// Largest support that is taken as one block. House default: 500.
    pub active_set_limit: usize,
    /// Seed of the random rules. Default 0.
    pub seed: u64,
}

impl Default for BcdSettings {
    fn default() -> Self {
        Self {
            blocks: Blocks::Variable,
            selection: Selection::Gsd,
            update: Update::Matrix,
            block_size: 5,
            prox: Prox::None,
            max_iterations: 500,
            tolerance: 1e-8,
            active_set: false,
            active_set_limit: 500,
            seed: 0,
        }
    }
}

impl BcdSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting(self.block_size > 0, "block_size", self.block_size, "at least 1")?;
        let tol = self.tolerance;
        check_setting(tol >= 0.0 && tol.is_finite(), "tolerance", tol, "at least 0")?;
        if let Prox::NonNegative { lambda } | Prox::L1 { lambda } = self.prox {
            check_setting(lambda >= 0.0 && lambda.is_finite(), "prox.lambda", lambda, "at least 0")?;
        }
        if let Blocks::Comb { width } = self.blocks {
            check_setting(width > 0, "blocks.width", width, "at least 1")?;
        }
        let bounded = matches!(self.prox, Prox::NonNegative { .. });
        let fits = match self.update {
            Update::ProjectedGradient | Update::ProjectedNewton => self.prox != Prox::None,
            Update::TwoMetric => bounded,
            _ => self.prox == Prox::None,
        };
        let name = format!("{:?} with {:?}", self.update, self.prox);
        check_setting(
            fits,
            "update",
            name,
            "projected-gradient, projected-newton (bound or l1), two-metric (bound); the others without prox",
        )?;
        check_setting(
            !self.active_set || self.prox != Prox::None,
            "active_set",
            self.active_set,
            "false without a bound or l1 term",
        )
    }
}
