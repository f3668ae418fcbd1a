//! MQTT in Pointsman.

pub mod packet;
pub mod reason;
pub mod session;
pub mod topic;
