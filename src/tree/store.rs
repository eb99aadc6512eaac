//! The store: a pool of file contents, each named by its digest, that kept releases need and no tree holds any more.
//!
//! A content comes in by copying (while a new version is prepared) or by *renaming* the file that leaves a tree, which
//! costs nothing. It goes out by copying, or by renaming it into a tree when nobody else needs it here. No file of the
//! store is ever reachable from a tree at the same time.
//!
//! A file that leaves a tree may be held open by a process of the tree's owner. It is renamed in only if it certainly is
//! what was identified and nobody has it open for writing; it is ours alone from then on. Otherwise its content is copied.
//! Every content is verified when it is used.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::hash::Hash;
use super::manifest::{Entry, Manifest};
use super::scan::Own;
use crate::sys::dir::{Dir, FileKind, Hold, Meta, has_no_writer};
use crate::sys::error::{Context, Error, Result};
use crate::sys::fs::{File, share_contents};
use crate::sys::path::TreePath;

/// Inode and status-change time of a file.
pub type Stamp = (u64, i64);

/// A pool of contents.
#[derive(Debug)]
pub struct Store {
    dir: Dir,
    next: AtomicU64,
}

const TEMP_PREFIX: &str = ".new-";

impl Store {
    /// Opens the pool in this directory.
    ///
    /// # Errors
    /// If the directory does not exist.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { dir: Dir::open_real(path)?, next: AtomicU64::new(0) })
    }

    /// The directory of the pool.
    #[must_use]
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Whether the pool holds this content.
    ///
    /// # Errors
    /// If the pool cannot be examined.
    pub fn contains(&self, hash: &Hash) -> Result<bool> {
        Ok(self.dir.stat(Path::new(&hash.hex()))?.is_some())
    }

    /// Opens a content.
    ///
    /// # Errors
    /// If it exists and cannot be opened.
    pub fn get(&self, hash: &Hash) -> Result<Option<File>> {
        Ok(self.get_examined(hash)?.map(|(file, _)| file))
    }

    fn get_examined(&self, hash: &Hash) -> Result<Option<(File, Meta)>> {
        match self.dir.open_examined(&hex_path(hash)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes a content in; returns its digest and size. One that is here already is not written again.
    ///
    /// # Errors
    /// If reading or writing fails; nothing is left behind then.
    pub fn add(&self, from: &mut dyn Read) -> Result<(Hash, u64)> {
        self.add_with(|file| Hash::copying(from, file))
    }

    /// Takes in what `write` writes; it returns digest and size of what it wrote.
    ///
    /// # Errors
    /// If writing fails; nothing is left behind then.
    pub fn add_with(&self, write: impl FnOnce(&mut File) -> std::io::Result<(Hash, u64)>) -> Result<(Hash, u64)> {
        let temp = self.temp_name();
        let mut file = self.dir.create_file(&temp, 0o600)?;
        let add = || -> Result<(Hash, u64)> {
            let (hash, size) =
                write(&mut file).context(|| format!("cannot write into {}", self.dir.path().display()))?;
            self.dir.rename(&temp, &self.dir, Path::new(&hash.hex()))?;
            Ok((hash, size))
        };
        add().inspect_err(|_| {
            let _ = self.dir.unlink(&temp);
        })
    }

    /// Takes a content in that must have this digest: whether it is new here, or `None` if it has another one. Several
    /// threads may bring the same.
    ///
    /// # Errors
    /// If reading or writing fails; nothing is left behind then.
    pub fn add_expected(&self, from: &mut dyn Read, hash: &Hash) -> Result<Option<bool>> {
        let temp = self.temp_name();
        let mut file = self.dir.create_file(&temp, 0o600)?;
        let mut add = || -> Result<Option<bool>> {
            let (found, _) = Hash::copying(from, &mut file)
                .context(|| format!("cannot write into {}", self.dir.path().display()))?;
            if found != *hash {
                return Ok(None);
            }
            match self.dir.rename_new(&temp, &self.dir, &hex_path(hash)) {
                Ok(()) => Ok(Some(true)),
                Err(error) if error.errno() == Some(nix::libc::EEXIST) => Ok(Some(false)),
                Err(error) => Err(error),
            }
        };
        let added = add();
        if !matches!(added, Ok(Some(true))) {
            let _ = self.dir.unlink(&temp);
        }
        added
    }

    /// Moves a file of a tree into the pool, where it costs no new space. `hash` is its content, and `stamp` its inode and
    /// status-change time when that was identified, where they are known.
    ///
    /// # Errors
    /// If it can neither be renamed nor copied, or has another content by now: then it is left where it stands.
    pub fn take_in(&self, tree: &Dir, name: &OsStr, hash: &Hash, stamp: Option<Stamp>) -> Result<()> {
        let (name, place) = (Path::new(name), hex_path(hash));
        if self.contains(hash)? {
            return tree.unlink(name);
        }
        let held = tree.hold(name)?;
        let (meta, us) = (*held.meta(), Own::current());
        let is_same = stamp.map_or(meta.uid == us.uid, |stamp| stamp == (meta.ino, meta.ctime));
        // With other names left, a rename would leave an inode in a tree and in the store at once.
        if is_same && meta.kind == FileKind::File && meta.nlink == 1 {
            if meta.uid == us.uid {
                held.set_mode(0o600)?;
            }
            // At once to its last name: a crash must not lose what a kept release needs.
            match tree.rename(name, &self.dir, &place) {
                Ok(()) if self.make_ours(&place, &meta)? => return Ok(()),
                Ok(()) => {
                    return self.copy_in(&self.dir, &place, hash).inspect_err(|_| {
                        // Somebody else's work: it goes back to where it was found.
                        let _ = self.dir.rename_new(&place, tree, name);
                        let _ = self.dir.remove_tree(&place);
                    });
                }
                Err(error) if error.errno() == Some(nix::libc::EXDEV) => {}
                Err(error) => return Err(error),
            }
        }
        self.copy_in(tree, name, hash)?;
        tree.unlink(name)
    }

    /// Makes a file that was renamed into the pool ours alone; `false` if it is another one than `expected`, or somebody
    /// may write to it.
    fn make_ours(&self, place: &Path, expected: &Meta) -> Result<bool> {
        let held = self.dir.hold(place)?;
        let (meta, us) = (*held.meta(), Own::current());
        if meta.kind != FileKind::File || meta.ino != expected.ino || meta.nlink != 1 {
            return Ok(false);
        }
        if meta.uid == us.uid {
            return Ok(true);
        }
        // First the rights, so that nobody can open it for writing any more; then the question whether somebody has.
        held.set_owner(us.uid, us.gid)?;
        held.set_mode(0o600)?;
        let (file, now) = self.dir.open_examined(place)?;
        let is_untouched = (now.ino, now.size, now.mtime) == (expected.ino, expected.size, expected.mtime);
        Ok(is_untouched && now.nlink == 1 && has_no_writer(&file))
    }

    fn copy_in(&self, from: &Dir, name: &Path, hash: &Hash) -> Result<()> {
        let (mut file, meta) = from.open_examined(name)?;
        let temp = self.temp_name();
        let mut out = self.dir.create_file(&temp, 0o600)?;
        let mut copy = || -> Result<()> {
            let (copied, _) = Hash::copying(&mut (&mut file).take(meta.size.saturating_add(1)), &mut out)
                .context(|| format!("cannot copy content {hash}"))?;
            if copied != *hash {
                let path = from.path().join(name);
                return Err(Error::failed(format!("{} changed while it was moved to the store", path.display())));
            }
            self.dir.rename(&temp, &self.dir, &hex_path(hash))
        };
        copy().inspect_err(|_| {
            let _ = self.dir.unlink(&temp);
        })
    }

    /// All contents of the pool, sorted.
    ///
    /// # Errors
    /// If the pool cannot be read.
    pub fn list(&self) -> Result<Vec<Hash>> {
        let mut hashes: Vec<Hash> =
            self.dir.names()?.iter().filter_map(|name| name.to_str()).filter_map(|name| name.parse().ok()).collect();
        hashes.sort();
        Ok(hashes)
    }

    /// Removes every content that is not in `needed`, and what a crash left; returns how many went.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn sweep(&self, needed: &HashSet<Hash>) -> Result<usize> {
        let mut removed = 0;
        for name in self.dir.names()? {
            let keep =
                name.to_str().and_then(|name| name.parse::<Hash>().ok()).is_some_and(|hash| needed.contains(&hash));
            if !keep {
                self.dir.remove_tree(Path::new(&name))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn temp_name(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        PathBuf::from(format!("{TEMP_PREFIX}{}-{number}", std::process::id()))
    }
}

/// A tree that holds contents too, at known paths. It may have been written to, so what comes from it is always verified.
#[derive(Debug, Clone)]
pub struct Held<'a> {
    dir: &'a Dir,
    manifest: Manifest,
    /// Where each content is; made when one is asked for that is not where it is expected.
    paths: OnceLock<HashMap<Hash, (TreePath, u64)>>,
}

impl<'a> Held<'a> {
    /// The contents that `manifest` says are in `dir`.
    #[must_use]
    pub fn new(dir: &'a Dir, manifest: &Manifest) -> Self {
        Self { dir, manifest: manifest.clone(), paths: OnceLock::new() }
    }

    /// Where a content is, if it is at this path.
    fn at(&self, hash: &Hash, path: &TreePath) -> Option<(&TreePath, u64)> {
        let entry = self.manifest.get(path).filter(|entry| entry.hash() == Some(*hash))?;
        Some((&entry.path, entry.size()))
    }

    /// Where a content is.
    fn find(&self, hash: &Hash) -> Option<(&TreePath, u64)> {
        let paths = self.paths.get_or_init(|| {
            let files = self.manifest.entries();
            files.filter_map(|entry| Some((entry.hash()?, (entry.path.clone(), entry.size())))).collect()
        });
        paths.get(hash).map(|(path, size)| (path, *size))
    }

    /// Copies a content out of the tree; `false` if it is not there any more.
    fn copy(&self, (path, size): (&TreePath, u64), out: &mut File, hash: &Hash) -> Result<bool> {
        let Ok((mut file, meta)) = self.dir.open_examined(path.as_path()) else { return Ok(false) };
        if meta.size != size {
            return Ok(false);
        }
        let is_copied = copy_verified(&mut file, size, out, hash)?;
        if !is_copied {
            rewind(out)?;
        }
        Ok(is_copied)
    }

    /// Reads a content into `bytes`; `false` if it is not there any more.
    fn read(&self, (path, size): (&TreePath, u64), hash: &Hash, bytes: &mut Vec<u8>) -> Result<bool> {
        let Ok((file, meta)) = self.dir.open_examined(path.as_path()) else { return Ok(false) };
        Ok(meta.size == size && read_verified(file, size, hash, bytes)?)
    }

    fn has(&self, (path, _): (&TreePath, u64)) -> Result<bool> {
        Ok(self.dir.stat(path.as_path())?.is_some_and(|meta| meta.kind == FileKind::File))
    }
}

/// A place that can write a content out, asked when neither the store nor a tree has it.
pub trait Origin: Sync + std::fmt::Debug {
    /// Whether the content is known here.
    fn knows(&self, hash: &Hash) -> bool;

    /// Writes the content to `out`; `false` if it is not known here. The caller verifies it.
    ///
    /// # Errors
    /// If the place itself fails.
    fn write(&self, hash: &Hash, out: &mut File) -> Result<bool>;

    /// As [`Origin::write`], for the content of an entry, which may name where it is.
    ///
    /// # Errors
    /// If the place itself fails.
    fn write_of(&self, entry: &Entry, out: &mut File) -> Result<bool>;
}

/// Where contents come from: the store first, then trees that hold them, then an origin.
#[derive(Debug)]
pub struct Supply<'a> {
    store: &'a Store,
    held: Vec<Held<'a>>,
    /// What may be renamed out of the store: contents that are at the same path in this tree too.
    takeable: Manifest,
    /// What may not, because several files need it.
    kept: HashSet<Hash>,
    origin: Option<&'a dyn Origin>,
}

impl<'a> Supply<'a> {
    /// A supply from the store and from trees.
    #[must_use]
    pub fn new(store: &'a Store, held: Vec<Held<'a>>) -> Self {
        Self { store, held, takeable: Manifest::default(), kept: HashSet::new(), origin: None }
    }

    /// Allows the contents that this tree has at the same path to be renamed out of the store instead of copied.
    #[must_use]
    pub fn taking(mut self, takeable: &Manifest) -> Self {
        self.takeable = takeable.clone();
        self
    }

    /// Adds a last resort.
    #[must_use]
    pub fn with_origin(mut self, origin: &'a dyn Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// A supply from one more tree too; nothing is renamed out of the store.
    #[must_use]
    pub fn also(&self, held: Option<Held<'a>>) -> Self {
        let held = self.held.iter().cloned().chain(held).collect();
        Self { store: self.store, held, takeable: Manifest::default(), kept: HashSet::new(), origin: self.origin }
    }

    /// Contents that must not be renamed out after all, because several files need them.
    pub fn keep(&mut self, hashes: impl IntoIterator<Item = Hash>) {
        self.kept.extend(hashes);
    }

    /// Whether the content of a file can be had (by name; it is verified when it is used).
    ///
    /// # Errors
    /// If the store cannot be examined.
    pub fn has(&self, entry: &Entry) -> Result<bool> {
        let Some(hash) = entry.hash() else { return Ok(true) };
        if self.store.contains(&hash)? {
            return Ok(true);
        }
        for held in &self.held {
            if let Some(found) = held.at(&hash, &entry.path)
                && held.has(found)?
            {
                return Ok(true);
            }
        }
        self.has_content(&hash)
    }

    /// Whether a content can be had, wherever it is.
    ///
    /// # Errors
    /// If the store cannot be examined.
    pub fn has_content(&self, hash: &Hash) -> Result<bool> {
        if self.store.contains(hash)? {
            return Ok(true);
        }
        for held in &self.held {
            if let Some(found) = held.find(hash)
                && held.has(found)?
            {
                return Ok(true);
            }
        }
        Ok(self.origin.is_some_and(|origin| origin.knows(hash)))
    }

    /// Puts the content of `entry` into `parent` under the free name `temp`: renamed from the store where allowed, else
    /// copied and verified. What was put is ours, of mode 0600, and held: whatever stands at `temp` later.
    ///
    /// # Errors
    /// If no source has the content undamaged, or writing fails.
    pub fn put(&self, entry: &Entry, parent: &Dir, temp: &Path) -> Result<Hold> {
        let hash = entry.hash().ok_or_else(|| Error::bug("only files have contents"))?;
        let is_takeable = self.takeable.get(&entry.path).is_some_and(|other| other.hash() == Some(hash));
        if is_takeable
            && !self.kept.contains(&hash)
            && let Some((mut file, meta)) = self.store.get_examined(&hash)?
            // With another owner or a second name, others could write to what is about to be verified.
            && meta.uid == Own::current().uid && meta.nlink == 1
        {
            let (found, _) = Hash::reading(&mut file).context(|| format!("cannot read content {hash}"))?;
            if found != hash {
                return Err(damaged(&hash));
            }
            match self.store.dir.rename(&hex_path(&hash), parent, temp) {
                Err(error) if error.errno() == Some(nix::libc::EXDEV) => {}
                other => return other.and_then(|()| parent.hold_open(temp, file)),
            }
        }
        let mut out = parent.create_file(temp, 0o600)?;
        let copied = self.copy_of(&hash, Some(entry), &mut out);
        if copied.is_err() {
            let _ = parent.unlink(temp);
        }
        copied.map_err(|error| error.hint(format!("it was needed for {}", entry.path)))?;
        parent.hold_open(temp, out)
    }

    /// The content of a small file as bytes, verified.
    ///
    /// # Errors
    /// If no source has it undamaged.
    pub fn bytes_of(&self, entry: &Entry) -> Result<Vec<u8>> {
        let hash = entry.hash().ok_or_else(|| Error::bug("only files have contents"))?;
        let mut bytes = Vec::new();
        if let Some((file, meta)) = self.store.get_examined(&hash)?
            && read_verified(file, meta.size, &hash, &mut bytes)?
        {
            return Ok(bytes);
        }
        for held in &self.held {
            if let Some(found) = held.at(&hash, &entry.path)
                && held.read(found, &hash, &mut bytes)?
            {
                return Ok(bytes);
            }
        }
        self.bytes_through_file(&hash, Some(entry))
    }

    /// A small content as bytes, verified.
    ///
    /// # Errors
    /// If no source has it undamaged.
    pub fn bytes(&self, hash: &Hash) -> Result<Vec<u8>> {
        self.bytes_through_file(hash, None)
    }

    fn bytes_through_file(&self, hash: &Hash, entry: Option<&Entry>) -> Result<Vec<u8>> {
        let temp = self.store.temp_name();
        let mut file = self.store.dir.create_file(&temp, 0o600)?;
        self.store.dir.unlink(&temp)?;
        self.copy_of(hash, entry, &mut file)?;
        rewind_to_read(&mut file)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context(|| format!("cannot read content {hash}"))?;
        Ok(bytes)
    }

    /// Copies a content to `out`, verified.
    ///
    /// # Errors
    /// If no source has it undamaged, or writing fails.
    pub fn copy(&self, hash: &Hash, out: &mut File) -> Result<()> {
        self.copy_of(hash, None, out)
    }

    /// Copies a content to `out`, verified; that of an entry is first looked for where the entry says.
    fn copy_of(&self, hash: &Hash, entry: Option<&Entry>, out: &mut File) -> Result<()> {
        let mut is_damaged = false;
        if let Some((mut file, meta)) = self.store.get_examined(hash)? {
            if copy_verified(&mut file, meta.size, out, hash)? {
                return Ok(());
            }
            is_damaged = true;
            rewind(out)?;
        }
        if let Some(entry) = entry {
            for held in &self.held {
                if let Some(found) = held.at(hash, &entry.path)
                    && held.copy(found, out, hash)?
                {
                    return Ok(());
                }
            }
            if self.ask_origin(hash, out, |origin, out| origin.write_of(entry, out))? {
                return Ok(());
            }
        }
        for held in &self.held {
            if let Some(found) = held.find(hash)
                && held.copy(found, out, hash)?
            {
                return Ok(());
            }
        }
        if self.ask_origin(hash, out, |origin, out| origin.write(hash, out))? {
            return Ok(());
        }
        if is_damaged {
            return Err(damaged(hash));
        }
        Err(Error::failed(format!("content {hash} is in no tree and not in the store"))
            .hint("mc_project verify NAME tells which releases are complete"))
    }

    fn ask_origin(
        &self,
        hash: &Hash,
        out: &mut File,
        write: impl Fn(&dyn Origin, &mut File) -> Result<bool>,
    ) -> Result<bool> {
        let Some(origin) = self.origin else { return Ok(false) };
        if write(origin, out)? {
            rewind_to_read(out)?;
            let (found, _) = Hash::reading(out).context(|| format!("cannot verify content {hash}"))?;
            if found == *hash {
                return Ok(true);
            }
        }
        rewind(out)?;
        Ok(false)
    }
}

/// Copies at most `size` bytes and compares the digest; reflinks large files where the file system can.
fn copy_verified(from: &mut File, size: u64, to: &mut File, hash: &Hash) -> Result<bool> {
    let doing = || format!("cannot copy content {hash}");
    if size >= 1024 * 1024 && share_contents(from, to) {
        // The copy is what counts: the original may be written to meanwhile.
        rewind_to_read(to)?;
        let (found, _) = Hash::reading(to).context(doing)?;
        return Ok(found == *hash);
    }
    let (found, _) = Hash::copying(&mut from.take(size.saturating_add(1)), to).context(doing)?;
    Ok(found == *hash)
}

/// Reads at most `size` bytes into `bytes`, in place of what was there, and compares the digest.
fn read_verified(from: File, size: u64, hash: &Hash, bytes: &mut Vec<u8>) -> Result<bool> {
    bytes.clear();
    from.take(size.saturating_add(1)).read_to_end(bytes).context(|| format!("cannot read content {hash}"))?;
    Ok(Hash::of(bytes) == *hash)
}

fn hex_path(hash: &Hash) -> PathBuf {
    PathBuf::from(hash.hex())
}

fn rewind(file: &mut File) -> Result<()> {
    use std::io::Seek;
    file.rewind().and_then(|()| file.set_len(0)).context(|| "cannot start a copy again".to_string())
}

fn rewind_to_read(file: &mut File) -> Result<()> {
    use std::io::Seek;
    file.rewind().context(|| "cannot read a copy again".to_string())
}

fn damaged(hash: &Hash) -> Error {
    Error::failed(format!("content {hash} in the store is damaged"))
        .hint("mc_project verify NAME lists what is affected; another release can still be rolled back to")
}
