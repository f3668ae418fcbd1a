//! Messages from the peer, until they are acknowledged.

use std::collections::HashMap;

use bytes::BytesMut;

use super::{Event, put_ack};
use crate::packet::{AckKind, Malformed, Publish, Qos, Version};
use crate::reason::Reason;

#[derive(Debug)]
pub(super) struct Inbound {
    messages: HashMap<u16, State>,
    /// How many are pending.
    pending: usize,
    /// How many have come on this connection whose exchange is not over, as the peer's quota counts them (MQTT 5, section 4.9).
    open: usize,
    limit: u16,
    /// Counts the connections, from 1.
    connection: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Given out, and not acknowledged; it has come on this connection last. It is acknowledged only on that one: who does so
    /// before it has come again does it twice, and the second answer might meet another message with the same identifier.
    Pending(Qos, u64),
    /// QoS 2, given out and not acknowledged, and the peer has let it go: no answer is wanted.
    Recalled,
    /// QoS 1, acknowledged when the peer could not be told; it has come on this connection last. On the next one it comes again,
    /// and is acknowledged then. On a later one it could be another message: one delivery too many is better than one too few.
    Acknowledged(u64, Reason),
    /// QoS 2, PUBREC is sent (or will be, when it comes again): PUBREL will come. The message has come on this connection last; 0 for
    /// one of an earlier life.
    Received(u64, Reason),
}

impl Inbound {
    pub(super) fn new(limit: u16) -> Self {
        Self { messages: HashMap::new(), pending: 0, open: 0, limit, connection: 1 }
    }

    /// After a new connection, with the old session or without.
    pub(super) fn reconnect(&mut self, session_present: bool) {
        self.connection += 1;
        self.open = 0;
        if session_present {
            let connection = self.connection;
            self.messages.retain(|_, state| !matches!(state, State::Acknowledged(on, _) if *on + 1 < connection));
        } else {
            self.messages.clear();
            self.pending = 0;
        }
    }

    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    pub(super) fn open(&self) -> usize {
        self.open
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn restore(&mut self, id: u16) {
        if id > 0 && !self.messages.contains_key(&id) {
            self.messages.insert(id, State::Received(0, Reason::SUCCESS));
        }
    }

    /// A message that comes again while it is under way is not given out again: it is acknowledged in its time.
    pub(super) fn publish<T>(
        &mut self,
        publish: Publish,
        version: Version,
        out: &mut BytesMut,
    ) -> Result<Event<T>, Malformed> {
        let (qos, id, dup) = (publish.qos, publish.id, publish.dup);
        if qos == Qos::AtMostOnce {
            return Ok(Event::Message(publish));
        }
        match self.messages.get_mut(&id) {
            Some(&mut State::Acknowledged(_, reason)) if qos == Qos::AtLeastOnce && dup => {
                self.messages.remove(&id);
                put_ack(AckKind::Puback, id, reason, version, out);
                Ok(Event::Nothing)
            }
            Some(State::Received(on, reason)) if qos == Qos::ExactlyOnce => {
                let reason = *reason;
                self.open += usize::from(std::mem::replace(on, self.connection) != self.connection);
                put_ack(AckKind::Pubrec, id, reason, version, out);
                Ok(Event::Nothing)
            }
            Some(State::Pending(pending, on)) if *pending == qos && dup => {
                self.open += usize::from(std::mem::replace(on, self.connection) != self.connection);
                Ok(Event::Nothing)
            }
            Some(State::Pending(..) | State::Recalled | State::Received(..)) => {
                // The peer has forgotten what it had sent, as a broker may that was killed. Whatever it sends again after the
                // connection has been closed is taken as new: better twice than never.
                self.messages.retain(|&other, state| other != id && matches!(state, State::Received(..)));
                self.pending = 0;
                let connection = self.connection;
                let open = |state: &&State| matches!(state, State::Received(on, _) if *on == connection);
                self.open = self.messages.values().filter(open).count();
                let what = "a packet identifier is used for a second message";
                Err(Malformed { what, reason: Reason::PACKET_IDENTIFIER_IN_USE })
            }
            // A peer that does not say that it has sent the acknowledged one before has given it up, and sends another.
            // In 3.1.1 the peer has not been told of a limit.
            None | Some(State::Acknowledged(..))
                if version == Version::V5 && self.pending >= usize::from(self.limit) =>
            {
                let what = "more messages than the receive maximum";
                Err(Malformed { what, reason: Reason::RECEIVE_MAXIMUM_EXCEEDED })
            }
            None | Some(State::Acknowledged(..)) => {
                self.messages.insert(id, State::Pending(qos, self.connection));
                self.pending += 1;
                self.open += 1;
                Ok(Event::Message(publish))
            }
        }
    }

    pub(super) fn acknowledge(&mut self, id: u16, reason: Reason, to: (Version, bool), out: &mut BytesMut) {
        let (version, up) = to;
        let (qos, on) = match self.messages.get(&id) {
            Some(&State::Pending(qos, on)) => (qos, on),
            Some(State::Recalled) => {
                self.pending -= 1;
                self.messages.remove(&id);
                return;
            }
            Some(State::Acknowledged(..) | State::Received(..)) | None => return,
        };
        self.pending -= 1;
        if on == self.connection && (qos == Qos::AtLeastOnce || reason.is_error()) {
            self.open -= 1;
        }
        let now = up && on == self.connection;
        match qos {
            _ if reason.is_error() => drop(self.messages.remove(&id)),
            Qos::ExactlyOnce => drop(self.messages.insert(id, State::Received(on, reason))),
            _ if now => drop(self.messages.remove(&id)),
            _ => drop(self.messages.insert(id, State::Acknowledged(on, reason))),
        }
        if now {
            let kind = if qos == Qos::AtLeastOnce { AckKind::Puback } else { AckKind::Pubrec };
            put_ack(kind, id, reason, version, out);
        }
    }

    /// Whether a message of QoS 2 is acknowledged and not released yet.
    pub(super) fn has_received(&self, id: u16) -> bool {
        matches!(self.messages.get(&id), Some(State::Received(..)))
    }

    /// Whether such a message had been received.
    pub(super) fn release(&mut self, id: u16) -> bool {
        match self.messages.get(&id) {
            Some(&State::Received(on, _)) => {
                self.open -= usize::from(on == self.connection);
                self.messages.remove(&id).is_some()
            }
            Some(&State::Pending(Qos::ExactlyOnce, on)) => {
                self.open -= usize::from(on == self.connection);
                self.messages.insert(id, State::Recalled);
                false
            }
            _ => false,
        }
    }
}
