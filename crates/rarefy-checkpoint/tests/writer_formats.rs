//! The writer: every output format round trips, and tensors that are not what they say are refused.
#![allow(clippy::unwrap_used)]

mod support;

use rarefy_checkpoint::{
    Checkpoint, CheckpointError as E, CheckpointWriter, DType, OutTensor, OutputFormat, QuantGrid, ShapeName,
    Storage, StoredWeight, round_trip, to_dtype,
};
use rarefy_sparsity::Pattern;
use serde_json::json;
use std::collections::BTreeMap;
use support::edit_config;
use support::job::{Job, pruned};

#[test]
fn dense_output_is_a_valid_folder_with_the_same_names_and_types() {
    let t = tempfile::tempdir().unwrap();
    for (shape, dtype) in [
        (ShapeName::TinyLlama, DType::F32),
        (ShapeName::TinyOpt, DType::F16),
        (ShapeName::TinyQwen2, DType::BF16),
    ] {
        let job = Job::with(
            &t.path().join(format!("{shape}")),
            OutputFormat::Dense,
            shape,
            dtype,
            2,
            Pattern::Unstructured,
        );
        let summary = job.complete();
        assert!(!job.staging().exists() && summary.leftover.is_none());
        let model = Checkpoint::open(&job.out).unwrap();
        model.check_layout().unwrap();
        assert_eq!(
            model.tensors().keys().collect::<Vec<_>>(),
            job.source.tensors().keys().collect::<Vec<_>>()
        );
        for (name, w) in job.want() {
            assert_eq!(model.read_f32(&name).unwrap(), w);
            assert_eq!(model.tensors()[&name].dtype, dtype);
        }
        for name in &summary.copied {
            assert_eq!(model.read_dense(name).unwrap(), job.source.read_dense(name).unwrap());
        }
        // A tied model stays tied.
        assert_eq!(model.tensors().contains_key("lm_head.weight"), shape != ShapeName::TinyOpt);
        assert_eq!(model.config().raw, job.source.config().raw);
        assert_eq!(
            std::fs::read(job.out.join("tokenizer.json")).unwrap(),
            std::fs::read(job.source.dir().join("tokenizer.json")).unwrap()
        );
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(job.out.join("rarefy.json")).unwrap()).unwrap();
        assert_eq!((&record["method"], &record["run_key"]), (&json!("test"), &json!("key")));
        assert_eq!(rarefy_checkpoint::check_recorded_files(&job.out).unwrap(), Some((1, vec![])));
        let metadata = &model.store().files()[0].header().metadata;
        assert_eq!(metadata["format"], "pt");
        assert!(
            model
                .physical()
                .values()
                .all(|i| i.offset % 8 == 0 || i.dtype.size() < 8 && i.offset % i.dtype.size() as u64 == 0)
        );
    }
}

#[test]
fn packed_formats_round_trip_bitwise_and_are_smaller() {
    let t = tempfile::tempdir().unwrap();
    let nm = Pattern::NM { n: 2, m: 4 };
    for (i, (format, dtype, keep, pattern, storage)) in [
        (OutputFormat::Packed, DType::F32, 2, nm, Storage::NmPacked { n: 2, m: 4 }),
        (OutputFormat::Packed, DType::BF16, 2, nm, Storage::NmPacked { n: 2, m: 4 }),
        (OutputFormat::Packed, DType::F16, 1, Pattern::Unstructured, Storage::BitmaskPanel),
        (OutputFormat::Packed, DType::F32, 1, Pattern::Block { rows: 1, cols: 1 }, Storage::BitmaskPanel),
        (OutputFormat::SparseBitmask, DType::BF16, 2, Pattern::Unstructured, Storage::SparseBitmask),
        (OutputFormat::Sparse24Bitmask, DType::F16, 2, nm, Storage::Sparse24Bitmask),
    ]
    .into_iter()
    .enumerate()
    {
        let job =
            Job::with(&t.path().join(i.to_string()), format, ShapeName::TinyLlama, dtype, keep, pattern);
        let want = job.want();
        let mut w = job.writer().unwrap();
        job.part(&mut w, 0).unwrap();
        for (name, values) in want.iter().filter(|(n, _)| n.contains("layers.0.")) {
            assert_eq!(&w.read_part_f32("block 0", name).unwrap(), values, "{format}");
        }
        drop(w);
        let summary = job.complete();
        let model = Checkpoint::open(&job.out).unwrap();
        model.check_layout().unwrap();
        assert!(model.extra_tensors().is_empty());
        for (name, values) in &want {
            assert_eq!(model.tensors()[name].storage, storage, "{format}");
            assert_eq!(&model.read_f32(name).unwrap(), values, "{format} {dtype} {name}");
            assert!(model.tensors()[name].stored_bytes < model.tensors()[name].dense_bytes());
            let written = summary.tensors.iter().find(|t| t.name == *name).unwrap();
            assert_eq!(
                (written.storage, written.stored_bytes),
                (storage, model.tensors()[name].stored_bytes)
            );
        }
        let weight = model.read_weight("model.layers.0.mlp.up_proj.weight").unwrap();
        match (storage, dtype) {
            (Storage::NmPacked { .. }, DType::F32) => assert!(matches!(weight, StoredWeight::NmF32(_))),
            (Storage::NmPacked { .. }, _) => assert!(matches!(weight, StoredWeight::NmBf16(_))),
            (Storage::BitmaskPanel, DType::F16) => assert!(matches!(weight, StoredWeight::PanelF16(_))),
            (Storage::BitmaskPanel, _) => assert!(matches!(weight, StoredWeight::PanelF32(_))),
            (_, DType::F16) => assert!(matches!(weight, StoredWeight::DenseF16(_))),
            _ => assert!(matches!(weight, StoredWeight::DenseBf16(_))),
        }
        // From packed back to dense: config.json no longer speaks of compression.
        let back = t.path().join(format!("back{i}"));
        CheckpointWriter::create(&back, &model, OutputFormat::Dense, "k", false)
            .unwrap()
            .finish(&json!({}))
            .unwrap();
        let back = Checkpoint::open(&back).unwrap();
        assert_eq!(back.config().raw, job.source.config().raw);
        for (name, values) in &want {
            assert_eq!(&back.read_f32(name).unwrap(), values);
            assert_eq!(back.tensors()[name].storage, Storage::Dense);
        }
    }
}

#[test]
fn what_packing_would_not_shrink_stays_dense_and_is_reported() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::with(
        t.path(),
        OutputFormat::Packed,
        ShapeName::TinyLlama,
        DType::BF16,
        4,
        Pattern::Unstructured,
    );
    let summary = job.complete();
    assert_eq!(summary.kept_dense.len(), 14);
    let model = Checkpoint::open(&job.out).unwrap();
    assert!(model.tensors().values().all(|l| l.storage == Storage::Dense));
    assert!(model.config().raw.get("rarefy_config").is_none());
}

#[test]
fn a_corrupted_packed_weight_is_an_error() {
    let t = tempfile::tempdir().unwrap();
    for (i, (keep, pattern)) in
        [(1, Pattern::Unstructured), (2, Pattern::NM { n: 2, m: 4 })].into_iter().enumerate()
    {
        let job = Job::with(
            &t.path().join(i.to_string()),
            OutputFormat::Packed,
            ShapeName::TinyLlama,
            DType::F32,
            keep,
            pattern,
        );
        job.complete();
        let name = "model.layers.0.mlp.up_proj.weight";
        let file = job.out.join("model.safetensors");
        let clean = std::fs::read(&file).unwrap();
        let model = Checkpoint::open(&job.out).unwrap();
        for (array, info) in
            model.physical().iter().filter(|(n, _)| n.starts_with("model.layers.0.mlp.up_proj."))
        {
            let mut bytes = clean.clone();
            bytes[info.offset as usize + 9] ^= 4;
            std::fs::write(&file, bytes).unwrap();
            let damaged = Checkpoint::open(&job.out).unwrap();
            for e in [damaged.read_f32(name).unwrap_err(), damaged.read_weight(name).unwrap_err()] {
                assert!(
                    matches!(&e, E::Corrupt { tensor, .. } if tensor == name)
                        && e.to_string().contains("checksum"),
                    "{array}: {e}"
                );
            }
        }
        std::fs::write(&file, &clean).unwrap();
        // A lying entry of config.json.
        let config = std::fs::read(job.out.join("config.json")).unwrap();
        type Edit = fn(&mut serde_json::Value, &str);
        let edits: [Edit; 9] = [
            |c, _| c["rarefy_config"]["version"] = 2.into(),
            |c, n| c["rarefy_config"]["tensors"][n]["layout"] = 9.into(),
            |c, n| c["rarefy_config"]["tensors"][n]["shape"] = json!([64, 176]),
            |c, n| c["rarefy_config"]["tensors"][n]["shape"] = json!([0, 0]),
            |c, n| c["rarefy_config"]["tensors"][n]["format"] = "csr".into(),
            |c, n| c["rarefy_config"]["tensors"][n]["xxh3"] = "0".into(),
            |c, n| c["rarefy_config"]["tensors"][n]["more"] = 1.into(),
            |c, _| {
                c["rarefy_config"]["tensors"]["ghost.weight"] =
                    json!({"format": "bitmask-panel", "layout": 1, "shape": [1, 1], "xxh3": ""})
            },
            |c, _| c["rarefy_config"] = json!([]),
        ];
        for (k, edit) in edits.into_iter().enumerate() {
            edit_config(&job.out, |c| edit(c, name));
            let e = Checkpoint::open(&job.out).and_then(|m| m.read_f32(name)).expect_err(&k.to_string());
            assert!(
                matches!(
                    e,
                    E::ConfigField { .. }
                        | E::ShapeMismatch { .. }
                        | E::Corrupt { .. }
                        | E::TensorNotFound { .. }
                ),
                "{k}: {e}"
            );
            std::fs::write(job.out.join("config.json"), &config).unwrap();
        }
        Checkpoint::open(&job.out).unwrap().read_f32(name).unwrap();
    }
}

#[test]
fn quantised_output_holds_the_grid_exactly() {
    let t = tempfile::tempdir().unwrap();
    for (i, (bits, group, dtype, zero)) in [
        (4, 16, DType::BF16, true),
        (4, 0, DType::F32, false),
        (8, 16, DType::F16, true),
        // The rounding of BF16 moves codes of eight bits by up to half a step.
        (8, 16, DType::BF16, true),
        (3, 16, DType::F32, true),
        (2, 0, DType::F32, false),
    ]
    .into_iter()
    .enumerate()
    {
        let format = OutputFormat::PackQuantized { bits, group };
        let job = Job::with(
            &t.path().join(i.to_string()),
            format,
            ShapeName::TinyLlama,
            dtype,
            4,
            Pattern::Unstructured,
        );
        let mut want = BTreeMap::new();
        let mut w = job.writer().unwrap();
        for block in 0..2 {
            let mut list = pruned(&job.source, block, 4, Pattern::Unstructured);
            for (k, tensor) in list.iter_mut().enumerate() {
                let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
                let groups = cols.checked_div(group).unwrap_or(1);
                let (low, high) = (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1);
                // The second layer has scales that BF16 and F16 cannot hold.
                let scale: Vec<f32> = (0..rows * groups)
                    .map(|g| if k == 1 { 0.001 + g as f32 * 1e-7 } else { 0.0625 * (1 + g % 3) as f32 })
                    .collect();
                let zero_point: Option<Vec<i32>> = (zero && k != 2).then(|| {
                    (0..rows * groups).map(|g| (g as i64 % (high - low + 1) + low) as i32).collect()
                });
                let mut values: Vec<f32> = (0..rows * cols)
                    .map(|e| {
                        let g = e / cols * groups + e % cols / (cols / groups);
                        let z = zero_point.as_ref().map_or(0, |z| z[g]);
                        let q =
                            if e % 3 == 0 { i64::from(z) } else { (e as i64 * 7) % (high - low + 1) + low };
                        (q - i64::from(z)) as f32 * scale[g]
                    })
                    .collect();
                round_trip(&mut values, dtype);
                tensor.data = to_dtype(&values, dtype);
                tensor.quant = Some(QuantGrid { bits, group, scale, zero_point });
                want.insert(tensor.name.clone(), values);
            }
            w.write_part(&format!("block {block}"), list, json!(null)).unwrap();
        }
        w.finish(&json!({})).unwrap();
        let model = Checkpoint::open(&job.out).unwrap();
        model.check_layout().unwrap();
        for (name, values) in &want {
            assert_eq!(model.tensors()[name].storage, Storage::PackQuantized { bits });
            let mut got = model.read_f32(name).unwrap();
            round_trip(&mut got, dtype);
            assert!(
                got.iter().zip(values).all(|(a, b)| (a - b).abs() <= 0.0),
                "{bits} bits, groups of {group}: {name}"
            );
        }
        let config = &model.config().raw["quantization_config"];
        assert_eq!(config["version"], "0.18.0");
        assert!(config["ignore"].as_array().unwrap().contains(&json!("lm_head")));
    }
}

#[test]
fn quantising_without_a_grid_rounds_to_half_a_step() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::with(
        t.path(),
        OutputFormat::PackQuantized { bits: 4, group: 16 },
        ShapeName::TinyLlama,
        DType::F32,
        2,
        Pattern::Unstructured,
    );
    job.complete();
    let model = Checkpoint::open(&job.out).unwrap();
    for (name, values) in job.want() {
        let got = model.read_f32(&name).unwrap();
        for (g, w) in got.chunks(16).zip(values.chunks(16)) {
            let largest = w.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in g.iter().zip(w) {
                assert!((a - b).abs() <= largest / 7.5 * 0.5001, "{name}");
                // Zeros stay zeros.
                assert!(*b != 0.0 || *a == 0.0);
            }
        }
    }
}

#[test]
fn tensors_that_are_not_what_they_say_are_refused() {
    let t = tempfile::tempdir().unwrap();
    let good = |name: &str| OutTensor {
        name: name.into(),
        shape: vec![2, 4],
        dtype: DType::F32,
        data: to_dtype(&[1., 0., 2., 0., 0., 3., 4., 0.], DType::F32),
        pattern: Some(Pattern::NM { n: 2, m: 4 }),
        quant: None,
    };
    let grid = |s: f32| QuantGrid { bits: 4, group: 4, scale: vec![s; 2], zero_point: None };
    let q4 = OutputFormat::PackQuantized { bits: 4, group: 4 };
    let cases: Vec<(OutputFormat, OutTensor)> = vec![
        (OutputFormat::Dense, OutTensor { shape: vec![2, 3], ..good("w.weight") }),
        (OutputFormat::Dense, OutTensor { shape: vec![usize::MAX, 8], ..good("w.weight") }),
        (OutputFormat::Packed, OutTensor { shape: vec![8], ..good("w.weight") }),
        (OutputFormat::Packed, good("w.bias")),
        (OutputFormat::Packed, OutTensor { pattern: Some(Pattern::NM { n: 1, m: 4 }), ..good("w.weight") }),
        (OutputFormat::Packed, OutTensor { dtype: DType::U32, ..good("w.weight") }),
        (OutputFormat::Sparse24Bitmask, OutTensor { shape: vec![4, 2], ..good("w.weight") }),
        (
            OutputFormat::Sparse24Bitmask,
            OutTensor { data: to_dtype(&[1.; 8], DType::F32), ..good("w.weight") },
        ),
        (OutputFormat::PackQuantized { bits: 5, group: 4 }, good("w.weight")),
        (OutputFormat::PackQuantized { bits: 4, group: 3 }, good("w.weight")),
        (q4, OutTensor { data: to_dtype(&[f32::NAN; 8], DType::F32), ..good("w.weight") }),
        (q4, OutTensor { quant: Some(QuantGrid { bits: 8, ..grid(1.0) }), ..good("w.weight") }),
        (q4, OutTensor { quant: Some(QuantGrid { scale: vec![1.0], ..grid(1.0) }), ..good("w.weight") }),
        (q4, OutTensor { quant: Some(grid(0.0)), ..good("w.weight") }),
        (
            q4,
            OutTensor {
                quant: Some(QuantGrid { zero_point: Some(vec![8, 0]), ..grid(1.0) }),
                ..good("w.weight")
            },
        ),
        (q4, OutTensor { quant: Some(grid(0.3)), ..good("w.weight") }),
    ];
    for (i, (format, tensor)) in cases.into_iter().enumerate() {
        let job = Job::new(&t.path().join(i.to_string()), format);
        let name = tensor.name.clone();
        let e = job.writer().unwrap().write_part("p", vec![tensor], json!(null)).expect_err(&i.to_string());
        assert!(
            matches!(e, E::BadOutput { .. } | E::OffGrid { .. }) && e.to_string().contains(&name),
            "{i}: {e}"
        );
    }
    let job = Job::new(t.path(), OutputFormat::Dense);
    let mut w = job.writer().unwrap();
    assert!(matches!(w.write_part("p", vec![good("a"), good("a")], json!(null)), Err(E::BadOutput { .. })));
    w.write_part("p", vec![good("a")], json!(null)).unwrap();
    assert!(w.write_part("q", vec![good("a")], json!(null)).unwrap_err().to_string().contains("part `p`"));
    w.write_part("p", vec![good("a"), good("b")], json!(7)).unwrap();
    assert_eq!(w.read_note("p"), Some(json!(7)));
    assert!(matches!(w.read_part_f32("r", "a"), Err(E::PartNotWritten { .. })));
    assert!(matches!(w.read_part_f32("p", "c"), Err(E::TensorNotFound { .. })));
    let staging = w.staging().to_path_buf();
    w.abandon().unwrap();
    assert!(!staging.exists());
}

#[test]
fn shards_and_index() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::new(t.path(), OutputFormat::Packed);
    let mut w = job.writer().unwrap().with_shard_bytes(40_000);
    for block in 0..2 {
        job.part(&mut w, block).unwrap();
    }
    let summary = w.finish(&json!({})).unwrap();
    assert!(summary.files.len() > 3);
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(job.out.join("model.safetensors.index.json")).unwrap())
            .unwrap();
    let model = Checkpoint::open(&job.out).unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), model.physical().len());
    assert_eq!(index["metadata"]["total_size"], model.physical().values().map(|i| i.bytes).sum::<u64>());
    for (name, values) in job.want() {
        assert_eq!(model.read_f32(&name).unwrap(), values);
    }
}
