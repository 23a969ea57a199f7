//! The checksum of stored arrays.

use bytemuck::NoUninit;

/// XXH3 over arrays in a fixed order, each preceded by its length; numbers as little-endian bytes.
pub(crate) struct Checksum(xxhash_rust::xxh3::Xxh3);

impl Checksum {
    /// Starts with the numbers of the header.
    pub(crate) fn new(header: &[u64]) -> Self {
        Self(xxhash_rust::xxh3::Xxh3::new()).array(header)
    }

    /// Adds an array.
    pub(crate) fn array<T: NoUninit>(mut self, values: &[T]) -> Self {
        self.0.update(&(values.len() as u64).to_le_bytes());
        if cfg!(target_endian = "little") || size_of::<T>() == 1 {
            self.0.update(bytemuck::cast_slice(values));
        } else {
            for v in values {
                let mut bytes = [0u8; 16];
                let bytes = &mut bytes[..size_of::<T>()];
                bytes.copy_from_slice(bytemuck::bytes_of(v));
                bytes.reverse();
                self.0.update(bytes);
            }
        }
        self
    }

    /// The sum.
    pub(crate) fn finish(self) -> u64 {
        self.0.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::Checksum;

    #[test]
    fn every_value_length_and_order_counts() {
        let sum = |a: &[u16], b: &[u16]| Checksum::new(&[1]).array(a).array(b).finish();
        let base = sum(&[1, 2], &[3]);
        assert_eq!(base, sum(&[1, 2], &[3]));
        for (a, b) in [(&[1u16][..], &[2u16, 3][..]), (&[2, 1], &[3]), (&[1, 2], &[4]), (&[1, 2, 3], &[])] {
            assert_ne!(base, sum(a, b), "{a:?} {b:?}");
        }
        assert_ne!(base, Checksum::new(&[2]).array(&[1u16, 2]).array(&[3u16]).finish());
    }
}
