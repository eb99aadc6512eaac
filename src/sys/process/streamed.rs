//! Runs a program and takes the bytes that it prints while it runs, with bounds on how long it may be silent and run.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, sleep_until};

use super::{StepStatus, Tick};
use crate::sys::error::{Context, Result};

/// The most that is kept of standard error: its end.
const KEPT: usize = 16 * 1024;
/// How long we wait for output after the program has ended: a child of it may hold the pipe for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long a program may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long it may print nothing.
    pub silent: Duration,
    /// When its time is over.
    pub until: Instant,
}

/// How a program ended that printed for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streamed {
    /// How it ended: [`StepStatus::Timeout`] if it was silent or took too long, [`StepStatus::Cancelled`] if it was stopped.
    pub status: StepStatus,
    /// The end of its standard error.
    pub stderr: Vec<u8>,
}

/// Runs a program with exactly this environment in a process group of its own, nothing on standard input, and hands its
/// standard output to `on`, whose [`Tick::Cancel`] kills it. A program that does not exist is
/// [`StepStatus::CouldNotStart`].
///
/// # Errors
/// If we cannot do our own part.
pub fn run_streamed(
    program: &OsStr,
    args: &[OsString],
    env: &BTreeMap<String, String>,
    bounds: Bounds,
    on: &mut dyn FnMut(&[u8]) -> Tick,
) -> Result<Streamed> {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(env).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    super::runtime()?.block_on(run(command, bounds, on))
}

async fn run(command: Command, bounds: Bounds, on: &mut dyn FnMut(&[u8]) -> Tick) -> Result<Streamed> {
    let program = crate::sys::escape::visible(&command.get_program().to_string_lossy());
    let doing = || format!("cannot run {program}");
    let mut child = match tokio::process::Command::from(command).process_group(0).kill_on_drop(true).spawn() {
        Ok(child) => child,
        Err(error) => {
            let status = StepStatus::CouldNotStart(format!("{program}: {error}"));
            return Ok(Streamed { status, stderr: Vec::new() });
        }
    };
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut buffer, mut other) = (vec![0_u8; 64 * 1024], vec![0_u8; 4 * 1024]);
    let (mut stderr, mut status) = (Vec::new(), None);
    let silence = sleep(bounds.silent);
    tokio::pin!(silence);
    let end = sleep_until(bounds.until.into());
    tokio::pin!(end);
    while status.is_none() || out.is_some() || err.is_some() {
        tokio::select! {
            exit = child.wait(), if status.is_none() => {
                status = Some(StepStatus::of(exit.context(doing)?));
                silence.as_mut().reset((Instant::now() + LAST_WORDS).into());
            }
            n = read(&mut out, &mut buffer), if out.is_some() => {
                if n == 0 {
                    out = None;
                } else if on(&buffer[..n]) == Tick::Cancel {
                    status = Some(StepStatus::Cancelled);
                    break;
                } else if status.is_none() {
                    silence.as_mut().reset((Instant::now() + bounds.silent).into());
                }
            }
            n = read(&mut err, &mut other), if err.is_some() => {
                if n == 0 {
                    err = None;
                }
                stderr.extend_from_slice(&other[..n]);
                let too_much = stderr.len().saturating_sub(KEPT);
                stderr.drain(..too_much);
            }
            () = &mut silence => break,
            () = &mut end => break,
        }
    }
    if let Some(pid) = child.id() {
        // Whoever is left of its group is not waited for.
        let _ = super::kill_group(pid.cast_signed(), Signal::SIGKILL);
        let _ = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
    }
    Ok(Streamed { status: status.unwrap_or(StepStatus::Timeout), stderr })
}

async fn read(pipe: &mut Option<impl AsyncReadExt + Unpin>, buffer: &mut [u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.read(buffer).await.unwrap_or(0),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, silent: u64, all: u64, on: &mut dyn FnMut(&[u8]) -> Tick) -> Streamed {
        let env = super::super::base_environment(std::path::Path::new("/"));
        let bounds =
            Bounds { silent: Duration::from_millis(silent), until: Instant::now() + Duration::from_millis(all) };
        run_streamed(OsStr::new("/bin/sh"), &["-c".into(), script.into()], &env, bounds, on).unwrap()
    }

    #[test]
    fn bytes_come_whole_and_the_end_of_standard_error_is_kept() {
        let mut got = Vec::new();
        let ended =
            sh("head -c 300000 /dev/zero; yes oops | head -c 100000 >&2; echo end >&2; exit 7", 9000, 9000, &mut |b| {
                got.extend_from_slice(b);
                Tick::GoOn
            });
        assert_eq!((got.len(), ended.status), (300_000, StepStatus::Exit(7)));
        assert!(ended.stderr.len() <= KEPT && ended.stderr.ends_with(b"end\n"));
    }

    #[test]
    fn silence_a_deadline_and_a_cancel_end_it() {
        let begin = Instant::now();
        assert_eq!(sh("echo x; sleep 100", 200, 90_000, &mut |_| Tick::GoOn).status, StepStatus::Timeout);
        let drips = "while :; do echo x; sleep 0.05; done";
        assert_eq!(sh(drips, 90_000, 400, &mut |_| Tick::GoOn).status, StepStatus::Timeout);
        assert_eq!(sh("yes", 90_000, 90_000, &mut |_| Tick::Cancel).status, StepStatus::Cancelled);
        assert_eq!(sh("setsid sleep 20 & echo x", 90_000, 90_000, &mut |_| Tick::GoOn).status, StepStatus::Ok);
        assert!(begin.elapsed() < Duration::from_secs(9));
    }
}
