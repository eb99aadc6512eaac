//! A clone with files that its owner works in: examined and moved by git as that owner, never as root.
//!
//! Whoever owns a clone decides what its `.git/config` says, and thereby which programs git starts (filters, for example):
//! so git runs with the owner's rights, and what it prints is a stranger's word. Hooks are off.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::notes::{MAIL, NAME};
use super::program::{Git, Output};
use super::{ObjectFormat, Repo};
use crate::sys::error::{Error, Result};
use crate::sys::fs::File;
use crate::sys::names::{ObjectId, RefName};
use crate::sys::path::TreePath;
use crate::sys::process::MARKER;
use crate::sys::step_exec::RunAs;

/// The most that is read of what git says about a clone.
const SAID: usize = 64 * 1024 * 1024;

/// How a path of a clone differs from its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Changed, staged or in conflict.
    Changed,
    /// New, in the index.
    Added,
    /// Gone.
    Removed,
    /// New, not in the index and not ignored.
    Untracked,
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Where.
    pub path: TreePath,
    /// How.
    pub kind: ChangeKind,
}

/// Which untracked files are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untracked {
    /// None.
    No,
    /// Every single one that is not ignored.
    All,
}

/// A clone with files.
#[derive(Debug, Clone)]
pub struct WorkTree {
    dir: PathBuf,
    identity: Option<(u32, u32)>,
    mark: Option<String>,
}

impl WorkTree {
    /// The clone in this directory; git runs as `owner`, or as we are.
    #[must_use]
    pub fn at(dir: &Path, owner: Option<&RunAs>) -> Self {
        Self { dir: dir.to_path_buf(), identity: owner.map(|owner| (owner.uid, owner.gid)), mark: None }
    }

    /// Marks git's processes, so that a later recovery finds and ends them ([`crate::sys::process::kill_marked`]).
    #[must_use]
    pub fn marked(mut self, mark: String) -> Self {
        self.mark = Some(mark);
        self
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn git(&self) -> Git<'static> {
        let mut work_tree = OsString::from("--work-tree=");
        work_tree.push(&self.dir);
        let git = Git::of(&self.dir.join(".git")).identity(self.identity).limit(SAID);
        // The pathspecs and the programs that git starts begin at the top of the tree.
        let git = git.arg("-C").arg(&self.dir).arg(work_tree);
        match &self.mark {
            Some(mark) => git.env(MARKER, mark),
            None => git,
        }
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} the clone in {}", self.dir.display())
    }

    /// Makes an empty repository in the existing, empty directory, with `origin` as its remote.
    ///
    /// # Errors
    /// If git fails.
    pub fn init(&self, format: ObjectFormat, branch: &str, origin: &Path) -> Result<()> {
        Git::outside()
            .identity(self.identity)
            .args(["init", "--quiet", "--template="])
            .arg(format!("--object-format={}", format.as_str()))
            .arg(format!("--initial-branch={branch}"))
            .arg("--")
            .arg(&self.dir)
            .run(&self.doing("make"))?;
        let tracked = format!("refs/heads/{branch}");
        let (remote, merge) = (format!("branch.{branch}.remote"), format!("branch.{branch}.merge"));
        self.git().args(["remote", "add", "--", "origin"]).arg(origin).run(&self.doing("name the origin of"))?;
        for (key, value) in [(remote.as_str(), "origin"), (merge.as_str(), tracked.as_str())] {
            self.git().args(["config", "--local", key, value]).run(&self.doing("configure"))?;
        }
        Ok(())
    }

    /// The commit that is checked out; `None` before the first one.
    ///
    /// # Errors
    /// If this is no repository, or its HEAD is damaged.
    pub fn head(&self) -> Result<Option<ObjectId>> {
        self.commit_named("HEAD")
    }

    /// The tip of a branch of the clone.
    ///
    /// # Errors
    /// If this is no repository.
    pub fn tip(&self, branch: &str) -> Result<Option<ObjectId>> {
        self.commit_named(&format!("refs/heads/{branch}"))
    }

    fn commit_named(&self, name: &str) -> Result<Option<ObjectId>> {
        // Fails for a directory that is no repository, which must not look like one without commits.
        self.git().args(["rev-parse", "--git-dir"]).run(&self.doing("examine"))?;
        let said =
            self.git().args(["rev-parse", "--verify", "--quiet", "--end-of-options"]).arg(format!("{name}^{{commit}}"));
        let said = said.output()?;
        if said.code != Some(0) {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&said.stdout);
        text.trim().parse().map(Some).map_err(|_| Error::failed(format!("cannot {}", self.doing("examine"))))
    }

    /// Whether the clone has this commit.
    ///
    /// # Errors
    /// If git cannot be started.
    pub fn has(&self, commit: &ObjectId) -> Result<bool> {
        let asked = self.git().args(["cat-file", "-e"]).arg(format!("{commit}^{{commit}}")).output()?;
        Ok(asked.code == Some(0))
    }

    /// What differs from the commit that is checked out. Submodules do not count.
    ///
    /// # Errors
    /// If git fails; paths that no tree of ours may hold are left out.
    pub fn changes(&self, untracked: Untracked) -> Result<Vec<Changed>> {
        let files = if untracked == Untracked::All { "--untracked-files=all" } else { "--untracked-files=no" };
        let said = self
            .git()
            .args(["status", "--porcelain=v1", "-z", "--no-renames", "--ignore-submodules=all", files])
            .run(&self.doing("examine"))?;
        Ok(parse_status(&said))
    }

    /// The files that the index knows.
    ///
    /// # Errors
    /// If git fails; paths that no tree of ours may hold are left out.
    pub fn tracked(&self) -> Result<std::collections::BTreeSet<TreePath>> {
        let said = self.git().args(["ls-files", "-z"]).run(&self.doing("examine"))?;
        let paths = said.split(|b| *b == 0).filter(|path| !path.is_empty());
        Ok(paths.filter_map(|path| TreePath::new(path).ok()).collect())
    }

    /// Takes the objects of a bundle in; its ref `from` becomes `origin/<branch>`.
    ///
    /// # Errors
    /// If the bundle does not fit.
    pub fn fetch_bundle(&self, bundle: &Path, from: &RefName, branch: &str) -> Result<()> {
        self.git()
            // A file, and nothing that the clone's configuration makes of its name.
            .env("GIT_ALLOW_PROTOCOL", "file")
            .args(["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"])
            .args(["--no-recurse-submodules", "--"])
            .arg(bundle)
            .arg(format!("+{from}:refs/remotes/origin/{branch}"))
            .run(&self.doing("bring the new commits into"))
            .map(|_| ())
    }

    /// Checks a commit out on a branch, which becomes that commit. Without `force` git refuses to overwrite what was changed.
    ///
    /// # Errors
    /// If git fails.
    pub fn check_out(&self, branch: &str, commit: &ObjectId, force: bool) -> Result<()> {
        let git = self.git().args(["checkout", "--quiet", "--no-track", "--no-recurse-submodules"]);
        let git = if force { git.arg("--force") } else { git };
        git.args(["-B", branch, commit.as_str(), "--"]).run(&self.doing("check the commit out in")).map(|_| ())
    }

    /// Removes locks that a killed git left behind; the caller knows that no git of ours works here any more.
    ///
    /// # Errors
    /// If git cannot be started.
    pub fn remove_index_lock(&self) -> Result<()> {
        // By git itself, because the directory is its owner's: `git -c alias.x=!…` runs a shell with the owner's rights.
        let git = self.git().setting("alias.mc-unlock=!rm -f -- \"$GIT_DIR/index.lock\" \"$GIT_DIR/HEAD.lock\"");
        git.arg("mc-unlock").run(&self.doing("unlock")).map(|_| ())
    }

    /// Keeps everything that differs from the commit that is checked out, what is staged and what is untracked too, as a
    /// commit on a new branch. Files, index and HEAD are left as they are. With nothing to keep the branch is HEAD itself.
    ///
    /// # Errors
    /// If git fails.
    pub fn keep_aside(&self, branch: &RefName, message: &str) -> Result<ObjectId> {
        let doing = || self.doing("keep aside what was changed in");
        let head = self.head()?;
        let index = self.dir.join(".git/mc-aside-index");
        let aside = || self.git().env("GIT_INDEX_FILE", &index);
        let start = head.as_ref().map_or("--empty".to_string(), ToString::to_string);
        aside().args(["read-tree", start.as_str()]).run(&doing())?;
        // -A for all; what cannot be read is kept by nobody, and must not be lost silently.
        aside().setting("core.safecrlf=false").args(["add", "--all", "--", "."]).run(&doing())?;
        let files = id_of(&aside().arg("write-tree").run(&doing())?)?;
        // What is staged; an index in conflict has no tree, its files are in the other one.
        let staged = self.git().arg("write-tree").output()?;
        let staged = if staged.code == Some(0) { Some(id_of(&staged.stdout)?) } else { None };
        let mut parents = head.clone().into_iter().collect::<Vec<_>>();
        if let Some(tree) = staged {
            parents.push(self.commit_tree(&tree, &parents, &format!("{message} (staged)"))?);
        }
        let kept = self.commit_tree(&files, &parents, message)?;
        self.git().args(["update-ref", branch.as_str(), kept.as_str()]).run(&doing())?;
        let clean = self.git().setting("alias.mc-clean=!rm -f -- \"$GIT_DIR/mc-aside-index\"");
        clean.arg("mc-clean").run(&doing())?;
        Ok(kept)
    }

    fn commit_tree(&self, tree: &ObjectId, parents: &[ObjectId], message: &str) -> Result<ObjectId> {
        let mut git = self
            .git()
            .env("GIT_AUTHOR_NAME", NAME)
            .env("GIT_AUTHOR_EMAIL", MAIL)
            .env("GIT_COMMITTER_NAME", NAME)
            .env("GIT_COMMITTER_EMAIL", MAIL)
            .args(["commit-tree", "--no-gpg-sign", "-m", message]);
        for parent in parents {
            git = git.args(["-p", parent.as_str()]);
        }
        id_of(&git.arg(tree.as_str()).run(&self.doing("keep aside what was changed in"))?)
    }

    /// Points a ref of the clone at a commit.
    ///
    /// # Errors
    /// If git fails.
    pub fn set_ref(&self, name: &RefName, commit: &ObjectId) -> Result<()> {
        self.git().args(["update-ref", name.as_str(), commit.as_str()]).run(&self.doing("mark a commit in")).map(|_| ())
    }
}

impl Repo {
    /// Writes a bundle of everything that a ref leads to, and that these commits do not lead to, into an open file.
    ///
    /// # Errors
    /// If the ref leads to nothing else, or the file cannot be written.
    pub fn bundle(&self, name: &RefName, without: &[ObjectId], into: File) -> Result<()> {
        let mut git = self.git().args(["bundle", "create", "--quiet", "-", name.as_str()]);
        for commit in without {
            git = git.arg(format!("^{commit}"));
        }
        let ended: Output = git.into_file(into).output()?;
        if ended.code == Some(0) { Ok(()) } else { Err(ended.failure("pack the new commits")) }
    }
}

fn id_of(said: &[u8]) -> Result<ObjectId> {
    let text = String::from_utf8_lossy(said);
    text.trim().parse().map_err(|_| Error::failed("git told no object id"))
}

/// `XY PATH NUL` for each entry (git-status(1), porcelain format 1, without renames).
fn parse_status(said: &[u8]) -> Vec<Changed> {
    let entries = said.split(|b| *b == 0).filter(|entry| entry.len() > 3);
    let parsed = entries.filter_map(|entry| {
        let (index, files, path) = (entry[0], entry[1], entry[3..].strip_suffix(b"/").unwrap_or(&entry[3..]));
        let kind = match (index, files) {
            (b'?', _) => ChangeKind::Untracked,
            (_, b'D') | (b'D', b' ') => ChangeKind::Removed,
            (b'A', b' ' | b'M') => ChangeKind::Added,
            _ => ChangeKind::Changed,
        };
        Some(Changed { path: TreePath::new(path).ok()?, kind })
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::on_each;
    use super::*;

    #[test]
    fn every_form_of_status_is_read() {
        let said = b" M a\0?? new dir/x\0A  b\0D  c\0 D d\0UU e\0?? emb/\0AM f\0";
        let kinds: Vec<_> = parse_status(said).into_iter().map(|c| (c.path.to_string(), c.kind)).collect();
        let expected = [
            ("a", ChangeKind::Changed),
            ("new dir/x", ChangeKind::Untracked),
            ("b", ChangeKind::Added),
            ("c", ChangeKind::Removed),
            ("d", ChangeKind::Removed),
            ("e", ChangeKind::Changed),
            ("emb", ChangeKind::Untracked),
            ("f", ChangeKind::Added),
        ];
        assert_eq!(kinds, expected.map(|(path, kind)| (path.to_string(), kind)));
    }

    #[test]
    fn commits_come_by_a_bundle_and_what_is_changed_is_kept_aside_whole() {
        on_each(|f| {
            let (one, two) = (f.blob(b"1\n"), f.blob(b"2\n"));
            let first = f.commit_of(&[("100644", b"a", &one), ("100644", b"b", &one)]);
            let second = f.commit_of(&[("100644", b"a", &two), ("100644", b"b", &one)]);
            let name: RefName = "refs/deploys/inflight/x".parse().unwrap();
            let dir = f.temp.path().join("clone");
            std::fs::create_dir(&dir).unwrap();
            let clone = WorkTree::at(&dir, None);
            assert!(clone.head().is_err(), "no repository is not one without commits");
            clone.init(f.repo.format(), "main", &f.path).unwrap();
            assert_eq!(clone.head().unwrap(), None);
            let bring = |commit: &ObjectId, without: &[ObjectId]| {
                let path = f.temp.path().join("bundle");
                f.repo.set_ref(&name, commit, "test").unwrap();
                f.repo.bundle(&name, without, File::create(&path).unwrap()).unwrap();
                clone.fetch_bundle(&path, &name, "main").unwrap();
            };
            bring(&first, &[]);
            clone.check_out("main", &first, false).unwrap();
            assert_eq!((clone.head().unwrap(), clone.tip("main").unwrap()), (Some(first.clone()), Some(first.clone())));
            bring(&second, std::slice::from_ref(&first));
            assert!(clone.has(&second).unwrap());
            assert!(clone.changes(Untracked::All).unwrap().is_empty());

            std::fs::write(dir.join("a"), "mine\n").unwrap();
            std::fs::write(dir.join("new"), "new\n").unwrap();
            std::fs::remove_file(dir.join("b")).unwrap();
            assert_eq!(clone.changes(Untracked::No).unwrap().len(), 2);
            assert_eq!(clone.changes(Untracked::All).unwrap().len(), 3);
            assert!(clone.check_out("main", &second, false).is_err(), "git overwrites nothing");
            let kept = clone.keep_aside(&"refs/heads/aside/x".parse().unwrap(), "aside").unwrap();
            let show = |path: &str| clone.git().arg("show").arg(format!("{kept}:{path}")).output().unwrap();
            assert_eq!((show("a").stdout, show("new").stdout), (b"mine\n".to_vec(), b"new\n".to_vec()));
            assert_ne!(show("b").code, Some(0));
            assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "mine\n", "files are left as they are");
            std::fs::write(dir.join(".git/index.lock"), "").unwrap();
            assert!(clone.check_out("main", &second, true).is_err());
            clone.remove_index_lock().unwrap();
            clone.check_out("main", &second, true).unwrap();
            assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "2\n");
            assert!(!dir.join(".git/mc-aside-index").exists());
        });
    }
}
