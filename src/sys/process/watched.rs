//! What a process of ours does that was started by [`super::spawn_watched`]: it becomes two, a worker and its watcher, before
//! anything else is done in it.
//!
//! One program start is all that a push waits for; everything that a helper would do before an exec is done here by two
//! forks. They are safe because nothing of the program has begun: there is one thread, and no lock is held.
//!
//! The first process forks and ends, so that nobody is our parent. The second is the watcher: it opens a session, closes
//! what it inherited, reads the order and forks the worker, which opens a session of its own. Both hold the socket whose
//! other end tells whoever started us that we live; no program that they start inherits it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::IntoRawFd;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use super::StepStatus;
use crate::sys::error::{Context, Result};
use crate::sys::step_exec;

/// No order is longer.
const LONGEST_ORDER: u64 = 1024 * 1024;

/// Which of the three this process is.
#[derive(Debug)]
pub enum Role {
    /// The one that was started: it has nothing more to do.
    Starter,
    /// The worker, with its order.
    Worker(Vec<u8>),
    /// The watcher of this worker, with the same order.
    Watcher(Watched, Vec<u8>),
}

/// A worker that is our child.
#[derive(Debug)]
pub struct Watched(Pid);

impl Watched {
    /// Waits for the worker's end, however it comes.
    ///
    /// # Errors
    /// If it is not our child.
    pub fn wait(self) -> Result<StepStatus> {
        loop {
            match waitpid(self.0, Some(WaitPidFlag::empty())) {
                Ok(WaitStatus::Exited(_, 0)) => return Ok(StepStatus::Ok),
                Ok(WaitStatus::Exited(_, code)) => return Ok(StepStatus::Exit(code)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(StepStatus::Signal(signal as i32)),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error).context(|| format!("cannot wait for process {}", self.0)),
            }
        }
    }
}

/// Becomes worker and watcher. Must be the first thing that a process does.
///
/// # Errors
/// If it cannot; whoever started us was told why.
pub fn become_watched() -> Result<Role> {
    let doing = || "cannot start a process of ours".to_string();
    if matches!(fork().context(doing)?, ForkResult::Parent { .. }) {
        return Ok(Role::Starter);
    }
    let mut socket = None;
    settle_down(&mut socket).inspect_err(|error| {
        if let Some(mut socket) = socket {
            let _ = socket.write_all(format!("!{}", error.one_line()).as_bytes());
        }
    })
}

fn settle_down(socket: &mut Option<File>) -> Result<Role> {
    let doing = || "cannot start a process of ours".to_string();
    nix::unistd::setsid().context(doing)?;
    step_exec::close_from(3)?;
    let mut order = Vec::new();
    std::io::stdin().take(LONGEST_ORDER).read_to_end(&mut order).context(doing)?;
    let ours = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).context(doing)?;
    let ours = socket.insert(File::from(ours));
    nix::unistd::dup2_stdin(File::open("/dev/null").context(doing)?).context(doing)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    step_exec::set_limits(&step_exec::Limits::default())?;
    step_exec::reset_signals();
    ignore_broken_pipes().context(doing)?;
    let ForkResult::Parent { child } = fork().context(doing)? else {
        // It is its own group's and session's leader: a signal to the watcher's does not reach it.
        nix::unistd::setsid().context(doing)?;
        keep(socket);
        return Ok(Role::Worker(order));
    };
    ours.write_all(format!("+{}\n", std::process::id()).as_bytes()).context(doing)?;
    keep(socket);
    Ok(Role::Watcher(Watched(child), order))
}

/// Leaves the socket open to the end of this process.
fn keep(socket: &mut Option<File>) {
    let _ = socket.take().map(File::into_raw_fd);
}

#[expect(unsafe_code, reason = "fork(2) is unsafe in a process with threads; this one has not begun")]
fn fork() -> nix::Result<ForkResult> {
    // SAFETY: called before anything of the program has begun; there is one thread and no lock is held.
    unsafe { nix::unistd::fork() }
}

/// As Rust's runtime does at the start of a program: a write to a closed pipe is an error and not our death.
#[expect(unsafe_code, reason = "signal(2) is unsafe because of handlers; only `ignore` is set here")]
fn ignore_broken_pipes() -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: SIG_IGN installs no code.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.map(|_| ())
}
