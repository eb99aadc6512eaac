//! `cancel`: somebody wants the deployment that runs to end. It is asked for by a file in `state/`, and heard by the worker
//! between two stages and while a step runs; what was done by then is taken back like any failure. From the commit on, and
//! while something is taken back, nothing is heard any more.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::halt::Halt;
use super::site::Site;
use crate::project::ids::DeploymentId;
use crate::sys::error::Result;
use crate::sys::escape::visible_bounded;
use crate::sys::fs;

/// The longest reason, in bytes.
const LONGEST: usize = 600;

/// Where this process's deployment is asked to end; `None` while that is not heard. A worker makes one deployment.
static ASKED: Mutex<Option<PathBuf>> = Mutex::new(None);

fn path(site: &Site, id: &DeploymentId) -> PathBuf {
    site.place.state().join(format!("cancel-{id}"))
}

/// Asks a deployment to end.
///
/// # Errors
/// If it cannot be written down.
pub fn ask(site: &Site, id: &DeploymentId, who: &str) -> Result<()> {
    fs::write_whole(&path(site, id), who.as_bytes(), 0o600)
}

/// From now on this deployment hears.
pub fn hear(site: &Site, id: &DeploymentId) {
    *ASKED.lock().unwrap_or_else(PoisonError::into_inner) = Some(path(site, id));
}

/// From now on nothing is heard: what is done now must come to its end.
pub fn hear_no_more() {
    *ASKED.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Who wants this deployment to end, if somebody does.
#[must_use]
pub fn asked() -> Option<String> {
    let path = ASKED.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
    let who = fs::read_bounded(&path, 4 * LONGEST as u64).ok().flatten()?;
    Some(visible_bounded(&who, LONGEST))
}

/// Stops the pipeline if somebody wants that.
///
/// # Errors
/// Who does.
pub fn check() -> Result<(), Halt> {
    asked().map_or(Ok(()), |who| Err(Halt::failed(format!("cancelled by {who}"))))
}

/// Forgets what was asked for other deployments than this one: they are over.
///
/// # Errors
/// If it cannot be removed.
pub fn forget_all_but(site: &Site, id: Option<&DeploymentId>) -> Result<()> {
    let own = id.map(|id| path(site, id));
    for name in fs::names(&site.place.state())?.iter().filter(|name| name.starts_with("cancel-")) {
        let path = site.place.state().join(name);
        if own.as_ref() != Some(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
