//! The process table (`/proc`): who descends from whom, and the end of everything that a step left behind.
//!
//! While a step runs, the worker is a *subreaper*: whatever the step starts and abandons becomes the worker's child,
//! whether it opened its own session or not, so that all of it stands below the worker. What stood there before the step
//! began, and what lives in the worker's own session (a step cannot come back into it), is not the step's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use crate::sys::error::{Context, Result};

/// How long we go on killing.
const PERSISTENCE: Duration = Duration::from_secs(10);

/// What identifies a process for good: a process id alone is used again.
pub type Identity = (i32, u64);

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its process id.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its session.
    pub session: i32,
    /// Whether it has ended and only its parent has not asked yet.
    pub is_zombie: bool,
    /// When it started, in clock ticks since boot.
    pub start: u64,
    /// The processor time of it and of those of its children that have ended, in clock ticks.
    pub ticks: u64,
}

impl Entry {
    /// Its identity.
    pub fn identity(&self) -> Identity {
        (self.pid, self.start)
    }
}

/// Every process id there is.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn pids() -> Result<Vec<i32>> {
    let entries = std::fs::read_dir("/proc").context(|| "cannot read /proc".into())?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Every process there is.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn table() -> Result<Vec<Entry>> {
    Ok(pids()?.into_iter().filter_map(entry).collect())
}

/// One process; `None` if it is gone.
pub fn entry(pid: i32) -> Option<Entry> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // `pid (name) state ppid pgrp session ... starttime`: the name may hold blanks and brackets.
    let after = &stat[memchr::memrchr(b')', &stat)? + 1..];
    let fields: Vec<&str> = std::str::from_utf8(after).ok()?.split_ascii_whitespace().collect();
    Some(Entry {
        pid,
        is_zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
        ticks: fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum(),
    })
}

/// Our children.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn our_children() -> Result<BTreeSet<Identity>> {
    let us = std::process::id().cast_signed();
    Ok(table()?.iter().filter(|entry| entry.parent == us).map(Entry::identity).collect())
}

/// Everything below us except what lives in our session and what descends from `spared`.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn below_us(spared: &BTreeSet<Identity>) -> Result<Vec<Entry>> {
    let us = std::process::id().cast_signed();
    let session = nix::unistd::getsid(None).context(|| "cannot ask for our session".into())?.as_raw();
    let is_step = |entry: &Entry| entry.parent == us && entry.session != session && !spared.contains(&entry.identity());
    Ok(with_descendants(&table()?, is_step))
}

/// A process and everything below it.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn below(pid: i32) -> Result<Vec<Entry>> {
    Ok(with_descendants(&table()?, |entry| entry.pid == pid))
}

fn with_descendants(table: &[Entry], is_root: impl Fn(&Entry) -> bool) -> Vec<Entry> {
    let mut children: BTreeMap<i32, Vec<Entry>> = BTreeMap::new();
    for entry in table {
        children.entry(entry.parent).or_default().push(*entry);
    }
    let mut found: Vec<Entry> = table.iter().filter(|entry| is_root(entry)).copied().collect();
    let mut next = 0;
    while let Some(entry) = found.get(next) {
        let below = children.get(&entry.pid).cloned().unwrap_or_default();
        found.extend(below);
        next += 1;
    }
    found
}

/// Kills everything below us except `spared`, until nothing is left; returns what does not die.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn sweep(spared: &BTreeSet<Identity>) -> Result<Vec<i32>> {
    let us = std::process::id().cast_signed();
    kill_until_gone(|| {
        let mut alive = below_us(spared)?;
        for zombie in alive.iter().filter(|entry| entry.is_zombie && entry.parent == us) {
            // Not waitpid(-1): other children of ours have others who wait for them.
            let _ = rustix::process::waitpid(Pid::from_raw(zombie.pid), WaitOptions::NOHANG);
        }
        alive.retain(|entry| !entry.is_zombie);
        Ok(alive)
    })
}

/// Kills those of `known` that still live; returns what does not die.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn kill_known(known: &[Entry]) -> Result<Vec<i32>> {
    let is_same = |now: &Entry, then: &Entry| now.start == then.start && !now.is_zombie;
    kill_until_gone(|| {
        let alive = |then: &Entry| entry(then.pid).filter(|now| is_same(now, then));
        Ok(known.iter().filter_map(alive).collect())
    })
}

/// Kills every process whose environment sets [`super::MARKER`] to a value that begins with `prefix`, except us;
/// returns what does not die. For the leftovers of a worker that was killed.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn kill_marked(prefix: &str) -> Result<Vec<i32>> {
    kill_with_variable(super::step::MARKER, prefix)
}

/// Kills every process whose environment sets `variable` to a value that begins with `prefix`, except us.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn kill_with_variable(variable: &str, prefix: &str) -> Result<Vec<i32>> {
    let wanted = format!("{variable}={prefix}");
    let us = std::process::id().cast_signed();
    kill_until_gone(|| {
        let is_marked = |entry: &Entry| {
            entry.pid != us
                && !entry.is_zombie
                && environment(entry.pid).split(|b| *b == 0).any(|line| line.starts_with(wanted.as_bytes()))
        };
        Ok(table()?.into_iter().filter(is_marked).collect())
    })
}

/// What lives of a service: its first process and everything below that, its session, and whatever its marker is in the
/// environment of, wherever it fled to.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn living(first: Option<i32>, variable: &str, marker: &str) -> Result<Vec<Entry>> {
    let mark = format!("{variable}={marker}");
    let is_marked = |pid: i32| environment(pid).split(|b| *b == 0).any(|line| line == mark.as_bytes());
    let all = table()?;
    let is_of_it =
        |entry: &Entry| first.is_some_and(|first| [entry.pid, entry.session].contains(&first)) || is_marked(entry.pid);
    let mut found: BTreeMap<i32, Entry> = BTreeMap::new();
    found.extend(with_descendants(&all, is_of_it).into_iter().map(|entry| (entry.pid, entry)));
    Ok(found.into_values().filter(|entry| !entry.is_zombie).collect())
}

/// The values that `variable` has in the environments of living processes, each with its process.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn marked(variable: &str, prefix: &str) -> Result<Vec<(Entry, String)>> {
    let mark = format!("{variable}=");
    let value = |entry: &Entry| {
        let found = environment(entry.pid);
        let value = found.split(|b| *b == 0).find_map(|line| line.strip_prefix(mark.as_bytes()))?;
        String::from_utf8(value.to_vec()).ok().filter(|value| value.starts_with(prefix))
    };
    let living = table()?.into_iter().filter(|entry| !entry.is_zombie);
    Ok(living.filter_map(|entry| Some((entry, value(&entry)?))).collect())
}

/// Ends these processes by force: all are stopped before the first is killed, since what does not run cannot start
/// another one meanwhile.
pub fn kill_all(found: &[Entry]) {
    for signal in [Signal::STOP, Signal::KILL] {
        for entry in found {
            send(entry, signal);
        }
    }
}

/// Sends KILL to these processes and tells which of them still live.
pub fn kill_these(pids: &[i32]) -> Vec<i32> {
    let alive: Vec<Entry> = pids.iter().filter_map(|pid| entry(*pid)).filter(|entry| !entry.is_zombie).collect();
    for entry in &alive {
        send(entry, Signal::KILL);
    }
    alive.iter().map(|entry| entry.pid).collect()
}

/// The environment of a process as it began; empty if we may not know.
fn environment(pid: i32) -> Vec<u8> {
    std::fs::read(PathBuf::from(format!("/proc/{pid}/environ"))).unwrap_or_default()
}

/// Whether a process was started with this variable set to this value; no where it cannot be read.
#[must_use]
pub fn has_variable(pid: i32, name: &str, value: &str) -> bool {
    let wanted = format!("{name}={value}");
    environment(pid).split(|b| *b == 0).any(|line| line == wanted.as_bytes())
}

fn kill_until_gone(mut alive: impl FnMut() -> Result<Vec<Entry>>) -> Result<Vec<i32>> {
    let end = Instant::now() + PERSISTENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        let found = alive()?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        if Instant::now() >= end {
            return Ok(found.iter().map(|entry| entry.pid).collect());
        }
        kill_all(&found);
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Sends a signal to exactly this process, never to another one that got its number.
pub fn send(entry: &Entry, signal: Signal) {
    let Some(pid) = Pid::from_raw(entry.pid) else { return };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => {
            if self::entry(entry.pid).is_some_and(|now| now.start == entry.start) {
                let _ = rustix::process::pidfd_send_signal(fd, signal);
            }
        }
        // Linux < 5.3; the number is fresh from the table.
        Err(rustix::io::Errno::NOSYS) => {
            let _ = rustix::process::kill_process(pid, signal);
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_find_ourselves_and_our_parent() {
        let us = entry(std::process::id().cast_signed()).unwrap();
        assert_eq!(us.parent, nix::unistd::getppid().as_raw());
        assert_eq!(us.session, nix::unistd::getsid(None).unwrap().as_raw());
        assert!(us.start > 0 && !us.is_zombie);
        assert!(table().unwrap().iter().any(|entry| entry.identity() == us.identity()));
    }

    #[test]
    fn what_lives_in_our_session_or_was_there_before_is_not_swept() {
        let mut ours = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let mut before = std::process::Command::new("setsid").args(["sleep", "100"]).spawn().unwrap();
        let wait_for = |check: &dyn Fn() -> bool| {
            for _ in 0..500 {
                if check() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            panic!("it did not happen");
        };
        let before_pid = before.id().cast_signed();
        wait_for(&|| entry(before_pid).unwrap().session == before_pid);
        let spared = our_children().unwrap();
        let is_there = |pid: u32, spared: &BTreeSet<Identity>| {
            below_us(spared).unwrap().iter().any(|e| e.pid == pid.cast_signed())
        };
        assert!(!is_there(ours.id(), &BTreeSet::new()));
        assert!(is_there(before.id(), &BTreeSet::new()));
        assert!(!is_there(before.id(), &spared));
        for child in [&mut ours, &mut before] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
