//! Which response topics a relay answers to.
//!
//! A sender chooses where its answer goes, and the relay publishes it with the relay's own rights, which the sender may not have. So an answer
//! goes neither to an instance, nor back to a relay, nor to a topic with a meaning of its own.

use std::borrow::Cow;

use super::Engine;
use super::forward::Inquiry;
use crate::packet::Publish;
use crate::relay::address;
use crate::relay::settings::Topics;
use crate::topic;

/// Where senders of this project wait for answers: `pointsman/inbox/CLIENT-ID`. Nothing else under `pointsman/` is a sender's.
const INBOX: &str = "pointsman/inbox/";

/// Why a request is refused.
pub(super) const REASON: &str = "response-topic";

impl Engine {
    /// Returns what is wrong with the place where a sender waits for its answer, if something is.
    pub(super) fn response_topic_problem(&self, inquiry: &Inquiry<'_>, publish: &Publish) -> Option<String> {
        let topic = &*response_topic(inquiry, publish)?;
        let allowed = || self.response_topics.iter().filter(|filter| topic::matches(filter, topic));
        // A relay behind another one answers to that one's topics, if it is told to.
        let is_opened = || allowed().any(|filter| filter.starts_with(address::RESERVED));
        let is_relays = topic.starts_with(address::RESERVED) && !topic.starts_with(INBOX) && !is_opened();
        let why = if topic.starts_with('$') || self.is_awaited_by_relays(topic) || is_relays {
            "is reserved"
        } else if self.leads_to_instance(topic) {
            "begins with the code of an instance or a relay"
        } else if self.is_routed(topic) {
            "is one that a route takes"
        } else if !self.response_topics.is_empty() && allowed().next().is_none() {
            "is not among response_topics"
        } else {
            return None;
        };
        Some(format!("the response topic {topic:?} {why}"))
    }

    /// Whether an answer to this topic would be delivered to an instance or a relay. What is a code changes with the instances.
    pub(super) fn leads_to_instance(&self, topic: &str) -> bool {
        let first = address::first_level(topic);
        self.topics == Topics::CodeLast && (address::is_uuid(first) || self.names(first))
    }

    /// Whether it is one of the topics on which relays await answers to envelopes.
    fn is_awaited_by_relays(&self, topic: &str) -> bool {
        self.topics == Topics::GoEnvelope && topic.starts_with(address::ENVELOPE_SENDER)
    }

    fn is_routed(&self, topic: &str) -> bool {
        self.inquire(topic, |code| self.names(code)).is_some_and(|inquiry| self.routes.find(&inquiry.matched).is_some())
    }
}

/// Where the sender waits for an answer, if it does.
pub(super) fn response_topic<'a>(inquiry: &Inquiry<'_>, publish: &'a Publish) -> Option<Cow<'a, str>> {
    match inquiry.envelope {
        Some(envelope) => envelope.waits().then(|| Cow::Owned(envelope.response_topic())),
        None => publish.properties.response_topic.as_deref().filter(|topic| topic::is_topic(topic)).map(Cow::Borrowed),
    }
}
