//! Waiting until something changes in a directory: inotify through the crate `notify`, polling where that is impossible.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// How long one sleep lasts where nobody wakes us.
const POLL: Duration = Duration::from_millis(100);

/// How long one sleep lasts where somebody does; file systems exist that forget to tell (overlays, networks).
const POLL_WATCHED: Duration = Duration::from_secs(1);

/// Sleeps until a file in one directory changes.
pub struct Wake {
    woken: Receiver<()>,
    watcher: Option<RecommendedWatcher>,
}

impl Wake {
    /// Watches the files directly in `dir`; where the system has no watches left (`ENOSPC`, `EMFILE`), it polls.
    #[must_use]
    pub fn on_changes_in(dir: &Path) -> Self {
        // One waiting token is enough: whoever wakes reads everything that is there.
        let (tell, woken) = sync_channel(1);
        let watch = || -> notify::Result<RecommendedWatcher> {
            let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.is_ok_and(|e| e.kind.is_modify() || e.kind.is_create()) {
                    let _ = tell.try_send(());
                }
            })?;
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        };
        Self { woken, watcher: watch().ok() }
    }

    /// Whether the system wakes us, so that we need not poll often.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.watcher.is_some()
    }

    /// Sleeps until something changed, for `longest` at most; may return early for no reason.
    pub fn sleep(&self, longest: Duration) {
        let nap = longest.min(if self.is_watching() { POLL_WATCHED } else { POLL });
        if self.woken.recv_timeout(nap) == Err(RecvTimeoutError::Disconnected) {
            std::thread::sleep(nap);
        }
    }
}

impl std::fmt::Debug for Wake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wake").field("is_watching", &self.is_watching()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_change_wakes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let wake = Wake::on_changes_in(dir.path());
        assert!(wake.is_watching());
        let path = dir.path().join("x");
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            std::fs::write(path, "x").unwrap();
        });
        let begin = Instant::now();
        wake.sleep(Duration::from_secs(10));
        assert!(begin.elapsed() < Duration::from_millis(900), "{:?}", begin.elapsed());
        writer.join().unwrap();
    }

    #[test]
    fn without_a_directory_it_polls_and_does_not_spin() {
        let wake = Wake::on_changes_in(Path::new("/nonexistent/dir"));
        assert!(!wake.is_watching());
        let begin = Instant::now();
        wake.sleep(Duration::from_secs(10));
        assert!(begin.elapsed() >= Duration::from_millis(99) && begin.elapsed() < Duration::from_secs(1));
    }
}
