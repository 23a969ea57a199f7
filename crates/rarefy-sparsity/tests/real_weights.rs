//! Selection on the trained CIFAR-10 ResNet-20, against numbers measured with NumPy.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::PathBuf;

use rarefy_sparsity::{distribution, select};

/// Magnitudes of the 20 prunable tensors in network order, or `None` without the data.
fn magnitudes() -> Option<Vec<Vec<f32>>> {
    let Some(data) = std::env::var_os("RAREFY_DATA") else {
        eprintln!("SKIPPED: RAREFY_DATA is not set, the ResNet-20 weights were not looked at");
        return None;
    };
    let path = PathBuf::from(data).join("../models/cifar10-resnet20/model.safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let body = &bytes[8 + header_len..];
    let mut tensors: Vec<(String, Vec<f32>)> = header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, t)| t["shape"].as_array().is_some_and(|s| s.len() >= 2))
        .map(|(name, t)| {
            assert_eq!(t["dtype"], "F32");
            let at = |i: usize| t["data_offsets"][i].as_u64().unwrap() as usize;
            let values = body[at(0)..at(1)]
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()).abs())
                .collect();
            (name.clone(), values)
        })
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0)); // alphabetical is network order here
    Some(tensors.into_iter().map(|t| t.1).collect())
}

#[test]
fn global_ranking_of_resnet20() {
    let Some(layers) = magnitudes() else { return };
    let views: Vec<&[f32]> = layers.iter().map(Vec::as_slice).collect();
    let n: usize = layers.iter().map(Vec::len).sum();
    assert_eq!((layers.len(), n), (20, 268_336));

    let budget = distribution::global(&views, 0.9).unwrap();
    assert_eq!(n - budget.total_kept(), 241_502); // floor(0.9 N)
    for (l, expected) in [
        (0, 0.4861),
        (1, 0.8108),
        (4, 0.7266),
        (12, 0.8940),
        (13, 0.8655),
        (17, 0.9170),
        (18, 0.9927),
        (19, 0.2172),
    ] {
        assert!((budget.sparsity(l) - expected).abs() < 6e-5, "layer {l}: {}", budget.sparsity(l));
    }
    let all = layers.concat();
    let threshold = select::kth_lowest(&all, 241_502).unwrap(); // the smallest kept
    assert!((threshold - 0.149_325_64).abs() < 1e-8, "{threshold}");

    // At 99 % one layer is emptied, at 99.8 % three.
    let empty = |s: f64| distribution::global(&views, s).unwrap().kept().iter().filter(|&&k| k == 0).count();
    assert_eq!((empty(0.98), empty(0.99), empty(0.998), empty(0.999)), (0, 1, 3, 7));
    // LAMP never empties one.
    assert!(distribution::lamp(&views, 0.999).unwrap().kept().iter().all(|&k| k > 0));
}

#[test]
fn minimum_per_layer_of_resnet20() {
    let Some(layers) = magnitudes() else { return };
    let views: Vec<&[f32]> = layers.iter().map(Vec::as_slice).collect();
    // 0.05 % of all weights: 134 in every layer. Counts of another implementation of the same rule.
    let expected = [
        181usize, 198, 172, 234, 217, 241, 192, 323, 387, 358, 178, 296, 137, 366, 452, 366, 241, 279, 134,
        415,
    ];
    let kept = select::global_kept(&views, 0.98, 134).unwrap();
    assert_eq!(kept, expected);
    assert_eq!(select::global_kept(&views, 0.9, 134).unwrap(), select::global_kept(&views, 0.9, 0).unwrap());
    assert!(select::global_kept(&views, 0.995, 134).is_err());
    assert!(select::global_kept(&views, 0.995, 26).is_ok());
    let masks = select::global_at_least(&views, 0.98, 134).unwrap();
    let counts: Vec<usize> = masks.iter().map(|m| m.iter().filter(|&&k| k).count()).collect();
    assert_eq!(counts, expected);
}
