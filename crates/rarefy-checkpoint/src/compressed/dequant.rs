//! Scales and zero points: which one belongs to a weight, and the value of a code.

/// Scales (and zero points) over a weight `[rows, cols]`.
#[derive(Debug)]
pub(crate) struct ScaleGrid {
    /// `[grid_rows, grid_cols]`.
    pub(crate) scale: Vec<f32>,
    /// Same shape; absent when symmetric.
    pub(crate) zero: Option<Vec<f32>>,
    /// Column → column of the grid, when columns were reordered.
    pub(crate) group_of_column: Option<Vec<usize>>,
    /// Extents.
    pub(crate) extent: GridExtent,
}

/// How a grid of scales lies over a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GridExtent {
    /// Rows of the grid.
    pub(crate) rows: usize,
    /// Columns of the grid.
    pub(crate) cols: usize,
    /// Weight rows per grid row.
    pub(crate) row_span: usize,
    /// Weight columns per grid column.
    pub(crate) col_span: usize,
}

impl GridExtent {
    /// Derives the extents from the shape of the scale tensor, the shape of the weight and the stated group or block size.
    pub(crate) fn new(
        scale_shape: &[usize],
        rows: usize,
        cols: usize,
        group: Option<usize>,
        block: Option<[usize; 2]>,
    ) -> Result<Self, String> {
        let (grid_rows, grid_cols) = match *scale_shape {
            [] | [1] => (1, 1),
            [r] => (r, 1),
            [r, c] => (r, c),
            _ => {
                return Err(format!(
                    "scales of shape {scale_shape:?} are not supported, at most two dimensions are"
                ));
            }
        };
        if let Some([block_rows, block_cols]) = block {
            if (grid_rows, grid_cols) != (rows.div_ceil(block_rows), cols.div_ceil(block_cols)) {
                return Err(format!(
                    "scales of shape {scale_shape:?} do not cover [{rows}, {cols}] in blocks of [{block_rows}, {block_cols}]"
                ));
            }
            return Ok(Self { rows: grid_rows, cols: grid_cols, row_span: block_rows, col_span: block_cols });
        }
        let row_span = match grid_rows {
            1 => rows.max(1),
            r if r == rows => 1,
            _ => return Err(format!("scales of shape {scale_shape:?} do not fit {rows} rows")),
        };
        let col_span = match (grid_cols, group) {
            (1, _) => cols.max(1),
            (c, Some(g)) if cols.div_ceil(g) == c => g,
            (c, None) if c > 0 && cols > 0 && cols.is_multiple_of(c) => cols / c,
            _ => {
                return Err(format!(
                    "scales of shape {scale_shape:?} do not fit {cols} columns in groups of {group:?}"
                ));
            }
        };
        Ok(Self { rows: grid_rows, cols: grid_cols, row_span, col_span })
    }

    /// Number of scales.
    pub(crate) fn len(self) -> usize {
        self.rows * self.cols
    }
}

impl ScaleGrid {
    /// Replaces codes by values, `(q − z) · s`, in f32.
    pub(crate) fn apply(&self, codes: &mut [f32], cols: usize) -> Result<(), String> {
        let n = self.extent.len();
        if self.scale.len() != n || self.zero.as_ref().is_some_and(|z| z.len() != n) {
            return Err(format!(
                "{} scales and {:?} zero points, expected {n}",
                self.scale.len(),
                self.zero.as_ref().map(Vec::len)
            ));
        }
        if let Some(i) = self.scale.iter().position(|s| !s.is_finite()) {
            return Err(format!("scale {i} is not finite"));
        }
        if let Some(map) = &self.group_of_column
            && (map.len() != cols || map.iter().any(|&g| g >= self.extent.cols))
        {
            return Err(format!(
                "the column-to-group map does not fit {cols} columns and {} groups",
                self.extent.cols
            ));
        }
        if cols == 0 {
            return Ok(());
        }
        for (r, row) in codes.chunks_exact_mut(cols).enumerate() {
            let base = r / self.extent.row_span * self.extent.cols;
            for (c, q) in row.iter_mut().enumerate() {
                let group = self.group_of_column.as_ref().map_or(c / self.extent.col_span, |map| map[c]);
                let zero = self.zero.as_ref().map_or(0.0, |z| z[base + group]);
                *q = (*q - zero) * self.scale[base + group];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;

    #[test]
    fn extents_of_all_strategies() {
        let e = |s: &[usize], g, b| GridExtent::new(s, 4, 6, g, b);
        assert_eq!(e(&[], None, None).unwrap(), GridExtent { rows: 1, cols: 1, row_span: 4, col_span: 6 });
        assert_eq!(
            e(&[4, 1], None, None).unwrap(),
            GridExtent { rows: 4, cols: 1, row_span: 1, col_span: 6 }
        );
        assert_eq!(e(&[4], None, None).unwrap().rows, 4);
        assert_eq!(e(&[4, 3], Some(2), None).unwrap().col_span, 2);
        assert_eq!(
            e(&[2, 2], None, Some([2, 4])).unwrap(),
            GridExtent { rows: 2, cols: 2, row_span: 2, col_span: 4 }
        );
        assert!(e(&[3, 1], None, None).is_err());
        assert!(e(&[4, 3], Some(3), None).is_err());
        assert!(e(&[4, 0], None, None).is_err());
        assert!(e(&[1, 1, 1], None, None).is_err());
    }

    #[test]
    fn values_by_hand() {
        // Two groups of two columns; zero point 1 in the second: (3 − 1) · 0.5 = 1.
        let extent = GridExtent::new(&[1, 2], 1, 4, Some(2), None).unwrap();
        let mut grid =
            ScaleGrid { scale: vec![2.0, 0.5], zero: Some(vec![0.0, 1.0]), group_of_column: None, extent };
        let mut w = [1.0, -2.0, 3.0, 1.0];
        grid.apply(&mut w, 4).unwrap();
        assert_eq!(w, [2.0, -4.0, 1.0, 0.0]);
        grid.group_of_column = Some(vec![1, 0, 1, 0]);
        let mut w = [1.0, -2.0, 3.0, 1.0];
        grid.apply(&mut w, 4).unwrap();
        assert_eq!(w, [0.0, -4.0, 1.0, 2.0]);
        grid.group_of_column = Some(vec![1, 0, 2, 0]);
        assert!(grid.apply(&mut w, 4).is_err());
        grid.group_of_column = None;
        grid.scale[0] = f32::NAN;
        assert!(grid.apply(&mut w, 4).unwrap_err().contains("scale 0"));
    }
}
