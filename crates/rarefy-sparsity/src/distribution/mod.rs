//! How many weights each layer keeps: exact integer budgets over the layers of a model.
//!
//! Every rule returns a [`Budget`] whose kept weights sum exactly to `N − ⌊N · sparsity⌋`, `N` the
//! number of weights of all layers.
//!
//! | rule | density of layer `l` |
//! |---|---|
//! | [`uniform`] | the same for all |
//! | [`er`] (Erdős–Rényi; Mocanu et al. 2018) | ∝ `(d_out + d_in) / (d_out · d_in)` |
//! | [`erk`] (Evci et al. 2020) | ∝ sum of all dimensions / product of all dimensions |
//! | [`lamp`] (Lee et al. 2021) | what a global ranking of LAMP scores leaves |
//! | [`global`] | what a global ranking of the scores leaves |
//!
//! ER and ERK give no layer more than all its weights: layers whose density would exceed 1 become
//! dense and the rest is scaled again, until none exceeds.
//!
//! [`densities`] is the general form: any [`Rule`], with some layers held at a density of their
//! own, for example "uniform+" (first layer dense, last layer at 20 %) or "ERK+" (classifier
//! dense). [`Budget::from_kept`] carries budgets found in any other way, and
//! [`Budget::at_least`] keeps layers from being emptied.

mod budget;
mod lamp;
mod rules;

#[cfg(test)]
mod tests;

pub use budget::Budget;
pub use lamp::lamp_scores;
pub use rules::{Densities, Rule, densities};

use crate::error::SparsityError;
use crate::select;

/// The same density in every layer.
///
/// `shapes`: dimensions of each layer's weight, `[d_out, d_in]` or `[d_out, d_in, kh, kw]`.
///
/// # Errors
///
/// [`SparsityError::Sparsity`], [`SparsityError::Empty`] for no layer or a dimension of 0,
/// [`SparsityError::TooLarge`] when sizes overflow.
pub fn uniform<S: AsRef<[usize]>>(shapes: &[S], sparsity: f64) -> Result<Budget, SparsityError> {
    densities(Rule::Uniform, shapes, sparsity, &[])?.budget()
}

/// Erdős–Rényi densities: `(d_out + d_in) / (d_out · d_in)`, kernel dimensions ignored.
///
/// # Errors
///
/// As [`uniform`].
pub fn er<S: AsRef<[usize]>>(shapes: &[S], sparsity: f64) -> Result<Budget, SparsityError> {
    densities(Rule::Er, shapes, sparsity, &[])?.budget()
}

/// Erdős–Rényi-kernel densities: sum of the dimensions over their product.
///
/// # Errors
///
/// As [`uniform`].
pub fn erk<S: AsRef<[usize]>>(shapes: &[S], sparsity: f64) -> Result<Budget, SparsityError> {
    densities(Rule::Erk, shapes, sparsity, &[])?.budget()
}

/// What one global ranking of [`lamp_scores`] leaves in each layer (Lee et al., "Layer-adaptive
/// sparsity for the magnitude-based pruning", ICLR 2021, arXiv 2010.07611).
///
/// `weights`: the weights themselves, layer by layer; the f32 scores of all layers are held at once.
///
/// # Errors
///
/// [`SparsityError::Sparsity`], [`SparsityError::NonFinite`], [`SparsityError::Empty`].
pub fn lamp(weights: &[&[f32]], sparsity: f64) -> Result<Budget, SparsityError> {
    let scores = weights.iter().map(|layer| lamp_scores(layer)).collect::<Result<Vec<_>, _>>()?;
    let views: Vec<&[f32]> = scores.iter().map(Vec::as_slice).collect();
    global(&views, sparsity)
}

/// What one global ranking of `scores` leaves in each layer; see [`select::global`].
///
/// # Errors
///
/// [`SparsityError::Sparsity`], [`SparsityError::NonFinite`], [`SparsityError::Empty`].
pub fn global(scores: &[&[f32]], sparsity: f64) -> Result<Budget, SparsityError> {
    global_at_least(scores, sparsity, 0)
}

/// [`global`] with at least `min(min_kept, len)` weights kept in each layer, as
/// [`select::global_at_least`] does it.
///
/// # Errors
///
/// Those of [`global`]; [`SparsityError::Infeasible`].
pub fn global_at_least(scores: &[&[f32]], sparsity: f64, min_kept: usize) -> Result<Budget, SparsityError> {
    let kept = select::global_kept(scores, sparsity, min_kept)?;
    Budget::from_kept(scores.iter().map(|l| l.len()).collect(), kept)
}
