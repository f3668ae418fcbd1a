//! From instances back to senders.

use std::time::Instant;

use pointsman_balance::Outcome;

use super::{Engine, Flight, SENDERS, What, response_topic};
use crate::packet::Publish;
use crate::relay::address;
use crate::relay::settings::Topics;

impl Engine {
    /// What a service's broker sends: the answer to a request.
    pub(super) fn take_from_service(&mut self, side: usize, publish: Publish, now: Instant) {
        let origin = self.origin(side, &publish);
        let number = match self.topics {
            Topics::CodeLast => read_reply_topic(&publish.topic),
            Topics::GoEnvelope => publish.topic.rsplit('/').next().and_then(address::read_envelope_id),
        };
        let request = number.and_then(|(number, nonce)| Some((number, self.requests.answer(number, nonce)?)));
        let Some((number, request)) = request else {
            // Too late, a second answer, or another relay's.
            if self.topics == Topics::CodeLast {
                self.metrics.dropped("late", 1);
                tracing::debug!(topic = &*publish.topic, "an answer that nobody waits for");
            }
            return self.acknowledge(origin);
        };
        request.endpoint.report(Outcome::Success);
        request.route.metrics.responses.inc();
        request.route.metrics.response.observe(now.saturating_duration_since(request.received.at).as_secs_f64());
        if self.leads_to_instance(&request.reply.topic) {
            // It did not when the request came.
            self.journal.answered(number);
            self.metrics.dropped(response_topic::REASON, 1);
            return self.acknowledge(origin);
        }
        let mut out = publish;
        out.topic = request.reply.topic;
        (out.dup, out.id, out.retain) = (false, 0, false);
        let properties = &mut out.properties;
        properties.topic_alias = None;
        properties.subscription_ids.clear();
        if properties.correlation.is_none() {
            properties.correlation = request.reply.correlation;
        }
        let place = self.place_before(origin);
        let flight = Flight { origin, what: What::Back(Some(number)), bytes: out.payload.len(), place };
        if let Err((why, flight)) = self.launch(SENDERS, &out, flight, now) {
            self.unsendable(flight, &out, why, now);
        }
    }
}

/// The number and the nonce in `pointsman/reply/CODE/NUMBER-NONCE`.
fn read_reply_topic(topic: &str) -> Option<(u64, u64)> {
    let (number, nonce) = topic.strip_prefix(address::REPLY)?.rsplit('/').next()?.split_once('-')?;
    Some((u64::from_str_radix(number, 16).ok()?, u64::from_str_radix(nonce, 16).ok()?))
}
