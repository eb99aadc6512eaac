//! Starts this very program as a process that outlives us.
//!
//! It has its own session, so that no signal to our group and no hang-up reaches it, and it inherits one descriptor
//! besides its three streams: one end of a socket whose other end we hold. Nothing is sent there after the start; it
//! reads end-of-file when the process and all those of its children that inherited it are gone.
//! [`super::keep_descriptors_from_children`] ends the inheritance.
//!
//! Unless asked for, the process is not our child: nobody has to wait for it, and what a step's end does to our
//! children does not concern it. That is why none is started while a step runs: it would be taken for the step's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::StepStatus;
use crate::sys::error::{Context, Error, Result};
use crate::sys::step_exec::{self, StepOrder, Wire, WireDetached};

/// How long the new process may take to come up.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// What to start.
#[derive(Clone, Default)]
pub struct DetachedOrder {
    /// The arguments after the program's name.
    pub args: Vec<OsString>,
    /// What it reads on standard input; nothing if empty.
    pub input: Vec<u8>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Where its output is appended; nowhere if unset.
    pub log: Option<PathBuf>,
    /// Whether it is to be our child, for a watcher that waits for it.
    pub as_child: bool,
}

/// A process that was started and goes on by itself; dropping this value does nothing to it.
#[derive(Debug)]
pub struct Detached {
    pid: i32,
    liveness: UnixStream,
    child: Option<Child>,
}

/// Starts `mc_project` with these arguments, detached. It stands in its own session when this returns.
///
/// # Errors
/// If it cannot be started; nothing of it is left then. Also while a step runs in this process.
pub fn spawn_detached(order: &DetachedOrder) -> Result<Detached> {
    let doing = || "cannot start a process of ours".to_string();
    if nix::sys::prctl::get_child_subreaper().context(doing)? {
        return Err(Error::bug(format!("{} while a step runs", doing())));
    }
    spawn_companion(order)
}

/// As [`spawn_detached`], for a process that never runs steps and adopts what its children leave behind.
///
/// # Errors
/// If it cannot be started; nothing of it is left then.
pub fn spawn_companion(order: &DetachedOrder) -> Result<Detached> {
    let doing = || "cannot start a process of ours".to_string();
    let (mut ours, theirs) = UnixStream::pair().context(doing)?;
    let mut command = Command::new(super::self_exe());
    command.arg(step_exec::SUBCOMMAND).env_clear().current_dir("/").stdin(Stdio::from(OwnedFd::from(theirs)));
    if !order.as_child {
        command.arg(step_exec::ORPHAN);
    }
    match &order.log {
        Some(path) => {
            let log = crate::sys::fs::open_append(path, 0o640)?;
            command.stderr(log.try_clone().context(doing)?).stdout(log);
        }
        None => {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
    }
    let mut child = command.spawn().context(doing)?;
    // Our copy of the other end, without which an early end of the helper is not seen.
    drop(command);
    if !order.as_child {
        let status = child.wait().context(doing)?;
        if !status.success() {
            return Err(Error::failed(format!("{} ({})", doing(), StepStatus::of(status).words())));
        }
    }
    let pid = shake_hands(&mut ours, order)?;
    Ok(Detached { pid, liveness: ours, child: order.as_child.then_some(child) })
}

/// Starts `mc_project` with these arguments as a worker and its watcher, neither of them our child: the program must call
/// [`super::become_watched`] first of all. That is one program start instead of the four that [`spawn_detached`] takes for
/// the two. The pid is the watcher's; the socket is at its end when both are gone.
///
/// # Errors
/// If it cannot be started; nothing of it is left then. Also while a step runs in this process.
pub fn spawn_watched(order: &DetachedOrder) -> Result<Detached> {
    use std::os::unix::process::CommandExt;
    let doing = || "cannot start a process of ours".to_string();
    if nix::sys::prctl::get_child_subreaper().context(doing)? {
        return Err(Error::bug(format!("{} while a step runs", doing())));
    }
    let (mut ours, theirs) = UnixStream::pair().context(doing)?;
    let mut command = Command::new(super::self_exe());
    command.arg0("mc_project").args(&order.args).env_clear().envs(&order.env).current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
    let mut first = command.spawn().context(doing)?;
    // Our copy of the other end, without which an early end is not seen.
    drop(command);
    give(&mut ours, &order.input)?;
    let status = first.wait().context(doing)?;
    if !status.success() {
        return Err(Error::failed(format!("{} ({})", doing(), StepStatus::of(status).words())));
    }
    let pid = answer(&mut ours)?;
    Ok(Detached { pid, liveness: ours, child: None })
}

/// Gives the order and reads the process id, or the reason why there is none.
fn shake_hands(socket: &mut UnixStream, order: &DetachedOrder) -> Result<i32> {
    let doing = || "cannot start a process of ours".to_string();
    let mut argv = vec![OsString::from("mc_project")];
    argv.extend(order.args.iter().cloned());
    let env = order.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let program = super::self_exe().to_path_buf();
    let detached = WireDetached { program, input: order.input.clone() };
    let order = StepOrder::new(argv, env, PathBuf::from("/"));
    let wire = Wire { order, detached: Some(detached), join: Vec::new(), outlives: true };
    let bytes = serde_json::to_vec(&wire).context(doing)?;
    give(socket, &bytes)?;
    answer(socket)
}

/// Gives what the process reads first.
fn give(socket: &mut UnixStream, bytes: &[u8]) -> Result<()> {
    let doing = || "cannot start a process of ours".to_string();
    socket.set_write_timeout(Some(HANDSHAKE)).context(doing)?;
    socket.set_read_timeout(Some(HANDSHAKE)).context(doing)?;
    socket.write_all(bytes).and_then(|()| socket.shutdown(std::net::Shutdown::Write)).context(doing)
}

/// Reads what it answers: its process id, or the reason why there is none.
fn answer(socket: &mut UnixStream) -> Result<i32> {
    let doing = || "cannot start a process of ours".to_string();
    let mut text = Vec::new();
    let mut byte = [0_u8];
    while text.len() < 16 * 1024 && socket.read(&mut byte).context(doing)? == 1 {
        if byte == *b"\n" && text.first() == Some(&b'+') {
            break;
        }
        text.push(byte[0]);
    }
    let text = crate::sys::escape::visible_bounded(&text, 8 * 1024);
    match text.strip_prefix('+').and_then(|pid| pid.parse().ok()) {
        Some(pid) => Ok(pid),
        None if text.is_empty() => Err(Error::failed(doing()).because(Error::failed("the helper ended early"))),
        None => Err(Error::failed(doing()).because(Error::failed(text.trim_start_matches('!')))),
    }
}

impl Detached {
    /// Its process id, for messages and signals; it also is the number of its session and group.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Our end of the socket, to be polled together with other things: it becomes readable when they are gone.
    #[must_use]
    pub fn liveness(&self) -> BorrowedFd<'_> {
        self.liveness.as_fd()
    }

    /// Waits until the process and its children that inherited the socket are gone, at most so long; tells whether
    /// they are.
    ///
    /// # Errors
    /// If the socket cannot be asked.
    pub fn wait_gone(&self, at_most: Duration) -> Result<bool> {
        let doing = || format!("cannot wait for process {}", self.pid);
        let end = crate::sys::clock::since_boot() + at_most;
        loop {
            let left = end.saturating_sub(crate::sys::clock::since_boot());
            let limit = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.liveness, PollFlags::IN)];
            match poll(&mut fds, Some(&limit)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) if self.is_at_end().context(doing)? => return Ok(true),
                Ok(_) => {}
                Err(error) => return Err(error).context(doing),
            }
        }
    }

    fn is_at_end(&self) -> std::io::Result<bool> {
        match (&self.liveness).read(&mut [0_u8; 256]) {
            Ok(n) => Ok(n == 0),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Ok(false),
            // The last holder died with something unread in its queue: it is gone all the same.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Waits for the end of a process that was started with `as_child`.
    ///
    /// # Errors
    /// If it is not our child.
    pub fn wait_child(&mut self) -> Result<StepStatus> {
        let pid = self.pid;
        let child = self.child.as_mut().ok_or_else(|| Error::bug(format!("process {pid} is not our child")))?;
        Ok(StepStatus::of(child.wait().context(|| format!("cannot wait for process {pid}"))?))
    }
}
