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
        let mut images = Vec::new();
        decoded(folder, model, limit, &mut |chunk| {
            images.extend(chunk);
            after(images.len());
            Ok(())
        })?;
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

/// Bytes of an image as the network reads them, and its class.
type Labelled = (Vec<u8>, usize);

/// Decodes the first `limit` images of a folder, [`CHUNK`] at a time.
fn decoded(
    folder: &ImageFolder,
    model: &Classifier,
    limit: usize,
    take: &mut dyn FnMut(Vec<Labelled>) -> Result<(), ClassifyError>,
) -> Result<(), ClassifyError> {
    let listed = &folder.images()[..limit.min(folder.images().len())];
    let classes = model.outputs() - model.class_offset();
    if let Some(bad) = listed.iter().find(|i| i.class >= classes) {
        return Err(ClassifyError::Class { image: bad.file.clone(), class: bad.class, classes });
    }
    let side = model.side() as u32;
    for chunk in listed.chunks(CHUNK) {
        let images: Result<Vec<_>, DataError> =
            chunk.par_iter().map(|i| Ok((folder.load(i, side)?, i.class))).collect();
        take(images?)?;
    }
    Ok(())
}

/// Counts how often a model is right.
struct Tally<'a> {
    model: &'a Classifier,
    runner: Runner<'a>,
    numbers: Vec<f32>,
    images: usize,
    top1: usize,
    top5: usize,
}

impl<'a> Tally<'a> {
    fn new(model: &'a Classifier, network: &'a Network) -> Self {
        Self { model, runner: Runner::new(network), numbers: Vec::new(), images: 0, top1: 0, top5: 0 }
    }

    fn see(&mut self, bytes: &[u8], class: usize) -> Result<(), ClassifyError> {
        self.model.numbers(bytes, &mut self.numbers)?;
        self.runner.run(&self.numbers, &mut |_| ())?;
        let place = rank(&self.runner.out, class + self.model.class_offset());
        self.images += 1;
        self.top1 += usize::from(place < 1);
        self.top5 += usize::from(place < 5);
        Ok(())
    }

    fn accuracy(&self) -> Accuracy {
        let share = |n: usize| n as f64 / self.images.max(1) as f64;
        Accuracy { images: self.images, top1: share(self.top1), top5: share(self.top5) }
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
    let mut tally = Tally::new(model, &net.network);
    for (bytes, class) in &images.images {
        tally.see(bytes, *class)?;
        after(tally.images);
    }
    Ok(tally.accuracy())
}

/// [`accuracy`] on the first `limit` images of a folder, of which only some are in memory at a time.
///
/// # Errors
/// As there; [`ClassifyError::Data`], [`ClassifyError::Class`].
pub fn accuracy_on_folder(
    model: &Classifier,
    folder: &ImageFolder,
    limit: usize,
    after: &mut dyn FnMut(usize),
) -> Result<Accuracy, ClassifyError> {
    let net = model.network(&NetworkSettings::default())?;
    let mut tally = Tally::new(model, &net.network);
    decoded(folder, model, limit, &mut |chunk| {
        chunk.iter().try_for_each(|(bytes, class)| tally.see(bytes, *class))?;
        after(tally.images);
        Ok(())
    })?;
    Ok(tally.accuracy())
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

/// Median milliseconds per image of networks that need not compute the same, in turn, on `threads` threads.
///
/// # Errors
/// [`ClassifyError::Kernel`].
pub fn latencies(
    networks: &[&Network],
    image: &[f32],
    passes: usize,
    threads: usize,
) -> Result<Vec<f64>, ClassifyError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| KernelError::Threads { threads, reason: e.to_string() })?;
    pool.install(|| {
        let mut runners: Vec<Runner<'_>> = networks.iter().map(|n| Runner::new(n)).collect();
        let mut totals = vec![Vec::with_capacity(passes); networks.len()];
        for pass in 0..=passes {
            for (runner, totals) in runners.iter_mut().zip(&mut totals) {
                let start = Instant::now();
                runner.run(image, &mut |_| ())?;
                // The first pass only warms up.
                if pass > 0 {
                    totals.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
        Ok(totals.iter_mut().map(|t| median(t)).collect())
    })
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
