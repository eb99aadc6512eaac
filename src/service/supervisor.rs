//! The embedded supervisor: what keeps services running where systemd does not, seen from the commands.
//!
//! [`Supervisor`] is the client: it finds the project's supervisor process through a socket, starts it where it is needed
//! and none runs, and asks it ([`client`], [`protocol`]). The process itself is nobody's child and outlives hook, pusher
//! and worker ([`server`]); a tiny [`guard`] starts it again when it is killed. It looks after instances ([`charge`]),
//! does one [`job`] at a time for all of them ([`keeper`]), remembers on disk what is to run and what runs ([`memory`]),
//! and keeps what services print ([`output`]).
//!
//! A supervisor that comes after a killed one goes on with what runs: a process is known by its number, its start time and
//! the boot, and everything that it started by a marker in the environment. What services print goes through fifos that
//! they hold open themselves, so that nobody meets a broken pipe meanwhile.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::backend::{Backend, Choice, Failure, LogLine, LogQuery, Look};
use super::definition::{Definition, Instance};
use super::logs;
use crate::project::ids::ProjectName;
use crate::sys::error::{Error, Result};
use crate::sys::mask::Mask;
use crate::sys::process::StepWatcher;
use crate::sys::{dir::Dir, fs};

pub mod backoff;
pub mod charge;
pub mod client;
pub mod guard;
pub mod job;
pub mod keeper;
pub mod memory;
pub mod output;
pub mod protocol;
pub mod server;

use client::Answer;
use protocol::Ask;

/// The name of the socket in the supervisor's directory.
const SOCKET: &str = "socket";
/// The name of the lock there.
const LOCK: &str = "lock";

/// Where a project's supervisor lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What every instance needs to know of its supervisor.
pub struct Surroundings {
    /// What the markers of the project begin with.
    pub id: String,
    /// The supervisor's directory.
    pub dir: PathBuf,
    /// The directory of the logs.
    pub logs: PathBuf,
    /// What logs must not show.
    pub mask: Mask,
}

impl Surroundings {
    /// What the markers of an instance begin with.
    #[must_use]
    pub fn prefix(&self, instance: &Instance) -> String {
        format!("{}.{instance}.", self.id)
    }
}

/// The services of one project, kept by a supervisor process of their own.
#[derive(Clone)]
pub struct Supervisor {
    place: SupervisorPlace,
}

impl Supervisor {
    /// The supervisor of a project; nothing is started by this.
    #[must_use]
    pub fn new(place: SupervisorPlace) -> Self {
        Self { place }
    }

    /// Starts a supervisor if services are to run that none watches (it was killed, and its guard too); tells whether it
    /// did. What runs goes on.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn heal(&self) -> Result<bool> {
        client::heal(&self.place)
    }

    /// Ends the supervisor and leaves the services running; fine if none runs.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn hand_over(&self) -> Result<()> {
        client::ask_if_there(&self.place, &Ask::HandOver, &mut Unheard).map(|_| ())
    }

    fn chosen(&self, which: Choice<'_>) -> Result<Vec<Instance>> {
        let looks = self.look()?;
        Ok(looks.into_iter().filter(|look| which(&look.instance, &look.digest)).map(|look| look.instance).collect())
    }
}

/// A watcher that hears nothing.
struct Unheard;

impl StepWatcher for Unheard {
    fn line(&mut self, _line: &[u8]) {}
}

fn outcome(answer: Answer) -> std::result::Result<(), Failure> {
    match answer {
        Answer::Failed(failure) => Err(failure),
        Answer::Done | Answer::Looks(_) => Ok(()),
    }
}

impl Backend for Supervisor {
    fn converge(&self, wanted: &[Definition], on: &mut dyn StepWatcher) -> Result<std::result::Result<(), Failure>> {
        if wanted.is_empty() && self.look()?.is_empty() {
            return Ok(Ok(()));
        }
        client::ask(&self.place, &Ask::Converge { wanted: wanted.to_vec() }, on).map(outcome)
    }

    fn stop(&self, which: Choice<'_>, on: &mut dyn StepWatcher) -> Result<()> {
        let which = self.chosen(which)?;
        if which.is_empty() {
            return Ok(());
        }
        client::ask(&self.place, &Ask::Stop { which }, on).map(|_| ())
    }

    fn start(&self, which: Choice<'_>, on: &mut dyn StepWatcher) -> Result<std::result::Result<(), Failure>> {
        let which = self.chosen(which)?;
        if which.is_empty() {
            return Ok(Ok(()));
        }
        client::ask(&self.place, &Ask::Start { which }, on).map(outcome)
    }

    fn look(&self) -> Result<Vec<Look>> {
        match client::ask_if_there(&self.place, &Ask::Look, &mut Unheard)? {
            Some(Answer::Looks(looks)) => Ok(looks),
            Some(_) => Err(Error::bug("the supervisor answers something else than it was asked")),
            None => client::remembered(&self.place),
        }
    }

    fn log(&self, query: &LogQuery, each: &mut dyn FnMut(&LogLine) -> bool) -> Result<()> {
        logs::read(&self.place.logs, query, each)
    }

    fn forget(&self, on: &mut dyn StepWatcher) -> Result<()> {
        if !self.look()?.is_empty() {
            client::ask(&self.place, &Ask::Forget, on)?;
        }
        for dir in [&self.place.state, &self.place.logs] {
            if let (Some(parent), Some(name)) = (dir.parent(), dir.file_name())
                && fs::exists(dir)
            {
                Dir::open_real(parent)?.remove_tree(name.as_ref())?;
            }
        }
        Ok(())
    }
}
