//! A witness: what a physical tree consisted of when we last looked, with inode and status-change time of each entry.
//!
//! A file that still has the same inode, status-change time, size and modification time has the same content: nothing
//! but the kernel can set the status-change time. A file whose status changed within 20 ms of the moment the witness was
//! taken is not vouched for, because the clock of the file system is that coarse.

use std::fmt::Write as _;
use std::path::Path;

use super::manifest::{Entry, Manifest};
use super::scan::Identified;
use crate::sys::dir::{FileKind, Meta};
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::sys::path::TreePath;

/// The coarseness of the file system's clock that we reckon with, in nanoseconds.
const RACY: i64 = 20_000_000;

/// What a tree was.
#[derive(Debug)]
pub struct Witness {
    taken: i64,
    device: u64,
    manifest: Manifest,
    inodes: Vec<(u64, i64)>,
}

impl Witness {
    /// Takes the witness of what was just identified; `taken` is the wall time *before* looking, in nanoseconds, `device`
    /// the file system's number.
    #[must_use]
    pub fn new(told: Identified, taken: i64, device: u64) -> Self {
        Self { taken, device, manifest: told.manifest, inodes: told.inodes }
    }

    /// What the tree was.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The recorded entry, if the file there is certainly unchanged.
    #[must_use]
    pub fn vouch(&self, path: &TreePath, meta: &Meta) -> Option<&Entry> {
        let index = self.manifest.entries().binary_search_by(|entry| entry.path.cmp(path)).ok()?;
        let (entry, (ino, ctime)) = (&self.manifest.entries()[index], self.inodes[index]);
        let is_file = meta.kind == FileKind::File && entry.hash().is_some();
        let is_dir = meta.kind == FileKind::Dir && entry.is_dir();
        let same = (is_file && entry.size() == meta.size || is_dir)
            && ino == meta.ino
            && ctime == meta.ctime
            && entry.mtime == meta.mtime
            && self.device == meta.dev;
        (same && ctime < self.taken - RACY).then_some(entry)
    }

    /// Reads a witness; `None` if there is none or it is damaged: then everything is simply read again.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        let text = String::from_utf8(fs::read_if_there(path).ok()??).ok()?;
        let (first, rest) = text.split_once('\n')?;
        let mut words = first.strip_prefix("mc_project witness 1 ")?.split(' ');
        let (taken, device) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let (inodes, manifest) = rest.split_once("\n\n")?;
        let manifest = Manifest::from_text(manifest).ok()?;
        let inodes: Option<Vec<(u64, i64)>> = inodes
            .lines()
            .map(|line| line.split_once(' ').and_then(|(ino, ctime)| Some((ino.parse().ok()?, ctime.parse().ok()?))))
            .collect();
        let inodes = inodes.filter(|inodes| inodes.len() == manifest.entries().len())?;
        Some(Self { taken, device, manifest, inodes })
    }

    /// Writes the witness.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if self.inodes.len() != self.manifest.entries().len() {
            return Err(Error::bug("a witness has not as many inodes as entries"));
        }
        let mut text = format!("mc_project witness 1 {} {}\n", self.taken, self.device);
        for (ino, ctime) in &self.inodes {
            let _ = writeln!(text, "{ino} {ctime}");
        }
        text.push('\n');
        text.push_str(&self.manifest.to_text());
        fs::write_durable(path, text.as_bytes(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::{Own, identify};
    use super::*;
    use crate::sys::dir::Dir;

    fn look(dir: &Dir, witness: Option<&Witness>) -> Identified {
        identify(dir, Own::current(), witness, &|_| true).unwrap()
    }

    fn later(seconds: i64) -> i64 {
        i64::try_from(crate::sys::clock::now().as_nanosecond()).unwrap() + seconds * 1_000_000_000
    }

    #[test]
    fn a_change_with_the_same_size_and_time_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("f");
        std::fs::write(&file, "one").unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let meta = dir.stat(Path::new("f")).unwrap().unwrap();
        let before = look(&dir, None);
        let hash = before.manifest.entries()[0].hash();
        let witness = Witness::new(before, later(1), meta.dev);
        assert_eq!(look(&dir, Some(&witness)).read, 0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&file, "two").unwrap();
        dir.set_mtime(Path::new("f"), meta.mtime).unwrap();
        let after = look(&dir, Some(&witness));
        assert_eq!(after.read, 1);
        assert_ne!(after.manifest.entries()[0].hash(), hash);
        assert_eq!(after.manifest.entries()[0].mtime, meta.mtime);
    }

    #[test]
    fn what_changed_within_the_clocks_coarseness_is_read_again() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("f"), "one").unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let witness = Witness::new(look(&dir, None), later(0), dir.stat_self().unwrap().dev);
        assert_eq!(look(&dir, Some(&witness)).read, 1);
    }

    #[test]
    fn a_witness_reads_back_and_a_damaged_one_counts_as_none() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("tree")).unwrap();
        std::fs::write(temp.path().join("tree/f"), "one").unwrap();
        let dir = Dir::open(&temp.path().join("tree")).unwrap();
        let path = temp.path().join("witness");
        Witness::new(look(&dir, None), later(1), dir.stat_self().unwrap().dev).write(&path).unwrap();
        let read = Witness::read(&path).unwrap();
        assert_eq!(look(&dir, Some(&read)).read, 0);
        let mut text = std::fs::read(&path).unwrap();
        let last = text.len() - 5;
        text[last] ^= 1;
        std::fs::write(&path, text).unwrap();
        assert!(Witness::read(&path).is_none());
    }
}
