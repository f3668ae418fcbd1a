//! Topics as services and senders see them, in both forms; how relays see them is `relay/address.rs`. Pure.
//!
//! | | to the relay | to the service | the answer |
//! |---|---|---|---|
//! | `code-last` | `TOPIC/RELAY` | `CODE/TOPIC` | response topic and correlation data of MQTT 5 |
//! | `go-envelope` | `/VERSION/SENDER/ACTION/ID/RELAY/TOPIC/` | `/VERSION/SENDER/ACTION/ID/TOPIC/CODE/` | `/VERSION/SENDER/ACTION/ID` |

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::relay::address;

/// What a sender wants, in go-micro-service's envelopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are go-micro-service's.
pub enum Action {
    Post,
    Put,
    Get,
    Delete,
    Updated,
    Deleted,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 6] =
        [Action::Post, Action::Put, Action::Get, Action::Delete, Action::Updated, Action::Deleted];

    /// As it stands in a topic.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Action::Post => "POST",
            Action::Put => "PUT",
            Action::Get => "GET",
            Action::Delete => "DELETE",
            Action::Updated => "UPDATED",
            Action::Deleted => "DELETED",
        }
    }

    /// Whether the sender waits for an answer.
    #[must_use]
    pub const fn waits(self) -> bool {
        matches!(self, Action::Post | Action::Put | Action::Get | Action::Delete)
    }

    fn of(name: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.name() == name)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What an envelope that has come to an instance says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// What is wanted.
    pub action: Action,
    /// What it is about, without the code and without slashes around it.
    pub topic: &'a str,
    /// Where the answer is awaited.
    pub response_topic: &'a str,
}

impl<'a> Delivery<'a> {
    /// Reads `/VERSION/SENDER/ACTION/ID/TOPIC/CODE/`.
    #[must_use]
    pub fn parse(topic: &'a str, code: &str) -> Option<Self> {
        let mut slashes = topic.match_indices('/').map(|(at, _)| at);
        let (start, action_from, action_to) = (slashes.next()?, slashes.nth(1)?, slashes.next()?);
        let end = slashes.next()?;
        let action = Action::of(&topic[action_from + 1..action_to]).filter(|_| start == 0)?;
        let about = topic[end + 1..].trim_end_matches('/').strip_suffix(code)?.strip_suffix('/')?;
        if about.is_empty() { None } else { Some(Self { action, topic: about, response_topic: &topic[..end] }) }
    }
}

/// What an instance subscribes to for messages to its code about what `filter` matches.
#[must_use]
pub fn delivery_filter(filter: &str, action: Action, code: &str) -> String {
    format!("/+/+/{action}/+/{}/{code}/", filter.trim_matches('/'))
}

/// Where a sender publishes for a relay.
#[must_use]
pub fn sending_topic(version: &str, sender: &str, action: Action, id: &str, relay: &str, topic: &str) -> String {
    format!("/{version}/{sender}/{action}/{id}/{relay}/{}/", topic.trim_matches('/'))
}

/// What a sender subscribes to for the answers.
#[must_use]
pub fn answer_filter(version: &str, sender: &str) -> String {
    format!("/{version}/{sender}/+/+")
}

/// An identifier as go-micro-service makes them, with a number of one's own and one that nobody can guess.
#[must_use]
pub fn make_id(number: u64, nonce: u64) -> String {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    address::envelope_id(number, nonce, unix)
}

/// The two numbers in the last level of an answer's topic.
#[must_use]
pub fn read_id(answer_topic: &str) -> Option<(u64, u64)> {
    address::read_envelope_id(answer_topic.rsplit('/').next()?)
}

/// `CODE/TOPIC`, with one slash between them.
#[must_use]
pub fn code_first(code: &str, topic: &str) -> String {
    address::join_code(code, topic)
}

/// `TOPIC/CODE`, with one slash between them.
#[must_use]
pub fn code_last(topic: &str, code: &str) -> String {
    format!("{}/{code}", topic.strip_suffix('/').unwrap_or(topic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic;

    #[test]
    fn what_a_relay_delivers_is_read_and_subscribed_to() {
        let delivered = "/1.0/zk-mqtt-loadblance/POST/1795_abc_sessionid/configs/serverinfo/svc-c/";
        let delivery = Delivery::parse(delivered, "svc-c").unwrap();
        assert_eq!((delivery.action, delivery.topic), (Action::Post, "configs/serverinfo"));
        assert_eq!(delivery.response_topic, "/1.0/zk-mqtt-loadblance/POST/1795_abc_sessionid");
        for filter in ["configs/serverinfo", "/configs/serverinfo/", "configs/+"] {
            assert!(topic::matches(&delivery_filter(filter, Action::Post, "svc-c"), delivered), "{filter}");
        }
        assert!(!topic::matches(&delivery_filter("configs/serverinfo", Action::Put, "svc-c"), delivered));
        for bad in [
            "",
            "/",
            "/a/b/POST/id",
            "/a/b/POST/id/svc-c/",
            "/a/b/GOT/id/t/svc-c/",
            "a/b/POST/id/t/svc-c/",
            "/a/b/POST/id/t/x/",
        ] {
            assert_eq!(Delivery::parse(bad, "svc-c"), None, "{bad}");
        }
    }

    #[test]
    fn what_a_sender_publishes_is_an_envelope_and_its_answer_is_found() {
        let id = make_id(7, 11);
        let topic = sending_topic("1.0", "cgws", Action::Get, &id, "relay", "/login/user");
        assert_eq!(topic, format!("/1.0/cgws/GET/{id}/relay/login/user/"));
        let answer = format!("/1.0/cgws/GET/{id}");
        assert!(topic::matches(&answer_filter("1.0", "cgws"), &answer));
        assert_eq!(read_id(&answer), Some((7, 11)));
        assert_eq!(read_id("/1.0/cgws/GET/x"), None);
    }

    #[test]
    fn codes_last() {
        assert_eq!(code_last("/login/user", "r"), "/login/user/r");
        assert_eq!(code_last("/login/user/", "r"), "/login/user/r");
    }
}
