//! The program is replaced while it works: who began goes on with what it began with, and the new one finishes what is left.

use std::path::PathBuf;

use crate::support::{self, Finished, Record, World, kill_9, wait_until};

/// A node whose hooks are links to a copy of the program, which can be replaced.
struct Node {
    world: World,
    program: PathBuf,
}

impl Node {
    fn new() -> Self {
        let world = World::new();
        let program = world.home().path("mc_project");
        std::fs::copy(env!("CARGO_BIN_EXE_mc_project"), &program).unwrap();
        let node = Self { world, program };
        node.mc(&["init", "shop"]).ok();
        node
    }

    fn mc(&self, args: &[&str]) -> Finished {
        let mut command = self.world.home().command(&self.program);
        command.env("MC_ROOT", self.world.root()).args(args);
        Finished::of(command)
    }

    /// As a package does it: another file under the same name.
    fn replace(&self) {
        let new = self.program.with_extension("new");
        std::fs::copy(env!("CARGO_BIN_EXE_mc_project"), &new).unwrap();
        // Another file with other bytes, as another version is; what is behind the end of a program is not read.
        let mut file = std::fs::File::options().append(true).open(&new).unwrap();
        std::io::Write::write_all(&mut file, b"another version").unwrap();
        drop(file);
        std::fs::rename(&new, &self.program).unwrap();
    }
}

#[test]
fn a_program_that_is_replaced_during_a_deployment_ends_it_and_one_that_is_killed_then_is_finished_by_the_new_one() {
    let node = Node::new();
    let (world, gate) = (&node.world, node.world.home().path("gate"));
    let work = world.clone_of("shop");
    let wait = |text: &str| format!("until test -e {}; do sleep 0.05; done; {text}", gate.display());
    let one = work.commit("one", &[("a", "1")]);
    work.push(&["main"]).ok();
    let mut record = Record { points: 3, of: 3, ..Record::default() };
    let mut serves = one;
    // Replaced in the build, replaced after the switch, and replaced and killed there.
    for (n, (stage, killed)) in [("build", false), ("upgrade", false), ("upgrade", true)].into_iter().enumerate() {
        let _ = std::fs::remove_file(&gate);
        let recipe = format!("stages:\n  {stage}:\n    - '{}'\n    - 'true'\n  health: ['test -e a']\n", wait("true"));
        let commit = work.commit("next", &[("a", &format!("{n}-2")), ("mc_project.yaml", &recipe)]);
        let pushing = work.start_push(&["main"]);
        let sign = if stage == "build" { "✓ checkout" } else { "✓ deploy" };
        wait_until("it waits", || {
            pushing.stderr_so_far().contains(sign) && world.last("shop").is_some_and(|last| last.open)
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
        node.replace();
        record.hit += 1;
        if killed {
            let holder = std::fs::read_to_string(world.project("shop").join("state/lock")).unwrap();
            let holder: serde_json::Value = serde_json::from_str(&holder).unwrap();
            kill_9(i32::try_from(holder["pid"].as_u64().unwrap()).unwrap());
        }
        std::fs::write(&gate, "").unwrap();
        let pushed = pushing.wait();
        world.settle("shop");
        if !killed {
            serves.clone_from(&commit);
        }
        record.half_states += usize::from(world.serves("shop").as_ref() != Some(&serves));
        record.dishonest_exits += usize::from((pushed.exit_code() == Some(0)) == killed);
        record.panics += usize::from(pushed.stderr.contains("panicked"));
        let verified = node.mc(&["verify", "--all"]);
        record.litter += usize::from(verified.exit_code() != Some(0));
        assert_eq!(record.found(), 0, "{stage}, killed: {killed}: {record:?}\n{pushed}\n{verified}");
    }
    support::record("upgrades", &record);
    let last = work.commit("last", &[("a", "last"), ("mc_project.yaml", "{}\n")]);
    work.push(&["--force", "main"]).ok();
    assert_eq!(world.serves("shop"), Some(last));
}
