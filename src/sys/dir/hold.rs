//! An entry that is held by a descriptor: what was examined is what is changed, whatever stands at its name meanwhile.
//!
//! Nothing about an entry of a tree is changed by its name. Somebody who may write in the tree can put another thing there
//! between two system calls: a hard link to a file that is not theirs, a link, a directory.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::metadata::{is_carried, mtime_only};
use super::{Dir, FileKind, Meta, fail, open_beneath, stat_fd};
use crate::sys::error::{Error, Result};

/// The most bytes of attributes that an entry may have: all of them are kept in memory and in manifests.
const MOST_ATTRIBUTES: usize = 64 * 1024;

/// An entry of a tree, held by a descriptor that neither reads nor blocks.
#[derive(Debug)]
pub struct Hold {
    fd: OwnedFd,
    /// Whether the descriptor is one of a file that is open: it can be asked itself then.
    is_open: bool,
    meta: Meta,
    path: PathBuf,
}

impl Dir {
    /// Takes hold of an entry, whatever it is, links not followed.
    ///
    /// # Errors
    /// If there is none or a component of the path is a link.
    pub fn hold(&self, rel: &Path) -> Result<Hold> {
        let path = self.path.join(rel);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open_beneath(self.fd.as_fd(), rel, flags, Mode::empty()).map_err(|e| fail("open", &path, e))?;
        let meta = stat_fd(fd.as_fd(), &path)?;
        Ok(Hold { fd, is_open: false, meta, path })
    }

    /// Takes hold of a file that is open already.
    ///
    /// # Errors
    /// If statx(2) fails.
    pub fn hold_open(&self, name: &Path, file: File) -> Result<Hold> {
        let (fd, path) = (OwnedFd::from(file), self.path.join(name));
        let meta = stat_fd(fd.as_fd(), &path)?;
        Ok(Hold { fd, is_open: true, meta, path })
    }
}

impl Hold {
    /// What it was when it was taken hold of.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether it is a directory, or a file or link that has no other name: what is set on it is set nowhere else.
    #[must_use]
    pub fn is_single(&self) -> bool {
        match self.meta.kind {
            FileKind::Dir => true,
            FileKind::File | FileKind::Symlink => self.meta.nlink == 1,
            FileKind::Special => false,
        }
    }

    /// Sets owner and group; nothing is done if they are so already.
    ///
    /// # Errors
    /// As fchownat(2); only root may give files away.
    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<()> {
        if (self.meta.uid, self.meta.gid) == (uid, gid) {
            return Ok(());
        }
        let (uid, gid) = (rfs::Uid::from_raw(uid), rfs::Gid::from_raw(gid));
        rfs::chownat(&self.fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
            .map_err(|e| fail("set the owner of", &self.path, e))
    }

    /// Sets the permission bits; a link has none.
    ///
    /// # Errors
    /// As chmod(2).
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        if self.meta.kind == FileKind::Symlink {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let set = if self.is_open { rfs::fchmod(&self.fd, mode) } else { rfs::chmod(self.magic().as_str(), mode) };
        set.map_err(|e| fail("set the mode of", &self.path, e))
    }

    /// Sets the modification time, in nanoseconds since the epoch. The access time is left alone.
    ///
    /// # Errors
    /// As utimensat(2).
    pub fn set_mtime(&self, mtime: i64) -> Result<()> {
        let times = mtime_only(mtime);
        let set = match rfs::utimensat(&self.fd, "", &times, AtFlags::EMPTY_PATH) {
            // Linux < 5.8.
            Err(Errno::INVAL | Errno::NOENT) => {
                rfs::utimensat(rfs::CWD, self.magic().as_str(), &times, AtFlags::empty())
            }
            other => other,
        };
        set.map_err(|e| fail("set the time of", &self.path, e))
    }

    /// The extended attributes that belong to a tree: `user.*` and POSIX ACLs, sorted by name.
    /// Capabilities and labels of the `security` class are privileges and are never carried.
    ///
    /// # Errors
    /// If the attributes cannot be read.
    pub fn xattrs(&self) -> Result<Vec<(String, Vec<u8>)>> {
        if !matches!(self.meta.kind, FileKind::File | FileKind::Dir) {
            return Ok(Vec::new());
        }
        let path = self.magic();
        let failed = |e| fail("read the attributes of", &self.path, e);
        let mut list = vec![0_u8; 1024];
        let ask = |list: &mut [u8]| {
            if self.is_open { rfs::flistxattr(&self.fd, list) } else { rfs::listxattr(path.as_str(), list) }
        };
        let size = loop {
            match ask(list.as_mut_slice()) {
                Ok(size) => break size,
                Err(Errno::RANGE) if list.len() < 1024 * 1024 => list.resize(list.len() * 8, 0),
                Err(Errno::NOTSUP) => return Ok(Vec::new()),
                Err(e) => return Err(failed(e)),
            }
        };
        let (mut found, mut room) = (Vec::new(), MOST_ATTRIBUTES);
        for attribute in list[..size].split(|b| *b == 0).filter(|a| is_carried(a)) {
            let Ok(attribute) = std::str::from_utf8(attribute) else { continue };
            let mut value = vec![0_u8; 64 * 1024];
            match rfs::getxattr(path.as_str(), attribute, value.as_mut_slice()) {
                Ok(size) => value.truncate(size),
                // Taken away since the list was read.
                Err(Errno::NODATA) => continue,
                Err(e) => return Err(failed(e)),
            }
            room = room.checked_sub(value.len() + attribute.len()).ok_or_else(|| {
                let path = crate::sys::escape::visible(&self.path.display().to_string());
                Error::refused(format!("the attributes of {path} have more than {MOST_ATTRIBUTES} bytes"))
            })?;
            found.push((attribute.to_string(), value));
        }
        found.sort();
        Ok(found)
    }

    /// Makes the carried extended attributes exactly `wanted`.
    ///
    /// # Errors
    /// If the file system takes no attributes but some are wanted, or one is wanted that is a privilege.
    pub fn set_xattrs(&self, wanted: &[(String, Vec<u8>)]) -> Result<()> {
        if let Some((name, _)) = wanted.iter().find(|(name, _)| !is_carried(name.as_bytes())) {
            let (name, path) = (crate::sys::escape::visible(name), self.path.display());
            return Err(Error::refused(format!(
                "the attribute {name} of {path} is a privilege, which is never carried"
            )));
        }
        let path = self.magic();
        let present = self.xattrs()?;
        for (attribute, _) in present.iter().filter(|(n, _)| !wanted.iter().any(|(w, _)| w == n)) {
            match rfs::removexattr(path.as_str(), attribute.as_str()) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(e) => return Err(fail("remove an attribute of", &self.path, e)),
            }
        }
        for (attribute, value) in wanted.iter().filter(|pair| !present.contains(pair)) {
            rfs::setxattr(path.as_str(), attribute.as_str(), value, rfs::XattrFlags::empty())
                .map_err(|e| fail("set an attribute of", &self.path, e))?;
        }
        Ok(())
    }

    /// The magic link that names the very inode that we hold, for calls that refuse such descriptors.
    fn magic(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }
}

/// Whether nobody has this file open for writing, as far as the kernel tells (fcntl(2), `F_SETLEASE`): a lease for reading
/// is given only then. `false` also where it gives none at all.
///
/// The file must be open for reading only. The lease is given back at once: the caller has made sure that nobody can open
/// the file for writing any more.
#[expect(unsafe_code, reason = "fcntl(2) with F_SETLEASE has no safe wrapper")]
#[must_use]
pub fn has_no_writer(file: &File) -> bool {
    use nix::libc;
    let lease = |kind: libc::c_int| {
        // SAFETY: plain numbers go in; a lease changes nothing about the descriptor or its owner.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }
    };
    if lease(libc::F_RDLCK) != 0 {
        return false;
    }
    lease(libc::F_UNLCK);
    true
}
