//! Safetensors headers and config.json: whatever the bytes, a result or an error, never a panic, and an accepted header
//! covers every byte of the file once.
//!
//! `cargo fuzz run checkpoint_header`
#![no_main]

use libfuzzer_sys::fuzz_target;
use rarefy_checkpoint::ModelConfig;
use rarefy_checkpoint::safetensors::Header;
use std::path::Path;

fn check(bytes: &[u8]) {
    let Ok(header) = Header::from_bytes(Path::new("fuzz"), bytes) else { return };
    let json = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let mut ranges: Vec<(u64, u64)> = header.entries.values().map(|e| (e.offset, e.bytes)).collect();
    ranges.sort_unstable();
    let mut at = 8 + json;
    for (offset, length) in ranges {
        assert_eq!(offset, at, "gap or overlap");
        at += length;
    }
    assert_eq!(at, bytes.len() as u64, "bytes outside all tensors");
    for e in header.entries.values() {
        let elements: u64 = e.shape.iter().map(|&d| d as u64).product();
        assert_eq!(elements * e.dtype.size() as u64, e.bytes);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // The same bytes as the JSON of a header with the right length in front, which the fuzzer would rarely find.
    let split = bytes.iter().rposition(|&b| b == b'}').map_or(bytes.len(), |i| i + 1);
    let mut framed = (split as u64).to_le_bytes().to_vec();
    framed.extend_from_slice(bytes);
    check(&framed);
    if let Ok(value) = serde_json::from_slice(bytes) {
        let _ = ModelConfig::from_value(Path::new("fuzz"), value);
    }
});
