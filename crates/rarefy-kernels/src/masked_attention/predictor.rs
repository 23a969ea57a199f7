//! The low-rank connectivity predictor with a sparse basis.

use super::gemm::{exp_row, gemm};
use crate::error::{at_least, length, product};
use crate::lanes::{Job, LANES, Lanes, dispatch};
use crate::{Isa, KernelError};

const NAME: &str = "mask-predictor";

/// What the predictor keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PredictorSettings {
    /// Keys of each query, `ceil(rho · n)`; 1 to `n`.
    pub kept: usize,
    /// Largest coefficients kept of each query; 8 in the reference.
    pub coefficients: usize,
    /// Factor before the softmax of the coefficients; the reference uses `heads^-1/2`.
    pub scale: f32,
}

/// The sparse basis `|W_up|ᵀ`: for each of `n'` basis vectors the tokens it touches.
#[derive(Debug, Clone)]
pub struct Basis {
    n: usize,
    starts: Vec<u32>,
    tokens: Vec<u32>,
    values: Vec<f32>,
}

impl Basis {
    /// From `w_up[n][basis]`: magnitudes above `threshold` (0.02 in the reference).
    ///
    /// # Errors
    /// [`KernelError::Length`] when `w_up` has not `n * basis` elements; [`KernelError::Argument`] for numbers that are not finite or a
    /// negative threshold; [`KernelError::TooLarge`].
    pub fn new(w_up: &[f32], n: usize, basis: usize, threshold: f32) -> Result<Self, KernelError> {
        length(NAME, "w_up", product(NAME, n, basis)?, w_up.len())?;
        let (mut starts, mut tokens, mut values) = (vec![0], Vec::new(), Vec::new());
        if !(threshold.is_finite() && threshold >= 0.0 && w_up.iter().all(|w| w.is_finite())) {
            return Err(KernelError::Argument {
                kernel: NAME,
                argument: "threshold and w_up",
                value: threshold.to_string(),
                allowed: "finite numbers, the threshold at least 0",
            });
        }
        if u32::try_from(w_up.len()).is_err() {
            return Err(KernelError::TooLarge { kernel: NAME, a: n, b: basis });
        }
        for b in 0..basis {
            for t in 0..n {
                let v = w_up[t * basis + b].abs();
                if v > threshold {
                    tokens.push(t as u32);
                    values.push(v);
                }
            }
            starts.push(tokens.len() as u32);
        }
        Ok(Self { n, starts, tokens, values })
    }

    /// Share of entries kept.
    pub fn density(&self) -> f64 {
        self.values.len() as f64 / ((self.starts.len() - 1) * self.n).max(1) as f64
    }

    fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Columns of the padded products.
    fn stride(&self) -> usize {
        self.len().next_multiple_of(LANES)
    }
}

/// Predictor of one layer: projections of queries and keys to `d_low`, projection of tokens to the basis, and the basis.
#[derive(Debug, Clone)]
pub struct Predictor {
    d: usize,
    d_low: usize,
    /// `[2][d][d_low]`, transposed for the product, and `[2][d_low]`.
    projections: Vec<f32>,
    biases: Vec<f32>,
    /// `[n][basis]`, rows padded with zeros to whole vectors.
    w_down: Vec<f32>,
    basis: Basis,
    settings: PredictorSettings,
}

impl Predictor {
    /// Takes `p_q` and `p_k` as `(weight[d_low][d], bias[d_low])`, and `w_down[n][n']`.
    ///
    /// # Errors
    /// [`KernelError::Length`] and [`KernelError::Argument`] for sizes and settings that do not fit.
    pub fn new(
        p_q: (&[f32], &[f32]),
        p_k: (&[f32], &[f32]),
        d: usize,
        w_down: &[f32],
        basis: Basis,
        settings: PredictorSettings,
    ) -> Result<Self, KernelError> {
        let d_low = p_q.1.len();
        let mut projections = Vec::new();
        for (weight, bias) in [p_q, p_k] {
            length(NAME, "projection", product(NAME, d_low, d)?, weight.len())?;
            length(NAME, "bias", d_low, bias.len())?;
            projections.extend((0..d * d_low).map(|i| weight[i % d_low * d + i / d_low]));
        }
        length(NAME, "w_down", product(NAME, basis.n, basis.len())?, w_down.len())?;
        let bad = |argument, value: usize, allowed| {
            Err(KernelError::Argument { kernel: NAME, argument, value: value.to_string(), allowed })
        };
        if settings.kept == 0 || settings.kept > basis.n {
            return bad("kept", settings.kept, "1 to n");
        }
        if settings.coefficients == 0 || settings.coefficients > basis.len() {
            return bad("coefficients", settings.coefficients, "1 to the size of the basis");
        }
        let biases = [p_q.1, p_k.1].concat();
        let mut padded = vec![0.0; basis.n * basis.stride()];
        for (line, row) in padded.chunks_exact_mut(basis.stride()).zip(w_down.chunks_exact(basis.len())) {
            line[..row.len()].copy_from_slice(row);
        }
        Ok(Self { d, d_low, projections, biases, w_down: padded, basis, settings })
    }

    /// Tokens.
    pub fn n(&self) -> usize {
        self.basis.n
    }

    /// Keys in the lists of all queries: `n` for the first (CLS), `kept` for each other.
    pub fn list_len(&self) -> usize {
        let n = self.basis.n;
        if n == 0 { 0 } else { n + (n - 1) * self.settings.kept }
    }

    /// Elements of scratch for [`Predictor::predict`].
    pub fn scratch_len(&self) -> usize {
        let (n, b) = (self.basis.n, self.basis.stride());
        2 * n * self.d_low + self.d_low * b + n * b + 3 * n + 1
    }

    /// Writes the keys of every query, `starts[n + 1]` and `keys[list_len]`, each list ascending.
    ///
    /// Token 0 (CLS) looks at everything. Every other token keeps the `kept` largest entries of its row of `A~ = C · basis`; equal ones by
    /// index, but itself and CLS first, as rows of `A~` hold many exact zeros.
    ///
    /// # Roofline
    /// `n (2 d d' + 2 d' n')` multiply-adds at the rate of dense products from cache, then per query `n'` exponentials, a scan for the largest
    /// coefficients, `8 n · density` scattered additions, and a search of the cut among the entries that are not zero.
    ///
    /// # Errors
    /// [`KernelError::Length`] for sizes that do not fit.
    pub fn predict(
        &self,
        q: &[f32],
        k: &[f32],
        starts: &mut [u32],
        keys: &mut [u32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        self.predict_with(Isa::detect(), q, k, starts, keys, scratch)
    }

    /// [`Predictor::predict`] on a chosen code path.
    ///
    /// # Errors
    /// Those of `predict`, and [`KernelError::Isa`] when this CPU lacks the path.
    pub fn predict_with(
        &self,
        isa: Isa,
        q: &[f32],
        k: &[f32],
        starts: &mut [u32],
        keys: &mut [u32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        isa.require()?;
        let expected = product(NAME, self.basis.n, self.d)?;
        length(NAME, "q", expected, q.len())?;
        length(NAME, "k", expected, k.len())?;
        length(NAME, "starts", self.basis.n + 1, starts.len())?;
        length(NAME, "keys", self.list_len(), keys.len())?;
        at_least(NAME, "scratch", self.scratch_len(), scratch.len())?;
        dispatch(isa, Predict { p: self, q, k, starts, keys, scratch });
        Ok(())
    }
}

struct Predict<'a> {
    p: &'a Predictor,
    q: &'a [f32],
    k: &'a [f32],
    starts: &'a mut [u32],
    keys: &'a mut [u32],
    scratch: &'a mut [f32],
}

impl Job for Predict<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Predict { p, q, k, starts, keys, scratch } = self;
        let (n, b, low, kept) = (p.basis.n, p.basis.stride(), p.d_low, p.settings.kept);
        starts[0] = 0;
        if n == 0 {
            return;
        }
        let (small, rest) = scratch.split_at_mut(2 * n * low);
        let (kd, rest) = rest.split_at_mut(low * b);
        let (c, rest) = rest.split_at_mut(n * b);
        for (side, (x, out)) in [q, k].into_iter().zip(small.chunks_exact_mut((n * low).max(1))).enumerate() {
            for row in out.chunks_exact_mut(low.max(1)) {
                row.copy_from_slice(&p.biases[side * low..(side + 1) * low]);
            }
            gemm(l, (n, p.d, low), x, (p.d, 1), &p.projections[side * p.d * low..], low, out, low);
        }
        let (small_q, small_k) = small.split_at(n * low);
        kd.fill(0.0);
        gemm(l, (low, n, b), small_k, (1, low), &p.w_down, b, kd, b);
        c.fill(0.0);
        gemm(l, (n, low, b), small_q, (low, 1), kd, b, c, b);

        keys[..n].iter_mut().enumerate().for_each(|(j, key)| *key = j as u32);
        starts[1] = n as u32;
        let (row, rest) = rest.split_at_mut(n);
        // One more than tokens: an entry that is not new is written behind the last and not counted.
        let (touched, packed) = rest.split_at_mut(n + 1);
        let touched: &mut [u32] = bytemuck::cast_slice_mut(touched);
        row.fill(0.0);
        for i in 1..n {
            let c = &mut c[i * b..][..p.basis.len()];
            let sum = exp_row(l, c, p.settings.scale);
            let mut found = 0;
            each_largest(c, p.settings.coefficients, |at| {
                let f = c[at] / sum;
                let range = p.basis.starts[at] as usize..p.basis.starts[at + 1] as usize;
                for (t, v) in p.basis.tokens[range.clone()].iter().zip(&p.basis.values[range]) {
                    let entry = &mut row[*t as usize];
                    touched[found.min(n)] = *t;
                    // Entries are positive, so it is new when it was zero and is no longer: a coefficient may vanish beside the
                    // largest, and adds nothing then.
                    let was_zero = *entry == 0.0;
                    *entry += f * v;
                    found += usize::from(was_zero && *entry != 0.0);
                }
            });
            let list = &mut keys[n + (i - 1) * kept..][..kept];
            choose(l, i, row, &touched[..found.min(n)], packed, list);
            starts[i + 1] = (n + i * kept) as u32;
            touched[..found.min(n)].iter().for_each(|t| row[*t as usize] = 0.0);
        }
    }
}

/// Calls `f` with the positions of the `count` largest of `c`, equal ones by index.
#[inline(always)]
fn each_largest(c: &[f32], count: usize, mut f: impl FnMut(usize)) {
    const ROOM: usize = 32;
    if count >= c.len() {
        (0..c.len()).for_each(f);
        return;
    }
    if count > ROOM {
        // Beyond what fits the stack: the definition, in quadratic time.
        for (i, v) in c.iter().enumerate() {
            let before = c.iter().enumerate().filter(|(j, w)| **w > *v || (**w == *v && *j < i)).count();
            if before < count {
                f(i);
            }
        }
        return;
    }
    let mut best = [(f32::NEG_INFINITY, usize::MAX); ROOM];
    let best = &mut best[..count];
    for (i, v) in c.iter().enumerate() {
        if *v > best[count - 1].0 {
            let mut at = count - 1;
            while at > 0 && *v > best[at - 1].0 {
                best[at] = best[at - 1];
                at -= 1;
            }
            best[at] = (*v, i);
        }
    }
    best.iter().filter(|(_, i)| *i < c.len()).for_each(|(_, i)| f(*i));
}

/// The `list.len()` largest entries of `row`, of which only those at `touched` are not zero; ascending.
#[inline(always)]
fn choose<L: Lanes>(l: L, own: usize, row: &[f32], touched: &[u32], packed: &mut [f32], list: &mut [u32]) {
    let kept = list.len();
    let packed: &mut [u32] = bytemuck::cast_slice_mut(packed);
    for (p, t) in packed.iter_mut().zip(touched) {
        *p = row[*t as usize].to_bits();
    }
    let packed = &packed[..touched.len()];
    let positive = packed.len();
    // `cut`: the bits of the smallest entry kept; `ties`: how many of those equal to it. Positive floats are ordered by their bits.
    let (cut, mut ties) = if positive <= kept { (0, kept - positive) } else { search(l, packed, kept) };
    // Ties go to the query itself and CLS first, then by index.
    let tied = |j: usize| row[j].to_bits() == cut;
    let mut favoured = [false; 2];
    for (favour, j) in favoured.iter_mut().zip([own, 0]) {
        if tied(j) && ties > 0 {
            *favour = true;
            ties -= 1;
        }
    }
    let bits: &[u32] = bytemuck::cast_slice(row);
    let mut at = 0;
    let mut put = |j: usize| {
        if let Some(key) = list.get_mut(at) {
            *key = j as u32;
        }
        at += 1;
    };
    let mut is_tie_taken = |j: usize| {
        if j == own {
            return favoured[0];
        }
        if j == 0 {
            return favoured[1];
        }
        let taken = ties > 0;
        ties -= usize::from(taken);
        taken
    };
    let (blocks, rest) = bits.as_chunks::<LANES>();
    for (b, block) in blocks.iter().enumerate() {
        let above = l.above(block, cut);
        let mut mask = if cut == 0 { u16::MAX } else { l.above(block, cut - 1) };
        while mask != 0 {
            let lane = mask.trailing_zeros() as usize;
            let j = b * LANES + lane;
            if above >> lane & 1 == 1 || is_tie_taken(j) {
                put(j);
            }
            mask &= mask - 1;
        }
    }
    for (j, v) in bits.iter().enumerate().skip(n_full(rest, bits)) {
        if *v > cut || (*v == cut && is_tie_taken(j)) {
            put(j);
        }
    }
}

/// Where the rest of `bits` begins.
#[inline(always)]
fn n_full(rest: &[u32], bits: &[u32]) -> usize {
    bits.len() - rest.len()
}

/// The bits of the `kept`-th largest of `bits` and how many equal to it are among the `kept` largest, by bisection.
#[inline(always)]
fn search<L: Lanes>(l: L, bits: &[u32], kept: usize) -> (u32, usize) {
    let most = bits.iter().copied().max().unwrap_or(0);
    let least = bits.iter().copied().min().unwrap_or(0);
    // Invariant: fewer than `kept` above `high`, at least `kept` at or above `low`.
    let (mut low, mut high) = (least, most);
    let mut over = 0;
    while low < high {
        let middle = low + (high - low) / 2;
        let count = count_above(l, bits, middle);
        if count == kept {
            // Exactly the wanted ones: the smallest of them is the cut, all of its equals included.
            let cut = bits.iter().copied().filter(|b| *b > middle).min().unwrap_or(middle);
            let equal = bits.iter().filter(|b| **b == cut).count();
            return (cut, equal);
        }
        if count < kept {
            (high, over) = (middle, count);
        } else {
            low = middle + 1;
        }
    }
    (low, kept - over)
}

/// How many of `bits` are above `cut`.
#[inline(always)]
fn count_above<L: Lanes>(l: L, bits: &[u32], cut: u32) -> usize {
    let (blocks, rest) = bits.as_chunks::<LANES>();
    let mut count = 0;
    for block in blocks {
        count += l.above(block, cut).count_ones() as usize;
    }
    for b in rest {
        count += usize::from(*b > cut);
    }
    count
}
