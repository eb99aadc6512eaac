//! Refs: read by either backend, written by the git program or, in the plain case, by ourselves.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::escape;
use crate::sys::names::{ObjectId, RefName};

use super::loose::Durable;
use super::program::Output;
use super::{Backend, Repo, library};

/// A ref's lock is held for milliseconds; one of this age was left by a process that was killed.
const STALE_LOCK: Duration = Duration::from_secs(30);

/// One change of [`Repo::change_refs`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefChange {
    /// The ref.
    pub name: RefName,
    /// What it must be before: zero for "does not exist", `None` for anything.
    pub old: Option<ObjectId>,
    /// What it becomes: zero for "deleted".
    pub new: ObjectId,
}

impl Repo {
    /// The object that a ref names, symbolic refs followed.
    ///
    /// # Errors
    /// If the ref cannot be read.
    pub fn read_ref(&self, name: &RefName) -> Result<Option<ObjectId>> {
        match &self.backend {
            Backend::Library(repository) => library::read_ref(repository, name.as_str()),
            // Not rev-parse: for a ref that does not exist it guesses (`x-gabc123` is the commit abc123 to it).
            Backend::Program => {
                let output = self.for_each_ref(name.as_str())?;
                let found = parse_refs(&output.stdout).into_iter().find(|(found, _)| found == name).map(|(_, id)| id);
                // git leaves out a ref whose file is damaged; that is not the same as a ref that does not exist.
                if found.is_none() && output.complains_of(&format!("broken ref {name}")) {
                    return Err(Error::failed(format!("the ref {} is damaged", name.shown())).hint("git fsck"));
                }
                Ok(found)
            }
        }
    }

    /// All refs whose names begin with `prefix`, sorted. Names that are no valid text are left out.
    ///
    /// # Errors
    /// If the refs cannot be read.
    pub fn refs(&self, prefix: &str) -> Result<Vec<(RefName, ObjectId)>> {
        let mut found = match &self.backend {
            Backend::Library(repository) => library::refs(repository, prefix)?,
            Backend::Program => {
                // git knows only prefixes that end at a slash.
                let dir = &prefix[..prefix.rfind('/').map_or(0, |i| i + 1)];
                let plain = dir.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.'));
                parse_refs(&self.for_each_ref(if plain { dir } else { "" })?.stdout)
            }
        };
        found.retain(|(name, _)| name.as_str().starts_with(prefix));
        found.sort();
        Ok(found)
    }

    fn for_each_ref(&self, pattern: &str) -> Result<Output> {
        let call = self.git().args(["for-each-ref", "--format=%(objectname) %(refname)", "--"]);
        let call = if pattern.is_empty() { call } else { call.arg(pattern) };
        let output = call.output()?;
        if output.code == Some(0) {
            return Ok(output);
        }
        Err(output.failure(&format!("list the refs of {}", self.path.display())))
    }

    /// Moves a ref from `old` to `new` in one step: a zero `old` means that it must not exist, a zero `new` deletes
    /// it. `false` if it was something other than `old`; nothing was changed then.
    ///
    /// # Errors
    /// If the ref cannot be written.
    pub fn move_ref(&self, name: &RefName, old: &ObjectId, new: &ObjectId, message: &str) -> Result<bool> {
        self.change_refs(&[RefChange { name: name.clone(), old: Some(old.clone()), new: new.clone() }], message)
    }

    /// Sets a ref, whatever it was.
    ///
    /// # Errors
    /// If the ref cannot be written.
    pub fn set_ref(&self, name: &RefName, new: &ObjectId, message: &str) -> Result<()> {
        self.change_refs(&[RefChange { name: name.clone(), old: None, new: new.clone() }], message).map(|_| ())
    }

    /// Deletes a ref; fine if there is none.
    ///
    /// # Errors
    /// If the ref cannot be written.
    pub fn delete_ref(&self, name: &RefName) -> Result<()> {
        let Some(present) = self.read_ref(name)? else { return Ok(()) };
        self.set_ref(name, &present.zero_like(), "deleted")
    }

    /// Changes several refs, all or none, durably. `false` if one was not what it had to be; nothing was changed then.
    ///
    /// # Errors
    /// If they cannot be written, for example because an object is missing or a name is in the way of another.
    pub fn change_refs(&self, changes: &[RefChange], message: &str) -> Result<bool> {
        let done = self.change_refs_soon(changes, message)?;
        if done {
            self.sync_names(&changes.iter().map(|change| change.name.clone()).collect::<Vec<_>>())?;
        }
        Ok(done)
    }

    /// As [`Repo::change_refs`], but a power cut may bring back the refs as they were, until [`Repo::sync_names`].
    ///
    /// # Errors
    /// As [`Repo::change_refs`].
    pub fn change_refs_soon(&self, changes: &[RefChange], message: &str) -> Result<bool> {
        if let Some(changed) = self.change_loose(changes, Durable::Content)? {
            return Ok(changed);
        }
        let mut said = Output::nothing();
        // Another process may hold a lock: git waits for it, first shortly, then long enough to know that it is stale.
        for patience in [Duration::from_secs(1), STALE_LOCK + Duration::from_secs(5)] {
            for _ in 0..2 {
                said = self.update_refs(changes, message, patience)?;
                if said.code == Some(0) {
                    return Ok(true);
                }
                if self.has_moved(changes)? {
                    return Ok(false);
                }
                if !self.remove_stale_locks(changes)? {
                    break;
                }
            }
            if !said.said().contains("lock") {
                break;
            }
        }
        let names: Vec<String> = changes.iter().map(|change| change.name.shown()).collect();
        let error = said.failure(&format!("change the ref {}", names.join(", ")));
        Err(error.hint(format!("git -C {} fsck", self.path.display())))
    }

    /// Makes the names of changed refs durable: git syncs the files, but not the directories that it renames them in.
    ///
    /// # Errors
    /// If a directory cannot be synced.
    pub fn sync_names(&self, names: &[RefName]) -> Result<()> {
        let mut dirs = BTreeSet::from([self.path.clone()]);
        for name in names {
            let file = self.path.join(name.as_str());
            dirs.extend(file.ancestors().skip(1).take_while(|dir| *dir != self.path).map(Path::to_path_buf));
        }
        // A directory may be gone, emptied by git after a deletion; in a reftable there never was one.
        dirs.iter().filter(|dir| dir.is_dir()).try_for_each(|dir| crate::sys::fs::sync_dir(dir))
    }

    fn update_refs(&self, changes: &[RefChange], message: &str, patience: Duration) -> Result<Output> {
        let mut input = Vec::new();
        for change in changes {
            let old = change.old.as_ref().map(ObjectId::as_str).unwrap_or_default();
            // no-deref: a symbolic ref is replaced, not followed to a ref that nobody spoke of.
            input.extend_from_slice(b"option no-deref\0");
            let line = if change.new.is_zero() && !change.old.as_ref().is_some_and(ObjectId::is_zero) {
                format!("delete {}\0{old}\0", change.name)
            } else if change.new.is_zero() {
                format!("verify {}\0{old}\0", change.name)
            } else {
                format!("update {}\0{}\0{old}\0", change.name, change.new)
            };
            input.extend_from_slice(line.as_bytes());
        }
        let shown = escape::visible(message);
        self.git()
            .setting(&format!("core.filesRefLockTimeout={}", patience.as_millis()))
            .setting(&format!("core.packedRefsTimeout={}", patience.as_millis()))
            // The identity of a reflog entry, where reflogs are kept.
            .env("GIT_COMMITTER_NAME", super::notes::NAME)
            .env("GIT_COMMITTER_EMAIL", super::notes::MAIL)
            // git refuses an empty message.
            .args(["update-ref", "-m", if message.is_empty() { "mc_project" } else { &shown }, "-z", "--stdin"])
            .input(&input)
            .output()
    }

    /// Whether a ref is not what a change asks for.
    pub(super) fn has_moved(&self, changes: &[RefChange]) -> Result<bool> {
        for change in changes {
            let Some(old) = &change.old else { continue };
            let present = self.read_ref(&change.name)?;
            let as_asked = if old.is_zero() { present.is_none() } else { present.as_ref() == Some(old) };
            if !as_asked {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the locks of these refs that a killed process left; tells whether there was one.
    fn remove_stale_locks(&self, changes: &[RefChange]) -> Result<bool> {
        let mut removed = self.remove_stale_lock("packed-refs.lock")?;
        for change in changes {
            removed |= self.remove_stale_lock(&format!("{}.lock", change.name))?;
        }
        Ok(removed)
    }

    /// Removes a lock file of git that a killed process left; tells whether it did.
    pub(super) fn remove_stale_lock(&self, name: &str) -> Result<bool> {
        // By descriptors: another user may own what lies between the repository and the lock.
        let dir = Dir::open(&self.path)?;
        let Ok(Some(lock)) = dir.stat(Path::new(name)) else { return Ok(false) };
        let written = SystemTime::UNIX_EPOCH + Duration::from_nanos(lock.mtime.try_into().unwrap_or_default());
        let stale = SystemTime::now().duration_since(written).is_ok_and(|age| age >= STALE_LOCK);
        if stale {
            dir.unlink(Path::new(name))?;
        }
        Ok(stale)
    }

    /// Makes HEAD name this ref, which need not exist yet.
    ///
    /// # Errors
    /// If HEAD cannot be written.
    pub fn set_head(&self, name: &RefName) -> Result<()> {
        if self.head()?.as_ref() == Some(name) {
            return Ok(());
        }
        self.remove_stale_lock("HEAD.lock")?;
        let doing = format!("set HEAD of {}", self.path.display());
        // HEAD is not among what the receiver may write: this is done as we are.
        self.git().identity(None).args(["symbolic-ref", "HEAD", name.as_str()]).run(&doing).map(|_| ())
    }

    /// The ref that HEAD names; `None` if HEAD names a commit directly.
    ///
    /// # Errors
    /// If HEAD cannot be read.
    pub fn head(&self) -> Result<Option<RefName>> {
        let name = match &self.backend {
            Backend::Library(repository) => match repository.find_reference("HEAD") {
                Ok(head) => head.symbolic_target_bytes().map(<[u8]>::to_vec),
                Err(error) => return Err(Error::failed("cannot read HEAD").because(error)),
            },
            Backend::Program => {
                let output = self.git().args(["symbolic-ref", "--quiet", "HEAD"]).output()?;
                match output.code {
                    Some(0) => Some(output.stdout),
                    Some(1) => None,
                    _ => return Err(output.failure("read HEAD")),
                }
            }
        };
        Ok(name.and_then(|name| std::str::from_utf8(name.trim_ascii()).ok()?.parse().ok()))
    }
}

fn parse_refs(output: &[u8]) -> Vec<(RefName, ObjectId)> {
    let parse = |line: &[u8]| -> Option<(RefName, ObjectId)> {
        let (id, name) = std::str::from_utf8(line).ok()?.split_once(' ')?;
        Some((name.parse().ok()?, id.parse().ok()?))
    };
    output.split(|b| *b == b'\n').filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::on_each;
    use super::*;

    fn name(text: &str) -> RefName {
        text.parse().unwrap()
    }

    #[test]
    fn a_ref_moves_only_from_what_it_is() {
        on_each(|f| {
            let (one, two) = (f.commit_of(&[]), f.commit_files(&[("a", b"x")], &[], "two"));
            let (main, zero, repo) = (name("refs/heads/main"), f.zero(), &f.repo);
            assert_eq!(repo.read_ref(&main).unwrap(), None);
            assert!(!repo.move_ref(&main, &one, &two, "not there").unwrap());
            assert!(repo.move_ref(&main, &zero, &one, "made").unwrap());
            assert!(!repo.move_ref(&main, &zero, &two, "must not exist").unwrap());
            assert!(!repo.move_ref(&main, &two, &one, "is another").unwrap());
            assert!(repo.move_ref(&main, &one, &two, "moved\nwith two lines").unwrap());
            assert_eq!(repo.read_ref(&main).unwrap(), Some(two.clone()));
            assert!(!repo.move_ref(&main, &one, &zero, "deleted").unwrap());
            assert!(repo.move_ref(&main, &two, &zero, "deleted").unwrap());
            assert_eq!(repo.read_ref(&main).unwrap(), None);
            assert!(repo.move_ref(&main, &zero, &zero, "nothing").unwrap());
            repo.delete_ref(&main).unwrap();
        });
    }

    #[test]
    fn odd_names_work_and_prefixes_are_no_patterns() {
        on_each(|f| {
            let commit = f.commit_of(&[]);
            let short = &commit.as_str()[..7];
            let odd =
                ["refs/heads/$(id)", "refs/heads/-x", "refs/heads/a;b", "refs/heads/é", "refs/deploys/inflight/1"];
            for text in odd {
                assert!(f.repo.move_ref(&name(text), &f.zero(), &commit, "x").unwrap(), "{text}");
                assert_eq!(f.again().read_ref(&name(text)).unwrap().as_ref(), Some(&commit), "{text}");
            }
            // What git itself would take for the commit behind -g.
            assert_eq!(f.repo.read_ref(&name(&format!("refs/heads/x-g{short}"))).unwrap(), None);
            assert_eq!(f.repo.read_ref(&name("refs/heads")).unwrap(), None);
            let found = |prefix: &str| {
                f.repo.refs(prefix).unwrap().iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
            };
            assert_eq!(found("refs/deploys/"), ["refs/deploys/inflight/1"]);
            assert_eq!(found("refs/heads/a"), ["refs/heads/a;b"]);
            assert_eq!(found("refs/heads/"), ["refs/heads/$(id)", "refs/heads/-x", "refs/heads/a;b", "refs/heads/é"]);
            assert_eq!(found("refs/heads/*"), [""; 0]);
            assert_eq!(found("").len(), 5);
            f.git(&["pack-refs", "--all"]);
            assert_eq!(found("refs/heads/-"), ["refs/heads/-x"]);
            f.repo.delete_ref(&name("refs/heads/-x")).unwrap();
            assert_eq!(found("refs/heads/-"), [""; 0]);
        });
    }

    #[test]
    fn several_refs_change_together_or_not_at_all() {
        on_each(|f| {
            let (one, two) = (f.commit_of(&[]), f.commit_files(&[("a", b"x")], &[], "two"));
            let (a, b, c) = (name("refs/heads/a"), name("refs/deploys/current"), name("refs/deploys/inflight/1"));
            f.repo.set_ref(&a, &one, "").unwrap();
            f.repo.set_ref(&c, &two, "").unwrap();
            let mut changes = [
                RefChange { name: b.clone(), old: None, new: two.clone() },
                RefChange { name: a.clone(), old: Some(two.clone()), new: two.clone() },
                RefChange { name: c.clone(), old: None, new: f.zero() },
            ];
            assert!(!f.repo.change_refs(&changes, "x").unwrap());
            assert_eq!(f.repo.refs("refs/").unwrap(), [(c.clone(), two.clone()), (a.clone(), one.clone())]);
            changes[1].old = Some(one);
            assert!(f.repo.change_refs(&changes, "x").unwrap());
            assert_eq!(f.repo.refs("refs/").unwrap(), [(b, two.clone()), (a, two)]);
        });
    }

    #[test]
    fn a_ref_to_a_missing_object_or_in_the_way_of_another_is_an_error() {
        on_each(|f| {
            let commit = f.commit_of(&[]);
            let error = f.repo.set_ref(&name("refs/heads/a"), &f.nothing(), "x").unwrap_err();
            assert!(error.message().contains("cannot change the ref a"), "{error}");
            f.repo.set_ref(&name("refs/heads/a"), &commit, "x").unwrap();
            assert!(f.repo.set_ref(&name("refs/heads/a/b"), &commit, "x").is_err());
        });
    }

    #[test]
    fn a_lock_left_by_a_killed_process_is_removed_and_a_held_one_is_waited_for() {
        on_each(|f| {
            let (commit, main) = (f.commit_of(&[]), name("refs/heads/main"));
            f.repo.set_ref(&main, &commit, "x").unwrap();
            let lock = f.path.join("refs/heads/main.lock");
            let file = std::fs::File::create(&lock).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_mins(1)).unwrap();
            assert!(f.repo.move_ref(&main, &commit, &f.zero(), "x").unwrap());
            std::fs::write(&lock, "").unwrap();
            let held = lock.clone();
            let holder = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                std::fs::remove_file(held).unwrap();
            });
            assert!(f.repo.move_ref(&main, &f.zero(), &commit, "x").unwrap());
            holder.join().unwrap();
        });
    }

    #[test]
    fn head_names_a_branch_even_before_it_is_born() {
        on_each(|f| {
            assert_eq!(f.repo.head().unwrap(), Some(name("refs/heads/main")));
            f.repo.set_head(&name("refs/heads/trunk")).unwrap();
            assert_eq!(f.again().head().unwrap(), Some(name("refs/heads/trunk")));
            let commit = f.commit_of(&[]);
            f.git(&["update-ref", "--no-deref", "HEAD", commit.as_str()]);
            assert_eq!(f.again().head().unwrap(), None);
        });
    }

    #[test]
    fn our_own_moves_run_no_hooks() {
        on_each(|f| {
            // A hook would run as us: a push may have one, our own moves do not.
            let hooks = f.path.join("hooks");
            std::fs::create_dir(&hooks).unwrap();
            let hook = hooks.join("reference-transaction");
            std::fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
            crate::sys::fs::set_mode(&hook, 0o755).unwrap();
            let commit = f.commit_of(&[]);
            assert!(f.repo.move_ref(&name("refs/heads/main"), &f.zero(), &commit, "x").unwrap());
        });
    }

    #[test]
    fn a_damaged_ref_is_not_taken_for_one_that_does_not_exist() {
        on_each(|f| {
            let commit = f.commit_of(&[]);
            f.repo.set_ref(&name("refs/heads/good"), &commit, "x").unwrap();
            // As after a power cut, had nobody synced it.
            std::fs::write(f.path.join("refs/heads/main"), "").unwrap();
            assert!(f.repo.read_ref(&name("refs/heads/main")).is_err());
            assert_eq!(f.repo.refs("refs/heads/").unwrap(), [(name("refs/heads/good"), commit)]);
        });
    }
}
