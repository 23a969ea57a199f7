//! Faults: whatever happens to `prune`, nothing half-written appears and the same command goes on.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use common::{assert_same, files, rarefy, skipped, stderr, text};

/// A run of some seconds with a part for each block.
fn prune(out: &Path) -> Command {
    let mut command = rarefy();
    command.args(["prune", "builtin", "-o", text(out), "--method", "sparsegpt", "--sparsity", "0.5"]).args([
        "--samples",
        "24",
        "--length",
        "128",
        "--format",
        "packed",
        "--threads",
        "2",
    ]);
    command
}

fn finished(out: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let output = prune(out).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    files(out)
}

/// Everything in a folder but the output.
fn others(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    all.filter(|p| p.file_name().unwrap() != "out").collect()
}

#[test]
fn killed_at_any_moment_and_resumed_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let started = Instant::now();
    let expected = finished(&out);
    let whole = started.elapsed();
    let mut kills = 0;
    // Moments spread over the whole run, the same ones each time but for the machine's mood.
    for i in 0..8_u32 {
        std::fs::remove_dir_all(&out).unwrap();
        let mut child = prune(&out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * (2 * i + 1) / 16);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if status.code().is_none() {
            kills += 1;
            // Either nothing is there, or everything: the kill may have come just after the last rename.
            if out.exists() {
                assert_same(&expected, &files(&out));
            }
        }
        assert_same(&expected, &finished(&out));
        assert_eq!(others(folder.path()), Vec::<PathBuf>::new(), "leftovers after kill {i}");
    }
    assert!(kills >= 4, "only {kills} of 8 kills met a running command");
}

#[test]
fn two_kills_in_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let started = Instant::now();
    let expected = finished(&out);
    let whole = started.elapsed();
    std::fs::remove_dir_all(&out).unwrap();
    for part in [2_u32, 3] {
        let mut child = prune(&out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * part / 8);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_same(&expected, &finished(&out));
}

/// Waits for the first line about a pruned layer: work is going on.
fn until_first_layer(child: &mut Child) -> (BufReader<ChildStderr>, String) {
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the command ended early:\n{seen}");
        seen += &line;
        if line.contains("q_proj") {
            return (lines, seen);
        }
    }
}

#[test]
fn interrupt_saves_and_prints_the_command_that_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let expected = finished(&out);
    std::fs::remove_dir_all(&out).unwrap();

    let mut child = prune(&out).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut lines, mut seen) = until_first_layer(&mut child);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    lines.read_to_string(&mut seen).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{seen}");
    assert!(!out.exists(), "a half-written output folder");
    let command = seen.lines().find_map(|l| l.strip_prefix("resume with: ")).expect(&seen);
    assert!(command.contains("--method sparsegpt"), "{command}");
    // The printed line itself is run, by a shell.
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    for (key, value) in rarefy().get_envs() {
        shell.env(key, value.unwrap());
    }
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_same(&expected, &files(&out));
}

#[test]
fn second_interrupt_stops_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut child = prune(&out).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let _lines = until_first_layer(&mut child);
    let pid = rustix::process::Pid::from_child(&child);
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    std::thread::sleep(Duration::from_millis(20));
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(!out.exists());
}

/// A file system of its own in memory, of `size` bytes.
struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    /// `None`, loudly, where this user may not mount.
    fn new(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        if status.is_ok_and(|s| s.success()) {
            Some(Self { folder })
        } else {
            skipped("this test mounts a small tmpfs, which needs root");
            None
        }
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.folder.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

#[test]
fn full_disk_then_more_space() {
    let Some(disk) = Mounted::new("size=1500k") else { return };
    let out = disk.folder.path().join("out");
    let output = prune(&out).output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("error: ") && message.contains("space"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(!out.exists());
    disk.remount("size=200m");
    let resumed = finished(&out);
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = finished(&folder.path().join("out"));
    for (name, bytes) in &elsewhere {
        assert!(name == "rarefy.json" || resumed[name] == *bytes, "`{name}` differs");
    }
}

#[test]
fn read_only_target() {
    let Some(disk) = Mounted::new("size=1m") else { return };
    disk.remount("ro");
    let out = disk.folder.path().join("out");
    let output = prune(&out).output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("error: ") && message.to_lowercase().contains("read-only"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(!out.exists());
}

#[test]
fn parent_folder_that_does_not_exist_and_target_that_is_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let output = prune(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "x");
    let output = prune(&file.join("below")).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"));
}

#[test]
fn resuming_with_other_settings_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let started = Instant::now();
    let expected = finished(&out);
    let whole = started.elapsed();
    std::fs::remove_dir_all(&out).unwrap();
    let mut child = prune(&out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(whole / 2);
    child.kill().unwrap();
    child.wait().unwrap();
    let output = prune(&out).args(["--seed", "7"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(!out.exists());
    assert_same(&expected, &finished(&out));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    for arguments in [&["methods"][..], &["methods", "--json"], &["inspect", "builtin"]] {
        let output = rarefy()
            .args(arguments)
            .stdout(writer.try_clone().unwrap())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"));
    }
}
