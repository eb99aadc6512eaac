//! A deployment while it is watched: one line for each finished stage and, on a terminal, a last line that is written anew,
//! with what runs at this moment and for how long.
//!
//! Pure: an event or a tick of the clock goes in, the text for the screen comes out. Only the last line is ever rewritten
//! (`CR ESC [ K`), so that nothing is left to be tidied up whenever the program ends.

use std::time::{Duration, Instant};

use super::event::{Event, Record};
use super::terminal::{self, Style, cut, duration, shown_output};
use crate::project::stage::Stage;
use crate::sys::escape::visible;

/// Back to the begin of the line, and clear it.
const CLEAR: &str = "\r\u{1b}[K";

/// What is shown of one deployment.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    is_live: bool,
    doing: Option<Doing>,
    /// The newest event: when it happened there, and when it was heard here. The two clocks are never compared.
    newest: Option<(jiff::Timestamp, Instant)>,
    has_live_line: bool,
}

#[derive(Debug)]
struct Doing {
    what: String,
    since: jiff::Timestamp,
    step: Option<String>,
}

impl Progress {
    /// Lines in this style; `is_live` on a terminal that can clear a line.
    #[must_use]
    pub fn new(style: Style, is_live: bool) -> Self {
        Self { style, is_live, doing: None, newest: None, has_live_line: false }
    }

    /// What to write for an event that was heard `now`.
    #[must_use]
    pub fn record(&mut self, record: &Record, now: Instant) -> String {
        self.newest = Some((record.at, now));
        let doing = |what: String| Some(Doing { what, since: record.at, step: None });
        match &record.event {
            Event::Still { .. } if self.is_live => return self.tick(now),
            Event::Stage { stage } => self.doing = doing(stage.name().to_string()),
            Event::Waiting { .. } => self.doing = doing("waiting".to_string()),
            Event::Ordered { .. } => self.doing = doing("starting".to_string()),
            Event::RollingBack { .. } => self.doing = doing(Stage::Rollback.name().to_string()),
            Event::Step { title, .. } => {
                if let Some(doing) = &mut self.doing {
                    doing.step = Some(title.clone());
                }
            }
            Event::StageDone { .. } | Event::StageFailed { .. } | Event::End { .. } => self.doing = None,
            _ => {}
        }
        let lines = terminal::lines(record, &self.style);
        self.with_live_line(&lines, now)
    }

    /// What to write as time passes.
    #[must_use]
    pub fn tick(&mut self, now: Instant) -> String {
        if self.doing.is_some() { self.with_live_line(&[], now) } else { String::new() }
    }

    /// What to write at the end, whatever the end is: what ran is not known to run any more.
    #[must_use]
    pub fn end(&mut self) -> String {
        self.doing = None;
        if std::mem::take(&mut self.has_live_line) { CLEAR.to_string() } else { String::new() }
    }

    fn with_live_line(&mut self, lines: &[String], now: Instant) -> String {
        let mut text = String::new();
        if self.has_live_line {
            text.push_str(CLEAR);
        }
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        let live = self.live_line(now);
        self.has_live_line = live.is_some();
        text.push_str(&live.unwrap_or_default());
        text
    }

    fn live_line(&self, now: Instant) -> Option<String> {
        let (doing, (at, heard)) = (self.doing.as_ref().filter(|_| self.is_live)?, self.newest?);
        let there = Duration::try_from(at.duration_since(doing.since)).unwrap_or_default();
        let time = duration(u64::try_from((there + now.saturating_duration_since(heard)).as_millis()).unwrap_or(0));
        let mut text = format!("  … {} {time}", visible(&doing.what));
        if let Some(step) = &doing.step {
            text.push_str("  $ ");
            text.push_str(&shown_output(step).replace('\t', " "));
        }
        // One column less than there is: a full line wraps, and its first half would stay.
        Some(cut(&text, Some(self.style.width.unwrap_or(80).saturating_sub(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::outcome::Verdict;
    use crate::report::samples::{begin, end, record};

    fn stage(stage: Stage) -> Event {
        Event::Stage { stage }
    }

    fn done(stage: Stage, ms: u64) -> Event {
        Event::StageDone { stage, ms, note: None }
    }

    /// What stands on a terminal after this text, its last line with it.
    fn screen(text: &str) -> Vec<String> {
        text.split('\n').map(|line| line.rsplit(CLEAR).next().unwrap().to_string()).collect()
    }

    #[test]
    fn a_terminal_shows_finished_stages_and_one_line_that_runs() {
        let mut progress = Progress::new(Style { width: Some(40), ..Style::default() }, true);
        let begin_at = Instant::now();
        let mut text = String::new();
        let mut hear = |n: u64, event: Event, text: &mut String| {
            text.push_str(&progress.record(&record(n, event), begin_at + Duration::from_secs(n)));
            progress.tick(begin_at + Duration::from_secs(n + 1))
        };
        hear(0, begin(12), &mut text);
        hear(1, stage(Stage::Checkout), &mut text);
        hear(2, done(Stage::Checkout, 900), &mut text);
        hear(3, stage(Stage::Build), &mut text);
        let title = "npm ci --with-a-very-long-argument".to_string();
        let tick = hear(70, Event::Step { stage: Stage::Build, title }, &mut text);
        assert_eq!(screen(&tick), ["  … build 1 min 08 s  $ npm ci --with-…"]);
        text.push_str(&tick);
        let shown = screen(&text);
        assert_eq!(shown.len(), 3, "{shown:?}");
        assert!(shown[1].starts_with("  ✓ checkout") && shown[2].starts_with("  … build"), "{shown:?}");
        hear(80, done(Stage::Build, 77_000), &mut text);
        hear(81, end(Verdict::Deployed, None, None, None), &mut text);
        let shown = screen(&text);
        assert!(shown[3].starts_with("mc_project: deployed") && shown[4].is_empty(), "{shown:?}");
    }

    #[test]
    fn what_was_missed_while_the_connection_was_lost_counts_for_the_time() {
        let mut progress = Progress::new(Style::default(), true);
        let now = Instant::now();
        // Both are heard at once, a minute after the first of them happened.
        let _ = progress.record(&record(0, stage(Stage::Build)), now);
        let text = progress.record(&record(60, Event::Touched), now);
        assert!(text.ends_with("  … build 1 min 00 s"), "{text:?}");
    }

    #[test]
    fn a_file_gets_plain_lines_only() {
        let mut progress = Progress::new(Style::default(), false);
        let now = Instant::now();
        let events = [begin(1), stage(Stage::Build), done(Stage::Build, 5), Event::Still { text: "… still".into() }];
        let text: String = events.into_iter().map(|event| progress.record(&record(0, event), now)).collect();
        assert!(!text.contains(['\r', '\u{1b}']), "{text:?}");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.ends_with("… still\n") && progress.tick(now).is_empty());
    }
}
