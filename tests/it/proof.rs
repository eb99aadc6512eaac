//! What a deployment need not look at again, because the one before proved it, and what it looks at all the same.

use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::support::{World, assert_has, assert_lacks, digest};

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
    damage_witnesses(&world);
    assert!(proof(&world).exists());
    next_push_is_exact(&world, &work);
}

#[test]
fn damaged_records_of_what_was_built_and_of_data_stop_neither_a_deployment_nor_the_way_back() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    let data = world.project("shop").join("data");
    for n in 0..MANY {
        work.write(&format!("d{}/f{n}", n % 30), format!("{n}\n"));
        std::fs::create_dir_all(data.join(format!("d{}", n % 30))).unwrap();
        std::fs::write(data.join(format!("d{}/f{n}", n % 30)), format!("data {n}\n")).unwrap();
    }
    let recipe = "stages: {build: ['cat a d*/* > made'], upgrade: ['cp a $MC_DATA/d1/version']}\n";
    work.commit("one", &[("mc_project.yaml", recipe), ("a", "1")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    let mut versions = Vec::new();
    for version in ["2", "3"] {
        damage_witnesses(&world);
        work.git(&["rm", "--quiet", "-r", &format!("d2{version}")]).ok();
        work.commit(version, &[("a", version)]);
        work.push(&["main"]).ok();
        world.settle("shop");
        versions.push((world.run_tree("shop"), digest(&data)));
    }
    damage_witnesses(&world);
    world.mc(&["rollback", "shop", "--with", "data", "--yes"]).ok();
    world.settle("shop");
    world.run_tree("shop").assert_same(&versions[0].0, "run");
    digest(&data).assert_same(&versions[0].1, "data");
    world.mc(&["verify", "shop"]).ok();
}

/// One bit in every part of every record of a tree.
fn damage_witnesses(world: &World) {
    for name in std::fs::read_dir(world.project("shop").join("state")).unwrap() {
        let path = name.unwrap().path();
        let is_witness = path.file_name().unwrap().to_string_lossy().starts_with("witness-");
        if !is_witness || path.extension().is_some() {
            continue;
        }
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let size = file.metadata().unwrap().len();
        for at in (300..size).step_by(2000) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
    }
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

#[test]
fn a_manifest_that_is_damaged_makes_no_drift() {
    let world = World::with_shop();
    let work = deployed(&world);
    std::fs::write(world.run_path("shop", "d9/f9"), "by hand").unwrap();
    // One bit of the part that says what that file was; what is pushed is far from it.
    let serving = world.last("shop").unwrap().serves.unwrap().id;
    let releases = world.project("shop").join("deploy");
    let whole = std::fs::read_dir(&releases).unwrap().map(|entry| entry.unwrap().path().join("manifest"));
    let whole = whole.filter(|path| path.exists() && std::fs::metadata(path).unwrap().len() > 10_000);
    for path in whole {
        let text = std::fs::read_to_string(&path).unwrap();
        let at = text.find(" d9/f9 ").unwrap() as u64;
        std::fs::File::options().write(true).open(&path).unwrap().write_all_at(b"!", at).unwrap();
    }
    work.commit("far away", &[("a", "3")]);
    let told = work.push(&["main"]).ok().remote_text();
    world.settle("shop");
    assert_lacks(&told, "changed by hand");
    assert_has(&told, "drift could not be kept: the record of a tree is damaged");
    let live = world.last("shop").unwrap().serves.unwrap().id;
    assert_ne!(live, serving);
    assert!(!world.project("shop").join("archives").join(live.as_str()).join("drift").exists());
}

#[test]
fn an_index_that_is_gone_costs_time_and_nothing_else() {
    let world = World::with_shop();
    let work = world.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", "stages: {build: ['(cat a; echo made) > made']}\n"), ("a", "1")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    let before = world.run_tree("shop");
    work.commit("two", &[("a", "2")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    let state = world.project("shop").join("state");
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "index") {
            std::fs::remove_file(path).unwrap();
        }
    }
    // What the build made is in no repository: of the version before, only the second tree has it.
    let dir = world.home().path("checkout");
    world.mc(&["release", "checkout", "shop", "-1", dir.to_str().unwrap()]).ok();
    digest(&dir).assert_same(&before, "the checkout");
}

#[test]
fn releases_that_stand_on_each_other_stay_whole_while_others_go() {
    let world = World::with_shop();
    let work = deployed(&world);
    work.commit("keep", &[("mc_project.yaml", "keep: {archives: 3}\n")]);
    let mut commits = Vec::new();
    let live_manifest = || {
        let live = world.last("shop").unwrap().serves.unwrap().id;
        std::fs::read_to_string(world.project("shop").join("deploy").join(live.as_str()).join("manifest")).unwrap()
    };
    for n in 0..16 {
        commits.push(work.commit(&format!("{n}"), &[("a", &format!("{n}")), (&format!("d5/new{n}"), "x")]));
        work.push(&["main"]).ok();
        world.settle("shop");
        assert!(live_manifest().len() < 10_000, "a list of changes, however many releases went");
    }
    world.mc(&["verify", "shop"]).ok();
    let releases = world.mc(&["release", "list", "shop", "--json"]).ok().json();
    assert!(releases["kept"].as_array().unwrap().len() >= 4, "{releases}");
    for (n, back) in [(12, 3), (13, 2), (14, 1)] {
        let dir = world.home().path(&format!("back{back}"));
        world.mc(&["release", "checkout", "shop", &format!("-{back}"), dir.to_str().unwrap()]).ok();
        digest(&dir).assert_same(&work.reference_tree(&commits[n]), &format!("{back} back"));
    }
    // One whole manifest, and one more where the oldest ones stand on another: everything else is lists of changes.
    let sizes = std::fs::read_dir(world.project("shop").join("deploy")).unwrap().flat_map(|entry| {
        let dir = entry.unwrap().path();
        ["manifest", "base.manifest"].map(|name| std::fs::metadata(dir.join(name)).map_or(0, |meta| meta.len()))
    });
    assert!(sizes.filter(|size| *size > 10_000).count() <= 2);
    // Where the changes are many, reading them would cost as much as the whole.
    for n in 0..MANY / 2 {
        work.write(&format!("d{}/f{n}", n % 30), "many\n");
    }
    work.commit("many", &[("a", "many")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    assert_lacks(live_manifest().lines().next().unwrap(), "changes");
    world.mc(&["verify", "shop"]).ok();
}
