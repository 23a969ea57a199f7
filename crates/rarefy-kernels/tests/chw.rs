//! The CHW layers on every code path of this CPU against the convolution in f64, and against each other.
#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use rarefy_kernels::chw::{Conv, Depthwise, Geometry, Layout, PatchProduct};
use rarefy_kernels::{Clamp, Isa, KernelError, oracle::conv_f64};
use support::noise;

/// Runs on dirty memory with one and two threads, which must agree.
fn run(
    len: usize,
    scratch: usize,
    f: impl Fn(&mut [f32], &mut [f32]) -> Result<(), KernelError> + Sync,
) -> Vec<f32> {
    let mut results = [1, 2].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut y, mut scratch) = (vec![f32::NAN; len], vec![f32::NAN; scratch]);
        pool.install(|| f(&mut y, &mut scratch)).unwrap();
        y
    });
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&results[0]), bits(&results[1]), "one and two threads");
    std::mem::take(&mut results[0])
}

/// `y` within the rounding of `terms` multiply-adds of the exact sums plus bias, clamped.
fn near(
    y: &[f32],
    (exact, scale): &(Vec<f64>, Vec<f64>),
    bias: &[f32],
    clamp: Clamp,
    terms: usize,
    what: &str,
) {
    assert_eq!(y.len(), exact.len());
    let plane = y.len() / bias.len().max(1);
    for (i, v) in y.iter().enumerate() {
        let sum = exact[i] + f64::from(bias[i / plane]);
        let wanted = sum.clamp(f64::from(clamp.low()), f64::from(clamp.high()));
        let bound = (terms + 2) as f64 * f64::from(f32::EPSILON) * (scale[i] + 1.0);
        assert!((f64::from(*v) - wanted).abs() <= bound, "{what}: output {i}: {v} for {wanted}");
    }
}

fn pads(g: &Geometry) -> ((usize, usize), (usize, usize)) {
    ((g.pad_top(), g.pad_left()), (g.out_height(), g.out_width()))
}

fn check_depthwise(seed: u64, channels: usize, g: Geometry, clamp: Clamp) {
    let k = g.kernel();
    let (w, bias, x) =
        (noise(seed, channels * k * k), noise(seed + 1, channels), noise(seed + 2, channels * g.pixels()));
    let (pad, out) = pads(&g);
    let exact =
        conv_f64(&x, (channels, g.height(), g.width()), &w, channels, channels, k, g.stride(), pad, out);
    let conv = Depthwise::new(&w, Some(&bias), channels, g).unwrap();
    let mut vectors: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        let y = run(channels * g.out_pixels(), conv.scratch_len(2), |y, s| {
            conv.forward_with(isa, &x, clamp, y, s)
        });
        near(&y, &exact, &bias, clamp, k * k, &format!("{isa} {g:?}"));
        if isa != Isa::Portable {
            assert_eq!(*vectors.get_or_insert_with(|| y.clone()), y, "AVX2 and AVX-512");
        }
    }
}

fn check_conv(seed: u64, (channels, d_out): (usize, usize), g: Geometry, layout: Layout, block: usize) {
    let (k, clamp) = (g.kernel(), Clamp::RELU6);
    let mut w = noise(seed, d_out * channels * k * k);
    // Whole groups of `block` output channels at one tap are pruned together.
    let keep = noise(seed + 3, w.len());
    let row = channels * k * k;
    (0..w.len()).filter(|i| keep[i / row / block * row + i % row] > 0.0).for_each(|i| w[i] = 0.0);
    let (bias, chw) = (noise(seed + 1, d_out), noise(seed + 2, channels * g.pixels()));
    let (pad, out) = pads(&g);
    let exact = conv_f64(&chw, (channels, g.height(), g.width()), &w, d_out, 1, k, g.stride(), pad, out);
    let x = match layout {
        Layout::Chw => chw,
        Layout::Hwc => (0..g.pixels())
            .flat_map(|p| (0..channels).map(move |c| (p, c)))
            .map(|(p, c)| chw[c * g.pixels() + p])
            .collect(),
    };
    let dense = PatchProduct::dense(&w, d_out, channels, k, Some(&bias)).unwrap();
    let sparse = PatchProduct::sparse(&w, d_out, channels, k, Some(&bias), block).unwrap();
    let convs = [dense, sparse].map(|p| Conv::new(p, g, channels, layout).unwrap());
    for isa in Isa::available() {
        let [a, b] = [0, 1].map(|i| {
            let conv = &convs[i];
            run(d_out * g.out_pixels(), conv.scratch_len(2), |y, s| conv.forward_with(isa, &x, clamp, y, s))
        });
        near(&a, &exact, &bias, clamp, row, &format!("{isa} {g:?} {layout:?}"));
        assert_eq!(a, b, "{isa} {g:?} sparse and dense");
    }
}

#[test]
fn depthwise_by_hand() {
    // Row (1 2 3), window of ones, padded: sums of neighbours 3, 6, 5, plus 10; at most 15.
    let g = Geometry::padded(1, 3, 3, 1, 1).unwrap();
    let conv = Depthwise::new(&[1.0; 9], Some(&[10.0]), 1, g).unwrap();
    let (mut y, mut s) = ([0.0; 3], vec![f32::NAN; conv.scratch_len(1)]);
    conv.forward(&[1.0, 2.0, 3.0], Clamp::new(0.0, 15.0).unwrap(), &mut y, &mut s).unwrap();
    assert_eq!(y, [13.0, 15.0, 15.0]);
}

#[test]
fn depthwise_over_sizes_windows_strides_and_paddings() {
    for kernel in [3, 5] {
        for stride in [1, 2] {
            for (height, width) in [(1, 1), (2, 7), (7, 7), (9, 4), (14, 14), (13, 33), (6, 40), (5, 112)] {
                check_depthwise(7, 3, Geometry::same(height, width, kernel, stride).unwrap(), Clamp::RELU6);
                for pad in [0, 1, kernel / 2] {
                    if let Ok(g) = Geometry::padded(height, width, kernel, stride, pad) {
                        check_depthwise(8, 2, g, Clamp::NONE);
                    }
                }
            }
        }
    }
}

#[test]
fn depthwise_on_two_threads_and_without_channels() {
    check_depthwise(1, 131, Geometry::same(28, 28, 3, 1).unwrap(), Clamp::RELU);
    check_depthwise(2, 67, Geometry::same(57, 57, 5, 2).unwrap(), Clamp::RELU);
    check_depthwise(3, 0, Geometry::same(4, 4, 3, 1).unwrap(), Clamp::RELU);
}

#[test]
fn convolution_through_patches() {
    for (height, width, kernel, stride) in
        [(1, 1, 3, 2), (7, 9, 3, 1), (11, 37, 3, 2), (8, 8, 5, 1), (10, 6, 1, 1), (9, 20, 2, 3)]
    {
        let g = Geometry::same(height, width, kernel, stride).unwrap();
        for (channels, d_out) in [(3, 8), (5, 19)] {
            for layout in [Layout::Chw, Layout::Hwc] {
                for block in [1, 4, 16] {
                    check_conv(4, (channels, d_out), g, layout, block);
                }
            }
        }
    }
}

#[test]
fn the_entry_convolution_of_a_mobilenet() {
    // Both paddings in use: one pixel on all sides, and TensorFlow's, which has none above and to the left here.
    check_conv(5, (3, 32), Geometry::padded(64, 64, 3, 2, 1).unwrap(), Layout::Hwc, 1);
    check_conv(6, (3, 32), Geometry::same(64, 64, 3, 2).unwrap(), Layout::Hwc, 1);
}

#[test]
fn nan_in_one_pixel_reaches_its_neighbours_only() {
    let g = Geometry::same(9, 9, 3, 1).unwrap();
    let mut x = vec![1.0; 2 * 81];
    x[81 + 4 * 9 + 4] = f32::NAN;
    let conv = Depthwise::new(&[0.5; 18], None, 2, g).unwrap();
    for isa in Isa::available() {
        let y = run(162, conv.scratch_len(2), |y, s| conv.forward_with(isa, &x, Clamp::RELU6, y, s));
        for (i, v) in y.iter().enumerate() {
            let (c, row, column) = (i / 81, i % 81 / 9, i % 9);
            let near = c == 1 && row.abs_diff(4) <= 1 && column.abs_diff(4) <= 1;
            assert_eq!(v.is_nan(), near, "{isa} {i}");
        }
    }
}

#[test]
fn wrong_calls_are_errors() {
    let g = Geometry::same(4, 4, 3, 1).unwrap();
    let field = |r: Result<(), KernelError>| match r {
        Err(KernelError::Length { array, .. }) => array,
        Err(KernelError::Setting { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(Depthwise::new(&[0.0; 17], None, 2, g).map(|_| ())), "weight");
    assert_eq!(field(Depthwise::new(&[0.0; 18], Some(&[0.0]), 2, g).map(|_| ())), "bias");
    let wide = Geometry::same(4, 4, 4, 1).unwrap();
    assert_eq!(field(Depthwise::new(&[0.0; 32], None, 2, wide).map(|_| ())), "kernel");
    let far = Geometry::same(4, 4, 3, 3).unwrap();
    assert_eq!(field(Depthwise::new(&[0.0; 18], None, 2, far).map(|_| ())), "stride");
    let d = Depthwise::new(&[0.0; 18], None, 2, g).unwrap();
    let (mut y, mut s) = (vec![0.0; 32], vec![0.0; d.scratch_len(1)]);
    assert_eq!(field(d.forward(&[0.0; 31], Clamp::NONE, &mut y, &mut s)), "x");
    assert_eq!(field(d.forward(&[0.0; 32], Clamp::NONE, &mut y[1..], &mut s)), "y");
    assert_eq!(field(d.forward(&[0.0; 32], Clamp::NONE, &mut y, &mut s[1..])), "scratch");
    let product = || PatchProduct::dense(&[0.0; 4 * 18], 4, 2, 3, None).unwrap();
    assert_eq!(field(Conv::new(product(), g, 3, Layout::Chw).map(|_| ())), "columns of the weight");
    let c = Conv::new(product(), g, 2, Layout::Chw).unwrap();
    let (mut y, mut s) = (vec![0.0; 64], vec![0.0; c.scratch_len(1)]);
    assert_eq!(field(c.forward(&[0.0; 31], Clamp::NONE, &mut y, &mut s)), "x");
    assert_eq!(field(c.forward(&[0.0; 32], Clamp::NONE, &mut y, &mut s[1..])), "scratch");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_image(
        seed in 0u64..1 << 40, height in 1usize..30, width in 1usize..70, kernel in 0usize..2, stride in 1usize..3, channels in 1usize..4,
    ) {
        let kernel = [3, 5][kernel];
        let g = Geometry::same(height, width, kernel, stride).unwrap();
        check_depthwise(seed, channels, g, Clamp::NONE);
        check_conv(seed, (channels, 6), g, Layout::Hwc, 2);
    }
}
