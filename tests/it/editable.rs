//! Editable mode: the pushed commit is checked out in a clone that runs, and nothing that somebody wrote there is ever lost.
//!
//! Every promise is looked at twice where that is possible: with a bind mount (as root), and with the link that takes its
//! place where nothing may be mounted.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::{Tree, WorkTree, World, assert_has, assert_lacks, digest, digest_without};

/// How `project` shows what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Link,
    Mount,
}

/// Every stage leaves a line, with where it worked; `notes` is what the application wrote.
const RECIPE: &str = "\
sync: {ignore_drift: []}
stages:
  stop: ['echo stop $(cat version) >> $MC_DATA/log']
  pre_install: ['echo pre_install >> $MC_DATA/log']
  build: ['test \"$PWD\" = \"$MC_RUN\"; cp version built; echo build >> $MC_DATA/log']
  deploy: ['echo deploy >> $MC_DATA/log']
  backup: ['echo backup >> $MC_DATA/log']
  start: ['echo start $(cat version) >> $MC_DATA/log']
  upgrade: ['echo upgrade >> $MC_DATA/log']
  health: ['test ! -e broken']
";

/// Runs a test in both ways, as far as they are possible here.
fn in_both_ways(test: impl Fn(Way)) {
    test(Way::Link);
    if rustix::process::geteuid().is_root() && can_mount() {
        test(Way::Mount);
    } else {
        eprintln!("skipped with a mount: only root may mount");
    }
}

/// Whether directories can be mounted on others here.
pub fn can_mount() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let bind = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).arg(dir.path()).status().unwrap();
    let mounted = bind(&["mount", "--bind", dir.path().to_str().unwrap()]).success();
    if mounted {
        assert!(bind(&["umount"]).success());
    }
    mounted
}

/// A node of this way, with an empty project `shop` in this environment.
fn world(way: Way, environment: &str) -> World {
    let world = World::new();
    if way == Way::Link {
        // Where we are not root the answer is the same without it.
        world.home().set("MC_NO_MOUNTS", "1");
    }
    world.mc(&["init", "shop", "--environment", environment]).ok();
    world
}

/// A node in editable mode whose clone is at a first commit.
fn editable(way: Way) -> (World, String) {
    let world = world(way, "dev");
    let work = world.clone_of("shop");
    let first = work
        .commit("one", &[("mc_project.yaml", RECIPE), ("version", "1"), ("dir/file", "x"), (".gitignore", "*.log\n")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    drop(work);
    (world, first)
}

fn run(world: &World) -> PathBuf {
    world.project("shop").join("run")
}

fn log(world: &World) -> String {
    std::fs::read_to_string(world.project("shop").join("data/log")).unwrap_or_default().replace('\n', " ")
}

fn head(world: &World) -> String {
    world.home().git_text(&run(world), &["rev-parse", "HEAD"])
}

/// What somebody works on: changed, staged, new, ignored, executable, links, empty directories, names that are no text.
fn work_in(dir: &Path) {
    use std::os::unix::ffi::OsStrExt;
    std::fs::write(dir.join("dir/file"), "changed by hand").unwrap();
    std::fs::write(dir.join("new file"), "untracked").unwrap();
    std::fs::write(dir.join("debug.log"), "ignored").unwrap();
    std::fs::write(dir.join("tool"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(dir.join("tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(dir.join("empty/inner")).unwrap();
    symlink("dir/file", dir.join("link")).unwrap();
    symlink("/nowhere/at/all", dir.join("dangling")).unwrap();
    std::fs::write(dir.join(std::ffi::OsStr::from_bytes(b"not-\xff-text")), "bytes").unwrap();
    let _ = std::fs::remove_file(dir.join("version"));
}

/// Asserts that `project` shows exactly what `run` is.
#[track_caller]
fn assert_shown(world: &World, way: Way) {
    let project = world.project("shop").join("project");
    let meta = std::fs::symlink_metadata(&project).unwrap();
    let ino = std::fs::metadata(run(world)).unwrap().ino();
    match way {
        Way::Link => assert_eq!(std::fs::read_link(&project).unwrap(), Path::new("run")),
        Way::Mount => assert!(meta.is_dir() && meta.ino() == ino, "the mount is missing"),
    }
    digest(&run(world)).assert_same(&digest(&project), "project");
}

#[track_caller]
fn assert_fits(world: &World) {
    world.settle("shop");
    let verified = world.mc(&["verify", "shop"]);
    assert_eq!(verified.exit_code(), Some(0), "{verified}");
}

#[test]
fn the_first_push_makes_a_clone_and_the_next_one_moves_it() {
    in_both_ways(|way| {
        let (world, first) = editable(way);
        assert_eq!(log(&world), "pre_install build start 1 upgrade ", "no deploy, no backup, nothing to stop");
        assert_shown(&world, way);
        assert_eq!((head(&world), world.serves("shop")), (first.clone(), Some(first.clone())));
        let bare = world.project("shop").join("git/project");
        let git = |args: &[&str]| world.home().git_text(&run(&world), args);
        assert_eq!(git(&["remote", "get-url", "origin"]), bare.to_str().unwrap());
        assert_eq!(git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
        assert_eq!(git(&["rev-parse", "--abbrev-ref", "main@{upstream}"]), "origin/main");
        assert_eq!(world.run_text("shop", "built"), "1");
        let archives: Vec<_> = std::fs::read_dir(world.project("shop").join("archives")).unwrap().flatten().collect();
        assert!(archives.iter().all(|entry| entry.file_name() == "store"), "no archive: {archives:?}");
        assert_fits(&world);

        std::fs::write(world.run_path("shop", "mine.txt"), "untracked work").unwrap();
        let work = world.checkout_of("shop");
        work.git(&["rm", "--quiet", "-r", "dir"]).ok();
        let second = work.commit("two", &[("version", "2"), ("added/file", "y")]);
        let push = work.push(&["main"]).ok();
        assert_has(&push.stderr, &format!("from {} to {}", &first[..10], &second[..10]));
        assert!(log(&world).ends_with("stop 1 pre_install build start 2 upgrade "), "{}", log(&world));
        assert_eq!((head(&world), world.serves("shop")), (second.clone(), Some(second)));
        assert_eq!(
            (world.run_text("shop", "mine.txt"), world.run_text("shop", "added/file")),
            ("untracked work".into(), "y".into())
        );
        assert!(!world.run_path("shop", "dir").exists());
        assert_shown(&world, way);
        assert_fits(&world);
        let status = world.mc(&["status", "shop"]).ok();
        assert_has(&status.stdout, if way == Way::Link { "project is a link to it" } else { "mounted at project" });
        let drift = world.mc(&["drift", "shop"]).ok();
        assert_has(&drift.stdout, "+ mine.txt");
    });
}

#[test]
fn the_same_commit_again_runs_its_steps_only_when_asked() {
    in_both_ways(|way| {
        let (world, first) = editable(way);
        let before = log(&world);
        world.mc(&["deploy", "shop"]).ok().says("live already");
        assert_eq!(log(&world), before);
        world.mc(&["deploy", "shop", "--force"]).ok().says("the clone is there already");
        assert!(log(&world).ends_with("stop 1 pre_install build start 1 upgrade "), "{}", log(&world));
        assert_eq!(head(&world), first);
        assert_eq!(
            std::fs::read_dir(world.project("shop").join("deploy"))
                .unwrap()
                .flatten()
                .filter(|entry| entry.file_name().len() > 20)
                .count(),
            1
        );
        assert_fits(&world);
    });
}

#[test]
fn changed_files_refuse_the_push_and_are_named() {
    in_both_ways(|way| {
        let (world, first) = editable(way);
        work_in(&run(&world));
        for n in 0..30 {
            std::fs::write(run(&world).join(format!("dir/staged-{n:02}")), "x").unwrap();
        }
        world.home().git(&run(&world), &["add", "dir"]).ok();
        let before = digest(&run(&world));
        let work = world.checkout_of("shop");
        let second = work.commit("two", &[("version", "2")]);
        let push = work.push(&["main"]).fails();
        for part in ["~ dir/file", "+ dir/staged-00", "… and 13 more", "git -C ", " status", "-o keep-aside"] {
            assert_has(&push.stderr, part);
        }
        assert_lacks(&push.stderr, "staged-29");
        let named = push.stderr.lines().filter(|line| line.contains("    | ")).count();
        assert_eq!(named, 20, "{push}");
        world.settle("shop");
        before.assert_same(&digest(&run(&world)), "the clone after a refused push");
        assert_eq!(world.node_ref("shop", "refs/heads/main").as_deref(), Some(first.as_str()));
        assert_lacks(&log(&world), "stop");
        let plan = work.push(&["-o", "plan", "main"]).ok();
        assert_has(&plan.stderr, "would be refused without -o keep-aside");

        work.push(&["-o", "keep-aside", "main"]).ok().says("kept on its branch aside/");
        assert_eq!(head(&world), second);
        let id = world.newest("shop")["id"].as_str().unwrap().to_string();
        let git = |args: &[&str]| world.home().git_text(&run(&world), args);
        assert_eq!(git(&["show", &format!("aside/{id}:dir/file")]), "changed by hand");
        assert_eq!(git(&["show", &format!("aside/{id}:dir/staged-29")]), "x");
        assert_eq!(git(&["show", &format!("aside/{id}:new file")]), "untracked");
        assert_has(&git(&["ls-tree", &format!("aside/{id}"), "tool"]), "100755");
        assert!(!git(&["ls-tree", "--name-only", &format!("aside/{id}")]).lines().any(|line| line == "version"));
        let aside = world.project("shop").join(format!("archives/aside-{id}/files"));
        assert_eq!(std::fs::read_to_string(aside.join("new file")).unwrap(), "untracked");
        assert_eq!(std::fs::read_link(aside.join("dangling")).unwrap(), Path::new("/nowhere/at/all"));
        assert_eq!(world.run_text("shop", "dir/file"), "x");
        assert_eq!(
            (world.run_text("shop", "debug.log"), world.run_text("shop", "new file")),
            ("ignored".into(), "untracked".into())
        );
        assert_has(&world.mc(&["show", "shop"]).ok().stdout, "no commit knew");
        assert_fits(&world);
    });
}

#[test]
fn commits_that_were_made_in_the_clone_refuse_the_push_until_they_are_pushed_too() {
    in_both_ways(|way| {
        let (world, _) = editable(way);
        let clone = run(&world);
        std::fs::write(clone.join("theirs"), "from the clone").unwrap();
        world.home().git(&clone, &["add", "theirs"]).ok();
        world.home().git(&clone, &["commit", "--quiet", "-m", "made in the clone"]).ok();
        let own = head(&world);
        let work = world.checkout_of("shop");
        let second = work.commit("two", &[("version", "2")]);
        let push = work.push(&["main"]).fails();
        assert_has(&push.stderr, "commits that were made there");
        assert_lacks(&push.stderr, "in the way");
        assert_has(&push.stderr, &format!("log {}", &own[..10]));
        assert_eq!(head(&world), own);

        // The way that the refusal names: fetch it, and push it with one's own work.
        let taken = world.home().git(work.dir(), &["pull", "--quiet", "--no-rebase", clone.to_str().unwrap(), "main"]);
        taken.ok();
        let merged = work.head();
        work.push(&["main"]).ok();
        assert_eq!((head(&world), world.run_text("shop", "theirs")), (merged, "from the clone".into()));
        assert_fits(&world);

        // A branch of the clone that is not checked out is not moved away either.
        world.home().git(&clone, &["commit", "--quiet", "--allow-empty", "-m", "only on main"]).ok();
        let own = head(&world);
        world.home().git(&clone, &["checkout", "--quiet", "-b", "feature", &second]).ok();
        let third = work.commit("three", &[("version", "3")]);
        work.push(&["main"]).fails().says("commits that were made there");
        work.push(&["-o", "keep-aside", "main"]).ok();
        assert_eq!(head(&world), third);
        let id = world.newest("shop")["id"].as_str().unwrap().to_string();
        let kept = world.home().git_text(&clone, &["for-each-ref", "--contains", &own, "--format=%(refname:short)"]);
        assert_has(&kept, &format!("aside/{id}"));
        assert_fits(&world);
    });
}

#[test]
fn a_forced_push_moves_a_clone_in_which_nothing_was_made() {
    in_both_ways(|way| {
        let (world, _) = editable(way);
        let work = world.checkout_of("shop");
        work.git(&["commit", "--quiet", "--amend", "-m", "another one"]).ok();
        let other = work.head();
        work.push(&["--force", "main"]).ok();
        assert_eq!(head(&world), other);
        assert_fits(&world);
    });
}

#[test]
fn files_that_no_commit_knows_are_not_overwritten_ignored_ones_neither() {
    in_both_ways(|way| {
        let (world, _) = editable(way);
        std::fs::write(world.run_path("shop", "secret.log"), "ignored, and precious").unwrap();
        std::fs::write(world.run_path("shop", "becomes-dir"), "a file").unwrap();
        std::fs::write(world.run_path("shop", "dir/deep.log"), "in a directory that becomes a file").unwrap();
        let work = world.checkout_of("shop");
        work.git(&["rm", "--quiet", "-r", "dir"]).ok();
        let second = work.commit("two", &[("secret.log", "theirs"), ("becomes-dir/x", "y"), ("dir", "a file now")]);
        let push = work.push(&["main"]).fails();
        for part in ["secret.log", "becomes-dir (", "dir/deep.log", "in the way"] {
            assert_has(&push.stderr, part);
        }
        assert_eq!(world.run_text("shop", "secret.log"), "ignored, and precious");
        work.push(&["-o", "keep-aside", "main"]).ok();
        assert_eq!((head(&world), world.run_text("shop", "secret.log")), (second, "theirs".into()));
        let id = world.newest("shop")["id"].as_str().unwrap().to_string();
        let aside = world.project("shop").join(format!("archives/aside-{id}/files"));
        let kept = |name: &str| std::fs::read_to_string(aside.join(name)).unwrap();
        assert_eq!(kept("secret.log"), "ignored, and precious");
        assert_eq!(
            (kept("becomes-dir"), kept("dir/deep.log")),
            ("a file".into(), "in a directory that becomes a file".into())
        );
        assert_fits(&world);
    });
}

#[test]
fn a_step_that_fails_after_the_checkout_leaves_everything_as_it_is_and_says_so() {
    in_both_ways(|way| {
        let (world, first) = editable(way);
        let work = world.checkout_of("shop");
        let second = work.commit("two", &[("version", "2"), ("broken", "x")]);
        let push = work.push(&["main"]).ok();
        assert_has(&push.stderr, "the push stands, but its deployment FAILED");
        assert_has(&push.stderr, &format!("run is left as it is; the last good one was {}", &first[..10]));
        assert_eq!((head(&world), world.serves("shop")), (second.clone(), Some(first)));
        assert_eq!(world.node_ref("shop", "refs/heads/main").as_deref(), Some(second.as_str()));
        world.settle("shop");
        let entry = world.newest("shop");
        assert_eq!((entry["verdict"].as_str(), entry["stage"].as_str()), (Some("left_as_it_is"), Some("health")));
        assert!(world.mails().last().unwrap().subject.contains(" at health"));
        assert_fits(&world);

        // By hand it is the steps of what is checked out that run.
        world.mc(&["restart", "shop"]).ok();
        assert!(log(&world).ends_with("upgrade stop 2 start 2 "), "{}", log(&world));
        std::fs::remove_file(world.run_path("shop", "broken")).unwrap();
        world.mc(&["deploy", "shop"]).code(1).says("the clone in");
        world.home().git(&run(&world), &["checkout", "--quiet", "broken"]).ok();
        let third = work.commit("three", &[("version", "3")]);
        work.git(&["rm", "--quiet", "broken"]).ok();
        let fourth = work.commit_all("four");
        assert_ne!(third, fourth);
        work.push(&["main"]).ok();
        assert_eq!(world.serves("shop"), Some(fourth));
        assert!(
            log(&world).contains("start 2 stop 2 pre_install"),
            "what was left running is stopped: {}",
            log(&world)
        );
        assert_fits(&world);
    });
}

#[test]
fn a_first_push_that_fails_serves_nothing_and_is_deployed_by_the_next_one() {
    in_both_ways(|way| {
        let world = world(way, "dev");
        let work = world.clone_of("shop");
        work.commit("one", &[("mc_project.yaml", RECIPE), ("version", "1"), ("broken", "x")]);
        work.push(&["main"]).ok().says("run is left as it is");
        assert_eq!(world.serves("shop"), None);
        assert_fits(&world);
        work.git(&["rm", "--quiet", "broken"]).ok();
        let second = work.commit_all("two");
        work.push(&["main"]).ok();
        assert_eq!(world.serves("shop"), Some(second));
        assert_shown(&world, way);
        assert_fits(&world);
    });
}

#[test]
fn what_failed_before_the_checkout_changes_nothing_and_refuses_the_push() {
    in_both_ways(|way| {
        let (world, first) = editable(way);
        let work = world.checkout_of("shop");
        let recipe = RECIPE.replace("  stop: [", "  stop: ['test ! -e $MC_DATA/jammed', ");
        work.commit("two", &[("mc_project.yaml", &recipe), ("version", "2")]);
        work.push(&["main"]).ok();
        std::fs::write(world.project("shop").join("data/jammed"), "").unwrap();
        let second = head(&world);
        work.commit("three", &[("version", "3")]);
        let push = work.push(&["main"]).fails();
        assert_has(&push.stderr, "failed at stop");
        assert_eq!((head(&world), world.serves("shop")), (second.clone(), Some(second)));
        assert!(log(&world).ends_with("start 2 "), "it runs again: {}", log(&world));
        assert_ne!(world.serves("shop"), Some(first));
        work.push(&["-o", "stage-only", "main"]).fails().says("nothing can be prepared");
        work.commit("invalid", &[("mc_project.yaml", "nonsense: 1\n")]);
        work.push(&["main"]).fails().says("mc_project.yaml:1:1");
        assert_fits(&world);
    });
}

#[test]
fn rollback_and_releases_name_the_way_out() {
    let (world, _) = editable(Way::Link);
    let work = world.checkout_of("shop");
    work.commit("two", &[("version", "2")]);
    work.push(&["main"]).ok();
    let rollback = world.mc(&["rollback", "shop"]).code(1);
    rollback.says("nothing to roll back to").says("init shop --environment staging");
    for command in
        [vec!["release", "pack", "shop"], vec!["release", "checkout", "shop", "-1", "x"], vec!["diff", "shop", "-1"]]
    {
        world.mc(&command).fails();
    }
    world.mc(&["release", "pack", "shop"]).fails().says("editable mode");
}

/// A cooked project with drift in `run` and a restore point, and what its trees are.
fn cooked(way: Way) -> (World, String, Tree) {
    let world = world(way, "staging");
    let work = world.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", RECIPE), ("version", "1"), ("dir/file", "x"), (".gitignore", "*.log\n")]);
    work.push(&["main"]).ok();
    let second = work.commit("two", &[("version", "2")]);
    work.push(&["main"]).ok();
    world.settle("shop");
    work_in(&run(&world));
    std::fs::write(run(&world).join("version"), "2").unwrap();
    let before = digest(&world.project("shop").join("run"));
    (world, second, before)
}

/// The parts of a project that a visit to editable mode must leave exactly as they were.
fn cooked_parts(world: &World) -> Tree {
    digest_without(&world.project("shop"), &["git", "state", "build", "pillar", "data", "archives", "deploy"])
}

#[test]
fn both_directions_keep_every_file_as_it_was() {
    in_both_ways(|way| {
        let (world, second, before) = cooked(way);
        let parts = cooked_parts(&world);
        let current = std::fs::read_link(world.project("shop").join("deploy/current")).unwrap();
        world.mc(&["init", "shop", "--environment", "dev"]).ok();
        let work = world.checkout_of("shop");
        let third = work.commit("three", &[("version", "3")]);
        work.push(&["main"]).ok().says("a new clone");
        world.settle("shop");
        before.assert_same(&digest(&world.project("shop").join("deploy/cooked")), "the parked tree");
        assert_shown(&world, way);
        assert_eq!(world.serves("shop"), Some(third.clone()));
        assert!(log(&world).contains("stop 2 pre_install build start 3 "), "{}", log(&world));
        assert_fits(&world);

        let clone = run(&world);
        work_in(&clone);
        world.home().git(&clone, &["add", "tool"]).ok();
        world.home().git(&clone, &["stash", "list"]).ok();
        let edited = digest(&clone);
        let left = world.mc(&["init", "shop", "--environment", "staging"]).ok();
        let archives = world.project("shop").join("archives");
        let kept =
            std::fs::read_dir(&archives).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let kept: Vec<_> = kept.filter(|name| name.starts_with("editable-")).collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert_has(&left.stdout, &kept[0]);
        edited.assert_same(&digest(&archives.join(&kept[0])), "the clone in the archives");
        before.assert_same(&digest(&clone), "run");
        parts.assert_same(&cooked_parts(&world), "run and project");
        assert_eq!(std::fs::read_link(world.project("shop").join("deploy/current")).unwrap(), current);
        assert_eq!(world.serves("shop"), Some(second));
        assert!(log(&world).contains("stop start 2 "), "version was removed by hand: {}", log(&world));
        assert_has(&world.mc(&["status", "shop"]).ok().stdout, &kept[0]);
        assert!(!world.project("shop").join("state/editable.json").exists());
        assert_fits(&world);

        // The cooking pipeline goes on from there, and knows what was changed by hand in the parked tree.
        let fourth = work.commit("four", &[("version", "4")]);
        work.push(&["main"]).ok().says("run was changed by hand");
        world.settle("shop");
        assert_eq!(world.serves("shop"), Some(fourth));
        world.mc(&["rollback", "shop"]).ok();
        assert_eq!(world.run_text("shop", "version"), "2");
        edited.assert_same(&digest(&archives.join(&kept[0])), "what is in the archives is never rotated");
        assert_fits(&world);
    });
}

#[test]
fn a_push_in_another_mode_leaves_editable_mode_and_a_plan_does_not() {
    in_both_ways(|way| {
        let (world, first) = editable(way);
        work_in(&run(&world));
        let edited = digest(&run(&world));
        let work = world.checkout_of("shop");
        let second = work.commit("two", &[("version", "2")]);
        work.push(&["-o", "mode=cooking", "-o", "plan", "main"]).ok().says("editable mode ends");
        work.git(&["checkout", "--quiet", "-b", "bad"]).ok();
        work.commit("invalid", &[("mc_project.yaml", "nonsense: 1\n")]);
        work.push(&["-o", "mode=cooking", "bad:main"]).fails().says("mc_project.yaml:1:1");
        world.settle("shop");
        edited.assert_same(&digest(&run(&world)), "nothing was left for a plan or an invalid recipe");
        work.git(&["checkout", "--quiet", "main"]).ok();
        let push = work.push(&["-o", "mode=cooking", "main"]).ok();
        assert_has(&push.stderr, "editable mode has ended");
        world.settle("shop");
        assert_eq!(world.serves("shop"), Some(second.clone()));
        assert!(!run(&world).join(".git").exists());
        work.reference_tree(&second).assert_same(&digest_without(&run(&world), &["built"]), "run");
        let archives = world.project("shop").join("archives");
        let kept = std::fs::read_dir(&archives).unwrap().flatten().map(|entry| entry.path());
        let kept = kept.into_iter().find(|path| path.to_str().unwrap().contains("editable-")).unwrap();
        edited.assert_same(&digest(&kept), "the clone");
        assert_fits(&world);
        // And back: the next push without a mode makes a new clone.
        let third = work.commit("three", &[("version", "3")]);
        work.push(&["main"]).ok().says("a new clone");
        assert_eq!((head(&world), world.serves("shop")), (third.clone(), Some(third)));
        assert_ne!(world.serves("shop"), Some(first));
        assert_shown(&world, way);
        assert_fits(&world);
    });
}

#[test]
fn shared_paths_lead_to_data_and_what_stands_there_is_left() {
    let world = world(Way::Link, "dev");
    let work = world.clone_of("shop");
    work.commit(
        "one",
        &[("mc_project.yaml", "shared: [uploads/, deep/down/x.db, taken]\n"), ("a", "1"), ("taken", "mine")],
    );
    work.push(&["main"]).ok().says("is left");
    let shared = world.project("shop").join("data/shared");
    assert_eq!(std::fs::read_link(world.run_path("shop", "uploads")).unwrap(), shared.join("uploads"));
    assert_eq!(std::fs::read_link(world.run_path("shop", "deep/down/x.db")).unwrap(), shared.join("deep/down/x.db"));
    assert_eq!(world.run_text("shop", "taken"), "mine");
    assert_fits(&world);
}

#[test]
fn a_mount_that_a_boot_has_lost_is_told_and_restored() {
    in_both_ways(|way| {
        if way == Way::Link {
            return;
        }
        let (world, _) = editable(way);
        let project = world.project("shop").join("project");
        assert!(std::process::Command::new("umount").arg(&project).status().unwrap().success());
        assert_eq!(std::fs::read_dir(&project).unwrap().count(), 0, "nothing of ours is beneath");
        world.mc(&["verify", "shop"]).code(1).says("does not show run");
        world.mc(&["doctor"]).code(1).says("does not show run");
        assert_has(&world.mc(&["status", "shop"]).ok().stdout, "DOES NOT SHOW IT");
        world.mc(&["recover", "shop"]).ok().says("shows run again");
        assert_shown(&world, way);
        assert!(std::process::Command::new("umount").arg(&project).status().unwrap().success());
        let work = world.checkout_of("shop");
        work.commit("two", &[("version", "2")]);
        work.push(&["main"]).ok();
        assert_shown(&world, way);
        world.mc(&["recover", "shop"]).ok().says("nothing was interrupted");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(mounts.matches(project.to_str().unwrap()).count(), 1, "mounted once");
    });
}

#[test]
fn a_project_in_editable_mode_is_destroyed_without_a_trace() {
    in_both_ways(|way| {
        let (world, _) = editable(way);
        // Somebody works there: that must not keep the project.
        let shell =
            std::process::Command::new("sleep").arg("60").current_dir(world.project("shop").join("project")).spawn();
        let mut shell = shell.unwrap();
        world.mc(&["destroy", "shop", "--yes", "--with", "data"]).ok();
        let _ = shell.kill();
        let _ = shell.wait();
        assert!(!world.project("shop").exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_lacks(&mounts, world.root().to_str().unwrap());
        world.mc(&["init", "shop", "--environment", "dev"]).ok();
    });
}

#[test]
fn a_configuration_of_the_clone_runs_no_hooks() {
    let (world, _) = editable(Way::Link);
    let clone = run(&world);
    let hooks = clone.join(".git/hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    for hook in ["post-checkout", "reference-transaction", "post-index-change", "pre-commit", "post-merge"] {
        std::fs::write(hooks.join(hook), "#!/bin/sh\ntouch \"$GIT_DIR/../hooked\"\n").unwrap();
        std::fs::set_permissions(hooks.join(hook), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let work: WorkTree<'_> = world.checkout_of("shop");
    work.commit("two", &[("version", "2")]);
    std::fs::write(clone.join("dir/file"), "dirty").unwrap();
    work.push(&["-o", "keep-aside", "main"]).ok();
    assert!(!clone.join("hooked").exists() && !clone.join(".git/hooked").exists());
    assert_fits(&world);
}
