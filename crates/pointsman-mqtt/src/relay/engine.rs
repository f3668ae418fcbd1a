//! What the relay does with messages. Pure: packets and times go in, packets gather in the sessions.
//!
//! There is one session with the broker where senders publish (side 0), and one with each broker where services subscribe
//! (sides 1 and up). A message that is to be passed on is a *flight* until the next broker has taken it over; only then is it
//! acknowledged where it came from.

mod forward;
mod letters;
mod respond;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use slab::Slab;

use super::address;
use super::metrics::Metrics;
use super::requests::Requests;
use super::routes::{Chosen, Line, Routes};
use super::settings::{Settings, Topics};
use crate::packet::{Malformed, Packet, Publish, Qos, Version};
use crate::reason::Reason;
use crate::session::{Event, Peer, Session};

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
    topics: Topics,
    limits: Limits,
    pub(super) routes: Routes,
    flights: Slab<Flight>,
    flying_bytes: usize,
    pub(super) requests: Requests,
    pub(super) metrics: Metrics,
    /// Messages that have come from senders, ever: whether it stands still is seen by it.
    pub(super) arrivals: u64,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    max_in_flight: usize,
    response_timeout: Duration,
}

/// A message on its way from one session to another.
#[derive(Debug)]
struct Flight {
    origin: Option<Origin>,
    what: What,
    bytes: usize,
    since: Instant,
}

/// Where a message of QoS 1 or 2 is to be acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    side: usize,
    id: u16,
    epoch: u32,
}

#[derive(Debug)]
enum What {
    /// To an instance.
    Forward(Box<Forward>),
    /// Back to a sender; a dead letter; an error.
    Back,
}

#[derive(Debug)]
struct Forward {
    line: Arc<Line>,
    /// Without a request. With one, the request holds it.
    chosen: Option<Chosen>,
    code: Arc<str>,
    tried: Vec<Arc<str>>,
    request: Option<u64>,
    qos: Qos,
}

/// What a sender has to be told, and where.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) topic: ByteString,
    pub(super) correlation: Option<Bytes>,
    pub(super) qos: Qos,
}

impl Engine {
    /// `brokers` are the addresses of all sides.
    pub(super) fn new(settings: &Settings, routes: Routes, brokers: Vec<String>, metrics: Metrics) -> Self {
        // What is not acknowledged is bounded by what the relay may have in flight.
        let window = u16::try_from(settings.max_in_flight).unwrap_or(u16::MAX);
        let mut sessions: Vec<Session<u32>> = brokers.iter().map(|_| Session::new(window)).collect();
        for session in &mut sessions {
            session.hold_at_most_once(true);
        }
        Self {
            epochs: vec![0; brokers.len()],
            sessions,
            brokers,
            code: settings.code.clone(),
            topics: settings.topics,
            limits: Limits::of(settings),
            routes,
            flights: Slab::new(),
            flying_bytes: 0,
            requests: Requests::default(),
            metrics,
            arrivals: 0,
        }
    }

    /// Goes on with other routes and limits. What is under way is not touched.
    pub(super) fn reload(&mut self, settings: &Settings, routes: Routes) {
        self.limits = Limits::of(settings);
        self.routes = routes;
    }

    /// A connection is up.
    pub(super) fn connected(&mut self, side: usize, peer: Peer, now: Instant) {
        if !peer.session_present {
            self.epochs[side] += 1;
        }
        self.sessions[side].connected(peer, now);
        self.settle(side, now);
    }

    /// A connection is lost.
    pub(super) fn disconnected(&mut self, side: usize) {
        let lost = self.sessions[side].disconnected();
        self.metrics.dropped("connection-lost", lost as u64);
    }

    /// A packet has come. What is not about messages is given back.
    pub(super) fn receive(&mut self, side: usize, packet: Packet, now: Instant) -> Result<Option<Packet>, Malformed> {
        match self.sessions[side].receive(packet, now)? {
            Event::Message(publish) if side == SENDERS => {
                self.arrivals += 1;
                self.from_sender(publish, now);
            }
            Event::Message(publish) => self.from_service(side, publish, now),
            Event::Acknowledged { token, reason, message } => self.taken_over(token, reason, message, now),
            Event::Other(packet) => return Ok(Some(packet)),
            Event::Released(_) | Event::Completed(_) | Event::Nothing => {}
        }
        self.settle(side, now);
        Ok(None)
    }

    /// Whether more may be taken from senders.
    pub(super) fn has_room(&self) -> bool {
        self.flights.len() + self.requests.len() < self.limits.max_in_flight
            && self.flying_bytes < IN_FLIGHT_BYTES
            && self.has_room_in_outputs()
    }

    fn has_room_in_outputs(&self) -> bool {
        self.sessions.iter().all(|session| session.output_len() < OUTPUT_BYTES)
    }

    /// Messages and requests under way.
    pub(super) fn under_way(&self) -> (usize, usize) {
        (self.flights.len(), self.requests.len())
    }

    /// When something is to be done although nothing comes.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.requests.next_deadline()
    }

    /// Messages that had to wait may have gone out, or be worth nothing any more.
    fn settle(&mut self, side: usize, now: Instant) {
        while let Some(token) = self.sessions[side].take_sent() {
            self.taken_over(token, Reason::SUCCESS, None, now);
        }
        while let Some(token) = self.sessions[side].take_expired() {
            self.expired(token, now);
        }
    }

    fn origin(&self, side: usize, publish: &Publish) -> Option<Origin> {
        let epoch = self.epochs[side];
        (publish.qos != Qos::AtMostOnce).then_some(Origin { side, id: publish.id, epoch })
    }

    /// The message is in other hands, or need not be.
    fn acknowledge(&mut self, origin: Option<Origin>) {
        if let Some(Origin { side, id, epoch }) = origin
            && self.epochs[side] == epoch
        {
            self.sessions[side].acknowledge(id, Reason::SUCCESS);
        }
    }

    /// Sends a message; what becomes of it comes to [`Engine::taken_over`].
    fn launch(&mut self, side: usize, publish: &Publish, flight: Flight, now: Instant) -> Result<(), (String, Flight)> {
        let bytes = flight.bytes;
        let key = self.flights.insert(flight);
        let token = u32::try_from(key).unwrap_or(u32::MAX);
        self.flying_bytes += bytes;
        match self.sessions[side].publish(publish, token, now) {
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
        self.flying_bytes -= flight.bytes;
        Some(flight)
    }

    /// A broker has taken a message over, or refuses it.
    fn taken_over(&mut self, token: u32, reason: Reason, message: Option<Box<Publish>>, now: Instant) {
        let Some(flight) = self.land(token) else { return };
        match flight.what {
            What::Forward(forward) => {
                self.forwarded(flight.origin, *forward, reason, message.map(|m| *m), flight.since, now);
            }
            What::Back => {
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
        if let What::Forward(forward) = &flight.what
            && let Some(request) = forward.request
        {
            self.give_up(request, "expired", "the message has expired before it could be delivered", now);
        }
        self.acknowledge(flight.origin);
    }

    /// The side on which an instance is reached: the broker that its tag `broker` or its address names; else the first.
    fn side_of(&self, chosen: &Chosen) -> usize {
        if self.brokers.len() == 2 {
            return 1;
        }
        let instance = &chosen.instance;
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

impl Limits {
    fn of(settings: &Settings) -> Self {
        Self { max_in_flight: settings.max_in_flight, response_timeout: settings.response_timeout }
    }
}
