//! Drift: what was changed by hand in a tree since its release.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::path::Path;

use serde::Serialize;

use super::manifest::{Content, Entry, Manifest, differing};
use super::scan::Identified;
use super::store::Supply;
use super::sync::keep_copy;
use crate::sys::dir::{Dir, FileKind};
use crate::sys::error::{Context, Result};
use crate::sys::path::TreePath;
use crate::sys::sync;

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
        for (old, new) in differing(release, &actual.manifest) {
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

    /// Keeps the changed and added files below `kept/files`, the list as `changes.json`, and a patch for small text as
    /// `changes.patch`. `supply` has the contents that the release says.
    ///
    /// # Errors
    /// If something cannot be written, or a file is too large to be kept.
    pub fn keep(&self, kept: &Dir, tree: &Dir, release: &Manifest, supply: &Supply<'_>) -> Result<()> {
        let files = kept.ensure_dir(Path::new("files"), 0o700)?;
        let mut patch = String::new();
        let mut paths: Vec<TreePath> = self.files_to_keep().into_iter().collect();
        paths.sort();
        for path in &paths {
            keep_file(&files, tree, path)?;
            if let Some(text) = patch_of(tree, release.get(path), path, supply)? {
                patch.push_str(&text);
            }
        }
        let list = serde_json::to_vec_pretty(self).context(|| "cannot write the list of drift".to_string())?;
        write_new(kept, "changes.json", &list)?;
        if patch.is_empty() { Ok(()) } else { write_new(kept, "changes.patch", patch.as_bytes()) }
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

/// Larger files get no patch.
const PATCH_LIMIT: u64 = 64 * 1024;

fn keep_file(files: &Dir, tree: &Dir, path: &TreePath) -> Result<()> {
    let mut place = files.again()?;
    if let Some(parent) = path.parent() {
        for name in parent.as_path().components() {
            place = place.ensure_dir(Path::new(name.as_os_str()), 0o700)?;
        }
    }
    let name = Path::new(path.name());
    place.remove_tree(name)?;
    match tree.stat(path.as_path())?.map(|meta| meta.kind) {
        Some(FileKind::Symlink) => place.symlink(&tree.read_link(path.as_path())?, name),
        Some(FileKind::File) => {
            match keep_copy(tree, path.as_path(), &place, path) {
                // Gone since it was seen: somebody still works there.
                Err(error) if error.is_not_found() => Ok(()),
                other => other,
            }
        }
        _ => Ok(()),
    }
}

/// The patch of a changed small text file.
fn patch_of(tree: &Dir, old: Option<&Entry>, path: &TreePath, supply: &Supply<'_>) -> Result<Option<String>> {
    let Some(hash) = old.filter(|old| old.size() <= PATCH_LIMIT).and_then(Entry::hash) else { return Ok(None) };
    let Some(meta) = tree.stat(path.as_path())? else { return Ok(None) };
    if meta.kind != FileKind::File || meta.size > PATCH_LIMIT {
        return Ok(None);
    }
    let Ok(file) = tree.open_file(path.as_path()) else { return Ok(None) };
    let mut new = Vec::new();
    file.take(PATCH_LIMIT).read_to_end(&mut new).context(|| format!("cannot read {path}"))?;
    let Ok(old) = supply.bytes(&hash) else { return Ok(None) };
    Ok(crate::sys::git::text_patch(path, &old, &new))
}

fn write_new(dir: &Dir, name: &str, bytes: &[u8]) -> Result<()> {
    dir.unlink(Path::new(name))?;
    let mut file = dir.create_file(Path::new(name), 0o600)?;
    file.write_all(bytes).and_then(|()| sync::whole(&file)).context(|| format!("cannot write {name}"))
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
    use super::super::manifest::Stamp;
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
                stamp: Stamp::default(),
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
