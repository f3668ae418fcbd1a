//! HTTP: the proxy, which balances requests over instances. `docs/http.md` says what holds for its users.

pub use pointsman_http::{
    AccessLog, Action, Answer, Check, Error, Forwarded, Invalid, Key, Limits, Network, Pass, Protocol, Route, RouteRole,
    Service, ServiceTls, Settings, Sticky, Timeouts, Tls, When,
};
