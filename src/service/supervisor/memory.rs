//! What the supervisor remembers on disk: what is to run, and what runs.
//!
//! The file holds environments and secrets, and is its owner's alone to read. It is written before anything is started or
//! stopped, so that a supervisor that comes after a killed one wants the same.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::protocol::PROTOCOL;
use crate::service::backend::{Look, State};
use crate::service::definition::{Definition, Running};
use crate::sys::cgroup::GroupPlace;
use crate::sys::error::{Context, Error, Result};
use crate::sys::process::Run;
use crate::sys::{clock, fs};

/// The name of the file.
const FILE: &str = "state.json";
/// More than this is no state of ours.
const LIMIT: u64 = 64 * 1024 * 1024;

/// Everything.
#[derive(Clone, Serialize, Deserialize)]
pub struct Memory {
    /// The version of this file.
    pub format: u32,
    /// What the markers of this project's services begin with; drawn once.
    pub id: String,
    /// The boot in which it was written: processes of another one are gone.
    pub boot: String,
    /// The instances, in their order.
    pub records: Vec<Record>,
}

/// One instance.
#[derive(Clone, Serialize, Deserialize)]
pub struct Record {
    /// What is to run.
    pub definition: Definition,
    /// Whether it is to run.
    pub wanted: bool,
    /// What runs.
    pub live: Option<Live>,
    /// How it is while nothing runs.
    pub state: State,
    /// How it ended last.
    pub detail: Option<String>,
    /// Since when it is so.
    pub since: Timestamp,
    /// How often it was started again.
    pub restarts: u32,
}

/// A run that was begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Live {
    /// Its processes.
    pub run: Run,
    /// Its control group.
    pub group: Option<GroupPlace>,
    /// Since when.
    pub since: Timestamp,
    /// The version that it runs.
    pub running: Running,
    /// The digest of the definition that it was started by.
    pub digest: String,
    /// Whether it was up.
    pub up: bool,
}

impl Memory {
    /// That of a project that has none.
    #[must_use]
    pub fn of_nothing() -> Self {
        let id = uuid::Uuid::now_v7().simple().to_string();
        Self { format: PROTOCOL, id, boot: clock::boot_id(), records: Vec::new() }
    }

    /// What was written last; `None` if nothing was.
    ///
    /// # Errors
    /// If it cannot be read or is of a newer version.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = file(dir);
        let Some(bytes) = fs::read_bounded(&path, LIMIT)? else { return Ok(None) };
        let memory: Self =
            serde_json::from_slice(&bytes).context(|| format!("cannot understand {}", path.display()))?;
        if memory.format > PROTOCOL {
            let message = format!("{} was written by a newer mc_project", path.display());
            return Err(Error::refused(message).hint("install the newer version again"));
        }
        Ok(Some(memory))
    }

    /// Writes it down.
    ///
    /// # Errors
    /// If it cannot be written; what was written before stands then.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).context(|| "cannot describe the services".to_string())?;
        fs::write_durable(&file(dir), &bytes, 0o600)
    }

    /// How the services are by what was written last, where no supervisor answers.
    #[must_use]
    pub fn looks(&self) -> Vec<Look> {
        let is_this_boot = self.boot == clock::boot_id();
        self.records.iter().map(|record| record.look(is_this_boot)).collect()
    }

    /// Whether something is to run, or was left running, that nobody watches now.
    #[must_use]
    pub fn needs_a_supervisor(&self) -> bool {
        self.boot == clock::boot_id() && self.records.iter().any(|record| record.is_to_run() || record.lives())
    }
}

impl Record {
    fn lives(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.run.first.is_alive())
    }

    /// Whether it is to run and does not rest by itself.
    fn is_to_run(&self) -> bool {
        self.wanted && !matches!(self.state, State::Done | State::Failed | State::Stopped)
    }

    fn look(&self, is_this_boot: bool) -> Look {
        let live = self.live.as_ref().filter(|live| is_this_boot && live.run.first.is_alive());
        let (state, detail) = match live {
            Some(_) => (State::Running, Some("its supervisor was killed".to_string())),
            None if !is_this_boot && self.wanted => {
                (State::Stopped, Some("the machine was started anew since".to_string()))
            }
            None if self.is_to_run() || self.live.is_some() => {
                (State::Waiting, Some("it ended after its supervisor was killed".to_string()))
            }
            None => (self.state, self.detail.clone()),
        };
        let usage = live.map(|live| live.run.usage());
        Look {
            instance: self.definition.instance.clone(),
            state,
            detail,
            since: Some(live.map_or(self.since, |live| live.since)),
            pid: live.map(|live| live.run.first.pid.unsigned_abs()),
            restarts: self.restarts,
            last_end: None,
            memory: usage.map(|usage| usage.memory),
            cpu_ms: usage.map(|usage| usage.cpu_ms),
            running: live.map_or_else(|| self.definition.running.clone(), |live| live.running.clone()),
            digest: live.map_or_else(|| self.definition.digest().unwrap_or_default(), |live| live.digest.clone()),
        }
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}
