//! Undo: drop the candidate, start the old services again, or roll back code, configuration and data.

use std::path::Path;

use super::activate::{FailedFiles, dumps_of, failed_data, finish_commit, make_run, restore_units};
use super::ballast;
use super::cancel;
use super::checkout::check_out_pillar;
use super::draft::{Draft, Version};
use super::halt::{Halt, Step};
use super::services::{self, How, Staying};
use crate::project::ids::DeploymentId;
use crate::project::outcome::{Outcome, SwitchKind, Verdict};
use crate::project::stage::Stage;
use crate::report::event::{Event, Record, RestoreUnit};
use crate::sys::dir::Dir;
use crate::sys::error::{Error, Result};
use crate::sys::{fault, fs};
use crate::tree::release::Releases;
use crate::tree::snapshot::Unit;
use crate::tree::store::Store;
use crate::tree::switch::{self, Inodes};

impl Draft<'_> {
    /// Nothing was switched: the candidate is forgotten, `project/` and `pillar/` become the live version's again.
    pub fn drop_candidate(&mut self, halt: Halt) -> Outcome {
        self.throw_ballast();
        // What is refused at once has begun nothing that could be taken back.
        let has_begun = halt.stage != Some(Stage::Accept) || self.candidate.is_some();
        if has_begun && let Err(error) = self.forget_candidate() {
            self.warn(format!("the checkouts could not be brought back: {}", error.reason));
        }
        self.outcome(halt.verdict(), halt)
    }

    /// The old services were stopped: they are started again, then as [`Draft::drop_candidate`].
    pub fn start_again(&mut self, halt: Halt) -> Outcome {
        self.throw_ballast();
        match self.start_stage(self.old_deployed().as_ref(), How::Again) {
            Ok(()) => self.drop_candidate(Halt { refused: false, ..halt }),
            Err(second) => {
                let reason =
                    format!("{}; then the old version could not be started again: {}", halt.reason, second.reason);
                self.needs_person(halt, reason)
            }
        }
    }

    /// The switch was made or may have been: everything goes back.
    pub fn roll_back(&mut self, halt: Halt, died: Option<&[Record]>) -> Outcome {
        self.throw_ballast();
        let verdict = if died.is_some() { Verdict::Interrupted } else { Verdict::RolledBack };
        let result = self.stage(Stage::Rollback, |draft| {
            draft.tell(Event::RollingBack {
                reason: halt.reason.clone(),
                stage: halt.stage.unwrap_or(Stage::Deploy),
                data: draft.touched,
            })?;
            fault::point("rollback.begin")?;
            draft.go_back(died.unwrap_or_default())?;
            Ok((
                (),
                Some(if draft.touched { "code, pillar and data".to_string() } else { "code and pillar".to_string() }),
            ))
        });
        let result = result.and_then(|()| self.start_old()).and_then(|()| self.forget_candidate());
        match result {
            Ok(()) => {
                let _ = fault::point("rollback.done");
                self.outcome(verdict, halt)
            }
            Err(second) => {
                let reason = format!("{}; and the rollback failed: {}", halt.reason, second.reason);
                self.needs_person(Halt { tail: second.tail, ..halt }, reason)
            }
        }
    }

    /// What is taken back is taken back to its end, and written down, whatever filled the disk.
    fn throw_ballast(&mut self) {
        cancel::hear_no_more();
        if let Err(error) = ballast::throw_if_low(self.site) {
            self.warn(format!("the ballast could not be given back: {}", error.one_line()));
        }
    }

    fn go_back(&mut self, records: &[Record]) -> Step {
        let next = self.next.clone();
        // What nothing of the new version was started of has no steps to stop it with.
        let stops = self.touched.then_some(&next);
        if let Err(error) = self.stop_stage(stops, &Staying::new()) {
            self.warn(format!("the failed version could not be stopped cleanly: {}", error.reason));
        }
        if self.touched {
            self.dump_failed()?;
        }
        fault::point("rollback.dumped")?;
        self.switch_back()?;
        fault::point("rollback.exchanged")?;
        self.tell(Event::RolledBack)?;
        if self.touched {
            let id = self.id().clone();
            match restore_state(records, &id) {
                Restore::NotBegun => self.restore_data(&id)?,
                Restore::Begun(units) => self.exchange_data(&units)?,
                Restore::Done => {}
            }
            self.restore_dumps(&id)?;
            self.tell(Event::DataRestored)?;
        }
        fault::point("rollback.data")?;
        Ok(())
    }

    /// Before any `restore` step may overwrite what the failed version wrote, the `backup` steps keep it.
    fn dump_failed(&mut self) -> Step {
        let point = super::activate::RestorePoint::read(self.site, self.id())?;
        let Some(commit) = point.as_ref().and_then(|point| point.dumped_by.clone()) else { return Ok(()) };
        let before = point.as_ref().and_then(|point| point.before.as_ref());
        let by = before.map_or_else(|| self.id().clone(), |before| before.id.clone());
        let with = point.and_then(|point| point.dumped_with);
        let version = Version::load_kept(self.site, &self.repo, &commit, with.as_ref(), (self.next.mode, &by))?;
        if self.steps_of(&version, Stage::Restore).is_empty() {
            return Ok(());
        }
        failed_data(self.site, self.id())?;
        let dumps = self.site.place.archive(self.id()).join("data.failed/dumps");
        self.dump(&version, &dumps).map(|_| ()).map_err(|error| {
            let dumps = dumps_of(self.site, self.id());
            Halt::failed(format!(
                "the failed version's data could not be dumped, so nothing was restored over them: {}",
                error.reason
            ))
            .tail(error.tail)
            .hint(format!("the dumps from before the deployment are in {}", dumps.display()))
        })
    }

    /// A person decided for the new version: what a failed rollback has taken back already is made live again, data too.
    ///
    /// # Errors
    /// If the new version is gone, or a tree was replaced by hand.
    pub fn go_forward(&mut self, records: &[Record]) -> Result<()> {
        let site = self.site;
        let manifest = Releases::new(&site.place).manifest(self.id())?;
        let Some(back) = records.iter().position(|r| matches!(r.event, Event::RollingBack { .. })) else {
            return self.keep_made();
        };
        let Some((how, before)) = self.switching else { return Ok(()) };
        let wanted = Inodes { run: before.spare, spare: before.run };
        let went_back = match how {
            SwitchKind::Exchange => switch::inodes(&site.place)? != wanted,
            SwitchKind::InPlace => true,
        };
        if went_back && let Some(old) = self.old_version().cloned() {
            let stopped = self.stop_stage(Some(&old), &Staying::new());
            self.warn_of("stop", stopped);
        }
        match how {
            SwitchKind::Exchange => {
                switch::ensure(&site.place, wanted)?;
                self.keep_made()?;
            }
            SwitchKind::InPlace => make_run(site, &manifest, None)?,
        }
        let restored = records[back..].iter().rev().find_map(|record| match &record.event {
            Event::RestoringData { units, .. } => Some(units),
            _ => None,
        });
        let exchanged: Vec<Unit> = restored
            .into_iter()
            .flatten()
            .map(|unit| Unit { path: unit.path.clone(), live: unit.snapshot, snapshot: unit.live })
            .collect();
        restore_units(site, &exchanged)?;
        if went_back {
            check_out_pillar(site, self.next.pillar_commit.as_ref())?;
            let started = self.start_stage(Some(&self.next_deployed()), How::Anew);
            self.warn_of("start", started);
        } else {
            self.start_services_again();
        }
        Ok(())
    }

    /// What states made for a version that a person keeps becomes a part of its release.
    fn keep_made(&mut self) -> Result<()> {
        self.take_made_before().map_err(|halt| Error::failed(halt.reason))
    }

    /// What serves is decided already: its services are made to run, and what does not come up is told.
    pub fn start_services_again(&mut self) {
        let next = self.next_deployed();
        let started = services::start(self.site, self.telling, Some(&next), How::Again, false);
        self.warn_of("start", started.map(|_| ()));
    }

    /// What fails while a person is at hand is told and changes nothing.
    fn warn_of(&mut self, what: &str, done: Step) {
        if let Err(halt) = done {
            self.warn(format!("{what} failed: {}", halt.reason));
        }
    }

    fn switch_back(&mut self) -> Step {
        let place = &self.site.place;
        let Some((how, before)) = self.switching else { return Ok(()) };
        match how {
            SwitchKind::Exchange => {
                switch::ensure(place, before)?;
            }
            SwitchKind::InPlace => {
                let manifest = self.live.as_ref().map(|live| live.manifest.clone()).unwrap_or_default();
                // The spare is not exchanged, so what the failed version has alone is kept now or never.
                let failed = place.archive(self.id()).join("run.failed/files");
                fs::ensure_dir(&failed, 0o700)?;
                let needed = Releases::new(place).needed_without(self.id())?;
                let dir = Dir::open(&failed)?;
                make_run(self.site, &manifest, Some(&FailedFiles { dir: &dir, needed: &needed }))?;
            }
        }
        Ok(())
    }

    fn start_old(&mut self) -> Step {
        let old = self.old_deployed();
        self.start_stage(old.as_ref(), How::Again)?;
        // Where nothing of the new version ran, the old services were only stopped.
        let Some(old) = old.filter(|_| self.touched) else { return Ok(()) };
        fault::point("rollback.started")?;
        self.health_stage(&old)
    }

    /// `project/` and `pillar/` become the live version's again; the record of the candidate goes, its manifest is kept with
    /// what failed.
    fn forget_candidate(&mut self) -> Step {
        self.listing = None;
        let store = Store::open(&self.site.place.store())?;
        let old = self.old_version().cloned();
        let source = match &old {
            Some(old) => self.source(old, &store)?,
            None => crate::tree::manifest::Manifest::default(),
        };
        self.check_out_project(&source, &store)?;
        check_out_pillar(self.site, old.as_ref().and_then(|old| old.pillar_commit.as_ref()))?;
        let releases = Releases::new(&self.site.place);
        let id = self.id().clone();
        if fs::exists(&self.site.place.release(&id)) {
            if let Ok(manifest) = releases.manifest(&id)
                && self.switching.is_some()
            {
                let failed = self.site.place.archive(&id).join("run.failed");
                fs::ensure_dir(&failed, 0o700)?;
                fs::write_durable(&failed.join("manifest"), manifest.to_text().as_bytes(), 0o600)?;
            }
            releases.remove(&id)?;
        }
        if self.switching.is_none() {
            Dir::open(&self.site.place.archives())?.remove_tree(Path::new(id.as_str()))?;
        }
        Ok(())
    }

    fn needs_person(&mut self, halt: Halt, reason: String) -> Outcome {
        let name = self.site.place.name();
        let mut hints = halt.hints;
        let data = if self.touched { " --with data" } else { "" };
        hints.push(format!("to try the rollback again: mc_project recover {name} --back{data}"));
        hints.push(format!("to keep the new version: mc_project recover {name} --forward"));
        self.outcome(Verdict::NeedsPerson, Halt { reason, hints, ..halt })
    }

    /// The outcome of a deployment that did not become live.
    #[must_use]
    pub fn outcome(&self, verdict: Verdict, halt: Halt) -> Outcome {
        Outcome {
            verdict,
            stage: halt.stage,
            reason: Some(halt.reason),
            serves: self.begin.serves.clone(),
            hints: self.site.hints(&halt.hints),
            exit: halt.exit.filter(|_| matches!(verdict, Verdict::Refused | Verdict::Failed)),
        }
    }

    /// Completes a commit whose record is on disk.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn finish(&mut self, serving: &crate::project::outcome::Serving) -> Result<()> {
        finish_commit(self.site, &self.repo, &self.begin, serving).map(|_| ())
    }
}

/// How far a restore of the data came before the worker died.
enum Restore {
    /// Nothing was exchanged.
    NotBegun,
    /// These paths were being exchanged.
    Begun(Vec<Unit>),
    /// All of them were.
    Done,
}

/// Reads from the journal how far the restore from our own restore point came, over all attempts: what was exchanged once must
/// never be exchanged back.
fn restore_state(records: &[Record], id: &DeploymentId) -> Restore {
    let mut state = Restore::NotBegun;
    for record in records {
        match &record.event {
            Event::RestoringData { units, from } if from == id => {
                let unit = |u: &RestoreUnit| Unit { path: u.path.clone(), live: u.live, snapshot: u.snapshot };
                state = Restore::Begun(units.iter().map(unit).collect());
            }
            Event::DataRestored => state = Restore::Done,
            _ => {}
        }
    }
    state
}
