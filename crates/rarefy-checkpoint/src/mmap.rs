//! The memory map of a weight file: the only unsafe code of this crate.

use crate::error::{CheckpointError, Result};
use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::path::Path;

/// A read-only map of a whole file.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps `file`.
    pub(crate) fn new(path: &Path, file: &File) -> Result<Self> {
        // SAFETY: the map is read-only and shared, so this process never writes through it. The hazards are outside:
        // another process may change or truncate the file. A change shows as other bytes, which are only ever
        // interpreted as plain numbers, never as pointers, lengths or characters, so no invalid value can arise. A
        // truncation makes the pages past the new end fault (SIGBUS), which ends the process; it does not corrupt it.
        // Every reading path of this crate except `raw` therefore uses positioned reads, which report a truncation as
        // an error, and `raw` compares the file's present length before it hands out a slice. Files written by this
        // crate are replaced by rename, never changed in place.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(file) }.map_err(|e| CheckpointError::io(path, "map", e))?;
        Ok(Self(map))
    }

    /// The mapped bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Takes the pages out of the resident set; a later access reads them from the file again.
    pub(crate) fn release(&self) {
        // SAFETY: MADV_DONTNEED discards private changes of anonymous or private pages. This map is a read-only shared
        // map of a file: there are no changes to lose, and a later access faults the same bytes in from the file.
        // Failure leaves the pages where they are, which is harmless, so the result is not needed.
        #[allow(unsafe_code)]
        let _ = unsafe { self.0.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}
