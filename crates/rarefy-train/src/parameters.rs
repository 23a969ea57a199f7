//! The weights under training, on plain slices, with their moments and masks.

use rarefy_sparsity::Mask;

/// One tensor of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Name in the model folder.
    pub name: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Values. Masked ones are exactly +0.0.
    pub values: Vec<f32>,
    /// AdamW: first moment; SGD: velocity. Zero where masked.
    pub first: Vec<f32>,
    /// AdamW: second moment; SGD: empty. Zero where masked.
    pub second: Vec<f32>,
    /// Whether weight decay acts on it and a mask may cover it: a linear layer inside a block.
    pub is_linear: bool,
    mask: Option<Mask>,
}

impl Parameter {
    /// A tensor without moments or mask.
    #[must_use]
    pub fn new(name: String, shape: Vec<usize>, values: Vec<f32>, is_linear: bool, has_second: bool) -> Self {
        let n = values.len();
        Self {
            name,
            shape,
            values,
            first: vec![0.0; n],
            second: vec![0.0; if has_second { n } else { 0 }],
            is_linear,
            mask: None,
        }
    }

    /// The mask in force; 1 = kept.
    #[must_use]
    pub fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref()
    }

    /// Puts a mask in force: pruned values and their moments become exactly zero and stay so. A weight that a new mask
    /// keeps again starts from zero value and moments.
    ///
    /// # Panics
    /// When the tensor is no linear layer or the shape differs: a mistake of the caller, not of the user.
    pub fn set_mask(&mut self, mask: Mask) {
        assert!(self.is_linear, "only linear layers are masked, `{}` is none", self.name);
        assert_eq!([mask.rows(), mask.cols()], self.shape[..], "mask of `{}`", self.name);
        mask.apply(&mut self.values);
        mask.apply(&mut self.first);
        if !self.second.is_empty() {
            mask.apply(&mut self.second);
        }
        self.mask = Some(mask);
    }
}

/// All tensors of the model, in a fixed order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parameters {
    /// The tensors.
    pub all: Vec<Parameter>,
}

impl Parameters {
    /// Fraction of zeros forced by masks among the weights of the linear layers, in [0, 1].
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        let linear = || self.all.iter().filter(|p| p.is_linear);
        let total: usize = linear().map(|p| p.values.len()).sum();
        let pruned: usize = linear().filter_map(|p| p.mask()).map(Mask::pruned).sum();
        pruned as f64 / total.max(1) as f64
    }

    /// Number of weights.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.iter().map(|p| p.values.len()).sum()
    }

    /// Whether there is no weight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
