//! The small language model inside this program, written out to a folder when it is used.

use std::io;
use std::path::{Path, PathBuf};

mod files {
    include!(concat!(env!("OUT_DIR"), "/builtin_files.rs"));
}

/// Why the built-in model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuiltinError {
    /// The program was built from a checkout without the model.
    #[error(
        "this build has no built-in model: `crates/rarefy/assets/builtin/` had no `{missing}` when it was compiled; \
         train it with `rarefy train` and build again"
    )]
    Absent {
        /// The first file that is missing.
        missing: &'static str,
    },
    /// The files could not be written out.
    #[error("cannot write the built-in model to `{}`", folder.display())]
    Write {
        /// The folder that was being written.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

static WRITING: std::sync::Mutex<()> = std::sync::Mutex::new(());

const NEEDED: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// The content of one embedded file, for example `recipe.toml`.
#[must_use]
pub fn file(name: &str) -> Option<&'static [u8]> {
    files::FILES.iter().find(|(n, _)| *n == name).map(|(_, content)| *content)
}

/// Writes the built-in model into the user's cache folder, once, and returns the model folder.
///
/// The cache is `$XDG_CACHE_HOME/rarefy`, else `$HOME/.cache/rarefy`, else the system's folder for
/// temporary files, whichever can be written first. Files already there are compared byte by byte.
///
/// # Errors
/// [`BuiltinError::Absent`] when the program was built without it, [`BuiltinError::Write`] when no
/// folder can be written.
pub fn folder() -> Result<PathBuf, BuiltinError> {
    check_present()?;
    // One writer at a time in this process; other processes have other staging folders.
    let _guard = WRITING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut last = None;
    for base in cache_folders() {
        match write_to(&base) {
            Ok(folder) => return Ok(folder),
            Err(error) => last = Some((base, error)),
        }
    }
    let (folder, source) = last.unwrap_or_else(|| (PathBuf::new(), io::Error::other("no candidate folder")));
    Err(BuiltinError::Write { folder, source })
}

/// Writes the built-in model below `base`, once, and returns the model folder.
///
/// # Errors
/// As [`folder`].
pub fn folder_in(base: &Path) -> Result<PathBuf, BuiltinError> {
    check_present()?;
    let _guard = WRITING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    write_to(base).map_err(|source| BuiltinError::Write { folder: base.into(), source })
}

fn check_present() -> Result<(), BuiltinError> {
    match NEEDED.into_iter().find(|name| file(name).is_none()) {
        None => Ok(()),
        Some(missing) => Err(BuiltinError::Absent { missing }),
    }
}

/// Folders for what is kept between runs, best first.
pub(crate) fn cache_folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut bases = Vec::new();
    if let Some(cache) = variable("XDG_CACHE_HOME").filter(|p| p.is_absolute()) {
        bases.push(cache.join("rarefy"));
    } else if let Some(home) = variable("HOME") {
        bases.push(home.join(".cache/rarefy"));
    }
    bases.push(std::env::temp_dir().join("rarefy"));
    bases
}

/// A 64-bit FNV-1a hash of all embedded files, so that another version gets another folder.
fn fingerprint() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for (name, content) in files::FILES {
        for byte in name.bytes().chain(content.iter().copied()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

fn write_to(base: &Path) -> io::Result<PathBuf> {
    let folder = base.join(format!("builtin-{:016x}", fingerprint()));
    if is_complete(&folder) {
        return Ok(folder);
    }
    let staging = base.join(format!(".builtin-{}.tmp", std::process::id()));
    let outcome = (|| {
        if staging.exists() {
            std::fs::remove_dir_all(&staging)?;
        }
        std::fs::create_dir_all(&staging)?;
        for (name, content) in files::FILES {
            std::fs::write(staging.join(name), content)?;
        }
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::rename(&staging, &folder)
    })();
    if outcome.is_err() {
        let _ = std::fs::remove_dir_all(&staging);
        // Another process may have been faster.
        if is_complete(&folder) {
            return Ok(folder);
        }
    }
    outcome.map(|()| folder)
}

fn is_complete(folder: &Path) -> bool {
    files::FILES
        .iter()
        .all(|(name, content)| std::fs::read(folder.join(name)).is_ok_and(|found| found == *content))
}

/// Seed of the corpus that the built-in model was trained on (`recipes/builtin.toml`). The training, validation and test
/// splits share no random stream.
pub const CORPUS_SEED: u64 = 1;

/// Held-out text of the generator, and the lowest perplexity to be expected on it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// The text, cut into tokens.
    pub tokens: Vec<u32>,
    /// Documents in it.
    pub documents: u64,
    /// `exp` of the entropy of the text per token: the perplexity of the generator itself.
    pub floor_ppl: f64,
}

/// Documents taken from the generator at a time.
const BATCH: u64 = 64;

/// Held-out text (the test split of the generator) of at least `tokens` tokens.
///
/// # Errors
/// The tokenizer cannot express the text.
pub fn held_out(
    tokenizer: &rarefy_checkpoint::Tokenizer,
    tokens: usize,
) -> Result<HeldOut, rarefy_checkpoint::CheckpointError> {
    let corpus = rarefy_data::Corpus::new(CORPUS_SEED, rarefy_data::Split::Test);
    let (found, documents) = gather(&corpus, tokenizer, tokens)?;
    let floor = corpus.floor(0, documents);
    let floor_ppl = floor.per_token(found.len()).exp();
    Ok(HeldOut { tokens: found, documents, floor_ppl })
}

/// Text to calibrate on (the validation split of the generator) of at least `tokens` tokens.
///
/// # Errors
/// The tokenizer cannot express the text.
pub fn calibration(
    tokenizer: &rarefy_checkpoint::Tokenizer,
    tokens: usize,
) -> Result<Vec<u32>, rarefy_checkpoint::CheckpointError> {
    let corpus = rarefy_data::Corpus::new(CORPUS_SEED, rarefy_data::Split::Validation);
    gather(&corpus, tokenizer, tokens).map(|(tokens, _)| tokens)
}

fn gather(
    corpus: &rarefy_data::Corpus,
    tokenizer: &rarefy_checkpoint::Tokenizer,
    tokens: usize,
) -> Result<(Vec<u32>, u64), rarefy_checkpoint::CheckpointError> {
    let mut found = Vec::new();
    let mut documents = 0;
    while found.len() < tokens {
        found.extend(tokenizer.encode(&corpus.text(documents, BATCH))?);
        documents += BATCH;
    }
    Ok((found, documents))
}
