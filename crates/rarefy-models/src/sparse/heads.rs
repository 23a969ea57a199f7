//! Keys and values by head, as the kernels for one query read them, growing as tokens come in.

use rarefy_kernels::attention::{KvCache, LabelCache, LabelKind};

/// Tokens of the first allocation.
const FIRST: usize = 256;

/// The cache of one block.
#[derive(Debug, Clone)]
pub(crate) struct HeadCache {
    pub(crate) kv: KvCache<f32>,
    pub(crate) labels: Option<LabelCache>,
    kind: LabelKind,
    /// Kept between calls.
    pub(crate) scratch: Vec<f32>,
}

/// The sizes come from a checked configuration.
const FITS: &str = "heads and channels were checked when the model was loaded";

impl HeadCache {
    /// An empty cache; `channels` are those of the labels of so many heads, if there are any.
    pub(crate) fn new(kv_heads: usize, d: usize, channels: Option<(usize, &[u32])>, kind: LabelKind) -> Self {
        Self::with_capacity(kv_heads, d, channels, kind, FIRST)
    }

    fn with_capacity(
        kv_heads: usize,
        d: usize,
        channels: Option<(usize, &[u32])>,
        kind: LabelKind,
        capacity: usize,
    ) -> Self {
        let labels = |(heads, c)| LabelCache::new(kind, heads, d, c, capacity).expect(FITS);
        Self {
            kv: KvCache::new(kv_heads, d, capacity).expect(FITS),
            labels: channels.map(labels),
            kind,
            scratch: Vec::new(),
        }
    }

    /// Appends `n` tokens, `[n][kv_heads * d]` each.
    pub(crate) fn push(&mut self, keys: &[f32], values: &[f32], n: usize) {
        if self.kv.len() + n > self.kv.capacity() {
            self.grow((self.kv.len() + n).max(2 * self.kv.capacity()));
        }
        let d = self.kv.d();
        let width = self.kv.kv_heads() * d;
        for (k, v) in keys.chunks_exact(width).zip(values.chunks_exact(width)) {
            self.kv.append(k, v).expect("the capacity was made large enough");
            if let Some(labels) = &mut self.labels {
                let copies = labels.kv_heads() / self.kv.kv_heads();
                let appended = if copies == 1 {
                    labels.append(k)
                } else {
                    // The keys of a group once per query head.
                    labels.append(&k.chunks_exact(d).flat_map(|k| k.repeat(copies)).collect::<Vec<f32>>())
                };
                appended.expect("as many labels as keys");
            }
        }
    }

    fn grow(&mut self, capacity: usize) {
        let (heads, d) = (self.kv.kv_heads(), self.kv.d());
        let channels: Option<(usize, Vec<u32>)> = self
            .labels
            .as_ref()
            .map(|l| (l.kv_heads(), (0..l.kv_heads()).flat_map(|h| l.channels(h).iter().copied()).collect()));
        let channels = channels.as_ref().map(|(heads, c)| (*heads, c.as_slice()));
        let mut larger = Self::with_capacity(heads, d, channels, self.kind, capacity);
        let (keys, values) = self.rows();
        larger.push(&keys, &values, self.kv.len());
        larger.scratch = std::mem::take(&mut self.scratch);
        *self = larger;
    }

    /// Keys and values token by token, `[n][kv_heads * d]`.
    pub(crate) fn rows(&self) -> (Vec<f32>, Vec<f32>) {
        let (heads, d, n) = (self.kv.kv_heads(), self.kv.d(), self.kv.len());
        let (mut keys, mut values) = (vec![0.0; n * heads * d], vec![0.0; n * heads * d]);
        for h in 0..heads {
            let (k, v) = (self.kv.keys(h), self.kv.values(h));
            for t in 0..n {
                let (to, from) = ((t * heads + h) * d, t * d);
                keys[to..to + d].copy_from_slice(&k[from..from + d]);
                values[to..to + d].copy_from_slice(&v[from..from + d]);
            }
        }
        (keys, values)
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.kv.truncate(len);
        if let Some(labels) = &mut self.labels {
            labels.truncate(len);
        }
    }

    /// Bytes of keys and values, and of the labels in use.
    pub(crate) fn bytes(&self) -> usize {
        let kv = 8 * self.kv.capacity() * self.kv.kv_heads() * self.kv.d();
        kv + self.labels.as_ref().map_or(0, LabelCache::bytes_read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_and_cutting_keep_every_token() {
        let (heads, d) = (2, 6);
        let width = heads * d;
        let row =
            |t: usize, by: f32| -> Vec<f32> { (0..width).map(|i| (t * width + i) as f32 * by).collect() };
        let mut cache = HeadCache::new(heads, d, Some((heads, &[1, 4, 0, 5])), LabelKind::F32);
        let mut n = 0;
        for step in [1, 200, 55, 1, 300, 2] {
            let keys: Vec<f32> = (n..n + step).flat_map(|t| row(t, 1.0)).collect();
            let values: Vec<f32> = (n..n + step).flat_map(|t| row(t, -1.0)).collect();
            cache.push(&keys, &values, step);
            n += step;
        }
        let check = |cache: &HeadCache, n: usize| {
            let (keys, values) = cache.rows();
            assert_eq!(keys, (0..n).flat_map(|t| row(t, 1.0)).collect::<Vec<_>>());
            assert_eq!(values, (0..n).flat_map(|t| row(t, -1.0)).collect::<Vec<_>>());
            let labels = cache.labels.as_ref().expect("channels were given");
            assert_eq!(labels.len(), n);
            for (h, i, c) in [(0, 0, 1), (0, 1, 4), (1, 0, 0), (1, 1, 5)] {
                let got = labels.label(h, n - 1, i);
                assert!((got - row(n - 1, 1.0)[h * d + c]).abs() < 1e-6);
            }
        };
        check(&cache, n);
        let copy = cache.clone();
        cache.truncate(100);
        check(&cache, 100);
        cache.push(&row(100, 1.0), &row(100, -1.0), 1);
        check(&cache, 101);
        check(&copy, n);
    }
}
