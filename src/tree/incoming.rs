//! A deliverable on its way from another node: what is known of it before its archive is here, and how it comes to stand
//! in `releases/`.
//!
//! Its statement and manifest are checked before a byte of the archive is asked for. The archive grows in
//! `<name>.tar.zst.part`, which outlives a lost connection and our death; it gets its name when its digest is the signed
//! one, and the statement is written last: what has no statement does not exist.

use std::path::PathBuf;

use super::deliverable::{Deliverable, LARGEST_MANIFEST, Limits, Statement};
use super::manifest::Manifest;
use crate::sys::error::{Error, Result};
use crate::sys::fs::{self, File};
use crate::sys::keys::TrustedKeys;
use crate::sys::size;

/// The longest line of a manifest: a path of 4096 bytes, each escaped, and what stands before it.
const LONGEST_LINE: u64 = 16 * 1024;

/// The statement of a deliverable, checked: signed, of the right project and commit, within the limits.
#[derive(Debug, Clone)]
pub struct Announced {
    /// Where it will stand.
    pub deliverable: Deliverable,
    /// What was signed.
    pub statement: Statement,
    json: Vec<u8>,
    signature: Vec<u8>,
}

impl Announced {
    /// Checks a statement that came from elsewhere.
    ///
    /// # Errors
    /// If no trusted key signed it, it is of another deliverable, or what it announces passes a limit.
    pub fn check(
        deliverable: Deliverable,
        json: Vec<u8>,
        signature: Vec<u8>,
        keys: &TrustedKeys,
        limits: Limits,
    ) -> Result<Self> {
        let statement = deliverable.verify_statement(&json, &signature, keys)?;
        let (entries, bytes, packed) = (statement.entries, statement.bytes, statement.size);
        if entries > limits.entries || bytes > limits.bytes || packed > limits.bytes {
            return Err(Error::refused(format!(
                "{} announces {entries} entries, {} unpacked and {} packed; the limits are {} and {}",
                deliverable.name(),
                size::words(bytes),
                size::words(packed),
                limits.entries,
                size::words(limits.bytes)
            ))
            .hint("`limits:` in node.yaml says how much a version may hold"));
        }
        Ok(Self { deliverable, statement, json, signature })
    }

    /// The most bytes that its manifest can have.
    #[must_use]
    pub fn largest_manifest(&self) -> u64 {
        (self.statement.entries as u64).saturating_add(2).saturating_mul(LONGEST_LINE).min(LARGEST_MANIFEST)
    }

    /// With its manifest, checked against the statement.
    ///
    /// # Errors
    /// If it is another one, or holds what deliverables may not.
    pub fn with_manifest(self, text: Vec<u8>) -> Result<Incoming> {
        let manifest = self.deliverable.verify_manifest(&self.statement, &text)?;
        if (manifest.len(), manifest.bytes()) != (self.statement.entries, self.statement.bytes) {
            return Err(Error::refused(format!(
                "the manifest of {} has other sizes than were signed",
                self.deliverable.name()
            )));
        }
        Ok(Incoming { announced: self, text, manifest })
    }
}

/// A deliverable of which everything but the archive is here.
#[derive(Debug, Clone)]
pub struct Incoming {
    announced: Announced,
    text: Vec<u8>,
    /// What it unpacks to.
    pub manifest: Manifest,
}

impl Incoming {
    /// Where it will stand.
    #[must_use]
    pub fn deliverable(&self) -> &Deliverable {
        &self.announced.deliverable
    }

    /// What was signed.
    #[must_use]
    pub fn statement(&self) -> &Statement {
        &self.announced.statement
    }

    /// The file in which the archive grows.
    #[must_use]
    pub fn part(&self) -> PathBuf {
        self.deliverable().file("tar.zst.part")
    }

    /// How much of the archive is here. More than there can be is of another one, and goes.
    ///
    /// # Errors
    /// If the file cannot be examined.
    pub fn held(&self) -> Result<u64> {
        let held = fs::size_of(&self.part())?;
        if held > self.statement().size {
            self.forget()?;
            return Ok(0);
        }
        Ok(held)
    }

    /// Opens the file to append what comes.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self) -> Result<File> {
        fs::open_append(&self.part(), 0o640)
    }

    /// Drops what has come of the archive.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn forget(&self) -> Result<()> {
        fs::remove_file(&self.part())
    }

    /// Whether the archive is here, whole and the signed one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn is_whole(&self) -> Result<bool> {
        let statement = self.statement();
        Ok(self.held()? == statement.size && fs::digest(&self.part())?.to_hex().as_str() == statement.archive)
    }

    /// Puts it in its place, durably, the statement last. The archive is whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn settle(&self) -> Result<&Deliverable> {
        let found = self.deliverable();
        fs::remove_file(&found.file("json"))?;
        fs::rename_durable(&self.part(), &found.file("tar.zst"))?;
        fs::write_durable(&found.file("manifest"), &self.text, 0o640)?;
        fs::write_durable(&found.file("sig"), &self.announced.signature, 0o640)?;
        fs::write_durable(&found.file("json"), &self.announced.json, 0o640)?;
        Ok(found)
    }
}
