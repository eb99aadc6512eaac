//! The machines of the tests themselves: what the tests of the whole-machine node rely on.

use std::path::{Path, PathBuf};

use crate::support::{Machine, PROGRAM_AT, assert_has, assert_lacks, sweep, wait_until};

#[test]
fn a_machine_is_a_debian_with_systemd_that_is_reached_over_ssh() {
    let Some(machine) = Machine::boot("node1") else { return };
    assert_eq!(machine.ssh_root("hostname").ok().stdout, "node1\n");
    assert_eq!(machine.ssh_root("cat /proc/1/comm").ok().stdout, "systemd\n");
    assert_eq!(machine.state(), "running", "{}", machine.failed_units());
    // A stranger's key opens nothing.
    machine.ssh_as("root", "mallory", &["true"]).code(255).says("Permission denied");
    // The program is there and can be moved.
    let version = machine.ssh_root(&format!("{PROGRAM_AT} --version")).ok().stdout;
    machine.install_program("/usr/local/bin/mc_project");
    assert_eq!(machine.run("mc_project --version").ok().stdout, version);
}

#[test]
fn units_the_bus_the_journal_and_sessions_work_in_a_machine() {
    let Some(machine) = Machine::boot("node1") else { return };
    let unit = "[Service]\nType=oneshot\nExecStart=/bin/echo the unit spoke\nRemainAfterExit=yes\n";
    machine.write("/etc/systemd/system/spoken.service", unit, 0o644);
    machine.ssh_root("systemctl daemon-reload && systemctl start spoken.service").ok();
    assert_eq!(machine.run("systemctl is-active spoken.service").ok().stdout, "active\n");
    assert_has(&machine.journal("spoken.service"), "the unit spoke");

    machine
        .ssh_root("systemd-run --quiet --wait --pipe --unit=once /bin/sh -c 'cat /proc/self/cgroup; exit 7'")
        .code(7);
    machine.run("systemd-run --quiet --scope --unit=within grep within.scope /proc/self/cgroup").ok();
    machine.run("systemctl start nothing.service").code(5).says("not found");

    machine.useradd("alice");
    let seen = machine.ssh_as("alice", "alice", &["id -un; cat /proc/self/cgroup; ls -d /run/user/$(id -u)"]).ok();
    assert_has(&seen.stdout, "alice\n");
    assert_has(&seen.stdout, "/user.slice/user-1000.slice/session-");
    assert_has(&seen.stdout, "/run/user/1000\n");
    machine.ssh_as("alice", "root", &["true"]).code(255);
}

#[test]
fn what_a_test_runs_without_ssh_belongs_to_the_machine_too() {
    let Some(machine) = Machine::boot("node1") else { return };
    assert_eq!(machine.run("pwd; id -u; echo $HOME").ok().stdout, "/root\n0\n/root\n");
    let groups = machine.run("cat /proc/self/cgroup").ok().stdout;
    assert_lacks(&groups, "..");
    assert_has(&groups, "/init.scope\n");
    machine.run("sleep 600 > /dev/null 2>&1 &").ok();
    assert_eq!(machine.run("pgrep -x sleep | wc -l").ok().stdout, "1\n");
}

#[test]
fn limits_of_units_hold_in_a_machine() {
    let Some(machine) = Machine::boot("node1") else { return };
    let eat = "python3 -c 'print(len(bytearray(200 << 20)))'";
    for how in ["--wait --pipe", "--scope"] {
        let limited = |limit: &str, line: &str| {
            let line = line.replace('\'', "'\\''");
            machine.ssh_root(&format!("systemd-run --quiet {how} -p {limit} sh -c '{line}'"))
        };
        assert_eq!(limited("MemoryMax=400M", eat).ok().stdout, "209715200\n", "{how}");
        assert_eq!(limited("MemoryMax=50M", eat).fails().stdout, "", "{how}");
        let fork = "for n in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait; echo done";
        assert_eq!(limited("TasksMax=40", fork).ok().stdout, "done\n", "{how}");
        assert_eq!(limited("TasksMax=5", fork).fails().stdout, "", "{how}");
    }
}

#[test]
fn a_push_over_ssh_arrives_in_a_machine() {
    let Some(machine) = Machine::boot("node1") else { return };
    machine.useradd("alice");
    machine.ssh_as("alice", "alice", &["git init --quiet --bare --initial-branch=main shop.git"]).ok();
    let work = machine.work_tree("alice", "alice", "/home/alice/shop.git");
    let commit = work.commit("one", &[("a", "1")]);
    work.push(&["main"]).ok();
    let url = machine.url("alice", "/home/alice/shop.git");
    machine.git(machine.home().dir(), "alice", &["clone", "--quiet", &url, "again"]).ok();
    assert_eq!(machine.home().git_text(&machine.home().path("again"), &["rev-parse", "HEAD"]), commit);
    machine.git(work.dir(), "mallory", &["ls-remote", "node"]).code(128).says("Permission denied");
}

#[test]
fn what_is_written_outlives_a_reboot_and_a_power_cut_and_what_runs_does_not() {
    let Some(mut machine) = Machine::boot("node1") else { return };
    for (n, path) in ["/etc/kept", "/srv/kept", "/var/lib/kept", "/run/lost", "/tmp/lost"].into_iter().enumerate() {
        machine.write(path, format!("{n}"), 0o640);
    }
    let seen = |machine: &Machine| {
        machine.run("stat --format='%n %a' /*/kept /var/lib/kept /*/lost 2>/dev/null; cat /etc/kept").stdout
    };
    assert_eq!(seen(&machine), "/etc/kept 640\n/srv/kept 640\n/var/lib/kept 640\n/run/lost 640\n/tmp/lost 640\n0");
    machine.run("systemd-run --quiet --unit=sleeper sleep 600").ok();

    let kept = "/etc/kept 640\n/srv/kept 640\n/var/lib/kept 640\n0";
    let first = machine.leader();
    machine.reboot();
    assert_ne!(machine.leader(), first);
    assert_eq!(seen(&machine), kept);
    assert_eq!(machine.ssh_root("systemctl is-active sleeper").stdout, "inactive\n");
    assert_has(&machine.journal("sleeper.service"), "Stopped");

    machine.run("systemd-run --quiet --unit=sleeper sleep 600").ok();
    machine.pull_plug();
    assert_eq!(std::fs::read_to_string(machine.root().join("srv/kept")).unwrap(), "1");
    machine.plug_in();
    assert_eq!(seen(&machine), kept);
    assert_eq!(machine.ssh_root("systemctl is-active sleeper").stdout, "inactive\n");
    machine.power_cut();
    assert_eq!(seen(&machine), kept);
    assert_eq!(machine.state(), "running", "{}", machine.failed_units());
}

#[test]
fn a_machine_that_turns_itself_off_stays_off_until_it_is_plugged_in() {
    let Some(mut machine) = Machine::boot("node1") else { return };
    machine.write("/srv/kept", "1", 0o600);
    let traces = machine.traces();
    machine.run("systemctl poweroff");
    wait_until("it is off", || !traces.runs());
    machine.pull_plug();
    machine.plug_in();
    assert_eq!(machine.read_text("/srv/kept"), "1");
}

#[test]
fn two_machines_know_nothing_of_one_another_nor_of_the_host() {
    let boot = |name: &'static str| std::thread::spawn(move || Machine::boot(name));
    let both = [boot("node1"), boot("node2")].map(|thread| thread.join().unwrap());
    let [Some(one), Some(two)] = both else { return };
    assert_ne!(one.address(), two.address());
    one.write("/srv/only-here", "1", 0o644);
    one.write("/etc/only-here", "1", 0o644);
    assert!(!two.exists("/srv/only-here") && !two.exists("/etc/only-here"));
    assert_eq!(one.ssh_root("hostname").ok().stdout, "node1\n");
    assert_eq!(two.ssh_root("hostname").ok().stdout, "node2\n");
    // No way leads from one to the other; from each to its own developer one does.
    let knock = |at: String| format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{at}'");
    one.run(&knock(format!("{}/22", two.address()))).fails();
    one.run(&knock(format!("{}/22", one.address()))).ok();
    assert_has(&one.ssh_root("echo $SSH_CONNECTION").ok().stdout, &one.developers_address());

    // The host's /tmp is not theirs, and theirs is not the host's.
    let here = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    let name = here.path().to_str().unwrap();
    assert!(!one.exists(name));
    one.write("/tmp/of-the-machine-only", "", 0o600);
    assert!(!Path::new("/tmp/of-the-machine-only").exists());
    // Nor do their mounts, wires and processes mix with the host's.
    assert_lacks(&std::fs::read_to_string("/proc/self/mountinfo").unwrap(), "mc-machine");
    assert!(!Path::new("/sys/class/net/dev0").exists());
    assert_lacks(&one.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout, "machine.sh");
}

#[test]
fn nothing_is_left_of_a_machine_that_went_away() {
    let Some(machine) = Machine::boot("node1") else { return };
    machine
        .run("mount -t tmpfs tmpfs /mnt && mount --bind /srv /opt && unshare --net --mount sleep 600 & sleep 0.1")
        .ok();
    let traces = machine.traces();
    assert!(traces.runs());
    drop(machine);
    assert_eq!(traces.left(), Vec::<PathBuf>::new());
}

#[test]
fn nothing_is_left_of_a_machine_whose_keeper_was_killed() {
    let Some(mut machine) = Machine::boot("node1") else { return };
    let traces = machine.traces();
    machine.kill_keeper();
    // The kernel ends the machine with its keeper; files and control groups wait for the next boot.
    wait_until("the machine ended", || !traces.runs());
    wait_until("nothing is left", || {
        sweep();
        traces.left().is_empty()
    });
}
