//! The history as text for people: the table of all, the long form of one.

use std::fmt::Write as _;

use super::event::{Event, Record, Work};
use super::history::{self, Entry};
use super::terminal::{self, Style};
use crate::project::ids::DeploymentId;
use crate::project::outcome::Verdict;
use crate::sys::escape;

const HEAD: [&str; 8] = ["#", "when (UTC)", "verdict", "commit", "mode", "took", "who", "subject"];

/// Longest name of a pusher in the table.
const WHO: usize = 20;

/// The table of these entries (newest last), newest first; the live one is marked with `*`.
#[must_use]
pub fn table(entries: &[Entry], style: &Style) -> String {
    table_of(entries, history::live(entries).map(|entry| &entry.id), style)
}

/// As [`table`], where what is live is known from elsewhere.
#[must_use]
pub fn table_of(entries: &[Entry], serving: Option<&DeploymentId>, style: &Style) -> String {
    if entries.is_empty() {
        return "nothing was deployed yet\n".to_string();
    }
    let table: Vec<[String; 8]> = std::iter::once(HEAD.map(str::to_string))
        .chain(entries.iter().rev().map(|entry| row(entry, serving == Some(&entry.id))))
        .collect();
    let widths: [usize; 8] = std::array::from_fn(|at| table.iter().map(|r| r[at].chars().count()).max().unwrap_or(0));
    let before_subject: usize = widths[..7].iter().map(|width| width + 2).sum();
    let subject_width = style.width.map(|width| width.saturating_sub(before_subject));
    let mut text = String::new();
    for (at, cells) in table.iter().enumerate() {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let padded = match column {
                0 | 5 => format!("{cell:>width$}  "),
                7 => terminal::cut(cell, subject_width),
                _ => format!("{cell:<width$}  "),
            };
            let verdict = (column == 2 && at > 0).then(|| entries[entries.len() - at].verdict);
            line.push_str(&coloured(&padded, verdict, style));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if style.ascii { terminal::ascii(&text) } else { text }
}

fn row(entry: &Entry, is_live: bool) -> [String; 8] {
    let mode = match entry.work {
        Work::Deploy => entry.mode.name(),
        Work::Rollback => "rollback",
    };
    [
        format!("{}{}", if is_live { "*" } else { "" }, entry.seq),
        entry.started.strftime("%Y-%m-%d %H:%M").to_string(),
        verdict_words(entry),
        entry.commit.short().to_string(),
        mode.to_string(),
        terminal::duration(entry.duration_ms),
        terminal::cut(&escape::visible(&entry.pusher), Some(WHO)),
        escape::visible(&entry.subject),
    ]
}

fn verdict_words(entry: &Entry) -> String {
    match (entry.verdict, entry.stage) {
        (Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared, _) | (_, None) => entry.verdict.words().into(),
        (verdict, Some(stage)) => format!("{} at {}", verdict.words(), stage.name()),
    }
}

fn coloured(padded: &str, verdict: Option<Verdict>, style: &Style) -> String {
    let Some(verdict) = verdict.filter(|_| style.colour) else { return padded.to_string() };
    let code = match verdict {
        Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared => "32",
        Verdict::RolledBack | Verdict::Interrupted => "33",
        Verdict::Refused | Verdict::Failed | Verdict::LeftAsItIs | Verdict::NeedsPerson => "1;31",
    };
    format!("\u{1b}[{code}m{padded}\u{1b}[0m")
}

/// The long form of one entry; with the records of its journal the tails, notes and warnings stand there too.
#[must_use]
pub fn show(entry: &Entry, records: &[Record], style: &Style) -> String {
    let mut text = format!("#{} {}\n", entry.seq, escape::visible(&entry.outcome().line()));
    for (name, value) in facts(entry) {
        let _ = writeln!(text, "  {name:<9}{}", escape::visible(&value));
    }
    for hint in &entry.hints {
        let _ = writeln!(text, "  {:<9}{}", "hint", escape::visible(hint));
    }
    text.push_str("stages\n");
    for line in stage_lines(entry, records, style) {
        text.push_str(&line);
        text.push('\n');
    }
    if style.ascii { terminal::ascii(&text) } else { text }
}

fn facts(entry: &Entry) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("id", entry.id.to_string()),
        ("commit", format!("{} \"{}\"", entry.commit, entry.subject)),
        ("author", entry.author.clone()),
    ];
    let branch = entry.branch.as_ref().map_or(String::new(), |branch| format!(", branch {branch}"));
    let began = entry.started.strftime("%Y-%m-%d %H:%M:%S UTC");
    facts.push(("by", format!("{}{branch}, {began}, took {}", entry.by(), terminal::duration(entry.duration_ms))));
    facts.extend(entry.why.clone().map(|why| ("reason", why)));
    let mode = format!("{} ({})", entry.mode.name(), entry.environment.name());
    facts.push(("mode", mode));
    if let Some(target) = &entry.target {
        let data = if entry.with_data { ", with data" } else { "" };
        facts.push(("target", format!("{target}{data}")));
    }
    facts.extend(entry.pillar.as_ref().map(|pillar| ("pillar", pillar.to_string())));
    for (name, serving) in [("before", &entry.before), ("serves", &entry.serves)] {
        let value = serving.as_ref().map_or("nothing".to_string(), |s| format!("{} of {}", s.commit.short(), s.id));
        facts.push((name, value));
    }
    if entry.restore_point {
        facts.push(("kept", format!("the state before it, archives/{}", entry.id)));
    }
    facts
}

fn stage_lines(entry: &Entry, records: &[Record], style: &Style) -> Vec<String> {
    let inner = |event: &Event| !matches!(event, Event::Begin(_) | Event::End { .. });
    if !records.is_empty() {
        return records.iter().filter(|r| inner(&r.event)).flat_map(|r| terminal::lines(r, style)).collect();
    }
    let as_record = |time: &history::StageTime| Record {
        at: entry.started,
        event: if time.ok {
            Event::StageDone { stage: time.stage, ms: time.ms, note: time.note.clone() }
        } else {
            let reason = time.note.clone().unwrap_or_default();
            Event::StageFailed { stage: time.stage, ms: time.ms, reason, tail: Vec::new() }
        },
    };
    entry.stages.iter().flat_map(|time| terminal::lines(&as_record(time), style)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::stage::Stage;
    use crate::report::samples;

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
            Event::StageDone { stage: Stage::Build, ms: 12_400, note: Some("3 steps".into()) },
            Event::BackedUp,
            Event::StageFailed { stage: Stage::Upgrade, ms: 2_100, reason: "exit 2".into(), tail },
            end,
        ];
        events.into_iter().enumerate().map(|(n, event)| samples::record(n as u64, event)).collect()
    }

    fn entries() -> Vec<Entry> {
        let second = history::summarise(&story()).unwrap();
        let mut first = second.clone();
        (first.seq, first.id, first.commit) = (9, samples::id(9), samples::commit("9f8e7d6c5b"));
        (first.verdict, first.stage, first.subject) = (Verdict::Deployed, None, "a\u{1b}[31m first".into());
        (first.duration_ms, first.pusher) = (125_000, "bob-with-a-very-long-name".into());
        vec![first, second]
    }

    #[test]
    fn the_table_is_aligned_newest_first_and_marks_the_live_one() {
        let want = "\
\x20#  when (UTC)        verdict                 commit      mode           took  who                   subject
12  2026-11-20 15:04  rolled back at upgrade  1a2b3c4d5e  cooking       4.0 s  alice                 cart: no empty orders
*9  2026-11-20 15:04  deployed                9f8e7d6c5b  cooking  2 min 05 s  bob-with-a-very-lon…  a\\u{1b}[31m first
";
        assert_eq!(table(&entries(), &Style::default()), want);
        assert_eq!(table(&[], &Style::default()), "nothing was deployed yet\n");
        let narrow = table(&entries(), &Style { width: Some(110), ..Style::default() });
        assert!(narrow.lines().all(|line| line.chars().count() <= 110), "{narrow}");
        assert!(narrow.contains("alice                 cart: no…\n"), "{narrow}");
        let coloured = table(&entries(), &Style { colour: true, ..Style::default() });
        assert!(coloured.contains("\u{1b}[33mrolled back at upgrade  \u{1b}[0m1a2b3c4d5e"), "{coloured}");
        assert!(table(&entries(), &Style { ascii: true, ..Style::default() }).is_ascii());
    }

    #[test]
    fn the_long_form_tells_everything_about_one() {
        let want = "\
#12 rolled back at upgrade: exit 2; run serves 9f8e7d6c5b again
  id       20261120T150412Z-0199e5a0-0000-7000-8000-00000000000c
  commit   1a2b3c4d5e000000000000000000000000000000 \"cart: no empty orders\"
  author   Alice <alice@example.org>
  by       alice, branch main, 2026-11-20 15:04:05 UTC, took 4.0 s
  reason   hot fix
  mode     cooking (staging)
  before   nothing
  serves   9f8e7d6c5b of 20261120T150409Z-0199e5a0-0000-7000-8000-000000000009
  kept     the state before it, archives/20261120T150412Z-0199e5a0-0000-7000-8000-00000000000c
  hint     mc_project logs shop
stages
  ✓ build             12.4 s  3 steps
  ✗ upgrade            2.1 s  exit 2
    | no such column
";
        let entry = &entries()[1];
        assert_eq!(show(entry, &story(), &Style::default()), want);
        assert_eq!(show(entry, &[], &Style::default()), want.replace("    | no such column\n", ""));
    }
}
