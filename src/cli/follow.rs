//! `follow`: a deployment as its push shows it, to its end; and how such a deployment is shown, here and by `push`.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::screen;
use super::{Cli, FollowArgs};
use crate::entrance::push::Show;
use crate::entrance::{call, launch};
use crate::pipeline::site::Site;
use crate::pipeline::worker;
use crate::project::ids::DeploymentId;
use crate::project::outcome::Verdict;
use crate::report::event::{Event, Record};
use crate::report::ledger::Last;
use crate::report::progress::Progress;
use crate::report::terminal::Style;
use crate::report::{history, journal};
use crate::sys::error::{Error, ExitCode, Result};
use crate::sys::escape::visible;
use crate::sys::{fs, lock};

/// How often the screen is brought up to date.
const FRAME: Duration = Duration::from_millis(200);
/// How long nobody may hold the lock and nothing be told, until a deployment without an end is given up: whoever waits for
/// the lock, or recovers, takes it sooner.
const GONE: Duration = Duration::from_secs(20);

/// `follow`.
///
/// # Errors
/// If there is no such deployment, or it died and told no end.
pub fn follow(cli: &Cli, args: &FollowArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let id = which(&site, args.id.as_deref())?;
    let mut show = shower(args.json);
    if !fs::exists(&site.place.events(&id)) && fs::exists(&site.place.journal(&id)) {
        return from_journal(&site, &id, show.as_mut());
    }
    let mut follower = launch::follower(&site.place, &id);
    let mut quiet = Instant::now();
    while !follower.is_closed() {
        match follower.next(FRAME)? {
            Some(record) => {
                told(show.as_mut(), &record)?;
                quiet = Instant::now();
            }
            None if follower.outcome().is_some() && lock::holder(&site.place.lock())?.is_none() => break,
            None if lock::holder(&site.place.lock())?.is_some() => quiet = Instant::now(),
            None if quiet.elapsed() >= GONE => break,
            None => {}
        }
        show.tick();
    }
    follower.outcome().map(crate::project::outcome::Outcome::exit_code).ok_or_else(|| {
        Error::failed(format!("{id} told no end, and nothing works on it")).hint(format!(
            "{} recover {}",
            site.command(),
            args.name
        ))
    })
}

/// A deployment whose events are not kept any more: what the journal has of it.
fn from_journal(site: &Site, id: &DeploymentId, show: &mut dyn Show) -> Result<u8> {
    let mut code = None;
    for record in journal::read(&site.place, id)? {
        if let Event::End { outcome } = &record.event {
            code = Some(outcome.exit_code());
        }
        told(show, &record)?;
    }
    code.ok_or_else(|| Error::failed(format!("{id} told no end")))
}

fn told(show: &mut dyn Show, record: &Record) -> Result<()> {
    if !matches!(record.event, Event::Output { .. }) {
        show.record(record, &record.ascii_line()?);
    }
    Ok(())
}

/// `cancel`: asks the deployment that runs to end, and shows it to its end.
///
/// # Errors
/// If none runs, or another one than the one that was named.
pub fn cancel(cli: &Cli, args: &FollowArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let holder = lock::holder(&site.place.lock())?;
    let running =
        holder.filter(worker::deploys).and_then(|holder| holder.id).and_then(|id| id.parse::<DeploymentId>().ok());
    let running = running.ok_or_else(|| Error::refused("no deployment runs now"))?;
    if let Some(named) = &args.id
        && which(&site, Some(named))? != running
    {
        return Err(Error::refused(format!("{} does not run now; {running} does", visible(named))));
    }
    crate::pipeline::cancel::ask(&site, &running, &call::commander())?;
    let args = FollowArgs { name: args.name.clone(), id: Some(running.to_string()), json: args.json };
    follow(cli, &args)?;
    // What was wanted is that it is not live, and that what was before is.
    match history::read(&site.place, None)?.into_iter().find(|entry| entry.id == running) {
        Some(entry) if entry.was_live => {
            Err(Error::failed("it was final already").hint(format!("{} rollback {}", site.command(), args.name)))
        }
        Some(entry) if entry.verdict == Verdict::NeedsPerson => Ok(ExitCode::NeedsPerson as u8),
        Some(_) => Ok(0),
        None => Err(Error::failed(format!("it is not known how {running} ended"))),
    }
}

/// The deployment that is meant; one that has not begun is known by its whole id only.
fn which(site: &Site, spec: Option<&str>) -> Result<DeploymentId> {
    let entries = history::read(&site.place, None)?;
    let Some(spec) = spec else {
        let running = Last::read(&site.place)?.filter(|last| last.open).map(|last| last.id);
        let last = || entries.last().map(|entry| entry.id.clone());
        return running.or_else(last).ok_or_else(|| Error::usage("nothing was deployed yet"));
    };
    if let Ok(id) = spec.parse::<DeploymentId>() {
        // Just ordered: the worker may not have spoken yet.
        let is_there = || fs::exists(&site.place.events(&id)) || fs::exists(&site.place.journal(&id));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_there() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        if is_there() {
            return Ok(id);
        }
    }
    let found = history::find_serving(&entries, site.serves()?.as_ref(), spec).map_err(|error| site.typed(error))?;
    Ok(found.id.clone())
}

/// What shows a deployment on our standard output: JSON for programs, a live line on a terminal, else plain lines.
#[must_use]
pub fn shower(json: bool) -> Box<dyn Show> {
    if json {
        return Box::new(AsJson);
    }
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    let is_live = std::io::stdout().is_terminal() && !is_dumb && std::env::var_os("NO_COLOR").is_none();
    let width = if is_live { screen::width() } else { None };
    let style = Style { width, ..screen::style() };
    Box::new(AsLines { progress: Progress::new(style, is_live) })
}

struct AsJson;

impl Show for AsJson {
    fn record(&mut self, _record: &Record, line: &str) {
        screen::line(line);
    }

    fn unknown(&mut self, line: &str) {
        screen::line(line);
    }

    fn tick(&mut self) {}
}

struct AsLines {
    progress: Progress,
}

impl AsLines {
    fn write(text: &str) {
        if text.is_empty() {
            return;
        }
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

impl Show for AsLines {
    fn record(&mut self, record: &Record, _line: &str) {
        Self::write(&self.progress.record(record, Instant::now()));
    }

    fn unknown(&mut self, _line: &str) {}

    fn tick(&mut self) {
        Self::write(&self.progress.tick(Instant::now()));
    }
}

impl Drop for AsLines {
    fn drop(&mut self) {
        Self::write(&self.progress.end());
    }
}
