//! The worker: takes the lock, finishes what was interrupted, does what is asked, and closes what it opened.

use std::time::{Duration, Instant};

use super::activate::{finish_commit, secure_commit};
use super::ballast;
use super::draft::{Draft, Goal, Live, Version};
use super::halt::Halt;
use super::queue::Ticket;
use super::recover::{self, Decision, data_point, refuse_if_person_needed};
use super::settle::{Settling, inflight_ref};
use super::site::Site;
use super::{boxes, cancel, deploy, editable, outbox, parking, plan, tell, tidy};
use crate::project::ids::{DeploymentId, ObjectId};
use crate::project::mode::Mode;
use crate::project::outcome::{Outcome, Serving, Verdict};
use crate::project::recipe::Recipe;
use crate::project::request::{Options, Request, Want};
use crate::project::stage::Stage;
use crate::report::event::{Begin, Event, Work};
use crate::report::history;
use crate::report::journal::Journal;
use crate::report::ledger::Last;
use crate::report::stream::Reporter;
use crate::sys::error::{Error, Kind, Result};
use crate::sys::git::Repo;
use crate::sys::lock::{Holder, Lock};
use crate::sys::process::processes_using;
use crate::sys::threads::{self, Meanwhile};
use crate::sys::{clock, fault, fs};

/// Does what a request wants and returns the outcome; everything is told through the deployment's events.
pub fn work(site: &Site, request: &Request) -> Outcome {
    let mut telling = Reporter::new(&site.place, &request.id, None);
    let worked = under_lock(site, request, &mut telling);
    let outcome = match worked {
        Ok(outcome) => outcome,
        Err(halt) => {
            let outcome = refused(site, halt);
            let _ = telling.emit(Event::End { outcome: outcome.clone() });
            outcome
        }
    };
    let _ = telling.emit(Event::Closed);
    if let Err(error) = outbox::send_after_deployment(site) {
        tracing::warn!("mail: {error}");
    }
    outcome
}

fn refused(site: &Site, halt: Halt) -> Outcome {
    let needs_person = halt.exit == Some(Kind::NeedsPerson.exit_code() as u8);
    Outcome {
        verdict: if needs_person { Verdict::NeedsPerson } else { halt.verdict() },
        stage: halt.stage,
        reason: Some(halt.reason),
        serves: site.serves().ok().flatten(),
        hints: site.hints(&halt.hints),
        exit: halt.exit,
    }
}

/// What the holder of a project's lock says that it does.
const DEPLOYS: &str = "deploys";
const ROLLS_BACK: &str = "rolls back";

/// Whether whoever holds a project's lock makes a deployment, and does not finish one that was interrupted.
#[must_use]
pub fn deploys(holder: &Holder) -> bool {
    [DEPLOYS, ROLLS_BACK].iter().any(|what| holder.what.starts_with(what))
}

fn under_lock(site: &Site, request: &Request, telling: &mut Reporter) -> Result<Outcome, Halt> {
    let refname = request.update.as_ref().map(|update| update.name.as_str());
    let commit = request.update.as_ref().map(|update| &update.new);
    if !matches!(request.want, Want::Deploy { .. }) {
        // Even the place in the queue is a file.
        ballast::throw_if_low(site)?;
    }
    let ticket = Ticket::take(&site.place, refname, commit)?;
    let deadline = request.wait_seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    let mut told = String::new();
    let mut lock = Lock::take(&site.place.lock(), deadline, |holder| wait(telling, &ticket, holder, &mut told))?;
    let what = match &request.want {
        Want::Deploy { commit } => format!("{DEPLOYS} {}", commit.short()),
        Want::Rollback { .. } => ROLLS_BACK.to_string(),
        Want::Recover { .. } => "recovers".to_string(),
    };
    let since = clock::now().strftime("%H:%M:%S UTC").to_string();
    lock.describe(&Holder { what, id: Some(request.id.to_string()), pid: std::process::id(), since })?;
    if let Some(newer) = ticket.superseded_by()? {
        return Err(Halt::refused(format!("superseded by {}, which was pushed later", newer.short())));
    }
    tidy::remove_temporary_files(site)?;
    cancel::forget_all_but(site, Some(&request.id))?;
    let resumed = parking::resume(site)?;
    for text in &resumed {
        let _ = telling.emit(Event::Note { text: text.clone() });
    }
    let recovered = recover::finish_interrupted(site)?;
    let was_interrupted = recovered.is_some();
    if let Some(outcome) = &recovered {
        let _ = telling
            .emit(Event::Note { text: format!("an interrupted deployment was finished first: {}", outcome.line()) });
    }
    let outcome = match &request.want {
        Want::Deploy { commit } => begin_deploy(site, request, commit, telling),
        Want::Rollback { to, with_data } => begin_rollback(site, request, to.as_deref(), *with_data, telling),
        Want::Recover { forward, with_data } => {
            let decision =
                forward.map(|f| if f { Decision::Forward } else { Decision::Back { with_data: *with_data } });
            let outcome = match decision {
                Some(decision) => recover::decide(site, decision)?,
                None => recovered.unwrap_or(nothing_to_do(site, &resumed)?),
            };
            telling.emit(Event::End { outcome: outcome.clone() })?;
            Ok(outcome)
        }
    }?;
    // The place in the queue is kept to the end: who waited before us must see that a newer push had its turn.
    drop(ticket);
    drop(lock);
    if was_interrupted {
        // What the dead worker had started may have held its place in the queue a moment longer than itself.
        if let Err(error) = super::queue::sweep(&site.place) {
            tracing::warn!("{}", error.one_line());
        }
    }
    Ok(outcome)
}

fn nothing_to_do(site: &Site, resumed: &[String]) -> Result<Outcome> {
    refuse_if_person_needed(site)?;
    let serves = site.serves()?;
    Ok(Outcome {
        verdict: Verdict::Unchanged,
        stage: None,
        reason: Some(if resumed.is_empty() { "nothing was interrupted".into() } else { resumed.join("; ") }),
        serves,
        hints: vec![],
        exit: None,
    })
}

fn wait(telling: &mut Reporter, ticket: &Ticket, holder: Option<&Holder>, told: &mut String) -> Result<()> {
    if let Some(newer) = ticket.superseded_by()? {
        return Err(Error::refused(format!("superseded by {}, which was pushed later", newer.short())));
    }
    let holder = holder
        .map_or_else(|| "another command".to_string(), |h| format!("process {} {} since {}", h.pid, h.what, h.since));
    if *told != holder {
        told.clone_from(&holder);
        telling.emit(Event::Waiting { holder })?;
    }
    Ok(())
}

fn begin_deploy(site: &Site, request: &Request, commit: &ObjectId, telling: &mut Reporter) -> Result<Outcome, Halt> {
    refuse_if_person_needed(site)?;
    let repo = site.repo()?;
    let commit = repo
        .peel_to_commit(commit)?
        .ok_or_else(|| Halt::refused(format!("{} is no commit of this repository", commit.short())))?;
    let old = check_ref(&repo, request, &commit)?;
    let mode = match request.options.mode {
        Some(mode) if !site.config.modes.contains(&mode) => {
            let allowed: Vec<&str> = site.config.modes.iter().map(|mode| mode.name()).collect();
            return Err(Halt::refused(format!(
                "this node does not allow mode={}; it allows {}",
                mode.name(),
                allowed.join(", ")
            )));
        }
        Some(mode) => mode,
        None => site.config.mode,
    };
    let pillar = pillar_head(site)?;
    let left = leave_editable(site, request, (&repo, &commit, pillar.as_ref(), mode), telling)?;
    let live = live_in(site, &repo, mode)?;
    let is_live = live.as_ref().is_some_and(|live| live.serving.commit == commit && live.provenance.pillar == pillar)
        && (mode != Mode::Editable || editable::is_at(site, &commit)?);
    if request.options.plan {
        let version = Version::load(site, &repo, &commit, pillar.as_ref(), mode)?;
        boxes::refuse_demands(site, &version.recipe)?;
        return plan::show(site, &repo, &version, live.as_ref(), telling);
    }
    if left || mode != site.config.mode {
        parking::ensure_layout(site, mode)?;
    }
    if is_live && !request.options.deploy && !request.options.stage_only {
        return Ok(unchanged(&repo, request, &commit, live.as_ref(), telling)?);
    }
    let info = repo.commit(&commit)?;
    let mut begin = beginning(site, request, (commit, info.subject, info.author), mode)?;
    begin.pillar = pillar;
    begin.old = old;
    begin.serves = live.as_ref().map(|live| live.serving.clone());
    run(site, request, &begin, Goal::Commit, live, telling)
}

/// A push in another mode ends editable mode, unless it only looks or cannot be deployed at all. Tells whether it did.
fn leave_editable(
    site: &Site,
    request: &Request,
    (repo, commit, pillar, mode): (&Repo, &ObjectId, Option<&ObjectId>, Mode),
    telling: &mut Reporter,
) -> Result<bool, Halt> {
    if mode == Mode::Editable || request.options.plan || parking::read(site)?.is_none() {
        return Ok(false);
    }
    boxes::refuse_demands(site, &Version::load(site, repo, commit, pillar, mode)?.recipe)?;
    if let Some(left) = parking::leave(site, telling)? {
        telling.emit(Event::Warning { text: left.words() })?;
    }
    Ok(true)
}

/// What serves. For the plan of a push that would end editable mode: what would serve then.
fn live_in(site: &Site, repo: &Repo, mode: Mode) -> Result<Option<Live>> {
    let serving = match parking::read(site)? {
        Some(record) if mode != Mode::Editable => record.cooked,
        _ => site.serves()?,
    };
    serving.map(|serving| Live::open(site, repo, &serving)).transpose()
}

fn begin_rollback(
    site: &Site,
    request: &Request,
    to: Option<&str>,
    with_data: bool,
    telling: &mut Reporter,
) -> Result<Outcome, Halt> {
    refuse_if_person_needed(site)?;
    parking::refuse_rollback(site)?;
    let repo = site.repo()?;
    let entries = history::read(&site.place, None)?;
    let serving = site.serves()?.ok_or_else(|| Halt::refused("nothing is deployed yet"))?;
    let target = history::find_serving(&entries, Some(&serving), to.unwrap_or("-1"))?.id.clone();
    if target == serving.id {
        return Err(Halt::refused(format!("{target} is live already"))
            .hint("mc_project history NAME lists what can be rolled back to"));
    }
    let releases = crate::tree::release::Releases::new(&site.place);
    let provenance = releases.provenance(&target)?;
    let data_of = if with_data { Some(data_point(site, &target)?) } else { None };
    let live = Live::open(site, &repo, &serving)?;
    let info = repo.commit(&provenance.commit)?;
    let mut begin = beginning(site, request, (provenance.commit, info.subject, info.author), provenance.mode)?;
    begin.work = Work::Rollback;
    begin.pillar = provenance.pillar;
    begin.serves = Some(serving);
    begin.target = Some(target.clone());
    begin.with_data = with_data;
    run(site, request, &begin, Goal::Release { id: target, data_of }, Some(live), telling)
}

fn beginning(site: &Site, request: &Request, what: (ObjectId, String, String), mode: Mode) -> Result<Begin> {
    let seq = Last::read(&site.place)?.map_or(0, |last| last.seq) + 1;
    let update = request.update.as_ref();
    Ok(Begin {
        id: request.id.clone(),
        seq,
        project: site.place.name().to_string(),
        work: Work::Deploy,
        mode,
        environment: site.config.environment,
        commit: what.0,
        subject: what.1,
        author: what.2,
        pillar: None,
        refname: update.map(|update| update.name.clone()),
        old: update.map(|update| update.old.clone()),
        moves_ref: update.is_some_and(|update| update.moved_by_worker),
        pusher: request.pusher.clone(),
        key: request.key.clone(),
        reason: request.options.reason.clone(),
        serves: None,
        target: None,
        with_data: false,
        push: request.push.clone(),
    })
}

/// Opens the deployment, runs it, closes it.
fn run(
    site: &Site,
    request: &Request,
    begin: &Begin,
    goal: Goal,
    live: Option<Live>,
    telling: &mut Reporter,
) -> Result<Outcome, Halt> {
    if fs::exists(&site.place.journal(&begin.id)) {
        return Err(Halt::refused(format!("{} has been used already", begin.id)));
    }
    // On disk with the first line of the journal that has to be.
    Last::opened(begin.seq, begin.id.clone(), begin.serves.clone()).write_soon(&site.place)?;
    telling.set_journal(Journal::create(&site.place, &begin.id)?);
    telling.emit(Event::Begin(Box::new(begin.clone())))?;
    fault::point("begin.recorded")?;
    cancel::hear(site, &begin.id);
    let outcome = attempt(site, request, begin, goal, live, telling);
    cancel::hear_no_more();
    if let Err(error) = close(site, telling, begin, &outcome, &request.options) {
        // The outcome is certain and told; what is left to record is done by the next command, which finds us open.
        telling.tell(Event::Warning { text: format!("the end is not recorded yet: {}", error.one_line()) });
    }
    if let Err(error) = cancel::forget_all_but(site, None) {
        tracing::warn!("{}", error.one_line());
    }
    Ok(outcome)
}

fn attempt(
    site: &Site,
    request: &Request,
    begin: &Begin,
    goal: Goal,
    live: Option<Live>,
    telling: &mut Reporter,
) -> Outcome {
    let loaded = site.repo().and_then(|repo| {
        repo.hold(&inflight_ref(&begin.id)?, &begin.commit)?;
        let pillar = begin.pillar.as_ref();
        let next = match &begin.target {
            Some(id) => Version::load_kept(site, &repo, &begin.commit, pillar, (begin.mode, id))?,
            None => Version::load(site, &repo, &begin.commit, pillar, begin.mode)?,
        };
        boxes::refuse_demands(site, &next.recipe)?;
        Ok((repo, next))
    });
    let (repo, next) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            let mut halt = Halt::from(error);
            halt.stage = Some(Stage::Accept);
            return Outcome { serves: begin.serves.clone(), ..refused(site, halt) };
        }
    };
    let mut draft = Draft::new(site, repo, telling, begin, (goal, next, live));
    draft.options = request.options.clone();
    deploy::deploy(&mut draft)
}

/// Records the end, adds the line to the history, settles, and only then closes the deployment.
///
/// Whoever waits for the end is let go as soon as what concerns them is told. What was left unsynced since the commit is made
/// durable before the deployment is closed: until then a recovery does it again.
///
/// # Errors
/// If the end cannot be recorded: then the next command finishes it.
pub fn close(site: &Site, telling: &mut Reporter, begin: &Begin, outcome: &Outcome, options: &Options) -> Result<()> {
    let place = &site.place;
    let has_ended = crate::report::journal::read(place, &begin.id)?
        .iter()
        .any(|record| matches!(&record.event, Event::End { outcome: told } if told == outcome));
    if !has_ended && let Err(error) = telling.emit(Event::End { outcome: outcome.clone() }) {
        // Who waits must hear the end even if the journal cannot take it.
        telling.tell(Event::End { outcome: outcome.clone() });
        return Err(error);
    }
    // Services run the new version by now: whoever still has the version before open is found while the rest is read.
    let is_looked_at = outcome.verdict == Verdict::Deployed && begin.mode != Mode::Editable && begin.serves.is_some();
    let spare = place.spare();
    let users = is_looked_at.then(|| Meanwhile::begin(move || processes_using(&spare)));
    let entry = history::summarise(&crate::report::journal::read(place, &begin.id)?)?;
    history::append(place, &entry)?;
    let repo = site.repo()?;
    let live = match &outcome.serves {
        Some(serving) => Some(Live::open(site, &repo, serving)?),
        None => None,
    };
    let version = Version::load_kept(site, &repo, &begin.commit, begin.pillar.as_ref(), (begin.mode, &begin.id)).ok();
    let recipe = version.as_ref().map_or_else(|| live_recipe(live.as_ref()), |version| version.recipe.clone());
    let mut settling = Settling {
        site,
        telling,
        begin,
        outcome,
        entry: &entry,
        recipe: &recipe,
        version: version.as_ref(),
        live,
        spare: None,
        users,
        is_proven: false,
    };
    settling.tell_who_waits();
    let recorded = secure_end(site, settling.telling, &repo, begin, outcome);
    fault::point("end.history")?;
    threads::standing_back(|| settling.settle())?;
    let spooled = tell::spool(site, begin, &entry, &recipe, version.as_ref());
    let faults = spooled.unwrap_or_else(|error| vec![format!("the mail could not be written: {}", error.one_line())]);
    for fault in faults {
        settling.warn(fault);
    }
    settling.hold_ballast();
    // Last, because a recipe's own step may take its time: whatever it does, the mail is written.
    settling.notify(options);
    fault::point("settle.done")?;
    let needs_person = (outcome.verdict == Verdict::NeedsPerson).then(|| outcome.reason.clone().unwrap_or_default());
    let last = Last::opened(begin.seq, begin.id.clone(), outcome.serves.clone());
    Last { open: recorded.is_err(), needs_person, ..last }.write(place)?;
    fault::point("end.closed")
}

/// Makes the end durable, and what followed the commit. What a full disk prevented is done now, or by the next command,
/// which finds the deployment open.
fn secure_end(site: &Site, telling: &mut Reporter, repo: &Repo, begin: &Begin, outcome: &Outcome) -> Result<()> {
    telling.secure()?;
    history::secure(&site.place)?;
    match (&outcome.serves, outcome.verdict) {
        (Some(serving), Verdict::Deployed) => {
            if !is_current(site, serving) {
                finish_commit(site, repo, begin, serving)?;
            }
            secure_commit(site, repo, begin, serving)
        }
        _ => Ok(()),
    }
}

fn is_current(site: &Site, serving: &Serving) -> bool {
    fs::link_target(&site.place.current()).is_some_and(|target| target.as_os_str() == serving.id.as_str())
}

fn live_recipe(live: Option<&Live>) -> Recipe {
    live.and_then(|live| live.version.as_ref()).map(|version| version.recipe.clone()).unwrap_or_default()
}

/// After the lock the ref is read again: one that moved meanwhile must be an ancestor of the new commit.
fn check_ref(repo: &Repo, request: &Request, commit: &ObjectId) -> Result<Option<ObjectId>, Halt> {
    let Some(update) = &request.update else { return Ok(None) };
    if !update.moved_by_worker {
        return Ok(Some(update.old.clone()));
    }
    let now = repo.read_ref(&update.name)?;
    let expected = if update.old.is_zero() { None } else { Some(update.old.clone()) };
    if now == expected {
        return Ok(Some(update.old.clone()));
    }
    match now {
        Some(now) if repo.is_ancestor(&now, commit)? => Ok(Some(now)),
        Some(now) if repo.is_ancestor(commit, &now)? => {
            Err(Halt::refused(format!("superseded by {}, which was pushed later", now.short())))
        }
        Some(now) => Err(Halt::refused(format!("stale: {} is at {} meanwhile", update.name.shown(), now.short()))
            .hint("git fetch, merge or rebase, then push again")),
        None => Err(Halt::refused(format!("stale: {} was deleted meanwhile", update.name.shown()))),
    }
}

fn unchanged(
    repo: &Repo,
    request: &Request,
    commit: &ObjectId,
    live: Option<&Live>,
    telling: &mut Reporter,
) -> Result<Outcome> {
    if let Some(update) = &request.update
        && update.moved_by_worker
    {
        let old = repo.read_ref(&update.name)?.unwrap_or_else(|| commit.zero_like());
        repo.move_ref(&update.name, &old, commit, "mc_project: live already")?;
    }
    let outcome = Outcome {
        verdict: Verdict::Unchanged,
        stage: None,
        reason: Some(format!("{} is live already", commit.short())),
        serves: live.map(|live| live.serving.clone()),
        hints: Vec::new(),
        exit: None,
    };
    telling.emit(Event::End { outcome: outcome.clone() })?;
    Ok(outcome)
}

/// The commit of the pillar that the next deployment uses: that of its HEAD branch.
///
/// # Errors
/// If the repository cannot be read.
pub fn pillar_head(site: &Site) -> Result<Option<ObjectId>> {
    let repo = site.pillar_repo()?;
    for branch in ["refs/heads/main", "refs/heads/master"] {
        if let Some(commit) = repo.read_ref(&branch.parse()?)? {
            return Ok(Some(commit));
        }
    }
    Ok(None)
}

/// A new id for a deployment made by a command.
#[must_use]
pub fn new_id() -> DeploymentId {
    DeploymentId::new(clock::now())
}
