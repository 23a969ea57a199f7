//! The main job on the built-in model: prune, measure, pack, run, each beside dense.

use std::path::Path;
use std::time::Instant;

use rarefy_checkpoint::{Checkpoint, OutputFormat, Tokenizer, layout};
use rarefy_data::random_windows;
use rarefy_kernels::bench::{BenchSpec, Kind};
use rarefy_models::{CausalLm, LoadOptions, PackedPolicy, perplexity};
use serde_json::json;

use crate::builtin::{self, HeldOut};
use crate::cli::CliError;
use crate::measure;
use crate::pipeline::{self, Job};
use crate::report::{KernelRow, KernelSection, Machine, ModelRow, ModelSection, QuickstartReport};

/// Longest test window and longest calibration sequence, in tokens; shorter where the model has fewer positions.
const WINDOW: usize = 256;
/// Tokens of all test windows together.
const TEST_TOKENS: usize = 1 << 15;
/// Tokens of all calibration sequences together.
const CALIBRATION_TOKENS: usize = 1 << 14;
/// Tokens decoded by each model in each round of the timing.
const DECODED: usize = 48;
/// Rounds of the timing.
const ROUNDS: usize = 3;
/// The large matrix: a layer of a model of 7 billion parameters.
const LARGE: (usize, usize) = (11008, 4096);

/// Methods, in the order of the table.
pub const METHODS: [&str; 3] = ["magnitude", "wanda", "sparsegpt"];
/// Patterns, in the order of the table: the name shown, and the settings.
const PATTERNS: [(&str, &str); 3] = [("50 %", "unstructured"), ("4:8", "4:8"), ("2:4", "2:4")];

/// Steps that [`run`] announces.
#[must_use]
pub fn steps() -> u64 {
    // Dense, each pruned model, the timing, the large matrix twice.
    (1 + METHODS.len() * PATTERNS.len() + 1 + 2) as u64
}

/// Runs the main job. Pruned folders are written below `folder` and stay there; `on_step` is told
/// what begins, [`steps`] times.
///
/// # Errors
/// The built-in model is absent, or a step fails.
pub fn run(folder: &Path, seed: u64, on_step: &mut dyn FnMut(&str)) -> Result<QuickstartReport, CliError> {
    let started = Instant::now();
    let source = Checkpoint::open(&builtin::folder()?)?;
    let tokenizer = Tokenizer::open(source.dir())?;
    tokenizer.fits(source.config())?;
    let window = WINDOW.min(source.config().max_positions);
    let (windows, samples) = (TEST_TOKENS / window, CALIBRATION_TOKENS / window);
    let test = builtin::held_out(&tokenizer, TEST_TOKENS)?;
    let text = builtin::calibration(&tokenizer, 2 * CALIBRATION_TOKENS)?;
    let calibration = random_windows(&text, samples, window, seed)?;

    on_step("dense model: perplexity");
    let mut rows = vec![row("dense", "dense", &source, &test, window)?];
    let mut folders = vec![source.clone()];
    for (shown, pattern) in PATTERNS {
        for method in METHODS {
            on_step(&format!("{method} {shown}: prune, pack, perplexity"));
            let out = folder.join(format!("{method}-{}", pattern.replace(':', "-")));
            let settings = json!({ "sparsity": 0.5, "pattern": pattern });
            let format = OutputFormat::Packed;
            let job = Job { method: method.into(), settings, format, seed };
            let begun = Instant::now();
            pipeline::prune(&source, &calibration, &job, &out)?;
            let prune_seconds = begun.elapsed().as_secs_f64();
            let packed = Checkpoint::open(&out)?;
            rows.push(ModelRow { prune_seconds, ..row(method, shown, &packed, &test, window)? });
            folders.push(packed);
        }
    }

    on_step("decoding with all models in turn");
    let models: Vec<CausalLm> = folders
        .iter()
        .map(|f| CausalLm::load(f, LoadOptions { packed: PackedPolicy::AsStored, ..LoadOptions::default() }))
        .collect::<Result<_, _>>()?;
    let refs: Vec<&CausalLm> = models.iter().collect();
    for (row, ms) in rows.iter_mut().zip(measure::decode_ms(&refs, &test.tokens[..8], DECODED, ROUNDS)?) {
        row.ms_per_token = ms;
    }
    for (row, model) in rows.iter_mut().zip(&models) {
        row.resident_bytes = model.weight_bytes() as u64;
    }
    drop(models);

    let (kernels, roof, isa) = large_matrix(seed, on_step)?;
    let parameters = layout::parameters(source.config());
    let share = layout::prunable_parameters(source.config()) as f64 / parameters.max(1) as f64;
    let model = ModelSection {
        name: "the built-in model".into(),
        parameters,
        convention: format!(
            "Perplexity over {windows} windows of {window} tokens of held-out text that do not overlap, nothing put before \
             them; exp of the mean negative log-likelihood of the {} predicted tokens of each.",
            window - 1
        ),
        floor_ppl: Some(test.floor_ppl),
        calibration: format!(
            "Calibrated on {samples} sequences of {window} tokens from the same generator, of a part that is in neither the \
             training text nor the test text."
        ),
        rows,
    };
    Ok(QuickstartReport {
        version: env!("CARGO_PKG_VERSION").into(),
        seed,
        seconds: started.elapsed().as_secs_f64(),
        machine: Machine {
            cpu: format!("{} ({isa})", measure::cpu_name()),
            threads: rayon::current_num_threads(),
            read_gb_per_s: roof,
        },
        notes: notes(&model, &kernels, share, value_bytes(&source)),
        model,
        kernels,
    })
}

/// Everything about one model that is not a time.
fn row(
    method: &str,
    pattern: &str,
    folder: &Checkpoint,
    test: &HeldOut,
    window: usize,
) -> Result<ModelRow, CliError> {
    let options = LoadOptions { packed: PackedPolicy::DenseAlways, ..LoadOptions::default() };
    let model = CausalLm::load(folder, options)?;
    let ppl = perplexity(&model, &test.tokens[..TEST_TOKENS], window, &mut |_, _| (), None)?.ppl;
    let config = folder.config();
    let (mut zeros, mut all) = (0_u64, 0_u64);
    for spec in (0..config.n_layers).flat_map(|block| layout::prunable(config, block)) {
        let values = folder.read_f32(&spec.tensor)?;
        zeros += values.iter().filter(|v| **v == 0.0).count() as u64;
        all += values.len() as u64;
    }
    folder.release_pages();
    Ok(ModelRow {
        method: method.into(),
        pattern: pattern.into(),
        sparsity: zeros as f64 / all.max(1) as f64,
        ppl,
        disk_bytes: folder.store().files().iter().map(|f| f.file_bytes()).sum(),
        resident_bytes: 0,
        ms_per_token: f64::NAN,
        prune_seconds: 0.0,
    })
}

/// The kernels on one large matrix: the section, the read bandwidth and the instruction set.
fn large_matrix(seed: u64, on_step: &mut dyn FnMut(&str)) -> Result<(KernelSection, f64, String), CliError> {
    let mut kernels = Vec::new();
    let mut roof: f64 = 0.0;
    let mut isa = String::new();
    for (sparsity, with_nm) in [(0.5, true), (0.7, false)] {
        on_step(&format!("one matrix of {} x {}, {:.0} % zeros", LARGE.0, LARGE.1, sparsity * 100.0));
        let mut kinds = vec![Kind::DenseF32, Kind::PanelF32, Kind::DenseBf16, Kind::PanelBf16];
        if with_nm {
            kinds.extend([Kind::NmF32 { n: 2, m: 4 }, Kind::NmBf16 { n: 2, m: 4 }]);
        }
        let spec = BenchSpec {
            rows: LARGE.0,
            cols: LARGE.1,
            sparsity,
            threads: rayon::current_num_threads(),
            passes: 15,
            // All copies of the weights together lie well beyond the cache.
            min_bytes: last_level_cache().map_or(0, |c| 2 * c as usize).clamp(1 << 29, 1 << 30),
            kinds,
            seed,
            ..BenchSpec::default()
        };
        let report = rarefy_kernels::bench::run(&spec, &mut |_| ())?;
        roof = roof.max(report.read_gb_per_s);
        isa = report.isa.to_string();
        for found in report.rows {
            let is_dense = found.kind == found.kind.dense();
            if is_dense && !with_nm {
                continue;
            }
            let name = found.kind.to_string();
            let (kernel, dtype) = name.rsplit_once(' ').unwrap_or((&name, ""));
            let sparsity = found.kind.sparsity(sparsity);
            kernels.push(KernelRow {
                kernel: kernel.into(),
                dtype: dtype.into(),
                sparsity,
                ms: found.ms,
                bytes: found.bytes as u64,
                speedup: found.speedup,
                gb_per_s: found.gb_per_s,
            });
        }
    }
    // f32 before bf16, then by sparsity.
    kernels.sort_by(|a, b| b.dtype.cmp(&a.dtype).then(a.sparsity.total_cmp(&b.sparsity)));
    Ok((KernelSection { rows: LARGE.0, cols: LARGE.1, kernels }, roof, isa))
}

/// What the numbers of this run say, and what they do not.
fn notes(model: &ModelSection, kernels: &KernelSection, share: f64, value_bytes: usize) -> Vec<String> {
    let mut notes = Vec::new();
    let Some((dense, pruned)) = model.rows.split_first() else { return notes };
    let ratio = |f: fn(&ModelRow) -> f64, row: &ModelRow| f(row) / f(dense);
    let speed: Vec<f64> = pruned.iter().map(|r| ratio(|r| r.ms_per_token, r)).collect();
    let best = speed.iter().copied().fold(f64::INFINITY, f64::min);
    let cache = last_level_cache()
        .map_or_else(String::new, |c| format!(" (last-level cache: {:.0} MB)", c as f64 / 1e6));
    let size = dense.resident_bytes as f64 / 1e6;
    notes.push(if best > 0.95 {
        format!(
            "In time the small model gains nothing: its {size:.1} MB of weights stay in the cache{cache}, and the best packed \
             model takes {best:.2} of the dense time for a token. The large matrix above shows where it pays."
        )
    } else {
        let none = speed.iter().filter(|s| **s > 0.95).count();
        format!(
            "The best packed model takes {best:.2} of the dense time for a token; {none} of {} gain less than 5 %. The dense \
             model's {size:.1} MB of weights stay in the cache{cache}: there much of the time is not spent on reading them, so \
             the gain is smaller than that of the large matrix above.",
            speed.len()
        )
    });
    let smallest = pruned.iter().map(|r| ratio(|r| r.disk_bytes as f64, r)).fold(f64::INFINITY, f64::min);
    notes.push(format!(
        "Only the linear layers of the blocks are pruned, {:.0} % of the parameters; embeddings, norms and the output layer \
         stay dense. The smallest folder is {smallest:.2} of the dense one; at 50 % zeros a layer of {}-bit weights takes \
         {:.2} of its dense size (half the values, and one bit to say where each weight belongs).",
        share * 100.0,
        8 * value_bytes,
        0.5 + 0.125 / value_bytes as f64
    ));
    for (shown, _) in PATTERNS {
        let mut ranked: Vec<&ModelRow> = pruned.iter().filter(|r| r.pattern == shown).collect();
        ranked.sort_by(|a, b| a.ppl.total_cmp(&b.ppl));
        let text: Vec<String> = ranked.iter().map(|r| format!("{} {:.3}", r.method, r.ppl)).collect();
        notes.push(format!(
            "Perplexity at {shown}, best first: {}; dense {:.3}.",
            text.join(", "),
            dense.ppl
        ));
    }
    if let Some(kernel) = kernels.kernels.iter().max_by(|a, b| a.speedup.total_cmp(&b.speedup)) {
        notes.push(format!(
            "Fastest against our own dense kernel on the large matrix: {} {} at {:.0} % zeros, {:.2} times.",
            kernel.kernel,
            kernel.dtype,
            kernel.sparsity * 100.0,
            kernel.speedup
        ));
    }
    notes.push(
        "All numbers were measured in this run; on a shared machine trust the ratios more than the times."
            .into(),
    );
    notes
}

/// Bytes of one stored weight of the linear layers.
fn value_bytes(source: &Checkpoint) -> usize {
    let first = layout::prunable(source.config(), 0).into_iter().next();
    first.and_then(|spec| source.tensors().get(&spec.tensor)).map_or(4, |t| t.dtype.size())
}

/// Size of the last-level cache in bytes, as Linux tells it.
fn last_level_cache() -> Option<u64> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").ok()?;
    let kilobytes: u64 = text.trim().strip_suffix('K')?.parse().ok()?;
    kilobytes.checked_mul(1024)
}
