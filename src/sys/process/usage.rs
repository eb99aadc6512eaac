//! What processes use: memory and processor time, from `/proc`.

use std::path::PathBuf;

use super::table::Entry;

/// What some processes use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of memory: what they share is counted once, as far as the kernel tells (proportional set size).
    pub memory: u64,
    /// Processor time in milliseconds, of their ended children too.
    pub cpu_ms: u64,
}

/// What these processes use. A process that may not be examined counts by its resident set.
pub fn usage_of(entries: &[Entry]) -> Usage {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(100);
    let mut usage = Usage::default();
    for entry in entries {
        usage.memory += memory_of(entry.pid);
        usage.cpu_ms += entry.ticks.saturating_mul(1000) / per_second;
    }
    usage
}

fn memory_of(pid: i32) -> u64 {
    let read = |file: &str| std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/{file}"))).ok();
    let kilobytes = |text: &str, word: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(word))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let shared = read("smaps_rollup").and_then(|text| kilobytes(&text, "Pss:"));
    let found = shared.or_else(|| read("status").and_then(|text| kilobytes(&text, "VmRSS:")));
    found.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    #[test]
    fn we_use_memory_and_time() {
        let end = std::time::Instant::now() + std::time::Duration::from_millis(60);
        while std::time::Instant::now() < end {}
        let us = table::entry(std::process::id().cast_signed()).unwrap();
        let usage = usage_of(&[us]);
        assert!(usage.memory > 500_000 && usage.cpu_ms >= 10, "{usage:?}");
    }
}
