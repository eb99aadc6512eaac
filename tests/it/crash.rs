//! Killed, or failed by the disk, at every named point, a node ends as the old version or the new one (needs `failpoints`).
//!
//! Each scenario is run once undisturbed, which tells the points that it passes; then once per point and fault. The worker
//! is started without its watcher, so that nobody recovers but the test. In full mode every passage of every point is hit.
#![cfg(feature = "failpoints")]

use std::collections::BTreeMap;

use crate::campaign::check::{Broken, Finding};
use crate::campaign::stage::{Scenario, Stage};
use crate::support::{Finished, Record, Running, World, is_full, record};

/// A node, and how often a run that is not disturbed passes each point.
struct Passages {
    stage: Stage,
    points: BTreeMap<String, usize>,
}

impl Passages {
    fn new(scenario: Scenario) -> Self {
        let stage = Stage::copied(scenario);
        let points = stage.points();
        assert!(points.len() > 8, "{points:?}");
        Self { stage, points }
    }

    /// Puts the node back and runs it with a fault.
    fn run(&self, fault: &str) -> Finished {
        self.stage.restore();
        let mut command = self.stage.command();
        command.env("MC_FAIL", fault);
        Running::start_reading(command).wait()
    }

    /// Passages to hit: the first and the last one, in full mode each.
    fn of(&self, point: &str) -> Vec<usize> {
        let count = self.points[point];
        match count {
            _ if is_full() => (1..=count).collect(),
            1 => vec![1],
            _ => vec![1, count],
        }
    }
}

/// A person may be needed after a fault inside the way back itself; nothing else may be found.
#[track_caller]
fn assert_kept(what: &str, found: &[Finding]) {
    let broken: Vec<_> = found.iter().filter(|finding| finding.broken != Broken::NeedsPerson).collect();
    assert!(broken.is_empty(), "{what}: {broken:#?}");
}

/// Kills at every point: afterwards, and after one recovery, the node is whole; a second recovery has nothing to do; the next
/// deployment works.
fn survives_kills(scenario: Scenario) {
    let passages = Passages::new(scenario);
    let mut told = Record { of: passages.points.values().sum(), ..Record::default() };
    for point in passages.points.keys() {
        for nth in passages.of(point) {
            told.points += 1;
            told.hit += 1;
            passages.run(&format!("{point}:{nth}=kill"));
            assert_kept(&format!("{scenario:?}, killed at {point}:{nth}"), &passages.stage.aftermath(None));
        }
    }
    record(&format!("kill at each named point: {scenario:?}"), &told);
}

/// Fails at every point: the node is whole, and what the exit code says is true.
fn survives_errors(scenario: Scenario, error: &str, stride: usize) {
    let passages = Passages::new(scenario);
    let stride = if is_full() { 1 } else { stride };
    for point in passages.points.keys().step_by(stride) {
        for nth in passages.of(point) {
            let ended = passages.run(&format!("{point}:{nth}=error:{error}"));
            let found = passages.stage.aftermath(Some(Ok(ended)));
            assert_kept(&format!("{scenario:?}, {error} at {point}:{nth}"), &found);
        }
    }
}

/// Kills the worker at one point and the recovery at another; the second recovery makes the node whole.
fn survives_kills_in_the_recovery(scenario: Scenario, first: &str) {
    let passages = Passages::new(scenario);
    passages.run(&format!("{first}=kill"));
    let recovery = || passages.stage.world.mc_command(&["recover", "shop"]);
    let passed = passages.stage.points_of(recovery());
    assert!(passed.len() > 5, "{passed:?}");
    for (point, count) in &passed {
        let passed = if is_full() { (1..=*count).collect() } else { vec![1] };
        for nth in passed {
            passages.run(&format!("{first}=kill"));
            let mut command = recovery();
            command.env("MC_FAIL", format!("{point}:{nth}=kill"));
            Running::start(command).wait();
            let what = format!("{scenario:?}, killed at {first}, recovery killed at {point}:{nth}");
            assert_kept(&what, &passages.stage.aftermath(None));
        }
    }
}

#[test]
fn a_first_deployment_that_is_killed_anywhere_is_none_or_whole() {
    survives_kills(Scenario::First);
}

#[test]
fn an_update_that_is_killed_anywhere_is_old_or_new() {
    survives_kills(Scenario::Update);
}

#[test]
fn a_failing_build_that_is_killed_anywhere_leaves_the_old_version() {
    survives_kills(Scenario::FailingBuild);
}

#[test]
fn a_failing_upgrade_that_is_killed_anywhere_goes_back_with_its_data() {
    survives_kills(Scenario::FailingUpgrade);
}

#[test]
fn a_rollback_by_hand_that_is_killed_anywhere_is_old_or_new() {
    survives_kills(Scenario::Rollback);
}

#[test]
fn a_rollback_with_data_that_is_killed_anywhere_has_the_data_of_its_code() {
    survives_kills(Scenario::RollbackWithData);
}

#[test]
fn a_full_disk_anywhere_in_a_first_deployment_is_told_and_leaves_none() {
    survives_errors(Scenario::First, "ENOSPC", 1);
}

#[test]
fn a_full_disk_anywhere_in_an_update_is_told_and_leaves_a_whole_version() {
    survives_errors(Scenario::Update, "ENOSPC", 1);
}

#[test]
fn a_full_disk_anywhere_in_a_failing_build_changes_nothing() {
    survives_errors(Scenario::FailingBuild, "ENOSPC", 2);
}

#[test]
fn a_full_disk_anywhere_in_a_failing_upgrade_ends_whole() {
    survives_errors(Scenario::FailingUpgrade, "ENOSPC", 1);
}

#[test]
fn a_full_disk_anywhere_in_a_rollback_by_hand_ends_whole() {
    survives_errors(Scenario::RollbackWithData, "ENOSPC", 1);
}

#[test]
fn a_failing_disk_anywhere_is_told_and_leaves_a_whole_version() {
    survives_errors(Scenario::Update, "EIO", 2);
    survives_errors(Scenario::FailingUpgrade, "EIO", 3);
}

#[test]
fn a_recovery_before_the_switch_may_itself_be_killed_anywhere() {
    survives_kills_in_the_recovery(Scenario::Update, "stop.done");
}

#[test]
fn a_recovery_after_the_switch_may_itself_be_killed_anywhere() {
    survives_kills_in_the_recovery(Scenario::Update, "upgrade.done");
}

#[test]
fn a_recovery_of_a_rollback_may_itself_be_killed_anywhere() {
    survives_kills_in_the_recovery(Scenario::FailingUpgrade, "rollback.data-path");
}

#[test]
fn a_recovery_after_the_commit_may_itself_be_killed_anywhere() {
    survives_kills_in_the_recovery(Scenario::Update, "commit.record");
}

#[test]
fn what_a_power_cut_left_of_a_deployment_that_nobody_knows_of_is_removed() {
    let (world, _) = World::serving(&[("a", "1")]);
    let shop = world.project("shop");
    let unknown = "20990101T000000Z-0190f2c8-aaaa-7bbb-8ccc-0123456789ab";
    for (dir, file) in [("deploy", ".release.json.new"), ("archives", ".before.json.new")] {
        std::fs::create_dir(shop.join(dir).join(unknown)).unwrap();
        std::fs::write(shop.join(dir).join(unknown).join(file), "{").unwrap();
    }
    std::fs::create_dir(shop.join("deploy/notes-of-a-person")).unwrap();
    world.mc(&["verify", "shop"]).fails();

    world.mc(&["recover", "shop"]).ok();

    assert!(!shop.join("deploy").join(unknown).exists() && !shop.join("archives").join(unknown).exists());
    assert!(shop.join("deploy/notes-of-a-person").exists(), "only names of ours are touched");
    std::fs::remove_dir(shop.join("deploy/notes-of-a-person")).unwrap();
    world.mc(&["verify", "shop"]).ok();
}
