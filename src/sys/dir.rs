//! A directory handle: all work inside trees goes through descriptors and never follows a symbolic link.
//!
//! Paths of more than one component are resolved by `openat2(2)` with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`, so
//! that nobody who can write in the tree can lead us out of it, however fast they swap names.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

use super::error::{Error, Result};
use super::sync;

mod hold;
mod metadata;
mod remove;

pub use hold::{Hold, has_no_writer};
pub use metadata::{is_carried, set_file_mtime};

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A device, fifo or socket.
    Special,
}

/// What statx(2) tells about an entry; times are nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// File, directory, link or special.
    pub kind: FileKind,
    /// Permission bits, setuid and so on included (`mode & 0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last modification, in nanoseconds.
    pub mtime: i64,
    /// Time of the last status change, in nanoseconds.
    pub ctime: i64,
    /// Inode number.
    pub ino: u64,
    /// Device number.
    pub dev: u64,
    /// Number of the mount, 0 where the kernel does not tell (Linux < 5.8).
    pub mount: u64,
    /// Number of hard links.
    pub nlink: u32,
    /// Disk space in bytes.
    pub disk: u64,
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

const OPEN_DIR: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Dir {
    /// Opens a directory that the operator named (its own path may contain links).
    ///
    /// # Errors
    /// If it does not exist, is no directory or may not be read.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = rfs::open(path, OPEN_DIR, Mode::empty()).map_err(|e| fail("open directory", path, e))?;
        Ok(Self { fd, path: path.to_path_buf() })
    }

    /// Opens a tree of ours: the directory itself must be real, not a link that somebody put in its place.
    ///
    /// # Errors
    /// If it does not exist, is no directory or a symbolic link, or may not be read.
    pub fn open_real(path: &Path) -> Result<Self> {
        let fd = rfs::open(path, OPEN_DIR | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| {
            let error = fail("open directory", path, e);
            if error.is_not_found() {
                return error.hint("it was taken away by hand: put it back, with what it held");
            }
            error.hint("it must be a real directory, never a link: put back what stood there")
        })?;
        Ok(Self { fd, path: path.to_path_buf() })
    }

    /// Opens a directory beneath this one.
    ///
    /// # Errors
    /// If it does not exist, is no directory, or a component is a symbolic link.
    pub fn dir(&self, rel: &Path) -> Result<Self> {
        let fd = open_beneath(self.fd.as_fd(), rel, OPEN_DIR | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|e| fail("open directory", &self.path.join(rel), e))?;
        Ok(Self { fd, path: self.path.join(rel) })
    }

    /// A second handle of the same directory.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub fn again(&self) -> Result<Self> {
        let fd = retry_on_intr(|| rfs::openat(&self.fd, ".", OPEN_DIR, Mode::empty()))
            .map_err(|e| fail("open directory", &self.path, e))?;
        Ok(Self { fd, path: self.path.clone() })
    }

    /// The path this handle was opened by, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory with exactly this mode.
    ///
    /// # Errors
    /// If it exists already or cannot be made.
    pub fn make_dir(&self, rel: &Path, mode: u32) -> Result<()> {
        let (parent, name) = self.resolve(rel)?;
        rfs::mkdirat(parent.as_fd(), name, Mode::from_raw_mode(0o700))
            .map_err(|e| fail("make directory", &self.path.join(rel), e))?;
        let held = self.hold(rel)?;
        let us = rustix::process::geteuid();
        if held.meta().kind != FileKind::Dir || us.is_root() && held.meta().uid != us.as_raw() {
            let path = self.path.join(rel);
            return Err(Error::failed(format!("{} was replaced while it was made", path.display()))
                .hint("find out who writes there: fuser -v"));
        }
        if held.meta().mode == mode & 0o7777 { Ok(()) } else { held.set_mode(mode) }
    }

    /// Makes a directory unless it exists, and opens it.
    ///
    /// # Errors
    /// If something else stands there or it cannot be made.
    pub fn ensure_dir(&self, rel: &Path, mode: u32) -> Result<Self> {
        match self.make_dir(rel, mode) {
            Err(e) if e.errno() != Some(Errno::EXIST.raw_os_error()) => Err(e),
            _ => self.dir(rel),
        }
    }

    /// The metadata of an entry, links not followed; `None` if there is no such entry.
    ///
    /// # Errors
    /// If the entry cannot be examined.
    pub fn stat(&self, rel: &Path) -> Result<Option<Meta>> {
        let resolved = self.resolve(rel);
        let (parent, name) = match resolved {
            Ok(found) => found,
            Err(e) if e.is_not_found() || e.errno() == Some(Errno::NOTDIR.raw_os_error()) => return Ok(None),
            Err(e) => return Err(e),
        };
        match statx(parent.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(meta) => Ok(Some(meta)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(fail("examine", &self.path.join(rel), e)),
        }
    }

    /// The metadata of the directory itself.
    ///
    /// # Errors
    /// If statx(2) fails.
    pub fn stat_self(&self) -> Result<Meta> {
        stat_fd(self.fd.as_fd(), &self.path)
    }

    /// The names in this directory, unsorted, without `.` and `..`.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn names(&self) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        self.again()?.into_names(|_, name| {
            names.push(OsStr::from_bytes(name.to_bytes()).to_os_string());
            Ok(())
        })?;
        Ok(names)
    }

    /// Shows everything in this directory, unsorted, with what statx(2) tells of it; what is gone meanwhile is left out.
    ///
    /// # Errors
    /// If the directory cannot be read, an entry cannot be examined, or `see` says so.
    pub fn into_entries(self, mut see: impl FnMut(&Self, &[u8], Meta) -> Result<()>) -> Result<()> {
        self.into_names(|dir, name| match statx(dir.fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(meta) => see(dir, name.to_bytes(), meta),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(fail("examine", &dir.path.join(OsStr::from_bytes(name.to_bytes())), e)),
        })
    }

    /// It is read from where its descriptor stands, so nobody else may have read from that.
    fn into_names(self, mut see: impl FnMut(&Self, &CStr) -> Result<()>) -> Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
        let mut entries = rfs::RawDir::new(self.fd.as_fd(), &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|e| fail("read directory", &self.path, e))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                see(&self, entry.file_name())?;
            }
        }
        Ok(())
    }

    /// The target of a symbolic link, byte-exact.
    ///
    /// # Errors
    /// If the entry is no link.
    pub fn read_link(&self, rel: &Path) -> Result<Vec<u8>> {
        let (parent, name) = self.resolve(rel)?;
        rfs::readlinkat(parent.as_fd(), name, Vec::new())
            .map(std::ffi::CString::into_bytes)
            .map_err(|e| fail("read link", &self.path.join(rel), e))
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// If the name exists or the link cannot be made.
    pub fn symlink(&self, target: &[u8], rel: &Path) -> Result<()> {
        let (parent, name) = self.resolve(rel)?;
        rfs::symlinkat(OsStr::from_bytes(target), parent.as_fd(), name)
            .map_err(|e| fail("make link", &self.path.join(rel), e))
    }

    /// Opens a regular file for reading; never blocks on a fifo, never follows a link.
    ///
    /// # Errors
    /// If it does not exist or is no regular file.
    pub fn open_file(&self, rel: &Path) -> Result<File> {
        self.open_examined(rel).map(|(file, _)| file)
    }

    /// Opens a regular file as [`Dir::open_file`], with what the very file that was opened is: whoever reads a content must
    /// not take the owner, the mode or the inode from what stood at the name before or after.
    ///
    /// # Errors
    /// If it does not exist or is no regular file.
    pub fn open_examined(&self, rel: &Path) -> Result<(File, Meta)> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let path = || self.path.join(rel);
        let fd = open_beneath(self.fd.as_fd(), rel, flags, Mode::empty()).map_err(|e| fail("open", &path(), e))?;
        let meta = statx(fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH).map_err(|e| fail("examine", &path(), e))?;
        if meta.kind != FileKind::File {
            return Err(Error::failed(format!("{} is no regular file", path().display())));
        }
        Ok((File::from(fd), meta))
    }

    /// Creates a file that must not exist yet, with exactly this mode.
    ///
    /// # Errors
    /// If it exists or cannot be made.
    pub fn create_file(&self, rel: &Path, mode: u32) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL;
        let fd = open_beneath(self.fd.as_fd(), rel, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| fail("create", &self.path.join(rel), e))?;
        rfs::fchmod(&fd, Mode::from_raw_mode(mode & 0o7777))
            .map_err(|e| fail("set the mode of", &self.path.join(rel), e))?;
        Ok(File::from(fd))
    }

    /// Renames an entry, replacing what stands at the new name.
    ///
    /// # Errors
    /// As rename(2); `EXDEV` between file systems.
    pub fn rename(&self, from: &Path, to_dir: &Self, to: &Path) -> Result<()> {
        self.rename_with(from, to_dir, to, RenameFlags::empty())
    }

    /// Renames an entry to a name that must be free.
    ///
    /// # Errors
    /// As renameat2(2) with `RENAME_NOREPLACE`.
    pub fn rename_new(&self, from: &Path, to_dir: &Self, to: &Path) -> Result<()> {
        self.rename_with(from, to_dir, to, RenameFlags::NOREPLACE)
    }

    /// Exchanges two entries in one step (renameat2(2) with `RENAME_EXCHANGE`).
    ///
    /// # Errors
    /// `EXDEV` between file systems, `EBUSY` for a mount point.
    pub fn exchange(&self, one: &Path, other_dir: &Self, other: &Path) -> Result<()> {
        self.rename_with(one, other_dir, other, RenameFlags::EXCHANGE)
    }

    fn rename_with(&self, from: &Path, to_dir: &Self, to: &Path, flags: RenameFlags) -> Result<()> {
        let (from_parent, from_name) = self.resolve(from)?;
        let (to_parent, to_name) = to_dir.resolve(to)?;
        rfs::renameat_with(from_parent.as_fd(), from_name, to_parent.as_fd(), to_name, flags).map_err(|e| {
            let to = to_dir.path.join(to);
            fail("rename", &self.path.join(from), e).hint(format!("it was to become {}", to.display()))
        })
    }

    /// Makes a hard link.
    ///
    /// # Errors
    /// As linkat(2).
    pub fn link(&self, from: &Path, to_dir: &Self, to: &Path) -> Result<()> {
        let (from_parent, from_name) = self.resolve(from)?;
        let (to_parent, to_name) = to_dir.resolve(to)?;
        rfs::linkat(from_parent.as_fd(), from_name, to_parent.as_fd(), to_name, AtFlags::empty())
            .map_err(|e| fail("link", &to_dir.path.join(to), e))
    }

    /// Removes a file, link or special; fine if it does not exist.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn unlink(&self, rel: &Path) -> Result<()> {
        let (parent, name) = match self.resolve(rel) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        match rfs::unlinkat(parent.as_fd(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(fail("remove", &self.path.join(rel), e)),
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As unlinkat(2); `ENOTEMPTY` if something is in it.
    pub fn remove_dir(&self, rel: &Path) -> Result<()> {
        let (parent, name) = self.resolve(rel)?;
        rfs::unlinkat(parent.as_fd(), name, AtFlags::REMOVEDIR)
            .map_err(|e| fail("remove directory", &self.path.join(rel), e))
    }

    /// Makes the names in this directory durable (fsync(2) of the directory).
    ///
    /// # Errors
    /// A failed fsync is final: the attempt must be given up, never repeated.
    pub fn sync(&self) -> Result<()> {
        sync::whole(&self.fd).map_err(|e| fail("sync", &self.path, errno_of(&e)))
    }

    /// Makes everything on this file system durable (syncfs(2)).
    ///
    /// # Errors
    /// Also errors of earlier writes that surface only here.
    pub fn sync_file_system(&self) -> Result<()> {
        sync::file_system(&self.fd).map_err(|e| fail("sync the file system of", &self.path, errno_of(&e)))
    }

    /// Free bytes and inodes of the file system that holds this directory.
    ///
    /// # Errors
    /// If statvfs(3) fails.
    pub fn free_space(&self) -> Result<Space> {
        let vfs = rfs::fstatvfs(&self.fd).map_err(|e| fail("ask for the space of", &self.path, e))?;
        Ok(Space {
            total: vfs.f_blocks * vfs.f_frsize,
            bytes: vfs.f_bavail * vfs.f_frsize,
            // The blocks that a file system keeps for root are for such a case.
            at_most: if rustix::process::geteuid().is_root() { vfs.f_bfree } else { vfs.f_bavail } * vfs.f_frsize,
            // Some file systems (btrfs) have no fixed number of inodes and say 0 of 0.
            inodes: if vfs.f_files == 0 { u64::MAX } else { vfs.f_favail },
        })
    }

    /// The descriptor itself, for mounts and for children.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn resolve<'a>(&self, rel: &'a Path) -> Result<(Parent<'_>, &'a OsStr)> {
        let name = rel.file_name().ok_or_else(|| Error::bug(format!("{} has no name", rel.display())))?;
        match rel.parent() {
            None => Ok((Parent::This(self.fd.as_fd()), name)),
            Some(parent) if parent.as_os_str().is_empty() => Ok((Parent::This(self.fd.as_fd()), name)),
            Some(parent) => {
                let fd =
                    open_beneath(self.fd.as_fd(), parent, OFlags::PATH | OPEN_DIR | OFlags::NOFOLLOW, Mode::empty())
                        .map_err(|e| fail("open directory", &self.path.join(parent), e))?;
                Ok((Parent::Opened(fd), name))
            }
        }
    }
}

/// Free room of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Space {
    /// Bytes that anybody may write.
    pub bytes: u64,
    /// Bytes that we may write where everything depends on it: for root, those that are kept for root too.
    pub at_most: u64,
    /// Files that we may create.
    pub inodes: u64,
    /// Size of the whole file system in bytes.
    pub total: u64,
}

enum Parent<'a> {
    This(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::This(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

fn open_beneath(dir: BorrowedFd<'_>, rel: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    if is_plain_name(rel) && !flags.contains(OFlags::CREATE) {
        return retry_on_intr(|| rfs::openat(dir, rel, flags | OFlags::NOFOLLOW, mode));
    }
    // EAGAIN: somebody renamed a component meanwhile (openat2(2)); the answer is to ask again.
    for _ in 0..64 {
        match rfs::openat2(dir, rel, flags, mode, BENEATH) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Whether this is one name and nothing that leads elsewhere: no `..`, and no slash, behind which a link is followed.
fn is_plain_name(rel: &Path) -> bool {
    let bytes = rel.as_os_str().as_bytes();
    !bytes.is_empty() && bytes != b".." && !bytes.contains(&b'/')
}

fn stat_fd(fd: BorrowedFd<'_>, path: &Path) -> Result<Meta> {
    statx(fd, OsStr::new(""), AtFlags::EMPTY_PATH).map_err(|e| fail("examine", path, e))
}

fn statx(dir: BorrowedFd<'_>, name: impl rustix::path::Arg, flags: AtFlags) -> rustix::io::Result<Meta> {
    let stat = rfs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
    let kind = match rfs::FileType::from_raw_mode(stat.stx_mode.into()) {
        rfs::FileType::RegularFile => FileKind::File,
        rfs::FileType::Directory => FileKind::Dir,
        rfs::FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Special,
    };
    let has_mount = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
    Ok(Meta {
        kind,
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        mtime: nanoseconds(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        ctime: nanoseconds(stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        ino: stat.stx_ino,
        dev: rfs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        mount: if has_mount { stat.stx_mnt_id } else { 0 },
        nlink: stat.stx_nlink,
        disk: stat.stx_blocks * 512,
    })
}

fn nanoseconds(seconds: i64, nanos: u32) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos))
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn fail(doing: &str, path: &Path, errno: Errno) -> Error {
    let shown = super::escape::visible_bounded(path.as_os_str().as_bytes(), 4096);
    Error::failed(format!("cannot {doing} {shown}")).because(std::io::Error::from_raw_os_error(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn fixture() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        (temp, dir)
    }

    #[test]
    fn no_path_leads_out_through_a_link() {
        let (temp, dir) = fixture();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), temp.path().join("out")).unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        assert!(dir.open_file(Path::new("out/secret")).is_err());
        assert!(dir.create_file(Path::new("out/new"), 0o644).is_err());
        assert!(dir.make_dir(Path::new("out/d"), 0o755).is_err());
        assert!(dir.dir(Path::new("out")).is_err());
        assert!(dir.unlink(Path::new("out/secret")).is_err());
        assert!(dir.remove_tree(Path::new("out/secret")).is_err() || outside.path().join("secret").exists());
        assert!(dir.open_file(Path::new("../x")).is_err());
        dir.remove_tree(Path::new("out")).unwrap();
        assert!(outside.path().join("secret").exists());
    }

    #[test]
    fn a_fifo_does_not_block_and_is_no_file() {
        let (temp, dir) = fixture();
        nix::unistd::mkfifo(&temp.path().join("f"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(dir.open_file(Path::new("f")).is_err());
        assert_eq!(dir.stat(Path::new("f")).unwrap().unwrap().kind, FileKind::Special);
    }

    #[test]
    fn modes_times_and_attributes_are_exact() {
        let (_temp, dir) = fixture();
        let mut file = dir.create_file(Path::new("f"), 0o640).unwrap();
        file.write_all(b"abc").unwrap();
        dir.set_mtime(Path::new("f"), -1_500_000_000).unwrap();
        let meta = dir.stat(Path::new("f")).unwrap().unwrap();
        assert_eq!((meta.mode, meta.mtime, meta.size), (0o640, -1_500_000_000, 3));
        let wanted = vec![("user.a".to_string(), b"1".to_vec())];
        dir.set_xattrs(OsStr::new("f"), &wanted).unwrap();
        assert_eq!(dir.xattrs(OsStr::new("f")).unwrap(), wanted);
        dir.set_xattrs(OsStr::new("f"), &[]).unwrap();
        assert!(dir.xattrs(OsStr::new("f")).unwrap().is_empty());
    }

    #[test]
    fn a_tree_with_unreadable_directories_is_removed() {
        let (_temp, dir) = fixture();
        dir.make_dir(Path::new("d"), 0o755).unwrap();
        dir.make_dir(Path::new("d/e"), 0o000).unwrap();
        dir.symlink(b"/etc", Path::new("d/link")).unwrap();
        dir.remove_tree(Path::new("d")).unwrap();
        assert!(dir.stat(Path::new("d")).unwrap().is_none());
    }
}
