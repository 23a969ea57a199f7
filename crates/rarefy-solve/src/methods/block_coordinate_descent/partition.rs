//! Partitions into fixed blocks.

use serde::{Deserialize, Serialize};

use super::forest::grow_forest;
use crate::{Csr, LinOp};

/// How coordinates are grouped into fixed blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FixedPartition {
    /// Consecutive coordinates.
    Order,
    /// Sorted by Lipschitz constant, largest first: similar constants share a block.
    Sort,
    /// Alternating the largest and the smallest constants.
    Average,
}

/// In which order nodes are offered to a growing forest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForestOrder {
    /// By `|gᵢ|`.
    Gs,
    /// By `|gᵢ|/√Lᵢ`.
    Gsl,
    /// By `|gᵢ|/√Dᵢ`.
    Gsd,
    /// At random.
    Random,
}

pub(super) fn fixed(kind: FixedPartition, lipschitz: &[f64], size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lipschitz.len()).collect();
    if kind != FixedPartition::Order {
        order.sort_by(|a, b| lipschitz[*b].total_cmp(&lipschitz[*a]));
    }
    if kind == FixedPartition::Average {
        let (n, sorted) = (order.len(), order);
        order = (0..n).map(|k| if k % 2 == 0 { sorted[k / 2] } else { sorted[n - 1 - k / 2] }).collect();
    }
    order.chunks(size).map(<[usize]>::to_vec).collect()
}

/// Colours of a greedy colouring: nodes by falling diagonal take the colour that is used least
/// among those that no neighbour has, or a new one. Within a colour Q is diagonal.
#[must_use]
pub fn partition_by_colour(q: &Csr) -> Vec<Vec<usize>> {
    let n = q.n_rows();
    let diagonal: Vec<f64> = (0..n).map(|i| q.get(i, i)).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
    let (mut colour, mut colours): (Vec<Option<usize>>, Vec<Vec<usize>>) = (vec![None; n], vec![]);
    for i in order {
        let mut free = vec![true; colours.len()];
        let (columns, values) = q.row(i);
        for (j, v) in columns.iter().zip(values) {
            if let Some(c) = colour[*j as usize]
                && *v != 0.0
            {
                free[c] = false;
            }
        }
        let choice = (0..colours.len()).filter(|c| free[*c]).min_by_key(|c| colours[*c].len());
        let c = choice.unwrap_or_else(|| {
            colours.push(vec![]);
            colours.len() - 1
        });
        colour[i] = Some(c);
        colours[c].push(i);
    }
    colours
}

/// A partition into forests: each is grown from what the ones before it left over.
#[must_use]
pub fn partition_into_forests(q: &Csr) -> Vec<Vec<usize>> {
    let mut left: Vec<usize> = (0..q.n_rows()).collect();
    let mut blocks = vec![];
    while !left.is_empty() {
        let block = grow_forest(q, left.iter().copied());
        let mut taken = vec![false; q.n_rows()];
        block.iter().for_each(|i| taken[*i] = true);
        left.retain(|i| !taken[*i]);
        blocks.push(block);
    }
    blocks
}

/// Two interleaved combs on a lattice with `width` nodes per row: the first row is a spine with
/// every even column as a tooth, the last row the spine of the odd columns.
#[must_use]
pub fn partition_comb(n: usize, width: usize) -> Vec<Vec<usize>> {
    let height = n.div_ceil(width);
    let first = |i: usize| {
        let (r, c) = (i / width, i % width);
        r == 0 || (r + 1 < height && c % 2 == 0)
    };
    let (a, b): (Vec<usize>, Vec<usize>) = (0..n).partition(|i| first(*i));
    [a, b].into_iter().filter(|b| !b.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::forest::count_trees;
    use super::*;

    #[test]
    fn fixed_blocks_with_a_remainder() {
        let l = [1.0, 5.0, 3.0, 4.0, 2.0];
        assert_eq!(fixed(FixedPartition::Order, &l, 2), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(fixed(FixedPartition::Sort, &l, 2), [vec![1, 3], vec![2, 4], vec![0]]);
        assert_eq!(fixed(FixedPartition::Average, &l, 2), [vec![1, 0], vec![3, 4], vec![2]]);
    }

    #[test]
    fn graph_partitions_on_a_lattice() {
        let (w, h) = (6, 5);
        let mut t = vec![];
        for i in 0..w * h {
            t.push((i, i, 5.0));
            for j in [i + 1, i + w] {
                if j < w * h && (j == i + w || j % w != 0) {
                    t.extend([(i, j, -1.0), (j, i, -1.0)]);
                }
            }
        }
        let q = Csr::from_triplets(w * h, w * h, &t).unwrap();
        let covers = |blocks: &[Vec<usize>]| {
            let mut all: Vec<usize> = blocks.concat();
            all.sort_unstable();
            assert_eq!(all, (0..w * h).collect::<Vec<_>>());
        };
        let colours = partition_by_colour(&q);
        covers(&colours);
        for block in &colours {
            // No edges at all: as many trees as nodes.
            assert_eq!(count_trees(&q, block), Some(block.len()));
        }
        for blocks in [partition_into_forests(&q), partition_comb(w * h, w)] {
            covers(&blocks);
            assert_eq!(blocks.len(), 2);
            for block in &blocks {
                assert!(count_trees(&q, block).is_some());
            }
        }
    }
}
