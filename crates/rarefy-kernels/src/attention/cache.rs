//! Keys and values of fixed capacity.

use crate::error::{length, product};
use crate::lanes::RowValue;
use crate::{AlignedBuf, KernelError};

const NAME: &str = "kv-cache";

/// `k` and `v` of one layer: per key-value head rows `[capacity][d]`, filled from the front. All memory is taken at once.
#[derive(Debug, Clone)]
pub struct KvCache<T: RowValue> {
    kv_heads: usize,
    d: usize,
    capacity: usize,
    len: usize,
    k: AlignedBuf<T>,
    v: AlignedBuf<T>,
}

impl<T: RowValue> KvCache<T> {
    /// An empty cache.
    ///
    /// # Errors
    /// [`KernelError::Argument`] when a size is zero, [`KernelError::TooLarge`] when they do not fit the machine.
    pub fn new(kv_heads: usize, d: usize, capacity: usize) -> Result<Self, KernelError> {
        for (argument, value) in [("kv_heads", kv_heads), ("d", d), ("capacity", capacity)] {
            if value == 0 {
                let (value, allowed) = ("0".to_owned(), "at least 1");
                return Err(KernelError::Argument { kernel: NAME, argument, value, allowed });
            }
        }
        if u32::try_from(capacity).is_err() {
            return Err(KernelError::TooLarge { kernel: NAME, a: capacity, b: 1 });
        }
        let all = product(NAME, product(NAME, kv_heads, d)?, capacity)?;
        product(NAME, all, 8)?;
        Ok(Self { kv_heads, d, capacity, len: 0, k: AlignedBuf::zeroed(all), v: AlignedBuf::zeroed(all) })
    }

    /// Adds one token, `k` and `v` each `[kv_heads][d]`.
    ///
    /// # Errors
    /// [`KernelError::Length`], or [`KernelError::Full`].
    pub fn append(&mut self, k: &[T], v: &[T]) -> Result<(), KernelError> {
        let expected = self.kv_heads * self.d;
        for (array, found) in [("k", k.len()), ("v", v.len())] {
            length(NAME, array, expected, found)?;
        }
        if self.len == self.capacity {
            return Err(KernelError::Full { kernel: NAME, capacity: self.capacity });
        }
        for h in 0..self.kv_heads {
            let at = (h * self.capacity + self.len) * self.d;
            self.k.as_mut_slice()[at..][..self.d].copy_from_slice(&k[h * self.d..][..self.d]);
            self.v.as_mut_slice()[at..][..self.d].copy_from_slice(&v[h * self.d..][..self.d]);
        }
        self.len += 1;
        Ok(())
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
    /// Tokens stored.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True without tokens.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
    /// Key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }
    /// Channels of a head.
    pub fn d(&self) -> usize {
        self.d
    }
    /// Keys of a head, `[len][d]`. Panics when there is no such head.
    pub fn keys(&self, head: usize) -> &[T] {
        &self.k.as_slice()[head * self.capacity * self.d..][..self.len * self.d]
    }
    /// Values of a head, `[len][d]`. Panics when there is no such head.
    pub fn values(&self, head: usize) -> &[T] {
        &self.v.as_slice()[head * self.capacity * self.d..][..self.len * self.d]
    }
}
