//! Threads that only help: where the system gives none (a limit on processes, no memory), the work is done all the same, by
//! whoever asks for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, Scope};

use super::error::{Context, Error, Result};

/// Does these works side by side and returns what they came to, in their order.
///
/// # Errors
/// If one of them panicked.
pub fn side_by_side<T: Send>(works: Vec<impl FnOnce() -> T + Send>) -> Result<Vec<T>> {
    let works: Vec<_> = works.into_iter().map(Work::new).collect();
    let done: Option<Vec<T>> = std::thread::scope(|scope| {
        let start = |work| Builder::new().spawn_scoped(scope, move || Work::run(work)).ok();
        let threads: Vec<_> = works.iter().map(start).collect();
        // Not lazily: every thread must have begun before the first one is waited for.
        let ended = works.iter().zip(threads);
        ended.map(|(work, thread)| thread.map_or_else(|| work.run(), |thread| thread.join().ok()?)).collect()
    });
    done.ok_or_else(|| Error::bug("a thread died"))
}

/// Starts threads that do this work beside whoever asks; returns how many there are. None may be had: then whoever asks must
/// do without.
pub fn helpers<'scope>(
    scope: &'scope Scope<'scope, '_>,
    count: usize,
    work: impl Fn() + Clone + Send + 'scope,
) -> usize {
    (0..count).filter(|_| Builder::new().spawn_scoped(scope, work.clone()).is_ok()).count()
}

/// Does work that may call itself very deeply in a thread with a stack of so many bytes, and waits for it.
///
/// # Errors
/// If the system gives no such thread, or it panicked.
pub fn with_stack<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = Builder::new().stack_size(bytes).spawn_scoped(scope, work);
        let thread = thread.context(|| "cannot start a thread".to_string())?;
        thread.join().map_err(|_| Error::bug("a thread died"))
    })
}

/// Does work that nobody waits for in a thread that stands back behind everything else on the machine, and waits for it.
///
/// # Errors
/// If it panicked.
pub fn standing_back<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    let work = Work::new(work);
    let done = std::thread::scope(|scope| {
        let quiet = || {
            // Linux gives each thread a nice value of its own (setpriority(2)); what it starts inherits it.
            let _ = rustix::process::nice(STEP_BACK);
            work.run()
        };
        Builder::new().spawn_scoped(scope, quiet).map_or_else(|_| work.run(), |thread| thread.join().ok()?)
    });
    done.ok_or_else(|| Error::bug("a thread died"))
}

/// How far it stands back, as nice(1) counts: on a machine that is busy it gets a third of what others get, because the next
/// deployment may wait for it after all.
const STEP_BACK: i32 = 5;

/// Starts a thread that nobody can do without.
///
/// # Errors
/// If the system gives none.
pub fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    Builder::new().spawn(work).context(|| "cannot start a thread".to_string())
}

/// Something that is done meanwhile.
#[derive(Debug)]
pub enum Meanwhile<T> {
    /// In a thread.
    Thread(JoinHandle<Option<T>>),
    /// There was no thread: it is done already.
    Done(Option<T>),
}

impl<T: Send + 'static> Meanwhile<T> {
    /// Begins it; where there is no thread it is done before this returns.
    pub fn begin(work: impl FnOnce() -> T + Send + 'static) -> Self {
        let work = Arc::new(Work::new(work));
        let mine = Arc::clone(&work);
        Builder::new().spawn(move || mine.run()).map_or_else(|_| Self::Done(work.run()), Self::Thread)
    }

    /// What it came to, when it is done.
    ///
    /// # Errors
    /// If it panicked.
    pub fn end(self) -> Result<T> {
        let done = match self {
            Self::Thread(thread) => thread.join().ok().flatten(),
            Self::Done(done) => done,
        };
        done.ok_or_else(|| Error::bug("a thread died"))
    }
}

/// Work that is still there when the thread that was to do it never came.
struct Work<W>(Mutex<Option<W>>);

impl<W> Work<W> {
    fn new(work: W) -> Self {
        Self(Mutex::new(Some(work)))
    }

    fn run<T>(&self) -> Option<T>
    where
        W: FnOnce() -> T,
    {
        let work = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.map(|work| work())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_are_all_done_and_told_in_their_order() {
        let works: Vec<_> = (0..9).map(|n| move || n * n).collect();
        assert_eq!(side_by_side(works).unwrap(), [0, 1, 4, 9, 16, 25, 36, 49, 64]);
        assert_eq!(Meanwhile::begin(|| 7).end().unwrap(), 7);
        assert_eq!(start(|| 8).unwrap().join().unwrap(), 8);
        let niceness = || rustix::process::nice(0).unwrap();
        let before = niceness();
        assert_eq!(standing_back(niceness).unwrap(), (before + STEP_BACK).min(19));
        assert_eq!(niceness(), before, "only that thread");
    }

    #[test]
    fn work_without_a_thread_is_done_once_and_a_panic_is_an_error() {
        let work = Work::new(|| 3);
        assert_eq!((work.run(), work.run()), (Some(3), None));
        assert_eq!(Meanwhile::Done(Some(4)).end().unwrap(), 4);
        assert!(Meanwhile::<()>::begin(|| panic!("on purpose")).end().is_err());
    }
}
