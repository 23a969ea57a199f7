//! Item 2 of Fast Sparse ConvNets: MobileNets trained on CIFAR-10. A wide network pruned while it is trained against a narrow dense one of
//! equal latency, what gradual pruning costs, and what blocks of four cost beyond it.

use std::path::Path;

use rarefy_models::classifier::Classifier;
use rarefy_models::{MobileNet, MobileNetSettings};
use rarefy_train::ImageSettings;
use serde_json::Value;

use super::convnets::row;
use super::trained::{Found, Source, Study, gradual, times};
use super::{Check, Outcome, ReproOptions};
use crate::cli::CliError;

/// Width of the wide networks; the narrow one has about half.
const WIDE: f64 = 0.5;
/// Sparsity of the wide one against the narrow one, and its pattern. Specification: 85 to 90 %.
const SPARSE: (f64, &str) = (0.85, "block:4x1");
/// Sparsity at which gradual pruning is compared with dense. Specification: 80 %.
const COMPARED: f64 = 0.8;

/// Trains, measures and checks.
pub(super) fn run(
    options: &mut ReproOptions<'_>,
    data: &Path,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    let (most, epochs, passes) = if options.quick { (3000, 4.0, 200) } else { (usize::MAX, 12.0, 1000) };
    (options.say)("trained networks: reading images");
    let study = Study::open(options, data, Source::Cifar10, most)?;
    let experiment = format!("{}, trained", study.name);
    let wide = study.settings(WIDE, 8, epochs, 64);
    let mut network = |what: &str,
                       settings: &ImageSettings,
                       outcome: &mut Outcome|
     -> Result<(Classifier, Found), CliError> {
        (options.say)(&format!("trained networks: {what}"));
        let model = study.train(settings, options.say)?;
        let found = study.measure(&model)?;
        for (quantity, value) in
            [("top-1 in %, validation", found.validation), ("top-1 in %, test", found.test)]
        {
            outcome.table.push(row(&experiment, what, "", quantity, value, Value::Null));
        }
        Ok((model, found))
    };
    let (dense_model, dense) = network("wide, dense", &wide, outcome)?;
    let single =
        network("wide, 80 %, single weights", &gradual(&wide, COMPARED, "unstructured")?, outcome)?.1;
    let blocks = network("wide, 80 %, blocks of 4", &gradual(&wide, COMPARED, "block:4x1")?, outcome)?.1;
    let (sparse_model, sparse) =
        network("wide, 85 %, blocks of 4", &gradual(&wide, SPARSE.0, SPARSE.1)?, outcome)?;

    let narrow_width = equal_latency(&sparse_model, &wide.model, passes)?;
    let mut narrow = wide.clone();
    narrow.model.width = narrow_width;
    let (narrow_model, narrow) = network(&format!("narrow ({narrow_width}), dense"), &narrow, outcome)?;
    let ms = times(&[(&sparse_model, true), (&narrow_model, false), (&dense_model, false)], passes)?;
    let methods = ["wide, 85 %, blocks of 4", "narrow, dense", "wide, dense"];
    for (method, ms) in methods.into_iter().zip(&ms) {
        outcome.table.push(row(&experiment, method, "", "ms per image, 1 thread", *ms, Value::Null));
    }
    let kind = if options.quick { "trained a little" } else { "trained" };
    let mut check = |what: &str, value, limit, is_least| {
        let name = format!("{} ({kind}): {what}, in points", study.name);
        let make = if is_least { Check::at_least } else { Check::at_most };
        outcome.checks.push(make(name, value, limit));
    };
    check("wide sparse over narrow dense of at least its latency", sparse.test - narrow.test, 1.0, true);
    check("lost by gradual pruning to 80 %", dense.test - single.test, 1.5, false);
    check("lost by blocks of 4 against single weights at 80 %", single.test - blocks.test, 1.0, false);
    outcome.checks.push(Check::at_most(
        "speed: latency of the wide sparse network over that of the narrow dense one, measured again",
        ms[0] / ms[1],
        1.05,
    ));
    outcome.notes.push(study.describe());
    outcome.notes.push(format!(
        "trained networks: MobileNet v1 with the first {} blocks, 32 x 32 images, {epochs} epochs, batch {}, all alike; masks along the cubic schedule from a tenth \
         to three quarters of the steps, masked weights get no gradient (the paper's: they may return). The narrow network is the narrowest of those in steps of 8 \
         channels that is not faster than the wide sparse one, as measured in this run: its width may differ from run to run",
        wide.model.depth, wide.batch
    ));
    if options.quick {
        outcome.notes.push(
            "trained networks with `--quick`: a third of the images for 4 epochs; the margins are those of networks far from trained".into(),
        );
    }
    Ok(())
}

/// The width of the narrowest dense network that takes at least as long as `sparse`. Weights do not matter to the time.
fn equal_latency(sparse: &Classifier, wide: &MobileNetSettings, passes: usize) -> Result<f64, CliError> {
    let widths: Vec<f64> = (2..=16).map(|n| f64::from(n) / 32.0).collect();
    let mut models = Vec::with_capacity(widths.len());
    for width in &widths {
        let settings = MobileNetSettings { width: *width, ..wide.clone() };
        models.push(MobileNet::untrained(&settings, 0)?);
    }
    let mut all = vec![(sparse, true)];
    all.extend(models.iter().map(|m| (m, false)));
    let ms = times(&all, passes)?;
    let enough = ms[1..].iter().position(|t| *t >= ms[0]);
    Ok(enough.map_or(WIDE, |i| widths[i]))
}
