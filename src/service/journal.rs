//! What the units of services wrote, read from systemd's journal.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::backend::{LogLine, LogQuery};
use super::definition::Instance;
use super::systemd::Manager;
use crate::sys::error::{Error, Result};
use crate::sys::mask::Mask;
use crate::sys::process::{StepStatus, StepWatcher, Tick, run_step};
use crate::sys::step_exec::StepOrder;

/// How long the reading of what is there may take.
const READING: Duration = Duration::from_mins(10);
/// As long as anybody follows.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// Hands the lines of units to `each` until there are no more or it says no.
///
/// # Errors
/// If the journal cannot be read.
pub fn read(
    units: &[(String, Instance)],
    query: &LogQuery,
    secrets: &[String],
    each: &mut dyn FnMut(&LogLine) -> bool,
) -> Result<()> {
    if units.is_empty() {
        return Ok(());
    }
    let mut argv: Vec<OsString> =
        ["journalctl", "--no-pager", "--quiet", "--all", "--output=json"].map(OsString::from).to_vec();
    // What systemd itself says of a unit is written by process 1, which belongs to another one.
    let of = if query.own { "_SYSTEMD_UNIT=" } else { "--unit=" };
    argv.extend(units.iter().map(|(unit, _)| OsString::from(format!("{of}{unit}"))));
    argv.push(match query.last {
        Some(count) => format!("--lines={count}").into(),
        None => "--lines=all".into(),
    });
    argv.extend(query.since.map(|since| OsString::from(format!("--since=@{}", since.as_second()))));
    argv.extend(query.follow.then(|| "--follow".into()));
    let env = Manager::System.environment().into_iter().collect();
    let order = StepOrder::new(argv, env, PathBuf::from("/"));
    let mut reading =
        Reading { units, mask: Mask::new(secrets), each, since: query.since, goes_on: true, last: Vec::new() };
    let limit = if query.follow { FOREVER } else { READING };
    let status = run_step(&order, limit, &mut reading)?.status;
    match status {
        StepStatus::Ok | StepStatus::Cancelled => Ok(()),
        other => {
            let said = crate::sys::escape::output_line(&reading.last, 300);
            Err(Error::failed(format!("cannot read the journal: {}: {said}", other.words())))
        }
    }
}

struct Reading<'a> {
    units: &'a [(String, Instance)],
    mask: Mask,
    each: &'a mut dyn FnMut(&LogLine) -> bool,
    since: Option<jiff::Timestamp>,
    goes_on: bool,
    last: Vec<u8>,
}

impl StepWatcher for Reading<'_> {
    fn line(&mut self, line: &[u8]) {
        // What is no entry is what journalctl says itself.
        let Ok(entry) = serde_json::from_slice::<Value>(line) else {
            self.last = line.to_vec();
            return;
        };
        if self.goes_on
            && let Some(mut told) = self.entry(&entry)
            // journalctl was asked for whole seconds.
            && self.since.is_none_or(|since| told.at >= since)
        {
            told.text = self.mask.line(&told.text).into_owned();
            self.goes_on = (self.each)(&told);
        }
    }

    fn tick(&mut self) -> Tick {
        if self.goes_on { Tick::GoOn } else { Tick::Cancel }
    }
}

impl Reading<'_> {
    fn entry(&self, entry: &Value) -> Option<LogLine> {
        let text_of = |key: &str| entry.get(key).and_then(Value::as_str);
        // What systemd says about a unit names it in another field than what the unit wrote.
        let unit = text_of("UNIT").or_else(|| text_of("_SYSTEMD_UNIT"))?;
        let (_, instance) = self.units.iter().find(|(name, _)| name == unit)?;
        let micros: i64 = text_of("__REALTIME_TIMESTAMP")?.parse().ok()?;
        let at = jiff::Timestamp::from_microsecond(micros).ok()?;
        let text = match entry.get("MESSAGE")? {
            Value::String(text) => text.clone().into_bytes(),
            // Bytes that are no text.
            Value::Array(bytes) => {
                bytes.iter().filter_map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok())).collect()
            }
            _ => return None,
        };
        Some(LogLine { at, instance: instance.clone(), text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_journal_is_a_line_of_its_instance_without_secrets() {
        let instance = Instance { service: "web".parse().unwrap(), number: 1 };
        let units = [("mc-shop.web@1.service".to_string(), instance.clone())];
        let mut told: Vec<LogLine> = Vec::new();
        let mut each = |line: &LogLine| {
            told.push(line.clone());
            told.len() < 2
        };
        let since = jiff::Timestamp::from_millisecond(1_699_999_999_500).unwrap();
        let mask = Mask::new(&["hunter2secret".to_string()]);
        let mut reading =
            Reading { units: &units, mask, each: &mut each, since: Some(since), goes_on: true, last: Vec::new() };
        let of = |unit: &str, message: &str| {
            format!(
                r#"{{"__REALTIME_TIMESTAMP":"1700000000000000",{unit}:"mc-shop.web@1.service","MESSAGE":{message}}}"#
            )
        };
        reading.line(of(r#""_SYSTEMD_UNIT""#, r#""token hunter2secret""#).as_bytes());
        reading.line(br#"{"__REALTIME_TIMESTAMP":"1","_SYSTEMD_UNIT":"other.service","MESSAGE":"x"}"#);
        reading.line(b"-- no entry");
        let old = of(r#""_SYSTEMD_UNIT""#, r#""of the start before""#);
        reading.line(old.replace("1700000000000000", "1699999999400000").as_bytes());
        assert_eq!(reading.tick(), Tick::GoOn);
        reading.line(of(r#""UNIT""#, "[255,104,105]").as_bytes());
        assert_eq!(reading.tick(), Tick::Cancel);
        reading.line(of(r#""UNIT""#, r#""more""#).as_bytes());
        assert_eq!(told.len(), 2);
        assert_eq!((told[0].text.as_slice(), &told[0].instance), (&b"token [secret]"[..], &instance));
        assert_eq!((told[1].text.as_slice(), told[0].at.as_second()), (&b"\xffhi"[..], 1_700_000_000));
    }
}
