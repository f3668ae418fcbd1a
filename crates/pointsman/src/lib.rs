//! Services of a fleet register themselves; of each service exactly one instance is master; callers find the instances
//! and are balanced over them.
//!
//! ```
//! use pointsman::{Algorithm, Instance, Registry, Role};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // `memory://` is a registry within this process; a fleet uses `zookeeper://host1,host2,host3/micro-service`.
//! let registry = Registry::connect("memory://example").await?;
//!
//! // A service registers itself, and learns its role.
//! let instance = Instance::new("testserver").address("127.0.0.1:50000").weight(3).tag("zone", "eu-1");
//! let mut registration = registry.register(instance).await?;
//! if let Some(Role::Master(term)) = registration.role_changed().await {
//!     println!("master now: everything written carries term {term}");
//! }
//!
//! // A caller finds the master, or is balanced over the normal instances.
//! let service = registry.discover("testserver").await?;
//! println!("master is {:?}", service.master()?.address);
//! let balancer = service.balancer(Algorithm::LeastConnections);
//! let claim = balancer.pick("/data/video")?;
//! println!("calling {:?}", claim.address());
//!
//! registration.close().await?;
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```
//!
//! The [`guide`] explains the words in ten minutes: instance, role, term, snapshot, claim.
//!
//! # Features
//!
//! Registries within the process (`memory://`), balancing and health checks are always there. With `default-features = false` that is
//! all: few dependencies, and nothing that needs a C compiler. The features add to it, in any combination:
//!
//! | feature | default | what it is for |
//! |---|---|---|
//! | `zookeeper` | yes | registries on ZooKeeper: `zookeeper://HOST:PORT/PREFIX` |
//! | `agent-client` | yes | registries behind agents: `http://HOST:PORT` |
//! | `tls` | yes | `https://` to agents, `tls=on` to ZooKeeper; rustls with aws-lc, which needs a C compiler |
//! | `tower` | | a layer that sends each request of an HTTP client to an instance; a stream of changes for `tower::discover::Discover` |
//! | `tonic` | | a balanced channel for the gRPC clients of tonic; turns on `tower` |
//! | `serde` | | an [`Instance`], a [`Term`], a [`Status`], an [`Algorithm`] and [`Candidates`] in your own configuration |
//! | `testing` | | a registry for your tests, whose connection can be cut: [`testing`](testing/index.html) |
//! | `http` | | the HTTP load balancer, with a listener and for the program's own requests; has TLS, and needs a C compiler |
//! | `mqtt` | | the MQTT relay, the embedded broker, and clients for services and senders; has TLS, and needs a C compiler |
//! | `agent` | | the agent, with its HTTP API and its dashboard; has TLS, and needs a C compiler |
//!
//! A URL that needs a feature which is not turned on is refused with an [`Error::Url`] that names the feature.
//!
//! Rust 1.89 is needed, with every feature. A higher version is asked for with a minor release at the earliest.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "tower")]
pub mod client;
#[cfg(any(feature = "http", feature = "mqtt"))]
mod followed;
#[cfg(feature = "tonic")]
pub mod grpc;
pub mod guide;
#[cfg(feature = "tower")]
mod held_body;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(feature = "http")]
pub mod proxy;
#[cfg(any(feature = "http", feature = "mqtt"))]
mod registries;

pub use pointsman_balance::{
    Algorithm, Balancer, Builder as BalancerBuilder, CallError, CallPolicy, Candidates, Claim, Considered, Ejection,
    Endpoints, Explanation, Outcome, PickError, RetryBudget, Standing, Tier, UnknownAlgorithm, UnknownRole,
};
pub use pointsman_core::{
    Change, Difference, Instance, InvalidDuration, InvalidInstance, InvalidName, InvalidTerm, MAX_NAME_BYTES,
    MAX_WEIGHT, ObservedInstance, Problem, Role, ServiceId, Snapshot, StaleTerm, Status, Term, TermGuard,
    UnknownStatus, View, ViewWriter, check_address, check_name, is_invisible, shown,
};
#[cfg(feature = "testing")]
pub use pointsman_registry::testing;
pub use pointsman_registry::{
    Answer, Builder as RegistryBuilder, Cause, Changes, ClearedOverrides, Departure, Directory, Error, Freshness,
    Guard, Log, MAX_TERM_BASE, OVERRIDES_KEPT, OverrideOf, Peers, Registration, RegistrationBuilder, Registry, Result,
    Roles, Service, Trouble, Unanswered, Updates, check, masters, parse_duration, wire,
};
#[cfg(any(feature = "http", feature = "mqtt"))]
pub use registries::Registries;
