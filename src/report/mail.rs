//! The mail about a deployment: what it says, as a pure function. [`super::post`] sends it.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::event::Work;
use super::history::Entry;
use super::terminal::{self, cut, shown_output};
use crate::project::outcome::Verdict;
use crate::sys::escape::visible;

/// The most of a failed step's output that a mail carries.
pub const TAIL_LIMIT: usize = 64 * 1024;

const MAX_COMMITS: usize = 50;
const MAX_LIST: usize = 20;
const MAX_LINE: usize = 500;
const MAX_SUBJECT: usize = 180;

/// A mail to one person or list, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mail {
    /// The sender's address.
    pub from: String,
    /// The receiver's address.
    pub to: String,
    /// The subject, one line.
    pub subject: String,
    /// The text, lines ended by line feeds.
    pub text: String,
    /// When it was written.
    pub date: jiff::Timestamp,
    /// Identifies it, `left@right`: the same for each attempt to send it.
    pub message_id: String,
}

/// A commit that a deployment brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitLine {
    /// The short id.
    pub id: String,
    /// First line of the message, unescaped.
    pub subject: String,
    /// The author, unescaped.
    pub author: String,
}

/// What a mail tells besides the history's entry.
#[derive(Debug, Clone, Default)]
pub struct MailFacts {
    /// The project's name.
    pub project: String,
    /// The node's host name.
    pub node: String,
    /// The sender's address.
    pub from: String,
    /// The commits since the last good deployment, newest first.
    pub commits: Vec<CommitLine>,
    /// How many commits more there are.
    pub more_commits: usize,
    /// The last output of the failed step, masked.
    pub tail: Vec<String>,
    /// What was changed by hand in `run`, one line each.
    pub drift: Vec<String>,
    /// What was kept where, one line each.
    pub kept: Vec<String>,
    /// Warnings, one line each.
    pub warnings: Vec<String>,
    /// The log file on the node.
    pub log: String,
    /// How the command is called on the node (`mc_project`, `mc_project --root /x`).
    pub command: String,
    /// How somebody without an account on the node gives it a command (`ssh mc@node`), where people can.
    pub from_afar: Option<String>,
}

/// The mails about a deployment, one to each of these addresses.
#[must_use]
pub fn compose_all(entry: &Entry, facts: &MailFacts, to: &[String], now: jiff::Timestamp) -> Vec<Mail> {
    to.iter().map(|to| compose(entry, facts, to, now)).collect()
}

/// The mail about a deployment to the address `to`.
#[must_use]
pub fn compose(entry: &Entry, facts: &MailFacts, to: &str, now: jiff::Timestamp) -> Mail {
    Mail {
        from: facts.from.clone(),
        to: to.to_string(),
        subject: subject(entry, facts),
        text: text(entry, facts),
        date: now,
        message_id: message_id(entry, facts, to),
    }
}

/// `[shop staging] rolled back at upgrade: 1a2b3c4d5e cart: no empty orders`.
fn subject(entry: &Entry, facts: &MailFacts) -> String {
    let place = format!("[{} {}]", facts.project, entry.environment.name());
    let verdict = match (entry.verdict, entry.stage) {
        (Verdict::Deployed | Verdict::Unchanged | Verdict::Prepared, _) | (_, None) => {
            entry.verdict.words().to_string()
        }
        (verdict, Some(stage)) => format!("{} at {}", verdict.words(), stage.name()),
    };
    let verdict = match entry.work {
        Work::Deploy => verdict,
        Work::Rollback if entry.with_data => format!("rollback with data {verdict}"),
        Work::Rollback => format!("rollback {verdict}"),
    };
    let line = format!("{place} {verdict}: {} {}", entry.commit.short(), entry.subject);
    cut(&visible(line.trim_end()), Some(MAX_SUBJECT))
}

/// The same for each attempt, and another one for each receiver, so that no server takes two for one.
fn message_id(entry: &Entry, facts: &MailFacts, to: &str) -> String {
    let host: String = facts.node.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).collect();
    let host = if host.is_empty() { "localhost".to_string() } else { host };
    // The end tells a deployment that was decided by a person later from its first end.
    let key = format!("{to}\n{}", entry.ended());
    let unique = blake3::hash(key.as_bytes()).to_hex();
    format!("{}.{}@{host}", entry.id, &unique.as_str()[..8])
}

fn text(entry: &Entry, facts: &MailFacts) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{} on {}, #{}", one_line(&facts.project), one_line(&facts.node), entry.seq);
    let _ = writeln!(text, "{}\n", one_line(&entry.outcome().line()));
    head(&mut text, entry);
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
    tail(&mut text, facts);
    list(&mut text, "Warnings", &facts.warnings);
    list(&mut text, "Changed by hand in run before this deployment", &facts.drift);
    list(&mut text, "Kept", &facts.kept);
    list(&mut text, "Hints", &entry.hints);
    commands(&mut text, entry, facts);
    text
}

fn head(text: &mut String, entry: &Entry) {
    let branch = entry.branch.as_ref().map_or(String::new(), |branch| format!(" to {branch}"));
    let by = match entry.work {
        Work::Deploy => format!("{}{branch}", entry.by()),
        Work::Rollback => format!("{} (rollback)", entry.by()),
    };
    let serves = entry.serves.as_ref().map_or("nothing".to_string(), |s| format!("{} of {}", s.commit.short(), s.id));
    let rows = [
        ("Commit", format!("{} {}", entry.commit, entry.subject)),
        ("Author", entry.author.clone()),
        ("By", by),
        ("Began", entry.started.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()),
        ("Took", terminal::duration(entry.duration_ms)),
        ("Mode", format!("{} ({})", entry.mode.name(), entry.environment.name())),
        ("Serves now", serves),
        ("Deployment", entry.id.to_string()),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<12}{}", one_line(&value));
    }
    if let Some(why) = &entry.why {
        let _ = writeln!(text, "{:<12}{}", "Reason", one_line(why));
    }
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
    let mut room = TAIL_LIMIT;
    let mut kept = Vec::new();
    for line in facts.tail.iter().rev() {
        // Prefixed, so that no line of a step can pass for one of ours.
        let line = format!("  | {}\n", shown_output(&cut(line, Some(4 * MAX_LINE))));
        if line.len() > room {
            break;
        }
        room -= line.len();
        kept.push(line);
    }
    let left_out = facts.tail.len() - kept.len();
    if left_out > 0 {
        let _ = writeln!(text, "  ({left_out} lines before these are in the log)");
    }
    text.extend(kept.into_iter().rev());
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
    let (command, name) = (one_line(&facts.command), one_line(&facts.project));
    text.push_str("\nTo look further, on the node\n");
    let _ = writeln!(text, "  {command} show {name} '#{}'", entry.seq);
    if !facts.log.is_empty() {
        let _ = writeln!(text, "  {}", one_line(&facts.log));
    }
    if let Some(ssh) = &facts.from_afar {
        let _ = writeln!(text, "or from elsewhere\n  {} show {name} '#{}'", one_line(ssh), entry.seq);
    }
    if entry.was_live && entry.before.is_some() {
        text.push_str("To go back to the version before\n");
        let _ = writeln!(text, "  {command} rollback {name}");
        let _ =
            writeln!(text, "  {command} rollback {name} --with data   (data too; it says first what that takes back)");
    }
}

fn one_line(text: &str) -> String {
    cut(&visible(text), Some(MAX_LINE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn facts() -> MailFacts {
        MailFacts {
            project: "shop".into(),
            node: "web1.example.org".into(),
            from: "mc_project@web1.example.org".into(),
            commits: vec![CommitLine {
                id: "1a2b3c4d5e".into(),
                subject: "cart".into(),
                author: "Alice <a@x.org>".into(),
            }],
            more_commits: 2,
            tail: vec!["Traceback:".into(), "\tno such column".into()],
            drift: vec!["templates/ 2 files".into()],
            kept: vec!["run.failed in archives/x".into()],
            warnings: vec!["disk is 91 % full".into()],
            log: "/var/log/mc_project/shop/x.log".into(),
            command: "mc_project".into(),
            from_afar: None,
        }
    }

    fn mail(entry: &Entry, facts: &MailFacts) -> Mail {
        compose(entry, facts, "dev@example.org", entry.ended())
    }

    #[test]
    fn the_mail_tells_verdict_commits_stages_tail_drift_and_what_to_run() {
        let entry = samples::rolled_back_entry();
        let mail = mail(&entry, &facts());
        assert_eq!(mail.subject, "[shop staging] rolled back at upgrade: 1a2b3c4d5e cart: no empty orders");
        let want = "\
shop on web1.example.org, #12
rolled back at upgrade: exit 2; run serves 9f8e7d6c5b again

Commit      1a2b3c4d5e000000000000000000000000000000 cart: no empty orders
Author      Alice <alice@example.org>
By          alice to main
Began       2026-11-20 15:04:05 UTC
Took        3.0 s
Mode        cooking (staging)
Serves now  9f8e7d6c5b of 20261120T150409Z-0199e5a0-0000-7000-8000-000000000009
Deployment  20261120T150412Z-0199e5a0-0000-7000-8000-00000000000c

Commits since the last good deployment
  1a2b3c4d5e cart (Alice <a@x.org>)
  and 2 more

Stages
  ok     build             12.4 s  3 steps
  FAILED upgrade            2.1 s  exit 2

Last output of the failed step
  | Traceback:
  | \tno such column

Warnings
  disk is 91 % full

Changed by hand in run before this deployment
  templates/ 2 files

Kept
  run.failed in archives/x

Hints
  mc_project logs shop

To look further, on the node
  mc_project show shop '#12'
  /var/log/mc_project/shop/x.log
";
        assert_eq!(mail.text, want);
    }

    #[test]
    fn who_has_no_account_on_the_node_reads_how_to_look_further_from_elsewhere() {
        let facts = MailFacts { from_afar: Some("ssh mc@web1".into()), ..facts() };
        let text = mail(&samples::rolled_back_entry(), &facts).text;
        assert!(text.contains("/x.log\nor from elsewhere\n  ssh mc@web1 show shop '#12'\n"), "{text}");
    }

    #[test]
    fn the_mail_names_the_pusher_their_key_and_where_they_came_from() {
        let mut entry = samples::rolled_back_entry();
        entry.key = Some("SHA256:qiGWwq6Dz4YpHzXWTzVJ0LIXF6EVD3Uhk6JmfT5Jqzs".into());
        let text = mail(&entry, &facts()).text;
        assert!(
            text.contains("\nBy          alice (SHA256:qiGWwq6Dz4YpHzXWTzVJ0LIXF6EVD3Uhk6JmfT5Jqzs) to main\n"),
            "{text}"
        );
        entry.pusher = "alice from 192.0.2.7".into();
        entry.key = Some("SHA256:x".into());
        let text = mail(&entry, &facts()).text;
        assert!(text.contains("\nBy          alice (SHA256:x) from 192.0.2.7 to main\n"), "{text}");
    }

    #[test]
    fn a_deployed_version_comes_with_the_command_to_go_back() {
        let mut entry = samples::rolled_back_entry();
        (entry.verdict, entry.was_live, entry.before) = (Verdict::Deployed, true, entry.serves.clone());
        let text = mail(&entry, &facts()).text;
        assert!(text.contains("To go back to the version before\n  mc_project rollback shop\n"), "{text}");
    }

    #[test]
    fn no_text_of_strangers_can_begin_a_line_or_a_header() {
        let evil = "x\r\nBcc: all@example.org\r\n\r\nhello\u{1b}[31m";
        let mut entry = samples::rolled_back_entry();
        (entry.subject, entry.author, entry.pusher) = (evil.into(), evil.into(), evil.into());
        (entry.why, entry.reason, entry.branch) = (Some(evil.into()), Some(evil.into()), Some(evil.into()));
        entry.stages[0].note = Some(evil.into());
        entry.hints = vec![evil.into()];
        let mut facts = facts();
        facts.commits[0] = CommitLine { id: evil.into(), subject: evil.into(), author: evil.into() };
        let all = || vec![evil.to_string()];
        (facts.tail, facts.drift, facts.kept, facts.warnings) = (all(), all(), all(), all());
        facts.node = format!("web1{evil}");
        let mail = mail(&entry, &facts);
        assert!(!mail.subject.contains(['\r', '\n']), "{:?}", mail.subject);
        assert!(!mail.message_id.contains(['\r', '\n', ' ', '<', '>']), "{:?}", mail.message_id);
        assert!(!mail.text.contains(['\r', '\u{1b}']), "{}", mail.text);
        assert!(mail.text.lines().all(|line| !line.starts_with("Bcc") && !line.starts_with("hello")), "{}", mail.text);
    }

    #[test]
    fn a_mail_is_bounded_whatever_it_tells_of() {
        let mut entry = samples::rolled_back_entry();
        entry.subject = "s".repeat(100_000);
        entry.hints = vec!["h".repeat(100_000); 1000];
        let mut facts = facts();
        facts.tail = (0..10_000).map(|n| format!("{n} {}", "\u{1b}".repeat(3_000))).collect();
        facts.drift = vec!["d".repeat(10_000); 10_000];
        facts.commits = vec![facts.commits[0].clone(); 10_000];
        let mail = mail(&entry, &facts);
        assert!(mail.subject.chars().count() <= MAX_SUBJECT);
        assert!(mail.text.len() < 160 * 1024, "{}", mail.text.len());
        assert!(mail.text.contains("\n  | 9999 "), "the end of the output is what counts");
        assert!(mail.text.contains("  and 9952 more\n") && mail.text.contains(" lines before these are in the log)"));
    }

    #[test]
    fn each_receiver_has_an_own_mail_with_a_message_id_that_stays() {
        let entry = samples::rolled_back_entry();
        let to = ["a@x.org".to_string(), "b@x.org".to_string()];
        let mails = compose_all(&entry, &facts(), &to, entry.ended());
        assert_eq!((&*mails[0].to, &*mails[1].to), ("a@x.org", "b@x.org"));
        assert_ne!(mails[0].message_id, mails[1].message_id);
        let later = entry.ended() + jiff::SignedDuration::from_hours(1);
        assert_eq!(compose(&entry, &facts(), "a@x.org", later).message_id, mails[0].message_id);
        assert!(mails[0].message_id.ends_with("@web1.example.org"));
    }
}
