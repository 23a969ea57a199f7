//! The settings of `rarefy prune`: the same names as flags and as keys of a recipe file.

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use rarefy_kernels::attention::LabelKind;
use rarefy_kernels::calibrate::double_sparsity::Importance;
use rarefy_models::Grouping;
use rarefy_prune::methods::CatsPlace;
use rarefy_sparsity::Pattern;
use serde::{Deserialize, Serialize};

use super::error::{CliError, CliResult, nearest, read_text};

/// Everything `prune` can be told. Each flag has a recipe key of the same name, and the reverse.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PruneOptions {
    /// Method: see `rarefy methods`
    #[arg(long, value_name = "NAME", help_heading = "What to prune")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<String>,

    /// Fraction of zeros in every pruned layer, in [0, 1); for cats the share of idle neurons
    #[arg(long, value_name = "S", help_heading = "What to prune")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sparsity: Option<f64>,

    /// Shape of the zeros: unstructured, 2:4 (at most 2 non-zeros of 4), any N:M, block:4x1, group:16, channel
    #[arg(long, value_name = "P", help_heading = "What to prune")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pattern: Option<String>,

    /// First block to prune, counted from 0
    #[arg(long, value_name = "N", help_heading = "What to prune")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_layer: Option<usize>,

    /// First block not to prune any more, counted from 0
    #[arg(long, value_name = "N", help_heading = "What to prune")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_layer: Option<usize>,

    /// Prune only linear layers whose name contains this text
    #[arg(long, value_name = "TEXT", help_heading = "What to prune")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prune_only: Option<String>,

    /// Prune exactly the layers that the three flags above leave out
    #[arg(long, help_heading = "What to prune")]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) invert: bool,

    /// Text to calibrate on [default for `builtin`: text from its own generator]
    #[arg(long, value_name = "FILE", help_heading = "Calibration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) calibrate: Option<PathBuf>,

    /// Calibration sequences [default: 128]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) samples: Option<usize>,

    /// Tokens of each calibration sequence [default: 512, or the model's maximum if smaller]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) length: Option<usize>,

    /// Format of the new folder [default: dense]
    #[arg(long, value_enum, value_name = "F", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<super::convert::Format>,

    /// What the cutoff of cats is on: the gates, or the inputs of all matrices [default: gate]
    #[arg(long = "where", value_name = "gate|all", value_parser = word::<CatsPlace>, help_heading = "Method settings")]
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<CatsPlace>,

    /// Tokens that double-sparsity attends to: a share of the model's context such as 1/16, or a number from 2 on [default: 1/16]
    #[arg(long, value_name = "T", help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tokens: Option<Amount>,

    /// Channels of each head that double-sparsity looks at: a share such as 1/16, or a number from 2 on [default: 1/16]
    #[arg(long, value_name = "R", help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) channels: Option<Amount>,

    /// What makes a channel important for double-sparsity: qk, q, k, all-pairs, softmax-weighted, absolute-sum or variance [default: qk]
    #[arg(long, value_name = "I", value_parser = word::<Importance>, help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) importance: Option<Importance>,

    /// How double-sparsity stores the channels of the keys [default: f32]
    #[arg(long, value_name = "f32|bf16|int8|int4", value_parser = word::<LabelKind>, help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<LabelKind>,

    /// Whether the query heads of a group share the tokens of double-sparsity, or even have channels of their own [default: summed]
    #[arg(long, value_name = "summed|per-head|own-channels", value_parser = word::<Grouping>, help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grouping: Option<Grouping>,

    /// First blocks that attend to all tokens with double-sparsity [default: 2]
    #[arg(long, value_name = "N", help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dense_layers: Option<usize>,

    /// Columns that SparseGPT treats together [default: 128]
    #[arg(long, value_name = "N", help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blocksize: Option<usize>,

    /// Damping of SparseGPT as a fraction of the mean Hessian diagonal [default: 0.01]
    #[arg(long, value_name = "X", help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) percdamp: Option<f64>,

    /// Bits of the weights that SparseGPT quantises while it prunes [default: none]
    #[arg(long, value_name = "BITS", help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quantize_bits: Option<u32>,

    /// Weights that compete with each other [default: row for wanda, layer for magnitude]
    #[arg(long, value_enum, value_name = "G", help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) granularity: Option<Granularity>,

    /// Columns that share a quantisation scale [default: the whole row]
    #[arg(long, value_name = "N", help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quantize_group: Option<usize>,

    /// How SparseGPT chooses its mask [default: obs]
    #[arg(long, value_enum, value_name = "RULE", help_heading = "Method settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mask: Option<MaskChoice>,

    /// Wanda's variant: equal share of the score in every row instead of an equal count
    #[arg(long, help_heading = "Method settings")]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) variant: bool,

    /// Select exactly as the authors' code does where it differs from the paper
    #[arg(long, help_heading = "Method settings")]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) compat: bool,
}

/// A share or a number: `1/16`, `0.25`, `64`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AmountText")]
pub(crate) struct Amount(pub(crate) f64);

/// How an [`Amount`] stands in a recipe.
#[derive(Deserialize)]
#[serde(untagged)]
enum AmountText {
    Number(f64),
    Text(String),
}

impl TryFrom<AmountText> for Amount {
    type Error = String;
    fn try_from(text: AmountText) -> Result<Self, String> {
        match text {
            AmountText::Number(value) => Ok(Self(value)),
            AmountText::Text(text) => text.parse(),
        }
    }
}

impl std::str::FromStr for Amount {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.trim().parse::<f64>().ok();
        let value = match text.split_once('/') {
            Some((a, b)) => number(a).zip(number(b)).map(|(a, b)| a / b),
            None => number(text),
        };
        value
            .filter(|v| v.is_finite())
            .map(Self)
            .ok_or_else(|| "give a share such as 1/16, or a number".into())
    }
}

/// A word of a closed set, as recipes spell it.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.into())).map_err(|e| e.to_string())
}

/// Weights that compete for a place in the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Granularity {
    /// Each output row by itself
    Row,
    /// The whole layer
    Layer,
}

/// Mask rules of SparseGPT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MaskChoice {
    /// Its own saliency
    Obs,
    /// Magnitude first, then the weight update
    MagnitudeSeq,
    /// Wanda first, then the weight update
    WandaSeq,
    /// Magnitude per block of columns, on updated weights
    MagnitudeIter,
    /// Wanda per block of columns, on updated weights
    WandaIter,
    /// The zeros that are there; only the other weights change
    Existing,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature serde asks for
fn is_false(value: &bool) -> bool {
    !*value
}

/// Only to list the flags.
#[derive(Debug, clap::Parser)]
struct Keys {
    #[command(flatten)]
    options: PruneOptions,
}

/// All flags of [`PruneOptions`], which are also the keys of a recipe.
pub(crate) fn keys() -> Vec<String> {
    let command = Keys::command();
    let mut names: Vec<String> = command
        .get_arguments()
        .filter_map(|a| a.get_long().map(str::to_owned))
        .filter(|n| n != "help" && n != "version")
        .collect();
    names.sort();
    names
}

impl PruneOptions {
    /// Reads a recipe; paths in it are relative to its folder.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key (the nearest names are given) or
    /// a value of the wrong type.
    pub(crate) fn from_recipe(path: &Path) -> CliResult<Self> {
        let text = read_text(path, "the recipe")?;
        let mut options = parse_recipe(&text, path)?;
        if let (Some(file), Some(folder)) = (options.calibrate.as_mut(), path.parent()) {
            *file = folder.join(&*file);
        }
        Ok(options)
    }

    /// `self` where it says something, else `base`.
    pub(crate) fn over(self, base: Self) -> Self {
        // N:M fixes the sparsity by itself: given on one side it replaces what the other says of both.
        let fixes = |p: &Option<String>| {
            p.as_deref()
                .and_then(|p| p.parse::<Pattern>().ok())
                .is_some_and(|p| p.implied_sparsity().is_some())
        };
        let says_pattern = fixes(&self.pattern) && self.sparsity.is_none();
        let says_sparsity = fixes(&base.pattern) && self.sparsity.is_some() && self.pattern.is_none();
        let (sparsity, pattern) = if says_pattern || says_sparsity {
            (self.sparsity, self.pattern)
        } else {
            (self.sparsity.or(base.sparsity), self.pattern.or(base.pattern))
        };
        Self {
            method: self.method.or(base.method),
            sparsity,
            pattern,
            min_layer: self.min_layer.or(base.min_layer),
            max_layer: self.max_layer.or(base.max_layer),
            prune_only: self.prune_only.or(base.prune_only),
            invert: self.invert || base.invert,
            calibrate: self.calibrate.or(base.calibrate),
            samples: self.samples.or(base.samples),
            length: self.length.or(base.length),
            format: self.format.or(base.format),
            place: self.place.or(base.place),
            tokens: self.tokens.or(base.tokens),
            channels: self.channels.or(base.channels),
            importance: self.importance.or(base.importance),
            labels: self.labels.or(base.labels),
            grouping: self.grouping.or(base.grouping),
            dense_layers: self.dense_layers.or(base.dense_layers),
            blocksize: self.blocksize.or(base.blocksize),
            percdamp: self.percdamp.or(base.percdamp),
            quantize_bits: self.quantize_bits.or(base.quantize_bits),
            quantize_group: self.quantize_group.or(base.quantize_group),
            mask: self.mask.or(base.mask),
            granularity: self.granularity.or(base.granularity),
            variant: self.variant || base.variant,
            compat: self.compat || base.compat,
        }
    }
}

fn parse_recipe(text: &str, path: &Path) -> CliResult<PruneOptions> {
    let table: toml::Table = toml::from_str(text)
        .map_err(|e| CliError::failed(format!("recipe `{}` is not TOML", path.display()), e))?;
    let known = keys();
    if let Some(key) = table.keys().find(|k| !known.contains(k)) {
        let near = nearest(key, known.iter().map(String::as_str));
        let hint = if near.is_empty() {
            format!("known keys: {}", known.join(", "))
        } else {
            format!("nearest: {}; every flag of `rarefy prune --help` is a key", near.join(", "))
        };
        return Err(CliError::usage(format!("recipe `{}`: unknown key `{key}`", path.display()), hint));
    }
    toml::from_str(text)
        .map_err(|e| CliError::failed(format!("recipe `{}` has a wrong value", path.display()), e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_flag_is_a_key_and_the_reverse() {
        let full = "method = 'wanda'\nsparsity = 0.5\npattern = '2:4'\nmin-layer = 0\nmax-layer = 1\n\
            prune-only = 'q'\ninvert = true\ncalibrate = 'a'\nsamples = 1\nlength = 2\nformat = 'packed'\n\
            where = 'all'\ntokens = '1/16'\nchannels = 4\nimportance = 'q'\nlabels = 'int4'\ngrouping = 'per-head'\ndense-layers = 1\nblocksize = 3\npercdamp = 0.1\nquantize-bits = 4\nquantize-group = 8\nmask = 'wanda-seq'\ngranularity = 'layer'\nvariant = true\ncompat = true\n";
        let options = parse_recipe(full, Path::new("r.toml")).unwrap();
        assert_eq!((options.tokens, options.channels), (Some(Amount(0.0625)), Some(Amount(4.0))));
        for bad in [
            "tokens = 'x'",
            "tokens = '1/0'",
            "importance = 'v'",
            "grouping = 'all'",
            "where = 'up'",
            "labels = 4",
        ] {
            assert!(parse_recipe(bad, Path::new("r.toml")).is_err(), "{bad}");
        }
        let back = toml::Table::try_from(&options).unwrap();
        let mut written: Vec<String> = back.keys().cloned().collect();
        written.sort();
        assert_eq!(written, keys());
    }

    #[test]
    fn unknown_key_names_the_nearest() {
        let text = parse_recipe("sparcity = 0.5", Path::new("r.toml")).unwrap_err().render();
        assert!(text.contains("unknown key `sparcity`"), "{text}");
        assert!(text.contains("nearest: sparsity"), "{text}");
    }

    #[test]
    fn wrong_type_and_not_toml() {
        let text = parse_recipe("sparsity = 'half'", Path::new("r.toml")).unwrap_err().render();
        assert!(text.contains("sparsity"), "{text}");
        let text = parse_recipe("sparsity 0.5", Path::new("r.toml")).unwrap_err().render();
        assert!(text.contains("is not TOML"), "{text}");
    }

    #[test]
    fn the_command_line_wins() {
        let base = PruneOptions { sparsity: Some(0.5), samples: Some(3), ..PruneOptions::default() };
        let line = PruneOptions { pattern: Some("2:4".into()), ..PruneOptions::default() };
        let both = line.over(base);
        assert_eq!((both.sparsity, both.samples), (None, Some(3)));
        assert_eq!(both.pattern.as_deref(), Some("2:4"));
    }

    #[test]
    fn one_of_sparsity_and_pattern_on_the_command_line_keeps_the_other_of_the_recipe() {
        let both = |line: (Option<f64>, Option<&str>), base: (Option<f64>, Option<&str>)| {
            let of = |(sparsity, pattern): (Option<f64>, Option<&str>)| PruneOptions {
                sparsity,
                pattern: pattern.map(str::to_owned),
                ..PruneOptions::default()
            };
            let found = of(line).over(of(base));
            (found.sparsity, found.pattern)
        };
        let block = Some("block:4x1".to_owned());
        assert_eq!(both((Some(0.7), None), (Some(0.5), Some("block:4x1"))), (Some(0.7), block.clone()));
        assert_eq!(both((None, Some("block:4x1")), (Some(0.5), None)), (Some(0.5), block));
        // N:M on one side, another wish on the other.
        assert_eq!(both((Some(0.7), None), (None, Some("2:4"))), (Some(0.7), None));
        assert_eq!(both((None, Some("2:4")), (Some(0.7), Some("channel"))), (None, Some("2:4".to_owned())));
        assert_eq!(both((None, None), (None, Some("2:4"))), (None, Some("2:4".to_owned())));
    }
}
