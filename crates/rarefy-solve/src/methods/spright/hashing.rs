//! Which samples are read, and how their small transforms hash the coefficients into bins.

use rand::Rng;
use rand::RngExt;

use super::code::Rate;
use super::{Delays, Subsampling, parity};
use crate::sketch::transform;

/// One group of bins: a subspace of `2^b` indices and its offsets.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// Columns of M, more than are in use.
    columns: Vec<u64>,
    /// Number of columns in use.
    pub(super) bits: u32,
    /// Offsets d_p.
    pub(super) delays: Vec<u64>,
    /// Observations, offsets contiguous per bin.
    pub(super) bins: Vec<f64>,
}

impl Group {
    /// Draws `capacity` columns and the offsets.
    pub(super) fn draw(
        n: u32,
        number: u32,
        capacity: u32,
        subsampling: Subsampling,
        delays: Delays,
        rng: &mut impl Rng,
    ) -> Self {
        let columns = match subsampling {
            Subsampling::Blocks => (0..capacity).map(|i| 1 << ((number * capacity + i) % n)).collect(),
            Subsampling::Random => independent(n, capacity, rng),
        };
        Self { columns, bits: capacity, delays: offsets(n, delays, rng), bins: vec![] }
    }

    /// The bin of a coefficient: Mᵀk.
    pub(super) fn bin(&self, k: u64) -> usize {
        self.columns[..self.bits as usize]
            .iter()
            .enumerate()
            .fold(0, |bin, (q, column)| bin | usize::from(parity(column & k)) << q)
    }

    /// M·l for all l.
    fn grid(&self) -> Vec<u64> {
        let mut grid = vec![0];
        for column in &self.columns[..self.bits as usize] {
            for i in 0..grid.len() {
                grid.push(grid[i] ^ column);
            }
        }
        grid
    }

    /// Every index that is read, offset by offset.
    pub(super) fn indices(&self) -> impl Iterator<Item = u64> + use<> {
        let grid = self.grid();
        self.delays.clone().into_iter().flat_map(move |d| grid.clone().into_iter().map(move |g| g ^ d))
    }

    /// Fills the bins from samples in the order of [`Group::indices`].
    pub(super) fn fill(&mut self, samples: impl Iterator<Item = f64>) {
        let (b, p) = (1 << self.bits, self.delays.len());
        let mut values: Vec<f64> = samples.collect();
        self.bins = vec![0.0; b * p];
        let scale = 1.0 / b as f64;
        for (q, values) in values.chunks_exact_mut(b).enumerate() {
            transform(values);
            values.iter().enumerate().for_each(|(j, v)| self.bins[j * p + q] = scale * v);
        }
    }

    /// The observations of one bin.
    pub(super) fn observed(&self, bin: usize) -> &[f64] {
        &self.bins[bin * self.delays.len()..(bin + 1) * self.delays.len()]
    }

    /// Mean square of one bin.
    pub(super) fn energy(&self, bin: usize) -> f64 {
        let u = self.observed(bin);
        u.iter().map(|v| v * v).sum::<f64>() / u.len() as f64
    }

    /// Adds `a` times the signature of `k` to its bin; returns the bin.
    pub(super) fn add(&mut self, k: u64, a: f64) -> usize {
        let bin = self.bin(k);
        let p = self.delays.len();
        for (v, d) in self.bins[bin * p..(bin + 1) * p].iter_mut().zip(&self.delays) {
            *v += if parity(d & k) { -a } else { a };
        }
        bin
    }

    /// `Σ_p (−1)^⟨d_p, k⟩ u_p` over the bin of `k`.
    pub(super) fn matched(&self, k: u64) -> f64 {
        super::code::correlation(&self.delays, k, self.observed(self.bin(k)))
    }

    /// A solution of Mᵀk = bin and a basis of the solutions of Mᵀk = 0.
    pub(super) fn coset(&self, n: u32, bin: usize) -> (u64, Vec<u64>) {
        // Rows of Mᵀ with their right-hand sides, reduced.
        let mut rows: Vec<(u64, bool)> = vec![];
        for (q, column) in self.columns[..self.bits as usize].iter().enumerate() {
            let (mut row, mut side) = (*column, bin >> q & 1 == 1);
            for (r, s) in &rows {
                if row >> r.trailing_zeros() & 1 == 1 {
                    (row, side) = (row ^ r, side ^ s);
                }
            }
            if row == 0 {
                continue;
            }
            let pivot = row.trailing_zeros();
            for (r, s) in &mut rows {
                if *r >> pivot & 1 == 1 {
                    (*r, *s) = (*r ^ row, *s ^ side);
                }
            }
            rows.push((row, side));
        }
        let pivots = rows.iter().fold(0u64, |p, (r, _)| p | 1 << r.trailing_zeros());
        let one = rows.iter().filter(|(_, s)| *s).fold(0, |k, (r, _)| k | 1 << r.trailing_zeros());
        let free = (0..n).filter(|q| pivots >> q & 1 == 0);
        let basis = free.map(|q| {
            let meets = rows.iter().filter(|(r, _)| r >> q & 1 == 1);
            meets.fold(1 << q, |k, (r, _)| k | 1 << r.trailing_zeros())
        });
        (one, basis.collect())
    }
}

fn random_index(n: u32, rng: &mut impl Rng) -> u64 {
    rng.random::<u64>() >> (64 - n)
}

/// `count` linearly independent vectors over GF(2).
fn independent(n: u32, count: u32, rng: &mut impl Rng) -> Vec<u64> {
    let (mut out, mut reduced): (Vec<u64>, Vec<u64>) = (vec![], vec![]);
    while out.len() < count as usize {
        let v = random_index(n, rng);
        let rest = reduced.iter().fold(v, |v, r| if v >> r.ilog2() & 1 == 1 { v ^ r } else { v });
        if rest != 0 {
            reduced.push(rest);
            out.push(v);
        }
    }
    out
}

fn offsets(n: u32, delays: Delays, rng: &mut impl Rng) -> Vec<u64> {
    let units = |r: u64| std::iter::once(r).chain((0..n).map(move |q| r ^ 1 << q));
    match delays {
        Delays::Noiseless => units(0).collect(),
        Delays::Nso { chains } => (0..chains).flat_map(|_| units(random_index(n, rng))).collect(),
        Delays::So { rate, checks } => {
            let shift = random_index(n, rng);
            let coded = rate.offsets(n as usize).into_iter().map(|d| d ^ shift);
            coded.chain((0..checks).map(|_| random_index(n, rng))).collect()
        }
        Delays::Mle { offsets } => (0..offsets).map(|_| random_index(n, rng)).collect(),
    }
}

/// The index that explains one bin, by the kind of offsets. Not yet verified.
pub(super) fn locate(group: &Group, n: u32, bin: usize, delays: Delays) -> Vec<u64> {
    let u = group.observed(bin);
    match delays {
        Delays::Noiseless | Delays::Nso { .. } => {
            let chain = n as usize + 1;
            let vote = |q: usize| u.chunks_exact(chain).map(|u| u[0] * u[q + 1]).sum::<f64>();
            vec![(0..n as usize).fold(0, |k, q| k | u64::from(vote(q) < 0.0) << q)]
        }
        Delays::So { rate, .. } => coded(rate, n, u),
        Delays::Mle { .. } => {
            // With k = k₀ + Nz the correlations over all z are one transform of size 2^(n − b).
            let (origin, basis) = group.coset(n, bin);
            let mut scores = vec![0.0; 1 << basis.len()];
            for (d, v) in group.delays.iter().zip(u) {
                let at = basis.iter().enumerate().fold(0, |at, (i, k)| at | usize::from(parity(d & k)) << i);
                scores[at] += if parity(d & origin) { -v } else { *v };
            }
            transform(&mut scores);
            let best = (0..scores.len()).max_by(|a, b| scores[*a].abs().total_cmp(&scores[*b].abs()));
            let best = best.unwrap_or(0);
            let chosen = basis.iter().enumerate().filter(|(i, _)| best >> i & 1 == 1);
            vec![chosen.fold(origin, |k, (_, v)| k ^ v)]
        }
    }
}

/// The offsets are shifted by an unknown sign: both are decoded.
fn coded(rate: Rate, n: u32, u: &[f64]) -> Vec<u64> {
    let length = rate.offsets(n as usize).len();
    let soft = &u[..length];
    let flipped: Vec<f64> = soft.iter().map(|v| -v).collect();
    vec![rate.decode(n as usize, soft), rate.decode(n as usize, &flipped)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    const DELAYS: [Delays; 4] = [
        Delays::Noiseless,
        Delays::Nso { chains: 2 },
        Delays::So { rate: Rate::TwoThirds, checks: 3 },
        Delays::Mle { offsets: 5 },
    ];

    #[test]
    fn every_observation_is_the_alias_of_the_full_transform() {
        for n in [7, 10, 12] {
            let x: Vec<f64> = (0..1 << n).map(|m| f64::from(m * m % 97) / 50.0 - 1.0).collect();
            let mut full = x.clone();
            transform(&mut full);
            full.iter_mut().for_each(|v| *v /= x.len() as f64);
            for (seed, delays) in DELAYS.into_iter().enumerate() {
                for subsampling in [Subsampling::Random, Subsampling::Blocks] {
                    let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
                    let mut group = Group::draw(n, 1, 4, subsampling, delays, &mut rng);
                    let samples: Vec<f64> = group.indices().map(|m| x[m as usize]).collect();
                    group.fill(samples.into_iter());
                    for j in 0..1 << group.bits {
                        for (p, d) in group.delays.iter().enumerate() {
                            let want: f64 = (0..1u64 << n)
                                .filter(|k| group.bin(*k) == j)
                                .map(|k| if parity(k & d) { -full[k as usize] } else { full[k as usize] })
                                .sum();
                            assert!((group.observed(j)[p] - want).abs() < 1e-10, "{n} {delays:?} {j} {p}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_coset_is_what_falls_into_one_bin() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let group = Group::draw(9, 0, 4, Subsampling::Random, Delays::Noiseless, &mut rng);
        for bin in 0..16 {
            let (origin, basis) = group.coset(9, bin);
            let mut all: Vec<u64> = (0..1u64 << basis.len())
                .map(|z| {
                    basis.iter().enumerate().filter(|(i, _)| z >> i & 1 == 1).fold(origin, |k, (_, v)| k ^ v)
                })
                .collect();
            all.sort_unstable();
            let want: Vec<u64> = (0..512).filter(|k| group.bin(*k) == bin).collect();
            assert_eq!(all, want);
        }
    }
}
