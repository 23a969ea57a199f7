//! `y[n, rows]` written by several tasks, each its own rows, and the even split of panels over threads.

use std::ops::Range;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use crate::error::{at_least, length, product};
use crate::{Isa, KernelError};

/// Products of one weight and one activation below which a thread is not worth waking (about 20 µs of work; these kernels do more per product).
pub(crate) const MIN_PRODUCTS_PER_THREAD: usize = 1 << 18;

/// Checks a call of [`crate::LinearKernel::forward`] on `isa`; false when there is nothing to do.
pub(crate) fn check(
    kernel: &'static str,
    isa: Isa,
    [rows, cols, n]: [usize; 3],
    [x, y]: [usize; 2],
    [scratch, needed]: [usize; 2],
) -> Result<bool, KernelError> {
    isa.require()?;
    let sizes = [("x", product(kernel, n, cols)?, x), ("y", product(kernel, n, rows)?, y)];
    for (array, expected, found) in sizes {
        length(kernel, array, expected, found)?;
    }
    at_least(kernel, "scratch", needed, scratch)?;
    Ok(n > 0 && rows > 0)
}

/// Tasks worth starting on the current pool for so many products.
pub(crate) fn tasks(products: usize, most: usize) -> usize {
    rayon::current_num_threads().min(products / MIN_PRODUCTS_PER_THREAD).clamp(1, most.max(1))
}

/// Calls `work(task)` for each of `tasks`, on the current pool when there are several.
pub(crate) fn for_tasks(tasks: usize, work: impl Fn(usize) + Sync + Send) {
    if tasks <= 1 {
        work(0);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(work);
    }
}

/// Share `task` of `tasks` of `0..n`.
pub(crate) fn share(n: usize, task: usize, tasks: usize) -> Range<usize> {
    let bound = |k: usize| (n as u128 * k as u128 / tasks as u128) as usize;
    bound(task)..bound(task + 1)
}

/// Share `task` of `tasks` of the parts that start at `offsets[..parts]` and end at `offsets[parts]`: consecutive, disjoint, together all, about
/// equal in size.
pub(crate) fn share_by(offsets: &[usize], task: usize, tasks: usize) -> Range<usize> {
    let parts = offsets.len() - 1;
    let bound = |k: usize| match k {
        0 => 0,
        k if k == tasks => parts,
        // Parts may be empty: the outer bounds are pinned so that none is lost.
        k => offsets
            .partition_point(|o| (*o as u128) * (tasks as u128) < offsets[parts] as u128 * k as u128)
            .min(parts),
    };
    bound(task)..bound(task + 1)
}

/// `n` tokens cut into the fewest nearly equal runs of at most `most`.
pub(crate) fn passes(n: usize, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let count = n.div_ceil(most);
    (0..count).map(move |i| n * i / count..n * (i + 1) / count)
}

/// Output shared by tasks that write disjoint rows.
pub(crate) struct Out<'a> {
    y: *mut f32,
    rows: usize,
    n: usize,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: `write` is unsafe and asks for disjoint places, so that sharing the pointer races with nothing.
unsafe impl Sync for Out<'_> {}

impl<'a> Out<'a> {
    /// `y` must hold `[n, rows]`.
    pub(crate) fn new(y: &'a mut [f32], rows: usize) -> Self {
        let n = y.len().checked_div(rows).unwrap_or(0);
        Self { y: y.as_mut_ptr(), rows, n, life: std::marker::PhantomData }
    }

    /// `y[t, first..]` becomes `values`.
    ///
    /// # Safety
    /// No other task may access these places meanwhile.
    pub(crate) unsafe fn write(&self, t: usize, first: usize, values: &[f32]) {
        assert!(t < self.n && first <= self.rows && values.len() <= self.rows - first, "the rows lie in y");
        // SAFETY: the range lies in `y` as just checked, which this struct borrows mutably; `values` is another allocation, since
        // a `&mut [f32]` has no alias.
        unsafe {
            let to = self.y.add(t * self.rows + first);
            match values {
                // Spares a call for the one sum of a row.
                [v] => to.write(*v),
                _ => std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()),
            }
        }
    }

    /// Adds `value` to `y[t, row]`.
    ///
    /// # Safety
    /// No other task may access this place meanwhile.
    pub(crate) unsafe fn add(&self, t: usize, row: usize, value: f32) {
        assert!(t < self.n && row < self.rows, "the place lies in y");
        // SAFETY: as just checked.
        unsafe { *self.y.add(t * self.rows + row) += value };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_passes_cover_everything_once() {
        for n in 0..70 {
            for tasks in 1..5 {
                let seen: Vec<usize> = (0..tasks).flat_map(|t| share(n, t, tasks)).collect();
                assert_eq!(seen, (0..n).collect::<Vec<_>>());
            }
            for most in [1, 3, 8, 12] {
                let fewest = n.checked_div(n.div_ceil(most)).unwrap_or(0);
                assert!(passes(n, most).all(|p| (fewest.max(1)..=most).contains(&p.len())));
                assert_eq!(passes(n, most).flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn shares_by_size_cover_everything_once_and_evenly() {
        for sizes in [vec![0; 7], vec![1; 10], vec![100, 0, 0, 1, 1, 1, 0], vec![0, 0, 9], vec![3], vec![]] {
            let mut offsets = vec![0];
            sizes.iter().for_each(|s| offsets.push(offsets[offsets.len() - 1] + s));
            for tasks in 1..5 {
                let seen: Vec<usize> = (0..tasks).flat_map(|t| share_by(&offsets, t, tasks)).collect();
                assert_eq!(seen, (0..sizes.len()).collect::<Vec<_>>(), "{sizes:?} in {tasks}");
            }
        }
        assert_eq!(share_by(&[0, 1, 2, 10, 11, 12, 20], 0, 2), 0..3);
    }

    #[test]
    fn writes_land_at_their_rows() {
        let mut y = [0.0; 6];
        let out = Out::new(&mut y, 3);
        // SAFETY: one thread, one place after the other.
        unsafe {
            out.write(1, 1, &[5.0, 6.0]);
            out.write(0, 0, &[1.0]);
        }
        assert_eq!(y, [1.0, 0.0, 0.0, 0.0, 5.0, 6.0]);
    }
}
