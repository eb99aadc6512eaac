//! What states of Salt make in `run`: a part of the release that makes it, and of the next one.
//!
//! makina-states' projects are installed in a working copy: what a state writes there (a configuration, a virtualenv) stays
//! when the next commit is checked out, and the states go on from it. Here it is recorded when the states have run, so that
//! a rollback brings it back. Where no recipe says what is kept from build to build, it is also carried into the next
//! candidate, wherever the commit has nothing of that name.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Instant;

use super::draft::{Candidate, Draft, Version};
use super::halt::{Halt, Step};
use super::steps::Watcher;
use crate::project::limits::User;
use crate::project::mode::Mode;
use crate::project::recipe;
use crate::project::stage::Stage;
use crate::sys::dir::Dir;
use crate::sys::error::Result;
use crate::sys::path::TreePath;
use crate::sys::process::{StepWatcher, TICK};
use crate::sys::{escape, fault};
use crate::tree::manifest::{Entry, Manifest};
use crate::tree::release::Releases;
use crate::tree::scan::{Identified, identify};
use crate::tree::store::Store;
use crate::tree::witness::{self, Witness};

impl Draft<'_> {
    /// The tree with what states made for the version that serves.
    ///
    /// # Errors
    /// If the record of what serves cannot be read.
    pub fn with_made(&self, next: &Version, manifest: Manifest) -> Result<Manifest> {
        let Some(live) = self.live.as_ref().filter(|_| next.recipe.keeps_made) else { return Ok(manifest) };
        if !live.version.as_ref().is_some_and(|version| version.recipe.keeps_made) {
            return Ok(manifest);
        }
        let built = Releases::new(&self.site.place).built_of(&live.serving.id, &live.manifest)?;
        let mut put: BTreeMap<TreePath, Entry> = BTreeMap::new();
        for entry in live.manifest.entries().filter(|entry| built.get(&entry.path).is_none()) {
            let is_free = |path: &TreePath| manifest.get(path).is_none_or(Entry::is_dir);
            if manifest.get(&entry.path).is_some() || !entry.path.ancestors().all(|path| is_free(&path)) {
                continue;
            }
            // A directory of the old commit that this one has not any more stays where something in it does.
            let missing = |path: &TreePath| manifest.get(path).is_none();
            for parent in entry.path.ancestors().take_while(missing).filter_map(|path| live.manifest.get(&path)) {
                put.entry(parent.path.clone()).or_insert_with(|| parent.clone());
            }
            put.insert(entry.path.clone(), entry.clone());
        }
        manifest.with(put.into_values().collect(), &[])
    }

    /// Takes what the states of the new version left in `run` into its release.
    ///
    /// # Errors
    /// If it cannot be read, or holds a file that no step of this project can have made.
    pub fn take_made(&mut self, next: &Version) -> Step {
        let after = [Stage::Deploy, Stage::PostDeploy, Stage::Start, Stage::PostInstall, Stage::Upgrade, Stage::Health];
        let steps: Vec<recipe::Step> = after.into_iter().flat_map(|stage| self.steps_of(next, stage)).collect();
        if next.mode == Mode::Editable || !steps.iter().any(|step| step.salt().is_some()) {
            return Ok(());
        }
        let was_root = steps.iter().any(|step| step.user == User::Root);
        let candidate = self.candidate()?.clone();
        let manifest = self.made_in_run(next, &candidate.manifest, was_root)?;
        let mut built = candidate.built;
        built.inherit_times(&manifest)?;
        self.candidate = Some(Candidate { manifest, built, was_built: candidate.was_built });
        self.record_release()
    }

    /// The same where a person keeps a version whose worker died among its states: what stands in `run` is the release.
    ///
    /// # Errors
    /// As [`Draft::take_made`].
    pub fn take_made_before(&mut self) -> Step {
        let (next, id) = (self.next.clone(), self.id().clone());
        let releases = Releases::new(&self.site.place);
        let manifest = releases.manifest(&id)?;
        let (built, was_built) = (releases.built_of(&id, &manifest)?, releases.provenance(&id)?.built);
        self.candidate = Some(Candidate { manifest, built, was_built });
        self.take_made(&next)
    }

    /// What `run` is, as far as it stays still: the contents that the release did not have go into the store.
    fn made_in_run(&mut self, next: &Version, before: &Manifest, was_root: bool) -> Step<Manifest> {
        let store = Store::open(&self.site.place.store())?;
        let run = Dir::open_real(&self.site.place.run())?;
        let witness_path = witness::path_of(&self.site.place, &run)?;
        let witness = Witness::open_or_read(&witness_path);
        self.beat();
        let told = identify(&run, self.site.own, witness.as_ref(), &|_| true)?;
        self.beat();
        self.refuse_second_names(&told, before, was_root)?;
        if let Some(path) = told.specials.first() {
            self.warn(format!("states left a device, fifo or socket in run, which no release holds: {path}"));
        }
        let manifest = super::prepare::with_blobs(told.manifest.clone(), before)?;
        let manifest = without_passing(next, &manifest, before)?;
        let manifest = self.take_still(&run, &manifest, before, &store)?;
        fault::point("store.ingested")?;
        witness::record(&witness_path, &run, told.manifest, witness)?;
        Ok(manifest)
    }

    /// Whoever judges a power cut knows by this that the new version still ran.
    fn beat(&mut self) {
        let beats = self.switching.is_some();
        let _ = Watcher { telling: self.telling, beats }.tick();
    }

    /// A file of another user that has a name outside of `run` may be one that the project's account may not read; so may each
    /// where no step was root.
    fn refuse_second_names(&self, told: &Identified, before: &Manifest, was_root: bool) -> Step {
        let is_elsewhere = |entry: &Entry| {
            let first = entry.hard_link.as_ref().unwrap_or(&entry.path);
            told.linked_elsewhere.contains(first)
        };
        let is_ours = |entry: &Entry| {
            let made = before.get(&entry.path);
            was_root && !is_elsewhere(entry)
                || made.is_some_and(|made| made.owner == entry.owner && made.hash() == entry.hash())
        };
        let found = self.site.owners().and_then(|_| told.of_another(self.site.own, is_ours));
        let Some((entry, (uid, _))) = found.and_then(|entry| Some((entry, entry.owner?))) else { return Ok(()) };
        let path = self.site.place.run().join(entry.path.as_path());
        let path = escape::visible_bounded(path.as_os_str().as_encoded_bytes(), 4096);
        let why = if is_elsewhere(entry) { "that has a second name outside of it" } else { "not of the project" };
        Err(Halt::failed(format!("run has a file of user {uid}, {why}: `{}`", entry.path))
            .hint(format!("look what it is: ls -l {path}; then remove it")))
    }

    /// Takes every content that the release did not have into the store. What changes while it is read belongs to whoever
    /// writes it, a log or a database, and to no release.
    fn take_still(&mut self, run: &Dir, manifest: &Manifest, before: &Manifest, store: &Store) -> Result<Manifest> {
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        let mut beaten = Instant::now();
        for entry in manifest.entries() {
            let Some(hash) = entry.hash() else { continue };
            if before.get(&entry.path).and_then(Entry::hash) == Some(hash) || store.contains(&hash)? {
                continue;
            }
            if beaten.elapsed() >= TICK {
                beaten = Instant::now();
                self.beat();
            }
            let found = match run.open_file(entry.path.as_path()) {
                Ok(file) => Some(store.add(&mut file.take(entry.size().saturating_add(1)))?.0),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
            if found != Some(hash) {
                match before.get(&entry.path) {
                    Some(known) => put.push(known.clone()),
                    None => gone.push(entry.path.clone()),
                }
            }
        }
        manifest.with(put, &gone)
    }
}

/// Without what the recipe says comes and goes in `run`, unless the release had it already.
fn without_passing(next: &Version, manifest: &Manifest, before: &Manifest) -> Result<Manifest> {
    let recipe = &next.recipe;
    let passes = |entry: &&Entry| {
        let is_named = |patterns: &recipe::Patterns| patterns.matches(&entry.path, entry.is_dir());
        before.get(&entry.path).is_none() && (is_named(&recipe.exclude) || is_named(&recipe.ignore_drift))
    };
    let gone: Vec<TreePath> = manifest.entries().filter(passes).map(|entry| entry.path.clone()).collect();
    if gone.is_empty() { Ok(manifest.clone()) } else { manifest.with(Vec::new(), &gone) }
}
