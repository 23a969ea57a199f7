//! Reading of safetensors files, strict: the header must describe every byte of the file exactly once.
//!
//! The `safetensors` crate is not used for reading: it keeps the header in hash maps, so a name given twice is taken
//! silently, and most of its errors do not say which tensor is at fault.
//!
//! Layout: header length (u64, little endian), JSON header `{name: {dtype, shape, data_offsets}, "__metadata__": {..}}`,
//! then the data, row-major and little endian.

use crate::dtype::DType;
use crate::error::{CheckpointError, Result};
use crate::json::UniqueMap;
use crate::mmap::Map;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Largest header accepted, in bytes. A header takes about 120 bytes per tensor, so this is room for 250 000 tensors.
pub const MAX_HEADER_BYTES: u64 = 32 << 20;
/// Most dimensions accepted.
const MAX_RANK: usize = 16;

/// One tensor of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Element type.
    pub dtype: DType,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// First byte, counted from the beginning of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A validated header: the byte ranges of its tensors follow one another without gap or overlap and end with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Tensors by name.
    pub entries: BTreeMap<String, Entry>,
    /// The free-text entries under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

struct RawHeader {
    entries: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> serde::Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                let mut metadata = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        let UniqueMap(found) = map.next_value::<UniqueMap<String>>()?;
                        if metadata.replace(found).is_some() {
                            return Err(A::Error::custom("`__metadata__` occurs twice"));
                        }
                    } else {
                        let entry = map
                            .next_value::<RawEntry>()
                            .map_err(|e| A::Error::custom(format!("tensor `{key}`: {e}")))?;
                        entries.push((key, entry));
                    }
                }
                Ok(RawHeader { entries, metadata: metadata.unwrap_or_default() })
            }
        }
        d.deserialize_map(Walk)
    }
}

impl Header {
    /// Checks the first eight bytes against the size of the file; returns the length of the JSON in bytes.
    ///
    /// # Errors
    /// [`HeaderTooLarge`](CheckpointError::HeaderTooLarge), [`Truncated`](CheckpointError::Truncated).
    pub fn json_bytes(file: &Path, first: [u8; 8], file_bytes: u64) -> Result<u64> {
        let declared = u64::from_le_bytes(first);
        if declared > MAX_HEADER_BYTES {
            return Err(CheckpointError::HeaderTooLarge {
                file: file.into(),
                declared,
                limit: MAX_HEADER_BYTES,
            });
        }
        if declared + 8 > file_bytes {
            let what = "the header".to_owned();
            return Err(CheckpointError::Truncated {
                file: file.into(),
                what,
                expected: declared + 8,
                found: file_bytes,
            });
        }
        Ok(declared)
    }

    /// Parses and validates the JSON of a header. `file_bytes` is the size of the whole file.
    ///
    /// # Errors
    /// One variant for each way in which a header can be wrong; each names the file and, where there is one, the tensor.
    pub fn parse(file: &Path, json: &[u8], file_bytes: u64) -> Result<Self> {
        let invalid = |reason: String| CheckpointError::HeaderInvalid { file: file.into(), reason };
        if json.first() != Some(&b'{') {
            return Err(invalid("it does not begin with `{`".into()));
        }
        let raw: RawHeader = serde_json::from_slice(json).map_err(|e| invalid(e.to_string()))?;
        let data_start = 8 + json.len() as u64;
        let data_bytes = file_bytes.saturating_sub(data_start);

        let mut sorted = raw.entries;
        sorted.sort_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
        let mut entries = BTreeMap::new();
        let mut at = 0u64;
        for (name, raw) in sorted {
            let (begin, end) = raw.data_offsets;
            if entries.contains_key(&name) {
                return Err(CheckpointError::DuplicateTensor { file: file.into(), tensor: name });
            }
            let Some(dtype) = DType::from_code(&raw.dtype) else {
                return Err(CheckpointError::UnknownDType {
                    file: file.into(),
                    tensor: name,
                    found: raw.dtype,
                });
            };
            if raw.shape.len() > MAX_RANK {
                return Err(invalid(format!(
                    "tensor `{name}` has {} dimensions, at most {MAX_RANK} are accepted",
                    raw.shape.len()
                )));
            }
            if end < begin {
                return Err(CheckpointError::OffsetsReversed { file: file.into(), tensor: name, begin, end });
            }
            let shape: Option<Vec<usize>> = raw.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
            let expected = raw.shape.iter().try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d));
            let (Some(shape), Some(expected)) = (shape, expected) else {
                return Err(CheckpointError::SizeOverflow {
                    file: file.into(),
                    tensor: name,
                    shape: raw.shape,
                });
            };
            if expected != end - begin {
                let found = end - begin;
                return Err(CheckpointError::SizeMismatch {
                    file: file.into(),
                    tensor: name,
                    dtype,
                    shape,
                    expected,
                    found,
                });
            }
            if end > data_bytes {
                let what = format!("tensor `{name}`");
                let expected = data_start.saturating_add(end);
                return Err(CheckpointError::Truncated {
                    file: file.into(),
                    what,
                    expected,
                    found: file_bytes,
                });
            }
            if begin != at {
                return Err(CheckpointError::OffsetsNotContiguous {
                    file: file.into(),
                    tensor: name,
                    expected: at,
                    found: begin,
                });
            }
            at = end;
            entries.insert(name, Entry { dtype, shape, offset: data_start + begin, bytes: end - begin });
        }
        if at != data_bytes {
            return Err(CheckpointError::TrailingBytes { file: file.into(), extra: data_bytes - at });
        }
        Ok(Self { entries, metadata: raw.metadata })
    }

    /// Parses and validates a whole file held in memory; `name` is used in messages.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn from_bytes(name: &Path, bytes: &[u8]) -> Result<Self> {
        let Some((first, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(too_short(name, bytes.len() as u64));
        };
        let json = Self::json_bytes(name, *first, bytes.len() as u64)?;
        // `json` is at most the length of `rest`, which was checked just now.
        let json = usize::try_from(json).unwrap_or(usize::MAX).min(rest.len());
        Self::parse(name, &rest[..json], bytes.len() as u64)
    }
}

fn too_short(file: &Path, found: u64) -> CheckpointError {
    CheckpointError::Truncated { file: file.into(), what: "the header length".into(), expected: 8, found }
}

/// An open safetensors file: validated header, positioned reads, a map on request.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    header: Header,
    map: OnceLock<Map>,
}

impl TensorFile {
    /// Opens a file and validates its header. No tensor data is read.
    ///
    /// # Errors
    /// As [`Header::parse`], and [`Io`](CheckpointError::Io).
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| CheckpointError::io(path, "open", e))?;
        let meta = file.metadata().map_err(|e| CheckpointError::io(path, "read", e))?;
        if !meta.is_file() {
            let reason = "it is not a regular file".to_owned();
            return Err(CheckpointError::HeaderInvalid { file: path.into(), reason });
        }
        let bytes = meta.len();
        let mut first = [0; 8];
        if bytes < 8 {
            return Err(too_short(path, bytes));
        }
        let read = |buf: &mut [u8], at| {
            file.read_exact_at(buf, at).map_err(|e| CheckpointError::io(path, "read", e))
        };
        read(&mut first, 0)?;
        let length = Header::json_bytes(path, first, bytes)?;
        let mut json = vec![0; usize::try_from(length).unwrap_or(0)];
        read(&mut json, 8)?;
        let header = Header::parse(path, &json, bytes)?;
        Ok(Self { path: path.into(), file, bytes, header, map: OnceLock::new() })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The validated header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// The entry of a tensor.
    pub(crate) fn entry(&self, tensor: &str) -> Result<&Entry> {
        self.header.entries.get(tensor).ok_or_else(|| CheckpointError::TensorNotFound {
            place: self.path.clone(),
            tensor: tensor.into(),
            nearest: None,
        })
    }

    /// Fills `buffer` from byte `offset` of the file.
    ///
    /// # Errors
    /// [`Truncated`](CheckpointError::Truncated) when the file has become shorter since it was opened.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.shrank(offset.saturating_add(buffer.len() as u64)),
            _ => CheckpointError::io(&self.path, "read", e),
        })
    }

    fn shrank(&self, expected: u64) -> CheckpointError {
        let found = self.file.metadata().map_or(0, |m| m.len());
        let what = "a tensor (the file became shorter while in use)".to_owned();
        CheckpointError::Truncated { file: self.path.clone(), what, expected, found }
    }

    /// Calls `f` with the bytes of a tensor in order, a megabyte at most at a time (whole elements each time).
    ///
    /// # Errors
    /// As for reading; errors of `f` are passed on.
    pub fn stream(&self, tensor: &str, f: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let entry = self.entry(tensor)?;
        self.stream_range(entry.offset, entry.bytes, f)
    }

    /// As [`stream`](Self::stream) for a byte range of the file.
    pub(crate) fn stream_range(
        &self,
        offset: u64,
        bytes: u64,
        f: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let mut buffer = vec![0; bytes.min(CHUNK) as usize];
        let mut at = 0;
        while at < bytes {
            let n = (bytes - at).min(CHUNK) as usize;
            self.read_at(offset + at, &mut buffer[..n])?;
            f(&buffer[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// The bytes of a tensor, copied.
    ///
    /// # Errors
    /// As for reading.
    pub fn read(&self, tensor: &str) -> Result<Vec<u8>> {
        let entry = self.entry(tensor)?;
        // The header was checked against the size of the file, so this allocates no more than the file holds.
        let mut out = vec![0; usize::try_from(entry.bytes).unwrap_or(usize::MAX)];
        self.read_at(entry.offset, &mut out)?;
        Ok(out)
    }

    /// The bytes of a tensor in the memory map.
    ///
    /// # Errors
    /// [`Truncated`](CheckpointError::Truncated) when the file has become shorter since it was opened.
    pub fn mapped(&self, tensor: &str) -> Result<&[u8]> {
        let entry = self.entry(tensor)?;
        let end = entry.offset + entry.bytes;
        if self.file.metadata().map_err(|e| CheckpointError::io(&self.path, "read", e))?.len() < end {
            return Err(self.shrank(end));
        }
        let map = match self.map.get() {
            Some(map) => map,
            None => {
                let fresh = Map::new(&self.path, &self.file)?;
                self.map.get_or_init(|| fresh)
            }
        };
        let range = usize::try_from(entry.offset).ok().zip(usize::try_from(end).ok());
        range.and_then(|(a, b)| map.bytes().get(a..b)).ok_or_else(|| self.shrank(end))
    }

    /// Takes mapped pages out of the resident set.
    pub fn release(&self) {
        if let Some(map) = self.map.get() {
            map.release();
        }
    }
}
