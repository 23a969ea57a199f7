//! Group penalties, several outputs, everyday baselines.
#![allow(clippy::unwrap_used, missing_docs)]

use faer::Mat;
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rarefy_solve::glm::{
    self, GlmSettings, GroupLoss, GroupModel, GroupPenalty, GroupSettings, Loss, OmpSettings, Problem,
    ProximalGradientSettings, orthogonal_matching_pursuit, proximal_gradient, solve_group,
};
use rarefy_solve::{Csc, Design, LinOp, Monitor, SolveError, Status};

fn random(n: usize, p: usize, seed: u64) -> (Mat<f64>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let x = Mat::from_fn(n, p, |_, _| {
        let v: f64 = rng.random_range(-1.0..1.0);
        if rng.random_range(0.0..1.0) < 0.7 { v } else { 0.0 }
    });
    let y = (0..n).map(|i| 0.5 + 2.0 * x[(i, 0)] - x[(i, 3)] + 0.2 * rng.random_range(-1.0..1.0)).collect();
    (x, y)
}

fn sparse(x: &Mat<f64>) -> Design {
    let entries: Vec<_> = (0..x.nrows())
        .flat_map(|i| (0..x.ncols()).map(move |j| (i, j)))
        .filter(|&(i, j)| x[(i, j)] != 0.0)
        .map(|(i, j)| (i, j, x[(i, j)]))
        .collect();
    Csc::from_triplets(x.nrows(), x.ncols(), &entries).unwrap().into()
}

fn group(problem: &Problem<'_>, alpha: f64, settings: &GroupSettings) -> GroupModel {
    let s = solve_group(problem, alpha, settings, None, &mut Monitor::silent()).unwrap();
    assert_eq!(s.status, Status::Converged, "{:?}", s.residuals);
    s.x
}

#[test]
fn groups_of_one_are_the_lasso() {
    let (m, y) = random(40, 9, 1);
    let labels: Vec<f64> = y.iter().map(|v| if *v > 0.5 { 1.0 } else { -1.0 }).collect();
    let s: Vec<f64> = (0..40).map(|i| 0.5 + f64::from(i % 3)).collect();
    for x in [sparse(&m), Design::from(m)] {
        for (loss, y) in [(Loss::Squared, &y), (Loss::Logistic, &labels), (Loss::Huber { delta: 0.3 }, &y)] {
            for fit_intercept in [true, false] {
                let problem = Problem { x: &x, y, sample_weight: Some(&s) };
                let one = GlmSettings { loss, fit_intercept, tolerance: 1e-12, ..Default::default() };
                let want = glm::solve(&problem, 0.03, &one, None, &mut Monitor::silent()).unwrap().x;
                let many = GroupSettings {
                    loss: GroupLoss::Single(loss),
                    fit_intercept,
                    tolerance: 1e-10,
                    ..Default::default()
                };
                let found = group(&problem, 0.03, &many);
                for (a, b) in found.coefficients.iter().zip(want.to_dense()) {
                    assert!((a - b).abs() < 1e-4, "{loss:?}: {a} {b}");
                }
                assert!((found.intercepts[0] - want.intercept).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn group_conditions_and_two_classes() {
    let (m, y) = random(50, 12, 2);
    let x = sparse(&m);
    let groups: Vec<Vec<usize>> = (0..4).map(|g| vec![3 * g, 3 * g + 1, 3 * g + 2]).collect();
    let settings = GroupSettings { groups: Some(groups.clone()), tolerance: 1e-12, ..Default::default() };
    let problem = Problem::new(&x, &y);
    let alpha = 0.1;
    let found = group(&problem, alpha, &settings);
    let mut z = vec![found.intercepts[0]; 50];
    let mut product = vec![0.0; 50];
    x.apply(&found.coefficients, &mut product);
    z.iter_mut().zip(&product).for_each(|(z, v)| *z += v);
    let r: Vec<f64> = y.iter().zip(&z).map(|(y, z)| (y - z) / 50.0).collect();
    assert!(r.iter().sum::<f64>().abs() < 1e-9);
    let mut c = vec![0.0; 12];
    x.apply_t(&r, &mut c);
    let mut zeros = 0;
    for g in &groups {
        let norm = |v: &[f64]| g.iter().map(|j| v[*j].powi(2)).sum::<f64>().sqrt();
        let (w, limit) = (norm(&found.coefficients), alpha * 3.0_f64.sqrt());
        if w == 0.0 {
            zeros += 1;
            assert!(norm(&c) <= limit * (1.0 + 1e-6));
        } else {
            assert!(g.iter().all(|j| (c[*j] - limit * found.coefficients[*j] / w).abs() < 1e-5));
        }
    }
    assert!((1..4).contains(&zeros));
    // Softmax with two classes and a row penalty is the logistic loss at half the slope: with
    // W = (u, −u), ‖(u, −u)‖ = √2|u| and margin 2u, so α is that of the logistic problem times √2.
    let classes: Vec<f64> = y.iter().map(|v| f64::from(u8::from(*v > 0.5))).collect();
    let labels: Vec<f64> = classes.iter().map(|c| 2.0 * c - 1.0).collect();
    let settings = GroupSettings {
        loss: GroupLoss::Multinomial { classes: 2 },
        tolerance: 1e-11,
        max_iterations: 2000,
        ..Default::default()
    };
    let soft = group(&Problem::new(&x, &classes), 0.02 * 2.0_f64.sqrt(), &settings);
    let logistic = GlmSettings { loss: Loss::Logistic, tolerance: 1e-12, ..Default::default() };
    let want =
        glm::solve(&Problem::new(&x, &labels), 0.02, &logistic, None, &mut Monitor::silent()).unwrap().x;
    for (row, w) in soft.coefficients.chunks_exact(2).zip(want.to_dense()) {
        assert!((row[1] - row[0] - w).abs() < 1e-3 && (row[0] + row[1]).abs() < 1e-6, "{row:?} {w}");
    }
    assert!((soft.intercepts[1] - soft.intercepts[0] - want.intercept).abs() < 1e-3);
}

#[test]
fn the_concave_penalty_does_not_shrink_large_coefficients() {
    let (m, y) = random(200, 20, 3);
    let x = Design::from(m);
    let problem = Problem::new(&x, &y);
    let mcp =
        GroupSettings { penalty: GroupPenalty::Mcp { gamma: 8.0 }, tolerance: 1e-9, ..Default::default() };
    let w = group(&problem, 0.05, &mcp).coefficients;
    let lasso = group(&problem, 0.05, &GroupSettings { tolerance: 1e-9, ..Default::default() }).coefficients;
    assert!((w[0] - 2.0).abs() < 0.05 && (w[3] + 1.0).abs() < 0.05, "{w:?}");
    assert!((lasso[0] - 2.0).abs() > 0.1, "the l1 norm shrinks");
    assert_eq!(w.iter().filter(|v| **v != 0.0).count(), 2);
    // A huge γ is the lasso.
    let wide = GroupSettings { penalty: GroupPenalty::Mcp { gamma: 1e9 }, ..mcp };
    let wide = group(&problem, 0.05, &wide).coefficients;
    assert!(wide.iter().zip(&lasso).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn hostile_groups() {
    let (m, y) = random(10, 4, 4);
    let x = Design::from(m);
    let problem = Problem::new(&x, &y);
    let error = |s: GroupSettings| {
        solve_group(&problem, 0.1, &s, None, &mut Monitor::silent()).unwrap_err().to_string()
    };
    let base = GroupSettings::default;
    assert!(
        error(GroupSettings { groups: Some(vec![vec![0, 1, 2]]), ..base() })
            .contains("feature 3 in 0 groups")
    );
    assert!(
        error(GroupSettings { groups: Some(vec![vec![0, 1, 2, 3, 3]]), ..base() }).contains("in 2 groups")
    );
    assert!(error(GroupSettings { groups: Some(vec![vec![7]]), ..base() }).contains("feature 7 of 4"));
    assert!(error(GroupSettings { group_weights: Some(vec![1.0]), ..base() }).contains("`group_weights`"));
    assert!(error(GroupSettings { group_weights: Some(vec![0.0; 4]), ..base() }).contains("> 0"));
    assert!(error(GroupSettings { penalty: GroupPenalty::Mcp { gamma: 0.0 }, ..base() }).contains("gamma"));
    assert!(
        error(GroupSettings { loss: GroupLoss::Multinomial { classes: 1 }, ..base() }).contains("classes")
    );
    assert!(error(GroupSettings { loss: GroupLoss::Multinomial { classes: 3 }, ..base() }).contains("`y`"));
    let warm = GroupModel { outputs: 1, coefficients: vec![0.0; 3], intercepts: vec![0.0] };
    let e = solve_group(&problem, 0.1, &base(), Some(&warm), &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "warm", .. }));
}

#[test]
fn proximal_gradient_reaches_the_lasso() {
    let (m, y) = random(60, 30, 5);
    let x = Design::from(m.clone());
    for positive in [false, true] {
        let one = GlmSettings { fit_intercept: false, positive, tolerance: 1e-13, ..Default::default() };
        let want = glm::solve(&Problem::new(&x, &y), 0.02, &one, None, &mut Monitor::silent()).unwrap();
        let mut counts = vec![];
        for accelerated in [false, true] {
            let settings =
                ProximalGradientSettings { accelerated, positive, tolerance: 1e-11, ..Default::default() };
            let s = proximal_gradient(&m, &y, 0.02, &settings, &mut Monitor::silent()).unwrap();
            assert_eq!(s.status, Status::Converged);
            assert!((s.objective - want.objective).abs() < 1e-10);
            counts.push(s.iterations);
        }
        assert!(counts[1] < counts[0], "acceleration pays: {counts:?}");
    }
    let settings = ProximalGradientSettings { max_iterations: 3, tolerance: 0.0, ..Default::default() };
    let s = proximal_gradient(&m, &y, 0.02, &settings, &mut Monitor::silent()).unwrap();
    assert_eq!(s.status, Status::MaxIterations);
    let e = proximal_gradient(&m, &y[1..], 0.02, &settings, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "y", .. }));
}

#[test]
fn pursuit_recovers_an_incoherent_support() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let x = Design::from(Mat::from_fn(80, 160, |_, _| f64::from(rng.random_range(0..2_i32) * 2 - 1)));
    let mut y = vec![0.0; 80];
    for (j, v) in [(3, 2.0), (70, -1.0), (150, 0.5)] {
        x.column(j).add_to(v, &mut y);
    }
    let s = orthogonal_matching_pursuit(&x, &y, &OmpSettings::default(), &mut Monitor::silent()).unwrap();
    assert_eq!((s.status, &s.x.indices[..]), (Status::Converged, &[3, 70, 150][..]));
    assert!(s.x.values.iter().zip([2.0, -1.0, 0.5]).all(|(a, b)| (a - b).abs() < 1e-12));
    // Stops at the limit with a residual that is orthogonal to what was taken.
    let two = OmpSettings { max_features: 2, ..Default::default() };
    let s = orthogonal_matching_pursuit(&x, &y, &two, &mut Monitor::silent()).unwrap();
    assert_eq!((s.status, s.x.nnz()), (Status::MaxIterations, 2));
    let z = s.x.predict(&x).unwrap();
    let r: Vec<f64> = y.iter().zip(z).map(|(y, z)| y - z).collect();
    assert!(s.x.indices.iter().all(|j| x.column(*j).dot(&r).abs() < 1e-10));
    // Nothing left to add: a column twice, and zeros.
    let twice = Design::from(Mat::from_fn(3, 2, |i, _| i as f64));
    let s = orthogonal_matching_pursuit(
        &twice,
        &[1.0, 1.0, 3.0],
        &OmpSettings::default(),
        &mut Monitor::silent(),
    );
    assert!(matches!(s.unwrap().status, Status::Stalled | Status::MaxIterations));
    let none = OmpSettings { max_features: 0, ..Default::default() };
    let e = orthogonal_matching_pursuit(&twice, &[1.0; 3], &none, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Setting { field: "max_features", .. }));
}
