//! Whose turn it is, counted over all threads.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So many turns a thread takes at once that picks very fast.
const RUN: u32 = 32;

/// A thread picks very fast when [`RUN`] picks take less than this: a million picks a second.
const VERY_FAST: Duration = Duration::from_micros(RUN as u64);

/// The runs that a thread keeps, by the number of their balancer.
const RUNS: usize = 8;

/// The number of no balancer: what is asked in its name takes no run, and so leaves no trace in the thread.
pub(crate) const NOBODY: u64 = u64::MAX;

/// The number of the next turn: 0, 1, 2 and so on, each given once.
///
/// One after the other over all threads; but a thread that makes more than a million picks a second takes its turns in
/// runs of 32, of which it uses one after the other. At such a rate nobody could tell the order any more, while a cache
/// line that two threads tear from each other at each pick costs several times the rest of the pick. When it slows down it
/// uses up the run it has begun; a run that is dropped (the thread ends, or needs its place for another balancer's) leaves
/// out less than 32 turns.
// On cache lines of its own, because every pick in turn writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Turns {
    next: AtomicU64,
}

impl Turns {
    /// The next turn of the balancer `owner`, for this thread.
    #[inline]
    pub(crate) fn next(&self, owner: u64) -> u64 {
        let place = owner as usize % RUNS;
        THIS_THREAD.with(|runs| {
            let run = &runs[place];
            let left = run.left.get();
            if left == 0 || run.owner.get() != owner {
                return self.take(run, owner);
            }
            let turn = run.next.get();
            run.left.set(left - 1);
            run.next.set(turn + 1);
            turn
        })
    }

    /// A copy that continues as this one would for this thread.
    pub(crate) fn peek(&self, owner: u64) -> Self {
        let run = THIS_THREAD.with(|runs| {
            let run = &runs[owner as usize % RUNS];
            (run.left.get() > 0 && run.owner.get() == owner).then(|| run.next.get())
        });
        Self { next: AtomicU64::new(run.unwrap_or_else(|| self.last())) }
    }

    /// With two choices, which know no turns, the same number remembers the last winner.
    pub(crate) fn last(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// See [`Turns::last`].
    pub(crate) fn remember(&self, winner: u64) {
        self.next.store(winner, Ordering::Relaxed);
    }

    fn take(&self, run: &Run, owner: u64) -> u64 {
        if owner == NOBODY {
            return self.next.fetch_add(1, Ordering::Relaxed);
        }
        if run.owner.replace(owner) != owner {
            run.singles.set(0);
            run.since.set(None);
        }
        run.left.set(0);
        let singles = run.singles.get();
        if singles < RUN {
            run.singles.set(singles + 1);
            return self.next.fetch_add(1, Ordering::Relaxed);
        }
        let now = Instant::now();
        let since = run.since.replace(Some(now));
        if since.is_none_or(|since| now.saturating_duration_since(since) > VERY_FAST) {
            run.singles.set(1);
            return self.next.fetch_add(1, Ordering::Relaxed);
        }
        // `singles` stays, so that the clock is asked again when the run is used up.
        let turn = self.next.fetch_add(u64::from(RUN), Ordering::Relaxed);
        run.next.set(turn + 1);
        run.left.set(RUN - 1);
        turn
    }
}

/// The turns of a balancer that a thread has taken and not yet used.
struct Run {
    owner: Cell<u64>,
    next: Cell<u64>,
    left: Cell<u32>,
    /// Picks since the clock was asked, at most [`RUN`].
    singles: Cell<u32>,
    since: Cell<Option<Instant>>,
}

impl Run {
    const fn none() -> Self {
        Self {
            owner: Cell::new(NOBODY - 1),
            next: Cell::new(0),
            left: Cell::new(0),
            singles: Cell::new(0),
            since: Cell::new(None),
        }
    }
}

thread_local! {
    static THIS_THREAD: [Run; RUNS] = const { [const { Run::none() }; RUNS] };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_one_another_however_fast() {
        let (a, b) = (Turns::default(), Turns::default());
        for turn in 0..100_000 {
            assert_eq!(a.peek(100).last(), turn);
            assert_eq!(a.peek(100).next(NOBODY), turn);
            assert_eq!(a.next(100), turn);
            if turn % 3 == 0 {
                assert_eq!(b.next(101), turn / 3);
            }
        }
    }

    #[test]
    fn no_turn_is_given_twice() {
        let turn = Turns::default();
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let one = || (0..50_000).map(|_| turn.next(102)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 200_000);
        assert!(turn.last() < 200_000 + 4 * u64::from(RUN));
    }

    #[test]
    fn slow_threads_take_single_turns() {
        let turn = Turns::default();
        for i in 0..60 {
            let next = || std::thread::scope(|scope| scope.spawn(|| turn.next(103)).join().unwrap());
            assert_eq!((turn.next(103), next()), (2 * i, 2 * i + 1));
        }
    }
}
