//! Which channels of a classifier may change places together, and doing so.
//!
//! The channels of an activation are rows of the convolution that makes it and columns of every one that reads it. Depthwise layers,
//! pooling and additions keep their order, so that all activations they connect form one class: it is permuted as a whole, or the additions
//! would sum different channels. Image and logits stay.

use super::{Classifier, LayerOp};
use crate::error::{ModelError, Result};

/// Activations that must keep one order of their channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelClass {
    /// Number of channels.
    pub channels: usize,
    /// Convolutions whose rows are these channels.
    pub producers: Vec<usize>,
    /// Depthwise layers on them.
    pub depthwise: Vec<usize>,
    /// Convolutions whose columns are these channels.
    pub consumers: Vec<usize>,
}

/// All classes that may be permuted, in the order of their first producers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelClasses(pub Vec<ChannelClass>);

impl Classifier {
    /// The classes of channels that may be permuted.
    #[must_use]
    pub fn channel_classes(&self) -> ChannelClasses {
        // Spaces 0..n are the outputs of the layers, n is the image.
        let n = self.layers.len();
        let mut parent: Vec<usize> = (0..=n).collect();
        for (i, layer) in self.layers.iter().enumerate() {
            let input = layer.input.unwrap_or(n);
            match &layer.op {
                LayerOp::Conv(conv) if !conv.is_depthwise() => {}
                LayerOp::Add { other } => {
                    join(&mut parent, i, input);
                    join(&mut parent, i, *other);
                }
                _ => join(&mut parent, i, input),
            }
        }
        let fixed = [find(&parent, n), find(&parent, n.saturating_sub(1))];
        let mut classes: Vec<(usize, ChannelClass)> = Vec::new();
        for i in (0..n).filter(|i| self.conv(*i).is_some_and(|c| !c.is_depthwise())) {
            let root = find(&parent, i);
            if fixed.contains(&root) {
                continue;
            }
            match classes.iter_mut().find(|c| c.0 == root) {
                Some((_, class)) => class.producers.push(i),
                None => {
                    let channels = self.layers[i].output[0];
                    let class =
                        ChannelClass { channels, producers: vec![i], depthwise: vec![], consumers: vec![] };
                    classes.push((root, class));
                }
            }
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let (Some(conv), Some(input)) = (self.conv(i), layer.input) else { continue };
            let root = find(&parent, input);
            if let Some((_, class)) = classes.iter_mut().find(|c| c.0 == root) {
                if conv.is_depthwise() { &mut class.depthwise } else { &mut class.consumers }.push(i);
            }
        }
        ChannelClasses(classes.into_iter().map(|c| c.1).collect())
    }

    /// Reorders a class: channel `c` from now on is what `order[c]` was. The function of the network stays, but for the order of sums.
    ///
    /// # Errors
    /// [`ModelError::Permutation`] when `order` is no permutation of the class, or the class not of this network.
    pub fn permute(&mut self, class: &ChannelClass, order: &[usize]) -> Result<()> {
        let mut seen = vec![false; class.channels];
        let is_new = |c: &usize| seen.get_mut(*c).is_some_and(|s| !std::mem::replace(s, true));
        if order.len() != class.channels || !order.iter().all(is_new) {
            return Err(ModelError::Permutation { channels: class.channels, found: order.len() });
        }
        if !self.channel_classes().0.contains(class) {
            return Err(ModelError::Permutation { channels: 0, found: class.channels });
        }
        for &layer in class.producers.iter().chain(&class.depthwise) {
            let Some(conv) = self.conv_mut(layer) else { continue };
            let row = conv.weight.len() / conv.d_out.max(1);
            conv.weight = order.iter().flat_map(|&c| &conv.weight[c * row..(c + 1) * row]).copied().collect();
            conv.bias = order.iter().map(|&c| conv.bias[c]).collect();
        }
        for &layer in &class.consumers {
            let Some(conv) = self.conv_mut(layer) else { continue };
            let taps = conv.kernel * conv.kernel;
            let rows = conv.weight.chunks_exact((conv.d_in * taps).max(1));
            let moved = rows.flat_map(|row| order.iter().flat_map(|&c| &row[c * taps..(c + 1) * taps]));
            conv.weight = moved.copied().collect();
        }
        Ok(())
    }
}

fn find(parent: &[usize], mut at: usize) -> usize {
    while parent[at] != at {
        at = parent[at];
    }
    at
}

fn join(parent: &mut [usize], a: usize, b: usize) {
    let (a, b) = (find(parent, a), find(parent, b));
    // The lower one stays, so that the result does not depend on the order of joining.
    let (low, high) = (a.min(b), a.max(b));
    parent[high] = low;
}
