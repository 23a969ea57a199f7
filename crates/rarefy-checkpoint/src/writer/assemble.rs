//! Writing safetensors files: one, or shards with an index.

use crate::checkpoint::{INDEX, SINGLE};
use crate::dtype::DType;
use crate::error::{CheckpointError, Result};
use crate::fsutil::{put, write_synced};
use crate::hash::Xxh64;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest weight file, in bytes of tensor data; larger models are sharded.
pub(crate) const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor whose bytes are produced when it is its turn.
pub(crate) struct Item<'a> {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: u64,
    /// Hands the bytes in order to its argument.
    #[allow(clippy::type_complexity)]
    pub(crate) fill: Box<dyn Fn(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + 'a>,
}

/// Length field and JSON of a header for `items` in this order, padded with spaces so that the data begins at a multiple
/// of eight bytes.
fn header(items: &[Item<'_>]) -> Vec<u8> {
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut at = 0;
    for item in items {
        let name = serde_json::Value::from(item.name.as_str());
        let end = at + item.bytes;
        let shape = format!("{:?}", item.shape).replace(' ', "");
        json.push_str(&format!(
            r#",{name}:{{"dtype":"{}","shape":{shape},"data_offsets":[{at},{end}]}}"#,
            item.dtype
        ));
        at = end;
    }
    json.push('}');
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(json.as_bytes());
    out
}

/// Writes one file: widest elements first (so that every tensor is aligned), then by name. Returns its size.
/// `seen` gets all bytes as they are written.
pub(crate) fn write_file(path: &Path, mut items: Vec<Item<'_>>, seen: &mut dyn FnMut(&[u8])) -> Result<u64> {
    items.sort_by(|a, b| (b.dtype.size(), &a.name).cmp(&(a.dtype.size(), &b.name)));
    let mut total = 0;
    write_synced(path, &mut |out| {
        total = 0;
        let head = header(&items);
        seen(&head);
        put(out, path, &head)?;
        total += head.len() as u64;
        for item in &items {
            let mut written = 0u64;
            (item.fill)(&mut |bytes| {
                seen(bytes);
                written += bytes.len() as u64;
                put(out, path, bytes)
            })?;
            if written != item.bytes {
                let reason = format!("{written} bytes were produced, {} announced", item.bytes);
                return Err(CheckpointError::BadOutput { tensor: item.name.clone(), reason });
            }
            total += written;
        }
        Ok(())
    })?;
    Ok(total)
}

/// A finished weight file.
pub(crate) struct WeightFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Checksum of the whole file.
    pub(crate) xxh3: String,
}

/// Writes `model.safetensors`, or shards of at most `limit` bytes of data (a larger tensor gets its own) with an index.
/// Returns the weight files.
pub(crate) fn write_weights(dir: &Path, mut items: Vec<Item<'_>>, limit: u64) -> Result<Vec<WeightFile>> {
    items.sort_by(|a, b| a.name.cmp(&b.name));
    let total: u64 = items.iter().map(|i| i.bytes).sum();
    let mut shards: Vec<Vec<Item<'_>>> = vec![Vec::new()];
    let mut filled = 0;
    for item in items {
        if filled > 0 && filled + item.bytes > limit {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += item.bytes;
        // The vector is never empty.
        if let Some(last) = shards.last_mut() {
            last.push(item);
        }
    }
    let count = shards.len();
    let mut files = Vec::new();
    let mut map = BTreeMap::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let name = if count == 1 {
            SINGLE.to_owned()
        } else {
            format!("model-{:05}-of-{count:05}.safetensors", i + 1)
        };
        map.extend(shard.iter().map(|item| (item.name.clone(), name.clone())));
        let mut hash = Xxh64::new();
        let bytes = write_file(&dir.join(&name), shard, &mut |b| hash.update(b))?;
        files.push(WeightFile { name, bytes, xxh3: hash.hex() });
    }
    if count > 1 {
        let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
        write_json(&dir.join(INDEX), &index)?;
    }
    Ok(files)
}

/// Writes a JSON file: sorted keys, two spaces, final newline.
pub(crate) fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    write_synced(path, &mut |out| put(out, path, format!("{value:#}\n").as_bytes()))
}
