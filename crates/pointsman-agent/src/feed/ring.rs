//! What happened last, with a number each.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Group;
use super::budget::Kept;

/// Groups by rising numbers; the oldest are forgotten.
#[derive(Debug)]
pub(crate) struct Ring {
    groups: VecDeque<Entry>,
    kept: usize,
    bytes: usize,
    /// The number before the oldest group that is kept.
    before: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// Rises over all rings.
    stamp: u64,
    group: Arc<Group>,
}

/// Whatever their number: groups together take at most this.
pub(super) const BYTES: usize = 16 << 20;

impl Ring {
    /// An empty one.
    pub(crate) fn new(kept: usize) -> Self {
        Self { groups: VecDeque::new(), kept, bytes: 0, before: 0 }
    }

    /// Everything before `number` is not known.
    pub(crate) fn start(&mut self, number: u64) {
        self.groups.clear();
        self.bytes = 0;
        self.before = number;
    }

    pub(crate) fn push(&mut self, number: u64, stamp: u64, group: Arc<Group>) {
        self.bytes += group.size();
        self.groups.push_back(Entry { number, stamp, group });
        while self.groups.len() > self.kept || self.bytes > BYTES {
            self.forget_oldest();
        }
    }

    /// Forgets the oldest group.
    pub(super) fn forget_oldest(&mut self) {
        if let Some(oldest) = self.groups.pop_front() {
            self.bytes -= oldest.group.size();
            self.before = oldest.number;
        }
    }

    /// How much it holds.
    pub(super) fn held(&self) -> Kept {
        Kept { bytes: self.bytes, oldest: self.groups.front().map(|entry| entry.stamp) }
    }

    /// The groups after number `after`, which must be one that was given out. `None` if they are not all known any more.
    pub(crate) fn after(&self, after: u64) -> Option<Vec<(u64, Arc<Group>)>> {
        let from = self.groups.partition_point(|entry| entry.number <= after);
        let is_known = match from.checked_sub(1) {
            None => after == self.before,
            Some(last) => self.groups[last].number == after,
        };
        is_known.then(|| self.groups.range(from..).map(|entry| (entry.number, entry.group.clone())).collect())
    }

    /// The last so many groups, the oldest first.
    pub(crate) fn latest(&self, count: usize) -> Vec<Arc<Group>> {
        let from = self.groups.len().saturating_sub(count);
        self.groups.range(from..).map(|entry| entry.group.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(ring: &Ring, after: u64) -> Option<Vec<u64>> {
        ring.after(after).map(|groups| groups.into_iter().map(|(number, _)| number).collect())
    }

    #[test]
    fn who_knows_the_last_gets_what_is_new_and_who_is_too_late_nothing() {
        let mut ring = Ring::new(3);
        assert_eq!(numbers(&ring, 0), Some(vec![]));
        ring.start(10);
        assert_eq!((numbers(&ring, 10), numbers(&ring, 0)), (Some(vec![]), None));
        for number in [12, 15, 16] {
            ring.push(number, number, Arc::new(Group::alone("x", b"{}")));
        }
        assert_eq!(numbers(&ring, 10), Some(vec![12, 15, 16]));
        assert_eq!(numbers(&ring, 12), Some(vec![15, 16]));
        assert_eq!(numbers(&ring, 16), Some(vec![]));
        for unknown in [0, 9, 11, 13, 17] {
            assert_eq!(numbers(&ring, unknown), None, "{unknown}");
        }
        ring.push(20, 20, Arc::new(Group::alone("x", b"{}")));
        assert_eq!((numbers(&ring, 10), numbers(&ring, 12)), (None, Some(vec![15, 16, 20])));
        assert_eq!(ring.latest(2).len(), 2);
    }

    #[test]
    fn many_bytes_are_not_kept() {
        let mut ring = Ring::new(1000);
        let large = vec![b'1'; BYTES / 4];
        for number in 1..=9 {
            ring.push(number, number, Arc::new(Group::alone("x", &large)));
        }
        assert!(ring.bytes <= BYTES && !ring.groups.is_empty());
        assert_eq!(numbers(&ring, 9), Some(vec![]));
        while ring.held().oldest.is_some() {
            ring.forget_oldest();
        }
        assert_eq!((ring.held(), numbers(&ring, 9), numbers(&ring, 8)), (Kept::default(), Some(vec![]), None));
    }
}
