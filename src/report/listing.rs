//! The history as a table for people. It fits the width that it is given: the subject is cut first, then columns that say
//! least are left out.

use jiff::Timestamp;

use super::columns::{ago, cut, fill, width};
use super::event::Work;
use super::history::Entry;
use super::terminal::{self, Style};
use crate::project::ids::DeploymentId;
use crate::project::outcome::Verdict;
use crate::sys::escape;

/// The width where there is no terminal.
pub const FIXED_WIDTH: usize = 160;
/// The least that is left of a subject before a column is left out.
const SUBJECT: usize = 24;
/// The longest name of a person.
const WHO: usize = 28;

/// A column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Number,
    Verdict,
    Commit,
    Subject,
    Author,
    Took,
    Mode,
    When,
    Ago,
}

impl Column {
    const ALL: [Self; 9] = [
        Self::Number,
        Self::Verdict,
        Self::Commit,
        Self::Subject,
        Self::Author,
        Self::Took,
        Self::Mode,
        Self::When,
        Self::Ago,
    ];
    /// What is left out where there is too little room, first the first; the rest always stands there.
    const SPARED: [Self; 5] = [Self::When, Self::Mode, Self::Took, Self::Author, Self::Ago];

    fn head(self) -> &'static str {
        match self {
            Self::Number => "#",
            Self::Verdict => "verdict",
            Self::Commit => "commit",
            Self::Subject => "subject",
            Self::Author => "author",
            Self::Took => "took",
            Self::Mode => "mode",
            Self::When => "when (UTC)",
            Self::Ago => "",
        }
    }

    fn cell(self, entry: &Entry, is_live: bool, now: Timestamp) -> String {
        match self {
            Self::Number => format!("{}{}", if is_live { "*" } else { "" }, entry.seq),
            Self::Verdict => verdict_words(entry),
            Self::Commit => entry.commit.short().to_string(),
            Self::Subject => escape::visible(&entry.subject),
            Self::Author => cut(&escape::visible(&who(entry)), WHO),
            Self::Took => terminal::duration(entry.duration_ms),
            Self::Mode => match entry.work {
                Work::Deploy => entry.mode.name().to_string(),
                Work::Rollback => "rollback".to_string(),
            },
            Self::When => entry.started.strftime("%Y-%m-%d %H:%M").to_string(),
            Self::Ago => ago(entry.started, now),
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Number | Self::Took | Self::Ago)
    }
}

/// What a table is made for.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The deployment that serves.
    pub serves: Option<&'a DeploymentId>,
    /// The present.
    pub now: Timestamp,
    /// How it looks; without a width it is [`FIXED_WIDTH`] wide.
    pub style: Style,
}

/// The table of these entries (newest last), newest first; the live one is marked with `*`.
#[must_use]
pub fn table(entries: &[Entry], view: &View<'_>) -> String {
    if entries.is_empty() {
        return "nothing was deployed yet\n".to_string();
    }
    let rows: Vec<(Option<Verdict>, [String; 9])> =
        std::iter::once((None, Column::ALL.map(|column| column.head().to_string())))
            .chain(entries.iter().rev().map(|entry| {
                let is_live = view.serves == Some(&entry.id);
                (Some(entry.verdict), Column::ALL.map(|column| column.cell(entry, is_live, view.now)))
            }))
            .collect();
    let mut widths: [usize; 9] =
        std::array::from_fn(|at| rows.iter().map(|(_, cells)| width(&cells[at])).max().unwrap_or(0));
    let shown = fit(&mut widths, view.style.width.unwrap_or(FIXED_WIDTH));
    let mut text = String::new();
    for (verdict, cells) in &rows {
        let mut line = String::new();
        for at in &shown {
            let (column, cell) = (Column::ALL[*at], &cells[*at]);
            let cell = if column == Column::Subject { cut(cell, widths[*at]) } else { cell.clone() };
            let filled = fill(&cell, widths[*at], column.is_number());
            line.push_str(if line.is_empty() { "" } else { "  " });
            let colour = verdict.filter(|_| column == Column::Verdict);
            line.push_str(&coloured(&filled, colour, &view.style));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if view.style.ascii { terminal::ascii(&text) } else { text }
}

/// The columns that stand in a line of this width; the subject gets what the others leave.
fn fit(widths: &mut [usize; 9], room: usize) -> Vec<usize> {
    let at = |column: Column| Column::ALL.iter().position(|known| *known == column).unwrap_or(0);
    let subject = at(Column::Subject);
    let mut shown: Vec<usize> = (0..widths.len()).collect();
    let mut spared = Column::SPARED.into_iter();
    loop {
        let others: usize = shown.iter().filter(|at| **at != subject).map(|at| widths[*at] + 2).sum();
        let left = room.saturating_sub(others);
        if left >= widths[subject].min(SUBJECT) {
            widths[subject] = widths[subject].min(left);
            return shown;
        }
        let Some(column) = spared.next() else {
            widths[subject] = left.max(1);
            return shown;
        };
        shown.retain(|known| *known != at(column));
    }
}

/// The author; and who pushed, if it was somebody else.
fn who(entry: &Entry) -> String {
    let (name, mail) = entry.author.split_once('<').unwrap_or((&entry.author, ""));
    let name = name.trim();
    let pusher = entry.pusher.split(" from ").next().unwrap_or_default();
    let local = mail.split('@').next().unwrap_or_default();
    let first = name.split(' ').next().unwrap_or_default();
    let is_same = [name, local, first].iter().any(|known| known.eq_ignore_ascii_case(pusher));
    if is_same || pusher.is_empty() { name.to_string() } else { format!("{name}, by {pusher}") }
}

fn verdict_words(entry: &Entry) -> String {
    match (entry.verdict, entry.stage) {
        (Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared, _) | (_, None) => entry.verdict.words().into(),
        (verdict, Some(stage)) => format!("{} at {}", verdict.words(), stage.name()),
    }
}

/// A text in the colour of a verdict, where there are colours.
#[must_use]
pub fn coloured(text: &str, verdict: Option<Verdict>, style: &Style) -> String {
    let Some(verdict) = verdict.filter(|_| style.colour) else { return text.to_string() };
    let code = match verdict {
        Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared => "32",
        Verdict::RolledBack | Verdict::Interrupted => "33",
        Verdict::Refused | Verdict::Failed | Verdict::LeftAsItIs | Verdict::NeedsPerson => "1;31",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn entries() -> Vec<Entry> {
        let second = samples::rolled_back_entry();
        let mut first = second.clone();
        (first.seq, first.id, first.commit) = (9, samples::id(9), samples::commit("9f8e7d6c5b"));
        (first.verdict, first.stage, first.subject) = (Verdict::Deployed, None, "a\u{1b}[31m first 日本".into());
        (first.duration_ms, first.pusher) = (125_000, "bob from 192.0.2.7".into());
        first.started = "2026-11-18T09:30:00Z".parse().unwrap();
        vec![first, second]
    }

    fn shown(entries: &[Entry], style: Style) -> String {
        let (serves, now) = (samples::id(9), "2026-11-20T18:10:00Z".parse().unwrap());
        table(entries, &View { serves: Some(&serves), now, style })
    }

    #[test]
    fn the_table_is_aligned_newest_first_and_marks_the_live_one() {
        let want = "\
\x20#  verdict                 commit      subject                 author               took  mode     when (UTC)
12  rolled back at upgrade  1a2b3c4d5e  cart: no empty orders   Alice               3.0 s  cooking  2026-11-20 15:04  3 h ago
*9  deployed                9f8e7d6c5b  a\\u{1b}[31m first 日本  Alice, by bob  2 min 05 s  cooking  2026-11-18 09:30  2 d ago
";
        assert_eq!(shown(&entries(), Style::default()), want);
        assert_eq!(shown(&[], Style::default()), "nothing was deployed yet\n");
        let coloured = shown(&entries(), Style { colour: true, ..Style::default() });
        assert!(coloured.contains("\n12  \u{1b}[33mrolled back at upgrade\u{1b}[0m  1a2b3c4d5e"), "{coloured}");
        assert_eq!(coloured.matches("\u{1b}[").count(), 4, "colours are for verdicts only");
        assert!(shown(&entries(), Style { ascii: true, ..Style::default() }).is_ascii());
    }

    #[test]
    fn a_narrow_terminal_cuts_the_subject_and_then_leaves_out_what_says_least() {
        let at = |width| shown(&entries(), Style { width: Some(width), ..Style::default() });
        for room in 45..170 {
            let text = at(room);
            assert!(text.lines().all(|line| width(line) <= room), "{room}:\n{text}");
            assert!(text.contains("1a2b3c4d5e") && text.contains("deployed"), "{room}:\n{text}");
        }
        let want = "\
\x20#  verdict                 commit      subject
12  rolled back at upgrade  1a2b3c4d5e  cart: no empty orders   3 h ago
*9  deployed                9f8e7d6c5b  a\\u{1b}[31m first 日本  2 d ago
";
        assert_eq!(at(80), want);
        assert!(at(48).contains("cart: n…\n"), "{}", at(48));
    }

    #[test]
    fn who_pushed_stands_there_only_where_it_was_not_the_author() {
        let mut entry = samples::rolled_back_entry();
        for (author, pusher, want) in [
            ("Alice Ånström <alice@example.org>", "alice", "Alice Ånström"),
            ("Alice Ånström <a.a@example.org>", "alice from 192.0.2.7", "Alice Ånström"),
            ("Alice Ånström <a@b>", "Alice Ånström", "Alice Ånström"),
            ("Alice <a@b>", "bob from 192.0.2.7", "Alice, by bob"),
            ("Alice", "root", "Alice, by root"),
        ] {
            (entry.author, entry.pusher) = (author.into(), pusher.into());
            assert_eq!(who(&entry), want);
        }
    }

    #[test]
    fn ten_thousand_entries_are_a_table_at_once() {
        let entry = samples::rolled_back_entry();
        let entries: Vec<Entry> = (0..10_000).map(|seq| Entry { seq, ..entry.clone() }).collect();
        let begin = std::time::Instant::now();
        assert_eq!(shown(&entries, Style::default()).lines().count(), 10_001);
        assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}
