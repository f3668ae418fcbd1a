//! An agent over a registry of its own, and what talks to it: plain sockets, so that nothing is hidden by a client.
#![allow(dead_code, missing_docs, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "test support")]

pub(crate) mod client;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pointsman_agent::{Agent, Settings};
use pointsman_registry::Registry;
use serde_json::Value;

pub(crate) use self::client::{Answer, Client};

/// Far longer than anything here takes: a deadline, not a wait.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Waits for something that nothing tells of: asks again and again.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, asking).await
}

/// An agent on loopback.
pub(crate) struct Server {
    pub(crate) agent: Agent,
    pub(crate) registry: Registry,
    pub(crate) address: SocketAddr,
}

/// An empty registry in memory, that no other test has. A mass loss is believed at once.
pub(crate) async fn registry() -> Registry {
    registry_with("guard=off").await
}

pub(crate) async fn registry_with(options: &str) -> Registry {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Registry::connect(&format!("memory://agent-test-{number}?{options}")).await.unwrap()
}

/// The settings of an agent at a free port of loopback.
pub(crate) fn settings() -> Settings {
    Settings::new(([127, 0, 0, 1], 0).into())
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_over(registry().await, change).await
    }

    pub(crate) async fn start_over(registry: Registry, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings();
        change(&mut settings);
        let agent = Agent::start(&registry, settings).await.unwrap();
        let address = agent.address();
        Self { agent, registry, address }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.client().await.ask(method, path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    /// What `GET` answers, which must be 200.
    pub(crate) async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// Registers by a lease of an hour.
    pub(crate) async fn put(&self, service: &str, code: &str) -> Value {
        let answer = self.ask("PUT", &format!("/v1/services/{service}/instances/{code}"), r#"{"ttl":"1h"}"#).await;
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        answer.json()
    }

    /// A stream of events.
    pub(crate) async fn stream(&self, method: &str, path: &str, body: &str) -> Client {
        let mut client = self.client().await;
        client.open(method, path, &[], body).await;
        client
    }

    pub(crate) async fn watch(&self, path: &str) -> Client {
        self.stream("GET", path, "").await
    }

    /// The codes that are listed, all of them, in their order.
    pub(crate) async fn codes(&self, service: &str) -> Vec<String> {
        codes(&self.json(&format!("/v1/services/{service}/instances?all")).await)
    }

    /// Waits until exactly these are listed.
    pub(crate) async fn until_codes(&self, service: &str, wanted: &[&str]) {
        until(&format!("{service} has {wanted:?}"), async || (self.codes(service).await == wanted).then_some(())).await;
    }

    /// The value of one line of the metrics.
    pub(crate) fn metric(&self, line: &str) -> u64 {
        let text = self.agent.metrics();
        let value = text.lines().find_map(|other| other.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until a line of the metrics has this value.
    pub(crate) async fn until_metric(&self, line: &str, value: u64) {
        until(&format!("{line} is {value}"), async || (self.metric(line) == value).then_some(())).await;
    }
}

pub(crate) fn codes(list: &Value) -> Vec<String> {
    let mut codes: Vec<_> =
        list.as_array().unwrap().iter().map(|instance| instance["code"].as_str().unwrap().to_owned()).collect();
    codes.sort();
    codes
}
