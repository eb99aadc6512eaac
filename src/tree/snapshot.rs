//! Data snapshots: `archives/data` is a private full copy of the newest one, older ones live in `archives/store`.
//!
//! Taking a snapshot copies what differs; what that displaces moves into the store by renaming. Restoring is an exchange
//! of the live paths with the copy and needs no space, except where `data` is a mount point: there files are copied.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::hash::Hash;
use super::manifest::{Entry, Manifest};
use super::scan::{Identified, Own, identify, scan};
use super::store::{Held, Store, Supply};
use super::sync::{Aside, Keeping, Plan, Target, apply, seal_changes};
use super::witness::{self, Witness};
use crate::project::ids::DeploymentId;
use crate::project::place::Place;
use crate::sys::dir::{Dir, FileKind, Meta};
use crate::sys::error::{Error, Result};
use crate::sys::fs::{self, Several};
use crate::sys::mount;
use crate::sys::path::TreePath;
use crate::sys::sync;

/// Which part of `data/` is snapshotted; `None` is all of it.
pub type Scope = Option<Vec<TreePath>>;

/// How much a snapshot would have to copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Bytes of everything in the scope.
    pub total: u64,
}

/// One path that a restore exchanges, with the inodes on both sides (0: nothing there).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Relative to `data/`; `.` is all of it.
    pub path: String,
    /// The inode in `data/`.
    pub live: u64,
    /// The inode in the snapshot.
    pub snapshot: u64,
}

/// The snapshots of a project's data.
#[derive(Debug)]
pub struct Snapshots<'a> {
    place: &'a Place,
    own: Own,
    left_out: RefCell<Vec<TreePath>>,
}

const MANIFEST: &str = "data.manifest";

impl<'a> Snapshots<'a> {
    /// The snapshots of this project.
    #[must_use]
    pub fn new(place: &'a Place, own: Own) -> Self {
        Self { place, own, left_out: RefCell::default() }
    }

    /// Estimates by size and time, without reading, what a snapshot would copy.
    ///
    /// # Errors
    /// If the data cannot be examined.
    pub fn measure(&self, scope: &Scope) -> Result<Need> {
        let live = Dir::open_real(&self.place.data())?;
        let known =
            self.copy_if_there()?.and_then(|copy| Witness::open_or_read(&witness::path_of(self.place, &copy).ok()?));
        let mut need = Need::default();
        for found in scan(&live, &wants(scope))? {
            if found.meta.kind != FileKind::File {
                continue;
            }
            need.total += found.meta.size;
            let same = known.as_ref().and_then(|w| w.manifest().get(&found.path));
            if !same.is_some_and(|entry| entry.size() == found.meta.size && entry.mtime == found.meta.mtime) {
                need.bytes += found.meta.size;
                need.files += 1;
            }
        }
        Ok(need)
    }

    /// Makes the copy equal to the live data. With `tolerant`, files that change meanwhile are left for the next pass.
    ///
    /// # Errors
    /// If something cannot be copied, or (not `tolerant`) still changes though it should not.
    pub fn take(&self, scope: &Scope, tolerant: bool) -> Result<Manifest> {
        for attempt in 0.. {
            match self.pass(scope, &Keep::Store) {
                Err(error) if !tolerant && attempt < 2 && !error.is_no_space() => {}
                Err(error) if tolerant && !error.is_no_space() => return Err(error),
                Err(error) => return Err(error.hint("who writes there? fuser -v; a `stop` step should stop it")),
                Ok(manifest) => return Ok(manifest),
            }
        }
        Err(Error::bug("a loop without end ended"))
    }

    /// The devices, fifos and sockets that the snapshot just taken left out: they have no content, and the program that made
    /// one makes it again.
    #[must_use]
    pub fn left_out(&self) -> Vec<TreePath> {
        self.left_out.borrow().clone()
    }

    /// Records the snapshot that was just taken as the one of the restore point `id`, durably, with `files` that belong to it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn record(&self, id: &DeploymentId, manifest: &Manifest, mut files: Several) -> Result<()> {
        let archive = self.place.archive(id);
        fs::ensure_dir(&archive, 0o700)?;
        files.add(&archive.join(MANIFEST), manifest.to_text().as_bytes(), 0o600)?;
        for name in fs::names(&self.place.archives())? {
            let link = self.place.archives().join(&name).join("data");
            if name.parse::<DeploymentId>().is_ok_and(|other| other != *id) {
                fs::remove_file(&link)?;
            }
        }
        fs::put_symlink(&archive.join("data"), &PathBuf::from("../data"))?;
        files.replace()
    }

    /// The manifest of a restore point's data; `None` if it has none.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn manifest(&self, id: &DeploymentId) -> Result<Option<Manifest>> {
        match fs::read_if_there(&self.place.archive(id).join(MANIFEST))? {
            Some(bytes) => Manifest::from_text(&String::from_utf8_lossy(&bytes)).map(Some),
            None => Ok(None),
        }
    }

    /// What is in `archives/data` now, by looking.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn present(&self) -> Result<Identified> {
        let Some(copy) = self.copy_if_there()? else { return Ok(Identified::default()) };
        let witness = Witness::open_or_read(&witness::path_of(self.place, &copy)?);
        identify(&copy, self.own, witness.as_ref(), &|_| true)
    }

    fn record_witness(&self, copy: &Dir, sealed: Manifest) -> Result<()> {
        let path = witness::path_of(self.place, copy)?;
        witness::record(&path, copy, sealed, Witness::open(&path))
    }

    /// Makes `archives/data` the data of an older restore point, taking contents from the store by renaming.
    ///
    /// # Errors
    /// If a content is missing or damaged; the live data are untouched.
    pub fn materialise(&self, wanted: &Manifest) -> Result<()> {
        let copy = self.copy()?;
        let store = Store::open(&self.place.snapshot_store())?;
        let actual = self.present()?;
        let plan = Plan::new(&actual, wanted)?;
        let mut supply = Supply::new(&store, vec![Held::new(&copy, &actual.manifest)]).taking(wanted);
        for entry in &plan.put {
            if !supply.has(entry)? {
                return Err(Error::refused(format!("the snapshot is incomplete: {} is missing", entry.path))
                    .hint("mc_project verify NAME tells which restore points are complete"));
            }
        }
        let target = Target { tree: &copy, own: self.own, point: "rollback.data" };
        apply(&target, &plan, &mut supply, &Keeping { store: Some(&store), aside: None })?;
        let sealed = seal_changes(&copy, self.own, &actual.manifest, &plan, wanted)?;
        self.record_witness(&copy, sealed)
    }

    /// The paths that a restore has to exchange, with what stands there now.
    ///
    /// # Errors
    /// If the data cannot be examined.
    pub fn units(&self, scope: &Scope) -> Result<Vec<Unit>> {
        let (project, archives) = (Dir::open(self.place.dir())?, Dir::open(&self.place.archives())?);
        let inode = |dir: &Dir, base: &str, path: &str| -> Result<u64> {
            let rel = if path == "." { PathBuf::from(base) } else { Path::new(base).join(path) };
            Ok(dir.stat(&rel)?.map_or(0, |meta| meta.ino))
        };
        let paths: Vec<PathBuf> = match scope {
            None => vec![PathBuf::from(".")],
            Some(paths) => paths.iter().map(|path| path.as_path().to_path_buf()).collect(),
        };
        let mut units = Vec::new();
        for path in paths {
            let path = path.to_string_lossy().into_owned();
            let (live, snapshot) = (inode(&project, "data", &path)?, inode(&archives, "data", &path)?);
            units.push(Unit { path, live, snapshot });
        }
        Ok(units)
    }

    /// Whether data cannot be exchanged, because `data` or a path of the scope is a mount point or lies elsewhere.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub fn must_copy(&self, scope: &Scope) -> Result<bool> {
        let archives = Dir::open_real(&self.place.archives())?.stat_self()?;
        let data = Dir::open_real(&self.place.data())?;
        let here = data.stat_self()?;
        if here.dev != archives.dev || mount::is_mount_point(&self.place.data())? {
            return Ok(true);
        }
        for path in scope.iter().flatten() {
            // A path of the scope, and what leads to it, as far as it is there.
            let mut at = Some(path.clone());
            while let Some(path) = at {
                let apart = |meta: Meta| meta.kind == FileKind::Dir && (meta.dev, meta.mount) != (here.dev, here.mount);
                if data.stat(path.as_path())?.is_some_and(apart) {
                    return Ok(true);
                }
                at = path.parent();
            }
        }
        Ok(false)
    }

    /// Exchanges one path with its snapshot, unless that has happened already.
    ///
    /// # Errors
    /// If something else stands there now.
    pub fn restore(&self, unit: &Unit) -> Result<()> {
        let (project, archives) = (Dir::open(self.place.dir())?, Dir::open(&self.place.archives())?);
        let rel = if unit.path == "." { PathBuf::from("data") } else { Path::new("data").join(&unit.path) };
        let now = Unit {
            path: unit.path.clone(),
            live: project.stat(&rel)?.map_or(0, |meta| meta.ino),
            snapshot: archives.stat(&rel)?.map_or(0, |meta| meta.ino),
        };
        if (now.live, now.snapshot) == (unit.snapshot, unit.live) {
            return Ok(());
        }
        if now != *unit {
            return Err(Error::failed(format!("data/{} was replaced during a restore", unit.path))
                .hint(format!("compare it with {}", self.place.snapshot().join(&unit.path).display())));
        }
        match (unit.live, unit.snapshot) {
            (0, 0) => {}
            (0, _) => {
                ensure_parents(&project, &rel, self.own)?;
                archives.rename_new(&rel, &project, &rel)?;
            }
            (_, 0) => {
                ensure_parents(&archives, &rel, self.own)?;
                project.rename_new(&rel, &archives, &rel)?;
            }
            _ => project.exchange(&rel, &archives, &rel)?,
        }
        sync_parent(&project, &rel)?;
        sync_parent(&archives, &rel)
    }

    /// Restores file by file, where data cannot be exchanged; what is replaced goes below `aside`.
    ///
    /// # Errors
    /// If something cannot be copied.
    pub fn restore_by_copy(&self, scope: &Scope, wanted: &Manifest, aside: &Dir) -> Result<()> {
        let (live, copy) = (Dir::open_real(&self.place.data())?, self.copy()?);
        let store = Store::open(&self.place.snapshot_store())?;
        let actual = identify(&live, self.own, None, &wants(scope))?;
        // The copy may be a newer snapshot, which holds the same contents at other paths.
        let held = self.present()?.manifest;
        let mut supply = Supply::new(&store, vec![Held::new(&copy, &held)]);
        let target = Target { tree: &live, own: self.own, point: "rollback.data" };
        let keeping = Keeping { store: None, aside: Some(Aside { dir: aside, only: None }) };
        apply(&target, &Plan::new(&actual, wanted)?, &mut supply, &keeping)?;
        live.sync_file_system()
    }

    /// After a restore by exchange the copy holds the failed data: makes it a copy of the live data again and moves the
    /// files in which they differ below `aside` (`data.failed`), but for those that a restore point needs.
    ///
    /// # Errors
    /// If there is no space; the failed data then stay where they are.
    pub fn keep_failed(&self, scope: &Scope, aside: &Dir) -> Result<Manifest> {
        self.pass(scope, &Keep::Aside(aside))
    }

    /// After a restore by exchange, contents that restore points need may be in the live data alone: copies those into the
    /// store, before a service may change them. Returns how many were copied.
    ///
    /// # Errors
    /// If there is no space; the data are restored all the same.
    pub fn secure(&self) -> Result<usize> {
        let store = Store::open(&self.place.snapshot_store())?;
        let mut missing = Vec::new();
        for hash in self.needed_beside_the_copy()? {
            if !store.contains(&hash)? {
                missing.push(hash);
            }
        }
        if missing.is_empty() {
            return Ok(0);
        }
        let live = Dir::open_real(&self.place.data())?;
        let witness = Witness::open_or_read(&witness::path_of(self.place, &live)?);
        let told = identify(&live, self.own, witness.as_ref(), &|_| true)?;
        let supply = Supply::new(&store, vec![Held::new(&live, &told.manifest)]);
        let mut copied = 0;
        for hash in missing {
            if supply.has_content(&hash)? {
                store.add_with(|file| {
                    supply.copy(&hash, file).map_err(std::io::Error::other)?;
                    // The only other copy may be changed from here on, and a power cut must not leave an empty file of this name.
                    sync::whole(&*file)?;
                    Ok((hash, 0))
                })?;
                copied += 1;
            }
        }
        if copied > 0 {
            Dir::open(&self.place.snapshot_store())?.sync()?;
        }
        Ok(copied)
    }

    fn needed_beside_the_copy(&self) -> Result<HashSet<Hash>> {
        let mut needed = self.needed()?;
        for hash in self.present()?.manifest.hashes() {
            needed.remove(&hash);
        }
        Ok(needed)
    }

    /// The contents of every restore point.
    fn needed(&self) -> Result<HashSet<Hash>> {
        let mut needed: HashSet<Hash> = HashSet::new();
        for name in fs::names(&self.place.archives())? {
            if let Ok(id) = name.parse()
                && let Some(manifest) = self.manifest(&id)?
            {
                needed.extend(manifest.hashes());
            }
        }
        Ok(needed)
    }

    /// Removes from the snapshot store what no restore point needs; what one needs and only the live data have is copied
    /// first.
    ///
    /// # Errors
    /// If a manifest is damaged: then nothing is removed.
    pub fn sweep(&self) -> Result<usize> {
        self.secure()?;
        let needed = self.needed_beside_the_copy()?;
        Store::open(&self.place.snapshot_store())?.sweep(&needed)
    }

    fn pass(&self, scope: &Scope, keep: &Keep<'_>) -> Result<Manifest> {
        let live = Dir::open_real(&self.place.data())?;
        let (copy, store) = (self.copy()?, Store::open(&self.place.snapshot_store())?);
        // The directories themselves are exchanged by a restore of all data.
        let top = live.stat_self()?;
        copy.give_to(top.uid, top.gid)?;
        if copy.stat_self()?.mode != top.mode {
            copy.set_own_mode(top.mode)?;
        }
        let live_witness_path = witness::path_of(self.place, &live)?;
        let live_witness = Witness::open_or_read(&live_witness_path);
        let source = identify(&live, self.own, live_witness.as_ref(), &wants(scope))?;
        self.left_out.replace(source.specials.clone());
        let wanted = source.manifest.clone();
        let actual = self.present()?;
        let plan = Plan::new(&actual, &wanted)?;
        let mut supply = Supply::new(&store, vec![Held::new(&live, &wanted)]);
        let target = Target { tree: &copy, own: self.own, point: "backup.copied" };
        // What leaves the copy may be all that a restore point has of a file: this goes into the store in any case.
        let only: HashSet<TreePath> = match keep {
            Keep::Store => HashSet::new(),
            Keep::Aside(_) => {
                let needed = self.needed()?;
                let free = |entry: &&Entry| entry.hash().is_none_or(|hash| !needed.contains(&hash));
                actual.manifest.entries().filter(free).map(|entry| entry.path.clone()).collect()
            }
        };
        let aside = match keep {
            Keep::Store => None,
            Keep::Aside(dir) => Some(Aside { dir, only: Some(&only) }),
        };
        let keeping = Keeping { store: Some(&store), aside };
        // The witness vouches for what is on disk: it is written after the sync, so a copy that it vouches for whole and that
        // is as wanted needs neither.
        if actual.read > 0 || !is_empty(&plan) {
            apply(&target, &plan, &mut supply, &keeping)?;
            copy.sync_file_system()?;
            let sealed = seal_changes(&copy, self.own, &actual.manifest, &plan, &wanted)?;
            self.record_witness(&copy, sealed)?;
        }
        witness::record(&live_witness_path, &live, source.manifest, live_witness)?;
        Ok(wanted)
    }

    fn copy(&self) -> Result<Dir> {
        Dir::open(&self.place.archives())?.ensure_dir(Path::new("data"), 0o700)
    }

    fn copy_if_there(&self) -> Result<Option<Dir>> {
        match Dir::open_real(&self.place.snapshot()) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn is_empty(plan: &Plan) -> bool {
    let files = plan.remove.is_empty() && plan.put.is_empty() && plan.link.is_empty() && plan.adjust.is_empty();
    files && plan.make.is_empty() && plan.settle.is_empty()
}

enum Keep<'a> {
    Store,
    Aside(&'a Dir),
}

/// Whether a path of `data/` lies in the scope (or leads to it).
pub fn wants(scope: &Scope) -> impl Fn(&TreePath) -> bool + Sync {
    let scope = scope.clone();
    move |path| scope.as_ref().is_none_or(|paths| paths.iter().any(|p| path.is_within(p) || p.is_within(path)))
}

/// Makes the directories that lead to a path; new ones belong to `own`.
fn ensure_parents(base: &Dir, rel: &Path, own: Own) -> Result<()> {
    let Some(parent) = rel.parent() else { return Ok(()) };
    let mut at = base.again()?;
    for name in parent.components() {
        let name = Path::new(name.as_os_str());
        let is_new = at.stat(name)?.is_none();
        at = at.ensure_dir(name, 0o750)?;
        // Ours, and not one that somebody put there meanwhile.
        if is_new && at.stat_self()?.uid == Own::current().uid {
            at.give_to(own.uid, own.gid)?;
        }
    }
    Ok(())
}

fn sync_parent(base: &Dir, rel: &Path) -> Result<()> {
    match rel.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => match base.dir(parent) {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
            Ok(dir) => dir.sync(),
        },
        _ => base.sync(),
    }
}
