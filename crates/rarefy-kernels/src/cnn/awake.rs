//! Keeps the threads of a pool awake between the layers of a network.
//!
//! A layer takes some 100 µs. A thread that is done with its part and goes to sleep must be woken for the next layer, which on a
//! virtual machine may take as long as half of a layer. So while one thread walks through the
//! layers, the others ask for work without pause, and end with the walk.
//!
//! Standing by is a courtesy, not a duty: whoever finds no work for [`PATIENCE`] ends it. So a thread that picked it up on top of
//! unfinished work, of this walk or of another one on the same pool, always comes back to that work.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// Time without work after which a thread goes to sleep: far more than a layer takes, and short for whoever waits.
const PATIENCE: Duration = Duration::from_millis(5);

/// Runs `walk` on one thread of the current pool while the others stand by for its parallel parts. No allocation.
pub(super) fn run<R: Send>(walk: impl FnOnce() -> R + Send) -> R {
    let others = rayon::current_num_threads().saturating_sub(1);
    if others == 0 {
        return walk();
    }
    let state = State { done: AtomicBool::new(false), walker: AtomicUsize::new(usize::MAX) };
    let walk = || {
        state.walker.store(rayon::current_thread_index().unwrap_or(usize::MAX), Ordering::Release);
        // Set on a panic too: the others must not wait for ever.
        let _done = Done(&state.done);
        walk()
    };
    rayon::join(walk, || stand_by(&state, others)).0
}

struct State {
    done: AtomicBool,
    walker: AtomicUsize,
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// `threads` threads ask for work until the walk is done or their patience is.
fn stand_by(state: &State, threads: usize) {
    // The walker may pick this up while it waits for a part of a layer; it goes on with the walk, below on its stack, at once.
    let is_walker = || rayon::current_thread_index() == Some(state.walker.load(Ordering::Acquire));
    if threads > 1 && !is_walker() {
        rayon::join(|| stand_by(state, 1), || stand_by(state, threads - 1));
        return;
    }
    let mut last = Instant::now();
    while !state.done.load(Ordering::Acquire) && !is_walker() {
        if rayon::yield_now() == Some(Yield::Executed) {
            last = Instant::now();
        } else if last.elapsed() > PATIENCE {
            return;
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

    use super::*;

    /// Two hundred small parallel sums one after the other.
    fn walk() -> usize {
        (0..200usize)
            .map(|i| (0..64usize).into_par_iter().with_max_len(1).map(|j| i * j).sum::<usize>())
            .sum()
    }

    #[test]
    fn a_walk_ends_with_its_result_on_any_pool_also_several_at_once() {
        let wanted = 199 * 100 * 63 * 32;
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| run(walk)), wanted);
            let many: Vec<usize> = pool.install(|| (0..6usize).into_par_iter().map(|_| run(walk)).collect());
            assert_eq!(many, vec![wanted; 6]);
        }
        assert_eq!(run(walk), wanted, "from outside any pool");
    }

    /// Walks that meet on one pool, their waiting threads stealing each other's standing by: none waits for ever.
    #[test]
    fn many_walks_at_once_on_larger_pools_end() {
        for threads in [3, 4, 6, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let total: usize =
                pool.install(|| (0..40usize).into_par_iter().with_max_len(1).map(|_| run(walk)).sum());
            assert_eq!(total, 40 * 199 * 100 * 63 * 32, "{threads}");
        }
    }

    #[test]
    fn a_panic_ends_the_waiting() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.install(|| run(|| -> usize { panic!("in a layer") }))
        }));
        assert!(caught.is_err());
        assert_eq!(pool.install(|| run(walk)), 199 * 100 * 63 * 32);
    }
}
