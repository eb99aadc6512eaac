//! What a push of one changed file costs besides the change: programs that are started, and waits for the disk. Counted, not
//! timed: a count is the same on every machine.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::support::{Finished, World, assert_has, wait_until};

/// The calls of these names that succeeded, in the order of their ends: `name(arguments`.
fn calls_of_a_push(world: &World, work: &crate::support::WorkTree<'_>) -> (Vec<String>, Finished) {
    let trace = world.home().path("trace");
    let push = work.push_command(&["main"]);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-z", "-s", "300", "-y", "-e", "trace=execve,fsync,fdatasync,syncfs,write", "-o"]);
    command.arg(&trace).arg(push.get_program()).args(push.get_args()).current_dir(work.dir());
    command.env_clear().envs(push.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // strace itself ends when the last process of the push does, the worker's included.
    let finished = Finished::of(command);
    let text = std::fs::read_to_string(&trace).unwrap();
    let calls = text.lines().filter_map(|line| line.split_once(' ')).map(|(_, call)| call.trim_start().to_string());
    (calls.collect(), finished)
}

fn count(calls: &[String], names: &[&str]) -> usize {
    calls.iter().filter(|call| names.iter().any(|name| call.starts_with(&format!("{name}(")))).count()
}

#[test]
fn a_push_of_one_file_starts_few_programs_and_waits_for_the_disk_a_few_times() {
    let files: Vec<(String, String)> = (0..10).map(|n| (format!("dir/file{n}"), format!("{n}\n"))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let (world, _) = World::serving(&files);
    let work = world.checkout_of("shop");
    work.commit("two", &[("dir/file1", "changed\n")]);
    work.push(&["main"]).ok();
    let commit = work.commit("three", &[("dir/file1", "changed again\n")]);
    let (calls, finished) = calls_of_a_push(&world, &work);
    finished.ok();
    assert_eq!(world.serves("shop"), Some(commit));
    let shown: Vec<&str> = calls.iter().map(String::as_str).filter(|call| !call.starts_with("write(")).collect();
    let shown = shown.join("\n");

    let ours =
        |call: &&String| call.starts_with("execve(") && (call.contains("\"hooks/") || call.contains("/self/exe"));
    let programs = calls.iter().filter(ours).count();
    assert_eq!(programs, 4, "three hooks and the worker:\n{shown}");
    let let_go = calls.iter().position(|call| call.starts_with("write(") && call.contains(r#"\"let_go\""#));
    let let_go = let_go.expect("the pusher is let go");
    let gits = |calls: &[String]| count(calls, &["execve"]) - calls.iter().filter(ours).count();
    let before = &calls[..let_go];
    // git push, its shell, receive-pack, pack-objects, unpack-objects, rev-list and what it looks for; none of ours.
    assert!(gits(before) <= 8, "{} programs of git before the pusher is let go:\n{shown}", gits(before));
    assert!(gits(&calls) <= 9, "{} programs of git:\n{shown}", gits(&calls));

    let syncs = ["fsync", "fdatasync", "syncfs"];
    let (waited, all) = (count(before, &syncs), count(&calls, &syncs));
    assert!(waited <= SYNCS_BEFORE, "{waited} syncs before the pusher is let go:\n{shown}");
    assert!(all <= SYNCS, "{all} syncs:\n{shown}");
    assert!(count(&calls, &["syncfs"]) <= 1, "one sync of the whole file system:\n{shown}");
}

/// Syncs that the pusher waits for, five of them git's own; measured, and a few for other versions of git.
const SYNCS_BEFORE: usize = 31;
/// All of them.
const SYNCS: usize = 62;

#[test]
fn the_pusher_is_let_go_before_the_deliverable_is_packed_and_is_told_of_drift() {
    let (world, _) = World::serving(&[("a", "1\n"), ("b", "1\n")]);
    let work = world.checkout_of("shop");
    std::fs::write(world.run_path("shop", "b"), "by hand\n").unwrap();
    work.commit("two", &[("a", "2\n")]);
    let pushed = work.push(&["main"]).ok();
    assert_has(&pushed.remote_text(), "run was changed by hand");
    assert!(!pushed.remote_text().contains("deliverable"), "{}", pushed.remote_text());
    wait_until("it is packed", || world.mc(&["logs", "shop"]).stdout.contains("deliverable"));
}

/// The processes of this name whose command line names the node.
fn processes_of(world: &World, name: &str) -> Vec<PathBuf> {
    let root = world.root().to_str().unwrap().to_string();
    let is_one = |dir: &PathBuf| {
        std::fs::read_to_string(dir.join("comm")).is_ok_and(|comm| comm.trim() == name)
            && std::fs::read_to_string(dir.join("cmdline")).is_ok_and(|line| line.split('\0').any(|word| word == root))
    };
    std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(is_one).collect()
}

/// Parent, group and session of a process.
fn family(process: &std::path::Path) -> [String; 3] {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap();
    let fields: Vec<String> = stat.rsplit(')').next().unwrap().split_whitespace().map(str::to_string).collect();
    [fields[1].clone(), fields[2].clone(), fields[3].clone()]
}

fn pid(process: &std::path::Path) -> String {
    process.file_name().unwrap().to_str().unwrap().to_string()
}

#[test]
fn worker_and_watcher_stand_alone_and_the_watcher_recovers_at_once() {
    let (world, before) = World::serving(&[("a", "1\n")]);
    let gate = world.home().path("gate");
    let work = world.checkout_of("shop");
    let recipe = format!("stages: {{build: ['touch {0}', 'exec sleep 1000']}}\n", gate.display());
    work.commit("two", &[("mc_project.yaml", &recipe)]);
    let mut command = work.push_command(&["main"]);
    // As a careless library would leave it, and as nohup(1) does.
    let open = std::fs::File::open("/etc/passwd").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&open);
    nix::fcntl::fcntl(&open, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    command.env("MC_CANARY", "x").process_group(0);
    let pushing = crate::support::Running::start(command);
    wait_until("it builds", || gate.exists());
    drop(open);
    let (workers, watchers) = (processes_of(&world, "mc_worker"), processes_of(&world, "mc_watch"));
    assert_eq!((workers.len(), watchers.len()), (1, 1), "{number}");
    let (worker, watcher) = (&workers[0], &watchers[0]);
    assert_eq!(family(worker), [pid(watcher), pid(worker), pid(worker)], "its own group and session");
    let [parent, group, session] = family(watcher);
    assert_eq!([group, session], [pid(watcher), pid(watcher)], "its own group and session");
    let parent = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap();
    assert!(!["proc-receive", "exe", "mc_project"].contains(&parent.trim()), "a child of {parent}");
    for process in [worker, watcher] {
        let links = std::fs::read_dir(process.join("fd")).unwrap().flatten();
        let open: Vec<String> = links
            .filter_map(|e| std::fs::read_link(e.path()).ok())
            .map(|to| to.to_string_lossy().into_owned())
            .collect();
        assert!(!open.iter().any(|target| target == "/etc/passwd"), "{open:?}");
        for number in 0..3 {
            assert_eq!(std::fs::read_link(process.join(format!("fd/{number}"))).unwrap(), PathBuf::from("/dev/null"));
        }
        let environment = std::fs::read_to_string(process.join("environ")).unwrap();
        assert!(!environment.contains("GIT_") && !environment.contains("MC_CANARY"), "{environment}");
    }
    crate::world::kill(pid(worker).parse().unwrap());
    let told = pushing.wait().fails();
    assert_has(&told.stderr, "the worker died");
    assert_eq!(world.serves("shop"), Some(before));
    world.settle("shop");
    assert_eq!(world.newest("shop")["verdict"], "interrupted");
    wait_until("the watcher is gone", || processes_of(&world, "mc_watch").is_empty());
}
