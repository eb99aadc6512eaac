//! `logs`: what deployments and services wrote, in one view in time order; or the log of one deployment.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use jiff::Timestamp;

use super::deploying::running;
use super::reading::entry_of;
use super::services::no_such_service;
use super::{Cli, LogsArgs, screen};
use crate::entrance::launch;
use crate::pipeline::services::{self, backend};
use crate::pipeline::site::Site;
use crate::project::recipe::ServiceName;
use crate::report::ledger::Last;
use crate::report::terminal;
use crate::service::backend::{LogLine, LogQuery};
use crate::sys::error::{Error, Result};
use crate::sys::escape::{output_line, visible};
use crate::sys::lines::LineReader;
use crate::sys::{clock, fs, lock, threads};

/// How many lines are shown if nobody says.
const LINES: usize = 100;
/// The longest line that is shown.
const LONGEST: usize = 16 * 1024;
/// Between two looks at the logs of deployments that are followed.
const LOOK: Duration = Duration::from_millis(250);
/// What stands before the lines of deployments.
const DEPLOYMENT: &str = "deploy";

/// A line of the view.
struct Line {
    at: Timestamp,
    from: String,
    text: String,
}

/// `logs`.
///
/// # Errors
/// If there is no such deployment.
pub fn logs(cli: &Cli, args: &LogsArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let asks_for_lines = args.service.is_some() || args.since.is_some() || args.lines.is_some() || args.json;
    if args.id.is_some() || (!asks_for_lines && !has_services(&site)?) {
        return of_deployment(&site, args);
    }
    view(&site, args)
}

/// Whether anything of the project is, or was, kept running.
fn has_services(site: &Site) -> Result<bool> {
    Ok(!backend(site).look()?.is_empty())
}

/// The log of one deployment: the one that is under way, or the last one, if none is named.
fn of_deployment(site: &Site, args: &LogsArgs) -> Result<u8> {
    let running = Last::read(&site.place)?.filter(|last| last.open).map(|last| last.id);
    let id = match (&args.id, running) {
        (None, Some(id)) => id,
        (spec, _) => entry_of(site, spec.as_deref())?.id,
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

/// What is there already, then what comes.
fn view(site: &Site, args: &LogsArgs) -> Result<u8> {
    // The lines of deployments have whole seconds: what is there and what comes are parted at one.
    let now = Timestamp::from_second(clock::now().as_second()).unwrap_or_default();
    refuse_unknown(site, args)?;
    let since = args.since.map(|since| since.moment(now));
    let last = args.lines.or(since.is_none().then_some(LINES));
    let mut lines = Vec::new();
    let query = LogQuery { service: args.service.clone(), last, since, ..LogQuery::default() };
    backend(site).log(&query, &mut |line| {
        lines.push(of_service(line));
        true
    })?;
    if args.service.is_none() {
        lines.extend(Deployments::new(site, since).past(last)?);
    }
    // What comes from now on is read again below.
    lines.retain(|line| !args.follow || line.at < now);
    lines.sort_by_key(|line| line.at);
    let first = last.map_or(0, |last| lines.len().saturating_sub(last));
    for line in &lines[first..] {
        print(line, args.json)?;
    }
    if args.follow { follow(site, args, now) } else { Ok(0) }
}

/// Refuses a service that the project does not have and that never wrote anything.
fn refuse_unknown(site: &Site, args: &LogsArgs) -> Result<()> {
    let Some(name) = &args.service else { return Ok(()) };
    let definitions = running(site)?.map(|of| services::definitions(site, &of)).transpose()?.unwrap_or_default();
    let mut known: Vec<ServiceName> = definitions.into_iter().map(|definition| definition.instance.service).collect();
    known.extend(backend(site).look()?.into_iter().map(|look| look.instance.service));
    let mut wrote = known.contains(name);
    if !wrote {
        let query = LogQuery { service: Some(name.clone()), last: Some(1), ..LogQuery::default() };
        backend(site).log(&query, &mut |_| {
            wrote = true;
            true
        })?;
    }
    known.sort();
    if wrote { Ok(()) } else { Err(no_such_service(site, name, &known)) }
}

/// Goes on until it is ended.
fn follow(site: &Site, args: &LogsArgs, since: Timestamp) -> Result<u8> {
    let mut deployments = Deployments::new(site, Some(since));
    let (tell, told) = channel();
    let query = LogQuery { service: args.service.clone(), since: Some(since), follow: true, ..LogQuery::default() };
    let service_site = site.clone();
    let reading =
        threads::start(move || backend(&service_site).log(&query, &mut |line| tell.send(of_service(line)).is_ok()))?;
    loop {
        match told.recv_timeout(LOOK) {
            Ok(line) => print(&line, args.json)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if args.service.is_none() {
            for line in deployments.news()? {
                print(&line, args.json)?;
            }
        }
    }
    reading.join().unwrap_or(Ok(()))?;
    Ok(0)
}

fn of_service(line: &LogLine) -> Line {
    let from = match line.instance.number {
        1 => line.instance.service.to_string(),
        _ => line.instance.to_string(),
    };
    Line { at: line.at, from, text: output_line(&line.text, LONGEST) }
}

fn print(line: &Line, as_json: bool) -> Result<()> {
    if as_json {
        let value = serde_json::json!({"at": line.at, "from": line.from, "text": line.text});
        screen::line(serde_json::to_string(&value).map_err(|error| Error::bug("cannot write JSON").because(error))?);
    } else {
        screen::line(format!("{} {:<10} {}", line.at.strftime("%Y-%m-%d %H:%M:%S"), line.from, line.text));
    }
    Ok(())
}

/// The readable logs of deployments, in the order of their names, which is that of their beginning.
struct Deployments {
    dir: PathBuf,
    since: Option<Timestamp>,
    open: BTreeMap<String, LineReader>,
}

impl Deployments {
    fn new(site: &Site, since: Option<Timestamp>) -> Self {
        Self { dir: site.place.logs(), since, open: BTreeMap::new() }
    }

    /// The names of the files that may have lines of the time.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = fs::names(&self.dir)?;
        names.retain(|name| name.strip_suffix(".log").is_some() && self.was_written_in_time(&self.dir.join(name)));
        Ok(names)
    }

    fn was_written_in_time(&self, path: &Path) -> bool {
        let written = fs::examine(path).ok().flatten().and_then(|meta| meta.modified().ok());
        let written = written.and_then(|time| Timestamp::try_from(time).ok());
        // A line's time is written in whole seconds.
        self.since.is_none_or(|since| written.is_some_and(|written| written.as_second() >= since.as_second()))
    }

    fn line(&self, line: &[u8]) -> Option<Line> {
        let (time, text) = line.split_at_checked(memchr::memchr(b' ', line)?)?;
        let at: Timestamp = std::str::from_utf8(time).ok()?.parse().ok()?;
        let is_in_time = self.since.is_none_or(|since| at.as_second() >= since.as_second());
        let text = visible(&String::from_utf8_lossy(&text[1..]));
        is_in_time.then(|| Line { at, from: DEPLOYMENT.to_string(), text })
    }

    /// What is there, at most so many lines from the end.
    fn past(&self, last: Option<usize>) -> Result<VecDeque<Line>> {
        let mut lines = VecDeque::new();
        for name in self.names()?.iter().rev() {
            let path = self.dir.join(name);
            let room = last.map_or(usize::MAX, |last| last - lines.len());
            let found = crate::sys::lines::last_lines(&path, room)?.unwrap_or_default();
            found.iter().rev().filter_map(|line| self.line(line)).for_each(|line| lines.push_front(line));
            if last.is_some_and(|last| lines.len() >= last) {
                break;
            }
        }
        Ok(lines)
    }

    /// What was written since the last call.
    fn news(&mut self) -> Result<Vec<Line>> {
        for name in self.names()? {
            if !self.open.contains_key(&name)
                && let Some(reader) = LineReader::open(&self.dir.join(&name))?
            {
                self.open.insert(name, reader);
            }
        }
        let mut open = std::mem::take(&mut self.open);
        let mut lines = Vec::new();
        for reader in open.values_mut() {
            while let Some(line) = reader.next_line()? {
                lines.extend(self.line(&line));
            }
        }
        self.open = open;
        lines.sort_by_key(|line| line.at);
        Ok(lines)
    }
}
