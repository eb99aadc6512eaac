//! What a directory holds: every path with its type, mode, content and link target, to be compared exactly.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The digest of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(BTreeMap<OsString, String>);

/// The digest of everything below `dir`; a directory that is not there has none.
pub fn digest(dir: &Path) -> Tree {
    digest_without(dir, &[])
}

/// The same, without the paths `except` (relative, with all below them).
pub fn digest_without(dir: &Path, except: &[&str]) -> Tree {
    let mut entries = BTreeMap::new();
    if dir.symlink_metadata().is_ok() {
        walk(dir, Path::new(""), except, &mut entries);
    }
    Tree(entries)
}

fn walk(dir: &Path, rel: &Path, except: &[&str], entries: &mut BTreeMap<OsString, String>) {
    for entry in std::fs::read_dir(dir.join(rel)).unwrap() {
        let entry = entry.unwrap();
        let at = rel.join(entry.file_name());
        if except.iter().any(|e| at == Path::new(e)) {
            continue;
        }
        let meta = entry.path().symlink_metadata().unwrap();
        let kind = meta.file_type();
        let mode = meta.mode() & 0o7777;
        let text = if kind.is_symlink() {
            format!("link to {}", std::fs::read_link(entry.path()).unwrap().display())
        } else if kind.is_dir() {
            format!("directory {mode:04o}")
        } else if kind.is_file() {
            let bytes = std::fs::read(entry.path()).unwrap();
            format!("file {mode:04o} {} {}", bytes.len(), blake3::hash(&bytes).to_hex())
        } else if kind.is_fifo() {
            format!("fifo {mode:04o}")
        } else if kind.is_socket() {
            format!("socket {mode:04o}")
        } else {
            format!("device {mode:04o} {}", meta.rdev())
        };
        entries.insert(at.clone().into_os_string(), text);
        if kind.is_dir() {
            walk(dir, &at, except, entries);
        }
    }
}

impl Tree {
    /// A tree that is described elsewhere: each path with its text.
    pub fn of(entries: impl Iterator<Item = (String, String)>) -> Self {
        Self(entries.map(|(path, text)| (path.into(), text)).collect())
    }

    /// The paths, in order.
    pub fn paths(&self) -> Vec<String> {
        self.0.keys().map(|path| path.to_string_lossy().into_owned()).collect()
    }

    /// The paths in which the two differ, a line each.
    pub fn differences(&self, other: &Self) -> String {
        self.differences_but(other, &[])
    }

    /// The same without these paths.
    pub fn differences_but(&self, other: &Self, except: &[&str]) -> String {
        let mut differences = String::new();
        let all: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        for path in all.into_iter().filter(|path| !except.iter().any(|e| path.as_os_str() == *e)) {
            let (before, after) = (self.0.get(path), other.0.get(path));
            if before != after {
                let _ = writeln!(differences, "  {}: {before:?} -> {after:?}", path.display());
            }
        }
        differences
    }

    /// Asserts that the two are the same; tells the paths in which they differ.
    #[track_caller]
    pub fn assert_same(&self, other: &Self, what: &str) {
        let differences = self.differences(other);
        assert!(differences.is_empty(), "{what} differs:\n{differences}");
    }
}
