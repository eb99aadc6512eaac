//! Settle: what is done after the outcome is certain. Nothing here can change it, everything here may be repeated.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::Duration;

use super::activate::{RestorePoint, failed_data, in_run, kept_ref};
use super::ballast;
use super::checkout::GitOrigin;
use super::draft::{Live, Version};
use super::halt::Halt;
use super::parking;
use super::proof::Proof;
use super::secrets;
use super::site::Site;
use super::steps::{run_one, steps_of};
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::mode::Mode;
use crate::project::outcome::{Outcome, SwitchKind, Verdict};
use crate::project::recipe::Recipe;
use crate::project::request::Options;
use crate::project::stage::Stage;
use crate::report::event::{Begin, Event};
use crate::report::history::Entry;
use crate::report::notes;
use crate::report::stream::Reporter;
use crate::sys::dir::Dir;
use crate::sys::error::Result;
use crate::sys::escape;
use crate::sys::keys::ReleaseKey;
use crate::sys::path::TreePath;
use crate::sys::process::TreeUsers;
use crate::sys::sync as durable;
use crate::sys::threads::Meanwhile;
use crate::sys::{fault, fs, process};
use crate::tree::deliverable::{Deliverable, Packing};
use crate::tree::drift::Drift;
use crate::tree::hash::Hash;
use crate::tree::manifest::Manifest;
use crate::tree::release::Releases;
use crate::tree::scan::{Identified, identify};
use crate::tree::snapshot::Snapshots;
use crate::tree::store::{Held, Store, Supply};
use crate::tree::switch;
use crate::tree::sync::{self, Aside, Keeping, Plan, Target, apply, seal};
use crate::tree::witness::{self, Witness};

/// The most lines that drift takes.
const DRIFT_LINES: usize = 20;
/// Where the refs are that keep commits of deployments under way.
pub const INFLIGHT: &str = "refs/deploys/inflight";
/// How long a deliverable that was fetched is kept although no release needs it.
const FETCHED_KEPT: Duration = Duration::from_hours(7 * 24);

/// A deployment whose outcome is certain.
#[derive(Debug)]
pub struct Settling<'a> {
    /// The project.
    pub site: &'a Site,
    /// Where warnings are told.
    pub telling: &'a mut Reporter,
    /// How it began.
    pub begin: &'a Begin,
    /// How it ended.
    pub outcome: &'a Outcome,
    /// Its line in the history.
    pub entry: &'a Entry,
    /// The recipe of what was deployed.
    pub recipe: &'a Recipe,
    /// What its steps need; `None` where it could not even be read.
    pub version: Option<&'a Version>,
    /// What serves now.
    pub live: Option<Live>,
    /// What the spare is, once it was looked at.
    pub spare: Option<Manifest>,
    /// Who has the spare open; looked for since the end was told.
    pub users: Option<Meanwhile<Result<TreeUsers>>>,
    /// Whether the trees were found to be what their witnesses say, and nobody can change them unseen.
    pub is_proven: bool,
}

/// One part of settling.
type Part<'a> = fn(&mut Settling<'a>) -> Result<()>;

impl<'a> Settling<'a> {
    /// Tells what concerns whoever waits for the end, and lets them go; a part that fails is a warning.
    pub fn tell_who_waits(&mut self) {
        if self.begin.mode != Mode::Editable {
            let parts: [(&str, Part<'a>); 2] = [
                ("drift could not be kept", Self::look_at_spare),
                ("what failed could not be kept", Self::keep_failed),
            ];
            self.do_all(&parts);
        }
        self.telling.tell(Event::LetGo);
    }

    /// Does all the rest; a part that fails is a warning.
    pub fn settle(&mut self) {
        if self.begin.mode == Mode::Editable {
            // No second tree, no archive, no deliverable: nothing to look at and nothing to rotate.
            let serves = self.outcome.serves.as_ref().map(|serving| &serving.id);
            let settled = self.record_in_git().and_then(|()| parking::remove_editable_releases(self.site, serves));
            if let Err(error) = settled {
                self.warn(format!("not everything could be recorded: {}", error.one_line()));
            }
            return;
        }
        let parts: [(&str, Part<'a>); 5] = [
            ("the record in git could not be written", Self::record_in_git),
            ("the deliverable could not be packed", Self::pack),
            ("old deployments could not be removed", Self::rotate),
            ("the store could not be swept", Self::sweep),
            ("the trees could not be proven", Self::prove),
        ];
        self.do_all(&parts);
    }

    fn do_all(&mut self, parts: &[(&str, Part<'a>)]) {
        for (what, part) in parts {
            if let Err(error) = part(self) {
                self.warn(format!("{what}: {}", error.one_line()));
            }
        }
    }

    /// Tells something that is wrong and changes nothing about the outcome.
    pub fn warn(&mut self, text: String) {
        let _ = self.telling.emit(Event::Warning { text });
    }

    /// The recipe's own way of telling: its `notify` steps see the verdict in `MC_VERDICT` and the whole line in
    /// `MC_OUTCOME`; whatever they do, the outcome stands.
    pub fn notify(&mut self, options: &Options) {
        let Some(version) = self.version else { return };
        let place = in_run(self.site, version, &self.begin.id, None);
        for mut step in steps_of(version, Stage::Notify, options) {
            step.env.insert("MC_VERDICT".to_string(), self.outcome.verdict.words().to_string());
            step.env.insert("MC_OUTCOME".to_string(), escape::visible(&self.outcome.line()));
            let written = version.write_config(self.site).map_err(Halt::from);
            let done =
                written.and_then(|_| run_one(self.site, self.telling, version, (Stage::Notify, &step), &place, false));
            if let Err(halt) = done {
                self.warn(format!("a step of notify failed: {}; {}", halt.reason, self.outcome.serves_words()));
                for line in halt.tail {
                    let _ = self.telling.emit(Event::Note { text: line });
                }
                return;
            }
        }
    }

    /// Holds what the next way back will need, where more than the reserve is free.
    pub fn hold_ballast(&mut self) {
        let bytes = ballast::size(self.live.as_ref());
        let held = Dir::open(&self.site.place.state()).and_then(|dir| dir.free_space()).and_then(|free| {
            let reserve = self.site.node.config.reserve.of(free.total);
            let more = ballast::missing(self.site, bytes);
            let fits = free.bytes > reserve.saturating_add(more.bytes) && free.inodes > more.inodes;
            if fits { ballast::hold(self.site, bytes) } else { Ok(()) }
        });
        if let Err(error) = held {
            self.warn(format!("a rollback on a full disk may fail: {}", error.one_line()));
        }
    }

    fn deployed(&self) -> bool {
        self.outcome.verdict == Verdict::Deployed
    }

    /// `refs/deploys/*` and the note on the commit.
    fn record_in_git(&mut self) -> Result<()> {
        let repo = self.site.repo()?;
        repo.let_go(&inflight_ref(&self.begin.id)?)?;
        let message = format!("mc_project: #{}", self.begin.seq);
        for (name, commit) in notes::refs(self.entry) {
            let name = name.parse()?;
            if repo.read_ref(&name)?.as_ref() != Some(&commit) {
                repo.set_ref(&name, &commit, &message)?;
            }
        }
        let commit = &self.begin.commit;
        let marked = format!(" #{} ", self.begin.seq);
        if !repo.note(commit)?.is_some_and(|note| note.contains(&marked)) {
            repo.add_note(commit, &notes::line(self.entry))?;
        }
        Ok(())
    }

    /// What the spare is now: after a deployment the version before with what was changed in it by hand, which is kept.
    fn look_at_spare(&mut self) -> Result<()> {
        let place = &self.site.place;
        if !self.deployed() || switch::kind(place)? == SwitchKind::InPlace {
            return Ok(());
        }
        let Some(before) = self.begin.serves.clone() else { return Ok(()) };
        let release = Releases::new(place).open(&before.id);
        let entries = release.as_ref().map_or(0, Manifest::len);
        self.telling.tell(Event::Looking { entries });
        let spare = Dir::open_real(&place.spare())?;
        // Whoever has it open is asked for before the walk: they may write behind it.
        let users = self.users.take().map_or_else(|| process::processes_using(spare.path()), |users| users.end()?)?;
        let is_used = !users.found.is_empty();
        let told = look(self.site, &spare)?;
        self.spare = Some(told.manifest.clone());
        self.is_proven = !is_used && told.specials.is_empty() && told.linked_elsewhere.is_empty();
        let Ok(release) = release else { return Ok(()) };
        let ignore = &self.recipe.ignore_drift;
        let drift = Drift::between(&release, &told, &|path, is_dir| ignore.matches(path, is_dir));
        release.intact()?;
        if !drift.is_empty() {
            tell_drift(self.telling, &place.archive(&self.begin.id).join("drift"), &before.commit, &drift)?;
            keep_drift(self.site, &self.begin.id, &spare, &release, &drift)?;
        }
        fault::point("settle.drift")
    }

    /// After a rollback: the files in which the failed version differs are moved aside, and the spare becomes what serves.
    fn keep_failed(&mut self) -> Result<()> {
        let site = self.site;
        let place = &site.place;
        if !matches!(self.outcome.verdict, Verdict::RolledBack | Verdict::Interrupted) {
            return Ok(());
        }
        let archive = place.archive(&self.begin.id);
        if !fs::exists(&archive) {
            return Ok(());
        }
        let entries = self.live.as_ref().map_or(0, |live| live.manifest.len());
        self.telling.tell(Event::Looking { entries });
        if switch::kind(place)? == SwitchKind::Exchange {
            let failed = archive.join("run.failed");
            fs::ensure_dir(&failed.join("files"), 0o700)?;
            let wanted = self.live.as_ref().map(|live| live.manifest.clone()).unwrap_or_default();
            let spare = Dir::open_real(&place.spare())?;
            let told = look(site, &spare)?;
            let store = Store::open(&place.store())?;
            let run = Dir::open_real(&place.run())?;
            let mut supply = Supply::new(&store, vec![Held::new(&run, &wanted)]).taking(&wanted);
            let aside_dir = Dir::open(&failed.join("files"))?;
            let target = Target { tree: &spare, own: site.own, point: "settle.failed-kept" };
            // What a kept release needs too belongs into the store; everything else is what the failed version made.
            let needed = Releases::new(place).needed()?;
            let only = told.manifest.entries().filter(|e| e.hash().is_none_or(|hash| !needed.contains(&hash)));
            let only: HashSet<TreePath> = only.map(|entry| entry.path.clone()).collect();
            let aside = Some(Aside { dir: &aside_dir, only: Some(&only) });
            let keeping = Keeping { store: Some(&store), aside };
            apply(&target, &Plan::new(&told, &wanted)?, &mut supply, &keeping)?;
            let sealed = seal(&spare, site.own, &wanted)?;
            witness::record(&witness::path_of(&site.place, &spare)?, &spare, sealed, None)?;
        }
        if let Some(point) = RestorePoint::read(site, &self.begin.id)? {
            let snapshots = Snapshots::new(place, site.own);
            let aside = failed_data(site, &self.begin.id)?;
            snapshots.keep_failed(&point.scope, &aside)?;
            if aside.names()?.is_empty() {
                Dir::open(&archive)?.remove_dir(Path::new("data.failed"))?;
            }
        }
        let text = format!("what failed is kept in {}", archive.display());
        self.telling.emit(Event::Note { text })
    }

    /// Cooking: the tree at the end of the build becomes a deliverable.
    fn pack(&mut self) -> Result<()> {
        let is_deployed_commit = self.deployed() && self.begin.target.is_none();
        if !is_deployed_commit || self.begin.mode != Mode::Cooking {
            return Ok(());
        }
        let statement = pack_release(self.site, &self.begin.id)?;
        fault::point("settle.pack")?;
        let text = format!("deliverable {}-{} ({} bytes)", statement.project, statement.commit.short(), statement.size);
        self.telling.emit(Event::Note { text })
    }

    /// Removes what is no longer kept: restore points by the number of good deployments, and what hangs on them. How many is
    /// said by the recipe of what serves: a version that failed takes nothing away.
    fn rotate(&mut self) -> Result<()> {
        let live =
            self.live.as_ref().and_then(|live| live.version.as_ref()).map(|version| version.recipe.keep_archives);
        rotate(self.site, self.live.as_ref(), live.unwrap_or(self.recipe.keep_archives))?;
        let releases = Releases::new(&self.site.place);
        secrets::forget_old(self.site, &releases.ids()?, self.outcome.serves.as_ref().map(|serving| &serving.id))?;
        if let Some(serving) = &self.outcome.serves {
            Releases::new(&self.site.place).compact(&serving.id)?;
        }
        fault::point("settle.rotate")
    }

    fn sweep(&mut self) -> Result<()> {
        for missing in sweep(self.site, self.live.as_ref(), self.spare.as_ref())? {
            let text = format!(
                "content {missing} of a kept release is lost: mc_project verify {} tells which",
                self.begin.project
            );
            self.telling.emit(Event::Warning { text })?;
        }
        fault::point("settle.sweep")
    }

    /// Looks at `project/` too; if it is what its witness says, the next deployment needs no walk.
    fn prove(&mut self) -> Result<()> {
        let Some(serving) = self.outcome.serves.as_ref().filter(|_| self.is_proven) else { return Ok(()) };
        let path = self.site.place.project();
        let tree = Dir::open_real(&path)?;
        let Some(witness) = Witness::read(&witness::path_of(&self.site.place, &tree)?) else { return Ok(()) };
        let Ok(proven) = sync::prove(&tree, self.site.own_at(&path), witness.manifest(), Some(&witness)) else {
            return Ok(());
        };
        witness::record(&witness::path_of(&self.site.place, &tree)?, &tree, proven, Some(witness))?;
        Proof::write(self.site, &serving.id)
    }
}

/// The ref that keeps a deployment's commit while it is under way.
///
/// # Errors
/// Never for a good id.
pub fn inflight_ref(id: &DeploymentId) -> Result<crate::project::ids::RefName> {
    format!("{INFLIGHT}/{id}").parse()
}

/// Looks at a tree with its witness, and takes a new one.
fn look(site: &Site, tree: &Dir) -> Result<Identified> {
    let path = witness::path_of(&site.place, tree)?;
    let witness = Witness::open_or_read(&path);
    let told = identify(tree, site.own, witness.as_ref(), &|_| true)?;
    witness::record(&path, tree, told.manifest.clone(), witness)?;
    Ok(told)
}

/// Tells what was changed by hand in `run`, by directory, and where it is kept.
///
/// # Errors
/// If it cannot be written to the journal.
pub fn tell_drift(telling: &mut Reporter, kept: &Path, commit: &ObjectId, drift: &Drift) -> Result<()> {
    if drift.is_empty() {
        return Ok(());
    }
    let text = format!("run was changed by hand since {}; kept in {}", commit.short(), kept.display());
    telling.emit(Event::Warning { text })?;
    for line in drift.lines(DRIFT_LINES) {
        telling.emit(Event::Note { text: line })?;
    }
    Ok(())
}

/// Keeps what was changed by hand below `archives/<id>/drift`: the files, the list of all changes, and a patch for small text.
///
/// # Errors
/// If there is no space.
pub fn keep_drift(site: &Site, id: &DeploymentId, tree: &Dir, release: &Manifest, drift: &Drift) -> Result<()> {
    if drift.is_empty() {
        return Ok(());
    }
    let archive = site.place.archive(id);
    fs::ensure_dir(&archive, 0o700)?;
    let kept = Dir::open(&archive)?.ensure_dir(Path::new("drift"), 0o700)?;
    with_contents(site, &[release], |supply| drift.keep(&kept, tree, release, supply))
}

/// Packs the deliverable of a kept release into `releases/`.
///
/// # Errors
/// If a content is missing, a secret is in it, or it cannot be written.
pub fn pack_release(site: &Site, id: &DeploymentId) -> Result<crate::tree::deliverable::Statement> {
    let place = &site.place;
    let releases = Releases::new(place);
    let (provenance, built) = (releases.provenance(id)?, releases.built(id)?);
    let repo = site.repo()?;
    let version =
        Version::load_kept(site, &repo, &provenance.commit, provenance.pillar.as_ref(), (provenance.mode, id))?;
    version.find_secrets(site)?;
    let key = ReleaseKey::load_or_make(&place.node().keys())?;
    let mut secrets = version.pillar.secrets();
    let found = version.given.get().into_iter().flat_map(super::secrets::Given::values);
    secrets.extend(
        found.map(|value| ("a secret".to_string(), value.trim_end().to_string())).filter(|(_, v)| v.len() >= 8),
    );
    let found = Deliverable::new(&place.releases(), place.name(), &provenance.commit);
    let packing = Packing { key: &key, secrets: &secrets, provenance: Some(&provenance) };
    with_contents(site, &[&built], |supply| {
        let commit = (&provenance.commit, provenance.commit_time);
        found.pack(place.name(), commit, &built, supply, &packing)
    })
}

/// Calls `work` with a supply of everything that this project holds: store, trees, git.
///
/// # Errors
/// Those of `work`.
pub fn with_contents<T>(
    site: &Site,
    manifests: &[&Manifest],
    work: impl FnOnce(&Supply<'_>) -> Result<T>,
) -> Result<T> {
    let place = &site.place;
    let store = Store::open(&place.store())?;
    let mut trees = Vec::new();
    for path in [place.spare(), place.run(), place.build_tree()] {
        let dir = Dir::open_real(&path)?;
        let witness = Witness::open_or_read(&witness::path_of(&site.place, &dir)?);
        trees.push((dir, witness));
    }
    let held = trees.iter().filter_map(|(dir, witness)| Some(Held::new(dir, witness.as_ref()?.manifest()))).collect();
    let origin = GitOrigin::new(site, manifests)?;
    work(&Supply::new(&store, held).with_origin(&origin))
}

/// Writes a kept release, or a failed one of which the differing files are kept, as a tree into a new directory.
///
/// # Errors
/// If the directory exists or a content is missing.
pub fn write_tree(site: &Site, id: &DeploymentId, dir: &Path) -> Result<usize> {
    let failed = site.place.archive(id).join("run.failed");
    let manifest = match fs::read_if_there(&failed.join("manifest"))? {
        Some(bytes) => Manifest::from_text(&String::from_utf8_lossy(&bytes))?,
        None => Releases::new(&site.place).manifest(id)?,
    };
    let (parent, name) = (dir.parent(), dir.file_name());
    let (Some(parent), Some(name)) = (parent, name) else {
        return Err(crate::sys::error::Error::usage(format!("{} is no directory to make", dir.display())));
    };
    let parent = Dir::open(parent)?;
    parent.make_dir(Path::new(name), 0o755)?;
    let tree = parent.dir(Path::new(name))?;
    let kept = Dir::open(&failed.join("files")).ok();
    with_contents(site, &[&manifest], |supply| {
        let mut supply = supply.also(kept.as_ref().map(|kept| Held::new(kept, &manifest)));
        let target = Target { tree: &tree, own: site.own, point: "store.ingested" };
        apply(&target, &Plan::new(&Identified::default(), &manifest)?, &mut supply, &Keeping::default())
    })?;
    seal(&tree, site.own, &manifest)?;
    Ok(manifest.files())
}

/// Removes restore points, releases and deliverables that are not kept any more. Counts good deployments only; never removes
/// what serves or what it can be rolled back to.
///
/// # Errors
/// If something cannot be read or removed.
pub fn rotate(site: &Site, live: Option<&Live>, keep: u32) -> Result<()> {
    let place = &site.place;
    let releases = Releases::new(place);
    let kept_ids: BTreeSet<DeploymentId> = releases.ids()?.into_iter().collect();
    let points = RestorePoint::all(site)?;
    // A restore point is good if the deployment it belongs to became a release.
    let good: Vec<&RestorePoint> = points.iter().filter(|point| kept_ids.contains(&point.id)).collect();
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    let kept_good: Vec<&RestorePoint> = good.iter().rev().take(keep).copied().collect();
    let oldest = kept_good.last().map_or(0, |point| point.seq);
    let failed: Vec<&RestorePoint> = points.iter().filter(|point| !kept_ids.contains(&point.id)).collect();
    let kept_failed: Vec<&RestorePoint> =
        failed.iter().rev().filter(|point| point.seq >= oldest).take(keep).copied().collect();
    let kept_points: HashSet<&DeploymentId> = kept_good.iter().chain(&kept_failed).map(|point| &point.id).collect();
    let archives = Dir::open(&place.archives())?;
    for name in fs::names(&place.archives())? {
        if name.parse::<DeploymentId>().is_ok_and(|id| !kept_points.contains(&id)) {
            archives.remove_tree(Path::new(&name))?;
        }
    }
    let mut kept_releases: HashSet<DeploymentId> = kept_good.iter().map(|point| point.id.clone()).collect();
    kept_releases.extend(kept_good.iter().filter_map(|point| point.before.as_ref().map(|before| before.id.clone())));
    kept_releases.extend(live.map(|live| live.serving.id.clone()));
    remove_releases(site, &releases, &kept_ids, &kept_releases)?;
    Snapshots::new(place, site.own).sweep()?;
    Ok(())
}

fn remove_releases(
    site: &Site,
    releases: &Releases<'_>,
    present: &BTreeSet<DeploymentId>,
    kept: &HashSet<DeploymentId>,
) -> Result<()> {
    let place = &site.place;
    let (repo, pillar) = (site.repo()?, site.pillar_repo()?);
    let mut kept_commits = HashSet::new();
    let mut kept_pillars = HashSet::new();
    for id in present {
        if kept.contains(id) {
            let provenance = releases.provenance(id)?;
            kept_commits.insert(provenance.commit);
            kept_pillars.insert(provenance.pillar);
        } else {
            releases.remove(id)?;
            repo.delete_ref(&kept_ref(id)?)?;
            pillar.delete_ref(&kept_ref(id)?)?;
        }
    }
    // What a crash left half made is no release; only our own names are touched.
    for name in fs::names(&place.deploy())? {
        if let Ok(id) = name.parse::<DeploymentId>()
            && !kept.contains(&id)
        {
            Dir::open(&place.deploy())?.remove_tree(Path::new(&name))?;
        }
    }
    for found in Deliverable::list(&place.releases(), place.name())? {
        let commit = found.name().rsplit('-').next().unwrap_or_default();
        if !kept_commits.iter().any(|kept| kept.as_str() == commit) && !was_fetched_lately(site, &found)? {
            found.remove()?;
        }
    }
    remove_stale_state(site, &kept_pillars)
}

/// Whether a deliverable came here a short time ago: it may be one that was fetched before the push that deploys it, or one
/// whose deployment failed and is tried again. It is not downloaded twice.
fn was_fetched_lately(site: &Site, found: &Deliverable) -> Result<bool> {
    if !site.node.config.is_fed(site.place.name()) {
        return Ok(false);
    }
    let came = fs::examine(&found.file("json"))?.and_then(|meta| meta.modified().ok());
    Ok(came.and_then(|came| came.elapsed().ok()).is_some_and(|age| age < FETCHED_KEPT))
}

/// Witnesses of trees that are gone, and configurations that no release needs.
fn remove_stale_state(site: &Site, pillars: &HashSet<Option<crate::project::ids::ObjectId>>) -> Result<()> {
    let place = &site.place;
    let mut inodes = HashSet::new();
    for path in [
        place.run(),
        place.spare(),
        place.project(),
        place.pillar(),
        place.build_tree(),
        place.data(),
        place.snapshot(),
    ] {
        if let Ok(dir) = Dir::open_real(&path) {
            inodes.insert(dir.stat_self()?.ino.to_string());
        }
    }
    for name in fs::names(&place.state())? {
        let ino = name.strip_prefix("witness-").and_then(|rest| rest.split('.').next());
        if ino.is_some_and(|ino| !inodes.contains(ino)) {
            fs::remove_file(&place.state().join(&name))?;
        }
    }
    let config = place.build().join("config");
    for name in fs::names(&config)? {
        let commit = name.split(['-', '.']).next().unwrap_or(&name);
        let needed = pillars.iter().any(|kept| kept.as_ref().map_or("none", |id| id.as_str()) == commit);
        if !needed {
            fs::remove_file(&config.join(&name))?;
        }
    }
    Ok(())
}

/// Removes from the store what no kept release needs or the spare holds; returns contents that a kept release needs and
/// nobody has. What the live tree alone still has of them is copied into the store first.
///
/// # Errors
/// If a manifest is damaged: then nothing is removed.
pub fn sweep(site: &Site, live: Option<&Live>, spare: Option<&Manifest>) -> Result<Vec<Hash>> {
    let place = &site.place;
    let releases = Releases::new(place);
    let mut needed = releases.needed()?;
    let looked = if spare.is_some() { None } else { Some(look(site, &Dir::open_real(&place.spare())?)?.manifest) };
    for hash in spare.or(looked.as_ref()).into_iter().flat_map(Manifest::hashes) {
        needed.remove(&hash);
    }
    let store = Store::open(&place.store())?;
    let present: HashSet<Hash> = store.list()?.into_iter().collect();
    let mut missing: Vec<Hash> = needed.iter().filter(|hash| !present.contains(hash)).copied().collect();
    missing.sort();
    let mut lost = Vec::new();
    if !missing.is_empty() {
        let all: Vec<Manifest> = releases.ids()?.iter().filter_map(|id| releases.manifest(id).ok()).collect();
        let run = Dir::open_real(&place.run())?;
        let held = live.iter().map(|live| Held::new(&run, &live.manifest)).collect();
        let origin = GitOrigin::new(site, &all.iter().collect::<Vec<_>>())?;
        let supply = Supply::new(&store, held).with_origin(&origin);
        for hash in missing {
            let copied = store.add_with(|file| {
                supply.copy(&hash, file).map_err(|_| std::io::Error::other("lost"))?;
                // Nothing after this syncs it: a power cut would leave an empty file under the name of the content.
                durable::whole(&*file)?;
                Ok((hash, 0))
            });
            if copied.is_err() {
                lost.push(hash);
            }
        }
    }
    store.sweep(&needed)?;
    Ok(lost)
}
