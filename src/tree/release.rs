//! Kept releases: `deploy/<id>/`, each a manifest and its provenance; contents live in the trees and in the store.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hash::Hash;
use super::manifest::{Entry, Manifest, Style};
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::mode::Mode;
use crate::project::place::Place;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::{fs, seal};

/// Where a release came from (`release.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Format of this file.
    pub format: u32,
    /// The deployment that made it.
    pub id: DeploymentId,
    /// Its number.
    pub seq: u64,
    /// The project.
    pub project: String,
    /// The commit.
    pub commit: ObjectId,
    /// The commit's time, seconds since the epoch.
    pub commit_time: i64,
    /// The pillar's commit.
    pub pillar: Option<ObjectId>,
    /// The mode it was deployed in.
    pub mode: Mode,
    /// Whether build steps ran.
    pub built: bool,
    /// Digest of the tree at the end of `post_build`: what a deliverable holds.
    pub built_digest: String,
    /// Digest of the tree that was made live.
    pub tree_digest: String,
    /// When.
    pub created: jiff::Timestamp,
    /// Who.
    pub pusher: String,
    /// With what and where; nothing where an older version made it.
    #[serde(default)]
    pub made: Made,
}

impl Provenance {
    /// What it says, in words: each a name and its value, not escaped.
    #[must_use]
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let Made { recipe, log, node, tool } = &self.made;
        let built = if self.built { "built" } else { "as committed" };
        let when = self.created.strftime("%Y-%m-%d %H:%M:%S UTC");
        let on = if node.is_empty() { String::new() } else { format!(" on {node}") };
        let with = if tool.is_empty() { String::new() } else { format!(", {tool}") };
        let mut facts = vec![
            ("made", format!("{built} in {} mode{on}, {when}, by {}{with}", self.mode.name(), self.pusher)),
            ("as", format!("#{} {}", self.seq, self.id)),
            ("commit", self.commit.to_string()),
        ];
        facts.extend(self.pillar.as_ref().map(|pillar| ("pillar", pillar.to_string())));
        facts.extend(recipe.as_ref().map(|digest| ("recipe", format!("blake3 {digest}"))));
        facts
            .extend(log.as_ref().map(|log| ("log", format!("blake3 {} of its first {} bytes", log.blake3, log.bytes))));
        facts.push(("tree", format!("blake3 {}", self.built_digest)));
        facts
    }
}

/// With what a release was made, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// blake3 of the recipe's file; `None` for a commit without one.
    pub recipe: Option<String>,
    /// The log as far as it was written when the release was made: the build.
    pub log: Option<LogDigest>,
    /// The name of the machine.
    pub node: String,
    /// The program and its version.
    pub tool: String,
}

/// The digest of the first bytes of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDigest {
    /// How many.
    pub bytes: u64,
    /// blake3 of them.
    pub blake3: String,
}

impl Made {
    /// Here and now, by this program; `log` is the file of the log so far.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn here(recipe: Option<&[u8]>, log: &Path) -> Result<Self> {
        let read = |path: &Path| -> Result<LogDigest> {
            let digest = Hash::reading(&mut fs::open_read(path)?);
            let (hash, bytes) = digest.context(|| format!("cannot read {}", path.display()))?;
            Ok(LogDigest { bytes, blake3: hash.hex() })
        };
        Ok(Self {
            recipe: recipe.map(|bytes| Hash::of(bytes).hex()),
            log: if fs::exists(log) { Some(read(log)?) } else { None },
            node: crate::sys::machine::host_name().unwrap_or_default(),
            tool: concat!("mc_project ", env!("CARGO_PKG_VERSION")).to_string(),
        })
    }
}

const MANIFEST: &str = "manifest";
const INDEX: &str = "manifest.index";
const BUILT: &str = "built.manifest";
/// The file that makes a directory a release: written last.
pub const PROVENANCE: &str = "release.json";
/// The whole manifest of a release that is not kept any more, on which this one's list of changes stands.
const BASE: &str = "base.manifest";
const BASE_INDEX: &str = "base.manifest.index";
/// How many lists of changes may stand on each other; before that one is written whole, when there is time for it.
const LONGEST_CHAIN: usize = 48;
const LONG_CHAIN: usize = 12;

/// Lists of changes that stand on each other, and the whole manifest that the last one stands on.
#[derive(Debug, Default)]
struct Chain {
    lists: usize,
    lists_bytes: u64,
    whole_bytes: u64,
}

/// Manifests that were opened: those that stand on each other share what they have in common, and it is read once.
#[derive(Debug, Clone, Default)]
pub struct Opened(HashMap<DeploymentId, Manifest>);

/// The kept releases of a project.
#[derive(Debug)]
pub struct Releases<'a> {
    place: &'a Place,
}

impl<'a> Releases<'a> {
    /// The releases of this project.
    #[must_use]
    pub fn new(place: &'a Place) -> Self {
        Self { place }
    }

    /// Records a release durably: its manifest (as changes against `before` where that is shorter), the tree at the end of
    /// the build where it differs, and its provenance.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(
        &self,
        provenance: &Provenance,
        manifest: &Manifest,
        built: &Manifest,
        before: Option<(&DeploymentId, &Manifest)>,
    ) -> Result<()> {
        let dir = self.place.release(&provenance.id);
        fs::ensure_dir(&dir, 0o750)?;
        let changes = match before {
            Some((id, old)) if self.chain(id)?.lists < LONGEST_CHAIN => Some(manifest.to_changes(old, id)),
            _ => None,
        };
        let mut files = fs::Several::default();
        match changes.filter(|text| text.lines().count() * 2 < manifest.len() + 8) {
            Some(text) => files.add(&dir.join(MANIFEST), text.as_bytes(), 0o640)?,
            None => self.add_whole(&provenance.id, manifest, &mut files)?,
        }
        if built != manifest {
            let text = built.to_changes(manifest, &provenance.id);
            files.add(&dir.join(BUILT), text.as_bytes(), 0o640)?;
        }
        // What was taken over unread must not have been damaged: then the deployment ends here.
        let all = [Some(manifest), Some(built), before.map(|(_, before)| before)];
        all.into_iter().flatten().try_for_each(Manifest::intact)?;
        files.add(&dir.join(PROVENANCE), &seal::pretty(provenance, "a provenance")?, 0o640)?;
        files.add_dir(&self.place.deploy());
        files.replace()?;
        // Of an earlier record of the same deployment.
        if built == manifest { fs::remove_file(&dir.join(BUILT)) } else { Ok(()) }
    }

    fn write_whole(&self, id: &DeploymentId, manifest: &Manifest) -> Result<()> {
        let mut files = fs::Several::default();
        self.add_whole(id, manifest, &mut files)?;
        files.replace()
    }

    /// The index says of which manifest it is: that of another one is no harm.
    fn add_whole(&self, id: &DeploymentId, manifest: &Manifest, files: &mut fs::Several) -> Result<()> {
        let dir = self.place.release(id);
        let written = manifest.to_manifest();
        files.add(&dir.join(MANIFEST), written.text.as_bytes(), 0o640)?;
        fs::replace(&dir.join(INDEX), written.index.as_bytes(), 0o640)
    }

    /// The manifest of a kept release, as far as possible without reading it: [`Manifest::intact`] tells afterwards whether
    /// what was asked for was there.
    ///
    /// # Errors
    /// As [`Releases::manifest`].
    pub fn open(&self, id: &DeploymentId) -> Result<Manifest> {
        self.open_among(id, &mut Opened::default())
    }

    /// As [`Releases::open`], with what was opened before.
    ///
    /// # Errors
    /// As [`Releases::manifest`].
    pub fn open_among(&self, id: &DeploymentId, opened: &mut Opened) -> Result<Manifest> {
        if let Some(manifest) = opened.0.get(id) {
            return Ok(manifest.clone());
        }
        let manifest = self.open_above(id, opened);
        match &manifest {
            Ok(manifest) => opened.0.insert(id.clone(), manifest.clone()),
            Err(_) => opened.0.remove(id),
        };
        manifest
    }

    /// Opens a manifest on what it stands on.
    fn open_above(&self, id: &DeploymentId, opened: &mut Opened) -> Result<Manifest> {
        let path = self.place.release(id).join(MANIFEST);
        match self.first_line(id)? {
            Some(before) if opened.0.len() < 1000 => {
                let text = self.text(id)?;
                // Against itself: a ring.
                opened.0.insert(id.clone(), Manifest::default());
                let is_present = self.is_present(&before);
                let below = if is_present { self.open_among(&before, opened)? } else { self.open_base(id)? };
                below.with_changes(&text).context(|| format!("cannot read the manifest of {id}"))
            }
            Some(_) => Err(Error::failed(format!("the manifest of {id} stands on too many others"))),
            None => match Manifest::open(&path, &path.with_file_name(INDEX), Style::Plain) {
                Some((manifest, _)) => Ok(manifest),
                None => self.manifest(id),
            },
        }
    }

    fn is_present(&self, id: &DeploymentId) -> bool {
        fs::exists(&self.place.release(id).join(MANIFEST))
    }

    /// What a list of changes stands on when the release that it names is gone.
    fn open_base(&self, id: &DeploymentId) -> Result<Manifest> {
        let dir = self.place.release(id);
        match Manifest::open(&dir.join(BASE), &dir.join(BASE_INDEX), Style::Plain) {
            Some((manifest, _)) => Ok(manifest),
            None => self.base(id),
        }
    }

    fn base(&self, id: &DeploymentId) -> Result<Manifest> {
        let bytes = fs::read_if_there(&self.place.release(id).join(BASE))?.ok_or_else(|| not_kept(id))?;
        Manifest::from_text(&String::from_utf8_lossy(&bytes)).context(|| format!("cannot read the manifest of {id}"))
    }

    /// Writes the manifest of a release whole if it stands on many others: what is opened later is opened faster.
    ///
    /// # Errors
    /// If it is damaged or cannot be written.
    pub fn compact(&self, id: &DeploymentId) -> Result<()> {
        let chain = self.chain(id)?;
        // Few lists may be large too: one that others stood on grows with every one of them that goes.
        if chain.lists > LONG_CHAIN || chain.lists_bytes * 8 > chain.whole_bytes {
            self.write_whole(id, &self.manifest(id)?)?;
        }
        Ok(())
    }

    /// As [`Releases::built`], of a release whose manifest is at hand.
    ///
    /// # Errors
    /// As [`Releases::manifest`].
    pub fn built_of(&self, id: &DeploymentId, manifest: &Manifest) -> Result<Manifest> {
        self.built_on(id, || Ok(manifest.clone()))
    }

    fn built_on(&self, id: &DeploymentId, manifest: impl FnOnce() -> Result<Manifest>) -> Result<Manifest> {
        let Some(bytes) = fs::read_if_there(&self.place.release(id).join(BUILT))? else { return manifest() };
        let text = String::from_utf8_lossy(&bytes);
        match Manifest::changes_against(&text)? {
            Some(_) => manifest()?.with_changes(&text),
            None => Manifest::from_text(&text),
        }
    }

    /// The release that this one's manifest stands on, if it is a list of changes.
    fn first_line(&self, id: &DeploymentId) -> Result<Option<DeploymentId>> {
        let path = self.place.release(id).join(MANIFEST);
        if !fs::exists(&path) {
            return Err(not_kept(id));
        }
        let bytes = fs::read_from(&path, 0, 256)?;
        Manifest::changes_against(&String::from_utf8_lossy(&bytes))
    }

    /// The manifest of a kept release.
    ///
    /// # Errors
    /// If the release is not kept or its manifest is damaged.
    pub fn manifest(&self, id: &DeploymentId) -> Result<Manifest> {
        let mut changes = Vec::new();
        let mut at = id.clone();
        let mut manifest = loop {
            let text = self.text(&at)?;
            let Some(before) = Manifest::changes_against(&text)? else {
                break Manifest::from_text(&text).context(|| format!("cannot read the manifest of {at}"))?;
            };
            if changes.len() > 2 * LONGEST_CHAIN {
                return Err(Error::failed(format!("the manifest of {id} stands on a ring of changes")));
            }
            changes.push(text);
            if !self.is_present(&before) {
                break self.base(&at)?;
            }
            at = before;
        };
        for text in changes.iter().rev() {
            manifest = manifest.with_changes(text).context(|| format!("cannot read the manifest of {id}"))?;
        }
        Ok(manifest)
    }

    /// The tree at the end of the build: what a deliverable of this release holds.
    ///
    /// # Errors
    /// As [`Releases::manifest`].
    pub fn built(&self, id: &DeploymentId) -> Result<Manifest> {
        self.built_on(id, || self.manifest(id))
    }

    /// The provenance of a kept release.
    ///
    /// # Errors
    /// If the release is not kept.
    pub fn provenance(&self, id: &DeploymentId) -> Result<Provenance> {
        let path = self.place.release(id).join(PROVENANCE);
        seal::read(&path)?.ok_or_else(|| not_kept(id))
    }

    /// The ids of all kept releases, in no particular order. Entries that are no release are not listed.
    ///
    /// # Errors
    /// If `deploy/` cannot be read.
    pub fn ids(&self) -> Result<Vec<DeploymentId>> {
        let names = fs::names(&self.place.deploy())?;
        let ids = names.iter().filter_map(|name| name.parse().ok());
        Ok(ids.filter(|id| fs::exists(&self.place.release(id).join(PROVENANCE))).collect())
    }

    /// Every content that a kept release needs.
    ///
    /// # Errors
    /// If a manifest cannot be read: then nothing may be thrown away.
    pub fn needed(&self) -> Result<HashSet<Hash>> {
        self.needed_by(self.ids()?)
    }

    /// Every content that a kept release other than this one needs.
    ///
    /// # Errors
    /// As [`Releases::needed`].
    pub fn needed_without(&self, id: &DeploymentId) -> Result<HashSet<Hash>> {
        self.needed_by(self.ids()?.into_iter().filter(|other| other != id).collect())
    }

    fn needed_by(&self, ids: Vec<DeploymentId>) -> Result<HashSet<Hash>> {
        let (mut opened, mut seen, mut needed) = (Opened::default(), HashSet::new(), HashSet::new());
        for id in ids {
            let manifest = self.open_among(&id, &mut opened)?;
            let built = self.built_of(&id, &manifest)?;
            for chunk in manifest.chunks().chain(built.chunks()).filter(|chunk| seen.insert(chunk.plain())) {
                needed.extend(chunk.entries().iter().filter_map(Entry::hash));
            }
            manifest.intact().and_then(|()| built.intact()).context(|| format!("cannot read the manifest of {id}"))?;
        }
        Ok(needed)
    }

    /// Removes a release; those whose manifests stand on it are made to stand on what it stood on.
    ///
    /// # Errors
    /// If something cannot be written or removed.
    pub fn remove(&self, id: &DeploymentId) -> Result<()> {
        for other in self.ids()? {
            if other != *id && self.first_line(&other)?.as_ref() == Some(id) {
                self.rebase(&other, id)?;
            }
        }
        Dir::open(&self.place.deploy())?.remove_tree(Path::new(id.as_str()))
    }

    /// Makes a release stand on what another one stands on, which is about to go; nothing is read or written but changes.
    fn rebase(&self, id: &DeploymentId, going: &DeploymentId) -> Result<()> {
        let (from, to) = (Dir::open(&self.place.release(going))?, Dir::open(&self.place.release(id))?);
        let give = |name: &str, index: &str| -> Result<()> {
            for (name, new) in [(name, BASE), (index, BASE_INDEX)] {
                to.unlink(Path::new(new))?;
                if from.stat(Path::new(name))?.is_some() {
                    from.link(Path::new(name), &to, Path::new(new))?;
                }
            }
            fs::sync_dir(to.path())
        };
        let Some(below) = self.first_line(going)? else { return give(MANIFEST, INDEX) };
        let base = if self.is_present(&below) {
            self.open(&below)?
        } else {
            give(BASE, BASE_INDEX)?;
            self.open_base(going)?
        };
        let manifest = self.open(id)?;
        let text = manifest.to_changes(&base, &below);
        base.intact().and_then(|()| manifest.intact())?;
        fs::write_durable(&to.path().join(MANIFEST), text.as_bytes(), 0o640)
    }

    /// Points `deploy/<id>/tree` at the physical tree that holds this release; `None` removes the link. The caller syncs
    /// `deploy/<id>` where a power cut must not bring the link before back.
    ///
    /// # Errors
    /// If the link cannot be made.
    pub fn link_tree(&self, id: &DeploymentId, tree: Option<&str>) -> Result<()> {
        let link = self.place.release(id).join("tree");
        match tree {
            Some(tree) => fs::put_symlink(&link, &PathBuf::from("..").join(tree)).map(|_| ()),
            None => fs::remove_file(&link),
        }
    }

    /// Removes every link that says that `tree` holds a release: it is about to become another.
    ///
    /// # Errors
    /// If a link cannot be removed.
    pub fn unlink_tree(&self, tree: &str) -> Result<()> {
        let target = PathBuf::from("..").join(tree);
        for id in self.ids()? {
            let link = self.place.release(&id).join("tree");
            if fs::link_target(&link).as_ref() == Some(&target) {
                fs::remove_file(&link)?;
            }
        }
        Ok(())
    }

    fn text(&self, id: &DeploymentId) -> Result<String> {
        let bytes = fs::read_if_there(&self.place.release(id).join(MANIFEST))?.ok_or_else(|| not_kept(id))?;
        String::from_utf8(bytes).context(|| format!("cannot read the manifest of {id}"))
    }

    /// What a release's manifest consists of.
    fn chain(&self, id: &DeploymentId) -> Result<Chain> {
        let size = |id: &DeploymentId, name: &str| fs::size_of(&self.place.release(id).join(name)).unwrap_or(0);
        let (mut chain, mut at) = (Chain::default(), id.clone());
        while let Some(before) = self.first_line(&at)?.filter(|_| chain.lists <= LONGEST_CHAIN) {
            chain.lists += 1;
            chain.lists_bytes += size(&at, MANIFEST);
            if !self.is_present(&before) {
                return Ok(Chain { whole_bytes: size(&at, BASE), ..chain });
            }
            at = before;
        }
        Ok(Chain { whole_bytes: size(&at, MANIFEST), ..chain })
    }
}

fn not_kept(id: &DeploymentId) -> Error {
    Error::refused(format!("release {id} is not kept")).hint("mc_project release list NAME shows those that are")
}
