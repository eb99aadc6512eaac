//! Strict sync: makes a physical tree exactly what a manifest says, and nothing else.
//!
//! First a [`Plan`] is made from what stands in the tree and what shall stand there; [`apply`] then carries it out through
//! directory descriptors. A file is replaced by renaming a complete new one over it, so that a reader of the tree sees
//! the old content or the new one. Metadata of directories come last, deepest first.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::hash::Hash;
use super::manifest::{Content, Entry, Manifest, pairs};
use super::scan::{Found, Identified, Own, THREADS, scan};
use super::store::{Store, Supply};
use super::witness::Witness;
use crate::sys::dir::{Dir, FileKind};
use crate::sys::error::{Context, Error, Result};
use crate::sys::fault;
use crate::sys::path::TreePath;

/// What must be done to a tree.
#[derive(Debug, Default)]
pub struct Plan {
    /// What must go: extras, and what has another type than wanted. Parents before children.
    pub remove: Vec<Gone>,
    /// Directories to make. Parents before children.
    pub make: Vec<Entry>,
    /// Files whose content must be written.
    pub put: Vec<Entry>,
    /// Old entries of files that are replaced.
    pub replaced: HashMap<TreePath, Entry>,
    /// Hard links and symbolic links to make.
    pub link: Vec<Entry>,
    /// Files and links whose metadata alone differ.
    pub adjust: Vec<Entry>,
    /// Directories whose metadata must be set, because they differ or something in them changes.
    pub settle: Vec<Entry>,
}

/// Something that leaves the tree.
#[derive(Debug)]
pub struct Gone {
    /// Where it stands.
    pub path: TreePath,
    /// What it is; `None` for a device, fifo or socket.
    pub entry: Option<Entry>,
}

impl Plan {
    /// Plans how what was identified becomes what is wanted.
    #[must_use]
    pub fn new(actual: &Identified, wanted: &Manifest) -> Self {
        let mut plan = Self::default();
        let foreign: HashSet<&TreePath> = actual.linked_elsewhere.iter().collect();
        for (old, new) in pairs(actual.manifest.entries(), wanted.entries()) {
            plan.add(old, new, &foreign);
        }
        for path in &actual.specials {
            plan.remove.push(Gone { path: path.clone(), entry: None });
        }
        plan.remove.sort_by(|a, b| a.path.cmp(&b.path));
        plan.relink(wanted);
        plan.collect_directories(wanted);
        plan
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty()
            && self.make.is_empty()
            && self.put.is_empty()
            && self.link.is_empty()
            && self.adjust.is_empty()
            && self.settle.is_empty()
    }

    /// Number of files that are written, changed or removed.
    #[must_use]
    pub fn files(&self) -> usize {
        let removed = self.remove.iter().filter(|gone| !gone.entry.as_ref().is_some_and(Entry::is_dir)).count();
        removed + self.put.len() + self.link.len() + self.adjust.len()
    }

    /// Bytes that are written at most.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.put.iter().map(Entry::size).sum()
    }

    fn add(&mut self, old: Option<&Entry>, new: Option<&Entry>, foreign: &HashSet<&TreePath>) {
        match (old, new) {
            (Some(old), None) => self.remove.push(Gone { path: old.path.clone(), entry: Some(old.clone()) }),
            (None, Some(new)) => self.create(new),
            (Some(old), Some(new)) => {
                let same_type = std::mem::discriminant(&old.content) == std::mem::discriminant(&new.content);
                if !same_type {
                    self.remove.push(Gone { path: old.path.clone(), entry: Some(old.clone()) });
                    self.create(new);
                } else if !old.same_content(new) || foreign.contains(&new.path) {
                    self.replaced.insert(old.path.clone(), old.clone());
                    self.create(new);
                } else if !old.same_metadata(new) {
                    if new.is_dir() { self.settle.push(new.clone()) } else { self.adjust.push(new.clone()) }
                }
            }
            (None, None) => {}
        }
    }

    fn create(&mut self, new: &Entry) {
        match (&new.content, &new.hard_link) {
            (Content::Dir, _) => self.make.push(new.clone()),
            (Content::File { .. }, None) => self.put.push(new.clone()),
            _ => self.link.push(new.clone()),
        }
    }

    /// A file that gets a new inode takes its other names along.
    fn relink(&mut self, wanted: &Manifest) {
        let fresh: HashSet<&TreePath> = self.put.iter().map(|entry| &entry.path).collect();
        let linked: HashSet<&TreePath> = self.link.iter().map(|entry| &entry.path).collect();
        let more: Vec<Entry> = wanted
            .entries()
            .iter()
            .filter(|e| e.hard_link.as_ref().is_some_and(|leader| fresh.contains(leader)) && !linked.contains(&e.path))
            .cloned()
            .collect();
        self.adjust.retain(|entry| !more.iter().any(|other| other.path == entry.path));
        self.link.extend(more);
    }

    fn collect_directories(&mut self, wanted: &Manifest) {
        let changed = self.remove.iter().map(|gone| &gone.path);
        let changed = changed.chain(self.make.iter().chain(&self.put).chain(&self.link).map(|entry| &entry.path));
        let mut directories: BTreeSet<TreePath> = changed.filter_map(TreePath::parent).collect();
        directories.extend(self.make.iter().map(|entry| entry.path.clone()));
        directories.extend(self.settle.iter().map(|entry| entry.path.clone()));
        self.settle = directories.iter().filter_map(|path| wanted.get(path)).cloned().collect();
    }
}

/// What happens to files that leave the tree; without either, they are removed.
#[derive(Debug, Default)]
pub struct Keeping<'a> {
    /// Their contents go into this store, by renaming.
    pub store: Option<&'a Store>,
    /// These ones are moved below this directory instead, under the same path.
    pub aside: Option<Aside<'a>>,
}

/// A directory that keeps files that leave a tree.
#[derive(Debug)]
pub struct Aside<'a> {
    /// The directory.
    pub dir: &'a Dir,
    /// Which files it keeps; `None` for all.
    pub only: Option<&'a HashSet<TreePath>>,
}

impl Keeping<'_> {
    fn displace(&self, parent: &Dir, old: &Entry) -> Result<()> {
        let name = old.path.name();
        if let Some(aside) = &self.aside
            && aside.only.is_none_or(|paths| paths.contains(&old.path))
        {
            return move_aside(parent, old, aside.dir);
        }
        match (self.store, old.hash()) {
            (Some(store), Some(hash)) => store.take_in(parent, name, &hash),
            _ => parent.unlink(Path::new(name)),
        }
    }

    fn is_plain(&self) -> bool {
        self.store.is_none() && self.aside.is_none()
    }
}

/// Moves a file below `aside` under its own path, copying where it lies on another file system.
fn move_aside(parent: &Dir, old: &Entry, aside: &Dir) -> Result<()> {
    let mut place = aside.again()?;
    if let Some(directory) = old.path.parent() {
        for name in directory.as_path().components() {
            place = place.ensure_dir(Path::new(name.as_os_str()), 0o700)?;
        }
    }
    let name = Path::new(old.path.name());
    place.remove_tree(name)?;
    match parent.rename(name, &place, name) {
        Err(error) if error.errno() == Some(nix::libc::EXDEV) => {}
        other => return other,
    }
    if let Content::Symlink(target) = &old.content {
        place.symlink(target, name)?;
    } else {
        let (mut from, mut to) = (parent.open_file(name)?, place.create_file(name, 0o600)?);
        std::io::copy(&mut from, &mut to).context(|| format!("cannot keep {}", old.path))?;
    }
    parent.unlink(name)
}

/// A tree that is being changed.
#[derive(Debug)]
pub struct Target<'a> {
    /// The tree.
    pub tree: &'a Dir,
    /// Whose files have no recorded owner.
    pub own: Own,
    /// The fault point that is passed at each file.
    pub point: &'static str,
}

/// Carries a plan out.
///
/// # Errors
/// If something cannot be read or written; the tree is then neither old nor new and must be synced again.
pub fn apply(target: &Target<'_>, plan: &Plan, supply: &mut Supply<'_>, keeping: &Keeping<'_>) -> Result<()> {
    let mut uses: HashMap<Hash, usize> = HashMap::new();
    for hash in plan.put.iter().filter_map(Entry::hash) {
        *uses.entry(hash).or_default() += 1;
    }
    supply.keep(uses.into_iter().filter(|(_, count)| *count > 1).map(|(hash, _)| hash));
    target.unlock_directories(plan)?;
    target.remove(plan, keeping)?;
    for entry in &plan.make {
        target.tree.make_dir(entry.path.as_path(), 0o700)?;
    }
    let chunk = plan.put.len().div_ceil(THREADS).max(1);
    let supply = &*supply;
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = plan
            .put
            .chunks(chunk)
            .enumerate()
            .map(|(number, part)| scope.spawn(move || target.put_all(number, part, plan, supply, keeping)))
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err(Error::bug("a writing thread died")))).collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    for entry in &plan.link {
        target.link(entry, plan, keeping)?;
    }
    for entry in &plan.adjust {
        let (parent, name) = target.parent(&entry.path)?;
        target.set_metadata(&parent, &name, entry)?;
    }
    for entry in plan.settle.iter().rev() {
        let (parent, name) = target.parent(&entry.path)?;
        target.set_metadata(&parent, &name, entry)?;
    }
    Ok(())
}

impl Target<'_> {
    fn parent(&self, path: &TreePath) -> Result<(Dir, PathBuf)> {
        let parent = match path.parent() {
            None => self.tree.again()?,
            Some(parent) => self.tree.dir(parent.as_path())?,
        };
        Ok((parent, PathBuf::from(path.name())))
    }

    /// Directories that we must change but may not write to get the bits for it; the settling sets the right mode.
    fn unlock_directories(&self, plan: &Plan) -> Result<()> {
        let removed_dirs = plan.remove.iter().filter(|gone| gone.entry.as_ref().is_some_and(Entry::is_dir));
        let paths = plan.settle.iter().map(|entry| &entry.path).chain(removed_dirs.map(|gone| &gone.path));
        for path in paths {
            if let Some(meta) = self.tree.stat(path.as_path())?
                && meta.kind == FileKind::Dir
                && meta.mode & 0o700 != 0o700
            {
                self.tree.set_mode(path.as_path(), meta.mode | 0o700)?;
            }
        }
        Ok(())
    }

    fn remove(&self, plan: &Plan, keeping: &Keeping<'_>) -> Result<()> {
        for gone in plan.remove.iter().rev() {
            fault::point(self.point)?;
            match &gone.entry {
                Some(entry) if entry.is_dir() => self.tree.remove_dir(entry.path.as_path())?,
                Some(entry) => keeping.displace(&self.parent(&entry.path)?.0, entry)?,
                None => self.tree.unlink(gone.path.as_path())?,
            }
        }
        Ok(())
    }

    fn put_all(
        &self,
        number: usize,
        part: &[Entry],
        plan: &Plan,
        supply: &Supply<'_>,
        keeping: &Keeping<'_>,
    ) -> Result<()> {
        let mut open: Option<(Option<TreePath>, Dir)> = None;
        let temp = PathBuf::from(format!(".mc_project.new-{number}"));
        for entry in part {
            fault::point(self.point)?;
            let directory = entry.path.parent();
            if open.as_ref().is_none_or(|(path, _)| *path != directory) {
                open = Some((directory, self.parent(&entry.path)?.0));
            }
            let Some((_, parent)) = &open else { continue };
            parent.unlink(&temp)?;
            supply.put(entry, parent, &temp)?;
            self.set_metadata(parent, &temp, entry)?;
            if let Some(old) = plan.replaced.get(&entry.path)
                && !keeping.is_plain()
            {
                keeping.displace(parent, old)?;
            }
            parent.rename(&temp, parent, Path::new(entry.path.name()))?;
        }
        Ok(())
    }

    fn link(&self, entry: &Entry, plan: &Plan, keeping: &Keeping<'_>) -> Result<()> {
        fault::point(self.point)?;
        let (parent, name) = self.parent(&entry.path)?;
        let temp = Path::new(".mc_project.new-link");
        parent.unlink(temp)?;
        if let Some(leader) = &entry.hard_link {
            self.tree.link(leader.as_path(), &parent, temp)?;
        } else if let Content::Symlink(target) = &entry.content {
            parent.symlink(target, temp)?;
            self.set_metadata(&parent, temp, entry)?;
        }
        if let Some(old) = plan.replaced.get(&entry.path)
            && !keeping.is_plain()
        {
            keeping.displace(&parent, old)?;
        }
        parent.rename(temp, &parent, &name)?;
        // rename(2) of two names of one file does nothing and leaves both.
        parent.unlink(temp)
    }

    fn set_metadata(&self, parent: &Dir, name: &Path, entry: &Entry) -> Result<()> {
        let is_link = matches!(entry.content, Content::Symlink(_));
        let (uid, gid) = entry.owner.unwrap_or((self.own.uid, self.own.gid));
        let present = parent.stat(name)?.ok_or_else(|| Error::failed(format!("{} is gone", entry.path)))?;
        if (present.uid, present.gid) != (uid, gid) {
            parent.set_owner(name, uid, gid)?;
        }
        if !is_link {
            // Attributes before the mode: an access control list changes the group bits.
            parent.set_xattrs(name.as_os_str(), &entry.xattrs)?;
            parent.set_mode(name, entry.mode)?;
        }
        parent.set_mtime(name, entry.mtime)
    }
}

/// Looks at a tree that was just made and takes its witness; a tree that differs from `wanted` is an error.
///
/// # Errors
/// If the tree cannot be read, or somebody changed it meanwhile.
pub fn seal(tree: &Dir, own: Own, wanted: &Manifest) -> Result<Witness> {
    let taken = now_ns();
    let found = scan(tree, &|_| true)?;
    let differs = |path: &TreePath, what: &str| {
        Error::failed(format!("{} was changed by somebody else: {path} {what}", tree.path().display()))
            .hint("find out who writes there (fuser -v), then deploy again")
    };
    let mut inodes = Vec::with_capacity(found.len());
    let mut wanted_entries = wanted.entries().iter();
    for one in &found {
        let Some(entry) = wanted_entries.next() else { return Err(differs(&one.path, "is new")) };
        if entry.path != one.path {
            let (path, what) = if entry.path < one.path { (&entry.path, "is gone") } else { (&one.path, "is new") };
            return Err(differs(path, what));
        }
        if !fits(one, entry, own) {
            return Err(differs(&one.path, "is not as written"));
        }
        inodes.push((one.meta.ino, one.meta.ctime));
    }
    if let Some(entry) = wanted_entries.next() {
        return Err(differs(&entry.path, "is gone"));
    }
    let told = Identified { manifest: wanted.clone(), inodes, ..Identified::default() };
    Ok(Witness::new(told, taken, tree.stat_self()?.dev))
}

fn fits(found: &Found, entry: &Entry, own: Own) -> bool {
    let (meta, owner) = (&found.meta, entry.owner.unwrap_or((own.uid, own.gid)));
    let same_kind = match &entry.content {
        Content::Dir => meta.kind == FileKind::Dir && meta.mode == entry.mode,
        Content::File { size, .. } => meta.kind == FileKind::File && meta.mode == entry.mode && meta.size == *size,
        Content::Symlink(target) => found.target.as_ref() == Some(target),
    };
    same_kind && (meta.uid, meta.gid) == owner && meta.mtime == entry.mtime
}

/// The wall time in nanoseconds since the epoch.
#[must_use]
pub fn now_ns() -> i64 {
    i64::try_from(crate::sys::clock::now().as_nanosecond()).unwrap_or(i64::MAX)
}
