//! The training state on disk: everything a run needs to go on bit for bit.
//!
//! One file: magic, length of a JSON head (u64, little endian), the head, then the raw little-endian data of every tensor
//! (values, first moment, second moment as f32; mask words as u64), then the xxh3-128 of all bytes before. It is written
//! beside its final name, synced and renamed, so the name always holds a whole state: the old one or the new one.

use crate::{Parameters, Position, TrainError};
use rarefy_sparsity::Mask;
use serde::{Deserialize, Serialize};
use std::path::Path;

const MAGIC: &[u8; 16] = b"rarefy training\x01";
/// Largest state accepted: 64 GiB.
const CAP: u64 = 64 << 30;

/// The part of the state that is not tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The resolved recipe, TOML.
    pub(crate) recipe: String,
    pub(crate) tokenizer: String,
    pub(crate) step: u64,
    pub(crate) position: Position,
    pub(crate) method: String,
    pub(crate) method_state: serde_json::Value,
    /// Name, length of values, length of second, whether masked; in order.
    tensors: Vec<(String, usize, usize, bool)>,
}

impl Head {
    pub(crate) fn new(
        recipe: String,
        tokenizer: String,
        step: u64,
        position: Position,
        method: (&str, serde_json::Value),
    ) -> Self {
        Self {
            recipe,
            tokenizer,
            step,
            position,
            method: method.0.to_owned(),
            method_state: method.1,
            tensors: Vec::new(),
        }
    }
}

/// Writes the state; on return it is durable.
pub(crate) fn write(path: &Path, mut head: Head, parameters: &Parameters) -> Result<(), TrainError> {
    head.tensors = parameters
        .all
        .iter()
        .map(|p| (p.name.clone(), p.values.len(), p.second.len(), p.mask().is_some()))
        .collect();
    let json = serde_json::to_vec(&head).expect("plain values");
    let mut bytes = Vec::with_capacity(json.len() + 64 + parameters.len() * 13);
    bytes.extend(MAGIC);
    bytes.extend((json.len() as u64).to_le_bytes());
    bytes.extend(json);
    for p in &parameters.all {
        for x in p.values.iter().chain(&p.first).chain(&p.second) {
            bytes.extend(x.to_le_bytes());
        }
        if let Some(mask) = p.mask() {
            for word in (0..mask.rows()).flat_map(|r| mask.row_words(r)) {
                bytes.extend(word.to_le_bytes());
            }
        }
    }
    let sum = xxhash_rust::xxh3::xxh3_128(&bytes);
    bytes.extend(sum.to_le_bytes());
    Ok(rarefy_checkpoint::replace_file(path, &bytes)?)
}

/// Reads a state into `parameters`, which give names and shapes; they are unchanged when an error is returned.
pub(crate) fn read(path: &Path, parameters: &mut Parameters) -> Result<Head, TrainError> {
    let bad = |reason: &str| TrainError::BadState { file: path.to_path_buf(), reason: reason.to_owned() };
    let size = std::fs::metadata(path).map_err(TrainError::io(path, "read"))?.len();
    if size > CAP {
        return Err(bad("it is larger than 64 GiB"));
    }
    let bytes = std::fs::read(path).map_err(TrainError::io(path, "read"))?;
    let (body, sum) = bytes.split_last_chunk::<16>().ok_or_else(|| bad("it is too short"))?;
    if !body.starts_with(MAGIC) {
        return Err(bad("it does not begin as a training state of this version"));
    }
    if xxhash_rust::xxh3::xxh3_128(body).to_le_bytes() != *sum {
        return Err(bad("its checksum does not match"));
    }
    let rest = &body[MAGIC.len()..];
    let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| bad("it is too short"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| bad("its head is too long"))?;
    let (json, mut data) =
        rest.split_at_checked(length).ok_or_else(|| bad("its head is longer than the file"))?;
    let head: Head = serde_json::from_slice(json).map_err(|e| bad(&format!("its head: {e}")))?;
    if head.tensors.len() != parameters.all.len() {
        return Err(bad("it has another number of tensors than the model"));
    }
    let mut read = parameters.clone();
    for (p, (name, values, second, masked)) in read.all.iter_mut().zip(&head.tensors) {
        if (p.name.as_str(), p.values.len(), p.second.len()) != (name.as_str(), *values, *second) {
            return Err(bad(&format!("tensor `{name}` does not fit `{}` of the model", p.name)));
        }
        for part in [&mut p.values, &mut p.first, &mut p.second] {
            let (raw, left) = data.split_at_checked(part.len() * 4).ok_or_else(|| bad("it ends early"))?;
            for (x, b) in part.iter_mut().zip(raw.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
            data = left;
        }
        if *masked {
            let (rows, cols) = (p.shape[0], p.shape[1]);
            let (raw, left) =
                data.split_at_checked(rows * cols.div_ceil(64) * 8).ok_or_else(|| bad("it ends early"))?;
            let words = raw.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
            p.set_mask(Mask::from_words(rows, cols, words)?);
            data = left;
        }
    }
    if !data.is_empty() {
        return Err(bad("it has bytes after the last tensor"));
    }
    *parameters = read;
    Ok(head)
}
