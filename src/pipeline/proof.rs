//! The proof that the spare and `project/` are what their witnesses say, kept from the end of one deployment to the next.
//!
//! When a deployment has settled, both trees are walked. If nobody has the spare open and nothing in them is strange, this
//! is written down; the next deployment then needs no walk, and costs what changes. Whoever is about to change them takes
//! the proof away first, so that it is never older than they are. It is worth nothing after a reboot, because what an
//! application wrote last may be gone then.

use serde::{Deserialize, Serialize};

use super::site::Site;
use crate::project::ids::DeploymentId;
use crate::project::place::Place;
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Result};
use crate::sys::{clock, fs};

/// What was proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The boot of the machine.
    boot: String,
    /// What served when the trees were walked.
    serves: DeploymentId,
    /// The inode of the spare.
    spare: u64,
    /// The inode of `project/`.
    project: u64,
}

impl Proof {
    fn now(site: &Site, serves: &DeploymentId) -> Result<Self> {
        let ino = |path: &std::path::Path| -> Result<u64> { Ok(Dir::open_real(path)?.stat_self()?.ino) };
        let (spare, project) = (ino(&site.place.spare())?, ino(&site.place.project())?);
        Ok(Self { boot: clock::boot_id(), serves: serves.clone(), spare, project })
    }

    /// Writes down that both trees are what their witnesses say.
    ///
    /// # Errors
    /// If it cannot be written; then the next deployment walks.
    pub fn write(site: &Site, serves: &DeploymentId) -> Result<()> {
        let text = serde_json::to_vec(&Self::now(site, serves)?).context(|| "cannot write a proof".to_string())?;
        fs::replace(&path(&site.place), &text, 0o600)
    }

    /// Takes the proof away because something is about to be changed outside of a deployment.
    ///
    /// # Errors
    /// If it is there and cannot be removed.
    pub fn forget(place: &Place) -> Result<()> {
        fs::remove_file(&path(place))
    }

    /// Takes the proof away; tells whether it holds while `serves` serves.
    ///
    /// # Errors
    /// If it is there and cannot be removed: then nothing may be changed.
    pub fn take(site: &Site, serves: Option<&DeploymentId>) -> Result<bool> {
        let Some(bytes) = fs::read_if_there(&path(&site.place))? else { return Ok(false) };
        fs::remove_file(&path(&site.place))?;
        let written: Option<Self> = serde_json::from_slice(&bytes).ok();
        let now = serves.and_then(|serves| Self::now(site, serves).ok());
        Ok(written.is_some() && written == now)
    }
}

fn path(place: &Place) -> std::path::PathBuf {
    place.state().join("proof.json")
}
