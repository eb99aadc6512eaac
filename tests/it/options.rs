//! Push options (`git push -o`): each does what it says, and an unknown one does nothing at all.

use crate::support::{World, assert_has, wait_until};

#[test]
fn plan_shows_what_would_happen_and_deploys_nothing() {
    let (world, first) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.commit("two", &[("a", "2"), ("mc_project.yaml", "stages: {build: ['touch $MC_DATA/was-built']}\n")]);
    let before = world.unchangeable("shop");

    let push = work.push(&["-o", "plan", "main"]).ok();

    push.tells("touch $MC_DATA/was-built").tells("prepared");
    before.assert_same(&world.unchangeable("shop"), "the node");
    assert!(!world.project("shop").join("data/was-built").exists(), "a plan runs no step");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(first.clone()));
    assert_eq!(world.serves("shop"), Some(first));
}

#[test]
fn stage_only_builds_and_does_not_switch() {
    let (world, first) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    let recipe = "stages: {build: ['touch $MC_DATA/was-built'], start: ['touch $MC_DATA/was-started']}\n";
    let second = work.commit("two", &[("a", "2"), ("mc_project.yaml", recipe)]);

    work.push(&["-o", "stage-only", "main"]).ok().tells("prepared");

    assert!(world.project("shop").join("data/was-built").exists());
    assert!(!world.project("shop").join("data/was-started").exists());
    assert_eq!(world.run_text("shop", "a"), "1");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(first));
    work.push(&["main"]).ok();
    assert_eq!(world.serves("shop"), Some(second));
}

#[test]
fn no_deploy_takes_the_commit_and_the_command_deploys_it_later() {
    let (world, first) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    let second = work.commit("two", &[("a", "2")]);

    work.push(&["-o", "no-deploy", "main"]).ok();
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(second.clone()));
    assert_eq!(world.serves("shop"), Some(first));

    world.mc(&["deploy", "shop"]).ok().says("deployed; run serves");
    assert_eq!(world.serves("shop"), Some(second));
    assert_eq!(world.run_text("shop", "a"), "2");
}

#[test]
fn async_returns_at_once_and_the_deployment_goes_on() {
    let (world, first) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    let recipe = "stages: {build: ['while [ ! -e $MC_DATA/go ]; do sleep 0.05; done']}\n";
    let second = work.commit("two", &[("a", "2"), ("mc_project.yaml", recipe)]);

    work.push(&["-o", "async", "main"]).ok().tells("mc_project logs shop");

    assert_eq!(world.serves("shop"), Some(first), "the push returned before the build could end");
    std::fs::write(world.project("shop").join("data/go"), "").unwrap();
    wait_until("the deployment ends", || world.serves("shop").as_deref() == Some(&second));
    world.settle("shop");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(second));
}

#[test]
fn only_and_skip_choose_the_stages_whose_steps_run() {
    let recipe = "stages:\n  build: ['echo build >> $MC_DATA/ran']\n  post_build: ['echo post_build >> $MC_DATA/ran']\n  \
                  upgrade: ['echo upgrade >> $MC_DATA/ran']\n";
    let (world, _) = World::serving(&[("mc_project.yaml", recipe)]);
    let ran = world.project("shop").join("data/ran");
    let work = world.checkout_of("shop");
    for (option, expected) in [("only=build,upgrade", "build\nupgrade\n"), ("skip=build", "post_build\nupgrade\n")] {
        std::fs::remove_file(&ran).unwrap();
        work.commit(option, &[]);
        work.push(&["-o", option, "main"]).ok();
        assert_eq!(std::fs::read_to_string(&ran).unwrap(), expected, "{option}");
    }
}

#[test]
fn the_reason_stands_in_the_history() {
    let (world, _) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.commit("two", &[("a", "2")]);
    work.push(&["-o", "reason=ticket 4711, asked by Bob", "main"]).ok();
    let id = world.newest("shop")["id"].as_str().unwrap().to_string();
    world.mc(&["show", "shop", &id]).ok().says("ticket 4711, asked by Bob");
}

#[test]
fn a_bad_option_refuses_the_push_before_anything_happens() {
    let (world, first) = World::serving(&[("a", "1")]);
    let work = world.checkout_of("shop");
    work.commit("two", &[("a", "2")]);
    let before = world.unchangeable("shop");
    // Nearly the most that git itself takes (64 KiB in one packet).
    let long = format!("reason={}", "x".repeat(60_000));
    for (option, told) in [
        ("plam", "plan"),
        ("cmd=rm -rf /", "cmd"),
        ("mode=editable", "editable"),
        ("mode=nonsense", "nonsense"),
        ("only=biuld", "build"),
        ("skip=", "skip"),
        ("", "option"),
        ("\u{1b}[2J", "\\u{1b}"),
        (long.as_str(), "reason"),
    ] {
        let push = work.push(&["-o", option, "main"]).code(1);
        assert_has(&push.stderr, "rejected");
        assert_has(&push.remote_text(), told);
        before.assert_same(&world.unchangeable("shop"), &format!("the node after {option:?}"));
        assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(first.clone()), "{option:?}");
    }
    let many: Vec<String> = (0..150).map(|n| format!("-oreason={n}")).collect();
    let mut args: Vec<&str> = many.iter().map(String::as_str).collect();
    args.push("main");
    work.push(&args).code(1);
    assert_eq!(world.serves("shop"), Some(first));
    assert_eq!(world.history("shop").len(), 1, "nothing was begun: {:?}", world.history("shop"));
}
