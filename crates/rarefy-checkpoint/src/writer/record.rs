//! The run record `rarefy.json`: what made a folder, and the checksums of its weight files.

use super::assemble::WeightFile;
use crate::error::{CheckpointError, Result};
use crate::hash::Xxh64;
use crate::json;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Name of the record in a model folder.
pub(crate) const FILE: &str = "rarefy.json";
/// Bytes read at once when a file is hashed.
const CHUNK: usize = 1 << 20;

/// The record with the key of the run and the weight files in it.
pub(crate) fn with_run(record: &Value, run_key: &str, files: &[WeightFile]) -> Value {
    let mut object = match record {
        Value::Object(o) => o.clone(),
        Value::Null => Map::new(),
        other => Map::from_iter([("record".to_owned(), other.clone())]),
    };
    let files: Map<String, Value> =
        files.iter().map(|f| (f.name.clone(), json!({ "bytes": f.bytes, "xxh3": f.xxh3 }))).collect();
    object.insert("files".into(), Value::Object(files));
    object.insert("run_key".into(), run_key.into());
    Value::Object(object)
}

#[derive(Deserialize)]
struct Recorded {
    bytes: u64,
    xxh3: String,
}

#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    files: BTreeMap<String, Recorded>,
}

/// Compares the weight files of a folder with the sizes and checksums in its `rarefy.json`. Returns how many files the
/// record names, with a line for each that differs; `None` without a record or without checksums in it.
///
/// # Errors
/// [`Json`](CheckpointError::Json) for an unreadable record, [`Io`](CheckpointError::Io).
pub fn check_recorded_files(dir: &Path) -> Result<Option<(usize, Vec<String>)>> {
    let path = dir.join(FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = json::read_capped(&path, json::MAX_INDEX_BYTES, "")?;
    let record: Record = json::parse(&path, &bytes)?;
    if record.files.is_empty() {
        return Ok(None);
    }
    let mut problems = Vec::new();
    for (name, expected) in &record.files {
        // The record is a file like any other: a name that leaves the folder is not followed.
        if Path::new(name).file_name().is_none_or(|n| n != name.as_str()) {
            problems.push(format!("`{FILE}` names `{name}`, which is no file of this folder"));
            continue;
        }
        let file = dir.join(name);
        if !file.is_file() {
            problems.push(format!("`{name}` is missing, `{FILE}` records it"));
            continue;
        }
        let (found, xxh3) = hash_file(&file)?;
        if found != expected.bytes {
            problems.push(format!("`{name}` has {found} bytes, `{FILE}` records {}", expected.bytes));
        } else if xxh3 != expected.xxh3 {
            problems.push(format!("`{name}` has the checksum {xxh3}, `{FILE}` records {}", expected.xxh3));
        }
    }
    Ok(Some((record.files.len(), problems)))
}

fn hash_file(path: &Path) -> Result<(u64, String)> {
    let fail = |e| CheckpointError::io(path, "read", e);
    let mut file = std::fs::File::open(path).map_err(fail)?;
    let mut hash = Xxh64::new();
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => return Ok((total, hash.hex())),
            n => {
                hash.update(&buffer[..n]);
                total += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::hash::hex64;

    #[test]
    fn damage_to_a_recorded_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert_eq!(check_recorded_files(path).unwrap(), None, "no record");
        std::fs::write(path.join("model.safetensors"), b"weights").unwrap();
        let file = WeightFile { name: "model.safetensors".into(), bytes: 7, xxh3: hex64(b"weights") };
        let record = with_run(&json!({ "seed": 3 }), "key", &[file]);
        assert_eq!(record["seed"], 3);
        std::fs::write(path.join(FILE), record.to_string()).unwrap();
        assert_eq!(check_recorded_files(path).unwrap(), Some((1, vec![])));
        for (damage, word) in [(&b"weightz"[..], "checksum"), (b"weight", "6 bytes")] {
            std::fs::write(path.join("model.safetensors"), damage).unwrap();
            let (_, problems) = check_recorded_files(path).unwrap().unwrap();
            assert!(problems[0].contains(word), "{problems:?}");
        }
        std::fs::remove_file(path.join("model.safetensors")).unwrap();
        assert!(check_recorded_files(path).unwrap().unwrap().1[0].contains("missing"));
    }

    #[test]
    fn a_record_that_points_outside_or_is_no_json_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let record = json!({ "files": { "../secret": { "bytes": 1, "xxh3": "0" } } });
        std::fs::write(dir.path().join(FILE), record.to_string()).unwrap();
        assert!(check_recorded_files(dir.path()).unwrap().unwrap().1[0].contains("no file of this folder"));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(matches!(check_recorded_files(dir.path()), Err(CheckpointError::Json { .. })));
    }
}
