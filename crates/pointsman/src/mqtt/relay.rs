//! The relay, over the services of a registry, and itself a service.

mod group;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::ServiceId;
use pointsman_mqtt::broker::{Broker, Handle};
use pointsman_mqtt::relay::{self, Figures, Route, Settings, Views};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::group::Member;
use super::Error;
use crate::followed::{Followed, register_balancer};
use crate::{Instance, Registration, Registries, Registry, Service};

/// How long telling the registry may take when the relay ends.
const REGISTRY_PATIENCE: Duration = Duration::from_secs(2);

/// A running relay: receives what senders publish, and publishes it under the code of an instance of the route's service.
///
/// Dropped, it ends in the background, as by [`Relay::close`] without others of its group.
#[derive(Debug)]
pub struct Relay {
    relay: relay::Relay,
    register_as: Option<String>,
    followed: Mutex<Followed>,
    /// Lets clients into the embedded broker once the relay has subscribed.
    _opening: JoinSet<()>,
    /// Its settings and the instances of all services, for what goes on in the background.
    current: watch::Sender<(Settings, Views)>,
    /// The relays that register as it does.
    relays: Option<Service>,
    /// Is told once the relay is registered and ready.
    registered: Option<oneshot::Receiver<Result<Arc<Registration>, Error>>>,
    registration: Option<Arc<Registration>>,
    /// What it does as a member of its group.
    member: JoinSet<()>,
}

impl Relay {
    /// Starts a relay. It connects, and connects again, by itself. `embedded` is the broker in this process, for settings that name
    /// none; it [lets clients in](pointsman_mqtt::broker::Handle::open) once the relay has subscribed there, so that none of their messages
    /// comes before. With [several registries](Registries) routes may name others, and the relay itself may register in another.
    ///
    /// With `register_as` it is a service itself. It is registered before any broker is touched, and takes work, that is, clients find it,
    /// as soon as all brokers are connected and all subscriptions are confirmed. Without a code in the settings it takes the first one of its
    /// group that is free: so the next relay that is started finds what brokers have kept for one that was killed. It shares the messages
    /// of its group (`$share/…`) with others that are registered, takes over what brokers have kept for one that is gone, and subscribes
    /// plainly while it is alone.
    ///
    /// It returns once every service that a route names is followed. A registry that
    /// [has not answered yet](pointsman_registry::Registry::has_answered) is not waited for: then it starts with the snapshots on disk, and
    /// registers when the registry is there.
    ///
    /// # Errors
    ///
    /// [`Error::Relay`] with everything that is wrong with the settings; [`Error::Registry`] when a service cannot be followed, or another
    /// relay has its code.
    pub async fn start(
        registries: impl Into<Registries>,
        mut settings: Settings,
        register_as: Option<&str>,
        embedded: Option<&Broker>,
    ) -> Result<Self, Error> {
        // Before anything is connected.
        let problems = settings.problems();
        if !problems.is_empty() {
            return Err(relay::Error::Invalid(problems).into());
        }
        let address = match (&settings.advertise, &settings.ingress, embedded) {
            (Some(address), ..) => address.clone(),
            (None, Some(url), _) => url.address(),
            (None, None, Some(broker)) => broker.address().to_string(),
            (None, None, None) => return Err(relay::Error::NoBroker.into()),
        };
        let instance = register_as.map(|name| Instance::new(name).code(settings.code()).address(address));
        instance.as_ref().map_or(Ok(()), Instance::check)?;
        let registries = registries.into();
        let register_in = registries.for_registration().clone();
        let services = services(&settings, &registries, register_as);
        let followed = Followed::start(registries.clone(), services).await?;
        let relays = register_as.and_then(|name| followed.service(&registries.beside(name)));
        let has_code = settings.code.is_some();
        let claim = match (&instance, &relays) {
            (Some(instance), Some(relays)) => claimed(&register_in, relays, instance, &mut settings).await?,
            _ => None,
        };
        settings.code = Some(settings.code());
        let is_in_slot = !has_code && claim.is_some();
        let has_group = settings.ingress.is_some();
        let handle = embedded.map(Broker::handle);
        let current = watch::Sender::new((settings.clone(), followed.views()));
        let relay = relay::Relay::start(settings.clone(), followed.views(), followed.changed(), handle.clone())?;
        let opening = handle.map(|handle| open_when_received(&relay, handle)).unwrap_or_default();
        let (mut member, mut registered) = (JoinSet::new(), None);
        if let (Some(instance), Some(relays)) = (instance, relays.clone()) {
            let (ready, sharing) = (relay.readiness(), relay.sharing());
            let (current, changed) = (current.subscribe(), followed.changed());
            let (told, outcome) = oneshot::channel();
            registered = Some(outcome);
            member.spawn(async move {
                let opened = async {
                    ready.await?;
                    open(&register_in, claim, instance.code(settings.code())).await
                };
                let registration = match opened.await {
                    Ok(registration) => registration,
                    Err(error) => return drop(told.send(Err(error))),
                };
                let _ = told.send(Ok(registration.clone()));
                if has_group {
                    Member::new((relays, registration, sharing), current, changed, is_in_slot).run().await;
                }
            });
        }
        let register_as = register_as.map(str::to_owned);
        let followed = Mutex::new(followed);
        Ok(Self {
            relay,
            register_as,
            followed,
            _opening: opening,
            current,
            relays,
            registered,
            registration: None,
            member,
        })
    }

    /// Returns when all brokers are connected, all subscriptions confirmed, and the relay is registered where it is to be.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`] when it cannot be registered: another relay has its code. [`Error::Relay`].
    pub async fn ready(&mut self) -> Result<(), Error> {
        self.relay.ready().await?;
        if let Some(registered) = &mut self.registered {
            let registration = registered.await.map_err(|_| relay::Error::Closed)??;
            (self.registered, self.registration) = (None, Some(registration));
        }
        Ok(())
    }

    /// Goes on with other routes, filters, limits and timeouts, without losing a message. Brokers, topics and code stay as they
    /// were at the start.
    ///
    /// No registry is waited for: what is known of a service stays known, and one that routes name for the first time and that
    /// cannot be read within half a second is without instances (or has those on disk) until it can be read.
    ///
    /// # Errors
    ///
    /// [`Error::Relay`] with everything that is wrong, [`Error::Registry`] when no service can have such a name, or the registry is
    /// closed; everything stays as it was then.
    pub async fn reload(&self, settings: &Settings) -> Result<(), Error> {
        let registries = self.followed.lock().await.registries().clone();
        self.reload_with(settings, registries).await
    }

    /// The same, with other registries for the services that its routes name. A service that stays in its registry keeps all that is known
    /// of it. Where the relay itself is registered stays as it was at the start.
    ///
    /// # Errors
    ///
    /// As [`Relay::reload`].
    pub async fn reload_with(&self, settings: &Settings, registries: impl Into<Registries>) -> Result<(), Error> {
        let problems = settings.problems();
        if !problems.is_empty() {
            return Err(relay::Error::Invalid(problems).into());
        }
        let mut followed = self.followed.lock().await;
        let registries = registries.into();
        let services = services(settings, &registries, self.register_as.as_deref());
        let next = followed.next(registries, services).await?;
        self.relay.reload(settings.clone(), next.views()).await?;
        let mut settings = settings.clone();
        settings.code.clone_from(&self.current.borrow().0.code);
        self.current.send_replace((settings, next.views()));
        *followed = next;
        Ok(())
    }

    /// What it has done so far.
    ///
    /// # Errors
    ///
    /// [`Error::Relay`] when it has ended.
    pub async fn figures(&self) -> Result<Figures, Error> {
        Ok(self.relay.figures().await?)
    }

    /// The same for machines, in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// [`Error::Relay`] when it has ended.
    pub async fn metrics(&self) -> Result<String, Error> {
        Ok(self.relay.metrics().await?)
    }

    /// Ends: takes nothing new, completes what is under way (no longer than the drain timeout), disconnects, and deregisters. While others of
    /// its group are registered it leaves its share of the messages to them; the last one, and one that is not registered, leaves its
    /// subscriptions and sessions to its next start, for which brokers keep what is published until then (for the session expiry).
    pub async fn close(mut self) {
        if let Some(Ok(Ok(registration))) = self.registered.as_mut().map(oneshot::Receiver::try_recv) {
            self.registration = Some(registration);
        }
        self.member.shutdown().await;
        let has_others = |relays: &Service| {
            let code = &self.current.borrow().0.code;
            relays.snapshot().instances().iter().any(|relay| Some(&relay.code) != code.as_ref() && !relay.is_guarded())
        };
        let leaves_group = self.relays.as_ref().is_some_and(has_others);
        if let Some(registration) = &self.registration {
            // Clients go elsewhere, where there is an elsewhere.
            let told = timeout(REGISTRY_PATIENCE, registration.update(|relay| relay.weight = 0)).await;
            if let Ok(Err(error)) = told {
                tracing::warn!(%error, "the registry cannot be told that the relay ends");
            }
        }
        if self.current.borrow().0.ingress.is_none() {
            // Its broker ends with it: nothing is to be kept from another relay until it has disconnected.
            deregister(self.registration.take()).await;
        }
        if leaves_group {
            self.relay.leave_group().await;
        } else {
            self.relay.close().await;
        }
        deregister(self.registration.take()).await;
    }
}

/// Lets clients into the embedded broker once the relay receives what they publish.
fn open_when_received(relay: &relay::Relay, broker: Handle) -> JoinSet<()> {
    let receiving = relay.receiving();
    let mut opening = JoinSet::new();
    opening.spawn(async move {
        // A relay that has ended before receives nothing.
        if receiving.await.is_ok() {
            broker.open();
        }
    });
    opening
}

/// Registers the relay before it touches a broker; `None` where the registry is away, and the registration has to follow.
async fn claimed(
    registry: &Registry,
    relays: &Service,
    instance: &Instance,
    settings: &mut Settings,
) -> Result<Option<Arc<Registration>>, Error> {
    if !registry.has_answered() {
        return Ok(None);
    }
    match group::claim(registry, relays, instance, settings).await {
        Ok(registration) => {
            group::until_shared(relays, &registration.instance().code).await;
            Ok(Some(Arc::new(registration)))
        }
        Err(error) if error.is_retryable() => {
            tracing::warn!(%error, "the relay is started without its registration, which follows");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

async fn deregister(registration: Option<Arc<Registration>>) {
    if let Some(registration) = registration
        && let Err(error) = registration.close().await
    {
        tracing::warn!(%error, "the relay's registration ends with its session");
    }
}

/// Lets clients find a relay that is ready.
async fn open(
    registry: &Registry,
    claim: Option<Arc<Registration>>,
    instance: Instance,
) -> Result<Arc<Registration>, Error> {
    let Some(registration) = claim else {
        return Ok(Arc::new(register_balancer(registry, instance, "relay").await?));
    };
    let weight = instance.weight;
    registration.update(move |relay| relay.weight = weight).await?;
    tracing::info!(service = %instance.service, code = %instance.code, "relay registered");
    Ok(registration)
}

/// The services of all routes; and the relays themselves, so that each knows the others' codes when it sees one at the end of a
/// topic.
fn services(settings: &Settings, registries: &Registries, relays: Option<&str>) -> BTreeSet<ServiceId> {
    settings.routes.iter().map(Route::service_id).chain(relays.map(|name| registries.beside(name))).collect()
}
