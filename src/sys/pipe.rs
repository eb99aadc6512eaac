//! Pipes to others: one small trusted program (sendmail, or this very one as a sender of mail) with bytes on its standard input and a deadline, and
//! descriptors that must not block us.
//!
//! Steps of recipes do not go through here: they have their own, stricter way.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};

use super::error::{Context, Error, Result};
use super::threads;

/// How much of the program's output is kept.
const OUTPUT_LIMIT: u64 = 4096;

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The exit code, if it was not killed.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The beginning of what it wrote to standard output and standard error, as it came.
    pub output: Vec<u8>,
}

/// Runs `program` with `args` in a clean environment, writes `input` to it and waits for `deadline` at most.
///
/// The program runs in its own process group; when the deadline passes the whole group is killed.
///
/// # Errors
/// If it cannot be started or does not end in time. A bad exit status is no error: see [`Ended`].
pub fn run(program: &Path, args: &[&OsStr], input: &[u8], deadline: Duration) -> Result<Ended> {
    let begin = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", super::process::PATH)
        .env("LC_ALL", "C")
        .envs(std::env::var_os("SSL_CERT_FILE").map(|file| ("SSL_CERT_FILE", file)))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(|| format!("cannot start {}", program.display()))?;
    let output = collect(&mut child).inspect_err(|_| kill_group(&mut child))?;
    // Its own thread, because a program that does not read would block us for ever; a broken pipe shows in the status.
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        let writing = threads::start(move || {
            let _ = stdin.write_all(&input);
        });
        writing.inspect_err(|_| kill_group(&mut child))?;
    }
    loop {
        if let Some(status) = child.try_wait().context(|| format!("cannot wait for {}", program.display()))? {
            return Ok(Ended { code: status.code(), signal: status.signal(), output: drain(&output) });
        }
        if begin.elapsed() >= deadline {
            kill_group(&mut child);
            let text = super::escape::visible_bounded(&drain(&output), 200);
            let said = if text.is_empty() { String::new() } else { format!(" (it said: {text})") };
            return Err(Error::failed(format!(
                "{} did not end within {} s{said}",
                program.display(),
                deadline.as_secs_f32()
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads both outputs in threads, which outlive us harmlessly where a grandchild holds the pipe open.
fn collect(child: &mut Child) -> Result<Receiver<Vec<u8>>> {
    let (tell, output) = channel();
    let pipes: [Option<Box<dyn Read + Send>>; 2] =
        [child.stdout.take().map(|p| Box::new(p) as _), child.stderr.take().map(|p| Box::new(p) as _)];
    for mut pipe in pipes.into_iter().flatten() {
        let tell = tell.clone();
        threads::start(move || {
            let mut text = Vec::new();
            let _ = pipe.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut text);
            let _ = tell.send(text);
            let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        })?;
    }
    Ok(output)
}

fn drain(output: &Receiver<Vec<u8>>) -> Vec<u8> {
    let mut text = Vec::new();
    while let Ok(part) = output.recv_timeout(Duration::from_millis(200)) {
        text.extend_from_slice(&part);
    }
    text
}

fn kill_group(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// A pipe or socket that does not block as long as this value lives; its flags are given back when it is dropped.
#[derive(Debug)]
pub struct NonBlocking<'a> {
    fd: BorrowedFd<'a>,
    before: OFlags,
}

impl<'a> NonBlocking<'a> {
    /// Makes a pipe or socket non-blocking; `None` where nothing was changed.
    ///
    /// A terminal is left as it is: its open file description is shared with the shell, which a non-blocking
    /// descriptor would break.
    #[must_use]
    pub fn of_pipe(fd: BorrowedFd<'a>) -> Option<Self> {
        let kind = FileType::from_raw_mode(fstat(fd).ok()?.st_mode);
        if !matches!(kind, FileType::Fifo | FileType::Socket) {
            return None;
        }
        let before = fcntl_getfl(fd).ok()?;
        if before.contains(OFlags::NONBLOCK) {
            return None;
        }
        fcntl_setfl(fd, before | OFlags::NONBLOCK).ok()?;
        Some(Self { fd, before })
    }
}

impl Drop for NonBlocking<'_> {
    fn drop(&mut self) {
        let _ = fcntl_setfl(self.fd, self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: &[u8], deadline: Duration) -> Result<Ended> {
        run(Path::new("/bin/sh"), &["-c", script].map(OsStr::new), input, deadline)
    }

    #[test]
    fn the_program_gets_the_input_and_a_clean_environment() {
        let ended = sh("cat; echo \"$PATH ${HOME-none}\"; exit 3", b"in\n", Duration::from_secs(10)).unwrap();
        assert_eq!(ended.code, Some(3));
        let want = "in\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin none\n";
        assert_eq!(String::from_utf8(ended.output).unwrap(), want);
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children_at_the_deadline() {
        let begin = Instant::now();
        let error = sh("echo $$ waits >&2; sleep 1000 & wait", b"", Duration::from_millis(300)).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
        assert!(error.message().contains("did not end within 0.3 s (it said: "), "{error}");
        let group: i32 = error.message().split("it said: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let state = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), None);
        let zombies_only = state.is_err() || std::fs::read_to_string(format!("/proc/{group}/cmdline")).is_err();
        assert!(zombies_only, "the group lives on: {state:?}");
    }

    #[test]
    fn a_program_that_does_not_read_does_not_block_us() {
        let ended = sh("exit 0", &vec![b'x'; 1 << 20], Duration::from_secs(10)).unwrap();
        assert_eq!(ended.code, Some(0));
    }

    #[test]
    fn a_grandchild_that_holds_the_pipe_does_not_delay_the_end() {
        let begin = Instant::now();
        let ended = sh("echo ok; sleep 3 & exit 0", b"", Duration::from_secs(10)).unwrap();
        assert_eq!(ended.code, Some(0));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}
