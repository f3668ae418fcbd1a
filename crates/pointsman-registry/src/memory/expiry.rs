//! When what operators have set for codes that are gone is forgotten.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

/// A service and a code.
type Key = (Arc<str>, Arc<str>);

/// The codes that are gone and for which something is set, in the order of the time at which that is forgotten: what is due is found
/// without a look at the others.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    by_time: BTreeSet<(Instant, Key)>,
    at: HashMap<Key, Instant>,
}

impl Expiry {
    /// Sets when it is forgotten; `None`: it is not.
    pub(super) fn set(&mut self, service: &Arc<str>, code: &Arc<str>, at: Option<Instant>) {
        let key = (service.clone(), code.clone());
        let before = match at {
            Some(at) => {
                self.by_time.insert((at, key.clone()));
                self.at.insert(key.clone(), at)
            }
            None => self.at.remove(&key),
        };
        if let Some(before) = before.filter(|before| Some(*before) != at) {
            self.by_time.remove(&(before, key));
        }
    }

    /// What is to be forgotten by now, each told once.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Key> {
        let mut due = Vec::new();
        while let Some((at, key)) = self.by_time.pop_first() {
            if at > now {
                self.by_time.insert((at, key));
                break;
            }
            self.at.remove(&key);
            due.push(key);
        }
        due
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.by_time.len(), self.at.len());
        self.at.len()
    }
}
