//! The story of the README on a node in a directory, from the developer's side of an ssh server.

use crate::support::service_app::QUEUE;
use crate::support::{Away, World, assert_has, free_port, wait_until};

/// What the web server of the application answers with; nothing while nobody listens.
fn page(port: u16) -> String {
    crate::examples::ask(port, "GET / HTTP/1.0\r\n\r\n").unwrap_or_default()
}

#[track_caller]
fn assert_serves(world: &World, port: u16, version: &str) {
    wait_until("the application answers", || !page(port).is_empty());
    let last = world.last("shop").expect("a deployment");
    let body = page(port).rsplit("\r\n").next().unwrap_or_default().to_string();
    let words: Vec<&str> = body.split(' ').collect();
    assert_eq!((words[0], words[3]), (version, last.serves.unwrap().id.as_str()), "{body}");
}

/// Kills the services of the project and the two processes that keep them, all at once; how many that were.
fn kill_everything(world: &World) -> usize {
    let project = world.project("shop");
    let mark = format!("MC_PROJECT_DIR={}", project.display());
    let is_meant = |pid: i32| {
        let of = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let name = of("comm");
        let keeps = name == b"mc_supervisor\n" || name == b"mc_guard\n";
        let stderr = std::fs::read_link(format!("/proc/{pid}/fd/2")).unwrap_or_default();
        (keeps && stderr.starts_with(&project)) || of("environ").split(|b| *b == 0).any(|pair| pair == mark.as_bytes())
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let meant: Vec<i32> = pids.filter(|pid| is_meant(*pid)).collect();
    // All are stopped first, so that none can bring another back.
    for signal in [nix::sys::signal::Signal::SIGSTOP, nix::sys::signal::Signal::SIGKILL] {
        for pid in &meant {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal);
        }
    }
    meant.len()
}

#[test]
fn a_node_in_a_directory_is_pushed_to_broken_and_rolled_back_over_ssh() {
    let world = World::with_shop();
    let away = Away::start(&world);
    let port = free_port();
    let root = world.root();
    let user = Away::user();
    away.list(&format!(
        "nodes:\n  home: {{ssh: {user}@127.0.0.1, port: {}, root: {}, program: {}, project: shop}}\n",
        away.sshd().port(),
        root.display(),
        env!("CARGO_BIN_EXE_mc_project")
    ));
    let work = away.work("shop");
    let mc = |args: &[&str]| away.mc(work.dir(), args);
    work.commit_services("1", (port, 1), QUEUE);
    assert_has(&mc(&["push", "home"]).ok().stdout, "deployed; run serves");
    assert_serves(&world, port, "1");
    let status = mc(&["--node", "home", "status"]).ok().stdout;
    for part in ["web", "queue", "running"] {
        assert_has(&status, part);
    }

    work.write("sick", "x");
    work.commit_services("2", (port, 1), QUEUE);
    assert_has(&mc(&["push", "home"]).code(1).stdout, "rolled back at health");
    assert_serves(&world, port, "1");
    // The mail is sent when the pusher is told already.
    let told = || world.mails().into_iter().find(|mail| mail.subject.contains("rolled back"));
    wait_until("the mail is there", || told().is_some());
    let mail = told().unwrap();
    for part in ["status 500", "version 2 knows", "to look further"] {
        assert_has(&mail.text.to_lowercase(), part);
    }

    work.git(&["rm", "--quiet", "sick"]).ok();
    work.commit_services("3", (port, 1), QUEUE);
    mc(&["push", "home"]).ok();
    assert_serves(&world, port, "3");
    mc(&["--node", "home", "rollback", "shop", "--yes"]).ok();
    assert_serves(&world, port, "1");
    assert_has(&mc(&["--node", "home", "history"]).ok().stdout, "version 3");
    assert_has(&mc(&["--node", "home", "logs", "--service", "web"]).ok().stdout, "version 3 knows");

    // Everything that keeps the services is killed, and they themselves: what is typed next brings the right version back.
    let killed = kill_everything(&world);
    assert!(killed > 2, "{killed} processes");
    assert_eq!(page(port), "");
    mc(&["--node", "home", "restart", "shop"]).ok();
    assert_serves(&world, port, "1");
    mc(&["--node", "home", "stop", "shop"]).ok();
    assert_eq!(page(port), "");
}
