//! Long convolutions on every code path of this CPU against the definition in f64, against rustfft, and against each other.
#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use rarefy_kernels::fft_conv::{
    ChunkedConv, DirectConv, FrequencyMask, FrequencySparseConv, Gates, Gradients, LongConv, monarch,
};
use rarefy_kernels::{Isa, KernelError};
use rustfft::{FftPlanner, num_complex::Complex};
use support::noise;

/// The definition, one row.
fn direct_f64(u: &[f64], k: &[f64]) -> Vec<f64> {
    (0..u.len()).map(|n| (0..k.len().min(n + 1)).map(|j| k[j] * u[n - j]).sum()).collect()
}

/// Cyclic convolution of zero-padded rows through rustfft in f64, the kernel's spectrum changed by `mask`; first `u.len()` outputs.
fn rustfft_f64(u: &[f64], k: &[f64], points: usize, mask: impl Fn(usize) -> bool) -> Vec<f64> {
    let mut planner = FftPlanner::new();
    let pad = |x: &[f64]| {
        let mut z: Vec<Complex<f64>> = x.iter().map(|v| Complex::new(*v, 0.0)).collect();
        z.resize(points, Complex::default());
        z
    };
    let (mut a, mut b) = (pad(u), pad(k));
    let forward = planner.plan_fft_forward(points);
    forward.process(&mut a);
    forward.process(&mut b);
    for (f, (a, b)) in a.iter_mut().zip(&b).enumerate() {
        *a = if mask(f) { *a * b / points as f64 } else { Complex::default() };
    }
    planner.plan_fft_inverse(points).process(&mut a);
    a[..u.len()].iter().map(|v| v.re).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

struct Case {
    batch: usize,
    heads: usize,
    len: usize,
    taps: usize,
    u: Vec<f32>,
    k: Vec<f32>,
    gate_in: Option<Vec<f32>>,
    gate_out: Option<Vec<f32>>,
}

impl Case {
    fn new(seed: u64, batch: usize, heads: usize, len: usize, taps: usize) -> Self {
        let all = batch * heads * len;
        Self {
            batch,
            heads,
            len,
            taps,
            u: noise(seed, all),
            k: noise(seed + 1, heads * taps),
            gate_in: (seed % 2 == 1).then(|| noise(seed + 2, all)),
            gate_out: (seed / 2 % 2 == 1).then(|| noise(seed + 3, all)),
        }
    }

    fn gates(&self) -> Gates<'_> {
        Gates { input: self.gate_in.as_deref(), output: self.gate_out.as_deref() }
    }

    /// The result of `f(row of gated inputs, kernel)` on each row, gated.
    fn rows(&self, f: impl Fn(&[f64], &[f64]) -> Vec<f64>) -> Vec<f64> {
        let gate = |g: &Option<Vec<f32>>, i: usize| g.as_ref().map_or(1.0, |g| f64::from(g[i]));
        let u: Vec<f64> = (0..self.u.len()).map(|i| f64::from(self.u[i]) * gate(&self.gate_in, i)).collect();
        let k = wide(&self.k);
        let mut y = Vec::new();
        for r in 0..self.batch * self.heads {
            let h = r % self.heads;
            y.extend(f(&u[r * self.len..][..self.len], &k[h * self.taps..][..self.taps]));
        }
        y.iter().enumerate().map(|(i, y)| y * gate(&self.gate_out, i)).collect()
    }

    /// Runs on dirty, unaligned memory with one and two threads, which must agree.
    fn run(
        &self,
        scratch: usize,
        f: impl Fn(&mut [f32], &mut [f32]) -> Result<(), KernelError> + Sync,
    ) -> Vec<f32> {
        let mut results = [(1, 0), (2, 3)].map(|(threads, shift)| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut y = vec![f32::NAN; self.u.len() + shift];
            let mut scratch = vec![f32::NAN; scratch + shift];
            pool.install(|| f(&mut y[shift..], &mut scratch[shift..])).unwrap();
            y.split_off(shift)
        });
        assert_eq!(bits(&results[0]), bits(&results[1]), "one and two threads");
        std::mem::take(&mut results[0])
    }

    fn long(&self, isa: Isa) -> Vec<f32> {
        let conv = LongConv::new(&self.k, self.heads, self.taps, self.len).unwrap();
        self.run(conv.scratch_len(2), |y, s| conv.forward_with(isa, &self.u, self.batch, self.gates(), y, s))
    }

    fn chunked(&self, isa: Isa, window: usize) -> Vec<f32> {
        let conv = ChunkedConv::with_window(&self.k, self.heads, self.taps, window).unwrap();
        self.run(conv.scratch_len(2), |y, s| {
            conv.forward_with(isa, &self.u, self.batch, self.len, self.gates(), y, s)
        })
    }

    fn direct(&self, isa: Isa) -> Vec<f32> {
        let conv = DirectConv::new(&self.k, self.heads, self.taps).unwrap();
        self.run(conv.scratch_len(2), |y, s| {
            conv.forward_with(isa, &self.u, self.batch, self.len, self.gates(), y, s)
        })
    }

    fn sparse(&self, isa: Isa, mask: FrequencyMask) -> Vec<f32> {
        let conv = FrequencySparseConv::new(&self.k, self.heads, self.taps, self.len, mask).unwrap();
        self.run(conv.scratch_len(2), |y, s| conv.forward_with(isa, &self.u, self.batch, self.gates(), y, s))
    }
}

/// Largest error relative to the root mean square of the expected values.
fn error(y: &[f32], want: &[f64]) -> f64 {
    assert_eq!(y.len(), want.len());
    let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len().max(1) as f64).sqrt().max(1e-30);
    y.iter()
        .zip(want)
        .map(|(y, w)| (f64::from(*y) - w).abs() / rms)
        .fold(0.0, |a: f64, e| if e.is_nan() { e } else { a.max(e) })
}

/// Measured on the sizes below: at most 3e-6; the specification allows 1e-4.
const TOLERANCE: f64 = 1e-5;

fn close(y: &[f32], want: &[f64], what: &str) {
    let e = error(y, want);
    assert!(e <= TOLERANCE, "{what}: error {e}");
}

#[test]
fn by_hand() {
    // Rows (1 2 3) and (4 5 6), kernels (1 -1) and (0 2): differences, and the row before doubled.
    let (u, k) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, -1.0, 0.0, 2.0]);
    let want = [1.0, 1.0, 1.0, 0.0, 8.0, 10.0];
    let mut y = [0.0; 6];
    let conv = LongConv::new(&k, 2, 2, 3).unwrap();
    conv.forward(&u, 1, Gates::default(), &mut y, &mut vec![0.0; conv.scratch_len(1)]).unwrap();
    assert!(y.iter().zip(want).all(|(y, w): (&f32, f32)| (y - w).abs() < 1e-5), "{y:?}");
    let conv = DirectConv::new(&k, 2, 2).unwrap();
    conv.forward(&u, 1, 3, Gates::default(), &mut y, &mut vec![0.0; conv.scratch_len(1)]).unwrap();
    assert_eq!(y, want);
}

#[test]
fn every_path_equals_the_definition_at_odd_sizes() {
    let sizes = [
        (1, 1),
        (2, 2),
        (17, 5),
        (255, 255),
        (256, 256),
        (257, 257),
        (511, 100),
        (512, 512),
        (700, 30),
        (1000, 1000),
    ];
    for (i, (len, taps)) in sizes.into_iter().enumerate() {
        for batch in [1, 3] {
            let case = Case::new(i as u64, batch, 2, len, taps);
            let want = case.rows(direct_f64);
            for isa in Isa::available() {
                close(&case.long(isa), &want, &format!("long {isa} {len} {taps}"));
                close(&case.direct(isa), &want, &format!("direct {isa} {len} {taps}"));
                for window in [0, 1024, 4096] {
                    close(&case.chunked(isa, window), &want, &format!("chunked {isa} {len} {taps} {window}"));
                }
            }
        }
    }
}

#[test]
fn every_radix_equals_rustfft() {
    for bits in 9..=18 {
        let len = (1usize << bits) - if bits % 3 == 0 { 5 } else { 0 };
        let case = Case::new(bits as u64, 1, 1, len, len);
        let want = case.rows(|u, k| rustfft_f64(u, k, 2 << bits, |_| true));
        for isa in Isa::available() {
            close(&case.long(isa), &want, &format!("{isa} {len}"));
            close(&case.sparse(isa, FrequencyMask::ALL), &want, &format!("pairs {isa} {len}"));
        }
    }
}

#[test]
fn avx2_and_avx512_agree_bit_for_bit() {
    if !Isa::Avx512.is_available() {
        return;
    }
    for len in [300, 4096, 16384, 20000] {
        let case = Case::new(3, 2, 1, len, len);
        assert_eq!(bits(&case.long(Isa::Avx2)), bits(&case.long(Isa::Avx512)), "{len}");
        assert_eq!(bits(&case.chunked(Isa::Avx2, 1024)), bits(&case.chunked(Isa::Avx512, 1024)), "{len}");
        let mask = FrequencyMask::low_pass(2);
        assert_eq!(bits(&case.sparse(Isa::Avx2, mask)), bits(&case.sparse(Isa::Avx512, mask)), "{len}");
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let case = Case::new(0, 3, 2, 900, 900);
    let all = case.long(Isa::detect());
    for b in 0..3 {
        let u = case.u[b * 1800..][..1800].to_vec();
        let one = Case { batch: 1, u, k: case.k.clone(), gate_in: None, gate_out: None, ..case };
        assert_eq!(bits(&one.long(Isa::detect())), bits(&all[b * 1800..][..1800]));
    }
}

#[test]
fn delta_is_the_identity_and_a_shift_shifts() {
    for shift in [0, 1, 300, 999] {
        let mut case = Case::new(4, 2, 1, 1000, 1000);
        (case.gate_in, case.gate_out) = (None, None);
        case.k.fill(0.0);
        case.k[shift] = 1.0;
        for isa in Isa::available() {
            let y = case.long(isa);
            for (y, u) in y.chunks(1000).zip(case.u.chunks(1000)) {
                assert!(y[..shift].iter().all(|v| v.abs() < 2e-6), "{isa} {shift}");
                assert!(y[shift..].iter().zip(u).all(|(y, u)| (y - u).abs() < 2e-6), "{isa} {shift}");
            }
        }
    }
}

#[test]
fn it_is_linear_and_causal() {
    let (a, b) = (Case::new(4, 1, 1, 2048, 2048), Case::new(8, 1, 1, 2048, 2048));
    let mix =
        |u: Vec<f32>| Case { u, k: a.k.clone(), gate_in: None, gate_out: None, ..a }.long(Isa::detect());
    let sum = mix(a.u.iter().zip(&b.u).map(|(a, b)| 2.0 * a - b).collect());
    let want: Vec<f64> =
        mix(a.u.clone()).iter().zip(mix(b.u.clone())).map(|(a, b)| f64::from(2.0 * a - b)).collect();
    close(&sum, &want, "linear");
    // Inputs from 1000 on do not change outputs before.
    let mut later = a.u.clone();
    later[1000..].fill(0.0);
    let (full, cut) = (mix(a.u.clone()), mix(later));
    assert!(error(&cut[..1000], &wide(&full[..1000])) < TOLERANCE);
}

#[test]
fn chunks_of_any_size_and_the_whole_agree() {
    let case = Case::new(7, 2, 2, 5000, 200);
    let want = wide(&case.long(Isa::detect()));
    for window in [512, 600, 1024, 2048, 8192, 32768] {
        close(&case.chunked(Isa::detect(), window), &want, &format!("window {window}"));
    }
    // As long as the row: partial is full.
    let full = Case::new(7, 1, 2, 3000, 3000);
    close(&full.chunked(Isa::detect(), 0), &wide(&full.long(Isa::detect())), "all taps");
    // More taps than elements.
    let more = Case::new(7, 1, 2, 100, 300);
    for y in [more.long(Isa::detect()), more.chunked(Isa::detect(), 0), more.direct(Isa::detect())] {
        close(&y, &more.rows(direct_f64), "more taps than elements");
    }
}

#[test]
fn skipped_blocks_equal_the_masked_transform() {
    for (len, batch) in [(256, 1), (900, 3), (4096, 2), (8192, 2)] {
        let case = Case::new(batch as u64, batch, 2, len, len);
        let radix = FrequencySparseConv::radix(len).unwrap();
        let mut masks: Vec<FrequencyMask> = [1, 2, 4, 8].map(FrequencyMask::low_pass).to_vec();
        for kept in 0..radix / 2 {
            masks.push(FrequencyMask::residues_within(kept, radix));
        }
        masks.push(FrequencyMask { low_sixteenths: 2, ..masks[4] });
        for mask in masks {
            let conv = FrequencySparseConv::new(&case.k, 2, len, len, mask).unwrap();
            let points = conv.points();
            let kept = (0..points).filter(|f| mask.keeps(*f, points, radix)).count();
            assert_eq!(conv.sparsity(), 1.0 - kept as f64 / points as f64);
            let want = case.rows(|u, k| rustfft_f64(u, k, points, |f| mask.keeps(f, points, radix)));
            for isa in Isa::available() {
                close(&case.sparse(isa, mask), &want, &format!("{isa} {len} {mask:?}"));
            }
        }
    }
}

#[test]
fn masks_that_are_not_symmetric_are_refused() {
    let refused = |mask| {
        assert!(matches!(
            FrequencySparseConv::new(&[1.0; 512], 1, 512, 512, mask),
            Err(KernelError::Setting { .. })
        ));
    };
    refused(FrequencyMask { residues: 0b10, ..FrequencyMask::ALL });
    refused(FrequencyMask::low_pass(3));
    refused(FrequencyMask::low_pass(0));
}

/// `Σ r · y` in f64, a scalar whose gradients are checked.
fn loss(case: &Case, r: &[f32]) -> f64 {
    case.rows(direct_f64).iter().zip(r).map(|(y, r)| y * f64::from(*r)).sum()
}

#[test]
fn gradients_equal_finite_differences() {
    for (len, taps) in [(40, 40), (300, 17), (20, 33)] {
        let mut case = Case::new(3, 3, 2, len, taps);
        let dy = noise(9, case.u.len());
        let conv = LongConv::new(&case.k, 2, taps, len).unwrap();
        for isa in Isa::available() {
            let [mut du, mut da, mut dc] = [(); 3].map(|()| vec![f32::NAN; case.u.len()]);
            let mut dk = vec![f32::NAN; case.k.len()];
            let gradients = Gradients {
                u: &mut du,
                kernel: &mut dk,
                input_gate: Some(&mut da),
                output_gate: Some(&mut dc),
            };
            let mut scratch = vec![f32::NAN; conv.backward_scratch_len(1)];
            conv.backward_with(isa, &dy, &case.u, 3, case.gates(), gradients, &mut scratch).unwrap();
            // The loss is linear in each factor, so a difference over any step is exact.
            fn field(case: &mut Case, which: usize) -> &mut Vec<f32> {
                match which {
                    0 => &mut case.u,
                    1 => &mut case.k,
                    2 => case.gate_in.as_mut().unwrap(),
                    _ => case.gate_out.as_mut().unwrap(),
                }
            }
            for (which, gradient) in [&du, &dk, &da, &dc].into_iter().enumerate() {
                for i in (0..gradient.len()).step_by(gradient.len() / 23 + 1) {
                    let before = field(&mut case, which)[i];
                    let mut at = |v: f32| {
                        field(&mut case, which)[i] = v;
                        loss(&case, &dy)
                    };
                    let slope = at(1.0) - at(0.0);
                    at(before);
                    let e = (f64::from(gradient[i]) - slope).abs();
                    assert!(e < 2e-5 * (1.0 + slope.abs()), "{isa} {len} {taps} {which} {i}: {e}");
                }
            }
        }
    }
}

#[test]
fn gradients_of_long_rows_are_correlations_and_do_not_depend_on_threads() {
    let case = Case::new(0, 2, 3, 5000, 5000);
    let dy = noise(5, case.u.len());
    let conv = LongConv::new(&case.k, 3, 5000, 5000).unwrap();
    let mut results = [1, 2].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut du, mut dk) = (vec![0.0; case.u.len()], vec![0.0; case.k.len()]);
        let gradients = Gradients { u: &mut du, kernel: &mut dk, input_gate: None, output_gate: None };
        let mut scratch = vec![0.0; conv.backward_scratch_len(threads)];
        pool.install(|| conv.backward(&dy, &case.u, 2, case.gates(), gradients, &mut scratch)).unwrap();
        (du, dk)
    });
    assert_eq!(bits(&results[0].0), bits(&results[1].0));
    assert_eq!(bits(&results[0].1), bits(&results[1].1));
    let (du, dk) = std::mem::take(&mut results[0]);
    // A correlation is a convolution of the reversed row, reversed.
    let reversed = |x: &[f64]| x.iter().rev().copied().collect::<Vec<f64>>();
    let (u, dy, k) = (wide(&case.u), wide(&dy), wide(&case.k));
    let row = |x: &[f64], r: usize| x[r * 5000..][..5000].to_vec();
    let (mut want_u, mut want_k) = (Vec::new(), vec![0.0; 15000]);
    for r in 0..6 {
        let d = reversed(&row(&dy, r));
        want_u.extend(reversed(&rustfft_f64(&d, &row(&k, r % 3), 16384, |_| true)));
        let part = reversed(&rustfft_f64(&d, &row(&u, r), 16384, |_| true));
        want_k[r % 3 * 5000..].iter_mut().zip(part).for_each(|(w, p)| *w += p);
    }
    close(&du, &want_u, "du");
    close(&dk, &want_k, "dk");
}

#[test]
fn nan_stays_in_its_row_and_denormals_and_zeros_are_values() {
    for isa in Isa::available() {
        let mut case = Case::new(0, 2, 1, 600, 600);
        case.u[700] = f32::NAN;
        let y = case.long(isa);
        assert!(y[600..].iter().all(|v| v.is_nan()) && y[..600].iter().all(|v| v.is_finite()), "{isa}");
        case.u[700] = f32::INFINITY;
        assert!(case.long(isa)[600..].iter().all(|v| !v.is_finite()), "{isa}");
        let direct =
            Case { taps: 3, k: noise(1, 3), u: case.u.clone(), gate_in: None, gate_out: None, ..case };
        let y = direct.direct(isa);
        assert!(y.iter().enumerate().all(|(i, v)| v.is_finite() != (700..703).contains(&i)), "{isa}");
        let zeros = Case { u: vec![0.0; 1200], k: noise(1, 600), gate_in: None, gate_out: None, ..case };
        assert!(zeros.long(isa).iter().all(|v| *v == 0.0));
        let small = Case { u: vec![1e-41; 1200], k: vec![1.0; 600], gate_in: None, gate_out: None, ..case };
        assert!((f64::from(small.long(isa)[599]) - 600e-41).abs() < 600e-41 * 0.02);
    }
}

#[test]
fn wrong_lengths_are_errors_and_nothing_is_written() {
    let conv = LongConv::new(&[1.0; 8], 2, 4, 4).unwrap();
    let (u, mut y, mut scratch) = ([0.0; 16], [7.0; 16], vec![0.0; conv.scratch_len(1)]);
    let short = scratch.len() - 1;
    let named = |r: Result<(), KernelError>, wanted: &str| match r {
        Err(KernelError::Length { array, .. }) => assert_eq!(array, wanted),
        other => panic!("{other:?}"),
    };
    named(conv.forward(&u[1..], 2, Gates::default(), &mut y, &mut scratch), "u");
    named(conv.forward(&u, 2, Gates::default(), &mut y[1..], &mut scratch), "y");
    named(conv.forward(&u, 2, Gates::default(), &mut y, &mut scratch[..short]), "scratch");
    let gates = Gates { input: Some(&u[1..]), output: None };
    named(conv.forward(&u, 2, gates, &mut y, &mut scratch), "input gate");
    let gates = Gates { input: None, output: Some(&u[1..]) };
    named(conv.forward(&u, 2, gates, &mut y, &mut scratch), "output gate");
    assert!(y.iter().all(|v| *v == 7.0));
    assert!(matches!(LongConv::new(&[1.0; 7], 2, 4, 4), Err(KernelError::Length { .. })));
    assert!(matches!(
        LongConv::new(&[], 2, usize::MAX, 4),
        Err(KernelError::TooLarge { .. } | KernelError::Length { .. })
    ));
    assert!(matches!(LongConv::new(&[], 1, usize::MAX, usize::MAX), Err(KernelError::TooLarge { .. })));
    assert!(conv.forward(&[], 0, Gates::default(), &mut [], &mut scratch).is_ok());
    let nothing = LongConv::new(&[], 2, 0, 3).unwrap();
    nothing
        .forward(&u[..6], 1, Gates::default(), &mut y[..6], &mut vec![0.0; nothing.scratch_len(1)])
        .unwrap();
    assert_eq!(y[..6], [0.0; 6]);
    let empty = LongConv::new(&[1.0; 4], 2, 2, 0).unwrap();
    assert!(empty.is_empty());
    empty.forward(&[], 3, Gates::default(), &mut [], &mut vec![0.0; empty.scratch_len(1)]).unwrap();
}

#[test]
fn monarch_transforms_equal_rustfft_at_all_orders() {
    let factorings: [&[usize]; 12] = [
        &[64],
        &[7],
        &[16, 16],
        &[32, 32],
        &[12, 5],
        &[16, 16, 16],
        &[32, 16, 16],
        &[16, 32, 32],
        &[3, 4, 5],
        &[4, 16, 16, 16],
        &[2, 8, 8, 16],
        &[2, 3, 4, 5],
    ];
    for factors in factorings {
        let n: usize = factors.iter().product();
        let x: Vec<[f64; 2]> = wide(&noise(n as u64, 2 * n)).chunks(2).map(|c| [c[0], c[1]]).collect();
        let z = monarch::forward(&x, factors);
        let mut want: Vec<Complex<f64>> = x.iter().map(|v| Complex::new(v[0], v[1])).collect();
        FftPlanner::new().plan_fft_forward(n).process(&mut want);
        let scale = (n as f64).sqrt();
        for (p, z) in z.iter().enumerate() {
            let w = want[monarch::frequency(p, factors)];
            assert!((z[0] - w.re).abs().max((z[1] - w.im).abs()) < 1e-12 * scale, "{factors:?} {p}");
        }
        // Parseval, and there and back.
        let power = |x: &[[f64; 2]]| x.iter().map(|v| v[0] * v[0] + v[1] * v[1]).sum::<f64>();
        assert!((power(&z) / n as f64 / power(&x) - 1.0).abs() < 1e-12);
        for (a, b) in monarch::inverse(&z, factors).iter().zip(&x) {
            assert!((a[0] - b[0]).abs().max((a[1] - b[1]).abs()) < 1e-12, "{factors:?}");
        }
    }
}

#[test]
fn the_result_is_real_exactly_when_the_mask_is_symmetric() {
    let factors = [16, 16];
    let n = 256;
    let (x, k) = (wide(&noise(1, n)), wide(&noise(2, n)));
    let z = monarch::forward(&k.iter().map(|v| [*v, 0.0]).collect::<Vec<_>>(), &factors);
    let largest_imaginary = |keep: &dyn Fn(usize) -> bool| {
        let masked: Vec<[f64; 2]> = z
            .iter()
            .enumerate()
            .map(|(p, v)| if keep(monarch::frequency(p, &factors)) { *v } else { [0.0; 2] })
            .collect();
        monarch::convolve(&x, &masked, &factors).iter().map(|v| v[1].abs()).fold(0.0, f64::max)
    };
    let mask = FrequencyMask::low_pass(2);
    assert!(largest_imaginary(&|f| mask.keeps(f, n, 16)) < 1e-12);
    // Columns [0, b) and [N2 - b, N2) without dropping the edge bin N - N1 b.
    assert!(largest_imaginary(&|f| f < 32 || f >= n - 32) > 0.01);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_equals_the_definition(
        seed in 0u64..1000, batch in 1usize..4, heads in 1usize..4, len in 1usize..800, taps in 0usize..900, window in 0usize..3000,
    ) {
        let case = Case::new(seed, batch, heads, len, taps);
        let want = case.rows(direct_f64);
        // One tap may be tiny, and errors are relative to the whole.
        if taps > 0 {
            let isa = [Isa::Portable, Isa::detect()][seed as usize % 2];
            close(&case.long(isa), &want, "long");
            close(&case.chunked(isa, window), &want, "chunked");
            close(&case.direct(isa), &want, "direct");
        } else {
            prop_assert!(case.long(Isa::detect()).iter().all(|v| *v == 0.0));
            prop_assert!(case.chunked(Isa::detect(), window).iter().all(|v| *v == 0.0));
            prop_assert!(case.direct(Isa::detect()).iter().all(|v| *v == 0.0));
        }
    }
}
