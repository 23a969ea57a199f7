//! Group-sparse quantised weights (GQSA, W4S50): whole groups of a row absent, the others in 4 or 8 bits.
//!
//! # Work
//! The kept groups form one flat list, rows one after another. It is cut every [`SEGMENT`] groups, whatever the number of threads, and a
//! thread takes an equal run of segments. A row that lies in one segment is written at once; of a row that a cut divides, each later part goes to a
//! fix-up slot of its segment, and the slots are added in order after all threads are done. So the work is even however the groups are spread
//! over rows (a row-by-row split waits for the thread with the full rows), and the sums are the same for any number of threads.
//!
//! # Roofline
//! Per kept group of 16 in 4 bits: 8 bytes of codes, 2 of scale, 1/2 of zero point, 1/8 per *position* of bitmap (1/4 per kept group at half): 10.75
//! bytes; and 16 products per token. Exact activations take four vector operations per group (shift, table look-up, weight, multiply-add) and five loads;
//! activations as bytes take three, shared out over four groups, and no fewer loads of places. A core that does two vector operations per cycle at
//! 2.6 GHz would need 0.8 and 0.6 ns per group, as much as memory takes at 14 GB/s (0.77 ns).
//!
//! Measured at 11008 x 4096, half of the groups, one token: 1.3–1.6 ns per group on one thread, 42–57 % of the read bandwidth, which is 0.9–1.0 of
//! the speed of dense four-bit codes: **half of the groups do not pay here yet**. The machine did 1.7 G vector operations per second at that time (multiply-adds
//! timed alone), a third of what its clock allows, and this kernel is bound by them; where they run at full rate it has not been measured.
//!
//! # Accuracy
//! [`Activations::Exact`] differs from the product of the decoded weights by rounding in f32. [`Activations::Int8`] rounds each token with *one* scale
//! (a scale per group would have to be gathered for each kept group): an error of at most `max |x| / 253.9 · Σ |ŵ|`, so one outlier among the activations coarsens
//! all of them. A NaN or an infinity makes every output of its token NaN there; exactly, it reaches only the rows that keep its group.

mod inner;

use rarefy_sparsity::formats::quantised::{Columns, GroupSparse, ScaleType, Scales};

use crate::rows::{self, Out};
use crate::{Activations, AlignedBuf, Isa, KernelError, LinearKernel};
use inner::{Call, Input};

/// Kept groups between two cuts of the flat list.
pub(crate) const SEGMENT: usize = 512;
/// Readable bytes behind each array: the widest load, and a whole run of 16 scales.
const PAD: usize = 64;

/// How the work is split over threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Balance {
    /// Equal numbers of kept groups: task-centric.
    Groups,
    /// Equal numbers of rows: the plain split, to compare with. The same bits.
    Rows,
}

impl<'a> Input<'a> {
    fn tokens(self, cols: usize, tokens: std::ops::Range<usize>) -> Input<'a> {
        let range = tokens.start * cols..tokens.end * cols;
        match self {
            Input::Numbers(x) => Input::Numbers(&x[range]),
            Input::Bytes(x) => Input::Bytes(&x[range]),
        }
    }
}

/// Where the kept groups of a row stand.
#[derive(Debug, Clone)]
enum Places {
    Bitmap(AlignedBuf<u32>),
    Index(AlignedBuf<u16>),
}

/// A [`GroupSparse`] matrix ready to run; see the module's head.
#[derive(Debug, Clone)]
pub struct SparseGroups {
    rows: usize,
    cols: usize,
    bits: u32,
    group: usize,
    fixed_zero: Option<u8>,
    wide_scales: bool,
    kept: usize,
    /// With activations as bytes: `128 Σ s Σ (q − z)` of each row; empty otherwise.
    shifts: Vec<f32>,
    exact: bool,
    row_index: Vec<u32>,
    places: Places,
    codes: AlignedBuf<u8>,
    scales: AlignedBuf<u8>,
    zeros: AlignedBuf<u8>,
}

impl SparseGroups {
    /// Takes the arrays of `matrix` over; four-bit codes are put into the order of the lanes.
    ///
    /// # Errors
    /// [`KernelError::Unsupported`] for [`Activations::Int8`] with other than four bits, groups of 16 and f16 scales.
    pub fn new(matrix: &GroupSparse, activations: Activations) -> Result<Self, KernelError> {
        let (q, parts) = (matrix.settings(), matrix.parts());
        let exact = activations == Activations::Exact;
        if !exact && (q.bits, q.group, q.scales) != (4, 16, ScaleType::F16) {
            let what =
                "eight-bit activations need four-bit codes in groups of 16 with f16 scales; take exact ones";
            return Err(KernelError::Unsupported { kernel: "sparse-groups-int4", what });
        }
        let padded = |source: &[u8]| {
            let mut out = AlignedBuf::zeroed(source.len() + PAD);
            out.as_mut_slice()[..source.len()].copy_from_slice(source);
            out
        };
        let mut codes = padded(&parts.values);
        if q.bits == 4 && exact {
            let len = parts.values.len();
            for group in codes.as_mut_slice()[..len].chunks_exact_mut(q.code_bytes(q.group)) {
                group.chunks_exact_mut(8).for_each(interleave);
            }
        }
        let scales = match parts.scales.as_ref() {
            Scales::F16(v) => padded(&v.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>()),
            Scales::F32(v) => padded(&v.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>()),
        };
        let places = match parts.columns.as_ref() {
            Columns::Bitmap(b) => Places::Bitmap(AlignedBuf::from_slice(b)),
            Columns::Index(i) => Places::Index(AlignedBuf::from_slice(i)),
        };
        Ok(Self {
            rows: matrix.rows(),
            cols: matrix.cols(),
            bits: q.bits,
            group: q.group,
            fixed_zero: q.fixed_zero(),
            wide_scales: matches!(parts.scales.as_ref(), Scales::F32(_)),
            kept: matrix.kept(),
            shifts: if exact { Vec::new() } else { shifts(matrix) },
            exact,
            row_index: parts.row_index.to_vec(),
            places,
            codes,
            scales,
            zeros: padded(&parts.zeros),
        })
    }

    /// Kept groups.
    pub fn kept(&self) -> usize {
        self.kept
    }

    fn segments(&self) -> usize {
        self.kept.div_ceil(SEGMENT)
    }

    /// [`LinearKernel::forward`] on a chosen code path.
    ///
    /// # Errors
    /// Those of `forward`, and [`KernelError::Isa`] when this CPU lacks the path.
    pub fn forward_with(
        &self,
        isa: Isa,
        x: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_balanced(Balance::Groups, isa, x, n, y, scratch)
    }

    /// The same with a chosen split of the work.
    ///
    /// # Errors
    /// As [`SparseGroups::forward_with`].
    pub fn forward_balanced(
        &self,
        balance: Balance,
        isa: Isa,
        x: &[f32],
        n: usize,
        y: &mut [f32],
        scratch: &mut [f32],
    ) -> Result<(), KernelError> {
        let needed = self.scratch_len(n);
        let sizes = [x.len(), y.len()];
        if !rows::check(self.name(), isa, [self.rows, self.cols, n], sizes, [scratch.len(), needed])? {
            return Ok(());
        }
        let no_vnni = isa == Isa::Avx512 && !crate::cpu_features().avx512vnni;
        let isa = if !self.exact && no_vnni { Isa::Avx2 } else { isa };
        let (slots, rest) = scratch.split_at_mut(n * self.segments());
        let (steps, copy) = rest.split_at_mut(n);
        let x = if self.exact {
            Input::Numbers(aligned(x, copy))
        } else {
            Input::Bytes(pack_bytes(x, self.cols, steps, copy))
        };
        // Rows without groups are in no segment.
        y.fill(0.0);
        let products = self.kept.saturating_mul(self.group).saturating_mul(n);
        match balance {
            Balance::Groups => {
                {
                    let (y, slots) = (Out::new(y, self.rows), Out::new(slots, self.segments() * n));
                    let tasks = rows::tasks(products, self.segments());
                    rows::for_tasks(tasks, |task| {
                        let mut list = inner::List::new();
                        for s in rows::share(self.segments(), task, tasks) {
                            let groups = s * SEGMENT..self.kept.min((s + 1) * SEGMENT);
                            inner::segment(
                                &Call { m: self, isa, x, n },
                                groups,
                                0..self.rows,
                                &mut list,
                                |row, begins, t, sum| {
                                    // SAFETY: the row begins in this segment, which belongs to one task; or else it is the
                                    // segment's first, and the slot is the segment's own.
                                    unsafe {
                                        if begins {
                                            y.write(t, row, &[sum]);
                                        } else {
                                            slots.write(0, s * n + t, &[sum]);
                                        }
                                    }
                                },
                            );
                        }
                    });
                }
                for s in 1..self.segments() {
                    let row = self.row_of(s * SEGMENT);
                    if (self.row_index[row] as usize) < s * SEGMENT {
                        (0..n).for_each(|t| y[t * self.rows + row] += slots[s * n + t]);
                    }
                }
            }
            Balance::Rows => {
                let out = Out::new(y, self.rows);
                let tasks = rows::tasks(products, self.rows);
                rows::for_tasks(tasks, |task| {
                    let mut list = inner::List::new();
                    for row in rows::share(self.rows, task, tasks) {
                        let (begin, end) = (self.row_index[row] as usize, self.row_index[row + 1] as usize);
                        let mut sums = [0.0f32; 32];
                        for tokens in rows::passes(n, sums.len()) {
                            let x = x.tokens(self.cols, tokens.clone());
                            let mut at = begin;
                            while at < end {
                                let stop = end.min((at / SEGMENT + 1) * SEGMENT);
                                inner::segment(
                                    &Call { m: self, isa, x, n: tokens.len() },
                                    at..stop,
                                    row..row + 1,
                                    &mut list,
                                    |_, begins, t, sum| {
                                        sums[t] = if begins { sum } else { sums[t] + sum };
                                    },
                                );
                                at = stop;
                            }
                            if begin < end {
                                for (i, t) in tokens.enumerate() {
                                    // SAFETY: each row belongs to one task.
                                    unsafe { out.write(t, row, &sums[i..=i]) };
                                }
                            }
                        }
                    }
                });
            }
        }
        if !self.exact {
            for (y, step) in y.chunks_exact_mut(self.rows).zip(steps) {
                y.iter_mut().zip(&self.shifts).for_each(|(y, shift)| *y = (*y - shift) * *step);
            }
        }
        Ok(())
    }

    /// The row of a kept group.
    fn row_of(&self, group: usize) -> usize {
        self.row_index.partition_point(|i| *i as usize <= group) - 1
    }
}

/// `x` itself where it starts on a cache line, or a copy that does. `room` has 15 elements more than `x`.
fn aligned<'a>(x: &'a [f32], room: &'a mut [f32]) -> &'a [f32] {
    if (x.as_ptr() as usize).is_multiple_of(64) {
        return x;
    }
    let skip = (room.as_ptr() as usize).wrapping_neg() % 64 / 4;
    let copy = &mut room[skip..][..x.len()];
    copy.copy_from_slice(x);
    copy
}

/// `128 Σ s Σ (q − z)` of each row: what activations shifted by 128 add to the sums.
fn shifts(matrix: &GroupSparse) -> Vec<f32> {
    (0..matrix.rows())
        .map(|row| (128.0 * matrix.row_values(row).map(f64::from).sum::<f64>()) as f32)
        .collect()
}

/// Each token as bytes `128 + round(x · (127 / max |x|))`, in groups of 16 first the even and then the odd columns; `steps[t] = max |x| / 127`, or NaN
/// when a number is not finite. `room` has 15 elements more than the bytes fill.
fn pack_bytes<'a>(x: &[f32], cols: usize, steps: &mut [f32], room: &'a mut [f32]) -> &'a [u8] {
    /// Adding it rounds a number below 2^22 to an integer in the low bits, halves to even.
    const ROUND: f32 = 12_582_912.0;
    let skip = (room.as_ptr() as usize).wrapping_neg() % 64 / 4;
    let bytes: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut room[skip..])[..x.len()];
    for (t, step) in steps.iter_mut().enumerate() {
        let line = &x[t * cols..(t + 1) * cols];
        // As integers, absolute values order like numbers, with infinity and NaN on top.
        let top = line.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
        let most = f32::from_bits(top);
        let inverse;
        (*step, inverse) = match most {
            m if !m.is_finite() => (f32::NAN, 0.0),
            m if m < 7.888_609e-31 => (0.0, 0.0), // 2^-100: its reciprocal would overflow
            m => (m / 127.0, 127.0 / m),
        };
        let byte = |v: f32| ((v * inverse + ROUND).to_bits() as u8).wrapping_add(128);
        for (from, to) in line.chunks_exact(16).zip(bytes[t * cols..(t + 1) * cols].chunks_exact_mut(16)) {
            for i in 0..8 {
                (to[i], to[8 + i]) = (byte(from[2 * i]), byte(from[2 * i + 1]));
            }
        }
    }
    bytes
}

/// Eight bytes of nibbles 0–15 to two words: nibble `i` of the first word is number `2 i`, of the second `2 i + 1`.
fn interleave(bytes: &mut [u8]) {
    let nibble = |i: usize| u64::from(bytes[i / 2] >> (i % 2 * 4) & 0xf);
    let word = (0..16).fold(0u64, |w, i| w | nibble(i) << (i / 2 * 4 + i % 2 * 32));
    bytes.copy_from_slice(&word.to_le_bytes());
}

impl LinearKernel for SparseGroups {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn nnz(&self) -> usize {
        self.kept * self.group
    }
    fn bytes(&self) -> usize {
        let places = match &self.places {
            Places::Bitmap(b) => b.bytes(),
            Places::Index(i) => i.bytes(),
        };
        self.row_index.len() * 4 + places + self.codes.bytes() + self.scales.bytes() + self.zeros.bytes()
    }
    fn name(&self) -> &'static str {
        match (self.bits, self.exact) {
            (4, true) => "sparse-groups-int4-exact",
            (4, false) => "sparse-groups-int4",
            _ => "sparse-groups-int8-exact",
        }
    }
    /// The fix-up slots, one per segment and token, a scale per token, and an aligned copy of `x` or its bytes.
    fn scratch_len(&self, n: usize) -> usize {
        let copy = if self.exact { self.cols } else { self.cols / 4 };
        n.saturating_mul(self.segments().saturating_add(copy + 1)).saturating_add(15)
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, n, y, scratch)
    }
}
