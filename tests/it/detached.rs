//! Detached processes, leftovers, and the users of a tree, with real processes.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use mc_project::sys::process::{self, DetachedOrder, StepStatus, StepWatcher, base_environment};

use crate::world::{Blind, LONG, kill, processes_with, setup, sh, two_trees, unique_sleep, wait_until};

fn detached(script: &str) -> DetachedOrder {
    DetachedOrder { args: vec![script.into()], env: base_environment(Path::new("/")), ..DetachedOrder::default() }
}

#[test]
fn a_detached_process_gets_its_input_and_is_seen_to_end_with_its_children() {
    let dir = setup();
    let log = dir.path().join("log");
    let mut order = detached("cat; env | grep -c . ; (sleep 1; echo child) & exit 3");
    order.input = b"request\n".to_vec();
    order.log = Some(log.clone());
    let begin = Instant::now();
    let process = process::spawn_detached(&order).unwrap();
    assert!(!process.wait_gone(Duration::from_millis(100)).unwrap());
    assert!(process.wait_gone(LONG).unwrap());
    assert!(begin.elapsed() >= Duration::from_secs(1));
    let text = std::fs::read_to_string(&log).unwrap();
    // The shell adds PWD (and what it may like more) to the six.
    assert!(text.starts_with("request\n") && text.ends_with("child\n"), "{text}");
}

#[test]
fn a_watcher_can_wait_for_its_detached_child() {
    let _dir = setup();
    let mut order = detached("exit 7");
    order.as_child = true;
    let mut process = process::spawn_detached(&order).unwrap();
    assert_eq!(process.wait_child().unwrap(), StepStatus::Exit(7));
    assert!(process.wait_gone(LONG).unwrap());
    let mut orphan = process::spawn_detached(&detached("exit 7")).unwrap();
    assert!(orphan.wait_child().is_err());
}

#[test]
fn a_detached_process_survives_its_starter_and_signals_to_its_group() {
    let dir = setup();
    let file = dir.path().join("pid");
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "detached::starter_part", "--include-ignored"])
        .env("MC_IT_PID", &file)
        .process_group(0)
        .spawn()
        .unwrap();
    wait_until("it is started", || std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
    let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    process::kill_group(starter.id().cast_signed(), nix::sys::signal::Signal::SIGKILL).unwrap();
    starter.wait().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let own = pid.to_string();
    assert_ne!(fields[0], "Z");
    assert_eq!((fields[2], fields[3]), (own.as_str(), own.as_str()), "its own group and session");
    let link = |e: std::fs::DirEntry| std::fs::read_link(e.path()).unwrap().to_string_lossy().into_owned();
    let open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().map(link).collect();
    assert_eq!(open.iter().filter(|target| target.starts_with("socket:")).count(), 1, "{open:?}");
    assert_eq!(open.iter().filter(|target| *target == "/dev/null").count(), 3, "{open:?}");
    assert_eq!(open.len(), 4, "{open:?}");
    kill(pid);
}

#[test]
#[ignore = "run by the test before in a process that is killed"]
fn starter_part() {
    let Some(file) = std::env::var_os("MC_IT_PID") else { return };
    let _dir = setup();
    let process = process::spawn_detached(&detached("exec sleep 1000")).unwrap();
    std::fs::write(file, format!("{}\n", process.pid())).unwrap();
    std::thread::sleep(LONG);
}

#[test]
fn a_step_dies_with_its_worker() {
    let dir = setup();
    let file = dir.path().join("pid");
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "detached::worker_part", "--include-ignored"])
        .env("MC_IT_PID", &file)
        .spawn()
        .unwrap();
    wait_until("the step runs", || std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
    let seconds = std::fs::read_to_string(&file).unwrap();
    wait_until("it sleeps", || processes_with(&format!("sleep {}", seconds.trim())).len() == 1);
    worker.kill().unwrap();
    worker.wait().unwrap();
    wait_until("the step is gone", || processes_with(&format!("sleep {}", seconds.trim())).is_empty());
}

#[test]
#[ignore = "run by the test before in a process that is killed"]
fn worker_part() {
    let Some(file) = std::env::var_os("MC_IT_PID") else { return };
    let dir = setup();
    let seconds = unique_sleep();
    let script = format!("echo {seconds} > {}; exec sleep {seconds}", Path::new(&file).display());
    process::run_step(&sh(&script, dir.path()), LONG, &mut Blind).unwrap();
}

#[test]
fn a_step_does_not_touch_what_was_detached_before() {
    /// Tries to start a process of ours while the step runs.
    struct Starter(Option<String>);
    impl StepWatcher for Starter {
        fn line(&mut self, _line: &[u8]) {
            self.0 = process::spawn_detached(&detached("true")).err().map(|error| error.to_string());
        }
    }
    let dir = setup();
    let seconds = unique_sleep();
    let mut child = detached(&format!("exec sleep {seconds}"));
    child.as_child = true;
    let child = process::spawn_detached(&child).unwrap();
    let script = format!("(setsid sh -c 'sleep 0.6; setsid sleep {seconds} &' &) ; exec sleep {seconds}");
    let orphan = process::spawn_detached(&detached(&script)).unwrap();
    let mut starter = Starter(None);
    process::run_step(&sh("echo one; sleep 1", dir.path()), LONG, &mut starter).unwrap();
    assert!(starter.0.unwrap().contains("while a step runs"));
    process::run_step(&sh("true", dir.path()), LONG, &mut Blind).unwrap();
    for process in [&child, &orphan] {
        assert!(!process.wait_gone(Duration::from_millis(100)).unwrap());
    }
    let sleeping = || processes_with(&format!("sleep {seconds}"));
    wait_until("all sleep", || sleeping().len() == 3);
    sleeping().into_iter().for_each(kill);
}

#[test]
fn the_leftovers_of_a_killed_worker_are_found_by_their_marker() {
    let _dir = setup();
    let name = unique_sleep();
    let marker = format!("deployment-{name}.1");
    let spawn = |marker: &str| -> Child { Command::new("sleep").arg(&name).env("MC_STEP", marker).spawn().unwrap() };
    let (mut ours, mut other) = (spawn(&marker), spawn("another.1"));
    wait_until("both run", || processes_with(&name).len() == 2);
    let reaper = std::thread::spawn(move || ours.wait().unwrap());
    assert!(process::kill_marked(&format!("deployment-{name}.")).unwrap().is_empty());
    assert!(!reaper.join().unwrap().success());
    assert!(other.try_wait().unwrap().is_none());
    other.kill().unwrap();
    other.wait().unwrap();
}

/// Runs a shell script that says `ready` and then waits; ends with the value.
struct Helper(Child);

impl Helper {
    fn new(script: &str, cwd: &Path) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-euc", script]).current_dir(cwd).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut text = [0_u8; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut text).unwrap();
        assert_eq!(&text, b"ready\n");
        Self(child)
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_way_of_using_a_tree_is_found_and_its_neighbours_are_not() {
    let dir = setup();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let tree = root.join("tree");
    std::fs::create_dir_all(tree.join("sub dir")).unwrap();
    std::fs::create_dir(root.join("tree2")).unwrap();
    std::fs::write(tree.join("file"), "x").unwrap();
    std::fs::copy("/bin/sleep", tree.join("sleep")).unwrap();
    assert!(process::processes_using(&tree).unwrap().found.is_empty());
    let wait = "echo ready; exec sleep 600";
    let helpers = [
        (Helper::new(wait, &tree.join("sub dir")), "working directory"),
        (Helper::new(&format!("exec 7< {}/file; {wait}", tree.display()), &root), "open file"),
        (Helper::new(&format!("echo ready; exec {}/sleep 600", tree.display()), &root), "program"),
        (Helper::new(wait, &root.join("tree2")), ""),
        (Helper::new(&format!("exec 7> {0}/gone; rm {0}/gone; {wait}", tree.display()), &root), ""),
    ];
    let found = |helper: &Helper| {
        let users = process::processes_using(&tree).unwrap();
        users.found.into_iter().find(|user| user.pid == helper.pid()).map(|user| user.how)
    };
    wait_until("the program runs", || found(&helpers[2].0).is_some());
    for (helper, how) in &helpers {
        let found = found(helper);
        assert_eq!(found.is_some(), !how.is_empty(), "{found:?}");
        assert!(found.is_none_or(|text| text.starts_with(how) && text.contains(tree.to_str().unwrap())));
    }
    // We ourselves are left out.
    let _open = std::fs::File::open(tree.join("file")).unwrap();
    let users = process::processes_using(&tree).unwrap();
    assert!(users.found.iter().all(|user| user.pid != std::process::id().cast_signed()));
}

#[test]
fn a_tree_is_found_where_another_mount_namespace_shows_it() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let dir = setup();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let (old, new) = two_trees(&root);
    let script = "exec unshare -m sh -euc 'mount --bind candidate run; cd run; echo ready; exec sleep 600'";
    let helper = Helper::new(script, &root);
    let uses = |tree: &Path| process::processes_using(tree).unwrap().found.iter().any(|user| user.pid == helper.pid());
    assert!(uses(&new));
    let _ = old;
}
