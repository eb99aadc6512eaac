//! The mail as plain text.

use std::fmt::Write as _;

use super::{MAX_COMMITS, MAX_LINE, MAX_LIST, MailFacts, TAIL_LIMIT, serves, suggestions};
use crate::report::event::Work;
use crate::report::history::Entry;
use crate::report::terminal::{self, cut, shown_output};
use crate::sys::escape::visible;

/// The whole text.
#[must_use]
pub fn of(entry: &Entry, facts: &MailFacts) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{} on {}, #{}", one_line(&facts.project), one_line(&facts.node), entry.seq);
    let _ = writeln!(text, "{}\n", one_line(&entry.outcome().line()));
    head(&mut text, entry);
    tail(&mut text, facts);
    list(&mut text, "Taken back", &facts.taken_back);
    list(&mut text, "Kept", &facts.kept);
    commits(&mut text, facts);
    if !entry.stages.is_empty() {
        text.push_str("\nStages\n");
        for time in &entry.stages {
            let mark = if time.ok { "ok    " } else { "FAILED" };
            let room = 24_usize.saturating_sub(time.stage.name().len());
            let note = one_line(time.note.as_deref().unwrap_or(""));
            let line = format!("  {mark} {}{:>room$}  {note}", time.stage.name(), terminal::duration(time.ms));
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    list(&mut text, "Warnings", &facts.warnings);
    list(&mut text, "Changed by hand in run before this deployment", &facts.drift);
    list(&mut text, "Hints", &entry.hints);
    commands(&mut text, entry, facts);
    text
}

fn head(text: &mut String, entry: &Entry) {
    for (name, value) in rows(entry) {
        let _ = writeln!(text, "{name:<12}{}", one_line(&value));
    }
}

/// The facts of a deployment, each with its name.
#[must_use]
pub fn rows(entry: &Entry) -> Vec<(&'static str, String)> {
    let branch = entry.branch.as_ref().map_or(String::new(), |branch| format!(" to {branch}"));
    let by = match entry.work {
        Work::Deploy => format!("{}{branch}", entry.by()),
        Work::Rollback => format!("{} (rollback)", entry.by()),
    };
    let mut rows = vec![
        ("Serves now", serves(entry)),
        ("Commit", format!("{} {}", entry.commit, entry.subject)),
        ("Author", entry.author.clone()),
        ("By", by),
        ("Began", entry.started.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()),
        ("Took", terminal::duration(entry.duration_ms)),
        ("Mode", format!("{} ({})", entry.mode.name(), entry.environment.name())),
        ("Deployment", entry.id.to_string()),
    ];
    rows.extend(entry.why.clone().map(|why| ("Reason", why)));
    rows
}

fn commits(text: &mut String, facts: &MailFacts) {
    if facts.commits.is_empty() {
        return;
    }
    text.push_str("\nCommits since the last good deployment\n");
    for commit in facts.commits.iter().take(MAX_COMMITS) {
        let line = format!("{} {} ({})", commit.id, commit.subject, commit.author);
        let _ = writeln!(text, "  {}", one_line(&line));
    }
    let more = facts.more_commits + facts.commits.len().saturating_sub(MAX_COMMITS);
    if more > 0 {
        let _ = writeln!(text, "  and {more} more");
    }
}

fn tail(text: &mut String, facts: &MailFacts) {
    if facts.tail.is_empty() {
        return;
    }
    text.push_str("\nLast output of the failed step\n");
    let (lines, left_out) = last_lines(&facts.tail, TAIL_LIMIT, usize::MAX);
    if left_out > 0 {
        let _ = writeln!(text, "  ({left_out} lines before these are in the log)");
    }
    for line in lines {
        // Prefixed, so that no line of a step can pass for one of ours.
        let _ = writeln!(text, "  | {line}");
    }
}

/// The end of some output, escaped, within so many bytes and lines; and how many lines are left out.
#[must_use]
pub fn last_lines(tail: &[String], bytes: usize, lines: usize) -> (Vec<String>, usize) {
    let mut room = bytes;
    let mut kept = Vec::new();
    for line in tail.iter().rev().take(lines) {
        let line = shown_output(&cut(line, Some(4 * MAX_LINE)));
        // What stands around a line in the text counts too.
        if line.len() + 5 > room {
            break;
        }
        room -= line.len() + 5;
        kept.push(line);
    }
    kept.reverse();
    let left_out = tail.len() - kept.len();
    (kept, left_out)
}

fn list(text: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}");
    for line in lines.iter().take(MAX_LIST) {
        let _ = writeln!(text, "  {}", one_line(line));
    }
    if lines.len() > MAX_LIST {
        let _ = writeln!(text, "  and {} more", lines.len() - MAX_LIST);
    }
}

fn commands(text: &mut String, entry: &Entry, facts: &MailFacts) {
    text.push_str("\nTo look further, and to go on\n");
    let all = suggestions(entry, facts);
    for suggestion in &all {
        let _ = writeln!(text, "  {}\n      {}", suggestion.what, one_line(&suggestion.line));
    }
    if facts.from_afar.is_some() {
        let _ = writeln!(text, "On the node itself these begin with `{}`.", one_line(&facts.command));
    }
    if !facts.log.is_empty() {
        let _ = writeln!(text, "The log is {} there.", one_line(&facts.log));
    }
}

fn one_line(text: &str) -> String {
    cut(&visible(text), Some(MAX_LINE))
}
