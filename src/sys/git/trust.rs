//! The repositories that git accepts although they are another user's: `safe.directory` (git-config(1)), in the machine's
//! configuration, because git takes it from no repository.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::error::Result;

use super::program::Git;

/// Whether the machine's configuration names exactly this path.
///
/// # Errors
/// If git cannot be asked.
pub fn is_safe_directory(path: &Path) -> Result<bool> {
    let asked =
        Git::outside().with_system_config().args(["config", "--system", "--null", "--get-all", "safe.directory"]);
    // Exit code 1: the key is not there, or there is no such file.
    let listed = asked.output()?.stdout;
    Ok(listed.split(|byte| *byte == 0).any(|line| line == path.as_os_str().as_bytes()))
}

/// Adds this path to the machine's configuration.
///
/// # Errors
/// If it cannot be written.
pub fn add_safe_directory(path: &Path) -> Result<()> {
    let adding = Git::outside().with_system_config().args(["config", "--system", "--add", "safe.directory"]).arg(path);
    adding.run("name a repository in git's system configuration").map(|_| ())
}

/// Takes this path out of the machine's configuration; fine if it is not there.
///
/// # Errors
/// If it cannot be written.
pub fn remove_safe_directory(path: &Path) -> Result<()> {
    if !is_safe_directory(path)? {
        return Ok(());
    }
    let words = ["config", "--system", "--fixed-value", "--unset-all", "safe.directory"];
    let removing = Git::outside().with_system_config().args(words).arg(path);
    removing.run("take a repository out of git's system configuration").map(|_| ())
}
