//! What can be set of a client, and its start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pointsman_mqtt::packet::Version;
use pointsman_mqtt::relay::Topics;
use pointsman_mqtt::topic;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::keeper::Keeper;
use super::link::Current;
use super::waiting::Waiting;
use super::{Client, Plan};
use crate::mqtt::{Credentials, Error};
use crate::{Algorithm, Registry};

const MAX_OUTSTANDING: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Settings of a [`Client`] before it is started.
#[derive(Debug)]
#[must_use]
pub struct ClientBuilder {
    registry: Registry,
    plan: Plan,
    algorithm: Algorithm,
}

impl ClientBuilder {
    pub(super) fn new(registry: &Registry, relays: &str) -> Self {
        let plan = Plan {
            relays: relays.into(),
            topics: Topics::default(),
            name: "pointsman".to_owned(),
            version: "1.0".to_owned(),
            client_id: String::new(),
            protocol: Version::V5,
            credentials: None,
            ca: None,
            identity: None,
            keep_alive: None,
            max_outstanding: MAX_OUTSTANDING,
            patience: PATIENCE,
        };
        Self { registry: registry.clone(), plan, algorithm: Algorithm::Random }
    }

    /// The form of topics; the relays' has to be the same. Default: [`Topics::CodeLast`].
    pub fn topics(mut self, topics: Topics) -> Self {
        self.plan.topics = topics;
        self
    }

    /// The sender's name: part of the client id, and with [`Topics::GoEnvelope`] of each topic. Default: `pointsman`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.plan.name = name.into();
        self
    }

    /// The sender's version, with [`Topics::GoEnvelope`] part of each topic. Default: `1.0`.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.plan.version = version.into();
        self
    }

    /// The protocol to speak with brokers. Default: MQTT 5.
    pub fn protocol(mut self, version: Version) -> Self {
        self.plan.protocol = version;
        self
    }

    /// User name and password for the relays' brokers.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.plan.credentials = Some(credentials);
        self
    }

    /// Connects with TLS; `ca` is a PEM file of trusted certificates.
    pub fn tls(mut self, ca: impl Into<PathBuf>) -> Self {
        self.plan.ca = Some(ca.into());
        self
    }

    /// The own certificate and its key, PEM files, for brokers that ask for one.
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.plan.identity = Some((certificate.into(), key.into()));
        self
    }

    /// A broker that is silent for so long is lost, in whole seconds. Default 30 s.
    pub fn keep_alive(mut self, keep_alive: Duration) -> Self {
        self.plan.keep_alive = Some(keep_alive);
        self
    }

    /// How a relay is chosen, among all that take work, the master too. Default: by chance, so that many clients that start at
    /// the same time spread.
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// How many messages may be unacknowledged, and how many requests unanswered; the next then has to wait. Default 1000.
    pub fn max_outstanding(mut self, count: usize) -> Self {
        self.plan.max_outstanding = count.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// How long publishing waits for a relay where there is none. Default 10 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.plan.patience = patience;
        self
    }

    /// Starts the client, which connects in the background: that there is no relay, or that its broker refuses, is said by
    /// [`Error::NoRelay`] to who sends something.
    ///
    /// # Errors
    ///
    /// [`Error::Topic`] for a name or a version that cannot stand in a topic; [`Error::Registry`] when the relays cannot be
    /// followed.
    pub async fn start(self) -> Result<Client, Error> {
        let Self { registry, mut plan, algorithm } = self;
        for level in [&plan.name, &plan.version] {
            if !topic::is_topic(level) || level.contains('/') {
                return Err(Error::topic(level, "is not one level of a topic, as name and version have to be"));
            }
        }
        plan.client_id = format!("pointsman-client-{}-{:016x}", plan.name, fastrand::u64(..));
        let relays = registry.discover(&plan.relays).await?;
        let (plan, waiting) = (Arc::new(plan), Arc::<Waiting>::default());
        let (sender, current) =
            watch::channel(Current { link: None, trouble: "none has been looked for yet".to_owned() });
        let slots = Semaphore::new(plan.max_outstanding);
        let mut keeper = JoinSet::new();
        keeper.spawn(Keeper::new(plan.clone(), relays, algorithm, waiting.clone(), sender).run());
        Ok(Client { plan, current, waiting, slots, keeper })
    }
}
