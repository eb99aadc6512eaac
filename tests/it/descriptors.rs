//! With too few descriptors a push fails cleanly or succeeds; nothing else.

use std::process::Command;

use crate::bit_rot::wait_for_lock;
use crate::support::{self, Finished, Record, World};

#[test]
fn a_push_with_too_few_descriptors_is_refused_or_done() {
    let (world, first) = World::serving(&[("a", "0"), ("mc_project.yaml", "stages: {build: ['cp a built']}\n")]);
    let work = world.checkout_of("shop");
    let all: Vec<usize> = (8..64).collect();
    let chosen = support::sample(&all, 8);
    let mut record = Record { points: chosen.len(), of: all.len(), hit: chosen.len(), ..Record::default() };
    let (mut serves, mut done) = (first, 0);
    for count in chosen {
        let commit = work.commit(&format!("with {count}"), &[("a", &count.to_string())]);
        let push = work.push_command(&["--force", "main"]);
        let mut command: Command = world.home().command("prlimit");
        command.arg(format!("--nofile={count}:{count}")).arg("git").args(push.get_args()).current_dir(work.dir());
        let pushed = Finished::of(command);
        // Not until it is recorded that it ended: that may not have been possible.
        wait_for_lock(&world);
        // What could not even be recorded is finished by the next command.
        let recovered = world.mc(&["recover", "shop"]);
        record.other += usize::from(!matches!(recovered.exit_code(), Some(0 | 1)));
        let is_new = world.serves("shop").as_ref() == Some(&commit);
        record.half_states += usize::from(!is_new && world.serves("shop").as_ref() != Some(&serves));
        serves = world.serves("shop").unwrap();
        record.half_states += usize::from(world.run_text("shop", "a") != world.run_text("shop", "built"));
        record.dishonest_exits += usize::from((pushed.exit_code() == Some(0)) != is_new);
        record.dishonest_exits += usize::from(world.node_ref("shop", "refs/heads/main").as_ref() != Some(&serves));
        record.panics += usize::from(pushed.stderr.contains("panicked"));
        let verified = world.mc(&["verify", "--all"]);
        record.litter += usize::from(verified.exit_code() != Some(0));
        assert_eq!(record.found(), 0, "{count} descriptors: {record:?}\n{pushed}\n{verified}");
        done += usize::from(is_new);
    }
    assert!(done > 0 && done < record.points, "some are too few, and some enough: {done} of {}", record.points);
    support::record("descriptors", &record);
    let last = work.commit("last", &[("a", "last")]);
    work.push(&["--force", "main"]).ok();
    assert_eq!(world.serves("shop"), Some(last));
}
