//! A program that ended: its output, its exit code, and checks that show all of it when they fail.

use std::fmt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub struct Finished {
    what: String,
    status: ExitStatus,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

/// A program that runs; its output goes to files, so that it never waits for us.
pub struct Running {
    what: String,
    child: Child,
    started: Instant,
    stdout: std::fs::File,
    stderr: std::fs::File,
}

impl Running {
    /// Starts `command`, with nothing on its standard input.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::start_reading(command)
    }

    /// Starts `command` with the standard input and output that the caller set.
    #[track_caller]
    pub fn start_with_output(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        command.stderr(stderr.try_clone().unwrap());
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        Self { what, child, started: Instant::now(), stdout, stderr }
    }

    /// Starts `command` with the standard input that the caller set.
    #[track_caller]
    pub fn start_reading(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        Self { what, child, started: Instant::now(), stdout, stderr }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it has written to standard error so far.
    pub fn stderr_so_far(&self) -> String {
        read_all(&self.stderr)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end within [`PATIENCE`]; it is killed then.
    #[track_caller]
    pub fn wait(self) -> Finished {
        self.wait_at_most(PATIENCE).unwrap_or_else(|hang| panic!("{hang}"))
    }

    /// Waits for its end; if it takes longer it is killed, and what it had said is the error.
    pub fn wait_at_most(mut self, patience: Duration) -> Result<Finished, String> {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.started.elapsed() > patience {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let (out, err) = (read_all(&self.stdout), read_all(&self.stderr));
                return Err(format!("{} did not end within {patience:?}\nstdout:\n{out}\nstderr:\n{err}", self.what));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Ok(Finished {
            status,
            took: self.started.elapsed(),
            stdout: read_all(&self.stdout),
            stderr: read_all(&self.stderr),
            what: self.what,
        })
    }
}

/// Reads the whole file without moving its offset, which the program shares.
fn read_all(file: &std::fs::File) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    let n = file.read_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}

impl Finished {
    /// Runs `command` to its end.
    #[track_caller]
    pub fn of(command: Command) -> Self {
        Running::start(command).wait()
    }

    /// The exit code; `None` after a signal.
    pub fn exit_code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Asserts that it ended with exit code 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// Asserts that it ended with this exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert!(self.status.code() == Some(code), "expected exit code {code}\n{self}");
        self
    }

    /// Asserts that it ended with another exit code than 0, and not by a signal.
    #[track_caller]
    pub fn fails(self) -> Self {
        assert!(self.status.code().is_some_and(|code| code != 0), "expected it to fail\n{self}");
        self
    }

    /// Asserts that this is a rejected push, and returns the reason that git shows for `refname`.
    #[track_caller]
    pub fn rejected(&self, shown_ref: &str) -> String {
        assert!(self.status.code() == Some(1), "expected the push to be rejected\n{self}");
        let start = " ! [remote rejected] ";
        let line = self
            .stderr
            .lines()
            .find(|line| line.starts_with(start) && line.contains(shown_ref))
            .unwrap_or_else(|| panic!("no rejection of {shown_ref}\n{self}"));
        let from = line.rfind(" (").unwrap_or_else(|| panic!("no reason in `{line}`"));
        // The reason itself may hold parentheses: it begins at the first one behind the ref's name.
        let from = line.find(&format!("{shown_ref} (")).map_or(from + 2, |at| at + shown_ref.len() + 2);
        line[from..].strip_suffix(')').unwrap().to_string()
    }

    /// The lines that came from the other side of a push, without git's `remote: ` before and the blanks behind.
    pub fn remote(&self) -> Vec<String> {
        let lines = self.stderr.split(['\n', '\r']);
        lines.filter_map(|line| line.strip_prefix("remote: ")).map(|line| line.trim_end().to_string()).collect()
    }

    /// The same as one text.
    pub fn remote_text(&self) -> String {
        self.remote().join("\n")
    }

    /// Asserts that a line from the other side holds `part`.
    #[track_caller]
    pub fn tells(self, part: &str) -> Self {
        assert!(
            self.remote().iter().any(|line| line.contains(part)),
            "expected the pusher to be told `{part}`\n{self}"
        );
        self
    }

    /// Asserts that no line from the other side holds `part`.
    #[track_caller]
    pub fn does_not_tell(self, part: &str) -> Self {
        assert!(!self.remote().iter().any(|line| line.contains(part)), "the pusher was told `{part}`\n{self}");
        self
    }

    /// Asserts that standard output and standard error together hold `part`.
    #[track_caller]
    pub fn says(self, part: &str) -> Self {
        assert!(self.stdout.contains(part) || self.stderr.contains(part), "expected it to say `{part}`\n{self}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON: {e}\n{self}"))
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, status, took) = (&self.what, self.status, self.took);
        write!(f, "{what}\n{status} after {took:?}\nstdout:\n{}\nstderr:\n{}", self.stdout, self.stderr)
    }
}
