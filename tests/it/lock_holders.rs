//! Who holds the lock is what the kernel says: a name in the file means nothing, and a dead holder holds nothing up.

use std::time::{Duration, Instant};

use crate::support::{self, Finished, Record, Running, World, is_alive, kill_9, wait_until};

/// What stands in the lock's file of a process that is not the holder.
fn named(pid: u32) -> String {
    format!(r#"{{"what":"deploys 1a2b3c4d5e","id":null,"pid":{pid},"since":"2026-01-01T00:00:00Z"}}"#)
}

#[test]
fn a_holder_that_died_or_whose_number_went_to_another_holds_nobody_up() {
    let (world, _) = World::serving(&[("a", "1")]);
    let lock = world.project("shop").join("state/lock");
    let work = world.checkout_of("shop");
    // A number that nobody has, one that an unrelated process has, our own, and no record at all.
    let mut other = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let mut dead = std::process::Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let texts =
        [named(dead.id()), named(other.id()), named(std::process::id()), named(0), "{".to_string(), String::new()];
    let mut record = Record { points: texts.len() + 1, of: texts.len() + 1, hit: texts.len() + 1, ..Record::default() };
    for (n, text) in texts.iter().enumerate() {
        world.settle("shop");
        std::fs::write(&lock, text).unwrap();
        let status = world.mc(&["status", "shop"]).ok();
        record.dishonest_exits += usize::from(format!("{status}").contains("1a2b3c4d5e"));
        let commit = work.commit(&format!("text {n}"), &[("a", &n.to_string())]);
        let pushed = work.push(&["main"]);
        record.hangs += usize::from(pushed.took > Duration::from_mins(1));
        record.half_states += usize::from(world.serves("shop").as_ref() != Some(&commit));
        assert_eq!(record.found(), 0, "{text}: {record:?}\n{status}\n{pushed}");
    }
    assert!(is_alive(other.id().cast_signed()), "who only had the number was left alone");
    other.kill().unwrap();
    other.wait().unwrap();
    killed_holder(&world, &mut record);
    support::record("lock holders", &record);
}

/// The worker is killed in a build while many wait for its lock: each of them ends, and one after the other.
fn killed_holder(world: &World, record: &mut Record) {
    let contenders = if support::is_full() { 50 } else { 6 };
    let gate = world.home().path("gate");
    let work = world.checkout_of("shop");
    let recipe = format!("stages: {{build: ['until test -e {}; do sleep 0.05; done']}}\n", gate.display());
    work.commit("held", &[("mc_project.yaml", &recipe)]);
    let before = world.serves("shop");
    let held = work.start_push(&["main"]);
    wait_until("it builds", || held.stderr_so_far().contains("checkout"));
    let holder = std::fs::read_to_string(world.project("shop").join("state/lock")).unwrap();
    let holder: serde_json::Value = serde_json::from_str(&holder).unwrap();
    let pid = i32::try_from(holder["pid"].as_u64().unwrap()).unwrap();
    let begin = Instant::now();
    let waiting: Vec<Running> =
        (0..contenders).map(|_| Running::start(world.mc_command(&["rollback", "shop", "--reason", "x"]))).collect();
    std::thread::sleep(Duration::from_millis(300));
    kill_9(pid);
    std::fs::write(&gate, "").unwrap();
    let ended: Vec<Finished> = waiting.into_iter().map(Running::wait).collect();
    let held = held.wait();
    world.settle("shop");
    record.hangs += usize::from(begin.elapsed() > Duration::from_secs(110));
    record.dishonest_exits += usize::from(held.exit_code() == Some(0));
    record.panics += ended.iter().filter(|one| one.exit_code().is_none() || one.stderr.contains("panicked")).count();
    assert_eq!(record.found(), 0, "{record:?}\n{held}\n{ended:#?}");
    let history = world.history("shop");
    let rolled: Vec<&serde_json::Value> = history.iter().filter(|entry| entry["work"] == "rollback").collect();
    let done = ended.iter().filter(|one| one.exit_code() == Some(0)).count();
    let deployed = rolled.iter().filter(|entry| entry["verdict"] == "deployed").count();
    assert!(done == deployed && done > 0, "{done} of {contenders} say that they are done: {rolled:#?}");
    assert!(world.serves("shop").is_some() && before.is_some());
    world.mc(&["verify", "--all"]).ok();
}
