//! What the experiments that train share: small labelled images, MobileNets trained on them and kept, and fair times of different networks.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rarefy_checkpoint::NewModel;
use rarefy_data::{LabelledImages, read_cifar10, read_idx};
use rarefy_kernels::cnn::NetworkSettings;
use rarefy_models::classifier::Classifier;
use rarefy_models::{MobileNet, MobileNetSettings};
use rarefy_train::{ImageOutcome, ImageSettings, ImageTrainer, ScheduleSettings, SparsitySettings};
use serde_json::json;

use super::ReproOptions;
use crate::builtin::cache_folders;
use crate::classify::{Images, accuracy, latencies, test_image};
use crate::cli::CliError;

/// Which images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// 28 × 28, grey, clothes.
    FashionMnist,
    /// 32 × 32, coloured, decoded from JPEG.
    Cifar10,
}

/// Images to train on, to choose by, and to measure on once.
pub(super) struct Study {
    pub(super) name: &'static str,
    pub(super) train: LabelledImages,
    validation: Images,
    test: Images,
    cache: PathBuf,
    seed: u64,
}

/// Accuracies of one network, in percent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) validation: f64,
    pub(super) test: f64,
}

fn as_measured(images: &LabelledImages) -> Images {
    Images { images: (0..images.len()).map(|i| (images.rgb(i), images.label(i))).collect() }
}

impl Study {
    /// The first `most` training images but for the last tenth of them, which is the validation split.
    pub(super) fn open(
        options: &ReproOptions<'_>,
        data: &Path,
        source: Source,
        most: usize,
    ) -> Result<Self, CliError> {
        let (name, all, test) = match source {
            Source::Cifar10 => {
                let folder = data.join("cifar10");
                let read = |name: &str| read_cifar10(&folder.join(name));
                ("CIFAR-10", read("train_10000_jpeg.bin.gz")?, read("test_2000_jpeg.bin.gz")?)
            }
            Source::FashionMnist => {
                let folder = data.join("fashion-mnist");
                let read = |part: &str| {
                    let file = |what: &str| folder.join(format!("{part}-{what}-ubyte.gz"));
                    read_idx(&file("images-idx3"), &file("labels-idx1"))
                };
                ("Fashion-MNIST", read("train")?, read("t10k")?)
            }
        };
        let n = all.len().min(most);
        let held_out = n / 10;
        let cache = cache_folders().into_iter().find(|base| std::fs::create_dir_all(base).is_ok());
        let cache = cache.unwrap_or_else(std::env::temp_dir).join("trained");
        Ok(Self {
            name,
            train: all.slice(0..n - held_out),
            validation: as_measured(&all.slice(n - held_out..n)),
            test: as_measured(&test),
            cache,
            seed: options.seed,
        })
    }

    /// Settings of a network of this width, trained for `epochs`.
    pub(super) fn settings(&self, width: f64, multiple: usize, epochs: f64, batch: usize) -> ImageSettings {
        let steps = ((self.train.len() / batch) as f64 * epochs).round().max(10.0) as u64;
        ImageSettings {
            model: MobileNetSettings {
                side: self.train.side,
                planes: self.train.planes,
                width,
                multiple,
                classes: self.train.classes(),
                ..MobileNetSettings::default()
            },
            seed: self.seed,
            batch,
            schedule: ScheduleSettings { steps, warmup: steps / 20, final_fraction: 0.0 },
            ..ImageSettings::default()
        }
    }

    /// The network of these settings: from the cache, or trained and kept there.
    pub(super) fn train(
        &self,
        settings: &ImageSettings,
        say: &mut dyn FnMut(&str),
    ) -> Result<Classifier, CliError> {
        let (folder, key) = self.place(&format!("{settings:?}"));
        if let Ok(found) = Classifier::open(&folder) {
            return Ok(found);
        }
        let trained = self.trainer(ImageTrainer::new(settings, &self.train)?, say)?;
        self.keep(&trained, &folder, &key)
    }

    /// Runs to the end.
    pub(super) fn trainer(
        &self,
        mut trainer: ImageTrainer<'_>,
        say: &mut dyn FnMut(&str),
    ) -> Result<MobileNet, CliError> {
        let mut mean = f64::NAN;
        let mut tell = |s: &rarefy_train::ImageStep| {
            mean = if mean.is_nan() { s.loss } else { 0.98 * mean + 0.02 * s.loss };
            if s.step.is_multiple_of(100) || s.step == s.steps {
                let percent = 100.0 * s.sparsity;
                say(&format!(
                    "training: step {} of {}, loss {mean:.3}, {percent:.0} % zeros",
                    s.step, s.steps
                ));
            }
        };
        match trainer.run(&mut tell, &AtomicBool::new(false))? {
            ImageOutcome::Finished => Ok(trainer.into_model()),
            // Nobody sets the flag; an unfinished network must not be measured.
            ImageOutcome::Cancelled { step } => Err(CliError::usage(
                format!("training stopped after {step} steps"),
                "run the command again; networks that are finished are kept",
            )),
        }
    }

    /// Folder and key of a network in the cache; `what` says all that decides it besides the images.
    fn place(&self, what: &str) -> (PathBuf, String) {
        let key = format!(
            "{} {} images, {what}, version {}",
            self.name,
            self.train.len(),
            env!("CARGO_PKG_VERSION")
        );
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let images = (0..self.train.len()).step_by(97).flat_map(|i| self.train.image(i).iter().copied());
        for byte in key.bytes().chain(images) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        (self.cache.join(format!("{}-{hash:016x}", self.name.to_lowercase())), key)
    }

    fn keep(&self, model: &MobileNet, folder: &Path, key: &str) -> Result<Classifier, CliError> {
        let made =
            model.classifier(&format!("mobilenet-v1-{}-{}", model.settings().width, model.settings().side));
        if folder.exists() {
            // Something that is no classifier of ours lies there: it is left alone.
            return Ok(made);
        }
        made.write(NewModel::open(folder, key)?, &json!({ "command": "repro", "made_of": key }))?;
        Ok(made)
    }

    /// Accuracies by the kernels that the weights call for.
    pub(super) fn measure(&self, model: &Classifier) -> Result<Found, CliError> {
        let percent = |images: &Images| -> Result<f64, CliError> {
            Ok(100.0 * accuracy(model, images, &mut |_| ())?.top1)
        };
        Ok(Found { validation: percent(&self.validation)?, test: percent(&self.test)? })
    }

    /// What a reader must know.
    pub(super) fn describe(&self) -> String {
        let test = self.test.images.len();
        format!(
            "{}: {} training and {} validation images, all of the training file; {test} test images, used for these numbers only; one seed. An accuracy \
             near 90 % has a standard error of {:.2} points on that many images, one near 65 % {:.2}; trained networks are kept in `{}`, which can be deleted",
            self.name,
            self.train.len(),
            self.validation.images.len(),
            100.0 * (0.09 / test as f64).sqrt(),
            100.0 * (0.2275 / test as f64).sqrt(),
            self.cache.display()
        )
    }
}

/// A cubic schedule from a tenth to three quarters of the run (gradual pruning's defaults), a mask every hundredth of it.
pub(super) fn gradual(
    settings: &ImageSettings,
    sparsity: f64,
    pattern: &str,
) -> Result<ImageSettings, CliError> {
    let steps = settings.schedule.steps;
    let every = (steps / 100).max(1);
    let begin = steps / 10;
    let updates = (steps * 3 / 4 - begin) / every;
    let pruned = SparsitySettings {
        target: sparsity,
        begin,
        end: begin + updates.max(1) * every,
        every,
        pattern: pattern.parse()?,
        ..SparsitySettings::default()
    };
    Ok(ImageSettings { sparsity: Some(pruned), ..settings.clone() })
}

/// Median milliseconds per image of different networks, run in turn on one thread; `may_be_sparse` for each.
pub(super) fn times(models: &[(&Classifier, bool)], passes: usize) -> Result<Vec<f64>, CliError> {
    let mut networks = Vec::with_capacity(models.len());
    for (model, may_be_sparse) in models {
        let settings = NetworkSettings { may_be_sparse: *may_be_sparse, ..NetworkSettings::default() };
        networks.push(model.network(&settings)?.network);
    }
    let side = models.first().map_or(0, |m| m.0.side());
    Ok(latencies(&networks.iter().collect::<Vec<_>>(), &test_image(side), passes, 1)?)
}
