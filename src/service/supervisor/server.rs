//! The supervisor process: one loop that waits for everything at once.
//!
//! It holds a lock, so that there is one; it listens at a socket in its directory; it keeps nothing open in any tree of the
//! project, and works in `/`. It ends by itself when nothing runs and nobody asks, when it is told to hand over, and when
//! its directory is gone; then it takes its guard with it.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::guard::Companion;
use super::job::Progress;
use super::keeper::Keeper;
use super::protocol::{Ask, Greeting, LINE, Say};
use super::{LOCK, SOCKET, SupervisorPlace};
use crate::sys::dir::Dir;
use crate::sys::error::{Context, Kind, Result};
use crate::sys::lock::{Holder, Lock};
use crate::sys::socket::{Channel, Listener, Received, short_path};
use crate::sys::{clock, escape, fs, process};

/// The longest time without a look around.
const LOOK: Duration = Duration::from_secs(5);
/// How long it stays when nothing runs.
const LINGER: Duration = Duration::from_secs(5);
/// How long somebody who asks may take to read the answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// How many may ask at the same time.
const MOST: usize = 32;

/// Somebody who asks.
struct Asker {
    channel: Channel,
    /// Whether the answer is the end of the job.
    waits: bool,
}

/// How the supervisor goes on.
#[derive(PartialEq, Eq)]
enum Course {
    /// As it does.
    On,
    /// It ends.
    End,
    /// It ends once everything has stopped, and leaves nothing.
    Forget,
}

struct Server<'a> {
    place: &'a SupervisorPlace,
    dir: Dir,
    listener: Listener,
    askers: Vec<Asker>,
    keeper: Keeper,
    guard: Option<Companion>,
    guard_tried: Option<Instant>,
    idle_since: Option<Instant>,
    looked: Instant,
    course: Course,
    _lock: Lock,
}

/// Supervises until there is nothing more to supervise.
///
/// # Errors
/// [`Kind::Busy`] if another one does already.
pub fn supervise(place: &SupervisorPlace, guard: Option<Companion>) -> Result<()> {
    process::name_self("mc_supervisor")?;
    process::keep_descriptors_from_children()?;
    // Those who ask who holds it hold it for a moment themselves.
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut lock = Lock::take(&place.state.join(LOCK), Some(deadline), |_| Ok(()))?;
    let what = format!("supervises the services of {}", place.project);
    lock.describe(&Holder { what, id: None, pid: std::process::id(), since: clock::now().to_string() })?;
    process::adopt_orphans()?;
    let dir = Dir::open_real(&place.state)?;
    let keeper = Keeper::take_over(&place.state, &place.logs)?;
    let listener = Listener::bind(&short_path(&dir, SOCKET), rustix::process::getegid().as_raw())?;
    let mut server = Server {
        place,
        dir,
        listener,
        askers: Vec::new(),
        keeper,
        guard,
        guard_tried: None,
        idle_since: None,
        looked: Instant::now(),
        course: Course::On,
        _lock: lock,
    };
    server.run()?;
    if let Some(guard) = &server.guard {
        guard.kill();
    }
    Ok(())
}

impl Server<'_> {
    fn run(&mut self) -> Result<()> {
        loop {
            let now = Instant::now();
            self.keeper.ended(process::reap);
            self.keeper.tick(now);
            self.mind_the_guard(now);
            self.accept();
            self.hear();
            if let Some(progress) = self.keeper.go_on() {
                self.tell(progress);
            }
            self.look_around(now);
            if self.is_over(now)? {
                return Ok(());
            }
            self.wait()?;
        }
    }

    /// Waits until something happens or is to be done.
    fn wait(&self) -> Result<()> {
        let now = Instant::now();
        let until = self.keeper.wakes_at(now).map_or(now + LOOK, |at| at.min(now + LOOK));
        let limit = until.saturating_duration_since(now);
        let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut all: Vec<PollFd<'_>> =
            self.keeper.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        all.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        all.extend(self.askers.iter().map(|asker| PollFd::from_borrowed_fd(asker.channel.as_fd(), PollFlags::IN)));
        let guard = self.guard.as_ref().and_then(Companion::handle);
        all.extend(guard.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        match poll(&mut all, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context(|| "cannot wait for the services".to_string()),
        }
    }

    /// There is a guard as long as something is to be guarded.
    fn mind_the_guard(&mut self, now: Instant) {
        if self.guard.as_ref().is_some_and(Companion::is_alive) {
            return;
        }
        self.guard = None;
        let is_time = self.guard_tried.is_none_or(|tried| now >= tried + Duration::from_secs(1));
        if is_time && !self.keeper.is_idle() {
            self.guard_tried = Some(now);
            match Companion::guard(self.place) {
                Ok(guard) => self.guard = Some(guard),
                Err(error) => tracing::warn!("{}", error.one_line()),
            }
        }
    }

    fn accept(&mut self) {
        while self.askers.len() < MOST {
            match self.listener.accept(Duration::ZERO) {
                Ok(Some(stream)) => self.askers.push(Asker { channel: Channel::new(stream, LINE), waits: false }),
                Ok(None) => return,
                Err(error) => {
                    // No descriptor is left: the socket stays readable, and we must not spin.
                    tracing::warn!("{}", error.one_line());
                    std::thread::sleep(Duration::from_millis(100));
                    return;
                }
            }
        }
    }

    /// Hears what is asked, and answers what can be answered at once.
    fn hear(&mut self) {
        let mut at = 0;
        while at < self.askers.len() {
            let heard = self.askers[at].channel.receive(Duration::ZERO);
            let stays = match heard {
                Ok(Received::Nothing) => true,
                Ok(Received::Line(line)) => self.answer(at, &line),
                Ok(Received::End) | Err(_) => false,
            };
            if stays {
                at += 1;
            } else {
                self.askers.remove(at);
            }
        }
    }

    /// Whether the connection is still needed.
    fn answer(&mut self, at: usize, line: &[u8]) -> bool {
        let ask: Ask = match serde_json::from_slice(line) {
            Ok(ask) => ask,
            Err(error) => return self.say(at, &Say::Error(format!("the supervisor does not understand: {error}"))),
        };
        match ask {
            Ask::Hello => return self.say(at, &Say::Hello(Greeting::ours())),
            Ask::Look => return self.say(at, &Say::Looks(self.keeper.looks())),
            Ask::HandOver => {
                self.course = Course::End;
                return self.say(at, &Say::Done);
            }
            Ask::Converge { wanted } => {
                self.supersede();
                if let Err(error) = self.keeper.converge(wanted) {
                    return self.say(at, &Say::Error(error.one_line()));
                }
            }
            Ask::Stop { which } => {
                self.supersede();
                self.keeper.stop(&which);
            }
            Ask::Start { which } => {
                self.supersede();
                self.keeper.start(&which);
            }
            Ask::Forget => {
                self.supersede();
                self.keeper.forget();
                self.course = Course::Forget;
            }
        }
        self.askers[at].waits = true;
        true
    }

    /// Somebody else asks for something: the command before is dead, or it is no longer what is wanted.
    fn supersede(&mut self) {
        for at in 0..self.askers.len() {
            if self.askers[at].waits {
                self.askers[at].waits = false;
                self.say(at, &Say::Error("another command took over".to_string()));
            }
        }
        self.course = Course::On;
    }

    /// Says something; whether it arrived.
    fn say(&mut self, at: usize, say: &Say) -> bool {
        let Ok(text) = serde_json::to_vec(say) else { return false };
        self.askers[at].channel.send(&text, PATIENCE).is_ok()
    }

    /// Tells who waits how the job ended.
    fn tell(&mut self, progress: Progress) {
        let said = match progress {
            Progress::Going => return,
            Progress::Done => vec![Say::Done],
            Progress::Stuck(reason) => {
                self.course = Course::On;
                vec![Say::Error(reason)]
            }
            Progress::Failed(failure) => {
                let lines = self.keeper.recent(&failure.instance);
                let lines = lines.iter().map(|line| Say::Line(escape::output_line(line, 2048)));
                lines.chain([Say::Failed(failure.into())]).collect()
            }
        };
        for at in (0..self.askers.len()).filter(|at| self.askers[*at].waits).collect::<Vec<_>>() {
            self.askers[at].waits = false;
            let _ = said.iter().all(|say| self.say(at, say));
        }
    }

    /// Whoever removes a whole node removes its services with it.
    fn look_around(&mut self, now: Instant) {
        if now < self.looked + LOOK || self.course == Course::Forget {
            return;
        }
        self.looked = now;
        for at in (0..self.askers.len()).filter(|at| self.askers[*at].waits).collect::<Vec<_>>() {
            self.say(at, &Say::Busy);
        }
        if is_gone(&self.dir, &self.place.state) {
            self.keeper.forget();
            self.course = Course::Forget;
        }
    }

    fn is_over(&mut self, now: Instant) -> Result<bool> {
        match self.course {
            Course::End => return Ok(true),
            Course::Forget if !self.keeper.is_busy() => return Ok(true),
            _ => {}
        }
        if !self.keeper.is_idle() || !self.askers.is_empty() {
            self.idle_since = None;
            return Ok(false);
        }
        let since = *self.idle_since.get_or_insert(now);
        if now < since + LINGER {
            return Ok(false);
        }
        // Who connects from now on is not answered, and starts another one.
        fs::remove_file(&short_path(&self.dir, SOCKET))?;
        Ok(true)
    }
}

/// Whether the directory is gone, or another one stands at its place. What cannot be looked at is taken to be there: all
/// services end where it is not.
fn is_gone(dir: &Dir, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(ours) = dir.stat_self() else { return false };
    match fs::examine(path) {
        Ok(Some(there)) => (there.dev(), there.ino()) != (ours.dev, ours.ino),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Whether an error says that another supervisor is there.
#[must_use]
pub fn is_busy(error: &crate::sys::error::Error) -> bool {
    error.kind() == Kind::Busy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_gone_only_where_that_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (place, link) = (dir.path().join("services"), dir.path().join("loop"));
        std::fs::create_dir(&place).unwrap();
        let held = Dir::open_real(&place).unwrap();
        assert!(!is_gone(&held, &place));
        std::os::unix::fs::symlink(&link, &link).unwrap();
        assert!(!is_gone(&held, &link.join("services")), "it cannot be looked at");
        std::fs::rename(&place, dir.path().join("elsewhere")).unwrap();
        assert!(is_gone(&held, &place));
        std::fs::create_dir(&place).unwrap();
        assert!(is_gone(&held, &place), "another one");
    }
}
