//! What can be wrong with a call of a kernel.

use crate::Isa;

/// Sizes that do not fit, or an instruction set this machine lacks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice has the wrong length.
    #[error("{kernel}: `{array}` needs {expected} elements, got {found}")]
    Length {
        /// Name of the kernel.
        kernel: &'static str,
        /// Which slice.
        array: &'static str,
        /// Elements needed (at least this many for `scratch`).
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// A product of sizes overflows.
    #[error("{kernel}: {a} x {b} elements are too many for this machine")]
    TooLarge {
        /// Name of the kernel.
        kernel: &'static str,
        /// First factor.
        a: usize,
        /// Second factor.
        b: usize,
    },
    /// The instruction set asked for is not available.
    #[error("this CPU does not support {isa}; it supports {best}")]
    Isa {
        /// Asked for.
        isa: Isa,
        /// The best available.
        best: Isa,
    },
    /// An argument outside its range.
    #[error("{kernel}: `{argument}` = {value}: allowed is {allowed}")]
    Argument {
        /// Name of the kernel.
        kernel: &'static str,
        /// Which argument.
        argument: &'static str,
        /// The value given.
        value: String,
        /// The allowed range.
        allowed: &'static str,
    },
    /// A cache of fixed capacity has no room for another token.
    #[error("{kernel}: the cache holds {capacity} tokens and is full")]
    Full {
        /// Name of the kernel.
        kernel: &'static str,
        /// Tokens it can hold.
        capacity: usize,
    },
    /// A benchmark specification outside its range.
    #[error("bench setting `{field}` = {value}: allowed is {allowed}")]
    Setting {
        /// Name of the field.
        field: &'static str,
        /// The value given.
        value: String,
        /// The allowed range.
        allowed: &'static str,
    },
    /// A benchmark that would need more memory than allowed.
    #[error("these sizes need {} of memory for the benchmark, at most {limit} bytes are allowed: choose a smaller shape or fewer kernels", .needed.map_or("more than can be counted".to_owned(), |n| format!("{n} bytes")))]
    Memory {
        /// Bytes needed; `None`: more than an address can count.
        needed: Option<usize>,
        /// Bytes allowed.
        limit: usize,
    },
    /// A kernel gave another result than the dense kernel before timing.
    #[error("{kernel}: output {index} is {found}, the dense kernel gives {expected}; nothing was timed")]
    Wrong {
        /// Name of the kernel.
        kernel: &'static str,
        /// Flat index in `y`.
        index: usize,
        /// Dense result.
        expected: f32,
        /// Result found.
        found: f32,
    },
    /// A matrix could not be packed.
    #[error(transparent)]
    Format(#[from] rarefy_sparsity::SparsityError),
    /// A combination that a kernel does not run.
    #[error("{kernel}: {what}")]
    Unsupported {
        /// Name of the kernel.
        kernel: &'static str,
        /// What it lacks, and what to take instead.
        what: &'static str,
    },
    /// The operating system refused worker threads.
    #[error("could not start {threads} worker threads: {reason}")]
    Threads {
        /// Asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
}

/// An error unless `array` has exactly `expected` elements.
pub(crate) fn length(
    kernel: &'static str,
    array: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), KernelError> {
    if expected == found { Ok(()) } else { Err(KernelError::Length { kernel, array, expected, found }) }
}

/// An error unless `array` has at least `expected` elements: for scratch.
pub(crate) fn at_least(
    kernel: &'static str,
    array: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), KernelError> {
    if expected <= found { Ok(()) } else { Err(KernelError::Length { kernel, array, expected, found }) }
}

/// `a * b`, or the error naming both.
pub(crate) fn product(kernel: &'static str, a: usize, b: usize) -> Result<usize, KernelError> {
    a.checked_mul(b).ok_or(KernelError::TooLarge { kernel, a, b })
}
