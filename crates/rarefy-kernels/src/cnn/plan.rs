//! Where activations lie.

use std::ops::Range;

use super::{Layer, Planned, setting};
use crate::KernelError;

/// Floats of a cache line, to which every activation is aligned.
pub(super) const LINE: usize = 16;

/// A place in the memory of activations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) begin: usize,
    pub(super) len: usize,
}

impl Span {
    pub(super) fn range(self) -> Range<usize> {
        self.begin..self.begin + self.len
    }

    fn end(self) -> usize {
        (self.begin + self.len).next_multiple_of(LINE)
    }

    fn meets(self, other: Span) -> bool {
        self.begin < other.end() && other.begin < self.end()
    }
}

/// Elements of all activations alive at once, at most: 4 GiB. The largest published mobile networks need some megabytes.
const MOST: usize = 1 << 30;

/// Gives every node a place that no node still to be read occupies; elements needed in all.
pub(super) fn assign(nodes: &mut [Planned]) -> Result<usize, KernelError> {
    let mut last_use: Vec<usize> = (0..nodes.len()).collect();
    for (i, node) in nodes.iter().enumerate() {
        let other = if let Layer::Add { other } = node.layer { Some(other) } else { None };
        for read in node.input.into_iter().chain(other) {
            last_use[read] = i;
        }
    }
    if let Some(last) = last_use.last_mut() {
        *last = nodes.len();
    }
    let mut all = 0;
    for i in 0..nodes.len() {
        let [channels, height, width] = nodes[i].report.output;
        let len = channels.checked_mul(height).and_then(|n| n.checked_mul(width));
        let len = len.filter(|n| *n < usize::MAX / 64).ok_or_else(|| setting("output", channels, "less"))?;
        let over = match (&nodes[i].layer, nodes[i].input) {
            // Unless both operands are one: then a copy is needed.
            (Layer::Add { other }, Some(input)) if last_use[input] == i && *other != input => Some(input),
            _ => None,
        };
        let span = if let Some(input) = over {
            nodes[input].span
        } else {
            let busy: Vec<Span> = (0..i).filter(|n| last_use[*n] >= i).map(|n| nodes[n].span).collect();
            // The lowest place: at the start or right behind something busy.
            let places = std::iter::once(0).chain(busy.iter().map(|b| b.end()));
            let free = places.map(|begin| Span { begin, len }).filter(|s| !busy.iter().any(|b| b.meets(*s)));
            free.min_by_key(|s| s.begin).unwrap_or(Span { begin: all, len })
        };
        nodes[i].span = span;
        all = all.max(span.end());
        if all > MOST {
            return Err(KernelError::TooLarge { kernel: "network", a: len, b: nodes.len() });
        }
    }
    Ok(all)
}

/// `read` to read and `write` to write; they must not overlap, as [`assign`] sees to.
pub(super) fn two(memory: &mut [f32], read: Span, write: Span) -> (&[f32], &mut [f32]) {
    if read.begin < write.begin {
        let (low, high) = memory.split_at_mut(write.begin);
        (&low[read.range()], &mut high[..write.len])
    } else {
        let (low, high) = memory.split_at_mut(read.begin);
        (&high[..read.len], &mut low[write.range()])
    }
}
