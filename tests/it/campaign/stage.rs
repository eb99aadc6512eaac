//! A node that is put back to the same state before each fault, what is done to it, and where it may end.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use mc_project::project::ids::DeploymentId;
use mc_project::project::request::{Options, RefUpdate, Request, Want};

use super::calls::Order;
use super::ground::{Ground, Kind};
use crate::support::{Finished, Running, Tree, WorkTree, World, digest_without};

/// Every stage has something to do: a cache, a build, data that the upgrade changes, dumps, a file that is replaced.
pub const RECIPE: &str = "\
cache: [kept]
stages:
  build: ['mkdir -p kept; echo x >> kept/count; cp version built']
  stop: ['true']
  backup: ['cp $MC_DATA/db $MC_DUMPS/db || touch $MC_DUMPS/db']
  restore: ['true']
  start: ['true']
  upgrade: ['cp version $MC_DATA/db']
";

/// The disks are small.
const RESERVE: &str = "reserve: {bytes: 1MiB, percent: 0}\n";

/// No command of a campaign takes longer; it is a hang then.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// What is done to the node: eight pipelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// The first deployment of a project.
    First,
    /// A build, an upgrade of data, a file less and one more.
    Update,
    /// The build of an update fails.
    FailingBuild,
    /// The upgrade fails when data are changed already: code and data go back by themselves.
    FailingUpgrade,
    /// A person goes back, without data.
    Rollback,
    /// A person goes back, with data.
    RollbackWithData,
    /// Production deploys what was cooked elsewhere.
    Final,
    /// Recovery itself: of an update that was killed after its upgrade.
    Recover,
}

/// A state that the node may end in: what serves, what `run` holds, and where the branch is then.
pub struct Legal {
    pub serves: Option<String>,
    pub tree: Tree,
    pub branch: Option<String>,
}

/// How the node is put back.
enum Putting {
    /// By a copy of its directory, file by file.
    Copy(PathBuf),
    /// By the image of its file system.
    Image(Ground),
}

/// The node.
pub struct Stage {
    pub scenario: Scenario,
    putting: Putting,
    pub world: World,
    request: PathBuf,
    /// The commit of the deployment that must work afterwards, whatever happened.
    pub third: String,
    /// Before, and after an undisturbed run.
    pub legal: Vec<Legal>,
    pub outside: Tree,
    /// The exit code of an undisturbed run.
    pub code: i32,
    /// The paths that stand there without any fault, ids and contents replaced by a word.
    pub names: super::litter::Names,
}

/// Everything on the node that does not belong to the project.
pub fn outside_of(world: &World) -> Tree {
    digest_without(
        &world.root(),
        &["srv/projects/shop", "var/log/mc_project/shop", "var/mail", "etc", "lost+found", "filler"],
    )
}

impl Stage {
    /// On a directory of this machine.
    pub fn copied(scenario: Scenario) -> Self {
        let world = World::new();
        let saved = world.root().with_extension("saved");
        Self::set(scenario, world, Putting::Copy(saved))
    }

    /// On a file system of its own.
    pub fn on(scenario: Scenario, kind: Kind, mib: u64) -> Self {
        let world = World::new();
        let ground = Ground::new(&world, kind, mib);
        Self::set(scenario, world, Putting::Image(ground))
    }

    fn set(scenario: Scenario, world: World, putting: Putting) -> Self {
        let (want, update, third) = if scenario == Scenario::Final { produce(&world) } else { cook(scenario, &world) };
        world.mc(&["init", "other"]).ok();
        world.settle("shop");
        let request = world.home().path("request");
        std::fs::write(&request, serde_json::to_vec(&Request { update, ..request_of(want) }).unwrap()).unwrap();
        let before = Legal::of(&world);
        let (outside, names) = (outside_of(&world), super::litter::Names::default());
        let mut stage = Self { scenario, putting, world, request, third, legal: vec![before], outside, code: 0, names };
        match &stage.putting {
            Putting::Copy(saved) => copy(&stage.world.root(), saved),
            Putting::Image(ground) => ground.save(),
        }
        stage.interrupt();
        stage.names.see(&stage.world);
        let ended = Running::start_reading(stage.command()).wait();
        stage.code = ended.exit_code().unwrap_or_else(|| panic!("{ended}"));
        stage.legal.push(Legal::of(&stage.world));
        stage.names.see(&stage.world);
        let found = stage.examine(Some(&ended));
        assert!(found.is_empty(), "{scenario:?}, undisturbed: {found:?}\n{ended}");
        stage.learn_the_next();
        stage
    }

    /// What the next deployment leaves, after the new version and after the old one.
    fn learn_the_next(&mut self) {
        Running::start_reading(self.next()).wait().ok();
        self.names.see(&self.world);
        self.restore();
        Running::start_reading(self.next()).wait().ok();
        self.names.see(&self.world);
    }

    /// The file system that it stands on.
    pub fn ground(&self) -> &Ground {
        match &self.putting {
            Putting::Image(ground) => ground,
            Putting::Copy(_) => panic!("this node stands on no file system of its own"),
        }
    }

    /// Puts the node back.
    pub fn restore(&self) {
        match &self.putting {
            Putting::Copy(saved) => {
                std::fs::remove_dir_all(self.world.root()).unwrap();
                copy(saved, &self.world.root());
            }
            Putting::Image(ground) => ground.restore(),
        }
        self.interrupt();
    }

    /// What is there to recover from. Made anew each time: a version that has served for a minute is not taken back unasked.
    fn interrupt(&self) {
        if self.scenario == Scenario::Recover {
            let mut command = self.work();
            command.env("MC_FAIL", "upgrade.done=kill");
            Running::start_reading(command).wait();
        }
    }

    /// The command that is disturbed.
    pub fn command(&self) -> Command {
        if self.scenario == Scenario::Recover { self.world.mc_command(&["recover", "shop"]) } else { self.work() }
    }

    /// How often each named point is passed when nothing disturbs.
    pub fn points(&self) -> BTreeMap<String, usize> {
        self.restore();
        self.points_of(self.command())
    }

    /// The same for this command.
    pub fn points_of(&self, mut command: Command) -> BTreeMap<String, usize> {
        let trace = self.world.home().path("trace");
        let _ = std::fs::remove_file(&trace);
        command.env("MC_FAIL_TRACE", &trace);
        Running::start_reading(command).wait();
        let mut points = BTreeMap::new();
        for point in std::fs::read_to_string(trace).unwrap().lines() {
            *points.entry(point.to_string()).or_default() += 1;
        }
        points
    }

    /// The command that is disturbed, to be traced.
    pub fn order(&self) -> Order {
        let input = (self.scenario != Scenario::Recover).then(|| self.request.clone());
        Order { command: self.command(), input }
    }

    fn work(&self) -> Command {
        let mut command = self.world.mc_command(&["work"]);
        command.stdin(File::open(&self.request).unwrap());
        command
    }

    /// The command that deploys the third version.
    pub fn next(&self) -> Command {
        let third = self.third.parse().unwrap();
        let old = self.world.node_ref("shop", "refs/heads/main").unwrap_or_else(zero);
        let update = Some(update(&old, &self.third));
        let request = Request { update, ..request_of(Want::Deploy { commit: third }) };
        let path = self.world.home().path("next");
        std::fs::write(&path, serde_json::to_vec(&request).unwrap()).unwrap();
        let mut command = self.world.mc_command(&["work"]);
        command.stdin(File::open(path).unwrap());
        command
    }

    /// Whether the commit of an undisturbed run deploys.
    pub fn deploys(&self) -> bool {
        self.code == 0 && self.scenario != Scenario::Recover
    }
}

impl Legal {
    fn of(world: &World) -> Self {
        let branch = world.node_ref("shop", "refs/heads/main");
        Self { serves: world.serves("shop"), tree: tree_of(world), branch }
    }
}

/// What runs, but for the cache, which counts the builds.
pub fn tree_of(world: &World) -> Tree {
    digest_without(&world.project("shop").join("run"), &["kept"])
}

fn zero() -> String {
    "0".repeat(40)
}

fn update(old: &str, new: &str) -> RefUpdate {
    let name = "refs/heads/main".parse().unwrap();
    RefUpdate { name, old: old.parse().unwrap(), new: new.parse().unwrap(), moved_by_worker: true }
}

/// A request as a hook hands it to the worker.
pub fn request_of(want: Want) -> Request {
    Request {
        project: "shop".parse().unwrap(),
        id: DeploymentId::new(Timestamp::now()),
        want,
        update: None,
        options: Options::default(),
        pusher: "tester".to_string(),
        key: None,
        push: None,
        wait_seconds: Some(60),
    }
}

/// The three versions, the second one as the scenario wants it.
fn commits(work: &WorkTree<'_>, scenario: Scenario) -> [String; 3] {
    let recipe = match scenario {
        Scenario::FailingBuild => RECIPE.replace("cp version built", "exit 3"),
        Scenario::FailingUpgrade => RECIPE.replace("cp version $MC_DATA/db", "cp version $MC_DATA/db; exit 4"),
        _ => RECIPE.to_string(),
    };
    let files = [("mc_project.yaml", RECIPE), ("version", "1"), ("old", "x"), ("dir/same", "s")];
    let first = work.commit("one", &files);
    work.git(&["rm", "--quiet", "old"]).ok();
    let second = work.commit("two", &[("version", "2"), ("new", "x"), ("mc_project.yaml", &recipe)]);
    let third = work.commit("three", &[("version", "3"), ("mc_project.yaml", RECIPE)]);
    [first, second, third]
}

/// Prepares a node that builds itself; what is wanted of it then, and the third commit.
fn cook(scenario: Scenario, world: &World) -> (Want, Option<RefUpdate>, String) {
    world.configure(RESERVE);
    world.mc(&["init", "shop"]).ok();
    let work = world.clone_of("shop");
    let [first, second, third] = commits(&work, scenario);
    let push = |commit: &str, branch: &str| work.push(&[&format!("{commit}:refs/heads/{branch}")]).ok();
    let (live, wanted) = match scenario {
        Scenario::First => (None, &first),
        Scenario::Rollback | Scenario::RollbackWithData => (Some(&second), &second),
        _ => (Some(&first), &second),
    };
    if live.is_some() {
        push(&first, "main");
    }
    if live == Some(&second) {
        push(&second, "main");
    }
    push(wanted, "next");
    push(&third, "later");
    let old = live.map_or_else(zero, Clone::clone);
    match scenario {
        Scenario::Rollback => (Want::Rollback { to: None, with_data: false }, None, third),
        Scenario::RollbackWithData => (Want::Rollback { to: None, with_data: true }, None, third),
        _ => (Want::Deploy { commit: wanted.parse().unwrap() }, Some(update(&old, wanted)), third),
    }
}

/// Prepares a production node and what another node cooked for it.
fn produce(world: &World) -> (Want, Option<RefUpdate>, String) {
    let staging = World::with_shop();
    let work = staging.clone_of("shop");
    let [first, second, third] = commits(&work, Scenario::Final);
    for commit in [&first, &second, &third] {
        work.push(&[&format!("{commit}:refs/heads/main")]).ok();
        staging.settle("shop");
    }
    let cooked = world.home().path("cooked");
    copy(&staging.project("shop").join("releases"), &cooked);
    let key = staging.mc(&["keys", "show"]).ok().stdout.split_whitespace().last().unwrap().to_string();
    let cooked = cooked.display();
    world.configure(&format!(
        "{RESERVE}environment: prod\nrelease_sources: [{cooked}]\ntrusted_release_keys: [{key}]\n"
    ));
    world.mc(&["init", "shop"]).ok();
    let url = world.project("shop").join("git/project");
    work.git(&["remote", "set-url", "node", url.to_str().unwrap()]).ok();
    for (commit, branch) in [(&first, "main"), (&second, "next"), (&third, "later")] {
        work.push(&[&format!("{commit}:refs/heads/{branch}")]).ok();
    }
    (Want::Deploy { commit: second.parse().unwrap() }, Some(update(&first, &second)), third)
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    super::ground::run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// Runs a command of a campaign; `Err` with what it said if it did not end within [`DEADLINE`].
pub fn run_to_end(command: Command) -> Result<Finished, String> {
    Running::start_reading(command).wait_at_most(DEADLINE)
}
