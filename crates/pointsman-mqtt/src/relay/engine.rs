//! What the relay does with messages. Pure: packets and times go in, packets gather in the sessions.
//!
//! There is one session with the broker where senders publish (side 0), and one with each broker where services subscribe
//! (sides 1 and up). A message that is to be passed on is a *flight* until the next broker has taken it over; only then is it
//! acknowledged where it came from.

mod away;
mod dead_letter;
mod forward;
mod respond;
mod response_topic;
mod take_back;
mod unsettled;
mod waiting;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use slab::Slab;

use super::address;
use super::journal::{Journal, Kept, Place};
use super::metrics::Metrics;
use super::requests::{Request, Requests};
use super::routes::{Endpoint, Route, Routes};
use super::settings::{Settings, Topics};
use crate::packet::{Malformed, Packet, Publish, Qos, Version};
use crate::reason::Reason;
use crate::session::{Event, Peer, Session};
use crate::url::BrokerUrl;
use away::Away;
use unsettled::Unsettled;
use waiting::Waiting;

/// The side of the senders.
pub(super) const SENDERS: usize = 0;
/// A session whose output has grown beyond this is not given more from senders.
const OUTPUT_BYTES: usize = 4 << 20;
/// All messages under way may have so many bytes.
const IN_FLIGHT_BYTES: usize = 256 << 20;

/// The state of a relay.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) sessions: Vec<Session<u32>>,
    /// How often each peer has lost its session: identifiers from before are void.
    epochs: Vec<u32>,
    /// `host:port` of each broker.
    brokers: Vec<String>,
    code: Arc<str>,
    /// The same, as it stands in every message.
    own_code: ByteString,
    topics: Topics,
    /// Whether messages are marked as relayed: not where one broker serves both sides, and what the relay sends cannot match
    /// what it has subscribed to.
    marks: bool,
    limits: Limits,
    /// Filters of the topics to which answers may go; empty: any that has no meaning of its own.
    response_topics: Vec<String>,
    pub(super) routes: Routes,
    flights: Slab<Flight>,
    /// What is on its way to instances: so much, and no more, is taken from senders. What goes back to senders does not count,
    /// nor does a request once it is answered: or they could keep the acknowledgements they wait for from being read.
    forwards: usize,
    forward_bytes: usize,
    pub(super) requests: Requests,
    /// Messages for masters that are to come.
    waiting: Waiting,
    /// Messages for instances that are away for a moment.
    away: Away,
    unsettled: Unsettled,
    pub(super) metrics: Metrics,
    pub(super) journal: Journal,
    /// Sides whose broker may hold messages of QoS 2 from an earlier life that are not known here.
    unknown_past: Vec<bool>,
    /// Messages that have come from senders, ever: whether it stands still is seen by it.
    pub(super) arrivals: u64,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    max_in_flight: usize,
    response_timeout: Duration,
    queue_timeout: Duration,
    away_timeout: Duration,
}

/// A message on its way from one session to another.
#[derive(Debug)]
struct Flight {
    origin: Option<Origin>,
    what: What,
    bytes: usize,
    /// With QoS 2 and a journal: where it is.
    place: Option<Place>,
}

impl Flight {
    /// Whether it counts against what may be taken from senders: on its way to an instance, and no request, which counts itself
    /// as long as it is not answered.
    fn counts(&self) -> bool {
        matches!(&self.what, What::Forward(forward) if forward.request.is_none())
    }
}

/// Where a message of QoS 1 or 2 is to be acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    side: usize,
    id: u16,
    epoch: u32,
    exactly_once: bool,
}

#[derive(Debug)]
enum What {
    /// To an instance.
    Forward(Box<Forward>),
    /// Back to a sender: the answer to this request, or an error; or a dead letter.
    Back(Option<u64>),
}

#[derive(Debug)]
struct Forward {
    route: Arc<Route>,
    /// Without a request. With one, the request holds it.
    endpoint: Option<Endpoint>,
    /// As the sender has called it.
    topic: Arc<str>,
    code: Arc<str>,
    tried: Vec<Arc<str>>,
    request: Option<u64>,
    qos: Qos,
    received: Received,
    /// Whether its master has gone while it was under way.
    is_unsettled: bool,
    /// For how long it has been held for an instance that is away.
    held: Option<away::Held>,
}

/// When a message came from its sender, and as which of all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) at: Instant,
    /// Messages keep this order where they wait.
    pub(super) number: u64,
}

impl Forward {
    fn new(route: Arc<Route>, topic: Arc<str>, code: Arc<str>, qos: Qos, received: Received) -> Self {
        Self {
            route,
            endpoint: None,
            topic,
            code,
            tried: Vec::new(),
            request: None,
            qos,
            received,
            is_unsettled: false,
            held: None,
        }
    }
}

/// What a sender has to be told, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) topic: ByteString,
    pub(super) correlation: Option<Bytes>,
    pub(super) qos: Qos,
}

impl Engine {
    /// `brokers` are the addresses of all sides.
    pub(super) fn new(
        settings: &Settings,
        routes: Routes,
        brokers: Vec<String>,
        metrics: Metrics,
        journal: Journal,
    ) -> Self {
        // What is announced ([`window`]) is not insisted on: mosquitto 2.0 sends more under load, and would do so again after
        // each reconnection. But there is an end to it.
        let limit = |side| window(settings, side).saturating_mul(2).saturating_add(1000);
        let mut sessions: Vec<Session<u32>> = (0..brokers.len()).map(|side| Session::new(limit(side))).collect();
        let version = |url: &BrokerUrl| url.version();
        let of_senders = settings.ingress.as_ref().map_or(Version::V5, version);
        let of_services = settings.egress.iter().map(version).chain(std::iter::repeat(of_senders));
        let versions = std::iter::once(of_senders).chain(of_services);
        for (session, version) in sessions.iter_mut().zip(versions) {
            session.hold_at_most_once(true);
            session.report_assigned(journal.is_on());
            session.expect_version(version);
        }
        let unknown_past = vec![!journal.knows_the_past(); brokers.len()];
        let mut it = Self {
            epochs: vec![0; brokers.len()],
            sessions,
            brokers,
            own_code: ByteString::from(&*settings.code()),
            code: settings.code(),
            topics: settings.topics,
            marks: !settings.has_one_broker(),
            limits: Limits::of(settings),
            response_topics: settings.response_topics.clone(),
            routes,
            flights: Slab::new(),
            forwards: 0,
            forward_bytes: 0,
            requests: Requests::default(),
            waiting: Waiting::default(),
            away: Away::default(),
            unsettled: Unsettled::default(),
            metrics,
            journal,
            unknown_past,
            arrivals: 0,
        };
        it.restore(Instant::now());
        it
    }

    /// Takes up what an earlier life has left. Brokers that are not there any more are left alone.
    fn restore(&mut self, now: Instant) {
        for (side, id) in self.journal.received_before() {
            if let Some(session) = self.sessions.get_mut(side) {
                session.restore_received(id);
            }
        }
        for ((side, id), taken) in self.journal.sent_before() {
            if let Some(session) = self.sessions.get_mut(side) {
                session.restore_sent(id, taken);
            }
        }
        let timeout = self.limits.response_timeout;
        for (number, kept) in self.journal.requests_before() {
            match self.request_of(kept, (now, now + timeout)) {
                Some(request) => self.requests.insert(number, request),
                None => self.journal.answered(number),
            }
        }
    }

    fn request_of(&self, kept: Kept, times: (Instant, Instant)) -> Option<Request> {
        let route = self.routes.of_kept(&kept.service, &kept.code)?.clone();
        let endpoint = Endpoint::unclaimed(&kept.service, &kept.code);
        let correlation = kept.correlation.map(Bytes::from);
        let reply = Reply { topic: kept.reply.into(), correlation, qos: Qos::of(kept.qos)? };
        let (now, deadline) = times;
        let received = Received { at: now, number: 0 };
        let mut request = Request::new(reply, route, endpoint, kept.nonce, (received, deadline));
        request.delivered = true;
        Some(request)
    }

    /// Notes what has been given an identifier, before it is sent.
    pub(super) fn write_journal(&mut self) {
        if !self.journal.is_on() {
            return;
        }
        for side in 0..self.sessions.len() {
            for (token, id) in self.sessions[side].take_assigned() {
                self.placed(token, (side, id));
            }
        }
        self.journal.write();
    }

    fn placed(&mut self, token: u32, place: Place) {
        let Some(flight) = self.flights.get_mut(token as usize) else { return };
        flight.place = Some(place);
        let origin = flight.origin.filter(|origin| origin.exactly_once).map(|origin| (origin.side, origin.id));
        let code = if let What::Forward(forward) = &flight.what { &*forward.code } else { "" };
        self.journal.sent(place, origin, code);
    }

    /// Goes on with other routes and limits. What is under way is not touched.
    pub(super) fn reload(&mut self, settings: &Settings, routes: Routes, now: Instant) {
        self.limits = Limits::of(settings);
        self.response_topics.clone_from(&settings.response_topics);
        let before = std::mem::replace(&mut self.routes, routes);
        self.metrics.forget_gone(before.all(), self.routes.all());
        self.look_for_orphans(now);
        self.release_waiting(now);
    }

    /// A connection is up. These packets go first: what is sent again may lead to answers at once.
    pub(super) fn connected(&mut self, side: usize, peer: Peer, first: &[Packet], now: Instant) {
        if std::mem::take(&mut self.unknown_past[side]) && peer.session_present {
            // What the broker has received but not been told to deliver (PUBREL) would be lost, and a new message with the
            // identifier of such a one would be taken for it.
            self.sessions[side].release_all(&peer);
        }
        if !peer.session_present {
            self.epochs[side] += 1;
            for place in self.journal.lost(side) {
                self.release(place);
            }
        }
        self.sessions[side].connected(peer, now);
        let again = self.sessions[side].output().split();
        first.iter().for_each(|packet| self.control(side, packet));
        self.sessions[side].output().unsplit(again);
        self.settle(side, now);
    }

    /// Sends a packet that is not about messages.
    pub(super) fn control(&mut self, side: usize, packet: &Packet) {
        // Filters have been checked, and everything else is short.
        if let Err(error) = self.sessions[side].send(packet) {
            tracing::error!(%error, "a control packet cannot be sent");
        }
    }

    /// A connection is lost.
    pub(super) fn disconnected(&mut self, side: usize) {
        let lost = self.sessions[side].disconnected();
        self.metrics.dropped("connection-lost", lost as u64);
    }

    /// A packet has come. What is not about messages is given back.
    pub(super) fn receive(&mut self, side: usize, packet: Packet, now: Instant) -> Result<Option<Packet>, Malformed> {
        match self.take_in(side, packet, now)? {
            Event::Message(publish) if side == SENDERS => {
                self.arrivals += 1;
                self.let_waiting_go_first(now);
                self.take_from_sender(publish, now);
            }
            Event::Message(publish) => self.take_from_service(side, publish, now),
            Event::Acknowledged { token, reason, message } => self.taken_over(token, reason, message, now),
            Event::Other(packet) => return Ok(Some(packet)),
            Event::Released(id) => self.journal.released((side, id)),
            Event::Completed(id) => self.journal.through((side, id)),
            Event::Nothing => {}
        }
        self.settle(side, now);
        Ok(None)
    }

    /// A message has come for the second time, by another subscription: the first is passed on.
    pub(super) fn receive_copy(&mut self, side: usize, publish: Publish, now: Instant) -> Result<(), Malformed> {
        if let Event::Message(publish) = self.take_in(side, Packet::Publish(publish), now)? {
            self.acknowledge(self.origin(side, &publish));
        }
        Ok(())
    }

    /// A message has come of which the payload is left out: it is too large, and would come for ever if it was not taken.
    pub(super) fn receive_cut(&mut self, side: usize, publish: Publish, now: Instant) -> Result<(), Malformed> {
        match self.take_in(side, Packet::Publish(publish), now)? {
            Event::Message(publish) if side == SENDERS => {
                self.arrivals += 1;
                self.too_large_from_sender(&publish, now);
            }
            Event::Message(publish) => {
                self.metrics.dropped("too-large", 1);
                tracing::warn!(topic = &*publish.topic, "an answer is larger than max_packet");
                self.acknowledge(self.origin(side, &publish));
            }
            _ => {}
        }
        self.settle(side, now);
        Ok(())
    }

    fn take_in(&mut self, side: usize, packet: Packet, now: Instant) -> Result<Event<u32>, Malformed> {
        let event = self.sessions[side].receive(packet, now);
        if event.as_ref().is_err_and(|error| error.reason == Reason::PACKET_IDENTIFIER_IN_USE) {
            // The broker has forgotten what it had sent: acknowledgements of that would meet other messages.
            self.epochs[side] += 1;
        }
        event
    }

    /// Whether more may be taken from senders.
    pub(super) fn has_room(&self) -> bool {
        self.forwards + self.requests.len() < self.limits.max_in_flight
            && self.forward_bytes + self.requests.bytes() < IN_FLIGHT_BYTES
            && self.has_room_in_outputs()
    }

    fn has_room_in_outputs(&self) -> bool {
        // A broker in this process may wait for us to read before it reads itself.
        let embedded = self.brokers[SENDERS].is_empty();
        self.sessions[usize::from(embedded)..].iter().all(|session| session.output_len() < OUTPUT_BYTES)
    }

    /// Messages and requests under way.
    pub(super) fn under_way(&self) -> (usize, usize) {
        (self.flights.len() + self.waiting.len() + self.away.len(), self.requests.len())
    }

    /// When something is to be done although nothing comes.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let held = [self.waiting.next_deadline(), self.away.next_deadline()];
        let deadlines = [self.requests.next_deadline(), self.unsettled.next_deadline()];
        deadlines.into_iter().chain(held).flatten().min()
    }

    /// Messages that had to wait may have gone out, or be worth nothing any more.
    fn settle(&mut self, side: usize, now: Instant) {
        while let Some(token) = self.sessions[side].take_sent() {
            self.taken_over(token, Reason::SUCCESS, None, now);
        }
        while let Some((token, message)) = self.sessions[side].take_refused() {
            let flight = self.land(token);
            if let (Some(flight), Some(message)) = (flight, message) {
                self.unsendable(flight, &message, "it is too large for the broker".to_owned(), now);
            }
        }
        while let Some(token) = self.sessions[side].take_expired() {
            self.expired(token, now);
        }
        self.release_followers(now);
    }

    fn origin(&self, side: usize, publish: &Publish) -> Option<Origin> {
        let epoch = self.epochs[side];
        let exactly_once = publish.qos == Qos::ExactlyOnce;
        (publish.qos != Qos::AtMostOnce).then_some(Origin { side, id: publish.id, epoch, exactly_once })
    }

    /// Where a message that has come again after a restart had gone, and to which instance.
    fn restored(&mut self, origin: Option<Origin>) -> Option<(Place, String)> {
        let origin = origin.filter(|origin| origin.exactly_once && self.journal.is_on())?;
        let (place, code) = self.journal.restored((origin.side, origin.id))?;
        if place.0 == SENDERS || place.0 >= self.sessions.len() {
            // It was a dead letter: it has another chance now.
            self.release(place);
            return None;
        }
        Some((place, code))
    }

    /// As [`Engine::restored`], for answers.
    fn place_before(&mut self, origin: Option<Origin>) -> Option<Place> {
        let origin = origin.filter(|origin| origin.exactly_once && self.journal.is_on())?;
        self.journal.restored((origin.side, origin.id)).map(|(place, _)| place)
    }

    fn release(&mut self, (side, id): Place) {
        if let Some(session) = self.sessions.get_mut(side) {
            session.release_restored(id);
        }
    }

    /// The message is in other hands, or need not be.
    fn acknowledge(&mut self, origin: Option<Origin>) {
        if let Some(Origin { side, id, epoch, exactly_once }) = origin
            && self.epochs[side] == epoch
        {
            self.sessions[side].acknowledge(id, Reason::SUCCESS);
            // The peer may have let the identifier go meanwhile: then it stands for nothing.
            if exactly_once && self.journal.is_on() && self.sessions[side].has_received(id) {
                self.journal.received((side, id));
            }
        }
    }

    /// Sends a message; what becomes of it comes to [`Engine::taken_over`]. A message of QoS 2 that has come again after a
    /// restart goes out as it did before.
    fn launch(&mut self, side: usize, publish: &Publish, flight: Flight, now: Instant) -> Result<(), (String, Flight)> {
        let place = flight.place.filter(|place| place.0 == side);
        if flight.counts() {
            self.forwards += 1;
            self.forward_bytes += flight.bytes;
        }
        let request = if let What::Forward(forward) = &flight.what { forward.request } else { None };
        let key = self.flights.insert(flight);
        let token = u32::try_from(key).unwrap_or(u32::MAX);
        if let Some(request) = request.and_then(|number| self.requests.get_mut(number)) {
            request.flight = Some(token);
        }
        let session = &mut self.sessions[side];
        let result = match place {
            Some((_, id)) => session.publish_restored(id, publish, token, now).map(|()| None),
            None => session.publish(publish, token, now),
        };
        match result {
            Ok(None) => Ok(()),
            Ok(Some(token)) => {
                self.taken_over(token, Reason::SUCCESS, None, now);
                Ok(())
            }
            Err(refusal) => match self.land(token) {
                Some(flight) => Err((refusal.to_string(), flight)),
                None => Ok(()),
            },
        }
    }

    fn land(&mut self, token: u32) -> Option<Flight> {
        let flight = self.flights.try_remove(token as usize)?;
        if let What::Forward(forward) = &flight.what
            && let Some(request) = forward.request.and_then(|number| self.requests.get_mut(number))
        {
            request.flight = None;
        }
        if let What::Forward(forward) = &flight.what {
            self.unsettled.settle(&forward.route, token);
        }
        if flight.counts() {
            self.forwards -= 1;
            self.forward_bytes -= flight.bytes;
        }
        Some(flight)
    }

    /// A broker has taken a message over, or refuses it.
    fn taken_over(&mut self, token: u32, reason: Reason, message: Option<Box<Publish>>, now: Instant) {
        let Some(flight) = self.land(token) else { return };
        match flight.place {
            Some(place) if reason.is_error() => self.journal.through(place),
            Some(place) => self.journal.taken(place),
            None => {}
        }
        match flight.what {
            What::Forward(forward) => {
                self.forwarded(flight.origin, *forward, reason, message.map(|m| *m), now);
            }
            What::Back(request) => {
                if let Some(number) = request {
                    self.journal.answered(number);
                }
                if reason.is_error() {
                    self.metrics.dropped("refused", 1);
                    tracing::warn!(%reason, "the senders' broker refuses what the relay sends");
                }
                self.acknowledge(flight.origin);
            }
        }
    }

    fn expired(&mut self, token: u32, now: Instant) {
        let Some(flight) = self.land(token) else { return };
        self.metrics.dropped("expired", 1);
        if let What::Back(Some(number)) = flight.what {
            self.journal.answered(number);
        }
        if let What::Forward(forward) = &flight.what
            && let Some(request) = forward.request
        {
            self.give_up(request, "expired", "the message has expired before it could be delivered", now);
        }
        self.acknowledge(flight.origin);
    }

    /// The side on which an instance is reached: the broker that its tag `broker` or its address names; else the first.
    fn side_of(&self, endpoint: &Endpoint) -> usize {
        if self.brokers.len() == 2 {
            return 1;
        }
        let instance = &endpoint.instance;
        let named = [instance.tags.get("broker").map(String::as_str), instance.address.as_deref()];
        let place = |name: &str| self.brokers[1..].iter().position(|broker| broker == name);
        named.into_iter().flatten().find_map(place).map_or(1, |place| place + 1)
    }

    /// Whether messages on this side carry properties.
    fn speaks_v5(&self, side: usize) -> bool {
        self.sessions[side].peer().version == Version::V5
    }

    fn is_reserved(topic: &str) -> bool {
        topic.starts_with('$') || topic.starts_with(address::RESERVED)
    }
}

/// How many messages a broker may send without an acknowledgement. Senders: as many as may be under way. Services' answers
/// are no more than there are requests; and if some had to wait for others to be acknowledged by the senders' broker, which
/// is not read while too many requests wait for their answers, nothing would go on.
pub(super) fn window(settings: &Settings, side: usize) -> u16 {
    if side == SENDERS { u16::try_from(settings.max_in_flight).unwrap_or(u16::MAX) } else { u16::MAX }
}

impl Limits {
    fn of(settings: &Settings) -> Self {
        Self {
            max_in_flight: settings.max_in_flight,
            response_timeout: settings.response_timeout,
            queue_timeout: settings.queue_timeout,
            away_timeout: settings.away_timeout,
        }
    }
}
