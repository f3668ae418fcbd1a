//! A registry, a relay, and what the tests wait for.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pointsman::Registry;
use pointsman::mqtt::{Relay, Request, Route, Service, ServiceBuilder, Settings, Topics};
use pointsman_testkit::{Mosquitto, Paho, PahoOptions};

/// What should happen happens within this.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The code of a relay, as the seed's example has it.
pub(crate) const RELAY: &str = "efda4376-529c-4752-a264-553aa0c7f989";

/// A registry of one test's own.
pub(crate) async fn registry() -> Registry {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Registry::connect(&format!("memory://mqtt-{}-{number}", std::process::id())).await.unwrap()
}

/// A relay on one broker, for `cfgs`, registered as `mqtt-balancer`; ready.
pub(crate) async fn relay(registry: &Registry, broker: &str, topics: Topics, code: &str) -> Relay {
    let pattern = if topics == Topics::CodeLast { "^/(login|configs)(/|$)" } else { "^(login|configs)/" };
    let mut settings = Settings::new();
    settings.ingress = Some(broker.parse().unwrap());
    settings.topics = topics;
    settings.code = Some(code.into());
    settings.response_timeout = Duration::from_secs(10);
    settings.routes = vec![Route::new(pattern, "cfgs")];
    started(registry, settings).await
}

/// What is sent to `/login` is for `cfgs`.
pub(crate) fn route() -> Route {
    Route::new("^/login(/|$)", "cfgs")
}

pub(crate) async fn started(registry: &Registry, settings: Settings) -> Relay {
    let mut relay = Relay::start(registry, settings, Some("mqtt-balancer"), None).await.unwrap();
    within(relay.ready()).await.unwrap();
    relay
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("it to happen soon")
}

/// Asks until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn paho(broker: &Mosquitto) -> Paho {
    let paho = Paho::start().await;
    paho.connect(PahoOptions::new(&broker.address())).await;
    paho
}

/// A service that answers by its name and what it has got.
pub(crate) fn echo(service: ServiceBuilder, filter: &str, name: &'static str) -> ServiceBuilder {
    service.on(filter, move |request: Request| async move {
        let payload = String::from_utf8_lossy(request.payload()).into_owned();
        Ok(format!("{name}:{}:{payload}", request.topic()))
    })
}

pub(crate) async fn start(service: ServiceBuilder) -> Service {
    within(service.start()).await.unwrap()
}
