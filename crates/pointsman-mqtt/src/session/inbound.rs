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
    Pending(Qos),
    /// QoS 1, acknowledged while there was no connection: it will come again, and is acknowledged then.
    Acknowledged,
    /// QoS 2, PUBREC is sent (or, without a connection, would be): PUBREL will come.
    Received,
}

impl Inbound {
    pub(super) fn new(limit: u16) -> Self {
        Self { messages: HashMap::new(), pending: 0, limit }
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.pending = 0;
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
        match self.messages.get(&id) {
            Some(State::Acknowledged) if qos == Qos::AtLeastOnce => {
                self.messages.remove(&id);
                put_ack(AckKind::Puback, id, Reason::SUCCESS, version, out);
                Ok(Event::Nothing)
            }
            Some(State::Received) if qos == Qos::ExactlyOnce => {
                put_ack(AckKind::Pubrec, id, Reason::SUCCESS, version, out);
                Ok(Event::Nothing)
            }
            Some(State::Pending(pending)) if *pending == qos && publish.dup => Ok(Event::Nothing),
            Some(_) => {
                let what = "a packet identifier is used for a second message";
                Err(Malformed { what, reason: Reason::PACKET_IDENTIFIER_IN_USE })
            }
            None if self.pending >= usize::from(self.limit) => {
                let what = "more messages than the receive maximum";
                Err(Malformed { what, reason: Reason::RECEIVE_MAXIMUM_EXCEEDED })
            }
            None => {
                self.messages.insert(id, State::Pending(qos));
                self.pending += 1;
                Ok(Event::Message(publish))
            }
        }
    }

    pub(super) fn acknowledge(&mut self, id: u16, reason: Reason, to: (Version, bool), out: &mut BytesMut) {
        let Some(&State::Pending(qos)) = self.messages.get(&id) else { return };
        let (version, up) = to;
        self.pending -= 1;
        let kind = if qos == Qos::AtLeastOnce { AckKind::Puback } else { AckKind::Pubrec };
        match (qos, up) {
            (Qos::ExactlyOnce, _) if !reason.is_error() => drop(self.messages.insert(id, State::Received)),
            (Qos::AtLeastOnce, false) if !reason.is_error() => drop(self.messages.insert(id, State::Acknowledged)),
            _ => drop(self.messages.remove(&id)),
        }
        if up {
            put_ack(kind, id, reason, version, out);
        }
    }

    /// Whether such a message had been received.
    pub(super) fn release(&mut self, id: u16) -> bool {
        let received = self.messages.get(&id) == Some(&State::Received);
        if received {
            self.messages.remove(&id);
        }
        received
    }
}
