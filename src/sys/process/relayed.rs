//! Runs a program and hands on what it prints, line by line, while it runs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdin;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::lines::Lines;
use super::{StepStatus, Tick};
use crate::sys::error::{Context, Result};

/// How often the listener is asked whether to go on.
const ASK: Duration = Duration::from_secs(1);
/// How long we wait for output after the program has ended: a child of it may hold the pipe for ever.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What a running program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said<'a> {
    /// A line of standard output.
    Out(&'a [u8]),
    /// A line of standard error.
    Err(&'a [u8]),
    /// It runs and may have said nothing.
    Runs,
}

/// Runs a program with exactly this environment, nothing on standard input, in a process group of its own. What `on`
/// answers to [`Said::Runs`] decides whether it is killed.
///
/// # Errors
/// If it cannot be started or waited for.
pub fn run_relayed(
    program: &OsStr,
    args: &[OsString],
    env: &BTreeMap<String, String>,
    on: &mut dyn FnMut(Said<'_>) -> Tick,
) -> Result<StepStatus> {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(env).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    super::runtime()?.block_on(run(command, Manner { own_group: true, every: ASK, feed: Vec::new() }, on))
}

/// How a program is run.
pub struct Manner {
    /// Whether it has a process group of its own, which is killed as a whole.
    pub own_group: bool,
    /// How often the listener is asked whether to go on.
    pub every: Duration,
    /// What it reads, if its standard input is a pipe.
    pub feed: Vec<u8>,
}

/// Runs a command and hands on its lines.
///
/// # Errors
/// If it cannot be started or waited for.
pub async fn run(command: Command, manner: Manner, on: &mut dyn FnMut(Said<'_>) -> Tick) -> Result<StepStatus> {
    let program = crate::sys::escape::visible(&command.get_program().to_string_lossy());
    let doing = || format!("cannot run {program}");
    let mut command = tokio::process::Command::from(command);
    if manner.own_group {
        command.process_group(0);
    }
    let mut child = command.spawn().context(doing)?;
    let (mut out, mut err) = (Pipe::new(child.stdout.take()), Pipe::new(child.stderr.take()));
    let input = feed(child.stdin.take(), &manner.feed);
    tokio::pin!(input);
    let (mut status, mut is_fed, mut is_killed) = (None, false, false);
    let mut asks = interval(manner.every);
    asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let last_words = sleep(LAST_WORDS);
    tokio::pin!(last_words);
    while status.is_none() || out.source.is_some() || err.source.is_some() {
        tokio::select! {
            exit = child.wait(), if status.is_none() => {
                status = Some(StepStatus::of(exit.context(doing)?));
                last_words.as_mut().reset(Instant::now() + LAST_WORDS);
            }
            n = out.read(), if out.source.is_some() => out.take(n, &mut |line| { on(Said::Out(line)); }),
            () = &mut input, if !is_fed => is_fed = true,
            n = err.read(), if err.source.is_some() => err.take(n, &mut |line| { on(Said::Err(line)); }),
            _ = asks.tick(), if status.is_none() => {
                if on(Said::Runs) == Tick::Cancel && !is_killed {
                    is_killed = true;
                    match child.id() {
                        Some(pid) if manner.own_group => super::kill_group(pid.cast_signed(), Signal::SIGKILL)?,
                        _ => child.start_kill().context(doing)?,
                    }
                }
            }
            () = &mut last_words, if status.is_some() => break,
        }
    }
    out.lines.finish(&mut |line| {
        on(Said::Out(line));
    });
    err.lines.finish(&mut |line| {
        on(Said::Err(line));
    });
    Ok(status.unwrap_or(StepStatus::Cancelled))
}

/// Writes everything to a program's standard input, and closes it.
pub async fn feed(pipe: Option<ChildStdin>, bytes: &[u8]) {
    if let Some(mut pipe) = pipe {
        // A program may end without reading all of its input.
        let _ = pipe.write_all(bytes).await;
    }
}

struct Pipe<R> {
    source: Option<R>,
    lines: Lines,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Pipe<R> {
    fn new(source: Option<R>) -> Self {
        Self { source, lines: Lines::default(), buffer: vec![0; 16 * 1024] }
    }

    async fn read(&mut self) -> usize {
        match &mut self.source {
            Some(pipe) => pipe.read(&mut self.buffer).await.unwrap_or(0),
            None => 0,
        }
    }

    fn take(&mut self, n: usize, on: &mut dyn FnMut(&[u8])) {
        if n == 0 {
            self.source = None;
        }
        self.lines.feed(&self.buffer[..n], on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, on: &mut dyn FnMut(Said<'_>) -> Tick) -> StepStatus {
        let env = super::super::base_environment(std::path::Path::new("/"));
        run_relayed(OsStr::new("/bin/sh"), &["-c".into(), script.into()], &env, on).unwrap()
    }

    #[test]
    fn lines_come_while_the_program_runs_and_both_streams_are_told_apart() {
        let begin = std::time::Instant::now();
        let mut heard = Vec::new();
        let status = sh("echo one; echo two >&2; sleep 0.3; printf three; exit 7", &mut |said| {
            match said {
                Said::Out(line) => heard.push(format!("out {}", String::from_utf8_lossy(line))),
                Said::Err(line) => heard.push(format!("err {}", String::from_utf8_lossy(line))),
                Said::Runs => {}
            }
            assert!(!heard.is_empty() || begin.elapsed() < Duration::from_millis(250));
            Tick::GoOn
        });
        heard.sort();
        assert_eq!(heard, ["err two", "out one", "out three"]);
        assert_eq!(status, StepStatus::Exit(7));
    }

    #[test]
    fn a_listener_who_is_gone_ends_a_program_that_is_silent_and_a_child_that_holds_the_pipe_is_not_waited_for() {
        let begin = std::time::Instant::now();
        let status = sh("sleep 100", &mut |said| if said == Said::Runs { Tick::Cancel } else { Tick::GoOn });
        assert_eq!(status, StepStatus::Signal(9));
        assert_eq!(sh("setsid sleep 5 & echo x", &mut |_| Tick::GoOn), StepStatus::Ok);
        assert!(begin.elapsed() < Duration::from_secs(4));
    }
}
