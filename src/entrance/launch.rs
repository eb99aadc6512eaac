//! Starting the worker: as a unit where systemd runs a whole-machine node ([`super::unit`]), else detached, with a
//! watcher that recovers at once when it dies. Whatever starts one, a push or a command, comes through here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::Run;
use super::unit::{self, Unit};
use crate::pipeline::site::{Node, Site};
use crate::pipeline::worker;
use crate::project::ids::DeploymentId;
use crate::project::place::Place;
use crate::project::request::Request;
use crate::report::event::Record;
use crate::report::stream::Follower;
use crate::sys::error::{Context, Result};
use crate::sys::process::{self, Detached, DetachedOrder, PATH, Role, StepStatus, become_watched, spawn_watched};

/// The hidden command of the worker and the watcher beside it.
pub const WATCH: &str = "watch-worker";
/// The hidden command of the worker alone, as systemd starts it.
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
        Worker::Process(spawn_watched(&order(site.place.node().root(), request)?)?)
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

/// What the process does that [`launch`] started: it becomes the worker and its watcher; the result is its exit code.
///
/// # Errors
/// If it cannot, or what it is asked for cannot be understood.
pub fn watched(root: &Path) -> Result<u8> {
    match become_watched()? {
        Role::Starter => Ok(0),
        Role::Worker(order) => work(root, &order),
        Role::Watcher(worker, order) => {
            process::name_self("mc_watch")?;
            let status = worker.wait()?;
            // The worker's exit codes are the documented ones; everything that is none of them is a death.
            if !matches!(status, StepStatus::Ok | StepStatus::Exit(0..=5)) {
                let request = Request::read(&order)?;
                tracing::error!("the worker of {} ended with {}; recovering", request.id, status.words());
                let site = Site::open(&Node::open(root)?, &request.project)?;
                crate::pipeline::recover::after_death(&site, &request.id)?;
            }
            Ok(0)
        }
    }
}

/// Does the work of one deployment; the result is the exit code.
///
/// # Errors
/// If the order cannot be understood, or there is no such project.
pub fn work(root: &Path, order: &[u8]) -> Result<u8> {
    let request = Request::read(order)?;
    process::name_self("mc_worker")?;
    process::keep_descriptors_from_children()?;
    Ok(worker::work(&Site::open(&Node::open(root)?, &request.project)?, &request).exit_code())
}

fn order(root: &Path, request: &Request) -> Result<DetachedOrder> {
    let input = serde_json::to_vec(request).context(|| "cannot write the request".to_string())?;
    let args = [OsString::from("--root"), root.as_os_str().to_os_string(), OsString::from(WATCH)];
    Ok(DetachedOrder { args: args.to_vec(), input, env: environment(), ..DetachedOrder::default() })
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
