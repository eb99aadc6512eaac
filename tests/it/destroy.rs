//! What is left of a project that was removed.

use std::path::Path;

use crate::support::{World, assert_lacks, digest};

#[test]
fn what_editable_mode_kept_outlives_the_project() {
    let world = World::new();
    world.home().set("MC_NO_MOUNTS", "1");
    world.mc(&["init", "shop", "--environment", "dev"]).ok().says("next, in your repository:");
    let work = world.clone_of("shop");
    work.commit("one", &[("version", "1")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    std::fs::write(world.run_path("shop", "mine"), "made by hand").unwrap();

    // Nothing was ever cooked here, and still it is no new project: what was moved is told.
    let said = world.mc(&["init", "shop", "--environment", "staging"]).ok().stdout;
    assert!(said.contains("archives/editable-"), "{said}");
    assert_lacks(&said, "next, in your repository:");
    let archives = std::fs::read_dir(world.project("shop").join("archives")).unwrap().flatten();
    let clone = archives.map(|entry| entry.path()).find(|path| path.to_str().unwrap().contains("/editable-")).unwrap();
    let before = digest(&clone);

    let said = world.mc(&["destroy", "shop", "--yes"]).ok().stdout;
    let kept = said.lines().find_map(|line| line.strip_prefix("  what was made in editable mode is in ")).unwrap();
    assert!(!world.project("shop").exists());
    digest(&Path::new(kept).join(clone.file_name().unwrap())).assert_same(&before, "the clone after destroy");
}

#[test]
fn a_clone_that_is_worked_in_outlives_the_project_too() {
    let world = World::new();
    world.home().set("MC_NO_MOUNTS", "1");
    world.mc(&["init", "shop", "--environment", "dev"]).ok();
    let work = world.clone_of("shop");
    work.commit("one", &[("version", "1")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    std::fs::write(world.run_path("shop", "mine"), "made by hand").unwrap();
    let before = digest(&world.project("shop").join("run"));
    let said = world.mc(&["destroy", "shop", "--yes"]).ok().stdout;
    let kept = said.lines().find_map(|line| line.strip_prefix("  what was made in editable mode is in ")).unwrap();
    digest(&Path::new(kept).join("run")).assert_same(&before, "the clone after destroy");
}
