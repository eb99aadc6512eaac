//! Steps, with real processes.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mc_project::sys::mount;
use mc_project::sys::process::{
    self, LINE_LIMIT, Patience, StepResult, StepStatus, StepWatcher, Tick, run_step_patiently,
};
use mc_project::sys::step_exec::{Bind, Limits, RunAs, StepOrder};

use crate::world::{LONG, kill, processes_with, setup, sh, two_trees, unique_sleep, wait_until};

/// Keeps all output; cancels when a line says so.
#[derive(Default)]
struct Keeper {
    lines: Vec<Vec<u8>>,
    ticks: usize,
    cancel_after: Option<usize>,
}

impl Keeper {
    fn text(&self) -> String {
        self.lines.iter().map(|line| String::from_utf8_lossy(line) + "\n").collect()
    }
}

impl StepWatcher for Keeper {
    fn line(&mut self, line: &[u8]) {
        self.lines.push(line.to_vec());
    }

    fn tick(&mut self) -> Tick {
        self.ticks += 1;
        if self.cancel_after.is_some_and(|n| self.ticks >= n) { Tick::Cancel } else { Tick::GoOn }
    }
}

fn run_with(order: &StepOrder, timeout: Duration, keeper: &mut Keeper) -> StepResult {
    let patience = Patience { timeout, grace: Duration::from_millis(300), tick: Duration::from_millis(50) };
    run_step_patiently(order, &patience, keeper).unwrap()
}

fn run(order: &StepOrder) -> (StepStatus, String) {
    let mut keeper = Keeper::default();
    let result = run_with(order, LONG, &mut keeper);
    assert!(result.survivors.is_empty());
    (result.status, keeper.text())
}

#[test]
fn a_step_ends_with_its_own_status() {
    let dir = setup();
    assert_eq!(run(&sh("echo hello; echo oops >&2", dir.path())), (StepStatus::Ok, "hello\noops\n".into()));
    assert_eq!(run(&sh("exit 2", dir.path())).0, StepStatus::Exit(2));
    assert_eq!(run(&sh("exit 125", dir.path())).0, StepStatus::Exit(125));
    assert_eq!(run(&sh("kill -SEGV $$", dir.path())).0, StepStatus::Signal(11));
    assert_eq!(run(&sh("pwd", dir.path())).1.trim(), dir.path().to_str().unwrap());
}

#[test]
fn a_step_that_cannot_start_says_why() {
    let dir = setup();
    let cases: [(&str, &[u8], u32, &str); 4] = [
        ("no-such-program-here", b"", 0, "No such file"),
        ("./script", b"echo no shebang", 0o755, "a script needs a first line like #!/bin/sh"),
        ("./script", b"#!/no/interpreter\n", 0o755, "the interpreter that its first line names"),
        ("./script", b"#!/bin/sh\n", 0o644, "Permission denied"),
    ];
    for (program, text, mode, expected) in cases {
        std::fs::write(dir.path().join("script"), text).unwrap();
        std::fs::set_permissions(dir.path().join("script"), std::fs::Permissions::from_mode(mode)).unwrap();
        let order = StepOrder { argv: vec![program.into()], ..sh("", dir.path()) };
        let StepStatus::CouldNotStart(reason) = run(&order).0 else { panic!("{program} started") };
        assert!(reason.contains(program) && reason.contains(expected), "{reason}");
    }
    let StepStatus::CouldNotStart(reason) = run(&sh("true", &dir.path().join("none"))).0 else { panic!() };
    assert!(reason.contains("cannot open directory") && reason.contains("none"), "{reason}");
    let nul = StepOrder { argv: vec!["/bin/true".into(), "a\0b".into()], ..sh("", dir.path()) };
    assert!(matches!(run(&nul).0, StepStatus::CouldNotStart(_)));
}

#[test]
fn a_step_that_ignores_term_and_flees_into_another_session_leaves_nothing() {
    let dir = setup();
    let (one, two, three) = (unique_sleep(), unique_sleep(), unique_sleep());
    let script = format!(
        "trap '' TERM; (setsid sleep {one} &) ; (setsid env -i /bin/sh -c 'setsid sleep {two} & exit' &) ; echo up; sleep {three}"
    );
    let begin = Instant::now();
    let mut keeper = Keeper::default();
    let result = run_with(&sh(&script, dir.path()), Duration::from_secs(1), &mut keeper);
    assert_eq!((result.status.clone(), keeper.text().as_str()), (StepStatus::Timeout, "up\n"));
    assert_eq!(result.words(), "timeout");
    assert!(result.survivors.is_empty());
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    for seconds in [one, two, three] {
        assert_eq!(processes_with(&seconds), Vec::<i32>::new());
    }
}

#[test]
fn what_a_successful_step_leaves_behind_is_killed_and_its_pipe_is_not_waited_for() {
    let dir = setup();
    let (one, two) = (unique_sleep(), unique_sleep());
    let script = format!("sleep {one} & (setsid env -i sleep {two} &) ; echo done");
    let begin = Instant::now();
    assert_eq!(run(&sh(&script, dir.path())), (StepStatus::Ok, "done\n".into()));
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(processes_with(&one), Vec::<i32>::new());
    assert_eq!(processes_with(&two), Vec::<i32>::new());
}

#[test]
fn a_daemon_of_a_step_that_may_keep_it_lives_on_and_goes_on_writing() {
    let dir = setup();
    let log = dir.path().join("start.log");
    std::fs::write(&log, "of an earlier step\n").unwrap();
    let script = "echo begun; (setsid sh -c 'sleep 1; echo later; exec sleep 777123' &) ; echo done";
    let mut order = sh(script, dir.path());
    order.keep_background = true;
    order.output_file = Some(log.clone());
    assert_eq!(run(&order), (StepStatus::Ok, "begun\ndone\n".into()));
    // The next step must not take it for its own.
    assert_eq!(run(&sh("true", dir.path())).0, StepStatus::Ok);
    wait_until("the daemon writes", || std::fs::read_to_string(&log).unwrap().ends_with("begun\ndone\nlater\n"));
    assert_eq!(run(&sh("true", dir.path())).0, StepStatus::Ok);
    let daemons = processes_with("sleep 777123");
    assert_eq!(daemons.len(), 1);
    kill(daemons[0]);
}

#[test]
fn a_step_that_may_keep_daemons_but_hangs_loses_them() {
    let dir = setup();
    let (one, two) = (unique_sleep(), unique_sleep());
    let mut order = sh(&format!("(setsid sleep {one} &) ; sleep {two}"), dir.path());
    order.keep_background = true;
    let result = run_with(&order, Duration::from_millis(700), &mut Keeper::default());
    assert_eq!(result.status, StepStatus::Timeout);
    assert_eq!(processes_with(&one), Vec::<i32>::new());
    assert_eq!(processes_with(&two), Vec::<i32>::new());
}

#[test]
fn a_person_can_cancel_a_step() {
    let dir = setup();
    let mut keeper = Keeper { cancel_after: Some(3), ..Keeper::default() };
    let result = run_with(&sh("trap 'echo bye; exit 0' TERM; sleep 50 & wait", dir.path()), LONG, &mut keeper);
    assert_eq!((result.status, keeper.text().as_str()), (StepStatus::Cancelled, "bye\n"));
    assert!(keeper.ticks >= 3 && result.duration < Duration::from_secs(10));
}

/// Counts, and keeps nothing.
#[derive(Default)]
struct Counter {
    bytes: usize,
    longest: usize,
    lines: usize,
}

impl StepWatcher for Counter {
    fn line(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.longest = self.longest.max(line.len());
        self.lines += 1;
    }
}

fn peak_memory_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn any_amount_of_output_takes_a_bounded_amount_of_memory() {
    let dir = setup();
    run(&sh("true", dir.path()));
    let before = peak_memory_kib();
    let mut counter = Counter::default();
    process::run_step(&sh("yes | head -c 200M", dir.path()), LONG, &mut counter).unwrap();
    assert_eq!((counter.bytes, counter.lines, counter.longest), (100 << 20, 100 << 20, 1));
    let mut counter = Counter::default();
    process::run_step(&sh("head -c 1M /dev/zero", dir.path()), LONG, &mut counter).unwrap();
    assert_eq!((counter.bytes, counter.longest), (1 << 20, LINE_LIMIT));
    assert!(peak_memory_kib() - before < 8 * 1024, "{} KiB more", peak_memory_kib() - before);
}

#[test]
fn endless_output_does_not_outlive_the_timeout() {
    let dir = setup();
    let mut counter = Counter::default();
    let patience = Patience { timeout: Duration::from_millis(500), grace: Duration::from_millis(200), tick: LONG };
    let result = run_step_patiently(&sh("trap '' TERM; yes & yes", dir.path()), &patience, &mut counter).unwrap();
    assert_eq!(result.status, StepStatus::Timeout);
    assert!(counter.lines > 0 && result.duration < Duration::from_secs(8), "{:?}", result.duration);
}

#[test]
fn a_step_that_closes_its_output_is_still_waited_for() {
    let dir = setup();
    let (status, text) = run(&sh("echo a; exec >&- 2>&-; sleep 0.5; exit 7", dir.path()));
    assert_eq!((status, text.as_str()), (StepStatus::Exit(7), "a\n"));
}

#[test]
fn bytes_that_are_no_text_arrive_as_they_are() {
    let dir = setup();
    let mut order = sh("printf 'a\\377\\033[31m\\nlast'; printf \"$1\"", dir.path());
    order.argv.push("sh".into());
    order.argv.push(std::os::unix::ffi::OsStringExt::from_vec(b"\xfe".to_vec()));
    let mut keeper = Keeper::default();
    run_with(&order, LONG, &mut keeper);
    assert_eq!(keeper.lines, [b"a\xff\x1b[31m".to_vec(), b"last\xfe".to_vec()]);
}

#[test]
fn a_step_gets_exactly_the_environment_of_its_order() {
    let dir = setup();
    let env = [("B", "two\nlines"), ("A", "1"), ("MC_STEP", "forged")].map(|(n, v)| (n.to_string(), v.to_string()));
    let mut order = StepOrder::new(vec!["/usr/bin/env".into(), "-0".into()], env.into(), dir.path().into());
    order.marker = Some("deployment.7".into());
    assert_eq!(run(&order).1, "B=two\nlines\0A=1\0MC_STEP=deployment.7\0\n");
    assert!(!format!("{order:?}").contains("lines"));
}

#[test]
fn a_step_starts_with_three_descriptors_default_signals_and_no_way_to_new_privileges() {
    let dir = setup();
    // A descriptor that is not closed by an exec, as a careless library would leave one.
    let leak = std::fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let (_, text) = run(&sh("ls -l /proc/self/fd", dir.path()));
    assert!(!text.contains("passwd") && !text.contains("socket"), "{text}");
    assert!(text.contains("0 -> /dev/null"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains(" -> ")).count(), 4, "{text}");
    let (_, text) = run(&sh("grep -E '^(NoNewPrivs|SigBlk|SigIgn)' /proc/self/status; umask; ulimit -c", dir.path()));
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, blocked, _, ignored, _, no_new_privileges, mask, core] = words[..] else { panic!("{text}") };
    assert_eq!((blocked, no_new_privileges, mask, core), ("0000000000000000", "1", "0022", "0"), "{text}");
    // Signals 32 and 33 belong to the C library, which lets nobody touch them.
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & !0x1_8000_0000, 0, "{text}");
    let (_, text) = run(&sh("cut -d' ' -f1,5,6 /proc/$$/stat; echo $$", dir.path()));
    let numbers: Vec<&str> = text.split_whitespace().collect();
    assert!(numbers.iter().all(|n| *n == numbers[0]) && numbers.len() == 4, "{text}");
}

#[test]
fn limits_hold() {
    let dir = setup();
    let mut order = sh("ulimit -n; ulimit -f; head -c 9000 /dev/zero > big", dir.path());
    order.limits = Limits { open_files: Some(50), file_size: Some(4096), ..Limits::default() };
    let (status, text) = run(&order);
    assert!(!status.is_ok() && text.starts_with("50\n8\n"), "{text}");
    assert_eq!(std::fs::metadata(dir.path().join("big")).unwrap().len(), 4096);
}

#[test]
fn a_step_sees_the_candidate_at_the_path_of_run_while_all_others_see_the_old_version() {
    let dir = setup();
    let (old, new) = two_trees(dir.path());
    if let Err(reason) = mount::probe_namespace(dir.path()).unwrap() {
        assert!(!nix::unistd::Uid::effective().is_root(), "{reason}");
        return;
    }
    let script = format!("pwd; cat version {0}/version; touch built; cat {0}/built", old.display());
    let mut order = sh(&script, &old);
    order.view.binds = vec![Bind { source: new.clone(), at: old.clone(), read_only: false }];
    assert_eq!(run(&order), (StepStatus::Ok, format!("{}\nnew\nnew\n", old.display())));
    assert_eq!(std::fs::read_to_string(old.join("version")).unwrap(), "old\n");
    assert!(!old.join("built").exists() && new.join("built").exists());
    assert!(!mount::is_mount_point(&old).unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "the probe left something");
}

#[test]
fn a_link_in_the_place_of_run_is_not_followed() {
    let dir = setup();
    let (old, new) = two_trees(dir.path());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&old, &link).unwrap();
    let mut order = sh("true", &new);
    order.view.binds = vec![Bind { source: new.clone(), at: link, read_only: false }];
    assert!(matches!(run(&order).0, StepStatus::CouldNotStart(_)));
}

#[test]
fn another_identity_is_taken_whole() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let dir = setup();
    let (old, new) = two_trees(dir.path());
    let mut order = sh("id -u; id -g; id -G; cat version; touch mine", &old);
    order.view.binds = vec![Bind { source: new.clone(), at: old.clone(), read_only: false }];
    order.run_as = Some(RunAs { uid: 65534, gid: 65534, groups: vec![1] });
    assert_eq!(run(&order), (StepStatus::Ok, "65534\n65534\n65534 1\nnew\n".into()));
    assert_eq!(std::fs::metadata(new.join("mine")).unwrap().uid(), 65534);
}

/// Runs the named test again in a process without privileges; `None` if we cannot (or already are).
pub fn again_without_privileges(test: &str) -> Option<std::process::Output> {
    if !nix::unistd::Uid::effective().is_root() {
        return None;
    }
    // The programs may lie where only root can go.
    let dir = tempfile::Builder::new().prefix("mc-it-").tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    for (from, name) in
        [(std::env::current_exe().unwrap(), "it"), (env!("CARGO_BIN_EXE_mc_project").into(), "mc_project")]
    {
        std::fs::copy(from, dir.path().join(name)).unwrap();
    }
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(dir.path().join("it"))
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env("TMPDIR", dir.path())
        .env("MC_IT_EXECUTABLE", dir.path().join("mc_project"))
        .current_dir("/")
        .output()
        .unwrap();
    Some(output)
}

#[test]
#[ignore = "run by the next test in a process without privileges"]
fn unprivileged_part() {
    let Some(path) = std::env::var_os("MC_IT_EXECUTABLE") else { return };
    process::set_executable(Path::new(&path));
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two_trees(dir.path());
    if let Err(reason) = mount::probe_namespace(dir.path()).unwrap() {
        println!("no namespaces for users: {reason}");
        return;
    }
    let mut order = sh("id -u; cat version; touch built; grep NoNewPrivs /proc/self/status", &old);
    order.view.binds = vec![Bind { source: new.clone(), at: old.clone(), read_only: false }];
    assert_eq!(run(&order), (StepStatus::Ok, "65534\nnew\nNoNewPrivs:\t1\n".into()));
    assert_eq!(std::fs::read_to_string(old.join("version")).unwrap(), "old\n");
    assert!(!old.join("built").exists());
    assert_eq!(std::fs::metadata(new.join("built")).unwrap().uid(), 65534);
    let users = process::processes_using(&old).unwrap();
    assert!(users.found.is_empty() && users.unreadable > 0);
    println!("seen unprivileged");
}

#[test]
fn without_privileges_the_same_works_in_a_user_namespace() {
    let Some(output) = again_without_privileges("process::unprivileged_part") else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // Some systems forbid user namespaces; then the probe must have said so.
    let forbidden = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|n| n.trim() == "0");
    assert!(text.contains(if forbidden { "no namespaces for users" } else { "seen unprivileged" }), "{text}");
}
