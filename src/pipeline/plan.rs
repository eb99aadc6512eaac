//! The plan: what a deployment would do, told and not done.

use std::time::Duration;

use super::checkout::limits_of;
use super::draft::{Live, Version};
use super::fetch::{self, Offer};
use super::halt::Halt;
use super::site::Site;
use super::{editable, parking};
use crate::project::ids::ObjectId;
use crate::project::mode::Mode;
use crate::project::outcome::{Outcome, Verdict};
use crate::project::stage::Stage;
use crate::report::event::Event;
use crate::report::stream::Reporter;
use crate::sys::error::Result;
use crate::sys::git::{GitEntry, Repo};
use crate::sys::size::words;
use crate::tree::manifest::Manifest;
use crate::tree::snapshot::Snapshots;

/// How long another node is asked for a deliverable.
const ASKING: Duration = Duration::from_secs(20);
/// The most changed paths that are named.
const NAMED: usize = 20;

/// Tells the plan through the events and returns an outcome that changes nothing.
///
/// # Errors
/// What would refuse the deployment at once.
pub fn show(
    site: &Site,
    repo: &Repo,
    next: &Version,
    live: Option<&Live>,
    telling: &mut Reporter,
) -> std::result::Result<Outcome, Halt> {
    super::units::refuse(site, repo, next, live.and_then(|live| live.version.as_ref()))?;
    for line in lines(site, repo, next, live)? {
        telling.emit(Event::Note { text: line })?;
    }
    let outcome = Outcome {
        verdict: Verdict::Prepared,
        stage: None,
        reason: Some("nothing was done, this was the plan".to_string()),
        serves: live.map(|live| live.serving.clone()),
        hints: Vec::new(),
        exit: None,
    };
    telling.emit(Event::End { outcome: outcome.clone() })?;
    Ok(outcome)
}

/// The plan as lines.
///
/// # Errors
/// If the repository cannot be read.
pub fn lines(site: &Site, repo: &Repo, next: &Version, live: Option<&Live>) -> Result<Vec<String>> {
    let mut lines = vec![format!(
        "{} {} in {} mode ({}): {}",
        site.place.name(),
        next.commit.id.short(),
        next.mode.name(),
        site.config.environment.name(),
        crate::sys::escape::visible_bounded(next.commit.subject.as_bytes(), 120),
    )];
    match live {
        Some(live) if live.serving.commit == next.commit.id => lines.push("this commit is live already".into()),
        Some(live) => lines.push(format!("replaces {}", live.serving.commit.short())),
        None => lines.push("nothing is deployed yet".into()),
    }
    if next.mode == Mode::Editable {
        return Ok(lines.into_iter().chain(in_the_clone(site, repo, next)?).collect());
    }
    if parking::read(site)?.is_some() {
        lines.push(format!("editable mode ends: the clone goes whole to {}", site.place.archives().display()));
    }
    lines.extend(changed_files(site, repo, next, live)?);
    if next.mode == Mode::Final {
        lines.push(deliverable(site, next));
    }
    for stage in Stage::WITH_STEPS {
        if stage == Stage::Configure {
            lines.extend(templates(next));
        }
        let steps = next.recipe.stages.get(&stage).map(Vec::as_slice).unwrap_or_default();
        for step in steps.iter().filter(|step| step.applies(next.mode)) {
            let never =
                next.mode == Mode::Final && matches!(stage, Stage::PreInstall | Stage::Build | Stage::PostBuild);
            if !never {
                lines.push(format!("{}: {}", stage.name(), step.title()));
            }
        }
    }
    lines.extend(services(next));
    let need = Snapshots::new(&site.place, site.own).measure(&next.recipe.snapshot)?;
    lines.push(format!("data snapshot: {} of {} bytes would be copied", need.bytes, need.total));
    Ok(lines)
}

/// What a plan looks at.
#[derive(Debug)]
pub struct Planned<'a> {
    /// The code repository.
    pub repo: &'a Repo,
    /// The commit.
    pub commit: &'a ObjectId,
    /// Its files.
    pub listing: &'a [GitEntry],
}

/// Editable mode: what happens with the clone, and the steps that run in it, in their order.
fn in_the_clone(site: &Site, repo: &Repo, next: &Version) -> Result<Vec<String>> {
    let listing = repo.list(&next.commit.id, &limits_of(site))?;
    let mut lines = editable::plan_lines(site, &Planned { repo, commit: &next.commit.id, listing: &listing })?;
    for stage in std::iter::once(Stage::Stop).chain(editable::STAGES).chain([Stage::Notify]) {
        let steps = next.recipe.steps(stage).iter().filter(|step| step.applies(next.mode));
        if stage == Stage::Configure {
            lines.extend(templates(next));
        }
        lines.extend(steps.map(|step| format!("{}: {}", stage.name(), step.title())));
    }
    lines.extend(services(next));
    Ok(lines)
}

/// The files that would be made from the configuration.
fn templates(next: &Version) -> impl Iterator<Item = String> + '_ {
    next.recipe.templates.iter().map(|template| format!("configure: {} from {}", template.to, template.from))
}

/// What would be kept running.
fn services(next: &Version) -> Vec<String> {
    let services = next.recipe.services.iter().filter(|service| service.applies(next.mode));
    let words = services.map(|service| match service.count {
        1 => format!("service {}: {}", service.name, service.command.title()),
        count => format!("service {}, {count} times: {}", service.name, service.command.title()),
    });
    words.collect()
}

fn changed_files(site: &Site, repo: &Repo, next: &Version, live: Option<&Live>) -> Result<Vec<String>> {
    let listed = repo.list(&next.commit.id, &limits_of(site))?;
    let empty = Manifest::default();
    let before = live.map_or(&empty, |live| &live.manifest);
    let mut changed: Vec<String> = Vec::new();
    for entry in &listed {
        match before.get(&entry.path) {
            None => changed.push(format!("  + {}", entry.path)),
            Some(old) if old.blob.is_some() && old.blob.as_ref() != Some(&entry.oid) => {
                changed.push(format!("  ~ {}", entry.path));
            }
            Some(_) => {}
        }
    }
    let names: std::collections::HashSet<_> = listed.iter().map(|entry| &entry.path).collect();
    for old in before.entries().filter(|old| old.blob.is_some() && !names.contains(&old.path)) {
        changed.push(format!("  - {}", old.path));
    }
    before.intact()?;
    let count = changed.len();
    let mut lines = vec![format!("{count} of {} committed files change", listed.len())];
    lines.extend(changed.into_iter().take(NAMED));
    if count > NAMED {
        lines.push(format!("  … and {} more", count - NAMED));
    }
    Ok(lines)
}

/// Where the deliverable would come from; another node is asked, but not for long.
fn deliverable(site: &Site, next: &Version) -> String {
    match fetch::look(site, &next.commit.id, ASKING, &mut |_| {}) {
        Ok(Offer::Here(found)) => format!("deliverable: {}", found.file("tar.zst").display()),
        Ok(Offer::There(incoming, remote)) => {
            let rest = incoming.statement().size.saturating_sub(incoming.held().unwrap_or(0));
            format!("deliverable: {remote}, {} to fetch", words(rest))
        }
        Err(error) => format!("no deliverable: it would be refused ({})", error.one_line()),
    }
}
