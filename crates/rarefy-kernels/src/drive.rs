//! What all kernels share: argument checks, packing of `x`, the split over threads, stores to `y`.

use std::ops::Range;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use crate::error::product;
use crate::{Isa, KernelError};

/// Rows of one panel, as in the bitmask format.
pub(crate) const PANEL: usize = rarefy_sparsity::formats::bitmask_panel::PANEL_ROWS;
/// Tokens of one pass over a panel, at most. AVX-512 keeps two accumulators of 16 rows per token: 24 of its 32
/// registers; AVX2 keeps four of 8 rows: 12 of its 16.
pub(crate) const MAX_TOKENS: usize = 12;
const MAX_TOKENS_AVX2: usize = 3;
/// Products of one weight and one activation below which a thread is not worth waking (about 10 µs of work).
pub(crate) const MIN_PRODUCTS_PER_THREAD: usize = 1 << 17;

/// A pool of `threads` threads.
pub(crate) fn pool(threads: usize) -> Result<rayon::ThreadPool, KernelError> {
    let refused = |e: rayon::ThreadPoolBuildError| KernelError::Threads { threads, reason: e.to_string() };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(refused)
}

/// One pass over one panel: 32 rows of the output for up to [`MAX_TOKENS`] tokens.
pub(crate) trait PanelKernel: Sync {
    /// Name of the kernel.
    const NAME: &'static str;
    /// Activations are packed in runs of this many columns: `[cols / GROUP][n][GROUP]`.
    const GROUP: usize;
    /// Rows of the weight.
    fn d_out(&self) -> usize;
    /// Columns of the weight, a multiple of `GROUP`.
    fn d_in(&self) -> usize;
    /// Bytes of the panels before panel `p`; a monotone cost used to split the work evenly.
    fn bytes_before(&self, p: usize) -> usize;
    /// Writes `tile[t * 32 + i] = Σ_c W[32 p + i, c] · x[t, c]` for `t < n`. `x` is packed, `n <= MAX_TOKENS`, `isa` is available.
    fn run(&self, isa: Isa, p: usize, x: &[f32], n: usize, tile: &mut [f32; PANEL * MAX_TOKENS]);
}

/// Scratch elements for `n` tokens: the packed copy of `x`, which one token does not need.
pub(crate) fn scratch_len(cols: usize, n: usize) -> usize {
    if n <= 1 { 0 } else { n.saturating_mul(cols) }
}

/// `y[n, rows] = x[n, cols] · Wᵀ`.
pub(crate) fn forward<K: PanelKernel>(
    kernel: &K,
    isa: Isa,
    x: &[f32],
    n: usize,
    y: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), KernelError> {
    let (rows, cols) = (kernel.d_out(), kernel.d_in());
    if !isa.is_available() {
        return Err(KernelError::Isa { isa, best: Isa::detect() });
    }
    let length = |array, expected, found| KernelError::Length { kernel: K::NAME, array, expected, found };
    let (x_len, y_len) = (product(K::NAME, n, cols)?, product(K::NAME, n, rows)?);
    if x.len() != x_len {
        return Err(length("x", x_len, x.len()));
    }
    if y.len() != y_len {
        return Err(length("y", y_len, y.len()));
    }
    let needed = scratch_len(cols, n);
    if scratch.len() < needed {
        return Err(length("scratch", needed, scratch.len()));
    }
    if n == 0 || rows == 0 {
        return Ok(());
    }

    let most = if isa == Isa::Avx2 { MAX_TOKENS_AVX2 } else { MAX_TOKENS };
    let passes = Passes { n, passes: n.div_ceil(most) };
    let packed: &[f32] = if n == 1 {
        x
    } else {
        for tokens in passes.iter() {
            let part = tokens.start * cols..tokens.end * cols;
            pack::<K>(&x[part.clone()], tokens.len(), cols, &mut scratch[part]);
        }
        &scratch[..needed]
    };

    let out = Out { y: y.as_mut_ptr(), rows, n };
    let panels = rows.div_ceil(PANEL);
    let work = |panels: Range<usize>| {
        let mut tile = [0.0; PANEL * MAX_TOKENS];
        for p in panels {
            for tokens in passes.iter() {
                kernel.run(isa, p, &packed[tokens.start * cols..tokens.end * cols], tokens.len(), &mut tile);
                // SAFETY: `y` has `n * rows` elements (checked above) and stays borrowed mutably by this function.
                // Panel `p` is visited by exactly one task, since the ranges of `split` are disjoint, and
                // `store` writes only to the rows of panel `p`.
                unsafe { out.store(p, tokens, &tile) };
            }
        }
    };
    let products = rows.saturating_mul(cols).saturating_mul(n);
    let tasks = rayon::current_num_threads().min(products / MIN_PRODUCTS_PER_THREAD).min(panels);
    if tasks <= 1 {
        work(0..panels);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(|task| work(split(kernel, panels, task, tasks)));
    }
    Ok(())
}

/// The panels of task `task` of `tasks`: consecutive, disjoint, together all panels, about equal in bytes.
fn split<K: PanelKernel>(kernel: &K, panels: usize, task: usize, tasks: usize) -> Range<usize> {
    let total = kernel.bytes_before(panels);
    let bound = |k: usize| {
        let wanted = (total as u128 * k as u128 / tasks as u128) as usize;
        let (mut low, mut high) = (0, panels);
        while low < high {
            let middle = low + (high - low) / 2;
            if kernel.bytes_before(middle) < wanted { low = middle + 1 } else { high = middle }
        }
        low
    };
    // Panels may cost nothing (all zero): the outer bounds are pinned so that none is lost.
    let begin = if task == 0 { 0 } else { bound(task) };
    let end = if task + 1 == tasks { panels } else { bound(task + 1) };
    begin..end.max(begin)
}

/// The passes over the tokens: `n` cut into `passes` nearly equal runs.
#[derive(Clone, Copy)]
struct Passes {
    n: usize,
    passes: usize,
}

impl Passes {
    fn iter(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.passes).map(move |i| self.n * i / self.passes..self.n * (i + 1) / self.passes)
    }
}

/// `x[n, cols]` to `[cols / GROUP][n][GROUP]`, so that one step of a kernel reads one run.
fn pack<K: PanelKernel>(x: &[f32], n: usize, cols: usize, out: &mut [f32]) {
    for t in 0..n {
        let line = &x[t * cols..(t + 1) * cols];
        for (g, run) in line.chunks_exact(K::GROUP).enumerate() {
            out[(g * n + t) * K::GROUP..][..K::GROUP].copy_from_slice(run);
        }
    }
}

/// `y[n, rows]`, written by several tasks at disjoint rows.
struct Out {
    y: *mut f32,
    rows: usize,
    n: usize,
}

// SAFETY: tasks write to disjoint rows only (see `forward`), so sharing the pointer races with nothing.
unsafe impl Sync for Out {}

impl Out {
    /// Copies the rows of panel `p` for `tokens` out of `tile`.
    ///
    /// # Safety
    /// `y` must be valid for `n * rows` elements, and nobody else may access the rows of panel `p` meanwhile.
    unsafe fn store(&self, p: usize, tokens: Range<usize>, tile: &[f32; PANEL * MAX_TOKENS]) {
        let first = p * PANEL;
        assert!(first < self.rows && tokens.end <= self.n && tokens.len() <= MAX_TOKENS);
        let height = PANEL.min(self.rows - first);
        for (i, t) in tokens.enumerate() {
            // SAFETY: `t < n` and `first + height <= rows`, so the destination lies in `y`; the source is a tile
            // of its own on the stack.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    tile[i * PANEL..].as_ptr(),
                    self.y.add(t * self.rows + first),
                    height,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Costs(Vec<usize>);
    impl PanelKernel for Costs {
        const NAME: &'static str = "costs";
        const GROUP: usize = 1;
        fn d_out(&self) -> usize {
            self.0.len() * PANEL
        }
        fn d_in(&self) -> usize {
            1
        }
        fn bytes_before(&self, p: usize) -> usize {
            self.0[..p].iter().sum()
        }
        fn run(&self, _: Isa, _: usize, _: &[f32], _: usize, _: &mut [f32; PANEL * MAX_TOKENS]) {}
    }

    #[test]
    fn split_covers_every_panel_once_and_evenly() {
        for costs in [vec![0; 7], vec![1; 10], vec![100, 0, 0, 1, 1, 1, 0], vec![0, 0, 9], vec![3]] {
            let k = Costs(costs.clone());
            for tasks in 1..5 {
                let ranges: Vec<_> = (0..tasks).map(|t| split(&k, costs.len(), t, tasks)).collect();
                let seen: Vec<usize> = ranges.iter().cloned().flatten().collect();
                assert_eq!(seen, (0..costs.len()).collect::<Vec<_>>(), "{costs:?} in {tasks}");
            }
        }
        assert_eq!(split(&Costs(vec![1; 10]), 10, 0, 2), 0..5);
        assert_eq!(split(&Costs(vec![1, 1, 8, 1, 1, 8]), 6, 0, 2), 0..3);
    }

    #[test]
    fn passes_are_nearly_equal_and_cover_the_tokens() {
        for n in 1..70 {
            let runs: Vec<_> = Passes { n, passes: n.div_ceil(12) }.iter().collect();
            assert!(runs.iter().all(|r| r.len() <= 12 && r.len() >= n.min(6)), "{runs:?}");
            assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
        }
    }
}
