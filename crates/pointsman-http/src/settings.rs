//! What a proxy is to do, as a configuration says it. What is wrong with it: `settings/problems.rs`; its words:
//! `settings/words.rs`.

mod network;
mod problems;
mod words;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pointsman_balance::{Algorithm, Ejection};
use pointsman_core::ServiceId;
use pointsman_net::tls::{ClientTls, ServerTls, TlsError};

pub use self::network::Network;

/// What a proxy is to do. The fields are those of the section `[http]` of a configuration file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// Where it listens. Default `127.0.0.1:7481`. Port 0: some free one.
    pub listen: SocketAddr,
    /// How many threads serve, each with connections of its own. Default: as many as there are cores.
    pub workers: usize,
    /// For TLS, with HTTP/2 and HTTP/1.1 by ALPN. Default: none; then HTTP/2 is understood with prior knowledge.
    pub tls: Option<ServerTls>,
    /// The hops before this one whose `X-Forwarded-…` and `Forwarded` are believed. Default: none.
    pub trusted: Vec<Network>,
    /// How instances are told where a request comes from. Default [`Forwarded::XForwarded`].
    pub forwarded: Forwarded,
    /// Whether an answer of the proxy's own says why in a header, `pointsman-reason`. Default: no.
    pub reasons: bool,
    /// The form of the access log. Default: off.
    pub access_log: AccessLog,
    /// Addresses of instances that would be refused (link-local, which has the clouds' metadata services; unspecified; multicast)
    /// and may be called nevertheless. Default: none.
    pub allow_addresses: Vec<Network>,
    /// What a client may use up.
    pub limits: Limits,
    /// How long what is under way may take when the proxy ends. Default 30 s.
    pub drain_timeout: Duration,
    /// First match wins.
    pub routes: Vec<Route>,
    /// What holds for a service, whichever route leads to it; by its name, in whichever registry it is found.
    pub services: BTreeMap<Arc<str>, Service>,
}

/// How instances are told where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Forwarded {
    /// `X-Forwarded-For`, `-Proto`, `-Host`.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Rfc7239,
    /// Both.
    Both,
    /// Not at all.
    Off,
}

/// The form of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum AccessLog {
    /// None.
    #[default]
    Off,
    /// A line for people.
    Text,
    /// An object a line.
    Json,
}

/// What clients may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections at a time, over all workers; others wait to be accepted. Default 50,000.
    pub connections: usize,
    /// The largest head of a request or of an answer, in bytes. Default 32 KiB.
    pub head: usize,
    /// The most fields in a head. Default 100.
    pub fields: usize,
    /// How long a client may take over a request's head, or its TLS handshake. Default 10 s.
    pub head_time: Duration,
    /// How long a client's connection is kept without a request. Default 60 s.
    pub keep_alive: Duration,
    /// Requests at a time on one connection of HTTP/2. Default 128.
    pub streams: u32,
}

/// A rule: which requests go where.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Route {
    /// Its name in metrics and logs. Default: what it matches.
    pub name: String,
    /// Which requests. Everything that is given has to match.
    pub when: When,
    /// What is done with them.
    pub action: Action,
}

/// Which requests a route is for.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct When {
    /// A regular expression over the path, without the query: the seed's `match`.
    pub pattern: Option<String>,
    /// What the path begins with: `/a` has `/a`, `/a/` and `/a/b`, but not `/ab`.
    pub path_prefix: Option<String>,
    /// Names, `*.example.org` for all below one; without a port. Empty: any.
    pub hosts: Vec<String>,
    /// Methods. Empty: any.
    pub methods: Vec<String>,
    /// Fields by name, in lower case, each with a regular expression over one of its values.
    pub headers: Vec<(String, String)>,
}

/// What is done with requests.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// They are passed on.
    Pass(Box<Pass>),
    /// They are answered by the proxy itself.
    Answer(Answer),
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// Fields, such as `location`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// How requests are passed on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Pass {
    /// The service that they are for.
    pub service: Arc<str>,
    /// Name of the registry in which this service, and those of `split` and `mirror`, are found; `None`: the proxy's own. Whoever starts the
    /// proxy says what the name stands for. Default: `None`.
    pub registry: Option<Arc<str>>,
    /// Other services that get a share of them, in percent; the rest is the first's.
    pub split: Vec<(Arc<str>, u8)>,
    /// A service that gets a copy of so many percent of them; what it answers is thrown away.
    pub mirror: Option<(Arc<str>, u8)>,
    /// How an instance is chosen. Default: round robin.
    pub algorithm: Algorithm,
    /// Which instances may be chosen. Default: the normal ones.
    pub role: RouteRole,
    /// What the hashes go by. Default: the client's address for `ip-hash`, path and query for `url-hash`.
    pub key: Option<Key>,
    /// Whether a client stays with its instance, by a cookie.
    pub sticky: Option<Sticky>,
    /// What takes the place of what `path_prefix` has matched.
    pub rewrite_prefix: Option<String>,
    /// How long the parts of a request may take.
    pub timeouts: Timeouts,
    /// How often a request that has failed is tried again, on another instance. Default 2.
    pub retries: u32,
    /// Of what has been sent to an instance, so many percent of requests may be sent again (of the last seconds; a few are always allowed).
    /// What could not be sent is tried elsewhere whatever this says. Default 20.
    pub retry_budget: u32,
    /// Requests at a time by this route. Default: no limit.
    pub max_in_flight: Option<usize>,
    /// How many may wait when there are too many. Default 100.
    pub queue: usize,
    /// How long they wait. Default 1 s.
    pub queue_timeout: Duration,
}

/// Which instances of a service a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RouteRole {
    /// The normal ones; the master where there is none.
    #[default]
    Normal,
    /// The master.
    Master,
}

/// What the hashes go by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Key {
    /// The client's address, as the trusted hops tell it.
    ClientAddress,
    /// Path and query.
    Path,
    /// The value of a header, by its name in lower case.
    Header(String),
    /// The value of a cookie.
    Cookie(String),
}

/// By which cookie a client stays with its instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    /// The cookie's name.
    pub cookie: String,
    /// How long browsers keep it. `None`: until they are closed.
    pub max_age: Option<Duration>,
}

/// How long the parts of a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Until a connection to the instance is there. Default 3 s: a first packet that is lost is sent again after one.
    pub connect: Duration,
    /// From the last byte of the request to the first of the answer. Default 60 s.
    pub first_byte: Duration,
    /// Without a byte in either direction. Default 60 s.
    pub idle: Duration,
    /// From the head of the request to the end of the answer, retries included. Default: no limit. Upgraded connections have none.
    pub whole: Option<Duration>,
}

/// What holds for a service.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Service {
    /// What its instances speak. Default HTTP/1.1.
    pub protocol: Protocol,
    /// TLS towards them. Default: none.
    pub tls: Option<ServiceTls>,
    /// Whether the proxy itself finds out who answers. Default: no.
    pub check: Option<Check>,
    /// Requests at a time at one instance. Default: no limit.
    pub max_in_flight: Option<usize>,
    /// How long who has joined takes to get its full share. Default: at once.
    pub slow_start: Duration,
    /// By what rule failing instances are ejected; `None`: never.
    pub ejection: Option<Ejection>,
}

/// What instances speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2; with prior knowledge where there is no TLS.
    Http2,
}

/// TLS towards instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTls {
    /// Who signs their certificates, as a PEM file.
    pub ca: PathBuf,
    /// The name that certificates must have. `None`: the host of the instance's address.
    pub name: Option<String>,
}

/// How the proxy finds out who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// `None`: a connection is enough. Otherwise the path that a `GET` must be answered for with 200 to 399.
    pub path: Option<String>,
    /// From one to the next. Default 2 s.
    pub interval: Duration,
    /// How long one may take. Default 1 s.
    pub timeout: Duration,
    /// So many successes in a row bring an instance back. Default 1.
    pub rise: u32,
    /// So many failures in a row take it out. Default 3.
    pub fall: u32,
}

/// Something in the settings that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {reason}")]
pub struct Invalid {
    /// Where, by the names of the configuration file: `route.0.match`, `services.ress.check`.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Settings {
    /// The defaults, without routes.
    #[must_use]
    pub fn new() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7481)),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            tls: None,
            trusted: Vec::new(),
            forwarded: Forwarded::default(),
            reasons: false,
            access_log: AccessLog::default(),
            allow_addresses: Vec::new(),
            limits: Limits::default(),
            drain_timeout: Duration::from_secs(30),
            routes: Vec::new(),
            services: BTreeMap::new(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 50_000,
            head: 32 << 10,
            fields: 100,
            head_time: Duration::from_secs(10),
            keep_alive: Duration::from_secs(60),
            streams: 128,
        }
    }
}

impl Route {
    /// Requests whose path matches `pattern` are passed on to `service`.
    #[must_use]
    pub fn new(pattern: impl Into<String>, service: impl Into<Arc<str>>) -> Self {
        let pattern = pattern.into();
        Self {
            name: pattern.clone(),
            when: When { pattern: Some(pattern), ..When::default() },
            action: Action::Pass(Box::new(Pass::new(service))),
        }
    }
}

impl Pass {
    /// To this service, with the defaults.
    #[must_use]
    pub fn new(service: impl Into<Arc<str>>) -> Self {
        Self {
            service: service.into(),
            registry: None,
            split: Vec::new(),
            mirror: None,
            algorithm: Algorithm::default(),
            role: RouteRole::default(),
            key: None,
            sticky: None,
            rewrite_prefix: None,
            timeouts: Timeouts::default(),
            retries: 2,
            retry_budget: 20,
            max_in_flight: None,
            queue: 100,
            queue_timeout: Duration::from_secs(1),
        }
    }

    /// All services that requests may go to.
    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        let others = self.split.iter().chain(&self.mirror).map(|(service, _)| service);
        std::iter::once(&self.service).chain(others).map(|name| self.service_id(name))
    }

    /// One of the services of this route, by its name.
    pub(crate) fn service_id(&self, name: &Arc<str>) -> ServiceId {
        ServiceId::new(self.registry.clone(), name.clone())
    }
}

impl ServiceTls {
    /// Reads the file, which is read again with each reload.
    ///
    /// # Errors
    ///
    /// [`TlsError`] says what is wrong with it, and what would be right.
    pub fn check_files(&self) -> Result<(), TlsError> {
        self.files().load(&[]).map(drop)
    }

    pub(crate) fn files(&self) -> ClientTls {
        ClientTls { ca: self.ca.clone(), identity: None }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            whole: None,
        }
    }
}

impl Default for Service {
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            tls: None,
            check: None,
            max_in_flight: None,
            slow_start: Duration::ZERO,
            ejection: Some(Ejection::default()),
        }
    }
}

impl Check {
    /// Whether a connection is accepted; or, with a path, whether a `GET` for it is answered well.
    #[must_use]
    pub fn new(path: Option<String>) -> Self {
        Self { path, interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 1, fall: 3 }
    }
}
