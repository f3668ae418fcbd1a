//! SUBSCRIBE and UNSUBSCRIBE.

use std::time::Instant;

use bytestring::ByteString;

use super::core::Core;
use super::route::{Source, Target};
use super::slots::Key;
use super::tree::{MAX_LEVELS, Subscription};
use crate::packet::{Malformed, Options, Packet, Suback, Subscribe, Unsubscribe};
use crate::reason::Reason;
use crate::topic;

impl Core {
    pub(super) fn subscribe(&mut self, key: Key, subscribe: &Subscribe, now: Instant) -> Result<(), Malformed> {
        let unfit = |(filter, options): &(ByteString, Options)| options.no_local && filter.starts_with(topic::SHARE);
        if subscribe.filters.iter().any(unfit) {
            return Err(Malformed::protocol("a shared subscription with no local"));
        }
        let id = subscribe.properties.subscription_id;
        let mut fresh = Vec::new();
        let reasons = subscribe.filters.iter().map(|(filter, options)| {
            let (reason, is_new) = self.add(key, filter, *options, id);
            fresh.push(is_new);
            reason
        });
        let suback = Suback { id: subscribe.id, reasons: reasons.collect(), ..Suback::default() };
        let granted: Vec<bool> = suback.reasons.iter().map(|reason| !reason.is_error()).collect();
        self.send(key, &Packet::Suback(Box::new(suback)));
        for (((filter, options), is_new), granted) in subscribe.filters.iter().zip(fresh).zip(granted) {
            let wanted = match options.retain_handling {
                0 => true,
                1 => is_new,
                _ => false,
            };
            if granted && wanted && !filter.starts_with(topic::SHARE) {
                self.send_retained(key, filter, *options, id, now);
            }
        }
        Ok(())
    }

    /// What the client is told, and whether it is a subscription that it did not have.
    fn add(&mut self, key: Key, filter: &ByteString, options: Options, id: Option<u32>) -> (Reason, bool) {
        if topic::check_filter(filter).is_err() || filter.split('/').count() > MAX_LEVELS {
            return (Reason::TOPIC_FILTER_INVALID, false);
        }
        let Some(client) = self.clients.get_mut(key) else { return (Reason::UNSPECIFIED_ERROR, false) };
        let is_new = !client.subscriptions.contains_key(filter);
        if is_new && client.subscriptions.len() >= self.limits.max_subscriptions {
            return (Reason::QUOTA_EXCEEDED, false);
        }
        client.subscriptions.insert(ByteString::from(filter.to_string()), (options, id));
        self.figures.subscriptions += usize::from(is_new);
        self.tree.insert(filter, Subscription { client: key, options, id });
        (Reason(options.qos.number()), is_new)
    }

    fn send_retained(&mut self, key: Key, filter: &str, options: Options, id: Option<u32>, now: Instant) {
        let Some(local) = self.clients.get(key).map(|client| client.local) else { return };
        for kept in self.retained.matching(filter, now) {
            let target = Target {
                client: key,
                local,
                qos: options.qos,
                // It has been kept, which is what the flag says.
                retain_as_published: true,
                ids: id.into_iter().collect(),
                group: None,
            };
            let source = Source { client: None, connection: None, local: false, id: kept.from };
            let mut publish = kept.publish;
            let qos = publish.qos;
            self.deliver(&source, &mut publish, (qos, true), target, None, now);
        }
    }

    pub(super) fn unsubscribe(&mut self, key: Key, unsubscribe: &Unsubscribe) {
        let reasons = unsubscribe.filters.iter().map(|filter| {
            let client = self.clients.get_mut(key);
            if client.and_then(|client| client.subscriptions.remove(filter)).is_none() {
                return Reason::NO_SUBSCRIPTION_EXISTED;
            }
            self.figures.subscriptions -= 1;
            self.tree.remove(filter, key);
            Reason::SUCCESS
        });
        let unsuback = Suback { id: unsubscribe.id, reasons: reasons.collect(), ..Suback::default() };
        self.send(key, &Packet::Unsuback(Box::new(unsuback)));
    }
}
