//! Killed, or failed by the disk, at every named point, a node ends as the old version or the new one (needs `failpoints`).
//!
//! Each scenario is run once undisturbed, which tells the points that it passes; then once per point and fault. The worker
//! is started without its watcher, so that nobody recovers but the test. In full mode every passage of every point is hit.
#![cfg(feature = "failpoints")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use mc_project::project::ids::DeploymentId;
use mc_project::project::request::{Options, Request, Want};

use crate::support::{Finished, Record, Running, Tree, World, digest, digest_without, is_full, record};

/// Every stage has something to do: a cache, a build, data that the upgrade changes, dumps, a file that is replaced.
const RECIPE: &str = "\
cache: [kept]
stages:
  build: ['mkdir -p kept; echo x >> kept/count; cp version built']
  stop: ['true']
  backup: ['cp $MC_DATA/db $MC_DUMPS/db || touch $MC_DUMPS/db']
  restore: ['true']
  start: ['true']
  upgrade: ['cp version $MC_DATA/db']
";

/// What is done to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    First,
    Update,
    FailingBuild,
    FailingUpgrade,
    Rollback,
    RollbackWithData,
}

/// A state that the node may end in: what serves and what `run` holds then.
struct Legal {
    serves: Option<String>,
    tree: Tree,
}

/// A node that is put back to the same state before each run.
struct Stage {
    world: World,
    saved: PathBuf,
    request: PathBuf,
    legal: Vec<Legal>,
    outside: Tree,
    /// How often each point is passed in an undisturbed run.
    points: BTreeMap<String, usize>,
    /// The exit code of an undisturbed run.
    code: i32,
}

fn tree_of(world: &World) -> Tree {
    digest_without(&world.project("shop").join("run"), &["kept"])
}

/// Everything on the node that does not belong to the project.
fn outside_of(world: &World) -> Tree {
    digest_without(&world.root(), &["srv/projects/shop", "var/log/mc_project/shop", "var/mail", "etc"])
}

impl Stage {
    fn new(scenario: Scenario) -> Self {
        let world = World::with_shop();
        world.mc(&["init", "other"]).ok();
        let work = world.clone_of("shop");
        let first =
            work.commit("one", &[("mc_project.yaml", RECIPE), ("version", "1"), ("old", "x"), ("dir/same", "s")]);
        if scenario == Scenario::First {
            work.push(&["-o", "no-deploy", "main"]).ok();
        } else {
            work.push(&["main"]).ok();
        }
        let recipe = match scenario {
            Scenario::FailingBuild => RECIPE.replace("cp version built", "exit 3"),
            Scenario::FailingUpgrade => RECIPE.replace("cp version $MC_DATA/db", "cp version $MC_DATA/db; exit 4"),
            _ => RECIPE.to_string(),
        };
        let mut commit = first;
        if scenario != Scenario::First {
            work.git(&["rm", "--quiet", "old"]).ok();
            commit = work.commit("two", &[("version", "2"), ("new", "x"), ("mc_project.yaml", &recipe)]);
            let options: &[&str] = match scenario {
                Scenario::Rollback | Scenario::RollbackWithData => &["main"],
                _ => &["-o", "no-deploy", "main"],
            };
            work.push(options).ok();
        }
        world.settle("shop");
        drop(work);
        let want = match scenario {
            Scenario::Rollback => Want::Rollback { to: None, with_data: false },
            Scenario::RollbackWithData => Want::Rollback { to: None, with_data: true },
            _ => Want::Deploy { commit: commit.parse().unwrap() },
        };
        let saved = world.root().with_extension("saved");
        let request = world.root().with_extension("request");
        let text = serde_json::to_vec(&request_of(want)).unwrap();
        std::fs::write(&request, text).unwrap();
        let before = Legal { serves: world.serves("shop"), tree: tree_of(&world) };
        copy(&world.root(), &saved);
        let outside = outside_of(&world);
        let mut stage = Self { world, saved, request, legal: vec![before], outside, points: BTreeMap::new(), code: 0 };
        stage.rehearse();
        stage
    }

    /// Runs undisturbed, and notes where the node may end and which points are passed on the way.
    fn rehearse(&mut self) {
        let trace = self.world.root().with_extension("trace");
        let mut command = self.command(&["work"]);
        command.env("MC_FAIL_TRACE", &trace);
        let ended = Running::start_reading(command).wait();
        self.code = ended.exit_code().unwrap();
        self.legal.push(Legal { serves: self.world.serves("shop"), tree: tree_of(&self.world) });
        for point in std::fs::read_to_string(trace).unwrap().lines() {
            *self.points.entry(point.to_string()).or_default() += 1;
        }
        assert!(self.points.len() > 8, "{:?}", self.points);
        self.assert_whole("an undisturbed run");
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.world.mc_command(args);
        command.stdin(File::open(&self.request).unwrap());
        command
    }

    /// Puts the node back and runs it with a fault.
    fn run(&self, fault: &str) -> Finished {
        std::fs::remove_dir_all(self.world.root()).unwrap();
        copy(&self.saved, &self.world.root());
        let mut command = self.command(&["work"]);
        command.env("MC_FAIL", fault);
        Running::start_reading(command).wait()
    }

    fn recover(&self, what: &str) {
        let recovered = self.world.mc(&["recover", "shop"]);
        if recovered.exit_code() == Some(5) {
            // A fault inside the way back itself: a person decides, and then it must go back whole.
            let back = self.world.mc(&["recover", "shop", "--back", "--with", "data"]);
            assert_eq!(back.exit_code(), Some(1), "{what}: {back}");
        }
    }

    /// I1 to I7 of the promises: one whole version, its data, an honest record, nothing left over, nothing outside touched.
    #[track_caller]
    fn assert_whole(&self, what: &str) {
        let serves = self.world.serves("shop");
        let legal = self.legal.iter().find(|legal| legal.serves == serves);
        let legal = legal.unwrap_or_else(|| panic!("{what}: {serves:?} serves"));
        tree_of(&self.world).assert_same(&legal.tree, &format!("run after {what}"));
        if serves.is_some() {
            let db = std::fs::read_to_string(self.world.project("shop").join("data/db")).unwrap_or_default();
            let version = self.world.run_text("shop", "version");
            let by_data = self.legal.len() < 2 || db == version || self.is_code_only_rollback();
            assert!(by_data, "{what}: data are of generation {db:?}, code of {version:?}");
        }
        let last = self.world.last("shop");
        assert!(last.as_ref().is_none_or(|last| !last.open && last.needs_person.is_none()), "{what}: {last:?}");
        let current = std::fs::read_link(self.world.project("shop").join("deploy/current")).ok();
        let id = last.and_then(|last| last.serves.map(|serves| serves.id.to_string()));
        assert_eq!(current.map(|path| path.display().to_string()), id, "{what}: deploy/current");
        self.world.mc(&["verify", "--all", "--json"]).ok();
        outside_of(&self.world).assert_same(&self.outside, &format!("outside after {what}"));
    }

    /// A manual rollback without data leaves the data of the newer version, as documented.
    fn is_code_only_rollback(&self) -> bool {
        std::fs::read_to_string(&self.request).unwrap().contains(r#""want":"rollback","to":null,"with_data":false"#)
    }

    /// Passages to hit: the first and the last one, in full mode each.
    fn passages(&self, point: &str) -> Vec<usize> {
        let count = self.points[point];
        match count {
            _ if is_full() => (1..=count).collect(),
            1 => vec![1],
            _ => vec![1, count],
        }
    }
}

/// A request as a hook hands it to the worker.
pub fn request_of(want: Want) -> Request {
    Request {
        project: "shop".parse().unwrap(),
        id: DeploymentId::new(jiff::Timestamp::now()),
        want,
        update: None,
        options: Options::default(),
        pusher: "tester".to_string(),
        key: None,
        push: None,
        wait_seconds: Some(60),
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Kills at every point: afterwards, and after one recovery, the node is whole; a second recovery has nothing to do; the next
/// deployment works.
fn survives_kills(scenario: Scenario) {
    let stage = Stage::new(scenario);
    let mut told = Record { of: stage.points.values().sum(), ..Record::default() };
    for point in stage.points.keys() {
        for nth in stage.passages(point) {
            told.points += 1;
            told.hit += 1;
            let what = format!("{scenario:?}, killed at {point}:{nth}");
            stage.run(&format!("{point}:{nth}=kill"));
            stage.recover(&what);
            stage.assert_whole(&what);
            let settled = digest(&stage.world.project("shop").join("run"));
            stage.world.mc(&["recover", "shop"]).ok();
            settled.assert_same(&digest(&stage.world.project("shop").join("run")), &what);
        }
    }
    let again = stage.command(&["work"]);
    let code = Running::start_reading(again).wait().exit_code();
    assert!(
        code == Some(stage.code) || code == Some(0) || code == Some(1),
        "{scenario:?}: the next one ends with {code:?}"
    );
    stage.world.mc(&["verify", "--all"]).ok();
    record(&format!("kill at each named point: {scenario:?}"), &told);
}

/// Fails at every point: the node is whole, and what the exit code says is true.
fn survives_errors(scenario: Scenario, error: &str, stride: usize) {
    let stage = Stage::new(scenario);
    let stride = if is_full() { 1 } else { stride };
    for point in stage.points.keys().step_by(stride) {
        for nth in stage.passages(point) {
            let what = format!("{scenario:?}, {error} at {point}:{nth}");
            let ended = stage.run(&format!("{point}:{nth}=error:{error}"));
            let new = stage.legal[1].serves.clone();
            let serves = stage.world.serves("shop");
            if ended.exit_code() == Some(0) {
                assert_eq!(serves, new, "{what}: exit 0 means that the new version serves\n{ended}");
            } else if stage.code == 0 && ended.exit_code() != Some(5) {
                let open = stage.world.last("shop").is_some_and(|last| last.open);
                assert!(open || serves != new, "{what}: a failure means that the old version serves\n{ended}");
            }
            stage.recover(&what);
            stage.assert_whole(&what);
        }
    }
}

/// Kills the worker at one point and the recovery at another; the second recovery makes the node whole.
fn survives_kills_in_the_recovery(scenario: Scenario, first: &str) {
    let stage = Stage::new(scenario);
    stage.run(&format!("{first}=kill"));
    let trace = stage.world.root().with_extension("trace2");
    let mut command = stage.command(&["recover", "shop"]);
    command.env("MC_FAIL_TRACE", &trace);
    Running::start_reading(command).wait();
    let mut passed: BTreeMap<String, usize> = BTreeMap::new();
    for point in std::fs::read_to_string(trace).unwrap().lines() {
        *passed.entry(point.to_string()).or_default() += 1;
    }
    assert!(passed.len() > 5, "{passed:?}");
    for (point, count) in &passed {
        let passages = if is_full() { (1..=*count).collect() } else { vec![1] };
        for nth in passages {
            stage.run(&format!("{first}=kill"));
            let mut command = stage.command(&["recover", "shop"]);
            command.env("MC_FAIL", format!("{point}:{nth}=kill"));
            Running::start_reading(command).wait();
            let what = format!("{scenario:?}, killed at {first}, recovery killed at {point}:{nth}");
            stage.recover(&what);
            stage.assert_whole(&what);
        }
    }
}

#[test]
fn a_first_deployment_that_is_killed_anywhere_is_none_or_whole() {
    survives_kills(Scenario::First);
}

#[test]
fn an_update_that_is_killed_anywhere_is_old_or_new() {
    survives_kills(Scenario::Update);
}

#[test]
fn a_failing_build_that_is_killed_anywhere_leaves_the_old_version() {
    survives_kills(Scenario::FailingBuild);
}

#[test]
fn a_failing_upgrade_that_is_killed_anywhere_goes_back_with_its_data() {
    survives_kills(Scenario::FailingUpgrade);
}

#[test]
fn a_rollback_by_hand_that_is_killed_anywhere_is_old_or_new() {
    survives_kills(Scenario::Rollback);
}

#[test]
fn a_rollback_with_data_that_is_killed_anywhere_has_the_data_of_its_code() {
    survives_kills(Scenario::RollbackWithData);
}

#[test]
fn a_full_disk_anywhere_in_a_first_deployment_is_told_and_leaves_none() {
    survives_errors(Scenario::First, "ENOSPC", 1);
}

#[test]
fn a_full_disk_anywhere_in_an_update_is_told_and_leaves_a_whole_version() {
    survives_errors(Scenario::Update, "ENOSPC", 1);
}

#[test]
fn a_full_disk_anywhere_in_a_failing_build_changes_nothing() {
    survives_errors(Scenario::FailingBuild, "ENOSPC", 2);
}

#[test]
fn a_full_disk_anywhere_in_a_failing_upgrade_ends_whole() {
    survives_errors(Scenario::FailingUpgrade, "ENOSPC", 1);
}

#[test]
fn a_full_disk_anywhere_in_a_rollback_by_hand_ends_whole() {
    survives_errors(Scenario::RollbackWithData, "ENOSPC", 1);
}

#[test]
fn a_failing_disk_anywhere_is_told_and_leaves_a_whole_version() {
    survives_errors(Scenario::Update, "EIO", 2);
    survives_errors(Scenario::FailingUpgrade, "EIO", 3);
}

#[test]
fn a_recovery_before_the_switch_may_itself_be_killed_anywhere() {
    survives_kills_in_the_recovery(Scenario::Update, "stop.done");
}

#[test]
fn a_recovery_after_the_switch_may_itself_be_killed_anywhere() {
    survives_kills_in_the_recovery(Scenario::Update, "upgrade.done");
}

#[test]
fn a_recovery_of_a_rollback_may_itself_be_killed_anywhere() {
    survives_kills_in_the_recovery(Scenario::FailingUpgrade, "rollback.data-path");
}

#[test]
fn a_recovery_after_the_commit_may_itself_be_killed_anywhere() {
    survives_kills_in_the_recovery(Scenario::Update, "commit.record");
}
