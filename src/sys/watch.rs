//! Waiting until something changes in a directory: inotify through the crate `notify`, polling where that is impossible.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// How long one sleep lasts where nobody wakes us.
const POLL: Duration = Duration::from_millis(100);

/// How long one sleep lasts where somebody does; file systems exist that forget to tell (overlays, networks).
const POLL_WATCHED: Duration = Duration::from_secs(1);

/// For so long a directory is looked at again and again: what ends by then is done before inotify would have paid. To end it
/// costs a process more than ten milliseconds, for which whoever waits for that process waits too.
const EAGER: Duration = Duration::from_millis(400);

/// Sleeps until a file in one directory changes.
#[derive(Debug)]
pub struct Wake {
    dir: PathBuf,
    since: Instant,
    watch: Option<Watch>,
}

/// The system's own word that something changed.
struct Watch {
    woken: Receiver<()>,
    watcher: Option<RecommendedWatcher>,
}

impl Wake {
    /// Watches the files directly in `dir`; where the system has no watches left (`ENOSPC`, `EMFILE`), it polls.
    #[must_use]
    pub fn on_changes_in(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), since: Instant::now(), watch: None }
    }

    /// Sleeps until something changed, for `longest` at most; may return early for no reason.
    pub fn sleep(&mut self, longest: Duration) {
        let waited = self.since.elapsed();
        if waited < EAGER {
            return std::thread::sleep(longest.min((waited / 32).max(Duration::from_millis(1))));
        }
        if let Some(watch) = &self.watch {
            return watch.sleep(longest);
        }
        // It may have changed before the watch began: the caller looks first.
        self.watch = Some(Watch::on_changes_in(&self.dir));
    }
}

impl Watch {
    fn on_changes_in(dir: &Path) -> Self {
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
    fn is_watching(&self) -> bool {
        self.watcher.is_some()
    }

    fn sleep(&self, longest: Duration) {
        let nap = longest.min(if self.is_watching() { POLL_WATCHED } else { POLL });
        if self.woken.recv_timeout(nap) == Err(RecvTimeoutError::Disconnected) {
            std::thread::sleep(nap);
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("is_watching", &self.is_watching()).finish_non_exhaustive()
    }
}

/// How often those look who nobody wakes.
const LOOK: Duration = Duration::from_secs(1);

/// Eyes on many directories: woken by inotify where it has watches left for all of them, else by the clock.
pub struct Eyes {
    woken: Receiver<()>,
    watcher: Option<RecommendedWatcher>,
    dirs: BTreeSet<PathBuf>,
}

impl Eyes {
    /// Eyes that look at nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let (tell, woken) = sync_channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is no news; an error is, for something may have been missed.
            if event.map_or(true, |event| !event.kind.is_access()) {
                let _ = tell.try_send(());
            }
        });
        Self { woken, watcher: watcher.ok(), dirs: BTreeSet::new() }
    }

    /// The directories that it looks at.
    #[must_use]
    pub fn dirs(&self) -> &BTreeSet<PathBuf> {
        &self.dirs
    }

    /// Looks at exactly these directories, not at what is below them. Returns why it only looks by the clock from now on,
    /// when that begins.
    pub fn look_at(&mut self, dirs: BTreeSet<PathBuf>) -> Option<String> {
        let Some(watcher) = &mut self.watcher else {
            self.dirs = dirs;
            return None;
        };
        let mut reason = super::fault::point("watch.inotify").err().map(|error| error.one_line());
        for gone in self.dirs.difference(&dirs) {
            // Most often it is gone from the disk too, and its watch with it.
            let _ = watcher.unwatch(gone);
        }
        for dir in dirs.difference(&self.dirs) {
            match watcher.watch(dir, RecursiveMode::NonRecursive) {
                Err(error) if is_gone(&error) => {}
                Err(error) => reason = reason.or_else(|| Some(error.to_string())),
                Ok(()) => {}
            }
        }
        self.dirs = dirs;
        if reason.is_some() {
            self.watcher = None;
        }
        reason
    }

    /// Waits until something happens in a directory, or until it is time to look by the clock; for `longest` at most.
    /// Tells whether there is a reason to look.
    pub fn wait(&self, longest: Duration) -> bool {
        if self.watcher.is_none() {
            std::thread::sleep(longest.min(LOOK));
            return true;
        }
        self.woken.recv_timeout(longest).is_ok()
    }

    /// Waits until nothing has happened for a while: whoever saves many files saves them at once.
    pub fn wait_for_quiet(&self, quiet: Duration, longest: Duration) {
        let end = Instant::now() + longest;
        while self.watcher.is_some() && Instant::now() < end && self.woken.recv_timeout(quiet).is_ok() {}
        if self.watcher.is_none() {
            std::thread::sleep(quiet);
        }
    }
}

impl Default for Eyes {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Eyes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eyes").field("dirs", &self.dirs.len()).finish_non_exhaustive()
    }
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_wakes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let wake = Watch::on_changes_in(dir.path());
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
    fn what_is_quick_is_looked_at_often_and_what_takes_long_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let mut wake = Wake::on_changes_in(dir.path());
        let (begin, mut sleeps) = (Instant::now(), 0);
        while begin.elapsed() < EAGER {
            wake.sleep(Duration::from_secs(1));
            sleeps += 1;
        }
        assert!(wake.watch.is_none() && (2..400).contains(&sleeps), "{sleeps}");
        wake.sleep(Duration::from_secs(10));
        assert!(wake.watch.as_ref().is_some_and(Watch::is_watching));
        let begin = Instant::now();
        wake.sleep(Duration::from_millis(50));
        assert!(begin.elapsed() >= Duration::from_millis(49));
    }

    #[test]
    fn eyes_see_what_is_saved_in_a_directory_and_forget_those_that_are_gone() {
        let temp = tempfile::tempdir().unwrap();
        let (one, other) = (temp.path().join("one"), temp.path().join("other"));
        std::fs::create_dir(&one).unwrap();
        let mut eyes = Eyes::new();
        assert_eq!(eyes.look_at([one.clone(), other.clone()].into()), None, "one that is gone is no reason to poll");
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            std::fs::write(one.join(".x"), "x").unwrap();
            std::fs::rename(one.join(".x"), one.join("x")).unwrap();
        });
        assert!(eyes.wait(Duration::from_secs(20)));
        eyes.wait_for_quiet(Duration::from_millis(100), Duration::from_secs(2));
        writer.join().unwrap();
        assert!(temp.path().join("one/x").exists());
        std::fs::remove_dir_all(temp.path().join("one")).unwrap();
        assert_eq!(eyes.look_at(BTreeSet::new()), None);
    }

    #[test]
    fn without_a_directory_it_polls_and_does_not_spin() {
        let wake = Watch::on_changes_in(Path::new("/nonexistent/dir"));
        assert!(!wake.is_watching());
        let begin = Instant::now();
        wake.sleep(Duration::from_secs(10));
        assert!(begin.elapsed() >= Duration::from_millis(99) && begin.elapsed() < Duration::from_secs(1));
    }
}
