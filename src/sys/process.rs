//! Programs: the only place where they are started, watched and ended.
//!
//! - [`run_step`] runs one step of a recipe and leaves no process of it behind ([`step`] tells how);
//! - [`run_attached`] runs a command of a person in our place of the terminal;
//! - [`run_beside`] runs git or ssh of a developer beside us;
//! - [`run_captured`] runs a small program and keeps what it prints;
//! - [`run_streamed`] runs a program and takes the bytes that it prints while it runs;
//! - [`spawn_detached`] starts this very program so that it outlives us and everything that happens to us;
//! - [`spawn_watched`] starts it so as a worker with a watcher beside it, as fast as that can be done;
//! - [`spawn_kept`] starts a service, which goes on without us;
//! - [`processes_using`] names the processes that work inside a directory tree.

mod attached;
mod beside;
mod captured;
mod detached;
mod kept;
mod lines;
mod relayed;
mod step;
mod streamed;
mod table;
mod usage;
mod users;
mod watched;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Result};

pub use attached::{run_attached, run_captured_in};
pub use beside::{Beside, Input, run_beside};
pub use captured::{CAPTURE_LIMIT, Captured, run_captured};
pub use detached::{Detached, DetachedOrder, spawn_companion, spawn_detached, spawn_watched};
pub use kept::{Beginning, Kept, Member, Members, ProcessId, Run, adopt_orphans, reap, spawn_kept};
pub use lines::{LINE_LIMIT, Lines};
pub use relayed::{Said, run_relayed};
pub use step::{GRACE, MARKER, MARKER_KEPT, Patience, TICK, run_step, run_step_patiently};
pub use streamed::{Bounds, Streamed, run_streamed};
pub use table::{has_variable, kill_marked, kill_these};
pub use usage::{Usage, usage_of};
pub use users::{ProcessUse, TreeUsers, processes_using};
pub use watched::{Role, Watched, become_watched};

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Exit code 0.
    Ok,
    /// Another exit code.
    Exit(i32),
    /// Killed by a signal that was not ours.
    Signal(i32),
    /// Ended by us because its time was over.
    Timeout,
    /// Ended by us because a person asked for it.
    Cancelled,
    /// Processes of it were killed for want of memory.
    OutOfMemory {
        /// The limit that it reached, in bytes; `None` if it was not its own.
        limit: Option<u64>,
    },
    /// It never ran; why.
    CouldNotStart(String),
}

impl StepStatus {
    /// Whether it did its work.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        *self == Self::Ok
    }

    /// The status in a few words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Ok => "ok".into(),
            Self::Exit(code) => format!("exit {code}"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => format!("killed by {signal}"),
                Err(_) => format!("killed by signal {number}"),
            },
            Self::Timeout => "timeout".into(),
            Self::Cancelled => "cancelled".into(),
            Self::OutOfMemory { limit: Some(bytes) } => format!("out of memory (limit {})", super::size::words(*bytes)),
            Self::OutOfMemory { limit: None } => "out of memory (of the machine, not of its own limit)".into(),
            Self::CouldNotStart(reason) => format!("could not start: {reason}"),
        }
    }

    fn of(exit: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (exit.code(), exit.signal()) {
            (Some(0), _) => Self::Ok,
            (Some(code), _) => Self::Exit(code),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }
}

/// The end of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepResult {
    /// How it ended.
    pub status: StepStatus,
    /// How long it took, the end of its last process included.
    pub duration: Duration,
    /// Processes that could not be killed (they wait for a disk or a network file system): the tree that they worked in
    /// must not be used.
    pub survivors: Vec<i32>,
    /// What else is worth telling: a limit that was reached although the step did not end of it.
    pub notes: Vec<String>,
    /// Which of its limits did not hold here, and why.
    pub unenforced: Option<String>,
}

impl StepResult {
    /// The status in a few words.
    #[must_use]
    pub fn words(&self) -> String {
        self.status.words()
    }
}

/// What a watcher answers when it is asked whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tick {
    /// Go on.
    GoOn,
    /// End the step.
    Cancel,
}

/// Sees what a step does while it runs.
pub trait StepWatcher {
    /// Takes one line of output, without its end of line, as the step wrote it; a line longer than [`LINE_LIMIT`] comes
    /// in pieces.
    fn line(&mut self, line: &[u8]);

    /// Is called about every second.
    fn tick(&mut self) -> Tick {
        Tick::GoOn
    }
}

/// Where every program that we start is looked for, and looks for its own: never the path of whoever called us.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static EXECUTABLE: OnceLock<PathBuf> = OnceLock::new();

/// Says which file is `mc_project`, for a test program that is another one. Only the first call counts.
pub fn set_executable(path: &Path) {
    let _ = EXECUTABLE.set(path.to_path_buf());
}

/// The file to start this very program again: by default the running one, even if it was replaced or removed on disk.
#[must_use]
pub fn self_exe() -> &'static Path {
    EXECUTABLE.get().map_or(Path::new("/proc/self/exe"), PathBuf::as_path)
}

/// Sets the name of this process that `ps` and our own messages show (at most 15 bytes).
///
/// # Errors
/// If the name holds a NUL byte.
pub fn name_self(name: &str) -> Result<()> {
    let doing = || format!("cannot take the name {name}");
    let name = std::ffi::CString::new(name).context(doing)?;
    nix::sys::prctl::set_name(&name).context(doing)
}

/// Keeps the socket of [`Detached`] from the programs that this process starts without `step-exec`, so that it tells of
/// this process alone.
///
/// # Errors
/// If the descriptors cannot be marked.
pub fn keep_descriptors_from_children() -> Result<()> {
    super::step_exec::close_on_exec_from(3)
}

/// Sends a signal to every process of a group; fine if the group is gone.
///
/// # Errors
/// If the group belongs to somebody else.
pub fn kill_group(group: i32, signal: Signal) -> Result<()> {
    match nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(error) => Err(error).context(|| format!("cannot send {signal} to the process group {group}")),
    }
}

/// The name of the user that we are, or their number if they have no name.
#[must_use]
pub fn user_name() -> String {
    let uid = nix::unistd::Uid::effective();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// The environment that everything starts from; nothing of our own environment is in it.
#[must_use]
pub fn base_environment(home: &Path) -> BTreeMap<String, String> {
    base_environment_of(&user_name(), home)
}

/// Takes from this process the right to use more memory than this; it cannot be given back.
///
/// # Errors
/// If the system refuses.
pub fn limit_memory(bytes: u64) -> Result<()> {
    let limit = rustix::process::Rlimit { current: Some(bytes), maximum: Some(bytes) };
    rustix::process::setrlimit(rustix::process::Resource::As, limit)
        .context(|| "cannot limit our own memory".to_string())
}

/// As [`base_environment`], for another user.
#[must_use]
pub fn base_environment_of(user: &str, home: &Path) -> BTreeMap<String, String> {
    [
        ("PATH", PATH),
        ("HOME", &home.to_string_lossy()),
        ("USER", user),
        ("LOGNAME", user),
        ("SHELL", "/bin/sh"),
        ("LANG", "C.UTF-8"),
    ]
    .map(|(name, value)| (name.to_string(), value.to_string()))
    .into()
}

/// The runtime of one call: a single thread, gone when the call ends.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "cannot start the runtime".into())
}

/// Becomes another program: it takes our process, our three streams and our directory, and has exactly this environment.
/// A name without a slash is looked up in the `PATH` of `env`. Returns only where that is impossible, with the reason.
#[must_use]
pub fn become_program(argv: &[std::ffi::OsString], env: &BTreeMap<String, String>) -> Error {
    use std::os::unix::process::CommandExt;
    let Some((program, rest)) = argv.split_first() else { return Error::bug("no program to become was named") };
    let shown = crate::sys::escape::visible(&program.to_string_lossy());
    let error = std::process::Command::new(program).args(rest).env_clear().envs(env).exec();
    Error::failed(format!("cannot run {shown}")).because(error)
}

/// Starts this very program with a connection as its standard input, in a process group of its own.
///
/// # Errors
/// If it cannot be started.
pub fn spawn_serving(
    stream: std::os::unix::net::UnixStream,
    args: &[std::ffi::OsString],
    env: &BTreeMap<String, String>,
) -> Result<std::process::Child> {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(self_exe());
    command.args(args).env_clear().envs(env).current_dir("/").process_group(0);
    command.stdin(std::os::fd::OwnedFd::from(stream)).stdout(std::process::Stdio::null());
    command.spawn().context(|| "cannot start a process for a connection".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_speak_in_few_words() {
        assert_eq!(StepStatus::Exit(2).words(), "exit 2");
        assert_eq!(StepStatus::Signal(9).words(), "killed by SIGKILL");
        assert_eq!(StepStatus::Signal(40).words(), "killed by signal 40");
    }

    #[test]
    fn the_base_environment_takes_nothing_from_ours() {
        let env = base_environment(Path::new("/srv/x"));
        assert_eq!(env.len(), 6);
        assert_eq!(env["HOME"], "/srv/x");
        assert!(env["PATH"].split(':').all(|dir| dir.starts_with('/')));
    }
}
