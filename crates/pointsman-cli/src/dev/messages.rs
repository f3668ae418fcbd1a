//! Messages: an embedded broker with the relay in it, a service behind it, and a sender.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman::mqtt::broker::{Broker, Options};
use pointsman::mqtt::{BrokerUrl, Client, Relay, Reply, Request, Route, Service, Settings};
use pointsman::{Algorithm, Instance, Registry};

use crate::dev::sample;
use crate::dev::traffic::lock;
use crate::failure::Failure;

/// The service whose instances are reached by their codes.
pub(super) const SERVICE: &str = "cfgs";
/// Where senders publish for it.
pub(super) const TOPIC: &str = "/login/user";
/// The name under which the relay is found.
const RELAYS: &str = "mqtt-balancer";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The broker, the relay, and a sender.
#[derive(Debug)]
pub(super) struct Messages {
    broker: Broker,
    relay: Relay,
    client: Client,
    settings: Settings,
    flights: Flights,
}

/// How many requests each instance is at.
#[derive(Debug, Clone, Default)]
struct Flights(Arc<Mutex<BTreeMap<Arc<str>, usize>>>);

/// Where the embedded broker listens, unless somebody else does.
pub(super) fn usual_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7482))
}

impl Messages {
    /// Starts them. The broker listens at `address`, or, if that is taken, at a free port.
    pub(super) async fn start(registry: &Registry, address: SocketAddr) -> Result<Self, Failure> {
        let free = SocketAddr::new(address.ip(), 0);
        let broker = match Broker::bind(Options::new(address)).await {
            Ok(broker) => broker,
            Err(_) => Broker::bind(Options::new(free)).await.map_err(|error| failed("start the broker", &error))?,
        };
        let mut settings = Settings::new();
        settings.routes = vec![Route::new("^/login(/|$)", SERVICE)];
        settings.response_timeout = PATIENCE;
        let relay = Relay::start(registry, settings.clone(), Some(RELAYS), Some(&broker)).await;
        let mut relay = relay.map_err(|error| failed("start the relay", &error))?;
        relay.ready().await.map_err(|error| failed("start the relay", &error))?;
        let client = Client::builder(registry, RELAYS).name("cgws").start().await;
        let client = client.map_err(|error| failed("start a sender", &error))?;
        Ok(Self { broker, relay, client, settings, flights: Flights::default() })
    }

    /// Where the broker listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.broker.address()
    }

    /// Starts an instance of the service, which answers with its code.
    pub(super) async fn serve(
        &self,
        registry: &Registry,
        code: &str,
        weight: u32,
        work: bool,
    ) -> Result<Service, Failure> {
        let url: BrokerUrl =
            format!("mqtt://{}", self.address()).parse().map_err(|error| failed("name the broker", &error))?;
        let (flights, own): (Flights, Arc<str>) = (self.flights.clone(), code.into());
        let service = Service::builder(registry, Instance::new(SERVICE).code(code).weight(weight))
            .broker(url)
            .on(TOPIC, move |_: Request| {
                let (flights, own) = (flights.clone(), own.clone());
                async move {
                    let _flight = flights.begin(&own);
                    if work {
                        sample::work().await;
                    }
                    Ok(Reply::new(own.to_string()))
                }
            })
            .start()
            .await;
        service.map_err(|error| failed("start an instance", &error))
    }

    /// Sends a request as a sender would; the code of the instance that has answered.
    pub(super) async fn request(&self, topic: &str, payload: &str) -> Result<Arc<str>, pointsman::mqtt::Error> {
        let reply = self.client.request(topic, payload.to_owned(), PATIENCE).await?;
        Ok(String::from_utf8_lossy(&reply.payload).into())
    }

    /// Lets the relay choose by another algorithm.
    pub(super) async fn balance_by(&self, algorithm: Algorithm) -> Result<(), Failure> {
        let mut settings = self.settings.clone();
        for route in &mut settings.routes {
            route.algorithm = algorithm;
        }
        self.relay.reload(&settings).await.map_err(|error| failed("change the algorithm", &error))
    }

    /// What the relay has counted, as Prometheus reads it, without the end; empty once it ends.
    pub(super) async fn metrics(&self) -> String {
        self.relay.metrics().await.unwrap_or_default()
    }

    /// How many requests each instance is at.
    pub(super) fn in_flight(&self) -> Vec<(Arc<str>, usize)> {
        lock(&self.flights.0).iter().map(|(code, count)| (code.clone(), *count)).collect()
    }

    /// Ends them in order.
    pub(super) async fn close(self) {
        self.client.close().await;
        self.relay.close().await;
        self.broker.close().await;
    }
}

impl Flights {
    fn begin(&self, code: &Arc<str>) -> Flight {
        *lock(&self.0).entry(code.clone()).or_default() += 1;
        Flight { flights: self.clone(), code: code.clone() }
    }
}

/// A request that an instance is at.
struct Flight {
    flights: Flights,
    code: Arc<str>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(count) = lock(&self.flights.0).get_mut(&self.code) {
            *count -= 1;
        }
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("{what}: {error}"))
}
