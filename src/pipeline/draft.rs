//! A deployment in progress: what it knows, and how it tells its stages.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Instant;

use super::cancel;
use super::configuration::{self, Sources, Trust};
use super::environment::{Setting, config_path, write_config};
use super::fetch::Offer;
use super::halt::{Halt, Step};
use super::listing::Listing;
use super::preflight::Need;
use super::secrets::{self, Given};
use super::site::Site;
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::mode::Mode;
use crate::project::outcome::{Serving, SwitchKind};
use crate::project::pillar::Pillar;
use crate::project::recipe::Recipe;
use crate::project::request::Options;
use crate::project::secrets::SecretName;
use crate::project::stage::Stage;
use crate::report::event::{Begin, Event};
use crate::report::stream::Reporter;
use crate::sys::error::{Error, Result};
use crate::sys::fs;
use crate::sys::git::{CommitInfo, Repo};
use crate::sys::path::TreePath;
use crate::sys::threads::Meanwhile;
use crate::tree::manifest::{Entry, Manifest};
use crate::tree::release::{Made, Opened, Provenance, Releases};
use crate::tree::scan::Identified;
use crate::tree::switch::Inodes;
use crate::tree::witness::Witness;

pub use crate::project::pillar::FILE as PILLAR;
pub use crate::project::recipe::FILE as RECIPE;

/// A version of the project: what its steps need.
#[derive(Debug, Clone)]
pub struct Version {
    /// The commit.
    pub commit: CommitInfo,
    /// Its recipe.
    pub recipe: Recipe,
    /// The pillar's commit, if there is one.
    pub pillar_commit: Option<ObjectId>,
    /// The configuration.
    pub pillar: Pillar,
    /// What else the configuration depends on, as a short name.
    pub config_key: String,
    /// Which made-up passwords its configuration has.
    pub passwords: BTreeMap<SecretName, u64>,
    /// The release that it is, if it is a kept one: it is given the secrets that it had.
    pub release: Option<DeploymentId>,
    /// Its secrets, once they were looked for.
    pub given: OnceLock<Given>,
    /// The mode that it is deployed in.
    pub mode: Mode,
}

impl Version {
    /// Reads recipe and pillar of a version from the repositories, and holds them against each other.
    ///
    /// # Errors
    /// If the commit is gone, recipe or pillar are invalid, or they do not fit.
    pub fn load(
        site: &Site,
        repo: &Repo,
        commit: &ObjectId,
        pillar_commit: Option<&ObjectId>,
        mode: Mode,
    ) -> Result<Self> {
        Self::read(site, repo, (commit, pillar_commit), mode, None)
    }

    /// As [`Version::load`] for what was deployed once: nothing that is asked for today keeps anybody from stopping it, or
    /// from going back to it.
    ///
    /// # Errors
    /// If the commit is gone, or recipe or pillar cannot be read.
    pub fn load_kept(
        site: &Site,
        repo: &Repo,
        commit: &ObjectId,
        pillar_commit: Option<&ObjectId>,
        (mode, id): (Mode, &DeploymentId),
    ) -> Result<Self> {
        Self::read(site, repo, (commit, pillar_commit), mode, Some(id))
    }

    fn read(
        site: &Site,
        repo: &Repo,
        (commit, pillar_commit): (&ObjectId, Option<&ObjectId>),
        mode: Mode,
        release: Option<&DeploymentId>,
    ) -> Result<Self> {
        let private = pillar_commit.map(|_| site.pillar_repo()).transpose()?;
        let sources = Sources {
            project: site.place.name(),
            code: Some((repo, commit)),
            pillar: private.as_ref().zip(pillar_commit),
        };
        let recipe = sources.recipe(&site.node.config.defaults, Trust::of(site))?;
        let before = release.and_then(|id| secrets::record_of(site, id).ok().flatten());
        let passwords = configuration::PasswordVersions::before(before.unwrap_or_default().passwords);
        let facts = configuration::facts(site, &passwords)?;
        let (pillar, mut config_key) = sources.read(&recipe, &facts)?;
        let passwords = passwords.versions();
        if !passwords.is_empty() {
            config_key = blake3::hash(format!("{config_key} {passwords:?}").as_bytes()).to_hex()[..12].to_string();
        }
        if release.is_none() {
            sources.check(&recipe, &pillar)?;
        }
        let pillar_commit = pillar_commit.cloned();
        let (release, given) = (release.cloned(), OnceLock::new());
        let commit = repo.commit(commit)?;
        Ok(Self { commit, recipe, pillar_commit, pillar, config_key, passwords, release, given, mode })
    }

    /// Its secrets as a kept release was given them, if they are still in memory: nobody is asked.
    pub fn recall_secrets(&self, site: &Site) {
        if let (None, Some(id)) = (self.given.get(), &self.release)
            && let Some(given) = secrets::recall(site, id)
        {
            let _ = self.given.set(given);
        }
    }

    /// Finds its secrets, unless that was done; returns what is to be told about them.
    ///
    /// # Errors
    /// Which secret cannot be had, and why.
    pub fn find_secrets(&self, site: &Site) -> Result<Vec<String>> {
        if self.given.get().is_some() {
            return Ok(Vec::new());
        }
        let found = secrets::find(site, self)?;
        let _ = self.given.set(found.given);
        Ok(found.notes)
    }

    /// The setting of this version's programs, at the path of `run`.
    #[must_use]
    pub fn setting(&self, site: &Site, id: Option<&DeploymentId>) -> Setting {
        Setting {
            mode: self.mode,
            id: id.cloned(),
            commit: Some(self.commit.id.clone()),
            commit_time: None,
            run: site.place.run(),
            dumps: None,
            config: config_path(site, self.pillar_commit.as_ref(), &self.config_key),
            given: self.given.get().cloned().unwrap_or_default(),
        }
    }

    /// The values of this version's secrets: nothing that is told may hold them.
    #[must_use]
    pub fn secret_values(&self) -> Vec<String> {
        let of_pillar = self.pillar.secrets().into_iter().map(|(_, value)| value);
        of_pillar.chain(self.given.get().into_iter().flat_map(Given::values)).collect()
    }

    /// Makes sure that the configuration file and the secrets of this version are there.
    ///
    /// # Errors
    /// If it cannot be written, or a secret cannot be had.
    pub fn write_config(&self, site: &Site) -> Result<PathBuf> {
        self.find_secrets(site)?;
        write_config(site, &self.setting(site, None).config, &self.pillar)
    }
}

/// A version, and the deployment that made it live: what its services are told, and what `status` says of them.
#[derive(Debug, Clone)]
pub struct Deployed {
    /// The version.
    pub version: Version,
    /// The deployment.
    pub id: DeploymentId,
}

/// What serves while a deployment is made.
#[derive(Debug, Clone)]
pub struct Live {
    /// Its id and commit.
    pub serving: Serving,
    /// Where it came from.
    pub provenance: Provenance,
    /// Its tree.
    pub manifest: Manifest,
    /// What its steps need; `None` where its commit is gone from the repository.
    pub version: Option<Version>,
    /// The releases that its manifest stands on.
    pub below: Opened,
}

impl Live {
    /// Reads what serves.
    ///
    /// # Errors
    /// If its record is damaged.
    pub fn load(site: &Site, repo: &Repo, serving: &Serving) -> Result<Self> {
        let manifest = Releases::new(&site.place).manifest(&serving.id)?;
        Ok(Self { manifest, ..Self::open(site, repo, serving)? })
    }

    /// As [`Live::load`], without reading the manifest: what makes trees by it finds out whether it is damaged.
    ///
    /// # Errors
    /// If its record is damaged.
    pub fn open(site: &Site, repo: &Repo, serving: &Serving) -> Result<Self> {
        let releases = Releases::new(&site.place);
        let provenance = releases.provenance(&serving.id)?;
        let version =
            Version::load_kept(site, repo, &serving.commit, provenance.pillar.as_ref(), (provenance.mode, &serving.id))
                .ok();
        let mut below = Opened::default();
        let manifest = releases.open_among(&serving.id, &mut below)?;
        Ok(Self { serving: serving.clone(), manifest, provenance, version, below })
    }
}

impl Live {
    /// The version with its deployment; `None` where its commit is gone.
    #[must_use]
    pub fn deployed(&self) -> Option<Deployed> {
        Some(Deployed { version: self.version.clone()?, id: self.serving.id.clone() })
    }
}

/// What shall be made live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// The pushed commit.
    Commit,
    /// A kept release; its data too, from the restore point of this deployment.
    Release {
        /// The release.
        id: DeploymentId,
        /// The restore point whose data come back.
        data_of: Option<DeploymentId>,
    },
}

/// What a prepared candidate is.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The tree.
    pub manifest: Manifest,
    /// The tree at the end of the build, without configuration: what a deliverable holds.
    pub built: Manifest,
    /// Whether build steps ran.
    pub was_built: bool,
}

/// What the spare is.
#[derive(Debug)]
pub enum Spare {
    /// Its witness says so, and the proof holds.
    Known(Seen),
    /// A walk will say.
    Walk(Meanwhile<Result<Seen>>),
}

/// A tree as it was seen, and the witness that was read for that.
#[derive(Debug)]
pub struct Seen {
    /// What it is.
    pub told: Identified,
    /// Its witness, if there was one.
    pub witness: Option<Witness>,
}

impl Seen {
    /// A tree that is what its witness says.
    #[must_use]
    pub fn proven(witness: Witness) -> Self {
        let told = Identified { manifest: witness.manifest().clone(), ..Identified::default() };
        Self { told, witness: Some(witness) }
    }
}

/// A deployment in progress.
#[derive(Debug)]
pub struct Draft<'a> {
    /// The project.
    pub site: &'a Site,
    /// The code repository.
    pub repo: Repo,
    /// Where everything is told.
    pub telling: &'a mut Reporter,
    /// What was known at the beginning.
    pub begin: Begin,
    /// Push options.
    pub options: Options,
    /// What shall be made live.
    pub goal: Goal,
    /// The new version.
    pub next: Version,
    /// What serves.
    pub live: Option<Live>,
    /// The candidate, once it is prepared.
    pub candidate: Option<Candidate>,
    /// The files of the commit, once they are listed.
    pub listing: Option<Listing>,
    /// What must be changed in `project/`, where that is known.
    pub project_changes: Option<(Vec<Entry>, Vec<TreePath>)>,
    /// How much of the data differs from the last snapshot, as far as sizes and times tell.
    pub data_need: Option<Need>,
    /// In final mode: where the deliverable is, or why it cannot be had; told by stage fetch.
    pub offer: Option<Result<Offer>>,
    /// Whether the trees were proven to be what their witnesses say when the last deployment had settled.
    pub is_proven: bool,
    /// The manifest of the kept release that is made live again.
    pub kept: Option<Manifest>,
    /// What the spare is, or the walk that finds out while other things are prepared.
    pub spare: Option<Spare>,
    /// Processes that have something open in the spare: then the proof is repeated at the switch.
    pub spare_in_use: bool,
    /// Whether the build happens in `run` after the switch, because the recipe needs the path and the node cannot mount.
    pub builds_in_run: bool,
    /// Whether data may have been changed by the new version.
    pub touched: bool,
    /// How the switch is made and which directories stood where before it, once it may have been made.
    pub switching: Option<(SwitchKind, Inodes)>,
    /// When the services were started last.
    pub started: Option<jiff::Timestamp>,
}

impl<'a> Draft<'a> {
    /// A draft at its beginning: nothing is prepared, nothing switched. Its secrets are masked from here on.
    #[must_use]
    pub fn new(
        site: &'a Site,
        repo: Repo,
        telling: &'a mut Reporter,
        begin: &Begin,
        (goal, next, live): (Goal, Version, Option<Live>),
    ) -> Self {
        telling.set_secrets(&next.secret_values());
        Self {
            site,
            repo,
            telling,
            begin: begin.clone(),
            options: Options::default(),
            goal,
            next,
            live,
            candidate: None,
            listing: None,
            project_changes: None,
            data_need: None,
            offer: None,
            is_proven: false,
            kept: None,
            spare: None,
            spare_in_use: false,
            builds_in_run: false,
            touched: false,
            switching: None,
            started: None,
        }
    }
}

impl Draft<'_> {
    /// The deployment's id.
    #[must_use]
    pub fn id(&self) -> &DeploymentId {
        &self.begin.id
    }

    /// Runs one stage: tells its beginning and its end with the time it took.
    ///
    /// # Errors
    /// The stage's own reason to stop, with the stage filled in.
    pub fn stage<T>(&mut self, stage: Stage, work: impl FnOnce(&mut Self) -> Step<(T, Option<String>)>) -> Step<T> {
        let begin = Instant::now();
        self.tell(Event::Stage { stage })?;
        let result = cancel::check().and_then(|()| work(self));
        let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok((value, note)) => {
                self.tell_done(stage, ms, note)?;
                Ok(value)
            }
            Err(mut halt) => {
                halt.stage.get_or_insert(stage);
                let (reason, tail) = (halt.reason.clone(), halt.tail.clone());
                self.tell(Event::StageFailed { stage, ms, reason, tail })?;
                Err(halt)
            }
        }
    }

    /// The end of a stage. What is committed, or taken back, is so by a record of its own: that this one is missing must
    /// neither take a commit back nor make a way back fail.
    fn tell_done(&mut self, stage: Stage, ms: u64, note: Option<String>) -> Step {
        let done = Event::StageDone { stage, ms, note };
        match self.telling.emit(done.clone()) {
            Err(error) if matches!(stage, Stage::Commit | Stage::Rollback) => {
                self.telling.tell(done);
                self.warn(format!("not everything is in the journal: {}", error.one_line()));
                Ok(())
            }
            told => told.map_err(Halt::from),
        }
    }

    /// Emits an event; one that cannot be recorded stops the pipeline.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub fn tell(&mut self, event: Event) -> Step {
        self.telling.emit(event).map_err(Halt::from)
    }

    /// Tells something that is wrong but does not stop us.
    pub fn warn(&mut self, text: impl Into<String>) {
        let _ = self.telling.emit(Event::Warning { text: text.into() });
    }

    /// Tells something once.
    pub fn note(&mut self, text: impl Into<String>) {
        let _ = self.telling.emit(Event::Note { text: text.into() });
    }

    /// With what the release is made, for its provenance.
    ///
    /// # Errors
    /// If the repository or the log cannot be read.
    pub fn made(&self) -> Result<Made> {
        let path = TreePath::new(RECIPE.as_bytes())?;
        let recipe = self.repo.blob_at(&self.next.commit.id, &path, fs::CONFIG_LIMIT)?;
        Made::here(recipe.as_deref(), &self.site.place.log(self.id()))
    }

    /// The prepared candidate.
    ///
    /// # Errors
    /// A bug, if it is asked for too early.
    pub fn candidate(&self) -> Result<&Candidate> {
        self.candidate.as_ref().ok_or_else(|| Error::bug("the candidate is not prepared yet"))
    }

    /// The recipe that the live version's steps come from; the new one's before the first deployment.
    #[must_use]
    pub fn old_version(&self) -> Option<&Version> {
        self.live.as_ref().and_then(|live| live.version.as_ref())
    }
}
