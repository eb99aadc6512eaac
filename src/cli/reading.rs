//! Commands that only look. Each of them has `--json`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::screen;
use super::{Cli, DiffArgs, HistoryArgs, LogsArgs, NameArgs, ShowArgs, StatusArgs, VerifyArgs};
use crate::entrance::launch;
use crate::pipeline::binding::{self, Shown};
use crate::pipeline::detail;
use crate::pipeline::draft::read_pillar;
use crate::pipeline::parking;
use crate::pipeline::site::Site;
use crate::pipeline::verify::{Verified, verify as check};
use crate::pipeline::worker::pillar_head;
use crate::project::ids::DeploymentId;
use crate::project::mode::Mode;
use crate::project::outcome::Serving;
use crate::report::history::{self, Entry};
use crate::report::ledger::Last;
use crate::report::{self, listing, spool, terminal};
use crate::sys::error::{Error, ExitCode, Result};
use crate::sys::lock::{self, Holder};
use crate::sys::{clock, fs};
use crate::tree::drift::{Drift, How};
use crate::tree::manifest::pairs;
use crate::tree::release::Releases;

/// `history`.
///
/// # Errors
/// If the history cannot be read.
pub fn history(cli: &Cli, args: &HistoryArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let entries = history::read(&site.place, Some(args.limit))?;
    if args.json {
        let newest_first: Vec<&Entry> = entries.iter().rev().collect();
        screen::json(&newest_first)?;
    } else if entries.is_empty() {
        screen::line("nothing was deployed yet");
    } else {
        let serves = site.serves()?;
        let serves = serves.as_ref().map(|serving| &serving.id);
        let view = listing::View { serves, now: clock::now(), style: screen::style() };
        screen::line(listing::table(&entries, &view).trim_end());
    }
    Ok(0)
}

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

fn status_of(site: &Site) -> Result<Status> {
    let last = Last::read(&site.place)?;
    let busy = lock::holder(&site.place.lock())?;
    let entries = history::read(&site.place, None)?;
    let serves = last.as_ref().and_then(|last| last.serves.clone());
    let made = serves.as_ref().and_then(|serving| entries.iter().rev().find(|entry| entry.id == serving.id));
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
        clone: clone_status(site)?,
        kept_clones: parking::kept_clones(site)?,
        command: site.command(),
        serves,
        busy,
    })
}

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
    print_clone(status);
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
        None => cli.node()?.projects()?,
    };
    let mut statuses = Vec::new();
    let mut unreadable = None;
    for name in &names {
        match cli.site(name).and_then(|site| status_of(&site)) {
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
    let waits = statuses.iter().any(|status| status.needs_person.is_some());
    let interrupted = statuses.iter().any(|status| status.interrupted);
    Ok(match (waits, interrupted) {
        (true, _) => ExitCode::NeedsPerson as u8,
        (false, true) => ExitCode::Failed as u8,
        (false, false) => ExitCode::Done as u8,
    })
}

/// The entry that was named, or the last one.
fn entry_of(site: &Site, spec: Option<&str>) -> Result<Entry> {
    let entries = history::read(&site.place, None)?;
    match spec {
        Some(spec) => {
            history::find_serving(&entries, site.serves()?.as_ref(), spec).cloned().map_err(|error| site.typed(error))
        }
        None => entries.last().cloned().ok_or_else(|| Error::usage("nothing was deployed yet")),
    }
}

/// The kept release that was named, or what is live.
///
/// # Errors
/// If there is none.
pub fn release_of(site: &Site, spec: Option<&str>) -> Result<DeploymentId> {
    let id = match spec {
        Some(spec) => {
            let entries = history::read(&site.place, None)?;
            history::find_serving(&entries, site.serves()?.as_ref(), spec)
                .map_err(|error| site.typed(error))?
                .id
                .clone()
        }
        None => site.serves()?.ok_or_else(|| Error::usage("nothing is deployed yet"))?.id,
    };
    match Releases::new(&site.place).provenance(&id) {
        Ok(found) if found.mode == Mode::Editable => Err(Error::refused(format!(
            "#{} was deployed in editable mode: its files are those of the clone",
            found.seq
        ))
        .hint(format!("git -C {} log", site.place.run().display()))),
        _ => Ok(id),
    }
}

/// `show`.
///
/// # Errors
/// If there is no such deployment.
pub fn show(cli: &Cli, args: &ShowArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let entry = entry_of(&site, args.id.as_deref())?;
    let told = detail::gather(&site, &entry, &history::read(&site.place, None)?, args.log)?;
    if args.json {
        let log = site.place.log(&entry.id);
        screen::json(&serde_json::json!({
            "entry": entry,
            "records": told.records,
            "log": log,
            "changes": told.changes,
            "restore_point": told.restore,
            "kept": told.kept,
            "release": Releases::new(&site.place).provenance(&entry.id).ok(),
        }))?;
        return Ok(0);
    }
    screen::line(report::detail::text(&entry, &told, clock::now(), &screen::style()).trim_end());
    Ok(0)
}

/// `diff`.
///
/// # Errors
/// If one of them is not kept.
pub fn diff(cli: &Cli, args: &DiffArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let releases = Releases::new(&site.place);
    let (a, b) = (release_of(&site, Some(&args.a))?, release_of(&site, args.b.as_deref())?);
    let kept = |id: &DeploymentId| releases.manifest(id).map_err(|error| site.typed(error));
    let (old, new) = (kept(&a)?, kept(&b)?);
    let mut changes = Vec::new();
    for (old, new) in pairs(old.entries(), new.entries()) {
        let (how, entry) = match (old, new) {
            (None, Some(new)) => (How::Added, new),
            (Some(old), None) => (How::Removed, old),
            (Some(old), Some(new)) if !old.same_content(new) => (How::Changed, new),
            (Some(old), Some(new)) if old.mode != new.mode => (How::Metadata, new),
            _ => continue,
        };
        if !entry.is_dir() || how != How::Metadata {
            changes.push(crate::tree::drift::Change { path: entry.path.clone(), how, is_dir: entry.is_dir() });
        }
    }
    let drift = Drift { changes };
    if args.json {
        screen::json(&serde_json::json!({"a": a, "b": b, "changes": drift.changes}))?;
    } else {
        print_changes(&drift);
    }
    Ok(0)
}

fn print_changes(drift: &Drift) {
    for change in drift.changes.iter().filter(|change| !change.is_dir || change.how != How::Metadata) {
        let letter = match change.how {
            How::Added => "+",
            How::Removed => "-",
            How::Changed => "~",
            How::Metadata => "m",
        };
        screen::line(format!("{letter} {}{}", change.path, if change.is_dir { "/" } else { "" }));
    }
}

/// `drift`.
///
/// # Errors
/// If `run` cannot be read.
pub fn drift(cli: &Cli, args: &NameArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let drift = crate::pipeline::data::drift_of_run(&site)?;
    if args.json {
        screen::json(&drift)?;
    } else if drift.is_empty() {
        let is_clone = parking::read(&site)?.is_some();
        screen::line(if is_clone { "the clone is exactly its commit" } else { "run is exactly what was deployed" });
    } else {
        print_changes(&drift);
    }
    Ok(0)
}

/// `verify`.
///
/// # Errors
/// If the state cannot be read at all.
pub fn verify(cli: &Cli, args: &VerifyArgs) -> Result<u8> {
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => cli.node()?.projects()?,
    };
    let results = names.iter().map(|name| check(&cli.site(name)?)).collect::<Result<Vec<Verified>>>()?;
    if args.json {
        screen::json(&results)?;
    } else {
        results.iter().for_each(print_verified);
    }
    let sound = results.iter().all(|result| result.problems.is_empty());
    Ok(if sound { 0 } else { ExitCode::Failed as u8 })
}

fn print_verified(result: &Verified) {
    let state = if result.problems.is_empty() { "everything fits together" } else { "something does not fit" };
    let busy = if result.busy { ", a deployment is under way" } else { "" };
    screen::line(format!("{}: {state} ({} contents read{busy})", result.project, result.checked));
    for problem in &result.problems {
        screen::line(format!("  {}: {}", problem.about, problem.text));
    }
    for line in result.drift.lines(20) {
        screen::line(format!("  drift in {line}"));
    }
}

/// `logs`.
///
/// # Errors
/// If there is no such deployment.
pub fn logs(cli: &Cli, args: &LogsArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let running = Last::read(&site.place)?.filter(|last| last.open).map(|last| last.id);
    let id = match (&args.id, running) {
        (None, Some(id)) => id,
        (spec, _) => entry_of(&site, spec.as_deref())?.id,
    };
    if !args.follow {
        let text = fs::read_if_there(&site.place.log(&id))?;
        let text = text.ok_or_else(|| Error::usage(format!("the log of {id} is gone")))?;
        screen::line(String::from_utf8_lossy(&text).trim_end());
        return Ok(0);
    }
    let mut follower = launch::follower(&site.place, &id);
    let style = terminal::Style { verbose: true, ..screen::style() };
    loop {
        match follower.next(Duration::from_secs(1))? {
            Some(record) => terminal::lines(&record, &style).iter().for_each(screen::line),
            None if lock::holder(&site.place.lock())?.is_none() => break,
            None => {}
        }
        if follower.is_closed() {
            break;
        }
    }
    Ok(follower.outcome().map_or(0, crate::project::outcome::Outcome::exit_code))
}

/// `config`.
///
/// # Errors
/// If the pillar is invalid.
pub fn config(cli: &Cli, args: &NameArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let mut value = match pillar_head(&site)? {
        Some(commit) => read_pillar(&site, &commit)?.masked(),
        None => serde_json::json!({}),
    };
    if args.json {
        screen::json(&value)?;
    } else {
        let map = value.as_object_mut().map(std::mem::take).unwrap_or_default();
        if map.is_empty() {
            screen::line("the pillar is empty");
        }
        for (key, value) in map {
            screen::line(format!("{key}: {value}"));
        }
    }
    Ok(0)
}
