//! What is told when a message cannot be delivered: dead letters for whoever operates, errors for whoever waits.

use std::time::Instant;

use bytestring::ByteString;
use pointsman_balance::Outcome;

use super::{Engine, Flight, Origin, Reply, SENDERS, What};
use crate::packet::{MessageProperties, Publish};
use crate::relay::address;
use crate::topic::MAX_TEXT_BYTES;

/// The user property with the reason of a dead letter or an error, in one word.
const REASON: &str = "pointsman-reason";
/// The user property with the reason in a sentence.
const DETAIL: &str = "pointsman-detail";
/// The user property with the topic of a dead letter, where its own topic has no room for it.
const TOPIC: &str = "pointsman-topic";

/// Why a message cannot be delivered.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

impl Letter {
    pub(super) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    fn properties(&self) -> [(ByteString, ByteString); 2] {
        let detail: String = self.detail.chars().take(500).collect();
        [
            (ByteString::from_static(REASON), ByteString::from_static(self.reason)),
            (ByteString::from_static(DETAIL), ByteString::from(detail)),
        ]
    }
}

impl Engine {
    /// Publishes a message as a dead letter, on the senders' broker. It is acknowledged when that has taken the letter over.
    pub(super) fn dead_letter(
        &mut self,
        origin: Option<Origin>,
        topic: &str,
        publish: &Publish,
        letter: Letter,
        now: Instant,
    ) {
        self.metrics.dead_letter(letter.reason);
        tracing::debug!(topic, reason = letter.reason, detail = letter.detail, "dead letter");
        let mut out = publish.clone();
        (out.dup, out.id, out.retain) = (false, 0, false);
        out.properties.topic_alias = None;
        out.properties.subscription_ids.clear();
        out.properties.response_topic = None;
        out.properties.user.extend(letter.properties());
        if address::DEAD_LETTER.len() + 1 + topic.len() <= MAX_TEXT_BYTES {
            out.topic = format!("{}/{topic}", address::DEAD_LETTER).into();
        } else {
            out.properties.user.push((ByteString::from_static(TOPIC), topic.into()));
            out.topic = address::DEAD_LETTER.into();
        }
        let flight = Flight { origin, what: What::Back(None), bytes: out.payload.len(), since: now, place: None };
        if let Err((why, flight)) = self.launch(SENDERS, &out, flight, now) {
            self.metrics.dropped("too-large", 1);
            tracing::warn!(topic, why, reason = letter.reason, "not even a dead letter");
            self.acknowledge(flight.origin);
        }
    }

    /// Takes a request out, and tells its sender that there will be no answer.
    pub(super) fn give_up(&mut self, number: u64, reason: &'static str, detail: &str, now: Instant) {
        let Some(request) = self.requests.remove(number) else { return };
        request.chosen.report(Outcome::Failure);
        self.tell(Some(number), &request.reply, reason, detail, now);
    }

    /// Tells a sender that there will be no answer to a request.
    pub(super) fn tell(
        &mut self,
        number: Option<u64>,
        reply: &Reply,
        reason: &'static str,
        detail: &str,
        now: Instant,
    ) {
        self.metrics.error_told(reason);
        let letter = Letter::new(reason, detail);
        let properties = MessageProperties {
            utf8: Some(true),
            content_type: Some(ByteString::from_static("application/problem+json")),
            correlation: reply.correlation.clone(),
            user: letter.properties().to_vec(),
            ..MessageProperties::default()
        };
        let out = Publish {
            qos: reply.qos,
            topic: reply.topic.clone(),
            properties,
            payload: problem(reason, detail).into(),
            ..Publish::default()
        };
        let flight =
            Flight { origin: None, what: What::Back(number), bytes: out.payload.len(), since: now, place: None };
        if let Err((why, _)) = self.launch(SENDERS, &out, flight, now) {
            self.metrics.dropped("too-large", 1);
            tracing::warn!(topic = &*out.topic, why, reason, "an error cannot be told");
        }
    }
}

/// A problem in the form of RFC 9457. The reason needs no escaping.
fn problem(reason: &str, detail: &str) -> String {
    let mut text = format!("{{\"type\":\"about:blank\",\"title\":\"{reason}\",\"detail\":\"");
    for c in detail.chars() {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    text.push_str("\"}");
    text
}
