//! Drift: what was changed by hand in a tree since its release.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::manifest::{Content, Entry, Manifest, pairs};
use super::scan::Identified;
use crate::sys::path::TreePath;

/// How one path differs from the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Not in the release.
    Added,
    /// In the release, not in the tree.
    Removed,
    /// Other content, target or type.
    Changed,
    /// Same content, other mode, owner, time or attributes.
    Metadata,
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where.
    pub path: TreePath,
    /// How.
    pub how: How,
    /// Whether it is a directory (in the tree, or in the release if it was removed).
    pub is_dir: bool,
}

/// All that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The changes, in order of their paths.
    pub changes: Vec<Change>,
}

impl Drift {
    /// Compares what stands in a tree with its release; `ignored` says which paths do not count (path, is a directory).
    ///
    /// The time of a directory is no drift: whatever is added or removed in it changes that.
    #[must_use]
    pub fn between(release: &Manifest, actual: &Identified, ignored: &dyn Fn(&TreePath, bool) -> bool) -> Self {
        let mut changes = Vec::new();
        for (old, new) in pairs(release.entries(), actual.manifest.entries()) {
            let Some(how) = difference(old, new) else { continue };
            let Some(entry) = new.or(old) else { continue };
            if !ignored(&entry.path, entry.is_dir()) {
                changes.push(Change { path: entry.path.clone(), how, is_dir: entry.is_dir() });
            }
        }
        for path in actual.specials.iter().filter(|path| !ignored(path, false)) {
            changes.push(Change { path: path.clone(), how: How::Added, is_dir: false });
        }
        for path in &actual.linked_elsewhere {
            if !changes.iter().any(|change| change.path == *path) {
                changes.push(Change { path: path.clone(), how: How::Metadata, is_dir: false });
            }
        }
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Self { changes }
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The paths whose present content must be kept: added and changed files and links.
    #[must_use]
    pub fn files_to_keep(&self) -> HashSet<TreePath> {
        let kept = self.changes.iter().filter(|c| !c.is_dir && matches!(c.how, How::Added | How::Changed));
        kept.map(|change| change.path.clone()).collect()
    }

    /// At most `max` lines for people, by directory: `config/: 2 changed, 1 added`.
    #[must_use]
    pub fn lines(&self, max: usize) -> Vec<String> {
        let mut directories: BTreeMap<String, [usize; 4]> = BTreeMap::new();
        for change in &self.changes {
            let directory = change.path.parent().map_or_else(|| ".".to_string(), |parent| parent.to_string());
            directories.entry(directory).or_default()[change.how as usize] += 1;
        }
        let words = ["added", "removed", "changed", "with other mode or time"];
        let mut lines: Vec<String> = directories
            .iter()
            .take(if directories.len() > max { max.saturating_sub(1) } else { max })
            .map(|(directory, counts)| {
                let parts = counts.iter().zip(words).filter(|(count, _)| **count > 0);
                let parts: Vec<String> = parts.map(|(count, word)| format!("{count} {word}")).collect();
                format!("{directory}/: {}", parts.join(", "))
            })
            .collect();
        if directories.len() > max {
            lines.push(format!("and {} more directories", directories.len() - lines.len()));
        }
        lines
    }
}

fn difference(old: Option<&Entry>, new: Option<&Entry>) -> Option<How> {
    match (old, new) {
        (None, None) => None,
        (None, Some(_)) => Some(How::Added),
        (Some(_), None) => Some(How::Removed),
        (Some(old), Some(new)) if !old.same_content(new) => Some(How::Changed),
        (Some(old), Some(new)) => {
            let same = old.mode == new.mode && old.owner == new.owner && old.xattrs == new.xattrs;
            let same_time = old.mtime == new.mtime || old.content == Content::Dir;
            (!same || !same_time).then_some(How::Metadata)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash::Hash;
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Identified {
        let mut entries = Vec::new();
        for (path, content) in files {
            let content = match *content {
                "/" => Content::Dir,
                text => Content::File { size: text.len() as u64, hash: Hash::of(text.as_bytes()) },
            };
            let (path, mode) = (TreePath::new(path.as_bytes()).unwrap(), 0o644);
            entries.push(Entry {
                path,
                mode,
                owner: None,
                mtime: 0,
                content,
                hard_link: None,
                xattrs: vec![],
                blob: None,
            });
        }
        Identified { manifest: Manifest::new(entries).unwrap(), ..Identified::default() }
    }

    #[test]
    fn drift_is_told_by_directory_and_ignores_what_is_to_be_ignored() {
        let release = tree(&[("a", "/"), ("a/x", "1"), ("a/y", "1"), ("z", "1")]).manifest;
        let now = tree(&[("a", "/"), ("a/x", "2"), ("a/new", "1"), ("cache", "/"), ("cache/c", "1"), ("z", "1")]);
        let drift = Drift::between(&release, &now, &|path, _| path.as_bytes().starts_with(b"cache"));
        assert_eq!(drift.lines(20), ["a/: 1 added, 1 removed, 1 changed"]);
        assert_eq!(drift.files_to_keep().len(), 2);
        let all = Drift::between(&release, &now, &|_, _| false);
        assert_eq!(all.lines(2), ["./: 1 added", "and 2 more directories"]);
    }
}
