//! What the tests of the proxy share: a fleet whose instances come and go as a test says, and proxies over it.

#![allow(clippy::unwrap_used, dead_code, unused_imports, unreachable_pub)]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pointsman_core::{Instance, ObservedInstance, Role, Snapshot, Term, View, ViewWriter};
use pointsman_http::{Action, Error, Options, Pass, Proxy, Route, Settings, Views, When};
pub use pointsman_testkit::http::unused_address as nobody;

/// What should happen happens within this.
pub const SOON: Duration = Duration::from_secs(20);

/// Where programs of Python are installed, once for all tests.
pub fn python() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The instances of services, as a registry would show them.
pub struct Fleet {
    writers: Mutex<HashMap<String, (ViewWriter, Vec<ObservedInstance>)>>,
}

impl Fleet {
    /// Services without instances.
    pub fn new(services: &[&str]) -> Self {
        let writer = |service: &&str| ((*service).to_owned(), (ViewWriter::new(Snapshot::empty(*service)), Vec::new()));
        Self { writers: Mutex::new(services.iter().map(writer).collect()) }
    }

    /// The service `ress` with normal instances `a`, `b`, … at these addresses.
    pub fn of(addresses: &[SocketAddr]) -> Self {
        let fleet = Self::new(&["ress"]);
        for (code, address) in ('a'..).zip(addresses) {
            fleet.join("ress", &code.to_string(), *address);
        }
        fleet
    }

    pub fn views(&self) -> Views {
        let writers = self.writers.lock().unwrap();
        writers.iter().map(|(service, (writer, _))| (service.as_str().into(), writer.view())).collect()
    }

    /// A normal instance is there from now on.
    pub fn join(&self, service: &str, code: &str, address: SocketAddr) {
        self.join_as(Role::Normal, Instance::new(service).code(code).address(address.to_string()));
    }

    pub fn join_master(&self, service: &str, code: &str, address: SocketAddr) {
        self.join_as(Role::Master(Term(1)), Instance::new(service).code(code).address(address.to_string()));
    }

    pub fn join_as(&self, role: Role, instance: impl Into<ObservedInstance>) {
        let mut instance = instance.into();
        instance.role = role;
        let service = instance.service.clone();
        self.edit(&service, |instances| {
            instances.retain(|other| other.code != instance.code);
            instances.push(instance);
        });
    }

    pub fn leave(&self, service: &str, code: &str) {
        self.edit(service, |instances| instances.retain(|instance| &*instance.code != code));
    }

    fn edit(&self, service: &str, edit: impl FnOnce(&mut Vec<ObservedInstance>)) {
        let mut writers = self.writers.lock().unwrap();
        let (writer, instances) = writers.get_mut(service).unwrap();
        edit(instances);
        let revision = writer.load().revision() + 1;
        writer.store(Arc::new(Snapshot::new(service, revision, instances.iter().cloned().map(Arc::new).collect())));
    }

    /// Starts a proxy over these services.
    pub fn proxy(&self, settings: Settings) -> Proxy {
        self.try_proxy(settings).unwrap()
    }

    pub fn try_proxy(&self, settings: Settings) -> Result<Proxy, Error> {
        Proxy::start(settings, &self.views(), Options::default())
    }
}

/// Everything goes to `ress`; on a port that is free, with one worker.
pub fn settings() -> Settings {
    with_routes(vec![Route::new("^", "ress")])
}

/// These routes, by names of their own.
pub fn with_routes(mut routes: Vec<Route>) -> Settings {
    for (number, route) in routes.iter_mut().enumerate() {
        route.name = format!("route {number}");
    }
    let mut settings = Settings::new();
    settings.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    settings.workers = 1;
    settings.drain_timeout = Duration::from_secs(5);
    settings.routes = routes;
    settings
}

/// The settings where everything goes to `ress` in this way.
pub fn passing(change: impl FnOnce(&mut Pass)) -> Settings {
    with_routes(vec![route("ress", |_| {}, change)])
}

/// A route to a service.
pub fn route(service: &str, when: impl FnOnce(&mut When), pass: impl FnOnce(&mut Pass)) -> Route {
    let mut route = Route::new("^", service);
    route.when = When::default();
    when(&mut route.when);
    if let Action::Pass(to) = &mut route.action {
        pass(to);
    }
    route
}

/// A proxy that passes everything on to one instance. The fleet must stay.
pub fn proxy_to(address: SocketAddr) -> (Fleet, Proxy) {
    let fleet = Fleet::of(&[address]);
    let proxy = fleet.proxy(settings());
    (fleet, proxy)
}

/// Waits until it is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SOON, "not {what} within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a number has not changed for a while, and returns it.
pub async fn settled(number: impl Fn() -> u64) -> u64 {
    let (start, mut last, mut since) = (Instant::now(), number(), Instant::now());
    while since.elapsed() < Duration::from_millis(300) {
        assert!(start.elapsed() < SOON, "still growing after {SOON:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = number();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}
