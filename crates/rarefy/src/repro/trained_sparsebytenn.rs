//! Items 1 and 2 of SparseByteNN: a MobileNet trained on Fashion-MNIST, pruned in groups of 16 channels with and without the searched order, in one shot
//! and with fine-tuning, beside single weights and whole channels.

use std::path::Path;

use rarefy_models::MobileNet;
use rarefy_models::classifier::Classifier;
use rarefy_prune::classifier::rearrange;
use rarefy_train::{ImageSettings, ImageTrainer, ScheduleSettings};
use serde_json::Value;

use super::convnets::{pruned, row};
use super::trained::{Source, Study, gradual};
use super::{Check, Outcome, ReproOptions};
use crate::cli::CliError;

const WIDTH: f64 = 0.5;
/// Channels of a group.
const GROUP: usize = 16;
const PATTERN: &str = "block:16x1";
/// Batches from which the statistics are measured anew behind a one-shot mask.
const RECALIBRATION: u64 = 40;
/// Points within which networks count as equal (specification: 0.3).
const TIE: f64 = 0.3;

/// Trains, prunes, measures and checks.
pub(super) fn run(
    options: &mut ReproOptions<'_>,
    data: &Path,
    outcome: &mut Outcome,
) -> Result<(), CliError> {
    let (most, epochs) = if options.quick { (4000, 3.0) } else { (60_000, 3.0) };
    (options.say)("trained network: reading images");
    let study = Study::open(options, data, Source::FashionMnist, most)?;
    let settings = study.settings(WIDTH, GROUP, epochs, 64);
    let experiment = format!("{}, trained", study.name);
    (options.say)("trained network: dense");
    let mut base = study.trainer(ImageTrainer::new(&settings, &study.train)?, options.say)?;
    // From here on the weights are those of the classifier: both rank alike.
    base.absorb_scales()?;
    let note = |what: &str, model: &MobileNet, outcome: &mut Outcome| -> Result<f64, CliError> {
        let found = study.measure(&model.classifier("pruned"))?;
        for (quantity, value) in
            [("top-1 in %, validation", found.validation), ("top-1 in %, test", found.test)]
        {
            outcome.table.push(row(&experiment, what, "", quantity, value, Value::Null));
        }
        Ok(found.test)
    };
    note("dense, before fine-tuning", &base, outcome)?;

    // Item 1, one shot.
    let mut ordered_at = Vec::new();
    for sparsity in [0.3, 0.5] {
        let percent = format!("{:.0} %", 100.0 * sparsity);
        (options.say)(&format!("one shot: {percent}, groups of {GROUP}"));
        let ordered = reordered(&base, sparsity)?;
        let mut top1 = [0.0; 2];
        let subjects = [("groups of 16", &base), ("groups of 16, searched order", &ordered)];
        for (slot, (what, model)) in top1.iter_mut().zip(subjects) {
            let cut = one_shot(model, sparsity, &settings, &study)?;
            *slot = note(&format!("{percent} in one shot, {what}"), &cut, outcome)?;
        }
        let kept = [&ordered, &base].map(|m| pruned(&m.classifier("dense"), PATTERN, sparsity, false));
        let [with, without] = kept;
        let (least, mean, before) = super::sparsebytenn::compare(&with?.1, &without?.1);
        for (what, value) in [("groups of 16, searched order", mean), ("groups of 16", before)] {
            outcome.table.push(row(&experiment, what, &*percent, "magnitude kept", value, Value::Null));
        }
        let name =
            format!("{}, {percent}: magnitude kept, least gain of the layers that can gain", study.name);
        outcome.checks.push(Check::at_least(name, least, 1e-6));
        if sparsity > 0.4 {
            let name = format!("{}, 50 % in one shot: gained by the searched order, in points", study.name);
            outcome.checks.push(Check::at_least(name, top1[1] - top1[0], 1.0));
        }
        ordered_at.push(ordered);
    }

    // Fine-tuning for a third of the training.
    let steps = (settings.schedule.steps / 3).max(10);
    let mut tuning = ImageSettings { seed: settings.seed + 1, ..settings.clone() };
    tuning.schedule = ScheduleSettings { steps, warmup: steps / 20, final_fraction: 0.0 };
    tuning.optimizer.lr *= 0.3;
    let mut tuned = |what: &str, from: &MobileNet, sparsity: Option<(f64, &str)>, outcome: &mut Outcome| {
        (options.say)(&format!("fine-tuning: {what}"));
        let settings = match sparsity {
            Some((sparsity, pattern)) => gradual(&tuning, sparsity, pattern)?,
            None => tuning.clone(),
        };
        let trainer = ImageTrainer::from_model(&settings, &study.train, from.clone())?;
        let model = study.trainer(trainer, options.say)?;
        note(&format!("{what}, fine-tuned"), &model, outcome)
    };
    let dense = tuned("dense", &base, None, outcome)?;
    let at30 = tuned("30 %, groups of 16, searched order", &ordered_at[0], Some((0.3, PATTERN)), outcome)?;
    let ordered = tuned("50 %, groups of 16, searched order", &ordered_at[1], Some((0.5, PATTERN)), outcome)?;
    let groups = tuned("50 %, groups of 16", &base, Some((0.5, PATTERN)), outcome)?;
    let single = tuned("50 %, single weights", &base, Some((0.5, "unstructured")), outcome)?;
    let channels = tuned("50 %, whole channels", &base, Some((0.5, "channel")), outcome)?;
    let mut at_most = |what: &str, value, most| {
        outcome.checks.push(Check::at_most(format!("{}, {what}, in points", study.name), value, most));
    };
    at_most("fine-tuned: lost at 30 % by groups in the searched order", dense - at30, 0.5);
    at_most("fine-tuned: lost at 50 % by groups in the searched order", dense - ordered, 1.0);
    at_most("fine-tuned, 50 %: groups in the searched order over single weights", ordered - single, TIE);
    at_most("fine-tuned, 50 %: groups over groups in the searched order", groups - ordered, TIE);
    at_most("fine-tuned, 50 %: whole channels over groups", channels - groups, TIE);
    outcome.notes.push(study.describe());
    outcome.notes.push(format!(
        "trained network: MobileNet v1 {WIDTH} with the first {} blocks, {epochs} epochs; fine-tuning for a third of that at 0.3 of the rate, masks along the cubic \
         schedule, the dense network tuned for the same steps. One-shot networks have their normalisation statistics measured anew on {RECALIBRATION} training batches, \
         no weight is changed. Networks within {TIE} points count as equal",
        settings.model.depth
    ));
    Ok(())
}

/// A copy with the channels in the order that the search finds for this sparsity.
fn reordered(base: &MobileNet, sparsity: f64) -> Result<MobileNet, CliError> {
    let mut model = base.clone();
    let mut folded = model.classifier("dense");
    for found in rearrange(&mut folded, GROUP, sparsity)? {
        // Without additions a class has one producer.
        for producer in found.producers {
            model.permute(producer, &found.order)?;
        }
    }
    Ok(model)
}

/// A copy pruned at once, its statistics measured anew.
fn one_shot(
    model: &MobileNet,
    sparsity: f64,
    settings: &ImageSettings,
    study: &Study,
) -> Result<MobileNet, CliError> {
    let mut model = model.clone();
    let cut = pruned(&model.classifier("dense"), PATTERN, sparsity, false)?.0;
    for layer in cut.prunable() {
        let name = Classifier::weight_name(layer);
        let mut weight = model.get(&name)?;
        let Some(conv) = cut.conv(layer) else { continue };
        for (w, of_cut) in weight.iter_mut().zip(&conv.weight) {
            if *of_cut == 0.0 {
                *w = 0.0;
            }
        }
        model.set(&name, weight)?;
    }
    let mut trainer = ImageTrainer::from_model(settings, &study.train, model)?;
    trainer.recalibrate(RECALIBRATION)?;
    Ok(trainer.into_model())
}
