//! Runs a program of the developer's own machine (git, ssh) beside us: with our environment and in our process group, so
//! that it can ask at the terminal and ends with ^C as we do.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::relayed::{Manner, run};
use super::{Said, StepStatus, Tick};
use crate::sys::error::{Error, Result};
use crate::sys::fs::File;

/// What the program reads.
#[derive(Debug)]
pub enum Input {
    /// Nothing.
    None,
    /// Our own standard input.
    Ours,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file from its beginning.
    File(File),
}

/// One program to be run.
#[derive(Debug)]
pub struct Beside {
    /// The program, looked up in our `PATH`, and its arguments.
    pub argv: Vec<OsString>,
    /// Variables that are set besides our own.
    pub env: Vec<(&'static str, OsString)>,
    /// Variables of ours that it does not get.
    pub without: &'static [&'static str],
    /// Where it works; `None`: where we do.
    pub dir: Option<PathBuf>,
    /// What it reads.
    pub input: Input,
    /// Whether its standard output is ours; else its lines are handed on.
    pub shows: bool,
    /// How often `on` is asked whether to go on.
    pub every: Duration,
}

impl Beside {
    /// A program that reads nothing, and whose lines are handed on.
    #[must_use]
    pub fn new(argv: Vec<OsString>) -> Self {
        Self {
            argv,
            env: Vec::new(),
            without: &[],
            dir: None,
            input: Input::None,
            shows: false,
            every: Duration::from_secs(1),
        }
    }
}

/// Runs it to its end. `on` gets the lines of its outputs, standard error always; what it answers to [`Said::Runs`] decides
/// whether the program is killed.
///
/// # Errors
/// If it cannot be started or waited for.
pub fn run_beside(order: Beside, on: &mut dyn FnMut(Said<'_>) -> Tick) -> Result<StepStatus> {
    let Some((program, rest)) = order.argv.split_first() else { return Err(Error::bug("no program was named")) };
    let mut command = Command::new(program);
    for name in order.without {
        command.env_remove(name);
    }
    command.args(rest).envs(order.env).stderr(Stdio::piped());
    command.stdout(if order.shows { Stdio::inherit() } else { Stdio::piped() });
    if let Some(dir) = order.dir {
        command.current_dir(dir);
    }
    let mut feed = Vec::new();
    command.stdin(match order.input {
        Input::None => Stdio::null(),
        Input::Ours => Stdio::inherit(),
        Input::File(file) => Stdio::from(file),
        Input::Bytes(bytes) => {
            feed = bytes;
            Stdio::piped()
        }
    });
    super::runtime()?.block_on(run(command, Manner { own_group: false, every: order.every, feed }, on))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, change: impl FnOnce(&mut Beside)) -> (StepStatus, Vec<String>) {
        let mut order = Beside::new(vec!["sh".into(), "-c".into(), script.into()]);
        change(&mut order);
        let mut heard = Vec::new();
        let status = run_beside(order, &mut |said| {
            match said {
                Said::Out(line) => heard.push(format!("out {}", String::from_utf8_lossy(line))),
                Said::Err(line) => heard.push(format!("err {}", String::from_utf8_lossy(line))),
                Said::Runs => {}
            }
            Tick::GoOn
        });
        heard.sort();
        (status.unwrap(), heard)
    }

    #[test]
    fn it_has_our_environment_and_group_and_what_is_set_besides() {
        let (status, heard) = sh("echo $PATH; echo $MC_X; ps -o pgid= -p $$; exit 4", |order| {
            order.env.push(("MC_X", "set".into()));
        });
        let group = nix::unistd::getpgrp().as_raw().to_string();
        assert_eq!(status, StepStatus::Exit(4));
        let has = |text: &str| heard.iter().any(|line| line.trim_start_matches("out").trim() == text);
        assert!(has("set") && has(&group) && has(&std::env::var("PATH").unwrap()), "{heard:?}");
    }

    #[test]
    fn it_reads_bytes_or_a_file_or_nothing() {
        let big = vec![b'x'; 300_000];
        let (status, heard) = sh("wc -c", |order| order.input = Input::Bytes(big));
        assert_eq!((status, heard[0].trim_start_matches("out").trim()), (StepStatus::Ok, "300000"));
        let file = crate::sys::fs::open_read(std::path::Path::new("/proc/self/status")).unwrap();
        assert!(sh("head -c5", |order| order.input = Input::File(file)).1[0].contains("Name"));
        assert_eq!(sh("cat; echo end >&2", |_| ()).1, ["err end"]);
        // A program that ends without reading is no fault of ours.
        assert_eq!(sh("exit 0", |order| order.input = Input::Bytes(vec![b'x'; 300_000])).0, StepStatus::Ok);
    }
}
