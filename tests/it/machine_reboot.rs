//! A machine that stops in the middle of a deployment, by a reboot or a power cut, and a worker that is stopped or killed:
//! the node ends as the old version or the new one, says so, and deploys the next push.
//!
//! A step naps where the test has put a nap for its stage; then the machine is stopped. In full mode that is every stage,
//! and moments by the clock.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::server::Server;
use crate::support::{Finished, Running, WorkTree, assert_has, assert_lacks, wait_until};

/// The stages whose steps can nap, in order; what comes before `notify` is before the commit.
const STAGES: [&str; 13] = [
    "pre_install",
    "build",
    "post_build",
    "configure",
    "check",
    "stop",
    "backup",
    "post_deploy",
    "start",
    "post_install",
    "upgrade",
    "health",
    "notify",
];
/// The stage after the commit.
const SETTLING: &str = "notify";

const NAP: &str = "#!/bin/sh\nrm \"/srv/naps/$1\" 2> /dev/null || exit 0\nsleep 60\n";

fn recipe() -> String {
    let stage = |name: &&str| match *name {
        "upgrade" => "  upgrade: ['cp version $MC_DATA/db', bin/nap upgrade]\n".to_string(),
        "backup" => "  backup: ['touch $MC_DUMPS/all', 'test ! -e bin/nap || bin/nap backup']\n".to_string(),
        name => format!("  {name}: [bin/nap {name}]\n"),
    };
    format!("stages:\n{}  restore: ['true']\n", STAGES.iter().map(stage).collect::<String>())
}

/// A node with a project, a developer, and what serves.
struct Node {
    server: Server,
    dir: PathBuf,
    version: u32,
}

impl Node {
    fn boot() -> Option<Self> {
        let server = Server::boot("", &["shop"])?;
        server.let_in("alice", "shop", "deploy");
        server.machine().run("mkdir -m 0777 /srv/naps").ok();
        let dir = {
            let work = server.work("alice", "shop");
            work.write("bin/nap", NAP);
            work.write("mc_project.yaml", recipe());
            work.dir().to_path_buf()
        };
        let mut node = Self { server, dir, version: 0 };
        node.deploy_next();
        Some(node)
    }

    fn work(&self) -> WorkTree<'_> {
        WorkTree::at(self.server.machine().home(), self.dir.clone())
    }

    /// A new version is committed; its commit.
    fn commit(&mut self) -> String {
        self.version += 1;
        let text = self.version.to_string();
        self.work().commit(&format!("version {text}"), &[("version", &text), (&format!("only-in-{text}"), "x")])
    }

    /// The next push deploys.
    #[track_caller]
    fn deploy_next(&mut self) {
        let commit = self.commit();
        self.work().push(&["main"]).ok().tells("deployed; run serves");
        assert_eq!(self.server.serves("shop"), Some(commit));
        self.server.settle("shop");
    }

    /// Pushes a new version and waits until its step of this stage naps.
    #[track_caller]
    fn push_until(&mut self, stage: &str) -> (String, Running) {
        let nap = self.server.machine().root().join("srv/naps").join(stage);
        std::fs::write(&nap, "").unwrap();
        std::fs::set_permissions(&nap, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let commit = self.commit();
        let push = self.work().start_push(&["main"]);
        wait_until(&format!("{stage} naps"), || !nap.exists());
        (commit, push)
    }

    /// One whole version, its data, an honest record, nothing left over; and the next push deploys.
    #[track_caller]
    fn assert_whole(&mut self, legal: &[&str], what: &str) {
        let server = &self.server;
        let said = server.mc(&["status", "shop"]);
        assert_eq!(said.exit_code(), Some(0), "{what}: {said}");
        let live = server.serves("shop").unwrap();
        assert!(legal.contains(&live.as_str()), "{what}: {live} serves, not one of {legal:?}\n{said}");
        assert_has(&said.stdout, &format!("run serves {}", &live[..10]));
        assert_lacks(&said.stdout, "interrupted, and run may");
        let work = self.work();
        work.reference_tree(&live).assert_same(&server.run_tree("shop"), &format!("run after {what}"));
        let project = server.project("shop");
        let of = |path: &str| std::fs::read_to_string(project.join(path)).unwrap();
        assert_eq!(of("data/db"), of("run/version"), "{what}: the data are of another version");
        server.assert_sound();
        assert_eq!(
            server.machine().run("find /sys/fs/cgroup -name 'mc-step.*'; pgrep -u mc-shop").stdout,
            "",
            "{what}"
        );
        self.deploy_next();
    }

    fn old(&self) -> String {
        self.server.serves("shop").unwrap()
    }
}

fn is_full() -> bool {
    std::env::var_os("MC_TEST_FULL").is_some()
}

/// These stages, or in full mode all of them.
fn moments(some: &[&'static str]) -> Vec<&'static str> {
    if is_full() { STAGES.to_vec() } else { some.to_vec() }
}

/// After a boot the unit has done its work.
#[track_caller]
fn assert_recovered(node: &Node, what: &str) {
    let machine = node.server.machine();
    assert_eq!(machine.state(), "running", "{what}: {}", machine.failed_units());
    assert_eq!(machine.run("systemctl is-active mc_project-recover.service").stdout, "active\n", "{what}");
    let said = machine.run("journalctl --quiet --boot --output=cat --unit mc_project-recover.service").stdout;
    assert_has(&said, "shop: ");
}

#[test]
fn a_power_cut_in_any_stage_leaves_the_old_version_or_the_new_one() {
    let Some(mut node) = Node::boot() else { return };
    for stage in moments(&["build", "stop", "upgrade", "health", SETTLING]) {
        let what = format!("a power cut at {stage}");
        let old = node.old();
        let (new, push) = node.push_until(stage);
        node.server.machine_mut().power_cut();
        push.signal(Signal::SIGKILL);
        push.wait();
        assert_recovered(&node, &what);
        let legal = if stage == SETTLING { new } else { old };
        node.assert_whole(&[&legal], &what);
    }
    if is_full() {
        for tenths in 0..60 {
            let old = node.old();
            let new = node.commit();
            let push = node.work().start_push(&["main"]);
            std::thread::sleep(Duration::from_millis(tenths * 50));
            node.server.machine_mut().power_cut();
            push.signal(Signal::SIGKILL);
            push.wait();
            node.assert_whole(&[&old, &new], &format!("a power cut after {} ms", tenths * 50));
        }
    }
}

#[test]
fn a_reboot_in_any_stage_leaves_the_old_version_or_the_new_one() {
    let Some(mut node) = Node::boot() else { return };
    for stage in moments(&["check", "post_deploy", "upgrade"]) {
        let what = format!("a reboot at {stage}");
        let old = node.old();
        let (new, push) = node.push_until(stage);
        let before = std::time::Instant::now();
        node.server.machine_mut().reboot();
        assert!(before.elapsed() < Duration::from_secs(50), "{what}: nobody waits for a napping step");
        let said = push.wait().fails();
        assert_lacks(&said.stderr, "deployed; run serves");
        assert_recovered(&node, &what);
        let legal = if stage == SETTLING { new } else { old };
        node.assert_whole(&[&legal], &what);
    }
}

#[test]
fn a_worker_that_is_stopped_or_killed_is_recovered_at_once_and_the_pusher_is_told() {
    let Some(mut node) = Node::boot() else { return };
    let ways = ["systemctl stop", "systemctl kill --signal=KILL --kill-whom=main", "systemctl kill --signal=KILL"];
    for (stage, how) in [("build", ways[0]), ("upgrade", ways[1]), ("upgrade", ways[0]), ("health", ways[2])] {
        let what = format!("{how} at {stage}");
        let old = node.old();
        let (_, push) = node.push_until(stage);
        let machine = node.server.machine();
        let units = machine.run("systemctl list-units --plain --no-legend 'mc_project-shop-*.service'").ok().stdout;
        let unit = units.split(' ').next().unwrap();
        assert!(unit.starts_with("mc_project-shop-") && units.lines().count() == 1, "{units}");
        machine.run(&format!("{how} {unit}")).ok();
        told_of_the_death(&push.wait(), &old);
        node.server.settle("shop");
        node.assert_whole(&[&old], &what);
    }
}

/// The pusher knows that it failed, what serves, and that nothing is left to do.
#[track_caller]
fn told_of_the_death(push: &Finished, old: &str) {
    let reason = push.rejected("main -> main");
    assert_has(&reason, "the worker died");
    assert_has(&reason, &format!("run serves {}", &old[..10]));
    assert_has(&push.remote_text(), "to try it again: push again, or mc_project deploy shop --commit ");
}
