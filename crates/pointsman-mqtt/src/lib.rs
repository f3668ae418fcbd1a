//! MQTT in Pointsman.

pub mod packet;
pub mod reason;
pub mod relay;
pub mod session;
pub mod topic;
mod url;

pub use url::{BrokerUrl, Credentials, InvalidUrl};
