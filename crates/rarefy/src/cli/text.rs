//! From a text file, or the built-in generator, to tokens of a model.

use std::path::Path;

use rarefy_checkpoint::{Checkpoint, Tokenizer};

use super::model::ModelArg;
use super::{CliError, CliResult};
use crate::builtin;

/// Tokens and where they came from.
#[derive(Debug)]
pub(crate) struct Text {
    /// The tokens.
    pub(crate) tokens: Vec<u32>,
    /// Where they came from, for messages and records.
    pub(crate) source: String,
    /// Perplexity of the generator itself, for its own text.
    pub(crate) floor_ppl: Option<f64>,
}

/// The tokenizer of a model, checked against its vocabulary.
pub(crate) fn tokenizer(checkpoint: &Checkpoint) -> CliResult<Tokenizer> {
    let tokenizer = Tokenizer::open(checkpoint.dir())?;
    tokenizer.fits(checkpoint.config())?;
    Ok(tokenizer)
}

/// Largest text to measure on, in bytes. It is cut into tokens in one call, as the reference scripts do, which takes
/// some hundred bytes per token.
const TEXT_CAP: u64 = 64 << 20;

/// Reads and cuts a text file.
pub(crate) fn from_file(tokenizer: &Tokenizer, path: &Path) -> CliResult<Text> {
    let text = rarefy_data::read_text(path, TEXT_CAP)?;
    let tokens = tokenizer.encode(&text)?;
    if tokens.is_empty() {
        return Err(CliError::usage(
            format!("`{}` gives no tokens", path.display()),
            "give a file with more text",
        ));
    }
    Ok(Text { tokens, source: path.display().to_string(), floor_ppl: None })
}

/// Largest calibration text, in bytes: windows are drawn from all of it, so all of it is cut into tokens.
const CALIBRATION_CAP: u64 = 64 << 20;
/// Bytes cut into tokens at a time.
const PIECE: usize = 1 << 16;

/// Reads and cuts a calibration text piece by piece, at line ends, which needs little memory. A token
/// across the end of a piece is lost, which does not matter for a calibration.
fn calibration_file(tokenizer: &Tokenizer, path: &Path) -> CliResult<Text> {
    let text = rarefy_data::read_text(path, CALIBRATION_CAP)?;
    let mut tokens = Vec::new();
    for piece in pieces(&text, PIECE) {
        tokens.extend(tokenizer.encode(piece)?);
    }
    Ok(Text { tokens, source: path.display().to_string(), floor_ppl: None })
}

/// Cuts a text after the first line end that follows `size` bytes, again and again.
fn pieces(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end =
            rest.as_bytes().iter().skip(size).position(|b| *b == b'\n').map_or(rest.len(), |i| size + i + 1);
        let (piece, next) = rest.split_at(end);
        rest = next;
        Some(piece)
    })
}

/// Text to measure on: the file, or held-out text of the generator for `builtin`.
pub(crate) fn held_out(
    model: &ModelArg,
    tokenizer: &Tokenizer,
    file: Option<&Path>,
    tokens: usize,
) -> CliResult<Text> {
    match file {
        Some(path) => from_file(tokenizer, path),
        None if model.is_builtin() => {
            let held = builtin::held_out(tokenizer, tokens)?;
            let source = format!("built-in generator, test split, documents 0 to {}", held.documents - 1);
            Ok(Text { tokens: held.tokens, source, floor_ppl: Some(held.floor_ppl) })
        }
        None => Err(CliError::usage(
            "a text to measure on is needed: `--text FILE`",
            "only the model `builtin` has one of its own",
        )),
    }
}

/// Text to calibrate on: the file, or text of the generator for `builtin`.
pub(crate) fn calibration(
    model: &ModelArg,
    tokenizer: &Tokenizer,
    file: Option<&Path>,
    tokens: usize,
) -> CliResult<Text> {
    match file {
        Some(path) => calibration_file(tokenizer, path),
        None if model.is_builtin() => Ok(Text {
            tokens: builtin::calibration(tokenizer, tokens)?,
            source: "built-in generator, validation split".into(),
            floor_ppl: None,
        }),
        None => Err(CliError::usage(
            "this method needs a text to calibrate on: `--calibrate FILE`",
            "any plain text of the kind the model will meet, a few hundred kilobytes are enough",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_lines_and_lose_nothing() {
        let text = "a\nbcd\n\né\nfgh";
        for size in 0..20 {
            let cut: Vec<&str> = pieces(text, size).collect();
            assert_eq!(cut.concat(), text);
            assert!(cut[..cut.len() - 1].iter().all(|p| p.ends_with('\n') && p.len() > size));
        }
        assert_eq!(pieces("", 3).count(), 0);
    }
}
