//! Power loss: everything that was flushed is there, of everything else any part, in any order.
//!
//! A run is filmed on a disk that logs its writes; the cuts are made afterwards: the writes up to the last flush before the cut
//! are on the disk, of those behind it none, all, or some blocks. Then the kernel replays its own journal, and recovery runs.
//! The negative control is the same with all our syncs left out (`MC_NOSYNC`): the check proves nothing if it finds nothing there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::check::{Broken, Finding};
use super::class::{Class, assert_kept};
use super::disk::{Disk, Entry};
use super::ground::{Kind, can_mount, run};
use super::stage::{Scenario, Stage, run_to_end};
use crate::support::{Finished, sample};

/// What a device may keep of a write apart from the rest.
const BLOCK: usize = 4096;

/// A filmed run.
struct Film {
    log: Vec<Entry>,
    /// How much had been written when the command had told its end.
    told: usize,
    ended: Finished,
}

/// Which of the writes behind the last flush are on the disk.
#[derive(Debug, Clone, Copy)]
enum Kept {
    None,
    All,
    Some(u64),
}

/// A power cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// So many entries of the log came to the disk's cache.
    at: usize,
    kept: Kept,
}

/// Somebody else on this machine, who syncs the file system all the time: then more of ours is on the disk than we asked for,
/// in an order that is not ours.
fn while_busy<T>(is_busy: bool, root: &Path, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(!is_busy);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                run(std::process::Command::new("sync").arg("-f").arg(root));
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        let came = work();
        done.store(true, Ordering::Relaxed);
        came
    })
}

impl Film {
    fn of(stage: &Stage, kind: Kind, is_busy: bool, is_control: bool) -> Self {
        let ground = stage.ground();
        ground.unmount();
        let (image, shown) = (ground.beside("filmed"), ground.beside("shown"));
        ground.copy_saved(&image);
        std::fs::create_dir_all(&shown).unwrap();
        let disk = Disk::show(&image, &shown);
        ground.mount_file(&disk.file());
        let mut command = stage.command();
        if is_control {
            command.env("MC_NOSYNC", "1");
            if kind == Kind::Ext4 {
                ground.stop_the_clock();
            }
        }
        let (ended, told) = while_busy(is_busy, &stage.world.root(), || {
            let ended = run_to_end(command).unwrap();
            (ended, disk.logged())
        });
        ground.unmount();
        let log = disk.end();
        // Something to unmount for the next one who restores.
        ground.start_from(&image);
        Self { log, told, ended }
    }

    /// Every cut: at each flush none, all and two selections of what it waited for, and one selection in the middle.
    fn cuts(&self) -> Vec<Cut> {
        let mut cuts = Vec::new();
        let mut before = 0;
        let ends = self.log.iter().enumerate().filter(|(_, entry)| matches!(entry, Entry::Flush)).map(|(at, _)| at);
        for at in ends.chain([self.told, self.log.len()]) {
            let middle = before + at.saturating_sub(before) / 2;
            for kept in [Kept::None, Kept::All, Kept::Some(1), Kept::Some(2)] {
                cuts.push(Cut { at, kept });
            }
            cuts.push(Cut { at: middle, kept: Kept::Some(3) });
            before = at;
        }
        cuts
    }

    /// The disk after the cut.
    fn cut(&self, stage: &Stage, cut: Cut) {
        let ground = stage.ground();
        let path = ground.beside("cut");
        ground.copy_saved(&path);
        let file = File::options().write(true).open(&path).unwrap();
        let written = &self.log[..cut.at];
        let flushed = written.iter().rposition(|entry| matches!(entry, Entry::Flush)).unwrap_or(0);
        let mut random = Random(0x9E37_79B9 ^ cut.at as u64);
        for (number, entry) in written.iter().enumerate() {
            let Entry::Write { offset, data } = entry else { continue };
            for (index, block) in data.chunks(BLOCK).enumerate() {
                let is_kept = number < flushed
                    || match cut.kept {
                        Kept::None => false,
                        Kept::All => true,
                        Kept::Some(seed) => random.next(seed).is_multiple_of(2),
                    };
                if is_kept {
                    file.write_all_at(block, offset + (index * BLOCK) as u64).unwrap();
                }
            }
        }
        ground.unmount();
        ground.start_from(&path);
        // The machine comes up in another boot, in which nothing counts that was proven in the last one.
        let _ = std::fs::remove_file(stage.world.project("shop").join("state/proof.json"));
    }

    /// What is found after the cut.
    fn findings(&self, stage: &Stage, cut: Cut) -> Vec<Finding> {
        self.cut(stage, cut);
        let was_told = cut.at >= self.told;
        let ended = was_told.then(|| Ok(self.ended.clone()));
        // Without our syncs even the records that the checker reads may be empty: then it fails, and that is a finding.
        let looked = catch_unwind(AssertUnwindSafe(|| stage.aftermath(ended)));
        let unreadable = || vec![Finding { broken: Broken::Half, text: "the node cannot be read".to_string() }];
        looked.unwrap_or_else(|_| unreadable())
    }
}

/// Numbers without a pattern, the same ones in every run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self, seed: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// The machine loses its power at sampled moments of this pipeline.
fn campaign(scenario: Scenario, kind: Kind, wanted: usize) {
    if !can_mount() {
        return;
    }
    let stage = Stage::on(scenario, kind, kind.size());
    let mut found = Vec::new();
    for is_busy in [false, true] {
        let words = if is_busy { "power loss, others syncing" } else { "power loss" };
        let film = Film::of(&stage, kind, is_busy, false);
        let cuts = film.cuts();
        assert!(cuts.len() > 20, "only {} cuts", cuts.len());
        let sampled = sample(&cuts, wanted);
        let mut class = Class::new(format!("{words} on {kind:?}: {scenario:?}"), sampled.len(), cuts.len());
        for cut in sampled {
            class.add(
                &format!("{scenario:?}, {words}, {cut:?} of {}", film.log.len()),
                true,
                &film.findings(&stage, cut),
            );
        }
        class.record.control = Some(control(&stage, kind, is_busy, wanted));
        found.extend(class.end());
    }
    assert_kept(&found);
}

/// The same without our syncs: how many of the cuts were found out.
fn control(stage: &Stage, kind: Kind, is_busy: bool, wanted: usize) -> (usize, usize) {
    let film = Film::of(stage, kind, is_busy, true);
    let mut cuts = sample(&film.cuts(), wanted);
    // The plainest one of all is always tried: success was told, and nothing of it had been flushed.
    cuts.push(Cut { at: film.told, kept: Kept::None });
    let caught = cuts.iter().filter(|cut| !film.findings(stage, **cut).is_empty()).count();
    // Where others sync all the time, they do our work more often than not: there the number alone is told.
    assert!(is_busy || caught > 0, "the syncs were left out, and nobody found out in {} cuts", cuts.len());
    (caught, cuts.len())
}

#[test]
fn an_update_survives_a_power_cut_at_any_moment() {
    campaign(Scenario::Update, Kind::Ext4, 4);
}

#[test]
fn a_failing_upgrade_survives_a_power_cut_at_any_moment() {
    campaign(Scenario::FailingUpgrade, Kind::Ext4, 2);
}

#[test]
fn a_rollback_with_data_survives_a_power_cut_at_any_moment() {
    campaign(Scenario::RollbackWithData, Kind::Ext4, 2);
}

#[test]
fn an_update_on_xfs_survives_a_power_cut_at_any_moment() {
    campaign(Scenario::Update, Kind::Xfs, 2);
}
