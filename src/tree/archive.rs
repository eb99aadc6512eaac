//! The archive of a deliverable: a tar stream, compressed by zstd, that is byte for byte what its manifest says.
//!
//! It is written and read by several threads. Files are read and checked ahead of the one stream that they become; of what
//! is read, small contents are handed on, and checked and stored by others than the one who reads.

use std::io::{BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::hash::Hash;
use super::manifest::{Content, Entry, Manifest};
use super::ordered::in_order;
use super::scan::THREADS;
use super::store::Supply;
use crate::sys::error::{Context, Error, Result};
use crate::sys::fs::{self, File};
use crate::sys::{sync, threads};

/// zstd level: 3 packs package trees to a fifth at little cost.
const LEVEL: i32 = 3;
/// Headers and contents fill blocks of this size.
const BLOCK: usize = 512;
/// Two blocks of zeros end an archive.
const END_OF_TAR: usize = 2 * BLOCK;
/// Larger contents are not held in memory.
const LARGE: u64 = 256 * 1024;
/// How many entries and bytes of contents become one piece of an archive.
const PIECE: (usize, u64) = (128, 512 * 1024);
/// How many contents that were read may wait for a thread.
const WAITING: usize = 32;

/// Values that must not be in any file: (name in the configuration, value).
pub type Secrets = [(String, String)];

/// Writes the archive of a manifest; returns its digest and size.
///
/// # Errors
/// If a content cannot be had, holds a secret, or writing fails.
pub fn write(path: &Path, manifest: &Manifest, supply: &Supply<'_>, secrets: &Secrets) -> Result<(Hash, u64)> {
    let doing = || format!("cannot write {}", path.display());
    let out = Hashing { inner: fs::open_append(path, 0o640)?, hasher: blake3::Hasher::new(), count: 0 };
    let mut encoder = zstd::Encoder::new(out, LEVEL).context(doing)?;
    encoder.include_checksum(true).context(doing)?;
    encoder.multithread(2).context(doing)?;
    let scratch = path.with_extension("content");
    let make = |piece| make(piece, supply, secrets);
    in_order(pieces(manifest), make, |made| match made? {
        Made::Bytes(bytes) => encoder.write_all(&bytes).context(doing),
        Made::Large(entry) => append_large(&mut encoder, entry, supply, secrets, &scratch),
    })?;
    encoder.write_all(&[0; END_OF_TAR]).context(doing)?;
    let out = encoder.finish().context(doing)?;
    sync::whole(&out.inner).context(doing)?;
    Ok((out.hasher.finalize().to_hex().parse()?, out.count))
}

/// Cuts a manifest into pieces that are made at once; a large content is alone.
fn pieces(manifest: &Manifest) -> impl Iterator<Item = Vec<&Entry>> + Send {
    let mut entries = manifest.entries().peekable();
    std::iter::from_fn(move || {
        let first = entries.next()?;
        let (mut piece, mut bytes) = (vec![first], first.size());
        while piece.len() < PIECE.0 && bytes < PIECE.1 && first.size() <= LARGE {
            let Some(next) = entries.next_if(|next| next.size() <= LARGE) else { break };
            bytes += next.size();
            piece.push(next);
        }
        Some(piece)
    })
}

/// A piece of an archive.
enum Made<'a> {
    /// As it is written.
    Bytes(Vec<u8>),
    /// The content is too large to be held.
    Large(&'a Entry),
}

fn make<'a>(piece: Vec<&'a Entry>, supply: &Supply<'_>, secrets: &Secrets) -> Result<Made<'a>> {
    if let [entry] = piece[..]
        && entry.size() > LARGE
        && entry.hard_link.is_none()
    {
        return Ok(Made::Large(entry));
    }
    let mut bytes = Vec::new();
    for entry in piece {
        bytes.append(&mut head(entry)?);
        let (Content::File { size, .. }, None) = (&entry.content, &entry.hard_link) else { continue };
        let content =
            supply.bytes_of(entry).map_err(|error| error.hint(format!("it was needed for {}", entry.path)))?;
        refuse_secrets(&mut content.as_slice(), entry, secrets)?;
        if content.len() as u64 != *size {
            return Err(wrong_size(entry));
        }
        bytes.extend_from_slice(&content);
        bytes.resize(bytes.len() + padding(*size), 0);
    }
    Ok(Made::Bytes(bytes))
}

fn append_large(
    archive: &mut impl Write,
    entry: &Entry,
    supply: &Supply<'_>,
    secrets: &Secrets,
    scratch: &Path,
) -> Result<()> {
    let doing = || format!("cannot pack {}", entry.path);
    archive.write_all(&head(entry)?).context(doing)?;
    let Some(hash) = entry.hash() else { return Ok(()) };
    fs::remove_file(scratch)?;
    let mut content = fs::create_new(scratch, 0o600)?;
    fs::remove_file(scratch)?;
    supply.copy(&hash, &mut content)?;
    std::io::Seek::rewind(&mut content).context(doing)?;
    refuse_secrets(&mut content, entry, secrets)?;
    std::io::Seek::rewind(&mut content).context(doing)?;
    if std::io::copy(&mut content, archive).context(doing)? != entry.size() {
        return Err(wrong_size(entry));
    }
    archive.write_all(&[0; BLOCK][..padding(entry.size())]).context(doing)
}

fn wrong_size(entry: &Entry) -> Error {
    Error::bug(format!("the content of {} has another size than its manifest says", entry.path))
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

/// How many zeros follow a content of this size.
fn padding(size: u64) -> usize {
    let block = BLOCK as u64;
    usize::try_from((block - size % block) % block).unwrap_or(0)
}

fn refuse_secrets(content: &mut dyn Read, entry: &Entry, secrets: &Secrets) -> Result<()> {
    if secrets.is_empty() || entry.size() == 0 {
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
    Ok(())
}

/// An archive that is being read.
#[derive(Debug)]
pub struct Archive {
    stream: Hashing<std::io::Take<File>>,
}

/// What is done with each content, by any thread.
pub type OnContent<'a> = dyn Fn(&Entry, &mut dyn Read) -> Result<()> + Sync + 'a;

impl Archive {
    /// Opens the archive, once: what is read of it is what is hashed. Nothing is read beyond the signed size, although
    /// somebody may write to it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path, signed: u64) -> Result<Self> {
        let inner = fs::open_read(path)?.take(signed.saturating_add(1));
        Ok(Self { stream: Hashing { inner, hasher: blake3::Hasher::new(), count: 0 } })
    }

    /// Reads all of it, which must be what [`write`] makes of the manifest and the contents. So no more is read than the
    /// manifest announces, whatever the archive would unpack to.
    ///
    /// # Errors
    /// If it is not, or `on_content` fails.
    pub fn read(&mut self, manifest: &Manifest, on_content: &OnContent<'_>) -> Result<()> {
        let decoder = zstd::Decoder::new(&mut self.stream).context(|| "cannot decompress".to_string())?;
        let mut tar = BufReader::with_capacity(128 * 1024, decoder);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let (send, waiting) = sync_channel::<(&Entry, Vec<u8>)>(WAITING);
        // The threads hold it alone: when they are gone, nothing waits for them.
        let waiting = Arc::new(Mutex::new(waiting));
        let read = std::thread::scope(|scope| {
            let failed = &failure;
            let is_alone = threads::helpers(scope, THREADS, move || help(&waiting, failed, on_content)) == 0;
            let read = read_members(&mut tar, manifest, &mut |entry, content| {
                if is_alone || entry.size() > LARGE {
                    return on_content(entry, content);
                }
                let mut bytes = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or(0));
                content.read_to_end(&mut bytes).context(|| "cannot read".to_string())?;
                if lock(&failure).is_some() {
                    return Err(Error::failed("nothing more is read"));
                }
                send.send((entry, bytes)).map_err(|_| Error::bug("a working thread died"))
            });
            drop(send);
            read
        });
        let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        failure.map_or(read, Err)
    }

    /// The digest and the size of all of it.
    ///
    /// # Errors
    /// If the rest cannot be read.
    pub fn finish(mut self) -> std::io::Result<(blake3::Hash, u64)> {
        std::io::copy(&mut self.stream, &mut std::io::sink())?;
        Ok((self.stream.hasher.finalize(), self.stream.count))
    }
}

/// Takes contents that were read until there are no more; after a failure only so that nobody waits.
fn help(waiting: &Mutex<Receiver<(&Entry, Vec<u8>)>>, failure: &Mutex<Option<Error>>, on_content: &OnContent<'_>) {
    let next = || lock(waiting).recv();
    while let Ok((entry, bytes)) = next() {
        if lock(failure).is_none()
            && let Err(error) = on_content(entry, &mut bytes.as_slice())
        {
            lock(failure).get_or_insert(error);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_members<'a>(
    tar: &mut impl Read,
    manifest: &'a Manifest,
    on_content: &mut dyn FnMut(&'a Entry, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    for entry in manifest.entries() {
        if !is_next(tar, &head(entry)?)? {
            return Err(Error::refused(format!("`{}` does not stand where and as the manifest says", entry.path)));
        }
        if let (Content::File { size, .. }, None) = (&entry.content, &entry.hard_link) {
            on_content(entry, &mut Read::take(&mut *tar, *size))?;
            if !is_next(tar, &[0; BLOCK][..padding(*size)])? {
                return Err(Error::refused(format!("something follows the content of `{}`", entry.path)));
            }
        }
    }
    let ends = is_next(tar, &[0; END_OF_TAR])? && tar.read(&mut [0]).context(|| "cannot read".to_string())? == 0;
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

/// Counts and hashes what passes through.
#[derive(Debug)]
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
