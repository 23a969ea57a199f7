//! Activations and statistics while a model streams through block by block.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor, TensorData};
use rarefy_checkpoint::{Checkpoint, layout::LinearSpec};
use rarefy_models::{Block, Stem, Tap};

use crate::{LayerStats, Needs, PruneError, statistics::InputSums};

/// Set by another thread to stop a run.
pub(super) fn is_set(cancel: &AtomicBool) -> bool {
    cancel.load(Ordering::Relaxed)
}

/// The first layer, in forward order, that has the same input as `linear`. Statistics are
/// collected once under its name. An unknown layer stands for itself.
pub(super) fn input_of(linear: &str) -> &str {
    match linear {
        "self_attn.k_proj" | "self_attn.v_proj" => "self_attn.q_proj",
        "mlp.up_proj" => "mlp.gate_proj",
        other => other,
    }
}

/// The hidden states of all calibration sequences, before the next block. Held once.
pub(super) struct Activations {
    device: Device,
    width: usize,
    sequences: Vec<Vec<f32>>,
}

impl Activations {
    /// Runs the embeddings, one sequence at a time.
    pub(super) fn embed(source: &Checkpoint, calibration: &[Vec<u32>]) -> Result<Self, PruneError> {
        let device = Device::flex();
        let stem = Stem::load(source, &device)?;
        let mut sequences = Vec::with_capacity(calibration.len());
        for tokens in calibration {
            sequences.push(values(stem.forward(std::slice::from_ref(tokens))?)?);
        }
        drop(stem);
        source.release_pages();
        Ok(Self { device, width: source.config().hidden_size, sequences })
    }

    /// The device blocks are loaded on.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Number of sequences.
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    fn tensor(&self, values: Vec<f32>) -> Tensor<3> {
        let length = values.len() / self.width;
        Tensor::from_data(TensorData::new(values, [1, length, self.width]), &self.device)
    }

    /// Replaces every sequence by what `block` makes of it. False: cancelled, the states are lost.
    pub(super) fn advance(
        &mut self,
        block: &Block,
        cancel: &AtomicBool,
        seen: &mut dyn FnMut(usize),
    ) -> Result<bool, PruneError> {
        for s in 0..self.sequences.len() {
            if is_set(cancel) {
                return Ok(false);
            }
            let x = std::mem::take(&mut self.sequences[s]);
            let y = block.forward(self.tensor(x), &mut ());
            self.sequences[s] = values(y)?;
            seen(s + 1);
        }
        Ok(true)
    }

    /// Collects the statistics of the inputs of `layers`, by [`input_of`]. None: cancelled.
    pub(super) fn collect(
        &self,
        block: &Block,
        layers: &[LinearSpec],
        needs: Needs,
        cancel: &AtomicBool,
        seen: &mut dyn FnMut(usize),
    ) -> Result<Option<BTreeMap<String, LayerStats>>, PruneError> {
        let mut tap = Collector::default();
        for layer in layers {
            tap.sums
                .entry(input_of(&layer.name).to_owned())
                .or_insert_with(|| InputSums::new(layer.tensor.clone(), layer.cols, needs));
        }
        for (s, x) in self.sequences.iter().enumerate() {
            if is_set(cancel) {
                return Ok(None);
            }
            tap.sequence = s;
            let _ = block.forward(self.tensor(x.clone()), &mut tap);
            if let Some(error) = tap.error.take() {
                return Err(error);
            }
            seen(s + 1);
        }
        let n = self.sequences.len();
        Ok(Some(tap.sums.into_iter().map(|(name, sums)| (name, sums.finish(n))).collect()))
    }
}

/// Told the index of a block, the block, its device, and `[layers][sequences]` of inputs.
pub(crate) type Visit<'a> =
    dyn FnMut(usize, &Block, &Device, &[Vec<Vec<f32>>]) -> Result<(), PruneError> + 'a;

/// Streams the sequences through the dense model. Each block is shown to `visit` together with the inputs of some of its layers,
/// for each layer one list of rows per sequence; besides the hidden states these inputs are all that is held. `seen` is told how many sequences went
/// through blocks, and of how many.
pub(crate) fn observe(
    source: &Checkpoint,
    calibration: &[Vec<u32>],
    linears: &[&str],
    seen: &mut dyn FnMut(usize, usize),
    visit: &mut Visit<'_>,
) -> Result<(), PruneError> {
    struct Inputs<'a>(&'a [&'a str], Vec<Vec<f32>>);
    impl Tap for Inputs<'_> {
        fn wants(&self, linear: &str) -> bool {
            self.0.contains(&linear)
        }
        fn see(&mut self, linear: &str, x: &[f32], _n_tokens: usize) {
            for (name, input) in self.0.iter().zip(&mut self.1) {
                if *name == linear {
                    *input = x.to_vec();
                }
            }
        }
    }
    let mut states = Activations::embed(source, calibration)?;
    let (blocks, n) = (source.config().n_layers, calibration.len());
    for index in 0..blocks {
        let block = Block::load(source, index, &states.device)?;
        source.release_pages();
        let mut inputs = vec![Vec::with_capacity(n); linears.len()];
        for (s, tokens) in calibration.iter().enumerate() {
            let x = std::mem::take(&mut states.sequences[s]);
            let mut tap = Inputs(linears, vec![Vec::new(); linears.len()]);
            states.sequences[s] = values(block.forward(states.tensor(x), &mut tap))?;
            for ((linear, input), of_linear) in linears.iter().zip(tap.1).zip(&mut inputs) {
                let width = input.len() / tokens.len();
                if let Some(first) = input.iter().position(|v| !v.is_finite()) {
                    return Err(PruneError::NonFiniteInput {
                        layer: format!("block {index}, {linear}"),
                        count: input.iter().filter(|v| !v.is_finite()).count(),
                        sequence: s,
                        token: first / width.max(1),
                    });
                }
                of_linear.push(input);
            }
            seen(index * n + s + 1, blocks * n);
        }
        visit(index, &block, &states.device, &inputs)?;
    }
    Ok(())
}

fn values(x: Tensor<3>) -> Result<Vec<f32>, PruneError> {
    x.into_data().try_into_vec::<f32>().map_err(|e| PruneError::Activations(format!("{e:?}")))
}

#[derive(Default)]
struct Collector {
    sums: BTreeMap<String, InputSums>,
    sequence: usize,
    error: Option<PruneError>,
}

impl Tap for Collector {
    fn wants(&self, linear: &str) -> bool {
        self.error.is_none() && self.sums.contains_key(linear)
    }

    fn see(&mut self, linear: &str, x: &[f32], n_tokens: usize) {
        if let Some(sums) = self.sums.get_mut(linear)
            && let Err(error) = sums.add(x, n_tokens, self.sequence)
        {
            self.error.get_or_insert(error);
        }
    }
}
