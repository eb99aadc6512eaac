//! Writing loose refs without a process of git, in the way in which its own files are written: `NAME.lock` is made
//! exclusively, what the ref is is looked at under that lock, and the lock is renamed to the ref.
//!
//! A process of git costs more than all the rest of a small deployment's commit, and syncs each ref by itself. What is done
//! here is the plain case only; everything else is left to git: another format or another user, refs that are shared by a
//! group, reflogs, symbolic refs, a lock that somebody holds, a ref in `packed-refs` that is deleted, and the first value of
//! a ref that is not below `refs/deploys/`, whose name may be in the way of others.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::dir::Dir;
use crate::sys::error::Result;
use crate::sys::fs::{self, Several};
use crate::sys::names::{ObjectId, RefName};

use super::refs::RefChange;
use super::{Backend, Repo, library};

/// Where only we make refs.
const OURS: &str = "refs/deploys/";

/// What the name of a lock ends with.
const LOCK: &str = ".lock";

/// What a power cut may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// The names: the refs are what they were, or what they became.
    Content,
    /// Everything: a ref may be there and empty.
    Nothing,
}

impl Repo {
    /// Changes refs, all or none; `None` if git must do it. `Some(false)` if one was not what it had to be.
    ///
    /// # Errors
    /// If they cannot be read or written.
    pub(super) fn change_loose(&self, changes: &[RefChange], durable: Durable) -> Result<Option<bool>> {
        for change in changes {
            if !self.is_plain(change)? {
                return Ok(None);
            }
        }
        let (mut written, mut locks) = (Several::default(), Several::default());
        for change in changes {
            let path = self.path.join(change.name.as_str());
            let lock = self.path.join(format!("{}{LOCK}", change.name));
            let text = format!("{}\n", change.new);
            let (files, text) =
                if change.new.is_zero() { (&mut locks, b"".as_slice()) } else { (&mut written, text.as_bytes()) };
            // Dropped together, so that no lock stays.
            if files.add_locked(&path, lock, text).is_err() {
                return Ok(None);
            }
        }
        if self.has_moved(changes)? {
            return Ok(Some(false));
        }
        match durable {
            Durable::Content => written.replace_soon()?,
            Durable::Nothing => written.replace_lossy()?,
        }
        for change in changes.iter().filter(|change| change.new.is_zero()) {
            fs::remove_file(&self.path.join(change.name.as_str()))?;
        }
        Ok(Some(true))
    }

    /// Makes sure that a commit is kept while we work with it, whatever `git gc` does. Nothing waits for the disk: what needs
    /// the commit after a power cut begins anew.
    ///
    /// # Errors
    /// If the ref cannot be written.
    pub fn hold(&self, name: &RefName, commit: &ObjectId) -> Result<()> {
        let change = [RefChange { name: name.clone(), old: None, new: commit.clone() }];
        match self.change_loose(&change, Durable::Nothing)? {
            Some(_) => Ok(()),
            None => self.set_ref(name, commit, "mc_project: in flight"),
        }
    }

    /// Ends what [`Repo::hold`] began. A ref that a power cut left empty goes too.
    ///
    /// # Errors
    /// If the ref cannot be removed.
    pub fn let_go(&self, name: &RefName) -> Result<()> {
        if !fs::exists(&self.path.join(name.as_str())) && self.read_ref(name)?.is_none() {
            return Ok(());
        }
        let zero = "0".repeat(self.format.digits()).parse()?;
        let change = [RefChange { name: name.clone(), old: None, new: zero }];
        if self.change_loose(&change, Durable::Nothing)?.is_some() { Ok(()) } else { self.delete_ref(name) }
    }

    /// Removes the locks that a killed process of ours left: those of our own refs, and that of the ref that it was about to
    /// make this commit. The caller knows that the process is dead.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn break_locks(&self, moved: Option<&RefName>, commit: &ObjectId) -> Result<()> {
        if self.identity.is_some() || !matches!(self.backend, Backend::Library(_)) {
            return Ok(());
        }
        for refs in ["refs/deploys", "refs/deploys/kept", "refs/deploys/inflight"] {
            remove_locks(&self.path, refs)?;
        }
        let Some(name) = moved else { return Ok(()) };
        let lock = self.path.join(format!("{name}{LOCK}"));
        let is_ours = fs::read_if_there(&lock)?.is_some_and(|text| text == format!("{commit}\n").as_bytes());
        if is_ours { fs::remove_file(&lock) } else { Ok(()) }
    }

    fn is_plain(&self, change: &RefChange) -> Result<bool> {
        let Backend::Library(repository) = &self.backend else { return Ok(false) };
        let is_set = |key: &str| self.config(key).map(|value| value.is_some_and(|value| value != "false"));
        if self.identity.is_some() || is_set("core.sharedrepository")? || is_set("core.logallrefupdates")? {
            return Ok(false);
        }
        let name = change.name.as_str();
        let path = self.path.join(name);
        if fs::exists(&self.path.join("logs")) || fs::examine(&path)?.is_some_and(|meta| !meta.is_file()) {
            return Ok(false);
        }
        if library::is_symbolic(repository, name) {
            return Ok(false);
        }
        if change.new.is_zero() {
            let is_checked_only = change.old.as_ref().is_some_and(ObjectId::is_zero);
            return Ok(!is_checked_only && !self.is_packed(name)?);
        }
        Ok(name.starts_with(OURS) || self.read_ref(&change.name)?.is_some())
    }

    fn is_packed(&self, name: &str) -> Result<bool> {
        let packed = fs::read_if_there(&self.path.join("packed-refs"))?.unwrap_or_default();
        Ok(memchr::memmem::find(&packed, format!(" {name}\n").as_bytes()).is_some())
    }
}

/// Removes the locks of the refs directly below `refs` (`refs/notes`, for example), whose only writer is known to be dead. The
/// directory may be another account's: what stands there in its place, a link for example, is an error.
///
/// # Errors
/// If one cannot be removed.
pub fn remove_locks(repository: &Path, refs: &str) -> Result<()> {
    let dir = match Dir::open_real(repository)?.dir(Path::new(refs)) {
        Err(error) if error.is_not_found() => return Ok(()),
        other => other?,
    };
    let is_lock = |name: &OsString| name.as_bytes().ends_with(LOCK.as_bytes());
    dir.names()?.iter().filter(|name| is_lock(name)).try_for_each(|name| dir.unlink(Path::new(name)))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::on_each;
    use super::*;

    #[test]
    fn a_held_commit_survives_a_collection_and_is_let_go() {
        on_each(|f| {
            let commit = f.commit_files(&[("a", b"1")], &[], "one");
            let name = "refs/deploys/inflight/x".parse().unwrap();
            f.repo.hold(&name, &commit).unwrap();
            assert_eq!(f.git(&["rev-parse", "refs/deploys/inflight/x"]).trim(), commit.as_str());
            f.git(&["gc", "--quiet", "--prune=now"]);
            assert_eq!(f.again().read_ref(&name).unwrap(), Some(commit.clone()), "packed by now");
            f.again().delete_ref(&name).unwrap();
            assert_eq!(f.again().read_ref(&name).unwrap(), None);
            assert_eq!(f.git(&["for-each-ref"]), "");
        });
    }

    #[test]
    fn several_refs_change_together_or_not_at_all_and_no_lock_is_left() {
        on_each(|f| {
            let one = f.commit_files(&[("a", b"1")], &[], "one");
            let two = f.commit_files(&[("a", b"2")], &[&one], "two");
            f.git(&["update-ref", "refs/heads/main", one.as_str()]);
            f.git(&["update-ref", "refs/deploys/inflight/x", two.as_str()]);
            let change = |name: &str, old: Option<&ObjectId>, new: &ObjectId| RefChange {
                name: name.parse().unwrap(),
                old: old.cloned(),
                new: new.clone(),
            };
            let repo = f.again();
            let all = |old: &ObjectId| {
                let gone = change("refs/deploys/inflight/x", None, &one.zero_like());
                [change("refs/deploys/current", None, &two), change("refs/heads/main", Some(old), &two), gone]
            };
            assert!(!repo.change_refs_soon(&all(&two), "x").unwrap());
            assert_eq!(f.git(&["rev-parse", "refs/heads/main"]).trim(), one.as_str());
            assert!(!f.git(&["for-each-ref", "--format=%(refname)"]).contains("current"));
            assert!(repo.change_refs_soon(&all(&one), "x").unwrap());
            let refs = f.git(&["for-each-ref", "--format=%(refname) %(objectname)"]);
            assert_eq!(refs, format!("refs/deploys/current {two}\nrefs/heads/main {two}"));
            f.git(&["fsck", "--strict"]);
            let found = std::process::Command::new("find").arg(f.repo.path()).args(["-name", "*.lock"]).output();
            assert!(found.unwrap().stdout.is_empty());
        });
    }

    #[test]
    fn what_a_killed_process_left_is_taken_away_and_what_is_somebody_elses_stays() {
        on_each(|f| {
            let one = f.commit_files(&[("a", b"1")], &[], "one");
            let two = f.commit_files(&[("a", b"2")], &[&one], "two");
            let inflight = "refs/deploys/inflight/x".parse().unwrap();
            f.repo.hold(&inflight, &one).unwrap();
            let at = |name: &str| f.repo.path().join(name);
            std::fs::write(at("refs/deploys/current.lock"), "").unwrap();
            std::fs::write(at("refs/heads/main.lock"), format!("{one}\n")).unwrap();
            std::fs::write(at("refs/heads/other.lock"), format!("{one}\n")).unwrap();
            let main = "refs/heads/main".parse().unwrap();
            let repo = f.again();
            if !matches!(repo.backend, Backend::Library(_)) {
                return;
            }
            repo.break_locks(Some(&main), &two).unwrap();
            assert!(!at("refs/deploys/current.lock").exists() && at("refs/heads/main.lock").exists());
            repo.break_locks(Some(&main), &one).unwrap();
            assert!(!at("refs/heads/main.lock").exists() && at("refs/heads/other.lock").exists());
            std::fs::write(at("refs/deploys/inflight/x"), "").unwrap();
            f.again().let_go(&inflight).unwrap();
            assert!(!at("refs/deploys/inflight/x").exists());
            f.again().let_go(&inflight).unwrap();
        });
    }

    #[test]
    fn a_symbolic_ref_a_reflog_and_a_lock_are_left_to_git() {
        on_each(|f| {
            let one = f.commit_files(&[("a", b"1")], &[], "one");
            let two = f.commit_files(&[("a", b"2")], &[&one], "two");
            f.git(&["update-ref", "refs/heads/other", one.as_str()]);
            f.git(&["symbolic-ref", "refs/heads/main", "refs/heads/other"]);
            f.again().set_ref(&"refs/heads/main".parse().unwrap(), &two, "x").unwrap();
            assert_eq!(f.git(&["rev-parse", "refs/heads/other"]).trim(), one.as_str(), "replaced, not followed");
            assert_eq!(f.git(&["rev-parse", "refs/heads/main"]).trim(), two.as_str());
            f.git(&["config", "core.logAllRefUpdates", "always"]);
            f.again().set_ref(&"refs/heads/main".parse().unwrap(), &one, "why it moved").unwrap();
            assert!(f.git(&["reflog", "refs/heads/main"]).contains("why it moved"));
        });
    }

    #[test]
    fn locks_are_removed_beneath_the_repository_alone() {
        let temp = tempfile::tempdir().unwrap();
        let (repository, elsewhere) = (temp.path().join("git"), temp.path().join("elsewhere"));
        std::fs::create_dir_all(repository.join("refs/deploys")).unwrap();
        std::fs::create_dir(&elsewhere).unwrap();
        for path in [repository.join("refs/deploys/current.lock"), elsewhere.join("other.lock")] {
            std::fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(&elsewhere, repository.join("refs/notes")).unwrap();
        remove_locks(&repository, "refs/deploys").unwrap();
        assert!(!repository.join("refs/deploys/current.lock").exists());
        assert!(remove_locks(&repository, "refs/notes").is_err(), "it is a link");
        assert!(elsewhere.join("other.lock").exists());
        remove_locks(&repository, "refs/deploys/kept").unwrap();
    }
}
