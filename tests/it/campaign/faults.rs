//! Kills and errors at system calls of eight pipelines, and second faults inside the recovery.

use super::calls::{Call, Fault, Order};
use super::check::Broken;
use super::class::{Class, assert_kept};
use super::ground::{Kind, can_mount};
use super::stage::{Scenario, Stage};
use crate::support::{sample, times};

/// The errors of a system call, with how many of a pipeline's places a normal run takes.
const ERRORS: [(&str, usize); 5] = [("ENOSPC", 1), ("EIO", 1), ("EMFILE", 1), ("EINTR", 1), ("ENOMEM", 1)];

/// Kills of a pipeline that a normal run tries.
const KILLS: usize = 5;

/// Pairs of kills, one in the pipeline and one in the recovery: in a normal run, and in full mode.
const PAIRS: (usize, usize) = (1, 60);

/// All classes of one pipeline.
fn campaign(scenario: Scenario) {
    if !can_mount() {
        return;
    }
    let stage = Stage::on(scenario, Kind::Ext4, Kind::Ext4.size());
    let mut found = faults(&stage, "kill", Fault::Kill, KILLS);
    for (errno, wanted) in ERRORS {
        found.extend(faults(&stage, errno, Fault::Error(errno), wanted));
    }
    found.extend(second_faults(&stage));
    assert_kept(&found);
}

/// One fault at each of the sampled places.
fn faults(stage: &Stage, word: &str, fault: Fault, wanted: usize) -> Vec<String> {
    stage.restore();
    let all = stage.order().places(&stage.world, fault);
    assert!(all.len() > 20, "{all:?}");
    let sampled = sample(&all, wanted);
    let scenario = stage.scenario;
    let mut class = Class::new(format!("{word} at a system call: {scenario:?}"), sampled.len(), all.len());
    for call in &sampled {
        stage.restore();
        let (ended, is_hit) = stage.order().disturbed(&stage.world, call, fault);
        let what = format!("{scenario:?}, {word} at {}:{}", call.name, call.n);
        let mut found = stage.aftermath(Some(ended));
        // An event counter that cannot be written to is no fault that exists; the runtime panics there, and the node is whole.
        found.retain(|finding| is_hit || finding.broken != Broken::Panic);
        class.add(&what, is_hit, &found);
    }
    class.end()
}

/// The pipeline is killed, and the recovery too.
fn second_faults(stage: &Stage) -> Vec<String> {
    stage.restore();
    let firsts = stage.order().places(&stage.world, Fault::Kill);
    let recovery = || Order { command: stage.world.mc_command(&["recover", "shop"]), input: None };
    let pairs = if crate::support::is_full() { PAIRS.1 } else { PAIRS.0 * times() };
    let stride = (firsts.len() / pairs).max(1);
    let mut class = Class::new(format!("kill, and kill in the recovery: {:?}", stage.scenario), 0, 0);
    for (k, first) in firsts.iter().skip(stride / 2).step_by(stride).enumerate() {
        let begin = || {
            stage.restore();
            stage.order().disturbed(&stage.world, first, Fault::Kill).1
        };
        begin();
        let seconds = recovery().places(&stage.world, Fault::Kill);
        class.record.of += seconds.len() * stride;
        let Some(second) = pick(&seconds, k) else { continue };
        begin();
        let (_, is_hit) = recovery().disturbed(&stage.world, second, Fault::Kill);
        class.record.points += 1;
        let what = format!("{:?}, killed at {first:?}, its recovery at {second:?}", stage.scenario);
        class.add(&what, is_hit, &stage.aftermath(None));
    }
    class.end()
}

/// One of the calls, another one for each `k`, near the beginning as often as near the end.
fn pick(calls: &[Call], k: usize) -> Option<&Call> {
    calls.get((k * 7919) % calls.len().max(1))
}

#[test]
fn a_first_deployment_survives_a_fault_at_any_system_call() {
    campaign(Scenario::First);
}

#[test]
fn an_update_survives_a_fault_at_any_system_call() {
    campaign(Scenario::Update);
}

#[test]
fn a_failing_build_survives_a_fault_at_any_system_call() {
    campaign(Scenario::FailingBuild);
}

#[test]
fn a_failing_upgrade_survives_a_fault_at_any_system_call() {
    campaign(Scenario::FailingUpgrade);
}

#[test]
fn a_rollback_survives_a_fault_at_any_system_call() {
    campaign(Scenario::Rollback);
}

#[test]
fn a_rollback_with_data_survives_a_fault_at_any_system_call() {
    campaign(Scenario::RollbackWithData);
}

#[test]
fn a_final_deployment_survives_a_fault_at_any_system_call() {
    campaign(Scenario::Final);
}

#[test]
fn a_recovery_survives_a_fault_at_any_system_call() {
    campaign(Scenario::Recover);
}
