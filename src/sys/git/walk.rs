//! The walk over a commit's trees, alone or beside those of an older commit: then what both have is not looked at again.

use std::collections::{HashMap, HashSet};

use crate::sys::error::Result;
use crate::sys::escape;
use crate::sys::names::ObjectId;
use crate::sys::path::TreePath;

use super::list::{EntryKind, GitEntry, MAX_TREE, Mode, RENAME, REWRITE, SMALLER, TreeLimits, missing, refuse};
use super::object::{ObjectKind, RawEntry};
use super::{Repo, names, object};

impl Repo {
    /// What is other in a commit than in an older one, by the trees that differ alone. What is new is checked as by
    /// [`Repo::list`]; what both have was checked before.
    ///
    /// # Errors
    /// As [`Repo::list`].
    pub fn differences(&self, old: &ObjectId, new: &ObjectId, limits: &TreeLimits) -> Result<Differences> {
        let (old, new) = (self.tree_of(old)?, self.tree_of(new)?);
        let mut walk = Walk::new(self, limits);
        if old != new {
            walk.tree((Some(&old), &new), None)?;
        }
        walk.finish()
    }
}

/// What is other in a commit than in an older one.
#[derive(Debug, Clone, Default)]
pub struct Differences {
    /// Entries that are new or other, sorted by the bytes of the path.
    pub put: Vec<GitEntry>,
    /// Paths of entries that are gone.
    pub removed: Vec<TreePath>,
}

/// A walk over a commit's trees.
pub struct Walk<'a> {
    repo: &'a Repo,
    limits: &'a TreeLimits,
    /// What was found so far.
    pub found: Vec<GitEntry>,
    removed: Vec<TreePath>,
}

/// The entries of a directory that was there before: mode and id by name.
type Before = HashMap<Vec<u8>, (Vec<u8>, ObjectId)>;

impl<'a> Walk<'a> {
    /// A walk that has not begun.
    #[must_use]
    pub fn new(repo: &'a Repo, limits: &'a TreeLimits) -> Self {
        Self { repo, limits, found: Vec::new(), removed: Vec::new() }
    }

    /// What was found, measured and sorted.
    ///
    /// # Errors
    /// As [`Repo::list`].
    pub fn finish(self) -> Result<Differences> {
        let (mut put, mut removed) = (self.found, self.removed);
        self.repo.measure(&mut put, self.limits)?;
        self.repo.check_links(&put)?;
        put.sort_by(|a, b| a.path.cmp(&b.path));
        removed.sort();
        Ok(Differences { put, removed })
    }

    /// The entries of the directory as it was before; nothing where there was none.
    fn before(&self, old: Option<&ObjectId>) -> Result<Before> {
        let Some(old) = old else { return Ok(Before::new()) };
        let raw = self.repo.content(old)?;
        let entries = object::parse_tree(&raw, self.repo.format())
            .map_err(|problem| refuse(b".", &format!("was a directory that {problem}"), REWRITE))?;
        Ok(entries.iter().map(|entry| (entry.name.to_vec(), (entry.mode.to_vec(), entry.id.clone()))).collect())
    }

    /// Everything that an entry of the older commit was is gone.
    fn remove(&mut self, path: TreePath, mode: &[u8], id: &ObjectId) -> Result<()> {
        if !matches!(Mode::parse(mode), Some(Mode::Tree)) {
            self.removed.push(path);
            return Ok(());
        }
        for (name, (mode, id)) in self.before(Some(id))? {
            self.remove(path.join(&name)?, &mode, &id)?;
        }
        Ok(())
    }

    /// A directory that is new beside ones that were there: counted before it is unfolded.
    fn count(&self, id: &ObjectId, path: &TreePath) -> Result<()> {
        let unfolded = self.repo.unfold(id, 0, &mut HashMap::new());
        let limit = self.limits.files;
        if unfolded.files.max(unfolded.dirs) > limit {
            let problem = format!("holds {} files, which is beyond the limit of {limit} files", unfolded.files);
            return Err(refuse(path.as_bytes(), &problem, SMALLER));
        }
        Ok(())
    }

    /// Walks one directory, beside the one that was there before; the depth is bounded by what a [`TreePath`] can be.
    ///
    /// # Errors
    /// As [`Repo::list`].
    pub fn tree(&mut self, (old, id): (Option<&ObjectId>, &ObjectId), at: Option<&TreePath>) -> Result<()> {
        let shown: &[u8] = at.map_or(b".", TreePath::as_bytes);
        match self.repo.header(id)? {
            None => return Err(missing(shown, id)),
            Some(header) if header.kind != ObjectKind::Tree => {
                return Err(refuse(shown, &format!("names a {}, not a directory", header.kind.as_str()), REWRITE));
            }
            Some(header) if header.size > MAX_TREE => {
                return Err(refuse(shown, "is a directory with too many entries", SMALLER));
            }
            Some(_) => {}
        }
        let raw = self.repo.content(id)?;
        let entries = object::parse_tree(&raw, self.repo.format())
            .map_err(|problem| refuse(shown, &format!("is a directory that {problem}"), REWRITE))?;
        let mut was = self.before(old)?;
        let mut seen = HashSet::with_capacity(entries.len());
        let mut before: Option<&RawEntry<'_>> = None;
        for entry in &entries {
            let whole = full_path(at, entry.name);
            if let Some(problem) = names::problem(entry.name) {
                return Err(refuse(&whole, problem, RENAME));
            }
            let Some(mode) = Mode::parse(entry.mode) else {
                let mode = escape::visible_bounded(entry.mode, 16);
                return Err(refuse(&whole, &format!("has the mode {mode}, which git does not write"), REWRITE));
            };
            if !seen.insert(entry.name) {
                return Err(refuse(&whole, "stands twice in its directory", REWRITE));
            }
            if before.is_some_and(|before| sort_key(before) >= sort_key(entry)) {
                return Err(refuse(&whole, "is not in git's order in its directory", REWRITE));
            }
            before = Some(entry);
            let path = TreePath::new(&whole).map_err(|error| error.hint(RENAME))?;
            match was.remove(entry.name) {
                Some((old_mode, old_id)) if old_mode == entry.mode && old_id == entry.id => {}
                Some((old_mode, old_id)) if matches!(Mode::parse(&old_mode), Some(Mode::Tree)) => match mode {
                    Mode::Tree => self.tree((Some(&old_id), &entry.id), Some(&path))?,
                    Mode::Entry(_) => {
                        self.remove(path.clone(), &old_mode, &old_id)?;
                        self.entry(path, entry, &mode)?;
                    }
                },
                Some(_) if matches!(mode, Mode::Tree) => {
                    self.removed.push(path.clone());
                    self.count(&entry.id, &path)?;
                    self.entry(path, entry, &mode)?;
                }
                None if old.is_some() && matches!(mode, Mode::Tree) => {
                    self.count(&entry.id, &path)?;
                    self.entry(path, entry, &mode)?;
                }
                _ => self.entry(path, entry, &mode)?,
            }
        }
        for (name, (mode, id)) in was {
            let path = TreePath::new(&full_path(at, &name))?;
            self.remove(path, &mode, &id)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: TreePath, entry: &RawEntry<'_>, mode: &Mode) -> Result<()> {
        match mode {
            Mode::Tree => self.tree((None, &entry.id), Some(&path)),
            Mode::Entry(EntryKind::Symlink) if names::is_gitmodules(entry.name) => {
                Err(refuse(path.as_bytes(), "is a link, but git reads it as a file", "replace the link by a file"))
            }
            Mode::Entry(kind) => {
                self.found.push(GitEntry { path, oid: entry.id.clone(), kind: *kind, size: 0 });
                Ok(())
            }
        }
    }
}

fn full_path(at: Option<&TreePath>, name: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    if let Some(at) = at {
        whole.extend_from_slice(at.as_bytes());
        whole.push(b'/');
    }
    whole.extend_from_slice(name);
    whole
}

/// Git sorts a directory as if its name ended with a slash.
fn sort_key(entry: &RawEntry<'_>) -> Vec<u8> {
    let mut key = entry.name.to_vec();
    if matches!(Mode::parse(entry.mode), Some(Mode::Tree)) {
        key.push(b'/');
    }
    key
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{LIMITS, on_each};
    use super::*;

    #[test]
    fn differences_lead_from_one_commit_to_the_other() {
        on_each(|f| {
            let files = |files: &[(&str, &[u8])]| f.commit_files(files, &[], "x");
            let old = files(&[("a", b"1"), ("d/e/f", b"2"), ("d/g", b"3"), ("gone/x/y", b"4"), ("was-file", b"5")]);
            let new = files(&[
                ("a", b"1"),
                ("d/e/f", b"other"),
                ("d/g", b"3"),
                ("gone", b"4"),
                ("was-file/z", b"5"),
                ("n/m", b"6"),
            ]);
            let found = f.repo.differences(&old, &new, &LIMITS).unwrap();
            let put: Vec<&[u8]> = found.put.iter().map(|entry| entry.path.as_bytes()).collect();
            assert_eq!(put, [&b"d/e/f"[..], b"gone", b"n/m", b"was-file/z"]);
            let removed: Vec<&[u8]> = found.removed.iter().map(TreePath::as_bytes).collect();
            assert_eq!(removed, [&b"gone/x/y"[..], b"was-file"]);
            // Nothing else than the lists of both say.
            let (before, after) = (f.list(&old), f.list(&new));
            for entry in &after {
                assert_eq!(before.contains(entry), !found.put.contains(entry), "{}", entry.path);
            }
            assert!(f.repo.differences(&new, &new, &LIMITS).unwrap().put.is_empty());
        });
    }

    #[test]
    fn what_a_difference_brings_is_checked_as_all_of_it_would_be() {
        on_each(|f| {
            let blob = f.blob(b"x");
            let good = f.commit_of(&[("100644", b"a", &blob)]);
            for (mode, name) in [("104755", &b"evil"[..]), ("100644", b".git")] {
                let bad = f.commit_of(&[("100644", b"a", &blob), (mode, name, &blob)]);
                assert!(f.repo.differences(&good, &bad, &LIMITS).is_err());
            }
            let inner = f.tree(&[("100644", b"..", &blob)]);
            let bad = f.commit_of(&[("100644", b"a", &blob), ("40000", b"d", &inner)]);
            assert!(f.repo.differences(&good, &bad, &LIMITS).is_err());
        });
    }
}
