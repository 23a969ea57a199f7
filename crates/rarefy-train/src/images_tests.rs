#![allow(clippy::unwrap_used)]

use crate::{ImageOutcome, ImageSettings, ImageTrainer, ScheduleSettings, SparsitySettings, TrainError};
use rarefy_data::LabelledImages;
use rarefy_models::{MobileNetSettings, ModelError};
use rarefy_sparsity::Pattern;
use std::sync::atomic::AtomicBool;

/// Stripes whose direction is the class, of random place and strength.
fn stripes(n: usize, seed: usize) -> LabelledImages {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for i in 0..n {
        let (class, r) = (i % 4, (i + seed) * 2_654_435_761 % 4_294_967_296);
        let (phase, strength) = (r / 7 % 6, 90 + r / 100 % 60);
        for y in 0..12 {
            for x in 0..12 {
                let along = [y, x, x + y, x + 12 - y][class] + phase;
                let noise = (r / 31 + y * 37 + x * 101 + y * x * 13) % 60;
                pixels.push((noise + if along / 2 % 2 == 0 { strength } else { 0 }) as u8);
            }
        }
        labels.push(class as u8);
    }
    LabelledImages::new(12, 1, pixels, labels).unwrap()
}

fn settings(steps: u64) -> ImageSettings {
    ImageSettings {
        model: MobileNetSettings {
            side: 12,
            planes: 1,
            entry_stride: 1,
            width: 0.25,
            multiple: 16,
            depth: 3,
            classes: 4,
        },
        batch: 32,
        shift: 1,
        mirrors: false,
        schedule: ScheduleSettings { steps, warmup: 5, final_fraction: 0.0 },
        keeps: 0.8,
        ..ImageSettings::default()
    }
}

fn train<'a>(settings: &ImageSettings, images: &'a LabelledImages) -> ImageTrainer<'a> {
    let mut trainer = ImageTrainer::new(settings, images).unwrap();
    assert_eq!(trainer.run(&mut |_| (), &AtomicBool::new(false)).unwrap(), ImageOutcome::Finished);
    trainer
}

#[test]
fn it_learns_also_while_it_is_pruned() {
    let (images, unseen) = (stripes(256, 0), stripes(128, 9999));
    let start = ImageTrainer::new(&settings(80), &images).unwrap().accuracy(&unseen).unwrap();
    assert!(start < 0.6, "{start}");
    for (pattern, height) in [("unstructured", 1), ("block:4x1", 4), ("block:16x1", 16)] {
        let sparsity = SparsitySettings {
            target: 0.6,
            begin: 10,
            end: 60,
            every: 5,
            pattern: pattern.parse().unwrap(),
            ..SparsitySettings::default()
        };
        let trainer = train(&ImageSettings { sparsity: Some(sparsity), ..settings(80) }, &images);
        let accuracy = trainer.accuracy(&unseen).unwrap();
        assert!(accuracy > 0.9, "{pattern}: {accuracy}");
        let pruned: Vec<String> = trainer.model().prunable();
        assert_eq!(pruned.len(), 3);
        for p in &trainer.parameters().all {
            let Some(mask) = p.mask() else {
                assert!(!pruned.contains(&p.name));
                continue;
            };
            let blocks = p.shape[0].div_ceil(height) * p.shape[1];
            assert_eq!(mask.pruned(), (blocks as f64 * 0.6) as usize * height, "{}", p.name);
            assert!(mask.satisfies(&Pattern::Block { rows: height, cols: 1 }));
            assert!(
                trainer.model().get(&p.name).unwrap().iter().filter(|w| **w == 0.0).count() >= mask.pruned()
            );
        }
        // The exported classifier has the same zeros.
        let made = trainer.model().classifier("test");
        for i in made.prunable() {
            let conv = made.conv(i).unwrap();
            let zeros = conv.weight.iter().filter(|w| w.to_bits() == 0).count();
            assert!(zeros as f64 >= 0.55 * conv.weight.len() as f64);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_a_stopped_run_goes_on() {
    let images = stripes(96, 0);
    let settings = settings(9);
    let all = |trainer: &ImageTrainer<'_>| -> Vec<u32> {
        let values = trainer.parameters().all.iter().flat_map(|p| &p.values);
        values.map(|v| v.to_bits()).collect()
    };
    let whole = train(&settings, &images);
    assert_eq!(all(&whole), all(&train(&settings, &images)));
    assert_ne!(all(&whole), all(&train(&ImageSettings { seed: 1, ..settings.clone() }, &images)));
    let cancel = AtomicBool::new(false);
    let mut stopped = ImageTrainer::new(&settings, &images).unwrap();
    let mut stop = |s: &crate::ImageStep| {
        if s.step == 4 {
            cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    };
    assert_eq!(stopped.run(&mut stop, &cancel).unwrap(), ImageOutcome::Cancelled { step: 4 });
    stopped.run(&mut |_| (), &AtomicBool::new(false)).unwrap();
    assert_eq!(all(&whole), all(&stopped));
}

#[test]
fn bad_settings_are_named() {
    let images = stripes(40, 0);
    let good = settings(9);
    let sparsity = |s: SparsitySettings| ImageSettings { sparsity: Some(s), ..good.clone() };
    let model = |m: MobileNetSettings| ImageSettings { model: m, ..good.clone() };
    let bad = [
        ("batch", ImageSettings { batch: 41, ..good.clone() }),
        ("batch", ImageSettings { batch: 0, ..good.clone() }),
        ("shift", ImageSettings { shift: 3, ..good.clone() }),
        ("keeps", ImageSettings { keeps: 1.0, ..good.clone() }),
        ("schedule.warmup", settings(5)),
        ("model.side", model(MobileNetSettings { side: 13, ..good.model.clone() })),
        ("model.planes", model(MobileNetSettings { planes: 3, ..good.model.clone() })),
        ("model.classes", model(MobileNetSettings { classes: 3, ..good.model.clone() })),
        ("sparsity.target", sparsity(SparsitySettings { target: 1.0, end: 8, ..Default::default() })),
        ("sparsity.end", sparsity(SparsitySettings { end: 9, ..Default::default() })),
        ("sparsity.every", sparsity(SparsitySettings { every: 0, end: 8, ..Default::default() })),
    ];
    for (field, settings) in bad {
        let error = ImageTrainer::new(&settings, &images).unwrap_err();
        assert!(matches!(&error, TrainError::Setting { field: f, .. } if *f == field), "{field}: {error}");
    }
    let error = ImageTrainer::new(&model(MobileNetSettings { depth: 0, ..good.model.clone() }), &images);
    assert!(matches!(error, Err(TrainError::Model(ModelError::Unsupported { .. }))));
    let pattern = "block:5x1".parse().unwrap();
    let error =
        ImageTrainer::new(&sparsity(SparsitySettings { pattern, end: 8, ..Default::default() }), &images);
    assert!(matches!(error, Err(TrainError::Sparsity(_))));
    // A rate that makes everything overflow ends with a word, not with a network of nothing.
    let mut wild = good.clone();
    wild.optimizer.lr = 1e30;
    wild.clip.norm = 0.0;
    let mut trainer = ImageTrainer::new(&wild, &images).unwrap();
    let error = trainer.run(&mut |_| (), &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
}
