//! What a living tree holds at a moment, told by stamps and not by contents: enough to see what was saved since.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::sys::dir::{Dir, FileKind, Meta};
use crate::sys::error::Result;
use crate::sys::path::TreePath;

/// What tells two states of a file apart. An editor that saves by renaming changes the inode, every other one the times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    ino: u64,
    size: u64,
    mtime: i64,
    ctime: i64,
    mode: u32,
}

impl Stamp {
    fn of(meta: &Meta) -> Self {
        Self { ino: meta.ino, size: meta.size, mtime: meta.mtime, ctime: meta.ctime, mode: meta.mode }
    }
}

/// The files of a tree at a moment, and the directories that they stand in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moment {
    files: BTreeMap<TreePath, Stamp>,
    dirs: BTreeSet<TreePath>,
}

impl Moment {
    /// Looks at a tree; what is `ignored` (path, is a directory) is not entered. Somebody works in the tree meanwhile: what
    /// vanishes while we look, and what has no name that we could tell, is not there.
    ///
    /// # Errors
    /// If the tree itself cannot be read.
    pub fn of(tree: &Dir, ignored: &dyn Fn(&TreePath, bool) -> bool) -> Result<Self> {
        let mut moment = Self::default();
        let device = tree.stat_self()?.dev;
        moment.look(tree, None, device, ignored)?;
        Ok(moment)
    }

    fn look(
        &mut self,
        dir: &Dir,
        at: Option<&TreePath>,
        device: u64,
        ignored: &dyn Fn(&TreePath, bool) -> bool,
    ) -> Result<()> {
        for name in dir.names()? {
            let bytes = std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str());
            let path = at.map_or_else(|| TreePath::new(bytes), |at| at.join(bytes));
            let (Ok(path), Ok(Some(meta))) = (path, dir.stat(Path::new(&name))) else { continue };
            let is_dir = meta.kind == FileKind::Dir;
            if ignored(&path, is_dir) {
                continue;
            }
            if !is_dir {
                self.files.insert(path, Stamp::of(&meta));
            } else if meta.dev == device {
                if let Ok(inner) = dir.dir(Path::new(&name)) {
                    // Gone or closed meanwhile: the next look tells.
                    let _ = self.look(&inner, Some(&path), device, ignored);
                }
                self.dirs.insert(path);
            }
        }
        Ok(())
    }

    /// How many files there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// The directories below the tree's own.
    pub fn dirs(&self) -> impl Iterator<Item = &TreePath> {
        self.dirs.iter()
    }

    /// The files that are new, gone or other than they were.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> BTreeSet<TreePath> {
        let new = self.files.iter().filter(|(path, stamp)| before.files.get(*path) != Some(stamp));
        let gone = before.files.keys().filter(|path| !self.files.contains_key(*path));
        new.map(|(path, _)| path).chain(gone).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_save_is_seen_and_what_is_ignored_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::create_dir_all(at("src/deep")).unwrap();
        std::fs::create_dir_all(at(".git/objects")).unwrap();
        for name in ["src/a", "src/deep/b", "gone", "same", "mode", ".git/index"] {
            std::fs::write(at(name), "1").unwrap();
        }
        let tree = Dir::open(temp.path()).unwrap();
        let look = || Moment::of(&tree, &|path, _| path.as_bytes() == b".git").unwrap();
        let before = look();
        assert_eq!(before.count(), 5);
        assert_eq!(before.dirs().map(ToString::to_string).collect::<Vec<_>>(), ["src", "src/deep"]);
        assert!(look().changed_since(&before).is_empty());

        std::fs::write(at("src/a"), "2").unwrap();
        std::fs::write(at("src/deep/.b.tmp"), "1").unwrap();
        std::fs::rename(at("src/deep/.b.tmp"), at("src/deep/b")).unwrap();
        std::fs::remove_file(at("gone")).unwrap();
        std::fs::write(at("new"), "").unwrap();
        std::os::unix::fs::symlink("new", at("link")).unwrap();
        std::fs::write(at(".git/index"), "2").unwrap();
        std::fs::read(at("same")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(at("mode"), mode).unwrap();
        let changed: Vec<String> = look().changed_since(&before).iter().map(ToString::to_string).collect();
        assert_eq!(changed, ["gone", "link", "mode", "new", "src/a", "src/deep/b"]);
    }
}
