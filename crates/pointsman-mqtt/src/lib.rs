//! MQTT in Pointsman: [`relay`], the load balancer between brokers; [`broker`], an embedded one; [`client`], what services and
//! senders are made of. Under them, without any I/O, [`packet`] (the codec of 3.1.1 and 5) and [`session`] (what is under way).
//!
//! Nothing here knows a registry: instances are seen through [`View`](pointsman_core::View)s.

pub mod broker;
pub mod client;
mod connection;
pub mod envelope;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod link;
pub mod packet;
pub mod problem;
pub mod reason;
pub mod relay;
pub mod session;
pub mod topic;
mod url;
mod wire;

pub use url::{BrokerUrl, Credentials, InvalidUrl};
pub use wire::ConnectError;
