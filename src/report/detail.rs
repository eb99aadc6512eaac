//! One deployment as text for people: what became of it, its stages, what it changed, what was kept and how to use that, and
//! the end of its log. What is told was gathered by others; nothing is read here.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use super::columns::{ago, bar, cut, fill, width};
use super::event::{Event, Record};
use super::history::Entry;
use super::listing::coloured;
use super::terminal::{self, Style};
use crate::sys::escape::{self, visible};

/// How long the longest bar of a stage is.
const BAR: usize = 12;
/// The width of the names before facts.
const NAME: usize = 9;
/// Where notes of stages begin, at least.
const NOTE: usize = 15 + 9 + BAR;

/// A commit that a deployment brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Brought {
    /// The short id.
    pub commit: String,
    /// First line of the message, unescaped.
    pub subject: String,
    /// The author's name, unescaped.
    pub author: String,
}

/// What a deployment changed against the one that served before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// What served before: its number and short commit.
    pub since: Option<String>,
    /// The commits since then, newest first.
    pub commits: Vec<Brought>,
    /// How many commits more there are.
    pub more: usize,
    /// Committed files that are new.
    pub added: usize,
    /// Committed files that differ.
    pub changed: usize,
    /// Committed files that are gone.
    pub removed: usize,
    /// What the pillar was and is, where it changed.
    pub pillar: Option<String>,
}

/// The restore point: what was before a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restore {
    /// Where it is.
    pub path: String,
    /// What it holds, each a name and a few words.
    pub holds: Vec<(String, String)>,
    /// The command that brings it back; `None` where nothing served before.
    pub command: Option<String>,
}

/// The end of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogTail {
    /// Its last lines.
    pub lines: Vec<String>,
    /// How many lines there are in all.
    pub of: usize,
    /// The file.
    pub path: String,
    /// The command that prints all of it.
    pub command: String,
}

/// Everything that is told of a deployment beside its entry in the history.
#[derive(Debug, Clone, Default)]
pub struct Detail {
    /// Its journal.
    pub records: Vec<Record>,
    /// What it changed; `None` where its commit is gone.
    pub changes: Option<Changes>,
    /// Where its release came from, in words.
    pub provenance: Vec<(&'static str, String)>,
    /// The restore point, while there is one.
    pub restore: Option<Restore>,
    /// What else was kept, each a line.
    pub kept: Vec<String>,
    /// The end of its log, or all of it.
    pub log: LogTail,
    /// Commands to look further, each with what it does.
    pub commands: Vec<(String, String)>,
}

/// The text.
#[must_use]
pub fn text(entry: &Entry, detail: &Detail, now: Timestamp, style: &Style) -> String {
    let verdict = coloured(&visible(&entry.outcome().line()), Some(entry.verdict), style);
    let mut text = format!("#{} {verdict}\n", entry.seq);
    for (name, value) in facts(entry, now) {
        fact(&mut text, name, &value);
    }
    for hint in &entry.hints {
        fact(&mut text, "hint", hint);
    }
    stages(&mut text, entry, &detail.records, style);
    notes(&mut text, &detail.records, style);
    if let Some(changes) = &detail.changes {
        changed(&mut text, changes, style);
    }
    section(&mut text, "release", &detail.provenance);
    if let Some(restore) = &detail.restore {
        restorable(&mut text, restore);
    }
    if !detail.kept.is_empty() {
        text.push_str("kept\n");
        detail.kept.iter().for_each(|line| line_of(&mut text, line));
    }
    log(&mut text, &detail.log);
    section(&mut text, "commands", &detail.commands);
    if style.ascii { terminal::ascii(&text) } else { text }
}

fn fact(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "  {name:<NAME$}{}", visible(value));
}

fn line_of(text: &mut String, line: &str) {
    let _ = writeln!(text, "  {}", visible(line));
}

/// Names and values below a head, the values below each other.
fn section(text: &mut String, head: &str, all: &[(impl AsRef<str>, String)]) {
    if all.is_empty() {
        return;
    }
    let _ = writeln!(text, "{head}");
    let columns = all.iter().map(|(name, _)| width(name.as_ref()) + 2).max().unwrap_or(0).max(NAME);
    for (name, value) in all {
        let _ = writeln!(text, "  {}{}", fill(&visible(name.as_ref()), columns, false), visible(value));
    }
}

fn facts(entry: &Entry, now: Timestamp) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("id", entry.id.to_string()),
        ("commit", format!("{} \"{}\"", entry.commit, entry.subject)),
        ("author", entry.author.clone()),
    ];
    let branch = entry.branch.as_ref().map_or(String::new(), |branch| format!(", branch {branch}"));
    facts.push(("by", format!("{}{branch}", entry.by())));
    let began = entry.started.strftime("%Y-%m-%d %H:%M:%S UTC");
    let took = terminal::duration(entry.duration_ms);
    facts.push(("when", format!("{began} ({}), took {took}", ago(entry.started, now))));
    facts.extend(entry.why.clone().map(|why| ("reason", why)));
    facts.push(("mode", format!("{} ({})", entry.mode.name(), entry.environment.name())));
    if let Some(target) = &entry.target {
        let data = if entry.with_data { ", with data" } else { "" };
        facts.push(("target", format!("{target}{data}")));
    }
    facts.extend(entry.pillar.as_ref().map(|pillar| ("pillar", pillar.to_string())));
    for (name, serving) in [("before", &entry.before), ("serves", &entry.serves)] {
        let value = serving.as_ref().map_or("nothing".to_string(), |s| format!("{} of {}", s.commit.short(), s.id));
        facts.push((name, value));
    }
    facts
}

fn stages(text: &mut String, entry: &Entry, records: &[Record], style: &Style) {
    if entry.stages.is_empty() {
        return;
    }
    text.push_str("stages\n");
    let longest = entry.stages.iter().map(|stage| stage.ms).max().unwrap_or(0);
    for stage in &entry.stages {
        let mark = if stage.ok { "✓" } else { "✗" };
        let name = fill(stage.stage.name(), 14, false);
        let took = fill(&terminal::duration(stage.ms), 10, true);
        let bar = fill(&bar(stage.ms, longest, BAR), BAR, false);
        let room = style.width.map_or(usize::MAX, |all| all.saturating_sub(NOTE + 6));
        let note = cut(&visible(stage.note.as_deref().unwrap_or_default()), room);
        let line = format!("  {mark} {name}{took}  {bar}  {note}");
        let _ = writeln!(text, "{}", line.trim_end());
        if !stage.ok {
            for line in tail_of(records, stage.stage) {
                output(text, line);
            }
        }
    }
}

fn output(text: &mut String, line: &str) {
    let _ = writeln!(text, "{}", format!("    | {}", terminal::shown_output(line)).trim_end());
}

fn tail_of(records: &[Record], failed: crate::project::stage::Stage) -> &[String] {
    let tail = records.iter().rev().find_map(|record| match &record.event {
        Event::StageFailed { stage, tail, .. } if *stage == failed => Some(tail.as_slice()),
        _ => None,
    });
    tail.unwrap_or_default()
}

/// What was told between the stages.
fn notes(text: &mut String, records: &[Record], style: &Style) {
    let is_told = |event: &Event| {
        matches!(event, Event::Note { .. } | Event::Warning { .. } | Event::Waiting { .. } | Event::RollingBack { .. })
    };
    let plain = Style { ascii: false, ..*style };
    let told = records.iter().filter(|record| is_told(&record.event));
    let lines: Vec<String> = told.flat_map(|record| terminal::lines(record, &plain)).collect();
    if !lines.is_empty() {
        let _ = writeln!(text, "notes\n{}", lines.join("\n"));
    }
}

fn changed(text: &mut String, changes: &Changes, style: &Style) {
    let Changes { since, commits, more, added, changed, removed, pillar } = changes;
    match since {
        Some(since) => {
            let _ = writeln!(text, "changes since {since}");
        }
        None => text.push_str("changes: the first deployment\n"),
    }
    let counts: Vec<String> = [(added, "added"), (changed, "changed"), (removed, "removed")]
        .into_iter()
        .filter(|(count, _)| **count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let files = if counts.is_empty() { "no committed file differs".into() } else { counts.join(", ") };
    let count = commits.len() + more;
    let _ = writeln!(text, "  {count} commit{}; files: {files}", if count == 1 { "" } else { "s" });
    let room = style.width.map_or(usize::MAX, |all| all.saturating_sub(4));
    for Brought { commit, subject, author } in commits {
        let line = cut(&visible(&format!("{commit} {subject} ({author})")), room);
        let _ = writeln!(text, "    {line}");
    }
    if *more > 0 {
        let _ = writeln!(text, "    … and {more} more");
    }
    if let Some(pillar) = pillar {
        let _ = writeln!(text, "  pillar: {}", visible(pillar));
    }
}

fn restorable(text: &mut String, restore: &Restore) {
    let _ = writeln!(text, "restore point: what was before it, {}", visible(&restore.path));
    let columns = restore.holds.iter().map(|(name, _)| width(name) + 2).max().unwrap_or(0).max(NAME);
    for (name, what) in &restore.holds {
        let _ = writeln!(text, "  {}{}", fill(&visible(name), columns, false), visible(what));
    }
    if let Some(command) = &restore.command {
        let _ = writeln!(text, "  to have it back: {}", visible(command));
    }
}

fn log(text: &mut String, log: &LogTail) {
    if log.of == 0 {
        let _ = writeln!(text, "log: gone ({})", visible(&log.path));
        return;
    }
    let shown = log.lines.len();
    let path = visible(&log.path);
    let _ = match log.of - shown.min(log.of) {
        0 => writeln!(text, "log ({path})"),
        _ => writeln!(text, "log: the last {shown} of {} lines; all of them: {}", log.of, visible(&log.command)),
    };
    for line in &log.lines {
        let _ = writeln!(text, "{}", format!("  {}", escape::output_line(line.as_bytes(), 4096)).trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::outcome::Verdict;
    use crate::project::stage::Stage;
    use crate::report::{history, samples};

    fn story() -> Vec<Record> {
        let mut facts = samples::begin_facts(12);
        facts.reason = Some("hot fix".into());
        let tail = vec!["no such column".to_string()];
        let mut end = samples::end(Verdict::RolledBack, Some(Stage::Upgrade), Some("exit 2"), Some((9, "9f8e7d6c5b")));
        if let Event::End { outcome } = &mut end {
            outcome.hints = vec!["mc_project logs shop".into()];
        }
        let events = [
            Event::Begin(Box::new(facts)),
            Event::Warning { text: "run was changed by hand".into() },
            Event::StageDone { stage: Stage::Build, ms: 12_400, note: Some("3 steps".into()) },
            Event::BackedUp,
            Event::StageFailed { stage: Stage::Upgrade, ms: 2_100, reason: "exit 2".into(), tail },
            end,
        ];
        events.into_iter().enumerate().map(|(n, event)| samples::record(n as u64, event)).collect()
    }

    fn detail() -> Detail {
        let brought = |commit: &str, subject: &str| Brought {
            commit: commit.into(),
            subject: subject.into(),
            author: "Alice".into(),
        };
        Detail {
            records: story(),
            changes: Some(Changes {
                since: Some("#9 9f8e7d6c5b".into()),
                commits: vec![brought("1a2b3c4d5e", "cart: no empty orders"), brought("2b3c4d5e6f", "a\u{1b}[31m")],
                more: 3,
                added: 2,
                changed: 1,
                removed: 0,
                pillar: None,
            }),
            provenance: vec![("made", "built in cooking mode on node1".into()), ("recipe", "blake3 00ff".into())],
            restore: Some(Restore {
                path: "/srv/a/12".into(),
                holds: vec![("code".into(), "9f8e7d6c5b".into()), ("data".into(), "all of data/".into())],
                command: Some("mc_project rollback shop --to '#9' --with data".into()),
            }),
            kept: vec!["the files in which the failed version differs: /srv/a/12/run.failed/files".into()],
            log: LogTail {
                lines: vec!["15:04:05   ✗ upgrade".into()],
                of: 340,
                path: "/var/log/12.log".into(),
                command: "mc_project show shop '#12' --log".into(),
            },
            commands: vec![("mc_project diff shop '#9' '#12'".into(), "which files differ".into())],
        }
    }

    const WANT: &str = "\
#12 rolled back at upgrade: exit 2; run serves 9f8e7d6c5b again
  id       20261120T150412Z-0199e5a0-0000-7000-8000-00000000000c
  commit   1a2b3c4d5e000000000000000000000000000000 \"cart: no empty orders\"
  author   Alice <alice@example.org>
  by       alice, branch main
  when     2026-11-20 15:04:05 UTC (3 h ago), took 5.0 s
  reason   hot fix
  mode     cooking (staging)
  before   nothing
  serves   9f8e7d6c5b of 20261120T150409Z-0199e5a0-0000-7000-8000-000000000009
  hint     mc_project logs shop
stages
  ✓ build             12.4 s  ████████████  3 steps
  ✗ upgrade            2.1 s  ██            exit 2
    | no such column
notes
  ! run was changed by hand
changes since #9 9f8e7d6c5b
  5 commits; files: 2 added, 1 changed
    1a2b3c4d5e cart: no empty orders (Alice)
    2b3c4d5e6f a\\u{1b}[31m (Alice)
    … and 3 more
release
  made     built in cooking mode on node1
  recipe   blake3 00ff
restore point: what was before it, /srv/a/12
  code     9f8e7d6c5b
  data     all of data/
  to have it back: mc_project rollback shop --to '#9' --with data
kept
  the files in which the failed version differs: /srv/a/12/run.failed/files
log: the last 1 of 340 lines; all of them: mc_project show shop '#12' --log
  15:04:05   ✗ upgrade
commands
  mc_project diff shop '#9' '#12'  which files differ
";

    fn shown(detail: &Detail, style: Style) -> String {
        let entry = history::summarise(&story()).unwrap();
        text(&entry, detail, "2026-11-20T18:10:00Z".parse().unwrap(), &style)
    }

    #[test]
    fn everything_about_one_deployment_is_told() {
        assert_eq!(shown(&detail(), Style::default()), WANT);
        let coloured = shown(&detail(), Style { colour: true, ..Style::default() });
        assert!(coloured.starts_with("#12 \u{1b}[33mrolled back at upgrade"), "{coloured}");
        assert!(shown(&detail(), Style { ascii: true, ..Style::default() }).is_ascii());
        let narrow = shown(&detail(), Style { width: Some(40), ..Style::default() });
        assert!(narrow.contains("\n    1a2b3c4d5e cart: no empty orders (A…\n"), "{narrow}");
    }

    #[test]
    fn what_is_not_known_any_more_is_left_out() {
        let little = Detail { log: LogTail { path: "/l".into(), ..LogTail::default() }, ..Detail::default() };
        let text = shown(&little, Style::default());
        assert!(text.ends_with("  ✗ upgrade            2.1 s  ██            exit 2\nlog: gone (/l)\n"), "{text}");
        for head in ["notes", "changes", "release", "restore point", "kept", "commands"] {
            assert!(!text.contains(&format!("\n{head}")), "{head} in\n{text}");
        }
        let mut whole = detail();
        whole.log.of = 1;
        assert!(shown(&whole, Style::default()).contains("\nlog (/var/log/12.log)\n  15:04:05"));
        let first = Detail { changes: Some(Changes::default()), ..detail() };
        let text = shown(&first, Style::default());
        assert!(
            text.contains("changes: the first deployment\n  0 commits; files: no committed file differs\n"),
            "{text}"
        );
    }
}
