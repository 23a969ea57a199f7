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
//! bytes; and 16 products per token. Exact activations take four vector operations per group (shift, table look-up, weight, multiply-add) and five loads.
//! Activations as bytes take about two and a half, because conversion and scale are paid once per block of sixteen groups, and two loads, one of a place and one
//! of activations. Memory gives a group in 0.77 ns at 14 GB/s.
//!
//! Measured at 11008 x 4096, half of the groups, one token, activations as bytes: 0.80 ns per group from the second-level cache and 0.97 ns from memory
//! where a loop runs nothing else (one thread). Between other kernels it is 1.26 ns on one thread and, for both together, 0.96 ns on two (62 % and 45 %
//! of the read rate), the best calls up to 1.5 times faster: 1.16 and 0.93 of the speed of dense four-bit codes, where the
//! bytes would allow 1.7. **Half of the groups does not pay against dense four-bit codes yet.** Each further token repeats the gathering of
//! activations, six of ten operations: at eight tokens it is 0.46 of their speed.
//!
//! # Accuracy
//! [`Activations::Exact`] differs from the product of the decoded weights by rounding in f32. [`Activations::Int8`] rounds each token with *one* scale
//! (a scale per group would have to be gathered for each kept group): an error of at most `max |x| / 253.9 · Σ |ŵ|`, so one outlier among the activations coarsens
//! all of them. A NaN or an infinity makes every output of its token NaN there; exactly, it reaches only the rows that keep its group.

mod bytes;
mod inner;

use std::ops::Range;

use rarefy_sparsity::formats::quantised::{Columns, GroupSparse, Scales};

use crate::rows::{self, Out};
use crate::{Activations, AlignedBuf, Isa, KernelError, LinearKernel};

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
    row_index: Vec<u32>,
    places: Places,
    store: Store,
}

/// Codes, scales and zero points.
#[derive(Debug, Clone)]
enum Store {
    /// As the format has them; four-bit codes in the order of the lanes.
    Exact { codes: AlignedBuf<u8>, scales: AlignedBuf<u8>, zeros: AlignedBuf<u8> },
    /// For activations as bytes. `shifts`: `128 Σ s Σ (q − z)` of each row.
    Bytes { packed: bytes::Packed, shifts: Vec<f32> },
}

impl SparseGroups {
    /// Takes the arrays of `matrix` over; four-bit codes are put into the order of the lanes.
    ///
    /// # Errors
    /// [`KernelError::Unsupported`] for [`Activations::Int8`] with other than four bits, groups of 16 and f16 scales, or with more than
    /// 2^19 columns.
    pub fn new(matrix: &GroupSparse, activations: Activations) -> Result<Self, KernelError> {
        let (q, parts) = (matrix.settings(), matrix.parts());
        let padded = |source: &[u8]| {
            let mut out = AlignedBuf::zeroed(source.len() + PAD);
            out.as_mut_slice()[..source.len()].copy_from_slice(source);
            out
        };
        let store = if activations == Activations::Exact {
            let mut codes = padded(&parts.values);
            if q.bits == 4 {
                let len = parts.values.len();
                for group in codes.as_mut_slice()[..len].chunks_exact_mut(q.code_bytes(q.group)) {
                    group.chunks_exact_mut(8).for_each(interleave);
                }
            }
            let scales = match parts.scales.as_ref() {
                Scales::F16(v) => padded(&v.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>()),
                Scales::F32(v) => padded(&v.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>()),
            };
            Store::Exact { codes, scales, zeros: padded(&parts.zeros) }
        } else {
            let what = "eight-bit activations need four-bit codes in groups of 16, f16 scales and at most 2^19 columns; take exact ones";
            let unsupported = KernelError::Unsupported { kernel: "sparse-groups-int4", what };
            Store::Bytes { packed: bytes::Packed::new(matrix).ok_or(unsupported)?, shifts: shifts(matrix) }
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
            row_index: parts.row_index.to_vec(),
            places,
            store,
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
        let isa = if self.shifts().is_some() && no_vnni { Isa::Avx2 } else { isa };
        let (slots, rest) = scratch.split_at_mut(n * self.segments());
        let (steps, copy) = rest.split_at_mut(n);
        let x = match &self.store {
            Store::Exact { codes, scales, zeros } => {
                Input::Numbers(inner::Call { m: self, codes, scales, zeros, isa, x: aligned(x, copy), n })
            }
            Store::Bytes { packed, .. } => {
                let x = pack_bytes(x, self.cols, steps, copy);
                Input::Bytes(bytes::Call { m: self, packed, isa, x, n })
            }
        };
        // Rows without groups are in no segment.
        y.fill(0.0);
        let products = self.kept.saturating_mul(self.group).saturating_mul(n);
        match balance {
            Balance::Groups => {
                let tasks = rows::tasks(products, self.segments());
                let (out, later) = (Out::new(y, self.rows), Out::new(slots, self.segments() * n));
                rows::for_tasks(tasks, |task| {
                    let mine = rows::share(self.segments(), task, tasks);
                    x.run(mine, 0..self.rows, &mut |s, row, begins, t, sum| {
                        // SAFETY: the row begins in this segment, which belongs to one task; or else it is the segment's
                        // first, and the slot is the segment's own.
                        unsafe {
                            if begins {
                                out.write(t, row, &[sum]);
                            } else {
                                later.write(0, s * n + t, &[sum]);
                            }
                        }
                    });
                });
                let mut row = 0;
                for s in 1..self.segments() {
                    row = self.row_from(row, s * SEGMENT);
                    if (self.row_index[row] as usize) < s * SEGMENT {
                        (0..n).for_each(|t| y[t * self.rows + row] += slots[s * n + t]);
                    }
                }
            }
            Balance::Rows => {
                let tasks = rows::tasks(products, self.rows);
                let out = Out::new(y, self.rows);
                rows::for_tasks(tasks, |task| {
                    let mine = rows::share(self.rows, task, tasks);
                    let groups = self.row_index[mine.start] as usize..self.row_index[mine.end] as usize;
                    if groups.is_empty() {
                        return;
                    }
                    let segments = groups.start / SEGMENT..groups.end.div_ceil(SEGMENT);
                    // SAFETY: each row belongs to one task.
                    x.run(segments, mine, &mut |_, row, begins, t, sum| unsafe {
                        if begins {
                            out.write(t, row, &[sum]);
                        } else {
                            out.add(t, row, sum);
                        }
                    });
                });
            }
        }
        if let Some(shifts) = self.shifts() {
            for (y, step) in y.chunks_exact_mut(self.rows).zip(steps) {
                y.iter_mut().zip(shifts).for_each(|(y, shift)| *y = (*y - shift) * *step);
            }
        }
        Ok(())
    }

    fn shifts(&self) -> Option<&[f32]> {
        match &self.store {
            Store::Exact { .. } => None,
            Store::Bytes { shifts, .. } => Some(shifts),
        }
    }

    /// The row of a kept group, which is `row` or a later one. A binary search for each segment took a fifth of the time of a product.
    fn row_from(&self, mut row: usize, group: usize) -> usize {
        while self.row_index[row + 1] as usize <= group {
            row += 1;
        }
        row
    }

    /// The row of a kept group.
    fn row_of(&self, group: usize) -> usize {
        self.row_index.partition_point(|i| *i as usize <= group) - 1
    }
}

/// A call with either kind of activations.
enum Input<'a> {
    Numbers(inner::Call<'a>),
    Bytes(bytes::Call<'a>),
}

/// Gets `(segment, row, whether the row begins there, token, sum)`.
type Sink<'s> = dyn FnMut(usize, usize, bool, usize, f32) + 's;

impl Input<'_> {
    /// The sums of the rows in `rows` over each of `segments`.
    fn run(&self, segments: Range<usize>, rows: Range<usize>, sink: &mut Sink<'_>) {
        match self {
            Input::Numbers(call) => inner::run(call, segments, rows, sink),
            Input::Bytes(call) => bytes::run(call, segments, rows, sink),
        }
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

/// Each token as bytes `128 + round(x · (127 / max |x|))`; `steps[t] = max |x| / 127`, or NaN when a number is not finite. `room` has 15 elements more than the bytes fill.
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
        bytes[t * cols..(t + 1) * cols].iter_mut().zip(line).for_each(|(to, v)| *to = byte(*v));
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
        let store = match &self.store {
            Store::Exact { codes, scales, zeros } => codes.bytes() + scales.bytes() + zeros.bytes(),
            Store::Bytes { packed, shifts } => packed.bytes() + shifts.len() * 4,
        };
        self.row_index.len() * 4 + places + store
    }
    fn name(&self) -> &'static str {
        match (self.bits, &self.store) {
            (_, Store::Bytes { .. }) => "sparse-groups-int4",
            (4, _) => "sparse-groups-int4-exact",
            _ => "sparse-groups-int8-exact",
        }
    }
    /// The fix-up slots, one per segment and token, a scale per token, and an aligned copy of `x` or its bytes.
    fn scratch_len(&self, n: usize) -> usize {
        let copy = if self.shifts().is_none() { self.cols } else { self.cols / 4 };
        n.saturating_mul(self.segments().saturating_add(copy + 1)).saturating_add(15)
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, n, y, scratch)
    }
}
