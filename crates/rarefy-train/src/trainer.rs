//! The training loop.

use crate::batches::{Material, tokens_of};
use crate::optimizer::clip;
use crate::state::Head;
use crate::{
    Batch, Batches, ByteTokenizer, Dense, Evaluation, GradualPruning, Optimizer, Parameter, Parameters,
    Recipe, SparseMethod, TrainError, evaluate, gradients, output, state,
};
use burn::module::{Module, ParamId};
use burn::tensor::Device;
use rarefy_checkpoint::ModelConfig;
use rarefy_models::{LlamaModel, causal_lm_loss};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What happens during a run, for whoever shows it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A run begins or is resumed.
    Started {
        /// Steps done before.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Weights of the model.
        weights: usize,
        /// Tokens of one step.
        tokens_per_step: usize,
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Loss of the batch before the update, nats per token.
        loss: f64,
        /// Learning rate used.
        lr: f64,
        /// Norm of the gradients before clipping.
        gradient_norm: f64,
        /// Fraction of the linear layers' weights masked.
        sparsity: f64,
        /// Seconds this step took.
        seconds: f64,
        /// Estimated seconds until the last step is done, from a running mean.
        eta_seconds: f64,
    },
    /// A measurement was made.
    Evaluated {
        /// Steps done.
        step: u64,
        /// Its result.
        evaluation: Evaluation,
    },
    /// The state was saved.
    Saved {
        /// Steps done.
        step: u64,
        /// File written.
        file: PathBuf,
    },
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps are done.
    Finished(Evaluation),
    /// It was cancelled after `step` steps; the state is in `state` when a file was given.
    Cancelled {
        /// Steps done.
        step: u64,
        /// Saved state.
        state: Option<PathBuf>,
    },
}

/// A model under training.
pub struct Trainer {
    recipe: Recipe,
    /// Checksum of the texts read.
    texts: String,
    material: Material,
    validation: Option<Vec<u32>>,
    config: ModelConfig,
    model: LlamaModel,
    ids: Vec<ParamId>,
    parameters: Parameters,
    optimizer: Optimizer,
    method: Box<dyn SparseMethod>,
    batches: Batches,
    step: u64,
    begun: bool,
    saved: Option<PathBuf>,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("step", &self.step)
            .field("method", &self.method.slug())
            .finish_non_exhaustive()
    }
}

impl Trainer {
    /// Reads the texts, trains the tokenizer, draws the initial weights. The sparse method is that of the recipe.
    ///
    /// # Errors
    /// A recipe out of range, texts that cannot be read, a vocabulary the tokenizer cannot have.
    pub fn new(recipe: &Recipe) -> Result<Self, TrainError> {
        let method: Box<dyn SparseMethod> = match &recipe.sparsity {
            Some(settings) => Box::new(GradualPruning::new(settings.clone())),
            None => Box::new(Dense),
        };
        Self::with_method(recipe, method)
    }

    /// The same with a sparse method of the caller, in place of that of the recipe.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn with_method(recipe: &Recipe, method: Box<dyn SparseMethod>) -> Result<Self, TrainError> {
        recipe.validate()?;
        let mut material = Material::load(recipe)?;
        let texts = fingerprint([material.train.as_deref(), material.validation.as_deref()]);
        let train = material.train.take();
        let batches = Batches::new(recipe, train.as_deref(), &material.tokenizer)?;
        drop(train);
        let validation = match material.validation.take() {
            None => None,
            Some(text) => {
                let tokens = tokens_of(&text, &material.tokenizer)?;
                if tokens.len() < 2 {
                    return Err(
                        rarefy_data::DataError::TooFewTokens { length: 2, found: tokens.len() }.into()
                    );
                }
                Some(tokens)
            }
        };
        let config = output::model_config(recipe, &material.tokenizer)?;
        let model = LlamaModel::init(&config, recipe.seed, &Device::flex().autodiff())?;
        let linear: Vec<String> = model.prunable().into_iter().map(|l| l.tensor).collect();
        let optimizer = Optimizer::new(recipe.optimizer.clone());
        let (mut ids, mut parameters) = (Vec::new(), Parameters::default());
        for (name, id, shape) in model.parameters() {
            let mut values = model.get(&name)?;
            spread(&name, &mut values, &config, recipe.model.embedding_init);
            let is_linear = linear.contains(&name);
            ids.push(id);
            parameters.all.push(Parameter::new(name, shape, values, is_linear, optimizer.has_second()));
        }
        let mut trainer = Self {
            recipe: recipe.clone(),
            texts,
            material,
            validation,
            config,
            model,
            ids,
            parameters,
            optimizer,
            method,
            batches,
            step: 0,
            begun: false,
            saved: None,
        };
        trainer.push()?;
        Ok(trainer)
    }

    /// Steps done.
    #[must_use]
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// The weights with their moments and masks.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The tokenizer of the run.
    #[must_use]
    pub fn tokenizer(&self) -> &ByteTokenizer {
        &self.material.tokenizer
    }

    /// The configuration of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The recipe.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// What decides the result: the recipe but for how often it is saved and measured, and the texts.
    fn identity(&self) -> String {
        let recipe =
            Recipe { checkpoint: Default::default(), evaluation: Default::default(), ..self.recipe.clone() };
        format!("{}# texts: {}\n", recipe.to_toml(), self.texts)
    }

    /// Saves the state, atomically and durably.
    ///
    /// # Errors
    /// [`TrainError::Io`]; the former state, if any, is then intact.
    pub fn save(&mut self, file: &Path) -> Result<(), TrainError> {
        let head = Head::new(
            self.identity(),
            self.material.tokenizer.json().to_owned(),
            self.step,
            self.batches.position().clone(),
            (self.method.slug(), self.method.save()),
        );
        state::write(file, head, &self.parameters)?;
        self.saved = Some(file.to_path_buf());
        Ok(())
    }

    /// Goes on from a saved state; the following steps are bit-identical to those of the run that saved it.
    ///
    /// # Errors
    /// [`TrainError::BadState`], [`TrainError::OtherRecipe`], [`TrainError::Io`]. Then the trainer is unchanged.
    pub fn load(&mut self, file: &Path) -> Result<(), TrainError> {
        let mut parameters = self.parameters.clone();
        let head = state::read(file, &mut parameters)?;
        let other = |difference: String| TrainError::OtherRecipe { file: file.to_path_buf(), difference };
        let identity = self.identity();
        if head.recipe != identity {
            let line = identity.lines().zip(head.recipe.lines()).find(|(a, b)| a != b);
            return Err(other(line.map_or("its length".into(), |(a, b)| format!("`{b}`, now `{a}`"))));
        }
        if head.method != self.method.slug() {
            return Err(other(format!("method `{}`, now `{}`", head.method, self.method.slug())));
        }
        if head.tokenizer != self.material.tokenizer.json() {
            return Err(other("the tokenizer, so the training text has changed".into()));
        }
        self.method.load(&head.method_state)?;
        self.parameters = parameters;
        self.step = head.step;
        self.begun = true;
        self.batches.seek(head.position);
        self.saved = Some(file.to_path_buf());
        self.push()
    }

    /// Copies the weights into the model.
    fn push(&mut self) -> Result<(), TrainError> {
        for p in &self.parameters.all {
            self.model.set(&p.name, p.values.clone())?;
        }
        Ok(())
    }

    /// Loss and gradients of a batch, in the order of the parameters.
    fn gradients(&self, batch: &Batch) -> Result<(f64, Vec<Vec<f32>>), TrainError> {
        let logits = self.model.forward(self.model.tokens(&batch.inputs)?);
        let loss = causal_lm_loss(logits, self.model.tokens(&batch.targets)?);
        let value = f64::from(loss.clone().into_scalar::<f32>());
        self.check("loss", &[value as f32])?;
        let all = gradients::of(&loss, &self.model, &self.parameters, &self.ids);
        for (p, values) in self.parameters.all.iter().zip(&all) {
            self.check(&format!("{}.grad", p.name), values)?;
        }
        Ok((value, all))
    }

    fn check(&self, tensor: &str, values: &[f32]) -> Result<(), TrainError> {
        let Some(first) = values.iter().position(|x| !x.is_finite()) else { return Ok(()) };
        let count = values.iter().filter(|x| !x.is_finite()).count();
        Err(TrainError::NonFinite {
            step: self.step,
            tensor: tensor.to_owned(),
            count,
            first,
            checkpoint: self.saved.clone(),
        })
    }

    /// One step; returns the loss before it, the learning rate and the norm of the gradients.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] naming the tensor; errors of the method. The state must not be saved after an error.
    pub fn step(&mut self) -> Result<(f64, f64, f64), TrainError> {
        if !self.begun {
            self.method.begin(&mut self.parameters)?;
            self.begun = true;
            self.push()?;
        }
        let batch = self.batches.next_batch(&self.material.tokenizer)?;
        let (mut loss, mut gradients) = self.gradients(&batch)?;
        loss += self.method.extra_loss(self.step, &self.parameters, &mut gradients)?;
        self.method.after_backward(self.step, &self.parameters, &mut gradients)?;
        for (p, g) in self.parameters.all.iter().zip(&mut gradients) {
            if let Some(mask) = p.mask() {
                mask.apply(g);
            }
        }
        let norm = clip(&mut gradients, self.recipe.clip.norm);
        let lr = self.recipe.optimizer.lr * self.recipe.schedule.fraction_at(self.step);
        self.optimizer.step(&mut self.parameters, &mut gradients, self.step, lr);
        for p in &self.parameters.all {
            self.check(&p.name, &p.values)?;
        }
        self.method.after_step(self.step, &mut self.parameters)?;
        if let Some(epoch) = self.batches.epoch() {
            let done = self.batches.position().batches;
            if done.is_multiple_of(epoch) {
                self.method.epoch_end(done / epoch - 1, &mut self.parameters)?;
            }
        }
        self.step += 1;
        if self.step == self.recipe.schedule.steps {
            self.method.finish(&mut self.parameters)?;
        }
        self.push()?;
        Ok((loss, lr, norm))
    }

    /// Measures the model on `count` validation documents or windows; the training is not affected.
    ///
    /// # Errors
    /// Likelihoods that are not finite.
    pub fn evaluate(&self, count: u64) -> Result<Evaluation, TrainError> {
        let model = self.model.valid();
        let context = self.config.max_positions;
        match &self.validation {
            Some(tokens) => evaluate::on_tokens(&model, tokens, count, self.recipe.data.context),
            None => evaluate::on_corpus(&model, &self.material.tokenizer, self.recipe.seed, count, context),
        }
    }

    /// Runs to the last step, or until `cancel` is set. With a `state` file the state is saved there every
    /// `checkpoint.every` steps and when cancelled, and a state already there is resumed.
    ///
    /// # Errors
    /// Those of [`Trainer::load`], [`Trainer::step`] and [`Trainer::save`]. The last saved state stays intact.
    pub fn run(
        &mut self,
        state: Option<&Path>,
        progress: &mut dyn FnMut(&Event),
        cancel: &AtomicBool,
    ) -> Result<Outcome, TrainError> {
        if let Some(file) = state
            && file.exists()
        {
            self.load(file)?;
        }
        let steps = self.recipe.schedule.steps;
        let tokens_per_step = self.recipe.data.batch * self.recipe.data.context;
        progress(&Event::Started { step: self.step, steps, weights: self.parameters.len(), tokens_per_step });
        let mut mean: Option<f64> = None;
        while self.step < steps {
            if cancel.load(Ordering::Relaxed) {
                self.save_to(state, progress)?;
                return Ok(Outcome::Cancelled { step: self.step, state: state.map(Path::to_path_buf) });
            }
            let start = Instant::now();
            let (loss, lr, gradient_norm) = self.step()?;
            let seconds = start.elapsed().as_secs_f64();
            let smooth = mean.map_or(seconds, |m| 0.95 * m + 0.05 * seconds);
            mean = Some(smooth);
            let sparsity = self.parameters.sparsity();
            let eta_seconds = smooth * (steps - self.step) as f64;
            progress(&Event::Step {
                step: self.step,
                steps,
                loss,
                lr,
                gradient_norm,
                sparsity,
                seconds,
                eta_seconds,
            });
            let due = |every: u64| every > 0 && self.step.is_multiple_of(every) && self.step < steps;
            let (measure, save) = (due(self.recipe.evaluation.every), due(self.recipe.checkpoint.every));
            if measure {
                let evaluation = self.evaluate(self.recipe.evaluation.quick)?;
                progress(&Event::Evaluated { step: self.step, evaluation });
            }
            if save {
                self.save_to(state, progress)?;
            }
        }
        self.save_to(state, progress)?;
        let evaluation = self.evaluate(self.recipe.evaluation.full)?;
        progress(&Event::Evaluated { step: self.step, evaluation });
        Ok(Outcome::Finished(evaluation))
    }

    fn save_to(&mut self, state: Option<&Path>, progress: &mut dyn FnMut(&Event)) -> Result<(), TrainError> {
        if let Some(file) = state {
            self.save(file)?;
            progress(&Event::Saved { step: self.step, file: file.to_path_buf() });
        }
        Ok(())
    }
}

/// Brings the initial embedding, drawn with a deviation of 0.02, to that of the recipe; where it is also the output layer, the
/// last norm is lowered so that the first logits have a deviation of at most 1.
fn spread(name: &str, values: &mut [f32], config: &ModelConfig, deviation: f64) {
    let factor = match name {
        "model.embed_tokens.weight" => deviation / 0.02,
        "model.norm.weight" if config.tie_embeddings => {
            1.0f64.min(1.0 / (deviation * (config.hidden_size as f64).sqrt()))
        }
        _ => return,
    };
    values.iter_mut().for_each(|x| *x *= factor as f32);
}

/// Checksum of the texts of a run: a path in the recipe does not say what was in the file.
fn fingerprint(texts: [Option<&str>; 2]) -> String {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for text in texts {
        let text = text.unwrap_or_default();
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    format!("{:032x}", hash.digest128())
}
