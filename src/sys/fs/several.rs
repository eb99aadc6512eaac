//! Several files that are replaced in a row, at the price of one.
//!
//! A sync makes a file system write down everything that was begun before, so what costs is not the number of files but how
//! often writing and syncing take turns. Here everything is written first, then synced, then renamed, and each directory is
//! synced once. Each file alone is old or new after a crash, never a part; of several some may be new and others old, and
//! those that were added later are never newer than one before.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{File, beside, create_whole, fault, parent_of, start_writing, sync, sync_dir};
use crate::sys::error::{Context, Result};

/// Files that are written and not yet renamed; dropped before that, nothing of them is left.
#[derive(Debug, Default)]
pub struct Several {
    files: Vec<Written>,
    dirs: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Written {
    file: File,
    temp: PathBuf,
    path: PathBuf,
    is_renamed: bool,
}

impl Several {
    /// Writes one more file beside the one that it will replace.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
        let (dir, temp) = beside(path)?;
        let file = create_whole(&temp, bytes, mode)?;
        self.files.push(Written { file, temp, path: path.to_path_buf(), is_renamed: false });
        self.dirs.insert(dir);
        Ok(())
    }

    /// As [`Self::add`], written at `lock`, which must not be there and keeps others away as long as it is. Its mode is what the
    /// umask leaves.
    ///
    /// # Errors
    /// If the lock stands there already, or it cannot be written.
    pub fn add_locked(&mut self, path: &Path, lock: PathBuf, bytes: &[u8]) -> Result<()> {
        let dir = parent_of(path)?;
        super::ensure_dir(dir, 0o777)?;
        let mut file = super::create_new(&lock, 0o666)?;
        let written = file.write_all(bytes).context(|| format!("cannot write {}", lock.display()));
        self.files.push(Written { file, temp: lock, path: path.to_path_buf(), is_renamed: false });
        self.dirs.insert(dir.to_path_buf());
        written
    }

    /// Makes the names in one more directory durable with the others.
    pub fn add_dir(&mut self, path: &Path) {
        self.dirs.insert(path.to_path_buf());
    }

    /// Replaces them durably, in the order in which they were added.
    ///
    /// # Errors
    /// If one cannot be synced or renamed; a failed sync is final.
    pub fn replace(mut self) -> Result<()> {
        self.sync()?;
        fault::point("durable.written")?;
        self.rename()?;
        fault::point("durable.renamed")?;
        self.dirs.iter().try_for_each(|dir| sync_dir(dir))
    }

    /// Replaces them; a power cut may bring old ones back, whole, until the directories are synced.
    ///
    /// # Errors
    /// As [`Self::replace`].
    pub fn replace_soon(mut self) -> Result<()> {
        self.sync()?;
        fault::point("durable.written")?;
        self.rename()?;
        fault::point("durable.renamed")
    }

    /// Replaces them; a power cut may leave anything.
    ///
    /// # Errors
    /// If one cannot be renamed.
    pub fn replace_lossy(mut self) -> Result<()> {
        self.rename()
    }

    fn sync(&self) -> Result<()> {
        for written in &self.files {
            start_writing(written.file.as_fd());
        }
        for written in &self.files {
            sync::whole(&written.file).context(|| format!("cannot sync {}", written.temp.display()))?;
        }
        Ok(())
    }

    fn rename(&mut self) -> Result<()> {
        for written in &mut self.files {
            let (temp, path) = (&written.temp, &written.path);
            fs::rename(temp, path).context(|| format!("cannot rename {} to {}", temp.display(), path.display()))?;
            written.is_renamed = true;
        }
        Ok(())
    }
}

impl Drop for Several {
    fn drop(&mut self) {
        for written in self.files.iter().filter(|written| !written.is_renamed) {
            let _ = fs::remove_file(&written.temp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::names;
    use super::*;

    #[test]
    fn all_are_replaced_and_nothing_is_left_of_those_that_were_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "old").unwrap();
        let mut several = Several::default();
        several.add(&at("a"), b"new", 0o600).unwrap();
        several.add(&at("b"), b"other", 0o640).unwrap();
        assert_eq!(fs::read(at("a")).unwrap(), b"old");
        several.replace().unwrap();
        assert_eq!((fs::read(at("a")).unwrap(), fs::read(at("b")).unwrap()), (b"new".to_vec(), b"other".to_vec()));
        let mut given_up = Several::default();
        given_up.add(&at("a"), b"never", 0o600).unwrap();
        drop(given_up);
        assert_eq!(
            (fs::read(at("a")).unwrap(), names(dir.path()).unwrap()),
            (b"new".to_vec(), vec!["a".into(), "b".into()])
        );
    }
}
