//! Secrets that the node keeps: of one project below its `state/`, or of the whole node below `etc/`. Each version of each is
//! a file that only its owner reads, `NAME@VERSION`; the highest one holds.

use std::path::{Path, PathBuf};

use ring::rand::SecureRandom;

use super::site::{Node, Site};
use crate::project::secrets::SecretName;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::fs;

/// The largest secret, in bytes.
pub const MOST_BYTES: usize = 1 << 20;
/// What secrets that are made up consist of: nothing that a shell, a URL or YAML reads otherwise.
const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
/// What stands behind the name of a secret that was forgotten; in the file, the highest number of its versions.
const FORGOTTEN: &str = "@forgotten";
/// How often a version that somebody else took is tried again as the next one.
const TRIES: usize = 100;

/// A place where secrets are kept.
#[derive(Debug, Clone)]
pub struct SecretStore {
    dir: PathBuf,
}

/// A secret that is kept, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub name: SecretName,
    /// Its versions, the oldest first.
    pub versions: Vec<u64>,
}

impl SecretStore {
    /// A place of its own.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The secrets of one project.
    #[must_use]
    pub fn of_project(site: &Site) -> Self {
        Self { dir: site.place.state().join("secrets") }
    }

    /// The secrets of all projects of a node.
    #[must_use]
    pub fn of_node(node: &Node) -> Self {
        Self { dir: node.place.keys().with_file_name("secrets") }
    }

    /// What is kept, by name.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Kept>> {
        let mut found: std::collections::BTreeMap<SecretName, Vec<u64>> = std::collections::BTreeMap::new();
        for file in fs::names(&self.dir)? {
            let parsed =
                file.rsplit_once('@').and_then(|(name, version)| Some((name.parse().ok()?, version.parse().ok()?)));
            if let Some((name, version)) = parsed {
                found.entry(name).or_default().push(version);
            }
        }
        let kept = found.into_iter().map(|(name, mut versions)| {
            versions.sort_unstable();
            Kept { name, versions }
        });
        Ok(kept.collect())
    }

    /// The newest version of a secret, and its value.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn newest(&self, name: &SecretName) -> Result<Option<(u64, Vec<u8>)>> {
        let kept = self.list()?.into_iter().find(|kept| kept.name == *name);
        let Some(version) = kept.and_then(|kept| kept.versions.last().copied()) else { return Ok(None) };
        Ok(self.get(name, version)?.map(|value| (version, value)))
    }

    /// One version of a secret; `None` if it is not kept (any more).
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn get(&self, name: &SecretName, version: u64) -> Result<Option<Vec<u8>>> {
        fs::read_bounded(&self.dir.join(file_of(name, version)), MOST_BYTES as u64)
    }

    /// Keeps a value as the next version; returns its number. One that is the newest already is not kept again.
    ///
    /// # Errors
    /// If it is empty or too large, or cannot be written.
    pub fn add(&self, name: &SecretName, value: &[u8]) -> Result<u64> {
        if value.is_empty() || value.len() > MOST_BYTES {
            return Err(Error::usage("a secret has between 1 byte and 1 MiB"));
        }
        fs::ensure_dir(&self.dir, 0o700)?;
        for _ in 0..TRIES {
            let newest = self.newest(name)?;
            if let Some((version, _)) = newest.as_ref().filter(|(_, kept)| kept == value) {
                return Ok(*version);
            }
            let version = newest.map_or(0, |(version, _)| version).max(self.forgotten(name)?) + 1;
            if self.write_new(&file_of(name, version), value)? {
                return Ok(version);
            }
        }
        Err(Error::failed(format!("somebody else changes the secret {name} all the time")))
    }

    /// The newest version, made up with so many characters if there is none.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn newest_or_made(&self, name: &SecretName, length: usize) -> Result<(u64, Vec<u8>)> {
        if let Some(found) = self.newest(name)? {
            return Ok(found);
        }
        fs::ensure_dir(&self.dir, 0o700)?;
        let version = self.forgotten(name)? + 1;
        self.write_new(&file_of(name, version), made_up(length)?.as_bytes())?;
        self.newest(name)?.ok_or_else(|| Error::failed(format!("the secret {name} was removed while it was made")))
    }

    /// Removes a version.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, name: &SecretName, version: u64) -> Result<()> {
        fs::remove_file(&self.dir.join(file_of(name, version)))
    }

    /// Forgets a secret with all its versions; their numbers are not used again.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn forget(&self, kept: &Kept) -> Result<()> {
        let newest = kept.versions.last().copied().unwrap_or(0).max(self.forgotten(&kept.name)?);
        fs::write_durable(&self.dir.join(format!("{}{FORGOTTEN}", kept.name)), newest.to_string().as_bytes(), 0o600)?;
        kept.versions.iter().try_for_each(|version| self.remove(&kept.name, *version))
    }

    /// The highest number that a version of a forgotten secret had.
    fn forgotten(&self, name: &SecretName) -> Result<u64> {
        let text = fs::read_if_there(&self.dir.join(format!("{name}{FORGOTTEN}")))?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&text).trim().parse().unwrap_or(0))
    }

    /// Removes what was never renamed to its name.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_temporary_files(&self) -> Result<()> {
        for name in fs::names(&self.dir)?.iter().filter(|name| name.starts_with('.')) {
            fs::remove_file(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// Writes a file that is not there yet, whole and durable; whether nobody else was first.
    fn write_new(&self, file: &str, value: &[u8]) -> Result<bool> {
        let temporary = format!(".{}", uuid::Uuid::now_v7());
        fs::write_durable(&self.dir.join(&temporary), value, 0o600)?;
        let dir = Dir::open(&self.dir)?;
        let is_first = dir.rename_new(Path::new(&temporary), &dir, Path::new(file)).is_ok();
        if is_first {
            dir.sync()?;
        } else {
            fs::remove_file(&self.dir.join(&temporary))?;
        }
        Ok(is_first)
    }
}

fn file_of(name: &SecretName, version: u64) -> String {
    format!("{name}@{version}")
}

/// A text without a pattern, of so many characters.
///
/// # Errors
/// If the system gives no random numbers.
pub fn made_up(length: usize) -> Result<String> {
    let mut bytes = vec![0; length];
    let random = ring::rand::SystemRandom::new();
    random
        .fill(&mut bytes)
        .map_err(|_| std::io::Error::other("no random numbers"))
        .context(|| "cannot make up a secret".to_string())?;
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte & 63)])).collect())
}
