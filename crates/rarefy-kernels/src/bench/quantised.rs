//! Quantised kernels for the benchmark: made from the same weights, checked against the dense product of the decoded ones.

use rarefy_sparsity::formats::{BitmaskInt8, BitmaskSettings, GroupQuantised, GroupSparse, QuantSettings};

use super::{Kind, Runs, Weights, mix, output};
use crate::{Activations, Dense, KernelError, PanelInt8, Quantised, SparseGroups};

/// The kernel, and the decoded weights where `check` needs them.
pub(super) fn make(from: &Weights<'_>, kind: Kind) -> Result<(Box<dyn Runs>, Decode), KernelError> {
    let (rows, cols) = (from.spec.rows, from.spec.cols);
    match kind {
        Kind::GroupSparse { bits, group, exact } => {
            let cut = (from.spec.sparsity * (1u64 << 32) as f64) as u64;
            let groups = cols.checked_div(group).unwrap_or(0);
            // Exactly the same number in each row, as pruning by rows leaves it: the lowest of random scores.
            let prune = ((u128::from(cut) * groups as u128) >> 32) as usize;
            let mut keep = Vec::with_capacity(rows.saturating_mul(groups));
            for row in 0..rows {
                let score = |g: usize| mix(from.spec.seed ^ (row * groups + g) as u64);
                let mut order: Vec<usize> = (0..groups).collect();
                order.sort_unstable_by_key(|g| score(*g));
                let mut line = vec![true; groups];
                order[..prune].iter().for_each(|g| line[*g] = false);
                keep.extend(line);
            }
            let m = GroupSparse::encode(&from.full, rows, cols, &keep, settings(bits, group))?;
            Ok((
                Box::new(SparseGroups::new(&m, if exact { Activations::Exact } else { Activations::Int8 })?),
                Decode::Sparse(m),
            ))
        }
        Kind::Quantised { bits, group, exact } => {
            let m = GroupQuantised::encode(&from.full, rows, cols, settings(bits, group))?;
            let activations = if exact { Activations::Exact } else { Activations::Int8 };
            Ok((Box::new(Quantised::new(&m, activations)?), Decode::Dense(m)))
        }
        Kind::PanelInt8 { group, exact } => {
            let settings = group.map_or(BitmaskSettings::per_row(), BitmaskSettings::per_group);
            let m = BitmaskInt8::encode(&from.masked::<f32>(kind), rows, cols, settings)?;
            let activations = if exact { Activations::Exact } else { Activations::Int8 };
            Ok((Box::new(PanelInt8::new(&m, activations)?), Decode::Bitmask(m)))
        }
        other => unreachable!("{other} is not quantised"),
    }
}

fn settings(bits: u32, group: usize) -> QuantSettings {
    if bits == 4 { QuantSettings::int4(group) } else { QuantSettings { bits, ..QuantSettings::int8(group) } }
}

pub(super) enum Decode {
    Dense(GroupQuantised),
    Sparse(GroupSparse),
    Bitmask(BitmaskInt8),
}

/// The kernel, after its result was found within its error bound of the dense kernel's on the decoded weights.
pub(super) fn checked(
    from: &Weights<'_>,
    kind: Kind,
    x: &[f32],
    n: usize,
) -> Result<Box<dyn Runs>, KernelError> {
    let (kernel, stored) = make(from, kind)?;
    let mut w = match stored {
        Decode::Dense(m) => m.decode(),
        Decode::Sparse(m) => m.decode(),
        Decode::Bitmask(m) => m.decode(),
    };
    let (rows, cols) = (from.spec.rows, from.spec.cols);
    let (want, found) = (output(&Dense::new(&w, rows, cols)?, x, n)?, output(&*kernel, x, n)?);
    // Rounding in f32 and, with eight-bit activations, half a step of the largest: relative to Σ |w| max |x|.
    let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    w.iter_mut().for_each(|v| *v = v.abs());
    let size = output(&Dense::new(&w, rows, cols)?, &vec![most; cols], 1)?;
    let rounds = matches!(
        kind,
        Kind::Quantised { exact: false, .. }
            | Kind::GroupSparse { exact: false, .. }
            | Kind::PanelInt8 { exact: false, .. }
    );
    let relative = if rounds { 1.0 / 253.9 } else { 0.0 } + 2e-5;
    let wrong = |i: &usize| {
        let error = (want[*i] - found[*i]).abs();
        error.is_nan() || error > relative * size[*i % rows] + f32::MIN_POSITIVE
    };
    match (0..want.len()).find(wrong) {
        None => Ok(kernel),
        Some(index) => {
            let (expected, found) = (want[index], found[index]);
            Err(KernelError::Wrong { kernel: kernel.name(), index, expected, found })
        }
    }
}
