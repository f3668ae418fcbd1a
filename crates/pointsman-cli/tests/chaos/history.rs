//! A value that changes over time.

use std::time::Duration;

/// Time since the start of the run.
pub(crate) type Time = Duration;

/// The values that something has had, each from the time at which it was set, oldest first.
#[derive(Debug, Clone)]
pub(crate) struct History<T>(Vec<(Time, T)>);

impl<T> Default for History<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> History<T> {
    /// Sets the value from `at` on. Times must not decrease. Setting the same value again changes nothing.
    pub(crate) fn set(&mut self, at: Time, value: T) {
        if self.last() != Some(value) {
            self.0.push((at, value));
        }
    }

    /// Returns the current value, or `None` if none was ever set.
    pub(crate) fn last(&self) -> Option<T> {
        self.0.last().map(|(_, value)| *value)
    }

    /// Returns the value at a time, and since when it had been set.
    pub(crate) fn at(&self, time: Time) -> Option<(Time, T)> {
        self.0.iter().rev().find(|(since, _)| *since <= time).copied()
    }

    /// Returns every change after `from`, up to and including `to`.
    pub(crate) fn changes(&self, from: Time, to: Time) -> impl Iterator<Item = (Time, T)> {
        self.0.iter().copied().filter(move |(at, _)| *at > from && *at <= to)
    }

    /// Whether all values between the two times satisfy the condition. Before the first value nothing does.
    pub(crate) fn throughout(&self, from: Time, to: Time, condition: impl Fn(T) -> bool) -> bool {
        self.at(from).is_some_and(|(_, value)| condition(value))
            && self.changes(from, to).all(|(_, value)| condition(value))
    }

    /// Returns the intervals in which the value satisfies the condition; the last one may be open.
    pub(crate) fn intervals(&self, condition: impl Fn(T) -> bool) -> Vec<(Time, Option<Time>)> {
        let mut intervals: Vec<(Time, Option<Time>)> = Vec::new();
        for &(at, value) in &self.0 {
            match (intervals.last_mut(), condition(value)) {
                (Some((_, None)), true) => {}
                (Some((_, end @ None)), false) => *end = Some(at),
                (_, true) => intervals.push((at, None)),
                (_, false) => {}
            }
        }
        intervals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_time() {
        let second = Duration::from_secs;
        let mut history = History::default();
        for (at, value) in [(1, 'a'), (3, 'b'), (4, 'b'), (5, 'a')] {
            history.set(second(at), value);
        }
        assert_eq!(history.at(second(0)), None);
        assert_eq!(history.at(second(4)), Some((second(3), 'b')));
        assert!(history.throughout(second(1), second(2), |value| value == 'a'));
        assert!(!history.throughout(second(0), second(2), |value| value == 'a'));
        assert!(!history.throughout(second(1), second(3), |value| value == 'a'));
        assert_eq!(history.intervals(|value| value == 'a'), [(second(1), Some(second(3))), (second(5), None)]);
    }
}
