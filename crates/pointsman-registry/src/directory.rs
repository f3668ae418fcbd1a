//! The live source of snapshots.

use std::sync::Arc;
use std::time::Duration;

use pointsman_core::{ObservedInstance, Snapshot, View};
use tokio::sync::watch;

use crate::changes::{Changes, Updates};
use crate::overrides::{OverrideOf, Overrides};
use crate::registry::registry_closed;
use crate::store::{Loaded, Shared};
use crate::{Error, Result};

/// Follows one service, several, or all of a registry, and has the newest snapshot of each at hand. Cheap to clone; when
/// the last clone and the last [`Service`] of it are gone, it follows no longer.
#[derive(Debug, Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

/// One service of a [`Directory`]: its snapshots, its master, its changes. It need not exist yet.
#[derive(Debug, Clone)]
pub struct Service {
    name: Arc<str>,
    view: View,
    changed: watch::Receiver<u64>,
    directory: Directory,
}

/// How far a view can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is what the registry holds.
    Fresh,
    /// The registry is away, or has not answered yet; this is what it held `age` ago.
    Stale {
        /// How long ago the view was last known to be fresh.
        age: Duration,
    },
    /// The registry has suddenly lost many instances, which are still shown.
    Guarded {
        /// How long ago the view was last known to be fresh; zero while connected.
        age: Duration,
    },
}

#[derive(Debug)]
pub(crate) struct Inner {
    shared: Arc<Shared>,
    /// Dropped with this: the follower and the store end.
    _alive: watch::Sender<()>,
}

impl Inner {
    pub(crate) fn new(shared: Arc<Shared>, alive: watch::Sender<()>) -> Self {
        Self { shared, _alive: alive }
    }
}

impl Directory {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// The newest snapshot of a service; an empty one if it does not exist, or is not followed by this directory.
    #[must_use]
    pub fn snapshot(&self, service: &str) -> Arc<Snapshot> {
        self.inner.shared.snapshot(service)
    }

    /// The newest snapshots of all services that hold anything, in the order of their names.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        let mut snapshots = self.inner.shared.snapshots();
        snapshots.sort_by(|a, b| a.service().cmp(b.service()));
        snapshots
    }

    /// Whether an instance that is gone left cleanly: it deregistered, or was deregistered. Otherwise the registry lost it, or
    /// nobody knows: of each service the last thousand are remembered, until they come back; of the services that have vanished, the
    /// last thousand.
    #[must_use]
    pub fn has_left(&self, service: &str, code: &str) -> bool {
        self.inner.shared.has_left(service, code)
    }

    /// What operators have set for instances, in the order of services and codes; also for those that are not registered now. Over
    /// agents nothing is told of it here: ask them.
    #[must_use]
    pub fn overrides(&self) -> Vec<OverrideOf> {
        let all = self.inner.shared.overrides().into_iter();
        let of_service = |(service, overrides): (Arc<str>, Overrides)| {
            let snapshot = self.snapshot(&service);
            let may_be_there = snapshot.unreadable().is_some();
            overrides.into_iter().map(move |(code, set)| {
                let is_registered = snapshot.find(&code).is_some_and(|instance| !instance.is_guarded());
                set.of(&service, &code, is_registered || may_be_there)
            })
        };
        all.flat_map(of_service).collect()
    }

    /// Whether an operator has set anything for an instance.
    #[must_use]
    pub fn has_override(&self, service: &str, code: &str) -> bool {
        self.inner.shared.has_override(service, code)
    }

    /// Which data the registry holds, where it can tell: another word after it has lost all of it, and begun anew. The same for
    /// everybody who follows it.
    #[must_use]
    pub fn registry_id(&self) -> Option<String> {
        self.inner.shared.identity().map(|identity| identity.id)
    }

    /// Since when the registry has been holding the data that [`Directory::registry_id`] names, where it can tell; in milliseconds
    /// since 1970.
    #[must_use]
    pub fn registry_since_ms(&self) -> Option<u64> {
        self.inner.shared.identity().and_then(|identity| identity.since_unix_ms)
    }

    /// A handle on one service. `None` if this directory does not follow it.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<Service> {
        if !self.inner.shared.scope.contains(name) {
            return None;
        }
        let (view, changed) = self.inner.shared.cell(name);
        Some(Service { name: name.into(), view, changed, directory: self.clone() })
    }

    /// The newest snapshots of the services that change from now on. Costs nothing for those that do not.
    #[must_use]
    pub fn updates(&self) -> Updates {
        Updates::new(self.clone())
    }

    /// All changes from now on, of every service that is followed.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::of_all(self)
    }

    /// Whether this directory is connected to its registry: fresh or stale. (Guarded is a matter of each service.)
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        match self.inner.shared.link.borrow().stale_since {
            None => Freshness::Fresh,
            Some(since) => Freshness::Stale { age: since.elapsed() },
        }
    }

    /// Waits until all is fresh again. Returns at once while it is. Cancellation loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when nothing is followed any more: the registry has been closed.
    pub async fn fresh(&self) -> Result<()> {
        let shared = &self.inner.shared;
        // The sender lives in `self`: no error.
        let _ = shared.link.subscribe().wait_for(|link| link.stale_since.is_none() || link.has_ended).await;
        if shared.has_ended() { Err(registry_closed()) } else { Ok(()) }
    }

    /// Waits until the connection to the registry is lost, and what is shown may be out of date. Returns at once while it
    /// is. Cancellation loses nothing.
    pub async fn stale(&self) {
        // The sender lives in `self`: no error.
        let _ = self.inner.shared.link.subscribe().wait_for(|link| link.stale_since.is_some()).await;
    }

    /// Waits for the first content: from the registry, or else, after `patience`, from disk.
    pub(crate) async fn loaded(&self, patience: Duration) -> bool {
        let mut link = self.inner.shared.link.subscribe();
        let fresh = link.wait_for(|link| link.loaded == Loaded::FromRegistry);
        if tokio::time::timeout(patience, fresh).await.is_ok() {
            return true;
        }
        self.inner.shared.link.borrow().loaded != Loaded::Nothing
    }

    /// Waits for the first content, from wherever, as long as it takes.
    pub(crate) async fn begun(&self) {
        // The directory holds the sender.
        let _ = self.inner.shared.link.subscribe().wait_for(|link| link.loaded != Loaded::Nothing).await;
    }
}

impl Service {
    /// The service's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The newest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.view.load()
    }

    /// The master.
    ///
    /// # Errors
    ///
    /// [`Error::NoMaster`] when there is none now.
    pub fn master(&self) -> Result<Arc<ObservedInstance>> {
        let no_master = || Error::NoMaster { service: self.name.clone() };
        self.snapshot().master().cloned().ok_or_else(no_master)
    }

    /// Where the newest snapshot lies: what a balancer reads.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// A balancer over the instances of this service, as they change. It has figures and health of its own; balancers that are to share them
    /// are made with [`Balancer::builder`](pointsman_balance::Balancer::builder), over [`Service::view`].
    ///
    /// This, behind a feature, is all that a registry knows of balancing.
    #[cfg(feature = "balance")]
    #[must_use]
    pub fn balancer(&self, algorithm: pointsman_balance::Algorithm) -> pointsman_balance::Balancer {
        pointsman_balance::Balancer::new(self.view(), algorithm)
    }

    /// How far the newest snapshot can be trusted.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        match (self.snapshot().is_guarded(), self.directory.freshness()) {
            (false, freshness) => freshness,
            (true, Freshness::Stale { age }) => Freshness::Guarded { age },
            (true, _) => Freshness::Guarded { age: Duration::ZERO },
        }
    }

    /// All changes from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::of_one(self)
    }

    /// Waits until the newest snapshot satisfies `condition`, and returns it. Returns at once if it does already. Cancellation loses
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when the last snapshot that there will ever be does not: the registry has been closed.
    pub async fn wait_for(&self, mut condition: impl FnMut(&Snapshot) -> bool) -> Result<Arc<Snapshot>> {
        let (mut changed, mut link) = (self.changed.clone(), self.directory.shared().link.subscribe());
        loop {
            // Before the look: what is published before the end is still seen.
            let has_ended = link.borrow_and_update().has_ended;
            changed.mark_unchanged();
            let snapshot = self.snapshot();
            if condition(&snapshot) {
                return Ok(snapshot);
            }
            if has_ended {
                return Err(registry_closed());
            }
            // The directory holds both senders: no error.
            tokio::select! {
                _ = changed.changed() => {}
                _ = link.wait_for(|link| link.has_ended) => {}
            }
        }
    }

    /// The directory that this service belongs to.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        let mut changed = self.changed.clone();
        changed.mark_unchanged();
        changed
    }
}
