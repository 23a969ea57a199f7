//! JSON files with a size limit, and maps that refuse a key given twice.

use crate::error::{CheckpointError, Result};
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

/// Largest config.json or generation_config.json accepted, in bytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Largest shard index accepted, in bytes.
pub(crate) const MAX_INDEX_BYTES: u64 = 32 << 20;

/// Reads a file that may have at most `limit` bytes.
pub(crate) fn read_capped(path: &Path, limit: u64, remedy: &'static str) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => CheckpointError::MissingFile { path: path.to_path_buf(), remedy },
        _ => CheckpointError::io(path, "open", e),
    })?;
    let bytes = file.metadata().map_err(|e| CheckpointError::io(path, "read", e))?.len();
    if bytes > limit {
        return Err(CheckpointError::FileTooLarge { path: path.to_path_buf(), bytes, limit });
    }
    let mut out = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    // The limit holds also when the file grows meanwhile or is not a regular file.
    file.take(limit + 1).read_to_end(&mut out).map_err(|e| CheckpointError::io(path, "read", e))?;
    if out.len() as u64 > limit {
        return Err(CheckpointError::FileTooLarge {
            path: path.to_path_buf(),
            bytes: out.len() as u64,
            limit,
        });
    }
    Ok(out)
}

/// Parses JSON bytes that came from `path`.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| CheckpointError::Json { path: path.to_path_buf(), reason: e.to_string() })
}

/// A string-keyed map; a key given twice is an error.
#[derive(Debug)]
pub(crate) struct UniqueMap<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: serde::Deserialize<'de>> serde::Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Walk<V>(PhantomData<V>);
        impl<'de, V: serde::Deserialize<'de>> Visitor<'de> for Walk<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut out = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value::<V>()?;
                    if out.contains_key(&key) {
                        return Err(A::Error::custom(format!("key `{key}` occurs twice")));
                    }
                    out.insert(key, value);
                }
                Ok(UniqueMap(out))
            }
        }
        d.deserialize_map(Walk(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_given_twice_is_refused() {
        let p = Path::new("x.json");
        assert!(parse::<UniqueMap<u32>>(p, br#"{"a":1,"b":2}"#).is_ok());
        let e = parse::<UniqueMap<u32>>(p, br#"{"a":1,"a":2}"#).unwrap_err().to_string();
        assert!(e.contains("`a` occurs twice") && e.contains("x.json"), "{e}");
    }

    #[test]
    fn a_huge_config_is_refused_before_reading() {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("config.json");
        std::fs::File::create(&p).unwrap().set_len(MAX_CONFIG_BYTES + 1).unwrap();
        assert!(matches!(read_capped(&p, MAX_CONFIG_BYTES, ""), Err(CheckpointError::FileTooLarge { .. })));
        assert!(matches!(
            read_capped(&dir.path().join("no"), 1, "get it"),
            Err(CheckpointError::MissingFile { .. })
        ));
        assert!(matches!(
            read_capped(Path::new("/dev/zero"), 10, ""),
            Err(CheckpointError::FileTooLarge { .. })
        ));
    }
}
