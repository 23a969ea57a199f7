//! Density rules that look only at the shapes of the layers.

use super::budget::{Budget, checked_sum};
use crate::error::{SparsityError, check_sparsity};

/// How density follows from the shape of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The same density everywhere.
    Uniform,
    /// ∝ `(d_out + d_in) / (d_out · d_in)`.
    Er,
    /// ∝ sum of the dimensions / product of the dimensions; the same as ER for matrices.
    Erk,
}

impl Rule {
    /// Density of a layer of these dimensions, up to the common factor.
    fn raw(self, shape: &[usize]) -> f64 {
        let ratio = |dims: &[usize]| {
            let sum: f64 = dims.iter().map(|&d| d as f64).sum();
            let product: f64 = dims.iter().map(|&d| d as f64).product();
            sum / product
        };
        match self {
            Rule::Uniform => 1.0,
            Rule::Er => ratio(&shape[..shape.len().min(2)]),
            Rule::Erk => ratio(shape),
        }
    }
}

/// Densities of all layers under a [`Rule`], before rounding to whole weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Densities {
    /// Density of each layer, in `[0, 1]`.
    pub values: Vec<f64>,
    /// The factor ε: density = ε · raw for every layer neither fixed nor dense; 0 when there is none.
    pub scale: f64,
    sizes: Vec<usize>,
    sparsity: f64,
}

impl Densities {
    /// Rounds to exact counts; see [`Budget::from_densities`].
    ///
    /// # Errors
    ///
    /// Those of [`Budget::from_densities`].
    pub fn budget(&self) -> Result<Budget, SparsityError> {
        Budget::from_densities(self.sizes.clone(), &self.values, self.sparsity)
    }
}

/// Densities under `rule` such that the whole model has the given sparsity.
///
/// `shapes`: dimensions of each layer's weight, outputs first. `fixed`: layers held at a density of
/// their own, as `(layer, density)`; the others share what is left.
///
/// Iterated clipping: with `D` the set of dense layers, `ε = (kept − Σ_{fixed, D}) / Σ_{others} raw · n`;
/// layers with the largest `ε · raw > 1` join `D`; repeated until there is none.
///
/// # Errors
///
/// [`SparsityError::Sparsity`]; [`SparsityError::Empty`] for no layer or a dimension of 0;
/// [`SparsityError::TooLarge`] when sizes overflow; [`SparsityError::Setting`] for a fixed density
/// outside `[0, 1]`, a layer that does not exist, one fixed twice, or fixed layers that leave a
/// total other layers cannot meet.
pub fn densities<S: AsRef<[usize]>>(
    rule: Rule,
    shapes: &[S],
    sparsity: f64,
    fixed: &[(usize, f64)],
) -> Result<Densities, SparsityError> {
    check_sparsity(sparsity)?;
    let sizes = layer_sizes(shapes)?;
    let total = checked_sum(&sizes)? as f64;
    let raw: Vec<f64> = shapes.iter().map(|s| rule.raw(s.as_ref())).collect();
    let mut values: Vec<Option<f64>> = vec![None; sizes.len()];
    for &(layer, density) in fixed {
        let is_valid = layer < sizes.len() && values[layer].is_none() && (0.0..=1.0).contains(&density);
        if !is_valid {
            return Err(SparsityError::Setting {
                field: "fixed density",
                value: format!("{density} of layer {layer}"),
                allowed: "[0, 1], once for each existing layer",
            });
        }
        values[layer] = Some(density);
    }
    let mut scale;
    loop {
        let set: f64 = settled(&values, &sizes);
        let left = (1.0 - sparsity) * total - set;
        let open: Vec<usize> = (0..sizes.len()).filter(|&l| values[l].is_none()).collect();
        let weighted: f64 = open.iter().map(|&l| raw[l] * sizes[l] as f64).sum();
        if open.is_empty() {
            scale = 0.0;
            check_met(left, total, fixed)?;
            break;
        }
        if left < -1e-9 * total {
            return Err(unmet(fixed));
        }
        scale = left.max(0.0) / weighted;
        let top = open.iter().map(|&l| raw[l]).fold(0.0, f64::max);
        if top * scale > 1.0 {
            for &l in &open {
                if raw[l] >= top {
                    values[l] = Some(1.0);
                }
            }
            continue;
        }
        for &l in &open {
            values[l] = Some(raw[l] * scale);
        }
        break;
    }
    Ok(Densities { values: values.into_iter().map(|v| v.unwrap_or(0.0)).collect(), scale, sizes, sparsity })
}

fn settled(values: &[Option<f64>], sizes: &[usize]) -> f64 {
    values.iter().zip(sizes).filter_map(|(v, &s)| v.map(|d| d * s as f64)).sum()
}

fn check_met(left: f64, total: f64, fixed: &[(usize, f64)]) -> Result<(), SparsityError> {
    // Without fixed layers everything being dense is the answer to sparsity 0.
    if fixed.is_empty() || left.abs() <= 1e-9 * total { Ok(()) } else { Err(unmet(fixed)) }
}

fn unmet(fixed: &[(usize, f64)]) -> SparsityError {
    SparsityError::Setting {
        field: "fixed density",
        value: format!("{fixed:?}"),
        allowed: "densities that leave the other layers a total between nothing and all of them",
    }
}

fn layer_sizes<S: AsRef<[usize]>>(shapes: &[S]) -> Result<Vec<usize>, SparsityError> {
    if shapes.is_empty() {
        return Err(SparsityError::Empty { what: "the list of layers" });
    }
    shapes
        .iter()
        .map(|shape| {
            let shape = shape.as_ref();
            if shape.is_empty() || shape.contains(&0) {
                return Err(SparsityError::Empty { what: "a layer" });
            }
            shape
                .iter()
                .try_fold(1usize, |product, &d| product.checked_mul(d))
                .ok_or_else(|| SparsityError::TooLarge { what: "a layer", detail: format!("{shape:?}") })
        })
        .collect()
}
