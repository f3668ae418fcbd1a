//! How much of what happened is remembered of all services together.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The bytes in the rings of all services, and whose are the oldest. Each group has a stamp, which rises over all services, so the oldest
/// of all is found without a look at every ring.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    bytes: usize,
    /// By the stamp of the oldest group in its ring: the service.
    oldest: BTreeMap<u64, Arc<str>>,
    last: u64,
}

/// What a ring holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) bytes: usize,
    /// The stamp of the oldest group; `None` where there is none.
    pub(super) oldest: Option<u64>,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, oldest: BTreeMap::new(), last: 0 }
    }

    /// The stamp of the next group.
    pub(super) fn stamp(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Takes in that the ring of a service has changed.
    pub(super) fn note(&mut self, service: &Arc<str>, before: Kept, after: Kept) {
        self.bytes = (self.bytes + after.bytes).saturating_sub(before.bytes);
        if before.oldest != after.oldest {
            before.oldest.map(|oldest| self.oldest.remove(&oldest));
            after.oldest.map(|oldest| self.oldest.insert(oldest, service.clone()));
        }
    }

    /// The service with the oldest group of all, if there is more than there may be.
    pub(super) fn beyond(&self) -> Option<Arc<str>> {
        let (_, service) = self.oldest.first_key_value().filter(|_| self.bytes > self.limit)?;
        Some(service.clone())
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
