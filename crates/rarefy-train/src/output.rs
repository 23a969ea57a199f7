//! From a finished run to a model folder in the layout of Hugging Face.

use crate::{ByteTokenizer, Evaluation, Event, Outcome, Recipe, TrainError, Trainer};
use rarefy_checkpoint::{CheckpointError, DType, ModelConfig, NewModel, NewModelFiles, NewTensor};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The configuration of the model of `recipe`. A line end begins and ends a text.
pub(crate) fn model_config(recipe: &Recipe, tokenizer: &ByteTokenizer) -> Result<ModelConfig, TrainError> {
    let m = &recipe.model;
    let line_end = match tokenizer.encode("\n")?[..] {
        [id] => Some(id),
        _ => None,
    };
    let raw = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": m.hidden_size,
        "intermediate_size": m.intermediate_size,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv_heads,
        "head_dim": m.hidden_size / m.heads,
        "vocab_size": tokenizer.vocab_size(),
        "max_position_embeddings": m.max_positions,
        "rms_norm_eps": m.norm_eps,
        "rope_theta": m.rope_theta,
        "rope_scaling": null,
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": m.tie_embeddings,
        "bos_token_id": line_end,
        "eos_token_id": line_end,
        "pad_token_id": null,
        "pretraining_tp": 1,
        "use_cache": true,
        "torch_dtype": "float32",
    });
    Ok(ModelConfig::from_value(Path::new("config.json"), raw)?)
}

/// Trains by `recipe` and writes the model folder `out`, with the resolved recipe (`recipe.toml`), the run record
/// (`rarefy.json`) and a `README.md`.
///
/// While it runs, its state lies in the folder `OUT.rarefy-partial`, which is locked; the same call after a crash or a
/// cancellation goes on from there and ends with the same bytes. That folder is removed when the model is complete.
///
/// # Errors
/// Before any work: the output exists already, or another process trains into it. Those of [`Trainer::run`].
pub fn train_to_folder(
    recipe: &Recipe,
    out: &Path,
    progress: &mut dyn FnMut(&Event),
    cancel: &AtomicBool,
) -> Result<Outcome, TrainError> {
    let folder = match NewModel::open(out, RUN_KEY) {
        Err(CheckpointError::AlreadyComplete { out }) => {
            // The end came between giving the folder its name and telling so: nothing is left to do for this recipe.
            return match finished(recipe, &out) {
                Some(evaluation) => Ok(Outcome::Finished(evaluation)),
                None => Err(CheckpointError::OutputExists { out }.into()),
            };
        }
        opened => opened?,
    };
    let mut trainer = Trainer::new(recipe)?;
    let outcome = trainer.run(Some(&folder.state_file()), progress, cancel)?;
    if let Outcome::Finished(evaluation) = &outcome {
        trainer.write_model(folder, evaluation)?;
    }
    Ok(outcome)
}

/// Marks a folder as one of `rarefy train`. The recipe is not part of it: the state names what differs in another recipe.
const RUN_KEY: &str = "rarefy train";

/// The evaluation recorded in the folder, if the same recipe made it.
fn finished(recipe: &Recipe, out: &Path) -> Option<Evaluation> {
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("rarefy.json")).ok()?).ok()?;
    let is_same = record["recipe"].as_str() == Some(recipe.to_toml().as_str());
    serde_json::from_value(record["evaluation"].clone()).ok().filter(|_| is_same)
}

impl Trainer {
    /// Writes the model as it stands, with its recipe, record and description.
    ///
    /// # Errors
    /// Those of [`NewModel::finish`].
    pub fn write_model(&self, folder: NewModel, evaluation: &Evaluation) -> Result<(), TrainError> {
        let recipe = self.recipe().to_toml();
        let record = json!({
            "command": "train",
            "version": env!("CARGO_PKG_VERSION"),
            "seed": self.recipe().seed,
            "steps": self.steps_done(),
            "weights": self.parameters().len(),
            "sparsity": self.parameters().sparsity(),
            "evaluation": evaluation,
            "recipe": recipe,
        });
        let parameters = self.parameters().all.iter();
        let tensors: Vec<_> = parameters
            .map(|p| NewTensor { name: &p.name, shape: &p.shape, values: &p.values, dtype: DType::F32 })
            .collect();
        let files = NewModelFiles {
            config: &self.config().raw,
            tokenizer: Some(self.tokenizer().json()),
            record: &record,
            others: &[("recipe.toml", &recipe), ("README.md", &self.readme(evaluation))],
        };
        Ok(folder.finish(&tensors, files)?)
    }

    fn readme(&self, e: &Evaluation) -> String {
        let r = self.recipe();
        let tokens = self.steps_done() * (r.data.batch * r.data.context) as u64;
        let source = match &r.data.text {
            Some(text) => format!("the text `{}`", text.display()),
            None => format!("the built-in corpus, seed {}", r.seed),
        };
        let mut text = format!(
            "# A model made by `rarefy train`\n\nLlama type, {} weights in f32, {} tokens in the vocabulary (byte-level BPE), trained for {} \
             steps of {} x {} tokens ({tokens} tokens) on {source}. The recipe is `recipe.toml`; `rarefy train recipe.toml -o DIR` makes the \
             model again.\n\n| measured on | tokens | nats per token | perplexity |\n| --- | --- | --- | --- |\n",
            self.parameters().len(),
            self.tokenizer().vocab_size(),
            self.steps_done(),
            r.data.batch,
            r.data.context,
        );
        let what = if e.floor_perplexity.is_some() { "validation documents" } else { "validation windows" };
        text += &format!(
            "| {} {what}, this model | {} | {:.4} | {:.4} |\n",
            e.documents, e.tokens, e.nats_per_token, e.perplexity
        );
        if let (Some(nats), Some(ppl)) = (e.floor_nats_per_token, e.floor_perplexity) {
            text += &format!(
                "| the same, the generator itself (floor) | {} | {nats:.4} | {ppl:.4} |\n",
                e.tokens
            );
            text += &format!(
                "\nThe floor is the exact probability that the grammar gives these documents: no model can be expected to go below it. \
                 This model is {:.2} % above it.\n",
                (e.perplexity / ppl - 1.0) * 100.0
            );
        }
        text
    }
}
