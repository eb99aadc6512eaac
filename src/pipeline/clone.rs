//! The clone that runs in editable mode: what its owner has changed in it, and how it comes to the pushed commit.
//!
//! Everything in it belongs to the project's account, its git configuration too: git works in it with the account's rights
//! ([`WorkTree`]), and we ourselves only look at names.

use std::collections::HashSet;
use std::path::Path;

use super::checkout::limits_of;
use super::draft::Draft;
use super::settle::inflight_ref;
use super::site::Site;
use crate::project::ids::{DeploymentId, ObjectId, RefName};
use crate::sys::dir::{Dir, FileKind};
use crate::sys::error::{Error, Result};
use crate::sys::git::{ChangeKind, Changed, GitEntry, Repo, Untracked, WorkTree};
use crate::sys::path::TreePath;
use crate::tree::drift::{Change, Drift, How};
use crate::tree::manifest::Manifest;
use crate::tree::store::{Store, Supply};

/// The most files that are named.
pub const NAMED: usize = 20;
/// The branch where none is known.
const BRANCH: &str = "main";

/// The clone at `run`.
#[must_use]
pub fn running(site: &Site) -> WorkTree {
    WorkTree::at(&site.place.run(), site.project_identity().as_ref())
}

/// The branch of the clone: the one that deploys.
///
/// # Errors
/// If its record cannot be read.
pub fn branch(site: &Site) -> Result<String> {
    let branch = site.deploy_branch()?;
    Ok(branch.as_ref().and_then(RefName::branch).unwrap_or(BRANCH).to_string())
}

/// How the clone stands to a commit that shall be checked out in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The commit that is checked out.
    pub head: Option<ObjectId>,
    /// Tracked files that were changed.
    pub changed: Vec<Changed>,
    /// Files that no commit knows and that the checkout would overwrite, ignored ones too.
    pub in_the_way: Vec<TreePath>,
    /// Commits of its own: tips that were made here and do not lead to the new commit.
    pub own: Vec<ObjectId>,
}

impl Standing {
    /// Examines the clone. `ours` is the commit that we have checked out last: where a forced push takes commits away, these
    /// are none that somebody made here.
    ///
    /// # Errors
    /// If it is no repository any more.
    pub fn of(
        site: &Site,
        repo: &Repo,
        commit: &ObjectId,
        ours: Option<&ObjectId>,
        listing: &[GitEntry],
    ) -> Result<Self> {
        let clone = running(site);
        let head = clone.head()?;
        let mut own = Vec::new();
        for tip in [head.clone(), clone.tip(&branch(site)?)?].into_iter().flatten() {
            let is_known = repo.peel_to_commit(&tip)?.as_ref() == Some(&tip);
            let leads = tip == *commit || Some(&tip) == ours || (is_known && repo.is_ancestor(&tip, commit)?);
            if !leads && !own.contains(&tip) {
                own.push(tip);
            }
        }
        // Of a commit that was made here, the one that we had checked out is what its files were.
        let known =
            head.as_ref().filter(|head| repo.peel_to_commit(head).is_ok_and(|found| found.as_ref() == Some(*head)));
        let before = match known.or(ours.filter(|_| head.is_some())) {
            Some(known) => repo.list(known, &limits_of(site))?,
            None => Vec::new(),
        };
        let run = Dir::open_real(&site.place.run())?;
        let in_the_way = if head.as_ref() == Some(commit) { Vec::new() } else { in_the_way(&run, &before, listing)? };
        Ok(Self { head, changed: clone.changes(Untracked::No)?, in_the_way, own })
    }

    /// Whether nothing would be lost by the checkout.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.changed.is_empty() && self.in_the_way.is_empty() && self.own.is_empty()
    }

    /// What is there, in few words.
    #[must_use]
    pub fn words(&self) -> String {
        let count = |n: usize, one: &str, many: &str| match n {
            0 => None,
            1 => Some(format!("1 {one}")),
            n => Some(format!("{n} {many}")),
        };
        let parts = [
            count(self.changed.len(), "changed file", "changed files"),
            count(self.in_the_way.len(), "file in the way of a new one", "files in the way of new ones"),
            match self.own.len() {
                0 => None,
                _ => Some("commits that were made there".to_string()),
            },
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// The files, one line each, at most [`NAMED`].
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let changed = self.changed.iter().map(|change| {
            let letter = match change.kind {
                ChangeKind::Changed => "~",
                ChangeKind::Added | ChangeKind::Untracked => "+",
                ChangeKind::Removed => "-",
            };
            format!("{letter} {}", change.path)
        });
        let mut lines: Vec<String> =
            changed.chain(self.in_the_way.iter().map(|path| format!("? {path} (in the way)"))).collect();
        if lines.len() > NAMED {
            let more = lines.len() - (NAMED - 1);
            lines.truncate(NAMED - 1);
            lines.push(format!("… and {more} more"));
        }
        lines
    }
}

/// Files that stand where the commit has new ones and that the commit before does not know. git overwrites those that are
/// ignored without a word.
fn in_the_way(run: &Dir, before: &[GitEntry], listing: &[GitEntry]) -> Result<Vec<TreePath>> {
    let known: HashSet<&TreePath> = before.iter().map(|entry| &entry.path).collect();
    let mut dirs: HashSet<TreePath> = HashSet::new();
    for path in &known {
        for dir in path.ancestors() {
            if !dirs.insert(dir) {
                break;
            }
        }
    }
    let mut found = Vec::new();
    let mut seen: HashSet<TreePath> = HashSet::new();
    for entry in listing.iter().filter(|entry| !known.contains(&entry.path)) {
        // From the top: a file may stand where a directory shall be.
        let mut above: Vec<TreePath> = std::iter::successors(entry.path.parent(), TreePath::parent).collect();
        above.reverse();
        for dir in above {
            if dirs.contains(&dir) || known.contains(&dir) || !seen.insert(dir.clone()) {
                continue;
            }
            if run.stat(dir.as_path())?.is_some_and(|meta| meta.kind != FileKind::Dir) {
                found.push(dir);
            }
        }
        match run.stat(entry.path.as_path())? {
            None => {}
            Some(meta) if meta.kind == FileKind::Dir => unknown_below(run, &entry.path, &known, &mut found)?,
            Some(_) => found.push(entry.path.clone()),
        }
    }
    Ok(found)
}

/// A directory becomes a file: everything in it that the commit before does not know is in the way.
fn unknown_below(run: &Dir, dir: &TreePath, known: &HashSet<&TreePath>, found: &mut Vec<TreePath>) -> Result<()> {
    for name in run.dir(dir.as_path())?.names()? {
        let path = dir.join(std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str()))?;
        match run.stat(path.as_path())?.map(|meta| meta.kind) {
            Some(FileKind::Dir) => unknown_below(run, &path, known, found)?,
            Some(_) if !known.contains(&path) => found.push(path),
            _ => {}
        }
    }
    Ok(())
}

/// The name of the branch and of the archive in which a deployment keeps aside what it found.
///
/// # Errors
/// Never for a good id.
pub fn aside_branch(id: &DeploymentId) -> Result<RefName> {
    format!("refs/heads/aside/{id}").parse()
}

/// The directory with the same. It is no restore point: nothing ever rotates it away.
#[must_use]
pub fn aside_dir(site: &Site, id: &DeploymentId) -> std::path::PathBuf {
    site.place.archives().join(format!("aside-{id}"))
}

/// Keeps everything that differs in the clone: all of it as a branch there, and the files that no commit knew as copies in
/// the archives. Returns what is told.
///
/// # Errors
/// If something cannot be kept: then nothing may be overwritten.
pub fn keep_aside(site: &Site, id: &DeploymentId, clone: &WorkTree, standing: &Standing) -> Result<Vec<String>> {
    let branch = aside_branch(id)?;
    let mut notes = Vec::new();
    let untracked = clone.changes(Untracked::All)?;
    let paths = untracked.into_iter().filter(|change| change.kind == ChangeKind::Untracked).map(|change| change.path);
    let changes: std::collections::BTreeMap<TreePath, Change> = paths
        .chain(standing.in_the_way.iter().cloned())
        .map(|path| (path.clone(), Change { path, how: How::Added, is_dir: false }))
        .collect();
    let drift = Drift { changes: changes.into_values().collect() };
    if !drift.is_empty() {
        let dir = aside_dir(site, id);
        crate::sys::fs::ensure_dir(&dir, 0o700)?;
        let run = Dir::open_real(&site.place.run())?;
        let scratch = Store::open(&dir)?;
        drift.keep(&Dir::open(&dir)?, &run, &Manifest::default(), &Supply::new(&scratch, Vec::new()))?;
        Dir::open(&dir)?.sync_file_system()?;
        let what = match drift.changes.len() {
            1 => "1 file that no commit knew is".to_string(),
            count => format!("{count} files that no commit knew are"),
        };
        notes.push(format!("{what} copied to {}", dir.display()));
    }
    clone.keep_aside(&branch, &format!("mc_project: kept aside by deployment {id}"))?;
    for (index, tip) in standing.own.iter().filter(|tip| Some(*tip) != standing.head.as_ref()).enumerate() {
        clone.set_ref(&format!("{branch}-{}", index + 1).parse()?, tip)?;
    }
    let name = branch.branch().unwrap_or_default();
    notes.insert(0, format!("what was changed in the clone is kept on its branch {name}"));
    Ok(notes)
}

impl Draft<'_> {
    /// The clone at a directory, its processes marked as this deployment's.
    #[must_use]
    pub fn clone_at(&self, dir: &Path) -> WorkTree {
        let mark = format!("{}.checkout", self.begin.id);
        WorkTree::at(dir, self.site.project_identity().as_ref()).marked(mark)
    }

    /// Brings the commit's objects into a clone, as a bundle: the account cannot read the repository.
    ///
    /// # Errors
    /// If there is no space, or the history of the repository is cut off.
    pub fn bring_objects(&self, clone: &WorkTree, head: Option<&ObjectId>) -> Result<()> {
        let (site, commit) = (self.site, &self.begin.commit);
        if clone.head().ok().flatten().is_some() && clone.has(commit)? {
            return Ok(());
        }
        if self.repo.is_shallow() {
            return Err(Error::refused("the repository's history is cut off, so no clone can be made of it")
                .hint("git fetch --unshallow, then push again"));
        }
        let mut known = Vec::new();
        if let Some(tip) = head {
            // A commit that was made in the clone is none that the repository could leave out.
            if self.repo.peel_to_commit(tip)?.as_ref() == Some(tip) {
                known.push(tip.clone());
            }
        }
        let build = Dir::open(&site.place.build())?;
        let name = Path::new("bundle");
        build.unlink(name)?;
        let file = build.create_file(name, 0o600)?;
        let inflight = inflight_ref(&self.begin.id)?;
        self.repo.bundle(&inflight, &known, file)?;
        if site.owners().is_some() {
            build.set_owner(name, 0, site.own.gid)?;
            build.set_mode(name, 0o640)?;
        }
        let fetched = clone.fetch_bundle(&site.place.bundle(), &inflight, &branch(site)?);
        build.unlink(name)?;
        fetched
    }
}

/// What was changed in the clone since its commit, as drift is told.
///
/// # Errors
/// If it is no repository any more.
pub fn drift(site: &Site) -> Result<Drift> {
    let changes = running(site).changes(Untracked::All)?;
    let mut changes: Vec<Change> = changes
        .into_iter()
        .map(|change| Change {
            path: change.path,
            how: match change.kind {
                ChangeKind::Changed => How::Changed,
                ChangeKind::Added | ChangeKind::Untracked => How::Added,
                ChangeKind::Removed => How::Removed,
            },
            is_dir: false,
        })
        .collect();
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Drift { changes })
}
