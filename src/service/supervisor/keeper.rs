//! All instances of a project in the supervisor's care, what is remembered of them, and the job that is being done.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Surroundings;
use super::charge::Charge;
use super::job::{Job, Progress};
use super::memory::Memory;
use super::output::Output;
use crate::project::recipe::service::Unchanged;
use crate::service::backend::Look;
use crate::service::definition::{Definition, Instance};
use crate::sys::clock;
use crate::sys::error::Result;
use crate::sys::mask::Mask;
use crate::sys::process::{Run, StepStatus};

/// When what could not be written down is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The instances and the job.
pub struct Keeper {
    around: Surroundings,
    memory: Memory,
    charges: Vec<Charge>,
    job: Option<Job>,
    is_dirty: bool,
    unsaved_since: Option<Instant>,
}

impl Keeper {
    /// Goes on where the supervisor before has ended, however it did.
    ///
    /// # Errors
    /// If its state cannot be read, or the disk is unusable.
    pub fn take_over(dir: &Path, logs: &Path) -> Result<Self> {
        let mut memory = Memory::read(dir)?.unwrap_or_else(Memory::of_nothing);
        let is_this_boot = memory.boot == clock::boot_id();
        let around = Surroundings {
            id: memory.id.clone(),
            dir: dir.to_path_buf(),
            logs: logs.to_path_buf(),
            mask: mask_of(memory.records.iter().map(|record| &record.definition)),
        };
        let records = std::mem::take(&mut memory.records);
        let known: Vec<String> = records.iter().filter_map(|r| Some(r.live.as_ref()?.run.marker.clone())).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        // What was started and could not be written down any more.
        Run::kill(&Run::strays(&format!("{}.", around.id), &known)?);
        let adopt = |record| Charge::adopt(record, &around, is_this_boot);
        let charges = records.into_iter().map(adopt).collect::<Result<_>>()?;
        memory.boot = clock::boot_id();
        Ok(Self { around, memory, charges, job: None, is_dirty: true, unsaved_since: None })
    }

    /// Begins to make these definitions what runs.
    ///
    /// # Errors
    /// If a definition cannot be described.
    pub fn converge(&mut self, wanted: Vec<Definition>) -> Result<()> {
        let mut start = Vec::new();
        for definition in &wanted {
            let charge = self.charges.iter().find(|charge| charge.definition().instance == definition.instance);
            let digest = definition.digest()?;
            let is_left = definition.unchanged == Unchanged::Leave;
            if !charge.is_some_and(|charge| is_left && charge.is_running() && charge.digest() == digest) {
                start.push(definition.instance.clone());
            }
        }
        let named = |instance: &Instance| wanted.iter().any(|definition| definition.instance == *instance);
        let instances = self.charges.iter().map(|charge| charge.definition().instance.clone());
        let stop: Vec<Instance> = instances.filter(|i| start.contains(i) || !named(i)).collect();
        // Those of before may be in output that is still to come.
        let known = self.charges.iter().map(Charge::definition);
        self.around.mask = mask_of(known.chain(&wanted));
        // Not the new ones yet: if we are killed meanwhile, the next supervisor starts nothing that is half changed.
        self.want(&stop, false);
        self.take_on(Job::new(&stop, &start, Some(wanted)));
        Ok(())
    }

    /// Begins to stop these.
    pub fn stop(&mut self, which: &[Instance]) {
        self.want(which, false);
        let which = self.known(which);
        self.take_on(Job::new(&which, &[], None));
    }

    /// Begins to start these.
    pub fn start(&mut self, which: &[Instance]) {
        self.want(which, true);
        let which: Vec<Instance> = self.known(which);
        let rests = |instance: &&Instance| !self.charge(instance).is_some_and(Charge::is_running);
        let which: Vec<Instance> = which.iter().filter(rests).cloned().collect();
        self.take_on(Job::new(&[], &which, None));
    }

    /// Begins to stop everything and to forget it.
    pub fn forget(&mut self) {
        let all: Vec<Instance> = self.charges.iter().map(|charge| charge.definition().instance.clone()).collect();
        self.want(&all, false);
        self.take_on(Job::new(&all, &[], Some(Vec::new())));
    }

    fn take_on(&mut self, job: Job) {
        self.job = Some(job);
        self.is_dirty = true;
        self.save(Instant::now());
    }

    fn charge(&self, instance: &Instance) -> Option<&Charge> {
        self.charges.iter().find(|charge| charge.definition().instance == *instance)
    }

    /// Those of them that there are, in the order of the definitions.
    fn known(&self, which: &[Instance]) -> Vec<Instance> {
        let all = self.charges.iter().map(|charge| charge.definition().instance.clone());
        all.filter(|instance| which.contains(instance)).collect()
    }

    fn want(&mut self, which: &[Instance], wanted: bool) {
        let ours = |charge: &&mut Charge| which.contains(&charge.definition().instance);
        self.charges.iter_mut().filter(ours).for_each(|charge| charge.want(wanted));
    }

    /// Tells what has ended; `reap` waits for children of ours that did, and says how.
    pub fn ended(&mut self, reap: impl FnOnce() -> Vec<(i32, StepStatus)>) {
        // Before the children are waited for: one that ends right after that is told how with the next call.
        let missing = self.charges.iter().enumerate().filter(|(_, charge)| charge.is_missing());
        let missing: Vec<usize> = missing.map(|(index, _)| index).collect();
        for (pid, status) in reap() {
            if let Some(charge) = self.charges.iter_mut().find(|charge| charge.first() == Some(pid)) {
                charge.ended(Some(status));
                self.is_dirty = true;
            }
        }
        for index in missing {
            self.charges[index].ended(None);
            self.is_dirty = true;
        }
    }

    /// Does what the time has come for.
    pub fn tick(&mut self, now: Instant) {
        for charge in &mut self.charges {
            let before = charge.stamp();
            charge.tick(now, &self.around);
            self.is_dirty |= charge.stamp() != before;
        }
        self.save(now);
    }

    /// Goes on with the job; `None` if there is none.
    pub fn go_on(&mut self) -> Option<Progress> {
        let mut job = self.job.take()?;
        let progress = self.advance(&mut job);
        match &progress {
            Ok(Progress::Going) => self.job = Some(job),
            Ok(Progress::Done | Progress::Failed(_)) => {
                let has_failed = !matches!(progress, Ok(Progress::Done));
                let fresh = job.fresh();
                for charge in self.charges.iter_mut().filter(|one| fresh.contains(&one.definition().instance)) {
                    charge.trust();
                    if has_failed {
                        charge.try_again_later();
                    }
                }
                self.is_dirty = true;
            }
            _ => {}
        }
        Some(progress.unwrap_or_else(|error| Progress::Stuck(error.one_line())))
    }

    fn advance(&mut self, job: &mut Job) -> Result<Progress> {
        match job.stop(&mut self.charges) {
            Err(stuck) => return Ok(Progress::Stuck(stuck)),
            Ok(false) => return Ok(Progress::Going),
            Ok(true) => {}
        }
        if let Some(definitions) = job.definitions.take() {
            self.define(definitions)?;
        }
        let before: Vec<_> = self.charges.iter().map(Charge::stamp).collect();
        let progress = job.start(&mut self.charges, &self.around);
        self.is_dirty |= before != self.charges.iter().map(Charge::stamp).collect::<Vec<_>>();
        self.save(Instant::now());
        Ok(progress)
    }

    /// From now on exactly these hold; everything else has stopped.
    fn define(&mut self, definitions: Vec<Definition>) -> Result<()> {
        let mut fresh = Vec::new();
        for definition in &definitions {
            let is_new = self.charge(&definition.instance).is_none();
            fresh.push(is_new.then(|| Charge::new(definition.clone(), &self.around)).transpose()?);
        }
        // From here on nothing fails that leaves one of them in nobody's care.
        let mut old = std::mem::take(&mut self.charges);
        for (definition, fresh) in definitions.into_iter().zip(fresh) {
            let found = old.iter().position(|charge| charge.definition().instance == definition.instance);
            let Some(mut charge) = fresh.or_else(|| found.map(|at| old.remove(at))) else { continue };
            charge.redefine(definition)?;
            charge.want(true);
            self.charges.push(charge);
        }
        for charge in old {
            Output::remove(&self.around.dir, &charge.definition().instance)?;
        }
        self.is_dirty = true;
        self.save(Instant::now());
        Ok(())
    }

    /// The last lines of an instance.
    #[must_use]
    pub fn recent(&self, instance: &Instance) -> Vec<Vec<u8>> {
        self.charge(instance).map(|charge| charge.recent().map(<[u8]>::to_vec).collect()).unwrap_or_default()
    }

    /// Whether a job is being done.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.job.is_some()
    }

    /// Whether nothing runs and nothing is to run.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.job.is_none() && !self.is_dirty && self.charges.iter().all(Charge::rests)
    }

    /// Whether there is nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.charges.is_empty()
    }

    /// How they are.
    #[must_use]
    pub fn looks(&self) -> Vec<Look> {
        self.charges.iter().map(Charge::look).collect()
    }

    /// What is to be polled.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.charges.iter().flat_map(Charge::descriptors)
    }

    /// When something has to be done, if nothing happens before.
    #[must_use]
    pub fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let of_job = self.job.as_ref().map(|_| now + Job::pause());
        let unsaved = self.unsaved_since.map(|since| since + AGAIN);
        self.charges.iter().filter_map(|charge| charge.wakes_at(now)).chain(of_job).chain(unsaved).min()
    }

    /// Writes down what has changed. Where that is impossible (a full disk) services go on, and it is tried again.
    fn save(&mut self, now: Instant) {
        if !self.is_dirty || self.unsaved_since.is_some_and(|since| now < since + AGAIN) {
            return;
        }
        self.memory.records = self.charges.iter().map(Charge::record).collect();
        match self.memory.write(&self.around.dir) {
            Ok(()) => {
                self.is_dirty = false;
                self.unsaved_since = None;
            }
            Err(error) => {
                self.unsaved_since = Some(now);
                tracing::warn!("{}", error.one_line());
            }
        }
        self.memory.records = Vec::new();
    }
}

/// What no log may hold of these.
fn mask_of<'a>(definitions: impl Iterator<Item = &'a Definition>) -> Mask {
    let secrets: BTreeSet<String> = definitions.flat_map(Definition::all_secrets).collect();
    Mask::new(&secrets.into_iter().collect::<Vec<_>>())
}
