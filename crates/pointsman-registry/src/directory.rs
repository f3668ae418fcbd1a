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
///
/// # Examples
///
/// ```
/// # use pointsman_core::Instance;
/// # use pointsman_registry::{Freshness, Registry};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::connect("memory://directory").await?;
/// let registration = registry.register(Instance::new("ress").code("a")).await?;
/// let directory = registry.discover_all().await?;
/// assert_eq!(directory.freshness(), Freshness::Fresh);
/// assert!(directory.snapshot("ress").find("a").is_some());
/// assert!(directory.registry_id().is_some() && directory.registry_since_ms().is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

/// One service of a [`Directory`]: its snapshots, its master, its changes. It need not exist yet.
///
/// # Examples
///
/// ```
/// # use pointsman_core::Instance;
/// # use pointsman_registry::Registry;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::connect("memory://service").await?;
/// let registration = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
/// let service = registry.discover("ress").await?;
/// assert_eq!(&**service.name(), "ress");
/// assert_eq!(service.snapshot().instances().len(), 1);
/// assert_eq!(service.directory().snapshots().len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Service {
    name: Arc<str>,
    view: View,
    changed: watch::Receiver<u64>,
    directory: Directory,
}

/// How far a view can be trusted.
///
/// # Examples
///
/// ```
/// # #[cfg(not(feature = "testing"))]
/// # fn main() {}
/// # #[cfg(feature = "testing")]
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use pointsman_registry::Freshness;
/// # use pointsman_registry::testing::TestRegistry;
/// let test = TestRegistry::new();
/// let service = test.registry().discover("ress").await?;
/// assert_eq!(service.freshness(), Freshness::Fresh);
/// test.cut();
/// service.directory().stale().await;
/// assert!(matches!(service.freshness(), Freshness::Stale { .. }));
/// # Ok(())
/// # }
/// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://snapshot").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let directory = registry.discover_all().await?;
    /// assert_eq!(directory.snapshot("ress").instances().len(), 1);
    /// assert!(directory.snapshot("unknown").is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn snapshot(&self, service: &str) -> Arc<Snapshot> {
        self.inner.shared.snapshot(service)
    }

    /// The newest snapshots of all services that hold anything, in the order of their names.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://snapshots").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let directory = registry.discover_several(["cfgs", "ress"]).await?;
    /// assert_eq!(directory.snapshots().len(), 1); // no instance of `cfgs` is registered
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        let mut snapshots = self.inner.shared.snapshots();
        snapshots.sort_by(|a, b| a.service().cmp(b.service()));
        snapshots
    }

    /// Whether an instance that is gone left cleanly: it deregistered, or was deregistered. Otherwise the registry lost it, or
    /// nobody knows: of each service the last thousand are remembered, until they come back; of the services that have vanished, the
    /// last thousand.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://has-left").await?;
    /// let registration = registry.register(Instance::new("ress").code("a")).await?;
    /// let service = registry.discover("ress").await?;
    /// registration.close().await?;
    /// service.wait_for(|snapshot| snapshot.is_empty()).await?;
    /// assert!(service.directory().has_left("ress", "a"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn has_left(&self, service: &str, code: &str) -> bool {
        self.inner.shared.has_left(service, code)
    }

    /// What operators have set for instances, in the order of services and codes; also for those that are not registered now. Over
    /// agents nothing is told of it here: ask them.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://overrides-followed").await?;
    /// registry.set_weight("ress", "a", Some(5)).await?;
    /// let directory = registry.discover_all().await?;
    /// assert_eq!(directory.overrides()[0].weight, Some(5));
    /// assert!(directory.has_override("ress", "a") && !directory.has_override("ress", "b"));
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://has-override").await?;
    /// registry.drain("ress", "a").await?;
    /// let directory = registry.discover_all().await?;
    /// assert!(directory.has_override("ress", "a"));
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://service-of").await?;
    /// let directory = registry.discover_several(["ress"]).await?;
    /// assert!(directory.service("ress").is_some()); // although no instance is registered
    /// assert!(directory.service("cfgs").is_none());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn service(&self, name: &str) -> Option<Service> {
        if !self.inner.shared.scope.contains(name) {
            return None;
        }
        let (view, changed) = self.inner.shared.cell(name);
        Some(Service { name: name.into(), view, changed, directory: self.clone() })
    }

    /// The newest snapshots of the services that change from now on. Costs nothing for those that do not.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://updates").await?;
    /// let directory = registry.discover_all().await?;
    /// let mut updates = directory.updates();
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let snapshots = updates.next().await.unwrap_or_default();
    /// assert_eq!(&**snapshots[0].service(), "ress");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn updates(&self) -> Updates {
        Updates::new(self.clone())
    }

    /// All changes from now on, of every service that is followed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Change, Instance};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://changes-of-all").await?;
    /// let directory = registry.discover_all().await?;
    /// let mut changes = directory.changes();
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// assert_eq!(changes.next().await, Some(Change::ServiceAppeared("ress".into())));
    /// assert!(matches!(changes.next().await, Some(Change::Joined(_))));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::of_all(self)
    }

    /// Whether this directory is connected to its registry: fresh or stale. (Guarded is a matter of each service.)
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::{Freshness, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://freshness").await?;
    /// let directory = registry.discover_all().await?;
    /// assert_eq!(directory.freshness(), Freshness::Fresh);
    /// registry.close().await;
    /// assert!(matches!(directory.freshness(), Freshness::Stale { .. }));
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(not(feature = "testing"))]
    /// # fn main() {}
    /// # #[cfg(feature = "testing")]
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pointsman_registry::Freshness;
    /// # use pointsman_registry::testing::TestRegistry;
    /// let test = TestRegistry::new();
    /// let directory = test.registry().discover_all().await?;
    /// test.cut();
    /// directory.stale().await;
    /// test.mend();
    /// directory.fresh().await?;
    /// assert_eq!(directory.freshness(), Freshness::Fresh);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn fresh(&self) -> Result<()> {
        let shared = &self.inner.shared;
        // The sender lives in `self`: no error.
        let _ = shared.link.subscribe().wait_for(|link| link.stale_since.is_none() || link.has_ended).await;
        if shared.has_ended() { Err(registry_closed()) } else { Ok(()) }
    }

    /// Waits until the connection to the registry is lost, and what is shown may be out of date. Returns at once while it
    /// is. Cancellation loses nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::{Freshness, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://stale").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let directory = registry.discover_all().await?;
    /// registry.close().await;
    /// directory.stale().await;
    /// assert!(matches!(directory.freshness(), Freshness::Stale { .. }));
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://snapshot-of").await?;
    /// let registration = registry.register(Instance::new("ress").code("a")).await?;
    /// let service = registry.discover("ress").await?;
    /// let before = service.snapshot();
    /// registration.update(|instance| instance.weight = 5).await?;
    /// let after = service.wait_for(|snapshot| snapshot.revision() > before.revision()).await?;
    /// assert_eq!(before.instances()[0].weight, 1); // a snapshot never changes
    /// assert_eq!(after.instances()[0].weight, 5);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.view.load()
    }

    /// The master.
    ///
    /// # Errors
    ///
    /// [`Error::NoMaster`] when there is none now.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::{Error, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://master").await?;
    /// let service = registry.discover("ress").await?;
    /// assert!(matches!(service.master(), Err(Error::NoMaster { .. })));
    /// let registration = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
    /// service.wait_for(|snapshot| snapshot.master().is_some()).await?;
    /// assert_eq!(service.master()?.address.as_deref(), Some("10.0.0.1:80"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn master(&self) -> Result<Arc<ObservedInstance>> {
        let no_master = || Error::NoMaster { service: self.name.clone() };
        self.snapshot().master().cloned().ok_or_else(no_master)
    }

    /// Where the newest snapshot lies: what a balancer reads.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://view").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let view = registry.discover("ress").await?.view();
    /// assert!(view.load().master().is_some());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// A balancer over the instances of this service, as they change. It has figures and health of its own; balancers that are to share them
    /// are made with [`Balancer::builder`](pointsman_balance::Balancer::builder), over [`Service::view`].
    ///
    /// This, behind a feature, is all that a registry knows of balancing.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(not(feature = "balance"))]
    /// # fn main() {}
    /// # #[cfg(feature = "balance")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # use pointsman_balance::Algorithm;
    /// # let registry = Registry::connect("memory://balancer").await?;
    /// let registration = registry.register(Instance::new("ress").address("10.0.0.1:80")).await?;
    /// let balancer = registry.discover("ress").await?.balancer(Algorithm::LeastConnections);
    /// let claim = balancer.pick("/data/video")?; // the master, as it is the only instance
    /// assert_eq!(claim.address(), Some("10.0.0.1:80"));
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "balance")]
    #[must_use]
    pub fn balancer(&self, algorithm: pointsman_balance::Algorithm) -> pointsman_balance::Balancer {
        pointsman_balance::Balancer::new(self.view(), algorithm)
    }

    /// How far the newest snapshot can be trusted.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_registry::{Freshness, Registry};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://freshness-of").await?;
    /// let service = registry.discover("ress").await?;
    /// match service.freshness() {
    ///     Freshness::Fresh => {}
    ///     Freshness::Stale { age } => println!("the registry is away; the snapshot is {age:?} old"),
    ///     Freshness::Guarded { .. } => println!("the registry has lost many instances at once"),
    /// }
    /// # assert_eq!(service.freshness(), Freshness::Fresh);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        match (self.snapshot().is_guarded(), self.directory.freshness()) {
            (false, freshness) => freshness,
            (true, Freshness::Stale { age }) => Freshness::Guarded { age },
            (true, _) => Freshness::Guarded { age: Duration::ZERO },
        }
    }

    /// All changes from now on.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::{Change, Instance};
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://changes-of-one").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let service = registry.discover("ress").await?;
    /// let mut changes = service.changes();
    /// registration.update(|instance| instance.weight = 5).await?;
    /// assert!(matches!(changes.next().await, Some(Change::Updated { new, .. }) if new.weight == 5));
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use pointsman_core::Instance;
    /// # use pointsman_registry::Registry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let registry = Registry::connect("memory://wait-for-snapshot").await?;
    /// let service = registry.discover("ress").await?;
    /// let registration = registry.register(Instance::new("ress")).await?;
    /// let snapshot = service.wait_for(|snapshot| snapshot.master().is_some()).await?;
    /// assert_eq!(snapshot.instances().len(), 1);
    /// # Ok(())
    /// # }
    /// ```
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
