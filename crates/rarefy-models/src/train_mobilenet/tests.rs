#![allow(clippy::unwrap_used)]

use burn::optim::GradientsParams;
use rarefy_checkpoint::NewModel;
use rarefy_kernels::cnn::NetworkSettings;
use serde_json::json;

use super::*;
use crate::causal_lm_loss;
use crate::classifier::Classifier;

fn settings(planes: usize, side: usize, entry_stride: usize) -> MobileNetSettings {
    MobileNetSettings { side, planes, entry_stride, width: 0.25, depth: 4, ..MobileNetSettings::default() }
}

fn images(settings: &MobileNetSettings, n: usize) -> Vec<Vec<u8>> {
    let len = settings.planes * settings.side * settings.side;
    (0..n).map(|b| (0..len).map(|i| ((i * 31 + b * 77 + i * i % 13) % 256) as u8).collect()).collect()
}

/// A network whose statistics and scales are not those of the beginning.
fn used(settings: &MobileNetSettings) -> (MobileNet, Vec<Vec<u8>>) {
    let mut net = MobileNet::init(settings, 3, &Device::flex().autodiff()).unwrap();
    let images = images(settings, 6);
    for i in 0..net.convs.len() {
        for (part, centre) in [("gamma", 0.8f32), ("beta", 0.3)] {
            let name = format!("layers.{i}.{part}");
            let n = net.get(&name).unwrap().len();
            let values = (0..n).map(|c| centre + ((c * 37 + i) % 17) as f32 / 20.0 - 0.4);
            // One channel is turned over: a negative scale must survive folding.
            let values = values.enumerate().map(|(c, v)| if c == 3 { -v } else { v }).collect();
            net.set(&name, values).unwrap();
        }
    }
    let views: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    let (_, statistics) = net.forward(net.windows(&views).unwrap(), 6);
    net.update_running(&statistics, 0.2);
    (net, images)
}

fn infer(net: &MobileNet, images: &[Vec<u8>]) -> Vec<f32> {
    let views: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    to_host(&net.infer(net.windows(&views).unwrap(), views.len()))
}

/// The logits of a classifier on planar bytes.
fn classify(model: &Classifier, settings: &MobileNetSettings, images: &[Vec<u8>]) -> Vec<f32> {
    let network = model.network(&NetworkSettings::default()).unwrap().network;
    let (mut numbers, mut all) = (Vec::new(), Vec::new());
    let pixels = settings.side * settings.side;
    for image in images {
        let rgb: Vec<u8> = (0..pixels)
            .flat_map(|p| (0..3).map(move |c| image[(c % settings.planes) * pixels + p]))
            .collect();
        model.numbers(&rgb, &mut numbers).unwrap();
        let mut out = vec![0.0; network.out_len()];
        let mut scratch = vec![0.0; network.scratch_len(rayon::current_num_threads())];
        network.forward(&numbers, &mut out, &mut scratch).unwrap();
        all.extend(out);
    }
    all
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn the_exported_folder_gives_the_same_logits() {
    for (planes, side, stride) in [(3, 32, 2), (1, 28, 2), (3, 9, 1)] {
        let settings = settings(planes, side, stride);
        let (net, images) = used(&settings);
        let want = infer(&net, &images);
        assert!(want.iter().any(|l| l.abs() > 0.05), "{want:?}");
        let made = net.classifier("test");
        assert_close(&classify(&made, &settings, &images), &want);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("net");
        made.write(NewModel::open(&out, "test").unwrap(), &json!({})).unwrap();
        let read = Classifier::open(&out).unwrap();
        assert_eq!((read.class_offset(), read.outputs(), read.name()), (0, 10, "test"));
        assert_close(&classify(&read, &settings, &images), &want);
        let prunable: Vec<String> = read.prunable().into_iter().map(Classifier::weight_name).collect();
        assert_eq!(prunable, net.prunable());
    }
}

#[test]
fn absorbing_scales_and_permuting_keep_the_function() {
    let settings = settings(3, 16, 2);
    let (mut net, images) = used(&settings);
    let want = infer(&net, &images);
    net.absorb_scales().unwrap();
    assert_close(&infer(&net, &images), &want);
    let folded = net.classifier("test");
    for i in net.prunable() {
        let layer = split(&i).unwrap().0;
        assert_eq!(net.get(&i).unwrap().len(), folded.conv(layer).unwrap().weight.len());
        for (a, b) in net.get(&i).unwrap().iter().zip(&folded.conv(layer).unwrap().weight) {
            assert!((a - b).abs() <= 1e-6 * b.abs());
        }
    }
    for layer in [2, 4, 8] {
        let n = net.shapes[layer].d_out;
        let order: Vec<usize> = (0..n).map(|c| (c * 5 + 3) % n).collect();
        net.permute(layer, &order).unwrap();
        assert_close(&infer(&net, &images), &want);
    }
    for (layer, order) in [(1, vec![0; 8]), (2, vec![0; 16]), (2, vec![0, 1]), (99, vec![])] {
        assert!(matches!(net.permute(layer, &order), Err(ModelError::Permutation { .. })));
    }
}

#[test]
fn gradients_are_slopes() {
    let settings = settings(1, 8, 1);
    let (mut net, images) = used(&settings);
    let views: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    let targets =
        || Tensor::from_data(TensorData::new(vec![1i64, 3, 0, 9, 9, 2], [1, 6]), &Device::flex().autodiff());
    let loss = |net: &MobileNet| {
        let (logits, _) = net.forward(net.windows(&views).unwrap(), 6);
        causal_lm_loss(logits.reshape([1, 6, 10]), targets())
    };
    let mut grads = GradientsParams::from_grads(loss(&net).backward(), &net);
    for (name, id, shape) in net.parameters() {
        let grad: Vec<f32> = match shape.len() {
            1 => to_host(&grads.remove::<1>(id).unwrap()),
            _ => to_host(&grads.remove::<2>(id).unwrap()),
        };
        // Along the gradient itself, where the slope is its norm.
        let norm = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        if norm < 1e-4 {
            continue;
        }
        let values = net.get(&name).unwrap();
        let step = 2e-3 / norm;
        let mut at = |h: f64| {
            let moved = values.iter().zip(&grad).map(|(v, g)| (f64::from(*v) + h * f64::from(*g)) as f32);
            net.set(&name, moved.collect()).unwrap();
            f64::from(loss(&net).into_scalar::<f32>())
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        assert!((slope / (norm * norm) - 1.0).abs() < 0.1, "{name}: {slope} {}", norm * norm);
        net.set(&name, values).unwrap();
    }
}

#[test]
fn widths_depths_and_bad_settings() {
    let net = |s: &MobileNetSettings| MobileNet::init(s, 0, &Device::flex());
    let wide = MobileNetSettings { width: 1.0, depth: 13, ..MobileNetSettings::default() };
    let last = *wide.convs().last().unwrap();
    assert_eq!((last.d_out, last.side, wide.convs().len()), (1024, 1, 27));
    let narrow = MobileNetSettings { width: 0.01, ..MobileNetSettings::default() };
    assert!(narrow.convs().iter().all(|c| c.d_out == 8));
    let bad = [
        MobileNetSettings { side: 3, ..wide.clone() },
        MobileNetSettings { planes: 2, ..wide.clone() },
        MobileNetSettings { entry_stride: 3, ..wide.clone() },
        MobileNetSettings { width: f64::NAN, ..wide.clone() },
        MobileNetSettings { multiple: 0, ..wide.clone() },
        MobileNetSettings { depth: 14, ..wide.clone() },
        MobileNetSettings { classes: 1, ..wide.clone() },
    ];
    for settings in bad {
        assert!(matches!(net(&settings), Err(ModelError::Unsupported { .. })), "{settings:?}");
    }
    let mut net = net(&narrow).unwrap();
    assert!(matches!(net.windows(&[]), Err(ModelError::Empty { .. })));
    assert!(matches!(net.windows(&[&[0; 5]]), Err(ModelError::Shape { .. })));
    assert!(matches!(net.get("layers.1.bias"), Err(ModelError::UnknownParameter { .. })));
    assert!(matches!(net.set("layers.1.beta", vec![0.0]), Err(ModelError::Shape { .. })));
    let other = MobileNet::init(&narrow, 1, &Device::flex()).unwrap();
    let same = MobileNet::init(&narrow, 0, &Device::flex()).unwrap();
    assert_eq!(net.get("layers.2.weight").unwrap(), same.get("layers.2.weight").unwrap());
    assert_ne!(net.get("layers.2.weight").unwrap(), other.get("layers.2.weight").unwrap());
}
