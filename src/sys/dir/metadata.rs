//! What belongs to an entry beside its content: permission bits, owner, time, extended attributes.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::{Dir, fail, open_beneath};
use crate::sys::error::Result;

impl Dir {
    /// Sets the permission bits of a file or directory; a link is left alone.
    ///
    /// # Errors
    /// As chmod(2).
    pub fn set_mode(&self, rel: &Path, mode: u32) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let shown = self.path.join(rel);
        let fd = open_beneath(self.fd.as_fd(), rel, flags, Mode::empty()).map_err(|e| fail("open", &shown, e))?;
        // fchmod(2) refuses O_PATH descriptors; the magic link names the very inode we hold.
        let magic = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rfs::chmod(magic.as_str(), Mode::from_raw_mode(mode & 0o7777)).map_err(|e| fail("set the mode of", &shown, e))
    }

    /// Sets owner and group of an entry, links not followed.
    ///
    /// # Errors
    /// As chownat(2); only root may give files away.
    pub fn set_owner(&self, rel: &Path, uid: u32, gid: u32) -> Result<()> {
        let (parent, name) = self.resolve(rel)?;
        let (uid, gid) = (rfs::Uid::from_raw(uid), rfs::Gid::from_raw(gid));
        rfs::chownat(parent.as_fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| fail("set the owner of", &self.path.join(rel), e))
    }

    /// Sets the permission bits of this directory itself.
    ///
    /// # Errors
    /// As fchmod(2).
    pub fn set_own_mode(&self, mode: u32) -> Result<()> {
        rfs::fchmod(&self.fd, Mode::from_raw_mode(mode & 0o7777)).map_err(|e| fail("set the mode of", &self.path, e))
    }

    /// Gives this directory itself to a user and a group; nothing is done if it is theirs already.
    ///
    /// # Errors
    /// As fchown(2).
    pub fn give_to(&self, uid: u32, gid: u32) -> Result<()> {
        let now = self.stat_self()?;
        if (now.uid, now.gid) == (uid, gid) {
            return Ok(());
        }
        rfs::fchown(&self.fd, Some(rfs::Uid::from_raw(uid)), Some(rfs::Gid::from_raw(gid)))
            .map_err(|e| fail("set the owner of", &self.path, e))
    }

    /// Sets the modification time, in nanoseconds since the epoch, links not followed. The access time is left alone.
    ///
    /// # Errors
    /// As utimensat(2).
    pub fn set_mtime(&self, rel: &Path, mtime: i64) -> Result<()> {
        let (parent, name) = self.resolve(rel)?;
        let times = mtime_only(mtime);
        rfs::utimensat(parent.as_fd(), name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| fail("set the time of", &self.path.join(rel), e))
    }

    /// The extended attributes that belong to a tree: `user.*` and POSIX ACLs, sorted by name.
    /// Capabilities and labels of the `security` class are privileges and are never carried.
    ///
    /// # Errors
    /// If the attributes cannot be read.
    pub fn xattrs(&self, name: &OsStr) -> Result<Vec<(String, Vec<u8>)>> {
        let path = self.magic(name);
        let mut list = vec![0_u8; 1024];
        let size = loop {
            match rfs::llistxattr(path.as_path(), list.as_mut_slice()) {
                Ok(size) => break size,
                Err(Errno::RANGE) => list.resize(list.len() * 8, 0),
                Err(Errno::NOTSUP) => return Ok(Vec::new()),
                Err(e) => return Err(fail("read the attributes of", &self.path.join(name), e)),
            }
        };
        let mut found = Vec::new();
        for attribute in list[..size].split(|b| *b == 0).filter(|a| is_carried(a)) {
            let Ok(attribute) = std::str::from_utf8(attribute) else { continue };
            let mut value = vec![0_u8; 64 * 1024];
            let size = rfs::lgetxattr(path.as_path(), attribute, value.as_mut_slice())
                .map_err(|e| fail("read the attributes of", &self.path.join(name), e))?;
            value.truncate(size);
            found.push((attribute.to_string(), value));
        }
        found.sort();
        Ok(found)
    }

    /// Makes the carried extended attributes of an entry exactly `wanted`.
    ///
    /// # Errors
    /// If the file system takes no attributes but some are wanted.
    pub fn set_xattrs(&self, name: &OsStr, wanted: &[(String, Vec<u8>)]) -> Result<()> {
        let path = self.magic(name);
        let present = self.xattrs(name)?;
        for (attribute, _) in present.iter().filter(|(n, _)| !wanted.iter().any(|(w, _)| w == n)) {
            rfs::lremovexattr(path.as_path(), attribute.as_str())
                .map_err(|e| fail("remove an attribute of", &self.path.join(name), e))?;
        }
        for (attribute, value) in wanted.iter().filter(|pair| !present.contains(pair)) {
            rfs::lsetxattr(path.as_path(), attribute.as_str(), value, rfs::XattrFlags::empty())
                .map_err(|e| fail("set an attribute of", &self.path.join(name), e))?;
        }
        Ok(())
    }

    /// A path that names the entry `name` of exactly this directory, for calls that know no descriptors.
    fn magic(&self, name: &OsStr) -> PathBuf {
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        path.push(name);
        path
    }
}

/// Sets the modification time of an open file, in nanoseconds since the epoch.
///
/// # Errors
/// As futimens(3).
pub fn set_file_mtime(file: &File, mtime: i64) -> Result<()> {
    rfs::futimens(file, &mtime_only(mtime)).map_err(|e| fail("set the time of", Path::new("a new file"), e))
}

fn mtime_only(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rfs::UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime.div_euclid(1_000_000_000),
            tv_nsec: mtime.rem_euclid(1_000_000_000),
        },
    }
}

fn is_carried(attribute: &[u8]) -> bool {
    attribute.starts_with(b"user.") || attribute.starts_with(b"system.posix_acl_")
}
