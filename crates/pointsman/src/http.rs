//! HTTP: the proxy, which balances requests over instances. `docs/http.md` says what holds for its users.
//!
//! | who | uses |
//! |---|---|
//! | whoever runs the balancing | [`Proxy`]: listens, and is itself a service that clients find |
//! | a program whose own requests are to be balanced | [`Proxy::requests`]: a `tower::Service` |

mod proxy;

pub use pointsman_http::{
    AccessLog, Action, Answer, Body, Check, Error as ProxyError, Forwarded, Invalid, Key, Limits, Network, Pass,
    Protocol, Requests, Route, RouteRole, Service, ServiceTls, Settings, Sticky, Timeouts, Tls, When,
};
pub use proxy::{Builder, Proxy};

/// Why a proxy cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry says no.
    #[error(transparent)]
    Registry(#[from] crate::Error),
    /// It cannot run as it is told to.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The code, or the name to register under, cannot be.
    #[error(transparent)]
    Instance(#[from] crate::InvalidInstance),
    /// It has ended.
    #[error("the proxy has ended")]
    Closed,
}
