//! Named fault points: places where a test can kill, fail or stop the program.
//!
//! `MC_FAIL=<point>[:n]=kill|error:ERRNO|sleep:MS|stop` acts at the n-th passage of the point (first if unset);
//! `MC_FAIL_TRACE=FILE` writes down every point that is passed.
//! The build feature `failpoints` compiles them in; without it [`point`] is nothing.

use super::error::Result;

/// Every fault point, in the order in which a deployment passes them. A test holds this list complete.
pub const POINTS: &[&str] = &[
    "begin.recorded",
    "accept.caught-up",
    "checkout.project",
    "checkout.pillar",
    "build.tree-ready",
    "build.done",
    "fetch.downloaded",
    "fetch.verified",
    "store.ingested",
    "candidate.dirty",
    "candidate.applying",
    "candidate.done",
    "stop.before",
    "services.stopped",
    "stop.done",
    "backup.copied",
    "backup.done",
    "deploy.intent",
    "deploy.exchanged",
    "deploy.synced",
    "in-place.applying",
    "touched.recorded",
    "services.started",
    "boot.begun",
    "start.done",
    "upgrade.done",
    "editable.cloned",
    "editable.fetched",
    "editable.kept-aside",
    "editable.intent",
    "editable.exchanged",
    "editable.parked",
    "editable.aside",
    "editable.bound",
    "editable.entered",
    "editable.moved",
    "editable.checked-out",
    "editable.accepted",
    "watch.inotify",
    "leave.intent",
    "leave.unbound",
    "leave.exchanged",
    "leave.kept",
    "leave.project",
    "leave.recorded",
    "leave.done",
    "commit.record",
    "commit.ref",
    "commit.current",
    "commit.done",
    "rollback.begin",
    "rollback.dumped",
    "rollback.exchanged",
    "rollback.data",
    "rollback.data-path",
    "rollback.started",
    "rollback.done",
    "settle.drift",
    "settle.failed-kept",
    "settle.pack",
    "settle.rotate",
    "settle.sweep",
    "settle.done",
    "end.history",
    "end.closed",
    "recover.begin",
    "recover.done",
    "durable.written",
    "durable.renamed",
];

/// Passes the fault point `name`.
///
/// # Errors
/// The injected error, when a test asked for one here.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn point(_name: &'static str) -> Result<()> {
    Ok(())
}

/// Passes the fault point `name`.
///
/// # Errors
/// The injected error, when a test asked for one here.
///
/// # Panics
/// If `MC_FAIL` cannot be understood or the point is not in [`POINTS`]: a test with a typing error must not pass.
#[cfg(feature = "failpoints")]
#[expect(clippy::expect_used, reason = "a test with a typing error must not pass")]
pub fn point(name: &'static str) -> Result<()> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);

    assert!(POINTS.contains(&name), "fault point {name} is not listed");
    if let Some(trace) = std::env::var_os("MC_FAIL_TRACE") {
        let file = super::fs::open_append(std::path::Path::new(&trace), 0o600);
        std::io::Write::write_all(&mut file.expect("MC_FAIL_TRACE names a file"), format!("{name}\n").as_bytes())
            .expect("the trace can be written");
    }
    let Ok(order) = std::env::var("MC_FAIL") else { return Ok(()) };
    let (place, action) = order.split_once('=').expect("MC_FAIL=<point>[:n]=<action>");
    let (place, nth) = match place.split_once(':') {
        Some((place, n)) => (place, n.parse().expect("MC_FAIL: n is a number")),
        None => (place, 1),
    };
    if place != name || PASSED.fetch_add(1, Ordering::SeqCst) + 1 != nth {
        return Ok(());
    }
    match action.split_once(':') {
        None if action == "kill" => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            unreachable!("killed")
        }
        None if action == "stop" => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
            Ok(())
        }
        Some(("sleep", ms)) => {
            std::thread::sleep(std::time::Duration::from_millis(ms.parse().expect("MC_FAIL: sleep:MS")));
            Ok(())
        }
        Some(("error", errno)) => {
            let code = match errno {
                "ENOSPC" => rustix::io::Errno::NOSPC,
                "EIO" => rustix::io::Errno::IO,
                "EROFS" => rustix::io::Errno::ROFS,
                other => panic!("MC_FAIL: unknown errno {other}"),
            };
            Err(super::error::Error::failed(format!("injected at {name}"))
                .because(std::io::Error::from_raw_os_error(code.raw_os_error())))
        }
        _ => panic!("MC_FAIL: unknown action {action}"),
    }
}
