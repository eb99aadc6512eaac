//! What systemd says of the units of services, read into what every back end tells.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::project::recipe::service::Kind;
use crate::service::backend::State;
use crate::sys::clock;

/// What is asked of each unit.
pub const PROPERTIES: &str = "--property=Id,ActiveState,SubState,Result,InvocationID,NRestarts,MainPID,MemoryCurrent,\
                              CPUUsageNSec,StateChangeTimestampMonotonic,ExecMainCode,ExecMainStatus,\
                              NeedDaemonReload";

/// What is known of one unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen(BTreeMap<String, String>);

/// Reads the blocks that `systemctl show` prints, one for each unit.
#[must_use]
pub fn parse(text: &str) -> Vec<Seen> {
    let block = |block: &str| {
        let pairs = block.lines().filter_map(|line| line.split_once('='));
        Seen(pairs.map(|(key, value)| (key.to_string(), value.to_string())).collect())
    };
    text.split("\n\n").filter(|text| !text.trim().is_empty()).map(block).collect()
}

impl Seen {
    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn number(&self, key: &str) -> Option<u64> {
        // What is not counted is told as the largest number, or in words.
        self.text(key).parse().ok().filter(|number| *number != u64::MAX)
    }

    /// The unit's name.
    #[must_use]
    pub fn unit(&self) -> &str {
        self.text("Id")
    }

    /// Whether its file is another one than systemd has read.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.text("NeedDaemonReload") == "yes"
    }

    /// How the instance is.
    #[must_use]
    pub fn state(&self) -> State {
        match (self.text("ActiveState"), self.text("SubState")) {
            ("active", "exited") => State::Done,
            ("active" | "reloading", _) => State::Running,
            ("activating", "auto-restart") => State::Waiting,
            ("activating", _) => State::Starting,
            ("deactivating", _) => State::Stopping,
            ("failed", _) => State::Failed,
            _ => State::Stopped,
        }
    }

    /// How its program ended last, if that was not well: `exit 3`.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        match self.text("Result") {
            "" | "success" => None,
            "timeout" => Some("not in time".to_string()),
            "oom-kill" => Some("out of memory".to_string()),
            "exit-code" => Some(format!("exit {}", self.text("ExecMainStatus"))),
            "signal" | "core-dump" => {
                let signal = self.number("ExecMainStatus").and_then(|number| i32::try_from(number).ok());
                let signal = signal.and_then(|number| nix::sys::signal::Signal::try_from(number).ok());
                Some(signal.map_or_else(|| "killed".to_string(), |signal| format!("killed by {signal}")))
            }
            other => Some(other.to_string()),
        }
    }

    /// Whether it has come up, or why it will not; `None`: that is not known yet.
    #[must_use]
    pub fn verdict(&self, kind: Kind) -> Option<std::result::Result<(), String>> {
        let end = || self.end().unwrap_or_else(|| "exit 0".to_string());
        match self.state() {
            State::Running if kind != Kind::Oneshot => Some(Ok(())),
            State::Done => Some(Ok(())),
            State::Waiting => Some(Err(format!("died after its start ({})", end()))),
            State::Failed => Some(Err(format!("failed ({})", end()))),
            State::Stopped => Some(Err(format!("ended after its start ({})", end()))),
            State::Running | State::Starting | State::Stopping => None,
        }
    }

    /// Which run of the unit this is: another one each time that it is started, by whomever.
    #[must_use]
    pub fn run(&self) -> (String, Option<u64>) {
        (self.text("InvocationID").to_string(), self.number("NRestarts"))
    }

    /// Its first process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.number("MainPID").and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0)
    }

    /// How often systemd started it again.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.number("NRestarts").and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
    }

    /// Bytes of memory.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        self.number("MemoryCurrent")
    }

    /// Milliseconds of processor time.
    #[must_use]
    pub fn cpu_ms(&self) -> Option<u64> {
        self.number("CPUUsageNSec").map(|nanoseconds| nanoseconds / 1_000_000)
    }

    /// Since when it is as it is.
    #[must_use]
    pub fn since(&self) -> Option<jiff::Timestamp> {
        let micros = self.number("StateChangeTimestampMonotonic").filter(|micros| *micros > 0)?;
        let ago = clock::monotonic().saturating_sub(Duration::from_micros(micros));
        clock::now().checked_sub(ago).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(active: &str, sub: &str, result: &str, status: &str) -> Seen {
        let text = format!(
            "Id=mc-shop.web@1.service\nActiveState={active}\nSubState={sub}\nResult={result}\nExecMainStatus={status}\n\
             MainPID=0\nNRestarts=2\nMemoryCurrent=18446744073709551615\nCPUUsageNSec=2500000\nInvocationID=ab\n"
        );
        parse(&text).remove(0)
    }

    #[test]
    fn what_systemctl_shows_of_several_units_is_read() {
        let all = parse("Id=a\nMainPID=7\nMemoryCurrent=[not set]\nNeedDaemonReload=yes\n\nId=b\nMemoryCurrent=5\n");
        assert_eq!(all.iter().map(Seen::unit).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((all[0].pid(), all[0].memory(), all[1].memory()), (Some(7), None, Some(5)));
        assert!(all[0].is_outdated() && !all[1].is_outdated());
        let web = seen("active", "running", "success", "0");
        assert_eq!((web.pid(), web.restarts(), web.memory(), web.cpu_ms()), (None, 2, None, Some(2)));
    }

    #[test]
    fn a_unit_is_up_or_not_or_that_is_not_known_yet() {
        let verdict = |seen: &Seen| seen.verdict(Kind::Simple);
        assert_eq!(verdict(&seen("active", "running", "success", "0")), Some(Ok(())));
        assert_eq!(verdict(&seen("activating", "start", "success", "0")), None);
        let died = Some(Err("died after its start (exit 3)".to_string()));
        assert_eq!(verdict(&seen("activating", "auto-restart", "exit-code", "3")), died);
        let killed = Some(Err("failed (killed by SIGKILL)".to_string()));
        assert_eq!(verdict(&seen("failed", "failed", "signal", "9")), killed);
        assert_eq!(
            verdict(&seen("inactive", "dead", "success", "0")),
            Some(Err("ended after its start (exit 0)".into()))
        );
        assert_eq!(seen("active", "exited", "success", "0").verdict(Kind::Oneshot), Some(Ok(())));
        assert_eq!(seen("active", "running", "success", "0").verdict(Kind::Oneshot), None);
    }
}
