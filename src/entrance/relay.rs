//! What a worker says reaches the pusher, as long as the pusher listens.
//!
//! A dead ssh client does not tell anyone: git stops reading the hook's standard error, keeps the pipe open, and a
//! hook that goes on writing blocks in write(2) for ever. So nothing is written that poll(2) does not promise to be
//! taken, and after some seconds without progress nothing is written at all. The deployment does not depend on it.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::entrance::Run;
use crate::project::outcome::Outcome;
use crate::project::request::Request;
use crate::project::stage::Stage;
use crate::report::event::{Event, Record};
use crate::sys::error::{Error, Result};
use crate::sys::escape::hint_lines;
use crate::sys::pipe::NonBlocking;

/// Takes lines for a person.
pub trait Tell {
    /// Shows one line, which is escaped already; it never fails and never blocks for long.
    fn line(&mut self, text: &str);

    /// Shows an event, by the lines that `render` makes of it.
    fn record(&mut self, record: &Record, render: &dyn Fn(&Record) -> Vec<String>) {
        for line in render(record) {
            self.line(&line);
        }
    }

    /// Shows what still runs after a long silence.
    fn still(&mut self, text: &str) {
        self.line(text);
    }

    /// Hears that a deployment was ordered.
    fn ordered(&mut self, _request: &Request) {}

    /// Shows what to do about a refusal whose reason git itself shows.
    fn refusal(&mut self, error: &Error) {
        for line in error.hint_text().into_iter().flat_map(hint_lines) {
            self.line(&line);
        }
    }
}

impl Tell for Vec<String> {
    fn line(&mut self, text: &str) {
        self.push(text.to_string());
    }
}

/// The pusher's screen: a descriptor, usually standard error, that may be dead or stopped.
///
/// Rust's runtime ignores SIGPIPE before `main`, so a closed pipe is an error here and not our death.
#[derive(Debug)]
pub struct Screen<'a> {
    fd: BorrowedFd<'a>,
    patience: Duration,
    /// Gives the descriptor's flags back, if they were changed.
    _nonblocking: Option<NonBlocking<'a>>,
    listens: bool,
}

impl<'a> Screen<'a> {
    /// How long a pusher may take nothing before we fall silent.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// Writes to `fd`, and gives up after `patience` without progress.
    #[must_use]
    pub fn new(fd: BorrowedFd<'a>, patience: Duration) -> Self {
        Self { fd, patience, _nonblocking: NonBlocking::of_pipe(fd), listens: true }
    }

    /// Whether the pusher still takes what is said.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.listens
    }

    fn write(&mut self, mut bytes: &[u8]) {
        let mut deadline = Instant::now() + self.patience;
        while !bytes.is_empty() && self.listens {
            if !self.is_ready(deadline) {
                self.listens = false;
                return;
            }
            // Where the descriptor could not be made non-blocking, a write of this size to a pipe that is ready does
            // not block: pipe(7), PIPE_BUF.
            match rustix::io::write(self.fd, &bytes[..bytes.len().min(4096)]) {
                Ok(n) if n > 0 => {
                    bytes = &bytes[n..];
                    deadline = Instant::now() + self.patience;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Ok(_) | Err(_) => self.listens = false,
            }
        }
    }

    fn is_ready(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            match poll(&mut fds, Some(&timeout)) {
                // A closed pipe is "ready" with an error, which the write then tells.
                Ok(n) if n > 0 => return true,
                Ok(_) if left.is_zero() => return false,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

impl Tell for Screen<'_> {
    fn line(&mut self, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(b'\n');
        self.write(&bytes);
    }
}

/// A screen on our standard error.
#[must_use]
pub fn stderr_screen(stderr: &std::io::Stderr) -> Screen<'_> {
    Screen::new(stderr.as_fd(), Screen::PATIENCE)
}

/// The times by which a deployment is followed.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long one wait for an event lasts; between two it is asked whether the worker lives.
    pub wait: Duration,
    /// After how much silence a line says that it still runs.
    pub keep_alive: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { wait: Duration::from_secs(1), keep_alive: Duration::from_secs(30) }
    }
}

/// How following ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The deployment ended so.
    Ended(Outcome),
    /// Worker and watcher are dead and have not said how it ended.
    Died,
}

/// Follows a deployment to its end and tells what it says.
///
/// # Errors
/// If its events cannot be read.
pub fn follow(
    run: &mut dyn Run,
    render: &dyn Fn(&Record) -> Vec<String>,
    tell: &mut dyn Tell,
    pace: Pace,
) -> Result<Ending> {
    let mut doing = Doing::starting();
    let mut told = Instant::now();
    loop {
        let record = match run.next(pace.wait)? {
            Some(record) => record,
            None if run.is_gone() => match run.next(Duration::ZERO)? {
                // It may have spoken between our last look and its death.
                Some(record) => record,
                None => return Ok(Ending::Died),
            },
            None => {
                if told.elapsed() >= pace.keep_alive {
                    tell.still(&doing.still());
                    told = Instant::now();
                }
                continue;
            }
        };
        doing.see(&record.event);
        if let Event::End { outcome } = &record.event {
            settle(run, render, tell)?;
            tell.record(&record, render);
            return Ok(Ending::Ended(outcome.clone()));
        }
        if !render(&record).is_empty() {
            told = Instant::now();
        }
        tell.record(&record, render);
    }
}

/// How long the pusher waits after the end until the worker says what it looks at.
const SETTLING: Duration = Duration::from_millis(400);
/// A tree of so many entries is looked at in milliseconds, so it is waited for even on a machine that is busy.
const FEW: usize = 5_000;
/// How long that may take at most.
const LOOKING: Duration = Duration::from_secs(2);
/// A larger tree is waited for so long: nobody notices it, and a quiet machine is done by then.
const GLANCE: Duration = Duration::from_millis(50);
/// Nobody waits for one that is larger than this. What is found in it is in the log, in the mail and in `show`.
const MANY: usize = 30_000;

/// Relays what concerns the pusher after the end (whether `run` had been changed by hand), for a bounded time; the verdict
/// comes last.
fn settle(run: &mut dyn Run, render: &dyn Fn(&Record) -> Vec<String>, tell: &mut dyn Tell) -> Result<()> {
    let mut until = Instant::now() + SETTLING;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let Some(record) = run.next(left.min(Duration::from_millis(100)))? else {
            if run.is_gone() {
                break;
            }
            continue;
        };
        match record.event {
            Event::LetGo | Event::Closed => break,
            Event::Looking { entries } if entries > MANY => break,
            Event::Looking { entries } => until = Instant::now() + if entries <= FEW { LOOKING } else { GLANCE },
            _ => tell.record(&record, render),
        }
    }
    Ok(())
}

/// What the deployment does at the moment, for the lines of long silence.
struct Doing {
    what: Option<Stage>,
    waits: bool,
    since: Instant,
}

impl Doing {
    fn starting() -> Self {
        Self { what: None, waits: false, since: Instant::now() }
    }

    fn see(&mut self, event: &Event) {
        match event {
            Event::Stage { stage } => *self = Self { what: Some(*stage), waits: false, since: Instant::now() },
            Event::Waiting { .. } if !self.waits => *self = Self { what: None, waits: true, since: Instant::now() },
            Event::Begin(_) => self.waits = false,
            _ => {}
        }
    }

    fn still(&self) -> String {
        let what = match (self.what, self.waits) {
            (_, true) => "still waiting for the deployment before this one".to_string(),
            (Some(stage), false) => format!("{} still running", stage.name()),
            (None, false) => "still starting".to_string(),
        };
        format!("… {what} ({})", words(self.since.elapsed()))
    }
}

/// `45 s`, `2 min 30 s`, `1 h 05 min`.
fn words(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, s) => format!("{min} min {s:02} s"),
        (h, min, _) => format!("{h} h {min:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};

    use rustix::fs::{OFlags, fcntl_getfl};

    use super::*;
    use crate::entrance::fake::{FakeRun, end, record};
    use crate::project::outcome::Verdict;

    fn plain(record: &Record) -> Vec<String> {
        match &record.event {
            Event::Note { text } => vec![text.clone()],
            Event::End { outcome } => vec![outcome.line()],
            _ => Vec::new(),
        }
    }

    fn note(text: &str) -> Record {
        record(Event::Note { text: text.to_string() })
    }

    const FAST: Pace = Pace { wait: Duration::from_millis(5), keep_alive: Duration::from_millis(40) };

    #[test]
    fn a_reader_that_stopped_cannot_stall_us_and_hears_nothing_of_what_comes_later() {
        let (mut reader, writer) = pipe().unwrap();
        let mut screen = Screen::new(writer.as_fd(), Duration::from_millis(100));
        let before = Instant::now();
        for _ in 0..100 {
            screen.line(&"x".repeat(10_000));
        }
        assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
        assert!(!screen.listens());
        screen.line("after");
        drop(screen);
        drop(writer);
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert!(got.len() >= 10_000 && !got.contains("after"), "{}", got.len());
    }

    #[test]
    fn a_slow_reader_gets_everything() {
        let (mut reader, writer) = pipe().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut total, mut buffer) = (0, vec![0; 30_000]);
            loop {
                std::thread::sleep(Duration::from_millis(2));
                match reader.read(&mut buffer).unwrap() {
                    0 => return total,
                    n => total += n,
                }
            }
        });
        {
            let mut screen = Screen::new(writer.as_fd(), Duration::from_secs(5));
            for _ in 0..50 {
                screen.line(&"x".repeat(9_999));
            }
            assert!(screen.listens());
        }
        drop(writer);
        assert_eq!(thread.join().unwrap(), 500_000);
    }

    #[test]
    fn a_closed_pipe_ends_the_talking_and_not_the_process() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut screen = Screen::new(writer.as_fd(), Duration::from_secs(5));
        let before = Instant::now();
        screen.line("x");
        assert!(!screen.listens() && before.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn the_flags_of_the_descriptor_are_given_back() {
        let (_reader, writer) = pipe().unwrap();
        {
            let _screen = Screen::new(writer.as_fd(), Duration::from_secs(1));
            assert!(fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
        }
        assert!(!fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn following_ends_with_the_outcome_and_tells_what_is_rendered() {
        let (looking, go) = (record(Event::Looking { entries: 10 }), record(Event::LetGo));
        let all = vec![note("one"), end(Verdict::Deployed), looking, note("settled"), go, note("never told")];
        let mut told = Vec::new();
        let ending = follow(&mut FakeRun::of(all), &plain, &mut told, FAST).unwrap();
        let Ending::Ended(outcome) = ending else { panic!("{ending:?}") };
        assert_eq!(outcome.verdict, Verdict::Deployed);
        assert_eq!(told, ["one".to_string(), "settled".to_string(), outcome.line()], "the verdict comes last");
    }

    #[test]
    fn settling_holds_the_pusher_for_a_bounded_time_only() {
        let mut run = FakeRun::of(vec![end(Verdict::Deployed)]);
        run.silent = usize::MAX;
        let mut told = Vec::new();
        let before = Instant::now();
        let ending = follow(&mut run, &plain, &mut told, FAST).unwrap();
        assert!(matches!(ending, Ending::Ended(_)) && told.len() == 1, "{told:?}");
        assert!((SETTLING..SETTLING * 3).contains(&before.elapsed()), "{:?}", before.elapsed());
    }

    #[test]
    fn a_small_tree_holds_the_pusher_until_it_was_looked_at_a_larger_one_for_a_moment_and_a_huge_one_not_at_all() {
        for (entries, bound) in [(MANY + 1, Duration::ZERO), (FEW + 1, GLANCE), (FEW, LOOKING)] {
            let mut run = FakeRun::of(vec![end(Verdict::Deployed), record(Event::Looking { entries })]);
            run.silent = usize::MAX;
            let before = Instant::now();
            assert!(matches!(follow(&mut run, &plain, &mut Vec::new(), FAST).unwrap(), Ending::Ended(_)));
            assert!((bound..bound + SETTLING).contains(&before.elapsed()), "{entries}: {:?}", before.elapsed());
        }
    }

    #[test]
    fn silence_is_broken_by_a_line_that_names_the_stage() {
        let mut run = FakeRun::of(vec![record(Event::Stage { stage: Stage::Build })]);
        run.silent = 30;
        let mut told = Vec::new();
        assert_eq!(follow(&mut run, &plain, &mut told, FAST).unwrap(), Ending::Died);
        assert!(told.len() >= 2, "{told:?}");
        assert!(told.iter().all(|line| line == "… build still running (0 s)"), "{told:?}");
    }

    #[test]
    fn the_last_words_of_a_dead_worker_are_heard() {
        let mut run = FakeRun::of(Vec::new());
        run.last_words = vec![end(Verdict::Failed)];
        let ending = follow(&mut run, &plain, &mut Vec::new(), FAST).unwrap();
        assert!(matches!(ending, Ending::Ended(outcome) if outcome.verdict == Verdict::Failed));
    }

    #[test]
    fn times_read_well() {
        let text = |s| words(Duration::from_secs(s));
        assert_eq!([text(45), text(150), text(3905)], ["45 s", "2 min 30 s", "1 h 05 min"]);
    }
}
