//! Walking a tree in parallel and telling what stands in it.
//!
//! [`scan`] only looks (one statx(2) per entry); [`identify`] also knows the content of every file. It trusts the
//! [`Witness`] for files whose inode, status-change time, size and modification time are as they were, and reads the others.
//!
//! Somebody may change the tree meanwhile, on purpose too. What is told about a file that was read (owner, mode, inode, and
//! whether it has other names) comes from the very descriptor that its content was read from: no content is ever told
//! under another's owner.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::hash::Hash;
use super::manifest::{Chunk, Content, Entry, Manifest, Piece, Stamp};
use super::witness::{self, Witness};
use crate::sys::dir::{Dir, FileKind, Meta};
use crate::sys::error::{Context, Error, Result};
use crate::sys::path::TreePath;
use crate::sys::threads;

/// How many threads look: more than cores, because a cold disk is bound by latency.
pub const THREADS: usize = 4;
/// Fewer entries than this are not worth a thread.
pub const SMALL: usize = 256;

/// One entry as it was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where.
    pub path: TreePath,
    /// What statx(2) told.
    pub meta: Meta,
    /// The target, for a link.
    pub target: Option<Vec<u8>>,
}

/// The user whose files are recorded without an owner: in a directory node, ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Own {
    /// The user that this process runs as.
    #[must_use]
    pub fn current() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

/// What a tree really consists of.
#[derive(Debug, Default)]
pub struct Identified {
    /// Its entries, with contents.
    pub manifest: Manifest,
    /// Devices, fifos and sockets, which no manifest holds.
    pub specials: Vec<TreePath>,
    /// Files that have a name outside of this tree too.
    pub linked_elsewhere: Vec<TreePath>,
    /// How many files had to be read.
    pub read: usize,
}

impl Identified {
    /// The first entry that belongs to another user than `own`, and is none of the known ones. What a program of that user made cannot be such a file:
    /// it is a second name of somebody else's.
    #[must_use]
    pub fn of_another(&self, own: Own, is_known: impl Fn(&Entry) -> bool) -> Option<&Entry> {
        self.manifest.entries().find(|entry| entry.owner.is_some_and(|(uid, _)| uid != own.uid) && !is_known(entry))
    }
}

/// More entries are refused: somebody may make them faster than they are looked at.
const MOST_ENTRIES: usize = 10_000_000;

/// Work that threads take from each other: a stack and the number of those who may still add to it.
struct Shared<T> {
    seen: AtomicUsize,
    stack: Mutex<(Vec<T>, usize)>,
    changed: Condvar,
}

/// Walks the tree; `wants` decides which entries are seen (a directory that is not wanted is not entered).
///
/// # Errors
/// If a directory cannot be read.
pub fn scan(root: &Dir, wants: &(dyn Fn(&TreePath) -> bool + Sync)) -> Result<Vec<Found>> {
    let device = root.stat_self()?.dev;
    let (mut all, pending) = scan_beginning(root, device, wants)?;
    let shared = Shared { seen: AtomicUsize::new(all.len()), stack: Mutex::new((pending, 0)), changed: Condvar::new() };
    let has_more = !lock(&shared.stack).0.is_empty();
    let count = if has_more { THREADS } else { 0 };
    let workers = (0..count).map(|_| || scan_worker(root, device, &shared, wants)).collect();
    for result in threads::side_by_side(workers)? {
        all.append(&mut result?);
    }
    // What each thread found is sorted already: this sort finds such runs and joins them.
    all.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
}

/// Walks alone as long as that is not much; returns what was found and which directories are left.
fn scan_beginning(
    root: &Dir,
    device: u64,
    wants: &(dyn Fn(&TreePath) -> bool + Sync),
) -> Result<(Vec<Found>, Vec<Option<TreePath>>)> {
    let (mut found, mut pending) = (Vec::new(), vec![None]);
    while found.len() < SMALL
        && let Some(directory) = pending.pop()
    {
        pending.extend(scan_directory(root, device, directory.as_ref(), wants, &mut found)?);
    }
    Ok((found, pending))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Calls `work` with each part of `items` and the number of its first one, in threads where there are many; results are in
/// order.
///
/// # Errors
/// The first error of a part.
pub fn in_parts<T: Sync, R: Send>(items: &[T], work: impl Fn(usize, &[T]) -> Result<R> + Sync) -> Result<Vec<R>> {
    in_parts_of(items, SMALL / THREADS, work)
}

fn in_parts_of<T: Sync, R: Send>(
    items: &[T],
    least: usize,
    work: impl Fn(usize, &[T]) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let length = items.len().div_ceil(THREADS).max(least);
    if items.len() <= length {
        return Ok(vec![work(0, items)?]);
    }
    let work = &work;
    let parts = items.chunks(length).enumerate();
    threads::side_by_side(parts.map(|(number, part)| move || work(number * length, part)).collect())?
        .into_iter()
        .collect()
}

fn scan_worker(
    root: &Dir,
    device: u64,
    shared: &Shared<Option<TreePath>>,
    wants: &(dyn Fn(&TreePath) -> bool + Sync),
) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut failure = None;
    while let Some(directory) = shared.next() {
        let mut inner = Vec::new();
        if failure.is_none() {
            let before = found.len();
            match scan_directory(root, device, directory.as_ref(), wants, &mut found) {
                Ok(directories) => inner = directories,
                Err(error) => failure = Some(error),
            }
            let more = found.len() - before;
            if shared.seen.fetch_add(more, Ordering::Relaxed) + more > MOST_ENTRIES {
                let error = format!("{} has more than {MOST_ENTRIES} entries", root.path().display());
                failure = Some(Error::refused(error).hint("find out who makes them: fuser -v"));
                inner.clear();
            }
        }
        shared.done(inner);
    }
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    failure.map_or(Ok(found), Err)
}

impl<T> Shared<T> {
    fn next(&self) -> Option<T> {
        let mut guard = lock(&self.stack);
        loop {
            if let Some(work) = guard.0.pop() {
                guard.1 += 1;
                return Some(work);
            }
            if guard.1 == 0 {
                self.changed.notify_all();
                return None;
            }
            guard = self.changed.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn done(&self, more: Vec<T>) {
        let mut guard = lock(&self.stack);
        guard.1 -= 1;
        // Whoever waits would find nothing new otherwise.
        let is_news = !more.is_empty() || guard.1 == 0;
        guard.0.extend(more);
        drop(guard);
        if is_news {
            self.changed.notify_all();
        }
    }
}

fn scan_directory(
    root: &Dir,
    device: u64,
    directory: Option<&TreePath>,
    wants: &(dyn Fn(&TreePath) -> bool + Sync),
    found: &mut Vec<Found>,
) -> Result<Vec<Option<TreePath>>> {
    let opened = match directory {
        None => root.again()?,
        Some(path) => match root.dir(path.as_path()) {
            // Gone meanwhile: somebody else's work in a living tree; what matters is what stands there in the end.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            other => other?,
        },
    };
    let mut inner = Vec::new();
    opened.into_entries(|opened, name, meta| {
        let path = directory.map_or_else(|| TreePath::new(name), |parent| parent.join(name))?;
        if !wants(&path) {
            return Ok(());
        }
        if meta.kind == FileKind::Dir {
            if meta.dev != device {
                let path = root.path().join(path.as_path());
                return Err(Error::refused(format!("{} is a mount point inside of a tree", path.display()))
                    .hint(format!("umount {}", path.display())));
            }
            inner.push(Some(path.clone()));
        }
        let target = match meta.kind {
            FileKind::Symlink => Some(opened.read_link(Path::new(path.name()))?),
            _ => None,
        };
        found.push(Found { path, meta, target });
        Ok(())
    })?;
    Ok(inner)
}

/// Walks the tree and identifies every file's content, reading only what the witness does not vouch for.
///
/// # Errors
/// If something cannot be read.
pub fn identify(
    root: &Dir,
    own: Own,
    witness: Option<&Witness>,
    wants: &(dyn Fn(&TreePath) -> bool + Sync),
) -> Result<Identified> {
    let taken = now_ns();
    identify_found(root, own, witness, (&scan(root, wants)?, taken))
}

/// The wall time in nanoseconds since the epoch.
#[must_use]
pub fn now_ns() -> i64 {
    i64::try_from(crate::sys::clock::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Identifies what a scan found that began at `taken`, in nanoseconds since the epoch.
///
/// # Errors
/// If something cannot be read.
pub fn identify_found(
    root: &Dir,
    own: Own,
    witness: Option<&Witness>,
    (found, taken): (&[Found], i64),
) -> Result<Identified> {
    refuse_holes(root, found)?;
    let ranges = Range::all(found, own, witness)?;
    let unknown: Vec<&Found> = ranges.iter().filter(|range| range.kept.is_none()).flat_map(|r| r.found).collect();
    let results: Vec<Vec<Option<Told>>> =
        in_parts(&unknown, |_, part| part.iter().map(|one| entry_of(root, own, witness, one)).collect())?;
    let mut results = results.into_iter().flatten();
    let mut told = Identified::default();
    let mut leaders = Leaders::default();
    let mut lost_directory = false;
    let mut pieces = Vec::with_capacity(ranges.len());
    for Range { found, kept } in &ranges {
        if let Some(chunk) = kept {
            for one in *found {
                leaders.see(&one.path, &one.meta);
            }
            pieces.push(Piece::Kept(Arc::clone(chunk)));
            continue;
        }
        let mut entries = Vec::with_capacity(found.len());
        for one in *found {
            let Some(Told { mut entry, meta, was_read }) = results.next().flatten() else {
                match one.meta.kind {
                    FileKind::Special => told.specials.push(one.path.clone()),
                    kind => lost_directory |= kind == FileKind::Dir,
                }
                continue;
            };
            told.read += usize::from(was_read);
            entry.hard_link = leaders.see(&one.path, &meta);
            entry.stamp = Stamp { ino: meta.ino, ctime: meta.ctime, is_sure: witness::is_sure(meta.ctime, taken) };
            entries.push(entry);
        }
        pieces.push(Piece::Entries(entries));
    }
    told.linked_elsewhere = leaders.linked_elsewhere();
    told.manifest = Manifest::of_walk(pieces, lost_directory)?;
    Ok(told)
}

/// What was found where a chunk of the witness stands, and that chunk if everything looks as it says.
struct Range<'a> {
    found: &'a [Found],
    kept: Option<Arc<Chunk>>,
}

impl<'a> Range<'a> {
    /// All of what was found, in order.
    fn all(found: &'a [Found], own: Own, witness: Option<&Witness>) -> Result<Vec<Self>> {
        let Some(witness) = witness.filter(|witness| witness.manifest().chunks().len() > 0) else {
            return Ok(vec![Self { found, kept: None }]);
        };
        let chunks: Vec<&Arc<Chunk>> = witness.manifest().chunks().collect();
        // What comes before the first path belongs to the first chunk.
        let begin = |index: usize| match chunks.get(index) {
            Some(chunk) if index > 0 => found.partition_point(|one| one.path < *chunk.first()),
            Some(_) => 0,
            None => found.len(),
        };
        let parts = in_parts_of(&chunks, 8, |from, part| {
            let numbered = (from..).zip(part);
            Ok(numbered
                .map(|(index, chunk)| {
                    let found = &found[begin(index)..begin(index + 1)];
                    // What was damaged on the disk is read from the tree again, now and not when it is needed.
                    let is_kept = witness.looks_as(chunk, found, own) && chunk.is_whole();
                    Self { found, kept: is_kept.then(|| Arc::clone(chunk)) }
                })
                .collect::<Vec<_>>())
        })?;
        Ok(parts.into_iter().flatten().collect())
    }
}

/// The first name of every file that has several.
#[derive(Default)]
struct Leaders(HashMap<u64, (TreePath, u32, u32)>);

impl Leaders {
    /// Sees an entry; returns the first name of its file, where this is another one.
    fn see(&mut self, path: &TreePath, meta: &Meta) -> Option<TreePath> {
        if meta.kind != FileKind::File || meta.nlink < 2 {
            return None;
        }
        let leader = self.0.entry(meta.ino).or_insert((path.clone(), meta.nlink, 0));
        leader.2 += 1;
        (leader.0 != *path).then(|| leader.0.clone())
    }

    fn linked_elsewhere(self) -> Vec<TreePath> {
        let mut elsewhere: Vec<TreePath> = self.0.into_values().filter(|l| l.1 > l.2).map(|l| l.0).collect();
        elsewhere.sort();
        elsewhere
    }
}

/// One entry that was identified.
struct Told {
    entry: Entry,
    /// What it was when its content was known.
    meta: Meta,
    was_read: bool,
}

/// Larger files than the file system holds consist of holes: reading them would take for ever, copying them fill the disk.
fn refuse_holes(root: &Dir, found: &[Found]) -> Result<()> {
    let total = root.free_space()?.total;
    let mut sum = 0_u64;
    for one in found.iter().filter(|one| one.meta.kind == FileKind::File) {
        sum = sum.saturating_add(one.meta.size);
        // Compression and shared blocks let a tree hold more than its file system does, but not so much more.
        if total > 0 && (one.meta.size > total || sum / 16 > total) {
            let (path, size) = (root.path().join(one.path.as_path()), crate::sys::size::words(one.meta.size));
            return Err(Error::refused(format!(
                "{} says that it has {size}, which its file system does not hold: it consists of holes",
                crate::sys::escape::visible_bounded(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()), 1024)
            ))
            .hint("remove it; of data/, `data: {snapshot: […]}` in mc_project.yaml names what is kept"));
        }
    }
    Ok(())
}

/// The entry of what was found; `None` for specials and for what is gone.
fn entry_of(root: &Dir, own: Own, witness: Option<&Witness>, found: &Found) -> Result<Option<Told>> {
    let meta = &found.meta;
    if meta.kind == FileKind::Special {
        return Ok(None);
    }
    let told = |meta: &Meta, content, was_read| {
        let entry = bare_entry(&found.path, meta, own, content);
        Told { entry, meta: *meta, was_read }
    };
    if let Some(target) = &found.target {
        return Ok(Some(told(meta, Content::Symlink(target.clone()), false)));
    }
    if let Some(known) = witness.and_then(|w| w.vouch(&found.path, meta)) {
        let mut told = told(meta, known.content.clone(), false);
        told.entry.xattrs.clone_from(&known.xattrs);
        told.entry.blob.clone_from(&known.blob);
        return Ok(Some(told));
    }
    if meta.kind == FileKind::Dir {
        let hold = match root.hold(found.path.as_path()) {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        if hold.meta().kind != FileKind::Dir {
            return Err(changing(root, &found.path));
        }
        let mut told = told(hold.meta(), Content::Dir, false);
        told.entry.xattrs = hold.xattrs()?;
        return Ok(Some(told));
    }
    let (mut file, meta) = match root.open_examined(found.path.as_path()) {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other?,
    };
    // No further than the size that was examined, although somebody may write faster than we read.
    let (hash, size) = Hash::reading(&mut (&mut file).take(meta.size.saturating_add(1)))
        .context(|| format!("cannot read {}", root.path().join(found.path.as_path()).display()))?;
    let mut told = told(&meta, Content::File { size, hash }, true);
    let known = witness.and_then(|witness| witness.manifest().get(&found.path));
    told.entry.blob = known.filter(|known| known.content == told.entry.content).and_then(|known| known.blob.clone());
    told.entry.xattrs = root.hold_open(found.path.as_path(), file)?.xattrs()?;
    Ok(Some(told))
}

impl Own {
    /// The owner as it is recorded: none if it is this user.
    #[must_use]
    pub fn recorded(self, meta: &Meta) -> Option<(u32, u32)> {
        (meta.uid != self.uid || meta.gid != self.gid).then_some((meta.uid, meta.gid))
    }

    /// The permission bits as they are recorded. The copy of another's program must not become one that runs with the
    /// other's rights, so that a file of somebody else is recorded without setuid and setgid.
    #[must_use]
    pub fn recorded_mode(self, meta: &Meta) -> u32 {
        let is_anothers = meta.kind == FileKind::File && self.recorded(meta).is_some();
        if is_anothers { meta.mode & !0o6000 } else { meta.mode }
    }
}

fn bare_entry(path: &TreePath, meta: &Meta, own: Own, content: Content) -> Entry {
    Entry {
        path: path.clone(),
        mode: if matches!(content, Content::Symlink(_)) { 0o777 } else { own.recorded_mode(meta) },
        owner: own.recorded(meta),
        mtime: meta.mtime,
        content,
        hard_link: None,
        xattrs: Vec::new(),
        blob: None,
        stamp: Stamp::default(),
    }
}

fn changing(root: &Dir, path: &TreePath) -> Error {
    Error::failed(format!("{} changes all the time", root.path().join(path.as_path()).display()))
        .hint("find out who writes there: fuser -v")
}
