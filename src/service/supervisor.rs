//! The embedded supervisor: what keeps services running where systemd does not, seen from the commands.
//!
//! [`Supervisor`] is the client: it finds the project's supervisor process through a socket, starts it where it is needed
//! and none runs, and asks it. The process itself is nobody's child and outlives hook, pusher and worker.

use std::path::PathBuf;

use super::backend::{Backend, Choice, Failure, LogLine, LogQuery, Look};
use super::definition::Definition;
use crate::project::ids::ProjectName;
use crate::sys::error::{Error, Result};
use crate::sys::process::StepWatcher;

/// Where a project's supervisor lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupervisorPlace {
    /// The project.
    pub project: ProjectName,
    /// Its own directory below `state/`, made with mode 0700 when it is needed: socket, lock, what is to run.
    pub state: PathBuf,
    /// The directory of the services' logs, made when it is needed.
    pub logs: PathBuf,
    /// How a person calls the program on this node, for hints: `mc_project --root /x`.
    pub command: String,
}

/// The services of one project, kept by a supervisor process of their own.
#[derive(Clone)]
pub struct Supervisor {
    place: SupervisorPlace,
    secrets: Vec<String>,
}

impl Supervisor {
    /// The supervisor of a project; nothing is started by this. `secrets` are the values that logs must not show.
    #[must_use]
    pub fn new(place: SupervisorPlace, secrets: Vec<String>) -> Self {
        Self { place, secrets }
    }
}

impl Backend for Supervisor {
    fn converge(&self, wanted: &[Definition], _on: &mut dyn StepWatcher) -> Result<std::result::Result<(), Failure>> {
        Err(Error::bug(format!("{} of {}: {}", wanted.len(), self.place.project, self.secrets.len())))
    }

    fn stop(&self, _which: Choice<'_>, _on: &mut dyn StepWatcher) -> Result<()> {
        Err(Error::bug("not yet"))
    }

    fn start(&self, _which: Choice<'_>, _on: &mut dyn StepWatcher) -> Result<std::result::Result<(), Failure>> {
        Err(Error::bug("not yet"))
    }

    fn look(&self) -> Result<Vec<Look>> {
        Ok(Vec::new())
    }

    fn log(&self, _query: &LogQuery, _each: &mut dyn FnMut(&LogLine) -> bool) -> Result<()> {
        Err(Error::bug("not yet"))
    }

    fn forget(&self, _on: &mut dyn StepWatcher) -> Result<()> {
        Ok(())
    }
}
