//! System calls as places for faults: found by one run under strace(1), hit by another.
//!
//! strace counts per system call and per thread, so a place is a pair (system call, n). The same pair in two processes is hit
//! in each of them. A process that is killed dies before the call is done, and with it only its own threads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::stage::{DEADLINE, run_to_end};
use crate::support::{Finished, Running, World, kill_9};

/// The calls that change what is on the disk.
const CHANGING: &str = "openat,openat2,open,creat,mkdir,mkdirat,write,pwrite64,writev,rename,renameat,renameat2,unlink,\
    unlinkat,rmdir,symlink,symlinkat,link,linkat,chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown,utimensat,ftruncate,\
    truncate,fallocate,copy_file_range,fsync,fdatasync,syncfs,setxattr,fsetxattr,lsetxattr,mount,umount2,ioctl";

/// The calls that hand out a descriptor.
const OPENING: &str =
    "openat,openat2,open,pipe2,socket,epoll_create1,eventfd2,pidfd_open,fcntl,inotify_init1,memfd_create";

/// The calls that may have to be repeated.
const INTERRUPTIBLE: &str = "openat,write,read,fsync,fdatasync,flock,wait4,waitid,poll,ppoll,copy_file_range";

/// The calls for which the kernel may have no memory. Not mmap: a program that gets no memory of its own is ended (SIGABRT), which
/// is as good as a kill.
const ALLOCATING: &str = "openat,mkdir,mkdirat,rename,renameat2,unlinkat,symlink,clone3,vfork,getdents64";

/// The calls that name no path and are places all the same.
const ANYWHERE: [&str; 13] = [
    "pipe2",
    "socket",
    "epoll_create1",
    "eventfd2",
    "pidfd_open",
    "inotify_init1",
    "memfd_create",
    "wait4",
    "waitid",
    "poll",
    "ppoll",
    "clone3",
    "vfork",
];

/// The calls that make files durable.
const SYNCING: &str = "fsync,fdatasync,syncfs";

/// What is done at a call, or only before one (`Sync`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill,
    Error(&'static str),
    Sync,
}

/// A place: the n-th call of this name in one thread.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    pub name: String,
    pub n: usize,
}

impl Fault {
    /// The calls at which it makes sense.
    pub fn calls(self) -> &'static str {
        match self {
            Self::Error("EMFILE") => OPENING,
            Self::Error("EINTR") => INTERRUPTIBLE,
            Self::Error("ENOMEM") => ALLOCATING,
            Self::Sync => SYNCING,
            Self::Kill | Self::Error(_) => CHANGING,
        }
    }

    /// Whether this line of a trace is such a place.
    fn is_place(self, name: &str, line: &str, root: &str) -> bool {
        let is_ours = line.contains(root);
        let creates = ["O_CREAT", "O_TRUNC", "O_TMPFILE"].iter().any(|flag| line.contains(flag));
        match (self, name) {
            (Self::Kill | Self::Error("EIO" | "ENOSPC"), "openat" | "openat2" | "open") => is_ours && creates,
            (
                Self::Error("ENOSPC"),
                "unlink" | "unlinkat" | "rmdir" | "fchmod" | "chmod" | "fchmodat" | "utimensat",
            ) => false,
            (_, "ioctl") => line.contains("FICLONE"),
            (_, "fcntl") => line.contains("F_DUPFD"),
            _ if ANYWHERE.contains(&name) => true,
            _ => is_ours,
        }
    }
}

/// The command as a child of strace, with these options.
fn traced(world: &World, command: &Command, options: &[String], stdin: std::fs::File) -> Command {
    let mut strace = world.home().command("strace");
    // Its filter in the kernel makes strace fast, but with it strace injects no signal (6.1): who is to die is held up instead.
    strace.args(["-f", "-q", "-y", "--seccomp-bpf"]).args(options).arg("--").arg(command.get_program());
    strace.args(command.get_args()).stdin(stdin);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace
}

/// A command and what it reads, which a [`Command`] does not tell.
pub struct Order {
    pub command: Command,
    pub input: Option<PathBuf>,
}

impl Order {
    fn stdin(&self) -> std::fs::File {
        std::fs::File::open(self.input.as_deref().unwrap_or(Path::new("/dev/null"))).unwrap()
    }

    /// Runs it undisturbed and lists the places for a fault.
    pub fn places(&self, world: &World, fault: Fault) -> Vec<Call> {
        let log = world.home().path("calls");
        let options = ["-o", log.to_str().unwrap(), "-e", &format!("trace={}", fault.calls())].map(str::to_string);
        run_to_end(traced(world, &self.command, &options, self.stdin())).unwrap();
        let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
        places_in(&text, fault, world.root().to_str().unwrap())
    }

    /// Runs it with a fault at this call; also tells whether the call was reached.
    pub fn disturbed(&self, world: &World, call: &Call, fault: Fault) -> (Result<Finished, String>, bool) {
        let Fault::Error(errno) = fault else { return self.killed(world, call) };
        let (command, log) = self.injecting(world, call, &format!("error={errno}"));
        let ended = run_to_end(command);
        let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
        let root = world.root();
        // The n-th call of another thread may be about something else: an event counter, a pipe.
        let name = call.name.as_str();
        let is_place = |line: &str| line.contains("resumed>") || fault.is_place(name, line, root.to_str().unwrap());
        let is_hit = text.lines().any(|line| line.contains("(INJECTED)") && is_place(line));
        (ended, is_hit)
    }

    /// Runs it and kills each process that comes to this call, before the call is done.
    fn killed(&self, world: &World, call: &Call) -> (Result<Finished, String>, bool) {
        let mut held = self.held(world, call, Duration::from_secs(2));
        let mut dead = BTreeSet::new();
        while held.running.is_running() && held.begin.elapsed() < DEADLINE {
            for pid in held.now() {
                if dead.insert(pid) {
                    let is_first = held.is_first(pid);
                    kill_9(pid);
                    if is_first {
                        // It would wait until the end of the delay to tell us.
                        held.running.signal(Signal::SIGKILL);
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        (held.running.wait_at_most(DEADLINE), !dead.is_empty())
    }

    /// Starts it to be held up for a while before this call.
    pub fn held(&self, world: &World, call: &Call, delay: Duration) -> Held {
        let (command, log) = self.injecting(world, call, &format!("delay_enter={}", delay.as_micros()));
        let _ = std::fs::remove_file(&log);
        Held { running: Running::start_reading(command), log, n: call.n, begin: Instant::now() }
    }

    fn injecting(&self, world: &World, call: &Call, what: &str) -> (Command, PathBuf) {
        let log = world.home().path("hits");
        let Call { name, n } = call;
        let (trace, inject) = (format!("trace={name}"), format!("inject={name}:{what}:when={n}"));
        let options = ["-o", log.to_str().unwrap(), "-e", &trace, "-e", &inject].map(str::to_string);
        (traced(world, &self.command, &options, self.stdin()), log)
    }
}

/// A command each of whose threads is held up at its n-th call.
pub struct Held {
    pub running: Running,
    log: PathBuf,
    n: usize,
    pub begin: Instant,
}

impl Held {
    /// The threads that have come to the call.
    pub fn now(&self) -> Vec<i32> {
        let text = String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned();
        let mut counts: BTreeMap<i32, usize> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.contains("resumed>") && line.contains('(')) {
            if let Some(Ok(pid)) = line.split_once(' ').map(|(pid, _)| pid.parse()) {
                *counts.entry(pid).or_default() += 1;
            }
        }
        counts.into_iter().filter(|(_, count)| *count >= self.n).map(|(pid, _)| pid).collect()
    }

    /// Whether the thread is one of the command itself, not of a child of it.
    fn is_first(&self, pid: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|id| id.trim().parse().ok());
        parent == Some(self.running.pid())
    }
}

/// The places in the text of a trace.
fn places_in(text: &str, fault: Fault, root: &str) -> Vec<Call> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut places = BTreeSet::new();
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = rest.trim_start().split_once('(') else { continue };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        let n = counts.entry((pid, name)).or_default();
        *n += 1;
        if fault.is_place(name, arguments, root) {
            places.insert(Call { name: name.to_string(), n: *n });
        }
    }
    places.into_iter().collect()
}

#[test]
fn places_are_counted_per_thread_and_call_and_reading_is_none() {
    let text = "\
7  openat(AT_FDCWD</>, \"/r/a\", O_RDONLY) = 3</r/a>
7  write(3</r/a>, \"x\", 1 <unfinished ...>
8  openat(AT_FDCWD</>, \"/r/b\", O_WRONLY|O_CREAT, 0600) = 4</r/b>
7  <... write resumed>)              = 1
7  write(1</dev/null>, \"x\", 1)       = 1
7  openat(AT_FDCWD</>, \"/r/c\", O_WRONLY|O_CREAT, 0600) = 4</r/c>
7  write(4</r/c>, \"x\", 1)       = 1
";
    let found = places_in(text, Fault::Kill, "/r");
    let found: Vec<String> = found.iter().map(|call| format!("{}:{}", call.name, call.n)).collect();
    assert_eq!(found, ["openat:1", "openat:2", "write:1", "write:3"]);
    assert!(places_in(text, Fault::Error("ENOSPC"), "/other").is_empty());
}
