//! Runs a small program and keeps what it prints.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use super::StepStatus;
use super::relayed::feed;
use crate::sys::error::{Context, Result};

/// The most that is kept of each output; the rest is read and dropped.
pub const CAPTURE_LIMIT: usize = 4 * 1024 * 1024;

/// How long we wait for output after the program has ended: a child of it may hold the pipe for ever.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What a program printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// How it ended.
    pub status: StepStatus,
    /// Its standard output, at most [`CAPTURE_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// Its standard error, at most [`CAPTURE_LIMIT`] bytes.
    pub stderr: Vec<u8>,
}

impl Captured {
    /// The last non-empty line of standard error, or of standard output, safe to show.
    #[must_use]
    pub fn last_words(&self) -> String {
        let last = |bytes: &[u8]| {
            let line = bytes.split(|b| *b == b'\n').rfind(|line| !line.trim_ascii().is_empty());
            line.map(|line| crate::sys::escape::output_line(line, 512))
        };
        last(&self.stderr).or_else(|| last(&self.stdout)).unwrap_or_default()
    }
}

/// Runs a program with exactly this environment in a process group of its own; a name without a slash is looked up in
/// the `PATH` of `env`. When its time is over, its group is killed. A program that does not exist is
/// [`StepStatus::CouldNotStart`].
///
/// # Errors
/// If we cannot do our own part.
pub fn run_captured(
    program: impl AsRef<OsStr>,
    args: &[impl AsRef<OsStr>],
    env: &BTreeMap<String, String>,
    stdin: &[u8],
    timeout: Duration,
) -> Result<Captured> {
    let mut command = Command::new(program.as_ref());
    command.args(args).env_clear().envs(env);
    run_piped(command, true, stdin, timeout)
}

/// As [`run_captured`] for a command that was made elsewhere, and that makes a session of its own unless it is to be given a
/// group (`own_group`).
///
/// # Errors
/// If we cannot do our own part.
pub fn run_piped(mut command: Command, own_group: bool, stdin: &[u8], timeout: Duration) -> Result<Captured> {
    command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if own_group {
        command.process_group(0);
    }
    super::runtime()?.block_on(run(command, stdin, timeout))
}

async fn run(command: Command, stdin: &[u8], timeout: Duration) -> Result<Captured> {
    let program = crate::sys::escape::visible(&command.get_program().to_string_lossy());
    let doing = || format!("cannot run {program}");
    let mut command = tokio::process::Command::from(command);
    let mut child = match command.kill_on_drop(true).spawn() {
        Ok(child) => child,
        Err(error) => {
            let status = StepStatus::CouldNotStart(format!("{program}: {error}"));
            return Ok(Captured { status, stdout: Vec::new(), stderr: Vec::new() });
        }
    };
    let (mut out, mut err) = (Kept::new(child.stdout.take()), Kept::new(child.stderr.take()));
    let input = feed(child.stdin.take(), stdin);
    tokio::pin!(input);
    let deadline = sleep(timeout);
    tokio::pin!(deadline);
    let (mut is_fed, mut status) = (false, None);
    while status.is_none() || !out.is_closed() || !err.is_closed() {
        tokio::select! {
            exit = child.wait(), if status.is_none() => {
                status = Some(StepStatus::of(exit.context(doing)?));
                deadline.as_mut().reset(Instant::now() + LAST_WORDS);
            }
            () = out.read(), if !out.is_closed() => {}
            () = err.read(), if !err.is_closed() => {}
            () = &mut input, if !is_fed => is_fed = true,
            () = &mut deadline => {
                if status.is_none() {
                    kill(&mut child).await;
                    status = Some(StepStatus::Timeout);
                }
                break;
            }
        }
    }
    Ok(Captured { status: status.unwrap_or(StepStatus::Timeout), stdout: out.bytes, stderr: err.bytes })
}

async fn kill(child: &mut Child) {
    if let Some(pid) = child.id() {
        let _ = super::kill_group(pid.cast_signed(), Signal::SIGKILL);
    }
    // What waits for a dead disk does not die even so; it is left to the runtime.
    let _ = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
}

struct Kept<R> {
    pipe: Option<R>,
    bytes: Vec<u8>,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Kept<R> {
    fn new(pipe: Option<R>) -> Self {
        Self { pipe, bytes: Vec::new(), buffer: vec![0; 32 * 1024] }
    }

    fn is_closed(&self) -> bool {
        self.pipe.is_none()
    }

    async fn read(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.read(&mut self.buffer).await {
            Ok(0) | Err(_) => self.pipe = None,
            Ok(n) => {
                let room = CAPTURE_LIMIT.saturating_sub(self.bytes.len());
                self.bytes.extend_from_slice(&self.buffer[..n.min(room)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, stdin: &[u8], timeout: Duration) -> Captured {
        let env = super::super::base_environment(std::path::Path::new("/"));
        run_captured("sh", &["-c", script], &env, stdin, timeout).unwrap()
    }

    #[test]
    fn output_input_and_exit_code_are_kept_apart() {
        let long = Duration::from_secs(20);
        let captured = sh("cat; echo oops >&2; exit 3", b"hello", long);
        assert_eq!(captured.status, StepStatus::Exit(3));
        assert_eq!((captured.stdout.as_slice(), captured.last_words().as_str()), (b"hello".as_slice(), "oops"));
        let big = vec![b'x'; 300_000];
        assert_eq!(sh("cat", &big, long).stdout, big);
        assert_eq!(sh("exit 0", &big, long).status, StepStatus::Ok);
    }

    #[test]
    fn a_program_that_is_not_there_could_not_start() {
        let none: [&str; 0] = [];
        let captured = run_captured("/no/such", &none, &BTreeMap::new(), b"", Duration::from_secs(5)).unwrap();
        assert!(matches!(captured.status, StepStatus::CouldNotStart(text) if text.contains("/no/such")));
    }

    #[test]
    fn a_hanging_program_and_a_child_that_holds_the_pipe_delay_nothing() {
        let begin = std::time::Instant::now();
        let captured = sh("echo begun; trap '' TERM; sleep 100; sleep 100", b"", Duration::from_millis(500));
        assert_eq!(captured.status, StepStatus::Timeout);
        assert_eq!(captured.stdout, b"begun\n");
        let captured = sh("echo done; sleep 5 &", b"", Duration::from_secs(100));
        assert_eq!((captured.status, captured.stdout), (StepStatus::Ok, b"done\n".to_vec()));
        assert!(begin.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn more_than_the_limit_is_read_and_dropped() {
        let captured = sh("yes | head -c 9000000; echo end >&2", b"", Duration::from_mins(1));
        assert_eq!((captured.stdout.len(), captured.stderr.as_slice()), (CAPTURE_LIMIT, b"end\n".as_slice()));
    }
}
