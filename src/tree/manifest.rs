//! A manifest: what a tree consists of, portably: path, type, mode, owner, size, time and digest of each entry.
//!
//! The file format is text, one entry per line, sorted by path, closed by a line with count and digest:
//!
//! ```text
//! mc_project manifest 1
//! d 0755 - 1790000000.000000000 - - bin
//! f 0644 - 1790000000.000000000 12 <blake3> bin/x git=<object id> link=bin/a x:user.note=%31
//! l 0777 - 1790000000.000000000 - <target> bin/y
//! end 3 <blake3 of everything above>
//! ```
//!
//! Paths, targets and values are percent-escaped (see [`crate::sys::path::escape`]). The owner is `-` for the
//! project's own user, else `uid:gid`. A kept release is stored whole or as changes against another one: the same
//! lines with `+` or `-` before them, under the first line `mc_project changes 1 <id>`.
//!
//! In memory a manifest is a row of [`Chunk`]s that it shares with the manifests it was made from, and that may still lie
//! on the disk ([`index`]). What is done to it costs what it touches.

mod chunk;
mod entry;
mod index;
mod looks;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub use chunk::Chunk;
pub use entry::{Content, Entry, Stamp, Style};
pub use looks::{Look, Looks};
pub use text::{Changes, Indexed};

use super::hash::Hash;
use crate::sys::error::{Error, Result};
use crate::sys::escape::in_sentence;
use crate::sys::path::TreePath;

/// A whole tree: entries sorted by path, each path once, parents before children.
#[derive(Clone, Default)]
pub struct Manifest {
    chunks: Arc<Vec<Arc<Chunk>>>,
}

/// A part of a tree, in the order of its paths.
#[derive(Debug)]
pub enum Piece {
    /// A chunk of another manifest.
    Kept(Arc<Chunk>),
    /// Entries.
    Entries(Vec<Entry>),
}

impl PartialEq for Manifest {
    fn eq(&self, other: &Self) -> bool {
        let chunks = |manifest: &Self| manifest.chunks.len();
        chunks(self) == chunks(other) && self.chunks.iter().zip(other.chunks.iter()).all(|(a, b)| a.is_same(b))
    }
}

impl Eq for Manifest {}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Manifest({} entries)", self.len())
    }
}

impl Manifest {
    /// Takes entries, sorts and checks them.
    ///
    /// # Errors
    /// If a path stands twice or the parent of an entry is missing or no directory.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self> {
        if !entries.is_sorted_by(|a, b| a.path < b.path) {
            entries.sort_by(|a, b| a.path.cmp(&b.path));
        }
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(twice(&pair[0].path));
        }
        let manifest = Self { chunks: Arc::new(Chunk::cut(entries)) };
        manifest.check_parents(manifest.entries())?;
        manifest.with_leaders()
    }

    /// Makes every hard link name an earlier file of the same content. Where that one is not (any more) in the tree, the
    /// first that named it takes its place; only files are linked.
    fn with_leaders(self) -> Result<Self> {
        let mut elected: BTreeMap<(&TreePath, Hash), &TreePath> = BTreeMap::new();
        let mut changed = Vec::new();
        for entry in self.linked() {
            let Some(leader) = &entry.hard_link else { continue };
            let named = self.get(leader).filter(|named| named.hard_link.is_none() && named.path < entry.path);
            if entry.hash().is_some() && named.is_some_and(|named| named.content == entry.content) {
                continue;
            }
            let new = entry.hash().map(|hash| *elected.entry((leader, hash)).or_insert(&entry.path));
            let hard_link = new.filter(|new| **new != entry.path).cloned();
            changed.push(Entry { hard_link, ..entry.clone() });
        }
        if changed.is_empty() { Ok(self) } else { self.with(changed, &[]) }
    }

    fn check_parents<'a>(&'a self, entries: impl Iterator<Item = &'a Entry>) -> Result<()> {
        let mut known: Option<TreePath> = None;
        for entry in entries {
            let Some(parent) = entry.path.parent() else { continue };
            if known.as_ref() == Some(&parent) {
                continue;
            }
            if !self.get(&parent).is_some_and(Entry::is_dir) {
                return Err(orphan(&entry.path));
            }
            known = Some(parent);
        }
        Ok(())
    }

    /// The manifest in a file, by its index: nothing of it is read before somebody asks. With it comes the digest of the
    /// file's last line. `None` where the index is not there or of another file.
    #[must_use]
    pub fn open(path: &Path, index: &Path, style: Style) -> Option<(Self, Hash)> {
        let (chunks, last) = index::open(path, index, style)?;
        Some((Self { chunks: Arc::new(chunks) }, last))
    }

    /// Whether everything that was asked for so far was there. What [`Manifest::open`] gave is read piece by piece; a piece
    /// that is damaged seems to be empty, and only this tells.
    ///
    /// # Errors
    /// If a file turned out to be damaged.
    pub fn intact(&self) -> Result<()> {
        if self.chunks.iter().any(|chunk| chunk.is_damaged()) {
            return Err(Error::failed("the record of a tree is damaged")
                .hint("mc_project verify NAME says which one; put the file back from a backup of deploy/"));
        }
        Ok(())
    }

    /// Its chunks in order.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = &Arc<Chunk>> + Clone + '_ {
        self.chunks.iter()
    }

    /// All entries in order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> + Clone + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.entries())
    }

    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.count).sum()
    }

    /// Whether it is the manifest of an empty tree.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The chunk that a path is in, or would be in.
    fn chunk_of(&self, path: &[u8]) -> usize {
        self.chunks.partition_point(|chunk| chunk.first().as_bytes() <= path).saturating_sub(1)
    }

    /// The entry at this path.
    #[must_use]
    pub fn get(&self, path: &TreePath) -> Option<&Entry> {
        let entries = self.chunks.get(self.chunk_of(path.as_bytes()))?.entries();
        entries.binary_search_by(|entry| entry.path.cmp(path)).ok().map(|index| &entries[index])
    }

    /// Everything below a directory, in order.
    pub fn below<'a>(&'a self, path: &TreePath) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let prefix = [path.as_bytes(), b"/"].concat();
        let chunks = &self.chunks[self.chunk_of(&prefix).min(self.chunks.len())..];
        let (from, within) = (prefix.clone(), prefix);
        let entries = chunks.iter().flat_map(|chunk| chunk.entries());
        entries
            .skip_while(move |entry| entry.path.as_bytes() < from.as_slice())
            .take_while(move |entry| entry.path.as_bytes().starts_with(&within))
    }

    /// The entries that are further names of hard-linked files.
    pub fn linked(&self) -> impl Iterator<Item = &Entry> + '_ {
        let chunks = self.chunks.iter().filter(|chunk| chunk.links > 0);
        chunks.flat_map(|chunk| chunk.entries()).filter(|entry| entry.hard_link.is_some())
    }

    /// Number of files and links, directories aside.
    #[must_use]
    pub fn files(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.files).sum()
    }

    /// Sum of the sizes of all files, hard links counted once.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // Sizes that a stranger wrote down may be anything: a sum that wrapped around would pass every limit.
        self.chunks.iter().map(|chunk| chunk.bytes).fold(0, u64::saturating_add)
    }

    /// The digests of all contents.
    pub fn hashes(&self) -> impl Iterator<Item = Hash> + '_ {
        self.entries().filter_map(Entry::hash)
    }

    /// A digest of content and structure alone (type, mode, path, digest, target, attributes), the same for the same tree
    /// wherever and whenever it was made.
    #[must_use]
    pub fn tree_digest(&self) -> Hash {
        let digests: Vec<u8> = self.chunks.iter().flat_map(|chunk| *chunk.portable().as_bytes()).collect();
        Hash::of(&digests)
    }

    /// Whether this digest is that of this tree; the one that earlier versions made of the whole text counts too.
    #[must_use]
    pub fn has_digest(&self, hex: &str) -> bool {
        let whole = || self.chunks.iter().map(|chunk| chunk.lines(Style::Portable)).collect::<String>();
        self.tree_digest().hex() == hex || Hash::of(whole().as_bytes()).hex() == hex
    }

    /// Replaces or adds entries and drops paths; everything else is shared with this manifest.
    ///
    /// # Errors
    /// As [`Manifest::new`], and as [`Manifest::intact`].
    pub fn with(&self, put: Vec<Entry>, dropped: &[TreePath]) -> Result<Self> {
        let mut changes: BTreeMap<usize, BTreeMap<TreePath, Option<Entry>>> = BTreeMap::new();
        let paths: Vec<TreePath> = put.iter().map(|entry| entry.path.clone()).collect();
        for path in dropped {
            changes.entry(self.chunk_of(path.as_bytes())).or_default().insert(path.clone(), None);
        }
        for entry in put {
            let chunk = self.chunk_of(entry.path.as_bytes());
            changes.entry(chunk).or_default().insert(entry.path.clone(), Some(entry));
        }
        if changes.is_empty() {
            return Ok(self.clone());
        }
        let mut pieces = Vec::with_capacity(self.chunks.len() + 1);
        for index in 0..self.chunks.len().max(1) {
            match (changes.remove(&index), self.chunks.get(index)) {
                (None, None) => {}
                (None, Some(old)) => pieces.push(Piece::Kept(old.clone())),
                (Some(changes), old) => {
                    pieces.push(Piece::Entries(merged(old.map_or(&[], |old| old.entries()), changes)));
                }
            }
        }
        let manifest = Self::joined(pieces);
        // What was made of a damaged chunk would not tell any more that it lacks something.
        self.intact()?;
        manifest.check_changed(&paths, dropped)?;
        manifest.with_leaders()
    }

    fn joined(pieces: Vec<Piece>) -> Self {
        let mut chunks: Vec<Arc<Chunk>> = Vec::with_capacity(pieces.len() + 1);
        for piece in pieces {
            match piece {
                Piece::Kept(chunk) => chunks.push(chunk),
                Piece::Entries(mut entries) => {
                    // What does not begin a chunk any more belongs to the one before.
                    if entries.first().is_some_and(|entry| !chunk::begins(&entry.path))
                        && let Some(before) = chunks.pop()
                    {
                        entries.splice(0..0, before.entries().iter().cloned());
                    }
                    chunks.extend(Chunk::cut(entries));
                }
            }
        }
        Self { chunks: Arc::new(chunks) }
    }

    /// The tree that was walked: chunks of another manifest, where it looks as that one says, and entries elsewhere, all
    /// in order. A chunk must come for the paths for which it stood in that manifest. Where a directory was lost on the way,
    /// what stood in it is looked for in all of it.
    ///
    /// # Errors
    /// As [`Manifest::new`].
    pub fn of_walk(pieces: Vec<Piece>, lost_directory: bool) -> Result<Self> {
        let mut paths = Vec::new();
        for piece in &pieces {
            let Piece::Entries(entries) = piece else { continue };
            if let Some(pair) = entries.windows(2).find(|pair| pair[0].path >= pair[1].path) {
                return Err(twice(&pair[1].path));
            }
            paths.extend(entries.iter().map(|entry| entry.path.clone()));
        }
        let manifest = Self::joined(pieces);
        if lost_directory {
            manifest.check_parents(manifest.entries())?;
        } else {
            manifest.check_parents(paths.iter().filter_map(|path| manifest.get(path)))?;
        }
        manifest.with_leaders()
    }

    /// What was put has a directory around it, and what is no directory any more has nothing below it.
    fn check_changed(&self, put: &[TreePath], dropped: &[TreePath]) -> Result<()> {
        self.check_parents(put.iter().filter_map(|path| self.get(path)))?;
        for path in put.iter().chain(dropped) {
            if !self.get(path).is_some_and(Entry::is_dir)
                && let Some(orphaned) = self.below(path).next()
            {
                return Err(orphan(&orphaned.path));
            }
        }
        Ok(())
    }

    /// The same tree with every entry changed by `change`, which leaves the path alone.
    #[must_use]
    pub fn map(&self, change: impl Fn(&Entry) -> Entry) -> Self {
        let change = |chunk: &Arc<Chunk>| Chunk::cut(chunk.entries().iter().map(&change).collect());
        Self { chunks: Arc::new(self.chunks.iter().flat_map(change).collect()) }
    }

    /// Where an entry is the same as in `before` (content and mode), takes over its time, so that an unchanged file keeps it.
    ///
    /// # Errors
    /// Never: no path changes.
    pub fn inherit_times(&mut self, before: &Self) -> Result<()> {
        let inherited = |(old, new): (Option<&Entry>, Option<&Entry>)| {
            let (old, new) = old.zip(new)?;
            let is_same = old.same_content(new) && old.mode == new.mode && old.mtime != new.mtime;
            is_same.then(|| Entry { mtime: old.mtime, ..new.clone() })
        };
        let put: Vec<Entry> = differing(before, self).filter_map(inherited).collect();
        *self = self.with(put, &[])?;
        Ok(())
    }

    /// Sets the time of every entry.
    pub fn set_times(&mut self, mtime: i64) {
        *self = self.map(|entry| Entry { mtime, ..entry.clone() });
    }

    /// The tree as another node may have it: no owners, no setuid, setgid or sticky bits, no attributes but `user.*` and ACLs.
    #[must_use]
    pub fn without_privileges(&self) -> Self {
        self.map(|entry| {
            let mut entry = Entry { owner: None, mode: entry.mode & 0o777, ..entry.clone() };
            entry.xattrs.retain(|(name, _)| crate::sys::dir::is_carried(name.as_bytes()));
            entry
        })
    }

    /// Gives every directory this mode.
    pub fn restrict_directories(&mut self, mode: u32) {
        *self = self.map(|entry| Entry { mode: if entry.is_dir() { mode } else { entry.mode }, ..entry.clone() });
    }
}

/// Old entries with changes among them: new ones, or `None` for a path that goes.
fn merged(old: &[Entry], changes: BTreeMap<TreePath, Option<Entry>>) -> Vec<Entry> {
    let mut entries = Vec::with_capacity(old.len() + changes.len());
    let mut rest = old;
    for (path, new) in changes {
        let (before, from) = rest.split_at(rest.partition_point(|entry| entry.path < path));
        entries.extend_from_slice(before);
        rest = match from.split_first() {
            Some((same, after)) if same.path == path => after,
            _ => from,
        };
        entries.extend(new);
    }
    entries.extend_from_slice(rest);
    entries
}

fn orphan(path: &TreePath) -> Error {
    let path = in_sentence(&path.to_string());
    Error::refused(format!("path `{path}` stands below something that is no directory"))
}

fn twice(path: &TreePath) -> Error {
    Error::refused(format!("path `{}` stands twice", in_sentence(&path.to_string())))
}

/// Two manifests, path by path; what both share is left out, and with it everything that is the same.
pub fn differing<'a>(
    old: &'a Manifest,
    new: &'a Manifest,
) -> impl Iterator<Item = (Option<&'a Entry>, Option<&'a Entry>)> + 'a {
    compared(old, new, Style::Plain)
}

/// Two manifests, path by path, without what is the same when it is written in this style.
fn compared<'a>(
    old: &'a Manifest,
    new: &'a Manifest,
    style: Style,
) -> impl Iterator<Item = (Option<&'a Entry>, Option<&'a Entry>)> + 'a {
    let (mut old, mut new) = (Cursor::new(old), Cursor::new(new));
    let is_same_stamp = move |(a, b): (Option<&Entry>, Option<&Entry>)| {
        style != Style::Stamped || a.zip(b).is_some_and(|(a, b)| a.stamp.is_same(&b.stamp))
    };
    std::iter::from_fn(move || {
        loop {
            if old.is_at_chunk_of(&new, style) {
                old.skip_chunk();
                new.skip_chunk();
                continue;
            }
            let pair = match (old.entry(), new.entry()) {
                (None, None) => return None,
                (Some(a), Some(b)) if a.path == b.path => (Some(a), Some(b)),
                (Some(a), Some(b)) if a.path < b.path => (Some(a), None),
                (Some(a), None) => (Some(a), None),
                (_, Some(b)) => (None, Some(b)),
            };
            if pair.0.is_some() {
                old.step();
            }
            if pair.1.is_some() {
                new.step();
            }
            if pair.0 != pair.1 || !is_same_stamp(pair) {
                return Some(pair);
            }
        }
    })
}

/// A place in a manifest.
struct Cursor<'a> {
    chunks: &'a [Arc<Chunk>],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(manifest: &'a Manifest) -> Self {
        Self { chunks: &manifest.chunks, at: 0 }
    }

    /// Whether both stand at the beginning of the same chunk.
    fn is_at_chunk_of(&self, other: &Self, style: Style) -> bool {
        let (Some(ours), Some(theirs)) = (self.chunks.first(), other.chunks.first()) else { return false };
        let is_same = |ours: &Arc<Chunk>| Arc::ptr_eq(ours, theirs) || style != Style::Stamped && ours.is_same(theirs);
        self.at == 0 && other.at == 0 && is_same(ours)
    }

    fn skip_chunk(&mut self) {
        self.chunks = &self.chunks[1..];
    }

    fn entry(&self) -> Option<&'a Entry> {
        self.chunks.first()?.entries().get(self.at)
    }

    fn step(&mut self) {
        self.at += 1;
        if self.chunks.first().is_some_and(|chunk| self.at >= chunk.entries().len()) {
            self.skip_chunk();
            self.at = 0;
        }
    }
}
