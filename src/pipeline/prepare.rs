//! Prepare: everything that happens while the old version serves. Whatever fails here has changed nothing that runs.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use super::checkout::{GitOrigin, check_out_pillar, directory, seen, sync_seen};
use super::draft::{Candidate, Draft, Goal, Seen, Spare, Version};
use super::halt::{Halt, Step};
use super::proof::Proof;
use super::secrets::keep_record;
use super::services;
use super::site::Site;
use super::steps::{At, Place, files_words, seen_at_run};
use super::trial::tried;
use crate::project::ids::DeploymentId;
use crate::project::mode::{Environment, Mode};
use crate::project::recipe::{BuildAt, Recipe};
use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Error, Result};
use crate::sys::path::TreePath;
use crate::sys::threads::Meanwhile;
use crate::sys::{fault, process};
use crate::tree::hash::Hash;
use crate::tree::manifest::{Content, Entry, Manifest, differing};
use crate::tree::release::{Provenance, Releases};
use crate::tree::scan::{Identified, Own, identify};
use crate::tree::store::{Held, Store, Supply};
use crate::tree::sync::{Keeping, Plan, Target, apply, now_ns, prove, seal, seal_changes};
use crate::tree::witness::{self, Witness};

/// Stages that build.
const BUILDING: [Stage; 3] = [Stage::PreInstall, Stage::Build, Stage::PostBuild];

impl Draft<'_> {
    /// Prepares the candidate: after this, only the switch is missing.
    ///
    /// # Errors
    /// The reason to stop; nothing that runs was changed.
    pub fn prepare(&mut self) -> Step {
        self.stage(Stage::Accept, |draft| draft.accept().map(|note| ((), note)))?;
        fault::point("accept.caught-up")?;
        let store = Store::open(&self.site.place.store())?;
        let next = self.next.clone();
        let (manifest, built, was_built) = match self.goal.clone() {
            Goal::Release { id, .. } => self.kept_release(&next, &id, &store)?,
            Goal::Commit => {
                let source = self.check_out(&next, &store)?;
                if next.mode == Mode::Final {
                    let built = self.fetch(&store)?;
                    (built.clone(), built, true)
                } else {
                    let (built, was_built) = self.build(&next, &source, &store)?;
                    (built.clone(), built, was_built)
                }
            }
        };
        let is_kept = self.goal != Goal::Commit;
        let manifest =
            if is_kept { manifest } else { with_shared(self.site, &next.recipe, self.with_made(&next, manifest)?)? };
        let manifest = self.stage(Stage::Candidate, |draft| {
            // A kept release has the files that were made from its own configuration.
            let manifest = if is_kept { manifest } else { draft.with_templates(&next, manifest, &store)? };
            draft.make_candidate(manifest, &store)
        })?;
        let manifest = if is_kept { manifest } else { self.configure(&next, manifest, &store)? };
        let mut built = built;
        built.inherit_times(&manifest)?;
        self.candidate = Some(Candidate { manifest, built, was_built });
        self.record_release()?;
        self.tell(Event::Prepared)
    }

    /// Accept: units that the node allows, room on each file system, and the walk over the spare begins.
    fn accept(&mut self) -> Step<Option<String>> {
        self.is_proven = Proof::take(self.site, self.live.as_ref().map(|live| &live.serving.id))?;
        self.spare = Some(self.known_spare()?.map_or_else(|| self.walk_spare(), Spare::Known));
        if let Goal::Release { id, .. } = &self.goal {
            let mut opened = self.live.as_ref().map(|live| live.below.clone()).unwrap_or_default();
            self.kept = Some(Releases::new(&self.site.place).open_among(id, &mut opened)?);
        }
        let next = self.next.clone();
        self.find_secrets()?;
        self.refuse_units()?;
        self.refuse_states()?;
        // A port that nothing names, a value that no service can be given: found out before anything changes.
        services::backend(self.site).refuse(&services::definitions(self.site, &self.next_deployed())?)?;
        self.listing = Some(self.list(&next)?);
        if next.mode == Mode::Final && self.goal == Goal::Commit {
            self.look_for_deliverable();
        }
        self.preflight()?;
        self.say_that_production_builds();
        Ok(None)
    }

    /// Production that has nowhere to fetch from builds by itself: told once, with the first deployment.
    fn say_that_production_builds(&mut self) {
        let builds = self.begin.environment == Environment::Prod && self.next.mode == Mode::Cooking;
        if builds && self.live.is_none() && !self.site.node.config.is_fed(self.site.place.name()) {
            self.note("no release_sources in node.yaml: this production node builds by itself");
        }
    }

    /// Checkout: `project/` and `pillar/` become the commits; the recipe's shared paths are checked against the commit.
    fn check_out(&mut self, next: &Version, store: &Store) -> Step<Manifest> {
        self.stage(Stage::Checkout, |draft| {
            let source = draft.source(next, store)?;
            refuse_committed_shared(&next.recipe, &source)?;
            let changed = draft.check_out_project(&source, store)?;
            let pillar = check_out_pillar(draft.site, next.pillar_commit.as_ref())?;
            next.write_config(draft.site)?;
            fault::point("checkout.pillar")?;
            Ok((source, Some(changes_words(changed, pillar))))
        })
    }

    /// Whether a version has steps that build.
    #[must_use]
    pub fn builds(&self, next: &Version) -> bool {
        BUILDING.iter().any(|stage| !self.steps_of(next, *stage).is_empty())
    }

    /// Build: `build/tree` is exactly the commit and the cache; then the steps. Returns the tree at the end of `post_build`.
    fn build(&mut self, next: &Version, source: &Manifest, store: &Store) -> Step<(Manifest, bool)> {
        if !self.builds(next) {
            return Ok((without_excluded(&next.recipe, source)?, false));
        }
        let tree = self.site.place.build_tree();
        let (at, setting_run) = self.build_place(next, &tree)?;
        if self.builds_in_run {
            return Ok((without_excluded(&next.recipe, &self.with_live_cache(next, source)?)?, false));
        }
        let origin = GitOrigin::new(self.site, &[source])?;
        let project = Dir::open_real(&self.site.place.project())?;
        let mut supply = Supply::new(store, vec![Held::new(&project, source)]).with_origin(&origin);
        let before = seen(self.site, &tree)?;
        let wanted = with_cache(&before.told.manifest, &next.recipe.cache, source)?;
        sync_seen(self.site, &tree, before, &wanted, (&mut supply, "build.tree-ready"))?;
        let mut setting = next.setting(self.site, Some(self.id()));
        setting.commit_time = Some(next.commit.time);
        setting.run = setting_run;
        let place = Place { at, setting };
        self.empty_build_tmp()?;
        for stage in BUILDING {
            self.step_stage(next, stage, &place)?;
        }
        fault::point("build.done")?;
        let built = self.take_build_in(next, source, &tree, store)?;
        Ok((built, true))
    }

    /// Where build steps work, and what `MC_RUN` tells them.
    fn build_place(&mut self, next: &Version, tree: &Path) -> Step<(At, std::path::PathBuf)> {
        let (at, impossible) = seen_at_run(self.site, tree)?;
        let Some(reason) = impossible else { return Ok((at, self.site.place.run())) };
        if next.recipe.build_at == BuildAt::Run && next.recipe.in_place {
            self.builds_in_run = true;
            self.note(format!("the build happens in run, services stopped: {reason}"));
            return Ok((At::Run, self.site.place.run()));
        }
        if next.recipe.build_at == BuildAt::Run {
            return Err(Halt::refused(format!(
                "the recipe builds at the path of run, which is impossible here: {reason}"
            ))
            .hint("mc_project doctor tells what is missing; `build: {at: run, in_place: allow}` lets it build in run, services stopped"));
        }
        self.note(format!("steps see build/tree at its own path: {reason}"));
        Ok((at, tree.to_path_buf()))
    }

    /// The commit's tree with what the live release has at the recipe's cache paths, for a build in `run`.
    fn with_live_cache(&self, next: &Version, source: &Manifest) -> Result<Manifest> {
        let Some(live) = &self.live else { return Ok(source.clone()) };
        let cached = |entry: &&Entry| {
            next.recipe
                .cache
                .iter()
                .any(|path| entry.path.is_within(path) || path.is_within(&entry.path) && entry.is_dir())
        };
        let entries = live.manifest.entries().filter(cached).filter(|entry| source.get(&entry.path).is_none());
        source.with(entries.cloned().collect(), &[])
    }

    /// The RFC's order, where the recipe allows it: `run` is the commit's tree by now, the services are stopped, and the steps
    /// build and configure there. What comes out is the release.
    ///
    /// # Errors
    /// The failed step: then everything is rolled back.
    pub fn build_in_run(&mut self) -> Step {
        if !self.builds_in_run {
            return Ok(());
        }
        let next = self.next.clone();
        let store = Store::open(&self.site.place.store())?;
        let mut setting = next.setting(self.site, Some(self.id()));
        setting.commit_time = Some(next.commit.time);
        let place = Place { at: At::Run, setting };
        let source = self.candidate()?.manifest.clone();
        self.empty_build_tmp()?;
        for stage in BUILDING {
            self.step_stage(&next, stage, &place)?;
        }
        let built = self.take_build_in(&next, &source, &self.site.place.run(), &store)?;
        for stage in [Stage::Configure, Stage::Check] {
            self.step_stage(&next, stage, &place)?;
        }
        let manifest = self.take_build_in(&next, &built, &self.site.place.run(), &store)?;
        self.candidate = Some(Candidate { manifest, built, was_built: true });
        self.record_release()
    }

    /// Takes what the build made into the store and returns the tree at the end of `post_build`.
    fn take_build_in(&mut self, next: &Version, source: &Manifest, tree: &Path, store: &Store) -> Step<Manifest> {
        let dir = Dir::open_real(tree)?;
        let witness_path = witness::path_of(&self.site.place, &dir)?;
        let witness = Witness::open_or_read(&witness_path);
        let told = identify(&dir, self.site.own, witness.as_ref(), &|_| true)?;
        let mut specials = told.specials.iter().filter(|path| !next.recipe.exclude.matches(path, false));
        if let Some(path) = specials.next() {
            return Err(Halt::failed(format!("the build made a device, fifo or socket: `{path}`"))
                .hint("remove it in post_build, or name it under sync: {exclude: […]}"));
        }
        self.refuse_anothers(&told, &Manifest::default(), "the build", tree)?;
        let built = without_excluded(&next.recipe, &told.manifest)?;
        let built = with_blobs(built, source)?;
        self.take_contents_in(&dir, &built, store)?;
        witness::record(&witness_path, &dir, told.manifest, witness)?;
        Ok(built)
    }

    /// On a whole-machine node a step of the project's account cannot make a file of another user: such a file is a second name
    /// of one that the account may not even read, and it must not come back as a file of the project.
    fn refuse_anothers(&self, told: &Identified, ours: &Manifest, who: &str, tree: &Path) -> Step {
        let own = self.site.own;
        // A template that we made for root is as we made it, or it is none of ours.
        let is_ours = |entry: &Entry| {
            ours.get(&entry.path).is_some_and(|made| made.owner == entry.owner && made.hash() == entry.hash())
        };
        let found = self.site.owners().and_then(|_| told.of_another(own, is_ours));
        let Some((entry, (uid, _))) = found.and_then(|entry| Some((entry, entry.owner?))) else { return Ok(()) };
        let path = tree.join(entry.path.as_path());
        let path = crate::sys::escape::visible_bounded(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()), 4096);
        Err(Halt::failed(format!("{who} left a file of user {uid}, not of the project: `{}`", entry.path))
            .hint(format!("look what it is: ls -l {path}; then remove it")))
    }

    /// Copies every content of `manifest` that neither the store nor the spare has from `dir` into the store.
    fn take_contents_in(&mut self, dir: &Dir, manifest: &Manifest, store: &Store) -> Step {
        let live: HashSet<Hash> = self.live.iter().flat_map(|live| live.manifest.hashes()).collect();
        for entry in manifest.entries() {
            let Some(hash) = entry.hash() else { continue };
            if live.contains(&hash) || store.contains(&hash)? {
                continue;
            }
            // No further than it was, although somebody may have put something without an end there.
            let (found, _) =
                store.add(&mut dir.open_file(entry.path.as_path())?.take(entry.size().saturating_add(1)))?;
            if found != hash {
                return Err(Halt::failed(format!("`{}` changed after its build", entry.path))
                    .hint("a step left a process behind that still writes"));
            }
        }
        fault::point("store.ingested")?;
        Ok(())
    }

    /// A kept release: every content must be at hand before anything is touched.
    fn kept_release(&mut self, next: &Version, id: &DeploymentId, store: &Store) -> Step<(Manifest, Manifest, bool)> {
        let releases = Releases::new(&self.site.place);
        let manifest = self.kept.clone().ok_or_else(|| Error::bug("a kept release was not opened at accept"))?;
        let built = releases.built_of(id, &manifest)?;
        let was_built = releases.provenance(id)?.built;
        let spare = Dir::open_real(&self.site.place.spare())?;
        let run = Dir::open_real(&self.site.place.run())?;
        let mut seen = self.proven_spare()?;
        // All of it that is needed is read now: of a damaged record contents would seem to be missing.
        differing(&seen.told.manifest, &manifest).for_each(drop);
        if seen.told.manifest.intact().is_err() {
            self.spare = Some(self.walk_spare());
            seen = self.proven_spare()?;
        }
        let actual = &seen.told;
        let origin = GitOrigin::new(self.site, &[&manifest])?;
        let mut held = vec![Held::new(&spare, &actual.manifest)];
        held.extend(self.live.iter().map(|live| Held::new(&run, &live.manifest)));
        let supply = Supply::new(store, held).with_origin(&origin);
        // What the spare has already need not be looked for.
        let other =
            differing(&actual.manifest, &manifest).filter(|(old, new)| old.map(Entry::hash) != new.map(Entry::hash));
        for entry in other.filter_map(|(_, new)| new) {
            if !supply.has(entry)? {
                return Err(Halt::refused(format!(
                    "release {id} is incomplete: the content of `{}` is missing",
                    entry.path
                ))
                .hint("mc_project verify NAME tells which releases are complete; mc_project history NAME lists them"));
            }
        }
        self.spare = Some(Spare::Known(seen));
        self.check_out(next, store)?;
        Ok((manifest, built, was_built))
    }

    /// What the spare is, as the walk that began at accept found it.
    ///
    /// # Errors
    /// If the walk failed.
    pub fn proven_spare(&mut self) -> Result<Seen> {
        match self.spare.take() {
            Some(Spare::Known(known)) => Ok(known),
            Some(Spare::Walk(walk)) => walk.end()?,
            None => Err(Error::bug("the walk over the spare was asked for twice")),
        }
    }

    /// What the witness of the spare says, if it was proven.
    fn known_spare(&self) -> Result<Option<Seen>> {
        if !self.is_proven {
            return Ok(None);
        }
        let spare = Dir::open_real(&self.site.place.spare())?;
        let witness = Witness::open(&witness::path_of(&self.site.place, &spare)?);
        Ok(witness.map(Seen::proven))
    }

    /// Begins to walk the spare.
    fn walk_spare(&self) -> Spare {
        let (place, own) = (self.site.place.clone(), self.site.own);
        Spare::Walk(Meanwhile::begin(move || -> Result<Seen> {
            let spare = Dir::open_real(&place.spare())?;
            let witness = Witness::open_or_read(&witness::path_of(&place, &spare)?);
            Ok(Seen { told: identify(&spare, own, witness.as_ref(), &|_| true)?, witness })
        }))
    }

    /// What the spare is and what must be done to it; a witness that is damaged is replaced by a walk.
    fn plan_candidate(&mut self, manifest: &Manifest) -> Result<(Seen, Plan)> {
        let seen = self.proven_spare()?;
        match Plan::new(&seen.told, manifest) {
            Ok(plan) => Ok((seen, plan)),
            Err(_) if seen.told.manifest.intact().is_err() => {
                self.spare = Some(self.walk_spare());
                let seen = self.proven_spare()?;
                let plan = Plan::new(&seen.told, manifest)?;
                Ok((seen, plan))
            }
            Err(error) => Err(error),
        }
    }

    /// Turns the spare into the candidate.
    fn make_candidate(&mut self, mut manifest: Manifest, store: &Store) -> Step<(Manifest, Option<String>)> {
        let place = self.site.place.clone();
        if let Some(live) = &self.live {
            manifest.inherit_times(&live.manifest)?;
        }
        let (spare, run) = (Dir::open_real(&place.spare())?, Dir::open_real(&place.run())?);
        // Who proved it saw that nobody has it open, and its path is nobody's way in.
        if !self.is_proven {
            self.warn_of_users(&spare)?;
        }
        let (Seen { told: actual, witness }, plan) = self.plan_candidate(&manifest)?;
        let origin = GitOrigin::new(self.site, &[&manifest])?;
        let mut held = vec![Held::new(&spare, &actual.manifest)];
        held.extend(self.live.iter().map(|live| Held::new(&run, &live.manifest)));
        let build = Dir::open_real(&place.build_tree())?;
        if self.goal == Goal::Commit && self.builds(&self.next) {
            held.push(Held::new(&build, &manifest));
        }
        Releases::new(&place).unlink_tree("spare")?;
        // What the live tree has too may leave the store: after the switch that tree is the spare. The rest is copied, so
        // that the next candidate finds it there.
        let takeable = self.live.as_ref().map(|live| live.manifest.clone()).unwrap_or_default();
        let mut supply = Supply::new(store, held).with_origin(&origin).taking(&takeable);
        fault::point("candidate.dirty")?;
        let target = Target { tree: &spare, own: self.site.own, point: "candidate.applying" };
        apply(&target, &plan, &mut supply, &Keeping { store: Some(store), aside: None })?;
        let sealed = if self.spare_in_use {
            // Somebody has the tree open and may have written to a new file before it was sealed.
            prove(&spare, self.site.own, &manifest, None)?
        } else {
            seal_changes(&spare, self.site.own, &actual.manifest, &plan, &manifest)?
        };
        let witness_path = witness::path_of(&place, &spare)?;
        witness::record(&witness_path, &spare, sealed, witness)?;
        fault::point("candidate.done")?;
        let changed = self.changed_files(&manifest);
        Ok((manifest, Some(changed)))
    }

    fn changed_files(&self, manifest: &Manifest) -> String {
        let empty = Manifest::default();
        let live = self.live.as_ref().map_or(&empty, |live| &live.manifest);
        let is_file = |entry: Option<&Entry>| entry.is_some_and(|entry| !entry.is_dir());
        let changed = differing(live, manifest).filter(|(old, new)| is_file(*old) || is_file(*new)).count();
        format!("{} of {} files change", changed, manifest.files())
    }

    fn warn_of_users(&mut self, spare: &Dir) -> Result<()> {
        let users = process::processes_using(spare.path())?;
        self.spare_in_use = !users.found.is_empty();
        if self.spare_in_use {
            let names: Vec<String> =
                users.found.iter().take(5).map(|user| format!("{} ({})", user.name, user.pid)).collect();
            self.warn(format!("processes still use the tree of the version before: {}", names.join(", ")));
        }
        Ok(())
    }

    /// Configure: the steps work in the candidate; what they write is recorded as configuration.
    fn configure(&mut self, next: &Version, manifest: Manifest, store: &Store) -> Step<Manifest> {
        let stages = [Stage::Configure, Stage::Check];
        let has_trial = tried(next).next().is_some();
        if self.builds_in_run || (!has_trial && stages.iter().all(|stage| self.steps_of(next, *stage).is_empty())) {
            return Ok(manifest);
        }
        let path = self.site.place.spare();
        let (at, _) = seen_at_run(self.site, &path)?;
        let place = Place { at, setting: next.setting(self.site, Some(self.id())) };
        self.step_stage(next, Stage::Configure, &place)?;
        self.check_stage(next, &place)?;
        let spare = Dir::open_real(&path)?;
        let witness_path = witness::path_of(&self.site.place, &spare)?;
        let witness = Witness::open_or_read(&witness_path);
        let told = identify(&spare, self.site.own, witness.as_ref(), &|_| true)?;
        if let Some(path) = told.specials.first() {
            return Err(Halt::failed(format!("configure made a device, fifo or socket: `{path}`")));
        }
        self.refuse_anothers(&told, &manifest, "configure", &path)?;
        let configured = with_blobs(told.manifest, &manifest)?;
        self.take_contents_in(&spare, &configured, store)?;
        let sealed = seal(&spare, self.site.own, &configured)?;
        witness::record(&witness_path, &spare, sealed, witness)?;
        Ok(configured)
    }

    /// Records the candidate as `deploy/<id>/`, and makes everything on the disk durable.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn record_release(&mut self) -> Step {
        let candidate = self.candidate()?;
        let provenance = Provenance {
            format: 1,
            id: self.begin.id.clone(),
            seq: self.begin.seq,
            project: self.begin.project.clone(),
            commit: self.next.commit.id.clone(),
            commit_time: self.next.commit.time,
            pillar: self.next.pillar_commit.clone(),
            mode: self.next.mode,
            built: candidate.was_built,
            built_digest: candidate.built.tree_digest().hex(),
            tree_digest: candidate.manifest.tree_digest().hex(),
            created: crate::sys::clock::now(),
            pusher: self.begin.pusher.clone(),
            made: self.made()?,
        };
        // Nothing stands on a record that is damaged.
        let intact = self.live.as_ref().filter(|live| live.manifest.intact().is_ok());
        let before = intact.map(|live| (&live.serving.id, &live.manifest));
        keep_record(self.site, &self.begin.id, self.next.given.get())?;
        Releases::new(&self.site.place).save(&provenance, &candidate.manifest, &candidate.built, before)?;
        Dir::open(self.site.place.dir())?.sync_file_system()?;
        Ok(())
    }
}

/// The commit's tree with what stands at the recipe's cache paths in `build/tree`.
fn with_cache(present: &Manifest, cache: &[TreePath], source: &Manifest) -> Result<Manifest> {
    let mut put = std::collections::BTreeMap::new();
    for top in cache {
        for entry in present.get(top).into_iter().chain(present.below(top)).filter(|e| source.get(&e.path).is_none()) {
            put.insert(entry.path.clone(), entry.clone());
        }
    }
    let mut around = Vec::new();
    for path in put.keys() {
        let is_new = |path: &TreePath| source.get(path).is_none() && !put.contains_key(path);
        for path in path.ancestors().take_while(is_new) {
            around.push(present.get(&path).cloned().unwrap_or_else(|| directory(path, now_ns())));
        }
    }
    put.extend(around.into_iter().map(|entry| (entry.path.clone(), entry)));
    source.with(put.into_values().collect(), &[])
}

/// A tree without the recipe's excluded paths.
fn without_excluded(recipe: &Recipe, manifest: &Manifest) -> Result<Manifest> {
    if recipe.exclude.is_empty() {
        return Ok(manifest.clone());
    }
    let excluded: Vec<TreePath> = manifest
        .entries()
        .filter(|entry| recipe.exclude.matches(&entry.path, entry.is_dir()))
        .map(|entry| entry.path.clone())
        .collect();
    if excluded.is_empty() { Ok(manifest.clone()) } else { manifest.with(Vec::new(), &excluded) }
}

/// Names the git object of every file that is as it was committed, so that its content can be had from there.
///
/// # Errors
/// Never for two good manifests.
pub fn with_blobs(mut manifest: Manifest, source: &Manifest) -> Result<Manifest> {
    let named: Vec<Entry> = manifest
        .entries()
        .filter_map(|entry| {
            let known = source.get(&entry.path)?;
            let same = entry.blob.is_none() && known.blob.is_some() && known.hash() == entry.hash();
            same.then(|| Entry { blob: known.blob.clone(), ..entry.clone() })
        })
        .collect();
    if !named.is_empty() {
        manifest = manifest.with(named, &[])?;
    }
    Ok(manifest)
}

fn refuse_committed_shared(recipe: &Recipe, source: &Manifest) -> Step {
    for shared in &recipe.shared {
        let mut at = Some(shared.path.clone());
        while let Some(path) = at {
            let committed = source.get(&path);
            let in_the_way = committed.is_some_and(|entry| path == shared.path || !entry.is_dir());
            if in_the_way {
                return Err(Halt::refused(format!(
                    "`{}` is shared by the recipe, but `{path}` is also committed",
                    shared.path
                ))
                .hint(format!("git rm -r --cached {path}, or take it out of `shared`")));
            }
            at = path.parent();
        }
    }
    Ok(())
}

/// Adds the links to the shared paths, and makes what they lead to below `data/shared`.
fn with_shared(site: &Site, recipe: &Recipe, manifest: Manifest) -> Result<Manifest> {
    if recipe.shared.is_empty() {
        return Ok(manifest);
    }
    let (shared_dir, own) = (site.place.data_shared(), site.own);
    // `data` is the project's: what stands there under our name may be a link by now.
    let base = Dir::open_real(&site.place.data())?.dir(Path::new("shared"))?;
    let now = now_ns();
    let mut put = std::collections::BTreeMap::new();
    let mut dropped = Vec::new();
    for shared in &recipe.shared {
        make_shared(&base, own, &shared.path, shared.is_dir)?;
        for path in shared.path.ancestors().take_while(|path| manifest.get(path).is_none()) {
            put.insert(path.clone(), directory(path, now));
        }
        dropped.extend(manifest.get(&shared.path).map(|entry| entry.path.clone()));
        dropped.extend(manifest.below(&shared.path).map(|entry| entry.path.clone()));
        let target =
            std::os::unix::ffi::OsStrExt::as_bytes(shared_dir.join(shared.path.as_path()).as_os_str()).to_vec();
        let mut link = directory(shared.path.clone(), now);
        (link.mode, link.content) = (0o777, Content::Symlink(target));
        put.insert(shared.path.clone(), link);
    }
    manifest.with(put.into_values().collect(), &dropped)
}

/// Makes what a shared path leads to, below `data/shared`.
///
/// # Errors
/// If it cannot be made.
pub fn make_shared(base: &Dir, own: Own, path: &TreePath, is_dir: bool) -> Result<()> {
    let mut at = base.again()?;
    let names: Vec<_> = path.as_path().components().map(|name| name.as_os_str().to_os_string()).collect();
    let parents = if is_dir { names.len() } else { names.len() - 1 };
    for name in &names[..parents] {
        let is_new = at.stat(Path::new(name))?.is_none();
        at = at
            .ensure_dir(Path::new(name), 0o755)
            .context(|| format!("cannot make {}", base.path().join(path.as_path()).display()))?;
        // Ours, and not one that the project's account put there meanwhile.
        if is_new && at.stat_self()?.uid == Own::current().uid {
            at.give_to(own.uid, own.gid)?;
        }
    }
    Ok(())
}

fn changes_words(files: usize, pillar: usize) -> String {
    let word = files_words(files);
    if pillar == 0 { word } else { format!("{word}, pillar {pillar}") }
}
