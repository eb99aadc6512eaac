//! The one door of durability: everything of ours that must survive a power cut is synced here.
//!
//! With the build feature `failpoints`, `MC_NOSYNC` in the environment leaves all syncs out: the negative control of the tests
//! of power loss, which prove nothing if they do not find that.
#![allow(clippy::disallowed_methods, reason = "this module is the door")]

use std::io;
use std::os::fd::AsFd;

use rustix::io::retry_on_intr;

/// Makes a file, or the names in a directory, durable (fsync(2)).
///
/// # Errors
/// A failed sync is final and never to be repeated: the kernel may have thrown away what it could not write.
pub fn whole(file: impl AsFd) -> io::Result<()> {
    if is_left_out() {
        return Ok(());
    }
    Ok(retry_on_intr(|| rustix::fs::fsync(&file))?)
}

/// Makes what a file holds durable (fdatasync(2)).
///
/// # Errors
/// As [`whole`].
pub fn content(file: impl AsFd) -> io::Result<()> {
    if is_left_out() {
        return Ok(());
    }
    Ok(retry_on_intr(|| rustix::fs::fdatasync(&file))?)
}

/// Makes everything on the file system of this file durable (syncfs(2)).
///
/// # Errors
/// As [`whole`]; also errors of earlier writes that surface only here.
pub fn file_system(of: impl AsFd) -> io::Result<()> {
    if is_left_out() {
        return Ok(());
    }
    Ok(retry_on_intr(|| rustix::fs::syncfs(&of))?)
}

#[cfg(not(feature = "failpoints"))]
#[inline]
fn is_left_out() -> bool {
    false
}

#[cfg(feature = "failpoints")]
fn is_left_out() -> bool {
    std::env::var_os("MC_NOSYNC").is_some()
}
