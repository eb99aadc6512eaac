//! The guard: a tiny process that does nothing but start the supervisor again when it was killed. The supervisor does the
//! same for the guard, so that both must be killed at once to be gone.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use super::protocol::{PRETENDED, pretended_version};
use super::{SupervisorPlace, server};
use crate::sys::error::{Context, Error, ExitCode, Result};
use crate::sys::process::{self, Detached, DetachedOrder, ProcessId, StepStatus, spawn_companion, spawn_detached};

/// The name of the hidden subcommand.
pub const SUBCOMMAND: &str = "supervise";
/// The most that an order has.
const ORDER: u64 = 64 * 1024;
/// How often a process without a handle is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What a process of ours is started with.
#[derive(Serialize, Deserialize)]
struct Order {
    place: SupervisorPlace,
    role: Role,
}

/// What a process of ours is.
#[derive(Serialize, Deserialize)]
enum Role {
    /// The supervisor, and its guard if it has one.
    Supervisor(Option<ProcessId>),
    /// The guard of this supervisor.
    Guard(ProcessId),
}

/// The other one of the two.
pub struct Companion {
    id: ProcessId,
    handle: Option<OwnedFd>,
}

impl Companion {
    fn of(id: ProcessId) -> Self {
        Self { handle: id.handle(), id }
    }

    /// Starts a guard for us.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn guard(place: &SupervisorPlace) -> Result<Self> {
        let ours = ProcessId::ours().ok_or_else(|| Error::failed("this process is not in /proc"))?;
        let started = spawn_companion(&order(place, Role::Guard(ours), true)?)?;
        let id = ProcessId::of(started.pid()).ok_or_else(|| Error::failed("the guard died at once"))?;
        Ok(Self::of(id))
    }

    /// Whether it lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.id.is_alive()
    }

    /// Kills it.
    pub fn kill(&self) {
        self.id.kill();
    }

    /// To be polled: readable when it is gone.
    #[must_use]
    pub fn handle(&self) -> Option<&OwnedFd> {
        self.handle.as_ref()
    }

    fn wait(&self) {
        while self.is_alive() {
            let limit = Timespec::try_from(LOOK).ok();
            match &self.handle {
                Some(handle) => {
                    let _ = poll(&mut [PollFd::from_borrowed_fd(handle.as_fd(), PollFlags::IN)], None);
                }
                None => {
                    let _ = poll(&mut [], limit.as_ref());
                }
            }
        }
    }
}

fn order(place: &SupervisorPlace, role: Role, as_child: bool) -> Result<DetachedOrder> {
    let input = serde_json::to_vec(&Order { place: place.clone(), role });
    let input = input.context(|| "cannot describe a supervisor".to_string())?;
    let mut env: BTreeMap<String, String> =
        [("PATH", process::PATH), ("LANG", "C.UTF-8")].map(|(name, value)| (name.into(), value.into())).into();
    env.extend(pretended_version().map(|version| (PRETENDED.to_string(), version)));
    Ok(DetachedOrder {
        args: vec![SUBCOMMAND.into(), place.project.as_str().into()],
        input,
        env,
        log: Some(place.state.join("complaints")),
        as_child,
    })
}

/// Starts a supervisor that is nobody's child.
///
/// # Errors
/// If it cannot be started.
pub fn start(place: &SupervisorPlace) -> Result<Detached> {
    spawn_detached(&order(place, Role::Supervisor(None), false)?)
}

/// The body of the hidden subcommand; the order comes on standard input.
#[must_use]
pub fn main() -> u8 {
    match serve() {
        Ok(()) => ExitCode::Done as u8,
        Err(error) if server::is_busy(&error) => ExitCode::Busy as u8,
        Err(error) => {
            tracing::error!("{}", error.one_line());
            ExitCode::Failed as u8
        }
    }
}

fn serve() -> Result<()> {
    let doing = || "cannot read the order of a supervisor".to_string();
    let mut text = Vec::new();
    std::io::stdin().take(ORDER).read_to_end(&mut text).context(doing)?;
    let order: Order = serde_json::from_slice(&text).context(doing)?;
    match order.role {
        Role::Supervisor(guard) => server::supervise(&order.place, guard.map(Companion::of)),
        Role::Guard(of) => guard(&order.place, of),
    }
}

/// Waits for the death of the supervisor, and starts the next one; ends where another one is there already.
fn guard(place: &SupervisorPlace, of: ProcessId) -> Result<()> {
    process::name_self("mc_guard")?;
    process::keep_descriptors_from_children()?;
    let ours = ProcessId::ours().ok_or_else(|| Error::failed("this process is not in /proc"))?;
    Companion::of(of).wait();
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        let started = order(place, Role::Supervisor(Some(ours)), true).and_then(|order| spawn_companion(&order));
        match started.and_then(|mut supervisor| supervisor.wait_child()) {
            // It has ended by itself, or another one is there: neither needs us.
            Ok(StepStatus::Ok) => return Ok(()),
            Ok(StepStatus::Exit(code)) if code == ExitCode::Busy as i32 => return Ok(()),
            Ok(_) | Err(_) if !crate::sys::fs::exists(&place.state) => return Ok(()),
            Ok(status) if begun.elapsed() > Duration::from_secs(10) => {
                tracing::warn!("the supervisor ended ({})", status.words());
                backoff = Backoff::default();
            }
            Ok(_) | Err(_) => std::thread::sleep(backoff.next(begun.elapsed())),
        }
    }
}
