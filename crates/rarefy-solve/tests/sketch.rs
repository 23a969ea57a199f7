//! Sketches: unbiased, streamed, embedding, the same on any number of threads, and hostile input.
#![allow(clippy::unwrap_used, reason = "tests")]

use faer::{Mat, MatRef};
use proptest::prelude::*;
use rarefy_solve::SolveError;
use rarefy_solve::sketch::{SketchKind, Stream};

const KINDS: [SketchKind; 6] = [
    SketchKind::Gaussian,
    SketchKind::Srht,
    SketchKind::BalancedPooling,
    SketchKind::Osnap { nonzeros: 2 },
    SketchKind::Osnap { nonzeros: 4 },
    SketchKind::CountSketch,
];

fn matrix(n: usize, p: usize) -> Mat<f64> {
    Mat::from_fn(n, p, |i, j| ((i * p + j) as f64 * 0.7).sin() + (i as f64 * 0.01 * j as f64).cos())
}

fn distance(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    (a - b).norm_max()
}

#[test]
fn gram_of_the_sketch_is_the_identity_on_average() {
    // 8 columns, 4000 draws: a spread of at most √(2/4/4000) = 0.011 per entry for m = 4.
    for n in [8, 6] {
        for kind in KINDS {
            let mut mean = Mat::<f64>::zeros(n, n);
            let draws = 4000;
            for seed in 0..draws {
                let s = kind.draw(n, 4, seed).unwrap().apply(Mat::identity(n, n).as_ref()).unwrap();
                mean += s.transpose() * &s;
            }
            let mean = mean * faer::Scale(1.0 / draws as f64);
            let error = distance(mean.as_ref(), Mat::identity(n, n).as_ref());
            assert!(error < 0.05, "{kind:?}, n = {n}: {error}");
        }
    }
}

#[test]
fn the_form_of_each_sketch() {
    let dense =
        |kind: SketchKind, m| kind.draw(16, m, 3).unwrap().apply(Mat::identity(16, 16).as_ref()).unwrap();
    // Srht with all rows is orthogonal.
    let s = dense(SketchKind::Srht, 16);
    assert!(distance((s.transpose() * &s).as_ref(), Mat::identity(16, 16).as_ref()) < 1e-14);
    // CountSketch and Osnap: one sign per column and band.
    for (kind, nonzeros, value) in
        [(SketchKind::CountSketch, 1, 1.0), (SketchKind::Osnap { nonzeros: 4 }, 4, 0.5)]
    {
        let s = dense(kind, 8);
        for j in 0..16 {
            for band in 0..nonzeros {
                let rows = band * 8 / nonzeros..(band + 1) * 8 / nonzeros;
                let found: Vec<f64> = rows.map(|i| s[(i, j)].abs()).filter(|v| *v > 0.0).collect();
                assert_eq!(found, [value]);
            }
        }
    }
}

#[test]
fn row_blocks_of_any_size_give_the_same_sketch() {
    for n in [256, 203] {
        let a = matrix(n, 5);
        for kind in KINDS {
            let s = kind.draw(n, 32, 11).unwrap();
            let want = s.apply(a.as_ref()).unwrap();
            for rows in [1, 7, 64, 100, n] {
                let mut stream = Stream::new(s.as_ref(), 5);
                while stream.rows_read() < n {
                    let at = stream.rows_read();
                    stream.push(a.as_ref().subrows(at, rows.min(n - at))).unwrap();
                }
                let got = stream.finish().unwrap();
                assert!(distance(got.as_ref(), want.as_ref()) < 1e-12, "{kind:?}, blocks of {rows}");
            }
        }
    }
}

#[test]
fn layouts_and_vectors_agree() {
    let a = matrix(300, 37);
    let row_major: Vec<f64> =
        (0..300).flat_map(|i| (0..37).map(move |j| (i, j))).map(|(i, j)| a[(i, j)]).collect();
    let rows = MatRef::from_row_major_slice(&row_major, 300, 37);
    for kind in KINDS {
        let s = kind.draw(300, 16, 5).unwrap();
        let want = s.apply(a.as_ref()).unwrap();
        assert!(distance(s.apply(rows).unwrap().as_ref(), want.as_ref()) < 1e-12, "{kind:?}");
        let x: Vec<f64> = (0..300).map(|i| a[(i, 9)]).collect();
        let one = s.apply_vector(&x).unwrap();
        assert!((0..16).all(|i| (one[i] - want[(i, 9)]).abs() < 1e-12), "{kind:?}");
    }
}

#[test]
fn subspaces_are_embedded() {
    let (n, d, m) = (4096, 8, 1024);
    let q = matrix(n, d).qr().compute_thin_Q();
    for kind in KINDS {
        let s = kind.draw(n, m, 2).unwrap().apply(q.as_ref()).unwrap();
        let values = s.singular_values().unwrap();
        assert!(values.iter().all(|v| (0.75..1.25).contains(v)), "{kind:?}: {values:?}");
    }
}

#[test]
fn seeds_and_threads() {
    let a = matrix(5000, 40);
    for kind in KINDS {
        let apply = |threads, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| kind.draw(5000, 64, seed).unwrap().apply(a.as_ref()).unwrap())
        };
        assert_eq!(apply(1, 4), apply(2, 4), "{kind:?}");
        assert_ne!(apply(1, 4), apply(1, 5), "{kind:?}");
    }
}

#[test]
fn kinds_in_settings_files() {
    let kind: SketchKind = serde_json::from_str(r#"{"osnap":{"nonzeros":3}}"#).unwrap();
    assert_eq!(kind, SketchKind::Osnap { nonzeros: 3 });
    assert_eq!(serde_json::to_string(&SketchKind::BalancedPooling).unwrap(), "\"balanced-pooling\"");
}

#[test]
fn hostile_input() {
    for kind in KINDS {
        assert!(matches!(kind.draw(0, 4, 0), Err(SolveError::Setting { field: "n_in", .. })));
        assert!(matches!(kind.draw(4, 0, 0), Err(SolveError::Setting { field: "n_out", .. })));
        let s = kind.draw(8, 4, 0).unwrap();
        assert!(matches!(s.apply(matrix(7, 2).as_ref()), Err(SolveError::Dimension { found: 7, .. })));
        assert!(matches!(s.apply_vector(&[0.0; 9]), Err(SolveError::Dimension { found: 9, .. })));
        for bad in [f64::NAN, f64::INFINITY] {
            let mut a = matrix(8, 2);
            a[(3, 1)] = bad;
            let want = SolveError::NonFinite { argument: "a", count: 1, first: 11 };
            assert_eq!(s.apply(a.as_ref()).unwrap_err(), want, "{kind:?}");
            let mut stream = Stream::new(s.as_ref(), 2);
            assert!(matches!(stream.push(a.as_ref()), Err(SolveError::NonFinite { .. })));
            assert_eq!(stream.rows_read(), 0);
        }
        assert_eq!(s.apply(Mat::<f64>::zeros(8, 0).as_ref()).unwrap().ncols(), 0);
        let mut stream = Stream::new(s.as_ref(), 2);
        assert!(matches!(stream.push(matrix(3, 3).as_ref()), Err(SolveError::Dimension { .. })));
        assert!(matches!(stream.push(matrix(9, 2).as_ref()), Err(SolveError::Dimension { .. })));
        stream.push(matrix(3, 2).as_ref()).unwrap();
        assert!(matches!(stream.finish(), Err(SolveError::Dimension { found: 3, .. })));
    }
    let huge = Mat::from_fn(8, 1, |_, _| f64::MAX);
    let s = SketchKind::CountSketch.draw(8, 1, 1).unwrap();
    match s.apply(huge.as_ref()) {
        Ok(sum) => assert!(sum[(0, 0)].is_finite()),
        Err(e) => assert!(matches!(e, SolveError::Breakdown { .. })),
    }
    assert!(matches!(SketchKind::Srht.draw(5, 9, 0), Err(SolveError::Setting { .. })));
    assert!(matches!(SketchKind::BalancedPooling.draw(16, 6, 0), Err(SolveError::Setting { .. })));
    for nonzeros in [0, 5] {
        let e = SketchKind::Osnap { nonzeros }.draw(8, 4, 0).unwrap_err();
        assert!(matches!(e, SolveError::Setting { field: "nonzeros", .. }));
    }
}

proptest! {
    #[test]
    fn sketches_are_linear(n in 1usize..200, seed: u64, c in -3.0..3.0f64) {
        let m = (n / 2).max(1).next_power_of_two();
        let (x, y) = (matrix(n, 1), matrix(n, 2));
        for kind in [SketchKind::Gaussian, SketchKind::Srht, SketchKind::BalancedPooling,
                     SketchKind::Osnap { nonzeros: 1 }, SketchKind::CountSketch] {
            let s = kind.draw(n, m, seed).unwrap();
            let sum = Mat::from_fn(n, 1, |i, _| x[(i, 0)] + c * y[(i, 1)]);
            let (sx, sy) = (s.apply(x.as_ref()).unwrap(), s.apply(y.as_ref()).unwrap());
            let got = s.apply(sum.as_ref()).unwrap();
            prop_assert!((0..m).all(|i| (got[(i, 0)] - sx[(i, 0)] - c * sy[(i, 1)]).abs() < 1e-11 * n as f64));
        }
    }
}
