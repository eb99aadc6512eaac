//! The whole tree of a commit as a list, with everything hostile refused before anything is written.

use std::collections::{HashMap, HashSet};

use crate::sys::error::{Error, Result};
use crate::sys::escape;
use crate::sys::names::ObjectId;
use crate::sys::path::{MAX_DEPTH, TreePath};
use crate::sys::size;

use super::object::{Header, ObjectKind};
use super::walk::Walk;
use super::{Repo, object};

/// The largest raw tree object that is read: about a million entries in one directory.
pub const MAX_TREE: u64 = 64 * 1024 * 1024;
/// The longest target of a symbolic link (`PATH_MAX` without its NUL).
const MAX_TARGET: u64 = 4095;

/// What an entry of a commit's tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A regular file that is executable.
    Executable,
    /// A symbolic link; its target is the blob's content.
    Symlink,
    /// A commit of another repository.
    Submodule,
}

/// One entry of a commit's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitEntry {
    /// Where it is.
    pub path: TreePath,
    /// Its blob; of a submodule its commit.
    pub oid: ObjectId,
    /// What it is.
    pub kind: EntryKind,
    /// The blob's size in bytes; 0 for a submodule.
    pub size: u64,
}

/// How large a tree may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeLimits {
    /// The most files, and the most directories.
    pub files: u64,
    /// The most bytes altogether.
    pub bytes: u64,
    /// The most bytes of one file.
    pub file_bytes: u64,
}

/// What the mode of a raw tree entry means.
pub enum Mode {
    /// A directory.
    Tree,
    /// Anything else.
    Entry(EntryKind),
}

impl Mode {
    /// Reads a mode; `None` for one that git does not write: set-id bits, devices, unknown types.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        Some(match digits {
            b"40000" | b"040000" => Self::Tree,
            // 100664 was written by the first versions of git.
            b"100644" | b"100664" => Self::Entry(EntryKind::File),
            b"100755" => Self::Entry(EntryKind::Executable),
            b"120000" => Self::Entry(EntryKind::Symlink),
            b"160000" => Self::Entry(EntryKind::Submodule),
            _ => return None,
        })
    }
}

impl Repo {
    /// Every file, link and submodule of a commit, sorted by the bytes of the path.
    ///
    /// Files are counted before anything is unfolded, so that a tree that unfolds to billions is refused at once, and
    /// the presence and size of every blob are known before anything is written.
    ///
    /// # Errors
    /// [`Kind::Refused`](crate::sys::error::Kind::Refused), naming the path, if a name, a mode, a link or a size is
    /// not acceptable or an object is missing.
    pub fn list(&self, commit: &ObjectId, limits: &TreeLimits) -> Result<Vec<GitEntry>> {
        let root = self.tree_of(commit)?;
        let unfolded = self.unfold(&root, 0, &mut HashMap::new());
        for (number, what) in [(unfolded.files, "files"), (unfolded.dirs, "directories")] {
            if number > limits.files {
                let limit = limits.files;
                let problem = format!("the commit has {number} {what}, which is beyond the limit of {limit} {what}");
                return Err(Error::refused(problem).hint(SMALLER));
            }
        }
        let mut walk = Walk::new(self, limits);
        walk.found.reserve(usize::try_from(unfolded.files).unwrap_or(0));
        walk.tree((None, &root), None)?;
        Ok(walk.finish()?.put)
    }

    /// As [`Repo::list`] for what is below one directory of a commit; nothing where there is no such directory.
    ///
    /// # Errors
    /// As [`Repo::list`].
    pub fn list_below(&self, commit: &ObjectId, path: &TreePath, limits: &TreeLimits) -> Result<Vec<GitEntry>> {
        let Some(id) = self.tree_at(commit, path)? else { return Ok(Vec::new()) };
        if self.unfold(&id, 0, &mut HashMap::new()).files > limits.files {
            return Err(refuse(path.as_bytes(), "holds too many files", SMALLER));
        }
        let mut walk = Walk::new(self, limits);
        walk.tree((None, &id), Some(path))?;
        Ok(walk.finish()?.put)
    }

    /// The file, link or submodule at a path of a commit; `None` where there is none, or a directory.
    ///
    /// # Errors
    /// As [`Repo::list`].
    pub fn entry_of(&self, commit: &ObjectId, path: &TreePath, limits: &TreeLimits) -> Result<Option<GitEntry>> {
        let Some((mode, oid)) = self.entry_at(commit, path)? else { return Ok(None) };
        let Some(Mode::Entry(kind)) = Mode::parse(&mode) else { return Ok(None) };
        let mut found = [GitEntry { path: path.clone(), oid, kind, size: 0 }];
        self.measure(&mut found, limits)?;
        let [entry] = found;
        Ok(Some(entry))
    }

    /// The names of the files directly in a directory of a commit; none where there is no such directory.
    ///
    /// # Errors
    /// If the commit cannot be read.
    pub fn names_at(&self, commit: &ObjectId, path: &TreePath) -> Result<Vec<Vec<u8>>> {
        let Some(id) = self.tree_at(commit, path)? else { return Ok(Vec::new()) };
        let raw = self.content(&id)?;
        let entries = object::parse_tree(&raw, self.format())
            .map_err(|problem| refuse(path.as_bytes(), &format!("is a directory that {problem}"), ""))?;
        let is_file =
            |mode: &[u8]| matches!(Mode::parse(mode), Some(Mode::Entry(kind)) if kind != EntryKind::Submodule);
        Ok(entries.iter().filter(|entry| is_file(entry.mode)).map(|entry| entry.name.to_vec()).collect())
    }

    /// The tree of a directory of a commit; `None` where there is none, or something else.
    fn tree_at(&self, commit: &ObjectId, path: &TreePath) -> Result<Option<ObjectId>> {
        let found = self.entry_at(commit, path)?;
        Ok(found.filter(|(mode, _)| matches!(Mode::parse(mode), Some(Mode::Tree))).map(|(_, id)| id))
    }

    /// How many files and directories a tree unfolds to; each distinct tree is read once, however often it is used.
    /// What cannot be read, or lies deeper than a path can be, counts nothing here: the walk tells what is wrong with it.
    pub fn unfold(&self, id: &ObjectId, depth: usize, known: &mut HashMap<ObjectId, Unfolded>) -> Unfolded {
        if let Some(unfolded) = known.get(id) {
            return *unfolded;
        }
        let mut sum = Unfolded::default();
        let is_tree = |header: Header| header.kind == ObjectKind::Tree && header.size <= MAX_TREE;
        let raw = match self.header(id) {
            Ok(Some(header)) if depth <= MAX_DEPTH && is_tree(header) => self.content(id).unwrap_or_default(),
            _ => return sum,
        };
        for entry in object::parse_tree(&raw, self.format()).unwrap_or_default() {
            if matches!(Mode::parse(entry.mode), Some(Mode::Tree)) {
                let below = self.unfold(&entry.id, depth + 1, known);
                sum.files = sum.files.saturating_add(below.files);
                sum.dirs = sum.dirs.saturating_add(below.dirs).saturating_add(1);
            } else {
                sum.files = sum.files.saturating_add(1);
            }
        }
        known.insert(id.clone(), sum);
        sum
    }

    /// Fills in the sizes; each blob is looked up once, however often it is used.
    ///
    /// # Errors
    /// As [`Repo::list`].
    pub fn measure(&self, found: &mut [GitEntry], limits: &TreeLimits) -> Result<()> {
        let blobs = || found.iter().filter(|entry| entry.kind != EntryKind::Submodule);
        let wanted: Vec<&ObjectId> = blobs().map(|entry| &entry.oid).collect::<HashSet<_>>().into_iter().collect();
        let headers = self.headers(&wanted)?;
        let known: HashMap<ObjectId, Option<Header>> = wanted.into_iter().cloned().zip(headers).collect();
        let mut total = 0_u64;
        for entry in found.iter_mut().filter(|entry| entry.kind != EntryKind::Submodule) {
            let path = &entry.path;
            let header =
                known.get(&entry.oid).copied().flatten().ok_or_else(|| missing(path.as_bytes(), &entry.oid))?;
            if header.kind != ObjectKind::Blob {
                return Err(refuse(path.as_bytes(), &format!("names a {}, not a file", header.kind.as_str()), REWRITE));
            }
            entry.size = header.size;
            if entry.kind == EntryKind::Symlink && !(1..=MAX_TARGET).contains(&entry.size) {
                let problem = format!("is a link with a target of {} bytes, not 1 to {MAX_TARGET}", entry.size);
                return Err(refuse(path.as_bytes(), &problem, RENAME));
            }
            if entry.size > limits.file_bytes {
                let problem =
                    format!("has {} bytes, the limit for one file is {}", entry.size, size::words(limits.file_bytes));
                return Err(refuse(path.as_bytes(), &problem, SMALLER));
            }
            total = total.saturating_add(entry.size);
            if total > limits.bytes {
                let problem = format!("makes the tree larger than the limit of {}", size::words(limits.bytes));
                return Err(refuse(path.as_bytes(), &problem, SMALLER));
            }
        }
        Ok(())
    }

    /// Refuses links that no file system can hold.
    ///
    /// # Errors
    /// As [`Repo::list`].
    pub fn check_links(&self, found: &[GitEntry]) -> Result<()> {
        for entry in found.iter().filter(|entry| entry.kind == EntryKind::Symlink) {
            if self.blob(&entry.oid, MAX_TARGET)?.contains(&0) {
                return Err(refuse(entry.path.as_bytes(), "is a link with a NUL byte in its target", RENAME));
            }
        }
        Ok(())
    }
}

/// What a tree holds when every use of a shared directory is counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unfolded {
    /// Files, links and submodules.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
}

/// What to do about it.
pub const RENAME: &str = "rename or remove it, commit and push again";
/// What to do about it.
pub const REWRITE: &str = "git did not make this; find what did, then: git fsck --strict";
/// What to do about it.
pub const SMALLER: &str = "remove it from the commit, or raise the limit in node.yaml";

/// The refusal of a path.
pub fn refuse(path: &[u8], problem: &str, hint: &str) -> Error {
    Error::refused(format!("path `{}` {problem}", escape::visible_bounded(path, 256))).hint(hint)
}

/// The refusal of a path whose object is missing.
pub fn missing(path: &[u8], id: &ObjectId) -> Error {
    let problem = format!("names the object {}, which is missing", id.short());
    refuse(path, &problem, "push again from a complete clone: git fetch --unshallow, git fsck")
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, LIMITS, Reader, on_each};
    use super::*;

    #[test]
    fn a_tree_is_listed_by_path_with_kind_and_size_whatever_bytes_the_names_hold() {
        on_each(|f| {
            let (one, two, nothing) = (f.blob(b"1"), f.blob(b"22"), f.nothing());
            let inner = f.tree(&[("100644", b"x", &one), ("120000", b"y", &two)]);
            let commit = f.commit_of(&[
                ("100664", b"\x1b[31m\n\t", &one),
                ("100644", b"a\\b", &one),
                ("100755", b"d-", &two),
                ("40000", b"d", &inner),
                ("160000", b"sub", &nothing),
                ("100644", b"\xff\xfe", &one),
            ]);
            let found = f.list(&commit);
            let seen: Vec<(&[u8], EntryKind, u64)> =
                found.iter().map(|e| (e.path.as_bytes(), e.kind, e.size)).collect();
            assert_eq!(
                seen,
                [
                    (&b"\x1b[31m\n\t"[..], EntryKind::File, 1),
                    (b"a\\b", EntryKind::File, 1),
                    (b"d-", EntryKind::Executable, 2),
                    (b"d/x", EntryKind::File, 1),
                    (b"d/y", EntryKind::Symlink, 2),
                    (b"sub", EntryKind::Submodule, 0),
                    (b"\xff\xfe", EntryKind::File, 1),
                ]
            );
            assert_eq!(found[5].oid, nothing);
        });
    }

    #[test]
    fn an_empty_tree_is_an_empty_list() {
        on_each(|f| {
            let commit = f.commit_of(&[]);
            assert!(f.list(&commit).is_empty());
        });
    }

    #[test]
    fn modes_that_git_does_not_write_are_refused() {
        on_each(|f| {
            let blob = f.blob(b"x");
            for mode in ["104755", "102755", "101777", "100777", "100000", "60000", "20000", "0", "", "1", "100644x"] {
                let commit = f.commit_of(&[(mode, b"evil", &blob)]);
                f.assert_refused(&commit, &["`evil`", "mode"]);
            }
        });
    }

    #[test]
    fn names_that_lead_out_or_into_git_are_refused() {
        on_each(|f| {
            let blob = f.blob(b"x");
            let inner = f.tree(&[("100644", b"x", &blob)]);
            let names: [&[u8]; 13] = [
                b".",
                b"..",
                b".git",
                b".GIT",
                b"git~1",
                ".g\u{200c}it".as_bytes(),
                b".git ",
                b".git::$DATA",
                b"../outside",
                b"/etc",
                b"a/b",
                b"",
                b".mc_project-staging",
            ];
            for name in names {
                let file = f.commit_of(&[("100644", name, &blob)]);
                f.assert_refused(&file, &["path `"]);
                let dir = f.commit_of(&[("40000", name, &inner)]);
                f.assert_refused(&dir, &["path `"]);
                let deep = f.tree(&[("100644", name, &blob)]);
                let deep = f.commit_of(&[("40000", b"sub", &deep)]);
                f.assert_refused(&deep, &["path `sub/"]);
            }
        });
    }

    #[test]
    fn duplicates_and_unsorted_trees_are_refused() {
        on_each(|f| {
            let (blob, link) = (f.blob(b"x"), f.blob(b"/tmp"));
            let inner = f.tree(&[("100644", b"x", &blob)]);
            let twice = f.commit_of(&[("100644", b"d", &blob), ("100644", b"d", &link)]);
            f.assert_refused(&twice, &["`d`", "twice"]);
            let link_then_dir = f.commit_of(&[("120000", b"d", &link), ("40000", b"d", &inner)]);
            f.assert_refused(&link_then_dir, &["`d`", "twice"]);
            let dir_then_link = f.commit_of(&[("40000", b"d", &inner), ("120000", b"d", &link)]);
            f.assert_refused(&dir_then_link, &["`d`", "twice"]);
            let apart = f.commit_of(&[("100644", b"d", &blob), ("100644", b"d.x", &blob), ("40000", b"d", &inner)]);
            f.assert_refused(&apart, &["`d`", "twice"]);
            let unsorted = f.commit_of(&[("100644", b"b", &blob), ("100644", b"a", &blob)]);
            f.assert_refused(&unsorted, &["`a`", "order"]);
            let as_file = f.commit_of(&[("40000", b"d", &inner), ("100644", b"d-", &blob)]);
            f.assert_refused(&as_file, &["`d-`", "order"]);
        });
    }

    #[test]
    fn links_must_have_a_target_that_a_file_system_takes() {
        on_each(|f| {
            let check = |target: &[u8], words: &[&str]| {
                let blob = f.blob(target);
                let commit = f.commit_of(&[("120000", b"l", &blob)]);
                if words.is_empty() { assert_eq!(f.list(&commit).len(), 1) } else { f.assert_refused(&commit, words) }
            };
            check(&[b'a'; 4095], &[]);
            check(b"/proc/self/environ", &[]);
            check(b"../../../x", &[]);
            check(&[b'a'; 4096], &["`l`", "4096"]);
            check(b"a\0b", &["`l`", "NUL"]);
            check(b"", &["`l`", " 0 bytes"]);
            let blob = f.blob(b"x");
            for name in [&b".gitmodules"[..], b".GitModules", b"gitmod~1"] {
                let commit = f.commit_of(&[("120000", name, &blob)]);
                f.assert_refused(&commit, &["is a link"]);
            }
        });
    }

    #[test]
    fn long_names_and_deep_trees_are_refused_with_the_limit_named() {
        on_each(|f| {
            let blob = f.blob(b"x");
            let commit = f.commit_of(&[("100644", &[b'n'; 300], &blob)]);
            f.assert_refused(&commit, &["300 bytes, the limit is 255"]);
            let mut tree = f.tree(&[("100644", b"x", &blob)]);
            for _ in 0..63 {
                tree = f.tree(&[("40000", b"d", &tree)]);
            }
            let deepest = f.commit(&tree, &[], "64 levels");
            assert_eq!(f.list(&deepest).len(), 1);
            let deeper = f.commit_of(&[("40000", b"d", &tree)]);
            f.assert_refused(&deeper, &["the limit is 64"]);
            let mut tree = f.tree(&[("100644", b"x", &blob)]);
            for _ in 0..5 {
                tree = f.tree(&[("40000", &[b'p'; 250], &tree)]);
            }
            let long = f.commit(&tree, &[], "long");
            f.assert_refused(&long, &["the limit is 1024"]);
        });
    }

    #[test]
    fn a_tree_that_unfolds_to_billions_is_refused_at_once() {
        on_each(|f| {
            let started = std::time::Instant::now();
            let blob = f.blob(b"x");
            let names: Vec<String> = (0..10).map(|i| format!("{i}")).collect();
            let mut files = f.tree(&names.iter().map(|n| ("100644", n.as_bytes(), &blob)).collect::<Vec<_>>());
            let mut dirs = f.tree(&[]);
            for _ in 0..9 {
                files = f.tree(&names.iter().map(|n| ("40000", n.as_bytes(), &files)).collect::<Vec<_>>());
                dirs = f.tree(&names.iter().map(|n| ("40000", n.as_bytes(), &dirs)).collect::<Vec<_>>());
            }
            let files = f.commit(&files, &[], "files");
            f.assert_refused(&files, &["the limit of 1000 files"]);
            let dirs = f.commit(&dirs, &[], "directories");
            f.assert_refused(&dirs, &["the limit of 1000 directories"]);
            assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
        });
    }

    #[test]
    fn counts_and_sizes_are_refused_just_beyond_the_limit() {
        on_each(|f| {
            let (a, b) = (f.blob(&[b'a'; 10]), f.blob(&[b'b'; 5]));
            let commit = f.commit_of(&[("100644", b"a", &a), ("100644", b"b", &b), ("100644", b"c", &b)]);
            let fits = TreeLimits { files: 3, bytes: 20, file_bytes: 10 };
            assert_eq!(f.repo.list(&commit, &fits).unwrap().len(), 3);
            let says = |limits: TreeLimits| f.repo.list(&commit, &limits).unwrap_err().message().to_string();
            assert!(
                says(TreeLimits { files: 2, ..fits }).contains("has 3 files, which is beyond the limit of 2 files")
            );
            assert!(
                says(TreeLimits { bytes: 19, ..fits }).contains("`c` makes the tree larger than the limit of 19 bytes")
            );
            assert!(
                says(TreeLimits { file_bytes: 9, ..fits }).contains("`a` has 10 bytes, the limit for one file is 9")
            );
        });
    }

    #[test]
    fn missing_objects_and_objects_of_the_wrong_kind_are_refused_with_their_path() {
        on_each(|f| {
            let (blob, nothing) = (f.blob(b"x"), f.nothing());
            let inner = f.tree(&[("100644", b"x", &blob)]);
            let missing_blob = f.tree(&[("100644", b"gone", &nothing)]);
            let missing_blob = f.commit_of(&[("40000", b"d", &missing_blob)]);
            f.assert_refused(&missing_blob, &["`d/gone`", "missing"]);
            let missing_tree = f.commit_of(&[("40000", b"d", &nothing)]);
            f.assert_refused(&missing_tree, &["`d`", "missing"]);
            let tree_as_file = f.commit_of(&[("100644", b"f", &inner)]);
            f.assert_refused(&tree_as_file, &["`f`", "tree"]);
            let file_as_tree = f.commit_of(&[("40000", b"d", &blob)]);
            f.assert_refused(&file_as_tree, &["`d`", "blob"]);
            let commit_as_file = f.commit_of(&[("100644", b"f", &missing_blob)]);
            f.assert_refused(&commit_as_file, &["`f`", "commit"]);
        });
    }

    #[test]
    fn a_tree_that_ends_in_the_middle_is_refused() {
        on_each(|f| {
            let tree = f.raw("tree", b"100644 a\0short");
            let inner = f.commit_of(&[("40000", b"d", &tree)]);
            f.assert_refused(&inner, &["`d`", "short id"]);
        });
    }

    #[test]
    fn many_files_are_listed_in_packs_too() {
        for reader in [Reader::Library, Reader::ProgramSha256] {
            let f = Fixture::new(reader);
            let names: Vec<String> = (0..900).map(|i| format!("n{i:04}")).collect();
            let blobs: Vec<ObjectId> = names.iter().map(|n| f.blob(n.as_bytes())).collect();
            let entries: Vec<_> = names.iter().zip(&blobs).map(|(n, b)| ("100644", n.as_bytes(), b)).collect();
            let commit = f.commit_of(&entries);
            f.git(&["update-ref", "refs/heads/main", commit.as_str()]);
            f.git(&["repack", "-adq"]);
            let found = f.repo.list(&commit, &LIMITS).unwrap();
            assert_eq!(found.len(), 900);
            assert!(found.iter().all(|e| e.size == 5 && f.repo.blob(&e.oid, 5).unwrap() == e.path.as_bytes()));
        }
    }
}
