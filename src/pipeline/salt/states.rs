//! The commit's `.salt`, with every link in it replaced by what it leads to in the same commit.

use std::collections::BTreeMap;
use std::path::Path;

use crate::pipeline::checkout::limits_of;
use crate::pipeline::site::Site;
use crate::project::ids::ObjectId;
use crate::project::recipe::salt::DIR;
use crate::sys::error::{Error, Result};
use crate::sys::git::{EntryKind, GitEntry, Repo, TreeLimits};
use crate::sys::path::TreePath;

/// The largest file.
const MOST_BYTES: u64 = 64 << 20;
/// The most files, links followed.
const MOST_FILES: usize = 20_000;
/// The most links that lead to each other.
const MOST_LINKS: usize = 8;

/// A file of `.salt`.
#[derive(Debug, Clone)]
pub struct StateFile {
    blob: ObjectId,
    /// Whether it is executable.
    pub is_executable: bool,
}

impl StateFile {
    /// Its content.
    ///
    /// # Errors
    /// If it is missing.
    pub fn bytes(&self, of: &States<'_>) -> Result<Vec<u8>> {
        of.repo.blob(&self.blob, MOST_BYTES)
    }
}

/// All of it.
#[derive(Debug)]
pub struct States<'a> {
    repo: &'a Repo,
    /// The files, by their path below `.salt`.
    pub files: BTreeMap<TreePath, StateFile>,
}

impl States<'_> {
    /// The modules directly in a folder, by name.
    #[must_use]
    pub fn modules(&self, folder: &str) -> BTreeMap<String, &StateFile> {
        let module = |(path, file)| -> Option<(String, _)> {
            let path: &TreePath = path;
            let name = path.as_path().to_str()?.strip_prefix(folder)?.strip_prefix('/')?;
            (!name.contains('/') && Path::new(name).extension().is_some_and(|ending| ending == "py"))
                .then(|| (name.to_string(), file))
        };
        self.files.iter().filter_map(module).collect()
    }
}

/// Lists it.
///
/// # Errors
/// A refusal that names the path, if something of it cannot be had.
pub fn files<'a>(site: &Site, repo: &'a Repo, commit: &ObjectId) -> Result<States<'a>> {
    let top = TreePath::new(DIR.as_bytes())?;
    let mut walk = Walk { repo, commit, limits: limits_of(site), files: BTreeMap::new() };
    for entry in repo.list_below(commit, &top, &walk.limits)? {
        if let Some(at) = entry.path.below(&top) {
            walk.take(&entry, &at, 0)?;
        }
    }
    Ok(States { repo, files: walk.files })
}

struct Walk<'a> {
    repo: &'a Repo,
    commit: &'a ObjectId,
    limits: TreeLimits,
    /// What was found so far.
    files: BTreeMap<TreePath, StateFile>,
}

impl Walk<'_> {
    /// Takes what stands at a place in the commit into another place below `.salt`, after so many links.
    fn take(&mut self, entry: &GitEntry, at: &TreePath, links: usize) -> Result<()> {
        let refused = |why: &str| Error::refused(format!("`{}` {why}", entry.path));
        if self.files.len() >= MOST_FILES {
            return Err(refused(&format!("is one of more than {MOST_FILES} files in {DIR}")));
        }
        match entry.kind {
            EntryKind::Submodule => Err(refused("is a submodule: states must be in the commit itself")),
            EntryKind::File | EntryKind::Executable if entry.size > MOST_BYTES => {
                Err(refused("has more than 64 MiB: what is that large belongs outside of .salt"))
            }
            EntryKind::File | EntryKind::Executable => {
                let is_executable = entry.kind == EntryKind::Executable;
                self.files.insert(at.clone(), StateFile { blob: entry.oid.clone(), is_executable });
                Ok(())
            }
            EntryKind::Symlink if links == MOST_LINKS => Err(refused("leads to links without end")),
            EntryKind::Symlink => self.follow(entry, at, links),
        }
    }

    fn follow(&mut self, entry: &GitEntry, at: &TreePath, links: usize) -> Result<()> {
        let refused = |why: &str| Error::refused(format!("`{}` {why}", entry.path));
        let target = self.repo.blob(&entry.oid, 4095)?;
        let to = TreePath::resolve(entry.path.parent().as_ref(), &target);
        let to = to.ok_or_else(|| refused("is a link that leads out of the commit"))?;
        if let Some(one) = self.repo.entry_of(self.commit, &to, &self.limits)? {
            return self.take(&one, at, links + 1);
        }
        let below = self.repo.list_below(self.commit, &to, &self.limits)?;
        if below.is_empty() {
            return Err(refused("is a link to something that is not in the commit"));
        }
        for inner in below {
            let Some(rel) = inner.path.below(&to) else { continue };
            let at = TreePath::new(&[at.as_bytes(), b"/", rel.as_bytes()].concat())?;
            self.take(&inner, &at, links + 1)?;
        }
        Ok(())
    }
}
