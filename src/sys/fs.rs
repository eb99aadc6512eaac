//! Reading and durable writing of our own files: configuration, state, records.
//!
//! Every durable write goes one way: write a new file beside the old one, sync it, rename it over, sync the
//! directory. After a crash the old content or the new content stands there, never a part.
//!
//! A sync is the most expensive thing that we do, so three weaker forms stand beside [`write_durable`], each for what it is
//! enough for:
//! - [`Several`]: files that are replaced in a row share their syncs.
//! - [`write_whole`] leaves out the sync of the directory: a power cut may bring the old file back, whole. For what a later
//!   sync of the same directory, or a recovery that the journal asks for, makes good.
//! - [`replace`] syncs nothing: a power cut may bring the old file back or leave an empty one. For what is only a saving
//!   of work and is made again when it cannot be read (witnesses).
//!
//! A killed process loses nothing in any of them: what was renamed is seen by everybody at once.
#![expect(clippy::disallowed_methods, reason = "this module is the door")]

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::{Context, Error, Result};
use super::{fault, sync};

mod several;

pub use several::Several;

/// An open file: what this door gives out, and a [`super::dir::Dir`].
pub use std::fs::File;

/// The most that is read of a configuration file: larger ones are refused before they are parsed.
pub const CONFIG_LIMIT: u64 = 1024 * 1024;

/// Reads a whole text file.
///
/// # Errors
/// If it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))
}

/// Reads a whole file; `None` if there is none.
///
/// # Errors
/// If it exists and cannot be read.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot read {}", path.display())),
    }
}

/// Reads a regular file of at most `limit` bytes without following a link or blocking on a fifo; `None` if there is none.
///
/// # Errors
/// If it is no regular file, too large or unreadable.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    read_checked(path, limit, |_| Ok(()))
}

/// Like [`read_bounded`], for a file that must be root's alone to write.
///
/// # Errors
/// As [`read_bounded`]; also if somebody else can write it.
pub fn read_of_root(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    read_checked(path, limit, |meta| {
        if meta.uid() == 0 && meta.mode() & 0o022 == 0 {
            return Ok(());
        }
        Err(Error::refused(format!("{} is not root's alone", path.display())))
    })
}

fn read_checked(path: &Path, limit: u64, check: impl FnOnce(&fs::Metadata) -> Result<()>) -> Result<Option<Vec<u8>>> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(|| format!("cannot open {}", path.display())),
    };
    let meta = file.metadata().context(|| format!("cannot examine {}", path.display()))?;
    if !meta.is_file() {
        return Err(Error::invalid(format!("{} is no regular file", path.display())));
    }
    check(&meta)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > limit {
        return Err(Error::invalid(format!("{} is larger than {}", path.display(), super::size::words(limit))));
    }
    Ok(Some(bytes))
}

/// Replaces a file durably. `mode` is its permission bits.
///
/// # Errors
/// If it cannot be written; the old content stands then. A failed sync is final and is never repeated.
pub fn write_durable(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    write_with_group(path, bytes, mode, None)
}

/// As [`write_durable`]; the file has this group.
///
/// # Errors
/// As [`write_durable`], and if we may not give it to the group.
pub fn write_durable_for(path: &Path, bytes: &[u8], mode: u32, gid: u32) -> Result<()> {
    write_with_group(path, bytes, mode, Some(gid))
}

/// A file in memory that has no name (memfd_create(2)).
///
/// # Errors
/// If there is none to be had.
pub fn memory_file(name: &str) -> Result<File> {
    let made = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
    made.map(File::from).map_err(|error| Error::failed("cannot make a file in memory").because(error))
}

/// Gives an open file its owner and then its mode (fchown(2) would take setuid bits away, not add any).
///
/// # Errors
/// If we may not.
pub fn give_file(file: &File, uid: u32, gid: u32, mode: u32) -> Result<()> {
    use rustix::fs::{Gid, Mode, Uid, fchmod, fchown, fstat};
    let doing = |error| Error::failed("cannot set owner and mode of a file").because(error);
    let now = fstat(file).map_err(doing)?;
    if (now.st_uid, now.st_gid) != (uid, gid) {
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(doing)?;
    }
    fchmod(file, Mode::from_raw_mode(mode)).map_err(doing)
}

/// As [`write_durable`], but the name is not synced: after a power cut the old file may stand there again, whole.
///
/// # Errors
/// As [`write_durable`].
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let (_, temp) = beside(path)?;
    replace_with(path, &temp, || {
        let file = create_whole(&temp, bytes, mode)?;
        sync::whole(&file).context(|| format!("cannot sync {}", temp.display()))
    })
}

fn write_with_group(path: &Path, bytes: &[u8], mode: u32, gid: Option<u32>) -> Result<()> {
    let (dir, temp) = beside(path)?;
    replace_with(path, &temp, || {
        let file = create_whole(&temp, bytes, if gid.is_some() { 0o600 } else { mode })?;
        if gid.is_some() {
            std::os::unix::fs::fchown(&file, None, gid).context(|| format!("cannot give away {}", temp.display()))?;
            file.set_permissions(fs::Permissions::from_mode(mode))
                .context(|| format!("cannot write {}", temp.display()))?;
        }
        sync::whole(&file).context(|| format!("cannot sync {}", temp.display()))
    })?;
    sync_dir(&dir)
}

/// A new file with this content and exactly this mode; what a crash left at its name is removed.
fn create_whole(temp: &Path, bytes: &[u8], mode: u32) -> Result<File> {
    remove_file(temp)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temp)
        .context(|| format!("cannot create {}", temp.display()))?;
    let written = file.write_all(bytes).and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)));
    written.context(|| format!("cannot write {}", temp.display())).inspect_err(|_| {
        let _ = fs::remove_file(temp);
    })?;
    Ok(file)
}

/// Renames what `write` made over the old file; nothing of it is left if that fails.
fn replace_with(path: &Path, temp: &Path, write: impl FnOnce() -> Result<()>) -> Result<()> {
    let replace = || -> Result<()> {
        write()?;
        fault::point("durable.written")?;
        fs::rename(temp, path).context(|| format!("cannot rename {} to {}", temp.display(), path.display()))
    };
    replace().inspect_err(|_| {
        let _ = fs::remove_file(temp);
    })?;
    fault::point("durable.renamed")
}

/// Lets the kernel begin to write a file out, so that the sync that follows finds it on its way with others.
#[expect(unsafe_code, reason = "sync_file_range(2) has no safe wrapper")]
fn start_writing(file: std::os::fd::BorrowedFd<'_>) {
    use std::os::fd::AsRawFd;
    // SAFETY: plain numbers go in, about a descriptor that is borrowed. It is a hint: the sync tells every fault.
    unsafe { nix::libc::sync_file_range(file.as_raw_fd(), 0, 0, nix::libc::SYNC_FILE_RANGE_WRITE) };
}

/// Writes a small file without renaming or syncing: for notes to other processes, worth nothing after a crash.
///
/// # Errors
/// If it cannot be written.
pub fn write_in_place(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).context(|| format!("cannot write {}", path.display()))
}

/// Replaces a file at once but not durably: after a power cut it may be the old one, or torn. For what can be made again and
/// says itself whether it is whole.
///
/// # Errors
/// If it cannot be written; the old content stands then.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let (_, temp) = beside(path)?;
    create_whole(&temp, bytes, mode)?;
    fs::rename(&temp, path).context(|| format!("cannot write {}", path.display())).inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}

/// Makes a symbolic link durably, replacing one that stands there.
///
/// # Errors
/// If something other than a link stands there or the link cannot be made.
pub fn replace_symlink(path: &Path, target: &Path) -> Result<()> {
    if put_symlink(path, target)? { sync_dir(parent_of(path)?) } else { Ok(()) }
}

/// As [`replace_symlink`], but the name is not synced: the caller syncs the directory, or makes the link again after a power
/// cut. Tells whether anything changed.
///
/// # Errors
/// As [`replace_symlink`].
pub fn put_symlink(path: &Path, target: &Path) -> Result<bool> {
    if fs::read_link(path).is_ok_and(|present| present == target) {
        return Ok(false);
    }
    if fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_symlink()) {
        return Err(Error::failed(format!("{} is in the way: it is no link", path.display())));
    }
    let (_, temp) = beside(path)?;
    remove_file(&temp)?;
    std::os::unix::fs::symlink(target, &temp).context(|| format!("cannot make link {}", temp.display()))?;
    fs::rename(&temp, path).context(|| format!("cannot make link {}", path.display()))?;
    Ok(true)
}

/// Appends one record to a file that only grows, and syncs it.
///
/// # Errors
/// If it cannot be written or synced.
pub fn append_durable(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let is_new = !path.exists();
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(mode)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .context(|| format!("cannot open {}", path.display()))?;
    file.write_all(bytes).context(|| format!("cannot append to {}", path.display()))?;
    sync::content(&file).context(|| format!("cannot sync {}", path.display()))?;
    if is_new {
        sync_dir(parent_of(path)?)?;
    }
    Ok(())
}

/// Opens a file that grows and need not be durable (a log), creating it.
///
/// # Errors
/// If it cannot be opened.
pub fn open_append(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(mode)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .context(|| format!("cannot open {}", path.display()))
}

/// Creates a file that must not exist, for reading and writing.
///
/// # Errors
/// If it exists or cannot be made.
pub fn create_new(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .context(|| format!("cannot create {}", path.display()))
}

/// Makes a file hold exactly so much space: its blocks are there, whatever they contain.
///
/// # Errors
/// If there is no space; what was held before is held still.
pub fn allocate(path: &Path, bytes: u64, mode: u32) -> Result<()> {
    use rustix::io::Errno;
    let doing = || format!("cannot hold {bytes} bytes in {}", path.display());
    let file = open_append(path, mode)?;
    let held = file.metadata().context(doing)?.len();
    if held < bytes {
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Ok(()) => {}
            // A file system that cannot reserve gets zeros to write.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes - held), &mut &file).context(doing)?;
            }
            Err(error) => {
                let _ = file.set_len(held);
                return Err(std::io::Error::from(error)).context(doing);
            }
        }
    }
    file.set_len(bytes).context(doing)
}

/// The size of a file in bytes, 0 if there is none.
///
/// # Errors
/// If it cannot be examined.
pub fn size_of(path: &Path) -> Result<u64> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(meta.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).context(|| format!("cannot examine {}", path.display())),
    }
}

/// Reads at most `limit` bytes of a file from an offset on; nothing if there is no such file.
///
/// # Errors
/// If it cannot be read.
pub fn read_from(path: &Path, offset: u64, limit: u64) -> Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(|| format!("cannot open {}", path.display())),
    };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.take(limit).read_to_end(&mut bytes))
        .context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// Opens a regular file for reading; never waits for a writer, as opening a fifo would.
///
/// # Errors
/// If it cannot be opened or is no regular file.
pub fn open_read(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC).open(path);
    let file = opened.context(|| format!("cannot open {}", path.display()))?;
    if !file.metadata().context(|| format!("cannot examine {}", path.display()))?.is_file() {
        return Err(Error::invalid(format!("{} is no regular file", path.display())));
    }
    Ok(file)
}

/// Lets `to` share the blocks of `from` (a reflink), where the file system can; false where it cannot.
pub fn share_contents(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// Makes a directory and its parents, with this mode where they are new.
///
/// # Errors
/// If one cannot be made.
pub fn ensure_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .context(|| format!("cannot make directory {}", path.display()))
}

/// Sets the permission bits of a file of ours.
///
/// # Errors
/// As chmod(2).
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .context(|| format!("cannot set the mode of {}", path.display()))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// A failed sync is final.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(sync::whole).context(|| format!("cannot sync {}", path.display()))
}

/// Renames a file or directory and makes that durable.
///
/// # Errors
/// As rename(2).
pub fn rename_durable(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
    sync_dir(parent_of(to)?)?;
    if from.parent() != to.parent() {
        sync_dir(parent_of(from)?)?;
    }
    Ok(())
}

/// Removes a file; fine if there is none.
///
/// # Errors
/// As unlink(2).
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context(|| format!("cannot remove {}", path.display())),
    }
}

/// The names in a directory, sorted; empty if there is no such directory.
///
/// # Errors
/// If the directory cannot be read.
pub fn names(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(|| format!("cannot read directory {}", path.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("cannot read directory {}", path.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether something stands at this path (a link counts, wherever it leads).
#[must_use]
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// What stands at a path, links not followed; `None` if nothing does.
///
/// # Errors
/// If it cannot be examined.
pub fn examine(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot examine {}", path.display())),
    }
}

/// The digest of a file's content.
///
/// # Errors
/// If it cannot be read.
pub fn digest(path: &Path) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let read = hasher.update_reader(open_read(path)?);
    read.context(|| format!("cannot read {}", path.display()))?;
    Ok(hasher.finalize())
}

/// The SHA-256 of a file in hexadecimal, as sha256sum(1) prints it on another machine.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    use std::fmt::Write as _;
    let doing = || format!("cannot read {}", path.display());
    let mut file = File::open(path).context(doing)?;
    let (mut context, mut buffer) = (ring::digest::Context::new(&ring::digest::SHA256), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut buffer).context(doing)? {
            0 => break,
            n => context.update(&buffer[..n]),
        }
    }
    Ok(context.finish().as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// Puts a copy of a file of ours in a place, durably and at once: whoever executes it gets the old one or the new one.
///
/// # Errors
/// If it cannot be written; the old one stands then.
pub fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let (dir, temp) = beside(to)?;
    remove_file(&temp)?;
    let doing = || format!("cannot install {}", to.display());
    let write = || -> Result<()> {
        let mut file = create_new(&temp, 0o600)?;
        std::io::copy(&mut open_read(from)?, &mut file).context(doing)?;
        file.set_permissions(fs::Permissions::from_mode(mode)).context(doing)?;
        sync::whole(&file).context(doing)?;
        fs::rename(&temp, to).context(doing)?;
        sync_dir(&dir)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })
}

/// The target of a link; `None` if there is no link.
#[must_use]
pub fn link_target(path: &Path) -> Option<PathBuf> {
    fs::read_link(path).ok()
}

/// The absolute path with all links resolved.
///
/// # Errors
/// If it does not exist.
pub fn canonical(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).context(|| format!("cannot resolve {}", path.display()))
}

/// The path as an absolute one, whether it exists or not.
///
/// # Errors
/// If the current directory is gone.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(|| format!("cannot resolve {}", path.display()))
}

/// Whether a regular file stands there that its owner may execute.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o100 != 0)
}

/// The directory that holds `path`.
fn parent_of(path: &Path) -> Result<&Path> {
    path.parent().ok_or_else(|| Error::bug(format!("{} has no parent directory", path.display())))
}

/// The directory of `path` and the fixed temporary name beside it; only one process writes at a time (the lock).
fn beside(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let dir = parent_of(path)?;
    let name = path.file_name().ok_or_else(|| Error::bug(format!("{} has no name", path.display())))?;
    let mut temp = std::ffi::OsString::from(".");
    temp.push(name);
    temp.push(".new");
    Ok((dir.to_path_buf(), dir.join(temp)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_write_replaces_the_whole_file_and_leaves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_durable(&path, b"one", 0o600).unwrap();
        fs::write(dir.path().join(".x.new"), "left by a crash").unwrap();
        write_durable(&path, b"two", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(names(dir.path()).unwrap(), ["x"]);
    }

    #[test]
    fn bounded_reads_refuse_links_fifos_and_large_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(read_bounded(&path, 10).unwrap().is_none());
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap().unwrap().len(), 10);
        assert!(read_bounded(&path, 9).is_err());
        std::os::unix::fs::symlink(&path, dir.path().join("l")).unwrap();
        assert!(read_bounded(&dir.path().join("l"), 10).is_err());
        nix::unistd::mkfifo(&dir.path().join("f"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read_bounded(&dir.path().join("f"), 10).is_err());
    }
}
