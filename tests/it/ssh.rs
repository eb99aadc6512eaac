//! Pushing over a real ssh connection, and what happens when it dies.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Finished, PATIENCE, Sshd, WorkTree, World, assert_has, wait_until};

/// A push over ssh, ready to run.
pub fn push_command(sshd: &Sshd, work: &WorkTree, args: &[&str]) -> std::process::Command {
    let mut command = work.push_command(args);
    command.env("GIT_SSH_COMMAND", sshd.git_ssh_command());
    command
}

#[track_caller]
fn push(sshd: &Sshd, work: &WorkTree, args: &[&str]) -> Finished {
    Finished::of(push_command(sshd, work, args))
}

/// A world with a server, and a work tree whose remote is on it.
pub fn over_ssh(world: &World) -> (Sshd, WorkTree<'_>) {
    let sshd = Sshd::start(world);
    let work = world.clone_of("shop");
    let url = sshd.url(&world.project("shop").join("git/project"));
    work.git(&["remote", "set-url", "node", &url]).ok();
    (sshd, work)
}

/// A recipe that prints `bytes` before and after it waits for the file `go`.
fn chatty(bytes: u32) -> String {
    format!(
        "stages:\n  build:\n    - 'yes chatter | head -c {bytes}; touch $MC_DATA/waiting; \
         while [ ! -e $MC_DATA/go ]; do sleep 0.05; done; yes chatter | head -c {bytes}'\n    - 'true'\n"
    )
}

#[test]
fn a_push_over_ssh_deploys_and_is_told_everything() {
    let world = World::with_shop();
    let (sshd, work) = over_ssh(&world);
    let commit = work.commit("one", &[("a", "1")]);

    push(&sshd, &work, &["main"]).ok().tells(&format!("deployed; run serves {}", &commit[..10]));
    assert_eq!(world.serves("shop"), Some(commit.clone()));

    work.commit("bad", &[("mc_project.yaml", "stages: {build: ['exit 2']}\n")]);
    let failed = push(&sshd, &work, &["main"]).code(1);
    assert_eq!(failed.rejected("main -> main"), format!("failed at build: exit 2; run still serves {}", &commit[..10]));
}

#[test]
fn the_same_path_with_git_at_its_end_is_the_same_repository() {
    let world = World::with_shop();
    let (sshd, work) = over_ssh(&world);
    let url = sshd.url(&world.project("shop").join("git/project.git"));
    work.git(&["remote", "set-url", "node", &url]).ok();
    let commit = work.commit("one", &[("a", "1")]);
    push(&sshd, &work, &["main"]).ok();
    assert_eq!(world.serves("shop"), Some(commit));
}

#[test]
fn a_lost_connection_neither_stops_nor_stalls_the_deployment() {
    // Less and more than a pipe holds; the second once hung a hook for ever (64 KiB, then write(2) blocks).
    for bytes in [10, 2_000_000] {
        let world = World::with_shop();
        let (sshd, work) = over_ssh(&world);
        let commit = work.commit("one", &[("a", "1"), ("mc_project.yaml", &chatty(bytes))]);
        let data = world.project("shop").join("data");
        let running = crate::support::Running::start(push_command(&sshd, &work, &["main"]));
        wait_until("the build runs", || data.join("waiting").exists());

        for pid in descendants(running.pid()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
        running.signal(Signal::SIGKILL);
        std::fs::write(data.join("go"), "").unwrap();

        wait_until("the deployment ends by itself", || world.serves("shop").as_deref() == Some(&commit));
        world.settle("shop");
        assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(commit), "{bytes}\n{}", sshd.log());
        let next = work.commit("two", &[("a", "2"), ("mc_project.yaml", "stages: {}\n")]);
        push(&sshd, &work, &["main"]).ok();
        assert_eq!(world.serves("shop"), Some(next));
        wait_until("no hook is left", || hooks_below(&world).is_empty());
    }
}

#[test]
fn a_pusher_that_is_stopped_does_not_stall_the_deployment() {
    let world = World::with_shop();
    let (sshd, work) = over_ssh(&world);
    let commit = work.commit("one", &[("a", "1"), ("mc_project.yaml", &chatty(5_000_000))]);
    let data = world.project("shop").join("data");
    let running = crate::support::Running::start(push_command(&sshd, &work, &["main"]));
    wait_until("the build runs", || data.join("waiting").exists());
    let stopped: Vec<i32> = descendants(running.pid());
    for pid in &stopped {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGSTOP);
    }
    running.signal(Signal::SIGSTOP);

    let begin = Instant::now();
    std::fs::write(data.join("go"), "").unwrap();
    wait_until("the deployment ends while the pusher sleeps", || world.serves("shop").as_deref() == Some(&commit));
    assert!(begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());

    for pid in &stopped {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGCONT);
    }
    running.signal(Signal::SIGCONT);
    running.wait();
    world.settle("shop");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(commit));
}

#[test]
fn a_long_silent_build_shows_that_it_lives() {
    let world = World::with_shop();
    let (sshd, work) = over_ssh(&world);
    work.commit("slow", &[("mc_project.yaml", "stages: {build: ['sleep 32']}\n")]);
    let ended = push(&sshd, &work, &["main"]).ok().tells("still running");
    assert!(ended.took > Duration::from_secs(32));
}

#[test]
fn only_git_commands_pass_the_forced_command() {
    let world = World::with_shop();
    let (sshd, _work) = over_ssh(&world);
    let mut ssh = world.home().command("sh");
    let url = sshd.url(std::path::Path::new("/"));
    let host = url.strip_prefix("ssh://").unwrap().trim_end_matches('/');
    ssh.args(["-c", &format!("{} {host} id", sshd.git_ssh_command())]);
    let said = Finished::of(ssh).code(128);
    assert_has(&said.stderr, "git only");
}

/// The processes below `pid`, without itself.
pub fn descendants(pid: u32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut parents = vec![i32::try_from(pid).unwrap()];
    while let Some(parent) = parents.pop() {
        let Ok(tasks) = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")) else { continue };
        for child in tasks.split_whitespace().map(|text| text.parse::<i32>().unwrap()) {
            found.push(child);
            parents.push(child);
        }
    }
    found
}

/// The processes whose working directory is in the project's bare repositories: hooks, and receive-pack.
pub fn hooks_below(world: &World) -> Vec<String> {
    let git = world.project("shop").join("git");
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&git)))
        .map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default())
        .collect()
}
