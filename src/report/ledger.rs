//! `state/last.json`: the one small file that says what serves, whether a deployment is open and whether a person is needed.

use serde::{Deserialize, Serialize};

use crate::project::ids::DeploymentId;
use crate::project::outcome::Serving;
use crate::project::place::Place;
use crate::sys::error::{Error, Result};
use crate::sys::{fs, seal};

/// What is known about the last deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// Format of this file.
    pub format: u32,
    /// The last sequence number that was given out.
    pub seq: u64,
    /// The deployment that has it.
    pub id: DeploymentId,
    /// Whether that deployment has begun and not ended: it runs, or it was interrupted.
    pub open: bool,
    /// What serves.
    pub serves: Option<Serving>,
    /// Why a person is needed, if one is.
    pub needs_person: Option<String>,
}

const FORMAT: u32 = 1;

impl Last {
    /// The record of a deployment that begins.
    #[must_use]
    pub fn opened(seq: u64, id: DeploymentId, serves: Option<Serving>) -> Self {
        Self { format: FORMAT, seq, id, open: true, serves, needs_person: None }
    }

    /// Reads the record; `None` before the first deployment.
    ///
    /// # Errors
    /// If it cannot be read or was written by a newer version.
    pub fn read(place: &Place) -> Result<Option<Self>> {
        let path = place.last();
        let Some(last) = seal::read::<Self>(&path)? else { return Ok(None) };
        if last.format > FORMAT {
            return Err(Error::refused(format!("{} was written by a newer mc_project", path.display()))
                .hint("install that version again, or a newer one"));
        }
        Ok(Some(last))
    }

    /// Replaces the record durably.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, place: &Place) -> Result<()> {
        fs::write_durable(&place.last(), &self.text()?, 0o600)
    }

    /// Replaces the record; a power cut may bring the one before back, until the journal or the one after it is synced.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_soon(&self, place: &Place) -> Result<()> {
        fs::write_whole(&place.last(), &self.text()?, 0o600)
    }

    fn text(&self) -> Result<Vec<u8>> {
        seal::pretty(self, "the last deployment")
    }
}
