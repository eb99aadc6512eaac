//! Strict sync: makes a physical tree exactly what a manifest says, and nothing else.
//!
//! First a [`Plan`] is made from what stands in the tree and what shall stand there; [`apply`] then carries it out through
//! directory descriptors. A file is replaced by renaming a complete new one over it, so that a reader of the tree sees
//! the old content or the new one. Metadata of directories come last, deepest first.
//!
//! The owner of the tree may change it at the same time. Metadata are set through a descriptor of the entry, never by its
//! name, and only where the entry is new from our hand or belongs to that owner and stays so; anything else is replaced by
//! a copy: it may be a second name of somebody else's file.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::hash::Hash;
use super::manifest::{Content, Entry, Manifest, Stamp, differing};
use super::scan::{Found, Identified, Own, identify, in_parts, scan};
use super::store::{Store, Supply};
use super::witness::{self, Witness};

pub use super::scan::now_ns;
use crate::sys::dir::{Dir, FileKind, Hold, Meta};
use crate::sys::error::{Context, Error, Result};
use crate::sys::fault;
use crate::sys::path::TreePath;

/// The name under which what is made for one place stands until it is complete; files have a number too.
const TEMP_LINK: &str = ".mc_project.new-link";

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
    ///
    /// # Errors
    /// If the record of either turns out to be damaged.
    pub fn new(actual: &Identified, wanted: &Manifest) -> Result<Self> {
        let mut plan = Self::default();
        let foreign: HashSet<&TreePath> = actual.linked_elsewhere.iter().collect();
        for (old, new) in differing(&actual.manifest, wanted) {
            plan.add(old, new, &foreign);
        }
        for path in &actual.linked_elsewhere {
            let (old, new) = (actual.manifest.get(path), wanted.get(path));
            if old.is_some() && old == new {
                plan.add(old, new, &foreign);
            }
        }
        for path in &actual.specials {
            plan.remove.push(Gone { path: path.clone(), entry: None });
        }
        plan.remove.sort_by(|a, b| a.path.cmp(&b.path));
        plan.relink(wanted);
        plan.collect_directories(wanted);
        actual.manifest.intact()?;
        wanted.intact()?;
        Ok(plan)
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
        if fresh.is_empty() {
            return;
        }
        let more: Vec<Entry> = wanted
            .linked()
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
        let wanted = directories.iter().filter_map(|path| wanted.get(path));
        self.settle = wanted.filter(|entry| entry.is_dir()).cloned().collect();
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
            (Some(store), Some(hash)) => {
                let stamp = (old.stamp.ino != 0).then_some((old.stamp.ino, old.stamp.ctime));
                store.take_in(parent, name, &hash, stamp)
            }
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
        keep_copy(parent, name, &place, &old.path)?;
    }
    parent.unlink(name)
}

/// Copies a file that somebody may still write to into a directory of ours, as far as its size was when it was opened, and
/// not at all where it would take more than half of the space that is left.
///
/// # Errors
/// If it cannot be read or written, or is too large.
pub fn keep_copy(from: &Dir, name: &Path, into: &Dir, shown: &TreePath) -> Result<()> {
    let (file, meta) = from.open_examined(name)?;
    let free = into.free_space()?.bytes;
    if meta.size > free / 2 {
        let (size, free) = (crate::sys::size::words(meta.size), crate::sys::size::words(free));
        return Err(Error::refused(format!("{shown} is too large to be kept: it has {size}, and {free} are free"))
            .hint("move it away, or remove it"));
    }
    let mut to = into.create_file(Path::new(shown.name()), 0o600)?;
    std::io::copy(&mut file.take(meta.size), &mut to).context(|| format!("cannot keep {shown}")).map(|_| ())
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
    let supply = &*supply;
    in_parts(&plan.put, |number, part| target.put_all(number, part, plan, supply, keeping))?;
    for entry in &plan.link {
        target.link(entry, plan, keeping)?;
    }
    for entry in &plan.adjust {
        target.adjust(entry, plan, keeping)?;
    }
    for entry in plan.settle.iter().rev() {
        target.settle(entry)?;
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

    /// Directories of ours that we must change but may not write to get the bits for it; the settling sets the right mode.
    fn unlock_directories(&self, plan: &Plan) -> Result<()> {
        let us = Own::current().uid;
        let removed_dirs = plan.remove.iter().filter(|gone| gone.entry.as_ref().is_some_and(Entry::is_dir));
        let paths = plan.settle.iter().map(|entry| &entry.path).chain(removed_dirs.map(|gone| &gone.path));
        for path in paths {
            let is_locked = |meta: &Meta| meta.kind == FileKind::Dir && meta.mode & 0o700 != 0o700 && meta.uid == us;
            if self.tree.stat(path.as_path())?.is_some_and(|meta| is_locked(&meta)) {
                let hold = self.tree.hold(path.as_path())?;
                if is_locked(hold.meta()) {
                    hold.set_mode(hold.meta().mode | 0o700)?;
                }
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
            parent.remove_tree(&temp)?;
            let made = supply.put(entry, parent, &temp)?;
            self.set_metadata(&made, entry)?;
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
        let temp = Path::new(TEMP_LINK);
        parent.remove_tree(temp)?;
        if let Some(leader) = &entry.hard_link {
            self.tree.link(leader.as_path(), &parent, temp)?;
        } else if let Content::Symlink(target) = &entry.content {
            self.make_symlink(&parent, temp, target, entry)?;
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

    fn make_symlink(&self, parent: &Dir, temp: &Path, target: &[u8], entry: &Entry) -> Result<()> {
        parent.symlink(target, temp)?;
        let made = parent.hold(temp)?;
        if made.meta().kind != FileKind::Symlink || !made.is_single() {
            return Err(self.changed(entry));
        }
        self.set_metadata(&made, entry)
    }

    /// Sets the metadata of a file or link whose content is as wanted.
    fn adjust(&self, entry: &Entry, plan: &Plan, keeping: &Keeping<'_>) -> Result<()> {
        let (parent, name) = self.parent(&entry.path)?;
        let held = parent.hold(&name)?;
        let (uid, _) = entry.owner.unwrap_or((self.own.uid, self.own.gid));
        let is_link = matches!(entry.content, Content::Symlink(_));
        if (held.meta().kind == FileKind::Symlink) != is_link {
            return Err(self.changed(entry));
        }
        // The owner of the tree could set all this too, wherever else the file has a name.
        if held.meta().uid == self.own.uid && uid == self.own.uid {
            return self.set_metadata(&held, entry);
        }
        if is_link || entry.hard_link.is_some() {
            return self.link(entry, plan, keeping);
        }
        let temp = Path::new(TEMP_LINK);
        parent.remove_tree(temp)?;
        let mut copy = parent.create_file(temp, 0o600)?;
        let mut old = parent.open_file(&name)?.take(entry.size().saturating_add(1));
        let (found, _) = Hash::copying(&mut old, &mut copy).context(|| format!("cannot copy {}", entry.path))?;
        if Some(found) != entry.hash() {
            parent.unlink(temp)?;
            return Err(self.changed(entry));
        }
        self.set_metadata(&parent.hold_open(temp, copy)?, entry)?;
        parent.rename(temp, &parent, &name)
    }

    /// Sets the metadata of a directory. One that is somebody else's gives what is in it to a new one.
    fn settle(&self, entry: &Entry) -> Result<()> {
        let (uid, _) = entry.owner.unwrap_or((self.own.uid, self.own.gid));
        let held = self.tree.hold(entry.path.as_path())?;
        if held.meta().kind != FileKind::Dir {
            return Err(self.changed(entry));
        }
        if [uid, self.own.uid, Own::current().uid].contains(&held.meta().uid) {
            return self.set_metadata(&held, entry);
        }
        let (parent, name) = self.parent(&entry.path)?;
        let temp = Path::new(".mc_project.new-directory");
        parent.remove_tree(temp)?;
        parent.make_dir(temp, 0o700)?;
        let (old, new) = (parent.dir(&name)?, parent.dir(temp)?);
        for inner in old.names()? {
            old.rename_new(Path::new(&inner), &new, Path::new(&inner))?;
        }
        parent.exchange(temp, &parent, &name)?;
        parent.remove_dir(temp)?;
        let made = parent.hold(&name)?;
        if made.meta().ino != new.stat_self()?.ino {
            return Err(self.changed(entry));
        }
        self.set_metadata(&made, entry)
    }

    fn changed(&self, entry: &Entry) -> Error {
        Error::failed(format!("{} was changed by somebody else: {}", self.tree.path().display(), entry.path))
            .hint("find out who writes there (fuser -v), then deploy again")
    }

    /// Sets the metadata of what is held. The owner comes first, for which the kernel takes setuid and setgid away: at no
    /// instant does a program of one user run with the rights of another.
    fn set_metadata(&self, held: &Hold, entry: &Entry) -> Result<()> {
        let (uid, gid) = entry.owner.unwrap_or((self.own.uid, self.own.gid));
        held.set_owner(uid, gid)?;
        if held.meta().kind != FileKind::Symlink {
            // Attributes before the mode: an access control list changes the group bits.
            held.set_xattrs(&entry.xattrs)?;
            held.set_mode(entry.mode)?;
        }
        held.set_mtime(entry.mtime)
    }
}

/// Looks at a tree that was just made and returns what it is, with stamps; a tree that differs from `wanted` is an error.
///
/// # Errors
/// If the tree cannot be read, or somebody changed it meanwhile.
pub fn seal(tree: &Dir, own: Own, wanted: &Manifest) -> Result<Manifest> {
    let taken = now_ns();
    let found = scan(tree, &|_| true)?;
    let mut sealed = Vec::with_capacity(found.len());
    let mut wanted_entries = wanted.entries();
    for one in &found {
        let Some(entry) = wanted_entries.next() else { return Err(differs(tree, &one.path, "is new")) };
        if entry.path != one.path {
            let (path, what) = if entry.path < one.path { (&entry.path, "is gone") } else { (&one.path, "is new") };
            return Err(differs(tree, path, what));
        }
        sealed.push(stamped(tree, one, entry, own, taken)?);
    }
    if let Some(entry) = wanted_entries.next() {
        return Err(differs(tree, &entry.path, "is gone"));
    }
    Manifest::new(sealed)
}

/// As [`seal`], for a tree that was `before` (with stamps) until a plan was carried out: only what the plan changed is
/// looked at.
///
/// # Errors
/// As [`seal`].
pub fn seal_changes(tree: &Dir, own: Own, before: &Manifest, plan: &Plan, wanted: &Manifest) -> Result<Manifest> {
    let taken = now_ns();
    let changed = plan.make.iter().chain(&plan.put).chain(&plan.link).chain(&plan.adjust).chain(&plan.settle);
    let mut put = Vec::new();
    for path in changed.map(|entry| &entry.path).collect::<BTreeSet<_>>() {
        let entry = wanted.get(path).ok_or_else(|| Error::bug("a plan makes what is not wanted"))?;
        let Some(meta) = tree.stat(path.as_path())? else { return Err(differs(tree, path, "is gone")) };
        let target = match meta.kind {
            FileKind::Symlink => Some(tree.read_link(path.as_path())?),
            _ => None,
        };
        put.push(stamped(tree, &Found { path: path.clone(), meta, target }, entry, own, taken)?);
    }
    let is_wanted = |path: &&TreePath| wanted.get(path).is_none();
    let gone: Vec<TreePath> = plan.remove.iter().map(|gone| &gone.path).filter(is_wanted).cloned().collect();
    let sealed = before.with(put, &gone)?;
    let differing = differing(&sealed, wanted).find(|(old, new)| !is_fit(*old, *new));
    match differing.and_then(|(old, new)| old.or(new)) {
        Some(entry) => Err(differs(tree, &entry.path, "is not as wanted")),
        None => Ok(sealed),
    }
}

fn differs(tree: &Dir, path: &TreePath, what: &str) -> Error {
    Error::failed(format!("{} was changed by somebody else: {path} {what}", tree.path().display()))
        .hint("find out who writes there (fuser -v), then deploy again")
}

/// The wanted entry with the stamp of what was found.
fn stamped(tree: &Dir, found: &Found, entry: &Entry, own: Own, taken: i64) -> Result<Entry> {
    if !fits(found, entry, own) {
        return Err(differs(tree, &found.path, "is not as written"));
    }
    let (ino, ctime) = (found.meta.ino, found.meta.ctime);
    Ok(Entry { stamp: Stamp { ino, ctime, is_sure: witness::is_sure(ctime, taken) }, ..entry.clone() })
}

/// Whether what stands there is what is wanted, the git object's name aside.
fn is_fit(old: Option<&Entry>, new: Option<&Entry>) -> bool {
    old.zip(new).is_some_and(|(old, new)| old.same_content(new) && old.same_metadata(new))
}

fn fits(found: &Found, entry: &Entry, own: Own) -> bool {
    let (meta, owner) = (&found.meta, entry.owner.unwrap_or((own.uid, own.gid)));
    let same_kind = match &entry.content {
        Content::Dir => meta.kind == FileKind::Dir && meta.mode == entry.mode,
        Content::File { size, .. } => {
            meta.kind == FileKind::File && own.recorded_mode(meta) == entry.mode && meta.size == *size
        }
        Content::Symlink(target) => found.target.as_ref() == Some(target),
    };
    same_kind && (meta.uid, meta.gid) == owner && meta.mtime == entry.mtime
}

/// Proves that a tree is what a manifest says, by content: every file that the witness does not vouch for is read. For a tree
/// that somebody may have written to since it was sealed. Returns what it is, with stamps.
///
/// # Errors
/// If the tree cannot be read, or differs.
pub fn prove(tree: &Dir, own: Own, wanted: &Manifest, witness: Option<&Witness>) -> Result<Manifest> {
    let told = identify(tree, own, witness, &|_| true)?;
    let differing = differing(&told.manifest, wanted).find(|(old, new)| !is_fit(*old, *new));
    let first = differing.and_then(|(old, new)| old.or(new)).map(|entry| entry.path.clone());
    if let Some(path) = first.as_ref().or(told.specials.first()) {
        return Err(differs(tree, path, "is not as deployed"));
    }
    Ok(told.manifest)
}
