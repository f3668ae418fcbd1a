//! The services that routes name, followed on from one configuration to the next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pointsman_core::{ServiceId, View};
use pointsman_registry::{Freshness, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Directory, Instance, Registration, Registries, Registry, Service};

/// The services of one configuration. A service keeps its view from one configuration to the next, so that nothing that is known of
/// it is forgotten, whatever becomes of the registry.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    registries: Registries,
    used: BTreeMap<ServiceId, Arc<FollowedService>>,
    /// Services that are not used now, but that a configuration which is taken back may name again: those of the configuration
    /// before, and those that cannot be read again while the registry is away.
    kept: Vec<Arc<FollowedService>>,
    /// Tells the data plane when the instances of a service have changed.
    changed: Arc<watch::Sender<()>>,
}

/// A service, and the task that tells the data plane of its changes.
#[derive(Debug)]
struct FollowedService {
    registry: Registry,
    service: Service,
    _teller: JoinSet<()>,
}

/// Services that are not followed yet, of one registry.
struct Unfollowed<'r> {
    registry: &'r Registry,
    services: Vec<ServiceId>,
    /// Whether the registry is known to be away.
    is_away: bool,
}

/// How long a new configuration waits for the first snapshots of services that it names for the first time: a registry that is there
/// answers within that, and so its instances are used from the first moment.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long it waits while the registry is known to be away: for what is on disk.
const DISK_PATIENCE: Duration = Duration::from_millis(100);
/// How long a start waits for a registry that has answered before, where there are others: they are not to wait for one that has gone.
const START_PATIENCE: Duration = Duration::from_secs(5);

impl Followed {
    /// Follows these services. Returns once the first snapshot of each is in; at once, with what is on disk, for those whose registry has
    /// not answered yet. Where there are several registries, one that goes away just now does not delay the others for long.
    pub(crate) async fn start(registries: Registries, services: BTreeSet<ServiceId>) -> Result<Self> {
        let (used, kept, changed) = (BTreeMap::new(), Vec::new(), Arc::new(watch::Sender::new(())));
        let mut followed = Self { registries: registries.clone(), used, kept, changed };
        let mut new = Vec::new();
        for id in services {
            add(&mut new, registries.of(&id)?, id);
        }
        if let [Unfollowed { registry, services, .. }] = &new[..]
            && registry.has_answered()
        {
            let directory = registry.discover_several(services.iter().map(|id| id.name.clone())).await?;
            followed.used = followed.take(&directory, registry, services);
            return Ok(followed);
        }
        followed.used = followed.follow(new, START_PATIENCE).await?;
        Ok(followed)
    }

    /// The services of the next configuration. Does not wait for a registry: a service that is new, and that cannot be read
    /// yet, is empty, or as it is on disk, and is filled as soon as it can be read.
    pub(crate) async fn next(&self, registries: Registries, services: BTreeSet<ServiceId>) -> Result<Self> {
        let known = || self.used.values().chain(&self.kept);
        let (mut used, mut new) = (BTreeMap::new(), Vec::new());
        for id in services {
            let registry = registries.of(&id)?;
            match known().find(|one| one.is(registry, &id)) {
                Some(one) => drop(used.insert(id, one.clone())),
                None => add(&mut new, registry, id),
            }
        }
        let is_among = |all: &BTreeMap<_, Arc<FollowedService>>, one: &Arc<FollowedService>| {
            all.values().any(|other| Arc::ptr_eq(one, other))
        };
        let mut kept: Vec<Arc<FollowedService>> = Vec::new();
        for one in known() {
            let may_return = is_among(&self.used, one) || one.is_stale();
            let is_new = !is_among(&used, one) && !kept.iter().any(|other| Arc::ptr_eq(one, other));
            if may_return && is_new && !one.registry.is_closed() {
                kept.push(one.clone());
            }
        }
        for of_one in &mut new {
            let of_same = |one: &&Arc<FollowedService>| one.registry.is_same(of_one.registry);
            of_one.is_away |= used.values().filter(of_same).any(|one| one.is_stale());
        }
        used.extend(self.follow(new, PATIENCE).await?);
        Ok(Self { registries, used, kept, changed: self.changed.clone() })
    }

    /// Goes on with the registries that there are.
    pub(crate) fn registries(&self) -> &Registries {
        &self.registries
    }

    /// Follows services for the first time, and waits for each registry for no longer than `patience`; for all of them together.
    async fn follow(
        &self,
        new: Vec<Unfollowed<'_>>,
        patience: Duration,
    ) -> Result<BTreeMap<ServiceId, Arc<FollowedService>>> {
        let following = new.iter().map(|Unfollowed { registry, services, is_away }| async move {
            let directory = registry.follow_several(services.iter().map(|id| id.name.clone()))?;
            let patience = if *is_away { DISK_PATIENCE } else { patience };
            // That a registry has never answered has been said already.
            if tokio::time::timeout(patience, directory.fresh()).await.is_err() && registry.has_answered() {
                let services = services.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                tracing::warn!(services, "not read from the registry yet: followed without waiting for it");
            }
            Ok(self.take(&directory, registry, services))
        });
        let followed = join_all(following).await.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(followed.into_iter().flatten().collect())
    }

    /// Takes services out of a directory that follows them.
    fn take(
        &self,
        directory: &Directory,
        registry: &Registry,
        services: &[ServiceId],
    ) -> BTreeMap<ServiceId, Arc<FollowedService>> {
        let take = |id: &ServiceId| {
            let service = directory.service(&id.name)?;
            Some((id.clone(), Arc::new(FollowedService::new(registry.clone(), service, self.changed.clone()))))
        };
        services.iter().filter_map(take).collect()
    }

    /// The views of the services of this configuration.
    pub(crate) fn views(&self) -> HashMap<ServiceId, View> {
        self.used.iter().map(|(id, one)| (id.clone(), one.service.view())).collect()
    }

    /// A service of this configuration.
    #[cfg(feature = "mqtt")]
    pub(crate) fn service(&self, id: &ServiceId) -> Option<Service> {
        self.used.get(id).map(|one| one.service.clone())
    }

    /// Marked as changed when the instances of a service have changed: of this configuration, and of every one after it.
    #[cfg(feature = "mqtt")]
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// Adds a service to those of its registry.
fn add<'r>(new: &mut Vec<Unfollowed<'r>>, registry: &'r Registry, id: ServiceId) {
    match new.iter_mut().find(|of_one| of_one.registry.is_same(registry)) {
        Some(of_one) => of_one.services.push(id),
        None => new.push(Unfollowed { registry, services: vec![id], is_away: !registry.has_answered() }),
    }
}

impl FollowedService {
    fn new(registry: Registry, service: Service, changed: Arc<watch::Sender<()>>) -> Self {
        let (mut changes, mut teller) = (service.changes(), JoinSet::new());
        teller.spawn(async move {
            while changes.next().await.is_some() {
                changed.send_replace(());
            }
        });
        Self { registry, service, _teller: teller }
    }

    /// Whether it is the service that this one is called in this registry.
    fn is(&self, registry: &Registry, id: &ServiceId) -> bool {
        self.registry.is_same(registry) && *self.service.name() == id.name
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
