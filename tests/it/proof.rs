//! What a deployment need not look at again, because the one before proved it, and what it looks at all the same.

use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::support::{World, assert_has, digest};

/// More files than one part of a record holds.
const MANY: usize = 900;

/// A project of many files of which two versions are deployed.
fn deployed(world: &World) -> crate::support::WorkTree<'_> {
    let work = world.clone_of("shop");
    for n in 0..MANY {
        work.write(&format!("d{}/f{n}", n % 30), format!("{n}\n"));
    }
    work.commit("one", &[("a", "1")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    work.commit("two", &[("a", "2"), ("d3/f3", "other")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    work
}

/// The next push must make `run` exactly the commit, and `project/` too, whatever happened before.
fn next_push_is_exact(world: &World, work: &crate::support::WorkTree<'_>) {
    work.git(&["rm", "--quiet", "d7/f7"]).ok();
    let commit = work.commit("next", &[("a", "3"), ("new/file", "x"), ("d3/f33", "changed")]);
    work.push(&["main"]).ok();
    let wanted = work.reference_tree(&commit);
    world.run_tree("shop").assert_same(&wanted, "run");
    digest(&world.project("shop").join("project")).assert_same(&wanted, "project");
    world.settle("shop");
}

fn proof(world: &World) -> std::path::PathBuf {
    world.project("shop").join("state/proof.json")
}

#[test]
fn what_was_proven_is_taken_over_and_a_failed_deployment_proves_nothing() {
    let world = World::with_shop();
    let work = deployed(&world);
    assert!(proof(&world).exists());
    let recipe = "stages: {build: ['exit 3']}\n";
    work.commit("bad", &[("mc_project.yaml", recipe)]);
    work.push(&["main"]).fails();
    world.settle("shop");
    assert!(!proof(&world).exists(), "whoever may have changed a tree has taken the proof away");
    work.git(&["rm", "--quiet", "mc_project.yaml"]).ok();
    next_push_is_exact(&world, &work);
    assert!(proof(&world).exists());
    next_push_of_everything(&world, &work);
}

/// Directories become files and files directories, all of it told by git alone.
fn next_push_of_everything(world: &World, work: &crate::support::WorkTree<'_>) {
    work.git(&["rm", "-r", "--quiet", "d1", "new/file"]).ok();
    let commit = work.commit("turned", &[("d1", "a file now"), ("new/file/deep", "a directory now"), ("d2/z/z", "z")]);
    work.push(&["main"]).ok();
    let wanted = work.reference_tree(&commit);
    world.run_tree("shop").assert_same(&wanted, "run");
    digest(&world.project("shop").join("project")).assert_same(&wanted, "project");
}

#[test]
fn a_proof_of_another_boot_counts_for_nothing() {
    let world = World::with_shop();
    let work = deployed(&world);
    let text = std::fs::read_to_string(proof(&world)).unwrap();
    let boot = mc_project::sys::clock::boot_id();
    assert_has(&text, &boot);
    std::fs::write(proof(&world), text.replace(&boot, &boot.replace('a', "b").replace('1', "2"))).unwrap();
    // What a power cut took of the second tree, and of the checkout.
    let (spare, project) = (world.project("shop").join("deploy/spare"), world.project("shop").join("project"));
    std::fs::write(spare.join("d9/f9"), "").unwrap();
    std::fs::remove_file(project.join("d9/f39")).unwrap();
    next_push_is_exact(&world, &work);
}

#[test]
fn who_has_the_second_tree_open_is_reckoned_with() {
    let world = World::with_shop();
    let work = deployed(&world);
    // It works in `run`, which is the second tree after the next push.
    let mut user = Command::new("sleep").arg("600").current_dir(world.project("shop").join("run")).spawn().unwrap();
    work.commit("three", &[("a", "2.5")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert!(!proof(&world).exists(), "somebody can still write there");
    std::fs::write(world.project("shop").join("deploy/spare/d8/f8"), "written late").unwrap();
    next_push_is_exact(&world, &work);
    user.kill().unwrap();
    user.wait().unwrap();
}

#[test]
fn a_record_that_is_damaged_is_found_out_and_replaced_by_a_look() {
    let world = World::with_shop();
    let work = deployed(&world);
    for name in std::fs::read_dir(world.project("shop").join("state")).unwrap() {
        let path = name.unwrap().path();
        let is_witness = path.file_name().unwrap().to_string_lossy().starts_with("witness-");
        if !is_witness || path.extension().is_some() {
            continue;
        }
        // One bit in every part.
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let size = file.metadata().unwrap().len();
        for at in (300..size).step_by(2000) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
    }
    assert!(proof(&world).exists());
    next_push_is_exact(&world, &work);
}

#[test]
fn a_rollback_takes_the_proof_over_too() {
    let world = World::with_shop();
    let work = deployed(&world);
    let before = world.run_tree("shop");
    next_push_is_exact(&world, &work);
    assert!(proof(&world).exists());
    world.mc(&["rollback", "shop"]).ok();
    world.settle("shop");
    world.run_tree("shop").assert_same(&before, "run");
    digest(&world.project("shop").join("project")).assert_same(&before, "project");
    assert!(proof(&world).exists());
}
