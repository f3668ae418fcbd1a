//! Registration, election and directory.
//!
//! A [`Registry`] is where registrations live: in memory (`memory://`), on ZooKeeper (`zookeeper://`, feature `zookeeper`), or
//! behind an agent (`http://`, feature `agent-client`); `https://`, and TLS to ZooKeeper, need the feature `tls`, too. An instance
//! that is registered holds a [`Registration`], which tells its role; who looks for instances asks a [`Directory`], or
//! for one service a [`Service`], which follow the registry and keep the newest [`Snapshot`](pointsman_core::Snapshot)
//! at hand, also while the registry is away.
//!
//! One way only: a backend sends events to the one task that writes a directory; readers see immutable
//! snapshots. User code never runs on the task that reads the registry.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(feature = "agent-client", feature = "tls", feature = "zookeeper")),
    allow(dead_code, reason = "what all registries share is not needed whole by each")
)]

#[cfg(feature = "agent-client")]
mod agent;
mod backend;
mod changes;
pub mod check;
mod directory;
mod disk;
mod error;
mod guard;
mod hold;
mod keep;
mod lease;
mod log;
pub mod masters;
mod memory;
mod overrides;
mod peers;
mod registration;
mod registry;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(all(feature = "tls", any(feature = "agent-client", feature = "zookeeper")))]
mod tls;
#[cfg(all(not(feature = "tls"), any(feature = "agent-client", feature = "zookeeper")))]
#[path = "no_tls.rs"]
mod tls;
mod url;
#[cfg_attr(
    not(any(feature = "agent-client", feature = "zookeeper")),
    allow(dead_code, reason = "a registry in memory is always there")
)]
mod wait;
pub mod wire;
#[cfg(feature = "zookeeper")]
mod zookeeper;

pub use changes::{Changes, Updates};
pub use directory::{Directory, Freshness, Service};
pub use error::{Cause, Error};
pub use guard::Guard;
pub use log::Log;
pub use overrides::{ClearedOverrides, OVERRIDES_KEPT, OverrideOf};
pub use peers::{Answer, Peers, Unanswered};
pub use pointsman_core::{InvalidDuration, parse_duration};
pub use registration::{Departure, Registration, Roles, Trouble};
pub use registry::{Builder, MAX_TERM_BASE, RegistrationBuilder, Registry};

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
