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
    limit: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Given out, and not acknowledged.
    Pending(Qos, Answer),
    /// QoS 1, acknowledged when the peer could not be told: it will come again, and is acknowledged then.
    Acknowledged,
    /// QoS 2, PUBREC is sent (or will be, when it comes again): PUBREL will come.
    Received,
}

/// When the acknowledgement of a pending message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// As soon as there is one.
    Now,
    /// When the message has come again, on the connection that there is now. Who answers earlier answers twice: the second
    /// answer might meet another message that has the identifier by then.
    Again,
    /// Not at all: the peer has let the identifier go.
    Never,
}

impl Inbound {
    pub(super) fn new(limit: u16) -> Self {
        Self { messages: HashMap::new(), pending: 0, limit }
    }

    /// After a new connection, with the old session or without.
    pub(super) fn reconnect(&mut self, session_present: bool) {
        if !session_present {
            self.messages.clear();
            self.pending = 0;
        }
        for state in self.messages.values_mut() {
            if let State::Pending(_, answer @ Answer::Now) = state {
                *answer = Answer::Again;
            }
        }
    }

    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    pub(super) fn restore(&mut self, id: u16) {
        self.messages.insert(id, State::Received);
    }

    /// A message that comes again while it is under way is not given out again: it is acknowledged in its time.
    pub(super) fn publish<T>(
        &mut self,
        publish: Publish,
        version: Version,
        out: &mut BytesMut,
    ) -> Result<Event<T>, Malformed> {
        let (qos, id) = (publish.qos, publish.id);
        if qos == Qos::AtMostOnce {
            return Ok(Event::Message(publish));
        }
        match self.messages.get_mut(&id) {
            Some(State::Acknowledged) if qos == Qos::AtLeastOnce && publish.dup => {
                self.messages.remove(&id);
                put_ack(AckKind::Puback, id, Reason::SUCCESS, version, out);
                Ok(Event::Nothing)
            }
            Some(State::Received) if qos == Qos::ExactlyOnce => {
                put_ack(AckKind::Pubrec, id, Reason::SUCCESS, version, out);
                Ok(Event::Nothing)
            }
            Some(State::Pending(pending, answer @ (Answer::Now | Answer::Again))) if *pending == qos && publish.dup => {
                *answer = Answer::Now;
                Ok(Event::Nothing)
            }
            Some(State::Pending(..) | State::Received) => {
                let what = "a packet identifier is used for a second message";
                Err(Malformed { what, reason: Reason::PACKET_IDENTIFIER_IN_USE })
            }
            // A peer that does not say that it has sent the acknowledged one before has given it up, and sends another.
            None | Some(State::Acknowledged) if self.pending >= usize::from(self.limit) => {
                let what = "more messages than the receive maximum";
                Err(Malformed { what, reason: Reason::RECEIVE_MAXIMUM_EXCEEDED })
            }
            None | Some(State::Acknowledged) => {
                self.messages.insert(id, State::Pending(qos, Answer::Now));
                self.pending += 1;
                Ok(Event::Message(publish))
            }
        }
    }

    pub(super) fn acknowledge(&mut self, id: u16, reason: Reason, to: (Version, bool), out: &mut BytesMut) {
        let Some(&State::Pending(qos, answer)) = self.messages.get(&id) else { return };
        let (version, up) = to;
        let now = up && answer == Answer::Now;
        self.pending -= 1;
        let kind = if qos == Qos::AtLeastOnce { AckKind::Puback } else { AckKind::Pubrec };
        match qos {
            _ if reason.is_error() || answer == Answer::Never => drop(self.messages.remove(&id)),
            Qos::ExactlyOnce => drop(self.messages.insert(id, State::Received)),
            _ if now => drop(self.messages.remove(&id)),
            _ => drop(self.messages.insert(id, State::Acknowledged)),
        }
        if now {
            put_ack(kind, id, reason, version, out);
        }
    }

    /// Whether such a message had been received.
    pub(super) fn release(&mut self, id: u16) -> bool {
        let state = self.messages.get_mut(&id);
        if let Some(State::Pending(Qos::ExactlyOnce, answer)) = state {
            // The peer has taken the message back before it was acknowledged.
            *answer = Answer::Never;
            return false;
        }
        let received = state == Some(&mut State::Received);
        if received {
            self.messages.remove(&id);
        }
        received
    }
}
