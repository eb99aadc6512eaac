//! Runs a command of a person in our place of the terminal: it has our three streams.
//!
//! A command that is not boxed (no other identity, no view, no group) is simply started. One that is goes through
//! `step-exec`, which gets its order through a memory file, because standard input is the command's. It has a session of
//! its own: what belongs to another user must not have our terminal as its own, into which it could type in our name
//! (ioctl_tty(2), TIOCSTI). So the terminal's signals come to us, and we hand them on.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::fs::MemfdFlags;
use tokio::signal::unix::{SignalKind, signal};

use super::captured::{self, Captured};
use crate::sys::cgroup::Group;
use crate::sys::error::{Context, Error, Result};
use crate::sys::step_exec::{self, StepOrder, Wire};

/// Runs a command with exactly the environment, directory and box of its order. Returns its exit code; a signal counts 128
/// plus its number, as shells do.
///
/// # Errors
/// If it cannot be started.
pub fn run_attached(order: &StepOrder) -> Result<u8> {
    use std::os::unix::process::ExitStatusExt;
    let is_boxed = order.run_as.is_some() || order.view != step_exec::View::default();
    let status = if is_boxed { boxed(order)? } else { plain(order)? };
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(1))
}

fn plain(order: &StepOrder) -> Result<ExitStatus> {
    let Some((program, rest)) = order.argv.split_first() else { return Err(Error::usage("no command was given")) };
    let shown = crate::sys::escape::visible(&program.to_string_lossy());
    let env = order.env.iter().map(|(name, value)| (name, value));
    let mut command = Command::new(program);
    command.args(rest).env_clear().envs(env).current_dir(&order.cwd);
    command.status().context(|| format!("cannot run {shown}"))
}

fn boxed(order: &StepOrder) -> Result<ExitStatus> {
    let group = order.group.as_ref().map(Group::make).transpose()?.and_then(|(group, _)| group);
    let made = boxed_command(order, group.as_ref()).context(|| "cannot run the command in its box".to_string());
    let (command, file) = made?;
    let status = super::runtime()?.block_on(wait_for(command));
    // The group is killed and removed only now.
    drop((group, file));
    status
}

/// What makes the box and takes the program's place in it; the file holds its order and must outlive it.
fn boxed_command(order: &StepOrder, group: Option<&Group>) -> std::io::Result<(Command, File)> {
    let join = group.map(Group::doors).unwrap_or_default();
    let wire = Wire { order: order.clone(), detached: None, join, outlives: false };
    let mut file = File::from(rustix::fs::memfd_create("order", MemfdFlags::empty())?);
    file.write_all(&serde_json::to_vec(&wire)?)?;
    file.seek(SeekFrom::Start(0))?;
    let mut command = Command::new(super::self_exe());
    let number = file.as_raw_fd().to_string();
    command.arg(step_exec::SUBCOMMAND).args([step_exec::ATTACHED, &number]).env_clear().current_dir("/");
    Ok((command, file))
}

/// Runs a program in the box of its order and keeps what it prints; when its time is over, its group is killed.
///
/// # Errors
/// If it cannot be started.
pub fn run_captured_in(order: &StepOrder, stdin: &[u8], timeout: Duration) -> Result<Captured> {
    let doing = || "cannot run a program in its box".to_string();
    let group = order.group.as_ref().map(Group::make).transpose()?.and_then(|(group, _)| group);
    let (command, file) = boxed_command(order, group.as_ref()).context(doing)?;
    let ended = captured::run_piped(command, false, stdin, timeout);
    drop((group, file));
    ended
}

async fn wait_for(command: Command) -> Result<ExitStatus> {
    let doing = || "cannot run the command in its box".to_string();
    let handed_on = |kind: SignalKind| signal(kind).context(doing);
    let (mut interrupt, mut quit) = (handed_on(SignalKind::interrupt())?, handed_on(SignalKind::quit())?);
    let (mut terminate, mut hangup) = (handed_on(SignalKind::terminate())?, handed_on(SignalKind::hangup())?);
    let mut child = tokio::process::Command::from(command).spawn().context(doing)?;
    let group = child.id().map_or(0, u32::cast_signed);
    loop {
        let got = tokio::select! {
            status = child.wait() => return status.context(doing),
            _ = interrupt.recv() => Signal::SIGINT,
            _ = quit.recv() => Signal::SIGQUIT,
            _ = terminate.recv() => Signal::SIGTERM,
            _ = hangup.recv() => Signal::SIGHUP,
        };
        if group > 0 {
            super::kill_group(group, got)?;
        }
    }
}
