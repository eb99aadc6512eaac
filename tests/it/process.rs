//! Steps, detached processes and the users of a tree, with real processes.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mc_project::sys::process::{
    self, DetachedOrder, LINE_LIMIT, Patience, StepResult, StepStatus, StepWatcher, Tick, base_environment,
};
use mc_project::sys::step_exec::{Bind, Limits, RunAs, StepOrder};
use mc_project::sys::{mount, process::run_step_patiently};

const LONG: Duration = Duration::from_secs(60);

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

/// A directory with links that make `detached.sh` stand for the binary; one for each test process.
fn executable() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("exe-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_mc_project"), dir.join("real")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/detached.sh");
        std::os::unix::fs::symlink(script, dir.join("mc_project")).unwrap();
        dir.join("mc_project")
    })
}

fn setup() -> tempfile::TempDir {
    process::set_executable(executable());
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn sh(script: &str, cwd: &Path) -> StepOrder {
    let argv = ["/bin/sh", "-euc", script].map(OsString::from).into();
    StepOrder::new(argv, base_environment(Path::new("/")).into_iter().collect(), cwd.to_path_buf())
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

/// Processes whose command line contains `needle`, zombies left out.
fn processes_with(needle: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&text).replace('\0', " ").contains(needle)
    };
    pids.filter(|pid| *pid != std::process::id().cast_signed()).filter(has).collect()
}

fn wait_until(what: &str, check: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < end, "it did not happen: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// A number of seconds to sleep that no other test uses, to find the process again.
fn unique_sleep() -> String {
    format!("1000{:07}", uuid::Uuid::now_v7().as_u128() % 9_999_999)
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
    let none = "0000000000000000";
    assert_eq!(words, ["NoNewPrivs:", "1", "SigBlk:", none, "SigIgn:", none, "0022", "0"], "{text}");
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

fn two_trees(root: &Path) -> (PathBuf, PathBuf) {
    let (old, new) = (root.join("run"), root.join("candidate"));
    for (dir, text) in [(&old, "old\n"), (&new, "new\n")] {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("version"), text).unwrap();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    (old, new)
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
    order.bind = Some(Bind { source: new.clone(), at: old.clone() });
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
    order.bind = Some(Bind { source: new.clone(), at: link });
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
    order.bind = Some(Bind { source: new.clone(), at: old.clone() });
    order.run_as = Some(RunAs { uid: 65534, gid: 65534, groups: vec![1] });
    assert_eq!(run(&order), (StepStatus::Ok, "65534\n65534\n65534 1\nnew\n".into()));
    assert_eq!(std::fs::metadata(new.join("mine")).unwrap().uid(), 65534);
}

/// Runs the named test again in a process without privileges; `None` if we cannot (or already are).
fn again_without_privileges(test: &str) -> Option<std::process::Output> {
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
    order.bind = Some(Bind { source: new.clone(), at: old.clone() });
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
    setup();
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
        .args(["--exact", "process::starter_part", "--include-ignored"])
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
    setup();
    let process = process::spawn_detached(&detached("exec sleep 1000")).unwrap();
    std::fs::write(file, format!("{}\n", process.pid())).unwrap();
    std::thread::sleep(LONG);
}

#[test]
fn a_step_does_not_touch_what_was_detached_before_or_meanwhile() {
    struct Starter(Vec<process::Detached>);
    impl StepWatcher for Starter {
        fn line(&mut self, _line: &[u8]) {
            self.0.push(process::spawn_detached(&detached("(setsid sleep 600 &) ; sleep 600")).unwrap());
        }
    }
    let dir = setup();
    let mut child = detached("sleep 600");
    child.as_child = true;
    let child = process::spawn_detached(&child).unwrap();
    let mut starter = Starter(Vec::new());
    process::run_step(&sh("echo one; sleep 0.3", dir.path()), LONG, &mut starter).unwrap();
    process::run_step(&sh("true", dir.path()), LONG, &mut starter).unwrap();
    assert_eq!(starter.0.len(), 1);
    for process in starter.0.iter().chain([&child]) {
        assert!(!process.wait_gone(Duration::from_millis(100)).unwrap());
        process::kill_group(process.pid(), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    processes_with("sleep 600").into_iter().for_each(kill);
}

#[test]
fn the_leftovers_of_a_killed_worker_are_found_by_their_marker() {
    setup();
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
