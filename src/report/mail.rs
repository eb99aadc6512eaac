//! The mail about a deployment: what it says, as pure functions. [`super::post`] sends it.
//!
//! It is told twice, as text ([`text`]) and as HTML ([`html`]), from the same data; both escape everything that comes from a
//! push or a step.

use serde::{Deserialize, Serialize};

use super::event::Work;
use super::history::Entry;
use crate::project::outcome::Verdict;
use crate::project::recipe::NotifyOn;

pub mod html;
pub mod subject;
pub mod text;

/// The most of a failed step's output that a mail carries.
pub const TAIL_LIMIT: usize = 64 * 1024;

const MAX_COMMITS: usize = 50;
const MAX_LIST: usize = 20;
const MAX_LINE: usize = 500;

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
    /// The same as HTML; `None`: text alone.
    #[serde(default)]
    pub html: Option<String>,
    /// When it was written.
    pub date: jiff::Timestamp,
    /// Identifies it, `left@right`: the same for each attempt to send it.
    pub message_id: String,
    /// What all mails of one thread answer to, `left@right`.
    #[serde(default)]
    pub thread: Option<String>,
    /// The project, for filters.
    #[serde(default)]
    pub project: Option<String>,
}

/// A commit that a deployment brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommitLine {
    /// The short id.
    pub id: String,
    /// First line of the message, unescaped.
    pub subject: String,
    /// The author, unescaped.
    pub author: String,
}

/// What a mail tells besides the history's entry.
#[derive(Debug, Clone)]
pub struct MailFacts {
    /// The project's name.
    pub project: String,
    /// The node's host name.
    pub node: String,
    /// The sender's address.
    pub from: String,
    /// Which kind of news it is.
    pub occasion: NotifyOn,
    /// The branch that deploys: all mails about it are one thread.
    pub branch: Option<String>,
    /// The commits since the last good deployment, newest first.
    pub commits: Vec<CommitLine>,
    /// How many commits more there are.
    pub more_commits: usize,
    /// The last output of the failed step, masked.
    pub tail: Vec<String>,
    /// What was changed by hand in `run`, one line each.
    pub drift: Vec<String>,
    /// What was taken back, and what was not, one line each.
    pub taken_back: Vec<String>,
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

/// A command that the reader may want next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// What it is for.
    pub what: &'static str,
    /// What is typed.
    pub line: String,
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
        subject: subject::of(entry, facts),
        text: text::of(entry, facts),
        html: html::of(entry, facts),
        date: now,
        message_id: message_id(entry, facts, to),
        thread: Some(thread(facts)),
        project: Some(facts.project.clone()),
    }
}

/// The same for each attempt, and another one for each receiver, so that no server takes two for one.
fn message_id(entry: &Entry, facts: &MailFacts, to: &str) -> String {
    // The end tells a deployment that was decided by a person later from its first end.
    let key = format!("{to}\n{}", entry.ended());
    let unique = blake3::hash(key.as_bytes()).to_hex();
    format!("{}.{}@{}", entry.id, &unique.as_str()[..8], host(&facts.node))
}

/// One for each project and branch. No mail has this id: readers put those that answer to the same one together.
fn thread(facts: &MailFacts) -> String {
    let key = format!("{}\n{}", facts.project, facts.branch.as_deref().unwrap_or_default());
    let unique = blake3::hash(key.as_bytes()).to_hex();
    format!("thread.{}@{}", &unique.as_str()[..16], host(&facts.node))
}

/// A host's name as an id may hold it.
#[must_use]
pub fn host(node: &str) -> String {
    let host: String = node.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).collect();
    if host.is_empty() { "localhost".to_string() } else { host }
}

/// The commands to look further and to go back, as the reader can give them: over ssh where people come in that way.
#[must_use]
pub fn suggestions(entry: &Entry, facts: &MailFacts) -> Vec<Suggestion> {
    let command = facts.from_afar.as_ref().unwrap_or(&facts.command);
    let (name, seq) = (&facts.project, entry.seq);
    let mut all = vec![
        Suggestion { what: "what happened, in full", line: format!("{command} show {name} '#{seq}'") },
        Suggestion { what: "its whole log", line: format!("{command} logs {name} '#{seq}'") },
    ];
    if entry.verdict == Verdict::NeedsPerson {
        all.push(Suggestion { what: "keep what runs now", line: format!("{command} recover {name} --forward") });
        all.push(Suggestion { what: "or the version before", line: format!("{command} recover {name} --back") });
    }
    if !facts.drift.is_empty() {
        all.push(Suggestion { what: "what is changed by hand now", line: format!("{command} drift {name}") });
    }
    if entry.was_live && entry.before.is_some() && entry.verdict == Verdict::Deployed {
        all.push(Suggestion { what: "back to the version before", line: format!("{command} rollback {name}") });
        // Who cannot be asked must say that they mean it; on the node it first says what it takes back.
        let yes = if facts.from_afar.is_some() { " --yes" } else { "" };
        let line = format!("{command} rollback {name} --with data{yes}");
        all.push(Suggestion { what: "with the data as they were then", line });
    }
    all
}

/// What serves now, in one sentence.
#[must_use]
pub fn serves(entry: &Entry) -> String {
    match (&entry.serves, entry.verdict) {
        (None, Verdict::LeftAsItIs) => "the clone is left as it is".to_string(),
        (None, _) => "nothing: nothing was deployed yet".to_string(),
        (Some(s), Verdict::Deployed) if entry.work == Work::Rollback => format!("{} again", s.commit.short()),
        (Some(s), Verdict::Deployed) => format!("{}, this version", s.commit.short()),
        (Some(s), Verdict::LeftAsItIs) => {
            format!("the clone is left as it is; the last good one was {}", s.commit.short())
        }
        (Some(s), Verdict::NeedsPerson) => {
            format!("perhaps not all of {}: run is left as it was when this happened", s.commit.short())
        }
        (Some(s), Verdict::RolledBack | Verdict::Interrupted) => {
            format!("{}, the version before, again", s.commit.short())
        }
        (Some(s), _) => format!("{}, the version before, as if nothing had happened", s.commit.short()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;
    use samples::mail_facts as facts;

    fn mail(entry: &Entry, facts: &MailFacts) -> Mail {
        compose(entry, facts, "dev@example.org", entry.ended())
    }

    #[test]
    fn the_mail_tells_verdict_commits_stages_tail_drift_and_what_to_run() {
        let entry = samples::rolled_back_entry();
        let mail = mail(&entry, &facts());
        assert_eq!(mail.subject, "✗ shop staging: rolled back 1a2b3c4d5e at upgrade: cart: no empty orders");
        let want = "\
shop on web1.example.org, #12
rolled back at upgrade: exit 2; run serves 9f8e7d6c5b again

Serves now  9f8e7d6c5b, the version before, again
Commit      1a2b3c4d5e000000000000000000000000000000 cart: no empty orders
Author      Alice <alice@example.org>
By          alice to main
Began       2026-11-20 15:04:05 UTC
Took        3.0 s
Mode        cooking (staging)
Deployment  20261120T150412Z-0199e5a0-0000-7000-8000-00000000000c

Last output of the failed step
  | Traceback:
  | \tno such column

Taken back
  code and configuration: those of 9f8e7d6c5b

Kept
  what failed: /archives/x/run.failed

Commits since the last good deployment
  1a2b3c4d5e cart (Alice <a@x.org>)
  and 2 more

Stages
  ok     build             12.4 s  3 steps
  FAILED upgrade            2.1 s  exit 2

Warnings
  disk is 91 % full

Changed by hand in run before this deployment
  templates/ 2 files

Hints
  mc_project logs shop

To look further, and to go on
  what happened, in full
      mc_project show shop '#12'
  its whole log
      mc_project logs shop '#12'
  what is changed by hand now
      mc_project drift shop
The log is /var/log/mc_project/shop/x.log there.
";
        assert_eq!(mail.text, want);
    }

    #[test]
    fn who_has_no_account_on_the_node_reads_how_to_look_further_from_elsewhere() {
        let facts = MailFacts { from_afar: Some("ssh mc@web1".into()), ..facts() };
        let mut entry = samples::rolled_back_entry();
        let text = mail(&entry, &facts).text;
        assert!(text.contains("\n      ssh mc@web1 show shop '#12'\n"), "{text}");
        assert!(text.contains("\nOn the node itself these begin with `mc_project`.\n"), "{text}");
        (entry.verdict, entry.was_live, entry.before) = (Verdict::Deployed, true, entry.serves.clone());
        let text = mail(&entry, &facts).text;
        assert!(
            text.contains("      ssh mc@web1 rollback shop --with data --yes\n"),
            "nobody can answer there: {text}"
        );
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
        assert!(text.contains("  back to the version before\n      mc_project rollback shop\n"), "{text}");
    }

    #[test]
    fn who_must_decide_reads_both_ways_out() {
        let mut entry = samples::rolled_back_entry();
        entry.verdict = Verdict::NeedsPerson;
        let text = mail(&entry, &facts()).text;
        assert!(text.contains("recover shop --forward\n") && text.contains("recover shop --back\n"), "{text}");
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
        (facts.taken_back, facts.branch) = (all(), Some(evil.into()));
        facts.node = format!("web1{evil}");
        let mail = mail(&entry, &facts);
        assert!(!mail.subject.contains(['\r', '\n']), "{:?}", mail.subject);
        assert!(!mail.message_id.contains(['\r', '\n', ' ', '<', '>']), "{:?}", mail.message_id);
        assert!(!mail.text.contains(['\r', '\u{1b}']), "{}", mail.text);
        let html = mail.html.unwrap();
        assert!(!html.contains(['\r', '\u{1b}']), "{html}");
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
        assert!(mail.subject.chars().count() <= subject::MAX);
        assert!(mail.html.as_ref().is_none_or(|html| html.len() <= 100 * 1024));
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

    #[test]
    fn all_mails_of_one_branch_answer_to_the_same_one() {
        let (one, mut other) = (samples::rolled_back_entry(), samples::rolled_back_entry());
        other.id = samples::id(13);
        other.verdict = Verdict::Deployed;
        let thread = mail(&one, &facts()).thread.unwrap();
        assert_eq!(mail(&other, &facts()).thread.unwrap(), thread);
        let elsewhere = MailFacts { branch: Some("next".into()), ..facts() };
        assert_ne!(mail(&one, &elsewhere).thread.unwrap(), thread);
        let elsewhere = MailFacts { project: "blog".into(), ..facts() };
        assert_ne!(mail(&one, &elsewhere).thread.unwrap(), thread);
    }
}
