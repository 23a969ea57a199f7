//! The staging folder `OUT.rarefy-partial` beside the output: lock, key of the run, journal of finished parts.
//!
//! ```text
//! OUT.rarefy-partial/
//!   lock                     held (flock) by the process that writes
//!   run.json                 which run this is; written before anything else
//!   journal                  one line per finished part: checksum, space, JSON
//!   parts/part-….safetensors the parts, in their final form
//!   final/                   the output while it is assembled; renamed to OUT as the last step
//! ```
//! A part counts as finished when its line is in the journal and its file has the size and checksum the line states.
//! Anything else found here is left over from an interruption and is removed.

use super::encode::Record;
use crate::error::{CheckpointError, Result};
use crate::fsutil::{beside, parent, put, remove_dir, sync_dir, write_atomic};
use crate::hash::{Xxh64, hex64};
use crate::json;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".rarefy-partial";
const ASIDE: &str = ".rarefy-old";
const LAYOUT_VERSION: u32 = 1;
/// Longest journal accepted, in bytes.
const MAX_JOURNAL_BYTES: u64 = 1 << 30;

/// One line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) part: String,
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) xxh3: String,
    pub(crate) tensors: Vec<Record>,
    pub(crate) note: Value,
}

impl Entry {
    fn line(&self) -> String {
        // Numbers, strings and lists only: this cannot fail.
        let json = serde_json::to_string(self).expect("a journal entry has string keys only");
        format!("{} {json}\n", hex64(json.as_bytes()))
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let (sum, json) = line.split_at_checked(16)?;
        let json = json.strip_prefix(b" ")?;
        if hex64(json).as_bytes() != sum {
            return None;
        }
        serde_json::from_slice(json).ok()
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    layout: u32,
    run_key: String,
    format: String,
}

/// An open, locked staging folder.
#[derive(Debug)]
pub(crate) struct Staging {
    out: PathBuf,
    dir: PathBuf,
    overwrite: bool,
    journal: File,
    entries: BTreeMap<String, Entry>,
    // Held until the end: dropping it releases the lock.
    _lock: File,
}

/// What is at the place of the output.
fn occupied(out: &Path) -> Result<bool> {
    let meta = match fs::symlink_metadata(out) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(CheckpointError::io(out, "read", e)),
        Ok(m) => m,
    };
    if !meta.is_dir() {
        return Ok(true);
    }
    let mut inside = fs::read_dir(out).map_err(|e| CheckpointError::io(out, "read", e))?;
    Ok(inside.next().is_some())
}

/// Whether the output was made by the run with this key.
fn made_by(out: &Path, run_key: &str) -> bool {
    let record = json::read_capped(&out.join(super::record::FILE), json::MAX_INDEX_BYTES, "").ok();
    let record: Option<Value> = record.and_then(|b| serde_json::from_slice(&b).ok());
    record.is_some_and(|r| r.get("run_key").and_then(Value::as_str) == Some(run_key))
        && out.join("config.json").is_file()
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| CheckpointError::io(&path, "create", e))?;
    let locked = || CheckpointError::Locked { staging: dir.into() };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(locked()),
        Err(e) => return Err(CheckpointError::io(&path, "lock", e.into())),
    }
    // The previous holder may have removed the folder between our opening and locking the file.
    let same = match (file.metadata(), fs::metadata(&path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    };
    if same { Ok(file) } else { Err(locked()) }
}

impl Staging {
    /// Opens (and repairs) the staging folder of `out`, or begins one.
    pub(crate) fn open(out: &Path, run_key: &str, format: &str, overwrite: bool) -> Result<Self> {
        if out.file_name().is_none() {
            return Err(CheckpointError::OutputExists { out: out.into() });
        }
        let (dir, aside) = (beside(out, SUFFIX), beside(out, ASIDE));
        // Only on file systems that cannot exchange two folders: a crash between the two renames.
        if fs::symlink_metadata(out).is_err() && aside.exists() {
            fs::rename(&aside, out).map_err(|e| CheckpointError::io(out, "restore", e))?;
        }
        if occupied(out)? {
            if !overwrite {
                if !made_by(out, run_key) {
                    return Err(CheckpointError::OutputExists { out: out.into() });
                }
                // Left over when the process ended between the last rename and the removal of the staging folder.
                if dir.exists() {
                    let _held = lock(&dir)?;
                    remove_dir(&dir)?;
                }
                return Err(CheckpointError::AlreadyComplete { out: out.into() });
            }
            if !out.join("config.json").is_file() || out.is_symlink() {
                return Err(CheckpointError::OutputNotAModel { out: out.into() });
            }
        }
        let above = parent(out);
        fs::create_dir_all(above).map_err(|e| CheckpointError::io(above, "create", e))?;
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(CheckpointError::io(&dir, "create", e));
            }
            _ => sync_dir(above)?,
        }
        let held = lock(&dir)?;
        let run = Run { layout: LAYOUT_VERSION, run_key: run_key.into(), format: format.into() };
        let run_path = dir.join("run.json");
        if run_path.exists() {
            let bytes = json::read_capped(&run_path, json::MAX_CONFIG_BYTES, "")?;
            let found = serde_json::from_slice::<Run>(&bytes).ok();
            if found.as_ref() != Some(&run) {
                let found = found.map_or_else(
                    || "run.json is unreadable".into(),
                    |r| format!("key {}, format {}", r.run_key, r.format),
                );
                return Err(CheckpointError::OtherRun { staging: dir, found });
            }
        } else {
            // Interrupted before run.json was written, or while the folder was being removed.
            remove_dir(&dir.join("parts"))?;
            remove_file(&dir.join("journal"))?;
            let json = serde_json::to_string(&run).expect("three plain fields");
            write_atomic(&run_path, &mut |w| put(w, &run_path, json.as_bytes()))?;
        }
        remove_dir(&dir.join("final"))?;
        let parts = dir.join("parts");
        fs::create_dir_all(&parts).map_err(|e| CheckpointError::io(&parts, "create", e))?;
        let (journal, entries) = open_journal(&dir)?;
        for file in fs::read_dir(&parts).map_err(|e| CheckpointError::io(&parts, "read", e))? {
            let file = file.map_err(|e| CheckpointError::io(&parts, "read", e))?;
            if !entries.values().any(|e| *e.file == *file.file_name()) {
                remove_file(&file.path())?;
            }
        }
        sync_dir(&dir)?;
        Ok(Self { out: out.into(), dir, overwrite, journal, entries, _lock: held })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    pub(crate) fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Name of the file of a part.
    pub(crate) fn part_file(part: &str) -> String {
        format!("part-{}.safetensors", hex64(part.as_bytes()))
    }

    pub(crate) fn part_path(&self, file: &str) -> PathBuf {
        self.dir.join("parts").join(file)
    }

    /// Makes a written part count.
    pub(crate) fn record(&mut self, entry: Entry) -> Result<()> {
        let path = self.dir.join("journal");
        let bytes = self.journal.metadata().map_err(|e| CheckpointError::io(&path, "read", e))?.len();
        let line = entry.line();
        let appended = self.journal.write_all(line.as_bytes()).and_then(|()| self.journal.sync_all());
        if let Err(e) = appended {
            // Half a line would be skipped on resuming; taking it back keeps the journal whole for this process too.
            let _ = self.journal.set_len(bytes);
            return Err(CheckpointError::io(&path, "write", e));
        }
        self.entries.insert(entry.part.clone(), entry);
        Ok(())
    }

    /// An empty folder in which the output is assembled.
    pub(crate) fn begin_final(&self) -> Result<PathBuf> {
        let dir = self.dir.join("final");
        remove_dir(&dir)?;
        fs::create_dir(&dir).map_err(|e| CheckpointError::io(&dir, "create", e))?;
        Ok(dir)
    }

    /// Renames the assembled folder to the output and removes the staging folder. Returns the staging folder if it
    /// could not be removed.
    pub(crate) fn publish(self) -> Result<Option<PathBuf>> {
        let ready = self.dir.join("final");
        sync_dir(&ready)?;
        sync_dir(&self.dir)?;
        let above = parent(&self.out);
        if self.overwrite && occupied(&self.out)? {
            exchange(&ready, &self.out)?;
        } else {
            fs::rename(&ready, &self.out).map_err(|e| match e.kind() {
                ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                    CheckpointError::OutputExists { out: self.out.clone() }
                }
                _ => CheckpointError::io(&self.out, "create", e),
            })?;
        }
        sync_dir(above)?;
        let removed = remove_dir(&self.dir)
            .and_then(|()| remove_dir(&beside(&self.out, ASIDE)))
            .and_then(|()| sync_dir(above));
        Ok(removed.err().map(|_| self.dir.clone()))
    }

    /// Removes the staging folder with everything in it.
    pub(crate) fn abandon(self) -> Result<()> {
        remove_dir(&self.dir)
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(CheckpointError::io(path, "remove", e)),
        _ => Ok(()),
    }
}

/// Swaps two folders in one step; where the file system cannot, the old one is renamed aside first.
fn exchange(ready: &Path, out: &Path) -> Result<()> {
    let create = |e| CheckpointError::io(out, "create", e);
    match renameat_with(CWD, ready, CWD, out, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
            let aside = beside(out, ASIDE);
            remove_dir(&aside)?;
            fs::rename(out, &aside).map_err(create)?;
            fs::rename(ready, out).map_err(|e| {
                let _ = fs::rename(&aside, out);
                create(e)
            })
        }
        Err(e) => Err(create(e.into())),
    }
}

/// Reads the journal, drops lines that are damaged or whose part is, and rewrites it if anything was dropped.
fn open_journal(dir: &Path) -> Result<(File, BTreeMap<String, Entry>)> {
    let path = dir.join("journal");
    let mut bytes = Vec::new();
    match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(CheckpointError::io(&path, "open", e)),
        Ok(file) => {
            file.take(MAX_JOURNAL_BYTES)
                .read_to_end(&mut bytes)
                .map_err(|e| CheckpointError::io(&path, "read", e))?;
        }
    }
    let mut entries = BTreeMap::new();
    let mut whole = bytes.is_empty() || bytes.ends_with(b"\n");
    for line in bytes.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        match Entry::parse(line) {
            Some(entry) if is_intact(dir, &entry)? => {
                whole &= entries.insert(entry.part.clone(), entry).is_none()
            }
            _ => whole = false,
        }
    }
    if !whole {
        let text: String = entries.values().map(Entry::line).collect();
        write_atomic(&path, &mut |w| put(w, &path, text.as_bytes()))?;
    }
    let journal = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|e| CheckpointError::io(&path, "create", e))?;
    Ok((journal, entries))
}

/// Whether the file of a part has the size and checksum that the journal states.
fn is_intact(dir: &Path, entry: &Entry) -> Result<bool> {
    if entry.file != Staging::part_file(&entry.part) {
        return Ok(false);
    }
    let path = dir.join("parts").join(&entry.file);
    let Ok(mut file) = File::open(&path) else { return Ok(false) };
    let read = |e| CheckpointError::io(&path, "read", e);
    if file.metadata().map_err(read)?.len() != entry.bytes {
        return Ok(false);
    }
    let mut hash = Xxh64::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(read)? {
            0 => return Ok(hash.hex() == entry.xxh3),
            n => hash.update(&buffer[..n]),
        }
    }
}
