//! The one stream of events: the worker writes it, hooks and `logs -f` follow it.
//!
//! An event goes into the journal first (if it belongs there) and only then into the events file and the readable
//! log. The journal is the truth, so its fault is an error; the two others are for people, so a fault of theirs is told
//! once and changes nothing, and nobody waits until they are on disk.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::event::{Event, Record};
use super::journal::Journal;
use super::mask::Mask;
use super::terminal;
use crate::project::ids::DeploymentId;
use crate::project::outcome::Outcome;
use crate::project::place::Place;
use crate::sys::error::{Context, Result};
use crate::sys::lines::{LineFile, LineReader};
use crate::sys::watch::Wake;
use crate::sys::{clock, escape, fs};

/// How much output each of the two files takes per deployment.
pub const OUTPUT_LIMIT: u64 = 64 * 1024 * 1024;

/// The tail of a step's output that is told when it fails.
const TAIL_LINES: usize = 40;
const TAIL_BYTES: usize = 16 * 1024;

/// A longer line of output is cut.
const LINE_LIMIT: usize = 64 * 1024;

/// The writer of a deployment's events; it never prints.
#[derive(Debug)]
pub struct Reporter {
    journal: Option<Journal>,
    events: Sink,
    log: Sink,
    mask: Mask,
    /// The last lines as the step wrote them: what is shown of them is made when it is asked for.
    tail: VecDeque<Vec<u8>>,
    limit: u64,
    is_over_limit: bool,
    beaten: Option<std::time::Instant>,
}

/// A file for people: opened when first needed. Its first fault is told; it is tried again with every event, because a
/// full disk may have space again when the candidate is dropped, and followers wait for the end.
#[derive(Debug)]
struct Sink {
    path: PathBuf,
    file: Option<LineFile>,
    has_told_fault: bool,
}

impl Sink {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, has_told_fault: false }
    }

    /// Opens the file; a line that a killed worker left half-written is ended first.
    fn open(path: &Path) -> Result<LineFile> {
        if let Some(dir) = path.parent() {
            fs::ensure_dir(dir, 0o750)?;
        }
        let mut file = LineFile::open_unsynced(path, 0o640)?;
        file.end_torn_line()?;
        Ok(file)
    }

    /// Appends lines; gives back the first fault, once.
    fn write(&mut self, lines: &[u8]) -> Option<String> {
        if lines.is_empty() {
            return None;
        }
        let mut write = || -> Result<()> {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(Self::open(&self.path)?),
            };
            file.append(lines)
        };
        let error = write().err()?;
        if std::mem::replace(&mut self.has_told_fault, true) { None } else { Some(error.one_line()) }
    }

    fn size(&self) -> u64 {
        self.file.as_ref().map_or(0, LineFile::size)
    }
}

impl Reporter {
    /// The reporter of a deployment. Before it has the lock it has no journal: see [`Reporter::set_journal`].
    #[must_use]
    pub fn new(place: &Place, id: &DeploymentId, journal: Option<Journal>) -> Self {
        Self {
            journal,
            events: Sink::new(place.events(id)),
            log: Sink::new(place.log(id)),
            mask: Mask::default(),
            tail: VecDeque::new(),
            limit: OUTPUT_LIMIT,
            is_over_limit: false,
            beaten: None,
        }
    }

    /// Gives the journal, once the deployment has the lock.
    pub fn set_journal(&mut self, journal: Journal) {
        self.journal = Some(journal);
    }

    /// Writes a heartbeat, if the last one was not so short a time ago.
    pub fn beat(&mut self, every: std::time::Duration) {
        if self.beaten.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        self.beaten = Some(std::time::Instant::now());
        let uptime_ms = u64::try_from(clock::since_boot().as_millis()).unwrap_or(u64::MAX);
        let _ = self.emit(Event::Heartbeat { boot: clock::boot_id(), uptime_ms });
    }

    /// Sets the values that are replaced by `[secret]` in everything told from here on.
    pub fn set_secrets(&mut self, secrets: &[String]) {
        self.mask = Mask::new(secrets);
    }

    /// As [`Self::set_secrets`] for more of them.
    pub fn also_keep_secret(&mut self, secrets: &[String]) {
        self.mask.add(secrets);
    }

    /// The text with the secrets replaced, for what is told on other ways (mail).
    #[must_use]
    pub fn masked(&self, text: &str) -> String {
        self.mask.text(text.to_string())
    }

    /// Tells an event: journal first, then events file and log.
    ///
    /// # Errors
    /// If the journal cannot take it; then nobody else is told either, and the act that follows must not be done.
    pub fn emit(&mut self, event: Event) -> Result<()> {
        let record = Record { at: clock::now(), event: self.mask.event(event) };
        if let Some(journal) = self.journal.as_mut().filter(|_| record.event.is_durable()) {
            journal.append(&record)?;
        }
        if matches!(record.event, Event::Step { .. }) {
            self.tail.clear();
        }
        self.show(&record);
        Ok(())
    }

    /// Waits until everything that the journal was told is on disk: before an act that a recovery must know of.
    ///
    /// # Errors
    /// If it cannot be synced; then the act must not be done.
    pub fn secure(&mut self) -> Result<()> {
        self.journal.as_mut().map_or(Ok(()), Journal::secure)
    }

    /// Tells an event to people only: for the time after the journal has failed.
    pub fn tell(&mut self, event: Event) {
        let record = Record { at: clock::now(), event: self.mask.event(event) };
        self.show(&record);
    }

    /// Tells one line of a step's output, as the step wrote it.
    pub fn output(&mut self, line: &[u8]) {
        self.keep_tail(line);
        if self.is_over_limit {
            return;
        }
        if self.events.size().max(self.log.size()) >= self.limit {
            self.is_over_limit = true;
            let text = format!("output beyond {} MiB is not logged", self.limit / (1024 * 1024));
            self.tell(Event::Note { text });
            return;
        }
        self.tell_masked(Event::Output { line: self.readable(line) });
    }

    /// A line of output for people. It is masked before it is cut, so that no part of a secret stays at the edge.
    fn readable(&self, line: &[u8]) -> String {
        self.mask.text(escape::output_line(line, LINE_LIMIT))
    }

    /// The last lines of output since the last step began, for [`Event::StageFailed`].
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut room = TAIL_BYTES;
        for line in self.tail.iter().rev() {
            let line = self.readable(line);
            let line = if line.len() > TAIL_BYTES / 4 { terminal::cut(&line, Some(TAIL_BYTES / 16)) } else { line };
            let Some(left) = room.checked_sub(line.len()) else { break };
            room = left;
            lines.push(line);
        }
        lines.reverse();
        lines
    }

    /// Millions of lines may pass here: the oldest line's memory takes the newest.
    fn keep_tail(&mut self, line: &[u8]) {
        let full = self.tail.len() == TAIL_LINES;
        let mut kept = if full { self.tail.pop_front().unwrap_or_default() } else { Vec::new() };
        kept.clear();
        kept.extend_from_slice(line);
        self.tail.push_back(kept);
    }

    fn tell_masked(&mut self, event: Event) {
        self.show(&Record { at: clock::now(), event });
    }

    fn show(&mut self, record: &Record) {
        let events_fault = match event_line(record) {
            Ok(line) => self.events.write(&line),
            Err(error) => Some(error.one_line()),
        };
        let log_fault = self.log.write(&log_lines(record));
        for fault in [events_fault, log_fault].into_iter().flatten() {
            let text = format!("a file that tells about this deployment lacks lines: {}", escape::visible(&fault));
            let warning = Record { at: clock::now(), event: Event::Warning { text } };
            // Whichever of the three still works tells it.
            if let Some(journal) = &mut self.journal {
                let _ = journal.append(&warning);
            }
            if let Ok(line) = event_line(&warning) {
                let _ = self.events.write(&line);
            }
            let _ = self.log.write(&log_lines(&warning));
        }
    }
}

fn event_line(record: &Record) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record).context(|| "cannot write an event".to_string())?;
    line.push(b'\n');
    Ok(line)
}

fn log_lines(record: &Record) -> Vec<u8> {
    let time = record.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    terminal::plain(record).iter().flat_map(|line| format!("{time} {line}\n").into_bytes()).collect()
}

/// A reader of a deployment's events, from the first one on, while they are written.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    reader: Option<LineReader>,
    wake: Wake,
    outcome: Option<Outcome>,
    is_closed: bool,
}

impl Follower {
    /// Follows the events of a deployment; it need not have begun.
    #[must_use]
    pub fn open(place: &Place, id: &DeploymentId) -> Self {
        let wake = Wake::on_changes_in(&place.logs());
        Self { path: place.events(id), reader: None, wake, outcome: None, is_closed: false }
    }

    /// The next record; `None` if there is none within `wait`, or if nothing will follow ([`Follower::is_closed`]).
    ///
    /// # Errors
    /// If the events cannot be read. A line that a killed worker left torn is passed over.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Record>> {
        let begin = Instant::now();
        loop {
            if self.is_closed {
                return Ok(None);
            }
            if let Some(record) = self.read()? {
                match &record.event {
                    Event::End { outcome } => self.outcome = Some(outcome.clone()),
                    Event::Closed => self.is_closed = true,
                    _ => {}
                }
                return Ok(Some(record));
            }
            let left = wait.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.wake.sleep(left);
        }
    }

    fn read(&mut self) -> Result<Option<Record>> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => match LineReader::open(&self.path)? {
                Some(reader) => self.reader.insert(reader),
                None => return Ok(None),
            },
        };
        while let Some(line) = reader.next_line()? {
            if let Ok(record) = serde_json::from_slice(&line) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// How the deployment ended, once its end was read.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Whether everything is settled and nothing follows.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::outcome::Verdict;
    use crate::project::stage::Stage;
    use crate::report::{journal, samples};
    use crate::sys::error::Kind;
    use std::os::unix::fs::PermissionsExt;

    fn note(text: &str) -> Event {
        Event::Note { text: text.into() }
    }

    fn read(path: PathBuf) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    fn ready() -> (tempfile::TempDir, Place, DeploymentId, Reporter) {
        let (dir, place) = samples::place();
        let id = samples::id(1);
        let journal = Journal::create(&place, &id).unwrap();
        let reporter = Reporter::new(&place, &id, Some(journal));
        (dir, place, id, reporter)
    }

    /// The log without its times, which all have one form.
    fn log_text(place: &Place, id: &DeploymentId) -> String {
        let strip = |line: &str| {
            let (time, text) = line.split_at(21);
            assert!(time.ends_with("Z ") && time[..20].parse::<jiff::Timestamp>().is_ok(), "{line}");
            text.to_string()
        };
        read(place.log(id)).lines().map(strip).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_journal_has_the_durable_events_the_events_file_all_and_the_log_reads_well() {
        let (_dir, place) = samples::place();
        let id = samples::id(1);
        let mut reporter = Reporter::new(&place, &id, None);
        reporter.emit(Event::Waiting { holder: "process 42 deploys".into() }).unwrap();
        reporter.set_journal(Journal::create(&place, &id).unwrap());
        reporter.emit(samples::begin(1)).unwrap();
        reporter.emit(Event::Step { stage: Stage::Build, title: "make".into() }).unwrap();
        reporter.output(b"\x1b[32mcc\x1b[0m x.c\n");
        reporter.output(b"\xff\x1b]0;x\x07\n");
        let tail = reporter.tail();
        assert_eq!(tail, ["cc x.c", "\\xff\\u{1b}]0;x\\u{7}"]);
        reporter.emit(Event::StageFailed { stage: Stage::Build, ms: 2100, reason: "exit 2".into(), tail }).unwrap();
        reporter.emit(samples::end(Verdict::Failed, Some(Stage::Build), Some("exit 2"), None)).unwrap();
        reporter.emit(Event::Closed).unwrap();

        let journal = journal::read(&place, &id).unwrap();
        assert_eq!(journal.len(), 4, "no waiting, no output, no closed");
        assert_eq!(read(place.events(&id)).lines().count(), 8);
        let want = "  · waiting: process 42 deploys
mc_project: shop #1 cooking (staging) 1a2b3c4d5e \"cart: no empty orders\"
  · deployment 20261120T150401Z-0199e5a0-0000-7000-8000-000000000001 by alice; run serves nothing
    $ make
    | cc x.c
    | \\xff\\u{1b}]0;x\\u{7}
  ✗ build              2.1 s  exit 2
mc_project: failed at build: exit 2; nothing is deployed yet";
        assert_eq!(log_text(&place, &id), want);
        for path in [place.events(&id), place.log(&id)] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o640);
        }
    }

    #[test]
    fn a_secret_is_in_no_file_of_the_deployment_not_even_at_the_edge_of_a_cut_line() {
        let (dir, place, id, mut reporter) = ready();
        let secret = "correct-horse-battery";
        reporter.set_secrets(&[secret.to_string()]);
        reporter.emit(note(&format!("told {secret}"))).unwrap();
        reporter.emit(Event::Step { stage: Stage::Build, title: format!("curl -u x:{secret}") }).unwrap();
        reporter.output(format!("password={secret}").as_bytes());
        reporter.output(format!("\u{1b}[1mcorrect-horse\u{1b}[0m-battery {}{secret}", "x".repeat(5_000)).as_bytes());
        let tail = reporter.tail();
        assert!(!tail.concat().contains("correct-horse"));
        assert_eq!(reporter.masked(secret), "[secret]");
        reporter.emit(Event::StageFailed { stage: Stage::Build, ms: 1, reason: secret.into(), tail }).unwrap();
        let _ = (&place, &id);
        let found = std::process::Command::new("grep").args(["-r", "correct-horse"]).arg(dir.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
        assert!(!format!("{reporter:?}").contains("correct-horse"));
    }

    #[test]
    fn output_beyond_the_limit_is_left_out_with_one_line_and_everything_else_goes_on() {
        let (_dir, place, id, mut reporter) = ready();
        reporter.limit = 1024 * 1024;
        for _ in 0..3_000 {
            reporter.output(&[b'x'; 1_000]);
        }
        reporter.output(b"the last words");
        assert_eq!(reporter.tail().last().unwrap(), "the last words");
        reporter.emit(note("after")).unwrap();
        let log = log_text(&place, &id);
        assert_eq!(log.matches("output beyond 1 MiB is not logged").count(), 1);
        assert!(log.ends_with("  · after"));
        for path in [place.events(&id), place.log(&id)] {
            let size = std::fs::metadata(path).unwrap().len();
            assert!((1_000_000..1_060_000).contains(&size), "{size}");
        }
    }

    #[test]
    fn the_tail_is_bounded_and_belongs_to_one_step() {
        let (_dir, _place, _id, mut reporter) = ready();
        for n in 0..100 {
            reporter.output(format!("line {n}").as_bytes());
        }
        assert_eq!(reporter.tail().len(), TAIL_LINES);
        assert_eq!(reporter.tail().last().unwrap(), "line 99");
        for _ in 0..10 {
            reporter.output(&vec![b'y'; 100_000]);
        }
        assert!(reporter.tail().concat().len() <= TAIL_BYTES);
        reporter.emit(Event::Step { stage: Stage::Build, title: "next".into() }).unwrap();
        assert!(reporter.tail().is_empty());
    }

    #[test]
    fn a_fault_of_the_files_for_people_is_told_once_and_fails_nothing() {
        let (dir, place, id, mut reporter) = ready();
        std::fs::create_dir_all(dir.path().join("var/log")).unwrap();
        std::fs::write(dir.path().join("var/log/mc_project"), "in the way").unwrap();
        for n in 0..3 {
            reporter.emit(note(&format!("note {n}"))).unwrap();
        }
        std::fs::remove_file(dir.path().join("var/log/mc_project")).unwrap();
        reporter.emit(Event::Closed).unwrap();
        let journal = journal::read(&place, &id).unwrap();
        let warnings = journal.iter().filter(|r| matches!(r.event, Event::Warning { .. })).count();
        assert_eq!((journal.len() - warnings, warnings), (3, 2), "one for each file");
        let mut follower = Follower::open(&place, &id);
        assert_eq!(
            follower.next(Duration::ZERO).unwrap().unwrap().event,
            Event::Closed,
            "the end is told all the same"
        );
    }

    #[test]
    fn an_event_that_the_journal_cannot_take_is_an_error_and_is_told_to_nobody() {
        if !crate::sys::lines::small_files::in_child(
            "report::stream::tests::an_event_that_the_journal_cannot_take_is_an_error_and_is_told_to_nobody",
        ) {
            return;
        }
        let (_dir, place, id, mut reporter) = ready();
        reporter.emit(note("one")).unwrap();
        let error = reporter.emit(note(&"x".repeat(200_000))).unwrap_err();
        assert_eq!(error.kind(), Kind::Failed);
        reporter.emit(note("two")).unwrap();
        let texts: Vec<_> = journal::read(&place, &id).unwrap().into_iter().map(|r| r.event).collect();
        assert_eq!(texts, [note("one"), note("two")]);
        assert_eq!(read(place.events(&id)).lines().count(), 2);
    }

    #[test]
    fn a_follower_sees_everything_from_the_start_waits_for_what_comes_and_knows_the_end() {
        let (_dir, place, id, mut reporter) = ready();
        let mut follower = Follower::open(&place, &id);
        let begin = Instant::now();
        assert!(follower.next(Duration::from_millis(150)).unwrap().is_none());
        assert!(begin.elapsed() >= Duration::from_millis(150));
        let worker = std::thread::spawn(move || {
            for n in 0..200 {
                reporter.emit(note(&format!("note {n}"))).unwrap();
            }
            std::thread::sleep(Duration::from_millis(50));
            reporter.emit(samples::end(Verdict::Deployed, None, None, Some((1, "1a2b3c4d5e")))).unwrap();
            reporter.emit(Event::Closed).unwrap();
        });
        for n in 0..200 {
            let record = follower.next(Duration::from_secs(10)).unwrap().unwrap();
            assert_eq!(record.event, note(&format!("note {n}")));
        }
        assert!(follower.outcome().is_none());
        assert!(matches!(follower.next(Duration::from_secs(10)).unwrap().unwrap().event, Event::End { .. }));
        assert_eq!(follower.outcome().unwrap().verdict, Verdict::Deployed);
        assert!(!follower.is_closed());
        assert_eq!(follower.next(Duration::from_secs(10)).unwrap().unwrap().event, Event::Closed);
        assert!(follower.is_closed());
        assert!(follower.next(Duration::from_secs(100)).unwrap().is_none(), "nothing is waited for after the end");
        worker.join().unwrap();
    }

    #[test]
    fn a_line_torn_by_a_killed_worker_is_passed_over_and_the_next_worker_begins_a_new_one() {
        let (_dir, place, id, mut reporter) = ready();
        reporter.emit(note("one")).unwrap();
        drop(reporter);
        let mut text = read(place.events(&id));
        text.push_str("{\"at\":\"2026-11-2");
        std::fs::write(place.events(&id), text).unwrap();
        let mut follower = Follower::open(&place, &id);
        assert_eq!(follower.next(Duration::ZERO).unwrap().unwrap().event, note("one"));
        assert!(follower.next(Duration::ZERO).unwrap().is_none());
        let mut second = Reporter::new(&place, &id, Some(Journal::open(&place, &id).unwrap()));
        second.emit(note("two")).unwrap();
        assert_eq!(follower.next(Duration::from_secs(5)).unwrap().unwrap().event, note("two"));
    }
}
