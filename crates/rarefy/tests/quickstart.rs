//! `rarefy quickstart` as a user runs it: the table and the report.

#![allow(clippy::unwrap_used)]

mod common;

use common::json;

#[test]
fn quickstart_measures_every_method_and_pattern_beside_dense_and_writes_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let report = json(&["quickstart", "-o", page.to_str().unwrap()]);

    let rows = report["model"]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 10);
    let find = |method: &str, pattern: &str| {
        rows.iter()
            .find(|r| r["method"] == method && r["pattern"] == pattern)
            .unwrap_or_else(|| panic!("{method} {pattern}"))
    };
    let dense = find("dense", "dense");
    let ppl = |row: &serde_json::Value| row["ppl"].as_f64().unwrap();
    assert!(report["model"]["floor_ppl"].as_f64().unwrap() < ppl(dense));
    for pattern in ["50 %", "4:8", "2:4"] {
        let [magnitude, wanda, sparsegpt] = ["magnitude", "wanda", "sparsegpt"].map(|m| find(m, pattern));
        for row in [magnitude, wanda, sparsegpt] {
            assert!((row["sparsity"].as_f64().unwrap() - 0.5).abs() < 1e-3, "{row}");
            for smaller in ["disk_bytes", "resident_bytes"] {
                assert!(row[smaller].as_u64() < dense[smaller].as_u64(), "{row}");
            }
            assert!(row["ms_per_token"].as_f64().unwrap() > 0.0, "{row}");
            assert!(ppl(row) > ppl(dense), "{row}");
        }
        assert!(ppl(sparsegpt) < ppl(magnitude) && ppl(wanda) < ppl(magnitude), "{pattern}");
    }
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg") && html.contains("</html>") && !html.contains("<script"));
}
