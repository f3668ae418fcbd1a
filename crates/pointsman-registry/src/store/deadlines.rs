//! When something is to be decided of a service although nothing is told of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

/// The next deadline of each service that has one: the first is found without a look at the others.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Instant, Arc<str>)>,
}

impl Deadlines {
    pub(super) fn first(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Replaces the deadline of a service.
    pub(super) fn set(&mut self, service: &Arc<str>, before: Option<Instant>, after: Option<Instant>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, service.clone()));
        }
        if let Some(after) = after {
            self.by_time.insert((after, service.clone()));
        }
    }

    /// The services whose deadlines have come. They stay until they are set anew.
    pub(super) fn due(&self, now: Instant) -> Vec<Arc<str>> {
        self.by_time.iter().take_while(|(at, _)| *at <= now).map(|(_, service)| service.clone()).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_time.len()
    }
}
