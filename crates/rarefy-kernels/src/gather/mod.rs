//! Very high sparsity: only the non-zeros are read and multiplied, each with its column index.
//!
//! # Layout
//! Rows are sorted by their number of non-zeros and cut into slices of 16. A slice has as many steps as its longest row; a step is one value of each row (64
//! bytes) and then their columns, two bytes each (four where the weight is wider than 65535), ascending along a row. Rows that ended have the
//! value 0 and the column behind the last, where the packed activations hold a 0: they add nothing, whatever the activations are. Sorting keeps
//! that filling below one or two percent.
//!
//! So a register holds the sums of 16 rows, each one chain over ascending columns like that of the dense kernel: finite activations give
//! the same bits, and nothing is added across lanes.
//!
//! # Roofline
//! Per non-zero 6 (8) bytes, one product per token. One token: a step is one load of values, one of indices, one gather and one multiply-add; the gather
//! takes 16 loads, 8–9 cycles: 0.21 ns per non-zero (measured, in cache), 28 GB/s, where a core reads 14 from memory. It reads fewer bytes than a bitmask of f32 from
//! `6 d < 4 d + 1/8`, 94 % zeros, but already from 85 % on it wins where computing bounds the bitmask (14 G weights/s): at 90 %
//! memory gives 23. Two and three tokens gather once for each. From four on the activations lie token by token beside each other, and
//! a non-zero is one broadcast, one load of 8 or 16 tokens and one multiply-add, with the 16 rows' sums in as many registers: about 1.5 cycles, or
//! as long as the second-level cache takes for one line, since `x` for eight tokens leaves the first from 1500 columns on.
//!
//! Measured on one shared Sapphire Rapids core, 11008 x 4096, 90 % zeros, against [`crate::Dense`] in the same run: 5.3 times as fast for one token
//! (81 % of the read bandwidth; the bitmask 3.8 times), 4.5 for eight (the bitmask 2.3). At 70 % the bitmask is ahead, 2.6 to 1.8 and 2.2
//! to 1.6.

#[cfg(target_arch = "x86_64")]
mod inner;

use rarefy_sparsity::formats::Csr;

use crate::error::product;
use crate::rows::{self, Out};
use crate::{AlignedBuf, Isa, KernelError, LinearKernel};

/// Rows of a slice.
const HEIGHT: usize = 16;
/// Tokens of a pass that gathers.
const GATHERED: usize = 3;
/// Tokens of a pass at most.
const MAX_TOKENS: usize = 16;
/// Products below which a thread is not worth waking: 10 µs of work.
pub(crate) const MIN_PRODUCTS_PER_THREAD: usize = 1 << 15;
const NAME: &str = "gather-f32";
/// Sums of a slice, `[row][token]`.
type Sums = [[f32; MAX_TOKENS]; HEIGHT];

/// A [`Csr`] matrix of f32 ready to run; see the module's head for layout and roofline.
#[derive(Debug, Clone)]
pub struct Gather {
    rows: usize,
    cols: usize,
    nnz: usize,
    /// Rows in the order of the slices.
    order: Vec<u32>,
    /// Starts of the slices, in steps.
    offsets: Vec<usize>,
    wide: bool,
    /// Steps.
    stream: AlignedBuf<u8>,
}

impl Gather {
    /// Sorts and rearranges `matrix`.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] when the steps overflow, rows exceed `u32`, or columns `i32`, the signed index of a gather.
    pub fn new(matrix: &Csr<f32>) -> Result<Self, KernelError> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let too_large = KernelError::TooLarge { kernel: NAME, a: rows, b: cols };
        if u32::try_from(rows).is_err() || i32::try_from(cols).is_err() {
            return Err(too_large);
        }
        let parts = matrix.parts();
        let len = |row: usize| (parts.row_ptr[row + 1] - parts.row_ptr[row]) as usize;
        let mut order: Vec<u32> = (0..rows as u32).collect();
        order.sort_by_key(|row| std::cmp::Reverse(len(*row as usize)));
        let mut offsets = vec![0usize];
        for slice in order.chunks(HEIGHT) {
            // Sorted, so the first is the longest.
            let steps = offsets[offsets.len() - 1].checked_add(len(slice[0] as usize));
            offsets.push(steps.ok_or(too_large.clone())?);
        }
        let wide = cols > usize::from(u16::MAX);
        let bytes = product(NAME, offsets[offsets.len() - 1], step_bytes(wide))?;
        if bytes > isize::MAX as usize / 2 {
            return Err(too_large);
        }
        let mut stream = AlignedBuf::<u8>::zeroed(bytes);
        let steps = stream.as_mut_slice();
        for (s, slice) in order.chunks(HEIGHT).enumerate() {
            for at in offsets[s]..offsets[s + 1] {
                let (values, columns) = steps[at * step_bytes(wide)..][..step_bytes(wide)].split_at_mut(64);
                for i in 0..HEIGHT {
                    let row = slice.get(i).map(|r| {
                        parts.row_ptr[*r as usize] as usize..parts.row_ptr[*r as usize + 1] as usize
                    });
                    let entry = row.and_then(|mut r| r.nth(at - offsets[s]));
                    let (value, column) =
                        entry.map_or((0.0, cols as u32), |e| (parts.values[e], parts.columns[e]));
                    values[4 * i..4 * i + 4].copy_from_slice(&value.to_ne_bytes());
                    if wide {
                        columns[4 * i..4 * i + 4].copy_from_slice(&column.to_ne_bytes());
                    } else {
                        columns[2 * i..2 * i + 2].copy_from_slice(&(column as u16).to_ne_bytes());
                    }
                }
            }
        }
        Ok(Self { rows, cols, nnz: matrix.nnz(), order, offsets, wide, stream })
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
        let needed = self.scratch_len(n);
        let sizes = [self.rows, self.cols, n];
        if !rows::check(NAME, isa, sizes, [x.len(), y.len()], [scratch.len(), needed])? {
            return Ok(());
        }
        // Lines of activations should not straddle lines of the cache.
        let skip = scratch.as_ptr().align_offset(64).min(ALIGN);
        let packed = &mut scratch[skip..];
        let passes = rows::passes(n, if isa == Isa::Avx2 { 8 } else { MAX_TOKENS });
        let mut rest = &mut *packed;
        for tokens in passes.clone() {
            let (part, more) = rest.split_at_mut(self.packed_len(tokens.len()));
            self.pack(&x[tokens.start * self.cols..tokens.end * self.cols], tokens.len(), part);
            rest = more;
        }
        let packed = &*packed;
        let slices = self.offsets.len() - 1;
        let work = self.offsets[slices].saturating_mul(HEIGHT).saturating_mul(n);
        let tasks = rayon::current_num_threads().min(work / MIN_PRODUCTS_PER_THREAD).clamp(1, slices.max(1));
        let out = Out::new(y, self.rows);
        rows::for_tasks(tasks, |task| {
            let mut sums = [[0.0; MAX_TOKENS]; HEIGHT];
            for s in rows::share_by(&self.offsets, task, tasks) {
                let mut x = packed;
                for tokens in passes.clone() {
                    let (now, later) = x.split_at(self.packed_len(tokens.len()));
                    self.run(isa, s, now, tokens.len(), &mut sums);
                    x = later;
                    for (row, sums) in self.order[s * HEIGHT..].iter().zip(&sums) {
                        for (i, t) in tokens.clone().enumerate() {
                            // SAFETY: each row is in one slice, and each slice belongs to one task.
                            unsafe { out.write(t, *row as usize, &sums[i..=i]) };
                        }
                    }
                }
            }
        });
        Ok(())
    }

    /// Elements of the packed activations of one pass.
    fn packed_len(&self, n: usize) -> usize {
        (self.cols + 1) * if n <= GATHERED { n } else { n.next_multiple_of(8) }
    }

    /// `x[n, cols]` to `[n][cols + 1]`, or `[cols + 1][n rounded up to 8]`; the last column is 0.
    fn pack(&self, x: &[f32], n: usize, out: &mut [f32]) {
        let width = self.cols + 1;
        if n <= GATHERED {
            for (line, x) in out.chunks_exact_mut(width).zip(x.chunks(self.cols.max(1))) {
                line[..self.cols].copy_from_slice(x);
                line[self.cols] = 0.0;
            }
            if self.cols == 0 {
                out.fill(0.0);
            }
            return;
        }
        let many = n.next_multiple_of(8);
        out[self.cols * many..].fill(0.0);
        for (c, line) in out[..self.cols * many].chunks_exact_mut(many).enumerate() {
            line[n..].fill(0.0);
            for (t, v) in line[..n].iter_mut().enumerate() {
                *v = x[t * self.cols + c];
            }
        }
    }

    /// Fills `sums` from slice `s`.
    fn run(&self, isa: Isa, s: usize, x: &[f32], n: usize, sums: &mut Sums) {
        assert!(n <= MAX_TOKENS && x.len() == self.packed_len(n), "packed activations");
        let size = step_bytes(self.wide);
        let steps = &self.stream.as_slice()[self.offsets[s] * size..self.offsets[s + 1] * size];
        match isa {
            // SAFETY: the path is available, as `rows::check` found; the columns of the steps are at most `cols`, as `new` took them from a `Csr`, and the
            // packed activations have `cols + 1` of them.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { inner::avx512(steps, self.wide, x, n, self.cols + 1, sums) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { inner::avx2(steps, self.wide, x, n, self.cols + 1, sums) },
            _ => portable(steps, self.wide, x, n, self.cols + 1, sums),
        }
    }
}

/// Elements by which scratch may be shifted to a cache line.
const ALIGN: usize = 16;

fn step_bytes(wide: bool) -> usize {
    HEIGHT * if wide { 8 } else { 6 }
}

fn portable(steps: &[u8], wide: bool, x: &[f32], n: usize, width: usize, sums: &mut Sums) {
    *sums = [[0.0; MAX_TOKENS]; HEIGHT];
    let many = n.next_multiple_of(8);
    for step in steps.chunks_exact(step_bytes(wide)) {
        let (values, columns) = step.split_at(64);
        for (i, sums) in sums.iter_mut().enumerate() {
            let value =
                f32::from_ne_bytes([values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]]);
            let c = if wide {
                u32::from_ne_bytes([
                    columns[4 * i],
                    columns[4 * i + 1],
                    columns[4 * i + 2],
                    columns[4 * i + 3],
                ]) as usize
            } else {
                usize::from(u16::from_ne_bytes([columns[2 * i], columns[2 * i + 1]]))
            };
            for (t, sum) in sums[..n].iter_mut().enumerate() {
                *sum += value * if n <= GATHERED { x[t * width + c] } else { x[c * many + t] };
            }
        }
    }
}

impl LinearKernel for Gather {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn nnz(&self) -> usize {
        self.nnz
    }
    fn bytes(&self) -> usize {
        self.stream.bytes() + 4 * self.order.len() + 8 * self.offsets.len()
    }
    fn name(&self) -> &'static str {
        NAME
    }
    fn scratch_len(&self, n: usize) -> usize {
        // A pass has room for 8 or 16 tokens, when they are more than are gathered.
        let tokens = match n {
            0..=GATHERED => n,
            n if n <= 8 => 8,
            n => n.div_ceil(MAX_TOKENS).saturating_mul(MAX_TOKENS),
        };
        (self.cols + 1).saturating_mul(tokens).saturating_add(ALIGN)
    }
    fn forward(&self, x: &[f32], n: usize, y: &mut [f32], scratch: &mut [f32]) -> Result<(), KernelError> {
        self.forward_with(Isa::detect(), x, n, y, scratch)
    }
}
