//! A small network of every kind of node against the layers computed one by one in f64.
#![allow(clippy::unwrap_used)]

mod support;

use rarefy_kernels::chw::{Geometry, Layout};
use rarefy_kernels::cnn::{Image, Network, NetworkSettings, Node, Op, Padding};
use rarefy_kernels::{Clamp, Isa, KernelError, oracle::conv_f64};
use support::noise;

/// Weights of which whole groups of `block` rows are zero with a probability of `sparsity`.
fn pruned(seed: u64, d_out: usize, row: usize, block: usize, sparsity: f32) -> Vec<f32> {
    let keep = noise(seed + 99, d_out * row);
    let mut w = noise(seed, d_out * row);
    for r in 0..d_out {
        for c in 0..row {
            if keep[r / block * row + c] < 2.0 * sparsity - 1.0 {
                w[r * row + c] = 0.0;
            }
        }
    }
    w
}

/// `(weight, bias, d_out, groups, kernel, stride, padding)`.
type Owned = (Vec<f32>, Vec<f32>, usize, usize, usize, usize, Padding);

struct Net {
    convs: Vec<Owned>,
    /// `(input, what, clamp)`: a convolution by index, an addition or an average.
    nodes: Vec<(Option<usize>, What, Clamp)>,
}

#[derive(Clone, Copy)]
enum What {
    Conv(usize),
    Add(usize),
    Average,
}

impl Net {
    /// Entry, depthwise, sparse and dense 1×1, strides, a residual block, pooling, classifier.
    fn small(sparsity: f32, block: usize) -> Self {
        let bias = |seed, n| noise(seed, n).iter().map(|b| 0.3 * b).collect::<Vec<f32>>();
        let conv =
            |seed, d_in: usize, d_out: usize, groups: usize, kernel: usize, stride, padding, s| -> Owned {
                let row = d_in / groups * kernel * kernel;
                let mut w = pruned(seed, d_out, row, block, s);
                w.iter_mut().for_each(|w| *w *= 2.0 / (row as f32).sqrt());
                (w, bias(seed + 1, d_out), d_out, groups, kernel, stride, padding)
            };
        let same = Padding::Same;
        let convs = vec![
            conv(1, 3, 16, 1, 3, 2, Padding::Pixels(1), 0.0),
            conv(2, 16, 16, 16, 3, 1, same, 0.0),
            conv(3, 16, 32, 1, 1, 1, same, sparsity),
            conv(4, 32, 32, 32, 3, 2, same, 0.0),
            conv(5, 32, 20, 1, 1, 1, same, sparsity),
            conv(6, 20, 64, 1, 1, 1, same, sparsity),
            conv(7, 64, 64, 64, 5, 1, same, 0.0),
            conv(8, 64, 20, 1, 1, 1, same, sparsity),
            conv(9, 20, 48, 1, 3, 2, same, sparsity),
            conv(10, 48, 37, 1, 1, 1, same, sparsity),
        ];
        let c = |input, i, clamp| (Some(input), What::Conv(i), clamp);
        let nodes = vec![
            (None, What::Conv(0), Clamp::RELU6),
            c(0, 1, Clamp::RELU6),
            c(1, 2, Clamp::RELU6),
            c(2, 3, Clamp::RELU),
            c(3, 4, Clamp::NONE),
            c(4, 5, Clamp::RELU6),
            c(5, 6, Clamp::RELU6),
            c(6, 7, Clamp::NONE),
            (Some(7), What::Add(4), Clamp::NONE),
            (Some(8), What::Add(8), Clamp::RELU), // an operand twice
            c(9, 8, Clamp::RELU6),
            (Some(10), What::Average, Clamp::NONE),
            c(11, 9, Clamp::NONE),
        ];
        Self { convs, nodes }
    }

    fn nodes(&self) -> Vec<Node<'_>> {
        let op = |what| match what {
            What::Conv(i) => {
                let (weight, bias, d_out, groups, kernel, stride, padding) = &self.convs[i];
                let (d_out, groups, kernel) = (*d_out, *groups, *kernel);
                Op::Conv {
                    weight,
                    bias: Some(bias),
                    d_out,
                    groups,
                    kernel,
                    stride: *stride,
                    padding: *padding,
                }
            }
            What::Add(other) => Op::Add { other },
            What::Average => Op::GlobalAverage,
        };
        self.nodes
            .iter()
            .map(|(input, what, clamp)| Node { input: *input, op: op(*what), clamp: *clamp })
            .collect()
    }

    /// All layers in f64, rounded to f32 between them.
    fn oracle(&self, chw: &[f32], height: usize, width: usize) -> Vec<f32> {
        let mut done: Vec<(Vec<f32>, [usize; 3])> = Vec::new();
        for (input, what, clamp) in &self.nodes {
            let (x, [c, h, w]) = input.map_or((chw.to_vec(), [3, height, width]), |i| done[i].clone());
            let (y, shape) = match what {
                What::Conv(i) => {
                    let (weight, bias, d_out, groups, kernel, stride, padding) = &self.convs[*i];
                    let g = match padding {
                        Padding::Same => Geometry::same(h, w, *kernel, *stride),
                        Padding::Pixels(p) => Geometry::padded(h, w, *kernel, *stride, *p),
                    };
                    let g = g.unwrap();
                    let (pad, out) = ((g.pad_top(), g.pad_left()), (g.out_height(), g.out_width()));
                    let (y, _) = conv_f64(&x, (c, h, w), weight, *d_out, *groups, *kernel, *stride, pad, out);
                    let plane = g.out_pixels();
                    let y =
                        y.iter().enumerate().map(|(i, v)| (v + f64::from(bias[i / plane])) as f32).collect();
                    (y, [*d_out, out.0, out.1])
                }
                What::Add(other) => (x.iter().zip(&done[*other].0).map(|(a, b)| a + b).collect(), [c, h, w]),
                What::Average => {
                    let mean =
                        |p: &[f32]| (p.iter().map(|v| f64::from(*v)).sum::<f64>() / p.len() as f64) as f32;
                    (x.chunks(h * w).map(mean).collect::<Vec<f32>>(), [c, 1, 1])
                }
            };
            done.push((y.iter().map(|v| clamp.apply(*v)).collect(), shape));
        }
        done.pop().unwrap().0
    }
}

const IMAGE: Image = Image { channels: 3, height: 45, width: 38, layout: Layout::Hwc };

fn run(net: &Network, isa: Isa, image: &[f32], threads: usize) -> Vec<f32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (mut y, mut scratch) = (vec![f32::NAN; net.out_len()], vec![f32::NAN; net.scratch_len(threads)]);
    let mut seen = Vec::new();
    pool.install(|| net.forward_with(isa, image, &mut y, &mut scratch, &mut |i| seen.push(i)))
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(seen, (0..net.report().count()).collect::<Vec<_>>());
    y
}

#[test]
fn dense_and_sparse_networks_agree_with_the_layers_one_by_one() {
    let hwc = noise(50, 3 * 45 * 38);
    let chw: Vec<f32> =
        (0..3).flat_map(|c| hwc.iter().skip(c).step_by(3).copied().collect::<Vec<_>>()).collect();
    for (sparsity, block) in [(0.0, 1), (0.8, 1), (0.7, 4), (0.75, 16), (1.0, 1)] {
        let small = Net::small(sparsity, block);
        let nodes = small.nodes();
        let wanted = small.oracle(&chw, 45, 38);
        let mut first: Option<Vec<f32>> = None;
        for (may_be_sparse, huge_pages) in [(false, false), (true, false), (true, true)] {
            let settings = NetworkSettings { may_be_sparse, huge_pages, ..NetworkSettings::default() };
            let net = Network::new(IMAGE, &nodes, &settings).unwrap();
            for isa in Isa::available() {
                let y = run(&net, isa, &hwc, 1);
                assert_eq!(y, run(&net, isa, &hwc, 2), "{isa}: one and two threads");
                for (i, (y, w)) in y.iter().zip(&wanted).enumerate() {
                    assert!(
                        (y - w).abs() < 1e-4,
                        "{isa} {sparsity} {block} {may_be_sparse}: {i}: {y} for {w}"
                    );
                }
                if isa == Isa::detect() {
                    // Equal bits up to the classifier, whose kernels add the bias before or after the products.
                    let first = first.get_or_insert_with(|| y.clone());
                    let apart = y.iter().zip(first.iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(apart <= 1e-6, "sparse and dense differ by {apart}");
                }
            }
        }
    }
}

#[test]
fn the_report_says_what_was_chosen_and_why() {
    let kernels = |sparsity, block, may_be_sparse| {
        let small = Net::small(sparsity, block);
        let settings = NetworkSettings { may_be_sparse, ..NetworkSettings::default() };
        let net = Network::new(IMAGE, &small.nodes(), &settings).unwrap();
        net.report().map(|r| (r.kernel.clone(), r.reason.clone())).collect::<Vec<_>>()
    };
    let sparse = kernels(0.8, 16, true);
    assert_eq!(sparse[0].0, "3x3");
    assert_eq!(sparse[1].0, "depthwise");
    assert_eq!((sparse[2].0.as_str(), sparse[2].1.as_str()), ("1x1 sparse 16", ""));
    assert_eq!(sparse[10].0, "3x3 sparse 16");
    assert_eq!(sparse[12].0, "1x1 channels 16");
    assert_eq!(kernels(0.8, 1, true)[12].0, "linear bitmask");
    assert_eq!(kernels(0.8, 16, false)[2], ("1x1".to_owned(), "sparse kernels are switched off".to_owned()));
    let little = &kernels(0.3, 1, true)[2];
    assert!(little.0 == "1x1" && little.1.contains("blocks of 1 pay from 60 % on"), "{little:?}");
}

#[test]
fn impossible_networks_are_errors() {
    let w = [1.0; 12];
    let conv = Op::Conv {
        weight: &w,
        bias: None,
        d_out: 4,
        groups: 1,
        kernel: 1,
        stride: 1,
        padding: Padding::Same,
    };
    let node = |input, op| Node { input, op, clamp: Clamp::NONE };
    let field = |nodes: &[Node<'_>]| match Network::new(IMAGE, nodes, &NetworkSettings::default()) {
        Err(KernelError::Setting { field, .. }) => field,
        Err(KernelError::Length { array, .. }) => array,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&[]), "nodes");
    assert_eq!(field(&[node(Some(0), conv)]), "input");
    assert_eq!(field(&[node(None, conv), node(Some(0), Op::Add { other: 1 })]), "input");
    assert_eq!(field(&[node(None, Op::GlobalAverage)]), "layout");
    let average = node(Some(0), Op::GlobalAverage);
    assert_eq!(field(&[node(None, conv), average, node(Some(1), Op::Add { other: 0 })]), "other");
    let grouped = Op::Conv {
        weight: &w,
        bias: None,
        d_out: 4,
        groups: 2,
        kernel: 1,
        stride: 1,
        padding: Padding::Same,
    };
    assert_eq!(field(&[node(None, conv), node(Some(0), grouped)]), "groups");
    let short = Op::Conv {
        weight: &w[1..],
        bias: None,
        d_out: 4,
        groups: 1,
        kernel: 1,
        stride: 1,
        padding: Padding::Same,
    };
    assert_eq!(field(&[node(None, short)]), "weight");

    let net = Network::new(IMAGE, &[node(None, conv)], &NetworkSettings::default()).unwrap();
    let (image, mut y, mut s) =
        (vec![0.0; 3 * 45 * 38], vec![0.0; net.out_len()], vec![0.0; net.scratch_len(1)]);
    assert!(net.forward(&image[1..], &mut y, &mut s).is_err());
    assert!(net.forward(&image, &mut y[1..], &mut s).is_err());
    assert!(net.forward(&image, &mut y, &mut s[1..]).is_err());
    net.forward(&image, &mut y, &mut s).unwrap();
}
