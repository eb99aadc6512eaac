//! The embedded supervisor when it, its guard, its services or all of them are killed.

use std::time::Duration;

use mc_project::project::recipe::service::{Kind, Restart};
use mc_project::service::backend::{Backend, Look, State};

use crate::support::{Ward, assert_has, is_alive, kill_9, wait_until};

/// A script that writes its number every moment and goes on for ever.
const TALKS: &str = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done";

#[test]
fn a_killed_supervisor_comes_back_and_goes_on_with_what_runs() {
    let ward = Ward::new();
    ward.up(&[ward.service("web", TALKS), ward.service("idle", "exec sleep 100000")]);
    let (web, idle) = (ward.pid("web"), ward.pid("idle"));
    for _ in 0..3 {
        let (supervisor, guard) = ward.both();
        kill_9(supervisor);
        wait_until("another one is there", || ward.supervisor_pid().is_some_and(|pid| pid != supervisor));
        wait_until("it answers", || ward.state_of("web") == State::Running && ward.look("web").detail.is_none());
        assert_eq!((ward.pid("web"), ward.pid("idle")), (web, idle));
        assert_eq!(ward.guard_pid(), Some(guard));
    }
    // It looks after those that it adopted as after its own.
    kill_9(web);
    wait_until("it runs again", || ward.look("web").restarts == 1 && ward.state_of("web") == State::Running);
    ward.stop();
    assert!(!is_alive(idle));
    // No line was lost meanwhile, and none stands there twice.
    let texts = ward.texts("web");
    let numbers: Vec<u32> = texts.iter().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
    let first_run: Vec<u32> = (1..).take(numbers.iter().skip(1).position(|n| *n == 1).unwrap() + 1).collect();
    assert_eq!(numbers[..first_run.len()], first_run);
}

#[test]
fn a_killed_guard_comes_back_and_both_killed_are_healed_by_the_next_command() {
    let ward = Ward::new();
    ward.up(&[ward.service("web", "exec sleep 100000"), ward.service("dies", "exec sleep 100000")]);
    let (supervisor, guard) = ward.both();
    kill_9(guard);
    wait_until("another guard is there", || ward.guard_pid().is_some_and(|pid| pid != guard));
    assert_eq!(ward.supervisor_pid(), Some(supervisor));
    let (web, dies) = (ward.pid("web"), ward.pid("dies"));
    // Stopped first: neither may see the other one's end.
    let (supervisor, guard) = ward.both();
    let stop =
        |pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
    stop(guard);
    stop(supervisor);
    kill_9(guard);
    kill_9(supervisor);
    wait_until("both are gone", || !is_alive(guard) && !is_alive(supervisor));
    kill_9(dies);
    wait_until("it is gone", || !is_alive(dies));
    let look = ward.look("web");
    assert_eq!((look.pid, look.detail.as_deref()), (Some(web.cast_unsigned()), Some("its supervisor was killed")));
    assert_eq!(ward.state_of("dies"), State::Waiting);
    assert!(ward.supervisor_pid().is_none(), "looking starts nothing");
    assert!(ward.supervisor().heal().unwrap());
    assert!(!ward.supervisor().heal().unwrap());
    wait_until("all run", || ward.looks().iter().all(|look| look.state == State::Running));
    assert_eq!(ward.pid("web"), web);
    ward.both();
}

#[test]
fn when_everything_is_killed_the_next_command_brings_everything_back() {
    let ward = Ward::new();
    ward.up(&[ward.service("web", "exec sleep 100000"), ward.service("off", "exec sleep 100000")]);
    ward.supervisor().stop_one("off");
    let (supervisor, guard) = ward.both();
    for pid in [guard, supervisor, ward.pid("web")] {
        kill_9(pid);
    }
    wait_until("everything is gone or healed", || !is_alive(supervisor) && !is_alive(guard));
    let _ = ward.supervisor().heal().unwrap();
    wait_until("it runs", || ward.state_of("web") == State::Running);
    assert_eq!(ward.state_of("off"), State::Stopped, "what was stopped stays so");
}

/// Stops one service of it.
trait StopOne {
    fn stop_one(&self, name: &str);
}

impl StopOne for mc_project::service::supervisor::Supervisor {
    fn stop_one(&self, name: &str) {
        use mc_project::service::backend::Backend;
        self.stop(&|instance, _| instance.service.as_str() == name, &mut crate::support::Lines::default()).unwrap();
    }
}

#[test]
fn a_supervisor_killed_while_services_start_or_stop_is_asked_again() {
    let ward = Ward::new();
    let slow = |name: &str| {
        let mut once = ward.service(name, "sleep 0.7");
        (once.kind, once.restart) = (Kind::Oneshot, Restart::Never);
        once
    };
    let wanted = [slow("a"), slow("b"), ward.service("web", "exec sleep 100000")];
    std::thread::scope(|scope| {
        let up = scope.spawn(|| ward.up(&wanted));
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(900));
            ward.supervisor_pid().into_iter().for_each(kill_9);
        }
        up.join().unwrap();
    });
    assert_eq!(ward.state_of("web"), State::Running);
    let mut deaf = ward.service("web", "trap '' TERM; while :; do sleep 0.1; done");
    deaf.stop_timeout = Duration::from_secs(2);
    ward.up(&[deaf]);
    let web = ward.pid("web");
    std::thread::scope(|scope| {
        let down = scope.spawn(|| ward.stop());
        std::thread::sleep(Duration::from_millis(700));
        ward.supervisor_pid().into_iter().for_each(kill_9);
        down.join().unwrap();
    });
    assert!(!is_alive(web));
    assert_eq!(ward.state_of("web"), State::Stopped);
}

#[test]
fn a_oneshot_service_whose_end_nobody_saw_is_done_again_for_whoever_waits() {
    let ward = Ward::new();
    let mut once = ward.service("once", "until [ -e go ]; do sleep 0.05; done");
    (once.kind, once.restart) = (Kind::Oneshot, Restart::Never);
    std::thread::scope(|scope| {
        let up = scope.spawn(|| ward.converge(&[once]));
        wait_until("it runs", || ward.looks().iter().any(|look| look.pid.is_some()));
        let (supervisor, guard) = ward.both();
        kill_9(guard);
        kill_9(supervisor);
        std::fs::write(ward.path("go"), "").unwrap();
        // The question is asked again, of a supervisor that starts it anew.
        up.join().unwrap().unwrap();
    });
    assert_eq!(ward.state_of("once"), State::Done);
}

#[test]
fn a_supervisor_of_another_version_hands_over_and_services_go_on() {
    let ward = Ward::new();
    ward.up(&[ward.service("web", TALKS)]);
    let (web, (supervisor, guard)) = (ward.pid("web"), ward.both());
    ward.supervisor().hand_over().unwrap();
    wait_until("both have ended", || !is_alive(supervisor) && !is_alive(guard));
    assert!(is_alive(web));
    assert!(ward.supervisor().heal().unwrap());
    assert_eq!((ward.pid("web"), ward.state_of("web")), (web, State::Running));
}

#[test]
fn a_supervisor_that_has_no_descriptor_left_says_so() {
    let ward = Ward::new();
    ward.up(&[ward.service("web", TALKS)]);
    let (web, (supervisor, _)) = (ward.pid("web"), ward.both());
    let open = std::fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().count();
    let limit = |n: usize| {
        let args = ["--pid", &supervisor.to_string(), &format!("--nofile={n}:4096")].map(str::to_string);
        assert!(std::process::Command::new("prlimit").args(args).status().unwrap().success());
    };
    limit(open + 2);
    // What is asked needs a descriptor for the connection too.
    let (failure, _) = ward.converge(&[ward.service("web", TALKS), ward.service("more", TALKS)]).unwrap_err();
    assert_has(&failure.reason, "Too many open files");
    limit(1024);
    assert!(!is_alive(web), "it was stopped before its turn");
    ward.up(&[ward.service("web", TALKS), ward.service("more", TALKS)]);
}

#[test]
fn on_a_full_disk_services_go_on_and_what_is_wanted_is_written_down_later() {
    let ward = Ward::new();
    let state = ward.state().parent().unwrap().to_path_buf();
    let Some(_mounted) = crate::space::tmpfs("size=256k", state) else { return };
    ward.up(&[ward.service("web", "exec sleep 100000"), ward.service("more", "exec sleep 100000")]);
    let (web, file) = (ward.pid("web"), ward.state().join("state.json"));
    let before = std::fs::read(&file).unwrap();
    let ballast = ward.state().join("ballast");
    let mut filling = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut filling, &[0; 4096]).is_ok() {}
    ward.supervisor().stop_one("more");
    assert_eq!(std::fs::read(&file).unwrap(), before, "what was written before stands there");
    assert_eq!((ward.state_of("more"), ward.pid("web")), (State::Stopped, web));
    drop(filling);
    std::fs::remove_file(&ballast).unwrap();
    wait_until("it is written down", || std::fs::read(&file).unwrap() != before);
    kill_9(ward.both().0);
    wait_until("the next one knows it", || ward.look("web").detail.is_none());
    assert_eq!((ward.state_of("more"), ward.pid("web")), (State::Stopped, web));
}

#[test]
fn a_supervisor_that_says_nothing_holds_no_deployment_up() {
    let ward = Ward::new();
    ward.up(&[ward.service("web", "exec sleep 100000")]);
    let web = ward.pid("web");
    let (supervisor, _) = ward.both();
    // It waits for a service that never comes up, and is stopped over that.
    let mut late = ward.service("late", "exec sleep 100000");
    (late.kind, late.start_timeout) = (Kind::Notify, Duration::from_mins(3));
    let wanted = [ward.service("web", "exec sleep 100000"), late];
    let signal = |which| nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), which).unwrap();
    let told = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ward.supervisor().converge(&wanted, &mut crate::support::Lines::default()));
        let is_late = |look: &Look| look.instance.service.as_str() == "late" && look.state == State::Starting;
        wait_until("it is at work", || ward.looks().iter().any(is_late));
        signal(nix::sys::signal::Signal::SIGSTOP);
        asked.join().unwrap().unwrap_err()
    });
    assert_has(told.message(), &format!("(process {supervisor}) does not answer"));
    assert_has(told.hint_text().unwrap(), &format!("kill -9 {supervisor}"));
    // What the hint says helps.
    kill_9(supervisor);
    wait_until("another one answers", || ward.supervisor_pid().is_some_and(|pid| pid != supervisor));
    ward.up(&[ward.service("web", "exec sleep 100000")]);
    assert_ne!(ward.pid("web"), web);
}
