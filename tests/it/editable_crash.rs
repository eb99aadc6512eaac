//! Killed at every named point, a project ends in editable mode or out of it, with every file of everybody (needs `failpoints`).
//!
//! As in `crash`: each scenario is run once undisturbed, which tells the points that it passes, then once per point.
#![cfg(feature = "failpoints")]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mc_project::project::request::{Options, Request, Want};

use crate::campaign::stage::request_of;
use crate::support::{Finished, Running, Tree, World, digest, digest_without};

const RECIPE: &str = "\
stages:
  stop: ['true']
  build: ['cp version built']
  start: ['cp version $MC_DATA/started']
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// The first deployment of a new project.
    First,
    /// A cooked project, changed by hand, becomes editable.
    Enter,
    /// The clone is moved; somebody's files are in it.
    Update,
    /// The same with a build that fails.
    Failing,
    /// The clone is moved, and what was changed in it is kept aside.
    KeepAside,
    /// Editable mode ends.
    Leave,
}

/// A node that is put back to the same state before each run.
struct Stage {
    scenario: Scenario,
    mounts: bool,
    world: World,
    saved: PathBuf,
    request: PathBuf,
    /// What is in `run` before.
    before: Tree,
    old: Option<String>,
    new: String,
    points: BTreeSet<String>,
}

fn run(world: &World) -> PathBuf {
    world.project("shop").join("run")
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

impl Stage {
    fn new(scenario: Scenario, mounts: bool) -> Self {
        let world = World::new();
        if !mounts {
            world.home().set("MC_NO_MOUNTS", "1");
        }
        let first_environment = if scenario == Scenario::Enter { "staging" } else { "dev" };
        world.mc(&["init", "shop", "--environment", first_environment]).ok();
        let work = world.clone_of("shop");
        let first =
            work.commit("one", &[("mc_project.yaml", RECIPE), ("version", "1"), ("old", "x"), ("dir/same", "s")]);
        let no_deploy = ["-o", "no-deploy", "main"];
        let mut new = first.clone();
        if scenario == Scenario::First {
            work.push(&no_deploy).ok();
        } else {
            if scenario == Scenario::Leave {
                // Something is parked, and something is in the clone.
                world.mc(&["init", "shop", "--environment", "staging"]).ok();
                work.push(&["main"]).ok();
                world.mc(&["init", "shop", "--environment", "dev"]).ok();
                work.commit("in the clone", &[("version", "1b")]);
            }
            work.push(&["main"]).ok();
            work.git(&["rm", "--quiet", "old"]).ok();
            let recipe = if scenario == Scenario::Failing {
                RECIPE.replace("cp version built", "exit 3")
            } else {
                RECIPE.into()
            };
            new = work.commit("two", &[("version", "2"), ("new/file", "x"), ("mc_project.yaml", &recipe)]);
            work.push(&no_deploy).ok();
        }
        world.settle("shop");
        drop(work);
        if scenario == Scenario::Enter {
            world.mc(&["init", "shop", "--environment", "dev"]).ok();
        }
        if scenario != Scenario::First {
            std::fs::write(world.run_path("shop", "mine"), "untracked").unwrap();
            if matches!(scenario, Scenario::Enter | Scenario::Leave | Scenario::KeepAside) {
                std::fs::write(world.run_path("shop", "dir/same"), "changed by hand").unwrap();
            }
        }
        let options = Options { keep_aside: scenario == Scenario::KeepAside, ..Options::default() };
        let request = Request { options, ..request_of(Want::Deploy { commit: new.parse().unwrap() }) };
        let (saved, order) = (world.root().with_extension("saved"), world.root().with_extension("request"));
        std::fs::write(&order, serde_json::to_vec(&request).unwrap()).unwrap();
        let before = digest(&run(&world));
        let old = world.serves("shop");
        if mounts {
            unmount(&world);
        }
        copy(&world.root(), &saved);
        let points = BTreeSet::new();
        let mut stage = Self { scenario, mounts, world, saved, request: order, before, old, new, points };
        stage.rehearse();
        stage
    }

    fn command(&self, fault: Option<&str>) -> Command {
        let mut command = if self.scenario == Scenario::Leave {
            self.world.mc_command(&["init", "shop", "--environment", "staging"])
        } else {
            let mut command = self.world.mc_command(&["work"]);
            command.stdin(File::open(&self.request).unwrap());
            command
        };
        if let Some(fault) = fault {
            command.env("MC_FAIL", fault);
        }
        command
    }

    fn rehearse(&mut self) {
        let trace = self.world.root().with_extension("trace");
        let mut command = self.command(None);
        command.env("MC_FAIL_TRACE", &trace);
        let ended = Running::start_reading(command).wait();
        let expected = i32::from(self.scenario == Scenario::Failing);
        assert_eq!(ended.exit_code(), Some(expected), "{ended}");
        let text = std::fs::read_to_string(trace).unwrap();
        self.points = text.lines().map(str::to_string).collect();
        let ours = self.points.iter().filter(|point| point.starts_with("editable.") || point.starts_with("leave."));
        assert!(ours.count() >= 3, "{:?}", self.points);
        assert!(self.assert_whole("an undisturbed run"), "it came to the new state");
    }

    fn run(&self, fault: &str) -> Finished {
        unmount(&self.world);
        std::fs::remove_dir_all(self.world.root()).unwrap();
        copy(&self.saved, &self.world.root());
        if self.mounts {
            // As after a boot; nothing is in flight yet.
            self.world.mc(&["recover", "shop"]).ok();
        }
        Running::start_reading(self.command(Some(fault))).wait()
    }

    fn git(&self, args: &[&str]) -> String {
        self.world.home().git_text(&run(&self.world), args)
    }

    /// One legal state, an honest record, and no file lost; tells whether it is the new state.
    #[track_caller]
    fn assert_whole(&self, what: &str) -> bool {
        let last = self.world.last("shop");
        assert!(last.as_ref().is_none_or(|last| !last.open && last.needs_person.is_none()), "{what}: {last:?}");
        let verified = self.world.mc(&["verify", "shop"]);
        assert_eq!(verified.exit_code(), Some(0), "{what}: {verified}");
        let project = self.world.project("shop");
        let is_clone = run(&self.world).join(".git").is_dir();
        assert_eq!(project.join("state/editable.json").exists(), is_clone, "{what}");
        if is_clone {
            let (shown, real) =
                (std::fs::metadata(project.join("project")).unwrap(), std::fs::metadata(run(&self.world)).unwrap());
            assert_eq!((shown.dev(), shown.ino()), (real.dev(), real.ino()), "{what}: project");
        }
        for litter in ["build/clone", "build/bundle"] {
            assert!(!project.join(litter).exists(), "{what}: {litter}");
        }
        match self.scenario {
            Scenario::First | Scenario::Enter => self.assert_entered(what, is_clone),
            Scenario::Leave => self.assert_left(what, is_clone),
            _ => self.assert_moved(what),
        }
    }

    #[track_caller]
    fn assert_entered(&self, what: &str, is_clone: bool) -> bool {
        let project = self.world.project("shop");
        if !is_clone {
            self.before.assert_same(&digest(&run(&self.world)), &format!("run after {what}"));
            assert_eq!(self.world.serves("shop"), self.old, "{what}");
            return false;
        }
        self.before.assert_same(&digest(&project.join("deploy/cooked")), &format!("the parked tree after {what}"));
        assert_eq!(self.git(&["rev-parse", "HEAD"]), self.new, "{what}");
        assert_eq!(self.git(&["status", "--porcelain", "--untracked-files=no"]), "", "{what}");
        let serves = self.world.serves("shop");
        assert!(serves.is_none() || serves.as_ref() == Some(&self.new), "{what}: {serves:?}");
        true
    }

    #[track_caller]
    fn assert_left(&self, what: &str, is_clone: bool) -> bool {
        let archives = self.world.project("shop").join("archives");
        let kept = std::fs::read_dir(archives).unwrap().flatten().map(|entry| entry.path());
        let kept: Vec<_> = kept.filter(|path| path.to_str().unwrap().contains("editable-")).collect();
        if is_clone {
            self.before.assert_same(&digest(&run(&self.world)), &format!("the clone after {what}"));
            assert_eq!((self.world.serves("shop"), kept.len()), (self.old.clone(), 0), "{what}");
            return false;
        }
        assert_eq!(kept.len(), 1, "{what}");
        self.before.assert_same(&digest(&kept[0]), &format!("the clone in the archives after {what}"));
        assert_eq!(self.world.run_text("shop", "version"), "1", "{what}");
        let project = digest_without(&self.world.project("shop").join("project"), &[]);
        assert!(project.paths().contains(&"mc_project.yaml".to_string()), "{what}: {project:?}");
        true
    }

    #[track_caller]
    fn assert_moved(&self, what: &str) -> bool {
        assert_eq!(self.world.run_text("shop", "mine"), "untracked", "{what}");
        let changed = self.git(&["status", "--porcelain", "--untracked-files=no"]);
        let is_new = self.git(&["rev-parse", "HEAD"]) == self.new;
        let here = std::fs::read_to_string(self.world.run_path("shop", "dir/same")).unwrap();
        if self.scenario == Scenario::KeepAside {
            let branches = self.git(&["for-each-ref", "--format=%(refname)", "refs/heads/aside"]);
            let kept =
                branches.lines().any(|name| self.git(&["show", &format!("{name}:dir/same")]) == "changed by hand");
            assert!(here == "changed by hand" || kept, "{what}: what was changed by hand is nowhere ({branches})");
        } else {
            assert_eq!(changed, "", "{what}");
        }
        assert_eq!(self.world.run_path("shop", "new/file").exists(), is_new, "{what}: half a checkout");
        assert_eq!(self.world.run_path("shop", "old").exists(), !is_new, "{what}: half a checkout");
        let serves = self.world.serves("shop");
        assert!(serves == self.old || (is_new && serves.as_ref() == Some(&self.new)), "{what}: {serves:?}");
        is_new
    }
}

fn unmount(world: &World) {
    let project = world.project("shop").join("project");
    while std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(project.to_str().unwrap()) {
        assert!(Command::new("umount").arg(&project).status().unwrap().success());
    }
}

/// Kills at every point; after one recovery the project is whole, a second one has nothing to do, and the way on is open.
fn survives_kills(scenario: Scenario, mounts: bool) {
    let stage = Stage::new(scenario, mounts);
    let mut came_to = BTreeSet::new();
    for point in &stage.points {
        let what = format!("{scenario:?}, killed at {point}");
        let ended = stage.run(&format!("{point}=kill"));
        assert_eq!(ended.exit_code(), None, "{what}: {ended}");
        stage.world.mc(&["recover", "shop"]);
        came_to.insert(stage.assert_whole(&what));
        let settled = digest(&run(&stage.world));
        stage.world.mc(&["recover", "shop"]).ok().says("nothing was interrupted");
        settled.assert_same(&digest(&run(&stage.world)), &what);
    }
    assert_eq!(came_to.len(), 2, "{scenario:?}: some kills come before, some after");
    if scenario != Scenario::Leave {
        let again = Running::start_reading(stage.command(None)).wait();
        assert!(matches!(again.exit_code(), Some(0 | 1)), "{again}");
    }
    stage.assert_whole("the next one");
}

/// Fails at every point with an error of the disk instead; the same must hold.
fn survives_errors(scenario: Scenario) {
    let stage = Stage::new(scenario, false);
    for point in &stage.points {
        let what = format!("{scenario:?}, ENOSPC at {point}");
        stage.run(&format!("{point}=error:ENOSPC"));
        stage.world.mc(&["recover", "shop"]);
        stage.assert_whole(&what);
    }
}

#[test]
fn a_first_deployment_that_is_killed_anywhere_is_none_or_a_clone() {
    survives_kills(Scenario::First, false);
}

#[test]
fn the_way_into_editable_mode_may_be_cut_anywhere() {
    survives_kills(Scenario::Enter, false);
}

#[test]
fn a_move_of_the_clone_may_be_cut_anywhere() {
    survives_kills(Scenario::Update, false);
}

#[test]
fn a_failing_move_of_the_clone_may_be_cut_anywhere() {
    survives_kills(Scenario::Failing, false);
}

#[test]
fn keeping_aside_may_be_cut_anywhere() {
    survives_kills(Scenario::KeepAside, false);
}

#[test]
fn the_way_out_of_editable_mode_may_be_cut_anywhere() {
    survives_kills(Scenario::Leave, false);
}

#[test]
fn a_full_disk_anywhere_loses_no_file_either() {
    survives_errors(Scenario::Enter);
    survives_errors(Scenario::KeepAside);
    survives_errors(Scenario::Leave);
}

/// The clone's own configuration names a filter that kills the worker in the middle of git's checkout, and goes on working.
#[test]
fn a_worker_that_is_killed_in_the_middle_of_a_checkout_leaves_no_half_of_it() {
    let stage = Stage::new(Scenario::Update, false);
    std::fs::remove_dir_all(stage.world.root()).unwrap();
    copy(&stage.saved, &stage.world.root());
    let clone = run(&stage.world);
    // Upwards from git to the worker, by name: nobody else's.
    let killer = stage.world.home().path("killer");
    let text = "p=$PPID; while test \"$(ps -o comm= -p $p)\" != mc_worker; do p=$(ps -o ppid= -p $p | tr -d ' '); \
                test \"$p\" -gt 1 || exit 1; done; kill -9 $p; sleep 100; cat";
    std::fs::write(&killer, text).unwrap();
    stage.git(&["config", "filter.slow.smudge", &format!("/bin/sh {}", killer.display())]);
    std::fs::create_dir_all(clone.join(".git/info")).unwrap();
    std::fs::write(clone.join(".git/info/attributes"), "version filter=slow\n").unwrap();
    std::fs::write(clone.join("mine"), "untracked").unwrap();
    let ended = Running::start_reading(stage.command(None)).wait();
    assert_eq!(ended.exit_code(), None, "{ended}");
    assert!(clone.join(".git/index.lock").exists() && clone.join("new/file").exists(), "half of it is there");
    stage.git(&["config", "--unset", "filter.slow.smudge"]);
    stage.world.mc(&["recover", "shop"]).code(1).says("interrupted at checkout");
    assert!(!stage.assert_whole("a checkout that was cut"), "it went back");
    assert!(!clone.join(".git/index.lock").exists());
    let branches = stage.git(&["for-each-ref", "refs/heads/aside"]);
    assert!(branches.contains("interrupted"), "what could not be told apart is kept: {branches}");
    assert_eq!(Running::start_reading(stage.command(None)).wait().exit_code(), Some(1), "an id is used once");
    stage.world.mc(&["deploy", "shop"]).ok();
    assert!(stage.assert_whole("the next one"));
}

#[test]
fn with_a_mount_it_is_the_same() {
    if !rustix::process::geteuid().is_root() || !crate::editable::can_mount() {
        eprintln!("skipped: only root may mount");
        return;
    }
    survives_kills(Scenario::Enter, true);
    survives_kills(Scenario::Leave, true);
}
