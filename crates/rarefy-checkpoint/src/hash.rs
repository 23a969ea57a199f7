//! Checksums: XXH3, 64 and 128 bits. They detect damage, not forgery.

use xxhash_rust::xxh3::Xxh3;

/// A streaming XXH3-64.
pub(crate) struct Xxh64(Xxh3);

impl Xxh64 {
    pub(crate) fn new() -> Self {
        Self(Xxh3::new())
    }
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    /// Sixteen hexadecimal digits.
    pub(crate) fn hex(&self) -> String {
        format!("{:016x}", self.0.digest())
    }
}

/// XXH3-64 of `bytes`, sixteen hexadecimal digits.
pub(crate) fn hex64(bytes: &[u8]) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytes))
}

/// A streaming XXH3-128.
#[derive(Default)]
pub(crate) struct Xxh128(Box<Xxh3>);

impl Xxh128 {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    /// Adds a piece whose length is part of the hash, so that pieces cannot run into one another.
    pub(crate) fn piece(&mut self, bytes: &[u8]) {
        self.update(&(bytes.len() as u64).to_le_bytes());
        self.update(bytes);
    }
    /// Thirty-two hexadecimal digits.
    pub(crate) fn hex(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // XXH3-64 of the empty input, from the reference implementation.
        assert_eq!(hex64(b""), "2d06800538d394c2");
        let mut streamed = Xxh64::new();
        streamed.update(b"ab");
        streamed.update(b"c");
        assert_eq!(streamed.hex(), hex64(b"abc"));
    }

    #[test]
    fn pieces_do_not_run_together() {
        let of = |pieces: &[&[u8]]| {
            let mut h = Xxh128::default();
            pieces.iter().for_each(|p| h.piece(p));
            h.hex()
        };
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_eq!(of(&[b"ab"]).len(), 32);
    }
}
