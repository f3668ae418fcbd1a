//! The proxy: the HTTP load balancer.
//!
//! Requests come in, the first route that matches says which service they are for, the balancer chooses an instance, and the
//! request is passed on.
//!
//! | question | file |
//! |---|---|
//! | what can be set, and what is wrong with it | `settings.rs`, `settings/` |
//! | threads, listeners, connections | `proxy.rs`, `worker.rs` |
//! | which route a request is for | `matching.rs`, `matching/` |
//! | what routes and services are at work with | `table.rs` |
//! | one request, from its head to the end of its answer | `exchange.rs`, `exchange/` |
//! | what clients speak | `client.rs`, `client/` |
//! | what instances speak, and connections to them that wait | `instance.rs`, `instance/` |
//! | how bodies flow between the two | `flow.rs` |
//! | heads and bodies of HTTP/1, strictly | `head.rs`, `http1/` |
//! | bodies of HTTP/2 | `http2.rs` |
//! | which fields go on | `forward.rs` |
//! | limits, queues, retries | `gate.rs` |
//! | who passes the checks | `health.rs`, `health/` |
//! | the proxy without a listener, as a `tower::Service` | `service.rs` |
//! | deadlines | `alarm.rs` |
//! | memory that is used again | `spare.rs`, `io.rs` |
//! | what is counted | `metrics.rs` |
//! | what is logged of each request | `access_log.rs` |
//! | what the proxy itself says | `problem.rs` |
//!
//! Each worker is a thread with a runtime, a listener and connections of its own, so that no request waits for another thread. A
//! request is read, routed, sent and answered by one task; in the ordinary case nothing is allocated for it and no lock is contended.

mod access_log;
mod alarm;
mod client;
mod error;
mod exchange;
mod flow;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gate;
mod head;
mod health;
mod http1;
mod http2;
mod instance;
mod io;
mod matching;
mod metrics;
mod problem;
mod proxy;
mod service;
mod settings;
mod spare;
mod table;
mod worker;

pub use pointsman_net::tls::{ServerTls as Tls, TlsError, TlsFile};

pub use self::error::Error;
pub use self::proxy::{Options, Proxy, Views};
pub use self::service::{Body, Requests};
pub use self::settings::{
    AccessLog, Action, Answer, Check, Forwarded, Invalid, Key, Limits, Network, Pass, Protocol, Route, RouteRole,
    Service, ServiceTls, Settings, Sticky, Timeouts, When,
};
