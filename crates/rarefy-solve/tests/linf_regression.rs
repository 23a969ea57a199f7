//! l∞ regression: the exact properties of its specification, the tensor sketch, threads, hostile input.
#![allow(clippy::unwrap_used, reason = "tests")]

use faer::Mat;
use rarefy_solve::linop::{Kronecker, dense, to_dense};
use rarefy_solve::methods::linf_regression::{LinfSettings, solve, solve_kronecker};
use rarefy_solve::sketch::{SketchKind, TensorSrht};
use rarefy_solve::{Csc, Design, LinOp, METHODS, Monitor, SolveError};

const KINDS: [SketchKind; 5] = [
    SketchKind::Gaussian,
    SketchKind::Srht,
    SketchKind::BalancedPooling,
    SketchKind::Osnap { nonzeros: 4 },
    SketchKind::CountSketch,
];

fn matrix(n: usize, d: usize) -> Mat<f64> {
    Mat::from_fn(n, d, |i, j| ((i * 13 + 7 * j * j + 1) as f64 * 0.77).sin() + f64::from(i % (j + 2) == 0))
}

fn vector(n: usize) -> Vec<f64> {
    (0..n).map(|i| (i as f64 * 0.91).cos() + 0.2 * (i % 7) as f64).collect()
}

fn times(a: &dyn LinOp, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; a.n_rows()];
    a.apply(x, &mut y);
    y
}

fn near(a: &[f64], b: &[f64], tolerance: f64) {
    let scale = 1.0 + dense::norm_inf(b);
    assert!(
        a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() <= tolerance * scale),
        "{a:?} {b:?}"
    );
}

fn run(a: &Mat<f64>, b: &[f64], settings: &LinfSettings) -> Vec<f64> {
    solve(&a.clone().into(), b, settings, &mut Monitor::silent()).unwrap().x
}

/// By the singular value decomposition.
fn exact(a: &Mat<f64>, b: &[f64]) -> Vec<f64> {
    let pseudo = a.thin_svd().unwrap().pseudoinverse();
    times(&pseudo, b)
}

fn settings(sketch: SketchKind, seed: u64) -> LinfSettings {
    LinfSettings { sketch, rows: Some(64), seed, ..Default::default() }
}

#[test]
fn all_rows_of_srht_are_the_exact_solution() {
    for n in [256, 200] {
        let (a, b) = (matrix(n, 5), vector(n));
        let s = LinfSettings { rows: Some(256), ..Default::default() };
        near(&run(&a, &b, &s), &exact(&a, &b), 1e-12);
    }
}

#[test]
fn a_right_hand_side_in_the_range_is_solved_exactly() {
    let (a, x) = (matrix(500, 6), [1.0, -2.0, 3.0, 0.5, 0.0, 7.0]);
    for kind in KINDS {
        near(&run(&a, &times(&a, &x), &settings(kind, 4)), &x, 1e-12);
    }
}

#[test]
fn shifts_and_changes_of_basis() {
    let (a, b, z) = (matrix(400, 4), vector(400), [1.0, 2.0, -3.0, 0.25]);
    let shifted: Vec<f64> = b.iter().zip(times(&a, &z)).map(|(b, y)| b + y).collect();
    let g = Mat::from_fn(4, 4, |i, j| if i == j { 2.0 + i as f64 } else { 0.3 * (i + 2 * j) as f64 / 4.0 });
    for kind in KINDS {
        let s = settings(kind, 9);
        let x = run(&a, &b, &s);
        let moved: Vec<f64> = x.iter().zip(z).map(|(x, z)| x + z).collect();
        near(&run(&a, &shifted, &s), &moved, 1e-11);
        near(&times(&g, &run(&(&a * &g), &b, &s)), &x, 1e-11);
    }
}

#[test]
fn the_error_is_what_the_identity_says() {
    // x' − x* = V Σ⁻¹ (UᵀSᵀSU)⁻¹ UᵀSᵀS r.
    let (n, d) = (300, 4);
    let (a, b) = (matrix(n, d), vector(n));
    let best = exact(&a, &b);
    let r: Vec<f64> = b.iter().zip(times(&a, &best)).map(|(b, y)| b - y).collect();
    let svd = a.thin_svd().unwrap();
    for kind in KINDS {
        let s = kind.draw(n, 64, 3).unwrap();
        let su = s.apply(svd.U()).unwrap();
        let sr = s.apply_vector(&r).unwrap();
        let inner = exact(&su, &sr);
        let scaled: Vec<f64> = (0..d).map(|k| inner[k] / svd.S()[k]).collect();
        let want = times(&svd.V().to_owned(), &scaled);
        let got: Vec<f64> = run(&a, &b, &settings(kind, 3)).iter().zip(&best).map(|(x, y)| x - y).collect();
        near(&got, &want, 1e-10);
    }
}

#[test]
fn refinement_and_sparse_designs() {
    let (a, b) = (matrix(800, 5), vector(800));
    let entries: Vec<_> =
        (0..5).flat_map(|j| (0..800).map(move |i| (i, j))).map(|(i, j)| (i, j, a[(i, j)])).collect();
    let sparse = Design::from(Csc::from_triplets(800, 5, &entries).unwrap());
    for kind in KINDS {
        let once = settings(kind, 2);
        near(&solve(&sparse, &b, &once, &mut Monitor::silent()).unwrap().x, &run(&a, &b, &once), 1e-11);
        let s = LinfSettings { refine: true, ..once };
        let found = solve(&sparse, &b, &s, &mut Monitor::silent()).unwrap();
        assert!(found.status.is_converged());
        near(&found.x, &exact(&a, &b), 1e-11);
    }
}

#[test]
fn the_bound_on_coefficients_holds_at_the_default_size() {
    let (n, d) = (4096, 16);
    let (a, b) = rarefy_solve::experiments::linf_regression::coherent(n, 1);
    let best = exact(&a, &b);
    for sketch in [SketchKind::Srht, SketchKind::BalancedPooling] {
        let mut failures = 0;
        for seed in 0..20 {
            let s = LinfSettings { sketch, seed, ..Default::default() };
            let found = solve(&a.clone().into(), &b, &s, &mut Monitor::silent()).unwrap();
            let error = found.x.iter().zip(&best).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
            failures += usize::from(error > found.residual("coefficient bound").unwrap());
        }
        // δ = 0.05; six or more of 20 happen once in 3000.
        assert!(failures < 6, "{sketch:?}: {failures} of 20 in dimension {d}");
    }
}

#[test]
fn the_tensor_sketch_is_its_matrix() {
    for (n_1, n_2) in [(8, 4), (5, 6), (1, 3)] {
        let s = TensorSrht::new(n_1, n_2, 7, 5).unwrap();
        // Columns of S by unit vectors.
        let columns: Vec<Vec<f64>> = (0..n_1 * n_2)
            .map(|k| s.apply_vector(&(0..n_1 * n_2).map(|i| f64::from(i == k)).collect::<Vec<_>>()).unwrap())
            .collect();
        let full = Mat::from_fn(7, n_1 * n_2, |i, k| columns[k][i]);
        assert!(
            (0..7).all(|i| (0..n_1 * n_2).all(|k| (full[(i, k)].abs() - 1.0 / 7.0_f64.sqrt()).abs() < 1e-15))
        );
        let (a_1, a_2) = (matrix(n_1, 2), matrix(n_2, 3));
        let product = to_dense(&Kronecker::new(vec![a_1.clone(), a_2.clone()]).unwrap());
        let got = s.apply_product(a_1.as_ref(), a_2.as_ref()).unwrap();
        assert!((got - &full * &product).norm_max() < 1e-13);
        let x = vector(n_1 * n_2);
        near(&s.apply_vector(&x).unwrap(), &times(&full, &x), 1e-13);
    }
}

#[test]
fn the_tensor_sketch_is_unbiased() {
    for (n_1, n_2) in [(2, 4), (3, 2)] {
        let (n, draws) = (n_1 * n_2, 4000);
        let mut mean = Mat::<f64>::zeros(n, n);
        for seed in 0..draws {
            let s = TensorSrht::new(n_1, n_2, 4, seed).unwrap();
            let identity = |n| Mat::<f64>::identity(n, n);
            let full = s.apply_product(identity(n_1).as_ref(), identity(n_2).as_ref()).unwrap();
            mean += full.transpose() * &full;
        }
        let error = (mean * faer::Scale(1.0 / draws as f64) - Mat::<f64>::identity(n, n)).norm_max();
        assert!(error < 0.05, "{error}");
    }
}

#[test]
fn kronecker_designs() {
    let (a_1, a_2) = (matrix(40, 2), matrix(30, 3));
    let full = to_dense(&Kronecker::new(vec![a_1.clone(), a_2.clone()]).unwrap());
    let (b, z) = (vector(1200), [1.0, 2.0, 3.0, -1.0, -2.0, -3.0]);
    let s = LinfSettings { rows: Some(256), ..Default::default() };
    let kron = |b: &[f64], s: &LinfSettings| {
        solve_kronecker(a_1.as_ref(), a_2.as_ref(), b, s, &mut Monitor::silent())
    };
    near(&kron(&times(&full, &z), &s).unwrap().x, &z, 1e-11);
    let refined = kron(&b, &LinfSettings { refine: true, ..s.clone() }).unwrap();
    near(&refined.x, &exact(&full, &b), 1e-10);
    assert!(kron(&b, &s).unwrap().objective < 1.3 * refined.objective);
    assert!(matches!(kron(&b[1..], &s), Err(SolveError::Dimension { argument: "b", .. })));
}

#[test]
fn rows_by_the_formula() {
    let s = LinfSettings::default();
    // 16·ln(320)/0.25 = 369.2.
    assert_eq!(s.sketch_rows(4096, 16), 370);
    assert_eq!(LinfSettings { epsilon: 2.0, ..s.clone() }.sketch_rows(4096, 16), 64);
    assert_eq!(LinfSettings { epsilon: 1e-9, ..s.clone() }.sketch_rows(4096, 16), 4096);
    assert_eq!(LinfSettings { sketch: SketchKind::BalancedPooling, ..s.clone() }.sketch_rows(4096, 16), 512);
    assert_eq!(s.sketch_rows(20, 16), 20);
    assert!(METHODS.iter().any(|m| m.slug == "linf-regression"));
}

#[test]
fn the_same_bits_on_one_and_two_threads() {
    let (a, b) = (matrix(20_000, 9), vector(20_000));
    for kind in KINDS {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&a, &b, &settings(kind, 1)))
        };
        assert_eq!(on(1), on(2), "{kind:?}");
    }
}

#[test]
fn hostile_input() {
    let (a, b) = (Design::from(matrix(50, 3)), vector(50));
    let s = LinfSettings::default();
    let go = |a: &Design, b: &[f64], s: &LinfSettings| solve(a, b, s, &mut Monitor::silent());
    assert!(matches!(go(&a, &b[1..], &s), Err(SolveError::Dimension { argument: "b", found: 49, .. })));
    let none = Design::from(Mat::<f64>::zeros(0, 3));
    assert!(matches!(go(&none, &[], &s), Err(SolveError::Empty { .. })));
    for bad in [f64::NAN, f64::INFINITY] {
        let mut x = matrix(50, 3);
        x[(7, 1)] = bad;
        assert!(matches!(go(&x.into(), &b, &s), Err(SolveError::NonFinite { .. })));
        let mut y = b.clone();
        y[3] = bad;
        assert!(matches!(go(&a, &y, &s), Err(SolveError::NonFinite { argument: "b", .. })));
    }
    let wrong = |s: LinfSettings| match go(&a, &b, &s) {
        Err(SolveError::Setting { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(wrong(LinfSettings { epsilon: 0.0, ..s.clone() }), "epsilon");
    assert_eq!(wrong(LinfSettings { epsilon: f64::NAN, ..s.clone() }), "epsilon");
    assert_eq!(wrong(LinfSettings { delta: 1.0, ..s.clone() }), "delta");
    assert_eq!(wrong(LinfSettings { rows: Some(0), ..s.clone() }), "rows");
    assert_eq!(wrong(LinfSettings { rows: Some(2), ..s.clone() }), "rows");
    // Duplicate and zero columns: a basic solution that says its rank.
    let flat = Mat::from_fn(50, 3, |i, j| if j == 2 { 0.0 } else { 1.0 + i as f64 });
    let found = go(&flat.into(), &b, &s).unwrap();
    assert!(found.residual("rank") == Some(1.0) && found.x.iter().all(|v| v.is_finite()));
    let zero = go(&Mat::<f64>::zeros(50, 2).into(), &b, &s).unwrap();
    assert!(zero.x == [0.0; 2] && zero.residual("coefficient bound") == Some(0.0));
    let huge = go(&Mat::from_fn(50, 2, |i, j| 1e300 * (1 + i * j) as f64).into(), &b, &s);
    assert!(huge.is_err() || huge.unwrap().x.iter().all(|v| v.is_finite()));
    // More columns than rows.
    let wide = go(&matrix(3, 5).into(), &b[..3], &s).unwrap();
    assert!(wide.residual("residual").unwrap() < 1e-10);
    assert!(serde_json::from_str::<LinfSettings>(r#"{"eps": 0.1}"#).is_err());
}
