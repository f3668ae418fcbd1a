//! Retained messages on their way to a client that has subscribed.
//!
//! However many there are, they are handed out a few at a time, and no faster than the client takes them: between two steps others
//! have their turn, and nothing piles up. What is published meanwhile does not wait for that. So that each topic's messages stay in
//! their order, a new message brings the retained one of its topic forward; and what was retained after the subscription is left out,
//! because the client is given that as a new message.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use bytestring::ByteString;

use super::core::{Core, SLICE};
use super::retained::{Found, Kept, Place};
use super::route::Source;
use super::slots::Key;
use super::target::Target;
use crate::packet::{Options, Qos};
use crate::topic;

/// What a client has yet to be sent.
#[derive(Debug)]
pub(super) struct Replay {
    /// By their numbers, in the order in which they were subscribed to.
    filters: BTreeMap<u64, Filter>,
    numbers: HashMap<ByteString, u64>,
    /// The number of the filter that was subscribed to last.
    last: u64,
    /// Where the walk of the first filter goes on.
    place: Place,
    /// Topics that were brought forward, with the number of the last filter for which that was done.
    forward: HashMap<ByteString, u64>,
}

#[derive(Debug)]
struct Filter {
    filter: ByteString,
    options: Options,
    id: Option<u32>,
    /// The number of the message that was retained last when it was subscribed to.
    since: u64,
}

impl Default for Replay {
    fn default() -> Self {
        let (filters, numbers, forward) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { filters, numbers, last: 0, place: Place::START, forward }
    }
}

impl Replay {
    fn push(&mut self, filter: Filter) {
        self.remove(&filter.filter);
        self.last += 1;
        self.numbers.insert(filter.filter.clone(), self.last);
        self.filters.insert(self.last, filter);
    }

    fn remove(&mut self, filter: &str) {
        if let Some(number) = self.numbers.remove(filter) {
            if self.is_first(number) {
                self.place = Place::START;
            }
            self.filters.remove(&number);
        }
    }

    fn is_first(&self, number: u64) -> bool {
        self.filters.first_key_value().is_some_and(|(&first, _)| first == number)
    }

    /// The filters by which a message that is brought forward is still to come: the highest of their qualities, and their
    /// subscription identifiers. From then on it is not.
    fn bring_forward(&mut self, kept: &Kept) -> Option<(Qos, Vec<u32>)> {
        let topic = &kept.publish.topic;
        let done = self.forward.insert(topic.clone(), self.last).unwrap_or(0);
        let passed = self.place.has_passed(topic);
        let first = self.filters.first_key_value().map(|(&number, _)| number);
        let waiting = self.filters.range(done + 1..).filter(|(number, filter)| {
            let is_passed = passed && Some(**number) == first;
            !is_passed && kept.serial <= filter.since && topic::matches(&filter.filter, topic)
        });
        let (mut qos, mut ids) = (None, Vec::new());
        for (_, filter) in waiting {
            qos = qos.max(Some(filter.options.qos));
            ids.extend(filter.id);
        }
        qos.map(|qos| (qos, ids))
    }

    fn is_forward(&self, topic: &str, number: u64) -> bool {
        self.forward.get(topic).is_some_and(|&last| number <= last)
    }
}

impl Core {
    /// Has retained messages sent to a client that has subscribed.
    pub(super) fn replay_later(&mut self, key: Key, filter: ByteString, options: Options, id: Option<u32>) {
        let since = self.retained.serial();
        if let Some(client) = self.clients.get_mut(key) {
            client.replay.get_or_insert_default().push(Filter { filter, options, id, since });
        }
    }

    /// A client is not to be sent the retained messages of a filter any more.
    pub(super) fn stop_replay(&mut self, key: Key, filter: &str) {
        if let Some(replay) = self.clients.get_mut(key).and_then(|client| client.replay.as_mut()) {
            replay.remove(filter);
        }
    }

    /// Sends a client some of the retained messages that it is waiting for, as far as it takes them.
    pub(super) fn replay(&mut self, key: Key, now: Instant) {
        while self.spent < SLICE && self.may_replay(key) {
            let Some(client) = self.clients.get_mut(key) else { return };
            let Some(replay) = client.replay.as_mut() else { return };
            let Some(mut first) = replay.filters.first_entry() else {
                client.replay = None;
                return;
            };
            let (number, filter) = (*first.key(), first.get_mut());
            match self.retained.next(&filter.filter, &mut replay.place, now, &mut self.spent, SLICE) {
                Found::Paused => {}
                Found::End => {
                    let Filter { filter, .. } = first.remove();
                    replay.numbers.remove(&filter);
                    replay.place = Place::START;
                }
                Found::Message(kept) => {
                    let (options, id, since) = (filter.options, filter.id, filter.since);
                    if kept.serial <= since && !replay.is_forward(&kept.publish.topic, number) {
                        self.send_kept(key, *kept, options.qos, id.into_iter().collect(), now);
                    }
                }
            }
        }
    }

    /// Whether a client waits for retained messages, and takes them.
    pub(super) fn may_replay(&self, key: Key) -> bool {
        let Some(client) = self.clients.get(key) else { return false };
        let idle = client.session.queued() == 0 && client.session.output_len() < self.limits.outbox / 2;
        client.replay.is_some() && client.session.is_up() && idle
    }

    /// The same, for the task of a connection.
    pub(super) fn replay_on(&mut self, connection: Key, now: Instant) {
        if let Some(client) = self.connections.get(connection).and_then(|state| state.client) {
            self.replay(client, now);
        }
    }

    /// Before a client is given a message: sends it the retained one of that topic, if it waits for that.
    pub(super) fn bring_forward(&mut self, key: Key, topic: &str, now: Instant) {
        let Some(replay) = self.clients.get_mut(key).and_then(|client| client.replay.as_mut()) else { return };
        if replay.forward.get(topic) == Some(&replay.last) {
            return;
        }
        let Some(kept) = self.retained.get(topic, now) else { return };
        self.spent += replay.filters.len() / 8;
        if let Some((qos, ids)) = replay.bring_forward(&kept) {
            self.send_kept(key, kept, qos, ids, now);
        }
    }

    fn send_kept(&mut self, key: Key, kept: Kept, qos: Qos, ids: Vec<u32>, now: Instant) {
        let Some(local) = self.clients.get(key).map(|client| client.local) else { return };
        // It has been kept, which is what the flag says.
        let target = Target { client: key, local, qos, retain_as_published: true, ids, group: None };
        let source = Source { client: None, connection: None, local: false, id: kept.from };
        let mut publish = kept.publish;
        let qos = publish.qos;
        // A message between two others: neither is encoded like it.
        self.encodings.clear();
        self.deliver_now(&source, &mut publish, (qos, true), target, None, now);
        self.encodings.clear();
    }
}
