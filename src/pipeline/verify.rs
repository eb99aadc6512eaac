//! The checker: does everything on the disk fit together? It reads, compares, and repairs nothing.

use std::collections::HashSet;
use std::path::Path;

use serde::Serialize;

use super::activate::{RestorePoint, kept_ref};
use super::checkout::GitOrigin;
use super::draft::RECIPE;
use super::settle::INFLIGHT;
use super::site::Site;
use super::{binding, clone, parking};
use crate::project::ids::{DeploymentId, ObjectId, RefName};
use crate::project::mode::Mode;
use crate::project::outcome::Serving;
use crate::project::recipe::Recipe;
use crate::report::ledger::Last;
use crate::report::{history, notes};
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Result};
use crate::sys::git::Repo;
use crate::sys::path::TreePath;
use crate::sys::{fs, lock};
use crate::tree::deliverable::Deliverable;
use crate::tree::drift::Drift;
use crate::tree::hash::Hash;
use crate::tree::release::Releases;
use crate::tree::scan::identify;
use crate::tree::snapshot::Snapshots;
use crate::tree::store::Store;

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which promise is broken: `run`, `record`, `release`, `archive`, `store`, `litter`, `deliverable`.
    pub about: &'static str,
    /// What is wrong.
    pub text: String,
}

/// The result for one project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The project.
    pub project: String,
    /// What serves.
    pub serves: Option<Serving>,
    /// Whether somebody deploys at this moment: then what is half done is no problem.
    pub busy: bool,
    /// What does not fit.
    pub problems: Vec<Problem>,
    /// Changes by hand in `run`: drift is no problem, but told.
    pub drift: Drift,
    /// How many contents were read and compared.
    pub checked: usize,
}

/// Checks a project.
///
/// # Errors
/// If the state cannot be read at all.
pub fn verify(site: &Site) -> Result<Verified> {
    let last = Last::read(&site.place)?;
    let mut check = Check {
        site,
        result: Verified {
            project: site.place.name().to_string(),
            serves: last.as_ref().and_then(|last| last.serves.clone()),
            busy: lock::holder(&site.place.lock())?.is_some(),
            problems: Vec::new(),
            drift: Drift::default(),
            checked: 0,
        },
        available: HashSet::new(),
    };
    if parking::read(site)?.is_some() {
        check.clone()?;
    } else if site.config.mode != Mode::Editable || fs::exists(&site.place.spare()) {
        check.run()?;
    }
    check.record(last.as_ref())?;
    check.contents()?;
    check.releases()?;
    check.archives()?;
    check.deliverables()?;
    check.litter()?;
    Ok(check.result)
}

struct Check<'a> {
    site: &'a Site,
    result: Verified,
    /// Contents that were read and found good, in the store or in a tree.
    available: HashSet<Hash>,
}

impl Check<'_> {
    fn problem(&mut self, about: &'static str, text: String) {
        self.result.problems.push(Problem { about, text });
    }

    /// `run` is exactly the release that serves, drift aside; every file of both trees is read.
    fn run(&mut self) -> Result<()> {
        let place = &self.site.place;
        let run = identify(&Dir::open_real(&place.run())?, self.site.own, None, &|_| true)?;
        let spare = identify(&Dir::open_real(&place.spare())?, self.site.own, None, &|_| true)?;
        self.result.checked += run.read + spare.read;
        self.available.extend(run.manifest.hashes().chain(spare.manifest.hashes()));
        let wanted = match &self.result.serves {
            Some(serving) => match Releases::new(place).manifest(&serving.id) {
                Ok(manifest) => manifest,
                Err(error) => {
                    self.problem("record", format!("the live release cannot be read: {}", error.one_line()));
                    return Ok(());
                }
            },
            None => crate::tree::manifest::Manifest::default(),
        };
        let recipe = self.live_recipe();
        self.result.drift = Drift::between(&wanted, &run, &|path, is_dir| recipe.ignore_drift.matches(path, is_dir));
        Ok(())
    }

    /// Editable mode: `run` is a repository at a commit, `project` shows it, and what is parked is still there.
    fn clone(&mut self) -> Result<()> {
        let place = self.site.place.clone();
        match clone::drift(self.site) {
            Ok(drift) => self.result.drift = drift,
            Err(error) => self.problem("run", error.one_line()),
        }
        if !self.result.busy {
            if let Some(problem) = binding::problem(self.site)? {
                self.problem("run", format!("{problem}: mc_project recover {}", place.name()));
            }
            if parking::read(self.site)?.is_some_and(|record| record.moving.is_some()) {
                self.problem("run", format!("a change of mode was interrupted: mc_project recover {}", place.name()));
            }
        }
        for tree in [place.cooked(), place.spare()].into_iter().filter(|tree| fs::exists(tree)) {
            let found = identify(&Dir::open_real(&tree)?, self.site.own, None, &|_| true)?;
            self.result.checked += found.read;
            self.available.extend(found.manifest.hashes());
        }
        Ok(())
    }

    fn live_recipe(&self) -> Recipe {
        let read = || -> Result<Option<Recipe>> {
            let Some(serving) = &self.result.serves else { return Ok(None) };
            let repo = self.site.repo()?;
            let bytes = repo.blob_at(&serving.commit, &TreePath::new(RECIPE.as_bytes())?, fs::CONFIG_LIMIT)?;
            bytes.map(|bytes| Recipe::parse(RECIPE, &bytes)).transpose()
        };
        read().ok().flatten().unwrap_or_default()
    }

    /// The ledger, `deploy/current` and the refs name the same version.
    fn record(&mut self, last: Option<&Last>) -> Result<()> {
        let place = &self.site.place;
        if last.is_some_and(|last| last.open) && !self.result.busy {
            self.problem("record", format!("a deployment was interrupted: mc_project recover {}", place.name()));
        }
        match history::read(place, None) {
            Err(error) => self.problem("record", error.one_line()),
            Ok(entries) => {
                let lacks = |serving: &Serving| entries.iter().all(|entry| entry.id != serving.id);
                if self.result.serves.as_ref().is_some_and(lacks) {
                    self.problem("record", "what serves is not in the history: it was cut short".into());
                }
            }
        }
        let current = fs::link_target(&place.current()).map(|target| target.display().to_string());
        let serving = self.result.serves.clone();
        if current != serving.as_ref().map(|serving| serving.id.to_string()) {
            self.problem("record", format!("deploy/current is {current:?}, but {serving:?} serves"));
        }
        let repo = self.site.repo()?;
        let named = repo.read_ref(&"refs/deploys/current".parse()?)?;
        if named != serving.map(|serving| serving.commit) {
            self.problem("record", format!("refs/deploys/current is {named:?}"));
        }
        for name in [notes::LAST_GOOD, notes::LAST_FAILED, "refs/notes/deploys"] {
            self.reference(&repo, &name.parse()?, None)?;
        }
        let inflight = repo.refs(&format!("{INFLIGHT}/"))?;
        if !self.result.busy && !inflight.is_empty() {
            self.problem("litter", format!("{} refs of deployments in flight", inflight.len()));
        }
        Ok(())
    }

    /// A ref of ours, if it is there, names a commit that is there: this one, if one is expected. Git takes no push while one
    /// of its refs names nothing, and leaves out of its lists those that are damaged.
    fn reference(&mut self, repo: &Repo, name: &RefName, expected: Option<&ObjectId>) -> Result<()> {
        match repo.read_ref(name) {
            Err(error) => self.problem("record", error.one_line()),
            Ok(Some(id)) if expected.is_some_and(|expected| *expected != id) || repo.peel_to_commit(&id)?.is_none() => {
                self.problem("record", format!("{name} names {}, which is not what was deployed", id.short()));
            }
            Ok(_) => {}
        }
        Ok(())
    }

    /// Every content of the store is what its name says and is needed.
    fn contents(&mut self) -> Result<()> {
        if !fs::exists(&self.site.place.store()) {
            // A project that never was in another mode than editable.
            return Ok(());
        }
        let store = Store::open(&self.site.place.store())?;
        let needed = Releases::new(&self.site.place).needed()?;
        for hash in store.list()? {
            let Some(mut file) = store.get(&hash)? else { continue };
            let (found, _) = Hash::reading(&mut file).context(|| format!("cannot read content {hash}"))?;
            self.result.checked += 1;
            if found != hash {
                self.problem("store", format!("content {hash} is damaged"));
                continue;
            }
            self.available.insert(hash);
            if !needed.contains(&hash) && !self.result.busy {
                self.problem("litter", format!("content {hash} is needed by no kept release"));
            }
        }
        Ok(())
    }

    /// Every kept release can be made a tree again.
    fn releases(&mut self) -> Result<()> {
        let releases = Releases::new(&self.site.place);
        for id in releases.ids()? {
            let manifests = releases.manifest(&id).and_then(|manifest| Ok((manifest, releases.built(&id)?)));
            let (manifest, built) = match manifests {
                Ok(both) => both,
                Err(error) => {
                    self.problem("release", format!("{id}: {}", error.one_line()));
                    continue;
                }
            };
            let origin = GitOrigin::new(self.site, &[&manifest, &built])?;
            let has = |hash: &Hash| self.available.contains(hash) || crate::tree::store::Origin::knows(&origin, hash);
            let missing = manifest.hashes().chain(built.hashes()).filter(|hash| !has(hash)).count();
            if missing > 0 {
                self.problem("release", format!("{id}: {missing} contents are missing"));
            }
            let provenance = releases.provenance(&id)?;
            self.reference(&self.site.repo()?, &kept_ref(&id)?, Some(&provenance.commit))?;
            if !manifest.has_digest(&provenance.tree_digest) {
                self.problem("release", format!("{id}: the manifest is not the one that was deployed"));
            }
        }
        Ok(())
    }

    /// Every restore point's data can be restored.
    fn archives(&mut self) -> Result<()> {
        let place = &self.site.place;
        let snapshots = Snapshots::new(place, self.site.own);
        let mut have: HashSet<Hash> = HashSet::new();
        if fs::exists(&place.snapshot()) {
            let copy = identify(&Dir::open_real(&place.snapshot())?, self.site.own, None, &|_| true)?;
            self.result.checked += copy.read;
            have.extend(copy.manifest.hashes());
        }
        if !fs::exists(&place.snapshot_store()) {
            return Ok(());
        }
        let store = Store::open(&place.snapshot_store())?;
        for hash in store.list()? {
            if let Some(mut file) = store.get(&hash)? {
                let (found, _) = Hash::reading(&mut file).context(|| format!("cannot read content {hash}"))?;
                self.result.checked += 1;
                if found == hash {
                    have.insert(hash);
                } else {
                    self.problem("archive", format!("content {hash} of the data snapshots is damaged"));
                }
            }
        }
        let mut needed: HashSet<Hash> = HashSet::new();
        for point in RestorePoint::all(self.site)? {
            match snapshots.manifest(&point.id) {
                Ok(Some(manifest)) => {
                    let missing = manifest.hashes().filter(|hash| !have.contains(hash)).count();
                    needed.extend(manifest.hashes());
                    if missing > 0 {
                        self.problem(
                            "archive",
                            format!("{}: {missing} files of the data snapshot are missing", point.id),
                        );
                    }
                }
                Ok(None) => self.problem("archive", format!("{}: it has no data snapshot", point.id)),
                Err(error) => self.problem("archive", format!("{}: {}", point.id, error.one_line())),
            }
        }
        if !self.result.busy && store.list()?.iter().any(|hash| !needed.contains(hash)) {
            self.problem("litter", "archives/store holds contents that no restore point needs".into());
        }
        Ok(())
    }

    fn deliverables(&mut self) -> Result<()> {
        let keys = self.site.trusted_keys()?;
        for found in Deliverable::list(&self.site.place.releases(), self.site.place.name())? {
            if let Err(error) = found.verify(&keys) {
                self.problem("deliverable", error.one_line());
            }
        }
        Ok(())
    }

    /// Nothing stands where nothing of ours belongs.
    fn litter(&mut self) -> Result<()> {
        if self.result.busy {
            return Ok(());
        }
        let place = self.site.place.clone();
        let kept: HashSet<DeploymentId> = Releases::new(&place).ids()?.into_iter().collect();
        let mut known_deploy = vec!["current", "spare", "store"];
        if parking::read(self.site)?.is_some() {
            known_deploy.extend(["cooked", "checkout"]);
        }
        for name in fs::names(&place.deploy())? {
            if !known_deploy.contains(&name.as_str()) && !name.parse().is_ok_and(|id| kept.contains(&id)) {
                self.problem("litter", format!("deploy/{name}"));
            }
        }
        for name in fs::names(&place.archives())? {
            let known =
                name == "data" || name == "store" || name.starts_with("editable-") || name.starts_with("aside-");
            if !known
                && !name
                    .parse::<DeploymentId>()
                    .is_ok_and(|id| fs::exists(&place.archive(&id).join(super::activate::RestorePoint::FILE)))
            {
                self.problem("litter", format!("archives/{name}"));
            }
        }
        let allowed = [
            "tree",
            "home",
            "config",
            "salt",
            "reset-perms",
            "sockets",
            "sockets.json",
            "modules",
            "checkout",
            "tmp",
            "service-tmp",
            "dumps",
        ];
        for name in fs::names(&place.build())? {
            if !allowed.contains(&name.as_str()) {
                self.problem("litter", format!("build/{name}"));
            }
        }
        for name in fs::names(&place.releases())? {
            if Path::new(&name).extension().is_some_and(|ending| ending == "new" || ending == "content") {
                self.problem("litter", format!("releases/{name}"));
            }
        }
        self.state_litter()
    }

    fn state_litter(&mut self) -> Result<()> {
        let place = self.site.place.clone();
        for name in fs::names(&place.state())? {
            if name.starts_with('.') && name != ".branch.new" {
                self.problem("litter", format!("state/{name}"));
            }
        }
        for name in fs::names(&place.waiting())? {
            if name != ".door" && lock::holder(&place.waiting().join(&name))?.is_none() {
                self.problem("litter", format!("state/waiting/{name} was left by a worker that died"));
            }
        }
        let expected = super::links::expected(&place, parking::layout_mode(self.site)?)?;
        for change in crate::tree::layout::check(&place, &expected, self.site.owners().as_ref())? {
            self.problem("litter", format!("the layout needs repair: {change}"));
        }
        Ok(())
    }
}
