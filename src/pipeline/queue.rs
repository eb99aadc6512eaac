//! Those who wait for the lock: the newest push of a ref wins, the ones before it are told that they are superseded.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::project::ids::ObjectId;
use crate::project::place::Place;
use crate::sys::error::{Context, Result};
use crate::sys::fs;
use crate::sys::lock::{self, Lock};

/// A place in the queue; it ends when this value goes away or its process dies.
#[derive(Debug)]
pub struct Ticket {
    path: PathBuf,
    number: u64,
    refname: Option<String>,
    _lock: Lock,
}

#[derive(Debug, Serialize, Deserialize)]
struct Waiting {
    refname: Option<String>,
    commit: Option<ObjectId>,
}

impl Ticket {
    /// Takes the next number. `refname` is the pushed ref: only pushes of the same ref supersede each other.
    ///
    /// # Errors
    /// If the queue's directory cannot be written.
    pub fn take(place: &Place, refname: Option<&str>, commit: Option<&ObjectId>) -> Result<Self> {
        let dir = place.waiting();
        fs::ensure_dir(&dir, 0o700)?;
        let _door = Lock::take(&dir.join(".door"), None, |_| Ok(()))?;
        let number = remove_dead(&dir)? + 1;
        let path = dir.join(format!("{number:020}"));
        let lock = Lock::take(&path, None, |_| Ok(()))?;
        let waiting = Waiting { refname: refname.map(str::to_string), commit: commit.cloned() };
        let text = serde_json::to_vec(&waiting).context(|| "cannot write a place in the queue".to_string())?;
        fs::write_in_place(&path, &text)?;
        Ok(Self { path, number, refname: waiting.refname, _lock: lock })
    }

    /// The commit of a newer push of the same ref that waits too.
    ///
    /// # Errors
    /// If the queue cannot be read.
    pub fn superseded_by(&self) -> Result<Option<ObjectId>> {
        let Some(mine) = &self.refname else { return Ok(None) };
        let Some(dir) = self.path.parent() else { return Ok(None) };
        for (number, path) in numbers(dir)?.into_iter().rev() {
            if number <= self.number || lock::holder(&path)?.is_none() {
                continue;
            }
            let Some(bytes) = fs::read_if_there(&path)? else { continue };
            let Ok(other) = serde_json::from_slice::<Waiting>(&bytes) else { continue };
            if other.refname.as_ref() == Some(mine) {
                return Ok(other.commit);
            }
        }
        Ok(None)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the places of processes that died.
///
/// # Errors
/// If the queue cannot be read or written.
pub fn sweep(place: &Place) -> Result<()> {
    let dir = place.waiting();
    if !fs::exists(&dir) {
        return Ok(());
    }
    let _door = Lock::take(&dir.join(".door"), None, |_| Ok(()))?;
    remove_dead(&dir).map(|_| ())
}

/// The same behind the closed door; the highest number that was there.
fn remove_dead(dir: &Path) -> Result<u64> {
    let mut highest = 0;
    for (number, path) in numbers(dir)? {
        highest = highest.max(number);
        if lock::holder(&path)?.is_none() {
            fs::remove_file(&path)?;
        }
    }
    Ok(highest)
}

fn numbers(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let names = fs::names(dir)?;
    Ok(names.iter().filter_map(|name| Some((name.parse().ok()?, dir.join(name)))).collect())
}
