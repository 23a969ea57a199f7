//! Greedy block coordinate descent: every exact property of its specification, and oracles.
#![allow(clippy::unwrap_used, missing_docs)]

use faer::{Mat, Side, linalg::solvers::Solve};
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_solve::experiments::block_coordinate_descent::{dataset_a, dataset_e};
use rarefy_solve::glm::{self, GlmSettings, Loss, Problem};
use rarefy_solve::methods::block_coordinate_descent::{
    BcdProblem, BcdSettings, BcdState, Blocks, FixedPartition, ForestOrder, Prox, Selection, Update, forest,
    partition_by_colour, solve,
};
use rarefy_solve::{Csr, Design, LinOp, Monitor, SolveError, Status};

fn dense(n: usize, p: usize, seed: u64) -> Mat<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(n, p, |_, _| rng.random_range(-1.0..1.0))
}

struct Data {
    a: Design,
    y: Vec<f64>,
    signs: Vec<f64>,
    labels: Vec<usize>,
    q: Csr,
    b: Vec<f64>,
}

fn data(seed: u64) -> Data {
    let mut rng = ChaCha8Rng::seed_from_u64(seed + 100);
    let y: Vec<f64> = (0..25).map(|_| rng.random_range(-1.0..1.0)).collect();
    let signs = y.iter().map(|v: &f64| v.signum()).collect();
    let labels = y.iter().map(|v| ((v + 1.0) * 1.5) as usize).collect();
    let (q, b) = dataset_e(60, 10, seed).unwrap();
    Data { a: dense(25, 12, seed).into(), y, signs, labels, q, b }
}

fn problems(d: &Data) -> Vec<BcdProblem<'_>> {
    vec![
        BcdProblem::LeastSquares { a: &d.a, y: &d.y },
        BcdProblem::Logistic { a: &d.a, y: &d.signs },
        BcdProblem::Softmax { a: &d.a, labels: &d.labels, classes: 3 },
        BcdProblem::Graph { q: &d.q, b: &d.b },
    ]
}

fn quadratic_form(h: &Mat<f64>, g: &[f64]) -> f64 {
    // gᵀH⁻¹g by a factorisation that does not belong to the crate's path.
    let x = h.partial_piv_lu().solve(&Mat::from_fn(g.len(), 1, |i, _| g[i]));
    g.iter().enumerate().map(|(i, g)| g * x[(i, 0)]).sum()
}

#[test]
fn gradients_agree_with_differences() {
    let d = data(1);
    for problem in problems(&d) {
        let p = problem.dim();
        let x: Vec<f64> = (0..p).map(|i| 0.3 * (i as f64).sin()).collect();
        let settings = BcdSettings::default();
        let at = |x: &[f64]| BcdState::new(problem, Some(x), &settings).unwrap();
        let g = at(&x).gradient().to_vec();
        for i in 0..p {
            let (mut up, mut down) = (x.clone(), x.clone());
            up[i] += 1e-5;
            down[i] -= 1e-5;
            let difference = (at(&up).objective() - at(&down).objective()) / 2e-5;
            assert!((difference - g[i]).abs() < 1e-6 * (1.0 + g[i].abs()), "{problem:?}");
        }
    }
}

#[test]
fn guaranteed_progress_of_every_update() {
    let d = data(2);
    for (kind, problem) in problems(&d).into_iter().enumerate() {
        for blocks in [Blocks::Variable, Blocks::Fixed(FixedPartition::Sort)] {
            for selection in [
                Selection::Random,
                Selection::Cyclic,
                Selection::Lipschitz,
                Selection::Gs,
                Selection::Gsl,
                Selection::Gsd,
                Selection::Gsq,
            ] {
                for update in [
                    Update::Lipschitz { adaptive: false },
                    Update::Lipschitz { adaptive: true },
                    Update::Matrix,
                    Update::Newton,
                    Update::CubicNewton,
                ] {
                    let settings = BcdSettings { blocks, selection, update, ..Default::default() };
                    let mut s = BcdState::new(problem, None, &settings).unwrap();
                    for _ in 0..15 {
                        let before = s.objective();
                        let (place, block) = s.select();
                        let g: Vec<f64> = block.iter().map(|i| s.gradient()[*i]).collect();
                        let h = s.bound(&block);
                        let change = s.propose(place, &block).unwrap();
                        s.apply(&block, &change);
                        let fall = before - s.objective();
                        let slack = 1e-12 * (1.0 + before.abs());
                        let norm: f64 = g.iter().map(|v| v * v).sum();
                        let l =
                            h.self_adjoint_eigenvalues(Side::Lower).unwrap().into_iter().fold(0.0, f64::max);
                        match update {
                            Update::Lipschitz { adaptive: false } => {
                                assert!(fall >= norm / (2.0 * l) - slack)
                            }
                            // The estimate found by doubling is at most twice too large.
                            Update::Lipschitz { .. } => {
                                assert!(fall >= norm / (4.0 * l.max(1.0)) - slack);
                            }
                            Update::Matrix if kind != 2 => {
                                let model = 0.5 * quadratic_form(&h, &g);
                                assert!(fall >= model - 1e-8 * model - slack);
                                if kind == 0 {
                                    assert!(
                                        (fall - model).abs() <= 1e-8 * model + slack,
                                        "equality for squares"
                                    );
                                }
                            }
                            // Softmax bounds may be singular: at least the decrease of 1/L.
                            Update::Matrix => assert!(fall >= norm / (2.0 * l) - slack - 1e-9),
                            _ => assert!(fall >= -slack, "{update:?} {fall}"),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn gsq_has_the_largest_matrix_decrease_among_fixed_blocks() {
    let d = data(3);
    let problem = BcdProblem::LeastSquares { a: &d.a, y: &d.y };
    for partition in [FixedPartition::Order, FixedPartition::Sort, FixedPartition::Average] {
        let settings = BcdSettings {
            blocks: Blocks::Fixed(partition),
            selection: Selection::Gsq,
            block_size: 5,
            ..Default::default()
        };
        let mut s = BcdState::new(problem, None, &settings).unwrap();
        assert_eq!(s.blocks().iter().map(Vec::len).collect::<Vec<_>>(), [5, 5, 2], "a remainder is a block");
        for _ in 0..6 {
            let (chosen, _) = s.select();
            let falls: Vec<f64> = s
                .blocks()
                .iter()
                .map(|b| {
                    let g: Vec<f64> = b.iter().map(|i| s.gradient()[*i]).collect();
                    quadratic_form(&s.bound(b), &g)
                })
                .collect();
            let best = falls.iter().copied().fold(0.0, f64::max);
            assert!(falls[chosen.unwrap()] >= best * (1.0 - 1e-9));
            s.step().unwrap();
        }
    }
}

#[test]
fn single_coordinates_make_the_rules_equal() {
    let d = data(4);
    let problem = BcdProblem::LeastSquares { a: &d.a, y: &d.y };
    let chosen: Vec<Vec<usize>> = [Selection::Gsl, Selection::Gsd, Selection::Gsq]
        .map(|selection| {
            let blocks = Blocks::Fixed(FixedPartition::Order);
            let settings = BcdSettings { blocks, selection, block_size: 1, ..Default::default() };
            let mut s = BcdState::new(problem, None, &settings).unwrap();
            (0..40).map(|_| s.step().unwrap()[0]).collect()
        })
        .into();
    assert_eq!(chosen[0], chosen[1]);
    assert_eq!(chosen[1], chosen[2]);
}

#[test]
fn one_matrix_step_over_everything_solves_least_squares() {
    let d = data(5);
    // Also for a singular Hessian: a column twice.
    let m = dense(25, 6, 9);
    let twice: Design = Mat::from_fn(25, 7, |i, j| m[(i, j.min(5))]).into();
    for a in [&d.a, &twice] {
        let settings = BcdSettings { block_size: 100, tolerance: 1e-9, ..Default::default() };
        let s =
            solve(BcdProblem::LeastSquares { a, y: &d.y }, None, &settings, &mut Monitor::silent()).unwrap();
        assert_eq!((s.status, s.iterations), (Status::Converged, 1));
    }
}

#[test]
fn tree_solves_equal_dense_ones_and_forests_are_forests() {
    let (q, b) = dataset_e(2000, 100, 1).unwrap();
    let block = forest::grow_forest(&q, 0..b.len());
    let trees = forest::count_trees(&q, &block).unwrap();
    let mut inside = vec![false; b.len()];
    block.iter().for_each(|i| inside[*i] = true);
    let edges: usize = block
        .iter()
        .map(|i| q.row(*i).0.iter().filter(|j| inside[**j as usize] && **j as usize != *i).count())
        .sum();
    assert!(block.len() > 600 && edges / 2 == block.len() - trees);
    let rhs: Vec<f64> = (0..block.len()).map(|i| (i as f64).sin()).collect();
    let z = forest::solve_forest(&q, &block, &rhs).unwrap();
    let t = block.len();
    let m = Mat::from_fn(t, t, |r, c| q.get(block[r], block[c]));
    let x = m.llt(Side::Lower).unwrap().solve(&Mat::from_fn(t, 1, |i, _| rhs[i]));
    let scale = z.iter().map(|v| v.abs()).fold(0.0, f64::max);
    assert!((0..t).all(|i| (x[(i, 0)] - z[i]).abs() <= 1e-12 * scale));
    for colour in partition_by_colour(&q) {
        for i in &colour {
            assert!(colour.iter().all(|j| i == j || q.get(*i, *j) == 0.0), "diagonal within a colour");
        }
    }
}

#[test]
fn graph_rules_reach_the_optimum() {
    let (q, b) = dataset_e(120, 12, 3).unwrap();
    let problem = BcdProblem::Graph { q: &q, b: &b };
    let (mut best, mut worst) = (f64::INFINITY, f64::NEG_INFINITY);
    for (blocks, update) in [
        (Blocks::Forest(ForestOrder::Gs), Update::Tree),
        (Blocks::Forest(ForestOrder::Gsl), Update::Tree),
        (Blocks::Forest(ForestOrder::Gsd), Update::Tree),
        (Blocks::Forest(ForestOrder::Random), Update::Tree),
        (Blocks::TreePartition, Update::Tree),
        (Blocks::RedBlack, Update::Tree),
        (Blocks::General, Update::Matrix),
        (Blocks::Variable, Update::Matrix),
    ] {
        let settings = BcdSettings { blocks, update, max_iterations: 50_000, ..Default::default() };
        let s = solve(problem, None, &settings, &mut Monitor::silent()).unwrap();
        assert_eq!(s.status, Status::Converged, "{blocks:?}");
        best = best.min(s.objective);
        worst = worst.max(s.objective);
    }
    assert!(worst - best < 1e-9 * best.abs(), "{best} {worst}");
}

#[test]
fn the_incremental_gradient_does_not_drift() {
    let (a, y) = dataset_a(60, 100, 1).unwrap();
    let settings = BcdSettings {
        selection: Selection::Random,
        update: Update::Lipschitz { adaptive: false },
        block_size: 2,
        ..Default::default()
    };
    let mut s = BcdState::new(BcdProblem::LeastSquares { a: &a, y: &y }, None, &settings).unwrap();
    let first = s.gradient().iter().map(|v| v.abs()).fold(0.0, f64::max);
    for _ in 0..10_000 {
        s.step().unwrap();
    }
    let kept = s.gradient().to_vec();
    s.recompute_gradient();
    let drift = kept.iter().zip(s.gradient()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(drift <= 1e-9 * first, "{drift} {first}");
}

#[test]
fn bounds_and_l1_agree_with_the_path_solver() {
    let d = data(6);
    let n = d.y.len() as f64;
    for (prox, positive, lambda) in
        [(Prox::NonNegative { lambda: 0.2 }, true, 0.2), (Prox::L1 { lambda: 0.3 }, false, 0.3)]
    {
        for (loss, y) in [(Loss::Squared, &d.y), (Loss::Logistic, &d.signs)] {
            let oracle =
                GlmSettings { loss, positive, fit_intercept: false, tolerance: 1e-13, ..Default::default() };
            let want = glm::solve(&Problem::new(&d.a, y), lambda / n, &oracle, None, &mut Monitor::silent())
                .unwrap();
            let problem = match loss {
                Loss::Squared => BcdProblem::LeastSquares { a: &d.a, y },
                _ => BcdProblem::Logistic { a: &d.a, y },
            };
            for update in [Update::ProjectedGradient, Update::ProjectedNewton, Update::TwoMetric] {
                if update == Update::TwoMetric && !positive {
                    continue;
                }
                for active_set in [false, true] {
                    for selection in [Selection::Gsq, Selection::Gs, Selection::Gsl, Selection::Cyclic] {
                        let settings = BcdSettings {
                            prox,
                            update,
                            active_set,
                            selection,
                            block_size: 4,
                            max_iterations: 20_000,
                            ..Default::default()
                        };
                        let s = solve(problem, None, &settings, &mut Monitor::silent()).unwrap();
                        assert!(
                            (s.objective - want.objective * n).abs() < 1e-8 * (1.0 + s.objective),
                            "{update:?} {selection:?} {:?}: {} {}",
                            s.status,
                            s.objective,
                            want.objective * n
                        );
                        for (u, v) in s.x.iter().zip(want.x.to_dense()) {
                            assert!((u - v).abs() < 1e-4, "{update:?}: {u} {v}");
                            assert!(!positive || *u >= 0.0);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_active_set_ends_exactly() {
    let (a, y) = dataset_a(100, 200, 2).unwrap();
    let mut c = vec![0.0; 200];
    a.apply_t(&y, &mut c);
    let lambda = 0.05 * c.iter().copied().fold(0.0, f64::max);
    let settings = BcdSettings {
        prox: Prox::NonNegative { lambda },
        update: Update::ProjectedNewton,
        selection: Selection::Gsq,
        active_set: true,
        block_size: 20,
        tolerance: 1e-12,
        max_iterations: 2000,
        ..Default::default()
    };
    let s =
        solve(BcdProblem::LeastSquares { a: &a, y: &y }, None, &settings, &mut Monitor::silent()).unwrap();
    assert_eq!(s.status, Status::Converged, "{:?}", s.residuals);
    let state = BcdState::new(BcdProblem::LeastSquares { a: &a, y: &y }, Some(&s.x), &settings).unwrap();
    for (x, g) in s.x.iter().zip(state.gradient()) {
        assert!(x.min(g + lambda).abs() < 1e-6 * lambda, "x {x} g {}", g + lambda);
    }
}

#[test]
fn same_seed_same_bits_and_hostile_input() {
    let d = data(7);
    let problem = BcdProblem::LeastSquares { a: &d.a, y: &d.y };
    let random = BcdSettings { selection: Selection::Random, ..Default::default() };
    let run = |s: &BcdSettings| solve(problem, None, s, &mut Monitor::silent()).unwrap().x;
    assert_eq!(run(&random), run(&random));
    assert_ne!(
        run(&BcdSettings { max_iterations: 3, ..random.clone() }),
        run(&BcdSettings { max_iterations: 3, seed: 1, ..random })
    );
    let error = |p: BcdProblem<'_>, x: Option<&[f64]>, s: BcdSettings| {
        solve(p, x, &s, &mut Monitor::silent()).unwrap_err().to_string()
    };
    let fine = BcdSettings::default;
    assert!(
        error(BcdProblem::LeastSquares { a: &d.a, y: &d.y[1..] }, None, fine()).contains("`y`: expected 25")
    );
    assert!(error(BcdProblem::Logistic { a: &d.a, y: &d.y }, None, fine()).contains("-1 or 1"));
    assert!(
        error(BcdProblem::Softmax { a: &d.a, labels: &d.labels, classes: 1 }, None, fine())
            .contains("labels")
    );
    assert!(error(BcdProblem::Graph { q: &d.q, b: &d.b[1..] }, None, fine()).contains("`q`"));
    let skew = Csr::from_triplets(2, 2, &[(0, 1, 1.0)]).unwrap();
    assert!(error(BcdProblem::Graph { q: &skew, b: &[1.0, 1.0] }, None, fine()).contains("symmetric"));
    assert!(error(problem, Some(&[1.0]), fine()).contains("`start`: expected 12"));
    assert!(error(problem, Some(&[f64::NAN; 12]), fine()).contains("not finite"));
    assert!(error(problem, None, BcdSettings { block_size: 0, ..fine() }).contains("`block_size`"));
    assert!(error(problem, None, BcdSettings { update: Update::Tree, ..fine() }).contains("tree only"));
    assert!(error(problem, None, BcdSettings { blocks: Blocks::RedBlack, ..fine() }).contains("`blocks`"));
    assert!(error(problem, None, BcdSettings { update: Update::TwoMetric, ..fine() }).contains("`update`"));
    let negative = Prox::L1 { lambda: -1.0 };
    let bad = BcdSettings { prox: negative, update: Update::ProjectedGradient, ..fine() };
    assert!(error(problem, None, bad).contains("`prox.lambda`"));
    let nan = [f64::NAN; 25];
    let e = solve(BcdProblem::LeastSquares { a: &d.a, y: &nan }, None, &fine(), &mut Monitor::silent())
        .unwrap_err();
    assert!(matches!(e, SolveError::NonFinite { argument: "y", .. }));
}
