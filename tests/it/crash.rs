//! Killed at any named point, a deployment ends as the old version or the new one, by itself (needs `failpoints`).
#![cfg(feature = "failpoints")]

use mc_project::sys::fault::POINTS;

use crate::support::{Finished, Tree, World, digest, wait_until};

/// Every stage has something to do: a cache, a build, data that the upgrade changes, dumps.
const RECIPE: &str = "\
cache: [kept]
stages:
  build: ['mkdir -p kept; echo x >> kept/count; cp version built']
  backup: ['cp $MC_DATA/db $MC_DUMPS/db || touch $MC_DUMPS/db']
  restore: ['true']
  upgrade: ['cp version $MC_DATA/db']
";

/// A node that serves version 1 and has version 2 in its repository; also the commits.
fn two_versions(broken: bool) -> (World, String, String) {
    let (world, first) = World::serving(&[("mc_project.yaml", RECIPE), ("version", "1"), ("old", "x")]);
    let work = world.checkout_of("shop");
    work.git(&["rm", "--quiet", "old"]).ok();
    let recipe = if broken { format!("{RECIPE}  health: ['exit 6']\n") } else { RECIPE.to_string() };
    let second = work.commit("two", &[("version", "2"), ("new", "x"), ("mc_project.yaml", &recipe)]);
    work.push(&["-o", "no-deploy", "main"]).ok();
    world.settle("shop");
    (world, first, second)
}

/// Deploys with a fault at `point`, and waits until whatever recovers has recovered.
fn deploy_with(world: &World, fault: &str) -> Finished {
    let mut command = world.mc_command(&["deploy", "shop"]);
    command.env("MC_FAIL", fault);
    let ended = Finished::of(command);
    world.mc(&["recover", "shop"]);
    wait_until("nothing is under way", || {
        world.settle("shop");
        world.last("shop").is_some_and(|last| !last.open)
    });
    ended
}

/// I1, I2 and I3 of the promises: one whole version, the data that belong to it, and a record that says so.
fn assert_whole(world: &World, what: &str, versions: &[(&str, &Tree)]) {
    let serves = world.serves("shop").expect("something serves");
    let (_, tree) = versions.iter().find(|(commit, _)| *commit == serves).unwrap_or_else(|| panic!("{what}: {serves}"));
    without_cache(world).assert_same(tree, &format!("run after {what}"));
    let db = std::fs::read_to_string(world.project("shop").join("data/db")).unwrap();
    assert_eq!(db, world.run_text("shop", "version"), "{what}: data and code are of one generation");
    let current = std::fs::read_link(world.project("shop").join("deploy/current")).unwrap();
    let last = world.last("shop").unwrap();
    assert_eq!(current.to_str(), last.serves.as_ref().map(|s| s.id.as_str()), "{what}: deploy/current");
    assert!(last.needs_person.is_none(), "{what}: {:?}", last.needs_person);
    world.mc(&["verify", "shop"]).ok();
}

fn without_cache(world: &World) -> Tree {
    crate::support::digest_without(&world.project("shop").join("run"), &["kept"])
}

/// The tree of the second version as an undisturbed deployment makes it.
fn undisturbed() -> Tree {
    let (world, _, second) = two_versions(false);
    world.mc(&["deploy", "shop"]).ok();
    assert_eq!(world.serves("shop"), Some(second));
    without_cache(&world)
}

#[test]
fn killed_at_any_point_the_node_is_old_or_new_and_deploys_again() {
    let new = undisturbed();
    for point in POINTS {
        let (world, first, second) = two_versions(false);
        let old = without_cache(&world);
        deploy_with(&world, &format!("{point}=kill"));
        let what = format!("a kill at {point}");
        assert_whole(&world, &what, &[(&first, &old), (&second, &new)]);

        // Recovery has nothing left to do, and the next deployment is as any other.
        let settled = digest(&world.project("shop").join("run"));
        world.mc(&["recover", "shop"]).ok();
        settled.assert_same(&digest(&world.project("shop").join("run")), &what);
        world.mc(&["deploy", "shop"]).ok();
        assert_whole(&world, &what, &[(&second, &new)]);
    }
}

#[test]
fn a_rollback_that_is_killed_is_finished_by_the_recovery() {
    for point in
        POINTS.iter().filter(|p| p.starts_with("rollback.") || p.starts_with("settle.") || p.starts_with("end."))
    {
        let (world, first, _) = two_versions(true);
        let old = without_cache(&world);
        deploy_with(&world, &format!("{point}=kill"));
        assert_whole(&world, &format!("a kill at {point}"), &[(&first, &old)]);
    }
}

#[test]
fn a_full_disk_at_any_point_is_a_failure_and_no_half_version() {
    let new = undisturbed();
    for point in POINTS {
        let (world, first, second) = two_versions(false);
        let old = without_cache(&world);
        let ended = deploy_with(&world, &format!("{point}=error:ENOSPC"));
        assert_whole(&world, &format!("ENOSPC at {point}"), &[(&first, &old), (&second, &new)]);
        let told_success = ended.stdout.contains("deployed; run serves");
        let is_new = world.serves("shop").as_deref() == Some(&second);
        assert_eq!(told_success, is_new, "the exit of a deployment tells the truth ({point})\n{ended}");
    }
}
