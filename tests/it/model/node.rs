//! Node and model side by side.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use mc_project::tree::manifest::{Content, Manifest};

use super::oracle::{Oracle, Point, Release, copy, shell};
use super::{BUILDS, CONTENTS, DATA, EDITS, Op, PATHS, Version};
use crate::support::{Tree, World, digest};

/// The node, the model, and the name of the step that is played.
pub struct Both {
    world: World,
    work: PathBuf,
    model: Oracle,
    count: usize,
    seq: u64,
    /// What is being done, for messages.
    what: String,
}

impl Both {
    pub fn new() -> Self {
        let world = World::with_shop();
        let model = Oracle::new(world.home().path("model"));
        copy(&world.project("shop").join("data"), &model.data());
        let work = world.clone_of("shop").dir().to_path_buf();
        Self { world, work, model, count: 0, seq: 0, what: String::new() }
    }

    /// Does it to both, and compares.
    pub fn play(&mut self, op: &Op) {
        self.count += 1;
        self.what = format!("operation {}, {op:?}", self.count);
        match op {
            Op::Deploy(version) => self.deploy(version, "", false),
            Op::FailingBuild(version) => self.deploy(version, "build", false),
            Op::FailingUpgrade(version) => self.deploy(version, "upgrade", false),
            Op::Rollback(which, with_data) => self.roll_back(*which, *with_data),
            Op::Edit(which) => {
                for run in [self.world.project("shop").join("run"), self.model.run()] {
                    shell(EDITS[*which], &run, Path::new("/nowhere"), "");
                }
            }
            Op::Data(which) => self.change_data(*which),
            Op::Kill(version, fails, point, nth) => self.kill(version, *fails, *point, *nth),
        }
        self.compare();
    }

    fn change_data(&self, which: usize) {
        for data in [self.world.project("shop").join("data"), self.model.data()] {
            shell(DATA[which], &data, &data, &format!("by-hand-{}", self.count));
        }
    }

    fn name(&self) -> String {
        format!("v{}", self.count)
    }

    /// Commits the version; returns the commit and a full copy of the tree that must come out of it.
    fn commit(&mut self, version: &Version, fails: &str) -> (String, PathBuf) {
        for entry in std::fs::read_dir(&self.work).unwrap().map(Result::unwrap).filter(|e| e.file_name() != ".git") {
            let path = entry.path();
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
        }
        let large = "0123456789abcdef".repeat(6000);
        for (path, content, executable) in &version.files {
            let at = self.work.join(PATHS[*path]);
            let text = if CONTENTS[*content] == "LARGE" { large.as_str() } else { CONTENTS[*content] };
            // What is in the way stays: a file where a directory would be, or the other way round.
            if std::fs::create_dir_all(at.parent().unwrap()).is_err() || std::fs::write(&at, text).is_err() {
                continue;
            }
            let mode = if *executable { 0o755 } else { 0o644 };
            std::fs::set_permissions(&at, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        }
        let build = if fails == "build" { "exit 3" } else { BUILDS[version.build] };
        let upgrade = DATA[version.upgrade].replace("$D", "$MC_DATA").replace("$V", &self.name());
        let end = if fails == "upgrade" { ", 'exit 4'" } else { "" };
        let recipe = format!(
            "keep: {{archives: {}}}\nstages:\n  build: ['{build}']\n  upgrade: ['{upgrade}'{end}]\n",
            version.keep
        );
        std::fs::write(self.work.join("mc_project.yaml"), recipe).unwrap();
        let git = |args: &[&str]| self.world.home().git(&self.work, args).ok();
        git(&["add", "--all", "--force"]);
        git(&["commit", "--quiet", "--allow-empty", "--message", &self.name()]);
        let commit = self.world.home().git_text(&self.work, &["rev-parse", "HEAD"]);
        let tree = self.model.fresh();
        std::fs::create_dir(&tree).unwrap();
        shell(
            &format!("git -C {} archive {commit} | tar --no-same-permissions -xf -", self.work.display()),
            &tree,
            &tree,
            "",
        );
        if fails != "build" {
            shell(build, &tree, &tree, "");
        }
        (commit, tree)
    }

    fn deploy(&mut self, version: &Version, fails: &str, only_store: bool) {
        let (_, tree) = self.commit(version, fails);
        let before = self.model.data();
        let before = self.model.copy_of(&before);
        let mut args = vec!["push", "node", "+HEAD:main"];
        if only_store {
            args.splice(1..1, ["-o", "no-deploy"]);
        }
        let pushed = self.world.home().git(&self.work, &args);
        let pushed = pushed.code(i32::from(!fails.is_empty()));
        self.world.settle("shop");
        self.seq += 1;
        let id = self.world.last("shop").unwrap().id.to_string();
        assert_eq!(self.world.last("shop").unwrap().seq, self.seq, "{}: {pushed}", self.what);
        match fails {
            "build" => self.model.rotate(),
            "upgrade" => self.failed(&id, before),
            _ => self.deployed(&id, before, self.release(version, tree)),
        }
    }

    fn release(&self, version: &Version, tree: PathBuf) -> Release {
        Release { tree, upgrade: version.upgrade, keep: version.keep, name: self.name() }
    }

    fn failed(&mut self, id: &str, data: PathBuf) {
        let before = self.model.live.clone();
        self.model.points.push(Point { seq: self.seq, id: id.to_string(), is_good: false, before, data });
        self.model.rotate();
    }

    /// A good deployment: a restore point, a release, and the drift of what served kept in the archive.
    fn deployed(&mut self, id: &str, data: PathBuf, release: Release) {
        self.assert_drift_is_kept(id);
        let before = self.model.live.clone();
        shell(DATA[release.upgrade], &self.model.data(), &self.model.data(), &release.name);
        self.model.points.push(Point { seq: self.seq, id: id.to_string(), is_good: true, before, data });
        self.model.releases.insert(id.to_string(), release);
        self.model.serve(id);
        self.model.rotate();
    }

    /// The files of `run` that are not as released are in the restore point.
    #[track_caller]
    fn assert_drift_is_kept(&self, id: &str) {
        let Some(live) = &self.model.live else { return };
        let (release, run) = (self.model.releases[live].tree.clone(), self.model.run());
        let changed: BTreeMap<String, Vec<u8>> = contents(&run)
            .into_iter()
            .filter(|(path, content)| contents(&release).get(path) != Some(content))
            .collect();
        let kept = contents(&self.world.project("shop").join("archives").join(id).join("drift/files"));
        assert_eq!(changed, kept, "{}: the kept drift", self.what);
    }

    fn roll_back(&mut self, which: usize, with_data: bool) {
        let others = self.model.releases.keys().filter(|id| Some(*id) != self.model.live.as_ref());
        let others: Vec<String> = others.cloned().collect();
        if others.is_empty() {
            return;
        }
        self.roll_back_to(&others[which % others.len()], with_data);
    }

    fn roll_back_to(&mut self, target: &str, with_data: bool) {
        let back = self.model.data_of(target).filter(|_| with_data).map(|point| point.data.clone());
        let before = self.model.data();
        let before = self.model.copy_of(&before);
        let mut args = vec!["rollback", "shop", "--to", target];
        if back.is_some() {
            args.extend(["--with", "data", "--yes"]);
        }
        self.world.mc(&args).ok();
        self.world.settle("shop");
        self.seq += 1;
        if let Some(back) = back {
            self.model.set_data(&back);
        }
        let id = self.world.last("shop").unwrap().id.to_string();
        let release = self.model.releases[target].clone();
        self.deployed(&id, before, release);
    }

    #[cfg(not(feature = "failpoints"))]
    fn kill(&mut self, version: &Version, _: bool, _: usize, _: usize) {
        self.deploy(version, "", false);
    }

    #[cfg(feature = "failpoints")]
    fn kill(&mut self, version: &Version, fails: bool, point: usize, nth: usize) {
        use mc_project::project::request::Want;
        use mc_project::sys::fault::POINTS;

        let fails = if fails { "upgrade" } else { "" };
        let (commit, tree) = self.commit(version, fails);
        self.world.home().git(&self.work, &["push", "-o", "no-deploy", "node", "+HEAD:main"]).ok();
        let before = self.model.data();
        let before = self.model.copy_of(&before);
        let request = crate::campaign::stage::request_of(Want::Deploy { commit: commit.parse().unwrap() });
        let id = request.id.to_string();
        let path = self.world.home().path("request");
        std::fs::write(&path, serde_json::to_vec(&request).unwrap()).unwrap();
        let mut command = self.world.mc_command(&["work"]);
        let point = POINTS[point % POINTS.len()];
        self.what = format!("{} (killed at {point}:{nth})", self.what);
        command.stdin(std::fs::File::open(&path).unwrap()).env("MC_FAIL", format!("{point}:{nth}=kill"));
        let worked = crate::support::Running::start_reading(command).wait();
        let recovered = self.world.mc(&["recover", "shop"]);
        assert!(matches!(recovered.exit_code(), Some(0 | 1)), "{}: {recovered}\n{worked}", self.what);
        let last = self.world.last("shop").unwrap();
        if last.id.to_string() != id {
            return;
        }
        self.seq += 1;
        assert_eq!(last.seq, self.seq, "{}", self.what);
        if last.serves.is_some_and(|serving| serving.id.to_string() == id) {
            assert_eq!(fails, "", "{}: a version whose upgrade fails never serves", self.what);
            self.deployed(&id, before, self.release(version, tree));
        } else if self.world.project("shop").join("archives").join(&id).exists() {
            self.failed(&id, before);
        } else {
            self.model.rotate();
        }
    }

    /// Everything that the node keeps is what the model kept.
    #[track_caller]
    fn compare(&self) {
        let what = &self.what;
        let project = self.world.project("shop");
        digest(&self.model.run()).assert_same(&digest(&project.join("run")), &format!("run after {what}"));
        assert_links(&self.model.run(), &project.join("run"), what);
        digest(&self.model.data()).assert_same(&digest(&project.join("data")), &format!("data after {what}"));
        let listed = self.world.mc(&["release", "list", "shop", "--json"]).ok().json();
        let kept: BTreeSet<&str> =
            listed["kept"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
        let wanted: BTreeSet<&str> = self.model.releases.keys().map(String::as_str).collect();
        assert_eq!(kept, wanted, "the kept releases after {what}");
        assert_eq!(listed["live"].as_str(), self.model.live.as_deref(), "what is live after {what}");
        for (id, release) in &self.model.releases {
            let into = self.world.home().path("checkout");
            let _ = std::fs::remove_dir_all(&into);
            self.world.mc(&["release", "checkout", "shop", id, into.to_str().unwrap()]).ok();
            digest(&release.tree).assert_same(&digest(&into), &format!("release {id} after {what}"));
            assert_links(&release.tree, &into, what);
        }
        self.compare_points();
        let verified = self.world.mc(&["verify", "--all", "--json"]).ok();
        let verified = verified.json();
        let problems = verified.as_array().map_or(&verified["problems"], |all| &all[0]["problems"]);
        assert_eq!(problems.as_array().map(Vec::len), Some(0), "{what}: {verified:#}");
        let trees = self.model.releases.values().map(|release| release.tree.clone());
        assert_bounded(&project.join("deploy/store"), trees, what);
        assert_bounded(&project.join("archives/store"), self.model.points.iter().map(|p| p.data.clone()), what);
    }

    #[track_caller]
    fn compare_points(&self) {
        let archives = self.world.project("shop").join("archives");
        let names =
            std::fs::read_dir(&archives).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let present: BTreeSet<String> = names.filter(|name| name != "data" && name != "store").collect();
        let wanted: BTreeSet<String> = self.model.points.iter().map(|point| point.id.clone()).collect();
        assert_eq!(present, wanted, "the restore points after {}", self.what);
        for point in &self.model.points {
            let text = std::fs::read_to_string(archives.join(&point.id).join("data.manifest")).unwrap();
            let recorded = Manifest::from_text(&text).unwrap();
            Tree::of(described(&recorded))
                .assert_same(&digest(&point.data), &format!("the data of {} after {}", point.id, self.what));
        }
    }

    /// At the end every restore point is put to use: back to a release with its data, and forward again.
    pub fn end(&mut self) {
        let Some(target) = self
            .model
            .releases
            .keys()
            .find(|id| Some(*id) != self.model.live.as_ref() && self.model.data_of(id).is_some())
        else {
            return;
        };
        let target = target.clone();
        self.what = format!("the rollback to {target} with data at the end");
        self.roll_back_to(&target, true);
        self.compare();
    }
}

/// The contents of every file and the target of every link below `dir`.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for path in digest(dir).paths() {
        let at = dir.join(&path);
        let meta = at.symlink_metadata().unwrap();
        if meta.is_symlink() {
            all.insert(path, std::fs::read_link(at).unwrap().into_os_string().into_encoded_bytes());
        } else if meta.is_file() {
            all.insert(path, std::fs::read(at).unwrap());
        }
    }
    all
}

/// The same names are names of one file.
#[track_caller]
fn assert_links(one: &Path, other: &Path, what: &str) {
    use std::os::unix::fs::MetadataExt;
    let links = |dir: &Path| -> BTreeSet<Vec<String>> {
        let mut groups: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for path in contents(dir).into_keys() {
            groups.entry(dir.join(&path).symlink_metadata().unwrap().ino()).or_default().push(path);
        }
        groups.into_values().filter(|names| names.len() > 1).collect()
    };
    assert_eq!(links(one), links(other), "hard links after {what}");
}

/// A pool holds only contents that some copy of the model has, so that it can never be larger than these.
#[track_caller]
fn assert_bounded(store: &Path, copies: impl Iterator<Item = PathBuf>, what: &str) {
    let needed: HashSet<String> = copies
        .flat_map(|copy| contents(&copy).into_values())
        .map(|bytes| blake3::hash(&bytes).to_hex().to_string())
        .collect();
    let Ok(entries) = std::fs::read_dir(store) else { return };
    for entry in entries {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(needed.contains(&name), "{} holds {name}, which nothing kept needs, after {what}", store.display());
    }
}

/// A manifest in the words of a digest.
fn described(manifest: &Manifest) -> impl Iterator<Item = (String, String)> + '_ {
    manifest.entries().map(|entry| {
        let text = match &entry.content {
            Content::Dir => format!("directory {:04o}", entry.mode),
            Content::File { size, hash } => format!("file {:04o} {size} {}", entry.mode, hash.hex()),
            Content::Symlink(target) => format!("link to {}", String::from_utf8_lossy(target)),
        };
        (entry.path.to_string(), text)
    })
}
