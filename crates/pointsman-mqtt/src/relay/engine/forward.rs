//! From senders to instances.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use bytestring::ByteString;
use pointsman_balance::Outcome;

use super::dead_letter::DeadLetter;
use super::response_topic::{REASON, response_topic};
use super::waiting::Deadline;
use super::{Engine, Flight, Forward, Origin, Received, Reply, SENDERS, What};
use crate::packet::{Publish, Qos};
use crate::reason::Reason;
use crate::relay::address::{self, Envelope};
use crate::relay::journal::{Kept, Place};
use crate::relay::requests::Request;
use crate::relay::routes::{Endpoint, Route};
use crate::relay::settings::Topics;

/// The user property by which the client id of a sender is known.
pub(super) const CLIENT_ID: &str = "pointsman-client-id";
/// The user property by which a relay knows what it has relayed.
const RELAY: &str = "pointsman-relay";
/// So many relays may pass a message on to one another.
const HOPS: usize = 8;

/// A message of a sender, as it has come.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) origin: Option<Origin>,
    pub(super) publish: Publish,
    pub(super) received: Received,
}

/// A message that an instance did not take.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) origin: Option<Origin>,
    pub(super) forward: Forward,
    pub(super) reason: Reason,
    pub(super) message: Publish,
}

/// What is known of a message that comes again.
#[derive(Debug, Default)]
struct Before {
    place: Option<Place>,
    /// Number and nonce.
    request: Option<(u64, u64)>,
    /// The instance that has it.
    code: Option<String>,
}

/// How a message has come so far.
#[derive(Clone, Copy)]
struct Way {
    origin: Option<Origin>,
    place: Option<Place>,
}

/// What a sender's topic says.
pub(super) struct Inquiry<'a> {
    /// What routes are matched against.
    pub(super) matched: Cow<'a, str>,
    /// The code that the sender names.
    pub(super) code: Option<&'a str>,
    pub(super) envelope: Option<Envelope<'a>>,
    /// Without the code.
    topic: &'a str,
}

impl Engine {
    /// A message of a sender.
    pub(super) fn take_from_sender(&mut self, publish: Publish, now: Instant) {
        let origin = self.origin(SENDERS, &publish);
        if publish.retain {
            // Kept from before the relay subscribed: it is no news. What is new comes without the flag.
            self.metrics.dropped("retained", 1);
            return self.acknowledge(origin);
        }
        let topic = publish.topic.clone();
        if Self::is_reserved(&topic) {
            return self.acknowledge(origin);
        }
        let Some(inquiry) = self.inquire(&topic, |code| self.names(code)) else {
            let letter = DeadLetter::new("topic", "the topic is not /VERSION/SENDER/ACTION/ID/CODE/TOPIC/");
            return self.dead_letter(origin, &topic, &publish, &letter, now);
        };
        if self.has_been_here(&topic, &publish) {
            let letter = DeadLetter::new("loop", "a relay has sent this message already");
            return self.dead_letter(origin, &topic, &publish, &letter, now);
        }
        if let Some(letter) = self.refused_request(&inquiry, &publish) {
            self.restored(origin).into_iter().for_each(|(place, _)| self.release(place));
            return self.dead_letter(origin, &topic, &publish, &letter, now);
        }
        let Some(route) = self.routes.find(&inquiry.matched).cloned() else {
            self.restored(origin).into_iter().for_each(|(place, _)| self.release(place));
            let letter = DeadLetter::new("no-route", "no route matches the topic");
            return self.undeliverable(origin, &inquiry, &publish, &letter, now);
        };
        route.metrics.received(publish.qos);
        let before = self.before(origin, &inquiry, &publish);
        let received = Received { at: now, number: self.arrivals };
        let arrival = Arrival { origin, publish, received };
        match &before.code {
            Some(code) => {
                let endpoint = route.again(code);
                self.forward(arrival, &before, &inquiry, route, endpoint, now);
            }
            None => self.dispatch(arrival, &inquiry, route, None, now),
        }
    }

    /// Gives a message to an instance of its route; `waits` is until when it waits for one, if it does already.
    pub(super) fn dispatch(
        &mut self,
        arrival: Arrival,
        inquiry: &Inquiry<'_>,
        route: Arc<Route>,
        waits: Option<Deadline>,
        now: Instant,
    ) {
        let key = key(&route, inquiry, &arrival.publish);
        match route.choose(key, inquiry.code.filter(|_| route.settings.sticky), &[]) {
            Ok(endpoint) => match self.must_follow(&route, waits, now) {
                Some(waits) => self.hold_arrival(arrival, inquiry.code, route, waits),
                None => self.forward(arrival, &Before::default(), inquiry, route, endpoint, now),
            },
            Err(error) => match self.may_wait(&route, &error, waits, now) {
                Some(waits) => self.hold_arrival(arrival, inquiry.code, route, waits),
                None => {
                    let letter = DeadLetter::new("no-instance", error.to_string());
                    self.undeliverable(arrival.origin, inquiry, &arrival.publish, &letter, now);
                }
            },
        }
    }

    /// What is known of a message that comes again, from before a restart or before its acknowledgement got lost: where it
    /// went, and the request that it was. Its answer comes under the number that it had.
    fn before(&mut self, origin: Option<Origin>, inquiry: &Inquiry<'_>, publish: &Publish) -> Before {
        let (place, code) = self.restored(origin).unzip();
        let reply = if publish.dup { Self::reply_of(inquiry, publish) } else { None };
        // An envelope has a topic of its own for each answer. Otherwise it is the correlation data that tell one request of a
        // sender from another.
        let reply = reply.filter(|reply| reply.correlation.is_some() || inquiry.envelope.is_some());
        let request = reply.and_then(|reply| self.requests.find(&reply));
        let asked = request.and_then(|(number, _)| Some(self.requests.get_mut(number)?.endpoint.code().to_string()));
        Before { place, request, code: code.or(asked) }
    }

    /// A message of a sender without its payload.
    pub(super) fn too_large_from_sender(&mut self, publish: &Publish, now: Instant) {
        let origin = self.origin(SENDERS, publish);
        if publish.retain || Self::is_reserved(&publish.topic) {
            self.metrics.dropped("too-large", 1);
            return self.acknowledge(origin);
        }
        let letter = DeadLetter::new("too-large", "it is larger than max_packet; its payload is left out");
        let inquiry = self.inquire(&publish.topic, |code| self.names(code));
        match inquiry.filter(|inquiry| self.refused_request(inquiry, publish).is_none()) {
            Some(inquiry) => self.undeliverable(origin, &inquiry, publish, &letter, now),
            None => self.dead_letter(origin, &publish.topic, publish, &letter, now),
        }
    }

    /// Why a request is not passed on, if it names a response topic to which the relay does not answer.
    fn refused_request(&self, inquiry: &Inquiry<'_>, publish: &Publish) -> Option<DeadLetter> {
        let problem = self.response_topic_problem(inquiry, publish)?;
        Some(DeadLetter::new(REASON, problem))
    }

    /// Whether a level at the end of a topic is the code of an instance, or of this relay.
    pub(super) fn names(&self, code: &str) -> bool {
        code == &*self.code || self.routes.knows(code)
    }

    /// Reads a topic, at the end of which there may be a code that is `known`.
    pub(super) fn inquire<'a>(&self, topic: &'a str, known: impl Fn(&str) -> bool) -> Option<Inquiry<'a>> {
        match self.topics {
            Topics::CodeLast => {
                let (rest, code) = address::split_code(topic, known);
                Some(Inquiry { matched: Cow::Borrowed(rest), code, envelope: None, topic: rest })
            }
            Topics::GoEnvelope => {
                let envelope = Envelope::parse(topic)?;
                Some(Inquiry {
                    matched: Cow::Owned(envelope.matched()),
                    code: None,
                    envelope: Some(envelope),
                    topic: envelope.topic,
                })
            }
        }
    }

    /// Whether a relay has sent it: then passing it on might never end.
    fn has_been_here(&self, topic: &str, publish: &Publish) -> bool {
        let mut hops = publish.properties.user.iter().filter(|(name, _)| *name == RELAY);
        if hops.clone().any(|(_, code)| **code == *self.code) || hops.by_ref().count() >= HOPS {
            return true;
        }
        match self.topics {
            Topics::CodeLast => self.routes.knows(address::first_level(topic)),
            Topics::GoEnvelope => {
                Envelope::parse(topic).is_some_and(|envelope| address::first_level(envelope.topic) == &*self.code)
            }
        }
    }

    /// Where the sender waits for an answer, if it does.
    pub(super) fn reply_of(inquiry: &Inquiry<'_>, publish: &Publish) -> Option<Reply> {
        let topic = ByteString::from(response_topic(inquiry, publish)?.into_owned());
        let correlation = publish.properties.correlation.as_ref().filter(|_| inquiry.envelope.is_none());
        let correlation = correlation.map(|bytes| Bytes::copy_from_slice(bytes));
        Some(Reply { topic, correlation, qos: publish.qos })
    }

    fn forward(
        &mut self,
        arrival: Arrival,
        before: &Before,
        inquiry: &Inquiry<'_>,
        route: Arc<Route>,
        endpoint: Endpoint,
        now: Instant,
    ) {
        let Arrival { origin, publish, received } = arrival;
        let (place, known) = (before.place, before.request);
        let side = place.map_or_else(|| self.side_of(&endpoint), |place| place.0);
        let code = endpoint.code().clone();
        let reply = Self::reply_of(inquiry, &publish);
        if reply.is_some() && inquiry.envelope.is_none() && !self.speaks_v5(side) {
            place.into_iter().for_each(|place| self.release(place));
            let letter = DeadLetter::new("refused", "the service's broker speaks MQTT 3.1.1, which has no requests");
            return self.undeliverable(origin, inquiry, &publish, &letter, now);
        }
        let (number, nonce) = known.unwrap_or_else(|| (self.requests.next_number(), nonce()));
        let (qos, topic) = (publish.qos, Arc::<str>::from(&*publish.topic));
        let mut out = publish;
        let id = (number, nonce);
        out.topic = self.outgoing_topic(inquiry, &code, id).into();
        self.address(&mut out, reply.as_ref().map(|_| id), inquiry.envelope.is_some());
        let request = reply.map(|reply| {
            let timeout = route.settings.response_timeout.unwrap_or(self.limits.response_timeout);
            (reply, timeout)
        });
        let mut forward = Forward::new(route, topic, code, qos, received);
        match request {
            None => forward.endpoint = Some(endpoint),
            Some(_) if known.is_some() => forward.request = Some(number),
            Some((reply, timeout)) => {
                let mut request =
                    Request::new(reply, forward.route.clone(), endpoint, nonce, (received, now + timeout));
                request.bytes = out.payload.len() + out.topic.len();
                let copied = forward.route.settings.redispatch;
                request.copy = copied.then(|| (forward.topic.clone(), Box::new(detached(&out))));
                self.requests.insert(number, request);
                self.keep(number);
                forward.request = Some(number);
            }
        }
        self.send(side, Way { origin, place }, &out, forward, now);
    }

    fn outgoing_topic(&self, inquiry: &Inquiry<'_>, code: &str, (number, nonce): (u64, u64)) -> String {
        match inquiry.envelope {
            None => address::join_code(code, inquiry.topic),
            Some(envelope) => {
                let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
                envelope.outgoing(&address::envelope_id(number, nonce, unix), code)
            }
        }
    }

    /// Makes a sender's message one of the relay's.
    fn address(&self, out: &mut Publish, request: Option<(u64, u64)>, envelope: bool) {
        (out.dup, out.id) = (false, 0);
        let properties = &mut out.properties;
        // Both belong to the connection on which it has come.
        properties.topic_alias = None;
        properties.subscription_ids.clear();
        if !envelope {
            properties.response_topic =
                request.map(|(number, nonce)| format!("{}{}/{number:x}-{nonce:x}", address::REPLY, self.code).into());
        }
        if self.marks {
            properties.user.push((ByteString::from_static(RELAY), self.own_code.clone()));
        }
    }

    fn send(&mut self, side: usize, way: Way, out: &Publish, forward: Forward, now: Instant) {
        let Way { origin, place } = way;
        if forward.qos == Qos::AtMostOnce && forward.request.is_none() && self.sessions[side].is_up() {
            return self.send_and_forget(side, out, &forward, now);
        }
        let bytes = out.payload.len() + out.topic.len();
        let flight = Flight { origin, what: What::Forward(Box::new(forward)), bytes, place };
        if let Err((why, flight)) = self.launch(side, out, flight, now) {
            self.unsendable(flight, out, why, now);
        }
    }

    /// A message is too long for MQTT, or for the broker that is to get it.
    pub(super) fn unsendable(&mut self, flight: Flight, out: &Publish, why: String, now: Instant) {
        match flight.what {
            What::Forward(forward) => {
                let letter = DeadLetter::new("too-large", why);
                if let Some(request) = forward.request {
                    self.give_up(request, letter.reason, &letter.detail, now);
                }
                flight.place.into_iter().for_each(|place| self.release(place));
                self.dead_letter(flight.origin, &forward.topic, out, &letter, now);
            }
            What::Back(request) => {
                if let Some(number) = request {
                    self.journal.answered(number);
                    // An answer, of which at least the sender is to know.
                    let (topic, correlation) = (out.topic.clone(), out.properties.correlation.clone());
                    self.tell((None, None), &Reply { topic, correlation, qos: out.qos }, "too-large", &why, now);
                }
                self.metrics.dropped("too-large", 1);
                tracing::warn!(topic = &*out.topic, why, "cannot be sent to the senders' broker");
                self.acknowledge(flight.origin);
            }
        }
    }

    /// QoS 0 over a connection that is up: nothing will be heard of it.
    fn send_and_forget(&mut self, side: usize, out: &Publish, forward: &Forward, now: Instant) {
        match self.sessions[side].publish(out, u32::MAX, now) {
            Ok(_) => forward.route.metrics.delivered(Qos::AtMostOnce),
            Err(refusal) => {
                self.dead_letter(None, &forward.topic, out, &DeadLetter::new("too-large", refusal.to_string()), now);
            }
        }
    }

    /// An instance's broker has taken a message over, or refuses it.
    pub(super) fn forwarded(
        &mut self,
        origin: Option<Origin>,
        forward: Forward,
        reason: Reason,
        message: Option<Publish>,
        now: Instant,
    ) {
        let refused = reason.is_error() || reason == Reason::NO_MATCHING_SUBSCRIBERS;
        if let (true, Some(message)) = (refused, message) {
            return self.try_another(Refused { origin, forward, reason, message }, now);
        }
        forward.route.metrics.delivered(forward.qos);
        if forward.qos != Qos::AtMostOnce {
            forward.route.metrics.delivery.observe(now.saturating_duration_since(forward.received.at).as_secs_f64());
        }
        self.acknowledge(origin);
        let Some(number) = forward.request else {
            if let (Some(endpoint), true) = (&forward.endpoint, forward.qos != Qos::AtMostOnce) {
                endpoint.report(Outcome::Success);
            }
            return;
        };
        if let Some(request) = self.requests.get_mut(number) {
            request.delivered = true;
            // Its instance may have gone while the message was under way.
            if request.is_orphaned(&self.routes) {
                self.orphaned(number, now);
            }
        }
    }

    /// Notes a request in the journal, or what has changed about it. QoS 0 is not worth it.
    fn keep(&mut self, number: u64) {
        let Some(request) = self.requests.get_mut(number) else { return };
        if self.journal.is_on() && request.reply.qos != Qos::AtMostOnce {
            let kept = kept(request);
            self.journal.request(number, kept);
        }
    }

    /// Nobody listens under the instance's code, or its broker refuses the message: another instance is tried, each once.
    fn try_another(&mut self, mut refused: Refused, now: Instant) {
        let forward = &mut refused.forward;
        let request = forward.request.and_then(|number| self.requests.get_mut(number));
        let failed = request.map(|request| &request.endpoint).or(forward.endpoint.as_ref());
        failed.into_iter().for_each(|endpoint| endpoint.report(Outcome::Failure));
        forward.tried.push(forward.code.clone());
        self.let_waiting_go_first(now);
        self.send_to_another(refused, None, now);
    }

    /// Sends a message to an instance that has not been tried; `waits` is until when it waits for one, if it does already.
    pub(super) fn send_to_another(&mut self, mut refused: Refused, waits: Option<Deadline>, now: Instant) {
        let forward = &refused.forward;
        if forward.request.is_some_and(|number| self.requests.get_mut(number).is_none()) {
            // It has been answered, or given up: nobody waits any more.
            return self.acknowledge(refused.origin);
        }
        let route = self.routes.current(&forward.route);
        match route.choose(self.topic_without_code(&refused.message.topic), None, &forward.tried) {
            Ok(endpoint) => self.resend(refused, endpoint, now),
            Err(error) => {
                if let Some(waits) = self.may_wait(&route, &error, waits, now) {
                    return self.hold_refused(refused, waits);
                }
                if self.may_be_back(&route, &refused, now) {
                    return self.hold_away(refused, now);
                }
                let Refused { origin, forward, reason, ref mut message, .. } = refused;
                let letter =
                    DeadLetter::new("no-subscriber", format!("{reason} at the instances that were tried; {error}"));
                if let Some(number) = forward.request {
                    self.give_up(number, letter.reason, &letter.detail, now);
                }
                self.dead_letter(origin, &forward.topic, message, &letter, now);
            }
        }
    }

    fn resend(&mut self, refused: Refused, endpoint: Endpoint, now: Instant) {
        let Refused { origin, mut forward, mut message, .. } = refused;
        forward.route.metrics.redispatched.inc();
        let (side, code) = (self.side_of(&endpoint), endpoint.code().clone());
        message.topic = self.topic_with_code(&message.topic, &code).into();
        (message.dup, message.id) = (false, 0);
        (forward.code, forward.is_unsettled) = (code, false);
        match forward.request.and_then(|number| self.requests.get_mut(number)) {
            Some(request) => request.endpoint = endpoint,
            None => forward.endpoint = Some(endpoint),
        }
        if let Some(number) = forward.request {
            self.keep(number);
        }
        self.send(side, Way { origin, place: None }, &message, forward, now);
    }

    /// The instances have changed: which have gone with requests that they had, and has a master come?
    pub(crate) fn instances_changed(&mut self, now: Instant) {
        if self.routes.refresh() {
            self.look_for_orphans(now);
            self.note_unsettled(now);
            self.release_waiting(now);
        }
    }

    pub(super) fn look_for_orphans(&mut self, now: Instant) {
        self.take_back(now);
        for number in self.requests.orphans(&self.routes) {
            self.orphaned(number, now);
        }
    }

    /// The instance that has a request is gone, or guarded.
    pub(super) fn orphaned(&mut self, number: u64, now: Instant) {
        let Some(request) = self.requests.get_mut(number) else { return };
        // Of one that is guarded it is not known whether it has failed.
        if !self.routes.has(&request.route, request.endpoint.code()) {
            request.endpoint.report(Outcome::Failure);
        }
        request.tried.push(request.endpoint.code().clone());
        self.ask_another(number, None, now);
    }

    /// Sends a request whose instance is gone to another one, if its route allows that; `waits` is until when it waits for one, if it does already.
    pub(super) fn ask_another(&mut self, number: u64, waits: Option<Deadline>, now: Instant) {
        let Some(mut request) = self.requests.remove(number) else { return };
        let Some((topic, copy)) = request.copy.take() else {
            let detail =
                format!("instance {} is gone; the route does not send requests again", request.endpoint.code());
            return self.tell((Some(number), request.origin), &request.reply, "instance-gone", &detail, now);
        };
        let (route, received) = (self.routes.current(&request.route), request.received);
        match route.choose(self.topic_without_code(&copy.topic), None, &request.tried) {
            Err(error) => match self.may_wait(&route, &error, waits, now) {
                Some(waits) => {
                    // It is looked after here, not as one whose instance is gone.
                    (request.copy, request.delivered) = (Some((topic, copy)), false);
                    self.requests.insert(number, request);
                    self.hold_request(number, received, route, waits);
                }
                None => {
                    self.tell((Some(number), request.origin), &request.reply, "instance-gone", &error.to_string(), now);
                }
            },
            Ok(endpoint) => {
                request.route.metrics.redispatched.inc();
                let (side, code) = (self.side_of(&endpoint), endpoint.code().clone());
                let mut out = (*copy).clone();
                out.topic = self.topic_with_code(&copy.topic, &code).into();
                let (route, tried, qos) = (request.route.clone(), request.tried.clone(), out.qos);
                (request.endpoint, request.copy, request.delivered) = (endpoint, Some((topic.clone(), copy)), false);
                let origin = request.origin.take();
                self.requests.insert(number, request);
                self.keep(number);
                let mut forward = Forward::new(route, topic, code, qos, received);
                (forward.tried, forward.request) = (tried, Some(number));
                self.send(side, Way { origin, place: None }, &out, forward, now);
            }
        }
    }

    /// Gives up what has waited too long, for an answer or for a master.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.release_followers(now);
        self.give_up_waiting(now);
        self.release_away(now);
        while let Some(number) = self.requests.overdue(now) {
            self.requests.get_mut(number).into_iter().for_each(|request| request.endpoint.report(Outcome::Failure));
            self.give_up(number, "no-answer", "no answer in time", now);
        }
    }

    fn topic_with_code(&self, topic: &str, code: &str) -> String {
        match self.topics {
            Topics::CodeLast => address::join_code(code, topic.find('/').map_or("", |at| &topic[at..])),
            Topics::GoEnvelope => address::with_other_code(topic, code),
        }
    }

    /// The key by which another instance is chosen.
    fn topic_without_code<'a>(&self, topic: &'a str) -> &'a [u8] {
        match self.topics {
            Topics::CodeLast => topic.find('/').map_or("", |at| &topic[at..]).as_bytes(),
            Topics::GoEnvelope => topic.as_bytes(),
        }
    }

    pub(super) fn undeliverable(
        &mut self,
        origin: Option<Origin>,
        inquiry: &Inquiry<'_>,
        publish: &Publish,
        letter: &DeadLetter,
        now: Instant,
    ) {
        if let Some(reply) = Self::reply_of(inquiry, publish) {
            self.tell((None, None), &reply, letter.reason, &letter.detail, now);
        }
        self.dead_letter(origin, &publish.topic, publish, letter, now);
    }
}

/// A number that nobody can guess, whatever other ones it has seen: who knew it could answer in the place of an instance.
fn nonce() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1
}

fn kept(request: &Request) -> Kept {
    Kept {
        nonce: request.nonce,
        qos: request.reply.qos.number(),
        service: request.route.settings.service.to_string(),
        code: request.endpoint.code().to_string(),
        correlation: request.reply.correlation.as_ref().map(|bytes| bytes.to_vec()),
        reply: request.reply.topic.to_string(),
    }
}

/// What the algorithm goes by: with `ip-hash` the sender, with everything else the topic.
fn key<'a>(route: &Route, inquiry: &'a Inquiry<'a>, publish: &'a Publish) -> &'a [u8] {
    if route.settings.algorithm != pointsman_balance::Algorithm::IpHash {
        return inquiry.topic.as_bytes();
    }
    let sender = publish.properties.user.iter().find(|(name, _)| *name == CLIENT_ID).map(|(_, id)| &**id);
    let level = || route.settings.key_level.and_then(|level| publish.topic.split('/').nth(level));
    let sender = sender.or_else(level).or_else(|| inquiry.envelope.map(|envelope| envelope.sender));
    sender.unwrap_or(inquiry.topic).as_bytes()
}

/// The same message in memory of its own, so that what it was read from can be let go.
pub(super) fn detached(publish: &Publish) -> Publish {
    let properties = &publish.properties;
    let mut memory = BytesMut::with_capacity(publish.payload.len() + publish.topic.len());
    memory.put_slice(&publish.payload);
    let text = |text: &ByteString| ByteString::from(text.to_string());
    let mut copy = publish.clone();
    copy.payload = memory.freeze();
    copy.topic = text(&publish.topic);
    copy.properties.content_type = properties.content_type.as_ref().map(text);
    copy.properties.correlation = properties.correlation.as_ref().map(|bytes| Bytes::copy_from_slice(bytes));
    copy.properties.user = properties.user.iter().map(|(name, value)| (text(name), text(value))).collect();
    copy
}
