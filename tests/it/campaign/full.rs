//! Full disks, really full: every amount of free space, from none to more than enough, and every number of free inodes.

use std::path::PathBuf;

use super::class::{Class, assert_kept};
use super::ground::{Kind, can_mount};
use super::stage::{Scenario, Stage, run_to_end};
use crate::support::sample;

/// The step of a sweep over space, in bytes.
const STEP: u64 = 64 * 1024;

/// So much more than it needs is free at the end of a sweep over space; and so many inodes.
const ENOUGH: (u64, u64) = (3 << 20, 120);

/// What is swept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Bytes,
    Inodes,
}

/// Fills the disk until so much is free; the filler.
fn fill(stage: &Stage, what: What, free: u64) -> PathBuf {
    let root = stage.world.root();
    let filler = root.join("filler");
    let stat = || nix::sys::statvfs::statvfs(&root).unwrap();
    match what {
        What::Bytes => {
            let file = std::fs::File::create(&filler).unwrap();
            let size = stat().fragment_size();
            let mut fits = (stat().blocks_available() * size).saturating_sub(free);
            // The file system needs some of it for itself.
            while nix::fcntl::posix_fallocate(&file, 0, i64::try_from(fits).unwrap()).is_err() {
                fits = fits.checked_sub(size).expect("some of it can be had");
            }
            // What the file system itself took for that is given back to the end.
            let missing = free.saturating_sub(stat().blocks_available() * size);
            file.set_len(fits.saturating_sub(missing)).unwrap();
        }
        What::Inodes => {
            std::fs::create_dir(&filler).unwrap();
            for n in 0..stat().files_available().saturating_sub(free) {
                std::fs::File::create(filler.join(n.to_string())).unwrap();
            }
        }
    }
    filler
}

fn empty(filler: &PathBuf) {
    let _ = std::fs::remove_dir_all(filler);
    let _ = std::fs::remove_file(filler);
}

/// Every step of the sweep, or a sample of them; the tightest and the last one always.
fn sweep(stage: &Stage, what: What, wanted: usize) -> Vec<String> {
    let scenario = stage.scenario;
    let all: Vec<u64> = match what {
        What::Bytes => (0..=ENOUGH.0 / STEP).map(|n| n * STEP).collect(),
        What::Inodes => (0..=ENOUGH.1).step_by(3).collect(),
    };
    let mut sampled = sample(&all, wanted);
    sampled.extend([all[0], all[all.len() - 1]]);
    sampled.sort_unstable();
    sampled.dedup();
    let mut class = Class::new(format!("full disk, {what:?} from 0 on: {scenario:?}"), sampled.len(), all.len());
    for free in sampled {
        stage.restore();
        let filler = fill(stage, what, free);
        let ended = run_to_end(stage.command());
        let code = ended.as_ref().ok().and_then(crate::support::Finished::exit_code);
        let words = format!("{scenario:?}, {free} {what:?} free, exit {code:?}");
        eprintln!("{words}");
        // A rollback never needs new space; and what has room enough is done.
        let must_succeed = scenario == Scenario::Rollback || free == all[all.len() - 1];
        let mut found = stage.aftermath_and(Some(ended), &|| empty(&filler));
        if must_succeed && code != Some(stage.code) {
            found.push(super::check::Finding {
                broken: super::check::Broken::Other,
                text: format!("exit {code:?} where it must be {}", stage.code),
            });
        }
        class.add(&words, true, &found);
    }
    class.end()
}

fn campaign(scenario: Scenario, wanted: usize) {
    if !can_mount() {
        return;
    }
    let stage = Stage::on(scenario, Kind::Ext4, Kind::Ext4.size());
    let mut found = sweep(&stage, What::Bytes, wanted);
    found.extend(sweep(&stage, What::Inodes, wanted));
    assert_kept(&found);
}

#[test]
fn an_update_on_any_full_disk_is_refused_or_whole() {
    campaign(Scenario::Update, 2);
}

#[test]
fn a_failing_upgrade_on_any_full_disk_goes_back() {
    campaign(Scenario::FailingUpgrade, 1);
}

#[test]
fn a_rollback_works_on_any_full_disk() {
    campaign(Scenario::Rollback, 1);
}

#[test]
fn a_rollback_with_data_on_any_full_disk_is_done_or_refused() {
    campaign(Scenario::RollbackWithData, 1);
}

#[test]
fn a_recovery_works_on_any_full_disk() {
    campaign(Scenario::Recover, 1);
}
