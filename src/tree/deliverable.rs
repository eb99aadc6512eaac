//! Deliverables: a release packed as files in `releases/`, the same bytes for the same tree.
//!
//! `<project>-<commit>.tar.zst` holds the tree at the end of the build, `.manifest` its manifest, `.json` the statement
//! (project, commit, digests, provenance) and `.sig` the ed25519 signature over the statement's bytes. Unpacking writes
//! nothing by name and understands nothing by itself: an archive must be byte for byte what is written for its manifest, and
//! each content goes into the store under its digest.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use super::archive::{self, Archive, OnContent};
use super::hash::Hash;
use super::manifest::{Entry, Manifest};
use super::release::Provenance;
use super::store::{Store, Supply};
use crate::project::ids::{ObjectId, ProjectName};
use crate::sys::error::{Context, Error, Result};
use crate::sys::fs;
use crate::sys::keys::{ReleaseKey, TrustedKeys};

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Format of deliverables.
    pub format: u32,
    /// The project.
    pub project: ProjectName,
    /// The commit.
    pub commit: ObjectId,
    /// The commit's time, seconds since the epoch; every file carries it.
    pub commit_time: i64,
    /// The digest of content and structure ([`Manifest::tree_digest`]).
    pub tree: String,
    /// blake3 of the manifest file.
    pub manifest: String,
    /// blake3 of the archive file.
    pub archive: String,
    /// Size of the archive file in bytes.
    pub size: u64,
    /// Number of entries.
    pub entries: usize,
    /// Sum of the sizes of the files.
    pub bytes: u64,
    /// Where it came from; `None` where an older version packed it.
    #[serde(default)]
    pub provenance: Option<Provenance>,
}

/// Limits on what a deliverable may unpack to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Number of entries.
    pub entries: usize,
    /// Sum of the sizes of all files.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 64 << 30 }
    }
}

const FORMAT: u32 = 1;
/// The largest statement that is read.
pub const LARGEST_STATEMENT: u64 = 1 << 20;
/// The largest signature that is read.
pub const LARGEST_SIGNATURE: u64 = 4096;
/// The largest manifest that is read.
pub const LARGEST_MANIFEST: u64 = 512 << 20;
/// A deliverable in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deliverable {
    dir: PathBuf,
    base: String,
}

impl Deliverable {
    /// The deliverable of this commit in this directory; it need not exist.
    #[must_use]
    pub fn new(dir: &Path, project: &ProjectName, commit: &ObjectId) -> Self {
        Self { dir: dir.to_path_buf(), base: format!("{project}-{commit}") }
    }

    /// All deliverables of a project in a directory, sorted by name.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(dir: &Path, project: &ProjectName) -> Result<Vec<Self>> {
        let prefix = format!("{project}-");
        let names = fs::names(dir)?;
        let bases = names
            .iter()
            .filter_map(|name| name.strip_suffix(".json"))
            .filter(|base| base.strip_prefix(&prefix).is_some_and(|commit| commit.parse::<ObjectId>().is_ok()));
        Ok(bases.map(|base| Self { dir: dir.to_path_buf(), base: base.to_string() }).collect())
    }

    /// Name without endings: `<project>-<commit>`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.base
    }

    /// Whether it exists (its statement does).
    #[must_use]
    pub fn exists(&self) -> bool {
        fs::exists(&self.file("json"))
    }

    /// One of its files by ending: `tar.zst`, `manifest`, `json`, `sig`.
    #[must_use]
    pub fn file(&self, ending: &str) -> PathBuf {
        self.dir.join(format!("{}.{ending}", self.base))
    }

    /// Packs a tree, signs it and puts it in place, the statement last: what has no statement does not exist.
    ///
    /// # Errors
    /// If a content cannot be had, a secret's value is found in one, or writing fails.
    pub fn pack(
        &self,
        project: &ProjectName,
        commit: (&ObjectId, i64),
        tree: &Manifest,
        supply: &Supply<'_>,
        packing: &Packing<'_>,
    ) -> Result<Statement> {
        let mut manifest = tree.without_privileges();
        manifest.set_times(commit.1.saturating_mul(1_000_000_000));
        let text = manifest.to_text();
        let archive = self.file("tar.zst.new");
        fs::remove_file(&archive)?;
        let written = archive::write(&archive, &manifest, supply, packing.secrets).inspect_err(|_| {
            let _ = fs::remove_file(&archive);
        })?;
        let statement = Statement {
            format: FORMAT,
            project: project.clone(),
            commit: commit.0.clone(),
            commit_time: commit.1,
            tree: manifest.tree_digest().hex(),
            manifest: Hash::of(text.as_bytes()).hex(),
            archive: written.0.hex(),
            size: written.1,
            entries: manifest.len(),
            bytes: manifest.bytes(),
            provenance: packing.provenance.cloned(),
        };
        let json = serde_json::to_vec_pretty(&statement).context(|| "cannot write a statement".to_string())?;
        // One that is there already is taken apart first, so that no statement ever stands beside another's archive.
        fs::remove_file(&self.file("json"))?;
        fs::rename_durable(&archive, &self.file("tar.zst"))?;
        fs::write_durable(&self.file("manifest"), text.as_bytes(), 0o640)?;
        fs::write_durable(&self.file("sig"), format!("{}\n", packing.key.sign(&json)).as_bytes(), 0o640)?;
        fs::write_durable(&self.file("json"), &json, 0o640)?;
        Ok(statement)
    }

    /// Checks signature, digests and manifest, without unpacking.
    ///
    /// # Errors
    /// If anything does not fit; the message says what.
    pub fn verify(&self, keys: &TrustedKeys) -> Result<(Statement, Manifest)> {
        let (json, signature) = (self.read("json", LARGEST_STATEMENT)?, self.read("sig", LARGEST_SIGNATURE)?);
        let statement = self.verify_statement(&json, &signature, keys)?;
        let manifest = self.verify_manifest(&statement, &self.read("manifest", LARGEST_MANIFEST)?)?;
        Ok((statement, manifest))
    }

    /// Checks a statement with its signature, wherever they are.
    ///
    /// # Errors
    /// If no trusted key signed it, or it is that of another deliverable.
    pub fn verify_statement(&self, json: &[u8], signature: &[u8], keys: &TrustedKeys) -> Result<Statement> {
        keys.verify(json, String::from_utf8_lossy(signature).trim()).map_err(|e| self.refused("signature", &e))?;
        let statement: Statement =
            serde_json::from_slice(json).context(|| format!("cannot understand {}", self.base))?;
        if statement.format != FORMAT {
            return Err(Error::refused(format!(
                "{} has format {}, this version knows {FORMAT}",
                self.base, statement.format
            )));
        }
        if self.base != format!("{}-{}", statement.project, statement.commit) {
            return Err(Error::refused(format!(
                "{} is signed as that of {} {}",
                self.base, statement.project, statement.commit
            )));
        }
        Ok(statement)
    }

    /// Checks a manifest against the statement, wherever it is.
    ///
    /// # Errors
    /// If it is another one, or holds what deliverables may not.
    pub fn verify_manifest(&self, statement: &Statement, text: &[u8]) -> Result<Manifest> {
        if Hash::of(text).hex() != statement.manifest {
            return Err(Error::refused(format!("the manifest of {} is not the one that was signed", self.base)));
        }
        let manifest = Manifest::from_text(&String::from_utf8_lossy(text))?;
        if !manifest.has_digest(&statement.tree) {
            return Err(Error::refused(format!("the tree digest of {} is not the one that was signed", self.base)));
        }
        if let Some(entry) = manifest.entries().find(|entry| entry.has_privileges()) {
            return Err(Error::refused(format!(
                "`{}` in {} has an owner, setuid, setgid or an attribute that is a privilege",
                entry.path, self.base
            ))
            .hint("deliverables carry none of these: mc_project release pack NAME"));
        }
        Ok(manifest)
    }

    /// Unpacks into the store every content that `wants` asks for; the archive's own digest and each content's are checked.
    ///
    /// # Errors
    /// If the archive is damaged, holds what the manifest does not list, or passes a limit. What was taken into the store
    /// by then is swept later.
    pub fn unpack(
        &self,
        statement: &Statement,
        manifest: &Manifest,
        store: &Store,
        limits: Limits,
        wants: &(dyn Fn(&Hash) -> Result<bool> + Sync),
    ) -> Result<usize> {
        self.check_limits(manifest, limits)?;
        let taken = AtomicUsize::new(0);
        self.read_archive(statement, manifest, &|entry, content| {
            let Some(hash) = entry.hash() else { return Ok(()) };
            // What is here already is not written again, but an archive that lies about it is refused all the same.
            if !wants(&hash)? || store.contains(&hash)? {
                return same_content(entry, content);
            }
            let is_new = store.add_expected(content, &hash)?.ok_or_else(|| differs(entry))?;
            taken.fetch_add(usize::from(is_new), Ordering::Relaxed);
            Ok(())
        })?;
        Ok(taken.into_inner())
    }

    /// Reads the whole archive and compares every content, taking nothing.
    ///
    /// # Errors
    /// As [`Deliverable::unpack`].
    pub fn check_archive(&self, statement: &Statement, manifest: &Manifest) -> Result<()> {
        self.check_limits(manifest, Limits::default())?;
        self.read_archive(statement, manifest, &same_content)
    }

    fn read_archive(&self, statement: &Statement, manifest: &Manifest, on_content: &OnContent<'_>) -> Result<()> {
        let mut archive = Archive::open(&self.file("tar.zst"), statement.size)?;
        let read = archive.read(manifest, on_content);
        // An archive that is not the signed one explains every other fault that was found in it.
        let (digest, size) = archive.finish().context(|| format!("cannot read {}", self.base))?;
        if digest.to_hex().as_str() != statement.archive || size != statement.size {
            return Err(Error::refused(format!("the archive of {} is not the one that was signed", self.base)));
        }
        read.map_err(|e| self.refused("archive", &e))
    }

    fn check_limits(&self, manifest: &Manifest, limits: Limits) -> Result<()> {
        if manifest.len() > limits.entries || manifest.bytes() > limits.bytes {
            return Err(Error::refused(format!(
                "{} unpacks to {} entries and {} bytes, the limits are {} and {}",
                self.base,
                manifest.len(),
                manifest.bytes(),
                limits.entries,
                limits.bytes
            )));
        }
        Ok(())
    }

    /// Removes all its files, the statement first.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn remove(&self) -> Result<()> {
        for ending in ["json", "sig", "manifest", "tar.zst", "tar.zst.new", "tar.zst.part"] {
            fs::remove_file(&self.file(ending))?;
        }
        Ok(())
    }

    fn read(&self, ending: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.file(ending);
        fs::read_bounded(&path, limit)?.ok_or_else(|| Error::refused(format!("{} is missing", path.display())))
    }

    fn refused(&self, what: &str, error: &Error) -> Error {
        let refused = Error::refused(format!("the {what} of {} is refused: {}", self.base, error.one_line()));
        match error.hint_text() {
            Some(hint) => refused.hint(hint),
            None => refused,
        }
    }
}

/// What packing needs beside the tree.
#[derive(Debug)]
pub struct Packing<'a> {
    /// Signs the statement.
    pub key: &'a ReleaseKey,
    /// Values that must not be in any file: (name in the configuration, value).
    pub secrets: &'a [(String, String)],
    /// Where the release came from.
    pub provenance: Option<&'a Provenance>,
}

/// Whether a content that was read is the one of its entry.
fn same_content(entry: &Entry, content: &mut dyn Read) -> Result<()> {
    let (found, count) = Hash::reading(content).context(|| format!("cannot read `{}`", entry.path))?;
    if (Some(found), count) == (entry.hash(), entry.size()) {
        return Ok(());
    }
    Err(differs(entry))
}

fn differs(entry: &Entry) -> Error {
    Error::refused(format!("the content of `{}` is not what the manifest says", entry.path))
}
