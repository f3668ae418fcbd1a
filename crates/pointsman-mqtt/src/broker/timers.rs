//! What is due when. The clock is the caller's.

use std::collections::BTreeMap;
use std::time::Instant;

use super::slots::Key;

/// Where something that is due stands.
pub(super) type TimerKey = (Instant, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// The session of a client that is away.
    SessionEnds(Key),
    /// The will of a client that is away.
    WillIsDue(Key),
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeMap<TimerKey, Timer>,
    /// Tells those of one moment apart.
    count: u64,
}

impl Timers {
    pub(super) fn set(&mut self, due: Instant, timer: Timer) -> TimerKey {
        self.count += 1;
        let key = (due, self.count);
        self.due.insert(key, timer);
        key
    }

    pub(super) fn stop(&mut self, key: Option<TimerKey>) {
        if let Some(key) = key {
            self.due.remove(&key);
        }
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|(&(due, _), _)| due)
    }

    /// Something that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Timer> {
        let entry = self.due.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }
}
