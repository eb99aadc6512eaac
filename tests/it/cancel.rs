//! `cancel`: a deployment that runs is ended, wherever it is, and nothing of it is left.

use crate::support::{World, assert_has, wait_until};

#[test]
fn a_deployment_that_is_cancelled_leaves_the_version_before() {
    for stage in ["build", "check", "backup", "post_deploy", "upgrade"] {
        let (world, first) = World::serving(&[("version", "one")]);
        let work = world.checkout_of("shop");
        let recipe = format!("stages: {{{stage}: 'touch $MC_DATA/waits; sleep 1000'}}\n");
        work.commit("two", &[("version", "two"), ("mc_project.yaml", &recipe)]);
        let begun = world.project("shop").join("data/waits");
        let push = work.start_push(&["main"]);
        wait_until("the step runs", || begun.exists());
        let told = world.mc(&["cancel", "shop"]).ok();
        assert_has(&told.to_string(), "cancelled by ");
        let push = push.wait().fails();
        assert_has(&push.stderr, "cancelled by ");
        world.settle("shop");
        assert_eq!(world.serves("shop").as_deref(), Some(first.as_str()), "{stage}");
        assert_eq!(world.run_text("shop", "version"), "one");
        if matches!(stage, "post_deploy" | "upgrade") {
            assert_has(&push.stderr, &format!("rolled back at {stage}"));
            assert!(!begun.exists(), "data are as before");
        }
        let newest = world.newest("shop");
        assert_has(&newest.to_string(), "cancelled by ");
        let left = std::fs::read_dir(world.project("shop").join("state")).unwrap();
        assert!(left.into_iter().all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with("cancel-")));
        world.mc(&["doctor"]).ok();
    }
}

#[test]
fn what_is_over_or_taken_back_is_not_cancelled() {
    let (world, first) = World::serving(&[("version", "one")]);
    world.mc(&["cancel", "shop"]).code(1).says("no deployment runs now");
    world.mc(&["cancel", "nothing"]).code(2);
    let work = world.checkout_of("shop");
    // While something is taken back, nobody is heard.
    let recipe =
        "stages:\n  backup: 'true'\n  upgrade: 'exit 3'\n  restore: 'touch $MC_PROJECT_DIR/../back; sleep 4'\n";
    work.commit("a way back", &[("mc_project.yaml", recipe.replace("exit 3", "true").as_str())]);
    work.push(&["main"]).ok();
    let good = world.serves("shop").unwrap();
    assert_ne!(good, first);
    work.commit("bad", &[("mc_project.yaml", recipe)]);
    let push = work.start_push(&["main"]);
    let back = world.root().join("srv/projects/back");
    wait_until("it goes back", || back.exists());
    world.mc(&["cancel", "shop"]).ok();
    let told = push.wait().fails();
    assert_has(&told.stderr, "rolled back at upgrade: exit 3");
    world.settle("shop");
    assert_eq!(world.serves("shop"), Some(good));
    // A wrong one is not taken for the one that runs.
    work.commit("slow", &[("mc_project.yaml", "stages: {build: 'touch $MC_DATA/waits; sleep 5'}\n")]);
    let push = work.start_push(&["main"]);
    wait_until("the step runs", || world.project("shop").join("data/waits").exists());
    world.mc(&["cancel", "shop", "#1"]).code(1).says("does not run now");
    push.wait().ok();
}
