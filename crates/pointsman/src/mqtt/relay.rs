//! The relay, over the services of a registry, and itself a service.

use std::collections::BTreeSet;

use pointsman_core::ServiceId;
use pointsman_mqtt::broker::Broker;
use pointsman_mqtt::relay::{self, Figures, Route, Settings};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::Error;
use crate::followed::{Followed, register_balancer};
use crate::{Instance, Registration, Registries};

/// A running relay: receives what senders publish, and publishes it under the code of an instance of the route's service.
///
/// Dropped, it leaves in the background, as by [`Relay::close`].
#[derive(Debug)]
pub struct Relay {
    relay: relay::Relay,
    register_as: Option<String>,
    followed: Mutex<Followed>,
    /// Lets clients into the embedded broker once the relay has subscribed.
    _opening: JoinSet<()>,
    /// Registers once the relay is ready; and what has come of it.
    registering: JoinSet<Result<Registration, Error>>,
    registration: Option<Registration>,
}

impl Relay {
    /// Starts a relay. It connects, and connects again, by itself; as soon as all brokers are connected and all subscriptions
    /// are confirmed, it registers under `register_as`, with its code and its ingress broker's address. `embedded` is the
    /// broker in this process, for settings that name none; it [lets clients in](pointsman_mqtt::broker::Handle::open) once the relay has
    /// subscribed there, so that none of their messages comes before. With [several registries](Registries) routes may name others, and the relay
    /// itself may register in another.
    ///
    /// It returns once every service that a route names is followed. A registry that
    /// [has not answered yet](pointsman_registry::Registry::has_answered) is not waited for: then it starts with the snapshots on disk.
    ///
    /// # Errors
    ///
    /// [`Error::Relay`] with everything that is wrong with the settings; [`Error::Registry`] when a service cannot be followed.
    pub async fn start(
        registries: impl Into<Registries>,
        settings: Settings,
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
        let instance = register_as.map(|name| Instance::new(name).code(settings.code.clone()).address(address));
        instance.as_ref().map_or(Ok(()), Instance::check)?;
        let registries = registries.into();
        let register_in = registries.for_registration().clone();
        let services = services(&settings, &registries, register_as);
        let followed = Followed::start(registries, services).await?;
        let handle = embedded.map(Broker::handle);
        let relay = relay::Relay::start(settings, followed.views(), followed.changed(), handle.clone())?;
        let mut opening = JoinSet::new();
        if let Some(handle) = handle {
            let receiving = relay.receiving();
            opening.spawn(async move {
                // A relay that has ended before receives nothing.
                if receiving.await.is_ok() {
                    handle.open();
                }
            });
        }
        let mut registering = JoinSet::new();
        if let Some(instance) = instance {
            let ready = relay.readiness();
            registering.spawn(async move {
                ready.await?;
                Ok(register_balancer(&register_in, instance, "relay").await?)
            });
        }
        let register_as = register_as.map(str::to_owned);
        let followed = Mutex::new(followed);
        Ok(Self { relay, register_as, followed, _opening: opening, registering, registration: None })
    }

    /// Returns when all brokers are connected, all subscriptions confirmed, and the relay is registered where it is to be.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`] when it cannot be registered: another relay has its code. [`Error::Relay`].
    pub async fn ready(&mut self) -> Result<(), Error> {
        self.relay.ready().await?;
        if let Some(registered) = self.registering.join_next().await {
            self.registration = Some(registered.map_err(|_| relay::Error::Closed)??);
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

    /// Leaves: deregisters, takes nothing new, sees through what is under way (no longer than the drain timeout), and
    /// disconnects.
    pub async fn close(mut self) {
        if let Some(Ok(Ok(registration))) = self.registering.try_join_next() {
            self.registration = Some(registration);
        }
        if let Some(registration) = self.registration.take()
            && let Err(error) = registration.close().await
        {
            tracing::warn!(%error, "the relay's registration ends with its session");
        }
        self.registering.shutdown().await;
        self.relay.close().await;
    }
}

/// The services of all routes; and the relays themselves, so that each knows the others' codes when it sees one at the end of a
/// topic.
fn services(settings: &Settings, registries: &Registries, relays: Option<&str>) -> BTreeSet<ServiceId> {
    settings.routes.iter().map(Route::service_id).chain(relays.map(|name| registries.beside(name))).collect()
}
