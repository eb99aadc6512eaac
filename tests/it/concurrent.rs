//! Many at once: pushes to one project follow each other, two projects do not wait, and a pusher who is gone changes nothing.

use std::time::{Duration, Instant};

use mc_project::report::event::{Event, Record};
use nix::sys::signal::Signal;

use crate::support::{self, Running, WorkTree, World, is_full, wait_until};

/// When each deployment began and ended, by its journal.
fn times(world: &World) -> Vec<(u64, jiff::Timestamp, jiff::Timestamp)> {
    let dir = world.project("shop").join("state/journal");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let records: Vec<Record> =
            text.lines().filter_map(|line| serde_json::from_str(line.split('\t').next()?).ok()).collect();
        let seq = records.iter().find_map(|record| match &record.event {
            Event::Begin(begin) => Some(begin.seq),
            _ => None,
        });
        let end = records.iter().rev().find(|record| matches!(record.event, Event::End { .. }));
        all.push((seq.unwrap(), records[0].at, end.unwrap().at));
    }
    all.sort();
    all
}

#[test]
fn many_pushes_at_once_follow_each_other_and_each_pusher_hears_the_truth() {
    let count = if is_full() { 100 } else { 12 };
    let (world, _) = World::serving(&[("mc_project.yaml", "stages: {build: ['sleep 0.05']}\n"), ("who", "nobody")]);
    let works: Vec<(WorkTree<'_>, String)> = (0..count)
        .map(|n| {
            let work = world.checkout_of("shop");
            let commit = work.commit(&format!("push {n}"), &[("who", &n.to_string())]);
            (work, commit)
        })
        .collect();
    let running: Vec<Running> = works.iter().map(|(work, _)| work.start_push(&["--force", "main"])).collect();
    let ended: Vec<_> = running.into_iter().map(Running::wait).collect();
    world.settle("shop");

    let history = world.history("shop");
    let mut told = Vec::new();
    let mut outcomes = 0;
    for ((_, commit), push) in works.iter().zip(&ended) {
        let of_it = history.iter().filter(|entry| entry["commit"] == **commit).count();
        assert!(of_it <= 1, "one push has one outcome: {history:#?}");
        outcomes += of_it;
        let deployed = history.iter().any(|entry| entry["commit"] == **commit && entry["verdict"] == "deployed");
        assert_eq!(push.exit_code(), Some(i32::from(!deployed)), "exit code against history: {push}");
        told.push(deployed);
    }
    assert!(told.iter().any(|deployed| *deployed), "{history:#?}");
    let last = history.iter().rev().find(|entry| entry["verdict"] == "deployed").unwrap();
    assert_eq!(last["commit"].as_str(), world.serves("shop").as_deref(), "the last accepted one is live");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), world.serves("shop"));
    for pair in times(&world).windows(2) {
        assert!(pair[0].2 <= pair[1].1, "#{} began before #{} had ended: {pair:?}", pair[1].0, pair[0].0);
    }
    world.mc(&["verify", "--all"]).ok();
    assert_eq!(history.len(), outcomes + 1, "and the first version has one");
    // All of the above is asserted, so nothing was found.
    support::record(
        "pushes at once",
        &support::Record { points: count, of: 100, hit: count, ..support::Record::default() },
    );
}

#[test]
fn two_projects_do_not_wait_for_each_other() {
    let (world, _) = World::serving(&[("a", "1")]);
    world.mc(&["init", "other"]).ok();
    let (slow, quick) = (world.checkout_of("shop"), world.clone_of("other"));
    let gate = world.home().path("gate");
    slow.commit(
        "slow",
        &[(
            "mc_project.yaml",
            &format!("stages: {{build: ['until test -e {}; do sleep 0.02; done']}}\n", gate.display()),
        )],
    );
    let waiting = slow.start_push(&["main"]);
    wait_until("the slow one builds", || waiting.stderr_so_far().contains("checkout"));
    quick.commit("quick", &[("a", "1")]);
    quick.push(&["main"]).ok();
    assert!(world.serves("other").is_some());
    std::fs::write(gate, "").unwrap();
    waiting.wait().ok();
}

/// A pusher whose git is killed or stopped while a step runs.
fn pusher_goes(signal: Signal, step: &str) {
    let (world, _) = World::serving(&[("a", "1")]);
    let gate = world.home().path("gate");
    let work = world.checkout_of("shop");
    let recipe =
        format!("stages: {{build: ['{step}', 'until test -e {}; do sleep 0.02; done', '{step}']}}\n", gate.display());
    let commit = work.commit("two", &[("mc_project.yaml", &recipe)]);
    let pushing = work.start_push(&["main"]);
    wait_until("it builds", || {
        world.last("shop").is_some_and(|last| last.open && last.seq == 2)
            && pushing.stderr_so_far().contains("checkout")
    });
    pushing.signal(signal);
    std::fs::write(gate, "").unwrap();
    let begun = Instant::now();
    world.settle("shop");
    assert!(begun.elapsed() < Duration::from_mins(1), "a pusher who is gone holds nothing up");
    assert_eq!(world.serves("shop"), Some(commit.clone()), "{signal} during `{step}`");
    assert_eq!(world.newest("shop")["verdict"], "deployed");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(commit));
    if signal == Signal::SIGSTOP {
        pushing.signal(Signal::SIGCONT);
    }
    let _ = pushing.wait();
    world.mc(&["verify", "--all"]).ok();
    work.commit("three", &[("mc_project.yaml", "stages: {}\n")]);
    work.push(&["--force", "main"]).ok();
}

#[test]
fn a_pusher_who_is_killed_during_a_quiet_step_changes_nothing() {
    pusher_goes(Signal::SIGKILL, "true");
}

#[test]
fn a_pusher_who_is_killed_during_a_loud_step_changes_nothing() {
    pusher_goes(Signal::SIGKILL, "seq 1 60000");
}

#[test]
fn a_pusher_who_is_stopped_during_a_quiet_step_changes_nothing() {
    pusher_goes(Signal::SIGSTOP, "true");
}

#[test]
fn a_pusher_who_is_stopped_during_a_loud_step_changes_nothing() {
    pusher_goes(Signal::SIGSTOP, "seq 1 60000");
}
