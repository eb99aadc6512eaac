//! Starting the git program: with nothing of the caller's environment, and with every surprise switched off.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::sys::error::{Error, Result};
use crate::sys::escape;
use crate::sys::fs::File;
use crate::sys::process::PATH;
use crate::sys::threads;

/// No call of git takes longer honestly; a fetch from a host that went silent would.
const DEADLINE: Duration = Duration::from_mins(15);
/// As much of the error output is kept.
const STDERR_LIMIT: usize = 64 * 1024;

/// One call of the git program.
pub struct Git<'a> {
    repo: Option<PathBuf>,
    settings: Vec<OsString>,
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    input: &'a [u8],
    system_config: bool,
    identity: Option<(u32, u32)>,
    into: Option<File>,
    limit: usize,
}

/// How a call ended.
pub struct Output {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl<'a> Git<'a> {
    /// A call about no repository.
    pub fn outside() -> Self {
        Self {
            repo: None,
            settings: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            input: &[],
            system_config: false,
            identity: None,
            into: None,
            limit: usize::MAX,
        }
    }

    /// A call about the repository at this absolute path.
    pub fn of(path: &Path) -> Self {
        Self { repo: Some(path.to_path_buf()), ..Self::outside() }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_os_string());
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_os_string()));
        self
    }

    /// Sets a configuration value (`key=value`) for this call.
    pub fn setting(mut self, setting: &str) -> Self {
        self.settings.push("-c".into());
        self.settings.push(setting.into());
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, key: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key, value.as_ref().to_os_string()));
        self
    }

    /// Lets the call read objects from one more directory, such as the quarantine of a push.
    pub fn with_objects(self, objects: Option<&Path>) -> Self {
        let Some(objects) = objects else { return self };
        // Quoted, since a colon would begin another directory.
        let text = objects.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
        self.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", format!("\"{text}\""))
    }

    /// Gives the call something to read.
    pub fn input(mut self, input: &'a [u8]) -> Self {
        self.input = input;
        self
    }

    /// Runs the call as this user and group, without further groups; `None` as we are.
    pub fn identity(mut self, identity: Option<(u32, u32)>) -> Self {
        self.identity = identity;
        self
    }

    /// Lets the call write its output into an open file.
    pub fn into_file(mut self, file: File) -> Self {
        self.into = Some(file);
        self
    }

    /// Keeps at most so many bytes of the output; more of it is an error.
    pub fn limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Lets the machine's git configuration count: proxies for a fetch, filter programs for a checkout.
    pub fn with_system_config(mut self) -> Self {
        self.system_config = true;
        self
    }

    /// Runs the call; what it wrote.
    ///
    /// # Errors
    /// If it fails; `doing` completes "cannot …".
    pub fn run(self, doing: &str) -> Result<Vec<u8>> {
        let output = self.output()?;
        if output.code == Some(0) { Ok(output.stdout) } else { Err(output.failure(doing)) }
    }

    /// Runs the call to its end, however it ends.
    ///
    /// # Errors
    /// If git cannot be started or passes the deadline.
    pub fn output(mut self) -> Result<Output> {
        let (input, limit, into) = (self.input, self.limit, self.into.take());
        let mut command = self.command();
        command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
        let mut child = spawn(&mut command)?;
        let reading = match into {
            Some(file) => pour(child.stdout.take(), file),
            None => drain(child.stdout.take(), limit),
        };
        let reading = reading.and_then(|stdout| Ok((stdout, drain(child.stderr.take(), STDERR_LIMIT)?)));
        let (stdout, stderr) = reading.inspect_err(|_| kill_group(&mut child))?;
        // A broken pipe means that git gave up: its exit code and its words say why.
        let asked = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input));
        let Ok(stdout) = stdout.recv_timeout(DEADLINE) else {
            kill_group(&mut child);
            return Err(Error::failed(format!("git did not end within {} minutes", DEADLINE.as_secs() / 60)));
        };
        let status = child.wait().map_err(|cause| Error::failed("cannot wait for git").because(cause))?;
        if stdout.len() == limit {
            return Err(Error::failed(format!("git said more than {limit} bytes")));
        }
        // A helper that outlives git (a shared ssh connection) may keep this pipe open: nobody waits for it.
        let stderr = stderr.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
        if let (Some(0), Err(cause)) = (status.code(), asked)
            && cause.kind() != std::io::ErrorKind::BrokenPipe
        {
            // It is content with what it was told; we are not.
            return Err(Error::failed("git was not told everything").because(cause));
        }
        Ok(Output { code: status.code(), stdout, stderr })
    }

    /// Starts the call with both ends of the conversation in our hands.
    ///
    /// # Errors
    /// If git cannot be started.
    pub fn converse(self) -> Result<Child> {
        let mut command = self.command();
        // Nobody reads what it complains about; a full pipe would stop it.
        command.stdin(Stdio::piped()).stderr(Stdio::null());
        spawn(&mut command)
    }

    /// The one place where a command line of git is put together.
    fn command(self) -> Command {
        let mut command = Command::new("git");
        command
            .env_clear()
            .env("PATH", PATH)
            // Messages and their order must not depend on the caller.
            .env("LC_ALL", "C")
            // No personal configuration: what root has in ~/.gitconfig must not change a deployment.
            .env("HOME", "/nonexistent")
            // Whoever can push a replace ref could exchange any object for another one.
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            // Nor does a forgotten graft change history; libgit2 does not read them here either.
            .env("GIT_GRAFT_FILE", "/nonexistent/grafts")
            // Reading must not write (an index refresh).
            .env("GIT_OPTIONAL_LOCKS", "0")
            // Nobody sits here to answer.
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS", "/bin/false")
            // A missing object is missing: no promisor remote is asked for it.
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_ALLOW_PROTOCOL", "")
            // Its own group: a deadline ends git with its children.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !self.system_config {
            command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_ATTR_NOSYSTEM", "1");
        }
        // Hooks (reference-transaction, post-index-change) belong to pushes, not to what we do ourselves.
        command.args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"]);
        // A ref or an object that we were told about must still be there after a power cut.
        command.args(["-c", "core.fsync=committed,reference"]);
        match &self.repo {
            None => {
                command.current_dir("/");
            }
            Some(path) => {
                // The owner was checked when the repository was opened, by us; git would believe SUDO_UID.
                let mut safe = OsString::from("safe.directory=");
                safe.push(path);
                command.arg("-c").arg(safe).current_dir(path);
            }
        }
        command.args(&self.settings);
        if let Some(path) = &self.repo {
            // Named outright, so that git searches no parent directories.
            let mut git_dir = OsString::from("--git-dir=");
            git_dir.push(path);
            command.arg(git_dir);
        }
        command.args(&self.args);
        if let Some((uid, gid)) = self.identity {
            // The standard library drops all further groups when it changes the user (setgroups(2)).
            command.uid(uid).gid(gid);
        }
        for (key, value) in &self.env {
            command.env(key, value);
        }
        command
    }
}

impl Output {
    /// What a call that was never made says.
    pub fn nothing() -> Self {
        Self { code: None, stdout: Vec::new(), stderr: Vec::new() }
    }

    /// The error that this end is.
    pub fn failure(&self, doing: &str) -> Error {
        let said = self.said();
        let how = match self.code {
            Some(code) => format!("git ended with exit {code}"),
            None => "git was killed".to_string(),
        };
        Error::failed(if said.is_empty() {
            format!("cannot {doing}: {how}")
        } else {
            format!("cannot {doing}: {said}")
        })
    }

    /// Whether its error output holds this.
    pub fn complains_of(&self, text: &str) -> bool {
        memchr::memmem::find(&self.stderr, text.as_bytes()).is_some()
    }

    /// The line of its error output that says most, safe to show.
    pub fn said(&self) -> String {
        let lines = || self.stderr.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let telling = lines().find(|line| line.starts_with(b"fatal: ") || line.starts_with(b"error: "));
        telling.or_else(|| lines().next_back()).map(|line| escape::output_line(line, 500)).unwrap_or_default()
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .spawn()
        .map_err(|cause| Error::failed("cannot start git").because(cause).hint("install git, then: mc_project doctor"))
}

/// Reads a pipe to its end in its own thread, keeping at most `limit` bytes.
fn drain(pipe: Option<impl Read + Send + 'static>, limit: usize) -> Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    threads::start(move || {
        let mut kept = Vec::new();
        let Some(mut pipe) = pipe else { return };
        let mut buffer = [0_u8; 16 * 1024];
        // An error of the pipe is its end.
        while let Ok(size @ 1..) = pipe.read(&mut buffer) {
            kept.extend_from_slice(&buffer[..size.min(limit - kept.len())]);
        }
        // Nobody waits any more after the deadline.
        let _ = sender.send(kept);
    })?;
    Ok(receiver)
}

/// Copies a pipe into a file in its own thread. Where the file cannot take it the pipe is closed, and git tells of that.
fn pour(pipe: Option<impl Read + Send + 'static>, mut file: File) -> Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    threads::start(move || {
        let _ = pipe.map(|mut pipe| std::io::copy(&mut pipe, &mut file));
        let _ = sender.send(Vec::new());
    })?;
    Ok(receiver)
}

/// Kills a child that leads its own group, and everything in it. The child was not waited for yet: its id is its own.
pub fn kill_group(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

/// The version of the git program, for example `(2, 47)`.
///
/// # Errors
/// If there is no git program or it tells no version.
pub fn program_version() -> Result<(u32, u32)> {
    let output = Git::outside().arg("version").run("ask git for its version")?;
    let text = String::from_utf8_lossy(&output);
    parse_version(&text)
        .ok_or_else(|| Error::failed(format!("git tells no version: {}", escape::output_line(&output, 100))))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_vendors_are_read() {
        assert_eq!(parse_version("git version 2.47.3\n"), Some((2, 47)));
        assert_eq!(parse_version("git version 2.39.5 (Apple Git-154)"), Some((2, 39)));
        assert_eq!(parse_version("git version 2.45"), Some((2, 45)));
        assert_eq!(parse_version("hg 1.2"), None);
        assert!(program_version().unwrap() >= (2, 29));
    }

    #[test]
    fn git_sees_nothing_of_our_environment() {
        let output = Git::outside().arg("-c").arg("alias.e=!env").arg("e").run("print the environment").unwrap();
        let text = String::from_utf8(output).unwrap();
        assert!(text.contains("LC_ALL=C\n") && text.contains("HOME=/nonexistent\n"), "{text}");
        assert!(!text.contains("CARGO"), "{text}");
    }

    #[test]
    fn a_failure_tells_what_git_said() {
        let error = Git::outside().args(["cat-file", "-p", "x"]).run("do it").unwrap_err();
        assert!(error.message().starts_with("cannot do it: fatal: "), "{error}");
    }

    #[test]
    fn a_large_input_and_a_large_output_do_not_block_each_other() {
        let input = b"0123456789\n".repeat(100_000);
        let output = Git::outside().args(["stripspace"]).input(&input).run("copy").unwrap();
        assert_eq!(output.len(), input.len());
    }
}
