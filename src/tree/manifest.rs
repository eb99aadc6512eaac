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

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::hash::Hash;
use crate::project::ids::{DeploymentId, ObjectId};
use crate::sys::error::{Error, Result};
use crate::sys::path::{TreePath, escape, unescape};

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Size in bytes.
        size: u64,
        /// Digest of the content.
        hash: Hash,
    },
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub path: TreePath,
    /// Permission bits (`& 0o7777`); 0o777 for a link.
    pub mode: u32,
    /// Owner and group; `None` is the project's own user.
    pub owner: Option<(u32, u32)>,
    /// Time of the last modification, nanoseconds since the epoch.
    pub mtime: i64,
    /// What it is.
    pub content: Content,
    /// The first path (by order) of the hard-linked file that this one is another name of.
    pub hard_link: Option<TreePath>,
    /// Extended attributes and ACLs, sorted by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// The git object with this content, where one is known.
    pub blob: Option<ObjectId>,
}

impl Entry {
    /// The digest of a file's content.
    #[must_use]
    pub fn hash(&self) -> Option<Hash> {
        match self.content {
            Content::File { hash, .. } => Some(hash),
            _ => None,
        }
    }

    /// The size of a file, 0 for everything else.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self.content {
            Content::File { size, .. } => size,
            _ => 0,
        }
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.content == Content::Dir
    }

    /// Whether both entries have the same content and name structure (mode, owner, time and attributes aside).
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.content == other.content && self.hard_link == other.hard_link
    }

    /// Whether mode, owner, attributes and time are the same. The time of a directory counts too.
    #[must_use]
    pub fn same_metadata(&self, other: &Self) -> bool {
        self.mode == other.mode && self.owner == other.owner && self.mtime == other.mtime && self.xattrs == other.xattrs
    }

    /// Whether it would give a file rights that only the node it stands on can give: an owner, setuid, setgid, or an
    /// attribute that the kernel itself obeys.
    #[must_use]
    pub fn has_privileges(&self) -> bool {
        self.mode & 0o6000 != 0
            || self.owner.is_some()
            || self.xattrs.iter().any(|(name, _)| !crate::sys::dir::is_carried(name.as_bytes()))
    }

    fn line(&self) -> String {
        let mut line = String::with_capacity(120);
        let letter = match self.content {
            Content::Dir => 'd',
            Content::File { .. } => 'f',
            Content::Symlink(_) => 'l',
        };
        let _ = write!(line, "{letter} {:04o} ", self.mode);
        match self.owner {
            None => line.push('-'),
            Some((uid, gid)) => {
                let _ = write!(line, "{uid}:{gid}");
            }
        }
        let (seconds, nanos) = (self.mtime.div_euclid(1_000_000_000), self.mtime.rem_euclid(1_000_000_000));
        let _ = write!(line, " {seconds}.{nanos:09} ");
        match &self.content {
            Content::Dir => line.push_str("- -"),
            Content::File { size, hash } => {
                let _ = write!(line, "{size} {hash}");
            }
            Content::Symlink(target) => {
                let _ = write!(line, "- {}", escape(target));
            }
        }
        let _ = write!(line, " {}", self.path.escaped());
        if let Some(blob) = &self.blob {
            let _ = write!(line, " git={blob}");
        }
        if let Some(leader) = &self.hard_link {
            let _ = write!(line, " link={}", leader.escaped());
        }
        for (name, value) in &self.xattrs {
            let _ = write!(line, " x:{}={}", escape(name.as_bytes()).replace('=', "%3D"), escape(value));
        }
        line
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let letter = fields.next()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok().filter(|m| *m <= 0o7777)?;
        let owner = match fields.next()? {
            "-" => None,
            text => {
                let (uid, gid) = text.split_once(':')?;
                Some((uid.parse().ok()?, gid.parse().ok()?))
            }
        };
        let (seconds, nanos) = fields.next()?.split_once('.')?;
        let nanos: i64 = (nanos.len() == 9).then(|| nanos.parse().ok()).flatten()?;
        let mtime = seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)?;
        let (size, third) = (fields.next()?, fields.next()?);
        let content = match letter {
            "d" => Content::Dir,
            "f" => Content::File { size: size.parse().ok()?, hash: third.parse().ok()? },
            "l" => Content::Symlink(unescape(third)?),
            _ => return None,
        };
        let path = TreePath::from_escaped(fields.next()?).ok()?;
        let mut entry = Self { path, mode, owner, mtime, content, hard_link: None, xattrs: Vec::new(), blob: None };
        for field in fields {
            if let Some(blob) = field.strip_prefix("git=") {
                entry.blob = Some(blob.parse().ok()?);
            } else if let Some(leader) = field.strip_prefix("link=") {
                entry.hard_link = Some(TreePath::from_escaped(leader).ok()?);
            } else {
                let (name, value) = field.strip_prefix("x:")?.split_once('=')?;
                entry.xattrs.push((String::from_utf8(unescape(name)?).ok()?, unescape(value)?));
            }
        }
        Some(entry)
    }
}

/// A whole tree: entries sorted by path, each path once, parents before children.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    entries: Vec<Entry>,
}

const FIRST_LINE: &str = "mc_project manifest 1";
const FIRST_WORDS_OF_CHANGES: &str = "mc_project changes 1 ";

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
            return Err(Error::refused(format!("path `{}` stands twice", pair[0].path)));
        }
        let manifest = Self { entries };
        for entry in &manifest.entries {
            if let Some(parent) = entry.path.parent()
                && !manifest.get(&parent).is_some_and(Entry::is_dir)
            {
                return Err(Error::refused(format!(
                    "path `{}` stands below something that is no directory",
                    entry.path
                )));
            }
        }
        Ok(manifest)
    }

    /// All entries in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry at this path.
    #[must_use]
    pub fn get(&self, path: &TreePath) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.path.cmp(path)).ok().map(|index| &self.entries[index])
    }

    /// Number of files and links, directories aside.
    #[must_use]
    pub fn files(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.is_dir()).count()
    }

    /// Sum of the sizes of all files, hard links counted once.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.hard_link.is_none()).map(Entry::size).sum()
    }

    /// The digests of all contents.
    pub fn hashes(&self) -> impl Iterator<Item = Hash> + '_ {
        self.entries.iter().filter_map(Entry::hash)
    }

    /// A digest of content and structure alone (type, mode, path, digest, target), the same for the same tree wherever and
    /// whenever it was made.
    #[must_use]
    pub fn tree_digest(&self) -> Hash {
        let mut text = String::new();
        for entry in &self.entries {
            let portable = Entry { mtime: 0, owner: None, blob: None, ..entry.clone() };
            text.push_str(&portable.line());
            text.push('\n');
        }
        Hash::of(text.as_bytes())
    }

    /// Replaces or adds entries and drops paths.
    ///
    /// # Errors
    /// As [`Manifest::new`].
    pub fn with(&self, put: Vec<Entry>, dropped: &[TreePath]) -> Result<Self> {
        let mut all: BTreeMap<TreePath, Entry> =
            self.entries.iter().map(|entry| (entry.path.clone(), entry.clone())).collect();
        for path in dropped {
            all.remove(path);
        }
        for entry in put {
            all.insert(entry.path.clone(), entry);
        }
        Self::new(all.into_values().collect())
    }

    /// Where an entry is the same as in `before` (content and mode), takes over its time, so that an unchanged file keeps it.
    pub fn inherit_times(&mut self, before: &Self) {
        for entry in &mut self.entries {
            if let Some(old) = before.get(&entry.path)
                && old.same_content(entry)
                && old.mode == entry.mode
            {
                entry.mtime = old.mtime;
            }
        }
    }

    /// Sets the time of every entry.
    pub fn set_times(&mut self, mtime: i64) {
        for entry in &mut self.entries {
            entry.mtime = mtime;
        }
    }

    /// The tree as another node may have it: no owners, no setuid, setgid or sticky bits, no attributes but `user.*` and ACLs.
    #[must_use]
    pub fn without_privileges(&self) -> Self {
        let bare = |entry: &Entry| {
            let mut entry = Entry { owner: None, mode: entry.mode & 0o777, ..entry.clone() };
            entry.xattrs.retain(|(name, _)| crate::sys::dir::is_carried(name.as_bytes()));
            entry
        };
        Self { entries: self.entries.iter().map(bare).collect() }
    }

    /// Gives every directory this mode.
    pub fn restrict_directories(&mut self, mode: u32) {
        for entry in self.entries.iter_mut().filter(|entry| entry.is_dir()) {
            entry.mode = mode;
        }
    }

    /// The manifest as its file format.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(self.entries.len() * 140 + 128);
        text.push_str(FIRST_LINE);
        text.push('\n');
        for entry in &self.entries {
            text.push_str(&entry.line());
            text.push('\n');
        }
        close(&mut text, self.entries.len());
        text
    }

    /// Reads the file format.
    ///
    /// # Errors
    /// If the text is damaged, cut short, or of a newer format.
    pub fn from_text(text: &str) -> Result<Self> {
        let body = opened(text)?;
        let mut lines = body.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Err(Error::failed("this is no manifest of a format that this version knows"));
        }
        let mut entries = Vec::new();
        for (number, line) in lines.enumerate() {
            entries.push(Entry::parse(line).ok_or_else(|| bad_line(number + 2))?);
        }
        Self::new(entries)
    }

    /// What leads from `before` to this manifest, as its file format.
    #[must_use]
    pub fn to_changes(&self, before: &Self, against: &DeploymentId) -> String {
        let mut text = format!("{FIRST_WORDS_OF_CHANGES}{against}\n");
        let mut count = 0;
        for (old, new) in pairs(&before.entries, &self.entries) {
            if old == new {
                continue;
            }
            count += 1;
            match (old, new) {
                (_, Some(new)) => {
                    let _ = writeln!(text, "+{}", new.line());
                }
                (Some(old), None) => {
                    let _ = writeln!(text, "-{}", old.path.escaped());
                }
                (None, None) => {}
            }
        }
        close(&mut text, count);
        text
    }

    /// If the text is a list of changes, the release that it stands against.
    ///
    /// # Errors
    /// If that id is damaged.
    pub fn changes_against(text: &str) -> Result<Option<DeploymentId>> {
        match text.lines().next().and_then(|line| line.strip_prefix(FIRST_WORDS_OF_CHANGES)) {
            Some(id) => id.parse().map(Some),
            None => Ok(None),
        }
    }

    /// Applies a list of changes to this manifest.
    ///
    /// # Errors
    /// If the text is damaged or does not fit.
    pub fn with_changes(&self, text: &str) -> Result<Self> {
        let body = opened(text)?;
        let (mut put, mut dropped) = (Vec::new(), Vec::new());
        for (number, line) in body.lines().enumerate().skip(1) {
            if let Some(line) = line.strip_prefix('+') {
                put.push(Entry::parse(line).ok_or_else(|| bad_line(number + 1))?);
            } else if let Some(path) = line.strip_prefix('-') {
                dropped.push(TreePath::from_escaped(path)?);
            } else {
                return Err(bad_line(number + 1));
            }
        }
        self.with(put, &dropped)
    }
}

/// Pairs the entries of two sorted lists by path.
pub fn pairs<'a>(
    old: &'a [Entry],
    new: &'a [Entry],
) -> impl Iterator<Item = (Option<&'a Entry>, Option<&'a Entry>)> + 'a {
    let (mut i, mut j) = (0, 0);
    std::iter::from_fn(move || {
        let pair = match (old.get(i), new.get(j)) {
            (None, None) => return None,
            (Some(a), Some(b)) if a.path == b.path => (Some(a), Some(b)),
            (Some(a), Some(b)) if a.path < b.path => (Some(a), None),
            (Some(a), None) => (Some(a), None),
            (_, Some(b)) => (None, Some(b)),
        };
        i += usize::from(pair.0.is_some());
        j += usize::from(pair.1.is_some());
        Some(pair)
    })
}

fn bad_line(number: usize) -> Error {
    Error::failed(format!("line {number} of the manifest is damaged"))
}

fn close(text: &mut String, count: usize) {
    let digest = Hash::of(text.as_bytes());
    let _ = writeln!(text, "end {count} {digest}");
}

/// Checks the last line and returns everything before it.
fn opened(text: &str) -> Result<&str> {
    let cut = || Error::failed("the manifest is cut short or damaged");
    let without_newline = text.strip_suffix('\n').ok_or_else(cut)?;
    let start = without_newline.rfind('\n').ok_or_else(cut)? + 1;
    let (body, last) = (&text[..start], &without_newline[start..]);
    let mut words = last.split(' ');
    let (end, count, digest) = (words.next(), words.next(), words.next());
    let counted = body.lines().count().saturating_sub(1);
    let fits = end == Some("end")
        && count.and_then(|c| c.parse().ok()) == Some(counted)
        && digest == Some(Hash::of(body.as_bytes()).hex().as_str())
        && words.next().is_none();
    if fits { Ok(body) } else { Err(cut()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8], content: Content) -> Entry {
        Entry {
            path: TreePath::new(path).unwrap(),
            mode: 0o644,
            owner: None,
            mtime: -1,
            content,
            hard_link: None,
            xattrs: Vec::new(),
            blob: None,
        }
    }

    fn sample() -> Manifest {
        let file = Content::File { size: 3, hash: Hash::of(b"abc") };
        let mut odd = entry(b"d/\xff \n%", file.clone());
        odd.xattrs = vec![("user.a=b c".into(), vec![0, 255, b' '])];
        odd.owner = Some((5, 6));
        odd.blob = Some("a".repeat(40).parse().unwrap());
        let mut other = entry(b"d/\xff z", file);
        other.hard_link = Some(odd.path.clone());
        Manifest::new(vec![entry(b"l", Content::Symlink(b"../\xfe x".to_vec())), other, odd, entry(b"d", Content::Dir)])
            .unwrap()
    }

    #[test]
    fn a_manifest_reads_back_exactly() {
        let manifest = sample();
        assert_eq!(Manifest::from_text(&manifest.to_text()).unwrap(), manifest);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_found() {
        let text = sample().to_text();
        for end in 0..text.len() {
            assert!(Manifest::from_text(&text[..end]).is_err(), "cut at {end}");
        }
        for index in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[index] ^= 1;
            let Ok(flipped) = String::from_utf8(bytes) else { continue };
            assert!(Manifest::from_text(&flipped).is_err(), "flip at {index}");
        }
    }

    #[test]
    fn changes_lead_from_one_manifest_to_the_other() {
        let (old, id) = (sample(), DeploymentId::new(jiff::Timestamp::UNIX_EPOCH));
        let new = old.with(vec![entry(b"new", Content::Dir)], &[TreePath::new(b"l").unwrap()]).unwrap();
        let text = new.to_changes(&old, &id);
        assert_eq!(Manifest::changes_against(&text).unwrap(), Some(id));
        assert_eq!(text.lines().count(), 4);
        assert_eq!(old.with_changes(&text).unwrap(), new);
    }

    #[test]
    fn twins_and_orphans_are_refused() {
        let dir = |path: &[u8]| entry(path, Content::Dir);
        assert!(Manifest::new(vec![dir(b"a"), dir(b"a")]).is_err());
        assert!(Manifest::new(vec![dir(b"a/b")]).is_err());
        assert!(Manifest::new(vec![entry(b"a", Content::Symlink(b"/etc".to_vec())), dir(b"a/b")]).is_err());
    }

    #[test]
    fn the_tree_digest_ignores_times_and_owners_only() {
        let mut other = sample();
        other.set_times(7);
        assert_eq!(sample().tree_digest(), other.tree_digest());
        let changed = other.with(vec![entry(b"l", Content::Symlink(b"x".to_vec()))], &[]).unwrap();
        assert_ne!(changed.tree_digest(), other.tree_digest());
    }
}
