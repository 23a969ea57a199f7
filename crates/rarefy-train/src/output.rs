//! From a finished run to a model folder in the layout of Hugging Face.

use crate::{
    ByteTokenizer, Evaluation, Event, Outcome, Parameters, Recipe, TrainError, Trainer, state::write_atomic,
};
use rarefy_checkpoint::ModelConfig;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
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

/// Writes a model folder of f32 weights: `config.json`, `tokenizer.json`, `model.safetensors` and the files of `extra`
/// (name and content). The folder appears complete or not at all; it must not exist before.
///
/// # Errors
/// [`TrainError::OutputExists`], [`TrainError::Io`].
pub fn write_model_folder(
    out: &Path,
    config: &Value,
    parameters: &Parameters,
    tokenizer_json: &str,
    extra: &[(&str, String)],
) -> Result<(), TrainError> {
    if out.exists() {
        return Err(TrainError::OutputExists { out: out.to_path_buf() });
    }
    let staging = beside(out, ".model.rarefy-partial");
    match std::fs::remove_dir_all(&staging) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(TrainError::io(&staging, "remove")(e));
        }
        _ => std::fs::create_dir_all(&staging).map_err(TrainError::io(&staging, "create"))?,
    }
    let pretty = |v: &Value| serde_json::to_string_pretty(v).expect("plain values") + "\n";
    write_atomic(&staging.join("config.json"), pretty(config).as_bytes())?;
    write_atomic(&staging.join("tokenizer.json"), tokenizer_json.as_bytes())?;
    write_atomic(&staging.join("model.safetensors"), &safetensors(parameters))?;
    for (name, content) in extra {
        write_atomic(&staging.join(name), content.as_bytes())?;
    }
    std::fs::File::open(&staging).and_then(|f| f.sync_all()).map_err(TrainError::io(&staging, "write"))?;
    std::fs::rename(&staging, out).map_err(TrainError::io(out, "write"))?;
    let parent = match out.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    std::fs::File::open(parent).and_then(|f| f.sync_all()).map_err(TrainError::io(parent, "write"))
}

/// The bytes of a safetensors file: header length, JSON header padded with blanks to a multiple of 8, data in name order.
fn safetensors(parameters: &Parameters) -> Vec<u8> {
    let mut sorted: Vec<_> = parameters.all.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    for p in &sorted {
        let end = at + p.values.len() * 4;
        header.insert(p.name.clone(), json!({ "dtype": "F32", "shape": p.shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut json = serde_json::to_vec(&Value::Object(header)).expect("plain values");
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = Vec::with_capacity(8 + json.len() + at);
    bytes.extend((json.len() as u64).to_le_bytes());
    bytes.extend(json);
    for x in sorted.iter().flat_map(|p| &p.values) {
        bytes.extend(x.to_le_bytes());
    }
    bytes
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Trains by `recipe` and writes the model folder `out`, with the resolved recipe (`recipe.toml`), the run record
/// (`rarefy.json`) and a `README.md`.
///
/// While it runs, its state lies in `OUT.training.rarefy-partial`; the same call after a crash or a cancellation goes on from
/// there and ends with the same bytes. The state is removed when the folder is complete.
///
/// # Errors
/// [`TrainError::OutputExists`] before any work; those of [`Trainer::run`].
pub fn train_to_folder(
    recipe: &Recipe,
    out: &Path,
    progress: &mut dyn FnMut(&Event),
    cancel: &AtomicBool,
) -> Result<Outcome, TrainError> {
    let state = beside(out, ".training.rarefy-partial");
    if out.exists() {
        // The end may have come between the last two steps: the folder is complete, its state was not removed yet.
        if let Some(evaluation) = finished(recipe, out).filter(|_| state.exists()) {
            std::fs::remove_file(&state).map_err(TrainError::io(&state, "remove"))?;
            return Ok(Outcome::Finished(evaluation));
        }
        return Err(TrainError::OutputExists { out: out.to_path_buf() });
    }
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent).map_err(TrainError::io(parent, "create"))?;
    }
    let mut trainer = Trainer::new(recipe)?;
    let outcome = trainer.run(Some(&state), progress, cancel)?;
    if let Outcome::Finished(evaluation) = &outcome {
        trainer.write_model(out, evaluation)?;
        std::fs::remove_file(&state).map_err(TrainError::io(&state, "remove"))?;
    }
    Ok(outcome)
}

/// The evaluation recorded in the folder, if the same recipe made it.
fn finished(recipe: &Recipe, out: &Path) -> Option<Evaluation> {
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("rarefy.json")).ok()?).ok()?;
    let is_same = record["recipe"].as_str() == Some(recipe.to_toml().as_str());
    serde_json::from_value(record["evaluation"].clone()).ok().filter(|_| is_same)
}

impl Trainer {
    /// Writes the model as it stands into the folder `out`, as [`train_to_folder`] does.
    ///
    /// # Errors
    /// As [`write_model_folder`].
    pub fn write_model(&self, out: &Path, evaluation: &Evaluation) -> Result<(), TrainError> {
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
        let pretty = serde_json::to_string_pretty(&record).expect("plain values") + "\n";
        let extra =
            [("recipe.toml", recipe), ("rarefy.json", pretty), ("README.md", self.readme(evaluation))];
        write_model_folder(out, &self.config().raw, self.parameters(), self.tokenizer().json(), &extra)
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
