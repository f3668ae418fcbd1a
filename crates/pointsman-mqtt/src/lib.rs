//! MQTT in Pointsman.

pub mod broker;
pub mod client;
mod connection;
pub mod envelope;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
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
