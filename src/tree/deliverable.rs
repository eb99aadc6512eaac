//! Deliverables: a release packed as files in `releases/`, the same bytes for the same tree.
//!
//! `<project>-<commit>.tar.zst` holds the tree at the end of the build, `.manifest` its manifest, `.json` the statement
//! (project, commit, digests, provenance) and `.sig` the ed25519 signature over the statement's bytes. Unpacking writes
//! nothing by name and understands nothing by itself: an archive must be byte for byte what is written for its manifest, and
//! each content goes into the store under its digest.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hash::Hash;
use super::manifest::{Content, Entry, Manifest};
use super::release::Provenance;
use super::store::{Store, Supply};
use crate::project::ids::{ObjectId, ProjectName};
use crate::sys::error::{Context, Error, Result};
use crate::sys::fs::{self, File};
use crate::sys::keys::{ReleaseKey, TrustedKeys};
use crate::sys::sync;

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
/// zstd level: 3 packs package trees to a fifth at little cost.
const LEVEL: i32 = 3;

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
        let written = write_archive(&archive, &manifest, supply, packing).inspect_err(|_| {
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
        let mut files = fs::Several::default();
        files.add(&self.file("manifest"), text.as_bytes(), 0o640)?;
        files.add(&self.file("sig"), format!("{}\n", packing.key.sign(&json)).as_bytes(), 0o640)?;
        // The last one: where a statement stands, everything that it tells of does.
        files.add(&self.file("json"), &json, 0o640)?;
        files.replace()?;
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
        wants: &dyn Fn(&Hash) -> Result<bool>,
    ) -> Result<usize> {
        self.check_limits(manifest, limits)?;
        let mut hashing = self.open_archive(statement)?;
        let mut taken = 0;
        let read = read_members(&mut hashing, manifest, &mut |entry, content| {
            let (Some(hash), size) = (entry.hash(), entry.size()) else { return Ok(()) };
            // What is here already is not written again, but an archive that lies about it is refused all the same.
            let is_here = !wants(&hash)? || store.contains(&hash)?;
            let (found, count) = if is_here {
                Hash::reading(content).context(|| format!("cannot read `{}`", entry.path))?
            } else {
                store.add(content)?
            };
            if (found, count) != (hash, size) {
                // What was found may be a content that a kept release needs: the sweep decides, not we.
                return Err(Error::refused(format!("the content of `{}` is not what the manifest says", entry.path)));
            }
            taken += usize::from(!is_here);
            Ok(())
        });
        // An archive that is not the signed one explains every other fault that was found in it.
        self.finish_reading(hashing, statement)?;
        read.map_err(|e| self.refused("archive", &e))?;
        Ok(taken)
    }

    /// Reads the whole archive and compares every content, taking nothing.
    ///
    /// # Errors
    /// As [`Deliverable::unpack`].
    pub fn check_archive(&self, statement: &Statement, manifest: &Manifest) -> Result<()> {
        self.check_limits(manifest, Limits::default())?;
        let mut hashing = self.open_archive(statement)?;
        let read = read_members(&mut hashing, manifest, &mut |entry, content| {
            let (found, count) = Hash::reading(content).context(|| format!("cannot read `{}`", entry.path))?;
            if (Some(found), count) == (entry.hash(), entry.size()) {
                return Ok(());
            }
            Err(Error::refused(format!("the content of `{}` is not what the manifest says", entry.path)))
        });
        self.finish_reading(hashing, statement)?;
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

    /// Opens the archive, once: what is read of it is what is hashed. Nothing is read beyond the signed size, although
    /// somebody may write to it.
    fn open_archive(&self, statement: &Statement) -> Result<Archive> {
        let inner = fs::open_read(&self.file("tar.zst"))?.take(statement.size.saturating_add(1));
        Ok(Hashing { inner, hasher: blake3::Hasher::new(), count: 0 })
    }

    fn finish_reading(&self, mut hashing: Archive, statement: &Statement) -> Result<()> {
        std::io::copy(&mut hashing, &mut std::io::sink()).context(|| format!("cannot read {}", self.base))?;
        let digest = hashing.hasher.finalize().to_hex();
        if digest.as_str() != statement.archive || hashing.count != statement.size {
            return Err(Error::refused(format!("the archive of {} is not the one that was signed", self.base)));
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

fn write_archive(path: &Path, manifest: &Manifest, supply: &Supply<'_>, packing: &Packing<'_>) -> Result<(Hash, u64)> {
    let doing = || format!("cannot write {}", path.display());
    let out = Hashing { inner: fs::open_append(path, 0o640)?, hasher: blake3::Hasher::new(), count: 0 };
    let mut encoder = zstd::Encoder::new(out, LEVEL).context(doing)?;
    encoder.include_checksum(true).context(doing)?;
    encoder.multithread(2).context(doing)?;
    let scratch = path.with_extension("content");
    for entry in manifest.entries() {
        append(&mut encoder, entry, supply, packing, &scratch)?;
    }
    encoder.write_all(&[0; END_OF_TAR]).context(doing)?;
    let out = encoder.finish().context(doing)?;
    sync::whole(&out.inner).context(doing)?;
    Ok((out.hasher.finalize().to_hex().parse()?, out.count))
}

/// What stands in an archive before the content of an entry. An archive is written and read by this one function: it is
/// exactly what its manifest says, so there is nothing in it that two programs could understand in two ways.
fn head(entry: &Entry) -> Result<Vec<u8>> {
    let doing = || format!("cannot pack {}", entry.path);
    let mut header = tar::Header::new_ustar();
    // Privileges do not travel: no setuid, setgid or sticky bit (see `Manifest::without_privileges`).
    header.set_mode(entry.mode & 0o777);
    header.set_mtime(u64::try_from(entry.mtime.div_euclid(1_000_000_000)).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    let path = entry.path.as_bytes();
    let (kind, link): (_, &[u8]) = match (&entry.content, &entry.hard_link) {
        (_, Some(leader)) => (tar::EntryType::Link, leader.as_bytes()),
        (Content::Dir, None) => (tar::EntryType::Directory, b""),
        (Content::Symlink(target), None) => (tar::EntryType::Symlink, target),
        (Content::File { size, .. }, None) => {
            header.set_size(*size);
            (tar::EntryType::Regular, b"")
        }
    };
    header.set_entry_type(kind);
    // Byte for byte: the crate would write `a//b` as `a/b`.
    let field = &mut header.as_old_mut().linkname;
    let is_long = link.len() > field.len();
    if !is_long {
        field[..link.len()].copy_from_slice(link);
    }
    // What is longer than its field becomes a GNU long-name member before the header.
    let mut builder = tar::Builder::new(Vec::new());
    let written = if is_long {
        builder.append_link(&mut header.clone(), entry.path.as_path(), std::ffi::OsStr::from_bytes(link))
    } else {
        builder.append_data(&mut header.clone(), entry.path.as_path(), std::io::empty())
    };
    if written.is_err() && path.len() >= header.as_old().name.len() {
        // The crate wants to cut a long name at the end of a character, and finds none in bytes that are no text.
        builder = tar::Builder::new(Vec::new());
        append_long(&mut builder, b'L', path).context(doing)?;
        if is_long {
            append_long(&mut builder, b'K', link).context(doing)?;
        }
        let field = &mut header.as_old_mut().name;
        let length = field.len();
        field.copy_from_slice(&path[..length]);
        header.set_cksum();
        builder.append(&header, std::io::empty()).context(doing)?;
    } else {
        written.context(doing)?;
    }
    let mut head = builder.into_inner().context(doing)?;
    head.truncate(head.len() - END_OF_TAR);
    Ok(head)
}

/// A name (`L`) or the target of a link (`K`) of the member that follows, as GNU tar writes them.
fn append_long(builder: &mut tar::Builder<Vec<u8>>, kind: u8, name: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    let title = b"././@LongLink";
    header.as_old_mut().name[..title.len()].copy_from_slice(title);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(name.len() as u64 + 1);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_cksum();
    builder.append(&header, name.chain(&b"\0"[..]))
}

fn append(
    archive: &mut impl Write,
    entry: &Entry,
    supply: &Supply<'_>,
    packing: &Packing<'_>,
    scratch: &Path,
) -> Result<()> {
    let doing = || format!("cannot pack {}", entry.path);
    archive.write_all(&head(entry)?).context(doing)?;
    let (Content::File { size, hash }, None) = (&entry.content, &entry.hard_link) else { return Ok(()) };
    fs::remove_file(scratch)?;
    let mut content = fs::create_new(scratch, 0o600)?;
    fs::remove_file(scratch)?;
    supply.copy(hash, &mut content)?;
    std::io::Seek::rewind(&mut content).context(doing)?;
    refuse_secrets(&mut content, *size, entry, packing.secrets)?;
    if std::io::copy(&mut content, archive).context(doing)? != *size {
        return Err(Error::bug(format!("the content of {} has another size than its manifest says", entry.path)));
    }
    archive.write_all(&[0; BLOCK][..padding(*size)]).context(doing)
}

/// How many zeros follow a content of this size.
fn padding(size: u64) -> usize {
    let block = BLOCK as u64;
    usize::try_from((block - size % block) % block).unwrap_or(0)
}

fn refuse_secrets(content: &mut File, size: u64, entry: &Entry, secrets: &[(String, String)]) -> Result<()> {
    if secrets.is_empty() || size == 0 {
        return Ok(());
    }
    let doing = || format!("cannot read {}", entry.path);
    let longest = secrets.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
    let mut window: Vec<u8> = Vec::new();
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        let count = content.read(&mut buffer).context(doing)?;
        if count == 0 {
            break;
        }
        window.extend_from_slice(&buffer[..count]);
        for (name, value) in secrets {
            if memchr::memmem::find(&window, value.as_bytes()).is_some() {
                return Err(Error::refused(format!("{} holds the value of the secret `{name}`", entry.path))
                    .hint("write secrets in a `configure` step: configuration is kept out of deliverables"));
            }
        }
        window.drain(..window.len().saturating_sub(longest));
    }
    std::io::Seek::rewind(content).context(doing)
}

/// What is done with the content of a member.
type OnContent<'a> = dyn FnMut(&Entry, &mut dyn Read) -> Result<()> + 'a;

/// Reads an archive, which must be byte for byte what [`write_archive`] makes of the manifest and the contents. So no more
/// is read than the manifest announces, whatever the archive would unpack to.
fn read_members(archive: &mut Archive, manifest: &Manifest, on_content: &mut OnContent<'_>) -> Result<()> {
    let decoder = zstd::Decoder::new(archive).context(|| "cannot decompress".to_string())?;
    let mut tar = std::io::BufReader::with_capacity(128 * 1024, decoder);
    for entry in manifest.entries() {
        if !is_next(&mut tar, &head(entry)?)? {
            return Err(Error::refused(format!("`{}` does not stand where and as the manifest says", entry.path)));
        }
        if let (Content::File { size, .. }, None) = (&entry.content, &entry.hard_link) {
            on_content(entry, &mut Read::take(&mut tar, *size))?;
            if !is_next(&mut tar, &[0; BLOCK][..padding(*size)])? {
                return Err(Error::refused(format!("something follows the content of `{}`", entry.path)));
            }
        }
    }
    let ends = is_next(&mut tar, &[0; END_OF_TAR])? && tar.read(&mut [0]).context(|| "cannot read".to_string())? == 0;
    if ends { Ok(()) } else { Err(Error::refused("it does not end where the manifest ends")) }
}

/// Whether exactly these bytes come next.
fn is_next(from: &mut impl Read, expected: &[u8]) -> Result<bool> {
    let mut found = vec![0; expected.len()];
    match from.read_exact(&mut found) {
        Ok(()) => Ok(found == expected),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::failed("cannot read").because(error)),
    }
}

/// Headers and contents fill blocks of this size.
const BLOCK: usize = 512;
/// Two blocks of zeros end an archive.
const END_OF_TAR: usize = 2 * BLOCK;

/// An archive that is being read.
type Archive = Hashing<std::io::Take<File>>;

/// Counts and hashes what passes through.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
    count: u64,
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
