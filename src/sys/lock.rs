//! The project's lock: flock(2) on a file that is never unlinked, with who holds it written inside.
//!
//! A lock of this kind is freed by the kernel when its holder dies, however it dies. What stands in the file is for
//! people only; nothing is decided by it.
#![expect(clippy::disallowed_methods, reason = "this module is the door")]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Kind, Result};

/// Who holds a lock, for messages.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Holder {
    /// What the holder does, for example `deploys 1a2b3c4d5e`.
    pub what: String,
    /// The holder's deployment, if it has one.
    pub id: Option<String>,
    /// The process id; it may have been given to another process since.
    pub pid: u32,
    /// Since when, as written by the holder.
    pub since: String,
}

/// Who waits no longer than this is told nothing: a deployment that is settled while the next one begins, for example.
const UNNOTICED: Duration = Duration::from_millis(200);

/// A held lock; it is released when this value goes away.
#[derive(Debug)]
#[must_use = "the lock is released when this value is dropped"]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock, waiting until `deadline` at most; `None` waits as long as it takes.
    /// `while_waiting` is called with the holder after a moment that nobody notices, and then about once per second; it may give
    /// up with an error.
    ///
    /// # Errors
    /// [`Kind::Busy`] with the holder's name when the deadline passes.
    pub fn take(
        path: &Path,
        deadline: Option<Instant>,
        mut while_waiting: impl FnMut(Option<&Holder>) -> Result<()>,
    ) -> Result<Self> {
        let file = open(path)?;
        let begin = Instant::now();
        let mut told: Option<Instant> = None;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file, path: path.to_path_buf() }),
                Err(std::fs::TryLockError::WouldBlock) => {}
                Err(std::fs::TryLockError::Error(error)) => {
                    return Err(error).context(|| format!("cannot lock {}", path.display()));
                }
            }
            let holder = read_holder(&file);
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Err(busy(holder.as_ref()));
            }
            if told.map_or(begin.elapsed() >= UNNOTICED, |t| t.elapsed() >= Duration::from_secs(1)) {
                while_waiting(holder.as_ref())?;
                told = Some(Instant::now());
            }
            std::thread::sleep(if told.is_none() { Duration::from_millis(3) } else { Duration::from_millis(20) });
        }
    }

    /// Writes who holds the lock, for those who wait.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn describe(&mut self, holder: &Holder) -> Result<()> {
        let text = serde_json::to_vec(holder).context(|| "cannot describe the lock's holder".into())?;
        let mut write = || -> std::io::Result<()> {
            self.file.set_len(0)?;
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&text)
        };
        write().context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Tells whether somebody holds the lock at `path`, and who, without taking it.
///
/// # Errors
/// If the file exists and cannot be opened.
pub fn holder(path: &Path) -> Result<Option<Holder>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(|| format!("cannot open {}", path.display())),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(_) => Ok(Some(read_holder(&file).unwrap_or(Holder {
            what: "is starting".into(),
            id: None,
            pid: 0,
            since: String::new(),
        }))),
    }
}

fn open(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .context(|| format!("cannot open the lock {}", path.display()))
}

fn read_holder(mut file: &File) -> Option<Holder> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn busy(holder: Option<&Holder>) -> Error {
    let who = holder.map_or_else(
        || "another command holds the lock".to_string(),
        |h| format!("process {} {} since {}", h.pid, h.what, h.since),
    );
    Error::new(Kind::Busy, who).hint("wait for it, or follow it with: mc_project logs NAME -f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder_and_is_free_after_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut lock = Lock::take(&path, None, |_| Ok(())).unwrap();
        lock.describe(&Holder { what: "deploys abc".into(), id: None, pid: 42, since: "noon".into() }).unwrap();
        let error = Lock::take(&path, Some(Instant::now()), |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.message().contains("process 42 deploys abc since noon"), "{error}");
        assert_eq!(holder(&path).unwrap().unwrap().pid, 42);
        drop(lock);
        assert!(holder(&path).unwrap().is_none());
        assert!(Lock::take(&path, Some(Instant::now()), |_| Ok(())).is_ok());
    }
}
