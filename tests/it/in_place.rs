//! `run` or `data` as a mount point: nothing can be exchanged, so files are written one by one, and every promise still holds.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{World, assert_has, digest};

const RECIPE: &str =
    "stages:\n  upgrade: ['cp version $MC_DATA/db', 'test ! -e broken || { echo made > by-upgrade; exit 4; }']\n";

/// A directory that is mounted on itself, until the end of the test.
struct Mounted(PathBuf);

impl Mounted {
    /// `None`, with the reason printed, where nothing may be mounted.
    fn new(dir: PathBuf) -> Option<Self> {
        let output = Command::new("mount").arg("--bind").arg(&dir).arg(&dir).output().unwrap();
        if output.status.success() {
            return Some(Self(dir));
        }
        eprintln!("skipped: mount --bind is not possible here: {}", String::from_utf8_lossy(&output.stderr).trim());
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A node whose `run` is a mount point, serving version 1.
fn world_in_place() -> Option<(Mounted, World, String)> {
    let world = World::with_shop();
    let mounted = Mounted::new(world.project("shop").join("run"))?;
    let work = world.clone_of("shop");
    let files = [("mc_project.yaml", RECIPE), ("version", "1"), ("dir/old", "x"), ("same", "s")];
    let first = work.commit("one", &files);
    work.push(&["main"]).ok().tells("file by file");
    drop(work);
    Some((mounted, world, first))
}

fn archive(world: &World) -> PathBuf {
    world.project("shop").join("archives").join(world.newest("shop")["id"].as_str().unwrap())
}

fn db(world: &World) -> String {
    std::fs::read_to_string(world.project("shop").join("data/db")).unwrap()
}

#[track_caller]
fn assert_whole(world: &World, commit: &str, version: &str) {
    world.settle("shop");
    assert_eq!(world.serves("shop").as_deref(), Some(commit));
    world.checkout_of("shop").reference_tree(commit).assert_same(&world.run_tree("shop"), "run");
    assert_eq!(db(world), version, "the data");
    world.mc(&["verify", "--all"]).ok();
}

#[test]
fn a_run_that_is_a_mount_point_is_updated_rolled_back_and_keeps_its_drift() {
    let Some((_mounted, world, first)) = world_in_place() else { return };
    assert_whole(&world, &first, "1");
    let work = world.checkout_of("shop");

    std::fs::write(world.run_path("shop", "same"), "by hand").unwrap();
    work.git(&["rm", "--quiet", "-r", "dir"]).ok();
    let second = work.commit("two", &[("version", "2"), ("dir", "a file now")]);
    work.push(&["main"]).ok().tells("run was changed by hand");
    assert_whole(&world, &second, "2");
    assert_eq!(std::fs::read_to_string(archive(&world).join("drift/files/same")).unwrap(), "by hand");

    let third = work.commit("three", &[("version", "3"), ("broken", "b")]);
    work.push(&["main"]).code(1).tells("rolled back");
    assert_ne!(world.serves("shop"), Some(third));
    assert_whole(&world, &second, "2");
    let failed = archive(&world).join("run.failed/files");
    for (name, text) in [("by-upgrade", "made\n"), ("version", "3"), ("broken", "b")] {
        assert_eq!(
            std::fs::read_to_string(failed.join(name)).ok().as_deref(),
            Some(text),
            "{:?}",
            digest(&failed).paths()
        );
    }

    world.mc(&["rollback", "shop", "--to", "#1"]).ok();
    assert_whole(&world, &first, "1");
    world.mc(&["rollback", "shop", "--to", "#2", "--with", "data", "--yes"]).ok();
    assert_whole(&world, &second, "2");
}

#[cfg(feature = "failpoints")]
#[test]
fn a_switch_in_place_that_is_killed_anywhere_is_taken_back() {
    let Some((_mounted, world, first)) = world_in_place() else { return };
    let work = world.checkout_of("shop");
    work.git(&["rm", "--quiet", "-r", "dir"]).ok();
    let second = work.commit("two", &[("version", "2"), ("dir", "a file now"), ("new/file", "n")]);
    work.push(&["-o", "no-deploy", "main"]).ok();
    for nth in 1..=6 {
        let want = mc_project::project::request::Want::Deploy { commit: second.parse().unwrap() };
        let request = world.home().path("request");
        std::fs::write(&request, serde_json::to_vec(&crate::campaign::stage::request_of(want)).unwrap()).unwrap();
        let mut command = world.mc_command(&["work"]);
        command.stdin(std::fs::File::open(&request).unwrap()).env("MC_FAIL", format!("in-place.applying:{nth}=kill"));
        let ended = crate::support::Running::start_reading(command).wait();
        if ended.exit_code().is_some() {
            assert!(nth > 3, "{ended}");
            break;
        }
        world.mc(&["recover", "shop"]).code(1);
        assert_whole(&world, &first, "1");
    }
    world.mc(&["deploy", "shop", "--commit", &second]);
    assert_whole(&world, &second, "2");
}

/// Two versions whose data moved from one path to another, then back with data; also with a mount of only a part.
fn restores_by_copy(scope: &str, mounted: &str) {
    let world = World::with_shop();
    let data = world.project("shop").join("data");
    std::fs::create_dir(data.join("files")).unwrap();
    let Some(_mounted) = Mounted::new(data.join(mounted)) else { return };
    let recipe = format!("{scope}stages: {{upgrade: ['test ! -e broken || {{ rm $MC_DATA/files/*; exit 4; }}']}}\n");
    let work = world.clone_of("shop");
    work.commit("one", &[("mc_project.yaml", &recipe), ("version", "1")]);
    work.push(&["main"]).ok();
    std::fs::write(data.join("files/a"), "precious").unwrap();
    std::fs::write(data.join("files/b"), "b").unwrap();
    work.commit("two", &[("version", "2")]);
    work.push(&["main"]).ok();
    let before = digest(&data);
    std::fs::rename(data.join("files/a"), data.join("files/moved")).unwrap();
    std::fs::write(data.join("files/b"), "changed").unwrap();
    let later = digest(&data);

    work.commit("three", &[("broken", "x")]);
    work.push(&["main"]).code(1).tells("rolled back");
    world.settle("shop");
    later.assert_same(&digest(&data), "data after a failing upgrade");

    world.mc(&["rollback", "shop", "--with", "data", "--yes", "--to", "#1"]).ok();
    world.settle("shop");
    before.assert_same(&digest(&data), "data after a rollback with data");
    world.mc(&["verify", "--all"]).ok();
}

#[test]
fn data_that_are_a_mount_point_are_restored_by_copying() {
    restores_by_copy("", "");
}

#[test]
fn data_of_which_a_part_is_a_mount_point_are_restored_by_copying() {
    restores_by_copy("data: {snapshot: [files]}\n", "files");
}

#[test]
fn a_run_that_was_replaced_or_taken_away_is_a_clear_error() {
    let (world, first) = World::serving(&[("a", "1")]);
    let run = world.project("shop").join("run");
    let aside = world.home().path("aside");
    let work = world.checkout_of("shop");
    work.commit("two", &[("a", "2")]);
    for replaced in [true, false] {
        std::fs::rename(&run, &aside).unwrap();
        if replaced {
            std::os::unix::fs::symlink(&aside, &run).unwrap();
        }
        let push = work.push(&["main"]).fails();
        assert_has(&push.stderr, run.to_str().unwrap());
        assert!(!push.stderr.contains("bug"), "{push}");
        assert_eq!(std::fs::read_to_string(aside.join("a")).unwrap(), "1", "nothing is written through the link");
        assert_eq!(world.serves("shop").as_deref(), Some(first.as_str()));
        let _ = if Path::new(&run).is_symlink() { std::fs::remove_file(&run) } else { std::fs::remove_dir_all(&run) };
        std::fs::rename(&aside, &run).unwrap();
    }
    work.push(&["main"]).ok();
    assert_eq!(world.run_text("shop", "a"), "2");
    world.mc(&["verify", "--all"]).ok();
}
