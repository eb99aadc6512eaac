//! Time: wall time for labels, the time since boot for deadlines, and the boot's identity.

use std::time::Duration;

/// The time since boot, suspended time included (`CLOCK_BOOTTIME`); it never jumps.
#[must_use]
pub fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The time since boot without suspended time (`CLOCK_MONOTONIC`): systemd's stamps are by this clock.
#[must_use]
pub fn monotonic() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The time since the first process of this system started. In a container that is shorter than the time since boot,
/// which is its machine's and goes on over its own restarts.
#[must_use]
pub fn since_start() -> Duration {
    let stat = super::fs::read_text(std::path::Path::new("/proc/1/stat")).unwrap_or_default();
    // The second field, a name in parentheses, may hold anything (proc(5), field 22).
    let ticks = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19)?.parse::<u64>().ok());
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(100);
    let started = Duration::from_millis(ticks.unwrap_or(0).saturating_mul(1000) / per_second);
    since_boot().saturating_sub(started)
}

/// The wall clock's time; only a label, nothing is ordered by it.
#[must_use]
pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// Identifies the running boot of the machine (`/proc/sys/kernel/random/boot_id`).
#[must_use]
pub fn boot_id() -> String {
    super::fs::read_text(std::path::Path::new("/proc/sys/kernel/random/boot_id"))
        .map(|text| text.trim().to_string())
        .unwrap_or_default()
}
