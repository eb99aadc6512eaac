//! Some entries of a manifest in a row. Manifests of similar trees share their chunks, and a chunk that nobody asked for
//! stays on the disk: so the cost of a change is that of the chunks it touches, however large the tree is.
//!
//! Where a chunk begins is said by the paths alone ([`begins`]): the same tree has the same chunks, whatever led to it.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::entry::{Entry, Style};
use super::looks::Looks;
use crate::sys::fs::File;
use crate::sys::path::TreePath;
use crate::tree::hash::Hash;

/// One of so many paths begins a chunk.
const LENGTH: u64 = 256;

/// Whether a chunk begins at this path (FNV-1a of its bytes; fixed for ever, because digests of trees depend on it).
#[must_use]
pub fn begins(path: &TreePath) -> bool {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = path.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    (hash ^ (hash >> 32)).is_multiple_of(LENGTH)
}

/// A file that holds the lines of chunks.
#[derive(Debug)]
pub struct Source {
    file: File,
    style: Style,
}

impl Source {
    /// The file, and how its lines are written.
    #[must_use]
    pub fn new(file: File, style: Style) -> Arc<Self> {
        Arc::new(Self { file, style })
    }

    /// The lines as they stand in the file; `None` where they are not what the index says.
    fn bytes(&self, lines: &Lines) -> Option<Vec<u8>> {
        let mut bytes = vec![0; lines.length];
        self.file.read_exact_at(&mut bytes, lines.offset).ok()?;
        (Hash::of(&bytes) == lines.raw).then_some(bytes)
    }

    fn read(&self, lines: &Lines) -> Option<Box<[Entry]>> {
        let text = String::from_utf8(self.bytes(lines)?).ok()?;
        text.lines().map(|line| Entry::parse(line, self.style)).collect()
    }
}

/// Where the lines of a chunk are, and what they say: what an index tells of it.
#[derive(Debug, Clone)]
pub struct Lines {
    /// The first path.
    pub first: TreePath,
    /// Where they begin in the file.
    pub offset: u64,
    /// How many bytes they have.
    pub length: usize,
    /// How many entries.
    pub count: usize,
    /// How many of them are files or links.
    pub files: usize,
    /// How many are further names of a hard-linked file.
    pub links: usize,
    /// The bytes of the files, hard links counted once.
    pub bytes: u64,
    /// The digest of the lines as they stand in the file.
    pub raw: Hash,
    /// The digest of them as a manifest has them.
    pub plain: Hash,
    /// The digest of them without times and owners.
    pub portable: Hash,
    /// The digest of how they looked, where that is sure.
    pub looks: Option<Hash>,
}

/// The sum of sizes, which strangers may have written down: too large a one has no number and is the largest.
fn sum<'a>(entries: impl Iterator<Item = &'a Entry>) -> u64 {
    entries.map(Entry::size).fold(0, u64::saturating_add)
}

/// Some entries in a row, at least one.
#[derive(Debug)]
pub struct Chunk {
    first: TreePath,
    /// How many entries.
    pub count: usize,
    /// How many of them are files or links.
    pub files: usize,
    /// How many are further names of a hard-linked file.
    pub links: usize,
    /// The bytes of the files, hard links counted once.
    pub bytes: u64,
    entries: OnceLock<Box<[Entry]>>,
    plain: OnceLock<Hash>,
    portable: OnceLock<Hash>,
    looks: OnceLock<Option<Hash>>,
    kept: Option<(Arc<Source>, Lines)>,
    is_damaged: AtomicBool,
}

impl Chunk {
    /// Cuts sorted entries into chunks.
    #[must_use]
    pub fn cut(entries: Vec<Entry>) -> Vec<Arc<Self>> {
        let mut chunks = Vec::new();
        let mut part: Vec<Entry> = Vec::new();
        for entry in entries {
            if begins(&entry.path) && !part.is_empty() {
                chunks.extend(Self::of(std::mem::take(&mut part)));
            }
            part.push(entry);
        }
        chunks.extend(Self::of(part));
        chunks
    }

    fn of(entries: Vec<Entry>) -> Option<Arc<Self>> {
        let first = entries.first()?.path.clone();
        Some(Arc::new(Self {
            first,
            count: entries.len(),
            files: entries.iter().filter(|entry| !entry.is_dir()).count(),
            links: entries.iter().filter(|entry| entry.hard_link.is_some()).count(),
            bytes: sum(entries.iter().filter(|entry| entry.hard_link.is_none())),
            entries: OnceLock::from(entries.into_boxed_slice()),
            plain: OnceLock::new(),
            portable: OnceLock::new(),
            looks: OnceLock::new(),
            kept: None,
            is_damaged: AtomicBool::new(false),
        }))
    }

    /// A chunk whose lines are in a file; they are read when somebody asks for an entry.
    #[must_use]
    pub fn kept(source: &Arc<Source>, lines: Lines) -> Arc<Self> {
        Arc::new(Self {
            first: lines.first.clone(),
            count: lines.count,
            files: lines.files,
            links: lines.links,
            bytes: lines.bytes,
            entries: OnceLock::new(),
            plain: OnceLock::from(lines.plain),
            portable: OnceLock::from(lines.portable),
            looks: OnceLock::from(lines.looks),
            kept: Some((source.clone(), lines)),
            is_damaged: AtomicBool::new(false),
        })
    }

    /// The path of the first entry.
    #[must_use]
    pub fn first(&self) -> &TreePath {
        &self.first
    }

    /// The entries. Of a damaged file there are none, and [`Chunk::is_damaged`] tells that.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        self.entries.get_or_init(|| {
            let Some((source, lines)) = &self.kept else { return Box::default() };
            match source.read(lines) {
                Some(entries) if entries.len() == self.count && entries[0].path == self.first => entries,
                _ => {
                    self.is_damaged.store(true, Ordering::SeqCst);
                    Box::default()
                }
            }
        })
    }

    /// Whether its lines in the file are what the index says, and so can be read when somebody asks; that is found out
    /// without taking them apart.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let is_read = self.entries.get().is_some();
        if let Some((source, lines)) = self.kept.as_ref().filter(|_| !is_read)
            && source.bytes(lines).is_none()
        {
            self.is_damaged.store(true, Ordering::SeqCst);
        }
        !self.is_damaged()
    }

    /// Whether its lines in the file turned out to be damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::SeqCst)
    }

    /// The digest of the lines as a manifest has them.
    #[must_use]
    pub fn plain(&self) -> Hash {
        *self.plain.get_or_init(|| self.digest(Style::Plain))
    }

    /// The digest of the lines without times and owners.
    #[must_use]
    pub fn portable(&self) -> Hash {
        *self.portable.get_or_init(|| self.digest(Style::Portable))
    }

    /// The digest of how its entries looked when they were known, if that is sure for all of them.
    #[must_use]
    pub fn looks(&self) -> Option<Hash> {
        *self.looks.get_or_init(|| Looks::of(self.entries()))
    }

    fn digest(&self, style: Style) -> Hash {
        Hash::of(self.lines(style).as_bytes())
    }

    /// The lines of all entries.
    #[must_use]
    pub fn lines(&self, style: Style) -> String {
        let entries = self.entries();
        let mut text = String::with_capacity(entries.len() * 176);
        for entry in entries {
            entry.write(&mut text, style);
            text.push('\n');
        }
        text
    }

    /// Whether both hold the same entries.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        if std::ptr::eq(self, other) {
            return true;
        }
        if self.count != other.count || self.first != other.first {
            return false;
        }
        match (self.plain.get(), other.plain.get()) {
            (Some(one), Some(two)) => one == two,
            // Of one that lies on the disk the digest is at hand; reading it costs more than making the other's.
            _ if self.entries.get().is_none() || other.entries.get().is_none() => self.plain() == other.plain(),
            _ => self.entries() == other.entries(),
        }
    }
}
