//! `rarefy solve`: answers that are known, files that are written, and bad input.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{json, refuse, text};
use rarefy_data::arrays::{Limits, read_table, read_vector};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn file(&self, name: &str, content: &str) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }
    /// 60 samples of five features; the target is `3 b - 2 d + 1` and a little noise.
    fn regression(&self) -> PathBuf {
        let mut csv = String::from("a,b,c,d,e,target\n");
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1_u64 << 23) as f64 - 1.0
        };
        for _ in 0..60 {
            let x: Vec<f64> = (0..5).map(|_| next()).collect();
            let y = 3.0 * x[1] - 2.0 * x[3] + 1.0 + 0.01 * next();
            let row: Vec<String> = x.iter().chain([&y]).map(f64::to_string).collect();
            csv += &(row.join(",") + "\n");
        }
        self.file("data.csv", &csv)
    }
}

fn page(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn lasso_finds_the_features_and_writes_answer_and_report() {
    let f = Folder::new();
    let (data, out, report) = (f.regression(), f.path("w.npy"), f.path("r.html"));
    let found = json(&[
        "solve",
        "lasso",
        text(&data),
        "-o",
        text(&out),
        "--report",
        text(&report),
        "--one-standard-error",
    ]);
    assert_eq!(found["status"], "converged");
    assert_eq!(found["names"], serde_json::json!(["b", "d"]));
    assert!(found["residuals"]["duality gap"].as_f64().unwrap() < 1e-5);
    let w = read_vector(&out, None, Limits::default()).unwrap();
    assert!((w[1] - 3.0).abs() < 0.1 && (w[3] + 2.0).abs() < 0.1 && w[0] == 0.0, "{w:?}");
    assert!((found["coefficients"]["intercept"].as_f64().unwrap() - 1.0).abs() < 0.05);
    let page = page(&report);
    assert!(page.contains("alpha |w|_1") && page.contains("</html>") && !page.contains("<script"));
    // The same seed chooses the same folds.
    let again = json(&["solve", "lasso", text(&data), "--one-standard-error"]);
    assert_eq!(again["coefficients"], found["coefficients"]);
    let column = json(&["solve", "lasso", text(&data), "--target", "target", "--alpha", "0.01"]);
    let number = json(&["solve", "lasso", text(&data), "--target", "6", "--alpha", "0.01"]);
    assert_eq!(column["coefficients"], number["coefficients"]);
}

#[test]
fn lasso_path_has_one_row_for_each_alpha() {
    let f = Folder::new();
    let (data, out) = (f.regression(), f.path("path.csv"));
    let found = json(&["solve", "lasso", text(&data), "--path", "--alphas", "7", "-o", text(&out)]);
    assert_eq!(found["path"].as_array().unwrap().len(), 7);
    let rows = read_table(&out, None, Limits::default()).unwrap().matrix;
    assert_eq!((rows.n_rows(), rows.n_cols()), (7, 5));
    assert!(rows.to_dense()[..5].iter().all(|v| *v == 0.0), "the first alpha leaves the model empty");
}

#[test]
fn standardising_does_not_depend_on_the_units() {
    let f = Folder::new();
    let data = f.regression();
    let scaled: String = page(&data)
        .lines()
        .enumerate()
        .map(|(i, line)| {
            let mut fields: Vec<String> = line.split(',').map(str::to_owned).collect();
            if i > 0 {
                fields[1] = (fields[1].parse::<f64>().unwrap() * 1000.0).to_string();
            }
            fields.join(",") + "\n"
        })
        .collect();
    let scaled = f.file("scaled.csv", &scaled);
    let solve = |path: &Path| {
        let flags =
            ["solve", "lasso", text(path), "--alpha", "0.05", "--standardize", "--tolerance", "1e-12"];
        json(&flags)["coefficients"]["values"][0].as_f64().unwrap()
    };
    assert!((solve(&data) / solve(&scaled) / 1000.0 - 1.0).abs() < 1e-6);
}

#[test]
fn logistic_separates_two_classes_of_any_name() {
    let f = Folder::new();
    let text_of = |low: &str, high: &str| -> String {
        (0..40)
            .map(|i| {
                format!("{} 1:{} 2:1\n", if i % 3 == 0 { high } else { low }, (i % 3 == 0) as i32 * 2 + i % 2)
            })
            .collect()
    };
    let a = f.file("a.libsvm", &text_of("-1", "+1"));
    let b = f.file("b.libsvm", &text_of("3", "7"));
    let solve = |path: &Path| json(&["solve", "logistic", text(path), "--alpha", "0.05"]);
    let (a, b) = (solve(&a), solve(&b));
    assert_eq!(a["coefficients"], b["coefficients"]);
    assert_eq!(b["classes"], serde_json::json!([3.0, 7.0]));
    assert!(a["coefficients"]["values"][0].as_f64().unwrap() > 0.5);
    refuse(
        &["solve", "logistic", text(&f.file("c.libsvm", "1 1:1\n2 1:2\n3 1:3\n"))],
        &["3 classes", "merge"],
    );
}

#[test]
fn transport_methods_agree_on_a_small_problem() {
    let f = Folder::new();
    let x = f.file("x.csv", "0,0\n1,0\n5,5\n");
    let y = f.file("y.csv", "1.1,0\n5,5.2\n0.1,0\n");
    let out = f.path("plan.mtx");
    let exact = json(&["solve", "transport", text(&x), text(&y), "-o", text(&out)]);
    // Each point goes to its neighbour: (0.1² + 0.1² + 0.2²)/3.
    assert!((exact["cost"].as_f64().unwrap() - 0.02).abs() < 1e-12);
    let plan = read_table(&out, None, Limits::default()).unwrap().matrix.to_dense();
    let third = 1.0 / 3.0;
    for (k, v) in plan.iter().enumerate() {
        let want = if [2, 3, 7].contains(&k) { third } else { 0.0 };
        assert!((v - want).abs() < 1e-12, "{plan:?}");
    }
    for method in ["sinkhorn", "sinkhorn-newton-sparse", "l2", "sparsity-constrained-ot"] {
        let flags =
            ["solve", "transport", text(&x), text(&y), "--method", method, "--regularisation", "0.01"];
        let found = json(&flags);
        assert!((found["cost"].as_f64().unwrap() - 0.02).abs() < 1e-3, "{method}: {}", found["cost"]);
        assert_eq!(found["status"], "converged", "{method}");
    }
}

#[test]
fn bad_input_names_the_place() {
    let f = Folder::new();
    let data = f.regression();
    let lasso = |flags: &[&str], needles: &[&str]| refuse(&[&["solve", "lasso"], flags].concat(), needles);
    lasso(&[text(&f.path("none.csv"))], &["none.csv"]);
    lasso(&[text(&f.file("a.xyz", "1"))], &["`a.xyz`", ".libsvm"]);
    lasso(&[text(&f.file("hole.csv", "a,b\n1,2\n3,\n4,5\n"))], &["not finite", "impute"]);
    lasso(&[text(&data), "--target", "targt"], &["unknown column `targt`", "nearest: `target`"]);
    lasso(
        &[text(&data), "--target-file", text(&f.file("y.csv", "1\n2\n"))],
        &["`y`: expected 60", "found 2"],
    );
    lasso(&[text(&data), "--folds", "1"], &["`folds` = 1"]);
    lasso(&[text(&data), "--l1-ratio", "0"], &["`l1_ratio` = 0"]);
    lasso(&[text(&data), "--alpha", "0"], &["--alpha", "above 0"]);
    lasso(&[text(&data), "-o", text(&f.path("w.doc"))], &["w.doc"]);
    lasso(
        &[text(&f.file("m.mtx", "%%MatrixMarket matrix coordinate real general\n2 2 1\n1 1 1\n"))],
        &["--target-file"],
    );
    let x = f.file("x.csv", "0,0\n1,0\n");
    let ot = |flags: &[&str], needles: &[&str]| refuse(&[&["solve", "transport"], flags].concat(), needles);
    ot(&[text(&x), text(&f.file("z.csv", "0,0,1\n"))], &["2 coordinates", "3"]);
    ot(&[text(&x), text(&x), "--a", text(&f.file("w.csv", "1\n1\n"))], &["sum"]);
    ot(&["--cost", text(&f.file("c.csv", "0,nan\n1,0\n"))], &["`cost`", "not finite"]);
    ot(&[], &["SOURCE"]);
}

#[test]
fn an_answer_that_did_not_converge_is_given_and_exits_with_one() {
    let f = Folder::new();
    let x = f.file("x.csv", "0\n1\n2.5\n");
    let out = f.path("plan.npy");
    let a = f.file("a.csv", "0.2\n0.5\n0.3\n");
    let flags = [
        "solve",
        "transport",
        text(&x),
        text(&x),
        "--method",
        "sinkhorn",
        "--regularisation",
        "0.001",
        "--a",
        text(&a),
        "--max-iterations",
        "1",
        "--tolerance",
        "0",
        "-o",
        text(&out),
    ];
    let run = common::run(&flags);
    assert_eq!(run.status.code(), Some(1));
    assert!(out.exists());
    assert!(String::from_utf8_lossy(&run.stderr).contains("target not met"));
}

/// `u v'` with `u = 1..6`, `v = 1..5`, without four entries.
fn rank_one(f: &Folder) -> PathBuf {
    let hidden = [(0, 0), (2, 3), (5, 1), (3, 4)];
    let mut csv = String::new();
    for i in 0..6 {
        for j in 0..5 {
            if !hidden.contains(&(i, j)) {
                csv += &format!("{},{},{}\n", i + 1, j + 1, (i + 1) * (j + 1));
            }
        }
    }
    f.file("entries.csv", &csv)
}

#[test]
fn completion_of_a_matrix_of_rank_one() {
    let f = Folder::new();
    let (data, out, pairs) = (rank_one(&f), f.path("p.csv"), f.file("pairs.csv", "1,1\n3,4\n6,2\n4,5\n"));
    for method in ["matrix-completion", "als"] {
        let found = json(&[
            "solve",
            "complete",
            text(&data),
            "--base",
            "1",
            "--rank",
            "1",
            "--centre",
            "none",
            "--held-out",
            "0",
            "--method",
            method,
            "--predict",
            text(&pairs),
            "-o",
            text(&out),
        ]);
        assert_eq!(found["shape"], serde_json::json!([6, 5]));
        let predicted = read_vector(&out, None, Limits::default()).unwrap();
        for (got, want) in predicted.iter().zip([1.0, 12.0, 12.0, 20.0]) {
            assert!((got - want).abs() < 1e-6, "{method}: {predicted:?}");
        }
    }
    let matrix = f.file("nan.csv", "1,2,3\n2,4,NaN\n3,6,9\n");
    let out = f.path("whole.csv");
    json(&[
        "solve",
        "complete",
        text(&matrix),
        "--dense",
        "--rank",
        "1",
        "--centre",
        "none",
        "--held-out",
        "0",
        "-o",
        text(&out),
    ]);
    assert!((read_table(&out, None, Limits::default()).unwrap().matrix.to_dense()[5] - 6.0).abs() < 1e-6);
    refuse(&["solve", "complete", text(&matrix), "--rank", "1"], &["not finite"]);
    refuse(&["solve", "complete", text(&f.file("two.csv", "1,2\n3,4\n"))], &["2 columns", "--dense"]);
    refuse(&["solve", "complete", text(&f.file("half.csv", "0.5,1,2\n"))], &["entry 1", "--base"]);
    refuse(&["solve", "complete", text(&data), "--base", "1", "--rank", "9"], &["`rank` = 9"]);
}

/// Rows of a matrix of pseudo-random signs, as csv.
fn signs(rows: usize, cols: usize) -> (String, Vec<Vec<f64>>) {
    let mut state = 3_u64;
    let mut sign = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if state >> 63 == 0 { 1.0 } else { -1.0 }
    };
    let a: Vec<Vec<f64>> = (0..rows).map(|_| (0..cols).map(|_| sign()).collect()).collect();
    let line = |r: &Vec<f64>| r.iter().map(f64::to_string).collect::<Vec<_>>().join(",") + "\n";
    (a.iter().map(line).collect(), a)
}

#[test]
fn recovery_finds_the_support() {
    let f = Folder::new();
    let (csv, a) = signs(20, 40);
    let x = |j: usize| {
        if j == 4 {
            2.0
        } else if j == 17 {
            -1.5
        } else {
            0.0
        }
    };
    let y: String =
        a.iter().map(|r| format!("{}\n", r.iter().enumerate().map(|(j, v)| v * x(j)).sum::<f64>())).collect();
    let (matrix, y) = (f.file("a.csv", &csv), f.file("y.csv", &y));
    let out = f.path("x.npy");
    for method in ["sbl", "omp"] {
        let flags = [
            "solve",
            "recover",
            text(&y),
            "-A",
            text(&matrix),
            "--method",
            method,
            "-k",
            "2",
            "-o",
            text(&out),
        ];
        common::run(&flags);
        let found = read_vector(&out, None, Limits::default()).unwrap();
        assert!((found[4] - 2.0).abs() < 0.02 && (found[17] + 1.5).abs() < 0.02, "{method}: {found:?}");
    }
    let short = f.file("short.csv", "1,0\n");
    refuse(&["solve", "recover", text(&y), "-A", text(&short)], &["`y`: expected 1", "found 20"]);
    // Two factors: x = e_1 ⊗ e_2 of two unknowns each.
    let (one, two) = (f.file("one.csv", "1,0\n0,1\n1,1\n"), f.file("two.csv", "2,1\n1,2\n1,-1\n"));
    let y = f.file("ky.csv", "1\n2\n-1\n0\n0\n0\n1\n2\n-1\n");
    let found = json(&["solve", "recover", text(&y), "-A", text(&one), "-A", text(&two), "--noise", "1e-8"]);
    assert_eq!(found["indices"], serde_json::json!([1]));
}

#[test]
fn transforms_agree_and_the_sparse_one_reads_less() {
    let f = Folder::new();
    let n = 1_usize << 12;
    let sign = |m: usize, k: usize| if (m & k).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let samples: String = (0..n).map(|m| format!("{}\n", 3.0 * sign(m, 77) - 0.5 * sign(m, 2048))).collect();
    let data = f.file("x.csv", &samples);
    let out = f.path("spectrum.npy");
    json(&["solve", "wht", text(&data), "-o", text(&out)]);
    let all = read_vector(&out, None, Limits::default()).unwrap();
    assert!((all[77] - 3.0).abs() < 1e-12 && (all[2048] + 0.5).abs() < 1e-12 && all[1].abs() < 1e-12);
    let sparse = json(&["solve", "wht", text(&data), "--method", "spright", "-k", "2"]);
    assert_eq!(sparse["entries"][0][0], 77);
    assert!((sparse["entries"][1][1].as_f64().unwrap() + 0.5).abs() < 1e-9);
    assert!(sparse["samples_used"].as_u64().unwrap() < 400);
    refuse(&["solve", "wht", text(&f.file("three.csv", "1\n2\n3\n"))], &["3 samples", "power of two"]);
    refuse(&["solve", "wht", text(&f.file("nan.csv", "1\nNaN\n"))], &["sample 2"]);
}

#[test]
fn online_learning_comes_near_the_best_fixed_weights() {
    let f = Folder::new();
    let lines: String = (0..400)
        .map(|t| {
            let (a, b) = ((t as f64 * 0.7).sin(), (t as f64 * 1.3).cos());
            format!("{} 1:{a} 2:{b}\n", 0.6 * a - 0.3 * b)
        })
        .collect();
    let data = f.file("s.libsvm", &lines);
    let found = json(&["solve", "online", text(&data), "--gradient-bound", "2"]);
    assert_eq!(found["iterations"], 400);
    let w = found["last"].as_array().unwrap();
    assert!(
        (w[0].as_f64().unwrap() - 0.6).abs() < 0.1 && (w[1].as_f64().unwrap() + 0.3).abs() < 0.1,
        "{w:?}"
    );
    let found = json(&["solve", "online", text(&data), "--loss", "logistic"]);
    assert!(found["right_signs"].as_u64().unwrap() > 300);
    refuse(&["solve", "online", text(&data), "--radius", "0"], &["--radius"]);
}

#[test]
fn least_squares_whole_streamed_and_sketched() {
    let f = Folder::new();
    let data = f.regression();
    let whole = json(&["solve", "regress", text(&data)]);
    let streamed = json(&["solve", "regress", text(&data), "--stream"]);
    let values = |v: &serde_json::Value| -> Vec<f64> {
        v["coefficients"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let w = values(&whole);
    assert!((w[1] - 3.0).abs() < 0.01 && (w[3] + 2.0).abs() < 0.01 && w[0].abs() < 0.01, "{w:?}");
    for (a, b) in w.iter().zip(values(&streamed)) {
        assert!((a - b).abs() < 1e-10, "{w:?} {streamed}");
    }
    assert_eq!((streamed["samples"].as_u64(), &streamed["names"]), (Some(60), &whole["names"]));
    assert!(
        (streamed["objective"].as_f64().unwrap() / whole["objective"].as_f64().unwrap() - 1.0).abs() < 1e-8
    );
    let sketched = json(&[
        "solve",
        "regress",
        text(&data),
        "--method",
        "linf-regression",
        "--rows",
        "40",
        "--sketch",
        "gaussian",
    ]);
    assert!((values(&sketched)[1] - 3.0).abs() < 0.05);
    let robust = json(&["solve", "regress", text(&data), "--method", "lp-sensitivity-sampling", "-p", "1"]);
    assert!((values(&robust)[1] - 3.0).abs() < 0.05, "{robust}");
    refuse(
        &["solve", "regress", text(&data), "--method", "lp-sensitivity-sampling", "-p", "0.5"],
        &["`p` = 0.5"],
    );
    let positive = json(&["solve", "regress", text(&data), "--method", "nnls"]);
    assert!(values(&positive).iter().all(|v| *v >= 0.0));
    // libsvm text says its width only at its end.
    let libsvm = f.file("a.libsvm", "1 1:1\n2 2:1\n5 1:1 2:2\n");
    refuse(&["solve", "regress", text(&libsvm), "--stream"], &["number of features"]);
    let found = json(&["solve", "regress", text(&libsvm), "--stream", "--features", "2", "--no-intercept"]);
    assert!((values(&found)[0] - 1.0).abs() < 1e-12 && (values(&found)[1] - 2.0).abs() < 1e-12);
    refuse(&["solve", "regress", text(&data), "--stream", "--method", "nnls"], &["--stream"]);
}

#[test]
fn private_regression_is_repeatable_only_when_asked() {
    let f = Folder::new();
    let data = f.regression();
    let run =
        |flags: &[&str]| json(&[&["solve", "private-regression", text(&data), "-k", "2"], flags].concat());
    let theta = |v: serde_json::Value| v["theta"].clone();
    let first = theta(run(&["--repeatable", "--seed", "3"]));
    assert_eq!(first, theta(run(&["--repeatable", "--seed", "3"])));
    assert_eq!(first, theta(run(&["--repeatable", "--seed", "3", "--users", "60"])));
    assert_ne!(theta(run(&["--seed", "3"])), theta(run(&["--seed", "3"])));
    let all = [&["solve", "private-regression", text(&data)][..], &["--users", "61"]].concat();
    refuse(&all, &["61"]);
    refuse(&["solve", "private-regression", text(&data), "--method", "public"], &["public"]);
    refuse(&["solve", "private-regression", text(&data), "--epsilon", "0"], &["--epsilon"]);
}

#[test]
fn a_small_file_that_promises_too_much_is_refused() {
    let f = Folder::new();
    let wide = f.file("wide.libsvm", "1 4294967295:1\n-1 1:1\n");
    refuse(&["solve", "lasso", text(&wide)], &["line 1", "within the limit"]);
    let tall = f.file("tall.mtx", "%%MatrixMarket matrix coordinate real general\n4294967295 1 1\n1 1 1\n");
    refuse(&["solve", "complete", text(&tall)], &["tall.mtx", "within the limit"]);
    let large: String = (0..20).map(|i| format!("1 {}:1\n", 100_000_000 + i)).collect();
    let large = f.file("large.libsvm", &large);
    refuse(&["solve", "private-regression", text(&large)], &["too large to be held dense"]);
}
