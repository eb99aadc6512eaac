//! A witness: what a physical tree consisted of when we last looked, with inode and status-change time of each entry.
//!
//! A file that still has the same inode, status-change time, size and modification time has the same content: nothing
//! but the kernel can set the status-change time. A file whose status changed within 20 ms of the moment at which it was
//! looked at is not vouched for, because the clock of the file system is that coarse.
//!
//! On the disk it is a manifest with stamps, the index of that, and a list of what has changed since; a small change writes
//! the list alone. None of them is durable: what does not fit together counts as none, and everything is read again.

use std::path::{Path, PathBuf};

use super::hash::Hash;
use super::manifest::{Changes, Chunk, Entry, Look, Looks, Manifest, Style};
use super::scan::{Found, Own};
use crate::project::place::Place;
use crate::sys::dir::{Dir, FileKind, Meta};
use crate::sys::error::Result;
use crate::sys::fs;
use crate::sys::path::TreePath;

/// The coarseness of the file system's clock that we reckon with, in nanoseconds.
const RACY: i64 = 20_000_000;
const FIRST_WORDS: &str = "mc_project witness 2 ";
const FIRST_WORDS_OF_CHANGES: &str = "mc_project witness changes 2 ";
/// So many changes are always written as such, however small the tree is.
const FEW: usize = 64;

/// Whether a status change at `ctime` is long enough before `taken`, both nanoseconds since the epoch.
#[must_use]
pub fn is_sure(ctime: i64, taken: i64) -> bool {
    ctime < taken.saturating_sub(RACY)
}

/// What a tree was.
#[derive(Debug)]
pub struct Witness {
    device: u64,
    manifest: Manifest,
    /// What the file holds beside which the changes are written, and the digest of its last line.
    base: Option<(Manifest, Hash)>,
}

impl Witness {
    /// The witness of what was just identified; `device` is the file system's number. `before` is what is on the disk.
    #[must_use]
    pub fn new(manifest: Manifest, device: u64, before: Option<Self>) -> Self {
        let base = before.filter(|before| before.device == device).and_then(|before| before.base);
        Self { device, manifest, base }
    }

    /// What the tree was.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The recorded entry, if the file there is certainly unchanged.
    #[must_use]
    pub fn vouch(&self, path: &TreePath, meta: &Meta) -> Option<&Entry> {
        let entry = self.manifest.get(path)?;
        let is_file = meta.kind == FileKind::File && entry.hash().is_some();
        let is_dir = meta.kind == FileKind::Dir && entry.is_dir();
        let same = (is_file && entry.size() == meta.size || is_dir)
            && entry.stamp.ino == meta.ino
            && entry.stamp.ctime == meta.ctime
            && entry.mtime == meta.mtime
            && self.device == meta.dev;
        (same && entry.stamp.is_sure).then_some(entry)
    }

    /// Whether everything that was found looks as this chunk of the witness says: then it is the same.
    #[must_use]
    pub fn looks_as(&self, chunk: &Chunk, found: &[Found], own: Own) -> bool {
        // Which name of a file with several is the first is said by all of the tree, not by what stands here.
        let is_other =
            |one: &Found| one.meta.dev != self.device || one.meta.kind == FileKind::File && one.meta.nlink > 1;
        if chunk.count != found.len() || found.iter().any(is_other) {
            return false;
        }
        let Some(known) = chunk.looks() else { return false };
        let mut looks = Looks::default();
        for Found { path, meta, .. } in found {
            let (kind, mode, size) = match meta.kind {
                FileKind::Dir => (b'd', own.recorded_mode(meta), 0),
                FileKind::File => (b'f', own.recorded_mode(meta), meta.size),
                FileKind::Symlink => (b'l', 0o777, 0),
                FileKind::Special => return false,
            };
            let (owner, path) = (own.recorded(meta), path.as_bytes());
            let Meta { mtime, ctime, ino, .. } = *meta;
            looks.add(&Look { path, kind, mode, owner, size, mtime, ctime, ino });
        }
        looks.digest() == known
    }

    /// Reads a witness; `None` if there is none or it is damaged: then everything is simply read again.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        let text = String::from_utf8(fs::read_if_there(path).ok()??).ok()?;
        let (first, base) = Manifest::from_lines(&text, Style::Stamped).ok()?;
        let device = first.strip_prefix(FIRST_WORDS)?.parse().ok()?;
        let last = text.trim_end().rsplit('\n').next()?;
        Some(Self::with_changes(path, device, base, Hash::of(last.as_bytes())))
    }

    /// Opens a witness without reading it; `None` if there is none. What is damaged shows only when it is asked for
    /// ([`Manifest::intact`]).
    #[must_use]
    pub fn open(path: &Path) -> Option<Self> {
        let (base, last) = Manifest::open(path, &index_of(path), Style::Stamped)?;
        let first = fs::read_from(path, 0, 64).ok()?;
        let first = String::from_utf8_lossy(&first);
        let device = first.lines().next()?.strip_prefix(FIRST_WORDS)?.parse().ok()?;
        Some(Self::with_changes(path, device, base, last))
    }

    /// Opens a witness for a walk, which asks for all of it: what is damaged is read from the tree again.
    #[must_use]
    pub fn open_or_read(path: &Path) -> Option<Self> {
        Self::open(path).or_else(|| Self::read(path))
    }

    fn with_changes(path: &Path, device: u64, base: Manifest, last: Hash) -> Self {
        let read = || {
            let text = String::from_utf8(fs::read_if_there(&changes_of(path)).ok()??).ok()?;
            let (first, changes) = Changes::read(&text, Style::Stamped).ok()?;
            let is_of_base = first.strip_prefix(FIRST_WORDS_OF_CHANGES)? == last.hex();
            if is_of_base { base.with(changes.put, &changes.dropped).ok() } else { None }
        };
        Self { device, manifest: read().unwrap_or_else(|| base.clone()), base: Some((base, last)) }
    }

    /// Writes the witness: what changed since the file was written, or all of it where that is much.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some((base, last)) = &self.base {
            let first = format!("{FIRST_WORDS_OF_CHANGES}{last}");
            let text = self.manifest.changes_below(&first, base, Style::Stamped);
            let lines = memchr::memchr_iter(b'\n', text.as_bytes()).count();
            if lines < FEW + self.manifest.len() / 16 && base.intact().is_ok() {
                return fs::replace(&changes_of(path), text.as_bytes(), 0o600);
            }
        }
        let written = self.manifest.to_indexed(&format!("{FIRST_WORDS}{}", self.device), Style::Stamped);
        fs::remove_file(&index_of(path))?;
        fs::replace(path, written.text.as_bytes(), 0o600)?;
        fs::replace(&index_of(path), written.index.as_bytes(), 0o600)?;
        fs::remove_file(&changes_of(path))
    }
}

/// Where the witness of a tree of this project is.
///
/// # Errors
/// If the tree cannot be examined.
pub fn path_of(place: &Place, tree: &Dir) -> Result<PathBuf> {
    Ok(place.witness(&tree.stat_self()?.ino.to_string()))
}

/// Writes down what a tree is, with stamps; `before` is what was read of the witness so far.
///
/// # Errors
/// If a file cannot be written.
pub fn record(path: &Path, tree: &Dir, manifest: Manifest, before: Option<Witness>) -> Result<()> {
    Witness::new(manifest, tree.stat_self()?.dev, before).write(path)
}

fn index_of(path: &Path) -> PathBuf {
    path.with_extension("index")
}

fn changes_of(path: &Path) -> PathBuf {
    path.with_extension("changes")
}

#[cfg(test)]
mod tests {
    use super::super::scan::{Identified, Own, identify};
    use super::*;
    use crate::sys::dir::Dir;

    fn look(dir: &Dir, witness: Option<&Witness>) -> Identified {
        identify(dir, Own::current(), witness, &|_| true).unwrap()
    }

    #[test]
    fn a_change_with_the_same_size_and_time_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("f");
        std::fs::write(&file, "one").unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let meta = dir.stat(Path::new("f")).unwrap().unwrap();
        let before = look(&dir, None);
        let hash = before.manifest.entries().next().unwrap().hash();
        assert_eq!(look(&dir, None).read, 1);
        std::thread::sleep(std::time::Duration::from_millis(30));
        let witness = Witness::new(look(&dir, None).manifest, meta.dev, None);
        assert_eq!(look(&dir, Some(&witness)).read, 0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&file, "two").unwrap();
        dir.set_mtime(Path::new("f"), meta.mtime).unwrap();
        let after = look(&dir, Some(&witness));
        assert_eq!(after.read, 1);
        assert_ne!(after.manifest.entries().next().unwrap().hash(), hash);
        assert_eq!(after.manifest.entries().next().unwrap().mtime, meta.mtime);
    }

    #[test]
    fn what_changed_within_the_clocks_coarseness_is_read_again() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("f"), "one").unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let witness = Witness::new(look(&dir, None).manifest, dir.stat_self().unwrap().dev, None);
        assert_eq!(look(&dir, Some(&witness)).read, 1);
    }

    #[test]
    fn a_witness_reads_back_and_a_damaged_one_counts_as_none() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("tree")).unwrap();
        std::fs::write(temp.path().join("tree/f"), "one").unwrap();
        let dir = Dir::open(&temp.path().join("tree")).unwrap();
        let path = temp.path().join("witness");
        std::thread::sleep(std::time::Duration::from_millis(30));
        Witness::new(look(&dir, None).manifest, dir.stat_self().unwrap().dev, None).write(&path).unwrap();
        let read = Witness::read(&path).unwrap();
        assert_eq!(look(&dir, Some(&read)).read, 0);
        let mut text = std::fs::read(&path).unwrap();
        let last = text.len() - 5;
        text[last] ^= 1;
        std::fs::write(&path, text).unwrap();
        assert!(Witness::read(&path).is_none());
    }

    #[test]
    fn a_small_change_writes_a_list_and_both_ways_of_reading_see_it() {
        let temp = tempfile::tempdir().unwrap();
        let tree = temp.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        for n in 0..300 {
            std::fs::write(tree.join(format!("f{n}")), format!("{n}")).unwrap();
        }
        let (dir, path) = (Dir::open(&tree).unwrap(), temp.path().join("witness-1"));
        std::thread::sleep(std::time::Duration::from_millis(30));
        record(&path, &dir, look(&dir, None).manifest, None).unwrap();
        let whole = std::fs::metadata(&path).unwrap().len();
        std::fs::write(tree.join("f7"), "other").unwrap();
        std::fs::remove_file(tree.join("f8")).unwrap();
        let before = Witness::open(&path).unwrap();
        let now = look(&dir, Some(&before)).manifest;
        record(&path, &dir, now.clone(), Some(before)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), whole, "the file itself was not written again");
        for read in [Witness::open(&path).unwrap(), Witness::read(&path).unwrap()] {
            assert_eq!(*read.manifest(), now);
            assert!(read.manifest().intact().is_ok());
        }
        // A list of another file's changes counts for nothing.
        std::fs::write(tree.join("f9"), "x").unwrap();
        record(&path, &dir, look(&dir, None).manifest, None).unwrap();
        assert_eq!(*Witness::read(&path).unwrap().manifest(), look(&dir, None).manifest);
    }

    /// What is told with a witness of an earlier tree must be what is told without one, stamps and all.
    fn assert_told_alike(dir: &Dir, path: &Path, what: &str) {
        let witness = Witness::open(path).unwrap();
        let (with, without) = (look(dir, Some(&witness)), look(dir, None));
        assert_eq!(with.manifest, without.manifest, "{what}");
        let stamps = |told: &Identified| -> Vec<_> {
            told.manifest.entries().map(|entry| (entry.stamp.ino, entry.stamp.ctime)).collect()
        };
        assert_eq!(stamps(&with), stamps(&without), "{what}");
        assert_eq!((&with.specials, &with.linked_elsewhere), (&without.specials, &without.linked_elsewhere), "{what}");
        with.manifest.intact().unwrap();
    }

    #[test]
    fn a_walk_with_a_witness_tells_what_one_without_tells_whatever_was_done() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        type Deed<'a> = (&'a str, Box<dyn Fn() + 'a>);
        let temp = tempfile::tempdir().unwrap();
        let (tree, path) = (temp.path().join("tree"), temp.path().join("witness-1"));
        for n in 0..1500 {
            let at = tree.join(format!("d{}/e{}", n % 17, n % 5));
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join(format!("f{n}")), format!("{n}")).unwrap();
        }
        symlink("d1", tree.join("link")).unwrap();
        std::fs::hard_link(tree.join("d4/e4/f4"), tree.join("d9/e0/other-name")).unwrap();
        std::fs::hard_link(tree.join("d5/e0/f5"), temp.path().join("elsewhere")).unwrap();
        let dir = Dir::open(&tree).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(40));
        record(&path, &dir, look(&dir, None).manifest, None).unwrap();
        let witness = Witness::open(&path).unwrap();
        let told = look(&dir, Some(&witness));
        assert_eq!((told.read, told.linked_elsewhere.len()), (0, 1));
        let same = told.manifest.chunks().zip(witness.manifest().chunks());
        let unread = same.filter(|(a, b)| std::sync::Arc::ptr_eq(a, b)).count();
        assert!(unread > 1, "{unread} of {} parts were taken over", witness.manifest().chunks().len());
        assert_told_alike(&dir, &path, "nothing was done");
        let at = |name: &str| tree.join(name);
        let deeds: Vec<Deed<'_>> = vec![
            ("written", Box::new(|| std::fs::write(at("d3/e3/f3"), "x").unwrap())),
            ("a new file before all", Box::new(|| std::fs::write(at("a"), "new").unwrap())),
            ("a new file after all", Box::new(|| std::fs::write(at("zzz"), "new").unwrap())),
            ("a directory gone", Box::new(|| std::fs::remove_dir_all(at("d7")).unwrap())),
            ("the first name of a file gone", Box::new(|| std::fs::remove_file(at("d4/e4/f4")).unwrap())),
            ("the name elsewhere gone", Box::new(|| std::fs::remove_file(temp.path().join("elsewhere")).unwrap())),
            (
                "a mode",
                Box::new(|| {
                    std::fs::set_permissions(at("d2/e2"), std::fs::Permissions::from_mode(0o700)).unwrap();
                }),
            ),
            (
                "a link to elsewhere",
                Box::new(|| {
                    std::fs::remove_file(at("link")).unwrap();
                    symlink("d2", at("link")).unwrap();
                }),
            ),
            ("a fifo", Box::new(|| rustix::fs::mkfifoat(rustix::fs::CWD, at("d1/fifo"), 0o600.into()).unwrap())),
            (
                "a file for a directory",
                Box::new(|| {
                    std::fs::remove_dir_all(at("d1/e1")).unwrap();
                    std::fs::write(at("d1/e1"), "x").unwrap();
                }),
            ),
            ("renamed", Box::new(|| std::fs::rename(at("d10"), at("D10")).unwrap())),
            (
                "another name of a file, which its directory takes along",
                Box::new(|| {
                    std::fs::hard_link(at("d5/e0/f5"), at("d11/e0/far-name")).unwrap();
                }),
            ),
            ("a directory with the first name renamed", Box::new(|| std::fs::rename(at("d11"), at("zd11")).unwrap())),
        ];
        for (what, deed) in deeds {
            deed();
            assert_told_alike(&dir, &path, what);
        }
        // One part of the record is damaged: what it said is read from the tree.
        let text = std::fs::read(&path).unwrap();
        for chunk in witness.manifest().chunks() {
            let mut damaged = text.clone();
            let name = chunk.first().escaped();
            let found = memchr::memmem::find(&damaged, format!(" {name}\n").as_bytes());
            let at = found.or_else(|| memchr::memmem::find(&damaged, format!(" {name} ").as_bytes())).unwrap();
            damaged[at - 3] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert_told_alike(&dir, &path, "a damaged part");
        }
        std::fs::write(&path, text).unwrap();
        // Every path that begins a part of the record goes, one after the other.
        for chunk in witness.manifest().chunks() {
            let first = tree.join(chunk.first().as_path());
            let _ = std::fs::remove_dir_all(&first).or_else(|_| std::fs::remove_file(&first));
            assert_told_alike(&dir, &path, "the beginning of a part");
        }
    }
}
