//! The benches run: each row is there, and each number was measured. No time is asserted here.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The bench program that cargo built with these tests.
fn tree_program() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let is_program = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("tree-") && !name.contains('.')
    };
    let programs = std::fs::read_dir(deps).unwrap().map(|entry| entry.unwrap().path()).filter(|path| is_program(path));
    programs.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).expect("cargo builds benches/tree.rs")
}

#[test]
fn a_quick_run_measures_every_job_and_prints_every_row() {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let json = place.path().join("told.json");
    let ran = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/run"))
        .args(["--quick", "--size", "tiny", "--rounds", "1", "--program", env!("CARGO_BIN_EXE_mc_project")])
        .arg("--tree")
        .arg(tree_program())
        .arg("--dir")
        .arg(place.path())
        .arg("--json")
        .arg(&json)
        .env_remove("MC_ROOT")
        .output()
        .unwrap();
    let (text, trouble) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{text}\n{trouble}");
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let groups = told["groups"].as_array().unwrap();
    let jobs: Vec<&str> = groups.iter().map(|group| group["job"].as_str().unwrap()).collect();
    for job in [
        "push",
        "push nothing",
        "crash",
        "identical",
        "changed",
        "times",
        "first",
        "disk",
        "drift",
        "verify",
        "checkout",
        "pack",
        "unpack",
        "rollback",
        "rollback far",
        "snapshot, nothing changed",
        "snapshot, 1 % changed",
        "restore",
        "status",
        "history",
        "live",
    ] {
        assert!(jobs.contains(&job), "{job} is missing in {jobs:?}");
    }
    for group in groups.iter().filter(|group| group["rows"].is_array()) {
        let rows = group["rows"].as_array().unwrap();
        assert!(rows.len() > 1, "nobody to compare with: {group}");
        for row in rows {
            let who = row["who"].as_str().unwrap();
            assert!(text.contains(&format!("| {who} |")), "{who} is not in the table\n{text}");
            // What changes under load is counted and not timed.
            let measured = if group["job"] == "live" { &row["requests"] } else { &row["wall"][0] };
            assert!(measured.as_f64().unwrap() > 0.0, "{row}");
        }
    }
}
