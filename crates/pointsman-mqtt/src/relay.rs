//! The relay: the MQTT load balancer.

mod prefix;
mod settings;

pub use settings::{Invalid, Route, RouteRole, Settings, Topics};
