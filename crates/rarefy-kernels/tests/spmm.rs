//! The sparse and dense 1×1 convolutions on every code path of this CPU against the product in f64, and against each other.
#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use rarefy_kernels::spmm::{DenseConv1x1, Spmm, SpmmChannels};
use rarefy_kernels::{Clamp, Isa, KernelError, oracle::linear_f64};
use rarefy_sparsity::formats::DeltaBlock;
use rarefy_sparsity::formats::delta_block::BLOCKS;
use support::noise;

/// Weights of which about `density` of the blocks of `block` rows are kept.
fn blocks(seed: u64, rows: usize, cols: usize, block: usize, density: f64) -> Vec<f32> {
    let keep = noise(seed ^ 0x55, rows.div_ceil(block) * cols);
    let cut = (2.0 * density - 1.0) as f32;
    let mut w = noise(seed, rows * cols);
    for r in 0..rows {
        for c in 0..cols {
            if keep[r / block * cols + c] >= cut {
                w[r * cols + c] = 0.0;
            }
        }
    }
    w
}

struct Case {
    rows: usize,
    cols: usize,
    pixels: usize,
    w: Vec<f32>,
    bias: Vec<f32>,
    x: Vec<f32>,
    clamp: Clamp,
}

impl Case {
    fn new(seed: u64, (rows, cols, pixels): (usize, usize, usize), block: usize, density: f64) -> Self {
        let w = blocks(seed, rows, cols, block, density);
        let clamp =
            [Clamp::NONE, Clamp::RELU, Clamp::RELU6, Clamp::new(-0.25, 0.25).unwrap()][seed as usize % 4];
        Self { rows, cols, pixels, w, bias: noise(seed + 1, rows), x: noise(seed + 2, cols * pixels), clamp }
    }

    fn pack(&self, block: usize) -> DeltaBlock {
        DeltaBlock::encode(&self.w, self.rows, self.cols, Some(&self.bias), block).unwrap()
    }

    /// Runs on dirty memory and with one and two threads, which must agree.
    fn run(
        &self,
        scratch: usize,
        f: impl Fn(&mut [f32], &mut [f32]) -> Result<(), KernelError> + Sync,
    ) -> Vec<f32> {
        let mut results = [1, 2].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut y, mut scratch) = (vec![f32::NAN; self.rows * self.pixels], vec![f32::NAN; scratch]);
            pool.install(|| f(&mut y, &mut scratch)).unwrap();
            y
        });
        assert_eq!(bits(&results[0]), bits(&results[1]), "one and two threads");
        std::mem::take(&mut results[0])
    }

    fn dense(&self, isa: Isa) -> Vec<f32> {
        let k = DenseConv1x1::new(&self.w, self.rows, self.cols, Some(&self.bias)).unwrap();
        self.run(k.scratch_len(2), |y, s| k.forward_with(isa, &self.x, self.pixels, self.clamp, y, s))
    }

    fn sparse(&self, isa: Isa, block: usize, width: usize) -> Vec<f32> {
        let k = Spmm::with_width(&self.pack(block), width).unwrap();
        self.run(k.scratch_len(2), |y, s| k.forward_with(isa, &self.x, self.pixels, self.clamp, y, s))
    }

    /// As above, from the image itself.
    fn in_place(&self, isa: Isa, block: usize, width: usize) -> [Vec<f32>; 2] {
        let sparse = Spmm::with_width(&self.pack(block), width).unwrap().reading_in_place();
        let dense =
            DenseConv1x1::new(&self.w, self.rows, self.cols, Some(&self.bias)).unwrap().reading_in_place();
        [
            self.run(sparse.scratch_len(2), |y, s| {
                sparse.forward_with(isa, &self.x, self.pixels, self.clamp, y, s)
            }),
            self.run(dense.scratch_len(2), |y, s| {
                dense.forward_with(isa, &self.x, self.pixels, self.clamp, y, s)
            }),
        ]
    }

    fn channels(&self, isa: Isa, block: usize) -> Vec<f32> {
        let k = SpmmChannels::new(&self.pack(block), self.pixels).unwrap();
        self.run(k.scratch_len(2), |y, s| k.forward_with(isa, &self.x, self.clamp, y, s))
    }

    /// Within the rounding of a chain of `cols` multiply-adds of the product in f64.
    fn check(&self, y: &[f32], what: &str) {
        let columns: Vec<f32> =
            (0..self.pixels).flat_map(|p| (0..self.cols).map(move |c| self.x[c * self.pixels + p])).collect();
        let (exact, scale) = linear_f64(&self.w, self.rows, self.cols, &columns, self.pixels);
        for p in 0..self.pixels {
            for r in 0..self.rows {
                let sum = exact[p * self.rows + r] + f64::from(self.bias[r]);
                let wanted = sum.clamp(f64::from(self.clamp.low()), f64::from(self.clamp.high()));
                let error = (f64::from(y[r * self.pixels + p]) - wanted).abs();
                let bound =
                    (self.cols + 2) as f64 * f64::from(f32::EPSILON) * (scale[p * self.rows + r] + 1.0);
                assert!(error <= bound, "{what}: {r} {p}: {error} > {bound}");
            }
        }
    }

    /// Everything there is, with the blocks as given.
    fn check_all(&self, block: usize) {
        let mut vectors = None;
        for isa in Isa::available() {
            let dense = self.dense(isa);
            self.check(&dense, "dense");
            for width in [16, 32, 48, 64] {
                let y = self.sparse(isa, block, width);
                assert_eq!(
                    y, dense,
                    "{isa} {}x{}x{} B {block} width {width}",
                    self.rows, self.cols, self.pixels
                );
            }
            for y in self.in_place(isa, block, 48) {
                assert_eq!(y, dense, "{isa} {}x{}x{} B {block} in place", self.rows, self.cols, self.pixels);
            }
            if block >= 8 && (1..=64).contains(&self.pixels) {
                assert_eq!(self.channels(isa, block), dense, "{isa} channels B {block} {}", self.pixels);
            }
            if isa != Isa::Portable {
                let first = vectors.get_or_insert_with(|| dense.clone());
                assert_eq!(*first, dense, "AVX2 and AVX-512");
            }
        }
    }
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn by_hand() {
    // W = [1 0; 0 0; 2 -3], b = (10, 20, 30), X = [1 2; 3 4]: rows 11 12 | 20 20 | 30 + 2 - 9 = 23, 30 + 4 - 12 = 22; at most 21.
    let packed =
        DeltaBlock::encode(&[1.0, 0.0, 0.0, 0.0, 2.0, -3.0], 3, 2, Some(&[10.0, 20.0, 30.0]), 2).unwrap();
    let k = Spmm::new(&packed).unwrap();
    let (mut y, mut scratch) = ([0.0; 6], vec![0.0; k.scratch_len(1)]);
    let clamp = Clamp::new(0.0, 22.5).unwrap();
    k.forward(&[1.0, 2.0, 3.0, 4.0], 2, clamp, &mut y, &mut scratch).unwrap();
    assert_eq!(y, [11.0, 12.0, 20.0, 20.0, 22.5, 22.0]);
    assert_eq!((k.rows(), k.cols(), k.nnz(), k.block()), (3, 2, 4, 2));
}

#[test]
fn every_number_of_pixels_up_to_67() {
    for pixels in 1..=67 {
        let block = BLOCKS[pixels % 5];
        Case::new(pixels as u64, (21, 13, pixels), block, 0.4).check_all(block);
    }
}

#[test]
fn odd_shapes_every_density_and_block() {
    for shape in [(1, 1, 1), (1, 40, 5), (3, 7, 17), (16, 16, 16), (37, 33, 49), (50, 3, 100)] {
        for block in BLOCKS {
            for density in [0.0, 0.05, 0.5, 1.0] {
                Case::new((shape.0 + block) as u64, shape, block, density).check_all(block);
            }
        }
    }
}

#[test]
fn images_that_may_be_read_in_place() {
    // Rows of 1 to 9 lines; the ninth row length, 128, crowds the cache and is packed. With and without rows left over.
    for pixels in [16, 32, 48, 80, 96, 112, 128, 144] {
        for rows in [16, 35] {
            Case::new(pixels as u64, (rows, 19, pixels), 4, 0.5).check_all(4);
            Case::new(pixels as u64, (rows, 19, pixels), 16, 0.5).check_all(16);
        }
    }
}

#[test]
fn blocks_that_do_not_fit_the_weights_store_zeros() {
    for block in BLOCKS {
        Case::new(3, (19, 30, 20), 1, 0.3).check_all(block);
    }
}

#[test]
fn shares_of_two_threads_by_strips_and_by_units() {
    // Large enough for two threads: 832 pixels in many strips, 49 and 80 pixels in one to five, some rows empty, some full.
    for pixels in [832, 49, 80] {
        for block in [1, 4, 16] {
            let mut case = Case::new(5, (262, 256, pixels), block, 0.6);
            case.w[32 * 256..64 * 256].fill(0.0);
            case.w[64 * 256..96 * 256].copy_from_slice(&noise(6, 32 * 256));
            case.check(&case.dense(Isa::detect()), "dense");
            for width in [16, 64] {
                assert_eq!(
                    case.sparse(Isa::detect(), block, width),
                    case.dense(Isa::detect()),
                    "{pixels} {block}"
                );
            }
        }
    }
    let case = Case::new(6, (2050, 1030, 1), 16, 0.7);
    assert_eq!(case.channels(Isa::detect(), 16), case.dense(Isa::detect()));
}

#[test]
fn empty_shapes() {
    for shape in [(0, 4, 5), (4, 0, 5), (4, 4, 0), (0, 0, 0)] {
        Case::new(8, shape, 4, 0.5).check_all(4);
    }
}

#[test]
fn without_weights_the_bias_remains() {
    let packed = DeltaBlock::encode(&[0.0; 12], 4, 3, Some(&[1.0, -2.0, -0.0, 7.0]), 1).unwrap();
    let k = Spmm::new(&packed).unwrap();
    let (mut y, mut scratch) = ([f32::NAN; 8], vec![f32::NAN; k.scratch_len(1)]);
    k.forward(&[f32::NAN; 6], 2, Clamp::RELU6, &mut y, &mut scratch).unwrap();
    assert_eq!(bits(&y), bits(&[1.0, 1.0, 0.0, 0.0, -0.0, -0.0, 6.0, 6.0]));
}

#[test]
fn denormals_and_unaligned_slices() {
    let mut case = Case::new(4, (18, 29, 50), 1, 0.5);
    case.w.iter_mut().step_by(3).for_each(|v| *v *= 1e-39);
    case.x.iter_mut().step_by(5).for_each(|v| *v *= 1e-39);
    case.check_all(2);
    let k = Spmm::new(&case.pack(1)).unwrap();
    let mut x = vec![0.0; case.x.len() + 1];
    x[1..].copy_from_slice(&case.x);
    let (mut y, mut scratch) = (vec![0.0; 18 * 50 + 1], vec![0.0; k.scratch_len(1) + 3]);
    k.forward(&x[1..], 50, case.clamp, &mut y[1..], &mut scratch[3..]).unwrap();
    assert_eq!(y[1..], case.dense(Isa::detect()));
}

#[test]
fn nan_and_infinity_reach_exactly_the_outputs_that_read_them() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for block in BLOCKS {
            let mut case = Case::new(8, (35, 24, 37), block, 0.4);
            case.clamp = Clamp::NONE;
            case.x[5 * 37 + 11] = bad; // channel 5, pixel 11
            let packed = case.pack(block);
            let (stored, _) = packed.decode();
            for isa in Isa::available() {
                let y = case.sparse(isa, block, 32);
                for r in 0..35 {
                    for p in 0..37 {
                        let reads = p == 11 && stored[r * 24 + 5] != 0.0;
                        assert_eq!(y[r * 37 + p].is_finite(), !reads, "{isa} {bad} B {block} {r} {p}");
                    }
                }
                case.clamp = Clamp::RELU6;
                let y = case.sparse(isa, block, 32);
                case.clamp = Clamp::NONE;
                let nans = y.iter().filter(|v| v.is_nan()).count();
                let reading = (0..35).filter(|r| stored[r * 24 + 5] != 0.0).count();
                assert_eq!(
                    nans,
                    if bad.is_nan() { reading } else { 0 },
                    "NaN passes the clamp, infinity is cut"
                );
            }
        }
    }
}

#[test]
fn wrong_calls_are_errors() {
    let case = Case::new(1, (8, 4, 5), 8, 1.0);
    let k = Spmm::new(&case.pack(8)).unwrap();
    let (mut y, mut s) = (vec![0.0; 40], vec![0.0; k.scratch_len(1)]);
    let found = |r: Result<(), KernelError>| match r {
        Err(KernelError::Length { array, .. }) => array,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(k.forward(&case.x[1..], 5, Clamp::NONE, &mut y, &mut s)), "x");
    assert_eq!(found(k.forward(&case.x, 5, Clamp::NONE, &mut y[1..], &mut s)), "y");
    assert_eq!(found(k.forward(&case.x, 5, Clamp::NONE, &mut y, &mut s[1..])), "scratch");
    let overflow = k.forward(&case.x, usize::MAX, Clamp::NONE, &mut y, &mut s);
    assert!(matches!(overflow, Err(KernelError::TooLarge { .. })));
    assert!(matches!(Spmm::with_width(&case.pack(8), 24), Err(KernelError::Setting { field: "width", .. })));
    assert!(matches!(SpmmChannels::new(&case.pack(4), 1), Err(KernelError::Setting { field: "block", .. })));
    assert!(matches!(
        SpmmChannels::new(&case.pack(8), 65),
        Err(KernelError::Setting { field: "pixels", .. })
    ));
    let dense = |w: &[f32], b: &[f32]| found(DenseConv1x1::new(w, 8, 4, Some(b)).map(|_| ()));
    assert_eq!((dense(&case.w[1..], &case.bias), dense(&case.w, &case.bias[1..])), ("weight", "bias"));
    let huge = DeltaBlock::encode(&[], 0, i32::MAX as usize, None, 1).unwrap();
    assert!(matches!(Spmm::new(&huge), Err(KernelError::TooLarge { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape(seed: u64, rows in 1usize..70, cols in 1usize..60, pixels in 1usize..130, b in 0usize..5, density in 0.0f64..1.0) {
        Case::new(seed >> 8, (rows, cols, pixels), BLOCKS[b], density).check_all(BLOCKS[b]);
    }
}
