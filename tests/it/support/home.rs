//! A developer's account: a private directory, a private HOME, git that knows nothing of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::Finished;

/// The only search path: what a test finds must not depend on who runs it.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A private place on the disk with an isolated git.
pub struct Home {
    dir: TempDir,
    commits: AtomicU32,
    extra: Mutex<Vec<(String, String)>>,
}

impl Home {
    /// Makes the place.
    pub fn new() -> Self {
        // Not $TMPDIR of the caller: some are on file systems without xattrs, or too long for a socket's path.
        let dir = tempfile::Builder::new().prefix("mc-it-").tempdir_in("/var/tmp").unwrap();
        std::fs::create_dir(dir.path().join("home")).unwrap();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        Self { dir, commits: AtomicU32::new(0), extra: Mutex::new(Vec::new()) }
    }

    /// The private directory, everything of this test is in it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    /// Adds a variable to the environment of every command from now on.
    pub fn set(&self, name: &str, value: &str) {
        self.extra.lock().unwrap().push((name.to_string(), value.to_string()));
    }

    /// A command with the isolated environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // Every commit gets a time of its own, and the same one in every run of the test.
        let n = self.commits.fetch_add(1, Ordering::Relaxed);
        let date = format!("{} +0000", 1_790_000_000 + n);
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("USER", "alice")
            .env("LOGNAME", "alice")
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_AUTHOR_NAME", "Alice Ånström")
            .env("GIT_AUTHOR_EMAIL", "alice@example.org")
            .env("GIT_AUTHOR_DATE", &date)
            .env("GIT_COMMITTER_NAME", "Alice Ånström")
            .env("GIT_COMMITTER_EMAIL", "alice@example.org")
            .env("GIT_COMMITTER_DATE", &date)
            .envs(self.extra.lock().unwrap().iter().map(|(name, value)| (name.clone(), value.clone())))
            .current_dir(self.dir());
        command
    }

    /// Runs git in `dir`.
    #[track_caller]
    pub fn git(&self, dir: &Path, args: &[&str]) -> Finished {
        let mut command = self.command("git");
        command.current_dir(dir).args(args);
        Finished::of(command)
    }

    /// Runs git in `dir` and returns its output without the last line end.
    #[track_caller]
    pub fn git_text(&self, dir: &Path, args: &[&str]) -> String {
        self.git(dir, args).ok().stdout.trim_end_matches('\n').to_string()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        end_processes_below(self.dir.path());
        unmount_below(self.dir.path());
    }
}

/// Takes away what a test has mounted below `dir`, so that it can be removed.
fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| Path::new(at).starts_with(dir));
    for at in points.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").args(["--lazy", at]).status();
    }
}

/// Kills, by id, every process that works below `dir`: daemons that a recipe started, workers that still settle.
fn end_processes_below(dir: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let needle = dir.as_os_str().as_bytes();
    let mine = std::process::id().to_string();
    for _ in 0..100 {
        let mut found = false;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let Ok(number) = pid.parse::<i32>() else { continue };
            if pid == mine {
                continue;
            }
            let at = entry.path();
            let there = std::fs::read_link(at.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
            let told = ["cmdline", "environ"].iter().any(|file| {
                std::fs::read(at.join(file)).is_ok_and(|text| memchr::memmem::find(&text, needle).is_some())
            });
            if there || told {
                found = true;
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(number), nix::sys::signal::Signal::SIGKILL);
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
