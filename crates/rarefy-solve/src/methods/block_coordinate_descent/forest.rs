//! Blocks that induce a forest in the graph of a symmetric matrix, and the exact solve on them.

use crate::{Csr, LinOp, SolveError};

/// Sets that know their representative.
struct Sets(Vec<u32>);

impl Sets {
    fn find(&mut self, mut i: usize) -> usize {
        while self.0[i] as usize != i {
            self.0[i] = self.0[self.0[i] as usize];
            i = self.0[i] as usize;
        }
        i
    }
}

fn neighbours(q: &Csr, i: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
    let (columns, values) = q.row(i);
    columns.iter().zip(values).map(|(j, v)| (*j as usize, *v)).filter(move |(j, v)| *j != i && *v != 0.0)
}

/// A maximal set of nodes that induces a forest: scans `order` and takes a node when its
/// neighbours already taken lie in different trees. O(edges · α).
#[must_use]
pub fn grow_forest(q: &Csr, order: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut sets = Sets((0..q.n_rows() as u32).collect());
    let (mut taken, mut block, mut roots) = (vec![false; q.n_rows()], vec![], vec![]);
    for i in order {
        roots.clear();
        roots.extend(neighbours(q, i).filter(|(j, _)| taken[*j]).map(|(j, _)| j));
        roots.iter_mut().for_each(|r| *r = sets.find(*r));
        roots.sort_unstable();
        if roots.windows(2).any(|w| w[0] == w[1]) {
            continue;
        }
        taken[i] = true;
        block.push(i);
        roots.iter().for_each(|r| sets.0[*r] = i as u32);
    }
    block
}

/// Number of trees that `block` induces, or `None` when it holds a cycle.
#[must_use]
pub fn count_trees(q: &Csr, block: &[usize]) -> Option<usize> {
    (grow_forest(q, block.iter().copied()).len() == block.len()).then(|| {
        let mut inside = vec![false; q.n_rows()];
        block.iter().for_each(|i| inside[*i] = true);
        let ends: usize = block.iter().map(|i| neighbours(q, *i).filter(|(j, _)| inside[*j]).count()).sum();
        block.len() - ends / 2
    })
}

/// Solves `Q_bb z = rhs` exactly by message passing, for a block that induces a forest:
/// elimination from the leaves to the roots, substitution back. O(nodes and edges of the block).
///
/// # Errors
/// [`SolveError::Invalid`] when the block holds a cycle, [`SolveError::Dimension`],
/// [`SolveError::Breakdown`] when `Q_bb` is singular.
pub fn solve_forest(q: &Csr, block: &[usize], rhs: &[f64]) -> Result<Vec<f64>, SolveError> {
    const NONE: u32 = u32::MAX;
    crate::error::check_dimension("rhs", block.len(), "nodes of the block", rhs.len())?;
    let mut place = vec![NONE; q.n_rows()];
    block.iter().enumerate().for_each(|(k, i)| place[*i] = k as u32);
    let (mut order, mut parent) = (Vec::with_capacity(block.len()), vec![(NONE, 0.0); block.len()]);
    let mut seen = vec![false; block.len()];
    for root in 0..block.len() {
        if seen[root] {
            continue;
        }
        seen[root] = true;
        let mut next = order.len();
        order.push(root);
        while next < order.len() {
            let u = order[next];
            next += 1;
            for (j, v) in neighbours(q, block[u]) {
                let w = place[j];
                if w == NONE || w == parent[u].0 {
                    continue;
                }
                let w = w as usize;
                if seen[w] {
                    return Err(SolveError::invalid(
                        "block",
                        "a block that induces a forest",
                        "a cycle",
                        "grow it with `grow_forest`",
                    ));
                }
                seen[w] = true;
                parent[w] = (u as u32, v);
                order.push(w);
            }
        }
    }
    let mut pivot: Vec<f64> = block.iter().map(|i| q.get(*i, *i)).collect();
    let mut h = rhs.to_vec();
    for &u in order.iter().rev() {
        if !(pivot[u].abs() > 0.0 && pivot[u].is_finite()) {
            return Err(SolveError::breakdown(
                "message passing",
                "the block of Q is singular",
                "add a ridge or label a node of each component",
            ));
        }
        let (p, v) = parent[u];
        if p != NONE {
            pivot[p as usize] -= v * v / pivot[u];
            h[p as usize] -= v * h[u] / pivot[u];
        }
    }
    for &u in &order {
        let (p, v) = parent[u];
        let known = if p == NONE { 0.0 } else { v * h[p as usize] };
        h[u] = (h[u] - known) / pivot[u];
    }
    Ok(h)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn path_of_three() -> Csr {
        let edges = [(0, 1), (1, 0), (1, 2), (2, 1)];
        let mut t: Vec<_> = edges.iter().map(|(i, j)| (*i, *j, -1.0)).collect();
        t.extend([(0, 0, 2.0), (1, 1, 3.0), (2, 2, 2.0)]);
        Csr::from_triplets(3, 3, &t).unwrap()
    }

    #[test]
    fn a_path_by_hand() {
        // Q (1, 2, 3) = (0, 2, 4).
        let z = solve_forest(&path_of_three(), &[2, 0, 1], &[4.0, 0.0, 2.0]).unwrap();
        assert!(z.iter().zip([3.0, 1.0, 2.0]).all(|(a, b)| (a - b).abs() < 1e-15), "{z:?}");
        assert_eq!(count_trees(&path_of_three(), &[0, 1, 2]), Some(1));
        assert_eq!(count_trees(&path_of_three(), &[0, 2]), Some(2));
    }

    #[test]
    fn cycles_and_singular_blocks_are_refused() {
        let mut t: Vec<_> = (0..3).flat_map(|i| (0..3).map(move |j| (i, j, -1.0))).collect();
        t.extend((0..3).map(|i| (i, i, 3.0)));
        let triangle = Csr::from_triplets(3, 3, &t).unwrap();
        assert_eq!(grow_forest(&triangle, 0..3), [0, 1]);
        assert_eq!(count_trees(&triangle, &[0, 1, 2]), None);
        assert!(matches!(solve_forest(&triangle, &[0, 1, 2], &[1.0; 3]), Err(SolveError::Invalid { .. })));
        assert!(matches!(solve_forest(&triangle, &[0], &[]), Err(SolveError::Dimension { .. })));
        let zero = Csr::from_triplets(1, 1, &[]).unwrap();
        assert!(matches!(solve_forest(&zero, &[0], &[1.0]), Err(SolveError::Breakdown { .. })));
    }
}
