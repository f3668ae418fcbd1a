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

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(any(feature = "http", feature = "mqtt"))]
mod followed;
#[cfg(feature = "tower")]
mod held_body;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(any(feature = "http", feature = "mqtt"))]
mod registries;
mod registry;
#[cfg(feature = "tonic")]
pub mod tonic;
#[cfg(feature = "tower")]
pub mod tower;

pub use pointsman_balance::{
    Algorithm, Balancer, Builder as BalancerBuilder, CallError, CallPolicy, Candidates, Claim, Considered, Ejection,
    Endpoints, Explanation, Outcome, PickError, RetryBudget, Standing, Tier, UnknownAlgorithm, UnknownRole,
};
pub use pointsman_core::{
    Change, Difference, Instance, InvalidInstance, InvalidName, MAX_NAME_BYTES, MAX_WEIGHT, ObservedInstance, Problem,
    Role, ServiceId, Snapshot, StaleTerm, Status, Term, TermGuard, View, check_address, check_name, is_invisible,
    shown,
};
pub use pointsman_registry::{
    Answer, Builder as RegistryBuilder, Cause, Changes, ClearedOverrides, Departure, Error, Freshness, Guard, Log,
    MAX_TERM_BASE, OVERRIDES_KEPT, OverrideOf, Peers, Registration, RegistrationBuilder, Result, Roles, Trouble,
    Unanswered, Updates, check, parse_duration, wire,
};
#[cfg(any(feature = "http", feature = "mqtt"))]
pub use registries::Registries;
pub use registry::{Builder, Directory, Registry, Service};
