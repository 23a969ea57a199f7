//! What the experiments on convolutional networks share: kernel rates, pruned copies, the real network and its images.

use std::time::Instant;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use rarefy_data::ImageFolder;
use rarefy_kernels::cnn::NetworkSettings;
use rarefy_kernels::spmm::{DenseConv1x1, Spmm};
use rarefy_kernels::{AlignedBuf, Clamp, KernelError, peak};
use rarefy_models::classifier::Classifier;
use rarefy_prune::classifier::{ClassifierReport, ClassifierSettings, prune};
use rarefy_sparsity::formats::DeltaBlock;
use serde_json::{Value, json};

use super::ReproOptions;
use crate::classify::{Accuracy, Images, Times, accuracy, test_image, times};
use crate::cli::CliError;
use crate::measure::median;

/// The real network of both experiments.
const REAL: &str = "mobilenet-v1-0.5-160";
/// Different masks that take turns, so that no pattern is learned by the branch predictor.
const MASKS: usize = 3;

/// Output channels, input channels, pixels.
pub(super) type Shape = (usize, usize, usize);

/// One sparse kernel beside the dense one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) sparsity: f64,
    pub(super) block: usize,
    /// Kept multiply-adds, two operations each, in 10⁹ per second.
    pub(super) gf_per_s: f64,
    /// Share of the rate of multiply-adds in registers, measured between the calls.
    pub(super) of_peak: f64,
    /// Time of our own dense kernel over this one's.
    pub(super) faster: f64,
}

/// Rates on one thread; every result is compared with the dense kernel's, bit for bit, before anything is timed.
pub(super) fn rates(
    (rows, cols, pixels): Shape,
    cases: &[(f64, usize)],
    passes: usize,
    seed: u64,
) -> Result<Vec<Rate>, CliError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .map_err(|e| CliError::failed("cannot start a thread", e))?;
    pool.install(|| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let full: Vec<f32> = (0..rows * cols).map(|_| rng.random_range(-0.5..0.5)).collect();
        let bias: Vec<f32> = (0..rows).map(|_| rng.random_range(-0.5..0.5)).collect();
        // One large buffer, as a network has: it lies on huge pages.
        let mut arena = AlignedBuf::<f32>::zeroed(1 << 21);
        let (x, rest) = arena.as_mut_slice().split_at_mut(cols * pixels);
        let (y, scratch) = rest.split_at_mut(rows * pixels);
        x.iter_mut().for_each(|v| *v = rng.random_range(-0.5..0.5));
        let x = &*x;
        let dense = DenseConv1x1::new(&full, rows, cols, Some(&bias))?.reading_in_place();
        let mut expected = vec![0.0; rows * pixels];
        let mut kernels = Vec::new();
        for &(sparsity, block) in cases {
            let mut masks = Vec::new();
            for _ in 0..MASKS {
                let mut w = full.clone();
                for strip in w.chunks_mut(block * cols) {
                    for c in 0..cols {
                        if rng.random_range(0.0..1.0) < sparsity {
                            strip.iter_mut().skip(c).step_by(cols).for_each(|v| *v = 0.0);
                        }
                    }
                }
                let packed = DeltaBlock::encode(&w, rows, cols, Some(&bias), block)?;
                let sparse = Spmm::new(&packed)?.reading_in_place();
                let masked = DenseConv1x1::new(&w, rows, cols, Some(&bias))?;
                masked.forward(x, pixels, Clamp::RELU6, &mut expected, scratch)?;
                sparse.forward(x, pixels, Clamp::RELU6, y, scratch)?;
                if y.iter().zip(&expected).any(|(a, b)| a.to_bits() != b.to_bits()) {
                    return Err(CliError::usage(
                        format!("the kernel of blocks of {block} does not give the dense result"),
                        "this is a fault of this program: nothing was timed",
                    ));
                }
                masks.push(sparse);
            }
            kernels.push(masks);
        }
        let (mut base, mut roofs, mut seconds) = (vec![], vec![], vec![vec![]; cases.len()]);
        for pass in 0..passes {
            roofs.push(peak::fma_pass());
            base.push(timed(|| dense.forward(x, pixels, Clamp::RELU6, y, scratch))?);
            for (masks, seconds) in kernels.iter().zip(&mut seconds) {
                let kernel = &masks[pass % MASKS];
                seconds.push(timed(|| kernel.forward(x, pixels, Clamp::RELU6, y, scratch))?);
            }
        }
        let (base, roof) = (median(&mut base), median(&mut roofs));
        let mut found = Vec::with_capacity(cases.len());
        for ((&(sparsity, block), masks), seconds) in cases.iter().zip(&kernels).zip(&mut seconds) {
            let kept = masks.iter().map(Spmm::nnz).sum::<usize>() as f64 / MASKS as f64;
            let seconds = median(seconds);
            let gf_per_s = 2.0 * kept * pixels as f64 / seconds / 1e9;
            found.push(Rate { sparsity, block, gf_per_s, of_peak: gf_per_s / roof, faster: base / seconds });
        }
        Ok(found)
    })
}

fn timed(run: impl FnOnce() -> Result<(), KernelError>) -> Result<f64, KernelError> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64())
}

/// A pruned copy.
pub(super) fn pruned(
    model: &Classifier,
    pattern: &str,
    sparsity: f64,
    rearranges: bool,
) -> Result<(Classifier, ClassifierReport), CliError> {
    let mut copy = model.clone();
    let settings = ClassifierSettings { sparsity, pattern: pattern.parse()?, rearranges };
    let report = prune(&mut copy, &settings, &mut |_| ())?;
    Ok((copy, report))
}

/// A network timed dense and as its zeros allow, in turn, on the same weights.
pub(super) fn end_to_end(model: &Classifier, passes: usize, threads: usize) -> Result<Times, CliError> {
    let dense = model.network(&NetworkSettings { may_be_sparse: false, ..NetworkSettings::default() })?;
    let sparse = model.network(&NetworkSettings::default())?;
    Ok(times(&[&dense.network, &sparse.network], &test_image(model.side()), passes, threads)?)
}

/// The trained network and labelled images of `--data`.
pub(super) struct Real {
    pub(super) model: Classifier,
    images: Images,
}

impl Real {
    /// None without `--data`; with it, what is missing is an error.
    pub(super) fn open(options: &mut ReproOptions<'_>) -> Result<Option<Self>, CliError> {
        let Some(data) = &options.data else { return Ok(None) };
        (options.say)("real network: reading images");
        let model = Classifier::open(&data.join("../models").join(REAL))?;
        let folder = ImageFolder::open(&data.join("imagenet-mini"))?;
        let images = Images::load(&folder, &model, usize::MAX, &mut |_| ())?;
        Ok(Some(Self { model, images }))
    }

    pub(super) fn accuracy(&self, model: &Classifier) -> Result<Accuracy, CliError> {
        Ok(accuracy(model, &self.images, &mut |_| ())?)
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "accuracy: {REAL} with its own weights, pruned in one shot and not trained after it, on {} labelled ImageNet images; these are training images of \
             that network, so that all accuracies are optimistic",
            self.images.images.len()
        )
    }
}

/// A row of the table.
pub(super) fn row(
    experiment: &str,
    method: impl Into<String>,
    pattern: impl Into<String>,
    quantity: &str,
    measured: f64,
    published: Value,
) -> Value {
    json!({
        "experiment": experiment,
        "method": method.into(),
        "pattern": pattern.into(),
        "quantity": quantity,
        "measured": measured,
        "published": published,
    })
}
