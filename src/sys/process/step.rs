//! Runs one step and leaves nothing of it behind.
//!
//! The step is started through `step-exec` (see [`crate::sys::step_exec`]) and has its own session. Its output is one
//! pipe that we read all the time, in bounded memory. It ends when its first process ends; when its time is over or a
//! person asks for it, the whole group gets TERM, and KILL after a grace. Then everything that it left behind is killed,
//! wherever it fled to ([`super::table`]): a step is one program, a service is declared in the recipe.
//!
//! The exception is a step with `keep_background` (a recipe that starts daemons by itself). Its leftovers belong to
//! nobody of ours: the worker is no subreaper while it runs. They live on after a success and after a failure; only a
//! timeout or a cancellation ends them. Their output must not need us: give the order an `output_file`, which the
//! daemon keeps and which we only follow while the step runs.
//!
//! A step that is ordered a control group ([`crate::sys::cgroup`]) joins it before it becomes anything else. At the end
//! the group is killed as a whole, before the process table is swept, and asked whether its limits were reached.
//!
//! One step runs at a time in one process. A detached process of ours cannot be started meanwhile.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::lines::Lines;
use super::{StepResult, StepStatus, StepWatcher, Tick, table};
use crate::sys::cgroup::Group;
use crate::sys::error::{Context, Result};
use crate::sys::step_exec::{self, StepOrder, Wire};

/// How long a step may take to end after TERM.
pub const GRACE: Duration = Duration::from_secs(10);
/// How often a heartbeat is written.
pub const TICK: Duration = Duration::from_secs(5);
/// How often the watcher of a step is asked.
const LOOK: Duration = Duration::from_secs(1);
/// The variable that marks the processes of a step.
pub const MARKER: &str = "MC_STEP";
/// The variable that marks processes that a step may leave behind.
pub const MARKER_KEPT: &str = "MC_STEP_KEPT";

/// How long we wait for a killed process; beyond that it waits for a disk that does not answer.
const DEATH: Duration = Duration::from_secs(10);
/// How long the helper may take to read its order.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// The most that is read after the end of a step whose leftovers go on writing.
const DRAIN_LIMIT: usize = 1024 * 1024;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How long we wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the step to end.
    pub timeout: Duration,
    /// For it to end after TERM.
    pub grace: Duration,
    /// Between two questions to the watcher.
    pub tick: Duration,
}

/// Runs a step to its end, however it ends.
///
/// # Errors
/// If we cannot do our own part; a step that fails or cannot be started is no error.
pub fn run_step(order: &StepOrder, timeout: Duration, on: &mut dyn StepWatcher) -> Result<StepResult> {
    run_step_patiently(order, &Patience { timeout, grace: GRACE, tick: LOOK }, on)
}

/// Like [`run_step`] with all times given.
///
/// # Errors
/// As [`run_step`].
pub fn run_step_patiently(order: &StepOrder, patience: &Patience, on: &mut dyn StepWatcher) -> Result<StepResult> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let spared = table::our_children()?;
    set_subreaper(!order.keep_background)?;
    let result = super::runtime().and_then(|runtime| runtime.block_on(run(order, patience, &spared, on)));
    if result.is_err() && !order.keep_background {
        table::sweep(&spared)?;
    }
    set_subreaper(false)?;
    result
}

fn set_subreaper(on: bool) -> Result<()> {
    nix::sys::prctl::set_child_subreaper(on).context(|| "cannot adopt the processes of a step".into())
}

async fn run(
    order: &StepOrder,
    patience: &Patience,
    spared: &BTreeSet<table::Identity>,
    on: &mut dyn StepWatcher,
) -> Result<StepResult> {
    let begin = Instant::now();
    let mut notes = Vec::new();
    let (group, unenforced) = make_group(order)?;
    let mut running = Running::start(order, group.as_ref())?;
    let ended_by_us = running.follow(patience, on).await?;
    if let Some(group) = group.as_ref().filter(|_| order.group.as_ref().is_some_and(|order| !order.kept)) {
        group.kill()?;
    }
    let survivors = if !order.keep_background {
        table::sweep(spared)?
    } else if ended_by_us.is_some() {
        running.kill_kept()?
    } else {
        Vec::new()
    };
    let limit = if order.keep_background || !survivors.is_empty() { DRAIN_LIMIT } else { usize::MAX };
    running.drain(limit, on).await;
    let happened = group.as_ref().map(Group::happened).unwrap_or_default();
    let caps = order.group.as_ref().map(|order| order.caps).unwrap_or_default();
    if happened.refused_forks > 0 {
        let limit = caps.processes.map(|n| format!(" of {n}")).unwrap_or_default();
        let refused = match happened.refused_forks {
            1 => "1 was refused".to_string(),
            count => format!("{count} were refused"),
        };
        notes.push(format!("the limit{limit} processes was reached: {refused}"));
    }
    let status = match (ended_by_us, running.exit) {
        (ended, _) if happened.oom_kills > 0 && ended != Some(StepStatus::Cancelled) => {
            StepStatus::OutOfMemory { limit: caps.memory.filter(|_| happened.own_limit) }
        }
        (Some(status), _) => status,
        (None, Some(exit)) => running.not_started(exit).unwrap_or_else(|| StepStatus::of(exit)),
        (None, None) => StepStatus::Timeout,
    };
    drop(group);
    Ok(StepResult { status, duration: begin.elapsed(), survivors, notes, unenforced })
}

/// Makes the group that is ordered, and tells which of its limits do not hold here.
fn make_group(order: &StepOrder) -> Result<(Option<Group>, Option<String>)> {
    let Some(wanted) = &order.group else { return Ok((None, None)) };
    let (group, support) = Group::make(wanted)?;
    Ok((group, support.missing(&wanted.caps)))
}

struct Running {
    child: Child,
    pid: i32,
    answer: UnixStream,
    output: Output,
    lines: Lines,
    marker: String,
    known: Vec<table::Entry>,
    exit: Option<std::process::ExitStatus>,
}

enum Output {
    Pipe(ChildStdout),
    File(File),
}

impl Output {
    /// The next bytes; 0 at the end, which a file never reaches while the step may still write.
    async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read(buffer).await,
            Self::File(file) => loop {
                let n = file.read(buffer)?;
                if n > 0 {
                    return Ok(n);
                }
                sleep(Duration::from_millis(50)).await;
            },
        }
    }
}

impl Running {
    fn start(order: &StepOrder, group: Option<&Group>) -> Result<Self> {
        let doing = || "cannot start a step".to_string();
        let (mut ours, theirs) = UnixStream::pair().context(doing)?;
        let (output, stdout, stderr) = open_output(order)?;
        let marker = order.marker.clone().unwrap_or_else(|| uuid::Uuid::now_v7().simple().to_string());
        let mut command = Command::new(super::self_exe());
        command
            .arg(step_exec::SUBCOMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(stdout)
            .stderr(stderr);
        // The command holds our copies of the child's descriptors: it must go before we read.
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn().context(doing)?;
        drop(command);
        let pid = child.id().map_or(0, u32::cast_signed);
        send_order(&mut ours, order, &marker, group.map(Group::doors).unwrap_or_default())?;
        Ok(Self { child, pid, answer: ours, output, lines: Lines::default(), marker, known: Vec::new(), exit: None })
    }

    /// Reads, ticks and waits until the first process has ended; tells whether it was ended by us.
    async fn follow(&mut self, patience: &Patience, on: &mut dyn StepWatcher) -> Result<Option<StepStatus>> {
        let mut ended_by_us = None;
        let mut is_killed = false;
        let mut ticks = interval_at(Instant::now() + patience.tick, patience.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = sleep(patience.timeout);
        tokio::pin!(deadline);
        let mut buffer = vec![0_u8; 64 * 1024];
        let mut is_open = true;
        loop {
            tokio::select! {
                exit = self.child.wait() => {
                    self.exit = Some(exit.context(|| "cannot wait for a step".into())?);
                    return Ok(ended_by_us);
                }
                n = self.output.read(&mut buffer), if is_open => match n {
                    Ok(0) | Err(_) => is_open = false,
                    Ok(n) => self.lines.feed(&buffer[..n], &mut |line| on.line(line)),
                },
                _ = ticks.tick() => {
                    if on.tick() == Tick::Cancel && ended_by_us.is_none() {
                        ended_by_us = Some(StepStatus::Cancelled);
                        self.signal(Signal::SIGTERM)?;
                        deadline.as_mut().reset(Instant::now() + patience.grace);
                    }
                }
                () = &mut deadline => {
                    let wait = if ended_by_us.is_none() {
                        ended_by_us = Some(StepStatus::Timeout);
                        self.signal(Signal::SIGTERM)?;
                        patience.grace
                    } else if is_killed {
                        return Ok(ended_by_us);
                    } else {
                        is_killed = true;
                        self.signal(Signal::SIGKILL)?;
                        DEATH
                    };
                    deadline.as_mut().reset(Instant::now() + wait);
                }
            }
        }
    }

    /// Signals the first process and its group; both numbers are ours as long as we have not waited for it.
    fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.known.is_empty() {
            self.known = table::below(self.pid)?;
        }
        // It has no group of its own before setsid(2).
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal);
        super::kill_group(self.pid, signal)
    }

    /// Kills what a step left behind that would have been kept: by the marker, and what was below it when it was ended.
    fn kill_kept(&self) -> Result<Vec<i32>> {
        let mut survivors = table::kill_known(&self.known)?;
        survivors.extend(table::kill_with_variable(MARKER_KEPT, &self.marker)?);
        Ok(survivors)
    }

    /// Reads what is there now; who still holds the pipe is not waited for.
    async fn drain(&mut self, limit: usize, on: &mut dyn StepWatcher) {
        let mut buffer = vec![0_u8; 64 * 1024];
        let mut total = 0;
        while total < limit {
            let Ok(Ok(n)) = timeout(Duration::from_millis(20), self.output.read(&mut buffer)).await else { break };
            if n == 0 {
                break;
            }
            total += n;
            self.lines.feed(&buffer[..n], &mut |line| on.line(line));
        }
        self.lines.finish(&mut |line| on.line(line));
    }

    /// Why the program never ran, if it did not.
    fn not_started(&self, exit: std::process::ExitStatus) -> Option<StepStatus> {
        let mut text = Vec::new();
        // The program's exec has closed the other end, and so has the helper's death.
        let _ = self.answer.set_read_timeout(Some(Duration::from_secs(1)));
        let _ = (&self.answer).take(16 * 1024).read_to_end(&mut text);
        let reason = match memchr::memchr(b'!', &text) {
            Some(start) => crate::sys::escape::visible_bounded(&text[start + 1..], 8 * 1024),
            None if text.is_empty() => format!("the helper ended early ({})", StepStatus::of(exit).words()),
            None => return None,
        };
        Some(StepStatus::CouldNotStart(reason))
    }
}

fn open_output(order: &StepOrder) -> Result<(Output, Stdio, Stdio)> {
    let doing = || "cannot open the output of a step".to_string();
    if let Some(path) = order.output_file.as_ref().filter(|_| order.keep_background) {
        let stdout = crate::sys::fs::open_append(path, 0o640)?;
        let stderr = stdout.try_clone().context(doing)?;
        let mut reader = crate::sys::fs::open_read(path)?;
        reader.seek(SeekFrom::End(0)).context(doing)?;
        return Ok((Output::File(reader), stdout.into(), stderr.into()));
    }
    let (reader, writer) = std::io::pipe().context(doing)?;
    let stderr = writer.try_clone().context(doing)?;
    let reader = std::process::ChildStdout::from(OwnedFd::from(reader));
    Ok((Output::Pipe(ChildStdout::from_std(reader).context(doing)?), writer.into(), stderr.into()))
}

fn send_order(socket: &mut UnixStream, order: &StepOrder, marker: &str, join: Vec<PathBuf>) -> Result<()> {
    let doing = || "cannot give a step its order".to_string();
    let name = if order.keep_background { MARKER_KEPT } else { MARKER };
    let mut order = order.clone();
    order.env.retain(|(n, _)| n != MARKER && n != MARKER_KEPT);
    order.env.push((name.into(), marker.into()));
    let bytes = serde_json::to_vec(&Wire { order, detached: None, join, outlives: false }).context(doing)?;
    socket.set_write_timeout(Some(HANDSHAKE)).context(doing)?;
    // A helper that died early is found out when we wait for it.
    let _ = socket.write_all(&bytes).and_then(|()| socket.shutdown(std::net::Shutdown::Write));
    Ok(())
}
