//! A worker that is killed at any point of a deployment leaves the services of the version that `status` names (needs
//! `failpoints`).
#![cfg(feature = "failpoints")]

use std::fs::File;

use mc_project::project::request::{Options, Want};

use crate::campaign::stage::request_of;
use crate::services::page;
use crate::support::service_app::QUEUE;
use crate::support::{Running, WorkTree, World, free_port};

/// Where services may be of either version, or stopped.
const POINTS: [&str; 16] = [
    "stop.before",
    "services.stopped",
    "stop.done",
    "backup.done",
    "deploy.intent",
    "deploy.exchanged",
    "deploy.synced",
    "touched.recorded",
    "services.started",
    "start.done",
    "upgrade.done",
    "commit.record",
    "commit.ref",
    "commit.current",
    "end.history",
    "end.closed",
];
/// The same on the way back.
const BACK: [&str; 8] = [
    "rollback.begin",
    "services.stopped:2",
    "rollback.dumped",
    "rollback.exchanged",
    "rollback.data",
    "services.started:2",
    "rollback.started",
    "rollback.done",
];

struct Node {
    world: World,
    port: u16,
}

impl Node {
    /// Runs the worker with a fault; nobody but the test recovers.
    fn kill_at(&self, want: Want, fault: &str) {
        let mut request = request_of(want);
        request.options = Options { deploy: true, ..Options::default() };
        let path = self.world.home().path("request");
        std::fs::write(&path, serde_json::to_vec(&request).unwrap()).unwrap();
        let mut command = self.world.mc_command(&["work"]);
        command.stdin(File::open(&path).unwrap()).env("MC_FAIL", format!("{fault}=kill"));
        let ended = Running::start_reading(command).wait();
        assert_eq!(ended.exit_code(), None, "{fault} was not passed: {ended}");
    }

    /// One recovery later the services are those of what serves, which is one of these commits.
    #[track_caller]
    fn assert_whole(&self, commits: &[&str], what: &str) -> String {
        self.world.mc(&["recover", "shop"]);
        let last = self.world.last("shop").unwrap();
        assert!(!last.open && last.needs_person.is_none(), "{what}: {last:?}");
        let serves = last.serves.unwrap();
        let commit = serves.commit.to_string();
        assert!(commits.contains(&commit.as_str()), "{what}: {commit} serves");
        let page = page(self.port).unwrap_or_else(|| panic!("{what}: nobody answers"));
        assert!(page.contains(&serves.id.to_string()), "{what}: {page} answers, but {} serves", serves.id);
        assert_eq!(page.split(' ').next().unwrap(), self.world.run_text("shop", "version"), "{what}");
        let status = self.world.mc(&["status", "shop"]);
        assert_eq!(status.exit_code(), Some(0), "{what}: {status}");
        commit
    }

    fn commit(&self, work: &WorkTree<'_>, version: &str, more: &str) -> String {
        work.commit_services(version, (self.port, 1), &format!("{QUEUE}{more}"))
    }
}

fn deploy(commit: &str) -> Want {
    Want::Deploy { commit: commit.parse().unwrap() }
}

#[test]
fn services_are_those_of_what_serves_wherever_a_worker_was_killed() {
    let node = Node { world: World::with_shop(), port: free_port() };
    let work = node.world.clone_of("shop");
    let one = node.commit(&work, "1", "");
    work.push(&["main"]).ok();
    let two = node.commit(&work, "2", "");
    work.push(&["-o", "no-deploy", "main"]).ok();
    node.world.settle("shop");
    let mut live = one.clone();
    for point in POINTS {
        let next = if live == one { &two } else { &one };
        node.kill_at(deploy(next), point);
        live = node.assert_whole(&[&one, &two], &format!("killed at {point}"));
    }
}

#[test]
fn services_are_the_old_ones_wherever_a_worker_was_killed_on_the_way_back() {
    let node = Node { world: World::with_shop(), port: free_port() };
    let work = node.world.clone_of("shop");
    let one = node.commit(&work, "1", "");
    work.push(&["main"]).ok();
    let bad = node.commit(&work, "2", "stages: {upgrade: ['exit 4']}\n");
    work.push(&["-o", "no-deploy", "main"]).ok();
    node.world.settle("shop");
    for point in BACK {
        node.kill_at(deploy(&bad), point);
        node.assert_whole(&[&one], &format!("killed at {point}"));
    }
}

#[test]
fn a_start_at_a_boot_that_was_killed_is_finished_and_repeats_no_step() {
    let node = Node { world: World::with_shop(), port: free_port() };
    let work = node.world.clone_of("shop");
    node.commit(&work, "1", "stages: {start: ['echo x >> $MC_DATA/starts']}\n");
    work.push(&["main"]).ok();
    node.world.settle("shop");
    node.world.mc(&["stop", "shop"]).ok();
    let at_boot = |fault: Option<&str>| {
        let mut command = node.world.mc_command(&["recover", "--all"]);
        command.env("MC_BOOT", "1").envs(fault.map(|fault| ("MC_FAIL", fault)));
        Running::start_reading(command).wait()
    };
    let starts = || std::fs::read_to_string(node.world.project("shop").join("data/starts")).unwrap().lines().count();
    let before = starts();
    assert_eq!(at_boot(Some("boot.begun=kill")).exit_code(), None);
    assert!(page(node.port).is_none());
    at_boot(None).ok().says("shop: nothing was interrupted; started");
    assert!(page(node.port).is_some());
    assert_eq!(starts(), before);
    // What a person stopped after the boot stays so.
    node.world.mc(&["stop", "shop"]).ok();
    at_boot(None).ok();
    assert!(page(node.port).is_none());

    // Whoever has steps to run comes after whoever has none.
    node.world.mc(&["init", "web"]).ok();
    let said = at_boot(None).ok().stdout;
    assert!(said.find("web: ").unwrap() < said.find("shop: ").unwrap(), "{said}");
}
