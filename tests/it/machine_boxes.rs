//! Boxes where systemd runs: workers are units, groups are systemd's to hand over, `/tmp` is the machine's.

use crate::support::{Finished, Machine, assert_has, assert_lacks, wait_until};

/// A machine that was set up, with a project `shop` whose node has these lines in `node.yaml`.
fn with_shop(node_yaml: &str) -> Option<Machine> {
    let machine = Machine::boot("node1")?;
    machine.install_program("/usr/local/bin/mc_project");
    machine.write("/etc/mc_project/node.yaml", node_yaml, 0o644);
    machine.ssh_root("mc_project setup && mc_project init shop").ok();
    Some(machine)
}

/// Pushes a recipe as root, over ssh: the old habit.
#[track_caller]
fn push(machine: &Machine, recipe: &str) -> Finished {
    let work = machine.work_tree("root", "root", "/srv/projects/shop/git/project");
    let _ = work.git(&["pull", "--quiet", "node", "main"]);
    work.commit("a version", &[("mc_project.yaml", recipe)]);
    work.push(&["main"])
}

#[test]
fn a_step_in_a_unit_has_its_limits_and_its_own_tmp() {
    let Some(machine) = with_shop("steps: {processes: 100}\n") else { return };
    machine.write("/tmp/of-the-machine", "", 0o644);
    machine.write("/var/tmp/of-the-machine", "", 0o644);
    let recipe = "stages:
  build:
    - id -un; ls -A /tmp /var/tmp /dev/shm; cat /proc/self/cgroup; ls -d /proc/1 || echo hidden
    - {run: \"python3 -c 'print(len(bytearray(200 << 20)))'\", memory: 400M}
  start:
    - (setsid sleep 7777 > /dev/null 2>&1 &); sleep 0.2
  stop:
    - pkill -x sleep || true
";
    let pushed = push(&machine, recipe).ok();
    let log = machine.ssh_root("mc_project logs shop").ok().stdout;
    assert_has(&log, "mc-shop\n");
    assert_has(&log, "/mc-step.");
    assert_has(&log, "hidden\n");
    assert_has(&log, "209715200\n");
    assert_lacks(&log, "of-the-machine");
    assert_lacks(&log, "does not hold here");
    assert_lacks(&pushed.stderr, "do not hold here");
    // What a start step left behind lives on, with the project's limits, and nothing else is left of the groups.
    assert_eq!(machine.run("pgrep -cx sleep").ok().stdout, "1\n");
    assert_has(&machine.run("cat /proc/$(pgrep -x sleep)/cgroup").ok().stdout, "/mc-service.shop.");
    assert_eq!(machine.run("find /sys/fs/cgroup -name 'mc-step.*' | wc -l").ok().stdout, "0\n");

    let hungry = "stages: {build: [{run: \"python3 -c 'print(len(bytearray(200 << 20)))'\", memory: 64M}]}\n";
    let pushed = push(&machine, hungry).code(1);
    assert_has(&pushed.remote_text(), "out of memory (limit 64 MiB)");
    let many = "stages: {build: ['for n in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait']}\nlimits: {processes: 5}\n";
    let pushed = push(&machine, many).code(1);
    assert_has(&pushed.remote_text(), "the limit of 5 processes was reached");
    assert_eq!(machine.run("pgrep -cx sleep").ok().stdout, "1\n");
}

#[test]
fn a_killed_worker_leaves_no_process_and_no_group() {
    let Some(machine) = with_shop("{}\n") else { return };
    let recipe =
        "stages:\n  build:\n    - (setsid env -i sleep 7777 > /dev/null 2>&1 &); touch $MC_BUILD/tree/up; sleep 600\n";
    std::thread::scope(|scope| {
        let pushed = scope.spawn(|| push(&machine, recipe));
        wait_until("the step runs", || machine.run("pgrep -cx sleep").stdout.trim() == "2");
        machine.run("pkill -KILL -x mc_worker").ok();
        assert_has(&pushed.join().unwrap().code(1).remote_text(), "died");
    });
    wait_until("nothing is left", || {
        machine.run("pgrep -cx sleep").stdout == "0\n"
            && machine.run("find /sys/fs/cgroup -name 'mc-step.*' | wc -l").stdout == "0\n"
    });
}
