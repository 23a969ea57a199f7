//! Tiled-CSL — unstructured zeros as tiles of 128 rows by 64 columns, each a list of f16 values with their places: the format of Flash-LLM.
//!
//! # Layout
//! Tiles in rows of tiles; rows and columns that the matrix lacks are zeros. An entry is one `u32`: the value in its low, the place in its high 16
//! bits. The place is `64 row + (column XOR 8 (row mod 8))` inside the tile, which is where the kernel of the paper keeps the weight in shared
//! memory: eight consecutive rows of a column lie in different banks. Each tile is padded to a multiple of [`VECTOR`] = 4 entries by zero values at
//! places that hold no weight, so that scattering them changes nothing. `offsets[tiles + 2]` counts vectors of four entries; its last entry is
//! repeated, so that a kernel may ask for one tile beyond the last.
//!
//! # Order of the entries
//! [`Order::Plain`]: by row, then column, padding last. [`Order::Shuffled`]: as 32 lanes scatter one entry each at a time, no two of them should
//! meet in a bank, `place / 2 mod 32`. One queue per bank, and whoever is next takes the last entry of the fullest queue (the first of several):
//! first the lanes of the incomplete group of vectors, then those of the whole groups of 32. Padding goes to the emptiest queue. Both orders decode
//! to the same matrix.
//!
//! # Size
//! `4 e + 4 (tiles + 2)` bytes with `e` entries, padding included: `2 (1 − s)` of dense f16, so it saves memory from half zeros on. There too
//! is the limit of the GPU kernel ([`TiledCsl::check_gpu_limits`]): it keeps a tile in registers that hold half of the places.

use std::borrow::Cow;

use half::f16;

use super::checksum::Checksum;
use super::{Element, check_len, check_version, malformed, product, too_large};
use crate::SparsityError;

/// Rows of a tile.
pub const TILE_ROWS: usize = 128;
/// Columns of a tile.
pub const TILE_COLS: usize = 64;
/// Entries of one vector: each tile holds a multiple.
pub const VECTOR: usize = 4;
/// Entries of a tile for which the GPU kernel has registers: half of its places.
pub const GPU_TILE_ENTRIES: usize = TILE_ROWS * TILE_COLS / 2;
/// Version of the layout written by [`TiledCsl::parts`].
pub const VERSION: u32 = 1;
const FORMAT: &str = "tiled csl";
const BANKS: usize = 32;
const PLACES: usize = TILE_ROWS * TILE_COLS;

/// In which order the entries of a tile are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// By row, then column.
    Plain,
    /// By the queues of the banks.
    Shuffled,
}

/// The place of a weight inside its tile. For one row it is a bijection of the columns, and applied to the column twice it is the identity.
pub fn place(row: usize, col: usize) -> u16 {
    (row * TILE_COLS + swizzle(row, col)) as u16
}

/// Row and column of a place below 8192 inside its tile.
pub fn unplace(place: u16) -> (usize, usize) {
    let row = usize::from(place) / TILE_COLS;
    (row, swizzle(row, usize::from(place) % TILE_COLS))
}

fn swizzle(row: usize, col: usize) -> usize {
    col ^ ((row % 8) << 3)
}

/// The value of an entry.
pub fn value(entry: u32) -> f16 {
    f16::from_bits(entry as u16)
}

/// The place of an entry.
fn place_of(entry: u32) -> u16 {
    (entry >> 16) as u16
}

/// A sparse f16 matrix in tiles; see the module documentation for the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TiledCsl {
    rows: usize,
    cols: usize,
    order: Order,
    offsets: Vec<u32>,
    entries: Vec<u32>,
}

/// The arrays of a [`TiledCsl`], to store or to read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TiledCslParts<'a> {
    /// Layout version, [`VERSION`].
    pub version: u32,
    /// Order of the entries.
    pub order: Order,
    /// `[tiles + 2]` starts of the tiles in vectors of four entries, the last one repeated.
    pub offsets: Cow<'a, [u32]>,
    /// Entries, four to a vector.
    pub entries: Cow<'a, [u32]>,
    /// XXH3 of shape, order and arrays.
    pub checksum: u64,
}

impl TiledCsl {
    /// Packs the non-zeros of the row-major `w[rows, cols]`.
    ///
    /// # Errors
    /// [`SparsityError::TooLarge`] or [`SparsityError::Malformed`] when `w` has not `rows * cols` elements.
    pub fn encode(w: &[f16], rows: usize, cols: usize, order: Order) -> Result<Self, SparsityError> {
        check_len(FORMAT, "weight", product(FORMAT, rows, cols)?, w.len())?;
        let (down, across) = (rows.div_ceil(TILE_ROWS), cols.div_ceil(TILE_COLS));
        let n_tiles = tiles(rows, cols)?;
        let mut offsets = Vec::with_capacity(n_tiles + 2);
        let mut entries = Vec::new();
        offsets.push(0);
        for (i, j) in (0..down).flat_map(|i| (0..across).map(move |j| (i, j))) {
            let weight = |row: usize, col: usize| -> Option<f16> {
                let (r, c) = (i * TILE_ROWS + row, j * TILE_COLS + col);
                (r < rows && c < cols).then(|| w[r * cols + c]).filter(|v| !v.is_zero())
            };
            match order {
                Order::Plain => plain(weight, &mut entries),
                Order::Shuffled => shuffled(weight, &mut entries),
            }
            offsets.push(u32::try_from(entries.len() / VECTOR).map_err(|_| too_large(FORMAT, rows, cols))?);
        }
        offsets.push(*offsets.last().unwrap_or(&0));
        Ok(Self { rows, cols, order, offsets, entries })
    }

    /// The row-major dense matrix `[rows, cols]`; absent weights are `+0.0`.
    pub fn decode(&self) -> Vec<f16> {
        let mut out = vec![f16::ZERO; self.rows * self.cols];
        for tile in 0..self.n_tiles() {
            for entry in self.tile(tile) {
                let (row, col) = self.position(tile, *entry);
                // Padding may lie outside of the matrix.
                if !value(*entry).is_zero() {
                    out[row * self.cols + col] = value(*entry);
                }
            }
        }
        out
    }

    /// Rows, `d_out`.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns, `d_in`.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Order of the entries.
    pub fn order(&self) -> Order {
        self.order
    }
    /// Tiles side by side.
    pub fn tiles_across(&self) -> usize {
        self.cols.div_ceil(TILE_COLS)
    }
    /// Tiles in all.
    pub fn n_tiles(&self) -> usize {
        self.offsets.len() - 2
    }
    /// The entries of a tile, padding included. Panics when there is no such tile.
    pub fn tile(&self, tile: usize) -> &[u32] {
        &self.entries[self.offsets[tile] as usize * VECTOR..self.offsets[tile + 1] as usize * VECTOR]
    }
    /// Stored weights, without padding.
    pub fn nnz(&self) -> usize {
        self.entries.iter().filter(|e| !value(**e).is_zero()).count()
    }
    /// Bytes of the arrays, in memory and in a file.
    pub fn bytes(&self) -> usize {
        4 * self.entries.len() + 4 * self.offsets.len()
    }

    fn position(&self, tile: usize, entry: u32) -> (usize, usize) {
        let (row, col) = unplace(place_of(entry));
        let across = self.tiles_across();
        (tile / across * TILE_ROWS + row, tile % across * TILE_COLS + col)
    }

    /// Whether the GPU kernel can hold every tile in its registers.
    ///
    /// # Errors
    /// [`SparsityError::DenseTile`] naming the first tile with more than [`GPU_TILE_ENTRIES`] entries.
    pub fn check_gpu_limits(&self) -> Result<(), SparsityError> {
        match (0..self.n_tiles()).find(|t| self.tile(*t).len() > GPU_TILE_ENTRIES) {
            None => Ok(()),
            Some(tile) => Err(SparsityError::DenseTile {
                row: tile / self.tiles_across() * TILE_ROWS,
                col: tile % self.tiles_across() * TILE_COLS,
                entries: self.tile(tile).len(),
                limit: GPU_TILE_ENTRIES,
            }),
        }
    }

    /// The arrays, borrowed.
    pub fn parts(&self) -> TiledCslParts<'_> {
        TiledCslParts {
            version: VERSION,
            order: self.order,
            offsets: Cow::Borrowed(&self.offsets),
            entries: Cow::Borrowed(&self.entries),
            checksum: checksum(self.rows, self.cols, self.order, &self.offsets, &self.entries),
        }
    }

    /// Rebuilds a matrix from stored arrays, which may be hostile.
    ///
    /// # Errors
    /// [`SparsityError::Malformed`] naming the array, what was expected and what was found: version, checksum, lengths, offsets that do not start at
    /// 0, fall or leave the entries, a last offset that is not repeated, places outside of the tile or of the matrix, two weights at one
    /// place, padding at the place of a weight, more padding than needed, entries that are not in the plain order they claim.
    pub fn from_parts(rows: usize, cols: usize, parts: TiledCslParts<'_>) -> Result<Self, SparsityError> {
        check_version(FORMAT, VERSION, parts.version)?;
        product(FORMAT, rows, cols)?;
        let sum = checksum(rows, cols, parts.order, &parts.offsets, &parts.entries);
        if sum != parts.checksum {
            let hex = |v: u64| format!("{v:016x}");
            return Err(malformed(FORMAT, "checksum", hex(sum), hex(parts.checksum)));
        }
        let n_tiles = tiles(rows, cols)?;
        let offsets = &parts.offsets;
        check_len(FORMAT, "offsets", n_tiles + 2, offsets.len())?;
        let vectors = parts.entries.len() / VECTOR;
        check_len(FORMAT, "entries", vectors * VECTOR, parts.entries.len())?;
        let wide: Vec<u64> = offsets[..=n_tiles].iter().map(|o| u64::from(*o)).collect();
        super::check_offsets(FORMAT, "offsets", &wide, vectors)?;
        if offsets[n_tiles + 1] != offsets[n_tiles] {
            return Err(malformed(FORMAT, "offsets", "the last entry repeated", offsets[n_tiles + 1]));
        }
        let out = Self {
            rows,
            cols,
            order: parts.order,
            offsets: parts.offsets.into_owned(),
            entries: parts.entries.into_owned(),
        };
        let mut seen = vec![false; PLACES];
        (0..n_tiles).try_for_each(|tile| out.check_tile(tile, &mut seen))?;
        Ok(out)
    }

    /// See [`TiledCsl::from_parts`]; `seen` is scratch.
    fn check_tile(&self, tile: usize, seen: &mut [bool]) -> Result<(), SparsityError> {
        let wrong = |expected: &str, found: String| {
            Err(malformed(FORMAT, "entries", format_args!("{expected} in tile {tile}"), found))
        };
        let entries = self.tile(tile);
        seen.fill(false);
        let (mut weights, mut last) = (0usize, None);
        for (i, entry) in entries.iter().enumerate() {
            let at = place_of(*entry);
            if usize::from(at) >= PLACES {
                return wrong("places below 8192", at.to_string());
            }
            if value(*entry).is_zero() {
                continue;
            }
            let (row, col) = self.position(tile, *entry);
            if row >= self.rows || col >= self.cols {
                return wrong("weights of the matrix only", format!("row {row}, column {col}"));
            }
            if std::mem::replace(&mut seen[usize::from(at)], true) {
                return wrong("one weight at a place", format!("two at {at}"));
            }
            weights += 1;
            let key = unplace(at);
            if self.order == Order::Plain && (last >= Some(key) || weights != i + 1) {
                return wrong("rows and columns in order, padding last", format!("{key:?} at {i}"));
            }
            last = Some(key);
        }
        if weights.next_multiple_of(VECTOR) != entries.len() {
            let found = format!("{} beside {weights} weights", entries.len() - weights);
            return wrong("as much padding as fills a vector", found);
        }
        match entries.iter().find(|e| value(**e).is_zero() && seen[usize::from(place_of(**e))]) {
            None => Ok(()),
            Some(e) => wrong("padding at places without a weight", place_of(*e).to_string()),
        }
    }
}

fn tiles(rows: usize, cols: usize) -> Result<usize, SparsityError> {
    let n = product(FORMAT, rows.div_ceil(TILE_ROWS), cols.div_ceil(TILE_COLS))?;
    n.checked_add(2).ok_or_else(|| too_large(FORMAT, rows, cols))?;
    Ok(n)
}

fn entry(v: f16, place: u16) -> u32 {
    u32::from(place) << 16 | u32::from(v.to_bits())
}

fn plain(weight: impl Fn(usize, usize) -> Option<f16>, entries: &mut Vec<u32>) {
    let begin = entries.len();
    let mut free = None;
    for (row, col) in (0..TILE_ROWS).flat_map(|r| (0..TILE_COLS).map(move |c| (r, c))) {
        match weight(row, col) {
            Some(v) => entries.push(entry(v, place(row, col))),
            None => free = free.or(Some(place(row, col))),
        }
    }
    while !(entries.len() - begin).is_multiple_of(VECTOR) {
        // Not a multiple of four weights, so one of the 8192 places is free.
        entries.push(entry(f16::ZERO, free.unwrap_or_default()));
    }
}

fn shuffled(weight: impl Fn(usize, usize) -> Option<f16>, entries: &mut Vec<u32>) {
    let mut queues: [Vec<u32>; BANKS] = Default::default();
    let mut free = [None; BANKS];
    let mut left = 0usize;
    for (row, col) in (0..TILE_ROWS).flat_map(|r| (0..TILE_COLS).map(move |c| (r, c))) {
        let at = place(row, col);
        let bank = usize::from(at) / 2 % BANKS;
        match weight(row, col) {
            Some(v) => {
                queues[bank].push(entry(v, at));
                left += 1;
            }
            None => free[bank] = free[bank].or(Some(at)),
        }
    }
    while !left.is_multiple_of(VECTOR) {
        // All banks have as many places, so the one with the fewest weights has a free one when any has.
        let emptiest = (0..BANKS).min_by_key(|b| queues[*b].len()).unwrap_or(0);
        queues[emptiest].push(entry(f16::ZERO, free[emptiest].unwrap_or_default()));
        left += 1;
    }
    let begin = entries.len();
    let (groups, rest) = (left / VECTOR / BANKS, left / VECTOR % BANKS);
    entries.resize(begin + left, 0);
    let mut next = || {
        let fullest = (0..BANKS).max_by_key(|b| (queues[*b].len(), BANKS - b)).unwrap_or(0);
        queues[fullest].pop().unwrap_or_default()
    };
    let out = &mut entries[begin..];
    // What is taken first is stored last, as in the reference code.
    for v in (0..VECTOR).rev() {
        for lane in 0..rest {
            out[(groups * BANKS + lane) * VECTOR + v] = next();
        }
    }
    for (group, v) in (0..groups).rev().flat_map(|g| (0..VECTOR).rev().map(move |v| (g, v))) {
        for lane in 0..BANKS {
            out[(group * BANKS + lane) * VECTOR + v] = next();
        }
    }
}

fn checksum(rows: usize, cols: usize, order: Order, offsets: &[u32], entries: &[u32]) -> u64 {
    let header = [rows as u64, cols as u64, u64::from(order == Order::Shuffled)];
    Checksum::new(&header).array(offsets).array(entries).finish()
}

#[cfg(test)]
#[path = "tiled_csl_tests.rs"]
mod tests;
