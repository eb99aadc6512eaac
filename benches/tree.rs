//! One operation of the engine on trees in each process, so that `benches/run` measures it from outside, as it measures
//! rsync: wall clock, processor time and memory.
//!
//! ```text
//! tree sync SOURCE TARGET [STATE]    makes TARGET what SOURCE is; STATE keeps the witnesses from one call to the next
//! tree verify TREE STATE             proves that TREE is what STATE says
//! tree pack TREE RELEASES STATE      packs a deliverable
//! tree unpack RELEASES TREE          checks the deliverable and makes TREE what it holds
//! tree snapshot ROOT PROJECT         takes a snapshot of a project's data
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mc_project::project::ids::{ObjectId, ProjectName};
use mc_project::project::place::NodePlace;
use mc_project::sys::dir::Dir;
use mc_project::sys::error::{Error, Result};
use mc_project::sys::fs;
use mc_project::sys::keys::{ReleaseKey, TrustedKeys};
use mc_project::tree::deliverable::{Deliverable, Limits, Packing};
use mc_project::tree::scan::{Identified, Own, identify};
use mc_project::tree::snapshot::Snapshots;
use mc_project::tree::store::{Held, Store, Supply};
use mc_project::tree::sync::{Keeping, Plan, Target, apply, prove, seal, seal_changes};
use mc_project::tree::witness::{self, Witness};

/// The commit whose tree every deliverable here is.
const COMMIT: &str = "0123456789012345678901234567890123456789";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Cargo and test runners call every bench, to run it or to list its tests: there are none.
    if words.iter().all(|word| word.starts_with("--")) || words.first().is_some_and(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["sync", source, target] => sync(Path::new(source), Path::new(target), None),
        ["sync", source, target, state] => sync(Path::new(source), Path::new(target), Some(Path::new(state))),
        ["verify", tree, state] => verify(Path::new(tree), Path::new(state)),
        ["pack", tree, releases, state] => pack(Path::new(tree), Path::new(releases), Path::new(state)),
        ["unpack", releases, tree] => unpack(Path::new(releases), Path::new(tree)),
        ["snapshot", root, project] => snapshot(Path::new(root), project),
        _ => Err(Error::usage("one operation: sync, verify, pack, unpack, snapshot; `benches/run` says the rest")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn look(tree: &Dir, witness: Option<&Witness>) -> Result<Identified> {
    identify(tree, Own::current(), witness, &|_| true)
}

fn sync(source: &Path, target: &Path, state: Option<&Path>) -> Result<()> {
    fs::ensure_dir(target, 0o755)?;
    let (source, target) = (Dir::open(source)?, Dir::open(target)?);
    let file = |tree: &Dir| state.map(|state| witness_of(tree, state)).transpose();
    let (source_file, target_file) = (file(&source)?, file(&target)?);
    let known = |path: &Option<PathBuf>| path.as_ref().and_then(|path| Witness::open_or_read(path));
    let (source_known, target_known) = (known(&source_file), known(&target_file));
    let (wanted, actual) = (look(&source, source_known.as_ref())?, look(&target, target_known.as_ref())?);
    let plan = Plan::new(&actual, &wanted.manifest)?;
    let mut sealed = actual.manifest;
    if !plan.is_empty() {
        let store = Store::open(&empty_store(target.path())?)?;
        let mut supply = Supply::new(&store, vec![Held::new(&source, &wanted.manifest)]);
        let target = Target { tree: &target, own: Own::current(), point: "candidate.applying" };
        apply(&target, &plan, &mut supply, &Keeping::default())?;
        sealed = seal_changes(target.tree, target.own, &sealed, &plan, &wanted.manifest)?;
        target.tree.sync_file_system()?;
    }
    if let (Some(source_file), Some(target_file)) = (source_file, target_file) {
        witness::record(&target_file, &target, sealed, target_known)?;
        witness::record(&source_file, &source, wanted.manifest, source_known)?;
    }
    Ok(())
}

/// A witness is known by the inode of its tree, as that of a project is.
fn witness_of(tree: &Dir, state: &Path) -> Result<PathBuf> {
    Ok(state.join(tree.stat_self()?.ino.to_string()))
}

fn known_of(tree: &Dir, state: &Path) -> Result<Witness> {
    Witness::open_or_read(&witness_of(tree, state)?).ok_or_else(|| Error::usage("no witness: call `tree sync` first"))
}

/// A pool beside the tree, because it must be on the same file system.
fn empty_store(tree: &Path) -> Result<PathBuf> {
    let store = tree.with_extension("store");
    fs::ensure_dir(&store, 0o700)?;
    Ok(store)
}

fn verify(tree: &Path, state: &Path) -> Result<()> {
    let tree = Dir::open(tree)?;
    let known = known_of(&tree, state)?;
    prove(&tree, Own::current(), known.manifest(), Some(&known)).map(drop)
}

fn pack(tree: &Path, releases: &Path, state: &Path) -> Result<()> {
    let tree = Dir::open(tree)?;
    let known = known_of(&tree, state)?;
    let store = Store::open(&empty_store(releases)?)?;
    let supply = Supply::new(&store, vec![Held::new(&tree, known.manifest())]);
    let key = ReleaseKey::load_or_make(releases)?;
    let packing = Packing { key: &key, secrets: &[], provenance: None };
    let (project, commit) = named()?;
    let deliverable = Deliverable::new(releases, &project, &commit);
    deliverable.pack(&project, (&commit, 0), known.manifest(), &supply, &packing).map(drop)
}

fn unpack(releases: &Path, tree: &Path) -> Result<()> {
    fs::ensure_dir(tree, 0o755)?;
    let (project, commit) = named()?;
    let deliverable = Deliverable::new(releases, &project, &commit);
    let keys = TrustedKeys::new(vec![ReleaseKey::load_or_make(releases)?.public()]);
    let (statement, manifest) = deliverable.verify(&keys)?;
    let tree = Dir::open(tree)?;
    let store = Store::open(&empty_store(tree.path())?)?;
    deliverable.unpack(&statement, &manifest, &store, Limits::default(), &|_| Ok(true))?;
    let plan = Plan::new(&Identified::default(), &manifest)?;
    let mut supply = Supply::new(&store, Vec::new()).taking(&manifest);
    let target = Target { tree: &tree, own: Own::current(), point: "candidate.applying" };
    apply(&target, &plan, &mut supply, &Keeping::default())?;
    seal(&tree, Own::current(), &manifest)?;
    tree.sync_file_system()
}

fn snapshot(root: &Path, project: &str) -> Result<()> {
    let place = NodePlace::new(root).project(&project.parse()?);
    Snapshots::new(&place, Own::current()).take(&None, false).map(drop)
}

fn named() -> Result<(ProjectName, ObjectId)> {
    Ok(("shop".parse()?, COMMIT.parse()?))
}
