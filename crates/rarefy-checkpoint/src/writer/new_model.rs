//! A model folder made from nothing: by training, or with random weights.

use super::assemble::{self, Item};
use super::record;
use super::staging::Staging;
use crate::dtype::DType;
use crate::error::Result;
use crate::fsutil::{put, write_synced};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A model folder in the making. It is locked against other processes, keeps the maker's own state in its staging folder
/// `OUT.rarefy-partial`, and appears under its name complete or not at all.
#[derive(Debug)]
pub struct NewModel {
    staging: Staging,
    run_key: String,
}

/// A tensor to be written.
#[derive(Debug, Clone, Copy)]
pub struct NewTensor<'a> {
    /// Its name, unique in the model.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its values, row-major.
    pub values: &'a [f32],
    /// The type they are stored in, a floating-point one.
    pub dtype: DType,
}

/// What a finished folder holds beside its weights.
#[derive(Debug, Clone, Copy)]
pub struct NewModelFiles<'a> {
    /// `config.json`.
    pub config: &'a Value,
    /// `tokenizer.json`, as it stands; none for a model that reads no text.
    pub tokenizer: Option<&'a str>,
    /// The run record `rarefy.json`; the checksums of the weight files are added.
    pub record: &'a Value,
    /// Further text files: name and content.
    pub others: &'a [(&'a str, &'a str)],
}

impl NewModel {
    /// Begins or goes on with the folder `out`; `run_key` names the run in its record.
    ///
    /// # Errors
    /// [`OutputExists`](crate::CheckpointError::OutputExists), or
    /// [`AlreadyComplete`](crate::CheckpointError::AlreadyComplete) when a run with this key has made it;
    /// [`Locked`](crate::CheckpointError::Locked) while another process writes it;
    /// [`OtherRun`](crate::CheckpointError::OtherRun) when a run with another key was interrupted there.
    pub fn open(out: &Path, run_key: &str) -> Result<Self> {
        Self::open_over(out, run_key, false)
    }

    /// [`NewModel::open`]; with `overwrite` a folder that is there is replaced when the new one is complete.
    ///
    /// # Errors
    /// As [`NewModel::open`].
    pub fn open_over(out: &Path, run_key: &str, overwrite: bool) -> Result<Self> {
        Ok(Self { staging: Staging::open(out, run_key, "dense", overwrite)?, run_key: run_key.to_owned() })
    }

    /// Gives up: what was begun is removed.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn abandon(self) -> Result<()> {
        self.staging.abandon()
    }

    /// A file for the state of the maker. It is removed with the staging folder when the model is complete.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.staging.dir().join("state")
    }

    /// Writes everything and gives the folder its name.
    ///
    /// # Errors
    /// Those of the file system; the staging folder is then kept.
    pub fn finish(self, tensors: &[NewTensor<'_>], files: NewModelFiles<'_>) -> Result<()> {
        let items = tensors.iter().map(|t| {
            let (values, dtype) = (t.values, t.dtype);
            Item {
                name: t.name.to_owned(),
                dtype,
                shape: t.shape.to_vec(),
                bytes: (values.len() * dtype.size()) as u64,
                fill: Box::new(move |sink| {
                    // In pieces: a large tensor is not held twice.
                    values.chunks(1 << 18).try_for_each(|piece| sink(&crate::dtype::to_dtype(piece, dtype)))
                }),
            }
        });
        self.finish_with(items.collect(), files, assemble::SHARD_BYTES)
    }

    /// [`NewModel::finish`] with tensors produced as they are written, in weight files of at most `shard_bytes` of data.
    pub(crate) fn finish_with(
        self,
        items: Vec<Item<'_>>,
        files: NewModelFiles<'_>,
        shard_bytes: u64,
    ) -> Result<()> {
        let dir = self.staging.begin_final()?;
        let weights = assemble::write_weights(&dir, items, shard_bytes)?;
        assemble::write_json(&dir.join("config.json"), files.config)?;
        let tokenizer = files.tokenizer.map(|text| ("tokenizer.json", text));
        for (name, content) in files.others.iter().chain(&tokenizer) {
            let path = dir.join(name);
            write_synced(&path, &mut |w| put(w, &path, content.as_bytes()))?;
        }
        let record = record::with_run(files.record, &self.run_key, &weights);
        assemble::write_json(&dir.join(record::FILE), &record)?;
        self.staging.publish()?;
        Ok(())
    }
}
