//! Image classifiers: accuracy on a folder of images, and time per image.

use std::time::Instant;

use rarefy_data::{DataError, ImageFolder};
use rarefy_kernels::cnn::{Network, NetworkSettings};
use rarefy_kernels::{AlignedBuf, Isa, KernelError};
use rarefy_models::ModelError;
use rarefy_models::classifier::{Classifier, rank};
use rayon::prelude::*;
use serde::Serialize;

use crate::measure::median;

/// Images that are decoded at a time.
const CHUNK: usize = 32;
/// Smallest memory of a network: from here on it lies on huge pages, which the kernels count on.
const HUGE: usize = 1 << 19;

/// Why an accuracy could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClassifyError {
    /// The classifier cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// An image cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A label the classifier has no output for.
    #[error(
        "image `{image}` has class {class}, but the classifier has only {classes}; the labels belong to another one"
    )]
    Class {
        /// The image.
        image: String,
        /// Its class.
        class: usize,
        /// Classes of the model.
        classes: usize,
    },
    /// Two ways to compute one thing differ.
    #[error(
        "the sparse network's outputs differ from the dense one's by {found} of the largest; nothing was timed"
    )]
    Differs {
        /// Largest difference, relative.
        found: f32,
    },
}

/// Decoded images with their labels, as the network reads them.
#[derive(Debug, Clone)]
pub struct Images {
    /// Bytes and class of each.
    pub images: Vec<(Vec<u8>, usize)>,
}

impl Images {
    /// Decodes the first `limit` images of a folder for a classifier; `after` is told how many are done.
    ///
    /// # Errors
    /// [`ClassifyError::Data`], [`ClassifyError::Class`].
    pub fn load(
        folder: &ImageFolder,
        model: &Classifier,
        limit: usize,
        after: &mut dyn FnMut(usize),
    ) -> Result<Self, ClassifyError> {
        let listed = &folder.images()[..limit.min(folder.images().len())];
        let classes = model.outputs() - model.class_offset();
        if let Some(bad) = listed.iter().find(|i| i.class >= classes) {
            return Err(ClassifyError::Class { image: bad.file.clone(), class: bad.class, classes });
        }
        let side = model.side() as u32;
        let mut images = Vec::with_capacity(listed.len());
        for chunk in listed.chunks(CHUNK) {
            let decoded: Result<Vec<_>, DataError> =
                chunk.par_iter().map(|i| Ok((folder.load(i, side)?, i.class))).collect();
            images.extend(decoded?);
            after(images.len());
        }
        Ok(Self { images })
    }
}

/// Share of images whose class is among the highest outputs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// Images.
    pub images: usize,
    /// The class has the highest output.
    pub top1: f64,
    /// It is among the five highest.
    pub top5: f64,
}

/// A network with its memory.
struct Runner<'a> {
    network: &'a Network,
    memory: AlignedBuf<f32>,
    out: Vec<f32>,
}

impl<'a> Runner<'a> {
    fn new(network: &'a Network) -> Self {
        let needed = network.scratch_len(rayon::current_num_threads()).max(HUGE);
        Self { network, memory: AlignedBuf::zeroed(needed), out: vec![0.0; network.out_len()] }
    }

    fn run(&mut self, image: &[f32], after: &mut (dyn FnMut(usize) + Send)) -> Result<(), KernelError> {
        let scratch = self.memory.as_mut_slice();
        self.network.forward_with(Isa::detect(), image, &mut self.out, scratch, after)
    }
}

/// Measures the accuracy on decoded images, with the kernels that the weights call for; `after` is told how many are done.
///
/// # Errors
/// [`ClassifyError::Model`], [`ClassifyError::Kernel`].
pub fn accuracy(
    model: &Classifier,
    images: &Images,
    after: &mut dyn FnMut(usize),
) -> Result<Accuracy, ClassifyError> {
    let net = model.network(&NetworkSettings::default())?;
    let mut runner = Runner::new(&net.network);
    let (mut top1, mut top5, mut numbers) = (0_usize, 0_usize, Vec::new());
    for (i, (bytes, class)) in images.images.iter().enumerate() {
        model.numbers(bytes, &mut numbers)?;
        runner.run(&numbers, &mut |_| ())?;
        let place = rank(&runner.out, class + model.class_offset());
        top1 += usize::from(place < 1);
        top5 += usize::from(place < 5);
        after(i + 1);
    }
    let share = |hits: usize| hits as f64 / images.images.len().max(1) as f64;
    Ok(Accuracy { images: images.images.len(), top1: share(top1), top5: share(top5) })
}

/// Times of some networks that compute the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// Median milliseconds per image of each network.
    pub ms: Vec<f64>,
    /// The least of each.
    pub least: Vec<f64>,
    /// Median milliseconds of each node of each network.
    pub nodes: Vec<Vec<f64>>,
}

/// Times networks in turn on one image, on `threads` threads, after checking that all give the first one's output.
///
/// # Errors
/// [`ClassifyError::Differs`] above 1e-4 of the largest output; [`ClassifyError::Kernel`].
pub fn times(
    networks: &[&Network],
    image: &[f32],
    passes: usize,
    threads: usize,
) -> Result<Times, ClassifyError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| KernelError::Threads { threads, reason: e.to_string() })?;
    pool.install(|| measure(networks, image, passes))
}

fn measure(networks: &[&Network], image: &[f32], passes: usize) -> Result<Times, ClassifyError> {
    let mut runners: Vec<Runner<'_>> = networks.iter().map(|n| Runner::new(n)).collect();
    let mut totals = vec![Vec::with_capacity(passes); networks.len()];
    let mut nodes: Vec<Vec<Vec<f64>>> =
        networks.iter().map(|n| vec![Vec::new(); n.report().count()]).collect();
    for pass in 0..=passes {
        for (i, runner) in runners.iter_mut().enumerate() {
            let start = Instant::now();
            runner.run(image, &mut |_| ())?;
            // The first pass only warms up.
            if pass > 0 {
                totals[i].push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        if pass == 0 {
            let scale = runners[0].out.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
            for other in &runners[1..] {
                let differences = runners[0].out.iter().zip(&other.out).map(|(a, b)| (a - b).abs());
                let found =
                    differences.fold(0.0, |m: f32, d| if d.is_nan() { f32::NAN } else { m.max(d) }) / scale;
                if found.is_nan() || found > 1e-4 {
                    return Err(ClassifyError::Differs { found });
                }
            }
        }
    }
    // Node by node in passes of their own: reading the clock costs some per cent.
    for _ in 0..passes.min(20) {
        for (runner, nodes) in runners.iter_mut().zip(&mut nodes) {
            let mut last = Instant::now();
            runner.run(image, &mut |n| {
                let now = Instant::now();
                nodes[n].push((now - last).as_secs_f64() * 1e3);
                last = now;
            })?;
        }
    }
    Ok(Times {
        least: totals.iter().map(|t| t.iter().copied().fold(f64::INFINITY, f64::min)).collect(),
        ms: totals.iter_mut().map(|t| median(t)).collect(),
        nodes: nodes.iter_mut().map(|n| n.iter_mut().map(|t| median(t)).collect()).collect(),
    })
}

/// An image that is not flat, to time with: what it shows does not change the time.
#[must_use]
pub fn test_image(side: usize) -> Vec<f32> {
    (0..3 * side * side).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect()
}
