//! What belongs to an entry beside its content: permission bits, owner, time, extended attributes.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use rustix::fs::{self as rfs, Mode, Timespec, Timestamps};

use super::hold::Hold;
use super::{Dir, fail};
use crate::sys::error::{Error, Result};

impl Dir {
    /// Sets the permission bits of a directory, or of a file that has no other name; a link is left alone.
    ///
    /// # Errors
    /// As chmod(2), and if the file has other names: it may be anybody's.
    pub fn set_mode(&self, rel: &Path, mode: u32) -> Result<()> {
        self.hold_single(rel)?.set_mode(mode)
    }

    /// Sets owner and group of a directory, or of a file or link that has no other name; links are not followed.
    ///
    /// # Errors
    /// As chownat(2), and if the file has other names; only root may give files away.
    pub fn set_owner(&self, rel: &Path, uid: u32, gid: u32) -> Result<()> {
        self.hold_single(rel)?.set_owner(uid, gid)
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

    /// Sets the modification time of a directory, or of a file or link that has no other name, in nanoseconds since the
    /// epoch; links are not followed. The access time is left alone.
    ///
    /// # Errors
    /// As utimensat(2), and if the file has other names.
    pub fn set_mtime(&self, rel: &Path, mtime: i64) -> Result<()> {
        self.hold_single(rel)?.set_mtime(mtime)
    }

    /// The carried extended attributes of an entry, as [`Hold::xattrs`].
    ///
    /// # Errors
    /// If the attributes cannot be read.
    pub fn xattrs(&self, name: &OsStr) -> Result<Vec<(String, Vec<u8>)>> {
        self.hold(Path::new(name))?.xattrs()
    }

    /// Makes the carried extended attributes of an entry that has no other name exactly `wanted`, as [`Hold::set_xattrs`].
    ///
    /// # Errors
    /// If the file system takes no attributes but some are wanted, and if the file has other names.
    pub fn set_xattrs(&self, name: &OsStr, wanted: &[(String, Vec<u8>)]) -> Result<()> {
        self.hold_single(Path::new(name))?.set_xattrs(wanted)
    }

    /// Takes hold of an entry that may be changed: with a second name it could be a file from anywhere.
    fn hold_single(&self, rel: &Path) -> Result<Hold> {
        let hold = self.hold(rel)?;
        if hold.is_single() {
            return Ok(hold);
        }
        let path = crate::sys::escape::visible_bounded(
            std::os::unix::ffi::OsStrExt::as_bytes(self.path.join(rel).as_os_str()),
            4096,
        );
        Err(Error::refused(format!("{path} has other names, or is a device, fifo or socket: it is left alone"))
            .hint(format!("look who made it: ls -l {path}")))
    }
}

/// Sets the modification time of an open file, in nanoseconds since the epoch.
///
/// # Errors
/// As futimens(3).
pub fn set_file_mtime(file: &File, mtime: i64) -> Result<()> {
    rfs::futimens(file, &mtime_only(mtime)).map_err(|e| fail("set the time of", Path::new("a new file"), e))
}

/// The times for a call that sets the modification time alone.
pub(super) fn mtime_only(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rfs::UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime.div_euclid(1_000_000_000),
            tv_nsec: mtime.rem_euclid(1_000_000_000),
        },
    }
}

/// Whether an attribute belongs to a tree: `user.*` and POSIX ACLs. Capabilities and labels are privileges.
#[must_use]
pub fn is_carried(attribute: &[u8]) -> bool {
    attribute.starts_with(b"user.") || attribute.starts_with(b"system.posix_acl_")
}
