//! Services: programs that are started here and live on when whoever started them is gone.
//!
//! A service is started through `step-exec` like a step, but nothing ties it to us: it does not ask for its starter's
//! death, and its output is a fifo that it holds open itself. What is known of it afterwards is its identity (process id
//! and start time) and a marker in its environment, by which everything that it starts is found again.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, WaitOptions};
use serde::{Deserialize, Serialize};

use super::{StepStatus, Usage, table};
use crate::sys::error::{Context, Result};
use crate::sys::fs::File;
use crate::sys::step_exec::{self, StepOrder, Wire};

pub use table::Entry as Member;

/// How long the helper may take to read its order.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// The longest reason that a helper gives.
const REASON: usize = 16 * 1024;

/// Which process is meant, for good: a process id alone is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this number now; `None` if none has.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        table::entry(pid).map(|entry| Self { pid, start: entry.start })
    }

    /// We ourselves.
    #[must_use]
    pub fn ours() -> Option<Self> {
        Self::of(std::process::id().cast_signed())
    }

    /// Whether it still lives; one that has ended and was not waited for does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        table::entry(self.pid).is_some_and(|now| now.start == self.start && !now.is_zombie)
    }

    /// A descriptor that becomes readable when it ends; `None` where there is none to be had, or it is gone.
    #[must_use]
    pub fn handle(&self) -> Option<OwnedFd> {
        let fd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        table::entry(self.pid).is_some_and(|now| now.start == self.start).then_some(fd)
    }

    /// Kills exactly this process, if it lives.
    pub fn kill(&self) {
        if let Some(entry) = table::entry(self.pid).filter(|now| now.start == self.start) {
            table::send(&entry, rustix::process::Signal::KILL);
        }
    }
}

/// How far a start has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    /// The helper prepares still.
    NotYet,
    /// The program runs, or has run.
    Began,
    /// It never ran; why.
    Never(String),
}

/// A service that was started and has not become its program yet.
#[derive(Debug)]
pub struct Kept {
    /// Its first process.
    pub id: ProcessId,
    answer: UnixStream,
    text: Vec<u8>,
}

impl Kept {
    /// To be polled: readable when [`Kept::beginning`] has something to say.
    #[must_use]
    pub fn answer(&self) -> BorrowedFd<'_> {
        self.answer.as_fd()
    }

    /// How far the start has come, without waiting.
    pub fn beginning(&mut self) -> Beginning {
        let mut piece = [0_u8; 1024];
        loop {
            match self.answer.read(&mut piece) {
                Ok(n) if n > 0 && self.text.len() < REASON => self.text.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Beginning::NotYet,
                // The program's exec has closed the other end, or the helper's death.
                Ok(_) | Err(_) => return self.ended(),
            }
        }
    }

    fn ended(&self) -> Beginning {
        match memchr::memchr(b'!', &self.text) {
            Some(at) => Beginning::Never(crate::sys::escape::visible_bounded(&self.text[at + 1..], 8 * 1024)),
            None if self.text.is_empty() => Beginning::Never("the helper ended early".to_string()),
            None => Beginning::Began,
        }
    }
}

/// Starts a service in its own session. Its output goes to `output`, which it keeps; it joins the groups of `join`.
///
/// # Errors
/// If no process can be started for it.
pub fn spawn_kept(order: &StepOrder, join: Vec<PathBuf>, output: &File) -> Result<Kept> {
    let doing = || "cannot start a process for it".to_string();
    let (mut ours, theirs) = UnixStream::pair().context(doing)?;
    let mut command = Command::new(super::self_exe());
    command.arg(step_exec::SUBCOMMAND).env_clear().current_dir("/").stdin(Stdio::from(OwnedFd::from(theirs)));
    command.stdout(output.try_clone().context(doing)?).stderr(output.try_clone().context(doing)?);
    let wire = Wire { order: order.clone(), detached: None, join, outlives: true };
    let bytes = serde_json::to_vec(&wire).context(doing)?;
    let child = command.spawn().context(doing)?;
    drop(command);
    let pid = child.id().cast_signed();
    // Its number is not used again before we have waited for it.
    let start = table::entry(pid).map_or(0, |entry| entry.start);
    ours.set_write_timeout(Some(HANDSHAKE)).context(doing)?;
    // A helper that died early is found out by its answer.
    let _ = ours.write_all(&bytes).and_then(|()| ours.shutdown(std::net::Shutdown::Write));
    ours.set_nonblocking(true).context(doing)?;
    Ok(Kept { id: ProcessId { pid, start }, answer: ours, text: Vec::new() })
}

/// What our children leave behind becomes our child too.
///
/// # Errors
/// If the kernel refuses.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context(|| "cannot adopt the processes of services".into())
}

/// Waits for every child that has ended; for a process that starts nothing but services and companions.
#[must_use]
pub fn reap() -> Vec<(i32, StepStatus)> {
    let mut ended = Vec::new();
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        ended.push((pid.as_raw_nonzero().get(), StepStatus::of(ExitStatus::from_raw(status.as_raw()))));
    }
    ended
}

/// One run of a service: how everything that belongs to it is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its first process.
    pub first: ProcessId,
    /// The value of the variable that marks it.
    pub marker: String,
}

/// The processes of a run.
pub type Members = Vec<Member>;

impl Run {
    /// The variable that marks the processes of services.
    pub const MARKER: &'static str = "MC_SERVICE_RUN";

    /// What lives of it.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn members(&self) -> Result<Members> {
        // The number may have been given to somebody else since; then nothing of our session lives either.
        let is_ours = table::entry(self.first.pid).is_none_or(|now| now.start == self.first.start);
        table::living(is_ours.then_some(self.first.pid), Self::MARKER, &self.marker)
    }

    /// Sends a signal to the process group of the first process.
    pub fn signal(&self, signal: Signal) {
        if table::entry(self.first.pid).is_some_and(|now| now.start == self.first.start) {
            let _ = super::kill_group(self.first.pid, signal);
        }
    }

    /// Kills these processes of it.
    pub fn kill(found: &Members) {
        table::kill_all(found);
    }

    /// What it uses; nothing if that cannot be found out.
    #[must_use]
    pub fn usage(&self) -> Usage {
        super::usage_of(&self.members().unwrap_or_default())
    }

    /// Runs whose marker begins with `prefix` and is none of `known`: what a dead supervisor had no time to write down.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn strays(prefix: &str, known: &[&str]) -> Result<Members> {
        let marked = table::marked(Self::MARKER, prefix)?;
        Ok(marked.into_iter().filter(|(_, value)| !known.contains(&value.as_str())).map(|(entry, _)| entry).collect())
    }
}
