//! Selection over all layers of a model at once.

use super::{Cut, Scratch, check_finite, key, pruned_count};
use crate::error::{SparsityError, check_sparsity};

/// One ranking over all layers: exactly `⌊N · sparsity⌋` of the `N` weights are pruned, ties by
/// layer and then by index. Returns for each layer which weights are kept, row-major.
///
/// # Errors
///
/// [`SparsityError::Sparsity`], [`SparsityError::NonFinite`], [`SparsityError::Empty`] when no
/// layer has a weight, [`SparsityError::TooLarge`] when the counts overflow.
pub fn global(layers: &[&[f32]], sparsity: f64) -> Result<Vec<Vec<bool>>, SparsityError> {
    global_at_least(layers, sparsity, 0)
}

/// [`global`] where every layer keeps at least `min(min_kept, len)` weights: the `min_kept` highest
/// of each layer are reserved, the `⌊N · sparsity⌋` lowest of all others are pruned. With
/// `min_kept = 0` the same as [`global`].
///
/// # Errors
///
/// Those of [`global`]; [`SparsityError::Infeasible`] when the reserved weights exceed what the
/// sparsity leaves.
pub fn global_at_least(
    layers: &[&[f32]],
    sparsity: f64,
    min_kept: usize,
) -> Result<Vec<Vec<bool>>, SparsityError> {
    let (reserves, cut) = cuts(layers, sparsity, min_kept)?;
    let mut test = cut.tester();
    Ok(layers
        .iter()
        .zip(&reserves)
        .map(|(layer, reserve)| {
            let mut free = reserve.tester();
            layer.iter().map(|&s| !(free.prunes(key(s)) && test.prunes(key(s)))).collect()
        })
        .collect())
}

/// How many weights each layer keeps under [`global_at_least`], without building the masks.
///
/// # Errors
///
/// Those of [`global_at_least`].
pub fn global_kept(layers: &[&[f32]], sparsity: f64, min_kept: usize) -> Result<Vec<usize>, SparsityError> {
    let (reserves, cut) = cuts(layers, sparsity, min_kept)?;
    let mut test = cut.tester();
    Ok(layers
        .iter()
        .zip(&reserves)
        .map(|(layer, reserve)| {
            let mut free = reserve.tester();
            let is_kept = |s: &&f32| !(free.prunes(key(**s)) && test.prunes(key(**s)));
            layer.iter().filter(is_kept).count()
        })
        .collect())
}

/// Per layer the cut below which its weights are free to be pruned, and the cut over the free ones.
fn cuts(layers: &[&[f32]], sparsity: f64, min_kept: usize) -> Result<(Vec<Cut>, Cut), SparsityError> {
    check_sparsity(sparsity)?;
    let mut total = 0usize;
    for layer in layers {
        check_finite("scores of a layer", layer)?;
        total = total.checked_add(layer.len()).ok_or_else(|| SparsityError::TooLarge {
            what: "the sum of all layers",
            detail: format!("more than {} weights", usize::MAX),
        })?;
    }
    if total == 0 {
        return Err(SparsityError::Empty { what: "the list of layers" });
    }
    let pruned = pruned_count(total, sparsity);
    let reserved: usize = layers.iter().map(|l| l.len().min(min_kept)).sum();
    if reserved > total - pruned {
        return Err(SparsityError::Infeasible { needed: reserved, total: total - pruned });
    }
    let mut scratch = Scratch::default();
    let reserves: Vec<Cut> = layers
        .iter()
        .map(|layer| {
            let free = layer.len() - layer.len().min(min_kept);
            scratch.cut(|| layer.iter().map(|&s| key(s)), layer.len(), free)
        })
        .collect();
    let free_keys = || {
        layers.iter().zip(&reserves).flat_map(|(layer, reserve)| {
            let mut free = reserve.tester();
            layer.iter().map(|&s| key(s)).filter(move |&key| free.prunes(key))
        })
    };
    let cut = scratch.cut(free_keys, total - reserved, pruned);
    Ok((reserves, cut))
}
