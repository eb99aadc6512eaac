//! Gathers what is told of one deployment, for `show`: what it changed, what was kept of it, where its release came from.
//!
//! Everything here may be gone by now, and is left out then: a look back fails for nothing but what it is about.

use std::collections::HashMap;

use super::activate::RestorePoint;
use super::checkout::limits_of;
use super::fetch;
use super::site::Site;
use super::tell::kept;
use crate::project::ids::ObjectId;
use crate::report::detail::{Brought, Changes, Detail, LogTail, Restore};
use crate::report::history::Entry;
use crate::report::journal;
use crate::sys::error::Result;
use crate::sys::fs;
use crate::sys::git::{GitEntry, Repo};
use crate::sys::path::TreePath;
use crate::tree::release::Releases;

/// How many commits are named.
const COMMITS: usize = 20;
/// How many lines of a log are shown where not all are asked for.
const LINES: usize = 20;

/// Everything about a deployment; `all_of_log`: its log from the first line on.
///
/// # Errors
/// If its log is there and cannot be read.
pub fn gather(site: &Site, entry: &Entry, entries: &[Entry], all_of_log: bool) -> Result<Detail> {
    let archive = site.place.archive(&entry.id).display().to_string();
    let restore = RestorePoint::read(site, &entry.id).ok().flatten().map(|point| restore(site, entry, &point));
    // The restore point has its own part.
    let kept = kept(site, &entry.id).into_iter().filter(|line| !line.starts_with("the restore point"));
    Ok(Detail {
        records: journal::read(&site.place, &entry.id).unwrap_or_default(),
        changes: site.repo().ok().and_then(|repo| changes(site, &repo, entry, entries)),
        provenance: provenance(site, entry),
        kept: kept.filter(|_| fs::exists(std::path::Path::new(&archive))).collect(),
        restore,
        log: log(site, entry, all_of_log)?,
        commands: commands(site, entry),
    })
}

/// The provenance of its release while that is kept; of what another node cooked, that of the deliverable too.
fn provenance(site: &Site, entry: &Entry) -> Vec<(&'static str, String)> {
    let Ok(own) = Releases::new(&site.place).provenance(&entry.id) else { return Vec::new() };
    let cooked = fetch::found_here(site, &entry.commit).and_then(|found| found.verify(&site.trusted_keys().ok()?).ok());
    let cooked = cooked.and_then(|(statement, _)| statement.provenance);
    match cooked {
        Some(cooked) if entry.mode == crate::project::mode::Mode::Final => cooked.facts(),
        _ => own.facts(),
    }
}

fn changes(site: &Site, repo: &Repo, entry: &Entry, entries: &[Entry]) -> Option<Changes> {
    let before = entry.before.as_ref();
    let mut log = repo.log(&entry.commit, before.map(|before| &before.commit), COMMITS + 1).ok()?;
    let more =
        if log.len() > COMMITS { count(repo, entry, before.map(|b| &b.commit)).saturating_sub(COMMITS) } else { 0 };
    log.truncate(COMMITS);
    let list = |commit: &ObjectId| repo.list(commit, &limits_of(site)).ok();
    let new = list(&entry.commit)?;
    let old = before.and_then(|before| list(&before.commit)).unwrap_or_default();
    let (added, changed, removed) = compare(&old, &new);
    let earlier = before.and_then(|before| entries.iter().find(|earlier| earlier.id == before.id));
    let name = |pillar: Option<&ObjectId>| pillar.map_or("none".to_string(), |id| id.short().to_string());
    let pillars = earlier.map(|earlier| (earlier.pillar.as_ref(), entry.pillar.as_ref()));
    Some(Changes {
        since: before.map(|before| {
            let number = earlier.map(|earlier| format!("#{} ", earlier.seq)).unwrap_or_default();
            format!("{number}{}", before.commit.short())
        }),
        commits: log
            .into_iter()
            .map(|info| Brought {
                commit: info.id.short().to_string(),
                subject: info.subject,
                author: info.author.split('<').next().unwrap_or_default().trim().to_string(),
            })
            .collect(),
        more,
        added,
        changed,
        removed,
        pillar: pillars.filter(|(old, new)| old != new).map(|(old, new)| format!("{} is now {}", name(old), name(new))),
    })
}

/// How many commits there are since another one.
fn count(repo: &Repo, entry: &Entry, before: Option<&ObjectId>) -> usize {
    repo.log(&entry.commit, before, usize::MAX).map_or(0, |all| all.len())
}

/// How many files are new, other ones, and gone.
fn compare(old: &[GitEntry], new: &[GitEntry]) -> (usize, usize, usize) {
    let mut left: HashMap<&TreePath, &GitEntry> = old.iter().map(|entry| (&entry.path, entry)).collect();
    let (mut added, mut changed) = (0, 0);
    for entry in new {
        match left.remove(&entry.path) {
            None => added += 1,
            Some(was) if (&was.oid, was.kind) != (&entry.oid, entry.kind) => changed += 1,
            Some(_) => {}
        }
    }
    (added, changed, left.len())
}

fn restore(site: &Site, entry: &Entry, point: &RestorePoint) -> Restore {
    let archive = site.place.archive(&entry.id);
    let mut holds = Vec::new();
    let mut hold = |name: &str, what: String| holds.push((name.to_string(), what));
    hold(
        "code",
        point.before.as_ref().map_or("nothing served".into(), |it| format!("{} of {}", it.commit.short(), it.id)),
    );
    hold("pillar", point.pillar.as_ref().map_or("none".into(), |pillar| pillar.short().to_string()));
    hold(
        "data",
        match &point.scope {
            None => "all of data/".into(),
            Some(paths) if paths.is_empty() => "none (the recipe names none)".into(),
            Some(paths) => paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        },
    );
    if fs::exists(&archive.join("dumps")) {
        hold("dumps", format!("what the backup steps wrote: {}", archive.join("dumps").display()));
    }
    // What never was replaced, or is back already, needs no command.
    let back = point.before.as_ref().filter(|_| entry.was_live);
    Restore {
        path: archive.display().to_string(),
        holds,
        command: back.map(|back| {
            format!("{} rollback {} --to {} [--with data]", site.command(), site.place.name(), back.id.short())
        }),
    }
}

/// The end of the log.
fn log(site: &Site, entry: &Entry, all: bool) -> Result<LogTail> {
    let path = site.place.log(&entry.id);
    let bytes = fs::read_if_there(&path)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let first = if all { 0 } else { lines.len().saturating_sub(LINES) };
    Ok(LogTail {
        lines: lines[first..].iter().map(ToString::to_string).collect(),
        of: lines.len(),
        path: path.display().to_string(),
        command: format!("{} show {} '#{}' --log", site.command(), site.place.name(), entry.seq),
    })
}

fn commands(site: &Site, entry: &Entry) -> Vec<(String, String)> {
    let (command, name, seq) = (site.command(), site.place.name(), entry.seq);
    let releases = Releases::new(&site.place);
    let is_kept = |id| releases.provenance(id).is_ok();
    let mut all = vec![(format!("{command} show {name} '#{seq}' --log"), "all of its log".to_string())];
    if let Some(before) = entry.before.as_ref().filter(|before| is_kept(&before.id) && is_kept(&entry.id)) {
        let before = before.id.short();
        all.push((format!("{command} diff {name} {before} '#{seq}'"), "the files in which the two differ".into()));
    }
    if entry.was_live && is_kept(&entry.id) {
        all.push((format!("{command} rollback {name} --to '#{seq}'"), "to make it live again".into()));
    }
    all
}
