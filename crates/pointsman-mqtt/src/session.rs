//! The messages under way on one MQTT session, as one of its two sides sees them. Pure: no I/O, no clock.
//!
//! Both sides of MQTT do the same here, so a [`Session`] serves a client as well as a broker. Packets go in by
//! [`Session::receive`]; what is to be sent gathers in [`Session::output`]. A session outlives its connections:
//! [`Session::connected`] sends again what the specification wants to be sent again (section 4.4).

mod encoded;
mod inbound;
mod outbound;
mod stored;

use std::time::Instant;

use bytes::BytesMut;

use crate::packet::{Ack, AckKind, Malformed, Packet, Publish, Qos, Unencodable, Version, encode};
use crate::reason::Reason;
pub use encoded::Encodings;
use inbound::Inbound;
use outbound::Outbound;

/// One side's memory of a session. `T` stands for a message that was given out to be sent; it comes back when the peer has
/// taken it over.
#[derive(Debug)]
pub struct Session<T> {
    up: bool,
    peer: Peer,
    out: BytesMut,
    inbound: Inbound,
    outbound: Outbound<T>,
}

/// What is known of the other side once a connection is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The version that both speak.
    pub version: Version,
    /// Whether the other side still has the session that this side has.
    pub session_present: bool,
    /// How many messages with QoS 1 and 2 it takes without acknowledging one.
    pub receive_maximum: u16,
    /// The largest packet it takes, in bytes.
    pub max_packet: usize,
    /// The highest quality it takes; what is higher is sent with this one.
    pub max_qos: Qos,
    /// Whether it takes subscription identifiers.
    pub takes_subscription_ids: bool,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            version: Version::V5,
            session_present: false,
            receive_maximum: u16::MAX,
            max_packet: usize::MAX,
            max_qos: Qos::ExactlyOnce,
            takes_subscription_ids: true,
        }
    }
}

/// What a packet of the peer means.
#[derive(Debug, PartialEq)]
pub enum Event<T> {
    /// A message. With QoS 1 and 2 it is to be acknowledged ([`Session::acknowledge`]).
    Message(Publish),
    /// The peer has taken a message over (PUBACK, PUBREC), or refuses it: then its identifier is free, and no
    /// [`Event::Completed`] follows.
    Acknowledged {
        /// What was given with the message.
        token: T,
        /// Whether it was taken over.
        reason: Reason,
        /// The message as it was sent, where it was not simply taken over.
        message: Option<Box<Publish>>,
    },
    /// The peer will not send the message of QoS 2 with this identifier again (PUBREL).
    Released(u16),
    /// A message of QoS 2 that was sent with this identifier is through (PUBCOMP).
    Completed(u16),
    /// A packet that is not about messages.
    Other(Packet),
    /// Nothing that concerns anybody else.
    Nothing,
}

/// A message that cannot be sent on this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// MQTT cannot express it.
    #[error("it cannot be sent: {0}")]
    Unencodable(#[from] Unencodable),
    /// The peer takes no packets of that size.
    #[error("it is too large for the receiver: {size} bytes, where {limit} are allowed")]
    TooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The largest size allowed, in bytes.
        limit: usize,
    },
}

impl<T: Clone> Session<T> {
    /// A session that has never been connected. `receive_maximum` is what this side announces: more messages without an
    /// acknowledgement break the protocol.
    #[must_use]
    pub fn new(receive_maximum: u16) -> Self {
        Self {
            up: false,
            peer: Peer::default(),
            out: BytesMut::new(),
            inbound: Inbound::new(receive_maximum),
            outbound: Outbound::default(),
        }
    }

    /// The version that the peer will speak, before it has been met.
    pub fn expect_version(&mut self, version: Version) {
        self.peer.version = version;
    }

    /// A connection is up, and its CONNACK through: sends again what was under way.
    pub fn connected(&mut self, peer: Peer, now: Instant) {
        self.out.clear();
        self.up = true;
        let before = std::mem::replace(&mut self.peer, peer);
        self.inbound.reconnect(peer.session_present);
        self.outbound.reconnect(before.version, &self.peer, now, &mut self.out);
        self.outbound.pump(&self.peer, now, &mut self.out);
        self.outbound.pump_at_most_once(&self.peer, now, &mut self.out);
    }

    /// The connection is lost. What was under way stays; messages of QoS 0 that had not been written yet are lost: that many,
    /// at most.
    pub fn disconnected(&mut self) -> usize {
        self.up = false;
        let lost = if self.out.is_empty() { 0 } else { self.outbound.unwritten };
        self.outbound.unwritten = 0;
        self.out.clear();
        lost
    }

    /// Everything in [`Session::output`] has been written.
    pub fn written(&mut self) {
        self.outbound.unwritten = 0;
    }

    /// Lets messages of QoS 0 wait for a connection as the others do, instead of being lost. Their tokens come back by
    /// [`Session::take_sent`].
    pub fn hold_at_most_once(&mut self, hold: bool) {
        self.outbound.hold = hold;
    }

    /// A message of QoS 0 that had to wait, and has been sent now.
    pub fn take_sent(&mut self) -> Option<T> {
        self.outbound.sent.pop_front()
    }

    /// Keeps larger payloads as they are given, instead of copying them: they have memory of their own, and other sessions may have them too.
    pub fn share_payloads(&mut self, share: bool) {
        self.outbound.shares = share;
    }

    /// Lets messages with an acknowledgement wait while that many bytes are in the output: where a peer does not read, they stay
    /// where they can be shared. They go on by [`Session::refill`].
    pub fn limit_output(&mut self, bytes: usize) {
        self.outbound.output = bytes;
    }

    /// The output has been taken: goes on with what waits.
    pub fn refill(&mut self, now: Instant) {
        if self.up {
            self.outbound.pump(&self.peer, now, &mut self.out);
        }
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// What is known of the other side.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What is to be written to the connection; whoever writes takes it off the front.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// How many bytes are to be written.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.out.len()
    }

    /// Sends a packet that is not about messages.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unencodable`].
    pub fn send(&mut self, packet: &Packet) -> Result<(), Refusal> {
        if self.up {
            encode(packet, self.peer.version, &mut self.out)?;
        }
        Ok(())
    }

    /// Sends a message, as soon as the peer's receive maximum allows. QoS 0: the token comes back at once, and without a
    /// connection the message is lost, unless it is held ([`Session::hold_at_most_once`]).
    ///
    /// # Errors
    ///
    /// [`Refusal`]; nothing is sent then.
    pub fn publish(&mut self, publish: &Publish, token: T, now: Instant) -> Result<Option<T>, Refusal> {
        self.publish_shared(publish, token, &mut Encodings::default(), now)
    }

    /// The same for a message that goes to other sessions too, with the same topic, properties and payload: where payloads are shared
    /// ([`Session::share_payloads`]), what is encoded once is kept once.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; nothing is sent then.
    pub fn publish_shared(
        &mut self,
        publish: &Publish,
        token: T,
        encodings: &mut Encodings,
        now: Instant,
    ) -> Result<Option<T>, Refusal> {
        let up = self.up;
        self.outbound.publish(publish, token, (&self.peer, up), encodings, now, &mut self.out)
    }

    /// Takes a packet of the peer in.
    ///
    /// # Errors
    ///
    /// [`Malformed`], when the packet breaks the protocol; the connection has to be closed then.
    pub fn receive(&mut self, packet: Packet, now: Instant) -> Result<Event<T>, Malformed> {
        let event = self.take_in(packet, now);
        if !self.up {
            // What was read before the connection broke may still come; there is nobody to answer.
            self.out.clear();
        }
        event
    }

    fn take_in(&mut self, packet: Packet, now: Instant) -> Result<Event<T>, Malformed> {
        match packet {
            Packet::Publish(Publish { id: 0, qos: Qos::AtLeastOnce | Qos::ExactlyOnce, .. })
            | Packet::Ack(Ack { id: 0, .. }) => Err(Malformed::protocol("a packet identifier is 0")),
            Packet::Publish(publish) => self.inbound.publish(publish, self.peer.version, &mut self.out),
            Packet::Ack(Ack { kind: AckKind::Pubrel, id, .. }) => {
                let known = self.inbound.release(id);
                let reason = if known { Reason::SUCCESS } else { Reason::PACKET_IDENTIFIER_NOT_FOUND };
                put_ack(AckKind::Pubcomp, id, reason, self.peer.version, &mut self.out);
                Ok(if known { Event::Released(id) } else { Event::Nothing })
            }
            Packet::Ack(ack) => {
                let event = self.outbound.acknowledged(&ack, self.peer.version, &mut self.out)?;
                if self.up {
                    self.outbound.pump(&self.peer, now, &mut self.out);
                }
                Ok(event)
            }
            other => Ok(Event::Other(other)),
        }
    }

    /// Acknowledges a message of QoS 1 or 2: this side has taken it over, or refuses it. An identifier that is not, or no
    /// longer, under way is passed over. After [`Session::connected`] without the old session the identifiers that were given
    /// out before mean nothing any more, and may come again for other messages.
    pub fn acknowledge(&mut self, id: u16, reason: Reason) {
        self.inbound.acknowledge(id, reason, (self.peer.version, self.up), &mut self.out);
    }

    /// Whether a message of QoS 2 with this identifier is acknowledged (PUBREC), and the peer has not released it yet (PUBREL).
    #[must_use]
    pub fn has_received(&self, id: u16) -> bool {
        self.inbound.has_received(id)
    }

    /// A message whose time was over before it could be sent; or that has waited for a connection, and the peer there turns out
    /// to take no packets of that size.
    pub fn take_expired(&mut self) -> Option<T> {
        self.outbound.expired.pop_front().or_else(|| self.take_refused().map(|(token, _)| token))
    }

    /// A message that has waited for a connection, and turns out to be too large for the peer there; comes by
    /// [`Session::take_expired`] otherwise.
    pub fn take_refused(&mut self) -> Option<(T, Option<Box<Publish>>)> {
        self.outbound.refused.pop_front()
    }

    /// Messages of QoS 2 that have been given an identifier since the last call.
    pub fn take_assigned(&mut self) -> Vec<(T, u16)> {
        std::mem::take(&mut self.outbound.assigned)
    }

    /// Lets messages of QoS 2 be reported by [`Session::take_assigned`].
    pub fn report_assigned(&mut self, report: bool) {
        self.outbound.report = report;
    }

    /// How many messages to the peer are not acknowledged yet, whether sent or waiting.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outbound.in_flight() + self.outbound.queue.len()
    }

    /// How many messages to the peer wait for its receive maximum, or for a connection.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.outbound.queue.len()
    }

    /// How many messages of the peer are not acknowledged yet.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.inbound.pending()
    }

    /// How many messages of the peer count against the receive maximum that it was told: those that have come on this connection, and of which
    /// those of QoS 1 are not acknowledged, and those of QoS 2 not through.
    #[must_use]
    pub fn exchanging(&self) -> usize {
        self.inbound.open()
    }

    /// Whether nothing is remembered, so that a new session would do as well.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn is_blank(&self) -> bool {
        self.outstanding() == 0 && self.inbound.is_empty()
    }

    /// Takes all messages to the peer out of the session, in their order: what it was given with each. What had been sent
    /// already may still arrive. The session can go on: it then lets go of each identifier in its time.
    pub fn drain(&mut self) -> Vec<T> {
        self.outbound.drain()
    }

    /// Takes those messages to the peer out of the session that are `wanted`, in their order: the token that each was given with, and the
    /// message. What had been sent already may still arrive. A message whose time is over comes by [`Session::take_expired`] instead.
    /// The session lets go of each identifier when the peer has acknowledged it.
    pub fn take_back(&mut self, now: Instant, wanted: impl FnMut(&T, Qos) -> bool) -> Vec<(T, Publish)> {
        self.outbound.take_back(self.peer.version, now, wanted)
    }

    /// From an earlier life of this session: a message of QoS 2 that had been received, and acknowledged with PUBREC.
    pub fn restore_received(&mut self, id: u16) {
        self.inbound.restore(id);
    }

    /// From an earlier life of this session: a message of QoS 2 that had been sent. `taken` says whether the peer had taken it
    /// over; otherwise it waits for [`Session::publish_restored`].
    pub fn restore_sent(&mut self, id: u16, taken: bool) {
        self.outbound.restore(id, taken);
    }

    /// From an earlier life of this session, of which nothing is known: with the next connection, releases every message of QoS 2
    /// that it can have sent to this peer.
    pub fn release_all(&mut self, peer: &Peer) {
        for id in 1..=outbound::window(peer) {
            self.outbound.restore(id, true);
        }
    }

    /// Releases a message of QoS 2 that was restored and will not be given any more: what the peer has of it, it may deliver.
    pub fn release_restored(&mut self, id: u16) {
        let to = (self.peer.version, self.up);
        self.outbound.release_restored(id, to, &mut self.out);
    }

    /// Sends a message of QoS 2 under the identifier that it had in an earlier life; as a new one if that is gone. A peer that
    /// takes nothing above QoS 0 gets it so; the token comes back by [`Session::take_sent`] then.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn publish_restored(&mut self, id: u16, publish: &Publish, token: T, now: Instant) -> Result<(), Refusal> {
        let up = self.up;
        self.outbound.publish_restored(id, publish, token, (&self.peer, up), now, &mut self.out)
    }
}

fn put_ack(kind: AckKind, id: u16, reason: Reason, version: Version, out: &mut BytesMut) {
    let ack = Packet::Ack(Ack { kind, id, reason, reason_string: None });
    // An acknowledgement of four or five bytes can always be expressed.
    let _ = encode(&ack, version, out);
}

#[cfg(test)]
mod tests;
