//! From a publisher to the subscribers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytestring::ByteString;

use super::client::{Delivery, Drop, Shared, Token};
use super::core::Core;
use super::duty::{Answer, Duty, Rule};
use super::message::{CLIENT_ID_PROPERTY, detached_around, expired};
use super::slots::Key;
use super::target::{Target, takes};
use super::tree::Subscription;
use crate::packet::{Malformed, MessageProperties, Publish, Qos};
use crate::reason::Reason;
use crate::session::Encodings;
use crate::topic;

/// A client for which nothing was dropped for so long has caught up. One that is always a little too slow is not to fill the log.
const CAUGHT_UP: Duration = Duration::from_secs(10);

/// A message for one client counts as one piece of work, and for each so many bytes as one more.
const BYTES_OF_ONE: usize = 16 << 10;

/// Who publishes.
#[derive(Debug)]
pub(super) struct Source {
    /// `None` for wills and retained messages.
    pub(super) client: Option<Key>,
    pub(super) connection: Option<Key>,
    pub(super) local: bool,
    pub(super) id: ByteString,
}

/// How a message has fared.
#[derive(Debug, Default)]
struct Tally {
    taken: bool,
    dropped: bool,
}

impl Core {
    /// A message of a client.
    pub(super) fn published(
        &mut self,
        connection: Key,
        key: Key,
        mut publish: Publish,
        now: Instant,
    ) -> Result<(), Malformed> {
        check(&publish.properties)?;
        let Some(client) = self.clients.get(key) else { return Ok(()) };
        let (local, id) = (client.local, client.id.clone());
        let source = Source { client: Some(key), connection: Some(connection), local, id };
        if !local {
            publish.properties.user.retain(|(name, _)| *name != CLIENT_ID_PROPERTY);
        }
        let packet_id = publish.id;
        if self.denies_publish(key, &publish) {
            self.acknowledge_to(key, &publish, Reason::NOT_AUTHORIZED);
            return Ok(());
        }
        self.figures.messages_in += 1;
        let waits = (publish.qos > Qos::AtMostOnce).then_some((key, packet_id));
        let (mut answer, kept) = self.distribute_and_keep(&source, publish, waits, now);
        if !kept && answer == Some(Reason::NO_MATCHING_SUBSCRIBERS) {
            answer = Some(Reason::QUOTA_EXCEEDED);
        }
        if let Some(reason) = answer.filter(|_| waits.is_some())
            && let Some(client) = self.clients.get_mut(key)
        {
            client.session.acknowledge(packet_id, reason);
            self.touch(key);
        }
        Ok(())
    }

    pub(super) fn publish_will(&mut self, from: ByteString, publish: Publish, now: Instant) {
        self.figures.messages_in += 1;
        let mut publish = publish;
        publish.properties.user.retain(|(name, _)| *name != CLIENT_ID_PROPERTY);
        let source = Source { client: None, connection: None, local: false, id: from };
        self.distribute_and_keep(&source, publish, None, now);
    }

    /// Gives a message to all who have subscribed, and then keeps it, if that is wanted: whoever still waits for the one that was
    /// kept before has got that first. What its publisher is told, and whether it could be kept.
    fn distribute_and_keep(
        &mut self,
        source: &Source,
        publish: Publish,
        waits: Option<(Key, u16)>,
        now: Instant,
    ) -> (Option<Reason>, bool) {
        if !publish.retain {
            return (self.distribute(source, publish, waits, now), true);
        }
        let payload = self.limits.memory.own(&publish.payload);
        let lasting = detached_around(&publish, payload.clone());
        let answer = self.distribute(source, Publish { payload, ..publish }, waits, now);
        let kept = self.retained.keep(lasting, &source.id, now).is_ok();
        self.figures.dropped_retained += u64::from(!kept);
        (answer, kept)
    }

    /// Gives a message to all who have subscribed. What its publisher is told; `None` if that has to wait for others.
    fn distribute(
        &mut self,
        source: &Source,
        mut publish: Publish,
        waits: Option<(Key, u16)>,
        now: Instant,
    ) -> Option<Reason> {
        self.collect(source, &publish);
        let mut targets = std::mem::take(&mut self.targets);
        if publish.qos > Qos::AtMostOnce && targets.iter().any(|target| target.keeps(&publish)) {
            publish.payload = self.limits.memory.own(&publish.payload);
        }
        let (qos, retain) = (publish.qos, publish.retain);
        (publish.dup, publish.id) = (false, 0);
        let awaited = |target: &Target| source.local || target.local;
        let duty = waits.filter(|_| targets.iter().any(awaited)).map(|(publisher, id)| {
            let rule = if source.local { Rule::Any } else { Rule::All };
            self.duties.insert(Duty::new(publisher, id, rule))
        });
        self.encodings.clear();
        let mut tally = Tally::default();
        for target in targets.drain(..) {
            let own_duty = duty.filter(|_| awaited(&target));
            let delivery = self.deliver(source, &mut publish, (qos, retain), target, own_duty, now);
            match delivery {
                Delivery::Waits | Delivery::Sent => tally.taken = true,
                Delivery::Dropped(_) => tally.dropped = true,
                Delivery::Away => {}
            }
            match (duty.and_then(|key| self.duties.get_mut(key)), delivery) {
                (Some(duty), Delivery::Waits) if own_duty.is_some() => duty.wait(),
                (Some(duty), Delivery::Waits | Delivery::Sent) => duty.taken_elsewhere(),
                _ => {}
            }
        }
        self.targets = targets;
        self.encodings.clear();
        if let Some(key) = duty {
            if self.duties.get(key).is_some_and(Duty::is_waiting) {
                return None;
            }
            self.duties.remove(key);
        }
        Some(match tally {
            Tally { taken: true, .. } => Reason::SUCCESS,
            Tally { dropped: true, .. } => Reason::QUOTA_EXCEEDED,
            Tally { .. } => Reason::NO_MATCHING_SUBSCRIBERS,
        })
    }

    /// Gives a message to one client, after the retained one of its topic, if the client still waits for that.
    pub(super) fn deliver(
        &mut self,
        source: &Source,
        publish: &mut Publish,
        quality: (Qos, bool),
        target: Target,
        duty: Option<Key>,
        now: Instant,
    ) -> Delivery {
        if self.clients.get(target.client).is_some_and(|client| client.replay.is_some()) {
            self.bring_forward(target.client, &publish.topic, now);
        }
        self.deliver_now(source, publish, quality, target, duty, now)
    }

    /// Gives a message to one client. `quality`: its QoS and its retain flag as they were published; `publish` is adapted to
    /// the client.
    pub(super) fn deliver_now(
        &mut self,
        source: &Source,
        publish: &mut Publish,
        quality: (Qos, bool),
        target: Target,
        duty: Option<Key>,
        now: Instant,
    ) -> Delivery {
        self.spent += 1 + publish.payload.len() / BYTES_OF_ONE;
        publish.qos = quality.0.min(target.qos);
        let at_most_once = publish.qos == Qos::AtMostOnce;
        let pressed = if target.local && at_most_once { self.can_wait(source) } else { !source.local };
        let Some(client) = self.clients.get_mut(target.client) else { return Delivery::Away };
        publish.retain = quality.1 && target.retain_as_published;
        // With properties of its own it is encoded for this client alone.
        let mut encodings = Encodings::default();
        let mut is_own = !target.ids.is_empty();
        publish.properties.subscription_ids = target.ids;
        let shared = target.group.filter(|_| publish.qos > Qos::AtMostOnce).map(|filter| {
            let publish = detached_around(publish, publish.payload.clone());
            Arc::new(Shared { filter, publish, from: source.id.clone(), since: now })
        });
        let named = target.local && publish.properties.user.iter().all(|(name, _)| *name != CLIENT_ID_PROPERTY);
        is_own |= named;
        if named {
            let name = ByteString::from_static(CLIENT_ID_PROPERTY);
            publish.properties.user.push((name, source.id.clone()));
        }
        let token = Token::new(publish, duty, source.local, shared, &self.limits);
        let encodings = if is_own { &mut encodings } else { &mut self.encodings };
        let delivery = client.deliver(publish, token, &self.limits, encodings, pressed, now);
        if named {
            publish.properties.user.pop();
        }
        self.count(target.client, delivery, now);
        if delivery == Delivery::Away {
            return delivery;
        }
        self.touch(target.client);
        if let Some(connection) = source.connection.filter(|_| target.local && !source.local)
            && self.clients.get(target.client).is_some_and(|client| client.is_above(&self.limits))
        {
            self.pause(connection, target.client);
        }
        delivery
    }

    /// Counts what was delivered, and says once when a client begins or ends to lose messages.
    fn count(&mut self, key: Key, delivery: Delivery, now: Instant) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let counter = match delivery {
            Delivery::Away => return,
            Delivery::Waits | Delivery::Sent => {
                self.figures.messages_out += 1;
                if client.dropped.is_some_and(|last| now.saturating_duration_since(last) > CAUGHT_UP) {
                    client.dropped = None;
                    tracing::warn!(client = %client.id, "MQTT client has caught up: nothing for it is dropped any more");
                }
                return;
            }
            Delivery::Dropped(Drop::Slow) => &mut self.figures.dropped_slow,
            Delivery::Dropped(Drop::QueueFull) => &mut self.figures.dropped_queue_full,
            Delivery::Dropped(Drop::TooLarge) => &mut self.figures.dropped_too_large,
        };
        *counter += 1;
        if client.dropped.replace(now).is_none() {
            tracing::warn!(client = %client.id, reason = ?delivery, "MQTT messages for a client are dropped");
        }
    }

    /// A member of a group has not acknowledged a message before its session ended: another one gets it.
    pub(super) fn again(&mut self, shared: &Shared, duty: Option<Key>, owed: bool, now: Instant) {
        let Self { tree, clients, limits, .. } = self;
        let publish = &shared.publish;
        let member = tree
            .group(&shared.filter)
            .and_then(|group| group.pick(|member, up| takes(clients, limits, member, up, publish, !owed)));
        let local = |member: &Subscription| self.clients.get(member.client).is_some_and(|client| client.local);
        let target = member.map(|member| {
            let group = Some(Arc::clone(&shared.filter));
            Target { group, ..Target::new(&member, local(&member)) }
        });
        let source = Source { client: None, connection: None, local: owed, id: shared.from.clone() };
        let delivery = target.map(|target| {
            let mut publish = publish.clone();
            if expired(&mut publish, now.saturating_duration_since(shared.since)) {
                self.figures.dropped_expired += 1;
                return Delivery::Away;
            }
            let quality = (publish.qos, publish.retain);
            self.encodings.clear();
            self.deliver(&source, &mut publish, quality, target, duty, now)
        });
        self.encodings.clear();
        let answer = match delivery {
            Some(Delivery::Waits) => return,
            Some(Delivery::Sent) => Answer::Taken,
            Some(Delivery::Away | Delivery::Dropped(_)) | None => Answer::Gone,
        };
        if let Some(duty) = duty {
            self.answer(duty, answer, now);
        }
    }
}

/// What no client may send, although it can be read: in a message, or in a will.
pub(super) fn check(properties: &MessageProperties) -> Result<(), Malformed> {
    if properties.topic_alias.is_some() {
        return Err(Malformed { what: "a topic alias, where none is allowed", reason: Reason::TOPIC_ALIAS_INVALID });
    }
    if !properties.subscription_ids.is_empty() {
        return Err(Malformed::protocol("a subscription identifier from a publisher"));
    }
    if properties.response_topic.as_ref().is_some_and(|topic| !topic::is_topic(topic)) {
        let what = "a response topic that is no topic";
        return Err(Malformed { what, reason: Reason::TOPIC_NAME_INVALID });
    }
    Ok(())
}
