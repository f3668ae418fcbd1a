//! Who follows a memory registry, and what each has not been told yet.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;

use crate::backend::Scope;
use crate::registration::Departure;

/// All followers. Each has its own list of the services that have changed, so none holds up another, and a service that changes often
/// is in it once.
#[derive(Debug, Default)]
pub(super) struct Followers {
    followers: HashMap<u64, Follower>,
    /// The followers of each service by its name, so that a change costs nothing for followers of others.
    of_service: HashMap<Arc<str>, BTreeSet<u64>>,
    /// The followers of all services.
    of_all: BTreeSet<u64>,
    last: u64,
    /// The last clean departures, for those who begin to follow with what another follower has known.
    departures: VecDeque<(Arc<str>, Arc<str>)>,
}

#[derive(Debug)]
struct Follower {
    scope: Scope,
    changed: Changed,
    /// Tells that there is something new.
    wake: Arc<Notify>,
}

/// Services that have changed, in that order.
#[derive(Debug, Default)]
struct Changed {
    order: VecDeque<Arc<str>>,
    /// The codes that have left cleanly since, and are not back.
    left: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

/// Maximum number of clean departures of one service that are remembered for one follower, and of all services for those that begin.
const LEFT: usize = 4096;

impl Followers {
    /// Begins to follow; returns the number under which it does.
    pub(super) fn add(&mut self, scope: Scope, wake: Arc<Notify>) -> u64 {
        self.last += 1;
        match &scope {
            Scope::All => drop(self.of_all.insert(self.last)),
            Scope::Services(services) => {
                for service in services {
                    self.of_service.entry(service.clone()).or_default().insert(self.last);
                }
            }
        }
        self.followers.insert(self.last, Follower { scope, changed: Changed::default(), wake });
        self.last
    }

    pub(super) fn remove(&mut self, follower: u64) {
        let Some(Follower { scope, .. }) = self.followers.remove(&follower) else { return };
        self.of_all.remove(&follower);
        let Scope::Services(services) = scope else { return };
        for service in services {
            if let Some(followers) = self.of_service.get_mut(&service) {
                followers.remove(&follower);
                if followers.is_empty() {
                    self.of_service.remove(&service);
                }
            }
        }
    }

    /// Does this for each who follows a service.
    fn for_each(&mut self, service: &str, mut what: impl FnMut(&mut Follower)) {
        let of_service = self.of_service.get(service).into_iter().flatten();
        for number in self.of_all.iter().chain(of_service) {
            if let Some(follower) = self.followers.get_mut(number) {
                what(follower);
            }
        }
    }

    /// How many services have changed since this follower was told of them.
    pub(super) fn changed(&self, follower: u64) -> usize {
        self.followers.get(&follower).map_or(0, |follower| follower.changed.order.len())
    }

    /// The next service that has changed since this follower was told of it, with the codes that have left cleanly.
    pub(super) fn next(&mut self, follower: u64) -> Option<(Arc<str>, BTreeSet<Arc<str>>)> {
        let changed = &mut self.followers.get_mut(&follower)?.changed;
        let service = changed.order.pop_front()?;
        let left = changed.left.remove(&service).unwrap_or_default();
        Some((service, left))
    }

    /// The services of which somebody left cleanly a while ago, and who.
    pub(super) fn departures(&self) -> HashMap<Arc<str>, BTreeSet<Arc<str>>> {
        let mut departures: HashMap<Arc<str>, BTreeSet<Arc<str>>> = HashMap::new();
        for (service, code) in &self.departures {
            departures.entry(service.clone()).or_default().insert(code.clone());
        }
        departures
    }

    /// A service has changed.
    pub(super) fn note(&mut self, service: &Arc<str>) {
        self.for_each(service, |follower| {
            follower.changed.of(service);
            follower.wake.notify_one();
        });
    }

    /// An instance has joined.
    pub(super) fn note_joined(&mut self, service: &str, code: &str) {
        self.for_each(service, |follower| {
            if let Some(left) = follower.changed.left.get_mut(service) {
                left.remove(code);
            }
        });
    }

    /// An instance has gone.
    pub(super) fn note_gone(&mut self, service: &Arc<str>, code: &Arc<str>, departure: Departure) {
        if departure != Departure::Left {
            // It has come back since it left, if it ever did.
            self.departures.retain(|(other, gone)| other != service || gone != code);
            return;
        }
        self.departures.push_back((service.clone(), code.clone()));
        if self.departures.len() > LEFT {
            self.departures.pop_front();
        }
        self.for_each(service, |follower| {
            let left = follower.changed.of(service);
            if left.len() < LEFT {
                left.insert(code.clone());
            }
        });
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.followers.values().map(|follower| follower.changed.order.len()).sum()
    }
}

impl Changed {
    fn of(&mut self, service: &Arc<str>) -> &mut BTreeSet<Arc<str>> {
        if !self.left.contains_key(service) {
            self.order.push_back(service.clone());
        }
        self.left.entry(service.clone()).or_default()
    }
}
