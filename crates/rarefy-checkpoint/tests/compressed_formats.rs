//! compressed-tensors formats: files of the Python package, and corrupt ones.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use rarefy_checkpoint::{Checkpoint, CheckpointError as E, DType, Storage, TensorStore};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::{T, f32s, i32s, i64s, tensors};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/compressed_tensors")
}

/// Every `case_*` folder decodes to the values that the package itself decodes, bit for bit.
#[test]
fn files_of_the_python_package() {
    let dir = golden();
    if !dir.exists() {
        eprintln!("SKIPPED: {} does not exist", dir.display());
        return;
    }
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.sort();
    assert!(cases.len() >= 20, "only {} cases in {}", cases.len(), dir.display());
    let mut seen = std::collections::BTreeSet::new();
    for case in cases {
        let label = case.file_name().unwrap().to_string_lossy().into_owned();
        let model = Checkpoint::open(&case).unwrap_or_else(|e| panic!("{label}: {e}"));
        model.check_layout().unwrap_or_else(|e| panic!("{label}: {e}"));
        assert_eq!(model.extra_tensors(), Vec::<String>::new(), "{label}");
        let expected = TensorStore::open_file(&case.join("expected.safetensors")).unwrap();
        assert_eq!(model.tensors().len(), expected.tensors().len(), "{label}");
        for (name, want) in expected.tensors() {
            let got = &model.tensors()[name];
            assert_eq!(got.shape, want.shape, "{label} {name}");
            seen.insert(got.storage.to_string());
            if got.dtype == want.dtype {
                assert_eq!(
                    model.read_dense(name).unwrap(),
                    expected.read_dense(name).unwrap(),
                    "{label} {name}"
                );
            } else {
                // Sparse and quantised: the package multiplies in F16 whatever the type of the scales.
                assert!(
                    label.contains("float_w8") && want.dtype == DType::F16,
                    "{label} {name}: {} for {}",
                    got.dtype,
                    want.dtype
                );
                let w = expected.read_f32(name).unwrap();
                let ours = model.read_f32(name).unwrap();
                for (i, (a, b)) in ours.iter().zip(&w).enumerate() {
                    // Half a step of BF16 (ours) and half a step of F16 (the package's).
                    assert!(
                        (a - b).abs() <= (2f32.powi(-8) + 2f32.powi(-11)) * b.abs(),
                        "{label} {name}[{i}]: {a} for {b}"
                    );
                }
            }
        }
    }
    for format in [
        "dense",
        "sparse-bitmask",
        "sparse-24-bitmask",
        "pack-quantized 4 bit",
        "int-quantized",
        "float-quantized",
    ] {
        assert!(seen.contains(format), "no case for {format}");
    }
}

fn sparsity(format: &str) -> Value {
    json!({"quantization_config": {"quant_method": "compressed-tensors", "sparsity_config": {"format": format, "targets": ["Linear"]}}})
}

fn packed(bits: u32, group: Option<u32>, version: &str) -> Value {
    json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized", "version": version, "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", "group_size": group}}}}})
}

fn open(config: &Value, list: &[T<'_>]) -> Result<TensorStore, E> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), tensors(list)).unwrap();
    // The file stays open, so the folder may go.
    TensorStore::open(dir.path(), config)
}

/// The worked example of the format description.
fn worked() -> Vec<T<'static>> {
    vec![
        ("m.shape", "I64", vec![2], i64s(&[3, 10])),
        ("m.row_offsets", "I64", vec![3], i64s(&[0, 3, 3])),
        ("m.compressed", "F32", vec![7], f32s(&[1., 2., 3., 4., 5., 6., 7.])),
        ("m.bitmask", "U8", vec![3, 2], vec![18, 1, 0, 0, 137, 2]),
    ]
}

#[test]
fn the_worked_example_decodes() {
    let store = open(&sparsity("sparse-bitmask"), &worked()).unwrap();
    let l = store.tensor("m.weight").unwrap();
    assert_eq!((l.storage, l.shape.as_slice(), l.dtype), (Storage::SparseBitmask, &[3, 10][..], DType::F32));
    assert_eq!(l.stored_bytes, 16 + 24 + 28 + 6);
    let w = store.read_f32("m.weight").unwrap();
    let nonzero: Vec<(usize, f32)> = w.into_iter().enumerate().filter(|p| p.1 != 0.0).collect();
    assert_eq!(nonzero, [(1, 1.), (4, 2.), (8, 3.), (20, 4.), (23, 5.), (27, 6.), (29, 7.)]);
    // Names of releases up to 0.8.1.
    let old: Vec<T<'_>> = [
        ("m.weight.shape", 0),
        ("m.weight.row_offsets", 1),
        ("m.weight.compressed", 2),
        ("m.weight.bitmask", 3),
    ]
    .map(|(n, i)| {
        let t = worked()[i].clone();
        (n, t.1, t.2, t.3)
    })
    .into();
    assert_eq!(open(&sparsity("sparse-bitmask"), &old).unwrap().read_f32("m.weight").unwrap().len(), 30);
}

type Edit = fn(&mut Vec<T<'static>>);

#[test]
fn corrupt_bitmask_parts() {
    let edits: [(&str, Edit); 12] = [
        ("popcount differs from nnz", |t| t[3].3[0] = 16),
        ("pad bits set", |t| {
            t[3].3[1] = 4;
        }),
        ("row width", |t| {
            t[3].2 = vec![6, 1];
        }),
        ("bitmask of another dtype", |t| t[3].1 = "I8"),
        ("shape product", |t| t[0].3 = i64s(&[10, 3])),
        ("negative extent", |t| t[0].3 = i64s(&[-3, 10])),
        ("huge extent", |t| t[0].3 = i64s(&[i64::MAX, 10])),
        ("zero extent", |t| t[0].3 = i64s(&[3, 0])),
        ("three extents", |t| {
            t[0].2 = vec![3];
            t[0].3 = i64s(&[3, 10, 1]);
        }),
        ("shape of another dtype", |t| {
            t[0].1 = "F64";
        }),
        ("row offsets of another length", |t| {
            t[1].2 = vec![2];
            t[1].3.truncate(16);
        }),
        ("bitmask missing", |t| {
            t.pop();
        }),
    ];
    for (what, edit) in edits {
        let mut list = worked();
        edit(&mut list);
        let e =
            open(&sparsity("sparse-bitmask"), &list).and_then(|s| s.read_f32("m.weight")).expect_err(what);
        assert!(
            matches!(e, E::Corrupt { .. } | E::ShapeMismatch { .. } | E::WrongDType { .. }),
            "{what}: {e}"
        );
        assert!(e.to_string().contains("model.safetensors") && e.to_string().contains("m."), "{what}: {e}");
    }
    let mut twice = worked();
    twice.push(("m.weight", "F32", vec![1], f32s(&[1.0])));
    assert!(
        open(&sparsity("sparse-bitmask"), &twice)
            .unwrap_err()
            .to_string()
            .contains("both plainly and compressed")
    );
    let mut twice = worked();
    twice.push(("m.weight.bitmask", "U8", vec![1], vec![1]));
    assert!(open(&sparsity("sparse-bitmask"), &twice).unwrap_err().to_string().contains("both"));
}

#[test]
fn two_of_four_needs_two_of_four() {
    let list = |mask: u8, shape: Vec<usize>| -> Vec<T<'static>> {
        vec![
            ("m.shape", "I64", shape, i64s(&[1, 4])),
            ("m.compressed", "F32", vec![1, 2], f32s(&[5., 6.])),
            ("m.bitmask", "U8", vec![1, 1], vec![mask]),
        ]
    };
    for shape in [vec![2, 1], vec![2], vec![1, 2]] {
        let store = open(&sparsity("sparse-24-bitmask"), &list(0b1001, shape)).unwrap();
        assert_eq!(store.tensor("m.weight").unwrap().storage, Storage::Sparse24Bitmask);
        assert_eq!(store.read_f32("m.weight").unwrap(), [5., 0., 0., 6.]);
    }
    for mask in [0b0001, 0b0111, 0b1111_1111] {
        assert!(matches!(
            open(&sparsity("sparse-24-bitmask"), &list(mask, vec![2])).unwrap().read_f32("m.weight"),
            Err(E::Corrupt { .. })
        ));
    }
    // Three values in the first group and one in the second: the count is right, the pattern is not.
    let list: Vec<T<'_>> = vec![
        ("m.shape", "I64", vec![2], i64s(&[1, 8])),
        ("m.compressed", "F32", vec![1, 4], f32s(&[1.; 4])),
        ("m.bitmask", "U8", vec![1, 1], vec![0b0001_0111]),
    ];
    let e = open(&sparsity("sparse-24-bitmask"), &list).unwrap().read_f32("m.weight").unwrap_err();
    assert!(e.to_string().contains("2:4"), "{e}");
}

fn four_bits() -> Vec<T<'static>> {
    // Codes −8 −7 −1 0 1 2 6 7 | 3 0 …: the worked example, scale 0.5.
    vec![
        ("m.weight_packed", "I32", vec![1, 2], i32s(&[-22_444_272, 0x8888_888b_u32 as i32])),
        ("m.weight_scale", "F32", vec![1, 1], f32s(&[0.5])),
        ("m.weight_shape", "I64", vec![2], i64s(&[1, 16])),
    ]
}

#[test]
fn four_bit_codes_by_hand() {
    let store = open(&packed(4, None, "0.14.0"), &four_bits()).unwrap();
    assert_eq!(store.tensor("m.weight").unwrap().storage, Storage::PackQuantized { bits: 4 });
    let mut want = vec![-4., -3.5, -0.5, 0., 0.5, 1., 3., 3.5, 1.5];
    want.resize(16, 0.0);
    assert_eq!(store.read_f32("m.weight").unwrap(), want);
    // I32 shape, as older documents say.
    let mut list = four_bits();
    list[2] = ("m.weight_shape", "I32", vec![2], i32s(&[1, 16]));
    assert_eq!(open(&packed(4, None, "0.14.0"), &list).unwrap().read_f32("m.weight").unwrap(), want);
}

#[test]
fn three_bit_layouts_are_told_apart() {
    let codes = [-4., -3., -2., -1., 0., 1., 2., 3., -4., 3., 1., 2.];
    for (version, words) in [("0.18.0", [0x78FA_C688, 0x0D]), ("0.14.0", [0x38FA_C688, 0x35])] {
        let list: Vec<T<'_>> = vec![
            ("m.weight_packed", "I32", vec![1, 2], i32s(&words)),
            ("m.weight_scale", "F32", vec![1], f32s(&[1.0])),
            ("m.weight_shape", "I64", vec![2], i64s(&[1, 12])),
        ];
        assert_eq!(
            open(&packed(3, None, version), &list).unwrap().read_f32("m.weight").unwrap(),
            codes,
            "{version}"
        );
    }
}

#[test]
fn corrupt_packed_parts() {
    let edits: [(&str, Edit); 10] = [
        ("words too few", |t| {
            t[0].2 = vec![1, 1];
            t[0].3.truncate(4);
        }),
        ("words of another row count", |t| t[0].2 = vec![2, 1]),
        ("words of another dtype", |t| t[0].1 = "U32"),
        ("words flat", |t| t[0].2 = vec![2]),
        ("shape missing", |t| {
            t.pop();
        }),
        ("scale missing", |t| {
            t.remove(1);
        }),
        ("scale does not fit", |t| {
            t[1].2 = vec![1, 3];
            t[1].3 = f32s(&[1.; 3]);
        }),
        ("scale not finite", |t| t[1].3 = f32s(&[f32::INFINITY])),
        ("scale an integer", |t| t[1].1 = "I32"),
        ("zero points do not fit", |t| t.push(("m.weight_zero_point", "I32", vec![1, 7], i32s(&[0; 7])))),
    ];
    for (what, edit) in edits {
        let mut list = four_bits();
        edit(&mut list);
        let e = open(&packed(4, None, "0.14.0"), &list).and_then(|s| s.read_f32("m.weight")).expect_err(what);
        assert!(
            matches!(e, E::Corrupt { .. } | E::ShapeMismatch { .. } | E::WrongDType { .. }),
            "{what}: {e}"
        );
    }
    let none = json!({"quantization_config": {"format": "pack-quantized"}});
    assert!(open(&none, &four_bits()).unwrap_err().to_string().contains("config_groups"));
    assert!(open(&packed(9, None, "0.14.0"), &four_bits()).unwrap_err().to_string().contains("9 bits"));
    let mut g = four_bits();
    g.push(("m.weight_g_idx", "I32", vec![16], i32s(&[5; 16])));
    assert!(matches!(
        open(&packed(4, None, "0.14.0"), &g).unwrap().read_f32("m.weight"),
        Err(E::Corrupt { .. })
    ));
}

#[test]
fn marlin_and_fp4_are_refused_by_name() {
    let config = packed(4, None, "0.14.0");
    let mut marlin = four_bits();
    marlin.push(("m.scale_packed", "F16", vec![1], vec![0, 0]));
    assert!(
        matches!(open(&config, &marlin), Err(E::UnsupportedFormat { format, .. }) if format == "marlin-24")
    );
    let mut fp4 = four_bits();
    fp4.push(("m.weight_global_scale", "F32", vec![1], f32s(&[1.0])));
    assert!(
        matches!(open(&config, &fp4), Err(E::UnsupportedFormat { format, .. }) if format.starts_with("nvfp4"))
    );
}

#[test]
fn int8_with_zero_points_and_blocks() {
    let config = json!({"quantization_config": {"format": "int-quantized", "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "block", "block_structure": [2, 2]}}}}});
    let list: Vec<T<'_>> = vec![
        ("m.weight", "I8", vec![2, 4], vec![1, 2, 3, 0xff, 5, 6, 7, 0x80]),
        ("m.weight_scale", "F32", vec![1, 2], f32s(&[1.0, 0.5])),
        ("m.weight_zero_point", "I8", vec![1, 2], vec![1, 0]),
    ];
    let store = open(&config, &list).unwrap();
    assert_eq!(store.tensor("m.weight").unwrap().storage, Storage::IntQuantized);
    assert_eq!(store.read_f32("m.weight").unwrap(), [0., 1., 1.5, -0.5, 4., 5., 3.5, -64.]);
}
