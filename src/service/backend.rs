//! What keeps services running: systemd on a whole-machine node that it runs, our own supervisor everywhere else.
//!
//! A back end remembers the definitions that it was given last; what it is told afterwards (stop, start, look) is about
//! those. It never decides which version is live: the pipeline hands definitions over, and a service that is not among
//! them ends and is forgotten.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::definition::{Definition, Instance, Running};
use crate::project::recipe::ServiceName;
use crate::sys::error::Result;
use crate::sys::process::StepWatcher;

/// Chooses instances by name and by the digest of their definition.
pub type Choice<'a> = &'a dyn Fn(&Instance, &str) -> bool;

/// A service that is not as it should be: what a failed step is to a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which one.
    pub instance: Instance,
    /// Why, in words: `died after its start (exit 1)`.
    pub reason: String,
}

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It was started and is not up yet.
    Starting,
    /// It runs.
    Running,
    /// It ended by itself and waits to be started again.
    Waiting,
    /// It was asked to end and has not yet.
    Stopping,
    /// It does not run, because it was asked to end.
    Stopped,
    /// It has ended well, and that is all that was wanted of it.
    Done,
    /// It does not run and is not started again.
    Failed,
}

/// What is known of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Which one.
    pub instance: Instance,
    /// How it is.
    pub state: State,
    /// More about it: how it ended last, what it waits for.
    pub detail: Option<String>,
    /// Since when.
    pub since: Option<Timestamp>,
    /// Its first process.
    pub pid: Option<u32>,
    /// How often it was started again by itself since it was started by us.
    pub restarts: u32,
    /// How the run before ended, if it was started again by itself and that is known.
    #[serde(default)]
    pub last_end: Option<String>,
    /// Bytes of memory of all its processes.
    pub memory: Option<u64>,
    /// Processor time of all its processes, in milliseconds.
    pub cpu_ms: Option<u64>,
    /// The version that it runs.
    pub running: Running,
    /// The digest of its definition.
    pub digest: String,
}

/// Which lines of the services' logs are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Of this service alone.
    pub service: Option<ServiceName>,
    /// At most so many of the past ones, counted from the end.
    pub last: Option<usize>,
    /// Not those before.
    pub since: Option<Timestamp>,
    /// Go on with the lines that come.
    pub follow: bool,
    /// Only what the programs wrote, not what whoever keeps them running says of them.
    pub own: bool,
}

/// A line that a service wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When.
    pub at: Timestamp,
    /// Which instance.
    pub instance: Instance,
    /// What, secrets masked, without the line's end.
    pub text: Vec<u8>,
}

/// Who keeps services running.
pub trait Backend {
    /// Refuses definitions that this back end can never run; asked before anything changes.
    ///
    /// # Errors
    /// Of kind Invalid, with what cannot be run.
    fn refuse(&self, _wanted: &[Definition]) -> Result<()> {
        Ok(())
    }

    /// Makes exactly these definitions what runs, in their order: what is not among them is stopped and forgotten, what
    /// runs by an equal definition that may be left goes on, everything else is started anew; returns when all are up.
    /// Of what fails the last lines go to `on`. The caller stops it, or it is started again as its `restart` says.
    ///
    /// # Errors
    /// If we cannot do our own part; a service that does not come up is a [`Failure`].
    fn converge(&self, wanted: &[Definition], on: &mut dyn StepWatcher) -> Result<std::result::Result<(), Failure>>;

    /// Stops what is chosen, in the opposite order, and waits for its end; what ignores its signal is killed after its
    /// time. They stay stopped until they are started again, or the machine or the supervisor starts anew.
    ///
    /// # Errors
    /// If we cannot do our own part, or a process outlives even the kill.
    fn stop(&self, which: Choice<'_>, on: &mut dyn StepWatcher) -> Result<()>;

    /// Starts what is chosen of the definitions known, as [`Backend::converge`] does; what runs is left alone.
    ///
    /// # Errors
    /// If we cannot do our own part.
    fn start(&self, which: Choice<'_>, on: &mut dyn StepWatcher) -> Result<std::result::Result<(), Failure>>;

    /// What is known of every instance, in the order of their definitions. Asking changes nothing and starts nothing.
    ///
    /// # Errors
    /// If the back end does not answer.
    fn look(&self) -> Result<Vec<Look>>;

    /// Hands lines of the logs to `each`, oldest first, until there are no more or it says no.
    ///
    /// # Errors
    /// If the logs cannot be read.
    fn log(&self, query: &LogQuery, each: &mut dyn FnMut(&LogLine) -> bool) -> Result<()>;

    /// Stops everything of the project and leaves no trace of it: for `destroy`.
    ///
    /// # Errors
    /// If something cannot be removed.
    fn forget(&self, on: &mut dyn StepWatcher) -> Result<()>;
}
