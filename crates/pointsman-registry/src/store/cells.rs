//! The newest snapshot of each service, and which have changed last.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use pointsman_core::{Difference, Snapshot, View, ViewWriter};
use tokio::sync::watch;

use super::departures::Departures;

/// One cell for each service that holds anything or that somebody reads, and some that did so a moment ago.
///
/// Services may be named anew with each start of something, so what nobody holds is forgotten some time after it has vanished. Its
/// revisions are not: each revision that the writer gives out is higher than all before it, of whichever service; the highest of those
/// forgotten is what a service has of which nothing is known. So whoever comes back to a service never finds a lower one.
#[derive(Debug, Default)]
pub(super) struct Cells {
    by_name: HashMap<Arc<str>, Cell>,
    /// The services that were seen empty, the longest ago first. Meanwhile they may be back, or be in it twice.
    idle: VecDeque<Idle>,
    /// Sum of the weights in `idle`.
    idle_weight: usize,
    /// The highest revision of a service that has been forgotten.
    floor: u64,
    /// Counts the changes of all services.
    version: u64,
    /// Which service it was, of the last changes: the one of the newest version is the last.
    journal: VecDeque<Arc<str>>,
}

#[derive(Debug)]
struct Cell {
    writer: ViewWriter,
    changed: watch::Sender<u64>,
    departures: Departures,
}

#[derive(Debug)]
struct Idle {
    service: Arc<str>,
    /// 1, and 1 for each departure that is remembered.
    weight: usize,
}

/// What has become of a service.
#[derive(Debug)]
pub(super) struct Shown {
    /// What readers have seen so far.
    pub(super) before: Arc<Snapshot>,
    /// What the registry holds.
    pub(super) raw: Snapshot,
    /// The codes that have left cleanly.
    pub(super) left: Vec<Arc<str>>,
    /// What readers see from now on; `None` where that is what they have seen.
    pub(super) next: Option<Arc<Snapshot>>,
}

/// What has changed since a version.
#[derive(Debug)]
pub(crate) struct Since {
    /// The newest snapshots, in the order of their revisions.
    pub(crate) snapshots: Vec<Arc<Snapshot>>,
    /// Whether these are all that there are, because the version is too long ago. Others have vanished.
    pub(crate) is_all: bool,
    /// The version now.
    pub(crate) version: u64,
    /// The revision of a service of which nothing is known any more.
    pub(crate) floor: u64,
}

/// Maximum number of changes that are remembered: whoever is further behind compares everything.
pub(super) const JOURNAL: usize = 4096;
/// Maximum number of services that have vanished, and nobody reads, whose departures are remembered for a while: a reader that is that far
/// behind takes those for lost that have left.
pub(super) const IDLE: usize = 1024;
/// Maximum weight of them.
const IDLE_WEIGHT: usize = 16 * 1024;
/// Services that are read, and hold nothing, stay; so only so many are looked at for each that is added.
const LOOKS: usize = 8;

impl Cells {
    /// The view of a service, whether it exists or not.
    pub(super) fn view(&mut self, service: &str) -> (View, watch::Receiver<u64>) {
        if !self.by_name.contains_key(service) {
            let service: Arc<str> = service.into();
            let unknown = Snapshot::empty(service.clone()).at_revision(self.floor);
            let cell = self.by_name.entry(service.clone()).or_insert(Cell::new(unknown));
            let read = (cell.writer.view(), cell.changed.subscribe());
            self.retire(service);
            return read;
        }
        let cell = &self.by_name[service];
        (cell.writer.view(), cell.changed.subscribe())
    }

    pub(super) fn snapshot(&self, service: &str) -> Arc<Snapshot> {
        let unknown = || Arc::new(Snapshot::empty(service).at_revision(self.floor));
        self.by_name.get(service).map_or_else(unknown, |cell| cell.writer.load())
    }

    /// The newest snapshots of all services that hold anything, in no order.
    pub(super) fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.by_name.values().map(|cell| cell.writer.load()).filter(|snapshot| !snapshot.is_empty()).collect()
    }

    pub(super) fn has_left(&self, service: &str, code: &str) -> bool {
        self.by_name.get(service).is_some_and(|cell| cell.departures.contains(code))
    }

    /// Shows what has changed. Returns the version after it.
    pub(super) fn publish(&mut self, all: Vec<Shown>) -> u64 {
        for Shown { before, raw, left, next } in all {
            let service = raw.service();
            if let Some(cell) = self.by_name.get_mut(service) {
                cell.note_departures(&before, &raw, left);
            }
            if let Some(next) = next {
                self.store(next);
            }
        }
        self.version
    }

    fn store(&mut self, snapshot: Arc<Snapshot>) {
        let service = snapshot.service().clone();
        let is_empty = snapshot.is_empty();
        match self.by_name.get_mut(&service) {
            Some(cell) => {
                cell.writer.store(snapshot);
                cell.changed.send_modify(|changes| *changes += 1);
            }
            None => {
                self.by_name.insert(service.clone(), Cell::new(Snapshot::clone(&snapshot)));
            }
        }
        if self.journal.len() == JOURNAL {
            self.journal.pop_front();
        }
        self.journal.push_back(service.clone());
        self.version += 1;
        if is_empty {
            self.retire(service);
        }
    }

    /// Notes that a service is empty, and forgets those that have been for long and that nobody reads.
    fn retire(&mut self, service: Arc<str>) {
        let weight = 1 + self.by_name.get(&service).map_or(0, |cell| cell.departures.len());
        self.idle_weight += weight;
        self.idle.push_back(Idle { service, weight });
        for _ in 0..LOOKS {
            if self.idle.len() <= IDLE && self.idle_weight <= IDLE_WEIGHT {
                return;
            }
            let Some(oldest) = self.idle.pop_front() else { return };
            self.idle_weight -= oldest.weight;
            let Some(cell) = self.by_name.get(&oldest.service) else { continue };
            let snapshot = cell.writer.load();
            if snapshot.is_empty() && cell.is_read() {
                self.idle_weight += oldest.weight;
                self.idle.push_back(oldest);
            } else if snapshot.is_empty() {
                self.floor = self.floor.max(snapshot.revision());
                self.by_name.remove(&oldest.service);
            }
        }
    }

    /// The newest snapshots of the services that have changed since a version, or of all.
    pub(super) fn since(&self, version: Option<u64>) -> Since {
        let behind = version.and_then(|version| usize::try_from(self.version - version).ok());
        let changed = behind
            .filter(|behind| *behind <= self.journal.len())
            .map(|behind| self.journal.range(self.journal.len() - behind..).collect::<HashSet<_>>());
        let is_all = changed.is_none();
        let newest = |service: &Arc<str>| self.by_name.get(service).map(|cell| cell.writer.load());
        let mut snapshots: Vec<Arc<Snapshot>> = match changed {
            // One that is forgotten already was empty, and nobody is told so late that it has gone.
            Some(changed) => {
                changed.into_iter().map(|service| newest(service).unwrap_or_else(|| self.snapshot(service))).collect()
            }
            // Too far behind: everything, with what has vanished.
            None => self.by_name.values().map(|cell| cell.writer.load()).collect(),
        };
        snapshots.sort_by_key(|snapshot| snapshot.revision());
        Since { snapshots, is_all, version: self.version, floor: self.floor }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }
}

impl Cell {
    fn new(snapshot: Snapshot) -> Self {
        Self { writer: ViewWriter::new(snapshot), changed: watch::Sender::new(0), departures: Departures::default() }
    }

    fn is_read(&self) -> bool {
        self.writer.has_readers() || self.changed.receiver_count() > 0
    }

    /// Remembers who has left cleanly, and forgets who is there again, or was lost.
    fn note_departures(&mut self, before: &Snapshot, raw: &Snapshot, left: Vec<Arc<str>>) {
        if self.departures.len() > 0 {
            for difference in before.differences(raw) {
                if let Difference::Joined(instance) | Difference::Left(instance) = difference {
                    self.departures.remove(&instance.code);
                }
            }
        }
        left.into_iter().filter(|code| raw.find(code).is_none()).for_each(|code| self.departures.add(code));
    }
}
