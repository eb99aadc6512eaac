//! Going back: by itself when something fails after the switch, by hand at any time, with data or without.

use std::path::Path;

use crate::support::{Finished, World, assert_has, assert_lacks, digest};

/// A recipe with an upgrade that changes data, and a failure at one stage when `broken` is committed.
fn recipe_failing_at(stage: &str) -> String {
    let upgrade = "echo upgraded >> $MC_DATA/db.txt";
    // What is backed up is the old version, by its own steps: these cannot see what is new in the commit.
    let fail = if stage == "backup" { "test ! -e $MC_DATA/broken || exit 3" } else { "test ! -e broken || exit 3" };
    if stage == "upgrade" {
        return format!("stages:\n  upgrade: ['{upgrade}', '{fail}']\n");
    }
    format!("stages:\n  upgrade: ['{upgrade}']\n  {stage}: ['{fail}']\n")
}

fn db(world: &World) -> String {
    std::fs::read_to_string(world.project("shop").join("data/db.txt")).unwrap_or_default()
}

fn short(commit: &str) -> &str {
    &commit[..10]
}

/// A second version that is broken, pushed.
#[track_caller]
fn push_broken(world: &World) -> (String, Finished) {
    let work = world.checkout_of("shop");
    let commit = work.commit("the broken one", &[("broken", "x"), ("only-in-second.txt", "x")]);
    (commit, work.push(&["main"]))
}

#[test]
fn a_failure_after_the_switch_brings_code_and_data_back() {
    for stage in ["deploy", "post_deploy", "start", "post_install", "upgrade", "health"] {
        let (world, first) = World::serving(&[("a", "1"), ("mc_project.yaml", &recipe_failing_at(stage))]);
        let (run, data) = (world.run_tree("shop"), digest(&world.project("shop").join("data")));
        assert_eq!(db(&world), "upgraded\n", "{stage}");

        let (second, push) = push_broken(&world);

        let reason = format!("rolled back at {stage}: exit 3; run serves {} again", short(&first));
        assert_eq!(push.rejected("main -> main"), reason);
        world.settle("shop");
        run.assert_same(&world.run_tree("shop"), &format!("run after a failure at {stage}"));
        data.assert_same(&digest(&world.project("shop").join("data")), &format!("data after a failure at {stage}"));
        assert_eq!(world.serves("shop"), Some(first.clone()));
        assert_eq!(world.node_ref("shop", "refs/heads/main"), Some(first));
        let newest = world.newest("shop");
        assert_eq!((newest["verdict"].as_str(), newest["stage"].as_str()), (Some("rolled_back"), Some(stage)));
        assert_eq!(newest["commit"], second);

        // What failed is kept for whoever looks into it: the files in which it differs.
        let archive = world.project("shop").join("archives").join(newest["id"].as_str().unwrap());
        assert!(archive.join("run.failed/files/only-in-second.txt").exists(), "{stage}: {archive:?}");
        assert!(!archive.join("run.failed/files/a").exists(), "{stage}: what is the same is not kept twice");
        if matches!(stage, "upgrade" | "health") {
            let failed = std::fs::read_to_string(archive.join("data.failed/db.txt")).unwrap();
            assert_eq!(failed, "upgraded\nupgraded\n", "{stage}");
        }
    }
}

#[test]
fn a_failure_before_the_switch_changes_nothing_at_all() {
    for stage in ["pre_install", "build", "post_build", "configure", "check", "backup"] {
        let (world, first) = World::serving(&[("a", "1"), ("mc_project.yaml", &recipe_failing_at(stage))]);
        if stage == "backup" {
            std::fs::write(world.project("shop").join("data/broken"), "x").unwrap();
        }
        let before = world.unchangeable("shop");

        let (_, push) = push_broken(&world);

        let reason = format!("failed at {stage}: exit 3; run still serves {}", short(&first));
        assert_eq!(push.rejected("main -> main"), reason);
        world.settle("shop");
        before.assert_same(&world.unchangeable("shop"), &format!("the node after a failure at {stage}"));
        assert_eq!(world.newest("shop")["verdict"], "failed", "{stage}");
    }
}

#[test]
fn services_that_were_stopped_run_again_after_a_failure() {
    let recipe = "stages:\n  stop: ['echo stop >> $MC_DATA/log/calls']\n  start: ['echo start $(cat version) >> $MC_DATA/log/calls']\n  \
                  backup: ['test ! -e $MC_DATA/log/full']\n  upgrade: ['test ! -e worse']\ndata: {snapshot: [db.txt]}\n";
    let world = World::with_shop();
    std::fs::create_dir(world.project("shop").join("data/log")).unwrap();
    let work = world.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", recipe), ("version", "1")]);
    work.push(&["main"]).ok();
    let calls = || std::fs::read_to_string(world.project("shop").join("data/log/calls")).unwrap();
    let after = |before: &str| calls().strip_prefix(before).unwrap().lines().map(str::to_string).collect::<Vec<_>>();

    let before = calls();
    let full = world.project("shop").join("data/log/full");
    std::fs::write(&full, "").unwrap();
    work.commit("fails at backup", &[("version", "2")]);
    work.push(&["main"]).code(1);
    assert_eq!(after(&before), ["stop", "start 1"]);

    let before = calls();
    std::fs::remove_file(&full).unwrap();
    work.commit("fails at upgrade", &[("worse", "x"), ("version", "3")]);
    work.push(&["main"]).code(1);
    assert_eq!(after(&before), ["stop", "start 3", "stop", "start 1"]);
}

#[test]
fn what_the_old_version_writes_again_after_a_rollback_is_still_in_the_restore_point() {
    // The failed version leaves `log` alone; the old one, started again, does not: only the restore point has it then.
    let recipe = "stages: {start: ['date +%N >> $MC_DATA/log'], upgrade: ['test ! -e broken']}\n";
    let failing = recipe.replace("date +%N >> $MC_DATA/log", "true");
    let (world, _) = World::serving(&[("mc_project.yaml", recipe)]);
    let work = world.checkout_of("shop");
    work.commit("broken", &[("broken", "x"), ("mc_project.yaml", &failing)]);
    work.push(&["main"]).code(1);
    world.settle("shop");
    world.mc(&["verify", "shop"]).ok();
}

#[test]
fn dumps_are_made_before_the_switch_and_restored_on_the_way_back() {
    // The "database" lives where no snapshot reaches it: only dump and restore can bring it back.
    let world = World::with_shop();
    let database = world.home().path("database");
    let database = database.display();
    let recipe = format!(
        "stages:\n  backup: ['cp {database} $MC_DUMPS/db']\n  upgrade: ['echo $(cat version) >> {database}', 'test ! -e broken']\n  \
         restore: ['cp $MC_DUMPS/db {database}']\n"
    );
    std::fs::write(database.to_string(), "0\n").unwrap();
    let work = world.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", &recipe), ("version", "1")]);
    work.push(&["main"]).ok();

    work.commit("two", &[("broken", "x"), ("version", "2")]);
    work.push(&["main"]).code(1);

    assert_eq!(std::fs::read_to_string(database.to_string()).unwrap(), "0\n1\n");
    let id = world.newest("shop")["id"].as_str().unwrap().to_string();
    let failed = world.project("shop").join("archives").join(id).join("data.failed/dumps/db");
    assert_eq!(
        std::fs::read_to_string(failed).unwrap(),
        "0\n1\n2\n",
        "what failed was dumped before it was overwritten"
    );
}

#[test]
fn when_the_way_back_fails_too_a_person_is_needed_and_told_both_errors() {
    let recipe = "stages:\n  backup: ['true']\n  upgrade: ['echo upgraded >> $MC_DATA/db.txt', 'test ! -e broken || exit 3']\n  restore: ['exit 4']\n";
    let (world, first) = World::serving(&[("mc_project.yaml", recipe)]);
    let (_, push) = push_broken(&world);

    let push =
        push.code(1).tells("needs a person").tells("exit 3").tells("exit 4").tells("recover shop --back --with data");
    assert_has(&push.stderr, "[remote rejected]");
    world.settle("shop");
    world.mc(&["status", "shop"]).code(5).says("needs a person");
    let work = world.checkout_of("shop");
    work.commit("a push to a project that needs a person", &[]);
    work.push(&["main"]).fails().tells("a person is needed");
    world.mc(&["deploy", "shop"]).code(5);

    world.mc(&["recover", "shop", "--forward"]).ok();
    world.mc(&["status", "shop"]).ok();
    let serves = world.serves("shop").unwrap();
    assert_ne!(serves, first, "the person decided to keep the new version");
    assert!(world.run_path("shop", "broken").exists());
    assert_eq!(db(&world), "upgraded\nupgraded\n", "its data too");
    world.mc(&["verify", "shop"]).ok();
}

/// Three good versions; returns their commits.
fn three_versions(world: &World) -> Vec<String> {
    let work = world.clone_of("shop");
    // The tests go to and fro between them: none of them may be rotated away.
    work.commit("a recipe", &[("mc_project.yaml", "keep: {archives: 30}\n")]);
    (1..=3)
        .map(|n| {
            let text = n.to_string();
            let commit = work.commit(&format!("version {n}"), &[("version", &text), (&format!("only-{n}"), "x")]);
            work.push(&["main"]).ok();
            std::fs::write(world.project("shop").join("data/visits"), &text).unwrap();
            commit
        })
        .collect()
}

#[test]
fn rollback_makes_the_version_before_serve_again_and_keeps_the_data() {
    let world = World::with_shop();
    let commits = three_versions(&world);
    let data = digest(&world.project("shop").join("data"));

    let first = world.mc(&["rollback", "shop"]).ok().says(&format!("run serves {}", short(&commits[1])));
    assert_lacks(&first.stdout, "undoes");

    assert_eq!(world.serves("shop"), Some(commits[1].clone()));
    world.checkout_of("shop").reference_tree(&commits[1]).assert_same(&world.run_tree("shop"), "run");
    data.assert_same(&digest(&world.project("shop").join("data")), "data");
    let newest = world.newest("shop");
    assert_eq!((newest["seq"].as_u64(), newest["work"].as_str()), (Some(4), Some("rollback")));
    assert_eq!(newest["verdict"], "deployed");

    // Once more: from the rollback, the version before it is the third one again, and that is said.
    world.mc(&["rollback", "shop"]).ok().says("this undoes the rollback #4 and makes #3 ");
    assert_eq!(world.serves("shop"), Some(commits[2].clone()));
    assert_eq!(world.run_text("shop", "version"), "3");
}

#[test]
fn a_rollback_target_can_be_named_in_every_documented_way() {
    let world = World::with_shop();
    let commits = three_versions(&world);
    let first_id = world.history("shop")[0]["id"].as_str().unwrap().to_string();
    for to in [first_id.as_str(), "#1", short(&commits[0]), commits[0].as_str(), &first_id[..first_id.len() - 4]] {
        world.mc(&["rollback", "shop", "--to", to]).ok();
        assert_eq!(world.run_text("shop", "version"), "1", "{to}");
        world.mc(&["rollback", "shop", "--to", "#3"]).ok();
        assert_eq!(world.run_text("shop", "version"), "3", "{to}");
    }
    let before = world.unchangeable("shop");
    for to in ["#99", "ffffffffff", "../../etc", "-x", "2026", ""] {
        let said = world.mc(&["rollback", "shop", &format!("--to={to}")]).fails();
        assert!(said.stderr.contains("hint:"), "{to:?}: {said}");
        before.assert_same(&world.unchangeable("shop"), &format!("the node after --to {to:?}"));
    }
}

#[test]
fn rollback_with_data_asks_first_and_keeps_what_it_takes_away() {
    let world = World::with_shop();
    let commits = three_versions(&world);
    let visits = world.project("shop").join("data/visits");
    assert_eq!(std::fs::read_to_string(&visits).unwrap(), "3");
    let before = world.unchangeable("shop");

    // Nobody is there to answer: nothing is done.
    world.mc(&["rollback", "shop", "--with", "data"]).code(2).says("--yes");
    before.assert_same(&world.unchangeable("shop"), "the node");

    world.mc(&["rollback", "shop", "--with", "data", "--yes"]).ok();

    assert_eq!(world.serves("shop"), Some(commits[1].clone()));
    assert_eq!(std::fs::read_to_string(&visits).unwrap(), "2", "as the second version left them");
    let id = world.newest("shop")["id"].as_str().unwrap().to_string();
    world.mc(&["rollback", "shop", "--with", "data", "--yes"]).ok();
    assert_eq!(std::fs::read_to_string(&visits).unwrap(), "3", "the restore point of {id} holds what was taken away");
}

#[test]
fn a_rollback_that_fails_leaves_the_version_that_served() {
    let world = World::with_shop();
    let flag = world.home().path("refuse");
    let work = world.clone_of("shop");
    let recipe = format!("stages: {{health: ['test ! -e {}']}}\n", flag.display());
    work.commit("one", &[("mc_project.yaml", &recipe), ("version", "1")]);
    work.push(&["main"]).ok();
    let second = work.commit("two", &[("version", "2")]);
    work.push(&["main"]).ok();
    // The old version is not healthy any more; the flag goes when the version that served is asked again.
    let recipe_flag = format!("test $(cat version) = 2 || test ! -e {}", flag.display());
    let third = work.commit("three", &[("mc_project.yaml", &format!("stages: {{health: ['{recipe_flag}']}}\n"))]);
    work.push(&["main"]).ok();
    std::fs::write(&flag, "").unwrap();

    world.mc(&["rollback", "shop", "--to", "#1"]).code(1).says("rolled back at health");

    assert_eq!(world.serves("shop"), Some(third));
    assert_ne!(world.serves("shop"), Some(second));
    assert_eq!(world.run_text("shop", "version"), "2");
}

#[test]
fn releases_are_listed_checked_out_compared_and_verified() {
    let world = World::with_shop();
    let commits = three_versions(&world);
    let list = world.mc(&["release", "list", "shop", "--json"]).ok().json();
    assert_eq!(list["kept"].as_array().unwrap().len(), 3);

    let into = world.home().path("checked-out");
    world.mc(&["release", "checkout", "shop", "#1", into.to_str().unwrap()]).ok();
    world.checkout_of("shop").reference_tree(&commits[0]).assert_same(&digest(&into), "the checked out release");
    world.mc(&["release", "checkout", "shop", "#1", into.to_str().unwrap()]).fails().says("checked-out");

    let diff = world.mc(&["diff", "shop", "#1", "#2"]).ok().stdout;
    assert_has(&diff, "only-2");
    assert_has(&diff, "version");
    world.mc(&["verify", "shop"]).ok();
    world.mc(&["verify", "--all"]).ok();
}

#[test]
fn drift_is_told_kept_and_taken_back() {
    let (world, _) = World::serving(&[
        ("index.html", "one\n"),
        ("gone.txt", "x"),
        ("mc_project.yaml", "sync: {ignore_drift: [tmp/, '*.pyc']}\n"),
    ]);
    assert_eq!(world.mc(&["drift", "shop"]).ok().stdout.lines().filter(|l| l.contains(".html")).count(), 0);
    let run = world.project("shop").join("run");
    std::fs::write(run.join("index.html"), "two\n").unwrap();
    std::fs::write(run.join("added.php"), "evil").unwrap();
    std::fs::remove_file(run.join("gone.txt")).unwrap();
    std::fs::create_dir(run.join("tmp")).unwrap();
    std::fs::write(run.join("tmp/session"), "x").unwrap();
    std::fs::write(run.join("module.pyc"), "x").unwrap();

    let drift = world.mc(&["drift", "shop"]).stdout;
    for path in ["index.html", "added.php", "gone.txt"] {
        assert_has(&drift, path);
    }
    for path in ["tmp/session", "module.pyc"] {
        assert!(!drift.contains(path), "{path} is ignored\n{drift}");
    }

    let work = world.checkout_of("shop");
    let commit = work.commit("two", &[("b", "2")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    work.reference_tree(&commit).assert_same(&world.run_tree("shop"), "run");
    let id = world.newest("shop")["id"].as_str().unwrap().to_string();
    let kept = world.project("shop").join("archives").join(id);
    assert!(holds(&kept, "added.php", "evil"), "the drift is kept in {}: {:?}", kept.display(), digest(&kept).paths());
    assert!(holds(&kept, "index.html", "two\n"));
}

/// Whether a file of this name and content is anywhere below `dir`.
fn holds(dir: &Path, name: &str, content: &str) -> bool {
    let paths = digest(dir).paths();
    let mut found = paths.iter().filter(|path| Path::new(path).file_name().is_some_and(|n| n == name));
    found.any(|path| std::fs::read_to_string(dir.join(path)).is_ok_and(|text| text == content))
}
