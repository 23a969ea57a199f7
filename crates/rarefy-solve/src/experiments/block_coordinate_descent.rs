//! Greedy BCD: orderings of rules and updates on least squares, of forests on a two-moons graph,
//! identification of the support under a bound, and the time of a tree update.

use std::time::Instant;

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use super::{Margin, Measured, Row, median, quantile};
use crate::glm::{self, GlmSettings, Problem};
use crate::methods::block_coordinate_descent::{
    BcdProblem, BcdSettings, BcdState, Blocks, FixedPartition, ForestOrder, Prox, Selection, Update, forest,
    solve,
};
use crate::{Csc, Csr, Design, LinOp, Monitor, SolveError};

/// Sizes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Rows and columns of the regression problem. Paper: 1000 × 10000.
    pub regression: (usize, usize),
    /// Number of seeds.
    pub seeds: u64,
    /// First seed.
    pub seed: u64,
}

impl Sizes {
    /// A minute at most.
    #[must_use]
    pub fn quick(seed: u64) -> Self {
        Self { regression: (300, 1000), seeds: 3, seed }
    }

    /// The paper's sizes.
    #[must_use]
    pub fn full(seed: u64) -> Self {
        Self { regression: (1000, 10_000), seeds: 3, seed }
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}

/// Dataset A of the paper: entries `N(0, 1) + 1`, columns scaled by `10·N(0, 1)`, kept with
/// probability `10·ln n/n`; targets from coefficients of which a tenth is not 0, plus noise.
///
/// # Errors
/// None for sizes that fit in memory.
pub fn dataset_a(n: usize, p: usize, seed: u64) -> Result<(Design, Vec<f64>), SolveError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let keep = (10.0 * (n as f64).ln() / n as f64).min(1.0);
    let mut entries = vec![];
    for j in 0..p {
        let scale = 10.0 * normal(&mut rng);
        for i in 0..n {
            let v = (normal(&mut rng) + 1.0) * scale;
            if rng.random_range(0.0..1.0) < keep {
                entries.push((i, j, v));
            }
        }
    }
    let a = Csc::from_triplets(n, p, &entries)?;
    let w: Vec<f64> =
        (0..p).map(|_| if rng.random_range(0.0..1.0) < 0.1 { normal(&mut rng) } else { 0.0 }).collect();
    let mut y = vec![0.0; n];
    a.apply(&w, &mut y);
    y.iter_mut().for_each(|v| *v += normal(&mut rng));
    Ok((a.into(), y))
}

/// Dataset E: two moons, a symmetric 5-nearest-neighbour graph, some nodes labelled ±1. Returns the
/// Laplacian of the other nodes and the pull of the labels: minimise `½xᵀQx − bᵀx`.
///
/// # Errors
/// None for sizes that fit in memory.
pub fn dataset_e(nodes: usize, labelled: usize, seed: u64) -> Result<(Csr, Vec<f64>), SolveError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let points: Vec<[f64; 2]> = (0..nodes)
        .map(|i| {
            let t = rng.random_range(0.0..std::f64::consts::PI);
            let (x, y) = if i % 2 == 0 { (t.cos(), t.sin()) } else { (1.0 - t.cos(), 0.5 - t.sin()) };
            [x + 0.1 * normal(&mut rng), y + 0.1 * normal(&mut rng)]
        })
        .collect();
    let mut edges = std::collections::BTreeSet::new();
    for (i, a) in points.iter().enumerate() {
        let mut near: Vec<(f64, usize)> = points
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != i)
            .map(|(j, b)| ((a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2), j))
            .collect();
        let k = 5.min(near.len());
        near.select_nth_unstable_by(k - 1, |a, b| a.0.total_cmp(&b.0));
        near[..k].iter().for_each(|(_, j)| {
            edges.insert((i.min(*j), i.max(*j)));
        });
    }
    let mut order: Vec<usize> = (0..nodes).collect();
    order.shuffle(&mut rng);
    let mut place = vec![None; nodes];
    order[labelled..].iter().enumerate().for_each(|(k, i)| place[*i] = Some(k));
    let p = nodes - labelled;
    let (mut entries, mut b) = (vec![], vec![0.0; p]);
    for (i, j) in edges {
        for (i, j) in [(i, j), (j, i)] {
            let Some(u) = place[i] else { continue };
            entries.push((u, u, 1.0));
            match place[j] {
                Some(v) => entries.push((u, v, -1.0)),
                None => b[u] += if j % 2 == 0 { 1.0 } else { -1.0 },
            }
        }
    }
    Ok((Csr::from_triplets(p, p, &entries)?, b))
}

/// Runs all parts.
///
/// # Errors
/// A [`SolveError`] when a part breaks down.
pub fn run(sizes: Sizes, say: &mut dyn FnMut(&str)) -> Result<Measured, SolveError> {
    let mut out = Measured::default();
    say("least squares: rules and updates");
    least_squares(sizes, &mut out)?;
    say("two moons: forests");
    graph(sizes, &mut out)?;
    say("non-negative l1: identification of the support");
    bound(sizes, &mut out)?;
    say("time of a tree update");
    time(sizes, &mut out)?;
    out.notes.push(format!(
        "least squares: {} × {}, blocks of 5, objective minus optimum (0: more columns than rows) after 500 updates; \
         medians over {} seeds, p95 beside them",
        sizes.regression.0, sizes.regression.1, sizes.seeds
    ));
    out.notes.push(
        "the paper publishes figures only; the specification's table is another implementation's".into(),
    );
    Ok(out)
}

const VB: Blocks = Blocks::Variable;
const SORT: Blocks = Blocks::Fixed(FixedPartition::Sort);
const ORDER: Blocks = Blocks::Fixed(FixedPartition::Order);

fn least_squares(sizes: Sizes, out: &mut Measured) -> Result<(), SolveError> {
    let lb = Update::Lipschitz { adaptive: false };
    let rules = [
        ("Random VB", VB, Selection::Random),
        ("Cyclic VB", VB, Selection::Cyclic),
        ("GS VB", VB, Selection::Gs),
        ("GSL VB", VB, Selection::Gsl),
        ("GSD VB", VB, Selection::Gsd),
        ("GSQ VB", VB, Selection::Gsq),
        ("GS Sort", SORT, Selection::Gs),
        ("GSL Sort", SORT, Selection::Gsl),
        ("GSD Sort", SORT, Selection::Gsd),
        ("GSQ Sort", SORT, Selection::Gsq),
        ("GSL Order", ORDER, Selection::Gsl),
    ];
    let mut found: Vec<(String, Vec<f64>)> = vec![];
    for name in ["Lb", "Hb"] {
        found.extend(rules.iter().map(|(rule, ..)| (format!("{name} {rule}"), vec![])));
    }
    for seed in sizes.seed..sizes.seed + sizes.seeds {
        let (a, y) = dataset_a(sizes.regression.0, sizes.regression.1, seed)?;
        let updates = [lb, Update::Matrix];
        let cases = updates.iter().flat_map(|u| rules.iter().map(move |r| (*u, *r)));
        for ((update, (_, blocks, selection)), (_, values)) in cases.zip(&mut found) {
            let settings =
                BcdSettings { blocks, selection, update, seed, tolerance: 0.0, ..Default::default() };
            let s =
                solve(BcdProblem::LeastSquares { a: &a, y: &y }, None, &settings, &mut Monitor::silent())?;
            values.push(s.objective);
        }
    }
    let value = |name: &str| found.iter().find(|f| f.0 == name).map_or(f64::NAN, |f| median(&f.1));
    let best = |names: &[String]| names.iter().map(|n| value(n)).fold(f64::INFINITY, f64::min);
    for update in ["Lb", "Hb"] {
        let blind = value(&format!("{update} Random VB")).min(value(&format!("{update} Cyclic VB")));
        for rule in ["GS", "GSL", "GSD", "GSQ"] {
            let v = value(&format!("{update} {rule} VB"));
            out.margins.push(Margin::new(
                format!("{update}, variable blocks: random or cyclic over {rule}"),
                blind / v,
                10.0,
            ));
        }
        for (blocks, label) in [("VB", "variable blocks"), ("Sort", "sorted blocks")] {
            for rule in ["GSL", "GSD", "GSQ"] {
                let ratio =
                    value(&format!("{update} GS {blocks}")) / value(&format!("{update} {rule} {blocks}"));
                out.margins.push(Margin::new(format!("{update}, {label}: GS over {rule}"), ratio, 5.0));
            }
        }
        let of = |blocks: &str| ["GS", "GSL", "GSD", "GSQ"].map(|r| format!("{update} {r} {blocks}"));
        let ratio = best(&of("Sort")) / best(&of("VB"));
        out.margins.push(Margin::new(
            format!("{update}: best fixed rule over best variable rule"),
            ratio,
            3.0,
        ));
    }
    for rule in ["GS", "GSL", "GSD", "GSQ"] {
        let ratio = value(&format!("Lb {rule} VB")) / value(&format!("Hb {rule} VB"));
        out.margins.push(Margin::new(format!("variable blocks, {rule}: Lb over Hb"), ratio, 5.0));
    }
    let ratio = value("Lb GSL Order") / value("Lb GSL Sort");
    out.margins.push(Margin::new("Lb, GSL: blocks in order over sorted blocks", ratio, 10.0));
    for (case, values) in found {
        let values = vec![("median".into(), median(&values)), ("p95".into(), quantile(&values, 0.95))];
        out.rows.push(Row { experiment: "least squares, f - f*".into(), case, values });
    }
    Ok(())
}

fn graph(sizes: Sizes, out: &mut Measured) -> Result<(), SolveError> {
    let cases = [
        ("greedy tree", Blocks::Forest(ForestOrder::Gs), Update::Tree),
        ("tree partition", Blocks::TreePartition, Update::Tree),
        ("random tree", Blocks::Forest(ForestOrder::Random), Update::Tree),
        ("red-black", Blocks::RedBlack, Update::Tree),
        ("general", Blocks::General, Update::Matrix),
    ];
    let mut found = vec![(vec![], vec![]); cases.len()];
    for seed in sizes.seed..sizes.seed + sizes.seeds {
        let (q, b) = dataset_e(2000, 100, seed)?;
        let problem = BcdProblem::Graph { q: &q, b: &b };
        let best = optimum(&q, &b)?;
        for ((_, blocks, update), found) in cases.iter().zip(&mut found) {
            let settings = BcdSettings {
                blocks: *blocks,
                update: *update,
                selection: Selection::Gs,
                seed,
                max_iterations: 40,
                tolerance: 0.0,
                ..Default::default()
            };
            let s = solve(problem, None, &settings, &mut Monitor::silent())?;
            let at = |k: usize| s.trace.get(k).or(s.trace.last()).map_or(f64::NAN, |t| t.objective - best);
            found.0.push(at(20));
            found.1.push(at(40));
        }
    }
    let medians: Vec<(f64, f64)> = found.iter().map(|f| (median(&f.0), median(&f.1))).collect();
    for k in 1..cases.len() {
        for (updates, ratio) in [(20, medians[k].0 / medians[k - 1].0), (40, medians[k].1 / medians[k - 1].1)]
        {
            let name = format!("two moons, {updates} updates: {} over {}", cases[k].0, cases[k - 1].0);
            out.margins.push(Margin::new(name, ratio, 1.0));
        }
    }
    for ((case, ..), found) in cases.iter().zip(&found) {
        let values = vec![
            ("20 updates".into(), median(&found.0)),
            ("40 updates".into(), median(&found.1)),
            ("40 updates, p95".into(), quantile(&found.1, 0.95)),
        ];
        out.rows.push(Row { experiment: "two moons, f - f*".into(), case: (*case).into(), values });
    }
    Ok(())
}

/// Optimum of the graph problem by a dense factorisation.
fn optimum(q: &Csr, b: &[f64]) -> Result<f64, SolveError> {
    let p = b.len();
    // Components without a label make Q singular; a ridge of 1e-10 leaves the value unchanged.
    let mut m = Mat::<f64>::zeros(p, p);
    for i in 0..p {
        let (j, v) = q.row(i);
        j.iter().zip(v).for_each(|(j, v)| m[(i, *j as usize)] = *v);
        m[(i, i)] += 1e-10;
    }
    let factor = m
        .llt(Side::Lower)
        .map_err(|e| SolveError::breakdown("two moons", format!("{e:?}"), "use another seed"))?;
    let x = factor.solve(&Mat::from_fn(p, 1, |i, _| b[i]));
    Ok(-0.5 * (0..p).map(|i| b[i] * x[(i, 0)]).sum::<f64>())
}

fn bound(sizes: Sizes, out: &mut Measured) -> Result<(), SolveError> {
    let cases =
        [("PG", Update::ProjectedGradient), ("PN", Update::ProjectedNewton), ("TMP", Update::TwoMetric)];
    let limit = 20_000;
    let mut found = vec![(vec![], vec![]); cases.len()];
    let mut supports = vec![];
    for seed in sizes.seed..sizes.seed + sizes.seeds {
        let (a, y) = dataset_a(sizes.regression.0, sizes.regression.1, seed)?;
        // The paper's λ at its size; at others, the same share of the largest correlation.
        let mut c = vec![0.0; a.n_cols()];
        a.apply_t(&y, &mut c);
        let top = c.iter().copied().fold(0.0, f64::max);
        let lambda =
            if sizes.regression == (1000, 10_000) { 50_000.0_f64.min(0.5 * top) } else { 0.05 * top };
        let n = y.len() as f64;
        let oracle =
            GlmSettings { positive: true, fit_intercept: false, tolerance: 1e-14, ..Default::default() };
        let oracle = glm::solve(&Problem::new(&a, &y), lambda / n, &oracle, None, &mut Monitor::silent())?;
        supports.push(oracle.x.nnz() as f64);
        let best = oracle.objective * n;
        let start = 0.5 * y.iter().map(|v| v * v).sum::<f64>();
        for ((_, update), found) in cases.iter().zip(&mut found) {
            let settings = BcdSettings {
                selection: Selection::Gsq,
                update: *update,
                block_size: 100,
                prox: Prox::NonNegative { lambda },
                tolerance: 0.0,
                ..Default::default()
            };
            let mut state = BcdState::new(BcdProblem::LeastSquares { a: &a, y: &y }, None, &settings)?;
            let (mut reached, mut identified, mut k) = (limit, 0, 0);
            while k < limit {
                state.step()?;
                k += 1;
                let support: Vec<usize> = (0..state.x().len()).filter(|i| state.x()[*i] > 0.0).collect();
                if support != oracle.x.indices {
                    identified = k + 1;
                }
                if state.objective() - best <= 1e-8 * (start - best) && identified <= k {
                    reached = k;
                    break;
                }
            }
            found.0.push(reached as f64);
            found.1.push(identified as f64);
        }
    }
    let pg = median(&found[0].0);
    for k in [1, 2] {
        let name = format!("non-negative l1, iterations to the support and 1e-8: PG over {}", cases[k].0);
        out.margins.push(Margin::new(name, pg / median(&found[k].0), 3.0));
    }
    for ((case, _), found) in cases.iter().zip(&found) {
        let values = vec![
            ("iterations to 1e-8 and the support".into(), median(&found.0)),
            ("iterations to the support".into(), median(&found.1)),
            ("size of the support".into(), median(&supports)),
        ];
        out.rows.push(Row { experiment: "non-negative l1".into(), case: (*case).into(), values });
    }
    Ok(())
}

fn time(sizes: Sizes, out: &mut Measured) -> Result<(), SolveError> {
    let (q, b) = dataset_e(2000, 100, sizes.seed)?;
    let mut block = forest::grow_forest(&q, 0..b.len());
    block.truncate(800);
    let t = block.len();
    let rhs: Vec<f64> = block.iter().map(|i| b[*i] + 1.0).collect();
    let (mut trees, mut denses, mut error) = (vec![], vec![], 0.0_f64);
    for _ in 0..5 {
        let start = Instant::now();
        let z = forest::solve_forest(&q, &block, &rhs)?;
        trees.push(start.elapsed().as_secs_f64());
        let m = Mat::from_fn(t, t, |r, c| q.get(block[r], block[c]));
        let start = Instant::now();
        let factor = m.llt(Side::Lower).map_err(|e| {
            SolveError::breakdown("time of a tree update", format!("{e:?}"), "use another seed")
        })?;
        let x = factor.solve(&Mat::from_fn(t, 1, |i, _| rhs[i]));
        denses.push(start.elapsed().as_secs_f64());
        error = (0..t).map(|i| (x[(i, 0)] - z[i]).abs()).fold(error, f64::max);
    }
    let (tree, dense) = (median(&trees), median(&denses));
    out.margins.push(Margin::new(
        format!("{t} nodes: time of the dense solve over the tree update"),
        dense / tree,
        50.0,
    ));
    let values =
        vec![("tree, s".into(), tree), ("dense, s".into(), dense), ("largest difference".into(), error)];
    out.rows.push(Row { experiment: "time".into(), case: format!("{t} nodes"), values });
    Ok(())
}
