//! The one error type of this crate. Each variant names the file and the tensor or field, what was expected, what was
//! found, and what to do about it.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// Everything that can go wrong while reading or writing a model folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused an operation.
    #[error("cannot {action} `{path}`: {source}", path = .path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was attempted, as a verb: "read", "create".
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The disk filled up. The staging folder is kept.
    #[error("no space left on the disk while writing `{path}`; free some space and run the same command again: finished parts are kept and it resumes", path = .path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// The target cannot be written to.
    #[error("cannot write `{path}`: {source}; choose an output folder on a writable file system that you may write to", path = .path.display())]
    ReadOnly {
        /// The file or folder to be written.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that has to be there is not.
    #[error("`{path}` is missing: {remedy}", path = .path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// A text file is larger than any honest one.
    #[error("`{path}` has {bytes} bytes, more than the {limit} accepted for this kind of file; it is damaged or not what its name says", path = .path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size accepted.
        limit: u64,
    },
    /// A JSON file is malformed, or a key occurs twice.
    #[error("`{path}` is not the JSON expected: {reason}; download or write the file again", path = .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where known.
        reason: String,
    },

    /// A safetensors file is shorter than its own header says.
    #[error("`{file}` is truncated: {what} needs {expected} bytes, the file has {found}; download the file again", file = .file.display())]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Which piece.
        what: String,
        /// Bytes needed, counted from the beginning of the file.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// The header claims a size that no honest file has.
    #[error("`{file}`: the header claims {declared} bytes, more than the {limit} accepted; the file is damaged or not a safetensors file", file = .file.display())]
    HeaderTooLarge {
        /// The file.
        file: PathBuf,
        /// Declared header length in bytes.
        declared: u64,
        /// Largest header accepted.
        limit: u64,
    },
    /// The header is not the JSON object it has to be.
    #[error("`{file}`: invalid safetensors header: {reason}; the file is damaged or not a safetensors file", file = .file.display())]
    HeaderInvalid {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A name occurs twice in one header.
    #[error("`{file}`: tensor `{tensor}` occurs twice in the header; write the file again with unique names", file = .file.display())]
    DuplicateTensor {
        /// The file.
        file: PathBuf,
        /// The name.
        tensor: String,
    },
    /// A dtype code that this crate does not know.
    #[error("`{file}`: tensor `{tensor}` has dtype `{found}`, which is not supported (supported: {})", crate::dtype::DType::ALL_CODES, file = .file.display())]
    UnknownDType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The code found.
        found: String,
    },
    /// Shape times element size exceeds 64 bits.
    #[error("`{file}`: the size of tensor `{tensor}` with shape {shape:?} overflows; the header is damaged", file = .file.display())]
    SizeOverflow {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Declared shape.
        shape: Vec<u64>,
    },
    /// Shape times element size differs from the byte range.
    #[error("`{file}`: tensor `{tensor}` of dtype {dtype} and shape {shape:?} needs {expected} bytes, but its offsets span {found}; the header is damaged", file = .file.display())]
    SizeMismatch {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Declared dtype.
        dtype: crate::DType,
        /// Declared shape.
        shape: Vec<usize>,
        /// Bytes that dtype and shape need.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
    },
    /// A byte range that belongs to no tensor, or a range that belongs to two.
    #[error("`{file}`: tensor `{tensor}` begins at byte {found} of the data, expected {expected} ({}); the header is damaged", if .found > .expected { "there is a gap before it" } else { "it overlaps the tensor before it" }, file = .file.display())]
    OffsetsNotContiguous {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it should begin.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// End offset before begin offset.
    #[error("`{file}`: tensor `{tensor}` ends at byte {end}, before it begins at {begin}; the header is damaged", file = .file.display())]
    OffsetsReversed {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Begin offset.
        begin: u64,
        /// End offset.
        end: u64,
    },
    /// Bytes after the last tensor.
    #[error("`{file}`: {extra} bytes follow the last tensor; the file is damaged or was appended to", file = .file.display())]
    TrailingBytes {
        /// The file.
        file: PathBuf,
        /// Number of bytes too many.
        extra: u64,
    },

    /// The index names a shard that is not in the folder.
    #[error("`{index}` names the shard `{shard}`, which is not in the folder; download the missing file", index = .index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// File name of the shard.
        shard: String,
    },
    /// The index names a file outside the folder.
    #[error("`{index}`: tensor `{tensor}` points to `{shard}`; only plain file names inside the folder are accepted", index = .index.display())]
    ShardOutsideFolder {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The path found.
        shard: String,
    },
    /// The index promises a tensor that its shard does not hold.
    #[error("`{index}` says that tensor `{tensor}` is in `{shard}`, but that file does not hold it; index and shards do not belong together, download both again", index = .index.display())]
    IndexPointsNowhere {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file named by the index.
        shard: String,
    },
    /// One tensor in two files.
    #[error("tensor `{tensor}` is in both `{first}` and `{second}`; remove the stale file", first = .first.display(), second = .second.display())]
    TensorInTwoShards {
        /// The tensor.
        tensor: String,
        /// One file.
        first: PathBuf,
        /// The other file.
        second: PathBuf,
    },

    /// An architecture outside the supported list.
    #[error("`{file}`: architecture `{found}` is not supported (supported: {supported})", file = .file.display())]
    UnknownArchitecture {
        /// config.json.
        file: PathBuf,
        /// What it says.
        found: String,
        /// The list.
        supported: &'static str,
    },
    /// A field of config.json is missing, of the wrong type or out of range.
    #[error("`{file}`: field `{field}`: expected {expected}, found {found}; correct the field or download the file again", file = .file.display())]
    ConfigField {
        /// config.json.
        file: PathBuf,
        /// Key, with dots.
        field: String,
        /// What is accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A setting that would change the result and that this crate does not implement.
    #[error("`{file}`: `{field}` = {value} is not supported: {remedy}", file = .file.display())]
    UnsupportedConfig {
        /// config.json.
        file: PathBuf,
        /// Key, with dots.
        field: String,
        /// The value.
        value: String,
        /// What to do.
        remedy: String,
    },
    /// A storage format this crate does not read.
    #[error("`{file}`: weights are stored as `{format}`, which is not supported: {remedy}", file = .file.display())]
    UnsupportedFormat {
        /// File that says so.
        file: PathBuf,
        /// Name of the format.
        format: String,
        /// Which release could read it, and what to do.
        remedy: String,
    },

    /// No such tensor.
    #[error("`{place}` holds no tensor `{tensor}`{}", nearest_hint(.nearest), place = .place.display())]
    TensorNotFound {
        /// File or folder.
        place: PathBuf,
        /// The name asked for.
        tensor: String,
        /// The nearest name present.
        nearest: Option<String>,
    },
    /// A tensor that the architecture needs is not there.
    #[error("`{dir}`: tensor `{tensor}` of shape {shape:?} is missing, config.json requires it; the folder is incomplete or its config.json belongs to another model", dir = .dir.display())]
    MissingTensor {
        /// Model folder.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape according to config.json.
        shape: Vec<usize>,
    },
    /// A tensor has another shape than config.json implies.
    #[error("`{file}`: tensor `{tensor}`: expected shape {expected:?}, found {found:?}; config.json and weights do not belong together", file = .file.display())]
    ShapeMismatch {
        /// File that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Shape according to config.json or to its sibling tensors.
        expected: Vec<usize>,
        /// Shape found.
        found: Vec<usize>,
    },
    /// The dtype cannot be used for this purpose.
    #[error("`{file}`: tensor `{tensor}` has dtype {found}, expected {expected}", file = .file.display())]
    WrongDType {
        /// File that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is accepted.
        expected: &'static str,
        /// The dtype found.
        found: crate::DType,
    },
    /// NaN or infinity in a weight.
    #[error("`{file}`: tensor `{tensor}` holds {count} non-finite values, the first at index {first}; the model is damaged, use an intact copy", file = .file.display())]
    NonFinite {
        /// File that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many.
        count: usize,
        /// Flat index of the first.
        first: usize,
    },
    /// The parts of a compressed weight contradict each other.
    #[error("`{file}`: compressed tensor `{tensor}` is corrupt: {reason}; use an intact copy", file = .file.display())]
    Corrupt {
        /// File that holds it.
        file: PathBuf,
        /// The logical tensor.
        tensor: String,
        /// What contradicts what.
        reason: String,
    },

    /// tokenizer.json is not usable.
    #[error("`{path}`: {reason}; use the tokenizer.json that came with the model", path = .path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer makes ids that the embedding does not have.
    #[error("`{path}`: the tokenizer has token ids up to {largest}, but the model's vocabulary has {vocab_size} entries; use the tokenizer.json that came with the model", path = .path.display())]
    TokenizerDoesNotFit {
        /// The file.
        path: PathBuf,
        /// Largest token id.
        largest: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },

    /// Output folder equal to the input folder, or inside it.
    #[error("the output `{out}` is the input folder or lies inside it; choose another output folder", out = .out.display())]
    OutputIsInput {
        /// The output.
        out: PathBuf,
    },
    /// The output is already there.
    #[error("the output `{out}` exists already; choose another folder or allow overwriting", out = .out.display())]
    OutputExists {
        /// The output.
        out: PathBuf,
    },
    /// The output is there and was made by the same run.
    #[error("the output `{out}` is already complete: the same run wrote it; nothing to do", out = .out.display())]
    AlreadyComplete {
        /// The output.
        out: PathBuf,
    },
    /// Overwriting was allowed, but the folder does not look like a model.
    #[error("`{out}` holds no config.json, so it does not look like a model folder and is not replaced; remove it yourself or choose another output", out = .out.display())]
    OutputNotAModel {
        /// The output.
        out: PathBuf,
    },
    /// Unfinished work of another run is in the way.
    #[error("`{staging}` holds unfinished work of a run with other settings ({found}); repeat that run to finish it, or remove the folder to start over", staging = .staging.display())]
    OtherRun {
        /// The staging folder.
        staging: PathBuf,
        /// Key of the other run.
        found: String,
    },
    /// Another process is writing to the same output.
    #[error("another process is writing to `{staging}`; wait for it or choose another output", staging = .staging.display())]
    Locked {
        /// The staging folder.
        staging: PathBuf,
    },
    /// A tensor handed to the writer is not what it says.
    #[error("cannot write tensor `{tensor}`: {reason}")]
    BadOutput {
        /// The tensor.
        tensor: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Weights do not lie on the quantisation grid that came with them.
    #[error(
        "tensor `{tensor}`: {count} values do not lie on their quantisation grid, the first at index {first} ({value}); pass the grid that made the values"
    )]
    OffGrid {
        /// The tensor.
        tensor: String,
        /// How many values.
        count: usize,
        /// Flat index of the first.
        first: usize,
        /// Its value.
        value: f32,
    },
    /// A part that was asked for has not been written.
    #[error("part `{part}` has not been written to `{staging}`", staging = .staging.display())]
    PartNotWritten {
        /// The staging folder.
        staging: PathBuf,
        /// The part.
        part: String,
    },
}

fn nearest_hint(name: &Option<String>) -> String {
    match name {
        Some(n) => format!(" (nearest: `{n}`)"),
        None => String::new(),
    }
}

impl CheckpointError {
    /// Sorts a system error into [`DiskFull`](Self::DiskFull), [`ReadOnly`](Self::ReadOnly) or [`Io`](Self::Io).
    pub(crate) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let path = path.to_path_buf();
        let writing = !matches!(action, "read" | "open" | "map");
        match source.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge if writing => Self::DiskFull { path },
            K::ReadOnlyFilesystem | K::PermissionDenied if writing => Self::ReadOnly { path, source },
            _ => Self::Io { path, action, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn system_errors_are_sorted_by_remedy() {
        let p = Path::new("/x/model.safetensors");
        let full = CheckpointError::io(p, "write", Error::from(ErrorKind::StorageFull));
        assert!(matches!(full, CheckpointError::DiskFull { .. }));
        assert!(full.to_string().contains("/x/model.safetensors") && full.to_string().contains("resumes"));
        let ro = CheckpointError::io(p, "create", Error::from(ErrorKind::ReadOnlyFilesystem));
        assert!(matches!(ro, CheckpointError::ReadOnly { .. }));
        assert!(ro.to_string().contains("writable"));
        let denied = CheckpointError::io(p, "read", Error::from(ErrorKind::PermissionDenied));
        assert!(matches!(denied, CheckpointError::Io { .. }));
    }
}
