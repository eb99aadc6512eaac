//! Bits that flip, cuts, zeros and missing files in everything that we own: whatever is damaged, what is asked of the node is
//! done exactly right or refused, and nothing that is served changes unseen. In full mode every file in many places.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{self, Finished, Record, Tree, World, digest_without, wait_until};

const RECIPE: &str = "\
cache: [kept]
shared: [uploads/]
stages:
  build: ['mkdir -p kept; cp version built']
  backup: ['cp $MC_DATA/db $MC_DUMPS/db || touch $MC_DUMPS/db']
  upgrade: ['cp version $MC_DATA/db']
";

/// What is done to a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip { at: usize, bit: u8 },
    Cut { at: usize },
    Zeros { at: usize },
    Gone,
}

impl Damage {
    /// The file after it; `None` if there is none.
    fn on(&self, good: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = good.to_vec();
        match *self {
            Self::Flip { at, bit } => bytes[at] ^= 1 << bit,
            Self::Cut { at } => bytes.truncate(at),
            Self::Zeros { at } => bytes.iter_mut().skip(at).take(4096).for_each(|byte| *byte = 0),
            Self::Gone => return None,
        }
        Some(bytes)
    }

    /// Every damage of a file of this size that a campaign does.
    fn all(size: usize) -> Vec<Self> {
        let places = |count: usize| (0..count.min(size)).map(move |nth| nth * size / count.min(size));
        let mut all: Vec<Self> = places(24).map(|at| Self::Flip { at, bit: u8::try_from(at % 8).unwrap() }).collect();
        // The first and the last byte hold the form of many files.
        all.extend(size.checked_sub(1).map(|at| Self::Flip { at, bit: 0 }));
        all.extend(places(5).map(|at| Self::Cut { at }));
        all.extend((0..size).step_by(4096).take(4).map(|at| Self::Zeros { at }));
        all.push(Self::Gone);
        all
    }
}

/// A node with four deployments, which is put back before each case, and the commit that is pushed to it.
struct Node {
    world: World,
    saved: PathBuf,
    work: PathBuf,
    /// What `run` and the data are when a commit serves.
    versions: BTreeMap<String, (Tree, String)>,
    serves: String,
    next: String,
}

impl Node {
    fn new() -> Self {
        let world = World::with_shop();
        let work = world.clone_of("shop");
        let saved = world.root().with_extension("saved");
        let mut commits = Vec::new();
        let mut versions = BTreeMap::new();
        for n in 1..=5 {
            if n == 5 {
                copy(&world.root(), &saved);
            }
            let (text, large) = (format!("{n}\n"), format!("{n} some text that is longer\n").repeat(400));
            let files = [("mc_project.yaml", RECIPE), ("version", &text), ("dir/large", &large), ("same", "s")];
            let commit = work.commit(&format!("version {n}"), &files);
            work.push(&["main"]).ok();
            world.settle("shop");
            versions.insert(commit.clone(), (run_of(&world), text));
            commits.push(commit);
        }
        // The last one was pushed only to know it: it is what is pushed to the damaged node.
        let (work, next) = (work.dir().to_path_buf(), commits.pop().unwrap());
        let serves = commits.pop().unwrap();
        let node = Self { world, saved, work, versions, serves, next };
        node.restore();
        node
    }

    /// Every file that is ours: below `deploy/` without the trees that are checked as a whole, `archives/`, `releases/`,
    /// `state/`, and what is ours in git's directory.
    fn files(&self) -> Vec<PathBuf> {
        let project = self.world.project("shop");
        let mut found = Vec::new();
        let mut dirs: Vec<PathBuf> =
            ["deploy", "archives", "releases", "state", "git/project/refs/deploys", "git/project/refs/notes"]
                .iter()
                .map(|dir| project.join(dir))
                .collect();
        found.push(project.join("git/project/info/mc_project.json"));
        found.push(project.join("git/project/config"));
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    dirs.push(entry.path());
                } else if kind.is_file() {
                    found.push(entry.path());
                }
            }
        }
        found.retain(|path| path.exists());
        found.sort();
        found
    }

    fn restore(&self) {
        let root = self.world.root();
        // What is sent after a deployment may still be written while we remove.
        wait_until("the node is removed", || std::fs::remove_dir_all(&root).is_ok() || !root.exists());
        copy(&self.saved, &root);
    }

    fn command(&self, args: &[&str]) -> Finished {
        self.world.mc(args)
    }

    fn push(&self) -> Finished {
        let mut command = self.world.home().command("git");
        command.current_dir(&self.work).args(["push", "--force", "node"]).arg(format!("{}:refs/heads/main", self.next));
        Finished::of(command)
    }

    /// The commit whose version `run` is, data aside.
    fn runs(&self) -> Option<String> {
        let run = run_of(&self.world);
        self.versions.iter().find(|(_, (tree, _))| *tree == run).map(|(commit, _)| commit.clone())
    }

    fn data(&self) -> String {
        std::fs::read_to_string(self.world.project("shop").join("data/db")).unwrap_or_default()
    }
}

fn run_of(world: &World) -> Tree {
    digest_without(&world.project("shop").join("run"), &["kept"])
}

/// Waits until nobody works on the project; what is recorded of it may be damaged.
pub fn wait_for_lock(world: &World) {
    let lock = world.project("shop").join("state/lock");
    wait_until("the lock is free", || std::fs::File::open(&lock).map_or(true, |file| file.try_lock().is_ok()));
}

fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// One case: what was found against a promise, in words.
struct Case<'a> {
    node: &'a Node,
    record: &'a mut Record,
    found: Vec<String>,
    what: String,
}

impl Case<'_> {
    /// A command of the damaged node ended: no panic, no bug, no hang.
    fn look(&mut self, doing: &str, ended: &Finished) -> bool {
        let text = format!("{}{}", ended.stdout, ended.stderr);
        if text.contains("panicked") || ended.exit_code().is_none() {
            self.record.panics += 1;
            self.found.push(format!("{doing}: panic\n{ended}"));
        }
        if ended.exit_code() == Some(70) {
            self.record.other += 1;
            self.found.push(format!("{doing}: calls itself a bug\n{ended}"));
        }
        if ended.took > Duration::from_mins(1) {
            self.record.hangs += 1;
            self.found.push(format!("{doing}: took {:?}", ended.took));
        }
        ended.exit_code() == Some(0)
    }

    fn half(&mut self, text: String) {
        self.record.half_states += 1;
        self.found.push(text);
    }

    fn lie(&mut self, text: String) {
        self.record.dishonest_exits += 1;
        self.found.push(text);
    }

    /// Status and check: they change nothing, and say what is true or refuse.
    fn read(&mut self) -> bool {
        let status = self.node.command(&["status", "shop", "--json"]);
        if self.look("status", &status) {
            let said = status.json();
            if !said.to_string().contains(&self.node.serves) {
                self.lie(format!("status does not name {}: {said}", self.node.serves));
            }
        }
        let verify = self.node.command(&["verify", "shop"]);
        let is_sound = self.look("verify", &verify);
        if self.node.runs().as_deref() != Some(self.node.serves.as_str()) {
            self.half("reading changed what runs".into());
        }
        is_sound
    }

    /// A command that changes the node: it did exactly what it says, or nothing.
    fn act(&mut self, doing: &str, ended: &Finished, wanted: Option<(&str, Option<&str>)>, before: &str) {
        let is_done = self.look(doing, ended);
        wait_for_lock(&self.node.world);
        let runs = self.node.runs();
        match (is_done, wanted) {
            (true, Some((commit, data))) => {
                if runs.as_deref() != Some(commit) {
                    self.half(format!("{doing} ended well, and {runs:?} runs instead of {commit}\n{ended}"));
                }
                if data.is_some_and(|data| self.node.data() != data) {
                    self.half(format!("{doing} ended well, and the data are {:?}\n{ended}", self.node.data()));
                }
            }
            _ if runs.as_deref() != Some(before) => {
                self.half(format!("{doing} did not end well, and {runs:?} runs, before {before}\n{ended}"));
            }
            _ => {}
        }
    }
}

/// Damages one file, asks everything of the node, and repairs it again.
fn case(node: &Node, path: &Path, damage: &Damage, record: &mut Record) -> Vec<String> {
    node.restore();
    let good = std::fs::read(path).unwrap();
    let bad = damage.on(&good);
    let put = |bytes: &Option<Vec<u8>>| match bytes {
        Some(bytes) => std::fs::write(path, bytes).unwrap(),
        None => std::fs::remove_file(path).unwrap(),
    };
    if bad.as_deref() == Some(&good) {
        return Vec::new();
    }
    let mode = std::fs::metadata(path).unwrap().permissions();
    put(&bad);
    record.hit += 1;
    let shown = path.strip_prefix(node.world.root()).unwrap().display().to_string();
    let mut case = Case { node, record, found: Vec::new(), what: format!("{damage:?} in {shown}") };
    let is_sound = case.read();

    // The version before the live one, with its data, of which the node has everything.
    let target = node.versions.iter().find(|(_, (_, data))| data == "3\n").map(|(commit, _)| commit.clone()).unwrap();
    let rollback = node.command(&["rollback", "shop", "--to", &target, "--with", "data", "--yes"]);
    case.act("rollback", &rollback, Some((&target, Some("3\n"))), &node.serves);
    let now = node.runs().unwrap_or_default();
    let push = node.push();
    case.act("push", &push, Some((&node.next, Some("5\n"))), &now);
    let reference = node.world.node_ref("shop", "refs/heads/main");
    if (push.exit_code() == Some(0)) != (reference.as_deref() == Some(node.next.as_str())) {
        case.lie(format!("the push ends with {:?} and the branch is at {reference:?}\n{push}", push.exit_code()));
    }
    let now = node.runs().unwrap_or_default();
    let recover = node.command(&["recover", "shop"]);
    case.act("recover", &recover, None, &now);
    if is_sound && (rollback.exit_code() != Some(0) || push.exit_code() != Some(0)) {
        case.lie(format!("verify found nothing, but:\n{rollback}\n{push}"));
    }

    // With the file repaired the node is whole again.
    let still_bad = std::fs::read(path).ok() == bad && path.parent().is_some_and(Path::exists);
    if still_bad {
        std::fs::write(path, &good).unwrap();
        std::fs::set_permissions(path, mode).unwrap();
        let repaired = node.command(&["verify", "shop"]);
        if push.exit_code() != Some(0) && rollback.exit_code() != Some(0) && repaired.exit_code() != Some(0) {
            case.record.litter += 1;
            case.found.push(format!("not whole after a repair\n{repaired}"));
        }
    }
    let what = case.what;
    case.found.into_iter().map(|text| format!("{what}: {text}")).collect()
}

#[test]
fn whatever_rots_on_the_disk_is_refused_or_done_right() {
    let node = Node::new();
    let mut all = Vec::new();
    for path in node.files() {
        let size = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
        all.extend(Damage::all(size).into_iter().map(|damage| (path.clone(), damage)));
    }
    assert!(all.len() > 500, "the files were not found: {}", all.len());
    // MC_TEST_ROT=history looks closer at the files with that word in their path.
    let part = std::env::var("MC_TEST_ROT").unwrap_or_default();
    all.retain(|(path, _)| path.to_str().unwrap().contains(&part));
    let chosen = support::sample(&all, if part.is_empty() { 14 } else { 40 });
    let mut record = Record { points: chosen.len(), of: all.len(), ..Record::default() };
    let mut found = Vec::new();
    for (path, damage) in &chosen {
        found.extend(case(&node, path, damage, &mut record));
    }
    support::record("rot", &record);
    assert!(found.is_empty(), "{} of {}:\n{}", record.found(), chosen.len(), found.join("\n\n"));
}
