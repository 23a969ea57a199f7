//! Times the Walsh–Hadamard transform and the sketches: `sketch [repetitions]`.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a measurement, not a library")]

use std::time::Instant;

use faer::{Mat, MatRef};
use rarefy_solve::sketch::{Sketch, SketchKind, walsh_hadamard};

fn time(repetitions: usize, mut work: impl FnMut()) -> String {
    work();
    let mut ms: Vec<f64> = (0..repetitions)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    ms.sort_unstable_by(f64::total_cmp);
    format!("median {:.3} ms, least {:.3} ms", ms[ms.len() / 2], ms[0])
}

fn main() {
    let repetitions = std::env::args().nth(1).map_or(15, |v| v.parse().unwrap());
    for bits in [18, 20, 22] {
        let mut x: Vec<f64> = (0..1 << bits).map(|i| f64::from(i % 5) - 2.0).collect();
        let scale = 1.0 / f64::from(1 << bits);
        let one = time(repetitions, || {
            walsh_hadamard(&mut x).unwrap();
            if x[0].abs() > 1e200 {
                x.iter_mut().for_each(|v| *v *= scale);
            }
        });
        println!("walsh-hadamard 2^{bits} f64: {one}");
    }
    let (n, p, m) = (1 << 18, 64, 4096);
    let a = Mat::from_fn(n, p, |i, j| f64::from((i * 31 + j * 17) as u32 % 101) - 50.0);
    let by_rows: Vec<f64> = (0..n * p).map(|k| a[(k / p, k % p)]).collect();
    let rows = MatRef::from_row_major_slice(&by_rows, n, p);
    let read = time(repetitions, || {
        use rayon::prelude::*;
        let sum: f64 = by_rows.par_chunks(1 << 16).map(rarefy_solve::linop::dense::sum).sum();
        assert!(sum.is_finite());
    });
    println!("read of 2^18 x 64, all threads: {read}");
    for kind in [
        SketchKind::CountSketch,
        SketchKind::Osnap { nonzeros: 4 },
        SketchKind::Srht,
        SketchKind::BalancedPooling,
    ] {
        println!("{kind:?} drawn: {}", time(repetitions, || drop(kind.draw(n, m, 1).unwrap())));
        let s: Box<dyn Sketch> = kind.draw(n, m, 1).unwrap();
        println!(
            "{kind:?} 2^18 x 64 -> 4096, by columns: {}",
            time(repetitions, || drop(s.apply(a.as_ref()).unwrap()))
        );
        println!(
            "{kind:?} 2^18 x 64 -> 4096, by rows: {}",
            time(repetitions, || drop(s.apply(rows).unwrap()))
        );
    }
}
