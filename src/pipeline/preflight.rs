//! Preflight: is there room for this deployment on each file system that it writes to? Asked before anything changes.
//!
//! What is counted is known or was measured: the commit's new contents, once for each tree that takes them; the data that
//! differ from the last snapshot; what the last dumps, the last deliverable, the last log took; what the last build made
//! new. A rollback counts only what it must write, and need not leave the reserve: it is what one does when a disk is full.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::activate::{RestorePoint, dumps_of};
use super::ballast;
use super::checkout::limits_of;
use super::draft::{Draft, Live, Version};
use super::fetch::Offer;
use super::halt::{Halt, Step};
use super::listing::Listing;
use super::site::Site;
use crate::project::ids::ObjectId;
use crate::project::mode::Mode;
use crate::project::outcome::SwitchKind;
use crate::project::stage::Stage;
use crate::report::ledger::Last;
use crate::sys::dir::{Dir, Space};
use crate::sys::error::{Error, Result};
use crate::sys::git::GitEntry;
use crate::sys::path::TreePath;
use crate::sys::size::{exact, grouped, words};
use crate::sys::usage::{self, Counted};
use crate::sys::{fs, mount};
use crate::tree::deliverable::{Deliverable, LARGEST_MANIFEST};
use crate::tree::hash::Hash;
use crate::tree::manifest::{Entry, Manifest, differing};
use crate::tree::release::Releases;
use crate::tree::snapshot::Snapshots;
use crate::tree::switch;
use crate::tree::witness::{self, Witness};

/// The unit in which file systems give out space.
const BLOCK: u64 = 4096;
/// What a deployment writes about itself into `state/`, beside its witnesses.
const RECORDS: Need = Need { bytes: 192 * 1024, inodes: 24 };
/// What it adds to the repositories: refs, a note.
const REFS: Need = Need { bytes: 64 * 1024, inodes: 16 };
/// A line of a manifest or a witness.
const LINE: u64 = 200;
/// The least that is taken for a log.
const LOG: u64 = 64 * 1024;

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Bytes, in whole blocks.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Need {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), inodes: self.inodes.saturating_add(other.inodes) }
    }

    /// One file of this size.
    #[must_use]
    pub fn file(size: u64) -> Self {
        Self { bytes: rounded(size), inodes: 1 }
    }

    /// All together.
    #[must_use]
    pub fn sum(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::default(), Self::plus)
    }
}

fn rounded(size: u64) -> u64 {
    size.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// What is written, where it matters for what is advised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Trees, contents, records.
    Deployment,
    /// The snapshot of the data.
    Data,
    /// Lines for people: no promise depends on them, so they leave no reserve.
    Log,
}

/// What is written below one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The directory.
    pub dir: PathBuf,
    /// How much.
    pub need: Need,
    /// What it is.
    pub what: What,
}

/// A file system, and what is to be written to it.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Where it is mounted.
    pub point: PathBuf,
    /// What is free.
    pub space: Space,
    /// How much must stay free.
    pub reserve: u64,
    /// How much may be written, the reserve included.
    pub available: u64,
    /// How much is needed.
    pub need: Need,
    /// Of this, the snapshot of the data.
    pub data: Need,
}

impl Disk {
    /// Whether it has too little.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.need.bytes.saturating_add(self.reserve) > self.available || self.need.inodes > self.space.inodes
    }

    /// What is needed and what is there, in one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        let inodes = match self.space.inodes {
            u64::MAX => String::new(),
            free => format!(" and {} inodes", grouped(free)),
        };
        let reserve = match self.reserve {
            0 => String::new(),
            reserve => format!(", of which {} stay reserved", words(reserve)),
        };
        format!(
            "{} needs {} and {} inodes, has {}{inodes} free{reserve}",
            self.point.display(),
            exact(self.need.bytes),
            grouped(self.need.inodes),
            exact(self.available),
        )
    }
}

/// What a deployment is about to do, as far as it decides how much is written.
#[derive(Debug)]
pub struct Undertaking<'a> {
    /// The project.
    pub site: &'a Site,
    /// The new version.
    pub next: &'a Version,
    /// What serves.
    pub live: Option<&'a Live>,
    /// The manifest of the kept release that is made live again; `None` for a commit.
    pub kept: Option<&'a Manifest>,
    /// What the commit brings.
    pub listing: &'a Listing,
    /// In final mode: where its deliverable is.
    pub offer: Option<&'a Offer>,
    /// Whether it builds.
    pub builds: bool,
    /// Whether `backup` steps will run.
    pub dumps: bool,
}

impl Draft<'_> {
    /// Refuses the deployment where a file system has too little room; the program that the node allows for that is asked
    /// to enlarge it first.
    ///
    /// # Errors
    /// The refusal, with the numbers of each such file system.
    pub fn preflight(&mut self) -> Step {
        let next = self.next.clone();
        let listing = self.listing.take().unwrap_or_default();
        let dumps = [Some(&next), self.old_version()].into_iter().flatten();
        let dumps = dumps.map(|version| self.steps_of(version, Stage::Backup)).any(|steps| !steps.is_empty());
        let kept = self.kept.clone();
        let builds = kept.is_none() && self.builds(&next);
        let undertaking = Undertaking {
            site: self.site,
            next: &next,
            live: self.live.as_ref(),
            kept: kept.as_ref(),
            listing: &listing,
            offer: self.offer.as_ref().and_then(|offer| offer.as_ref().ok()),
            builds,
            dumps,
        };
        let held = if kept.is_none() { undertaking.ballast() } else { 0 };
        let mut parts = undertaking.parts()?;
        self.data_need = Some(Need::sum(parts.iter().filter(|part| part.what == What::Data).map(|part| part.need)));
        self.listing = Some(listing);
        if kept.is_none() {
            let need = ballast::missing(self.site, held);
            parts.push(Part { dir: self.site.place.state(), need, what: What::Deployment });
            refuse_beyond_cap(self.site, &parts)?;
        }
        self.find_room(&parts, kept.is_none())?;
        if kept.is_none()
            && let Err(error) = ballast::hold(self.site, held)
        {
            self.warn(format!("a rollback on a full disk may fail: {}", error.one_line()));
        }
        Ok(())
    }

    /// Refuses where a file system has no room for these parts; it is enlarged first where the node allows that. `reserved`:
    /// whether the node's reserve must stay free.
    ///
    /// # Errors
    /// The refusal, with the numbers of each such file system.
    pub fn find_room(&mut self, parts: &[Part], reserved: bool) -> Step {
        let find = || disks(self.site, parts, reserved);
        let mut all = find()?;
        let mut told = Vec::new();
        if let Some(enlarge) = &self.site.config.allow.enlarge
            && all.iter().any(Disk::is_short)
        {
            for short in all.iter().filter(|disk| disk.is_short()) {
                told.push(self.enlarge(enlarge, short)?);
            }
            all = find()?;
        }
        let short: Vec<&Disk> = all.iter().filter(|disk| disk.is_short()).collect();
        if short.is_empty() {
            for line in told {
                self.note(line);
            }
            return Ok(());
        }
        Err(refusal(self.site, &short, &told))
    }
}

/// The refusal that names every file system with too little room; `told` is what enlarging them came to.
fn refusal(site: &Site, short: &[&Disk], told: &[String]) -> Halt {
    let sentences: Vec<String> = short.iter().map(|disk| disk.sentence()).collect();
    let mut halt = Halt::refused(format!("no space: {}", sentences.join("; ")));
    for line in told {
        halt = halt.hint(line);
    }
    let points: Vec<String> = short.iter().map(|disk| disk.point.display().to_string()).collect();
    halt = halt.hint(format!(
        "free some space on {}: mc_project status NAME --disk tells what takes it",
        points.join(" and ")
    ));
    if short.iter().any(|disk| disk.data.bytes > disk.need.bytes / 2) {
        halt = halt.hint(
            "or name in mc_project.yaml which data must be kept:\n    data:\n      snapshot: [uploads, db.sqlite3]",
        );
    }
    if site.config.allow.enlarge.is_none() {
        halt = halt.hint("or keep less: `keep: {archives: 1}` in mc_project.yaml, `reserve:` in node.yaml");
    }
    halt
}

/// Refuses a push where the project's file systems have no room for any deployment. Where the node allows to enlarge them
/// the deployment itself decides.
///
/// # Errors
/// The refusal, with the numbers of each such file system.
pub fn refuse_full(site: &Site) -> Result<()> {
    if site.config.allow.enlarge.is_some() {
        return Ok(());
    }
    let place = &site.place;
    let part = |dir: PathBuf, need| Part { dir, need, what: What::Deployment };
    refuse_short(site, &[part(place.git_project(), REFS), part(place.state(), RECORDS)])
}

/// Refuses what is written by hand and has no room: no deployment is at hand that could ask for more.
///
/// # Errors
/// The refusal, with the numbers.
pub fn refuse_short(site: &Site, parts: &[Part]) -> Result<()> {
    let all = disks(site, parts, true)?;
    let short: Vec<&Disk> = all.iter().filter(|disk| disk.is_short()).collect();
    let halt = match refuse_beyond_cap(site, parts) {
        Err(halt) => halt,
        Ok(()) if short.is_empty() => return Ok(()),
        Ok(()) => refusal(site, &short, &[]),
    };
    Err(site.typed(Error::refused(halt.reason).hint(halt.hints.join("\n"))))
}

/// The file systems that these parts lie on. `reserved`: whether the node's reserve must stay free.
///
/// # Errors
/// If one cannot be examined.
pub fn disks(site: &Site, parts: &[Part], reserved: bool) -> Result<Vec<Disk>> {
    let mut found: Vec<(u64, Disk)> = Vec::new();
    for part in parts.iter().filter(|part| part.need != Need::default()) {
        let dir = existing(&part.dir);
        let (device, point) = mount::file_system_of(dir)?;
        if !found.iter().any(|(known, _)| *known == device) {
            let space = Dir::open(dir)?.free_space()?;
            let available = if reserved { space.bytes } else { space.at_most };
            let (need, data) = (Need::default(), Need::default());
            found.push((device, Disk { point, space, reserve: 0, available, need, data }));
        }
        let Some((_, disk)) = found.iter_mut().find(|(known, _)| *known == device) else { continue };
        disk.need = disk.need.plus(part.need);
        match part.what {
            What::Log => continue,
            What::Data => disk.data = disk.data.plus(part.need),
            What::Deployment => {}
        }
        if reserved {
            disk.reserve = site.node.config.reserve.of(disk.space.total);
        }
    }
    Ok(found.into_iter().map(|(_, disk)| disk).collect())
}

/// The directory itself, or the nearest one above that exists.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| fs::exists(dir)).unwrap_or(Path::new("/"))
}

/// Refuses what would take the project beyond the `disk` that the node gives it. What it takes is measured by a parallel
/// walk, only where there is such a limit.
///
/// # Errors
/// The refusal, with the numbers.
pub fn refuse_beyond_cap(site: &Site, parts: &[Part]) -> Step {
    let Some(cap) = site.config.disk else { return Ok(()) };
    let need = Need::sum(parts.iter().map(|part| part.need));
    let used = used(site)?;
    if used.saturating_add(need.bytes) <= cap {
        return Ok(());
    }
    Err(Halt::refused(format!(
        "no space: {} may take {} on this node, takes {}, and this needs {} more",
        site.place.name(),
        exact(cap),
        exact(used),
        exact(need.bytes)
    ))
    .hint("mc_project status NAME --disk tells what takes it; `keep: {archives: 1}` in mc_project.yaml keeps less")
    .hint(format!(
        "whoever runs the node may write into {}:\n    projects: {{{}: {{disk: …}}}}",
        site.place.node().config().display(),
        site.place.name()
    )))
}

/// The disk space of everything of a project, by a walk.
fn used(site: &Site) -> Result<u64> {
    let counted = Counted::default();
    let mut total = 0;
    for dir in [site.place.dir().to_path_buf(), site.place.logs()] {
        if fs::exists(&dir) {
            total += usage::measure(&Dir::open(&dir)?, &counted, &[])?.bytes;
        }
    }
    Ok(total)
}

impl Undertaking<'_> {
    /// What will be written, directory by directory.
    ///
    /// # Errors
    /// If something cannot be examined.
    pub fn parts(&self) -> Result<Vec<Part>> {
        let place = &self.site.place;
        let mut parts = match self.kept {
            Some(manifest) => self.of_kept_release(manifest)?,
            None => self.of_commit()?,
        };
        let mut add = |dir: PathBuf, need: Need, what: What| parts.push(Part { dir, need, what });
        let data = Snapshots::new(place, self.site.own).measure(&self.next.recipe.snapshot)?;
        let data = Need { bytes: data.bytes.saturating_add(data.files * BLOCK), inodes: data.files };
        add(place.archives(), data, What::Data);
        if self.dumps {
            add(place.archives(), self.last_dumps()?, What::Deployment);
        }
        if self.kept.is_none() {
            let log = Last::read(place)?.map_or(0, |last| size(&place.log(&last.id)) + size(&place.events(&last.id)));
            add(place.logs(), Need { bytes: rounded(log.max(LOG)), inodes: 2 }, What::Log);
            add(place.git_project(), REFS, What::Deployment);
        }
        Ok(parts)
    }

    /// A commit: its new contents in the store and in each tree, what was built, the deliverable, the records.
    fn of_commit(&self) -> Result<Vec<Part>> {
        let place = &self.site.place;
        let new = self.new_files();
        let dirs = self.new_directories(&new);
        let contents = Need::sum(new.iter().map(|entry| Need::file(entry.size)));
        let tree = contents.plus(dirs);
        let built = if self.next.mode == Mode::Final { self.fetched() } else { self.built_last()? };
        let lines = self.listing.count().max(self.live.map_or(0, |live| live.manifest.len())) as u64;
        let manifests = lines.saturating_mul(LINE).saturating_mul(if self.builds { 2 } else { 1 });
        let mut all = vec![
            (place.store(), contents.plus(built)),
            (place.project(), tree),
            (place.spare(), tree.plus(built)),
            (place.deploy(), Need { bytes: rounded(manifests) + 2 * BLOCK, inodes: 6 }),
            (place.state(), RECORDS.plus(Need { bytes: rounded(lines.saturating_mul(LINE)), inodes: 0 })),
        ];
        if self.builds {
            all.push((place.build_tree(), tree.plus(built)));
        }
        if switch::kind(place)? == SwitchKind::InPlace {
            all.push((place.run(), tree.plus(built)));
        }
        if self.next.mode == Mode::Cooking {
            all.push((place.releases(), self.packed()));
        }
        all.push((place.releases(), self.offer.map_or(Need::default(), downloaded)));
        let pillar = self.pillar()?;
        all.extend([(place.pillar(), pillar), (place.build(), pillar)]);
        Ok(all.into_iter().map(|(dir, need)| Part { dir, need, what: What::Deployment }).collect())
    }

    /// A kept release: what `project/` lacks, and what the spare has not.
    fn of_kept_release(&self, manifest: &Manifest) -> Result<Vec<Part>> {
        let place = &self.site.place;
        let spare = Dir::open_real(&place.spare())?;
        let witness = Witness::open_or_read(&witness::path_of(place, &spare)?);
        let held = witness.map(|witness| witness.manifest().clone()).unwrap_or_default();
        let other = differing(&held, manifest).filter(|(old, new)| old.map(Entry::hash) != new.map(Entry::hash));
        let other: Vec<&Entry> = other.filter_map(|(_, new)| new).collect();
        // What the spare has elsewhere costs nothing either.
        let held: HashSet<Hash> = if other.is_empty() { HashSet::new() } else { held.hashes().collect() };
        let lacks = |entry: &&&Entry| entry.hash().is_some_and(|hash| !held.contains(&hash));
        let copied = Need::sum(other.iter().filter(lacks).map(|entry| Need::file(entry.size())));
        let project = Need::sum(self.new_files().iter().map(|entry| Need::file(entry.size)));
        let mut all = vec![(place.project(), project), (place.spare(), copied)];
        if switch::kind(place)? == SwitchKind::InPlace {
            let live: HashSet<Hash> = self.live.iter().flat_map(|live| live.manifest.hashes()).collect();
            let lacks = |entry: &&Entry| entry.hash().is_some_and(|hash| !live.contains(&hash));
            let written = Need::sum(manifest.entries().filter(lacks).map(|entry| Need::file(entry.size())));
            all.push((place.run(), written));
        }
        Ok(all.into_iter().map(|(dir, need)| Part { dir, need, what: What::Deployment }).collect())
    }

    /// What must be held to take everything back: the records, and the files of `project/` that are replaced.
    fn ballast(&self) -> u64 {
        let replaced = self.live.map(|live| self.listing.replaced(&live.manifest)).unwrap_or_default();
        let replaced = Need::sum(replaced.into_iter().map(|entry| Need::file(entry.size())));
        ballast::size(self.live).saturating_add(replaced.bytes)
    }

    /// Files of the commit whose content the live version has not.
    fn new_files(&self) -> Vec<&GitEntry> {
        if self.listing.base.is_some() {
            return self.listing.files.iter().collect();
        }
        let live = self.live.iter().flat_map(|live| live.manifest.entries());
        let known: HashSet<&ObjectId> = live.filter_map(|entry| entry.blob.as_ref()).collect();
        self.listing.files.iter().filter(|entry| !known.contains(&entry.oid)).collect()
    }

    /// Directories that these files are in and the live version has not.
    fn new_directories(&self, files: &[&GitEntry]) -> Need {
        let empty = Manifest::default();
        let live = self.live.map_or(&empty, |live| &live.manifest);
        let mut dirs: HashSet<TreePath> = HashSet::new();
        for file in files {
            for path in file.path.ancestors() {
                if live.get(&path).is_some() || !dirs.insert(path) {
                    break;
                }
            }
        }
        let count = dirs.len() as u64;
        Need { bytes: count * BLOCK, inodes: count }
    }

    /// What the last build made that no release before had: a guess at what the next one will.
    fn built_last(&self) -> Result<Need> {
        let Some(live) = self.live.filter(|live| self.builds && live.provenance.built) else {
            return Ok(Need::default());
        };
        let made = live.manifest.entries().filter(|entry| entry.blob.is_none() && entry.hash().is_some());
        let before = RestorePoint::read(self.site, &live.serving.id)?.and_then(|point| point.before);
        let before = before.and_then(|before| Releases::new(&self.site.place).manifest(&before.id).ok());
        let known: Option<HashSet<Hash>> = before.map(|manifest| manifest.hashes().collect());
        let cache = &self.next.recipe.cache;
        let is_new = |entry: &&Entry| match &known {
            Some(known) => entry.hash().is_some_and(|hash| !known.contains(&hash)),
            // What is kept from build to build is there already.
            None => !cache.iter().any(|path| entry.path.is_within(path)),
        };
        Ok(Need::sum(made.filter(is_new).map(|entry| Need::file(entry.size()))))
    }

    /// Contents of the commit's deliverable that the live version has not; nothing where there is none, which is refused later.
    fn fetched(&self) -> Need {
        let read = |found: &Deliverable| {
            let bytes = fs::read_bounded(&found.file("manifest"), LARGEST_MANIFEST).ok().flatten().unwrap_or_default();
            Manifest::from_text(&String::from_utf8_lossy(&bytes)).ok()
        };
        let manifest = match self.offer {
            Some(Offer::Here(found)) => read(found).map(Cow::Owned),
            Some(Offer::There(incoming, _)) => Some(Cow::Borrowed(&incoming.manifest)),
            None => None,
        };
        let live: HashSet<Hash> = self.live.iter().flat_map(|live| live.manifest.hashes()).collect();
        let contents: HashMap<Hash, u64> = manifest
            .iter()
            .flat_map(|manifest| manifest.entries())
            .filter_map(|entry| Some((entry.hash()?, entry.size())))
            .filter(|(hash, _)| !live.contains(hash))
            .collect();
        Need::sum(contents.into_values().map(Need::file))
    }

    /// The deliverable, as large as the last one; the first one as large as the commit.
    fn packed(&self) -> Need {
        let place = &self.site.place;
        let last = self.live.map(|live| Deliverable::new(&place.releases(), place.name(), &live.provenance.commit));
        let last =
            last.filter(Deliverable::exists).map(|last| size(&last.file("tar.zst")) + size(&last.file("manifest")));
        let first = || self.listing.bytes();
        Need { bytes: rounded(last.unwrap_or_else(first)) + 2 * BLOCK, inodes: 4 }
    }

    /// What the dumps of the newest restore point that has some took.
    fn last_dumps(&self) -> Result<Need> {
        for point in RestorePoint::all(self.site)?.iter().rev() {
            let dumps = dumps_of(self.site, &point.id);
            if fs::exists(&dumps) {
                let took = usage::measure(&Dir::open(&dumps)?, &Counted::default(), &[])?;
                return Ok(Need { bytes: took.bytes, inodes: took.inodes });
            }
        }
        Ok(Need::default())
    }

    fn pillar(&self) -> Result<Need> {
        let Some(commit) = &self.next.pillar_commit else { return Ok(Need::default()) };
        let entries = self.site.pillar_repo()?.list(commit, &limits_of(self.site))?;
        Ok(Need::sum(entries.iter().map(|entry| Need::file(entry.size))))
    }
}

/// What is still to be downloaded of a deliverable.
#[must_use]
pub fn downloaded(offer: &Offer) -> Need {
    let Offer::There(incoming, _) = offer else { return Need::default() };
    let rest = incoming.statement().size.saturating_sub(incoming.held().unwrap_or(0));
    let manifest = incoming.statement().entries as u64 * LINE;
    Need { bytes: rounded(rest) + rounded(manifest) + 2 * BLOCK, inodes: 4 }
}

/// The size of a file; 0 where there is none.
fn size(path: &Path) -> u64 {
    fs::size_of(path).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(need: (u64, u64), free: (u64, u64), reserve: u64) -> Disk {
        let space = Space { bytes: free.0, at_most: free.0, inodes: free.1, total: 100 * free.0 };
        let need = Need { bytes: need.0, inodes: need.1 };
        Disk { point: "/srv".into(), space, reserve, available: free.0, need, data: Need::default() }
    }

    #[test]
    fn a_file_system_is_short_of_bytes_or_of_inodes_to_the_last_one() {
        assert!(!disk((90, 5), (100, 5), 10).is_short());
        assert!(disk((91, 5), (100, 5), 10).is_short());
        assert!(disk((90, 6), (100, 5), 10).is_short());
        assert!(!disk((90, 6), (100, u64::MAX), 10).is_short());
    }

    #[test]
    fn the_sentence_has_the_numbers_in_both_spellings() {
        let told = disk((1_288_490_188, 10_234), (800 << 20, 1_200_000), 64 << 20).sentence();
        assert_eq!(
            told,
            "/srv needs 1.1 GiB (1,288,490,188 bytes) and 10,234 inodes, has 800 MiB (838,860,800 bytes) and \
             1,200,000 inodes free, of which 64 MiB stay reserved"
        );
        let told = disk((5000, 1), (100, u64::MAX), 0).sentence();
        assert_eq!(told, "/srv needs 4.8 KiB (5,000 bytes) and 1 inodes, has 100 bytes free");
    }

    #[test]
    fn space_is_given_out_in_blocks() {
        assert_eq!([0, 1, 4096, 4097].map(rounded), [0, 4096, 4096, 8192]);
        assert_eq!(Need::sum([Need::file(1), Need::file(5000)].into_iter()), Need { bytes: 12288, inodes: 2 });
    }
}
