//! How much disk a directory takes: a parallel walk by descriptors that counts blocks, not sizes.
//!
//! What has several names is counted once over all walks that share a [`Counted`]. A file system that is mounted inside
//! is counted too. What cannot be looked at (it vanished, or lies too deep for a path) is counted as such, never skipped
//! in silence.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use serde::Serialize;

use super::dir::{Dir, FileKind};
use super::error::Result;

/// How many threads look.
const THREADS: usize = 4;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Disk space in bytes: whole blocks.
    pub bytes: u64,
    /// Inodes: files, directories and links.
    pub inodes: u64,
    /// Directories that could not be looked into.
    pub unread: u64,
}

impl Usage {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, inodes: self.inodes + other.inodes, unread: self.unread + other.unread }
    }
}

/// What was counted already: directories that a walk begins at or that are mounted, and files with several names.
#[derive(Debug, Default)]
pub struct Counted(Mutex<HashSet<(u64, u64)>>);

impl Counted {
    /// Whether this is the first time that it is seen.
    fn is_new(&self, dev: u64, ino: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((dev, ino))
    }
}

struct Work {
    /// Directories to look into, and how many threads may still add some.
    stack: Mutex<(Vec<PathBuf>, usize)>,
    changed: Condvar,
}

impl Work {
    fn next(&self) -> Option<PathBuf> {
        let mut guard = self.stack.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(path) = guard.0.pop() {
                guard.1 += 1;
                return Some(path);
            }
            if guard.1 == 0 {
                self.changed.notify_all();
                return None;
            }
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, more: Vec<PathBuf>) {
        let mut guard = self.stack.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.extend(more);
        guard.1 -= 1;
        self.changed.notify_all();
    }
}

/// What a directory and everything in it takes; nothing if it was counted before. `skip` names paths below it that are
/// left out.
///
/// # Errors
/// If the directory itself cannot be examined.
pub fn measure(root: &Dir, counted: &Counted, skip: &[PathBuf]) -> Result<Usage> {
    let own = root.stat_self()?;
    if !counted.is_new(own.dev, own.ino) {
        return Ok(Usage::default());
    }
    let work = Work { stack: Mutex::new((vec![PathBuf::new()], 0)), changed: Condvar::new() };
    let parts = super::threads::side_by_side((0..THREADS).map(|_| || worker(root, &work, counted, skip)).collect())?;
    let total = Usage { bytes: own.disk, inodes: 1, unread: 0 };
    Ok(parts.into_iter().fold(total, Usage::plus))
}

fn worker(root: &Dir, work: &Work, counted: &Counted, skip: &[PathBuf]) -> Usage {
    let mut usage = Usage::default();
    while let Some(path) = work.next() {
        let mut inner = Vec::new();
        if look(root, &path, counted, skip, (&mut usage, &mut inner)).is_err() {
            usage.unread += 1;
        }
        work.done(inner);
    }
    usage
}

fn look(
    root: &Dir,
    path: &Path,
    counted: &Counted,
    skip: &[PathBuf],
    (usage, inner): (&mut Usage, &mut Vec<PathBuf>),
) -> Result<()> {
    let dir = if path.as_os_str().is_empty() { root.again()? } else { root.dir(path)? };
    let device = dir.stat_self()?.dev;
    for name in dir.names()? {
        let at = path.join(&name);
        if skip.contains(&at) {
            continue;
        }
        let Some(meta) = dir.stat(Path::new(&name))? else { continue };
        let has_other_names = meta.kind != FileKind::Dir && meta.nlink > 1;
        if (has_other_names || meta.dev != device) && !counted.is_new(meta.dev, meta.ino) {
            continue;
        }
        usage.bytes += meta.disk;
        usage.inodes += 1;
        if meta.kind == FileKind::Dir {
            inner.push(at);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_walk_counts_what_du_counts_and_every_inode_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/big"), vec![7; 300_000]).unwrap();
        std::fs::write(dir.path().join("small"), "x").unwrap();
        std::fs::hard_link(dir.path().join("small"), dir.path().join("a/same")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("a/link")).unwrap();
        let hole = std::fs::File::create(dir.path().join("hole")).unwrap();
        hole.set_len(1 << 30).unwrap();
        hole.sync_all().unwrap();

        let root = Dir::open(dir.path()).unwrap();
        let usage = measure(&root, &Counted::default(), &[]).unwrap();
        let output = Command::new("du").args(["--summarize", "--block-size=1"]).arg(dir.path()).output().unwrap();
        let du: u64 = String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(usage, Usage { bytes: du, inodes: 7, unread: 0 });
        assert!(usage.bytes < 1 << 20, "a hole takes nothing");

        let counted = Counted::default();
        let part = measure(&Dir::open(&dir.path().join("a")).unwrap(), &counted, &[]).unwrap();
        let rest = measure(&root, &counted, &[PathBuf::from("a")]).unwrap();
        assert_eq!(part.plus(rest), usage, "two walks that share what was counted are one");
        assert_eq!(measure(&root, &counted, &[]).unwrap(), Usage::default());
    }
}
