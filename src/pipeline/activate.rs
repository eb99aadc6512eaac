//! The short part: stop, back up, switch, start, upgrade, and the commit that makes it final.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cancel;
use super::draft::{Draft, Goal, Live, Version};
use super::halt::{Halt, Step};
use super::preflight::Need;
use super::rights;
use super::services::{How, Staying, has_some};
use super::site::Site;
use super::steps::{At, Place, files_words};
use crate::project::ids::{DeploymentId, ObjectId, RefName};
use crate::project::mode::Mode;
use crate::project::outcome::{Serving, SwitchKind};
use crate::project::recipe::BackupWhen;
use crate::project::stage::Stage;
use crate::report::event::{Begin, Event, RestoreUnit};
use crate::report::ledger::Last;
use crate::report::notes;
use crate::sys::dir::Dir;
use crate::sys::error::Result;
use crate::sys::fs::Several;
use crate::sys::git::{RefChange, Repo};
use crate::sys::path::TreePath;
use crate::sys::{clock, fault, fs, seal};
use crate::tree::drift::Drift;
use crate::tree::hash::Hash;
use crate::tree::manifest::{Entry, Manifest};
use crate::tree::release::Releases;
use crate::tree::scan::identify;
use crate::tree::snapshot::{Snapshots, Unit};
use crate::tree::store::{Held, Store, Supply};
use crate::tree::switch::{self, Inodes};
use crate::tree::sync::{Aside, Keeping, Plan, Target, apply, prove, seal};
use crate::tree::witness::{self, Witness};

/// So much data is copied after the services were stopped, without a pass before.
const LITTLE: Need = Need { bytes: 4 << 20, inodes: 64 };

/// What a restore point says about itself (`archives/<id>/before.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Format of this file.
    pub format: u32,
    /// The deployment before which this was the state.
    pub id: DeploymentId,
    /// Its number.
    pub seq: u64,
    /// What served before.
    pub before: Option<Serving>,
    /// The pillar's commit before.
    pub pillar: Option<ObjectId>,
    /// Which part of `data/` the snapshot holds; `None`: all of it.
    pub scope: Option<Vec<TreePath>>,
    /// The commit whose recipe made the dumps, if there are any; its `restore` steps read them.
    pub dumped_by: Option<ObjectId>,
    /// The pillar's commit of that recipe.
    pub dumped_with: Option<ObjectId>,
}

impl RestorePoint {
    /// The file that makes a directory a restore point.
    pub(super) const FILE: &str = "before.json";

    /// Reads a restore point; `None` if there is none.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(site: &Site, id: &DeploymentId) -> Result<Option<Self>> {
        seal::read(&site.place.archive(id).join(Self::FILE))
    }

    /// Writes it durably, with what the snapshot of the data holds that was just taken for it.
    ///
    /// # Errors
    /// If it cannot be written.
    fn write_with(&self, site: &Site, snapshots: &Snapshots<'_>, data: &Manifest) -> Result<()> {
        let dir = site.place.archive(&self.id);
        fs::ensure_dir(&dir, 0o700)?;
        let mut files = Several::default();
        files.add(&dir.join(Self::FILE), &seal::pretty(self, "a restore point")?, 0o600)?;
        files.add_dir(&site.place.archives());
        snapshots.record(&self.id, data, files)
    }

    /// All restore points of a project.
    ///
    /// # Errors
    /// If one is damaged.
    pub fn all(site: &Site) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for name in fs::names(&site.place.archives())? {
            if let Ok(id) = name.parse() {
                all.extend(Self::read(site, &id)?);
            }
        }
        all.sort_by_key(|point| point.seq);
        Ok(all)
    }
}

/// The place of steps that work in `run`.
#[must_use]
pub fn in_run(site: &Site, version: &Version, id: &DeploymentId, dumps: Option<PathBuf>) -> Place {
    let mut setting = version.setting(site, Some(id));
    setting.dumps = dumps;
    Place { at: At::Run, setting }
}

/// The directory of the dumps of a restore point.
#[must_use]
pub fn dumps_of(site: &Site, id: &DeploymentId) -> PathBuf {
    site.place.archive(id).join("dumps")
}

impl Draft<'_> {
    /// Stops the old services and makes the restore point.
    ///
    /// # Errors
    /// The reason to stop; the old version is whole and has to be started again.
    pub fn stop_and_back_up(&mut self) -> Step {
        let snapshots_scope = self.next.recipe.snapshot.clone();
        let old = self.old_version().cloned();
        let stops = old.as_ref().is_some_and(|old| has_some(old) || !self.steps_of(old, Stage::Stop).is_empty());
        let is_little = self.data_need.is_some_and(|need| need.bytes <= LITTLE.bytes && need.inodes <= LITTLE.inodes);
        if self.next.recipe.backup_when == BackupWhen::Running {
            self.back_up()?;
        } else if stops && !is_little {
            // The bulk is copied while the old version serves; what changes meanwhile is copied after the stop. A little is
            // copied then as fast as two walks could find it, and where nothing is stopped there is no meanwhile.
            let _ = Snapshots::new(&self.site.place, self.site.own).take(&snapshots_scope, true);
        }
        self.tell(Event::Stopping)?;
        fault::point("stop.before")?;
        let left = if self.brings_data_back() { Staying::new() } else { self.left_running()? };
        self.stop_stage(old.as_ref(), &left)?;
        fault::point("stop.done")?;
        if self.next.recipe.backup_when == BackupWhen::Stopped {
            self.back_up()?;
        }
        self.tell(Event::BackedUp)
    }

    fn back_up(&mut self) -> Step {
        self.stage(Stage::Backup, |draft| {
            let site = draft.site;
            let scope = draft.next.recipe.snapshot.clone();
            let dumping = draft.dumping_version();
            let point = RestorePoint {
                format: 1,
                id: draft.id().clone(),
                seq: draft.begin.seq,
                before: draft.begin.serves.clone(),
                pillar: draft.live.as_ref().and_then(|live| live.provenance.pillar.clone()),
                scope: scope.clone(),
                dumped_by: dumping.as_ref().map(|version| version.commit.id.clone()),
                dumped_with: dumping.as_ref().and_then(|version| version.pillar_commit.clone()),
            };
            let tolerant = draft.next.recipe.backup_when == BackupWhen::Running;
            let snapshots = Snapshots::new(&site.place, site.own);
            let manifest = snapshots.take(&scope, tolerant)?;
            draft.warn_of_left_out(&snapshots.left_out());
            fault::point("backup.done")?;
            point.write_with(site, &snapshots, &manifest)?;
            let mut note = format!("{}, {} bytes of data", files_words(manifest.files()), manifest.bytes());
            if let Some(version) = dumping {
                let count = draft.dump(&version, &dumps_of(site, &point.id))?;
                if count > 0 {
                    note = format!("{note}, {}", super::steps::steps_words(count));
                }
                Dir::open(&site.place.archives())?.sync_file_system()?;
            }
            Ok(((), Some(note)))
        })
    }

    fn warn_of_left_out(&mut self, left_out: &[TreePath]) {
        let Some(first) = left_out.first() else { return };
        let more = if left_out.len() > 1 { format!(" and {} more", left_out.len() - 1) } else { String::new() };
        self.warn(format!("a device, fifo or socket is not in the data snapshot: data/{first}{more}"));
    }

    /// The version whose `backup` steps are run: the one whose data it is, else the new one's.
    fn dumping_version(&self) -> Option<Version> {
        // One with nothing but `restore` steps is asked to bring back too.
        let with_steps = |version: &&Version| {
            [Stage::Backup, Stage::Restore].iter().any(|stage| !self.steps_of(version, *stage).is_empty())
        };
        self.old_version().filter(with_steps).or(Some(&self.next).filter(with_steps)).cloned()
    }

    /// Runs a version's `backup` steps into a directory.
    ///
    /// # Errors
    /// The failed step.
    pub fn dump(&mut self, version: &Version, dumps: &Path) -> Step<usize> {
        fs::ensure_dir(dumps, 0o700)?;
        rights::give_dumps(self.site, dumps)?;
        let steps = self.steps_of(version, Stage::Backup);
        let place = in_run(self.site, version, self.id(), Some(dumps.to_path_buf()));
        self.run_steps(version, Stage::Backup, &steps, &place).map(|ran| ran.count)
    }

    /// Switches, starts the new version, upgrades and asks for its health.
    ///
    /// # Errors
    /// The reason to roll back.
    pub fn activate(&mut self) -> Step {
        let next = self.next.clone();
        self.stage(Stage::Deploy, |draft| draft.switch().map(|note| ((), note)))?;
        let place = in_run(self.site, &next, self.id(), None);
        let after = [Stage::Deploy, Stage::PostDeploy, Stage::Start, Stage::PostInstall, Stage::Upgrade, Stage::Health];
        let has_steps = self.has_services() || after.iter().any(|stage| !self.steps_of(&next, *stage).is_empty());
        let data_of = match &self.goal {
            Goal::Release { data_of, .. } => data_of.clone(),
            Goal::Commit => None,
        };
        if has_steps || data_of.is_some() || self.builds_in_run {
            self.tell(Event::Touched)?;
            self.touched = true;
            fault::point("touched.recorded")?;
        }
        self.build_in_run()?;
        if let Some(id) = data_of {
            self.stage(Stage::Restore, |draft| {
                draft.restore_data(&id)?;
                draft.restore_dumps(&id)?;
                let seq = RestorePoint::read(draft.site, &id)?.map(|point| point.seq);
                Ok((
                    (),
                    Some(format!("data as before {}", seq.map_or_else(|| id.to_string(), |seq| format!("#{seq}")))),
                ))
            })?;
        }
        for stage in after {
            self.live_stage(&next, stage, &place)?;
        }
        self.take_made(&next).map_err(|halt| Halt { stage: Some(Stage::PostInstall), ..halt })?;
        fault::point("upgrade.done")?;
        Ok(())
    }

    /// One of the stages in which the new version begins to live, its services included.
    ///
    /// # Errors
    /// What failed.
    pub fn live_stage(&mut self, next: &Version, stage: Stage, place: &Place) -> Step {
        match stage {
            Stage::Start => {
                self.start_stage(Some(&self.next_deployed()), How::Anew)?;
                fault::point("start.done")?;
            }
            Stage::Health => self.health_stage(&self.next_deployed())?,
            _ => {
                self.step_stage(next, stage, place)?;
            }
        }
        Ok(())
    }

    /// Whether the data are to become those of a restore point.
    fn brings_data_back(&self) -> bool {
        matches!(&self.goal, Goal::Release { data_of: Some(_), .. })
    }

    fn switch(&mut self) -> Step<Option<String>> {
        let place = &self.site.place;
        let kind = switch::kind(place)?;
        if self.spare_in_use {
            // Somebody could still write there: the proof is repeated now, after the old services stopped.
            let spare = Dir::open_real(&place.spare())?;
            let witness_path = witness::path_of(place, &spare)?;
            let witness = Witness::open_or_read(&witness_path);
            let proven = prove(&spare, self.site.own, &self.candidate()?.manifest, witness.as_ref())?;
            witness::record(&witness_path, &spare, proven, witness)?;
        }
        let before = switch::inodes(place)?;
        let Inodes { run, spare } = before;
        self.tell(Event::Switching { how: kind, run_ino: run, spare_ino: spare })?;
        self.switching = Some((kind, before));
        fault::point("deploy.intent")?;
        match kind {
            SwitchKind::Exchange => switch::exchange(place)?,
            SwitchKind::InPlace => self.switch_in_place()?,
        }
        fault::point("deploy.synced")?;
        let uptime_ms = u64::try_from(clock::since_boot().as_millis()).unwrap_or(u64::MAX);
        self.tell(Event::Switched { boot: clock::boot_id(), uptime_ms })?;
        Ok((kind == SwitchKind::InPlace)
            .then(|| "file by file: run is a mount point or on another file system".to_string()))
    }

    /// The fallback: `run` is made the candidate file by file. What was changed in it by hand is kept first.
    fn switch_in_place(&mut self) -> Step {
        let manifest = self.candidate()?.manifest.clone();
        if let Some(live) = self.live.clone() {
            let run = Dir::open_real(&self.site.place.run())?;
            let actual = identify(&run, self.site.own, None, &|_| true)?;
            let ignore = live.version.as_ref().map(|version| version.recipe.ignore_drift.clone()).unwrap_or_default();
            let drift = Drift::between(&live.manifest, &actual, &|path, is_dir| ignore.matches(path, is_dir));
            super::settle::keep_drift(self.site, self.id(), &run, &live.manifest, &drift)?;
            let kept = self.site.place.archive(self.id()).join("drift");
            super::settle::tell_drift(self.telling, &kept, &live.serving.commit, &drift)?;
        }
        Ok(make_run(self.site, &manifest, None)?)
    }

    /// Brings the data of a restore point back: by exchange, or by copying where data is a mount point.
    ///
    /// # Errors
    /// If a content is missing or the data cannot be exchanged.
    pub fn restore_data(&mut self, from: &DeploymentId) -> Step {
        let site = self.site;
        let Some(point) = RestorePoint::read(site, from)? else { return Ok(()) };
        let snapshots = Snapshots::new(&site.place, site.own);
        let Some(wanted) = snapshots.manifest(from)? else { return Ok(()) };
        if snapshots.must_copy(&point.scope)? {
            let aside = failed_data(site, self.id())?;
            return Ok(snapshots.restore_by_copy(&point.scope, &wanted, &aside)?);
        }
        snapshots.materialise(&wanted)?;
        let units = snapshots.units(&point.scope)?;
        let told = units.iter().map(|u| RestoreUnit { path: u.path.clone(), live: u.live, snapshot: u.snapshot });
        self.tell(Event::RestoringData { from: from.clone(), units: told.collect() })?;
        self.exchange_data(&units)
    }

    /// Exchanges the live data with a snapshot, and secures what restore points need of what is live now.
    ///
    /// # Errors
    /// If something else stands there now.
    pub fn exchange_data(&mut self, units: &[Unit]) -> Step {
        restore_units(self.site, units)?;
        if let Err(error) = Snapshots::new(&self.site.place, self.site.own).secure() {
            self.warn(format!("older restore points may have lost data: {}", error.one_line()));
        }
        Ok(())
    }

    /// Runs the `restore` steps of the recipe that made a restore point's dumps.
    ///
    /// # Errors
    /// The failed step.
    pub fn restore_dumps(&mut self, from: &DeploymentId) -> Step {
        let Some(point) = RestorePoint::read(self.site, from)? else { return Ok(()) };
        let Some(commit) = &point.dumped_by else { return Ok(()) };
        let by = point.before.as_ref().map_or(from, |before| &before.id);
        let with = point.dumped_with.as_ref();
        let version = Version::load_kept(self.site, &self.repo, commit, with, (self.next.mode, by))?;
        let dumps = dumps_of(self.site, from);
        rights::give_dumps(self.site, &dumps)?;
        let place = in_run(self.site, &version, self.id(), Some(dumps));
        let steps = self.steps_of(&version, Stage::Restore);
        self.run_steps(&version, Stage::Restore, &steps, &place)?;
        Ok(())
    }

    /// Commit: the durable record, then the ref, then `deploy/current`.
    ///
    /// # Errors
    /// Before the record: the reason to roll back. After it nothing fails any more; what is left is done by recovery.
    pub fn commit(&mut self) -> Step<Serving> {
        cancel::check()?;
        cancel::hear_no_more();
        self.stage(Stage::Commit, |draft| {
            draft.refuse_moved_ref()?;
            let serving = Serving { id: draft.id().clone(), commit: draft.next.commit.id.clone() };
            draft.tell(Event::Commit { serves: serving.clone() })?;
            fault::point("commit.record").unwrap_or_default();
            match finish_commit(draft.site, &draft.repo, &draft.begin, &serving) {
                Ok(Some(warning)) => draft.warn(warning),
                Ok(None) => {}
                Err(error) => {
                    draft.warn(format!("committed, but not everything is recorded yet: {}", error.one_line()));
                }
            }
            Ok((serving, None))
        })
    }

    fn refuse_moved_ref(&self) -> Step {
        let (Some(name), Some(old)) = (&self.begin.refname, &self.begin.old) else { return Ok(()) };
        if !self.begin.moves_ref {
            return Ok(());
        }
        let now = self.repo.read_ref(name)?;
        let expected = if old.is_zero() { None } else { Some(old.clone()) };
        if now == expected || now.as_ref() == Some(&self.begin.commit) {
            return Ok(());
        }
        Err(Halt::failed(format!("{} was moved by somebody else during the deployment", name.shown()))
            .hint("git fetch, then push again"))
    }
}

/// Exchanges every unit that has not been exchanged yet.
///
/// # Errors
/// If something else stands there now.
pub fn restore_units(site: &Site, units: &[Unit]) -> Result<()> {
    let snapshots = Snapshots::new(&site.place, site.own);
    for unit in units {
        fault::point("rollback.data-path")?;
        snapshots.restore(unit)?;
    }
    Ok(())
}

/// The directory that keeps the data of a failed version.
///
/// # Errors
/// If it cannot be made.
pub fn failed_data(site: &Site, id: &DeploymentId) -> Result<Dir> {
    fs::ensure_dir(&site.place.archive(id).join("data.failed"), 0o700)?;
    Dir::open(&site.place.archive(id).join("data.failed"))
}

/// Where files of a failed version are kept when they leave `run`, unless a kept release needs their contents anyway.
#[derive(Debug)]
pub struct FailedFiles<'a> {
    /// The directory.
    pub dir: &'a Dir,
    /// The contents that kept releases need.
    pub needed: &'a HashSet<Hash>,
}

/// Makes `run` exactly a manifest, file by file; contents come from the spare and the store. Where a directory is given, the
/// files that go and whose contents are not needed elsewhere are kept there.
///
/// # Errors
/// If something cannot be written; recovery repeats it.
pub fn make_run(site: &Site, manifest: &Manifest, failed: Option<&FailedFiles<'_>>) -> Result<()> {
    let place = &site.place;
    let (run, spare, store) =
        (Dir::open_real(&place.run())?, Dir::open_real(&place.spare())?, Store::open(&place.store())?);
    let witness_path = witness::path_of(place, &run)?;
    let witness = Witness::open_or_read(&witness_path);
    let actual = identify(&run, site.own, witness.as_ref(), &|_| true)?;
    let spare_now = identify(&spare, site.own, None, &|_| true)?;
    let mut supply =
        Supply::new(&store, vec![Held::new(&spare, &spare_now.manifest), Held::new(&run, &actual.manifest)]);
    let target = Target { tree: &run, own: site.own, point: "in-place.applying" };
    // Nothing leaves `run` for good before the rollback is impossible: its contents go into the store.
    let kept =
        |entry: &&Entry| failed.is_some_and(|failed| entry.hash().is_none_or(|hash| !failed.needed.contains(&hash)));
    let only: HashSet<TreePath> = actual.manifest.entries().filter(kept).map(|e| e.path.clone()).collect();
    let aside = failed.map(|failed| Aside { dir: failed.dir, only: Some(&only) });
    apply(&target, &Plan::new(&actual, manifest)?, &mut supply, &Keeping { store: Some(&store), aside })?;
    let sealed = seal(&run, site.own, manifest)?;
    witness::record(&witness_path, &run, sealed, witness)?;
    run.sync_file_system()
}

/// Everything that follows the durable record of a commit; may be repeated. What a power cut would take of it is made durable
/// by [`secure_commit`], before the deployment is closed.
///
/// Returns a warning where the pushed ref was moved by somebody else meanwhile.
///
/// # Errors
/// If something cannot be written; the commit stands all the same, and the next command finishes it.
pub fn finish_commit(site: &Site, repo: &Repo, begin: &Begin, serving: &Serving) -> Result<Option<String>> {
    let place = &site.place;
    let last = Last { serves: Some(serving.clone()), ..Last::opened(begin.seq, begin.id.clone(), None) };
    last.write_soon(place)?;
    fault::point("commit.ref")?;
    let message = format!("mc_project: deployed as #{}", begin.seq);
    let mut moved = None;
    if !repo.change_refs_soon(&refs_of_commit(repo, begin, serving, true)?, &message)? {
        let name = begin.refname.as_ref().map(RefName::shown).unwrap_or_default();
        moved = Some(format!("{name} was moved by somebody else meanwhile; it is not {}", begin.commit.short()));
        repo.change_refs_soon(&refs_of_commit(repo, begin, serving, false)?, &message)?;
    }
    if let Some(pillar) = &begin.pillar {
        let change = RefChange { name: kept_ref(&serving.id)?, old: None, new: pillar.clone() };
        site.pillar_repo()?.change_refs_soon(&[change], &message)?;
    }
    let releases = Releases::new(place);
    releases.unlink_tree("../run")?;
    releases.link_tree(&serving.id, Some("../run"))?;
    if let Some(before) = kept_in_spare(site, begin, serving)? {
        releases.link_tree(&before, Some("spare"))?;
    }
    fault::point("commit.current")?;
    // The last act: who finds the link here knows that everything above is done.
    fs::put_symlink(&place.current(), Path::new(serving.id.as_str()))?;
    fault::point("commit.done")?;
    Ok(moved)
}

/// The release that is in the spare from now on, if one is.
fn kept_in_spare(site: &Site, begin: &Begin, serving: &Serving) -> Result<Option<DeploymentId>> {
    let Some(before) = &begin.serves else { return Ok(None) };
    let is_kept = begin.mode != Mode::Editable
        && before.id != serving.id
        && Releases::new(&site.place).provenance(&before.id).is_ok()
        && switch::kind(&site.place)? == SwitchKind::Exchange;
    Ok(is_kept.then(|| before.id.clone()))
}

/// Makes everything durable that [`finish_commit`] did.
///
/// # Errors
/// If it cannot be synced: then a recovery does it again.
pub fn secure_commit(site: &Site, repo: &Repo, begin: &Begin, serving: &Serving) -> Result<()> {
    let place = &site.place;
    let mut names = vec![notes::CURRENT.parse()?, kept_ref(&serving.id)?];
    names.extend(begin.refname.clone());
    repo.sync_names(&names)?;
    if begin.pillar.is_some() {
        site.pillar_repo()?.sync_names(&[kept_ref(&serving.id)?])?;
    }
    fs::sync_dir(&place.release(&serving.id))?;
    if let Some(before) = kept_in_spare(site, begin, serving)? {
        fs::sync_dir(&place.release(&before))?;
    }
    fs::sync_dir(&place.deploy())
}

/// What a commit changes in the repository, in one transaction: the pushed ref (if the worker moves it and it has not moved
/// yet), what is live, what is kept, and that nothing is in flight any more.
fn refs_of_commit(repo: &Repo, begin: &Begin, serving: &Serving, with_pushed: bool) -> Result<Vec<RefChange>> {
    let anything = |name: RefName, new: &ObjectId| RefChange { name, old: None, new: new.clone() };
    let mut changes = vec![
        anything(notes::CURRENT.parse()?, &serving.commit),
        anything(notes::LAST_GOOD.parse()?, &serving.commit),
        anything(kept_ref(&serving.id)?, &serving.commit),
    ];
    let inflight = super::settle::inflight_ref(&begin.id)?;
    if repo.read_ref(&inflight)?.is_some() {
        changes.push(anything(inflight, &serving.commit.zero_like()));
    }
    if let (Some(name), Some(old), true, true) = (&begin.refname, &begin.old, begin.moves_ref, with_pushed)
        && repo.read_ref(name)?.as_ref() != Some(&begin.commit)
    {
        changes.push(RefChange { name: name.clone(), old: Some(old.clone()), new: begin.commit.clone() });
    }
    Ok(changes)
}

/// The ref that keeps a release's commit from being collected.
///
/// # Errors
/// Never for a good id.
pub fn kept_ref(id: &DeploymentId) -> Result<RefName> {
    format!("refs/deploys/kept/{id}").parse()
}

/// What serves, read again: for callers that only have the site.
///
/// # Errors
/// If its record is damaged.
pub fn live_of(site: &Site, repo: &Repo) -> Result<Option<Live>> {
    match site.serves()? {
        Some(serving) => Live::open(site, repo, &serving).map(Some),
        None => Ok(None),
    }
}
