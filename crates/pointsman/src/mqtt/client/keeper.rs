//! The task that keeps a link to a relay: looks at everything anew, does what is to be done, and waits for the next event.

use std::sync::{Arc, Weak};
use std::time::Duration;

use pointsman_balance::{Balancer, Candidates};
use pointsman_core::ObservedInstance;
use pointsman_mqtt::client::{Settings, Status};
use pointsman_mqtt::packet::Version;
use pointsman_mqtt::relay::Topics;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Plan;
use super::link::{Current, End, Link, Station};
use super::waiting::Waiting;
use crate::mqtt::service::{connect, connected};
use crate::mqtt::{BrokerUrl, Error};
use crate::{Algorithm, Service};

/// How long a broker may take to accept a connection before another relay is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A relay that could not be reached is left alone for so long.
const AVOID: Duration = Duration::from_secs(1);
/// A connection may be away for so long (or until it could not be made once) before another relay is looked for.
const AWAY: Duration = Duration::from_secs(1);
/// How long the broker keeps answers while the connection is lost (MQTT 5).
const SESSION_EXPIRY: Duration = Duration::from_secs(300);

pub(super) struct Keeper {
    plan: Arc<Plan>,
    relays: Service,
    /// Over all of them: to a sender the master is a relay like the others.
    balancer: Balancer,
    waiting: Arc<Waiting>,
    current: watch::Sender<Current>,
    /// Of the current link's connection.
    status: Option<watch::Receiver<Status>>,
    /// Connections that may live, because requests wait for their answers by them. Two to one broker would have one client id,
    /// and turn each other out.
    stations: Vec<Weak<Station>>,
    /// Relays that could not be reached, and until when they are left alone.
    avoided: Vec<(Arc<str>, Instant)>,
    /// Since when the current link's connection has been away.
    away_since: Option<Instant>,
}

impl Keeper {
    pub(super) fn new(
        plan: Arc<Plan>,
        relays: Service,
        algorithm: Algorithm,
        waiting: Arc<Waiting>,
        current: watch::Sender<Current>,
    ) -> Self {
        let balancer = Balancer::builder(relays.view()).algorithm(algorithm).candidates(Candidates::All);
        let balancer = balancer.ejection(None).build();
        let (stations, avoided) = (Vec::new(), Vec::new());
        Self { plan, relays, balancer, waiting, current, status: None, stations, avoided, away_since: None }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        let mut changes = self.relays.changes();
        loop {
            let wake = self.round().await;
            let status = self.status.as_mut();
            let connection_changes = async {
                // It fails only when the client has ended, which it does after its last link.
                let changed = match status {
                    Some(status) => status.changed().await.is_ok(),
                    None => false,
                };
                if !changed {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                Some(_) = changes.next() => {}
                () = connection_changes => {}
                () = wait_until(wake) => {}
            }
        }
    }

    /// Looks whether the link is right, and makes another one if not. When to look again, although nothing has happened.
    async fn round(&mut self) -> Option<Instant> {
        let snapshot = self.relays.snapshot();
        let Some(link) = self.link() else { return self.find(None).await };
        let address = Some(&link.station.address);
        let is_there = |relay: &&Arc<ObservedInstance>| relay.takes_work() && relay.address.as_ref() == address;
        if snapshot.find(&link.code).filter(is_there).is_none() {
            tracing::info!(relay = &*link.code, "the relay has left");
            return self.find(Some((link, End::Left))).await;
        }
        let status = self.status.as_mut().map(|status| status.borrow_and_update().clone()).unwrap_or_default();
        if status.up {
            self.away_since = None;
            return None;
        }
        let now = Instant::now();
        let since = *self.away_since.get_or_insert(now);
        if status.failures < 2 && now < since + AWAY {
            return Some(since + AWAY);
        }
        // Whoever is at the same broker is no better off.
        let elsewhere = |relay: &&Arc<ObservedInstance>| relay.takes_work() && relay.address.as_ref() != address;
        if !snapshot.instances().iter().any(|relay| elsewhere(&relay)) {
            return Some(now + AVOID);
        }
        self.find(Some((link, End::Lost))).await
    }

    /// Finds another link in place of the one that has ended so.
    async fn find(&mut self, before: Option<(Arc<Link>, End)>) -> Option<Instant> {
        if let Some((link, End::Left)) = &before {
            // Nothing more is to be sent there, whether another one is found or not.
            self.current.send_replace(Current { link: None, trouble: "the relay has left".to_owned() });
            self.status = None;
            link.end(End::Left);
        }
        let lost = before.as_ref().filter(|(_, end)| *end == End::Lost).map(|(link, _)| link.station.address.clone());
        loop {
            let now = Instant::now();
            self.avoided.retain(|(_, until)| *until > now);
            let mut excluded: Vec<Arc<str>> = self.avoided.iter().map(|(code, _)| code.clone()).collect();
            let snapshot = self.relays.snapshot();
            let at_lost = snapshot.instances().iter().filter(|relay| lost.is_some() && relay.address == lost);
            excluded.extend(at_lost.map(|relay| relay.code.clone()));
            let relay = match self.balancer.pick_excluding("", &excluded) {
                Ok(claim) => claim.instance().clone(),
                Err(error) => {
                    if self.avoided.is_empty() {
                        self.say(format!("{error}"));
                    }
                    let again = self.avoided.iter().map(|(_, until)| *until).min();
                    return again.or(lost.map(|_| now + AVOID));
                }
            };
            match self.reach(&relay).await {
                Ok(station) => {
                    self.switch(&relay, station, before);
                    return None;
                }
                Err(error) => {
                    tracing::warn!(relay = &*relay.code, %error, "the relay cannot be reached");
                    self.say(error.to_string());
                    self.avoided.push((relay.code.clone(), Instant::now() + AVOID));
                }
            }
        }
    }

    /// A connection to the relay's broker: the one that there is, or a new one.
    async fn reach(&mut self, relay: &ObservedInstance) -> Result<Arc<Station>, Error> {
        let address = relay.address.clone().ok_or(Error::Unsupported("the relay is registered without an address"))?;
        self.stations.retain(|station| station.strong_count() > 0);
        let existing = self.stations.iter().filter_map(Weak::upgrade).find(|station| station.address == address);
        if let Some(station) = existing {
            connected(&station.client, &address, CONNECT_TIMEOUT).await?;
            return Ok(station);
        }
        let plan = &self.plan;
        let mut settings = Settings::new(plan.url(&address)?, plan.client_id.clone());
        let has_requests = plan.protocol == Version::V5 || plan.topics == Topics::GoEnvelope;
        settings.filters = if has_requests { vec![plan.inbox().into()] } else { Vec::new() };
        settings.max_outstanding = plan.max_outstanding;
        // The id is this client's alone: with 3.1.1, which keeps sessions for ever, none is to stay behind.
        settings.session_expiry = if plan.protocol == Version::V5 { SESSION_EXPIRY } else { Duration::ZERO };
        let (client, inbox) = connect(settings, CONNECT_TIMEOUT).await?;
        tokio::spawn(self.waiting.clone().take_from(inbox));
        let station = Arc::new(Station { client, address });
        self.stations.push(Arc::downgrade(&station));
        Ok(station)
    }

    fn switch(&mut self, relay: &ObservedInstance, station: Arc<Station>, before: Option<(Arc<Link>, End)>) {
        tracing::info!(relay = &*relay.code, broker = &*station.address, "sending by this relay");
        self.away_since = None;
        self.status = Some(station.client.status());
        let link = Some(Link::new(relay.code.clone(), station));
        // First the new one: who is told that the old one has ended looks for it.
        self.current.send_replace(Current { link, trouble: String::new() });
        if let Some((link, end)) = before {
            link.end(end);
        }
    }

    fn say(&self, trouble: String) {
        self.current.send_modify(|current| current.trouble = trouble);
    }

    fn link(&self) -> Option<Arc<Link>> {
        self.current.borrow().link.clone()
    }
}

impl Plan {
    fn url(&self, address: &str) -> Result<BrokerUrl, Error> {
        let refused =
            |error: crate::mqtt::InvalidUrl| Error::Refused { broker: address.to_owned(), reason: error.to_string() };
        let url: BrokerUrl = format!("mqtt://{address}").parse().map_err(refused)?;
        let mut url = url.with_version(self.protocol).or_credentials(self.credentials.clone());
        if let Some(ca) = &self.ca {
            url = url.with_tls(ca, self.identity.clone());
        }
        if let Some(keep_alive) = self.keep_alive {
            url = url.with_keep_alive(keep_alive);
        }
        Ok(url)
    }
}

async fn wait_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
