//! Commands that only look. Each of them has `--json`.

use super::screen;
use super::{Cli, DiffArgs, HistoryArgs, NameArgs, ShowArgs, VerifyArgs};
use crate::pipeline::detail;
use crate::pipeline::parking;
use crate::pipeline::site::Site;
use crate::pipeline::verify::{Verified, verify as check};
use crate::project::ids::DeploymentId;
use crate::project::mode::Mode;
use crate::report::history::{self, Entry};
use crate::report::{self, listing};
use crate::sys::clock;
use crate::sys::error::{Error, ExitCode, Result};
use crate::tree::drift::{Drift, How};
use crate::tree::manifest::differing;
use crate::tree::release::Releases;

/// `history`.
///
/// # Errors
/// If the history cannot be read.
pub fn history(cli: &Cli, args: &HistoryArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let entries = history::read(&site.place, Some(args.limit))?;
    if args.json {
        let newest_first: Vec<&Entry> = entries.iter().rev().collect();
        screen::json(&newest_first)?;
    } else if entries.is_empty() {
        screen::line("nothing was deployed yet");
    } else {
        let serves = site.serves()?;
        let serves = serves.as_ref().map(|serving| &serving.id);
        let view = listing::View { serves, now: clock::now(), style: screen::style() };
        screen::line(listing::table(&entries, &view).trim_end());
    }
    Ok(0)
}

/// The entry that was named, or the last one.
///
/// # Errors
/// If there is none.
pub fn entry_of(site: &Site, spec: Option<&str>) -> Result<Entry> {
    let entries = history::read(&site.place, None)?;
    match spec {
        Some(spec) => {
            history::find_serving(&entries, site.serves()?.as_ref(), spec).cloned().map_err(|error| site.typed(error))
        }
        None => entries.last().cloned().ok_or_else(|| Error::usage("nothing was deployed yet")),
    }
}

/// The kept release that was named, or what is live.
///
/// # Errors
/// If there is none.
pub fn release_of(site: &Site, spec: Option<&str>) -> Result<DeploymentId> {
    let id = match spec {
        Some(spec) => {
            let entries = history::read(&site.place, None)?;
            history::find_serving(&entries, site.serves()?.as_ref(), spec)
                .map_err(|error| site.typed(error))?
                .id
                .clone()
        }
        None => site.serves()?.ok_or_else(|| Error::usage("nothing is deployed yet"))?.id,
    };
    match Releases::new(&site.place).provenance(&id) {
        Ok(found) if found.mode == Mode::Editable => Err(Error::refused(format!(
            "#{} was deployed in editable mode: its files are those of the clone",
            found.seq
        ))
        .hint(format!("git -C {} log", site.place.run().display()))),
        _ => Ok(id),
    }
}

/// `show`.
///
/// # Errors
/// If there is no such deployment.
pub fn show(cli: &Cli, args: &ShowArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let entry = entry_of(&site, args.id.as_deref())?;
    let told = detail::gather(&site, &entry, &history::read(&site.place, None)?, args.log)?;
    if args.json {
        let log = site.place.log(&entry.id);
        screen::json(&serde_json::json!({
            "entry": entry,
            "records": told.records,
            "log": log,
            "changes": told.changes,
            "restore_point": told.restore,
            "kept": told.kept,
            "release": Releases::new(&site.place).provenance(&entry.id).ok(),
        }))?;
        return Ok(0);
    }
    screen::line(report::detail::text(&entry, &told, clock::now(), &screen::style()).trim_end());
    Ok(0)
}

/// `diff`.
///
/// # Errors
/// If one of them is not kept.
pub fn diff(cli: &Cli, args: &DiffArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let releases = Releases::new(&site.place);
    let (a, b) = (release_of(&site, Some(&args.a))?, release_of(&site, args.b.as_deref())?);
    let kept = |id: &DeploymentId| releases.manifest(id).map_err(|error| site.typed(error));
    let (old, new) = (kept(&a)?, kept(&b)?);
    let mut changes = Vec::new();
    for (old, new) in differing(&old, &new) {
        let (how, entry) = match (old, new) {
            (None, Some(new)) => (How::Added, new),
            (Some(old), None) => (How::Removed, old),
            (Some(old), Some(new)) if !old.same_content(new) => (How::Changed, new),
            (Some(old), Some(new)) if old.mode != new.mode => (How::Metadata, new),
            _ => continue,
        };
        if !entry.is_dir() || how != How::Metadata {
            changes.push(crate::tree::drift::Change { path: entry.path.clone(), how, is_dir: entry.is_dir() });
        }
    }
    let drift = Drift { changes };
    if args.json {
        screen::json(&serde_json::json!({"a": a, "b": b, "changes": drift.changes}))?;
    } else {
        print_changes(&drift);
    }
    Ok(0)
}

fn print_changes(drift: &Drift) {
    for change in drift.changes.iter().filter(|change| !change.is_dir || change.how != How::Metadata) {
        let letter = match change.how {
            How::Added => "+",
            How::Removed => "-",
            How::Changed => "~",
            How::Metadata => "m",
        };
        screen::line(format!("{letter} {}{}", change.path, if change.is_dir { "/" } else { "" }));
    }
}

/// `drift`.
///
/// # Errors
/// If `run` cannot be read.
pub fn drift(cli: &Cli, args: &NameArgs) -> Result<u8> {
    let site = cli.site(&args.name)?;
    let drift = crate::pipeline::data::drift_of_run(&site)?;
    if args.json {
        screen::json(&drift)?;
    } else if drift.is_empty() {
        let is_clone = parking::read(&site)?.is_some();
        screen::line(if is_clone { "the clone is exactly its commit" } else { "run is exactly what was deployed" });
    } else {
        print_changes(&drift);
    }
    Ok(0)
}

/// `verify`.
///
/// # Errors
/// If the state cannot be read at all.
pub fn verify(cli: &Cli, args: &VerifyArgs) -> Result<u8> {
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => cli.made_node()?.projects()?,
    };
    let results = names.iter().map(|name| check(&cli.site(name)?)).collect::<Result<Vec<Verified>>>()?;
    if args.json {
        screen::json(&results)?;
    } else {
        results.iter().for_each(print_verified);
    }
    let sound = results.iter().all(|result| result.problems.is_empty());
    Ok(if sound { 0 } else { ExitCode::Failed as u8 })
}

fn print_verified(result: &Verified) {
    let state = if result.problems.is_empty() { "everything fits together" } else { "something does not fit" };
    let busy = if result.busy { ", a deployment is under way" } else { "" };
    screen::line(format!("{}: {state} ({} contents read{busy})", result.project, result.checked));
    for problem in &result.problems {
        screen::line(format!("  {}: {}", problem.about, problem.text));
    }
    for line in result.drift.lines(20) {
        screen::line(format!("  drift in {line}"));
    }
}
