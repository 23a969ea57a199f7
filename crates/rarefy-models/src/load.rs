//! From tensors of a model folder to layers: dense parameters to prune and train, or kernels to run.

use std::sync::Arc;

use burn::tensor::Device;
use half::{bf16, f16};
use rarefy_checkpoint::{Activation, Checkpoint, ModelConfig, StoredWeight};
use rarefy_kernels::row_skip::{self, GatedMlp};
use rarefy_kernels::{
    DenseBf16, DenseF32, KernelError, LinearKernel, NmBf16, NmF32, PanelBf16, PanelF32, RowValue,
};
use rarefy_sparsity::SparsityError;
use rarefy_sparsity::formats::{BitmaskPanel, NmPacked};

use crate::attention::AttentionShape;
use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::rope::Rope;
use crate::rows::{Rows, Stored};
use crate::sparse::inputs::InputLinear;
use crate::sparse::mlp::{MlpRun, RowMlp, parts};
use crate::sparse::tokens::AttentionRun;
use crate::sparse::{AttentionRule, Counts, InputThresholds, MlpRule, RuleError, Rules};

/// How packed weights of a folder are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PackedPolicy {
    /// By the kernel of the stored format; weights stored dense (zeros or not) run dense.
    #[default]
    AsStored,
    /// Decoded to dense, in the stored number type.
    DenseAlways,
}

/// What a loader makes of a linear layer.
#[derive(Debug, Clone, Copy)]
enum Mode {
    Dense,
    Run(PackedPolicy),
}

/// Reads layers of one folder.
pub(crate) struct Loader<'a> {
    ckpt: &'a Checkpoint,
    device: Device,
    mode: Mode,
    rope: Option<Rope>,
    rules: Option<&'a Rules>,
}

impl<'a> Loader<'a> {
    /// Every linear weight becomes a parameter in 32 bits.
    pub(crate) fn dense(ckpt: &'a Checkpoint, device: &Device) -> Self {
        Self::new(ckpt, device, Mode::Dense, None)
    }

    /// Every linear weight goes into a kernel, in the number type of the folder.
    pub(crate) fn run(ckpt: &'a Checkpoint, device: &Device, policy: PackedPolicy, rules: &'a Rules) -> Self {
        Self::new(ckpt, device, Mode::Run(policy), Some(rules))
    }

    fn new(ckpt: &'a Checkpoint, device: &Device, mode: Mode, rules: Option<&'a Rules>) -> Self {
        let config = ckpt.config();
        let rope = config.rope.as_ref().map(|rope| Rope::new(rope, config.head_dim));
        Self { ckpt, device: device.clone(), mode, rope, rules }
    }

    pub(crate) fn config(&self) -> &'a ModelConfig {
        self.ckpt.config()
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The rotation, shared by all blocks made by this loader.
    pub(crate) fn rope(&self) -> Option<Rope> {
        self.rope.clone()
    }

    /// Whether linear weights go into kernels.
    pub(crate) fn runs(&self) -> bool {
        matches!(self.mode, Mode::Run(_))
    }

    /// A tensor of `len` values.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.checked(name, &[len])
    }

    /// `prefix.weight` and `prefix.bias` as a layer norm.
    pub(crate) fn layer_norm(&self, prefix: &str, width: usize, eps: f64) -> Result<LayerNorm> {
        let gamma = self.vector(&format!("{prefix}.weight"), width)?;
        let beta = self.vector(&format!("{prefix}.bias"), width)?;
        Ok(LayerNorm::new(gamma, beta, eps, &self.device))
    }

    /// `prefix.weight` `[rows, cols]` with or without `prefix.bias` `[rows]`.
    pub(crate) fn linear(&self, prefix: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear> {
        let bias = if bias { Some(self.vector(&format!("{prefix}.bias"), rows)?) } else { None };
        let name = format!("{prefix}.weight");
        match self.mode {
            Mode::Dense => {
                let weight = self.checked(&name, &[rows, cols])?;
                Ok(Linear::dense(weight, rows, cols, bias, &self.device))
            }
            Mode::Run(policy) => {
                self.check_shape(&name, &[rows, cols])?;
                Ok(Linear::packed(self.kernel(&name, rows, cols, policy)?, bias, &self.device))
            }
        }
    }

    /// The rule of the MLP of block `index`, if the rules say anything about MLPs.
    pub(crate) fn mlp_rule(&self, index: usize) -> Option<MlpRule> {
        self.rules.and_then(|r| r.mlp.get(index)).copied()
    }

    /// The thresholds on the inputs of block `index`, if the rules have any.
    pub(crate) fn input_rule(&self, index: usize) -> Option<InputThresholds> {
        self.rules.and_then(|r| r.inputs.get(index)).copied()
    }

    /// Packed weights have no plain rows to skip; they may be unpacked only when the caller asked for dense ones.
    fn refuse_packed(&self, name: &str, stored: &[&StoredWeight]) -> Result<()> {
        let is_packed = |w: &&&StoredWeight| {
            !matches!(w, StoredWeight::DenseF32(_) | StoredWeight::DenseF16(_) | StoredWeight::DenseBf16(_))
        };
        if stored.iter().any(|w| is_packed(&w)) && !matches!(self.mode, Mode::Run(PackedPolicy::DenseAlways))
        {
            let reason = format!("`{name}` is packed, and skipping reads plain rows");
            let remedy = "`rarefy convert --format dense` unpacks it";
            return Err(RuleError::Model { reason, remedy }.into());
        }
        Ok(())
    }

    /// A linear layer that skips the columns of inputs up to `threshold`.
    pub(crate) fn linear_by_columns(
        &self,
        prefix: &str,
        (rows, cols): (usize, usize),
        bias: bool,
        threshold: f32,
        counts: Arc<Counts>,
    ) -> Result<Linear> {
        let bias = if bias { Some(self.vector(&format!("{prefix}.bias"), rows)?) } else { None };
        let name = format!("{prefix}.weight");
        self.check_shape(&name, &[rows, cols])?;
        let stored = self.ckpt.read_weight(&name)?;
        self.refuse_packed(&name, &[&stored])?;
        let kernel = |e: KernelError| ModelError::Kernel { tensor: name.clone(), source: e };
        let size = (rows, cols);
        let held: Arc<dyn LinearKernel> = match stored {
            StoredWeight::DenseBf16(w) => {
                Arc::new(InputLinear::new(&w, size, threshold, counts).map_err(kernel)?)
            }
            _ => {
                let wide = self.ckpt.read_f32(&name)?;
                Arc::new(InputLinear::new(&wide, size, threshold, counts).map_err(kernel)?)
            }
        };
        Ok(Linear::packed(held, bias, &self.device))
    }

    /// What runs the attention of block `index` by its rule. A sliding window only narrows the shape.
    pub(crate) fn attention_run(
        &self,
        index: usize,
        shape: &mut AttentionShape,
    ) -> Result<Option<AttentionRun>> {
        let Some(rule) = self.rules.and_then(|r| r.attention.get(index)) else { return Ok(None) };
        if let AttentionRule::Window(window) = *rule {
            shape.window = Some(shape.window.map_or(window, |w| w.min(window)));
            return Ok(None);
        }
        if shape.window.is_some() {
            let reason = format!("block {index} has a sliding window of its own");
            return Err(RuleError::Model { reason, remedy: "run its attention dense" }.into());
        }
        Ok(Some(AttentionRun { rule: rule.clone(), counts: Counts::default() }))
    }

    /// Gate, up and down projection with neurons as rows, and what runs them by `rule`; `names` without `.weight`.
    pub(crate) fn mlp_by_rows(
        &self,
        rule: MlpRule,
        names: [String; 3],
        (d, f): (usize, usize),
    ) -> Result<([Linear; 3], Option<MlpRun>)> {
        let [gate, up, down] = names.map(|n| format!("{n}.weight"));
        for (name, shape) in [(&gate, [f, d]), (&up, [f, d]), (&down, [d, f])] {
            self.check_shape(name, &shape)?;
        }
        let stored =
            [self.ckpt.read_weight(&gate)?, self.ckpt.read_weight(&up)?, self.ckpt.read_weight(&down)?];
        let [a, b, c] = &stored;
        self.refuse_packed(&gate, &[a, b, c])?;
        let (linears, rows) = match stored {
            [StoredWeight::DenseBf16(g), StoredWeight::DenseBf16(u), StoredWeight::DenseBf16(w)] => {
                self.rows(&gate, [g, u, w], (d, f))?
            }
            _ => {
                let wide = [self.ckpt.read_f32(&gate)?, self.ckpt.read_f32(&up)?, self.ckpt.read_f32(&down)?];
                self.rows(&gate, wide, (d, f))?
            }
        };
        let activation = match self.config().activation {
            Activation::Relu => row_skip::Activation::Relu,
            _ => row_skip::Activation::Silu,
        };
        Ok((linears, Some(MlpRun { rule, activation, rows: Some(rows), counts: Counts::default() })))
    }

    fn rows<T: RowValue + Stored>(
        &self,
        name: &str,
        [gate, up, down]: [Vec<T>; 3],
        (d, f): (usize, usize),
    ) -> Result<([Linear; 3], Arc<dyn RowMlp>)> {
        let kernel = |e: KernelError| ModelError::Kernel { tensor: name.to_owned(), source: e };
        let mlp = Arc::new(GatedMlp::new(&gate, &up, &down, d, f, d).map_err(kernel)?);
        Ok((parts(&mlp).map(|p| Linear::packed(p, None, &self.device)), mlp))
    }

    /// A dense matrix that is read row by row; in 16 bits only when it is to run.
    pub(crate) fn table(&self, name: &str, rows: usize, cols: usize) -> Result<Table> {
        self.check_shape(name, &[rows, cols])?;
        let kernel = |e: KernelError| ModelError::Kernel { tensor: name.to_owned(), source: e };
        if self.runs()
            && let StoredWeight::DenseBf16(w) = self.ckpt.read_weight(name)?
        {
            return Ok(Table::Bf16(Arc::new(Rows::new(w, rows, cols).map_err(kernel)?)));
        }
        let w = self.ckpt.read_f32(name)?;
        Ok(Table::F32(Arc::new(Rows::new(w, rows, cols).map_err(kernel)?)))
    }

    pub(crate) fn checked(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check_shape(name, shape)?;
        Ok(self.ckpt.read_f32(name)?)
    }

    fn check_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        match self.ckpt.tensors().get(name) {
            Some(t) if t.shape != shape => Err(ModelError::Shape {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: t.shape.clone(),
            }),
            // A missing tensor is reported by the read, with the file.
            _ => Ok(()),
        }
    }

    fn kernel(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        policy: PackedPolicy,
    ) -> Result<Arc<dyn LinearKernel>> {
        let kernel = |e: KernelError| ModelError::Kernel { tensor: name.to_owned(), source: e };
        let format = |e: SparsityError| ModelError::Format { tensor: name.to_owned(), source: e };
        let dense_f32 = |w: Vec<f32>| -> Result<Arc<dyn LinearKernel>> {
            Ok(Arc::new(DenseF32::new(&w, rows, cols).map_err(kernel)?))
        };
        let dense_bf16 = |w: Vec<bf16>| -> Result<Arc<dyn LinearKernel>> {
            Ok(Arc::new(DenseBf16::new(&w, rows, cols).map_err(kernel)?))
        };
        // There are no kernels for 16-bit IEEE floats: such weights are widened, which is exact.
        let widen = |w: Vec<f16>| w.into_iter().map(f16::to_f32).collect::<Vec<f32>>();
        let stored = self.ckpt.read_weight(name)?;
        let dense = policy == PackedPolicy::DenseAlways;
        Ok(match stored {
            StoredWeight::DenseF32(w) => dense_f32(w)?,
            StoredWeight::DenseF16(w) => dense_f32(widen(w))?,
            StoredWeight::DenseBf16(w) => dense_bf16(w)?,
            StoredWeight::PanelF32(p) if dense => dense_f32(p.decode())?,
            StoredWeight::PanelF16(p) if dense => dense_f32(widen(p.decode()))?,
            StoredWeight::PanelBf16(p) if dense => dense_bf16(p.decode())?,
            StoredWeight::NmF32(p) if dense => dense_f32(p.decode())?,
            StoredWeight::NmF16(p) if dense => dense_f32(widen(p.decode()))?,
            StoredWeight::NmBf16(p) if dense => dense_bf16(p.decode())?,
            StoredWeight::PanelF32(p) => Arc::new(PanelF32::new(p)),
            StoredWeight::PanelBf16(p) => Arc::new(PanelBf16::new(p)),
            StoredWeight::PanelF16(p) => {
                let wide = widen(p.decode());
                Arc::new(PanelF32::new(BitmaskPanel::encode(&wide, rows, cols).map_err(format)?))
            }
            StoredWeight::NmF32(p) => Arc::new(NmF32::new(p).map_err(kernel)?),
            StoredWeight::NmBf16(p) => Arc::new(NmBf16::new(p).map_err(kernel)?),
            StoredWeight::NmF16(p) => {
                let wide = widen(p.decode());
                let packed = NmPacked::encode(&wide, rows, cols, p.n(), p.m()).map_err(format)?;
                Arc::new(NmF32::new(packed).map_err(kernel)?)
            }
        })
    }
}

/// A dense matrix read row by row, such as embeddings.
#[derive(Debug)]
pub(crate) enum Table {
    F32(Arc<Rows<f32>>),
    Bf16(Arc<Rows<bf16>>),
}

impl Table {
    /// Appends row `index` to `out`.
    pub(crate) fn append_row(&self, index: usize, out: &mut Vec<f32>) {
        match self {
            Self::F32(w) => out.extend(w.row(index)),
            Self::Bf16(w) => out.extend(w.row(index)),
        }
    }

    /// The same memory as a linear layer.
    pub(crate) fn as_linear(&self, device: &Device) -> Linear {
        let kernel: Arc<dyn LinearKernel> = match self {
            Self::F32(w) => w.clone(),
            Self::Bf16(w) => w.clone(),
        };
        Linear::packed(kernel, None, device)
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(w) => w.bytes(),
            Self::Bf16(w) => w.bytes(),
        }
    }
}
