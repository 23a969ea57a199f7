//! What all kernels share: argument checks, packing of `x`, the split over threads, stores to `y`.

use std::ops::Range;

use crate::{Isa, KernelError, rows};

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
    let needed = scratch_len(cols, n);
    let lengths = [x.len(), y.len()];
    if !rows::check(K::NAME, isa, [rows, cols, n], lengths, [scratch.len(), needed])? {
        return Ok(());
    }

    let most = if isa == Isa::Avx2 { MAX_TOKENS_AVX2 } else { MAX_TOKENS };
    let passes = rows::passes(n, most);
    let packed: &[f32] = if n == 1 {
        x
    } else {
        for tokens in passes.clone() {
            let part = tokens.start * cols..tokens.end * cols;
            pack::<K>(&x[part.clone()], tokens.len(), cols, &mut scratch[part]);
        }
        &scratch[..needed]
    };

    let out = rows::Out::new(y, rows);
    let panels = rows.div_ceil(PANEL);
    let work = |panels: Range<usize>| {
        let mut tile = [0.0; PANEL * MAX_TOKENS];
        for p in panels {
            let height = PANEL.min(rows - p * PANEL);
            for tokens in passes.clone() {
                kernel.run(isa, p, &packed[tokens.start * cols..tokens.end * cols], tokens.len(), &mut tile);
                for (line, t) in tile.chunks_exact(PANEL).zip(tokens) {
                    // SAFETY: panel `p` is visited by exactly one task, since the ranges of `split` are disjoint, and
                    // only its rows are written.
                    unsafe { out.write(t, p * PANEL, &line[..height]) };
                }
            }
        }
    };
    let products = rows.saturating_mul(cols).saturating_mul(n);
    let tasks = rayon::current_num_threads().min(products / MIN_PRODUCTS_PER_THREAD).min(panels);
    rows::for_tasks(tasks, |task| {
        work(if tasks <= 1 { 0..panels } else { split(kernel, panels, task, tasks) })
    });
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

/// `x[n, cols]` to `[cols / GROUP][n][GROUP]`, so that one step of a kernel reads one run.
fn pack<K: PanelKernel>(x: &[f32], n: usize, cols: usize, out: &mut [f32]) {
    for t in 0..n {
        let line = &x[t * cols..(t + 1) * cols];
        for (g, run) in line.chunks_exact(K::GROUP).enumerate() {
            out[(g * n + t) * K::GROUP..][..K::GROUP].copy_from_slice(run);
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
}
