//! The writer: an interruption at any moment leads to the same bytes, and nothing of the user's is lost.
#![allow(clippy::unwrap_used)]

mod support;

use rarefy_checkpoint::{Checkpoint, CheckpointError as E, CheckpointWriter, OutputFormat};
use serde_json::json;
use std::path::{Path, PathBuf};
use support::job::Job;
use support::{copy_dir, snapshot};

#[test]
fn an_interruption_at_any_stage_ends_in_the_same_bytes() {
    let t = tempfile::tempdir().unwrap();
    for format in [OutputFormat::Dense, OutputFormat::Packed, OutputFormat::SparseBitmask] {
        let dir = |name: &str| t.path().join(format!("{format}-{name}"));
        let reference = Job::new(&dir("reference"), format);
        reference.complete();
        let want = snapshot(&reference.out);
        for stage in 0..9 {
            let job = Job::new(&dir(&stage.to_string()), format);
            let staging = job.staging();
            let mut w = job.writer().unwrap();
            if stage >= 1 {
                job.part(&mut w, 0).unwrap();
            }
            if stage >= 6 {
                job.part(&mut w, 1).unwrap();
            }
            drop(w);
            let journal = staging.join("journal");
            match stage {
                // A part file without its line, as between rename and journal.
                2 => std::fs::write(&journal, "").unwrap(),
                // Half a line.
                3 => {
                    let text = std::fs::read(&journal).unwrap();
                    std::fs::write(&journal, &text[..text.len() / 2]).unwrap();
                }
                // Half-written temporary files.
                4 => {
                    std::fs::write(staging.join("parts/part-0.safetensors.tmp"), b"half").unwrap();
                    std::fs::write(staging.join("run.json.tmp"), b"{").unwrap();
                    std::fs::write(staging.join("journal.tmp"), b"x").unwrap();
                }
                // Crash before run.json: everything begins again.
                5 => std::fs::remove_file(staging.join("run.json")).unwrap(),
                // Crash while the output was assembled.
                7 => {
                    std::fs::create_dir(staging.join("final")).unwrap();
                    std::fs::write(staging.join("final/model.safetensors"), b"half").unwrap();
                    std::fs::write(staging.join("final/junk"), b"").unwrap();
                }
                // Bytes of a part changed on disk.
                8 => {
                    let part =
                        std::fs::read_dir(staging.join("parts")).unwrap().next().unwrap().unwrap().path();
                    let mut bytes = std::fs::read(&part).unwrap();
                    *bytes.last_mut().unwrap() ^= 1;
                    std::fs::write(&part, bytes).unwrap();
                }
                _ => {}
            }
            assert!(!job.out.exists(), "stage {stage}: nothing may be visible yet");
            let resumed = job.writer().unwrap();
            let done: Vec<bool> = (0..2).map(|b| resumed.is_done(&format!("block {b}"))).collect();
            let expected: usize = match stage {
                0 | 2 | 3 | 5 => 0,
                1 | 4 => 1,
                8 => 1,
                _ => 2,
            };
            assert_eq!(done.iter().filter(|d| **d).count(), expected, "stage {stage}");
            if stage == 1 {
                assert_eq!(resumed.read_note("block 0"), Some(json!({ "block": 0 })));
            }
            drop(resumed);
            job.complete();
            assert_eq!(snapshot(&job.out), want, "stage {stage}");
            assert!(!staging.exists());
        }
    }
}

#[test]
fn garbage_lines_in_the_journal_are_dropped() {
    let t = tempfile::tempdir().unwrap();
    let reference = Job::new(&t.path().join("reference"), OutputFormat::Packed);
    reference.complete();
    let garbage: [&[u8]; 7] = [
        b"\n\n",
        b"0123456789abcdef {}\n",
        b"\xff\xfe\x00\n",
        b"not a line",
        b"2d06800538d394c2 \n",
        b"short\n",
        b"{\"part\":\"block 0\"}\n",
    ];
    for (i, garbage) in garbage.iter().enumerate() {
        for place in 0..3 {
            let job = Job::new(&t.path().join(format!("{i}-{place}")), OutputFormat::Packed);
            let mut w = job.writer().unwrap();
            job.part(&mut w, 0).unwrap();
            drop(w);
            let path = job.staging().join("journal");
            let good = std::fs::read(&path).unwrap();
            let bytes = match place {
                0 => [garbage, good.as_slice()].concat(),
                1 => [good.as_slice(), garbage].concat(),
                _ => [good.as_slice(), good.as_slice(), garbage].concat(),
            };
            std::fs::write(&path, &bytes).unwrap();
            // Only garbage without a line end swallows the line behind it.
            assert_eq!(
                job.writer().unwrap().is_done("block 0"),
                !bytes.starts_with(b"not a line"),
                "{i} {place}"
            );
            job.complete();
            assert_eq!(snapshot(&job.out), snapshot(&reference.out), "{i} {place}");
        }
    }
}

#[test]
fn a_crash_between_the_last_rename_and_the_clean_up() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::new(t.path(), OutputFormat::Dense);
    let mut w = job.writer().unwrap();
    job.part(&mut w, 0).unwrap();
    job.part(&mut w, 1).unwrap();
    let saved = t.path().join("saved");
    copy_dir(w.staging(), &saved);
    w.finish(&json!({})).unwrap();
    let finished = snapshot(&job.out);
    std::fs::rename(&saved, job.staging()).unwrap();
    assert!(matches!(job.writer(), Err(E::AlreadyComplete { .. })));
    assert!(!job.staging().exists());
    assert_eq!(snapshot(&job.out), finished);
    assert!(matches!(job.writer(), Err(E::AlreadyComplete { .. })));
}

#[test]
fn output_equal_to_input() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::new(t.path(), OutputFormat::Dense);
    let source = job.source.dir().to_path_buf();
    let link = t.path().join("link");
    std::os::unix::fs::symlink(&source, &link).unwrap();
    let dotted = t.path().join("none/..").join(source.file_name().unwrap());
    let before = snapshot(&source);
    for out in [source.clone(), link, source.join("."), source.join("inside"), source.join("deep/er")] {
        for overwrite in [false, true] {
            let e =
                CheckpointWriter::create(&out, &job.source, OutputFormat::Dense, "k", overwrite).unwrap_err();
            assert!(matches!(e, E::OutputIsInput { .. }), "{}: {e}", out.display());
        }
    }
    let e = CheckpointWriter::create(&dotted, &job.source, OutputFormat::Dense, "k", true).unwrap_err();
    assert!(matches!(e, E::OutputIsInput { .. }), "{e}");
    assert_eq!(snapshot(&source), before);
}

#[test]
fn an_existing_output_is_kept_unless_overwriting_is_allowed() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::new(t.path(), OutputFormat::Dense);
    std::fs::create_dir(&job.out).unwrap();
    job.complete(); // An empty folder is no obstacle.
    let create = |key: &str, overwrite| {
        CheckpointWriter::create(&job.out, &job.source, OutputFormat::Packed, key, overwrite)
    };
    assert!(matches!(create("other", false), Err(E::OutputExists { .. })));
    let old = snapshot(&job.out);
    let mut w = create("other", true).unwrap();
    job.part(&mut w, 0).unwrap();
    assert_eq!(snapshot(&job.out), old, "the old output stays until the end");
    drop(w);
    let w = create("other", true).unwrap();
    assert!(w.is_done("block 0"));
    w.finish(&json!({})).unwrap();
    assert_ne!(snapshot(&job.out), old);
    Checkpoint::open(&job.out).unwrap().check_layout().unwrap();
    assert_eq!(std::fs::read_dir(t.path()).unwrap().count(), 2, "source and output, nothing else");
    // A folder that is not a model is never replaced; nor is a file.
    let precious = t.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("thesis.txt"), "x").unwrap();
    for out in [precious.clone(), precious.join("thesis.txt")] {
        assert!(matches!(
            CheckpointWriter::create(&out, &job.source, OutputFormat::Dense, "k", true),
            Err(E::OutputNotAModel { .. })
        ));
        assert!(matches!(
            CheckpointWriter::create(&out, &job.source, OutputFormat::Dense, "k", false),
            Err(E::OutputExists { .. })
        ));
    }
    assert!(matches!(
        CheckpointWriter::create(Path::new("/"), &job.source, OutputFormat::Dense, "k", false),
        Err(E::OutputExists { .. })
    ));
}

#[test]
fn an_output_that_appears_meanwhile_is_not_touched() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::new(t.path(), OutputFormat::Dense);
    let w = job.writer().unwrap();
    std::fs::create_dir(&job.out).unwrap();
    std::fs::write(job.out.join("mine"), "x").unwrap();
    assert!(matches!(w.finish(&json!({})), Err(E::OutputExists { .. })));
    assert_eq!(snapshot(&job.out).len(), 1);
    assert!(job.staging().exists());
}

#[test]
fn unfinished_work_of_another_run_is_refused() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::new(t.path(), OutputFormat::Dense);
    drop(job.writer().unwrap());
    let e = CheckpointWriter::create(&job.out, &job.source, OutputFormat::Dense, "other", false).unwrap_err();
    assert!(
        matches!(&e, E::OtherRun { found, .. } if found.contains("key"))
            && e.to_string().contains("rarefy-partial"),
        "{e}"
    );
    assert!(matches!(
        CheckpointWriter::create(&job.out, &job.source, OutputFormat::Packed, "key", false),
        Err(E::OtherRun { .. })
    ));
    std::fs::write(job.staging().join("run.json"), b"\0").unwrap();
    assert!(matches!(job.writer(), Err(E::OtherRun { .. })));
}

#[test]
fn two_runs_do_not_share_a_staging_folder() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::new(t.path(), OutputFormat::Dense);
    let first = job.writer().unwrap();
    assert!(matches!(job.writer(), Err(E::Locked { .. })));
    drop(first);
    job.writer().unwrap();
}

#[test]
fn full_disk() {
    let t = tempfile::tempdir().unwrap();
    let job = Job::new(t.path(), OutputFormat::Dense);
    let mut w = job.writer().unwrap();
    job.part(&mut w, 0).unwrap();
    // The temporary file of the next part is a device that is always full.
    let file = std::fs::read_dir(job.staging().join("parts"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .file_name()
        .into_string()
        .unwrap();
    let before: Vec<PathBuf> = snapshot(&job.staging()).into_keys().collect();
    let probe = Job::new(&t.path().join("probe"), OutputFormat::Dense);
    let mut p = probe.writer().unwrap();
    probe.part(&mut p, 1).unwrap();
    let second = std::fs::read_dir(probe.staging().join("parts"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .file_name()
        .into_string()
        .unwrap();
    assert_ne!(file, second);
    let temporary = job.staging().join("parts").join(format!("{second}.tmp"));
    std::os::unix::fs::symlink("/dev/full", &temporary).unwrap();
    let e = job.part(&mut w, 1).unwrap_err();
    assert!(matches!(e, E::DiskFull { .. }) && e.to_string().contains("resumes"), "{e}");
    assert!(w.is_done("block 0") && !w.is_done("block 1") && !job.out.exists());
    std::fs::remove_file(&temporary).unwrap();
    assert_eq!(snapshot(&job.staging()).into_keys().collect::<Vec<_>>(), before);
    // After space was made, the same writer goes on.
    job.part(&mut w, 1).unwrap();
    w.finish(&json!({})).unwrap();
}

#[test]
fn read_only_target() {
    use std::os::unix::fs::PermissionsExt;
    let t = tempfile::tempdir().unwrap();
    let job = Job::new(t.path(), OutputFormat::Dense);
    let locked = t.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o555)).unwrap();
    // The superuser may write anywhere except to the kernel's own file systems.
    let target = if std::fs::write(locked.join("probe"), "").is_ok() {
        PathBuf::from("/sys/kernel/out")
    } else {
        locked.join("out")
    };
    let e = CheckpointWriter::create(&target, &job.source, OutputFormat::Dense, "k", false).unwrap_err();
    assert!(matches!(e, E::ReadOnly { .. }) && e.to_string().contains("writable"), "{e}");
}
