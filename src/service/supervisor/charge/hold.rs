//! What there is of a run in this process alone: handles, groups, sockets. It is gone with the supervisor, and the next one
//! makes it anew from what was written down.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::project::recipe::service::Kind;
use crate::service::definition::Definition;
use crate::service::supervisor::Surroundings;
use crate::service::supervisor::memory::Live;
use crate::service::supervisor::output::Output;
use crate::sys::cgroup::{Caps, Group, GroupOrder};
use crate::sys::error::{Error, Result};
use crate::sys::process::{Beginning, Kept, Run, spawn_kept};
use crate::sys::socket::notify::NotifySocket;
use crate::sys::step_exec::Network;

/// A run, held.
pub struct Hold {
    kept: Option<Kept>,
    handle: Option<OwnedFd>,
    group: Option<Group>,
    notify: Option<NotifySocket>,
    begun: Instant,
    first_lives: bool,
}

impl Hold {
    /// Starts a run.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn begin(definition: &Definition, around: &Surroundings, output: &mut Output) -> Result<(Self, Run)> {
        let (instance, limits) = (&definition.instance, definition.limits);
        let marker = format!("{}{}", around.prefix(instance), uuid::Uuid::now_v7().simple());
        let mut order = definition.order.clone();
        order.env.retain(|(name, _)| name != Run::MARKER && name != "NOTIFY_SOCKET");
        order.env.push((Run::MARKER.to_string(), marker.clone()));
        order.limits.open_files = limits.open_files.map(u64::from).or(order.limits.open_files);
        let caps = Caps { memory: limits.memory, processes: limits.processes };
        let wanted = GroupOrder { name: format!("{}.{instance}", around.id), caps, kept: true };
        let (group, support) = Group::make(&wanted)?;
        if let Some(missing) = support.missing(&caps) {
            output.say(&missing);
        }
        if limits.cpu.is_some() {
            output.say("the limit of processor time does not hold here: systemd alone keeps it");
        }
        let notify = match definition.kind {
            Kind::Notify => Some(open_notify(definition, &marker)?),
            _ => None,
        };
        order.env.extend(notify.as_ref().map(|socket| ("NOTIFY_SOCKET".to_string(), socket.address())));
        let doors = group.as_ref().map(Group::doors).unwrap_or_default();
        let kept = spawn_kept(&order, doors, &output.for_program()?)?;
        let run = Run { first: kept.id, marker };
        let handle = kept.id.handle();
        Ok((Self { kept: Some(kept), handle, group, notify, begun: Instant::now(), first_lives: true }, run))
    }

    /// Takes hold of a run that another supervisor started.
    pub fn of_another(live: &Live, definition: &Definition) -> Self {
        let speaks = definition.kind == Kind::Notify && !live.up;
        Self {
            kept: None,
            handle: live.run.first.handle(),
            group: live.group.as_ref().and_then(Group::at),
            notify: if speaks { open_notify(definition, &live.run.marker).ok() } else { None },
            begun: Instant::now(),
            first_lives: true,
        }
    }

    /// Whether its first process has not been seen to end.
    pub fn first_lives(&self) -> bool {
        self.first_lives
    }

    /// Its first process has ended.
    pub fn first_ended(&mut self) {
        self.first_lives = false;
        self.handle = None;
    }

    /// Its control group.
    pub fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Through which it says how it is.
    pub fn notify(&self) -> Option<&NotifySocket> {
        self.notify.as_ref()
    }

    /// How far its start has come; `None` once its program runs, or if another supervisor started it.
    pub fn beginning(&mut self) -> Option<Beginning> {
        let beginning = self.kept.as_mut()?.beginning();
        if beginning == Beginning::Began {
            self.kept = None;
        }
        Some(beginning)
    }

    /// From now on it counts how long it runs.
    pub fn begin_anew(&mut self) {
        self.begun = Instant::now();
    }

    /// How long it has run.
    pub fn has_run_for(&self) -> Duration {
        self.begun.elapsed()
    }

    /// What is to be polled for it. The answer of a start is readable for ever once it was given.
    pub fn descriptors(&self, is_starting: bool) -> impl Iterator<Item = BorrowedFd<'_>> {
        let kept = self.kept.as_ref().filter(|_| is_starting).map(Kept::answer);
        let handle = self.handle.as_ref().map(AsFd::as_fd);
        [kept, handle, self.notify.as_ref().map(NotifySocket::as_fd)].into_iter().flatten()
    }
}

/// The socket of one run: its name is another one each time, so that nobody can take it beforehand.
fn open_notify(definition: &Definition, marker: &str) -> Result<NotifySocket> {
    if definition.order.view.network == Network::Off {
        return Err(Error::refused("without network it cannot tell that it is up (type: notify)"));
    }
    NotifySocket::open(&format!("mc_project/{marker}"))
}
