//! A connection that dies at any moment of a push, whatever the build prints: the deployment ends by itself, whole and honest.
//! In full mode at twenty moments each.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::ssh::{descendants, hooks_below, over_ssh, push_command};
use crate::support::{self, Record, Running, Sshd, WorkTree, World, is_alive, wait_until};

/// What the build prints: nothing, a line now and then, more than a pipe holds, more than anybody keeps.
const VOLUMES: [(&str, &str); 4] = [
    ("quiet", "sleep 0.8"),
    ("1 KiB/s", "for n in 1 2 3 4 5 6 7 8; do head -c 128 /dev/zero | tr \"\\\\0\" x; echo; sleep 0.1; done"),
    ("more than 64 KiB", "for n in 1 2 3 4 5 6 7 8; do yes chatter | head -c 30000; sleep 0.1; done"),
    ("more than 10 MiB", "for n in 1 2 3 4 5 6 7 8; do yes chatter | head -c 1500000; sleep 0.1; done"),
];
const MOMENTS: usize = 20;

/// Who dies, or stops.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Client,
    Server,
    ReceivePack,
    Stopped,
}

const VICTIMS: [Victim; 4] = [Victim::Client, Victim::Server, Victim::ReceivePack, Victim::Stopped];

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        let _ = nix::sys::signal::kill(Pid::from_raw(*pid), signal);
    }
}

/// The processes that a push has on the other side: those of sshd for this connection, and receive-pack with its shell.
fn on_the_server(sshd: &Sshd, receive_pack: bool) -> Vec<i32> {
    let is_git = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|text| String::from_utf8_lossy(&text).contains("receive-pack"))
    };
    descendants(sshd.pid()).into_iter().filter(|pid| is_git(pid) == receive_pack && !is_hook(*pid)).collect()
}

fn is_hook(pid: i32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("mc_project"))
}

struct Case<'a> {
    world: &'a World,
    sshd: &'a Sshd,
    work: &'a WorkTree<'a>,
}

impl Case<'_> {
    /// Pushes, and does it to the victim after so long; then everything must be as if nothing had been done, or not begun.
    fn run(&self, n: usize, victim: Victim, volume: (&str, &str), after: Duration, record: &mut Record) {
        let what = format!("{victim:?} after {after:?}, {}", volume.0);
        let (world, work) = (self.world, self.work);
        let before = world.serves("shop");
        let recipe = format!("stages:\n  build:\n    - '{}'\n", volume.1);
        let commit = work.commit(&what, &[("a", &n.to_string()), ("mc_project.yaml", &recipe)]);
        let begin = Instant::now();
        let mut running = Running::start(push_command(self.sshd, work, &["--force", "main"]));
        std::thread::sleep(after);
        let is_hit = running.is_running();
        record.hit += usize::from(is_hit);
        let client: Vec<i32> = descendants(running.pid()).into_iter().chain([running.pid().cast_signed()]).collect();
        match victim {
            Victim::Client => send(&client, Signal::SIGKILL),
            Victim::Server => send(&on_the_server(self.sshd, false), Signal::SIGKILL),
            Victim::ReceivePack => send(&on_the_server(self.sshd, true), Signal::SIGKILL),
            Victim::Stopped => send(&client, Signal::SIGSTOP),
        }
        if victim == Victim::Stopped {
            // As long as the deployment takes with a window that is full.
            std::thread::sleep(Duration::from_millis(1500));
            world.settle("shop");
            send(&client, Signal::SIGCONT);
        }
        let ended = running.wait();
        wait_until("what receives is gone", || hooks_below(world).is_empty());
        world.settle("shop");
        let (serves, reference) = (world.serves("shop"), world.node_ref("shop", "refs/heads/main"));
        record.hangs += usize::from(begin.elapsed() > Duration::from_secs(90));
        record.half_states += usize::from(serves != before && serves.as_ref() != Some(&commit));
        record.half_states += usize::from(world.run_tree("shop") != work.reference_tree(&serves.clone().unwrap()));
        // Who was told that it went well has it; and the branch is what serves.
        record.dishonest_exits += usize::from(ended.exit_code() == Some(0) && serves.as_ref() != Some(&commit));
        record.dishonest_exits += usize::from(reference != serves);
        record.panics += usize::from(ended.stderr.contains("panicked"));
        record.litter += client.iter().filter(|pid| is_alive(**pid)).count();
        let next = world.history("shop").into_iter().filter(|entry| entry["commit"] == *commit).count();
        record.dishonest_exits += usize::from(next != usize::from(serves.as_ref() == Some(&commit)));
        assert_eq!(record.found(), 0, "{what}: {record:?}\n{before:?} {commit} {serves:?} {reference:?}\n{ended}");
    }
}

#[test]
fn a_connection_that_dies_at_any_moment_leaves_a_whole_version_and_the_truth() {
    let (world, _) = World::serving(&[("a", "0")]);
    let (sshd, work) = over_ssh(&world);
    work.git(&["pull", "--quiet", world.project("shop").join("git/project").to_str().unwrap(), "main"]).ok();
    let case = Case { world: &world, sshd: &sshd, work: &work };
    let mut all = Vec::new();
    for moment in 0..MOMENTS {
        for (index, volume) in VOLUMES.into_iter().enumerate() {
            // Every victim with every volume, each at its own moments.
            for (which, victim) in VICTIMS.into_iter().enumerate() {
                let nth = (moment * 4 + index * 7 + which * 13) % (MOMENTS * 4);
                all.push((victim, volume, Duration::from_millis(25 * nth as u64)));
            }
        }
    }
    let chosen = support::sample(&all, 4);
    let mut record = Record { points: chosen.len(), of: all.len(), ..Record::default() };
    for (n, (victim, volume, after)) in chosen.into_iter().enumerate() {
        case.run(n + 1, victim, volume, after, &mut record);
    }
    support::record("killed connections", &record);
    world.mc(&["verify", "--all"]).ok();
    let last = work.commit("last", &[("a", "last"), ("mc_project.yaml", "{}\n")]);
    Running::start(push_command(&sshd, &work, &["--force", "main"])).wait().ok();
    assert_eq!(world.serves("shop"), Some(last));
}
