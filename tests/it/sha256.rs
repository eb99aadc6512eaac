//! A project whose repositories name objects by SHA-256.

use crate::support::{World, assert_has};

const RECIPE: &str = "stages: {build: ['test ! -e broken', 'cp a built']}\n";

/// A node with such a project, and a work tree of the same format.
fn sha256_world(config: &str) -> World {
    let world = if config.is_empty() { World::new() } else { World::with_config(config) };
    world.mc(&["init", "shop", "--object-format", "sha256"]).ok();
    world
}

#[test]
fn a_project_with_sha256_is_deployed_updated_and_rolled_back() {
    let world = sha256_world("");
    let work = world.clone_of("shop");
    std::fs::remove_dir_all(work.dir().join(".git")).unwrap();
    work.git(&["init", "--quiet", "--object-format=sha256", "--initial-branch=main"]).ok();
    work.git(&["remote", "add", "node", world.project("shop").join("git/project").to_str().unwrap()]).ok();
    let first = work.commit("one", &[("a", "1"), ("mc_project.yaml", RECIPE)]);
    assert_eq!(first.len(), 64);
    work.push(&["main"]).ok().tells(&format!("run serves {}", &first[..10]));
    let second = work.commit("two", &[("a", "2")]);
    work.push(&["main"]).ok();
    assert_eq!((world.serves("shop"), world.run_text("shop", "built")), (Some(second.clone()), "2".to_string()));
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(second.clone()));

    work.commit("three", &[("broken", "x")]);
    assert_has(&work.push(&["main"]).rejected("main -> main"), "failed at build: exit 1");
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(second.clone()));

    world.mc(&["rollback", "shop"]).ok();
    assert_eq!((world.serves("shop"), world.run_text("shop", "built")), (Some(first.clone()), "1".to_string()));
    world.mc(&["rollback", "shop", "--to", &second]).ok();
    let verdicts: Vec<String> =
        world.history("shop").iter().map(|entry| entry["verdict"].as_str().unwrap().to_string()).collect();
    assert_eq!(verdicts, ["deployed", "deployed", "failed", "deployed", "deployed"]);
    assert_has(&world.mc(&["history", "shop"]).ok().stdout, &first[..10]);
    world.mc(&["verify", "--all"]).ok();
    work.git(&["push", "node", ":main"]).fails();
}

#[test]
fn a_verdict_that_comes_later_works_with_sha256_too() {
    let world = sha256_world("verdict: later\n");
    let work = world.clone_of("shop");
    std::fs::remove_dir_all(work.dir().join(".git")).unwrap();
    work.git(&["init", "--quiet", "--object-format=sha256", "--initial-branch=main"]).ok();
    work.git(&["remote", "add", "node", world.project("shop").join("git/project").to_str().unwrap()]).ok();
    let first = work.commit("one", &[("a", "1"), ("mc_project.yaml", RECIPE)]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert_eq!(world.serves("shop"), Some(first.clone()));
    let broken = work.commit("two", &[("broken", "x")]);
    work.push(&["main"]).ok().tells("failed at build");
    world.settle("shop");
    assert_eq!(world.serves("shop"), Some(first));
    assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(broken), "the push was accepted before it was deployed");
    world.mc(&["verify", "--all"]).ok();
}
