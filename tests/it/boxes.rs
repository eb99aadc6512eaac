//! The boxes that steps run in: views, control groups, the network. With real processes, and as root where only root can.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mc_project::sys::cgroup::{self, Caps, GroupOrder};
use mc_project::sys::mount;
use mc_project::sys::process::{Patience, StepResult, StepStatus, StepWatcher, run_step_patiently};
use mc_project::sys::step_exec::{Bind, Network, Processes, RunAs, StepOrder};

use crate::support::{World, assert_has};
use crate::world::{LONG, processes_with, setup, sh, unique_sleep};

const NOBODY: u32 = 65534;

#[derive(Default)]
struct Lines(String);

impl StepWatcher for Lines {
    fn line(&mut self, line: &[u8]) {
        self.0.push_str(&String::from_utf8_lossy(line));
        self.0.push('\n');
    }
}

fn run_for(order: &StepOrder, timeout: Duration) -> (StepResult, String) {
    let mut lines = Lines::default();
    let patience = Patience { timeout, grace: Duration::from_millis(300), tick: Duration::from_millis(50) };
    let result = run_step_patiently(order, &patience, &mut lines).unwrap();
    (result, lines.0)
}

fn run(order: &StepOrder) -> (StepResult, String) {
    run_for(order, LONG)
}

fn is_root(test: &str) -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        eprintln!("SKIPPED {test}: only root can");
    }
    root
}

/// Whether groups can be limited here; a machine on which they cannot says why, loudly.
fn limits_hold(test: &str) -> bool {
    match cgroup::probe().unwrap() {
        cgroup::Support { memory: Ok(()), processes: Ok(()) } => true,
        support => {
            eprintln!("SKIPPED {test}: {support:?}");
            false
        }
    }
}

fn grouped(script: &str, cwd: &Path, caps: Caps) -> StepOrder {
    let name = format!("it.{}", uuid::Uuid::now_v7().simple());
    StepOrder { group: Some(GroupOrder { name, caps, kept: false }), ..sh(script, cwd) }
}

/// Every group whose name holds the name of the order.
fn groups_of(order: &StepOrder) -> Vec<PathBuf> {
    fn walk(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), name, found);
                if entry.file_name().to_string_lossy().contains(name) {
                    found.push(entry.path());
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &order.group.as_ref().unwrap().name, &mut found);
    found
}

const EATS_200_MB: &str = "echo begun; x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}";

#[test]
fn a_step_that_takes_more_memory_than_it_may_is_killed_and_named() {
    if !limits_hold("memory") {
        return;
    }
    let dir = setup();
    let caps = Caps { memory: Some(64 << 20), processes: None };
    let order = grouped(EATS_200_MB, dir.path(), caps);
    let (result, text) = run(&order);
    assert_eq!((result.status.clone(), text.as_str()), (StepStatus::OutOfMemory { limit: Some(64 << 20) }, "begun\n"));
    assert_eq!(result.words(), "out of memory (limit 64 MiB)");
    assert!(groups_of(&order).is_empty());
    // The control: the same with room.
    let caps = Caps { memory: Some(1 << 30), processes: None };
    let (result, text) = run(&grouped(EATS_200_MB, dir.path(), caps));
    assert_eq!((result.status, text.as_str()), (StepStatus::Ok, "begun\n200000000\n"));
}

#[test]
fn a_part_of_a_step_that_is_killed_for_want_of_memory_is_not_passed_over() {
    if !limits_hold("memory of a part") {
        return;
    }
    let dir = setup();
    let caps = Caps { memory: Some(64 << 20), processes: None };
    let script = format!("(sh -c '{}' || true); exit 0", EATS_200_MB.replace('\'', "'\\''"));
    let (result, _) = run(&grouped(&script, dir.path(), caps));
    assert_eq!(result.status, StepStatus::OutOfMemory { limit: Some(64 << 20) });
}

#[test]
fn a_fork_bomb_stops_at_its_limit_and_leaves_nothing() {
    if !limits_hold("processes") {
        return;
    }
    let dir = setup();
    let nap = unique_sleep();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("(while :; do sleep {nap} & done) || true; read x <> fifo");
    let caps = Caps { memory: None, processes: Some(20) };
    let order = grouped(&script, dir.path(), caps);
    let mut most = 0;
    let seen = std::thread::scope(|scope| {
        let step = scope.spawn(|| run_for(&order, Duration::from_secs(1)));
        while !step.is_finished() {
            most = most.max(processes_with(&nap).len());
            // Others go on meanwhile.
            assert!(std::process::Command::new("true").status().unwrap().success());
            std::thread::sleep(Duration::from_millis(20));
        }
        step.join().unwrap()
    });
    let (result, _) = seen;
    assert!(result.status == StepStatus::Timeout && (10..=20).contains(&most), "{result:?}, {most} processes");
    assert!(result.notes.iter().any(|note| note.contains("the limit of 20 processes was reached")), "{result:?}");
    assert_eq!(processes_with(&nap), Vec::<i32>::new());
    assert!(groups_of(&order).is_empty());
}

#[test]
fn a_daemon_that_forked_twice_and_opened_a_session_ends_with_its_step() {
    if !limits_hold("the end of a group") {
        return;
    }
    let dir = setup();
    let nap = unique_sleep();
    let script = format!("(setsid env -i /bin/sh -c '(setsid sleep {nap} &) ; exit' &) ; sleep 0.3");
    let order = grouped(&script, dir.path(), Caps::default());
    assert_eq!(run(&order).0.status, StepStatus::Ok);
    assert_eq!(processes_with(&nap), Vec::<i32>::new());
    assert!(groups_of(&order).is_empty());
}

#[test]
fn daemons_that_may_stay_keep_their_group_and_a_later_step_finds_it() {
    if !limits_hold("daemons") {
        return;
    }
    let dir = setup();
    let nap = unique_sleep();
    let mut order = grouped(
        &format!("(setsid sleep {nap} >/dev/null 2>&1 &) ; sleep 0.2"),
        dir.path(),
        Caps { memory: Some(256 << 20), processes: Some(50) },
    );
    order.group.as_mut().unwrap().kept = true;
    order.keep_background = true;
    order.output_file = Some(dir.path().join("log"));
    assert_eq!(run(&order).0.status, StepStatus::Ok);
    assert_eq!(processes_with(&nap).len(), 1);
    let groups = groups_of(&order);
    assert!(!groups.is_empty());
    assert_eq!(run(&order).0.status, StepStatus::Ok);
    assert_eq!((processes_with(&nap).len(), groups_of(&order)), (2, groups.clone()));
    cgroup::remove_leftovers(&order.group.as_ref().unwrap().name).unwrap();
    assert_eq!((processes_with(&nap).len(), groups_of(&order)), (2, groups));
    processes_with(&nap).into_iter().for_each(crate::world::kill);
    crate::world::wait_until("the daemons are gone", || processes_with(&nap).is_empty());
    order.argv = sh("true", dir.path()).argv;
    crate::world::wait_until("the last step removes the empty group", || {
        run(&order);
        groups_of(&order).is_empty()
    });
}

#[test]
fn what_a_killed_worker_leaves_in_its_groups_is_found_by_name() {
    if !limits_hold("leftovers") {
        return;
    }
    let dir = setup();
    let caps = Caps { memory: Some(256 << 20), processes: Some(50) };
    let order = grouped("", dir.path(), caps);
    let wanted = order.group.clone().unwrap();
    let (group, _) = cgroup::Group::make(&wanted).unwrap();
    let group = group.unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    for door in group.doors() {
        std::fs::write(door, child.id().to_string()).unwrap();
    }
    // As if the worker had been killed: nobody removes the group.
    std::mem::forget(group);
    assert!(!groups_of(&order).is_empty());
    cgroup::remove_leftovers("another.").unwrap();
    assert!(child.try_wait().unwrap().is_none());
    cgroup::remove_leftovers(&wanted.name).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(groups_of(&order).is_empty());
}

/// A listener of ours, and a script that succeeds if it can talk to it.
fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, format!("exec 3<>/dev/tcp/127.0.0.1/{port}; echo hello >&3"))
}

fn bash(script: &str, cwd: &Path) -> StepOrder {
    let mut order = sh("", cwd);
    order.argv = ["/bin/bash", "-euc", script].map(Into::into).into();
    order
}

#[test]
fn a_step_without_network_reaches_nobody_not_even_on_loopback() {
    let dir = setup();
    let (listener, script) = listener();
    let mut order = bash(&script, dir.path());
    assert_eq!(run(&order).0.status, StepStatus::Ok);
    let mut text = String::new();
    listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
    order.view.network = Network::Off;
    let (result, text) = run(&order);
    if let StepStatus::CouldNotStart(reason) = &result.status {
        assert!(!nix::unistd::Uid::effective().is_root(), "{reason}");
        assert!(reason.contains("namespace"), "{reason}");
        eprintln!("SKIPPED network: {reason}");
        return;
    }
    assert!(matches!(result.status, StepStatus::Exit(_)) && text.contains("refused"), "{result:?} {text}");
    // Its own loopback is up: what a test suite starts, it can reach.
    let devices =
        "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; cat /sys/class/net/lo/operstate 2>/dev/null || true
        ls /proc/net/if_inet6 >/dev/null; grep -c 127.0.0.1 /proc/net/fib_trie";
    let mut order = bash(devices, dir.path());
    order.view.network = Network::Off;
    let (_, text) = run(&order);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0] == "lo" && lines.last().unwrap().parse::<u32>().unwrap() > 0, "{text}");
    assert!(!lines.iter().any(|line| line.starts_with("eth")), "{text}");
}

#[test]
fn a_step_has_its_own_tmp_and_shared_memory() {
    if !is_root("tmp") {
        return;
    }
    let dir = setup();
    // Below a directory that stays visible.
    let home = tempfile::Builder::new().prefix("mc-it-").tempdir_in("/srv").unwrap();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let tmp = home.path().join("tmp");
    std::fs::create_dir(&tmp).unwrap();
    std::os::unix::fs::chown(&tmp, Some(NOBODY), Some(NOBODY)).unwrap();
    std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o700)).unwrap();
    let host = dir.path().join("host");
    std::fs::write(&host, "x").unwrap();
    let script = format!(
        "test ! -e {}; echo mine > /tmp/mine; cat /var/tmp/mine; ls -A /dev/shm; \
         head -c 3000000 /dev/zero > /dev/shm/big || echo full; stat -c %s /dev/shm/big",
        host.display()
    );
    let mut order = sh(&script, home.path());
    order.view.binds =
        ["/tmp", "/var/tmp"].map(|at| Bind { source: tmp.clone(), at: at.into(), read_only: false }).into();
    order.view.shm = Some(1 << 20);
    order.run_as = Some(RunAs { uid: NOBODY, gid: NOBODY, groups: Vec::new() });
    let (result, text) = run(&order);
    assert_eq!(result.status, StepStatus::Ok, "{text}");
    assert!(text.starts_with("mine\n") && text.ends_with("full\n1048576\n"), "{text}");
    assert_eq!(std::fs::read_to_string(tmp.join("mine")).unwrap(), "mine\n");
    assert!(host.exists() && !Path::new("/tmp/mine").exists() && !Path::new("/dev/shm/big").exists());
    // Flags of a mount for a step: nothing on it gives privileges.
    order.argv = sh("grep -E ' /(var/)?tmp ' /proc/self/mountinfo", home.path()).argv;
    let (_, text) = run(&order);
    assert!(text.lines().count() == 2 && text.lines().all(|line| line.contains("nosuid,nodev")), "{text}");
}

#[test]
fn a_step_of_another_user_sees_no_process_of_ours() {
    if !is_root("hidden processes") {
        return;
    }
    if let Err(reason) = mount::probe_hidden_processes().unwrap() {
        eprintln!("SKIPPED hidden processes: {reason}");
        return;
    }
    let dir = setup();
    let script = "for p in /proc/[0-9]*; do stat -c %u $p; done 2>/dev/null | sort -u; test ! -e /proc/1";
    let mut order = sh(script, Path::new("/"));
    order.run_as = Some(RunAs { uid: NOBODY, gid: NOBODY, groups: Vec::new() });
    let (result, text) = run(&order);
    assert!(result.status == StepStatus::Exit(1) && text.starts_with("0\n"), "the control: {text}");
    order.view.processes = Processes::Own;
    let (result, text) = run(&order);
    assert_eq!((result.status, text.as_str()), (StepStatus::Ok, "65534\n"));
    // The machine's own view is as it was.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("hidepid=invisible"));
    drop(dir);
}

#[test]
#[ignore = "run by the next test in a process without privileges"]
fn unprivileged_part() {
    let Some(path) = std::env::var_os("MC_IT_EXECUTABLE") else { return };
    mc_project::sys::process::set_executable(Path::new(&path));
    let dir = tempfile::tempdir().unwrap();
    // A limit that nobody enforces is told, and the step runs: an unprivileged node has no groups of its own.
    let caps = Caps { memory: Some(256 << 20), processes: Some(100) };
    let (result, text) = run(&grouped("echo ran", dir.path(), caps));
    assert_eq!((result.status, text.as_str()), (StepStatus::Ok, "ran\n"));
    let support = cgroup::probe().unwrap();
    assert_eq!(result.unenforced, support.missing(&caps));
    assert!(support.memory.is_ok() || result.unenforced.unwrap().contains("do not hold here"));
    cgroup::remove_leftovers("it.none").unwrap();
    // The network is cut, or the step is refused: it never runs with it.
    let (listener, script) = listener();
    listener.set_nonblocking(true).unwrap();
    let mut order = bash(&script, dir.path());
    order.view.network = Network::Off;
    let (result, _) = run(&order);
    assert!(!result.status.is_ok() && listener.accept().is_err(), "{result:?}");
    if mount::probe_namespace(dir.path()).unwrap().is_ok() {
        assert!(matches!(result.status, StepStatus::Exit(_)), "{result:?}");
        eprintln!("cut off");
    }
    // Hidden processes are root's to give: the step runs with what there is.
    let mut order = sh("id -u", dir.path());
    order.view.processes = Processes::Own;
    assert_eq!(run(&order).1, "65534\n");
    eprintln!("boxed unprivileged");
}

#[test]
fn without_privileges_nothing_is_promised_that_does_not_hold() {
    let Some(output) = crate::process::again_without_privileges("boxes::unprivileged_part") else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("boxed unprivileged"), "{text}");
}

/// A whole-machine node below the private root, whose project `shop` runs as `nobody` and whose receiver is `daemon`;
/// `None` without root, said loudly.
fn machine(test: &str, node_yaml: &str) -> Option<World> {
    if !is_root(test) {
        return None;
    }
    let world = World::with_config(node_yaml);
    let root = world.root();
    for dir in [world.home().dir(), root.as_path()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let system = root.join("etc/mc_project/system.json");
    std::fs::write(system, "{\"format\": 1, \"receiver\": \"daemon\"}").unwrap();
    world.mc(&["init", "shop"]).ok();
    Some(world)
}

fn shop_of_nobody(more: &str) -> String {
    format!("projects:\n  shop:\n    user: nobody\n{more}")
}

#[test]
fn on_a_whole_machine_node_every_step_is_the_project_in_a_room_of_its_own() {
    let Some(world) = machine("a machine", &shop_of_nobody("")) else { return };
    let host = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    let seen = format!(
        "test ! -e {}; echo $(id -un) $(cat /tmp/kept 2>/dev/null) $(ls -d /proc/1 2>/dev/null)",
        host.path().display()
    );
    let recipe = format!(
        "stages:\n  build:\n    - {seen:?}\n    - 'echo of-a-build > /tmp/kept'\n  post_build: ['cat /tmp/kept > told']\n  upgrade: [{seen:?}, 'echo of-a-service > /tmp/kept']\n"
    );
    let work = world.clone_of("shop");
    for n in ["1", "2"] {
        work.commit("a version", &[("mc_project.yaml", &recipe), ("n", n)]);
        let push = work.push(&["main"]).ok();
        // A build begins with an empty /tmp; what services keep there stays.
        let log = world.mc(&["logs", "shop"]).ok().stdout;
        let lines: Vec<&str> = log.lines().filter(|line| line.trim().starts_with("nobody")).map(str::trim).collect();
        let kept = if n == "1" { "nobody" } else { "nobody of-a-service" };
        let hidden = mount::probe_hidden_processes().unwrap().is_ok();
        assert!(!hidden || lines == ["nobody", kept], "{log}\n{push}");
        assert_eq!(world.run_text("shop", "told"), "of-a-build\n");
    }
    assert!(!Path::new("/tmp/kept").exists());
    let kept = world.project("shop").join("build/service-tmp/kept");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "of-a-service\n");
    // A command by hand is in the same room, and its exit code is ours.
    let run = world.mc(&["run", "shop", "--", "sh", "-c", "id -un; cat /tmp/kept; test ! -e /proc/1; exit 7"]).code(7);
    assert_eq!(run.stdout, "nobody\nof-a-service\n");
}

#[test]
fn a_recipe_that_wants_to_be_root_is_refused_before_anything_changes() {
    let yaml = "stages:\n  build: ['true']\n  upgrade:\n    - {run: 'id -u > $MC_DATA/who', user: root}\n";
    let Some(world) = machine("root", &shop_of_nobody("")) else { return };
    let before = world.unchangeable("shop");
    let work = world.clone_of("shop");
    work.commit("root", &[("mc_project.yaml", yaml)]);
    let push = work.push(&["main"]).code(1);
    assert_has(&push.remote_text(), "mc_project.yaml:4:37: `user: root` is not allowed to this project");
    before.assert_same(&world.unchangeable("shop"), "the node");
    assert_eq!(world.serves("shop"), None);
    world.configure(&shop_of_nobody("    trust: root\n"));
    let push = work.push(&["main"]).ok();
    assert_has(&push.remote_text(), "AS ROOT (trust: root in node.yaml)");
    assert_eq!(std::fs::read_to_string(world.project("shop").join("data/who")).unwrap(), "0\n");
}

#[test]
fn more_than_the_node_allows_is_refused_with_both_numbers_and_what_is_allowed_holds() {
    if !limits_hold("limits of a recipe") {
        return;
    }
    let world = World::with_config("steps: {memory: 2G}\nprojects: {shop: {steps: {memory: 64M, timeout: 1m}}}\n");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    work.commit("much", &[("mc_project.yaml", "limits: {memory: 1G}\nstages: {build: ['true']}\n")]);
    let push = work.push(&["main"]).code(1);
    assert_has(
        &push.remote_text(),
        "mc_project.yaml:1:10: `memory: 1 GiB` is more than this node allows a step: 64 MiB",
    );
    world.mc(&["history", "shop"]).ok();
    work.commit("long", &[("mc_project.yaml", "stages: {build: [{run: 'true', timeout: 2m}]}\n")]);
    assert_has(&work.push(&["main"]).code(1).remote_text(), "`timeout: 2m` is more than this node allows a step: 1m");
    // A recipe that says nothing has what the node allows.
    let recipe = format!("stages:\n  build:\n    - {EATS_200_MB:?}\n");
    work.commit("hungry", &[("mc_project.yaml", &recipe)]);
    let push = work.push(&["main"]).code(1);
    assert_has(&push.remote_text(), "out of memory (limit 64 MiB)");
    assert_has(&push.remote_text(), "64 MiB is the node's cap");
    // And what asks for less has less.
    let recipe = format!("stages:\n  build:\n    - {{run: {EATS_200_MB:?}, memory: 32M}}\n");
    work.commit("modest", &[("mc_project.yaml", &recipe)]);
    let push = work.push(&["main"]).code(1);
    assert_has(&push.remote_text(), "out of memory (limit 32 MiB)");
    assert_has(&push.remote_text(), "this node allows at most 64 MiB");
}

#[test]
fn network_off_in_a_recipe_keeps_one_step_from_it_and_no_other() {
    let world = World::with_shop();
    let (listener, script) = listener();
    let script = format!("bash -c '{script}'");
    let work = world.clone_of("shop");
    let recipe = format!("stages:\n  build:\n    - {script:?}\n    - {{run: {script:?}, network: off}}\n");
    work.commit("alone", &[("mc_project.yaml", &recipe)]);
    let push = work.push(&["main"]).code(1);
    listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "the second step came through");
    let text = push.remote_text();
    let refused = text.contains("Connection refused") || text.contains("cannot keep the step from the network");
    assert!(refused, "{text}");
}
