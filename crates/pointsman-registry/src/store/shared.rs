//! What the writer and the readers of one directory share: the newest snapshot of each service, and which have changed.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

use pointsman_core::{Snapshot, View};
use tokio::sync::watch;
use tokio::time::Instant;

use super::cells::{Cells, Shown, Since};
use crate::backend::Scope;
use crate::overrides::{Identity, Override, Overrides};

/// What the writer and the readers of one directory share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) scope: Scope,
    /// Revisions begin here: in microseconds since 1970, so that no two runs give the same one to different content, and
    /// whoever comes back with a revision of another run is found to know nothing of this one.
    pub(super) base: u64,
    cells: RwLock<Cells>,
    /// Rises with every change of any service.
    pub(crate) version: watch::Sender<u64>,
    pub(crate) link: watch::Sender<Link>,
    /// Why the registry lets nothing be read, since it has said so.
    refusal: RwLock<Option<Arc<str>>>,
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
    /// Nothing is followed any more: the registry has been closed, or the runtime has ended.
    pub(crate) has_ended: bool,
}

/// Where what is shown came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loaded {
    Nothing,
    FromDisk,
    FromRegistry,
}

impl Shared {
    pub(crate) fn new(scope: Scope) -> Self {
        let link = Link { loaded: Loaded::Nothing, stale_since: Some(Instant::now()), has_ended: false };
        let (version, link) = (watch::Sender::new(0), watch::Sender::new(link));
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let base = u64::try_from(since.as_micros()).unwrap_or_default();
        Self {
            scope,
            base,
            cells: RwLock::default(),
            version,
            link,
            refusal: RwLock::default(),
            identity: RwLock::default(),
            overrides: RwLock::default(),
        }
    }

    /// Whether nothing is followed any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.link.borrow().has_ended
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

    /// Why the registry lets nothing be read.
    pub(crate) fn refusal(&self) -> Option<Arc<str>> {
        self.refusal.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note_refusal(&self, reason: Option<Arc<str>>) {
        *self.refusal.write().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Which data the registry holds.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows one service, whether it exists or not.
    pub(crate) fn cell(&self, service: &str) -> (View, watch::Receiver<u64>) {
        self.cells.write().unwrap_or_else(PoisonError::into_inner).view(service)
    }

    /// The newest snapshot, without following the service if it does not exist.
    pub(crate) fn snapshot(&self, service: &str) -> Arc<Snapshot> {
        self.cells().snapshot(service)
    }

    /// The newest snapshots of all services that hold anything, in no order.
    pub(crate) fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.cells().snapshots()
    }

    /// Whether an instance that is gone is known to have left cleanly, as far as that is remembered.
    pub(crate) fn has_left(&self, service: &str, code: &str) -> bool {
        self.cells().has_left(service, code)
    }

    /// Shows what has changed, all of it at once: whoever reads several services sees all of these as they were, or as they are.
    pub(super) fn publish(&self, all: Vec<Shown>) {
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        let version = cells.publish(all);
        // Under the lock: whoever reads the journal knows which version its last line is of.
        self.version.send_if_modified(|seen| std::mem::replace(seen, version) != version);
    }

    /// The newest snapshots of the services that have changed since a version, or of all.
    pub(crate) fn since(&self, version: Option<u64>) -> Since {
        self.cells().since(version)
    }

    pub(super) fn cells(&self) -> RwLockReadGuard<'_, Cells> {
        self.cells.read().unwrap_or_else(PoisonError::into_inner)
    }
}
