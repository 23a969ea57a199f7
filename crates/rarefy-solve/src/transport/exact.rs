//! Exact transport by the network simplex on the bipartite graph.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::Transport;
use super::exp::{ARCH, LANES};
use crate::error::check_setting;
use crate::linop::Csr;
use crate::linop::dense::dot;
use crate::{Monitor, Residual, Solution, SolveError, Status};

/// Settings of [`exact`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExactSettings {
    /// Limit of pivots. House default: ten million.
    pub max_iterations: usize,
    /// Arcs looked at before the best of them enters, at least 1, rounded up to whole rows. House default: 8192.
    pub block: usize,
}

impl Default for ExactSettings {
    fn default() -> Self {
        Self { max_iterations: 10_000_000, block: 8192 }
    }
}

impl ExactSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting(self.block > 0, "block", self.block, "at least 1")
    }
}

/// An optimal plan and its certificate.
#[derive(Debug, Clone)]
pub struct ExactPlan {
    /// `P: [m, n]`, all points: a vertex, at most `m + n − 1` entries.
    pub plan: Csr,
    /// `f: ℝ^m` with `f ⊕ g ≤ C`; 0 at points without mass.
    pub f: Vec<f64>,
    /// `g: ℝ^n`; 0 at points without mass.
    pub g: Vec<f64>,
    /// `⟨C, P⟩`.
    pub cost: f64,
}

/// A spanning tree: rows `0..m`, columns `m..m+n`, the root `m + n`. Arcs run from rows to columns, from rows to the
/// root and from the root to columns: the arc of a row points to its parent, that of a column from it.
struct Tree<'a> {
    cost: &'a [f64],
    m: usize,
    n: usize,
    big: f64,
    parent: Vec<u32>,
    child: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
    depth: Vec<u32>,
    flow: Vec<f64>,
    potential: Vec<f64>,
    stack: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl<'a> Tree<'a> {
    fn new(cost: &'a [f64], a: &[f64], b: &[f64]) -> Self {
        let (m, n) = (a.len(), b.len());
        let nodes = m + n + 1;
        let largest = cost.iter().fold(0.0_f64, |l, c| l.max(c.abs()));
        let big = (2.0 * largest).max(f64::MIN_POSITIVE) * nodes as f64;
        let mut potential = vec![0.0; nodes];
        potential[m..m + n].fill(big);
        let mut flow: Vec<f64> = a.iter().chain(b).copied().collect();
        flow.push(0.0);
        let mut tree = Self {
            cost,
            m,
            n,
            big,
            parent: vec![(m + n) as u32; nodes],
            child: vec![NONE; nodes],
            next: vec![NONE; nodes],
            previous: vec![NONE; nodes],
            depth: vec![1; nodes],
            flow,
            potential,
            stack: vec![],
        };
        tree.depth[m + n] = 0;
        (0..m + n).for_each(|u| tree.attach(u, m + n));
        tree
    }

    fn attach(&mut self, u: usize, parent: usize) {
        let first = self.child[parent];
        self.next[u] = first;
        self.previous[u] = NONE;
        if first != NONE {
            self.previous[first as usize] = u as u32;
        }
        self.child[parent] = u as u32;
        self.parent[u] = parent as u32;
    }

    fn detach(&mut self, u: usize) {
        let (before, after) = (self.previous[u], self.next[u]);
        if before == NONE {
            self.child[self.parent[u] as usize] = after;
        } else {
            self.next[before as usize] = after;
        }
        if after != NONE {
            self.previous[after as usize] = before;
        }
    }

    /// Cost of the arc between a node and its parent.
    fn arc(&self, u: usize) -> f64 {
        let p = self.parent[u] as usize;
        let (row, col) = if u < self.m { (u, p) } else { (p, u) };
        if p < self.m + self.n {
            self.cost[row * self.n + col - self.m]
        } else if u < self.m {
            0.0
        } else {
            self.big
        }
    }

    /// Brings the arc from a row to a column into the tree. `false` when no arc of the cycle limits the flow.
    fn pivot(&mut self, row: usize, col: usize) -> bool {
        let (source, target) = (row, self.m + col);
        let (mut u, mut v) = (source, target);
        while u != v {
            let (du, dv) = (self.depth[u], self.depth[v]);
            if du >= dv {
                u = self.parent[u] as usize;
            }
            if dv >= du {
                v = self.parent[v] as usize;
            }
        }
        let join = u;
        // The last blocking arc along the cycle from the join leaves: the tree stays strongly feasible.
        let (mut delta, mut out, mut on_source_side) = (f64::INFINITY, usize::MAX, true);
        let mut u = source;
        while u != join {
            if u < self.m && self.flow[u] < delta {
                (delta, out) = (self.flow[u], u);
            }
            u = self.parent[u] as usize;
        }
        let mut u = target;
        while u != join {
            if u >= self.m && self.flow[u] <= delta {
                (delta, out, on_source_side) = (self.flow[u], u, false);
            }
            u = self.parent[u] as usize;
        }
        if out == usize::MAX {
            return false;
        }
        for (start, sign) in [(source, -delta), (target, delta)] {
            let mut u = start;
            while u != join {
                self.flow[u] += if u < self.m { sign } else { -sign };
                u = self.parent[u] as usize;
            }
        }
        let reduced = self.cost[row * self.n + col] + self.potential[source] - self.potential[target];
        let (inner, outer, sigma) =
            if on_source_side { (source, target, -reduced) } else { (target, source, reduced) };
        let (mut u, mut parent, mut flow) = (inner, outer, delta);
        loop {
            let (old_parent, old_flow) = (self.parent[u] as usize, self.flow[u]);
            self.detach(u);
            self.attach(u, parent);
            self.flow[u] = flow;
            if u == out {
                break;
            }
            (parent, flow, u) = (u, old_flow, old_parent);
        }
        self.stack.push(inner as u32);
        while let Some(u) = self.stack.pop() {
            let u = u as usize;
            self.potential[u] += sigma;
            self.depth[u] = self.depth[self.parent[u] as usize] + 1;
            let mut c = self.child[u];
            while c != NONE {
                self.stack.push(c);
                c = self.next[c as usize];
            }
        }
        true
    }

    /// Potentials from the root down, without the rounding of many updates.
    fn refresh(&mut self) {
        self.stack.push((self.m + self.n) as u32);
        while let Some(p) = self.stack.pop() {
            let mut c = self.child[p as usize];
            while c != NONE {
                let u = c as usize;
                let step = self.arc(u);
                self.potential[u] = self.potential[p as usize] + if u < self.m { -step } else { step };
                self.stack.push(c);
                c = self.next[u];
            }
        }
    }

    /// The arc of a row with the least reduced cost.
    fn price(&self, row: usize) -> (f64, usize) {
        let cost = &self.cost[row * self.n..(row + 1) * self.n];
        let potential = &self.potential[self.m..self.m + self.n];
        let least = ARCH.dispatch(
            #[inline(always)]
            || {
                let mut lanes = [f64::INFINITY; LANES];
                let (cs, ps) = (cost.chunks_exact(LANES), potential.chunks_exact(LANES));
                let mut least = f64::INFINITY;
                for (c, p) in cs.remainder().iter().zip(ps.remainder()) {
                    let r = c - p;
                    least = if r < least { r } else { least };
                }
                for (c, p) in cs.zip(ps) {
                    for l in 0..LANES {
                        let r = c[l] - p[l];
                        lanes[l] = if r < lanes[l] { r } else { lanes[l] };
                    }
                }
                lanes.into_iter().fold(least, |a, b| if b < a { b } else { a })
            },
        );
        (least + self.potential[row], row)
    }

    fn column_of(&self, row: usize, least: f64) -> Option<usize> {
        let cost = &self.cost[row * self.n..(row + 1) * self.n];
        let at = &self.potential[self.m..self.m + self.n];
        cost.iter().zip(at).position(|(c, p)| (c - p) + self.potential[row] <= least)
    }
}

/// Exact transport `min ⟨C, P⟩` over `U(a, b)`: network simplex with strongly feasible trees, blocks of rows priced with
/// vector instructions. Uniform weights run on whole numbers, so an assignment comes out exactly.
///
/// Time about `(m + n)²` to `(m + n)³` in practice, exponential in theory; memory O(m + n). Ends `Converged` at
/// an optimal vertex with its dual certificate. Objective: the cost; residuals: relative duality gap, then
/// marginal error in l1.
///
/// # Errors
/// [`SolveError::Setting`]; [`SolveError::Breakdown`] when costs are too large for doubles.
pub fn exact(
    problem: &Transport<'_>,
    settings: &ExactSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<ExactPlan>, SolveError> {
    settings.validate()?;
    let begin = monitor.seconds();
    let (m, n) = (problem.a().len(), problem.b().len());
    let equal = |w: &[f64]| w.iter().all(|v| (v - w[0]).abs() <= 1e-14 * w[0]);
    let (unit, a, b) = if equal(problem.a()) && equal(problem.b()) {
        let mass: f64 = problem.a().iter().sum();
        (mass / (m as f64 * n as f64), vec![n as f64; m], vec![m as f64; n])
    } else {
        (1.0, problem.a().to_vec(), problem.b().to_vec())
    };
    let mut tree = Tree::new(problem.cost(), &a, &b);
    if !tree.big.is_finite() {
        return Err(SolveError::breakdown(
            "exact transport",
            "costs overflow",
            "divide the costs by their largest",
        ));
    }
    let tolerance = 1e-14 * tree.big / (m + n) as f64 + f64::EPSILON * tree.big;
    let stuck = || {
        SolveError::breakdown("exact transport", "a cycle without limit", "divide the costs by their largest")
    };
    // Each column first takes its cheapest row.
    let mut cheapest = vec![(f64::INFINITY, 0); n];
    for (i, row) in problem.cost().chunks_exact(n).enumerate() {
        cheapest.iter_mut().zip(row).for_each(|(best, c)| *best = if *c < best.0 { (*c, i) } else { *best });
    }
    let (mut pivots, mut trace) = (0, vec![]);
    for (j, (c, i)) in cheapest.into_iter().enumerate() {
        if c + tree.potential[i] - tree.potential[m + j] < -tolerance {
            pivots += 1;
            if !tree.pivot(i, j) {
                return Err(stuck());
            }
        }
    }
    let rows_per_block = settings.block.div_ceil(n);
    let (mut row, mut is_fresh) = (0, false);
    let status = loop {
        if pivots % 1024 == 0
            && let ControlFlow::Break(status) = monitor.record(&mut trace, pivots, 0.0, f64::INFINITY)
        {
            break status;
        }
        if pivots >= settings.max_iterations {
            break Status::MaxIterations;
        }
        let (mut best, mut seen) = ((-tolerance, usize::MAX), 0);
        while seen < m {
            let most = rows_per_block.min(m - seen);
            for _ in 0..most {
                let found = tree.price(row);
                if found.0 < best.0 {
                    best = found;
                }
                row = if row + 1 == m { 0 } else { row + 1 };
            }
            seen += most;
            if best.1 != usize::MAX {
                break;
            }
        }
        if best.1 == usize::MAX {
            if is_fresh {
                break Status::Converged;
            }
            tree.refresh();
            is_fresh = true;
            continue;
        }
        is_fresh = false;
        pivots += 1;
        let Some(col) = tree.column_of(best.1, best.0) else { return Err(stuck()) };
        if !tree.pivot(best.1, col) {
            return Err(stuck());
        }
    };
    let mut entries = vec![];
    let (mut cost, mut row_sums, mut col_sums) = (0.0, vec![0.0; m], vec![0.0; n]);
    for u in 0..m + n {
        let p = tree.parent[u] as usize;
        if p == m + n || tree.flow[u] <= 0.0 {
            continue;
        }
        let (i, j) = if u < m { (u, p - m) } else { (p, u - m) };
        let v = tree.flow[u] * unit;
        cost += v * problem.cost()[i * n + j];
        row_sums[i] += v;
        col_sums[j] += v;
        entries.push((problem.rows()[i], problem.cols()[j], v));
    }
    let f: Vec<f64> = tree.potential[..m].iter().map(|p| -p).collect();
    let g = &tree.potential[m..m + n];
    let dual = dot(problem.a(), &f) + dot(problem.b(), g);
    let off = |s: &[f64], w: &[f64]| -> f64 { s.iter().zip(w).map(|(s, w)| (s - w).abs()).sum() };
    let gap = (cost - dual).abs() / cost.abs().max(dual.abs()).max(f64::MIN_POSITIVE);
    let residuals = vec![
        Residual { name: "duality gap, relative", value: gap },
        Residual { name: "marginals, l1", value: off(&row_sums, problem.a()) + off(&col_sums, problem.b()) },
    ];
    if let Some(last) = trace.last_mut() {
        (last.objective, last.residual) = (cost, gap);
    }
    let (rows, cols) = problem.shape();
    let x = ExactPlan {
        plan: Csr::from_triplets(rows, cols, &entries)?,
        f: problem.expand_side(&f, true, 0.0),
        g: problem.expand_side(g, false, 0.0),
        cost,
    };
    Ok(Solution {
        x,
        status,
        objective: cost,
        residuals,
        iterations: pivots,
        trace,
        seconds: monitor.seconds() - begin,
    })
}
