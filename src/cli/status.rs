//! `status`: what serves now, how its services are, and whether anything needs attention.

use std::path::PathBuf;

use serde::Serialize;

use super::deploying::running;
use super::services::{ServiceStatus, service_lines, services_of};
use super::{Cli, StatusArgs, screen};
use crate::pipeline::binding::{self, Shown};
use crate::pipeline::checks::{self, Answer, Health};
use crate::pipeline::draft::Deployed;
use crate::pipeline::site::Site;
use crate::pipeline::worker::pillar_head;
use crate::pipeline::{parking, services};
use crate::project::ids::ObjectId;
use crate::project::outcome::Serving;
use crate::report::history::{self, Entry};
use crate::report::ledger::Last;
use crate::report::spool;
use crate::sys::clock;
use crate::sys::error::{ExitCode, Result};
use crate::sys::escape::visible;
use crate::sys::lock::{self, Holder};
use crate::tree::release::Releases;

/// What `status` tells of one project.
#[derive(Debug, Serialize)]
struct Status {
    project: String,
    environment: &'static str,
    mode: &'static str,
    branch: Option<String>,
    serves: Option<Serving>,
    since: Option<jiff::Timestamp>,
    pusher: Option<String>,
    subject: Option<String>,
    busy: Option<Holder>,
    interrupted: bool,
    needs_person: Option<String>,
    last: Option<Entry>,
    unsent_mail: usize,
    given_up_mail: usize,
    clone: Option<CloneStatus>,
    kept_clones: Vec<PathBuf>,
    /// What keeps the services running had to be started again.
    healed: bool,
    services: Vec<ServiceStatus>,
    health: Option<HealthStatus>,
    /// The pillar that was pushed, where what serves has another one.
    pillar_waits: Option<ObjectId>,
    #[serde(skip)]
    command: String,
}

/// What `status` tells of the clone that runs in editable mode.
#[derive(Debug, Serialize)]
struct CloneStatus {
    since: jiff::Timestamp,
    commit: String,
    shown: Shown,
    parked: Option<Serving>,
}

fn clone_status(site: &Site) -> Result<Option<CloneStatus>> {
    let Some(record) = parking::read(site)? else { return Ok(None) };
    let commit = record.holds.commit.to_string();
    Ok(Some(CloneStatus { since: record.since, commit, shown: binding::shown(site)?, parked: record.cooked }))
}

fn print_clone(status: &Status) {
    if let Some(clone) = &status.clone {
        let at = clone.commit.get(..10).unwrap_or(&clone.commit);
        let shown = match clone.shown {
            Shown::Mount => "mounted at project",
            Shown::Link => "project is a link to it",
            Shown::Missing => "project DOES NOT SHOW IT",
        };
        screen::line(format!("  run is a clone, checked out at {at}; {shown}"));
        if clone.shown == Shown::Missing {
            screen::line(format!("    hint: {} recover {}", status.command, status.project));
        }
        if let Some(parked) = &clone.parked {
            screen::line(format!("  parked until editable mode ends: {}", parked.commit.short()));
        }
    }
    for kept in &status.kept_clones {
        screen::line(format!("  kept until you remove it: {}", kept.display()));
    }
}

fn status_of(site: &Site, check: bool) -> Result<Status> {
    let healed = services::heal(site)?;
    let running = running(site)?;
    let last = Last::read(&site.place)?;
    let busy = lock::holder(&site.place.lock())?;
    let serves = last.as_ref().and_then(|last| last.serves.clone());
    let entries = recent(site, serves.as_ref())?;
    let made = serves.as_ref().and_then(|serving| entries.iter().rev().find(|entry| entry.id == serving.id));
    let all = services_of(site, running.as_ref())?;
    Ok(Status {
        project: site.place.name().to_string(),
        environment: site.config.environment.name(),
        mode: site.config.mode.name(),
        branch: site.deploy_branch()?.and_then(|name| name.branch().map(str::to_string)),
        since: made.map(Entry::ended),
        pusher: made.map(|entry| entry.pusher.clone()),
        subject: made.map(|entry| entry.subject.clone()),
        interrupted: busy.is_none() && last.as_ref().is_some_and(|last| last.open),
        needs_person: last.and_then(|last| last.needs_person),
        last: entries.last().cloned(),
        unsent_mail: spool::list(&site.place)?.len(),
        given_up_mail: spool::given_up(&site.place)?.len(),
        health: health_of(site, running.as_ref(), check, &all)?,
        services: all,
        healed,
        pillar_waits: waiting_pillar(site, serves.as_ref())?,
        clone: clone_status(site)?,
        kept_clones: parking::kept_clones(site)?,
        command: site.command(),
        serves,
        busy,
    })
}

/// The pillar that the next deployment will use, unless what serves has it already.
fn waiting_pillar(site: &Site, serves: Option<&Serving>) -> Result<Option<ObjectId>> {
    let Some(serves) = serves else { return Ok(None) };
    let has = Releases::new(&site.place).provenance(&serves.id).ok();
    Ok(pillar_head(site)?.filter(|head| has.is_some_and(|has| has.pillar.as_ref() != Some(head))))
}

/// The newest entries of the history, as far back as the one that made live what serves: most often that is not far.
fn recent(site: &Site, serves: Option<&Serving>) -> Result<Vec<Entry>> {
    let entries = history::read(&site.place, Some(RECENT))?;
    let is_there = serves.is_none_or(|serving| entries.iter().any(|entry| entry.id == serving.id));
    if is_there { Ok(entries) } else { history::read(&site.place, None) }
}

/// How many entries of the history are read at first.
const RECENT: usize = 50;

fn print_status(status: &Status) {
    let shown = |text: &Option<String>| crate::sys::escape::visible(text.as_deref().unwrap_or_default());
    screen::line(format!("{}: {} ({})", status.project, status.mode, status.environment));
    match &status.serves {
        Some(serving) => {
            let since =
                status.since.map(|since| since.strftime(", since %Y-%m-%d %H:%M UTC").to_string()).unwrap_or_default();
            screen::line(format!(
                "  run serves {} \"{}\"{since}, by {}",
                serving.commit.short(),
                shown(&status.subject),
                shown(&status.pusher)
            ));
        }
        None => screen::line("  nothing is deployed yet"),
    }
    if let Some(pillar) = &status.pillar_waits {
        let deploy = format!("{} deploy {} --force", status.command, status.project);
        screen::line(format!(
            "  pillar {} was pushed and is used by the next deployment; now: {deploy}",
            pillar.short()
        ));
    }
    print_clone(status);
    print_services(status);
    if let Some(holder) = &status.busy {
        screen::line(format!("  at this moment process {} {} since {}", holder.pid, holder.what, holder.since));
    }
    if status.interrupted {
        screen::line(format!(
            "  a deployment was interrupted, and run may hold its version; to recover: {} recover {}",
            status.command, status.project
        ));
    }
    if let Some(reason) = &status.needs_person {
        screen::line(format!("  needs a person: {reason}"));
        screen::line(format!(
            "    hint: {} recover {} --forward, or --back [--with data]",
            status.command, status.project
        ));
    }
    if let Some(last) = &status.last {
        screen::line(format!("  last: #{} {}", last.seq, last.outcome().line()));
    }
    if status.unsent_mail > 0 {
        screen::line(format!("  {} mails wait to be sent", status.unsent_mail));
    }
    if status.given_up_mail > 0 {
        screen::line(format!("  {} MAILS COULD NOT BE SENT and were given up", status.given_up_mail));
        screen::line(format!("    hint: {0} mail list {1}; {0} mail flush {1}", status.command, status.project));
    }
}

/// `status`.
///
/// # Errors
/// If the state cannot be read.
pub fn status(cli: &Cli, args: &StatusArgs) -> Result<u8> {
    if args.disk {
        return super::disk::status(cli, args);
    }
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => cli.made_node()?.projects()?,
    };
    let mut statuses = Vec::new();
    let mut unreadable = None;
    for name in &names {
        match cli.site(name).and_then(|site| status_of(&site, args.check)) {
            Ok(status) => statuses.push(status),
            // One project that cannot be read hides nothing of the others.
            Err(error) if args.name.is_none() => unreadable = Some(error),
            Err(error) => return Err(error),
        }
    }
    match (args.json, &args.name) {
        (true, Some(_)) => statuses.iter().try_for_each(screen::json)?,
        (true, None) => screen::json(&statuses)?,
        (false, _) if statuses.is_empty() => screen::line("this node has no projects; make one: mc_project init NAME"),
        (false, _) => statuses.iter().for_each(print_status),
    }
    if let Some(error) = unreadable {
        return Err(error);
    }
    let ails = statuses.iter().any(Status::ails);
    let waits = statuses.iter().any(|status| status.needs_person.is_some());
    let interrupted = statuses.iter().any(|status| status.interrupted);
    Ok(match (waits, interrupted || ails) {
        (true, _) => ExitCode::NeedsPerson as u8,
        (false, true) => ExitCode::Failed as u8,
        (false, false) => ExitCode::Done as u8,
    })
}

/// What the checks of the services said.
#[derive(Debug, Serialize)]
struct HealthStatus {
    at: jiff::Timestamp,
    answers: Vec<Answer>,
}

impl Status {
    /// Whether a service does not run that is to run, or is not well.
    fn ails(&self) -> bool {
        self.services.iter().any(ServiceStatus::ails)
            || self.health.as_ref().is_some_and(|health| health.answers.iter().any(|answer| !answer.good))
    }
}

/// What the checks say now, or what they said last of the services that run as they did then.
fn health_of(
    site: &Site,
    running: Option<&Deployed>,
    check: bool,
    all: &[ServiceStatus],
) -> Result<Option<HealthStatus>> {
    let Some(running) = running else { return Ok(None) };
    if check {
        let answers = checks::ask_once(site, running)?;
        return Ok((!answers.is_empty()).then(|| HealthStatus { at: clock::now(), answers }));
    }
    let last = Health::read(site)?.filter(|last| last.deployment == running.id);
    Ok(last.and_then(|last| {
        let holds = |answer: &Answer| all.iter().any(|one| one.look.instance == answer.instance && one.ran_at(last.at));
        let answers: Vec<Answer> = last.answers.into_iter().filter(holds).collect();
        (!answers.is_empty()).then_some(HealthStatus { at: last.at, answers })
    }))
}

fn print_services(status: &Status) {
    for line in service_lines(&status.services) {
        screen::line(format!("  {line}"));
    }
    if let Some(health) = &status.health {
        let at = health.at.strftime("%Y-%m-%d %H:%M UTC");
        for answer in &health.answers {
            let verdict = if answer.good { "well" } else { "NOT WELL" };
            let (question, said) = (visible(&answer.question), visible(&answer.answer));
            screen::line(format!("  {}: {verdict} at {at}: {question}: {said}", answer.instance));
        }
    }
    if status.healed {
        screen::line("  the supervisor of its services had been killed, and was started again");
    }
}
