//! What a killed or failed command may have left beside its work, under names that nobody else uses. All of it under the lock.

use std::path::Path;

use super::activate::RestorePoint;
use super::secret_store::SecretStore;
use super::settle::{INFLIGHT, inflight_ref};
use super::site::Site;
use crate::project::ids::DeploymentId;
use crate::report::ledger::Last;
use crate::sys::dir::Dir;
use crate::sys::error::Result;
use crate::sys::git::remove_locks;
use crate::sys::{fs, mount};
use crate::tree::release;

/// Where the pillar's contents lie while `pillar/` is checked out, below `build/`.
pub const PILLAR_STORE: &str = "pillar-store";

/// Removes files that were never renamed to their names, and what was made to try something out.
///
/// # Errors
/// If something cannot be removed.
#[allow(clippy::case_sensitive_file_extension_comparisons, reason = "names of our own, which are lowercase")]
pub fn remove_temporary_files(site: &Site) -> Result<()> {
    let place = &site.place;
    for dir in [place.state(), place.journals(), place.spool(), place.deploy(), place.releases()] {
        for name in fs::names(&dir)? {
            // A hook records the branch without the lock: that file may be in the making.
            let temporary = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new"));
            if temporary.is_some_and(|name| name != "branch") {
                fs::remove_file(&dir.join(name))?;
            }
        }
    }
    super::salt::sweep(site)?;
    SecretStore::of_project(site).remove_temporary_files()?;
    let releases = place.releases();
    for name in fs::names(&releases)? {
        if name.ends_with(".tar.zst.new") {
            fs::remove_file(&releases.join(name))?;
        } else if name.ends_with(".tar.zst.content") {
            Dir::open(&releases)?.remove_tree(Path::new(&name))?;
        }
    }
    // Refs that only we write, and only under the lock that we hold: nobody else's lock of them is alive.
    for refs in ["refs/notes", "refs/deploys", "refs/deploys/kept"] {
        remove_locks(&place.git_project(), refs)?;
    }
    let build = place.build();
    for name in fs::names(&build)? {
        let probe = name.starts_with(mount::PROBE);
        if probe {
            mount::unbind(&build.join(&name).join("at"))?;
        }
        if probe || name == PILLAR_STORE {
            Dir::open(&build)?.remove_tree(Path::new(&name))?;
        }
    }
    Ok(())
}

/// Removes what was begun below `deploy/` and `archives/` by a deployment of which nothing else came to the disk before the power
/// went: no release and no restore point. What a deployment has that is not finished, or waits for a person, is left to it.
///
/// # Errors
/// If something cannot be removed.
pub fn remove_unfounded(site: &Site) -> Result<()> {
    let place = &site.place;
    let unfinished = Last::read(place)?.filter(|last| last.open || last.needs_person.is_some()).map(|last| last.id);
    for (dir, founded_by) in [(place.deploy(), release::PROVENANCE), (place.archives(), RestorePoint::FILE)] {
        for name in fs::names(&dir)? {
            let Ok(id) = name.parse::<DeploymentId>() else { continue };
            if unfinished.as_ref() != Some(&id) && !fs::exists(&dir.join(&name).join(founded_by)) {
                Dir::open(&dir)?.remove_tree(Path::new(&name))?;
            }
        }
    }
    Ok(())
}

/// Removes the refs that kept the objects of deployments under way: none is, when what was interrupted is finished. A version
/// that waits for a person's decision keeps its own.
///
/// # Errors
/// If one cannot be removed.
pub fn remove_refs_in_flight(site: &Site) -> Result<()> {
    let names = fs::names(&site.place.git_project().join(INFLIGHT))?;
    if names.is_empty() || Last::read(&site.place)?.is_some_and(|last| last.open || last.needs_person.is_some()) {
        return Ok(());
    }
    remove_locks(&site.place.git_project(), INFLIGHT)?;
    let repo = site.repo()?;
    // Not deleted like any other ref: a power cut may have left one empty.
    let refs = names.iter().filter_map(|name| name.parse().ok());
    refs.into_iter().try_for_each(|id| repo.let_go(&inflight_ref(&id)?))
}
