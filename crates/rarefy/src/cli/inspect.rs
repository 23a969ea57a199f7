//! `rarefy inspect`: what is in a model folder.

use std::collections::BTreeMap;

use rarefy_checkpoint::{Checkpoint, DType, Logical, Storage, layout};
use rarefy_sparsity::Mask;
use rarefy_sparsity::detect::{Detection, detect_mask};
use serde_json::json;

use super::model::ModelArg;
use super::{CliError, CliResult, Context, bytes, classifier, memory, percent};

/// Arguments of `rarefy inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Model folder, or `builtin`
    pub(in crate::cli) model: ModelArg,
    /// One line per tensor instead of one per kind of layer
    #[arg(long)]
    tensors: bool,
    /// Headers only: do not read the weights, so no zeros and no patterns
    #[arg(long)]
    pub(in crate::cli) headers_only: bool,
}

/// What is said about one tensor.
struct Line {
    tensor: Logical,
    is_prunable: bool,
    found: Option<Detection>,
}

pub(crate) fn run(args: &InspectArgs, context: &Context) -> CliResult {
    let folder = args.model.folder()?;
    if classifier::is_classifier(&folder) {
        return classifier::inspect(&folder, args, context);
    }
    let checkpoint = Checkpoint::open(&folder)?;
    checkpoint.check_layout()?;
    let lines = read(&checkpoint, args, context)?;
    let config = checkpoint.config();
    let total = |f: fn(&Logical) -> u64| lines.iter().map(|l| f(&l.tensor)).sum::<u64>();
    let stored = total(|t| t.stored_bytes);
    let dense = total(Logical::dense_bytes);
    let parameters = total(Logical::elements);
    let (zeros, prunable) = zeros_of(lines.iter().filter(|l| l.is_prunable));
    let extra = checkpoint.extra_tensors();
    if context.out.json {
        let tensors: Vec<_> = lines.iter().map(line_json).collect();
        return context.out.json_value(&json!({
            "model": args.model.label(),
            "architecture": format!("{:?}", config.architecture),
            "blocks": config.n_layers,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "heads": config.n_heads,
            "kv_heads": config.n_kv_heads,
            "vocab_size": config.vocab_size,
            "max_positions": config.max_positions,
            "tied_embeddings": config.tie_embeddings,
            "parameters": parameters,
            "stored_bytes": stored,
            "dense_bytes": dense,
            "prunable_weights": prunable,
            "zeros": zeros,
            "sparsity": zeros.map(|z| z as f64 / prunable.max(1) as f64),
            "flops_per_token": flops(&lines, false),
            "flops_per_token_without_zeros": flops(&lines, true),
            "unused_tensors": extra,
            "tensors": tensors,
        }));
    }
    let mut text = format!(
        "{}: {:?}, {} blocks of width {}, {} heads ({} for keys and values), vocabulary {}, {} positions, {} embeddings\n\
         {:.3} million parameters; weights {} on disk ({} as plain values)\n",
        args.model.label(),
        config.architecture,
        config.n_layers,
        config.hidden_size,
        config.n_heads,
        config.n_kv_heads,
        config.vocab_size,
        config.max_positions,
        if config.tie_embeddings { "tied" } else { "separate" },
        parameters as f64 / 1e6,
        bytes(stored),
        bytes(dense),
    );
    if let Some(zeros) = zeros {
        text += &format!(
            "linear layers of the blocks: {prunable} weights, {} zero ({})\n",
            zeros,
            percent(zeros as f64 / prunable.max(1) as f64)
        );
        text += &format!(
            "multiply-adds per token: {:.2} million, {:.2} million without the zeros\n",
            flops(&lines, false) as f64 / 2e6,
            flops(&lines, true) as f64 / 2e6
        );
    }
    if !extra.is_empty() {
        text += &format!("tensors that this architecture does not use: {}\n", extra.join(", "));
    }
    text += &table(&lines, args, context);
    context.out.data(&text)?;
    if let Some(peak) = memory::peak_resident() {
        context.out.detail(&format!("peak resident set {}", bytes(peak)));
    }
    Ok(())
}

fn read(checkpoint: &Checkpoint, args: &InspectArgs, context: &Context) -> CliResult<Vec<Line>> {
    let config = checkpoint.config();
    let prunable: std::collections::BTreeSet<String> = (0..config.n_layers)
        .flat_map(|block| layout::prunable(config, block))
        .map(|spec| spec.tensor)
        .collect();
    let mut progress = context.out.progress("reading weights", checkpoint.tensors().len() as u64);
    let mut lines = Vec::new();
    for tensor in checkpoint.tensors().values() {
        let is_prunable = prunable.contains(&tensor.name);
        let is_read = !args.headers_only && (is_prunable || args.tensors);
        let found = if is_read && tensor.shape.len() == 2 { Some(detect(checkpoint, tensor)?) } else { None };
        lines.push(Line { tensor: tensor.clone(), is_prunable, found });
        progress.step();
    }
    progress.finish();
    Ok(lines)
}

/// Finds the zeros of one matrix without holding it: plain values are read a megabyte at a time.
fn detect(checkpoint: &Checkpoint, tensor: &Logical) -> CliResult<Detection> {
    let (rows, cols) = checkpoint.matrix_shape(&tensor.name)?;
    if tensor.storage != Storage::Dense {
        let values = checkpoint.read_f32(&tensor.name)?;
        checkpoint.release_pages();
        return Ok(rarefy_sparsity::detect::detect(&values, rows, cols)?);
    }
    let is_zero = zero_test(tensor.dtype).ok_or_else(|| {
        CliError::usage(
            format!("tensor `{}` has type {}, which holds no weights", tensor.name, tensor.dtype),
            "use a folder whose weights are floating-point numbers",
        )
    })?;
    let size = tensor.dtype.size();
    let mut words: Vec<u64> = Vec::new();
    let words_per_row = cols.div_ceil(64);
    words.resize(rows.checked_mul(words_per_row).ok_or_else(|| too_large(tensor))?, 0);
    let (mut row, mut col) = (0, 0);
    checkpoint.store().stream(&tensor.name, &mut |piece| {
        for value in piece.chunks_exact(size) {
            if !is_zero(value) {
                words[row * words_per_row + col / 64] |= 1 << (col % 64);
            }
            col += 1;
            if col == cols {
                (row, col) = (row + 1, 0);
            }
        }
        Ok(())
    })?;
    Ok(detect_mask(&Mask::from_words(rows, cols, words)?))
}

fn too_large(tensor: &Logical) -> CliError {
    CliError::usage(
        format!("tensor `{}` of shape {:?} is too large for this machine", tensor.name, tensor.shape),
        "use a machine with more memory",
    )
}

/// Whether little-endian bytes of this type are a zero of either sign.
fn zero_test(dtype: DType) -> Option<fn(&[u8]) -> bool> {
    // All supported floats have the sign in the highest bit of the last byte.
    fn float(value: &[u8]) -> bool {
        match value.split_last() {
            Some((last, rest)) => last & 0x7f == 0 && rest.iter().all(|b| *b == 0),
            None => false,
        }
    }
    dtype.is_float().then_some(float as fn(&[u8]) -> bool)
}

/// Zeros (when they were counted) and elements.
fn zeros_of<'a>(lines: impl Iterator<Item = &'a Line>) -> (Option<u64>, u64) {
    let mut zeros = Some(0);
    let mut elements = 0;
    for line in lines {
        elements += line.tensor.elements();
        zeros = zeros.zip(line.found.as_ref()).map(|(sum, found)| sum + found.zeros as u64);
    }
    (zeros, elements)
}

/// Floating-point operations of the linear layers of the blocks for one token.
fn flops(lines: &[Line], without_zeros: bool) -> u64 {
    lines
        .iter()
        .filter(|l| l.is_prunable)
        .map(|l| {
            let zeros = if without_zeros { l.found.as_ref().map_or(0, |f| f.zeros as u64) } else { 0 };
            2 * (l.tensor.elements() - zeros)
        })
        .sum()
}

fn pattern(found: Option<&Detection>) -> String {
    found.and_then(|f| f.best).map_or_else(|| "–".into(), |p| p.to_string())
}

fn line_json(line: &Line) -> serde_json::Value {
    json!({
        "name": line.tensor.name,
        "shape": line.tensor.shape,
        "dtype": line.tensor.dtype.to_string(),
        "storage": line.tensor.storage.to_string(),
        "stored_bytes": line.tensor.stored_bytes,
        "dense_bytes": line.tensor.dense_bytes(),
        "prunable": line.is_prunable,
        "zeros": line.found.as_ref().map(|f| f.zeros),
        "sparsity": line.found.as_ref().map(Detection::sparsity),
        "pattern": line.found.as_ref().and_then(|f| f.best).map(|p| p.to_string()),
    })
}

/// What two tensors have in common to stand in one line of the short table.
fn kind(line: &Line) -> (String, String, String, String, String) {
    let name: Vec<&str> = line
        .tensor
        .name
        .split('.')
        .map(|p| if p.bytes().all(|b| b.is_ascii_digit()) { "*" } else { p })
        .collect();
    (
        name.join("."),
        format!("{:?}", line.tensor.shape),
        line.tensor.dtype.to_string(),
        line.tensor.storage.to_string(),
        pattern(line.found.as_ref()),
    )
}

fn table(lines: &[Line], args: &InspectArgs, context: &Context) -> String {
    let mut groups: BTreeMap<_, Vec<&Line>> = BTreeMap::new();
    for line in lines {
        let mut key = kind(line);
        if args.tensors {
            key.0.clone_from(&line.tensor.name);
        }
        groups.entry(key).or_default().push(line);
    }
    let mut table =
        context.out.table(&["tensor", "count", "shape", "type", "stored as", "zeros", "pattern", "bytes"]);
    for ((name, shape, dtype, storage, pattern), group) in &groups {
        let (zeros, elements) = zeros_of(group.iter().copied());
        let size: u64 = group.iter().map(|l| l.tensor.stored_bytes).sum();
        table.add_row([
            name.clone(),
            group.len().to_string(),
            shape.clone(),
            dtype.clone(),
            storage.clone(),
            zeros.map_or_else(|| "–".into(), |z| percent(z as f64 / elements.max(1) as f64)),
            pattern.clone(),
            bytes(size),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn zeros_of_both_signs() {
        let test = zero_test(DType::BF16).unwrap();
        assert!(test(&[0, 0]) && test(&[0, 0x80]));
        assert!(!test(&[1, 0]) && !test(&[0, 0x3f]));
        let test = zero_test(DType::F32).unwrap();
        assert!(test(&(-0.0_f32).to_le_bytes()) && !test(&f32::MIN_POSITIVE.to_le_bytes()));
        assert!(zero_test(DType::I32).is_none());
    }
}
