//! Telling people: the mails and webhooks of a deployment are written while it is closed; [`super::outbox`] sends them
//! afterwards. A fault of mail changes no outcome and delays nobody.

use std::collections::BTreeSet;

use super::draft::Version;
use super::site::{Rights, Site};
use crate::project::ids::DeploymentId;
use crate::project::node::Transport;
use crate::project::outcome::Verdict;
use crate::project::recipe::Recipe;
use crate::project::recipe::notify::{NotifyOn, Receiver, When, Who};
use crate::report::event::{Begin, Event, Record, Work};
use crate::report::history::{self, Entry};
use crate::report::mail::{CommitLine, Mail, MailFacts, compose, compose_all};
use crate::report::notice::Notice;
use crate::report::webhook::{self, Secret, Target};
use crate::report::{journal, spool};
use crate::sys::error::{Error, Result};
use crate::sys::{clock, fs, machine};

/// How many commits a mail names.
const COMMITS: usize = 20;
/// How many authors get a mail at most.
const AUTHORS: usize = 20;
/// The key of the pillar whose value signs what is posted to the recipe's webhook.
const WEBHOOK_SECRET: &str = "webhook_secret";

/// Writes the mails and webhooks of a deployment into the spool; tells what could not be written.
///
/// # Errors
/// If the journal or the history cannot be read.
pub fn spool(
    site: &Site,
    begin: &Begin,
    entry: &Entry,
    recipe: &Recipe,
    version: Option<&Version>,
) -> Result<Vec<String>> {
    if matches!(entry.verdict, Verdict::Unchanged | Verdict::Prepared) {
        return Ok(Vec::new());
    }
    let occasion = occasion(entry, &history::read(&site.place, None)?);
    let facts = facts(site, begin, entry, occasion)?;
    let mut faults = Vec::new();
    let mut notices: Vec<Notice> = Vec::new();
    let to = addresses(site, entry, recipe, &facts);
    notices.extend(compose_all(entry, &facts, &to, clock::now()).into_iter().map(Notice::Mail));
    for target in targets(site, entry, recipe, version, occasion) {
        match target.and_then(|target| webhook::compose(entry, &facts, &target)) {
            Ok(hook) => notices.push(Notice::Hook(hook)),
            Err(error) => faults.push(format!("the webhook could not be written: {}", error.one_line())),
        }
    }
    for notice in notices {
        let shown = notice.shown();
        match spool::put(&site.place, &begin.id, notice, clock::now()) {
            Ok(given_up) => given_up.iter().for_each(|old| super::outbox::log_given_up(site, old)),
            Err(error) => faults.push(format!("the {shown} could not be written: {}", error.one_line())),
        }
    }
    Ok(faults)
}

/// Whether somebody wants to know of this now. That a person is needed is told on every occasion.
fn is_wanted(receiver: &Receiver, entry: &Entry, occasion: NotifyOn, usual: &[NotifyOn]) -> bool {
    let when = &receiver.when;
    when.is_for(occasion, entry.environment, usual)
        || (entry.verdict == Verdict::NeedsPerson && when.is_in(entry.environment))
}

/// Who gets mail: the recipe's receivers and the node's, each once.
fn addresses(site: &Site, entry: &Entry, recipe: &Recipe, facts: &MailFacts) -> Vec<String> {
    let (mail, usual) = (&site.node.config.mail, &recipe.notify.on);
    let mut all: Vec<&Receiver> = recipe.notify.to.iter().chain(&mail.to).collect();
    let fallback = Receiver { who: Who::Address(mail.from.clone()), when: When::default() };
    if all.is_empty() && matches!(mail.transport, Transport::Maildir(_)) {
        // A node that was told nothing about mail keeps it where it can be read.
        all.push(&fallback);
    }
    let mut to = BTreeSet::new();
    for receiver in all.into_iter().filter(|receiver| is_wanted(receiver, entry, facts.occasion, usual)) {
        match &receiver.who {
            Who::Address(address) => {
                to.insert(address.clone());
            }
            Who::Authors => to.extend(authors(entry, facts)),
        }
    }
    to.into_iter().collect()
}

/// The addresses of those who wrote the commits; one that nobody reads, or that is none, is passed over.
fn authors(entry: &Entry, facts: &MailFacts) -> BTreeSet<String> {
    let written = facts.commits.iter().map(|commit| commit.author.as_str()).chain([entry.author.as_str()]);
    let address = |author: &str| {
        let address = author.rsplit_once('<')?.1.strip_suffix('>')?.to_lowercase();
        let good = crate::project::yaml::scalar::is_address(&address);
        let is_read =
            !address.starts_with("noreply") && !address.starts_with("no-reply") && !address.contains("@users.noreply.");
        (good && is_read).then_some(address)
    };
    written.filter_map(address).take(AUTHORS).collect()
}

/// Where the outcome is posted to: the node's webhook and the recipe's.
fn targets(
    site: &Site,
    entry: &Entry,
    recipe: &Recipe,
    version: Option<&Version>,
    occasion: NotifyOn,
) -> Vec<Result<Target>> {
    let usual = &recipe.notify.on;
    let mut targets = Vec::new();
    if let Some(webhook) = &site.node.config.webhook
        && webhook.hook.when.is_for(occasion, entry.environment, usual)
    {
        targets.push(super::outbox::node_target(&site.node));
    }
    if let Some(webhook) = &recipe.notify.webhook
        && webhook.when.is_for(occasion, entry.environment, usual)
    {
        let secret =
            version.and_then(|version| version.pillar.config().get(WEBHOOK_SECRET)?.as_str().map(str::to_string));
        targets.push(Ok(Target { url: webhook.url.clone(), secret: secret.map(Secret), ca_file: None }));
    }
    targets
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

/// The mail about a past deployment, made anew.
///
/// # Errors
/// If its journal cannot be read any more.
pub fn mail_again(site: &Site, entry: &Entry, to: &str) -> Result<Mail> {
    let records = journal::read(&site.place, &entry.id)?;
    let begin = super::recover::begin_of(&records)
        .ok_or_else(|| Error::failed(format!("the journal of {} has no beginning", entry.id)))?;
    let occasion = occasion(entry, &history::read(&site.place, None)?);
    Ok(compose(entry, &facts(site, &begin, entry, occasion)?, to, clock::now()))
}

/// Everything that a mail tells besides the history's entry.
///
/// # Errors
/// If the journal cannot be read.
fn facts(site: &Site, begin: &Begin, entry: &Entry, occasion: NotifyOn) -> Result<MailFacts> {
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
    let deploys = || site.deploy_branch().ok().flatten().and_then(|name| name.branch().map(str::to_string));
    let mut warnings = texts(&records, |event| matches!(event, Event::Warning { .. }));
    warnings.extend(given_up(site));
    Ok(MailFacts {
        project: begin.project.clone(),
        node,
        from: site.node.config.mail.from.clone(),
        occasion,
        branch: entry.branch.clone().or_else(deploys),
        commits,
        more_commits,
        tail: last_tail(&records),
        drift: texts(&records, |event| matches!(event, Event::Note { text } if text.contains("/: "))),
        taken_back: taken_back(entry, &records),
        kept: kept(site, &begin.id),
        warnings,
        log: site.place.log(&entry.id).display().to_string(),
        command: site.command(),
        from_afar,
    })
}

/// What was given up before is told with whatever goes out next.
fn given_up(site: &Site) -> Option<String> {
    let all = spool::given_up(&site.place).ok()?;
    let last = all.last()?;
    let name = site.place.name();
    let command = site.command();
    Some(format!(
        "{} could not be told in three days, last the {} about {}: {}; {command} mail list {name}",
        all.len(),
        last.notice.shown(),
        last.deployment,
        last.error
    ))
}

/// What a rollback took back, or what a rollback by hand did.
fn taken_back(entry: &Entry, records: &[Record]) -> Vec<String> {
    let happened = |wanted: fn(&Event) -> bool| records.iter().any(|record| wanted(&record.event));
    let by_hand = entry.work == Work::Rollback && entry.verdict == Verdict::Deployed;
    if !happened(|event| matches!(event, Event::RolledBack)) && !by_hand {
        return Vec::new();
    }
    let commit = entry.serves.as_ref().map_or("nothing", |serving| serving.commit.short());
    let mut lines = vec![format!("code and configuration: those of {commit}")];
    let data = happened(|event| matches!(event, Event::DataRestored));
    lines.push(match (data, by_hand) {
        (true, true) => "data: as they were when that version was replaced".to_string(),
        (true, false) => "data: as they were before this deployment".to_string(),
        (false, true) => "data: stayed as they are".to_string(),
        (false, false) => "data: stayed as they are, no step of the new version had run".to_string(),
    });
    lines
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
