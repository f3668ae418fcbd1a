//! What the writer and the readers of one directory share: the newest snapshot of each service, and which have changed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use pointsman_core::{Snapshot, View, ViewWriter};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backend::Scope;
use crate::overrides::{Identity, Override, Overrides};

/// What the writer and the readers of one directory share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) scope: Scope,
    /// Revisions begin here: in microseconds since 1970, so that no two runs give the same one to different content, and
    /// whoever comes back with a revision of another run is found to know nothing of this one.
    pub(super) base: u64,
    cells: RwLock<HashMap<Arc<str>, Cell>>,
    /// Rises with every change of any service.
    pub(crate) version: watch::Sender<u64>,
    /// Which service it was, of the last changes: the one of the newest version is the last.
    journal: RwLock<VecDeque<Arc<str>>>,
    pub(crate) link: watch::Sender<Link>,
    /// Which data the registry holds, where it can tell.
    pub(super) identity: RwLock<Option<Identity>>,
    /// What operators have set, by service; those that have nothing set are not in it.
    overrides: RwLock<BTreeMap<Arc<str>, Overrides>>,
}

/// An override of which a registry that has lost its data knows nothing: to be set there again.
#[derive(Debug)]
pub(crate) struct Restore {
    pub(crate) service: Arc<str>,
    pub(crate) code: Arc<str>,
    pub(crate) set: Override,
}

/// Whether the directory is connected to its registry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Link {
    /// Whether there is anything to show yet: from the registry, or from disk.
    pub(crate) loaded: Loaded,
    /// `None` while what is shown is fresh; otherwise when it last was.
    pub(crate) stale_since: Option<Instant>,
}

/// Where what is shown came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loaded {
    Nothing,
    FromDisk,
    FromRegistry,
}

#[derive(Debug)]
struct Cell {
    writer: ViewWriter,
    changed: watch::Sender<u64>,
    /// The codes that left cleanly last and have not come back, the newest at the end.
    left: VecDeque<Arc<str>>,
}

impl Shared {
    pub(crate) fn new(scope: Scope) -> Self {
        let link = Link { loaded: Loaded::Nothing, stale_since: Some(Instant::now()) };
        let (version, link) = (watch::Sender::new(0), watch::Sender::new(link));
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let base = u64::try_from(since.as_micros()).unwrap_or_default();
        Self {
            scope,
            base,
            cells: RwLock::default(),
            version,
            journal: RwLock::default(),
            link,
            identity: RwLock::default(),
            overrides: RwLock::default(),
        }
    }

    /// What operators have set, by service; also for those that are not registered.
    pub(crate) fn overrides(&self) -> BTreeMap<Arc<str>, Overrides> {
        self.overrides.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether anything is set for an instance.
    pub(crate) fn has_override(&self, service: &str, code: &str) -> bool {
        let overrides = self.overrides.read().unwrap_or_else(PoisonError::into_inner);
        overrides.get(service).and_then(|overrides| overrides.get(code)).is_some_and(|set| !set.is_empty())
    }

    pub(super) fn note_overrides(&self, service: &Arc<str>, mut set: Overrides) {
        set.retain(|_, set| !set.is_empty());
        let is_same =
            |known: &BTreeMap<Arc<str>, Overrides>| known.get(service).map_or(set.is_empty(), |old| *old == set);
        if is_same(&self.overrides.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut known = self.overrides.write().unwrap_or_else(PoisonError::into_inner);
        if set.is_empty() {
            known.remove(service);
        } else {
            known.insert(service.clone(), set);
        }
    }

    /// Which data the registry holds.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows one service, whether it exists or not.
    pub(crate) fn cell(&self, service: &str) -> (View, watch::Receiver<u64>) {
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        let cell = cells.entry(service.into()).or_insert_with(|| Cell::new(Snapshot::empty(service)));
        (cell.writer.view(), cell.changed.subscribe())
    }

    /// The newest snapshot, without following the service if it does not exist.
    pub(crate) fn snapshot(&self, service: &str) -> Arc<Snapshot> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells.get(service).map_or_else(|| Arc::new(Snapshot::empty(service)), |cell| cell.writer.load())
    }

    /// The newest snapshots of all services that hold anything, in no order.
    pub(crate) fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells.values().map(|cell| cell.writer.load()).filter(|snapshot| !snapshot.is_empty()).collect()
    }

    /// Whether an instance that is gone is known to have left cleanly, as far as that is remembered.
    pub(crate) fn has_left(&self, service: &str, code: &str) -> bool {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells.get(service).is_some_and(|cell| cell.left.iter().any(|left| **left == *code))
    }

    /// Remembers who has left cleanly, and forgets who is there, or was lost.
    pub(super) fn note_departures(&self, before: &Snapshot, after: &Snapshot, left: Vec<Arc<str>>) {
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        let Some(cell) = cells.get_mut(after.service()) else { return };
        if !cell.left.is_empty() {
            cell.left.retain(|code| after.find(code).is_none() && before.find(code).is_none() && !left.contains(code));
        }
        cell.left.extend(left.into_iter().filter(|code| after.find(code).is_none()));
        while cell.left.len() > LEFT {
            cell.left.pop_front();
        }
    }

    pub(super) fn store(&self, snapshot: Snapshot) {
        let service = snapshot.service().clone();
        let snapshot = Arc::new(snapshot);
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        match cells.get_mut(snapshot.service()) {
            Some(cell) => {
                cell.writer.store(snapshot.clone());
                cell.changed.send_modify(|changes| *changes += 1);
            }
            None => {
                cells.insert(snapshot.service().clone(), Cell::new(Snapshot::clone(&snapshot)));
            }
        }
        drop(cells);
        let mut journal = self.journal.write().unwrap_or_else(PoisonError::into_inner);
        if journal.len() == JOURNAL {
            journal.pop_front();
        }
        journal.push_back(service);
        // Under the lock: whoever reads the journal knows which version its last line is of.
        self.version.send_modify(|version| *version += 1);
    }

    /// The newest snapshots of the services that have changed since a version, or of all; and the version now.
    pub(crate) fn since(&self, version: Option<u64>) -> (Vec<Arc<Snapshot>>, u64) {
        let journal = self.journal.read().unwrap_or_else(PoisonError::into_inner);
        let now = *self.version.borrow();
        let behind = version.and_then(|version| usize::try_from(now - version).ok());
        let changed = behind
            .filter(|behind| *behind <= journal.len())
            .map(|behind| journal.range(journal.len() - behind..).cloned().collect::<HashSet<Arc<str>>>());
        drop(journal);
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        let snapshots = match changed {
            Some(changed) => changed.iter().filter_map(|service| Some(cells.get(service)?.writer.load())).collect(),
            // Too far behind: everything, with what has vanished.
            None => cells.values().map(|cell| cell.writer.load()).collect(),
        };
        (snapshots, now)
    }
}

impl Cell {
    fn new(snapshot: Snapshot) -> Self {
        Self { writer: ViewWriter::new(snapshot), changed: watch::Sender::new(0), left: VecDeque::new() }
    }
}

/// Maximum number of clean leavers of one service that are remembered for those who compare snapshots later.
const LEFT: usize = 1024;
/// So many changes are remembered: whoever is further behind compares everything.
pub(super) const JOURNAL: usize = 4096;
