//! Keeps the threads of a pool awake between the layers of a network.
//!
//! A layer takes some 100 µs. A thread that is done with its part and goes to sleep must be woken for the next layer, which on a
//! virtual machine may take as long as half of a layer. So while one thread walks through the
//! layers, the others ask for work without pause, and end with the walk.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::Yield;

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

/// `threads` threads ask for work until the walk is done.
fn stand_by(state: &State, threads: usize) {
    if threads > 1 {
        rayon::join(|| stand_by(state, 1), || stand_by(state, threads - 1));
        return;
    }
    while !state.done.load(Ordering::Acquire) {
        // The walker may pick this up while it waits for a part of a layer; it must go on with the walk, below on its stack.
        if rayon::current_thread_index() == Some(state.walker.load(Ordering::Acquire)) {
            return;
        }
        if rayon::yield_now() != Some(Yield::Executed) {
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
