//! The training loss of a causal language model.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};

/// Mean cross-entropy in nats: `logits[batch, length, vocab]` against the token that each position should predict,
/// `targets[batch, length]` (the caller has shifted them: `targets[b, t]` follows the token at `t`). Returns `[1]`.
#[must_use]
pub fn causal_lm_loss(logits: Tensor<3>, targets: Tensor<2, Int>) -> Tensor<1> {
    let [batch, length, vocab] = logits.dims();
    let rows = batch * length;
    log_softmax(logits.reshape([rows, vocab]), 1).gather(1, targets.reshape([rows, 1])).mean().neg()
}
