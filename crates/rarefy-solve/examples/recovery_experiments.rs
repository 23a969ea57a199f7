//! Runs the experiments of completion and recovery: `recovery_experiments [full] [completion|kronecker]`; MovieLens when `RAREFY_DATA` names
//! the data folder.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a measurement, not a library")]

use rarefy_solve::experiments::Measured;
use rarefy_solve::experiments::{kronecker_sbl as kronecker, matrix_completion as completion};
use rarefy_solve::linop::Triplet;

fn movielens() -> Option<Vec<Triplet>> {
    let path = std::path::PathBuf::from(std::env::var_os("RAREFY_DATA")?).join("recsys/ml-100k.npz");
    let mut archive = npyz::npz::NpzArchive::open(path).ok()?;
    let user: Vec<i32> = archive.by_name("user").ok()??.into_vec().ok()?;
    let item: Vec<i32> = archive.by_name("item").ok()??.into_vec().ok()?;
    let rating: Vec<f32> = archive.by_name("rating").ok()??.into_vec().ok()?;
    Some((0..user.len()).map(|i| (user[i] as usize, item[i] as usize, f64::from(rating[i]))).collect())
}

fn main() {
    let full = std::env::args().any(|a| a == "full");
    let start = std::time::Instant::now();
    let mut say = |what: &str| println!("{:6.1} s  {what}", start.elapsed().as_secs_f64());
    let only =
        |name: &str| !std::env::args().any(|a| ["completion", "kronecker"].contains(&&*a) && a != name);
    let mut measured = Measured::default();
    if only("completion") {
        let sizes = if full { completion::Sizes::full(0) } else { completion::Sizes::quick(0) };
        measured = completion::run(sizes, movielens().as_deref(), &mut say).unwrap();
    }
    if only("kronecker") {
        let sizes = if full { kronecker::Sizes::full(0) } else { kronecker::Sizes::quick(0) };
        let more = kronecker::run(sizes, &mut say).unwrap();
        measured.rows.extend(more.rows);
        measured.margins.extend(more.margins);
    }
    for row in &measured.rows {
        println!("{} | {} | {:?}", row.experiment, row.case, row.values);
    }
    for m in &measured.margins {
        println!("{} {}: {:.3e} >= {}", if m.holds() { "pass" } else { "FAIL" }, m.name, m.value, m.least);
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
}
