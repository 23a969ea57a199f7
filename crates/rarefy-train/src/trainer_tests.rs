#![allow(clippy::unwrap_used)]
use crate::{
    Event, OptimizerKind, Outcome, Parameters, Recipe, SparseMethod, SparsitySettings, TrainError, Trainer,
    train_to_folder,
};
use rarefy_checkpoint::{Checkpoint, CheckpointError, Tokenizer};
use std::sync::atomic::{AtomicBool, Ordering};

fn tiny() -> Recipe {
    Recipe::from_toml_str(
        "seed = 5\n[model]\nhidden_size = 16\nintermediate_size = 24\nlayers = 2\nheads = 2\nkv_heads = 1\nmax_positions = 256\n\
         [tokenizer]\nvocab_size = 400\nsample_bytes = 60000\n[data]\ncontext = 24\nbatch = 4\n[schedule]\nsteps = 12\nwarmup = 2\n\
         [optimizer]\nlr = 0.01\n[checkpoint]\nevery = 4\n[evaluation]\nevery = 0\nquick = 2\nfull = 3\n",
    )
    .unwrap()
}

fn sparse() -> Recipe {
    let s = SparsitySettings { target: 0.6, begin: 2, end: 9, every: 3, ..SparsitySettings::default() };
    Recipe { sparsity: Some(s), ..tiny() }
}

fn steps(trainer: &mut Trainer, n: usize) -> Vec<f64> {
    (0..n).map(|_| trainer.step().unwrap().0).collect()
}

fn never() -> AtomicBool {
    AtomicBool::new(false)
}

fn bits(p: &Parameters) -> Vec<u32> {
    p.all.iter().flat_map(|p| p.values.iter().chain(&p.first).chain(&p.second)).map(|x| x.to_bits()).collect()
}

#[test]
fn the_loss_falls_and_the_first_one_is_that_of_chance() {
    let mut recipe = tiny();
    recipe.schedule.steps = 60;
    let mut t = Trainer::new(&recipe).unwrap();
    let losses = steps(&mut t, 60);
    assert!((losses[0] - (t.tokenizer().vocab_size() as f64).ln()).abs() < 0.2, "{}", losses[0]);
    let end = losses[50..].iter().sum::<f64>() / 10.0;
    assert!(end < losses[0] - 1.0, "{losses:?}");
    let e = t.evaluate(5).unwrap();
    assert!(e.perplexity > e.floor_perplexity.unwrap() && e.tokens > 100, "{e:?}");
}

/// The gradient of the trainer against central differences of the loss it reports.
#[test]
fn gradients_are_those_of_the_loss() {
    struct Spy(std::sync::mpsc::Sender<Vec<Vec<f32>>>);
    impl SparseMethod for Spy {
        fn slug(&self) -> &'static str {
            "spy"
        }
        fn after_backward(&mut self, _: u64, _: &Parameters, g: &mut [Vec<f32>]) -> Result<(), TrainError> {
            self.0.send(g.to_vec()).map_err(|e| TrainError::Tokenizer(e.to_string()))
        }
    }
    /// Moves one weight before the first step.
    struct Nudge(usize, usize, f32);
    impl SparseMethod for Nudge {
        fn slug(&self) -> &'static str {
            "nudge"
        }
        fn begin(&mut self, p: &mut Parameters) -> Result<(), TrainError> {
            p.all[self.0].values[self.1] += self.2;
            Ok(())
        }
    }
    let (send, receive) = std::sync::mpsc::channel();
    Trainer::with_method(&tiny(), Box::new(Spy(send))).unwrap().step().unwrap();
    let g = receive.recv().unwrap();
    let mut checked = 0;
    for (tensor, grad) in g.iter().enumerate() {
        // The largest gradient of each tensor, where rounding matters least.
        let (i, &expected) = grad.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
        if expected.abs() < 2e-3 {
            continue;
        }
        let at =
            |h: f32| Trainer::with_method(&tiny(), Box::new(Nudge(tensor, i, h))).unwrap().step().unwrap().0;
        let h = 1e-2;
        let found = (at(h) - at(-h)) / f64::from(2.0 * h);
        assert!(
            (found - f64::from(expected)).abs() < 0.05 * f64::from(expected.abs()) + 2e-4,
            "{tensor}: {found} {expected}"
        );
        checked += 1;
    }
    assert!(checked >= 4, "{checked}");
}

#[test]
fn resumed_is_bit_equal_to_uninterrupted() {
    let dir = tempfile::tempdir().unwrap();
    let mut sgd = sparse();
    sgd.optimizer.kind = OptimizerKind::Sgd;
    for (n, recipe) in [tiny(), sparse(), sgd].into_iter().enumerate() {
        let mut whole = Trainer::new(&recipe).unwrap();
        let losses = steps(&mut whole, 12);
        for stop in [0, 1, 5] {
            let file = dir.path().join(format!("{n}-{stop}"));
            let mut first = Trainer::new(&recipe).unwrap();
            let mut again = steps(&mut first, stop);
            // A state before the first step cannot be told from no state by the method: it is not saved by `run`.
            if stop > 0 {
                first.save(&file).unwrap();
                drop(first);
                first = Trainer::new(&recipe).unwrap();
                first.load(&file).unwrap();
            }
            again.extend(steps(&mut first, 12 - stop));
            assert_eq!(again, losses);
            assert_eq!(first.parameters(), whole.parameters());
            assert_eq!(bits(first.parameters()), bits(whole.parameters()));
        }
    }
}

#[test]
fn the_same_recipe_gives_the_same_bits_and_another_seed_others() {
    let run = |seed| {
        let mut t = Trainer::new(&Recipe { seed, ..tiny() }).unwrap();
        steps(&mut t, 3);
        bits(t.parameters())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn gradual_pruning_ends_at_its_target_with_zero_moments() {
    let mut t = Trainer::new(&sparse()).unwrap();
    steps(&mut t, 12);
    for p in &t.parameters().all {
        let Some(mask) = p.mask() else {
            assert!(!p.is_linear, "{}", p.name);
            continue;
        };
        assert_eq!(mask.pruned(), (p.values.len() as f64 * 0.6) as usize, "{}", p.name);
        for (i, w) in p.values.iter().enumerate() {
            if !mask.get(i / mask.cols(), i % mask.cols()) {
                assert_eq!((w.to_bits(), p.first[i].to_bits(), p.second[i].to_bits()), (0, 0, 0));
            }
        }
    }
    let norms_and_embedding = t.parameters().all.iter().filter(|p| !p.is_linear);
    assert!(
        norms_and_embedding.clone().count() == 6 && norms_and_embedding.clone().all(|p| p.mask().is_none())
    );
}

#[test]
fn cancelled_then_resumed_writes_the_same_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("deep/b"));
    let recipe = sparse();
    let mut saved = 0;
    let outcome =
        train_to_folder(&recipe, &a, &mut |e| saved += u32::from(matches!(e, Event::Saved { .. })), &never())
            .unwrap();
    assert!(matches!(outcome, Outcome::Finished(_)));
    assert_eq!(saved, 3);

    let cancel = AtomicBool::new(false);
    let mut stop = |e: &Event| {
        if let Event::Step { step: 5, eta_seconds, .. } = e {
            assert!(*eta_seconds > 0.0);
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let outcome = train_to_folder(&recipe, &b, &mut stop, &cancel).unwrap();
    let Outcome::Cancelled { step: 5, state: Some(state) } = outcome else { panic!("{outcome:?}") };
    assert!(state.exists() && !b.exists());
    let mut first = None;
    train_to_folder(&recipe, &b, &mut |e| first = first.take().or(Some(e.clone())), &never()).unwrap();
    assert!(matches!(first, Some(Event::Started { step: 5, steps: 12, .. })));
    assert!(!state.exists());
    for file in
        ["config.json", "tokenizer.json", "model.safetensors", "recipe.toml", "rarefy.json", "README.md"]
    {
        assert_eq!(std::fs::read(a.join(file)).unwrap(), std::fs::read(b.join(file)).unwrap(), "{file}");
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn the_folder_is_a_valid_model_and_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    train_to_folder(&tiny(), &out, &mut |_| (), &never()).unwrap();
    let ckpt = Checkpoint::open(&out).unwrap();
    ckpt.check_layout().unwrap();
    let tokenizer = Tokenizer::open(&out).unwrap();
    assert!(tokenizer.vocab_size() <= ckpt.config().vocab_size);
    let mut t = Trainer::new(&tiny()).unwrap();
    steps(&mut t, 12);
    for p in &t.parameters().all {
        assert_eq!(ckpt.read_f32(&p.name).unwrap(), p.values, "{}", p.name);
    }
    let mut other = tiny();
    other.seed = 6;
    let e = train_to_folder(&other, &out, &mut |_| panic!("no work"), &never()).unwrap_err();
    assert!(matches!(e, TrainError::Checkpoint(CheckpointError::OutputExists { .. })), "{e}");
    assert_eq!(rarefy_checkpoint::check_recorded_files(&out).unwrap(), Some((1, vec![])));
}

#[test]
fn numbers_that_are_not_finite_stop_the_run_and_keep_the_last_state() {
    /// Spoils a gradient in step 6.
    struct Spoil;
    impl SparseMethod for Spoil {
        fn slug(&self) -> &'static str {
            "spoil"
        }
        fn after_backward(
            &mut self,
            step: u64,
            p: &Parameters,
            g: &mut [Vec<f32>],
        ) -> Result<(), TrainError> {
            if step == 6 {
                let at = p.all.iter().position(|p| p.name.ends_with("1.mlp.up_proj.weight")).unwrap();
                g[at][3] = f32::NAN;
            }
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state");
    let mut recipe = tiny();
    recipe.clip.norm = 0.0;
    let mut t = Trainer::with_method(&recipe, Box::new(Spoil)).unwrap();
    let e = t.run(Some(&file), &mut |_| (), &never()).unwrap_err();
    let TrainError::NonFinite { step: 6, tensor, first: 3, count: 1, checkpoint: Some(kept) } = &e else {
        panic!("{e}")
    };
    assert_eq!(tensor, "model.layers.1.mlp.up_proj.weight");
    assert_eq!(kept, &file);
    let mut t = Trainer::with_method(&recipe, Box::new(Spoil)).unwrap();
    t.load(&file).unwrap();
    assert_eq!(t.steps_done(), 4);

    // A learning rate out of all reason: the loss or a gradient overflows, whichever is first.
    let mut recipe = tiny();
    recipe.optimizer.lr = 1e30;
    recipe.clip.norm = 0.0;
    let e = Trainer::new(&recipe).unwrap().run(None, &mut |_| (), &never()).unwrap_err();
    assert!(matches!(e, TrainError::NonFinite { checkpoint: None, .. }), "{e}");
}

#[test]
fn states_that_do_not_fit_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state");
    let mut t = Trainer::new(&tiny()).unwrap();
    steps(&mut t, 2);
    t.save(&file).unwrap();
    let good = std::fs::read(&file).unwrap();
    let mut lr = tiny();
    lr.optimizer.lr = 0.02;
    let e = Trainer::new(&lr).unwrap().load(&file).unwrap_err();
    assert!(
        matches!(&e, TrainError::OtherRecipe { difference, .. } if difference.contains("lr = 0.01")),
        "{e}"
    );
    let mut often = tiny();
    often.checkpoint.every = 1;
    Trainer::new(&often).unwrap().load(&file).unwrap();

    let mut other = Trainer::new(&tiny()).unwrap();
    let before = bits(other.parameters());
    for damage in 0..5 {
        let mut bytes = good.clone();
        match damage {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes[good.len() / 2] ^= 1,
            2 => bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes()),
            3 => bytes.clear(),
            _ => {
                // A whole file with a right checksum but a head that claims more than there is.
                bytes.truncate(good.len() - 16);
                bytes[16..24].copy_from_slice(&(1u64 << 40).to_le_bytes());
                bytes.extend(xxhash_rust::xxh3::xxh3_128(&bytes.clone()).to_le_bytes());
            }
        }
        std::fs::write(&file, bytes).unwrap();
        assert!(matches!(other.load(&file), Err(TrainError::BadState { .. })), "{damage}");
        assert_eq!((bits(other.parameters()), other.steps_done()), (before.clone(), 0));
    }
}

#[test]
fn a_state_that_cannot_be_written_is_an_error_naming_the_file() {
    let mut t = Trainer::new(&tiny()).unwrap();
    let e = t.save("/nonexistent/state".as_ref()).unwrap_err();
    assert!(matches!(&e, TrainError::Checkpoint(_)) && e.to_string().contains("/nonexistent/state"), "{e}");
}

#[test]
fn a_text_trains_with_epochs_and_its_tail_is_for_validation() {
    struct Count(std::sync::mpsc::Sender<u64>);
    impl SparseMethod for Count {
        fn slug(&self) -> &'static str {
            "count"
        }
        fn epoch_end(&mut self, epoch: u64, _: &mut Parameters) -> Result<(), TrainError> {
            self.0.send(epoch).map_err(|e| TrainError::Tokenizer(e.to_string()))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    std::fs::write(&text, "It was a dark and stormy night; the rain fell in torrents.\n".repeat(60)).unwrap();
    let mut recipe = tiny();
    recipe.data.text = Some(text);
    let (send, receive) = std::sync::mpsc::channel();
    let mut t = Trainer::with_method(&recipe, Box::new(Count(send))).unwrap();
    let Outcome::Finished(e) = t.run(None, &mut |_| (), &never()).unwrap() else { panic!() };
    assert!(e.floor_perplexity.is_none() && e.perplexity > 1.0 && e.tokens > 0, "{e:?}");
    drop(t);
    let epochs: Vec<u64> = receive.iter().collect();
    assert!(!epochs.is_empty() && epochs == (0..epochs.len() as u64).collect::<Vec<_>>(), "{epochs:?}");
}

#[test]
fn a_state_of_another_text_is_refused_even_where_the_tokenizer_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (text, state) = (dir.path().join("t.txt"), dir.path().join("state"));
    let line = "It was a dark and stormy night; the rain fell in torrents.\n".repeat(60);
    std::fs::write(&text, &line).unwrap();
    let mut recipe = tiny();
    recipe.data.text = Some(text.clone());
    // The tokenizer sees only the beginning, so it cannot tell the texts apart.
    recipe.tokenizer.sample_bytes = 1000;
    let mut t = Trainer::new(&recipe).unwrap();
    steps(&mut t, 1);
    t.save(&state).unwrap();
    Trainer::new(&recipe).unwrap().load(&state).unwrap();
    std::fs::write(&text, line.replacen("torrents.\n", "torrents!\n", 100).replace('!', "?")).unwrap();
    let e = Trainer::new(&recipe).unwrap().load(&state).unwrap_err();
    assert!(matches!(&e, TrainError::OtherRecipe { .. }), "{e}");
}

#[test]
fn a_complete_folder_is_found_complete_by_the_same_call_and_what_a_crash_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (out, staging) = (dir.path().join("m"), dir.path().join("m.rarefy-partial"));
    let Outcome::Finished(first) = train_to_folder(&tiny(), &out, &mut |_| (), &never()).unwrap() else {
        panic!()
    };
    assert!(!staging.exists());
    std::fs::create_dir(&staging).unwrap();
    std::fs::write(staging.join("state"), "what the crash left").unwrap();
    let Outcome::Finished(again) =
        train_to_folder(&tiny(), &out, &mut |_| panic!("no work"), &never()).unwrap()
    else {
        panic!()
    };
    assert!((first.nats_per_token - again.nats_per_token).abs() < 1e-12 && !staging.exists());
}

#[test]
fn two_runs_to_one_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let mut second = None;
    train_to_folder(
        &tiny(),
        &out,
        &mut |_| {
            second = second
                .take()
                .or_else(|| Some(train_to_folder(&tiny(), &out, &mut |_| panic!("no work"), &never())))
        },
        &never(),
    )
    .unwrap();
    let e = second.unwrap().unwrap_err();
    assert!(matches!(e, TrainError::Checkpoint(CheckpointError::Locked { .. })), "{e}");
}

#[test]
fn documents_that_all_exceed_the_context_are_an_error() {
    let mut recipe = tiny();
    recipe.model.max_positions = 8;
    recipe.data.context = 8;
    let e = Trainer::new(&recipe).unwrap().evaluate(3).unwrap_err();
    assert!(matches!(e, TrainError::NothingToMeasure { skipped: 3, context: 8 }), "{e}");
}
