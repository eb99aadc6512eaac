//! From a commit to a manifest: every file of the commit is checked, its content taken into the store.
//!
//! Trees are written by us, from the store, with modes exactly 0644 and 0755; nobody else's checkout touches them.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use super::draft::{Draft, Seen, Spare, Version};
use super::halt::{Halt, Step};
use super::listing::{Listing, changed};
use super::site::Site;
use super::tidy::PILLAR_STORE;
use crate::project::ids::ObjectId;
use crate::project::recipe::Attributes;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::fault;
use crate::sys::fs::File;
use crate::sys::git::{
    AttributeUse, EntryKind, GitEntry, Repo, TreeLimits, attribute_uses, fetch_submodule, is_lfs_pointer,
};
use crate::sys::path::TreePath;
use crate::tree::hash::Hash;
use crate::tree::manifest::{Content, Entry, Manifest, Stamp, differing};
use crate::tree::scan::{Own, identify};
use crate::tree::store::{Held, Origin, Store, Supply};
use crate::tree::sync::{Keeping, Plan, Target, apply, now_ns, seal_changes};
use crate::tree::witness::{self, Witness};

/// The largest link target that Linux takes.
const LONGEST_TARGET: u64 = 4095;

/// Contents of git objects, by the digests that manifests name them with: the last resort where no tree has them.
#[derive(Debug)]
pub struct GitOrigin {
    repo: Mutex<Repo>,
    manifests: Vec<Manifest>,
    /// The object of each content; made when one is asked for that does not come with its entry.
    blobs: OnceLock<HashMap<Hash, ObjectId>>,
}

impl GitOrigin {
    /// The objects that these manifests name.
    ///
    /// # Errors
    /// If the repository cannot be opened.
    pub fn new(site: &Site, manifests: &[&Manifest]) -> Result<Self> {
        let manifests = manifests.iter().copied().cloned().collect();
        Ok(Self { repo: Mutex::new(site.repo()?), manifests, blobs: OnceLock::new() })
    }

    fn find(&self, hash: &Hash) -> Option<&ObjectId> {
        let blobs = self.blobs.get_or_init(|| {
            let entries = self.manifests.iter().flat_map(Manifest::entries);
            entries.filter_map(|entry| Some((entry.hash()?, entry.blob.clone()?))).collect()
        });
        blobs.get(hash)
    }

    fn copy(&self, blob: &ObjectId, out: &mut File) -> bool {
        let repo = self.repo.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        repo.copy_blob(blob, out).is_ok()
    }
}

impl Origin for GitOrigin {
    fn knows(&self, hash: &Hash) -> bool {
        self.find(hash).is_some()
    }

    fn write(&self, hash: &Hash, out: &mut File) -> Result<bool> {
        Ok(self.find(hash).is_some_and(|blob| self.copy(blob, out)))
    }

    fn write_of(&self, entry: &Entry, out: &mut File) -> Result<bool> {
        Ok(entry.blob.as_ref().is_some_and(|blob| self.copy(blob, out)))
    }
}

impl Draft<'_> {
    /// Lists the commit, refuses what must not be deployed, takes new contents into the store, and returns the commit's tree.
    ///
    /// # Errors
    /// A refusal that names the path, or what could not be read.
    pub fn source(&mut self, version: &Version, store: &Store) -> Step<Manifest> {
        let commit = version.commit.id.clone();
        let Listing { files: entries, removed, base } = match self.listing.take() {
            Some(listing) => listing,
            None => Listing { files: self.listed(version, &commit)?, ..Listing::default() },
        };
        self.refuse_empty(version, base.is_none() && entries.is_empty())?;
        if version.recipe.attributes == Attributes::Git {
            return Ok(checked_out_by_git(self.site, &self.repo, &commit, store)?);
        }
        for warning in refuse_attributes(&self.repo, &entries)? {
            self.warn(warning);
        }
        let known = if base.is_none() { self.known_blobs() } else { self.kept_blobs(&entries) };
        let now = now_ns();
        let mut files = Vec::with_capacity(entries.len());
        for entry in &entries {
            files.push(take_in(&self.repo, entry, &known, store, now)?);
        }
        for (repo, entries) in self.fetched_modules(version, &commit)? {
            refuse_attributes(&repo, &entries)?;
            for entry in &entries {
                // Its objects are not in the project's own repository: the store and the trees alone have them.
                files.push(Entry { blob: None, ..take_in(&repo, entry, &HashMap::new(), store, now)? });
            }
        }
        fault::point("store.ingested")?;
        let Some(base) = base else { return Ok(with_directories(files, now)?) };
        let is_taken = |file: &&Entry| !version.recipe.exclude.matches(&file.path, false);
        let taken: Vec<Entry> = files.iter().filter(is_taken).cloned().collect();
        let changed = changed(&base, &taken, &removed, now);
        let intact = changed.as_ref().map_or_else(|_| base.intact(), |source| self.read_in_advance(source));
        if intact.is_err() {
            // The record that the change stands on is damaged: the commit alone says what its tree is.
            return self.source(version, store);
        }
        let source = changed?;
        self.refuse_empty(version, source.is_empty())?;
        self.project_changes = Some((files, removed));
        Ok(source)
    }

    /// Reads of a tree what the candidate needs of it: where the trees that are there differ from it.
    fn read_in_advance(&self, source: &Manifest) -> Result<()> {
        let spare = match &self.spare {
            Some(Spare::Known(seen)) => Some(&seen.told.manifest),
            _ => None,
        };
        let live = self.live.as_ref().map(|live| &live.manifest);
        spare.into_iter().chain(live).for_each(|tree| differing(tree, source).for_each(drop));
        source.intact()
    }

    /// Lists all files of a commit; submodules are refused unless the recipe allows them.
    ///
    /// # Errors
    /// A refusal that names the path.
    pub fn listed(&mut self, version: &Version, commit: &ObjectId) -> Step<Vec<GitEntry>> {
        let limits = self.limits();
        let mut entries = self.repo.list(commit, &limits)?;
        let modules: Vec<TreePath> =
            entries.iter().filter(|e| e.kind == EntryKind::Submodule).map(|e| e.path.clone()).collect();
        entries.retain(|entry| entry.kind != EntryKind::Submodule);
        if let Some(first) = modules.first().filter(|_| !version.recipe.submodules) {
            return Err(Halt::refused(format!("`{first}` is a submodule; submodules are off"))
                .hint("write `submodules: allow` into mc_project.yaml (they are fetched by https or ssh)"));
        }
        Ok(entries)
    }

    /// Fetches the commit's submodules and lists their files, at their places in the tree.
    fn fetched_modules(&self, version: &Version, commit: &ObjectId) -> Step<Vec<(Repo, Vec<GitEntry>)>> {
        if !version.recipe.submodules {
            return Ok(Vec::new());
        }
        let mirrors = workshop(self.site, "modules")?;
        let mut modules = Vec::new();
        for module in self.repo.submodules(commit)? {
            let name = blake3::hash(module.url.as_bytes()).to_hex();
            let mirror = mirrors.join(format!("{}.git", &name.as_str()[..32]));
            let repo = fetch_submodule(&mirror, &module, None, self.repo.identity())?;
            let mut entries = repo.list(&module.commit, &self.limits())?;
            for entry in &mut entries {
                if entry.kind == EntryKind::Submodule {
                    return Err(Halt::refused(format!(
                        "`{}` in the submodule `{}` is a submodule itself",
                        entry.path, module.path
                    ))
                    .hint("only submodules of the project itself are fetched"));
                }
                entry.path = module.path.join(entry.path.as_bytes())?;
            }
            modules.push((repo, entries));
        }
        Ok(modules)
    }

    fn limits(&self) -> TreeLimits {
        limits_of(self.site)
    }

    /// Blobs whose digest is known from the live release, or from the kept one that is made live again: they need not be
    /// read again, nor be written into the store.
    #[must_use]
    pub fn known_blobs(&self) -> HashMap<ObjectId, (Hash, u64)> {
        let known = self.kept.iter().chain(self.live.iter().map(|live| &live.manifest)).flat_map(Manifest::entries);
        known.filter_map(|entry| Some((entry.blob.clone()?, (entry.hash()?, entry.size())))).collect()
    }

    /// As [`Draft::known_blobs`], of these files alone.
    fn kept_blobs(&self, files: &[GitEntry]) -> HashMap<ObjectId, (Hash, u64)> {
        let Some(kept) = &self.kept else { return HashMap::new() };
        let found = files.iter().filter_map(|file| kept.get(&file.path));
        found.filter_map(|entry| Some((entry.blob.clone()?, (entry.hash()?, entry.size())))).collect()
    }

    /// Makes `project/` exactly the commit's tree.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn check_out_project(&mut self, source: &Manifest, store: &Store) -> Step<usize> {
        let place = &self.site.place;
        let run = Dir::open_real(&place.run())?;
        let spare = self.kept.as_ref().map(|_| Dir::open_real(&place.spare())).transpose()?;
        let mut held = Vec::new();
        if let Some(live) = &self.live {
            held.push(Held::new(&run, &live.manifest));
        }
        // The version before, when it is made live again.
        if let (Some(Spare::Known(seen)), Some(spare)) = (&self.spare, &spare) {
            held.push(Held::new(spare, &seen.told.manifest));
        }
        let origin = GitOrigin::new(self.site, &[source])?;
        let mut supply = Supply::new(store, held).with_origin(&origin);
        if let Some((files, removed)) = self.project_changes.take()
            && let Some(count) = change_project(self.site, &files, &removed, &mut supply)?
        {
            return Ok(count);
        }
        Ok(sync_tree(self.site, &place.project(), source, &mut supply, "checkout.project")?)
    }
}

/// Puts files into `project/` and removes others, where its witness is whole; returns how many changed. It was proven to be
/// what the witness says.
fn change_project(
    site: &Site,
    files: &[Entry],
    removed: &[TreePath],
    supply: &mut Supply<'_>,
) -> Result<Option<usize>> {
    let path = site.place.project();
    let (tree, own) = (Dir::open_real(&path)?, site.own_at(&path));
    let witness_path = witness::path_of(&site.place, &tree)?;
    let Some(witness) = Witness::open(&witness_path) else { return Ok(None) };
    let Seen { told: actual, witness } = Seen::proven(witness);
    let wanted = changed(&actual.manifest, files, removed, now_ns());
    let plan = wanted.and_then(|wanted| Ok((Plan::new(&actual, &wanted)?, wanted)));
    // Damaged: the tree is walked instead.
    let Ok((plan, wanted)) = plan else { return Ok(None) };
    apply(&Target { tree: &tree, own, point: "checkout.project" }, &plan, supply, &Keeping::default())?;
    let sealed = seal_changes(&tree, own, &actual.manifest, &plan, &wanted)?;
    witness::record(&witness_path, &tree, sealed, witness)?;
    Ok(Some(plan.files()))
}

/// What a pushed tree may hold on this node.
#[must_use]
pub fn limits_of(site: &Site) -> TreeLimits {
    let limits = &site.node.config.limits;
    TreeLimits { files: limits.files, bytes: limits.bytes, file_bytes: limits.file_bytes }
}

/// Makes a tree of ours (`project/`, `pillar/`, `build/tree`) exactly a manifest, unchanged files keeping their times; returns
/// how many files changed.
///
/// # Errors
/// If it cannot be written.
pub fn sync_tree(
    site: &Site,
    path: &Path,
    wanted: &Manifest,
    supply: &mut Supply<'_>,
    point: &'static str,
) -> Result<usize> {
    sync_seen(site, path, seen(site, path)?, wanted, (supply, point))
}

/// Walks a tree of ours.
///
/// # Errors
/// If it cannot be read.
pub fn seen(site: &Site, path: &Path) -> Result<Seen> {
    let (tree, own) = (Dir::open_real(path)?, site.own_at(path));
    let witness = Witness::open_or_read(&witness::path_of(&site.place, &tree)?);
    Ok(Seen { told: identify(&tree, own, witness.as_ref(), &|_| true)?, witness })
}

/// As [`sync_tree`], for a tree that was just walked.
///
/// # Errors
/// If it cannot be written.
pub fn sync_seen(
    site: &Site,
    path: &Path,
    Seen { told: actual, witness }: Seen,
    wanted: &Manifest,
    (supply, point): (&mut Supply<'_>, &'static str),
) -> Result<usize> {
    let (tree, own) = (Dir::open_real(path)?, site.own_at(path));
    let witness_path = witness::path_of(&site.place, &tree)?;
    let mut wanted = wanted.clone();
    wanted.inherit_times(&actual.manifest)?;
    let plan = Plan::new(&actual, &wanted)?;
    let count = plan.files();
    if !plan.is_empty() {
        apply(&Target { tree: &tree, own, point }, &plan, supply, &Keeping::default())?;
    }
    let sealed = seal_changes(&tree, own, &actual.manifest, &plan, &wanted)?;
    witness::record(&witness_path, &tree, sealed, witness)?;
    Ok(count)
}

/// Makes `pillar/` exactly a commit of the pillar repository, or empty where there is none. Files are 0600.
///
/// # Errors
/// If it cannot be read or written.
pub fn check_out_pillar(site: &Site, commit: Option<&ObjectId>) -> Result<usize> {
    let scratch = site.place.build().join(PILLAR_STORE);
    fs_scratch(&scratch)?;
    let store = Store::open(&scratch)?;
    let mut files = Vec::new();
    if let Some(commit) = commit {
        let repo = site.pillar_repo()?;
        let now = now_ns();
        for entry in repo.list(commit, &limits_of(site))? {
            if matches!(entry.kind, EntryKind::Submodule) {
                continue;
            }
            let mut file = take_in(&repo, &entry, &HashMap::new(), &store, now)?;
            file.mode = if file.hash().is_some() { file.mode & 0o700 } else { file.mode };
            files.push(file);
        }
    }
    let mut manifest = with_directories(files, now_ns())?;
    manifest.restrict_directories(0o700);
    let mut supply = Supply::new(&store, Vec::new());
    let count = sync_tree(site, &site.place.pillar(), &manifest, &mut supply, "checkout.pillar")?;
    Dir::open(&site.place.build())?.remove_tree(Path::new(PILLAR_STORE))?;
    Ok(count)
}

/// A directory in which git itself works for us: the receiver's on a whole-machine node, below `build` elsewhere.
fn workshop(site: &Site, name: &str) -> Result<std::path::PathBuf> {
    let Some(owners) = site.owners() else {
        let dir = site.place.build().join(name);
        crate::sys::fs::ensure_dir(&dir, 0o700)?;
        return Ok(dir);
    };
    let dir = site.place.git_project().with_file_name(name);
    crate::sys::fs::ensure_dir(&dir, 0o700)?;
    Dir::open_real(&dir)?.give_to(owners.receiver.0, owners.receiver.1)?;
    Ok(dir)
}

fn fs_scratch(path: &Path) -> Result<()> {
    let parent = path.parent().ok_or_else(|| Error::bug("a scratch directory has no parent"))?;
    let name = Path::new(path.file_name().unwrap_or_default());
    let parent = Dir::open(parent)?;
    parent.remove_tree(name)?;
    parent.make_dir(name, 0o700)
}

/// Refuses what only git's own checkout could do right; returns warnings for what is written as stored.
fn refuse_attributes(repo: &Repo, entries: &[GitEntry]) -> Step<Vec<String>> {
    let mut warnings = Vec::new();
    for entry in entries.iter().filter(|e| e.path.name() == ".gitattributes" && e.kind != EntryKind::Symlink) {
        let text = repo.blob(&entry.oid, 1024 * 1024)?;
        for found in attribute_uses(&text) {
            let at = format!("{}:{}", entry.path, found.line);
            match found.what {
                AttributeUse::Filter(name) => {
                    return Err(attributes_refused(&format!("{at} sets `filter={name}`")));
                }
                AttributeUse::Encoding(name) => {
                    return Err(attributes_refused(&format!("{at} sets `working-tree-encoding={name}`")));
                }
                AttributeUse::Eol => warnings.push(format!("{at} sets eol=crlf: files are written as they are stored")),
                AttributeUse::Ident => warnings.push(format!("{at} sets ident: files are written as they are stored")),
            }
        }
    }
    warnings.truncate(3);
    Ok(warnings)
}

fn attributes_refused(what: &str) -> Halt {
    Halt::refused(what).hint("write `attributes: git` into mc_project.yaml: then the git program makes the checkout")
}

/// The entry of a file of the commit; its content is in the store afterwards, or known to be in the live tree.
fn take_in(
    repo: &Repo,
    entry: &GitEntry,
    known: &HashMap<ObjectId, (Hash, u64)>,
    store: &Store,
    now: i64,
) -> Result<Entry> {
    let content = match entry.kind {
        EntryKind::Symlink => Content::Symlink(repo.blob(&entry.oid, LONGEST_TARGET)?),
        _ => match known.get(&entry.oid) {
            Some((hash, size)) => Content::File { size: *size, hash: *hash },
            None => take_blob_in(repo, entry, store)?,
        },
    };
    let mode = match entry.kind {
        EntryKind::Symlink => 0o777,
        EntryKind::Executable => 0o755,
        _ => 0o644,
    };
    let blob = matches!(content, Content::File { .. }).then(|| entry.oid.clone());
    Ok(Entry {
        path: entry.path.clone(),
        mode,
        owner: None,
        mtime: now,
        content,
        hard_link: None,
        xattrs: Vec::new(),
        blob,
        stamp: Stamp::default(),
    })
}

fn take_blob_in(repo: &Repo, entry: &GitEntry, store: &Store) -> Result<Content> {
    if entry.size <= 1024 && is_lfs_pointer(&repo.blob(&entry.oid, 1024)?) {
        return Err(Error::refused(format!("`{}` is a pointer of Git LFS, not the file itself", entry.path)).hint(
            "write `attributes: git` into mc_project.yaml and install git-lfs on the node, or commit the file itself",
        ));
    }
    let mut failure = None;
    let added = store.add_with(|file| {
        let mut out = HashingWriter { file, hasher: blake3::Hasher::new(), count: 0 };
        match repo.copy_blob(&entry.oid, &mut out) {
            Ok(_) => Ok((out.hasher.finalize().to_hex().parse().unwrap_or(Hash::of(b"")), out.count)),
            Err(error) => {
                failure = Some(error);
                Err(std::io::Error::other("git object"))
            }
        }
    });
    match (failure, added) {
        (Some(error), _) => Err(error).context(|| format!("cannot read `{}`", entry.path)),
        (None, added) => added.map(|(hash, size)| Content::File { size, hash }),
    }
}

struct HashingWriter<'a> {
    file: &'a mut File,
    hasher: blake3::Hasher,
    count: u64,
}

impl std::io::Write for HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Adds the directories that files stand in, mode 0755.
///
/// # Errors
/// If a file stands below a file.
pub fn with_directories(files: Vec<Entry>, mtime: i64) -> Result<Manifest> {
    let mut directories: BTreeMap<TreePath, Entry> = BTreeMap::new();
    for file in &files {
        for path in file.path.ancestors() {
            if directories.contains_key(&path) {
                break;
            }
            directories.insert(path.clone(), directory(path, mtime));
        }
    }
    Manifest::new(directories.into_values().chain(files).collect())
}

/// The entry of a directory of mode 0755.
#[must_use]
pub fn directory(path: TreePath, mtime: i64) -> Entry {
    Entry {
        path,
        mode: 0o755,
        owner: None,
        mtime,
        content: Content::Dir,
        hard_link: None,
        xattrs: Vec::new(),
        blob: None,
        stamp: Stamp::default(),
    }
}

/// `attributes: git`: the git program makes the checkout, we take it in with our own modes.
fn checked_out_by_git(site: &Site, repo: &Repo, commit: &ObjectId, store: &Store) -> Result<Manifest> {
    let dir = workshop(site, "checkout")?;
    fs_scratch(&dir.join("tree"))?;
    let path = dir.join("tree");
    if let Some(owners) = site.owners() {
        Dir::open_real(&path)?.give_to(owners.receiver.0, owners.receiver.1)?;
    }
    repo.checkout_with_git(commit, &path)?;
    let tree = Dir::open_real(&path)?;
    let top = tree.stat_self()?;
    let told = identify(&tree, Own { uid: top.uid, gid: top.gid }, None, &|_| true)?;
    // git made none of these: they would bring another's content into the project.
    let foreign = told.of_another(Own { uid: top.uid, gid: top.gid }, |_| false).map(|entry| &entry.path);
    if let Some(path) = foreign.or(told.linked_elsewhere.first()).or(told.specials.first()) {
        return Err(Error::refused(format!("git's checkout holds a file that git did not make: `{path}`")));
    }
    let now = now_ns();
    let mut entries = Vec::new();
    for entry in told.manifest.entries() {
        let mut entry = Entry { mtime: now, hard_link: None, xattrs: Vec::new(), ..entry.clone() };
        if entry.hash().is_some() {
            let (found, _) =
                store.add(&mut tree.open_file(entry.path.as_path())?.take(entry.size().saturating_add(1)))?;
            if Some(found) != entry.hash() {
                return Err(Error::failed(format!("`{}` changed after its checkout", entry.path)));
            }
        }
        if !matches!(entry.content, Content::Symlink(_)) {
            entry.mode = if entry.is_dir() || entry.mode & 0o100 != 0 { 0o755 } else { 0o644 };
        }
        entries.push(entry);
    }
    Dir::open_real(&dir)?.remove_tree(Path::new("tree"))?;
    Manifest::new(entries)
}
