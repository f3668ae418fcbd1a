//! What happened last, with a number each.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Group;

/// Groups by rising numbers; the oldest are forgotten.
#[derive(Debug)]
pub(crate) struct Ring {
    groups: VecDeque<(u64, Arc<Group>)>,
    kept: usize,
    bytes: usize,
    /// The number before the oldest group that is kept.
    before: u64,
}

/// Whatever their number: groups together take at most this.
const BYTES: usize = 16 << 20;

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

    pub(crate) fn push(&mut self, number: u64, group: Arc<Group>) {
        self.bytes += group.size();
        self.groups.push_back((number, group));
        while self.groups.len() > self.kept || self.bytes > BYTES {
            let Some((number, group)) = self.groups.pop_front() else { break };
            self.bytes -= group.size();
            self.before = number;
        }
    }

    /// The groups after number `after`, which must be one that was given out. `None` if they are not all known any more.
    pub(crate) fn after(&self, after: u64) -> Option<Vec<(u64, Arc<Group>)>> {
        let from = self.groups.partition_point(|(number, _)| *number <= after);
        let is_known = match from.checked_sub(1) {
            None => after == self.before,
            Some(last) => self.groups[last].0 == after,
        };
        is_known.then(|| self.groups.range(from..).cloned().collect())
    }

    /// The last so many groups, the oldest first.
    pub(crate) fn latest(&self, count: usize) -> Vec<Arc<Group>> {
        let from = self.groups.len().saturating_sub(count);
        self.groups.range(from..).map(|(_, group)| group.clone()).collect()
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
            ring.push(number, Arc::new(Group::alone("x", b"{}")));
        }
        assert_eq!(numbers(&ring, 10), Some(vec![12, 15, 16]));
        assert_eq!(numbers(&ring, 12), Some(vec![15, 16]));
        assert_eq!(numbers(&ring, 16), Some(vec![]));
        for unknown in [0, 9, 11, 13, 17] {
            assert_eq!(numbers(&ring, unknown), None, "{unknown}");
        }
        ring.push(20, Arc::new(Group::alone("x", b"{}")));
        assert_eq!((numbers(&ring, 10), numbers(&ring, 12)), (None, Some(vec![15, 16, 20])));
        assert_eq!(ring.latest(2).len(), 2);
    }

    #[test]
    fn many_bytes_are_not_kept() {
        let mut ring = Ring::new(1000);
        let large = vec![b'1'; BYTES / 4];
        for number in 1..=9 {
            ring.push(number, Arc::new(Group::alone("x", &large)));
        }
        assert!(ring.bytes <= BYTES && !ring.groups.is_empty());
        assert_eq!(numbers(&ring, 9), Some(vec![]));
    }
}
