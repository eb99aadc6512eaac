//! File systems that go away under a deployment: shut down, so that nothing more reaches the disk, or read-only after an error.
//!
//! The command is held up before a system call, the file system is taken from it, and it is killed, or goes on to its end.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::calls::{Call, Fault, Held};
use super::class::{Class, assert_kept};
use super::ground::{Kind, can_mount, run, users_of};
use super::stage::{DEADLINE, Scenario, Stage};
use crate::support::{kill_9, sample};

/// Starts the command and waits until it is held up at this call; `None` if it ended without.
fn held_at(stage: &Stage, call: &Call, delay: Duration) -> Option<Held> {
    let mut held = stage.order().held(&stage.world, call, delay);
    while held.now().is_empty() {
        if !held.running.is_running() {
            return None;
        }
        assert!(held.begin.elapsed() < DEADLINE, "{call:?} never came");
        std::thread::sleep(Duration::from_millis(2));
    }
    Some(held)
}

/// Kills everything of the command.
fn kill_all(stage: &Stage, held: Held) {
    for pid in users_of(&stage.world.root()) {
        kill_9(pid);
    }
    held.running.signal(Signal::SIGKILL);
    let _ = held.running.wait_at_most(DEADLINE);
    for pid in users_of(&stage.world.root()) {
        kill_9(pid);
    }
}

/// The file system is shut down: of what was not synced, only what the kernel had written already is on the disk.
fn shut_down(stage: &Stage) {
    run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(stage.world.root()));
}

/// The places of this pipeline before which something may happen: each call that changes the disk, and each sync.
fn places(stage: &Stage) -> Vec<Call> {
    stage.restore();
    let mut all = stage.order().places(&stage.world, Fault::Sync);
    stage.restore();
    all.extend(stage.order().places(&stage.world, Fault::Kill));
    all.sort();
    all.dedup();
    all
}

fn shutdowns(scenario: Scenario, kind: Kind, wanted: usize) {
    if !can_mount() {
        return;
    }
    let stage = Stage::on(scenario, kind, kind.size());
    let all = places(&stage);
    let sampled = sample(&all, wanted);
    let name = format!("file system shut down, {kind:?}: {scenario:?}");
    let mut class = Class::new(name, sampled.len(), all.len());
    for call in &sampled {
        stage.restore();
        let Some(held) = held_at(&stage, call, Duration::from_secs(10)) else { continue };
        shut_down(&stage);
        kill_all(&stage, held);
        stage.ground().unmount();
        stage.ground().mount_again();
        let what = format!("{scenario:?} on {kind:?}, shut down before {}:{}", call.name, call.n);
        class.add(&what, true, &stage.aftermath(None));
    }
    let found = class.end();
    assert_kept(&found);
}

/// An error makes the file system read-only while a deployment runs, which ends and says so; after a remount it is whole.
fn read_only(scenario: Scenario, wanted: usize) {
    if !can_mount() {
        return;
    }
    let stage = Stage::on(scenario, Kind::Ext4, Kind::Ext4.size());
    let all = places(&stage);
    let sampled = sample(&all, wanted);
    let mut class = Class::new(format!("read-only after an error: {scenario:?}"), sampled.len(), all.len());
    for call in &sampled {
        stage.restore();
        run(Command::new("mount").args(["-o", "remount,errors=remount-ro"]).arg(stage.world.root()));
        let Some(held) = held_at(&stage, call, Duration::from_millis(500)) else { continue };
        stage.ground().break_it();
        let ended = held.running.wait_at_most(DEADLINE);
        stage.ground().unmount();
        stage.ground().mount_again();
        let what = format!("{scenario:?}, read-only before {}:{}", call.name, call.n);
        class.add(&what, true, &stage.aftermath(Some(ended)));
    }
    let found = class.end();
    assert_kept(&found);
}

#[test]
fn an_update_survives_the_shutdown_of_its_ext4_at_any_call() {
    shutdowns(Scenario::Update, Kind::Ext4, 3);
}

#[test]
fn an_update_survives_the_shutdown_of_its_xfs_at_any_call() {
    shutdowns(Scenario::Update, Kind::Xfs, 3);
}

#[test]
fn a_failing_upgrade_survives_the_shutdown_of_its_ext4_at_any_call() {
    shutdowns(Scenario::FailingUpgrade, Kind::Ext4, 2);
}

#[test]
fn a_failing_upgrade_survives_the_shutdown_of_its_xfs_at_any_call() {
    shutdowns(Scenario::FailingUpgrade, Kind::Xfs, 1);
}

#[test]
fn an_update_whose_file_system_becomes_read_only_ends_and_is_whole_afterwards() {
    read_only(Scenario::Update, 3);
}
