//! Robust AltMin — completes a low-rank matrix from some of its entries, in time nearly linear in them.
//!
//! Paper:    Gu, Song, Yin, Zhang, Low Rank Matrix Completion via Robust Alternating Minimization in Nearly Linear
//!           Time, ICLR 2024, arXiv 2302.11068; base: Jain, Netrapalli, Sanghavi, STOC 2013. Reference code: none.
//! Problem:  min over U: [m, k], V: [n, k] of Σ_Ω w_ij (x_ij − U_iᵀV_j)² + λ(Σ_i w_i ‖U_i‖² + Σ_j w_j ‖V_j‖²), where
//!           w_i is the weight observed in row i (its number of entries when all weights are 1), w_j in column j,
//!           and x is M less the offsets asked for ([`Centre`]). Not convex.
//! Method:   1. U = leading left singular vectors of P_Ω(M)/p (randomised: block k + 10, 4 power iterations); rows
//!           longer than 2μ√(k/m) set to 0; orthonormalised. 2. alternately, given orthonormal U, every column's least
//!           squares problem for V̂; V = orthonormal basis of V̂; the same for Û. X = Û·Vᵀ. A row is solved only to
//!           accuracy ε_t = min(0.1, 0.1·relative residual on Ω), by preconditioned conjugate gradients.
//! Cost:     a round 2·nnz·k multiplications per CG step and half-step (2 to 5 steps) plus O((m + n)k²); exact:
//!           nnz·k² + (m + n)k³/3. Memory 3 copies of the entries. Rows in parallel.
//! Variants: `Mode`: exact (the base algorithm, everyday ALS), sketched (a preconditioner for each row, OSNAP-2 with
//!           4k + 8 rows), shared (the identity for all rows, right because the fixed factor is orthonormal; rows with
//!           fewer than 3k entries are solved directly). `split`: fresh entries for each half-step, as the theory wants.
//!           Sibling baseline: [`soft_impute()`].
//! Differs:  from the paper: all entries in every step unless `split`; the ridge (paper: none), taken in the basis of
//!           singular vectors, where it is diagonal and the factor stays orthonormal; a row runs all its CG steps while
//!           its slice of the factor is in cache, instead of one step for all rows. Constants of clip and sketch are
//!           ours. Rows with fewer than k entries get the shortest solution, rows without any 0.
//! Choose:   shared for large k or many entries; exact for k up to about 10, where it is as fast. [`soft_impute()`]
//!           when the problem should be convex or the rank is unknown.
//! Fails on: a rank of 0 or above min(m, n), a negative ridge → `Setting`; places named twice → `Invalid`; overflow →
//!           `Breakdown`. Guarantee: recovery from Õ(κ²μ²nk^4.5) entries with splitting; without it only observed. A
//!           spiky row, or fewer than about 3k entries a row, breaks recovery: the residual on Ω may still be small, so
//!           hold entries out.     Evidence: `matrix-completion.json` (golden), `rarefy repro matrix-completion`.

mod basis;
mod observed;
mod regress;
mod soft_impute;

use std::ops::ControlFlow;

use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};

pub use observed::{Centre, Observed, Offsets};
pub use soft_impute::{SoftImputeSettings, largest_regularisation, soft_impute};

use crate::error::{check_dimension, check_finite, check_setting};
use crate::linop::dense::dot;
use crate::{Monitor, Residual, Solution, SolveError, Status};
use regress::HalfStep;

/// The registry row.
pub const INFO: MethodInfo = MethodInfo {
    slug: "matrix-completion",
    name: "Robust AltMin",
    family: "solver",
    paper: "Gu, Song, Yin, Zhang, ICLR 2024, arXiv 2302.11068",
    command: "solve complete --method matrix-completion",
    maturity: Maturity::Preview,
    summary: "completes a low-rank matrix by alternating least squares solved only as well as the round needs",
};

/// How the least squares problem of a row is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Normal equations: alternating least squares as usual.
    Exact,
    /// Conjugate gradients behind a sketched QR of the row's own matrix.
    Sketched,
    /// Conjugate gradients behind one preconditioner for all rows.
    Shared,
}

/// Accuracy of the approximate solves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accuracy {
    /// `min(0.1, 0.1·relative residual on Ω)`, and ten times finer whenever a round brings nothing.
    Schedule,
    /// The same in all rounds, in (0, 1): the error then stays at about that value.
    Fixed(f64),
}

/// Which rows of the first factor are too long.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clip {
    /// None.
    Off,
    /// Above `2μ√(k/m)`, μ from the 99.9 % quantile of the rows.
    Estimated,
    /// Above `2μ√(k/m)` for this μ, above 0.
    Incoherence(f64),
}

/// Settings of [`solve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompletionSettings {
    /// k, in 1..=min(m, n). House default: 10.
    pub rank: usize,
    /// Limit of rounds, each a half-step for columns and one for rows. Specification: 50.
    pub rounds: usize,
    /// λ, 0 or more. Paper: 0; data with noise want some.
    pub ridge: f64,
    /// How rows are solved. House default: shared.
    pub mode: Mode,
    /// How accurately. House default: the schedule.
    pub accuracy: Accuracy,
    /// Rows of the first factor set to 0. Paper: 2μ√(k/m).
    pub clip: Clip,
    /// What is taken off first. Paper: nothing.
    pub centre: Centre,
    /// Fresh entries for every half-step; the number of rounds then divides them. Needs far more entries; the theory.
    pub split: bool,
    /// Relative residual on Ω at which it ends, 0 or more. House default: 1e-9.
    pub tolerance: f64,
    /// Relative decrease of the objective below which a round has brought nothing, 0 or more. House default: 1e-7.
    pub improvement: f64,
    /// With held-out entries: rounds without a better error on them after which it ends, at least 1. House: 3.
    pub patience: usize,
    /// Seed of the start, the sketches and the split.
    pub seed: u64,
}

impl Default for CompletionSettings {
    fn default() -> Self {
        Self {
            rank: 10,
            rounds: 50,
            ridge: 0.0,
            mode: Mode::Shared,
            accuracy: Accuracy::Schedule,
            clip: Clip::Estimated,
            centre: Centre::None,
            split: false,
            tolerance: 1e-9,
            improvement: 1e-7,
            patience: 3,
            seed: 0,
        }
    }
}

pub(super) fn check_centre(centre: Centre) -> Result<(), SolveError> {
    let Centre::Biases { damping } = centre else { return Ok(()) };
    check_setting(damping >= 0.0 && damping.is_finite(), "damping", damping, "0 or more and finite")
}

impl CompletionSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self) -> Result<(), SolveError> {
        check_setting(self.rank > 0, "rank", self.rank, "at least 1")?;
        let at_least_0 = |v: f64| v >= 0.0 && v.is_finite();
        check_setting(at_least_0(self.ridge), "ridge", self.ridge, "0 or more and finite")?;
        check_setting(at_least_0(self.tolerance), "tolerance", self.tolerance, "0 or more and finite")?;
        check_setting(at_least_0(self.improvement), "improvement", self.improvement, "0 or more and finite")?;
        check_setting(self.patience > 0, "patience", self.patience, "at least 1")?;
        check_setting(self.rounds < 1 << 31, "rounds", self.rounds, "below 2^31")?;
        check_centre(self.centre)?;
        if let Accuracy::Fixed(eps) = self.accuracy {
            check_setting(eps > 0.0 && eps < 1.0, "accuracy", eps, "above 0 and below 1")?;
        }
        if let Clip::Incoherence(mu) = self.clip {
            check_setting(mu > 0.0 && mu.is_finite(), "clip", mu, "above 0 and finite")?;
        }
        Ok(())
    }
}

/// `X = offsets + U·Vᵀ`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Factors {
    /// k.
    pub rank: usize,
    /// `[m, k]`, row-major.
    pub u: Vec<f64>,
    /// `[n, k]`, row-major; orthonormal columns without a ridge.
    pub v: Vec<f64>,
    /// What was taken off the entries.
    pub offsets: Offsets,
    /// Rounds after which these factors stood.
    pub round: usize,
    /// Steps of conjugate gradients, over all rows and rounds.
    pub cg_steps: usize,
}

impl Factors {
    /// The completed entry; `None` outside the matrix. A row or column that was never observed has only its
    /// offset.
    #[must_use]
    pub fn predict(&self, row: usize, column: usize) -> Option<f64> {
        let inside = row < self.offsets.row.len() && column < self.offsets.col.len();
        inside.then(|| self.offsets.at(row, column) + self.low_rank(row, column))
    }

    fn low_rank(&self, i: usize, j: usize) -> f64 {
        let k = self.rank;
        dot(&self.u[i * k..(i + 1) * k], &self.v[j * k..(j + 1) * k])
    }

    /// Root mean square error on the entries, weighted.
    ///
    /// # Errors
    /// [`SolveError::Dimension`].
    pub fn score(&self, on: &Observed) -> Result<f64, SolveError> {
        check_dimension("on", self.offsets.row.len(), "rows of the matrix", on.n_rows())?;
        check_dimension("on", self.offsets.col.len(), "columns of the matrix", on.n_cols())?;
        let (mut sum, mut total) = (0.0, 0.0);
        for (at, (i, j, v)) in on.entries().enumerate() {
            let w = on.weight(at);
            sum += w * (v - self.offsets.at(i, j) - self.low_rank(i, j)).powi(2);
            total += w;
        }
        Ok((sum / total).sqrt())
    }
}

/// The fixed side of a half-step: an orthonormal basis, and what the ridge weighs in it.
struct Side {
    /// Row-major.
    basis: Vec<f64>,
    /// Singular values of the balanced factor; all 1 without a ridge.
    scale: Vec<f64>,
    penalty: Vec<f64>,
}

impl Side {
    /// From columns: the balanced factor with a ridge, any factor without.
    fn new(mut columns: Vec<f64>, rows: usize, k: usize, ridge: f64) -> Self {
        if ridge == 0.0 {
            basis::orthonormalise(&mut columns, rows, k);
            let basis = basis::to_rows(&columns, rows, k);
            return Self { basis, scale: vec![1.0; k], penalty: vec![0.0; k] };
        }
        let scale = basis::left_singular(&mut columns, rows, k);
        let least = 1e-10 * scale[0];
        let penalty = scale.iter().map(|s| if *s > least { ridge / (s * s) } else { f64::INFINITY });
        Self { basis: basis::to_rows(&columns, rows, k), penalty: penalty.collect(), scale }
    }

    /// From `Z` with `X = Z·basisᵀ`: divides by the scale to balance.
    fn next(&self, z: &[f64], k: usize, ridge: f64) -> Self {
        let rows = z.len() / k;
        let mut columns = basis::to_columns(z, rows, k);
        for (column, s) in columns.chunks_exact_mut(rows.max(1)).zip(&self.scale) {
            column.iter_mut().for_each(|v| *v = if *s > 0.0 { *v / s } else { 0.0 });
        }
        Self::new(columns, rows, k, ridge)
    }

    /// `Σ_j w_j ‖S·q_j‖²`.
    fn size(&self, side: &observed::Slices) -> f64 {
        let k = self.scale.len();
        (0..side.len())
            .map(|j| {
                let (places, _, weights) = side.slice(j);
                let load = weights.map_or(places.len() as f64, |w| w.iter().sum());
                let row = &self.basis[j * k..(j + 1) * k];
                load * row.iter().zip(&self.scale).map(|(q, s)| (q * s).powi(2)).sum::<f64>()
            })
            .sum()
    }
}

fn start(data: &Observed, settings: &CompletionSettings) -> Side {
    let (m, k) = (data.n_rows(), settings.rank);
    let (mut u, sigma) = basis::leading(&data.by_row, &data.by_col, k, settings.seed);
    let mu = match settings.clip {
        Clip::Off => f64::INFINITY,
        Clip::Estimated => basis::incoherence(&u, m, k),
        Clip::Incoherence(mu) => mu,
    };
    basis::clip(&mut u, m, k, 2.0 * mu * (k as f64 / m as f64).sqrt());
    if settings.ridge > 0.0 {
        // 1/p of the total weight; balanced, so the root of the singular value on either side.
        let total: f64 = (0..data.nnz()).map(|at| data.weight(at)).sum();
        let p = total / (m as f64 * data.n_cols() as f64);
        for (column, s) in u.chunks_exact_mut(m).zip(&sigma) {
            column.iter_mut().for_each(|v| *v *= (s / p).sqrt());
        }
    }
    Side::new(u, m, k, settings.ridge)
}

/// Completes `data`. `held_out` entries of the same matrix decide when to stop, and the best factors on them are
/// returned; `from` is a warm start (the first round uses its `u` only). Objective: the one of the module; residual: relative to the
/// entries, on Ω.
///
/// # Errors
/// [`SolveError::Setting`], [`SolveError::Dimension`] for held-out entries or a start of another shape,
/// [`SolveError::NonFinite`] in the start, [`SolveError::Invalid`] when a split leaves a step without entries,
/// [`SolveError::Breakdown`] on overflow.
pub fn solve(
    data: &Observed,
    held_out: Option<&Observed>,
    from: Option<&Factors>,
    settings: &CompletionSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Factors>, SolveError> {
    settings.validate()?;
    let (m, n, k) = (data.n_rows(), data.n_cols(), settings.rank);
    check_setting(k <= m.min(n), "rank", k, "at most the smaller dimension of the matrix")?;
    if let Some(h) = held_out {
        check_dimension("held_out", m, "rows of the matrix", h.n_rows())?;
        check_dimension("held_out", n, "columns of the matrix", h.n_cols())?;
    }
    if let Some(f) = from {
        check_dimension("from", m * k, "rows times rank", f.u.len())?;
        check_dimension("from", n * k, "columns times rank", f.v.len())?;
        check_finite("from", f.u.iter().chain(&f.v))?;
    }
    let offsets = Offsets::fit(data, settings.centre);
    let data = data.without(&offsets);
    let parts = if settings.split { split(&data, settings)? } else { vec![] };
    let part = |step: usize| parts.get(step).unwrap_or(&data);
    let total: f64 = data.by_row.values.iter().enumerate().map(|(at, v)| data.weight(at) * v * v).sum();
    if !total.is_finite() {
        return Err(overflow());
    }
    let mut left = match from {
        Some(f) => Side::new(basis::to_columns(&f.u, m, k), m, k, settings.ridge),
        None => start(part(0), settings),
    };
    let mut now =
        Factors { rank: k, u: vec![0.0; m * k], v: vec![0.0; n * k], offsets, round: 0, cg_steps: 0 };
    let (mut best, mut best_error, mut since_best) = (None, f64::INFINITY, 0);
    let (mut trace, mut status) = (vec![], Status::MaxIterations);
    let (mut relative, mut objective, mut finer) = (1.0_f64, f64::INFINITY, 1.0);
    if let Some(f) = from
        && total > 0.0
    {
        // A good start deserves an accurate first round.
        (now.u, now.v) = (f.u.clone(), f.v.clone());
        relative = (sum_of_squares(&data, &now) / total).sqrt().min(1.0);
    }
    for round in 0..settings.rounds {
        let accuracy = match settings.accuracy {
            Accuracy::Schedule => (0.1 * finer * relative.min(1.0)).max(1e-15),
            Accuracy::Fixed(eps) => eps,
        };
        let regress = |side: &Side, slices: &observed::Slices, step: usize| {
            let seed = settings.seed.wrapping_add(step as u64);
            let (rank, mode) = (k, settings.mode);
            HalfStep { design: &side.basis, rank, penalty: &side.penalty, mode, accuracy, seed }.run(slices)
        };
        let v = regress(&left, &part(2 * round + 1).by_col, 2 * round + 1);
        let right = left.next(&v.factor, k, settings.ridge);
        let u = regress(&right, &part(2 * round + 2).by_row, 2 * round + 2);
        left = right.next(&u.factor, k, settings.ridge);
        now.cg_steps += v.steps + u.steps;
        now.round = round + 1;
        (now.u, now.v) = balanced(&u.factor, &right, k);
        let squares = if settings.split { sum_of_squares(&data, &now) } else { u.squares };
        let before = objective;
        objective = squares;
        if settings.ridge > 0.0 {
            objective += u.ridge + settings.ridge * right.size(&data.by_col);
        }
        relative = if total > 0.0 { (squares / total).sqrt() } else { 0.0 };
        if !objective.is_finite() {
            return Err(overflow());
        }
        let stop = monitor.record(&mut trace, round + 1, objective, relative);
        if let Some(h) = held_out {
            let error = now.score(h)?;
            since_best += 1;
            if error < best_error {
                (best, best_error, since_best) = (Some((now.clone(), objective, relative)), error, 0);
            }
        }
        let rests = before - objective <= settings.improvement * objective;
        if relative <= settings.tolerance || since_best >= settings.patience {
            status = Status::Converged;
            break;
        }
        if rests && !settings.split && before.is_finite() {
            let is_exact = settings.mode == Mode::Exact || accuracy <= 1e-8;
            if is_exact || settings.accuracy != Accuracy::Schedule {
                let rises = objective > before * (1.0 + 1e-9);
                status = if is_exact && !rises { Status::Converged } else { Status::Stalled };
                break;
            }
            finer *= 0.1;
        }
        if let ControlFlow::Break(why) = stop {
            status = why;
            break;
        }
    }
    let (cg_steps, iterations) = (now.cg_steps, trace.len());
    if let Some((factors, o, r)) = best {
        (now, objective, relative) = (factors, o, r);
        now.cg_steps = cg_steps;
    }
    let mut residuals = vec![Residual { name: "relative residual on the entries", value: relative }];
    if held_out.is_some() {
        residuals.push(Residual { name: "error on held-out entries", value: best_error });
    }
    Ok(Solution { x: now, status, objective, residuals, iterations, trace, seconds: monitor.seconds() })
}

/// `Û`, `V` as the paper returns them; with a ridge, both sides equally long.
fn balanced(z: &[f64], right: &Side, k: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut u, mut v) = (z.to_vec(), right.basis.clone());
    for l in 0..k {
        let s = right.scale[l];
        u.iter_mut().skip(l).step_by(k).for_each(|u| *u = if s > 0.0 { *u / s } else { 0.0 });
        v.iter_mut().skip(l).step_by(k).for_each(|v| *v *= s);
    }
    (u, v)
}

fn sum_of_squares(data: &Observed, factors: &Factors) -> f64 {
    let square = |(at, (i, j, v)): (usize, (usize, usize, f64))| {
        data.weight(at) * (v - factors.low_rank(i, j)).powi(2)
    };
    data.entries().enumerate().map(square).sum()
}

/// `2·rounds + 1` disjoint parts.
fn split(data: &Observed, settings: &CompletionSettings) -> Result<Vec<Observed>, SolveError> {
    let count = 2 * settings.rounds + 1;
    if count > data.nnz() {
        return Err(SolveError::invalid(
            "entries",
            "at least one for each half-step",
            format!("{} for {count}", data.nnz()),
            "fewer rounds, or no split",
        ));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed ^ 0x5EED);
    let place: Vec<usize> = (0..data.nnz()).map(|_| rng.random_range(0..count)).collect();
    Ok((0..count).map(|c| data.subset(|at| place[at] == c)).collect())
}

fn overflow() -> SolveError {
    SolveError::breakdown(
        "matrix completion",
        "the squares of the entries overflow",
        "scale the entries down",
    )
}
