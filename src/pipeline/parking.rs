//! Into editable mode and out of it, without losing a file in either direction.
//!
//! Entering: a finished clone is exchanged with `run`; the tree that ran before is parked as `deploy/cooked`, exactly as it
//! was, what was changed by hand in it included. Leaving: the parked tree is exchanged back, and the whole clone with
//! everything uncommitted in it goes to `archives/editable-<DATETIME>`, which nothing ever rotates away.
//!
//! `state/editable.json` says what is intended before anything is moved, with the inodes of both directories; after a crash
//! [`resume`] looks where they stand and finishes. Every act may be repeated.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::activate::{kept_ref, live_of};
use super::binding::{self, Shown};
use super::draft::{Deployed, Version};
use super::halt::Halt;
use super::links;
use super::proof::Proof;
use super::services::{self, How, Staying};
use super::site::Site;
use super::steps::{At, Place, run_one};
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::mode::Mode;
use crate::project::outcome::Serving;
use crate::project::request::Options;
use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::report::ledger::Last;
use crate::report::notes::CURRENT;
use crate::report::stream::Reporter;
use crate::sys::dir::{Dir, FileKind};
use crate::sys::error::{Error, Result};
use crate::sys::{clock, fault, fs, seal};
use crate::tree::layout as trees;
use crate::tree::release::Releases;

/// What the clone is at: the commit that was checked out last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// By which deployment.
    pub id: DeploymentId,
    /// The commit.
    pub commit: ObjectId,
    /// The pillar's commit.
    pub pillar: Option<ObjectId>,
}

/// A move that has begun, with the inodes of the two directories before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Moving {
    /// The clone becomes `run`.
    In {
        /// The inode of `run`.
        run: u64,
        /// The inode of the clone.
        clone: u64,
    },
    /// The parked tree becomes `run` again.
    Out {
        /// The inode of the clone.
        clone: u64,
        /// The inode of the parked tree.
        cooked: u64,
        /// The name below `archives/` that the clone gets.
        into: String,
    },
}

/// `state/editable.json`: there as long as `run` is a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Editable {
    /// Format of this file.
    pub format: u32,
    /// Since when; a label.
    pub since: jiff::Timestamp,
    /// The deployment that made the clone.
    pub by: DeploymentId,
    /// What the parked tree is; `None` if nothing had been deployed before.
    pub cooked: Option<Serving>,
    /// What the clone is at.
    pub holds: Holds,
    /// A move that is not finished.
    pub moving: Option<Moving>,
}

const FORMAT: u32 = 1;

/// Reads the record; `None` if `run` is no clone.
///
/// # Errors
/// If it is damaged or of a newer version.
pub fn read(site: &Site) -> Result<Option<Editable>> {
    let path = site.place.editable();
    let Some(record) = seal::read::<Editable>(&path)? else { return Ok(None) };
    if record.format > FORMAT {
        return Err(Error::refused(format!("{} was written by a newer mc_project", path.display())));
    }
    Ok(Some(record))
}

fn write(site: &Site, record: &Editable) -> Result<()> {
    Proof::forget(&site.place)?;
    fs::write_durable(&site.place.editable(), &seal::pretty(record, "the record of the clone")?, 0o600)
}

fn forget(site: &Site) -> Result<()> {
    fs::remove_file(&site.place.editable())?;
    fs::sync_dir(&site.place.state())
}

/// Records that the clone is at another commit.
///
/// # Errors
/// If it cannot be written.
pub fn record_holds(site: &Site, holds: Holds) -> Result<()> {
    match read(site)? {
        Some(record) => write(site, &Editable { holds, ..record }),
        None => Err(Error::bug("there is no clone")),
    }
}

/// The mode whose layout the project has on disk: that of the clone as long as there is one.
///
/// # Errors
/// If the record cannot be read.
pub fn layout_mode(site: &Site) -> Result<Mode> {
    Ok(if read(site)?.is_some() { Mode::Editable } else { site.config.mode })
}

/// Makes the directories that a mode needs; a push may ask for another one than the project has.
///
/// # Errors
/// If something is in the way.
pub fn ensure_layout(site: &Site, mode: Mode) -> Result<()> {
    Proof::forget(&site.place)?;
    trees::build(&site.place, &links::expected(&site.place, mode)?, site.owners().as_ref()).map(|_| ())
}

/// The directories between which everything is moved. All of them, and what is above them, are the node's own.
struct Dirs {
    project: Dir,
    build: Dir,
    deploy: Dir,
    archives: Dir,
}

impl Dirs {
    fn open(site: &Site) -> Result<Self> {
        let project = Dir::open(site.place.dir())?;
        let inner = |name: &str| project.dir(Path::new(name));
        Ok(Self { build: inner("build")?, deploy: inner("deploy")?, archives: inner("archives")?, project })
    }

    fn sync(&self) -> Result<()> {
        [&self.project, &self.build, &self.deploy, &self.archives].into_iter().try_for_each(Dir::sync)
    }
}

fn ino(dir: &Dir, name: &str) -> Result<Option<u64>> {
    Ok(dir.stat(Path::new(name))?.filter(|meta| meta.kind == FileKind::Dir).map(|meta| meta.ino))
}

fn there(dir: &Dir, name: &str) -> Result<u64> {
    ino(dir, name)?.ok_or_else(|| Error::failed(format!("{} is no directory", dir.path().join(name).display())))
}

fn by_hand(site: &Site) -> Error {
    Error::failed(format!("{} was replaced by hand", site.place.run().display()))
        .hint(format!("{} says what belongs there", site.place.editable().display()))
}

/// Makes the finished clone in `build/clone` what runs. If it fails before the exchange nothing has changed; afterwards what
/// is missing is done by the next command, and told here as a note.
///
/// # Errors
/// If the two cannot be exchanged.
pub fn enter(site: &Site, holds: Holds, cooked: Option<Serving>) -> Result<Vec<String>> {
    let dirs = Dirs::open(site)?;
    let (run, clone) = (there(&dirs.project, "run")?, there(&dirs.build, "clone")?);
    let moving = Some(Moving::In { run, clone });
    let by = holds.id.clone();
    let record = Editable { format: FORMAT, since: clock::now(), by, cooked, holds, moving };
    write(site, &record)?;
    let exchanged = fault::point("editable.intent")
        .and_then(|()| dirs.project.exchange(Path::new("run"), &dirs.build, Path::new("clone")));
    if let Err(error) = exchanged {
        forget(site)?;
        return Err(error);
    }
    match fault::point("editable.exchanged").and_then(|()| finish_entering(site, record, (run, clone))) {
        Ok(notes) => Ok(notes),
        Err(error) => Ok(vec![format!("not everything is at its place yet: {}", error.one_line())]),
    }
}

fn finish_entering(site: &Site, record: Editable, (old, clone): (u64, u64)) -> Result<Vec<String>> {
    let dirs = Dirs::open(site)?;
    if there(&dirs.project, "run")? != clone {
        return Err(by_hand(site));
    }
    dirs.sync()?;
    if ino(&dirs.build, "clone")? == Some(old) {
        dirs.build.rename_new(Path::new("clone"), &dirs.deploy, Path::new("cooked"))?;
        dirs.sync()?;
    }
    fault::point("editable.parked")?;
    let is_shown = binding::shown(site)? != Shown::Missing;
    if !is_shown && ino(&dirs.project, "project")?.is_some() && ino(&dirs.deploy, "checkout")?.is_none() {
        dirs.project.rename_new(Path::new("project"), &dirs.deploy, Path::new("checkout"))?;
        dirs.sync()?;
    }
    fault::point("editable.aside")?;
    let notes = binding::bind(site)?;
    fault::point("editable.bound")?;
    // What ran before is parked, and what runs now is not deployed yet; unless this is done late, and it is.
    let serves = site.serves()?;
    if serves.is_none() || serves == record.cooked {
        serve(site, None)?;
    }
    if let Some(cooked) = &record.cooked {
        Releases::new(&site.place).link_tree(&cooked.id, Some("cooked"))?;
    }
    write(site, &Editable { moving: None, ..record })?;
    fault::point("editable.entered")?;
    Ok(notes)
}

/// Records what serves: in the ledger, in `deploy/current` and in the repository.
fn serve(site: &Site, serving: Option<&Serving>) -> Result<()> {
    if let Some(last) = Last::read(&site.place)? {
        Last { serves: serving.cloned(), ..last }.write(&site.place)?;
    }
    let repo = site.repo()?;
    let current = CURRENT.parse()?;
    if let Some(serving) = serving {
        repo.set_ref(&current, &serving.commit, "mc_project: editable mode ends")?;
        return fs::replace_symlink(&site.place.current(), Path::new(serving.id.as_str()));
    }
    repo.delete_ref(&current)?;
    fs::remove_file(&site.place.current())?;
    fs::sync_dir(&site.place.deploy())
}

/// Removes the records of editable deployments but this one: there are no files behind them.
///
/// # Errors
/// If one cannot be removed.
pub fn remove_editable_releases(site: &Site, but: Option<&DeploymentId>) -> Result<()> {
    let releases = Releases::new(&site.place);
    for id in releases.ids()? {
        if Some(&id) != but && releases.provenance(&id)?.mode == Mode::Editable {
            releases.remove(&id)?;
            site.repo()?.delete_ref(&kept_ref(&id)?)?;
            site.pillar_repo()?.delete_ref(&kept_ref(&id)?)?;
        }
    }
    Ok(())
}

/// The end of editable mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Where the clone is kept.
    pub kept: PathBuf,
    /// What serves again; `None` if nothing had been deployed before.
    pub serves: Option<Serving>,
}

impl Left {
    /// What is told.
    #[must_use]
    pub fn words(&self) -> String {
        let serves = match &self.serves {
            Some(serving) => format!("run is {} again, as it was left", serving.commit.short()),
            None => "run is as it was before".to_string(),
        };
        format!(
            "editable mode has ended: {serves}; the clone, with all that was not committed, is {}",
            self.kept.display()
        )
    }
}

/// Leaves editable mode: the services of the clone stop, the parked tree runs again and its services start. The caller holds
/// the lock, and no deployment is open.
///
/// # Errors
/// If a step of `stop` fails, or something is in the way; the next command goes on where the move stopped.
pub fn leave(site: &Site, telling: &mut Reporter) -> Result<Option<Left>> {
    let Some(record) = read(site)? else { return Ok(None) };
    let dirs = Dirs::open(site)?;
    let (clone, cooked) = (there(&dirs.project, "run")?, there(&dirs.deploy, "cooked")?);
    let told = |halt: Halt| Error::failed(halt.reason);
    services::stop(site, telling, &Staying::new(), false).map_err(told)?;
    if let Some(held) = held_version(site, &record) {
        run_stage(site, telling, &held.version, Stage::Stop)?;
    }
    let mut into = format!("editable-{}", clock::now().strftime("%Y%m%dT%H%M%SZ"));
    while dirs.archives.stat(Path::new(&into))?.is_some() {
        into.push('x');
    }
    let record = Editable { moving: Some(Moving::Out { clone, cooked, into: into.clone() }), ..record };
    write(site, &record)?;
    fault::point("leave.intent")?;
    finish_leaving(site, &record, (clone, cooked, &into), telling).map(Some)
}

fn finish_leaving(
    site: &Site,
    record: &Editable,
    (clone, cooked, into): (u64, u64, &str),
    telling: &mut Reporter,
) -> Result<Left> {
    let dirs = Dirs::open(site)?;
    binding::unbind(site)?;
    fault::point("leave.unbound")?;
    let run = there(&dirs.project, "run")?;
    if run == clone {
        dirs.project.exchange(Path::new("run"), &dirs.deploy, Path::new("cooked"))?;
    } else if run != cooked {
        return Err(by_hand(site));
    }
    fault::point("leave.exchanged")?;
    dirs.sync()?;
    if ino(&dirs.deploy, "cooked")? == Some(clone) {
        dirs.deploy.rename_new(Path::new("cooked"), &dirs.archives, Path::new(into))?;
    }
    dirs.sync()?;
    fault::point("leave.kept")?;
    bring_checkout_back(&dirs)?;
    fault::point("leave.project")?;
    serve(site, record.cooked.as_ref())?;
    if let Some(cooked) = &record.cooked {
        Releases::new(&site.place).link_tree(&cooked.id, Some("../run"))?;
    }
    remove_editable_releases(site, None)?;
    fault::point("leave.recorded")?;
    // The record goes last: services that were not started are started by the next command.
    if let Err(error) = start_live(site, telling) {
        let _ = telling.emit(Event::Warning { text: format!("what runs again did not start: {}", error.one_line()) });
    }
    forget(site)?;
    fault::point("leave.done")?;
    Ok(Left { kept: site.place.archives().join(into), serves: record.cooked.clone() })
}

/// Starts what serves; without it nothing of the clone is left to be started.
fn start_live(site: &Site, telling: &mut Reporter) -> Result<()> {
    let live = live_of(site, &site.repo()?)?.and_then(|live| live.deployed());
    if let Some(live) = &live {
        run_stage(site, telling, &live.version, Stage::Start)?;
    }
    let started = services::start(site, telling, live.as_ref(), How::Anew, false);
    started.map(|_| ()).map_err(|halt| Error::failed(halt.reason))
}

/// `project/` is again the checkout that it was before.
fn bring_checkout_back(dirs: &Dirs) -> Result<()> {
    let (project, checkout) = (Path::new("project"), Path::new("checkout"));
    if ino(&dirs.deploy, "checkout")?.is_some() {
        if ino(&dirs.project, "project")?.is_some() {
            dirs.project.remove_dir(project).map_err(|error| {
                error.hint("it should be empty in editable mode: move what is in it away, then repeat the command")
            })?;
        }
        dirs.deploy.rename_new(checkout, &dirs.project, project)?;
    } else if dirs.project.stat(project)?.is_none() {
        dirs.project.make_dir(project, 0o755)?;
    }
    dirs.sync()
}

/// The version whose steps ran last in the clone; `None` where its commit is gone.
#[must_use]
pub fn held_version(site: &Site, record: &Editable) -> Option<Deployed> {
    let repo = site.repo().ok()?;
    let holds = &record.holds;
    let version =
        Version::load_kept(site, &repo, &holds.commit, holds.pillar.as_ref(), (Mode::Editable, &holds.id)).ok()?;
    Some(Deployed { version, id: holds.id.clone() })
}

/// Runs the steps of a stage outside of a deployment.
fn run_stage(site: &Site, telling: &mut Reporter, version: &Version, stage: Stage) -> Result<()> {
    if let Some(text) = super::steps::ready_for(site, version, stage)? {
        telling.emit(Event::Warning { text })?;
    }
    telling.set_secrets(&version.secret_values());
    let place = Place { at: At::Run, setting: version.setting(site, None) };
    for step in super::steps::steps_of(version, stage, &Options::default()) {
        run_one(site, telling, version, (stage, &step), &place, false).map_err(|halt| {
            let error = Error::failed(format!("a step of {} failed: {}: {}", stage.name(), step.title(), halt.reason));
            match halt.tail.last() {
                Some(line) => error.because(Error::failed(line.clone())),
                None => error,
            }
        })?;
    }
    Ok(())
}

/// Finishes a move that was interrupted, and shows `run` at `project` again where a boot has lost the mount. The caller
/// holds the lock. Returns what was done.
///
/// # Errors
/// If something is in the way.
pub fn resume(site: &Site) -> Result<Vec<String>> {
    let Some(record) = read(site)? else { return Ok(Vec::new()) };
    match record.moving.clone() {
        Some(Moving::In { run, .. }) if there(&Dir::open(site.place.dir())?, "run")? == run => {
            // Nothing was exchanged yet.
            forget(site)?;
            Ok(Vec::new())
        }
        Some(Moving::In { run, clone }) => {
            let mut notes = finish_entering(site, record, (run, clone))?;
            notes.insert(0, "the way into editable mode was finished".to_string());
            Ok(notes)
        }
        Some(Moving::Out { clone, cooked, into }) => {
            let id = super::worker::new_id();
            let mut telling = Reporter::new(&site.place, &id, None);
            let left = finish_leaving(site, &record, (clone, cooked, &into), &mut telling)?;
            telling.emit(Event::Closed)?;
            Ok(vec![left.words()])
        }
        None if binding::shown(site)? == Shown::Missing => {
            let mut notes = binding::bind(site)?;
            notes.insert(0, format!("{} shows run again", site.place.project().display()));
            Ok(notes)
        }
        None => Ok(Vec::new()),
    }
}

/// Whether [`resume`] has something to do.
///
/// # Errors
/// If the record cannot be read.
pub fn needs_resume(site: &Site) -> Result<bool> {
    let Some(record) = read(site)? else { return Ok(false) };
    Ok(record.moving.is_some() || binding::shown(site)? == Shown::Missing)
}

/// Refuses a rollback while `run` is a clone.
///
/// # Errors
/// With both ways out.
pub fn refuse_rollback(site: &Site) -> Result<()> {
    if read(site)?.is_none() {
        return Ok(());
    }
    let name = site.place.name();
    Err(Error::refused("in editable mode there is nothing to roll back to: git has every version of the clone").hint(
        format!(
            "to go back by git: git revert HEAD, then push\nto have archives and rollback: mc_project init {name} --environment staging"
        ),
    ))
}

/// The clones of former times, which nothing rotates away.
///
/// # Errors
/// If the archives cannot be read.
pub fn kept_clones(site: &Site) -> Result<Vec<PathBuf>> {
    let mut names = fs::names(&site.place.archives())?;
    names.retain(|name| name.starts_with("editable-") || name.starts_with("aside-"));
    names.sort();
    Ok(names.into_iter().map(|name| site.place.archives().join(name)).collect())
}

/// As [`kept_clones`], with the clone that runs now: what somebody may have made by hand, and a removal must not lose.
///
/// # Errors
/// As [`kept_clones`].
pub fn clones(site: &Site) -> Result<Vec<PathBuf>> {
    let mut clones = kept_clones(site)?;
    if read(site)?.is_some() {
        clones.push(site.place.run());
    }
    Ok(clones)
}
