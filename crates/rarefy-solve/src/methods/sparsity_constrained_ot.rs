//! k-sparse OT — optimal transport whose plan has at most k non-zeros in every column, and a router of tokens.
//!
//! Paper:    Liu, Puigcerver, Blondel, Sparsity-Constrained Optimal Transport, ICLR 2023, arXiv 2209.15466.
//!           Reference code: google-research/vmoe; NumPy port in PythonOT/POT (`ot.smooth`).
//! Problem:  min ⟨T, C⟩ + (γ/2)‖T‖² over T ≥ 0, T1 = a, Tᵀ1 = b, at most k non-zeros in each column;
//!           a: ℝ^m, b: ℝ^n, C: [m, n]. Router: logits [tokens, experts].
//! Method:   1. maximise the semi-dual (default) or the dual of [`crate::transport::smooth`] from 0, by L-BFGS or Adam.
//!           2. read the columns off: T_j = P_k((α − C_j)/γ; b_j), the projection onto the simplex of mass b_j of
//!           the k largest values. 3. optionally balance the rows on the support found.
//! Cost:     an evaluation O(mn) plus a sort of the candidates within b_j of each column's largest value; parallel.
//! Variants: `Regulariser` (k-sparse, squared l2, entropy), `Formulation` (semi-dual, dual), `Ascent` (L-BFGS, Adam),
//!           `Orientation` of the router.
//! Differs:  from the paper: columns keep only candidates above max − b_j, which changes nothing. From the reference
//!           code: best iterate of Adam instead of the last; the constant of its l2 term is left out.
//! Choose:   for plans that must be sparse by count. A convex problem and a certificate: squared l2 (k = m).
//!           [`crate::transport::exact()`] when γ does not matter; entropy when dense plans are fine.
//! Fails on: k = 0 → `Setting`. The primal is not convex: at a dual optimum where the k-th and the next entry tie,
//!           rows stay wrong (the residual says so) and the duality gap is real. Never read `Converged` as
//!           feasible without the residual.

use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};

use crate::error::{check_dimension, check_finite, check_setting};
use crate::linop::Csc;
use crate::transport::Transport;
use crate::transport::smooth::{self, Ascent, Formulation, Regulariser, SmoothPlan, SmoothSettings};
use crate::{Monitor, Solution, SolveError};

/// The registry row.
pub const INFO: MethodInfo = MethodInfo {
    slug: "sparsity-constrained-ot",
    name: "k-sparse OT",
    family: "solver",
    paper: "Liu, Puigcerver, Blondel, ICLR 2023, arXiv 2209.15466",
    command: "solve transport --method sparsity-constrained-ot",
    maturity: Maturity::Preview,
    summary: "transport with at most k non-zeros in every column of the plan, and a router of tokens to experts",
};

/// Settings of [`solve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KSparseSettings {
    /// Most non-zeros in a column, at least 1. House default: 2.
    pub k: usize,
    /// γ, above 0. Reference router: 1.
    pub gamma: f64,
    /// Which dual. Reference code: the semi-dual.
    pub formulation: Formulation,
    /// How it is maximised. POT: L-BFGS.
    pub ascent: Ascent,
    /// Largest marginal error, relative to the mass, at which it ends. House default: 1e-9.
    pub tolerance: f64,
    /// Limit of iterations. POT: 500.
    pub max_iterations: usize,
}

impl Default for KSparseSettings {
    fn default() -> Self {
        Self {
            k: 2,
            gamma: 1.0,
            formulation: Formulation::SemiDual,
            ascent: Ascent::Lbfgs,
            tolerance: 1e-9,
            max_iterations: 500,
        }
    }
}

impl KSparseSettings {
    fn smooth(&self) -> SmoothSettings {
        SmoothSettings {
            gamma: self.gamma,
            regulariser: Regulariser::KSparse(self.k),
            formulation: self.formulation,
            ascent: self.ascent,
            tolerance: self.tolerance,
            max_iterations: self.max_iterations,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting(self.k > 0, "k", self.k, "at least 1")?;
        self.smooth().validate()
    }
}

/// Transport with at most `k` non-zeros in every column. Objective: the dual value.
///
/// # Errors
/// [`SolveError::Setting`], [`SolveError::Breakdown`].
pub fn solve(
    problem: &Transport<'_>,
    settings: &KSparseSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<SmoothPlan>, SolveError> {
    settings.validate()?;
    smooth::solve(problem, &settings.smooth(), monitor)
}

/// Scales rows to `a`, then columns to `b`, that many times, on the support of `plan`: never a new
/// non-zero. Columns come out exact; returns the plan and the l1 error of its rows, which stays positive when the
/// support carries no plan.
///
/// # Errors
/// [`SolveError::Dimension`].
pub fn balance(plan: &Csc, a: &[f64], b: &[f64], rounds: usize) -> Result<(Csc, f64), SolveError> {
    let (m, n) = (crate::LinOp::n_rows(plan), crate::LinOp::n_cols(plan));
    check_dimension("a", m, "rows of the plan", a.len())?;
    check_dimension("b", n, "columns of the plan", b.len())?;
    let mut entries = vec![];
    for j in 0..n {
        let (rows, values) = plan.column(j);
        rows.iter()
            .zip(values)
            .filter(|(_, v)| **v > 0.0)
            .for_each(|(i, v)| entries.push((*i as usize, j, *v)));
    }
    let sums = |entries: &[(usize, usize, f64)]| {
        let (mut rows, mut cols) = (vec![0.0; m], vec![0.0; n]);
        for (i, j, v) in entries {
            rows[*i] += v;
            cols[*j] += v;
        }
        (rows, cols)
    };
    for _ in 0..rounds {
        let (rows, _) = sums(&entries);
        entries.iter_mut().for_each(|(i, _, v)| *v *= a[*i] / rows[*i]);
        let (_, cols) = sums(&entries);
        for (_, j, v) in &mut entries {
            *v = if cols[*j] > 0.0 { *v * (b[*j] / cols[*j]) } else { *v };
        }
    }
    let error = sums(&entries).0.iter().zip(a).map(|(s, a)| (s - a).abs()).sum();
    Ok((Csc::from_triplets(m, n, &entries)?, error))
}

/// Who chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orientation {
    /// Columns are experts: at most k tokens each.
    TokensPerExpert,
    /// Columns are tokens: at most k experts each.
    ExpertsPerToken,
}

/// Settings of [`route`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterSettings {
    /// Who chooses. Reference code: experts choose tokens.
    pub orientation: Orientation,
    /// Experts choosing: k is this times tokens/experts, rounded up to a multiple of 4. Above 0; reference code: 1.25.
    pub capacity_factor: f64,
    /// Tokens choosing: k, at least 1.
    pub selected_experts: usize,
    /// γ, above 0. Reference code: 1.
    pub gamma: f64,
    /// Rate of Adam, above 0. Reference code: 1e-2.
    pub rate: f64,
    /// Steps of Adam. Reference code: 20.
    pub iterations: usize,
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            orientation: Orientation::TokensPerExpert,
            capacity_factor: 1.25,
            selected_experts: 1,
            gamma: 1.0,
            rate: 1e-2,
            iterations: 20,
        }
    }
}

/// Where tokens go.
#[derive(Debug, Clone)]
pub struct Routing {
    /// The plan, `[tokens, experts]`: who processes what.
    pub dispatch: Csc,
    /// Softmax of the logits over experts, `[tokens, experts]` row-major: combine the outputs with these.
    pub gates: Vec<f64>,
    /// Most tokens an expert may receive (experts choosing), or experts a token may (tokens choosing).
    pub k: usize,
}

/// Routes tokens to experts: k-sparse transport of one unit per token to `tokens/experts` units per
/// expert, at the cost minus softmax(logits).
///
/// # Errors
/// [`SolveError::Empty`], [`SolveError::Dimension`] unless `logits` has `tokens·experts` entries,
/// [`SolveError::NonFinite`], [`SolveError::Setting`].
pub fn route(logits: &[f64], experts: usize, settings: &RouterSettings) -> Result<Routing, SolveError> {
    crate::error::check_not_empty("logits", "expert", experts.min(logits.len()))?;
    let tokens = logits.len() / experts;
    check_dimension("logits", tokens * experts, "tokens times experts", logits.len())?;
    check_finite("logits", logits)?;
    let f = settings.capacity_factor;
    check_setting(f > 0.0 && f.is_finite(), "capacity_factor", f, "above 0 and finite")?;
    let mut gates = logits.to_vec();
    for row in gates.chunks_exact_mut(experts) {
        let top = row.iter().fold(f64::NEG_INFINITY, |t, v| t.max(*v));
        row.iter_mut().for_each(|v| *v = (*v - top).exp());
        let s: f64 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= s);
    }
    let (token, expert) = (vec![1.0; tokens], vec![tokens as f64 / experts as f64; experts]);
    let (k, cost) = match settings.orientation {
        Orientation::TokensPerExpert => {
            let k = (f * tokens as f64 / experts as f64).ceil() as usize;
            (k.next_multiple_of(4).min(tokens), gates.iter().map(|g| -g).collect::<Vec<_>>())
        }
        Orientation::ExpertsPerToken => {
            let turned = (0..experts).flat_map(|e| (0..tokens).map(move |t| (t, e)));
            (settings.selected_experts.min(experts), turned.map(|(t, e)| -gates[t * experts + e]).collect())
        }
    };
    let s = KSparseSettings {
        k,
        gamma: settings.gamma,
        ascent: Ascent::Adam { rate: settings.rate },
        max_iterations: settings.iterations,
        ..Default::default()
    };
    let by_expert = settings.orientation == Orientation::TokensPerExpert;
    let (a, b) = if by_expert { (&token, &expert) } else { (&expert, &token) };
    let solved = solve(&Transport::new(a, b, &cost)?, &s, &mut Monitor::silent())?;
    let dispatch = if by_expert {
        solved.x.plan
    } else {
        let mut entries = vec![];
        for t in 0..tokens {
            let (experts, values) = solved.x.plan.column(t);
            experts.iter().zip(values).for_each(|(e, v)| entries.push((t, *e as usize, *v)));
        }
        Csc::from_triplets(tokens, experts, &entries)?
    };
    Ok(Routing { dispatch, gates, k })
}
