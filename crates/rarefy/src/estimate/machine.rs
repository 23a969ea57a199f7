//! The calibration of this machine: measured once, kept in the user's cache folder.

use std::path::{Path, PathBuf};

use rarefy_kernels::bench::Kind;
use rarefy_kernels::plan::{Calibration, CalibrationSettings};
use rarefy_kernels::{Isa, KernelError};

use crate::{builtin, measure};

/// Bytes of weights between which kernels alternate while they are calibrated, at least and at most.
const MEMORY_BYTES: (usize, usize) = (256 << 20, 1 << 30);
/// Timed calls of each kernel beyond the cache.
const PASSES: usize = 9;
/// What is assumed where the system does not tell the size of its last-level cache.
const USUAL_CACHE: u64 = 32 << 20;

/// Every kernel that is calibrated.
#[must_use]
pub fn kinds() -> Vec<Kind> {
    let mut kinds = Kind::STANDARD.to_vec();
    kinds.extend([INT8, INT4, GROUPS]);
    kinds
}

/// Dense eight-bit weights.
pub const INT8: Kind = Kind::Quantised { bits: 8, group: 128, exact: false };
/// Dense four-bit weights.
pub const INT4: Kind = Kind::Quantised { bits: 4, group: 32, exact: false };
/// Four-bit weights in kept groups of 1 × 16.
pub const GROUPS: Kind = Kind::GroupSparse { bits: 4, group: 16, exact: false };

/// Bytes of the last-level cache, as Linux tells it; 32 MiB where it does not.
#[must_use]
pub fn last_level_cache() -> u64 {
    (0..8).filter_map(cache_size).max().unwrap_or(USUAL_CACHE)
}

/// Bytes of the second-level cache of a core, as Linux tells it; 1 MiB where it does not.
#[must_use]
pub fn second_level_cache() -> u64 {
    cache_size(2).unwrap_or(1 << 20)
}

fn cache_size(index: usize) -> Option<u64> {
    let file = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().strip_suffix('K')?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// The stored calibration for this CPU, these threads and this version, when there is one that can be read.
#[must_use]
pub fn stored(threads: usize) -> Option<Calibration> {
    read_stored::<Calibration>(&file_name(threads)).filter(|found| is_ours(found, threads))
}

/// What [`store`] stored under that name, when it can be read.
#[must_use]
pub fn read_stored<T: serde::de::DeserializeOwned>(name: &str) -> Option<T> {
    builtin::cache_folders().iter().find_map(|folder| read(&folder.join(name)))
}

/// Stores a value in the user's cache folder; where it was stored, if anywhere.
pub fn store(name: &str, value: &impl serde::Serialize) -> Option<PathBuf> {
    let text = serde_json::to_string_pretty(value).ok()?;
    builtin::cache_folders().iter().find_map(|folder| {
        let file = folder.join(name);
        std::fs::create_dir_all(folder).ok()?;
        rarefy_checkpoint::replace_file(&file, text.as_bytes()).ok()?;
        Some(file)
    })
}

/// Measures the machine and stores the result; the path is where it was stored, if anywhere.
///
/// # Errors
/// Those of [`Calibration::measure`]. That it cannot be stored is no error: it is measured again next time.
pub fn measure(
    threads: usize,
    on_step: &mut dyn FnMut(&str),
) -> Result<(Calibration, Option<PathBuf>), KernelError> {
    let cache = usize::try_from(last_level_cache()).unwrap_or(usize::MAX);
    let settings = CalibrationSettings {
        kinds: kinds(),
        threads,
        cpu: identity(),
        memory_bytes: cache.saturating_mul(4).clamp(MEMORY_BYTES.0, MEMORY_BYTES.1),
        passes: PASSES,
        max_bytes: measure::spare_memory(),
    };
    let calibration = Calibration::measure(&settings, on_step)?;
    let file = store(&file_name(threads), &calibration);
    Ok((calibration, file))
}

/// The CPU and the code path: a calibration is good for both together only.
pub(super) fn identity() -> String {
    format!("{}, {}", measure::cpu_name(), Isa::detect())
}

fn file_name(threads: usize) -> String {
    format!("calibration-{threads}-threads.json")
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    // A calibration is a few kilobytes; a larger file is not one.
    let size = std::fs::metadata(file).ok()?.len();
    let text = if size <= 1 << 20 { std::fs::read_to_string(file).ok()? } else { return None };
    serde_json::from_str(&text).ok()
}

fn is_ours(found: &Calibration, threads: usize) -> bool {
    found.version == Calibration::VERSION
        && found.threads == threads
        && found.cpu == identity()
        && found.is_usable(&kinds())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rarefy_kernels::plan::KernelCost;

    fn calibration(threads: usize) -> Calibration {
        let kernels: Vec<KernelCost> = kinds()
            .iter()
            .map(|k| KernelCost {
                kernel: k.to_string(),
                call_ns: 0.0,
                unit_ns: vec![(1, 0.1)],
                rates: vec![(0.5, 10.0)],
                overlap: 2.0,
            })
            .collect();
        Calibration {
            version: Calibration::VERSION,
            cpu: identity(),
            threads,
            read_gb_per_s: 10.0,
            single: kernels.clone(),
            kernels,
        }
    }

    #[test]
    fn only_a_calibration_of_this_machine_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(file_name(2));
        let read_ours = || read::<Calibration>(&file).filter(|found| is_ours(found, 2));
        let write = |c: &Calibration| std::fs::write(&file, serde_json::to_string(c).unwrap()).unwrap();
        let ours = calibration(2);
        write(&ours);
        assert_eq!(read_ours(), Some(ours.clone()));
        for other in [
            Calibration { version: 0, ..ours.clone() },
            Calibration { cpu: "another".into(), ..ours.clone() },
            Calibration { threads: 1, ..ours.clone() },
            Calibration { kernels: ours.kernels[1..].to_vec(), ..ours.clone() },
            Calibration { read_gb_per_s: -1.0, ..ours },
        ] {
            write(&other);
            assert_eq!(read_ours(), None);
        }
        for bad in ["", "{", "[]", "{\"version\":1}"] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(read_ours(), None, "{bad}");
        }
        assert_eq!(read::<Calibration>(&folder.path().join("missing")), None);
        assert!(last_level_cache() >= 1 << 16);
    }
}
