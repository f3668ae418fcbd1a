//! The proxy: the HTTP load balancer.
//!
//! Requests come in, the first route that matches says which service they are for, the balancer chooses an instance, and the
//! request is passed on.

mod error;
mod proxy;
mod settings;

pub use self::error::Error;
pub use self::proxy::{Options, Proxy, Views};
pub use self::settings::{
    AccessLog, Action, Answer, Check, Forwarded, Invalid, Key, Limits, Network, Pass, Protocol, Route, RouteRole,
    Service, ServiceTls, Settings, Sticky, Timeouts, Tls, When,
};
