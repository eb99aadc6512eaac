//! The body of the hidden subcommand `step-exec`: a fresh, single-threaded process that makes itself what a step must
//! be and then becomes the step.
//!
//! Everything that must happen between fork and exec (session, namespaces, identity) happens here, *after* an exec, so
//! that no code of ours runs in the forked copy of a threaded process. The order comes as JSON on standard input, which
//! is one end of a socket pair; the answer goes back through the same socket: `+PID` right before the exec, or `!` and
//! the reason why there is none. The socket is closed by the exec itself. Only a detached process of ours keeps it: its
//! other end reads end-of-file when that process and its children are gone.
//!
//! The helper asks to be killed when the thread that started it dies (`PR_SET_PDEATHSIG`), and a step inherits that: a
//! killed worker leaves no step that goes on writing for long. It covers the step's first process only; the rest is the
//! work of [`super::process::kill_marked`]. A service does not ask: it outlives whoever started it ([`Wire::outlives`]).

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Gid, Uid};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags};
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use super::cgroup::GroupOrder;
use super::error::{Context, Error, Result};

mod view;

pub use view::{Bind, Network, Processes, View};

/// The exit code of a helper that could not become the step.
pub const COULD_NOT_START: u8 = 125;
/// What a line on standard error begins with when the answer cannot go through the socket.
pub const PREFIX: &str = "mc_project step-exec: ";
/// The name of the hidden subcommand.
pub const SUBCOMMAND: &str = "step-exec";
/// An argument: start the real helper as an orphan and end.
pub const ORPHAN: &str = "--orphan";
/// Or: read the order from this descriptor, and leave the three streams to the program.
pub const ATTACHED: &str = "--attached";

/// The identity that a step takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// The user.
    pub uid: u32,
    /// The first group.
    pub gid: u32,
    /// All further groups.
    pub groups: Vec<u32>,
}

/// Resource limits of a step; core dumps are always off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open descriptors (`RLIMIT_NOFILE`).
    pub open_files: Option<u64>,
    /// Processes of the user (`RLIMIT_NPROC`).
    pub processes: Option<u64>,
    /// Bytes of one file (`RLIMIT_FSIZE`).
    pub file_size: Option<u64>,
}

/// One program to run as a step.
#[derive(Clone, Serialize, Deserialize)]
pub struct StepOrder {
    /// The program and its arguments; a name without a slash is looked up in the `PATH` of `env`.
    #[serde(with = "escaped_list")]
    pub argv: Vec<OsString>,
    /// The whole environment; only the marker is added.
    pub env: Vec<(String, String)>,
    /// The working directory, opened after the binds.
    #[serde(with = "escaped")]
    pub cwd: PathBuf,
    /// What the step sees of the machine.
    pub view: View,
    /// The identity to take, if not ours.
    pub run_as: Option<RunAs>,
    /// Resource limits.
    pub limits: Limits,
    /// Whether processes that the step leaves behind live on (a step that starts a daemon).
    pub keep_background: bool,
    /// Where the output of a step goes that leaves a daemon behind, so that the daemon can go on writing after the
    /// step; without it such a daemon must send its output elsewhere or it meets a closed pipe.
    pub output_file: Option<PathBuf>,
    /// The control group that the step gets; without it the step stays in ours.
    pub group: Option<GroupOrder>,
    /// What marks the step's processes (`MC_STEP`, or `MC_STEP_KEPT` if they are kept); random if unset.
    pub marker: Option<String>,
}

impl StepOrder {
    /// An order without binds, limits or another identity.
    pub fn new(argv: Vec<OsString>, env: Vec<(String, String)>, cwd: PathBuf) -> Self {
        Self {
            argv,
            env,
            cwd,
            view: View::default(),
            run_as: None,
            limits: Limits::default(),
            keep_background: false,
            output_file: None,
            group: None,
            marker: None,
        }
    }
}

// Values of the environment are secrets, arguments may hold some: neither is shown.
impl fmt::Debug for StepOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("StepOrder")
            .field("program", &self.argv.first())
            .field("env", &names)
            .field("cwd", &self.cwd)
            .field("view", &self.view)
            .field("run_as", &self.run_as)
            .field("limits", &self.limits)
            .field("group", &self.group)
            .field("keep_background", &self.keep_background)
            .finish_non_exhaustive()
    }
}

/// What goes through the socket: an order, and what only a detached process of ours needs.
#[derive(Serialize, Deserialize)]
pub struct Wire {
    /// The order.
    pub order: StepOrder,
    /// For a detached process of ours; `None` for a step.
    pub detached: Option<WireDetached>,
    /// The `cgroup.procs` files of the group that it joins.
    pub join: Vec<PathBuf>,
    /// Whether the program outlives whoever starts it: a service.
    #[serde(default)]
    pub outlives: bool,
}

/// What makes a process of ours detached.
#[derive(Serialize, Deserialize)]
pub struct WireDetached {
    /// The program file; `argv[0]` is only its name.
    #[serde(with = "escaped")]
    pub program: PathBuf,
    /// What it reads on standard input.
    #[serde(with = "escaped_text")]
    pub input: Vec<u8>,
}

/// Runs the subcommand; returns only if the step could not be started.
#[must_use]
pub fn main() -> u8 {
    if std::env::args_os().nth(2).is_some_and(|arg| arg == ORPHAN) {
        return orphan();
    }
    let mut socket = None;
    let args: Vec<OsString> = std::env::args_os().skip(2).take(2).collect();
    let attached = args.first().is_some_and(|arg| arg == ATTACHED);
    let number = args.get(1).filter(|_| attached).map(|n| n.to_string_lossy().into_owned());
    let Err(error) = become_step(&mut socket, number.as_deref());
    let text = error.one_line();
    let told = socket.is_some_and(|mut socket: File| socket.write_all(format!("!{text}").as_bytes()).is_ok());
    if !told {
        let _ = writeln!(std::io::stderr(), "{PREFIX}{text}");
    }
    COULD_NOT_START
}

/// Starts the real helper with the same three streams and ends, so that the helper belongs to nobody.
fn orphan() -> u8 {
    match Command::new("/proc/self/exe").arg(SUBCOMMAND).spawn() {
        Ok(_) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{PREFIX}cannot start the helper: {error}");
            COULD_NOT_START
        }
    }
}

fn become_step(socket: &mut Option<File>, attached: Option<&str>) -> Result<std::convert::Infallible> {
    let parent = nix::unistd::getppid();
    let bytes = read_order(socket, attached)?;
    let wire: Wire = serde_json::from_slice(&bytes).context(|| "cannot understand the order".into())?;
    drop(bytes);
    let order = &wire.order;
    if attached.is_none() {
        replace_stdin(wire.detached.as_ref())?;
    }
    close_on_exec_from(3)?;
    nix::unistd::setsid().context(|| "cannot open a session".into())?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    set_limits(&order.limits)?;
    // Before the view hides the files, and while we still may.
    super::cgroup::join(&wire.join)?;
    view::take(&order.view)?;
    change_dir(&order.cwd)?;
    if let Some(run_as) = &order.run_as {
        take_identity(run_as)?;
    }
    if wire.detached.is_none() {
        nix::sys::prctl::set_no_new_privs().context(|| "cannot give up new privileges".into())?;
    }
    // After the change of identity, which resets it.
    if wire.detached.is_none() && !wire.outlives {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
            .context(|| "cannot ask for the parent's death".into())?;
        if nix::unistd::getppid() != parent {
            return Err(Error::failed("the worker died before the step began"));
        }
    }
    answer_started(socket.as_mut(), wire.detached.is_some())?;
    // After the answer: if nobody reads it any more, that must not kill us.
    reset_signals();
    execute(order, wire.detached.as_ref().map(|d| d.program.as_path()))
}

/// Reads the order: from the descriptor of this number, or from standard input, which is the socket then.
fn read_order(socket: &mut Option<File>, attached: Option<&str>) -> Result<Vec<u8>> {
    let doing = || "cannot read the order".to_string();
    let mut bytes = Vec::new();
    if let Some(number) = attached {
        let path = Path::new("/proc/self/fd").join(number);
        File::open(path).context(doing)?.read_to_end(&mut bytes).context(doing)?;
        return Ok(bytes);
    }
    std::io::stdin().read_to_end(&mut bytes).context(doing)?;
    // From here on the answer can be sent. All descriptors above 2, this one included, are closed by the exec.
    let answer = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).context(|| "cannot keep the socket".into());
    *socket = answer.ok().map(File::from);
    Ok(bytes)
}

/// Tells our process id and leaves the socket open over the exec if it is to tell whether we live.
fn answer_started(socket: Option<&mut File>, keep: bool) -> Result<()> {
    let Some(socket) = socket else { return Ok(()) };
    if keep {
        rustix::io::fcntl_setfd(&*socket, FdFlags::empty()).context(|| "cannot keep the socket".into())?;
    }
    // A step run by hand has a plain pipe here: nobody waits for the answer then.
    let _ = socket.write_all(format!("+{}\n", std::process::id()).as_bytes());
    Ok(())
}

fn replace_stdin(detached: Option<&WireDetached>) -> Result<()> {
    let doing = || "cannot set standard input".to_string();
    let input = match detached {
        Some(detached) if !detached.input.is_empty() => {
            let fd = rustix::fs::memfd_create("order", MemfdFlags::CLOEXEC).context(doing)?;
            let mut file = File::from(fd);
            file.write_all(&detached.input).context(doing)?;
            file.seek(SeekFrom::Start(0)).context(doing)?;
            file
        }
        _ => File::open("/dev/null").context(doing)?,
    };
    nix::unistd::dup2_stdin(&input).context(doing)
}

/// Marks every descriptor from `first` on to be closed by the next exec.
///
/// # Errors
/// If the kernel knows no `close_range(2)` and `/proc` cannot be read.
#[expect(unsafe_code, reason = "close_range(2) has no safe wrapper; marking a descriptor invalidates no owner of it")]
pub fn close_on_exec_from(first: u32) -> Result<()> {
    use nix::libc;
    // SAFETY: plain numbers go in; with CLOSE_RANGE_CLOEXEC no descriptor is closed, only flags are set.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    // Linux < 5.11.
    for name in super::fs::names(Path::new("/proc/self/fd"))? {
        let Ok(fd) = name.parse::<i32>() else { continue };
        if u32::try_from(fd).is_ok_and(|n| n >= first) {
            // SAFETY: F_SETFD takes a number and changes one flag; a descriptor that is gone gives EBADF.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Closes every descriptor from `first` on. Only for the very beginning of a process, when nothing of it owns one yet.
///
/// # Errors
/// If the kernel knows no `close_range(2)` and `/proc` cannot be read.
#[expect(unsafe_code, reason = "close_range(2) has no safe wrapper; the process has no owners of descriptors yet")]
pub fn close_from(first: u32) -> Result<()> {
    use nix::libc;
    // SAFETY: plain numbers go in; what is closed was inherited and belongs to nothing in this process.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } == 0 {
        return Ok(());
    }
    // Linux < 5.9.
    for name in super::fs::names(Path::new("/proc/self/fd"))? {
        let Ok(fd) = name.parse::<i32>() else { continue };
        if u32::try_from(fd).is_ok_and(|n| n >= first) {
            // SAFETY: as above; the one that listed the directory is closed already and gives EBADF.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Every signal to its default action, none blocked: ignored signals and the mask are inherited over an exec, and the
/// runtime of this very program ignores `SIGPIPE`.
#[expect(unsafe_code, reason = "signal(2) is unsafe because of handlers; only the default action is set here")]
pub fn reset_signals() {
    use nix::libc;
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL installs no code; KILL, STOP and the C library's own signals are refused with EINVAL.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// No core of this process is dumped, nor of what it starts: it holds secrets.
pub fn forbid_core_dumps() {
    use nix::sys::resource::{Resource, setrlimit};
    // Lowering needs no privilege.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

/// Bounds the memory of this process (setrlimit(2), `RLIMIT_AS`): what asks for more aborts.
pub fn limit_memory(bytes: u64) {
    use nix::sys::resource::{Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_AS, bytes, bytes);
}

/// Sets resource limits, and gives up the protection from the out-of-memory killer.
///
/// # Errors
/// If one cannot be set.
pub fn set_limits(limits: &Limits) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let mut wanted = vec![(Resource::RLIMIT_CORE, 0)];
    wanted.extend(limits.open_files.map(|n| (Resource::RLIMIT_NOFILE, n)));
    wanted.extend(limits.processes.map(|n| (Resource::RLIMIT_NPROC, n)));
    wanted.extend(limits.file_size.map(|n| (Resource::RLIMIT_FSIZE, n)));
    for (resource, limit) in wanted {
        let doing = || format!("cannot set the limit {resource:?} to {limit}");
        let (_, hard) = getrlimit(resource).context(doing)?;
        let limit = limit.min(hard);
        setrlimit(resource, limit, limit).context(doing)?;
    }
    // A worker may be protected from the out-of-memory killer; its steps must not be. Raising needs no privilege.
    let path = Path::new("/proc/self/oom_score_adj");
    if super::fs::read_text(path).is_ok_and(|text| text.trim().starts_with('-')) {
        let _ = std::fs::write(path, "0");
    }
    Ok(())
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::fs::openat(CWD, path, flags, Mode::empty())).context(|| {
        let shown = super::escape::visible_bounded(path.as_os_str().as_bytes(), 4096);
        format!("cannot open directory {shown}")
    })
}

fn change_dir(path: &Path) -> Result<()> {
    let dir = open_dir(path)?;
    rustix::process::fchdir(dir.as_fd()).context(|| format!("cannot enter {}", path.display()))
}

fn take_identity(run_as: &RunAs) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(run_as.uid), Gid::from_raw(run_as.gid));
    let doing = || format!("cannot become user {uid}, group {gid}");
    let groups: Vec<Gid> = run_as.groups.iter().copied().map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups).context(doing)?;
    nix::unistd::setresgid(gid, gid, gid).context(doing)?;
    nix::unistd::setresuid(uid, uid, uid).context(doing)?;
    let uids = nix::unistd::getresuid().context(doing)?;
    let gids = nix::unistd::getresgid().context(doing)?;
    let changed =
        [uids.real, uids.effective, uids.saved] == [uid; 3] && [gids.real, gids.effective, gids.saved] == [gid; 3];
    if !changed || (!uid.is_root() && nix::unistd::setuid(Uid::from_raw(0)).is_ok()) {
        return Err(Error::bug(doing()));
    }
    Ok(())
}

fn execute(order: &StepOrder, program: Option<&Path>) -> Result<std::convert::Infallible> {
    let nul = |_| Error::invalid("an argument or a value of the environment holds a NUL byte");
    let argv: Vec<CString> =
        order.argv.iter().map(|a| CString::new(a.as_bytes())).collect::<Result<_, _>>().map_err(nul)?;
    let env: Vec<CString> = order
        .env
        .iter()
        .map(|(name, value)| CString::new(format!("{name}={value}")))
        .collect::<Result<_, _>>()
        .map_err(nul)?;
    let Some(name) = order.argv.first().filter(|name| !name.is_empty()) else {
        return Err(Error::invalid("the step names no program"));
    };
    let path = order.env.iter().find(|(n, _)| n == "PATH").map_or("", |(_, value)| value.as_str());
    let mut reason = nix::Error::ENOENT;
    for candidate in program.map_or_else(|| candidates(name, path), |program| vec![program.to_path_buf()]) {
        let file = CString::new(candidate.into_os_string().into_vec()).map_err(nul)?;
        let Err(error) = nix::unistd::execve(&file, &argv, &env);
        // As execvp(3): a program that may not be executed is worth more than one that is not there.
        if !matches!(error, nix::Error::ENOENT | nix::Error::ENOTDIR) {
            reason = error;
        }
    }
    let shown = super::escape::visible_bounded(name.as_bytes(), 256);
    let hint = match reason {
        nix::Error::ENOEXEC => " (a script needs a first line like #!/bin/sh)",
        nix::Error::ENOENT if name.as_bytes().contains(&b'/') && super::fs::exists(Path::new(name)) => {
            " (the interpreter that its first line names)"
        }
        _ => "",
    };
    Err(Error::failed(format!("cannot execute {shown}{hint}")).because(std::io::Error::from(reason)))
}

fn candidates(name: &OsStr, path: &str) -> Vec<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(name)];
    }
    path.split(':').filter(|dir| dir.starts_with('/')).map(|dir| Path::new(dir).join(name)).collect()
}

mod escaped {
    //! A path in JSON: byte-exact, as printable ASCII.
    use super::{OsString, OsStringExt, Path, PathBuf};
    use crate::sys::path::{escape, unescape};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::os::unix::ffi::OsStrExt;

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&escape(path.as_os_str().as_bytes()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = unescape(&text).ok_or_else(|| D::Error::custom("bad escape in a path"))?;
        Ok(PathBuf::from(OsString::from_vec(bytes)))
    }
}

mod escaped_list {
    //! Arguments in JSON: byte-exact, as printable ASCII.
    use super::{OsString, OsStringExt};
    use crate::sys::path::{escape, unescape};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::os::unix::ffi::OsStrExt;

    pub fn serialize<S: Serializer>(list: &[OsString], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|item| escape(item.as_bytes())))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OsString>, D::Error> {
        let list = Vec::<String>::deserialize(deserializer)?;
        let read = |item: &String| unescape(item).map(OsString::from_vec);
        list.iter().map(read).collect::<Option<_>>().ok_or_else(|| D::Error::custom("bad escape in an argument"))
    }
}

mod escaped_text {
    //! Any bytes in JSON, as printable ASCII.
    use crate::sys::path::{escape, unescape};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&escape(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        unescape(&text).ok_or_else(|| D::Error::custom("bad escape"))
    }
}
