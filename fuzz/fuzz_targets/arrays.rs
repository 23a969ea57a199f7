//! The readers of tables and matrices on arbitrary bytes; the first byte chooses the format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rarefy_data::arrays::{Limits, read_table, row_blocks};

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let name = ["a.npy", "a.npz", "a.csv", "a.libsvm", "a.mtx"][usize::from(*choice) % 5];
    let Ok(folder) = tempfile::tempdir() else { return };
    let path = folder.path().join(name);
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    let limits = Limits { bytes: 1 << 20, values: 1 << 16, dimension: 1 << 16 };
    let _ = read_table(&path, None, limits);
    if let Ok(blocks) = row_blocks(&path, 3, Some(8), limits) {
        blocks.take(1000).for_each(drop);
    }
});
