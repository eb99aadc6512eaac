//! Starting the worker: as a unit where systemd runs a whole-machine node ([`super::unit`]), else detached, with a
//! watcher that recovers at once when it dies. Whatever starts one, a push or a command, comes through here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::Run;
use super::unit::{self, Unit};
use crate::pipeline::site::Site;
use crate::project::ids::DeploymentId;
use crate::project::place::Place;
use crate::project::request::Request;
use crate::report::event::Record;
use crate::report::stream::Follower;
use crate::sys::error::{Context, Result};
use crate::sys::process::{Detached, DetachedOrder, PATH, StepStatus, spawn_detached};

/// The hidden command of the watcher.
pub const WATCH: &str = "watch-worker";
/// The hidden command of the worker.
pub const WORK: &str = "work";

/// A deployment that was started.
#[derive(Debug)]
pub struct Launched {
    follower: Follower,
    worker: Worker,
}

#[derive(Debug)]
enum Worker {
    /// Watcher and worker of our own.
    Process(Detached),
    /// One that systemd watches.
    Unit(Unit),
}

/// Starts the worker for a request, and what watches it; they outlive us.
///
/// # Errors
/// If they cannot be started.
pub fn launch(site: &Site, request: &Request) -> Result<Launched> {
    let worker = if unit::is_for(site) {
        Worker::Unit(unit::start(site, request, WORK, &environment())?)
    } else {
        Worker::Process(spawn_detached(&order(site.place.node().root(), WATCH, request, false)?)?)
    };
    Ok(Launched { follower: Follower::open(&site.place, &request.id), worker })
}

/// Follows a deployment that somebody else started.
#[must_use]
pub fn follower(place: &Place, id: &DeploymentId) -> Follower {
    Follower::open(place, id)
}

impl Run for Launched {
    fn next(&mut self, wait: Duration) -> Result<Option<Record>> {
        self.follower.next(wait)
    }

    fn is_gone(&mut self) -> bool {
        match &mut self.worker {
            Worker::Process(process) => process.wait_gone(Duration::ZERO).unwrap_or(false),
            Worker::Unit(unit) => unit.is_gone(),
        }
    }
}

/// The watcher: starts the worker, waits for it, and recovers if it died without an end.
///
/// # Errors
/// If the worker cannot be started.
pub fn watch(site: &Site, request: &Request) -> Result<()> {
    let mut worker = spawn_detached(&order(site.place.node().root(), WORK, request, true)?)?;
    let status = worker.wait_child()?;
    // The worker's exit codes are the documented ones; everything that is none of them is a death.
    if matches!(status, StepStatus::Ok | StepStatus::Exit(0..=5)) {
        return Ok(());
    }
    tracing::error!("the worker of {} ended with {}; recovering", request.id, status.words());
    crate::pipeline::recover::after_death(site, &request.id)
}

fn order(root: &Path, command: &str, request: &Request, as_child: bool) -> Result<DetachedOrder> {
    let input = serde_json::to_vec(request).context(|| "cannot write the request".to_string())?;
    let args = [OsString::from("--root"), root.as_os_str().to_os_string(), OsString::from(command)];
    Ok(DetachedOrder { args: args.to_vec(), input, env: environment(), log: None, as_child })
}

/// The environment of our own processes: nothing of a pusher's is passed on; tests pass their fault.
#[must_use]
pub fn environment() -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([("PATH".to_string(), PATH.to_string()), ("LANG".to_string(), "C.UTF-8".to_string())]);
    let passed: &[&str] = if cfg!(feature = "failpoints") {
        &["MC_FAIL", "MC_FAIL_TRACE", "MC_NO_NAMESPACES", "MC_NO_MOUNTS", "SSL_CERT_FILE"]
    } else {
        &["SSL_CERT_FILE"]
    };
    for name in passed {
        if let Ok(value) = std::env::var(name) {
            env.insert((*name).to_string(), value);
        }
    }
    env
}
