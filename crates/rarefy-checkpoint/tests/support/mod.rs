//! Builders of small safetensors files and model folders.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod job;

use rarefy_checkpoint::{DType, ShapeName, synth};
use std::path::{Path, PathBuf};

/// A safetensors file from a header text and data.
pub fn file_bytes(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

/// One tensor: name, dtype code, shape, data.
pub type T<'a> = (&'a str, &'a str, Vec<usize>, Vec<u8>);

/// A valid safetensors file.
pub fn tensors(list: &[T<'_>]) -> Vec<u8> {
    let (mut header, mut data) = (String::from("{"), Vec::new());
    for (name, dtype, shape, bytes) in list {
        if header.len() > 1 {
            header.push(',');
        }
        let (a, b) = (data.len(), data.len() + bytes.len());
        header.push_str(&format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{a},{b}]}}"#
        ));
        data.extend_from_slice(bytes);
    }
    header.push('}');
    file_bytes(&header, &data)
}

pub fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn i32s(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A small valid model folder.
pub fn tiny(dir: &Path, shape: ShapeName, dtype: DType) -> PathBuf {
    let out = dir.join(format!("{shape}-{dtype}"));
    synth(shape, dtype, 3, &out).unwrap();
    out
}

/// Changes config.json.
pub fn edit_config(dir: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// Every file of a folder with its bytes, by relative path.
pub fn snapshot(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut out = std::collections::BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                out.insert(path.strip_prefix(dir).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
            }
        }
    }
    out
}

pub fn copy_dir(from: &Path, to: &Path) {
    for (path, bytes) in snapshot(from) {
        let to = to.join(path);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(to, bytes).unwrap();
    }
}
