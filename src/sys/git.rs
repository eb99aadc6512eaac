//! Git repositories: the only place that uses libgit2 and the git program.
//!
//! Reading goes through libgit2 where it can open the repository (sha1, refs as files), else through long-lived
//! `git cat-file` processes; both give the same answers, and the tests run on both. What is read is parsed here, from
//! the raw objects, so that nothing hostile hides behind somebody else's tolerance.
//!
//! Writing never goes through libgit2, which neither syncs refs nor honours `core.sharedRepository`: a directory that root
//! makes in `objects/` or `refs/` would shut out the receiver of pushes. The git program writes, except for the refs of a
//! plain repository of our own (see `loose`).

mod attributes;
mod batch;
mod checkout;
#[cfg(test)]
mod fixture;
mod history;
mod library;
mod list;
mod loose;
mod names;
mod notes;
mod object;
mod patch;
mod program;
mod refs;
mod submodule;
mod trust;
mod walk;
mod work_tree;

use std::cell::RefCell;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

pub use attributes::{AttributeUse, AttributesLine, attribute_uses, attributes_problem, is_lfs_pointer};
pub use list::{EntryKind, GitEntry, TreeLimits};
pub use loose::remove_locks;
pub use object::CommitInfo;
pub use patch::text_patch;
pub use program::program_version;
pub use refs::RefChange;
pub use submodule::{Submodule, fetch_submodule};
pub use trust::{add_safe_directory, is_safe_directory, remove_safe_directory};
pub use walk::Differences;
pub use work_tree::{ChangeKind, Changed, Untracked, WorkTree};

use super::dir::Dir;
use super::error::{Context, Error, Result};
use super::path::TreePath;
use super::size;
use super::step_exec::RunAs;
use crate::sys::names::ObjectId;
use batch::Batch;
use object::{Header, ObjectKind};
use program::Git;

/// The hash that names the objects of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectFormat {
    /// Ids of 40 digits.
    Sha1,
    /// Ids of 64 digits.
    Sha256,
}

impl ObjectFormat {
    /// The name that git gives it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }

    /// The number of digits of an id.
    #[must_use]
    pub fn digits(self) -> usize {
        match self {
            Self::Sha1 => 40,
            Self::Sha256 => 64,
        }
    }

    /// The format that an id is of.
    #[must_use]
    pub fn of(id: &ObjectId) -> Self {
        if id.as_str().len() == Self::Sha256.digits() { Self::Sha256 } else { Self::Sha1 }
    }
}

/// Who reads objects and refs.
enum Backend {
    /// libgit2.
    Library(git2::Repository),
    /// The git program, for sha256 and for refs that are no files.
    Program,
}

/// Blobs above this size are streamed by the git program: libgit2 would hold them in memory.
const STREAM_FROM: u64 = 32 * 1024 * 1024;
/// A commit, a tag or a note is never honestly larger.
const SMALL_OBJECT: u64 = 4 * 1024 * 1024;

/// An open repository, used as a bare one; replace refs are not followed.
///
/// It may move to another thread, but each thread needs its own.
pub struct Repo {
    path: PathBuf,
    format: ObjectFormat,
    backend: Backend,
    batch: RefCell<Batch>,
    /// One more directory of objects.
    objects: Option<PathBuf>,
    /// The user and group that every call of git runs as, if not ours.
    identity: Option<(u32, u32)>,
}

impl fmt::Debug for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repo({})", self.path.display())
    }
}

impl Repo {
    /// Makes a bare repository without hooks and samples, or opens the one that stands there.
    ///
    /// # Errors
    /// If it cannot be made, or one of the other format or of another owner stands there.
    pub fn init_bare(path: &Path, format: ObjectFormat) -> Result<Self> {
        absolute(path)?;
        if super::fs::exists(path) {
            check_owner(path)?;
            if let Ok(repo) = Self::open(path) {
                return repo.with_durable_objects(format);
            }
        }
        Git::outside()
            .args(["init", "--quiet", "--bare", "--template="])
            .arg(format!("--object-format={}", format.as_str()))
            .args(["--initial-branch=main", "--"])
            .arg(path)
            .run(&format!("make the repository {}", path.display()))?;
        Self::open(path)?.with_durable_objects(format)
    }

    /// Makes git sync what is pushed before it answers: by default it syncs packs, but no loose objects.
    fn with_durable_objects(self, format: ObjectFormat) -> Result<Self> {
        if self.format != format {
            return Err(Error::refused(format!(
                "{} is a {} repository, not {}",
                self.path.display(),
                self.format.as_str(),
                format.as_str()
            )));
        }
        self.set_config("core.fsync", "committed,reference")?;
        self.set_config("core.fsyncMethod", "batch")?;
        Ok(self)
    }

    /// Opens the repository at an absolute path (the bare directory, or the `.git` of a clone).
    ///
    /// # Errors
    /// If there is none, or its directory belongs to somebody other than us or root.
    pub fn open(path: &Path) -> Result<Self> {
        absolute(path)?;
        check_owner(path)?;
        let path = super::fs::canonical(path)?;
        let not_git = || format!("{} is no git repository", path.display());
        let config = open_config(&path).map_err(|cause| Error::failed(not_git()).because(cause))?;
        let extension = |key: &str| config.get_string(key).ok().map(|text| text.to_ascii_lowercase());
        let format = match extension("extensions.objectformat").as_deref() {
            Some("sha256") => ObjectFormat::Sha256,
            _ => ObjectFormat::Sha1,
        };
        let plain_refs = extension("extensions.refstorage").is_none_or(|storage| storage == "files");
        if format == ObjectFormat::Sha256 || !plain_refs {
            return Self::open_with_program(&path, format, None);
        }
        // Opened bare, libgit2 looks for no work tree and makes no owner check of its own (that one believes SUDO_UID).
        let repository = git2::Repository::open_bare(&path).context(not_git)?;
        // Only the repository's own configuration counts: who calls us and their HOME change no answer.
        repository.set_config(&config).context(not_git)?;
        Ok(Self::with(path, format, Backend::Library(repository)))
    }

    /// Opens a repository whose objects and refs another user owns; we must be root. Nothing in it is read by ourselves:
    /// every call of git, the one that reads objects included, runs as that user. Its directory and its configuration
    /// must be root's.
    ///
    /// # Errors
    /// As [`Repo::open`]; also if the configuration is not root's alone.
    pub fn open_as(path: &Path, user: &RunAs) -> Result<Self> {
        absolute(path)?;
        let path = super::fs::canonical(path)?;
        let dir = Dir::open(&path)?;
        for (name, meta) in [("", Some(dir.stat_self()?)), ("config", dir.stat(Path::new("config"))?)] {
            let shown = path.join(name);
            let meta = meta.ok_or_else(|| Error::failed(format!("{} is no git repository", path.display())))?;
            let writable = meta.mode & 0o002 != 0 || (!name.is_empty() && meta.mode & 0o020 != 0);
            if meta.uid != 0 || meta.kind == super::dir::FileKind::Symlink || writable {
                return Err(Error::refused(format!("{} is not root's alone", shown.display()))
                    .hint("mc_project init NAME repairs the owners"));
            }
        }
        let config = open_config(&path)?;
        let format = match config.get_string("extensions.objectformat") {
            Ok(text) if text.eq_ignore_ascii_case("sha256") => ObjectFormat::Sha256,
            _ => ObjectFormat::Sha1,
        };
        Self::open_with_program(&path, format, Some((user.uid, user.gid)))
    }

    /// Opens the repository with one more directory of objects: in pre-receive the pushed objects are in git's quarantine.
    ///
    /// # Errors
    /// As [`Repo::open`].
    pub fn open_with_objects(path: &Path, objects: &Path) -> Result<Self> {
        let mut repo = Self::open(path)?;
        if let Backend::Library(repository) = &repo.backend {
            let text = objects.to_str().ok_or_else(|| Error::failed(format!("{} is no text", objects.display())))?;
            let added = repository.odb().and_then(|odb| odb.add_disk_alternate(text));
            added.context(|| format!("cannot read {}", objects.display()))?;
        }
        repo.batch = RefCell::new(Batch::new(&repo.path, repo.format, Some(objects), repo.identity));
        repo.objects = Some(objects.to_path_buf());
        Ok(repo)
    }

    fn open_with_program(path: &Path, format: ObjectFormat, identity: Option<(u32, u32)>) -> Result<Self> {
        let asking = Git::of(path).identity(identity).args(["rev-parse", "--git-dir"]);
        asking.run(&format!("open the repository {}", path.display()))?;
        let batch = RefCell::new(Batch::new(path, format, None, identity));
        Ok(Self { batch, identity, ..Self::with(path.to_path_buf(), format, Backend::Program) })
    }

    fn with(path: PathBuf, format: ObjectFormat, backend: Backend) -> Self {
        let batch = RefCell::new(Batch::new(&path, format, None, None));
        Self { path, format, backend, batch, objects: None, identity: None }
    }

    /// A call of the git program about this repository.
    fn git(&self) -> Git<'static> {
        Git::of(&self.path).with_objects(self.objects.as_deref()).identity(self.identity)
    }

    /// The user and group that every call of git runs as, if not ours.
    #[must_use]
    pub fn identity(&self) -> Option<(u32, u32)> {
        self.identity
    }

    /// Where the repository is, links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The hash that names its objects.
    #[must_use]
    pub fn format(&self) -> ObjectFormat {
        self.format
    }

    /// Whether history was cut off by a shallow push or clone.
    #[must_use]
    pub fn is_shallow(&self) -> bool {
        std::fs::symlink_metadata(self.path.join("shallow")).is_ok_and(|meta| meta.len() > 0)
    }

    /// Sets one value in the repository's own configuration, durably; nothing is written if it stands there already.
    ///
    /// # Errors
    /// If the key is malformed or the file cannot be written.
    pub fn set_config(&self, key: &str, value: &str) -> Result<()> {
        if self.config(key)?.as_deref() == Some(value) {
            return Ok(());
        }
        self.remove_stale_lock("config.lock")?;
        let doing = format!("set {key} of {}", self.path.display());
        // The git program keeps the file's mode and its lock; --replace-all: several old values become this one.
        self.git().args(["config", "--local", "--replace-all", key, value]).run(&doing)?;
        let file = self.path.join("config");
        super::sync::whole(super::fs::open_read(&file)?).context(|| format!("cannot sync {}", file.display()))?;
        super::fs::sync_dir(&self.path)
    }

    /// A value of the repository's own configuration, the last one if there are several.
    ///
    /// # Errors
    /// If the key is malformed or the file cannot be read.
    pub fn config(&self, key: &str) -> Result<Option<String>> {
        let doing = || format!("cannot read {key} of {}", self.path.display());
        match open_config(&self.path)?.get_string(key) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error).context(doing),
        }
    }

    /// What a commit says about itself.
    ///
    /// # Errors
    /// If the id names no commit here.
    pub fn commit(&self, id: &ObjectId) -> Result<CommitInfo> {
        object::parse_commit(id, &self.object(id, ObjectKind::Commit, SMALL_OBJECT)?)
    }

    /// The commit that an id leads to through tags; `None` if the object is gone, a blob or a tree.
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn peel_to_commit(&self, id: &ObjectId) -> Result<Option<ObjectId>> {
        let mut id = id.clone();
        // A tag may point to a tag; nobody honest stacks more than a few.
        for _ in 0..16 {
            match self.header(&id)?.map(|header| header.kind) {
                Some(ObjectKind::Commit) => return Ok(Some(id)),
                Some(ObjectKind::Tag) => {
                    id = object::tag_target(&id, &self.object(&id, ObjectKind::Tag, SMALL_OBJECT)?)?;
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The content of a blob of at most `limit` bytes.
    ///
    /// # Errors
    /// If it is missing, damaged, no blob or larger.
    pub fn blob(&self, id: &ObjectId, limit: u64) -> Result<Vec<u8>> {
        self.object(id, ObjectKind::Blob, limit)
    }

    /// Writes the content of a blob to `out` and tells its size. Large ones are streamed.
    ///
    /// # Errors
    /// If it is missing, no blob or cannot be written; if it is damaged, which may show only at its end.
    pub fn copy_blob(&self, id: &ObjectId, out: &mut dyn Write) -> Result<u64> {
        let header = self.header(id)?.ok_or_else(|| self.missing(id))?;
        if header.kind != ObjectKind::Blob {
            return Err(self.wrong_kind(id, ObjectKind::Blob, header.kind));
        }
        if matches!(self.backend, Backend::Program) || header.size >= STREAM_FROM {
            return self.batch.borrow_mut().copy(id, out);
        }
        let bytes = self.object(id, ObjectKind::Blob, header.size)?;
        out.write_all(&bytes).context(|| format!("cannot write the content of {}", id.short()))?;
        Ok(bytes.len() as u64)
    }

    /// The content of the regular file at `path` in a commit; `None` if there is no regular file.
    ///
    /// # Errors
    /// If the commit cannot be read or the file is larger than `limit`.
    pub fn blob_at(&self, commit: &ObjectId, path: &TreePath, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some((mode, id)) = self.entry_at(commit, path)? else { return Ok(None) };
        if !matches!(list::Mode::parse(&mode), Some(list::Mode::Entry(EntryKind::File | EntryKind::Executable))) {
            return Ok(None);
        }
        let size = self.header(&id)?.ok_or_else(|| self.missing(&id))?.size;
        if size > limit {
            return Err(Error::refused(format!("`{path}` has {size} bytes, the limit is {}", size::words(limit))));
        }
        self.blob(&id, limit).map(Some)
    }

    /// Whether a commit has anything at `path`.
    ///
    /// # Errors
    /// If the commit cannot be read.
    pub fn has_entry(&self, commit: &ObjectId, path: &TreePath) -> Result<bool> {
        Ok(self.entry_at(commit, path)?.is_some())
    }

    /// Mode and id of the entry at `path` in a commit.
    fn entry_at(&self, commit: &ObjectId, path: &TreePath) -> Result<Option<(Vec<u8>, ObjectId)>> {
        let mut tree = self.tree_of(commit)?;
        let mut names = path.as_bytes().split(|b| *b == b'/').peekable();
        while let Some(name) = names.next() {
            let bytes = self.object(&tree, ObjectKind::Tree, list::MAX_TREE)?;
            let entries = object::parse_tree(&bytes, self.format)
                .map_err(|problem| Error::failed(format!("tree {} {problem}", tree.short())))?;
            let Some(entry) = entries.iter().find(|entry| entry.name == name) else { return Ok(None) };
            if names.peek().is_none() {
                return Ok(Some((entry.mode.to_vec(), entry.id.clone())));
            }
            if !matches!(list::Mode::parse(entry.mode), Some(list::Mode::Tree)) {
                return Ok(None);
            }
            tree = entry.id.clone();
        }
        Ok(None)
    }

    /// The tree of a commit.
    fn tree_of(&self, commit: &ObjectId) -> Result<ObjectId> {
        object::commit_tree(commit, &self.object(commit, ObjectKind::Commit, SMALL_OBJECT)?)
    }

    /// Kind and size of an object; `None` if it is not here.
    fn header(&self, id: &ObjectId) -> Result<Option<Header>> {
        Ok(self.headers(&[id])?.pop().flatten())
    }

    /// Kind and size of many objects.
    fn headers(&self, ids: &[&ObjectId]) -> Result<Vec<Option<Header>>> {
        match &self.backend {
            Backend::Library(repository) => library::headers(repository, ids),
            Backend::Program => self.batch.borrow_mut().headers(ids),
        }
    }

    /// The content of an object that must be here and of this kind.
    fn object(&self, id: &ObjectId, kind: ObjectKind, limit: u64) -> Result<Vec<u8>> {
        let header = self.header(id)?.ok_or_else(|| self.missing(id))?;
        if header.kind != kind {
            return Err(self.wrong_kind(id, kind, header.kind));
        }
        if header.size > limit {
            return Err(Error::refused(format!(
                "{} {} has {} bytes, the limit is {limit}",
                kind.as_str(),
                id.short(),
                header.size
            )));
        }
        self.content(id)
    }

    /// The raw content of an object that is here, of whatever kind and size, checked against its id.
    fn content(&self, id: &ObjectId) -> Result<Vec<u8>> {
        match &self.backend {
            Backend::Library(repository) => library::read(repository, id),
            Backend::Program => {
                let mut bytes = Vec::new();
                self.batch.borrow_mut().copy(id, &mut bytes)?;
                Ok(bytes)
            }
        }
    }

    fn missing(&self, id: &ObjectId) -> Error {
        Error::failed(format!("object {} is missing in {}", id.short(), self.path.display()))
            .hint(format!("git -C {} fsck", self.path.display()))
    }

    fn wrong_kind(&self, id: &ObjectId, wanted: ObjectKind, found: ObjectKind) -> Error {
        Error::refused(format!(
            "object {} in {} is a {}, not a {}",
            id.short(),
            self.path.display(),
            found.as_str(),
            wanted.as_str()
        ))
    }
}

fn absolute(path: &Path) -> Result<()> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(Error::bug(format!("the repository path {} is not absolute", path.display())))
}

/// Refuses a repository of somebody else: its configuration and its hooks could run programs as us (CVE-2022-24765).
fn check_owner(path: &Path) -> Result<()> {
    let owner = Dir::open(path)?.stat_self()?.uid;
    let us = rustix::process::geteuid().as_raw();
    if owner == us || owner == 0 {
        return Ok(());
    }
    Err(Error::refused(format!("{} belongs to user {owner}, neither to us ({us}) nor to root", path.display()))
        .hint(format!("run it as that user, or: chown {us} {}", path.display())))
}

fn open_config(path: &Path) -> Result<git2::Config> {
    let file = path.join("config");
    let doing = || format!("cannot read {}", file.display());
    // libgit2 takes a file that does not exist for an empty one.
    std::fs::metadata(&file).context(doing)?;
    git2::Config::open(&file).context(doing)
}

#[cfg(test)]
mod tests;
