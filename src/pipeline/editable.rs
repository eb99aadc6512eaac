//! The pipeline of editable mode: the pushed commit is checked out in the clone that runs, and the steps work there. There is
//! nothing to roll back to: what fails after the checkout is left as it is, and said so.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::activate::in_run;
use super::binding;
use super::checkout::{check_out_pillar, limits_of};
use super::clone::{self, Standing, aside_branch, keep_aside};
use super::deploy::deployed;
use super::draft::{Deployed, Draft};
use super::halt::{Halt, Step};
use super::parking::{self, Holds};
use super::preflight::{Need, Part, What, refuse_beyond_cap};
use super::prepare::make_shared;
use super::services::{How, Staying};
use super::site::{Rights, Site};
use crate::project::ids::ObjectId;
use crate::project::mode::Mode;
use crate::project::outcome::{Outcome, Serving, Verdict};
use crate::project::stage::Stage;
use crate::report::event::{Event, Record};
use crate::sys::dir::{Dir, FileKind};
use crate::sys::error::{Error, Result};
use crate::sys::git::{GitEntry, ObjectFormat, Untracked};
use crate::sys::path::TreePath;
use crate::sys::{fault, mount};
use crate::tree::manifest::Manifest;
use crate::tree::release::{Provenance, Releases};

/// The stages with steps, after the services have stopped and the commit is checked out.
pub const STAGES: [Stage; 9] = [
    Stage::PreInstall,
    Stage::Build,
    Stage::PostBuild,
    Stage::Configure,
    Stage::PostDeploy,
    Stage::Start,
    Stage::PostInstall,
    Stage::Upgrade,
    Stage::Health,
];

/// Deploys into the clone: examine it, stop, check out (from then on the push is accepted), show it at `project`, and run
/// the steps in it.
pub fn deploy(draft: &mut Draft<'_>) -> Outcome {
    let standing = match draft.accept_clone() {
        Ok(standing) => standing,
        Err(halt) => return draft.outcome(halt.verdict(), halt),
    };
    if let Err(halt) = draft.stop_running() {
        return draft.start_running_again(halt);
    }
    let checked_out = draft.check_out_clone(standing.as_ref());
    if let Err(halt) = &checked_out
        && !draft.is_checked_out()
    {
        return draft.undo_checkout(halt.clone(), standing.and_then(|standing| standing.head).as_ref());
    }
    match draft.accept_push().and(checked_out).and_then(|()| draft.run_in_clone()) {
        Ok(serving) => deployed(serving),
        Err(halt) => draft.left_as_it_is(halt),
    }
}

impl Draft<'_> {
    /// Accept: the clone holds nothing that would be lost; `None` if there is no clone yet.
    fn accept_clone(&mut self) -> Step<Option<Standing>> {
        self.stage(Stage::Accept, |draft| {
            if draft.options.stage_only {
                return Err(Halt::refused("in editable mode nothing can be prepared apart from what runs"));
            }
            draft.find_secrets()?;
            let next = draft.next.clone();
            let listing = draft.listed(&next, &draft.begin.commit.clone())?;
            let record = parking::read(draft.site)?;
            draft.refuse_full_disk(&listing)?;
            draft.refuse_moved()?;
            let Some(record) = record else {
                refuse_mounted_run(draft.site)?;
                return Ok((None, Some("run becomes a clone".to_string())));
            };
            let ours = Some(&record.holds.commit);
            let standing = Standing::of(draft.site, &draft.repo, &draft.begin.commit, ours, &listing)
                .map_err(|error| unreadable(draft.site, &error))?;
            if !standing.is_clean() && !draft.options.keep_aside {
                return Err(refusal(draft.site, &draft.begin.commit, &standing));
            }
            let note = (!standing.is_clean()).then(|| standing.words());
            Ok((Some(standing), note))
        })
    }

    /// What the clone does not have yet comes as a bundle, as objects and as files; what it has is not known to us, so the
    /// new contents are those that its commit has not.
    fn refuse_full_disk(&mut self, listing: &[GitEntry]) -> Step {
        let known: HashSet<ObjectId> = match parking::read(self.site)? {
            Some(record) => self.listed_of(&record.holds.commit).into_iter().map(|entry| entry.oid).collect(),
            None => HashSet::new(),
        };
        let new = listing.iter().filter(|entry| !known.contains(&entry.oid));
        let need = Need::sum(new.map(|entry| Need::file(entry.size)));
        let part = |dir, need| Part { dir, need, what: What::Deployment };
        let place = &self.site.place;
        let parts = [part(place.run(), need.plus(need)), part(place.build(), Need { inodes: 1, ..need })];
        refuse_beyond_cap(self.site, &parts)?;
        self.find_room(&parts, true)
    }

    /// The files of a commit, as far as they can be listed.
    fn listed_of(&self, commit: &ObjectId) -> Vec<GitEntry> {
        self.repo.list(commit, &limits_of(self.site)).unwrap_or_default()
    }

    fn refuse_moved(&self) -> Step {
        let (Some(name), Some(old), true) = (&self.begin.refname, &self.begin.old, self.begin.moves_ref) else {
            return Ok(());
        };
        let now = self.repo.read_ref(name)?;
        let expected = if old.is_zero() { None } else { Some(old) };
        if now.as_ref() == expected || now.as_ref() == Some(&self.begin.commit) {
            return Ok(());
        }
        Err(Halt::refused(format!("{} was moved by somebody else", name.shown())).hint("git fetch, then push again"))
    }

    /// The version whose services run: what the clone is at, else what is deployed.
    fn running_version(&self) -> Result<Option<Deployed>> {
        Ok(match parking::read(self.site)? {
            // Of the deployment itself only after a crash: then its services are what has to be stopped, or nothing.
            Some(record) => parking::held_version(self.site, &record),
            None => self.old_deployed(),
        })
    }

    fn stop_running(&mut self) -> Step {
        self.tell(Event::Stopping)?;
        fault::point("stop.before")?;
        let running = self.running_version()?;
        self.stop_stage(running.as_ref().map(|running| &running.version), &Staying::new())?;
        fault::point("stop.done")?;
        Ok(())
    }

    /// Checkout: the clone, made now if there is none, comes to the commit; the pillar too.
    fn check_out_clone(&mut self, standing: Option<&Standing>) -> Step {
        self.stage(Stage::Checkout, |draft| {
            let head = standing.and_then(|standing| standing.head.clone());
            draft.tell(Event::CheckingOut { from: head.clone() })?;
            check_out_pillar(draft.site, draft.begin.pillar.as_ref())?;
            draft.next.write_config(draft.site)?;
            fault::point("checkout.pillar")?;
            let commit = draft.begin.commit.clone();
            let holds = Holds { id: draft.id().clone(), commit: commit.clone(), pillar: draft.begin.pillar.clone() };
            let note = match standing {
                None => {
                    draft.make_clone()?;
                    for note in parking::enter(draft.site, holds, draft.begin.serves.clone())? {
                        draft.note(note);
                    }
                    "a new clone".to_string()
                }
                Some(standing) => {
                    draft.move_clone(standing)?;
                    parking::record_holds(draft.site, holds)?;
                    match head {
                        Some(head) if head == commit => "the clone is there already".to_string(),
                        Some(head) => format!("from {} to {}", head.short(), commit.short()),
                        None => format!("to {}", commit.short()),
                    }
                }
            };
            fault::point("editable.moved")?;
            draft.tell(Event::CheckedOut)?;
            fault::point("editable.checked-out")?;
            Ok(((), Some(note)))
        })
    }

    fn make_clone(&mut self) -> Result<()> {
        let site = self.site;
        remove_scratch(site)?;
        let build = Dir::open(&site.place.build())?;
        let mode = Dir::open_real(&site.place.run())?.stat_self()?.mode;
        build.make_dir(Path::new("clone"), mode)?;
        build.dir(Path::new("clone"))?.give_to(site.own.uid, site.own.gid)?;
        let clone = self.clone_at(&site.place.new_clone());
        let branch = clone::branch(site)?;
        clone.init(ObjectFormat::of(&self.begin.commit), &branch, &site.place.git_project())?;
        self.bring_objects(&clone, None)?;
        clone.check_out(&branch, &self.begin.commit, false)?;
        build.sync_file_system()?;
        fault::point("editable.cloned")
    }

    fn move_clone(&mut self, standing: &Standing) -> Result<()> {
        let clone = self.clone_at(&self.site.place.run());
        let branch = clone::branch(self.site)?;
        let commit = self.begin.commit.clone();
        self.bring_objects(&clone, standing.head.as_ref())?;
        fault::point("editable.fetched")?;
        if !standing.is_clean() {
            for note in keep_aside(self.site, &self.begin.id.clone(), &clone, standing)? {
                self.warn(note);
            }
            fault::point("editable.kept-aside")?;
        }
        clone.check_out(&branch, &commit, !standing.is_clean())?;
        Dir::open(self.site.place.dir())?.sync_file_system()
    }

    /// Whether the clone is recorded to be at our commit: from then on nothing goes back.
    fn is_checked_out(&self) -> bool {
        parking::read(self.site).ok().flatten().is_some_and(|record| record.holds.id == self.begin.id)
    }

    /// The checkout has succeeded: the pushed ref moves.
    fn accept_push(&mut self) -> Step {
        let (Some(name), Some(old), true) = (&self.begin.refname, &self.begin.old, self.begin.moves_ref) else {
            return Ok(());
        };
        let commit = &self.begin.commit;
        if self.repo.read_ref(name)?.as_ref() != Some(commit)
            && !self.repo.move_ref(name, old, commit, "mc_project: checked out in editable mode")?
        {
            let name = name.shown();
            return Err(Halt::failed(format!("{name} was moved by somebody else during the deployment")));
        }
        fault::point("editable.accepted")?;
        Ok(())
    }

    /// Bind, the steps, and the record that makes it what serves.
    fn run_in_clone(&mut self) -> Step<Serving> {
        let next = self.next.clone();
        let place = in_run(self.site, &next, self.id(), None);
        self.stage(Stage::PreInstall, |draft| {
            for note in binding::bind(draft.site)? {
                draft.note(note);
            }
            draft.link_shared()?;
            let steps = draft.steps_of(&next, Stage::PreInstall);
            let ran = draft.run_steps(&next, Stage::PreInstall, &steps, &place)?;
            Ok(((), (ran.count > 0).then(|| ran.words())))
        })?;
        for stage in STAGES.into_iter().filter(|stage| *stage != Stage::PreInstall) {
            if stage == Stage::Configure {
                self.make_templates_in_clone()?;
            }
            self.live_stage(&next, stage, &place)?;
        }
        fault::point("upgrade.done")?;
        self.record_editable_release()?;
        self.commit()
    }

    /// The recipe's shared paths lead to `data/shared`, as in every tree; what stands there already is left alone.
    fn link_shared(&mut self) -> Step {
        let site = self.site;
        if self.next.recipe.shared.is_empty() {
            return Ok(());
        }
        let base = Dir::open_real(&site.place.data())?.dir(Path::new("shared"))?;
        let run = Dir::open_real(&site.place.run())?;
        for shared in self.next.recipe.shared.clone() {
            make_shared(&base, site.own, &shared.path, shared.is_dir)?;
            let target = site.place.data_shared().join(shared.path.as_path());
            let target = target.as_os_str().as_bytes();
            let at = shared.path.as_path();
            match run.stat(at)?.map(|meta| meta.kind) {
                Some(FileKind::Symlink) if run.read_link(at)? == target => continue,
                Some(_) => {
                    self.warn(format!(
                        "`{}` is shared by the recipe, but stands in the clone: it is left",
                        shared.path
                    ));
                    continue;
                }
                None => {}
            }
            let mut above: Vec<_> = std::iter::successors(shared.path.parent(), TreePath::parent).collect();
            above.reverse();
            for dir in above {
                if run.stat(dir.as_path())?.is_none() {
                    run.ensure_dir(dir.as_path(), 0o755)?.give_to(site.own.uid, site.own.gid)?;
                }
            }
            run.symlink(target, at)?;
            run.set_owner(at, site.own.uid, site.own.gid)?;
        }
        Ok(())
    }

    /// `deploy/<id>/`: where it came from. Its files are the clone's, so there is no manifest to speak of.
    fn record_editable_release(&mut self) -> Step {
        let nothing = Manifest::default();
        let provenance = Provenance {
            format: 1,
            id: self.begin.id.clone(),
            seq: self.begin.seq,
            project: self.begin.project.clone(),
            commit: self.next.commit.id.clone(),
            commit_time: self.next.commit.time,
            pillar: self.next.pillar_commit.clone(),
            mode: Mode::Editable,
            built: false,
            built_digest: nothing.tree_digest().hex(),
            tree_digest: nothing.tree_digest().hex(),
            created: crate::sys::clock::now(),
            pusher: self.begin.pusher.clone(),
            made: self.made()?,
        };
        super::secrets::keep_record(self.site, &self.begin.id, self.next.given.get())?;
        Releases::new(&self.site.place).save(&provenance, &nothing, &nothing, None)?;
        Ok(())
    }

    /// Something failed after the checkout: the clone stays at the commit, the services as they are.
    fn left_as_it_is(&mut self, halt: Halt) -> Outcome {
        let entered = parking::read(self.site).ok().flatten().is_some_and(|record| record.by == self.begin.id);
        let name = self.site.place.name();
        let halt = halt
            .hint(format!("to run the steps again: mc_project deploy {name}"))
            .hint(format!("to look at it: cd {}", self.site.place.run().display()));
        let outcome = self.outcome(Verdict::LeftAsItIs, halt);
        // Before the first good one in editable mode nothing does: the tree that served is parked.
        if entered { Outcome { serves: None, ..outcome } } else { outcome }
    }

    /// The checkout failed, or was interrupted: the clone goes back to where it stood, and its services start again.
    fn undo_checkout(&mut self, halt: Halt, head: Option<&ObjectId>) -> Outcome {
        if let Err(error) = self.bring_clone_back(head) {
            self.warn(format!("the clone could not be brought back: {}", error.one_line()));
        }
        let pillar = match parking::read(self.site) {
            Ok(Some(record)) => record.holds.pillar,
            _ => self.old_version().and_then(|old| old.pillar_commit.clone()),
        };
        if let Err(error) = check_out_pillar(self.site, pillar.as_ref()) {
            self.warn(format!("the pillar could not be brought back: {}", error.one_line()));
        }
        self.start_running_again(halt)
    }

    fn bring_clone_back(&mut self, head: Option<&ObjectId>) -> Result<()> {
        remove_scratch(self.site)?;
        let (Some(head), Some(_)) = (head, parking::read(self.site)?) else { return Ok(()) };
        let clone = self.clone_at(&self.site.place.run());
        clone.remove_index_lock()?;
        let is_changed = !clone.changes(Untracked::No)?.is_empty();
        if clone.head()?.as_ref() == Some(head) && !is_changed {
            return Ok(());
        }
        if is_changed {
            // A part of the checkout, and what somebody may have written meanwhile: nobody can tell them apart.
            let branch = aside_branch(&self.begin.id)?;
            let branch = format!("{branch}-interrupted").parse()?;
            clone.keep_aside(&branch, "mc_project: as an interrupted checkout left it")?;
            self.note(format!("what the interrupted checkout left is kept on the branch {}", branch.shown()));
        }
        let branch = clone::branch(self.site)?;
        // Forward first: then git knows of every file that the checkout made, and takes it away again.
        let _ = clone.check_out(&branch, &self.begin.commit, true);
        clone.check_out(&branch, head, true)
    }

    /// Nothing was checked out: the services that were stopped start again.
    fn start_running_again(&mut self, halt: Halt) -> Outcome {
        let running = self.running_version().ok().flatten();
        let started = self.start_stage(running.as_ref(), How::Again);
        let halt = Halt { refused: false, ..halt };
        match started {
            Ok(()) => self.outcome(Verdict::Failed, halt),
            Err(second) => {
                let reason = format!("{}; then what ran before did not start again: {}", halt.reason, second.reason);
                self.outcome(Verdict::Failed, Halt { reason, ..halt })
            }
        }
    }

    /// Finishes a deployment whose worker died before its commit. Moves of directories have been finished before.
    ///
    /// # Errors
    /// If the record of the clone cannot be read.
    pub fn resolve_editable(&mut self, halt: Halt, records: &[Record]) -> Result<Outcome> {
        let is = |wanted: fn(&Event) -> bool| records.iter().any(|record| wanted(&record.event));
        let from = records.iter().rev().find_map(|record| match &record.event {
            Event::CheckingOut { from } => Some(from.clone()),
            _ => None,
        });
        if self.is_checked_out() {
            if let Err(second) = self.accept_push() {
                self.warn(second.reason);
            }
            return Ok(self.left_as_it_is(halt));
        }
        let outcome = if is(|event| matches!(event, Event::Stopping)) {
            self.undo_checkout(halt, from.flatten().as_ref())
        } else {
            remove_scratch(self.site)?;
            self.outcome(Verdict::Failed, halt)
        };
        Ok(Outcome { verdict: Verdict::Interrupted, ..outcome })
    }
}

/// Removes a clone that did not become `run`, and a bundle that was not unpacked.
fn remove_scratch(site: &Site) -> Result<()> {
    let build = Dir::open(&site.place.build())?;
    build.unlink(Path::new("bundle"))?;
    build.remove_tree(Path::new("clone"))
}

/// The exchange of `run` and the clone needs two ordinary directories.
fn refuse_mounted_run(site: &Site) -> Step {
    let (run, build) = (Dir::open_real(&site.place.run())?, Dir::open(&site.place.build())?);
    if run.stat_self()?.dev == build.stat_self()?.dev && !mount::is_mount_point(&site.place.run())? {
        return Ok(());
    }
    Err(Halt::refused("run is a mount point or on another file system, so no clone can take its place")
        .hint("unmount it, or use another mode: mc_project init NAME --environment staging"))
}

fn unreadable(site: &Site, error: &Error) -> Halt {
    Halt::refused(format!("the clone in {} cannot be examined: {}", site.place.run().display(), error.one_line())).hint(
        format!("to keep it as it is and begin anew: mc_project init {} --environment staging", site.place.name()),
    )
}

/// Names what is in the clone, the commands to look at it, and the two ways out.
fn refusal(site: &Site, commit: &ObjectId, standing: &Standing) -> Halt {
    let run = site.place.run();
    let run = run.display();
    // On a whole-machine node the clone is the account's, and git looks into it for nobody else.
    let (git, keep) = match &site.rights {
        Rights::OneUser => (
            format!("git -C {run}"),
            format!("to keep working there: commit it, fetch it from {run}, and push it with your own work"),
        ),
        Rights::Separate { project, .. } => {
            let git = format!("sudo -u {} git -C {run}", project.name);
            let keep = format!(
                "to take commits home: on the node {git} format-patch --stdout BASE..HEAD, at home git am; then push \
                 with -o keep-aside"
            );
            (git, keep)
        }
    };
    let mut halt = Halt::refused(format!("the clone in {run} was worked in: {}", standing.words()))
        .tail(standing.lines())
        .hint(format!("to look: {git} status"));
    for own in &standing.own {
        halt = halt.hint(format!("to look: {git} log {} # not in {}", own.short(), commit.short()));
    }
    halt.hint("to go on and keep all that aside: git push -o keep-aside …").hint(keep)
}

/// What the plan says of the clone.
///
/// # Errors
/// If the repository cannot be read.
pub fn plan_lines(site: &Site, draft: &super::plan::Planned<'_>) -> Result<Vec<String>> {
    let Some(record) = parking::read(site)? else {
        return Ok(vec![format!(
            "editable mode begins: run becomes a clone; the tree that runs now is parked as {}",
            site.place.cooked().display()
        )]);
    };
    let mut lines = vec![format!("the clone goes from {} to {}", record.holds.commit.short(), draft.commit.short())];
    match Standing::of(site, draft.repo, draft.commit, Some(&record.holds.commit), draft.listing) {
        Ok(standing) if standing.is_clean() => {}
        Ok(standing) => {
            lines.push(format!("it would be refused without -o keep-aside: {}", standing.words()));
            lines.extend(standing.lines().into_iter().map(|line| format!("  {line}")));
        }
        Err(error) => lines.push(format!("it would be refused: {}", error.one_line())),
    }
    Ok(lines)
}

/// Whether the push is nothing new: the commit is deployed, and the clone is at it.
///
/// # Errors
/// If the record of the clone cannot be read.
pub fn is_at(site: &Site, commit: &ObjectId) -> Result<bool> {
    Ok(parking::read(site)?.is_some_and(|record| record.holds.commit == *commit))
}
