//! Training a small MobileNet on labelled images, with a sparse method plugged into its steps.
//!
//! Images are drawn without repetition within an epoch, shifted and mirrored at random. The same settings on the same images give
//! the same bytes.

use crate::optimizer::clip;
use crate::{
    ClipSettings, Dense, GradualPruning, Optimizer, OptimizerKind, OptimizerSettings, Parameter, Parameters,
    ScheduleSettings, SparseMethod, SparsitySettings, TrainError, gradients,
};
use burn::module::ParamId;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rarefy_data::LabelledImages;
use rarefy_models::{MobileNet, MobileNetSettings, causal_lm_loss};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};

/// Images of one pass when accuracy is measured.
const MEASURED: usize = 100;
/// Stream of the generator that shuffles; the streams above it shift and mirror.
const SHUFFLE: u64 = 1 << 40;

/// What decides a run. The defaults train the default [`MobileNetSettings`] on CIFAR-10.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageSettings {
    /// Shape of the network.
    pub model: MobileNetSettings,
    /// Seed of the weights, the order and the changes of the images. Default 0.
    pub seed: u64,
    /// Images of a step, 1 to 4096. Default 64.
    pub batch: usize,
    /// Most pixels by which an image is moved in each direction, below a quarter of its side; its border is repeated. Default 2.
    pub shift: usize,
    /// Whether images are mirrored left to right at random. Default true.
    pub mirrors: bool,
    /// Share of the running statistics that each step keeps, in [0, 1). Default 0.95.
    pub keeps: f32,
    /// Update rule. Default SGD with Nesterov's momentum 0.9, rate 0.1, weight decay 5e-4 on the 1×1 convolutions.
    pub optimizer: OptimizerSettings,
    /// Steps and learning rate.
    pub schedule: ScheduleSettings,
    /// Gradient clipping. Default 5.
    pub clip: ClipSettings,
    /// Gradual pruning of the 1×1 convolutions inside the blocks. Default none.
    pub sparsity: Option<SparsitySettings>,
}

impl Default for ImageSettings {
    fn default() -> Self {
        let optimizer = OptimizerSettings {
            kind: OptimizerKind::Sgd,
            lr: 0.1,
            weight_decay: 5e-4,
            momentum: 0.9,
            nesterov: true,
            ..OptimizerSettings::default()
        };
        Self {
            model: MobileNetSettings::default(),
            seed: 0,
            batch: 64,
            shift: 2,
            mirrors: true,
            keeps: 0.95,
            optimizer,
            schedule: ScheduleSettings { steps: 1000, warmup: 50, final_fraction: 0.0 },
            clip: ClipSettings { norm: 5.0 },
            sparsity: None,
        }
    }
}

impl ImageSettings {
    /// Checks every field against its range and against the images.
    fn validate(&self, images: &LabelledImages) -> Result<(), TrainError> {
        self.model.validate()?;
        let need = |ok: bool, field, value: String, allowed: String| match ok {
            true => Ok(()),
            false => Err(TrainError::Setting { field, value, allowed }),
        };
        let (m, o, s) = (&self.model, &self.optimizer, &self.schedule);
        let of_images = |what: usize| format!("the images need {what}");
        need(m.side == images.side, "model.side", m.side.to_string(), of_images(images.side))?;
        need(m.planes == images.planes, "model.planes", m.planes.to_string(), of_images(images.planes))?;
        let classes = images.classes();
        let at_least = format!("the images have {classes} classes");
        need(m.classes >= classes, "model.classes", m.classes.to_string(), at_least)?;
        let most = images.len().min(4096);
        let allowed = format!("allowed: 1 to {most}, and there are {} images", images.len());
        need((1..=most).contains(&self.batch), "batch", self.batch.to_string(), allowed)?;
        let shift = self.shift.to_string();
        need(4 * self.shift < m.side, "shift", shift, "it must be below a quarter of the side".into())?;
        let keeps = self.keeps;
        need((0.0..1.0).contains(&keeps), "keeps", keeps.to_string(), "it must lie in [0, 1)".into())?;
        need(o.lr.is_finite() && o.lr > 0.0, "optimizer.lr", o.lr.to_string(), "it must be above 0".into())?;
        need(s.steps >= 1, "schedule.steps", s.steps.to_string(), "it must be at least 1".into())?;
        need(
            s.warmup < s.steps,
            "schedule.warmup",
            s.warmup.to_string(),
            "it must be below schedule.steps".into(),
        )?;
        let Some(p) = &self.sparsity else { return Ok(()) };
        let target = p.target;
        need(
            (0.0..1.0).contains(&target),
            "sparsity.target",
            target.to_string(),
            "it must lie in [0, 1)".into(),
        )?;
        need(p.every >= 1, "sparsity.every", p.every.to_string(), "it must be at least 1".into())?;
        let window = format!("{} to {}", p.begin, p.end);
        let allowed = "begin must lie below end, end below schedule.steps".into();
        need(p.begin < p.end && p.end < s.steps, "sparsity.end", window, allowed)
    }
}

/// A step that is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageStep {
    /// Steps done.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Loss of the batch before the update, nats per image.
    pub loss: f64,
    /// Learning rate used.
    pub lr: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Fraction of the prunable weights that is masked.
    pub sparsity: f64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageOutcome {
    /// All steps are done.
    Finished,
    /// It was cancelled between two steps; [`ImageTrainer::run`] goes on from there.
    Cancelled {
        /// Steps done.
        step: u64,
    },
}

/// A MobileNet under training.
pub struct ImageTrainer<'a> {
    settings: ImageSettings,
    images: &'a LabelledImages,
    model: MobileNet,
    ids: Vec<ParamId>,
    parameters: Parameters,
    optimizer: Optimizer,
    method: Box<dyn SparseMethod>,
    /// Order of the images in the epoch.
    order: Vec<usize>,
    step: u64,
}

impl std::fmt::Debug for ImageTrainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageTrainer")
            .field("step", &self.step)
            .field("method", &self.method.slug())
            .finish_non_exhaustive()
    }
}

impl<'a> ImageTrainer<'a> {
    /// A network of random weights, with the sparse method of the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] and [`TrainError::Model`] for settings out of range or not fitting the images; those of [`SparseMethod::begin`].
    pub fn new(settings: &ImageSettings, images: &'a LabelledImages) -> Result<Self, TrainError> {
        settings.validate(images)?;
        let model = MobileNet::init(&settings.model, settings.seed, &Device::flex().autodiff())?;
        Self::from_model(settings, images, model)
    }

    /// Goes on with the weights and statistics of a trained network; moments and masks begin anew.
    ///
    /// # Errors
    /// As [`ImageTrainer::new`]; also when the network has another shape than the settings say.
    pub fn from_model(
        settings: &ImageSettings,
        images: &'a LabelledImages,
        model: MobileNet,
    ) -> Result<Self, TrainError> {
        settings.validate(images)?;
        if *model.settings() != settings.model {
            return Err(TrainError::Setting {
                field: "model",
                value: format!("{:?}", settings.model),
                allowed: format!("the network has {:?}", model.settings()),
            });
        }
        let method: Box<dyn SparseMethod> = match &settings.sparsity {
            Some(sparsity) => Box::new(GradualPruning::new(sparsity.clone())),
            None => Box::new(Dense),
        };
        let optimizer = Optimizer::new(settings.optimizer.clone());
        let prunable = model.prunable();
        let (mut ids, mut parameters) = (Vec::new(), Parameters::default());
        for (name, id, shape) in model.parameters() {
            let (values, is_linear) = (model.get(&name)?, prunable.contains(&name));
            ids.push(id);
            parameters.all.push(Parameter::new(name, shape, values, is_linear, optimizer.has_second()));
        }
        let (settings, order) = (settings.clone(), Vec::new());
        let mut trainer =
            Self { settings, images, model, ids, parameters, optimizer, method, order, step: 0 };
        trainer.method.begin(&mut trainer.parameters)?;
        trainer.push()?;
        Ok(trainer)
    }

    /// The network as it stands.
    #[must_use]
    pub fn model(&self) -> &MobileNet {
        &self.model
    }

    /// The network, for further use.
    #[must_use]
    pub fn into_model(self) -> MobileNet {
        self.model
    }

    /// The weights with their moments and masks.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The weights into the network.
    fn push(&mut self) -> Result<(), TrainError> {
        for p in &self.parameters.all {
            self.model.set(&p.name, p.values.clone())?;
        }
        Ok(())
    }

    fn check(&self, tensor: &str, values: &[f32]) -> Result<(), TrainError> {
        let Some(first) = values.iter().position(|x| !x.is_finite()) else { return Ok(()) };
        let count = values.iter().filter(|x| !x.is_finite()).count();
        let (step, tensor) = (self.step, tensor.to_owned());
        Err(TrainError::NonFinite { step, tensor, count, first, checkpoint: None })
    }

    /// The images of this step, changed at random, and their classes.
    fn batch(&mut self) -> (Vec<Vec<u8>>, Vec<i64>) {
        let batch = self.settings.batch;
        let per_epoch = (self.images.len() / batch).max(1) as u64;
        let place = (self.step % per_epoch) as usize;
        if place == 0 || self.order.is_empty() {
            self.order = (0..self.images.len()).collect();
            let mut rng = self.random(SHUFFLE + self.step / per_epoch);
            self.order.shuffle(&mut rng);
        }
        let mut rng = self.random(self.step);
        let drawn = &self.order[place * batch..][..batch];
        let labels = drawn.iter().map(|i| self.images.label(*i) as i64).collect();
        let images = drawn.iter().map(|i| self.changed(self.images.image(*i), &mut rng)).collect();
        (images, labels)
    }

    fn random(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.settings.seed);
        rng.set_stream(stream);
        rng
    }

    fn changed(&self, image: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
        let (side, reach) = (self.images.side as isize, self.settings.shift);
        let mut draw = || rng.random_range(0..=2 * reach) as isize - reach as isize;
        let (dy, dx) = (draw(), draw());
        let mirrored = rng.random_range(0..2) == 1 && self.settings.mirrors;
        let last = side - 1;
        let at = |v: isize| v.clamp(0, last) as usize;
        let columns: Vec<usize> = (0..side).map(|x| at(if mirrored { last - x } else { x } + dx)).collect();
        let planes = image.chunks_exact((side * side) as usize);
        planes
            .flat_map(|plane| {
                let rows = (0..side).map(move |y| &plane[at(y + dy) * side as usize..][..side as usize]);
                rows.flat_map(|row| columns.iter().map(|x| row[*x]))
            })
            .collect()
    }

    /// One step.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`]; those of the sparse method.
    pub fn step(&mut self) -> Result<ImageStep, TrainError> {
        let (images, labels) = self.batch();
        let n = images.len();
        let views: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
        let (logits, statistics) = self.model.forward(self.model.windows(&views)?, n);
        let device = logits.device();
        let targets: Tensor<2, Int> = Tensor::from_data(TensorData::new(labels, [1, n]), &device);
        let loss = causal_lm_loss(logits.reshape([1, n, self.settings.model.classes]), targets);
        let value = loss.clone().into_scalar::<f32>();
        self.check("loss", &[value])?;
        let mut found = gradients::of(&loss, &self.model, &self.parameters, &self.ids);
        for (p, g) in self.parameters.all.iter().zip(&mut found) {
            self.check(&format!("{}.grad", p.name), g)?;
            if let Some(mask) = p.mask() {
                mask.apply(g);
            }
        }
        let extra = self.method.extra_loss(self.step, &self.parameters, &mut found)?;
        self.method.after_backward(self.step, &self.parameters, &mut found)?;
        let gradient_norm = clip(&mut found, self.settings.clip.norm);
        let lr = self.settings.optimizer.lr * self.settings.schedule.fraction_at(self.step);
        self.optimizer.step(&mut self.parameters, &mut found, self.step, lr);
        for p in &self.parameters.all {
            self.check(&p.name, &p.values)?;
        }
        self.method.after_step(self.step, &mut self.parameters)?;
        self.model.update_running(&statistics, self.settings.keeps);
        self.step += 1;
        if self.step == self.settings.schedule.steps {
            self.method.finish(&mut self.parameters)?;
        }
        self.push()?;
        Ok(ImageStep {
            step: self.step,
            steps: self.settings.schedule.steps,
            loss: f64::from(value) + extra,
            lr,
            gradient_norm,
            sparsity: self.parameters.sparsity(),
        })
    }

    /// Runs to the last step, or until `cancel` is set.
    ///
    /// # Errors
    /// Those of [`ImageTrainer::step`].
    pub fn run(
        &mut self,
        progress: &mut dyn FnMut(&ImageStep),
        cancel: &AtomicBool,
    ) -> Result<ImageOutcome, TrainError> {
        while self.step < self.settings.schedule.steps {
            if cancel.load(Ordering::Relaxed) {
                return Ok(ImageOutcome::Cancelled { step: self.step });
            }
            progress(&self.step()?);
        }
        Ok(ImageOutcome::Finished)
    }

    /// Measures the statistics of the normalisations anew over `steps` batches without changing a weight: those of before a mask are not
    /// those behind it.
    ///
    /// # Errors
    /// Images of another size than the network reads.
    pub fn recalibrate(&mut self, steps: u64) -> Result<(), TrainError> {
        for step in 0..steps {
            self.step = step;
            let (images, _) = self.batch();
            let views: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
            let (_, statistics) = self.model.forward(self.model.windows(&views)?, views.len());
            // The plain mean of all batches so far.
            self.model.update_running(&statistics, step as f32 / (step + 1) as f32);
        }
        self.step = 0;
        Ok(())
    }

    /// Share of `images` whose class has the highest logit, by the running statistics.
    ///
    /// # Errors
    /// Images of another size than the network reads.
    pub fn accuracy(&self, images: &LabelledImages) -> Result<f64, TrainError> {
        let mut right = 0;
        let all: Vec<usize> = (0..images.len()).collect();
        for part in all.chunks(MEASURED) {
            let views: Vec<&[u8]> = part.iter().map(|i| images.image(*i)).collect();
            let logits = self.model.infer(self.model.windows(&views)?, views.len());
            let best = logits.argmax(1).into_data();
            right +=
                part.iter().zip(best.iter::<i64>()).filter(|(i, b)| images.label(**i) as i64 == *b).count();
        }
        Ok(right as f64 / images.len().max(1) as f64)
    }
}
