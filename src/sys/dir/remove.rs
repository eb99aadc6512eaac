//! Removing a tree that somebody may still write to, of any depth.
//!
//! There is no recursion and never more than a few open directories: what lies deeper than [`DEEPEST`] levels is renamed
//! up to the top of what is being removed and taken from there.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Dir, FileKind, OPEN_DIR, fail};
use crate::sys::error::{Error, Result};

/// How many directories are open at once.
const DEEPEST: usize = 48;
/// How often a directory is read again in which new names turn up while it is emptied.
const ROUNDS: u32 = 64;
/// How often a name is looked at again that changes between being a directory and something else.
const FLIPS: u32 = 16;

/// A directory that is being emptied.
struct Level {
    dir: Dir,
    /// Its name in the directory above.
    name: OsString,
    names: Vec<OsString>,
    rounds: u32,
}

impl Dir {
    /// Removes an entry and everything below it; fine if it does not exist. Never leaves this directory or its file system.
    ///
    /// # Errors
    /// If something cannot be removed, a mount point is in the way, or somebody keeps adding to it.
    pub fn remove_tree(&self, rel: &Path) -> Result<()> {
        let (parent, name) = match self.resolve(rel) {
            Err(e) if e.is_not_found() => return Ok(()),
            other => other?,
        };
        for _ in 0..FLIPS {
            match rfs::unlinkat(parent.as_fd(), name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::ISDIR) => {}
                Err(e) => return Err(fail("remove", &self.path.join(rel), e)),
            }
            let fd = rfs::openat(parent.as_fd(), ".", OPEN_DIR | OFlags::PATH, Mode::empty())
                .map_err(|e| fail("open directory", &self.path, e))?;
            let above = Self { fd, path: self.path.join(rel.parent().unwrap_or_else(|| Path::new(""))) };
            match above.remove_directory(name) {
                // It is no directory any more, or it is gone.
                Err(e) if e.errno().is_some_and(changed_meanwhile) => {}
                other => return other,
            }
        }
        Err(Error::failed(format!("{} changes all the time", self.path.join(rel).display()))
            .hint("find out who writes there: fuser -v"))
    }

    fn remove_directory(&self, name: &OsStr) -> Result<()> {
        let here = self.stat_self()?;
        let mut stack = vec![self.level(name, (here.dev, here.mount))?];
        let mut lifted = 0_u64;
        while let Some(depth) = stack.len().checked_sub(1) {
            let Some(next) = stack[depth].names.pop() else {
                let Some(mut level) = stack.pop() else { break };
                let above = stack.last().map_or(self, |level| &level.dir);
                match rfs::unlinkat(&above.fd, &level.name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    // Something else stands at its name now; it is seen when the directory above is read again.
                    Err(Errno::NOTDIR) if !stack.is_empty() => {}
                    Err(Errno::NOTEMPTY | Errno::EXIST) if level.rounds < ROUNDS => {
                        level.rounds += 1;
                        level.names = level.dir.names()?;
                        stack.push(level);
                    }
                    Err(e) => return Err(fail("remove directory", &level.dir.path, e)),
                }
                continue;
            };
            let level = &stack[depth];
            match rfs::unlinkat(&level.dir.fd, &next, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(e) => return Err(fail("remove", &level.dir.path.join(&next), e)),
            }
            if depth + 1 >= DEEPEST {
                lifted += 1;
                if let Some(new) = level.dir.lift(&next, &stack[0].dir, lifted)? {
                    stack[0].names.push(new);
                    continue;
                }
            }
            match stack[depth].dir.level(&next, (here.dev, here.mount)) {
                Ok(inner) => stack.push(inner),
                // Swapped or gone meanwhile: it is seen again when the directory is read again.
                Err(e) if e.errno().is_some_and(changed_meanwhile) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Opens a directory that shall be emptied, with the bits for that.
    fn level(&self, name: &OsStr, (device, mount): (u64, u64)) -> Result<Level> {
        let path = self.path.join(name);
        let open = || rfs::openat(&self.fd, name, OPEN_DIR | OFlags::NOFOLLOW, Mode::empty());
        let fd = match open() {
            // A directory of our own without the bits; root needs none.
            Err(Errno::ACCESS) => {
                let hold = self.hold(Path::new(name))?;
                if hold.meta().kind == FileKind::Dir {
                    hold.set_mode(hold.meta().mode | 0o700)?;
                }
                open()
            }
            other => other,
        };
        let dir = Self { fd: fd.map_err(|e| fail("open directory", &path, e))?, path };
        let meta = dir.stat_self()?;
        if (meta.dev, meta.mount) != (device, mount) {
            return Err(Error::refused(format!("{} is a mount point", dir.path.display()))
                .hint(format!("umount {}", dir.path.display())));
        }
        if meta.mode & 0o700 != 0o700 && meta.uid == rustix::process::geteuid().as_raw() {
            dir.set_own_mode(meta.mode | 0o700)?;
        }
        let names = dir.names()?;
        // The path is for messages: that of a bomb would be as long as the bomb is deep.
        let path = if dir.path.as_os_str().len() > 4096 { PathBuf::from("…") } else { dir.path.clone() };
        Ok(Level { dir: Self { path, ..dir }, name: name.to_os_string(), names, rounds: 0 })
    }

    /// Moves a directory up to `top` and tells its new name; `None` if it must be entered where it is.
    fn lift(&self, name: &OsStr, top: &Self, number: u64) -> Result<Option<OsString>> {
        let new = format!(".mc_project.deep-{}-{number}", std::process::id());
        match rfs::renameat_with(&self.fd, name, &top.fd, new.as_str(), rfs::RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Some(new.into())),
            // A name that somebody took on purpose, or a mount point, which is found when it is entered.
            Err(Errno::NOENT | Errno::EXIST | Errno::BUSY | Errno::XDEV) => Ok(None),
            Err(e) => Err(fail("move", &self.path.join(name), e)),
        }
    }
}

/// What the kernel says when a directory was replaced between two calls.
fn changed_meanwhile(errno: i32) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].iter().any(|known| known.raw_os_error() == errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_is_deeper_than_any_path_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        dir.make_dir(Path::new("top"), 0o755).unwrap();
        let mut at = dir.dir(Path::new("top")).unwrap();
        for number in 0..1_500 {
            // Names of one's own length make the whole path longer than anything that could be given to a call.
            let name = if number % 2 == 0 { "x".repeat(200) } else { "y".to_string() };
            at.make_dir(Path::new(&name), 0o755).unwrap();
            let fd = rfs::openat(&at.fd, name.as_str(), OPEN_DIR, Mode::empty()).unwrap();
            at = Dir { fd, path: PathBuf::from("deep") };
        }
        at.create_file(Path::new("last"), 0o600).unwrap();
        drop(at);
        let begin = std::time::Instant::now();
        dir.remove_tree(Path::new("top")).unwrap();
        assert!(dir.names().unwrap().is_empty());
        assert!(begin.elapsed() < std::time::Duration::from_mins(2), "{:?}", begin.elapsed());
    }

    #[test]
    fn many_deep_branches_and_names_like_ours_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        for branch in 0..5 {
            let mut path = temp.path().join("top").join(format!("b{branch}"));
            for level in 0..120 {
                path.push(format!("{level}"));
            }
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("file"), "x").unwrap();
            std::os::unix::fs::symlink("/etc", path.join("link")).unwrap();
        }
        let taken = format!("top/.mc_project.deep-{}-1", std::process::id());
        std::fs::create_dir_all(temp.path().join(taken).join("full")).unwrap();
        dir.remove_tree(Path::new("top")).unwrap();
        assert!(dir.names().unwrap().is_empty());
        assert!(Path::new("/etc/passwd").exists());
    }
}
