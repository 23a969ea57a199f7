//! From a classifier to a folder of the same kind.

use rarefy_checkpoint::{NewModel, NewModelFiles, NewTensor};
use serde_json::Value;

use super::{Classifier, ConvLayer};
use crate::error::Result;

impl Classifier {
    /// Writes into `folder` what [`Classifier::open`] reads; it appears complete or not at all. Tensors keep their types. What the
    /// configuration says of measured accuracy is left out: it was that of other weights.
    ///
    /// # Errors
    /// [`ModelError::Checkpoint`](crate::ModelError::Checkpoint): the folder cannot be written.
    pub fn write(&self, folder: NewModel, record: &Value) -> Result<()> {
        let mut config = self.config.clone();
        if let Some(fields) = config.as_object_mut() {
            fields.remove("measured");
        }
        let convs: Vec<(usize, &ConvLayer)> =
            (0..self.layers.len()).filter_map(|i| Some((i, self.conv(i)?))).collect();
        let names: Vec<[String; 2]> =
            convs.iter().map(|(i, _)| [Self::weight_name(*i), format!("layers.{i}.bias")]).collect();
        let shapes: Vec<[usize; 4]> =
            convs.iter().map(|(_, c)| [c.d_out, c.d_in, c.kernel, c.kernel]).collect();
        let mut tensors = Vec::with_capacity(2 * convs.len());
        for (((_, conv), [weight, bias]), shape) in convs.iter().zip(&names).zip(&shapes) {
            tensors.push(NewTensor { name: weight, shape, values: &conv.weight, dtype: conv.dtype });
            tensors.push(NewTensor {
                name: bias,
                shape: &shape[..1],
                values: &conv.bias,
                dtype: conv.bias_dtype,
            });
        }
        let files = NewModelFiles { config: &config, tokenizer: None, record, others: &[] };
        Ok(folder.finish(&tensors, files)?)
    }
}
