//! Walking a tree in parallel and telling what stands in it.
//!
//! [`scan`] only looks (one statx(2) per entry); [`identify`] also knows the content of every file. It trusts the
//! [`Witness`] for files whose inode, status-change time, size and modification time are as they were, and reads the others.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Condvar, Mutex};

use super::hash::Hash;
use super::manifest::{Content, Entry, Manifest};
use super::witness::Witness;
use crate::sys::dir::{Dir, FileKind, Meta};
use crate::sys::error::{Context, Error, Result};
use crate::sys::path::TreePath;

/// How many threads look: more than cores, because a cold disk is bound by latency.
pub const THREADS: usize = 4;

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
    /// Inode and status-change time of each entry, in the order of the manifest.
    pub inodes: Vec<(u64, i64)>,
    /// Devices, fifos and sockets, which no manifest holds.
    pub specials: Vec<TreePath>,
    /// Files that have a name outside of this tree too.
    pub linked_elsewhere: Vec<TreePath>,
    /// How many files had to be read.
    pub read: usize,
}

/// Work that threads take from each other: a stack and the number of those who may still add to it.
struct Shared<T> {
    stack: Mutex<(Vec<T>, usize)>,
    changed: Condvar,
}

/// Walks the tree; `wants` decides which entries are seen (a directory that is not wanted is not entered).
///
/// # Errors
/// If a directory cannot be read.
pub fn scan(root: &Dir, wants: &(dyn Fn(&TreePath) -> bool + Sync)) -> Result<Vec<Found>> {
    let shared = Shared { stack: Mutex::new((vec![None], 0)), changed: Condvar::new() };
    let device = root.stat_self()?.dev;
    let results: Vec<Result<Vec<Found>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| scan_worker(root, device, &shared, wants))).collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err(Error::bug("a scanning thread died")))).collect()
    });
    let mut all = Vec::new();
    for result in results {
        all.append(&mut result?);
    }
    all.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(all)
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
            match scan_directory(root, device, directory.as_ref(), wants, &mut found) {
                Ok(directories) => inner = directories,
                Err(error) => failure = Some(error),
            }
        }
        shared.done(inner);
    }
    failure.map_or(Ok(found), Err)
}

impl<T> Shared<T> {
    fn next(&self) -> Option<T> {
        let mut guard = self.stack.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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

    fn done(&self, more: impl IntoIterator<Item = T>) {
        let mut guard = self.stack.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        guard.0.extend(more);
        guard.1 -= 1;
        self.changed.notify_all();
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
        Some(path) => root.dir(path.as_path())?,
    };
    let mut inner = Vec::new();
    for name in opened.names()? {
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str());
        let path = match directory {
            None => TreePath::new(bytes)?,
            Some(parent) => parent.join(bytes)?,
        };
        if !wants(&path) {
            continue;
        }
        // Gone meanwhile: somebody else's work in a living tree; what matters is what stands there in the end.
        let Some(meta) = opened.stat(Path::new(&name))? else { continue };
        if meta.kind == FileKind::Dir {
            if meta.dev != device {
                return Err(Error::refused(format!(
                    "{} is a mount point inside of a tree",
                    root.path().join(path.as_path()).display()
                )));
            }
            inner.push(Some(path.clone()));
        }
        let target = match meta.kind {
            FileKind::Symlink => Some(opened.read_link(Path::new(&name))?),
            _ => None,
        };
        found.push(Found { path, meta, target });
    }
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
    identify_found(root, own, witness, &scan(root, wants)?)
}

/// Identifies what a scan found.
///
/// # Errors
/// If something cannot be read.
pub fn identify_found(root: &Dir, own: Own, witness: Option<&Witness>, found: &[Found]) -> Result<Identified> {
    let chunk = found.len().div_ceil(THREADS).max(1);
    let results: Vec<Result<Vec<Told>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = found
            .chunks(chunk)
            .map(|part| scope.spawn(move || part.iter().map(|one| entry_of(root, own, witness, one)).collect()))
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err(Error::bug("a reading thread died")))).collect()
    });
    let mut told = Identified::default();
    let mut entries = Vec::with_capacity(found.len());
    let mut leaders: HashMap<u64, (TreePath, u32, u32)> = HashMap::new();
    let mut index = 0;
    for result in results {
        for (entry, was_read) in result? {
            let one = &found[index];
            index += 1;
            told.read += usize::from(was_read);
            let Some(mut entry) = entry else {
                if one.meta.kind == FileKind::Special {
                    told.specials.push(one.path.clone());
                }
                continue;
            };
            if one.meta.kind == FileKind::File && one.meta.nlink > 1 {
                let leader = leaders.entry(one.meta.ino).or_insert((one.path.clone(), one.meta.nlink, 0));
                leader.2 += 1;
                entry.hard_link = (leader.0 != one.path).then(|| leader.0.clone());
            }
            told.inodes.push((one.meta.ino, one.meta.ctime));
            entries.push(entry);
        }
    }
    told.linked_elsewhere = leaders.into_values().filter(|l| l.1 > l.2).map(|l| l.0).collect();
    told.linked_elsewhere.sort();
    told.manifest = Manifest::new(entries)?;
    Ok(told)
}

/// An entry, and whether its content had to be read.
type Told = (Option<Entry>, bool);

/// The entry of what was found, and whether its content had to be read; `None` for specials and for what is gone.
fn entry_of(root: &Dir, own: Own, witness: Option<&Witness>, found: &Found) -> Result<Told> {
    let meta = &found.meta;
    let owner = (meta.uid != own.uid || meta.gid != own.gid).then_some((meta.uid, meta.gid));
    let mut entry = Entry {
        path: found.path.clone(),
        mode: meta.mode,
        owner,
        mtime: meta.mtime,
        content: Content::Dir,
        hard_link: None,
        xattrs: Vec::new(),
        blob: None,
    };
    if meta.kind == FileKind::Special {
        return Ok((None, false));
    }
    if let Some(target) = &found.target {
        entry.content = Content::Symlink(target.clone());
        entry.mode = 0o777;
        return Ok((Some(entry), false));
    }
    if let Some(known) = witness.and_then(|w| w.vouch(&found.path, meta)) {
        entry.content = known.content.clone();
        entry.xattrs.clone_from(&known.xattrs);
        entry.blob.clone_from(&known.blob);
        return Ok((Some(entry), false));
    }
    let parent = match found.path.parent() {
        None => root.again()?,
        Some(parent) => root.dir(parent.as_path())?,
    };
    entry.xattrs = match parent.xattrs(found.path.name()) {
        Err(error) if error.is_not_found() => return Ok((None, false)),
        other => other?,
    };
    if meta.kind == FileKind::Dir {
        return Ok((Some(entry), false));
    }
    let mut file = match parent.open_file(Path::new(found.path.name())) {
        Err(error) if error.is_not_found() => return Ok((None, false)),
        other => other?,
    };
    let (hash, size) = Hash::reading(&mut file)
        .context(|| format!("cannot read {}", root.path().join(found.path.as_path()).display()))?;
    entry.content = Content::File { size, hash };
    Ok((Some(entry), true))
}
