//! What is told when a message cannot be delivered: dead letters for whoever operates, errors for whoever waits.

use std::time::Instant;

use bytes::Bytes;
use bytestring::ByteString;

use super::{Engine, Flight, Origin, Reply, SENDERS, What, response_topic};
use crate::packet::Publish;
use crate::problem;
use crate::relay::address;
use crate::topic::MAX_TEXT_BYTES;

/// The user property with the topic of a dead letter, where its own topic has no room for it.
const TOPIC: &str = "pointsman-topic";

/// The user property that says what had to be left out of a dead letter.
const CUT: &str = "pointsman-left-out";

/// Why a message cannot be delivered.
#[derive(Debug)]
pub(super) struct DeadLetter {
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

impl DeadLetter {
    pub(super) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    fn properties(&self) -> [(ByteString, ByteString); 2] {
        problem::properties(self.reason, &self.detail)
    }
}

impl Engine {
    /// Publishes a message as a dead letter, on the senders' broker. It is acknowledged when that has taken the letter over.
    pub(super) fn dead_letter(
        &mut self,
        origin: Option<Origin>,
        topic: &str,
        publish: &Publish,
        letter: &DeadLetter,
        now: Instant,
    ) {
        self.metrics.dead_letter(letter.reason);
        tracing::debug!(topic, reason = letter.reason, detail = letter.detail, "dead letter");
        let mut out = publish.clone();
        (out.dup, out.id, out.retain) = (false, 0, false);
        out.properties.topic_alias = None;
        out.properties.subscription_ids.clear();
        out.properties.response_topic = None;
        // What a sender has called so is not the relay's word.
        let own = [problem::REASON, problem::DETAIL, TOPIC, CUT];
        out.properties.user.retain(|(name, _)| !own.contains(&&**name));
        out.properties.user.extend(letter.properties());
        if address::DEAD_LETTER.len() + 1 + topic.len() <= MAX_TEXT_BYTES {
            out.topic = format!("{}/{topic}", address::DEAD_LETTER).into();
        } else {
            out.properties.user.push((ByteString::from_static(TOPIC), topic.into()));
            out.topic = address::DEAD_LETTER.into();
        }
        let flight = Flight { origin, what: What::Back(None), bytes: out.payload.len(), place: None };
        let Err((_, flight)) = self.launch(SENDERS, &out, flight, now) else { return };
        // The reason has made it too large: then it goes without its payload.
        out.payload = Bytes::new();
        out.properties.user.push((ByteString::from_static(CUT), ByteString::from_static("payload")));
        if let Err((why, flight)) = self.launch(SENDERS, &out, flight, now) {
            self.unsendable(flight, &out, why, now);
        }
    }

    /// Takes a request out, and tells its sender that there will be no answer. Whether that is its instance's fault, the caller
    /// knows.
    pub(super) fn give_up(&mut self, number: u64, reason: &'static str, detail: &str, now: Instant) {
        let Some(request) = self.requests.remove(number) else { return };
        let origin = request.flight.and_then(|token| self.take_origin(token)).or(request.origin);
        self.tell((Some(number), origin), &request.reply, reason, detail, now);
    }

    /// A request that has been given up is acknowledged to its sender's broker with the error, not when its instance's broker
    /// may say something at last: that may be never, and meanwhile it would take the place of others.
    fn take_origin(&mut self, token: u32) -> Option<Origin> {
        let flight = self.flights.get_mut(token as usize)?;
        let origin = flight.origin.take();
        if let (Some(place), What::Forward(forward)) = (flight.place, &flight.what) {
            // Nobody will send it again.
            self.journal.sent(place, None, &forward.code);
        }
        origin
    }

    /// Tells a sender that there will be no answer to a request, if it has a number; and acknowledges its message with that, if it
    /// is yet to be.
    pub(super) fn tell(
        &mut self,
        (number, origin): (Option<u64>, Option<Origin>),
        reply: &Reply,
        reason: &'static str,
        detail: &str,
        now: Instant,
    ) {
        if self.leads_to_instance(&reply.topic) {
            // It did not when the request came.
            number.into_iter().for_each(|number| self.journal.answered(number));
            self.metrics.dropped(response_topic::REASON, 1);
            return self.acknowledge(origin);
        }
        self.metrics.error_told(reason);
        let mut out = problem::message(reply.topic.clone(), reply.correlation.clone(), reason, detail);
        out.qos = reply.qos;
        let flight = Flight { origin, what: What::Back(number), bytes: out.payload.len(), place: None };
        if let Err((why, flight)) = self.launch(SENDERS, &out, flight, now) {
            self.unsendable(flight, &out, why, now);
        }
    }
}
