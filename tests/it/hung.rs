//! What hangs is given up or waited for, as promised: steps that obey nothing, and a file system that answers nobody.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::space;
use crate::support::{self, Record, Running, World, wait_until};

/// The most that a hung step costs beyond its deadline: ten seconds to obey the first signal, and what is killed dies at once.
const BEYOND: Duration = Duration::from_secs(15);
const DEADLINE: Duration = Duration::from_secs(2);

/// The processes whose command line holds a word.
fn processes_with(word: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let told = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| String::from_utf8_lossy(&text).contains(word))
    };
    pids.filter(|pid| *pid != std::process::id().cast_signed() && told(pid)).collect()
}

#[test]
fn a_step_that_hangs_in_any_way_costs_its_deadline_and_leaves_nothing() {
    let (world, first) = World::serving(&[("a", "1")]);
    let mark = format!("1000{}.5", std::process::id());
    // It ignores what asks it to end, flees into another session, floods its output, closes it, gives it to a grandchild.
    let ways = [
        format!("trap \"\" TERM INT HUP; (setsid sleep {mark} &); sleep {mark}"),
        format!("(setsid sh -c \"trap : TERM; while :; do sleep {mark}; done\" &); yes {mark}"),
        format!("exec > /dev/null 2>&1; sleep {mark}"),
        format!("(trap \"\" TERM; sleep {mark}) & exec sleep {mark}"),
    ];
    let mut record = Record { points: ways.len(), of: ways.len(), hit: ways.len(), ..Record::default() };
    let work = world.checkout_of("shop");
    for way in &ways {
        let recipe = format!("stages: {{build: [{{run: '{way}', timeout: 2s}}]}}\n");
        work.commit("hangs", &[("mc_project.yaml", &recipe)]);
        let begin = Instant::now();
        let pushed = work.push(&["--force", "main"]);
        world.settle("shop");
        // A busy machine may double it, and no more.
        record.hangs += usize::from(begin.elapsed() > 2 * (DEADLINE + BEYOND));
        record.dishonest_exits +=
            usize::from(pushed.exit_code() != Some(1) || !pushed.stderr.contains("timeout after 2"));
        record.half_states +=
            usize::from(world.serves("shop").as_ref() != Some(&first) || world.run_text("shop", "a") != "1");
        record.litter += processes_with(&mark).len();
        assert_eq!(record.found(), 0, "{way}: {record:?} after {:?}\n{pushed}", begin.elapsed());
    }
    work.commit("well", &[("mc_project.yaml", "{}\n")]);
    work.push(&["--force", "main"]).ok();
    support::record("hung steps", &record);
}

/// Thaws the file system whatever becomes of the test.
struct Frozen(std::path::PathBuf);

impl Frozen {
    fn new(at: &std::path::Path) -> Option<Self> {
        let frozen = Command::new("fsfreeze").arg("-f").arg(at).status().is_ok_and(|status| status.success());
        frozen.then(|| Self(at.to_path_buf()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_that_hangs_is_waited_for_and_nobody_who_only_looks_hangs_with_it() {
    let world = World::new();
    let Some(_mounted) = space::ext4(&world, 96) else { return };
    world.configure("reserve: {bytes: 1MiB, percent: 0}\n");
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    let first = work.commit("one", &[("a", "1")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    let gate = world.home().path("gate");
    let recipe =
        format!("stages: {{build: ['until test -e {}; do sleep 0.05; done; echo x > built']}}\n", gate.display());
    let second = work.commit("two", &[("a", "2"), ("mc_project.yaml", &recipe)]);
    let mut record = Record { points: 2, of: 2, ..Record::default() };
    let mut pushing = work.start_push(&["main"]);
    wait_until("it builds", || pushing.stderr_so_far().contains("checkout"));

    let Some(frozen) = Frozen::new(&world.root()) else {
        std::fs::write(&gate, "").unwrap();
        pushing.wait().ok();
        eprintln!("skipped: no file system can be frozen here");
        return;
    };
    std::fs::write(&gate, "").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    // The worker hangs in a write; who only reads is answered, and told that it is still under way.
    record.hit += 1;
    let status = Running::start(world.mc_command(&["status", "shop"]));
    let status = status.wait();
    record.hangs += usize::from(status.took > Duration::from_secs(20));
    record.half_states += usize::from(world.run_text("shop", "a") != "1");
    record.dishonest_exits += usize::from(!pushing.is_running());
    assert_eq!(record.found(), 0, "{record:?}\n{status}");
    status.ok().says(&first[..10]);
    drop(frozen);

    record.hit += 1;
    let pushed = pushing.wait();
    world.settle("shop");
    record.dishonest_exits += usize::from(pushed.exit_code() != Some(0));
    record.half_states +=
        usize::from(world.serves("shop").as_ref() != Some(&second) || world.run_text("shop", "a") != "2");
    assert_eq!(record.found(), 0, "{record:?}\n{pushed}");
    world.mc(&["verify", "--all"]).ok();
    support::record("frozen file system", &record);
}
