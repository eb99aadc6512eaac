//! What a commit brings: all of its files, or only those in which it differs from the version that serves, where that
//! version's tree is its commit's and nothing builds. Then the cost is that of the change.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::checkout::{directory, limits_of};
use super::draft::{Draft, Goal, Version};
use super::halt::{Halt, Step};
use crate::project::ids::ObjectId;
use crate::project::mode::Mode;
use crate::project::recipe::Attributes;
use crate::sys::error::Result;
use crate::sys::git::{EntryKind, GitEntry};
use crate::sys::path::TreePath;
use crate::tree::manifest::{Entry, Manifest};
use crate::tree::release::Releases;

/// The files of a commit.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// All files, sorted by path; with a base those that are new or other.
    pub files: Vec<GitEntry>,
    /// With a base: what is gone.
    pub removed: Vec<TreePath>,
    /// The tree that everything else is as in.
    pub base: Option<Manifest>,
}

impl Listing {
    /// How many files and directories the commit has, about.
    #[must_use]
    pub fn count(&self) -> usize {
        self.base.as_ref().map_or(0, Manifest::len) + self.files.len()
    }

    /// The files of the live tree that the commit replaces or has not.
    #[must_use]
    pub fn replaced<'a>(&self, live: &'a Manifest) -> Vec<&'a Entry> {
        if self.base.is_some() {
            let paths = self.files.iter().map(|entry| &entry.path).chain(&self.removed);
            return paths.filter_map(|path| live.get(path)).collect();
        }
        let kept: HashSet<&ObjectId> = self.files.iter().map(|entry| &entry.oid).collect();
        live.entries().filter(|entry| entry.blob.as_ref().is_some_and(|blob| !kept.contains(blob))).collect()
    }

    /// How many bytes the commit has, at most.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let base = self.base.as_ref().map_or(0, Manifest::bytes);
        self.files.iter().map(|entry| entry.size).fold(base, u64::saturating_add)
    }
}

impl Draft<'_> {
    /// Lists what a version brings; submodules are refused unless the recipe allows them.
    ///
    /// # Errors
    /// A refusal that names the path.
    pub fn list(&mut self, version: &Version) -> Step<Listing> {
        let commit = version.commit.id.clone();
        if let Some((base, old)) = self.base_for(version) {
            let limits = limits_of(self.site);
            let found = self.repo.differences(&old, &commit, &limits)?;
            let is_plain = |entry: &GitEntry| entry.kind != EntryKind::Submodule;
            let listing = Listing { files: found.put, removed: found.removed, base: Some(base) };
            // What is beyond a limit, or a submodule, is told by looking at everything.
            let is_small = listing.count() as u64 <= limits.files && listing.bytes() <= limits.bytes;
            if is_small && listing.files.iter().all(is_plain) {
                return Ok(listing);
            }
        }
        Ok(Listing { files: self.listed(version, &commit)?, ..Listing::default() })
    }

    /// The tree of the version that serves and its commit, where that tree is the commit's and the next one's will be too.
    fn base_for(&self, version: &Version) -> Option<(Manifest, ObjectId)> {
        let live = self.live.as_ref().filter(|_| self.is_proven)?;
        let old = live.version.as_ref()?;
        let is_plain = |version: &Version| version.recipe.attributes != Attributes::Git && !version.recipe.submodules;
        let is_cooked = version.mode == Mode::Cooking && live.provenance.mode == Mode::Cooking;
        let is_same =
            version.recipe.exclude.globs() == old.recipe.exclude.globs() && is_plain(version) && is_plain(old);
        let is_unbuilt = !live.provenance.built && (self.goal != Goal::Commit || !self.builds(version));
        if !(is_cooked && is_same && is_unbuilt) {
            return None;
        }
        // Where what was built cannot be told, the commit alone says what its tree is.
        let built = Releases::new(&self.site.place).built_of(&live.serving.id, &live.manifest).ok()?;
        Some((built, live.serving.commit.clone()))
    }

    /// Refuses a commit without any file.
    ///
    /// # Errors
    /// The refusal.
    pub fn refuse_empty(&self, version: &Version, is_empty: bool) -> Step {
        if is_empty && !version.recipe.allow_empty {
            return Err(Halt::refused("the commit's tree is empty")
                .hint("if that is meant, write `allow_empty: true` into mc_project.yaml"));
        }
        Ok(())
    }
}

/// A tree with files put into it and others gone; directories come and go with them, new ones with this time.
///
/// # Errors
/// If a file stands below a file.
pub fn changed(base: &Manifest, files: &[Entry], removed: &[TreePath], now: i64) -> Result<Manifest> {
    let mut put: BTreeMap<TreePath, Entry> = files.iter().map(|file| (file.path.clone(), file.clone())).collect();
    for file in files {
        for path in file.path.ancestors() {
            if put.contains_key(&path) || base.get(&path).is_some_and(Entry::is_dir) {
                break;
            }
            put.insert(path.clone(), directory(path, now));
        }
    }
    let gone: Vec<TreePath> = removed.iter().filter(|path| !put.contains_key(path)).cloned().collect();
    let emptied = emptied(base, &gone, &put);
    let gone: Vec<TreePath> = gone.into_iter().chain(emptied).collect();
    base.with(put.into_values().collect(), &gone)
}

/// The directories in which nothing is left.
fn emptied(base: &Manifest, gone: &[TreePath], put: &BTreeMap<TreePath, Entry>) -> BTreeSet<TreePath> {
    let around: BTreeSet<TreePath> = gone.iter().flat_map(TreePath::ancestors).collect();
    let occupied: BTreeSet<TreePath> = put.keys().flat_map(TreePath::ancestors).collect();
    let gone: BTreeSet<&TreePath> = gone.iter().collect();
    let mut emptied = BTreeSet::new();
    for path in around.into_iter().rev() {
        let is_gone = |entry: &Entry| gone.contains(&entry.path) || emptied.contains(&entry.path);
        if !occupied.contains(&path) && base.below(&path).all(is_gone) {
            emptied.insert(path);
        }
    }
    emptied
}

#[cfg(test)]
mod tests {
    use super::super::checkout::with_directories;
    use super::*;
    use crate::tree::hash::Hash;
    use crate::tree::manifest::Content;

    fn file(path: &str, text: &str) -> Entry {
        let content = Content::File { size: text.len() as u64, hash: Hash::of(text.as_bytes()) };
        Entry { content, mode: 0o644, ..directory(TreePath::new(path.as_bytes()).unwrap(), 1) }
    }

    fn tree(files: &[(&str, &str)]) -> Manifest {
        with_directories(files.iter().map(|(path, text)| file(path, text)).collect(), 1).unwrap()
    }

    #[test]
    fn a_changed_tree_is_what_the_whole_list_would_give() {
        type Files<'a> = &'a [(&'a str, &'a str)];
        let cases: [(Files<'_>, Files<'_>); 6] = [
            (&[("a", "1"), ("d/e/f", "2")], &[("a", "1"), ("d/e/f", "3")]),
            (&[("a", "1"), ("d/e/f", "2"), ("d-x", "4")], &[("a", "1"), ("d-x", "4")]),
            (&[("a", "1"), ("d/e/f", "2")], &[("a", "1"), ("d", "a file now")]),
            (&[("a", "1"), ("d", "2")], &[("a", "1"), ("d/e/f", "3"), ("d/g", "4")]),
            (&[("d/e/f", "1"), ("d/g", "2")], &[("d/g", "2"), ("d/h/i", "3")]),
            (&[("a", "1")], &[]),
        ];
        for (old, new) in cases {
            let put: Vec<Entry> = new.iter().filter(|one| !old.contains(one)).map(|(p, t)| file(p, t)).collect();
            let is_gone = |path: &&str| !new.iter().any(|(other, _)| other == path);
            let gone = old.iter().map(|(path, _)| *path).filter(is_gone);
            let removed: Vec<TreePath> = gone.map(|path| TreePath::new(path.as_bytes()).unwrap()).collect();
            assert_eq!(changed(&tree(old), &put, &removed, 1).unwrap(), tree(new), "{old:?} to {new:?}");
        }
    }
}
