//! Recovery: whatever was killed, whenever, ends as the old state or the new one.
//!
//! Before the commit's record the deployment goes back; after it, it is finished. Only a version that may have served for
//! more than a minute is not taken back unasked: then a person decides.

use std::time::Duration;

use super::draft::{Draft, Goal, Live, Version};
use super::halt::Halt;
use super::site::Site;
use super::worker::close;
use super::{ballast, parking, tidy};
use crate::project::ids::DeploymentId;
use crate::project::mode::Mode;
use crate::project::outcome::{Outcome, Serving, SwitchKind, Verdict};
use crate::project::request::Options;
use crate::project::stage::Stage;
use crate::report::event::{Begin, Event, Record};
use crate::report::journal::{self, Journal};
use crate::report::ledger::Last;
use crate::report::stream::Reporter;
use crate::sys::error::{Error, Kind, Result};
use crate::sys::lock::Lock;
use crate::sys::{clock, fault};
use crate::tree::release::Releases;
use crate::tree::snapshot::Snapshots;
use crate::tree::switch::Inodes;

/// How long a version may have served and still be taken back unasked, in milliseconds.
const UNASKED: u64 = 60_000;
/// The longest time between two heartbeats, in milliseconds.
const HEARTBEAT: u64 = 10_000;

/// What the journal says where a recovery begins.
const RECOVERING: &str = "the worker died; recovering";

/// A person's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Keep what is in `run`.
    Forward,
    /// Go back to the version before.
    Back {
        /// The data too.
        with_data: bool,
    },
}

/// Finishes an interrupted deployment, if there is one. The caller holds the lock.
///
/// # Errors
/// If even the recovery is impossible; the project is left for the next try.
pub fn finish_interrupted(site: &Site) -> Result<Option<Outcome>> {
    let outcome = finish(site)?;
    tidy::remove_refs_in_flight(site)?;
    tidy::remove_unfounded(site)?;
    Ok(outcome)
}

fn finish(site: &Site) -> Result<Option<Outcome>> {
    let mut left = None;
    if let Some(last) = Last::read(&site.place)?.filter(|last| last.open) {
        // Steps of the dead worker must not go on writing while we clean up.
        let theirs = format!("{}.", last.id);
        left = crate::sys::cgroup::remove_leftovers(&theirs).err();
        crate::sys::process::kill_marked(&theirs)?;
        super::salt::sweep(site)?;
    }
    parking::resume(site)?;
    let Some(last) = Last::read(&site.place)?.filter(|last| last.open) else { return Ok(None) };
    fault::point("recover.begin")?;
    ballast::throw_if_low(site)?;
    let records = journal::read(&site.place, &last.id).or_else(nothing_if_missing)?;
    let Some(begin) = begin_of(&records) else {
        // Killed before the journal's first record: nothing was begun.
        Last { open: false, ..last }.write(&site.place)?;
        return Ok(None);
    };
    let journal = Journal::open(&site.place, &last.id)?;
    let mut telling = Reporter::new(&site.place, &last.id, Some(journal));
    telling.emit(Event::Warning { text: RECOVERING.to_string() })?;
    if let Some(error) = left {
        telling.emit(Event::Warning { text: error.one_line() })?;
    }
    site.repo()?.break_locks(begin.refname.as_ref(), &begin.commit)?;
    let mut outcome = resolve(site, &mut telling, &begin, &records)?;
    if outcome.verdict == Verdict::Interrupted && outcome.hints.is_empty() && begin.target.is_none() {
        let again = format!("to try it again: push again, or mc_project deploy NAME --commit {}", begin.commit.short());
        outcome.hints = site.hints(&[again]);
    }
    fault::point("recover.done")?;
    close(site, &mut telling, &begin, &outcome, &Options::default())?;
    Ok(Some(outcome))
}

/// Whether the last recovery of a deployment has run the `start` stage of what serves.
///
/// # Errors
/// If its journal cannot be read.
pub fn has_started(site: &Site, id: &DeploymentId) -> Result<bool> {
    let records = journal::read(&site.place, id).or_else(nothing_if_missing)?;
    let since = records
        .iter()
        .rev()
        .take_while(|record| !matches!(&record.event, Event::Warning { text } if text == RECOVERING));
    Ok(since.into_iter().any(|record| matches!(record.event, Event::StageDone { stage: Stage::Start, .. })))
}

/// Called by the watcher when the worker died: recovers at once, and tells those who follow the dead worker's deployment.
///
/// # Errors
/// If the recovery is impossible.
pub fn after_death(site: &Site, id: &DeploymentId) -> Result<()> {
    let _lock = Lock::take(&site.place.lock(), None, |_| Ok(()))?;
    super::queue::sweep(&site.place)?;
    let outcome = finish_interrupted(site)?;
    if outcome.is_none() {
        // It died before it had begun anything: its followers still wait for an end.
        let outcome = Outcome {
            verdict: Verdict::Interrupted,
            stage: None,
            reason: Some("the worker died".to_string()),
            serves: site.serves()?,
            hints: Vec::new(),
            exit: None,
        };
        Reporter::new(&site.place, id, None).tell(Event::End { outcome });
    }
    Reporter::new(&site.place, id, None).tell(Event::Closed);
    super::outbox::send_after_deployment(site)
}

/// Carries out a person's decision on the last deployment. The caller holds the lock.
///
/// # Errors
/// If no decision is needed.
pub fn decide(site: &Site, decision: Decision) -> Result<Outcome> {
    let last = Last::read(&site.place)?;
    let Some(last) = last.filter(|last| last.needs_person.is_some()) else {
        return Err(
            Error::usage("nothing waits for a decision").hint(format!("mc_project status {}", site.place.name()))
        );
    };
    let records = journal::read(&site.place, &last.id)?;
    let begin =
        begin_of(&records).ok_or_else(|| Error::failed(format!("the journal of {} has no beginning", last.id)))?;
    ballast::throw_if_low(site)?;
    let mut telling = Reporter::new(&site.place, &last.id, Some(Journal::open(&site.place, &last.id)?));
    Last { open: true, needs_person: None, ..last }.write(&site.place)?;
    let mut draft = rebuild(site, &mut telling, &begin, &records)?;
    let outcome = match decision {
        Decision::Forward => {
            let serving = Serving { id: begin.id.clone(), commit: begin.commit.clone() };
            draft.go_forward(&records)?;
            draft.telling.emit(Event::Commit { serves: serving.clone() })?;
            draft.finish(&serving)?;
            super::deploy::deployed(serving)
        }
        Decision::Back { with_data } => {
            draft.touched = with_data;
            draft.roll_back(Halt::failed("a person decided to go back"), Some(&records))
        }
    };
    close(site, &mut telling, &begin, &outcome, &Options::default())?;
    Ok(outcome)
}

fn resolve(site: &Site, telling: &mut Reporter, begin: &Begin, records: &[Record]) -> Result<Outcome> {
    let is = |wanted: fn(&Event) -> bool| records.iter().any(|record| wanted(&record.event));
    if let Some(outcome) = records.iter().rev().find_map(|record| match &record.event {
        Event::End { outcome } => Some(outcome.clone()),
        _ => None,
    }) {
        return Ok(outcome);
    }
    let mut draft = match rebuild(site, telling, begin, records) {
        Ok(draft) => draft,
        // Nothing that runs was touched: what was to be deployed need not even be readable.
        Err(error)
            if !is(|event| matches!(event, Event::Stopping | Event::Switching { .. } | Event::Commit { .. })) =>
        {
            let reason = format!("the worker died; what it was to deploy cannot be read: {}", error.one_line());
            let stage = last_stage(records);
            let (serves, hints) = (begin.serves.clone(), Vec::new());
            return Ok(Outcome {
                verdict: Verdict::Interrupted,
                stage,
                reason: Some(reason),
                serves,
                hints,
                exit: None,
            });
        }
        Err(error) => return Err(error),
    };
    if let Some(serving) = records.iter().find_map(|record| match &record.event {
        Event::Commit { serves } => Some(serves.clone()),
        _ => None,
    }) {
        draft.finish(&serving)?;
        draft.start_services_again();
        return Ok(super::deploy::deployed(serving));
    }
    let halt = Halt { stage: last_stage(records), ..Halt::failed("the worker died") };
    if begin.mode == Mode::Editable {
        return draft.resolve_editable(halt, records);
    }
    if !is(|event| matches!(event, Event::Switching { .. })) {
        let outcome = if is(|event| matches!(event, Event::Stopping)) {
            draft.start_again(halt)
        } else {
            draft.drop_candidate(halt)
        };
        let verdict = if outcome.verdict == Verdict::NeedsPerson { Verdict::NeedsPerson } else { Verdict::Interrupted };
        return Ok(Outcome { verdict, ..outcome });
    }
    let has_begun_to_go_back = is(|event| matches!(event, Event::RollingBack { .. }));
    let now = Now { uptime: clock::since_boot(), since_start: clock::since_start(), boot: clock::boot_id() };
    let served = served_for(records, &now);
    if served > UNASKED && !has_begun_to_go_back {
        return Ok(ask(site, &draft, served));
    }
    Ok(draft.roll_back(halt, Some(records)))
}

/// A version that may have served too long: nothing is taken back, both commands are told.
fn ask(site: &Site, draft: &Draft<'_>, served: u64) -> Outcome {
    let reason = format!(
        "the worker died before the commit, and {} may have served for {} s since",
        draft.begin.commit.short(),
        served / 1000
    );
    let mut outcome = draft.outcome(Verdict::NeedsPerson, Halt::failed(reason));
    let name = site.place.name();
    outcome.hints = site.hints(&[
        format!("to keep the new version: mc_project recover {name} --forward"),
        format!("to go back: mc_project recover {name} --back, or with the data as they were: --back --with data"),
    ]);
    outcome
}

/// The moment at which it is asked how long a version has served.
#[derive(Debug, Clone)]
pub struct Now {
    /// The time since boot.
    pub uptime: Duration,
    /// The time since this system, perhaps a container, started.
    pub since_start: Duration,
    /// Which boot it is.
    pub boot: String,
}

/// The longest time that the new version may have served, in milliseconds; 0 if the switch is not recorded.
#[must_use]
pub fn served_for(records: &[Record], now: &Now) -> u64 {
    let mut since: Option<(&str, u64)> = None;
    let mut seen = 0;
    for record in records {
        match &record.event {
            Event::Switched { boot, uptime_ms } => {
                since = Some((boot, *uptime_ms));
                seen = *uptime_ms;
            }
            Event::Heartbeat { uptime_ms, .. } => seen = seen.max(*uptime_ms),
            _ => {}
        }
    }
    let Some((switched_boot, switched)) = since else { return 0 };
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if switched_boot == now.boot {
        millis(now.uptime).saturating_sub(switched)
    } else {
        seen.saturating_sub(switched).saturating_add(HEARTBEAT).saturating_add(millis(now.since_start))
    }
}

/// Makes the draft of a deployment again from its journal.
fn rebuild<'a>(site: &'a Site, telling: &'a mut Reporter, begin: &Begin, records: &[Record]) -> Result<Draft<'a>> {
    let repo = site.repo()?;
    let id = begin.target.as_ref().unwrap_or(&begin.id);
    let next = Version::load_kept(site, &repo, &begin.commit, begin.pillar.as_ref(), (begin.mode, id))?;
    let live = begin.serves.as_ref().map(|serving| Live::load(site, &repo, serving)).transpose()?;
    let is = |wanted: fn(&Event) -> bool| records.iter().any(|record| wanted(&record.event));
    let goal = match &begin.target {
        Some(id) => Goal::Release { id: id.clone(), data_of: None },
        None => Goal::Commit,
    };
    let mut draft = Draft::new(site, repo, telling, begin, (goal, next, live));
    draft.touched = is(|event| matches!(event, Event::Touched));
    draft.switching = switching(records);
    Ok(draft)
}

/// The stage that was under way.
fn last_stage(records: &[Record]) -> Option<crate::project::stage::Stage> {
    records.iter().rev().find_map(|record| match record.event {
        Event::Stage { stage } => Some(stage),
        _ => None,
    })
}

/// How the switch was to be made, if it was begun.
fn switching(records: &[Record]) -> Option<(SwitchKind, Inodes)> {
    records.iter().rev().find_map(|record| match record.event {
        Event::Switching { how, run_ino, spare_ino } => Some((how, Inodes { run: run_ino, spare: spare_ino })),
        _ => None,
    })
}

/// How the deployment of this journal began.
#[must_use]
pub fn begin_of(records: &[Record]) -> Option<Begin> {
    records.iter().find_map(|record| match &record.event {
        Event::Begin(begin) => Some((**begin).clone()),
        _ => None,
    })
}

fn nothing_if_missing(error: Error) -> Result<Vec<Record>> {
    if error.is_not_found() { Ok(Vec::new()) } else { Err(error) }
}

/// Refuses work on a project that waits for a person.
///
/// # Errors
/// [`Kind::NeedsPerson`] with both commands.
pub fn refuse_if_person_needed(site: &Site) -> Result<()> {
    let Some(reason) = Last::read(&site.place)?.and_then(|last| last.needs_person) else { return Ok(()) };
    let name = site.place.name();
    Err(Error::new(Kind::NeedsPerson, format!("a person is needed: {reason}")).hint(format!(
        "{} recover {name} --forward keeps the new version, --back [--with data] goes back",
        site.command()
    )))
}

/// The restore point whose data a rollback to `release` with data needs: the state of the data when that release was last
/// replaced.
///
/// # Errors
/// If no restore point has it.
pub fn data_point(site: &Site, release: &DeploymentId) -> Result<DeploymentId> {
    let points = super::activate::RestorePoint::all(site)?;
    let found = points.iter().rev().find(|point| point.before.as_ref().is_some_and(|before| before.id == *release));
    let snapshots = Snapshots::new(&site.place, site.own);
    match found {
        Some(point) if snapshots.manifest(&point.id)?.is_some() => Ok(point.id.clone()),
        _ if is_kept(site, release) => Err(Error::refused(format!("no kept restore point has the data of {release}"))
            .hint(format!("roll back without data: mc_project rollback {} --to {release}", site.place.name()))),
        _ => Err(Error::refused(format!("release {release} is not kept"))
            .hint(format!("mc_project release list {} shows those that are", site.place.name()))),
    }
}

/// Whether a release is still recorded.
#[must_use]
pub fn is_kept(site: &Site, id: &DeploymentId) -> bool {
    Releases::new(&site.place).provenance(id).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(event: Event) -> Record {
        Record { at: jiff::Timestamp::UNIX_EPOCH, event }
    }

    fn switched_and_seen(boot: &str) -> [Record; 2] {
        let boot = boot.to_string();
        [
            at(Event::Switched { boot: boot.clone(), uptime_ms: 500_000 }),
            at(Event::Heartbeat { boot, uptime_ms: 503_000 }),
        ]
    }

    #[test]
    fn a_restart_counts_from_its_own_beginning_and_not_from_the_machines() {
        let now = |boot: &str| Now {
            uptime: Duration::from_mins(10),
            since_start: Duration::from_secs(4),
            boot: boot.to_string(),
        };
        assert_eq!(served_for(&switched_and_seen("a"), &now("a")), 100_000);
        // What was seen before, one heartbeat that may be missing, and the time since.
        assert_eq!(served_for(&switched_and_seen("a"), &now("b")), 3_000 + HEARTBEAT + 4_000);
        assert_eq!(served_for(&[], &now("a")), 0);
    }
}
