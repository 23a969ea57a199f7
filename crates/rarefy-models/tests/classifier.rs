//! Classifier folders: written and read again, run, permuted, and refused when they lie.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use rarefy_checkpoint::{CheckpointError, NewModel};
use rarefy_kernels::cnn::NetworkSettings;
use rarefy_models::ModelError;
use rarefy_models::classifier::{Classifier, LayerOp, is_classifier, rank, synthetic};
use serde_json::{Value, json};

fn logits(model: &Classifier, image: &[f32]) -> Vec<f32> {
    let net = model.network(&NetworkSettings::default()).unwrap().network;
    let mut out = vec![0.0; net.out_len()];
    let mut scratch = vec![0.0; net.scratch_len(rayon::current_num_threads())];
    net.forward(image, &mut out, &mut scratch).unwrap();
    out
}

fn picture(model: &Classifier) -> Vec<f32> {
    let bytes: Vec<u8> = (0..3 * model.side() * model.side()).map(|i| (i * 37 % 256) as u8).collect();
    let mut numbers = Vec::new();
    model.numbers(&bytes, &mut numbers).unwrap();
    numbers
}

/// The largest difference, relative to the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let scale = a.iter().fold(1e-30_f32, |m, x| m.max(x.abs()));
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}

/// A fixed order that moves every channel.
fn shuffled(n: usize) -> Vec<usize> {
    (0..n).map(|i| (i + n / 3 + 1) % n).collect()
}

#[test]
fn written_and_read_again_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("net");
    for model in [synthetic::mobilenet_v1(1, 32, 1), synthetic::mobilenet_v2(1, 32, 1)] {
        model.write(NewModel::open_over(&out, "k", out.exists()).unwrap(), &Value::Null).unwrap();
        assert!(is_classifier(&out).unwrap());
        let again = Classifier::open(&out).unwrap();
        assert_eq!((again.side(), again.class_offset(), again.outputs()), (32, 1, 1001));
        assert_eq!(again.layers().len(), model.layers().len());
        for (i, layer) in model.layers().iter().enumerate() {
            assert_eq!(again.conv(i), model.conv(i), "layer {i}");
            assert_eq!((again.layers()[i].output, again.layers()[i].clamp), (layer.output, layer.clamp));
        }
        let image = picture(&model);
        assert_eq!(logits(&again, &image), logits(&model, &image));
        assert_eq!(again.prunable().len(), if model.name().contains("v1") { 13 } else { 34 });
        assert_eq!(again.head(), Some(model.layers().len() - 2));
    }
}

#[test]
fn permuted_channels_leave_the_logits_and_the_inverse_restores_every_bit() {
    for model in [synthetic::mobilenet_v1(1, 32, 3), synthetic::mobilenet_v2(2, 32, 3)] {
        let image = picture(&model);
        let before = logits(&model, &image);
        let mut moved = model.clone();
        let classes = model.channel_classes().0;
        for class in &classes {
            moved.permute(class, &shuffled(class.channels)).unwrap();
        }
        let first = model.prunable()[1];
        assert_ne!(moved.conv(first).unwrap().weight, model.conv(first).unwrap().weight);
        let found = difference(&before, &logits(&moved, &image));
        assert!(found <= 1e-5, "{found}");
        for class in classes.iter().rev() {
            let mut inverse = vec![0; class.channels];
            shuffled(class.channels).iter().enumerate().for_each(|(new, old)| inverse[*old] = new);
            moved.permute(class, &inverse).unwrap();
        }
        for i in 0..model.layers().len() {
            assert_eq!(moved.conv(i), model.conv(i), "layer {i}");
        }
    }
}

#[test]
fn additions_tie_their_producers_and_image_and_logits_stay() {
    let model = synthetic::mobilenet_v2(4, 32, 0);
    let classes = model.channel_classes().0;
    let head = model.head().unwrap();
    let producers: Vec<usize> = classes.iter().flat_map(|c| c.producers.clone()).collect();
    assert!(!producers.contains(&head));
    assert_eq!(producers.iter().collect::<std::collections::BTreeSet<_>>().len(), producers.len());
    // The groups of 2, 3, 4, 3 and 3 residual blocks of equal width have as many producers in one class.
    let mut tied: Vec<usize> = classes.iter().map(|c| c.producers.len()).filter(|n| *n > 1).collect();
    tied.sort_unstable();
    assert_eq!(tied, [2, 3, 3, 3, 4]);
    for (i, layer) in model.layers().iter().enumerate() {
        if let LayerOp::Add { other } = layer.op {
            assert_eq!(model.layers()[other].output, layer.output, "{i}");
        }
    }
    // Half of an order, one twice, a class of another network.
    let mut copy = model.clone();
    let class = &classes[0];
    assert!(matches!(copy.permute(class, &[0]), Err(ModelError::Permutation { .. })));
    assert!(matches!(copy.permute(class, &vec![0; class.channels]), Err(ModelError::Permutation { .. })));
    let other = synthetic::mobilenet_v1(4, 32, 0).channel_classes().0;
    assert!(copy.permute(&other[5], &shuffled(other[5].channels)).is_err());
}

#[test]
fn ranks() {
    assert_eq!(rank(&[0.1, 0.9, 0.5], 1), 0);
    assert_eq!(rank(&[0.1, 0.9, 0.5], 0), 2);
    // Equal values do not count as hits.
    assert_eq!(rank(&[0.5, 0.5, 0.5], 1), 2);
    assert_eq!(rank(&[f32::NAN, 0.5], 1), 1);
    assert_eq!(rank(&[f32::NAN, 0.5], 0), 2);
    assert_eq!(rank(&[0.5], 7), 1);
}

/// Writes a small folder and changes its configuration.
fn changed(dir: &Path, change: &dyn Fn(&mut Value)) -> Result<Classifier, ModelError> {
    let out = dir.join("net");
    let model = synthetic::mobilenet_v2(1, 32, 1);
    model.write(NewModel::open_over(&out, "k", out.exists()).unwrap(), &Value::Null).unwrap();
    let file = out.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&file, config.to_string()).unwrap();
    Classifier::open(&out)
}

#[test]
fn configurations_that_lie_are_refused_with_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let add = synthetic::mobilenet_v2(1, 32, 1)
        .layers()
        .iter()
        .rposition(|l| matches!(l.op, LayerOp::Add { .. }))
        .unwrap();
    let set = |layer: usize, field: &'static str, value: Value| {
        move |c: &mut Value| c["layers"][layer][field] = value.clone()
    };
    let layer_errors: Vec<(usize, &str, Value)> = vec![
        (4, "op", json!("conv_transpose")),
        (4, "op", Value::Null),
        (4, "input", json!(4)),
        (4, "input", json!(1000)),
        (4, "input", json!(-2)),
        (4, "input", json!("2")),
        (add, "other", json!(add)),
        (add, "other", json!(0)),
        (add, "input", json!(-1)),
        (4, "stride", json!(0)),
        (4, "stride", json!(1_000_000)),
        (4, "groups", json!(3)),
        (4, "groups", json!(-1)),
        (4, "padding", json!("REFLECT")),
        (4, "act", json!("swish")),
        (4, "act", json!(6)),
        (4, "weight_shape", json!([1, 2])),
        (4, "weight_shape", json!([0, 0, 1, 1])),
    ];
    for (layer, field, value) in layer_errors {
        match changed(dir.path(), &set(layer, field, value.clone())) {
            Err(ModelError::Layer { layer: found, .. }) => assert_eq!(found, layer, "{field} {value}"),
            other => panic!("{field} {value}: {:?}", other.err()),
        }
    }
    // A wrong but possible input, size or group: the tensor does not fit.
    for change in
        [set(1, "groups", json!(1)), set(6, "input", json!(0)), set(4, "weight_shape", json!([48, 9, 1, 1]))]
    {
        match changed(dir.path(), &change) {
            Err(ModelError::Shape { .. } | ModelError::Layer { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let top: Vec<(&str, Value)> = vec![
        ("layers", json!([])),
        ("layers", json!("conv")),
        ("input_resolution", json!(0)),
        ("input_resolution", json!(1_000_000_000)),
        ("input", json!("BGR, x - mean")),
        ("classes", json!("index + 5000")),
    ];
    for (field, value) in top {
        let found = changed(dir.path(), &|c| c[field] = value.clone());
        assert!(matches!(found, Err(ModelError::Unsupported { .. })), "{field} {value}: {found:?}");
    }
    // The end is cut off, or a layer hangs beside the others.
    let cut = changed(dir.path(), &|c| c["layers"].as_array_mut().unwrap().truncate(5));
    assert!(matches!(cut, Err(ModelError::Layer { .. })), "{cut:?}");
    let soft = changed(dir.path(), &|c| {
        let at = c["layers"].as_array().unwrap().len() - 1;
        c["layers"][at] = json!({"op": "flatten", "input": at - 2});
    });
    assert!(matches!(soft, Err(ModelError::Layer { .. })), "{soft:?}");
    // One layer more than there are tensors.
    let missing = changed(dir.path(), &|c| {
        let layers = c["layers"].as_array_mut().unwrap();
        let last = layers.len() - 1;
        layers[last] = json!({"op": "conv", "input": last - 1, "stride": 1, "padding": "SAME", "groups": 1});
    });
    assert!(
        matches!(missing, Err(ModelError::Checkpoint(CheckpointError::MissingTensor { .. }))),
        "{missing:?}"
    );
}

/// The real folders: the numbers in their configurations are measured in `rarefy eval`; here that they are read at all.
#[test]
fn real_folders() {
    let Some(data) = std::env::var_os("RAREFY_DATA").map(PathBuf::from) else {
        eprintln!("SKIPPED: RAREFY_DATA is not set, no real classifier folders were read");
        return;
    };
    for (name, layers, side) in [
        ("mobilenet-v1-0.25-128", 31, 128),
        ("mobilenet-v1-0.5-160", 31, 160),
        ("mobilenet-v2-1.0-224", 66, 224),
    ] {
        let model = Classifier::open(&data.join("../models").join(name)).unwrap();
        assert_eq!((model.layers().len(), model.side(), model.outputs()), (layers, side, 1001));
        assert_eq!((model.name(), model.class_offset()), (name, 1));
        assert!(logits(&model, &picture(&model)).iter().all(|x| x.is_finite()));
    }
}
