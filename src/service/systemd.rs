//! The door to systemd: something is done with a unit, and we wait until it is seen what came of it.
//!
//! `systemctl` returns when the job is done, which says little about a service of `Type=simple`: it is "started" before
//! its program was found to be missing. So the unit is looked at until two looks in a row see the same run of it active.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::project::unit::{UnitAction, UnitName};
use crate::sys::error::{Error, Result};
use crate::sys::escape;
use crate::sys::process::{self, StepStatus, StepWatcher, run_captured};
use crate::sys::step_exec::StepOrder;
use crate::sys::{fs, machine};

pub mod backend;
mod seen;
mod unit;

/// Between two looks at a unit.
const LOOK: Duration = Duration::from_millis(500);
/// How long one question may take.
const QUESTION: Duration = Duration::from_secs(20);
/// How many lines of a unit's journal are told when it failed.
const JOURNAL_LINES: &str = "20";
/// The longest line of it.
const LINE_LIMIT: usize = 2048;

/// A service manager that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manager {
    /// That of the machine.
    System,
    /// That of one user, with its runtime directory.
    User(PathBuf),
}

/// What is known of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// `active`, `inactive`, `failed`, `activating` …
    pub active: String,
    /// `running`, `exited`, `auto-restart` …
    pub sub: String,
    /// `success`, `exit-code` …
    pub result: String,
    /// `simple`, `oneshot` …; empty for what is no service.
    pub kind: String,
    /// Which run of it this is.
    pub invocation: String,
}

/// What a look means for an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is as it was asked to be.
    Good,
    /// It is not, and will not become so.
    Bad(String),
    /// It is on its way.
    Unsettled,
}

impl Manager {
    /// The manager that we can ask: that of the machine for root, our own otherwise.
    ///
    /// # Errors
    /// A refusal where there is none.
    pub fn find() -> Result<Self> {
        let uid = rustix::process::geteuid();
        let no_systemd = "systemd does not run here, so no step can ask for a unit";
        if !machine::runs_systemd() {
            return Err(Error::refused(no_systemd).hint("start and stop services with steps of your own: - run: …"));
        }
        if uid.is_root() {
            return Ok(Self::System);
        }
        let runtime = PathBuf::from(format!("/run/user/{}", uid.as_raw()));
        if fs::exists(&runtime.join("systemd/private")) {
            return Ok(Self::User(runtime));
        }
        Err(Error::refused(format!(
            "no systemd of the user {} runs, so no step can ask for a unit",
            process::user_name()
        ))
        .hint(format!("loginctl enable-linger {}", process::user_name())))
    }

    /// Does something with a unit and waits, at most `limit`, until it is seen what came of it. What systemctl and, after a
    /// failure, the unit's journal say goes to `on`.
    ///
    /// # Errors
    /// If we cannot do our own part; a unit that fails is a status.
    pub fn act(
        &self,
        action: UnitAction,
        unit: &UnitName,
        limit: Duration,
        on: &mut dyn StepWatcher,
    ) -> Result<std::result::Result<(), String>> {
        let deadline = Instant::now() + limit;
        let argv = ["systemctl", "--no-ask-password", "--no-pager"].into_iter().map(OsString::from);
        // While the machine boots, the unit may be ordered after us: it is asked for, and not waited for.
        let no_block = machine::at_boot().then(|| OsString::from("--no-block"));
        let argv = argv.chain(self.option()).chain(no_block.clone());
        let argv = argv.chain([action.word(), "--", unit.as_str()].map(OsString::from));
        let order = StepOrder::new(argv.collect(), self.environment().into_iter().collect(), PathBuf::from("/"));
        let ended = process::run_step(&order, limit, on)?;
        let status = match ended.status {
            StepStatus::Ok if no_block.is_some() => Ok(()),
            StepStatus::Ok => self.settle(action, unit, deadline, on)?,
            StepStatus::Timeout => Err("timeout".to_string()),
            other => Err(other.words()),
        };
        if status.is_err() {
            for line in self.journal(unit)? {
                on.line(&line);
            }
        }
        Ok(status)
    }

    fn settle(
        &self,
        action: UnitAction,
        unit: &UnitName,
        deadline: Instant,
        on: &mut dyn StepWatcher,
    ) -> Result<std::result::Result<(), String>> {
        let mut before: Option<Look> = None;
        let mut ticked = Instant::now();
        loop {
            let look = self.look(unit)?;
            match state(action, &look) {
                State::Bad(reason) => return Ok(Err(format!("{unit} {reason}"))),
                State::Good if before.as_ref() == Some(&look) => return Ok(Ok(())),
                State::Good | State::Unsettled => {}
            }
            if Instant::now() + LOOK > deadline {
                return Ok(Err(format!("timeout; {unit} is {} ({})", look.active, look.sub)));
            }
            before = Some(look);
            std::thread::sleep(LOOK);
            if ticked.elapsed() >= process::TICK {
                ticked = Instant::now();
                on.tick();
            }
        }
    }

    /// Looks at a unit.
    ///
    /// # Errors
    /// If systemctl does not answer.
    pub fn look(&self, unit: &UnitName) -> Result<Look> {
        let properties = "--property=ActiveState,SubState,Result,Type,InvocationID";
        let args = ["--no-pager"].into_iter().map(OsString::from).chain(self.option());
        let args: Vec<OsString> = args.chain(["show", properties, "--", unit.as_str()].map(OsString::from)).collect();
        let captured = run_captured("systemctl", &args, &self.environment(), b"", QUESTION)?;
        if !captured.status.is_ok() {
            let words = format!("{}: {}", captured.status.words(), captured.last_words());
            return Err(Error::failed(format!("cannot ask systemd about {unit}: {words}")));
        }
        Ok(parse_look(&String::from_utf8_lossy(&captured.stdout)))
    }

    /// The last lines of a unit's journal; none where it cannot be read.
    fn journal(&self, unit: &UnitName) -> Result<Vec<Vec<u8>>> {
        let which = match self {
            Self::System => "--unit=",
            Self::User(_) => "--user-unit=",
        };
        let args = [&format!("{which}{unit}"), "-n", JOURNAL_LINES, "--no-pager", "-q", "-o", "cat"];
        let captured = run_captured("journalctl", &args, &self.environment(), b"", QUESTION)?;
        if !captured.status.is_ok() {
            return Ok(Vec::new());
        }
        let lines = captured.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        Ok(lines.map(|line| escape::output_line(line, LINE_LIMIT).into_bytes()).collect())
    }

    fn option(&self) -> Option<OsString> {
        matches!(self, Self::User(_)).then(|| "--user".into())
    }

    /// The environment of the programs with which it is asked.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        let mut env = process::base_environment(Path::new("/"));
        env.insert("SYSTEMD_COLORS".into(), "0".into());
        if let Self::User(runtime) = self {
            env.insert("XDG_RUNTIME_DIR".into(), runtime.display().to_string());
        }
        env
    }
}

/// Reads what `systemctl show` prints.
fn parse_look(text: &str) -> Look {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().to_string()
    };
    Look {
        active: value("ActiveState"),
        sub: value("SubState"),
        result: value("Result"),
        kind: value("Type"),
        invocation: value("InvocationID"),
    }
}

/// What a look means after an action.
fn state(action: UnitAction, look: &Look) -> State {
    let active = look.active.as_str();
    if action == UnitAction::Stop {
        // One that was killed while it was stopped, or had failed before, is stopped all the same.
        return if matches!(active, "inactive" | "failed") { State::Good } else { State::Unsettled };
    }
    match active {
        "active" => State::Good,
        "failed" => State::Bad(format!("failed ({})", look.result)),
        // It waits to be started once more: it died right after its start.
        "activating" if look.sub == "auto-restart" => State::Bad(format!("died after its start ({})", look.result)),
        // One that does its work and ends.
        "inactive" if look.kind == "oneshot" && look.result == "success" => State::Good,
        "inactive" => State::Bad("is inactive".to_string()),
        _ => State::Unsettled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(active: &str, sub: &str, result: &str, kind: &str) -> Look {
        Look {
            active: active.into(),
            sub: sub.into(),
            result: result.into(),
            kind: kind.into(),
            invocation: "1".into(),
        }
    }

    #[test]
    fn what_systemctl_shows_is_read() {
        let text = "Type=simple\nResult=success\nActiveState=active\nSubState=running\nInvocationID=1\n";
        assert_eq!(parse_look(text), look("active", "running", "success", "simple"));
        assert_eq!(parse_look(""), Look::default());
    }

    #[test]
    fn a_unit_is_waited_for_until_it_is_what_was_asked() {
        let bad = |look: &Look, action| matches!(state(action, look), State::Bad(_));
        let running = look("active", "running", "success", "simple");
        let failed = look("failed", "failed", "exit-code", "simple");
        for action in [UnitAction::Start, UnitAction::Restart, UnitAction::Reload] {
            assert_eq!(state(action, &running), State::Good);
            assert!(bad(&failed, action));
            assert_eq!(state(action, &look("activating", "start", "success", "notify")), State::Unsettled);
            assert_eq!(state(action, &look("reloading", "reload", "success", "notify")), State::Unsettled);
            assert!(bad(&look("activating", "auto-restart", "exit-code", "simple"), action));
            assert_eq!(state(action, &look("inactive", "dead", "success", "oneshot")), State::Good);
            assert!(bad(&look("inactive", "dead", "success", "simple"), action));
        }
        assert_eq!(state(UnitAction::Stop, &running), State::Unsettled);
        assert_eq!(state(UnitAction::Stop, &failed), State::Good);
        assert_eq!(state(UnitAction::Stop, &look("inactive", "dead", "success", "simple")), State::Good);
        assert_eq!(
            state(UnitAction::Stop, &look("deactivating", "stop-sigterm", "success", "simple")),
            State::Unsettled
        );
    }
}
