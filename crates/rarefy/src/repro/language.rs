//! The small language model that experiments run on, with its texts.

use rarefy_checkpoint::{Checkpoint, Tokenizer};
use rarefy_data::{DEFAULT_TEXT_CAP, read_text};
use rarefy_models::{CausalLm, LoadOptions, Realised, Rules, perplexity};

use super::ReproOptions;
use crate::builtin;
use crate::cli::CliError;

/// A small language model with its texts.
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) calibration: Vec<u32>,
    pub(super) test: Vec<u32>,
    pub(super) floor: Option<f64>,
}

/// The built-in model with the text of its generator.
pub(super) fn builtin_subject(test_tokens: usize) -> Result<Subject, CliError> {
    let checkpoint = Checkpoint::open(&builtin::folder()?)?;
    let tokenizer = Tokenizer::open(checkpoint.dir())?;
    let held = builtin::held_out(&tokenizer, test_tokens)?;
    let calibration = builtin::calibration(&tokenizer, 1 << 16)?;
    Ok(Subject {
        name: "built-in model, text of its generator".into(),
        checkpoint,
        calibration,
        test: held.tokens,
        floor: Some(held.floor_ppl),
    })
}

/// The built-in model, or with data llama-5m on WikiText2.
pub(super) fn subject(options: &ReproOptions<'_>, test_tokens: usize) -> Result<Subject, CliError> {
    let Some(data) = &options.data else { return builtin_subject(test_tokens) };
    let folder = data.join("../models/llama-5m");
    let checkpoint = Checkpoint::open(&folder)?;
    let tokenizer = Tokenizer::open(&folder)?;
    let read = |name: &str| -> Result<Vec<u32>, CliError> {
        let text = read_text(&data.join("text").join(name), DEFAULT_TEXT_CAP)?;
        Ok(tokenizer.encode(&text)?)
    };
    Ok(Subject {
        name: "llama-5m, WikiText2: calibrated on valid, measured on test".into(),
        calibration: read("wikitext2.valid.txt.gz")?,
        test: read("wikitext2.test.txt.gz")?,
        checkpoint,
        floor: None,
    })
}

impl Subject {
    /// Perplexity by `rules` on the first `windows` of the test text, and what was left out.
    pub(super) fn measure(
        &self,
        rules: Rules,
        window: usize,
        windows: usize,
    ) -> Result<(f64, Realised), CliError> {
        let model = CausalLm::load(&self.checkpoint, LoadOptions { rules, ..LoadOptions::default() })?;
        let found = perplexity(&model, &self.test, window, &mut |_, _| (), Some(windows))?;
        Ok((found.ppl, model.take_realised()))
    }
}
