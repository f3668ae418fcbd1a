//! MQTT: the relay that balances messages over instances, and what services and senders use.
//!
//! | who | uses |
//! |---|---|
//! | a service behind a broker | [`Service`]: handlers by topic, which answer |
//! | whoever runs the balancing | [`Relay`] |

mod message;
mod relay;
mod service;

use std::time::Duration;

pub use message::{HandlerError, Reply, Request};
pub use pointsman_mqtt::envelope::Action;
pub use pointsman_mqtt::packet::{Qos, Version};
pub use pointsman_mqtt::relay::{Figures, Invalid, Route, RouteRole, Settings, Topics};
pub use pointsman_mqtt::{BrokerUrl, Credentials, InvalidUrl, broker};
pub use relay::Relay;
pub use service::{Service, ServiceBuilder, ServiceFigures};

/// Why something of MQTT cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry says no.
    #[error(transparent)]
    Registry(#[from] crate::Error),
    /// The relay cannot run as it is told to.
    #[error(transparent)]
    Relay(#[from] pointsman_mqtt::relay::Error),
    /// The code, or the name to register under, cannot be.
    #[error(transparent)]
    Instance(#[from] crate::InvalidInstance),
    /// Something that cannot be done so; the text says what can.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A topic or a filter that cannot be.
    #[error("topic {topic:?} {reason}")]
    Topic {
        /// As it was given, cut after 200 characters.
        topic: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker answers, and refuses: the connection, for its user name or password, or a subscription.
    #[error("{broker}: {reason}")]
    Refused {
        /// The broker's URL, without secrets.
        broker: String,
        /// Its reason.
        reason: String,
    },
    /// No connection to the broker in time.
    #[error("{broker}: not connected within {waited:?}: {reason}")]
    Unreachable {
        /// The broker's URL, without secrets.
        broker: String,
        /// For how long it was tried.
        waited: Duration,
        /// What was seen at the last try.
        reason: String,
    },
}

impl Error {
    fn topic(topic: &str, reason: impl Into<String>) -> Self {
        Self::Topic { topic: topic.chars().take(200).collect(), reason: reason.into() }
    }
}
