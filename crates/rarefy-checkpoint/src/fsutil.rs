//! Durable files and folders: what a function here reports as written survives a crash.

use crate::error::{CheckpointError, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Makes the entries of a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let file = File::open(dir).map_err(|e| CheckpointError::io(dir, "open", e))?;
    file.sync_all().map_err(|e| CheckpointError::io(dir, "sync", e))
}

/// The folder that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// `path` with `suffix` appended to its last component.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Writes a file through `fill`, then makes its content durable (its name is durable after [`sync_dir`]).
pub(crate) fn write_synced(path: &Path, fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()> {
    let file = File::create(path).map_err(|e| CheckpointError::io(path, "create", e))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    fill(&mut out)?;
    let file = out.into_inner().map_err(|e| CheckpointError::io(path, "write", e.into_error()))?;
    file.sync_all().map_err(|e| CheckpointError::io(path, "sync", e))
}

/// Writes a file so that it has either its old or its new content: temporary file, sync, rename, sync of the folder.
pub(crate) fn write_atomic(path: &Path, fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>) -> Result<()> {
    let temporary = beside(path, ".tmp");
    write_synced(&temporary, fill)?;
    fs::rename(&temporary, path).map_err(|e| CheckpointError::io(path, "rename", e))?;
    sync_dir(parent(path))
}

/// Gives a file new content so that its name holds the old or the new content at any moment, and the new one durably on
/// return. What could not be finished is removed.
///
/// # Errors
/// [`DiskFull`](CheckpointError::DiskFull), [`ReadOnly`](CheckpointError::ReadOnly), [`Io`](CheckpointError::Io); the old content is
/// then intact.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, &mut |out| put(out, path, bytes)).inspect_err(|_| {
        // The first error is the one that matters.
        let _ = fs::remove_file(beside(path, ".tmp"));
    })
}

/// `write_all` with the error of this crate.
pub(crate) fn put(out: &mut dyn Write, path: &Path, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(|e| CheckpointError::io(path, "write", e))
}

/// Removes a folder with its content; one that is not there is fine.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(CheckpointError::io(dir, "remove", e)),
        _ => Ok(()),
    }
}
