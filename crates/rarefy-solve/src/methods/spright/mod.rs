//! SPRIGHT — finds the few non-zero Walsh–Hadamard coefficients of a long signal from few of its samples.
//!
//! Paper:    Li, Bradley, Pawar, Ramchandran, The SPRIGHT Algorithm for Robust Sparse Hadamard Transforms
//!           (A Fast and Robust Framework for Sparse Walsh–Hadamard Transform), 2015, arXiv 1508.06336.
//!           Reference code: UCBASiCS/SPRIGHT.
//! Problem:  x\[m\] = Σ_k X\[k\]·(−1)^⟨m, k⟩ (+ noise of variance σ²) for m in 0..2ⁿ, n ≤ 63, with K non-zero
//!           X\[k\]; ⟨m, k⟩ is the parity of `m & k`, X is not normalised: X = Hx/2ⁿ. x is given by an oracle
//!           that is asked for values at indices, each at most once.
//! Method:   1. `groups` random n × b matrices M_c over GF(2), full rank, and offsets d_{c,p}. 2. the transform
//!           of x\[M_c·l ⊕ d_{c,p}\], l < B = 2ᵇ, times 1/B: bin j holds Σ_{k: M_cᵀk = j} X\[k\]·(−1)^⟨d_{c,p}, k⟩
//!           plus noise of variance ν² = σ²/B. 3. a bin is empty when its mean square is at most (1 + γ)ν²;
//!           otherwise one k is read off the offsets, a is the matched filter, and the bin is a single one when
//!           Mᵀk = j, the rest is at most (1 + γ)ν² and |a| is above the floor. 4. all single ones of a
//!           pass are merged and subtracted from every group; again with the bins that changed. 5. with bins left
//!           over, b grows by one; the samples of the smaller grid are used again. 6. least squares over
//!           all bins on the support found, by conjugate gradients.
//! Cost:     groups·P·B samples at most, P = n + 1 (noiseless); O(groups·P·B·log B + K·groups·P) time. Never 2ⁿ.
//! Variants: [`Delays`] (noiseless; NSO repetition; SO coded; MLE search), [`Subsampling`] (random, blocks).
//! Differs:  from the paper: M may be random, which also works on low-degree supports; SO is a reconstruction
//!           with a tail-biting convolutional code of length seven, decoded by maximum likelihood for the
//!           shift of either sign; MLE searches with a transform of size 2^(n−b).
//!           From the reference code: the scale of X, ties vote for bit 0, the hash is verified, and γ is raised to three standard
//!           deviations of the test when there are few offsets. Peeling runs until nothing is found.
//! Choose:   [`walsh_hadamard`](crate::sketch::walsh_hadamard) when all 2ⁿ samples are at hand and n is below
//!           about 20, or the spectrum is not sparse. `Delays::Noiseless` amplifies noise; use NSO from 5 dB, more chains
//!           below; SO reads about half of what NSO does at 10 dB.
//! Fails on: n outside 1..=63, sizes beyond memory → `Setting`; samples that are not finite → `NonFinite`. A
//!           spectrum with more coefficients than the bins can separate → status `Stalled` and
//!           [`Spectrum::unresolved_bins`]. Recovery is with high probability over the draw, for uniformly random
//!           supports; exact failure rates at small K are measured, not proved. Evidence: `spright.json`, repro `spright`.

mod code;
mod hashing;

pub use code::Rate;

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rarefy_sparsity::{Maturity, MethodInfo};
use serde::{Deserialize, Serialize};

use crate::error::{check_finite, check_setting};
use crate::{Monitor, Residual, Solution, SolveError, Status};
use hashing::{Group, locate};

/// The registry row.
pub const INFO: MethodInfo = MethodInfo {
    slug: "spright",
    name: "SPRIGHT",
    family: "solver",
    paper: "Li et al., 2015, arXiv 1508.06336",
    command: "solve wht --method spright",
    maturity: Maturity::Preview,
    summary: "sparse Walsh-Hadamard transform from few samples, by hashing into bins and peeling",
};

pub(crate) fn parity(v: u64) -> bool {
    v.count_ones() % 2 == 1
}

/// Which offsets each grid is read at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delays {
    /// 0 and the n unit vectors: exact samples only.
    Noiseless,
    /// Near-sample-optimal: `chains` times a random r and r ⊕ e_q; soft majority per bit.
    Nso {
        /// Number of r, at least 1. Paper: 3 at 10 dB, 6 at 5 dB and below.
        chains: usize,
    },
    /// Sample-optimal: the code bits of the index, and `checks` random offsets. Needs n ≥ 7.
    So {
        /// Rate of the code.
        rate: Rate,
        /// Random offsets, at least 1.
        checks: usize,
    },
    /// Random offsets; all 2^(n−b) indices of a bin are tried. Needs n − b ≤ 24.
    Mle {
        /// Number of offsets, at least 2.
        offsets: usize,
    },
}

/// Which grids are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subsampling {
    /// Random full-rank matrices: right for any support.
    Random,
    /// b consecutive bits per group, as in the reference code: fails on low-degree supports.
    Blocks,
}

/// Settings of SPRIGHT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SprightSettings {
    /// Expected number of non-zero coefficients, at least 1; sets the first number of bins.
    pub sparsity: usize,
    /// b: log₂ of the bins per group, in 0..=min(n, 24). None: ⌈log₂ sparsity⌉, and more when bins stay unresolved.
    pub bin_bits: Option<u32>,
    /// How often b may grow by one when it is not given, at most 8. Ours: 3.
    pub growth: u32,
    /// Number of groups, in 1..=16. Paper: 3.
    pub groups: u32,
    /// Offsets. Default: exact samples.
    pub delays: Delays,
    /// Grids. Ours: random.
    pub subsampling: Subsampling,
    /// Standard deviation σ of the noise of a sample, above 0. None: estimated from the quiet bins (not looked at for `Noiseless`).
    pub sigma: Option<f64>,
    /// γ of the tests of a bin, above 0. Reference code: 0.5.
    pub gamma: f64,
    /// Amplitude ρ when all coefficients are ±ρ, above 0; values are then snapped.
    pub amplitude: Option<f64>,
    /// Limit of peeling passes, at least 1. Reference code: 50.
    pub max_passes: usize,
    /// Whether values are refined by least squares over all bins.
    pub refine: bool,
    /// Seed of grids and offsets.
    pub seed: u64,
}

impl Default for SprightSettings {
    fn default() -> Self {
        Self {
            sparsity: 32,
            bin_bits: None,
            growth: 3,
            groups: 3,
            delays: Delays::Noiseless,
            subsampling: Subsampling::Random,
            sigma: None,
            gamma: 0.5,
            amplitude: None,
            max_passes: 50,
            refine: true,
            seed: 0,
        }
    }
}

impl SprightSettings {
    /// Checks every field against its range, for signals of 2ⁿ samples.
    ///
    /// # Errors
    /// [`SolveError::Setting`].
    pub fn validate(&self, n: u32) -> Result<(), SolveError> {
        let positive = |v: Option<f64>| v.is_none_or(|v| v > 0.0 && v.is_finite());
        check_setting((1..=63).contains(&n), "n", n, "in 1..=63")?;
        check_setting((1..=1 << 24).contains(&self.sparsity), "sparsity", self.sparsity, "in 1..=2^24")?;
        let (least, most) = self.bits(n);
        if let Some(b) = self.bin_bits {
            check_setting(b <= n.min(24), "bin_bits", b, "in 0..=min(n, 24)")?;
        }
        check_setting(self.growth <= 8, "growth", self.growth, "in 0..=8")?;
        check_setting((1..=16).contains(&self.groups), "groups", self.groups, "in 1..=16")?;
        check_setting(self.gamma > 0.0 && self.gamma.is_finite(), "gamma", self.gamma, "above 0")?;
        check_setting(positive(self.sigma), "sigma", self.sigma.unwrap_or(0.0), "above 0")?;
        check_setting(positive(self.amplitude), "amplitude", self.amplitude.unwrap_or(0.0), "above 0")?;
        check_setting(self.max_passes >= 1, "max_passes", self.max_passes, "at least 1")?;
        let offsets = match self.delays {
            Delays::Noiseless => n as usize + 1,
            Delays::Nso { chains } => {
                check_setting((1..=1024).contains(&chains), "chains", chains, "in 1..=1024")?;
                chains * (n as usize + 1)
            }
            Delays::So { checks, .. } => {
                check_setting(n >= 7, "n", n, "at least 7 for coded offsets")?;
                check_setting((1..=1 << 16).contains(&checks), "checks", checks, "in 1..=65536")?;
                3 * n as usize + checks
            }
            Delays::Mle { offsets } => {
                check_setting((2..=1 << 16).contains(&offsets), "offsets", offsets, "in 2..=65536")?;
                check_setting(n - least <= 24, "bin_bits", least, "at least n − 24 for the search")?;
                offsets
            }
        };
        let reads = (offsets as u64 * u64::from(self.groups)) << most;
        check_setting(reads <= 1 << 30, "samples", reads, "groups · offsets · bins at most 2^30")
    }

    /// The first and the last number of bits.
    fn bits(&self, n: u32) -> (u32, u32) {
        let cap = n.min(24);
        match self.bin_bits {
            Some(b) => (b.min(cap), b.min(cap)),
            None => {
                let first = self.sparsity.next_power_of_two().ilog2().min(cap);
                (first, (first + self.growth).min(cap))
            }
        }
    }
}

/// The coefficients found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Spectrum {
    /// Index and value of the non-zero coefficients, by index.
    pub entries: Vec<(u64, f64)>,
    /// Number of samples asked of the oracle; no index was asked for twice.
    pub samples_used: usize,
    /// Bins that still hold something unexplained. Not 0: raise `bin_bits` or `groups`.
    pub unresolved_bins: usize,
    /// log₂ of the bins per group in the last round.
    pub bin_bits: u32,
    /// Noise of a sample that the tests assumed; 0 for exact samples.
    pub sigma: f64,
}

/// Gives the samples at the indices: `oracle(indices, values)`.
pub type Oracle<'a> = &'a mut dyn FnMut(&[u64], &mut [f64]);

/// Finds the non-zero coefficients of the signal of 2ⁿ samples behind `oracle`.
///
/// The objective of the solution is the mean square of what the bins hold in the end.
///
/// ```
/// use rarefy_solve::{Monitor, methods::spright::{SprightSettings, solve}};
/// // x[m] = 2·(−1)^⟨m, 5⟩ − (−1)^⟨m, 2⁴⁰⟩ for m below 2⁵⁰.
/// let sign = |m: u64, k: u64| if (m & k).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
/// let mut oracle = |at: &[u64], x: &mut [f64]| {
///     at.iter().zip(x).for_each(|(m, x)| *x = 2.0 * sign(*m, 5) - sign(*m, 1 << 40));
/// };
/// let settings = SprightSettings { sparsity: 2, ..Default::default() };
/// let found = solve(50, &mut oracle, &settings, &mut Monitor::silent())?.x;
/// assert_eq!(found.entries.iter().map(|e| e.0).collect::<Vec<_>>(), [5, 1 << 40]);
/// # Ok::<(), rarefy_solve::SolveError>(())
/// ```
///
/// # Errors
/// [`SolveError::Setting`], and [`SolveError::NonFinite`] when a sample is not finite.
pub fn solve(
    n: u32,
    oracle: Oracle<'_>,
    settings: &SprightSettings,
    monitor: &mut Monitor<'_>,
) -> Result<Solution<Spectrum>, SolveError> {
    settings.validate(n)?;
    let (first, last) = settings.bits(n);
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut groups: Vec<Group> = (0..settings.groups)
        .map(|c| Group::draw(n, c, last, settings.subsampling, settings.delays, &mut rng))
        .collect();
    let mut known: Vec<(u64, f64)> = vec![];
    let (mut trace, mut passes) = (vec![], 0);
    let mut bits = first;
    loop {
        groups.iter_mut().for_each(|g| g.bits = bits);
        read(&mut groups, oracle, &mut known)?;
        let tests = Tests::new(n, settings, &groups);
        if !tests.report.is_finite() {
            return Err(SolveError::breakdown(
                "SPRIGHT",
                "the energy of a bin overflowed",
                "scale the samples to at most 1e140",
            ));
        }
        let mut peeling = Peeling { groups: &mut groups, tests: &tests, entries: BTreeMap::new() };
        let mut active: Vec<(usize, usize)> =
            (0..settings.groups as usize).flat_map(|c| (0..1 << bits).map(move |j| (c, j))).collect();
        let mut stop = None;
        for _ in 0..settings.max_passes {
            active = peeling.pass(&active);
            passes += 1;
            let left = active.len() as f64;
            if let std::ops::ControlFlow::Break(status) =
                monitor.record(&mut trace, passes, peeling.mean_square(), left)
            {
                stop = Some(status);
                break;
            }
            if active.is_empty() {
                break;
            }
        }
        let unresolved = peeling.unresolved();
        if unresolved > 0 && bits < last && stop.is_none() {
            bits += 1;
            continue;
        }
        if settings.refine && settings.amplitude.is_none() {
            peeling.refine();
        }
        let status = match stop {
            Some(status) => status,
            None if unresolved == 0 => Status::Converged,
            None if !active.is_empty() => Status::MaxIterations,
            None => Status::Stalled,
        };
        let objective = peeling.mean_square();
        // What was taken for a single one and taken back later is near zero.
        let entries = peeling.entries.into_iter().filter(|e| e.1.abs() > 0.5 * tests.floor).collect();
        let x = Spectrum {
            entries,
            samples_used: known.len(),
            unresolved_bins: unresolved,
            bin_bits: bits,
            sigma: tests.sigma,
        };
        let residuals = vec![
            Residual { name: "unresolved bins", value: unresolved as f64 },
            Residual { name: "root mean square of the bins", value: objective.sqrt() },
        ];
        let seconds = monitor.seconds();
        return Ok(Solution { x, status, objective, residuals, iterations: passes, trace, seconds });
    }
}

/// Asks for what is not known yet and fills the bins.
fn read(groups: &mut [Group], oracle: Oracle<'_>, known: &mut Vec<(u64, f64)>) -> Result<(), SolveError> {
    let mut wanted: Vec<u64> = groups.iter().flat_map(Group::indices).collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted.retain(|i| known.binary_search_by_key(i, |k| k.0).is_err());
    let mut values = vec![0.0; wanted.len()];
    if !wanted.is_empty() {
        oracle(&wanted, &mut values);
    }
    check_finite("samples", &values)?;
    known.extend(wanted.into_iter().zip(values));
    known.sort_unstable_by_key(|k| k.0);
    for group in groups {
        let indices = group.indices();
        let sample = |i: u64| known.binary_search_by_key(&i, |k| k.0).map_or(0.0, |at| known[at].1);
        group.fill(indices.map(sample));
    }
    Ok(())
}

/// The thresholds of the bin tests.
#[derive(Debug)]
struct Tests<'a> {
    n: u32,
    settings: &'a SprightSettings,
    sigma: f64,
    /// Mean square up to which a bin, or what is left of it, is noise.
    noise: f64,
    /// Mean square up to which a bin that is left over is not reported.
    report: f64,
    /// Least |a|.
    floor: f64,
}

impl<'a> Tests<'a> {
    fn new(n: u32, settings: &'a SprightSettings, groups: &[Group]) -> Self {
        let bins = 1 << groups[0].bits;
        let offsets = groups[0].delays.len() as f64;
        let mut energies: Vec<f64> = groups.iter().flat_map(|g| (0..bins).map(|j| g.energy(j))).collect();
        energies.sort_unstable_by(f64::total_cmp);
        let largest = energies.last().copied().unwrap_or(0.0);
        let rounding = 1e-22 * largest;
        if settings.delays == Delays::Noiseless {
            return Self {
                n,
                settings,
                sigma: 0.0,
                noise: rounding,
                report: rounding,
                floor: rounding.sqrt(),
            };
        }
        let nu_sq = match settings.sigma {
            Some(sigma) => sigma * sigma / bins as f64,
            None => quiet_energy(&energies),
        };
        // The mean square of P normal values has a relative spread of √(2/P).
        let spread = (2.0 / offsets).sqrt();
        // What the best of 2ⁿ signatures finds in noise alone.
        let lucky = (nu_sq * 2.0 * f64::from(n) * std::f64::consts::LN_2 / offsets).sqrt();
        let floor = settings.amplitude.map_or(lucky, |rho| 0.5 * rho);
        Self {
            n,
            settings,
            sigma: (nu_sq * bins as f64).sqrt(),
            noise: rounding + (1.0 + settings.gamma.max(3.0 * spread)) * nu_sq,
            report: rounding + (1.0 + settings.gamma.max(6.0 * spread)) * nu_sq,
            floor: floor + rounding.sqrt(),
        }
    }

    /// The single coefficient that explains the bin, if there is one.
    fn single(&self, group: &Group, bin: usize) -> Option<(u64, f64)> {
        if group.energy(bin) <= self.noise {
            return None;
        }
        let u = group.observed(bin);
        let mut best: Option<(f64, u64, f64)> = None;
        for k in locate(group, self.n, bin, self.settings.delays) {
            if group.bin(k) != bin {
                continue;
            }
            let mut a = group.matched(k) / u.len() as f64;
            if a.abs() <= self.floor {
                continue;
            }
            if let Some(rho) = self.settings.amplitude {
                a = rho.copysign(a);
            }
            let off = |(v, d): (&f64, &u64)| (v - if parity(d & k) { -a } else { a }).powi(2);
            let rest = u.iter().zip(&group.delays).map(off).sum::<f64>() / u.len() as f64;
            if rest <= self.noise && best.is_none_or(|b| rest < b.0) {
                best = Some((rest, k, a));
            }
        }
        best.map(|(_, k, a)| (k, a))
    }
}

/// Mean of the sorted energies up to the first jump of ten; the lower half when there is none.
fn quiet_energy(sorted: &[f64]) -> f64 {
    let jump = sorted.windows(2).position(|w| w[1] >= 10.0 * w[0]).map_or(sorted.len(), |i| i + 1);
    let quiet = &sorted[..if jump == sorted.len() { sorted.len().div_ceil(2) } else { jump }];
    quiet.iter().sum::<f64>() / quiet.len() as f64
}

struct Peeling<'a, 'b> {
    groups: &'a mut [Group],
    tests: &'a Tests<'b>,
    entries: BTreeMap<u64, f64>,
}

impl Peeling<'_, '_> {
    /// Tests the active bins, subtracts what was found; returns the bins that changed.
    fn pass(&mut self, active: &[(usize, usize)]) -> Vec<(usize, usize)> {
        let mut found: Vec<(u64, f64)> =
            active.iter().filter_map(|(c, bin)| self.tests.single(&self.groups[*c], *bin)).collect();
        found.sort_by_key(|f| f.0);
        let mut changed = vec![];
        for same in found.chunk_by(|a, b| a.0 == b.0) {
            let k = same[0].0;
            let a = same.iter().map(|f| f.1).sum::<f64>() / same.len() as f64;
            *self.entries.entry(k).or_default() += a;
            changed.extend(self.groups.iter_mut().enumerate().map(|(c, group)| (c, group.add(k, -a))));
        }
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    fn energies(&self) -> impl Iterator<Item = f64> {
        self.groups.iter().flat_map(|g| (0..1 << g.bits).map(|j| g.energy(j)))
    }

    fn mean_square(&self) -> f64 {
        self.energies().sum::<f64>() / (self.groups.len() << self.groups[0].bits) as f64
    }

    fn unresolved(&self) -> usize {
        self.energies().filter(|e| *e > self.tests.report).count()
    }

    /// Least squares over all bins on the support, from where peeling ended.
    fn refine(&mut self) {
        let support: Vec<u64> = self.entries.keys().copied().collect();
        let gradient = |groups: &[Group]| -> Vec<f64> {
            support.iter().map(|k| groups.iter().map(|g| g.matched(*k)).sum()).collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut r = gradient(self.groups);
        let mut direction = r.clone();
        let mut rr = dot(&r, &r);
        let offsets: usize = self.groups.iter().map(|g| g.delays.len()).sum();
        let scale = (offsets as f64).powi(2) * self.entries.values().map(|v| v * v).sum::<f64>();
        for _ in 0..30 {
            // What is left to correct is below 1e-14 of the values.
            if rr <= 1e-28 * scale || rr == 0.0 {
                break;
            }
            // AᵀA·direction, in bins of their own.
            let mut image = self.groups.to_vec();
            image.iter_mut().for_each(|g| g.bins.fill(0.0));
            for (k, v) in support.iter().zip(&direction) {
                image.iter_mut().for_each(|g| {
                    g.add(*k, *v);
                });
            }
            let curvature: f64 = image.iter().flat_map(|g| &g.bins).map(|v| v * v).sum();
            if curvature <= 0.0 {
                break;
            }
            let step = rr / curvature;
            for (k, v) in support.iter().zip(&direction) {
                *self.entries.entry(*k).or_default() += step * v;
                self.groups.iter_mut().for_each(|g| {
                    g.add(*k, -step * v);
                });
            }
            r = gradient(self.groups);
            let next = dot(&r, &r);
            direction.iter_mut().zip(&r).for_each(|(d, r)| *d = r + next / rr * *d);
            rr = next;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn groups(settings: &SprightSettings, n: u32, truth: &[(u64, f64)]) -> Vec<Group> {
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        let (bits, _) = settings.bits(n);
        (0..settings.groups)
            .map(|c| {
                let mut group = Group::draw(n, c, bits, settings.subsampling, settings.delays, &mut rng);
                let at = |m: u64| truth.iter().map(|(k, a)| if parity(m & k) { -a } else { *a }).sum();
                let samples: Vec<f64> = group.indices().map(at).collect();
                group.fill(samples.into_iter());
                group
            })
            .collect()
    }

    #[test]
    fn the_order_of_peeling_does_not_change_the_answer() {
        let truth: Vec<(u64, f64)> = (0..12).map(|i| (i * i * 37 % 4096, 1.0 + i as f64 / 8.0)).collect();
        let settings = SprightSettings { bin_bits: Some(4), ..Default::default() };
        let fresh = groups(&settings, 12, &truth);
        let mut answers = vec![];
        for order in 0..4 {
            let mut groups = fresh.clone();
            let tests = Tests::new(12, &settings, &groups);
            let mut peeling = Peeling { groups: &mut groups, tests: &tests, entries: BTreeMap::new() };
            let mut bins: Vec<(usize, usize)> = (0..3).flat_map(|c| (0..16).map(move |j| (c, j))).collect();
            if order % 2 == 1 {
                bins.reverse();
            }
            for _ in 0..20 {
                if order < 2 {
                    peeling.pass(&bins);
                } else {
                    // One bin at a time: each sees what was subtracted before.
                    bins.iter().for_each(|b| drop(peeling.pass(&[*b])));
                }
            }
            assert!(peeling.energies().all(|e| e < 1e-18), "order {order}");
            answers.push(peeling.entries);
        }
        let mut truth = truth;
        truth.sort_unstable_by_key(|t| t.0);
        for entries in answers {
            assert!(entries.keys().eq(truth.iter().map(|t| &t.0)));
            assert!(entries.values().zip(&truth).all(|(a, t)| (a - t.1).abs() < 1e-12));
        }
    }

    #[test]
    fn samples_are_counted_without_repeats() {
        for delays in [Delays::Noiseless, Delays::Nso { chains: 2 }, Delays::Mle { offsets: 9 }] {
            let settings = SprightSettings { bin_bits: Some(4), delays, sparsity: 3, ..Default::default() };
            let mut zero = |_: &[u64], x: &mut [f64]| x.fill(0.0);
            let used = solve(12, &mut zero, &settings, &mut Monitor::silent()).unwrap().x.samples_used;
            let all: Vec<u64> = groups(&settings, 12, &[]).iter().flat_map(Group::indices).collect();
            let mut distinct = all.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(used, distinct.len());
            assert_eq!(all.len(), 3 * 16 * groups(&settings, 12, &[])[0].delays.len());
        }
    }
}
