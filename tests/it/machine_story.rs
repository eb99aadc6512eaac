//! The story of the README on real machines, from a second one: a fresh Debian is made a node over the wire, pushed to,
//! broken, read about, rolled back, and loses its power in the middle.

use std::path::Path;
use std::process::Command;

use crate::support::server::{RECEIVER, Server};
use crate::support::service_app::QUEUE;
use crate::support::{Finished, Machine, Running, assert_has, assert_lacks, wait_until, write_list};

const PORT: u16 = 8030;
const TWO: (u16, u16) = (PORT, 2);

/// The program on the developer's machine, with the key of `person`.
fn command(machine: &Machine, person: &str, dir: &Path, args: &[&str]) -> Command {
    let mut command = machine.home().command(env!("CARGO_BIN_EXE_mc_project"));
    command.current_dir(dir).env("GIT_SSH_COMMAND", machine.git_ssh_command(person)).args(args);
    command
}

/// The developer's machine; nobody types anything on the node itself.
struct Desk<'m> {
    machine: &'m Machine,
}

impl Desk<'_> {
    #[track_caller]
    fn root(&self, args: &[&str]) -> Finished {
        let root = format!("root@{}", self.machine.address());
        let home = self.machine.home().path("home");
        Finished::of(command(self.machine, "root", &home, &[&["--node", &root], args].concat()))
    }

    #[track_caller]
    fn prod(&self, args: &[&str]) -> Finished {
        let home = self.machine.home().path("home");
        Finished::of(command(self.machine, "alice", &home, &[&["--node", "prod"], args].concat()))
    }

    #[track_caller]
    fn push(&self, dir: &Path) -> Finished {
        Finished::of(command(self.machine, "alice", dir, &["push", "prod"]))
    }
}

/// Sets a fresh machine up from the developer's, and lets alice in.
#[track_caller]
fn set_up(machine: &Machine) {
    let desk = Desk { machine };
    machine.run("rm /root/mc_project").ok();
    desk.root(&["setup", "--environment", "staging"]).ok().says("this machine is a node");
    desk.root(&["init", "shop"]).ok().says("shop is ready");
    let key = machine.private_key("alice").with_extension("pub");
    desk.root(&["keys", "add", "alice", "--project", "shop", "--role", "admin", "--key", key.to_str().unwrap()]).ok();
    // She administers the machine, too: her key opens root's account.
    let public = format!("{}\n", machine.public_key("alice"));
    machine.write("/root/alice.pub", public, 0o644);
    machine.run("cat /root/alice.pub >> /root/.ssh/authorized_keys").ok();
    let at = machine.address();
    let list = format!("nodes:\n  prod: {{ssh: {RECEIVER}@{at}, admin: root@{at}, project: shop}}\n");
    write_list(machine.home().dir(), &list);
}

impl Server {
    /// What runs is one version, the one that `status` names; its number.
    #[track_caller]
    fn version_that_serves(&self) -> String {
        let serves = self.last("shop").unwrap().serves.unwrap();
        let pages = [self.page(PORT), self.page(PORT + 1)];
        for page in &pages {
            assert_eq!(page.split(' ').nth(3), Some(serves.id.as_str()), "{pages:?} is not what {serves:?} says");
        }
        pages[0].split(' ').next().unwrap().to_string()
    }
}

#[test]
fn a_fresh_machine_is_set_up_pushed_to_broken_and_rolled_back_from_a_second_one() {
    let Some(mut server) = Server::bare() else { return };
    set_up(server.machine());
    let desk = Desk { machine: server.machine() };
    let work = server.work("alice", "shop");
    work.commit_services("1", TWO, QUEUE);
    let told = desk.push(work.dir()).ok();
    assert_has(&told.stdout, "deployed; run serves");
    server.settle("shop");
    assert_eq!(server.version_that_serves(), "1");
    let status = desk.prod(&["status"]).ok().stdout;
    for part in ["web@1", "web@2", "queue", "running"] {
        assert_has(&status, part);
    }
    assert_has(&desk.prod(&["logs", "--service", "web"]).ok().stdout, "version 1 knows");

    // A version that is not well: the push fails, everything is as before, and the mail alone says what happened.
    work.write("sick", "x");
    let sick = work.commit_services("2", TWO, QUEUE);
    let told = desk.push(work.dir()).code(1);
    assert_has(&told.stdout, "rolled back at health");
    server.settle("shop");
    assert_eq!(server.version_that_serves(), "1");
    let told = || server.mails().into_iter().find(|mail| mail.subject.contains("rolled back"));
    wait_until("the mail is there", || told().is_some());
    let mail = told().unwrap().text;
    for part in
        ["rolled back at health", &sick[..10], "GET /healthz at port", "status 500", "version 2 knows", "ssh mc@"]
    {
        assert_has(&mail, part);
    }

    // Mended, then regretted.
    work.git(&["rm", "--quiet", "sick"]).ok();
    work.commit_services("3", TWO, QUEUE);
    desk.push(work.dir()).ok();
    server.settle("shop");
    assert_eq!(server.version_that_serves(), "3");
    desk.prod(&["rollback", "shop", "--yes"]).ok();
    server.settle("shop");
    assert_eq!(server.version_that_serves(), "1");
    let history = desk.prod(&["history"]).ok().stdout;
    for part in ["deployed", "rolled back", "version 3"] {
        assert_has(&history, part);
    }
    desk.prod(&["diff", "shop", "-1"]).ok().says("version");
    let ran = desk.prod(&["run", "shop", "--", "sh", "-c", "echo $MC_PROJECT at $(pwd)"]).ok().stdout;
    assert_eq!(ran, "shop at /srv/projects/shop/run\n");

    // The power goes in the middle of the next one, when it already runs and its upgrade is under way.
    let slow = format!("{QUEUE}stages: {{upgrade: ['touch $MC_DATA/upgrading; sleep 600']}}\n");
    work.commit_services("4", TWO, &slow);
    let pushing = Running::start(command(server.machine(), "alice", work.dir(), &["push", "prod"]));
    wait_until("the upgrade runs", || server.machine().exists("/srv/projects/shop/data/upgrading"));
    server.machine_mut().power_cut();
    wait_until("services run again", || server.listens(PORT) && server.listens(PORT + 1));
    wait_until("the recovery is over", || server.last("shop").is_some_and(|last| !last.open));
    assert_eq!(server.version_that_serves(), "1");
    let lost = pushing.wait();
    assert_ne!(lost.exit_code(), Some(0), "{lost}");
    let desk = Desk { machine: server.machine() };
    desk.prod(&["status"]).ok().says("interrupted").says("running");
    assert!(!server.machine().exists("/srv/projects/shop/data/upgrading"), "the data are as before");
    desk.prod(&["restart", "shop", "web"]).ok();
    assert_eq!(server.version_that_serves(), "1");
    server.assert_sound();
}

#[test]
fn whatever_is_killed_services_run_the_version_that_status_names() {
    let Some(server) = Server::boot("", &["shop"]) else { return };
    server.let_in("alice", "shop", "deploy");
    let work = server.work("alice", "shop");
    work.commit_services("1", TWO, QUEUE);
    work.push(&["main"]).ok();
    server.settle("shop");
    // Each time a next version is pushed, somebody kills something else at another moment.
    let victims = [
        ("build", "kill -KILL $(pgrep -x mc_worker)"),
        ("upgrade", "kill -KILL $(pgrep -x mc_worker)"),
        ("upgrade", "pkill -KILL -u mc-shop"),
        ("post_deploy", "systemctl kill --signal=KILL 'mc_project-shop-*.service'"),
    ];
    for (number, (stage, kill)) in victims.into_iter().enumerate() {
        let gate = format!("touch /srv/projects/shop/data/at{number}; sleep 600");
        let stages = format!("{QUEUE}stages: {{{stage}: ['{gate}']}}\n");
        work.commit_services(&format!("bad{number}"), TWO, &stages);
        let pushing = work.start_push(&["main"]);
        let at = format!("/srv/projects/shop/data/at{number}");
        wait_until("it is there", || server.machine().exists(&at));
        server.machine().run(kill).ok();
        let said = pushing.wait();
        assert_lacks(&said.stderr, "panicked");
        wait_until("it is over", || server.last("shop").is_some_and(|last| !last.open));
        wait_until("services run", || server.listens(PORT) && server.listens(PORT + 1));
        assert_eq!(server.version_that_serves(), "1", "after {kill} at {stage}");
        work.git(&["reset", "--quiet", "--hard", "HEAD~1"]).ok();
    }
    server.assert_sound();
}
