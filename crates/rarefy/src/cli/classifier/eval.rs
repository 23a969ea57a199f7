//! `rarefy eval` on images.

use std::path::Path;
use std::time::Instant;

use rarefy_data::ImageFolder;
use rarefy_kernels::cnn::NetworkSettings;
use rarefy_models::classifier::Classifier;
use serde_json::json;

use super::refuse;
use crate::classify::accuracy_on_folder;
use crate::cli::eval::EvalArgs;
use crate::cli::{CliError, CliResult, Context, bytes, percent};

pub(in crate::cli) fn eval(folder: &Path, args: &EvalArgs, context: &Context) -> CliResult {
    let started = Instant::now();
    refuse(&[
        ("text", args.text.is_some()),
        ("builtin-text", args.builtin_text),
        ("window", args.window.is_some()),
        ("max-windows", args.max_windows.is_some()),
        ("dense", args.dense),
    ])?;
    let Some(images) = &args.images else {
        return Err(CliError::usage(
            "MODEL is an image classifier: images are needed",
            "`--images DIR`, a folder with JPEG files and labels.tsv (file, class number, name)",
        ));
    };
    if args.max_images == Some(0) {
        return Err(CliError::usage("`--max-images` is 0", "give at least 1"));
    }
    let model = Classifier::open(folder)?;
    let list = ImageFolder::open(images)?;
    let count = args.max_images.unwrap_or(usize::MAX).min(list.images().len());
    let mut progress = context.out.progress("classifying", count as u64);
    let found = accuracy_on_folder(&model, &list, count, &mut |done| progress.set(done as u64))?;
    progress.finish();
    let network = model.network(&NetworkSettings::default())?.network;
    let weights: usize = network.report().map(|n| n.bytes).sum();
    let seconds = started.elapsed().as_secs_f64();
    let resize = "largest centre square, resized with a widened triangle filter";
    let value = json!({
        "model": args.model.label(),
        "images_from": images,
        "images": found.images,
        "top1": found.top1,
        "top5": found.top5,
        "resolution": model.side(),
        "preprocessing": resize,
        "weight_bytes": weights,
        "seconds": seconds,
    });
    let side = model.side();
    context.out.message(&format!("images: {}, {side} x {side} ({resize})", images.display()));
    context.out.detail(&format!("weights in memory {}, {seconds:.1} s", bytes(weights as u64)));
    let text = format!(
        "top-1 {:.4} ({}), top-5 {:.4} ({}), on {} images\n",
        found.top1,
        percent(found.top1),
        found.top5,
        percent(found.top5),
        found.images
    );
    context.out.result(&text, &value)
}
