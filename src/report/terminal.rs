//! The lines that a pusher reads: pure functions from a record to text.
//!
//! One line per stage, when it has ended, with its time and what it did; the last output of a step that failed; at the
//! end one verdict line and what to do next. Everything that strangers wrote is escaped here once more: escaping twice
//! changes nothing.

use super::event::{Begin, Event, Record, Work};
use crate::project::outcome::{Outcome, SwitchKind, Verdict};
use crate::project::stage::Stage;
use crate::sys::escape;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Colours by `ESC [ … m`.
    pub colour: bool,
    /// Steps, output and every single act too.
    pub verbose: bool,
    /// Only ASCII: for terminals that do not speak UTF-8.
    pub ascii: bool,
    /// The width of the terminal, where titles and subjects are cut; `None`: never cut.
    pub width: Option<usize>,
}

impl Style {
    /// The style of log files: everything, without colour.
    pub const LOG: Self = Self { colour: false, verbose: true, ascii: false, width: None };
}

#[derive(Clone, Copy)]
enum Paint {
    Good,
    Bad,
    Warn,
    Faint,
    Strong,
}

/// The name of a stage and its time take so many columns together, so that notes stand below each other.
const STAGE_COLUMNS: usize = 24;

/// The lines of one record; often none.
#[must_use]
pub fn lines(record: &Record, style: &Style) -> Vec<String> {
    let lines = match &record.event {
        Event::Begin(begin) => begin_lines(begin, style),
        Event::Waiting { holder } => vec![style.item("·", Paint::Faint, &format!("waiting: {}", shown(holder)))],
        Event::StageDone { stage, ms, note } => {
            vec![stage_line(style, "✓", Paint::Good, *stage, *ms, note.as_deref().unwrap_or(""))]
        }
        Event::StageFailed { stage, ms, reason, tail } => {
            let mut lines = vec![stage_line(style, "✗", Paint::Bad, *stage, *ms, reason)];
            // In the verbose form the output stands directly above.
            if !style.verbose {
                lines.extend(tail.iter().map(|line| style.output(line)));
            }
            lines
        }
        Event::Still { text } => vec![shown(text)],
        Event::Note { text } => vec![style.item("·", Paint::Faint, &shown(text))],
        Event::Warning { text } => vec![style.item("!", Paint::Warn, &shown(text))],
        Event::RollingBack { reason, stage, data } => {
            let what = if *data { "rolling back, data too" } else { "rolling back" };
            let text = format!("{what}: {} failed: {}", stage.name(), shown(reason));
            vec![style.item("!", Paint::Warn, &text)]
        }
        Event::End { outcome } => end_lines(outcome, style),
        other if style.verbose => verbose_lines(other, style),
        _ => Vec::new(),
    };
    if style.ascii { lines.into_iter().map(|line| ascii(&line)).collect() } else { lines }
}

/// The lines of one record as they stand in the log: everything, without colour.
#[must_use]
pub fn plain(record: &Record) -> Vec<String> {
    lines(record, &Style::LOG)
}

fn begin_lines(begin: &Begin, style: &Style) -> Vec<String> {
    let commit = begin.commit.short();
    let what = match begin.work {
        Work::Deploy => format!("{} ({}) {commit}", begin.mode.name(), begin.environment.name()),
        Work::Rollback if begin.with_data => format!("rollback ({}) to {commit} with data", begin.environment.name()),
        Work::Rollback => format!("rollback ({}) to {commit}", begin.environment.name()),
    };
    let head = format!("{} #{} {what}", shown(&begin.project), begin.seq);
    let room = style.width.map(|w| w.saturating_sub("mc_project: ".len() + head.chars().count() + 3));
    let subject = cut(&shown(&begin.subject), room);
    let mut lines = vec![format!("{} {head} \"{subject}\"", style.paint(Paint::Strong, "mc_project:"))];
    if let Some(reason) = &begin.reason {
        lines.push(style.item("·", Paint::Faint, &format!("reason: {}", shown(reason))));
    }
    if style.verbose {
        let serves = begin.serves.as_ref().map_or("nothing".to_string(), |s| s.commit.short().to_string());
        let text = format!("deployment {} by {}; run serves {serves}", begin.id, shown(&begin.pusher));
        lines.push(style.item("·", Paint::Faint, &text));
    }
    lines
}

fn stage_line(style: &Style, mark: &str, paint: Paint, stage: Stage, ms: u64, note: &str) -> String {
    let time = duration(ms);
    let room = STAGE_COLUMNS.saturating_sub(stage.name().len()).max(time.len() + 1);
    let text = format!("{}{time:>room$}  {}", stage.name(), shown(note));
    style.item(mark, paint, text.trim_end())
}

fn end_lines(outcome: &Outcome, style: &Style) -> Vec<String> {
    let paint = match outcome.verdict {
        Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared => Paint::Good,
        Verdict::RolledBack | Verdict::Interrupted => Paint::Warn,
        Verdict::Refused | Verdict::Failed | Verdict::LeftAsItIs | Verdict::NeedsPerson => Paint::Bad,
    };
    let verdict = style.paint(paint, &shown(&outcome.line()));
    let mut lines = vec![format!("{} {verdict}", style.paint(Paint::Strong, "mc_project:"))];
    lines.extend(outcome.hints.iter().flat_map(|hint| escape::hint_lines(hint)).map(|line| format!("    {line}")));
    lines
}

fn verbose_lines(event: &Event, style: &Style) -> Vec<String> {
    let act = |text: &str| vec![style.item("·", Paint::Faint, text)];
    match event {
        Event::Stage { stage } => vec![style.item("…", Paint::Faint, stage.name())],
        Event::Step { title, .. } => vec![format!("    $ {}", cut(&shown(title), style.width.map(|w| w - w.min(6))))],
        Event::StepDone { status, ms, .. } => vec![format!("    = {}, {}", shown(status), duration(*ms))],
        Event::Output { line } => vec![style.output(line)],
        Event::Prepared => act("the candidate is complete"),
        Event::Stopping => act("stopping the old version"),
        Event::BackedUp => act("the restore point is complete"),
        Event::Switching { how: SwitchKind::Exchange, .. } => act("switching run by one exchange"),
        Event::Switching { how: SwitchKind::InPlace, .. } => act("switching run file by file"),
        Event::Switched { .. } => act("run is the new version"),
        Event::Touched => act("steps of the new version run: data may change from here on"),
        Event::CheckingOut { .. } => act("checking the commit out in the clone"),
        Event::CheckedOut => act("run is at the new commit"),
        Event::Commit { serves } => act(&format!("committed: {} is live", serves.commit.short())),
        Event::RestoringData { from, .. } => act(&format!("data go back to before {from}")),
        Event::RolledBack => act("run is the old version again"),
        Event::DataRestored => act("data are as they were at the restore point"),
        _ => Vec::new(),
    }
}

impl Style {
    fn item(&self, mark: &str, paint: Paint, text: &str) -> String {
        format!("  {} {text}", self.paint(paint, mark))
    }

    fn output(&self, line: &str) -> String {
        format!("    {} {}", self.paint(Paint::Faint, "|"), shown_output(line)).trim_end().to_string()
    }

    fn paint(&self, paint: Paint, text: &str) -> String {
        if !self.colour {
            return text.to_string();
        }
        let code = match paint {
            Paint::Good => "32",
            Paint::Bad => "1;31",
            Paint::Warn => "33",
            Paint::Faint => "2",
            Paint::Strong => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// A time for people: `85 ms`, `1.2 s`, `2 min 05 s`, `1 h 02 min`.
#[must_use]
pub fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {:02} s", ms / 60_000, ms % 60_000 / 1000),
        _ => format!("{} h {:02} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// Text of one line, safe to show.
fn shown(text: &str) -> String {
    escape::visible(text)
}

/// A line of output, safe to show; its tabs stay.
#[must_use]
pub fn shown_output(line: &str) -> String {
    line.split('\t').map(escape::visible).collect::<Vec<_>>().join("\t")
}

/// The text, cut to `room` characters; the last one is `…` then.
#[must_use]
pub fn cut(text: &str, room: Option<usize>) -> String {
    match room {
        Some(room) if text.chars().count() > room => {
            text.chars().take(room.saturating_sub(1)).chain((room > 0).then_some('…')).collect()
        }
        _ => text.to_string(),
    }
}

/// The text in ASCII: our own marks have a plain form, other characters are written `\u{..}`.
#[must_use]
pub fn ascii(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '✓' => out.push('+'),
            '✗' => out.push('x'),
            '·' => out.push('-'),
            '█' => out.push('#'),
            '…' => out.push_str("..."),
            c if c.is_ascii() => out.push(c),
            c => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples::{begin, begin_facts, end, record};

    fn story(events: Vec<Event>, style: &Style) -> String {
        let lines: Vec<String> =
            events.into_iter().enumerate().flat_map(|(n, event)| lines(&record(n as u64, event), style)).collect();
        lines.join("\n")
    }

    fn done(stage: Stage, ms: u64, note: &str) -> Event {
        Event::StageDone { stage, ms, note: (!note.is_empty()).then(|| note.to_string()) }
    }

    fn rolled_back() -> Vec<Event> {
        vec![
            begin(12),
            Event::Stage { stage: Stage::Checkout },
            done(Stage::Checkout, 85, "12 files changed"),
            Event::Step { stage: Stage::Build, title: "npm ci".into() },
            Event::Output { line: "added 3 packages".into() },
            Event::StepDone { stage: Stage::Build, status: "ok".into(), ms: 12_400 },
            done(Stage::Build, 125_400, "3 steps"),
            done(Stage::PostInstall, 725_000, ""),
            Event::Warning { text: "2 files were changed by hand in run".into() },
            Event::StageFailed {
                stage: Stage::Upgrade,
                ms: 2_199,
                reason: "exit 2".into(),
                tail: vec!["Traceback:".into(), "\tno such column".into(), String::new()],
            },
            Event::RollingBack { reason: "exit 2".into(), stage: Stage::Upgrade, data: true },
            Event::RolledBack,
            done(Stage::Rollback, 310, "code and data"),
            Event::Note { text: "what failed is kept in archives/x/run.failed".into() },
            Event::Closed,
        ]
    }

    fn verdict() -> Event {
        let mut event = end(Verdict::RolledBack, Some(Stage::Upgrade), Some("exit 2"), Some((11, "9f8e7d6c5b")));
        if let Event::End { outcome } = &mut event {
            outcome.hints = vec!["mc_project logs shop".into()];
        }
        event
    }

    #[test]
    fn a_pusher_reads_one_line_per_stage_the_tail_of_what_failed_and_one_verdict() {
        let mut events = rolled_back();
        events.push(verdict());
        let want = "\
mc_project: shop #12 cooking (staging) 1a2b3c4d5e \"cart: no empty orders\"
  ✓ checkout           85 ms  12 files changed
  ✓ build         2 min 05 s  3 steps
  ✓ post_install 12 min 05 s
  ! 2 files were changed by hand in run
  ✗ upgrade            2.1 s  exit 2
    | Traceback:
    | \tno such column
    |
  ! rolling back, data too: upgrade failed: exit 2
  ✓ rollback          310 ms  code and data
  · what failed is kept in archives/x/run.failed
mc_project: rolled back at upgrade: exit 2; run serves 9f8e7d6c5b again
    hint: mc_project logs shop";
        assert_eq!(story(events, &Style::default()), want);
    }

    #[test]
    fn the_log_tells_every_act_and_the_output_once() {
        let want = "\
mc_project: shop #12 cooking (staging) 1a2b3c4d5e \"cart: no empty orders\"
  · deployment 20261120T150412Z-0199e5a0-0000-7000-8000-00000000000c by alice; run serves nothing
  … checkout
  ✓ checkout           85 ms  12 files changed
    $ npm ci
    | added 3 packages
    = ok, 12.4 s
  ✓ build         2 min 05 s  3 steps
  ✓ post_install 12 min 05 s
  ! 2 files were changed by hand in run
  ✗ upgrade            2.1 s  exit 2
  ! rolling back, data too: upgrade failed: exit 2
  · run is the old version again
  ✓ rollback          310 ms  code and data
  · what failed is kept in archives/x/run.failed";
        assert_eq!(story(rolled_back(), &Style::LOG), want);
    }

    #[test]
    fn colour_comes_only_when_asked_for_and_changes_no_word() {
        let style = Style { colour: true, ..Style::default() };
        let coloured = story(vec![done(Stage::Build, 85, "x"), verdict()], &style);
        let want = "  \u{1b}[32m✓\u{1b}[0m build              85 ms  x\n\
            \u{1b}[1mmc_project:\u{1b}[0m \u{1b}[33mrolled back at upgrade: exit 2; run serves 9f8e7d6c5b again\u{1b}[0m\n\
            \x20   hint: mc_project logs shop";
        assert_eq!(coloured, want);
        let mut events = rolled_back();
        events.push(verdict());
        assert!(!story(events, &Style::default()).contains('\u{1b}'));
    }

    #[test]
    fn the_ascii_form_holds_ascii_only() {
        let mut facts = begin_facts(12);
        facts.subject = "café".into();
        let mut events = vec![Event::Begin(Box::new(facts))];
        events.extend(rolled_back().split_off(1));
        let text = story(events, &Style { ascii: true, verbose: true, ..Style::default() });
        assert!(text.is_ascii(), "{text}");
        assert!(text.contains("\"caf\\u{e9}\""), "{text}");
        assert!(text.contains("  + build         2 min 05 s  3 steps\n"), "{text}");
        assert!(text.contains("  x upgrade            2.1 s  exit 2\n"), "{text}");
    }

    #[test]
    fn what_strangers_wrote_cannot_reach_the_terminal_or_make_a_line() {
        let evil = "a\u{1b}]0;x\u{7}\nmc_project: deployed\u{202e}";
        let mut facts = begin_facts(1);
        facts.subject = evil.into();
        facts.pusher = evil.into();
        facts.reason = Some(evil.into());
        let mut verdict = end(Verdict::Failed, Some(Stage::Build), Some(evil), None);
        if let Event::End { outcome } = &mut verdict {
            outcome.hints = vec![evil.into()];
        }
        let text = || evil.to_string();
        let events = vec![
            Event::Begin(Box::new(facts)),
            Event::Waiting { holder: text() },
            done(Stage::Build, 1, evil),
            Event::StageFailed { stage: Stage::Build, ms: 1, reason: text(), tail: vec![text()] },
            Event::Step { stage: Stage::Build, title: text() },
            Event::StepDone { stage: Stage::Build, status: text(), ms: 1 },
            Event::Output { line: text() },
            Event::Note { text: text() },
            Event::Warning { text: text() },
            Event::RollingBack { reason: text(), stage: Stage::Build, data: false },
            verdict,
        ];
        for verbose in [false, true] {
            for event in &events {
                for line in lines(&record(0, event.clone()), &Style { verbose, ..Style::default() }) {
                    assert!(!line.contains(['\u{1b}', '\n', '\u{7}', '\u{202e}']), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn times_are_short_and_never_lie_upwards() {
        let cases = [
            (0, "0 ms"),
            (85, "85 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (1_299, "1.2 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min 00 s"),
            (125_000, "2 min 05 s"),
            (3_599_999, "59 min 59 s"),
            (3_720_000, "1 h 02 min"),
        ];
        for (ms, want) in cases {
            assert_eq!(duration(ms), want);
        }
    }

    #[test]
    fn a_rollback_names_its_target_and_a_narrow_terminal_cuts_the_subject() {
        let mut facts = begin_facts(13);
        facts.work = Work::Rollback;
        facts.with_data = true;
        facts.reason = Some("orders vanish".into());
        let style = Style { width: Some(60), ..Style::default() };
        let want = "mc_project: shop #13 rollback (staging) to 1a2b3c4d5e with data \"\"\n  · reason: orders vanish";
        assert_eq!(story(vec![Event::Begin(Box::new(facts))], &style), want);
        let line = story(vec![begin(12)], &style);
        assert_eq!(line, "mc_project: shop #12 cooking (staging) 1a2b3c4d5e \"cart: n…\"");
        assert_eq!(line.chars().count(), 60);
    }
}
