//! The embedded supervisor: what it does for services, with real processes.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use mc_project::project::recipe::service::{Kind, Restart, Unchanged};
use mc_project::service::backend::{Backend, LogQuery, State};
use mc_project::service::definition::Instance;

use crate::support::{Lines, Ward, assert_has, is_alive, kill_9, wait_until};

/// A script that goes on for ever.
const STAYS: &str = "exec sleep 100000";

#[test]
fn services_start_in_order_run_on_by_themselves_and_stop_in_the_opposite_order() {
    let ward = Ward::new();
    let mark = |name: &str| {
        let script =
            format!("echo {name}+ >> order; trap 'echo {name}- >> order; exit 0' TERM; while :; do sleep 0.05; done");
        ward.service(name, &script)
    };
    ward.up(&[mark("db"), mark("web")]);
    wait_until("both have begun", || ward.text("order").lines().count() == 2);
    let look = ward.look("web");
    assert_eq!((look.state, look.restarts), (State::Running, 0));
    assert!(look.memory.unwrap() > 10_000 && look.cpu_ms.is_some() && look.since.is_some(), "{look:?}");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", look.pid.unwrap())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[3], look.pid.unwrap().to_string(), "a session of its own: {stat}");
    ward.stop();
    assert_eq!(ward.text("order"), "db+\nweb+\nweb-\ndb-\n");
    assert!(ward.looks().iter().all(|look| look.state == State::Stopped && look.pid.is_none()));
    wait_until("the supervisor has nothing to do and ends", || ward.supervisor_pid().is_none());
    assert_eq!((ward.guard_pid(), ward.state_of("web")), (None, State::Stopped));
    ward.supervisor().start(&|instance, _| instance.service.as_str() == "web", &mut Lines::default()).unwrap().unwrap();
    assert_eq!((ward.state_of("web"), ward.state_of("db")), (State::Running, State::Stopped));
}

#[test]
fn a_service_inherits_nothing_but_its_order() {
    let ward = Ward::new();
    let script = "ls -l /proc/self/fd > fds; tr '\\0' '\\n' < /proc/$$/environ > env; pwd > pwd; exec sleep 100000";
    ward.up(&[ward.service("web", script)]);
    wait_until("it has looked around", || !ward.text("pwd").is_empty());
    let fds = ward.text("fds");
    let names: Vec<&str> = fds.lines().filter_map(|line| line.split_once(" -> ")).map(|(_, to)| to).collect();
    let out = ward.state().join("web@1.out").display().to_string();
    // Beside the three there are the file of ls itself and the directory that it lists.
    let others: Vec<&&str> = names.iter().filter(|to| !["/dev/null", &out].contains(*to)).collect();
    assert!(others.len() <= 2 && names.iter().filter(|to| **to == out).count() == 1, "{fds}");
    let env = ward.text("env");
    let mut variables: Vec<&str> = env.lines().filter_map(|line| line.split('=').next()).collect();
    variables.sort_unstable();
    assert_eq!(variables, ["HOME", "LANG", "LOGNAME", "MC_SERVICE_RUN", "PATH", "SHELL", "USER"]);
    assert_eq!(ward.text("pwd").trim(), ward.dir().to_str().unwrap());
}

#[test]
fn what_holds_no_service_up_is_told_with_its_last_words() {
    let ward = Ward::new();
    let (failure, lines) = ward.converge(&[ward.service("web", "echo one; echo 'no port' >&2; exit 3")]).unwrap_err();
    assert_eq!(failure.reason, "died after its start (exit 3)");
    assert_eq!(
        (failure.instance.to_string().as_str(), lines),
        ("web@1", vec!["one".to_string(), "no port".to_string()])
    );
    // Whoever asked may stop it; else it is tried again.
    assert_eq!(ward.state_of("web"), State::Waiting);
    ward.stop();
    assert_eq!(ward.state_of("web"), State::Stopped);
    let mut nowhere = ward.service("web", "x");
    nowhere.order.argv = vec!["/no/such/program".into()];
    let (failure, _) = ward.converge(&[nowhere]).unwrap_err();
    assert_has(&failure.reason, "could not start: cannot execute /no/such/program: No such file");
    let mut dir = ward.service("web", STAYS);
    dir.order.cwd = ward.path("not-there");
    assert_has(&ward.converge(&[dir]).unwrap_err().0.reason, "could not start: cannot open directory");
    let (failure, _) = ward.converge(&[ward.service("web", "sleep 1000 & exit 0")]).unwrap_err();
    assert_has(&failure.reason, "a service stays in the foreground");
    // What was up before the one that failed stays until somebody stops it; what comes after one that never said that it
    // is up was not begun.
    let mut bad = ward.service("web", "exit 1");
    bad.kind = Kind::Notify;
    ward.converge(&[ward.service("db", STAYS), bad, ward.service("late", "touch late; exec sleep 1000")]).unwrap_err();
    assert_eq!((ward.state_of("db"), ward.state_of("web")), (State::Running, State::Waiting));
    assert!(!ward.path("late").exists());
    wait_until("it is begun all the same, if nobody stops it", || ward.path("late").exists());
}

#[test]
fn a_service_that_ends_by_itself_is_started_again_with_growing_pauses() {
    let ward = Ward::new();
    ward.up(&[ward.service("web", STAYS)]);
    let mut pids = vec![ward.pid("web")];
    for n in 1..=3 {
        let begun = Instant::now();
        kill_9(*pids.last().unwrap());
        wait_until("it runs again", || {
            let look = ward.look("web");
            look.state == State::Running && look.pid.is_some_and(|pid| !pids.contains(&pid.cast_signed()))
        });
        assert!(begun.elapsed() >= Duration::from_secs(1 << (n - 1)), "{n}: {:?}", begun.elapsed());
        assert_eq!(ward.look("web").restarts, n);
        pids.push(ward.pid("web"));
    }
    assert_eq!(ward.texts("web")[0], "mc_project: ended (killed by SIGKILL); starts again in 1 s");
    kill_9(*pids.last().unwrap());
    wait_until("it waits", || ward.state_of("web") == State::Waiting);
    assert_eq!(ward.look("web").detail.as_deref(), Some("ended (killed by SIGKILL)"));
    // Asked to, it starts at once.
    ward.supervisor().start(&|_, _| true, &mut Lines::default()).unwrap().unwrap();
    assert_eq!((ward.state_of("web"), ward.look("web").restarts), (State::Running, 0));
}

#[test]
fn whoever_asks_for_what_starts_again_by_itself_learns_that_it_does_not_come_up() {
    let ward = Ward::new();
    let mut web = ward.service("web", STAYS);
    (web.kind, web.start_timeout) = (Kind::Notify, Duration::from_secs(2));
    let late = "was not up within 2 s";
    assert_eq!(ward.converge(&[web]).unwrap_err().0.reason, late);
    wait_until("it is tried again", || ward.state_of("web") == State::Starting);
    let supervisor = ward.supervisor().clone();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(supervisor.start(&|_, _| true, &mut Lines::default())));
    let started = told.recv_timeout(Duration::from_secs(30)).expect("it is answered").unwrap();
    assert_eq!(started.unwrap_err().reason, late);
}

#[test]
fn a_start_that_cannot_even_be_prepared_leaves_the_others_in_care() {
    let ward = Ward::new();
    let mut queue = ward.service("queue", STAYS);
    queue.unchanged = Unchanged::Leave;
    ward.up(std::slice::from_ref(&queue));
    let pid = ward.pid("queue");
    std::fs::write(ward.state().join("web@1.out"), "in the way").unwrap();
    let both = [queue, ward.service("web", STAYS)];
    let error = ward.supervisor().converge(&both, &mut Lines::default()).unwrap_err();
    assert_has(error.message(), "it is no fifo");
    assert_eq!((ward.pid("queue"), ward.state_of("queue")), (pid, State::Running));
    std::fs::remove_file(ward.state().join("web@1.out")).unwrap();
    ward.up(&both);
    assert_eq!((ward.pid("queue"), ward.state_of("web")), (pid, State::Running));
}

#[test]
fn a_service_is_started_again_only_as_it_asks_for() {
    let ward = Ward::new();
    let script = "until [ -e go-$MC ]; do sleep 0.05; done; exit $(cat go-$MC)";
    let with = |name: &str, restart| {
        let mut service = ward.service(name, script);
        service.order.env.push(("MC".into(), name.into()));
        service.restart = restart;
        service
    };
    ward.up(&[with("never", Restart::Never), with("well", Restart::OnFailure), with("badly", Restart::OnFailure)]);
    for (name, code) in [("never", "1"), ("well", "0"), ("badly", "1")] {
        std::fs::write(ward.path(&format!("go-{name}")), code).unwrap();
    }
    wait_until("the one is started again", || ward.look("badly").restarts > 0);
    wait_until("all have ended", || ward.state_of("never") == State::Failed && ward.state_of("well") == State::Done);
    assert_eq!(ward.look("never").detail.as_deref(), Some("ended (exit 1)"));
    assert_eq!((ward.look("never").restarts, ward.look("well").restarts), (0, 0));
}

#[test]
fn what_ignores_its_signal_or_flees_is_killed_as_a_whole() {
    let ward = Ward::new();
    let mut deaf = ward.service("deaf", "trap '' TERM; sleep 100001 & setsid sleep 100002 & (setsid sh -c 'sleep 100003; :' &) ; while :; do sleep 0.1; done");
    deaf.stop_timeout = Duration::from_secs(1);
    ward.up(&[deaf]);
    let first = ward.pid("deaf");
    let marker = |pid: i32| {
        let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        env.split(|b| *b == 0).find(|line| line.starts_with(b"MC_SERVICE_RUN=")).map(<[u8]>::to_vec)
    };
    let wanted = marker(first).unwrap();
    let family = || {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| is_alive(*pid) && marker(*pid).as_ref() == Some(&wanted)).collect::<Vec<_>>()
    };
    wait_until("its whole family is there", || family().len() >= 5);
    let begun = Instant::now();
    ward.stop();
    assert!(
        begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(family(), Vec::<i32>::new());
    assert_has(&ward.texts("deaf").join("\n"), "was not gone within 1 s and is killed");
}

#[test]
fn a_service_that_says_when_it_is_up_is_waited_for() {
    let ward = Ward::new();
    let say = "import os,socket,time,sys\n\
        s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)\n\
        time.sleep(float(sys.argv[1]))\n\
        s.sendto(b'STATUS=warm\\nREADY=1','\\0'+os.environ['NOTIFY_SOCKET'][1:])\n\
        time.sleep(1000)\n";
    std::fs::write(ward.path("say.py"), say).unwrap();
    let with = |seconds: &str| {
        let mut service = ward.service("web", &format!("exec python3 say.py {seconds}"));
        service.kind = Kind::Notify;
        service
    };
    let begun = Instant::now();
    ward.up(&[with("1.5")]);
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert_eq!(ward.look("web").detail.as_deref(), Some("warm"));
    let mut late = with("1000");
    late.start_timeout = Duration::from_secs(1);
    let (failure, _) = ward.converge(&[late]).unwrap_err();
    assert_eq!(failure.reason, "was not up within 1 s");
    let (failure, _) = ward
        .converge(&[{
            let mut service = ward.service("web", "exit 0");
            service.kind = Kind::Notify;
            service
        }])
        .unwrap_err();
    assert_has(&failure.reason, "ended after its start (exit 0)");
}

#[test]
fn a_oneshot_service_is_done_before_the_next_one_starts() {
    let ward = Ward::new();
    let once = |script: &str| {
        let mut service = ward.service("once", script);
        (service.kind, service.restart) = (Kind::Oneshot, Restart::Never);
        service
    };
    let web = || ward.service("web", "cat done > seen; exec sleep 100000");
    ward.up(&[once("sleep 0.5; echo x > done"), web()]);
    wait_until("it has looked", || ward.text("seen") == "x\n");
    assert_eq!((ward.state_of("once"), ward.state_of("web")), (State::Done, State::Running));
    let (failure, lines) = ward.converge(&[once("echo why; exit 4"), web()]).unwrap_err();
    assert_eq!((failure.reason.as_str(), lines.as_slice()), ("exit 4", ["why".to_string()].as_slice()));
    let mut slow = once("exec sleep 1000");
    slow.start_timeout = Duration::from_millis(300);
    assert_has(&ward.converge(&[slow]).unwrap_err().0.reason, "was not up within");
}

#[test]
fn what_a_deployment_does_not_change_is_left_where_that_is_allowed() {
    let ward = Ward::new();
    let mut queue = ward.service("queue", STAYS);
    queue.unchanged = Unchanged::Leave;
    let web = ward.service("web", STAYS);
    ward.up(&[queue.clone(), web.clone()]);
    let before = (ward.pid("queue"), ward.pid("web"));
    queue.running.commit = Some("1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b".parse().unwrap());
    ward.up(&[queue.clone(), web.clone()]);
    assert_eq!(ward.pid("queue"), before.0);
    assert_ne!(ward.pid("web"), before.1);
    assert_eq!(ward.look("queue").running.commit, None, "it runs what it was started as");
    queue.order.env.push(("NEW".into(), "1".into()));
    ward.up(&[queue, web]);
    assert_ne!(ward.pid("queue"), before.0);
    // What is not named any more ends and is forgotten.
    let gone = ward.pid("web");
    ward.up(&[ward.service("other", STAYS)]);
    assert!(!is_alive(gone));
    assert_eq!(ward.looks().len(), 1);
    assert!(!ward.state().join("web@1.out").exists());
}

#[test]
fn instances_of_a_service_are_looked_after_one_by_one() {
    let ward = Ward::new();
    let all: Vec<_> = (1..=3)
        .map(|number| {
            let mut service = ward.service("web", "echo I am $N; exec sleep 100000");
            service.instance = Instance { number, ..service.instance };
            service.order.env.push(("N".into(), number.to_string()));
            service
        })
        .collect();
    ward.up(&all);
    let pids: Vec<_> = ward.looks().iter().map(|look| look.pid.unwrap().cast_signed()).collect();
    kill_9(pids[1]);
    wait_until("the second one runs again", || {
        ward.looks()[1].restarts == 1 && ward.looks()[1].state == State::Running
    });
    assert_eq!(
        (ward.looks()[0].pid, ward.looks()[2].pid),
        (Some(pids[0].cast_unsigned()), Some(pids[2].cast_unsigned()))
    );
    ward.up(&all[..1]);
    assert!(!is_alive(pids[2]) && ward.looks().len() == 1);
    let lines = ward.log(&LogQuery { last: Some(10), ..LogQuery::default() });
    assert!(lines.iter().any(|line| line.instance.number == 3 && line.text == b"I am 3"), "{lines:?}");
}

#[test]
fn logs_are_one_stream_in_time_order_without_secrets() {
    let ward = Ward::new();
    let talk = |name: &str| {
        ward.service(
            name,
            &format!("for i in 1 2 3; do echo {name} $i; sleep 0.2; done; echo key hunter2hunter2; exec sleep 100000"),
        )
    };
    ward.up(&[talk("a"), talk("b")]);
    wait_until("all is written", || ward.texts("a").len() == 4 && ward.texts("b").len() == 4);
    let all = ward.log(&LogQuery::default());
    assert!(all.is_sorted_by_key(|line| line.at) && all.len() == 8, "{all:?}");
    assert_eq!(ward.texts("a")[3], "key [secret]");
    let last = ward.log(&LogQuery { last: Some(3), ..LogQuery::default() });
    assert_eq!(last, all[5..]);
    let since = ward.log(&LogQuery { since: Some(all[4].at), ..LogQuery::default() });
    assert_eq!(since, all[4..]);
    let mut followed = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(600));
            ward.up(&[
                ward.service("a", "echo new one; exec sleep 100000"),
                ward.service("c", "echo of c; exec sleep 100000"),
            ]);
        });
        let query = LogQuery { last: Some(1), follow: true, ..LogQuery::default() };
        let mut each = |line: &mc_project::service::backend::LogLine| {
            followed.push(String::from_utf8_lossy(&line.text).into_owned());
            followed.len() < 3
        };
        ward.supervisor().log(&query, &mut each).unwrap();
    });
    assert_eq!((followed[0].as_str(), followed[1].as_str(), followed[2].as_str()), ("key [secret]", "new one", "of c"));
}

#[test]
fn a_flood_of_output_fills_neither_disk_nor_memory_and_holds_nobody_up() {
    let ward = Ward::new();
    let flood = ward.service("flood", "exec yes 0123456789012345678901234567890123456789012345678901234567890123");
    ward.up(&[flood, ward.service("quiet", "echo quiet; exec sleep 100000")]);
    wait_until("files were rotated", || ward.logs().join("flood@1.log.2").exists());
    let begun = Instant::now();
    assert_eq!(ward.state_of("flood"), State::Running);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(ward.texts("quiet"), ["quiet"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", ward.supervisor_pid().unwrap())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().trim();
    let peak: u64 = peak.strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(peak < 20_000, "{status}");
    ward.stop();
    let sizes = std::fs::read_dir(ward.logs()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert!(sizes.sum::<u64>() <= 51 * 1024 * 1024);
}

#[test]
fn the_directory_may_have_any_length_and_everything_ends_with_it() {
    let long = format!("{}/{}/services", "d".repeat(100), "e".repeat(100));
    let ward = Ward::at(&long);
    ward.up(&[ward.service("web", STAYS)]);
    let (web, (supervisor, guard)) = (ward.pid("web"), ward.both());
    std::fs::remove_dir_all(ward.state()).unwrap();
    wait_until("everything has ended", || ![web, supervisor, guard].into_iter().any(is_alive));
}

#[test]
fn nothing_is_left_when_services_are_forgotten() {
    let ward = Ward::new();
    ward.up(&[ward.service("web", "echo x; exec sleep 100000")]);
    let (web, (supervisor, guard)) = (ward.pid("web"), ward.both());
    ward.supervisor().forget(&mut Lines::default()).unwrap();
    assert!(!is_alive(web) && !ward.state().exists() && !ward.logs().exists());
    wait_until("both processes have ended", || !is_alive(supervisor) && !is_alive(guard));
    assert_eq!(ward.looks(), []);
    ward.supervisor().forget(&mut Lines::default()).unwrap();
}

#[test]
fn the_supervisor_is_nowhere_in_the_trees_and_keeps_its_secrets_to_itself() {
    let ward = Ward::new();
    let mut service = ward.service("web", STAYS);
    service.order.env.push(("KEY".into(), "hunter2hunter2".into()));
    ward.up(&[service]);
    let (supervisor, guard) = ward.both();
    for pid in [supervisor, guard] {
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"));
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            let to = std::fs::read_link(fd.path()).unwrap_or_default();
            let is_ours = to.starts_with(ward.state()) || to.starts_with(ward.logs());
            assert!(is_ours || !to.starts_with(ward.dir()), "{to:?}");
        }
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&text).contains("hunter2"), "{file}");
        }
    }
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(ward.state()), mode(&ward.state().join("state.json"))), (0o700, 0o600));
}
