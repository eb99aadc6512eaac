//! Time: wall time for labels, the time since boot for deadlines, and the boot's identity.

use std::time::Duration;

/// The time since boot, suspended time included (`CLOCK_BOOTTIME`); it never jumps.
#[must_use]
pub fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
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
