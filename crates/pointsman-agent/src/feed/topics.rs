//! The services that there are, those that somebody watches, and some that were there a moment ago.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::topic::Topic;

/// All topics, by service. One that is empty and that nobody watches is dropped in the end, with all that happened to it; but not the
/// height of its revisions: a topic that is made anew begins with the highest revision of those that were dropped.
#[derive(Debug, Default)]
pub(super) struct Topics {
    by_name: HashMap<Arc<str>, Arc<Topic>>,
    /// The services that were seen empty, the longest ago first; some may be back, or in it twice.
    idle: VecDeque<Arc<str>>,
    floor: u64,
}

/// Maximum number of empty services that nobody watches.
pub(super) const IDLE: usize = 1024;
/// Empty services that are watched stay; so only so many are looked at for each that is added.
const LOOKS: usize = 4;

impl Topics {
    pub(super) fn find(&self, service: &str) -> Option<&Arc<Topic>> {
        self.by_name.get(service)
    }

    /// All that hold anything, in no order.
    pub(super) fn present(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_name.values().filter(|topic| !topic.is_empty())
    }

    /// The revision of a service of which nothing is known.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Adds a service that nobody has registered under.
    pub(super) fn add(&mut self, service: &str) -> Arc<Topic> {
        let service: Arc<str> = service.into();
        let floor = self.floor;
        self.by_name.entry(service.clone()).or_insert_with(|| Arc::new(Topic::new(service, floor))).clone()
    }

    /// Notes that a service is empty. Returns those that are dropped for it.
    pub(super) fn retire(&mut self, service: &Arc<str>) -> Vec<Arc<Topic>> {
        self.idle.push_back(service.clone());
        let mut dropped = Vec::new();
        for _ in 0..LOOKS {
            let Some(oldest) = (self.idle.len() > IDLE).then(|| self.idle.pop_front()).flatten() else { break };
            let Some(topic) = self.by_name.get(&oldest).filter(|topic| topic.is_empty()) else { continue };
            if Arc::strong_count(topic) > 1 {
                self.idle.push_back(oldest);
            } else if let Some(topic) = self.by_name.remove(&oldest) {
                self.floor = self.floor.max(*topic.revision().borrow());
                dropped.push(topic);
            }
        }
        dropped
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_name.values()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }
}
