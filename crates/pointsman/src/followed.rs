//! The services that routes name, followed on from one configuration to the next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::View;
use pointsman_registry::{Freshness, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Directory, Instance, Registration, Registry, Service};

/// The services of one configuration. A service keeps its view from one configuration to the next, so that nothing that is known of
/// it is forgotten, whatever becomes of the registry.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    registry: Registry,
    used: BTreeMap<Arc<str>, Arc<FollowedService>>,
    /// Services that are not used now, but that a configuration which is taken back may name again: those of the configuration
    /// before, and those that cannot be read again while the registry is away.
    kept: BTreeMap<Arc<str>, Arc<FollowedService>>,
    /// Tells the data plane when the instances of a service have changed.
    changed: Arc<watch::Sender<()>>,
}

/// A service, and the task that tells the data plane of its changes.
#[derive(Debug)]
struct FollowedService {
    service: Service,
    _teller: JoinSet<()>,
}

/// How long a new configuration waits for the first snapshots of services that it names for the first time: a registry that is there
/// answers within that, and so its instances are used from the first moment.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long it waits while the registry is known to be away: for what is on disk.
const DISK_PATIENCE: Duration = Duration::from_millis(100);

impl Followed {
    /// Follows these services. Returns once the first snapshot of each is in; at once, with what is on disk, if the registry has not
    /// answered yet.
    pub(crate) async fn start(registry: &Registry, names: BTreeSet<Arc<str>>) -> Result<Self> {
        let (used, kept, changed) = (BTreeMap::new(), BTreeMap::new(), Arc::new(watch::Sender::new(())));
        let nothing = Self { registry: registry.clone(), used, kept, changed };
        if !registry.has_answered() {
            return nothing.next(names).await;
        }
        let directory = registry.discover_several(names.clone()).await?;
        Ok(Self { used: nothing.take(&directory, names), ..nothing })
    }

    /// The services of the next configuration. Does not wait for the registry: a service that is new, and that cannot be read
    /// yet, is empty, or as it is on disk, and is filled as soon as it can be read.
    pub(crate) async fn next(&self, names: BTreeSet<Arc<str>>) -> Result<Self> {
        let mut kept: BTreeMap<_, _> =
            self.kept.iter().chain(&self.used).map(|(n, one)| (n.clone(), one.clone())).collect();
        let (mut used, mut new) = (BTreeMap::new(), BTreeSet::new());
        for name in names {
            match kept.remove(&name) {
                Some(one) => drop(used.insert(name, one)),
                None => drop(new.insert(name)),
            }
        }
        kept.retain(|name, one| self.used.contains_key(name) || one.is_stale());
        if !new.is_empty() {
            let has_answered = self.registry.has_answered();
            let is_away = !has_answered || used.values().any(|one| one.is_stale());
            let patience = if is_away { DISK_PATIENCE } else { PATIENCE };
            let directory = self.registry.follow_several(new.clone())?;
            // That a registry has never answered has been said already.
            if tokio::time::timeout(patience, directory.fresh()).await.is_err() && has_answered {
                let services = new.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
                tracing::warn!(services, "not read from the registry yet: followed without waiting for it");
            }
            used.extend(self.take(&directory, new));
        }
        Ok(Self { registry: self.registry.clone(), used, kept, changed: self.changed.clone() })
    }

    /// Takes services out of a directory that follows them.
    fn take(&self, directory: &Directory, names: BTreeSet<Arc<str>>) -> BTreeMap<Arc<str>, Arc<FollowedService>> {
        let take = |name: Arc<str>| {
            let service = directory.service(&name)?;
            Some((name, Arc::new(FollowedService::new(service, self.changed.clone()))))
        };
        names.into_iter().filter_map(take).collect()
    }

    /// The views of the services of this configuration.
    pub(crate) fn views(&self) -> HashMap<Arc<str>, View> {
        self.used.iter().map(|(name, one)| (name.clone(), one.service.view())).collect()
    }

    /// Marked as changed when the instances of a service have changed: of this configuration, and of every one after it.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

impl FollowedService {
    fn new(service: Service, changed: Arc<watch::Sender<()>>) -> Self {
        let (mut changes, mut teller) = (service.changes(), JoinSet::new());
        teller.spawn(async move {
            loop {
                changes.next().await;
                changed.send_replace(());
            }
        });
        Self { service, _teller: teller }
    }

    fn is_stale(&self) -> bool {
        matches!(self.service.directory().freshness(), Freshness::Stale { .. })
    }
}

/// Registers a proxy or a relay, however long the registry takes, unless it says no.
pub(crate) async fn register_balancer(registry: &Registry, instance: Instance, what: &str) -> Result<Registration> {
    let (service, code) = (instance.service.clone(), instance.code.clone());
    let registered = registry.registration(instance).patience(None).register().await;
    match &registered {
        Ok(_) => tracing::info!(%service, %code, "{what} registered"),
        Err(error) => tracing::error!(%service, %code, %error, "the {what} cannot be registered: no client finds it"),
    }
    registered
}
