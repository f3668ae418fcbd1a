//! MQTT: the relay that balances messages over instances, and what services and senders use.
//!
//! | who | uses |
//! |---|---|
//! | a service behind a broker | [`Service`]: handlers by topic, which answer |
//! | a sender | [`Client`]: finds a relay, publishes, makes requests |
//! | whoever runs the balancing | [`Relay`] |

mod client;
mod message;
mod relay;
mod service;

use std::sync::Arc;
use std::time::Duration;

pub use client::{Client, ClientBuilder};
pub use message::{HandlerError, Message, Reply, Request};
pub use pointsman_mqtt::client::PublishError;
pub use pointsman_mqtt::envelope::Action;
pub use pointsman_mqtt::packet::{LARGEST_PACKET, Qos, Version};
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
    /// The broker does not take a message.
    #[error("publish to {topic:?}: {source}")]
    Publish {
        /// The message's topic.
        topic: String,
        /// Why not.
        source: PublishError,
    },
    /// No relay is registered, or none can be connected to.
    #[error("no relay of {service} can be reached, after {waited:?}: {reason}")]
    NoRelay {
        /// The name that relays register under.
        service: Arc<str>,
        /// For how long one was waited for.
        waited: Duration,
        /// What was seen last.
        reason: String,
    },
    /// The relay that had a request is gone, and the request may not be sent again. Whether it was carried out is not known.
    #[error("relay {code} is lost, and with it the answer to the request")]
    RelayLost {
        /// The relay's code.
        code: Arc<str>,
    },
    /// No answer in time. Whether the request was carried out is not known.
    #[error("request {topic:?}: no answer within {waited:?}")]
    Timeout {
        /// The request's topic.
        topic: String,
        /// For how long it was waited.
        waited: Duration,
    },
    /// The relay or the service says that there will be no answer.
    #[error("not delivered ({reason}): {detail}")]
    NotDelivered {
        /// In one word: `no-route`, `no-instance`, `no-answer`, `handler`, …
        reason: String,
        /// In a sentence.
        detail: String,
    },
    /// The service or the client has ended.
    #[error("it has been closed")]
    Closed,
}

impl Error {
    fn topic(topic: &str, reason: impl Into<String>) -> Self {
        Self::Topic { topic: topic.chars().take(200).collect(), reason: reason.into() }
    }

    /// Whether the same call may succeed if nothing but time passes. A request that has failed so may have been carried out. What somebody
    /// has to mend first (a route, a subscription, rights, the message) is not.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Registry(error) => error.is_retryable(),
            Error::Unreachable { .. } | Error::NoRelay { .. } | Error::RelayLost { .. } | Error::Timeout { .. } => true,
            Error::NotDelivered { reason, .. } => {
                matches!(&**reason, "no-instance" | "no-answer" | "instance-gone" | "expired" | "connection-lost")
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_time_mends_is_worth_another_try() {
        let is_retryable = |reason: &&&str| {
            Error::NotDelivered { reason: (**reason).to_owned(), detail: String::new() }.is_retryable()
        };
        // The relay's reasons, a service's, and one that is not known here.
        let all = [
            "no-route",
            "no-instance",
            "no-subscriber",
            "no-answer",
            "instance-gone",
            "refused",
            "too-large",
            "expired",
            "loop",
            "topic",
            "connection-lost",
            "handler",
            "unknown",
        ];
        let retryable: Vec<_> = all.iter().filter(is_retryable).collect();
        assert_eq!(retryable, [&"no-instance", &"no-answer", &"instance-gone", &"expired", &"connection-lost"]);
    }
}
