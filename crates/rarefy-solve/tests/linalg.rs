//! Least squares, scores, NNLS and singular values: by hand, against SciPy, invariants, threads, hostile input.
#![allow(clippy::unwrap_used, reason = "tests")]

use faer::Mat;
use proptest::prelude::*;
use rarefy_solve::linalg::*;
use rarefy_solve::linop::{Implicit, dense, dense_from_rows};
use rarefy_solve::sketch::SketchKind;
use rarefy_solve::{Csc, Design, LinOp, Monitor, SolveError, Status};

const KINDS: [SketchKind; 5] = [
    SketchKind::Gaussian,
    SketchKind::Srht,
    SketchKind::BalancedPooling,
    SketchKind::Osnap { nonzeros: 4 },
    SketchKind::CountSketch,
];

fn matrix(n: usize, d: usize) -> Mat<f64> {
    Mat::from_fn(n, d, |i, j| ((i * 7 + j * j + 1) as f64 * 0.61).sin() + f64::from(i % (j + 2) == 0))
}

fn vector(n: usize) -> Vec<f64> {
    (0..n).map(|i| (i as f64 * 0.37).cos() + 0.1 * (i % 5) as f64).collect()
}

fn sparse(a: &Mat<f64>) -> Design {
    let places = (0..a.nrows()).flat_map(|i| (0..a.ncols()).map(move |j| (i, j)));
    let entries: Vec<_> = places.map(|(i, j)| (i, j, a[(i, j)])).collect();
    Csc::from_triplets(a.nrows(), a.ncols(), &entries).unwrap().into()
}

fn near(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    let scale = 1.0 + dense::norm_inf(b);
    a.iter().zip(b).for_each(|(x, y)| assert!((x - y).abs() <= tolerance * scale, "{a:?} {b:?}"));
}

struct Golden(serde_json::Value);

impl Golden {
    fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/solve/linalg.json");
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    fn values(&self, key: &str) -> Vec<f64> {
        self.0[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn design(&self) -> Design {
        let (n, d) = (self.0["n"].as_u64().unwrap() as usize, self.0["d"].as_u64().unwrap() as usize);
        let a = self.values("a");
        Mat::from_fn(n, d, |i, j| a[i * d + j]).into()
    }
}

#[test]
fn golden_values_of_scipy() {
    let g = Golden::read();
    let (a, b) = (g.design(), g.values("b"));
    let s = lsqr(&a, &b, None, None, &LsqrSettings::default(), &mut Monitor::silent()).unwrap();
    near(&s.x, &g.values("lsqr"), 1e-10);
    let damped = LsqrSettings { damp: 2.0, ..Default::default() };
    let s = lsqr(&a, &b, None, None, &damped, &mut Monitor::silent()).unwrap();
    near(&s.x, &g.values("damped"), 1e-10);
    let s = nnls(&a, &b, &NnlsSettings::default(), &mut Monitor::silent()).unwrap();
    near(&s.x, &g.values("nnls"), 1e-10);
    assert!((s.residual("residual").unwrap() - g.0["nnls_residual"].as_f64().unwrap()).abs() < 1e-9);
    assert!(s.status.is_converged() && s.residual("kkt").unwrap() < 1e-12);
}

#[test]
fn whitening_makes_orthonormal_columns_of_any_rank_and_scale() {
    for (n, d) in [(50, 6), (70_000, 6)] {
        let mut a = matrix(n, d);
        // A column that depends on others, one of zeros, wild units.
        for i in 0..n {
            a[(i, 3)] = 2.0 * a[(i, 0)] - a[(i, 1)];
            a[(i, 4)] = 0.0;
            a[(i, 5)] *= 1e9;
        }
        for design in [Design::from(a.clone()), sparse(&a)] {
            let basis = Basis::of(&design).unwrap();
            assert_eq!(basis.whitening.rank(), 4);
            let gram = basis.q.transpose() * &basis.q;
            assert!((gram - Mat::<f64>::identity(4, 4)).norm_max() < 1e-13);
            let scores = leverage(&design).unwrap();
            assert!((scores.iter().sum::<f64>() - 4.0).abs() < 1e-11);
            let blocks = basis.whitening.leverage(a.as_ref().subrows(10, 30)).unwrap();
            near(&blocks, &scores[10..40], 1e-12);
        }
    }
}

#[test]
fn leverage_against_the_definition_and_its_sketch() {
    let a = matrix(4000, 5);
    let exact = leverage(&a.clone().into()).unwrap();
    let q = a.qr().compute_thin_Q();
    let want: Vec<f64> = (0..4000).map(|i| (0..5).map(|j| q[(i, j)] * q[(i, j)]).sum()).collect();
    near(&exact, &want, 1e-13);
    for kind in KINDS {
        for design in [Design::from(a.clone()), sparse(&a)] {
            let got = leverage_sketched(&design, kind, 512, 64, 3).unwrap();
            assert!(got.iter().zip(&want).all(|(g, w)| (0.3..3.0).contains(&(g / w))), "{kind:?}");
        }
    }
}

#[test]
fn lewis_weights_are_the_fixed_point() {
    let mut a = matrix(120, 4);
    (0..4).for_each(|j| {
        a[(0, j)] *= 50.0;
        a[(7, j)] = 0.0;
    });
    let design = Design::from(a.clone());
    for p in [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0] {
        let w = lewis(&design, p, 1e-13, 400).unwrap();
        assert!(w.residual <= 1e-12, "p = {p}: {w:?}");
        assert!((w.weights.iter().sum::<f64>() - 4.0).abs() < 1e-10 && w.weights[7] == 0.0);
        // The fixed point again, by the exact scores of the scaled matrix.
        let factor: Vec<f64> =
            w.weights.iter().map(|w| if *w > 0.0 { w.powf(0.5 - 1.0 / p) } else { 0.0 }).collect();
        near(&leverage(&design.scale_rows(&factor)).unwrap(), &w.weights, 1e-10);
        // Invariant under A → AG.
        let g = Mat::from_fn(4, 4, |i, j| if i == j { 10.0_f64.powi(i as i32) } else { 0.3 });
        near(&lewis(&(&a * g).into(), p, 1e-13, 400).unwrap().weights, &w.weights, 1e-9);
        if p == 2.0 {
            near(&w.weights, &leverage(&design).unwrap(), 1e-13);
        }
    }
}

#[test]
fn refined_sketches_give_the_least_squares_solution() {
    let (n, d) = (3000, 6);
    let mut a = matrix(n, d);
    (0..n).for_each(|i| a[(i, 2)] = a[(i, 1)] + 1e-7 * a[(i, 2)]);
    let b = vector(n);
    let best = a.qr().compute_thin_Q();
    for design in [Design::from(a.clone()), sparse(&a)] {
        for sketch in KINDS {
            let s = LeastSquaresSettings { sketch, ..Default::default() };
            let got = least_squares(&design, &b, &s, &mut Monitor::silent()).unwrap();
            assert!(got.status.is_converged() && got.iterations < 80, "{sketch:?} {:?}", got.status);
            let (mut y, mut z) = (vec![0.0; n], vec![0.0; d]);
            design.apply(&got.x, &mut y);
            best.apply_t(&b, &mut z);
            let mut want = vec![0.0; n];
            best.apply(&z, &mut want);
            near(&y, &want, 1e-8);
            // One pass only: within the distortion.
            let s = LeastSquaresSettings { sketch, refine: false, rows: Some(512), ..Default::default() };
            let once = least_squares(&design, &b, &s, &mut Monitor::silent()).unwrap();
            assert!(once.objective <= 1.1 * got.objective && once.objective >= got.objective * (1.0 - 1e-12));
        }
    }
    // No sketch is smaller: plain QR.
    let s = LeastSquaresSettings { rows: Some(n), refine: false, ..Default::default() };
    let plain = least_squares(&a.into(), &b, &s, &mut Monitor::silent()).unwrap();
    // Rounding of A·x, whose coefficients are large here, is all that is left.
    let rounding = 1e-14 * (1.0 + dense::norm_inf(&plain.x));
    assert!(plain.residual("normal equations").unwrap() < rounding, "{:?} {rounding}", plain.residuals);
}

#[test]
fn conjugate_gradients_with_and_without_a_preconditioner() {
    let a = matrix(80, 30);
    let h = Mat::from_fn(30, 30, |i, j| {
        (0..80).map(|k| a[(k, i)] * a[(k, j)]).sum::<f64>() + if i == j { 1e3 * (i * i) as f64 } else { 0.0 }
    });
    let b = vector(30);
    let solve = |m: Option<&dyn LinOp>, x0: Option<&[f64]>| {
        cg(&h, &b, m, x0, &CgSettings::default(), &mut Monitor::silent()).unwrap()
    };
    let plain = solve(None, None);
    let diagonal = |x: &[f64], y: &mut [f64]| (0..30).for_each(|i| y[i] = x[i] / h[(i, i)]);
    let jacobi = Implicit::new(30, 30, diagonal, diagonal);
    let quick = solve(Some(&jacobi), None);
    assert!(plain.status.is_converged() && quick.status.is_converged());
    assert!(quick.iterations < plain.iterations, "{} {}", quick.iterations, plain.iterations);
    near(&plain.x, &quick.x, 1e-8);
    assert_eq!(solve(Some(&jacobi), Some(&quick.x)).iterations, 0);
    let short = CgSettings { max_iterations: 2, ..Default::default() };
    let s = cg(&h, &b, None, None, &short, &mut Monitor::silent()).unwrap();
    assert_eq!((s.status, s.iterations), (Status::MaxIterations, 2));
    let negative = dense_from_rows(&[[1.0, 0.0], [0.0, -1.0]]).unwrap();
    let e = cg(&negative, &[0.0, 1.0], None, None, &short, &mut Monitor::silent()).unwrap_err();
    assert!(matches!(e, SolveError::Invalid { argument: "h", .. }));
}

#[test]
fn singular_triples() {
    let a = matrix(60, 25);
    let exact = a.singular_values().unwrap();
    let s = SvdSettings { rank: 4, tolerance: 1e-9, max_iterations: 200, ..Default::default() };
    let got = randomised_svd(&a, &s, &mut Monitor::silent()).unwrap();
    assert!(got.status.is_converged(), "{:?}", got.residuals);
    near(&got.x.values, &exact[..4], 1e-9);
    let gram = got.x.u.transpose() * &got.x.u;
    assert!((gram - Mat::<f64>::identity(4, 4)).norm_max() < 1e-12);
    // All of a low-rank matrix at once.
    let low = matrix(50, 3) * matrix(3, 20);
    let s = SvdSettings { rank: 3, max_iterations: 1, ..Default::default() };
    let x = randomised_svd(&low, &s, &mut Monitor::silent()).unwrap().x;
    let again =
        Mat::from_fn(50, 20, |i, j| (0..3).map(|k| x.u[(i, k)] * x.values[k] * x.v[(j, k)]).sum::<f64>());
    assert!((again - &low).norm_max() < 1e-11);
    let s = SvdSettings { rank: 4, tolerance: 0.0, max_iterations: 1, ..Default::default() };
    assert_eq!(randomised_svd(&a, &s, &mut Monitor::silent()).unwrap().status, Status::MaxIterations);
}

#[test]
fn the_same_bits_on_one_and_two_threads() {
    let (a, b) = (Design::from(matrix(60_000, 12)), vector(60_000));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let x =
                least_squares(&a, &b, &LeastSquaresSettings::default(), &mut Monitor::silent()).unwrap().x;
            let n = nnls(&a, &b, &NnlsSettings::default(), &mut Monitor::silent()).unwrap().x;
            let svd = SvdSettings { rank: 3, max_iterations: 2, ..Default::default() };
            let svd = randomised_svd(&a, &svd, &mut Monitor::silent()).unwrap().x;
            (x, n, leverage(&a).unwrap(), lewis(&a, 1.0, 1e-6, 20).unwrap().weights, svd)
        })
    };
    let (one, two) = (run(1), run(2));
    assert!(one.0 == two.0 && one.1 == two.1, "{:?} {:?}", (one.0, one.1), (two.0, two.1));
    assert!(one.2 == two.2 && one.3 == two.3 && one.4 == two.4);
}

#[test]
fn limits_and_stops() {
    let (a, b) = (Design::from(matrix(50, 4)), vector(50));
    let short = LsqrSettings { max_iterations: 1, ..Default::default() };
    let s = lsqr(&a, &b, None, None, &short, &mut Monitor::silent()).unwrap();
    assert_eq!((s.status, s.iterations), (Status::MaxIterations, 1));
    let mut stop = |_: &rarefy_solve::TracePoint| std::ops::ControlFlow::Break(());
    let mut monitor = Monitor::silent().with_progress(&mut stop);
    let s = lsqr(&a, &b, None, None, &LsqrSettings::default(), &mut monitor).unwrap();
    assert_eq!(s.status, Status::Stopped);
    let full = lsqr(&a, &b, None, None, &LsqrSettings::default(), &mut Monitor::silent()).unwrap();
    let warm = lsqr(&a, &b, None, Some(&full.x), &LsqrSettings::default(), &mut Monitor::silent()).unwrap();
    near(&warm.x, &full.x, 1e-12);
    let zero = lsqr(&a, &[0.0; 50], None, None, &LsqrSettings::default(), &mut Monitor::silent()).unwrap();
    assert!(zero.status.is_converged() && zero.x == [0.0; 4]);
    let few = NnlsSettings { max_iterations: Some(0), ..Default::default() };
    assert_eq!(nnls(&a, &b, &few, &mut Monitor::silent()).unwrap().status, Status::MaxIterations);
}

#[test]
fn hostile_input() {
    let (a, b) = (Design::from(matrix(20, 3)), vector(20));
    let mut bad = matrix(20, 3);
    bad[(4, 1)] = f64::NAN;
    let bad = Design::from(bad);
    let silent = &mut Monitor::silent();
    let ls = LeastSquaresSettings::default();
    assert!(matches!(leverage(&bad), Err(SolveError::NonFinite { .. })));
    assert!(matches!(lewis(&bad, 1.0, 0.1, 3), Err(SolveError::NonFinite { .. })));
    assert!(matches!(lewis(&a, 0.5, 0.1, 3), Err(SolveError::Setting { field: "p", .. })));
    assert!(matches!(nnls(&bad, &b, &NnlsSettings::default(), silent), Err(SolveError::NonFinite { .. })));
    assert!(matches!(least_squares(&bad, &b, &ls, silent), Err(SolveError::NonFinite { .. })));
    assert!(matches!(
        least_squares(&a, &b[1..], &ls, silent),
        Err(SolveError::Dimension { argument: "b", .. })
    ));
    let e = nnls(&a, &b[1..], &NnlsSettings::default(), silent).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "b", .. }));
    let settings = LsqrSettings::default();
    for (b, x0) in [(vec![0.0; 19], None), (b.clone(), Some(&[0.0; 2][..]))] {
        let e = lsqr(&a, &b, None, x0, &settings, silent).unwrap_err();
        assert!(matches!(e, SolveError::Dimension { .. }));
    }
    assert!(matches!(lsqr(&bad, &b, None, None, &settings, silent), Err(SolveError::Breakdown { .. })));
    let other = Whitening::of(matrix(9, 2).as_ref()).unwrap();
    let e = lsqr(&a, &b, Some(&other), None, &settings, silent).unwrap_err();
    assert!(matches!(e, SolveError::Dimension { argument: "precondition", .. }));
    let none = Design::from(Mat::<f64>::zeros(5, 0));
    assert!(matches!(leverage(&none), Err(SolveError::Empty { .. })));
    assert!(matches!(least_squares(&none, &[0.0; 5], &ls, silent), Err(SolveError::Empty { .. })));
    assert!(leverage(&Design::from(Mat::<f64>::zeros(5, 2))).unwrap() == [0.0; 5]);
    let zero = nnls(&Mat::<f64>::zeros(5, 2).into(), &[1.0; 5], &NnlsSettings::default(), silent).unwrap();
    assert!(zero.x == [0.0; 2] && zero.status.is_converged());
    let e = randomised_svd(&a, &SvdSettings { rank: 4, ..Default::default() }, silent).unwrap_err();
    assert!(matches!(e, SolveError::Setting { field: "rank", .. }));
    assert!(matches!(
        cg(&a, &b, None, None, &CgSettings::default(), silent),
        Err(SolveError::Dimension { .. })
    ));
    assert!(serde_json::from_str::<LeastSquaresSettings>(r#"{"row": 3}"#).is_err());
}

proptest! {
    #[test]
    fn nnls_meets_its_conditions(n in 1usize..12, d in 1usize..9, seed in 0u64..1000) {
        let mut k = seed as f64;
        let mut next = || { k += 1.0; (k * 12.9898).sin() * 3.0 };
        let mut a = Mat::from_fn(n, d, |_, _| next());
        // Duplicate columns must not cycle.
        if d > 2 { (0..n).for_each(|i| a[(i, 1)] = a[(i, 0)]); }
        let b: Vec<f64> = (0..n).map(|_| next()).collect();
        let s = nnls(&a.into(), &b, &NnlsSettings::default(), &mut Monitor::silent()).unwrap();
        prop_assert!(s.x.iter().all(|v| *v >= 0.0));
        prop_assert!(s.status.is_converged(), "{:?} {:?}", s.status, s.residuals);
        prop_assert!(s.residual("kkt").unwrap() < 1e-10);
    }
}
