//! `rarefy verify`: checks a model folder, alone or against another one.

use rarefy_checkpoint::{Checkpoint, CheckpointError, Storage, StoredWeight};
use rarefy_prune::PruneReport;
use rarefy_sparsity::{Mask, Pattern};
use serde_json::json;

use super::error::read_text;
use super::model::ModelArg;
use super::{CliError, CliResult, Context};

/// Arguments of `rarefy verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Model folder, or `builtin`
    model: ModelArg,
    /// A folder that must hold the same decoded weights
    #[arg(long, value_name = "MODEL")]
    against: Option<ModelArg>,
    /// The content hash that the folder must have, as an earlier `verify` printed it
    #[arg(long, value_name = "HASH")]
    expect: Option<String>,
}

/// What was checked and what was found wrong.
#[derive(Default)]
struct Findings {
    tensors: usize,
    packed: usize,
    patterned: usize,
    compared: usize,
    recorded: usize,
    files: usize,
    problems: Vec<String>,
}

pub(crate) fn run(args: &VerifyArgs, context: &Context) -> CliResult {
    let checkpoint = Checkpoint::open(&args.model.folder()?)?;
    checkpoint.check_layout()?;
    let other = match &args.against {
        Some(model) => {
            let other = Checkpoint::open(&model.folder()?)?;
            other.check_layout()?;
            Some(other)
        }
        None => None,
    };
    let mut findings = Findings::default();
    if let Some((files, problems)) = rarefy_checkpoint::check_recorded_files(checkpoint.dir())? {
        findings.files = files;
        findings.problems.extend(problems);
    }
    against_record(&checkpoint, &mut findings)?;
    let mut progress = context.out.progress("verify", checkpoint.tensors().len() as u64);
    for name in checkpoint.tensors().keys() {
        tensor(&checkpoint, name, &mut findings)?;
        if let Some(other) = &other {
            compare(&checkpoint, other, name, &mut findings)?;
        }
        checkpoint.release_pages();
        progress.step();
    }
    progress.finish();
    if let Some(other) = &other {
        let missing = other.tensors().keys().filter(|n| !checkpoint.tensors().contains_key(*n));
        findings.problems.extend(missing.map(|n| format!("tensor `{n}` is only in the other folder")));
    }
    let hash = checkpoint.content_hash()?;
    if let Some(expected) = args.expect.as_ref().filter(|e| **e != hash) {
        findings.problems.push(format!("the content hash is {hash}, expected {expected}"));
    }
    let value = json!({
        "model": args.model.label(),
        "against": args.against.as_ref().map(ModelArg::label),
        "ok": findings.problems.is_empty(),
        "tensors": findings.tensors,
        "packed": findings.packed,
        "with_pattern": findings.patterned,
        "compared": findings.compared,
        "layers_of_the_run_record": findings.recorded,
        "files_of_the_run_record": findings.files,
        "content_hash": hash,
        "problems": findings.problems,
    });
    let mut text = format!(
        "{} tensors: headers, shapes and values are sound; {} are packed and decode to what they run as; {} of those hold their N:M pattern\n",
        findings.tensors, findings.packed, findings.patterned
    );
    if let Some(model) = &args.against {
        text += &format!("{} tensors compared with {}\n", findings.compared, model.label());
    }
    if findings.recorded > 0 {
        text += &format!("{} pruned layers compared with the run record\n", findings.recorded);
    }
    if findings.files > 0 {
        text += &format!("{} weight files compared with the checksums of the run record\n", findings.files);
    }
    text += &format!("content hash {hash}\n");
    for problem in &findings.problems {
        text += &format!("problem: {problem}\n");
    }
    context.out.result(&text, &value)?;
    match findings.problems.len() {
        0 => Ok(()),
        n => Err(CliError::TargetMissed {
            message: format!("{n} problems, the first: {}", findings.problems[0]),
        }),
    }
}

/// Compares the pruned layers with the run record, where the folder was made by `rarefy prune`.
fn against_record(checkpoint: &Checkpoint, findings: &mut Findings) -> CliResult {
    let file = checkpoint.dir().join("rarefy.json");
    if !file.is_file() {
        return Ok(());
    }
    let text = read_text(&file, "the run record")?;
    // Records of other commands have another form.
    let Ok(record) = serde_json::from_str::<PruneReport>(&text) else { return Ok(()) };
    let is_compat = record.settings["compat"] == true;
    let pattern =
        record.settings["pattern"].as_str().and_then(|p| p.parse::<Pattern>().ok()).filter(|_| !is_compat);
    for layer in &record.layers {
        let (rows, cols) = checkpoint.matrix_shape(&layer.layer)?;
        let mask = Mask::from_nonzeros(&checkpoint.read_f32(&layer.layer)?, rows, cols);
        checkpoint.release_pages();
        findings.recorded += 1;
        if (mask.kept(), mask.pruned()) != (layer.kept, layer.pruned) {
            findings.problems.push(format!(
                "tensor `{}` has {} zeros, the run record says {}",
                layer.layer,
                mask.pruned(),
                layer.pruned
            ));
        }
        if let Some(pattern) = pattern.filter(|p| !mask.satisfies(p)) {
            findings
                .problems
                .push(format!("tensor `{}` does not hold the recorded pattern {pattern}", layer.layer));
        }
    }
    Ok(())
}

/// Reads one tensor in both of its forms and compares them.
fn tensor(checkpoint: &Checkpoint, name: &str, findings: &mut Findings) -> CliResult {
    let logical = &checkpoint.tensors()[name];
    findings.tensors += 1;
    if !logical.dtype.is_float() {
        return Ok(());
    }
    let values = checkpoint.read_f32(name)?;
    if !matches!(logical.storage, Storage::BitmaskPanel | Storage::NmPacked { .. }) {
        return Ok(());
    }
    findings.packed += 1;
    let running = running_values(checkpoint.read_weight(name)?);
    if running.len() != values.len() {
        findings.problems.push(format!(
            "tensor `{name}`: {} values run, {} are stored",
            running.len(),
            values.len()
        ));
        return Ok(());
    }
    // Bit for bit; a zero has no sign here.
    let differs = |a: &f32, b: &f32| a.to_bits() != b.to_bits() && !(*a == 0.0 && *b == 0.0);
    let wrong = values.iter().zip(&running).filter(|(a, b)| differs(a, b)).count();
    if wrong > 0 {
        findings
            .problems
            .push(format!("tensor `{name}`: {wrong} values differ between the packed and the dense form"));
    }
    if let Storage::NmPacked { n, m } = logical.storage {
        let (rows, cols) = checkpoint.matrix_shape(name)?;
        let mask = Mask::from_nonzeros(&values, rows, cols);
        findings.patterned += 1;
        if !mask.satisfies(&Pattern::NM { n, m }) {
            findings
                .problems
                .push(format!("tensor `{name}` is stored as {n}:{m} but does not hold that pattern"));
        }
    }
    Ok(())
}

fn running_values(weight: StoredWeight) -> Vec<f32> {
    match weight {
        StoredWeight::DenseF32(v) => v,
        StoredWeight::DenseBf16(v) => v.into_iter().map(f32::from).collect(),
        StoredWeight::DenseF16(v) => v.into_iter().map(f32::from).collect(),
        StoredWeight::PanelF32(p) => p.decode(),
        StoredWeight::PanelBf16(p) => p.decode().into_iter().map(f32::from).collect(),
        StoredWeight::PanelF16(p) => p.decode().into_iter().map(f32::from).collect(),
        StoredWeight::NmF32(p) => p.decode(),
        StoredWeight::NmBf16(p) => p.decode().into_iter().map(f32::from).collect(),
        StoredWeight::NmF16(p) => p.decode().into_iter().map(f32::from).collect(),
    }
}

/// The decoded weights of two folders must be equal.
fn compare(a: &Checkpoint, b: &Checkpoint, name: &str, findings: &mut Findings) -> CliResult {
    if !a.tensors()[name].dtype.is_float() {
        return Ok(());
    }
    let other = match b.read_f32(name) {
        Err(CheckpointError::TensorNotFound { .. }) => {
            findings.problems.push(format!("tensor `{name}` is missing in the other folder"));
            return Ok(());
        }
        other => other?,
    };
    let values = a.read_f32(name)?;
    b.release_pages();
    findings.compared += 1;
    if other.len() != values.len() {
        findings.problems.push(format!(
            "tensor `{name}` has {} values here, {} there",
            values.len(),
            other.len()
        ));
        return Ok(());
    }
    let differing = values.iter().zip(&other).filter(|(a, b)| a != b).count();
    if differing > 0 {
        let largest = values.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
        findings.problems.push(format!(
            "tensor `{name}`: {differing} of {} values differ, by at most {largest:e}",
            values.len()
        ));
    }
    Ok(())
}
