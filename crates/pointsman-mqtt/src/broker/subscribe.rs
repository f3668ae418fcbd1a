//! SUBSCRIBE and UNSUBSCRIBE.

use std::time::Instant;

use bytestring::ByteString;

use super::core::Core;
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
        // No client has more, so the rest would be refused, or is there twice: it is not even looked at.
        let most = self.limits.max_subscriptions;
        self.spent += subscribe.filters.len().min(most);
        let mut wanted = Vec::new();
        let reasons = subscribe.filters.iter().enumerate().map(|(place, (filter, options))| {
            if place >= most {
                return Reason::QUOTA_EXCEEDED;
            }
            let (reason, is_new) = self.add(key, filter, *options, id);
            let retained = options.retain_handling == 0 || (options.retain_handling == 1 && is_new);
            if retained && !reason.is_error() && !filter.starts_with(topic::SHARE) {
                wanted.push((filter, *options));
            }
            reason
        });
        let suback = Suback { id: subscribe.id, reasons: reasons.collect(), ..Suback::default() };
        self.send(key, &Packet::Suback(Box::new(suback)));
        for (filter, options) in wanted {
            self.replay_later(key, ByteString::from(filter.to_string()), options, id);
        }
        self.replay(key, now);
        Ok(())
    }

    /// What the client is told, and whether it is a subscription that it did not have.
    fn add(&mut self, key: Key, filter: &ByteString, options: Options, id: Option<u32>) -> (Reason, bool) {
        if topic::check_filter(filter).is_err() || filter.split('/').count() > MAX_LEVELS {
            return (Reason::TOPIC_FILTER_INVALID, false);
        }
        if self.denies_subscription(key, filter) {
            return (Reason::NOT_AUTHORIZED, false);
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

    pub(super) fn unsubscribe(&mut self, key: Key, unsubscribe: &Unsubscribe) {
        self.spent += unsubscribe.filters.len();
        let reasons = unsubscribe.filters.iter().map(|filter| {
            let client = self.clients.get_mut(key);
            if client.and_then(|client| client.subscriptions.remove(filter)).is_none() {
                return Reason::NO_SUBSCRIPTION_EXISTED;
            }
            self.figures.subscriptions -= 1;
            self.tree.remove(filter, key);
            self.stop_replay(key, filter);
            Reason::SUCCESS
        });
        let unsuback = Suback { id: unsubscribe.id, reasons: reasons.collect(), ..Suback::default() };
        self.send(key, &Packet::Unsuback(Box::new(unsuback)));
    }
}
