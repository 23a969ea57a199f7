//! The report, looked at by a real browser: right size, not blank, no script errors, no sideways scrolling.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::Command;

use rarefy::report::{KernelRow, KernelSection, Machine, ModelRow, ModelSection, QuickstartReport, render};

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|candidate| candidate.is_file())
}

fn sample() -> QuickstartReport {
    let row = |method: &str, pattern: &str, sparsity: f64, ppl: f64, scale: f64| ModelRow {
        method: method.into(),
        pattern: pattern.into(),
        sparsity,
        ppl,
        disk_bytes: (8.0e6 * scale) as u64,
        resident_bytes: (8.1e6 * scale) as u64,
        ms_per_token: 1.2 * scale,
        prune_seconds: 3.25,
    };
    let mut rows = vec![row("dense", "dense", 0.0, 4.51, 1.0)];
    for (pattern, worse) in [("50 %", 1.0), ("4:8", 1.2), ("2:4", 1.5)] {
        rows.push(row("magnitude", pattern, 0.5, 9.7 * worse, 0.66));
        rows.push(row("wanda", pattern, 0.5, 5.6 * worse, 0.65));
        rows.push(row("sparsegpt", pattern, 0.5, 5.1 * worse, 0.64));
    }
    let kernel = |kernel: &str, dtype: &str, sparsity: f64, ms: f64| KernelRow {
        kernel: kernel.into(),
        dtype: dtype.into(),
        sparsity,
        ms,
        bytes: (180e6 * (1.0 - sparsity)) as u64,
        speedup: 5.2 / ms,
        gb_per_s: 31.0,
    };
    QuickstartReport {
        version: "0.0.0".into(),
        seed: 0,
        seconds: 100.0,
        machine: Machine { cpu: "a processor <b>with markup</b>".into(), threads: 2, read_gb_per_s: 30.0 },
        model: ModelSection {
            name: "a model & <script>throw 1</script>".into(),
            parameters: 4_950_000,
            convention: "Perplexity over windows of 256 tokens.".into(),
            floor_ppl: Some(4.2),
            calibration: "128 sequences of 128 tokens.".into(),
            rows,
        },
        kernels: KernelSection {
            rows: 4096,
            cols: 11008,
            kernels: vec![
                kernel("dense", "f32", 0.0, 5.2),
                kernel("panel", "f32", 0.5, 3.6),
                kernel("panel", "f32", 0.7, 2.2),
                kernel("dense", "bf16", 0.0, 3.1),
                kernel("panel", "bf16", 0.7, 2.0),
            ],
        },
        notes: vec!["The small model gains nothing, because it fits in the cache.".into(); 3],
    }
}

/// Runs the browser on one page; returns standard output and standard error.
fn browse(browser: &Path, page: &Path, profile: &Path, width: u32, extra: &[String]) -> (String, String) {
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={width},{HEIGHT}"))
        .args(extra)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{browser:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

const HEIGHT: u32 = 3000;

/// Put at the end of a copy of the page: tells the page around it what it measures.
const PROBE: &str = "<script>
addEventListener('load', () => {
  const d = document.documentElement, put = (k, v) => parent.postMessage([k, v], '*');
  put('inner', innerWidth); put('scroll', d.scrollWidth); put('client', d.clientWidth);
  const charts = [...document.querySelectorAll('svg.chart')].map(s => s.getBoundingClientRect());
  put('charts', charts.length);
  put('narrowest', Math.min(...charts.map(r => r.width)));
  put('lowest', Math.min(...charts.map(r => r.height)));
  const letters = [...document.querySelectorAll('svg.chart text')].map(t => t.getBoundingClientRect());
  put('letters', Math.min(...letters.map(r => r.height)));
  const outside = [...document.querySelectorAll('svg.chart')].flatMap(s => {
    const box = s.getBoundingClientRect();
    return [...s.querySelectorAll('text')].filter(t => {
      const r = t.getBoundingClientRect();
      return r.left < box.left - 1 || r.right > box.right + 1 || r.bottom > box.bottom + 1;
    }).map(t => t.textContent);
  });
  put('outside', outside.join('|'));
});
</script>";

/// In the page around it: keeps what it is told in attributes of its root element.
const LISTENER: &str = "<script>
addEventListener('message', e => document.documentElement.setAttribute('data-' + e.data[0], e.data[1]));
</script>";

fn attribute(dom: &str, name: &str) -> String {
    let key = format!("data-{name}=\"");
    let start = dom.find(&key).unwrap_or_else(|| panic!("no {key} in {}", &dom[..dom.len().min(400)]));
    let rest = &dom[start + key.len()..];
    rest[..rest.find('"').unwrap()].to_owned()
}

fn number(dom: &str, name: &str) -> f64 {
    attribute(dom, name).parse().unwrap()
}

/// Width, height and bytes of a PNG.
fn png(path: &Path) -> (u32, u32, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let field = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (field(16), field(20), bytes)
}

fn console_errors(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|l| l.contains("CONSOLE") || l.contains("Uncaught") || l.contains("Refused to"))
        .collect()
}

#[test]
fn a_browser_shows_the_report_at_two_widths() {
    let Some(browser) = chromium() else {
        println!("SKIPPED: chromium not found: apt-get install chromium");
        eprintln!("SKIPPED: chromium not found: apt-get install chromium");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    // With RAREFY_REPORT the page of a real run is looked at instead of the sample.
    let html = match std::env::var_os("RAREFY_REPORT") {
        Some(path) => std::fs::read_to_string(path).unwrap(),
        None => render(&sample()).unwrap(),
    };
    assert!(!html.contains("<script"), "the page needs no script");
    for network in ["http://", "https://", "url(", "@import"] {
        let rest = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!rest.contains(network), "the page refers to {network}");
    }
    let page = folder.path().join("report.html");
    std::fs::write(&page, &html).unwrap();
    let probed = folder.path().join("probed.html");
    std::fs::write(&probed, html.replace("</body>", &format!("{PROBE}</body>"))).unwrap();
    // A blank page of the same size, to tell a picture from an empty one.
    let blank = folder.path().join("blank.html");
    std::fs::write(&blank, "<!DOCTYPE html><html><body></body></html>").unwrap();

    for width in [1280_u32, 400] {
        let profile = folder.path().join(format!("profile-{width}"));
        // A window of a browser may not get as narrow as a telephone: a frame does.
        let framed = |source: &str| {
            let path = folder.path().join(format!("frame-{width}-{source}"));
            let style = format!("border:0;display:block;width:{width}px;height:{HEIGHT}px");
            let frame = format!("<iframe src=\"{source}\" style=\"{style}\"></iframe>");
            let html =
                format!("<!DOCTYPE html><html><body style=\"margin:0\">{LISTENER}{frame}</body></html>");
            std::fs::write(&path, html).unwrap();
            path
        };
        let shoot = |page: &Path, name: &str| {
            let picture = folder.path().join(name);
            let extra = [format!("--screenshot={}", picture.display())];
            let (_, log) = browse(&browser, page, &profile, width, &extra);
            assert_eq!(console_errors(&log), Vec::<&str>::new());
            picture
        };
        let picture = shoot(&framed("report.html"), &format!("report-{width}.png"));
        let empty = shoot(&blank, &format!("blank-{width}.png"));
        let (w, h, bytes) = png(&picture);
        assert_eq!((w, h), (width, HEIGHT));
        let (_, _, nothing) = png(&empty);
        assert!(
            bytes.len() > 4 * nothing.len() && bytes.len() > 40_000,
            "the picture is as good as blank: {} bytes, an empty page {}",
            bytes.len(),
            nothing.len()
        );
        if let Some(keep) = std::env::var_os("RAREFY_SCREENSHOTS") {
            std::fs::create_dir_all(&keep).unwrap();
            std::fs::copy(&picture, Path::new(&keep).join(format!("report-{width}.png"))).unwrap();
        }

        let extra = ["--dump-dom".to_owned(), "--virtual-time-budget=3000".to_owned()];
        let (dom, log) = browse(&browser, &framed("probed.html"), &profile, width, &extra);
        assert_eq!(console_errors(&log), Vec::<&str>::new());
        let inner = number(&dom, "inner");
        assert!((inner - f64::from(width)).abs() < 0.5, "window of {inner} px instead of {width}");
        assert!(
            number(&dom, "scroll") <= number(&dom, "client"),
            "at {width} px the page is {} px wide",
            number(&dom, "scroll")
        );
        assert!(number(&dom, "charts") >= 5.0);
        assert!(number(&dom, "narrowest") >= 300.0, "plots of {} px", number(&dom, "narrowest"));
        assert!(number(&dom, "lowest") >= 60.0);
        assert!(number(&dom, "letters") >= 10.0, "letters of {} px", number(&dom, "letters"));
        assert_eq!(attribute(&dom, "outside"), "", "text outside its plot at {width} px");
    }
}
