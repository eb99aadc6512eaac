//! Telling people: the mail of a deployment is written while it is closed and sent afterwards. A fault of mail changes no
//! outcome and delays nobody.

use std::time::{Duration, Instant};

use super::site::{Rights, Site};
use crate::project::ids::DeploymentId;
use crate::project::mail::{MailTransport, SmtpTls};
use crate::project::node::{Tls, Transport};
use crate::project::outcome::Verdict;
use crate::project::recipe::{NotifyOn, Recipe};
use crate::report::event::{Begin, Event, Record};
use crate::report::history::{self, Entry};
use crate::report::mail::{CommitLine, MailFacts, compose_all};
use crate::report::{journal, post, spool};
use crate::sys::clock;
use crate::sys::error::Result;
use crate::sys::lock::Lock;
use crate::sys::{fs, machine};

/// How many commits a mail names.
const COMMITS: usize = 20;
/// How long one worker tries to send mail after its deployment.
const BUDGET: Duration = Duration::from_secs(30);

/// Writes the mails of a deployment into the spool.
///
/// # Errors
/// If the spool cannot be written.
pub fn spool(site: &Site, begin: &Begin, entry: &Entry, recipe: &Recipe) -> Result<()> {
    let to = receivers(site, entry, recipe)?;
    if to.is_empty() {
        return Ok(());
    }
    let facts = facts(site, begin, entry)?;
    for mail in compose_all(entry, &facts, &to, clock::now()) {
        spool::put_new(&site.place, &begin.id, &mail, clock::now())?;
    }
    Ok(())
}

/// Who is told: the recipe's addresses and the node's, where the recipe wants this kind of outcome to be told. That a person
/// is needed is told to everybody.
fn receivers(site: &Site, entry: &Entry, recipe: &Recipe) -> Result<Vec<String>> {
    if matches!(entry.verdict, Verdict::Unchanged | Verdict::Prepared) {
        return Ok(Vec::new());
    }
    let wanted = recipe.notify.on.contains(&occasion(entry, &history::read(&site.place, None)?));
    if !wanted && entry.verdict != Verdict::NeedsPerson {
        return Ok(Vec::new());
    }
    let mut to = recipe.notify.to.clone();
    to.extend(site.node.config.mail.to.iter().cloned());
    if to.is_empty() && matches!(site.node.config.mail.transport, Transport::Maildir(_)) {
        // A node that was told nothing about mail keeps it where it can be read.
        to.push(site.node.config.mail.from.clone());
    }
    to.sort();
    to.dedup();
    Ok(to)
}

/// A good one after one that did not deploy is a recovery.
fn occasion(entry: &Entry, entries: &[Entry]) -> NotifyOn {
    let is_failure = |verdict| {
        use Verdict::{Failed, Interrupted, LeftAsItIs, NeedsPerson, Refused, RolledBack};
        matches!(verdict, Refused | Failed | RolledBack | LeftAsItIs | NeedsPerson | Interrupted)
    };
    if is_failure(entry.verdict) {
        return NotifyOn::Failure;
    }
    let earlier = entries.iter().filter(|earlier| earlier.seq < entry.seq);
    let counts = |verdict: &Verdict| *verdict == Verdict::Deployed || is_failure(*verdict);
    match earlier.map(|earlier| earlier.verdict).rfind(counts) {
        Some(before) if is_failure(before) => NotifyOn::Recovered,
        _ => NotifyOn::Success,
    }
}

/// The way out as the sender of mail knows it.
fn transport(site: &Site) -> MailTransport {
    match &site.node.config.mail.transport {
        Transport::None => MailTransport::None,
        Transport::Maildir(path) => {
            MailTransport::Maildir { path: path.clone().unwrap_or_else(|| site.place.node().maildir()) }
        }
        Transport::Sendmail(program) => MailTransport::Sendmail { program: program.clone() },
        Transport::Smtp(smtp) => MailTransport::Smtp {
            host: smtp.host.clone(),
            port: smtp.port,
            tls: match smtp.tls {
                Tls::None => SmtpTls::None,
                Tls::Starttls => SmtpTls::Starttls,
                Tls::Tls => SmtpTls::Tls,
            },
            login: smtp.login.clone(),
            ca_file: smtp.ca_file.clone(),
            timeout: smtp.timeout,
        },
    }
}

fn facts(site: &Site, begin: &Begin, entry: &Entry) -> Result<MailFacts> {
    let records = journal::read(&site.place, &begin.id)?;
    let before = begin.serves.as_ref().map(|serving| &serving.commit);
    let repo = site.repo()?;
    let mut commits: Vec<CommitLine> = repo
        .log(&begin.commit, before, COMMITS + 1)
        .unwrap_or_default()
        .into_iter()
        .map(|info| CommitLine { id: info.id.short().to_string(), subject: info.subject, author: info.author })
        .collect();
    let more_commits = commits.len().saturating_sub(COMMITS);
    commits.truncate(COMMITS);
    let node = machine::host_name().unwrap_or_default();
    let from_afar = match &site.rights {
        Rights::OneUser => None,
        Rights::Separate { receiver, .. } => Some(format!("ssh {}@{node}", receiver.name)),
    };
    Ok(MailFacts {
        project: begin.project.clone(),
        node,
        from: site.node.config.mail.from.clone(),
        commits,
        more_commits,
        tail: last_tail(&records),
        drift: texts(&records, |event| matches!(event, Event::Note { text } if text.contains("/: "))),
        kept: kept(site, &begin.id),
        warnings: texts(&records, |event| matches!(event, Event::Warning { .. })),
        log: site.place.log(&entry.id).display().to_string(),
        command: site.command(),
        from_afar,
    })
}

/// What is kept of a deployment, each with what it is; nothing where it is gone by now.
#[must_use]
pub fn kept(site: &Site, id: &DeploymentId) -> Vec<String> {
    let archive = site.place.archive(id);
    let known = [
        ("before.json", "", "the restore point: code, configuration and data as they were before"),
        ("dumps", "dumps", "what the backup steps wrote, before"),
        ("drift", "drift", "what was changed by hand in run, before"),
        ("run.failed", "run.failed/files", "the files in which the failed version differs"),
        ("data.failed", "data.failed", "the data that the failed version left"),
    ];
    let found = known.iter().filter(|(name, _, _)| fs::exists(&archive.join(name)));
    let mut kept: Vec<String> =
        found.map(|(_, path, what)| format!("{what}: {}", archive.join(path).display())).collect();
    let aside = super::clone::aside_dir(site, id);
    if fs::exists(&aside) {
        kept.push(format!("what stood in the clone and no commit knew: {}", aside.display()));
    }
    kept
}

fn last_tail(records: &[Record]) -> Vec<String> {
    let mut tails = records.iter().filter_map(|record| match &record.event {
        Event::StageFailed { tail, .. } if !tail.is_empty() => Some(tail.clone()),
        _ => None,
    });
    tails.next_back().unwrap_or_default()
}

fn texts(records: &[Record], wanted: impl Fn(&Event) -> bool) -> Vec<String> {
    let found = records.iter().filter(|record| wanted(&record.event));
    found
        .filter_map(|record| match &record.event {
            Event::Note { text } | Event::Warning { text } => Some(text.clone()),
            _ => None,
        })
        .collect()
}

/// Sends what is in the spool and due. The caller holds no lock of the project.
///
/// # Errors
/// If the spool cannot be read; that a mail cannot be sent is no error.
pub fn send_spooled(site: &Site) -> Result<()> {
    if spool::list(&site.place)?.is_empty() {
        return Ok(());
    }
    let _one_at_a_time = Lock::take(&site.place.spool().join(".door"), Some(Instant::now() + BUDGET), |_| Ok(()))?;
    let way = transport(site);
    let round = spool::retry(&site.place, clock::now(), BUDGET, &mut |mail| post::send(mail, &way))?;
    for given_up in round.given_up {
        tracing::error!("the mail about {} was given up: {}", given_up.deployment, given_up.error);
    }
    Ok(())
}
