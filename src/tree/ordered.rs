//! Work that several threads do ahead of the one who needs it in order: packing reads many files at once, and one stream
//! comes out.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::scan::THREADS;
use crate::sys::error::{Error, Result};
use crate::sys::threads;

/// How many results may wait to be taken: what bounds the memory.
const AHEAD: usize = 2 * THREADS;

/// Calls `work` for each item, on several threads, and `take` with each result, on this one and in the order of the items.
///
/// # Errors
/// The first one that `take` gives; nothing more is begun then.
pub fn in_order<T, R: Send>(
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) -> R + Sync,
    mut take: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let line = Line::new(items);
    std::thread::scope(|scope| {
        // However this ends, the threads must hear of it before they are waited for.
        let _end = End(&line);
        let (line, work) = (&line, &work);
        let help = move || {
            let _end = End(line);
            while line.do_one(work) {}
        };
        if threads::helpers(scope, THREADS, help) == 0 {
            return line.alone(work, &mut take);
        }
        while let Some(result) = line.next() {
            take(result)?;
        }
        let state = line.lock();
        if state.begun == state.taken { Ok(()) } else { Err(Error::bug("a working thread died")) }
    })
}

struct State<I, R> {
    items: I,
    begun: usize,
    taken: usize,
    done: BTreeMap<usize, R>,
    /// Nothing more is begun: all items are, or somebody gave up.
    is_over: bool,
    /// A thread died, and will not do what it began.
    has_died: bool,
}

struct Line<I, R> {
    state: Mutex<State<I, R>>,
    changed: Condvar,
}

/// A thread that leaves leaves nobody waiting.
struct End<'a, I, R>(&'a Line<I, R>);

impl<I, R> Drop for End<'_, I, R> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_over = true;
        state.has_died |= std::thread::panicking();
        drop(state);
        self.0.changed.notify_all();
    }
}

impl<I, R> Line<I, R> {
    fn new(items: I) -> Self {
        let state = State { items, begun: 0, taken: 0, done: BTreeMap::new(), is_over: false, has_died: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<I, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State<I, R>>) -> MutexGuard<'a, State<I, R>> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, I: Iterator<Item = T>, R> Line<I, R> {
    /// The next item with its number, when not too many results wait.
    fn begin(&self) -> Option<(usize, T)> {
        let mut state = self.lock();
        while !state.is_over && state.begun >= state.taken + AHEAD {
            state = self.wait(state);
        }
        if state.is_over {
            return None;
        }
        let item = state.items.next()?;
        state.begun += 1;
        Some((state.begun - 1, item))
    }

    /// Does the work of the next item; `false` if there is none.
    fn do_one(&self, work: &impl Fn(T) -> R) -> bool {
        let Some((number, item)) = self.begin() else { return false };
        let result = work(item);
        self.lock().done.insert(number, result);
        self.changed.notify_all();
        true
    }

    /// Does all of it without any thread.
    fn alone(&self, work: &impl Fn(T) -> R, take: &mut impl FnMut(R) -> Result<()>) -> Result<()> {
        while self.do_one(work) {
            self.next().map_or(Ok(()), &mut *take)?;
        }
        Ok(())
    }

    /// The next result in order; `None` after the last one.
    fn next(&self) -> Option<R> {
        let mut state = self.lock();
        loop {
            let number = state.taken;
            if let Some(result) = state.done.remove(&number) {
                state.taken += 1;
                self.changed.notify_all();
                return Some(result);
            }
            if state.has_died || state.is_over && number == state.begun {
                return None;
            }
            state = self.wait(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_takes_longer() {
        let mut taken = Vec::new();
        let slow = |n: u64| {
            std::thread::sleep(std::time::Duration::from_micros(n * 7919 % 500));
            n * 2
        };
        in_order(0..500, slow, |n| {
            taken.push(n);
            Ok(())
        })
        .unwrap();
        assert_eq!(taken, (0..500).map(|n| n * 2).collect::<Vec<_>>());
    }

    #[test]
    fn where_no_thread_is_had_all_is_done_all_the_same() {
        let mut taken = Vec::new();
        let mut take = |n: u64| {
            taken.push(n);
            Ok(())
        };
        Line::new(0..50).alone(&|n| n * 2, &mut take).unwrap();
        assert_eq!(taken, (0..50).map(|n| n * 2).collect::<Vec<_>>());
        assert!(Line::new(0..50).alone(&|n| n, &mut |_| Err(Error::failed("enough"))).is_err());
    }

    #[test]
    fn an_error_ends_it_and_no_more_than_the_bound_is_begun() {
        let begun = std::sync::atomic::AtomicUsize::new(0);
        let count = |_| begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let done = in_order(0..10_000, count, |_| Err(Error::failed("enough")));
        assert!(done.is_err());
        assert!(begun.into_inner() <= AHEAD + THREADS + 1);
    }
}
