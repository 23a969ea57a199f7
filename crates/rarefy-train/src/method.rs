//! The hooks around a training step into which a sparse method is plugged.

use crate::{Parameters, TrainError};
use serde_json::Value;

/// A sparse training method. Every hook is empty by default; the trainer knows hooks, never methods.
///
/// Order within step `step` (from 0): gradients of the loss, [`extra_loss`](Self::extra_loss),
/// [`after_backward`](Self::after_backward), clipping, the update, [`after_step`](Self::after_step).
/// `gradients` has the order and lengths of `parameters.all`.
pub trait SparseMethod: Send {
    /// Slug of the method, as in the table of methods.
    fn slug(&self) -> &'static str;

    /// Before the first step of a new run (not of a resumed one).
    ///
    /// # Errors
    /// Settings that do not fit the model.
    fn begin(&mut self, _parameters: &mut Parameters) -> Result<(), TrainError> {
        Ok(())
    }

    /// A further term of the loss: adds its gradient to `gradients` and returns its value in nats.
    ///
    /// # Errors
    /// Numbers that are not finite.
    fn extra_loss(
        &mut self,
        _step: u64,
        _parameters: &Parameters,
        _gradients: &mut [Vec<f32>],
    ) -> Result<f64, TrainError> {
        Ok(0.0)
    }

    /// Sees and may change the gradients.
    ///
    /// # Errors
    /// Numbers that are not finite.
    fn after_backward(
        &mut self,
        _step: u64,
        _parameters: &Parameters,
        _gradients: &mut [Vec<f32>],
    ) -> Result<(), TrainError> {
        Ok(())
    }

    /// May change weights and masks after the update; returns whether it did.
    ///
    /// # Errors
    /// Numbers that are not finite.
    fn after_step(&mut self, _step: u64, _parameters: &mut Parameters) -> Result<bool, TrainError> {
        Ok(false)
    }

    /// After as many tokens as the text has; never for the endless built-in corpus.
    ///
    /// # Errors
    /// Numbers that are not finite.
    fn epoch_end(&mut self, _epoch: u64, _parameters: &mut Parameters) -> Result<(), TrainError> {
        Ok(())
    }

    /// After the last step.
    ///
    /// # Errors
    /// Numbers that are not finite.
    fn finish(&mut self, _parameters: &mut Parameters) -> Result<(), TrainError> {
        Ok(())
    }

    /// State to save besides weights, moments and masks.
    fn save(&self) -> Value {
        Value::Null
    }

    /// Restores what [`save`](Self::save) gave.
    ///
    /// # Errors
    /// A state of another method.
    fn load(&mut self, _state: &Value) -> Result<(), TrainError> {
        Ok(())
    }
}

/// No sparsity: training as usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dense;

impl SparseMethod for Dense {
    fn slug(&self) -> &'static str {
        "dense"
    }
}
